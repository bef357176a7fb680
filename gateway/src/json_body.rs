//! The body of a request, whole, within a bound of size and of time.

use std::time::Duration;

use axum::body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::{ApiError, fields::Fields};

/// A prompt of a million tokens in words, or of half a million as ids; what the service behind takes in one message.
const BODY_BYTES_MAX: usize = 4 << 20;
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Errors if it is too large, too slow, broken, or no JSON object.
pub async fn read(body: Body) -> Result<Fields, ApiError> {
    let limited = Limited::new(body, BODY_BYTES_MAX).collect();
    let read = tokio::time::timeout(BODY_DEADLINE, limited).await;
    let read = read.map_err(|_| ApiError::body_too_slow(BODY_DEADLINE))?;
    let bytes = read.map_err(|error| match error.is::<LengthLimitError>() {
        true => ApiError::body_too_large(BODY_BYTES_MAX),
        false => ApiError::invalid(format!("The body of the request could not be read: {error}.")),
    })?;
    Fields::of_body(&bytes.to_bytes())
}
