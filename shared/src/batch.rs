//! One SQS batch: each record is decoded by itself, worked on under its own time limit, and cannot take the others along.

use std::{any::Any, collections::HashSet, panic::AssertUnwindSafe, time::Duration};

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::{FutureExt, StreamExt, stream};
use serde::de::DeserializeOwned;
use tracing::{Instrument, Span};

use crate::{
    clock::Deadline,
    context::Context,
    queue::{HookMessage, Message},
    telemetry,
};

/// A message that says what it is about.
pub trait About {
    /// The span of the work for it.
    fn span(&self) -> Span;
}

impl About for Message {
    fn span(&self) -> Span {
        telemetry::item_span(&self.item)
    }
}

impl About for HookMessage {
    fn span(&self) -> Span {
        telemetry::hook_span(&self.hook)
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// There is nothing to do for it any more; the reason is logged.
    Drop(&'static str),
    /// It may succeed later: it goes back to the queue.
    Retry(String),
    /// It can never succeed: it is put aside, into the dead-letter queue, with the reason.
    Quarantine(String),
}

/// Time that is kept back from each record, so that the batch's answer leaves before Lambda's deadline.
const MARGIN: Duration = Duration::from_secs(2);

/// Works on every record of a batch, `ctx.config.record_concurrency` at a time, and answers with those that have to be
/// received again. `source` is the queue's name in logs and in its dead-letter queue.
///
/// # Errors
/// When a record has no message id: an empty identifier in the answer would mean the whole batch failed, silently.
pub async fn process<M, F>(
    ctx: &Context,
    source: &'static str,
    event: SqsEvent,
    deadline: Deadline,
    work: impl Fn(M, Deadline) -> F,
) -> Result<SqsBatchResponse, crate::context::BoxError>
where
    M: DeserializeOwned + About,
    F: Future<Output = Outcome>,
{
    if event
        .records
        .iter()
        .any(|record| record.message_id.as_deref().unwrap_or_default().is_empty())
    {
        return Err("a record of the batch has no message id".into());
    }
    let mut seen = HashSet::new();
    let work = &work;
    let failures: Vec<Option<String>> = stream::iter(event.records)
        .filter(|record| std::future::ready(seen.insert(record.message_id.clone())))
        // Boxed, because the state of a handler is large: unboxed it is moved through every frame below.
        .map(|record| Box::pin(one(ctx, source, record, deadline, work)))
        .buffer_unordered(ctx.config.record_concurrency.max(1))
        .collect()
        .await;
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = failures
        .into_iter()
        .flatten()
        .map(|id| {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = id;
            failure
        })
        .collect();
    Ok(response)
}

/// Works on one record; gives its message id when it has to be received again.
async fn one<M, F>(
    ctx: &Context,
    source: &'static str,
    record: SqsMessage,
    deadline: Deadline,
    work: &impl Fn(M, Deadline) -> F,
) -> Option<String>
where
    M: DeserializeOwned + About,
    F: Future<Output = Outcome>,
{
    let id = record.message_id.unwrap_or_default();
    let body = record.body.unwrap_or_default();
    let record = tracing::error_span!("record", messageId = id, source);
    let message = serde_json::from_str::<M>(&body);
    let about = record.in_scope(|| message.as_ref().map_or_else(|_| Span::none(), About::span));
    let done = async {
        let outcome = attempt(message, deadline, work).await;
        settle(ctx, source, id, &body, outcome).await
    };
    done.instrument(about).instrument(record).await
}

/// Works on a message, if the record is one.
async fn attempt<M, F>(
    message: serde_json::Result<M>,
    deadline: Deadline,
    work: &impl Fn(M, Deadline) -> F,
) -> Outcome
where
    F: Future<Output = Outcome>,
{
    match message {
        Err(error) => Outcome::Quarantine(format!("the body is not a message of this queue: {error}")),
        Ok(message) => {
            let budget = deadline.left().saturating_sub(MARGIN);
            // Called inside, so that a panic before the first await is caught as well.
            let attempt = async { Box::pin(work(message, Deadline::after(budget))).await };
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            match tokio::time::timeout(budget, attempt).await {
                Err(_) => Outcome::Retry("the time ran out".to_owned()),
                Ok(Err(panic)) => {
                    Outcome::Quarantine(format!("the handler panicked: {}", panic_text(&*panic)))
                }
                Ok(Ok(outcome)) => outcome,
            }
        }
    }
}

/// Follows an outcome up; gives the message's id when it has to be received again.
async fn settle(
    ctx: &Context,
    source: &'static str,
    id: String,
    body: &str,
    outcome: Outcome,
) -> Option<String> {
    match outcome {
        Outcome::Done => None,
        Outcome::Drop(reason) => {
            tracing::debug!(reason, "dropped");
            None
        }
        Outcome::Retry(reason) => {
            tracing::warn!(reason, "to be received again");
            Some(id)
        }
        Outcome::Quarantine(reason) => {
            tracing::error!(reason, "put aside");
            // Moved there now, and not after five attempts at something that cannot succeed.
            match ctx.queues.put_aside(source, body, &reason).await {
                Ok(()) => {
                    ctx.metrics.quarantined();
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "not put aside, to be received again");
                    Some(id)
                }
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
