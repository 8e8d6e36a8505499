//! What voice items need besides their heads: endpoints by their id alone, call slots, waiting runs, a provider's events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Condition, DueKey, ItemKey, Range, Row, Store, StoreError, Write, WriteError, assemble, document,
    hooks::hook_row,
    integer,
    items::{detail_pk, due_shard, item_row},
    key, number, orgs, read,
    spending::spending,
    string, text, write,
};
use crate::{
    lifecycle::{Facts, Hook, Item, Refused, Slots, Source},
    provider::{Event, ProviderKind},
};

/// An event of a provider, or what a look-up found, to be kept.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Which.
    pub event: Event,
    /// Who says so.
    pub source: Source,
    /// What names this delivery: a repeated one has the same.
    pub digest: String,
    /// What it says about the item.
    pub facts: Facts,
    /// The whole of it, as JSON.
    pub body: String,
}

/// A kept event without its body: what `relay` folds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventHead {
    /// Which.
    pub event: Event,
    /// Who says so.
    pub source: Source,
    /// The run of the item that it is about, if the event named the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Uuid>,
    /// The item's place in its run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// What it says about the item.
    pub facts: Facts,
}

impl EventHead {
    /// The item that it is about, if the event named it.
    #[must_use]
    pub fn item(&self) -> Option<ItemKey> {
        Some(ItemKey {
            run: self.run?,
            index: self.index?,
        })
    }
}

/// Reads a kept event's head from a stream record's image.
///
/// # Errors
/// When the image is not an event's.
pub fn event_from_image(image: serde_dynamo::Item) -> Result<EventHead, StoreError> {
    serde_dynamo::from_item(image).map_err(|error| StoreError::Corrupt(error.to_string()))
}

const EVENT: &str = "EVENT#";
/// How long an event waits for its item, in seconds.
const STRAY_SECONDS: i64 = 30 * 24 * 3600;

/// The rows that keep an event: its head, and the parts of its body beyond the first, which are to be written before.
pub(super) fn event_rows(
    pk: &str,
    at: Option<ItemKey>,
    new: &NewEvent,
) -> Result<(Row, Vec<Row>), StoreError> {
    let sk = format!("{EVENT}{}", new.digest);
    let (body, parts) = document(pk, &sk, &new.body);
    let head = EventHead {
        event: new.event,
        source: new.source,
        run: at.map(|at| at.run),
        index: at.map(|at| at.index),
        facts: new.facts.clone(),
    };
    let mut row = write(pk, &sk, &head)?;
    row.extend(body);
    Ok((row, parts))
}

/// What the partitions of providers' calls begin with.
pub(super) const CALL: &str = "CALL#";

/// The place where events of a call wait whose item is not known yet. A provider's names are its own.
fn call_pk(endpoint: Uuid, call_id: &str) -> String {
    format!("{CALL}{endpoint}#{call_id}")
}

/// The row that says whose call it is.
fn link_row(endpoint: Uuid, call_id: &str, at: ItemKey) -> Result<Row, StoreError> {
    write(&call_pk(endpoint, call_id), "LINK", &at)
}

/// The place of a call by the id that users see: whatever provider carries it, the organization finds its item.
fn shown_call_pk(org: Uuid, call: Uuid) -> String {
    format!("{}{call}", shown_calls(org))
}

/// What the partitions of an organization's calls begin with.
pub(super) fn shown_calls(org: Uuid) -> String {
    format!("ORG#{org}#call#")
}

/// What the partition of an endpoint begins with.
pub(super) const ENDPOINT: &str = "ENDPOINT#";

fn endpoint_key(endpoint: Uuid) -> (String, &'static str) {
    (format!("{ENDPOINT}{endpoint}"), "ENDPOINT")
}

/// The rows beside an endpoint's that count what was ignored, each by its kind.
const IGNORED: &str = "IGNORED#";
const COUNT: &str = "count";

/// What is to be known of an endpoint before anything that is sent to it is believed.
#[derive(Debug, Serialize, Deserialize)]
struct EndpointRow {
    org: Uuid,
    #[serde(default)]
    provider: ProviderKind,
}

/// The slots of an organization's calls.
pub(super) fn call_slots_pk(org: Uuid) -> String {
    format!("ORG#{org}#slots")
}

/// The slots of a run that has a cap of its own.
pub(super) fn run_slots_pk(run: Uuid) -> String {
    format!("RUN#{run}#slots")
}

fn slot_sk(slot: u32) -> String {
    format!("SLOT#{slot:06}")
}

pub(super) fn waiting_pk(org: Uuid) -> String {
    format!("ORG#{org}#waiting")
}

/// The keys of the rows that are an item's slots.
fn slot_keys(item: &Item) -> Vec<(String, String)> {
    let Slots { calls, run } = &item.slots;
    let calls = calls.iter().map(|&slot| (call_slots_pk(item.org), slot_sk(slot)));
    let run = run.map(|slot| (run_slots_pk(item.run), slot_sk(slot)));
    calls.chain(run).collect()
}

/// A run that has items without slots. It is owed a look, whoever else may have missed a slot that became free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// The run.
    pub run: Uuid,
    /// No item before this one waits.
    pub next: u32,
    /// How many items it has.
    pub total: u32,
    /// Whether its items need call slots.
    pub voice: bool,
    /// How many of its items may be under way at a time, if it has a cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// From when on somebody has to look, in milliseconds since the Unix epoch.
    pub due_at: i64,
}

pub(super) fn waiting_row(org: Uuid, waiting: &Waiting) -> Result<Row, StoreError> {
    let mut row = write(&waiting_pk(org), &waiting.run.to_string(), waiting)?;
    row.insert("dueShard".to_owned(), text(due_shard(waiting.run.as_u128())));
    Ok(row)
}

impl DueKey {
    /// The org, if the row is a run of it that has items without slots.
    #[must_use]
    pub fn waiting(&self) -> Option<Uuid> {
        self.pk
            .strip_prefix("ORG#")?
            .strip_suffix("#waiting")?
            .parse()
            .ok()
    }
}

/// What else is written in the same transaction as an item's change: the slots that it gives back, so that nobody gives
/// them back twice; whose call it is, once its name is known; what is to be told of it; and what its organization spent.
pub(super) fn consequences(before: &Item, after: &Item) -> Result<Vec<Write>, StoreError> {
    let kept = slot_keys(after);
    let mut writes: Vec<Write> = slot_keys(before)
        .into_iter()
        .filter(|slot| !kept.contains(slot))
        .map(|(pk, sk)| Write::delete(&pk, &sk))
        .collect();
    if let (Some(call), Some(id)) = (&after.call, after.call_id())
        && before.call_id() != Some(id)
    {
        writes.push(Write::plain(link_row(call.endpoint, id, ItemKey::of(after))?));
        if let Some(shown) = after.shown_call_id() {
            let pk = shown_call_pk(after.org, shown);
            writes.push(Write::plain(write(&pk, "CALL", &ItemKey::of(after))?));
        }
    }
    for hook in Hook::of(before, after, after.updated_at) {
        writes.push(Write::plain(hook_row(&hook)?));
    }
    writes.extend(spending(before, after));
    Ok(writes)
}

/// What became of an attempt to admit an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It has its slots.
    Yes,
    /// It waits no longer.
    Past,
    /// Somebody else took one of the slots, wrote the item, or changed the organization's settings: look again.
    Lost,
}

impl Store {
    /// Whose events come to the endpoint with this id, in whatever organization; `None` when there is no such endpoint.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn endpoint_kind(&self, endpoint: Uuid) -> Result<Option<ProviderKind>, StoreError> {
        let (pk, sk) = endpoint_key(endpoint);
        let Some(row) = self.get(&pk, sk).await? else {
            return Ok(None);
        };
        let kept: EndpointRow = read(row)?;
        Ok(Some(kept.provider))
    }

    /// Counts an event of an endpoint that says nothing about an item, by its kind.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn count_ignored(&self, endpoint: Uuid, kind: &str) -> Result<(), StoreError> {
        let (pk, _) = endpoint_key(endpoint);
        self.add(&pk, &format!("{IGNORED}{kind}"), COUNT, 1).await?;
        Ok(())
    }

    /// How many events of an endpoint said nothing about an item, by their kinds.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn ignored_events(&self, endpoint: Uuid) -> Result<BTreeMap<String, u64>, StoreError> {
        let (pk, _) = endpoint_key(endpoint);
        let rows = self.query(&pk, Range::Prefix(IGNORED), true, None).await?;
        let count = |row: &Row| {
            let kind = string(row, "sk")?.trim_start_matches(IGNORED).to_owned();
            let count = integer(row, COUNT).and_then(|count| u64::try_from(count).ok());
            Ok((kind, count.unwrap_or_default()))
        };
        rows.iter().map(count).collect()
    }

    /// Makes an endpoint known by its id alone.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_endpoint(
        &self,
        endpoint: Uuid,
        org: Uuid,
        provider: ProviderKind,
    ) -> Result<(), StoreError> {
        let (pk, sk) = endpoint_key(endpoint);
        let row = write(&pk, sk, &EndpointRow { org, provider })?;
        Ok(self.put(row, None).await?)
    }

    /// Forgets an endpoint's id.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn delete_endpoint(&self, endpoint: Uuid) -> Result<(), StoreError> {
        let (pk, sk) = endpoint_key(endpoint);
        for row in self.query(&pk, Range::Prefix(IGNORED), true, None).await? {
            self.delete(&pk, string(&row, "sk")?).await?;
        }
        self.delete(&pk, sk).await
    }

    /// Keeps an event about an item. `false` when it was kept before.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn keep_event(&self, at: ItemKey, new: &NewEvent) -> Result<bool, StoreError> {
        let item = crate::ids::item_id(at.run, at.index);
        self.keep_event_at(&detail_pk(item), Some(at), new, None).await
    }

    /// Keeps an event about a call whose item is not known at `now` (milliseconds since the Unix epoch). `false` when it was
    /// kept before.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn keep_stray_event(
        &self,
        endpoint: Uuid,
        call_id: &str,
        new: &NewEvent,
        now: i64,
    ) -> Result<bool, StoreError> {
        self.keep_event_at(&call_pk(endpoint, call_id), None, new, Some(now))
            .await
    }

    async fn keep_event_at(
        &self,
        pk: &str,
        at: Option<ItemKey>,
        new: &NewEvent,
        stray_since: Option<i64>,
    ) -> Result<bool, StoreError> {
        let (mut row, mut parts) = event_rows(pk, at, new)?;
        if let Some(now) = stray_since {
            // Should nobody ever learn whose call it is.
            let expires = now / 1000 + STRAY_SECONDS;
            for row in std::iter::once(&mut row).chain(&mut parts) {
                row.insert("expiresAt".to_owned(), number(expires));
            }
        }
        if !parts.is_empty() {
            // Parts of an event that comes again would be named by nobody and stay.
            if self.get(pk, string(&row, "sk")?).await?.is_some() {
                return Ok(false);
            }
            self.batch_put(parts).await?;
        }
        match self.put(row, Some(Condition::Absent)).await {
            Ok(()) => Ok(true),
            Err(WriteError::Condition(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Which item a call belongs to, if that is known.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn linked_item(&self, endpoint: Uuid, call_id: &str) -> Result<Option<ItemKey>, StoreError> {
        self.get(&call_pk(endpoint, call_id), "LINK")
            .await?
            .map(read)
            .transpose()
    }

    /// Which item of `org` a call belongs to, by the call's id as users see it.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn item_of_call(&self, org: Uuid, call: Uuid) -> Result<Option<ItemKey>, StoreError> {
        self.get(&shown_call_pk(org, call), "CALL")
            .await?
            .map(read)
            .transpose()
    }

    /// The events that waited under a call's name.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn stray_events(&self, endpoint: Uuid, call_id: &str) -> Result<Vec<NewEvent>, StoreError> {
        let rows = self
            .query(&call_pk(endpoint, call_id), Range::Prefix(EVENT), true, None)
            .await?;
        let event = |(row, body): (Row, String)| {
            let digest = string(&row, "sk")?.trim_start_matches(EVENT).to_owned();
            let EventHead {
                event, source, facts, ..
            } = read(row)?;
            Ok(NewEvent {
                event,
                source,
                digest,
                facts,
                body,
            })
        };
        assemble(rows)?.into_iter().map(event).collect()
    }

    /// The call slots of `org` that are held, ascending.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn held_call_slots(&self, org: Uuid) -> Result<Vec<u32>, StoreError> {
        self.held_slots(&call_slots_pk(org)).await
    }

    /// The slots of a run with a cap of its own that are held, ascending.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn held_run_slots(&self, run: Uuid) -> Result<Vec<u32>, StoreError> {
        self.held_slots(&run_slots_pk(run)).await
    }

    async fn held_slots(&self, pk: &str) -> Result<Vec<u32>, StoreError> {
        let rows = self.query(pk, Range::Prefix("SLOT#"), true, None).await?;
        rows.iter()
            .map(|row| {
                string(row, "sk")?
                    .trim_start_matches("SLOT#")
                    .parse()
                    .map_err(|_| StoreError::Corrupt("a slot without a number".into()))
            })
            .collect()
    }

    /// The runs of `org` that have items without slots, oldest first.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn waiting_runs(&self, org: Uuid) -> Result<Vec<Waiting>, StoreError> {
        let rows = self.query(&waiting_pk(org), Range::All, true, None).await?;
        rows.into_iter().map(read).collect()
    }

    /// Writes how far a run's items are admitted, and when somebody has to look again.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_waiting(&self, org: Uuid, waiting: &Waiting) -> Result<(), StoreError> {
        Ok(self.put(waiting_row(org, waiting)?, None).await?)
    }

    /// Says that no item of a run waits for slots any more.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn end_waiting(&self, org: Uuid, run: Uuid) -> Result<(), StoreError> {
        self.delete(&waiting_pk(org), &run.to_string()).await
    }

    /// Gives an item its slots: all of them and the item's change, or nothing. Call slots are given out only while the settings
    /// of the item's organization have the version `settings`, which was read before those slots were chosen.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn admit(
        &self,
        item: &Item,
        slots: &Slots,
        settings: u64,
        now: i64,
    ) -> Result<Admitted, StoreError> {
        let admitted = match item.admit(slots, now) {
            Ok(admitted) => admitted,
            Err(Refused::Past | Refused::Held | Refused::TooEarly) => return Ok(Admitted::Past),
        };
        let mut writes = vec![Write::put(item_row(&admitted)?, Condition::Version(item.version))];
        for (pk, sk) in slot_keys(&admitted) {
            let mut row = key(&pk, &sk);
            row.insert("item".to_owned(), text(item.id().to_string()));
            writes.push(Write::put(row, Condition::Absent));
        }
        if !slots.calls.is_empty() {
            writes.push(orgs::unchanged(item.org, settings));
        }
        match self.transact(writes).await {
            Ok(()) => Ok(Admitted::Yes),
            // Who met others at it again and again has lost to them, too.
            Err(WriteError::Condition(_) | WriteError::Other(StoreError::Throttled(_))) => Ok(Admitted::Lost),
            Err(WriteError::Other(error)) => Err(error),
        }
    }
}
