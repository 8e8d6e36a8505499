//! Schedules: create, read, list, change, delete; the history of their firings, and how their runs came out.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::iso,
    context::Context,
    costs, ids,
    listeners::Outcome,
    models::{
        Object,
        schedule::{
            CreateSchedule, FiringStatus, FiringsMetadata, ScheduleFiring, ScheduleFirings, ScheduleTrend,
            TrendPoint, UpdateSchedule,
        },
    },
    notices,
    results::Report,
    schedule::{Firing, Plan, ScheduleHead, Timetable},
    store::{Definition, HookKey, Kind, Receivers, RunHead, RunKind},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    bounded::Entries,
    definitions, filters,
    http::{ApiError, Request, Response},
    lists::{self, ListRequest},
    runs,
};

/// How many of the next firings are shown.
const SHOWN: usize = 5;
/// How many points a trend has at most, and how many unless the request says so.
pub(crate) const MAX_POINTS: usize = 100;
const POINTS: usize = 30;
/// How many firings are looked at for them, and how many at a time.
const SEEN: usize = 5_000;
const PIECE: usize = 500;
/// How many runs are counted at once.
const READS: usize = 16;

/// Somebody else wrote the schedule.
pub(crate) fn overtaken() -> ApiError {
    ApiError::new(
        409,
        "the schedule fired or was changed at the same time; read it and try again",
    )
}

/// The schedule that a client names: its definition, what is in it, and its head.
pub(crate) async fn stored(
    ctx: &Context,
    org: Uuid,
    id: &str,
) -> Result<(Definition, CreateSchedule, ScheduleHead), ApiError> {
    let definition = definitions::found(ctx, org, Kind::Schedule, id).await?;
    let head = ctx.store.schedule_head(definition.id).await?;
    let head = head
        .filter(|head| !head.deleted)
        .ok_or_else(|| ApiError::not_found("Schedule", id))?;
    let asked =
        serde_json::from_value(definition.body.clone()).map_err(|error| ApiError::internal(&error))?;
    Ok((definition, asked, head))
}

/// A schedule as clients see it: with its next firings.
fn view(mut body: Value, now: i64) -> Value {
    let asked = serde_json::from_value::<CreateSchedule>(body.clone());
    let plan = asked.map(|asked| asked.plan());
    let upcoming = match plan {
        Ok(plan) if plan.active => plan
            .timetable()
            .map(|timetable| timetable.upcoming(now, SHOWN))
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    body["nextFirings"] = upcoming.into_iter().map(iso).collect();
    body
}

/// What a client sends for a schedule, checked, without what only Ringback writes.
fn checked(body: Value) -> Result<Object, ApiError> {
    let mut fields = definitions::checked::<CreateSchedule>(definitions::without_own(body))?;
    fields.remove("nextFirings");
    Ok(fields)
}

/// What is in a schedule, and when it fires.
fn read_fields(fields: &Object) -> Result<(CreateSchedule, Plan, Timetable), ApiError> {
    let asked: CreateSchedule =
        serde_json::from_value(Value::Object(fields.clone())).map_err(|error| ApiError::internal(&error))?;
    let plan = asked.plan();
    let timetable = plan
        .timetable()
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok((asked, plan, timetable))
}

/// A schedule that is not paused fires some time after `now`.
fn must_fire(plan: &Plan, timetable: &Timetable, now: i64) -> Result<(), ApiError> {
    if plan.active && timetable.next_after(now).is_none() {
        return Err(ApiError::bad_request(
            "the schedule would never fire: no time from now on fits cron, startAt and endAt; change one of them, or set \
             active to false",
        ));
    }
    Ok(())
}

/// A run of the schedule could be started now, were it not for what is spent.
async fn check_run(ctx: &Context, org: Uuid, asked: &CreateSchedule, now: i64) -> Result<(), ApiError> {
    let new = runs::prepare(ctx, org, asked.run(), now).await?;
    runs::check_told(&new)
}

/// Creates a schedule. Whatever it names is looked up at once, so that what is wrong is said to somebody.
pub(crate) async fn create(ctx: &Context, org: Uuid, body: Value) -> Result<Response, ApiError> {
    let fields = checked(runs::without_ignored(body))?;
    let now = ctx.clock.now_ms();
    let (asked, plan, timetable) = read_fields(&fields)?;
    must_fire(&plan, &timetable, now)?;
    check_run(ctx, org, &asked, now).await?;
    let id = ids::new_id(now);
    let stored = definitions::whole(org, id, fields, now);
    let head = ScheduleHead::new(id, org, plan, &timetable, now);
    ctx.store.create_schedule(&head, stored.clone()).await?;
    Response::created(view(stored, now))
}

/// Reads a schedule.
pub(crate) async fn read(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let stored = definitions::found(ctx, org, Kind::Schedule, id).await?;
    Response::ok(view(stored.body, ctx.clock.now_ms()))
}

/// Lists schedules.
pub(crate) async fn list(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let wanted = ListRequest::of_definitions(Kind::Schedule, &request.query)?;
    let now = ctx.clock.now_ms();
    let mut page = Entries::of_definitions();
    let show = |stored: Definition| page.push(view(stored.body, now));
    let found = filters::definitions(ctx, org, Kind::Schedule, &wanted, &request.query, show).await?;
    wanted.answer(page.into_values(), found)
}

/// Changes the fields of a schedule that the body names; `null` takes one away. A paused schedule drops the firing that waits.
pub(crate) async fn update(ctx: &Context, org: Uuid, id: &str, body: Value) -> Result<Response, ApiError> {
    let (read, _, head) = stored(ctx, org, id).await?;
    let body = definitions::without_own(runs::without_ignored(body));
    let changes = definitions::checked::<UpdateSchedule>(body)?;
    let mut fields = checked(Value::Object(definitions::changed(&read.body, &changes)))?;
    let now = ctx.clock.now_ms();
    let (asked, plan, timetable) = read_fields(&fields)?;
    if !head.fires_by(&plan) {
        must_fire(&plan, &timetable, now)?;
    }
    let run = [
        "simulations",
        "target",
        "transport",
        "iterations",
        "concurrencyLimit",
        "notify",
    ];
    if run.iter().any(|&field| changes.contains_key(field)) {
        check_run(ctx, org, &asked, now).await?;
    }
    for own in ["id", "orgId", "createdAt"] {
        if let Some(value) = read.body.get(own) {
            fields.insert(own.to_owned(), value.clone());
        }
    }
    fields.insert("updatedAt".to_owned(), json!(iso(now)));
    let after = head.planned(plan, &timetable, now);
    let dropped = head.dropped(&after, now);
    let changed = Value::Object(fields);
    let written = ctx
        .store
        .update_schedule(&read, changed.clone(), &head, &after, &dropped);
    match written.await {
        Err(error) if error.is_duplicate() => Err(overtaken()),
        written => {
            written?;
            Response::ok(view(changed, now))
        }
    }
}

/// Deletes a schedule. Its history goes with it; its runs stay.
pub(crate) async fn delete(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let (read, _, head) = stored(ctx, org, id).await?;
    let now = ctx.clock.now_ms();
    match ctx.store.remove_schedule(&read, &head, &head.removed(now)).await {
        Err(error) if error.is_duplicate() => Err(overtaken()),
        deleted => {
            deleted?;
            Response::ok(view(read.body, now))
        }
    }
}

/// The history of a schedule.
pub(crate) async fn firings(
    ctx: &Context,
    org: Uuid,
    id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let (stored, asked, _) = stored(ctx, org, id).await?;
    let schedule = stored.id;
    let query = &request.query;
    let limit = lists::whole(query, "limit", 100, 1..=lists::MAX_LIMIT)?;
    let newest_first = match query.get("sortOrder") {
        None | Some("DESC") => true,
        Some("ASC") => false,
        Some(_) => return Err(ApiError::bad_request("sortOrder must be ASC or DESC")),
    };
    let cursor = query.get("cursor");
    let place = |text: &str| {
        let (at, run) = text.split_once('_').unwrap_or((text, ""));
        at.len() == 15
            && at.bytes().all(|b| b.is_ascii_digit())
            && (run.is_empty() || Uuid::try_parse(run).is_ok())
    };
    if cursor.is_some_and(|text| !place(text)) {
        return Err(ApiError::bad_request(
            "cursor is not one of this list's; pass back nextCursor as it came",
        ));
    }
    // One more says whether there are more.
    let mut found = ctx
        .store
        .firings(schedule, newest_first, cursor, limit + 1)
        .await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|last| last.place.clone()).filter(|_| more);
    let runs: Vec<Uuid> = found.iter().filter_map(|kept| kept.firing.run).collect();
    let heads = ctx.store.runs(org, RunKind::Simulation, &runs).await?;
    let receivers = &Receivers::of(asked.notify);
    let results = stream::iter(found)
        .map(|kept| shown(ctx, schedule, kept.firing, &heads, receivers))
        .buffered(READS)
        .try_collect()
        .await?;
    Response::ok(ScheduleFirings {
        results,
        metadata: FiringsMetadata {
            items_per_page: limit,
            has_next_page: more,
            next_cursor: next,
        },
    })
}

async fn shown(
    ctx: &Context,
    schedule: Uuid,
    firing: Firing,
    heads: &BTreeMap<Uuid, RunHead>,
    receivers: &Receivers,
) -> Result<ScheduleFiring, ApiError> {
    let hook = match firing.status {
        FiringStatus::Failed => {
            ctx.store
                .hook(&HookKey::of_firing(schedule, firing.due.at))
                .await?
        }
        _ => None,
    };
    let head = firing.run.and_then(|run| heads.get(&run));
    let item_counts = match head {
        Some(head) => Some(runs::item_counts(head.total, &runs::tally(ctx, head).await?)),
        None => None,
    };
    Ok(ScheduleFiring {
        scheduled_for: iso(firing.due.at),
        trigger: firing.trigger,
        status: firing.status,
        reason: firing.reason,
        decided_at: iso(firing.decided_at),
        missed: firing.due.missed,
        missed_since: firing.due.missed_since.map(iso),
        run_id: firing.run.map(|run| run.to_string()),
        run_status: head.map(runs::status),
        item_counts,
        notices: hook.map(|hook| notices::progress(&hook, receivers, false, Outcome::default())),
    })
}

/// How the newest runs of a schedule came out.
pub(crate) async fn trend(
    ctx: &Context,
    org: Uuid,
    id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let schedule = definitions::found(ctx, org, Kind::Schedule, id).await?.id;
    let limit = lists::whole(&request.query, "limit", POINTS, 1..=MAX_POINTS)?;
    let (mut started, mut seen, mut after) = (Vec::new(), 0, None::<String>);
    while started.len() < limit && seen < SEEN {
        let some = ctx.store.firings(schedule, true, after.as_deref(), PIECE).await?;
        let Some(last) = some.last() else { break };
        after = Some(last.place.clone());
        seen += some.len();
        started.extend(some.into_iter().filter_map(|kept| {
            let run = kept.firing.run?;
            Some((kept.firing.due.at, run))
        }));
    }
    started.truncate(limit);
    started.reverse();
    let runs: Vec<Uuid> = started.iter().map(|(_, run)| *run).collect();
    let (heads, reports) = tokio::try_join!(
        ctx.store.runs(org, RunKind::Simulation, &runs),
        Report::all_kept(&ctx.store, &runs)
    )?;
    let mut points = Vec::with_capacity(started.len());
    for (at, run) in started {
        let Some(head) = heads.get(&run) else { continue };
        let tally = runs::tally(ctx, head).await?;
        let report = reports.get(&run);
        points.push(TrendPoint {
            scheduled_for: iso(at),
            run_id: run.to_string(),
            run_status: runs::status(head),
            total: head.total,
            passed: tally.passed,
            failed: tally.failed,
            canceled: tally.canceled,
            errored: report.map(|report| report.trials.errored),
            pass_rate: report.and_then(|report| report.trials.pass_rate()),
            latency: report.and_then(|report| report.latency),
            cost: costs::dollars(tally.costs.cost),
            costs_unknown: tally.costs.unknown.into_iter().collect(),
        });
    }
    Response::ok(ScheduleTrend {
        schedule_id: schedule.to_string(),
        points,
    })
}
