//! Who was turned away, and why: counted by reason, and told in the log.
//!
//! A stranger who knocks a thousand times a second fills no disk: of each reason a few are told in a while, then how many
//! were not. Nothing that somebody presented is ever in a message.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::warn;

const WINDOW: Duration = Duration::from_secs(10);
/// Of one reason, in a window.
const TOLD_MAX: u32 = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    NoCertificate,
    WrongCa,
    Expired,
    /// A certificate of the right CA, for somebody or something else.
    OtherIdentity,
    /// What came was no handshake, or one that cannot end well.
    BadHandshake,
    HandshakeTimeout,
    /// The first words of a connection took too long.
    SlowConnection,
    TooManyConnections,
    MissingKey,
    WrongKey,
    NotAllowed,
    OverLimit,
    /// A connection for cells that shows no ticket.
    TransferStranger,
    /// A connection for sums that does not know the epoch.
    CollectiveStranger,
}

impl Refusal {
    pub const ALL: [Self; 14] = [
        Self::NoCertificate,
        Self::WrongCa,
        Self::Expired,
        Self::OtherIdentity,
        Self::BadHandshake,
        Self::HandshakeTimeout,
        Self::SlowConnection,
        Self::TooManyConnections,
        Self::MissingKey,
        Self::WrongKey,
        Self::NotAllowed,
        Self::OverLimit,
        Self::TransferStranger,
        Self::CollectiveStranger,
    ];

    /// As a counter.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "refused_no_certificate",
            Self::WrongCa => "refused_wrong_ca",
            Self::Expired => "refused_expired",
            Self::OtherIdentity => "refused_other_identity",
            Self::BadHandshake => "refused_bad_handshake",
            Self::HandshakeTimeout => "refused_handshake_timeout",
            Self::SlowConnection => "refused_slow_connection",
            Self::TooManyConnections => "refused_too_many_connections",
            Self::MissingKey => "refused_missing_key",
            Self::WrongKey => "refused_wrong_key",
            Self::NotAllowed => "refused_not_allowed",
            Self::OverLimit => "refused_over_limit",
            Self::TransferStranger => "refused_transfer_stranger",
            Self::CollectiveStranger => "refused_collective_stranger",
        }
    }
}

/// Since the process began.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::ALL.len()],
    told: Mutex<[Told; Refusal::ALL.len()]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    since: Option<Instant>,
    count: u32,
    untold: u64,
}

impl Refusals {
    /// `who` is an address or a name, `why` what is to be told of it: never what was presented.
    pub fn refuse(&self, refusal: Refusal, who: impl fmt::Display, why: impl fmt::Display) {
        self.counts[refusal as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(untold) = self.may_tell(refusal, Instant::now()) {
            let reason = refusal.name();
            match untold {
                0 => warn!(reason, %who, %why, "refused"),
                _ => warn!(reason, %who, %why, untold, "refused, and others before that were not told"),
            }
        }
    }

    pub fn count(&self, refusal: Refusal) -> u64 {
        self.counts[refusal as usize].load(Ordering::Relaxed)
    }

    /// All of them, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL
            .into_iter()
            .map(|refusal| (refusal.name(), self.count(refusal)))
    }

    /// How many have not been told before this one, if this one may be.
    fn may_tell(&self, refusal: Refusal, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut told[refusal as usize];
        if told.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            told.since = Some(now);
            told.count = 0;
        }
        if told.count == TOLD_MAX {
            told.untold += 1;
            return None;
        }
        told.count += 1;
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_few_are_told() {
        let refusals = Refusals::default();
        (0..100).for_each(|_| refusals.refuse(Refusal::WrongKey, "somebody", "no such key"));
        assert_eq!(refusals.count(Refusal::WrongKey), 100);
        assert_eq!(refusals.count(Refusal::MissingKey), 0);
        let now = Instant::now();
        assert_eq!(refusals.may_tell(Refusal::WrongKey, now), None);
        let later = refusals.may_tell(Refusal::WrongKey, now + WINDOW);
        assert_eq!(later, Some(100 - u64::from(TOLD_MAX) + 1));
        assert_eq!(refusals.may_tell(Refusal::MissingKey, now), Some(0));
    }

    #[test]
    fn every_reason_has_its_place() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index, "{refusal:?}");
        }
    }
}
