//! Run items: read, list, cancel.

use futures_util::{Stream, StreamExt, TryStreamExt, future::try_join_all, stream};
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
            CallMetadata, CallMonitor, SimulationRunConfiguration, SimulationRunItem,
            SimulationRunItemMetadata, Transport,
        },
        trials::ItemOrigin,
    },
    store::{ItemDetail, Manifest, RunHead, TransitionError},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    bounded::{self, Entries},
    filters::WantedItems,
    http::{ApiError, Request, Response},
    lists::{Key, ListRequest, SortBy},
    runs,
};

/// How many items' conversations are read at once for a list.
const READS: usize = 16;
/// How many items' heads are read in one go where all of a run's have to be looked at, and how often at a time.
const PIECE: usize = 500;
const PIECES: usize = 4;

/// An item's place in the run that a client names.
pub(crate) fn index_of(head: &RunHead, item: &str) -> Result<u32, ApiError> {
    Uuid::try_parse(item)
        .ok()
        .and_then(|id| ids::item_index(head.id, id))
        .filter(|&index| index < head.total)
        .ok_or_else(|| ApiError::not_found("Run item", item))
}

/// The items with these indexes, in their order, those not stored yet as they will be.
pub(crate) async fn load(ctx: &Context, head: &RunHead, indexes: &[u32]) -> Result<Vec<Item>, ApiError> {
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
    Response::ok(whole(ctx, &head, &manifest, item).await?)
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
    let was_open = !item.state.is_terminal();
    let item = match ctx.store.transition(item, |item| item.cancel(now)).await {
        Ok(item) => item,
        Err(TransitionError::Refused { .. }) if was_open => {
            return Err(ApiError::new(
                409,
                "the run item ended at the same time; read it again",
            ));
        }
        Err(TransitionError::Refused { .. }) => {
            return Err(ApiError::bad_request("Run item has already ended"));
        }
        Err(TransitionError::Store(error)) => return Err(error.into()),
    };
    let manifest = ctx.store.manifest(head.id).await?;
    Response::ok(whole(ctx, &head, &manifest, item).await?)
}

/// What items are sorted by.
fn measure(sort: SortBy, item: &Item) -> Option<i64> {
    match sort {
        SortBy::CreatedAt => None,
        SortBy::Duration => Some(item.ended()?.at - item.started_at()?),
        SortBy::Cost => cost(item),
    }
}

/// What an item cost, in millionths of a US dollar, as far as it is known.
fn cost(item: &Item) -> Option<i64> {
    let costs = item.costs();
    (costs.cost > 0).then_some(costs.cost)
}

/// Lists a run's items. All of them were created when the run was; in the list by creation they are in the order in which they
/// were laid out, so that pages neither overlap nor skip, whatever happens to the items.
pub(crate) async fn list(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let wanted = ListRequest::parse(&request.query)?;
    let filters = WantedItems::parse(&request.query)?;
    let after = match wanted.cursor {
        Some((value, id)) => {
            let index = ids::item_index(head.id, id)
                .ok_or_else(|| ApiError::bad_request("cursor is not one of this list's"))?;
            Some((value, index))
        }
        None => None,
    };
    let manifest = ctx.store.manifest(head.id).await?;
    let mut indexes: Vec<u32> = Vec::new();
    if wanted.is_in_time(head.created_at) {
        let iterations = head.iterations.max(1);
        indexes.extend((0..head.total).filter(|index| {
            let reference = manifest.refs.get((index / iterations) as usize);
            reference.is_some_and(|reference| filters.takes(head.id, reference.simulation_id))
        }));
    }
    if wanted.newest_first {
        indexes.reverse();
    }
    let mut pick = wanted.pick(after);
    let items = if wanted.sort != SortBy::CreatedAt {
        let mut keys = keys(ctx, &head, &indexes, &filters, wanted.sort).await?;
        wanted.sort(&mut keys);
        keys.retain(|&key| pick.takes(key));
        let page: Vec<u32> = keys.into_iter().map(|(_, index)| index).collect();
        load(ctx, &head, &page).await?
    } else if filters.reads() {
        let mut page = Vec::new();
        let mut pieces = pieces(ctx, &head, &indexes);
        while let Some(items) = pieces.try_next().await? {
            let on_page = |item: &Item| filters.fits(item) && pick.takes((None, item.index));
            page.extend(items.into_iter().filter(on_page));
        }
        page
    } else {
        indexes.retain(|&index| pick.takes((None, index)));
        load(ctx, &head, &indexes).await?
    };
    let found = wanted.found(&pick, |index| ids::item_id(head.id, index));
    let page = shown(ctx, &head, &manifest, items).await?;
    wanted.answer(page.into_values(), found)
}

/// The items with these indexes, piece by piece and in their order.
fn pieces<'a>(
    ctx: &'a Context,
    head: &'a RunHead,
    indexes: &'a [u32],
) -> impl Stream<Item = Result<Vec<Item>, ApiError>> + Send + Unpin + 'a {
    stream::iter(indexes.chunks(PIECE))
        .map(move |piece| load(ctx, head, piece))
        .buffered(PIECES)
}

/// The places of those of the items with these `indexes` that fit the filters, in a list that is sorted by `sort`.
async fn keys(
    ctx: &Context,
    head: &RunHead,
    indexes: &[u32],
    filters: &WantedItems,
    sort: SortBy,
) -> Result<Vec<Key<u32>>, ApiError> {
    let mut keys = Vec::new();
    let mut pieces = pieces(ctx, head, indexes);
    while let Some(items) = pieces.try_next().await? {
        let fit = items.iter().filter(|item| filters.fits(item));
        keys.extend(fit.map(|item| (measure(sort, item), item.index)));
    }
    Ok(keys)
}

/// The items of a page as clients see them: as many of them whole as fit into an answer.
async fn shown(
    ctx: &Context,
    head: &RunHead,
    manifest: &Manifest,
    items: Vec<Item>,
) -> Result<Entries, ApiError> {
    let mut page = Entries::of_items();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let open = page.is_open();
        let some: Vec<Item> = items.by_ref().take(READS).collect();
        let read = some.into_iter().map(|item| async move {
            if open {
                Ok::<_, ApiError>(json!(view(ctx, head, manifest, item, Part::Whole).await?))
            } else {
                brief(ctx, head, manifest, item).await
            }
        });
        for view in try_join_all(read).await? {
            page.push(view);
        }
    }
    Ok(page)
}

/// An item as clients see it who read it alone.
async fn whole(ctx: &Context, head: &RunHead, manifest: &Manifest, item: Item) -> Result<Value, ApiError> {
    Ok(bounded::item(json!(
        view(ctx, head, manifest, item, Part::Whole).await?
    )))
}

/// An item of which the bulky parts are not read, with a placeholder for each of them.
async fn brief(ctx: &Context, head: &RunHead, manifest: &Manifest, item: Item) -> Result<Value, ApiError> {
    let (hooked, failed) = (item.is_told(), item.state == State::Failed);
    let mut view = json!(view(ctx, head, manifest, item, Part::Results).await?);
    if let Some(item) = view.as_object_mut() {
        for name in ["costs"]
            .into_iter()
            .chain(failed.then_some("improvementSuggestions"))
        {
            item.insert(name.to_owned(), Value::Null);
        }
    }
    if let Some(metadata) = view.get_mut("metadata").and_then(Value::as_object_mut) {
        let target = head.target_type.as_str();
        let taken = bounded::SNAPSHOTS
            .into_iter()
            .filter(|name| *name == target || !["assistant", "squad"].contains(name));
        for name in taken.chain(hooked.then_some("hooks")) {
            metadata.insert(name.to_owned(), Value::Null);
        }
    }
    Ok(view)
}

fn object(value: Value) -> Option<Object> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// What is read of an item, beside its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    /// Only its results.
    Results,
}

/// An item as clients see it, with the parts of it that are to be read.
async fn view(
    ctx: &Context,
    head: &RunHead,
    manifest: &Manifest,
    item: Item,
    part: Part,
) -> Result<SimulationRunItem, ApiError> {
    let corrupt = |error: serde_json::Error| ApiError::internal(&error);
    let reference = manifest
        .refs
        .get(item.simulation as usize)
        .ok_or_else(|| ApiError::internal(&std::io::Error::other("an item without its simulation")))?;
    let briefing = match part {
        Part::Whole => Some(ctx.briefing(head.id, item.simulation).await?),
        Part::Results => None,
    };
    let id = item.id();
    let started = item.started_at();
    let origin = match &briefing {
        Some(briefing) => briefing.origin,
        None if head.origin.is_some() => ctx.store.basis(head.id, item.simulation).await?.origin(),
        None => None,
    };
    let elsewhere = origin.and_then(|origin| origin.conversation);
    // What failed before it began may have suggestions.
    let produced = started.is_some()
        || item.call_id().is_some()
        || item.state == State::Failed
        || (item.is_told() && item.is_over())
        || elsewhere.is_some();
    let detail = match part {
        Part::Whole if produced => ctx.store.item_detail(id).await?,
        Part::Results if item.is_over() => ItemDetail {
            result: ctx.store.item_result(id).await?,
            ..ItemDetail::default()
        },
        _ => ItemDetail::default(),
    };
    // The conversation of an item that is only judged is another one's.
    let other = match (elsewhere, part) {
        (Some(at), Part::Whole) => Some(ctx.store.conversation(at).await?),
        (Some(at), Part::Results) => {
            let held = ctx.store.item(at).await?;
            held.map(|held| (held, ItemDetail::default()))
        }
        (None, _) => None,
    };
    let (held, kept) = other
        .as_ref()
        .map_or((&item, &detail), |(held, kept)| (held, kept));
    let record = CallRecord::of(held, kept)?;
    let outputs = kept
        .outputs
        .iter()
        .map(|(id, found)| Ok((id.clone(), serde_json::from_str(found).map_err(corrupt)?)))
        .collect::<Result<Object, ApiError>>()?;
    let call = held.started_at().map(|_| {
        let mut extra = Map::new();
        if let Some(id) = held.call_id() {
            extra.insert("providerCallId".to_owned(), json!(id));
        }
        if let Some(cost) = &held.facts.cost {
            extra.insert("cost".to_owned(), json!(costs::dollars(cost.value)));
        }
        if let Some(ended) = held.ended() {
            extra.insert("endedReason".to_owned(), json!(ended.reason));
            extra.insert("endedAt".to_owned(), json!(iso(ended.at)));
        }
        if let Some(detail) = record.detail {
            extra.insert("providerDetail".to_owned(), detail);
        }
        if !outputs.is_empty() {
            extra.insert("structuredOutputs".to_owned(), Value::Object(outputs));
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
    let call_cost = item.facts.cost.as_ref().map(|cost| cost.value);
    let models = match part {
        Part::Whole => {
            let uses = costs::kept(&detail)?;
            extra.insert("costs".to_owned(), json!(costs::lines(&uses, call_cost)));
            // The head also has what was told late.
            ModelCosts::of(&uses).join(&item.model_costs)
        }
        // The head has their sum.
        Part::Results => item.model_costs.clone(),
    };
    let cost = models.cost.saturating_add(call_cost.unwrap_or_default());
    extra.insert("cost".to_owned(), json!(costs::dollars(cost)));
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
    let mut metadata = Map::new();
    if let Some(origin) = origin {
        let from = origin.item;
        let shown = ItemOrigin {
            run_id: from.run.to_string(),
            item_id: ids::item_id(from.run, from.index).to_string(),
        };
        metadata.insert("origin".to_owned(), json!(shown));
    }
    let snapshot = briefing.as_ref().map(|briefing| &briefing.snapshot);
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
        call_id: held.shown_call_id().map(|id| id.to_string()),
        created_at: iso(head.created_at),
        updated_at: iso(item.updated_at),
        run_id: Some(head.id.to_string()),
        hooks: snapshot
            .and_then(|snapshot| snapshot.scenario.get("hooks"))
            .filter(|hooks| !hooks.is_null() && elsewhere.is_none())
            .map(|hooks| serde_json::from_value(hooks.clone()))
            .transpose()
            .map_err(corrupt)?,
        iteration_number: item.iteration.into(),
        session_id: held
            .started_at()
            .filter(|_| held.call.is_none())
            .map(|_| ids::session_id(held.id()).to_string()),
        scenario_id: reference.scenario_id.map(|id| id.to_string()),
        personality_id: reference.personality_id.map(|id| id.to_string()),
        metadata: Some(SimulationRunItemMetadata {
            assistant: briefing
                .as_ref()
                .and_then(|briefing| object(briefing.target.get("assistant")?.clone())),
            squad: briefing
                .as_ref()
                .and_then(|briefing| object(briefing.target.get("squad")?.clone())),
            scenario: snapshot.and_then(|snapshot| object(snapshot.scenario.clone())),
            personality: snapshot.and_then(|snapshot| object(snapshot.personality.clone())),
            simulation: snapshot.and_then(|snapshot| object(snapshot.simulation.clone())),
            call,
            hooks: briefing.as_ref().and_then(|briefing| {
                let listeners = &manifest.notify.listeners;
                hooks::report(&detail.hooks, &briefing.snapshot, &briefing.target, listeners)
            }),
            extra: metadata,
        }),
        results,
        improvement_suggestions: detail
            .improvements
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .map_err(corrupt)?,
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
