//! Small models that other people's packages wrote, and what transformers computes with them: `reference/models.py`.

use std::{collections::BTreeMap, path::PathBuf, sync::LazyLock};

use serde::Deserialize;

#[derive(Deserialize, Debug)]
pub struct Expected {
    pub tokens: Vec<u32>,
    /// By model and position, `[vocab_size]`: after the token at that position.
    pub logits: BTreeMap<String, BTreeMap<usize, Vec<f32>>>,
}

pub fn expected() -> &'static Expected {
    static EXPECTED: LazyLock<Expected> = LazyLock::new(|| {
        let text = std::fs::read(folder().join("models.json")).expect("tests/reference/models.json is checked in");
        serde_json::from_slice(&text).expect("what models.py writes")
    });
    &EXPECTED
}

/// Of files and folders, in alphabetical order.
pub fn names() -> Vec<String> {
    expected().logits.keys().cloned().collect()
}

pub fn path(name: &str) -> PathBuf {
    folder().join("models").join(name)
}

fn folder() -> PathBuf {
    crate::data_folder().join("reference")
}
