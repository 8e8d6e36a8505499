//! Batch runs: test cases that are tried together, each as often as it says. A batch run is a run.

use std::collections::{BTreeMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use ringback_shared::{
    clock::iso,
    lifecycle::Tally,
    listeners::{Listener, Shape},
    models::{
        Object,
        run::{
            CreateSimulationRun, SimulationEntry, SimulationRunEntry, SimulationRunTarget, TargetAssistant,
            Transport, TransportProvider,
        },
        simulation::CreatePersonality,
        trials::{RerunItems, RerunSimulationRun},
    },
    store::{Definition, Kind, ListQuery, Manifest, NewRun, RunHead, RunKey, RunKind, RunState},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked, agents,
    answer::{Answer, Fields, Paging, Prefix, named, required},
    cases,
    objects::{self, text},
    webhooks,
};
use crate::{
    cekura::chat_target,
    http::{ApiError, Response},
    idempotency,
    reruns::{self, JUDGES_IN_PLACE},
    runs,
};

/// The most test cases of a batch run that are shown with it.
const SHOWN: usize = 100;
/// The most runs that one read of a list gives, and how many are looked at at once.
const PIECE: usize = 500;
const READS: usize = 16;
/// Who simulates where a test case does not say.
const USER: &str = "You are a user of the agent that you talk to. Be polite and brief, say one thing at a time, answer what you are \
                    asked, and make up nothing that you were not told.";

/// The agent that a run tests: the one that it was asked for, or its target.
pub(super) fn agent_of(head: &RunHead, manifest: &Manifest) -> Option<Uuid> {
    let asked = manifest.label.get("agentId").and_then(Value::as_str);
    let asked = asked.and_then(|id| Uuid::try_parse(id).ok());
    asked.or(head.target_id.filter(|_| head.target_type == "assistant"))
}

/// The batch run that an id stands for, with what it was asked for; one of another agent is not found.
pub(super) async fn found(
    asked: Asked<'_>,
    batch: Uuid,
    agent: Uuid,
) -> Result<(RunHead, Manifest), ApiError> {
    let missing = || Prefix::Batch.missing(&Prefix::Batch.id(batch));
    let head = asked.ctx.store.run(RunKey::simulation(asked.org, batch)).await?;
    let head = head
        .filter(|head| head.deleted_at.is_none())
        .ok_or_else(missing)?;
    let manifest = asked.ctx.store.manifest(batch).await?;
    match agent_of(&head, &manifest) == Some(agent) {
        true => Ok((head, manifest)),
        false => Err(missing()),
    }
}

/// Where a batch run stands.
fn status(head: &RunHead) -> &'static str {
    match head.state {
        RunState::Ended if head.canceled_at.is_some() => "cancelled",
        RunState::Ended => "completed",
        RunState::Running => "running",
        RunState::Queued => "queued",
    }
}

/// The answer to the request that made a batch run.
fn made(asked: Asked<'_>, head: &RunHead, agent: &Value) -> Value {
    json!({
        "batchId": Prefix::Batch.id(head.id), "workspaceId": Prefix::Org.id(asked.org), "agent": agent,
        "createdDate": iso(head.created_at),
    })
}

/// How often a test case is tried in a run that has so many entries for it.
pub(super) fn attempts(head: &RunHead, entries: usize) -> i64 {
    i64::from(head.iterations).saturating_mul(i64::try_from(entries).unwrap_or(i64::MAX))
}

/// A batch run with its totals and its test cases.
pub(super) async fn shown(
    asked: Asked<'_>,
    head: &RunHead,
    manifest: &Manifest,
    agent: &Value,
) -> Result<Value, ApiError> {
    let ctx = asked.ctx;
    let tally: Tally = runs::tally(ctx, head).await?;
    // A scenario that is played in several entries is one test case.
    let mut places: BTreeMap<(Option<Uuid>, u32), (u32, usize)> = BTreeMap::new();
    for (place, reference) in (0..).zip(&manifest.refs) {
        let key = (
            reference.scenario_id,
            if reference.scenario_id.is_some() { 0 } else { place },
        );
        places.entry(key).or_insert((place, 0)).1 += 1;
    }
    let mut order: Vec<(u32, usize)> = places.into_values().collect();
    order.sort_unstable();
    let count = order.len();
    order.truncate(SHOWN);
    let mut shown = Vec::with_capacity(order.len());
    for some in order.chunks(READS) {
        let read = some.iter().map(|(place, _)| ctx.briefing(head.id, *place));
        for ((place, entries), briefing) in some.iter().zip(try_join_all(read).await?) {
            let id = manifest.refs.get(*place as usize).and_then(|one| one.scenario_id);
            let scenario = &briefing.snapshot.scenario;
            shown.push(cases::shown(asked, id, scenario, agent, attempts(head, *entries)));
        }
    }
    let mut batch = made(asked, head, agent);
    let more = json!({
        "testCases": shown, "successfulAttempts": tally.passed, "failedAttempts": tally.failed,
        "totalAttempts": head.total, "cancelledAttempts": tally.canceled, "status": status(head),
        "completedDate": head.ended_at.map(iso),
    });
    if let (Value::Object(batch), Value::Object(more)) = (&mut batch, more) {
        batch.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
        if count > SHOWN {
            batch.insert("testCasesLeftOut".to_owned(), json!(count - SHOWN));
        }
    }
    Ok(batch)
}

/// The runs that test this agent, or any, newest first. Those that judge another run's conversations in its place are none.
async fn of_agent(asked: Asked<'_>, agent: Option<Uuid>) -> Result<Vec<RunHead>, ApiError> {
    let store = &asked.ctx.store;
    let mut query = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: true,
        after: None,
        limit: PIECE,
    };
    let mut all = Vec::new();
    loop {
        let listed = store.list_runs(asked.org, RunKind::Simulation, &query).await?;
        query.after = listed.entries.last().map(|head| head.id);
        // What names an agent that is stored here names no other.
        let may_be = |head: &RunHead| {
            let other = head
                .target_id
                .is_some_and(|target| agent.is_some_and(|agent| target != agent));
            head.deleted_at.is_none() && head.target_type == "assistant" && !other
        };
        let heads = listed.entries.into_iter().filter(may_be);
        let found: Vec<Option<RunHead>> = stream::iter(heads)
            .map(async |head| {
                if head.target_id.is_some() && !head.only_judges() {
                    return Ok(Some(head));
                }
                let manifest = store.manifest(head.id).await?;
                let judges = manifest.label.contains_key(JUDGES_IN_PLACE);
                let of = agent_of(&head, &manifest).filter(|of| agent.is_none_or(|agent| agent == *of));
                let is_of = !judges && of.is_some();
                Ok::<_, ApiError>(is_of.then_some(head))
            })
            .buffered(READS)
            .try_collect()
            .await?;
        all.extend(found.into_iter().flatten());
        if !listed.more || query.after.is_none() {
            return Ok(all);
        }
    }
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let agent = named(asked, "agentId", Prefix::Agent)?;
    let paging = Paging::of(&asked.request.query)?;
    let all = of_agent(asked, agent).await?;
    let page = all.get(paging.places(all.len())).unwrap_or_default();
    let mut entries = Vec::with_capacity(page.len());
    for some in page.chunks(READS / 4) {
        let read = some.iter().map(async |head| {
            let manifest = asked.ctx.store.manifest(head.id).await?;
            let agent = agents::shown(asked, agent_of(head, &manifest)).await?;
            shown(asked, head, &manifest, &agent).await
        });
        entries.extend(try_join_all(read.collect::<Vec<_>>()).await?);
    }
    paging.answer(all.len(), entries)
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let (head, manifest) = found(asked, Prefix::Batch.found(id)?, agent).await?;
    let agent = agents::shown(asked, Some(agent)).await?;
    Response::ok(shown(asked, &head, &manifest, &agent).await?)
}

/// Who simulates a test case: the personality that it names, or a plain user.
fn personality(case: &Definition) -> (Option<String>, Option<CreatePersonality>) {
    let own = text(&case.body, "personalityId");
    if !own.is_empty() {
        return (Some(own.to_owned()), None);
    }
    let user = json!({
        "name": "User",
        "assistant": { "model": { "provider": "openai", "messages": [{ "role": "system", "content": USER }] } },
    });
    (None, serde_json::from_value(user).ok())
}

/// The run that tries these test cases.
fn wanted(
    asked: Asked<'_>,
    agent: &Definition,
    cases: &[Definition],
) -> Result<CreateSimulationRun, ApiError> {
    let attempts: Vec<i64> = cases
        .iter()
        .map(|case| cases::attempts(&case.body).unwrap_or(1))
        .collect();
    // As iterations where all are tried as often, and as so many entries where they are not.
    let most = i64::from(asked.ctx.config.max_iterations);
    let different: HashSet<&i64> = attempts.iter().collect();
    let common = attempts
        .first()
        .copied()
        .filter(|&first| different.len() == 1 && first <= most);
    let mut simulations = Vec::new();
    for (case, attempts) in cases.iter().zip(&attempts) {
        let (personality_id, personality) = personality(case);
        let mut entry = SimulationEntry {
            scenario_id: Some(case.id.to_string()),
            personality_id,
            personality,
            ..SimulationEntry::default()
        };
        if let Some(profile) = case
            .body
            .get("testProfileId")
            .filter(|profile| profile.is_string())
        {
            entry.extra.insert("testProfileId".to_owned(), profile.clone());
        }
        for _ in 0..common.map_or(*attempts, |_| 1) {
            simulations.push(SimulationRunEntry::Simulation(Box::new(entry.clone())));
        }
    }
    let label = json!({ "shape": "sigmamind", "agentId": agent.id, "agentName": crate::cekura::agent_name(&agent.body) });
    let mut extra = Object::new();
    extra.insert("label".to_owned(), label);
    let id = chat_target(&agent.body, agent.id).map_err(ApiError::bad_request)?;
    Ok(CreateSimulationRun {
        simulations,
        target: SimulationRunTarget::Assistant(TargetAssistant {
            assistant_id: Some(id),
            ..TargetAssistant::default()
        }),
        iterations: common.unwrap_or(1),
        transport: Some(Transport {
            provider: TransportProvider::Webchat,
            extra: Object::new(),
        }),
        concurrency_limit: None,
        notify: None,
        extra,
    })
}

/// Lets the agent's webhooks listen to a new run.
async fn listen(asked: Asked<'_>, agent: Uuid, new: &mut NewRun) -> Result<(), ApiError> {
    for webhook in webhooks::active(asked, agent).await? {
        let wants = webhooks::wants(&webhook.body);
        if !wants.is_empty() {
            new.manifest.notify.listeners.push(Listener {
                shape: Shape::Sigmamind,
                id: Some(webhook.id),
                url: text(&webhook.body, "url").to_owned(),
                wants,
            });
        }
    }
    Ok(())
}

pub(super) async fn create(asked: Asked<'_>) -> Answer {
    let now = asked.ctx.clock.now_ms();
    let idempotency = idempotency::of(asked.request)?;
    let before = runs::begun(
        asked.ctx,
        asked.org,
        RunKind::Simulation,
        idempotency.as_ref(),
        now,
    );
    if let Some((head, manifest)) = before.await? {
        let agent = agents::shown(asked, agent_of(&head, &manifest)).await?;
        return Response::created(made(asked, &head, &agent));
    }
    let mut body = Fields::of(asked.request)?;
    let agent = body.required("agentId", 64);
    let cases = body.texts("testCases");
    body.check()?;
    let agent = Prefix::Agent.found(&agent)?;
    let agent = objects::found(asked, Prefix::Agent, Kind::Assistant, agent).await?;
    let cases = cases::all_found(asked, &cases, agent.id).await?;
    let wanted = wanted(asked, &agent, &cases)?;
    let mut new = runs::prepare(asked.ctx, asked.org, wanted, now).await?;
    listen(asked, agent.id, &mut new).await?;
    begin(asked, new, agent.id, now).await
}

async fn begin(asked: Asked<'_>, new: NewRun, agent: Uuid, now: i64) -> Answer {
    let new = NewRun {
        idempotency: idempotency::of(asked.request)?,
        trace: asked.request.trace,
        ..new
    };
    let (head, _) = runs::begin(asked.ctx, new, now).await?;
    let agent = agents::shown(asked, Some(agent)).await?;
    Response::created(made(asked, &head, &agent))
}

/// Stops what is open of a batch run.
pub(super) async fn cancel(asked: Asked<'_>, id: &str) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let (head, manifest) = found(asked, Prefix::Batch.found(id)?, agent).await?;
    let head = match head.state {
        RunState::Ended => head,
        _ => runs::stop(asked.ctx, head).await?,
    };
    let agent = agents::shown(asked, Some(agent)).await?;
    Response::ok(shown(asked, &head, &manifest, &agent).await?)
}

/// Tries a batch run's test cases again, all of them or those that failed, as a new one.
pub(super) async fn rerun(asked: Asked<'_>, id: &str) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let (head, _) = found(asked, Prefix::Batch.found(id)?, agent).await?;
    let body = asked.request.optional_json()?;
    let items = match body.get("attempts").and_then(Value::as_str) {
        None | Some("all") => RerunItems::All,
        Some("failed") => RerunItems::Failed,
        Some("unfinished") => RerunItems::Unfinished,
        Some(_) => {
            return Err(ApiError::bad_request(
                "attempts: must be one of all, failed and unfinished",
            ));
        }
    };
    let now = asked.ctx.clock.now_ms();
    let idempotency = idempotency::of(asked.request)?;
    let before = runs::begun(
        asked.ctx,
        asked.org,
        RunKind::Simulation,
        idempotency.as_ref(),
        now,
    );
    if let Some((head, _)) = before.await? {
        let agent = agents::shown(asked, Some(agent)).await?;
        return Response::created(made(asked, &head, &agent));
    }
    let wanted = RerunSimulationRun {
        items: Some(items),
        ..RerunSimulationRun::default()
    };
    let rerun = reruns::rerun_of(asked.ctx, asked.org, &head, wanted, None, None, now);
    let mut new = rerun.await?;
    listen(asked, agent, &mut new).await?;
    begin(asked, new, agent, now).await
}

/// Hides a batch run, stops what is open of it, and has it taken away.
pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let (head, _) = found(asked, Prefix::Batch.found(id)?, agent).await?;
    runs::delete(asked.ctx, head).await?;
    Ok(Response::of(204, &Value::Null))
}
