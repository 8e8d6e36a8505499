//! What others sent and nobody can read, such as webhooks: kept with the reason, so that nothing is lost. Poison on a queue is in that
//! queue's dead-letter queue instead.

use serde_json::Value;

use super::{Range, Store, StoreError, assemble, document, text};
use crate::clock::iso;

/// What the partitions of the days begin with.
pub(super) const QUARANTINE: &str = "QUARANTINE#";

impl Store {
    /// Keeps a message with the reason why it can never succeed. `now` is in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn quarantine(
        &self,
        source: &str,
        message_id: &str,
        body: &str,
        reason: &str,
        now: i64,
    ) -> Result<(), StoreError> {
        let at = iso(now);
        let day = at.get(..10).unwrap_or_default();
        let (mut head, parts) = document(&format!("{QUARANTINE}{day}"), message_id, body);
        head.insert("source".to_owned(), text(source));
        head.insert("reason".to_owned(), text(reason));
        head.insert("at".to_owned(), text(&at));
        self.batch_put(parts).await?;
        Ok(self.put(head, None).await?)
    }

    /// Reads what was quarantined on a day (`2026-03-26`): source, reason, time and body of each message.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn quarantined(&self, day: &str) -> Result<Vec<Value>, StoreError> {
        let rows = self
            .query(&format!("{QUARANTINE}{day}"), Range::All, true, None)
            .await?;
        let field = |row: &super::Row, name: &str| super::string(row, name).unwrap_or_default().to_owned();
        Ok(assemble(rows)?
            .into_iter()
            .map(|(row, body)| {
                serde_json::json!({
                    "id": field(&row, "sk"),
                    "source": field(&row, "source"),
                    "reason": field(&row, "reason"),
                    "at": field(&row, "at"),
                    "body": body,
                })
            })
            .collect())
    }
}
