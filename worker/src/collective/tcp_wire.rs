//! The wire between ranks of several hosts: one connection between each two.

use super::content::Content;
use super::exchange::exchange;
use super::link::{Expected, Link};
use super::member::Wire;
use super::patience::Patience;
use super::rounding::{round_sums, slice_of};
use super::{CollectiveError, GATHER_BYTES_MAX, Transport};

/// Up to here every rank sends everything to everybody, in one exchange; beyond, slices in two.
const SMALL_WORDS: usize = 4096;

/// Elements that are worked off at once: bounds what the links hold.
const PIECE_WORDS: usize = 1 << 20;

/// Sums that are formed together, on the stack.
const STRIP_WORDS: usize = 64;

const _: () = assert!(cfg!(target_endian = "little"), "numbers are sent as they lie in memory");

/// The wire between ranks of several hosts.
#[derive(Debug)]
pub(super) struct TcpWire {
    rank: usize,
    world_size: usize,
    /// links: [world_size - 1], by peer
    links: Vec<Link>,
    /// Exchanges so far; each frame carries it, so that skew is noticed.
    sequence: u64,
}

impl TcpWire {
    pub fn new(rank: usize, world_size: usize, links: Vec<Link>) -> Self {
        Self {
            rank,
            world_size,
            links,
            sequence: 0,
        }
    }
}

impl Wire for TcpWire {
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn all_reduce(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        if sums.len() <= SMALL_WORDS {
            return self.reduce_small(sums, out, patience);
        }
        for (sums, out) in sums.chunks(PIECE_WORDS).zip(out.chunks_mut(PIECE_WORDS)) {
            self.reduce_large(sums, out, patience)?;
        }
        Ok(())
    }

    fn all_gather(
        &mut self,
        mine: &[u8],
        gathered: &mut [Vec<u8>],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        gathered[self.rank].extend_from_slice(mine);
        self.exchange(
            Content::Bytes,
            |_| mine,
            |_| Expected::AtMost(GATHER_BYTES_MAX),
            patience,
        )?;
        for link in &self.links {
            gathered[link.peer()].extend_from_slice(link.payload());
        }
        Ok(())
    }
}

impl TcpWire {
    /// Everybody sums everything.
    fn reduce_small(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        let payload = bytemuck::cast_slice(sums);
        self.exchange(
            Content::Sums,
            |_| payload,
            |_| Expected::Exactly(payload.len()),
            patience,
        )?;
        self.round_received(sums, out);
        Ok(())
    }

    /// Everybody sums and rounds their slice, then all collect the floats.
    fn reduce_large(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        let slice_of = |rank| slice_of(rank, self.world_size, sums.len());
        let mine = slice_of(self.rank);
        let expected = Expected::Exactly(size_of_val(&sums[mine.clone()]));
        let scattered = |peer| bytemuck::cast_slice(&sums[slice_of(peer)]);
        self.sequence += 1;
        exchange(
            &mut self.links,
            Content::Scattered,
            self.sequence,
            scattered,
            |_| expected,
            patience,
        )?;
        self.round_received(&sums[mine.clone()], &mut out[mine.clone()]);

        let rounded = bytemuck::cast_slice(&out[mine]);
        let expected_of = |peer| Expected::Exactly(slice_of(peer).len() * size_of::<f32>());
        self.sequence += 1;
        exchange(
            &mut self.links,
            Content::Rounded,
            self.sequence,
            |_| rounded,
            expected_of,
            patience,
        )?;
        for link in &self.links {
            bytemuck::cast_slice_mut(&mut out[slice_of(link.peer())]).copy_from_slice(link.payload());
        }
        Ok(())
    }

    /// Rounds the sums of ours and of what all links received. mine: [len], out: [len]
    fn round_received(&self, mine: &[i64], out: &mut [f32]) {
        let mut strip = [0_i64; STRIP_WORDS];
        for (index, (mine, out)) in mine.chunks(STRIP_WORDS).zip(out.chunks_mut(STRIP_WORDS)).enumerate() {
            let strip = &mut strip[..mine.len()];
            strip.copy_from_slice(mine);
            for link in &self.links {
                add_sums(&link.payload()[index * size_of_val(&[0_i64; STRIP_WORDS])..], strip);
            }
            round_sums(strip, out);
        }
    }

    fn exchange<'a>(
        &mut self,
        content: Content,
        payload_of: impl Fn(usize) -> &'a [u8],
        expected_of: impl Fn(usize) -> Expected,
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        self.sequence += 1;
        exchange(
            &mut self.links,
            content,
            self.sequence,
            payload_of,
            expected_of,
            patience,
        )
    }
}

fn add_sums(payload: &[u8], sums: &mut [i64]) {
    for (sum, bytes) in sums.iter_mut().zip(payload.chunks_exact(size_of::<i64>())) {
        *sum = sum.wrapping_add(i64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    }
}
