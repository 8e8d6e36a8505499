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
    clock::Deadline,
    context::{BoxError, Context},
    lifecycle::{Item, Tally},
    progress,
    store::{PARTITION, RunHead, RunOwed, StoreError, head_from_image, item_from_image},
};
use uuid::Uuid;

/// The longest that one run is expanded or canceled in one go.
const TURN: Duration = Duration::from_secs(5);

/// What a batch of records calls for.
#[derive(Debug, Default)]
struct Work {
    /// Items whose next step waits for a worker.
    send: Vec<Item>,
    /// Partitions (org, run, partition) in which an item counts differently.
    recount: BTreeSet<(Uuid, Uuid, u32)>,
    /// Runs to which something is owed, by id.
    runs: BTreeMap<Uuid, RunHead>,
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
        if sk.starts_with("ITEM#") {
            let before = if change.old_image.is_empty() {
                None
            } else {
                Some(item_from_image(change.old_image)?)
            };
            self.add_item(before.as_ref(), item_from_image(change.new_image)?);
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
        // A step waits for its first worker once: when it became owed, or when a worker gave the item back.
        let waited = before.and_then(Item::waiting);
        if item.waiting().is_some() && item.waiting() != waited {
            self.send.push(item);
        }
    }

    async fn perform(self, ctx: &Context, deadline: Deadline) -> Result<(), BoxError> {
        ctx.queues.send(&self.send, ctx.clock.now_ms()).await?;
        for (org, run, partition) in self.recount {
            progress::recount(ctx, org, run, partition).await?;
        }
        for head in self.runs.into_values() {
            // What is left after that goes on with the records that this makes: no run holds up the others for long.
            let turn = Deadline::after(deadline.left().min(TURN));
            progress::advance(ctx, head, turn).await?;
        }
        Ok(())
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
