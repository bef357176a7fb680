//! The flags of a question, shared by `generate` and `chat`, and how an answer is shown while it comes.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use kvasir_proto::v1::{self, constraint::Kind, generate_request::Prompt};
use kvasir_runtime::telemetry::propagation;
use owo_colors::OwoColorize;

use crate::{
    answer::{Answer, Pace, Shown, to_json},
    client::{self, Server},
    telemetry_options::OtlpOptions,
};

#[derive(Args, Clone, Debug)]
pub struct AskOptions {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pub otlp: OtlpOptions,
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
    /// Only tokens at least so likely as this part of the likeliest, 0 to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Makes tokens of prompt and answer less likely above 1, likelier below; 1 changes nothing
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens that are in the answer, -2 to 2
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Taken from a token's logit as often as it is in the answer, -2 to 2
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Added to the logit of a token, -100 to 100; may be given for many tokens
    #[arg(long, value_name = "ID:BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// A token that ends the answer besides the model's own; may be given up to 128 times
    #[arg(long, value_name = "ID")]
    pub stop_token_id: Vec<u32>,
    /// The same seed gives the same answer [default: drawn by the server]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Report logprobs, and the K likeliest tokens at each position
    #[arg(long, value_name = "K")]
    pub logprobs: Option<u32>,
    /// A text that ends the answer; may be given up to 16 times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// The answer is JSON of this schema: a file, or the schema itself
    #[arg(long, value_name = "SCHEMA", group = "constraint")]
    pub json_schema: Option<String>,
    /// The answer matches this regular expression from end to end
    #[arg(long, value_name = "REGEX", group = "constraint")]
    pub regex: Option<String>,
    /// The answer is text of this grammar, in llguidance's variant of Lark: a file, or the grammar itself
    #[arg(long, value_name = "GRAMMAR", group = "constraint")]
    pub grammar: Option<String>,
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
    fn request(&self, prompt: Prompt, wanted: Wanted) -> Result<v1::GenerateRequest> {
        Ok(v1::GenerateRequest {
            request_id: self.request_id.clone().unwrap_or_default(),
            prompt: Some(prompt),
            sampling: Some(v1::SamplingParams {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
                choice: 0,
                top_logprobs: self.logprobs.unwrap_or(0),
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                logit_bias: self.logit_bias.iter().map(wire_bias).collect(),
                stop_token_ids: self.stop_token_id.clone(),
            }),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            timeout_ms: self.timeout.map(|seconds| (seconds * 1000.0) as u64),
            tenant: self.tenant.clone(),
            priority: self.priority,
            n: (wanted.choices > 1).then_some(wanted.choices),
            prompt_logprobs: wanted.prompt_logprobs,
            constraint: self.constraint()?,
            ..Default::default()
        })
    }

    /// clap has seen to it that there is at most one.
    fn constraint(&self) -> Result<Option<v1::Constraint>> {
        let kind = match (&self.json_schema, &self.regex, &self.grammar) {
            (Some(schema), ..) => Kind::JsonSchema(text_or_file(schema)?),
            (_, Some(regex), _) => Kind::Regex(regex.clone()),
            (.., Some(grammar)) => Kind::Lark(text_or_file(grammar)?),
            (None, None, None) => return Ok(None),
        };
        Ok(Some(v1::Constraint { kind: Some(kind) }))
    }

    /// Asks, shows the answers, and returns the text of the first. One is shown as it comes; several, which come at the
    /// same time, one after the other when all are there.
    pub async fn ask(&self, prompt: Prompt, wanted: Wanted) -> Result<String> {
        let is_one = wanted.choices <= 1;
        let mut shown = false;
        let mut title = LiveTitle::new();
        let show = |_: u32, text: &str, pace: &Pace| {
            if is_one {
                shown |= !text.is_empty();
                self.show(text);
            }
            title.update(pace);
        };
        let request = self.request(prompt, wanted)?;
        let target = self.server.target()?;
        // A shell, or whatever else started this, may be in a trace.
        let parent = std::env::var("TRACEPARENT")
            .ok()
            .and_then(|text| propagation::of_text(&text));
        let asked = client::generate(&target, request, !self.no_resume, show);
        let answers = opentelemetry::trace::FutureExt::with_context(asked, parent.unwrap_or_default()).await;
        if !self.json && shown {
            // Errors, too, begin on a line of their own.
            println!();
        }
        let answers = answers?;
        if self.json {
            let shown = Shown {
                logprobs: self.logprobs.is_some(),
                prompt_logprobs: wanted.prompt_logprobs.is_some(),
            };
            println!("{}", to_json(&answers, shown)?);
        } else {
            for answer in &answers {
                if !is_one {
                    println!("[choice {}]\n{}", answer.choice, answer.text);
                }
                if stderr().is_terminal() {
                    eprintln!("{}", summary(answer).dimmed());
                }
            }
        }
        let first = answers.into_iter().next();
        Ok(first.map(|answer| answer.text).unwrap_or_default())
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

/// What only `generate` asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub choices: u32,
    pub prompt_logprobs: Option<u32>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            choices: 1,
            prompt_logprobs: None,
        }
    }
}

/// Schemas and grammars have braces, colons or line breaks; names of files seldom do, and then the file is there.
fn text_or_file(text: &str) -> Result<String> {
    let is_file = Path::new(text).is_file();
    let is_text = text.contains(['{', ':', '\n']);
    match is_file || !is_text {
        true => std::fs::read_to_string(text).with_context(|| format!("cannot read {text}")),
        false => Ok(text.to_owned()),
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once(':').and_then(|(id, bias)| {
        let (id, bias) = (id.trim().parse().ok()?, bias.trim().parse().ok()?);
        Some((id, bias))
    });
    parsed.ok_or_else(|| format!("`{text}` is not a token id and its bias, as in 42:-1.5"))
}

fn wire_bias(&(id, bias): &(u32, f32)) -> v1::LogitBias {
    v1::LogitBias { id, bias }
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
