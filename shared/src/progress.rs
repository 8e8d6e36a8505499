//! What moves a run forward: expansion, cancellation, recounting, the end. `relay` does it when the stream tells of a
//! change, `sweep` when something has been owed for too long, the API when it must not wait. All of them may do it at once.

use futures_util::{StreamExt, stream};
use uuid::Uuid;

use crate::{
    clock::Deadline,
    context::{BoxError, Context},
    costs::ModelCosts,
    lifecycle::{Facts, Hook, Item, Refused, Tally},
    store::{
        Counted, HookKey, ItemKey, PARTITION, RunHead, RunKey, RunState, StoreError, StoredTally,
        TransitionError,
    },
};

/// Time that is kept back, so that an invocation ends before its deadline.
pub const MARGIN: std::time::Duration = std::time::Duration::from_secs(2);

/// How often the final counts of a run are read anew because somebody wrote them in between.
const RECOST_TRIES: u32 = 10;

/// How many items of a run are canceled at a time: fast enough to be ahead of the workers, and no flood for the table.
const CANCELED_AT_ONCE: usize = 12;

/// Why a run was canceled before which nobody came to an end of telling.
const NEVER_TOLD: &str = "the webhook that is told of the run before it begins was not delivered in time";

/// Does what is owed to a run until nothing but its items' own work is left, or the deadline is near; whoever finds the
/// head next goes on from there.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn advance(ctx: &Context, head: RunHead, deadline: Deadline) -> Result<RunHead, BoxError> {
    if head.is_deletable(ctx.clock.now_ms()) {
        ctx.store.delete_run(&head).await?;
        return Ok(head);
    }
    let mut head = head;
    if head.is_held() {
        let now = ctx.clock.now_ms();
        if head.held_until.is_some_and(|until| until > now) {
            return Ok(head);
        }
        // Whoever was to be told has not come to an end. It does not hang: it is over.
        head = ctx
            .store
            .change_run(head, now, |head| head.withhold(NEVER_TOLD, now))
            .await?;
    }
    let mut head = expand_until(ctx, head, u32::MAX, deadline).await?;
    while head.canceled_at.is_some()
        && head.state != RunState::Ended
        && head.expanded == head.total
        && head.cancel_cursor < head.total
        && deadline.left() > MARGIN
    {
        let until = head.cancel_cursor.saturating_add(PARTITION).min(head.total);
        let items = ctx
            .store
            .items_from(head.id, head.cancel_cursor, until - head.cancel_cursor)
            .await?;
        let open = items.into_iter().filter(|item| !item.state.is_terminal());
        let mut canceled = stream::iter(open)
            .map(|item| cancel_item(ctx, item))
            .buffer_unordered(CANCELED_AT_ONCE);
        while let Some(canceled) = canceled.next().await {
            canceled?;
            if deadline.left() <= MARGIN {
                // The cursor stays where it is: who comes next goes on from there.
                return Ok(head);
            }
        }
        head = ctx
            .store
            .change_run(head, ctx.clock.now_ms(), |head| {
                let further = head.cancel_cursor < until;
                head.cancel_cursor = head.cancel_cursor.max(until);
                further
            })
            .await?;
        if head.cancel_cursor == head.total {
            ctx.store.end_waiting(head.org, head.id).await?;
        }
    }
    Ok(head)
}

async fn cancel_item(ctx: &Context, item: Item) -> Result<(), StoreError> {
    let now = ctx.clock.now_ms();
    match ctx.store.transition(item, |item| item.cancel(now)).await {
        Ok(_) | Err(TransitionError::Refused { .. }) => Ok(()),
        Err(TransitionError::Store(error)) => Err(error),
    }
}

/// Stores a run's items until that with `index` is there.
///
/// # Errors
/// When the table cannot be written.
pub async fn expand_until(
    ctx: &Context,
    mut head: RunHead,
    index: u32,
    deadline: Deadline,
) -> Result<RunHead, StoreError> {
    while head.expanded < head.total && head.expanded <= index && !head.is_held() && deadline.left() > MARGIN
    {
        head = ctx.store.expand(&head, ctx.clock.now_ms()).await?;
    }
    Ok(head)
}

/// Recounts one partition of a run from its items and follows up: the run has started, the run is over.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn recount(ctx: &Context, key: RunKey, partition: u32) -> Result<(), StoreError> {
    let run = key.run;
    let (items, before) = ctx.store.partition(run, partition).await?;
    let tally = Tally::of(items.iter().map(|item| (item.state, item.simulation)))
        .with_costs(items.iter().map(Counted::costs));
    let changed = before
        .as_ref()
        .map_or_else(|| tally.is_under_way(), |before| before.tally != tally);
    if changed {
        let versions = items.iter().map(|item| item.version).sum();
        ctx.store
            .put_tally(
                run,
                partition,
                &StoredTally {
                    tally: tally.clone(),
                    versions,
                },
            )
            .await?;
    }
    let full = tally.total > 0 && tally.terminal() == tally.total;
    if !full && before.is_some_and(|before| before.tally.is_under_way()) {
        return Ok(());
    }
    if full || tally.is_under_way() {
        settle(ctx, key, full).await?;
    }
    // Also when nothing has changed: whoever counted before may have died before this.
    if full {
        recost(ctx, key).await?;
    }
    Ok(())
}

/// Brings the final counts of a run that has ended up to its tallies: a provider may tell what a call cost long after its item
/// was over, and so may a worker that was overtaken by a cancellation.
async fn recost(ctx: &Context, key: RunKey) -> Result<(), StoreError> {
    for _ in 0..RECOST_TRIES {
        let Some(head) = ctx.store.run(key).await? else {
            return Ok(());
        };
        if head.state != RunState::Ended {
            return Ok(());
        }
        // Read after the head: whoever writes the head in between has seen no more than this, or this is read anew.
        let counts = ctx.store.tally(head.id, head.total).await?;
        if head.counts.as_ref() == Some(&counts) {
            return Ok(());
        }
        let (read, now) = (head.version, ctx.clock.now_ms());
        let written = ctx
            .store
            .change_run(head, now, |next| {
                let first = next.version == read + 1;
                if first {
                    next.counts = Some(counts.clone());
                }
                first
            })
            .await?;
        if written.version == read + 1 && written.counts.as_ref() == Some(&counts) {
            return Ok(());
        }
    }
    Err(StoreError::Throttled(
        "a run's head is written by too many at once".to_owned(),
    ))
}

/// Brings a run's head up to its tallies: started, and with `maybe_over` ended if all its items are over.
async fn settle(ctx: &Context, key: RunKey, maybe_over: bool) -> Result<(), StoreError> {
    let Some(head) = ctx.store.run(key).await? else {
        return Ok(());
    };
    if head.state == RunState::Ended {
        return Ok(());
    }
    let counts = if maybe_over && head.expanded == head.total {
        Some(ctx.store.tally(head.id, head.total).await?).filter(|tally| tally.terminal() == head.total)
    } else {
        None
    };
    let (now, ends) = (ctx.clock.now_ms(), counts.is_some());
    ctx.store
        .change_run(head, now, |head| {
            if head.state == RunState::Ended || (head.state == RunState::Running && counts.is_none()) {
                return false;
            }
            head.started_at.get_or_insert(now);
            head.state = RunState::Running;
            if let Some(counts) = &counts {
                head.state = RunState::Ended;
                head.ended_at = Some(now);
                head.counts = Some(counts.clone());
            }
            true
        })
        .await?;
    if ends {
        // Whoever counted a late cost a moment ago has found a run that goes on.
        recost(ctx, key).await?;
    }
    Ok(())
}

/// Recounts all of a run: what `sweep` does for a run that was quiet for long.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn recount_all(ctx: &Context, head: &RunHead, deadline: Deadline) -> Result<(), StoreError> {
    let partitions = head.partitions().max(1);
    // From anywhere, so that a run that is too large for one turn is counted as a whole in a few of them.
    let first = u32::try_from(Uuid::now_v7().as_u128() % u128::from(partitions)).unwrap_or_default();
    for step in 0..head.partitions() {
        if deadline.left() <= MARGIN {
            break;
        }
        recount(ctx, head.key(), (first + step) % partitions).await?;
    }
    settle(ctx, head.key(), true).await
}

/// Folds what a provider said into the item that it is about. What is known already changes nothing.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn fold(ctx: &Context, at: ItemKey, facts: &Facts) -> Result<(), StoreError> {
    let Some(item) = ctx.store.item(at).await? else {
        tracing::warn!(runId = %at.run, itemId = %at.id(), "an event about an item that does not exist");
        return Ok(());
    };
    let now = ctx.clock.now_ms();
    let observe = |item: &Item| {
        if item.facts.clone().join(facts.clone()) == item.facts {
            return Err(Refused::Past);
        }
        Ok(item.observe(facts.clone(), now))
    };
    match ctx.store.transition(item, observe).await {
        Ok(_) | Err(TransitionError::Refused { .. }) => Ok(()),
        Err(TransitionError::Store(error)) => Err(error),
    }
}

/// Writes what the model calls of an item cost when the item was stopped or taken over before whoever made the calls could write
/// it with a step of their own. What fails here is logged and not counted.
pub async fn charge_late(ctx: &Context, item: Item, costs: &ModelCosts) {
    match ctx.store.transition(item, |item| item.charge(costs)).await {
        Ok(_) | Err(TransitionError::Refused { .. }) => {}
        Err(TransitionError::Store(error)) => {
            tracing::warn!(%error, "what an item cost was not written");
        }
    }
}

/// Folds the events that waited under a call's name, once it is known whose call it is.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn fold_strays(ctx: &Context, endpoint: Uuid, call_id: &str) -> Result<(), StoreError> {
    let Some(at) = ctx.store.linked_item(endpoint, call_id).await? else {
        return Ok(());
    };
    for event in ctx.store.stray_events(endpoint, call_id).await? {
        // Beside the item's other events first, where the verdict looks for what was said.
        ctx.store.keep_event(at, &event).await?;
        fold(ctx, at, &event.facts).await?;
    }
    Ok(())
}

/// Moves an item's next look forward and gives the item, for its work to be put on its queue again. With `void_leases`,
/// whoever held it is known to be gone. `None` when somebody was faster.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn requeue(ctx: &Context, at: ItemKey, void_leases: bool) -> Result<Option<Item>, StoreError> {
    let now = ctx.clock.now_ms();
    let Some(item) = ctx.store.item(at).await? else {
        return Ok(None);
    };
    match ctx
        .store
        .transition(item, |item| item.requeue(void_leases, now))
        .await
    {
        Ok(item) => Ok(Some(item)),
        Err(TransitionError::Refused { .. }) => Ok(None),
        Err(TransitionError::Store(error)) => Err(error),
    }
}

/// Looks after an item whose message does not seem to be on its queue, as [`Item::miss`] says. Gives the item once it is to be
/// put on its queue again.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn miss(ctx: &Context, at: ItemKey) -> Result<Option<Item>, StoreError> {
    let now = ctx.clock.now_ms();
    let Some(item) = ctx.store.item(at).await? else {
        return Ok(None);
    };
    match ctx.store.transition(item, |item| item.miss(now)).await {
        Ok(item) => Ok(Some(item).filter(|item| item.missed_at.is_none())),
        Err(TransitionError::Refused { .. }) => Ok(None),
        Err(TransitionError::Store(error)) => Err(error),
    }
}

/// Moves a hook's next look forward and gives the hook, as [`requeue`] does for an item.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn requeue_hook(
    ctx: &Context,
    key: &HookKey,
    void_leases: bool,
) -> Result<Option<Hook>, StoreError> {
    let now = ctx.clock.now_ms();
    match ctx.store.hook(key).await? {
        Some(hook) => {
            ctx.store
                .change_hook(hook, |hook| hook.requeue(void_leases, now))
                .await
        }
        None => Ok(None),
    }
}
