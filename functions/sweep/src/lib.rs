//! Looks after what is owed and due, once a minute: everything that `relay` missed, whose message was lost or whose worker
//! died. Alone it would finish every run, later.

use futures_util::{StreamExt, stream};
use ringback_shared::{
    clock::Deadline,
    context::{BoxError, Context},
    lifecycle::Item,
    progress,
    store::{DueKey, RunHead},
};

/// How many due rows are taken from each partition of the index in one go.
const LIMIT: i32 = 500;
/// How many items are put on their queues in one go.
const SEND: usize = 50;
/// How many rows are looked after at once.
const CONCURRENCY: usize = 8;

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
    let due = ctx.store.due(now, LIMIT).await?;
    let found = due.len();
    let mut swept = stream::iter(due)
        .map(|due| async move {
            let at = (due.item(), due.run());
            look_after(ctx, due, scope, deadline)
                .await
                .inspect_err(|error| tracing::warn!(?at, %error, "not swept"))
        })
        .buffer_unordered(CONCURRENCY)
        .chunks(SEND);
    let mut failed = 0;
    while let Some(looked_after) = swept.next().await {
        failed += looked_after.iter().filter(|one| one.is_err()).count();
        let items: Vec<Item> = looked_after.into_iter().flatten().flatten().collect();
        // Their next look is ahead: what is not taken now is found again then.
        if let Err(error) = ctx.queues.send(&items, ctx.clock.now_ms()).await {
            tracing::warn!(%error, "not all of what is owed was put on its queue");
            failed += items.len();
        }
    }
    if found > 0 {
        tracing::info!(found, failed, "swept");
    }
    Ok(())
}

/// Looks after one row; gives the item that is to be put on its queue, if it is one.
async fn look_after(
    ctx: &Context,
    due: DueKey,
    scope: Scope,
    deadline: Deadline,
) -> Result<Option<Item>, BoxError> {
    if let Some(at) = due.item() {
        return Ok(progress::requeue(ctx, at, scope == Scope::Everything).await?);
    }
    let Some(head) = ctx.store.due_run(&due).await? else {
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
    let head = progress::advance(ctx, head, deadline).await?;
    progress::recount_all(ctx, &head, deadline).await?;
    Ok(None)
}
