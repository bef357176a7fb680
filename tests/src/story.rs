//! One answer of the default model, 64 tokens long, with a checked-in digest: for tests that let something happen while
//! it is being told.

use kvasir_proto::v1::{self, generate_request::Prompt};

use crate::cluster_sandbox::GrpcAnswer;

const PROMPT: &str = "Once upon a time, in a small village by the sea,";
pub const TOKENS: u32 = 64;
/// Of the undisturbed answer: tokens and logprob bits.
const DIGEST: &str = "f03a16f946693de5f1da74a55c252c45";

pub fn request() -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Prompt::Text(PROMPT.to_owned())),
        sampling: Some(v1::SamplingParams {
            top_logprobs: 2,
            ..Default::default()
        }),
        max_tokens: Some(TOKENS),
        ignore_eos: true,
        ..Default::default()
    }
}

/// # Panics
/// If this is not the undisturbed answer, to the bit.
pub fn assert_undisturbed(answer: &GrpcAnswer, what: &str) {
    assert_eq!(crate::parity::digest(&answer.to_parity()), DIGEST, "{what}");
}
