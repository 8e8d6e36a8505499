//! Hooks: rows of their own beside what they tell of, written in the same transaction as its change.

use uuid::Uuid;

use super::{
    Condition, DueKey, Row, Store, StoreError, WriteError,
    items::{DECISION_TRIES, detail_pk, due_shard},
    number, read,
    runs::run_pk,
    schedules::{KEPT_MS, schedule_pk, time_key},
    text, write,
};
use crate::{
    ids,
    lifecycle::{Hook, HookEvent, Refused, Subject},
};

/// Names a hook: where its row is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HookKey {
    pk: String,
    sk: String,
}

impl HookKey {
    /// What is told of an item.
    #[must_use]
    pub fn of_item(item: Uuid, event: HookEvent) -> Self {
        Self {
            pk: detail_pk(item),
            sk: format!("HOOK#{}", event.as_str()),
        }
    }

    /// What is told of a run.
    #[must_use]
    pub fn of_run(run: Uuid, event: HookEvent) -> Self {
        Self {
            pk: run_pk(run),
            sk: format!("HOOK#{}", event.as_str()),
        }
    }

    /// A firing of a schedule, due at `at` (milliseconds since the Unix epoch), for which no run could be started.
    #[must_use]
    pub fn of_firing(schedule: Uuid, at: i64) -> Self {
        Self {
            pk: schedule_pk(schedule),
            sk: format!("HOOK#{}#{}", HookEvent::ScheduleFailed.as_str(), time_key(at)),
        }
    }

    fn of(hook: &Hook) -> Self {
        match hook.subject {
            Subject::Item { run, index, .. } => Self::of_item(ids::item_id(run, index), hook.event),
            Subject::Run { run, .. } => Self::of_run(run, hook.event),
            Subject::Firing { schedule, fire_at } => Self::of_firing(schedule, fire_at),
        }
    }
}

pub(super) fn hook_row(hook: &Hook) -> Result<Row, StoreError> {
    let at = HookKey::of(hook);
    let mut row = write(&at.pk, &at.sk, hook)?;
    if hook.due_at.is_some() {
        // Anything that spreads them.
        let spread = at.pk.bytes().map(u128::from).sum();
        row.insert("dueShard".to_owned(), text(due_shard(spread)));
    }
    if let Subject::Firing { fire_at, .. } = hook.subject {
        // As long as the firing that it is about.
        row.insert("expiresAt".to_owned(), number((fire_at + KEPT_MS) / 1000));
    }
    Ok(row)
}

/// Reads a hook from a stream record's image.
///
/// # Errors
/// When the image is not a hook's.
pub fn hook_from_image(image: serde_dynamo::Item) -> Result<Hook, StoreError> {
    serde_dynamo::from_item(image).map_err(|error| StoreError::Corrupt(error.to_string()))
}

impl DueKey {
    /// The hook, if the row is one.
    #[must_use]
    pub fn hook(&self) -> Option<HookKey> {
        let told = ["ITEM#", "RUN#", "SCHEDULE#"]
            .iter()
            .any(|of| self.pk.starts_with(of));
        (told && self.sk.starts_with("HOOK#")).then(|| HookKey {
            pk: self.pk.clone(),
            sk: self.sk.clone(),
        })
    }
}

impl Store {
    /// Reads a hook.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn hook(&self, key: &HookKey) -> Result<Option<Hook>, StoreError> {
        self.get(&key.pk, &key.sk).await?.map(read).transpose()
    }

    /// Writes `change(hook)` on the condition that nobody wrote since `hook` was read; when somebody did, the change is
    /// tried on their hook. `None` when `change` refuses, or the hook is not there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn change_hook(
        &self,
        mut hook: Hook,
        change: impl Fn(&Hook) -> Result<Hook, Refused>,
    ) -> Result<Option<Hook>, StoreError> {
        for _ in 0..DECISION_TRIES {
            let Ok(next) = change(&hook) else { return Ok(None) };
            match self
                .put(hook_row(&next)?, Some(Condition::Version(hook.version)))
                .await
            {
                Ok(()) => return Ok(Some(next)),
                Err(WriteError::Condition(Some(row))) => hook = read(row)?,
                Err(WriteError::Condition(None)) => return Ok(None),
                Err(WriteError::Other(error)) => return Err(error),
            }
        }
        Err(StoreError::Throttled(
            "a hook is written by too many at once".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_keys_lead_back_to_hooks() {
        let item = Uuid::from_u128(7);
        let due = |pk: String, sk: &str| DueKey {
            pk,
            sk: sk.to_owned(),
            due_at: 0,
        };
        let event = HookEvent::Ended;
        assert_eq!(
            due(detail_pk(item), "HOOK#ended").hook(),
            Some(HookKey::of_item(item, event))
        );
        let run = due(run_pk(item), "HOOK#run-ended");
        assert!(run.hook().is_some() && run.item().is_none() && run.run().is_none());
        assert_eq!(due(detail_pk(item), "EVENT#x").hook(), None);
        assert_eq!(due("RUN#x#0".to_owned(), "ITEM#000000").hook(), None);
    }
}
