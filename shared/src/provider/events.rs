//! What providers say of calls by webhook, each in its own words, told as one observation: a call started, a call ended,
//! or nothing that matters here, which is counted by its kind.
//!
//! A body comes here after it was verified, and is still not trusted: what is not of the expected type counts as absent,
//! and a complaint never repeats any of it.
//!
//! # Sides
//! A provider knows its own agent and whoever that talks to. Which of the two is the agent under test it does not know:
//! Ringback says so in what it puts into a call when it places it, `{"ringback": {"correlation": …, "agent": "tester"}}`.
//! Where that is absent, the provider's agent is the target.
//!
//! # Faults
//! A reason that names a break-down becomes a [`Fault`] of the side that broke down. Reasons that say how a conversation
//! went, good or bad, have none: those calls are judged.

mod bland;
mod elevenlabs;
mod livekit;
pub mod retell;
mod telnyx;
mod twilio;
pub mod vapi;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    clock::{iso, parse_iso},
    evaluation::TurnLatency,
    lifecycle::Fault,
    provider::{CallReport, Event},
};

/// Whose webhooks they are: which dialect an endpoint's events come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// The contract in `infra/PROVIDER.md`.
    #[default]
    Generic,
    /// Vapi: its server messages and the hooks of its simulations.
    Vapi,
    /// Retell.
    Retell,
    /// ElevenLabs agents.
    Elevenlabs,
    /// Bland.
    Bland,
    /// Twilio's status callbacks.
    Twilio,
    /// LiveKit's rooms.
    Livekit,
    /// Telnyx call control.
    Telnyx,
}

impl ProviderKind {
    /// Whether its events never say what was said.
    #[must_use]
    pub fn is_wordless(self) -> bool {
        matches!(self, Self::Twilio | Self::Livekit | Self::Telnyx)
    }
}

/// A side of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The simulated caller.
    Tester,
    /// The agent under test.
    #[default]
    Target,
}

impl Side {
    /// Whom it talks to.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Tester => Self::Target,
            Self::Target => Self::Tester,
        }
    }

    /// A failure of it.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::Tester => Fault::Tester,
            Self::Target => Fault::Target,
        }
    }

    /// The role of its messages.
    fn role(self) -> &'static str {
        match self {
            Self::Tester => "user",
            Self::Target => "bot",
        }
    }

    /// Its name in a transcript.
    fn label(self) -> &'static str {
        match self {
            Self::Tester => "User",
            Self::Target => "AI",
        }
    }
}

/// What a verified event says.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and most are reports"
)]
pub enum Said {
    /// Something of a call.
    Report {
        /// What happened to it.
        event: Event,
        /// What is known of it.
        report: CallReport,
    },
    /// Nothing that matters here. The name of its kind, or `other`: few enough to be counted by.
    Ignored(Cow<'static, str>),
}

/// Reads the body of a verified event. `at` is which hook it was sent to, which counts where a generic event does not say
/// what it is. The content type tells a form from JSON, where a provider sends both. `agent` is the side that the agent of Vapi or Retell
/// is where the event does not say it.
///
/// # Errors
/// What is wrong with it, without any of its content.
pub fn said(
    kind: ProviderKind,
    at: Event,
    body: &[u8],
    content_type: Option<&str>,
    agent: Side,
) -> Result<Said, String> {
    match kind {
        ProviderKind::Generic => generic(at, body),
        ProviderKind::Vapi => vapi::said(&parsed(body)?, agent),
        ProviderKind::Retell => retell::said(&parsed(body)?, agent),
        ProviderKind::Elevenlabs => elevenlabs::said(&parsed(body)?),
        ProviderKind::Bland => bland::said(&parsed(body)?),
        ProviderKind::Twilio => twilio::said(body, content_type),
        ProviderKind::Livekit => livekit::said(&parsed(body)?),
        ProviderKind::Telnyx => telnyx::said(&parsed(body)?),
    }
}

fn generic(at: Event, body: &[u8]) -> Result<Said, String> {
    let report: CallReport = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
    let event = match report.kind.as_deref() {
        None => at,
        Some("call.started") => Event::Started,
        Some("call.ended") => Event::Ended,
        Some(_) => return Err("type must be call.started or call.ended".to_owned()),
    };
    Ok(Said::Report { event, report })
}

/// What is wrong with an event, without any of it: the parser's own words would repeat what was said.
fn unreadable(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "the event is not what the contract says",
        _ => "the event is not JSON",
    };
    format!("{what}: line {}, column {}", error.line(), error.column())
}

fn parsed(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| unreadable(&error))
}

fn missing(field: &str) -> String {
    format!("{field} is missing")
}

/// What a provider says of a call that was picked up.
fn started(report: CallReport) -> Said {
    Said::Report {
        event: Event::Started,
        report: CallReport {
            kind: Some("call.started".to_owned()),
            ..report
        },
    }
}

/// What a provider says of a call that is over. An end needs a reason.
fn ended(report: CallReport) -> Said {
    Said::Report {
        event: Event::Ended,
        report: CallReport {
            kind: Some("call.ended".to_owned()),
            ended_reason: report.ended_reason.or_else(|| Some("unknown".to_owned())),
            ..report
        },
    }
}

/// An event of a kind that is not read. Names that a sender could make up are all one.
fn ignored(known: &[&'static str], kind: &str) -> Said {
    let name = known.iter().find(|known| **known == kind);
    Said::Ignored(Cow::Borrowed(name.copied().unwrap_or("other")))
}

/// The text at a JSON pointer. An empty one says nothing.
fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
}

fn owned(value: &Value, pointer: &str) -> Option<String> {
    text(value, pointer).map(str::to_owned)
}

/// The number at a JSON pointer. Some write long ones as strings.
fn number(value: &Value, pointer: &str) -> Option<f64> {
    match value.pointer(pointer)? {
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    }
    .filter(|number: &f64| number.is_finite())
}

/// The list at a JSON pointer, or none of anything.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The object at a JSON pointer that a text contains.
fn embedded(value: &Value, pointer: &str) -> Option<Value> {
    let inner: Value = serde_json::from_str(text(value, pointer)?).ok()?;
    inner.is_object().then_some(inner)
}

/// The last moment that is taken for one: the year 9999.
const LAST: f64 = 253_402_300_799_999.0;

/// Milliseconds since the Unix epoch, where they can be ones.
fn moment(ms: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "checked before")]
    (0.0..=LAST).contains(&ms).then_some(ms.round() as i64)
}

/// The moment at a JSON pointer, in milliseconds since the Unix epoch.
fn at_ms(value: &Value, pointer: &str) -> Option<i64> {
    moment(number(value, pointer)?)
}

/// The moment at a JSON pointer, in seconds since the Unix epoch.
fn at_seconds(value: &Value, pointer: &str) -> Option<i64> {
    moment(number(value, pointer)? * 1000.0)
}

/// The moment at a JSON pointer, in ISO 8601.
fn at_iso(value: &Value, pointer: &str) -> Option<i64> {
    parse_iso(text(value, pointer)?)
}

/// The longest part of what a provider says in its own words that is kept, in bytes of JSON.
const MAX_DETAIL: usize = 4000;

/// What is kept in a provider's own words: those parts that are there and are not long.
fn detail<const N: usize>(parts: [(&'static str, Option<&Value>); N]) -> Option<Value> {
    let parts = parts.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_null())?;
        let length = serde_json::to_vec(value).ok()?.len();
        (length <= MAX_DETAIL).then(|| (name.to_owned(), value.clone()))
    });
    let parts: Map<String, Value> = parts.collect();
    (!parts.is_empty()).then_some(Value::Object(parts))
}

/// What Ringback put into a call when it placed it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ours {
    correlation: Option<String>,
    /// Which side the provider's agent is. `None` where nobody says it.
    agent: Option<Side>,
}

/// What Ringback put into the first of these metadata that has something of it: an object of its own, or fields at the top where the
/// provider finds calls by those only.
fn ours<'a>(metadata: impl IntoIterator<Item = Option<&'a Value>>) -> Ours {
    let mark = |metadata: &Value| {
        let own = metadata.get("ringback").filter(|mark| mark.is_object());
        let found = match own {
            Some(mark) => Ours {
                correlation: owned(mark, "/correlation"),
                agent: text(mark, "/agent").and_then(side),
            },
            None => Ours {
                correlation: owned(metadata, "/ringback_correlation"),
                agent: text(metadata, "/ringback_agent").and_then(side),
            },
        };
        (own.is_some() || found != Ours::default()).then_some(found)
    };
    let mut all = metadata.into_iter().flatten();
    all.find_map(mark).unwrap_or_default()
}

fn side(name: &str) -> Option<Side> {
    match name {
        "tester" => Some(Side::Tester),
        "target" => Some(Side::Target),
        _ => None,
    }
}

/// Who is to blame for the end of a call, as a provider sees the sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// Nobody: it is how the conversation went.
    Nobody,
    /// The provider's agent: what it is made of or how it is configured.
    Agent,
    /// Whoever the agent talks to: could not be reached, or fell silent.
    Other,
    /// The platform or the carrier.
    Provider,
    /// Whose account it is and who placed the call.
    Ringback,
}

impl Blame {
    fn fault(self, agent: Side) -> Option<Fault> {
        match self {
            Self::Nobody => None,
            Self::Agent => Some(agent.fault()),
            Self::Other => Some(agent.other().fault()),
            Self::Provider => Some(Fault::Provider),
            Self::Ringback => Some(Fault::Ringback),
        }
    }
}

/// When something was said, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct When {
    /// Milliseconds since the Unix epoch.
    from: Option<i64>,
    /// Milliseconds since the Unix epoch.
    to: Option<i64>,
    /// Seconds since the start of the call.
    seconds: Option<f64>,
}

impl When {
    /// From seconds since a start.
    fn after(start: Option<i64>, from: Option<f64>, to: Option<f64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a moment has less than 53 bits")]
        let at = |seconds: Option<f64>| moment(start? as f64 + seconds? * 1000.0);
        Self {
            from: at(from),
            to: at(to),
            seconds: from,
        }
    }

    /// From a moment, in a call with this start.
    fn at(start: Option<i64>, from: Option<i64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "the difference of two moments")]
        let seconds = |start: i64, from: i64| (from - start) as f64 / 1000.0;
        Self {
            from,
            to: None,
            seconds: start.zip(from).map(|(start, from)| seconds(start, from)),
        }
    }
}

/// What was said and done, in the normal form, as it is put together.
#[derive(Debug)]
struct Conversation {
    /// Which side the provider's agent is.
    agent: Side,
    messages: Vec<Value>,
    /// Who spoke when.
    spoken: Vec<(Side, When)>,
}

impl Conversation {
    fn new(agent: Side) -> Self {
        Self {
            agent,
            messages: Vec::new(),
            spoken: Vec::new(),
        }
    }

    /// What the provider's agent or whoever it talks to said. Gives its message, unless there were no words.
    fn say(&mut self, is_agent: bool, words: Option<&str>, when: When) -> Option<&mut Map<String, Value>> {
        let words = words.filter(|words| !words.trim().is_empty())?;
        let side = if is_agent { self.agent } else { self.agent.other() };
        self.spoken.push((side, when));
        let message = json!({"role": side.role(), "message": words});
        self.push(message, when)
    }

    /// The tools that the provider's agent called.
    fn call(&mut self, calls: Vec<Value>, when: When) {
        // What a tester does (it hangs up with a tool) would be taken for the target's doing: tools are the target's in the
        // normal form, and a tester's are part of how it was made.
        if self.agent == Side::Target && !calls.is_empty() {
            self.push(json!({"role": "tool_calls", "toolCalls": calls}), when);
        }
    }

    /// What a tool answered to the provider's agent.
    fn answer(&mut self, id: Option<&str>, name: Option<&str>, result: Option<&Value>, when: When) {
        // As above.
        let (Side::Target, Some(result)) = (self.agent, result.filter(|result| !result.is_null())) else {
            return;
        };
        let result = match result {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut message = json!({"role": "tool_call_result", "result": result});
        for (field, value) in [("toolCallId", id), ("name", name)] {
            if let Some(value) = value {
                message[field] = json!(value);
            }
        }
        self.push(message, when);
    }

    fn push(&mut self, mut message: Value, when: When) -> Option<&mut Map<String, Value>> {
        let times = [("time", when.from), ("endTime", when.to)];
        for (field, at) in times {
            if let Some(at) = at {
                message[field] = json!(at);
            }
        }
        if let Some(seconds) = when.seconds {
            message["secondsFromStart"] = json!(seconds);
        }
        self.messages.push(message);
        self.messages.last_mut()?.as_object_mut()
    }

    /// How long the target took for each answer whose times are known: from the tester's last word to its own first one.
    /// Who talks into the other's words has not answered them.
    fn turns(&self) -> Vec<TurnLatency> {
        let turn = |pair: &[(Side, When)]| match pair {
            [(Side::Tester, asked), (Side::Target, answered)] => {
                let ms = answered.from?.checked_sub(asked.to?)?;
                #[expect(clippy::cast_precision_loss, reason = "the difference of two moments")]
                (ms >= 0).then_some(TurnLatency {
                    turn: Some(ms as f64),
                    ..TurnLatency::default()
                })
            }
            _ => None,
        };
        self.spoken.windows(2).filter_map(turn).collect()
    }

    /// Whether somebody said something.
    fn has_words(&self) -> bool {
        !self.spoken.is_empty()
    }

    /// The messages, `None` where there are none: who says nothing has not said that nothing was said.
    fn messages(self) -> Option<Vec<Value>> {
        (!self.messages.is_empty()).then_some(self.messages)
    }
}

/// A provider's transcript with the names that the sides have here.
fn relabelled(transcript: &str, agent: Side) -> String {
    let line = |line: &str| {
        let Some((label, words)) = line.split_once(':') else {
            return line.to_owned();
        };
        let side = match label.trim().to_ascii_lowercase().as_str() {
            "ai" | "agent" | "assistant" | "bot" => agent,
            "user" | "customer" => agent.other(),
            _ => return line.to_owned(),
        };
        format!("{}: {}", side.label(), words.trim())
    };
    let lines = transcript
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(line);
    lines.collect::<Vec<_>>().join("\n")
}

fn iso_of(ms: Option<i64>) -> Option<String> {
    ms.map(iso)
}

#[cfg(test)]
mod testing {
    use super::*;

    /// What a fixture says, without what it does not say.
    pub(super) fn read(kind: ProviderKind, body: &str) -> (Event, Value) {
        match said(kind, Event::Ended, body.as_bytes(), None, Side::Target).unwrap() {
            Said::Report { event, report } => (event, shown(&report)),
            Said::Ignored(name) => panic!("ignored: {name}"),
        }
    }

    pub(super) fn shown(report: &CallReport) -> Value {
        let mut value = serde_json::to_value(report).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.retain(|_, value| !value.is_null() && *value != json!([]));
        for latency in fields
            .get_mut("turnLatencies")
            .into_iter()
            .filter_map(Value::as_array_mut)
            .flatten()
        {
            latency
                .as_object_mut()
                .unwrap()
                .retain(|_, value| !value.is_null());
        }
        value
    }

    pub(super) fn ignored_as(kind: ProviderKind, body: &str) -> String {
        match said(kind, Event::Ended, body.as_bytes(), None, Side::Target).unwrap() {
            Said::Ignored(name) => name.into_owned(),
            Said::Report { report, .. } => panic!("a report: {report:?}"),
        }
    }

    /// A fixture with some of its parts replaced.
    pub(super) fn with(body: &str, parts: &[(&str, Value)]) -> String {
        let mut body: Value = serde_json::from_str(body).unwrap();
        for (pointer, value) in parts {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            body.pointer_mut(parent).unwrap()[name] = value.clone();
        }
        body.to_string()
    }

    pub(super) fn complaint(kind: ProviderKind, body: &str) -> String {
        said(kind, Event::Ended, body.as_bytes(), None, Side::Target).unwrap_err()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{testing::*, *};

    const KINDS: [ProviderKind; 8] = [
        ProviderKind::Generic,
        ProviderKind::Vapi,
        ProviderKind::Retell,
        ProviderKind::Elevenlabs,
        ProviderKind::Bland,
        ProviderKind::Twilio,
        ProviderKind::Livekit,
        ProviderKind::Telnyx,
    ];

    /// The fixtures that say much, with whose they are.
    const FIXTURES: &[(ProviderKind, &str)] = &[
        (
            ProviderKind::Vapi,
            include_str!("../../../tests/fixtures/vapi/end-of-call-report-tester.json"),
        ),
        (
            ProviderKind::Vapi,
            include_str!("../../../tests/fixtures/vapi/end-of-call-report.json"),
        ),
        (
            ProviderKind::Vapi,
            include_str!("../../../tests/fixtures/vapi/status-update.json"),
        ),
        (
            ProviderKind::Vapi,
            include_str!("../../../tests/fixtures/vapi/simulation.run.ended.json"),
        ),
        (
            ProviderKind::Retell,
            include_str!("../../../tests/fixtures/retell/call_analyzed.json"),
        ),
        (
            ProviderKind::Retell,
            include_str!("../../../tests/fixtures/retell/call_ended.json"),
        ),
        (
            ProviderKind::Elevenlabs,
            include_str!("../../../tests/fixtures/elevenlabs/post_call_transcription.json"),
        ),
        (
            ProviderKind::Elevenlabs,
            include_str!("../../../tests/fixtures/elevenlabs/call_initiation_failure.json"),
        ),
        (
            ProviderKind::Bland,
            include_str!("../../../tests/fixtures/bland/post-call.json"),
        ),
        (
            ProviderKind::Twilio,
            include_str!("../../../tests/fixtures/twilio/completed.json"),
        ),
        (
            ProviderKind::Livekit,
            include_str!("../../../tests/fixtures/livekit/room_finished.json"),
        ),
        (
            ProviderKind::Telnyx,
            include_str!("../../../tests/fixtures/telnyx/call.hangup.json"),
        ),
    ];

    #[test]
    fn kinds_have_names() {
        let names: Vec<Value> = KINDS
            .iter()
            .map(|kind| serde_json::to_value(kind).unwrap())
            .collect();
        let expected = [
            "generic",
            "vapi",
            "retell",
            "elevenlabs",
            "bland",
            "twilio",
            "livekit",
            "telnyx",
        ];
        assert_eq!(names, expected.map(Value::from));
        assert_eq!(ProviderKind::default(), ProviderKind::Generic);
    }

    #[test]
    fn a_generic_event_says_what_it_is_or_goes_by_its_hook() {
        let at = |body: &str| {
            said(
                ProviderKind::Generic,
                Event::Started,
                body.as_bytes(),
                None,
                Side::Target,
            )
        };
        for (body, expected) in [
            (r#"{"callId": "c"}"#, Event::Started),
            (r#"{"type": null, "callId": "c"}"#, Event::Started),
            (r#"{"type": "call.started", "callId": "c"}"#, Event::Started),
            (r#"{"type": "call.ended", "callId": "c"}"#, Event::Ended),
        ] {
            let Ok(Said::Report { event, report }) = at(body) else {
                panic!("{body}");
            };
            assert_eq!((event, report.call_id.as_str()), (expected, "c"));
        }
        for (body, expected) in [
            (r#"{"type": "hello"}"#, "type must be call.started or call.ended"),
            ("secret", "the event is not JSON: line 1, column 1"),
            (
                r#"{"cost": "secret"}"#,
                "the event is not what the contract says: line 1, column 17",
            ),
        ] {
            assert_eq!(at(body), Err(expected.to_owned()));
        }
    }

    #[test]
    fn what_is_no_event_is_complained_about_without_its_content() {
        for kind in KINDS.into_iter().filter(|kind| *kind != ProviderKind::Twilio) {
            let complaint = complaint(kind, r#"{"a": secret}"#);
            assert!(
                complaint.starts_with("the event is not JSON: line 1"),
                "{complaint}"
            );
        }
        for (kind, expected) in [
            (ProviderKind::Vapi, "message.type is missing"),
            (ProviderKind::Retell, "event is missing"),
            (ProviderKind::Elevenlabs, "type is missing"),
            (ProviderKind::Bland, "call_id is missing"),
            (ProviderKind::Twilio, "CallSid is missing"),
            (ProviderKind::Livekit, "event is missing"),
            (ProviderKind::Telnyx, "data.event_type is missing"),
        ] {
            for body in [
                "{}",
                "[]",
                "null",
                "7",
                r#"{"type": 7, "event": [], "data": 1, "call_id": {}}"#,
            ] {
                // What Twilio sends is a form where it does not look like JSON.
                assert_eq!(complaint(kind, body), expected, "{body}");
            }
        }
    }

    #[test]
    fn kinds_that_a_sender_makes_up_are_counted_as_one() {
        for (kind, body) in [
            (ProviderKind::Vapi, r#"{"message": {"type": "made-up"}}"#),
            (ProviderKind::Retell, r#"{"event": "made-up"}"#),
            (ProviderKind::Elevenlabs, r#"{"type": "made-up"}"#),
            (ProviderKind::Bland, r#"{"call_id": "c", "category": "made-up"}"#),
            (ProviderKind::Bland, r#"{"call_id": "c"}"#),
            (
                ProviderKind::Twilio,
                r#"{"CallSid": "c", "CallStatus": "made-up"}"#,
            ),
            (ProviderKind::Livekit, r#"{"event": "made-up"}"#),
            (ProviderKind::Telnyx, r#"{"data": {"event_type": "made-up"}}"#),
        ] {
            assert_eq!(ignored_as(kind, body), "other", "{body}");
        }
    }

    #[test]
    fn what_is_not_of_its_type_counts_as_absent() {
        assert_eq!(number(&json!({"a": "1.5"}), "/a"), Some(1.5));
        for odd in [
            json!("inf"),
            json!("NaN"),
            json!([]),
            json!(null),
            json!(true),
            json!("1s"),
        ] {
            assert_eq!(number(&json!({ "a": odd }), "/a"), None);
        }
        for (ms, expected) in [
            (0.0, Some(0)),
            (1.5, Some(2)),
            (-1.0, None),
            (1e300, None),
            (LAST, Some(253_402_300_799_999)),
        ] {
            assert_eq!(moment(ms), expected);
        }
        let long = json!("x".repeat(MAX_DETAIL));
        let parts = [
            ("long", Some(&long)),
            ("null", Some(&Value::Null)),
            ("absent", None),
        ];
        assert_eq!(detail(parts), None);
    }

    #[test]
    fn a_transcript_gets_the_names_of_the_sides() {
        let theirs = "Agent: Hi: there\n user: Hello \n\nAI: Yes\nOperator: x\nno name";
        for (agent, expected) in [
            (
                Side::Target,
                "AI: Hi: there\nUser: Hello\nAI: Yes\nOperator: x\nno name",
            ),
            (
                Side::Tester,
                "User: Hi: there\nAI: Hello\nUser: Yes\nOperator: x\nno name",
            ),
        ] {
            assert_eq!(relabelled(theirs, agent), expected);
        }
    }

    #[test]
    fn a_turn_is_from_the_testers_last_word_to_the_targets_first() {
        let mut all = Conversation::new(Side::Target);
        let when = |from, to| When {
            from,
            to,
            seconds: None,
        };
        for (is_agent, from, to) in [
            (true, Some(0), Some(1000)),
            (false, Some(1200), Some(2000)),
            (false, Some(2500), Some(3000)),
            (true, Some(3700), Some(4000)),
            (true, Some(4100), Some(5000)),
            (false, Some(5200), Some(6000)),
            // It did not wait.
            (true, Some(5900), Some(6100)),
            (false, Some(7000), None),
            (true, Some(8000), None),
            (false, None, Some(9000)),
            (true, Some(9000), None),
        ] {
            all.say(is_agent, Some("word"), when(from, to));
        }
        // Silence is no word.
        all.say(false, Some("  "), when(Some(1), Some(2)));
        all.say(false, None, when(Some(1), Some(2)));
        let turns: Vec<_> = all.turns().iter().filter_map(|turn| turn.turn).collect();
        assert_eq!(turns, [700.0, 0.0]);
    }

    #[test]
    fn what_ringback_put_in_is_found_where_it_is_first() {
        let mark = |agent: &str| json!({"ringback": {"correlation": agent, "agent": agent}});
        let (tester, target) = (mark("tester"), mark("target"));
        let found = ours([None, Some(&json!({"ringback": 7})), Some(&tester), Some(&target)]);
        assert_eq!(
            found,
            Ours {
                correlation: Some("tester".to_owned()),
                agent: Some(Side::Tester)
            }
        );
        assert_eq!(ours([Some(&mark("nobody"))]).agent, None);
        assert_eq!(ours([Some(&json!("text")), None]), Ours::default());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            Just(json!("2026-11-22T17:00:00Z")),
            Just(json!("tester")),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Puts `odd` at the `index`th place of `value`, counted through.
    fn put(value: &mut Value, index: &mut usize, odd: &Value) {
        if *index == 0 {
            *value = odd.clone();
        }
        *index = index.wrapping_sub(1);
        match value {
            Value::Array(values) => values.iter_mut().for_each(|value| put(value, index, odd)),
            Value::Object(fields) => fields.values_mut().for_each(|value| put(value, index, odd)),
            _ => {}
        }
    }

    /// A report must be one that is kept and read again.
    fn check(kind: ProviderKind, body: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(Said::Report { report, .. }) = said(kind, Event::Ended, body, None, Side::Target) {
            if kind != ProviderKind::Generic {
                prop_assert!(!report.call_id.is_empty());
                for time in [&report.started_at, &report.ended_at].into_iter().flatten() {
                    prop_assert!(parse_iso(time).is_some(), "{time}");
                }
            }
            let kept = serde_json::to_string(&report).unwrap();
            prop_assert!(serde_json::from_str::<CallReport>(&kept).is_ok());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn no_json_is_too_odd(value in any_json(), kind in prop::sample::select(&KINDS[..])) {
            check(kind, value.to_string().as_bytes())?;
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for kind in KINDS {
                check(kind, &bytes)?;
            }
        }

        #[test]
        fn no_fixture_is_too_odd_with_something_else_in_any_place(
            (kind, body) in prop::sample::select(FIXTURES),
            index in 0_usize..300,
            odd in any_json(),
        ) {
            let mut body: Value = serde_json::from_str(body).unwrap();
            put(&mut body, &mut index.clone(), &odd);
            check(kind, body.to_string().as_bytes())?;
        }
    }
}
