//! ElevenLabs agents: what is sent after a call.

use serde_json::{Value, json};

use super::{
    Blame, Conversation, Ours, Said, Side, When, at_seconds, detail, ended, ignored, iso_of, list, missing,
    number, ours, owned, side, text,
};
use crate::{evaluation::TurnLatency, provider::CallReport};

/// Its kinds that are not read. The audio is the recording itself, in the body.
const KINDS: &[&str] = &[
    "post_call_audio",
    "voice_removal_notice",
    "voice_removal_notice_withdrawn",
    "voice_removed",
];

pub(super) fn said(body: &Value) -> Result<Said, String> {
    let kind = text(body, "/type").ok_or_else(|| missing("type"))?;
    let read: fn(&Value, &Value) -> CallReport = match kind {
        "post_call_transcription" => conversation_report,
        "call_initiation_failure" => failure_report,
        kind => return Ok(ignored(KINDS, kind)),
    };
    let data = body
        .get("data")
        .filter(|data| text(data, "/conversation_id").is_some());
    let data = data.ok_or_else(|| missing("data.conversation_id"))?;
    Ok(ended(read(body, data)))
}

/// A conversation has no metadata of ours, but variables, which are texts.
fn marks(data: &Value) -> Ours {
    let variables = data.pointer("/conversation_initiation_client_data/dynamic_variables");
    let variables = variables.unwrap_or(&Value::Null);
    let ours = ours([Some(variables)]);
    Ours {
        correlation: ours
            .correlation
            .or_else(|| owned(variables, "/ringback_correlation")),
        agent: ours
            .agent
            .or_else(|| text(variables, "/ringback_agent").and_then(side)),
    }
}

fn conversation_report(_: &Value, data: &Value) -> CallReport {
    let Ours { correlation, agent } = marks(data);
    let agent = agent.unwrap_or_default();
    let start = at_seconds(data, "/metadata/start_time_unix_secs");
    let end = When::after(start, number(data, "/metadata/call_duration_secs"), None).from;
    let error = text(data, "/metadata/error/reason");
    // One that is done was held and analyzed, whatever went wrong at its end.
    let is_failed = match text(data, "/status") {
        Some("failed") => true,
        Some("done") => false,
        _ => number(data, "/metadata/error/code").is_some() || error.is_some(),
    };
    let (conversation, latencies) = conversation(data, start, agent);
    CallReport {
        call_id: owned(data, "/conversation_id").unwrap_or_default(),
        correlation,
        started_at: iso_of(start),
        ended_at: iso_of(end),
        ended_reason: text(data, "/metadata/termination_reason")
            .or(error)
            .or(is_failed.then_some("failed"))
            .map(str::to_owned),
        turn_latencies: match agent {
            Side::Target if !latencies.is_empty() => latencies,
            _ => conversation.turns(),
        },
        messages: conversation.messages(),
        // The other cost is in credits.
        cost: number(data, "/metadata/cost_fiat"),
        fault: is_failed
            .then(|| blame(error.unwrap_or_default()).fault(agent))
            .flatten(),
        detail: detail([
            ("agentId", data.get("agent_id")),
            ("status", data.get("status")),
            ("terminationReason", data.pointer("/metadata/termination_reason")),
            ("error", data.pointer("/metadata/error")),
            ("credits", data.pointer("/metadata/cost")),
            ("analysis", data.get("analysis")),
        ]),
        ..CallReport::default()
    }
}

/// Who is to blame for a conversation that failed. The account's limits are the account's, a model that the agent brings
/// along is the agent's, the rest is ElevenLabs' own.
fn blame(error: &str) -> Blame {
    let error = error.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if has(&[
        "quota",
        "credit",
        "concurren",
        "subscription",
        "payment",
        "rate limit",
    ]) {
        Blame::Ringback
    } else if has(&["custom llm", "custom_llm", "custom-llm"]) {
        Blame::Agent
    } else {
        Blame::Provider
    }
}

fn conversation(data: &Value, start: Option<i64>, agent: Side) -> (Conversation, Vec<TurnLatency>) {
    let mut all = Conversation::new(agent);
    let mut latencies = Vec::new();
    let mut answer = TurnLatency::default();
    let mut flush = |answer: &mut TurnLatency| {
        let answer = std::mem::take(answer);
        // What was heard and not answered is no answer.
        if (answer.turn, answer.model, answer.voice) != (None, None, None) {
            latencies.push(answer);
        }
    };
    for turn in list(data, "/transcript") {
        let when = When::after(start, number(turn, "/time_in_call_secs"), None);
        let is_agent = match text(turn, "/role") {
            Some("agent") => true,
            Some("user") => false,
            _ => continue,
        };
        all.say(is_agent, text(turn, "/message"), when);
        if !is_agent {
            flush(&mut answer);
            answer.transcriber = metric(turn, &["convai_asr_trailing_service_latency"]);
            continue;
        }
        let calls = list(turn, "/tool_calls").iter().map(|call| {
            json!({
                "id": call.get("request_id"),
                "type": "function",
                "function": {"name": call.get("tool_name"), "arguments": call.get("params_as_json")},
            })
        });
        all.call(calls.collect(), when);
        for result in list(turn, "/tool_results") {
            let value = result.get("result_value").or_else(|| result.get("result"));
            all.answer(
                text(result, "/request_id"),
                text(result, "/tool_name"),
                value,
                when,
            );
        }
        // An answer may take several turns, with tools in between: what counts of each figure is its first one.
        let first =
            |figure: &mut Option<f64>, names: &[&str]| *figure = figure.or_else(|| metric(turn, names));
        first(&mut answer.turn, &["convai_ttf_audio_since_silence"]);
        first(&mut answer.model, &["convai_llm_service_ttfb"]);
        first(&mut answer.voice, &["convai_tts_service_ttfb"]);
        first(
            &mut answer.transcriber,
            &["convai_asr_trailing_service_latency", "convai_turn_asr_latency"],
        );
    }
    flush(&mut answer);
    (all, latencies)
}

/// A figure of a turn in milliseconds, under the first of these names that it has.
fn metric(turn: &Value, names: &[&str]) -> Option<f64> {
    let metrics = turn.get("conversation_turn_metrics")?;
    // Older ones are not wrapped.
    let metrics = metrics.get("metrics").unwrap_or(metrics);
    let seconds = |name: &&str| number(metrics.get(name)?, "/elapsed_time");
    names.iter().find_map(seconds).map(|seconds| seconds * 1000.0)
}

fn failure_report(body: &Value, data: &Value) -> CallReport {
    let Ours { correlation, agent } = marks(data);
    let reason = text(data, "/failure_reason").unwrap_or("unknown");
    let blame = match reason {
        "busy" | "no-answer" => Blame::Other,
        _ => Blame::Provider,
    };
    CallReport {
        call_id: owned(data, "/conversation_id").unwrap_or_default(),
        correlation,
        ended_at: iso_of(at_seconds(body, "/event_timestamp")),
        ended_reason: Some(reason.to_owned()),
        fault: blame.fault(agent.unwrap_or_default()),
        detail: detail([
            ("agentId", data.get("agent_id")),
            ("failureReason", data.get("failure_reason")),
            ("carrier", data.pointer("/metadata/type")),
            ("callStatus", data.pointer("/metadata/body/CallStatus")),
            ("sipResponseCode", data.pointer("/metadata/body/SipResponseCode")),
            ("sipStatusCode", data.pointer("/metadata/body/sip_status_code")),
            ("errorReason", data.pointer("/metadata/body/error_reason")),
        ]),
        ..CallReport::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ProviderKind::Elevenlabs, testing::*},
        *,
    };
    use crate::provider::Event;

    const TRANSCRIPTION: &str =
        include_str!("../../../../tests/fixtures/elevenlabs/post_call_transcription.json");

    #[test]
    fn a_conversation() {
        let (event, report) = read(Elevenlabs, TRANSCRIPTION);
        assert_eq!(event, Event::Ended);
        let at = |mut message: Value, seconds: u64| {
            message["time"] = json!(1_795_366_800_000 + seconds * 1000);
            message["secondsFromStart"] = json!(seconds as f64);
            message
        };
        let said =
            |role: &str, message: &str, seconds| at(json!({"role": role, "message": message}), seconds);
        let called = json!({
            "role": "tool_calls",
            "toolCalls": [{
                "id": "req_fixture_1", "type": "function",
                "function": {"name": "find_slots", "arguments": "{\"day\":\"friday\"}"},
            }],
        });
        let answered = json!({
            "role": "tool_call_result", "toolCallId": "req_fixture_1", "name": "find_slots",
            "result": "{\"slots\":[\"10:00\"]}",
        });
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "conv_fixture_1",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.000Z",
                "endedAt": "2026-11-22T17:00:30.000Z",
                "endedReason": "Call ended by remote party",
                "messages": [
                    said("bot", "Harbor Dental, this is Mira.", 0),
                    said("user", "I need to move my cleaning.", 3),
                    at(called, 6),
                    at(answered, 7),
                    said("bot", "Friday at ten?", 8),
                    said("user", "Yes, thanks.", 10),
                ],
                "turnLatencies": [
                    {"voice": 250.0},
                    {"turn": 1500.0, "model": 500.0, "voice": 250.0, "transcriber": 125.0},
                ],
                "cost": 0.0725,
                "detail": {
                    "agentId": "agent_fixture",
                    "status": "done",
                    "terminationReason": "Call ended by remote party",
                    "credits": 296,
                    "analysis": {
                        "evaluation_criteria_results": {}, "data_collection_results": {}, "call_successful": "success",
                        "transcript_summary": "The caller moved a cleaning to Friday.",
                    },
                },
            })
        );
    }

    #[test]
    fn an_agent_that_plays_the_tester_is_told_the_other_way_round() {
        let variables = "/data/conversation_initiation_client_data/dynamic_variables/ringback_agent";
        let (_, report) = read(Elevenlabs, &with(TRANSCRIPTION, &[(variables, json!("tester"))]));
        let roles: Vec<_> = report["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["user", "bot", "user", "bot"]);
        assert_eq!(report.get("turnLatencies"), None, "its figures are the tester's");
    }

    #[test]
    fn a_conversation_that_failed_is_not_the_agents_fault_unless_it_is() {
        let failed = |reason: &str| {
            let parts = [
                ("/data/status", json!("failed")),
                ("/data/metadata/termination_reason", json!("")),
                ("/data/metadata/error", json!({"code": 1002, "reason": reason})),
            ];
            let report = read(Elevenlabs, &with(TRANSCRIPTION, &parts)).1;
            assert_eq!(
                report["endedReason"],
                if reason.is_empty() { "failed" } else { reason }
            );
            report["fault"].as_str().unwrap().to_owned()
        };
        for (reason, fault) in [
            ("This request exceeds your quota limit.", "ringback"),
            ("Custom LLM returned an error", "target"),
            ("Something went wrong", "provider"),
            ("", "provider"),
        ] {
            assert_eq!(failed(reason), fault);
        }
        let silent = [("/data/metadata/termination_reason", json!(""))];
        assert_eq!(
            read(Elevenlabs, &with(TRANSCRIPTION, &silent)).1["endedReason"],
            "unknown"
        );
    }

    #[test]
    fn a_call_that_was_not_picked_up() {
        let failure = include_str!("../../../../tests/fixtures/elevenlabs/call_initiation_failure.json");
        let (event, report) = read(Elevenlabs, failure);
        assert_eq!(event, Event::Ended);
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "conv_fixture_2",
                "endedAt": "2026-11-22T17:00:00.000Z",
                "endedReason": "busy",
                "fault": "tester",
                "detail": {
                    "agentId": "agent_fixture", "failureReason": "busy", "carrier": "twilio", "callStatus": "busy",
                    "sipResponseCode": "486",
                },
            }),
            "the agent under test called the tester"
        );
        let (_, report) = read(
            Elevenlabs,
            &with(failure, &[("/data/failure_reason", Value::Null)]),
        );
        assert_eq!(
            (&report["endedReason"], &report["fault"]),
            (&json!("unknown"), &json!("provider"))
        );
        assert_eq!(
            complaint(
                Elevenlabs,
                &with(failure, &[("/data/conversation_id", Value::Null)])
            ),
            "data.conversation_id is missing"
        );
        let audio = include_str!("../../../../tests/fixtures/elevenlabs/post_call_audio.json");
        assert_eq!(ignored_as(Elevenlabs, audio), "post_call_audio");
    }
}
