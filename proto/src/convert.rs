//! `Cluster.Join` messages to and from the domain types of `kvasir_kv`.

mod transfer;

use std::ops::Range;

use kvasir_kv as kv;

use crate::{CLUSTER_PROTOCOL_VERSION, v1};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvertError {
    #[error("message without `{field}`")]
    Missing { field: &'static str },
    #[error("`{field}` is {found}; expected {expected}")]
    Bad {
        field: &'static str,
        found: String,
        expected: &'static str,
    },
    #[error("peer speaks cluster protocol version {found}, this build speaks {CLUSTER_PROTOCOL_VERSION}")]
    Version { found: u32 },
}

/// What arrives from a worker: its hello first, then messages.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    Hello(kv::WorkerInfo),
    Message(kv::FromWorker),
    /// Its last words: it goes to another coordinator.
    Superseded(v1::Superseded),
}

pub fn superseded(by: v1::Superseded) -> v1::FromWorker {
    wrap(v1::from_worker::Message::Superseded(by))
}

pub fn hello(info: &kv::WorkerInfo) -> v1::FromWorker {
    wrap(v1::from_worker::Message::Hello(v1::WorkerHello {
        worker_id: info.id.0.clone(),
        pid: info.pid,
        address: info.address.clone(),
        host: info.host.clone(),
        numerics_id: info.numerics_id.0.to_vec(),
        term_max: info.term_max,
        weight: info.weight,
        threads: info.threads,
        backend: info.backend.clone(),
        kv_memory_bytes: info.kv_memory_bytes,
        block_size: info.block_size,
        kv_dtype: info.kv_dtype.name().to_owned(),
        transfer_address: info.transfer_address.clone(),
        protocol_version: CLUSTER_PROTOCOL_VERSION,
    }))
}

pub fn from_worker(message: kv::FromWorker) -> v1::FromWorker {
    use v1::from_worker::Message;
    wrap(match message {
        kv::FromWorker::EndpointReady { epoch, endpoint } => Message::EndpointReady(v1::EndpointReady {
            epoch: epoch_id(epoch),
            endpoint,
        }),
        kv::FromWorker::EpochReady { epoch, load } => Message::EpochReady(v1::EpochReady {
            epoch: epoch_id(epoch),
            units_loaded: load.units_loaded,
            units_kept: load.units_kept,
            weight_bytes: load.weight_bytes,
            load_ms: load.load_ms,
        }),
        kv::FromWorker::StepDone { epoch, step, output } => {
            let output = output.map(|output| v1::StepOutput {
                sampled: output.sampled.into_iter().map(sampled).collect(),
                scored: output.scored.into_iter().map(scored).collect(),
                poisoned: output.poisoned.into_iter().map(|sequence| sequence.0).collect(),
                compute_us: output.times.compute_us,
                reduce_us: output.times.reduce_us,
                total_us: output.times.total_us,
            });
            Message::StepDone(v1::StepDone {
                epoch: epoch_id(epoch),
                step: step.0,
                output,
            })
        }
        kv::FromWorker::EpochFailed { epoch, reason, missing } => Message::EpochFailed(v1::EpochFailed {
            epoch: epoch_id(epoch),
            reason,
            missing_ranks: missing.into_iter().map(|rank| rank.0).collect(),
        }),
        kv::FromWorker::CellsArrived { .. } | kv::FromWorker::TransferFailed { .. } => return transfer::news(message),
        kv::FromWorker::Leaving => Message::Leaving(v1::Leaving {}),
        kv::FromWorker::Heartbeat(progress) => Message::Heartbeat(v1::Heartbeat {
            epoch: epoch_id(progress.epoch),
            steps_done: progress.steps_done,
            collectives_entered: progress.collectives_entered,
        }),
    })
}

pub fn to_worker(message: kv::ToWorker) -> v1::ToWorker {
    use v1::to_worker::Message;
    let message = match message {
        kv::ToWorker::FormEpoch(spec) => Message::FormEpoch(form_epoch(&spec)),
        kv::ToWorker::PrepareEpoch(spec) => Message::PrepareEpoch(form_epoch(&spec)),
        kv::ToWorker::SwitchEpoch { epoch, held } => Message::SwitchEpoch(v1::SwitchEpoch {
            epoch: epoch_id(epoch),
            held: held.into_iter().map(|block| block.0).collect(),
        }),
        kv::ToWorker::Released => Message::Released(v1::Released {}),
        kv::ToWorker::DropEpoch { epoch } => Message::DropEpoch(v1::DropEpoch { epoch: epoch_id(epoch) }),
        kv::ToWorker::ConnectEpoch { epoch, endpoints } => Message::ConnectEpoch(v1::ConnectEpoch {
            epoch: epoch_id(epoch),
            endpoints,
        }),
        kv::ToWorker::Step(plan) => Message::Step(v1::StepPlan {
            traceparent: String::new(),
            epoch: epoch_id(plan.epoch),
            step: plan.step.0,
            admitted: plan.admitted.into_iter().map(admitted).collect(),
            work: plan.work.into_iter().map(work).collect(),
            retired: plan.retired.into_iter().map(|sequence| sequence.0).collect(),
            adopted: transfer::adopted(&plan.adopted),
        }),
        kv::ToWorker::SendCells(cells) => Message::SendCells(transfer::cells_out(cells)),
        kv::ToWorker::ReceiveCells(cells) => Message::ReceiveCells(transfer::cells_in(cells)),
        kv::ToWorker::EndTransfer { transfer } => Message::EndTransfer(v1::EndTransfer { transfer: transfer.0 }),
        kv::ToWorker::AbortEpoch { epoch } => Message::AbortEpoch(v1::AbortEpoch { epoch: epoch_id(epoch) }),
        kv::ToWorker::Refuse { kind, reason } => Message::Refuse(v1::Refuse {
            reason,
            kind: refusal_kind(kind).into(),
        }),
    };
    v1::ToWorker { message: Some(message) }
}

pub fn parse_from_worker(message: v1::FromWorker) -> Result<Arrival, ConvertError> {
    use v1::from_worker::Message;
    Ok(Arrival::Message(
        match message.message.ok_or(ConvertError::Missing { field: "message" })? {
            Message::Hello(hello) => return parse_hello(hello).map(Arrival::Hello),
            Message::Superseded(by) => return Ok(Arrival::Superseded(by)),
            Message::EndpointReady(ready) => kv::FromWorker::EndpointReady {
                epoch: parse_epoch(ready.epoch)?,
                endpoint: ready.endpoint,
            },
            Message::EpochReady(ready) => kv::FromWorker::EpochReady {
                epoch: parse_epoch(ready.epoch)?,
                load: kv::LoadReport {
                    units_loaded: ready.units_loaded,
                    units_kept: ready.units_kept,
                    weight_bytes: ready.weight_bytes,
                    load_ms: ready.load_ms,
                },
            },
            Message::StepDone(done) => {
                let (epoch, step) = (parse_epoch(done.epoch)?, kv::StepId(done.step));
                let output = done
                    .output
                    .map(|output| parse_output(epoch, step, output))
                    .transpose()?;
                kv::FromWorker::StepDone { epoch, step, output }
            }
            Message::EpochFailed(failed) => kv::FromWorker::EpochFailed {
                epoch: parse_epoch(failed.epoch)?,
                reason: failed.reason,
                missing: failed.missing_ranks.into_iter().map(kv::Rank).collect(),
            },
            Message::CellsArrived(arrived) => transfer::parse_arrived(arrived)?,
            Message::TransferFailed(failed) => transfer::parse_failed(failed)?,
            Message::Leaving(v1::Leaving {}) => kv::FromWorker::Leaving,
            Message::Heartbeat(beat) => kv::FromWorker::Heartbeat(kv::Progress {
                epoch: parse_epoch(beat.epoch)?,
                steps_done: beat.steps_done,
                collectives_entered: beat.collectives_entered,
            }),
        },
    ))
}

pub fn parse_to_worker(message: v1::ToWorker) -> Result<kv::ToWorker, ConvertError> {
    use v1::to_worker::Message;
    Ok(
        match message.message.ok_or(ConvertError::Missing { field: "message" })? {
            Message::FormEpoch(form) => kv::ToWorker::FormEpoch(parse_form_epoch(form)?),
            Message::PrepareEpoch(form) => kv::ToWorker::PrepareEpoch(parse_form_epoch(form)?),
            Message::SwitchEpoch(switch) => kv::ToWorker::SwitchEpoch {
                epoch: parse_epoch(switch.epoch)?,
                held: switch.held.into_iter().map(kv::BlockId).collect(),
            },
            Message::Released(v1::Released {}) => kv::ToWorker::Released,
            Message::SetLogFilter(_) => {
                return Err(ConvertError::Bad {
                    field: "message",
                    found: "a log filter".to_owned(),
                    expected: "something for a rank",
                });
            }
            Message::DropEpoch(drop) => kv::ToWorker::DropEpoch {
                epoch: parse_epoch(drop.epoch)?,
            },
            Message::ConnectEpoch(connect) => kv::ToWorker::ConnectEpoch {
                epoch: parse_epoch(connect.epoch)?,
                endpoints: connect.endpoints,
            },
            Message::Step(plan) => kv::ToWorker::Step(kv::StepPlan {
                epoch: parse_epoch(plan.epoch)?,
                step: kv::StepId(plan.step),
                admitted: plan
                    .admitted
                    .into_iter()
                    .map(parse_admitted)
                    .collect::<Result<_, _>>()?,
                work: plan.work.into_iter().map(parse_work).collect::<Result<_, _>>()?,
                retired: plan.retired.into_iter().map(kv::SequenceId).collect(),
                adopted: transfer::parse_adopted(&plan.adopted)?,
            }),
            Message::SendCells(cells) => kv::ToWorker::SendCells(transfer::parse_cells_out(cells)?),
            Message::ReceiveCells(cells) => kv::ToWorker::ReceiveCells(transfer::parse_cells_in(cells)?),
            Message::EndTransfer(end) => kv::ToWorker::EndTransfer {
                transfer: kv::TransferId(end.transfer),
            },
            Message::AbortEpoch(abort) => kv::ToWorker::AbortEpoch {
                epoch: parse_epoch(abort.epoch)?,
            },
            Message::Refuse(refuse) => kv::ToWorker::Refuse {
                kind: parse_refusal_kind(refuse.kind())?,
                reason: refuse.reason,
            },
        },
    )
}

fn form_epoch(spec: &kv::EpochSpec) -> v1::FormEpoch {
    v1::FormEpoch {
        group: spec.group.0,
        epoch: epoch_id(spec.epoch),
        rank: spec.rank.0,
        transport: match spec.transport {
            kv::Transport::Solo => v1::Transport::Solo,
            kv::Transport::SharedMemory => v1::Transport::SharedMemory,
            kv::Transport::Tcp => v1::Transport::Tcp,
        }
        .into(),
        nonce: spec.nonce,
        shares: spec.shares.iter().map(share).collect(),
        num_blocks: spec.num_blocks,
        block_size: spec.block_size,
        step_tokens_max: spec.step_tokens_max,
    }
}

fn parse_form_epoch(form: v1::FormEpoch) -> Result<kv::EpochSpec, ConvertError> {
    Ok(kv::EpochSpec {
        transport: parse_transport(form.transport)?,
        group: kv::GroupId(form.group),
        epoch: parse_epoch(form.epoch)?,
        rank: kv::Rank(form.rank),
        nonce: form.nonce,
        shares: form.shares.into_iter().map(parse_share).collect::<Result<_, _>>()?,
        num_blocks: form.num_blocks,
        block_size: form.block_size,
        step_tokens_max: form.step_tokens_max,
    })
}

fn wrap(message: v1::from_worker::Message) -> v1::FromWorker {
    v1::FromWorker { message: Some(message) }
}

fn epoch_id(epoch: kv::Epoch) -> Option<v1::EpochId> {
    Some(v1::EpochId {
        term: epoch.term,
        number: epoch.number,
    })
}

fn parse_epoch(epoch: Option<v1::EpochId>) -> Result<kv::Epoch, ConvertError> {
    let epoch = epoch.ok_or(ConvertError::Missing { field: "epoch" })?;
    Ok(kv::Epoch {
        term: epoch.term,
        number: epoch.number,
    })
}

/// A numerics id from its 16 bytes.
pub fn parse_numerics_id(bytes: &[u8]) -> Result<kv::NumericsId, ConvertError> {
    let found = || format!("{} bytes", bytes.len());
    let id = bytes.try_into();
    id.map(kv::NumericsId).map_err(|_| ConvertError::Bad {
        field: "numerics_id",
        found: found(),
        expected: "16 bytes",
    })
}

fn parse_hello(hello: v1::WorkerHello) -> Result<kv::WorkerInfo, ConvertError> {
    if hello.protocol_version != CLUSTER_PROTOCOL_VERSION {
        return Err(ConvertError::Version {
            found: hello.protocol_version,
        });
    }
    if hello.worker_id.is_empty() {
        return Err(ConvertError::Missing { field: "worker_id" });
    }
    if !(hello.weight.is_finite() && hello.weight > 0.0) {
        let found = hello.weight.to_string();
        return Err(ConvertError::Bad {
            field: "weight",
            found,
            expected: "a finite number above 0",
        });
    }
    Ok(kv::WorkerInfo {
        numerics_id: parse_numerics_id(&hello.numerics_id)?,
        id: kv::WorkerId(hello.worker_id),
        pid: hello.pid,
        address: hello.address,
        host: hello.host,
        term_max: hello.term_max,
        weight: hello.weight,
        threads: hello.threads,
        backend: hello.backend,
        kv_memory_bytes: hello.kv_memory_bytes,
        block_size: hello.block_size,
        kv_dtype: parse_kv_dtype(&hello.kv_dtype)?,
        transfer_address: hello.transfer_address,
    })
}

fn parse_kv_dtype(name: &str) -> Result<kv::KvDtype, ConvertError> {
    name.parse().map_err(|_| ConvertError::Bad {
        field: "kv_dtype",
        found: name.to_owned(),
        expected: "f32 or f16",
    })
}

fn refusal_kind(kind: kv::RefusalKind) -> v1::RefusalKind {
    match kind {
        kv::RefusalKind::BlockSize => v1::RefusalKind::BlockSize,
        kv::RefusalKind::KvDtype => v1::RefusalKind::KvDtype,
        kv::RefusalKind::Numerics => v1::RefusalKind::Numerics,
    }
}

fn parse_refusal_kind(kind: v1::RefusalKind) -> Result<kv::RefusalKind, ConvertError> {
    match kind {
        v1::RefusalKind::BlockSize => Ok(kv::RefusalKind::BlockSize),
        v1::RefusalKind::KvDtype => Ok(kv::RefusalKind::KvDtype),
        v1::RefusalKind::Numerics => Ok(kv::RefusalKind::Numerics),
        v1::RefusalKind::Unspecified => Err(ConvertError::Missing { field: "kind" }),
    }
}

fn parse_transport(transport: i32) -> Result<kv::Transport, ConvertError> {
    match v1::Transport::try_from(transport) {
        Ok(v1::Transport::Solo) => Ok(kv::Transport::Solo),
        Ok(v1::Transport::SharedMemory) => Ok(kv::Transport::SharedMemory),
        Ok(v1::Transport::Tcp) => Ok(kv::Transport::Tcp),
        _ => Err(ConvertError::Bad {
            field: "transport",
            found: transport.to_string(),
            expected: "solo, shared memory or tcp",
        }),
    }
}

fn share(share: &kv::RankShare) -> v1::RankShare {
    let span = |range: &Range<u32>| {
        Some(v1::UnitSpan {
            begin: range.start,
            end: range.end,
        })
    };
    v1::RankShare {
        attention: span(&share.attention),
        ffn: span(&share.ffn),
        vocab: span(&share.vocab),
    }
}

fn parse_share(share: v1::RankShare) -> Result<kv::RankShare, ConvertError> {
    Ok(kv::RankShare {
        attention: parse_span(share.attention, "attention")?,
        ffn: parse_span(share.ffn, "ffn")?,
        vocab: parse_span(share.vocab, "vocab")?,
    })
}

fn parse_span(span: Option<v1::UnitSpan>, field: &'static str) -> Result<Range<u32>, ConvertError> {
    let span = span.ok_or(ConvertError::Missing { field })?;
    if span.begin > span.end {
        let found = format!("{}..{}", span.begin, span.end);
        return Err(ConvertError::Bad {
            field,
            found,
            expected: "a range that ends after it begins",
        });
    }
    Ok(span.begin..span.end)
}

fn admitted(admitted: kv::AdmittedSequence) -> v1::AdmittedSequence {
    let sampling = admitted.sampling;
    let (bias_ids, biases) = sampling
        .logit_bias
        .into_iter()
        .map(|(token, bias)| (token.0, bias))
        .unzip();
    v1::AdmittedSequence {
        sequence: admitted.sequence.0,
        tokens: admitted.tokens.into_iter().map(|token| token.0).collect(),
        prompt_len: admitted.prompt_len,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        bias_ids,
        biases,
        seed: sampling.seed,
        choice: sampling.choice,
        top_logprobs: sampling.top_logprobs,
        prompt_top_logprobs: admitted.prompt_top_logprobs,
        constraint: sampling.constraint.map(constraint),
    }
}

pub fn constraint(constraint: kv::Constraint) -> v1::Constraint {
    use v1::constraint::Kind;
    let kind = match constraint {
        kv::Constraint::JsonSchema(schema) => Kind::JsonSchema(schema.to_string()),
        kv::Constraint::Regex(regex) => Kind::Regex(regex.to_string()),
        kv::Constraint::Lark(grammar) => Kind::Lark(grammar.to_string()),
    };
    v1::Constraint { kind: Some(kind) }
}

/// None if it says nothing.
pub fn parse_constraint(constraint: v1::Constraint) -> Option<kv::Constraint> {
    use v1::constraint::Kind;
    Some(match constraint.kind? {
        Kind::JsonSchema(schema) => kv::Constraint::JsonSchema(schema.into()),
        Kind::Regex(regex) => kv::Constraint::Regex(regex.into()),
        Kind::Lark(grammar) => kv::Constraint::Lark(grammar.into()),
    })
}

fn parse_admitted(admitted: v1::AdmittedSequence) -> Result<kv::AdmittedSequence, ConvertError> {
    let (bias_ids, biases) = (admitted.bias_ids, admitted.biases);
    if bias_ids.len() != biases.len() {
        return Err(ConvertError::Bad {
            field: "biases",
            found: format!("{} ids and {} biases", bias_ids.len(), biases.len()),
            expected: "one bias per id",
        });
    }
    Ok(kv::AdmittedSequence {
        sequence: kv::SequenceId(admitted.sequence),
        tokens: admitted.tokens.into_iter().map(kv::TokenId).collect(),
        prompt_len: admitted.prompt_len,
        sampling: kv::Sampling {
            temperature: admitted.temperature,
            top_k: admitted.top_k,
            top_p: admitted.top_p,
            min_p: admitted.min_p,
            repetition_penalty: admitted.repetition_penalty,
            presence_penalty: admitted.presence_penalty,
            frequency_penalty: admitted.frequency_penalty,
            logit_bias: bias_ids.into_iter().map(kv::TokenId).zip(biases).collect(),
            seed: admitted.seed,
            choice: admitted.choice,
            top_logprobs: admitted.top_logprobs,
            constraint: admitted.constraint.and_then(parse_constraint),
        },
        prompt_top_logprobs: admitted.prompt_top_logprobs,
    })
}

fn work(work: kv::SequenceWork) -> v1::SequenceWork {
    v1::SequenceWork {
        sequence: work.sequence.0,
        start: work.start,
        num_tokens: work.num_tokens,
        new_blocks: work
            .new_blocks
            .iter()
            .flat_map(|block| [block.id.0, block.tag.0])
            .collect(),
        samples: work.samples,
        scored_begin: work.scored.start,
        scored_end: work.scored.end,
    }
}

fn parse_work(work: v1::SequenceWork) -> Result<kv::SequenceWork, ConvertError> {
    if !work.new_blocks.len().is_multiple_of(2) {
        let found = format!("{} numbers", work.new_blocks.len());
        return Err(ConvertError::Bad {
            field: "new_blocks",
            found,
            expected: "id and tag by turns",
        });
    }
    let tagged = |pair: &[u32]| kv::TaggedBlock {
        id: kv::BlockId(pair[0]),
        tag: kv::BlockTag(pair[1]),
    };
    Ok(kv::SequenceWork {
        sequence: kv::SequenceId(work.sequence),
        start: work.start,
        num_tokens: work.num_tokens,
        new_blocks: work.new_blocks.chunks_exact(2).map(tagged).collect(),
        samples: work.samples,
        scored: work.scored_begin..work.scored_end,
    })
}

fn sampled(sampled: kv::SampledToken) -> v1::SampledToken {
    let (top_ids, top_logprobs) = sampled
        .top_logprobs
        .into_iter()
        .map(|(token, logprob)| (token.0, logprob))
        .unzip();
    v1::SampledToken {
        sequence: sampled.sequence.0,
        token: sampled.token.0,
        logprob: sampled.logprob,
        top_ids,
        top_logprobs,
    }
}

fn scored(scored: kv::ScoredPrompt) -> v1::ScoredPrompt {
    let top = scored.logprobs.iter().flat_map(|scored| &scored.top_logprobs);
    let (top_ids, top_logprobs) = top.map(|(token, logprob)| (token.0, *logprob)).unzip();
    v1::ScoredPrompt {
        sequence: scored.sequence.0,
        start: scored.start,
        logprobs: scored.logprobs.iter().map(|scored| scored.logprob).collect(),
        top_ids,
        top_logprobs,
    }
}

fn parse_scored(scored: v1::ScoredPrompt) -> Result<kv::ScoredPrompt, ConvertError> {
    let (num_scored, num_ids, num_top) = (scored.logprobs.len(), scored.top_ids.len(), scored.top_logprobs.len());
    if num_ids != num_top || num_ids > 0 && (num_scored == 0 || !num_ids.is_multiple_of(num_scored)) {
        return Err(ConvertError::Bad {
            field: "top_logprobs",
            found: format!("{num_ids} ids and {num_top} logprobs for {num_scored} positions"),
            expected: "one logprob per id, and as many for each position",
        });
    }
    let mut top = scored.top_ids.into_iter().map(kv::TokenId).zip(scored.top_logprobs);
    let of_each = num_ids.checked_div(num_scored).unwrap_or(0);
    let mut logprob = |logprob| kv::PromptLogprob {
        logprob,
        top_logprobs: top.by_ref().take(of_each).collect(),
    };
    Ok(kv::ScoredPrompt {
        sequence: kv::SequenceId(scored.sequence),
        start: scored.start,
        logprobs: scored.logprobs.into_iter().map(&mut logprob).collect(),
    })
}

fn parse_output(epoch: kv::Epoch, step: kv::StepId, output: v1::StepOutput) -> Result<kv::StepOutput, ConvertError> {
    let times = kv::StepTimes {
        compute_us: output.compute_us,
        reduce_us: output.reduce_us,
        total_us: output.total_us,
    };
    Ok(kv::StepOutput {
        epoch,
        step,
        sampled: output
            .sampled
            .into_iter()
            .map(parse_sampled)
            .collect::<Result<_, _>>()?,
        scored: output.scored.into_iter().map(parse_scored).collect::<Result<_, _>>()?,
        poisoned: output.poisoned.into_iter().map(kv::SequenceId).collect(),
        times,
    })
}

fn parse_sampled(sampled: v1::SampledToken) -> Result<kv::SampledToken, ConvertError> {
    if sampled.top_ids.len() != sampled.top_logprobs.len() {
        let found = format!(
            "{} ids and {} logprobs",
            sampled.top_ids.len(),
            sampled.top_logprobs.len()
        );
        return Err(ConvertError::Bad {
            field: "top_logprobs",
            found,
            expected: "one logprob per id",
        });
    }
    Ok(kv::SampledToken {
        sequence: kv::SequenceId(sampled.sequence),
        token: kv::TokenId(sampled.token),
        logprob: sampled.logprob,
        top_logprobs: sampled
            .top_ids
            .into_iter()
            .map(kv::TokenId)
            .zip(sampled.top_logprobs)
            .collect(),
    })
}

#[cfg(test)]
mod tests;
