//! Requests as the API reads them, and answers in the shape that its clients parse.

use std::collections::HashMap;

use aws_lambda_events::{
    apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse},
    encodings::Body,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ringback_shared::{
    models::{Invalid, run::PaymentReason},
    store::StoreError,
};
use serde::Serialize;
use serde_json::{Value, json};

/// The largest body that is read, in bytes: Lambda takes events of 6 MB, and in one of them a body is escaped.
const MAX_BODY: usize = 4_500_000;

/// A request, decoded.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Query,
    pub(crate) bearer: Option<String>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// The query's parameters, each with all its values.
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        let mut parameters: HashMap<String, Vec<String>> = HashMap::new();
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            parameters
                .entry(name.into_owned())
                .or_default()
                .push(value.into_owned());
        }
        Self(parameters)
    }

    /// All values of a parameter that may be repeated or hold several, separated by commas.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.0.get(name).into_iter().flatten();
        values
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)?
            .last()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

impl Request {
    pub(crate) fn decode(event: ApiGatewayV2httpRequest) -> Result<Self, ApiError> {
        let header = |name: &str| {
            event
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(|value| value.trim().to_owned())
        };
        let bearer = header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        });
        let idempotency_key = header("idempotency-key").filter(|key| !key.is_empty());
        let body = event.body.unwrap_or_default();
        let body = if event.is_base64_encoded {
            STANDARD
                .decode(body)
                .map_err(|_| ApiError::bad_request("the body is not valid base64"))?
        } else {
            body.into_bytes()
        };
        if body.len() > MAX_BODY {
            return Err(ApiError::new(
                413,
                format!("the body may have at most {MAX_BODY} bytes"),
            ));
        }
        Ok(Self {
            method: event.request_context.http.method.as_str().to_owned(),
            path: event.raw_path.unwrap_or_default(),
            query: Query::parse(event.raw_query_string.as_deref().unwrap_or_default()),
            bearer,
            idempotency_key,
            body,
        })
    }

    /// The body as JSON, whatever its content type says.
    pub(crate) fn json(&self) -> Result<Value, ApiError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::bad_request(
                "the request has no body; send a JSON object",
            ));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    status: i64,
    body: Value,
}

impl Response {
    pub(crate) fn ok(body: impl Serialize) -> Result<Self, ApiError> {
        Self::with(200, body)
    }

    pub(crate) fn created(body: impl Serialize) -> Result<Self, ApiError> {
        Self::with(201, body)
    }

    /// Something else still needs what was to be deleted.
    pub(crate) fn conflict(code: &str, message: &str) -> Self {
        Self {
            status: 409,
            body: json!({ "error": code, "message": message }),
        }
    }

    fn with(status: i64, body: impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_value(body).map_err(|error| ApiError::internal(&error))?;
        Ok(Self { status, body })
    }

    pub(crate) fn encode(self) -> ApiGatewayV2httpResponse {
        let mut response = ApiGatewayV2httpResponse::default();
        response.status_code = self.status;
        response.headers.insert("content-type", HEADER_JSON.clone());
        response.body = Some(Body::Text(self.body.to_string()));
        response
    }
}

static HEADER_JSON: std::sync::LazyLock<http::HeaderValue> =
    std::sync::LazyLock::new(|| http::HeaderValue::from_static("application/json; charset=utf-8"));

/// A refusal, as clients of this API parse it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: i64,
    message: Value,
    /// Why payment is required, which takes the place of the status in words.
    reason: Option<PaymentReason>,
}

impl ApiError {
    pub(crate) fn new(status: i64, message: impl Into<String>) -> Self {
        Self {
            status,
            message: Value::String(message.into()),
            reason: None,
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// Nothing may be started before somebody pays, or allows more to be spent.
    pub(crate) fn payment_required(reason: PaymentReason, message: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            ..Self::new(402, message)
        }
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(404, format!("{what} {id} not found"))
    }

    /// A fault of ours: the client learns nothing of it, the log does.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "request failed");
        Self::new(500, "Internal Server Error")
    }

    pub(crate) fn response(self) -> Response {
        if let Some(reason) = self.reason {
            return Response {
                status: self.status,
                body: json!({ "statusCode": self.status, "message": self.message, "reason": reason }),
            };
        }
        let error = match self.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Payload Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        Response {
            status: self.status,
            body: json!({ "message": self.message, "error": error, "statusCode": self.status }),
        }
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self {
            status: 400,
            message: json!(invalid.0),
            reason: None,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge(message) => Self::new(413, message),
            StoreError::ConditionFailed => Self::new(
                409,
                "somebody else changed this at the same time; read it and try again",
            ),
            error if error.is_throttled() => {
                tracing::warn!(%error, "the table is not available");
                Self::new(503, "the store is not available at the moment; try again")
            }
            error => Self::internal(&error),
        }
    }
}
