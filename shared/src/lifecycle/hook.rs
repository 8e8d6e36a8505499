//! Outgoing hooks: what is told of an item's conversation, of a run's end or of a schedule, to whom, and how far that is.
//!
//! A hook is a row of its own that is written in the same transaction as the change that it tells of, and it owes its
//! deliveries until each of them is done or given up.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Item, Lease, Owed, REQUEUE_AFTER_MS, Refused, State, look_again_ms};
use crate::{
    ids,
    store::{RunHead, RunKind, RunState},
    trace::Trace,
};

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookEvent {
    /// The conversation has started.
    Started,
    /// The conversation is over, or could not be held.
    Ended,
    /// The conversation has its verdict.
    Judged,
    /// A run waits to begin until this was told.
    #[serde(rename = "run-held")]
    RunHeld,
    /// All items of a run are over.
    #[serde(rename = "run-ended")]
    RunEnded,
    /// A run of a schedule could not be started.
    #[serde(rename = "schedule-failed")]
    ScheduleFailed,
}

impl HookEvent {
    /// Its name in keys and ids.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ended => "ended",
            Self::Judged => "judged",
            Self::RunHeld => "run-held",
            Self::RunEnded => "run-ended",
            Self::ScheduleFailed => "schedule-failed",
        }
    }

    /// Its name to users, as the scenario's hooks and the webhooks say it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Started => "simulation.run.started",
            Self::Ended => "simulation.run.ended",
            Self::Judged => "simulation.run.judged",
            Self::RunHeld => "run.held",
            Self::RunEnded => "run.ended",
            Self::ScheduleFailed => "schedule.failed",
        }
    }
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// It is tried, or will be.
    #[default]
    Pending,
    /// It was answered with 2xx.
    Delivered,
    /// It was given up.
    Failed,
    /// There is nobody to send it to.
    Skipped,
}

/// What became of one action of the scenario's hooks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// The hook's place in the scenario, from 0.
    pub hook: u32,
    /// The action's place in the hook, from 0.
    pub action: u32,
    /// How far it is.
    #[serde(rename = "status")]
    pub state: DeliveryState,
    /// How often it was sent.
    pub attempts: u32,
    /// The status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// What went wrong the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was answered with 2xx, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<i64>,
    /// When it is sent again, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<i64>,
}

/// What a hook tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Subject {
    /// An item.
    Item {
        /// The run.
        run: Uuid,
        /// The item's place in its run, from 0.
        index: u32,
        /// Which of the run's simulations it is, from 0.
        simulation: u32,
    },
    /// A run.
    Run {
        /// The run.
        run: Uuid,
        /// What it is.
        #[serde(default, skip_serializing_if = "RunKind::is_simulation")]
        kind: RunKind,
    },
    /// A firing of a schedule.
    Firing {
        /// The schedule.
        schedule: Uuid,
        /// When it was to be, in milliseconds since the Unix epoch.
        fire_at: i64,
    },
}

/// What is told of something, and to whom it was told so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// The organization.
    pub org: Uuid,
    /// What it tells of.
    #[serde(flatten)]
    pub subject: Subject,
    /// What is told.
    pub event: HookEvent,
    /// When it happened, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Whether it ended because somebody stopped it.
    #[serde(default)]
    pub canceled: bool,
    /// Why the conversation could not be held, or broke off; why no run was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// [`Owed::Deliver`], or nothing when all deliveries are done.
    pub owed: Owed,
    /// From when on somebody has to look after it, in milliseconds since the Unix epoch; absent when nothing is owed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<i64>,
    /// No worker may take it before, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    /// Grows by one with every write.
    pub version: u64,
    /// How often it was put on its queue again.
    #[serde(default)]
    pub requeues: u32,
    /// Who works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Whether those who listen to its run may have to be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listened: bool,
    /// The trace of the request that made its item's run, if that had one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::trace::lenient"
    )]
    pub trace: Option<Trace>,
    /// The deliveries that were tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<Delivery>,
}

impl Hook {
    /// What has to be told when an item that was `before` is `after` at `now`.
    #[must_use]
    pub fn of(before: &Item, after: &Item, now: i64) -> Vec<Self> {
        if !after.is_told() {
            return Vec::new();
        }
        let mut events = Vec::new();
        // Who heard that it is over is not told any more that it started.
        let over = before.state >= State::Evaluating;
        if !over && before.facts.started.is_none() && after.facts.started.is_some() {
            events.push(HookEvent::Started);
        }
        // An item that was canceled before anybody tried to hold its conversation has nothing to tell.
        let intended = after.call.as_ref().is_some_and(|call| call.intended_at.is_some());
        let tried = intended || after.facts.started.is_some() || after.state == State::Failed;
        if !over && after.state >= State::Evaluating && tried {
            events.push(HookEvent::Ended);
        }
        let judged = matches!(after.state, State::Passed | State::Failed);
        if after.listened && before.state == State::Evaluating && judged {
            events.push(HookEvent::Judged);
        }
        let subject = Subject::Item {
            run: after.run,
            index: after.index,
            simulation: after.simulation,
        };
        let hook = |event| Self {
            canceled: after.state == State::Canceled,
            failure: after.failure.as_ref().map(|failure| failure.reason.clone()),
            listened: after.listened,
            trace: after.trace,
            ..Self::new(after.org, subject, event, now)
        };
        events.into_iter().map(hook).collect()
    }

    /// What has to be told when a run that was `before` is `after` at `now`: its end, where a schedule started it, which keeps
    /// what came of it, or where somebody wants to hear of this outcome.
    #[must_use]
    pub fn of_run(before: &RunHead, after: &RunHead, now: i64) -> Option<Self> {
        if before.state == RunState::Ended || after.state != RunState::Ended || after.deleted_at.is_some() {
            return None;
        }
        let wanted = after.notify.is_some_and(|on| on.wants(after.is_success()));
        let subject = Subject::Run {
            run: after.id,
            kind: after.kind,
        };
        (wanted || after.schedule.is_some()).then(|| Self {
            canceled: after.canceled_at.is_some(),
            ..Self::new(after.org, subject, HookEvent::RunEnded, now)
        })
    }

    /// What has to be told before a new run begins, at `now`.
    #[must_use]
    pub fn of_held(head: &RunHead, now: i64) -> Self {
        let subject = Subject::Run {
            run: head.id,
            kind: head.kind,
        };
        Self {
            trace: head.trace,
            ..Self::new(head.org, subject, HookEvent::RunHeld, now)
        }
    }

    /// What has to be told when no run could be started at `now` for the firing of a schedule at `fire_at`.
    #[must_use]
    pub fn of_firing(org: Uuid, schedule: Uuid, fire_at: i64, reason: &str, now: i64) -> Self {
        Self {
            failure: Some(reason.to_owned()),
            ..Self::new(
                org,
                Subject::Firing { schedule, fire_at },
                HookEvent::ScheduleFailed,
                now,
            )
        }
    }

    fn new(org: Uuid, subject: Subject, event: HookEvent, now: i64) -> Self {
        Self {
            org,
            subject,
            event,
            at: now,
            canceled: false,
            failure: None,
            owed: Owed::Deliver,
            due_at: Some(now + REQUEUE_AFTER_MS),
            not_before: None,
            version: 1,
            requeues: 0,
            lease: None,
            listened: false,
            trace: None,
            deliveries: Vec::new(),
        }
    }

    /// What names a delivery to whoever gets it, the same at each attempt.
    #[must_use]
    pub fn webhook_id(&self, hook: u32, action: u32) -> String {
        let (kind, id, which) = match self.subject {
            Subject::Item { run, index, .. } => {
                ("hook", ids::item_id(run, index), self.event.as_str().to_owned())
            }
            Subject::Run { run, .. } => ("run", run, self.event.as_str().to_owned()),
            Subject::Firing { schedule, fire_at } => ("schedule", schedule, fire_at.to_string()),
        };
        format!("{kind}_{}_{which}_{hook}_{action}", id.simple())
    }

    /// What became of an action so far.
    #[must_use]
    pub fn delivery(&self, hook: u32, action: u32) -> Delivery {
        let known = self
            .deliveries
            .iter()
            .find(|known| (known.hook, known.action) == (hook, action));
        known.cloned().unwrap_or(Delivery {
            hook,
            action,
            ..Delivery::default()
        })
    }

    /// Whether it waits for a worker.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.owed == Owed::Deliver && self.lease.is_none()
    }

    fn next(&self) -> Self {
        Self {
            version: self.version + 1,
            ..self.clone()
        }
    }

    /// A worker takes it to deliver what is due, for `lease_ms` milliseconds.
    ///
    /// # Errors
    /// When nothing is owed, another worker holds it, or its pause is not over.
    pub fn claim(&self, owner: &str, lease_ms: i64, now: i64) -> Result<Self, Refused> {
        if self.owed != Owed::Deliver {
            return Err(Refused::Past);
        }
        if self.lease.as_ref().is_some_and(|lease| lease.until > now) {
            return Err(Refused::Held);
        }
        if self.not_before.is_some_and(|at| at > now) {
            return Err(Refused::TooEarly);
        }
        let mut hook = self.next();
        hook.lease = Some(Lease {
            owner: owner.to_owned(),
            until: now + lease_ms,
        });
        hook.not_before = None;
        hook.due_at = Some(now + lease_ms);
        Ok(hook)
    }

    /// The worker writes what became of all deliveries. What is pending is owed from its next attempt on.
    ///
    /// # Errors
    /// When the worker holds it no longer.
    pub fn delivered(&self, owner: &str, deliveries: &[Delivery], now: i64) -> Result<Self, Refused> {
        if self.lease.as_ref().is_none_or(|lease| lease.owner != owner) {
            return Err(Refused::Held);
        }
        let mut hook = self.next();
        hook.lease = None;
        hook.requeues = 0;
        hook.deliveries = deliveries.to_vec();
        let pending = deliveries
            .iter()
            .filter(|one| one.state == DeliveryState::Pending);
        match pending.map(|one| one.next_attempt_at.unwrap_or(now)).min() {
            Some(at) => {
                hook.not_before = Some(at);
                hook.due_at = Some(at.max(now) + REQUEUE_AFTER_MS);
            }
            None => {
                hook.owed = Owed::Nothing;
                hook.not_before = None;
                hook.due_at = None;
            }
        }
        Ok(hook)
    }

    /// `sweep` found it due: the next look is moved forward, doubling each time, before it is queued again. With
    /// `void_leases`, whoever held it is known to be gone.
    ///
    /// # Errors
    /// When nothing is owed or it is not due.
    pub fn requeue(&self, void_leases: bool, now: i64) -> Result<Self, Refused> {
        let due = self.due_at.ok_or(Refused::Past)?;
        if !void_leases && due > now {
            return Err(Refused::TooEarly);
        }
        let mut hook = self.next();
        if let Some(lease) = &mut hook.lease {
            lease.until = lease.until.min(now);
        }
        hook.due_at = Some(now + look_again_ms(self.requeues));
        hook.requeues += 1;
        Ok(hook)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::{Facts, Failure, Slots, Source};

    const NOW: i64 = 1_700_000_000_000;

    fn item() -> Item {
        Item {
            hooked: true,
            ..Item::admitted(Uuid::nil(), ids::new_id(NOW), 3, 5, NOW)
        }
    }

    fn told(before: &Item, after: &Item) -> Vec<(HookEvent, bool, bool)> {
        let hooks = Hook::of(before, after, NOW);
        let told = |hook: &Hook| (hook.event, hook.canceled, hook.failure.is_some());
        hooks.iter().map(told).collect()
    }

    #[test]
    fn a_start_and_an_end_are_told_once_each() {
        let admitted = item();
        let held = admitted.claim("a", 1000, NOW).unwrap();
        assert_eq!(told(&admitted, &held), [(HookEvent::Started, false, false)]);
        let renewed = held.renew("a", 1000, NOW).unwrap();
        assert_eq!(told(&held, &renewed), []);
        let over = renewed.end_conversation("a", "x", NOW).unwrap();
        assert_eq!(told(&renewed, &over), [(HookEvent::Ended, false, false)]);
        let judging = over.claim_evaluation("b", 1000, NOW).unwrap();
        let wrong = judging.decide("b", Err(Failure::new("no", None)), NOW).unwrap();
        assert_eq!(
            told(&judging, &wrong),
            [],
            "a verdict is not the conversation's end"
        );
        let canceled = held.cancel(NOW).unwrap();
        assert_eq!(told(&held, &canceled), [(HookEvent::Ended, true, false)]);
        let failed = held.fail("a", &Failure::new("down", None), NOW).unwrap();
        assert_eq!(told(&held, &failed), [(HookEvent::Ended, false, true)]);
        assert_eq!(
            told(&admitted, &admitted.cancel(NOW).unwrap()),
            [],
            "it never left the queue"
        );
        let quiet = Item {
            hooked: false,
            ..admitted
        };
        assert_eq!(told(&quiet, &quiet.claim("a", 1000, NOW).unwrap()), []);
    }

    #[test]
    fn a_call_tells_both_when_only_its_end_is_reported() {
        let slots = Slots {
            calls: vec![0, 1],
            run: None,
        };
        let waiting = item().by_voice(Uuid::max());
        let placed = waiting
            .admit(&slots, NOW)
            .unwrap()
            .claim_call("a", 1000, 1000, NOW)
            .unwrap();
        let report = Facts::started(Source::Report, NOW).join(Facts::ended(Source::Report, NOW, "x"));
        let over = placed.observe(report, NOW);
        assert_eq!(
            told(&placed, &over),
            [
                (HookEvent::Started, false, false),
                (HookEvent::Ended, false, false)
            ]
        );
        assert_eq!(
            told(&placed, &placed.cancel(NOW).unwrap()),
            [(HookEvent::Ended, true, false)]
        );
    }

    #[test]
    fn what_is_pending_is_owed_from_its_next_attempt_on() {
        let admitted = item();
        let [hook] = &Hook::of(&admitted, &admitted.claim("a", 1000, NOW).unwrap(), NOW)[..] else {
            panic!("one hook");
        };
        assert!(hook.is_waiting());
        assert_eq!(hook.webhook_id(0, 1), hook.clone().webhook_id(0, 1));
        assert_ne!(hook.webhook_id(0, 1), hook.webhook_id(1, 0));
        let held = hook.claim("a", 5000, NOW).unwrap();
        assert_eq!(held.claim("b", 5000, NOW + 4999), Err(Refused::Held));
        assert!(held.claim("b", 5000, NOW + 5000).is_ok(), "its worker died");
        assert_eq!(held.delivered("b", &[], NOW), Err(Refused::Held));
        let again = Delivery {
            attempts: 1,
            next_attempt_at: Some(NOW + 700),
            ..held.delivery(0, 1)
        };
        let done = Delivery {
            state: DeliveryState::Delivered,
            ..held.delivery(0, 0)
        };
        let paused = held.delivered("a", &[done.clone(), again.clone()], NOW).unwrap();
        assert!(paused.is_waiting());
        assert_eq!(paused.delivery(0, 1), again);
        assert_eq!(paused.claim("b", 5000, NOW + 699), Err(Refused::TooEarly));
        let held = paused.claim("b", 5000, NOW + 700).unwrap();
        let over = held.delivered("b", &[done], NOW + 800).unwrap();
        assert_eq!(
            (over.owed, over.due_at, over.is_waiting()),
            (Owed::Nothing, None, false)
        );
        assert_eq!(over.claim("c", 5000, NOW + 900), Err(Refused::Past));
    }

    proptest! {
        #[test]
        fn a_hook_is_found_again_until_nothing_is_owed(steps in prop::collection::vec((0_u8..4, 0_i64..400_000), 0..30)) {
            let admitted = item();
            let mut hook = Hook::of(&admitted, &admitted.claim("a", 1000, NOW).unwrap(), NOW).remove(0);
            let mut now = NOW;
            for (step, wait) in steps {
                now += wait;
                let next = match step {
                    0 => hook.claim("a", 60_000, now),
                    1 => hook.claim("b", 60_000, now),
                    2 => hook.requeue(wait % 2 == 0, now),
                    _ => {
                        let again = Delivery { next_attempt_at: Some(now + wait), ..hook.delivery(0, 0) };
                        hook.delivered("a", &[again], now)
                    }
                };
                let Ok(next) = next else { continue };
                prop_assert_eq!(next.version, hook.version + 1);
                prop_assert_eq!(next.owed, Owed::Deliver);
                prop_assert!(next.due_at.is_some_and(|due| due > now));
                hook = next;
            }
        }
    }
}
