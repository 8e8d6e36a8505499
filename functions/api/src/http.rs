//! Requests as the API reads them, and answers in the shape that its clients parse.

use std::{borrow::Cow, collections::HashMap};

use aws_lambda_events::{
    apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse},
    encodings::Body,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderName, HeaderValue,
    header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE},
};
use ringback_shared::{
    models::{Invalid, run::PaymentReason},
    store::StoreError,
    trace::{AMAZON, TRACEPARENT, Trace},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bounded;

/// The largest body that is read, in bytes: Lambda takes events of 6 MB, and in one of them a body is escaped.
const MAX_BODY: usize = 4_500_000;
/// How deep lists and objects may be nested in a body. The parser reads 127 levels; what is kept is put into documents that have
/// some levels of their own and must be readable as well.
const MAX_DEPTH: usize = 100;

/// A request, decoded.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Query,
    /// The query as it was sent.
    pub(crate) raw_query: String,
    pub(crate) bearer: Option<String>,
    /// As it was sent: one that is no text is not passed over, or its work would be done twice.
    pub(crate) idempotency_key: Option<Vec<u8>>,
    /// The trace that it belongs to.
    pub(crate) trace: Option<Trace>,
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
        let trace = Trace::of(header(TRACEPARENT).as_deref(), header(AMAZON).as_deref());
        let idempotency_key = event
            .headers
            .get("idempotency-key")
            .map(|key| key.as_bytes().trim_ascii().to_vec())
            .filter(|key| !key.is_empty());
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
        let raw_query = event.raw_query_string.unwrap_or_default();
        Ok(Self {
            method: event.request_context.http.method.as_str().to_owned(),
            path: event.raw_path.unwrap_or_default(),
            query: Query::parse(&raw_query),
            raw_query,
            bearer,
            idempotency_key,
            trace,
            body,
        })
    }

    /// The body as a JSON object, whatever its content type says.
    pub(crate) fn json(&self) -> Result<Value, ApiError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::bad_request(
                "the request has no body; send a JSON object",
            ));
        }
        let body: Value = serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
        if !body.is_object() {
            return Err(Invalid(vec!["the body must be a JSON object".to_owned()]).into());
        }
        if !is_within(&body, MAX_DEPTH) {
            return Err(ApiError::bad_request(format!(
                "the body may be nested at most {MAX_DEPTH} levels deep"
            )));
        }
        Ok(body)
    }

    /// The body as JSON where there need not be one: no body is an empty object.
    pub(crate) fn optional_json(&self) -> Result<Value, ApiError> {
        match self.body.iter().all(u8::is_ascii_whitespace) {
            true => Ok(json!({})),
            false => self.json(),
        }
    }
}

/// Whether lists and objects are nested in `value` at most `depth` levels deep.
fn is_within(value: &Value, depth: usize) -> bool {
    let within = |inner: &Value| depth > 0 && is_within(inner, depth - 1);
    match value {
        Value::Array(list) => depth > 0 && list.iter().all(within),
        Value::Object(object) => depth > 0 && object.values().all(within),
        _ => true,
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    status: i64,
    /// JSON.
    body: Cow<'static, str>,
    /// What else it says of itself.
    header: Option<(HeaderName, HeaderValue)>,
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
        Self::new(409, &json!({ "error": code, "message": message }))
    }

    /// A text that is JSON already.
    pub(crate) fn document(json: &'static str) -> Self {
        Self {
            status: 200,
            body: Cow::Borrowed(json),
            header: None,
        }
    }

    fn new(status: i64, body: &Value) -> Self {
        Self {
            status,
            body: Cow::Owned(body.to_string()),
            header: None,
        }
    }

    /// An answer with this status; `null` is no body.
    pub(crate) fn of(status: i64, body: &Value) -> Self {
        match body {
            Value::Null => Self::stored(status, String::new()),
            body => Self::new(status, body),
        }
    }

    /// The same with the header that the answer to `error` has.
    pub(crate) fn with_header_of(self, error: ApiError) -> Self {
        Self {
            header: error.header,
            ..self
        }
    }

    /// An answer that was given before: its status, and its body as it was sent.
    pub(crate) fn stored(status: i64, body: String) -> Self {
        Self {
            status,
            body: Cow::Owned(body),
            header: None,
        }
    }

    pub(crate) fn status(&self) -> i64 {
        self.status
    }

    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    fn with(status: i64, body: impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_value(body).map_err(|error| ApiError::internal(&error))?;
        Ok(Self::new(status, &body))
    }

    pub(crate) fn encode(self) -> ApiGatewayV2httpResponse {
        if let Some(error) = bounded::refused(&self.body) {
            return error.response().encode();
        }
        let mut response = ApiGatewayV2httpResponse::default();
        response.status_code = self.status;
        response.headers.insert("content-type", HEADER_JSON.clone());
        response.headers.extend(self.header);
        response.body = Some(Body::Text(self.body.into_owned()));
        response
    }
}

static HEADER_JSON: std::sync::LazyLock<HeaderValue> =
    std::sync::LazyLock::new(|| HeaderValue::from_static("application/json; charset=utf-8"));

/// A refusal, as clients of this API parse it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: i64,
    message: Value,
    header: Option<(HeaderName, HeaderValue)>,
    /// Why payment is required, which takes the place of the status in words.
    reason: Option<PaymentReason>,
}

impl ApiError {
    pub(crate) fn new(status: i64, message: impl Into<String>) -> Self {
        Self {
            status,
            message: Value::String(message.into()),
            header: None,
            reason: None,
        }
    }

    /// The key is missing or wrong; the answer says what kind of key is asked for.
    pub(crate) fn unauthorized(message: &str) -> Self {
        Self {
            header: Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            ..Self::new(401, message)
        }
    }

    /// There is such a path, but not with this method; the answer names those that there are.
    pub(crate) fn method_not_allowed(request: &Request, allowed: &[&str]) -> Self {
        Self {
            // Names of methods are valid in a header.
            header: HeaderValue::from_str(&allowed.join(", "))
                .ok()
                .map(|allowed| (ALLOW, allowed)),
            ..Self::cannot(405, request)
        }
    }

    /// There is no such path.
    pub(crate) fn no_route(request: &Request) -> Self {
        Self::cannot(404, request)
    }

    /// The operation is another function's: the request was not routed there because its path is not written as it is described.
    pub(crate) fn elsewhere(request: &Request) -> Self {
        let path = crate::operations::template(&request.path).unwrap_or(&request.path);
        Self::new(
            404,
            format!(
                "Cannot {} {}: write the path as {path}",
                request.method, request.path
            ),
        )
    }

    fn cannot(status: i64, request: &Request) -> Self {
        Self::new(status, format!("Cannot {} {}", request.method, request.path))
    }

    /// Whether it says that something is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == 404
    }

    /// Whether the same may succeed in a while.
    pub(crate) fn is_transient(&self) -> bool {
        self.status == 429 || self.status >= 500
    }

    /// Its status.
    pub(crate) fn status(&self) -> i64 {
        self.status
    }

    /// What it says.
    pub(crate) fn text(&self) -> String {
        match &self.message {
            Value::String(text) => text.clone(),
            Value::Array(faults) => faults
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join("; "),
            other => other.to_string(),
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// A model that the answer depends on did not do its part. It is no 5xx, and no other status that clients send a request
    /// again for by themselves: that would wait as long and cost as much once more.
    pub(crate) fn model(message: impl Into<String>) -> Self {
        Self::new(424, message)
    }

    /// The same with `what` before its message.
    pub(crate) fn after(self, what: &str) -> Self {
        let message = match self.message {
            Value::String(message) => Value::String(format!("{what}{message}")),
            other => other,
        };
        Self { message, ..self }
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

    /// The same with the time after which to try again.
    fn retried(self) -> Self {
        Self {
            header: Some((RETRY_AFTER, HeaderValue::from_static("1"))),
            ..self
        }
    }

    /// A fault of ours: the client learns nothing of it, the log does.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "request failed");
        Self::new(500, "Internal Server Error")
    }

    pub(crate) fn response(self) -> Response {
        if let Some(reason) = self.reason {
            let body = json!({ "statusCode": self.status, "message": self.message, "reason": reason });
            return Response::new(self.status, &body);
        }
        let error = match self.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Payload Too Large",
            424 => "Failed Dependency",
            429 => "Too Many Requests",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let body = json!({ "message": self.message, "error": error, "statusCode": self.status });
        Response {
            header: self.header,
            ..Response::new(self.status, &body)
        }
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self {
            status: 400,
            message: json!(invalid.0),
            header: None,
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
            StoreError::Throttled(_) => {
                tracing::warn!(%error, "the table has too much to do");
                Self::new(429, "there are too many requests at once; try again in a moment").retried()
            }
            error if error.is_throttled() => {
                tracing::warn!(%error, "the table is not available");
                Self::new(503, "the store is not available at the moment; try again").retried()
            }
            error => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: impl Into<Vec<u8>>) -> Request {
        Request {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            query: Query::default(),
            raw_query: String::new(),
            bearer: None,
            idempotency_key: None,
            trace: None,
            body: body.into(),
        }
    }

    fn nested(levels: usize) -> String {
        format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
    }

    #[test]
    fn a_body_is_an_object_that_can_be_kept() {
        assert!(request(nested(MAX_DEPTH)).json().is_ok());
        let lists = format!(r#"{{"a":{}{}}}"#, "[".repeat(99), "]".repeat(99));
        assert!(request(lists).json().is_ok());
        for (body, fault) in [
            (nested(MAX_DEPTH + 1), "levels deep"),
            (nested(100_000), "recursion limit"),
            (
                format!(r#"{{"a":{}{}}}"#, "[".repeat(100), "]".repeat(100)),
                "levels deep",
            ),
            (r#"["name", {}]"#.to_owned(), "must be a JSON object"),
            ("1".to_owned(), "must be a JSON object"),
            ("null".to_owned(), "must be a JSON object"),
            (r#"{"a": 1e400}"#.to_owned(), "number out of range"),
            (r#"{"a": "\ud800"}"#.to_owned(), "not valid JSON"),
            ("{\"a\": \"\0\"}".to_owned(), "not valid JSON"),
            (" ".to_owned(), "no body"),
        ] {
            let refused = request(body).json().unwrap_err();
            assert_eq!(refused.status, 400);
            assert!(
                refused.message.to_string().contains(fault),
                "{fault}: {}",
                refused.message
            );
        }
        assert_eq!(
            request(b"{\"a\":\"\xff\"}".to_vec()).json().unwrap_err().status,
            400
        );
    }

    #[test]
    fn refusals_say_what_would_be_taken() {
        let request = request("");
        let allow = ApiError::method_not_allowed(&request, &["GET", "PATCH"])
            .response()
            .encode();
        assert_eq!(
            (allow.status_code, &allow.headers["allow"]),
            (405, &HeaderValue::from_static("GET, PATCH"))
        );
        let key = ApiError::unauthorized("no key").response().encode();
        assert_eq!(
            (key.status_code, &key.headers["www-authenticate"]),
            (401, &HeaderValue::from_static("Bearer"))
        );
        let busy = ApiError::from(StoreError::Throttled("by DynamoDB".to_owned()))
            .response()
            .encode();
        assert_eq!(
            (busy.status_code, &busy.headers["retry-after"]),
            (429, &HeaderValue::from_static("1"))
        );
        for answer in [allow, key, busy] {
            assert_eq!(answer.headers["content-type"], "application/json; charset=utf-8");
        }
    }
}
