//! A rank's side of a collective, whatever carries the bytes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::patience::Patience;
use super::{Abort, Collective, CollectiveError, GATHER_BYTES_MAX, Transport};

/// What carries the bytes of one epoch. The member has checked the arguments and does not call again after an error.
pub(super) trait Wire: Send + fmt::Debug {
    fn transport(&self) -> Transport;

    /// sums: [len], out: [len]
    fn all_reduce(&mut self, sums: &[i64], out: &mut [f32], patience: &mut Patience<'_>)
    -> Result<(), CollectiveError>;

    /// gathered: [world_size], every entry empty
    fn all_gather(
        &mut self,
        mine: &[u8],
        gathered: &mut [Vec<u8>],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError>;
}

/// A rank's side of a collective: counts what it enters, and stays dead after the first failure.
#[derive(Debug)]
pub(super) struct Member<W> {
    pub rank: usize,
    pub world_size: usize,
    pub call_deadline: Duration,
    pub abort: Abort,
    pub entered: Arc<AtomicU64>,
    pub dead: bool,
    pub wire: W,
}

impl<W: Wire> Collective for Member<W> {
    fn world_size(&self) -> usize {
        self.world_size
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn transport(&self) -> Transport {
        self.wire.transport()
    }

    fn all_reduce(&mut self, sums: &[i64], out: &mut [f32]) -> Result<(), CollectiveError> {
        assert_eq!(sums.len(), out.len(), "one float for each sum");
        self.enter()?;
        let mut patience = Patience::new(&self.abort, self.call_deadline);
        let outcome = self.wire.all_reduce(sums, out, &mut patience);
        self.dead = outcome.is_err();
        outcome
    }

    fn all_gather(&mut self, mine: &[u8], gathered: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError> {
        self.check_gather(mine)?;
        self.enter()?;
        gathered.resize_with(self.world_size, Vec::new);
        gathered.iter_mut().for_each(Vec::clear);
        let mut patience = Patience::new(&self.abort, self.call_deadline);
        let outcome = self.wire.all_gather(mine, gathered, &mut patience);
        self.dead = outcome.is_err();
        outcome
    }
}

impl<W> Member<W> {
    fn enter(&self) -> Result<(), CollectiveError> {
        if self.abort.is_aborted() {
            return Err(CollectiveError::Aborted);
        }
        if self.dead {
            return Err(CollectiveError::Dead);
        }
        self.entered.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn check_gather(&self, mine: &[u8]) -> Result<(), CollectiveError> {
        if mine.len() <= GATHER_BYTES_MAX {
            return Ok(());
        }
        let found_bytes = mine.len() as u64;
        Err(CollectiveError::GatherTooLong {
            rank: self.rank,
            found_bytes,
            limit_bytes: GATHER_BYTES_MAX,
        })
    }
}
