//! An API key: 256 random bits as text. A server keeps its hash alone, so a file of keys tells nobody a key.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "kvasir-";
const KEY_BYTES: usize = 32;

/// Shown once, and never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

impl ApiKey {
    /// Errors if the system gives no random numbers.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; KEY_BYTES];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(format!("{PREFIX}{}", hex(&bytes))))
    }

    /// As somebody presents it; any text.
    pub fn presented(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// SHA-256. A key of 256 random bits cannot be guessed from it, so nothing slower is needed.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// `None` unless these are 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// In a time that does not depend on where they differ.
    pub fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_known_by_their_hash() {
        let [one, two] = [(); 2].map(|()| ApiKey::generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.text().len(), PREFIX.len() + 2 * KEY_BYTES);
        let hash = KeyHash::parse(&one.hash().to_string()).unwrap();
        assert!(hash.equals(&ApiKey::presented(one.text()).hash()));
        assert!(!hash.equals(&two.hash()));
        assert!(!format!("{one:?}").contains(one.text()));
        for text in ["", "00", &"g".repeat(64), &"0".repeat(65)] {
            assert!(KeyHash::parse(text).is_none(), "{text}");
        }
    }
}
