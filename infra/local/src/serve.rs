//! The whole stack in this process: the emulators, the functions and the loops that call them.

use std::{
    collections::HashMap,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringback_shared::{
    clock::{Deadline, SharedClock, SystemClock},
    config::{Config, ConfigError},
    context::{Context, Parts},
    metrics::Metrics,
    secrets::{LocalSecrets, Secrets},
    store::schema,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
};

use crate::{
    drivers::{self, BoxError, QueueMapping, Stop, StreamMapping},
    emulator::{Emulator, EmulatorError, Queue, Storage, VISIBILITY},
    http,
};

/// The table's name.
const TABLE: &str = "ringback";

/// How many conversations run at once unless the user says otherwise.
pub const WORKERS: usize = 16;

/// The time limit of the functions behind the queues, as in the template.
const QUEUE_FUNCTION_TIMEOUT: Duration = Duration::from_secs(150);

/// The time limit of `deliver`, as in the template: a receiver may take 300 s to answer.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(330);

/// After how long a delivery that nobody finished is received again: longer than the function's time limit.
const DELIVERIES_VISIBILITY: Duration = Duration::from_secs(400);

/// Invocations of `deliver` at once.
const DELIVER_INVOCATIONS: usize = 2;

/// Invocations of `evaluate` at once.
const EVALUATE_INVOCATIONS: usize = 4;

/// The tick of `sweep`.
const MINUTE: Duration = Duration::from_secs(60);

/// How long after the beginning of a minute the tick of the schedules comes, so that it surely has begun.
const MOMENT: Duration = Duration::from_millis(20);

/// How often expired rows are deleted. On AWS it takes up to some days.
const EXPIRY_PERIOD: Duration = Duration::from_secs(3600);

/// How long the loops may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the stack did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process works in the folder.
    #[error("another ringback is already running on {0}: stop it, or give this one a --data-dir of its own")]
    Locked(PathBuf),
    /// The folder or a file in it.
    #[error("{path}: {source}")]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// The emulators.
    #[error(transparent)]
    Emulator(#[from] EmulatorError),
    /// The functions' side: the table, the configuration, the first rows or the first sweep.
    #[error("{step}: {source}")]
    Functions {
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        source: BoxError,
    },
}

/// The queues.
struct Queues {
    run_items: Queue,
    evaluations: Queue,
    deliveries: Queue,
}

/// A model endpoint for testers, judges and structured outputs.
#[derive(Clone, Default)]
pub struct Model {
    /// The base URL of an OpenAI-compatible endpoint.
    pub base_url: Option<String>,
    /// Its key.
    pub api_key: Option<String>,
    /// The model to ask for where none is named.
    pub default_model: Option<String>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        f.debug_struct("Model")
            .field("base_url", &self.base_url)
            .field("default_model", &self.default_model)
            .finish_non_exhaustive()
    }
}

/// How to start.
#[derive(Clone)]
pub struct Options {
    /// Where to serve the HTTP API. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder for the table and the API key. Without one, both are made up and forgotten.
    pub data_dir: Option<PathBuf>,
    /// Keep the table in memory even if there is a folder.
    pub memory: bool,
    /// How many conversations run at once.
    pub workers: usize,
    /// Where others reach the HTTP API, as providers do with their webhooks. Without one, where it listens.
    pub public_url: Option<String>,
    /// Whether targets and hooks may be on private and loopback addresses.
    pub allow_private_targets: bool,
    /// The model.
    pub model: Model,
    /// The API key of the local organization. Without one, the folder's or a random one.
    pub api_key: Option<String>,
    /// Settings of the functions by the names of their variables, such as `MAX_TURNS`, where nothing above decides.
    pub settings: HashMap<String, String>,
    /// What is measured. By default nobody wants it.
    pub metrics: Metrics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            data_dir: None,
            memory: false,
            workers: WORKERS,
            public_url: None,
            allow_private_targets: false,
            model: Model::default(),
            api_key: None,
            settings: HashMap::new(),
            metrics: Metrics::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("data_dir", &self.data_dir)
            .field("memory", &self.memory)
            .field("workers", &self.workers)
            .field("public_url", &self.public_url)
            .field("allow_private_targets", &self.allow_private_targets)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// The running stack. Dropping it stops it; [`Local::shutdown`] waits until it has stopped.
pub struct Local {
    base_url: String,
    api_key: String,
    key_file: Option<PathBuf>,
    context: Context,
    emulator: Emulator,
    switch: watch::Sender<bool>,
    loops: JoinSet<&'static str>,
    /// Held for as long as the folder is in use.
    _lock: Option<File>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("base_url", &self.base_url)
            .field("emulator", &self.emulator)
            .finish_non_exhaustive()
    }
}

impl Local {
    /// Starts everything; when this returns, requests are answered.
    ///
    /// # Errors
    /// The folder is in use, the address is taken, or a part does not start.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let lock = match &options.data_dir {
            Some(folder) => {
                make_private_folder(folder)?;
                if options.memory { None } else { Some(lock(folder)?) }
            }
            None => None,
        };
        let (api_key, key_file) = match (&options.api_key, &options.data_dir) {
            (Some(key), _) => (key.clone(), None),
            (None, Some(folder)) => {
                let path = folder.join("api-key");
                (stored_key(&path)?, Some(path))
            }
            (None, None) => (random_key(), None),
        };
        let listen_error = |source| StartError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(listen_error)?;
        let base_url = format!(
            "http://{}",
            reachable(listener.local_addr().map_err(listen_error)?)
        );

        let storage = match &options.data_dir {
            Some(folder) if !options.memory => Storage::File(folder.join("table.sqlite")),
            _ => Storage::Memory,
        };
        let emulator = Emulator::start(storage).await?;
        let queues = Queues {
            run_items: emulator.create_queue("run-items", VISIBILITY).await?,
            evaluations: emulator.create_queue("evaluations", VISIBILITY).await?,
            deliveries: emulator.create_queue("deliveries", DELIVERIES_VISIBILITY).await?,
        };
        schema::create_table(&emulator.dynamodb(), TABLE)
            .await
            .map_err(step("making the table"))?;

        let clock: SharedClock = Arc::new(SystemClock);
        let context = Context::new(Parts {
            dynamodb: emulator.dynamodb().config().clone(),
            sqs: emulator.sqs().config().clone(),
            config: config(&options, &base_url, &queues).map_err(step("reading the configuration"))?,
            clock: Arc::clone(&clock),
            metrics: options.metrics.clone(),
            secrets: Secrets::new(Arc::new(LocalSecrets::new(
                options
                    .data_dir
                    .as_ref()
                    .filter(|_| !options.memory)
                    .map(|folder| folder.join("secrets")),
            ))),
        });
        ringback_api::bootstrap(&context, &api_key)
            .await
            .map_err(step("making the local organization"))?;
        // The leases of the process before this one are void, and its queues are gone: this one owns the table.
        sweep(
            context.clone(),
            ringback_sweep::Scope::Everything,
            Deadline::after(Duration::from_secs(300)),
        )
        .await
        .map_err(step("putting back what was under way"))?;

        let (switch, stop) = Stop::new();
        let mut local = Self {
            base_url,
            api_key,
            key_file,
            context,
            emulator,
            switch,
            loops: JoinSet::new(),
            _lock: lock,
        };
        local.spawn_loops(&options, listener, clock, &queues, &stop);
        if let Some(folder) = &options.data_dir {
            local.describe(folder, &queues)?;
        }
        Ok(local)
    }

    /// Writes where the parts of this stack are to be found into the folder, by the names that the outputs of the stack on AWS have,
    /// for whoever wants to look into the table or the queues with the tools that he knows.
    fn describe(&self, folder: &Path, queues: &Queues) -> Result<(), StartError> {
        let parts = serde_json::json!({
            "ApiUrl": self.base_url,
            "TableName": TABLE,
            "TableEndpoint": self.emulator.dynamodb_endpoint(),
            "QueueEndpoint": self.emulator.sqs_endpoint(),
            "RunItemsQueueUrl": queues.run_items.url,
            "RunItemsDeadLettersUrl": queues.run_items.dead_letter_url,
            "EvaluationsDeadLettersUrl": queues.evaluations.dead_letter_url,
            "DeliveriesDeadLettersUrl": queues.deliveries.dead_letter_url,
        });
        // Renamed, so that nobody reads half of it.
        let (path, draft) = (folder.join("stack.json"), folder.join("stack.json.new"));
        std::fs::write(&draft, format!("{parts:#}\n")).map_err(folder_error(&draft))?;
        std::fs::rename(&draft, &path).map_err(folder_error(&path))
    }

    fn spawn_loops(
        &mut self,
        options: &Options,
        listener: TcpListener,
        clock: SharedClock,
        queues: &Queues,
        stop: &Stop,
    ) {
        let context = self.context.clone();
        let api = http::serve(
            listener,
            move |event| {
                let context = context.clone();
                // As the routes of the HTTP API on AWS.
                async move {
                    let path = event.raw_path.clone().unwrap_or_default();
                    match path.strip_prefix("/hooks/").and_then(|rest| rest.split_once('/')) {
                        Some((_, "call-started")) => ringback_call_started::handle(&context, event).await,
                        Some((_, "call-ended")) => ringback_call_ended::handle(&context, event).await,
                        _ => ringback_api::handle(&context, event).await,
                    }
                }
            },
            clock,
            stop.clone(),
        );
        self.spawn("api", async move {
            if let Err(error) = api.await {
                tracing::error!(%error, "the HTTP API stopped");
            }
        });

        let context = self.context.clone();
        let mapping = StreamMapping::new("relay", TABLE);
        let relay = drivers::feed_stream(
            self.emulator.stream(),
            mapping,
            move |event, deadline| {
                let context = context.clone();
                async move { ringback_relay::handle(&context, event, deadline).await }
            },
            stop.clone(),
        );
        self.spawn("relay", relay);

        let context = self
            .context
            .clone()
            .with_dead_letters(&queues.run_items.dead_letter_url);
        let start_item = drivers::feed_queue(
            self.emulator.sqs(),
            QueueMapping {
                function: "start-item",
                queue_url: queues.run_items.url.clone(),
                // One conversation each, so that a slow one holds up no other.
                batch: 1,
                invocations: options.workers,
                timeout: QUEUE_FUNCTION_TIMEOUT,
            },
            move |event, deadline| {
                let context = context.clone();
                async move { ringback_start_item::handle(&context, event, deadline).await }
            },
            stop.clone(),
        );
        self.spawn("start-item", start_item);

        let context = self
            .context
            .clone()
            .with_dead_letters(&queues.evaluations.dead_letter_url);
        let evaluate = drivers::feed_queue(
            self.emulator.sqs(),
            QueueMapping {
                function: "evaluate",
                queue_url: queues.evaluations.url.clone(),
                batch: 10,
                invocations: EVALUATE_INVOCATIONS,
                timeout: QUEUE_FUNCTION_TIMEOUT,
            },
            move |event, deadline| {
                let context = context.clone();
                async move { ringback_evaluate::handle(&context, event, deadline).await }
            },
            stop.clone(),
        );
        self.spawn("evaluate", evaluate);

        let context = self
            .context
            .clone()
            .with_dead_letters(&queues.deliveries.dead_letter_url);
        let deliver = drivers::feed_queue(
            self.emulator.sqs(),
            QueueMapping {
                function: "deliver",
                queue_url: queues.deliveries.url.clone(),
                batch: 10,
                invocations: DELIVER_INVOCATIONS,
                timeout: DELIVER_TIMEOUT,
            },
            move |event, deadline| {
                let context = context.clone();
                async move { ringback_deliver::handle(&context, event, deadline).await }
            },
            stop.clone(),
        );
        self.spawn("deliver", deliver);

        let context = self.context.clone();
        let minute = drivers::feed_tick(
            "sweep",
            || MINUTE,
            MINUTE,
            move |deadline| sweep(context.clone(), ringback_sweep::Scope::Due, deadline),
            stop.clone(),
        );
        self.spawn("sweep", minute);

        let context = self.context.clone();
        let clock = Arc::clone(&context.clock);
        let schedule = drivers::feed_tick(
            "schedule",
            move || next_minute(clock.now_ms()),
            MINUTE,
            move |deadline| {
                let context = context.clone();
                async move { ringback_schedule::handle(&context, deadline).await }
            },
            stop.clone(),
        );
        self.spawn("schedule", schedule);

        let stream = self.emulator.stream();
        let expiry = drivers::feed_tick(
            "expiry",
            || EXPIRY_PERIOD,
            MINUTE,
            move |_| {
                let stream = stream.clone();
                async move {
                    let expired = stream.expire().await?;
                    tracing::debug!(expired, "deleted expired rows");
                    Ok(())
                }
            },
            stop.clone(),
        );
        self.spawn("expiry", expiry);
    }

    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.loops.spawn(async move {
            work.await;
            name
        });
    }

    /// The HTTP API's address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The API key of the local organization.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// The file that holds the API key, if it was not given.
    #[must_use]
    pub fn key_file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }

    /// The embedded DynamoDB's address.
    #[must_use]
    pub fn dynamodb_endpoint(&self) -> &str {
        self.emulator.dynamodb_endpoint()
    }

    /// The embedded SQS's address.
    #[must_use]
    pub fn sqs_endpoint(&self) -> &str {
        self.emulator.sqs_endpoint()
    }

    /// The functions' context, with its clients.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The emulators.
    #[must_use]
    pub fn emulator(&self) -> &Emulator {
        &self.emulator
    }

    /// Returns when one of the loops has ended, which none does by itself: with the reason.
    pub async fn failed(&mut self) -> String {
        match self.loops.join_next().await {
            Some(ended) => ended_by(ended),
            None => "nothing is running".to_owned(),
        }
    }

    /// Stops: no new work is begun, what is under way has a moment to end, the file is closed.
    pub async fn shutdown(self) {
        let Self {
            switch,
            mut loops,
            emulator,
            context,
            ..
        } = self;
        switch.send_replace(true);
        let ended = async {
            while let Some(ended) = loops.join_next().await {
                if ended.is_err() {
                    tracing::error!("{}", ended_by(ended));
                }
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("stopping without waiting for what is still under way");
        }
        loops.shutdown().await;
        drop(context);
        emulator.shutdown().await;
    }
}

fn ended_by(ended: Result<&'static str, JoinError>) -> String {
    match ended {
        Ok(name) => format!("the loop of {name} ended"),
        Err(error) => format!("a loop ended: {error}"),
    }
}

/// How long it is from `now` (milliseconds since the Unix epoch) until the minute after has begun: schedules fire when the clock shows
/// their minute, and not up to a minute later.
fn next_minute(now: i64) -> Duration {
    let into = Duration::from_millis(now.rem_euclid(60_000).unsigned_abs());
    MINUTE.saturating_sub(into) + MOMENT
}

async fn sweep(context: Context, scope: ringback_sweep::Scope, deadline: Deadline) -> Result<(), BoxError> {
    ringback_sweep::handle(&context, scope, deadline).await
}

/// The functions' configuration: what their environment says on AWS.
fn config(options: &Options, base_url: &str, queues: &Queues) -> Result<Config, ConfigError> {
    Config::read(&|name| {
        let model = &options.model;
        match name {
            "TABLE_NAME" => Some(TABLE.to_owned()),
            "RUN_ITEMS_QUEUE_URL" => Some(queues.run_items.url.clone()),
            "EVALUATIONS_QUEUE_URL" => Some(queues.evaluations.url.clone()),
            "DELIVERIES_QUEUE_URL" => Some(queues.deliveries.url.clone()),
            "SECRETS_PREFIX" => Some("ringback".to_owned()),
            "PUBLIC_URL" => Some(options.public_url.as_deref().unwrap_or(base_url).to_owned()),
            "OPENAI_BASE_URL" => model.base_url.clone(),
            "OPENAI_API_KEY" => model.api_key.clone(),
            "RINGBACK_MODEL" => model.default_model.clone(),
            "ALLOW_PRIVATE_TARGETS" => Some(options.allow_private_targets.to_string()),
            _ => options.settings.get(name).cloned(),
        }
    })
}

fn step<E: Into<BoxError>>(step: &'static str) -> impl FnOnce(E) -> StartError {
    move |error| StartError::Functions {
        step,
        source: error.into(),
    }
}

/// An address to call a listener at: one that listens everywhere is called on the loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn folder_error(path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::Folder { path, source }
}

/// Makes a folder that only its owner may enter: transcripts and the API key lie in it.
fn make_private_folder(folder: &Path) -> Result<(), StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(folder_error(folder))
}

/// Takes the folder for this process. The lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, StartError> {
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(folder_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Locked(folder.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(folder_error(&path)(source)),
    }
}

/// The key in the file, which is made if it is not there, readable for its owner only.
fn stored_key(path: &Path) -> Result<String, StartError> {
    match std::fs::read_to_string(path) {
        Ok(key) if !key.trim().is_empty() => return Ok(key.trim().to_owned()),
        Ok(_) => std::fs::remove_file(path).map_err(folder_error(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(folder_error(path)(error)),
    }
    let key = random_key();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(folder_error(path))?;
    writeln!(file, "{key}").map_err(folder_error(path))?;
    Ok(key)
}

/// 244 bits from the system's generator.
pub(crate) fn random_key() -> String {
    format!(
        "rb_{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_folder(folder: &Path) -> Options {
        Options {
            data_dir: Some(folder.to_owned()),
            ..Options::default()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn starts_answers_and_stops_and_the_folder_is_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::start(in_folder(folder.path())).await.unwrap();
        let client = ringback_shared::net::client().build().unwrap();
        let health = client
            .get(format!("{}/health", local.base_url()))
            .send()
            .await
            .unwrap();
        assert_eq!(health.status(), 200);
        let second = Local::start(in_folder(folder.path())).await;
        assert!(matches!(second, Err(StartError::Locked(_))));
        let key = local.api_key().to_owned();
        assert_eq!(
            std::fs::read_to_string(local.key_file().unwrap()).unwrap().trim(),
            key
        );
        local.shutdown().await;

        let again = Local::start(in_folder(folder.path())).await.unwrap();
        assert_eq!(again.api_key(), key, "the key is made once");
        again.shutdown().await;
    }

    #[cfg(unix)]
    #[test]
    fn the_key_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("data");
        make_private_folder(&inner).unwrap();
        let path = inner.join("api-key");
        let key = stored_key(&path).unwrap();
        assert_eq!(key.len(), 67);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            std::fs::metadata(&inner).unwrap().permissions().mode() & 0o777,
            0o700
        );
        std::fs::write(&path, "\n").unwrap();
        assert_ne!(
            stored_key(&path).unwrap(),
            "",
            "an empty key would let everyone in"
        );
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let options = Options {
            api_key: Some("secret-1".to_owned()),
            model: Model {
                api_key: Some("secret-2".to_owned()),
                ..Model::default()
            },
            ..Options::default()
        };
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let error = Local::start(Options {
            listen,
            ..Options::default()
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains(&listen.to_string()), "{error}");
    }
}
