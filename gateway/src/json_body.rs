//! The body of a request, whole, within a bound of size and of time.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;

use crate::{ApiError, fields::Fields};

/// A prompt of a million tokens in words, or of half a million as ids; what the service behind takes in one message.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Of a body that is too large: many clients read no response before they have sent all of it.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Errors if it is too large, too slow, broken, or no JSON object.
pub async fn read(body: Body) -> Result<Fields, ApiError> {
    let read = tokio::time::timeout(BODY_DEADLINE, read_bytes(body)).await;
    let bytes = read.map_err(|_| ApiError::body_too_slow(BODY_DEADLINE))??;
    Fields::of_body(&bytes)
}

async fn read_bytes(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut len) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let broken = |error| ApiError::invalid(format!("The body of the request could not be read: {error}."));
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        len += data.len();
        if len <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if len > DISCARDED_BYTES_MAX {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    match len > BODY_BYTES_MAX {
        true => Err(ApiError::body_too_large(BODY_BYTES_MAX)),
        false => Ok(bytes),
    }
}
