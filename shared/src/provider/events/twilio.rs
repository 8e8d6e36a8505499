//! Twilio: status callbacks of calls, as forms or as JSON.

use jiff::fmt::rfc2822::DateTimeParser;
use serde_json::{Map, Value, json};

use super::{
    Blame, Said, Side, When, detail, ended, ignored, iso_of, missing, number, owned, parsed, started, text,
};
use crate::{clock::parse_iso, provider::CallReport};

/// The fields that are read.
const FIELDS: &[&str] = &[
    "AnsweredBy",
    "CallDuration",
    "CallSid",
    "CallStatus",
    "Direction",
    "ErrorCode",
    "ErrorMessage",
    "ParentCallSid",
    "RecordingSid",
    "RecordingUrl",
    "SipResponseCode",
    "StreamEvent",
    "Timestamp",
    "TranscriptionEvent",
];

/// The states that say neither a start nor an end.
const STATES: &[&str] = &["initiated", "queued", "ringing"];

pub(super) fn said(body: &[u8], content_type: Option<&str>) -> Result<Said, String> {
    let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
    let looks_like_json = || body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let is_json = content_type.contains("json") || (!content_type.contains("form") && looks_like_json());
    let fields = if is_json { parsed(body)? } else { form(body) };
    callback(&fields)
}

fn form(body: &[u8]) -> Value {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(body) {
        if FIELDS.contains(&&*name) {
            fields.entry(name).or_insert_with(|| json!(value));
        }
    }
    Value::Object(fields)
}

fn callback(fields: &Value) -> Result<Said, String> {
    let call_id = owned(fields, "/CallSid").ok_or_else(|| missing("CallSid"))?;
    let Some(status) = text(fields, "/CallStatus") else {
        // Callbacks of other things about a call, which may come to the same URL.
        let others = [
            ("RecordingSid", "recording"),
            ("TranscriptionEvent", "transcription"),
            ("StreamEvent", "stream"),
            ("AnsweredBy", "answering-machine-detection"),
        ];
        let other = others.into_iter().find(|(field, _)| fields.get(field).is_some());
        let (_, name) = other.ok_or_else(|| missing("CallStatus"))?;
        return Ok(Said::Ignored(name.into()));
    };
    let at = text(fields, "/Timestamp").and_then(time);
    let report = CallReport {
        call_id,
        ..CallReport::default()
    };
    let blame = match status {
        "in-progress" | "answered" => {
            return Ok(started(CallReport {
                started_at: iso_of(at),
                ..report
            }));
        }
        "completed" => Blame::Nobody,
        // Nothing was placed, or it was taken back.
        "canceled" => Blame::Ringback,
        // Who does not pick up a call that comes in is whoever answers for Ringback.
        "busy" | "no-answer" | "failed" if is_inbound(fields) => Blame::Ringback,
        "busy" | "no-answer" => Blame::Other,
        "failed" => unconnected(number(fields, "/SipResponseCode")),
        status => return Ok(ignored(STATES, status)),
    };
    // It lasted until this event came about.
    let seconds = number(fields, "/CallDuration").filter(|_| status == "completed");
    let start = seconds.and_then(|seconds| When::after(at, Some(-seconds), None).from);
    Ok(ended(CallReport {
        started_at: iso_of(start),
        ended_at: iso_of(at),
        ended_reason: Some(status.to_owned()),
        recording_url: owned(fields, "/RecordingUrl"),
        // There is no agent here: a call goes out to the target.
        fault: blame.fault(Side::Tester),
        detail: detail([
            ("callStatus", fields.get("CallStatus")),
            ("sipResponseCode", fields.get("SipResponseCode")),
            ("errorCode", fields.get("ErrorCode")),
            ("errorMessage", fields.get("ErrorMessage")),
            ("direction", fields.get("Direction")),
            ("answeredBy", fields.get("AnsweredBy")),
            ("parentCallSid", fields.get("ParentCallSid")),
        ]),
        ..report
    }))
}

fn is_inbound(fields: &Value) -> bool {
    text(fields, "/Direction") == Some("inbound")
}

/// Who is to blame where a call was not connected with this answer of the other end.
pub(super) fn unconnected(sip: Option<f64>) -> Blame {
    #[expect(clippy::cast_possible_truncation, reason = "three digits")]
    match sip
        .filter(|code| (100.0..1000.0).contains(code))
        .map(|code| code as i32)
    {
        // Not allowed to call there, or not with that number.
        Some(401 | 402 | 403 | 407) => Blame::Ringback,
        // There is nobody at that number, or nobody who wants to talk.
        Some(404 | 408 | 410 | 480 | 484 | 486 | 487 | 600 | 603 | 604 | 607) => Blame::Other,
        _ => Blame::Provider,
    }
}

fn time(text: &str) -> Option<i64> {
    let parser = DateTimeParser::new();
    let time = parser
        .parse_timestamp(text)
        .ok()
        .map(|time| time.as_millisecond());
    time.or_else(|| parse_iso(text))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ProviderKind::Twilio, said, testing::*},
        *,
    };
    use crate::provider::Event;

    const COMPLETED: &str = include_str!("../../../../tests/fixtures/twilio/completed.txt");
    const BUSY: &str = include_str!("../../../../tests/fixtures/twilio/busy.txt");

    #[test]
    fn a_call_as_a_form_and_as_json() {
        let json = include_str!("../../../../tests/fixtures/twilio/completed.json");
        for body in [COMPLETED, json] {
            let (event, report) = read(Twilio, body);
            assert_eq!(event, Event::Ended);
            assert_eq!(
                report,
                json!({
                    "type": "call.ended",
                    "callId": "CA00000000000000000000000000000005",
                    "startedAt": "2026-11-22T17:00:00.000Z",
                    "endedAt": "2026-11-22T17:00:30.000Z",
                    "endedReason": "completed",
                    "recordingUrl": "https://api.twilio.example.com/2010-04-01/Accounts/AC1/Recordings/RE1",
                    "detail": {"callStatus": "completed", "sipResponseCode": "200", "direction": "outbound-api"},
                })
            );
        }
        let said = |body: &str, content_type| {
            said(
                Twilio,
                Event::Ended,
                body.as_bytes(),
                Some(content_type),
                Side::Target,
            )
        };
        for content_type in ["application/x-www-form-urlencoded; charset=UTF-8", "text/plain"] {
            assert!(said(COMPLETED, content_type).is_ok());
        }
        assert!(said(json, "application/json").is_ok());
        assert!(
            said(COMPLETED, "Application/JSON")
                .unwrap_err()
                .contains("not JSON")
        );
        assert_eq!(
            said(json, "application/x-www-form-urlencoded"),
            Err("CallSid is missing".to_owned())
        );
    }

    #[test]
    fn a_call_that_is_picked_up_starts() {
        let (event, report) = read(
            Twilio,
            include_str!("../../../../tests/fixtures/twilio/in-progress.txt"),
        );
        assert_eq!(event, Event::Started);
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "CA00000000000000000000000000000005",
                "startedAt": "2026-11-22T17:00:00.000Z",
            })
        );
    }

    #[test]
    fn other_callbacks_are_counted() {
        let ringing = include_str!("../../../../tests/fixtures/twilio/ringing.txt");
        assert_eq!(ignored_as(Twilio, ringing), "ringing");
        let recording = include_str!("../../../../tests/fixtures/twilio/recording.txt");
        assert_eq!(ignored_as(Twilio, recording), "recording");
        assert_eq!(complaint(Twilio, "CallSid=CA1"), "CallStatus is missing");
        assert_eq!(
            complaint(Twilio, "CallSid=&CallStatus=busy"),
            "CallSid is missing"
        );
    }

    #[test]
    fn calls_that_were_not_connected() {
        let (_, report) = read(Twilio, BUSY);
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "CA00000000000000000000000000000005",
                "endedAt": "2026-11-22T17:00:30.000Z",
                "endedReason": "busy",
                "fault": "target",
                "detail": {"callStatus": "busy", "sipResponseCode": "486", "direction": "outbound-api"},
            })
        );
        let failed = include_str!("../../../../tests/fixtures/twilio/failed.txt");
        let failed_with =
            |code: &str| failed.replace("SipResponseCode=503", &format!("SipResponseCode={code}"));
        for (body, fault) in [
            (failed.to_owned(), "provider"),
            (failed_with("404"), "target"),
            (failed_with("403"), "ringback"),
            (failed_with("408"), "target"),
            (failed_with("1e9"), "provider"),
            (failed_with(""), "provider"),
            (BUSY.replace("=busy", "=no-answer"), "target"),
            (BUSY.replace("=busy", "=canceled"), "ringback"),
            (BUSY.replace("outbound-api", "inbound"), "ringback"),
        ] {
            assert_eq!(read(Twilio, &body).1["fault"], fault, "{body}");
        }
    }
}
