//! Models by name: each is its published config.json, as far as its sizes go.

use anyhow::{Context, Result, bail};

use super::{model_sizes::ModelSizes, parameter_type::ParameterType, published_config::PublishedConfig};

macro_rules! preset {
    ($name:literal) => {
        ($name, include_str!(concat!("configs/", $name, ".json")))
    };
}

const PRESETS: [(&str, &str); 12] = [
    preset!("llama-2-7b"),
    preset!("llama-3.1-8b"),
    preset!("llama-3.1-70b"),
    preset!("llama-3.1-405b"),
    preset!("qwen2.5-7b"),
    preset!("qwen2.5-72b"),
    preset!("qwen3-8b"),
    preset!("qwen3-32b"),
    preset!("mistral-7b-v0.3"),
    preset!("deepseek-v2"),
    preset!("deepseek-v3"),
    preset!("t6-xl"),
];

/// What stands for all of them.
pub const ALL: &str = "all";

/// In the order of the names; all of them for `all`. Errors at a name that none has.
pub fn models(names: &[String], weights: Option<ParameterType>) -> Result<Vec<ModelSizes>> {
    let mut models = Vec::new();
    for name in names {
        let wanted = |preset: &str| name.eq_ignore_ascii_case(ALL) || name.eq_ignore_ascii_case(preset);
        let found: Vec<_> = PRESETS.into_iter().filter(|(preset, _)| wanted(preset)).collect();
        if found.is_empty() {
            let known = PRESETS.map(|(preset, _)| preset).join(", ");
            bail!("unknown preset `{name}`; known: {ALL}, {known}; or give --config FILE");
        }
        for (preset, text) in found {
            let sizes = PublishedConfig::parse(text).and_then(|config| config.sizes(preset, weights));
            models.push(sizes.context(preset)?);
        }
    }
    Ok(models)
}

#[cfg(test)]
mod tests {
    use kvasir_kv::KvDtype;

    use super::*;
    use crate::lab::memory::kv_cost::KvCost;

    /// What is published of each model elsewhere than in its config.json, and written here by hand.
    struct Published {
        preset: &'static str,
        /// Exactly: metadata of the safetensors files on the hub, or what a library says of the loaded model.
        parameters: u64,
        /// Bytes of a token in 16 bits: from papers, by each one's formula.
        token_bytes: u64,
        context_len: u32,
        weights: &'static str,
    }

    /// Layers, KV heads and dimensions of a head are in the tables of the models' papers or cards: Llama 2 (arXiv:2307.09288,
    /// 32 layers of 32 heads), Llama 3 (arXiv:2407.21783, table 3: 32, 80 and 126 layers of 8 KV heads), Qwen2.5
    /// (arXiv:2412.15115, table 1: 28 layers of 4, 80 of 8), Qwen3 (arXiv:2505.09388, table 1: 36 and 64 layers of 8),
    /// Mistral 7B (arXiv:2310.06825, table 1: 32 layers of 8), DeepSeek-V2 (arXiv:2405.04434, section 3.1.2: 60 layers, d_c =
    /// 512, d_h^R = 64), DeepSeek-V3 (arXiv:2412.19437, section 4.2: 61 layers of the same), T6 (arXiv:2501.06425).
    const PUBLISHED: [Published; 12] = [
        Published {
            preset: "llama-2-7b",
            parameters: 6_738_415_616,
            token_bytes: 2 * 32 * 32 * 128 * 2,
            context_len: 4096,
            weights: "f16",
        },
        Published {
            preset: "llama-3.1-8b",
            parameters: 8_030_261_248,
            token_bytes: 2 * 32 * 8 * 128 * 2,
            context_len: 131_072,
            weights: "bf16",
        },
        Published {
            preset: "llama-3.1-70b",
            parameters: 70_553_706_496,
            token_bytes: 2 * 80 * 8 * 128 * 2,
            context_len: 131_072,
            weights: "bf16",
        },
        Published {
            preset: "llama-3.1-405b",
            // The safetensors index says total_size 811,706,777,600 bytes: two for each.
            parameters: 405_853_388_800,
            token_bytes: 2 * 126 * 8 * 128 * 2,
            context_len: 131_072,
            weights: "bf16",
        },
        Published {
            preset: "qwen2.5-7b",
            // total_size 15,231,233,024.
            parameters: 7_615_616_512,
            token_bytes: 2 * 28 * 4 * 128 * 2,
            context_len: 32_768,
            weights: "bf16",
        },
        Published {
            preset: "qwen2.5-72b",
            parameters: 72_706_203_648,
            token_bytes: 2 * 80 * 8 * 128 * 2,
            context_len: 32_768,
            weights: "bf16",
        },
        Published {
            preset: "qwen3-8b",
            // total_size 16,381,470,720.
            parameters: 8_190_735_360,
            token_bytes: 2 * 36 * 8 * 128 * 2,
            context_len: 40_960,
            weights: "bf16",
        },
        Published {
            preset: "qwen3-32b",
            // total_size 65,524,246,528.
            parameters: 32_762_123_264,
            token_bytes: 2 * 64 * 8 * 128 * 2,
            context_len: 40_960,
            weights: "bf16",
        },
        Published {
            preset: "mistral-7b-v0.3",
            // total_size 14,496,047,104.
            parameters: 7_248_023_552,
            token_bytes: 2 * 32 * 8 * 128 * 2,
            context_len: 32_768,
            weights: "bf16",
        },
        Published {
            preset: "deepseek-v2",
            // The paper says 236B.
            parameters: 235_741_434_880,
            token_bytes: 60 * (512 + 64) * 2,
            context_len: 163_840,
            weights: "bf16",
        },
        Published {
            preset: "deepseek-v3",
            // The paper says 671B, without the module that predicts a second token.
            parameters: 671_026_419_200,
            token_bytes: 61 * (512 + 64) * 2,
            context_len: 163_840,
            weights: "fp8",
        },
        Published {
            preset: "t6-xl",
            // The paper says 1.5B; this is its authors' code, counted by hand: embedding, then in each layer the factors of
            // queries (rank 6), of keys and values (rank 2 each), the output and the gated FFN of floor(8/3 * 1600).
            parameters: 50_304 * 1600 + 48 * ((6 + 2 + 2) * 1600 * (78 + 64) + 78 * 64 * 1600 + 3 * 1600 * 4266),
            token_bytes: 48 * (2 + 2) * (78 + 64) * 2,
            context_len: 1024,
            weights: "bf16",
        },
    ];

    #[test]
    fn every_preset_is_what_is_published_of_its_model() {
        assert_eq!(PUBLISHED.len(), PRESETS.len());
        for published in PUBLISHED {
            let models = models(&[published.preset.to_owned()], None).unwrap();
            let [model] = models.as_slice() else {
                panic!("{}", published.preset)
            };
            assert_eq!(model.parameters, published.parameters, "{}", published.preset);
            assert_eq!(model.context_len, published.context_len, "{}", published.preset);
            assert_eq!(model.weights.stored_as, published.weights, "{}", published.preset);
            let cost = KvCost::new(model.attention, model.num_layers, 64, KvDtype::F16).unwrap();
            assert_eq!(cost.token_bytes(), published.token_bytes, "{}", published.preset);
            assert!(model.source.contains('/'), "{}: no repository", published.preset);
            assert!(model.notes.is_empty(), "{}: {:?}", published.preset, model.notes);
        }
    }

    #[test]
    fn a_name_that_no_preset_has_is_refused_with_those_there_are() {
        let error = models(&["llama-4".to_owned()], None).unwrap_err().to_string();
        assert!(error.contains("`llama-4`") && error.contains("qwen3-32b"), "{error}");
        assert_eq!(models(&["ALL".to_owned()], None).unwrap().len(), PRESETS.len());
    }
}
