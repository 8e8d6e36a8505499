//! Configuration, read once when a process starts. On Lambda it comes from the environment that the template sets.

use std::time::Duration;

use crate::{
    conversation::Limits,
    costs::Prices,
    llm::{Endpoint, ModelConfig, Secret},
};

/// What a process needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The table's name. Read from `TABLE_NAME`.
    pub table: String,
    /// What metrics name this system by. Read from `STACK_NAME`; `ringback` where it is not set.
    pub stack: String,
    /// Where items that are owed a (further) slice of their conversation go. Read from `RUN_ITEMS_QUEUE_URL`.
    pub run_items_queue_url: String,
    /// Where items that are owed a verdict go. Read from `EVALUATIONS_QUEUE_URL`.
    pub evaluations_queue_url: String,
    /// Where deliveries of outgoing hooks go. Read from `DELIVERIES_QUEUE_URL`.
    pub deliveries_queue_url: String,
    /// Where a message goes that can never succeed: the dead-letter queue of the queue that the function receives from. Read from
    /// `DEAD_LETTERS_QUEUE_URL`, which only such functions have.
    pub dead_letters_queue_url: Option<String>,
    /// What the names of secrets begin with, before a slash: it keeps the secrets of several systems in one account apart.
    /// Read from `SECRETS_PREFIX`.
    pub secrets_prefix: String,
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
    /// How many call slots an organization has; a voice item takes two. Read from `CALL_SLOTS`.
    pub call_slots: u32,
    /// The longest that a call may last. Read from `MAX_CALL_SECONDS`.
    pub max_call: Duration,
    /// What models cost. Read from `MODEL_PRICES`.
    pub prices: Prices,
    /// How many records of a batch are worked on at once. Read from `RECORD_CONCURRENCY`.
    pub record_concurrency: usize,
}

/// What Lambda says of where a function runs. Its credentials stay in the environment, where the SDK reads them.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// The region. Read from `AWS_REGION`.
    pub region: String,
    /// Where all of AWS's services are, if not where they always are: an emulator. Read from `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// Whether the process is started ahead of its first event, and not because somebody waits. Read from
    /// `AWS_LAMBDA_INITIALIZATION_TYPE`.
    pub ahead: bool,
}

impl Cloud {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// There is no region.
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self {
            region: required(&environment, "AWS_REGION")?,
            endpoint: environment("AWS_ENDPOINT_URL").filter(|url| !url.is_empty()),
            ahead: environment("AWS_LAMBDA_INITIALIZATION_TYPE").is_some_and(|kind| kind != "on-demand"),
        })
    }
}

/// A variable of the process's environment.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
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

/// A reply must fit into an invocation of the functions that ask for one, with time to write it down.
const MAX_MODEL_SECONDS: u64 = 90;

/// What a table of prices looks like.
const PRICES: &str = "JSON such as {\"gpt-4.1\": {\"prompt\": 2, \"completion\": 8}}, in US dollars for a million tokens, \
     none of them below 0";

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
    /// Every variable that is read.
    pub const VARIABLES: &[&str] = &[
        "TABLE_NAME",
        "STACK_NAME",
        "RUN_ITEMS_QUEUE_URL",
        "EVALUATIONS_QUEUE_URL",
        "DELIVERIES_QUEUE_URL",
        "DEAD_LETTERS_QUEUE_URL",
        "SECRETS_PREFIX",
        "PUBLIC_URL",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "RINGBACK_MODEL",
        "MODEL_TIMEOUT_SECONDS",
        "ALLOW_PRIVATE_TARGETS",
        "MAX_ITERATIONS",
        "MAX_TURNS",
        "MAX_CONVERSATION_SECONDS",
        "SLICE_SECONDS",
        "CALL_SLOTS",
        "MAX_CALL_SECONDS",
        "MODEL_PRICES",
        "RECORD_CONCURRENCY",
    ];

    /// Reads the process's environment.
    ///
    /// # Errors
    /// Names the first variable that is missing or cannot be read.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&environment)
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
        let call_slots = parsed(lookup, "CALL_SLOTS", 10, "a whole number from 2 on")?;
        if call_slots < 2 {
            // Nobody would ever be admitted.
            return Err(ConfigError::Invalid {
                name: "CALL_SLOTS",
                value: call_slots.to_string(),
                expected: "a whole number from 2 on",
            });
        }
        Ok(Self {
            table: required(lookup, "TABLE_NAME")?,
            stack: lookup("STACK_NAME")
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "ringback".to_owned()),
            run_items_queue_url: required(lookup, "RUN_ITEMS_QUEUE_URL")?,
            evaluations_queue_url: required(lookup, "EVALUATIONS_QUEUE_URL")?,
            deliveries_queue_url: required(lookup, "DELIVERIES_QUEUE_URL")?,
            dead_letters_queue_url: lookup("DEAD_LETTERS_QUEUE_URL").filter(|url| !url.is_empty()),
            secrets_prefix: required(lookup, "SECRETS_PREFIX")?,
            public_url: required(lookup, "PUBLIC_URL")?.trim_end_matches('/').to_owned(),
            models: Self::models(lookup)?,
            max_iterations: parsed(lookup, "MAX_ITERATIONS", 10, "a whole number from 1 on")?,
            limits,
            slice: Duration::from_secs(parsed(lookup, "SLICE_SECONDS", 120, "a whole number of seconds")?),
            call_slots,
            max_call: Duration::from_secs(parsed(
                lookup,
                "MAX_CALL_SECONDS",
                600,
                "a whole number of seconds",
            )?),
            prices: parsed(lookup, "MODEL_PRICES", Prices::default(), PRICES)?,
            record_concurrency: parsed(lookup, "RECORD_CONCURRENCY", 10, "a whole number from 1 on")?,
        })
    }

    /// Reads how models are reached from `lookup`.
    ///
    /// # Errors
    /// Names the variable that cannot be read.
    pub fn models(lookup: &dyn Fn(&str) -> Option<String>) -> Result<ModelConfig, ConfigError> {
        let seconds = parsed(lookup, "MODEL_TIMEOUT_SECONDS", 60, "a whole number of seconds")?;
        if !(1..=MAX_MODEL_SECONDS).contains(&seconds) {
            let expected = "a whole number of seconds from 1 to 90";
            return Err(ConfigError::Invalid {
                name: "MODEL_TIMEOUT_SECONDS",
                value: seconds.to_string(),
                expected,
            });
        }
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    fn minimal(name: &str) -> Option<String> {
        [
            "TABLE_NAME",
            "RUN_ITEMS_QUEUE_URL",
            "EVALUATIONS_QUEUE_URL",
            "DELIVERIES_QUEUE_URL",
            "SECRETS_PREFIX",
            "PUBLIC_URL",
        ]
        .contains(&name)
        .then(|| format!("the-{name}/"))
    }

    #[test]
    fn exactly_the_declared_variables_are_read() {
        let asked = RefCell::new(BTreeSet::new());
        let config = Config::read(&|name| {
            asked.borrow_mut().insert(name.to_owned());
            minimal(name)
        })
        .unwrap();
        let declared: BTreeSet<String> = Config::VARIABLES.iter().map(ToString::to_string).collect();
        assert_eq!(asked.into_inner(), declared);
        assert_eq!(config.public_url, "the-PUBLIC_URL");
        assert!(config.models.endpoint.is_none());
    }

    #[test]
    fn a_missing_or_wrong_variable_is_named() {
        let missing = Config::read(&|name| minimal(name).filter(|_| name != "PUBLIC_URL")).unwrap_err();
        assert_eq!(missing.to_string(), "set the environment variable PUBLIC_URL");
        for (name, value) in [
            ("MAX_ITERATIONS", "many"),
            ("MODEL_TIMEOUT_SECONDS", "600"),
            ("MAX_TURNS", "-1"),
            ("CALL_SLOTS", "1"),
            ("MODEL_PRICES", "2"),
        ] {
            let wrong = Config::read(&|asked| {
                if asked == name {
                    Some(value.into())
                } else {
                    minimal(asked)
                }
            });
            assert!(
                wrong
                    .unwrap_err()
                    .to_string()
                    .starts_with(&format!("the environment variable {name} is \"{value}\""))
            );
        }
    }

    #[test]
    fn a_key_alone_means_openai_itself() {
        let models = Config::models(&|name| (name == "OPENAI_API_KEY").then(|| "k".to_owned())).unwrap();
        assert_eq!(models.endpoint.unwrap().base_url, "https://api.openai.com/v1");
    }
}
