//! The client for language models: any server with OpenAI's chat completions.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};

use reqwest::{
    RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use crate::{
    models::Object,
    net::{NoClient, Outbound, Refused},
    trace::{TRACEPARENT, Trace},
};

const ATTEMPTS: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LARGEST_BODY: usize = 8 * 1024 * 1024;
const SNIPPET: usize = 200;

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A JSON value that was written once and is shared: cloning it copies a pointer, sending it copies bytes.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Writes `value`; what cannot be written as JSON becomes `null`.
    #[must_use]
    pub fn new(value: &impl Serialize) -> Self {
        Self(
            serde_json::value::to_raw_value(value)
                .map_or_else(|_| RawValue::NULL.to_owned().into(), Arc::from),
        )
    }

    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_default()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.text().len())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(output)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(input).map(|raw| Self(raw.into()))
    }
}

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// To play the caller.
    Tester,
    /// To be the agent under test.
    Target,
    /// To extract structured outputs or to judge.
    Judge,
    /// To write scenarios or suggestions.
    Writer,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tester => "the tester",
            Self::Target => "the target",
            Self::Judge => "the evaluation",
            Self::Writer => "scenarios and suggestions",
        })
    }
}

/// A server to ask.
#[derive(Clone)]
pub struct Endpoint {
    /// The URL up to, or with, `/chat/completions`.
    pub base_url: String,
    /// Sent as a bearer token.
    pub api_key: Option<Secret>,
    /// Further headers.
    pub headers: BTreeMap<String, Secret>,
    /// The time for one reply, retries included.
    pub timeout: Duration,
    /// Whether the operator chose the server: then it may have a private address.
    pub trusted: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL can carry a key, so only its host is shown.
        let host = Url::parse(&self.base_url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned));
        f.debug_struct("Endpoint")
            .field("host", &host)
            .field("headers", &self.headers.keys())
            .field("timeout", &self.timeout)
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    fn url(&self) -> Result<Url, ModelError> {
        let invalid = || ModelError::Invalid("the model's url must be an http or https URL".to_owned());
        let mut url = Url::parse(self.base_url.trim()).map_err(|_| invalid())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid());
        }
        let path = url.path().trim_end_matches('/');
        let path = if path.ends_with("/chat/completions") {
            path.to_owned()
        } else {
            format!("{path}/chat/completions")
        };
        url.set_path(&path);
        Ok(url)
    }

    fn header_map(&self) -> Result<HeaderMap, ModelError> {
        let invalid = |name: &str| {
            ModelError::Invalid(format!(
                "the model's header {name:?} cannot be sent; correct or remove it"
            ))
        };
        let mut map = HeaderMap::with_capacity(self.headers.len() + 2);
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.api_key {
            let value = HeaderValue::try_from(format!("Bearer {}", key.expose()));
            let mut value = value.map_err(|_| invalid("Authorization"))?;
            value.set_sensitive(true);
            map.insert(reqwest::header::AUTHORIZATION, value);
        }
        for (name, value) in &self.headers {
            // These belong to the connection.
            let framing = ["host", "content-length", "transfer-encoding", "connection"];
            if framing.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
                return Err(invalid(name));
            }
            let key = HeaderName::try_from(name.as_str()).map_err(|_| invalid(name))?;
            let mut value = HeaderValue::try_from(value.expose()).map_err(|_| invalid(name))?;
            value.set_sensitive(true);
            map.insert(key, value);
        }
        Ok(map)
    }

    /// The same, with requests that belong to `trace`. A header that the user has chosen stays.
    #[must_use]
    pub fn traced(mut self, trace: Trace) -> Self {
        let chosen = self
            .headers
            .keys()
            .any(|name| name.eq_ignore_ascii_case(TRACEPARENT));
        if !chosen {
            self.headers
                .insert(TRACEPARENT.to_owned(), Secret::new(trace.to_string()));
        }
        self
    }

    /// `text` cut to a snippet, without this endpoint's secrets.
    fn snippet(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self
            .api_key
            .iter()
            .chain(self.headers.values())
            .filter(|s| s.expose().len() >= 4)
        {
            text = text.replace(secret.expose(), "…");
        }
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(SNIPPET)
            .collect()
    }
}

/// Which model serves what.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The operator's own server, from `OPENAI_BASE_URL` and `OPENAI_API_KEY`.
    pub endpoint: Option<Endpoint>,
    /// The model's name where an assistant names none.
    pub default_model: String,
    /// Whether a user's `custom-llm` url may have a private address.
    pub allow_private_targets: bool,
    /// The time for one reply, retries included. A `custom-llm` may ask for less, not for more.
    pub timeout: Duration,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            default_model: "gpt-4.1".to_owned(),
            allow_private_targets: false,
            timeout: Duration::from_secs(60),
        }
    }
}

impl ModelConfig {
    /// The server for `model`, which is the `model` object of an assistant or a structured output, or null, and the
    /// model's name there.
    ///
    /// # Errors
    /// The model's own URL or headers are unusable, or it has none and no server is configured.
    pub fn resolve(&self, model: &Value, purpose: Purpose) -> Result<(Endpoint, String), ModelError> {
        let named = model
            .get("model")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty());
        let name = named.unwrap_or(&self.default_model).to_owned();
        if model.get("provider").and_then(Value::as_str) != Some("custom-llm") {
            let endpoint = self
                .endpoint
                .clone()
                .ok_or(ModelError::NotConfigured { purpose })?;
            return Ok((endpoint, name));
        }
        let Some(base_url) = model.get("url").and_then(Value::as_str) else {
            return Err(ModelError::Invalid(format!(
                "the custom-llm model for {purpose} has no url"
            )));
        };
        let mut headers = BTreeMap::new();
        for (name, value) in model
            .get("headers")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let Some(value) = value.as_str() else {
                return Err(ModelError::Invalid(format!(
                    "the custom-llm header {name:?} must be a string"
                )));
            };
            headers.insert(name.clone(), Secret::new(value));
        }
        let asked = model.get("timeoutSeconds").and_then(Value::as_f64);
        let asked = asked.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(1.0)).ok());
        let endpoint = Endpoint {
            base_url: base_url.to_owned(),
            api_key: None,
            headers,
            timeout: asked.map_or(self.timeout, |asked| asked.min(self.timeout)),
            trusted: false,
        };
        endpoint.url()?;
        Ok((endpoint, name))
    }
}

/// A request for one reply, as it goes over the wire.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model's name, as [`ModelConfig::resolve`] gives it.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<Json>,
    /// The tools on offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Json>,
    /// Which tool to use, if one must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// The sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The longest reply, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// The form of the reply, for example a JSON schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Json>,
}

impl fmt::Debug for ChatRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatRequest")
            .field("model", &self.model)
            .field("messages", &self.messages.len())
            .field("tools", &self.tools.len())
            .finish_non_exhaustive()
    }
}

/// A model's wish to use a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ToolCall {
    /// Its id; empty when the server gave none.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, JSON in a text.
    pub arguments: String,
}

/// How many tokens a reply took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// A model's reply.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ChatReply {
    /// What it says.
    pub content: Option<String>,
    /// The tools that it wants to use.
    pub tool_calls: Vec<ToolCall>,
    /// Why it stopped.
    pub finish_reason: Option<String>,
    /// What it took.
    pub usage: Option<Usage>,
    /// The model that the server says has answered.
    pub model: Option<String>,
    /// What it cost in millionths of a US dollar, where somebody who knows the prices has written it.
    pub cost: Option<i64>,
}

impl fmt::Debug for ChatReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatReply")
            .field("content", &self.content.as_ref().map(String::len))
            .field("tool_calls", &self.tool_calls.len())
            .field("finish_reason", &self.finish_reason)
            .field("usage", &self.usage)
            .field("model", &self.model)
            .field("cost", &self.cost)
            .finish()
    }
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No server is configured.
    #[error(
        "no language model is configured for {purpose}: set OPENAI_BASE_URL (and OPENAI_API_KEY where the server wants \
         one), or give the model the provider custom-llm and a url"
    )]
    NotConfigured {
        /// What the model was for.
        purpose: Purpose,
    },
    /// The configuration of the model cannot be used; the text says what to change.
    #[error("{0}")]
    Invalid(String),
    /// A user's URL leads to a private address.
    #[error(
        "{host} is a private or local address, which a custom-llm url may not reach; use a public one, or allow private targets"
    )]
    Refused {
        /// The host as the URL names it.
        host: String,
    },
    /// No connection.
    #[error("cannot connect to the language model at {host}; check the url and that the server runs")]
    Connect {
        /// The server's host.
        host: String,
    },
    /// The connection broke before the reply was there.
    #[error("the language model at {host} closed the connection before its reply was complete")]
    Interrupted {
        /// The server's host.
        host: String,
    },
    /// No reply in time.
    #[error(
        "the language model at {host} gave no reply within {seconds} s; try a faster model or a longer timeout"
    )]
    Timeout {
        /// The server's host.
        host: String,
        /// The time that it had.
        seconds: u64,
    },
    /// An answer that is not a success.
    #[error("the language model at {host} answered {status}{}{}", hint(*status), detail(message))]
    Status {
        /// The server's host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The server's error message, cut and without keys.
        message: Option<String>,
    },
    /// An answer that is too large.
    #[error("the language model at {host} answered with more than {} MB", LARGEST_BODY / (1024 * 1024))]
    TooLarge {
        /// The server's host.
        host: String,
    },
    /// An answer that is not a chat completion.
    #[error(
        "the language model at {host} did not answer with a chat completion: {what}; check that the url is an OpenAI-compatible one"
    )]
    Malformed {
        /// The server's host.
        host: String,
        /// What is wrong with it.
        what: String,
    },
}

const fn hint(status: u16) -> &'static str {
    match status {
        400 | 422 => " (it does not accept the request; check the model's name and settings)",
        401 | 403 => " (check OPENAI_API_KEY, or the custom-llm headers)",
        404 => " (check the url and the model's name)",
        429 => " (too many requests or no quota left; lower the concurrency or try later)",
        300..=399 => " (redirects are not followed; use the final url)",
        500.. => " (a fault of the server; try later)",
        _ => "",
    }
}

fn detail(message: &Option<String>) -> String {
    message
        .as_ref()
        .map_or_else(String::new, |message| format!(": {message}"))
}

impl ModelError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Interrupted { .. } | Self::Timeout { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 409 | 429 | 500..),
            _ => false,
        }
    }
}

/// Asks models for replies.
#[derive(Debug, Clone)]
pub struct ModelClient {
    outbound: Outbound,
    first_backoff: Duration,
}

impl ModelClient {
    /// A client over these connections.
    #[must_use]
    pub const fn new(outbound: Outbound) -> Self {
        Self {
            outbound,
            first_backoff: FIRST_BACKOFF,
        }
    }

    /// Asks `endpoint` for a reply. Tries up to three times within the endpoint's timeout.
    ///
    /// # Errors
    /// There is no reply; the text says why and contains nothing of the conversation and no key.
    pub async fn chat(&self, endpoint: &Endpoint, request: &ChatRequest) -> Result<ChatReply, ModelError> {
        let url = endpoint.url()?;
        let host = host_of(&url);
        let none = |why: NoClient| match why {
            NoClient::Refused(refused) => ModelError::Refused { host: refused.host },
            NoClient::Unmade(error) => {
                ModelError::Invalid(format!("the HTTP client cannot be made: {error}"))
            }
        };
        let client = self.outbound.client(&url, endpoint.trusted).map_err(none)?;
        let body = serde_json::to_vec(request)
            .map_err(|_| ModelError::Invalid("the request cannot be written as JSON".to_owned()))?;
        let call = client.post(url).headers(endpoint.header_map()?).body(body);
        let attempts = async {
            let mut attempt = 1;
            loop {
                let (error, wait) = match Self::attempt(endpoint, &host, &call).await {
                    Ok(reply) => return Ok(reply),
                    Err(failure) => failure,
                };
                // A request that reached the server and got no status is not sent twice.
                let again = matches!(error, ModelError::Connect { .. } | ModelError::Status { .. });
                if attempt == ATTEMPTS || !again || !error.is_transient() {
                    return Err(error);
                }
                tokio::time::sleep(wait.unwrap_or_else(|| self.backoff(attempt)).min(LONGEST_WAIT)).await;
                attempt += 1;
            }
        };
        let seconds = endpoint.timeout.as_secs();
        tokio::time::timeout(endpoint.timeout, attempts)
            .await
            .unwrap_or_else(|_| {
                Err(ModelError::Timeout {
                    host: host.clone(),
                    seconds,
                })
            })
    }

    async fn attempt(
        endpoint: &Endpoint,
        host: &str,
        call: &RequestBuilder,
    ) -> Result<ChatReply, (ModelError, Option<Duration>)> {
        let host = || host.to_owned();
        let Some(call) = call.try_clone() else {
            return Err((ModelError::Interrupted { host: host() }, None));
        };
        let response = call.send().await.map_err(|error| {
            let error = if let Some(refused) = Refused::find(&error) {
                ModelError::Refused {
                    host: refused.host.clone(),
                }
            } else if error.is_builder() {
                ModelError::Invalid("the model's url or headers cannot be sent".to_owned())
            } else if error.is_connect() {
                ModelError::Connect { host: host() }
            } else {
                ModelError::Interrupted { host: host() }
            };
            (error, None)
        })?;
        let status = response.status();
        let wait = retry_after(response.headers());
        let body = read_body(response, &host()).await;
        if status != StatusCode::OK {
            let message = body
                .ok()
                .and_then(|body| error_message(&serde_json::from_slice(&body).ok()?));
            let message = message.map(|text| endpoint.snippet(&text));
            return Err((
                ModelError::Status {
                    host: host(),
                    status: status.as_u16(),
                    message,
                },
                wait,
            ));
        }
        let body = body.map_err(|error| (error, None))?;
        parse_reply(&body).map_err(|what| {
            (
                ModelError::Malformed {
                    host: host(),
                    what: endpoint.snippet(&what),
                },
                None,
            )
        })
    }

    /// The wait after a failed attempt, between half and all of the exponential one.
    fn backoff(&self, attempt: u32) -> Duration {
        // The standard library's randomly keyed hasher is random enough to spread retries.
        let random = RandomState::new().hash_one(attempt) % 1000;
        let full = self.first_backoff * 2_u32.pow(attempt - 1);
        full / 2 + full * u32::try_from(random).unwrap_or(0) / 2000
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let read = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = read("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| read(RETRY_AFTER.as_str()))?;
    Duration::try_from_secs_f64(seconds).ok()
}

async fn read_body(mut response: Response, host: &str) -> Result<Vec<u8>, ModelError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > LARGEST_BODY => {
                return Err(ModelError::TooLarge {
                    host: host.to_owned(),
                });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(_) => {
                return Err(ModelError::Interrupted {
                    host: host.to_owned(),
                });
            }
        }
    }
}

fn error_message(body: &Value) -> Option<String> {
    Some(body.get("error")?.get("message")?.as_str()?.to_owned())
}

#[derive(Deserialize)]
struct WireReply {
    choices: Option<Vec<WireChoice>>,
    usage: Option<Value>,
    model: Option<String>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WireChoice {
    message: Option<WireMessage>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireMessage {
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<WireCall>>,
}

#[derive(Deserialize)]
struct WireCall {
    id: Option<String>,
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    name: Option<String>,
    arguments: Option<Value>,
}

fn parse_reply(body: &[u8]) -> Result<ChatReply, String> {
    // serde's own message may quote the body.
    let reply: WireReply =
        serde_json::from_slice(body).map_err(|_| "it is not the expected JSON".to_owned())?;
    let Some(choice) = reply.choices.into_iter().flatten().next() else {
        let message = reply
            .error
            .and_then(|error| Some(error.get("message")?.as_str()?.to_owned()));
        return Err(message.unwrap_or_else(|| "it has no choices".to_owned()));
    };
    let message = choice
        .message
        .ok_or_else(|| "its choice has no message".to_owned())?;
    let content = message.content.as_ref().and_then(text_of).or(message.refusal);
    let calls = message.tool_calls.into_iter().flatten();
    let tool_calls = calls.map(tool_call).collect::<Option<Vec<_>>>();
    let count = |usage: &Value, field: &str| usage.get(field).and_then(Value::as_u64);
    Ok(ChatReply {
        content,
        tool_calls: tool_calls.ok_or_else(|| "a tool call has no name".to_owned())?,
        finish_reason: choice.finish_reason,
        usage: reply.usage.filter(Value::is_object).map(|usage| Usage {
            prompt_tokens: count(&usage, "prompt_tokens").unwrap_or(0),
            completion_tokens: count(&usage, "completion_tokens").unwrap_or(0),
        }),
        model: reply.model,
        cost: None,
    })
}

fn tool_call(call: WireCall) -> Option<ToolCall> {
    let function = call.function?;
    let arguments = match function.arguments {
        Some(Value::String(text)) if !text.trim().is_empty() => text,
        Some(Value::String(_) | Value::Null) | None => "{}".to_owned(),
        Some(other) => other.to_string(),
    };
    let name = function.name.filter(|name| !name.is_empty())?;
    Some(ToolCall {
        id: call.id.unwrap_or_default(),
        name,
        arguments,
    })
}

/// The text of a message's `content`: a text, or the text parts of a list; `None` where there is none.
pub(crate) fn text_of(content: &Value) -> Option<String> {
    let part = |part: &Value| match part {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) => fields.get("text").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let text = match content {
        Value::Array(parts) => parts.iter().filter_map(part).collect(),
        other => part(other)?,
    };
    (!text.trim().is_empty()).then_some(text)
}

/// The settings of an assistant's `model` object that go into a request: temperature and the longest reply.
pub(crate) fn apply_settings(model: &Object, request: &mut ChatRequest) {
    request.temperature = model.get("temperature").and_then(Value::as_f64);
    let longest = model
        .get("maxTokens")
        .and_then(|value| crate::models::lenient::integer(value).ok());
    request.max_tokens = longest.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread::{JoinHandle, spawn},
    };

    use serde_json::json;

    use super::*;

    /// Answers one connection with each of `answers` and gives back the requests.
    fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v1/", listener.local_addr().unwrap());
        let server = spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
                loop {
                    let n = stream.read(&mut buffer).unwrap();
                    seen.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&seen);
                    let length = text
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "));
                    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
                    if n == 0 || body.is_some() && body == length.and_then(|l| l.parse().ok()) {
                        break;
                    }
                }
                requests.push(String::from_utf8(seen).unwrap());
                let _ = stream.write_all(answer.as_bytes());
            }
            requests
        });
        (base, server)
    }

    fn http(status: &str, headers: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn hello() -> String {
        http(
            "200 OK",
            "",
            r#"{"model":"m-1","choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
        )
    }

    fn client(allow_private_targets: bool) -> ModelClient {
        let outbound = Outbound::new(allow_private_targets);
        ModelClient {
            outbound,
            first_backoff: Duration::from_micros(1),
        }
    }

    fn operator(base_url: &str) -> Endpoint {
        Endpoint {
            base_url: base_url.to_owned(),
            api_key: Some(Secret::new("sk-secret")),
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(30),
            trusted: true,
        }
    }

    fn request() -> ChatRequest {
        ChatRequest {
            model: "m".into(),
            messages: vec![Json::new(&json!({"role": "user", "content": "Hi"}))],
            temperature: Some(0.5),
            ..ChatRequest::default()
        }
    }

    #[tokio::test]
    async fn a_reply_is_read_and_the_request_is_the_standard_one() {
        let (base, server) = serve(vec![hello()]);
        let reply = client(false).chat(&operator(&base), &request()).await.unwrap();
        assert_eq!(reply.content.as_deref(), Some("Hello"));
        assert_eq!(
            reply.usage,
            Some(Usage {
                prompt_tokens: 3,
                completion_tokens: 1
            })
        );
        assert_eq!(
            (reply.model.as_deref(), reply.finish_reason.as_deref()),
            (Some("m-1"), Some("stop"))
        );
        let sent = server.join().unwrap().remove(0);
        assert!(
            sent.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
            "{sent}"
        );
        assert!(sent.contains("authorization: Bearer sk-secret\r\n"), "{sent}");
        let body: Value = serde_json::from_str(sent.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(
            body,
            json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5})
        );
    }

    #[tokio::test]
    async fn passing_faults_are_retried_three_times_at_most() {
        let busy = |status: &str| {
            http(
                status,
                "retry-after: 0\r\n",
                r#"{"error":{"message":"slow down, sk-secret"}}"#,
            )
        };
        let (base, server) = serve(vec![
            busy("429 Too Many Requests"),
            http("503 Unavailable", "", "<html>"),
            hello(),
        ]);
        assert!(client(false).chat(&operator(&base), &request()).await.is_ok());
        assert_eq!(server.join().unwrap().len(), 3);

        let (base, server) = serve(vec![busy("429 X"), busy("408 X"), busy("409 X")]);
        let error = client(false)
            .chat(&operator(&base), &request())
            .await
            .unwrap_err();
        assert!(error.is_transient());
        let text = error.to_string();
        assert!(
            text.contains("answered 409") && text.ends_with(": slow down, …"),
            "{text}"
        );
        server.join().unwrap();

        let refusal = http("401 Unauthorized", "", r#"{"error":{"message":"bad key"}}"#);
        let (base, server) = serve(vec![refusal]);
        let error = client(false)
            .chat(&operator(&base), &request())
            .await
            .unwrap_err();
        assert!(
            !error.is_transient() && error.to_string().contains("OPENAI_API_KEY"),
            "{error}"
        );
        assert_eq!(server.join().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_connect_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = client(false)
            .chat(&operator(&base), &request())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ModelError::Connect { .. }) && error.is_transient(),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_silent_server_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut endpoint = operator(&format!("http://{}", listener.local_addr().unwrap()));
        endpoint.timeout = Duration::from_millis(50);
        let error = client(false).chat(&endpoint, &request()).await.unwrap_err();
        assert!(matches!(error, ModelError::Timeout { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn redirects_and_oversized_or_broken_replies_are_errors() {
        let large = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}",
            "x".repeat(LARGEST_BODY + 1)
        );
        for (answer, expected) in [
            (
                http("302 Found", "location: http://127.0.0.1/\r\n", ""),
                "redirects are not followed",
            ),
            (large, "more than 8 MB"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned(),
                "closed the connection",
            ),
            (http("200 OK", "", "Hi, private words"), "not the expected JSON"),
            (http("200 OK", "", r#"{"choices":[]}"#), "no choices"),
            (
                http(
                    "200 OK",
                    "",
                    r#"{"choices":null,"error":{"message":"no such model"}}"#,
                ),
                "no such model",
            ),
            (http("200 OK", "", r#"{"choices":[{}]}"#), "no message"),
        ] {
            let (base, server) = serve(vec![answer]);
            let error = client(false)
                .chat(&operator(&base), &request())
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected) && !error.contains("private words"),
                "{error}"
            );
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_users_url_is_guarded_and_never_gets_the_operators_key() {
        let (base, server) = serve(vec![hello()]);
        let model = json!({"provider": "custom-llm", "url": base, "model": "own", "headers": {"X-Key": "user-key"},
            "timeoutSeconds": 900});
        let config = ModelConfig {
            endpoint: Some(operator("http://operator")),
            ..ModelConfig::default()
        };
        let (endpoint, name) = config.resolve(&model, Purpose::Target).unwrap();
        assert_eq!(
            (name.as_str(), endpoint.trusted, endpoint.timeout),
            ("own", false, config.timeout)
        );
        let error = client(false).chat(&endpoint, &request()).await.unwrap_err();
        assert_eq!(
            error,
            ModelError::Refused {
                host: "127.0.0.1".into()
            }
        );
        let local = Endpoint {
            base_url: "http://localhost:9".into(),
            ..endpoint.clone()
        };
        let error = client(false).chat(&local, &request()).await.unwrap_err();
        assert_eq!(
            error,
            ModelError::Refused {
                host: "localhost".into()
            }
        );
        client(true).chat(&endpoint, &request()).await.unwrap();
        let sent = server.join().unwrap().remove(0);
        assert!(
            sent.contains("x-key: user-key") && !sent.contains("sk-secret"),
            "{sent}"
        );
        assert!(
            !format!("{config:?} {endpoint:?}").contains("key\""),
            "{endpoint:?}"
        );
        assert!(!format!("{config:?}").contains("sk-secret"));
    }

    #[test]
    fn models_map_to_endpoints() {
        let none = ModelConfig::default();
        let error = none
            .resolve(&Value::Null, Purpose::Judge)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("OPENAI_BASE_URL") && error.contains("custom-llm"),
            "{error}"
        );
        let config = ModelConfig {
            endpoint: Some(operator("https://o/v1")),
            ..none
        };
        let name = |model: Value| config.resolve(&model, Purpose::Judge).unwrap().1;
        assert_eq!(name(Value::Null), "gpt-4.1");
        assert_eq!(name(json!({"provider": "openai", "model": "gpt-x"})), "gpt-x");
        for bad in [
            json!({}),
            json!({"url": "file:///etc"}),
            json!({"url": "nothing"}),
            json!({"url": "http://h", "headers": {"a": 1}}),
        ] {
            let mut model = bad;
            model["provider"] = "custom-llm".into();
            assert!(
                matches!(
                    config.resolve(&model, Purpose::Tester),
                    Err(ModelError::Invalid(_))
                ),
                "{model}"
            );
        }
        for (base, url) in [
            ("http://h", "http://h/chat/completions"),
            ("http://h/v1/", "http://h/v1/chat/completions"),
            ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
            (
                "http://h/d?api-version=1",
                "http://h/d/chat/completions?api-version=1",
            ),
        ] {
            assert_eq!(operator(base).url().unwrap().as_str(), url);
        }
    }

    #[test]
    fn odd_replies_are_read() {
        let read =
            |message: Value| parse_reply(json!({"choices": [{"message": message}]}).to_string().as_bytes());
        let parts = json!({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]});
        assert_eq!(read(parts).unwrap().content.as_deref(), Some("ab"));
        assert_eq!(
            read(json!({"content": null, "refusal": "no"}))
                .unwrap()
                .content
                .as_deref(),
            Some("no")
        );
        assert_eq!(read(json!({"content": " "})).unwrap().content, None);
        let call = |arguments: Value| {
            let call = json!({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]});
            read(call).unwrap().tool_calls.remove(0).arguments
        };
        assert_eq!(call(json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!((call(json!("")), call(Value::Null)), ("{}".into(), "{}".into()));
        assert!(read(json!({"tool_calls": [{"id": "x"}]})).is_err());
    }

    #[test]
    fn waits_are_bounded() {
        let header = |name: &'static str, value: &'static str| {
            retry_after(&HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(header("retry-after", "2"), Some(Duration::from_secs(2)));
        assert_eq!(header("retry-after-ms", "150"), Some(Duration::from_millis(150)));
        assert_eq!(header("retry-after", "-1"), None);
        assert_eq!(header("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        let client = ModelClient::new(Outbound::new(false));
        for attempt in 1..ATTEMPTS {
            let (wait, full) = (client.backoff(attempt), FIRST_BACKOFF * 2_u32.pow(attempt - 1));
            assert!(wait >= full / 2 && wait <= full, "{wait:?}");
        }
    }
}
