//! Run items: read, list, cancel.

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    call_record::CallRecord,
    clock::iso,
    context::Context,
    costs::{self, ModelCosts},
    evaluation::Verdict,
    hooks, ids,
    lifecycle::{Item, State},
    models::{
        Object,
        run::{
            CallMetadata, CallMonitor, ItemStatus, SimulationRunConfiguration, SimulationRunItem,
            SimulationRunItemMetadata, Transport,
        },
    },
    store::{Manifest, RunHead, TransitionError},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    http::{ApiError, Request, Response},
    lists::ListRequest,
    runs,
};

/// How many items' conversations are read at once for a list.
const READS: usize = 16;

/// An item's place in the run that a client names.
fn index_of(head: &RunHead, item: &str) -> Result<u32, ApiError> {
    Uuid::try_parse(item)
        .ok()
        .and_then(|id| ids::item_index(head.id, id))
        .filter(|&index| index < head.total)
        .ok_or_else(|| ApiError::not_found("Run item", item))
}

/// The items with these indexes, those not stored yet as they will be.
async fn load(ctx: &Context, head: &RunHead, indexes: &[u32]) -> Result<Vec<Item>, ApiError> {
    let stored = ctx.store.items(head.id, indexes).await?;
    Ok(indexes
        .iter()
        .map(|&index| {
            stored
                .binary_search_by_key(&index, |item| item.index)
                .ok()
                .and_then(|at| stored.get(at).cloned())
                .unwrap_or_else(|| head.item(index, head.created_at))
        })
        .collect())
}

/// Reads one item.
pub(crate) async fn get(ctx: &Context, org: Uuid, run: &str, item: &str) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let index = index_of(&head, item)?;
    let manifest = ctx.store.manifest(head.id).await?;
    let item = load(ctx, &head, &[index])
        .await?
        .pop()
        .ok_or_else(|| ApiError::not_found("Run item", item))?;
    Response::ok(view(ctx, &head, &manifest, item).await?)
}

/// Cancels one item.
pub(crate) async fn cancel(ctx: &Context, org: Uuid, run: &str, item: &str) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let index = index_of(&head, item)?;
    let head = runs::ensure_item(ctx, head, index).await?;
    let item = load(ctx, &head, &[index])
        .await?
        .pop()
        .ok_or_else(|| ApiError::not_found("Run item", item))?;
    let now = ctx.clock.now_ms();
    let item = match ctx.store.transition(item, |item| item.cancel(now)).await {
        Ok(item) => item,
        Err(TransitionError::Refused { .. }) => {
            return Err(ApiError::bad_request("Run item has already ended"));
        }
        Err(TransitionError::Store(error)) => return Err(error.into()),
    };
    let manifest = ctx.store.manifest(head.id).await?;
    Response::ok(view(ctx, &head, &manifest, item).await?)
}

/// Lists a run's items in the order in which they were laid out.
pub(crate) async fn list(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let wanted = ListRequest::parse(&request.query)?;
    let manifest = ctx.store.manifest(head.id).await?;
    let mut indexes: Vec<u32> = (0..head.total).collect();
    // All items of a run were created when it was: a time filter takes all of them or none.
    if !wanted.ids.contains(&ids::item_id(head.id, 0))
        && !wanted.ids.contains(&ids::floor_id(head.created_at))
    {
        indexes.clear();
    }
    if let Some(simulation) = request.query.get("simulationId") {
        let iterations = head.iterations.max(1);
        indexes.retain(|index| {
            manifest
                .refs
                .get((index / iterations) as usize)
                .is_some_and(|reference| reference.simulation_id.to_string() == simulation.to_lowercase())
        });
    }
    if let Some(status) = request.query.get("status") {
        let status: ItemStatus = serde_json::from_value(json!(status)).map_err(|_| {
            ApiError::bad_request(
                "status must be one of queued, running, evaluating, passed, failed, canceled",
            )
        })?;
        let items = load(ctx, &head, &indexes).await?;
        indexes = items
            .into_iter()
            .filter(|item| item.state.shown() == status)
            .map(|item| item.index)
            .collect();
    }
    if wanted.newest_first {
        indexes.reverse();
    }
    let total = indexes.len() as u64;
    let from = match wanted.cursor {
        Some(cursor) => {
            let at = ids::item_index(head.id, cursor)
                .ok_or_else(|| ApiError::bad_request("cursor is not one of this list's"))?;
            indexes
                .iter()
                .take_while(|&&n| if wanted.newest_first { n >= at } else { n <= at })
                .count()
        }
        None => wanted.skipped(),
    };
    let page: Vec<u32> = indexes.iter().skip(from).take(wanted.limit).copied().collect();
    let more = from.saturating_add(page.len()) < indexes.len();
    let last = page.last().map(|&index| ids::item_id(head.id, index));
    let mut sorted = page.clone();
    sorted.sort_unstable();
    let mut items = load(ctx, &head, &sorted).await?;
    if wanted.newest_first {
        items.reverse();
    }
    let (head, manifest) = (&head, &manifest);
    let views: Vec<SimulationRunItem> = stream::iter(items)
        .map(|item| view(ctx, head, manifest, item))
        .buffered(READS)
        .try_collect()
        .await?;
    wanted.answer(
        views.into_iter().map(|view| json!(view)).collect(),
        total,
        more,
        last,
    )
}

fn object(value: Value) -> Option<Object> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// An item as clients see it.
async fn view(
    ctx: &Context,
    head: &RunHead,
    manifest: &Manifest,
    item: Item,
) -> Result<SimulationRunItem, ApiError> {
    let corrupt = |error: serde_json::Error| ApiError::internal(&error);
    let reference = manifest
        .refs
        .get(item.simulation as usize)
        .ok_or_else(|| ApiError::internal(&std::io::Error::other("an item without its simulation")))?;
    let briefing = ctx.briefing(head.id, item.simulation).await?;
    let id = item.id();
    let started = item.started_at();
    let produced = started.is_some() || item.call_id().is_some() || (item.hooked && item.is_over());
    let detail = if produced {
        ctx.store.item_detail(id).await?
    } else {
        Default::default()
    };
    let record = CallRecord::of(&item, &detail)?;
    let call = started.map(|_| {
        let mut extra = Map::new();
        if let Some(id) = item.call_id() {
            extra.insert("providerCallId".to_owned(), json!(id));
        }
        if let Some(cost) = &item.facts.cost {
            extra.insert("cost".to_owned(), json!(costs::dollars(cost.value)));
        }
        if let Some(ended) = item.ended() {
            extra.insert("endedReason".to_owned(), json!(ended.reason));
            extra.insert("endedAt".to_owned(), json!(iso(ended.at)));
        }
        CallMetadata {
            transcript: Some(record.transcript),
            messages: Some(record.messages.into_iter().filter_map(object).collect()),
            recording_url: record.recording_url,
            monitor: record.listen_url.map(|url| CallMonitor {
                listen_url: Some(url),
                ..CallMonitor::default()
            }),
            extra,
        }
    });
    let mut extra = Map::new();
    if let Some(fault) = item.failure.as_ref().and_then(|failure| failure.fault) {
        extra.insert("failureFault".to_owned(), json!(fault));
    }
    let uses = costs::kept(&detail)?;
    let call_cost = item.facts.cost.as_ref().map(|cost| cost.value);
    let models = ModelCosts::of(&uses);
    let cost = models.cost.saturating_add(call_cost.unwrap_or_default());
    extra.insert("cost".to_owned(), json!(costs::dollars(cost)));
    extra.insert("costs".to_owned(), json!(costs::lines(&uses, call_cost)));
    if !models.unknown.is_empty() {
        extra.insert("costsUnknown".to_owned(), json!(models.unknown));
    }
    let results = match detail.result.as_deref() {
        Some(result) => {
            let stored: Verdict = serde_json::from_str(result).map_err(corrupt)?;
            if stored.all_required_skipped {
                extra.insert("allRequiredSkipped".to_owned(), json!(true));
            }
            Some(stored.results)
        }
        None => None,
    };
    let decided = |state| {
        (item.state == state)
            .then_some(item.decided_at)
            .flatten()
            .map(iso)
    };
    let snapshot = &briefing.snapshot;
    let provider = serde_json::from_value(json!(head.transport)).map_err(corrupt)?;
    Ok(SimulationRunItem {
        id: id.to_string(),
        org_id: item.org.to_string(),
        simulation_id: reference.simulation_id.to_string(),
        status: item.state.shown(),
        queued_at: iso(head.created_at),
        started_at: started.map(iso),
        completed_at: decided(State::Passed),
        failed_at: decided(State::Failed),
        canceled_at: decided(State::Canceled),
        failure_reason: item.failure.as_ref().map(|failure| failure.reason.clone()),
        call_id: item.shown_call_id().map(|id| id.to_string()),
        created_at: iso(head.created_at),
        updated_at: iso(item.updated_at),
        run_id: Some(head.id.to_string()),
        hooks: snapshot
            .scenario
            .get("hooks")
            .filter(|hooks| !hooks.is_null())
            .map(|hooks| serde_json::from_value(hooks.clone()))
            .transpose()
            .map_err(corrupt)?,
        iteration_number: item.iteration.into(),
        session_id: started
            .filter(|_| item.call.is_none())
            .map(|_| ids::session_id(id).to_string()),
        scenario_id: reference.scenario_id.map(|id| id.to_string()),
        personality_id: reference.personality_id.map(|id| id.to_string()),
        metadata: Some(SimulationRunItemMetadata {
            assistant: briefing.target.get("assistant").cloned().and_then(object),
            scenario: object(snapshot.scenario.clone()),
            personality: object(snapshot.personality.clone()),
            simulation: object(snapshot.simulation.clone()),
            call,
            hooks: hooks::report(&detail.hooks, snapshot, &briefing.target),
            ..SimulationRunItemMetadata::default()
        }),
        results,
        improvement_suggestions: None,
        configurations: Some(SimulationRunConfiguration {
            transport: Some(Transport {
                provider,
                extra: Map::new(),
            }),
            extra: Map::new(),
        }),
        extra,
    })
}
