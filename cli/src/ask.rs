//! The flags of a question, shared by `generate` and `chat`, and how an answer is shown while it comes.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1::{self, generate_request::Prompt};
use owo_colors::OwoColorize;

use crate::{
    answer::{Answer, Pace},
    client::{self, Server},
};

#[derive(Args, Clone, Debug)]
pub struct AskOptions {
    #[command(flatten)]
    server: Server,
    /// Most tokens of the answer [default: what is left of the context]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// 0 takes the likeliest token; higher is more varied, up to 100
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Only the K likeliest tokens; 0 means all
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Only the likeliest tokens that reach this probability together, above 0 up to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// The same seed gives the same answer [default: drawn by the server]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Report logprobs, and the K likeliest tokens at each position
    #[arg(long, value_name = "K")]
    pub logprobs: Option<u32>,
    /// A text that ends the answer; may be given up to 16 times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on past the end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
    /// A name for the request [default: made by the server]
    #[arg(long, value_name = "NAME")]
    pub request_id: Option<String>,
    /// Who asks: tenants share the cluster fairly, and never each other's cached prefixes
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub tenant: String,
    /// Lower is served first
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    pub priority: i32,
    /// Fail when the connection breaks instead of going on with the same answer
    #[arg(long)]
    pub no_resume: bool,
    /// Print one JSON object when the answer is complete
    #[arg(long)]
    pub json: bool,
    /// With --json: stream the text to standard error meanwhile
    #[arg(long, requires = "json")]
    pub echo: bool,
}

impl AskOptions {
    pub fn request(&self, prompt: Prompt) -> v1::GenerateRequest {
        v1::GenerateRequest {
            request_id: self.request_id.clone().unwrap_or_default(),
            prompt: Some(prompt),
            sampling: Some(v1::SamplingParams {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
                choice: 0,
                top_logprobs: self.logprobs.unwrap_or(0),
            }),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            timeout_ms: self.timeout.map(|seconds| (seconds * 1000.0) as u64),
            tenant: self.tenant.clone(),
            priority: self.priority,
        }
    }

    /// Asks, shows the answer as it comes, and returns it.
    pub async fn ask(&self, prompt: Prompt) -> Result<Answer> {
        let mut shown = false;
        let mut title = LiveTitle::new();
        let show = |text: &str, pace: &Pace| {
            shown |= !text.is_empty();
            self.show(text);
            title.update(pace);
        };
        let answer = client::generate(&self.server.endpoint, self.request(prompt), !self.no_resume, show).await;
        if !self.json && shown {
            // Errors, too, begin on a line of their own.
            println!();
        }
        let answer = answer?;
        if self.json {
            println!("{}", answer.to_json(self.logprobs.is_some())?);
        } else if stderr().is_terminal() {
            eprintln!("{}", summary(&answer).dimmed());
        }
        Ok(answer)
    }

    /// A reader that went away is noticed at the next piece; the answer goes on.
    fn show(&self, text: &str) {
        if !self.json {
            let mut out = stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        } else if self.echo {
            let mut out = stderr().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}

/// Live tokens/s in the terminal's title: the only place where it does not stand in the way of the text.
struct LiveTitle {
    /// `None` where nobody looks.
    due: Option<Instant>,
    written: bool,
}

impl LiveTitle {
    const EVERY: Duration = Duration::from_millis(250);

    fn new() -> Self {
        let is_dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let due = (stderr().is_terminal() && !is_dumb).then(Instant::now);
        Self { due, written: false }
    }

    fn update(&mut self, pace: &Pace) {
        let due = self
            .due
            .filter(|due| *due <= Instant::now() && pace.tokens_per_s() > 0.0);
        if let Some(due) = due {
            eprint!("\x1b]0;kvasir: {:.0} tokens/s\x07", pace.tokens_per_s());
            (self.due, self.written) = (Some(due + Self::EVERY), true);
        }
    }
}

impl Drop for LiveTitle {
    fn drop(&mut self) {
        if self.written {
            eprint!("\x1b]0;\x07");
        }
    }
}

fn summary(answer: &Answer) -> String {
    let resumed = match answer.resumes {
        0 => String::new(),
        attempts => format!(", resumed after {attempts} attempts"),
    };
    format!(
        "[{} tokens, {:.1} tokens/s, longest pause {} ms, {}{resumed}]",
        answer.token_ids.len(),
        answer.pace.tokens_per_s(),
        answer.pace.longest_pause.as_millis(),
        answer.finish_reason,
    )
}
