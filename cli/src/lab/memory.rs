//! `kvasir lab memory`: what KV caches take, by attention, dtype and ranks, and what fits on which GPU. Reads at most the
//! header of a checkpoint, and computes with none.

mod attention;
mod csv;
mod fit;
mod fit_tables;
mod gpus;
mod kv_cost;
mod kv_tables;
mod model_sizes;
mod parameter_type;
mod plot;
mod presets;
mod published_config;
mod report;
mod tables;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use kvasir_kv::{CellLayout, KvDtype};
use kvasir_model::Checkpoint;
use kvasir_runtime::ByteSize;

use self::{
    gpus::MemoryClass,
    model_sizes::{ModelSizes, Weights},
    parameter_type::ParameterType,
    published_config::PublishedConfig,
    report::Report,
};
use super::{ascending, results_folder::ResultsFolder};

/// Where no length is given; each model's trained length comes besides.
const CONTEXTS: [u32; 4] = [1024, 8192, 32_768, 131_072];
/// One of them, which most models were trained for.
const COMPARED_CONTEXT: u32 = 8192;
const DTYPES: [KvDtype; 3] = [KvDtype::F16, KvDtype::Q8_0, KvDtype::F32];
const CONTEXT_MAX: i64 = 1 << 24;
/// A longer file is no config.json.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Shows what KV caches take by attention, dtype and ranks, and what fits on which GPU
///
/// Without a model, all presets are compared. Grouped heads are what Kvasir allocates, in whole blocks; MLA (DeepSeek-V2,
/// arXiv:2405.04434) and TPA (arXiv:2501.06425) are their papers' formulas, and marked so.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir lab memory\n  kvasir lab memory --preset llama-3.1-70b --gpu h100 --ranks 2,3,4 \
                  --context 8192\n  kvasir lab memory --config config.json --memory 24GiB --weights q4_k --json"
)]
pub struct MemoryArgs {
    /// Models by name, separated by commas, or `all`
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    preset: Vec<String>,
    /// A checkpoint: a GGUF file, or a folder with config.json and safetensors files
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// A config.json as on the Hugging Face hub
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tokens of one request, prompt and answer, separated by commas [default: 1024,8192,32768,131072, and what the model
    /// was trained for]
    #[arg(long, value_delimiter = ',', value_name = "TOKENS,…", value_parser = value_parser!(u32).range(1..=CONTEXT_MAX))]
    context: Vec<u32>,
    /// Element types of the KV cache, separated by commas; what fits is told for the first [default: f16,q8_0,f32]
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…")]
    kv_dtype: Vec<KvDtype>,
    /// Numbers of ranks, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,8", value_name = "N,…", value_parser = value_parser!(u32).range(1..=1024))]
    ranks: Vec<u32>,
    /// GPUs by name, separated by commas [default: all that are known]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    gpu: Vec<String>,
    /// Memory of one GPU or other device
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// What all weights are stored as, such as bf16, fp8, q8_0 or q4_k [default: as published, or as in the file]
    #[arg(long, value_name = "TYPE")]
    weights: Option<ParameterType>,
    /// Share of each GPU's memory that is left aside
    #[arg(long, default_value_t = 10.0, value_name = "PERCENT")]
    reserve: f64,
    /// Token positions per KV block: 16, 32, 64, 128 or 256
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    block_size: u32,
    /// Write memory.json, memory.csv (the KV cache by model, variant, dtype, ranks and length), memory.md, and a plot as SVG
    /// and PNG there
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is asked, checked.
#[derive(Debug)]
pub struct Question {
    models: Vec<ModelSizes>,
    /// Ascending, at least one.
    contexts: Vec<u32>,
    contexts_given: bool,
    /// At least one.
    kv_dtypes: Vec<KvDtype>,
    /// Ascending.
    ranks: Vec<u32>,
    gpus: Vec<MemoryClass>,
    gpus_given: bool,
    reserve_percent: f64,
    block_size: u32,
}

pub fn run(args: &MemoryArgs) -> Result<()> {
    let question = args.question()?;
    let out = args.out.as_deref().map(ResultsFolder::make).transpose()?;
    let report = Report::new(&question)?;
    let tables = tables::text(&report, &question);
    if let Some(folder) = &out {
        folder.write("memory.json", &(serde_json::to_string_pretty(&report)? + "\n"))?;
        folder.write("memory.csv", &csv::text(&report))?;
        // Set with spaces: Markdown takes them as they are.
        folder.write("memory.md", &format!("```\n{}\n```\n", tables.trim()))?;
        plot::write(&report, folder.path())?;
    }
    let text = match args.json {
        true => serde_json::to_string(&report)? + "\n",
        false => tables,
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Tables are long: whoever reads the first lines with `head` has what was wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

impl MemoryArgs {
    fn question(&self) -> Result<Question> {
        let reserve = self.reserve;
        if !(0.0..100.0).contains(&reserve) {
            bail!("--reserve {reserve} must be a share from 0 up to, but not, 100 percent");
        }
        // Every attention has rows that f16 stores: only the block size can be wrong.
        CellLayout::new(1, 32, self.block_size, KvDtype::F16)?;
        let question = Question {
            models: self.models()?,
            contexts: ascending(if self.context.is_empty() {
                &CONTEXTS
            } else {
                &self.context
            }),
            contexts_given: !self.context.is_empty(),
            kv_dtypes: match self.kv_dtype.is_empty() {
                true => DTYPES.to_vec(),
                false => self.kv_dtype.clone(),
            },
            ranks: ascending(&self.ranks),
            gpus: self.gpus()?,
            gpus_given: self.memory.is_some() || !self.gpu.is_empty(),
            reserve_percent: reserve,
            block_size: self.block_size,
        };
        question.check_contexts()?;
        question.check_dtypes()?;
        Ok(question)
    }

    fn models(&self) -> Result<Vec<ModelSizes>> {
        let none = self.preset.is_empty() && self.model.is_none() && self.config.is_none();
        let names = match none {
            true => vec![presets::ALL.to_owned()],
            false => self.preset.clone(),
        };
        let mut models = presets::models(&names, self.weights)?;
        if let Some(path) = &self.config {
            let name = || path.display().to_string();
            let length = fs::metadata(path).with_context(name)?.len();
            if length > CONFIG_BYTES_MAX {
                bail!("{}: {} are no config.json", name(), ByteSize(length));
            }
            let text = fs::read_to_string(path).with_context(name)?;
            let sizes = PublishedConfig::parse(&text).and_then(|config| config.sizes(&name(), self.weights));
            models.push(sizes.with_context(name)?);
        }
        if let Some(path) = &self.model {
            let checkpoint = Checkpoint::open(path).with_context(|| path.display().to_string())?;
            let mut model = ModelSizes::of_checkpoint(&checkpoint)?;
            if let Some(given) = self.weights {
                model.weights = Weights::new(model.parameters, given);
            }
            models.push(model);
        }
        Ok(models)
    }

    /// A size that is given stands for all GPUs, unless some are named besides.
    fn gpus(&self) -> Result<Vec<MemoryClass>> {
        let mut gpus = match self.memory.is_some() && self.gpu.is_empty() {
            true => Vec::new(),
            false => MemoryClass::of_names(&self.gpu)?,
        };
        gpus.extend(self.memory.map(MemoryClass::given));
        Ok(gpus)
    }
}

impl Question {
    /// In which it is told what fits.
    fn first_dtype(&self) -> KvDtype {
        self.kv_dtypes[0]
    }

    /// Of those that are asked for, what the model was trained for; and all of that.
    fn contexts_of(&self, model: &ModelSizes) -> Vec<u32> {
        let trained = model.context_len;
        let within = self.contexts.iter().copied().filter(|&context| context <= trained);
        let more = (!self.contexts_given).then_some(trained);
        ascending(&within.chain(more).collect::<Vec<_>>())
    }

    /// Of the requests that are counted where models are compared: the longest that is asked for.
    fn compared_context(&self) -> u32 {
        let longest = self.contexts.last().filter(|_| self.contexts_given);
        longest.copied().unwrap_or(COMPARED_CONTEXT)
    }

    /// Errors at a length that no model was trained for.
    fn check_contexts(&self) -> Result<()> {
        let longest = self.models.iter().max_by_key(|model| model.context_len);
        let (Some(model), Some(context)) = (longest, self.contexts.last().filter(|_| self.contexts_given)) else {
            return Ok(());
        };
        if *context > model.context_len {
            let (name, trained) = (&model.name, model.context_len);
            bail!("--context {context} exceeds the {trained} tokens that {name} was trained for");
        }
        Ok(())
    }

    /// Errors if no model can be stored in a dtype that is asked for first.
    fn check_dtypes(&self) -> Result<()> {
        let first = self.first_dtype();
        let mut refusal = Ok(());
        for model in &self.models {
            match kv_cost::KvCost::new(model.attention, model.num_layers, self.block_size, first) {
                Ok(_) => return Ok(()),
                Err(error) => refusal = Err(error).with_context(|| model.name.clone()),
            }
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        memory: MemoryArgs,
    }

    pub fn question(line: &str) -> Result<Question> {
        let words = std::iter::once("memory").chain(line.split_whitespace());
        Line::try_parse_from(words)?.memory.question()
    }

    #[test]
    fn what_cannot_be_answered_is_refused_by_value_with_what_would_work() {
        for (line, expected) in [
            (
                "--preset lama-2-7b",
                "unknown preset `lama-2-7b`; known: all, llama-2-7b",
            ),
            ("--gpu h1000", "unknown GPU `h1000`; known: T4"),
            (
                "--preset llama-2-7b --context 8192",
                "--context 8192 exceeds the 4096 tokens that llama-2-7b",
            ),
            ("--preset t6-xl --kv-dtype q8_0", "t6-xl"),
            ("--kv-dtype int8", "unknown KV dtype `int8`"),
            ("--weights int4", "unknown type of weights `int4`"),
            ("--block-size 48", "block size 48 must be 16"),
            ("--reserve 100", "--reserve 100 must be"),
            ("--ranks 0", "0 is not in 1..=1024"),
            ("--config no/such/config.json", "no/such/config.json"),
        ] {
            let error = format!("{:#}", question(line).unwrap_err());
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn all_presets_are_compared_where_no_model_is_named() {
        let all = question("").unwrap();
        assert_eq!(all.models.len(), question("--preset all").unwrap().models.len());
        assert_eq!(
            all.contexts_of(&all.models[0]),
            [1024, 4096],
            "llama-2-7b was trained for 4096"
        );
        assert_eq!(question("--memory 8GiB").unwrap().gpus.len(), 1);
        assert_eq!(question("--memory 8GiB --gpu t4").unwrap().gpus.len(), 2);
    }

    #[test]
    fn a_report_has_the_published_variant_of_every_model_once() {
        let question = question("--ranks 8,3,3").unwrap();
        let report = Report::new(&question).unwrap();
        for model in &report.models {
            assert_eq!(
                model.kv.iter().filter(|variant| variant.published).count(),
                1,
                "{}",
                model.model
            );
            let kv = &model.published().unwrap().by_dtype[0];
            assert_eq!(kv.by_ranks.iter().map(|ranks| ranks.ranks).collect::<Vec<_>>(), [3, 8]);
        }
    }
}
