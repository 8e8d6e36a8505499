//! The queues. A message names an item and carries its head as it was when the message was sent, so that the worker's
//! first write needs no read: where the head has changed, the write's condition fails and brings the present one.

use std::{collections::BTreeMap, sync::Arc};

use aws_sdk_sqs::{Client, error::DisplayErrorContext, types::SendMessageBatchRequestEntry};
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Item, Owed};

/// SQS delays a message by at most 15 minutes.
const MAX_DELAY_SECONDS: i64 = 900;

/// What a worker is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The item as it was when the message was sent.
    pub item: Item,
}

/// The queue did not take a message.
#[derive(Debug, thiserror::Error)]
#[error("the queue is unavailable: {0}")]
pub struct QueueError(String);

/// The queues.
#[derive(Debug, Clone)]
pub struct Queues {
    client: Client,
    run_items: Arc<str>,
    evaluations: Arc<str>,
}

impl Queues {
    /// The queues at these URLs.
    #[must_use]
    pub fn new(client: Client, run_items_url: &str, evaluations_url: &str) -> Self {
        Self {
            client,
            run_items: run_items_url.into(),
            evaluations: evaluations_url.into(),
        }
    }

    /// Sends each item to the queue of what it is owed, not to be received before its pause is over. `now` is in
    /// milliseconds since the Unix epoch. Items that are owed nothing that a queue carries are passed over.
    ///
    /// # Errors
    /// When a message was not taken. Some of the others may have been: what is owed is sent again, and a second message
    /// for the same step changes nothing.
    pub async fn send(&self, items: &[Item], now: i64) -> Result<(), QueueError> {
        let mut by_queue: BTreeMap<&str, Vec<SendMessageBatchRequestEntry>> = BTreeMap::new();
        for item in items {
            let url = match item.owed {
                Owed::Start | Owed::Continue => &self.run_items,
                Owed::Evaluate => &self.evaluations,
                _ => continue,
            };
            let body = serde_json::to_string(&Message { item: item.clone() })
                .map_err(|error| QueueError(error.to_string()))?;
            let pause = item.not_before.map_or(0, |at| (at - now).max(0));
            let delay = (pause + 999) / 1000;
            let entries = by_queue.entry(url).or_default();
            let entry = SendMessageBatchRequestEntry::builder()
                .id(entries.len().to_string())
                .message_body(body)
                .set_delay_seconds(
                    (delay > 0).then(|| i32::try_from(delay.min(MAX_DELAY_SECONDS)).unwrap_or(0)),
                )
                // Fair queues: one run's backlog does not hold up another's.
                .message_group_id(item.run.to_string())
                .build()
                .map_err(|error| QueueError(error.to_string()))?;
            entries.push(entry);
        }
        for (url, entries) in by_queue {
            for chunk in entries.chunks(10) {
                let answer = self
                    .client
                    .send_message_batch()
                    .queue_url(url)
                    .set_entries(Some(chunk.to_vec()))
                    .send()
                    .await
                    .map_err(|error| QueueError(DisplayErrorContext(&error).to_string()))?;
                if let Some(failed) = answer.failed().first() {
                    return Err(QueueError(format!(
                        "{}: {}",
                        failed.code(),
                        failed.message().unwrap_or_default()
                    )));
                }
            }
        }
        Ok(())
    }
}
