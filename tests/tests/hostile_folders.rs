//! Model folders that are incomplete, mixed up, damaged or made to harm: each is an error that says what is wrong.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

use kvasir_model::Checkpoint;
use kvasir_tests::{
    model_folder::{
        CONFIG, INDEX, ModelFolder, SHARDED, TOKENIZER, WEIGHTS, WHOLE, assert_refused, header_len, use_all,
    },
    reference_models,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];
const NORM: &str = "model.norm.weight";

/// A byte-level vocabulary of so many tokens.
fn tokenizer_json(num_tokens: u32) -> Value {
    let vocab: Map<String, Value> = (0..num_tokens)
        .map(|token| (format!("t{token}"), json!(token)))
        .collect();
    json!({
        "added_tokens": [],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

#[test]
fn the_folders_themselves_are_sound() {
    for name in reference_models::names() {
        let path = reference_models::path(&name);
        if path.is_dir() {
            use_all(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            use_all(&ModelFolder::of(&name).write().path).unwrap();
        }
    }
}

#[test]
fn files_that_are_missing_are_named() {
    let without = |name: &'static str| {
        move |folder: &mut ModelFolder| {
            folder.files.remove(name).unwrap();
        }
    };
    assert_refused(
        WHOLE,
        without(CONFIG),
        "the folder has no config.json: a model is a GGUF file, or a folder with config.json and safetensors files",
    );
    assert_refused(
        WHOLE,
        without(WEIGHTS),
        "the folder has no model.safetensors (is the download complete?)",
    );
    assert_refused(
        SHARDED,
        without(SHARDS[1]),
        "the folder has no model-00002-of-00003.safetensors (is the download complete?)",
    );
    // As if the index had not been fetched.
    assert_refused(SHARDED, without(INDEX), "the folder has no model.safetensors (");
}

#[test]
fn what_is_no_file_is_refused() {
    for name in [CONFIG, WEIGHTS, TOKENIZER] {
        let mut folder = ModelFolder::of(WHOLE);
        folder.files.remove(name);
        let written = folder.write();
        let path = written.path.join(name);
        fs::create_dir(&path).unwrap();
        let refusal = use_all(&written.path).unwrap_err().to_string();
        assert_eq!(refusal, format!("in file {name}: cannot open it: not a regular file"));
        fs::remove_dir(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let refusal = use_all(&written.path).unwrap_err().to_string();
        assert_eq!(refusal, format!("in file {name}: cannot open it: not a regular file"));
    }
}

#[test]
fn a_folder_without_a_tokenizer_opens_and_says_so_when_asked() {
    let written = ModelFolder::of(WHOLE).write();
    let checkpoint = Checkpoint::open(&written.path).unwrap();
    let message = "the folder has no tokenizer.json";
    assert_eq!(checkpoint.tokenizer().unwrap_err().to_string(), message);
    assert_eq!(checkpoint.chat_template().unwrap_err().to_string(), message);
}

#[test]
fn a_vocabulary_fits_the_rows() {
    let tokenizer = |num_tokens: u32| {
        let mut folder = ModelFolder::of(WHOLE);
        folder.put(TOKENIZER, tokenizer_json(num_tokens).to_string());
        Checkpoint::open(folder.write().path).unwrap().tokenizer()
    };
    // Tables are padded.
    assert_eq!(tokenizer(200).unwrap().vocab_size(), 200);
    assert_eq!(tokenizer(264).unwrap().vocab_size(), 264);
    assert_eq!(
        tokenizer(265).unwrap_err().to_string(),
        "metadata \"number of tokens in tokenizer.json\" is 265, expected at most the 264 rows of the token embedding"
    );
    let named = |tokenizer: Value| move |folder: &mut ModelFolder| folder.put(TOKENIZER, tokenizer.to_string());
    let mut outside = tokenizer_json(4);
    outside["added_tokens"] = json!([{ "id": 264, "content": "<s>", "special": true }]);
    outside["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }] });
    assert_refused(
        WHOLE,
        named(outside),
        "the token at the start in tokenizer.json is token 264, expected one below the vocabulary's size 264",
    );
    assert_refused(WHOLE, named(json!(7)), "tokenizer.json cannot be read");
}

#[test]
fn an_index_names_files_beside_it() {
    let moved = |name: &'static str| {
        move |folder: &mut ModelFolder| folder.change_json(INDEX, |index| index["weight_map"][NORM] = json!(name))
    };
    for path in [
        "../model.safetensors",
        "a/model.safetensors",
        "/model.safetensors",
        "..",
        ".",
        "",
    ] {
        let message = format!(
            "metadata \"weight_map\" is {}, expected the name of a file in the same folder",
            json!(path)
        );
        assert_refused(SHARDED, moved(path), &message);
    }
    let map = |map: Value| move |folder: &mut ModelFolder| folder.put(INDEX, json!({ "weight_map": map }).to_string());
    assert_refused(SHARDED, map(json!({})), "is a map to 0 files, expected 1 to 4096 files");
    let many: Map<String, Value> = (0..4097).map(|i| (format!("t{i}"), json!(format!("{i}")))).collect();
    assert_refused(
        SHARDED,
        map(Value::Object(many)),
        "is a map to 4097 files, expected 1 to 4096 files",
    );
    assert_refused(SHARDED, map(json!([])), "model.safetensors.index.json is not the JSON");
    assert_refused(
        SHARDED,
        map(json!({ "a": 1 })),
        "model.safetensors.index.json is not the JSON",
    );
    assert_refused(SHARDED, |folder| folder.put(INDEX, "{}"), "missing field `weight_map`");
}

#[test]
fn shards_of_two_downloads_are_found_out() {
    assert_refused(
        SHARDED,
        |folder| folder.change_json(INDEX, |index| index["weight_map"][NORM] = json!(SHARDS[0])),
        "tensor \"model.norm.weight\" is in file model-00003-of-00003.safetensors, \
         the index says model-00001-of-00003.safetensors",
    );
    let doubled = |folder: &mut ModelFolder| folder.put(SHARDS[1], folder.files[SHARDS[0]].clone());
    assert_refused(SHARDED, doubled, "in file model-00002-of-00003.safetensors: tensor \"");
    assert_refused(SHARDED, doubled, "is there twice");
    // Of a model with other widths.
    let foreign = |folder: &mut ModelFolder| {
        let mut shard = folder.shard(SHARDS[2]);
        shard.header[NORM]["shape"] = json!([8, 8]);
        folder.put(SHARDS[2], shard.to_bytes());
    };
    assert_refused(
        SHARDED,
        foreign,
        "tensor \"model.norm.weight\" is 8 x 8 (rows x columns), expected 1 x 64",
    );
    assert_refused(
        SHARDED,
        |folder| folder.change_json(INDEX, |index| index["weight_map"]["model.other"] = json!(SHARDS[0])),
        "there is no tensor \"model.other\"",
    );
}

#[test]
fn shards_that_are_cut_short_say_so() {
    let lengths = |bytes: &[u8]| {
        let header = header_len(bytes);
        [
            0,
            1,
            7,
            8,
            9,
            8 + header / 2,
            8 + header - 1,
            8 + header,
            bytes.len() - 1,
        ]
    };
    let len = ModelFolder::of(SHARDED).files[SHARDS[1]].len();
    for cut in lengths(&ModelFolder::of(SHARDED).files[SHARDS[1]]) {
        assert!(cut < len);
        let mut folder = ModelFolder::of(SHARDED);
        folder.files.get_mut(SHARDS[1]).unwrap().truncate(cut);
        let refusal = folder.refusal();
        let start = "in file model-00002-of-00003.safetensors: the header of this safetensors file: ";
        assert!(refusal.starts_with(start), "{cut}: {refusal}");
        assert!(refusal.ends_with("(is the download complete?)"), "{cut}: {refusal}");
    }
}

#[test]
fn absurd_header_lengths_allocate_nothing() {
    let before = peak_memory_bytes();
    for len in [
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        1 << 40,
        100_000_001,
        100_000_000,
        1 << 20,
        1,
        0,
    ] {
        let lie =
            |folder: &mut ModelFolder| folder.files.get_mut(WEIGHTS).unwrap()[..8].copy_from_slice(&len.to_le_bytes());
        assert_refused(
            WHOLE,
            lie,
            "in file model.safetensors: the header of this safetensors file: ",
        );
    }
    for end in [u64::MAX, 1 << 63, 1 << 40] {
        let lie = |folder: &mut ModelFolder| {
            folder.change_header(WEIGHTS, |header| header[NORM]["data_offsets"] = json!([0, end]));
        };
        assert_refused(
            WHOLE,
            lie,
            "in file model.safetensors: the header of this safetensors file: ",
        );
        let lie = |folder: &mut ModelFolder| {
            folder.change_header(WEIGHTS, |header| header[NORM]["shape"] = json!([end, end]));
        };
        assert_refused(
            WHOLE,
            lie,
            "in file model.safetensors: the header of this safetensors file: ",
        );
        let lie = |folder: &mut ModelFolder| folder.configure("num_hidden_layers", json!(u32::MAX));
        assert_refused(
            WHOLE,
            lie,
            "tensor \"model.layers.2.input_layernorm.weight\" is missing",
        );
    }
    let grown = peak_memory_bytes() - before;
    assert!(grown < 4 << 30, "{grown} bytes of address space");
}

/// Address space, so that memory that was reserved and never touched counts too.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn tensors_that_cannot_be_are_refused_by_name() {
    let dtype = |dtype: &'static str, bytes_each: usize| {
        move |folder: &mut ModelFolder| {
            folder.change_header(WEIGHTS, |header| {
                header[NORM]["dtype"] = json!(dtype);
                // As many bytes as before.
                header[NORM]["shape"] = json!([256 / bytes_each]);
            });
        }
    };
    for (name, bytes_each) in [("I8", 1), ("F64", 8), ("F8_E4M3", 1), ("BOOL", 1), ("I64", 8)] {
        let message = format!(
            "in file model.safetensors: tensor \"model.norm.weight\" has dtype {name}: {name} is not supported yet; \
             supported: F32, F16, BF16"
        );
        assert_refused(WHOLE, dtype(name, bytes_each), &message);
    }
    assert_refused(WHOLE, dtype("F33", 4), "the header of this safetensors file: ");
    let shape = |shape: Value| {
        move |folder: &mut ModelFolder| folder.change_header(WEIGHTS, |header| header[NORM]["shape"] = shape)
    };
    assert_refused(
        WHOLE,
        shape(json!([2, 32])),
        "tensor \"model.norm.weight\" is 2 x 32 (rows x columns), expected 1 x 64",
    );
    assert_refused(
        WHOLE,
        shape(json!([2, 4, 8])),
        "\"model.norm.weight\" has dimensions [8, 4, 2]; supported: one or two",
    );
    assert_refused(WHOLE, shape(json!([])), "the header of this safetensors file: ");
    let empty = |folder: &mut ModelFolder| {
        let bytes = folder.shard(WEIGHTS).weights.len();
        let more = json!({ "dtype": "F32", "shape": [0], "data_offsets": [bytes, bytes] });
        folder.change_header(WEIGHTS, |header| {
            header.insert("model.layers.0.none".to_owned(), more);
        });
    };
    assert_refused(WHOLE, empty, "\"model.layers.0.none\" has dimensions [0]");
}

#[test]
fn tensors_that_are_missing_or_unknown_are_named() {
    let renamed = |from: &'static str, to: &'static str| {
        move |folder: &mut ModelFolder| {
            folder.change_header(WEIGHTS, |header| {
                let tensor = header.remove(from).unwrap();
                header.insert(to.to_owned(), tensor);
            });
        }
    };
    let cases = [
        (
            "model.embed_tokens.weight",
            "there is no tensor \"model.embed_tokens.weight\"",
        ),
        (NORM, "tensor \"model.norm.weight\" is missing; expected 1 x 64"),
        (
            "model.layers.1.self_attn.k_proj.weight",
            "tensor \"model.layers.1.self_attn.k_proj.weight\" is missing; expected 64 x 64",
        ),
    ];
    for (tensor, message) in cases {
        assert_refused(WHOLE, renamed(tensor, "x"), message);
    }
    let untied = |folder: &mut ModelFolder| folder.configure("tie_word_embeddings", json!(false));
    assert_refused(WHOLE, untied, "tensor \"lm_head.weight\" is missing; expected 264 x 64");
    let more = |name: &'static str| {
        move |folder: &mut ModelFolder| {
            let mut shard = folder.shard(WEIGHTS);
            let start = shard.weights.len();
            shard.weights.extend([0; 256]);
            let tensor = json!({ "dtype": "F32", "shape": [64], "data_offsets": [start, start + 256] });
            shard.header.insert(name.to_owned(), tensor);
            folder.put(WEIGHTS, shard.to_bytes());
        }
    };
    assert_refused(
        WHOLE,
        more("model.layers.0.extra.weight"),
        "tensor \"model.layers.0.extra.weight\" is not part of the llama architecture as it is computed here",
    );
    assert_refused(
        WHOLE,
        more("model.layers.2.input_layernorm.weight"),
        "tensor \"model.layers.2.input_layernorm.weight\" is not part of the llama architecture",
    );
    assert_refused(
        WHOLE,
        more("model.layers.0.input_layernorm.bias"),
        ": this bias is not supported",
    );
    assert_refused(
        WHOLE,
        more("model.layers.0.mlp.experts.0.gate_proj.weight"),
        ": experts are not supported yet",
    );
}

/// Which file of the sharded model is damaged.
#[derive(Clone, Copy, Debug)]
enum Damaged {
    Config,
    Index,
    ShardHeader,
}

impl Damaged {
    fn name(self) -> &'static str {
        match self {
            Self::Config => CONFIG,
            Self::Index => INDEX,
            Self::ShardHeader => SHARDS[2],
        }
    }

    /// The bytes that are not weights.
    fn len(self, bytes: &[u8]) -> usize {
        match self {
            Self::Config | Self::Index => bytes.len(),
            Self::ShardHeader => 8 + header_len(bytes),
        }
    }
}

fn any_damaged() -> impl Strategy<Value = Damaged> {
    prop_oneof![Just(Damaged::Config), Just(Damaged::Index), Just(Damaged::ShardHeader)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_flipped_byte_makes_it_panic(
        damaged in any_damaged(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut folder = ModelFolder::of(SHARDED);
        let bytes = folder.files.get_mut(damaged.name()).unwrap();
        let len = damaged.len(bytes);
        for (at, byte) in flips {
            bytes[at.index(len)] = byte;
        }
        let _ = use_all(&folder.write().path);
    }

    #[test]
    fn whatever_is_cut_short_is_refused(damaged in any_damaged(), at in any::<prop::sample::Index>()) {
        let mut folder = ModelFolder::of(SHARDED);
        let bytes = folder.files.get_mut(damaged.name()).unwrap();
        let len = damaged.len(bytes);
        bytes.truncate(at.index(len));
        let refusal = folder.refusal();
        prop_assert!(refusal.contains(damaged.name()), "{refusal}");
    }
}
