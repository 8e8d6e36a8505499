//! Scenarios: what the tester wants, and what the conversation is judged by.

use std::collections::BTreeSet;

use ringback_shared::{
    models::{
        Object,
        metric::{METRICS, PROMPT},
    },
    store::{Definition, Kind},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Refusal, nothing},
    objects::{self, Asked, Filter, Numbers, Resource, own, text, uuids},
};
use crate::http::Response;

/// Scenarios.
pub(super) struct Scenarios;

/// The longest name and the longest instructions, in characters.
const NAME: usize = 80;
const INSTRUCTIONS: usize = 10_000;
/// What is kept under names of Ringback's own.
const TAKEN: [&str; 14] = [
    "id",
    "name",
    "instructions",
    "expected_outcome_prompt",
    "metrics",
    "personality",
    "agent",
    "test_profile",
    "tags",
    "first_message",
    "max_duration",
    "project",
    "created_at",
    "updated_at",
];

impl Resource for Scenarios {
    const KIND: Kind = Kind::Scenario;
    const BARE: bool = false;

    async fn write(asked: Asked<'_>, mut fields: Fields, stored: Option<&Value>) -> Result<Object, Refusal> {
        let name = fields.required_text("name", 1..=NAME);
        let kind = fields.choice(
            "scenario_type",
            &[
                "instruction",
                "conditional_actions",
                "real_world_smart",
                "real_world_fixed",
            ],
        );
        let mut instructions = fields.text("instructions", 0..=INSTRUCTIONS).unwrap_or_default();
        let conditional = fields.object("conditional_actions");
        if let Some(actions) = conditional
            .as_ref()
            .filter(|_| kind.as_deref() == Some("conditional_actions"))
        {
            instructions = in_words(actions);
        }
        let expected = fields
            .text("expected_outcome_prompt", 0..=PROMPT)
            .unwrap_or_default();
        let tags = fields.texts("tags").unwrap_or_default();
        let folder = fields.text("folder_path", 0..=200).unwrap_or_default();
        let first = fields.text("first_message", 0..=10_000);
        let longest = fields.integer("max_duration", 10..=3600);
        // Those of another shape may have none.
        if fields.raw("personality").is_none() && stored.is_none() {
            fields.wrong("personality", "This field is required.");
        }
        let personality = objects::named(asked, &mut fields, "personality", Kind::Personality).await?;
        if fields.raw("agent").is_none() && fields.raw("project").is_none() && stored.is_none() {
            fields.wrong("agent", "Either agent or project is required.");
        }
        let agent = objects::named(asked, &mut fields, "agent", Kind::Assistant).await?;
        let profile = objects::named(asked, &mut fields, "test_profile", Kind::TestProfile).await?;
        let metrics = objects::all_named(asked, &mut fields, "metrics", Kind::Metric).await?;
        if metrics.as_ref().is_some_and(|metrics| metrics.len() > METRICS) {
            fields.wrong(
                "metrics",
                format!("A scenario may have at most {METRICS} metrics."),
            );
        }
        let rest = fields.checked()?;
        let mut scenario = stored.and_then(Value::as_object).cloned().unwrap_or_default();
        for own in ["id", "orgId", "createdAt", "updatedAt"] {
            scenario.remove(own);
        }
        let mut put = |name: &str, value: Option<Value>| match value {
            Some(value) => scenario.insert(name.to_owned(), value),
            None => scenario.remove(name),
        };
        let id = |definition: &Definition| json!(definition.id);
        put("name", Some(json!(name)));
        put("instructions", Some(json!(instructions)));
        put("expectedOutcome", (!expected.is_empty()).then(|| json!(expected)));
        put("metrics", metrics.map(|metrics| metrics.iter().map(id).collect()));
        put("personalityId", personality.as_ref().map(id));
        put("agentId", agent.as_ref().map(id));
        put("testProfileId", profile.as_ref().map(id));
        put("tags", Some(json!(tags)));
        put("firstMessage", first.map(|text| json!(text)));
        put("maxDurationSeconds", longest.map(|seconds| json!(seconds)));
        put("path", as_path(&folder).map(|path| json!(path)));
        scenario.entry("evaluations").or_insert_with(|| json!([]));
        let kept = rest
            .into_iter()
            .filter(|(name, value)| !TAKEN.contains(&name.as_str()) && !value.is_null());
        scenario.insert("cekura".to_owned(), Value::Object(kept.collect()));
        Ok(scenario)
    }

    fn names(body: &Value) -> Vec<(Kind, Uuid)> {
        [
            (Kind::Personality, "personalityId"),
            (Kind::Assistant, "agentId"),
            (Kind::TestProfile, "testProfileId"),
            (Kind::Metric, "metrics"),
        ]
        .into_iter()
        .flat_map(|(kind, field)| uuids(body.get(field)).map(move |id| (kind, id)))
        .collect()
    }

    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object {
        let folder = text(body, "path").replace('/', ".");
        let mut shown = json!({
            "scenario_type": "instruction", "folder_path": folder, "tool_ids": [], "scenario_language": "en",
            "conditional_actions": null,
        })
        .as_object()
        .cloned()
        .unwrap_or_default();
        shown.extend(own(body));
        let stored = |name: &str| body.get(name).cloned().unwrap_or_default();
        for (name, value) in [
            ("name", json!(text(body, "name"))),
            ("instructions", json!(text(body, "instructions"))),
            ("expected_outcome_prompt", json!(text(body, "expectedOutcome"))),
            (
                "personality",
                numbers.named(Kind::Personality, body.get("personalityId")),
            ),
            ("agent", numbers.named(Kind::Assistant, body.get("agentId"))),
            (
                "test_profile",
                numbers.named(Kind::TestProfile, body.get("testProfileId")),
            ),
            ("metrics", numbers.all_named(Kind::Metric, body.get("metrics"))),
            ("project", json!(numbers.of(Kind::Project, asked.org))),
            ("tags", json!(body.get("tags").unwrap_or(&json!([])))),
            ("first_message", stored("firstMessage")),
            ("max_duration", stored("maxDurationSeconds")),
        ] {
            shown.insert(name.to_owned(), value);
        }
        shown
    }

    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal> {
        let query = &asked.request.query;
        let agent = objects::asked_for(asked, "agent_id", Kind::Assistant).await?;
        let tags: Vec<String> = query.all("tags").map(str::to_owned).collect();
        let how = query.get("tag_filter_type").unwrap_or("or").to_owned();
        if !["and", "or", "not"].contains(&how.as_str()) {
            return Err(Refusal::field("tag_filter_type", "Must be one of and, or, not."));
        }
        let folder = query.get("folder_path").map(str::to_owned);
        let search = query.get("search").map(str::to_lowercase);
        Ok(Box::new(move |body| {
            // One of another shape is nobody's, and may be played against anybody.
            let own = uuids(body.get("agentId")).next();
            agent.is_none_or(|agent| own.is_none_or(|own| own == agent))
                && (tags.is_empty() || has_tags(body, &tags, &how))
                && folder.as_ref().is_none_or(|folder| is_in_folder(body, folder))
                && search
                    .as_ref()
                    .is_none_or(|part| text(body, "name").to_lowercase().contains(part))
        }))
    }
}

fn tags_of(body: &Value) -> BTreeSet<&str> {
    let tags = body.get("tags").and_then(Value::as_array);
    tags.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether a scenario has all of these tags (`and`), one of them (`or`) or none (`not`).
pub(super) fn has_tags(body: &Value, tags: &[String], how: &str) -> bool {
    let own = tags_of(body);
    let mut has = tags.iter().map(|tag| own.contains(tag.as_str()));
    match how {
        "and" => has.all(|has| has),
        "not" => !has.any(|has| has),
        _ => has.any(|has| has),
    }
}

/// Whether a scenario is filed in a folder or below it.
pub(super) fn is_in_folder(body: &Value, folder: &str) -> bool {
    let own = body.pointer("/cekura/folder_path").and_then(Value::as_str);
    let own = own.map_or_else(|| text(body, "path").replace('/', "."), str::to_owned);
    own.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A folder as other shapes know it, where it is one there.
fn as_path(folder: &str) -> Option<String> {
    let path = folder.replace('.', "/");
    let fits = |step: &str| {
        step.chars()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
            && step
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let steps: Vec<&str> = path.split('/').collect();
    (steps.len() <= 3 && steps.iter().all(|step| fits(step))).then_some(path)
}

/// Conditional actions as instructions in words: the tester is a model, which reads them.
fn in_words(actions: &Object) -> String {
    let field = |value: &Value, name: &str| text(value, name).trim().to_owned();
    let mut words = Vec::new();
    let role = actions.get("role").and_then(Value::as_str).unwrap_or_default();
    if !role.trim().is_empty() {
        words.push(format!("Your role: {}", role.trim()));
    }
    let conditions = actions.get("conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        let action = field(condition, "action");
        let action = match condition.get("fixed_message").and_then(Value::as_bool) {
            Some(true) => format!("say exactly \"{action}\""),
            _ => action,
        };
        match condition.get("condition") {
            Some(Value::String(when)) if when == "FIRST_MESSAGE" => {
                words.push(format!("Begin like this: {action}"))
            }
            Some(Value::Number(after)) => words.push(format!("After step {after} was done: {action}")),
            Some(Value::String(when)) if when.bytes().all(|b| b.is_ascii_digit()) && !when.is_empty() => {
                words.push(format!("After step {when} was done: {action}"));
            }
            Some(Value::String(when)) => {
                let step = condition
                    .get("id")
                    .map(|id| format!("Step {id}. "))
                    .unwrap_or_default();
                words.push(format!("{step}When {when}: {action}"));
            }
            _ => words.push(action),
        }
    }
    words.join("\n")
}

/// Deletes several scenarios. Either all of them are there, or none is deleted.
pub(super) async fn delete_many(asked: Asked<'_>) -> Answer {
    let mut fields = Fields::of(asked.request)?;
    let field = fields
        .first(&["scenarios", "scenario_ids", "ids"])
        .unwrap_or("scenarios");
    let all = objects::all_named(asked, &mut fields, field, Kind::Scenario).await?;
    if all.is_none() {
        fields.wrong(field, "This field is required.");
    }
    fields.check()?;
    for scenario in all.unwrap_or_default() {
        let id = scenario.id.to_string();
        let deleted = crate::definitions::delete(asked.ctx, asked.org, Kind::Scenario, &id).await?;
        if deleted.status() != 200 {
            return Err(Refusal::list(format!(
                "Scenario '{}' is still used by a simulation; delete that first.",
                text(&scenario.body, "name")
            )));
        }
    }
    nothing()
}

/// All tags that scenarios have.
pub(super) async fn tags(asked: Asked<'_>) -> Answer {
    let all = objects::all::<Scenarios>(asked).await?;
    let tags: BTreeSet<&str> = all.iter().flat_map(|scenario| tags_of(&scenario.body)).collect();
    Ok(Response::ok(tags)?)
}
