//! What is said survives the wire, and what makes no sense is refused by field.

use super::*;

fn epoch() -> kv::Epoch {
    kv::Epoch { term: 3, number: 9 }
}

#[test]
fn a_step_plan_survives_the_wire() {
    let plan = kv::ToWorker::Step(kv::StepPlan {
        epoch: epoch(),
        step: kv::StepId(4),
        admitted: vec![kv::AdmittedSequence {
            sequence: kv::SequenceId(1),
            tokens: vec![kv::TokenId(5), kv::TokenId(6)],
            prompt_len: 1,
            sampling: kv::Sampling {
                temperature: 0.5,
                seed: u64::MAX,
                top_logprobs: 3,
                min_p: 0.25,
                repetition_penalty: 1.5,
                presence_penalty: -0.5,
                frequency_penalty: 0.75,
                logit_bias: vec![(kv::TokenId(3), -100.0), (kv::TokenId(4), 0.1)],
                constraint: Some(kv::Constraint::Regex("[a-z]+".into())),
                ..Default::default()
            },
            prompt_top_logprobs: 7,
        }],
        work: vec![kv::SequenceWork {
            sequence: kv::SequenceId(1),
            start: 0,
            num_tokens: 2,
            new_blocks: vec![kv::TaggedBlock {
                id: kv::BlockId(7),
                tag: kv::BlockTag(8),
            }],
            samples: true,
            scored: 1..2,
        }],
        retired: vec![kv::SequenceId(2)],
        adopted: vec![kv::AdoptedBlock {
            block: kv::TaggedBlock {
                id: kv::BlockId(9),
                tag: kv::BlockTag(3),
            },
            written: 11,
        }],
    });
    assert_eq!(parse_to_worker(to_worker(plan.clone())), Ok(plan));
}

#[test]
fn an_output_survives_the_wire_bit_for_bit() {
    let message = kv::FromWorker::StepDone {
        epoch: epoch(),
        step: kv::StepId(4),
        output: Some(kv::StepOutput {
            epoch: epoch(),
            step: kv::StepId(4),
            sampled: vec![kv::SampledToken {
                sequence: kv::SequenceId(1),
                token: kv::TokenId(5),
                logprob: -f32::MIN_POSITIVE / 3.0,
                top_logprobs: vec![(kv::TokenId(5), -0.1), (kv::TokenId(9), -3.0)],
            }],
            scored: vec![kv::ScoredPrompt {
                sequence: kv::SequenceId(2),
                start: 4,
                logprobs: [-0.3, -f32::MIN_POSITIVE / 5.0]
                    .map(|logprob| kv::PromptLogprob {
                        logprob,
                        top_logprobs: vec![(kv::TokenId(1), -0.2), (kv::TokenId(2), logprob)],
                    })
                    .to_vec(),
            }],
            poisoned: vec![kv::SequenceId(8)],
            times: kv::StepTimes {
                compute_us: 1,
                reduce_us: 2,
                total_us: 3,
            },
        }),
    };
    assert_eq!(
        parse_from_worker(from_worker(message.clone())),
        Ok(Arrival::Message(message))
    );
}

#[test]
fn malformed_messages_are_refused_by_field() {
    let bad = v1::ToWorker {
        message: Some(v1::to_worker::Message::Step(v1::StepPlan {
            epoch: epoch_id(epoch()),
            work: vec![v1::SequenceWork {
                new_blocks: vec![1],
                ..Default::default()
            }],
            ..Default::default()
        })),
    };
    assert!(matches!(
        parse_to_worker(bad),
        Err(ConvertError::Bad {
            field: "new_blocks",
            ..
        })
    ));
    let uneven = v1::ScoredPrompt {
        logprobs: vec![-1.0, -2.0],
        top_ids: vec![1, 2, 3],
        top_logprobs: vec![-1.0, -2.0, -3.0],
        ..Default::default()
    };
    assert!(matches!(
        parse_scored(uneven),
        Err(ConvertError::Bad {
            field: "top_logprobs",
            ..
        })
    ));
    let unbiased = v1::AdmittedSequence {
        bias_ids: vec![1],
        ..Default::default()
    };
    assert!(matches!(
        parse_admitted(unbiased),
        Err(ConvertError::Bad { field: "biases", .. })
    ));
    assert_eq!(
        parse_to_worker(v1::ToWorker { message: None }),
        Err(ConvertError::Missing { field: "message" })
    );
    let old = v1::WorkerHello {
        protocol_version: 0,
        ..Default::default()
    };
    assert_eq!(parse_hello(old), Err(ConvertError::Version { found: 0 }));
}
