//! Agents: who is tested. An agent is an assistant.

use ringback_shared::{ids, models::Object, store::Kind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked,
    answer::{Answer, Fields, Paging, Prefix},
    objects,
};
use crate::{
    cekura::{agent_name, system_prompt, with_system_prompt},
    http::{ApiError, Response},
};

/// The longest name, status, and the longest texts, in characters.
const NAME: usize = 40;
const LONG_NAME: usize = 255;
const STATUS: usize = 40;
const TEXT: usize = 100_000;
/// Where an agent stands unless somebody says so.
const LIVE: &str = "Live";

/// What other things show of an agent.
pub(super) fn brief(id: Uuid, body: &Value) -> Value {
    let own = body.pointer("/sigmamind/status").and_then(Value::as_str);
    json!({ "agentId": Prefix::Agent.id(id), "name": agent_name(body), "status": own.unwrap_or(LIVE) })
}

/// The agent with this id as other things show it, if it is still there.
pub(super) async fn shown(asked: Asked<'_>, id: Option<Uuid>) -> Result<Value, ApiError> {
    let Some(id) = id else { return Ok(Value::Null) };
    let stored = asked.ctx.store.definition(asked.org, Kind::Assistant, id).await?;
    Ok(match stored {
        Some(stored) => brief(id, &stored.body),
        None => json!({ "agentId": Prefix::Agent.id(id), "name": null, "status": "Deleted" }),
    })
}

fn whole(asked: Asked<'_>, id: Uuid, body: &Value) -> Value {
    let mut shown = brief(id, body);
    let get = |name: &str| body.get(name).cloned().unwrap_or_default();
    let more = json!({
        "workspaceId": Prefix::Org.id(asked.org), "systemPrompt": system_prompt(body), "firstMessage": get("firstMessage"),
        "model": get("model"), "createdDate": get("createdAt"), "updatedDate": get("updatedAt"),
    });
    if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
        shown.extend(more);
    }
    shown
}

/// An agent as a client writes it, over the one that is `stored`.
fn written(asked: Asked<'_>, stored: Option<&Value>) -> Result<Object, ApiError> {
    let mut body = Fields::of(asked.request)?;
    let name = body.required("name", LONG_NAME);
    // Another shape may have given it a longer one, which stays.
    let renamed = stored.is_none_or(|stored| agent_name(stored) != name);
    if renamed && name.chars().count() > NAME {
        body.wrong("name", &format!("size must be between 1 and {NAME}"));
    }
    let status = body.text("status", STATUS);
    let prompt = body.text("systemPrompt", TEXT);
    let first = body.text("firstMessage", TEXT);
    let model = match body.get("model") {
        Some(Value::Object(model)) => Some(model.clone()),
        None => None,
        Some(_) => {
            body.wrong("model", "must be an object");
            None
        }
    };
    body.check()?;
    let mut agent = stored.and_then(Value::as_object).cloned().unwrap_or_default();
    if renamed {
        agent.insert("name".to_owned(), json!(name));
        // What another shape calls it would stand before this.
        if let Some(Value::Object(other)) = agent.get_mut("cekura") {
            other.remove("agent_name");
        }
    }
    if let Some(model) = model {
        agent.insert("model".to_owned(), Value::Object(model));
    }
    if let Some(prompt) = prompt {
        with_system_prompt(&mut agent, &prompt);
    }
    if let Some(first) = first {
        agent.insert("firstMessage".to_owned(), json!(first));
    }
    if let Some(status) = status {
        agent.insert("sigmamind".to_owned(), json!({ "status": status }));
    }
    Ok(agent)
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let paging = Paging::of(&asked.request.query)?;
    let all = objects::all(asked, Kind::Assistant, |_| true).await?;
    let page = all.get(paging.places(all.len())).unwrap_or_default();
    let entries = page.iter().map(|one| whole(asked, one.id, &one.body)).collect();
    paging.answer(all.len(), entries)
}

pub(super) async fn create(asked: Asked<'_>) -> Answer {
    let agent = written(asked, None)?;
    let id = ids::new_id(asked.ctx.clock.now_ms());
    let made = objects::keep(asked, Kind::Assistant, id, agent).await?;
    Response::created(whole(asked, id, &made.body))
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let id = Prefix::Agent.found(id)?;
    let stored = objects::found(asked, Prefix::Agent, Kind::Assistant, id).await?;
    Response::ok(whole(asked, id, &stored.body))
}

pub(super) async fn update(asked: Asked<'_>, id: &str) -> Answer {
    let id = Prefix::Agent.found(id)?;
    let stored = objects::found(asked, Prefix::Agent, Kind::Assistant, id).await?;
    let changes = written(asked, Some(&stored.body))?;
    let changed = objects::change(asked, Kind::Assistant, stored, &changes).await?;
    Response::ok(whole(asked, id, &changed.body))
}

pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    objects::delete(asked, Kind::Assistant, Prefix::Agent.found(id)?).await
}
