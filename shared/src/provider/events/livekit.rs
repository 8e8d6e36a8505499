//! LiveKit: the events of its rooms. A room is a call.

use serde_json::Value;

use super::{
    Said, at_ms, at_seconds, detail, embedded, ended, ignored, iso_of, missing, ours, owned, started, text,
};
use crate::provider::CallReport;

/// Its kinds that are not read. A participant is no call: testers and recorders are some too.
const KINDS: &[&str] = &[
    "egress_ended",
    "egress_started",
    "egress_updated",
    "ingress_ended",
    "ingress_started",
    "participant_connection_aborted",
    "participant_joined",
    "participant_left",
    "track_published",
    "track_unpublished",
];

pub(super) fn said(body: &Value) -> Result<Said, String> {
    let kind = text(body, "/event").ok_or_else(|| missing("event"))?;
    if !matches!(kind, "room_started" | "room_finished") {
        return Ok(ignored(KINDS, kind));
    }
    // A name may be that of many rooms, one after the other.
    let call_id = owned(body, "/room/sid").or_else(|| owned(body, "/room/name"));
    let created = at_ms(body, "/room/creationTimeMs").or_else(|| at_seconds(body, "/room/creationTime"));
    // Either spelling is JSON of their messages.
    let created = created
        .or_else(|| at_ms(body, "/room/creation_time_ms"))
        .or_else(|| at_seconds(body, "/room/creation_time"))
        // Zero is their word for nothing.
        .filter(|at| *at > 0);
    let at = at_seconds(body, "/createdAt").or_else(|| at_seconds(body, "/created_at"));
    let at = at.filter(|at| *at > 0);
    let report = CallReport {
        call_id: call_id.ok_or_else(|| missing("room.sid"))?,
        correlation: ours([embedded(body, "/room/metadata").as_ref()]).correlation,
        detail: detail([("room", body.pointer("/room/name")), ("event", body.get("id"))]),
        ..CallReport::default()
    };
    Ok(if kind == "room_started" {
        started(CallReport {
            started_at: iso_of(created.or(at)),
            ..report
        })
    } else {
        ended(CallReport {
            started_at: iso_of(created),
            ended_at: iso_of(at),
            ended_reason: Some(kind.to_owned()),
            ..report
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{ProviderKind::Livekit, testing::*},
        *,
    };
    use crate::provider::Event;

    const FINISHED: &str = include_str!("../../../../tests/fixtures/livekit/room_finished.json");

    #[test]
    fn a_room_is_a_call() {
        let (event, report) = read(
            Livekit,
            include_str!("../../../../tests/fixtures/livekit/room_started.json"),
        );
        assert_eq!(event, Event::Started);
        assert_eq!(
            report,
            json!({
                "type": "call.started",
                "callId": "RM_fixture",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.250Z",
                "detail": {"room": "ringback-test-1", "event": "EV_fixture1"},
            })
        );
        let (event, report) = read(Livekit, FINISHED);
        assert_eq!(event, Event::Ended);
        assert_eq!(
            report,
            json!({
                "type": "call.ended",
                "callId": "RM_fixture",
                "correlation": "rbc1.Zml4dHVyZQ.c2ln",
                "startedAt": "2026-11-22T17:00:00.250Z",
                "endedAt": "2026-11-22T17:00:30.000Z",
                "endedReason": "room_finished",
                "detail": {"room": "ringback-test-1", "event": "EV_fixture2"},
            })
        );
    }

    #[test]
    fn odd_rooms() {
        let odd = [
            ("/room/sid", json!("")),
            ("/room/metadata", json!("not {json")),
            ("/room/creationTimeMs", json!("0")),
            ("/room/creationTime", Value::Null),
            ("/createdAt", json!("soon")),
        ];
        assert_eq!(
            read(Livekit, &with(FINISHED, &odd)).1,
            json!({
                "type": "call.ended",
                "callId": "ringback-test-1",
                "endedReason": "room_finished",
                "detail": {"room": "ringback-test-1", "event": "EV_fixture2"},
            })
        );
        assert_eq!(
            complaint(Livekit, &with(FINISHED, &[("/room", json!([]))])),
            "room.sid is missing"
        );
        for (body, name) in [
            (
                include_str!("../../../../tests/fixtures/livekit/participant_joined.json"),
                "participant_joined",
            ),
            (
                include_str!("../../../../tests/fixtures/livekit/egress_ended.json"),
                "egress_ended",
            ),
        ] {
            assert_eq!(ignored_as(Livekit, body), name);
        }
    }
}
