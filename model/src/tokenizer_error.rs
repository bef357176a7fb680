//! What can be wrong with a tokenizer. Every message names the value, and what would work.

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    #[error("tokenizer model {model:?} is not supported yet; supported: {supported}")]
    Model { model: String, supported: &'static str },
    #[error("pre-tokenizer {name:?} is not supported yet; supported: {supported}")]
    PreTokenizer { name: String, supported: String },
    /// A part of tokenizer.json that would change the tokens.
    #[error("tokenizer.json: {part} {value} is not supported yet; supported: {supported}")]
    Part {
        part: &'static str,
        value: String,
        supported: &'static str,
    },
    #[error("{file} cannot be read: {reason}")]
    Json { file: &'static str, reason: String },
    #[error("{key:?} has {found} items, expected one for each of {expected} tokens")]
    Length {
        key: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("the vocabulary has no tokens")]
    Empty,
    #[error("token {token} is not valid UTF-8")]
    NotUtf8 { token: u32 },
    #[error("tokens {first} and {second} are both {text:?}")]
    Duplicate { first: u32, second: u32, text: String },
    #[error("{first:?} and {second:?} are both token {token}")]
    DuplicateId { token: u32, first: String, second: String },
    #[error("token {token} is beyond {most}, the most that a vocabulary of {num_tokens} tokens may use")]
    TokenId { token: u32, most: u32, num_tokens: usize },
    #[error("the score of token {token} is {score}, expected a finite number")]
    Score { token: u32, score: f32 },
    #[error("token {token} is a byte by its type, but its text is {text:?}; expected <0x00> to <0xFF>")]
    ByteToken { token: u32, text: String },
    #[error("the unknown token {text:?} is not in the vocabulary")]
    UnknownToken { text: String },
    #[error("there are {found} merges, at most {most} are allowed for this vocabulary")]
    TooManyMerges { found: usize, most: usize },
    #[error("merge {index} {why}: {text:?}")]
    Merge {
        index: usize,
        text: String,
        why: &'static str,
    },
    #[error("the special tokens have {bytes} bytes of text, at most {bytes_max} are allowed")]
    SpecialTokens { bytes: usize, bytes_max: usize },
    #[error("{what} is token {token}, expected one below the vocabulary's size {vocab_size}")]
    Role { what: String, token: u64, vocab_size: u32 },
    #[error("{what} is {text:?}, which is not a token of the vocabulary")]
    RoleText { what: String, text: String },
    #[error("the tokenizer library says: {reason}")]
    Library { reason: String },
}
