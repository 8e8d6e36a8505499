//! What a handler is given: clients, clock and configuration. The same on Lambda, on a laptop and in tests.

use std::sync::{Arc, OnceLock};

use quick_cache::sync::Cache;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    aws,
    clock::{SharedClock, SystemClock},
    config::{Cloud, Config, ConfigError},
    conversation::{self, Limits, Script, ScriptParts},
    ids,
    listeners::Listener,
    llm::{ChatReply, ChatRequest, Endpoint, ModelClient, ModelError, Purpose},
    metrics::Metrics,
    models::eval::ChatEvalMessage,
    net::Outbound,
    provider::Remote,
    queue::Queues,
    secrets::{Secrets, SecretsManager},
    store::{Basis, ItemOrigin, Snapshot, Store, StoreError},
};

/// An error that ends an invocation.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a context is made of.
#[derive(Debug)]
pub struct Parts {
    /// How the table's service is reached.
    pub dynamodb: aws_sdk_dynamodb::Config,
    /// How the queues' service is reached.
    pub sqs: aws_sdk_sqs::Config,
    /// The configuration.
    pub config: Config,
    /// The time.
    pub clock: SharedClock,
    /// The secrets of endpoints and organizations.
    pub secrets: Secrets,
    /// What is measured.
    pub metrics: Metrics,
}

/// Why a context could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The configuration is not complete.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The HTTP client could not be made.
    #[error("the HTTP client for AWS: {0}")]
    Http(#[from] reqwest::Error),
}

/// What a handler is given. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Context {
    /// The table.
    pub store: Store,
    /// The queues.
    pub queues: Queues,
    /// Models.
    pub models: ModelClient,
    /// Where requests to providers may go.
    pub outbound: Outbound,
    /// The secrets of endpoints and organizations.
    pub secrets: Secrets,
    /// The time.
    pub clock: SharedClock,
    /// The configuration.
    pub config: Arc<Config>,
    /// What is measured.
    pub metrics: Metrics,
    snapshots: Arc<Snapshots>,
    /// Whether nobody waits yet.
    ahead: bool,
}

/// What an item works from, shared by the items of its simulation.
#[derive(Debug)]
pub struct Briefing {
    /// Scenario, personality, simulation and structured outputs.
    pub snapshot: Arc<Snapshot>,
    /// The target.
    pub target: Arc<Value>,
    /// The item that the item came from, if its run came from another one.
    pub origin: Option<ItemOrigin>,
    plan: SharedPlan,
    script: OnceLock<Arc<Script>>,
}

/// The fixed part of conversations, made when the first of them needs it.
type SharedPlan = Arc<OnceLock<Arc<conversation::Plan>>>;

impl Briefing {
    /// The fixed part of the simulation's conversations. The limits are those of the first call.
    pub fn plan(&self, limits: Limits) -> Arc<conversation::Plan> {
        let scenario = &self.snapshot.scenario;
        let make = || {
            Arc::new(conversation::Plan::new(&conversation::Parts {
                personality: self.snapshot.personality.get("assistant").unwrap_or(&Value::Null),
                instructions: scenario
                    .get("instructions")
                    .and_then(Value::as_str)
                    .unwrap_or_default(),
                target: conversation::Target::of(&self.target),
                tool_mocks: scenario.get("toolMocks").unwrap_or(&Value::Null),
                target_overrides: scenario.get("targetOverrides").unwrap_or(&Value::Null),
                remote: self.remote().as_ref(),
                runs_tools: runs_tools(scenario),
                limits,
            }))
        };
        Arc::clone(self.plan.get_or_init(make))
    }

    /// Who holds the target's side of a chat, if it is somebody else.
    fn remote(&self) -> Option<Remote> {
        let remote = self.target.get("remote")?.clone();
        serde_json::from_value(remote).ok()
    }

    /// The fixed part of the eval's mock conversation. The limits are those of the first call.
    ///
    /// # Errors
    /// The eval is not what this version of Ringback writes.
    pub fn script(&self, limits: Limits) -> Result<Arc<Script>, StoreError> {
        if let Some(script) = self.script.get() {
            return Ok(Arc::clone(script));
        }
        let messages = self.snapshot.eval.get("messages").cloned().unwrap_or_default();
        let messages: Vec<ChatEvalMessage> =
            serde_json::from_value(messages).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let script = Arc::new(Script::new(&ScriptParts {
            messages: &messages,
            target: conversation::Target::of(&self.target),
            overrides: self.target.get("assistantOverrides").unwrap_or(&Value::Null),
            runs_tools: runs_tools(&self.target),
            limits,
        }));
        Ok(Arc::clone(self.script.get_or_init(|| script)))
    }

    /// Whether the target is a speech-to-speech model; see [`conversation::has_live_target`].
    #[must_use]
    pub fn has_live_target(&self) -> bool {
        let overrides = self.snapshot.scenario.get("targetOverrides");
        conversation::has_live_target(&self.target, overrides.unwrap_or(&Value::Null))
    }
}

/// Whether this says that tools without a mock are run for real.
fn runs_tools(asked: &Value) -> bool {
    asked.get("unmockedTools").and_then(Value::as_str) == Some("run")
}

/// How many briefings a process keeps: they never change, and a run's items come one after the other.
const KEPT_BRIEFINGS: usize = 64;
/// How many targets a process keeps.
const KEPT_TARGETS: usize = 16;

/// What runs never change, read once however many items ask at the same time.
#[derive(Debug)]
struct Snapshots {
    briefings: Cache<(Uuid, u32), Arc<Briefing>>,
    /// Snapshots that several simulations of a run share, by run and place.
    shared: Cache<(Uuid, u32), (Arc<Snapshot>, SharedPlan)>,
    targets: Cache<Uuid, Arc<Value>>,
    listeners: Cache<Uuid, Arc<[Listener]>>,
}

impl Context {
    /// A context of these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            dynamodb,
            sqs,
            config,
            clock,
            secrets,
            metrics,
        } = parts;
        let outbound = Outbound::new(config.models.allow_private_targets);
        let mut queues = Queues::new(
            sqs,
            &config.run_items_queue_url,
            &config.evaluations_queue_url,
            &config.deliveries_queue_url,
        );
        if let Some(url) = &config.dead_letters_queue_url {
            queues = queues.with_dead_letters(url);
        }
        Self {
            store: Store::new(dynamodb, &config.table),
            queues,
            models: ModelClient::new(outbound.clone()),
            outbound,
            secrets,
            clock,
            config: Arc::new(config),
            metrics,
            ahead: false,
            snapshots: Arc::new(Snapshots {
                briefings: Cache::new(KEPT_BRIEFINGS),
                shared: Cache::new(KEPT_BRIEFINGS),
                targets: Cache::new(KEPT_TARGETS),
                listeners: Cache::new(KEPT_TARGETS),
            }),
        }
    }

    /// The context of a Lambda function: configuration from the environment, clients with short time limits.
    ///
    /// # Errors
    /// When a variable is missing or the HTTP client cannot be made.
    pub fn from_env() -> Result<Self, ContextError> {
        let config = Config::from_env()?;
        let cloud = Cloud::from_env()?;
        let aws = aws::config(&cloud)?;
        let secrets = SecretsManager::new((&aws).into(), &config.secrets_prefix);
        let context = Self::new(Parts {
            dynamodb: (&aws).into(),
            sqs: (&aws).into(),
            metrics: Metrics::to_output(&config.stack),
            config,
            clock: Arc::new(SystemClock),
            secrets: Secrets::new(Arc::new(secrets)),
        });
        Ok(Self {
            ahead: cloud.ahead,
            ..context
        })
    }

    /// Where the process was started ahead of its first event: one bounded read, so that the event finds the connection and its TLS
    /// session made. What comes of it does not matter. Where somebody waits already it would only come first: they wait for the
    /// connection either way.
    pub async fn warm_up(&self) {
        if self.ahead {
            let read = self.store.principal("warm-up");
            let _ = tokio::time::timeout(std::time::Duration::from_millis(800), read).await;
        }
    }

    /// The same context, for a function that receives from the queue with these dead letters. On Lambda each function is told its own.
    #[must_use]
    pub fn with_dead_letters(mut self, url: &str) -> Self {
        self.queues = self.queues.with_dead_letters(url);
        self
    }

    /// Does the work of an invocation. However it ends, what was measured is written then.
    pub async fn invocation<T>(&self, work: impl Future<Output = T>) -> T {
        let _written = self.metrics.at_end(&self.clock);
        work.await
    }

    /// Asks a model for a reply, as [`ModelClient::chat`] does, and measures how long it takes.
    ///
    /// # Errors
    /// As [`ModelClient::chat`].
    pub async fn chat(
        &self,
        purpose: Purpose,
        endpoint: &Endpoint,
        request: &ChatRequest,
    ) -> Result<ChatReply, ModelError> {
        let asked = std::time::Instant::now();
        let reply = self.models.chat(endpoint, request).await?;
        self.metrics.model_answered(purpose, asked.elapsed());
        Ok(reply)
    }

    /// The name of a new claim on an item.
    #[must_use]
    pub fn owner(&self) -> String {
        ids::new_id(self.clock.now_ms()).to_string()
    }

    /// Reads what the items of a run's simulation work from.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn briefing(&self, run: Uuid, simulation: u32) -> Result<Arc<Briefing>, StoreError> {
        let read = Box::pin(async {
            let target = self.snapshots.targets.get_or_insert_async(&run, async {
                Ok::<_, StoreError>(Arc::new(self.store.target(run).await?))
            });
            let (basis, target) = tokio::try_join!(self.store.basis(run, simulation), target)?;
            let ((snapshot, plan), origin) = match basis {
                Basis::Whole(snapshot) => ((Arc::from(snapshot), SharedPlan::default()), None),
                Basis::Same { at, origin } => (self.shared(run, at).await?, Some(origin)),
            };
            Ok(Arc::new(Briefing {
                snapshot,
                target,
                origin,
                plan,
                script: OnceLock::new(),
            }))
        });
        self.snapshots
            .briefings
            .get_or_insert_async(&(run, simulation), read)
            .await
    }

    /// Reads who listens to a run.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn listeners(&self, run: Uuid) -> Result<Arc<[Listener]>, StoreError> {
        let read = async { Ok(Arc::from(self.store.manifest(run).await?.notify.listeners)) };
        self.snapshots.listeners.get_or_insert_async(&run, read).await
    }

    /// Reads the snapshot at a place of a run that several of its simulations share.
    async fn shared(&self, run: Uuid, at: u32) -> Result<(Arc<Snapshot>, SharedPlan), StoreError> {
        let read = async {
            let snapshot = self.store.snapshot(run, at).await?;
            Ok((Arc::new(snapshot), SharedPlan::default()))
        };
        self.snapshots.shared.get_or_insert_async(&(run, at), read).await
    }
}
