//! Assistants and squads: configurations that are kept whole. What a conversation needs of one is read where it is needed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, Validate, check, kinds};

/// The longest name, in characters.
const NAME: usize = 40;
/// The most members that a squad may have: a run keeps each with its assistant.
const MEMBERS: usize = 50;

/// Declares a configuration as sent and as stored.
macro_rules! configuration {
    ($what:literal, $create:ident, $stored:ident, $required:tt, $properties:tt) => {
        #[doc = concat!("The configuration of ", $what, ", kept whole.")]
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
        #[schemars(extend("required" = $required, "properties" = $properties))]
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
    };
}

configuration!("an assistant", CreateAssistant, Assistant, [], {"name": {"type": ["string", "null"], "maxLength": NAME}});
configuration!("a squad", CreateSquad, Squad, ["members"], {
    "name": {"type": ["string", "null"], "maxLength": NAME},
    "members": {
        "type": "array", "minItems": 1, "maxItems": MEMBERS,
        "items": {
            "type": "object",
            "properties": {
                "assistantId": {"type": ["string", "null"], "format": "uuid"},
                "assistant": {
                    "type": ["object", "null"],
                    "properties": {"name": {"type": ["string", "null"], "maxLength": NAME}},
                },
                "assistantOverrides": {"type": ["object", "null"]},
            },
            "oneOf": [
                {"required": ["assistantId"], "properties": {"assistantId": {"type": "string"}, "assistant": {"type": "null"}}},
                {"required": ["assistant"], "properties": {"assistant": {"type": "object"}, "assistantId": {"type": "null"}}},
            ],
        },
    },
    "membersOverrides": {"type": ["object", "null"]},
});

/// Changes to a squad; its members are replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(extend("properties" = {"name": {"type": ["string", "null"], "maxLength": NAME}}))]
pub struct UpdateSquad {
    /// Every field as sent.
    #[serde(flatten)]
    pub config: Object,
}

/// A squad's members.
pub fn members(squad: &Object) -> impl Iterator<Item = &Value> {
    squad
        .get("members")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

impl Validate for CreateAssistant {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        name(path, &self.config, faults);
    }
}

impl Validate for CreateSquad {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if !self.config.contains_key("members") {
            faults.push(format!("{} must be given", check::join(path, "members")));
        }
        squad(path, &self.config, faults);
    }
}

impl Validate for UpdateSquad {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        squad(path, &self.config, faults);
    }
}

fn name(path: &str, config: &Object, faults: &mut Vec<String>) {
    match config.get("name") {
        Some(Value::String(name)) => check::length(path, "name", name, 0, NAME, faults),
        Some(Value::Null) | None => {}
        Some(_) => faults.push(format!("{} must be a string", check::join(path, "name"))),
    }
}

/// What is wrong with the fields that are there.
fn squad(path: &str, config: &Object, faults: &mut Vec<String>) {
    name(path, config, faults);
    object(path, "membersOverrides", config.get("membersOverrides"), faults);
    let at = check::join(path, "members");
    match config.get("members") {
        None => {}
        Some(Value::Array(members)) if members.is_empty() => {
            faults.push(format!("{at} should not be empty"));
        }
        Some(Value::Array(members)) if members.len() > MEMBERS => {
            faults.push(format!("{at} must not have more than {MEMBERS} members"));
        }
        Some(Value::Array(members)) => {
            for (n, member) in members.iter().enumerate() {
                squad_member(&check::join(&at, &n.to_string()), member, faults);
            }
        }
        Some(_) => faults.push(format!("{at} must be an array")),
    }
}

fn squad_member(path: &str, member: &Value, faults: &mut Vec<String>) {
    let Some(member) = member.as_object() else {
        faults.push(format!("{path} must be an object"));
        return;
    };
    let field = |name: &str| member.get(name).filter(|value| !value.is_null());
    let (id, inline) = (field("assistantId"), field("assistant"));
    kinds::one_of(
        path,
        ("assistantId", id.is_some()),
        ("assistant", inline.is_some()),
        faults,
    );
    match id {
        Some(Value::String(id)) => check::uuid(path, "assistantId", id, faults),
        Some(_) => faults.push(format!("{} must be a UUID", check::join(path, "assistantId"))),
        None => {}
    }
    object(path, "assistant", inline, faults);
    if let Some(Value::Object(assistant)) = inline {
        name(&check::join(path, "assistant"), assistant, faults);
    }
    object(path, "assistantOverrides", field("assistantOverrides"), faults);
    let at = check::join(path, "assistantDestinations");
    match field("assistantDestinations") {
        Some(Value::Array(destinations)) => {
            for (n, destination) in destinations.iter().enumerate() {
                squad_destination(&check::join(&at, &n.to_string()), destination, faults);
            }
        }
        Some(_) => faults.push(format!("{at} must be an array")),
        None => {}
    }
}

/// A destination that leads to an assistant must say to which one. Others, such as telephone numbers, are kept as they are.
fn squad_destination(path: &str, destination: &Value, faults: &mut Vec<String>) {
    let Some(destination) = destination.as_object() else {
        faults.push(format!("{path} must be an object"));
        return;
    };
    let field = |name: &str| destination.get(name).filter(|value| !value.is_null());
    match field("type") {
        Some(Value::String(kind)) if kind != "assistant" => return,
        Some(Value::String(_)) => {}
        _ => faults.push(format!("{} must be a string", check::join(path, "type"))),
    }
    let named = ["assistantName", "assistantId", "assistant"];
    if named.iter().all(|name| field(name).is_none()) {
        faults.push(format!("{} must be given", check::join(path, "assistantName")));
    }
    for name in ["assistantName", "assistantId", "description"] {
        if field(name).is_some_and(|value| !value.is_string()) {
            faults.push(format!("{} must be a string", check::join(path, name)));
        }
    }
}

fn object(path: &str, field: &str, value: Option<&Value>, faults: &mut Vec<String>) {
    if value.is_some_and(|value| !value.is_object() && !value.is_null()) {
        faults.push(format!("{} must be an object", check::join(path, field)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::parse;

    const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

    #[test]
    fn a_squad_has_members_that_are_one_assistant_each() {
        let faults = |body: Value| match parse::<CreateSquad>(body) {
            Ok(_) => String::new(),
            Err(invalid) => invalid.to_string(),
        };
        let of = |member: Value| faults(json!({"members": [member]}));
        for (found, expected) in [
            (of(json!({"assistantId": ID})), ""),
            (
                of(
                    json!({"assistant": {"name": "A", "model": {}}, "assistantId": null, "assistantOverrides": {},
                    "assistantDestinations": [
                        {"type": "assistant", "assistantName": "B", "message": "", "description": "x"},
                        {"type": "number", "number": "+123"}]}),
                ),
                "",
            ),
            (faults(json!({})), "members must be given"),
            (faults(json!({"members": []})), "members should not be empty"),
            (faults(json!({"members": {}})), "members must be an array"),
            (faults(json!({"members": null})), "members must be an array"),
            (
                faults(json!({"members": vec![json!({"assistant": {}}); MEMBERS + 1]})),
                "members must not have more than 50 members",
            ),
            (of(json!(7)), "members.0 must be an object"),
            (of(json!({})), "members.0.assistantId or assistant must be given"),
            (
                of(json!({"assistantId": ID, "assistant": {}})),
                "members.0.assistantId cannot be combined with assistant",
            ),
            (
                of(json!({"assistantId": "7"})),
                "members.0.assistantId must be a UUID",
            ),
            (
                of(json!({"assistantId": 7})),
                "members.0.assistantId must be a UUID",
            ),
            (
                of(json!({"assistant": "A"})),
                "members.0.assistant must be an object",
            ),
            (
                of(json!({"assistant": {"name": "x".repeat(41)}})),
                "members.0.assistant.name must be shorter than or equal to 40 characters",
            ),
            (
                of(json!({"assistant": {}, "assistantOverrides": []})),
                "members.0.assistantOverrides must be an object",
            ),
            (
                of(json!({"assistant": {}, "assistantDestinations": {}})),
                "members.0.assistantDestinations must be an array",
            ),
            (
                of(
                    json!({"assistant": {}, "assistantDestinations": ["B", {"type": "assistant"}, {"assistantName": "B"}]}),
                ),
                "members.0.assistantDestinations.0 must be an object; \
                 members.0.assistantDestinations.1.assistantName must be given; \
                 members.0.assistantDestinations.2.type must be a string",
            ),
            (
                faults(json!({"name": 7, "members": [{"assistant": {}}], "membersOverrides": 7})),
                "name must be a string; membersOverrides must be an object",
            ),
        ] {
            assert_eq!(found, expected);
        }
        assert!(parse::<UpdateSquad>(json!({"name": "x"})).is_ok());
        assert!(parse::<UpdateSquad>(json!({"members": []})).is_err());
    }
}
