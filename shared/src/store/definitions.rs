//! Definitions: what users describe and Ringback keeps. Their id is their creation time, so a list is a range of keys.

use std::ops::RangeInclusive;

use serde_json::Value;
use uuid::Uuid;

use super::{Condition, MAX_PART, Range, Row, Store, StoreError, Write, integer, key, number, string, text};

/// The kinds of definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Who the tester is.
    Personality,
    /// What the tester wants and how the outcome is judged.
    Scenario,
    /// A scenario with a personality.
    Simulation,
    /// Simulations that are run together.
    Suite,
    /// An agent under test.
    Assistant,
    /// Assistants that hand a conversation to each other.
    Squad,
    /// Something to extract from a conversation.
    StructuredOutput,
    /// A provider of calls.
    Endpoint,
    /// A mock conversation with checkpoints.
    Eval,
    /// Runs that start by the clock.
    Schedule,
    /// Something to score of a conversation.
    Metric,
    /// Variables for the target and for the tester.
    TestProfile,
    /// What holds for all of an organization's runs: its rubric.
    Project,
    /// Who is told of an agent's conversations.
    Webhook,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Personality,
        Self::Scenario,
        Self::Simulation,
        Self::Suite,
        Self::Assistant,
        Self::Squad,
        Self::StructuredOutput,
        Self::Endpoint,
        Self::Eval,
        Self::Schedule,
        Self::Metric,
        Self::TestProfile,
        Self::Project,
        Self::Webhook,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Personality => "personality",
            Self::Scenario => "scenario",
            Self::Simulation => "simulation",
            Self::Suite => "suite",
            Self::Assistant => "assistant",
            Self::Squad => "squad",
            Self::StructuredOutput => "structured-output",
            Self::Endpoint => "endpoint",
            Self::Eval => "eval",
            Self::Schedule => "schedule",
            Self::Metric => "metric",
            Self::TestProfile => "test-profile",
            Self::Webhook => "webhook",
            Self::Project => "project",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A stored definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its id.
    pub id: Uuid,
    /// Grows by one with every write.
    pub version: u64,
    /// What clients see.
    pub body: Value,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// Only ids in this range.
    pub ids: RangeInclusive<Uuid>,
    /// The newest first.
    pub newest_first: bool,
    /// Only what comes after this id in the list's order.
    pub after: Option<Uuid>,
    /// At most this many.
    pub limit: usize,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// The entries in order. They may be fewer than were asked for, though there are more, because the table answers with
    /// 1 MB at most; there are none only at the end.
    pub entries: Vec<T>,
    /// Whether there may be more after the last one.
    pub more: bool,
}

pub(super) fn partition(org: Uuid, kind: &str) -> String {
    format!("ORG#{org}#{kind}")
}

fn previous(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_sub(1))
}

fn following(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_add(1))
}

impl ListQuery {
    fn bounds(&self) -> Option<(String, String)> {
        let (mut from, mut to) = (*self.ids.start(), *self.ids.end());
        match self.after {
            Some(after) if self.newest_first => to = to.min(previous(after)),
            Some(after) => from = from.max(following(after)),
            None => {}
        }
        (from <= to).then(|| (from.to_string(), to.to_string()))
    }
}

fn definition(row: &Row) -> Result<Definition, StoreError> {
    let corrupt = |what: &dyn std::fmt::Display| StoreError::Corrupt(what.to_string());
    Ok(Definition {
        id: string(row, "sk")?
            .parse()
            .map_err(|error: uuid::Error| corrupt(&error))?,
        version: integer(row, "version")
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default(),
        body: serde_json::from_str(string(row, "body")?).map_err(|error| corrupt(&error))?,
    })
}

pub(super) fn definition_row(org: Uuid, kind: Kind, definition: &Definition) -> Result<Row, StoreError> {
    let body = definition.body.to_string();
    if body.len() > MAX_PART {
        return Err(StoreError::TooLarge(format!(
            "a {} may have at most {} KB as JSON, this one has {} KB",
            kind.name(),
            MAX_PART / 1000,
            body.len() / 1000
        )));
    }
    let mut row = key(&partition(org, kind.name()), &definition.id.to_string());
    row.insert("version".to_owned(), number(definition.version));
    row.insert("body".to_owned(), text(body));
    Ok(row)
}

impl Store {
    /// Keeps a new definition. The definitions that it `uses` are there when it is written, and whoever deletes one of them knows
    /// that it has been used since it was read.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when one that it uses is gone; [`StoreError::TooLarge`]; or when the table cannot be written.
    pub async fn create_definition(
        &self,
        org: Uuid,
        kind: Kind,
        id: Uuid,
        body: Value,
        uses: &[(Kind, Uuid)],
    ) -> Result<(), StoreError> {
        let row = definition_row(org, kind, &Definition { id, version: 1, body })?;
        self.put_using(org, row, Condition::Absent, uses).await
    }

    async fn put_using(
        &self,
        org: Uuid,
        row: Row,
        condition: Condition,
        uses: &[(Kind, Uuid)],
    ) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(self.put(row, Some(condition)).await?);
        }
        let mut writes = vec![Write::put(row, condition)];
        writes.extend(uses.iter().map(|(kind, id)| Write::Touch {
            key: key(&partition(org, kind.name()), &id.to_string()),
        }));
        Ok(self.transact(writes).await?)
    }

    /// Reads a definition of `org`; one of another org is not found.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn definition(
        &self,
        org: Uuid,
        kind: Kind,
        id: Uuid,
    ) -> Result<Option<Definition>, StoreError> {
        let row = self.get(&partition(org, kind.name()), &id.to_string()).await?;
        row.as_ref().map(definition).transpose()
    }

    /// Reads definitions by id; those that do not exist are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn definitions(
        &self,
        org: Uuid,
        kind: Kind,
        ids: &[Uuid],
    ) -> Result<Vec<Definition>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let keys = ids
            .iter()
            .map(|id| (partition(org, kind.name()), id.to_string()))
            .collect();
        self.batch_get(keys).await?.iter().map(definition).collect()
    }

    /// Replaces a definition by a changed one, unless somebody else changed it since it was read. What it `uses` from now on is
    /// there, as in [`Store::create_definition`].
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when somebody did, or one that it uses is gone; [`StoreError::TooLarge`]; or when the table
    /// cannot be written.
    pub async fn update_definition(
        &self,
        org: Uuid,
        kind: Kind,
        read: &Definition,
        body: Value,
        uses: &[(Kind, Uuid)],
    ) -> Result<(), StoreError> {
        let changed = Definition {
            id: read.id,
            version: read.version + 1,
            body,
        };
        let row = definition_row(org, kind, &changed)?;
        self.put_using(org, row, Condition::Version(read.version), uses)
            .await
    }

    /// Deletes a definition, unless somebody changed or used it since it was read.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when somebody did, or it is gone; or when the table cannot be written.
    pub async fn delete_definition(
        &self,
        org: Uuid,
        kind: Kind,
        read: &Definition,
    ) -> Result<(), StoreError> {
        let delete = Write::Delete {
            key: key(&partition(org, kind.name()), &read.id.to_string()),
            condition: Some(Condition::Version(read.version)),
        };
        Ok(self.transact(vec![delete]).await?)
    }

    /// A part of the list of an org's definitions: what one request to the table gives of it.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn list_definitions(
        &self,
        org: Uuid,
        kind: Kind,
        query: &ListQuery,
    ) -> Result<Listed<Definition>, StoreError> {
        let listed = self.list_rows(&partition(org, kind.name()), query).await?;
        let entries = listed.entries.iter().map(definition).collect::<Result<_, _>>()?;
        Ok(Listed {
            entries,
            more: listed.more,
        })
    }

    /// How many of an org's definitions have an id in `ids`.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn count_definitions(
        &self,
        org: Uuid,
        kind: Kind,
        ids: &RangeInclusive<Uuid>,
    ) -> Result<u64, StoreError> {
        self.count_rows(&partition(org, kind.name()), ids).await
    }

    pub(super) async fn list_rows(&self, pk: &str, query: &ListQuery) -> Result<Listed<Row>, StoreError> {
        let Some((from, to)) = query.bounds() else {
            return Ok(Listed {
                entries: Vec::new(),
                more: false,
            });
        };
        if query.limit == 0 {
            return Ok(Listed {
                entries: Vec::new(),
                more: true,
            });
        }
        let range = Range::Between(&from, &to);
        let (entries, next) = self
            .query_some(pk, range, !query.newest_first, Some(query.limit), &[], None)
            .await?;
        Ok(Listed {
            entries,
            more: next.is_some(),
        })
    }

    pub(super) async fn count_rows(&self, pk: &str, ids: &RangeInclusive<Uuid>) -> Result<u64, StoreError> {
        if ids.is_empty() {
            // The table refuses a range that ends before it begins.
            return Ok(0);
        }
        let mut count = 0;
        let mut start = None;
        loop {
            let answer = self
                .client
                .query()
                .table_name(&*self.table)
                .consistent_read(true)
                .select(aws_sdk_dynamodb::types::Select::Count)
                .key_condition_expression("pk = :pk AND sk BETWEEN :from AND :to")
                .expression_attribute_values(":pk", text(pk))
                .expression_attribute_values(":from", text(ids.start().to_string()))
                .expression_attribute_values(":to", text(ids.end().to_string()))
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| super::service_error("Query", &error))?;
            count += u64::try_from(answer.count).unwrap_or_default();
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(count);
            }
        }
    }
}
