//! Meeting in shared memory: ranks go through numbered phases together.
//!
//! # Why two buffers are enough
//! In phase `p` a rank (1) writes its buffer of parity `p`, (2) publishes that it arrived at `p`, (3) waits until all
//! have arrived at `p`, (4) reads buffers of parity `p`, all of it before it publishes `p + 1`. The buffer written
//! in (1) was last read by peers in step (4) of phase `p - 2`. A writer in phase `p` has completed (3) of phase
//! `p - 1`, so each peer has published `p - 1`, and with that has finished reading phase `p - 2`. Hence nobody
//! overwrites what another still reads, however fast it is; and nobody is ever more than one phase ahead, so the
//! counters may wrap.
//!
//! # Why no wake-up is lost
//! The publisher stores `arrived`, then loads `sleepers`; the sleeper adds itself to `sleepers`, then loads
//! `arrived`; all four are sequentially consistent, so at least one of the two sees the other: either the
//! publisher makes the wake-up call, or the sleeper sees the arrival. The kernel compares `arrived` once more when it
//! queues the sleeper. A sleeper that is killed leaves its mark in `sleepers`: the price is a needless system call.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::thread::futex;

use super::CollectiveError;
use super::patience::Patience;
use super::segment::Segment;

/// Looks at the counters before giving the core away: less than a microsecond. Longer spinning collapses when
/// there are more ranks than cores, because the one that is waited for does not run.
const SPINS: u32 = 50;

/// Times the core is offered to others before sleeping: a sleeper costs a wake-up of ten microseconds and more. Where there are
/// more ranks than cores each offer may take milliseconds, and so does an abort until it is seen.
const YIELDS: u32 = 100;

/// A rank's way through the phases of one segment.
#[derive(Debug)]
pub(super) struct Arrivals {
    segment: Segment,
    rank: usize,
    world_size: usize,
    phase: u32,
}

impl Arrivals {
    /// The segment's counters stand at phase 0.
    pub fn new(segment: Segment, rank: usize, world_size: usize) -> Self {
        Self {
            segment,
            rank,
            world_size,
            phase: 0,
        }
    }

    /// The segment's counters stand at `phase`.
    #[cfg(test)]
    pub fn starting_at(phase: u32, segment: Segment, rank: usize, world_size: usize) -> Self {
        Self {
            segment,
            rank,
            world_size,
            phase,
        }
    }

    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// All ranks but this one, in an order that spreads the readers over the writers.
    pub fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world_size) = (self.rank, self.world_size);
        (1..world_size).map(move |distance| (rank + distance) % world_size)
    }

    /// Which buffer the phase that comes next is written to.
    pub fn next_parity(&self) -> u32 {
        self.phase.wrapping_add(1) & 1
    }

    /// Which buffer the phase that all have reached is read from.
    pub fn parity(&self) -> u32 {
        self.phase & 1
    }

    /// Publishes what was written to the buffer of `next_parity`, and waits until all have done so.
    pub fn meet(&mut self, patience: &mut Patience<'_>) -> Result<(), CollectiveError> {
        self.phase = self.phase.wrapping_add(1);
        self.publish();
        let mut attempts = 0;
        for peer in self.peers() {
            while !self.has_arrived(peer) {
                attempts += 1;
                if attempts <= SPINS {
                    std::hint::spin_loop();
                } else if attempts <= SPINS + YIELDS {
                    rustix::thread::sched_yield();
                } else {
                    self.sleep(peer, patience)?;
                }
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let line = self.segment.line(self.rank);
        line.arrived().store(self.phase, Ordering::SeqCst);
        if line.sleepers().load(Ordering::SeqCst) > 0 {
            self.wake_sleepers();
        }
    }

    fn wake_sleepers(&self) {
        // A wake-up call fails only for addresses that are not mapped.
        let _woken = futex::wake(
            self.segment.line(self.rank).arrived(),
            futex::Flags::empty(),
            i32::MAX as u32,
        );
    }

    fn has_arrived(&self, peer: usize) -> bool {
        self.has_reached(self.segment.line(peer).arrived().load(Ordering::Acquire))
    }

    fn has_reached(&self, arrived: u32) -> bool {
        arrived.wrapping_sub(self.phase) as i32 >= 0
    }

    /// Sleeps until the peer's counter changes, for the length of a nap at most.
    fn sleep(&self, peer: usize, patience: &mut Patience<'_>) -> Result<(), CollectiveError> {
        let nap = patience.nap(|| self.missing())?;
        let line = self.segment.line(peer);
        if line.departed().load(Ordering::Acquire) != 0 && !self.has_arrived(peer) {
            return Err(patience.peer_gone(peer));
        }
        line.sleepers().fetch_add(1, Ordering::SeqCst);
        let seen = line.arrived().load(Ordering::SeqCst);
        if !self.has_reached(seen) {
            // Woken, timed out, interrupted or too late: the caller looks again in any case.
            let _outcome = futex::wait(line.arrived(), futex::Flags::empty(), seen, Some(&timespec(nap)));
        }
        line.sleepers().fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn missing(&self) -> Vec<usize> {
        (0..self.world_size).filter(|&rank| !self.has_arrived(rank)).collect()
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.segment.line(self.rank).departed().store(1, Ordering::Release);
        self.wake_sleepers();
    }
}

fn timespec(duration: Duration) -> rustix::thread::Timespec {
    rustix::thread::Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}
