//! One request to a provider: with its key, within its time, and with an answer of bounded length.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url, header::RETRY_AFTER};
use serde_json::Value;

use super::{Provider, ProviderError};
use crate::{
    ids,
    net::{Outbound, Refused, without_url},
    trace::TRACEPARENT,
};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 5_000_000;
/// The longest part of a refusal that becomes part of a reason, in characters.
const MAX_MESSAGE: usize = 200;
/// How long a provider is left alone at most because it wishes so, in milliseconds.
const LONGEST_REST_MS: i64 = 600_000;

/// A request.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) body: Option<&'a Value>,
    /// The header that names the request however often it is repeated.
    pub(super) key: Option<&'a str>,
    /// Whether a 429 says that nothing was done.
    pub(super) limited: bool,
    /// How long its answer is waited for.
    pub(super) within: Duration,
}

impl Provider<'_> {
    /// Its URL with more path segments.
    pub(super) fn at(&self, more: &[&str]) -> Result<Url, ProviderError> {
        let mut url: Url = self
            .url
            .parse()
            .map_err(|_| ProviderError::Url("it is no URL".to_owned()))?;
        url.path_segments_mut()
            .map_err(|()| ProviderError::Url("it is no http URL".to_owned()))?
            .pop_if_empty()
            .extend(more);
        Ok(url)
    }

    /// Sends a request with the key. What is no JSON is null.
    pub(super) async fn ask(
        &self,
        outbound: &Outbound,
        ask: Ask<'_>,
    ) -> Result<(StatusCode, Value), ProviderError> {
        self.send(outbound, ask, self.api_key).await
    }

    /// Sends a request without the key: its URL is one that the provider has given.
    pub(super) async fn ask_bare(
        &self,
        outbound: &Outbound,
        ask: Ask<'_>,
    ) -> Result<(StatusCode, Value), ProviderError> {
        self.send(outbound, ask, None).await
    }

    async fn send(
        &self,
        outbound: &Outbound,
        ask: Ask<'_>,
        api_key: Option<&str>,
    ) -> Result<(StatusCode, Value), ProviderError> {
        let client = outbound
            .client(&ask.url, false)
            .map_err(|error| ProviderError::Url(error.to_string()))?;
        let seconds = ask.within.as_secs();
        let mut request = client.request(ask.method, ask.url).timeout(ask.within);
        if let Some(key) = api_key {
            request = request.bearer_auth(key);
        }
        if let Some(trace) = self.trace {
            request = request.header(TRACEPARENT, trace.child(ids::span_id()).to_string());
        }
        if let Some(key) = ask.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = ask.body {
            request = request.json(body);
        }
        let unanswered = |error: reqwest::Error| match Refused::find(&error) {
            Some(refused) => ProviderError::Url(refused.to_string()),
            None if error.is_connect() => ProviderError::Busy {
                what: without_url(error),
                retry_after_ms: 0,
            },
            None if error.is_timeout() => ProviderError::Unanswered(format!("no answer within {seconds} s")),
            None => ProviderError::Unanswered(without_url(error)),
        };
        let mut answer = request.send().await.map_err(unanswered)?;
        let status = answer.status();
        if ask.limited && status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = answer.headers().get(RETRY_AFTER);
            let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse::<i64>().ok());
            let rest = seconds.unwrap_or_default().saturating_mul(1000);
            return Err(ProviderError::Busy {
                what: "status 429".to_owned(),
                retry_after_ms: rest.clamp(0, LONGEST_REST_MS),
            });
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(ProviderError::Unanswered("its answer is too long".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        if matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error() {
            return Err(ProviderError::Unanswered(format!("status {}", status.as_u16())));
        }
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// What an answer says that is no success.
    pub(super) fn refusal(&self, status: StatusCode, body: &Value) -> ProviderError {
        let said = match body.get("message").or_else(|| body.get("error_message")) {
            Some(Value::String(said)) => said.clone(),
            Some(Value::Array(all)) => {
                let all = all.iter().filter_map(Value::as_str);
                all.collect::<Vec<_>>().join("; ")
            }
            _ => String::new(),
        };
        // Some repeat what they do not like: the key, or an order with the secret in it.
        let secrets = self.hook_headers.iter().map(|(_, value)| value.as_str());
        let secrets = self.api_key.into_iter().chain(secrets);
        let said = secrets.fold(said, |said, secret| said.replace(secret, "(the key)"));
        let said: String = said.chars().take(MAX_MESSAGE).collect();
        ProviderError::Refused {
            status: status.as_u16(),
            message: if said.is_empty() {
                said
            } else {
                format!(": {said}")
            },
        }
    }
}

/// A call that was asked for is over for these answers.
pub(super) fn is_gone(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 410)
}

#[cfg(test)]
mod tests {
    use super::{super::Dialect, *};

    #[test]
    fn paths_lead_to_the_calls_of_a_url() {
        let provider = |url| Provider {
            url,
            api_key: None,
            dialect: &Dialect::Generic,
            trace: None,
            hook_headers: &[],
        };
        for (url, more, whole) in [
            ("http://p/calls", &["a b/c"][..], "http://p/calls/a%20b%2Fc"),
            ("http://p/calls/", &["a", "end"], "http://p/calls/a/end"),
            ("http://p", &[], "http://p/"),
            ("http://p/calls?key=1", &["a"], "http://p/calls/a?key=1"),
        ] {
            assert_eq!(provider(url).at(more).unwrap().as_str(), whole);
        }
        assert!(matches!(provider("nowhere").at(&[]), Err(ProviderError::Url(_))));
        assert!(super::super::is_url("https://p"));
        assert!(!super::super::is_url("ftp://p") && !super::super::is_url("p"));
    }
}
