//! Why a request is not answered, in the form of OpenAI's API.

use crate::engine::{EngineError, Refused};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A body of JSON.
pub(super) struct Json(pub Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// A request that is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub message: String,
    /// The parameter that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code }
    }

    /// A request that is wrong.
    pub fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// A parameter that is wrong; `what` says what it may be, or why it is not possible.
    pub fn param(name: &str, what: impl std::fmt::Display) -> Refusal {
        Refusal { param: Some(name.into()), ..Refusal::bad(format!("{name}: {what}")) }
    }

    /// Too many tokens, or bytes, for the context.
    pub fn context(name: &str, what: impl std::fmt::Display) -> Refusal {
        Refusal { code: Some("context_length_exceeded"), ..Refusal::param(name, what) }
    }

    /// The server is about to end.
    pub fn stopping() -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("stopping"),
            "the server is stopping; it takes no new requests",
        )
    }

    /// The time for what was in hand is over.
    pub fn cut_off() -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("stopped"),
            "the server has stopped before the answer's end; ask again",
        )
    }

    /// No connection is left but those for `/health` and `/metrics`.
    pub fn full() -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("connections_full"),
            "all connections are in use, and this one is for /health and /metrics alone; try again later",
        )
    }

    /// The server cannot go on.
    pub fn failed(why: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Some("engine_failed"), why)
    }

    /// Why, in words of the server's own: a message may have some of what the client wrote.
    pub fn reason(&self) -> &str {
        self.code.or(self.param.as_deref()).or(self.status.canonical_reason()).unwrap_or_default()
    }

    /// The error object.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<EngineError> for Refusal {
    fn from(e: EngineError) -> Refusal {
        match e {
            EngineError::Refused(Refused::Full { waiting }) => {
                let text = format!("{waiting} requests wait already; try again later");
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), text)
            }
            EngineError::Refused(Refused::TooLong { .. } | Refused::NeverFits { .. }) => {
                Refusal { code: Some("context_length_exceeded"), ..Refusal::bad(e.to_string()) }
            }
            EngineError::Refused(_) | EngineError::Request(_) => Refusal::bad(e.to_string()),
            other => Refusal::failed(other.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => (),
        }
        response.extensions_mut().insert(self);
        response
    }
}
