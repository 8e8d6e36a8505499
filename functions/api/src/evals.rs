//! Runs of evals: create, read, list, cancel, delete.

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::iso,
    context::Context,
    conversation::{Mock, Script, Step},
    costs::{self, ModelUse, PlayedEval},
    ids,
    lifecycle::{Cause, Item, State},
    models::{
        Object,
        eval::{
            CreateEval, CreateEvalRun, CreateEvalRunResponse, EvalEndedReason, EvalRun, EvalRunEntry,
            EvalRunResult, EvalRunStatus, EvalRunTarget, EvalRunType,
        },
        parse,
        simulation::UnmockedTools,
    },
    store::{
        Kind, Manifest, NewRun, Receivers, RunHead, RunKey, RunKind, RunState, SimulationRef, Snapshot,
        StoreError,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    bounded::{self, Entries},
    definitions::Named,
    filters,
    http::{ApiError, Request, Response},
    idempotency,
    lists::ListRequest,
    runs,
};

/// How many runs are read at once for a list.
const READS: usize = 16;

/// What a run was asked for beside its target, as it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    eval: Option<CreateEval>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evals: Option<Vec<EvalRunEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unmocked_tools: Option<UnmockedTools>,
}

/// Creates a run.
pub(crate) async fn create(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let idempotency = idempotency::of(request)?;
    let wanted: CreateEvalRun = parse(request.json()?)?;
    let now = ctx.clock.now_ms();
    if let Some((head, manifest)) = runs::begun(ctx, org, RunKind::Eval, idempotency.as_ref(), now).await? {
        return answer(head, &manifest);
    }
    let (mut target, target_id) = match &wanted.target {
        EvalRunTarget::Assistant(target) => {
            let id = target.assistant_id.as_deref();
            runs::resolve_assistant(ctx, org, target.assistant.as_ref(), id).await?
        }
        EvalRunTarget::Squad(target) => {
            runs::resolve_squad(ctx, org, target.squad.as_ref(), target.squad_id.as_deref()).await?
        }
    };
    if let Some(overrides) = wanted.target.overrides() {
        target["assistantOverrides"] = json!(overrides);
    }
    if let Some(mode) = wanted.unmocked_tools {
        target["unmockedTools"] = json!(mode);
    }
    let asked = Asked {
        eval: wanted.eval,
        eval_id: wanted.eval_id,
        evals: wanted.evals,
        unmocked_tools: wanted.unmocked_tools,
    };
    let snapshots = resolve_evals(ctx, org, &asked).await?;
    let new = NewRun {
        id: ids::new_id(now),
        org,
        kind: RunKind::Eval,
        iterations: 1,
        transport: "vapi.webchat".to_owned(),
        endpoint: None,
        cap: None,
        target_type: wanted.target.target_type().to_string(),
        target_id,
        manifest: Manifest {
            simulations: json!(asked),
            target: json!(wanted.target),
            refs: snapshots.iter().map(reference).collect(),
            notify: Receivers::of(wanted.notify),
            label: Map::new(),
        },
        target,
        snapshots,
        origin: None,
        idempotency,
        firing: None,
        trace: request.trace,
    };
    let (head, manifest) = runs::begin(ctx, new, now).await?;
    answer(head, &manifest)
}

/// What an eval is recognized by in another run: its id, or else what is in it.
fn reference(snapshot: &Snapshot) -> SimulationRef {
    let stored = snapshot.eval.get("evalId").and_then(Value::as_str);
    let inline = || Uuid::new_v5(&Uuid::NAMESPACE_OID, snapshot.eval.to_string().as_bytes());
    SimulationRef {
        simulation_id: stored
            .and_then(|id| Uuid::try_parse(id).ok())
            .unwrap_or_else(inline),
        scenario_id: None,
        personality_id: None,
    }
}

/// The evals of a run as they are now, in order.
async fn resolve_evals(ctx: &Context, org: Uuid, asked: &Asked) -> Result<Vec<Snapshot>, ApiError> {
    let single = EvalRunEntry {
        eval_id: asked.eval_id.clone(),
        eval: asked.eval.clone(),
        extra: Object::new(),
    };
    let entries = asked.evals.as_deref().unwrap_or(std::slice::from_ref(&single));
    let mut stored = Named::default();
    let named = entries.iter().filter_map(|entry| entry.eval_id.as_deref());
    stored.load(ctx, org, Kind::Eval, named).await?;
    let mut snapshots = Vec::with_capacity(entries.len());
    for (n, entry) in entries.iter().enumerate() {
        let mut eval = match (&entry.eval, entry.eval_id.as_deref()) {
            (Some(eval), _) => json!(eval),
            (None, id) => {
                let (id, eval) = stored.get(Kind::Eval, id.unwrap_or_default())?;
                let mut eval = eval.clone();
                eval["evalId"] = json!(id);
                eval
            }
        };
        let messages = eval.get("messages").cloned().unwrap_or_default();
        let messages: Vec<_> =
            serde_json::from_value(messages).map_err(|error| ApiError::internal(&error))?;
        if !Script::has_checkpoints(&messages) {
            let which = if asked.evals.is_some() {
                format!("evals.{n}")
            } else {
                "the eval".to_owned()
            };
            return Err(ApiError::bad_request(format!(
                "{which} has no checkpoint; add a message with a judgePlan before you run it"
            )));
        }
        if let Some(eval) = eval.as_object_mut() {
            eval.retain(|_, value| !value.is_null());
        }
        snapshots.push(Snapshot {
            scenario: Value::Null,
            personality: Value::Null,
            simulation: Value::Null,
            outputs: Map::new(),
            metrics: Map::new(),
            eval,
        });
    }
    Ok(snapshots)
}

/// The answer to the request that created a run: the same whenever it is asked for.
fn answer(head: RunHead, manifest: &Manifest) -> Result<Response, ApiError> {
    let as_created = RunHead {
        state: RunState::Queued,
        started_at: None,
        ended_at: None,
        canceled_at: None,
        counts: None,
        ..head
    };
    Response::created(bounded::eval_run(json!(CreateEvalRunResponse {
        eval_run_id: as_created.id.to_string(),
        workflow_id: as_created.id.to_string(),
        run: view(&as_created, manifest)?,
    })))
}

/// The run that a client names.
async fn found(ctx: &Context, org: Uuid, id: &str) -> Result<RunHead, ApiError> {
    let missing = || ApiError::not_found("Eval run", id);
    let run = Uuid::try_parse(id).map_err(|_| missing())?;
    let key = RunKey {
        org,
        kind: RunKind::Eval,
        run,
    };
    let head = ctx.store.run(key).await?;
    head.filter(|head| head.deleted_at.is_none()).ok_or_else(missing)
}

/// A run without what only its end knows.
fn view(head: &RunHead, manifest: &Manifest) -> Result<EvalRun, ApiError> {
    let stored = |error: serde_json::Error| ApiError::internal(&error);
    let asked: Asked = serde_json::from_value(manifest.simulations.clone()).map_err(stored)?;
    Ok(EvalRun {
        status: match head.state {
            RunState::Queued => EvalRunStatus::Queued,
            RunState::Running => EvalRunStatus::Running,
            RunState::Ended => EvalRunStatus::Ended,
        },
        ended_reason: None,
        eval: asked.eval,
        target: serde_json::from_value(manifest.target.clone()).map_err(stored)?,
        id: head.id.to_string(),
        org_id: head.org.to_string(),
        created_at: iso(head.created_at),
        started_at: head.started_at.map(iso),
        ended_at: None,
        ended_message: None,
        results: Vec::new(),
        cost: 0.0,
        costs: Vec::new(),
        kind: EvalRunType::Eval,
        eval_id: asked.eval_id,
        evals: asked.evals,
        unmocked_tools: asked.unmocked_tools,
        costs_unknown: Vec::new(),
        extra: Object::new(),
    })
}

/// A run as it is now.
async fn current(ctx: &Context, head: &RunHead) -> Result<EvalRun, ApiError> {
    let manifest = ctx.store.manifest(head.id).await?;
    let mut run = view(head, &manifest)?;
    run.extra.extend(runs::notices_of(ctx, head, &manifest).await?);
    if head.state != RunState::Ended {
        return Ok(run);
    }
    let items = ctx.store.items_from(head.id, 0, head.total).await?;
    let mut uses = Vec::new();
    let mut broke_off = None;
    for item in &items {
        let (result, used) = result(ctx, item).await?;
        run.results.push(result);
        uses.extend(used);
        broke_off = broke_off.or_else(|| end_of(item));
    }
    let (reason, message) = broke_off.unwrap_or((EvalEndedReason::Done, None));
    run.ended_reason = Some(reason);
    run.ended_message = message;
    // The counts are a moment behind the items.
    let started = items
        .iter()
        .filter_map(Item::started_at)
        .chain(head.started_at)
        .min();
    run.started_at = started.or(head.ended_at).map(iso);
    run.ended_at = head.ended_at.map(iso);
    let total = match &head.counts {
        Some(counts) => counts.costs.clone(),
        None => ctx.store.tally(head.id, head.total).await?.costs,
    };
    run.cost = costs::dollars(total.cost);
    run.costs_unknown = total.unknown.into_iter().collect();
    run.costs = breakdown(&uses);
    Ok(run)
}

/// Why a run ended if this eval was not played to its end.
fn end_of(item: &Item) -> Option<(EvalEndedReason, Option<String>)> {
    match (item.state, &item.failure) {
        (State::Canceled, _) => Some((
            EvalEndedReason::Cancelled,
            Some("the run was canceled".to_owned()),
        )),
        // Its checkpoints failed.
        (State::Failed, Some(_)) if item.ended().is_some() => None,
        (State::Failed, Some(failure)) => {
            let reason = match failure.cause {
                Cause::Error => EvalEndedReason::Error,
                Cause::Timeout => EvalEndedReason::Timeout,
                Cause::Aborted => EvalEndedReason::Aborted,
            };
            Some((reason, Some(failure.reason.clone())))
        }
        _ => None,
    }
}

/// What came of an eval, and what it took. One that broke off has what was said and judged until then, and has failed.
async fn result(ctx: &Context, item: &Item) -> Result<(EvalRunResult, Vec<ModelUse>), ApiError> {
    let corrupt = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
    if let Some(kept) = ctx.store.item_result(item.id()).await? {
        let kept: PlayedEval = serde_json::from_str(&kept).map_err(corrupt)?;
        let result = serde_json::from_value(kept.result).map_err(corrupt)?;
        return Ok((result, kept.model_uses));
    }
    let (briefing, detail) = tokio::try_join!(
        ctx.briefing(item.run, item.simulation),
        ctx.store.item_detail(item.id())
    )?;
    let mut steps: Vec<Step> = Vec::with_capacity(detail.turns.len());
    for turn in &detail.turns {
        steps.push(serde_json::from_str(turn).map_err(corrupt)?);
    }
    let uses = costs::of_steps(&steps);
    let ended = item.decided_at.unwrap_or(item.updated_at);
    let mock = Mock::new(
        briefing.script(ctx.config.limits)?,
        item.started_at().unwrap_or(ended),
        steps,
    );
    let result = serde_json::from_value(mock.result(ended)).map_err(corrupt)?;
    Ok((result, uses))
}

/// What each model took: one entry for each, with a null for a cost that is not known.
fn breakdown(uses: &[ModelUse]) -> Vec<Object> {
    let mut entries: Vec<(String, Option<i64>, u64, u64)> = Vec::new();
    for used in uses {
        let tokens = used.usage.unwrap_or_default();
        let entry = entries
            .iter_mut()
            .find(|(model, cost, ..)| *model == used.model && cost.is_some() == used.cost.is_some());
        match entry {
            Some((_, cost, prompt, completion)) => {
                *cost = cost.zip(used.cost).map(|(sum, more)| sum.saturating_add(more));
                *prompt += tokens.prompt_tokens;
                *completion += tokens.completion_tokens;
            }
            None => entries.push((
                used.model.clone(),
                used.cost,
                tokens.prompt_tokens,
                tokens.completion_tokens,
            )),
        }
    }
    let object = |(model, cost, prompt, completion): (String, Option<i64>, u64, u64)| {
        let mut entry = Object::new();
        entry.insert("type".to_owned(), json!("model"));
        entry.insert("model".to_owned(), json!(model));
        entry.insert("cost".to_owned(), json!(cost.map(costs::dollars)));
        if cost.is_none() {
            entry.insert("unknown".to_owned(), json!(true));
        }
        entry.insert("promptTokens".to_owned(), json!(prompt));
        entry.insert("completionTokens".to_owned(), json!(completion));
        entry
    };
    entries.into_iter().map(object).collect()
}

/// Reads a run.
pub(crate) async fn read(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let head = found(ctx, org, id).await?;
    Response::ok(bounded::eval_run(json!(current(ctx, &head).await?)))
}

/// Lists runs.
pub(crate) async fn list(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let wanted = ListRequest::of_pages(&request.query)?;
    let (heads, found) = filters::runs(ctx, org, RunKind::Eval, &wanted, &request.query).await?;
    let mut views = stream::iter(heads)
        .map(|head| async move { Ok::<_, ApiError>(json!(current(ctx, &head).await?)) })
        .buffered(READS);
    let mut page = Entries::of_eval_runs();
    while let Some(view) = views.try_next().await? {
        page.push(view);
    }
    wanted.answer(page.into_values(), found)
}

/// Stops a run: what has not ended is canceled.
pub(crate) async fn cancel(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let head = runs::stop(ctx, found(ctx, org, id).await?).await?;
    Response::ok(bounded::eval_run(json!(current(ctx, &head).await?)))
}

/// Deletes a run and answers with it. One that has not ended is canceled. What is kept of it is taken away later, when nobody can
/// be at work on it any more.
pub(crate) async fn delete(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let head = found(ctx, org, id).await?;
    let shown = json!(current(ctx, &head).await?);
    runs::delete(ctx, head).await?;
    Response::ok(bounded::eval_run(shown))
}

#[cfg(test)]
mod tests {
    use ringback_shared::{
        lifecycle::{Failure, Fault},
        llm::Usage,
    };

    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn a_run_ends_for_the_reason_of_what_broke_off() {
        let fresh = Item::admitted(Uuid::nil(), Uuid::nil(), 0, 1, NOW);
        let held = fresh.claim("a", 1000, NOW).unwrap();
        assert_eq!(end_of(&held), None);
        for (cause, reason) in [
            (Cause::Error, EvalEndedReason::Error),
            (Cause::Timeout, EvalEndedReason::Timeout),
            (Cause::Aborted, EvalEndedReason::Aborted),
        ] {
            let failure = Failure::new("why", Some(Fault::Target)).with(cause);
            let failed = held.fail("a", &failure, NOW).unwrap();
            assert_eq!(end_of(&failed), Some((reason, Some("why".to_owned()))));
        }
        let canceled = held.cancel(NOW).unwrap();
        assert_eq!(
            end_of(&canceled).map(|end| end.0),
            Some(EvalEndedReason::Cancelled)
        );
        // Checkpoints that failed are a result and no reason.
        let verdict = Err(Failure::new("1 of 2 checkpoints failed", None));
        for verdict in [Ok(()), verdict] {
            let played = held.conclude("a", "mockConversation.done", verdict, NOW).unwrap();
            assert_eq!(end_of(&played), None);
        }
    }

    #[test]
    fn what_is_known_and_what_is_not_are_entries_of_their_own() {
        let used = |model: &str, cost: Option<i64>| ModelUse {
            purpose: ringback_shared::llm::Purpose::Target,
            model: model.to_owned(),
            usage: Some(Usage {
                prompt_tokens: 3,
                completion_tokens: 2,
            }),
            cost,
        };
        let uses = [
            used("a", Some(1_500_000)),
            used("b", None),
            used("a", Some(500_000)),
            used("b", None),
            used("a", None),
        ];
        let entries = json!(breakdown(&uses));
        assert_eq!(
            entries,
            json!([
                {"type": "model", "model": "a", "cost": 2.0, "promptTokens": 6, "completionTokens": 4},
                {"type": "model", "model": "b", "cost": null, "unknown": true, "promptTokens": 6, "completionTokens": 4},
                {"type": "model", "model": "a", "cost": null, "unknown": true, "promptTokens": 3, "completionTokens": 2},
            ])
        );
    }
}
