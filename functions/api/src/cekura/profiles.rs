//! Test profiles: what the target is told, and what the tester knows.

use ringback_shared::{models::Object, store::Kind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Fields, Refusal},
    objects::{self, Asked, Filter, Numbers, Resource, own, text},
};

/// Test profiles.
pub(super) struct TestProfiles;

const MAIN: &str = "main_agent_variables";
const TESTING: &str = "testing_agent_variables";

impl Resource for TestProfiles {
    const KIND: Kind = Kind::TestProfile;
    const BARE: bool = true;

    async fn write(asked: Asked<'_>, mut fields: Fields, _: Option<&Value>) -> Result<Object, Refusal> {
        let name = fields.required_text("name", 1..=255);
        let information = fields.object("information").unwrap_or_default();
        let agent = objects::named(asked, &mut fields, "agent", Kind::Assistant).await?;
        let is_split = information.contains_key(MAIN) || information.contains_key(TESTING);
        let part = |part: &str| match information.get(part) {
            None | Some(Value::Null) => Some(Object::new()),
            Some(Value::Object(part)) => Some(part.clone()),
            Some(_) => None,
        };
        let parts = match is_split {
            true => part(MAIN).zip(part(TESTING)),
            // The older form is for both.
            false => Some((information.clone(), information.clone())),
        };
        if parts.is_none() {
            fields.wrong(
                "information",
                format!("{MAIN} and {TESTING} are dictionaries of variables."),
            );
        }
        let rest = fields.checked()?;
        let (main, testing) = parts.unwrap_or_default();
        let mut body = Object::new();
        body.insert("name".to_owned(), json!(name));
        body.insert("mainAgentVariables".to_owned(), Value::Object(main));
        body.insert("testingAgentVariables".to_owned(), Value::Object(testing));
        if let Some(agent) = agent {
            body.insert("agentId".to_owned(), json!(agent.id));
        }
        let kept: Object = rest
            .into_iter()
            .filter(|(name, _)| !["id", "name", "agent", "project"].contains(&name.as_str()))
            .collect();
        body.insert("cekura".to_owned(), Value::Object(kept));
        Ok(body)
    }

    fn names(body: &Value) -> Vec<(Kind, Uuid)> {
        let agent = objects::uuids(body.get("agentId"));
        agent.map(|id| (Kind::Assistant, id)).collect()
    }

    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object {
        let mut shown = own(body);
        shown.insert("name".to_owned(), json!(text(body, "name")));
        shown.insert(
            "agent".to_owned(),
            numbers.named(Kind::Assistant, body.get("agentId")),
        );
        shown.insert("project".to_owned(), json!(numbers.of(Kind::Project, asked.org)));
        shown.insert("information".to_owned(), information(body));
        shown
    }

    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal> {
        let agent = objects::asked_for(asked, "agent_id", Kind::Assistant).await?;
        Ok(Box::new(move |body| {
            agent.is_none_or(|agent| objects::uuids(body.get("agentId")).next() == Some(agent))
        }))
    }
}

/// A test profile's variables as they were written: those for both as one.
pub(super) fn information(body: &Value) -> Value {
    if let Some(written) = body.pointer("/cekura/information") {
        return written.clone();
    }
    json!({ MAIN: body.get("mainAgentVariables"), TESTING: body.get("testingAgentVariables") })
}
