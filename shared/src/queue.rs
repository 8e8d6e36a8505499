//! The queues. A message names an item and carries its head as it was when the message was sent, so that the worker's
//! first write needs no read: where the head has changed, the write's condition fails and brings the present one.

use std::{collections::HashMap, sync::Arc};

use aws_sdk_sqs::{
    Client, Config,
    error::DisplayErrorContext,
    types::{
        MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
        QueueAttributeName, SendMessageBatchRequestEntry,
    },
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    aws::{self, Lazy},
    lifecycle::{Hook, Item, Owed},
    trace::Trace,
};

/// SQS delays a message by at most 15 minutes.
const MAX_DELAY_SECONDS: i64 = 900;

/// How many characters of a reason go with a message that is put aside: they count towards its size.
const MAX_REASON: usize = 1000;

/// A queue that carries items' work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkQueue {
    /// Conversations: to be begun, gone on with, looked up and hung up.
    RunItems,
    /// Verdicts.
    Evaluations,
}

impl WorkQueue {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::RunItems, Self::Evaluations];

    /// The queue that carries what is owed, if one does.
    #[must_use]
    pub fn of(owed: Owed) -> Option<Self> {
        match owed {
            Owed::Start | Owed::Continue | Owed::LookUp | Owed::HangUp => Some(Self::RunItems),
            Owed::Evaluate => Some(Self::Evaluations),
            Owed::Nothing | Owed::Admit | Owed::Deliver => None,
        }
    }

    /// Its name, as the local stack calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RunItems => "run-items",
            Self::Evaluations => "evaluations",
        }
    }
}

/// What a worker is asked to do for an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The item as it was when the message was sent.
    pub item: Item,
}

/// What a worker is asked to deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookMessage {
    /// The hook as it was when the message was sent.
    pub hook: Hook,
}

/// The queue did not take a message.
#[derive(Debug, thiserror::Error)]
#[error("the queue is unavailable: {0}")]
pub struct QueueError(String);

/// The queues.
#[derive(Debug, Clone)]
pub struct Queues {
    client: Lazy<Client>,
    run_items: Arc<str>,
    evaluations: Arc<str>,
    deliveries: Arc<str>,
    /// Of the queue that this context's function receives from.
    dead_letters: Option<Arc<str>>,
}

/// Messages for one queue.
#[derive(Default)]
struct Batch(Vec<SendMessageBatchRequestEntry>);

impl Batch {
    /// Adds a message of `group` that is not to be received before `not_before` and belongs to `trace`. Times are in milliseconds
    /// since the Unix epoch.
    fn add(
        &mut self,
        message: &impl Serialize,
        group: Uuid,
        not_before: Option<i64>,
        trace: Option<Trace>,
        now: i64,
    ) -> Result<(), QueueError> {
        let body = serde_json::to_string(message).map_err(|error| QueueError(error.to_string()))?;
        let pause = not_before.map_or(0, |at| (at - now).max(0));
        let delay = (pause + 999) / 1000;
        let trace = trace.map(traced).transpose()?;
        let entry = SendMessageBatchRequestEntry::builder()
            .id(self.0.len().to_string())
            .message_body(body)
            .set_delay_seconds((delay > 0).then(|| i32::try_from(delay.min(MAX_DELAY_SECONDS)).unwrap_or(0)))
            // Fair queues: one organization's backlog does not hold up another's.
            .message_group_id(group.to_string())
            .set_message_system_attributes(trace)
            .build()
            .map_err(|error| QueueError(error.to_string()))?;
        self.0.push(entry);
        Ok(())
    }
}

/// The attribute by which Lambda and X-Ray know the trace of a message.
fn traced(
    trace: Trace,
) -> Result<HashMap<MessageSystemAttributeNameForSends, MessageSystemAttributeValue>, QueueError> {
    let value = MessageSystemAttributeValue::builder()
        .data_type("String")
        .string_value(trace.to_amazon())
        .build()
        .map_err(|error| QueueError(error.to_string()))?;
    let name = MessageSystemAttributeNameForSends::AwsTraceHeader;
    Ok(HashMap::from([(name, value)]))
}

impl Queues {
    /// The queues at these URLs.
    #[must_use]
    pub fn new(config: Config, run_items_url: &str, evaluations_url: &str, deliveries_url: &str) -> Self {
        Self {
            client: aws::lazy(|| Client::from_conf(config)),
            run_items: run_items_url.into(),
            evaluations: evaluations_url.into(),
            deliveries: deliveries_url.into(),
            dead_letters: None,
        }
    }

    /// The same queues, for a function that receives from the queue with these dead letters.
    #[must_use]
    pub fn with_dead_letters(mut self, url: &str) -> Self {
        self.dead_letters = Some(url.into());
        self
    }

    /// Puts a message that can never succeed into the dead-letter queue, as it is. `source`, the queue that it is from, and
    /// `reason` are attributes of it, the reason without what an attribute cannot carry and cut to 1,000 characters.
    ///
    /// # Errors
    /// When it was not taken, or there is no dead-letter queue to put it into: then it has to be received again, and SQS moves it in
    /// the end.
    pub async fn put_aside(&self, source: &str, body: &str, reason: &str) -> Result<(), QueueError> {
        let Some(url) = self.dead_letters.as_deref() else {
            return Err(QueueError(
                "set the environment variable DEAD_LETTERS_QUEUE_URL".to_owned(),
            ));
        };
        let attribute = |text: &str| {
            let text: String = text
                .chars()
                .map(|c| {
                    if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') {
                        ' '
                    } else {
                        c
                    }
                })
                .take(MAX_REASON)
                .collect();
            MessageAttributeValue::builder()
                .data_type("String")
                .string_value(text)
                .build()
                .map_err(|error| QueueError(error.to_string()))
        };
        self.client
            .send_message()
            .queue_url(url)
            .message_body(body)
            .message_attributes("source", attribute(source)?)
            .message_attributes("reason", attribute(reason)?)
            .send()
            .await
            .map_err(|error| QueueError(DisplayErrorContext(&error).to_string()))?;
        Ok(())
    }

    /// Sends each item to the queue of what it is owed, not to be received before its pause is over. `now` is in
    /// milliseconds since the Unix epoch. Items that are owed nothing that a queue carries are passed over.
    ///
    /// # Errors
    /// When a message was not taken. Some of the others may have been: what is owed is sent again, and a second message
    /// for the same step changes nothing.
    pub async fn send(&self, items: &[Item], now: i64) -> Result<(), QueueError> {
        let (mut run_items, mut evaluations) = (Batch::default(), Batch::default());
        for item in items {
            let batch = match WorkQueue::of(item.owed) {
                Some(WorkQueue::RunItems) => &mut run_items,
                Some(WorkQueue::Evaluations) => &mut evaluations,
                None => continue,
            };
            batch.add(
                &Message { item: item.clone() },
                item.org,
                item.not_before,
                item.trace,
                now,
            )?;
        }
        self.send_batch(&self.run_items, run_items).await?;
        self.send_batch(&self.evaluations, evaluations).await
    }

    /// Sends each hook to the queue of deliveries, as [`Queues::send`] does.
    ///
    /// # Errors
    /// As [`Queues::send`].
    pub async fn send_hooks(&self, hooks: &[Hook], now: i64) -> Result<(), QueueError> {
        let mut batch = Batch::default();
        for hook in hooks.iter().filter(|hook| hook.owed == Owed::Deliver) {
            batch.add(
                &HookMessage { hook: hook.clone() },
                hook.org,
                hook.not_before,
                hook.trace,
                now,
            )?;
        }
        self.send_batch(&self.deliveries, batch).await
    }

    /// How many messages wait on a queue for a worker, about: those that a worker has received do not count, nor those whose
    /// pause is not over.
    ///
    /// # Errors
    /// When the queue cannot be asked.
    pub async fn backlog(&self, queue: WorkQueue) -> Result<usize, QueueError> {
        let url = match queue {
            WorkQueue::RunItems => &self.run_items,
            WorkQueue::Evaluations => &self.evaluations,
        };
        let asked = QueueAttributeName::ApproximateNumberOfMessages;
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(&**url)
            .attribute_names(asked.clone())
            .send()
            .await
            .map_err(|error| QueueError(DisplayErrorContext(&error).to_string()))?;
        answer
            .attributes()
            .and_then(|all| all.get(&asked)?.parse().ok())
            .ok_or_else(|| QueueError("it does not say how many messages it holds".to_owned()))
    }

    async fn send_batch(&self, url: &str, batch: Batch) -> Result<(), QueueError> {
        for chunk in batch.0.chunks(10) {
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_which_trace_it_belongs_to() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for trace in [Trace::from_traceparent(header), None] {
            let item = Item {
                trace,
                ..Item::admitted(Uuid::nil(), Uuid::nil(), 0, 1, 0)
            };
            let mut batch = Batch::default();
            let message = Message { item: item.clone() };
            batch.add(&message, item.org, None, item.trace, 0).unwrap();
            let attributes = batch.0[0].message_system_attributes();
            let name = MessageSystemAttributeNameForSends::AwsTraceHeader;
            let value = attributes.and_then(|all| all.get(&name)?.string_value());
            let expected = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";
            assert_eq!(value, trace.map(|_| expected));
        }
    }
}
