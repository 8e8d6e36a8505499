//! Hooks: rows of their own beside the item that they tell of, written in the same transaction as its change.

use uuid::Uuid;

use super::{
    Condition, DueKey, Row, Store, StoreError, WriteError,
    items::{DECISION_TRIES, detail_pk, due_shard},
    read, text, write,
};
use crate::lifecycle::{Hook, HookEvent, Refused};

/// Names a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookKey {
    /// The item.
    pub item: Uuid,
    /// What it tells.
    pub event: HookEvent,
}

fn hook_sk(event: HookEvent) -> String {
    format!("HOOK#{}", event.as_str())
}

pub(super) fn hook_row(hook: &Hook) -> Result<Row, StoreError> {
    let item = hook.item();
    let mut row = write(&detail_pk(item), &hook_sk(hook.event), hook)?;
    if hook.due_at.is_some() {
        row.insert("dueShard".to_owned(), text(due_shard(item.as_u128())));
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
        let item = self.pk.strip_prefix("ITEM#")?.parse().ok()?;
        let event = [HookEvent::Started, HookEvent::Ended]
            .into_iter()
            .find(|&event| hook_sk(event) == self.sk)?;
        Some(HookKey { item, event })
    }
}

impl Store {
    /// Reads a hook.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn hook(&self, key: HookKey) -> Result<Option<Hook>, StoreError> {
        self.get(&detail_pk(key.item), &hook_sk(key.event))
            .await?
            .map(read)
            .transpose()
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
            Some(HookKey { item, event })
        );
        assert_eq!(due(detail_pk(item), "EVENT#x").hook(), None);
        assert_eq!(due("RUN#x#0".to_owned(), "ITEM#000000").hook(), None);
    }
}
