//! Follows the table's stream: puts what an item is owed on its queue, expands and cancels runs, and recounts them.
//!
//! It is only the fast path. What it misses is owed all the same, and `sweep` finds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aws_lambda_events::{
    dynamodb::{Event, EventRecord},
    streams::DynamoDbEventResponse,
};
use ringback_shared::{
    admission,
    clock::Deadline,
    context::{BoxError, Context},
    lifecycle::{Facts, Hook, Item, Owed, Tally},
    progress, provider,
    store::{
        ItemKey, PARTITION, RunHead, RunOwed, StoreError, event_from_image, head_from_image, hook_from_image,
        item_from_image,
    },
};
use uuid::Uuid;

/// The longest that one run is expanded or canceled, or one organization given slots, in one go.
const TURN: Duration = Duration::from_secs(5);

/// What a batch of records calls for.
#[derive(Debug, Default)]
struct Work {
    /// Items whose next step waits for a worker.
    send: Vec<Item>,
    /// Hooks that wait for a worker.
    hooks: Vec<Hook>,
    /// Partitions (org, run, partition) in which an item counts differently.
    recount: BTreeSet<(Uuid, Uuid, u32)>,
    /// Runs to which something is owed, by id.
    runs: BTreeMap<Uuid, RunHead>,
    /// What providers said about items.
    events: Vec<(ItemKey, Facts)>,
    /// Calls (endpoint, the provider's name) whose events and whose item may have met.
    calls: BTreeSet<(Uuid, String)>,
    /// Organizations in which an item waits for slots, or slots became free.
    admit: BTreeSet<Uuid>,
}

/// Handles one batch of stream records.
///
/// Everything that it does may be done twice, so a batch that fails is handled again as a whole; the stream's mapping
/// halves it until a record that never succeeds is alone and set aside. A record that cannot be read is logged and passed
/// over: what it owes is in its row.
///
/// # Errors
/// When the table or a queue cannot be reached.
pub async fn handle(
    ctx: &Context,
    event: Event,
    deadline: Deadline,
) -> Result<DynamoDbEventResponse, BoxError> {
    let mut work = Work::default();
    for record in event.records {
        let id = record.event_id.clone();
        if let Err(error) = work.add(record) {
            tracing::error!(record = id, %error, "passed over a record that cannot be read");
        }
    }
    work.perform(ctx, deadline).await?;
    Ok(DynamoDbEventResponse::default())
}

impl Work {
    fn add(&mut self, record: EventRecord) -> Result<(), StoreError> {
        let change = record.change;
        if change.new_image.is_empty() {
            return Ok(());
        }
        let sk = match change.keys.get("sk") {
            Some(serde_dynamo::AttributeValue::S(sk)) => sk.as_str(),
            _ => return Ok(()),
        };
        let pk = match change.keys.get("pk") {
            Some(serde_dynamo::AttributeValue::S(pk)) => pk.as_str(),
            _ => return Ok(()),
        };
        if pk.starts_with("RUN#") && sk.starts_with("ITEM#") {
            let before = if change.old_image.is_empty() {
                None
            } else {
                Some(item_from_image(change.old_image)?)
            };
            self.add_item(before.as_ref(), item_from_image(change.new_image)?);
        } else if let Some((endpoint, call)) = pk.strip_prefix("CALL#").and_then(|rest| rest.split_once('#'))
        {
            if let Ok(endpoint) = endpoint.parse()
                && !sk.contains('~')
            {
                self.calls.insert((endpoint, call.to_owned()));
            }
        } else if pk.starts_with("ITEM#") && sk.starts_with("EVENT#") && !sk.contains('~') {
            let event = event_from_image(change.new_image)?;
            // What the provider answered to the order is written together with the item.
            if let Some(at) = event.item().filter(|_| event.event != provider::Event::Placed) {
                self.events.push((at, event.facts));
            }
        } else if pk.starts_with("ITEM#") && sk.starts_with("HOOK#") {
            let before = if change.old_image.is_empty() {
                None
            } else {
                Some(hook_from_image(change.old_image)?)
            };
            self.add_hook(before.as_ref(), hook_from_image(change.new_image)?);
        } else if pk.starts_with("ORG#") && pk.ends_with("#run") {
            let head = head_from_image(change.new_image)?;
            if matches!(head.owed, RunOwed::Expand | RunOwed::Cancel) {
                self.runs.insert(head.id, head);
            } else {
                self.runs.remove(&head.id);
            }
        }
        Ok(())
    }

    fn add_item(&mut self, before: Option<&Item>, item: Item) {
        let counts = |item: &Item| Tally::of([item.standing()]);
        if before.map(counts) != Some(counts(&item)) {
            self.recount.insert((item.org, item.run, item.index / PARTITION));
        }
        let waits = before.is_none() && item.owed == Owed::Admit;
        let gave_back = |before: &Item| !before.slots.is_empty() && item.slots.is_empty();
        if waits || before.is_some_and(gave_back) {
            self.admit.insert(item.org);
        }
        if item.begins_to_wait(before) {
            self.send.push(item);
        }
    }

    fn add_hook(&mut self, before: Option<&Hook>, hook: Hook) {
        if hook.is_waiting() && !before.is_some_and(Hook::is_waiting) {
            self.hooks.push(hook);
        }
    }

    /// Does all of it. What fails does not keep the rest from being done, for it may belong to others; the first failure is
    /// reported at the end.
    async fn perform(self, ctx: &Context, deadline: Deadline) -> Result<(), BoxError> {
        let mut failed = Ok(());
        let now = ctx.clock.now_ms();
        note(&mut failed, ctx.queues.send(&self.send, now).await);
        note(&mut failed, ctx.queues.send_hooks(&self.hooks, now).await);
        for (at, facts) in &self.events {
            note(&mut failed, progress::fold(ctx, *at, facts).await);
        }
        for (endpoint, call) in &self.calls {
            note(&mut failed, progress::fold_strays(ctx, *endpoint, call).await);
        }
        // What is left after a turn goes on with the records that it makes, or with the next sweep: no organization and no
        // run holds up the others for long.
        let turn = || Deadline::after(deadline.left().min(TURN));
        for org in self.admit {
            note(&mut failed, admission::admit(ctx, org, turn()).await);
        }
        for (org, run, partition) in self.recount {
            note(&mut failed, progress::recount(ctx, org, run, partition).await);
        }
        for head in self.runs.into_values() {
            note(&mut failed, progress::advance(ctx, head, turn()).await);
        }
        failed
    }
}

/// Keeps the first failure.
fn note<T>(failed: &mut Result<(), BoxError>, done: Result<T, impl Into<BoxError>>) {
    if let Err(error) = done {
        let error: BoxError = error.into();
        tracing::warn!(%error, "a part of a batch failed");
        if failed.is_ok() {
            *failed = Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(before: Option<&Item>, after: &Item) -> (bool, bool) {
        let mut work = Work::default();
        work.add_item(before, after.clone());
        (!work.send.is_empty(), !work.recount.is_empty())
    }

    #[test]
    fn a_step_is_sent_once_when_it_begins_to_wait() {
        let now = 1_700_000_000_000;
        let fresh = Item::admitted(Uuid::nil(), Uuid::nil(), 3, 1, now);
        assert_eq!(sent(None, &fresh), (true, true));
        let held = fresh.claim("a", 1000, now).unwrap();
        assert_eq!(sent(Some(&fresh), &held), (false, true));
        let renewed = held.renew("a", 1000, now).unwrap();
        assert_eq!(sent(Some(&held), &renewed), (false, false));
        let yielded = renewed.yield_slice("a", now).unwrap();
        assert_eq!(sent(Some(&renewed), &yielded), (true, false));
        let swept = yielded.requeue(true, now).unwrap();
        assert_eq!(
            sent(Some(&yielded), &swept),
            (false, false),
            "sweep sends what it requeues itself"
        );
        let dead = held.requeue(true, now).unwrap();
        assert_eq!(sent(Some(&held), &dead), (false, false));
        let ended = held.end_conversation("a", "x", now).unwrap();
        assert_eq!(
            sent(Some(&held), &ended),
            (true, false),
            "counts as running until it is judged"
        );
        let canceled = ended.cancel(now).unwrap();
        assert_eq!(sent(Some(&ended), &canceled), (false, true));
    }
}
