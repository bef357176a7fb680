//! An answer as it comes together at the client, and as `--json` prints it: alone, or with the other choices.

use std::time::{Duration, Instant};

use kvasir_proto::v1;
use serde::Serialize;

/// Grows while the stream runs.
#[derive(Debug, Default)]
pub struct Answer {
    pub choice: u32,
    pub descriptor: Option<v1::ResumeDescriptor>,
    pub text: String,
    pub token_ids: Vec<u32>,
    pub logprobs: Vec<TokenLogprob>,
    /// Of the prompt's tokens from the second on, as far as they were asked for.
    pub prompt_logprobs: Vec<TokenLogprob>,
    pub finish_reason: &'static str,
    pub usage: v1::Usage,
    pub resumes: u32,
    pub pace: Pace,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TokenLogprob {
    pub id: u32,
    /// Written with as many digits as bring back its bits.
    pub logprob: f32,
    pub top: Vec<TopLogprob>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TopLogprob {
    pub id: u32,
    pub logprob: f32,
}

impl TokenLogprob {
    fn new(id: u32, logprob: f32, top: Vec<v1::TopLogprob>) -> Self {
        let top = top.into_iter().map(|top| TopLogprob {
            id: top.id,
            logprob: top.logprob,
        });
        Self {
            id,
            logprob,
            top: top.collect(),
        }
    }
}

/// What of an answer was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    pub logprobs: bool,
    pub prompt_logprobs: bool,
}

impl Answer {
    pub fn of_choice(choice: u32) -> Self {
        Self {
            choice,
            ..Self::default()
        }
    }

    pub fn add_scores(&mut self, scores: v1::PromptScores) {
        let scored = |token: v1::PromptToken| TokenLogprob::new(token.id, token.logprob, token.top_logprobs);
        self.prompt_logprobs.extend(scores.tokens.into_iter().map(scored));
    }

    pub fn add(&mut self, chunk: v1::Chunk) {
        for token in chunk.tokens {
            self.token_ids.push(token.id);
            self.logprobs
                .push(TokenLogprob::new(token.id, token.logprob, token.top_logprobs));
            self.pace.token();
        }
        self.text += &chunk.text;
    }

    pub fn finish(&mut self, finished: v1::Finished) {
        self.finish_reason = match finished.reason() {
            v1::FinishReason::Stop => "stop",
            v1::FinishReason::Length => "length",
            v1::FinishReason::Cancelled => "cancelled",
            v1::FinishReason::Unspecified => "unknown",
        };
        self.text += &finished.text;
        self.usage = finished.usage.unwrap_or_default();
    }

    fn json(&self, shown: Shown) -> AnswerJson<'_> {
        AnswerJson {
            choice: self.choice,
            text: &self.text,
            token_ids: &self.token_ids,
            logprobs: shown.logprobs.then_some(&self.logprobs),
            prompt_logprobs: shown.prompt_logprobs.then_some(&self.prompt_logprobs),
            finish_reason: self.finish_reason,
            usage: UsageJson {
                prompt_tokens: self.usage.prompt_tokens,
                cached_tokens: self.usage.cached_tokens,
                completion_tokens: self.usage.completion_tokens,
            },
            request_id: self.descriptor.as_ref().map_or("", |descriptor| &descriptor.request_id),
            seed: self.descriptor.as_ref().map_or(0, |descriptor| descriptor.seed),
            resumes: self.resumes,
            tokens_per_s: self.pace.tokens_per_s(),
            longest_pause_ms: self.pace.longest_pause.as_millis() as u64,
        }
    }
}

/// One answer as an object, several as `choices`.
pub fn to_json(answers: &[Answer], shown: Shown) -> serde_json::Result<String> {
    match answers {
        [answer] => serde_json::to_string(&answer.json(shown)),
        answers => serde_json::to_string(&ChoicesJson {
            choices: answers.iter().map(|answer| answer.json(shown)).collect(),
        }),
    }
}

#[derive(Serialize)]
struct ChoicesJson<'a> {
    choices: Vec<AnswerJson<'a>>,
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    choice: u32,
    text: &'a str,
    token_ids: &'a [u32],
    logprobs: Option<&'a Vec<TokenLogprob>>,
    prompt_logprobs: Option<&'a Vec<TokenLogprob>>,
    finish_reason: &'a str,
    usage: UsageJson,
    request_id: &'a str,
    seed: u64,
    resumes: u32,
    tokens_per_s: f64,
    longest_pause_ms: u64,
}

#[derive(Serialize)]
struct UsageJson {
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
}

/// When tokens came.
#[derive(Debug, Default)]
pub struct Pace {
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u32,
    pub longest_pause: Duration,
}

impl Pace {
    fn token(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last {
            self.longest_pause = self.longest_pause.max(now - last);
        }
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.tokens += 1;
    }

    /// Between the first token and the last; 0 with fewer than two.
    pub fn tokens_per_s(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) if self.tokens > 1 && last > first => {
                f64::from(self.tokens - 1) / (last - first).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: u32, logprob: f32) -> v1::Chunk {
        v1::Chunk {
            tokens: vec![v1::Token {
                index,
                id: 7,
                logprob,
                ..Default::default()
            }],
            text: "x".to_owned(),
        }
    }

    #[test]
    fn the_bits_of_a_logprob_survive_the_json() {
        for bits in [0xbdcc_cccdu32, 0xc123_4567, 0x8000_0000, 0x8000_0001, 0xbf7f_ffff] {
            let mut answer = Answer::default();
            answer.add(chunk(0, f32::from_bits(bits)));
            let shown = Shown {
                logprobs: true,
                prompt_logprobs: false,
            };
            let json: serde_json::Value = serde_json::from_str(&to_json(&[answer], shown).unwrap()).unwrap();
            assert!(json["prompt_logprobs"].is_null());
            let read = json["logprobs"][0]["logprob"].as_f64().unwrap() as f32;
            assert_eq!(read.to_bits(), bits);
        }
    }

    #[test]
    fn several_answers_are_choices() {
        let answers = [Answer::of_choice(0), Answer::of_choice(1)];
        let json: serde_json::Value = serde_json::from_str(&to_json(&answers, Shown::default()).unwrap()).unwrap();
        assert_eq!(json["choices"][1]["choice"], 1);
    }
}
