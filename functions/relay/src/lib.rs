//! Follows the table's stream: puts what an item is owed on its queue, expands and cancels runs, and recounts them.
//!
//! It is only the fast path. What it misses is owed all the same, and `sweep` finds it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    metrics,
    progress::{self, MARGIN},
    provider,
    store::{
        ItemKey, PARTITION, RunHead, RunKey, RunOwed, StoreError, event_from_image, head_from_image,
        hook_from_image, item_from_image,
    },
    telemetry,
};
use tracing::Instrument;
use uuid::Uuid;

/// How long one run is expanded or canceled, or one organization given slots, before it is another organization's turn.
const STEP: Duration = Duration::from_millis(500);
/// The same for a run that has had no step when the time is over.
const LAST_STEP: Duration = Duration::from_millis(50);
/// How long slots are given out for a batch of records, and how long its runs are moved forward, by all organizations
/// together.
const TURN: Duration = Duration::from_secs(3);

/// What a batch of records calls for.
#[derive(Debug, Default)]
struct Work {
    /// Items whose next step waits for a worker.
    send: Vec<Item>,
    /// Hooks that wait for a worker.
    hooks: Vec<Hook>,
    /// Partitions (org, run, partition) in which an item counts differently.
    recount: BTreeSet<(RunKey, u32)>,
    /// Runs to which something is owed, by id.
    runs: BTreeMap<Uuid, RunHead>,
    /// What providers said about items.
    events: Vec<(ItemKey, Facts)>,
    /// Calls (endpoint, the provider's name) whose events and whose item may have met.
    calls: BTreeSet<(Uuid, String)>,
    /// Organizations in which an item waits for slots, slots became free, or the limit may have been raised.
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
        if let Err(error) = work.add(ctx, record) {
            ctx.metrics.quarantined();
            tracing::error!(record = id, %error, "passed over a record that cannot be read");
        }
    }
    work.perform(ctx, deadline).await?;
    Ok(DynamoDbEventResponse::default())
}

impl Work {
    fn add(&mut self, ctx: &Context, record: EventRecord) -> Result<(), StoreError> {
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
            let item = item_from_image(change.new_image)?;
            tell(ctx, before.as_ref(), &item);
            self.add_item(before.as_ref(), item);
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
        } else if sk.starts_with("HOOK#") {
            let before = if change.old_image.is_empty() {
                None
            } else {
                Some(hook_from_image(change.old_image)?)
            };
            self.add_hook(before.as_ref(), hook_from_image(change.new_image)?);
        } else if sk == "ORG" {
            self.admit
                .extend(pk.strip_prefix("ORG#").and_then(|org| org.parse::<Uuid>().ok()));
        } else if RunKey::of_row(pk, sk).is_some() {
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
        // While an item goes on, what it has cost is counted with its next standing.
        let costs_more = |before: &Item| item.state.is_terminal() && before.costs() != item.costs();
        if before.map(counts) != Some(counts(&item)) || before.is_some_and(costs_more) {
            self.recount.insert((RunKey::of(&item), item.index / PARTITION));
        }
        let waits = before.is_none() && item.owed == Owed::Admit;
        let gave_back = |before: &Item| !before.slots.is_empty() && item.slots.is_empty();
        // With this, slots go on being given out that did not all fit into a turn.
        let took = |before: &Item| before.slots.is_empty() && !item.slots.is_empty();
        if waits || before.is_some_and(|before| gave_back(before) || took(before)) {
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
            let folded = progress::fold(ctx, *at, facts).instrument(telemetry::span_of(*at));
            note(&mut failed, folded.await);
        }
        for (endpoint, call) in &self.calls {
            note(&mut failed, progress::fold_strays(ctx, *endpoint, call).await);
        }
        // Organizations take turns. What is left when the time is over goes on with the records that it made, or with the next
        // sweep: none holds up the others for long, however many items it has.
        note(&mut failed, admit(ctx, self.admit, deadline).await);
        for (key, partition) in in_turns(self.recount, |(key, _)| key.org) {
            let counted = progress::recount(ctx, key, partition).instrument(telemetry::run_span(key.run));
            note(&mut failed, counted.await);
        }
        note(&mut failed, advance(ctx, self.runs.into_values(), deadline).await);
        failed
    }
}

/// Measures a change of an item, and says in the log how it ended. A record that comes again is told again.
fn tell(ctx: &Context, before: Option<&Item>, item: &Item) {
    ctx.metrics.item_changed(before, item);
    if let Some(verdict) = metrics::ended(before, item) {
        let _about = telemetry::item_span(item).entered();
        tracing::info!(verdict, state = ?item.state, "item ended");
    }
}

/// Gives out slots in each of these organizations by turns, at least one turn each.
async fn admit(ctx: &Context, orgs: BTreeSet<Uuid>, deadline: Deadline) -> Result<(), BoxError> {
    let mut failed = Ok(());
    let together = Deadline::after(TURN);
    let mut turns: VecDeque<(Uuid, bool)> = orgs.into_iter().map(|org| (org, true)).collect();
    while let Some((org, first)) = turns.pop_front() {
        if deadline.left() <= MARGIN || (!first && together.left().is_zero()) {
            continue;
        }
        match admission::admit(ctx, org, step(deadline, STEP)).await {
            Ok(true) => turns.push_back((org, false)),
            done => note(&mut failed, done),
        }
    }
    failed
}

/// Moves runs forward, one of each organization in turn, until nothing is owed to them or the time is over. A run that was not
/// written yet goes on even then, for its next record is what leads back to it.
async fn advance(
    ctx: &Context,
    runs: impl Iterator<Item = RunHead>,
    deadline: Deadline,
) -> Result<(), BoxError> {
    let mut failed = Ok(());
    let mut by_org: BTreeMap<Uuid, VecDeque<(u64, RunHead)>> = BTreeMap::new();
    for head in runs {
        by_org
            .entry(head.org)
            .or_default()
            .push_back((head.version, head));
    }
    let together = Deadline::after(TURN);
    let mut turns: VecDeque<_> = by_org.into_values().collect();
    while let Some(mut runs) = turns.pop_front() {
        let Some((version, head)) = runs.pop_front() else {
            continue;
        };
        let (over, written) = (together.left().is_zero(), head.version != version);
        if deadline.left() > MARGIN && !(over && written) {
            let longest = if over { LAST_STEP } else { STEP };
            let span = telemetry::run_span(head.id);
            let moved = progress::advance(ctx, head, step(deadline, longest));
            match moved.instrument(span).await {
                Ok(head) if matches!(head.owed, RunOwed::Expand | RunOwed::Cancel) => {
                    runs.push_back((version, head));
                }
                done => note(&mut failed, done),
            }
        }
        turns.push_back(runs);
    }
    failed
}

/// The deadline of a step that takes at most `longest`.
fn step(deadline: Deadline, longest: Duration) -> Deadline {
    Deadline::after(deadline.left().min(MARGIN + longest))
}

/// The first of each organization, then the second of each, and so on.
fn in_turns<T>(all: impl IntoIterator<Item = T>, org: impl Fn(&T) -> Uuid) -> Vec<T> {
    let mut seen: BTreeMap<Uuid, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, T)> = Vec::new();
    for one in all {
        let turn = seen.entry(org(&one)).or_default();
        turns.push((*turn, one));
        *turn += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, one)| one).collect()
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
    use ringback_shared::costs::ModelCosts;

    use super::*;

    fn sent(before: Option<&Item>, after: &Item) -> (bool, bool) {
        let mut work = Work::default();
        work.add_item(before, after.clone());
        (!work.send.is_empty(), !work.recount.is_empty())
    }

    #[test]
    fn organizations_take_turns() {
        let all = [(1, 'a'), (1, 'b'), (1, 'c'), (2, 'd'), (3, 'e'), (3, 'f')];
        let turns = in_turns(all, |(org, _)| Uuid::from_u128(*org));
        let order: String = turns.into_iter().map(|(_, name)| name).collect();
        assert_eq!(order, "adebfc");
    }

    #[test]
    fn a_cost_that_is_told_late_is_counted() {
        let now = 1_700_000_000_000;
        let running = Item::admitted(Uuid::nil(), Uuid::nil(), 3, 1, now)
            .claim("a", 1000, now)
            .unwrap();
        let costs = ModelCosts {
            cost: 5,
            ..ModelCosts::default()
        };
        assert_eq!(
            sent(Some(&running), &running.charge(&costs).unwrap()),
            (false, false),
            "with its next standing"
        );
        let canceled = running.cancel(now).unwrap();
        let charged = canceled.charge(&costs).unwrap();
        assert_eq!(sent(Some(&canceled), &charged), (false, true));
        assert_eq!(sent(Some(&charged), &charged), (false, false));
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
