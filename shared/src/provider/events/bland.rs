//! Bland: what is sent after a call.

use serde_json::Value;

use super::{
    Blame, Conversation, Ours, Said, When, at_iso, detail, ended, ignored, iso_of, list, missing, number,
    ours, owned, relabelled, side, text,
};
use crate::provider::CallReport;

/// The kinds of what is sent during a call.
const CATEGORIES: &[&str] = &[
    "call",
    "citations",
    "dynamic_data",
    "error",
    "latency",
    "performance",
    "queue",
    "tool",
    "webhook",
];

pub(super) fn said(body: &Value) -> Result<Said, String> {
    let call_id = text(body, "/call_id").ok_or_else(|| missing("call_id"))?;
    // What is sent after a call has no type, but is the call as a look-up shows it.
    let marks = [
        "completed",
        "call_length",
        "transcripts",
        "concatenated_transcript",
    ];
    if !marks.iter().any(|mark| body.get(mark).is_some()) {
        let kind = text(body, "/category").unwrap_or_default();
        return Ok(ignored(CATEGORIES, kind));
    }
    Ok(ended(report(body, call_id)))
}

/// Bland keeps what came with a call in its metadata, and shows it among its variables.
fn marks(body: &Value) -> Ours {
    let mut found = ours([
        body.get("metadata"),
        body.get("variables"),
        body.pointer("/variables/metadata"),
    ]);
    let variables = body.get("variables").unwrap_or(&Value::Null);
    let correlation = owned(variables, "/ringback_correlation");
    found.correlation = found.correlation.or(correlation);
    found.agent = found
        .agent
        .or_else(|| text(variables, "/ringback_agent").and_then(side));
    found
}

fn report(body: &Value, call_id: &str) -> CallReport {
    let Ours { correlation, agent } = marks(body);
    let agent = agent.unwrap_or_default();
    let start = at_iso(body, "/started_at");
    let length = number(body, "/corrected_duration")
        .or_else(|| number(body, "/call_length").map(|minutes| minutes * 60.0));
    let end = at_iso(body, "/end_at").or_else(|| When::after(start, length, None).from);
    let conversation = conversation(body, start, agent);
    let blame = blame(body);
    CallReport {
        call_id: call_id.to_owned(),
        correlation,
        // It also has one where nobody picked up.
        started_at: iso_of(start.filter(|_| blame != Blame::Other)),
        ended_at: iso_of(end),
        ended_reason: reason(body, agent),
        transcript: text(body, "/concatenated_transcript")
            .filter(|_| !conversation.has_words())
            .map(|transcript| relabelled(transcript, agent)),
        turn_latencies: conversation.turns(),
        messages: conversation.messages(),
        recording_url: owned(body, "/recording_url"),
        cost: number(body, "/price"),
        fault: blame.fault(agent),
        detail: detail([
            ("status", body.get("status")),
            ("answeredBy", body.get("answered_by")),
            ("callEndedBy", body.get("call_ended_by")),
            ("errorMessage", body.get("error_message")),
            ("pathwayId", body.get("pathway_id")),
            ("summary", body.get("summary")),
            ("analysis", body.get("analysis")),
        ]),
        ..CallReport::default()
    }
}

fn reason(body: &Value, agent: super::Side) -> Option<String> {
    if let Some(error) = text(body, "/error_message") {
        return Some(error.to_owned());
    }
    let status =
        text(body, "/status").filter(|status| !matches!(*status, "completed" | "complete" | "success"));
    if let Some(status) = status {
        return Some(status.to_owned());
    }
    let ended_by = text(body, "/call_ended_by").map(str::to_ascii_lowercase);
    let side = match ended_by.as_deref() {
        Some("assistant" | "agent" | "bot") => agent,
        Some("user" | "customer" | "human") => agent.other(),
        _ => {
            let answered = text(body, "/answered_by").filter(|by| !matches!(*by, "human" | "unknown"));
            return answered.map(str::to_owned).or(ended_by);
        }
    };
    Some(match side {
        super::Side::Target => "assistant-ended-call".to_owned(),
        super::Side::Tester => "customer-ended-call".to_owned(),
    })
}

fn blame(body: &Value) -> Blame {
    let is = |field: &str, values: &[&str]| text(body, field).is_some_and(|value| values.contains(&value));
    if is("/status", &["busy", "no-answer", "voicemail"])
        || is("/answered_by", &["busy", "no-answer", "voicemail"])
    {
        return Blame::Other;
    }
    let is_failed = is("/status", &["failed", "error"]);
    let is_canceled = is("/status", &["canceled", "cancelled"]);
    let Some(error) = text(body, "/error_message").map(str::to_ascii_lowercase) else {
        return match (is_failed, is_canceled) {
            (true, _) => Blame::Provider,
            (_, true) => Blame::Ringback,
            _ => Blame::Nobody,
        };
    };
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if has(&["busy", "no answer", "no-answer", "not answer", "voicemail"]) {
        Blame::Other
    } else if has(&[
        "balance",
        "billing",
        "blocked",
        "cancel",
        "concurren",
        "credit",
        "invalid",
        "limit",
        "permission",
        "unauthorized",
    ]) {
        Blame::Ringback
    } else {
        Blame::Provider
    }
}

fn conversation(body: &Value, start: Option<i64>, agent: super::Side) -> Conversation {
    let mut all = Conversation::new(agent);
    for phrase in list(body, "/transcripts") {
        // The others are what the agent did, in words of no fixed form, and announcements of machines.
        let is_agent = match text(phrase, "/user") {
            Some("assistant") => true,
            Some("user") => false,
            _ => continue,
        };
        let when = When::at(start, at_iso(phrase, "/created_at"));
        all.say(is_agent, text(phrase, "/text"), when);
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{ProviderKind::Bland, testing::*},
        *,
    };
    use crate::provider::Event;

    const CALL: &str = include_str!("../../../../tests/fixtures/bland/post-call.json");

    #[test]
    fn a_call() {
        let (event, report) = read(Bland, CALL);
        assert_eq!(event, Event::Ended);
        let said = |role: &str, message: &str, ms: u64| {
            json!({
                "role": role, "message": message, "time": 1_795_366_800_000 + ms,
                "secondsFromStart": ms as f64 / 1000.0,
            })
        };
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "b1a9d000-0000-4000-8000-000000000001",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.000Z",
                "endedAt": "2026-11-22T17:00:30.000Z",
                "endedReason": "customer-ended-call",
                "messages": [
                    said("bot", "Harbor Dental, this is Mira.", 800),
                    said("user", "I need to move my cleaning.", 3250),
                    said("bot", "Friday at ten?", 5500),
                ],
                "recordingUrl": "https://recordings.bland.example.com/b1a9d000.mp3",
                "cost": 0.045,
                "detail": {
                    "status": "completed", "answeredBy": "human", "callEndedBy": "USER",
                    "summary": "The caller moved a cleaning to Friday.",
                },
            })
        );
    }

    #[test]
    fn an_agent_that_plays_the_tester_is_told_the_other_way_round() {
        let tester = [
            ("/metadata/ringback/agent", json!("tester")),
            ("/transcripts", Value::Null),
        ];
        let (_, report) = read(Bland, &with(CALL, &tester));
        assert_eq!(report["endedReason"], "assistant-ended-call");
        assert_eq!(
            report["transcript"],
            "User: Harbor Dental, this is Mira.\nAI: I need to move my cleaning.\n agent-action: Checking slots \nUser: \
             Friday at ten?"
        );
    }

    #[test]
    fn a_call_that_was_not_picked_up() {
        let (_, report) = read(
            Bland,
            include_str!("../../../../tests/fixtures/bland/post-call-no-answer.json"),
        );
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "b1a9d000-0000-4000-8000-000000000002",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "endedAt": "2026-11-22T17:00:20.000Z",
                "endedReason": "no-answer",
                "cost": 0.0,
                "fault": "tester",
                "detail": {"status": "no-answer", "answeredBy": "no-answer"},
            })
        );
    }

    #[test]
    fn reasons_and_faults() {
        for (parts, reason, fault) in [
            (
                vec![("/call_ended_by", json!("ASSISTANT"))],
                "assistant-ended-call",
                None,
            ),
            (vec![("/call_ended_by", Value::Null)], "unknown", None),
            (
                vec![
                    ("/answered_by", json!("voicemail")),
                    ("/call_ended_by", Value::Null),
                ],
                "voicemail",
                Some("tester"),
            ),
            (
                vec![("/error_message", json!("Call was busy"))],
                "Call was busy",
                Some("tester"),
            ),
            (
                vec![("/error_message", json!("Insufficient balance"))],
                "Insufficient balance",
                Some("ringback"),
            ),
            (
                vec![("/error_message", json!("Stream lost"))],
                "Stream lost",
                Some("provider"),
            ),
            (vec![("/status", json!("failed"))], "failed", Some("provider")),
            (vec![("/status", json!("canceled"))], "canceled", Some("ringback")),
        ] {
            let (_, report) = read(Bland, &with(CALL, &parts));
            assert_eq!(report["endedReason"], reason);
            assert_eq!(report.get("fault").and_then(Value::as_str), fault, "{reason}");
        }
        let length = [("/end_at", Value::Null), ("/corrected_duration", Value::Null)];
        assert_eq!(
            read(Bland, &with(CALL, &length)).1["endedAt"],
            "2026-11-22T17:00:30.000Z",
            "a length is in minutes"
        );
    }

    #[test]
    fn what_is_sent_during_a_call_is_counted() {
        let queue = include_str!("../../../../tests/fixtures/bland/queue.json");
        assert_eq!(ignored_as(Bland, queue), "queue");
    }
}
