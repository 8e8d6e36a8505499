//! Providers of voice calls: what is asked of them and what they say. Inside, all of them speak the generic contract
//! (`infra/PROVIDER.md`); what is particular to one of them ends in its own module.

mod ask;
mod dialect;
pub mod events;
mod generic;
mod retell;
mod vapi;

use std::{fmt, time::Duration};

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::{
    dialect::{Dialect, RetellSettings, VapiCalls, VapiSettings, is_e164},
    events::ProviderKind,
    vapi::{ChatTurn, Remote},
};

use crate::{
    call_record::CallRecord,
    clock::parse_iso,
    evaluation::TurnLatency,
    lifecycle::{Ended, Fact, Facts, Fault, Item, Source},
    net::Outbound,
    trace::Trace,
};

/// How long an answer of a provider is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// How long all requests of a look-up may take together.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(40);
/// The longest name of a call, in bytes.
pub const MAX_CALL_ID: usize = 256;

/// Who carries a call, and how it is talked to.
#[derive(Clone)]
pub struct Provider<'a> {
    /// Its URL.
    pub url: &'a str,
    /// The key for requests to it.
    pub api_key: Option<&'a str>,
    /// Its API.
    pub dialect: &'a Dialect,
    /// The trace that requests to it belong to.
    pub trace: Option<Trace>,
    /// What it is to send along with its webhooks, where it does not sign them: headers by their names.
    pub hook_headers: &'a [(String, String)],
}

impl fmt::Debug for Provider<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor the URL, into which a user may have put one, nor the headers.
        f.debug_struct("Provider")
            .field("has_api_key", &self.api_key.is_some())
            .field("dialect", &self.dialect)
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
    /// The phone number of the target, in E.164, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_number: Option<String>,
    /// The personality's assistant as it is, without the scenario.
    #[serde(skip)]
    pub personality: Value,
    /// The scenario's instructions alone.
    #[serde(skip)]
    pub instructions: String,
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

    /// The same for one call, which whoever sends an event there need not name otherwise.
    #[must_use]
    pub fn about(self, correlation: &str) -> Self {
        let about = |url: String| format!("{url}?correlation={correlation}");
        Self {
            call_started: about(self.call_started),
            call_ended: about(self.call_ended),
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
    /// It cannot do what the order asks for, so it was not asked.
    #[error("the voice provider cannot do this: {0}")]
    Impossible(String),
    /// It did nothing, because it has too much to do at the moment or cannot be reached.
    #[error("the voice provider is not available: {what}")]
    Busy {
        /// What it said, or what happened.
        what: String,
        /// How long it wants to be left alone, in milliseconds.
        retry_after_ms: i64,
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
        matches!(self, Self::Unanswered(_) | Self::Busy { .. })
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            // The key, the settings or what is asked for has to be changed.
            Self::Refused {
                status: 401 | 403, ..
            }
            | Self::Impossible(_)
            | Self::Url(_) => Fault::Ringback,
            _ => Fault::Provider,
        }
    }

    /// How long it wants to be left alone if it did nothing, in milliseconds.
    #[must_use]
    pub fn is_busy(&self) -> Option<i64> {
        match self {
            Self::Busy { retry_after_ms, .. } => Some(*retry_after_ms),
            _ => None,
        }
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
    /// What else it says in its own words: its reason, its ids, its analysis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
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

/// What else there is to know of a call that is over.
#[derive(Debug, Clone, PartialEq)]
pub enum More {
    /// Nothing.
    Nothing,
    /// Something, in a moment.
    Later,
    /// This.
    Report(Box<CallReport>),
}

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

    /// Whether the call has not begun.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(self.status, CallStatus::Queued | CallStatus::Ringing)
    }

    /// Whether it says what was said.
    fn says_something(&self) -> bool {
        let words = self.report.messages.as_ref().is_some_and(|all| !all.is_empty());
        words
            || self
                .report
                .transcript
                .as_ref()
                .is_some_and(|text| !text.trim().is_empty())
    }

    /// Whether the call has ended so short before `now` that who looked it up may know less than the report will say.
    #[must_use]
    pub fn is_fresh_end(&self, now: i64) -> bool {
        let silent = !self.says_something();
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
    /// The same, with requests that belong to `trace`.
    #[must_use]
    pub fn traced(self, trace: Option<Trace>) -> Self {
        Self { trace, ..self }
    }
}

impl Provider<'_> {
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
        if let Some(why) = self.dialect.cannot_do(order) {
            return Err(ProviderError::Impossible(why.to_owned()));
        }
        let report = match self.dialect {
            Dialect::Generic => generic::place(self, outbound, order, key).await?,
            Dialect::Vapi(settings) => vapi::place(self, outbound, settings, order).await?,
            Dialect::Retell(settings) => retell::place(self, outbound, settings, order, key).await?,
        };
        if report.call_id.is_empty() || report.call_id.len() > MAX_CALL_ID {
            return Err(ProviderError::Unanswered("its answer has no id".to_owned()));
        }
        Ok(CallReport {
            listen_url: report.listen_url.filter(|url| url.len() <= MAX_LISTEN_URL),
            ..report
        })
    }

    /// Whether an order of `since` (milliseconds since the Unix epoch) may be repeated at `now`: no second call is placed then.
    #[must_use]
    pub fn may_repeat(&self, since: i64, now: i64) -> bool {
        match self.dialect {
            Dialect::Generic => true,
            Dialect::Vapi(_) => false,
            Dialect::Retell(_) => now - since < retell::SAME_KEY_MS,
        }
    }

    /// Looks a call up by its name, or by what Ringback named it; it was ordered at `since` (milliseconds since the Unix epoch) at
    /// the earliest. `None` when the provider does not know it.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn look_up(
        &self,
        outbound: &Outbound,
        call_id: Option<&str>,
        correlation: &str,
        since: i64,
    ) -> Result<Option<Found>, ProviderError> {
        let found = async {
            match self.dialect {
                Dialect::Generic => generic::look_up(self, outbound, call_id, correlation).await,
                Dialect::Vapi(settings) => {
                    vapi::look_up(self, outbound, settings, call_id, correlation, since).await
                }
                Dialect::Retell(_) => retell::look_up(self, outbound, call_id, correlation).await,
            }
        };
        // It may take several requests, and a claim does not hold for as many as there may be.
        match tokio::time::timeout(LOOK_UP_WITHIN, found).await {
            Ok(found) => found,
            Err(_) => Err(ProviderError::Unanswered(format!(
                "no answer within {} s",
                LOOK_UP_WITHIN.as_secs()
            ))),
        }
    }

    /// Asks what is known of a call that is over beyond `known`, which is all that was reported of it: what was said, where its
    /// events do not say it (`wordless`), and latencies and costs, where its provider keeps them elsewhere. `since` is when it was
    /// ordered, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn more(
        &self,
        outbound: &Outbound,
        call_id: &str,
        correlation: &str,
        since: i64,
        known: &CallRecord,
        wordless: bool,
    ) -> Result<More, ProviderError> {
        if wordless && known.messages.is_empty() && known.transcript.is_empty() {
            let found = self.look_up(outbound, Some(call_id), correlation, since).await?;
            return Ok(match found {
                Some(found) if found.is_over() && found.says_something() => {
                    More::Report(Box::new(found.report))
                }
                Some(_) => More::Later,
                None => More::Nothing,
            });
        }
        let leg = |name: &str| known.detail.as_ref()?.get(name)?.as_str();
        let asked = known
            .detail
            .as_ref()
            .is_some_and(|detail| detail.get(vapi::LEGS).is_some());
        let target = leg("targetCallId").or_else(|| leg("callId"));
        if let (Dialect::Vapi(_), Some(target), false) = (self.dialect, target, asked) {
            let report = vapi::legs(self, outbound, target, leg("testerCallId")).await?;
            return Ok(report.map_or(More::Later, |report| {
                More::Report(Box::new(CallReport {
                    call_id: call_id.to_owned(),
                    ..report
                }))
            }));
        }
        Ok(More::Nothing)
    }

    /// Asks for a call's end. `true` when it is over already or unknown.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub async fn end(&self, outbound: &Outbound, call_id: &str) -> Result<bool, ProviderError> {
        match self.dialect {
            Dialect::Generic => generic::end(self, outbound, call_id).await,
            Dialect::Vapi(settings) => vapi::end(self, outbound, settings, call_id).await,
            Dialect::Retell(_) => retell::end(self, outbound, call_id).await,
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
    let number = target.get("number").and_then(Value::as_str).map(str::to_owned);
    let mut target = match target.get("squad") {
        Some(squad) => json!({"type": "squad", "squad": squad}),
        // One that only the provider knows is named, not described.
        None => match target.get("remote").and_then(|remote| remote.get("assistantId")) {
            Some(id) => json!({"type": "assistant", "assistantId": id}),
            None => json!({"type": "assistant", "assistant": target.get("assistant")}),
        },
    };
    // A mock that is switched off is none: who does not look at `enabled` must not use it.
    let mocks = scenario.get("toolMocks").and_then(Value::as_array);
    let mocks = mocks.into_iter().flatten();
    let mocks = mocks.filter(|mock| mock.get("enabled") != Some(&Value::Bool(false)));
    if let (Some(overrides), Some(object)) = (overrides, target.as_object_mut()) {
        object.insert("assistantOverrides".to_owned(), overrides.clone());
    }
    let personality = snapshot.personality.get("assistant").unwrap_or(&Value::Null);
    let instructions = scenario.get("instructions").and_then(Value::as_str);
    let instructions = instructions.unwrap_or_default();
    Order {
        correlation,
        tester: crate::conversation::tester(personality, instructions),
        personality: personality.clone(),
        instructions: instructions.to_owned(),
        target,
        tool_mocks: mocks.cloned().collect(),
        unmocked_tools: scenario
            .get("unmockedTools")
            .filter(|mode| !mode.is_null())
            .cloned(),
        target_number: number,
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
}
