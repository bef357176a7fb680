//! Errors as gRPC statuses. Every one carries `kvasir-error`, the name of what happened: a client that sees an error
//! without it knows that the connection broke, and may resume.

use std::time::Duration;

use kvasir_kv::{FinishReason, WorkerId};
use kvasir_runtime::{
    logging::FilterError,
    registry::records::LeaderRecord,
    status_metadata::{ERROR_NAME, NO_LEADER, NOT_LEADER, PARAM, RETRY_AFTER_MS},
    tls::Identity,
};
use tonic::{Code, Status, metadata::MetadataValue};

use super::tensors::InferError;
use crate::{
    MigrationError, ReshardError, SequenceError, driver::ShuttingDown, intake::RequestError, lead::WayError,
    running_requests::AlreadyRunning,
};

/// A place in the queue comes free when some sequence ends: seconds, not milliseconds.
const QUEUE_RETRY_MS: u64 = 1000;
const SHUTDOWN_RETRY_MS: u64 = 500;

pub fn sequence_error(error: &SequenceError) -> Status {
    let (code, name, retry_ms) = match error {
        SequenceError::Unavailable { .. } => (Code::Unavailable, "unavailable", None),
        SequenceError::QueueFull { .. } => (Code::ResourceExhausted, "queue_full", Some(QUEUE_RETRY_MS)),
        SequenceError::QueueTokens { .. } => (Code::ResourceExhausted, "queue_full", Some(QUEUE_RETRY_MS)),
        SequenceError::QueueWait { .. } => (Code::ResourceExhausted, "queue_wait", Some(QUEUE_RETRY_MS)),
        SequenceError::TooFewBlocks { .. } => (Code::ResourceExhausted, "too_few_blocks", None),
        SequenceError::TooLong { .. } => (Code::InvalidArgument, "too_long", None),
        SequenceError::Empty { .. } => (Code::InvalidArgument, "empty", None),
        SequenceError::Duplicate(_) => (Code::AlreadyExists, "duplicate", None),
        SequenceError::Numerical { .. } => return numerical(&error.to_string()),
    };
    status(code, name, error.to_string(), retry_ms)
}

pub fn bad_log_filter(error: &FilterError) -> Status {
    status(Code::InvalidArgument, "bad_log_filter", error.to_string(), None)
}

pub fn migration_error(error: &MigrationError) -> Status {
    let (code, name) = match error {
        MigrationError::UnknownRequest(_) | MigrationError::UnknownSequence(_) => (Code::NotFound, "unknown_request"),
        MigrationError::UnknownGroup { .. } => (Code::NotFound, "unknown_group"),
        MigrationError::NotServing(_) | MigrationError::NoOtherGroup => (Code::FailedPrecondition, "not_serving"),
        MigrationError::UnderWay(_) | MigrationError::Resharding(_) => (Code::FailedPrecondition, "under_way"),
        MigrationError::NoPlace { .. } | MigrationError::TooSmall(_) => (Code::FailedPrecondition, "no_room"),
        MigrationError::NoTransfers(_) => (Code::FailedPrecondition, "no_transfers"),
    };
    status(code, name, error.to_string(), None)
}

pub fn unknown_worker(worker: &WorkerId) -> Status {
    let message = format!("no worker `{worker}` is here; `kvasir status` lists those that are");
    status(Code::NotFound, "unknown_worker", message, None)
}

pub fn reshard_error(error: &ReshardError) -> Status {
    let (code, name) = match error {
        ReshardError::UnknownGroup { .. } => (Code::NotFound, "unknown_group"),
        ReshardError::NoRanks => (Code::InvalidArgument, "no_ranks"),
        ReshardError::NotServing(_) => (Code::FailedPrecondition, "not_serving"),
        ReshardError::UnderWay(_) => (Code::FailedPrecondition, "under_way"),
        ReshardError::TooFewWorkers { .. } => (Code::FailedPrecondition, "too_few_workers"),
        ReshardError::AsItIs { .. } => (Code::FailedPrecondition, "as_it_is"),
        ReshardError::Impossible(_) | ReshardError::TooSmall(_) => (Code::FailedPrecondition, "no_room"),
        ReshardError::NoTransfers(_) => (Code::FailedPrecondition, "no_transfers"),
    };
    status(code, name, error.to_string(), None)
}

/// Endings that are no answer are errors.
pub fn check_finished(reason: FinishReason) -> Result<(), Status> {
    match reason {
        FinishReason::Stop | FinishReason::Length | FinishReason::Cancelled => Ok(()),
        FinishReason::Numerical => Err(numerical(
            "a sum left the range of the exact reduce, or a constraint could not be followed",
        )),
        FinishReason::Deadline => Err(deadline("the request's deadline passed".to_owned())),
    }
}

pub fn request_error(error: &RequestError) -> Status {
    let (code, name) = match error {
        RequestError::OtherNumerics { .. } => (Code::FailedPrecondition, "other_numerics"),
        RequestError::DeadlinePassed { .. } => (Code::DeadlineExceeded, "deadline"),
        RequestError::TooLong { .. } | RequestError::PromptTooLong { .. } => (Code::InvalidArgument, "too_long"),
        RequestError::Constraint(_) | RequestError::EndlessConstraint => (Code::InvalidArgument, "invalid_constraint"),
        RequestError::Tokenizer(_) => (Code::Internal, "tokenizer"),
        _ => (Code::InvalidArgument, "invalid_request"),
    };
    let mut status = status(code, name, error.to_string(), None);
    if let Some(field) = error.field().and_then(|field| MetadataValue::try_from(field).ok()) {
        status.metadata_mut().insert(PARAM, field);
    }
    status
}

pub fn infer_error(error: &InferError) -> Status {
    status(Code::InvalidArgument, "invalid_request", error.to_string(), None)
}

pub fn no_such_model(name: &str, version: &str, served: &[String]) -> Status {
    let version = if version.is_empty() {
        String::new()
    } else {
        format!(", version {version:?},")
    };
    let message = format!(
        "model {name:?}{version} is not served here; served is {}",
        served.join(", ")
    );
    status(Code::NotFound, "no_such_model", message, None)
}

pub fn already_running(error: AlreadyRunning) -> Status {
    status(Code::AlreadyExists, "already_running", error.to_string(), None)
}

pub fn shutting_down(error: ShuttingDown) -> Status {
    status(
        Code::Unavailable,
        "shutting_down",
        error.to_string(),
        Some(SHUTDOWN_RETRY_MS),
    )
}

/// Workers are to go to whoever leads.
pub fn not_leader(leader: Option<&LeaderRecord>) -> Status {
    let leader = match leader {
        Some(leader) => format!("{} does, at {}, term {}", leader.name, leader.url, leader.term),
        None => "nobody is known to".to_owned(),
    };
    let message = format!("this coordinator does not lead; {leader}");
    status(Code::FailedPrecondition, NOT_LEADER, message, None)
}

/// To another coordinator, which handed a request on.
pub fn leads_not(leader: &LeaderRecord) -> Status {
    let message = format!(
        "this coordinator does not lead; {} does, at {}",
        leader.name, leader.url
    );
    status(Code::Unavailable, NO_LEADER, message, Some(SHUTDOWN_RETRY_MS))
}

pub fn no_leader(waited: Duration) -> Status {
    let message = format!("no coordinator has led for {} s; try again", waited.as_secs());
    status(Code::Unavailable, NO_LEADER, message, Some(SHUTDOWN_RETRY_MS))
}

/// The leader is known, and does not answer.
pub fn leader_unreachable(error: &WayError) -> Status {
    status(Code::Unavailable, NO_LEADER, error.to_string(), Some(SHUTDOWN_RETRY_MS))
}

pub fn internal(what: &str) -> Status {
    status(Code::Internal, "internal", what.to_owned(), None)
}

/// A worker's first message is not a hello, or cannot be read.
pub fn bad_hello(why: String) -> Status {
    status(Code::InvalidArgument, "bad_hello", why, None)
}

/// A worker says that it is another one than its certificate says.
pub fn other_identity(worker: &WorkerId, identity: &Identity) -> Status {
    let message = format!("worker `{worker}` shows a certificate of {identity}");
    status(Code::PermissionDenied, "other_identity", message, None)
}

/// A descriptor that somebody else's answer began with.
pub fn not_own(owner: &str) -> Status {
    let message = format!("the descriptor is not of an answer to `{owner}`");
    status(Code::PermissionDenied, "not_own", message, None)
}

/// Not a fault of what the worker said: it may try again.
pub fn no_hello(waited: Duration) -> Status {
    let message = format!("no hello within {} s", waited.as_secs());
    status(Code::DeadlineExceeded, "no_hello", message, None)
}

fn numerical(message: &str) -> Status {
    status(Code::DataLoss, "numerical", format!("NUMERICAL: {message}"), None)
}

fn deadline(message: String) -> Status {
    status(Code::DeadlineExceeded, "deadline", message, None)
}

fn status(code: Code, name: &'static str, message: String, retry_ms: Option<u64>) -> Status {
    let mut status = Status::new(code, message);
    status
        .metadata_mut()
        .insert(ERROR_NAME, MetadataValue::from_static(name));
    if let Some(retry_ms) = retry_ms {
        status
            .metadata_mut()
            .insert(RETRY_AFTER_MS, MetadataValue::from(retry_ms));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let status = sequence_error(&SequenceError::QueueFull {
            waiting: 9,
            queue_max: 9,
            num_choices: 1,
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get(RETRY_AFTER_MS).unwrap(), "1000");
        assert!(status.message().contains('9'));
    }

    #[test]
    fn a_numerical_failure_is_named() {
        for status in [
            sequence_error(&SequenceError::Numerical { index: 3 }),
            check_finished(FinishReason::Numerical).unwrap_err(),
        ] {
            assert_eq!(status.code(), Code::DataLoss);
            assert!(status.message().starts_with("NUMERICAL"));
        }
    }
}
