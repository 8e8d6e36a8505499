//! Looks after what is owed and due, once a minute: everything that `relay` missed, whose message was lost or whose worker
//! died. Alone it would finish every run, later.

use futures_util::{StreamExt, stream};
use ringback_shared::{
    clock::Deadline,
    context::{BoxError, Context},
    progress,
    store::{DueKey, RunHead},
};

/// How many due rows are taken from each partition of the index in one go.
const LIMIT: i32 = 500;
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
    let failed = stream::iter(due)
        .map(|due| async move {
            let at = (due.item(), due.run());
            look_after(ctx, due, scope, deadline)
                .await
                .inspect_err(|error| tracing::warn!(?at, %error, "not swept"))
                .is_err()
        })
        .buffer_unordered(CONCURRENCY)
        .filter(|failed| std::future::ready(*failed))
        .count()
        .await;
    if found > 0 {
        tracing::info!(found, failed, "swept");
    }
    Ok(())
}

async fn look_after(ctx: &Context, due: DueKey, scope: Scope, deadline: Deadline) -> Result<(), BoxError> {
    if let Some(at) = due.item() {
        return progress::requeue(ctx, at, scope == Scope::Everything).await;
    }
    let Some(head) = ctx.store.due_run(&due).await? else {
        return Ok(());
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
    Ok(progress::recount_all(ctx, &head, deadline).await?)
}
