//! Configuration, read once when a process starts. On Lambda it comes from the environment that the template sets.

use std::time::Duration;

use crate::{
    conversation::Limits,
    llm::{Endpoint, ModelConfig, Secret},
};

/// What a process needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The table's name. Read from `TABLE_NAME`.
    pub table: String,
    /// Where items that are owed a (further) slice of their conversation go. Read from `RUN_ITEMS_QUEUE_URL`.
    pub run_items_queue_url: String,
    /// Where items that are owed a verdict go. Read from `EVALUATIONS_QUEUE_URL`.
    pub evaluations_queue_url: String,
    /// The base of links to runs, without a slash at its end. Read from `PUBLIC_URL`.
    pub public_url: String,
    /// How models are reached. Read from `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `RINGBACK_MODEL`,
    /// `MODEL_TIMEOUT_SECONDS` and `ALLOW_PRIVATE_TARGETS`.
    pub models: ModelConfig,
    /// The most iterations that a run may ask for. Read from `MAX_ITERATIONS`.
    pub max_iterations: u32,
    /// How long a conversation may be. Read from `MAX_TURNS` and `MAX_CONVERSATION_SECONDS`.
    pub limits: Limits,
    /// The longest that one invocation talks for an item before it hands it on. Read from `SLICE_SECONDS`.
    pub slice: Duration,
    /// How many records of a batch are worked on at once. Read from `RECORD_CONCURRENCY`.
    pub record_concurrency: usize,
}

/// A variable is missing or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is not set.
    #[error("set the environment variable {0}")]
    Missing(&'static str),
    /// A variable has a value that cannot be used.
    #[error("the environment variable {name} is {value:?}: {expected}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
}

/// Where the variables come from.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn required(lookup: Lookup<'_>, name: &'static str) -> Result<String, ConfigError> {
    lookup(name)
        .filter(|value| !value.is_empty())
        .ok_or(ConfigError::Missing(name))
}

fn parsed<T: std::str::FromStr>(
    lookup: Lookup<'_>,
    name: &'static str,
    default: T,
    expected: &'static str,
) -> Result<T, ConfigError> {
    match lookup(name).filter(|value| !value.is_empty()) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|_| ConfigError::Invalid {
            name,
            value,
            expected,
        }),
    }
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Names the first variable that is missing or cannot be read.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads variables from `lookup`.
    ///
    /// # Errors
    /// Names the first variable that is missing or cannot be read.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let limits = Limits::default();
        let limits = Limits {
            max_turns: parsed(lookup, "MAX_TURNS", limits.max_turns, "a whole number from 1 on")?,
            max_seconds: parsed(
                lookup,
                "MAX_CONVERSATION_SECONDS",
                limits.max_seconds,
                "a whole number of seconds",
            )?,
            ..limits
        };
        Ok(Self {
            table: required(lookup, "TABLE_NAME")?,
            run_items_queue_url: required(lookup, "RUN_ITEMS_QUEUE_URL")?,
            evaluations_queue_url: required(lookup, "EVALUATIONS_QUEUE_URL")?,
            public_url: required(lookup, "PUBLIC_URL")?.trim_end_matches('/').to_owned(),
            models: Self::models(lookup)?,
            max_iterations: parsed(lookup, "MAX_ITERATIONS", 10, "a whole number from 1 on")?,
            limits,
            slice: Duration::from_secs(parsed(lookup, "SLICE_SECONDS", 120, "a whole number of seconds")?),
            record_concurrency: parsed(lookup, "RECORD_CONCURRENCY", 10, "a whole number from 1 on")?,
        })
    }

    /// Reads how models are reached from `lookup`.
    ///
    /// # Errors
    /// Names the variable that cannot be read.
    pub fn models(lookup: &dyn Fn(&str) -> Option<String>) -> Result<ModelConfig, ConfigError> {
        let seconds = parsed(lookup, "MODEL_TIMEOUT_SECONDS", 60, "a whole number of seconds")?;
        let timeout = Duration::from_secs(seconds);
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let key = set("OPENAI_API_KEY");
        // The key alone means OpenAI itself, as it does for OpenAI's own clients.
        let base_url =
            set("OPENAI_BASE_URL").or_else(|| key.as_ref().map(|_| "https://api.openai.com/v1".to_owned()));
        let endpoint = base_url.map(|base_url| Endpoint {
            base_url,
            api_key: key.map(Secret::new),
            headers: std::collections::BTreeMap::new(),
            timeout,
            trusted: true,
        });
        Ok(ModelConfig {
            endpoint,
            default_model: set("RINGBACK_MODEL").unwrap_or_else(|| "gpt-4.1".to_owned()),
            allow_private_targets: parsed(lookup, "ALLOW_PRIVATE_TARGETS", false, "true or false")?,
            timeout,
        })
    }
}
