//! `text_completion`, whole and in pieces.

use serde_json::{Map, Value, json};

use crate::form::{Form, Part, TextPlace, finite};

#[derive(Clone, Copy, Debug)]
pub struct CompletionForm {
    pub echo: bool,
    /// Likeliest tokens to report besides the chosen one.
    pub logprobs: Option<u32>,
    pub return_token_ids: bool,
}

impl Form for CompletionForm {
    fn objects(&self) -> (&'static str, &'static str) {
        ("text_completion", "text_completion")
    }

    fn opening(&self) -> Option<Part> {
        None
    }

    fn echoes(&self) -> bool {
        self.echo
    }

    fn awaits_scores(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    fn tells_tokens(&self) -> bool {
        self.logprobs.is_some() || self.return_token_ids
    }

    fn has_prompt_ids(&self) -> bool {
        true
    }

    fn delta(&self, index: u32, part: &Part, place: &TextPlace) -> Value {
        let mut choice = json!({
            "index": index,
            "text": part.text,
            "logprobs": self.logprobs.map(|_| logprobs(part, place.clone())),
            "finish_reason": part.finish_reason,
        });
        if self.return_token_ids {
            choice["token_ids"] = json!(part.token_ids());
        }
        if let Some(ids) = &part.prompt_ids {
            choice["prompt_token_ids"] = json!(ids);
        }
        choice
    }

    fn whole(&self, index: u32, part: &Part) -> Value {
        self.delta(index, part, &TextPlace::default())
    }
}

/// `place`: of the first token. The chosen token is among the likely ones, whether it is or not.
fn logprobs(part: &Part, mut place: TextPlace) -> Value {
    let (mut tokens, mut token_logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in &part.tokens {
        tokens.push(key(&token.bytes));
        token_logprobs.push(token.logprob.map_or(Value::Null, finite));
        tops.push(token.logprob.map(|logprob| {
            let top = token.top.iter().map(|top| (key(&top.bytes), finite(top.logprob)));
            let mut top: Map<String, Value> = top.collect();
            top.entry(key(&token.bytes)).or_insert_with(|| finite(logprob));
            top
        }));
        offsets.push(place.chars);
        place.pass(token);
    }
    json!({ "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": tops, "text_offset": offsets })
}

/// Parts of characters keep their bytes, as OpenAI writes them: keys must not collide.
fn key(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}

#[cfg(test)]
mod tests {
    use kvasir_proto::v1::TopLogprob;

    use super::*;
    use crate::form::Spelled;

    #[test]
    fn offsets_count_characters_and_the_first_token_of_a_prompt_has_no_logprob() {
        let token = |bytes: &[u8], logprob| Spelled {
            bytes: bytes.to_vec(),
            logprob,
            top: vec![TopLogprob {
                id: 1,
                logprob: -0.5,
                bytes: bytes.to_vec(),
            }],
            ..Spelled::default()
        };
        let mut part = Part {
            tokens: vec![
                token("é".as_bytes(), None),
                token(b"\xf0\x9f", Some(-1.0)),
                token(b"\x99\x82", Some(-1.0)),
                token(b"</s>", Some(-1.0)),
                token(b"ab", Some(-2.0)),
            ],
            ..Part::default()
        };
        part.tokens[3].is_control = true;
        part.tokens[4].top.clear();
        let mut place = TextPlace::default();
        place.pass_all(&[token(b"xyz", None)]);
        let value = logprobs(&part, place);
        assert_eq!(value["text_offset"], json!([3, 4, 4, 5, 5]));
        assert_eq!(value["token_logprobs"], json!([null, -1.0, -1.0, -1.0, -2.0]));
        assert_eq!(value["tokens"][1], r"bytes:\xf0\x9f");
        assert_eq!(value["top_logprobs"][0], Value::Null);
        assert_eq!(value["top_logprobs"][4], json!({"ab": -2.0}));
    }
}
