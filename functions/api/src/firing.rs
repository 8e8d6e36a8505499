//! Firings: what becomes of a schedule whose time has come, and of one that somebody runs by hand.
//!
//! Everything that is decided here is one transaction: the schedule's head moves on if it is as it was read, and with it the run is
//! put, or the reason why there is none. Whoever comes second changes nothing and looks again.

use std::time::Duration;

use ringback_shared::{
    clock::Deadline,
    context::{BoxError, Context},
    lifecycle::{Failure, Hook},
    models::schedule::{CreateSchedule, FiringStatus, Overlap, Trigger},
    notices,
    progress::MARGIN,
    schedule::{Decision, Due, Firing, ScheduleHead, Timetable},
    store::{Created, Kind, NewFiring, NewRun, Receivers, RunKind, RunState, StoreError},
};
use uuid::Uuid;

use crate::{
    bounded, cekura, hook_secrets,
    http::{ApiError, Request, Response},
    idempotency, runs, schedules,
};

/// How often one schedule is looked at in one go: each look decides one firing, or finds that somebody else did.
const LOOKS: u32 = 8;
/// How long a run that cannot be started for a reason that may pass is tried again, in milliseconds.
const GIVE_UP_MS: i64 = 15 * 60_000;
/// How often a run by hand is tried again because the schedule was written meanwhile.
const TRIES: u32 = 5;
/// How many rows of a deleted schedule are taken away in one go.
const CLEARED: usize = 500;

/// Looks after a schedule: decides its firings that are due, starts the one that waits if it can, or takes away what is left of a
/// schedule that was deleted. Nothing is done twice, however many do this at the same time.
///
/// # Errors
/// When the table cannot be read or written; what was not decided is found again by the next tick.
pub async fn look_after(ctx: &Context, schedule: Uuid, deadline: Deadline) -> Result<(), BoxError> {
    for _ in 0..LOOKS {
        if deadline.left() <= MARGIN {
            break;
        }
        let Some(head) = ctx.store.schedule_head(schedule).await? else {
            break;
        };
        if head.deleted {
            if ctx.store.clear_schedule(schedule, CLEARED).await? {
                break;
            }
            continue;
        }
        if !look(ctx, head).await? {
            break;
        }
    }
    Ok(())
}

/// Decides the firing that is due, or that waits. `false` when there is nothing to be decided, at least for now.
async fn look(ctx: &Context, head: ScheduleHead) -> Result<bool, BoxError> {
    let now = ctx.clock.now_ms();
    let timetable = head.timetable()?;
    let due = head.due(&timetable, now);
    if due.is_none() && head.waiting.is_none() {
        return Ok(false);
    }
    let open = match head.overlap {
        // Nobody asks.
        Overlap::Allow if head.waiting.is_none() => head.open.clone(),
        _ => still_open(ctx, &head).await?,
    };
    let decision = head.decide(due, !open.is_empty());
    let look = Look {
        ctx,
        head: &head,
        timetable: &timetable,
        decision,
        open: &open,
        now,
    };
    match decision {
        Decision::Nothing => {
            // It waits for a run that goes on. Looked at with those that are due next, it stands before none of them.
            ctx.store.put_schedule_head(&head, &head.looked(now)).await?;
            Ok(false)
        }
        Decision::Start(due) => look.start(due).await,
        Decision::Wait(due) => look.without_run(due, FiringStatus::Waiting, None).await,
        Decision::Skip(due, why) => look.without_run(due, FiringStatus::Skipped, Some(why)).await,
    }
}

/// Those of a schedule's runs that have not ended.
async fn still_open(ctx: &Context, head: &ScheduleHead) -> Result<Vec<Uuid>, StoreError> {
    let heads = ctx.store.runs(head.org, RunKind::Simulation, &head.open).await?;
    let open = heads.into_values().filter(|run| run.state != RunState::Ended);
    Ok(open.map(|run| run.id).collect())
}

/// A look at a schedule for which something is to be decided.
struct Look<'a> {
    ctx: &'a Context,
    head: &'a ScheduleHead,
    timetable: &'a Timetable,
    decision: Decision,
    open: &'a [Uuid],
    now: i64,
}

impl Look<'_> {
    fn after(&self, run: Option<Uuid>) -> ScheduleHead {
        self.head
            .decided(self.decision, run, self.open, self.timetable, self.now)
    }

    /// Notes that no run is started, at least not yet.
    async fn without_run(
        &self,
        due: Due,
        status: FiringStatus,
        reason: Option<&str>,
    ) -> Result<bool, BoxError> {
        let firing = Firing::without_run(due, status, reason, self.now);
        let after = self.after(None);
        self.ctx
            .store
            .decide_firing(self.head, &after, &firing, None)
            .await?;
        Ok(true)
    }

    async fn start(&self, due: Due) -> Result<bool, BoxError> {
        let (ctx, head) = (self.ctx, self.head);
        let Some(stored) = ctx.store.definition(head.org, Kind::Schedule, head.id).await? else {
            // It was deleted a moment ago.
            return Ok(true);
        };
        let wanted: CreateSchedule = serde_json::from_value(stored.body)?;
        let notify = wanted.notify.clone();
        match prepare(ctx, head.org, &wanted, self.now).await {
            Ok(new) => {
                let firing = Firing::started(due, Trigger::Cron, new.id, self.now);
                let after = self.after(Some(new.id));
                let new = fired(new, head, after, firing);
                if let Created::New(run) = ctx.store.create_run(&new, self.now).await? {
                    runs::log_created(&run);
                }
                Ok(true)
            }
            Err(refused) => {
                let since = head.tried_since.unwrap_or(self.now);
                if refused.is_transient() && self.now - since < GIVE_UP_MS {
                    tracing::warn!(reason = refused.text(), "a schedule could not start a run yet");
                    ctx.store.put_schedule_head(head, &head.refused(self.now)).await?;
                    return Ok(false);
                }
                let reason = Failure::new(&refused.text(), None).reason;
                tracing::warn!(reason, "a schedule could not start a run");
                let receivers = Receivers::of(notify);
                let told = match notices::actions(&receivers, false).is_empty() {
                    true => None,
                    false => {
                        hook_secrets::first(ctx, head.org)
                            .await
                            .map_err(|error| error.text())?;
                        Some(Hook::of_firing(head.org, head.id, due.at, &reason, self.now))
                    }
                };
                let firing = Firing::without_run(due, FiringStatus::Failed, Some(&reason), self.now);
                let after = self.after(None);
                ctx.store
                    .decide_firing(head, &after, &firing, told.as_ref())
                    .await?;
                Ok(true)
            }
        }
    }
}

/// The run that a schedule starts, by its definitions as they are now.
async fn prepare(ctx: &Context, org: Uuid, wanted: &CreateSchedule, now: i64) -> Result<NewRun, ApiError> {
    let now_wanted = cekura::as_of_now(ctx, org, wanted).await?;
    let mut new = runs::prepare(ctx, org, now_wanted.as_ref().unwrap_or(wanted).run(), now).await?;
    cekura::listen(ctx, org, wanted, &mut new).await?;
    runs::admit(ctx, &new, now).await?;
    Ok(new)
}

fn fired(new: NewRun, before: &ScheduleHead, after: ScheduleHead, firing: Firing) -> NewRun {
    NewRun {
        firing: Some(NewFiring {
            before: before.clone(),
            after,
            firing,
        }),
        ..new
    }
}

/// Starts a run of a schedule now, whatever else is under way.
pub(crate) async fn run_now(
    ctx: &Context,
    org: Uuid,
    id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let idempotency = idempotency::of(request)?;
    for _ in 0..TRIES {
        let now = ctx.clock.now_ms();
        if let Some(answer) = runs::repeated(ctx, org, idempotency.as_ref(), now).await? {
            return Ok(answer);
        }
        let (_, wanted, head) = schedules::stored(ctx, org, id).await?;
        let new = match prepare(ctx, org, &wanted, now).await {
            Ok(new) => new,
            Err(refused) => {
                // What the same request has started meanwhile is answered as ever.
                let before = runs::repeated(ctx, org, idempotency.as_ref(), now).await?;
                return before.ok_or(refused);
            }
        };
        let open = still_open(ctx, &head).await?;
        let firing = Firing::started(Due::at(now), Trigger::Manual, new.id, now);
        let after = head.run_now(new.id, &open, now);
        let new = NewRun {
            idempotency: idempotency.clone(),
            trace: request.trace,
            ..fired(new, &head, after, firing)
        };
        let (head, manifest) = match ctx.store.create_run(&new, now).await? {
            Created::New(head) => {
                runs::log_created(&head);
                (*head, new.manifest)
            }
            Created::Overtaken => {
                // Whoever wrote it is done by now; a moment keeps two of these from meeting again.
                let jitter = Uuid::now_v7().as_u128() % 50;
                tokio::time::sleep(Duration::from_millis(jitter as u64)).await;
                continue;
            }
            before => runs::made_before(ctx, org, RunKind::Simulation, before).await?,
        };
        let answer = runs::created(ctx, head, &manifest)?;
        return Response::created(bounded::run(serde_json::json!(answer)));
    }
    Err(schedules::overtaken())
}
