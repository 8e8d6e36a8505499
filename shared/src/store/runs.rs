//! Runs: their heads, what they were asked for, the snapshots they work from, and their expansion into items.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Condition, DueKey, ItemKey, ListQuery, Listed, PARTITION, Row, Store, StoreError, Write, WriteError,
    calls::{Waiting, waiting_row},
    document,
    hooks::hook_row,
    idempotency::{REMEMBERED_MS, key_row, keys_pk},
    integer,
    items::{detail_pk, due_shard, item_row},
    key, number, read,
    schedules::{SCHEDULE, firing_writes},
    string, text, write,
};
use crate::{
    ids,
    lifecycle::{Hook, Item, REQUEUE_AFTER_MS, Tally},
    listeners::Listener,
    models::{
        schedule::{Notify, NotifyOn},
        trials::OriginKind,
    },
    schedule::{Firing, ScheduleHead},
    trace::Trace,
};

/// How many items one transaction of the expansion puts. Partitions are a whole number of chunks.
const CHUNK: u32 = 50;
/// The most rows and bytes that go into the transaction that creates a run; DynamoDB allows 100 rows and 4 MB.
const CREATION_ROWS: usize = 95;
const CREATION_BYTES: usize = 3_000_000;
/// How long after a run's last progress `sweep` recounts it, in milliseconds.
const RECOUNT_AFTER_MS: i64 = 300_000;
/// The longest that a run waits until somebody was told of it, in milliseconds: longer than all attempts to tell them together.
const HELD_MS: i64 = 600_000;
/// How long after its deletion was asked for a run is taken away, in milliseconds: longer than any worker's claim.
pub(super) const DELETE_AFTER_MS: i64 = 240_000;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// No item has started.
    Queued,
    /// Items are under way.
    Running,
    /// All items are over.
    Ended,
}

/// What a run's items are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunKind {
    /// Simulated conversations.
    #[default]
    Simulation,
    /// Mock conversations with checkpoints.
    Eval,
}

impl RunKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Simulation, Self::Eval];

    /// The end of the partition key of its heads.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Simulation => "#run",
            Self::Eval => "#evalrun",
        }
    }

    /// Whether it is the kind that is not named in rows.
    #[must_use]
    pub fn is_simulation(&self) -> bool {
        *self == Self::Simulation
    }
}

/// Names a run: its head is found by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// The organization.
    pub org: Uuid,
    /// What it is.
    pub kind: RunKind,
    /// Its id.
    pub run: Uuid,
}

impl RunKey {
    /// A run of simulations.
    #[must_use]
    pub const fn simulation(org: Uuid, run: Uuid) -> Self {
        Self {
            org,
            kind: RunKind::Simulation,
            run,
        }
    }

    /// The run that an item belongs to.
    #[must_use]
    pub fn of(item: &Item) -> Self {
        Self {
            org: item.org,
            kind: item.kind,
            run: item.run,
        }
    }

    /// The run whose head the row with this key is, if it is one's.
    #[must_use]
    pub fn of_row(pk: &str, sk: &str) -> Option<Self> {
        let pk = pk.strip_prefix("ORG#")?;
        RunKind::ALL.into_iter().find_map(|kind| {
            Some(Self {
                org: pk.strip_suffix(kind.suffix())?.parse().ok()?,
                kind,
                run: sk.parse().ok()?,
            })
        })
    }

    pub(super) fn pk(&self) -> String {
        runs_pk(self.org, self.kind)
    }
}

/// What the system owes a run next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOwed {
    /// Nothing: it has ended.
    Nothing,
    /// That it begins, or is canceled, should whoever is told of it before not come to an end.
    Release,
    /// The rest of its items.
    Expand,
    /// The cancellation of its items.
    Cancel,
    /// A look at its counts, should nobody have noticed that it is over.
    Recount,
    /// The deletion of everything that is kept of it.
    Delete,
}

/// A run's head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunHead {
    /// Its id.
    pub id: Uuid,
    /// The organization.
    pub org: Uuid,
    /// What it is.
    #[serde(default, skip_serializing_if = "RunKind::is_simulation")]
    pub kind: RunKind,
    /// Where it stands.
    pub state: RunState,
    /// How many items it has.
    pub total: u32,
    /// How many of them are stored; the others are read as queued.
    pub expanded: u32,
    /// How often each simulation is held.
    pub iterations: u32,
    /// The transport, as on the wire.
    pub transport: String,
    /// The endpoint of the provider that carries its calls, if it is a run by voice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Uuid>,
    /// How many of its items may be under way at a time, if it has a cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// Whether any of its scenarios has hooks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hooked: bool,
    /// Whether somebody listens to its conversations.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listened: bool,
    /// As long as it waits to begin, because somebody has to be told of it before: when that is given up, in milliseconds since the
    /// Unix epoch. Until then it has no items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<i64>,
    /// Why it never began, if it was canceled because somebody could not be told of it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<String>,
    /// `assistant` or `squad`.
    pub target_type: String,
    /// The target's id, unless it came inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<Uuid>,
    /// The run that it came from, if it came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<RunOrigin>,
    /// The schedule that started it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Scheduled>,
    /// Which outcome of it is told, if anybody wants to hear of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<NotifyOn>,
    /// A digest of what was asked for: runs that have the same are comparable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub asked: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// When it was last written, in milliseconds since the Unix epoch.
    pub updated_at: i64,
    /// When its first item started, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// When its last item was over, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// When its cancellation was asked for, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled_at: Option<i64>,
    /// Items up to here were canceled.
    #[serde(default)]
    pub cancel_cursor: u32,
    /// When its deletion was asked for, in milliseconds since the Unix epoch. From then on nobody sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<i64>,
    /// The stored evals that it plays, in no order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evals: Vec<Uuid>,
    /// What its evals are called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eval_names: Vec<String>,
    /// The trace of the request that made it, if that had one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::trace::lenient"
    )]
    pub trace: Option<Trace>,
    /// The final counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Tally>,
    /// What is owed to it.
    pub owed: RunOwed,
    /// From when on somebody has to look after it, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<i64>,
    /// Grows by one with every write.
    pub version: u64,
}

impl RunHead {
    /// What names it.
    #[must_use]
    pub const fn key(&self) -> RunKey {
        RunKey {
            org: self.org,
            kind: self.kind,
            run: self.id,
        }
    }

    /// How many partitions its items are in.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.total.div_ceil(PARTITION)
    }

    /// Whether it waits to begin until somebody was told of it.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held_until.is_some() && self.canceled_at.is_none()
    }

    /// Cancels it, at `now` (milliseconds since the Unix epoch), if it still waits to begin, because somebody could not be told of it.
    /// Gives whether it did.
    pub fn withhold(&mut self, why: &str, now: i64) -> bool {
        let held = self.is_held();
        if held {
            self.canceled_at = Some(now);
            self.withheld = Some(why.to_owned());
        }
        held
    }

    /// Whether its conversations were held before, by another run: its items need no slots and tell no hooks.
    #[must_use]
    pub fn only_judges(&self) -> bool {
        let origin = self.origin.as_ref();
        origin.is_some_and(|origin| origin.kind == OriginKind::Evaluation)
    }

    /// Whether it has ended, all of its items passed, and nobody canceled it.
    #[must_use]
    pub fn is_success(&self) -> bool {
        let passed = self.counts.as_ref().map(|counts| counts.passed);
        self.state == RunState::Ended && self.canceled_at.is_none() && passed == Some(self.total)
    }

    /// Why it ended, or will end, as clients see it.
    #[must_use]
    pub const fn ended_reason(&self) -> &'static str {
        match self.canceled_at {
            Some(_) => "canceled",
            None => "completed",
        }
    }

    /// Where it can be read, below the address of the API.
    #[must_use]
    pub fn url(&self, public_url: &str) -> String {
        let path = match self.kind {
            RunKind::Simulation => "eval/simulation/run",
            RunKind::Eval => "eval/run",
        };
        format!("{public_url}/{path}/{}", self.id)
    }

    /// When the first of the runs that it came from was created, or else itself, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn first_created_at(&self) -> i64 {
        self.origin
            .as_ref()
            .map_or(self.created_at, |origin| ids::created_ms(origin.root))
    }

    /// Its item at `index` as it is at first.
    #[must_use]
    pub fn item(&self, index: u32, now: i64) -> Item {
        let item = Item {
            hooked: self.hooked,
            listened: self.listened,
            kind: self.kind,
            trace: self.trace,
            ..Item::admitted(self.org, self.id, index, self.iterations, now)
        };
        if self.only_judges() {
            return item.held_before();
        }
        match (self.endpoint, self.cap) {
            (Some(endpoint), _) => item.by_voice(endpoint),
            (None, Some(_)) => item.queued(),
            (None, None) => item,
        }
    }

    /// What is waited for, if its items need slots.
    fn waiting(&self, now: i64) -> Option<Waiting> {
        let waits = !self.is_held() && !self.only_judges() && (self.endpoint.is_some() || self.cap.is_some());
        waits.then(|| Waiting {
            run: self.id,
            next: 0,
            total: self.total,
            voice: self.endpoint.is_some(),
            cap: self.cap,
            due_at: now + REQUEUE_AFTER_MS,
        })
    }

    fn next(&self, now: i64) -> Self {
        Self {
            version: self.version + 1,
            updated_at: now,
            ..self.clone()
        }
    }

    /// Whether it may be taken away at `now` (milliseconds since the Unix epoch): nobody works on it any more, whose rows would
    /// stay behind.
    #[must_use]
    pub fn is_deletable(&self, now: i64) -> bool {
        let quiet = |at: i64| now.saturating_sub(at) >= DELETE_AFTER_MS;
        self.owed == RunOwed::Delete && self.deleted_at.is_some_and(quiet)
    }

    /// What is owed now, from what is known.
    fn owe(&mut self, now: i64) {
        self.owed = if self.state == RunState::Ended && self.deleted_at.is_some() {
            RunOwed::Delete
        } else if self.state == RunState::Ended {
            RunOwed::Nothing
        } else if self.is_held() {
            RunOwed::Release
        } else if self.expanded < self.total {
            RunOwed::Expand
        } else if self.canceled_at.is_some() && self.cancel_cursor < self.total {
            RunOwed::Cancel
        } else {
            RunOwed::Recount
        };
        self.due_at = match self.owed {
            RunOwed::Nothing => None,
            RunOwed::Release => self.held_until.map(|until| until.max(now)),
            _ => Some(now + RECOUNT_AFTER_MS),
        };
    }
}

/// One of a run's simulations, as its items name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRef {
    /// The simulation's id; one made for the run where the simulation came inline.
    pub simulation_id: Uuid,
    /// The scenario's id, unless it came inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario_id: Option<Uuid>,
    /// The personality's id, unless it came inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality_id: Option<Uuid>,
}

/// What a run was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The entries as the client sent them.
    pub simulations: Value,
    /// The target as the client sent it.
    pub target: Value,
    /// The simulations that the entries came to, in order.
    pub refs: Vec<SimulationRef>,
    /// Who is told how it came out.
    #[serde(default, skip_serializing_if = "Receivers::is_empty")]
    pub notify: Receivers,
    /// What else the request said of the run in another API's words, such as its name.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub label: serde_json::Map<String, Value>,
}

/// Who is told how a run came out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receivers {
    /// Whom the request names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Notify>,
    /// The Slack webhooks of the suites that it plays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    /// Those who listen, in an order that never changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
}

impl Receivers {
    /// Those whom a request names, and nobody else.
    #[must_use]
    pub const fn of(asked: Option<Notify>) -> Self {
        Self {
            asked,
            suites: Vec::new(),
            listeners: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.asked.is_none() && self.suites.is_empty() && self.listeners.is_empty()
    }

    /// Whether somebody may have to be told of anything.
    #[must_use]
    pub fn tell(&self) -> bool {
        self.own().is_some() || !self.listeners.is_empty()
    }

    /// Whether somebody is to hear of an outcome, and it is not said who.
    #[must_use]
    pub fn names_nobody(&self) -> bool {
        self.asked
            .as_ref()
            .is_some_and(|asked| asked.on != NotifyOn::Never)
            && self.own().is_none()
    }

    /// Which outcome is told, if anybody is to hear of it. Who listens chooses when the outcome is known.
    #[must_use]
    pub fn on(&self) -> Option<NotifyOn> {
        match self.listeners.iter().any(Listener::hears_ends) {
            true => Some(NotifyOn::Both),
            false => self.own(),
        }
    }

    /// Which outcome is told to those whom the request and the suites name.
    #[must_use]
    pub fn own(&self) -> Option<NotifyOn> {
        let asked = self.asked.as_ref();
        let on = asked.map_or(NotifyOn::Both, |notify| notify.on);
        let named = asked.is_some_and(|notify| notify.slack_webhook_url.is_some() || notify.server.is_some());
        ((named || !self.suites.is_empty()) && on != NotifyOn::Never).then_some(on)
    }
}

/// The firing that a run was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduled {
    /// The schedule.
    pub schedule: Uuid,
    /// When it was to fire, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The run that the schedule had started before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Uuid>,
}

/// A firing of a schedule that a new run is started for: it is decided in the run's own transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFiring {
    /// The schedule's head as it was read.
    pub before: ScheduleHead,
    /// And as it is from then on.
    pub after: ScheduleHead,
    /// The firing, which names the run.
    pub firing: Firing,
}

/// What an item works from: taken when the run was created, never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The scenario.
    pub scenario: Value,
    /// The personality.
    pub personality: Value,
    /// The simulation.
    pub simulation: Value,
    /// The stored structured outputs that the scenario's evaluations name, by id.
    #[serde(default)]
    pub outputs: serde_json::Map<String, Value>,
    /// The metrics that the scenario names, by id.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub metrics: serde_json::Map<String, Value>,
    /// The eval, with its `evalId` if it is stored; then there is nothing else.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub eval: Value,
}

impl Snapshot {
    /// Whether the scenario wants somebody to be told of its conversations.
    #[must_use]
    pub fn has_hooks(&self) -> bool {
        let hooks = self.scenario.get("hooks").and_then(Value::as_array);
        hooks.is_some_and(|hooks| !hooks.is_empty())
    }
}

/// The run that a run came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunOrigin {
    /// How it came from there.
    pub kind: OriginKind,
    /// The other run.
    pub run: Uuid,
    /// The first run of them all: the other run, or where that one came from.
    pub root: Uuid,
}

/// The item that an item came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemOrigin {
    /// The item of the other run.
    pub item: ItemKey,
    /// The item that held the conversation to be judged, if none is to be held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<ItemKey>,
}

/// What the items of a simulation work from.
#[derive(Debug, Clone, PartialEq)]
pub enum Basis {
    /// A snapshot of their own.
    Whole(Box<Snapshot>),
    /// The snapshot in another place of the same run.
    Same {
        /// That place.
        at: u32,
        /// The item that theirs came from.
        origin: ItemOrigin,
    },
}

impl Basis {
    /// The item that theirs came from, if theirs came from one.
    #[must_use]
    pub const fn origin(&self) -> Option<ItemOrigin> {
        match self {
            Self::Same { origin, .. } => Some(*origin),
            Self::Whole(_) => None,
        }
    }
}

/// What a simulation and its parts were called when the run was created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// The simulation.
    pub simulation: String,
    /// The scenario.
    pub scenario: String,
    /// The personality.
    pub personality: String,
}

impl Names {
    fn of(snapshot: &Snapshot) -> Self {
        let name = |value: &Value| {
            let name = value.get("name").and_then(Value::as_str);
            name.unwrap_or_default().to_owned()
        };
        let played = if snapshot.eval.is_null() {
            &snapshot.simulation
        } else {
            &snapshot.eval
        };
        Self {
            simulation: name(played),
            scenario: name(&snapshot.scenario),
            personality: name(&snapshot.personality),
        }
    }
}

/// An item that comes from another run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewItem {
    /// Which of the new run's snapshots it works from.
    pub snapshot: u32,
    /// Where it comes from.
    pub origin: ItemOrigin,
}

/// Where a run to be created comes from.
#[derive(Debug, Clone)]
pub struct NewOrigin {
    /// The other run.
    pub run: RunOrigin,
    /// The items in order, one for each of the manifest's simulations.
    pub items: Vec<NewItem>,
}

/// A run to be created.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id.
    pub id: Uuid,
    /// The organization.
    pub org: Uuid,
    /// What it is.
    pub kind: RunKind,
    /// How often each simulation is held.
    pub iterations: u32,
    /// The transport, as on the wire.
    pub transport: String,
    /// The endpoint of the provider that carries its calls, if it is a run by voice.
    pub endpoint: Option<Uuid>,
    /// How many of its items may be under way at a time, if it has a cap of its own.
    pub cap: Option<u32>,
    /// `assistant` or `squad`.
    pub target_type: String,
    /// The target's id, unless it came inline.
    pub target_id: Option<Uuid>,
    /// What was asked for.
    pub manifest: Manifest,
    /// The target's snapshot.
    pub target: Value,
    /// The simulations' snapshots, in order; of a run that comes from another one the different snapshots of its items.
    pub snapshots: Vec<Snapshot>,
    /// Where it comes from, if it comes from another run. Then each simulation is held once.
    pub origin: Option<NewOrigin>,
    /// The SHA-256 of the client's idempotency key and that of its request, if it sent a key.
    pub idempotency: Option<(String, String)>,
    /// The firing that it is started for, if a schedule starts it.
    pub firing: Option<NewFiring>,
    /// The trace of the request, if it had one.
    pub trace: Option<Trace>,
}

/// What became of a request to create a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// The run was created.
    New(Box<RunHead>),
    /// The same request had created this run before.
    Before(Uuid),
    /// The idempotency key belongs to another request.
    OtherRequest,
    /// The schedule was written since it was read: its firing may have been decided.
    Overtaken,
}

pub(super) fn runs_pk(org: Uuid, kind: RunKind) -> String {
    format!("ORG#{org}{}", kind.suffix())
}

/// Whose an idempotency key is, by its row.
fn created_before(idempotency: Option<&(String, String)>, row: &Row) -> Result<Created, StoreError> {
    if string(row, "pk")?.starts_with(SCHEDULE) {
        return Ok(Created::Overtaken);
    }
    let same = idempotency.is_some_and(|(_, request)| string(row, "request").ok() == Some(request.as_str()));
    if !same {
        return Ok(Created::OtherRequest);
    }
    let run = string(row, "run")?
        .parse()
        .map_err(|_| StoreError::Corrupt("an idempotency row without a run".into()))?;
    Ok(Created::Before(run))
}

pub(super) fn run_pk(run: Uuid) -> String {
    format!("RUN#{run}")
}

fn head_row(head: &RunHead) -> Result<Row, StoreError> {
    let mut row = write(&head.key().pk(), &head.id.to_string(), head)?;
    if head.due_at.is_some() {
        row.insert("dueShard".to_owned(), text(due_shard(head.id.as_u128())));
    }
    Ok(row)
}

fn bytes(row: &Row) -> usize {
    row.iter()
        .map(|(name, value)| name.len() + value.as_s().map_or(16, String::len))
        .sum()
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn snapshot_sk(simulation: u32) -> String {
    format!("SNAP#{simulation:06}")
}

/// A number of things that a run has far fewer of.
fn place(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// How many items of a run are taken away at a time, and how many rows of each of them.
const DELETED_AT_ONCE: usize = 4;

/// How many rows of a run that was not created are taken away, and how many at a time.
const FORGOTTEN: usize = 1000;
const FORGOTTEN_AT_ONCE: usize = 16;

/// The row that says what a run came to.
const REPORT: &str = "REPORT";

/// The attribute that says where the snapshot is that a row shares.
const SAME: &str = "same";

/// The row of items that share the snapshot `at` another place of their run.
fn same_row(pk: &str, n: u32, at: u32, origin: &ItemOrigin) -> Result<Row, StoreError> {
    let mut row = key(pk, &snapshot_sk(n));
    row.insert(SAME.to_owned(), number(at));
    row.insert("body".to_owned(), text(json(origin)?));
    Ok(row)
}

fn basis(row: &Row, body: &str) -> Result<Basis, StoreError> {
    let corrupt = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
    match integer(row, SAME).and_then(|at| u32::try_from(at).ok()) {
        Some(at) => Ok(Basis::Same {
            at,
            origin: serde_json::from_str(body).map_err(corrupt)?,
        }),
        None => Ok(Basis::Whole(serde_json::from_str(body).map_err(corrupt)?)),
    }
}

/// The documents that hold what a run's items work from, and what their simulations are called.
fn snapshot_documents(pk: &str, new: &NewRun) -> Result<Vec<(Row, Vec<Row>)>, StoreError> {
    let items = new.origin.as_ref().map(|origin| origin.items.as_slice());
    // Items from elsewhere come first, and what they share after them.
    let first = items.map_or(0, <[NewItem]>::len);
    let mut documents = Vec::with_capacity(first + new.snapshots.len() + 1);
    for (n, item) in items.into_iter().flatten().enumerate() {
        let at = place(first + item.snapshot as usize);
        documents.push((same_row(pk, place(n), at, &item.origin)?, Vec::new()));
    }
    for (n, snapshot) in new.snapshots.iter().enumerate() {
        documents.push(document(pk, &snapshot_sk(place(first + n)), &json(snapshot)?));
    }
    let mut names: BTreeMap<Uuid, Names> = BTreeMap::new();
    for (n, reference) in new.manifest.refs.iter().enumerate() {
        let shared = items
            .and_then(|items| items.get(n))
            .map(|item| item.snapshot as usize);
        if let Some(snapshot) = new.snapshots.get(shared.unwrap_or(n)) {
            names
                .entry(reference.simulation_id)
                .or_insert_with(|| Names::of(snapshot));
        }
    }
    documents.push(document(pk, "NAMES", &json(&names)?));
    Ok(documents)
}

/// A digest of what a run was asked for: what is stored counts by its id, and an agent that comes inline by its name, because it is
/// the agent that changes between two runs.
fn asked(manifest: &Manifest) -> String {
    let mut simulations = manifest.simulations.clone();
    for entry in simulations.as_array_mut().into_iter().flatten() {
        let suite = ["simulationSuiteId", "suiteId"]
            .iter()
            .find_map(|&id| entry.get(id));
        if let Some(suite) = suite.cloned() {
            *entry = suite;
        }
    }
    let id = |target: &Value| {
        ["assistantId", "squadId"]
            .iter()
            .find_map(|&id| target.get(id).filter(|id| !id.is_null()).cloned())
    };
    let name = |target: &Value| {
        ["assistant", "squad"].iter().find_map(|&kind| {
            target
                .get(kind)?
                .get("name")
                .filter(|name| !name.is_null())
                .cloned()
        })
    };
    let target = &manifest.target;
    let target = id(target)
        .or_else(|| name(target))
        .unwrap_or_else(|| target.clone());
    // Half of a digest is enough to tell the runs of one organization apart, and heads are read by the hundred.
    let mut digest = ids::sha256_hex(format!("{simulations}\n{target}").as_bytes());
    digest.truncate(32);
    digest
}

/// The text in a field of each of a new run's evals that has one.
fn of_evals<'a>(new: &'a NewRun, field: &'a str) -> impl Iterator<Item = &'a str> {
    let snapshots = new.snapshots.iter();
    snapshots.filter_map(move |snapshot| snapshot.eval.get(field)?.as_str())
}

impl Store {
    /// Creates a run at `now` (milliseconds since the Unix epoch) by one transaction: from then on it exists, whatever
    /// happens. A run of few items has them at once; the others are expanded by whoever finds the run's head.
    ///
    /// # Errors
    /// When the table cannot be written; then there is no run.
    pub async fn create_run(&self, new: &NewRun, now: i64) -> Result<Created, StoreError> {
        let items = new.origin.as_ref().map(|origin| origin.items.len());
        let count = place(items.unwrap_or(new.snapshots.len()));
        let origin = new.origin.as_ref().map(|origin| origin.run);
        // What was told of a conversation is not told again.
        let tells = origin.is_none_or(|origin| origin.kind != OriginKind::Evaluation);
        let listeners = &new.manifest.notify.listeners;
        let mut head = RunHead {
            id: new.id,
            org: new.org,
            kind: new.kind,
            state: RunState::Queued,
            total: count.saturating_mul(new.iterations),
            expanded: 0,
            iterations: new.iterations,
            transport: new.transport.clone(),
            endpoint: new.endpoint,
            cap: new.cap,
            hooked: tells && new.snapshots.iter().any(Snapshot::has_hooks),
            listened: tells && listeners.iter().any(Listener::hears_items),
            held_until: (tells && listeners.iter().any(Listener::holds)).then_some(now + HELD_MS),
            withheld: None,
            target_type: new.target_type.clone(),
            target_id: new.target_id,
            origin,
            schedule: new.firing.as_ref().map(|new| Scheduled {
                schedule: new.after.id,
                at: new.firing.due.at,
                previous: new.before.last_run,
            }),
            notify: new.manifest.notify.on(),
            asked: asked(&new.manifest),
            created_at: now,
            updated_at: now,
            started_at: None,
            ended_at: None,
            canceled_at: None,
            cancel_cursor: 0,
            deleted_at: None,
            evals: of_evals(new, "evalId").filter_map(|id| id.parse().ok()).collect(),
            eval_names: of_evals(new, "name").map(str::to_owned).collect(),
            trace: new.trace,
            counts: None,
            owed: RunOwed::Expand,
            due_at: None,
            version: 1,
        };
        let pk = run_pk(new.id);
        let (body, mut inert) = document(&pk, "BODY", &json(&new.manifest)?);
        let mut documents = vec![
            (body, Vec::new()),
            document(&pk, "TARGET", &new.target.to_string()),
        ];
        documents.extend(snapshot_documents(&pk, new)?);
        let mut rows: Vec<Row> = Vec::with_capacity(documents.len());
        for (row, parts) in documents {
            rows.push(row);
            inert.extend(parts);
        }
        let few = !head.is_held() && head.total <= CHUNK && rows.len() + head.total as usize <= CREATION_ROWS;
        if few {
            head.expanded = head.total;
        }
        head.owe(now);
        let mut writes = vec![Write::put(head_row(&head)?, Condition::Absent)];
        if let Some((key_hash, request)) = &new.idempotency {
            let mut row = key_row(new.org, key_hash, request, now + REMEMBERED_MS);
            row.insert("run".to_owned(), text(new.id.to_string()));
            writes.push(Write::put(row, Condition::AbsentOrExpired(now / 1000)));
        }
        if let Some(firing) = &new.firing {
            writes.extend(firing_writes(
                &firing.before,
                &firing.after,
                std::slice::from_ref(&firing.firing),
            )?);
        }
        if let Some(waiting) = head.waiting(now) {
            writes.push(Write::plain(waiting_row(head.org, &waiting)?));
        }
        if head.is_held() {
            writes.push(Write::plain(hook_row(&Hook::of_held(&head, now))?));
        }
        if few {
            for index in 0..head.total {
                writes.push(Write::plain(item_row(&head.item(index, now))?));
            }
        }
        let fits = rows.iter().map(bytes).sum::<usize>() < CREATION_BYTES
            && rows.len() + writes.len() <= CREATION_ROWS;
        if fits {
            writes.extend(rows.into_iter().map(Write::plain));
        } else {
            // Rows that nothing names until the head is there: a creation that dies here leaves nothing to be seen.
            inert.extend(rows);
        }
        let beside = !inert.is_empty();
        self.batch_put(inert).await?;
        match self.transact(writes).await {
            Ok(()) => Ok(Created::New(Box::new(head))),
            Err(WriteError::Condition(Some(row))) => {
                if beside {
                    self.forget(&pk).await;
                }
                created_before(new.idempotency.as_ref(), &row)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a request of `org` with this idempotency key has come to before, at `now` (milliseconds since the Unix epoch); the
    /// key and the request by their SHA-256, as in [`NewRun::idempotency`]. `None` when the key is free.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn created_with(
        &self,
        org: Uuid,
        idempotency: &(String, String),
        now: i64,
    ) -> Result<Option<Created>, StoreError> {
        let row = self.get(&keys_pk(org), &idempotency.0).await?;
        row.filter(|row| integer(row, "expiresAt").is_none_or(|at| at >= now / 1000))
            .map(|row| created_before(Some(idempotency), &row))
            .transpose()
    }

    /// Reads the head of a run; one of another org or kind is not found.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn run(&self, key: RunKey) -> Result<Option<RunHead>, StoreError> {
        self.get(&key.pk(), &key.run.to_string())
            .await?
            .map(read)
            .transpose()
    }

    /// The run of `org` that an item belongs to, and the item's place in it, by the item's id alone.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn run_of_item(&self, org: Uuid, item: Uuid) -> Result<Option<(RunHead, u32)>, StoreError> {
        // An item's id begins with its run's time, so the run is one of those created in the same millisecond.
        let first = ids::floor_id(ids::created_ms(item));
        let mut query = ListQuery {
            ids: first..=Uuid::from_u128(first.as_u128() | ((1 << 80) - 1)),
            newest_first: false,
            after: None,
            limit: 100,
        };
        loop {
            let listed = self.list_runs(org, RunKind::Simulation, &query).await?;
            query.after = listed.entries.last().map(|head| head.id);
            let mut heads = listed.entries.into_iter();
            let found = heads.find_map(|head| {
                let index = ids::item_index(head.id, item)?;
                (index < head.total).then_some((head, index))
            });
            if found.is_some() || !listed.more {
                return Ok(found);
            }
        }
    }

    /// A part of the list of an org's runs of a kind: what one request to the table gives of it.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn list_runs(
        &self,
        org: Uuid,
        kind: RunKind,
        query: &ListQuery,
    ) -> Result<Listed<RunHead>, StoreError> {
        let listed = self.list_rows(&runs_pk(org, kind), query).await?;
        let entries = listed.entries.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Listed {
            entries,
            more: listed.more,
        })
    }

    /// How many of an org's runs of a kind have an id in `ids`.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn count_runs(
        &self,
        org: Uuid,
        kind: RunKind,
        ids: &std::ops::RangeInclusive<Uuid>,
    ) -> Result<u64, StoreError> {
        self.count_rows(&runs_pk(org, kind), ids).await
    }

    /// Reads what a run was asked for.
    ///
    /// # Errors
    /// When the table cannot be read or the run has none.
    pub async fn manifest(&self, run: Uuid) -> Result<Manifest, StoreError> {
        self.run_document(run, "BODY").await
    }

    /// Reads the snapshot of a run's target.
    ///
    /// # Errors
    /// When the table cannot be read or the run has none.
    pub async fn target(&self, run: Uuid) -> Result<Value, StoreError> {
        self.run_document(run, "TARGET").await
    }

    /// Reads the snapshot of a run's simulation by its place in the run.
    ///
    /// # Errors
    /// When the table cannot be read or the run has none.
    pub async fn snapshot(&self, run: Uuid, simulation: u32) -> Result<Snapshot, StoreError> {
        let mut basis = self.basis(run, simulation).await?;
        if let Basis::Same { at, .. } = basis {
            basis = self.basis(run, at).await?;
        }
        match basis {
            Basis::Whole(snapshot) => Ok(*snapshot),
            Basis::Same { at, .. } => Err(StoreError::Corrupt(format!("run {run} has no snapshot {at}"))),
        }
    }

    /// Reads what the items of a run's simulation work from, by its place in the run.
    ///
    /// # Errors
    /// When the table cannot be read or the run has none.
    pub async fn basis(&self, run: Uuid, simulation: u32) -> Result<Basis, StoreError> {
        let sk = snapshot_sk(simulation);
        let missing = || StoreError::Corrupt(format!("run {run} has no {sk}"));
        let (row, body) = self.get_document(&run_pk(run), &sk).await?.ok_or_else(missing)?;
        basis(&row, &body)
    }

    /// Reads what the items of many simulations of a run work from, by their places in the run, each of them once.
    ///
    /// # Errors
    /// When the table cannot be read or the run lacks one of them.
    pub async fn bases(&self, run: Uuid, simulations: &[u32]) -> Result<BTreeMap<u32, Basis>, StoreError> {
        let pk = run_pk(run);
        let keys = simulations.iter().map(|&n| (pk.clone(), snapshot_sk(n)));
        let mut bases = BTreeMap::new();
        for row in self.batch_get(keys.collect()).await? {
            let sk = string(&row, "sk")?;
            let n = sk.strip_prefix("SNAP#").and_then(|n| n.parse().ok());
            let n = n.ok_or_else(|| StoreError::Corrupt(format!("{sk} is no snapshot's key")))?;
            let found = if row.contains_key("parts") {
                self.basis(run, n).await?
            } else {
                basis(&row, string(&row, "body")?)?
            };
            bases.insert(n, found);
        }
        match simulations.iter().find(|n| !bases.contains_key(n)) {
            Some(n) => Err(StoreError::Corrupt(format!("run {run} has no snapshot {n}"))),
            None => Ok(bases),
        }
    }

    /// Keeps what a run came to, as JSON.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when something is kept already; or when the table cannot be written.
    pub(crate) async fn keep_report(&self, run: Uuid, report: &str) -> Result<(), StoreError> {
        let mut row = key(&run_pk(run), REPORT);
        row.insert("body".to_owned(), text(report));
        Ok(self.put(row, Some(Condition::Absent)).await?)
    }

    /// What was kept of many runs, as JSON by run, where something was.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub(crate) async fn reports(&self, runs: &[Uuid]) -> Result<BTreeMap<Uuid, String>, StoreError> {
        let keys = runs.iter().map(|&run| (run_pk(run), REPORT.to_owned()));
        let mut reports = BTreeMap::new();
        for row in self.batch_get(keys.collect()).await? {
            let run = string(&row, "pk")?
                .strip_prefix("RUN#")
                .and_then(|id| id.parse().ok());
            let run = run.ok_or_else(|| StoreError::Corrupt("a report without a run".to_owned()))?;
            reports.insert(run, string(&row, "body")?.to_owned());
        }
        Ok(reports)
    }

    /// Reads the heads of many runs of an org, by id; those that are not there are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn runs(
        &self,
        org: Uuid,
        kind: RunKind,
        runs: &[Uuid],
    ) -> Result<BTreeMap<Uuid, RunHead>, StoreError> {
        let pk = runs_pk(org, kind);
        let keys = runs.iter().map(|run| (pk.clone(), run.to_string())).collect();
        let rows = self.batch_get(keys).await?;
        let heads = rows.into_iter().map(read::<RunHead>);
        heads.map(|head| head.map(|head| (head.id, head))).collect()
    }

    /// Reads what a run's simulations and their parts were called when it was created, by the simulations' ids.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn names(&self, run: Uuid) -> Result<BTreeMap<Uuid, Names>, StoreError> {
        match self.get_document(&run_pk(run), "NAMES").await? {
            Some((_, body)) => {
                serde_json::from_str(&body).map_err(|error| StoreError::Corrupt(error.to_string()))
            }
            None => Ok(BTreeMap::new()),
        }
    }

    async fn run_document<T: serde::de::DeserializeOwned>(
        &self,
        run: Uuid,
        sk: &str,
    ) -> Result<T, StoreError> {
        let missing = || StoreError::Corrupt(format!("run {run} has no {sk}"));
        let (_, body) = self.get_document(&run_pk(run), sk).await?.ok_or_else(missing)?;
        serde_json::from_str(&body).map_err(|error| StoreError::Corrupt(error.to_string()))
    }

    /// Stores the next items of a run: one transaction with the head that counts them, so that each is stored once
    /// whoever expands and however often. Gives the head as it is then, also when somebody else was faster.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn expand(&self, head: &RunHead, now: i64) -> Result<RunHead, StoreError> {
        if head.expanded >= head.total || head.is_held() {
            return Ok(head.clone());
        }
        let until = (head.expanded / CHUNK + 1).saturating_mul(CHUNK).min(head.total);
        let mut next = head.next(now);
        next.expanded = until;
        next.owe(now);
        let mut writes = vec![Write::put(head_row(&next)?, Condition::Version(head.version))];
        for index in head.expanded..until {
            let mut item = head.item(index, now);
            if head.canceled_at.is_some() {
                // Nobody is to begin what is canceled already.
                item = item.canceled(now);
            }
            writes.push(Write::plain(item_row(&item)?));
        }
        match self.transact(writes).await {
            Ok(()) => Ok(next),
            Err(WriteError::Condition(Some(row))) => read(row),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces a run's head by what `change` makes of it, unless it gives `false`. When somebody wrote in between,
    /// `change` is asked again with their head.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn change_run(
        &self,
        mut head: RunHead,
        now: i64,
        change: impl Fn(&mut RunHead) -> bool,
    ) -> Result<RunHead, StoreError> {
        loop {
            let mut next = head.next(now);
            if !change(&mut next) {
                return Ok(head);
            }
            next.owe(now);
            let (row, unchanged) = (head_row(&next)?, Condition::Version(head.version));
            let written = match Hook::of_run(&head, &next, now) {
                // The hook is this write's own: whoever writes the head first is the only one to write it.
                Some(hook) => {
                    let hook = Write::plain(hook_row(&hook)?);
                    self.transact(vec![Write::put(row, unchanged), hook]).await
                }
                None => self.put(row, Some(unchanged)).await,
            };
            match written {
                Ok(()) => return Ok(next),
                Err(WriteError::Condition(Some(row))) => head = read(row)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets a run begin that was held until somebody was told of it: with the same write it waits for slots, if it needs any. Gives the
    /// head as it is then, also when it began before or was canceled.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn release_run(&self, mut head: RunHead, now: i64) -> Result<RunHead, StoreError> {
        while head.is_held() {
            let mut next = head.next(now);
            next.held_until = None;
            next.owe(now);
            let mut writes = vec![Write::put(head_row(&next)?, Condition::Version(head.version))];
            if let Some(waiting) = next.waiting(now) {
                writes.push(Write::plain(waiting_row(head.org, &waiting)?));
            }
            match self.transact(writes).await {
                Ok(()) => return Ok(next),
                Err(WriteError::Condition(Some(row))) => head = read(row)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(head)
    }

    /// Takes a run away with everything that is kept of it, its head last: whoever dies in between finds it again.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn delete_run(&self, head: &RunHead) -> Result<(), StoreError> {
        stream::iter(0..head.expanded)
            .map(|index| async move {
                let pk = detail_pk(ids::item_id(head.id, index));
                self.delete_partition(&pk).await
            })
            .buffer_unordered(DELETED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        for partition in 0..head.partitions() {
            self.delete_partition(&ItemKey::partition(head.id, partition))
                .await?;
        }
        self.delete_partition(&run_pk(head.id)).await?;
        self.delete(&head.key().pk(), &head.id.to_string()).await
    }

    /// Takes rows away that nothing names and nothing will: as many as it can in a moment.
    async fn forget(&self, pk: &str) {
        let work = async {
            let rows = self
                .query_only(pk, super::Range::All, true, Some(FORGOTTEN), &["sk"])
                .await?;
            stream::iter(rows)
                .map(|row| async move { self.delete(pk, string(&row, "sk")?).await })
                .buffer_unordered(FORGOTTEN_AT_ONCE)
                .try_collect::<()>()
                .await
        };
        if let Err(error) = work.await {
            tracing::warn!(%error, "rows of a run that was not created stay behind");
        }
    }

    pub(super) async fn delete_partition(&self, pk: &str) -> Result<(), StoreError> {
        let rows = self
            .query_only(pk, super::Range::All, true, None, &["sk"])
            .await?;
        stream::iter(rows)
            .map(|row| async move { self.delete(pk, string(&row, "sk")?).await })
            .buffer_unordered(DELETED_AT_ONCE)
            .try_collect::<()>()
            .await
    }

    /// Reads the head behind a key of the index, if the row is a run's.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn due_run(&self, due: &DueKey) -> Result<Option<RunHead>, StoreError> {
        match due.run() {
            Some(key) => self.run(key).await,
            None => Ok(None),
        }
    }

    /// Reads the items of a run from index `from` on, at most `count`, in the order of the indexes; those that are not
    /// stored yet are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn items_from(&self, run: Uuid, from: u32, count: u32) -> Result<Vec<Item>, StoreError> {
        let until = from.saturating_add(count);
        let mut items = Vec::new();
        let mut at = from;
        while at < until {
            let (partition, end) = (
                at / PARTITION,
                (at / PARTITION + 1).saturating_mul(PARTITION).min(until),
            );
            let sk = |index| ItemKey { run, index }.sk();
            let (first, last) = (sk(at), sk(end - 1));
            let rows = self
                .query(
                    &ItemKey::partition(run, partition),
                    super::Range::Between(&first, &last),
                    true,
                    None,
                )
                .await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                items.push(read(row)?);
            }
            at = end;
        }
        Ok(items)
    }
}

/// Reads a run's head from a stream record's image.
///
/// # Errors
/// When the image is not a run's head.
pub fn head_from_image(image: serde_dynamo::Item) -> Result<RunHead, StoreError> {
    serde_dynamo::from_item(image).map_err(|error| StoreError::Corrupt(error.to_string()))
}
