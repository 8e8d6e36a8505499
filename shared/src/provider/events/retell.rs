//! Retell: the events of its calls.

use serde_json::{Value, json};

use super::{
    Blame, Conversation, Said, Side, When, at_ms, detail, ended, ignored, iso_of, list, missing, number,
    ours, owned, relabelled, started, text,
};
use crate::{evaluation::TurnLatency, lifecycle::Fault, provider::CallReport};

/// Its kinds that are not read.
const KINDS: &[&str] = &[
    "chat_analyzed",
    "chat_ended",
    "chat_started",
    "transcript_updated",
    "transfer_bridged",
    "transfer_cancelled",
    "transfer_ended",
    "transfer_started",
];

/// `usual` is the side of Retell's agent in a call that does not say it.
pub(super) fn said(body: &Value, usual: Side) -> Result<Said, String> {
    let kind = text(body, "/event").ok_or_else(|| missing("event"))?;
    if !matches!(kind, "call_started" | "call_ended" | "call_analyzed") {
        return Ok(ignored(KINDS, kind));
    }
    let call = body.get("call").filter(|call| text(call, "/call_id").is_some());
    let call = call.ok_or_else(|| missing("call.call_id"))?;
    if kind == "call_started" {
        return Ok(started(CallReport {
            call_id: owned(call, "/call_id").unwrap_or_default(),
            correlation: ours([call.get("metadata")]).correlation,
            started_at: iso_of(at_ms(call, "/start_timestamp")),
            ..CallReport::default()
        }));
    }
    // The second of the two says all of the first, and the analysis.
    let agent = ours([call.get("metadata")]).agent.unwrap_or(usual);
    Ok(ended(report_of_call(call, agent)))
}

/// Which side Retell's agent is in a call: what Ringback put into it, the target where it put in nothing.
#[must_use]
pub fn agent_of_call(call: &Value) -> Side {
    ours([call.get("metadata")]).agent.unwrap_or_default()
}

/// What a call as Retell shows it says, where its agent is the side `agent`.
#[must_use]
pub fn report_of_call(call: &Value, agent: Side) -> CallReport {
    let start = at_ms(call, "/start_timestamp");
    let reason = text(call, "/disconnection_reason");
    let conversation = conversation(call, start, agent);
    let recording = [
        "/recording_url",
        "/recording_multi_channel_url",
        "/scrubbed_recording_url",
    ];
    let is_error = text(call, "/call_status") == Some("error");
    CallReport {
        call_id: owned(call, "/call_id").unwrap_or_default(),
        correlation: ours([call.get("metadata")]).correlation,
        started_at: iso_of(start),
        ended_at: iso_of(at_ms(call, "/end_timestamp")),
        ended_reason: reason.map(|reason| told(reason, agent).to_owned()),
        transcript: text(call, "/transcript")
            .filter(|_| !conversation.has_words())
            .map(|transcript| relabelled(transcript, agent)),
        turn_latencies: latencies(call, agent).unwrap_or_else(|| conversation.turns()),
        messages: conversation.messages(),
        recording_url: recording.iter().find_map(|place| owned(call, place)),
        // In cents.
        cost: number(call, "/call_cost/combined_cost").map(|cents| cents / 100.0),
        fault: match reason {
            Some(reason) => fault_of(reason, agent),
            None => is_error.then_some(Fault::Provider),
        },
        detail: detail([
            ("disconnectionReason", call.get("disconnection_reason")),
            ("callAnalysis", call.get("call_analysis")),
            ("agentId", call.get("agent_id")),
            ("telephonyIdentifier", call.get("telephony_identifier")),
        ]),
        ..CallReport::default()
    }
}

fn conversation(call: &Value, start: Option<i64>, agent: Side) -> Conversation {
    let places = [
        "/transcript_with_tool_calls",
        "/transcript_object",
        "/scrubbed_transcript_with_tool_calls",
    ];
    let said = places.iter().map(|place| list(call, place));
    let mut all = Conversation::new(agent);
    for said in said.into_iter().find(|said| !said.is_empty()).unwrap_or_default() {
        let words = list(said, "/words");
        let when = When::after(
            start,
            words.iter().find_map(|word| number(word, "/start")),
            words.iter().rev().find_map(|word| number(word, "/end")),
        );
        match text(said, "/role").unwrap_or_default() {
            role @ ("agent" | "user") => {
                all.say(role == "agent", text(said, "/content"), when);
            }
            "tool_call_invocation" => {
                let call = json!({
                    "id": said.get("tool_call_id"),
                    "type": "function",
                    "function": {"name": said.get("name"), "arguments": said.get("arguments")},
                });
                all.call(vec![call], time_of_tool(said, start));
            }
            "tool_call_result" => {
                let when = time_of_tool(said, start);
                all.answer(text(said, "/tool_call_id"), None, said.get("content"), when);
            }
            // Steps of a flow, keys, texts, and what a third person said after a transfer: none of them is either side's word.
            _ => {}
        }
    }
    all
}

fn time_of_tool(said: &Value, start: Option<i64>) -> When {
    When::after(start, number(said, "/time_sec"), None)
}

/// What Retell measured of its agent, if that is the target. It gives a list for each part and does not say which figures
/// belong to one turn: they are put together in their order, and none is left out.
fn latencies(call: &Value, agent: Side) -> Option<Vec<TurnLatency>> {
    if agent != Side::Target {
        return None;
    }
    let values = |part: &str| list(call, &format!("/latency/{part}/values"));
    let (turn, voice, transcriber) = (values("e2e"), values("tts"), values("asr"));
    // One of them is used: a model that writes, or one that speaks.
    let model = [values("llm"), values("s2s")];
    let model = model
        .into_iter()
        .find(|values| !values.is_empty())
        .unwrap_or_default();
    let most = [turn, model, voice, transcriber].map(<[Value]>::len);
    let most = most.into_iter().max().filter(|most| *most > 0)?;
    let at = |values: &[Value], index: usize| values.get(index).and_then(Value::as_f64);
    let turn = |index| TurnLatency {
        turn: at(turn, index),
        model: at(model, index),
        voice: at(voice, index),
        transcriber: at(transcriber, index),
        endpointing: None,
    };
    Some((0..most).map(turn).collect())
}

/// A reason in the words that scenarios know, where there are such: the customer is the tester, the assistant is the target. Retell's
/// own is in the detail.
fn told(reason: &str, agent: Side) -> &str {
    match (agent, reason) {
        (Side::Target, "user_hangup") | (Side::Tester, "agent_hangup") => "customer-ended-call",
        (Side::Target, "agent_hangup") | (Side::Tester, "user_hangup") => "assistant-ended-call",
        (_, "max_duration_reached") => "exceeded-max-duration",
        (_, "inactivity") => "silence-timed-out",
        (_, "voicemail_reached") => "voicemail",
        _ => reason,
    }
}

/// Whose fault it is that a call of Retell ended for this reason, where its agent is the side `agent`. `None` where the
/// call is to be judged.
#[must_use]
pub fn fault_of(disconnection_reason: &str, agent: Side) -> Option<Fault> {
    match blame(disconnection_reason) {
        Some(blame) => blame.fault(agent),
        None if disconnection_reason.starts_with("error") => Some(Fault::Provider),
        None => None,
    }
}

/// Who is to blame, for every reason that Retell's API names. `None` for any other.
fn blame(reason: &str) -> Option<Blame> {
    Some(match reason {
        "user_hangup"
        | "agent_hangup"
        | "user_requested_dnc"
        | "user_requested_callback"
        | "call_transfer"
        | "transfer_bridged"
        | "transfer_cancelled"
        | "inactivity"
        | "max_duration_reached" => Blame::Nobody,
        // The agent's own model server, and an agent that Retell took off the line for what it says.
        "error_llm_websocket_open"
        | "error_llm_websocket_lost_connection"
        | "error_llm_websocket_runtime"
        | "error_llm_websocket_corrupt_payload"
        | "scam_detected" => Blame::Agent,
        // The other party was not reached, was a machine, or could not be heard.
        "dial_busy"
        | "dial_no_answer"
        | "invalid_destination"
        | "user_declined"
        | "voicemail_reached"
        | "ivr_reached"
        | "error_no_audio_received"
        | "error_user_not_joined" => Blame::Other,
        "dial_failed"
        | "telephony_provider_unavailable"
        | "sip_routing_error"
        | "marked_as_spam"
        | "network_blocked"
        | "error_asr"
        | "error_retell"
        | "error_unknown" => Blame::Provider,
        // The account, its trunk, and who stopped the call or never connected it.
        "concurrency_limit_reached"
        | "no_concurrency_fallback"
        | "no_valid_payment"
        | "credit_exhausted"
        | "budget_reached"
        | "telephony_provider_permission_denied"
        | "registered_call_timeout"
        | "manual_stopped"
        | "call_take_over" => Blame::Ringback,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ProviderKind::Retell, testing::*},
        *,
    };
    use crate::provider::Event;

    const ANALYZED: &str = include_str!("../../../../tests/fixtures/retell/call_analyzed.json");
    const OF_A_TESTER: &str = include_str!("../../../../tests/fixtures/retell/call_ended.json");

    #[test]
    fn a_call_of_the_targets_agent() {
        let (event, report) = read(Retell, ANALYZED);
        assert_eq!(event, Event::Ended);
        let said = |role: &str, message: &str, from: u64, to: u64, seconds: f64| {
            json!({
                "role": role, "message": message, "time": 1_795_366_800_000 + from, "endTime": 1_795_366_800_000 + to,
                "secondsFromStart": seconds,
            })
        };
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "call_fixture_target",
                "startedAt": "2026-11-22T17:00:00.000Z",
                "endedAt": "2026-11-22T17:00:30.000Z",
                "endedReason": "customer-ended-call",
                "messages": [
                    said("bot", "Harbor Dental, this is Mira.", 600, 2050, 0.6),
                    said("user", "I need to move my cleaning.", 3000, 4750, 3.0),
                    {
                        "role": "tool_calls",
                        "toolCalls": [{
                            "id": "tc_fixture_1", "type": "function",
                            "function": {"name": "find_slots", "arguments": "{\"day\":\"friday\"}"},
                        }],
                    },
                    {"role": "tool_call_result", "toolCallId": "tc_fixture_1", "result": "{\"slots\":[\"10:00\"]}"},
                    said("bot", "Friday at ten?", 5600, 6450, 5.6),
                    said("user", "Yes, thanks.", 7200, 7750, 7.2),
                ],
                "turnLatencies": [
                    {"turn": 1120.5, "model": 540.0, "voice": 210.0, "transcriber": 85.0},
                    {"turn": 980.0, "model": 610.0, "voice": 190.0},
                    {"model": 498.0},
                ],
                "recordingUrl": "https://recordings.retell.example.com/a/recording.wav",
                "cost": 0.0725,
                "detail": {
                    "disconnectionReason": "user_hangup",
                    "agentId": "agent_fixture_desk",
                    "telephonyIdentifier": {"twilio_call_sid": "CA00000000000000000000000000000002"},
                    "callAnalysis": {
                        "call_summary": "The caller moved a cleaning to Friday.", "in_voicemail": false,
                        "user_sentiment": "Positive", "call_successful": true, "custom_analysis_data": {"booked": true},
                    },
                },
            })
        );
    }

    #[test]
    fn a_call_of_a_testers_agent_is_told_the_other_way_round() {
        let (_, report) = read(Retell, OF_A_TESTER);
        let said: Vec<_> = report["messages"]
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
                ("bot", "Harbor Dental, this is Mira."),
                ("user", "I need to move my cleaning."),
                ("bot", "Friday at ten?"),
                ("user", "Yes, thanks."),
                ("bot", "Booked."),
            ],
            "without the tester's tools"
        );
        assert_eq!(report["correlation"], "rbc1.Zml4dHVyZQ.c2ln");
        assert_eq!(
            report["turnLatencies"],
            json!([{"turn": 950.0}]),
            "Retell's own are the tester's"
        );
        assert_eq!(report["endedReason"], "customer-ended-call", "the tester hung up");
        assert_eq!(report["detail"]["disconnectionReason"], "agent_hangup");
        assert_eq!(report.get("fault"), None);
    }

    #[test]
    fn a_call_that_is_looked_up_says_what_its_event_says() {
        let event: Value = serde_json::from_str(OF_A_TESTER).unwrap();
        let call = &event["call"];
        let mut reported = read(Retell, OF_A_TESTER).1;
        reported.as_object_mut().unwrap().remove("type");
        assert_eq!(shown(&report_of_call(call, agent_of_call(call))), reported);
    }

    #[test]
    fn a_start_has_no_words() {
        let (event, report) = read(
            Retell,
            include_str!("../../../../tests/fixtures/retell/call_started.json"),
        );
        assert_eq!(event, Event::Started);
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "call_fixture_tester",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.000Z",
            })
        );
        let updated = include_str!("../../../../tests/fixtures/retell/transcript_updated.json");
        assert_eq!(ignored_as(Retell, updated), "transcript_updated");
    }

    #[test]
    fn a_call_that_nobody_picked_up_has_no_start() {
        let (event, report) = read(
            Retell,
            include_str!("../../../../tests/fixtures/retell/call_ended-busy.json"),
        );
        assert_eq!(event, Event::Ended);
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "call_fixture_busy",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "endedAt": "2026-11-22T17:00:04.000Z",
                "endedReason": "dial_busy",
                "cost": 0.0,
                "fault": "target",
                "detail": {
                    "disconnectionReason": "dial_busy",
                    "agentId": "agent_fixture_tester",
                    "telephonyIdentifier": {"twilio_call_sid": "CA00000000000000000000000000000002"},
                },
            })
        );
    }

    #[test]
    fn what_is_left_out_is_missed_or_made_up_for() {
        let without = |parts: &[(&str, Value)]| with(ANALYZED, parts);
        assert_eq!(
            complaint(Retell, &without(&[("/call/call_id", json!(""))])),
            "call.call_id is missing"
        );
        let (_, report) = read(
            Retell,
            &without(&[
                ("/call/transcript_with_tool_calls", Value::Null),
                ("/call/transcript_object", json!("odd")),
                ("/call/disconnection_reason", Value::Null),
                ("/call/call_status", json!("error")),
                ("/call/latency", json!({"e2e": {"values": "odd"}})),
            ]),
        );
        assert_eq!(
            report["transcript"],
            "AI: Harbor Dental, this is Mira.\nUser: I need to move my cleaning.\nAI: Friday at ten?\nUser: Yes, thanks."
        );
        assert_eq!(
            (&report["endedReason"], &report["fault"]),
            (&json!("unknown"), &json!("provider"))
        );
        assert_eq!(report.get("turnLatencies"), None);
    }

    #[test]
    fn every_reason_that_retell_names_is_somebodys_or_nobodys() {
        let reasons = include_str!("../../../../tests/fixtures/retell/disconnection-reasons.txt");
        assert_eq!(reasons.lines().count(), 39);
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
        assert_eq!(fault_of("error_new", Side::Target), Some(Fault::Provider));
        assert_eq!(fault_of("made_up", Side::Target), None);
        assert_eq!(fault_of("user_declined", Side::Tester), Some(Fault::Target));
        assert_eq!(
            fault_of("error_llm_websocket_open", Side::Tester),
            Some(Fault::Tester)
        );
    }
}
