//! The life of a run item, as pure functions: no I/O, no clock, no SDK type.
//!
//! Two kinds of things happen to an item. **Observations** (a conversation started, it ended) are facts that arrive in any
//! order, late and more than once: they [join](Facts::join), so every order gives the same item. **Decisions** (claim,
//! cancel, fail, verdict) take the item as it is and give the item as it will be, or refuse; the store writes the result on
//! the condition that nobody wrote in between, so the first one wins. Every item says what is owed to it and from when on
//! ([`Item::owed`], [`Item::due_at`]), so whoever finds it can go on with it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{costs::ModelCosts, ids, models::run::ItemStatus, store::RunKind, trace::Trace};

mod call;
mod hook;

pub use call::{CALL_SLOTS, Call, GRACE_MS, LOOK_EVERY_MS, Slots};
pub use hook::{Delivery, DeliveryState, Hook, HookEvent, Subject};

/// Where an item stands. [`State::Admitted`] is shown to users as `queued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Waits for a slot.
    Queued,
    /// Has what it needs to start.
    Admitted,
    /// The conversation is going on.
    Running,
    /// The conversation is over and is being judged.
    Evaluating,
    /// All required evaluations passed.
    Passed,
    /// A required evaluation failed, or the conversation could not be held or judged.
    Failed,
    /// Somebody stopped it.
    Canceled,
}

impl State {
    /// Whether nothing can change this state any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Canceled)
    }

    /// The state as users see it.
    #[must_use]
    pub fn shown(self) -> ItemStatus {
        match self {
            Self::Queued | Self::Admitted => ItemStatus::Queued,
            Self::Running => ItemStatus::Running,
            Self::Evaluating => ItemStatus::Evaluating,
            Self::Passed => ItemStatus::Passed,
            Self::Failed => ItemStatus::Failed,
            Self::Canceled => ItemStatus::Canceled,
        }
    }
}

/// What the system owes an item next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owed {
    /// Nothing: it is over.
    Nothing,
    /// A slot.
    Admit,
    /// The first slice of its conversation.
    Start,
    /// The next slice of its conversation.
    Continue,
    /// A question to the provider whether the call is still up.
    LookUp,
    /// The end of its call.
    HangUp,
    /// A verdict.
    Evaluate,
    /// The delivery of its hooks.
    Deliver,
}

/// Who caused a failure: an outage of anybody but the target is never counted against the agent under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The agent under test.
    Target,
    /// The simulated caller.
    Tester,
    /// Who carries the call, or the model service that judges.
    Provider,
    /// This system or its configuration.
    Ringback,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Something refused or broke.
    #[default]
    Error,
    /// Something took too long.
    Timeout,
    /// This system gave up on it.
    Aborted,
}

impl Cause {
    fn is_error(&self) -> bool {
        *self == Self::Error
    }
}

/// Why an item failed without a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One sentence for the user, at most [`Failure::MAX_REASON`] characters.
    pub reason: String,
    /// Whose fault it was.
    pub fault: Option<Fault>,
    /// What kind of failure it was.
    #[serde(default, skip_serializing_if = "Cause::is_error")]
    pub cause: Cause,
}

impl Failure {
    /// The longest reason that an item's row carries, in characters; what is longer ends in `…`.
    pub const MAX_REASON: usize = 300;

    /// A failure with its reason.
    #[must_use]
    pub fn new(reason: &str, fault: Option<Fault>) -> Self {
        let mut short: String = reason.chars().take(Self::MAX_REASON).collect();
        if short.len() < reason.len() {
            short.pop();
            short.push('…');
        }
        Self {
            reason: short,
            fault,
            cause: Cause::Error,
        }
    }

    /// The same of another kind.
    #[must_use]
    pub fn with(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

/// How much a source of observations is trusted; where two differ, the higher one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// Concluded from silence (a deadline passed).
    Inferred,
    /// The provider's answer to a question.
    LookUp,
    /// The provider's own report, or the worker that held the conversation.
    Report,
}

/// A fact with its source. Of two facts the one from the better source is kept, and between equals the greater value, so
/// that joining is commutative, associative and idempotent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fact<T> {
    /// Where it comes from.
    pub source: Source,
    /// What was observed.
    pub value: T,
}

/// The end of a conversation as it was observed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ended {
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Why, in the provider's or the engine's words.
    pub reason: String,
    /// Whose fault it was, where the conversation broke off for a reason that is not the target's: then it is not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// Everything that was observed of an item's conversation: a join-semilattice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// When it started, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Fact<i64>>,
    /// When and why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Fact<Ended>>,
    /// The provider's name for the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<Fact<String>>,
    /// What it cost, in millionths of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Fact<i64>>,
}

impl Facts {
    /// The facts of a conversation that started at `at` (milliseconds since the Unix epoch).
    #[must_use]
    pub fn started(source: Source, at: i64) -> Self {
        Self {
            started: Some(Fact { source, value: at }),
            ..Self::default()
        }
    }

    /// The facts of a conversation that ended at `at` (milliseconds since the Unix epoch).
    #[must_use]
    pub fn ended(source: Source, at: i64, reason: &str) -> Self {
        Self {
            ended: Some(Fact {
                source,
                value: Ended {
                    at,
                    reason: reason.to_owned(),
                    fault: None,
                },
            }),
            ..Self::default()
        }
    }

    /// Both sets of facts in one.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            started: self.started.max(other.started),
            ended: self.ended.max(other.ended),
            call_id: self.call_id.max(other.call_id),
            cost: self.cost.max(other.cost),
        }
    }
}

/// A worker's claim on an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The worker, unique per claim.
    pub owner: String,
    /// Until when it holds, in milliseconds since the Unix epoch.
    pub until: i64,
}

/// A run item's head: everything that decides what happens next, at most 1 KB when stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// The organization.
    pub org: Uuid,
    /// The run.
    pub run: Uuid,
    /// What its run is.
    #[serde(default, skip_serializing_if = "RunKind::is_simulation")]
    pub kind: RunKind,
    /// The item's place in its run, from 0.
    pub index: u32,
    /// Which of the run's simulations it is, from 0.
    pub simulation: u32,
    /// Which iteration of that simulation, from 1.
    pub iteration: u32,
    /// Where it stands.
    pub state: State,
    /// Since when it stands there, in milliseconds since the Unix epoch; absent in rows that an older version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_since: Option<i64>,
    /// What is owed to it.
    pub owed: Owed,
    /// From when on somebody has to look after it, in milliseconds since the Unix epoch; absent when nothing is owed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<i64>,
    /// No worker may take it before, in milliseconds since the Unix epoch: the pause after a failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    /// Grows by one with every write.
    pub version: u64,
    /// How often the present step was tried and failed.
    #[serde(default)]
    pub attempts: u32,
    /// How often the present step was put on its queue again.
    #[serde(default)]
    pub requeues: u32,
    /// When `sweep` first missed its message, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_at: Option<i64>,
    /// Who works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// What was observed.
    #[serde(default)]
    pub facts: Facts,
    /// What its model calls cost, as far as whoever wrote last knew.
    #[serde(default, skip_serializing_if = "ModelCosts::is_empty")]
    pub model_costs: ModelCosts,
    /// The mean time that the target took to answer in its conversation, in milliseconds, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u32>,
    /// Whether its conversation came to the scenario's expected outcome, if it has one and it was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome_met: Option<bool>,
    /// Its call, if it is a voice item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Call>,
    /// The slots that it holds.
    #[serde(default, skip_serializing_if = "Slots::is_empty")]
    pub slots: Slots,
    /// Whether somebody may have to be told when its conversation starts and ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hooked: bool,
    /// Whether somebody listens to its run's conversations, who is also told of verdicts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listened: bool,
    /// When the verdict, failure or cancellation was decided, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<i64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The trace of the request that made its run, if that had one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::trace::lenient"
    )]
    pub trace: Option<Trace>,
    /// When it was last written, in milliseconds since the Unix epoch.
    pub updated_at: i64,
}

/// Why a decision was not taken. The item is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The item is over, or past the step that the decision belongs to.
    #[error("the item is past this step")]
    Past,
    /// Another worker holds it.
    #[error("another worker holds the item")]
    Held,
    /// The pause after a failed attempt is not over.
    #[error("the item's pause is not over")]
    TooEarly,
}

/// How long after a step was put on its queue `sweep` looks whether somebody took it, in milliseconds. It doubles with
/// every time that the step is queued again, up to [`REQUEUE_CEILING_MS`].
pub const REQUEUE_AFTER_MS: i64 = 120_000;
/// The longest time between two looks at a queued step, in milliseconds.
pub const REQUEUE_CEILING_MS: i64 = 3_600_000;
/// How long an item whose message seems to be gone must go on waiting until that is believed, in milliseconds. A worker may
/// have received the message a moment ago; before this time is over it has claimed the item.
pub const SURE_AFTER_MS: i64 = 30_000;
/// How long such a note counts, in milliseconds: some sweeps.
const NOTED_MS: i64 = 300_000;
/// How often a step may fail before its item does.
pub const MAX_ATTEMPTS: u32 = 4;

/// The pause after the `attempts`-th failed attempt, in milliseconds: 5 s, 20 s, 80 s.
#[must_use]
pub fn pause_ms(attempts: u32) -> i64 {
    5_000 << (2 * attempts.saturating_sub(1)).min(8)
}

/// How long after it was queued again for the `requeues`-th time a step is looked at, in milliseconds.
fn look_again_ms(requeues: u32) -> i64 {
    (REQUEUE_AFTER_MS << requeues.min(5)).min(REQUEUE_CEILING_MS)
}

impl Item {
    /// The item at `index` of a new run, admitted and owed its start.
    ///
    /// Items are laid out simulation by simulation: index = simulation x iterations + iteration - 1.
    #[must_use]
    pub fn admitted(org: Uuid, run: Uuid, index: u32, iterations: u32, now: i64) -> Self {
        let iterations = iterations.max(1);
        Self {
            org,
            run,
            kind: RunKind::Simulation,
            index,
            simulation: index / iterations,
            iteration: index % iterations + 1,
            state: State::Admitted,
            state_since: Some(now),
            owed: Owed::Start,
            due_at: Some(now + REQUEUE_AFTER_MS),
            not_before: None,
            version: 1,
            attempts: 0,
            requeues: 0,
            missed_at: None,
            lease: None,
            facts: Facts::default(),
            model_costs: ModelCosts::default(),
            latency_ms: None,
            outcome_met: None,
            call: None,
            slots: Slots::default(),
            hooked: false,
            listened: false,
            decided_at: None,
            failure: None,
            trace: None,
            updated_at: now,
        }
    }

    /// A new item whose conversation was held before, as another run's item: nothing but a verdict is owed to it.
    #[must_use]
    pub fn held_before(self) -> Self {
        Self {
            state: State::Evaluating,
            owed: Owed::Evaluate,
            ..self
        }
    }

    /// The item's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        ids::item_id(self.run, self.index)
    }

    /// Whether somebody may have to be told of its conversation.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.hooked || self.listened
    }

    /// What a tally counts: where it stands, and which of the run's simulations it is.
    #[must_use]
    pub fn standing(&self) -> (State, u32) {
        (self.state, self.simulation)
    }

    /// What it cost as far as that is known: its model calls, and its call as the provider told.
    #[must_use]
    pub fn costs(&self) -> ModelCosts {
        total(&self.model_costs, &self.facts)
    }

    /// The item with how long its target took to answer, and whether the expected outcome was met.
    #[must_use]
    pub const fn measured(mut self, latency_ms: Option<u32>, outcome_met: Option<bool>) -> Self {
        self.latency_ms = latency_ms;
        self.outcome_met = outcome_met;
        self
    }

    /// The item with what whoever writes it knows of the costs of its model calls.
    #[must_use]
    pub fn charged(mut self, costs: &ModelCosts) -> Self {
        self.model_costs = self.model_costs.join(costs);
        self
    }

    /// Somebody who holds the item no longer, because it was stopped or taken over, says what its model calls cost. It counts as
    /// spent when the item was written last, and changes nothing else.
    ///
    /// # Errors
    /// When all of it is known already.
    pub fn charge(&self, costs: &ModelCosts) -> Result<Self, Refused> {
        if self.model_costs.clone().join(costs) == self.model_costs {
            return Err(Refused::Past);
        }
        Ok(self.next(self.updated_at).charged(costs))
    }

    /// Whether its work waits for a worker now and did not so `before`: it became owed, a worker gave the item back, or
    /// there is a reason not to wait for the end of its pause.
    #[must_use]
    pub fn begins_to_wait(&self, before: Option<&Self>) -> bool {
        let hurries = |before: &Self| before.not_before.is_some() && self.not_before.is_none();
        self.waiting().is_some()
            && before.is_none_or(|before| before.waiting() != self.waiting() || hurries(before))
    }

    /// The queue's work for this item that is waiting for a worker, if any: what `relay` and `sweep` put on a queue.
    #[must_use]
    pub fn waiting(&self) -> Option<Owed> {
        match self.owed {
            Owed::Start | Owed::Continue | Owed::HangUp | Owed::Evaluate if self.lease.is_none() => {
                Some(self.owed)
            }
            _ => None,
        }
    }

    fn next(&self, now: i64) -> Self {
        Self {
            version: self.version + 1,
            updated_at: now,
            ..self.clone()
        }
    }

    fn free(&self, now: i64) -> Result<(), Refused> {
        if self.lease.as_ref().is_some_and(|lease| lease.until > now) {
            return Err(Refused::Held);
        }
        if self.not_before.is_some_and(|at| at > now) {
            return Err(Refused::TooEarly);
        }
        Ok(())
    }

    fn open(&self) -> Result<(), Refused> {
        if self.state.is_terminal() {
            return Err(Refused::Past);
        }
        Ok(())
    }

    fn held_by(&self, owner: &str) -> Result<(), Refused> {
        match &self.lease {
            Some(lease) if lease.owner == owner => Ok(()),
            _ => Err(Refused::Held),
        }
    }

    /// Folds observations in. State only moves forward; facts that come after a decision are filled in without changing it.
    #[must_use]
    pub fn observe(&self, facts: Facts, now: i64) -> Self {
        let mut item = self.next(now);
        item.facts = item.facts.join(facts);
        if item.owed == Owed::HangUp && self.facts.call_id.is_none() && item.facts.call_id.is_some() {
            // What the call is called was missing to end it.
            item.not_before = None;
        }
        if item.state < State::Evaluating && item.facts.ended.is_some() {
            item.enter(State::Evaluating, now);
            item.owe(Owed::Evaluate, now);
        } else if item.state < State::Running && item.facts.started.is_some() {
            item.enter(State::Running, now);
            if item.call.is_some() {
                item.owe_look_up(now);
            } else {
                item.owed = Owed::Continue;
            }
        }
        item.follow(now);
        item
    }

    fn enter(&mut self, state: State, now: i64) {
        self.state = state;
        self.state_since = Some(now);
    }

    fn owe(&mut self, owed: Owed, now: i64) {
        self.owed = owed;
        self.lease = None;
        self.not_before = None;
        self.attempts = 0;
        self.requeues = 0;
        self.missed_at = None;
        self.due_at = Some(now + REQUEUE_AFTER_MS);
    }

    /// A worker takes the item to hold (a further slice of) its conversation, for `lease_ms` milliseconds.
    ///
    /// # Errors
    /// When the conversation is over, another worker holds the item, or its pause is not over.
    pub fn claim(&self, owner: &str, lease_ms: i64, now: i64) -> Result<Self, Refused> {
        if self.call.is_some() || !matches!(self.owed, Owed::Start | Owed::Continue) {
            return Err(Refused::Past);
        }
        self.free(now)?;
        let mut item = self.observe(
            Facts::started(Source::Report, self.started_at().unwrap_or(now)),
            now,
        );
        item.take(owner, lease_ms, now);
        Ok(item)
    }

    /// A worker takes the item to judge it, for `lease_ms` milliseconds.
    ///
    /// # Errors
    /// When nothing is to be judged, another worker holds the item, or its pause is not over.
    pub fn claim_evaluation(&self, owner: &str, lease_ms: i64, now: i64) -> Result<Self, Refused> {
        if self.owed != Owed::Evaluate {
            return Err(Refused::Past);
        }
        self.free(now)?;
        let mut item = self.next(now);
        item.take(owner, lease_ms, now);
        Ok(item)
    }

    fn take(&mut self, owner: &str, lease_ms: i64, now: i64) {
        self.lease = Some(Lease {
            owner: owner.to_owned(),
            until: now + lease_ms,
        });
        self.not_before = None;
        self.missed_at = None;
        self.due_at = Some(now + lease_ms);
    }

    /// The worker that holds the item keeps it for another `lease_ms` milliseconds.
    ///
    /// # Errors
    /// When the worker holds it no longer.
    pub fn renew(&self, owner: &str, lease_ms: i64, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        let mut item = self.next(now);
        item.take(owner, lease_ms, now);
        Ok(item)
    }

    /// The worker gives the item back with the conversation unfinished: its slice is over.
    ///
    /// # Errors
    /// When the worker holds it no longer.
    pub fn yield_slice(&self, owner: &str, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        if self.owed != Owed::Continue {
            return Err(Refused::Past);
        }
        let mut item = self.next(now);
        item.owe(Owed::Continue, now);
        Ok(item)
    }

    /// The worker that held the conversation reports its end at `now`.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn end_conversation(&self, owner: &str, reason: &str, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        Ok(self.observe(Facts::ended(Source::Report, now, reason), now))
    }

    /// The worker's attempt failed for a reason that may pass. The item is owed the same step after a pause, or has failed
    /// when this was the last attempt. With `progressed`, the attempt came further than the one before, and counting
    /// begins anew.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn retry(&self, owner: &str, failure: &Failure, progressed: bool, now: i64) -> Result<Self, Refused> {
        self.retry_after(owner, failure, progressed, 0, now)
    }

    /// The same, with a pause of at least `rest_ms` milliseconds.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn retry_after(
        &self,
        owner: &str,
        failure: &Failure,
        progressed: bool,
        rest_ms: i64,
        now: i64,
    ) -> Result<Self, Refused> {
        self.held_by(owner)?;
        self.open()?;
        let failed_before = if progressed { 0 } else { self.attempts };
        if failed_before + 1 >= MAX_ATTEMPTS {
            return self.fail(owner, failure, now);
        }
        let mut item = self.next(now);
        item.attempts = failed_before + 1;
        item.lease = None;
        item.pause(pause_ms(item.attempts).max(rest_ms), now);
        Ok(item)
    }

    fn pause(&mut self, ms: i64, now: i64) {
        self.not_before = Some(now + ms);
        self.due_at = Some(now + ms + REQUEUE_AFTER_MS);
    }

    /// The worker declares the item failed: the conversation could not be held, or not be judged.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn fail(&self, owner: &str, failure: &Failure, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        self.open()?;
        let mut item = self.next(now);
        item.close(State::Failed, now);
        item.failure = Some(failure.clone());
        Ok(item)
    }

    /// The worker's verdict.
    ///
    /// # Errors
    /// When the worker holds the item no longer or nothing is to be judged.
    pub fn decide(&self, owner: &str, verdict: Result<(), Failure>, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        if self.owed != Owed::Evaluate {
            return Err(Refused::Past);
        }
        let mut item = self.next(now);
        item.close(
            if verdict.is_ok() {
                State::Passed
            } else {
                State::Failed
            },
            now,
        );
        item.failure = verdict.err();
        Ok(item)
    }

    /// The worker that held the conversation ends it at `now` together with its verdict: it was judged as it went.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn conclude(
        &self,
        owner: &str,
        reason: &str,
        verdict: Result<(), Failure>,
        now: i64,
    ) -> Result<Self, Refused> {
        let mut item = self.end_conversation(owner, reason, now)?;
        let passed = verdict.is_ok();
        item.close(if passed { State::Passed } else { State::Failed }, now);
        item.failure = verdict.err();
        Ok(item)
    }

    /// Somebody stops the item.
    ///
    /// # Errors
    /// When it is over already.
    pub fn cancel(&self, now: i64) -> Result<Self, Refused> {
        self.open()?;
        Ok(self.next(now).canceled(now))
    }

    /// The item as it is when it was canceled at `now` before anybody knew of it.
    #[must_use]
    pub fn canceled(mut self, now: i64) -> Self {
        self.close(State::Canceled, now);
        self
    }

    /// `sweep` found the item due: the next look is moved forward, doubling each time, before its work is queued again.
    /// With `void_leases`, whoever held it is known to be gone.
    ///
    /// # Errors
    /// When nothing is owed or it is not due.
    pub fn requeue(&self, void_leases: bool, now: i64) -> Result<Self, Refused> {
        let due = self.due_at.ok_or(Refused::Past)?;
        if !void_leases && due > now {
            return Err(Refused::TooEarly);
        }
        let mut item = self.next(now);
        if let Some(lease) = &mut item.lease {
            // Kept but over, so that the change does not look like a step that waits for its first worker.
            lease.until = lease.until.min(now);
        }
        if void_leases {
            item.not_before = None;
        }
        item.missed_at = None;
        item.due_at = Some(now + look_again_ms(item.requeues));
        item.requeues += 1;
        item.follow(now);
        Ok(item)
    }

    /// `sweep` found the item due although its queue does not hold messages for all that wait. The first time that is only
    /// noted, and the item stays due; if it still waits [`SURE_AFTER_MS`] later, it is [requeued](Item::requeue). So what comes
    /// back without [`Item::missed_at`] is to be put on its queue.
    ///
    /// # Errors
    /// When it does not wait for a worker, is not due, or was missed for the first time just now.
    pub fn miss(&self, now: i64) -> Result<Self, Refused> {
        if self.waiting().is_none() {
            return Err(Refused::Past);
        }
        if self.due_at.is_none_or(|due| due > now) {
            return Err(Refused::TooEarly);
        }
        match self.missed_at {
            Some(at) if now < at + SURE_AFTER_MS => Err(Refused::TooEarly),
            Some(at) if now < at + NOTED_MS => self.requeue(false, now),
            // A note of long ago says nothing: its message may have been there all the time.
            Some(_) | None => Ok(Self {
                missed_at: Some(now),
                ..self.next(now)
            }),
        }
    }

    fn close(&mut self, state: State, now: i64) {
        self.enter(state, now);
        self.decided_at = Some(now);
        self.settle();
        self.follow(now);
    }

    fn settle(&mut self) {
        self.owed = Owed::Nothing;
        self.due_at = None;
        self.not_before = None;
        self.missed_at = None;
        self.lease = None;
    }

    /// When the conversation started, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn started_at(&self) -> Option<i64> {
        self.facts.started.as_ref().map(|fact| fact.value)
    }

    /// Whether its conversation is over, or will never begin.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state >= State::Evaluating
    }

    /// When the conversation ended, in milliseconds since the Unix epoch, and why.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.facts.ended.as_ref().map(|fact| &fact.value)
    }
}

/// The costs of an item's model calls and of its call.
pub(crate) fn total(models: &ModelCosts, facts: &Facts) -> ModelCosts {
    let call = facts.cost.as_ref().map_or(0, |fact| fact.value);
    ModelCosts {
        cost: models.cost.saturating_add(call),
        unknown: models.unknown.clone(),
    }
}

/// How many items of a partition stand where, recomputed from the items themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Items counted.
    pub total: u32,
    /// Shown as queued.
    pub queued: u32,
    /// Shown as running or evaluating.
    pub running: u32,
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
    /// Canceled.
    pub canceled: u32,
    /// The simulations (by their place in the run) with a failed or canceled item, ascending.
    #[serde(default, with = "bits")]
    pub failed_simulations: Vec<u32>,
    /// What they cost, as far as it is known.
    #[serde(default, skip_serializing_if = "ModelCosts::is_empty")]
    pub costs: ModelCosts,
}

impl Tally {
    /// Counts items by their [standing](Item::standing).
    #[must_use]
    pub fn of(items: impl IntoIterator<Item = (State, u32)>) -> Self {
        let mut tally = Self::default();
        for (state, simulation) in items {
            tally.total += 1;
            match state {
                State::Queued | State::Admitted => tally.queued += 1,
                State::Running | State::Evaluating => tally.running += 1,
                State::Passed => tally.passed += 1,
                State::Failed => tally.failed += 1,
                State::Canceled => tally.canceled += 1,
            }
            if matches!(state, State::Failed | State::Canceled) {
                tally.failed_simulations.push(simulation);
            }
        }
        tally.failed_simulations.sort_unstable();
        tally.failed_simulations.dedup();
        tally
    }

    /// The tally with what its items cost.
    #[must_use]
    pub fn with_costs(mut self, costs: impl IntoIterator<Item = ModelCosts>) -> Self {
        self.costs = costs
            .into_iter()
            .fold(ModelCosts::default(), |sum, costs| sum.plus(&costs));
        self
    }

    /// How many items are over.
    #[must_use]
    pub fn terminal(&self) -> u32 {
        self.passed + self.failed + self.canceled
    }

    /// Whether any item was started or is over.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.queued < self.total
    }

    /// All tallies in one.
    #[must_use]
    pub fn sum<'a>(tallies: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for tally in tallies {
            sum.add(tally);
        }
        sum.failed_simulations.sort_unstable();
        sum.failed_simulations.dedup();
        sum
    }

    fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.queued += other.queued;
        self.running += other.running;
        self.passed += other.passed;
        self.failed += other.failed;
        self.canceled += other.canceled;
        self.failed_simulations.extend(&other.failed_simulations);
        self.costs = std::mem::take(&mut self.costs).plus(&other.costs);
    }
}

/// Numbers as a set of bits in base64: a run may have 100,000 simulations, and its head is one row of 400 KB at most.
mod bits {
    use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(numbers: &[u32], output: S) -> Result<S::Ok, S::Error> {
        let last = numbers.iter().max().map_or(0, |&last| last as usize + 1);
        let mut bits = vec![0_u8; last.div_ceil(8)];
        for &number in numbers {
            if let Some(byte) = bits.get_mut(number as usize / 8) {
                *byte |= 1 << (number % 8);
            }
        }
        output.serialize_str(&STANDARD_NO_PAD.encode(bits))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u32>, D::Error> {
        let bits = STANDARD_NO_PAD
            .decode(String::deserialize(input)?)
            .map_err(Error::custom)?;
        let numbers = (0_u32..).zip(&bits).flat_map(|(n, byte)| {
            let set = (0..8).filter(move |bit| byte & (1 << bit) != 0);
            set.map(move |bit| n * 8 + bit)
        });
        Ok(numbers.collect())
    }
}

#[cfg(test)]
mod tests;
