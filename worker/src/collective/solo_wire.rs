//! The wire of a group of one.

use super::member::Wire;
use super::patience::Patience;
use super::{CollectiveError, Transport, round_sums};

/// The wire of a group of one: rounds, and copies.
#[derive(Debug)]
pub(super) struct SoloWire;

impl Wire for SoloWire {
    fn transport(&self) -> Transport {
        Transport::Solo
    }

    fn all_reduce(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        _patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        round_sums(sums, out);
        Ok(())
    }

    fn all_gather(
        &mut self,
        mine: &[u8],
        gathered: &mut [Vec<u8>],
        _patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        gathered[0].extend_from_slice(mine);
        Ok(())
    }
}
