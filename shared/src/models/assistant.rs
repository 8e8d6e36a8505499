//! Assistants and squads: configurations that are kept whole, with readers for the parts a conversation needs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, Validate, check, kinds};

kinds::names! {
    /// Who opens the conversation.
    #[derive(Default)]
    FirstMessageMode {
        /// The assistant says its `firstMessage`.
        #[default]
        AssistantSpeaksFirst = "assistant-speaks-first",
        /// The assistant's model writes the first message.
        AssistantSpeaksFirstWithModelGeneratedMessage = "assistant-speaks-first-with-model-generated-message",
        /// The other side speaks first.
        AssistantWaitsForUser = "assistant-waits-for-user",
    }
}

/// Declares a configuration as sent and as stored.
macro_rules! configuration {
    ($what:literal, $create:ident, $stored:ident, $view:ident) => {
        #[doc = concat!("The configuration of ", $what, ", kept whole.")]
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct $create {
            /// Every field as sent.
            #[serde(flatten)]
            pub config: Object,
        }

        #[doc = concat!("The stored configuration of ", $what, ".")]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $stored {
            /// Unique id.
            pub id: String,
            /// The organisation it belongs to.
            pub org_id: String,
            /// When it was created.
            pub created_at: String,
            /// When it was last changed.
            pub updated_at: String,
            /// Every other field as sent.
            #[serde(flatten)]
            pub config: Object,
        }

        impl $stored {
            /// A new record of `create`, made at `now`.
            #[must_use]
            pub fn new(id: String, org_id: String, now: String, create: $create) -> Self {
                let config = kinds::unclaimed(create.config, kinds::STORED);
                Self {
                    id,
                    org_id,
                    created_at: now.clone(),
                    updated_at: now,
                    config,
                }
            }

            /// Takes over every field of `patch`; `null` clears one.
            pub fn apply(&mut self, patch: $create, now: String) {
                kinds::merge(&mut self.config, patch.config);
                self.updated_at = now;
            }
        }

        impl Validate for $create {
            fn validate(&self, path: &str, faults: &mut Vec<String>) {
                match self.config.get("name") {
                    None | Some(Value::Null) => {}
                    Some(Value::String(name)) => check::length(path, "name", name, 0, 40, faults),
                    Some(_) => faults.push(format!("{} must be a string", check::join(path, "name"))),
                }
            }
        }

        impl $view for $create {
            fn config(&self) -> &Object {
                &self.config
            }
        }

        impl $view for $stored {
            fn config(&self) -> &Object {
                &self.config
            }
        }

        impl $view for Object {
            fn config(&self) -> &Object {
                self
            }
        }
    };
}

configuration!("an assistant", CreateAssistant, Assistant, AssistantConfig);
configuration!("a squad", CreateSquad, Squad, SquadConfig);

fn text<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

fn list<'a>(object: &'a Object, field: &str) -> &'a [Value] {
    object
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn texts<'a>(object: &'a Object, field: &str) -> Vec<&'a str> {
    list(object, field).iter().filter_map(Value::as_str).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "saturation is right for a limit")]
fn whole(object: &Object, field: &str) -> Option<i64> {
    let value = object.get(field)?;
    value.as_i64().or_else(|| {
        value
            .as_f64()
            .filter(|float| float.fract() == 0.0)
            .map(|float| float as i64)
    })
}

/// Reads an assistant's configuration. A field of an unexpected type reads as absent.
pub trait AssistantConfig {
    /// The configuration itself.
    fn config(&self) -> &Object;

    /// The assistant's name.
    fn name(&self) -> Option<&str> {
        text(self.config(), "name")
    }

    /// What the assistant says first, if it says something fixed.
    fn first_message(&self) -> Option<&str> {
        text(self.config(), "firstMessage")
    }

    /// Who opens the conversation.
    fn first_message_mode(&self) -> FirstMessageMode {
        text(self.config(), "firstMessageMode")
            .and_then(|mode| mode.parse().ok())
            .unwrap_or_default()
    }

    /// The language model behind the assistant.
    fn model(&self) -> Option<ModelConfig<'_>> {
        self.config()
            .get("model")
            .and_then(Value::as_object)
            .map(ModelConfig)
    }

    /// Phrases by which the assistant ends the conversation.
    fn end_call_phrases(&self) -> Vec<&str> {
        texts(self.config(), "endCallPhrases")
    }

    /// What the assistant says when it ends the conversation.
    fn end_call_message(&self) -> Option<&str> {
        text(self.config(), "endCallMessage")
    }

    /// Where tool calls go that name no server of their own.
    fn server(&self) -> Option<&Object> {
        self.config().get("server").and_then(Value::as_object)
    }
}

/// Reads an assistant's `model`. A field of an unexpected type reads as absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelConfig<'a>(pub &'a Object);

impl<'a> ModelConfig<'a> {
    /// Whose model it is, such as `openai` or `custom-llm`.
    #[must_use]
    pub fn provider(self) -> Option<&'a str> {
        text(self.0, "provider")
    }

    /// The model's name at the provider.
    #[must_use]
    pub fn model(self) -> Option<&'a str> {
        text(self.0, "model")
    }

    /// Base URL of a custom model.
    #[must_use]
    pub fn url(self) -> Option<&'a str> {
        text(self.0, "url")
    }

    /// Headers for a custom model; only texts count.
    pub fn headers(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let headers = self.0.get("headers").and_then(Value::as_object);
        headers
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    }

    /// Sampling temperature.
    #[must_use]
    pub fn temperature(self) -> Option<f64> {
        self.0.get("temperature").and_then(Value::as_f64)
    }

    /// The most tokens in one answer.
    #[must_use]
    pub fn max_tokens(self) -> Option<i64> {
        whole(self.0, "maxTokens")
    }

    /// Messages before the conversation, the system prompt first.
    #[must_use]
    pub fn messages(self) -> &'a [Value] {
        list(self.0, "messages")
    }

    /// The content of the first message: the prompt.
    #[must_use]
    pub fn prompt(self) -> Option<&'a str> {
        let first = self.messages().first().and_then(Value::as_object);
        first
            .and_then(|message| text(message, "content"))
            .or_else(|| text(self.0, "systemPrompt"))
    }

    /// Tools defined in place.
    #[must_use]
    pub fn tools(self) -> &'a [Value] {
        list(self.0, "tools")
    }

    /// Ids of stored tools.
    #[must_use]
    pub fn tool_ids(self) -> Vec<&'a str> {
        texts(self.0, "toolIds")
    }

    /// Seconds a custom model may take to answer.
    #[must_use]
    pub fn timeout_seconds(self) -> Option<i64> {
        whole(self.0, "timeoutSeconds")
    }
}

/// Reads a squad's configuration. A field of an unexpected type reads as absent.
pub trait SquadConfig {
    /// The configuration itself.
    fn config(&self) -> &Object;

    /// The squad's name.
    fn name(&self) -> Option<&str> {
        text(self.config(), "name")
    }

    /// The members; the first one starts the conversation.
    fn members(&self) -> impl Iterator<Item = SquadMember<'_>> {
        list(self.config(), "members")
            .iter()
            .filter_map(Value::as_object)
            .map(SquadMember)
    }
}

/// Reads a member of a squad.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SquadMember<'a>(pub &'a Object);

impl<'a> SquadMember<'a> {
    /// The stored assistant that is meant.
    #[must_use]
    pub fn assistant_id(self) -> Option<&'a str> {
        text(self.0, "assistantId")
    }

    /// The assistant defined in place.
    #[must_use]
    pub fn assistant(self) -> Option<&'a Object> {
        self.0.get("assistant").and_then(Value::as_object)
    }

    /// Fields that replace the assistant's own in this squad.
    #[must_use]
    pub fn assistant_overrides(self) -> Option<&'a Object> {
        self.0.get("assistantOverrides").and_then(Value::as_object)
    }

    /// Where the assistant may hand over to.
    #[must_use]
    pub fn destinations(self) -> &'a [Value] {
        list(self.0, "assistantDestinations")
    }
}
