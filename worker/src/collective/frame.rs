//! The head of a frame between two ranks.

use super::content::Content;

pub(super) const HEAD_BYTES: usize = 24;

const MAGIC: [u8; 4] = *b"Kvsf";

/// The head of a frame: what follows, how many bytes of it, and the how-manieth exchange of the epoch it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub content: Content,
    pub sequence: u64,
    pub payload_bytes: u64,
}

impl FrameHead {
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.content as u8;
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    /// None unless these are the bytes of a head of the given exchange; then how many payload bytes follow.
    pub fn payload_bytes_of(bytes: &[u8; HEAD_BYTES], content: Content, sequence: u64) -> Option<u64> {
        let payload_bytes = u64::from_le_bytes(bytes[16..].try_into().expect("eight bytes"));
        (*bytes
            == FrameHead {
                content,
                sequence,
                payload_bytes,
            }
            .to_bytes())
        .then_some(payload_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_another_exchange_is_told_apart() {
        let head = FrameHead {
            content: Content::Sums,
            sequence: 7,
            payload_bytes: 40,
        };
        let bytes = head.to_bytes();
        assert_eq!(FrameHead::payload_bytes_of(&bytes, Content::Sums, 7), Some(40));
        assert_eq!(FrameHead::payload_bytes_of(&bytes, Content::Sums, 8), None);
        assert_eq!(FrameHead::payload_bytes_of(&bytes, Content::Bytes, 7), None);
        for position in 0..16 {
            let mut damaged = bytes;
            damaged[position] ^= 1;
            assert_eq!(
                FrameHead::payload_bytes_of(&damaged, Content::Sums, 7),
                None,
                "byte {position}"
            );
        }
    }
}
