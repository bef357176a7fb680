//! Where a client's request is checked, once: what comes out is a `kvasir_kv::Request` that nothing behind it doubts.
//!
//! Everything left open by the client is resolved here (seed, limits, stop tokens), so that the resume descriptor
//! determines the answer.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use kvasir_kv::{NumericsId, PromptLogprobs, Request, RequestId, Sampling, TenantId, TokenId};
use kvasir_model::{ChatTemplate, ChatTemplateError, ConstraintError, Constraints, Tokenizer, TokenizerError};
use kvasir_proto::{convert, v1};
use uuid::Uuid;

use crate::{
    chat_prompt,
    sampling_params::{self, check_in_vocabulary, check_top},
    spelling::Spelling,
};

const REQUEST_ID_BYTES_MAX: usize = 128;
const TENANT_BYTES_MAX: usize = 128;
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;
const STOP_TOKENS_MAX: usize = 128;
const CHOICES_MAX: u32 = 128;

/// What is wrong with a request, with the values that make it so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    #[error("a request needs one of text, token_ids, chat or resume")]
    NoPrompt,
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("token {token} at prompt position {position} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        token: u32,
        position: usize,
        vocab_size: usize,
    },
    #[error("token {token} of {what} is not in the vocabulary of {vocab_size}")]
    NoSuchToken {
        what: &'static str,
        token: u32,
        vocab_size: usize,
    },
    #[error("token {token} has two logit biases; each token may have one")]
    BiasedTwice { token: u32 },
    #[error("n is {n}, with a resume descriptor; each choice is resumed alone, by its own descriptor and without n")]
    ResumedTogether { n: u32 },
    #[error("n is {n} and choice is {choice}; several answers are the choices from 0 on, one answer may be any choice")]
    ChoiceOfMany { n: u32, choice: u32 },
    #[error("message {position} has role {role:?}; roles are system, developer, user, assistant and tool")]
    Role { position: usize, role: String },
    #[error("{what} is no JSON {expected}: {found}")]
    NotJson {
        what: &'static str,
        expected: &'static str,
        found: String,
    },
    #[error("{what} is {found}; expected {expected}")]
    OutOfRange {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error("{prompt_len} prompt tokens and max_tokens {max_tokens} exceed the context of {context_len} tokens")]
    TooLong {
        prompt_len: u32,
        max_tokens: u32,
        context_len: u32,
    },
    #[error("{prompt_len} prompt tokens leave no room for an answer in the context of {context_len} tokens")]
    PromptTooLong { prompt_len: u64, context_len: u32 },
    #[error("request id {outer:?} is not the {descriptor:?} of the resume descriptor")]
    OtherRequestId { outer: String, descriptor: String },
    #[error("the request was begun with numerics_id {found}, this cluster has {expected}: the rest could differ")]
    OtherNumerics { found: String, expected: NumericsId },
    #[error("the deadline passed {late_ms} ms ago")]
    DeadlinePassed { late_ms: u64 },
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    #[error(
        "a constraint ends its answer with the end-of-sequence token, which ignore_eos ignores; leave one of them out"
    )]
    EndlessConstraint,
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl RequestError {
    /// The field that is wrong, if it is one.
    pub fn field(&self) -> Option<String> {
        let field = match self {
            Self::NoPrompt | Self::EmptyPrompt | Self::UnknownToken { .. } => "prompt",
            Self::TooLong { .. } | Self::PromptTooLong { .. } => "prompt",
            Self::NoSuchToken { what, .. } | Self::NotJson { what, .. } => what,
            Self::BiasedTwice { .. } => "logit_bias",
            Self::ResumedTogether { .. } | Self::ChoiceOfMany { .. } => "n",
            Self::Role { position, .. } => return Some(format!("messages[{position}].role")),
            Self::OutOfRange { what, .. } => field_of(what),
            Self::Constraint(_) | Self::EndlessConstraint => "constraint",
            Self::OtherRequestId { .. }
            | Self::OtherNumerics { .. }
            | Self::DeadlinePassed { .. }
            | Self::ChatTemplate(_)
            | Self::Tokenizer(_) => return None,
        };
        Some(field.to_owned())
    }
}

/// Of what is out of range: a field, or the number or the length of something in it.
fn field_of(what: &'static str) -> &'static str {
    match what {
        "a logit bias" | "number of logit biases" => "logit_bias",
        "number of stop strings" | "length of a stop string in bytes" => "stop",
        _ => {
            let what = what
                .strip_prefix("number of ")
                .or(what.strip_prefix("length of "))
                .unwrap_or(what);
            what.strip_suffix(" in bytes").unwrap_or(what)
        }
    }
}

pub(crate) fn out_of_range(what: &'static str, found: impl ToString, expected: impl Into<String>) -> RequestError {
    RequestError::OutOfRange {
        what,
        found: found.to_string(),
        expected: expected.into(),
    }
}

/// A request as it goes to the machine, and what its stream needs besides.
#[derive(Clone, PartialEq, Debug)]
pub struct Accepted {
    pub request: Request,
    pub stop: Vec<String>,
    pub deadline_unix_ms: Option<u64>,
    pub resumed: bool,
    /// The stream tells what bytes tokens stand for.
    pub token_bytes: bool,
    num_choices: u32,
    numerics_id: NumericsId,
}

impl Accepted {
    /// The answers that are wanted.
    pub fn choices(&self) -> impl Iterator<Item = u32> {
        let first = self.request.sampling.choice;
        (0..self.num_choices).map(move |nth| first + nth)
    }

    /// What was accepted for one of them alone.
    pub fn nth_choice(&self, nth: u32) -> Self {
        Self {
            request: self.request.nth_choice(nth),
            num_choices: 1,
            ..self.clone()
        }
    }

    /// All that determines the answer.
    pub fn descriptor(&self) -> v1::ResumeDescriptor {
        let ids = |tokens: &[TokenId]| tokens.iter().map(|token| token.0).collect();
        let (request, sampling) = (&self.request, &self.request.sampling);
        v1::ResumeDescriptor {
            request_id: request.id.0.clone(),
            prompt_token_ids: ids(&request.prompt),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling
                .logit_bias
                .iter()
                .map(|(token, bias)| v1::LogitBias {
                    id: token.0,
                    bias: *bias,
                })
                .collect(),
            prompt_logprobs: request.prompt_logprobs.map(|wanted| wanted.top),
            constraint: sampling.constraint.clone().map(convert::constraint),
            seed: sampling.seed,
            choice: sampling.choice,
            top_logprobs: sampling.top_logprobs,
            max_tokens: request.max_tokens,
            stop_token_ids: ids(&request.stop_tokens),
            stop: self.stop.clone(),
            deadline_unix_ms: self.deadline_unix_ms.unwrap_or(0),
            numerics_id: self.numerics_id.0.to_vec(),
            tenant: request.tenant.0.clone(),
            priority: request.priority,
        }
    }
}

/// The values that a request is checked against.
#[derive(Debug)]
pub struct Intake {
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    /// Made when the first constraint comes.
    constraints: OnceLock<Result<Constraints, ConstraintError>>,
    bos_token: Option<TokenId>,
    context_len: u32,
    numerics_id: NumericsId,
    timeout: Duration,
}

impl Intake {
    /// `bos_token` begins every text prompt; `timeout` holds where a client names none.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        chat_template: Option<ChatTemplate>,
        bos_token: Option<TokenId>,
        context_len: u32,
        numerics_id: NumericsId,
        timeout: Duration,
    ) -> Self {
        Self {
            tokenizer,
            chat_template,
            constraints: OnceLock::new(),
            bos_token,
            context_len,
            numerics_id,
            timeout,
        }
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub fn context_len(&self) -> u32 {
        self.context_len
    }

    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// Takes milliseconds for a long text.
    pub fn accept(&self, request: v1::GenerateRequest, now_unix_ms: u64) -> Result<Accepted, RequestError> {
        use v1::generate_request::Prompt;
        check_request_id(&request.request_id)?;
        let prompt = match request.prompt.clone().ok_or(RequestError::NoPrompt)? {
            Prompt::Resume(resume) => {
                if let Some(n) = request.n {
                    return Err(RequestError::ResumedTogether { n });
                }
                return self.accept_resume(&request.request_id, resume, request.token_bytes, now_unix_ms);
            }
            Prompt::Text(text) => self.encode_text(&text)?,
            Prompt::TokenIds(tokens) => self.check_tokens(&tokens.ids)?,
            Prompt::Chat(chat) => self.encode_chat(&chat)?,
        };
        let timeout = check_timeout(request.timeout_ms)?.unwrap_or(self.timeout);
        let prompt_logprobs = check_prompt_logprobs(request.prompt_logprobs)?;
        let sampling = request.sampling.unwrap_or_default();
        let stop_tokens = self.stop_tokens(request.ignore_eos, &sampling.stop_token_ids)?;
        let max_tokens_min = if prompt_logprobs.is_some() && request.n.unwrap_or(1) == 1 {
            0
        } else {
            1
        };
        Ok(Accepted {
            stop: check_stop(request.stop)?,
            num_choices: check_choices(request.n, sampling.choice)?,
            deadline_unix_ms: Some(now_unix_ms.saturating_add(timeout.as_millis() as u64)),
            resumed: false,
            token_bytes: request.token_bytes,
            numerics_id: self.numerics_id,
            request: Request {
                id: name_or_new(request.request_id),
                max_tokens: self.check_lengths(&prompt, request.max_tokens, max_tokens_min)?,
                prompt_logprobs,
                prompt,
                generated: Vec::new(),
                sampling: self.check_sampling(sampling_params::resolve(sampling, request.constraint), &stop_tokens)?,
                stop_tokens,
                tenant: check_tenant(request.tenant)?,
                priority: request.priority,
            },
        })
    }

    fn accept_resume(
        &self,
        name: &str,
        resume: v1::Resume,
        token_bytes: bool,
        now_unix_ms: u64,
    ) -> Result<Accepted, RequestError> {
        let descriptor = resume
            .descriptor
            .ok_or_else(|| out_of_range("resume.descriptor", "absent", "the one that the stream began with"))?;
        check_request_id(&descriptor.request_id)?;
        if !name.is_empty() && name != descriptor.request_id {
            return Err(RequestError::OtherRequestId {
                outer: name.to_owned(),
                descriptor: descriptor.request_id,
            });
        }
        self.check_numerics(&descriptor.numerics_id)?;
        let deadline_unix_ms = Some(descriptor.deadline_unix_ms).filter(|&deadline| deadline > 0);
        check_deadline(deadline_unix_ms, now_unix_ms)?;
        let prompt = self.check_tokens(&descriptor.prompt_token_ids)?;
        let generated = self.check_known(&resume.received_token_ids)?;
        let prompt_logprobs = check_received(
            check_prompt_logprobs(descriptor.prompt_logprobs)?,
            resume.received_prompt_logprobs,
            prompt.len() as u32 - 1,
            !generated.is_empty(),
        )?;
        let max_tokens_min = if prompt_logprobs.is_some() { 0 } else { 1 };
        let max_tokens = self.check_lengths(&prompt, Some(descriptor.max_tokens), max_tokens_min)?;
        if generated.len() > max_tokens as usize {
            let expected = format!("at most max_tokens, {max_tokens}");
            return Err(out_of_range("number of received_token_ids", generated.len(), expected));
        }
        let stop_tokens = self.check_stop_tokens(&descriptor.stop_token_ids)?;
        let sampling = self.check_sampling(sampling_params::of_descriptor(&descriptor), &stop_tokens)?;
        Ok(Accepted {
            stop: check_stop(descriptor.stop)?,
            num_choices: 1,
            deadline_unix_ms,
            resumed: true,
            token_bytes,
            numerics_id: self.numerics_id,
            request: Request {
                id: name_or_new(descriptor.request_id),
                prompt,
                generated,
                sampling,
                max_tokens,
                prompt_logprobs,
                stop_tokens,
                tenant: check_tenant(descriptor.tenant)?,
                priority: descriptor.priority,
            },
        })
    }

    pub fn tokenize(&self, request: &v1::TokenizeRequest) -> Result<v1::TokenizeResponse, RequestError> {
        let tokens = match &request.chat {
            Some(chat) => self.encode_chat(chat)?,
            None => self.tokenizer.encode(&request.text, !request.plain)?,
        };
        let spelling = Spelling::new(Some(self.tokenizer.clone()));
        Ok(v1::TokenizeResponse {
            token_bytes: spelling.all(&tokens),
            token_ids: tokens.into_iter().map(|token| token.0).collect(),
        })
    }

    pub fn detokenize(&self, ids: &[u32]) -> Result<String, RequestError> {
        Ok(self.tokenizer.decode(&self.check_known(ids)?, false))
    }

    /// A text prompt's tokens, with what begins every prompt.
    fn encode_text(&self, text: &str) -> Result<Vec<TokenId>, RequestError> {
        if text.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let mut tokens = self.tokenizer.encode(text, true)?;
        if let Some(bos) = self.bos_token.filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        // A text of bytes that the vocabulary has no token for.
        if tokens.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        Ok(tokens)
    }

    /// The prompt that the checkpoint's template makes of a chat.
    pub fn encode_chat(&self, chat: &v1::Chat) -> Result<Vec<TokenId>, RequestError> {
        let template = self.chat_template.as_ref().ok_or(ChatTemplateError::Missing)?;
        self.encode_text(&chat_prompt::render(template, chat)?)
    }

    /// A constraint is compiled once here, so that no rank finds out that it cannot be.
    fn check_sampling(&self, sampling: Sampling, stop_tokens: &[TokenId]) -> Result<Sampling, RequestError> {
        let sampling = sampling_params::check(sampling, self.vocab_size())?;
        if let Some(constraint) = &sampling.constraint {
            let constraints = self.constraints.get_or_init(|| Constraints::new(&self.tokenizer));
            let constraints = constraints.as_ref().map_err(Clone::clone)?;
            constraints.compile(constraint)?.allowed()?;
            if !self.tokenizer.eos_ids().iter().any(|end| stop_tokens.contains(end)) {
                return Err(RequestError::EndlessConstraint);
            }
        }
        Ok(sampling)
    }

    fn check_tokens(&self, ids: &[u32]) -> Result<Vec<TokenId>, RequestError> {
        if ids.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        self.check_known(ids)
    }

    /// The model's own end, unless it is ignored, and what the client names besides.
    fn stop_tokens(&self, ignore_eos: bool, named: &[u32]) -> Result<Vec<TokenId>, RequestError> {
        if named.len() > STOP_TOKENS_MAX {
            let expected = format!("at most {STOP_TOKENS_MAX}");
            return Err(out_of_range("number of stop_token_ids", named.len(), expected));
        }
        let mut tokens = match ignore_eos {
            true => Vec::new(),
            false => self.tokenizer.eos_ids().to_vec(),
        };
        tokens.extend(self.check_stop_tokens(named)?);
        Ok(tokens)
    }

    fn check_stop_tokens(&self, ids: &[u32]) -> Result<Vec<TokenId>, RequestError> {
        let check = |&id| check_in_vocabulary("stop_token_ids", id, self.vocab_size()).map(|()| TokenId(id));
        ids.iter().map(check).collect()
    }

    fn check_known(&self, ids: &[u32]) -> Result<Vec<TokenId>, RequestError> {
        let vocab_size = self.vocab_size();
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(ids.iter().copied().map(TokenId).collect()),
            Some(position) => Err(RequestError::UnknownToken {
                token: ids[position],
                position,
                vocab_size,
            }),
        }
    }

    /// The resolved `max_tokens`. Where none are asked for, the prompt may fill the context.
    fn check_lengths(
        &self,
        prompt: &[TokenId],
        max_tokens: Option<u32>,
        max_tokens_min: u32,
    ) -> Result<u32, RequestError> {
        let context_len = self.context_len;
        let needed = max_tokens.unwrap_or(1).min(1);
        let prompt_len = match u32::try_from(prompt.len()) {
            Ok(len) if len.saturating_add(needed) <= context_len => len,
            _ => {
                let prompt_len = prompt.len() as u64;
                return Err(RequestError::PromptTooLong {
                    prompt_len,
                    context_len,
                });
            }
        };
        match max_tokens {
            None => Ok(context_len - prompt_len),
            Some(0) if max_tokens_min > 0 => {
                let expected = "1 or more; 0 only with prompt_logprobs and one choice";
                Err(out_of_range("max_tokens", 0, expected))
            }
            Some(max_tokens) if max_tokens > context_len - prompt_len => Err(RequestError::TooLong {
                prompt_len,
                max_tokens,
                context_len,
            }),
            Some(max_tokens) => Ok(max_tokens),
        }
    }

    fn check_numerics(&self, found: &[u8]) -> Result<(), RequestError> {
        if found == self.numerics_id.0 {
            return Ok(());
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Err(RequestError::OtherNumerics {
            found: hex(&found[..found.len().min(16)]),
            expected: self.numerics_id,
        })
    }
}

fn name_or_new(name: String) -> RequestId {
    RequestId(if name.is_empty() {
        Uuid::new_v4().to_string()
    } else {
        name
    })
}

fn check_request_id(name: &str) -> Result<(), RequestError> {
    if name.len() > REQUEST_ID_BYTES_MAX {
        let expected = format!("at most {REQUEST_ID_BYTES_MAX}");
        return Err(out_of_range("length of request_id in bytes", name.len(), expected));
    }
    Ok(())
}

fn check_tenant(name: String) -> Result<TenantId, RequestError> {
    if name.len() > TENANT_BYTES_MAX {
        let expected = format!("at most {TENANT_BYTES_MAX}");
        return Err(out_of_range("length of tenant in bytes", name.len(), expected));
    }
    Ok(TenantId(name))
}

fn check_stop(stop: Vec<String>) -> Result<Vec<String>, RequestError> {
    if stop.len() > STOPS_MAX {
        let expected = format!("at most {STOPS_MAX}");
        return Err(out_of_range("number of stop strings", stop.len(), expected));
    }
    for text in &stop {
        if text.is_empty() || text.len() > STOP_BYTES_MAX {
            let expected = format!("1 to {STOP_BYTES_MAX}");
            return Err(out_of_range("length of a stop string in bytes", text.len(), expected));
        }
    }
    Ok(stop)
}

fn check_choices(n: Option<u32>, choice: u32) -> Result<u32, RequestError> {
    match n {
        None | Some(1) => Ok(1),
        Some(n @ 2..=CHOICES_MAX) if choice == 0 => Ok(n),
        Some(n @ 2..=CHOICES_MAX) => Err(RequestError::ChoiceOfMany { n, choice }),
        Some(n) => Err(out_of_range("n", n, format!("1 to {CHOICES_MAX}"))),
    }
}

fn check_prompt_logprobs(top: Option<u32>) -> Result<Option<PromptLogprobs>, RequestError> {
    let wanted = |top| check_top("prompt_logprobs", top).map(|()| PromptLogprobs { top, received: 0 });
    top.map(wanted).transpose()
}

/// `all`: positions of the prompt that have logprobs.
fn check_received(
    wanted: Option<PromptLogprobs>,
    received: u32,
    all: u32,
    has_tokens: bool,
) -> Result<Option<PromptLogprobs>, RequestError> {
    let (least, most) = match &wanted {
        None => (0, 0),
        Some(_) if has_tokens => (all, all),
        Some(_) => (0, all),
    };
    if !(least..=most).contains(&received) {
        let expected = format!("{least} to {most}: all of the prompt's come before the first token");
        return Err(out_of_range("received_prompt_logprobs", received, expected));
    }
    Ok(wanted.map(|wanted| PromptLogprobs { received, ..wanted }))
}

fn check_timeout(timeout_ms: Option<u64>) -> Result<Option<Duration>, RequestError> {
    match timeout_ms {
        Some(0) => Err(out_of_range("timeout_ms", 0, "1 or more")),
        timeout_ms => Ok(timeout_ms.map(Duration::from_millis)),
    }
}

fn check_deadline(deadline_unix_ms: Option<u64>, now_unix_ms: u64) -> Result<(), RequestError> {
    match deadline_unix_ms.filter(|&deadline| deadline <= now_unix_ms) {
        None => Ok(()),
        Some(deadline) => Err(RequestError::DeadlinePassed {
            late_ms: now_unix_ms - deadline,
        }),
    }
}
