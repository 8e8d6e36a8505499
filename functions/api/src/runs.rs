//! Runs: create, read, list, cancel. Those that come from another run are in [`crate::reruns`].

use std::collections::HashSet;

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::{Deadline, iso},
    context::{BoxError, Context},
    costs, ids,
    lifecycle::{HookEvent, Tally},
    listeners::{Listener, Outcome},
    models::{
        Object,
        assistant::{CreateAssistant, CreateSquad},
        parse,
        run::{
            CreateSimulationRun, CreateSimulationRunResponse, RunStatus, SimulationEntry, SimulationRun,
            SimulationRunEntry, SimulationRunItemCounts, SimulationRunListItem, SimulationRunListSource,
            SimulationRunListSummary, SimulationRunSourceType, SimulationRunTarget, Transport,
        },
        schedule::NotifyOn,
        trials,
    },
    notices, progress,
    results::Report,
    store::{
        Created, HookKey, Kind, Manifest, NewRun, Receivers, RunHead, RunKey, RunKind, RunOrigin, RunState,
        SimulationRef, Snapshot,
    },
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    bounded::{self, Entries},
    definitions::{self, Named},
    filters, hook_secrets,
    http::{ApiError, Request, Response},
    idempotency,
    lists::ListRequest,
    orgs, schedules,
    scoring::{self, Material},
    ways::Way,
};

/// The most items that one run may have.
const MAX_ITEMS: usize = 100_000;
/// The most that the snapshots of a run may weigh together, in bytes of JSON: they are made in the request.
const MAX_SNAPSHOTS: usize = 50_000_000;
/// The most Slack webhooks that are told of a run because its suites name them.
const MAX_TOLD: usize = 50;
/// How many runs are read at once for a list.
const READS: usize = 16;
/// How long a request works on a run before it leaves the rest to others.
const REQUEST_BUDGET: std::time::Duration = std::time::Duration::from_secs(5);

/// Creates a run.
pub(crate) async fn create(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let idempotency = idempotency::of(request)?;
    let wanted: CreateSimulationRun = parse(without_ignored(request.json()?))?;
    check(ctx, &wanted)?;
    let now = ctx.clock.now_ms();
    if let Some(answer) = repeated(ctx, org, idempotency.as_ref(), now).await? {
        return Ok(answer);
    }
    let new = NewRun {
        idempotency,
        trace: request.trace,
        ..prepare(ctx, org, wanted, now).await?
    };
    start(ctx, new, now).await
}

/// How often a run plays each simulation, and how many of its items may be under way at a time if it says.
fn check(ctx: &Context, wanted: &CreateSimulationRun) -> Result<(u32, Option<u32>), ApiError> {
    let iterations = u32::try_from(wanted.iterations)
        .ok()
        .filter(|n| (1..=ctx.config.max_iterations).contains(n))
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "iterations must be between 1 and {}",
                ctx.config.max_iterations
            ))
        })?;
    Ok((iterations, cap(wanted.concurrency_limit)?))
}

/// Resolves all that a run names as it is at `now` (milliseconds since the Unix epoch). Nothing is written.
pub(crate) async fn prepare(
    ctx: &Context,
    org: Uuid,
    mut wanted: CreateSimulationRun,
    now: i64,
) -> Result<NewRun, ApiError> {
    let (iterations, cap) = check(ctx, &wanted)?;
    let way = Way::to(ctx, org, &wanted.target, wanted.transport.as_ref()).await?;
    let suites = load_suites(ctx, org, &mut wanted.simulations).await?;
    let most = MAX_ITEMS / iterations as usize;
    let (refs, snapshots) = resolve_simulations(ctx, org, &wanted.simulations, &suites, most, now).await?;
    way.check(&snapshots)?;
    let notify = match &wanted.notify {
        Some(notify) if notify.on == NotifyOn::Never => Receivers::default(),
        _ => Receivers {
            suites: slack_webhooks(&wanted.simulations, &suites)?,
            asked: wanted.notify,
            listeners: Vec::new(),
        },
    };
    Ok(NewRun {
        id: ids::new_id(now),
        org,
        kind: RunKind::Simulation,
        iterations,
        transport: way.provider.as_str().to_owned(),
        endpoint: way.endpoint,
        cap,
        target_type: wanted.target.target_type().to_string(),
        target_id: way.target_id,
        manifest: Manifest {
            simulations: json!(wanted.simulations),
            target: json!(wanted.target),
            refs,
            notify,
            label: label_of(&wanted.extra),
        },
        target: way.target,
        snapshots,
        origin: None,
        idempotency: None,
        firing: None,
        trace: None,
    })
}

/// What a request in another API's words says of its run, under `label`.
fn label_of(extra: &Object) -> Object {
    let label = extra.get("label").and_then(Value::as_object);
    label.cloned().unwrap_or_default()
}

/// The Slack webhooks of the suites that entries name, each once.
fn slack_webhooks(entries: &[SimulationRunEntry], suites: &Named) -> Result<Vec<String>, ApiError> {
    let mut urls = Vec::new();
    for entry in entries {
        if let SimulationRunEntry::SimulationSuite(entry) = entry {
            let (_, suite) = suites.get(Kind::Suite, entry.suite().unwrap_or_default())?;
            let url = suite.get("slackWebhookUrl").and_then(Value::as_str);
            // One that is no URL is kept, too: that it could not be told there is said with the run.
            if let Some(url) = url.filter(|url| !url.is_empty() && !urls.iter().any(|known| known == url)) {
                urls.push(url.to_owned());
            }
        }
    }
    if urls.len() > MAX_TOLD {
        return Err(ApiError::bad_request(format!(
            "the suites of a run may have at most {MAX_TOLD} different slackWebhookUrls; play fewer suites in one run, or set \
             notify.on to never"
        )));
    }
    Ok(urls)
}

/// A request for a run without what a `simulationId` makes meaningless: it counts for nothing, whatever is in it.
pub(crate) fn without_ignored(mut body: Value) -> Value {
    let entries = body.get_mut("simulations").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
        if entry.get("simulationId").is_some_and(|id| !id.is_null()) {
            for ignored in ["scenarioId", "scenario", "personalityId", "personality"] {
                entry.remove(ignored);
            }
        }
    }
    body
}

/// Starts a run of simulations of which everything is resolved, and answers with it.
pub(crate) async fn start(ctx: &Context, new: NewRun, now: i64) -> Result<Response, ApiError> {
    let (head, manifest) = begin(ctx, new, now).await?;
    Response::created(bounded::run(json!(created(ctx, head, &manifest)?)))
}

/// Starts a run of which everything is resolved, unless the organization has spent its billing limit. Every new run passes here:
/// one that is asked for, a rerun, one that only judges, and one of evals. `now` is in milliseconds since the Unix epoch.
pub(crate) async fn begin(ctx: &Context, new: NewRun, now: i64) -> Result<(RunHead, Manifest), ApiError> {
    let admitted = match check_told(&new) {
        Ok(()) => admit(ctx, &new, now).await,
        refused => refused,
    };
    if let Err(refused) = admitted {
        // What the same request has started meanwhile is answered as ever.
        let before = begun(ctx, new.org, new.kind, new.idempotency.as_ref(), now).await?;
        return before.ok_or(refused);
    }
    match ctx.store.create_run(&new, now).await? {
        Created::New(head) => {
            log_created(&head);
            Ok((*head, new.manifest))
        }
        before => made_before(ctx, new.org, new.kind, before).await,
    }
}

/// Says in the log that a run was made: what follows has the same `runId`.
pub(crate) fn log_created(head: &RunHead) {
    tracing::info!(runId = %head.id, items = head.total, transport = head.transport, "run created");
}

/// Where somebody is to be told how a run came out, it is said who.
pub(crate) fn check_told(new: &NewRun) -> Result<(), ApiError> {
    if new.manifest.notify.names_nobody() {
        return Err(ApiError::bad_request(
            "notify names nobody: give slackWebhookUrl or server, or set notify.on to never",
        ));
    }
    Ok(())
}

/// Whether a run may start: the organization has not spent its billing limit, and whatever is told of the run can be signed.
pub(crate) async fn admit(ctx: &Context, new: &NewRun, now: i64) -> Result<(), ApiError> {
    orgs::check_billing_limit(ctx, new.org, now).await?;
    if new.snapshots.iter().any(Snapshot::has_hooks) || new.manifest.notify.tell() {
        // Nothing is sent unsigned: the secret is there before the first hook is owed.
        hook_secrets::first(ctx, new.org).await?;
    }
    Ok(())
}

/// The answer to a request with an idempotency key that was sent before. What the request names may have changed or gone since;
/// its run has not.
pub(crate) async fn repeated(
    ctx: &Context,
    org: Uuid,
    idempotency: Option<&(String, String)>,
    now: i64,
) -> Result<Option<Response>, ApiError> {
    match begun(ctx, org, RunKind::Simulation, idempotency, now).await? {
        Some((head, manifest)) => {
            let answer = bounded::run(json!(created(ctx, head, &manifest)?));
            Response::created(answer).map(Some)
        }
        None => Ok(None),
    }
}

/// The run that a request with this idempotency key made before.
pub(crate) async fn begun(
    ctx: &Context,
    org: Uuid,
    kind: RunKind,
    idempotency: Option<&(String, String)>,
    now: i64,
) -> Result<Option<(RunHead, Manifest)>, ApiError> {
    let Some(idempotency) = idempotency else {
        return Ok(None);
    };
    match ctx.store.created_with(org, idempotency, now).await? {
        Some(before) => made_before(ctx, org, kind, before).await.map(Some),
        None => Ok(None),
    }
}

/// The run that the same request made before.
pub(crate) async fn made_before(
    ctx: &Context,
    org: Uuid,
    kind: RunKind,
    before: Created,
) -> Result<(RunHead, Manifest), ApiError> {
    let head = match before {
        Created::New(head) => *head,
        Created::Before(run) => {
            let gone = || ApiError::not_found("Run", &run.to_string());
            let head = ctx.store.run(RunKey { org, kind, run }).await?;
            head.filter(|head| head.deleted_at.is_none()).ok_or_else(gone)?
        }
        Created::OtherRequest => return Err(idempotency::other_request()),
        Created::Overtaken => return Err(schedules::overtaken()),
    };
    let manifest = ctx.store.manifest(head.id).await?;
    Ok((head, manifest))
}

/// How many of a run's items may be under way at a time, if the request says so.
pub(crate) fn cap(limit: Option<i64>) -> Result<Option<u32>, ApiError> {
    let whole = |limit| u32::try_from(limit).ok().filter(|&limit| limit > 0);
    limit
        .map(|limit| {
            whole(limit)
                .ok_or_else(|| ApiError::bad_request("concurrencyLimit must be a whole number from 1 on"))
        })
        .transpose()
}

/// The answer to the request that created a run: the same whenever it is asked for.
pub(crate) fn created(
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
        url: as_created.url(&ctx.config.public_url),
        run: view(&as_created, manifest, &tally)?,
    })
}

pub(crate) async fn resolve_target(
    ctx: &Context,
    org: Uuid,
    target: &SimulationRunTarget,
) -> Result<(Value, Option<Uuid>), ApiError> {
    match target {
        SimulationRunTarget::Assistant(target) => {
            let id = target.assistant_id.as_deref();
            resolve_assistant(ctx, org, target.assistant.as_ref(), id).await
        }
        SimulationRunTarget::Squad(target) => {
            resolve_squad(ctx, org, target.squad.as_ref(), target.squad_id.as_deref()).await
        }
    }
}

/// The assistant that comes along, or the stored one with that id as it is now.
pub(crate) async fn resolve_assistant(
    ctx: &Context,
    org: Uuid,
    inline: Option<&CreateAssistant>,
    id: Option<&str>,
) -> Result<(Value, Option<Uuid>), ApiError> {
    if let Some(assistant) = inline {
        return Ok((json!({ "assistant": assistant }), None));
    }
    let id = id.unwrap_or_default();
    let stored = definitions::found(ctx, org, Kind::Assistant, id).await?;
    Ok((json!({ "assistant": stored.body }), Some(stored.id)))
}

/// The most that a squad may have with the assistants of its members, in bytes of JSON: every process that holds its
/// conversations keeps it in memory.
const MAX_SQUAD: usize = 5_000_000;

/// The squad with the assistants that its members are at this moment.
pub(crate) async fn resolve_squad(
    ctx: &Context,
    org: Uuid,
    inline: Option<&CreateSquad>,
    id: Option<&str>,
) -> Result<(Value, Option<Uuid>), ApiError> {
    let (mut squad, id) = match inline {
        Some(squad) => (squad.config.clone(), None),
        None => {
            let id = id.unwrap_or_default();
            let stored = definitions::found(ctx, org, Kind::Squad, id).await?;
            let squad = stored.body.as_object().cloned().unwrap_or_default();
            (squad, Some(stored.id))
        }
    };
    let assistants = definitions::load_members(ctx, org, &squad).await?;
    let members = squad.get_mut("members").and_then(Value::as_array_mut);
    let mut bytes = 0;
    for member in members.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(id) = member.get("assistantId").and_then(Value::as_str) {
            let (_, assistant) = assistants.get(Kind::Assistant, id)?;
            let assistant = assistant.clone();
            bytes += assistant.to_string().len();
            member.insert("assistant".to_owned(), assistant);
        }
        if bytes > MAX_SQUAD {
            return Err(ApiError::new(
                413,
                format!(
                    "the assistants of a squad may have at most {} MB",
                    MAX_SQUAD / 1_000_000
                ),
            ));
        }
    }
    Ok((json!({ "squad": squad }), id))
}

/// One simulation of a run as its entry describes it.
struct Entry<'a> {
    simulation: Option<(Uuid, &'a Value)>,
    scenario: (Option<Uuid>, Value),
    personality: (Option<Uuid>, Value),
    name: Option<String>,
    /// The test profile that it is played with.
    profile: Option<&'a str>,
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
            if entry.simulation_suite_id.is_none() {
                // Who reads the run need not know the older name.
                entry.simulation_suite_id.clone_from(&entry.suite_id);
            }
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
    let mut all = 0_usize;
    for ((_, entry), simulation) in wanted.iter().zip(simulations) {
        let entry = resolve_entry(entry, simulation, &parts)?;
        all = all.saturating_add(bounded::weight(&entry.scenario.1) + bounded::weight(&entry.personality.1));
        if all > MAX_SNAPSHOTS {
            return Err(ApiError::new(
                413,
                format!(
                    "the scenarios and personalities of a run may have at most {} MB together",
                    MAX_SNAPSHOTS / 1_000_000
                ),
            ));
        }
        resolved.push(entry);
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
    let profiles: Vec<&str> = resolved.iter().filter_map(|entry| entry.profile).collect();
    let scenarios = resolved.iter().map(|entry| &entry.scenario.1);
    let material = Material::load(ctx, org, scenarios, &profiles).await?;
    let (mut refs, mut snapshots) = (
        Vec::with_capacity(resolved.len()),
        Vec::with_capacity(resolved.len()),
    );
    for entry in resolved {
        let (reference, snapshot) = snapshot(entry, &outputs, &material, now)?;
        refs.push(reference);
        snapshots.push(snapshot);
    }
    Ok((refs, snapshots))
}

fn resolve_entry<'a>(
    entry: &'a SimulationEntry,
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
        profile: entry.extra.get("testProfileId").and_then(Value::as_str),
    })
}

/// The ids of the structured outputs that a scenario's evaluations name.
pub(crate) fn output_ids(scenario: &Value) -> Vec<String> {
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

fn snapshot(
    entry: Entry<'_>,
    outputs: &Named,
    material: &Material,
    now: i64,
) -> Result<(SimulationRef, Snapshot), ApiError> {
    let (scenario_id, mut scenario) = entry.scenario;
    let (personality_id, mut personality) = entry.personality;
    let name_of = |value: &Value| {
        value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    if !scoring::is_judged(&scenario) {
        return Err(ApiError::bad_request(format!(
            "scenario '{}' has no evaluations; add at least one before you run it",
            name_of(&scenario)
        )));
    }
    let metrics = material.complete(&mut scenario);
    let profile = entry
        .profile
        .map(|profile| material.play_with(&mut scenario, profile))
        .transpose()?;
    scoring::prepare_conversation(&mut scenario, &mut personality);
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
    if let Some(profile) = profile {
        simulation.insert("testProfile".to_owned(), profile);
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
            metrics,
            eval: Value::Null,
        },
    ))
}

/// Reads the run that a client names.
pub(crate) async fn found(ctx: &Context, org: Uuid, id: &str) -> Result<RunHead, ApiError> {
    let missing = || ApiError::not_found("Run", id);
    let uuid = Uuid::try_parse(id).map_err(|_| missing())?;
    let head = ctx.store.run(RunKey::simulation(org, uuid)).await?;
    head.filter(|head| head.deleted_at.is_none()).ok_or_else(missing)
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
        distinct_simulation_total: i64::try_from(all.len()).ok(),
        distinct_simulation_failed: i64::try_from(failed.len()).ok(),
        ..item_counts(head.total, tally)
    }
}

/// The items of a run by status.
pub(crate) fn item_counts(total: u32, tally: &Tally) -> SimulationRunItemCounts {
    SimulationRunItemCounts {
        total: total.into(),
        passed: tally.passed.into(),
        failed: tally.failed.into(),
        running: tally.running.into(),
        queued: tally.queued.into(),
        canceled: tally.canceled.into(),
        ..SimulationRunItemCounts::default()
    }
}

/// Where a run stands as clients see it, the same in every answer. Its items may be a moment ahead of it.
pub(crate) const fn status(head: &RunHead) -> RunStatus {
    match head.state {
        RunState::Queued => RunStatus::Queued,
        RunState::Running => RunStatus::Running,
        RunState::Ended => RunStatus::Ended,
    }
}

/// What Ringback says of a run beside what others do.
fn extra(head: &RunHead, tally: &Tally) -> Map<String, Value> {
    let mut extra = Map::new();
    if let Some(cap) = head.cap {
        extra.insert("concurrencyLimit".to_owned(), json!(cap));
    }
    if let Some(origin) = head.origin {
        extra.insert("origin".to_owned(), json!(shown_origin(origin)));
    }
    if let Some(scheduled) = head.schedule {
        let schedule = json!({ "id": scheduled.schedule, "scheduledFor": iso(scheduled.at) });
        extra.insert("schedule".to_owned(), schedule);
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
        status: status(head),
        queued_at: iso(head.created_at),
        started_at: head.started_at.map(iso),
        ended_at: head.ended_at.map(iso),
        ended_reason: head.ended_at.map(|_| head.ended_reason().to_owned()),
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

/// Where a run comes from, as clients see it.
pub(crate) fn shown_origin(origin: RunOrigin) -> trials::RunOrigin {
    trials::RunOrigin {
        kind: origin.kind,
        run_id: origin.run.to_string(),
    }
}

/// A run as it is now, and to whom its end was told.
pub(crate) async fn current(ctx: &Context, head: &RunHead) -> Result<SimulationRun, ApiError> {
    let manifest = ctx.store.manifest(head.id).await?;
    let mut run = shown(ctx, head, &manifest).await?;
    run.extra.extend(notices_of(ctx, head, &manifest).await?);
    Ok(run)
}

/// To whom the end of a run was told, as a field of it, if anybody wants to hear of it.
pub(crate) async fn notices_of(
    ctx: &Context,
    head: &RunHead,
    manifest: &Manifest,
) -> Result<Option<(String, Value)>, ApiError> {
    let receivers = &manifest.notify;
    let mut told = Vec::new();
    if receivers.listeners.iter().any(Listener::holds) {
        told.push(HookEvent::RunHeld);
    }
    if head.state == RunState::Ended && head.notify.is_some() {
        told.push(HookEvent::RunEnded);
    }
    if told.is_empty() {
        return Ok(None);
    }
    let mut notices = Vec::new();
    let mut any = false;
    for event in told {
        let Some(hook) = ctx.store.hook(&HookKey::of_run(head.id, event)).await? else {
            continue;
        };
        let outcome = match event {
            HookEvent::RunEnded if receivers.listeners.iter().any(Listener::hears_ends) => {
                outcome_of(ctx, head).await?
            }
            _ => Outcome::default(),
        };
        any = true;
        if let Value::Array(more) = notices::progress(&hook, receivers, head.is_success(), outcome) {
            notices.extend(more);
        }
    }
    Ok(any.then(|| ("notices".to_owned(), Value::Array(notices))))
}

/// How a run that has ended came out, for those who listen.
pub(crate) async fn outcome_of(ctx: &Context, head: &RunHead) -> Result<Outcome, ApiError> {
    let errored = match Report::kept(&ctx.store, head.id).await? {
        Some(report) => report.trials.errored,
        None => 0,
    };
    Ok(Outcome::of(head, errored))
}

async fn shown(ctx: &Context, head: &RunHead, manifest: &Manifest) -> Result<SimulationRun, ApiError> {
    view(head, manifest, &tally(ctx, head).await?)
}

/// Where the items of a run stand.
pub(crate) async fn tally(ctx: &Context, head: &RunHead) -> Result<Tally, ApiError> {
    Ok(match &head.counts {
        Some(counts) => counts.clone(),
        None => ctx.store.tally(head.id, head.total).await?,
    })
}

/// What a list shows of a run: what it played and against whom.
async fn summary(
    ctx: &Context,
    head: &RunHead,
    run: &SimulationRun,
    refs: &[SimulationRef],
) -> Result<SimulationRunListSummary, ApiError> {
    // What came inline got its id when the run was created, or the run that it came from, and is stored nowhere.
    let made_for_the_run = ids::floor_id(head.first_created_at());
    let mut stored: Vec<Uuid> = refs
        .iter()
        .map(|reference| reference.simulation_id)
        .filter(|id| *id < made_for_the_run)
        .collect();
    stored.sort_unstable();
    stored.dedup();
    // A run that came from another one names a simulation once for each item.
    let played = match head.origin {
        Some(_) => {
            let distinct: HashSet<Uuid> = refs.iter().map(|reference| reference.simulation_id).collect();
            distinct.len()
        }
        None => refs.len(),
    };
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
            let name = match played {
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
        target_snapshot_name: target_name(&briefing.target),
        simulation_count: i64::try_from(played).unwrap_or(i64::MAX),
        extra: Map::new(),
    })
}

/// What a run's target is called; a squad without a name is called as its first member.
pub(crate) fn target_name(target: &Value) -> Option<String> {
    let name = |value: &Value| value.get("name")?.as_str().map(str::to_owned);
    let assistant = target.get("assistant").and_then(name);
    assistant.or_else(|| {
        let squad = target.get("squad")?;
        let first = || name(squad.get("members")?.get(0)?.get("assistant")?);
        name(squad).or_else(first)
    })
}

/// Lists runs.
pub(crate) async fn list(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let wanted = ListRequest::parse(&request.query)?;
    let (heads, found) = filters::runs(ctx, org, RunKind::Simulation, &wanted, &request.query).await?;
    // A page shows more of each run than the bare list does.
    let paged = wanted.is_paged();
    let mut views = stream::iter(heads)
        .map(|head| async move {
            let manifest = ctx.store.manifest(head.id).await?;
            let run = shown(ctx, &head, &manifest).await?;
            if !paged {
                return Ok::<_, ApiError>(json!(run));
            }
            let summary = summary(ctx, &head, &run, &manifest.refs).await?;
            Ok(json!(SimulationRunListItem { run, summary }))
        })
        .buffered(READS);
    let mut page = Entries::of_runs();
    while let Some(view) = views.try_next().await? {
        page.push(view);
    }
    wanted.answer(page.into_values(), found)
}

/// Stops a run: what has not ended is canceled.
pub(crate) async fn cancel(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let head = stop(ctx, found(ctx, org, id).await?).await?;
    Response::ok(bounded::run(json!(current(ctx, &head).await?)))
}

/// Stops a run that has not ended, and gives it as it is then.
pub(crate) async fn stop(ctx: &Context, head: RunHead) -> Result<RunHead, ApiError> {
    let now = ctx.clock.now_ms();
    let is_open = |head: &RunHead| head.state != RunState::Ended && head.canceled_at.is_none();
    let was_open = is_open(&head);
    let done = AtomicBool::new(false);
    let head = ctx
        .store
        .change_run(head, now, |head| {
            let open = is_open(head);
            if open {
                head.canceled_at = Some(now);
            }
            done.store(open, Ordering::Relaxed);
            open
        })
        .await?;
    if was_open && !done.load(Ordering::Relaxed) {
        return Err(ApiError::new(
            409,
            "the run ended or was canceled at the same time; read it again",
        ));
    }
    if head.state == RunState::Ended {
        return Err(ApiError::bad_request("Run has already ended"));
    }
    Ok(carried_out(ctx, head).await)
}

/// Hides a run, and cancels one that has not ended. What is kept of it is taken away later, when nobody can be at work on it any more.
pub(crate) async fn delete(ctx: &Context, head: RunHead) -> Result<(), ApiError> {
    let now = ctx.clock.now_ms();
    let hide = |head: &mut RunHead| {
        if head.deleted_at.is_some() {
            return false;
        }
        head.deleted_at = Some(now);
        if head.state != RunState::Ended {
            head.canceled_at.get_or_insert(now);
        }
        true
    };
    let head = ctx.store.change_run(head, now, hide).await?;
    if head.state != RunState::Ended {
        carried_out(ctx, head).await;
    }
    Ok(())
}

/// Carries a cancellation out and counts what came of it, as far as it can be done in a request. The decision is kept; what fails
/// here is owed and done later.
pub(crate) async fn carried_out(ctx: &Context, head: RunHead) -> RunHead {
    let work = async {
        let deadline = Deadline::after(REQUEST_BUDGET);
        let head = progress::advance(ctx, head.clone(), deadline).await?;
        if head.expanded < head.total || head.cancel_cursor < head.total {
            return Ok(head);
        }
        progress::recount_all(ctx, &head, deadline).await?;
        Ok::<_, BoxError>(ctx.store.run(head.key()).await?.unwrap_or(head))
    };
    match work.await {
        Ok(advanced) => advanced,
        Err(error) => {
            tracing::warn!(runId = %head.id, %error, "the cancellation goes on later");
            head
        }
    }
}

/// Makes sure that the item with `index` is stored.
pub(crate) async fn ensure_item(ctx: &Context, head: RunHead, index: u32) -> Result<RunHead, ApiError> {
    if head.is_held() {
        return Err(ApiError::new(
            409,
            "the run waits to begin until a webhook was told of it; cancel the run, or try again in a moment",
        ));
    }
    Ok(progress::expand_until(ctx, head, index, Deadline::after(REQUEST_BUDGET)).await?)
}
