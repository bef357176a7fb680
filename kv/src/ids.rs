//! Ids: newtypes, so that two integers in one signature cannot be confused.
//!
//! Ids carry no meaning beyond identity and order; they never index memory directly.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A vocabulary index.
    TokenId(u32)
);
id!(
    /// `block_size` token positions of KV cache, all layers, all KV heads; one id for all ranks of a TP group.
    BlockId(u32)
);
id!(
    /// Bumped by each allocation of a block: a stale reference is refused, also inside one epoch.
    BlockTag(u32)
);
id!(
    /// A request being generated, inside one TP group.
    SequenceId(u64)
);
id!(
    /// A forward pass of a group over one batch; counts from 0 in each epoch.
    StepId(u64)
);
id!(
    /// The ranks that run one copy of the model together.
    GroupId(u32)
);
id!(
    /// A copy of cells between two epochs; never used again by its coordinator.
    TransferId(u64)
);
id!(
    /// A worker's place in its TP group, from 0.
    Rank(u32)
);
id!(
    /// An attention, FFN or vocab unit, counted from 0 within its kind.
    UnitId(u32)
);
id!(
    /// A KV head, 0 up to `num_kv_heads - 1`.
    KvHead(u32)
);

/// One life of a TP group. A change of ranks or plan starts the next; the term grows with each coordinator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch {
    pub term: u64,
    pub number: u64,
}

impl Epoch {
    /// The next epoch of the same term.
    pub fn next(self) -> Self {
        Self {
            term: self.term,
            number: self.number + 1,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

/// A worker process, named by itself when it starts; unique in a cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a client calls its request; given by the client or made at the edge.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub String);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a request is for. Tenants share the cluster fairly and find each other's cached blocks never; the empty name is a
/// tenant like any other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TenantId(pub String);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What must be equal for two engines to produce, exchange and resume the same bits:
/// hash(model bytes, numerics version, device class, KV dtype, weight mode).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumericsId(pub [u8; 16]);

impl fmt::Display for NumericsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for NumericsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NumericsId({self})")
    }
}
