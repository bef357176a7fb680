//! An answer through OpenAI's HTTP, read piece by piece as its stream brings it.

use std::io::{BufRead as _, BufReader, Read};

use kvasir_kv::TokenId;
use serde_json::{Value, json};

use crate::rank_group::{Answer, Generation};

/// The model's name, from its file.
pub const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";

/// The same question as a streamed completion. Logprobs come with their tokens.
pub fn completion(generation: &Generation) -> Value {
    let sampling = &generation.sampling;
    let prompt: Vec<u32> = generation.prompt.iter().map(|token| token.0).collect();
    json!({
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": generation.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "logprobs": 0,
        "ignore_eos": true,
        "return_token_ids": true,
        "stream": true,
        "stream_options": { "include_usage": true },
    })
}

/// A stream that is being read.
pub struct HttpStream {
    lines: BufReader<Box<dyn Read + Send>>,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub text: String,
    pub finish_reason: Option<String>,
    pub usage: Option<Value>,
}

impl HttpStream {
    /// # Panics
    /// If the request is refused.
    pub fn open(base: &str, body: &Value) -> Self {
        let request = ureq::post(format!("{base}/v1/completions")).header("content-type", "application/json");
        let response = request.send(body.to_string()).expect("the request is taken");
        let reader: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        Self {
            lines: BufReader::new(reader),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            finish_reason: None,
            usage: None,
        }
    }

    /// Takes the next piece. False after the last one.
    ///
    /// # Panics
    /// If the stream breaks, or says that it failed.
    pub fn read(&mut self) -> bool {
        let mut line = String::new();
        loop {
            line.clear();
            let bytes = self.lines.read_line(&mut line).expect("the stream does not break");
            assert!(bytes > 0, "the stream ended without its last word");
            let Some(data) = line.trim_end().strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                return false;
            }
            self.take(&serde_json::from_str(data).expect("pieces are JSON"));
            return true;
        }
    }

    fn take(&mut self, piece: &Value) {
        assert!(piece["error"].is_null(), "{piece}");
        if !piece["usage"].is_null() {
            self.usage = Some(piece["usage"].clone());
        }
        for choice in piece["choices"].as_array().expect("a list") {
            self.text += choice["text"].as_str().expect("a text");
            let ids = choice["token_ids"].as_array().expect("asked for").iter();
            self.tokens.extend(ids.map(|id| id.as_u64().expect("an id") as u32));
            let logprobs = choice["logprobs"]["token_logprobs"].as_array().expect("asked for");
            let logprobs = logprobs.iter().map(|logprob| logprob.as_f64().expect("a number"));
            self.logprobs.extend(logprobs.map(|logprob| logprob as f32));
            if let Some(reason) = choice["finish_reason"].as_str() {
                self.finish_reason = Some(reason.to_owned());
            }
        }
    }

    /// For a digest.
    pub fn to_parity(&self) -> Answer {
        Answer {
            tokens: self.tokens.iter().copied().map(TokenId).collect(),
            logprobs: self.logprobs.clone(),
            top_logprobs: vec![Vec::new(); self.tokens.len()],
            prompt_logprobs: Vec::new(),
            poisoned: false,
        }
    }
}

impl std::fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpStream")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}
