//! From answers to a body: one JSON object at the end, or pieces as they come.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    http::{Extensions, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use kvasir_proto::v1::{self, generate_response::Event};
use serde_json::{Value, json};

use crate::{
    ApiError, Gateway,
    answers::Answers,
    asked::Sending,
    form::{Form, Part, Spelled, TextPlace, text},
};

/// A comment on a stream that is silent for so long keeps proxies from closing it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What every body of a reply says.
#[derive(Clone, Debug)]
pub struct Reply<F> {
    pub id: String,
    pub model: String,
    /// Unix time in seconds.
    pub created: u64,
    pub form: F,
    pub sending: Sending,
    /// Answers to each prompt.
    pub num_choices: u32,
    /// Of each prompt that came as text, its text.
    pub prompts: Vec<Option<String>>,
    /// Fields of the service's that have other names in this API, with those.
    pub names: Vec<(&'static str, &'static str)>,
}

impl<F: Form> Reply<F> {
    /// Asks, and sends what comes of it. Errors name fields as this API calls them.
    pub async fn answer(
        self,
        gateway: &Gateway,
        requests: Vec<v1::GenerateRequest>,
        extensions: &Extensions,
    ) -> Result<Response, ApiError> {
        let names = self.names.clone();
        let answered = async {
            self.send(Answers::begin(&gateway.upstream, requests, extensions).await?)
                .await
        };
        answered.await.map_err(|error| error.renamed(&names))
    }

    async fn send(self, answers: Answers) -> Result<Response, ApiError> {
        let id = self.id.clone();
        let mut response = match self.sending.stream {
            true => self.pieces(answers.look_ahead().await?),
            false => Json(self.whole(answers).await?).into_response(),
        };
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", id);
        }
        Ok(response)
    }

    async fn whole(self, mut answers: Answers) -> Result<Value, ApiError> {
        let mut assembly = Assembly::new(&self);
        while let Some(next) = answers.next().await {
            let (prompt, response) = next?;
            assembly.take(prompt, response);
        }
        let choices: Vec<Value> = assembly
            .choices
            .iter()
            .map(|(index, choice)| self.form.whole(*index, &choice.part))
            .collect();
        let mut body = self.body(self.form.objects().0, &assembly.fingerprint, choices);
        body["usage"] = assembly.usage();
        if let Some(ids) = assembly.prompt_ids {
            body["prompt_token_ids"] = json!(ids);
        }
        Ok(body)
    }

    fn pieces(self, mut answers: Answers) -> Response {
        let pieces = async_stream::stream! {
            let mut assembly = Assembly::new(&self);
            while let Some(next) = answers.next().await {
                let (prompt, response) = match next {
                    Ok(next) => next,
                    Err(status) => {
                        yield data(&ApiError::from(status).body());
                        return;
                    }
                };
                assembly.take(prompt, response);
                while let Some((index, part, place)) = assembly.next_piece() {
                    let choice = self.form.delta(index, &part, &place);
                    let mut piece = self.piece(&assembly, vec![choice]);
                    if let Some(ids) = assembly.prompt_ids.take() {
                        piece["prompt_token_ids"] = json!(ids);
                    }
                    yield data(&piece);
                }
            }
            if self.sending.include_usage {
                let mut last = self.body(self.form.objects().1, &assembly.fingerprint, Vec::new());
                last["usage"] = assembly.usage();
                yield data(&last);
            }
            yield Ok(SseEvent::default().data("[DONE]"));
        };
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        Sse::new(pieces).keep_alive(keep_alive).into_response()
    }

    fn piece(&self, assembly: &Assembly<'_, F>, choices: Vec<Value>) -> Value {
        let mut piece = self.body(self.form.objects().1, &assembly.fingerprint, choices);
        if self.sending.continuous_usage {
            piece["usage"] = assembly.usage();
        } else if self.sending.include_usage {
            piece["usage"] = Value::Null;
        }
        piece
    }

    fn body(&self, object: &str, fingerprint: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint,
            "choices": choices,
        })
    }
}

fn data(value: &Value) -> Result<SseEvent, Infallible> {
    Ok(SseEvent::default().data(value.to_string()))
}

pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// What has come so far, by choice.
struct Assembly<'a, F> {
    reply: &'a Reply<F>,
    choices: BTreeMap<u32, Choice>,
    /// Of the one prompt, where they stand beside the choices, and are asked for.
    prompt_ids: Option<Vec<u32>>,
    /// Of each prompt, its text and the bytes of its first token, where answers begin with it.
    echoes: Vec<(String, Vec<u8>)>,
    fingerprint: String,
    /// Indices of choices with something new, in the order in which it came.
    news: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct Choice {
    part: Part,
    /// After the tokens that were sent.
    place: TextPlace,
    /// Nothing is sent before this many of the prompt's logprobs have come.
    scores_awaited: usize,
    usage: v1::Usage,
}

impl<'a, F: Form> Assembly<'a, F> {
    fn new(reply: &'a Reply<F>) -> Self {
        Self {
            reply,
            choices: BTreeMap::new(),
            prompt_ids: None,
            echoes: vec![Default::default(); reply.prompts.len()],
            fingerprint: String::new(),
            news: VecDeque::new(),
        }
    }

    fn take(&mut self, prompt: u32, response: v1::GenerateResponse) {
        let index = prompt * self.reply.num_choices + response.choice;
        match response.event {
            Some(Event::Started(started)) => self.start(prompt, index, started),
            Some(Event::PromptScores(scores)) => self.add_scores(prompt, scores),
            Some(Event::Chunk(chunk)) => {
                let choice = self.choices.entry(index).or_default();
                choice.usage.completion_tokens += chunk.tokens.len() as u32;
                choice.part.text += &chunk.text;
                if self.reply.form.tells_tokens() {
                    choice.part.tokens.extend(chunk.tokens.into_iter().map(Spelled::from));
                }
                self.news.push_back(index);
            }
            Some(Event::Finished(finished)) => {
                let choice = self.choices.entry(index).or_default();
                choice.part.text += &finished.text;
                choice.part.finish_reason = Some(reason(&finished));
                choice.usage = finished.usage.unwrap_or_default();
                self.news.push_back(index);
            }
            None => {}
        }
    }

    fn start(&mut self, prompt: u32, index: u32, started: v1::Started) {
        let form = &self.reply.form;
        let is_first = self.choices.is_empty();
        let descriptor = started.descriptor.unwrap_or_default();
        self.fingerprint = descriptor
            .numerics_id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut choice = Choice {
            part: form.opening().unwrap_or_default(),
            ..Choice::default()
        };
        choice.usage.prompt_tokens = descriptor.prompt_token_ids.len() as u32;
        if form.awaits_scores() {
            choice.scores_awaited = descriptor.prompt_token_ids.len() - 1;
        }
        if form.echoes() {
            let echo = &mut self.echoes[prompt as usize];
            // Only the first choice is told the bytes.
            if let Some(first) = started.prompt_token_bytes.first() {
                let as_sent = self.reply.prompts[prompt as usize].clone();
                let spelled = || text(&started.prompt_token_bytes.concat());
                *echo = (as_sent.unwrap_or_else(spelled), first.clone());
            }
            choice.part.text = echo.0.clone();
            if form.awaits_scores() {
                choice.part.tokens.push(Spelled {
                    id: descriptor.prompt_token_ids.first().copied().unwrap_or_default(),
                    bytes: echo.1.clone(),
                    is_prompt: true,
                    ..Spelled::default()
                });
            }
        }
        if self.reply.sending.return_token_ids {
            match form.has_prompt_ids() {
                true => choice.part.prompt_ids = Some(descriptor.prompt_token_ids),
                false if is_first => self.prompt_ids = Some(descriptor.prompt_token_ids),
                false => {}
            }
        }
        self.choices.insert(index, choice);
        self.news.push_back(index);
    }

    /// They are those of the prompt's every choice.
    fn add_scores(&mut self, prompt: u32, scores: v1::PromptScores) {
        let first = prompt * self.reply.num_choices;
        let scored: Vec<Spelled> = scores.tokens.into_iter().map(Spelled::from).collect();
        for index in first..first + self.reply.num_choices {
            let choice = self.choices.entry(index).or_default();
            choice.scores_awaited = choice.scores_awaited.saturating_sub(scored.len());
            if self.reply.form.awaits_scores() {
                let at = choice.part.tokens.iter().take_while(|token| token.is_prompt).count();
                choice.part.tokens.splice(at..at, scored.iter().cloned());
                self.news.push_back(index);
            }
        }
    }

    /// What of a choice has not been sent, and where its first token stands.
    fn next_piece(&mut self) -> Option<(u32, Part, TextPlace)> {
        while let Some(index) = self.news.pop_front() {
            let Some(choice) = self.choices.get_mut(&index) else {
                continue;
            };
            if choice.part.is_empty() || choice.scores_awaited > 0 {
                continue;
            }
            let part = std::mem::take(&mut choice.part);
            let place = choice.place.clone();
            choice.place.pass_all(&part.tokens);
            return Some((index, part, place));
        }
        None
    }

    fn usage(&self) -> Value {
        let of_prompts = self
            .choices
            .iter()
            .filter(|(index, _)| *index % self.reply.num_choices == 0);
        let (prompt, cached) = of_prompts.fold((0, 0), |(prompt, cached), (_, choice)| {
            (prompt + choice.usage.prompt_tokens, cached + choice.usage.cached_tokens)
        });
        let completion: u32 = self.choices.values().map(|choice| choice.usage.completion_tokens).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }
}

fn reason(finished: &v1::Finished) -> &'static str {
    match finished.reason() {
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::Length => "length",
        // What vLLM calls it.
        v1::FinishReason::Cancelled => "abort",
        v1::FinishReason::Unspecified => "unknown",
    }
}
