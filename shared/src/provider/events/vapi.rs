//! Vapi: the server messages of its calls and the hooks of its simulations.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{
    Blame, Conversation, Ours, Said, Side, When, at_iso, at_ms, detail, ended, ignored, iso_of, list,
    missing, number, ours, owned, relabelled, started, text,
};
use crate::{evaluation::TurnLatency, lifecycle::Fault, provider::CallReport};

/// Its kinds that are not read.
const KINDS: &[&str] = &[
    "assistant-request",
    "assistant.started",
    "assistant.speechStarted",
    "call.deleted",
    "call.delete.failed",
    "call.endpointing.request",
    "chat.created",
    "chat.deleted",
    "conversation-update",
    "function-call",
    "hang",
    "handoff-destination-request",
    "knowledge-base-request",
    "language-change-detected",
    "model-output",
    "phone-call-control",
    "session.created",
    "session.deleted",
    "session.updated",
    "speech-update",
    "tool-calls",
    "transcript",
    "transfer-destination-request",
    "transfer-update",
    "user-interrupted",
    "voice-input",
    "voice-request",
];

/// The states of a call that say neither that it started nor what it was like. `ended` is one of them: what was said comes
/// with the report that follows, and an end that is known before its words would be taken for a silent call. Where no
/// report follows, the call is looked up.
const STATES: &[(&str, &str)] = &[
    ("scheduled", "status-update.scheduled"),
    ("queued", "status-update.queued"),
    ("ringing", "status-update.ringing"),
    ("forwarding", "status-update.forwarding"),
    ("ended", "status-update.ended"),
    ("not-found", "status-update.not-found"),
    ("deletion-failed", "status-update.deletion-failed"),
];

/// `usual` is the side of Vapi's assistant in a call that does not say it.
pub(super) fn said(body: &Value, usual: Side) -> Result<Said, String> {
    // The hooks of simulations come without a wrapper, by some accounts also with one.
    let message = body
        .get("message")
        .filter(|message| message.is_object())
        .unwrap_or(body);
    match text(message, "/type").ok_or_else(|| missing("message.type"))? {
        "status-update" => status(message),
        "end-of-call-report" => {
            let call = call_of(message)?;
            let agent = marks(&[message, call]).agent.unwrap_or(usual);
            Ok(ended(report(&[message, call], agent)))
        }
        "simulation.run.started" => Ok(started(simulation(message)?)),
        "simulation.run.ended" => Ok(ended(simulation_end(message)?)),
        kind => Ok(ignored(KINDS, kind)),
    }
}

fn call_of(message: &Value) -> Result<&Value, String> {
    let call = message.get("call").filter(|call| text(call, "/id").is_some());
    call.ok_or_else(|| missing("message.call.id"))
}

fn status(message: &Value) -> Result<Said, String> {
    let status = text(message, "/status").ok_or_else(|| missing("message.status"))?;
    if status != "in-progress" {
        let known = STATES.iter().find(|(state, _)| *state == status);
        let name = known.map_or("status-update.other", |(_, name)| name);
        return Ok(Said::Ignored(Cow::Borrowed(name)));
    }
    let call = call_of(message)?;
    let at = at_iso(call, "/startedAt").or_else(|| at_ms(message, "/timestamp"));
    Ok(started(CallReport {
        call_id: owned(call, "/id").unwrap_or_default(),
        correlation: marks(&[message, call]).correlation,
        started_at: iso_of(at),
        listen_url: owned(call, "/monitor/listenUrl"),
        ..CallReport::default()
    }))
}

/// What Ringback put into the call, or into its assistant, which a call may be shown without.
fn marks(sources: &[&Value]) -> Ours {
    let places = ["/metadata", "/call/metadata", "/assistant/metadata"];
    ours(
        places
            .iter()
            .flat_map(|place| sources.iter().map(|source| source.pointer(place))),
    )
}

/// Which side Vapi's assistant is in a call: what Ringback put into it, the target where it put in nothing.
#[must_use]
pub fn agent_of_call(call: &Value) -> Side {
    marks(&[call]).agent.unwrap_or_default()
}

/// What a call as Vapi shows it says, where its assistant is the side `agent`.
#[must_use]
pub fn report_of_call(call: &Value, agent: Side) -> CallReport {
    report(&[call], agent)
}

/// What is known from these, the first of which is the freshest and the last of which is the call.
fn report(sources: &[&Value], agent: Side) -> CallReport {
    fn first<'a, T>(sources: &[&'a Value], get: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        sources.iter().find_map(|source| get(source))
    }
    let reason = first(sources, |source| text(source, "/endedReason"));
    let artifact = first(sources, |source| {
        source.get("artifact").filter(|artifact| artifact.is_object())
    });
    let artifact = artifact.unwrap_or(&Value::Null);
    let messages = [artifact]
        .iter()
        .chain(sources)
        .map(|source| list(source, "/messages"))
        .find(|messages| !messages.is_empty());
    let conversation = conversation(messages.unwrap_or_default(), agent);
    let transcript = [artifact]
        .iter()
        .chain(sources)
        .find_map(|source| text(source, "/transcript"));
    let recording = |source| {
        let places = [
            "/recording/mono/combinedUrl",
            "/recordingUrl",
            "/recording/stereoUrl",
            "/stereoRecordingUrl",
        ];
        places.iter().find_map(|place| owned(source, place))
    };
    let analysis = first(sources, |source| source.get("analysis"));
    CallReport {
        call_id: sources
            .last()
            .and_then(|call| owned(call, "/id"))
            .unwrap_or_default(),
        correlation: marks(sources).correlation,
        started_at: iso_of(first(sources, |source| at_iso(source, "/startedAt"))),
        ended_at: iso_of(first(sources, |source| at_iso(source, "/endedAt"))),
        ended_reason: reason.map(|reason| told(reason, agent).to_owned()),
        transcript: transcript
            .filter(|_| !conversation.has_words())
            .map(|transcript| relabelled(transcript, agent)),
        turn_latencies: latencies(artifact, agent).unwrap_or_else(|| conversation.turns()),
        messages: conversation.messages(),
        recording_url: [artifact]
            .into_iter()
            .chain(sources.iter().copied())
            .find_map(recording),
        listen_url: first(sources, |source| owned(source, "/monitor/listenUrl")),
        cost: first(sources, cost),
        fault: reason.and_then(|reason| fault_of(reason, agent)),
        detail: detail([
            ("endedReason", reason.map(Value::from).as_ref()),
            ("analysis", analysis),
            ("structuredOutputs", artifact.pointer("/structuredOutputs")),
        ]),
        ..CallReport::default()
    }
}

fn cost(source: &Value) -> Option<f64> {
    number(source, "/cost").or_else(|| {
        let parts = list(source, "/costs");
        let parts = parts.iter().filter_map(|part| number(part, "/cost"));
        parts.reduce(|sum, part| sum + part)
    })
}

fn conversation(messages: &[Value], agent: Side) -> Conversation {
    let mut all = Conversation::new(agent);
    for message in messages {
        let when = When {
            from: at_ms(message, "/time"),
            to: at_ms(message, "/endTime"),
            seconds: number(message, "/secondsFromStart"),
        };
        let words = text(message, "/message").or_else(|| text(message, "/content"));
        match text(message, "/role").unwrap_or_default() {
            "bot" | "assistant" => {
                let Some(said) = all.say(true, words, when) else {
                    continue;
                };
                // Which member of a squad it was matters of the target only.
                for name in ["assistantName", "assistantId"] {
                    if let (Side::Target, Some(value)) = (agent, message.get(name).filter(|v| v.is_string()))
                    {
                        said.insert(name.to_owned(), value.clone());
                    }
                }
            }
            "user" | "customer" => {
                all.say(false, words, when);
            }
            // A tester's system message is what it was told to play: nobody said it, and the target was not given it.
            "system" if agent == Side::Target => {
                if let Some(words) = words {
                    all.push(json!({"role": "system", "message": words}), when);
                }
            }
            "tool_calls" => all.call(list(message, "/toolCalls").to_vec(), when),
            "tool_call_result" | "tool" => {
                let id = text(message, "/toolCallId").or_else(|| text(message, "/tool_call_id"));
                let result = message.get("result").or_else(|| message.get("content"));
                all.answer(id, text(message, "/name"), result, when);
            }
            _ => {}
        }
    }
    all
}

/// What Vapi measured of its assistant, if that is the target.
fn latencies(artifact: &Value, agent: Side) -> Option<Vec<TurnLatency>> {
    let turns = list(artifact, "/performanceMetrics/turnLatencies");
    let turn = |turn: &Value| TurnLatency {
        turn: number(turn, "/turnLatency"),
        model: number(turn, "/modelLatency"),
        voice: number(turn, "/voiceLatency"),
        transcriber: number(turn, "/transcriberLatency"),
        endpointing: number(turn, "/endpointingLatency"),
    };
    (agent == Side::Target && !turns.is_empty()).then(|| turns.iter().map(turn).collect())
}

/// A simulation's run, which is what its hooks name; whose it is, is in the URL that they come to. Its two calls are seen
/// from the target: the assistant of its messages and of its reasons is the one under test.
fn simulation(message: &Value) -> Result<CallReport, String> {
    let at = at_iso(message, "/startedAt").or_else(|| at_ms(message, "/timestamp"));
    Ok(CallReport {
        call_id: owned(message, "/runId").ok_or_else(|| missing("runId"))?,
        started_at: iso_of(at),
        listen_url: owned(message, "/calls/listenUrl"),
        detail: simulation_detail(message, None),
        ..CallReport::default()
    })
}

fn simulation_detail(message: &Value, reason: Option<&str>) -> Option<Value> {
    detail([
        ("simulationRunItemId", message.get("simulationRunItemId")),
        ("simulationId", message.get("simulationId")),
        ("testerCallId", message.pointer("/calls/testerCallId")),
        ("targetCallId", message.pointer("/calls/targetCallId")),
        ("endedReason", reason.map(Value::from).as_ref()),
        ("failureReason", message.get("failureReason")),
        ("canceled", message.get("canceled")),
    ])
}

fn simulation_end(message: &Value) -> Result<CallReport, String> {
    let mut head = simulation(message)?;
    // Only the end's own start is one here: the time of the event is its end.
    head.started_at = iso_of(at_iso(message, "/startedAt"));
    let ended_at = at_iso(message, "/endedAt").or_else(|| at_ms(message, "/timestamp"));
    let reason = text(message, "/endedReason");
    let failure = text(message, "/failureReason");
    let is_canceled = message.get("canceled") == Some(&Value::Bool(true));
    let fault = if is_canceled {
        Some(Fault::Ringback)
    } else {
        let fault = reason.and_then(|reason| fault_of(reason, Side::Target));
        // A simulation that could not be held says nothing of the agent, whatever its reason.
        fault.or_else(|| failure.map(|_| Fault::Provider))
    };
    let conversation = conversation(list(message, "/messages"), Side::Target);
    Ok(CallReport {
        ended_at: iso_of(ended_at),
        ended_reason: reason
            .or(is_canceled.then_some("canceled"))
            .or(failure)
            // A chat has no reason.
            .or(Some("completed"))
            .map(str::to_owned),
        transcript: text(message, "/transcript")
            .filter(|_| !conversation.has_words())
            .map(|transcript| relabelled(transcript, Side::Target)),
        turn_latencies: conversation.turns(),
        messages: conversation.messages(),
        recording_url: owned(message, "/recordingUrl"),
        fault,
        detail: simulation_detail(message, reason),
        ..head
    })
}

/// A reason as Ringback tells it, where the customer is the tester and the assistant is the target. Vapi's are told the
/// other way round when its assistant plays the tester. Reasons that do not name a party stay as they are.
fn told(reason: &str, agent: Side) -> &str {
    if agent == Side::Target {
        return reason;
    }
    match reason {
        "assistant-ended-call"
        | "assistant-ended-call-after-message-spoken"
        | "assistant-ended-call-with-hangup-task"
        | "assistant-said-end-call-phrase" => "customer-ended-call",
        "assistant-forwarded-call" => "customer-forwarded-call",
        "customer-ended-call"
        | "customer-ended-call-before-warm-transfer"
        | "customer-ended-call-after-warm-transfer-attempt"
        | "customer-ended-call-during-transfer" => "assistant-ended-call",
        "customer-busy" => "assistant-busy",
        "customer-did-not-answer" => "assistant-did-not-answer",
        reason => reason,
    }
}

/// Whose fault it is that a call of Vapi ended for this reason, where its assistant is the side `agent`. `None` where the
/// call is to be judged.
#[must_use]
pub fn fault_of(ended_reason: &str, agent: Side) -> Option<Fault> {
    match blame(ended_reason) {
        Some(blame) => blame.fault(agent),
        // Of a reason that is new, only that it is an error can be told.
        None if ["error", "fault", "failed"]
            .iter()
            .any(|word| ended_reason.contains(word)) =>
        {
            Some(Fault::Provider)
        }
        None => None,
    }
}

/// Marks of errors of the voice pipeline that come from how an assistant is configured or from its own services, whoever's
/// key was used.
const CONFIGURATION: &[&str] = &[
    "400-bad-request-validation-failed",
    "404-not-found",
    "blocked-content-against-their-policy",
    "blocked-using-instant-voice-clone",
    "blocked-voice-potentially-against-terms-of-service",
    "custom-llm",
    "custom-transcriber",
    "custom-voice",
    "invalid-config",
    "invalid-emotion",
    "invalid-schema",
    "invalid-voice",
    "max-character-limit-exceeded",
    "missing-samples-for-voice-clone",
    "no-such-model-language-tier-combination",
    "paid-only-feature",
    "professional-voices-only",
    "valid-voice-manifest-uri",
    "voice-disabled-by-owner",
    "voice-not-allowed-for-free-users",
    "voice-not-fine-tuned",
    "voice-not-found",
    "word-boost-parsing-failed",
];

fn is_configuration(error: &str) -> bool {
    CONFIGURATION.iter().any(|mark| error.contains(mark))
}

/// Who is to blame, for every reason that Vapi's API names. `None` for any other.
fn blame(reason: &str) -> Option<Blame> {
    if let Some(error) = reason.strip_prefix("pipeline-error-") {
        // The model, voice or transcriber of the assistant. Vapi's own are part of the platform.
        let is_own = error.starts_with("vapi-") && !is_configuration(error);
        return Some(if is_own { Blame::Provider } else { Blame::Agent });
    }
    if let Some(error) = reason.strip_prefix("call.in-progress.error-vapifault-") {
        // Vapi takes the blame: its workers, its transport, its keys for the models. Unless it was asked for what there is
        // not.
        return Some(if is_configuration(error) {
            Blame::Agent
        } else {
            Blame::Provider
        });
    }
    if let Some(error) = reason.strip_prefix("call.in-progress.error-providerfault-") {
        return Some(match error {
            // The trunk does not let the organization call out.
            "outbound-sip-403-forbidden" | "outbound-sip-407-proxy-authentication-required" => {
                Blame::Ringback
            }
            "outbound-sip-408-request-timeout" | "outbound-sip-480-temporarily-unavailable" => Blame::Other,
            "outbound-sip-503-service-unavailable" | "transport-never-connected" => Blame::Provider,
            error if error.starts_with("outbound-sip-") => Blame::Provider,
            error if error.starts_with("vapi-") => Blame::Provider,
            // Whose model does not answer, does not answer.
            _ => Blame::Agent,
        });
    }
    if reason.starts_with("call.start.error-subscription-") {
        return Some(Blame::Ringback);
    }
    Some(match reason {
        // Somebody hung up, or it went on for too long, or nobody had anything to say.
        "assistant-ended-call"
        | "assistant-ended-call-after-message-spoken"
        | "assistant-ended-call-with-hangup-task"
        | "assistant-forwarded-call"
        | "assistant-said-end-call-phrase"
        | "customer-ended-call"
        | "customer-ended-call-after-warm-transfer-attempt"
        | "customer-ended-call-before-warm-transfer"
        | "customer-ended-call-during-transfer"
        | "exceeded-max-duration"
        | "silence-timed-out"
        | "call.in-progress.sip-completed-call"
        | "call.in-progress.twilio-completed-call"
        | "vonage-completed"
        // The assistant's own hooks.
        | "call.ending.hook-executed-say"
        | "call.ending.hook-executed-transfer"
        | "call.ringing.hook-executed-say"
        | "call.ringing.hook-executed-transfer"
        // A conversation was held, and how it was handed over at its end is for the judge.
        | "call.forwarding.no-answer"
        | "call.forwarding.operator-busy"
        | "call.in-progress.error-transfer-failed"
        | "call.in-progress.error-warm-transfer-assistant-cancelled"
        | "call.in-progress.error-warm-transfer-max-duration"
        | "call.in-progress.error-warm-transfer-microphone-timeout"
        | "call.in-progress.error-warm-transfer-silence-timeout" => Blame::Nobody,
        // There is no assistant, or none that could work.
        "assistant-not-found"
        | "assistant-not-valid"
        | "assistant-request-failed"
        | "assistant-request-returned-error"
        | "assistant-request-returned-forwarding-phone-number"
        | "assistant-request-returned-invalid-assistant"
        | "assistant-request-returned-no-assistant"
        | "assistant-request-returned-unspeakable-error"
        | "call-start-error-neither-assistant-nor-server-set"
        | "call.in-progress.error-pipeline-no-available-llm-model"
        | "call.in-progress.error-pipeline-ws-model-connection-failed"
        | "call.start.assistant-version-error-validation"
        | "call.start.error-get-assistant"
        | "call.start.error-get-resources-validation" => Blame::Agent,
        // The other party was not reached, or could not be heard.
        "call.in-progress.error-assistant-did-not-receive-customer-audio"
        | "call.ringing.sip-inbound-caller-hungup-before-call-connect"
        | "customer-busy"
        | "customer-did-not-answer"
        | "customer-did-not-give-microphone-permission"
        | "twilio-reported-customer-misdialed"
        | "voicemail" => Blame::Other,
        // The line, or who runs it. An assistant that does not join is one that the platform did not bring.
        "assistant-join-timed-out"
        | "call.in-progress.error-sip-inbound-call-failed-to-connect"
        | "call.in-progress.error-sip-outbound-call-failed-to-connect"
        | "call.ringing.error-sip-inbound-call-failed-to-connect"
        | "call.start.error-get-transport"
        | "call.start.error-vapifault-database-error"
        | "call.start.error-vapifault-get-org"
        | "call.start.error-vapifault-get-subscription"
        | "phone-call-provider-closed-websocket"
        | "twilio-failed-to-connect-call"
        | "vonage-disconnected"
        | "vonage-failed-to-connect-call"
        | "vonage-rejected"
        | "worker-shutdown" => Blame::Provider,
        // The account that the call was placed with, how it was placed, and who took it back.
        "call-deleted"
        | "call.start.error-enterprise-feature-not-available-recording-consent"
        | "call.start.error-fraud-check-failed"
        | "call.start.error-get-customer"
        | "call.start.error-get-phone-number"
        | "call.start.error-vapi-number-international"
        | "call.start.error-vapi-number-outbound-daily-limit"
        | "manually-canceled"
        | "phone-call-provider-bypass-enabled-but-no-call-received"
        | "scheduled-call-deleted" => Blame::Ringback,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ProviderKind::Vapi, testing::*},
        *,
    };
    use crate::provider::Event;

    const REPORT: &str = include_str!("../../../../tests/fixtures/vapi/end-of-call-report.json");
    const OF_A_TESTER: &str = include_str!("../../../../tests/fixtures/vapi/end-of-call-report-tester.json");
    const STATUS: &str = include_str!("../../../../tests/fixtures/vapi/status-update.json");
    const RUN_ENDED: &str = include_str!("../../../../tests/fixtures/vapi/simulation.run.ended.json");

    /// What the target's assistant said, and what was said to it, without its instructions.
    fn target_messages() -> Vec<Value> {
        let mira = |message: &str, from: f64, to: f64| {
            json!({
                "role": "bot", "message": message, "time": 1_795_366_800_000_u64 + (from * 1000.0) as u64,
                "endTime": 1_795_366_800_000_u64 + (to * 1000.0) as u64, "secondsFromStart": from,
                "assistantName": "Mira", "assistantId": "a5d1b2c3-0000-4000-8000-000000000001",
            })
        };
        vec![
            mira("Harbor Dental, this is Mira. How can I help?", 0.6, 3.1),
            json!({
                "role": "user", "message": "I need to move my cleaning to Friday.", "time": 1_795_366_803_900_u64,
                "endTime": 1_795_366_806_400_u64, "secondsFromStart": 3.9,
            }),
            json!({
                "role": "tool_calls",
                "toolCalls": [{
                    "id": "call_fixture_1", "type": "function",
                    "function": {"name": "find_slots", "arguments": "{\"day\":\"friday\"}"},
                }],
                "time": 1_795_366_807_100_u64, "secondsFromStart": 7.1,
            }),
            json!({
                "role": "tool_call_result", "toolCallId": "call_fixture_1", "name": "find_slots",
                "result": "{\"slots\":[\"10:00\"]}", "time": 1_795_366_807_600_u64, "secondsFromStart": 7.6,
            }),
            mira("I have Friday at ten. Shall I book it?", 8.2, 10.9),
            json!({
                "role": "user", "message": "Yes, please.", "time": 1_795_366_811_500_u64,
                "endTime": 1_795_366_812_400_u64, "secondsFromStart": 11.5,
            }),
            mira("Done. See you on Friday.", 13.3, 15.0),
        ]
    }

    #[test]
    fn a_report_of_the_targets_assistant() {
        let (event, report) = read(Vapi, REPORT);
        assert_eq!(event, Event::Ended);
        let mut messages = vec![json!({
            "role": "system", "message": "You are Mira at the front desk of Harbor Dental.",
            "time": 1_795_366_799_100_u64, "secondsFromStart": 0.0,
        })];
        messages.extend(target_messages());
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "3f2c8a54-9a1e-4a39-8a37-7d5d0c0e1001",
                "startedAt": "2026-11-22T17:00:00.000Z",
                "endedAt": "2026-11-22T17:00:30.500Z",
                "endedReason": "customer-ended-call",
                "messages": messages,
                "turnLatencies": [
                    {"turn": 1218.0, "model": 612.0, "voice": 284.0, "transcriber": 131.0, "endpointing": 190.0},
                    {"turn": 905.0, "model": 455.0, "voice": 240.0, "transcriber": 98.0},
                ],
                "recordingUrl": "https://storage.vapi.example.com/3f2c8a54-9a1e-4a39-8a37-7d5d0c0e1001-mono.wav",
                "listenUrl": "wss://phone-call.vapi.example.com/3f2c8a54-9a1e-4a39-8a37-7d5d0c0e1001/listen",
                "cost": 0.0458,
                "detail": {
                    "endedReason": "customer-ended-call",
                    "analysis": {
                        "summary": "The caller moved a cleaning to Friday at ten.", "successEvaluation": "true",
                        "structuredData": {},
                    },
                    "structuredOutputs": {
                        "11111111-2222-4333-8444-555555555555": {"name": "booked", "result": true},
                    },
                },
            })
        );
    }

    #[test]
    fn a_report_of_a_testers_assistant_is_told_the_other_way_round() {
        let (_, mut report) = read(Vapi, OF_A_TESTER);
        let messages = report["messages"].take();
        let said: Vec<_> = messages
            .as_array()
            .unwrap()
            .iter()
            .map(|message| {
                (
                    message["role"].as_str().unwrap(),
                    message["message"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                ("bot", "Harbor Dental, this is Mira. How can I help?"),
                ("user", "I need to move my cleaning to Friday."),
                ("bot", "I have Friday at ten. Shall I book it?"),
                ("user", "Yes, please."),
                ("bot", "Done. See you on Friday."),
                ("user", "Bye."),
                ("bot", "Goodbye."),
            ],
            "neither what the tester was told to play nor its tools"
        );
        assert_eq!(
            messages[0],
            json!({
                "role": "bot", "message": "Harbor Dental, this is Mira. How can I help?",
                "time": 1_795_366_800_700_u64, "endTime": 1_795_366_803_000_u64, "secondsFromStart": 0.7,
            })
        );
        assert_eq!(report["correlation"], "rbc1.Zml4dHVyZQ.c2ln");
        assert_eq!(
            report["turnLatencies"],
            json!([{"turn": 1500.0}, {"turn": 750.0}]),
            "Vapi's own are the tester's, and who interrupts has not answered"
        );
        assert_eq!(report["endedReason"], "customer-ended-call", "the tester hung up");
        assert_eq!(report["detail"]["endedReason"], "assistant-ended-call");
        assert_eq!(report.get("transcript"), None);
    }

    #[test]
    fn a_call_that_is_looked_up_says_what_its_report_says() {
        let call: Value =
            serde_json::from_str(include_str!("../../../../tests/fixtures/vapi/call.json")).unwrap();
        assert_eq!(agent_of_call(&call), Side::Tester);
        let mut looked_up = shown(&report_of_call(&call, Side::Tester));
        let (_, mut reported) = read(Vapi, OF_A_TESTER);
        assert_eq!(
            looked_up["endedReason"], "assistant-ended-call",
            "the target hung up"
        );
        for report in [&mut looked_up, &mut reported] {
            for differs in ["endedReason", "type", "detail"] {
                report.as_object_mut().unwrap().remove(differs);
            }
        }
        assert_eq!(looked_up, reported);

        let bare = json!({"id": "c", "status": "in-progress", "startedAt": "2026-11-22T17:00:00.000Z"});
        assert_eq!(
            shown(&report_of_call(&bare, Side::Target)),
            json!({"callId": "c", "startedAt": "2026-11-22T17:00:00.000Z"})
        );
    }

    #[test]
    fn a_transcript_counts_where_there_are_no_messages() {
        let silent = with(
            OF_A_TESTER,
            &[
                ("/message/artifact/messages", json!([])),
                ("/message/messages", json!([])),
            ],
        );
        let (_, report) = read(Vapi, &silent);
        assert_eq!(report.get("messages"), None);
        assert!(
            report["transcript"]
                .as_str()
                .unwrap()
                .starts_with("AI: Harbor Dental, this is Mira. How can I help?\nUser: I need to move"),
            "{report}"
        );
        assert_eq!(report.get("turnLatencies"), None);
    }

    #[test]
    fn a_cost_is_the_sum_of_its_parts_where_it_is_not_said() {
        let (_, report) = read(Vapi, &with(REPORT, &[("/message/cost", Value::Null)]));
        assert!((report["cost"].as_f64().unwrap() - 0.0458).abs() < 1e-9);
    }

    #[test]
    fn states_start_a_call_or_are_counted() {
        let (event, report) = read(Vapi, STATUS);
        assert_eq!(event, Event::Started);
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "3f2c8a54-9a1e-4a39-8a37-7d5d0c0e1002",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.000Z",
                "listenUrl": "wss://phone-call.vapi.example.com/3f2c8a54-9a1e-4a39-8a37-7d5d0c0e1002/listen",
            }),
            "it started when it was said, and the correlation may be the assistant's"
        );
        let by_assistant = with(STATUS, &[("/message/call/metadata", Value::Null)]);
        assert_eq!(read(Vapi, &by_assistant).1["correlation"], "rbc1.Zml4dHVyZQ.c2ln");

        let ended = include_str!("../../../../tests/fixtures/vapi/status-update-ended.json");
        assert_eq!(ignored_as(Vapi, ended), "status-update.ended");
        let state = |state: Value| ignored_as(Vapi, &with(STATUS, &[("/message/status", state)]));
        assert_eq!(state(json!("ringing")), "status-update.ringing");
        assert_eq!(state(json!("made-up")), "status-update.other");
        let speech = include_str!("../../../../tests/fixtures/vapi/speech-update.json");
        assert_eq!(ignored_as(Vapi, speech), "speech-update");
    }

    #[test]
    fn what_an_event_cannot_do_without_is_missed() {
        for (body, pointer, expected) in [
            (STATUS, "/message/call", "message.call.id is missing"),
            (STATUS, "/message/status", "message.status is missing"),
            (REPORT, "/message/call/id", "message.call.id is missing"),
            (RUN_ENDED, "/runId", "runId is missing"),
            (RUN_ENDED, "/type", "message.type is missing"),
        ] {
            assert_eq!(complaint(Vapi, &with(body, &[(pointer, json!({}))])), expected);
        }
        let (_, report) = read(
            Vapi,
            r#"{"message": {"type": "end-of-call-report", "call": {"id": "c"}}}"#,
        );
        assert_eq!(
            report,
            json!({"type": "call.ended", "callId": "c", "endedReason": "unknown"})
        );
    }

    #[test]
    fn the_hooks_of_a_simulation_are_seen_from_the_target() {
        let (event, report) = read(
            Vapi,
            include_str!("../../../../tests/fixtures/vapi/simulation.run.started.json"),
        );
        assert_eq!(event, Event::Started);
        let ids = json!({
            "simulationRunItemId": "8e0a3a10-7f3b-4f36-9a5b-cccccccccccc",
            "simulationId": "8e0a3a10-7f3b-4f36-9a5b-bbbbbbbbbbbb",
            "testerCallId": "8e0a3a10-7f3b-4f36-9a5b-dddddddddd01",
            "targetCallId": "8e0a3a10-7f3b-4f36-9a5b-dddddddddd02",
        });
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "8e0a3a10-7f3b-4f36-9a5b-aaaaaaaaaaaa",
                "listenUrl": "wss://phone-call.vapi.example.com/sim/listen",
                "detail": ids,
            })
        );

        let wrapped = json!({"message": serde_json::from_str::<Value>(RUN_ENDED).unwrap()}).to_string();
        for body in [RUN_ENDED, &wrapped] {
            let (event, report) = read(Vapi, body);
            assert_eq!(event, Event::Ended);
            let mut detail = ids.clone();
            detail["endedReason"] = json!("assistant-ended-call");
            detail["canceled"] = json!(false);
            assert_eq!(
                report,
                json!({
                    "type": "call.ended",
                    "callId": "8e0a3a10-7f3b-4f36-9a5b-aaaaaaaaaaaa",
                    "startedAt": "2026-11-22T17:00:00.000Z",
                    "endedAt": "2026-11-22T17:00:30.500Z",
                    "endedReason": "assistant-ended-call",
                    "messages": target_messages(),
                    "turnLatencies": [{"turn": 1800.0}, {"turn": 900.0}],
                    "recordingUrl": "https://storage.vapi.example.com/sim-mono.wav",
                    "listenUrl": "wss://phone-call.vapi.example.com/sim/listen",
                    "detail": detail,
                })
            );
        }
    }

    #[test]
    fn a_simulation_that_could_not_be_held_is_not_the_agents_fault() {
        for (parts, reason, fault) in [
            (
                vec![("/canceled", json!(true)), ("/endedReason", Value::Null)],
                "canceled",
                json!("ringback"),
            ),
            (
                vec![
                    ("/failureReason", json!("no worker")),
                    ("/endedReason", Value::Null),
                ],
                "no worker",
                json!("provider"),
            ),
            (
                vec![
                    ("/failureReason", json!("x")),
                    ("/endedReason", json!("assistant-not-found")),
                ],
                "assistant-not-found",
                json!("target"),
            ),
            // A chat.
            (vec![("/endedReason", Value::Null)], "completed", Value::Null),
        ] {
            let (_, report) = read(Vapi, &with(RUN_ENDED, &parts));
            assert_eq!(report["endedReason"], reason);
            assert_eq!(report.get("fault").unwrap_or(&Value::Null), &fault);
        }
    }

    #[test]
    fn every_reason_that_vapi_names_is_somebodys_or_nobodys() {
        let reasons = include_str!("../../../../tests/fixtures/vapi/ended-reasons.txt");
        assert_eq!(reasons.lines().count(), 595);
        for line in reasons.lines() {
            let (class, reason) = line.split_once(' ').unwrap();
            let expected = match class {
                "nobody" => Blame::Nobody,
                "agent" => Blame::Agent,
                "other" => Blame::Other,
                "provider" => Blame::Provider,
                "ringback" => Blame::Ringback,
                class => panic!("{class}"),
            };
            assert_eq!(blame(reason), Some(expected), "{reason}");
        }
    }

    #[test]
    fn a_fault_is_that_of_the_side_that_failed() {
        for (reason, of_target, of_tester) in [
            ("customer-ended-call", None, None),
            ("silence-timed-out", None, None),
            ("made-up-by-a-later-version", None, None),
            (
                "call.in-progress.error-made-up-by-a-later-version",
                Some(Fault::Provider),
                Some(Fault::Provider),
            ),
            (
                "pipeline-error-made-up-by-a-later-version",
                Some(Fault::Target),
                Some(Fault::Tester),
            ),
            ("unknown-error", Some(Fault::Provider), Some(Fault::Provider)),
            (
                "pipeline-error-openai-llm-failed",
                Some(Fault::Target),
                Some(Fault::Tester),
            ),
            ("assistant-not-found", Some(Fault::Target), Some(Fault::Tester)),
            ("customer-busy", Some(Fault::Tester), Some(Fault::Target)),
            (
                "customer-did-not-answer",
                Some(Fault::Tester),
                Some(Fault::Target),
            ),
            (
                "call.in-progress.error-vapifault-worker-died",
                Some(Fault::Provider),
                Some(Fault::Provider),
            ),
            (
                "call.in-progress.error-vapifault-openai-429-exceeded-quota",
                Some(Fault::Provider),
                Some(Fault::Provider),
            ),
            (
                "call.start.error-subscription-insufficient-credits",
                Some(Fault::Ringback),
                Some(Fault::Ringback),
            ),
        ] {
            assert_eq!(fault_of(reason, Side::Target), of_target, "{reason}");
            assert_eq!(fault_of(reason, Side::Tester), of_tester, "{reason}");
        }
    }

    #[test]
    fn who_hung_up_is_told_from_the_testers_point_of_view() {
        for (theirs, ours) in [
            ("assistant-said-end-call-phrase", "customer-ended-call"),
            ("customer-ended-call", "assistant-ended-call"),
            ("customer-busy", "assistant-busy"),
            ("exceeded-max-duration", "exceeded-max-duration"),
        ] {
            assert_eq!(
                (told(theirs, Side::Tester), told(theirs, Side::Target)),
                (ours, theirs)
            );
        }
    }
}
