//! Runs: create, read, list, cancel.

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::{Deadline, iso},
    context::Context,
    costs, ids,
    lifecycle::Tally,
    models::{
        parse,
        run::{
            CreateSimulationRun, CreateSimulationRunResponse, RunStatus, SimulationEntry, SimulationRun,
            SimulationRunEntry, SimulationRunItemCounts, SimulationRunListItem, SimulationRunListSource,
            SimulationRunListSummary, SimulationRunSourceType, SimulationRunTarget, Transport,
            TransportProvider,
        },
    },
    progress,
    store::{Created, Kind, ListQuery, Manifest, NewRun, RunHead, RunState, SimulationRef, Snapshot},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    definitions::{self, Named},
    filters, hook_secrets,
    http::{ApiError, Request, Response},
    lists::ListRequest,
    orgs,
};

/// The most items that one run may have.
const MAX_ITEMS: usize = 100_000;
/// How many runs are read at once for a list.
const READS: usize = 16;
/// How long a request works on a run before it leaves the rest to others.
const REQUEST_BUDGET: std::time::Duration = std::time::Duration::from_secs(5);

/// Creates a run.
pub(crate) async fn create(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let mut wanted: CreateSimulationRun = parse(request.json()?)?;
    let iterations = u32::try_from(wanted.iterations)
        .ok()
        .filter(|n| (1..=ctx.config.max_iterations).contains(n))
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "iterations must be between 1 and {}",
                ctx.config.max_iterations
            ))
        })?;
    let provider = wanted
        .transport
        .as_ref()
        .map_or(TransportProvider::Websocket, |transport| transport.provider);
    let cap = wanted
        .concurrency_limit
        .map(|limit| u32::try_from(limit).ok().filter(|&limit| limit > 0))
        .map(|limit| {
            limit.ok_or_else(|| ApiError::bad_request("concurrencyLimit must be a whole number from 1 on"))
        })
        .transpose()?;
    let now = ctx.clock.now_ms();
    let id = ids::new_id(now);
    let (target, target_id) = resolve_target(ctx, org, &wanted.target).await?;
    let endpoint = if provider == TransportProvider::Websocket {
        let named = wanted
            .transport
            .as_ref()
            .and_then(|transport| transport.extra.get("endpointId"))
            .filter(|named| !named.is_null())
            .map(|named| {
                named
                    .as_str()
                    .ok_or_else(|| ApiError::bad_request("transport.endpointId must be an id"))
            })
            .transpose()?;
        Some(endpoint_for(ctx, org, named).await?)
    } else {
        None
    };
    let suites = load_suites(ctx, org, &mut wanted.simulations).await?;
    let most = MAX_ITEMS / iterations as usize;
    let (refs, snapshots) = resolve_simulations(ctx, org, &wanted.simulations, &suites, most, now).await?;
    let manifest = Manifest {
        simulations: json!(wanted.simulations),
        target: json!(wanted.target),
        refs,
    };
    if snapshots.iter().any(Snapshot::has_hooks) {
        // Nothing is sent unsigned: the secret is there before the first hook is owed.
        hook_secrets::first(ctx, org).await?;
    }
    let idempotency = request.idempotency_key.as_ref().map(|key| {
        (
            ids::sha256_hex(format!("run:{key}").as_bytes()),
            ids::sha256_hex(&request.body),
        )
    });
    let new = NewRun {
        id,
        org,
        iterations,
        transport: provider.as_str().to_owned(),
        endpoint,
        cap,
        target_type: "assistant".to_owned(),
        target_id,
        manifest,
        target,
        snapshots,
        idempotency,
    };
    let (head, manifest) = match start(ctx, &new, now).await? {
        Created::New(head) => (*head, new.manifest),
        Created::Before(run) => {
            let head = ctx
                .store
                .run(org, run)
                .await?
                .ok_or_else(|| ApiError::not_found("Run", &run.to_string()))?;
            (head, ctx.store.manifest(run).await?)
        }
        Created::OtherRequest => {
            return Err(ApiError::new(
                409,
                "this Idempotency-Key was used for another request; use a new one",
            ));
        }
    };
    Response::created(created(ctx, head, &manifest)?)
}

/// Creates a run at `now` (milliseconds since the Unix epoch), unless the organization has spent its billing limit. What the same
/// request created before is answered as before, whatever was spent since.
pub(crate) async fn start(ctx: &Context, new: &NewRun, now: i64) -> Result<Created, ApiError> {
    if let Err(refused) = orgs::check_billing_limit(ctx, new.org, now).await {
        return ctx.store.created_earlier(new, now).await?.ok_or(refused);
    }
    Ok(ctx.store.create_run(new, now).await?)
}

/// The endpoint that carries a run's calls: the one that its transport names, or the org's first.
async fn endpoint_for(ctx: &Context, org: Uuid, named: Option<&str>) -> Result<Uuid, ApiError> {
    if let Some(id) = named {
        return Ok(definitions::found(ctx, org, Kind::Endpoint, id).await?.id);
    }
    let oldest = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: false,
        after: None,
        limit: 1,
    };
    let listed = ctx.store.list_definitions(org, Kind::Endpoint, &oldest).await?;
    listed.entries.first().map(|endpoint| endpoint.id).ok_or_else(|| {
        ApiError::bad_request(
            "transport.provider vapi.websocket needs a voice provider and there is none; create one with POST \
             /endpoint, or use vapi.webchat",
        )
    })
}

/// The answer to the request that created a run: the same whenever it is asked for.
fn created(
    ctx: &Context,
    head: RunHead,
    manifest: &Manifest,
) -> Result<CreateSimulationRunResponse, ApiError> {
    let as_created = RunHead {
        state: RunState::Queued,
        started_at: None,
        ended_at: None,
        canceled_at: None,
        counts: None,
        updated_at: head.created_at,
        ..head
    };
    let tally = Tally {
        total: as_created.total,
        queued: as_created.total,
        ..Tally::default()
    };
    Ok(CreateSimulationRunResponse {
        simulation_run_item_ids: (0..as_created.total)
            .map(|n| ids::item_id(as_created.id, n).to_string())
            .collect(),
        message: None,
        url: format!("{}/eval/simulation/run/{}", ctx.config.public_url, as_created.id),
        run: view(&as_created, manifest, &tally)?,
    })
}

async fn resolve_target(
    ctx: &Context,
    org: Uuid,
    target: &SimulationRunTarget,
) -> Result<(Value, Option<Uuid>), ApiError> {
    let SimulationRunTarget::Assistant(target) = target else {
        return Err(ApiError::bad_request(
            "target.type squad is not supported yet; use assistant",
        ));
    };
    if let Some(assistant) = &target.assistant {
        return Ok((json!({ "assistant": assistant }), None));
    }
    let id = target.assistant_id.as_deref().unwrap_or_default();
    let stored = definitions::found(ctx, org, Kind::Assistant, id).await?;
    Ok((json!({ "assistant": stored.body }), Some(stored.id)))
}

/// One simulation of a run as its entry describes it.
struct Entry<'a> {
    simulation: Option<(Uuid, &'a Value)>,
    scenario: (Option<Uuid>, Value),
    personality: (Option<Uuid>, Value),
    name: Option<String>,
}

/// Reads the suites that a run's entries name, and writes the names that they have now into the entries.
async fn load_suites(
    ctx: &Context,
    org: Uuid,
    entries: &mut [SimulationRunEntry],
) -> Result<Named, ApiError> {
    let mut ids = Vec::new();
    for entry in entries.iter() {
        if let SimulationRunEntry::SimulationSuite(entry) = entry {
            ids.extend(entry.suite().map(str::to_owned));
        }
    }
    let mut suites = Named::default();
    suites
        .load(ctx, org, Kind::Suite, ids.iter().map(String::as_str))
        .await?;
    for entry in entries {
        if let SimulationRunEntry::SimulationSuite(entry) = entry {
            let (_, suite) = suites.get(Kind::Suite, entry.suite().unwrap_or_default())?;
            entry.name = suite.get("name").and_then(Value::as_str).map(str::to_owned);
        }
    }
    Ok(suites)
}

/// What a run's entries come to: at most `most` simulations, in order, with those of a suite in its place.
async fn resolve_simulations(
    ctx: &Context,
    org: Uuid,
    entries: &[SimulationRunEntry],
    suites: &Named,
    most: usize,
    now: i64,
) -> Result<(Vec<SimulationRef>, Vec<Snapshot>), ApiError> {
    // Each is a stored simulation's id, if it is one, and the entry; of a suite's simulations the entry says nothing.
    let nothing = SimulationEntry::default();
    let mut wanted: Vec<(Option<&str>, &SimulationEntry)> = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            SimulationRunEntry::Simulation(entry) => {
                wanted.push((entry.simulation_id.as_deref(), entry.as_ref()));
            }
            SimulationRunEntry::SimulationSuite(entry) => {
                let (_, suite) = suites.get(Kind::Suite, entry.suite().unwrap_or_default())?;
                let ids = definitions::texts(suite.get("simulationIds"));
                wanted.extend(ids.map(|id| (Some(id), &nothing)));
            }
        }
        // At each entry: a short request may name a long suite very often.
        if wanted.len() > most {
            return Err(ApiError::bad_request(format!(
                "a run may have at most {MAX_ITEMS} items"
            )));
        }
    }
    if wanted.is_empty() {
        return Err(ApiError::bad_request(
            "there are no simulations in what simulations names; add one to the suite before you run it",
        ));
    }
    let mut named = Named::default();
    let ids: Vec<&str> = wanted.iter().filter_map(|(id, _)| *id).collect();
    named.load(ctx, org, Kind::Simulation, ids).await?;
    let mut simulations = Vec::with_capacity(wanted.len());
    for (id, _) in &wanted {
        simulations.push(id.map(|id| named.get(Kind::Simulation, id)).transpose()?);
    }
    let of = |field: &'static str| {
        let stored = simulations
            .iter()
            .flatten()
            .filter_map(move |(_, body)| body.get(field).and_then(Value::as_str));
        stored.map(str::to_owned).collect::<Vec<_>>()
    };
    let (scenario_ids, personality_ids) = (of("scenarioId"), of("personalityId"));
    let mut parts = Named::default();
    let direct =
        |id: fn(&SimulationEntry) -> Option<&str>| wanted.iter().filter_map(move |(_, entry)| id(entry));
    let scenarios = scenario_ids
        .iter()
        .map(String::as_str)
        .chain(direct(|e| e.scenario_id.as_deref()));
    parts.load(ctx, org, Kind::Scenario, scenarios).await?;
    let personalities = personality_ids
        .iter()
        .map(String::as_str)
        .chain(direct(|e| e.personality_id.as_deref()));
    parts.load(ctx, org, Kind::Personality, personalities).await?;
    let mut resolved = Vec::with_capacity(wanted.len());
    for ((_, entry), simulation) in wanted.iter().zip(simulations) {
        resolved.push(resolve_entry(entry, simulation, &parts)?);
    }
    let mut outputs = Named::default();
    let output_ids: Vec<String> = resolved
        .iter()
        .flat_map(|entry| output_ids(&entry.scenario.1))
        .collect();
    outputs
        .load(
            ctx,
            org,
            Kind::StructuredOutput,
            output_ids.iter().map(String::as_str),
        )
        .await?;
    let (mut refs, mut snapshots) = (
        Vec::with_capacity(resolved.len()),
        Vec::with_capacity(resolved.len()),
    );
    for entry in resolved {
        let (reference, snapshot) = snapshot(entry, &outputs, now)?;
        refs.push(reference);
        snapshots.push(snapshot);
    }
    Ok((refs, snapshots))
}

fn resolve_entry<'a>(
    entry: &SimulationEntry,
    simulation: Option<(Uuid, &'a Value)>,
    named: &Named,
) -> Result<Entry<'a>, ApiError> {
    let stored = |kind, id: &str| named.get(kind, id).map(|(id, body)| (Some(id), body.clone()));
    // A simulation's id wins over everything else in the entry.
    let field = |name: &str| {
        simulation
            .and_then(|(_, body)| body.get(name))
            .and_then(Value::as_str)
    };
    let scenario = match (
        field("scenarioId").or(entry.scenario_id.as_deref()),
        &entry.scenario,
    ) {
        (Some(id), _) => stored(Kind::Scenario, id)?,
        (None, Some(inline)) => (None, json!(inline)),
        (None, None) => {
            return Err(ApiError::bad_request(
                "each simulation needs a scenarioId or a scenario",
            ));
        }
    };
    let personality = match (
        field("personalityId").or(entry.personality_id.as_deref()),
        &entry.personality,
    ) {
        (Some(id), _) => stored(Kind::Personality, id)?,
        (None, Some(inline)) => (None, json!(inline)),
        (None, None) => {
            return Err(ApiError::bad_request(
                "each simulation needs a personalityId or a personality",
            ));
        }
    };
    Ok(Entry {
        simulation,
        scenario,
        personality,
        name: entry.name.clone(),
    })
}

/// The ids of the structured outputs that a scenario's evaluations name.
fn output_ids(scenario: &Value) -> Vec<String> {
    let evaluations = scenario.get("evaluations").and_then(Value::as_array);
    evaluations
        .into_iter()
        .flatten()
        .filter_map(|evaluation| {
            evaluation
                .get("structuredOutputId")
                .and_then(Value::as_str)
                .map(str::to_owned)
        })
        .collect()
}

fn snapshot(entry: Entry<'_>, outputs: &Named, now: i64) -> Result<(SimulationRef, Snapshot), ApiError> {
    let (scenario_id, scenario) = entry.scenario;
    let (personality_id, personality) = entry.personality;
    let name_of = |value: &Value| {
        value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    if scenario
        .get("evaluations")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        return Err(ApiError::bad_request(format!(
            "scenario '{}' has no evaluations; add at least one before you run it",
            name_of(&scenario)
        )));
    }
    let mut kept = Map::new();
    for id in output_ids(&scenario) {
        let (_, output) = outputs.get(Kind::StructuredOutput, &id)?;
        kept.insert(id, output.clone());
    }
    let simulation_id = entry.simulation.map_or_else(|| ids::new_id(now), |(id, _)| id);
    let mut simulation = entry
        .simulation
        .and_then(|(_, body)| body.as_object().cloned())
        .unwrap_or_default();
    simulation.entry("id").or_insert_with(|| json!(simulation_id));
    for (field, id) in [("scenarioId", scenario_id), ("personalityId", personality_id)] {
        if let Some(id) = id {
            simulation.entry(field).or_insert_with(|| json!(id));
        }
    }
    if simulation.get("name").is_none_or(Value::is_null) {
        let name = entry
            .name
            .unwrap_or_else(|| format!("{} / {}", name_of(&scenario), name_of(&personality)));
        simulation.insert("name".to_owned(), json!(name));
    }
    let reference = SimulationRef {
        simulation_id,
        scenario_id,
        personality_id,
    };
    Ok((
        reference,
        Snapshot {
            scenario,
            personality,
            simulation: Value::Object(simulation),
            outputs: kept,
        },
    ))
}

/// Reads the run that a client names.
pub(crate) async fn found(ctx: &Context, org: Uuid, id: &str) -> Result<RunHead, ApiError> {
    let missing = || ApiError::not_found("Run", id);
    let uuid = Uuid::try_parse(id).map_err(|_| missing())?;
    ctx.store.run(org, uuid).await?.ok_or_else(missing)
}

fn counts(head: &RunHead, manifest: &Manifest, tally: &Tally) -> SimulationRunItemCounts {
    let mut all: Vec<Uuid> = manifest
        .refs
        .iter()
        .map(|reference| reference.simulation_id)
        .collect();
    let mut failed: Vec<Uuid> = tally
        .failed_simulations
        .iter()
        .filter_map(|&n| all.get(n as usize).copied())
        .collect();
    for ids in [&mut all, &mut failed] {
        ids.sort_unstable();
        ids.dedup();
    }
    SimulationRunItemCounts {
        total: head.total.into(),
        passed: tally.passed.into(),
        failed: tally.failed.into(),
        running: tally.running.into(),
        queued: tally.queued.into(),
        canceled: tally.canceled.into(),
        distinct_simulation_total: i64::try_from(all.len()).ok(),
        distinct_simulation_failed: i64::try_from(failed.len()).ok(),
        ..SimulationRunItemCounts::default()
    }
}

/// What Ringback says of a run beside what others do.
fn extra(head: &RunHead, tally: &Tally) -> Map<String, Value> {
    let mut extra = Map::new();
    if let Some(cap) = head.cap {
        extra.insert("concurrencyLimit".to_owned(), json!(cap));
    }
    extra.insert("cost".to_owned(), json!(costs::dollars(tally.costs.cost)));
    if !tally.costs.unknown.is_empty() {
        extra.insert("costsUnknown".to_owned(), json!(tally.costs.unknown));
    }
    extra
}

/// A run as clients see it.
fn view(head: &RunHead, manifest: &Manifest, tally: &Tally) -> Result<SimulationRun, ApiError> {
    let stored = |error: serde_json::Error| ApiError::internal(&error);
    let provider = serde_json::from_value(json!(head.transport)).map_err(stored)?;
    Ok(SimulationRun {
        id: head.id.to_string(),
        org_id: head.org.to_string(),
        status: match head.state {
            // The counts are written a moment before the head.
            RunState::Queued if tally.is_under_way() => RunStatus::Running,
            RunState::Queued => RunStatus::Queued,
            RunState::Running => RunStatus::Running,
            RunState::Ended => RunStatus::Ended,
        },
        queued_at: iso(head.created_at),
        started_at: head.started_at.map(iso),
        ended_at: head.ended_at.map(iso),
        ended_reason: head.ended_at.map(|_| {
            if head.canceled_at.is_some() {
                "canceled".to_owned()
            } else {
                "completed".to_owned()
            }
        }),
        created_at: iso(head.created_at),
        updated_at: iso(head.updated_at),
        item_counts: Some(counts(head, manifest, tally)),
        simulations: serde_json::from_value(manifest.simulations.clone()).map_err(stored)?,
        target: serde_json::from_value(manifest.target.clone()).map_err(stored)?,
        iterations: head.iterations.into(),
        transport: Some(Transport {
            provider,
            extra: head
                .endpoint
                .map(|endpoint| ("endpointId".to_owned(), json!(endpoint)))
                .into_iter()
                .collect(),
        }),
        extra: extra(head, tally),
    })
}

/// A run as it is now.
pub(crate) async fn current(ctx: &Context, head: &RunHead) -> Result<SimulationRun, ApiError> {
    shown(ctx, head, &ctx.store.manifest(head.id).await?).await
}

async fn shown(ctx: &Context, head: &RunHead, manifest: &Manifest) -> Result<SimulationRun, ApiError> {
    let tally = match &head.counts {
        Some(counts) => counts.clone(),
        None => ctx.store.tally(head.id, head.total).await?,
    };
    view(head, manifest, &tally)
}

/// What a list shows of a run: what it played and against whom.
async fn summary(
    ctx: &Context,
    head: &RunHead,
    run: &SimulationRun,
    refs: &[SimulationRef],
) -> Result<SimulationRunListSummary, ApiError> {
    // What came inline got its id when the run was created, and is stored nowhere.
    let made_for_the_run = ids::floor_id(head.created_at);
    let mut stored: Vec<Uuid> = refs
        .iter()
        .map(|reference| reference.simulation_id)
        .filter(|id| *id < made_for_the_run)
        .collect();
    stored.sort_unstable();
    stored.dedup();
    let briefing = ctx.briefing(head.id, 0).await?;
    let name_of = |value: Option<&Value>| {
        value
            .and_then(|value| value.get("name")?.as_str())
            .map(str::to_owned)
    };
    let first = name_of(Some(&briefing.snapshot.simulation)).unwrap_or_default();
    let named = |kind, id: Option<&str>| Some((kind, Uuid::try_parse(id?).ok()?));
    let source = match run.simulations.as_slice() {
        [SimulationRunEntry::SimulationSuite(entry)] => {
            named(Kind::Suite, entry.suite()).map(|source| (source, entry.name.clone().unwrap_or_default()))
        }
        [SimulationRunEntry::Simulation(entry)] => {
            named(Kind::Simulation, entry.simulation_id.as_deref()).map(|source| (source, first.clone()))
        }
        _ => None,
    };
    let (kind, id, name, linkable) = match source {
        Some(((kind, id), name)) => (
            match kind {
                Kind::Suite => SimulationRunSourceType::Suite,
                _ => SimulationRunSourceType::Simulation,
            },
            Some(id.to_string()),
            name,
            ctx.store.definition(head.org, kind, id).await?.is_some(),
        ),
        None => {
            let name = match refs.len() {
                1 => first,
                count => format!("{count} simulations"),
            };
            (SimulationRunSourceType::AdHoc, None, name, false)
        }
    };
    Ok(SimulationRunListSummary {
        source: SimulationRunListSource {
            kind,
            id,
            name,
            linkable,
            simulation_ids: stored.iter().map(ToString::to_string).collect(),
            extra: Map::new(),
        },
        target_snapshot_name: name_of(briefing.target.get("assistant")),
        simulation_count: i64::try_from(refs.len()).unwrap_or(i64::MAX),
        extra: Map::new(),
    })
}

/// Lists runs.
pub(crate) async fn list(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let wanted = ListRequest::parse(&request.query)?;
    let (listed, total) = filters::runs(ctx, org, &wanted, &request.query).await?;
    // A page shows more of each run than the bare list does.
    let paged = wanted.is_paged();
    let results: Vec<Value> = stream::iter(listed.entries.clone())
        .map(|head| async move {
            let manifest = ctx.store.manifest(head.id).await?;
            let run = shown(ctx, &head, &manifest).await?;
            if !paged {
                return Ok::<_, ApiError>(json!(run));
            }
            let summary = summary(ctx, &head, &run, &manifest.refs).await?;
            Ok(json!(SimulationRunListItem { run, summary }))
        })
        .buffered(READS)
        .try_collect()
        .await?;
    wanted.answer(
        results,
        total,
        listed.more,
        listed.entries.last().map(|head| head.id),
    )
}

/// Stops a run: what has not ended is canceled.
pub(crate) async fn cancel(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let head = found(ctx, org, id).await?;
    let now = ctx.clock.now_ms();
    let head = ctx
        .store
        .change_run(head, now, |head| {
            let open = head.state != RunState::Ended && head.canceled_at.is_none();
            if open {
                head.canceled_at = Some(now);
            }
            open
        })
        .await?;
    if head.state == RunState::Ended {
        return Err(ApiError::bad_request("Run has already ended"));
    }
    // The decision is kept; carrying it out here only makes it quicker, and what fails here is owed and done later.
    let head = match progress::advance(ctx, head.clone(), Deadline::after(REQUEST_BUDGET)).await {
        Ok(advanced) => advanced,
        Err(error) => {
            tracing::warn!(run = %head.id, %error, "the cancellation goes on later");
            head
        }
    };
    Response::ok(current(ctx, &head).await?)
}

/// Makes sure that the item with `index` is stored.
pub(crate) async fn ensure_item(ctx: &Context, head: RunHead, index: u32) -> Result<RunHead, ApiError> {
    Ok(progress::expand_until(ctx, head, index, Deadline::after(REQUEST_BUDGET)).await?)
}
