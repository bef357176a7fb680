//! A phase of few tokens: each thread computes units of its own from beginning to end, as ranks do, and nobody waits before
//! the sums. Many tokens are split by rows, where the waits between the products cost little and no sums are added twice.

use super::{phases::PhaseBuffers, products};
use crate::threads::ThreadTeam;

/// With more, the waits between products weigh little against computing.
const TOKENS_MAX: usize = 8;
/// Positions of heads that threads may be idle for: so many take as long as the waits that are saved.
const IDLE_POSITIONS_MAX: u64 = 512;

/// What a thread computes its units in.
#[derive(Debug)]
pub(super) struct Member {
    /// The thread alone.
    team: ThreadTeam,
    buffers: PhaseBuffers,
}

impl Member {
    fn new() -> Self {
        Self {
            team: ThreadTeam::alone(),
            buffers: PhaseBuffers::default(),
        }
    }
}

/// Whether FFN units can be dealt so that no thread has much more than another.
pub(super) fn serves_ffn(tokens: usize, units: usize, members: usize) -> bool {
    let most = units.next_multiple_of(members);
    members > 1 && tokens <= TOKENS_MAX && units >= members && 8 * most <= 9 * units
}

/// Whether KV heads can be dealt so that no thread attends for much longer than another.
///
/// positions: of all rows
pub(super) fn serves_attention(tokens: usize, heads: usize, positions: u64, members: usize) -> bool {
    let idle = heads.next_multiple_of(members) - heads;
    members > 1 && tokens <= TOKENS_MAX && heads >= members && idle as u64 * positions <= IDLE_POSITIONS_MAX
}

/// Runs `phase` for each thread, with the things that are its own, and adds up what they leave behind.
pub(super) fn run<T: Send>(
    team: &mut ThreadTeam,
    members: &mut Vec<Member>,
    own: Vec<T>,
    whole: &mut PhaseBuffers,
    phase: impl Fn(T, &mut ThreadTeam, &mut PhaseBuffers) + Sync,
) {
    members.resize_with(own.len(), Member::new);
    let mut parts: Vec<_> = members.iter_mut().zip(own.into_iter().map(Some)).collect();
    team.run(&mut parts, |_, (member, own)| {
        if let Some(own) = own.take() {
            phase(own, &mut member.team, &mut member.buffers);
        }
    });
    whole.add_up(members.iter().map(|member| &member.buffers));
}

/// What each thread gets of `items`, in order.
pub(super) fn deal<T>(mut items: &mut [T], members: usize) -> Vec<&mut [T]> {
    let count = items.len();
    let mut dealt = Vec::with_capacity(members);
    for member in 0..members {
        let (part, rest) = items.split_at_mut(products::share(count, member, members).len());
        dealt.push(part);
        items = rest;
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_dealt_where_that_is_even() {
        assert!(serves_ffn(1, 24, 2) && serves_ffn(8, 9, 3) && serves_ffn(1, 17, 3));
        assert!(!serves_ffn(1, 24, 1), "one thread has nobody to wait for");
        assert!(!serves_ffn(9, 24, 2), "many tokens");
        assert!(!serves_ffn(1, 3, 2) && !serves_ffn(1, 0, 2) && !serves_ffn(1, 1, 2));
        assert!(serves_attention(1, 4, 100_000, 2), "even at any length");
        assert!(serves_attention(1, 3, 512, 2) && !serves_attention(1, 3, 513, 2));
        assert!(!serves_attention(1, 1, 1, 2) && !serves_attention(1, 0, 1, 2));
    }

    #[test]
    fn every_item_is_dealt_once() {
        for members in 1..5 {
            let mut items: Vec<usize> = (0..7).collect();
            let dealt: Vec<usize> = deal(&mut items, members).concat();
            assert_eq!(dealt, (0..7).collect::<Vec<_>>());
        }
    }
}
