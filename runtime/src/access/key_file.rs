//! The file of API keys: a JSON object on each line, as `kvasir key` prints it; empty lines and `#` comments are skipped.
//!
//! A line each, so that a key is added with `>>` and taken away with any editor.

use std::{io, path::Path, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::api_key::{ApiKey, KeyHash};
use crate::tls::Identity;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    pub name: String,
    /// Of the key, in hexadecimal digits.
    pub sha256: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    #[serde(flatten)]
    pub limits: KeyLimits,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot read the API keys in {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

#[derive(Debug)]
pub(super) struct ApiKeys(Vec<(KeyHash, KeyEntry)>);

impl ApiKeys {
    pub fn read(path: &Path) -> Result<Self, AccessError> {
        let text = std::fs::read_to_string(path).map_err(|source| AccessError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|(line, reason)| AccessError::Line {
            path: path.to_owned(),
            line,
            reason,
        })
    }

    /// Errors with the line, from 1, and what is wrong with it.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut keys: Vec<(KeyHash, KeyEntry)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = parse_line(line).map_err(|reason| (index + 1, reason))?;
            if keys.iter().any(|(_, other)| other.name == key.1.name) {
                return Err((index + 1, format!("a second key named `{}`", key.1.name)));
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    /// Looks at all of them, whichever it is.
    pub fn find(&self, presented: &ApiKey) -> Option<&KeyEntry> {
        let hash = presented.hash();
        let mut found = None;
        for (known, entry) in &self.0 {
            if known.equals(&hash) {
                found = Some(entry);
            }
        }
        found
    }
}

fn parse_line(line: &str) -> Result<(KeyHash, KeyEntry), String> {
    let entry: KeyEntry = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Identity::check_name(&entry.name).map_err(|error| error.to_string())?;
    let hash = KeyHash::parse(&entry.sha256).ok_or("sha256 must have 64 hexadecimal digits")?;
    if [entry.limits.requests_per_minute, entry.limits.concurrent_requests].contains(&Some(0)) {
        return Err("a limit of 0 allows nothing; take the line away instead".to_owned());
    }
    Ok((hash, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_line_by_line_and_an_error_names_its_line() {
        let key = ApiKey::generate().unwrap();
        let entry = KeyEntry {
            name: "ada".to_owned(),
            sha256: key.hash().to_string(),
            admin: false,
            limits: KeyLimits {
                requests_per_minute: Some(60),
                concurrent_requests: None,
            },
        };
        let line = serde_json::to_string(&entry).unwrap();
        let keys = ApiKeys::parse(&format!("# who may ask\n\n{line}\n")).unwrap();
        assert_eq!(keys.find(&key), Some(&entry));
        assert_eq!(keys.find(&ApiKey::presented("kvasir-")), None);
        for (text, line, why) in [
            (format!("{line}\n{line}"), 2, "second key"),
            ("{}".to_owned(), 1, "name"),
            ("\n{\"name\":\"a\",\"sha256\":\"00\"}".to_owned(), 2, "64"),
            (line.replace(":60", ":0"), 1, "limit of 0"),
            (line.replace("ada", "a/b"), 1, "not a name"),
        ] {
            let (found, reason) = ApiKeys::parse(&text).unwrap_err();
            assert!(found == line && reason.contains(why), "{text}: {found}: {reason}");
        }
    }
}
