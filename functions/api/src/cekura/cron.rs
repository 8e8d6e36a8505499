//! Cron jobs: schedules whose runs are launches.

use ringback_shared::{
    context::Context,
    models::{Object, schedule::CreateSchedule},
    store::{Definition, Kind, NewRun},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Refusal, nothing},
    launch::{Channel, Launch},
    objects::{self, Asked, Numbers, number, own, text, uuids},
    webhooks::{self, Starter},
};
use crate::{
    filters::Definitions,
    http::{ApiError, Request, Response},
    schedules,
};

/// The longest name, in characters.
const NAME: usize = 80;
const MODES: [&str; 10] = [
    "voice",
    "text",
    "sip",
    "vapi_webrtc",
    "retell_webrtc",
    "elevenlabs",
    "ello",
    "livekit_v2",
    "pipecat_v2",
    "agora",
];
/// What clients write.
const WRITTEN: [&str; 14] = [
    "name",
    "agent",
    "scenarios",
    "tags",
    "personalities",
    "crontab_expression",
    "timezone",
    "frequency",
    "concurrency_limit",
    "execution_mode",
    "notify_on",
    "is_active",
    "created_via",
    "test_profiles",
];

/// The schedule that a client writes, in the words of schedules.
async fn as_schedule(asked: Asked<'_>, mut fields: Fields) -> Result<Object, Refusal> {
    let name = fields.required_text("name", 1..=NAME);
    let cron = fields.required_text("crontab_expression", 1..=200);
    let timezone = fields.text("timezone", 0..=200).filter(|zone| !zone.is_empty());
    let mode = fields.choice("execution_mode", &MODES);
    let as_text = fields.flag("run_as_text").unwrap_or(false);
    let mode = mode.unwrap_or_else(|| if as_text { "text" } else { "voice" }.to_owned());
    let told = fields.choice("notify_on", &["never", "success", "failure", "both"]);
    let via = fields.choice("created_via", &["user", "api", "mcp", "cli", "sdk"]);
    let active = fields.flag("is_active").unwrap_or(true);
    let channel = match Channel::of_mode(&mode) {
        Ok(channel) => channel,
        Err(why) => {
            fields.wrong("execution_mode", why);
            Channel::Text
        }
    };
    let launch = Launch::read(asked, &mut fields, channel, "agent").await?;
    let mut run = launch.run(asked).await?;
    if let Some(Value::Object(label)) = run.extra.get_mut("label") {
        label.insert("name".to_owned(), json!(name));
    }
    let written = fields.checked()?;
    let ids = |list: Option<Value>| list.unwrap_or_else(|| json!([]));
    let mut kept: Object = written
        .into_iter()
        .filter(|(name, value)| ["tags", "frequency"].contains(&name.as_str()) && !value.is_null())
        .collect();
    let tagged = kept
        .get("tags")
        .and_then(Value::as_array)
        .is_some_and(|tags| !tags.is_empty());
    if let Some(told) = told {
        kept.insert("notify_on".to_owned(), json!(told));
    }
    kept.insert("execution_mode".to_owned(), json!(mode));
    kept.insert("created_via".to_owned(), json!(via.as_deref().unwrap_or("api")));
    kept.insert("agentId".to_owned(), json!(launch.agent.id));
    if !tagged {
        let scenarios = launch.scenarios.iter().map(|one| json!(one.id)).collect();
        kept.insert("scenarioIds".to_owned(), ids(Some(scenarios)));
    }
    let chosen = |list: &[Definition]| -> Value { list.iter().map(|one| json!(one.id)).collect() };
    kept.insert("personalityIds".to_owned(), chosen(launch.personalities()));
    kept.insert("testProfileIds".to_owned(), chosen(launch.profiles()));
    let mut schedule = match json!(&run) {
        Value::Object(schedule) => schedule,
        _ => Object::new(),
    };
    schedule.insert("name".to_owned(), json!(name));
    schedule.insert("cron".to_owned(), json!(cron));
    // Null is what there is unless something is said.
    schedule.insert("timezone".to_owned(), json!(timezone));
    schedule.insert("concurrencyLimit".to_owned(), json!(run.concurrency_limit));
    schedule.insert("active".to_owned(), json!(active));
    schedule.insert("cekura".to_owned(), Value::Object(kept));
    Ok(schedule)
}

/// Faults of a schedule under the names that clients of Cekura know.
fn renamed(error: ApiError) -> Refusal {
    let text = error.text();
    if error.status() != 400 {
        return error.into();
    }
    for (own, field) in [("cron", "crontab_expression"), ("timezone", "timezone")] {
        if text.starts_with(own) {
            return Refusal::field(field, text);
        }
    }
    error.into()
}

fn body_of(response: &Response) -> Value {
    serde_json::from_str(response.body()).unwrap_or_default()
}

fn names(body: &Value) -> Vec<(Kind, Uuid)> {
    let cekura = |name: &str| cekura(body, name);
    let target = body.pointer("/target/assistantId");
    [
        (Kind::Assistant, cekura("agentId").or(target)),
        (Kind::Scenario, cekura("scenarioIds")),
        (Kind::Personality, cekura("personalityIds")),
        (Kind::TestProfile, cekura("testProfileIds")),
    ]
    .into_iter()
    .flat_map(|(kind, ids)| uuids(ids).map(move |id| (kind, id)).collect::<Vec<_>>())
    .collect()
}

async fn shown(asked: Asked<'_>, schedules: &[Value]) -> Result<Vec<Value>, Refusal> {
    let mut numbers = Numbers::default();
    let own_ids = schedules
        .iter()
        .flat_map(|body| uuids(body.get("id")).map(|id| (Kind::Schedule, id)));
    let named = schedules.iter().flat_map(names);
    numbers
        .load_all(asked, named.chain(own_ids).chain([(Kind::Project, asked.org)]))
        .await?;
    Ok(schedules.iter().map(|body| show(asked, body, &numbers)).collect())
}

fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Value {
    let cekura = |name: &str| cekura(body, name);
    let mode = cekura("execution_mode")
        .and_then(Value::as_str)
        .unwrap_or_else(
            || match body.pointer("/transport/provider").and_then(Value::as_str) {
                Some("vapi.webchat") => "text",
                _ => "voice",
            },
        );
    let get = |name: &str| body.get(name).cloned().unwrap_or_default();
    let agent = cekura("agentId").or_else(|| body.pointer("/target/assistantId"));
    let personalities = numbers.all_named(Kind::Personality, cekura("personalityIds"));
    json!({
        "id": numbers.named(Kind::Schedule, body.get("id")), "name": text(body, "name"),
        "agent": numbers.named(Kind::Assistant, agent), "project": numbers.of(Kind::Project, asked.org),
        "scenarios": numbers.all_named(Kind::Scenario, cekura("scenarioIds")),
        "tags": cekura("tags").unwrap_or(&json!([])), "crontab_expression": text(body, "cron"),
        "timezone": body.get("timezone").and_then(Value::as_str).unwrap_or("UTC"),
        "personality": personalities.get(0), "personalities": personalities,
        "test_profiles": numbers.all_named(Kind::TestProfile, cekura("testProfileIds")),
        "frequency": cekura("frequency").cloned().unwrap_or_else(|| get("iterations")),
        "concurrency_limit": get("concurrencyLimit"), "execution_mode": mode, "run_as_text": mode == "text",
        "notify_on": cekura("notify_on").unwrap_or(&json!("both")),
        "is_active": body.get("active").and_then(Value::as_bool).unwrap_or(true),
        "created_via": cekura("created_via").unwrap_or(&json!("api")),
        "next_runs": get("nextFirings"), "created_at": get("createdAt"), "updated_at": get("updatedAt"),
    })
}

async fn one(asked: Asked<'_>, status: i64, schedule: Value) -> Answer {
    let mut all = shown(asked, &[schedule]).await?;
    Ok(Response::of(status, &all.pop().unwrap_or_default()))
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let agent = objects::asked_for(asked, "agent_id", Kind::Assistant).await?;
    let mut found = Vec::new();
    let mut all = Definitions::all(asked.ctx, asked.org, Kind::Schedule);
    while let Some(entries) = all.next().await? {
        let of_agent =
            |one: &Definition| agent.is_none_or(|agent| names(&one.body).contains(&(Kind::Assistant, agent)));
        found.extend(entries.into_iter().filter(of_agent).map(|one| one.body));
    }
    Ok(Response::ok(shown(asked, &found).await?)?)
}

pub(super) async fn create(asked: Asked<'_>) -> Answer {
    let schedule = as_schedule(asked, Fields::of(asked.request)?).await?;
    let made = schedules::create(asked.ctx, asked.org, Value::Object(schedule)).await;
    one(asked, 201, body_of(&made.map_err(renamed)?)).await
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let stored = objects::found(asked, Kind::Schedule, number(id)?).await?;
    let read = schedules::read(asked.ctx, asked.org, &stored.id.to_string()).await?;
    one(asked, 200, body_of(&read)).await
}

pub(super) async fn update(asked: Asked<'_>, id: &str, partly: bool) -> Answer {
    let stored = objects::found(asked, Kind::Schedule, number(id)?).await?;
    let Value::Object(changes) = asked.request.optional_json()? else {
        return Err(Refusal::list("Send a JSON object."));
    };
    let is_ours = !own(&stored.body).is_empty();
    let changed = if is_ours || !partly {
        let mut fields = Object::new();
        if partly {
            fields = written(asked, &stored.body).await?;
            // One of the two selects.
            for (given, other) in [("scenarios", "tags"), ("tags", "scenarios")] {
                if changes.contains_key(given) {
                    fields.remove(other);
                }
            }
        }
        fields.extend(changes);
        as_schedule(asked, Fields::new(fields)).await?
    } else {
        // One of another shape: what this one knows of it.
        let mut changed = Object::new();
        for (name, value) in changes {
            match name.as_str() {
                "name" | "timezone" => changed.insert(name, value),
                "crontab_expression" => changed.insert("cron".to_owned(), value),
                "is_active" => changed.insert("active".to_owned(), value),
                "frequency" => changed.insert("iterations".to_owned(), value),
                "concurrency_limit" => changed.insert("concurrencyLimit".to_owned(), value),
                _ => {
                    return Err(Refusal::field(
                        &name,
                        "This schedule was made in another shape; change this there (PATCH /schedule/{id}).",
                    ));
                }
            };
        }
        changed
    };
    let id = stored.id.to_string();
    let changed = schedules::update(asked.ctx, asked.org, &id, Value::Object(changed)).await;
    one(asked, 200, body_of(&changed.map_err(renamed)?)).await
}

pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    let stored = objects::found(asked, Kind::Schedule, number(id)?).await?;
    schedules::delete(asked.ctx, asked.org, &stored.id.to_string()).await?;
    nothing()
}

/// A cron job with the scenarios that have its tags now; every other schedule as it is.
pub(crate) async fn as_of_now(
    ctx: &Context,
    org: Uuid,
    schedule: &CreateSchedule,
) -> Result<Option<CreateSchedule>, ApiError> {
    let body = json!(schedule);
    let tags = body.pointer("/cekura/tags").and_then(Value::as_array);
    if tags.is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let asked = Asked {
        ctx,
        org,
        request: &Request::default(),
        version: 1,
    };
    let work = async {
        let mut fields = Fields::new(written(asked, &body).await?);
        let mode = cekura(&body, "execution_mode")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let channel = Channel::of_mode(mode).map_err(Refusal::list)?;
        Launch::read(asked, &mut fields, channel, "agent")
            .await?
            .run(asked)
            .await
    };
    let run = work.await.map_err(Refusal::into_error)?;
    // All else is as somebody wrote it, whoever that was.
    Ok(Some(CreateSchedule {
        simulations: run.simulations,
        ..schedule.clone()
    }))
}

/// Lets the project's or the agent's webhook listen to the run that a cron job starts; to those of another schedule nobody does.
pub(crate) async fn listen(
    ctx: &Context,
    org: Uuid,
    schedule: &CreateSchedule,
    new: &mut NewRun,
) -> Result<(), ApiError> {
    let body = json!(schedule);
    if own(&body).is_empty() {
        return Ok(());
    }
    let asked = Asked {
        ctx,
        org,
        request: &Request::default(),
        version: 1,
    };
    let told = cekura(&body, "notify_on").and_then(Value::as_str);
    let listening = webhooks::listen(asked, new, Starter::cron(told)).await;
    listening.map_err(Refusal::into_error)
}

/// A schedule's fields as clients write them.
async fn written(asked: Asked<'_>, body: &Value) -> Result<Object, Refusal> {
    let mut all = shown(asked, std::slice::from_ref(body)).await?;
    let all = match all.pop() {
        Some(Value::Object(all)) => all,
        _ => Object::new(),
    };
    let is_written =
        |name: &str, value: &Value| WRITTEN.contains(&name) && !value.is_null() && *value != json!([]);
    Ok(all
        .into_iter()
        .filter(|(name, value)| is_written(name, value))
        .collect())
}

/// What clients of this shape know of a schedule beside what all do.
fn cekura<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    body.get("cekura")?.get(name)
}
