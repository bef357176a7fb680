//! Errors as OpenAI's server writes them: `{"error": {"message", "type", "param", "code"}}` and a status.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use kvasir_client::{error_name, retry_after};
use kvasir_runtime::status_metadata::{PARAM, RETRY_AFTER_MS};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Of a path, in an error.
const PATH_CHARS_MAX: usize = 200;

/// One error, on its way to a client.
#[derive(Clone, PartialEq, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The client's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub fn missing(param: &str) -> Self {
        Self::invalid(format!("Missing required parameter: '{param}'."))
            .with_param(param)
            .with_code("missing_required_parameter")
    }

    pub fn unknown(param: &str) -> Self {
        Self::invalid(format!("Unknown parameter: '{param}'."))
            .with_param(param)
            .with_code("unknown_parameter")
    }

    pub fn unsupported(param: &str, why: &str) -> Self {
        Self::invalid(format!("Unsupported parameter: '{param}' {why}."))
            .with_param(param)
            .with_code("unsupported_parameter")
    }

    pub fn wrong_type(param: &str, expected: &str, found: &Value) -> Self {
        let found = type_name(found);
        Self::invalid(format!(
            "Invalid type for '{param}': expected {expected}, but got {found} instead."
        ))
        .with_param(param)
        .with_code("invalid_type")
    }

    pub fn wrong_value(param: &str, why: impl std::fmt::Display) -> Self {
        Self::invalid(format!("Invalid value for '{param}': {why}."))
            .with_param(param)
            .with_code("invalid_value")
    }

    pub fn no_such_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
            .with_param("model")
            .with_code("model_not_found")
    }

    /// This door stands before coordinators elsewhere.
    pub fn no_cluster_here() -> Self {
        let message = "This gateway shows no cluster; ask the coordinator's own HTTP door.";
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).with_code("no_cluster_here")
    }

    pub fn no_such_path(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(PATH_CHARS_MAX).collect();
        let message = format!("Invalid URL ({method} {path})");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Method not allowed: {method} {path}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message).with_code("method_not_allowed")
    }

    pub fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("The body of the request is larger than {bytes_max} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).with_code("request_too_large")
    }

    pub fn body_too_slow(deadline: Duration) -> Self {
        let message = format!("The body of the request did not come within {} s.", deadline.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message).with_code("request_timeout")
    }

    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// A field that the service calls otherwise than OpenAI, by its name there.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Some(param) = &mut self.param {
            for (ours, theirs) in names {
                if param == ours {
                    (*theirs).clone_into(param);
                    break;
                }
            }
        }
        self
    }

    fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    pub fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let message = status.message();
        let error = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => {
                let param = status.metadata().get(PARAM).and_then(|param| param.to_str().ok());
                let error = Self::invalid(message);
                let error = match param {
                    Some(param) => error.with_param(param),
                    None => error,
                };
                match error_name(&status) {
                    Some("too_long") => error.with_code("context_length_exceeded"),
                    _ => error,
                }
            }
            Code::FailedPrecondition => Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message),
            Code::AlreadyExists => Self::new(StatusCode::CONFLICT, "invalid_request_error", message),
            Code::NotFound => Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message),
            Code::Unauthenticated => {
                Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message).with_code("invalid_api_key")
            }
            Code::PermissionDenied => {
                Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message).with_code("forbidden")
            }
            Code::ResourceExhausted => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).with_code("rate_limit_exceeded")
            }
            Code::DeadlineExceeded => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).with_code("timeout")
            }
            Code::Unavailable => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).with_code("service_unavailable")
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).with_code("server_error"),
        };
        Self {
            retry_after: retry_after(&status),
            ..error
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            // OpenAI's clients read the first, everybody else the second, in whole seconds.
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(wait.as_millis() as u64));
            let seconds = wait.as_millis().div_ceil(1000) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT].contains(&self.status) {
            // The rest of the body is not read, so nothing can follow it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// With its article.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_openais_four_fields() {
        let error = ApiError::wrong_type("temperature", "a decimal", &json!("hot"));
        assert_eq!(
            error.body(),
            json!({"error": {
                "message": "Invalid type for 'temperature': expected a decimal, but got a string instead.",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "invalid_type",
            }})
        );
        assert!(ApiError::invalid("no").body()["error"]["code"].is_null());
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let mut status = Status::resource_exhausted("full");
        status.metadata_mut().insert("retry-after-ms", 1500.into());
        let response = ApiError::from(status).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after-ms"], "1500");
        assert_eq!(response.headers()["retry-after"], "2");
    }
}
