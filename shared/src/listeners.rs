//! Those who are told of runs and conversations in another API's words: webhooks that belong to an organization, an agent or a
//! project, and not to one run's request. Who listens is decided when a run is made and kept with it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    hooks::{Action, Form},
    lifecycle::HookEvent,
    models::simulation::{BackoffPlan, BackoffType, Server, SimulationHookInclude},
    store::RunHead,
};

/// Whose words somebody is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Those of Cekura.
    Cekura,
    /// Those of SigmaMind.
    Sigmamind,
}

/// What somebody wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// That a run is about to begin. It waits until it was told.
    Before,
    /// The end of a run of which everything passed.
    Success,
    /// The end of a run of which something failed by its verdict.
    Failed,
    /// The end of a run of which something has no verdict.
    Error,
    /// The end of any run.
    Over,
    /// That a conversation has started.
    Started,
    /// That a conversation is over.
    Ended,
    /// That a conversation has its verdict.
    Judged,
}

/// How a run came out, as far as it decides who is told. A run may be both failed and in error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Everything passed.
    pub success: bool,
    /// Something failed by its verdict.
    pub failed: bool,
    /// Something has no verdict: it broke off by another's fault, or was canceled.
    pub error: bool,
}

impl Outcome {
    /// How a run that has ended came out, with how many of its items broke off by another's fault.
    #[must_use]
    pub fn of(head: &RunHead, errored: u32) -> Self {
        let (failed, canceled) = match &head.counts {
            Some(counts) => (counts.failed, counts.canceled),
            None => (0, 0),
        };
        Self {
            success: head.is_success(),
            failed: failed > errored,
            error: errored > 0 || canceled > 0 || head.canceled_at.is_some(),
        }
    }
}

/// One who listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Whose words it is told in.
    pub shape: Shape,
    /// The webhook's own id, where its shape has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where it is told.
    pub url: String,
    /// What it wants to hear of.
    pub wants: Vec<Wanted>,
}

/// The place of listeners among those who are told: behind every hook of a scenario.
const PLACE: u32 = 1_000_000;
/// How long the answer of one who is told before is waited for, in seconds, and how often it is told again.
const BEFORE_SECONDS: i64 = 30;
const BEFORE_RETRIES: i64 = 3;
const BEFORE_DELAY_SECONDS: f64 = 2.0;

impl Listener {
    fn hears(&self, any: &[Wanted]) -> bool {
        self.wants.iter().any(|wanted| any.contains(wanted))
    }

    /// Whether runs wait for it.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.hears(&[Wanted::Before])
    }

    /// Whether it hears of conversations.
    #[must_use]
    pub fn hears_items(&self) -> bool {
        self.hears(&[Wanted::Started, Wanted::Ended, Wanted::Judged])
    }

    /// Whether it hears of the end of runs, at least of some.
    #[must_use]
    pub fn hears_ends(&self) -> bool {
        self.hears(&[Wanted::Success, Wanted::Failed, Wanted::Error, Wanted::Over])
    }

    /// Whether it is told of an event, that of a run's end with this outcome.
    #[must_use]
    fn is_told(&self, event: HookEvent, outcome: Outcome) -> bool {
        match event {
            HookEvent::RunHeld => self.holds(),
            HookEvent::RunEnded => {
                let fits = |wanted: &Wanted| match wanted {
                    Wanted::Success => outcome.success,
                    Wanted::Failed => outcome.failed,
                    Wanted::Error => outcome.error,
                    Wanted::Over => true,
                    _ => false,
                };
                self.wants.iter().any(fits)
            }
            HookEvent::Started => self.hears(&[Wanted::Started]),
            HookEvent::Ended => self.hears(&[Wanted::Ended]),
            HookEvent::Judged => self.hears(&[Wanted::Judged]),
            HookEvent::ScheduleFailed => false,
        }
    }
}

/// Those of `listeners` who are told of an event, that of a run's end with this outcome. Each keeps its place.
#[must_use]
pub fn actions(listeners: &[Listener], event: HookEvent, outcome: Outcome) -> Vec<Action> {
    let placed = (0..).zip(listeners);
    let told = placed.filter(|(_, listener)| listener.is_told(event, outcome));
    told.map(|(action, listener)| Action {
        hook: PLACE,
        action,
        server: Some(Server {
            url: Some(listener.url.clone()),
            timeout_seconds: (event == HookEvent::RunHeld).then_some(BEFORE_SECONDS),
            backoff_plan: (event == HookEvent::RunHeld).then(|| BackoffPlan {
                kind: BackoffType::Exponential,
                max_retries: BEFORE_RETRIES,
                base_delay_seconds: BEFORE_DELAY_SECONDS,
                ..BackoffPlan::default()
            }),
            ..Server::default()
        }),
        include: SimulationHookInclude::default(),
        form: Form::Listener,
    })
    .collect()
}

/// The listener that one of [`actions`] is for.
#[must_use]
pub fn of_action<'a>(listeners: &'a [Listener], action: &Action) -> Option<&'a Listener> {
    let at = usize::try_from(action.action).ok()?;
    listeners.get(at).filter(|_| action.form == Form::Listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_what_it_wants_at_its_own_place() {
        let listener = |wants: &[Wanted]| Listener {
            shape: Shape::Cekura,
            id: None,
            url: "https://a".to_owned(),
            wants: wants.to_vec(),
        };
        let all = [
            listener(&[Wanted::Before, Wanted::Success]),
            listener(&[Wanted::Failed]),
            listener(&[Wanted::Error, Wanted::Judged]),
            listener(&[Wanted::Over, Wanted::Started, Wanted::Ended]),
        ];
        let told = |event, outcome| -> Vec<u32> {
            actions(&all, event, outcome)
                .iter()
                .map(|one| one.action)
                .collect()
        };
        let (success, mixed) = (
            Outcome {
                success: true,
                ..Outcome::default()
            },
            Outcome {
                failed: true,
                error: true,
                ..Outcome::default()
            },
        );
        assert_eq!(told(HookEvent::RunHeld, Outcome::default()), [0]);
        assert_eq!(told(HookEvent::RunEnded, success), [0, 3]);
        assert_eq!(told(HookEvent::RunEnded, mixed), [1, 2, 3]);
        assert_eq!(told(HookEvent::RunEnded, Outcome::default()), [3]);
        assert_eq!(told(HookEvent::Started, Outcome::default()), [3]);
        assert_eq!(told(HookEvent::Judged, Outcome::default()), [2]);
        assert!(told(HookEvent::ScheduleFailed, mixed).is_empty());
        let before = actions(&all, HookEvent::RunHeld, Outcome::default());
        let server = before[0].server.as_ref().unwrap();
        assert_eq!(server.timeout_seconds, Some(30));
        assert_eq!(of_action(&all, &before[0]), Some(&all[0]));
    }
}
