//! What calls the functions on AWS, as small loops: the queues' and the stream's event-source mappings and the clock.
//!
//! They keep the promises of the originals that the functions rest on: at least once, a partial failure repeats only what
//! failed, what is not reported as done comes again, the stream in order, and a function that panics or overruns its time
//! is a failed invocation and nothing more.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::{
    dynamodb::{Event as StreamEvent, EventRecord, StreamRecord as Change, StreamViewType, UserIdentity},
    sqs::{SqsBatchResponse, SqsEvent, SqsMessage, SqsMessageAttribute},
    streams::DynamoDbEventResponse,
};
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName as SystemAttribute,
};
use futures_util::FutureExt;
use ringback_shared::clock::Deadline;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::emulator::{REGION, Stream, StreamRecord};

/// A handler's error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The most messages that SQS hands over or deletes in one request.
const SQS_BATCH: usize = 10;

/// How long a finished message waits for others to be deleted with.
const DELETE_LINGER: Duration = Duration::from_millis(50);

/// How long a free worker waits for others to become free while the queue is known to hold more.
const RECEIVE_LINGER: Duration = Duration::from_millis(4);

/// How long the loops wait after an error of the emulators.
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// How long running invocations may go on once the program stops.
const GRACE: Duration = Duration::from_millis(500);

/// Tells the loops to stop.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A switch and what it stops.
    #[must_use]
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns once the switch was thrown or dropped.
    pub async fn stopped(&mut self) {
        // An error means that the sender is gone: a stop as well.
        let _gone = self.0.wait_for(|stop| *stop).await;
    }

    /// Waits for `pause`, or until the stop. Returns whether to go on.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::time::timeout(pause, self.stopped()).await.is_err()
    }
}

/// Calls a function as Lambda does: within its time, and a panic is an error. What went wrong is logged here.
pub async fn invoke<T>(
    function: &str,
    deadline: Deadline,
    work: impl Future<Output = Result<T, BoxError>>,
) -> Option<T> {
    match tokio::time::timeout(deadline.left(), AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(Ok(done))) => Some(done),
        Ok(Ok(Err(error))) => {
            tracing::error!(function, error = error.to_string(), "the function failed");
            None
        }
        Ok(Err(panic)) => {
            tracing::error!(function, panic = panic_text(&*panic), "the function panicked");
            None
        }
        Err(_) => {
            tracing::error!(function, "the function ran out of time");
            None
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

// --- Queues -----------------------------------------------------------------------------------------------------------

/// How a queue feeds a function.
#[derive(Debug, Clone)]
pub struct QueueMapping {
    /// The function's name, for the log.
    pub function: &'static str,
    /// The queue.
    pub queue_url: String,
    /// Messages per invocation, ten at most. One where a slow message must not hold up others.
    pub batch: usize,
    /// Invocations at once.
    pub invocations: usize,
    /// The function's time limit.
    pub timeout: Duration,
}

/// Feeds a queue to `handler` until the stop, then gives running invocations a moment and drops them: their messages
/// come back after their visibility timeout.
pub async fn feed_queue<H, F>(sqs: aws_sdk_sqs::Client, mapping: QueueMapping, handler: H, mut stop: Stop)
where
    H: Fn(SqsEvent, Deadline) -> F + Send + Sync + 'static,
    F: Future<Output = Result<SqsBatchResponse, BoxError>> + Send + 'static,
{
    let mapping = Arc::new(mapping);
    let handler = Arc::new(handler);
    let slots = Arc::new(Semaphore::new(mapping.invocations.max(1)));
    let (done, finished) = mpsc::channel(1024);
    let deleting = delete_finished(sqs.clone(), mapping.queue_url.clone(), finished);
    let receiving = async {
        let mut running = JoinSet::new();
        let mut backlog = false;
        loop {
            let received = tokio::select! {
                () = stop.stopped() => break,
                received = receive(&sqs, &mapping, &slots, backlog) => received,
            };
            while running.try_join_next().is_some() {}
            let Received {
                messages,
                mut permits,
                asked,
            } = match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::error!(
                        function = mapping.function,
                        error,
                        "cannot receive from the queue"
                    );
                    if stop.pause(ERROR_PAUSE).await {
                        continue;
                    }
                    break;
                }
            };
            backlog = messages.len() == asked;
            let mut messages = messages.into_iter();
            while let Some(permit) = permits.split(1) {
                let batch: Vec<Message> = messages.by_ref().take(mapping.batch).collect();
                if batch.is_empty() {
                    break;
                }
                let call = call_with_batch(
                    Arc::clone(&mapping),
                    Arc::clone(&handler),
                    batch,
                    done.clone(),
                    permit,
                );
                running.spawn(call);
            }
        }
        let _overrun =
            tokio::time::timeout(GRACE, async { while running.join_next().await.is_some() {} }).await;
        running.shutdown().await;
        // The last sender: the deleter writes what it has and ends.
        drop(done);
    };
    tokio::join!(receiving, deleting);
}

/// Messages, and the right to call the function for them.
struct Received {
    messages: Vec<Message>,
    permits: OwnedSemaphorePermit,
    asked: usize,
}

/// Receives no more messages than there are free invocations for.
async fn receive(
    sqs: &aws_sdk_sqs::Client,
    mapping: &QueueMapping,
    slots: &Arc<Semaphore>,
    backlog: bool,
) -> Result<Received, String> {
    let batch = mapping.batch.clamp(1, SQS_BATCH);
    let mut permits = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(|_| "the workers are closed".to_owned())?;
    if backlog && slots.available_permits() == 0 {
        // A request for every worker that becomes free costs more than these few milliseconds.
        tokio::time::sleep(RECEIVE_LINGER).await;
    }
    while permits.num_permits() * batch < SQS_BATCH {
        match Arc::clone(slots).try_acquire_owned() {
            Ok(more) => permits.merge(more),
            Err(_) => break,
        }
    }
    let asked = (permits.num_permits() * batch).min(SQS_BATCH);
    let answer = sqs
        .receive_message()
        .queue_url(&mapping.queue_url)
        .max_number_of_messages(i32::try_from(asked).unwrap_or(10))
        .wait_time_seconds(20)
        .message_system_attribute_names(SystemAttribute::All)
        .message_attribute_names("All")
        .send()
        .await
        .map_err(|error| with_causes(&error))?;
    Ok(Received {
        messages: answer.messages.unwrap_or_default(),
        permits,
        asked,
    })
}

async fn call_with_batch<H, F>(
    mapping: Arc<QueueMapping>,
    handler: Arc<H>,
    batch: Vec<Message>,
    done: mpsc::Sender<String>,
    permit: OwnedSemaphorePermit,
) where
    H: Fn(SqsEvent, Deadline) -> F + Send + Sync + 'static,
    F: Future<Output = Result<SqsBatchResponse, BoxError>> + Send + 'static,
{
    let receipts: Vec<(String, String)> = batch
        .iter()
        .filter_map(|message| Some((message.message_id.clone()?, message.receipt_handle.clone()?)))
        .collect();
    let event = sqs_event(&mapping.queue_url, batch);
    let deadline = Deadline::after(mapping.timeout);
    // Built inside the future, so that a handler that panics before its first await is caught as well.
    let answer = invoke(mapping.function, deadline, async {
        handler(event, deadline).await
    })
    .await;
    drop(permit);
    for receipt in succeeded(receipts, answer.as_ref()) {
        // The deleter lives as long as there are senders.
        let _gone = done.send(receipt).await;
    }
}

/// The receipt handles of the messages that are done. As on AWS, an answer that names a message that was not in the
/// batch fails the batch as a whole.
fn succeeded(receipts: Vec<(String, String)>, answer: Option<&SqsBatchResponse>) -> Vec<String> {
    let Some(answer) = answer else { return Vec::new() };
    let failed: HashSet<&str> = answer
        .batch_item_failures
        .iter()
        .map(|failure| failure.item_identifier.as_str())
        .collect();
    let known: HashSet<&str> = receipts.iter().map(|(id, _)| id.as_str()).collect();
    if !failed.is_subset(&known) {
        tracing::error!(
            "a function reported a message that it was not given: the whole batch counts as failed"
        );
        return Vec::new();
    }
    receipts
        .iter()
        .filter(|(id, _)| !failed.contains(id.as_str()))
        .map(|(_, handle)| handle.clone())
        .collect()
}

/// The event that Lambda makes of messages.
#[must_use]
pub fn sqs_event(queue_url: &str, messages: Vec<Message>) -> SqsEvent {
    let name = queue_url.rsplit('/').next().unwrap_or_default();
    let arn = format!(
        "arn:aws:sqs:{REGION}:{}:{name}",
        queue_url.rsplit('/').nth(1).unwrap_or_default()
    );
    let mut event = SqsEvent::default();
    event.records = messages
        .into_iter()
        .map(|message| {
            let mut record = SqsMessage::default();
            record.message_id = message.message_id;
            record.receipt_handle = message.receipt_handle;
            record.body = message.body;
            record.md5_of_body = message.md5_of_body;
            record.md5_of_message_attributes = message.md5_of_message_attributes;
            record.attributes = message
                .attributes
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name.as_str().to_owned(), value))
                .collect();
            record.message_attributes = message
                .message_attributes
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| {
                    let mut attribute = SqsMessageAttribute::default();
                    attribute.data_type = Some(value.data_type);
                    attribute.string_value = value.string_value;
                    (name, attribute)
                })
                .collect::<HashMap<_, _>>();
            record.event_source = Some("aws:sqs".to_owned());
            record.event_source_arn = Some(arn.clone());
            record.aws_region = Some(REGION.to_owned());
            record
        })
        .collect();
    event
}

/// Deletes finished messages, up to ten in a request.
async fn delete_finished(sqs: aws_sdk_sqs::Client, queue_url: String, mut finished: mpsc::Receiver<String>) {
    while let Some(first) = finished.recv().await {
        let mut handles = vec![first];
        let until = tokio::time::Instant::now() + DELETE_LINGER;
        while handles.len() < SQS_BATCH {
            match tokio::time::timeout_at(until, finished.recv()).await {
                Ok(Some(handle)) => handles.push(handle),
                Ok(None) | Err(_) => break,
            }
        }
        if let Err(error) = delete_batch(&sqs, &queue_url, handles).await {
            // The messages come back and are handled again, which handlers are made for.
            tracing::warn!(error, "cannot delete finished messages");
        }
    }
}

async fn delete_batch(
    sqs: &aws_sdk_sqs::Client,
    queue_url: &str,
    handles: Vec<String>,
) -> Result<(), String> {
    let entries: Vec<_> = handles
        .into_iter()
        .enumerate()
        .map(|(index, handle)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(handle)
                .build()
        })
        .collect::<Result<_, _>>()
        .map_err(|error| with_causes(&error))?;
    let request = sqs
        .delete_message_batch()
        .queue_url(queue_url)
        .set_entries(Some(entries));
    let answer = request.send().await.map_err(|error| with_causes(&error))?;
    match answer.failed.first() {
        None => Ok(()),
        Some(failure) => Err(format!(
            "{} failed, one with {}",
            answer.failed.len(),
            failure.code
        )),
    }
}

/// The text of an error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

// --- The stream -------------------------------------------------------------------------------------------------------

/// How the table's stream feeds a function.
#[derive(Debug, Clone)]
pub struct StreamMapping {
    /// The function's name, for the log.
    pub function: &'static str,
    /// The table.
    pub table: String,
    /// Records whose sort key begins so are passed over, as the mapping's filter does.
    pub skip: &'static str,
    /// The most records per invocation.
    pub batch: usize,
    /// How long records are gathered after the first.
    pub window: Duration,
    /// How long to wait for a write before looking anyway: other programs write as well.
    pub poll: Duration,
    /// How often a record is tried before it is given up.
    pub attempts: u32,
    /// The first pause after a failure; it doubles up to two seconds.
    pub backoff: Duration,
    /// The function's time limit.
    pub timeout: Duration,
}

impl StreamMapping {
    /// The mapping that the program uses for `table`.
    #[must_use]
    pub fn new(function: &'static str, table: &str) -> Self {
        Self {
            function,
            table: table.to_owned(),
            skip: "TURN#",
            batch: 200,
            window: Duration::from_millis(25),
            poll: Duration::from_millis(250),
            attempts: 8,
            backoff: Duration::from_millis(50),
            timeout: Duration::from_secs(60),
        }
    }
}

/// How much of a stream to hand over next, given how it went so far.
///
/// A failure halves the batch until one record is left; that one is tried [`StreamMapping::attempts`] times and then
/// given up, so that it does not hold up the stream for ever.
#[derive(Debug)]
struct Pace {
    most: usize,
    limit: usize,
    failures: u32,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
enum AfterFailure {
    Retry,
    GiveUp,
}

impl Pace {
    fn new(most: usize) -> Self {
        let most = most.max(1);
        Self {
            most,
            limit: most,
            failures: 0,
        }
    }

    /// Something was passed.
    fn passed(&mut self) {
        self.limit = (self.limit * 2).min(self.most);
        self.failures = 0;
    }

    /// The first record of `handed` failed, or nobody knows which did.
    fn failed(&mut self, handed: usize, named: bool, attempts: u32) -> AfterFailure {
        self.failures += 1;
        if handed <= 1 && self.failures >= attempts {
            self.failures = 0;
            return AfterFailure::GiveUp;
        }
        if handed > 1 {
            // The attempts of a record count while it is alone.
            self.failures = 1;
        }
        self.limit = if named { 1 } else { (handed / 2).max(1) };
        AfterFailure::Retry
    }

    fn pause(&self, first: Duration) -> Duration {
        (first * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(10))).min(Duration::from_secs(2))
    }
}

/// Feeds a table's stream to `handler`, in order, until the stop.
///
/// What was handed over is passed only once the handler succeeded; the stream itself keeps the position, so after a
/// crash it goes on from the first record that was not passed.
pub async fn feed_stream<H, F>(stream: Stream, mapping: StreamMapping, handler: H, mut stop: Stop)
where
    H: Fn(StreamEvent, Deadline) -> F,
    F: Future<Output = Result<DynamoDbEventResponse, BoxError>>,
{
    let mut pace = Pace::new(mapping.batch);
    let mut passed = None;
    loop {
        let records = match stream
            .next(&mapping.table, passed, pace.limit, mapping.skip)
            .await
        {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(function = mapping.function, %error, "cannot read the stream");
                if stop.pause(ERROR_PAUSE).await {
                    continue;
                }
                return;
            }
        };
        passed = None;
        let Some(last) = records.last() else {
            tokio::select! {
                () = stop.stopped() => return,
                () = stream.written(mapping.poll) => {}
            }
            if !stop.pause(mapping.window).await {
                return;
            }
            continue;
        };
        let last = last.id;
        let outcome = tokio::select! {
            () = stop.stopped() => return,
            outcome = hand_over(&mapping, &records, &handler) => outcome,
        };
        match outcome {
            Outcome::Passed => {
                passed = Some(last);
                pace.passed();
            }
            Outcome::Failed { before, named } if before > 0 => {
                passed = records.get(before - 1).map(|record| record.id);
                pace.passed();
                pace.failed(records.len(), named, mapping.attempts);
            }
            Outcome::Failed { named, .. } => {
                if pace.failed(records.len(), named, mapping.attempts) == AfterFailure::GiveUp {
                    let poison = records.first();
                    tracing::error!(
                        function = mapping.function,
                        sequence = poison.map(|record| record.sequence.as_str()),
                        change = poison.map(|record| record.event_name.as_str()),
                        "gave up on a record of the stream; what it asked for is left to the sweep"
                    );
                    passed = poison.map(|record| record.id);
                } else if !stop.pause(pace.pause(mapping.backoff)).await {
                    return;
                }
            }
        }
    }
}

/// How a batch went.
enum Outcome {
    Passed,
    /// The record at index `before` failed; `named` tells that the handler said so.
    Failed {
        before: usize,
        named: bool,
    },
}

async fn hand_over<H, F>(mapping: &StreamMapping, records: &[StreamRecord], handler: &H) -> Outcome
where
    H: Fn(StreamEvent, Deadline) -> F,
    F: Future<Output = Result<DynamoDbEventResponse, BoxError>>,
{
    let arn = format!(
        "arn:aws:dynamodb:{REGION}:000000000000:table/{}/stream/2026-01-01T00:00:00.000",
        mapping.table
    );
    let mut event = StreamEvent::default();
    let mut readable = records.len();
    for (index, record) in records.iter().enumerate() {
        // Neither image: skipped by the filter.
        if record.new_image.is_none() && record.old_image.is_none() {
            continue;
        }
        match stream_event(record, &arn) {
            Ok(record) => event.records.push(record),
            Err(error) => {
                tracing::error!(function = mapping.function, %error, "a record of the stream cannot be read");
                readable = index;
                break;
            }
        }
    }
    match call_with_records(mapping, records, event, handler).await {
        // A record that cannot be read fails like any other, once those before it are through.
        Outcome::Passed if readable < records.len() => Outcome::Failed {
            before: readable,
            named: true,
        },
        outcome => outcome,
    }
}

async fn call_with_records<H, F>(
    mapping: &StreamMapping,
    records: &[StreamRecord],
    event: StreamEvent,
    handler: &H,
) -> Outcome
where
    H: Fn(StreamEvent, Deadline) -> F,
    F: Future<Output = Result<DynamoDbEventResponse, BoxError>>,
{
    if event.records.is_empty() {
        return Outcome::Passed;
    }
    let deadline = Deadline::after(mapping.timeout);
    let answer = invoke(mapping.function, deadline, async {
        handler(event, deadline).await
    })
    .await;
    let Some(answer) = answer else {
        return Outcome::Failed {
            before: 0,
            named: false,
        };
    };
    // As on AWS: the lowest number reported decides, and one that is not in the batch fails it as a whole.
    answer
        .batch_item_failures
        .iter()
        .map(|failure| {
            let sequence = failure.item_identifier.as_deref();
            match records
                .iter()
                .position(|record| Some(record.sequence.as_str()) == sequence)
            {
                Some(before) => Outcome::Failed { before, named: true },
                None => Outcome::Failed {
                    before: 0,
                    named: false,
                },
            }
        })
        .min_by_key(|outcome| match outcome {
            Outcome::Failed { before, named } => (*before, *named),
            Outcome::Passed => (usize::MAX, false),
        })
        .unwrap_or(Outcome::Passed)
}

/// The event record that Lambda makes of a record.
fn stream_event(record: &StreamRecord, arn: &str) -> Result<EventRecord, serde_json::Error> {
    let image = |json: &Option<String>| {
        json.as_deref()
            .map_or_else(|| Ok(Default::default()), serde_json::from_str)
    };
    // The date's type belongs to a crate that is needed for nothing else.
    let mut change: Change = serde_json::from_value(serde_json::json!({
        "ApproximateCreationDateTime": record.created_at,
        "SizeBytes": record.keys.len()
            + record.new_image.as_ref().map_or(0, String::len)
            + record.old_image.as_ref().map_or(0, String::len),
    }))?;
    change.keys = serde_json::from_str(&record.keys)?;
    change.new_image = image(&record.new_image)?;
    change.old_image = image(&record.old_image)?;
    change.sequence_number = Some(record.sequence.clone());
    change.stream_view_type = Some(StreamViewType::NewAndOldImages);
    let mut event = EventRecord::default();
    event.aws_region = REGION.to_owned();
    event.change = change;
    event.event_id.clone_from(&record.event_id);
    event.event_name.clone_from(&record.event_name);
    event.event_source = Some("aws:dynamodb".to_owned());
    event.event_version = Some("1.1".to_owned());
    event.event_source_arn = Some(arn.to_owned());
    if record.expired {
        let mut identity = UserIdentity::default();
        identity.type_ = "Service".to_owned();
        identity.principal_id = "dynamodb.amazonaws.com".to_owned();
        event.user_identity = Some(identity);
    }
    Ok(event)
}

// --- The clock --------------------------------------------------------------------------------------------------------

/// Calls `handler` again and again until the stop, each time after the pause that `pause` gives then.
pub async fn feed_tick<H, F>(
    function: &'static str,
    pause: impl Fn() -> Duration,
    timeout: Duration,
    handler: H,
    mut stop: Stop,
) where
    H: Fn(Deadline) -> F,
    F: Future<Output = Result<(), BoxError>>,
{
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            () = tokio::time::sleep(pause()) => {}
        }
        let deadline = Deadline::after(timeout);
        tokio::select! {
            () = stop.stopped() => return,
            // A failure is logged; the next tick is the retry.
            _ = invoke(function, deadline, async { handler(deadline).await }) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::emulator::{
        Emulator, Storage,
        tests::{TABLE, create_table, put},
    };

    const LONG: Duration = Duration::from_secs(20);

    /// What a handler saw, and a wait for it.
    struct Seen<T>(Arc<(Mutex<Vec<T>>, tokio::sync::Notify)>);

    impl<T> Clone for Seen<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<T: Clone> Seen<T> {
        fn new() -> Self {
            Self(Arc::new((Mutex::new(Vec::new()), tokio::sync::Notify::new())))
        }

        fn add(&self, value: T) {
            self.0.0.lock().unwrap().push(value);
            self.0.1.notify_one();
        }

        fn all(&self) -> Vec<T> {
            self.0.0.lock().unwrap().clone()
        }

        async fn until(&self, enough: impl Fn(&[T]) -> bool) {
            let wait = async {
                while !enough(&self.all()) {
                    self.0.1.notified().await;
                }
            };
            tokio::time::timeout(LONG, wait).await.expect("it takes too long");
        }
    }

    fn quick(mapping: StreamMapping) -> StreamMapping {
        StreamMapping {
            window: Duration::ZERO,
            backoff: Duration::from_millis(1),
            attempts: 3,
            ..mapping
        }
    }

    fn failures(sequence: Option<String>) -> DynamoDbEventResponse {
        let failures: Vec<_> = sequence
            .map(|id| serde_json::json!({"itemIdentifier": id}))
            .into_iter()
            .collect();
        serde_json::from_value(serde_json::json!({"batchItemFailures": failures})).unwrap()
    }

    fn sort_keys(event: &StreamEvent) -> Vec<String> {
        let records = event.records.iter();
        records
            .map(|record| {
                serde_json::to_value(&record.change.keys).unwrap()["sk"]["S"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    #[tokio::test]
    async fn the_stream_goes_on_where_it_was_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.sqlite");
        let emulator = Emulator::start(Storage::File(path.clone())).await.unwrap();
        create_table(&emulator.dynamodb()).await;
        for sk in ["a", "TURN#1", "b", "c"] {
            put(&emulator.dynamodb(), sk).await;
        }
        let seen = Seen::new();
        let (switch, stop) = Stop::new();
        let handler = {
            let seen = seen.clone();
            move |event: StreamEvent, _| {
                let keys = sort_keys(&event);
                let failing = event
                    .records
                    .iter()
                    .find(|_| keys.contains(&"c".to_owned()))
                    .map(|_| {
                        event
                            .records
                            .last()
                            .unwrap()
                            .change
                            .sequence_number
                            .clone()
                            .unwrap()
                    });
                seen.add(keys);
                async move { Ok(failures(failing)) }
            }
        };
        let mapping = StreamMapping {
            attempts: u32::MAX,
            ..quick(StreamMapping::new("test", TABLE))
        };
        let feeding = feed_stream(emulator.stream(), mapping, handler, stop);
        tokio::join!(feeding, async {
            // First all, then only the one that fails, again and again.
            seen.until(|seen| seen.iter().filter(|keys| **keys == ["c"]).count() >= 3)
                .await;
            switch.send_replace(true);
        });
        assert_eq!(seen.all()[0], ["a", "b", "c"], "the turn is filtered");
        emulator.shutdown().await;

        let emulator = Emulator::start(Storage::File(path)).await.unwrap();
        put(&emulator.dynamodb(), "d").await;
        let seen = Seen::new();
        let (switch, stop) = Stop::new();
        let handler = {
            let seen = seen.clone();
            move |event: StreamEvent, _| {
                seen.add(sort_keys(&event));
                async { Ok(DynamoDbEventResponse::default()) }
            }
        };
        let feeding = feed_stream(
            emulator.stream(),
            quick(StreamMapping::new("test", TABLE)),
            handler,
            stop,
        );
        tokio::join!(feeding, async {
            seen.until(|seen| seen.concat() == ["c", "d"]).await;
            put(&emulator.dynamodb(), "e").await;
            seen.until(|seen| seen.concat() == ["c", "d", "e"]).await;
            switch.send_replace(true);
        });
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn a_poison_record_holds_up_nothing_for_ever_however_it_fails() {
        for way in ["error", "panic", "named", "unknown"] {
            let emulator = Emulator::start(Storage::Memory).await.unwrap();
            create_table(&emulator.dynamodb()).await;
            for sk in ["a", "b", "poison", "c", "d"] {
                put(&emulator.dynamodb(), sk).await;
            }
            let passed = Seen::new();
            let tries = Arc::new(AtomicUsize::new(0));
            let (switch, stop) = Stop::new();
            let handler = {
                let (passed, tries) = (passed.clone(), Arc::clone(&tries));
                move |event: StreamEvent, _| {
                    let (passed, tries) = (passed.clone(), Arc::clone(&tries));
                    async move {
                        let keys = sort_keys(&event);
                        let Some(at) = keys.iter().position(|key| key == "poison") else {
                            keys.into_iter().for_each(|key| passed.add(key));
                            return Ok(DynamoDbEventResponse::default());
                        };
                        if keys.len() == 1 {
                            tries.fetch_add(1, Ordering::Relaxed);
                        }
                        assert_ne!(way, "panic", "asked to");
                        match way {
                            "named" => {
                                keys[..at].iter().for_each(|key| passed.add(key.clone()));
                                let sequence = event.records[at].change.sequence_number.clone();
                                Ok(failures(sequence))
                            }
                            "unknown" => Ok(failures(Some("no such number".to_owned()))),
                            _ => Err("no".into()),
                        }
                    }
                }
            };
            let feeding = feed_stream(
                emulator.stream(),
                quick(StreamMapping::new("test", TABLE)),
                handler,
                stop,
            );
            tokio::join!(feeding, async {
                passed.until(|passed| passed.contains(&"d".to_owned())).await;
                switch.send_replace(true);
            });
            assert_eq!(passed.all(), ["a", "b", "c", "d"], "{way}");
            assert!(
                tries.load(Ordering::Relaxed) >= 2,
                "{way}: tried more than once before it is given up"
            );
            emulator.shutdown().await;
        }
    }

    #[test]
    fn failures_narrow_the_batch_and_successes_widen_it() {
        let mut pace = Pace::new(200);
        assert_eq!(pace.failed(200, false, 3), AfterFailure::Retry);
        assert_eq!(pace.limit, 100);
        assert_eq!(pace.failed(100, true, 3), AfterFailure::Retry);
        assert_eq!(pace.limit, 1);
        assert_eq!(pace.failed(1, false, 3), AfterFailure::Retry);
        assert_eq!(pace.failed(1, false, 3), AfterFailure::GiveUp);
        pace.passed();
        assert_eq!(pace.limit, 2);
        for _ in 0..10 {
            pace.passed();
        }
        assert_eq!(pace.limit, 200);
        pace.failures = 40;
        assert_eq!(pace.pause(Duration::from_millis(50)), Duration::from_secs(2));
    }

    fn mapping(queue_url: String, batch: usize, invocations: usize) -> QueueMapping {
        QueueMapping {
            function: "test",
            queue_url,
            batch,
            invocations,
            timeout: LONG,
        }
    }

    async fn send(emulator: &Emulator, url: &str, bodies: &[&str]) {
        for body in bodies {
            emulator
                .sqs()
                .send_message()
                .queue_url(url)
                .message_body(*body)
                .send()
                .await
                .unwrap();
        }
    }

    /// How many messages the queue still has, seen or not.
    async fn left(emulator: &Emulator, url: &str) -> usize {
        use aws_sdk_sqs::types::QueueAttributeName as Name;
        let answer = emulator
            .sqs()
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(Name::All)
            .send()
            .await
            .unwrap();
        let attributes = answer.attributes.unwrap();
        [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
        ]
        .iter()
        .map(|name| attributes[name].parse::<usize>().unwrap())
        .sum()
    }

    #[tokio::test]
    async fn what_fails_comes_again_and_what_succeeds_does_not() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let url = emulator
            .create_queue("work", Duration::from_secs(4))
            .await
            .unwrap()
            .url;
        send(&emulator, &url, &["good", "fails once", "panics once"]).await;
        let seen = Seen::new();
        let (switch, stop) = Stop::new();
        let handler = {
            let seen = seen.clone();
            move |event: SqsEvent, _| {
                let seen = seen.clone();
                async move {
                    let mut answer = SqsBatchResponse::default();
                    for record in event.records {
                        let body = record.body.unwrap();
                        let again = record.attributes["ApproximateReceiveCount"] != "1";
                        seen.add((body.clone(), again));
                        assert!(again || body != "panics once", "asked to");
                        if body == "fails once" && !again {
                            answer.add_failure(record.message_id.unwrap());
                        }
                    }
                    Ok(answer)
                }
            }
        };
        let feeding = feed_queue(emulator.sqs(), mapping(url.clone(), 1, 4), handler, stop);
        tokio::join!(feeding, async {
            seen.until(|seen| seen.len() == 5).await;
            switch.send_replace(true);
        });
        assert_eq!(
            left(&emulator, &url).await,
            0,
            "the last deletes are written before the end"
        );
        let mut again: Vec<_> = seen
            .all()
            .into_iter()
            .filter(|(_, again)| *again)
            .map(|(body, _)| body)
            .collect();
        again.sort();
        assert_eq!(again, ["fails once", "panics once"]);
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn no_more_than_the_workers_and_a_slow_message_holds_up_no_other() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let url = emulator
            .create_queue("work", Duration::from_secs(60))
            .await
            .unwrap()
            .url;
        send(&emulator, &url, &["slow"; 1]).await;
        send(&emulator, &url, &["quick"; 30]).await;
        let done = Seen::new();
        let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let (switch, stop) = Stop::new();
        let handler = {
            let (done, running) = (done.clone(), Arc::clone(&running));
            move |event: SqsEvent, _| {
                let (done, running) = (done.clone(), Arc::clone(&running));
                async move {
                    let now = running.0.fetch_add(1, Ordering::SeqCst) + 1;
                    running.1.fetch_max(now, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    let body = event.records[0].body.clone().unwrap();
                    if body == "slow" {
                        done.until(|done| done.len() == 30).await;
                    }
                    running.0.fetch_sub(1, Ordering::SeqCst);
                    done.add(body);
                    Ok(SqsBatchResponse::default())
                }
            }
        };
        let feeding = feed_queue(emulator.sqs(), mapping(url.clone(), 1, 3), handler, stop);
        tokio::join!(feeding, async {
            done.until(|done| done.len() == 31).await;
            switch.send_replace(true);
        });
        assert_eq!(done.all().last().map(String::as_str), Some("slow"));
        assert!(running.1.load(Ordering::SeqCst) <= 3);
        emulator.shutdown().await;
    }

    #[test]
    fn an_answer_that_names_a_foreign_message_fails_the_batch() {
        let receipts = || {
            vec![
                ("1".to_owned(), "r1".to_owned()),
                ("2".to_owned(), "r2".to_owned()),
            ]
        };
        let answer = |failures: &[&str]| {
            let mut answer = SqsBatchResponse::default();
            failures.iter().for_each(|id| answer.add_failure(*id));
            answer
        };
        assert_eq!(succeeded(receipts(), Some(&answer(&[]))), ["r1", "r2"]);
        assert_eq!(succeeded(receipts(), Some(&answer(&["1"]))), ["r2"]);
        assert!(succeeded(receipts(), Some(&answer(&[""]))).is_empty());
        assert!(succeeded(receipts(), None).is_empty());
    }

    #[tokio::test]
    async fn a_function_that_overruns_is_a_failed_invocation() {
        let never = std::future::pending::<Result<(), BoxError>>();
        assert!(
            invoke("test", Deadline::after(Duration::from_millis(1)), never)
                .await
                .is_none()
        );
    }
}
