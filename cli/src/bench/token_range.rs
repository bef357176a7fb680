//! How many tokens: always the same number, or one drawn from a range.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::dice::Dice;

/// More than any model's context; a slip of the finger must not fill the memory.
const TOKENS_MAX: u32 = 1 << 20;

/// `low..=high`, neither 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenRange {
    low: u32,
    high: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TokenRangeError {
    #[error("`{text}` is not a number of tokens: give N or LOW..HIGH")]
    NotARange { text: String },
    #[error("{low}..{high} holds nothing: the lower end comes first")]
    Backwards { low: u32, high: u32 },
    #[error("{tokens} tokens are not in 1..{TOKENS_MAX}")]
    OutOfBounds { tokens: u32 },
}

impl TokenRange {
    pub const fn exactly(tokens: u32) -> Self {
        Self {
            low: tokens,
            high: tokens,
        }
    }

    pub fn draw(self, dice: &mut Dice) -> u32 {
        dice.between(self.low, self.high)
    }
}

impl FromStr for TokenRange {
    type Err = TokenRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| {
            let not_a_range = || TokenRangeError::NotARange { text: text.to_owned() };
            let tokens = part.parse().map_err(|_| not_a_range())?;
            match tokens {
                1..=TOKENS_MAX => Ok(tokens),
                _ => Err(TokenRangeError::OutOfBounds { tokens }),
            }
        };
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let (low, high) = (number(low)?, number(high)?);
        if low > high {
            return Err(TokenRangeError::Backwards { low, high });
        }
        Ok(Self { low, high })
    }
}

impl fmt::Display for TokenRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low == self.high {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}..{}", self.low, self.high),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_range_come_back_as_they_were_written() {
        for text in ["7", "64..256"] {
            assert_eq!(text.parse::<TokenRange>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "x",
            "64...256",
            "64..",
            "..9",
            "-1",
            "0",
            "0..4",
            "9..4",
            "4294967295",
        ] {
            assert!(text.parse::<TokenRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn both_ends_are_drawn() {
        let range = TokenRange { low: 3, high: 5 };
        let mut dice = Dice::new(1, 0);
        let drawn: std::collections::BTreeSet<u32> = (0..100).map(|_| range.draw(&mut dice)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    }
}
