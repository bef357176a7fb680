//! A client's sampling values: what is left open resolved, the rest checked, in the ranges of vLLM and OpenAI.

use std::ops::RangeInclusive;

use kvasir_kv::{LOGIT_BIASES_MAX, Sampling, TOP_LOGPROBS_MAX, TokenId};
use kvasir_proto::{convert, v1};
use uuid::Uuid;

use crate::intake::{RequestError, out_of_range};

const TEMPERATURE_MAX: f32 = 100.0;
const PENALTIES: RangeInclusive<f32> = -2.0..=2.0;
const BIASES: RangeInclusive<f32> = -100.0..=100.0;

/// Every value that the client has left open is decided here, the seed at random.
pub fn resolve(sampling: v1::SamplingParams, constraint: Option<v1::Constraint>) -> Sampling {
    let default = Sampling::default();
    Sampling {
        temperature: sampling.temperature.unwrap_or(default.temperature),
        top_k: sampling.top_k.unwrap_or(default.top_k),
        top_p: sampling.top_p.unwrap_or(default.top_p),
        min_p: sampling.min_p.unwrap_or(default.min_p),
        repetition_penalty: sampling.repetition_penalty.unwrap_or(default.repetition_penalty),
        presence_penalty: sampling.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: sampling.frequency_penalty.unwrap_or(default.frequency_penalty),
        logit_bias: by_token(sampling.logit_bias),
        seed: sampling.seed.unwrap_or_else(random_seed),
        choice: sampling.choice,
        top_logprobs: sampling.top_logprobs,
        constraint: constraint.and_then(convert::parse_constraint),
    }
}

/// The values of an answer that was begun.
pub fn of_descriptor(descriptor: &v1::ResumeDescriptor) -> Sampling {
    Sampling {
        temperature: descriptor.temperature,
        top_k: descriptor.top_k,
        top_p: descriptor.top_p,
        min_p: descriptor.min_p,
        repetition_penalty: descriptor.repetition_penalty,
        presence_penalty: descriptor.presence_penalty,
        frequency_penalty: descriptor.frequency_penalty,
        logit_bias: by_token(descriptor.logit_bias.clone()),
        seed: descriptor.seed,
        choice: descriptor.choice,
        top_logprobs: descriptor.top_logprobs,
        constraint: descriptor.constraint.clone().and_then(convert::parse_constraint),
    }
}

/// 64 random bits. A UUID has 122 of them; its fixed bits fall on different places of the two halves here.
pub fn random_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

fn by_token(biases: Vec<v1::LogitBias>) -> Vec<(TokenId, f32)> {
    let mut biases: Vec<_> = biases.into_iter().map(|bias| (TokenId(bias.id), bias.bias)).collect();
    biases.sort_by_key(|(token, _)| *token);
    biases
}

/// NaN is in no range.
pub fn check(sampling: Sampling, vocab_size: usize) -> Result<Sampling, RequestError> {
    check_range("temperature", sampling.temperature, 0.0..=TEMPERATURE_MAX)?;
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(out_of_range("top_p", sampling.top_p, "above 0, at most 1"));
    }
    check_range("min_p", sampling.min_p, 0.0..=1.0)?;
    let repetition_penalty = sampling.repetition_penalty;
    if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
        let expected = "a finite number above 0";
        return Err(out_of_range("repetition_penalty", repetition_penalty, expected));
    }
    check_range("presence_penalty", sampling.presence_penalty, PENALTIES)?;
    check_range("frequency_penalty", sampling.frequency_penalty, PENALTIES)?;
    check_biases(&sampling.logit_bias, vocab_size)?;
    check_top("top_logprobs", sampling.top_logprobs)?;
    Ok(sampling)
}

pub fn check_top(what: &'static str, top: u32) -> Result<(), RequestError> {
    match top {
        0..=TOP_LOGPROBS_MAX => Ok(()),
        _ => Err(out_of_range(what, top, format!("at most {TOP_LOGPROBS_MAX}"))),
    }
}

fn check_range(what: &'static str, found: f32, range: RangeInclusive<f32>) -> Result<(), RequestError> {
    if range.contains(&found) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(out_of_range(what, found, expected))
}

/// biases: by token.
fn check_biases(biases: &[(TokenId, f32)], vocab_size: usize) -> Result<(), RequestError> {
    if biases.len() > LOGIT_BIASES_MAX {
        let expected = format!("at most {LOGIT_BIASES_MAX}");
        return Err(out_of_range("number of logit biases", biases.len(), expected));
    }
    for (token, bias) in biases {
        check_range("a logit bias", *bias, BIASES)?;
        check_in_vocabulary("logit_bias", token.0, vocab_size)?;
    }
    let twice = biases.windows(2).find(|pair| pair[0].0 == pair[1].0);
    twice.map_or(Ok(()), |pair| Err(RequestError::BiasedTwice { token: pair[0].0.0 }))
}

pub fn check_in_vocabulary(what: &'static str, token: u32, vocab_size: usize) -> Result<(), RequestError> {
    match token as usize >= vocab_size {
        true => Err(RequestError::NoSuchToken {
            what,
            token,
            vocab_size,
        }),
        false => Ok(()),
    }
}
