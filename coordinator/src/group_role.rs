//! What a group is for: to compute prompts, to compute answers, or both.

use std::{fmt, str::FromStr};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum GroupRole {
    #[default]
    Both,
    /// New sequences come here; they leave for a group that decodes while their prompts are computed.
    Prefill,
    /// Sequences come here with all that was computed of them. It takes new ones only where no other group serves.
    Decode,
}

impl GroupRole {
    pub const ALL: [Self; 3] = [Self::Both, Self::Prefill, Self::Decode];

    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    pub fn takes_prompts(self) -> bool {
        self != Self::Decode
    }

    pub fn keeps_answers(self) -> bool {
        self != Self::Prefill
    }
}

impl fmt::Display for GroupRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no role of a group; roles are both, prefill and decode")]
pub struct UnknownRole(String);

impl FromStr for GroupRole {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| UnknownRole(text.to_owned()))
    }
}
