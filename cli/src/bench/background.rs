//! Load beside the measured requests, to see what others do to them: so many requests at a time, without end.
//!
//! Its prompts are all different. A pause follows a refused or failed request: refusals must not become the load.

use std::{
    num::NonZeroU16,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::task::JoinSet;

use super::{client::Client, outcome::Outcome, token_range::TokenRange};

/// After what did not say when to come back.
const PAUSE: Duration = Duration::from_millis(100);

/// As `tenant=a,concurrency=100,prompt-tokens=128,prefix-tokens=0,max-tokens=64,priority=0`; each may be left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackgroundOptions {
    pub tenant: String,
    pub concurrency: NonZeroU16,
    pub prompt_tokens: TokenRange,
    pub prefix_tokens: u32,
    pub max_tokens: TokenRange,
    pub priority: i32,
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BackgroundError {
    #[error("`{text}` is not NAME=VALUE")]
    NotAPair { text: String },
    #[error("`{name}` is not one of tenant, concurrency, prompt-tokens, prefix-tokens, max-tokens and priority")]
    UnknownName { name: String },
    #[error("{name}: {why}")]
    BadValue { name: String, why: String },
}

impl Default for BackgroundOptions {
    fn default() -> Self {
        Self {
            tenant: String::new(),
            concurrency: NonZeroU16::MIN,
            prompt_tokens: TokenRange::exactly(128),
            prefix_tokens: 0,
            max_tokens: TokenRange::exactly(32),
            priority: 0,
        }
    }
}

impl FromStr for BackgroundOptions {
    type Err = BackgroundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = Self::default();
        for pair in text.split(',') {
            let not_a_pair = || BackgroundError::NotAPair { text: pair.to_owned() };
            let (name, value) = pair.split_once('=').ok_or_else(not_a_pair)?;
            options.set(name.trim(), value.trim())?;
        }
        Ok(options)
    }
}

impl BackgroundOptions {
    fn set(&mut self, name: &str, value: &str) -> Result<(), BackgroundError> {
        match name {
            "tenant" => self.tenant = value.to_owned(),
            "concurrency" => self.concurrency = parse(name, value)?,
            "prompt-tokens" => self.prompt_tokens = parse(name, value)?,
            "prefix-tokens" => self.prefix_tokens = parse(name, value)?,
            "max-tokens" => self.max_tokens = parse(name, value)?,
            "priority" => self.priority = parse(name, value)?,
            _ => return Err(BackgroundError::UnknownName { name: name.to_owned() }),
        }
        Ok(())
    }
}

fn parse<T: FromStr<Err: ToString>>(name: &str, value: &str) -> Result<T, BackgroundError> {
    value.parse().map_err(|error: T::Err| BackgroundError::BadValue {
        name: name.to_owned(),
        why: error.to_string(),
    })
}

/// Runs until `stop`.
#[derive(Debug)]
pub struct Background {
    pub options: BackgroundOptions,
    counts: Arc<Mutex<Counts>>,
    tasks: JoinSet<()>,
}

/// What has come of it since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
    /// Also of requests that have not finished.
    pub output_tokens: u64,
    pub first_error: Option<String>,
}

impl Background {
    pub fn start(client: Client, options: BackgroundOptions) -> Self {
        let (client, counts) = (Arc::new(client), Arc::default());
        let mut tasks = JoinSet::new();
        for lane in 0..u32::from(options.concurrency.get()) {
            let stride = usize::from(options.concurrency.get());
            let indices = (lane..u32::MAX).step_by(stride);
            tasks.spawn(ask_on(Arc::clone(&client), indices, Arc::clone(&counts)));
        }
        Self { options, counts, tasks }
    }

    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Drops the running streams: the cluster cancels their requests.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn ask_on(client: Arc<Client>, indices: impl Iterator<Item = u32>, counts: Arc<Mutex<Counts>>) {
    for index in indices {
        let on_tokens = |tokens| lock(&counts).output_tokens += tokens as u64;
        let outcome = client.ask(index, on_tokens).await;
        let pause = lock(&counts).add(outcome);
        tokio::time::sleep(pause).await;
    }
}

impl Counts {
    /// Returns how long to wait before the next request.
    fn add(&mut self, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Finished(_) => {
                self.finished += 1;
                Duration::ZERO
            }
            Outcome::Cancelled => Duration::ZERO,
            Outcome::Refused { retry_after_ms } => {
                self.refused += 1;
                retry_after_ms.map_or(PAUSE, Duration::from_millis)
            }
            Outcome::Failed { message } => {
                self.failed += 1;
                self.first_error.get_or_insert(message);
                PAUSE
            }
        }
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            finished: self.finished - earlier.finished,
            refused: self.refused - earlier.refused,
            failed: self.failed - earlier.failed,
            output_tokens: self.output_tokens - earlier.output_tokens,
            first_error: self.first_error,
        }
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_a_default() {
        let options: BackgroundOptions = "tenant=a, concurrency=100,max-tokens=16..64".parse().unwrap();
        let expected = BackgroundOptions {
            tenant: "a".to_owned(),
            concurrency: NonZeroU16::new(100).unwrap(),
            max_tokens: "16..64".parse().unwrap(),
            ..Default::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            ("", "NAME=VALUE"),
            ("tenant", "`tenant`"),
            ("tennant=a", "`tennant`"),
            ("concurrency=0", "concurrency: "),
            ("prompt-tokens=9..4", "prompt-tokens: 9..4"),
        ] {
            let error = text.parse::<BackgroundOptions>().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_refusal_says_how_long_to_wait() {
        let mut counts = Counts::default();
        let refused = Outcome::Refused {
            retry_after_ms: Some(750),
        };
        assert_eq!(counts.add(refused), Duration::from_millis(750));
        assert_eq!(counts.refused, 1);
    }
}
