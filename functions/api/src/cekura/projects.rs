//! The project: an organization is one, with its rubric and its webhooks.

use ringback_shared::{
    clock::iso,
    models::{
        Object, Validate,
        metric::{EXPECTED_OUTCOME, Rubric},
    },
    store::{Definition, Kind, Numbered},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Paging, Refusal},
    objects::{Asked, Numbers, number, own, text, uuids},
    webhooks,
};
use crate::http::Response;

/// What is kept under names of Ringback's own, or nowhere.
const TAKEN: [&str; 7] = [
    "id",
    "name",
    "rubric_config",
    "webhook_secret",
    "webhook_secret_configured",
    "created_at",
    "updated_at",
];

/// The organization's project as it is stored, or as it is as long as nobody wrote it.
pub(crate) async fn stored(asked: Asked<'_>) -> Result<Definition, Refusal> {
    let stored = asked
        .ctx
        .store
        .definition(asked.org, Kind::Project, asked.org)
        .await?;
    Ok(stored.unwrap_or_else(|| Definition {
        id: asked.org,
        version: 0,
        body: json!({ "name": "Default project" }),
    }))
}

/// The metrics that a project's rubric names.
fn metrics_in(body: &Value) -> Vec<Uuid> {
    let rules = body.pointer("/rubric/rules").and_then(Value::as_array);
    rules
        .into_iter()
        .flatten()
        .flat_map(|rule| uuids(rule.get("metricId")))
        .collect()
}

async fn shown(asked: Asked<'_>, project: &Definition) -> Result<Value, Refusal> {
    let mut numbers = Numbers::default();
    let metrics = metrics_in(&project.body).into_iter().map(|id| (Kind::Metric, id));
    numbers
        .load_all(asked, metrics.chain([(Kind::Project, asked.org)]))
        .await?;
    let rules = project.body.pointer("/rubric/rules").and_then(Value::as_array);
    let rules = rules.map(|rules| {
        let rule = |rule: &Value| {
            let metric = match text(rule, "metricId") {
                EXPECTED_OUTCOME => json!("expected_outcome"),
                _ => numbers.named(Kind::Metric, rule.get("metricId")),
            };
            json!({ "metric_id": metric, "conditions": rule.get("conditions") })
        };
        rules.iter().map(rule).collect::<Vec<_>>()
    });
    let rubric = match rules {
        Some(rules) if !rules.is_empty() => {
            json!({ "evaluation_logic": project.body.pointer("/rubric/evaluationLogic"), "rules": rules })
        }
        _ => json!({}),
    };
    let mut shown = Object::new();
    let own = own(&project.body);
    shown.extend(webhooks::shown(&own));
    shown.extend(own);
    for (name, value) in [
        ("id", json!(numbers.of(Kind::Project, asked.org))),
        ("name", json!(text(&project.body, "name"))),
        ("rubric_config", rubric),
        (
            "webhook_secret_configured",
            json!(project.body.get("webhookSecret") == Some(&json!(true))),
        ),
        (
            "created_at",
            project.body.get("createdAt").cloned().unwrap_or_default(),
        ),
        (
            "updated_at",
            project.body.get("updatedAt").cloned().unwrap_or_default(),
        ),
    ] {
        shown.insert(name.to_owned(), value);
    }
    Ok(Value::Object(shown))
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let paging = Paging::of(&asked.request.query)?;
    let project = shown(asked, &stored(asked).await?).await?;
    paging.places(1)?;
    paging.answer(&asked.ctx.config.public_url, asked.request, 1, vec![project])
}

/// Checks that a number is the project's.
async fn check(asked: Asked<'_>, id: &str) -> Result<(), Refusal> {
    let mut numbers = Numbers::default();
    numbers.load_all(asked, [(Kind::Project, asked.org)]).await?;
    match numbers.of(Kind::Project, asked.org) == Some(number(id)?) {
        true => Ok(()),
        false => Err(Refusal::not_found()),
    }
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    check(asked, id).await?;
    Ok(Response::ok(shown(asked, &stored(asked).await?).await?)?)
}

pub(super) async fn update(asked: Asked<'_>, id: &str) -> Answer {
    check(asked, id).await?;
    let read = stored(asked).await?;
    let mut fields = Fields::of(asked.request)?;
    let name = fields.text("name", 1..=255);
    webhooks::check(&mut fields);
    let secret = webhooks::secret(&mut fields);
    let rubric = match fields.object("rubric_config") {
        Some(rubric) => Some(as_rubric(asked, &mut fields, rubric).await?),
        None => None,
    };
    let changes = fields.checked()?;
    if let Some(secret) = &secret {
        webhooks::keep_secret(asked, secret.clone()).await?;
    }
    let now = iso(asked.ctx.clock.now_ms());
    let mut body = read.body.as_object().cloned().unwrap_or_default();
    let mut kept = own(&read.body);
    for (name, value) in changes {
        if TAKEN.contains(&name.as_str()) {
            continue;
        }
        match value {
            Value::Null => kept.remove(&name),
            value => kept.insert(name, value),
        };
    }
    if let Some(secret) = secret {
        body.insert("webhookSecret".to_owned(), json!(secret.is_some()));
    }
    if let Some(name) = name {
        body.insert("name".to_owned(), json!(name));
    }
    match rubric {
        Some(Value::Null) => {
            body.remove("rubric");
        }
        Some(rubric) => {
            body.insert("rubric".to_owned(), rubric);
        }
        None => {}
    }
    body.insert("cekura".to_owned(), Value::Object(kept));
    body.insert("id".to_owned(), json!(asked.org));
    body.insert("orgId".to_owned(), json!(asked.org));
    body.entry("createdAt").or_insert_with(|| json!(now));
    body.insert("updatedAt".to_owned(), json!(now));
    let store = &asked.ctx.store;
    let body = Value::Object(body);
    match read.version {
        0 => {
            let kept = store.create_definition(asked.org, Kind::Project, asked.org, body.clone(), &[]);
            kept.await?;
        }
        _ => {
            let kept = store.update_definition(asked.org, Kind::Project, &read, body.clone(), &[]);
            kept.await?;
        }
    }
    let project = Definition { body, ..read };
    Ok(Response::ok(shown(asked, &project).await?)?)
}

/// A rubric as it is stored, which names metrics by their UUIDs; null for an empty one, which takes the rubric away.
async fn as_rubric(asked: Asked<'_>, fields: &mut Fields, rubric: Object) -> Result<Value, Refusal> {
    const FIELD: &str = "rubric_config";
    let rules = match rubric.get("rules") {
        None | Some(Value::Null) => return Ok(Value::Null),
        Some(Value::Array(rules)) if rules.is_empty() => return Ok(Value::Null),
        Some(Value::Array(rules)) => rules.clone(),
        Some(_) => {
            fields.wrong(FIELD, "rules is a list.");
            return Ok(Value::Null);
        }
    };
    let named: Vec<u64> = rules
        .iter()
        .filter_map(|rule| rule.get("metric_id")?.as_u64())
        .collect();
    let known = asked.ctx.store.numbered(asked.org, &named).await?;
    let mut kept = Vec::with_capacity(rules.len());
    for rule in &rules {
        let metric = match rule.get("metric_id") {
            Some(Value::String(name)) if name == "expected_outcome" => Some(EXPECTED_OUTCOME.to_owned()),
            Some(number) => match number.as_u64().and_then(|number| known.get(&number)) {
                Some((Numbered::Definition(Kind::Metric), id)) => Some(id.to_string()),
                _ => None,
            },
            None => None,
        };
        let Some(metric) = metric else {
            let named = rule.get("metric_id").unwrap_or(&Value::Null);
            fields.wrong(
                FIELD,
                format!("metric_id {named} is no metric; give a metric's id, or \"expected_outcome\"."),
            );
            continue;
        };
        kept.push(json!({ "metricId": metric, "conditions": rule.get("conditions") }));
    }
    let rubric = json!({ "evaluationLogic": rubric.get("evaluation_logic"), "rules": kept });
    match serde_json::from_value::<Rubric>(rubric) {
        Ok(rubric) => {
            let mut faults = Vec::new();
            rubric.validate(FIELD, &mut faults);
            for fault in faults {
                fields.wrong(FIELD, fault);
            }
            Ok(json!(rubric))
        }
        Err(error) => {
            fields.wrong(FIELD, error.to_string());
            Ok(Value::Null)
        }
    }
}
