//! Providers of voice calls, by the generic contract (`infra/PROVIDER.md`): what is asked of them and what they say.

use std::{fmt, time::Duration};

use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clock::parse_iso,
    evaluation::TurnLatency,
    lifecycle::{Ended, Fact, Facts, Fault, Item, Source},
    net::{Outbound, Refused, without_url},
};

/// How long an answer of a provider is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// The longest name of a call, in bytes.
pub const MAX_CALL_ID: usize = 256;
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 5_000_000;
/// The longest part of a refusal that becomes part of a reason, in characters.
const MAX_MESSAGE: usize = 200;

/// Who carries a call, and the key that it asks for.
#[derive(Clone)]
pub struct Provider<'a> {
    /// Its URL.
    pub url: &'a str,
    /// The key for requests to it.
    pub api_key: Option<&'a str>,
}

impl fmt::Debug for Provider<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor the URL, into which a user may have put one.
        f.debug_struct("Provider")
            .field("has_api_key", &self.api_key.is_some())
            .finish_non_exhaustive()
    }
}

/// The order to place a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// What names the item to Ringback in everything that the provider says.
    pub correlation: String,
    /// The simulated caller: an assistant's configuration.
    pub tester: Value,
    /// The agent under test.
    pub target: Value,
    /// The answers of the target's tools.
    pub tool_mocks: Value,
    /// What happens when the target uses another tool: `error` or `run`. Without it the provider decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmocked_tools: Option<Value>,
    /// Where events go.
    pub webhooks: Webhooks,
    /// After how many seconds the provider ends the call.
    pub max_duration_seconds: u32,
    /// What the call is for.
    pub metadata: Value,
}

/// Whether calls can be ordered at `text`.
#[must_use]
pub fn is_url(text: &str) -> bool {
    text.parse::<Url>()
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Where a provider sends its events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhooks {
    /// The URL for `call.started`.
    pub call_started: String,
    /// The URL for `call.ended`.
    pub call_ended: String,
}

impl Webhooks {
    /// The URLs of an endpoint, below the system's public one.
    #[must_use]
    pub fn of(public_url: &str, endpoint: Uuid) -> Self {
        let url = |event: &str| format!("{}/hooks/{endpoint}/{event}", public_url.trim_end_matches('/'));
        Self {
            call_started: url("call-started"),
            call_ended: url("call-ended"),
        }
    }
}

/// Why a provider did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It said no, and will say it again.
    #[error("the voice provider refused it with status {status}{message}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// Its reason after a colon, or nothing.
        message: String,
    },
    /// Nobody knows whether it did it.
    #[error("the voice provider did not answer: {0}")]
    Unanswered(String),
    /// Its URL cannot be used.
    #[error("the voice provider's URL cannot be used: {0}")]
    Url(String),
}

impl ProviderError {
    /// Whether the same request may succeed later, or have succeeded already.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unanswered(_))
    }
}

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallStatus {
    /// Ordered.
    Queued,
    /// Not picked up yet.
    Ringing,
    /// Up.
    InProgress,
    /// Over.
    Ended,
    /// What this version does not know: taken for up.
    #[serde(other)]
    Other,
}

/// What a provider says of a call: the body of its events and of its answers to a look-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CallReport {
    /// Which event it is.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its name for the call.
    #[serde(deserialize_with = "or_default")]
    pub call_id: String,
    /// What Ringback named it.
    pub correlation: Option<String>,
    /// When it started, ISO 8601.
    pub started_at: Option<String>,
    /// When it ended, ISO 8601.
    pub ended_at: Option<String>,
    /// Why it ended.
    pub ended_reason: Option<String>,
    /// What was said, in lines.
    pub transcript: Option<String>,
    /// What was said and done.
    pub messages: Option<Vec<Value>>,
    /// For each answer of the target.
    #[serde(deserialize_with = "or_default")]
    pub turn_latencies: Vec<TurnLatency>,
    /// Where its recording is.
    pub recording_url: Option<String>,
    /// Where it can be listened to while it is up.
    pub listen_url: Option<String>,
    /// In US dollars.
    pub cost: Option<f64>,
    /// Whose fault it was, where the call broke off for a reason that is not the target's.
    pub fault: Option<Fault>,
}

/// `null` says as much as an absent field.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Which of a provider's events it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The provider took the order.
    Placed,
    /// The call was picked up.
    Started,
    /// The call is over.
    Ended,
}

/// What is wrong with a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {what}")]
pub struct Odd {
    field: &'static str,
    what: &'static str,
}

impl CallReport {
    fn time(text: Option<&str>, field: &'static str) -> Result<Option<i64>, Odd> {
        text.map(|text| {
            parse_iso(text).ok_or(Odd {
                field,
                what: "must be a time in ISO 8601",
            })
        })
        .transpose()
    }

    /// The facts that this says about an item, as an `event` that came at `now` (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// When a field that the event needs is missing, or is not what the contract says.
    pub fn facts(&self, source: Source, event: Event, now: i64) -> Result<Facts, Odd> {
        let missing = |field| Odd {
            field,
            what: "is missing",
        };
        if self.call_id.is_empty() {
            return Err(missing("callId"));
        }
        if self.call_id.len() > MAX_CALL_ID || self.call_id.chars().any(char::is_control) {
            return Err(Odd {
                field: "callId",
                what: "must have at most 256 bytes and no control characters",
            });
        }
        let fact = |value| Fact { source, value };
        let started = Self::time(self.started_at.as_deref(), "startedAt")?;
        let mut facts = Facts::call(source, &self.call_id);
        if event == Event::Placed {
            return Ok(facts);
        }
        if event == Event::Started {
            facts.started = Some(fact(started.unwrap_or(now)));
            return Ok(facts);
        }
        facts.started = started.map(fact);
        let reason = self
            .ended_reason
            .as_deref()
            .filter(|reason| !reason.is_empty())
            // A provider that is asked says what it knows.
            .or((source == Source::LookUp).then_some("unknown"))
            .ok_or(missing("endedReason"))?;
        facts.ended = Some(Fact {
            source,
            value: Ended {
                at: Self::time(self.ended_at.as_deref(), "endedAt")?.unwrap_or(now),
                reason: reason.chars().take(MAX_REASON).collect(),
                fault: self.fault,
            },
        });
        #[expect(clippy::cast_possible_truncation, reason = "clamped before")]
        let micros = |dollars: f64| (dollars * 1e6).round().clamp(0.0, 1e15) as i64;
        facts.cost = self
            .cost
            .filter(|cost| cost.is_finite())
            .map(|cost| fact(micros(cost)));
        Ok(facts)
    }
}

/// An item's head carries the reason and stays small. In characters.
const MAX_REASON: usize = 200;
/// The longest address at which a call can be listened to, in bytes: it is kept beside the call's name.
const MAX_LISTEN_URL: usize = 2000;

/// What a look-up found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// How far the call is.
    pub status: CallStatus,
    /// What the provider says of it.
    pub report: CallReport,
}

/// How long after a call's end its report is waited for when a look-up does not say what was said, in milliseconds.
const REPORT_GRACE_MS: i64 = 30_000;

impl Found {
    /// Whether the call has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.status == CallStatus::Ended
    }

    /// Whether the call has ended so short before `now` that who looked it up may know less than the report will say.
    #[must_use]
    pub fn is_fresh_end(&self, now: i64) -> bool {
        let silent = self.report.transcript.is_none() && self.report.messages.is_none();
        let ended = self.report.ended_at.as_deref().and_then(parse_iso);
        self.is_over() && silent && ended.is_some_and(|at| now < at + REPORT_GRACE_MS)
    }

    /// The facts that it says.
    ///
    /// # Errors
    /// As [`CallReport::facts`].
    pub fn facts(&self, now: i64) -> Result<Facts, Odd> {
        match self.status {
            CallStatus::Ended => self.report.facts(Source::LookUp, Event::Ended, now),
            CallStatus::InProgress => self.report.facts(Source::LookUp, Event::Started, now),
            _ => Ok(Facts::call(Source::LookUp, &self.report.call_id)),
        }
    }
}

impl Provider<'_> {
    async fn ask(
        &self,
        outbound: &Outbound,
        method: Method,
        url: Url,
        body: Option<(&Order, &str)>,
    ) -> Result<(StatusCode, Value), ProviderError> {
        let client = outbound
            .client(&url, false)
            .map_err(|error| ProviderError::Url(error.to_string()))?;
        let mut request = client.request(method, url).timeout(TIMEOUT);
        if let Some(key) = self.api_key {
            request = request.bearer_auth(key);
        }
        if let Some((order, key)) = body {
            request = request.header("idempotency-key", key).json(order);
        }
        let unanswered = |error: reqwest::Error| match Refused::find(&error) {
            Some(refused) => ProviderError::Url(refused.to_string()),
            None if error.is_timeout() => {
                ProviderError::Unanswered(format!("no answer within {} s", TIMEOUT.as_secs()))
            }
            None => ProviderError::Unanswered(without_url(error)),
        };
        let mut answer = request.send().await.map_err(unanswered)?;
        let status = answer.status();
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

    fn url(&self, more: &[&str]) -> Result<Url, ProviderError> {
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

    /// Places a call under `key`, which names the order however often it is repeated. Gives the call's name and where it
    /// can be listened to.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn place(
        &self,
        outbound: &Outbound,
        order: &Order,
        key: &str,
    ) -> Result<CallReport, ProviderError> {
        let (status, body) = self
            .ask(outbound, Method::POST, self.url(&[])?, Some((order, key)))
            .await?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        let report: CallReport = serde_json::from_value(named(body)).unwrap_or_default();
        if report.call_id.is_empty() || report.call_id.len() > MAX_CALL_ID {
            return Err(ProviderError::Unanswered("its answer has no id".to_owned()));
        }
        Ok(CallReport {
            listen_url: report.listen_url.filter(|url| url.len() <= MAX_LISTEN_URL),
            ..report
        })
    }

    /// Looks a call up by its name, or by what Ringback named it. `None` when the provider does not know it.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn look_up(
        &self,
        outbound: &Outbound,
        call_id: Option<&str>,
        correlation: &str,
    ) -> Result<Option<Found>, ProviderError> {
        let url = match call_id {
            Some(id) => self.url(&[id])?,
            None => {
                let mut url = self.url(&[])?;
                url.query_pairs_mut().append_pair("correlation", correlation);
                url
            }
        };
        let (status, mut body) = self.ask(outbound, Method::GET, url, None).await?;
        if call_id.is_some() && matches!(status.as_u16(), 404 | 410) {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        if call_id.is_none() {
            let Some(results) = body.get_mut("results").and_then(Value::as_array_mut) else {
                return Err(ProviderError::Unanswered("its answer has no results".to_owned()));
            };
            if results.is_empty() {
                return Ok(None);
            }
            let ours =
                |call: &&mut Value| call.get("correlation").and_then(Value::as_str) == Some(correlation);
            match results.iter_mut().find(ours) {
                Some(call) => body = call.take(),
                // It does not look at what it is asked for: none of these may be taken for the item's.
                None => return Err(ProviderError::Unanswered("its answer has other calls".to_owned())),
            }
        }
        let status = serde_json::from_value(body.get("status").cloned().unwrap_or_default());
        let report = serde_json::from_value(named(body));
        match (status, report) {
            (Ok(status), Ok(report)) => Ok(Some(Found { status, report })),
            _ => Err(ProviderError::Unanswered("its answer is no call".to_owned())),
        }
    }

    fn refusal(&self, status: StatusCode, body: &Value) -> ProviderError {
        let said = body.get("message").and_then(Value::as_str).unwrap_or_default();
        // Some repeat the key that they do not like.
        let said = match self.api_key {
            Some(key) => said.replace(key, "(the key)"),
            None => said.to_owned(),
        };
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

    /// Asks for a call's end. `true` when it is over already or unknown.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub async fn end(&self, outbound: &Outbound, call_id: &str) -> Result<bool, ProviderError> {
        let (status, body) = self
            .ask(outbound, Method::POST, self.url(&[call_id, "end"])?, None)
            .await?;
        match status.as_u16() {
            404 | 409 | 410 => Ok(true),
            _ if status.is_success() => Ok(false),
            _ => Err(self.refusal(status, &body)),
        }
    }
}

/// An answer names its call `id`, an event `callId`, and an answer may repeat an event.
fn named(mut call: Value) -> Value {
    if let Some(object) = call.as_object_mut()
        && let Some(id) = object.remove("id")
    {
        object.insert("callId".to_owned(), id);
    }
    call
}

/// The order for an item's call.
#[must_use]
pub fn order(
    item: &Item,
    correlation: String,
    webhooks: Webhooks,
    max_duration_seconds: u32,
    snapshot: &crate::store::Snapshot,
    target: &Value,
) -> Order {
    let scenario = &snapshot.scenario;
    let overrides = scenario.get("targetOverrides").filter(|value| !value.is_null());
    let mut target = match target.get("squad") {
        Some(squad) => json!({"type": "squad", "squad": squad}),
        None => json!({"type": "assistant", "assistant": target.get("assistant")}),
    };
    // A mock that is switched off is none: who does not look at `enabled` must not use it.
    let mocks = scenario.get("toolMocks").and_then(Value::as_array);
    let mocks = mocks.into_iter().flatten();
    let mocks = mocks.filter(|mock| mock.get("enabled") != Some(&Value::Bool(false)));
    if let (Some(overrides), Some(object)) = (overrides, target.as_object_mut()) {
        object.insert("assistantOverrides".to_owned(), overrides.clone());
    }
    Order {
        correlation,
        tester: crate::conversation::tester(
            snapshot.personality.get("assistant").unwrap_or(&Value::Null),
            scenario
                .get("instructions")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        ),
        target,
        tool_mocks: mocks.cloned().collect(),
        unmocked_tools: scenario
            .get("unmockedTools")
            .filter(|mode| !mode.is_null())
            .cloned(),
        webhooks,
        max_duration_seconds,
        metadata: json!({
            "runId": item.run,
            "simulationRunItemId": item.id(),
            "simulationId": snapshot.simulation.get("id"),
            "iterationNumber": item.iteration,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_366_800_000;

    fn report(body: Value) -> CallReport {
        serde_json::from_value(named(body)).unwrap()
    }

    #[test]
    fn an_answer_may_name_its_call_as_an_answer_and_as_an_event_does() {
        assert_eq!(report(json!({"id": "a"})).call_id, "a");
        assert_eq!(report(json!({"callId": "a", "turnLatencies": null})).call_id, "a");
        assert_eq!(
            report(json!({"id": "a", "callId": "a", "status": "ended"})).call_id,
            "a"
        );
    }

    #[test]
    fn a_report_says_what_the_contract_says() {
        let full = json!({
            "callId": "c", "startedAt": "2026-11-22T17:00:00.000Z", "endedAt": "2026-11-22T17:02:30.000Z",
            "endedReason": "hung-up", "recordingUrl": "https://r", "cost": 0.042, "fault": "provider",
        });
        let facts = report(full.clone())
            .facts(Source::Report, Event::Ended, NOW)
            .unwrap();
        let ended = facts.ended.clone().unwrap().value;
        assert_eq!(
            (ended.reason.as_str(), ended.fault),
            ("hung-up", Some(Fault::Provider))
        );
        assert_eq!(ended.at - facts.started.clone().unwrap().value, 150_000);
        assert_eq!(facts.cost.unwrap().value, 42_000);
        assert_eq!(facts.call_id.unwrap().value, "c");
        let started = report(full.clone())
            .facts(Source::Report, Event::Started, NOW)
            .unwrap();
        assert_eq!(
            (started.ended, started.cost),
            (None, None),
            "a start says nothing of the end"
        );
        let bare = report(json!({"callId": "c"}))
            .facts(Source::Report, Event::Started, NOW)
            .unwrap();
        assert_eq!(bare.started.unwrap().value, NOW, "it came now");
        for (field, value, complaint) in [
            ("callId", Value::Null, "callId is missing"),
            (
                "callId",
                json!("a\u{7}b"),
                "callId must have at most 256 bytes and no control characters",
            ),
            (
                "callId",
                json!("x".repeat(257)),
                "callId must have at most 256 bytes and no control characters",
            ),
            ("endedReason", Value::Null, "endedReason is missing"),
            ("endedReason", json!(""), "endedReason is missing"),
            (
                "startedAt",
                json!("yesterday"),
                "startedAt must be a time in ISO 8601",
            ),
            ("endedAt", json!("soon"), "endedAt must be a time in ISO 8601"),
        ] {
            let mut odd = full.clone();
            odd[field] = value.clone();
            if value.is_null() {
                odd.as_object_mut().unwrap().remove(field);
            }
            let said = report(odd).facts(Source::Report, Event::Ended, NOW).unwrap_err();
            assert_eq!(said.to_string(), complaint);
        }
    }

    #[test]
    fn an_end_that_is_looked_up_at_once_waits_for_its_report() {
        let found = |status, body| Found {
            status,
            report: report(body),
        };
        let at = "2026-11-22T17:02:30.000Z";
        let ms = parse_iso(at).unwrap();
        let bare = found(CallStatus::Ended, json!({"id": "c", "endedAt": at}));
        assert!(bare.is_fresh_end(ms + REPORT_GRACE_MS - 1));
        assert!(!bare.is_fresh_end(ms + REPORT_GRACE_MS));
        let told = found(
            CallStatus::Ended,
            json!({"id": "c", "endedAt": at, "transcript": "AI: Hi"}),
        );
        assert!(!told.is_fresh_end(ms));
        assert!(!found(CallStatus::InProgress, json!({"id": "c"})).is_fresh_end(ms));
    }

    #[test]
    fn paths_lead_to_the_calls_of_a_url() {
        let provider = |url| Provider { url, api_key: None };
        for (url, more, whole) in [
            ("http://p/calls", &["a b/c"][..], "http://p/calls/a%20b%2Fc"),
            ("http://p/calls/", &["a", "end"], "http://p/calls/a/end"),
            ("http://p", &[], "http://p/"),
            ("http://p/calls?key=1", &["a"], "http://p/calls/a?key=1"),
        ] {
            assert_eq!(provider(url).url(more).unwrap().as_str(), whole);
        }
        assert!(matches!(provider("nowhere").url(&[]), Err(ProviderError::Url(_))));
        assert!(is_url("https://p") && !is_url("ftp://p") && !is_url("p"));
    }
}
