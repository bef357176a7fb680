//! What determines the engine: the same flags for the coordinator, its workers and the plan.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvasir_kv::KvDtype;
use kvasir_model::WeightMode;

use crate::{arithmetic_options::ArithmeticOptions, model_source};

#[derive(Args, Clone, Debug)]
pub struct EngineOptions {
    /// The model: a GGUF file, a folder with config.json and safetensors files, or a repository of the Hugging Face hub
    /// (ORGANIZATION/NAME, or ORGANIZATION/NAME/FILE.gguf)
    #[arg(long, env = "KVASIR_MODEL", value_name = "PATH|REPOSITORY")]
    pub model: PathBuf,
    /// Branch, tag or commit of the repository
    #[arg(long, default_value = "main", value_name = "REVISION")]
    pub revision: String,
    /// Element type of the KV cache: f16, f32 or q8_0
    #[arg(long, default_value_t = KvDtype::F16, value_name = "TYPE")]
    pub kv_dtype: KvDtype,
    /// Weights in memory: `file` keeps the file's types, f32 dequantizes, q8_0 quantizes at load
    #[arg(long, default_value_t = WeightMode::File, value_name = "TYPE")]
    pub weights_dtype: WeightMode,
    #[command(flatten)]
    pub arithmetic: ArithmeticOptions,
    /// Token positions per KV block: 16, 32, 64, 128 or 256
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    pub block_size: u32,
}

impl EngineOptions {
    /// Makes `model` a path on this machine, fetching it if need be. Blocks.
    pub fn locate_model(&mut self) -> Result<()> {
        self.model = model_source::locate(&self.model, &self.revision)?;
        Ok(())
    }

    /// The flags again, for a child process.
    pub fn to_args(&self) -> Result<Vec<String>> {
        let model = self.model.to_string_lossy().into_owned();
        let mut flags = self.arithmetic.resolve()?.to_args();
        for (flag, value) in [
            ("--model", model),
            ("--kv-dtype", self.kv_dtype.to_string()),
            ("--weights-dtype", self.weights_dtype.to_string()),
            ("--block-size", self.block_size.to_string()),
        ] {
            flags.extend([flag.to_owned(), value]);
        }
        Ok(flags)
    }
}

/// How the ranks reduce.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransportChoice {
    /// Shared memory on one host, TCP between hosts
    Auto,
    /// TCP always
    Tcp,
}
