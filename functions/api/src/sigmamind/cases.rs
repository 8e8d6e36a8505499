//! Test cases: what a simulated user wants of an agent, and what the conversation is judged by. A test case is a scenario.

use std::collections::BTreeMap;

use ringback_shared::{
    ids,
    models::{Object, metric::PROMPT},
    store::{Definition, Kind},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked, agents,
    answer::{Answer, Fields, Paging, Prefix, named, required},
    objects::{self, text},
};
use crate::http::{ApiError, Response};

/// The longest texts, in characters, and the most variables.
const LABEL: usize = 80;
const USER_PROMPT: usize = 10_000;
const MODEL: usize = 200;
const VARIABLE: usize = 200;
const VALUE: usize = 10_000;
const VARIABLES: usize = 100;
/// How often a test case is tried unless somebody says so.
const ATTEMPT: i64 = 1;
/// The ending that asks for a faster tier of a model.
const FAST: &str = "-fast-tier";

/// The agent that a scenario is for, if it says so.
pub(super) fn agent_of(scenario: &Value) -> Option<Uuid> {
    Uuid::try_parse(text(scenario, "agentId")).ok()
}

/// How often a scenario is tried, if it says so.
pub(super) fn attempts(scenario: &Value) -> Option<i64> {
    scenario.pointer("/sigmamind/attempt").and_then(Value::as_i64)
}

/// A scenario as a test case, with the agent as it is shown.
pub(super) fn shown(
    asked: Asked<'_>,
    id: Option<Uuid>,
    scenario: &Value,
    agent: &Value,
    attempt: i64,
) -> Value {
    let variables = scenario
        .pointer("/targetOverrides/variableValues")
        .and_then(Value::as_object);
    let variables = variables.into_iter().flatten().map(|(name, value)| {
        let value = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        json!({ "variableName": name, "value": value })
    });
    json!({
        "testCaseId": id.map(|id| Prefix::Case.id(id)), "label": text(scenario, "name"), "agent": agent,
        "workspaceId": Prefix::Org.id(asked.org),
        "llmModel": scenario.pointer("/targetOverrides/model/model"), "mockData": variables.collect::<Vec<_>>(),
        "userPrompt": text(scenario, "instructions"), "attempt": attempt, "successCriteria": criteria(scenario),
    })
}

/// What a scenario is judged by, in words: the outcome that is expected, and its evaluations.
fn criteria(scenario: &Value) -> String {
    let expected = text(scenario, "expectedOutcome").to_owned();
    let lines = Some(expected).into_iter().chain(evaluations(scenario));
    lines
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A scenario's evaluations in words.
fn evaluations(scenario: &Value) -> Vec<String> {
    let evaluations = scenario.get("evaluations").and_then(Value::as_array);
    let line = |one: &Value| {
        let name = one.pointer("/structuredOutput/name").and_then(Value::as_str);
        let name = name.unwrap_or_else(|| text(one, "structuredOutputId"));
        let value = one.get("value").map(Value::to_string).unwrap_or_default();
        format!("{name} {} {value}", text(one, "comparator"))
    };
    evaluations.into_iter().flatten().map(line).collect()
}

/// The outcome that is expected in what a client writes: what it repeats of the evaluations is judged by them already.
fn expected(criteria: &str, stored: Option<&Value>) -> String {
    let repeated = stored.map(evaluations).unwrap_or_default().join("\n");
    let own = criteria.strip_suffix(repeated.as_str()).unwrap_or(criteria);
    own.trim_end_matches('\n').to_owned()
}

/// The scenario that a client writes, over the one that is `stored`.
async fn written(asked: Asked<'_>, stored: Option<&Value>) -> Result<Object, ApiError> {
    let mut body = Fields::of(asked.request)?;
    let agent = body.required("agentId", 64);
    let prompt = body.required("userPrompt", USER_PROMPT);
    let criteria = body.required("successCriteria", PROMPT);
    let label = body.text("label", LABEL);
    let model = body.text("llmModel", MODEL);
    if model.as_ref().is_some_and(|model| model.ends_with(FAST)) {
        body.wrong(
            "llmModel",
            "Ringback asks for no tier of a model; leave out -fast-tier",
        );
    }
    let most = i64::from(asked.ctx.config.max_iterations);
    let attempt = body.integer("attempt", 1..=most.max(100));
    let variables = variables(&mut body);
    body.check()?;
    let agent = Prefix::Agent.found(&agent)?;
    objects::found(asked, Prefix::Agent, Kind::Assistant, agent).await?;
    let mut scenario = stored.and_then(Value::as_object).cloned().unwrap_or_default();
    let label = label.unwrap_or_else(|| prompt.chars().take(LABEL).collect());
    scenario.insert("name".to_owned(), json!(label));
    scenario.insert("instructions".to_owned(), json!(prompt));
    let expected = expected(&criteria, stored);
    let expected = (!expected.is_empty()).then_some(expected);
    scenario.insert("expectedOutcome".to_owned(), json!(expected));
    scenario.insert("agentId".to_owned(), json!(agent));
    scenario.insert(
        "sigmamind".to_owned(),
        json!({ "attempt": attempt.unwrap_or(ATTEMPT) }),
    );
    scenario.entry("evaluations").or_insert_with(|| json!([]));
    let mut overrides = match scenario.remove("targetOverrides") {
        Some(Value::Object(overrides)) => overrides,
        _ => Object::new(),
    };
    match variables.is_empty() {
        true => overrides.remove("variableValues"),
        false => overrides.insert("variableValues".to_owned(), Value::Object(variables)),
    };
    let mut own = match overrides.remove("model") {
        Some(Value::Object(own)) => own,
        _ => Object::new(),
    };
    match model {
        Some(model) => own.insert("model".to_owned(), json!(model)),
        None => own.remove("model"),
    };
    if !own.is_empty() {
        overrides.insert("model".to_owned(), Value::Object(own));
    }
    // Null takes away what there was.
    let overrides = match overrides.is_empty() {
        true => Value::Null,
        false => Value::Object(overrides),
    };
    scenario.insert("targetOverrides".to_owned(), overrides);
    Ok(scenario)
}

/// The agent's variables.
fn variables(body: &mut Fields) -> Object {
    const FIELD: &str = "mockData";
    let list = match body.get(FIELD) {
        None => return Object::new(),
        Some(Value::Array(list)) if list.len() <= VARIABLES => list.clone(),
        Some(_) => {
            body.wrong(FIELD, &format!("must be a list of at most {VARIABLES} variables"));
            return Object::new();
        }
    };
    let mut variables = Object::new();
    for one in &list {
        let name = text(one, "variableName");
        let value = match one.get("value") {
            Some(Value::String(value)) => value.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        if name.is_empty() || name.chars().count() > VARIABLE || value.chars().count() > VALUE {
            body.wrong(
                FIELD,
                &format!("each needs a variableName of at most {VARIABLE} characters and a value of at most {VALUE}"),
            );
            break;
        }
        variables.insert(name.to_owned(), json!(value));
    }
    variables
}

async fn whole(asked: Asked<'_>, case: &Definition) -> Result<Value, ApiError> {
    let agent = agents::shown(asked, agent_of(&case.body)).await?;
    let attempt = attempts(&case.body).unwrap_or(ATTEMPT);
    Ok(shown(asked, Some(case.id), &case.body, &agent, attempt))
}

/// The test case that an id stands for; one of another agent is not found.
async fn found(asked: Asked<'_>, id: &str, agent: Option<Uuid>) -> Result<Definition, ApiError> {
    let case = objects::found(asked, Prefix::Case, Kind::Scenario, Prefix::Case.found(id)?).await?;
    match agent.is_none_or(|agent| agent_of(&case.body) == Some(agent)) {
        true => Ok(case),
        false => Err(Prefix::Case.missing(id)),
    }
}

/// The test cases that these ids stand for, all of this agent, in that order.
pub(super) async fn all_found(
    asked: Asked<'_>,
    ids: &[String],
    agent: Uuid,
) -> Result<Vec<Definition>, ApiError> {
    let mut wanted = Vec::with_capacity(ids.len());
    for id in ids {
        wanted.push(Prefix::Case.found(id)?);
    }
    let stored = asked
        .ctx
        .store
        .definitions(asked.org, Kind::Scenario, &wanted)
        .await?;
    let mut by_id: BTreeMap<Uuid, Definition> = stored.into_iter().map(|one| (one.id, one)).collect();
    let mut found = Vec::with_capacity(ids.len());
    for (text, id) in ids.iter().zip(wanted) {
        // One that is named twice is played once: how often it is tried is its own.
        if found.iter().any(|one: &Definition| one.id == id) {
            continue;
        }
        let case = by_id
            .remove(&id)
            .filter(|case| agent_of(&case.body) == Some(agent));
        found.push(case.ok_or_else(|| Prefix::Case.missing(text))?);
    }
    Ok(found)
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let paging = Paging::of(&asked.request.query)?;
    let shown_agent = objects::found(asked, Prefix::Agent, Kind::Assistant, agent).await?;
    let shown_agent = agents::brief(agent, &shown_agent.body);
    let all = objects::all(asked, Kind::Scenario, |body| agent_of(body) == Some(agent)).await?;
    let page = all.get(paging.places(all.len())).unwrap_or_default();
    let entries = page.iter().map(|case| {
        let attempt = attempts(&case.body).unwrap_or(ATTEMPT);
        shown(asked, Some(case.id), &case.body, &shown_agent, attempt)
    });
    paging.answer(all.len(), entries.collect())
}

pub(super) async fn create(asked: Asked<'_>) -> Answer {
    let mut scenario = written(asked, None).await?;
    scenario.retain(|_, value| !value.is_null());
    let id = ids::new_id(asked.ctx.clock.now_ms());
    let case = objects::keep(asked, Kind::Scenario, id, scenario).await?;
    Response::created(whole(asked, &case).await?)
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    Response::ok(whole(asked, &found(asked, id, Some(agent)).await?).await?)
}

pub(super) async fn update(asked: Asked<'_>, id: &str) -> Answer {
    let case = found(asked, id, None).await?;
    let changes = written(asked, Some(&case.body)).await?;
    let changed = objects::change(asked, Kind::Scenario, case, &changes).await?;
    Response::ok(whole(asked, &changed).await?)
}

pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    let agent = named(asked, "agentId", Prefix::Agent)?;
    let case = found(asked, id, agent).await?;
    objects::delete(asked, Kind::Scenario, case.id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_written_back_is_judged_by_the_same() {
        let judged = json!([{"structuredOutput": {"name": "booked"}, "comparator": "=", "value": true}]);
        for scenario in [
            json!({"expectedOutcome": "It is booked.", "evaluations": judged}),
            json!({"expectedOutcome": "It is booked.\nAnd more.", "evaluations": []}),
            json!({"expectedOutcome": "It is booked."}),
            json!({"evaluations": judged}),
        ] {
            let shown = criteria(&scenario);
            assert_eq!(
                expected(&shown, Some(&scenario)),
                text(&scenario, "expectedOutcome"),
                "{shown}"
            );
        }
        assert_eq!(expected("New.", Some(&json!({"evaluations": judged}))), "New.");
        assert_eq!(expected("New.\n", None), "New.");
    }
}
