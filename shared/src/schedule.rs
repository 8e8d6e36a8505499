//! Schedules: when they fire, and what becomes of a firing. Pure; nothing here has I/O or a clock.
//!
//! A firing is due at a moment of its [`Timetable`]. Whoever finds it decides what becomes of it by the schedule's head alone and
//! writes that together with the head, on the condition that the head is as it was: so each firing is decided once, however many
//! look at the same time.

use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::models::schedule::{FiringStatus, Overlap, Trigger};

/// A firing that is found at most this late, in milliseconds, is on time: the tick comes once a minute, and now and then a moment
/// later than the one before. What is later has been missed.
pub const ON_TIME_MS: i64 = 120_000;

/// A minute, in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// How far back missed firings are counted, in milliseconds.
const COUNTED_MS: i64 = 35 * 24 * 3_600_000;

/// How many hours are passed over where the next firing cannot be found from a moment.
const TRIES: u32 = 48;

/// How many of a schedule's runs that may not have ended its head names.
const OPEN: usize = 50;

/// Why there is no timetable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimetableError {
    /// The expression cannot be read.
    #[error(
        "cron must be five fields (minute, hour, day of month, month, day of week), such as \"0 2 * * MON-FRI\": {0}"
    )]
    Cron(String),
    /// There is no such zone.
    #[error("timezone must be an IANA time zone such as UTC or Europe/Berlin, and {0:?} is none")]
    Zone(String),
}

/// When a schedule fires.
///
/// The expression is read by the clock of its time zone. Where that clock is set forward, a fixed time (one minute of one hour)
/// that it leaves out fires at the moment at which it goes on, if the expression has that moment's day; every other expression has no firing in what is left out. Where it is set back, a fixed
/// time that it shows twice fires the first time only; every other expression fires whenever the clock shows its time.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    from: Option<i64>,
    until: Option<i64>,
}

impl Timetable {
    /// The timetable of a five-field cron expression by the clock of an IANA time zone, from and until these moments
    /// (milliseconds since the Unix epoch), both included.
    ///
    /// # Errors
    /// When the expression or the zone cannot be read.
    pub fn new(
        cron: &str,
        zone: &str,
        from: Option<i64>,
        until: Option<i64>,
    ) -> Result<Self, TimetableError> {
        if cron.trim_start().starts_with('@') {
            return Err(TimetableError::Cron("a nickname is none".to_owned()));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser
            .parse(cron)
            .map_err(|error| TimetableError::Cron(error.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| TimetableError::Zone(zone.to_owned()))?;
        Ok(Self {
            cron,
            zone,
            from,
            until,
        })
    }

    /// The first firing after `ms`; both in milliseconds since the Unix epoch.
    #[must_use]
    pub fn next_after(&self, ms: i64) -> Option<i64> {
        // Firings are at whole minutes, so that the second before a moment excludes none but those after it.
        let after = self.from.map_or(ms, |from| ms.max(from.saturating_sub(1)));
        let mut second = after.div_euclid(1000);
        for _ in 0..TRIES {
            let at: Zoned = Timestamp::from_second(second).ok()?.to_zoned(self.zone.clone());
            match self.cron.find_next_occurrence(&at, false) {
                Ok(next) => {
                    let next = next.timestamp().as_second().checked_mul(1000)?;
                    return self.until.is_none_or(|until| next <= until).then_some(next);
                }
                Err(CronError::TimeSearchLimitExceeded) => return None,
                // A moment that the zone's clock makes impossible is no end of the schedule.
                Err(_) => second += 3600,
            }
        }
        None
    }

    /// The next `count` firings after `ms`, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn upcoming(&self, ms: i64, count: usize) -> Vec<i64> {
        std::iter::successors(self.next_after(ms), |&at| self.next_after(at))
            .take(count)
            .collect()
    }
}

/// A firing whose time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Due {
    /// When it was to be, in milliseconds since the Unix epoch.
    pub at: i64,
    /// How many firings before it were missed; it stands for them as well.
    #[serde(default)]
    pub missed: u32,
    /// When the first of them was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_since: Option<i64>,
}

impl Due {
    /// A firing that stands for itself alone.
    #[must_use]
    pub const fn at(at: i64) -> Self {
        Self {
            at,
            missed: 0,
            missed_since: None,
        }
    }
}

/// What is to become of a firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is due.
    Nothing,
    /// A run is to be started for it.
    Start(Due),
    /// It waits until the schedule's runs have ended.
    Wait(Due),
    /// No run is started for it.
    Skip(Due, &'static str),
}

/// What is kept of a schedule beside its definition: when it fires next, and what is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleHead {
    /// Its id.
    pub id: Uuid,
    /// The organization.
    pub org: Uuid,
    /// The cron expression.
    pub cron: String,
    /// The IANA time zone.
    pub timezone: String,
    /// It does not fire before, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<i64>,
    /// It does not fire after, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_at: Option<i64>,
    /// What becomes of a firing while a run of the schedule is under way.
    pub overlap: Overlap,
    /// Whether it fires at all.
    pub active: bool,
    /// When it fires next, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_fire_at: Option<i64>,
    /// When it fired last, in milliseconds since the Unix epoch: no time fires twice, whatever is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fire_at: Option<i64>,
    /// The firing that waits until the runs before it have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Due>,
    /// Since when a run could not be started for a reason that may pass, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_since: Option<i64>,
    /// The last run that it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Uuid>,
    /// The newest of its runs that had not ended when somebody last looked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Uuid>,
    /// Whether it was deleted; what is kept of it is then taken away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// From when on somebody has to look after it, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<i64>,
    /// Grows by one with every write.
    pub version: u64,
}

/// What a schedule's definition says of its firings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The cron expression.
    pub cron: String,
    /// The IANA time zone.
    pub timezone: String,
    /// It does not fire before, in milliseconds since the Unix epoch.
    pub start_at: Option<i64>,
    /// It does not fire after, in milliseconds since the Unix epoch.
    pub end_at: Option<i64>,
    /// What becomes of a firing while a run of the schedule is under way.
    pub overlap: Overlap,
    /// Whether it fires at all.
    pub active: bool,
}

impl Plan {
    /// When it fires.
    ///
    /// # Errors
    /// As [`Timetable::new`].
    pub fn timetable(&self) -> Result<Timetable, TimetableError> {
        Timetable::new(&self.cron, &self.timezone, self.start_at, self.end_at)
    }
}

impl ScheduleHead {
    /// The head of a new schedule, made at `now`.
    #[must_use]
    pub fn new(id: Uuid, org: Uuid, plan: Plan, timetable: &Timetable, now: i64) -> Self {
        Self {
            id,
            org,
            cron: String::new(),
            timezone: String::new(),
            start_at: None,
            end_at: None,
            overlap: plan.overlap,
            active: false,
            next_fire_at: None,
            last_fire_at: None,
            waiting: None,
            tried_since: None,
            last_run: None,
            open: Vec::new(),
            deleted: false,
            due_at: None,
            version: 0,
        }
        .planned(plan, timetable, now)
    }

    /// When it fires.
    ///
    /// # Errors
    /// When its expression cannot be read; none is stored that cannot.
    pub fn timetable(&self) -> Result<Timetable, TimetableError> {
        Timetable::new(&self.cron, &self.timezone, self.start_at, self.end_at)
    }

    fn next(&self) -> Self {
        Self {
            version: self.version + 1,
            ..self.clone()
        }
    }

    /// Says when somebody has to look, from what is known.
    fn owe(mut self, now: i64) -> Self {
        self.due_at = if self.deleted {
            Some(now)
        } else {
            let waiting = self.waiting.map(|due| due.at);
            waiting.into_iter().chain(self.next_fire_at).min()
        };
        self
    }

    /// Whether it fires as `plan` says.
    #[must_use]
    pub fn fires_by(&self, plan: &Plan) -> bool {
        let own = (
            &self.cron,
            &self.timezone,
            self.start_at,
            self.end_at,
            self.active,
        );
        own == (
            &plan.cron,
            &plan.timezone,
            plan.start_at,
            plan.end_at,
            plan.active,
        )
    }

    /// The head after its definition was changed at `now`. Where it fires at other times than before, what fell due and was not
    /// found yet is over with; where it does not fire any more, so is a firing that waits: see [`ScheduleHead::dropped`].
    #[must_use]
    pub fn planned(&self, plan: Plan, timetable: &Timetable, now: i64) -> Self {
        let mut head = self.next();
        if !self.fires_by(&plan) {
            let after = self.last_fire_at.map_or(now, |last| last.max(now));
            head.next_fire_at = plan.active.then(|| timetable.next_after(after)).flatten();
        }
        // What was changed may be what stood in the way.
        head.tried_since = None;
        head.waiting = self.waiting.filter(|_| plan.active);
        head.cron = plan.cron;
        head.timezone = plan.timezone;
        head.start_at = plan.start_at;
        head.end_at = plan.end_at;
        head.overlap = plan.overlap;
        head.active = plan.active;
        head.owe(now)
    }

    /// The firings that had come due, or waited, and are dropped where this head becomes `after` by a change at `now`.
    #[must_use]
    pub fn dropped(&self, after: &Self, now: i64) -> Vec<Firing> {
        let why = if after.active {
            "the schedule was changed before a tick found this firing"
        } else {
            "the schedule was paused before this firing could start"
        };
        let waited = self.waiting.filter(|_| after.waiting.is_none());
        let moved = after.next_fire_at != self.next_fire_at;
        let timetable = self.timetable().ok().filter(|_| moved);
        let came = timetable.and_then(|timetable| self.due(&timetable, now));
        let dropped = waited.into_iter().chain(came);
        dropped
            .map(|due| Firing::without_run(due, FiringStatus::Skipped, Some(why), now))
            .collect()
    }

    /// The head after somebody looked at `now` and could not decide yet: the next tick looks again, as at what is due then.
    #[must_use]
    pub fn looked(&self, now: i64) -> Self {
        Self {
            due_at: Some((now.div_euclid(MINUTE_MS) + 1) * MINUTE_MS),
            tried_since: None,
            ..self.next()
        }
    }

    /// The same, because a run could not be started for a reason that may pass.
    #[must_use]
    pub fn refused(&self, now: i64) -> Self {
        Self {
            tried_since: Some(self.tried_since.unwrap_or(now)),
            ..self.looked(now)
        }
    }

    /// The head after the schedule was deleted at `now`.
    #[must_use]
    pub fn removed(&self, now: i64) -> Self {
        let mut head = self.next();
        head.active = false;
        head.next_fire_at = None;
        head.waiting = None;
        head.deleted = true;
        head.owe(now)
    }

    /// The firing that is due at `now`, if one is.
    ///
    /// One that is found in time stands for itself. Later than that, as when nothing has run for a while, the newest that is due
    /// stands for all: what was missed is caught up once.
    #[must_use]
    pub fn due(&self, timetable: &Timetable, now: i64) -> Option<Due> {
        let first = self.next_fire_at.filter(|&at| at <= now)?;
        if now - first < ON_TIME_MS {
            return Some(Due::at(first));
        }
        let mut due = Due::at(first);
        let begin = now - COUNTED_MS;
        if first < begin
            && let Some(at) = timetable.next_after(begin).filter(|&at| at <= now)
        {
            // What is further back counts as one.
            due = Due {
                at,
                missed: 1,
                missed_since: Some(first),
            };
        }
        while let Some(next) = timetable.next_after(due.at).filter(|&at| at <= now) {
            due.missed += 1;
            due.missed_since = Some(due.missed_since.unwrap_or(due.at));
            due.at = next;
        }
        Some(due)
    }

    /// What is to become of the firing that is `due`, or of the one that waits, when a run of the schedule is under way
    /// (`busy`) or not.
    #[must_use]
    pub fn decide(&self, due: Option<Due>, busy: bool) -> Decision {
        let busy = busy && self.overlap != Overlap::Allow;
        match (self.waiting, due) {
            (Some(waiting), _) if !busy => Decision::Start(waiting),
            (_, None) => Decision::Nothing,
            (_, Some(due)) if !busy => Decision::Start(due),
            (None, Some(due)) if self.overlap == Overlap::Queue => Decision::Wait(due),
            (Some(_), Some(due)) if self.overlap == Overlap::Queue => Decision::Skip(
                due,
                "a run of this schedule was under way, and another firing waited for it already",
            ),
            (_, Some(due)) => Decision::Skip(due, "a run of this schedule was under way"),
        }
    }

    /// The head after a firing was decided, with the runs of `open` and the one that was started for it under way.
    #[must_use]
    pub fn decided(
        &self,
        decision: Decision,
        run: Option<Uuid>,
        open: &[Uuid],
        timetable: &Timetable,
        now: i64,
    ) -> Self {
        let mut head = self.with_open(open, run);
        let due = match decision {
            Decision::Nothing => None,
            Decision::Start(due) | Decision::Wait(due) | Decision::Skip(due, _) => Some(due),
        };
        if let Some(due) = due {
            if self.waiting == Some(due) {
                head.waiting = None;
            } else {
                head.last_fire_at = Some(due.at);
                head.next_fire_at = timetable.next_after(due.at);
            }
        }
        if let Decision::Wait(due) = decision {
            head.waiting = Some(due);
        }
        head.tried_since = None;
        head.owe(now)
    }

    /// The head after `run` was started beside its timetable, with the runs of `open` under way.
    #[must_use]
    pub fn run_now(&self, run: Uuid, open: &[Uuid], now: i64) -> Self {
        self.with_open(open, Some(run)).owe(now)
    }

    /// The next head, with these runs under way, of many the newest.
    fn with_open(&self, open: &[Uuid], run: Option<Uuid>) -> Self {
        let mut open: Vec<Uuid> = open.iter().copied().chain(run).collect();
        // Ids are in the order of creation.
        open.sort_unstable();
        open.dedup();
        let many = open.len().saturating_sub(OPEN);
        open.drain(..many);
        Self {
            open,
            last_run: run.or(self.last_run),
            ..self.next()
        }
    }
}

/// What became of a firing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Firing {
    /// When it was to be.
    #[serde(flatten)]
    pub due: Due,
    /// What it came from.
    pub trigger: Trigger,
    /// What became of it.
    pub status: FiringStatus,
    /// The run that was started for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Uuid>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When that was decided, in milliseconds since the Unix epoch.
    pub decided_at: i64,
}

impl Firing {
    /// A firing for which no run was started, at least not yet.
    #[must_use]
    pub fn without_run(due: Due, status: FiringStatus, reason: Option<&str>, now: i64) -> Self {
        Self {
            due,
            trigger: Trigger::Cron,
            status,
            run: None,
            reason: reason.map(str::to_owned),
            decided_at: now,
        }
    }

    /// A firing for which `run` was started.
    #[must_use]
    pub const fn started(due: Due, trigger: Trigger, run: Uuid, now: i64) -> Self {
        Self {
            due,
            trigger,
            status: FiringStatus::Started,
            run: Some(run),
            reason: None,
            decided_at: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::{iso, parse_iso};

    const MINUTE: i64 = 60_000;
    const NOW: i64 = 1_774_522_365_565;

    fn ms(text: &str) -> i64 {
        parse_iso(text).unwrap_or_else(|| panic!("{text} is no time"))
    }

    fn timetable(cron: &str, zone: &str) -> Timetable {
        Timetable::new(cron, zone, None, None).unwrap()
    }

    /// The firings from a moment on, until another, as UTC.
    fn firings(cron: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let until = ms(until);
        let all = timetable(cron, zone).upcoming(ms(from) - 1, 10_000);
        all.into_iter()
            .take_while(|&at| at < until)
            .map(|at| iso(at)[11..16].to_owned())
            .collect()
    }

    #[test]
    fn five_fields_and_a_zone_are_read_and_nothing_else_is() {
        for cron in [
            "* * * * *",
            "0 2 * * MON-FRI",
            "*/15 8-18 * * 1-5",
            "0 0 L * *",
            "30 4 1,15 * 5",
            "0 9 * * FRI#1",
        ] {
            assert!(Timetable::new(cron, "UTC", None, None).is_ok(), "{cron}");
        }
        for cron in [
            "",
            "* * * *",
            "* * * * * *",
            "@daily",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "a b c d e",
        ] {
            let wrong = Timetable::new(cron, "UTC", None, None).unwrap_err();
            assert!(
                wrong.to_string().starts_with("cron must be five fields"),
                "{cron}: {wrong}"
            );
        }
        for zone in [
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "UTC",
            "Etc/GMT+5",
        ] {
            assert!(Timetable::new("* * * * *", zone, None, None).is_ok(), "{zone}");
        }
        for zone in ["", "Berlin", "+02:00", "Europe/Nowhere", "../etc/passwd"] {
            let wrong = Timetable::new("* * * * *", zone, None, None).unwrap_err();
            assert!(matches!(wrong, TimetableError::Zone(_)), "{zone}: {wrong}");
        }
        // What never comes ends.
        assert_eq!(timetable("0 0 30 2 *", "UTC").next_after(NOW), None);
    }

    /// The nights in which clocks are changed, in three zones: an hour in Berlin and in New York, half an hour on Lord Howe.
    #[test]
    fn a_fixed_time_fires_once_in_the_nights_when_the_clock_is_changed() {
        for (zone, cron, from, until, expected) in [
            // At 02:00 it becomes 03:00: half past two does not come, and the run starts at three (01:00 UTC).
            (
                "Europe/Berlin",
                "30 2 * * *",
                "2026-03-28T12:00:00Z",
                "2026-03-30T12:00:00Z",
                ["01:00", "00:30"].as_slice(),
            ),
            // At 03:00 it becomes 02:00: half past two comes twice, and the first counts (00:30 UTC, in summer time).
            (
                "Europe/Berlin",
                "30 2 * * *",
                "2026-10-24T12:00:00Z",
                "2026-10-26T12:00:00Z",
                &["00:30", "01:30"],
            ),
            (
                "America/New_York",
                "30 2 * * *",
                "2026-03-07T12:00:00Z",
                "2026-03-09T12:00:00Z",
                &["07:00", "06:30"],
            ),
            (
                "America/New_York",
                "30 1 * * *",
                "2026-10-31T12:00:00Z",
                "2026-11-02T12:00:00Z",
                &["05:30", "06:30"],
            ),
            // From 02:00 to 02:30, and in April from 02:00 back to 01:30.
            (
                "Australia/Lord_Howe",
                "15 2 * * *",
                "2026-10-03T12:00:00Z",
                "2026-10-05T12:00:00Z",
                &["15:30", "15:15"],
            ),
            (
                "Australia/Lord_Howe",
                "45 1 * * *",
                "2026-04-04T12:00:00Z",
                "2026-04-06T12:00:00Z",
                &["14:45", "15:15"],
            ),
        ] {
            assert_eq!(
                firings(cron, zone, from, until),
                expected,
                "{cron} in {zone} from {from}"
            );
        }
    }

    #[test]
    fn what_repeats_goes_by_the_clock_in_these_nights() {
        for (zone, cron, from, until, expected) in [
            // Four o'clock is two hours after half past one.
            (
                "Europe/Berlin",
                "*/30 * * * *",
                "2026-03-29T00:00:00Z",
                "2026-03-29T02:00:00Z",
                ["00:00", "00:30", "01:00", "01:30"].as_slice(),
            ),
            // What falls into the gap alone does not fire at all; on the next day it does.
            (
                "Europe/Berlin",
                "*/20 2 * * *",
                "2026-03-29T00:00:00Z",
                "2026-03-30T00:30:00Z",
                &["00:00", "00:20"],
            ),
            // The hour that comes twice has its firings twice.
            (
                "Europe/Berlin",
                "15 * * * *",
                "2026-10-25T00:00:00Z",
                "2026-10-25T03:00:00Z",
                &["00:15", "01:15", "02:15"],
            ),
            (
                "Europe/Berlin",
                "*/30 2 * * *",
                "2026-10-25T00:00:00Z",
                "2026-10-25T03:00:00Z",
                &["00:00", "00:30", "01:00", "01:30"],
            ),
            (
                "America/New_York",
                "0 * * * *",
                "2026-11-01T04:00:00Z",
                "2026-11-01T08:00:00Z",
                &["04:00", "05:00", "06:00", "07:00"],
            ),
            (
                "Australia/Lord_Howe",
                "*/15 * * * *",
                "2026-10-03T15:00:00Z",
                "2026-10-03T16:00:00Z",
                &["15:00", "15:15", "15:30", "15:45"],
            ),
        ] {
            assert_eq!(
                firings(cron, zone, from, until),
                expected,
                "{cron} in {zone} from {from}"
            );
        }
    }

    /// Every minute is every minute, whatever the clocks do.
    #[test]
    fn every_minute_fires_every_minute_in_these_nights() {
        for (zone, from) in [
            ("Europe/Berlin", "2026-03-28T20:00:00Z"),
            ("Europe/Berlin", "2026-10-24T20:00:00Z"),
            ("America/New_York", "2026-03-08T00:00:00Z"),
            ("America/New_York", "2026-11-01T00:00:00Z"),
            ("Australia/Lord_Howe", "2026-10-03T10:00:00Z"),
            ("Australia/Lord_Howe", "2026-04-04T10:00:00Z"),
        ] {
            let from = ms(from);
            let all = timetable("* * * * *", zone).upcoming(from - 1, 1440);
            assert!(
                all.iter().copied().eq((0..1440).map(|n| from + n * MINUTE)),
                "{zone}"
            );
        }
    }

    #[test]
    fn it_fires_from_its_start_until_its_end_both_included() {
        let at = ms("2026-06-01T10:00:00Z");
        let between = |from, until| {
            Timetable::new("0 * * * *", "UTC", from, until)
                .unwrap()
                .upcoming(at - 1, 3)
        };
        let hour = 60 * MINUTE;
        assert_eq!(between(None, None), [at, at + hour, at + 2 * hour]);
        assert_eq!(between(Some(at + hour), None)[0], at + hour);
        assert_eq!(between(Some(at + hour + 1), None)[0], at + 2 * hour);
        assert_eq!(between(None, Some(at + hour)), [at, at + hour]);
        assert_eq!(between(None, Some(at + hour - 1)), [at]);
        assert!(between(None, Some(at - 1)).is_empty());
    }

    fn plan(cron: &str, overlap: Overlap) -> Plan {
        Plan {
            cron: cron.to_owned(),
            timezone: "UTC".to_owned(),
            start_at: None,
            end_at: None,
            overlap,
            active: true,
        }
    }

    fn head(cron: &str, overlap: Overlap, now: i64) -> (ScheduleHead, Timetable) {
        let plan = plan(cron, overlap);
        let timetable = plan.timetable().unwrap();
        (
            ScheduleHead::new(Uuid::from_u128(1), Uuid::from_u128(2), plan, &timetable, now),
            timetable,
        )
    }

    #[test]
    fn a_firing_in_time_stands_for_itself_and_a_late_one_for_what_was_missed() {
        let begin = ms("2026-06-01T10:00:00Z");
        let (head, timetable) = head("* * * * *", Overlap::Allow, begin - 1);
        let due = |now: i64| {
            head.due(&timetable, now)
                .map(|due| ((due.at - begin) / MINUTE, due.missed, due.missed_since))
        };
        assert_eq!(due(begin - 1), None);
        assert_eq!(due(begin), Some((0, 0, None)));
        // A tick that came a little late finds two, one after the other.
        assert_eq!(due(begin + ON_TIME_MS - 1), Some((0, 0, None)));
        assert_eq!(due(begin + ON_TIME_MS), Some((2, 2, Some(begin))));
        assert_eq!(due(begin + 60 * MINUTE), Some((60, 60, Some(begin))));
        // Months later the count ends, but not the firing.
        let late = due(begin + 100 * 24 * 60 * MINUTE).unwrap();
        assert_eq!((late.0, late.2), (100 * 24 * 60, Some(begin)));
        assert_eq!(late.1, 35 * 24 * 60, "what is further back counts as one");

        let (monthly, every) = self::head("0 0 1 */2 *", Overlap::Allow, ms("2026-02-15T00:00:00Z"));
        let late = monthly.due(&every, ms("2026-04-20T00:00:00Z"));
        assert_eq!(
            late,
            Some(Due::at(ms("2026-03-01T00:00:00Z"))),
            "alone, however late"
        );

        let (daily, timetable) = self::head("0 10 * * *", Overlap::Allow, begin - 1);
        let late = daily.due(&timetable, begin + 8 * 60 * MINUTE);
        assert_eq!(late, Some(Due::at(begin)), "a late one is none that was missed");
        let fired = daily.decided(
            Decision::Start(late.unwrap()),
            None,
            &[],
            &timetable,
            begin + 8 * 60 * MINUTE,
        );
        assert_eq!(fired.next_fire_at, Some(begin + 24 * 60 * MINUTE));
    }

    #[test]
    fn a_run_that_is_under_way_is_dealt_with_as_the_policy_says() {
        let begin = ms("2026-06-01T10:00:00Z");
        let (one, two) = (Due::at(begin), Due::at(begin + MINUTE));
        let of = |overlap, waiting| ScheduleHead {
            waiting,
            ..head("* * * * *", overlap, begin - 1).0
        };
        for (overlap, waiting, due, busy, expected) in [
            (Overlap::Skip, None, Some(one), false, Decision::Start(one)),
            (Overlap::Skip, None, None, false, Decision::Nothing),
            (Overlap::Allow, None, Some(one), true, Decision::Start(one)),
            (Overlap::Queue, None, Some(one), true, Decision::Wait(one)),
            (Overlap::Queue, Some(one), None, true, Decision::Nothing),
            (Overlap::Queue, Some(one), Some(two), false, Decision::Start(one)),
            // The policy was changed while one waited.
            (Overlap::Allow, Some(one), Some(two), true, Decision::Start(one)),
        ] {
            assert_eq!(
                of(overlap, waiting).decide(due, busy),
                expected,
                "{overlap:?} {waiting:?} {due:?} {busy}"
            );
        }
        for (overlap, waiting) in [
            (Overlap::Skip, None),
            (Overlap::Skip, Some(one)),
            (Overlap::Queue, Some(one)),
        ] {
            assert!(
                matches!(of(overlap, waiting).decide(Some(two), true), Decision::Skip(due, _) if due == two)
            );
        }
    }

    #[test]
    fn a_pause_drops_what_waits_and_nothing_is_caught_up_after_it() {
        let begin = ms("2026-06-01T10:00:00Z");
        let (fresh, timetable) = head("* * * * *", Overlap::Queue, begin - 1);
        let waits = fresh.decided(
            Decision::Wait(Due::at(begin)),
            None,
            &[Uuid::max()],
            &timetable,
            begin,
        );
        assert_eq!((waits.waiting, waits.due_at), (Some(Due::at(begin)), Some(begin)));
        let paused = waits.planned(
            Plan {
                active: false,
                ..plan("* * * * *", Overlap::Queue)
            },
            &timetable,
            begin + 1,
        );
        assert_eq!(
            (paused.waiting, paused.next_fire_at, paused.due_at),
            (None, None, None)
        );
        let hour = begin + 60 * MINUTE;
        let again = paused.planned(plan("* * * * *", Overlap::Queue), &timetable, hour + 1);
        assert_eq!(again.next_fire_at, Some(hour + MINUTE));
        let dropped = waits.dropped(&paused, begin + 1);
        assert_eq!(
            (dropped.len(), dropped[0].due, dropped[0].status),
            (1, Due::at(begin), FiringStatus::Skipped)
        );
        // A clock that was ahead has fired a time that is still to come by another clock.
        let ahead = fresh.decided(Decision::Start(Due::at(begin)), None, &[], &timetable, begin);
        let changed = ahead.planned(plan("* * * * *", Overlap::Queue), &timetable, begin - 500);
        assert_eq!(changed.next_fire_at, Some(begin + MINUTE));
    }

    #[test]
    fn what_is_due_survives_a_change_of_anything_but_its_time() {
        let begin = ms("2026-06-01T10:00:00Z");
        let (head, timetable) = head("0 10 * * *", Overlap::Skip, begin - 1);
        let now = begin + 10_000;
        let renamed = head.planned(plan("0 10 * * *", Overlap::Allow), &timetable, now);
        assert_eq!(
            (renamed.next_fire_at, renamed.overlap),
            (Some(begin), Overlap::Allow)
        );
        assert!(head.dropped(&renamed, now).is_empty());
        let other = plan("0 11 * * *", Overlap::Skip);
        let moved = head.planned(other.clone(), &other.timetable().unwrap(), now);
        assert_eq!(moved.next_fire_at, Some(begin + 60 * MINUTE));
        let dropped = head.dropped(&moved, now);
        assert_eq!((dropped.len(), dropped[0].due), (1, Due::at(begin)));
        // What was missed before it is not forgotten.
        let late = moved.next_fire_at.unwrap() + 24 * 60 * MINUTE;
        let paused = moved.planned(
            Plan {
                active: false,
                ..other.clone()
            },
            &other.timetable().unwrap(),
            late,
        );
        let dropped = moved.dropped(&paused, late);
        assert_eq!((dropped.len(), dropped[0].due.missed), (1, 1));
        let sooner = head.planned(other.clone(), &other.timetable().unwrap(), begin - 1);
        assert!(head.dropped(&sooner, begin - 1).is_empty(), "it was not due");
    }

    #[test]
    fn who_only_looked_looks_again_with_those_that_are_due_next() {
        let begin = ms("2026-06-01T10:00:00Z");
        let (head, timetable) = head("0 * * * *", Overlap::Skip, begin - 1);
        let first = head.refused(begin + 500);
        assert_eq!(
            (first.due_at, first.tried_since),
            (Some(begin + MINUTE), Some(begin + 500))
        );
        assert_eq!(first.due(&timetable, begin + MINUTE), Some(Due::at(begin)));
        let second = first.refused(begin + MINUTE + 700);
        assert_eq!(
            (second.due_at, second.tried_since),
            (Some(begin + 2 * MINUTE), Some(begin + 500))
        );
        let decided = second.decided(
            Decision::Start(Due::at(begin)),
            None,
            &[],
            &timetable,
            begin + 2 * MINUTE,
        );
        assert_eq!(
            (decided.tried_since, decided.due_at),
            (None, Some(begin + 60 * MINUTE))
        );
    }

    #[test]
    fn a_head_names_so_many_runs_and_not_more() {
        let (mut head, timetable) = head("* * * * *", Overlap::Allow, NOW);
        for n in 1..200_u128 {
            let open = head.open.clone();
            head = head.decided(
                Decision::Nothing,
                Some(Uuid::from_u128(n)),
                &open,
                &timetable,
                NOW,
            );
            head = head.run_now(Uuid::from_u128(n), &head.open, NOW);
        }
        assert_eq!(head.open.len(), OPEN);
        assert_eq!(head.open.last(), Some(&Uuid::from_u128(199)));
    }

    proptest! {
        /// Whenever the ticks come, every firing is decided once or counted as missed once, in order.
        #[test]
        fn no_firing_is_lost_or_decided_twice(
            cron in prop::sample::select(vec!["* * * * *", "*/7 * * * *", "0 */3 * * *", "30 2 * * *"]),
            overlap in prop::sample::select(vec![Overlap::Skip, Overlap::Queue, Overlap::Allow]),
            ticks in prop::collection::vec((1_i64..400_000, any::<bool>()), 1..60),
        ) {
            let (mut head, timetable) = head(cron, overlap, NOW);
            let (mut decided, mut missed, mut now) = (BTreeSet::new(), 0_u32, NOW);
            for (wait, busy) in ticks {
                now += wait;
                for _ in 0..20 {
                    let due = head.due(&timetable, now);
                    let decision = head.decide(due, busy);
                    let next = head.decided(decision, None, &[], &timetable, now);
                    match decision {
                        Decision::Nothing => break,
                        // Decided before, when it began to wait.
                        Decision::Start(due) if head.waiting == Some(due) => {}
                        Decision::Start(due) | Decision::Wait(due) | Decision::Skip(due, _) => {
                            prop_assert!(decided.insert(due.at), "{} was decided twice", due.at);
                            prop_assert!(due.at <= now);
                            missed += due.missed;
                        }
                    }
                    prop_assert_eq!(next.version, head.version + 1);
                    head = next;
                }
                prop_assert!(head.next_fire_at.is_none_or(|at| at > now), "all that is due was decided");
            }
            let all = timetable.upcoming(NOW, 1_000_000.min(usize::try_from((now - NOW) / MINUTE + 1).unwrap()));
            let past = all.into_iter().filter(|&at| at <= now).count();
            prop_assert_eq!(decided.len() + missed as usize, past);
        }
    }
}
