//! Named values that describe a model, wherever they come from: a GGUF file's metadata or a folder's config.json.

use crate::{CheckpointError, Metadata};

/// An absent key is `None`, a value of the wrong type an error that names the key.
pub(crate) trait Facts {
    fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError>;
    fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError>;
    fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError>;
    fn str(&self, key: &str) -> Result<Option<&str>, CheckpointError>;

    /// Errors if the key is absent or 0.
    fn positive(&self, key: &str) -> Result<u32, CheckpointError> {
        match self.u32(key)? {
            None => Err(missing(key)),
            Some(0) => Err(bad_value(key, 0, "at least 1")),
            Some(value) => Ok(value),
        }
    }

    /// Errors if the value is not finite and above 0, or absent without a default.
    fn positive_float(&self, key: &str, default: Option<f32>) -> Result<f32, CheckpointError> {
        match self.f32(key)?.or(default) {
            None => Err(missing(key)),
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(bad_value(key, value, "a finite number above 0")),
        }
    }
}

impl Facts for Metadata<'_> {
    fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        Metadata::u32(self, key)
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        Metadata::f32(self, key)
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        Metadata::bool(self, key)
    }

    fn str(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        Metadata::str(self, key)
    }
}

pub(crate) fn missing(key: &str) -> CheckpointError {
    CheckpointError::MissingKey { key: key.to_owned() }
}

pub(crate) fn bad_value(key: &str, value: impl ToString, expected: impl Into<String>) -> CheckpointError {
    CheckpointError::BadValue {
        key: key.to_owned(),
        value: value.to_string(),
        expected: expected.into(),
    }
}

pub(crate) fn unsupported(
    key: &str,
    value: impl ToString,
    what: &'static str,
    supported: &'static str,
) -> CheckpointError {
    CheckpointError::Unsupported {
        key: key.to_owned(),
        value: value.to_string(),
        what,
        supported,
    }
}
