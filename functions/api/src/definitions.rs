//! Personalities, scenarios, simulations, suites, assistants, squads, structured outputs and evals: create, read, list, change, delete.

use std::collections::HashMap;

use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    models::{
        Object, Validate,
        assistant::{self, CreateAssistant, CreateSquad, UpdateSquad},
        eval::{CreateEval, UpdateEval},
        evaluation::{CreateStructuredOutput, UpdateStructuredOutput},
        parse,
        simulation::{
            CreatePersonality, CreateScenario, CreateSimulation, CreateSimulationSuite, UpdatePersonality,
            UpdateScenario, UpdateSimulation, UpdateSimulationSuite,
        },
    },
    store::{Definition, Kind},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    bounded::Entries,
    built_in,
    filters::{self, Definitions},
    http::{ApiError, Request, Response},
    lists::ListRequest,
};

/// What a kind of definition is called.
pub(crate) fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Personality => "Personality",
        Kind::Scenario => "Scenario",
        Kind::Simulation => "Simulation",
        Kind::Suite => "Simulation suite",
        Kind::Assistant => "Assistant",
        Kind::Squad => "Squad",
        Kind::StructuredOutput => "Structured output",
        Kind::Endpoint => "Endpoint",
        Kind::Eval => "Eval",
        Kind::Schedule => "Schedule",
        Kind::Metric => "Metric",
        Kind::TestProfile => "Test profile",
        Kind::Project => "Project",
        Kind::Webhook => "Webhook",
    }
}

pub(crate) fn checked<T: DeserializeOwned + Validate + Serialize>(body: Value) -> Result<Object, ApiError> {
    let parsed: T = parse(body)?;
    match serde_json::to_value(parsed).map_err(|error| ApiError::internal(&error))? {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::bad_request("the body must be a JSON object")),
    }
}

/// A new definition of a kind as it is stored, if nothing is wrong with it.
pub(crate) fn check_new(kind: Kind, body: Value) -> Result<Object, ApiError> {
    match kind {
        Kind::Personality => checked::<CreatePersonality>(body),
        Kind::Scenario => checked::<CreateScenario>(body),
        Kind::Simulation => checked::<CreateSimulation>(body),
        Kind::Suite => checked::<CreateSimulationSuite>(body),
        Kind::Assistant => checked::<CreateAssistant>(body),
        Kind::Squad => checked::<CreateSquad>(body),
        Kind::StructuredOutput => checked::<CreateStructuredOutput>(body),
        Kind::Eval => checked::<CreateEval>(body),
        Kind::Endpoint
        | Kind::Schedule
        | Kind::Metric
        | Kind::TestProfile
        | Kind::Project
        | Kind::Webhook => Err(ApiError::bad_request("it has an API of its own")),
    }
}

fn check_change(kind: Kind, body: Value) -> Result<Object, ApiError> {
    match kind {
        Kind::Personality => checked::<UpdatePersonality>(body),
        Kind::Scenario => checked::<UpdateScenario>(body),
        Kind::Simulation => checked::<UpdateSimulation>(body),
        Kind::Suite => checked::<UpdateSimulationSuite>(body),
        Kind::Assistant => checked::<CreateAssistant>(body),
        Kind::Squad => checked::<UpdateSquad>(body),
        Kind::StructuredOutput => checked::<UpdateStructuredOutput>(body),
        Kind::Eval => checked::<UpdateEval>(body),
        Kind::Endpoint
        | Kind::Schedule
        | Kind::Metric
        | Kind::TestProfile
        | Kind::Project
        | Kind::Webhook => Err(ApiError::bad_request("it has an API of its own")),
    }
}

/// The fields that Ringback sets: a client's values for them are passed over. `omitted` is what an entry of a long list has.
const OWN: [&str; 5] = ["id", "orgId", "createdAt", "updatedAt", "omitted"];

pub(crate) fn without_own(body: Value) -> Value {
    match body {
        Value::Object(mut object) => {
            object.retain(|name, _| !OWN.contains(&name.as_str()));
            Value::Object(object)
        }
        other => other,
    }
}

/// Reads the definition that a client names.
pub(crate) async fn found(ctx: &Context, org: Uuid, kind: Kind, id: &str) -> Result<Definition, ApiError> {
    let missing = || ApiError::not_found(title(kind), id);
    let uuid = Uuid::try_parse(id).map_err(|_| missing())?;
    if let Some(built_in) = built_in::get(kind, uuid) {
        return Ok(built_in);
    }
    ctx.store.definition(org, kind, uuid).await?.ok_or_else(missing)
}

/// Definitions that are named somewhere, read at once.
#[derive(Default)]
pub(crate) struct Named(HashMap<(&'static str, Uuid), Value>);

impl Named {
    pub(crate) async fn load(
        &mut self,
        ctx: &Context,
        org: Uuid,
        kind: Kind,
        wanted: impl IntoIterator<Item = &str>,
    ) -> Result<(), ApiError> {
        let ids: Vec<Uuid> = wanted
            .into_iter()
            .filter_map(|id| Uuid::try_parse(id).ok())
            .collect();
        let stored = ctx.store.definitions(org, kind, &ids).await?;
        let built_in = ids.iter().filter_map(|&id| built_in::get(kind, id));
        for Definition { id, body, .. } in stored.into_iter().chain(built_in) {
            self.0.insert((title(kind), id), body);
        }
        Ok(())
    }

    pub(crate) fn get(&self, kind: Kind, id: &str) -> Result<(Uuid, &Value), ApiError> {
        let missing = || ApiError::not_found(title(kind), id);
        let uuid = Uuid::try_parse(id).map_err(|_| missing())?;
        self.0
            .get(&(title(kind), uuid))
            .map(|body| (uuid, body))
            .ok_or_else(missing)
    }
}

/// Creates a definition.
pub(crate) async fn create(ctx: &Context, org: Uuid, kind: Kind, body: Value) -> Result<Response, ApiError> {
    let mut fields = check_new(kind, without_own(body))?;
    let uses = check_references(ctx, org, kind, &fields).await?;
    if kind == Kind::Suite {
        // Clients read this list without looking whether it is there.
        fields.entry("targetAssignments").or_insert_with(|| json!([]));
    }
    keep(ctx, org, kind, fields, &uses).await
}

/// Keeps a new definition with these fields, which uses others.
async fn keep(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    fields: Object,
    uses: &[(Kind, Uuid)],
) -> Result<Response, ApiError> {
    let now = ctx.clock.now_ms();
    let id = ids::new_id(now);
    let stored = whole(org, id, fields.clone(), now);
    let kept = ctx.store.create_definition(org, kind, id, stored.clone(), uses);
    match kept.await {
        Err(error) if error.is_duplicate() => {
            // What it uses has gone since: this says which.
            check_references(ctx, org, kind, &fields).await?;
            Err(error.into())
        }
        kept => {
            kept?;
            Response::created(stored)
        }
    }
}

/// A new definition, made at `now` (milliseconds since the Unix epoch), as clients see it.
pub(crate) fn whole(org: Uuid, id: Uuid, fields: Object, now: i64) -> Value {
    let mut stored = Object::new();
    stored.insert("id".into(), json!(id));
    stored.insert("orgId".into(), json!(org));
    stored.insert("createdAt".into(), json!(iso(now)));
    stored.insert("updatedAt".into(), json!(iso(now)));
    stored.extend(fields);
    Value::Object(stored)
}

/// A definition with these changes; `null` takes a field away.
pub(crate) fn changed(stored: &Value, changes: &Object) -> Object {
    let mut changed = stored.as_object().cloned().unwrap_or_default();
    for (name, value) in changes {
        if value.is_null() {
            changed.remove(name);
        } else {
            changed.insert(name.clone(), value.clone());
        }
    }
    changed
}

/// Changes the fields of a definition that the body names; `null` takes one away.
pub(crate) async fn update(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let body = request.optional_json()?;
    built_in::refuse(kind, id, "changed")?;
    let read = found(ctx, org, kind, id).await?;
    let mut changes = check_change(kind, without_own(body))?;
    keep_credentials(&read.body, &mut changes);
    if kind == Kind::StructuredOutput && request.query.get("schemaOverride") != Some("true") {
        keep_type(&read.body, &changes)?;
    }
    let mut changed = changed(&read.body, &changes);
    // The whole must be right, not only the change.
    check_new(kind, without_own(Value::Object(changed.clone())))?;
    // Of what it names, only the change: a suite whose simulation was deleted can still be renamed.
    let uses = check_references(ctx, org, kind, &changes).await?;
    changed.insert("updatedAt".into(), json!(iso(ctx.clock.now_ms())));
    let changed = Value::Object(changed);
    ctx.store
        .update_definition(org, kind, &read, changed.clone(), &uses)
        .await?;
    Response::ok(changed)
}

/// A structured output's values keep their type, for whoever reads them relies on it.
fn keep_type(stored: &Value, changes: &Object) -> Result<(), ApiError> {
    let now = stored.pointer("/schema/type").and_then(Value::as_str);
    let then = changes
        .get("schema")
        .and_then(|schema| schema.get("type"))
        .and_then(Value::as_str);
    match (now, then) {
        (Some(now), Some(then)) if now != then => Err(ApiError::bad_request(format!(
            "schema.type is {now} and stays so; send schemaOverride=true in the query to make it {then}"
        ))),
        _ => Ok(()),
    }
}

/// A change of a personality replaces its assistant as a whole, but for the credentials and secrets: they stay unless the change
/// names them or leads elsewhere, and an empty list of credentials clears them.
fn keep_credentials(before: &Value, changes: &mut Object) {
    let (Some(before), Some(after)) = (before.get("assistant"), changes.get_mut("assistant")) else {
        return;
    };
    // What is meant for one place is not sent to another.
    let url = |assistant: &Value, part: &str| assistant.get(part)?.get("url").cloned();
    let same_place = ["model", "server"]
        .iter()
        .all(|part| url(before, part) == url(after, part));
    keep_secrets(before, after);
    if let (Some(kept), Value::Object(after)) = (before.get("credentials"), after)
        && same_place
    {
        after.entry("credentials").or_insert_with(|| kept.clone());
    }
}

/// Where a server's URL is the same in the same place of both, `after` keeps the secret for it that it does not name.
fn keep_secrets(before: &Value, after: &mut Value) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (url, secret) in [("url", "secret"), ("serverUrl", "serverUrlSecret")] {
                let same = before.get(url).is_some_and(|was| after.get(url) == Some(was));
                if let Some(kept) = before.get(secret).filter(|_| same) {
                    after.entry(secret).or_insert_with(|| kept.clone());
                }
            }
            for (name, after) in after {
                if let Some(before) = before.get(name) {
                    keep_secrets(before, after);
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (before, after) in before.iter().zip(after) {
                keep_secrets(before, after);
            }
        }
        _ => {}
    }
}

/// What these fields of a definition name must exist. Gives what may not be deleted from then on.
async fn check_references(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    fields: &Object,
) -> Result<Vec<(Kind, Uuid)>, ApiError> {
    let mut uses = Vec::new();
    if kind == Kind::Simulation {
        for (field, kind) in [
            ("scenarioId", Kind::Scenario),
            ("personalityId", Kind::Personality),
        ] {
            if let Some(id) = fields.get(field).and_then(Value::as_str) {
                let used = found(ctx, org, kind, id).await?.id;
                // What is built in is stored nowhere, and never deleted.
                if built_in::get(kind, used).is_none() {
                    uses.push((kind, used));
                }
            }
        }
    }
    if kind == Kind::Suite {
        let ids: Vec<&str> = texts(fields.get("simulationIds")).collect();
        let mut simulations = Named::default();
        simulations
            .load(ctx, org, Kind::Simulation, ids.iter().copied())
            .await?;
        for id in ids {
            simulations.get(Kind::Simulation, id)?;
        }
    }
    if kind == Kind::Squad {
        load_members(ctx, org, fields).await?;
    }
    Ok(uses)
}

/// Reads the stored assistants that a squad's members are: all of them are there.
pub(crate) async fn load_members(ctx: &Context, org: Uuid, squad: &Object) -> Result<Named, ApiError> {
    let ids = || assistant::members(squad).filter_map(|member| member.get("assistantId")?.as_str());
    let mut assistants = Named::default();
    assistants.load(ctx, org, Kind::Assistant, ids()).await?;
    for id in ids() {
        assistants.get(Kind::Assistant, id)?;
    }
    Ok(assistants)
}

/// The texts in a list.
pub(crate) fn texts(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// The longest name of a suite, in characters.
const MAX_NAME: usize = 80;

/// Makes a copy of a suite: all that clients set, under a name that says so. Its simulations are not looked up, so a copy is as
/// good as what it was made of.
pub(crate) async fn duplicate_suite(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let suite = found(ctx, org, Kind::Suite, id).await?;
    let mut fields = suite.body.as_object().cloned().unwrap_or_default();
    fields.retain(|name, _| !OWN.contains(&name.as_str()));
    let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
    let name = name_of_copy(name);
    fields.insert("name".to_owned(), json!(name));
    keep(ctx, org, Kind::Suite, fields, &[]).await
}

/// `name` and ` (copy)`; of a long name the end is left out.
fn name_of_copy(name: &str) -> String {
    const SUFFIX: &str = " (copy)";
    let kept: String = name.chars().take(MAX_NAME - SUFFIX.len()).collect();
    format!("{kept}{SUFFIX}")
}

/// How often a deletion is tried anew because the definition was changed or used meanwhile.
const DELETE_TRIES: u32 = 5;

/// Deletes a definition that no other one needs.
pub(crate) async fn delete(ctx: &Context, org: Uuid, kind: Kind, id: &str) -> Result<Response, ApiError> {
    built_in::refuse(kind, id, "deleted")?;
    let field = match kind {
        Kind::Scenario => Some(("scenarioId", "scenario_in_use")),
        Kind::Personality => Some(("personalityId", "personality_in_use")),
        _ => None,
    };
    let mut tries = 0;
    loop {
        let read = found(ctx, org, kind, id).await?;
        // Read after the definition: a simulation that is missed here has touched it.
        if let Some((field, code)) = field
            && let Some(user) = simulation_with(ctx, org, field, read.id).await?
        {
            let message = format!(
                "{} {id} is used by simulation {user}; delete or change that first",
                title(kind)
            );
            return Ok(Response::conflict(code, &message));
        }
        tries += 1;
        match ctx.store.delete_definition(org, kind, &read).await {
            Err(error) if error.is_duplicate() && tries < DELETE_TRIES => {}
            deleted => {
                deleted?;
                return Response::ok(read.body);
            }
        }
    }
}

/// A simulation whose `field` is `id`, however it is written there.
///
/// The reads are consistent and see all of the org's simulations, page by page. One that is made while they are read may be missed.
async fn simulation_with(ctx: &Context, org: Uuid, field: &str, id: Uuid) -> Result<Option<Uuid>, ApiError> {
    let used = |simulation: &Value| {
        let named = simulation.get(field).and_then(Value::as_str);
        named.and_then(|named| Uuid::try_parse(named).ok()) == Some(id)
    };
    let mut simulations = Definitions::all(ctx, org, Kind::Simulation);
    while let Some(entries) = simulations.next().await? {
        if let Some(user) = entries.iter().find(|simulation| used(&simulation.body)) {
            return Ok(Some(user.id));
        }
    }
    Ok(None)
}

/// Lists definitions.
pub(crate) async fn list(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    request: &Request,
) -> Result<Response, ApiError> {
    let wanted = ListRequest::of_definitions(kind, &request.query)?;
    let mut page = Entries::of_definitions();
    let show = |definition: Definition| page.push(definition.body);
    let found = filters::definitions(ctx, org, kind, &wanted, &request.query, show).await?;
    wanted.answer(page.into_values(), found)
}
