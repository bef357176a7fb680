//! `kvasir generate`: an answer, or several, to a raw prompt.

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1::{self, generate_request::Prompt};

use crate::{
    ask::{AskOptions, Wanted},
    client::parse_ids,
};

/// Continues a prompt, streaming the text
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir generate --prompt \"Once upon a time\" --max-tokens 64\n  kvasir generate \
                  --prompt-ids 1,2,3 --temperature 0.8 --seed 7 --logprobs 5 --json\n  kvasir generate --prompt \"My cat is called\" --n 3 --temperature 1 \
                  --min-p 0.05 --repetition-penalty 1.1"
)]
#[group(id = "prompt_source", required = true, multiple = false, args = ["prompt", "prompt_ids"])]
pub struct GenerateArgs {
    /// Text to continue; special tokens in it count as such
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    prompt_ids: Option<String>,
    /// Answers to the prompt, at most 128: each is what its choice gives alone
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Report the logprob of each token of the prompt given those before it, and the K likeliest there, at most 20; shown
    /// with --json. With --max-tokens 0 nothing is generated
    #[arg(long, value_name = "K")]
    prompt_logprobs: Option<u32>,
    #[command(flatten)]
    ask: AskOptions,
}

pub async fn run(args: GenerateArgs) -> Result<()> {
    let prompt = match (args.prompt, args.prompt_ids) {
        (_, Some(ids)) => Prompt::TokenIds(v1::TokenIds { ids: parse_ids(&ids)? }),
        (text, None) => Prompt::Text(text.unwrap_or_default()),
    };
    let wanted = Wanted {
        choices: args.n,
        prompt_logprobs: args.prompt_logprobs,
    };
    let telemetry = args.ask.otlp.start()?;
    let answered = args.ask.ask(prompt, wanted).await;
    telemetry.end().await;
    answered.map(drop)
}
