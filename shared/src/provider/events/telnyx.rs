//! Telnyx: the events of its call control.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    Blame, Ours, Said, Side, at_iso, detail, ended, ignored, iso_of, missing, number, ours, owned, started,
    text, twilio::unconnected,
};
use crate::provider::CallReport;

/// Its kinds that are not read.
const KINDS: &[&str] = &[
    "call.analyzed",
    "call.bridged",
    "call.conversation.created",
    "call.conversation.ended",
    "call.conversation_insights.generated",
    "call.cost",
    "call.dtmf.received",
    "call.enqueued",
    "call.initiated",
    "call.left_queue",
    "call.machine.detection.ended",
    "call.machine.greeting.ended",
    "call.playback.ended",
    "call.playback.started",
    "call.recording.error",
    "call.recording.saved",
    "call.recording.transcription.saved",
    "call.speak.ended",
    "call.speak.started",
    "call.transcription",
    "streaming.failed",
    "streaming.started",
    "streaming.stopped",
];

pub(super) fn said(body: &Value) -> Result<Said, String> {
    let kind = text(body, "/data/event_type").ok_or_else(|| missing("data.event_type"))?;
    if !matches!(kind, "call.answered" | "call.hangup") {
        return Ok(ignored(KINDS, kind));
    }
    let payload = body.pointer("/data/payload").unwrap_or(&Value::Null);
    // The first is the one that a call is spoken to by, and what placing it gives.
    let ids = ["/call_control_id", "/call_leg_id", "/call_session_id"];
    let call_id = ids.iter().find_map(|id| owned(payload, id));
    let call_id = call_id.ok_or_else(|| missing("data.payload.call_control_id"))?;
    let Ours { correlation, agent } = marks(payload);
    let at = at_iso(body, "/data/occurred_at");
    let report = CallReport {
        call_id,
        correlation,
        ..CallReport::default()
    };
    if kind == "call.answered" {
        return Ok(started(CallReport {
            started_at: iso_of(at),
            ..report
        }));
    }
    let cause = text(payload, "/hangup_cause").unwrap_or("unknown");
    let blame = blame(cause, number(payload, "/sip_hangup_cause"));
    let was_held = matches!(cause, "normal_clearing" | "time_limit");
    Ok(ended(CallReport {
        // It begins when it is placed, so it has one that nobody picked up.
        started_at: iso_of(at_iso(payload, "/start_time").filter(|_| was_held)),
        ended_at: iso_of(at),
        ended_reason: Some(cause.to_owned()),
        // A call goes out to the target, unless the target's own agent is said to have placed it.
        fault: blame.fault(agent.unwrap_or(Side::Tester)),
        detail: detail([
            ("hangupSource", payload.get("hangup_source")),
            ("sipHangupCause", payload.get("sip_hangup_cause")),
            ("callLegId", payload.get("call_leg_id")),
            ("callSessionId", payload.get("call_session_id")),
        ]),
        ..report
    }))
}

/// What came with the call goes through Telnyx in base64.
fn marks(payload: &Value) -> Ours {
    let state = text(payload, "/client_state").and_then(|state| STANDARD.decode(state).ok());
    let state: Option<Value> = state.and_then(|state| serde_json::from_slice(&state).ok());
    ours([state.as_ref()])
}

fn blame(cause: &str, sip: Option<f64>) -> Blame {
    match cause {
        "normal_clearing" | "time_limit" => Blame::Nobody,
        // A carrier says no where the account may not call there.
        "call_rejected" => match unconnected(sip) {
            Blame::Ringback => Blame::Ringback,
            _ => Blame::Other,
        },
        "user_busy" | "no_answer" | "not_found" | "timeout" => Blame::Other,
        "originator_cancel" => Blame::Ringback,
        // Some say no more than their answer.
        "unspecified" if sip.is_some_and(|code| (200.0..300.0).contains(&code)) => Blame::Nobody,
        "unspecified" => unconnected(sip),
        _ => Blame::Provider,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{ProviderKind::Telnyx, testing::*},
        *,
    };
    use crate::provider::Event;

    const HANGUP: &str = include_str!("../../../../tests/fixtures/telnyx/call.hangup.json");

    #[test]
    fn a_call() {
        let (event, report) = read(
            Telnyx,
            include_str!("../../../../tests/fixtures/telnyx/call.answered.json"),
        );
        assert_eq!(event, Event::Started);
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "v3:fixture-control",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.123Z",
            })
        );
        let (event, report) = read(Telnyx, HANGUP);
        assert_eq!(event, Event::Ended);
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "v3:fixture-control",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.100Z",
                "endedAt": "2026-11-22T17:00:30.500Z",
                "endedReason": "normal_clearing",
                "detail": {
                    "hangupSource": "callee", "sipHangupCause": "200",
                    "callLegId": "428c31b6-7af4-4bcb-b7f5-5013ef9657c1",
                    "callSessionId": "428c31b6-abf3-3bc1-b7f4-5013ef9657c1",
                },
            })
        );
        let initiated = include_str!("../../../../tests/fixtures/telnyx/call.initiated.json");
        assert_eq!(ignored_as(Telnyx, initiated), "call.initiated");
    }

    #[test]
    fn calls_that_were_not_connected() {
        let busy = include_str!("../../../../tests/fixtures/telnyx/call.hangup-busy.json");
        let (_, report) = read(Telnyx, busy);
        assert_eq!(report["endedReason"], "user_busy");
        assert_eq!(
            (report.get("startedAt"), &report["fault"]),
            (None, &json!("target"))
        );
        for (cause, sip, fault) in [
            ("normal_clearing", "200", None),
            ("time_limit", "200", None),
            ("no_answer", "480", Some("target")),
            ("timeout", "487", Some("target")),
            ("not_found", "404", Some("target")),
            ("call_rejected", "603", Some("target")),
            ("call_rejected", "403", Some("ringback")),
            ("originator_cancel", "487", Some("ringback")),
            ("unspecified", "unspecified", Some("provider")),
            ("unspecified", "486", Some("target")),
            ("unspecified", "200", None),
            ("made_up", "200", Some("provider")),
        ] {
            let parts = [
                ("/data/payload/hangup_cause", json!(cause)),
                ("/data/payload/sip_hangup_cause", json!(sip)),
            ];
            let (_, report) = read(Telnyx, &with(HANGUP, &parts));
            assert_eq!(
                report.get("fault").and_then(Value::as_str),
                fault,
                "{cause} {sip}"
            );
        }
    }

    #[test]
    fn odd_calls() {
        // {"ringback": {"agent": "target"}}
        let target = "eyJyaW5nYmFjayI6IHsiYWdlbnQiOiAidGFyZ2V0In19";
        for (state, fault) in [
            (json!(target), "tester"),
            (json!("%"), "target"),
            (json!(7), "target"),
        ] {
            let parts = [
                ("/data/payload/client_state", state),
                ("/data/payload/hangup_cause", json!("user_busy")),
            ];
            assert_eq!(read(Telnyx, &with(HANGUP, &parts)).1["fault"], fault);
        }
        let (_, report) = read(
            Telnyx,
            &with(HANGUP, &[("/data/payload/call_control_id", Value::Null)]),
        );
        assert_eq!(report["callId"], "428c31b6-7af4-4bcb-b7f5-5013ef9657c1");
        assert_eq!(
            complaint(Telnyx, &with(HANGUP, &[("/data/payload", json!("x"))])),
            "data.payload.call_control_id is missing"
        );
    }
}
