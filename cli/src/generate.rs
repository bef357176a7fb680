//! `kvasir generate`: one answer to a raw prompt.

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1::{self, generate_request::Prompt};

use crate::{ask::AskOptions, client::parse_ids};

/// Continues a prompt, streaming the text
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir generate --prompt \"Once upon a time\" --max-tokens 64\n  kvasir generate \
                  --prompt-ids 1,2,3 --temperature 0.8 --seed 7 --logprobs 5 --json"
)]
#[group(id = "prompt_source", required = true, multiple = false, args = ["prompt", "prompt_ids"])]
pub struct GenerateArgs {
    /// Text to continue; special tokens in it count as such
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    prompt_ids: Option<String>,
    #[command(flatten)]
    ask: AskOptions,
}

pub async fn run(args: GenerateArgs) -> Result<()> {
    let prompt = match (args.prompt, args.prompt_ids) {
        (_, Some(ids)) => Prompt::TokenIds(v1::TokenIds { ids: parse_ids(&ids)? }),
        (text, None) => Prompt::Text(text.unwrap_or_default()),
    };
    args.ask.ask(prompt).await.map(drop)
}
