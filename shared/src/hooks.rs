//! What goes out when an item's conversation starts and ends: the scenario's hooks, the bodies that their receivers get,
//! and when an attempt that failed is repeated.

use serde_json::{Map, Value, json};

use crate::{
    call_record::CallRecord,
    clock::iso,
    lifecycle::{DeliveryState, Hook, HookEvent, Item},
    listeners::{self, Listener, Outcome},
    models::simulation::{
        BackoffPlan, BackoffType, Server, SimulationHook, SimulationHookEvent, SimulationHookInclude,
    },
    store::Snapshot,
};

/// How many requests are retried where nobody says how, and the seconds before the first of them; the pause doubles. A
/// receiver that is deployed anew is back by then.
const DEFAULT_RETRIES: u32 = 5;
const DEFAULT_DELAY_SECONDS: f64 = 5.0;

/// The most that a plan may ask for.
const MAX_RETRIES: u32 = 10;

/// One of those who are told: an action of the scenario's hooks, who wants to hear of a run's end, or a listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// The hook's place in the scenario, from 0; 0 where there is no scenario.
    pub hook: u32,
    /// The action's place in the hook, from 0.
    pub action: u32,
    /// Where it goes. Without one there is nobody to tell.
    pub server: Option<Server>,
    /// What its body carries besides ids and times.
    pub include: SimulationHookInclude,
    /// What it is told in.
    pub form: Form,
}

/// What somebody is told in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// A webhook in Ringback's own words.
    #[default]
    Webhook,
    /// A message to Slack.
    Slack,
    /// A webhook in another API's words.
    Listener,
}

/// What an attempt came to that was not answered with 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// This status.
    Status(u16),
    /// No answer.
    NoAnswer,
}

/// The actions of a scenario's hooks for `event`. One that names no server goes to the target's own `server`, of a squad to that
/// of its first member.
#[must_use]
pub fn actions(snapshot: &Snapshot, target: &Value, event: HookEvent) -> Vec<Action> {
    let on = match event {
        HookEvent::Started => SimulationHookEvent::Started,
        HookEvent::Ended => SimulationHookEvent::Ended,
        // No scenario's.
        HookEvent::Judged | HookEvent::RunHeld | HookEvent::RunEnded | HookEvent::ScheduleFailed => {
            return Vec::new();
        }
    };
    let hooks: Vec<SimulationHook> = snapshot
        .scenario
        .get("hooks")
        .and_then(|hooks| serde_json::from_value(hooks.clone()).ok())
        .unwrap_or_default();
    let first = || target.get("squad")?.get("members")?.get(0)?.get("assistant");
    let default = target
        .get("assistant")
        .or_else(first)
        .and_then(|assistant| assistant.get("server"))
        .and_then(|server| serde_json::from_value::<Server>(server.clone()).ok())
        .filter(has_url);
    let mut actions = Vec::new();
    for (hook, wanted) in (0..).zip(hooks) {
        if wanted.on != on {
            continue;
        }
        for (action, wanted) in (0..).zip(wanted.actions) {
            actions.push(Action {
                hook,
                action,
                server: wanted.server.filter(has_url).or_else(|| default.clone()),
                include: wanted.include.unwrap_or_default(),
                form: Form::Webhook,
            });
        }
    }
    actions
}

fn has_url(server: &Server) -> bool {
    server.url.as_deref().is_some_and(|url| !url.trim().is_empty())
}

/// How many milliseconds after the `attempts`-th attempt the next one is made, or nothing when that was the last.
///
/// A plan says it all: whatever is not answered with 2xx is repeated but for its excluded statuses. Without one, what may
/// pass by itself is repeated.
#[must_use]
pub fn again_after_ms(plan: Option<&BackoffPlan>, attempts: u32, missed: Missed) -> Option<i64> {
    let (retries, seconds, doubles) = match plan {
        Some(plan) => {
            if matches!(missed, Missed::Status(status) if plan.excludes(status)) {
                return None;
            }
            // The target's own server is not validated as a hook's is.
            let retries = u32::try_from(plan.max_retries).unwrap_or(0).min(MAX_RETRIES);
            (
                retries,
                plan.base_delay_seconds,
                plan.kind == BackoffType::Exponential,
            )
        }
        None => {
            let passes = match missed {
                Missed::NoAnswer => true,
                Missed::Status(status) => matches!(status, 408 | 425 | 429 | 500..),
            };
            if !passes {
                return None;
            }
            (DEFAULT_RETRIES, DEFAULT_DELAY_SECONDS, true)
        }
    };
    if attempts > retries {
        return None;
    }
    let factor = if doubles {
        1_u32 << attempts.saturating_sub(1).min(16)
    } else {
        1
    };
    #[expect(clippy::cast_possible_truncation, reason = "clamped to a day before")]
    let ms = (seconds.max(0.0) * 1000.0 * f64::from(factor)).min(86_400_000.0) as i64;
    Some(ms)
}

/// The body of a hook.
#[must_use]
pub fn body(
    hook: &Hook,
    item: &Item,
    snapshot: &Snapshot,
    record: &CallRecord,
    include: &SimulationHookInclude,
) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("type", json!(hook.event.title()));
    put(
        "simulationId",
        snapshot.simulation.get("id").cloned().unwrap_or_default(),
    );
    put("runId", json!(item.run));
    put("simulationRunItemId", json!(item.id()));
    put("iterationNumber", json!(item.iteration));
    put("isSimulation", json!(true));
    put("timestamp", json!(hook.at));
    if let Some(id) = item.shown_call_id() {
        // Both legs of a call have the provider's one name for it.
        let mut calls = json!({ "testerCallId": id, "targetCallId": id });
        if let Some(url) = &record.listen_url {
            calls["listenUrl"] = json!(url);
        }
        put("calls", calls);
    }
    if hook.event == HookEvent::Started {
        return Value::Object(body);
    }
    let ended = item.ended();
    put("canceled", json!(hook.canceled));
    if let Some(reason) = &hook.failure {
        put("failureReason", json!(reason));
    }
    if let Some(at) = item.started_at() {
        put("startedAt", json!(iso(at)));
    }
    put("endedAt", json!(iso(ended.map_or(hook.at, |ended| ended.at))));
    let voice = item.call.is_some();
    if let Some(ended) = ended.filter(|_| voice) {
        put("endedReason", json!(ended.reason));
    }
    if include.transcript {
        put("transcript", json!(record.transcript));
    }
    if include.messages {
        put("messages", json!(record.messages));
    }
    if let Some(url) = record.recording_url.as_ref().filter(|_| include.recording_url) {
        put("recordingUrl", json!(url));
    }
    Value::Object(body)
}

/// How far one of those who are told has been told.
#[must_use]
pub(crate) fn progress(hook: &Hook, action: &Action) -> Value {
    let delivery = hook.delivery(action.hook, action.action);
    let mut entry = json!({
        "webhookId": hook.webhook_id(action.hook, action.action),
        "status": delivery.state,
        "attempts": delivery.attempts,
    });
    let optional = [
        ("statusCode", delivery.status_code.map(|status| json!(status))),
        ("error", delivery.error.map(|error| json!(error))),
        ("deliveredAt", delivery.delivered_at.map(|at| json!(iso(at)))),
        (
            "nextAttemptAt",
            delivery
                .next_attempt_at
                .filter(|_| delivery.state == DeliveryState::Pending)
                .map(|at| json!(iso(at))),
        ),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            entry[name] = value;
        }
    }
    entry
}

/// How far the hooks of an item are, as its users see it: by the event's name, one entry for each action of the scenario's, and one
/// for each who listens.
#[must_use]
pub fn report(
    hooks: &[Hook],
    snapshot: &Snapshot,
    target: &Value,
    listeners: &[Listener],
) -> Option<Map<String, Value>> {
    let mut report = Map::new();
    for hook in hooks {
        let own = actions(snapshot, target, hook.event);
        let own = own.iter().map(|action| {
            let mut entry = progress(hook, action);
            entry["hook"] = json!(action.hook);
            entry["action"] = json!(action.action);
            entry
        });
        let listening = listeners::actions(listeners, hook.event, Outcome::default());
        let listening = listening.iter().map(|action| progress(hook, action));
        let entries: Vec<Value> = own.chain(listening).collect();
        if !entries.is_empty() {
            report.insert(hook.event.title().to_owned(), Value::Array(entries));
        }
    }
    (!report.is_empty()).then_some(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(hooks: Value) -> Snapshot {
        Snapshot {
            scenario: json!({ "hooks": hooks }),
            personality: Value::Null,
            simulation: json!({"id": "s"}),
            outputs: Map::new(),
            metrics: serde_json::Map::new(),
            eval: Value::Null,
        }
    }

    #[test]
    fn the_actions_of_an_event_keep_their_places_and_find_a_server() {
        let hooks = snapshot(json!([
            {"on": "call.started", "do": [{"type": "webhook", "server": {"url": "https://a"}}]},
            {"on": "simulation.run.ended", "do": [
                {"type": "webhook", "include": {"transcript": true}},
                {"type": "webhook", "server": {"url": "https://b"}},
            ]},
        ]));
        let urls = |target: Value, event| -> Vec<(u32, u32, Option<String>)> {
            actions(&hooks, &target, event)
                .into_iter()
                .map(|one| (one.hook, one.action, one.server.and_then(|server| server.url)))
                .collect()
        };
        assert_eq!(
            urls(Value::Null, HookEvent::Started),
            [(0, 0, Some("https://a".to_owned()))]
        );
        assert_eq!(
            urls(Value::Null, HookEvent::Ended),
            [(1, 0, None), (1, 1, Some("https://b".to_owned()))]
        );
        let target = json!({"assistant": {"server": {"url": "https://own"}}});
        assert_eq!(
            urls(target.clone(), HookEvent::Ended)[0],
            (1, 0, Some("https://own".to_owned()))
        );
        let squad = json!({"squad": {"members": [target, {}]}});
        assert_eq!(
            urls(squad, HookEvent::Ended)[0],
            (1, 0, Some("https://own".to_owned()))
        );
        assert!(
            actions(&hooks, &Value::Null, HookEvent::Ended)[0]
                .include
                .transcript
        );
    }

    #[test]
    fn attempts_are_repeated_as_the_plan_says() {
        let plan = |kind, max_retries, base_delay_seconds| BackoffPlan {
            kind,
            max_retries,
            base_delay_seconds,
            excluded_status_codes: Some(vec![json!(401), json!(404.0)]),
            ..BackoffPlan::default()
        };
        let fixed = plan(BackoffType::Fixed, 2, 1.5);
        let doubling = plan(BackoffType::Exponential, 3, 1.0);
        let none = plan(BackoffType::Fixed, 0, 1.0);
        for (plan, attempts, missed, again) in [
            (Some(&fixed), 1, Missed::Status(400), Some(1500)),
            (Some(&fixed), 2, Missed::NoAnswer, Some(1500)),
            (Some(&fixed), 3, Missed::Status(500), None),
            (Some(&fixed), 1, Missed::Status(401), None),
            (Some(&fixed), 1, Missed::Status(404), None),
            (Some(&doubling), 1, Missed::Status(500), Some(1000)),
            (Some(&doubling), 3, Missed::Status(302), Some(4000)),
            (Some(&doubling), 4, Missed::Status(500), None),
            (Some(&none), 1, Missed::Status(500), None),
            (None, 1, Missed::Status(503), Some(5000)),
            (None, 5, Missed::NoAnswer, Some(80_000)),
            (None, 6, Missed::NoAnswer, None),
            (None, 1, Missed::Status(429), Some(5000)),
            (None, 1, Missed::Status(404), None),
        ] {
            assert_eq!(
                again_after_ms(plan, attempts, missed),
                again,
                "{plan:?} {attempts} {missed:?}"
            );
        }
    }
}
