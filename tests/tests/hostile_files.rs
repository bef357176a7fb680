//! Model files that are cut short, damaged or made to harm: each is an error that says what is wrong.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use kvasir_model::{ChatMessage, Checkpoint, WeightType};
use kvasir_tests::{
    gguf_writer::{GgufTensor, GgufValue, GgufWriter},
    tiny_model::TinyModel,
};
use proptest::prelude::*;

/// One layer and a small vocabulary, so that a header byte is hit often.
fn small_model() -> GgufWriter {
    TinyModel {
        num_layers: 1,
        vocab: 264,
        ..TinyModel::with_heads(2, 1, 32)
    }
    .gguf()
}

static SMALL_FILE: LazyLock<Vec<u8>> = LazyLock::new(|| small_model().to_bytes());
/// Where the weights begin.
static HEADER_LEN: LazyLock<usize> = LazyLock::new(|| {
    let padded = |tensor: &GgufTensor| tensor.bytes.len().next_multiple_of(32);
    SMALL_FILE.len() - small_model().tensors.iter().map(padded).sum::<usize>()
});

struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl File {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.gguf");
        fs::write(&path, bytes).unwrap();
        Self { path, _folder: folder }
    }
}

/// Opens a file and uses everything in it; a panic is what the tests look for.
fn use_all(bytes: &[u8]) -> Result<(), kvasir_model::CheckpointError> {
    let file = File::new(bytes);
    let checkpoint = Checkpoint::open(&file.path)?;
    for name in checkpoint.tensors().names() {
        let tensor = checkpoint.tensor(name)?;
        let mut row = vec![0.0; tensor.cols];
        tensor.dequantize_row(tensor.rows - 1, &mut row);
    }
    let metadata = checkpoint.metadata().unwrap();
    for key in metadata.keys() {
        let _ = (metadata.get(key), metadata.u32(key), metadata.str(key));
        let _ = metadata.strings(key).map(|strings| strings.map(Iterator::count));
        let _ = metadata.integers(key).map(|integers| integers.map(Iterator::count));
    }
    if let Ok(template) = checkpoint.chat_template() {
        let _ = template.render(&[ChatMessage::new("user", "hi")], true);
    }
    if let Ok(tokenizer) = checkpoint.tokenizer() {
        let tokens = tokenizer.encode("the <|im_start|> and\u{7} 12  é🦀", true).unwrap();
        tokenizer.decode(&tokens, false);
    }
    Ok(())
}

fn refusal(model: &GgufWriter) -> String {
    use_all(&model.to_bytes()).unwrap_err().to_string()
}

#[track_caller]
fn assert_refused(change: impl FnOnce(&mut GgufWriter), message: &str) {
    let mut model = small_model();
    change(&mut model);
    let refusal = refusal(&model);
    assert!(refusal.contains(message), "{refusal}");
}

/// Key, value, message.
type BadValue = (&'static str, GgufValue, &'static str);

#[test]
fn the_small_model_itself_is_sound() {
    use_all(&SMALL_FILE).unwrap();
}

#[test]
fn things_that_are_not_model_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let open = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(open(folder.path()).starts_with("the folder has no config.json: a model is a GGUF file, or a folder with"));
    assert!(open(&pipe).ends_with("not a regular file"));
    assert!(open(&folder.path().join("missing")).contains("cannot open it: No such file"));
    let refusal = |bytes: &[u8]| use_all(bytes).unwrap_err().to_string();
    assert_eq!(
        refusal(b""),
        "not a GGUF file: it starts with \"\", a GGUF file with \"GGUF\""
    );
    assert_eq!(
        refusal(b"\x7fELF\x02"),
        "not a GGUF file: it starts with \"\\\\x7fELF\", a GGUF file with \"GGUF\""
    );
    assert!(refusal(b"GGUF\x03\0\0").contains("the file ends inside the version at offset 4: 4 bytes needed, 3 left"));
}

#[test]
fn versions_that_are_not_supported_are_named() {
    assert_refused(
        |model| model.version = 1,
        "GGUF version 1 is not supported; supported: 2, 3",
    );
    assert_refused(|model| model.version = 4, "GGUF version 4 is not supported");
    assert_refused(|model| model.version = 3u32.swap_bytes(), "the file is big-endian");
}

#[test]
fn absurd_counts_allocate_nothing() {
    let array = |item: u32, len: u64| [&item.to_le_bytes()[..], &len.to_le_bytes()].concat();
    let raw = |type_id: u32, bytes: Vec<u8>| GgufValue::Raw { type_id, bytes };
    let before = peak_memory_bytes();
    for absurd in [u64::MAX, u64::MAX / 8 + 1, 1 << 40, 1 << 32, 70_000] {
        assert_refused(
            |model| model.num_tensors = Some(absurd),
            "the tensor count at offset 8 is",
        );
        assert_refused(
            |model| model.num_metadata = Some(absurd),
            "the metadata count at offset 16 is",
        );
        // The file is about 60 kB, and an array of single bytes could be as long.
        let absurd = absurd.max(1 << 20);
        for item in [0, 4, 7, 8, 9, 12] {
            let array = raw(9, array(item, absurd));
            assert_refused(
                |model| model.metadata.insert(0, ("x".to_owned(), array)),
                "the array of metadata \"x\"",
            );
        }
        let string = raw(8, absurd.to_le_bytes().to_vec());
        assert_refused(
            |model| model.metadata.insert(0, ("x".to_owned(), string)),
            "the file ends inside metadata \"x\"",
        );
        assert_refused(
            |model| model.tensor_mut("token_embd.weight").dimensions[1] = absurd,
            "token_embd.weight",
        );
        assert_refused(
            |model| model.tensor_mut("token_embd.weight").dimensions = vec![absurd / 32 * 32; 2],
            "token_embd.weight",
        );
        assert_refused(
            |model| model.tensor_mut("token_embd.weight").offset = Some(absurd / 32 * 32),
            "token_embd.weight",
        );
    }
    assert_refused(
        |model| model.set("llama.block_count", GgufValue::U32(u32::MAX)),
        "tensor \"blk.1.attn_norm.weight\" is missing",
    );
    let grown = peak_memory_bytes() - before;
    assert!(
        grown < 4 << 30,
        "{grown} bytes of address space for a file of {}",
        SMALL_FILE.len()
    );
}

/// Address space, so that memory that was reserved and never touched counts too.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn metadata_that_cannot_be_is_refused_by_key() {
    let number = GgufValue::U32;
    let float = GgufValue::F32;
    let string = |text: &str| GgufValue::Str(text.to_owned());
    let cases: Vec<BadValue> = vec![
        (
            "general.architecture",
            string("gpt2"),
            "architecture \"gpt2\" is not supported yet; supported: llama, qwen2, qwen3",
        ),
        (
            "general.architecture",
            number(1),
            "\"general.architecture\" is another integer, expected a string",
        ),
        (
            "general.alignment",
            number(0),
            "\"general.alignment\" is 0, expected a power of two, 8 or more",
        ),
        (
            "general.alignment",
            number(48),
            "\"general.alignment\" is 48, expected a power of two",
        ),
        (
            "general.alignment",
            number(1 << 31),
            "bytes of data (is the download complete?)",
        ),
        (
            "llama.block_count",
            number(0),
            "\"llama.block_count\" is 0, expected at least 1",
        ),
        (
            "llama.block_count",
            GgufValue::I32(-1),
            "is another integer, expected an integer from 0 to 2^32 - 1",
        ),
        (
            "llama.block_count",
            GgufValue::U64(1 << 33),
            "expected an integer from 0 to 2^32 - 1",
        ),
        (
            "llama.block_count",
            float(1.0),
            "\"llama.block_count\" is a float, expected an integer",
        ),
        (
            "llama.context_length",
            number(u32::MAX),
            "\"llama.context_length\" is 4294967295, expected at most 16777216",
        ),
        (
            "llama.embedding_length",
            number(100),
            "is 100, expected a multiple of 32",
        ),
        (
            "llama.feed_forward_length",
            number(48),
            "is 48, expected a multiple of 32",
        ),
        (
            "llama.attention.head_count",
            number(0),
            "\"llama.attention.head_count\" is 0, expected at least 1",
        ),
        (
            "llama.attention.head_count",
            number(3),
            "tensor \"blk.0.attn_q.weight\" is 64 x 96 (rows x columns), expected 96 x 96",
        ),
        (
            "llama.attention.head_count",
            number(1 << 30),
            "expected heads of 32 columns in less than 2^32 columns",
        ),
        (
            "llama.attention.head_count",
            GgufValue::I32s(vec![2]),
            "is another array, expected an integer",
        ),
        (
            "llama.attention.head_count_kv",
            number(0),
            "a head count is zero: 2 query heads, 0 KV heads",
        ),
        (
            "llama.attention.head_count_kv",
            number(3),
            "2 query heads do not divide among 3 KV heads",
        ),
        (
            "llama.attention.key_length",
            number(48),
            "expected the length of a key, 48",
        ),
        (
            "llama.attention.value_length",
            number(16),
            "\"llama.attention.value_length\" is 16, expected the length of a key, 32",
        ),
        (
            "llama.rope.dimension_count",
            number(34),
            "expected a multiple of 16 up to the head's dimension 32",
        ),
        (
            "llama.rope.dimension_count",
            number(8),
            "is 8, expected a multiple of 16",
        ),
        (
            "llama.rope.freq_base",
            float(f32::NAN),
            "\"llama.rope.freq_base\" is NaN, expected a finite number above 0",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            float(-1.0),
            "is -1, expected a finite number above 0",
        ),
        (
            "llama.rope.scaling.type",
            string("yarn"),
            "is \"yarn\": this rope scaling is not supported yet; supported: none, linear",
        ),
        (
            "llama.rope.scaling.factor",
            float(-8.0),
            "is -8, expected a finite number above 0",
        ),
        (
            "llama.expert_count",
            number(8),
            "\"llama.expert_count\" is 8: a mixture of experts",
        ),
        (
            "llama.attention.scale",
            float(0.5),
            "a scale of its own is not supported yet",
        ),
        (
            "split.count",
            number(2),
            "a split file is not supported yet; supported: one whole file",
        ),
        (
            "llama.vocab_size",
            number(265),
            "\"llama.vocab_size\" is 265, expected the 264 rows of the token embedding",
        ),
        (
            "tokenizer.ggml.tokens",
            GgufValue::Strings(vec![]),
            "is 0, expected the 264 rows of the token embedding",
        ),
        (
            "tokenizer.ggml.eos_token_id",
            number(264),
            "is 264, expected a token below the vocabulary's size 264",
        ),
        (
            "tokenizer.ggml.add_bos_token",
            GgufValue::Raw {
                type_id: 7,
                bytes: vec![2],
            },
            "is 2, expected 0 or 1 for a bool",
        ),
        (
            "x",
            GgufValue::Raw {
                type_id: 13,
                bytes: vec![],
            },
            "\"x\" at offset",
        ),
        (
            "x",
            GgufValue::Raw {
                type_id: 13,
                bytes: vec![],
            },
            "has the unknown value type 13; known: 0 to 12",
        ),
    ];
    for (key, value, message) in cases {
        assert_refused(|model| model.set(key, value), message);
    }
}

#[test]
fn head_dimensions_that_the_arithmetic_cannot_cut_are_refused() {
    let lengths = |model: &mut GgufWriter, head_dim| {
        model.set("llama.attention.key_length", GgufValue::U32(head_dim));
        model.set("llama.attention.value_length", GgufValue::U32(head_dim));
    };
    assert_refused(
        |model| lengths(model, 24),
        "heads of the model: head_dim 24 is not a multiple of 16",
    );
    let single = |model: &mut GgufWriter| {
        lengths(model, 16);
        model.set("llama.attention.head_count_kv", GgufValue::U32(2));
    };
    assert_refused(
        single,
        "16 output-projection columns of one KV head's group are not a multiple of 32",
    );
    let odd = |model: &mut GgufWriter| {
        model.remove("llama.attention.key_length");
        model.set("llama.attention.head_count", GgufValue::U32(5));
    };
    assert_refused(
        odd,
        "is 5, expected a divisor of the hidden size 96, or llama.attention.key_length",
    );
}

#[test]
fn an_unknown_token_outside_the_vocabulary_is_refused() {
    let mut model = small_model();
    model.set("tokenizer.ggml.model", GgufValue::Str("llama".to_owned()));
    model.set("tokenizer.ggml.scores", GgufValue::F32s(vec![0.0; 264]));
    let tokenizer_with = |token| {
        let mut model = model.clone();
        model.set("tokenizer.ggml.unknown_token_id", GgufValue::U32(token));
        Checkpoint::open(&File::new(&model.to_bytes()).path)
            .unwrap()
            .tokenizer()
    };
    assert!(tokenizer_with(263).is_ok());
    assert_eq!(
        tokenizer_with(264).unwrap_err().to_string(),
        "the unknown token is token 264, expected one below the vocabulary's size 264"
    );
}

#[test]
fn missing_metadata_is_named() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        assert_refused(|model| model.remove(key), &format!("metadata \"{key}\" is missing"));
    }
}

#[test]
fn duplicates_are_refused_by_name() {
    let key = |model: &mut GgufWriter| model.metadata.push(("general.name".to_owned(), GgufValue::U32(1)));
    assert_refused(key, "metadata \"general.name\" is there twice");
    let tensor = |model: &mut GgufWriter| {
        let tensor = model.tensor_mut("output_norm.weight").clone();
        model.tensors.push(tensor);
    };
    assert_refused(tensor, "tensor \"output_norm.weight\" is there twice");
}

#[test]
fn tensors_that_cannot_be_are_refused_by_name() {
    let norm = "output_norm.weight";
    let dimensions = |dimensions: &'static [u64]| {
        move |model: &mut GgufWriter| model.tensor_mut("output_norm.weight").dimensions = dimensions.to_vec()
    };
    assert_refused(
        dimensions(&[]),
        "\"output_norm.weight\" has dimensions []; supported: one or two, none of them zero",
    );
    assert_refused(dimensions(&[0]), "has dimensions [0]");
    assert_refused(dimensions(&[96, 0]), "has dimensions [96, 0]");
    assert_refused(dimensions(&[48, 1, 2]), "has dimensions [48, 1, 2]");
    assert_refused(
        dimensions(&[1; 5]),
        "the dimensions of tensor \"output_norm.weight\" at offset",
    );
    assert_refused(
        dimensions(&[95]),
        "\"output_norm.weight\" is 1 x 95 (rows x columns), expected 1 x 96",
    );
    assert_refused(
        |model| model.tensor_mut(norm).offset = Some(8),
        "which is not a multiple of the alignment 32",
    );
    assert_refused(
        |model| model.tensor_mut(norm).offset = Some(0),
        "tensors \"token_embd.weight\" and \"output_norm.weight\" overlap",
    );
    assert_refused(
        |model| model.tensor_mut(norm).offset = Some(u64::MAX - 31),
        "needs 384 bytes at data offset 18446744073709551584",
    );
    let quantized = |model: &mut GgufWriter| model.tensor_mut("token_embd.weight").dimensions = vec![97, 264];
    assert_refused(
        quantized,
        "\"token_embd.weight\" has 97 columns; Q8_0 stores 32 columns together",
    );
    let long = |model: &mut GgufWriter| model.tensor_mut("output_norm.weight").name = "x".repeat(65);
    assert_refused(long, "is 65 bytes long, at most 64 are allowed");
}

#[test]
fn weight_types_that_are_not_supported_are_named() {
    let with_type = |type_id| move |model: &mut GgufWriter| model.tensor_mut("blk.0.ffn_up.weight").type_id = type_id;
    assert_refused(
        with_type(10),
        "tensor \"blk.0.ffn_up.weight\" has weight type Q2_K: Q2_K is not supported yet; supported: F32, F16, BF16, Q8_0",
    );
    assert_refused(
        with_type(12),
        "tensor \"blk.0.ffn_up.weight\" has 96 columns; Q4_K stores 256 columns together",
    );
    assert_refused(with_type(4), "has weight type type number 4");
    assert_refused(with_type(u32::MAX), "type number 4294967295");
}

#[test]
fn tensors_that_the_arithmetic_would_ignore_are_refused() {
    let add =
        |name: &'static str| move |model: &mut GgufWriter| model.add_tensor(name, WeightType::F32, &[32], vec![0; 128]);
    assert_refused(
        add("rope_freqs.weight"),
        "\"rope_freqs.weight\" is 1 x 32 (rows x columns), expected 1 x 16",
    );
    assert_refused(
        |model| model.add_tensor("rope_freqs.weight", WeightType::F32, &[16], vec![0; 64]),
        "\"rope_freqs.weight\" is 0, expected finite numbers above 0",
    );
    assert_refused(
        add("blk.0.attn_q.bias"),
        "\"blk.0.attn_q.bias\" is 1 x 32 (rows x columns), expected 1 x 64",
    );
    assert_refused(
        add("blk.0.attn_q_norm.weight"),
        "\"blk.0.attn_q_norm.weight\" is not part of the llama architecture as it is computed here",
    );
    assert_refused(add("blk.0.ffn_gate_exps.weight"), "experts are not supported yet");
    assert_refused(
        add("blk.1.attn_norm.weight"),
        "\"blk.1.attn_norm.weight\" is not part of",
    );
    for tensor in small_model().tensors {
        let message = format!("no tensor \"{0}\"|tensor \"{0}\" is missing; expected", tensor.name);
        let (first, second) = message.split_once('|').unwrap();
        let mut model = small_model();
        model.tensors.retain(|other| other.name != tensor.name);
        let refusal = refusal(&model);
        assert!(refusal.contains(first) || refusal.contains(second), "{refusal}");
    }
}

#[test]
fn arrays_nested_without_end_are_refused() {
    let array = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let nested = GgufValue::Raw {
        type_id: 9,
        bytes: array.repeat(100_000),
    };
    assert_refused(|model| model.set("x", nested), "nests arrays deeper than 4");
}

#[test]
fn text_that_is_not_utf_8_is_refused_where_it_matters() {
    let bytes = [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat();
    let name = GgufValue::Raw {
        type_id: 8,
        bytes: bytes.clone(),
    };
    assert_refused(
        |model| model.set("general.architecture", name),
        "expected a string of valid UTF-8",
    );
    let mut model = small_model();
    model.set("general.author", GgufValue::Raw { type_id: 8, bytes });
    use_all(&model.to_bytes()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_truncation_is_an_error(len in prop_oneof![0..*HEADER_LEN, 0..SMALL_FILE.len()]) {
        prop_assert!(use_all(&SMALL_FILE[..len]).is_err());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0..*HEADER_LEN, 1..=255u8), 1..4)) {
        let mut file = SMALL_FILE.clone();
        for (offset, bits) in flips {
            file[offset] ^= bits;
        }
        let _ = use_all(&file);
    }

    #[test]
    fn words_with_extreme_values_never_panic(
        offset in 0..*HEADER_LEN - 8,
        value in prop_oneof![
            Just(0), Just(1), Just(u64::MAX), Just(1 << 63), Just(i64::MAX as u64), Just(1 << 32), Just(u64::from(u32::MAX)),
            Just(1 << 31), Just(u64::MAX - 31), any::<u64>(), 0..1000u64,
        ],
        width in prop_oneof![Just(1), Just(4), Just(8)],
    ) {
        let mut file = SMALL_FILE.clone();
        file[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let _ = use_all(&file);
    }

    #[test]
    fn noise_after_a_valid_start_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000), keep in 0..400usize) {
        let mut file = SMALL_FILE[..keep].to_vec();
        file.extend(noise);
        prop_assert!(use_all(&file).is_err());
    }
}
