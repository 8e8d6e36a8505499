//! DynamoDB and SQS on a laptop: two embedded emulators. This process reaches them directly (`in_process`), other
//! programs over loopback HTTP.
//!
//! Both run on a thread of their own with a one-thread runtime. The store is SQLite, which blocks the thread that it runs
//! on: there it holds up nobody but itself. And because a request to the store is handled without a pause, whatever runs
//! between two requests on that thread ([`Stream`]) has the database to itself, so the second connection never waits for
//! a lock, nor makes the store wait for one.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aws_sdk_dynamodb::config::{
    BehaviorVersion, Region, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_sqs::types::QueueAttributeName;
use axum::{body::Bytes, extract::State, http, response::IntoResponse};
use dynoxide::Database;
use rusqlite::Connection;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, oneshot},
};
use winterbaume_core::{MockRequest, MockResponse, MockService};
use winterbaume_sqs::SqsService;

use crate::{
    drivers::with_causes,
    in_process::{ToQueues, ToTable, by},
};

/// The region that the emulators answer for.
pub const REGION: &str = "us-east-1";

/// How long a message stays invisible after it was received: the consumers' time limit and half a minute.
pub const VISIBILITY: Duration = Duration::from_secs(180);

/// After this many receives a message goes to the dead-letter queue.
pub const MAX_RECEIVES: u32 = 5;

/// A waiting receive looks again this often even if nothing was sent, for messages that became visible again.
const RECEIVE_TICK: Duration = Duration::from_millis(250);

/// The longest that a receive waits.
const LONGEST_RECEIVE: Duration = Duration::from_secs(20);

/// A batch of the stream ends with the record that makes it this large, in bytes: an event for Lambda has 6 MB at most.
const LARGEST_BATCH: usize = 4 * 1024 * 1024;

/// The index that the store lacks: every write looks for the highest sequence number of the stream.
const STREAM_INDEX: &str = "CREATE INDEX IF NOT EXISTS ringback_stream_sequence \
    ON _stream_records (table_name, CAST(sequence_number AS INTEGER))";

/// Why the emulators did not start or no longer answer.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// The store could not be opened or served.
    #[error("the embedded DynamoDB: {0}")]
    Store(String),
    /// The index or the stream could not be read or written.
    #[error("the embedded DynamoDB's file: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A queue could not be created.
    #[error("the embedded SQS: {0}")]
    Queue(String),
    /// A socket or a thread could not be made.
    #[error("the emulators: {0}")]
    Io(#[from] std::io::Error),
    /// The emulators were stopped.
    #[error("the emulators have stopped")]
    Stopped,
}

/// Where the table lives.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In memory: gone with the process.
    Memory,
    /// In this file.
    File(PathBuf),
}

/// A queue's URL and its dead-letter queue's.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The queue.
    pub url: String,
    /// Where a message goes after [`MAX_RECEIVES`] receives.
    pub dead_letter_url: String,
}

/// The running emulators. Dropping them stops them.
pub struct Emulator {
    dynamodb_endpoint: String,
    sqs_endpoint: String,
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    queues: Arc<Queues>,
    stream: Stream,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("dynamodb_endpoint", &self.dynamodb_endpoint)
            .field("sqs_endpoint", &self.sqs_endpoint)
            .finish_non_exhaustive()
    }
}

/// What the thread reports once it serves.
struct Ready {
    dynamodb: u16,
    sqs: u16,
}

impl Emulator {
    /// Starts both emulators on free loopback ports.
    ///
    /// # Errors
    /// The store cannot be opened, or no port or thread is to be had.
    pub async fn start(storage: Storage) -> Result<Self, EmulatorError> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (jobs, inbox) = mpsc::channel(64);
        let jobs = Jobs(jobs);
        let queues = Arc::new(Queues::default());
        let served = Arc::clone(&queues);
        let thread = std::thread::Builder::new()
            .name("emulators".to_owned())
            .spawn(move || run(&storage, served, inbox, ready, stopped))?;
        let ready = is_ready.await.map_err(|_| EmulatorError::Stopped)??;
        let written = Arc::new(Notify::new());
        let dynamodb_endpoint = format!("http://127.0.0.1:{}", ready.dynamodb);
        let sqs_endpoint = format!("http://127.0.0.1:{}", ready.sqs);
        let to_table = ToTable {
            jobs: jobs.clone(),
            written: Arc::clone(&written),
        };
        Ok(Self {
            dynamodb: dynamodb_client(&dynamodb_endpoint, to_table),
            sqs: sqs_client(&sqs_endpoint, ToQueues(Arc::clone(&queues))),
            queues,
            dynamodb_endpoint,
            sqs_endpoint,
            stream: Stream { jobs, written },
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The URL that DynamoDB is served at. Any signature is accepted.
    #[must_use]
    pub fn dynamodb_endpoint(&self) -> &str {
        &self.dynamodb_endpoint
    }

    /// The URL that SQS is served at. Any signature is accepted, and none.
    #[must_use]
    pub fn sqs_endpoint(&self) -> &str {
        &self.sqs_endpoint
    }

    /// A client for the embedded DynamoDB. Writes through it wake the [`Stream`] at once.
    #[must_use]
    pub fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        self.dynamodb.clone()
    }

    /// A client for the embedded DynamoDB as other programs have it, over HTTP. Unlike the others it can look through a whole
    /// table, which the functions of the product never do.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn dynamodb_of_others(&self) -> Result<aws_sdk_dynamodb::Client, reqwest::Error> {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .endpoint_url(&self.dynamodb_endpoint)
            // Any signature will do, but there has to be one.
            .credentials_provider(aws_sdk_dynamodb::config::Credentials::new(
                "local", "local", None, None, "local",
            ))
            .http_client(ringback_shared::aws::http_client()?)
            .build();
        Ok(aws_sdk_dynamodb::Client::from_conf(config))
    }

    /// A client for the embedded SQS.
    #[must_use]
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        self.sqs.clone()
    }

    /// How many requests the embedded SQS was sent so far, by operation.
    #[must_use]
    pub fn queue_requests(&self) -> BTreeMap<String, u64> {
        self.queues.counts().clone()
    }

    /// How many messages were received from the embedded SQS so far, by queue. One that came again counts again.
    #[must_use]
    pub fn messages_received(&self) -> BTreeMap<String, u64> {
        self.queues.received().clone()
    }

    /// The table's stream.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream.clone()
    }

    /// Creates a queue with its dead-letter queue, `{name}-dead`, if it is not there.
    ///
    /// # Errors
    /// The emulator refuses it.
    pub async fn create_queue(&self, name: &str, visibility: Duration) -> Result<Queue, EmulatorError> {
        let dead_letter_url = self.create(&format!("{name}-dead"), &[]).await?;
        let attributes = self
            .sqs
            .get_queue_attributes()
            .queue_url(&dead_letter_url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await
            .map_err(queue_error)?;
        let arn = attributes
            .attributes()
            .and_then(|all| all.get(&QueueAttributeName::QueueArn))
            .cloned()
            .ok_or_else(|| EmulatorError::Queue(format!("the dead-letter queue of {name} has no address")))?;
        let redrive = serde_json::json!({"deadLetterTargetArn": arn, "maxReceiveCount": MAX_RECEIVES});
        let url = self
            .create(
                name,
                &[
                    (
                        QueueAttributeName::VisibilityTimeout,
                        visibility.as_secs().to_string(),
                    ),
                    (QueueAttributeName::RedrivePolicy, redrive.to_string()),
                ],
            )
            .await?;
        Ok(Queue { url, dead_letter_url })
    }

    async fn create(
        &self,
        name: &str,
        attributes: &[(QueueAttributeName, String)],
    ) -> Result<String, EmulatorError> {
        let mut request = self.sqs.create_queue().queue_name(name);
        for (key, value) in attributes {
            request = request.attributes(key.clone(), value);
        }
        let made = request.send().await.map_err(queue_error)?;
        made.queue_url
            .ok_or_else(|| EmulatorError::Queue(format!("queue {name} has no URL")))
    }

    /// Stops serving, lets running requests finish and closes the file.
    pub async fn shutdown(mut self) {
        self.signal_stop();
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the emulators' thread ended in a panic");
            }
        }
    }

    fn signal_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may be gone already.
            let _gone = stop.send(());
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.signal_stop();
    }
}

fn queue_error<E: std::error::Error>(error: E) -> EmulatorError {
    EmulatorError::Queue(with_causes(&error))
}

/// The emulators' thread.
fn run(
    storage: &Storage,
    queues: Arc<Queues>,
    inbox: mpsc::Receiver<Job>,
    ready: oneshot::Sender<Result<Ready, EmulatorError>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error.into()))),
    };
    runtime.block_on(serve(storage, queues, inbox, ready, stopped));
    // A request that never ends must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
}

/// The store, the second connection to its file, and the two sockets.
struct Opened {
    database: Database,
    connection: Connection,
    dynamodb: TcpListener,
    sqs: TcpListener,
}

async fn open(storage: &Storage) -> Result<Opened, EmulatorError> {
    let path = match storage {
        // A name of its own for every emulator of this process: the cache is shared by name.
        Storage::Memory => format!("file:{}?mode=memory&cache=shared", uuid::Uuid::now_v7()),
        Storage::File(path) => path.to_string_lossy().into_owned(),
    };
    let store = |error: dynoxide::DynoxideError| EmulatorError::Store(error.to_string());
    let database = Database::new(&path).map_err(store)?;
    // The only way to reach the store's own connection: this pair leaves it with `synchronous = NORMAL`, under which a
    // commit in the write-ahead log survives the process without a sync of the disk each time.
    database.enable_bulk_loading().map_err(store)?;
    database.disable_bulk_loading().map_err(store)?;
    let connection = Connection::open(&path)?;
    connection.execute_batch(STREAM_INDEX)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let any_port = (Ipv4Addr::LOCALHOST, 0);
    Ok(Opened {
        database,
        connection,
        dynamodb: TcpListener::bind(any_port).await?,
        sqs: TcpListener::bind(any_port).await?,
    })
}

async fn serve(
    storage: &Storage,
    queues: Arc<Queues>,
    mut inbox: mpsc::Receiver<Job>,
    ready: oneshot::Sender<Result<Ready, EmulatorError>>,
    stopped: oneshot::Receiver<()>,
) {
    let started = async {
        let opened = open(storage).await?;
        let ports = Ready {
            dynamodb: opened.dynamodb.local_addr()?.port(),
            sqs: opened.sqs.local_addr()?.port(),
        };
        Ok::<_, EmulatorError>((opened, ports))
    };
    let (opened, ports) = match started.await {
        Ok(started) => started,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let Opened {
        database,
        connection,
        dynamodb,
        sqs,
    } = opened;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let until_stopped = |mut stopping: tokio::sync::watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop as well.
        let _gone = stopping.wait_for(|stop| *stop).await;
    };
    let router = axum::Router::new().fallback(answer).with_state(queues);
    let serve_queues = axum::serve(sqs, router).with_graceful_shutdown(until_stopped(stopping.clone()));
    let serve_store =
        dynoxide::server::serve_with_shutdown(dynamodb, database.clone(), until_stopped(stopping.clone()));
    if ready.send(Ok(ports)).is_err() {
        return;
    }
    let serving = async {
        let (queues, store) = tokio::join!(serve_queues.into_future(), serve_store);
        if let Err(error) = queues {
            tracing::error!(%error, "the embedded SQS stopped");
        }
        if let Err(error) = store {
            tracing::error!(%error, "the embedded DynamoDB stopped");
        }
    };
    let jobs = async {
        while let Some(job) = inbox.recv().await {
            job(&connection, &database);
        }
        // Every handle of the stream is gone; the servers go on.
        std::future::pending::<()>().await;
    };
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return,
        () = jobs => {},
        _ = stopped => {},
    }
    stop.send_replace(true);
    // Waiting receives are cut off: a long poll is nobody's work.
    if tokio::time::timeout(Duration::from_millis(500), serving)
        .await
        .is_err()
    {
        tracing::debug!("connections of the emulators were still open");
    }
}

/// Work for the emulators' thread: it has the database to itself while it runs.
type Job = Box<dyn FnOnce(&Connection, &Database) + Send>;

/// Hands work to the emulators' thread.
#[derive(Debug, Clone)]
pub(crate) struct Jobs(mpsc::Sender<Job>);

impl Jobs {
    /// Has `work` done and gives what comes of it.
    ///
    /// # Errors
    /// The emulators have stopped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &Database) -> T + Send + 'static,
    ) -> Result<T, EmulatorError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection, database| {
            // Whoever asked may have stopped waiting.
            let _gone = reply.send(work(connection, database));
        });
        self.0.send(job).await.map_err(|_| EmulatorError::Stopped)?;
        answer.await.map_err(|_| EmulatorError::Stopped)
    }
}

/// A record of the table's stream, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRecord {
    /// The store's own number for it, ascending and never used twice.
    pub id: i64,
    /// The sequence number, in its public form of 21 digits.
    pub sequence: String,
    /// A unique id.
    pub event_id: String,
    /// `INSERT`, `MODIFY` or `REMOVE`.
    pub event_name: String,
    /// The key attributes, as DynamoDB's JSON.
    pub keys: String,
    /// The item afterwards, as DynamoDB's JSON.
    pub new_image: Option<String>,
    /// The item before, as DynamoDB's JSON.
    pub old_image: Option<String>,
    /// When it was written, in seconds since the Unix epoch.
    pub created_at: i64,
    /// Whether the store deleted the item because its time to live had passed.
    pub expired: bool,
}

/// The stream of a table: what was written to it, in order, until it is [passed](Stream::next).
///
/// The position is what is left: records are deleted as they are passed, so the first one left is the next.
#[derive(Debug, Clone)]
pub struct Stream {
    jobs: Jobs,
    written: Arc<Notify>,
}

impl Stream {
    /// Forgets the records of `table` up to `passed` (an [id](StreamRecord::id)) and returns the next ones, `limit` at
    /// most. Records whose sort key begins with `skip` come without images: their place counts, their content does not.
    ///
    /// # Errors
    /// The emulators have stopped, or the file cannot be read or written.
    pub async fn next(
        &self,
        table: &str,
        passed: Option<i64>,
        limit: usize,
        skip: &str,
    ) -> Result<Vec<StreamRecord>, EmulatorError> {
        let (table, skip) = (table.to_owned(), skip.to_owned());
        self.jobs
            .run(move |connection, _| next_records(connection, &table, passed, limit, &skip))
            .await?
    }

    /// Waits until something was written through [`Emulator::dynamodb`], but no longer than `at_most`.
    pub async fn written(&self, at_most: Duration) {
        // A timeout is an answer too: others write as well.
        let _timeout = tokio::time::timeout(at_most, self.written.notified()).await;
    }

    /// Deletes the items whose time to live has passed, as DynamoDB does within some days. Returns their number.
    ///
    /// # Errors
    /// The emulators have stopped, or the store failed.
    pub async fn expire(&self) -> Result<usize, EmulatorError> {
        self.jobs
            .run(|_, database| {
                database
                    .sweep_ttl()
                    .map_err(|error| EmulatorError::Store(error.to_string()))
            })
            .await?
    }
}

fn next_records(
    connection: &Connection,
    table: &str,
    passed: Option<i64>,
    limit: usize,
    skip: &str,
) -> Result<Vec<StreamRecord>, EmulatorError> {
    if let Some(passed) = passed {
        connection
            .prepare_cached("DELETE FROM _stream_records WHERE id <= ?1 AND table_name = ?2")?
            .execute((passed, table))?;
    }
    let mut query = connection.prepare_cached(
        "SELECT id, CAST(sequence_number AS INTEGER), event_id, event_name, keys_json, created_at, \
                user_identity IS NOT NULL, \
                CASE WHEN skipped THEN NULL ELSE new_image END, CASE WHEN skipped THEN NULL ELSE old_image END \
         FROM (SELECT *, substr(coalesce(keys_json ->> '$.sk.S', ''), 1, length(?2)) = ?2 AND ?2 <> '' AS skipped \
               FROM _stream_records WHERE table_name = ?1 ORDER BY id LIMIT ?3)",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = query.query_map((table, skip, limit), |row| {
        let sequence: i64 = row.get(1)?;
        let sequence = public_sequence(sequence);
        Ok(StreamRecord {
            id: row.get(0)?,
            event_id: row
                .get::<_, Option<String>>(2)?
                .unwrap_or_else(|| sequence.clone()),
            sequence,
            event_name: row.get(3)?,
            keys: row.get(4)?,
            created_at: row.get(5)?,
            expired: row.get(6)?,
            new_image: row.get(7)?,
            old_image: row.get(8)?,
        })
    })?;
    let mut records = Vec::new();
    let mut bytes = 0;
    for record in rows {
        let record: StreamRecord = record?;
        bytes += record.new_image.as_ref().map_or(0, String::len)
            + record.old_image.as_ref().map_or(0, String::len);
        records.push(record);
        if bytes >= LARGEST_BATCH {
            break;
        }
    }
    Ok(records)
}

/// The store's number as it shows it: 21 digits, so that the order of the text is the order of the numbers.
fn public_sequence(stored: i64) -> String {
    (100_000_000_000_000_000_000_u128 + u128::from(stored.unsigned_abs())).to_string()
}

/// The queues, and who waits for a message.
#[derive(Default)]
pub(crate) struct Queues {
    service: SqsService,
    sent: Notify,
    /// By operation.
    requests: Mutex<BTreeMap<String, u64>>,
    /// Messages, by queue.
    received: Mutex<BTreeMap<String, u64>>,
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

impl Queues {
    /// Answers one SQS request.
    ///
    /// The emulator's own long poll sleeps 100 ms at a time. Here a receive waits for a send instead: it costs nothing
    /// while nothing happens and takes no time when something does.
    pub(crate) async fn answer(&self, head: http::request::Parts, body: Bytes) -> MockResponse {
        let mut request = MockRequest {
            method: head.method.to_string(),
            uri: head.uri.to_string(),
            headers: head.headers,
            body,
        };
        let operation = request
            .headers
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok())
            .and_then(|target| target.rsplit('.').next())
            .unwrap_or_default();
        *self.counts().entry(operation.to_owned()).or_default() += 1;
        let wakes = operation.starts_with("SendMessage") || operation.starts_with("ChangeMessageVisibility");
        let (queue, wait) = if operation == "ReceiveMessage" {
            (queue_name(&request), take_wait(&mut request))
        } else {
            (None, Duration::ZERO)
        };
        let response = if wait.is_zero() {
            self.service.handle(request).await
        } else {
            self.receive(request, Instant::now() + wait).await
        };
        if let Some(queue) = queue {
            *self.received().entry(queue).or_default() += messages(&response) as u64;
        }
        if wakes {
            self.sent.notify_waiters();
        }
        response
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(&self, request: MockRequest, until: Instant) -> MockResponse {
        loop {
            // From here on a send wakes this task, even one that comes before the wait below.
            let sent = self.sent.notified();
            tokio::pin!(sent);
            sent.as_mut().enable();
            let response = self.service.handle(request.clone()).await;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || response.status != 200 || messages(&response) > 0 {
                return response;
            }
            let _timeout = tokio::time::timeout(left.min(RECEIVE_TICK), sent).await;
        }
    }
}

/// Answers one SQS request of another program.
async fn answer(
    State(queues): State<Arc<Queues>>,
    request: axum::extract::Request,
) -> http::Response<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 2 * 1024 * 1024).await else {
        return http::StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let response = queues.answer(parts, body).await;
    let status =
        http::StatusCode::from_u16(response.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    (status, response.headers, response.body).into_response()
}

/// Takes the waiting time out of a receive's body: the emulator is asked for what is there now.
fn take_wait(request: &mut MockRequest) -> Duration {
    let Ok(mut body) = serde_json::from_slice::<serde_json::Value>(&request.body) else {
        return Duration::ZERO;
    };
    let seconds = body
        .get("WaitTimeSeconds")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(0);
    if seconds == 0 {
        return Duration::ZERO;
    }
    if let Some(object) = body.as_object_mut() {
        object.insert("WaitTimeSeconds".to_owned(), 0.into());
    }
    request.body = Bytes::from(body.to_string());
    Duration::from_secs(seconds).min(LONGEST_RECEIVE)
}

/// The name of the queue that a request is for.
fn queue_name(request: &MockRequest) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Asked {
        #[serde(rename = "QueueUrl")]
        queue_url: String,
    }
    let asked: Asked = serde_json::from_slice(&request.body).ok()?;
    Some(asked.queue_url.rsplit('/').next()?.to_owned())
}

/// How many messages a receive's answer has.
fn messages(response: &MockResponse) -> usize {
    #[derive(serde::Deserialize)]
    struct Received<'a> {
        #[serde(rename = "Messages", borrow, default)]
        messages: Vec<&'a serde_json::value::RawValue>,
    }
    serde_json::from_slice::<Received<'_>>(&response.body).map_or(0, |received| received.messages.len())
}

fn dynamodb_client(endpoint: &str, way: ToTable) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(endpoint)
        .allow_no_auth()
        .http_client(by(way))
        // What lives in this process answers or is gone with it: nothing to wait out and nothing to repeat.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}

fn sqs_client(endpoint: &str, way: ToQueues) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(endpoint)
        .allow_no_auth()
        .http_client(by(way))
        // What lives in this process answers or is gone with it: nothing to wait out and nothing to repeat.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
        StreamSpecification, StreamViewType,
    };

    use super::*;

    pub(crate) const TABLE: &str = "table";

    pub(crate) async fn create_table(client: &aws_sdk_dynamodb::Client) {
        let text = |name: &str| {
            AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(ScalarAttributeType::S)
                .build()
        };
        let key = |name: &str, kind| {
            KeySchemaElement::builder()
                .attribute_name(name)
                .key_type(kind)
                .build()
        };
        let stream = StreamSpecification::builder()
            .stream_enabled(true)
            .stream_view_type(StreamViewType::NewAndOldImages)
            .build();
        client
            .create_table()
            .table_name(TABLE)
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text("pk").unwrap())
            .attribute_definitions(text("sk").unwrap())
            .key_schema(key("pk", KeyType::Hash).unwrap())
            .key_schema(key("sk", KeyType::Range).unwrap())
            .stream_specification(stream.unwrap())
            .send()
            .await
            .unwrap();
    }

    pub(crate) async fn put(client: &aws_sdk_dynamodb::Client, sk: &str) {
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let put = client
            .put_item()
            .table_name(TABLE)
            .item("pk", text("p"))
            .item("sk", text(sk));
        put.item("n", AttributeValue::N("1".to_owned()))
            .send()
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn starts_on_a_file_with_the_index_and_without_a_sync_per_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.sqlite");
        let emulator = Emulator::start(Storage::File(path.clone())).await.unwrap();
        create_table(&emulator.dynamodb()).await;
        put(&emulator.dynamodb(), "a").await;
        let (journal, plan) = emulator
            .stream()
            .jobs
            .run(|connection, _| {
                let journal: String = connection
                    .query_row("PRAGMA journal_mode", [], |row| row.get(0))
                    .unwrap();
                let plan: String = connection
                    .query_row(
                        "EXPLAIN QUERY PLAN SELECT COALESCE(MAX(CAST(sequence_number AS INTEGER)), 0) + 1 \
                         FROM _stream_records WHERE table_name = 'table'",
                        [],
                        |row| row.get(3),
                    )
                    .unwrap();
                (journal, plan)
            })
            .await
            .unwrap();
        assert_eq!(journal, "wal");
        assert!(plan.contains("ringback_stream_sequence"), "{plan}");
        emulator.shutdown().await;

        // What was written is there after a restart, and what was not passed comes again.
        let emulator = Emulator::start(Storage::File(path)).await.unwrap();
        let records = emulator.stream().next(TABLE, None, 10, "").await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].event_name, "INSERT");
        assert_eq!(records[0].sequence.len(), 21);
        assert!(records[0].new_image.as_deref().unwrap().contains(r#""n""#));
        emulator.shutdown().await;
    }

    /// The store's connection cannot be asked for its pragmas, so this asks the file system: with `synchronous = FULL`
    /// every commit syncs the log, with `NORMAL` only checkpoints do.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_pair_of_calls_leaves_synchronous_at_normal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.sqlite");
        let database = dynoxide::storage::Storage::new(path.to_str().unwrap()).unwrap();
        database.enable_bulk_loading().unwrap();
        database.disable_bulk_loading().unwrap();
        let level: i64 = database
            .conn()
            .query_row("PRAGMA synchronous", [], |row| row.get(0))
            .unwrap();
        assert_eq!(level, 1, "1 is NORMAL");
    }

    #[tokio::test]
    async fn the_stream_in_memory_is_read_passed_and_filtered_while_writes_go_on() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let (client, stream) = (emulator.dynamodb(), emulator.stream());
        create_table(&client).await;
        put(&client, "a").await;
        put(&client, "TURN#1").await;
        put(&client, "b").await;
        let first = stream.next(TABLE, None, 2, "TURN#").await.unwrap();
        assert_eq!(first.len(), 2);
        assert!(first[0].new_image.is_some());
        assert!(first[1].new_image.is_none(), "a turn comes without its content");
        let again = stream.next(TABLE, None, 10, "TURN#").await.unwrap();
        assert_eq!(again[..2], first, "what is not passed comes again");
        let rest = stream.next(TABLE, Some(first[1].id), 10, "TURN#").await.unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0], again[2]);
        // The reader and the writers share one SQLite: neither may fail on the other's locks.
        let writes = async {
            for round in 0..20 {
                futures_util::future::join_all((0..10).map(|n| {
                    let client = client.clone();
                    async move { put(&client, &format!("{round}-{n}")).await }
                }))
                .await;
            }
        };
        let reads = async {
            let (mut seen, mut passed) = (0, Some(rest[0].id));
            while seen < 200 {
                let records = stream.next(TABLE, passed, 7, "").await.unwrap();
                passed = records.last().map(|record| record.id);
                seen += records.len();
                if records.is_empty() {
                    stream.written(Duration::from_secs(5)).await;
                }
            }
            seen
        };
        let (seen, ()) = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(reads, writes) })
            .await
            .unwrap();
        assert_eq!(seen, 200);
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn every_kind_of_write_wakes_the_stream_and_a_read_does_not() {
        use aws_sdk_dynamodb::types::{Put, PutRequest, TransactWriteItem, WriteRequest};
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let (client, stream) = (emulator.dynamodb(), emulator.stream());
        create_table(&client).await;
        let woken = async |what: &str| {
            let started = Instant::now();
            stream.written(Duration::from_secs(20)).await;
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{what} does not wake the stream"
            );
        };
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let row =
            || std::collections::HashMap::from([("pk".to_owned(), text("p")), ("sk".to_owned(), text("s"))]);
        client
            .put_item()
            .table_name(TABLE)
            .set_item(Some(row()))
            .send()
            .await
            .unwrap();
        woken("a put").await;
        let update = client
            .update_item()
            .table_name(TABLE)
            .set_key(Some(row()))
            .update_expression("SET n = :n");
        update
            .expression_attribute_values(":n", text("1"))
            .send()
            .await
            .unwrap();
        woken("an update").await;
        let put = Put::builder()
            .table_name(TABLE)
            .set_item(Some(row()))
            .build()
            .unwrap();
        let write = TransactWriteItem::builder().put(put).build();
        client
            .transact_write_items()
            .transact_items(write)
            .send()
            .await
            .unwrap();
        woken("a transaction").await;
        let put = PutRequest::builder().set_item(Some(row())).build().unwrap();
        let write = WriteRequest::builder().put_request(put).build();
        client
            .batch_write_item()
            .request_items(TABLE, vec![write])
            .send()
            .await
            .unwrap();
        woken("a batch").await;
        client
            .delete_item()
            .table_name(TABLE)
            .set_key(Some(row()))
            .send()
            .await
            .unwrap();
        woken("a delete").await;
        client
            .get_item()
            .table_name(TABLE)
            .set_key(Some(row()))
            .send()
            .await
            .unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(20), stream.written(Duration::from_secs(20)));
        assert!(quiet.await.is_err(), "a read is no write");
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn a_receive_wakes_for_a_send_and_a_message_that_fails_too_often_is_put_aside() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let sqs = emulator.sqs();
        let queue = emulator.create_queue("work", Duration::ZERO).await.unwrap();
        emulator.create_queue("work", Duration::ZERO).await.unwrap();
        let receive = |url: &str| sqs.receive_message().queue_url(url).wait_time_seconds(20).send();
        let started = Instant::now();
        let (received, _sent) = tokio::join!(
            receive(&queue.url),
            sqs.send_message()
                .queue_url(&queue.url)
                .message_body("hello")
                .send()
        );
        assert_eq!(received.unwrap().messages()[0].body(), Some("hello"));
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the receive waited on"
        );
        for _ in 1..MAX_RECEIVES {
            assert_eq!(receive(&queue.url).await.unwrap().messages().len(), 1);
        }
        let (gone, dead) = tokio::join!(
            sqs.receive_message()
                .queue_url(&queue.url)
                .wait_time_seconds(1)
                .send(),
            receive(&queue.dead_letter_url)
        );
        assert!(gone.unwrap().messages().is_empty());
        assert_eq!(dead.unwrap().messages()[0].body(), Some("hello"));
        let received = emulator.messages_received();
        assert_eq!(
            (received["work"], received["work-dead"]),
            (u64::from(MAX_RECEIVES), 1)
        );
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn other_programs_see_the_same_over_http() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        create_table(&emulator.dynamodb()).await;
        put(&emulator.dynamodb(), "a").await;
        emulator.create_queue("work", VISIBILITY).await.unwrap();
        let ask = async |endpoint: &str, target: &str, body: &'static str| {
            ringback_shared::net::client().build().unwrap()
                .post(endpoint)
                .header("content-type", "application/x-amz-json-1.0")
                .header("x-amz-target", target)
                .header("x-amz-date", "20260101T000000Z")
                .header(
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, \
                     Signature=0",
                )
                .body(body)
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap()
        };
        let get = r#"{"TableName":"table","Key":{"pk":{"S":"p"},"sk":{"S":"a"}}}"#;
        let row = ask(emulator.dynamodb_endpoint(), "DynamoDB_20120810.GetItem", get).await;
        assert!(row.contains(r#""n":{"N":"1"}"#), "{row}");
        let queues = ask(emulator.sqs_endpoint(), "AmazonSQS.ListQueues", "{}").await;
        assert!(queues.contains("/work"), "{queues}");
        emulator.shutdown().await;
    }

    #[tokio::test]
    async fn stops_while_a_receive_waits() {
        let emulator = Emulator::start(Storage::Memory).await.unwrap();
        let queue = emulator.create_queue("work", VISIBILITY).await.unwrap();
        let sqs = emulator.sqs();
        let waiting = tokio::spawn(async move {
            sqs.receive_message()
                .queue_url(queue.url)
                .wait_time_seconds(20)
                .send()
                .await
        });
        tokio::task::yield_now().await;
        tokio::time::timeout(Duration::from_secs(10), emulator.shutdown())
            .await
            .unwrap();
        waiting.abort();
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.sqlite");
        std::fs::write(
            &path,
            "this is text, and long enough to be looked at as a header of a database file",
        )
        .unwrap();
        assert!(matches!(
            Emulator::start(Storage::File(path)).await,
            Err(EmulatorError::Store(_))
        ));
    }
}
