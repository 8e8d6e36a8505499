//! Schedules: runs that start by the clock, and who is told how they came out.

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    Object, Validate, check, kinds, lenient,
    run::{
        CreateSimulationRun, RunStatus, SimulationRunEntry, SimulationRunItemCounts, SimulationRunTarget,
        Transport,
    },
    simulation::{NAME, Server},
};
use crate::{
    clock::parse_iso,
    schedule::{Plan, Timetable},
};

/// The longest cron expression and the longest name of a time zone, in characters.
const CRON: usize = 200;
/// The longest URL of a Slack webhook, in characters.
const URL: usize = 2000;

kinds::names! {
    /// Which outcome of a run somebody wants to hear of. A run is a success when all of its items passed.
    NotifyOn {
        /// None.
        Never = "never",
        /// That all items passed.
        Success = "success",
        /// That not all of them did.
        Failure = "failure",
        /// Either.
        Both = "both",
    }
}

impl NotifyOn {
    /// Whether an outcome is to be told.
    #[must_use]
    pub const fn wants(self, success: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Success => success,
            Self::Failure => !success,
            Self::Both => true,
        }
    }
}

kinds::names! {
    /// What becomes of a firing while a run of the schedule is under way.
    Overlap {
        /// It is left out.
        Skip = "skip",
        /// It waits until the run has ended; one firing may wait.
        Queue = "queue",
        /// It starts a run beside the other.
        Allow = "allow",
    }
}

kinds::names! {
    /// What a firing comes from.
    Trigger {
        /// Its time has come.
        Cron = "cron",
        /// Somebody asked for it.
        Manual = "manual",
    }
}

kinds::names! {
    /// What became of a firing.
    FiringStatus {
        /// A run was started.
        Started = "started",
        /// It waits until the run before it has ended.
        Waiting = "waiting",
        /// No run was started, because one was under way or the schedule was paused.
        Skipped = "skipped",
        /// No run could be started.
        Failed = "failed",
    }
}

/// Who is told how a run came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notify {
    /// Which outcomes are told; both unless given.
    #[serde(default = "both", deserialize_with = "notify_on")]
    #[schemars(with = "Option<NotifyOn>")]
    pub on: NotifyOn,
    /// A Slack incoming webhook that gets a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = URL), regex(pattern = "^https?://."), extend("format" = "uri"))]
    pub slack_webhook_url: Option<String>,
    /// A server that gets the signed webhook `run.ended`, or `schedule.failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            on: NotifyOn::Both,
            slack_webhook_url: None,
            server: None,
            extra: Object::new(),
        }
    }
}

const fn both() -> NotifyOn {
    NotifyOn::Both
}

fn notify_on<'de, D: Deserializer<'de>>(input: D) -> Result<NotifyOn, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(NotifyOn::Both))
}

impl Validate for Notify {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(
            path,
            "slackWebhookUrl",
            self.slack_webhook_url.as_ref(),
            URL,
            faults,
        );
        if let Some(url) = &self.slack_webhook_url
            && !crate::provider::is_url(url)
        {
            faults.push(format!(
                "{} must be an http or https URL",
                check::join(path, "slackWebhookUrl")
            ));
        }
        if let Some(server) = &self.server {
            let path = check::join(path, "server");
            server.validate(&path, faults);
            server.validate_as_receiver(&path, faults);
            if server.url.is_none() {
                faults.push(format!("{path}.url must be given"));
            }
            for (name, value) in server.headers.iter().flatten() {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                if HeaderName::try_from(name).is_err() || HeaderValue::try_from(text).is_err() {
                    faults.push(format!("{path}.headers.{name} cannot be sent as a header"));
                }
            }
        }
    }
}

/// A new schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSchedule {
    /// Display name.
    #[schemars(length(min = 1, max = NAME))]
    pub name: String,
    /// When it fires: minute, hour, day of month, month, day of week.
    #[schemars(length(max = CRON))]
    pub cron: String,
    /// The IANA time zone whose clock the expression goes by; UTC unless given.
    #[serde(default = "utc", deserialize_with = "timezone")]
    #[schemars(with = "Option<String>", length(max = CRON))]
    pub timezone: String,
    /// It does not fire before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub start_at: Option<String>,
    /// It does not fire after.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub end_at: Option<String>,
    /// What its runs play: suites or simulations.
    #[schemars(length(min = 1))]
    pub simulations: Vec<SimulationRunEntry>,
    /// What its runs test.
    pub target: SimulationRunTarget,
    /// How often each simulation is played in a run.
    #[serde(default = "first", deserialize_with = "iterations")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 10))]
    pub iterations: i64,
    /// How the tester reaches the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How many conversations of a run may be held at a time; without it as many as the system can.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub concurrency_limit: Option<i64>,
    /// What becomes of a firing while a run of the schedule is under way; it is skipped unless given.
    #[serde(default = "skip", deserialize_with = "overlap")]
    #[schemars(with = "Option<Overlap>")]
    pub overlap: Overlap,
    /// Who is told how its runs came out, and that one could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Whether it fires; it does unless switched off.
    #[serde(default = "kinds::yes", deserialize_with = "kinds::on")]
    #[schemars(with = "Option<bool>")]
    pub active: bool,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn timezone<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_else(utc))
}

const fn first() -> i64 {
    1
}

fn iterations<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    Ok(lenient::optional_integer(input)?.unwrap_or_else(first))
}

const fn skip() -> Overlap {
    Overlap::Skip
}

fn overlap<'de, D: Deserializer<'de>>(input: D) -> Result<Overlap, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_else(skip))
}

impl CreateSchedule {
    /// What it says of its firings.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan {
            cron: self.cron.clone(),
            timezone: self.timezone.clone(),
            start_at: self.start_at.as_deref().and_then(parse_iso),
            end_at: self.end_at.as_deref().and_then(parse_iso),
            overlap: self.overlap,
            active: self.active,
        }
    }

    /// The run that a firing starts.
    #[must_use]
    pub fn run(&self) -> CreateSimulationRun {
        CreateSimulationRun {
            simulations: self.simulations.clone(),
            target: self.target.clone(),
            iterations: self.iterations,
            transport: self.transport.clone(),
            concurrency_limit: self.concurrency_limit,
            notify: self.notify.clone(),
            extra: self
                .extra
                .get_key_value("label")
                .map(|(name, label)| (name.clone(), label.clone()))
                .into_iter()
                .collect(),
        }
    }
}

impl Validate for CreateSchedule {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 1, NAME, faults);
        check::length(path, "cron", &self.cron, 1, CRON, faults);
        check::length(path, "timezone", &self.timezone, 1, CRON, faults);
        for (field, time) in [("startAt", &self.start_at), ("endAt", &self.end_at)] {
            if time.as_deref().is_some_and(|time| parse_iso(time).is_none()) {
                faults.push(format!(
                    "{} must be an ISO 8601 date-time with an offset, such as 2026-03-26T10:52:45Z",
                    check::join(path, field)
                ));
            }
        }
        if let Err(wrong) = Timetable::new(&self.cron, &self.timezone, None, None) {
            faults.push(check::join(path, &wrong.to_string()));
        }
        self.run().validate(path, faults);
    }
}

/// Changes to a schedule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateSchedule {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME))]
    pub name: Option<String>,
    /// When it fires: minute, hour, day of month, month, day of week.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = CRON))]
    pub cron: Option<String>,
    /// The IANA time zone whose clock the expression goes by; `null` is UTC.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = CRON))]
    pub timezone: Option<Option<String>>,
    /// It does not fire before; `null` takes that away.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(extend("format" = "date-time"))]
    pub start_at: Option<Option<String>>,
    /// It does not fire after; `null` takes that away.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(extend("format" = "date-time"))]
    pub end_at: Option<Option<String>>,
    /// What its runs play.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub simulations: Option<Vec<SimulationRunEntry>>,
    /// What its runs test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<SimulationRunTarget>,
    /// How often each simulation is played in a run; `null` is once.
    #[serde(
        default,
        deserialize_with = "lenient::nullable_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 10))]
    pub iterations: Option<Option<i64>>,
    /// How the tester reaches the target; `null` takes that away.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub transport: Option<Option<Transport>>,
    /// How many conversations of a run may be held at a time; `null` takes that away.
    #[serde(
        default,
        deserialize_with = "lenient::nullable_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub concurrency_limit: Option<Option<i64>>,
    /// What becomes of a firing while a run of the schedule is under way; `null` is to skip it.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub overlap: Option<Option<Overlap>>,
    /// Who is told; `null` takes that away.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub notify: Option<Option<Notify>>,
    /// Whether it fires: `false` pauses it, and `null` is `true`.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub active: Option<Option<bool>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

impl Validate for UpdateSchedule {
    // What comes of the change is checked as a whole.
    fn validate(&self, _path: &str, _faults: &mut Vec<String>) {}
}

/// A stored schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// When it fires next, at most five times; none while it is paused or when it is over.
    pub next_firings: Vec<String>,
    /// What it was made of.
    #[serde(flatten)]
    pub asked: CreateSchedule,
}

/// A firing of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleFiring {
    /// When it was to be.
    pub scheduled_for: String,
    /// What it came from.
    pub trigger: Trigger,
    /// What became of it.
    pub status: FiringStatus,
    /// Why no run was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When that was decided.
    pub decided_at: String,
    /// How many firings before it were missed, for which it stands as well.
    pub missed: u32,
    /// When the first of them was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed_since: Option<String>,
    /// The run that was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_status: Option<RunStatus>,
    /// Its items by status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_counts: Option<SimulationRunItemCounts>,
    /// To whom it was told that no run could be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Object>>")]
    pub notices: Option<serde_json::Value>,
}

/// Response times of the target over the items of a run, in milliseconds; of each item its mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunLatency {
    /// The mean.
    pub mean_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// 95 of 100 items are not above it.
    pub p95_ms: f64,
    /// How many items were measured.
    pub items: u32,
}

/// A part of the history of a schedule, the newest firing first unless asked otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleFirings {
    /// The firings.
    pub results: Vec<ScheduleFiring>,
    /// Where they stand in it.
    pub metadata: FiringsMetadata,
}

/// Where a part of a history stands in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FiringsMetadata {
    /// How many firings a part has at most.
    pub items_per_page: usize,
    /// Whether more follow.
    pub has_next_page: bool,
    /// What to send as `cursor` for those that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What a firing's run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrendPoint {
    /// When it was to be.
    pub scheduled_for: String,
    /// The run.
    pub run_id: String,
    /// Where it stands.
    pub run_status: RunStatus,
    /// How many items it has.
    pub total: u32,
    /// How many of them passed.
    pub passed: u32,
    /// How many failed, whosever fault it was.
    pub failed: u32,
    /// How many were canceled.
    pub canceled: u32,
    /// How many of those that failed did so by the fault of the tester, a provider or Ringback; null until the run has ended.
    pub errored: Option<u32>,
    /// The share of the trials that passed, from 0 to 1: what failed by another's fault is none. Null without any, or until the run
    /// has ended.
    pub pass_rate: Option<f64>,
    /// The target's response times; null where none was measured, or the run has not ended.
    pub latency: Option<RunLatency>,
    /// What it cost in US dollars, as far as it is known.
    pub cost: f64,
    /// Models of calls whose cost is not known.
    pub costs_unknown: Vec<String>,
}

/// How the runs of a schedule came out, firing by firing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleTrend {
    /// The schedule.
    pub schedule_id: String,
    /// Its newest firings that started a run, the oldest of them first.
    pub points: Vec<TrendPoint>,
}
