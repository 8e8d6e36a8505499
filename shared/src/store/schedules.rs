//! Schedules: their definitions, their heads and the history of their firings.
//!
//! A definition is what clients see; the head is what a firing writes. Both are written together when a client changes one of them,
//! and whoever decides a firing does it on the condition that the head is as it was read. So a firing is decided once, and by the
//! definition as it is at that moment.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Condition, Definition, DueKey, Kind, Range, Store, StoreError, Write, WriteError,
    definitions::{definition_row, partition},
    hooks::hook_row,
    key, number, read, string, text, write,
};
use crate::{
    lifecycle::Hook,
    schedule::{Firing, ScheduleHead},
};

/// What the partition of a schedule begins with.
pub(super) const SCHEDULE: &str = "SCHEDULE#";
pub(super) const HEAD: &str = "HEAD";
const FIRING: &str = "FIRING#";
/// How long a firing is kept, in milliseconds: 400 days.
pub(super) const KEPT_MS: i64 = 400 * 24 * 3_600_000;
/// How many rows of a schedule are deleted at a time.
const DELETED_AT_ONCE: usize = 8;

pub(super) fn schedule_pk(schedule: Uuid) -> String {
    format!("{SCHEDULE}{schedule}")
}

/// A moment (in milliseconds since the Unix epoch) as a part of a key: in the order of time.
pub(super) fn time_key(ms: i64) -> String {
    format!("{:015}", ms.max(0))
}

/// The partition of the index that schedules are in, apart from everything else: only their tick looks at it. One takes a thousand
/// firings a second.
const DUE: &str = "SCHEDULES";

fn head_row(head: &ScheduleHead) -> Result<super::Row, StoreError> {
    let mut row = write(&schedule_pk(head.id), HEAD, head)?;
    if head.due_at.is_some() {
        row.insert("dueShard".to_owned(), text(DUE));
    }
    Ok(row)
}

/// The key of a firing: of one that came by the clock its time, of another its run as well.
fn firing_sk(firing: &Firing) -> String {
    let at = time_key(firing.due.at);
    match firing.run {
        Some(run) if firing.trigger == crate::models::schedule::Trigger::Manual => {
            format!("{FIRING}{at}_{run}")
        }
        _ => format!("{FIRING}{at}"),
    }
}

/// What is written when a schedule's head goes from `before` to `after`, and firings are decided with it.
pub(super) fn firing_writes(
    before: &ScheduleHead,
    after: &ScheduleHead,
    firings: &[Firing],
) -> Result<Vec<Write>, StoreError> {
    let mut writes = vec![Write::put(head_row(after)?, Condition::Version(before.version))];
    for firing in firings {
        let mut row = write(&schedule_pk(after.id), &firing_sk(firing), firing)?;
        let expires = firing.due.at.max(firing.decided_at) + KEPT_MS;
        row.insert("expiresAt".to_owned(), number(expires / 1000));
        // Only whoever writes the head writes firings.
        writes.push(Write::plain(row));
    }
    Ok(writes)
}

/// A firing with its place in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFiring {
    /// Its place: of two firings the later one has the greater.
    pub place: String,
    /// The firing.
    pub firing: Firing,
}

impl DueKey {
    /// The schedule, if the row is a schedule's head.
    #[must_use]
    pub fn schedule(&self) -> Option<Uuid> {
        let id = self.pk.strip_prefix(SCHEDULE)?;
        (self.sk == HEAD).then(|| id.parse().ok()).flatten()
    }
}

impl Store {
    /// Keeps a new schedule.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or when the table cannot be written.
    pub async fn create_schedule(&self, head: &ScheduleHead, body: Value) -> Result<(), StoreError> {
        let definition = Definition {
            id: head.id,
            version: 1,
            body,
        };
        let definition = definition_row(head.org, Kind::Schedule, &definition)?;
        let writes = vec![
            Write::put(definition, Condition::Absent),
            Write::put(head_row(head)?, Condition::Absent),
        ];
        Ok(self.transact(writes).await?)
    }

    /// Replaces a schedule's definition by a changed one, and its head with it. Firings that will not start any more are `dropped`.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when somebody wrote one of them since it was read; [`StoreError::TooLarge`]; or when the table
    /// cannot be written.
    pub async fn update_schedule(
        &self,
        read: &Definition,
        body: Value,
        before: &ScheduleHead,
        after: &ScheduleHead,
        dropped: &[Firing],
    ) -> Result<(), StoreError> {
        let changed = Definition {
            id: read.id,
            version: read.version + 1,
            body,
        };
        let row = definition_row(before.org, Kind::Schedule, &changed)?;
        let mut writes = vec![Write::put(row, Condition::Version(read.version))];
        writes.extend(firing_writes(before, after, dropped)?);
        Ok(self.transact(writes).await?)
    }

    /// Deletes a schedule's definition; what else is kept of it is taken away by [`Store::clear_schedule`].
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when somebody wrote it since it was read; or when the table cannot be written.
    pub async fn remove_schedule(
        &self,
        read: &Definition,
        before: &ScheduleHead,
        after: &ScheduleHead,
    ) -> Result<(), StoreError> {
        let mut writes = vec![Write::Delete {
            key: key(
                &partition(before.org, Kind::Schedule.name()),
                &read.id.to_string(),
            ),
            condition: Some(Condition::Version(read.version)),
        }];
        writes.extend(firing_writes(before, after, &[])?);
        Ok(self.transact(writes).await?)
    }

    /// Takes away at most `most` rows of what is kept of a schedule that was deleted, its head last: whoever dies in between finds
    /// it again. `true` when nothing is left.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn clear_schedule(&self, schedule: Uuid, most: usize) -> Result<bool, StoreError> {
        let pk = &schedule_pk(schedule);
        let rows = self
            .query_only(pk, Range::Prefix(FIRING), true, Some(most), &["sk"])
            .await?;
        let hooks = self
            .query_only(pk, Range::Prefix("HOOK#"), true, Some(most), &["sk"])
            .await?;
        let more = rows.len() >= most || hooks.len() >= most;
        let keys: Vec<String> = rows
            .iter()
            .chain(&hooks)
            .map(|row| Ok(string(row, "sk")?.to_owned()))
            .collect::<Result<_, StoreError>>()?;
        stream::iter(keys)
            .map(|sk| async move { self.delete(pk, &sk).await })
            .buffer_unordered(DELETED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        if !more {
            self.delete(pk, HEAD).await?;
        }
        Ok(!more)
    }

    /// Reads a schedule's head.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn schedule_head(&self, schedule: Uuid) -> Result<Option<ScheduleHead>, StoreError> {
        self.get(&schedule_pk(schedule), HEAD)
            .await?
            .map(read)
            .transpose()
    }

    /// Schedules that somebody has to look after at `now` (milliseconds since the Unix epoch), about `limit` of them and
    /// the oldest first. The index may be behind: what it names has to be read.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn due_schedules(&self, now: i64, limit: i32) -> Result<Vec<Uuid>, StoreError> {
        let due = self.due_in_shard(DUE.to_owned(), Some(now), limit).await?;
        Ok(due.iter().filter_map(DueKey::schedule).collect())
    }

    /// Decides a firing for which no run is started, at least not yet: its head goes from `before` to `after`, and with `told`
    /// somebody is told. `false` when somebody wrote the head since it was read.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn decide_firing(
        &self,
        before: &ScheduleHead,
        after: &ScheduleHead,
        firing: &Firing,
        told: Option<&Hook>,
    ) -> Result<bool, StoreError> {
        let mut writes = firing_writes(before, after, std::slice::from_ref(firing))?;
        if let Some(hook) = told {
            writes.push(Write::plain(hook_row(hook)?));
        }
        match self.transact(writes).await {
            Ok(()) => Ok(true),
            Err(WriteError::Condition(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a schedule's head for which nothing was decided: somebody looked. `false` when somebody wrote it since it was read.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_schedule_head(
        &self,
        before: &ScheduleHead,
        after: &ScheduleHead,
    ) -> Result<bool, StoreError> {
        match self
            .put(head_row(after)?, Some(Condition::Version(before.version)))
            .await
        {
            Ok(()) => Ok(true),
            Err(WriteError::Condition(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The firings of a schedule in the order of time, or the newest first; at most `limit`, after the place `after` in that order.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn firings(
        &self,
        schedule: Uuid,
        newest_first: bool,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<KeptFiring>, StoreError> {
        let (mut from, mut to) = (FIRING.to_owned(), format!("{FIRING}~"));
        match after {
            // No key has a character below a space, nor one above a tilde.
            Some(after) if newest_first => to = format!("{FIRING}{}", below(after)),
            Some(after) => from = format!("{FIRING}{after} "),
            None => {}
        }
        if from > to {
            return Ok(Vec::new());
        }
        let range = Range::Between(&from, &to);
        let rows = self
            .query(&schedule_pk(schedule), range, !newest_first, Some(limit))
            .await?;
        rows.into_iter()
            .map(|row| {
                let place = string(&row, "sk")?.trim_start_matches(FIRING).to_owned();
                Ok(KeptFiring {
                    place,
                    firing: read(row)?,
                })
            })
            .collect()
    }
}

/// A text that stands right before `place` in the order of texts, for places as keys have them.
fn below(place: &str) -> String {
    let mut text = place.to_owned();
    let last = text.pop().map_or('\u{1f}', |c| {
        char::from_u32(u32::from(c).saturating_sub(1)).unwrap_or(' ')
    });
    text.push(last);
    text.push('~');
    text
}
