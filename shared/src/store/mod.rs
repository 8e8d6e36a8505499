//! The table. Everything that Ringback keeps is a row of one DynamoDB table; no type of the SDK leaves this module.
//!
//! | partition | sort | row |
//! | --- | --- | --- |
//! | `KEY#{sha256}` | `KEY` | an API key: its org |
//! | `ORG#{org}` | `ORG` | an org and its settings |
//! | `ORG#{org}#spent` | `{month}#{n}` | a part of what an org spent in a calendar month |
//! | `SECRET#{name}` | `REVISION` | how often the secrets of that name were changed; they themselves are elsewhere |
//! | `ORG#{org}#{kind}` | id | a definition (personality, scenario, …), or with kind `run` or `evalrun` a run's head |
//! | `ORG#{org}#idempotency` | sha256 of the key | which run a request with that key made, or what it was answered |
//! | `ORG#{org}#number` | `next`, `id#{kind}#{id}`, `n#{number}` | how many numbers were given; an object's number; what a number stands for |
//! | `ORG#{org}#call#{call}` | `CALL` | whose call it is, by the id that users see |
//! | `RUN#{run}` | `BODY`, `TARGET`, `NAMES`, `SNAP#{simulation}` | what a run was asked for and the snapshots it works from |
//! | `RUN#{run}` | `HOOK#run-ended`, `REPORT` | to whom the run's end was told, and what it came to |
//! | `SCHEDULE#{schedule}` | `HEAD` | when a schedule fires next, and what of it is under way |
//! | `SCHEDULE#{schedule}` | `FIRING#{time}`, `HOOK#schedule-failed#{time}` | what became of a firing, and to whom it was told that no run could be started |
//! | `RUN#{run}#{partition}` | `ITEM#{index}`, `TALLY` | the heads of at most 100 items, and their count |
//! | `RUN#{run}#slots` | `SLOT#{n}` | a slot of a run that has a cap of its own: its holder |
//! | `ORG#{org}#slots` | `SLOT#{n}` | a call slot: its holder |
//! | `ORG#{org}#waiting` | run | a run that has items without slots |
//! | `ENDPOINT#{endpoint}` | `ENDPOINT` | a voice provider's endpoint: its org |
//! | `ITEM#{item}` | `TURN#{n}`, `EXTRACT#{n}`, `RESULT` | what an item's conversation and judgement produced |
//! | `ITEM#{item}` | `EVENT#{digest}` | what a provider said of the item's call |
//! | `ITEM#{item}` | `OUTPUT#{output}`, `IMPROVEMENTS` | what was asked of a model about a finished item |
//! | `ITEM#{item}` | `HOOK#{event}` | what is told of the item, and to whom it was told |
//! | `CALL#{endpoint}#{call}` | `LINK`, `EVENT#{digest}` | whose call it is; what a provider said of it without saying whose it is |
//! | `QUARANTINE#{day}` | message id | a message that can never succeed, with the reason |
//!
//! `removal` says what leads to each of them when an organization is deleted.
//!
//! The index `due` holds the rows to which something is owed, those that wait on a queue apart from the others, and schedules apart
//! from both. Only `sweep` and `schedule` read it.
//!
//! A snapshot's row of a run that came from another run says which row of the same run has the snapshot (`same`), and from
//! which item it was taken: so the items of a simulation share one.
//!
//! A document that is larger than a row can be is split: the row says how many `parts` follow it under `{sk}~{n}`. The
//! parts are written first, so a row that can be read is whole.

mod calls;
mod definitions;
mod hooks;
mod idempotency;
mod items;
mod meter;
mod numbers;
mod orgs;
mod quarantine;
mod removal;
mod runs;
mod schedules;
pub mod schema;
mod spending;

use std::{collections::HashMap, sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    Client, Config,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        put_item::{PutItemError, builders::PutItemFluentBuilder},
        transact_write_items::TransactWriteItemsError,
    },
    types::{
        AttributeValue, ConditionCheck, Delete, KeysAndAttributes, Put, PutRequest, ReturnConsumedCapacity,
        ReturnValue, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update, WriteRequest,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};

pub use self::{
    calls::{Admitted, EventHead, NewEvent, Waiting, event_from_image},
    definitions::{Definition, Kind, ListQuery, Listed},
    hooks::{HookKey, hook_from_image},
    idempotency::{Claim, Claimed},
    items::{
        Counted, DueKey, ItemDetail, ItemKey, PARTITION, Standing, StoredTally, TransitionError,
        item_from_image,
    },
    meter::{Meter, Usage},
    numbers::Numbered,
    orgs::{Org, OwnLimit, Principal, Revision},
    removal::{Holding, Holdings},
    runs::{
        Basis, Created, ItemOrigin, Manifest, Names, NewFiring, NewItem, NewOrigin, NewRun, Receivers,
        RunHead, RunKey, RunKind, RunOrigin, RunOwed, RunState, Scheduled, SimulationRef, Snapshot,
        head_from_image,
    },
    schedules::KeptFiring,
};
use crate::aws::{self, Lazy};

/// The largest text that goes into one row; a row may have 400 KB, keys and names included.
const MAX_PART: usize = 350_000;
/// How often a transaction that met another one is tried again.
const CONFLICT_TRIES: u32 = 6;

type Row = HashMap<String, AttributeValue>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition on the present state of a row was not met.
    #[error("the row is not as the write expected it")]
    ConditionFailed,
    /// The table refuses more requests for now.
    #[error("the table is throttled: {0}")]
    Throttled(String),
    /// The table could not be reached or failed.
    #[error("the table is unavailable ({operation}): {message}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// What the service or the connection said.
        message: String,
    },
    /// A row is not what this version of Ringback writes.
    #[error("a row cannot be read: {0}")]
    Corrupt(String),
    /// The request cannot be stored as it is.
    #[error("{0}")]
    TooLarge(String),
}

impl StoreError {
    /// Whether somebody else wrote first.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::ConditionFailed)
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        matches!(self, Self::Throttled(_) | Self::Unavailable { .. })
    }
}

/// The failure of a conditional write, with the row that stood in the way.
#[derive(Debug)]
enum WriteError {
    /// The condition was not met; the row as it is, if there is one.
    Condition(Option<Row>),
    Other(StoreError),
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Condition(_) => Self::ConditionFailed,
            WriteError::Other(error) => error,
        }
    }
}

/// The failure of a single put.
enum PutError {
    /// It met a transaction: the same may succeed in a moment.
    Conflict(StoreError),
    Write(WriteError),
}

/// Access to the table.
#[derive(Debug, Clone)]
pub struct Store {
    client: Lazy<Client>,
    table: Arc<str>,
    meter: Meter,
}

fn service_error<E>(operation: &'static str, error: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.code().unwrap_or_default();
    let message = match error {
        SdkError::ServiceError(_) => format!("{code}: {}", error.message().unwrap_or_default()),
        // Its text would show the answer, and with it what was said in a conversation.
        SdkError::ResponseError(_) => "the answer cannot be read".to_owned(),
        other => aws_sdk_dynamodb::error::DisplayErrorContext(other).to_string(),
    };
    match code {
        "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "ThrottlingException"
        | "TransactionConflictException"
        | "TransactionInProgressException" => StoreError::Throttled(message),
        _ => StoreError::Unavailable { operation, message },
    }
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn key(pk: &str, sk: &str) -> Row {
    Row::from([("pk".to_owned(), text(pk)), ("sk".to_owned(), text(sk))])
}

fn string<'a>(row: &'a Row, name: &str) -> Result<&'a str, StoreError> {
    row.get(name)
        .and_then(|value| value.as_s().ok())
        .map(String::as_str)
        .ok_or_else(|| StoreError::Corrupt(format!("no text in '{name}'")))
}

fn integer(row: &Row, name: &str) -> Option<i64> {
    row.get(name)
        .and_then(|value| value.as_n().ok())
        .and_then(|n| n.parse().ok())
}

fn read<T: serde::de::DeserializeOwned>(row: Row) -> Result<T, StoreError> {
    serde_dynamo::from_item(row).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn write<T: serde::Serialize>(pk: &str, sk: &str, value: &T) -> Result<Row, StoreError> {
    let mut row: Row =
        serde_dynamo::to_item(value).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    row.extend(key(pk, sk));
    Ok(row)
}

/// A condition on the row that a write replaces.
#[derive(Debug, Clone)]
enum Condition {
    /// Nothing is there.
    Absent,
    /// The row has this version.
    Version(u64),
    /// Nothing is there, or a row that was made before it had versions.
    Unversioned,
    /// Nothing is there, or what is there has expired (seconds since the Unix epoch): deletion by expiry is lazy.
    AbsentOrExpired(i64),
    /// Nothing is there, or a count of fewer writes.
    AbsentOrOlder(u64),
    /// The row is held under this name.
    ClaimedBy(String),
}

impl Condition {
    fn expression(&self) -> &'static str {
        match self {
            Self::Absent => "attribute_not_exists(pk)",
            Self::Version(_) => "version = :version",
            Self::Unversioned => "attribute_not_exists(version)",
            Self::AbsentOrExpired(_) => "attribute_not_exists(pk) OR expiresAt < :now",
            Self::AbsentOrOlder(_) => "attribute_not_exists(pk) OR versions < :versions",
            Self::ClaimedBy(_) => "claimedBy = :claim",
        }
    }

    fn values(&self) -> Option<Row> {
        match self {
            Self::Absent | Self::Unversioned => None,
            Self::Version(version) => Some(Row::from([(":version".to_owned(), number(version))])),
            Self::AbsentOrExpired(now) => Some(Row::from([(":now".to_owned(), number(now))])),
            Self::AbsentOrOlder(versions) => Some(Row::from([(":versions".to_owned(), number(versions))])),
            Self::ClaimedBy(claim) => Some(Row::from([(":claim".to_owned(), text(claim))])),
        }
    }
}

/// One row of a transaction.
#[derive(Debug, Clone)]
enum Write {
    Put {
        row: Row,
        condition: Option<Condition>,
    },
    Delete {
        key: Row,
        condition: Option<Condition>,
    },
    /// Counts a write of a row that is there, without changing what it says.
    Touch {
        key: Row,
    },
    /// Adds to a number, which counts as 0 where there is none.
    Add {
        key: Row,
        name: &'static str,
        amount: i64,
    },
    /// Writes nothing: the others are written only if the condition holds.
    Check {
        key: Row,
        condition: Condition,
    },
}

impl Write {
    fn put(row: Row, condition: Condition) -> Self {
        Self::Put {
            row,
            condition: Some(condition),
        }
    }

    /// A row that only this writer can write: its key is unguessable and nothing else names it yet.
    fn plain(row: Row) -> Self {
        Self::Put { row, condition: None }
    }

    /// Takes a row away that only this writer's own change gives it the right to.
    fn delete(pk: &str, sk: &str) -> Self {
        Self::Delete {
            key: key(pk, sk),
            condition: None,
        }
    }

    /// Adds `amount` to the number `name` of a row that many add to.
    fn add(pk: &str, sk: &str, name: &'static str, amount: i64) -> Self {
        let key = key(pk, sk);
        Self::Add { key, name, amount }
    }

    fn check(pk: &str, sk: &str, condition: Condition) -> Self {
        let key = key(pk, sk);
        Self::Check { key, condition }
    }
}

/// Waits before the `attempt`-th repetition, with full jitter: two writers that met must not meet again.
async fn pause_after_conflict(attempt: u32) {
    let jitter = uuid::Uuid::now_v7().as_u128() as u64 % (10 << attempt);
    tokio::time::sleep(Duration::from_millis(jitter)).await;
}

/// The rows that hold `body`: the head, then the parts that it is split into beyond one.
///
/// The parts' keys carry a tag that only this head names, so two writers of the same document never mix their parts.
fn document(pk: &str, sk: &str, body: &str) -> (Row, Vec<Row>) {
    let mut head = key(pk, sk);
    let mut pieces = Vec::new();
    let mut rest = body;
    while rest.len() > MAX_PART {
        let mut at = MAX_PART;
        while !rest.is_char_boundary(at) {
            at -= 1;
        }
        let (piece, tail) = rest.split_at(at);
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    let mut pieces = pieces.into_iter();
    head.insert("body".to_owned(), text(pieces.next().unwrap_or_default()));
    if pieces.len() == 0 {
        return (head, Vec::new());
    }
    let tag = uuid::Uuid::now_v7().simple().to_string();
    head.insert("parts".to_owned(), text(&tag));
    let parts = pieces
        .enumerate()
        .map(|(n, piece)| {
            let mut row = key(pk, &format!("{sk}~{tag}~{n:03}"));
            row.insert("body".to_owned(), text(piece));
            row
        })
        .collect();
    (head, parts)
}

/// Puts documents together again from rows in key order: the head rows with their whole body.
///
/// Parts that no head names belong to a write that lost or was never finished; they are passed over.
fn assemble(rows: Vec<Row>) -> Result<Vec<(Row, String)>, StoreError> {
    let mut documents: Vec<(Row, String)> = Vec::with_capacity(rows.len());
    for mut row in rows {
        let body = match row.remove("body") {
            Some(AttributeValue::S(body)) => body,
            _ => String::new(),
        };
        match string(&row, "sk")?.split_once('~') {
            None => documents.push((row, body)),
            Some((sk, rest)) => {
                if let Some((head, whole)) = documents.last_mut()
                    && string(head, "sk")? == sk
                    && rest.split('~').next() == string(head, "parts").ok()
                {
                    whole.push_str(&body);
                }
            }
        }
    }
    Ok(documents)
}

impl Store {
    /// A store on `table`.
    #[must_use]
    pub fn new(config: Config, table: &str) -> Self {
        Self {
            client: aws::lazy(|| Client::from_conf(config)),
            table: table.into(),
            meter: Meter::default(),
        }
    }

    /// What was asked of the table so far.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    fn capacity(&self) -> Option<ReturnConsumedCapacity> {
        self.meter.is_on().then_some(ReturnConsumedCapacity::Total)
    }

    async fn get(&self, pk: &str, sk: &str) -> Result<Option<Row>, StoreError> {
        let answer = self
            .client
            .get_item()
            .table_name(&*self.table)
            .set_key(Some(key(pk, sk)))
            .consistent_read(true)
            .set_return_consumed_capacity(self.capacity())
            .send()
            .await
            .map_err(|error| service_error("GetItem", &error))?;
        self.meter.read("GetItem", answer.consumed_capacity.as_slice());
        Ok(answer.item)
    }

    /// One row with all parts of its body.
    async fn get_document(&self, pk: &str, sk: &str) -> Result<Option<(Row, String)>, StoreError> {
        let Some(row) = self.get(pk, sk).await? else {
            return Ok(None);
        };
        if row.contains_key("parts") {
            let rows = self.query(pk, Range::Prefix(sk), true, None).await?;
            return Ok(assemble(rows)?
                .into_iter()
                .find(|(row, _)| string(row, "sk").is_ok_and(|s| s == sk)));
        }
        let body = string(&row, "body")?.to_owned();
        Ok(Some((row, body)))
    }

    async fn put(&self, row: Row, condition: Option<Condition>) -> Result<(), WriteError> {
        let mut request = self
            .client
            .put_item()
            .table_name(&*self.table)
            .set_item(Some(row))
            .set_return_consumed_capacity(self.capacity());
        let versioned = matches!(condition, Some(Condition::Version(_) | Condition::Unversioned));
        if let Some(condition) = condition {
            request = request
                .condition_expression(condition.expression())
                .set_expression_attribute_values(condition.values())
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        }
        // Only a row with a version takes part in transactions that a single write can meet.
        if versioned {
            for attempt in 1..CONFLICT_TRIES {
                match self.put_once(request.clone()).await {
                    Err(PutError::Conflict(_)) => pause_after_conflict(attempt).await,
                    Err(PutError::Write(error)) => return Err(error),
                    Ok(()) => return Ok(()),
                }
            }
        }
        self.put_once(request).await.map_err(|error| match error {
            PutError::Conflict(error) => WriteError::Other(error),
            PutError::Write(error) => error,
        })
    }

    /// Adds to a number of a row, which there need not be, and gives the sum. Unlike in a transaction, those who add at the same time
    /// do not meet.
    async fn add(&self, pk: &str, sk: &str, name: &str, amount: i64) -> Result<i64, StoreError> {
        let answer = self
            .client
            .update_item()
            .table_name(&*self.table)
            .set_key(Some(key(pk, sk)))
            .update_expression("ADD #name :amount")
            .expression_attribute_names("#name", name)
            .expression_attribute_values(":amount", number(amount))
            .return_values(ReturnValue::UpdatedNew)
            .set_return_consumed_capacity(self.capacity())
            .send()
            .await
            .map_err(|error| service_error("UpdateItem", &error))?;
        answer
            .attributes
            .as_ref()
            .and_then(|row| integer(row, name))
            .ok_or_else(|| StoreError::Corrupt(format!("no number in '{name}'")))
    }

    async fn put_once(&self, request: PutItemFluentBuilder) -> Result<(), PutError> {
        let error = match request.send().await {
            Ok(answer) => {
                self.meter
                    .wrote("PutItem", 1, answer.consumed_capacity.as_slice());
                return Ok(());
            }
            Err(error) => error,
        };
        match error.as_service_error() {
            Some(PutItemError::ConditionalCheckFailedException(failed)) => {
                self.meter.wrote("PutItem", 0, &[]);
                Err(PutError::Write(WriteError::Condition(failed.item().cloned())))
            }
            Some(PutItemError::TransactionConflictException(_)) => {
                Err(PutError::Conflict(service_error("PutItem", &error)))
            }
            _ => Err(PutError::Write(WriteError::Other(service_error(
                "PutItem", &error,
            )))),
        }
    }

    async fn delete(&self, pk: &str, sk: &str) -> Result<(), StoreError> {
        self.client
            .delete_item()
            .table_name(&*self.table)
            .set_key(Some(key(pk, sk)))
            .send()
            .await
            .map_err(|error| service_error("DeleteItem", &error))?;
        Ok(())
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<(), WriteError> {
        let rows = writes.len();
        let item = |write| match write {
            Write::Delete { key, condition } => {
                let mut delete = Delete::builder().table_name(&*self.table).set_key(Some(key));
                if let Some(condition) = condition {
                    delete = delete
                        .condition_expression(condition.expression())
                        .set_expression_attribute_values(condition.values());
                }
                delete
                    .build()
                    .map(|delete| TransactWriteItem::builder().delete(delete).build())
            }
            Write::Touch { key } => Update::builder()
                .table_name(&*self.table)
                .set_key(Some(key))
                .update_expression("ADD version :one")
                .condition_expression("attribute_exists(pk)")
                .expression_attribute_values(":one", number(1))
                .build()
                .map(|update| TransactWriteItem::builder().update(update).build()),
            Write::Add { key, name, amount } => Update::builder()
                .table_name(&*self.table)
                .set_key(Some(key))
                .update_expression("ADD #name :amount")
                .expression_attribute_names("#name", name)
                .expression_attribute_values(":amount", number(amount))
                .build()
                .map(|update| TransactWriteItem::builder().update(update).build()),
            Write::Check { key, condition } => ConditionCheck::builder()
                .table_name(&*self.table)
                .set_key(Some(key))
                .condition_expression(condition.expression())
                .set_expression_attribute_values(condition.values())
                .build()
                .map(|check| TransactWriteItem::builder().condition_check(check).build()),
            Write::Put { row, condition } => {
                let mut put = Put::builder().table_name(&*self.table).set_item(Some(row));
                if let Some(condition) = condition {
                    put = put
                        .condition_expression(condition.expression())
                        .set_expression_attribute_values(condition.values())
                        .return_values_on_condition_check_failure(
                            ReturnValuesOnConditionCheckFailure::AllOld,
                        );
                }
                put.build()
                    .map(|put| TransactWriteItem::builder().put(put).build())
            }
        };
        let items: Vec<TransactWriteItem> = writes
            .into_iter()
            .map(item)
            .collect::<Result<_, _>>()
            .map_err(|error| WriteError::Other(StoreError::Corrupt(error.to_string())))?;
        self.transact_items(items, rows).await
    }

    async fn transact_items(&self, items: Vec<TransactWriteItem>, rows: usize) -> Result<(), WriteError> {
        for attempt in 0.. {
            let sent = self
                .client
                .transact_write_items()
                .set_transact_items(Some(items.clone()))
                .set_return_consumed_capacity(self.capacity())
                .send()
                .await;
            let error = match sent {
                Ok(answer) => {
                    self.meter
                        .wrote("TransactWriteItems", rows, answer.consumed_capacity());
                    return Ok(());
                }
                Err(error) => error,
            };
            self.meter.wrote("TransactWriteItems", 0, &[]);
            let Some(TransactWriteItemsError::TransactionCanceledException(canceled)) =
                error.as_service_error()
            else {
                return Err(WriteError::Other(service_error("TransactWriteItems", &error)));
            };
            let reasons = canceled.cancellation_reasons();
            if let Some(failed) = reasons
                .iter()
                .find(|r| r.code() == Some("ConditionalCheckFailed"))
            {
                return Err(WriteError::Condition(failed.item().cloned()));
            }
            let retryable = reasons.iter().filter_map(|r| r.code()).any(|code| {
                matches!(
                    code,
                    "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded"
                )
            });
            if !retryable {
                return Err(WriteError::Other(service_error("TransactWriteItems", &error)));
            }
            if attempt + 1 >= CONFLICT_TRIES {
                let codes: Vec<_> = reasons.iter().filter_map(|r| r.code()).collect();
                return Err(WriteError::Other(StoreError::Throttled(codes.join(", "))));
            }
            pause_after_conflict(attempt).await;
        }
        Err(WriteError::Other(StoreError::Throttled(
            "TransactionConflict".to_owned(),
        )))
    }

    /// Rows of one partition in key order (or backwards), all pages of them up to `limit`.
    async fn query(
        &self,
        pk: &str,
        range: Range<'_>,
        forward: bool,
        limit: Option<usize>,
    ) -> Result<Vec<Row>, StoreError> {
        self.query_only(pk, range, forward, limit, &[]).await
    }

    /// The same, with these attributes only; all of them if none is named.
    async fn query_only(
        &self,
        pk: &str,
        range: Range<'_>,
        forward: bool,
        limit: Option<usize>,
        only: &[&str],
    ) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let left = limit.map(|limit| limit - rows.len());
            let (some, next) = self.query_some(pk, range, forward, left, only, start).await?;
            rows.extend(some);
            start = next;
            if start.is_none() || limit.is_some_and(|limit| rows.len() >= limit) {
                return Ok(rows);
            }
        }
    }

    /// What one answer of the table holds of it, which is 1 MB at most, after the key `start`; and where to go on, if there
    /// may be more.
    async fn query_some(
        &self,
        pk: &str,
        range: Range<'_>,
        forward: bool,
        limit: Option<usize>,
        only: &[&str],
        start: Option<Row>,
    ) -> Result<(Vec<Row>, Option<Row>), StoreError> {
        let mut request = self
            .client
            .query()
            .table_name(&*self.table)
            .consistent_read(true)
            .scan_index_forward(forward)
            .expression_attribute_values(":pk", text(pk))
            .set_exclusive_start_key(start)
            .set_limit(limit.and_then(|limit| i32::try_from(limit).ok()))
            .set_return_consumed_capacity(self.capacity());
        request = match range {
            Range::All => request.key_condition_expression("pk = :pk"),
            Range::Prefix(prefix) => request
                .key_condition_expression("pk = :pk AND begins_with(sk, :sk)")
                .expression_attribute_values(":sk", text(prefix)),
            Range::Between(from, to) => request
                .key_condition_expression("pk = :pk AND sk BETWEEN :from AND :to")
                .expression_attribute_values(":from", text(from))
                .expression_attribute_values(":to", text(to)),
        };
        if !only.is_empty() {
            // Behind placeholders, because some names are words of the expression's language.
            let placeholders: Vec<String> = only.iter().map(|name| format!("#{name}")).collect();
            request = request.projection_expression(placeholders.join(", "));
            for (placeholder, name) in placeholders.into_iter().zip(only) {
                request = request.expression_attribute_names(placeholder, *name);
            }
        }
        let answer = request
            .send()
            .await
            .map_err(|error| service_error("Query", &error))?;
        self.meter.read("Query", answer.consumed_capacity.as_slice());
        Ok((answer.items.unwrap_or_default(), answer.last_evaluated_key))
    }

    /// Rows by key, in no order; keys that name nothing are left out.
    async fn batch_get(&self, keys: Vec<(String, String)>) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(100) {
            let mut wanted: Vec<Row> = chunk.iter().map(|(pk, sk)| key(pk, sk)).collect();
            for attempt in 0_u32.. {
                let request = KeysAndAttributes::builder()
                    .set_keys(Some(wanted))
                    .consistent_read(true)
                    .build()
                    .map_err(|error| StoreError::Corrupt(error.to_string()))?;
                let answer = self
                    .client
                    .batch_get_item()
                    .request_items(&*self.table, request)
                    .set_return_consumed_capacity(self.capacity())
                    .send()
                    .await
                    .map_err(|error| service_error("BatchGetItem", &error))?;
                self.meter.read("BatchGetItem", answer.consumed_capacity());
                rows.extend(
                    answer
                        .responses
                        .unwrap_or_default()
                        .remove(&*self.table)
                        .unwrap_or_default(),
                );
                let left = answer.unprocessed_keys.unwrap_or_default().remove(&*self.table);
                wanted = left.map(|left| left.keys).unwrap_or_default();
                if wanted.is_empty() {
                    break;
                }
                if attempt >= CONFLICT_TRIES {
                    return Err(StoreError::Throttled("BatchGetItem left keys unread".to_owned()));
                }
                tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
            }
        }
        Ok(rows)
    }

    /// Puts rows without a condition: only for rows that nothing names yet.
    async fn batch_put(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        // BatchWriteItem takes at most 25 rows and 16 MB.
        let chunks: Vec<Vec<Row>> = rows.chunks(25).map(<[Row]>::to_vec).collect();
        stream::iter(chunks)
            .map(Ok)
            .try_for_each_concurrent(4, |chunk| self.put_chunk(chunk))
            .await
    }

    async fn put_chunk(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        let mut writes = rows
            .into_iter()
            .map(|row| {
                let put = PutRequest::builder().set_item(Some(row)).build()?;
                Ok(WriteRequest::builder().put_request(put).build())
            })
            .collect::<Result<Vec<_>, aws_sdk_dynamodb::error::BuildError>>()
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        for attempt in 0..CONFLICT_TRIES {
            let count = writes.len();
            let answer = self
                .client
                .batch_write_item()
                .request_items(&*self.table, writes)
                .set_return_consumed_capacity(self.capacity())
                .send()
                .await
                .map_err(|error| service_error("BatchWriteItem", &error))?;
            let capacity = answer.consumed_capacity().to_vec();
            writes = answer
                .unprocessed_items
                .unwrap_or_default()
                .remove(&*self.table)
                .unwrap_or_default();
            self.meter
                .wrote("BatchWriteItem", count - writes.len(), &capacity);
            if writes.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
        }
        Err(StoreError::Throttled(
            "BatchWriteItem left rows unwritten".to_owned(),
        ))
    }
}

/// Which sort keys of a partition a query wants.
#[derive(Debug, Clone, Copy)]
enum Range<'a> {
    All,
    Prefix(&'a str),
    Between(&'a str, &'a str),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Around the boundaries, with characters of one to four bytes.
        #[test]
        fn documents_come_back_whole(length in 0_usize..3 * MAX_PART, unit in "[aäह😀]{1,7}", offset in 0_usize..4) {
            let body = "x".repeat(offset) + &unit.repeat(length / unit.len());
            let (head, parts) = document("P", "SK", &body);
            for row in parts.iter().chain([&head]) {
                prop_assert!(string(row, "body").unwrap().len() <= MAX_PART);
            }
            // Parts of another writer, and of one that never finished, stand in between.
            let (_, strangers) = document("P", "SK", &"y".repeat(2 * MAX_PART));
            let mut rows = vec![head];
            rows.extend(parts);
            rows.extend(strangers);
            rows.sort_by(|a, b| string(a, "sk").unwrap().cmp(string(b, "sk").unwrap()));
            let back = assemble(rows).unwrap();
            prop_assert_eq!(back.len(), 1);
            prop_assert!(back[0].1 == body);
        }
    }
}
