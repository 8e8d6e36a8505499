//! Run items: their heads, their tallies, and what their conversations and judgements produced.

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::{
    Condition, EventHead, NewEvent, Range, Row, Store, StoreError, Write, WriteError, assemble,
    calls::{consequences, event_rows},
    document, integer, number, read,
    runs::RunKey,
    schema, string, text, write,
};
use crate::{
    costs::ModelCosts,
    ids,
    lifecycle::{self, Facts, Failure, Hook, Item, Owed, Refused, State, Tally},
    queue::WorkQueue,
    trials::Outcome,
};

/// How many items of a run share a partition.
pub const PARTITION: u32 = 100;
/// How often a decision is taken again because somebody wrote in between.
pub(super) const DECISION_TRIES: u32 = 10;

/// Names an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ItemKey {
    /// The run.
    pub run: Uuid,
    /// The item's place in it.
    pub index: u32,
}

impl ItemKey {
    /// The name of `item`.
    #[must_use]
    pub fn of(item: &Item) -> Self {
        Self {
            run: item.run,
            index: item.index,
        }
    }

    /// The item's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        ids::item_id(self.run, self.index)
    }

    pub(super) fn partition(run: Uuid, partition: u32) -> String {
        format!("RUN#{run}#{partition}")
    }

    pub(super) fn pk(&self) -> String {
        Self::partition(self.run, self.index / PARTITION)
    }

    pub(super) fn sk(&self) -> String {
        format!("ITEM#{:08}", self.index)
    }
}

/// Why an item is not as a decision wanted it.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// The decision does not fit the item as it is.
    #[error("{why}")]
    Refused {
        /// Why not.
        why: Refused,
        /// The item as it is.
        item: Box<Item>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an item's conversation and judgement produced so far, as the JSON texts that were stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ItemDetail {
    /// The replies in order.
    pub turns: Vec<String>,
    /// What the provider said of the call, each with its whole text.
    pub events: Vec<(EventHead, String)>,
    /// What is told of it, and to whom it was told.
    pub hooks: Vec<Hook>,
    /// Extractions that were kept before the verdict.
    pub extracts: Vec<String>,
    /// The results.
    pub result: Option<String>,
    /// What was suggested after it failed.
    pub improvements: Option<String>,
    /// The structured outputs that were run on it afterwards, each with its id.
    pub outputs: Vec<(String, String)>,
}

/// A partition's tally as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTally {
    /// The counts.
    pub tally: Tally,
    /// The sum of the versions of the items that were counted.
    pub versions: u64,
}

/// What a tally and its item rows are read for.
const COUNTED: &[&str] = &[
    "sk",
    "state",
    "simulation",
    "version",
    "modelCosts",
    "facts",
    "total",
    "queued",
    "running",
    "passed",
    "failed",
    "canceled",
    "failedSimulations",
    "costs",
    "versions",
];

/// What counts of an item.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// Where it stands.
    pub state: State,
    /// Which of the run's simulations it is, from 0.
    pub simulation: u32,
    /// Grows by one with every write.
    pub version: u64,
    /// What its model calls cost.
    #[serde(default)]
    pub model_costs: ModelCosts,
    /// What was observed: its call's cost is among it.
    #[serde(default)]
    pub facts: Facts,
}

impl Counted {
    /// What it cost as far as that is known.
    #[must_use]
    pub fn costs(&self) -> ModelCosts {
        lifecycle::total(&self.model_costs, &self.facts)
    }
}

/// What the rows of [`Standing`]s are read for.
const STANDING: &[&str] = &[
    "index",
    "simulation",
    "state",
    "failure",
    "facts",
    "decidedAt",
    "latencyMs",
    "outcomeMet",
];

/// What an item came to so far.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Its place in its run, from 0.
    pub index: u32,
    /// Which of the run's simulations it is, from 0.
    pub simulation: u32,
    /// Where it stands.
    pub state: State,
    /// Why it failed.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// What was observed of its conversation.
    #[serde(default)]
    pub facts: Facts,
    /// When it was decided, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub decided_at: Option<i64>,
    /// The mean time that the target took to answer, in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<u32>,
    /// Whether the expected outcome was met, if there was one and it was judged.
    #[serde(default)]
    pub outcome_met: Option<bool>,
}

impl Standing {
    /// What it says about the agent.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::of(self.state, self.failure.as_ref())
    }

    /// Whether it had a conversation of its own that can be judged: it ended, and did not break off by the fault of
    /// somebody else, nor because the item was stopped before.
    #[must_use]
    pub fn was_held(&self) -> bool {
        // Of an item with a verdict, a later report of the end says nothing: clocks differ.
        let stopped = matches!(self.outcome(), Outcome::Canceled | Outcome::Errored);
        let hung_up = |at: i64| stopped && self.decided_at.is_some_and(|decided| at > decided);
        let ended = self.facts.ended.as_ref();
        ended.is_some_and(|ended| ended.value.fault.is_none() && !hung_up(ended.value.at))
    }
}

/// A row to which something is owed, as the index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueKey {
    pub(super) pk: String,
    pub(super) sk: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub due_at: i64,
}

impl DueKey {
    /// The item, if the row is one.
    #[must_use]
    pub fn item(&self) -> Option<ItemKey> {
        let (run, _) = self.pk.strip_prefix("RUN#")?.split_once('#')?;
        let index = self.sk.strip_prefix("ITEM#")?;
        Some(ItemKey {
            run: run.parse().ok()?,
            index: index.parse().ok()?,
        })
    }

    /// What puts rows in order by age: since when they are due, and where they are, so that the order of those of the same
    /// moment is always the same.
    #[must_use]
    pub fn by_age(&self) -> (i64, &str, &str) {
        (self.due_at, &self.pk, &self.sk)
    }

    /// The run, if the row is a run's head.
    #[must_use]
    pub fn run(&self) -> Option<RunKey> {
        RunKey::of_row(&self.pk, &self.sk)
    }
}

/// The partition of the index that a row is in.
pub(super) fn due_shard(spread: u128) -> String {
    format!("DUE#{}", spread % u128::from(schema::DUE_SHARDS))
}

/// The partition of the index that an item is in while it waits on a queue. Apart from the others: however long a backlog is,
/// it does not stand before what has to be looked after by itself, and nobody has to move it out of the way.
fn waiting_shard(queue: WorkQueue, spread: u128) -> String {
    format!("{}#{}", queue.as_str(), spread % u128::from(schema::DUE_SHARDS))
}

pub(super) fn item_row(item: &Item) -> Result<Row, StoreError> {
    let at = ItemKey::of(item);
    let mut row = write(&at.pk(), &at.sk(), item)?;
    if item.due_at.is_some() {
        let spread = item.run.as_u128().wrapping_add(u128::from(item.index));
        let shard = match item.waiting().and_then(WorkQueue::of) {
            // A call that has to end, and slots that are overdue, are looked at whatever the queue holds.
            Some(queue) if item.owed != Owed::HangUp => waiting_shard(queue, spread),
            Some(_) | None => due_shard(spread),
        };
        row.insert("dueShard".to_owned(), text(shard));
    }
    Ok(row)
}

/// What was suggested after an item failed.
const IMPROVEMENTS: &str = "IMPROVEMENTS";
/// What a structured output found in a kept conversation.
const OUTPUT: &str = "OUTPUT#";

pub(super) fn detail_pk(item: Uuid) -> String {
    format!("ITEM#{item}")
}

impl Store {
    /// Reads an item's head.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn item(&self, at: ItemKey) -> Result<Option<Item>, StoreError> {
        self.get(&at.pk(), &at.sk()).await?.map(read).transpose()
    }

    /// Reads items by index, in the order of the indexes; those that are not stored yet are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn items(&self, run: Uuid, indexes: &[u32]) -> Result<Vec<Item>, StoreError> {
        let keys = indexes
            .iter()
            .map(|&index| ItemKey { run, index })
            .map(|at| (at.pk(), at.sk()))
            .collect();
        let rows = self.batch_get(keys).await?;
        let mut items: Vec<Item> = rows.into_iter().map(read).collect::<Result<_, _>>()?;
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    /// Reads what counts of all items of one partition, and its tally, consistently.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn partition(
        &self,
        run: Uuid,
        partition: u32,
    ) -> Result<(Vec<Counted>, Option<StoredTally>), StoreError> {
        let rows = self
            .query_only(
                &ItemKey::partition(run, partition),
                Range::All,
                true,
                None,
                COUNTED,
            )
            .await?;
        let mut items = Vec::with_capacity(rows.len());
        let mut tally = None;
        for row in rows {
            match string(&row, "sk")? {
                "TALLY" => tally = Some(read_tally(row)?),
                _ => items.push(read(row)?),
            }
        }
        Ok((items, tally))
    }

    /// Reads what all stored items of one partition came to, consistently.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn standings(&self, run: Uuid, partition: u32) -> Result<Vec<Standing>, StoreError> {
        let pk = ItemKey::partition(run, partition);
        let rows = self
            .query_only(&pk, Range::Prefix("ITEM#"), true, None, STANDING)
            .await?;
        rows.into_iter().map(read).collect()
    }

    /// Reads an item that had a conversation, with everything that is kept of it.
    ///
    /// # Errors
    /// When the table cannot be read or there is no such item.
    pub async fn conversation(&self, at: ItemKey) -> Result<(Item, ItemDetail), StoreError> {
        let id = crate::ids::item_id(at.run, at.index);
        let (item, detail) = tokio::try_join!(self.item(at), self.item_detail(id))?;
        let item = item.ok_or_else(|| StoreError::Corrupt(format!("item {id} is gone")))?;
        Ok((item, detail))
    }

    /// Takes a decision on an item: writes `decide(item)` on the condition that nobody wrote since `item` was read. When
    /// somebody did, the decision is taken again on their item.
    ///
    /// # Errors
    /// [`TransitionError::Refused`] with the item as it is when `decide` refuses; otherwise what the store says.
    pub async fn transition(
        &self,
        item: Item,
        decide: impl Fn(&Item) -> Result<Item, Refused>,
    ) -> Result<Item, TransitionError> {
        self.transition_with(item, decide, &[]).await
    }

    async fn transition_with(
        &self,
        mut item: Item,
        decide: impl Fn(&Item) -> Result<Item, Refused>,
        with: &[Row],
    ) -> Result<Item, TransitionError> {
        for _ in 0..DECISION_TRIES {
            let next = match decide(&item) {
                Ok(next) => next,
                Err(why) => {
                    return Err(TransitionError::Refused {
                        why,
                        item: Box::new(item),
                    });
                }
            };
            let condition = Condition::Version(item.version);
            let row = item_row(&next)?;
            let also = consequences(&item, &next)?;
            let written = if with.is_empty() && also.is_empty() {
                self.put(row, Some(condition)).await
            } else {
                let mut writes = vec![Write::put(row, condition)];
                writes.extend(with.iter().cloned().map(Write::plain));
                writes.extend(also);
                self.transact(writes).await
            };
            match written {
                Ok(()) => return Ok(next),
                Err(WriteError::Condition(Some(row))) => item = read(row)?,
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Throttled("an item is written by too many at once".to_owned()).into())
    }

    /// Writes that an item's call is placed, and with it what the provider's `answer` (with a short body) said.
    ///
    /// # Errors
    /// What the store says.
    pub async fn placed(
        &self,
        item: Item,
        answer: &NewEvent,
        placed: impl Fn(&Item) -> Item,
    ) -> Result<Item, TransitionError> {
        let (event, _) = event_rows(&detail_pk(item.id()), Some(ItemKey::of(&item)), answer)?;
        self.transition_with(item, |item| Ok(placed(item)), &[event])
            .await
    }

    /// Takes the decision that ends an item, together with its results (a JSON text): both or neither.
    ///
    /// # Errors
    /// As [`Store::transition`].
    pub async fn conclude(
        &self,
        item: Item,
        decide: impl Fn(&Item) -> Result<Item, Refused>,
        result: &str,
    ) -> Result<Item, TransitionError> {
        let (head, parts) = document(&detail_pk(item.id()), "RESULT", result);
        self.batch_put(parts).await?;
        self.transition_with(item, decide, &[head]).await
    }

    /// Appends a reply (a JSON text) to an item's conversation as its `n`-th.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when another worker appended the `n`-th first.
    pub async fn append_turn(&self, item: Uuid, n: u32, reply: &str) -> Result<(), StoreError> {
        self.append(item, &format!("TURN#{n:06}"), reply).await
    }

    /// Keeps the `n`-th extraction (a JSON text) of an item.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when another worker kept one first.
    pub async fn keep_extraction(&self, item: Uuid, n: u32, extraction: &str) -> Result<(), StoreError> {
        self.append(item, &format!("EXTRACT#{n:06}"), extraction).await
    }

    async fn append(&self, item: Uuid, sk: &str, body: &str) -> Result<(), StoreError> {
        let (head, parts) = document(&detail_pk(item), sk, body);
        self.batch_put(parts).await?;
        Ok(self.put(head, Some(Condition::Absent)).await?)
    }

    /// Reads what was suggested after an item failed (a JSON text), if anything was kept.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn improvements(&self, item: Uuid) -> Result<Option<String>, StoreError> {
        let kept = self.get_document(&detail_pk(item), IMPROVEMENTS).await?;
        Ok(kept.map(|(_, body)| body))
    }

    /// Keeps what is suggested after an item failed (a JSON text). What was kept before is replaced if `replace` says so, and
    /// else it stays and this gives `false`.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn keep_improvements(
        &self,
        item: Uuid,
        improvements: &str,
        replace: bool,
    ) -> Result<bool, StoreError> {
        let (head, parts) = document(&detail_pk(item), IMPROVEMENTS, improvements);
        self.batch_put(parts).await?;
        match self.put(head, (!replace).then_some(Condition::Absent)).await {
            Ok(()) => Ok(true),
            Err(WriteError::Condition(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps what a structured output found in an item's conversation (a JSON text), instead of what it found before.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn keep_output(&self, item: Uuid, output: Uuid, found: &str) -> Result<(), StoreError> {
        let (head, parts) = document(&detail_pk(item), &format!("{OUTPUT}{output}"), found);
        self.batch_put(parts).await?;
        Ok(self.put(head, None).await?)
    }

    /// Reads everything that an item's conversation and judgement produced.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn item_detail(&self, item: Uuid) -> Result<ItemDetail, StoreError> {
        let rows = self.query(&detail_pk(item), Range::All, true, None).await?;
        let mut detail = ItemDetail::default();
        for (row, body) in assemble(rows)? {
            let sk = string(&row, "sk")?;
            if sk.starts_with("TURN#") {
                detail.turns.push(body);
            } else if sk.starts_with("EVENT#") {
                detail.events.push((read(row)?, body));
            } else if sk.starts_with("HOOK#") {
                detail.hooks.push(read(row)?);
            } else if sk.starts_with("EXTRACT#") {
                detail.extracts.push(body);
            } else if sk == "RESULT" {
                detail.result = Some(body);
            } else if sk == IMPROVEMENTS {
                detail.improvements = Some(body);
            } else if let Some(output) = sk.strip_prefix(OUTPUT) {
                detail.outputs.push((output.to_owned(), body));
            }
        }
        Ok(detail)
    }

    /// Reads an item's results (a JSON text) without the rest of what its conversation produced.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn item_result(&self, item: Uuid) -> Result<Option<String>, StoreError> {
        let row = self.get_document(&detail_pk(item), "RESULT").await?;
        Ok(row.map(|(_, body)| body))
    }

    /// Writes a partition's tally unless one of later items is there.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_tally(&self, run: Uuid, partition: u32, stored: &StoredTally) -> Result<(), StoreError> {
        let mut row = write(&ItemKey::partition(run, partition), "TALLY", &stored.tally)?;
        row.insert("versions".to_owned(), number(stored.versions));
        match self
            .put(row, Some(Condition::AbsentOrOlder(stored.versions)))
            .await
        {
            Ok(()) | Err(WriteError::Condition(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the tallies of a run with `total` items, added up. Items that nobody counted yet are queued.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn tally(&self, run: Uuid, total: u32) -> Result<Tally, StoreError> {
        let keys = (0..total.div_ceil(PARTITION))
            .map(|partition| (ItemKey::partition(run, partition), "TALLY".to_owned()))
            .collect();
        let rows = self.batch_get(keys).await?;
        let tallies: Vec<Tally> = rows
            .into_iter()
            .map(|row| read_tally(row).map(|stored| stored.tally))
            .collect::<Result<_, _>>()?;
        let mut sum = Tally::sum(&tallies);
        sum.queued += total.saturating_sub(sum.total);
        sum.total = total;
        Ok(sum)
    }

    /// Rows that were due at `now` (milliseconds since the Unix epoch), or all to which anything is owed, but for those that
    /// wait on a queue; at most `limit` from each of the index's partitions.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn due(&self, now: Option<i64>, limit: i32) -> Result<Vec<DueKey>, StoreError> {
        self.due_in(due_shard, now, limit).await
    }

    /// The same of the items that wait on `queue`.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn due_on(
        &self,
        queue: WorkQueue,
        now: Option<i64>,
        limit: i32,
    ) -> Result<Vec<DueKey>, StoreError> {
        self.due_in(|spread| waiting_shard(queue, spread), now, limit)
            .await
    }

    async fn due_in(
        &self,
        shard: impl Fn(u128) -> String,
        now: Option<i64>,
        limit: i32,
    ) -> Result<Vec<DueKey>, StoreError> {
        let names: Vec<String> = (0..schema::DUE_SHARDS).map(|n| shard(n.into())).collect();
        let shards: Vec<Vec<DueKey>> = stream::iter(names)
            .map(|name| self.due_in_shard(name, now, limit))
            .buffered(4)
            .try_collect()
            .await?;
        Ok(shards.into_iter().flatten().collect())
    }

    pub(super) async fn due_in_shard(
        &self,
        shard: String,
        now: Option<i64>,
        limit: i32,
    ) -> Result<Vec<DueKey>, StoreError> {
        let mut due = Vec::new();
        let mut start = None;
        loop {
            let answer = self
                .client
                .query()
                .table_name(&*self.table)
                .index_name(schema::DUE_INDEX)
                .key_condition_expression("dueShard = :shard AND dueAt <= :now")
                .expression_attribute_values(":shard", text(&shard))
                .expression_attribute_values(":now", number(now.unwrap_or(i64::MAX >> 10)))
                .set_exclusive_start_key(start)
                .limit(limit)
                .set_return_consumed_capacity(self.capacity())
                .send()
                .await
                .map_err(|error| super::service_error("Query", &error))?;
            self.meter.read("QueryDue", answer.consumed_capacity.as_slice());
            for row in answer.items.unwrap_or_default() {
                due.push(DueKey {
                    pk: string(&row, "pk")?.to_owned(),
                    sk: string(&row, "sk")?.to_owned(),
                    due_at: integer(&row, "dueAt").unwrap_or_default(),
                });
            }
            start = answer.last_evaluated_key;
            if start.is_none() || (now.is_some() && due.len() >= usize::try_from(limit).unwrap_or(0)) {
                return Ok(due);
            }
        }
    }
}

fn read_tally(row: Row) -> Result<StoredTally, StoreError> {
    let versions = integer(&row, "versions")
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or_default();
    Ok(StoredTally {
        tally: read(row)?,
        versions,
    })
}

/// Reads an item's head from a stream record's image.
///
/// # Errors
/// When the image is not an item's head.
pub fn item_from_image(image: serde_dynamo::Item) -> Result<Item, StoreError> {
    serde_dynamo::from_item(image).map_err(|error| StoreError::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids,
        lifecycle::{Failure, Fault},
        store::RunKind,
    };

    #[test]
    fn a_head_row_stays_below_one_kilobyte_and_reads_back() {
        let now = 1_774_522_365_565;
        let item = Item::admitted(ids::new_id(now), ids::new_id(now), 16_777_000, 10, now);
        let held = item
            .claim(
                &format!("{}/{}", "host-123456789.local", ids::new_id(now)),
                75_000,
                now,
            )
            .unwrap();
        let ended = held
            .end_conversation(&held.lease.as_ref().unwrap().owner, "exceeded-max-duration", now)
            .unwrap();
        let judged = ended.claim_evaluation(&"o".repeat(60), 75_000, now).unwrap();
        let reason = Failure::new(&"r".repeat(999), Some(Fault::Ringback));
        let failed = judged.decide(&"o".repeat(60), Err(reason), now).unwrap();
        for item in [item, held, ended, judged, failed] {
            let row = item_row(&item).unwrap();
            let size: usize = row
                .iter()
                .map(|(name, value)| name.len() + format!("{value:?}").len() - 3)
                .sum();
            assert!(size <= 1024, "{size} bytes: {row:?}");
            assert_eq!(read::<Item>(row).unwrap(), item);
        }
    }

    #[test]
    fn due_keys_lead_back_to_their_rows() {
        let (org, run) = (ids::new_id(1), ids::new_id(2));
        let at = ItemKey { run, index: 250 };
        let due = DueKey {
            pk: at.pk(),
            sk: at.sk(),
            due_at: 0,
        };
        assert_eq!((due.item(), due.run()), (Some(at), None));
        for kind in RunKind::ALL {
            let key = RunKey { org, kind, run };
            let due = DueKey {
                pk: key.pk(),
                sk: run.to_string(),
                due_at: 0,
            };
            assert_eq!((due.item(), due.run()), (None, Some(key)));
        }
    }
}
