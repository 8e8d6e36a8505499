//! Looks after what is owed and due, once a minute: everything that `relay` missed, whose message was lost or whose worker
//! died. Alone it would finish every run, later.
//!
//! An item that waits on a queue may only have to wait for long: its message is there still, and a second one would be received
//! for nothing. So as many are put on their queue again as wait for longer than they should and have no message there, the
//! oldest of each run in turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use ringback_shared::{
    admission,
    clock::Deadline,
    context::{BoxError, Context},
    lifecycle::{Hook, Item},
    progress,
    queue::WorkQueue,
    store::{DueKey, RunHead},
    telemetry,
};
use tracing::Instrument;
use uuid::Uuid;

/// How many due rows are taken from each partition of the index in one go.
const LIMIT: i32 = 500;
/// How many items are put on their queues in one go.
const SEND: usize = 50;
/// How many rows are looked after at once.
const CONCURRENCY: usize = 8;
/// After being due for so long an item is put on its queue again even if the queue holds messages for all that wait, in
/// milliseconds: they may be others', if there is always more to do than is done.
const PAST_BELIEF_MS: i64 = 24 * 3_600_000;

/// The longest that one run is expanded or canceled, or one organization given slots, in one go: what is left goes on with the
/// records that it makes.
const TURN: Duration = Duration::from_secs(5);

/// What is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What is due.
    Due,
    /// Everything that is owed, with all leases void: for the start of a process that owns the table alone.
    Everything,
}

/// Looks after everything in `scope`. A row that fails is logged and found again by the next sweep.
///
/// # Errors
/// When the index cannot be read.
pub async fn handle(ctx: &Context, scope: Scope, deadline: Deadline) -> Result<(), BoxError> {
    let now = (scope == Scope::Due).then(|| ctx.clock.now_ms());
    let mut due = ctx.store.due(now, LIMIT).await?;
    let mut missed = Vec::new();
    for queue in WorkQueue::ALL {
        let waiting = ctx.store.due_on(queue, now, LIMIT).await?;
        match now {
            Some(now) => missed.extend(without_message(ctx, queue, waiting, now).await),
            // The queues are as new as the process.
            None => due.extend(waiting),
        }
    }
    let found = due.len() + missed.len();
    // What waits for slots is on no queue: each organization's slots are looked at once.
    let waiting: BTreeSet<Uuid> = due.iter().filter_map(DueKey::waiting).collect();
    let rows = due.into_iter().filter(|due| due.waiting().is_none());
    let rows = rows.map(|due| (due, false));
    let mut swept = stream::iter(rows.chain(missed.into_iter().map(|due| (due, true))))
        .map(|(due, missed)| async move {
            let done = async {
                let done = if missed {
                    miss(ctx, &due).await
                } else {
                    look_after(ctx, &due, scope, deadline).await
                };
                done.inspect_err(|error| tracing::warn!(?due, %error, "not swept"))
            };
            done.instrument(telemetry::due_span(&due)).await
        })
        .buffer_unordered(CONCURRENCY)
        .chunks(SEND);
    let mut failed = 0;
    while let Some(looked_after) = swept.next().await {
        failed += looked_after.iter().filter(|one| one.is_err()).count();
        let (mut items, mut hooks) = (Vec::new(), Vec::new());
        for found in looked_after.into_iter().flatten().flatten() {
            match found {
                Work::Item(item) => items.push(*item),
                Work::Hook(hook) => hooks.push(*hook),
            }
        }
        // Their next look is ahead: what is not taken now is found again then.
        let now = ctx.clock.now_ms();
        for sent in [
            ctx.queues.send(&items, now).await,
            ctx.queues.send_hooks(&hooks, now).await,
        ] {
            if let Err(error) = sent {
                tracing::warn!(%error, "not all of what is owed was put on its queue");
                failed += 1;
            }
        }
    }
    for org in waiting {
        if let Err(error) = admission::sweep(ctx, org, turn(deadline)).await {
            tracing::warn!(%org, %error, "not swept");
            failed += 1;
        }
    }
    if found > 0 {
        tracing::info!(found, failed, "swept");
    }
    Ok(())
}

/// What is to be put on its queue.
enum Work {
    Item(Box<Item>),
    Hook(Box<Hook>),
}

/// Those of the items that wait on `queue` for longer than they should for which it holds no message.
///
/// Every item that waits has its message on the queue. So if there are no fewer messages than such items, none of them is lost,
/// however long they take. If there are fewer, some have none, and the queue does not say which. So many as are missing are
/// taken, the oldest of each run in turn: a queue that is fair between organizations hands out a quiet one's messages early, and
/// then its old items are those without, while those of a run with a long backlog may be old and have theirs.
async fn without_message(ctx: &Context, queue: WorkQueue, mut waiting: Vec<DueKey>, now: i64) -> Vec<DueKey> {
    if waiting.is_empty() {
        return waiting;
    }
    let messages = match ctx.queues.backlog(queue).await {
        Ok(messages) => messages,
        Err(error) => {
            // What cannot be asked could not be sent to either.
            tracing::warn!(?queue, %error, "not swept");
            return Vec::new();
        }
    };
    waiting.sort_unstable_by(|a, b| a.by_age().cmp(&b.by_age()));
    let without = waiting.len().saturating_sub(messages);
    let past_belief = waiting.partition_point(|due| due.due_at <= now - PAST_BELIEF_MS);
    let mut of_run: BTreeMap<Option<Uuid>, usize> = BTreeMap::new();
    // Stable, so that the oldest of a run goes first in its turn as well.
    waiting.sort_by_cached_key(|due| {
        let turns = of_run.entry(due.item().map(|at| at.run)).or_default();
        *turns += 1;
        *turns
    });
    waiting.truncate(without.max(past_belief));
    waiting
}

/// Looks after an item that waits without a message; gives it if that is certain.
async fn miss(ctx: &Context, due: &DueKey) -> Result<Option<Work>, BoxError> {
    let Some(at) = due.item() else {
        return Ok(None);
    };
    let item = progress::miss(ctx, at).await?;
    Ok(item.map(|item| Work::Item(Box::new(item))))
}

fn turn(deadline: Deadline) -> Deadline {
    Deadline::after(deadline.left().min(TURN))
}

/// Looks after one row; gives what is to be put on its queue.
async fn look_after(
    ctx: &Context,
    due: &DueKey,
    scope: Scope,
    deadline: Deadline,
) -> Result<Option<Work>, BoxError> {
    let void_leases = scope == Scope::Everything;
    if deadline.left() <= progress::MARGIN {
        // The next sweep finds it.
        return Ok(None);
    }
    if let Some(at) = due.item() {
        let item = progress::requeue(ctx, at, void_leases).await?;
        return Ok(item.map(|item| Work::Item(Box::new(item))));
    }
    if let Some(key) = due.hook() {
        let hook = progress::requeue_hook(ctx, &key, void_leases).await?;
        return Ok(hook.map(|hook| Work::Hook(Box::new(hook))));
    }
    let Some(head) = ctx.store.due_run(due).await? else {
        return Ok(None);
    };
    // The next look is moved forward first, so that a run that cannot be helped does not hold up the others.
    let now = ctx.clock.now_ms();
    let head = ctx
        .store
        .change_run(head, now, |head: &mut RunHead| {
            head.due_at.is_some_and(|at| at <= now) || (scope == Scope::Everything && head.due_at.is_some())
        })
        .await?;
    let head = progress::advance(ctx, head, turn(deadline)).await?;
    progress::recount_all(ctx, &head, turn(deadline)).await?;
    Ok(None)
}
