//! Assistants and squads: configurations that are kept whole. What a conversation needs of one is read where it is needed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, Validate, check};

/// The longest name, in characters.
const NAME: usize = 40;

/// Declares a configuration as sent and as stored.
macro_rules! configuration {
    ($what:literal, $create:ident, $stored:ident) => {
        #[doc = concat!("The configuration of ", $what, ", kept whole.")]
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
        #[schemars(extend("properties" = {"name": {"type": ["string", "null"], "maxLength": NAME}}))]
        pub struct $create {
            /// Every field as sent.
            #[serde(flatten)]
            pub config: Object,
        }

        #[doc = concat!("The stored configuration of ", $what, ".")]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
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

        impl Validate for $create {
            fn validate(&self, path: &str, faults: &mut Vec<String>) {
                match self.config.get("name") {
                    Some(Value::String(name)) => check::length(path, "name", name, 0, NAME, faults),
                    Some(Value::Null) | None => {}
                    Some(_) => faults.push(format!("{} must be a string", check::join(path, "name"))),
                }
            }
        }
    };
}

configuration!("an assistant", CreateAssistant, Assistant);
configuration!("a squad", CreateSquad, Squad);
