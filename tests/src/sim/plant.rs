//! Bugs that the harness plants on purpose, to see that it would find them.

/// One planted bug. It breaks what the harness carries between the machines, never the machines themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// Ranks take a step of any epoch for one of theirs.
    EpochCheckSkipped,
    /// A plan hands a sequence a block that another one holds, as a double release would.
    BlockReleasedTwice,
    /// One acknowledgement with its output never reaches the scheduler.
    WakeUpLost,
    /// A rank leaves out one cell write.
    WriteLost,
    /// A rank acknowledges a step when it gets it, not when it has done it.
    EarlyAcknowledge,
    /// A plan starts a sequence after a block that is not full, as a block made findable too early would.
    BlockSharedEarly,
    /// Requests reach the coordinator without their tenants, so that a plan shares what another tenant filled.
    TenantShared,
    /// A sequence that one group holds is admitted to another one as well.
    TwoHomes,
    /// A cell is damaged on its way from one group to another, and its checksum is not looked at.
    CellDamaged,
    /// A rank does not let go of a transfer that has ended, and takes cells for blocks that are somebody else's by now.
    LateCell,
}

impl Plant {
    pub const ALL: [Self; 10] = [
        Self::EpochCheckSkipped,
        Self::BlockReleasedTwice,
        Self::WakeUpLost,
        Self::WriteLost,
        Self::EarlyAcknowledge,
        Self::BlockSharedEarly,
        Self::TenantShared,
        Self::TwoHomes,
        Self::CellDamaged,
        Self::LateCell,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EpochCheckSkipped => "epoch-check-skipped",
            Self::BlockReleasedTwice => "block-released-twice",
            Self::WakeUpLost => "wake-up-lost",
            Self::WriteLost => "write-lost",
            Self::EarlyAcknowledge => "early-acknowledge",
            Self::BlockSharedEarly => "block-shared-early",
            Self::TenantShared => "tenant-shared",
            Self::TwoHomes => "two-homes",
            Self::CellDamaged => "cell-damaged",
            Self::LateCell => "late-cell",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.name() == name)
    }
}
