//! A refusal as a response: a gRPC status in the headers, or HTTP with the error that OpenAI's clients read.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use tonic::{Code, Status, metadata::MetadataValue};

use super::{guard::Denied, guarded_body::GuardedBody};
use crate::{
    refusals::Refusal,
    status_metadata::{ERROR_NAME, RETRY_AFTER_MS},
};

/// How it is told.
struct Kind {
    code: Code,
    status: StatusCode,
    /// `kvasir-error`, and the code that OpenAI's clients know where there is one.
    name: &'static str,
    error_type: &'static str,
    error_code: &'static str,
}

fn kind(refusal: Refusal) -> Kind {
    match refusal {
        Refusal::OverLimit => Kind {
            code: Code::ResourceExhausted,
            status: StatusCode::TOO_MANY_REQUESTS,
            name: "over_limit",
            error_type: "rate_limit_error",
            error_code: "rate_limit_exceeded",
        },
        Refusal::NotAllowed | Refusal::OtherIdentity => Kind {
            code: Code::PermissionDenied,
            status: StatusCode::FORBIDDEN,
            name: "not_allowed",
            error_type: "invalid_request_error",
            error_code: "not_allowed",
        },
        _ => Kind {
            code: Code::Unauthenticated,
            status: StatusCode::UNAUTHORIZED,
            name: "unauthenticated",
            error_type: "invalid_request_error",
            error_code: "invalid_api_key",
        },
    }
}

pub(super) fn response<B>(denied: &Denied, request: &HeaderMap) -> Response<GuardedBody<B>> {
    let kind = kind(denied.refusal);
    let content_type = request.get(CONTENT_TYPE).map_or(b"".as_slice(), HeaderValue::as_bytes);
    match content_type.starts_with(b"application/grpc") {
        true => grpc(denied, &kind),
        false => http(denied, &kind),
    }
}

fn grpc<B>(denied: &Denied, kind: &Kind) -> Response<GuardedBody<B>> {
    let mut status = Status::new(kind.code, denied.message.clone());
    let metadata = status.metadata_mut();
    metadata.insert(ERROR_NAME, MetadataValue::from_static(kind.name));
    if let Some(wait) = denied.retry_after {
        metadata.insert(RETRY_AFTER_MS, MetadataValue::from(retry_ms(wait)));
    }
    status.into_http::<GuardedBody<B>>()
}

fn http<B>(denied: &Denied, kind: &Kind) -> Response<GuardedBody<B>> {
    let error = serde_json::json!({
        "error": {
            "message": denied.message,
            "type": kind.error_type,
            "param": null,
            "code": kind.error_code,
        }
    });
    let mut response = Response::new(GuardedBody::whole(Bytes::from(error.to_string())));
    *response.status_mut() = kind.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if kind.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = denied.retry_after {
        let ms = retry_ms(wait);
        headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
    }
    response
}

/// Never 0: that would be at once.
fn retry_ms(wait: std::time::Duration) -> u64 {
    (wait.as_millis() as u64).max(1)
}
