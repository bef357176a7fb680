//! `chat.completion` and `chat.completion.chunk`.

use serde_json::{Value, json};

use crate::form::{Form, Part, Spelled, TextPlace, finite, text};

#[derive(Clone, Copy, Debug)]
pub struct ChatForm {
    pub logprobs: bool,
    pub return_token_ids: bool,
}

impl Form for ChatForm {
    fn objects(&self) -> (&'static str, &'static str) {
        ("chat.completion", "chat.completion.chunk")
    }

    fn opening(&self) -> Option<Part> {
        Some(Part {
            opens: true,
            ..Part::default()
        })
    }

    fn echoes(&self) -> bool {
        false
    }

    fn awaits_scores(&self) -> bool {
        false
    }

    fn tells_tokens(&self) -> bool {
        self.logprobs || self.return_token_ids
    }

    fn has_prompt_ids(&self) -> bool {
        false
    }

    fn delta(&self, index: u32, part: &Part, _place: &TextPlace) -> Value {
        let delta = match part {
            part if part.opens => json!({ "role": "assistant", "content": "" }),
            part if part.text.is_empty() && part.finish_reason.is_some() => json!({}),
            part => json!({ "content": part.text }),
        };
        let mut choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": if part.opens { Value::Null } else { self.logprobs(part) },
            "finish_reason": part.finish_reason,
        });
        if self.return_token_ids {
            choice["token_ids"] = json!(part.token_ids());
        }
        choice
    }

    fn whole(&self, index: u32, part: &Part) -> Value {
        let mut choice = json!({
            "index": index,
            "message": { "role": "assistant", "content": part.text, "refusal": null },
            "logprobs": self.logprobs(part),
            "finish_reason": part.finish_reason,
        });
        if self.return_token_ids {
            choice["token_ids"] = json!(part.token_ids());
        }
        choice
    }
}

impl ChatForm {
    fn logprobs(&self, part: &Part) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        json!({ "content": part.tokens.iter().map(spelled).collect::<Vec<_>>(), "refusal": null })
    }
}

fn spelled(token: &Spelled) -> Value {
    let mut value = one(&token.bytes, token.logprob.unwrap_or_default());
    let top = token.top.iter().map(|top| one(&top.bytes, top.logprob));
    value["top_logprobs"] = top.collect();
    value
}

fn one(bytes: &[u8], logprob: f32) -> Value {
    json!({ "token": text(bytes), "logprob": finite(logprob), "bytes": bytes })
}
