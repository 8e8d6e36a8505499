//! Webhooks of agents: what is told of the conversations and of the end of batch runs. Each has a secret of its own.

use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    lifecycle::{Hook, HookEvent, Subject},
    listeners::{Listener, Wanted},
    models::Object,
    provider::is_url,
    secrets::OrgHooks,
    store::{Definition, ItemKey, Kind, RunKey, RunKind},
    webhook::Secret,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked, agents,
    answer::{Answer, Fields, Paging, Prefix, named},
    batches, jobs,
    objects::{self, text},
};
use crate::{
    hook_secrets,
    http::{ApiError, Request, Response},
    listening::Letter,
    signing::{self, Change},
};

/// The longest name, id and URL, in characters.
const NAME: usize = 128;
const AGENT: usize = 64;
const URL: usize = 2000;
/// The most webhooks of an organization: their secrets are kept as one.
const MOST: usize = 200;

const STARTED: &str = "conversation_started";
const ENDED: &str = "conversation_ended";
const ANALYSED: &str = "conversation_analysed";
const COMPLETED: &str = "batch_completed";
/// The events, and what is wanted of a run for each.
const EVENTS: [(&str, Wanted); 4] = [
    (STARTED, Wanted::Started),
    (ENDED, Wanted::Ended),
    (ANALYSED, Wanted::Judged),
    (COMPLETED, Wanted::Over),
];

fn agent_of(webhook: &Value) -> Option<Uuid> {
    Uuid::try_parse(text(webhook, "agentId")).ok()
}

fn is_active(webhook: &Value) -> bool {
    webhook.get("active").and_then(Value::as_bool).unwrap_or(true)
}

/// What a webhook wants to hear of a run.
pub(super) fn wants(webhook: &Value) -> Vec<Wanted> {
    let events = webhook.get("events").and_then(Value::as_array);
    let named = events.into_iter().flatten().filter_map(Value::as_str);
    named
        .filter_map(|name| EVENTS.iter().find(|(known, _)| *known == name))
        .map(|(_, wanted)| *wanted)
        .collect()
}

/// The webhooks of an agent that are told, oldest first.
pub(super) async fn active(asked: Asked<'_>, agent: Uuid) -> Result<Vec<Definition>, ApiError> {
    let fits = |body: &Value| agent_of(body) == Some(agent) && is_active(body);
    let mut all = objects::all(asked, Kind::Webhook, fits).await?;
    all.reverse();
    Ok(all)
}

fn shown(asked: Asked<'_>, webhook: &Definition) -> Value {
    let body = &webhook.body;
    let get = |name: &str| body.get(name).cloned().unwrap_or_default();
    json!({
        "workspaceId": Prefix::Org.id(asked.org), "webhookId": Prefix::Webhook.id(webhook.id), "name": get("name"),
        "agentId": agent_of(body).map(|agent| Prefix::Agent.id(agent)), "active": is_active(body),
        "events": get("events"), "url": get("url"), "createdDate": get("createdAt"), "updatedDate": get("updatedAt"),
    })
}

/// A webhook as a client writes it.
async fn written(asked: Asked<'_>) -> Result<Object, ApiError> {
    let mut body = Fields::of(asked.request)?;
    let name = body.required("name", NAME);
    let agent = body.required("agentId", AGENT);
    let url = body.required("url", URL);
    if !url.is_empty() && !is_url(&url) {
        body.wrong("url", "must be an http or https URL");
    }
    let mut events = Vec::new();
    for event in body.texts("events") {
        // Its older documents spell it so.
        let event = event.replace("conversation_analyzed", ANALYSED);
        if !EVENTS.iter().any(|(known, _)| *known == event) {
            let known = EVENTS.map(|(known, _)| known).join(", ");
            body.wrong("events", &format!("\"{event}\" is none of {known}"));
        }
        if !events.contains(&event) {
            events.push(event);
        }
    }
    let active = body.flag("active").unwrap_or(true);
    body.check()?;
    let agent = Prefix::Agent.found(&agent)?;
    objects::found(asked, Prefix::Agent, Kind::Assistant, agent).await?;
    Ok(objects::fields(
        json!({ "name": name, "agentId": agent, "url": url, "events": events, "active": active }),
    ))
}

async fn secrets(asked: Asked<'_>) -> Result<Change<OrgHooks>, ApiError> {
    hook_secrets::first(asked.ctx, asked.org).await?;
    let change = Change::<OrgHooks>::begin(asked.ctx, asked.org).await?;
    change.ok_or_else(|| {
        ApiError::new(
            503,
            "the secrets' store is not available at the moment; try again",
        )
    })
}

pub(super) async fn create(asked: Asked<'_>) -> Answer {
    let webhook = written(asked).await?;
    let mut change = secrets(asked).await?;
    if change.secrets.listeners.len() >= MOST {
        return Err(ApiError::bad_request(format!(
            "there are {MOST} webhooks, which is the most; delete one that is no longer used"
        )));
    }
    let secret = Secret::generate_short().map_err(signing::no_random)?;
    let id = ids::new_id(asked.ctx.clock.now_ms());
    // First: no run finds a webhook that has none.
    change.secrets.listeners.insert(id, secret.clone());
    change.finish(asked.ctx).await?;
    let webhook = match objects::keep(asked, Kind::Webhook, id, webhook).await {
        Ok(webhook) => webhook,
        Err(error) => {
            forget(asked, id).await?;
            return Err(error);
        }
    };
    let mut made = shown(asked, &webhook);
    made["secret"] = json!(secret);
    Response::created(made)
}

async fn found(asked: Asked<'_>, id: &str) -> Result<Definition, ApiError> {
    objects::found(asked, Prefix::Webhook, Kind::Webhook, Prefix::Webhook.found(id)?).await
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let paging = Paging::of(&asked.request.query)?;
    let agent = named(asked, "agentId", Prefix::Agent)?;
    let active = match asked.request.query.get("active") {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(ApiError::bad_request("active: must be true or false")),
    };
    let fits =
        |body: &Value| is_active(body) == active && agent.is_none_or(|agent| agent_of(body) == Some(agent));
    let all = objects::all(asked, Kind::Webhook, fits).await?;
    let page = all.get(paging.places(all.len())).unwrap_or_default();
    paging.answer(all.len(), page.iter().map(|one| shown(asked, one)).collect())
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    Response::ok(shown(asked, &found(asked, id).await?))
}

/// Changes a webhook. Runs that were made before go on as they were.
pub(super) async fn update(asked: Asked<'_>, id: &str) -> Answer {
    let webhook = found(asked, id).await?;
    let changes = written(asked).await?;
    let changed = objects::change(asked, Kind::Webhook, webhook, &changes).await?;
    Response::ok(shown(asked, &changed))
}

pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    let webhook = found(asked, id).await?;
    // The secret first: what fails here can be asked for again.
    forget(asked, webhook.id).await?;
    objects::delete(asked, Kind::Webhook, webhook.id).await
}

/// Takes a webhook's secret away. From then on nothing is sent to it any more.
async fn forget(asked: Asked<'_>, id: Uuid) -> Result<(), ApiError> {
    let mut change = secrets(asked).await?;
    if change.secrets.listeners.remove(&id).is_some() {
        change.finish(asked.ctx).await?;
    }
    Ok(())
}

/// What a webhook is sent for a hook.
pub(crate) async fn letter(ctx: &Context, hook: &Hook, listener: &Listener) -> Result<Letter, ApiError> {
    let asked = Asked {
        ctx,
        org: hook.org,
        request: &Request::default(),
    };
    let (run, kind) = match hook.subject {
        Subject::Item { run, .. } => (run, RunKind::Simulation),
        Subject::Run { run, kind } => (run, kind),
        Subject::Firing { .. } => return Err(ApiError::bad_request("nothing is told of schedules")),
    };
    let key = RunKey {
        org: hook.org,
        kind,
        run,
    };
    let missing = || Prefix::Batch.missing(&Prefix::Batch.id(run));
    let head = ctx.store.run(key).await?.ok_or_else(missing)?;
    let manifest = ctx.store.manifest(run).await?;
    let agent = batches::agent_of(&head, &manifest);
    let shown_agent = agents::shown(asked, agent).await?;
    let event = match hook.event {
        HookEvent::Started => STARTED,
        HookEvent::Ended => ENDED,
        HookEvent::Judged => ANALYSED,
        _ => COMPLETED,
    };
    let mut body = json!({
        "event": event, "timestamp": iso(hook.at), "workspaceId": Prefix::Org.id(hook.org),
        "webhookId": listener.id.map(|id| Prefix::Webhook.id(id)), "agentId": agent.map(|id| Prefix::Agent.id(id)),
        "batchId": Prefix::Batch.id(run),
    });
    match hook.subject {
        Subject::Item { run, index, .. } => {
            let item = ctx
                .store
                .item(ItemKey { run, index })
                .await?
                .ok_or_else(missing)?;
            let shown = jobs::shown(asked, &head, &manifest, &item, &shown_agent).await?;
            for name in ["jobId", "chatId"] {
                body[name] = shown.get(name).cloned().unwrap_or_default();
            }
            body["testRun"] = shown;
        }
        _ => body["batchRun"] = batches::shown(asked, &head, &manifest, &shown_agent).await?,
    }
    Ok(Letter {
        body,
        headers: Vec::new(),
        signed_as: listener.id,
    })
}
