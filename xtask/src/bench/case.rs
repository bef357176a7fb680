//! What is measured, the same for both sides.

use std::fmt;

/// Lengths are in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// A prompt, up to its answer's first token.
    Prefill { tokens: u32 },
    /// One answer after `depth` tokens of context.
    Decode { depth: u32, tokens: u32 },
    /// So many answers at once; the rate is of all together.
    Streams { streams: u32, tokens: u32 },
}

pub const PREFILL_TOKENS: u32 = 512;
pub const DECODE_TOKENS: u32 = 128;
/// Deep steps take longer: half as many tell as much.
pub const DEEP_TOKENS: u32 = DECODE_TOKENS / 2;
/// Of each of several answers at once.
pub const STREAM_PROMPT_TOKENS: u32 = 16;

/// The answer after no context, which every run measures.
pub const DECODE: Case = Case::Decode {
    depth: 0,
    tokens: DECODE_TOKENS,
};

/// Beyond a prompt and an answer after no context, which every run measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    pub depths: Vec<u32>,
    pub streams: Vec<u32>,
}

impl Extent {
    pub fn cases(&self) -> Vec<Case> {
        let prefill = Case::Prefill { tokens: PREFILL_TOKENS };
        let deep = self.depths.iter().map(|&depth| Case::Decode {
            depth,
            tokens: DEEP_TOKENS,
        });
        let together = self.streams.iter().map(|&streams| Case::Streams {
            streams,
            tokens: DECODE_TOKENS,
        });
        [prefill, DECODE].into_iter().chain(deep).chain(together).collect()
    }

    /// Less the depths that a model has no room for, and these.
    pub fn within(&self, context_len: u32) -> (Self, Vec<u32>) {
        let fits = |depth: &u32| depth.saturating_add(DEEP_TOKENS) <= context_len;
        let (depths, too_deep) = self.depths.iter().partition(|depth| fits(depth));
        let streams = self.streams.clone();
        (Self { depths, streams }, too_deep)
    }
}

/// What reports call it: the same words in those that are read and those that are written.
impl Case {
    pub fn test(self) -> &'static str {
        match self {
            Self::Prefill { .. } => "prefill",
            Self::Decode { .. } | Self::Streams { .. } => "decode",
        }
    }

    /// Of the prompt, or of each answer.
    pub fn tokens(self) -> u32 {
        match self {
            Self::Prefill { tokens } | Self::Decode { tokens, .. } | Self::Streams { tokens, .. } => tokens,
        }
    }

    pub fn depth(self) -> u32 {
        match self {
            Self::Decode { depth, .. } => depth,
            Self::Prefill { .. } | Self::Streams { .. } => 0,
        }
    }

    pub fn streams(self) -> u32 {
        match self {
            Self::Streams { streams, .. } => streams,
            Self::Prefill { .. } | Self::Decode { .. } => 1,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "prefill {tokens}"),
            Self::Decode { depth: 0, tokens } => write!(f, "decode {tokens}"),
            Self::Decode { depth, tokens } => write!(f, "decode {tokens} at {depth}"),
            Self::Streams { streams, tokens } => write!(f, "decode {tokens}, {streams} streams"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_without_room_for_their_answer_are_told_apart() {
        let extent = Extent {
            depths: vec![4096, 8128, 8129, u32::MAX],
            streams: vec![8],
        };
        let (fitting, too_deep) = extent.within(8192);
        assert_eq!(fitting.depths, [4096, 8128]);
        assert_eq!(fitting.streams, [8]);
        assert_eq!(too_deep, [8129, u32::MAX]);
    }

    #[test]
    fn cases_are_named_as_they_are_measured() {
        let extent = Extent {
            depths: vec![4096],
            streams: vec![8, 32],
        };
        let names: Vec<_> = extent.cases().iter().map(Case::to_string).collect();
        let expected = [
            "prefill 512",
            "decode 128",
            "decode 64 at 4096",
            "decode 128, 8 streams",
            "decode 128, 32 streams",
        ];
        assert_eq!(names, expected);
    }
}
