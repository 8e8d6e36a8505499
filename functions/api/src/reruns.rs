//! Runs that come from another run: they play its items again, or judge the conversations that it kept.
//!
//! Each item of such a run is a simulation of its own that is held once, so that the items are laid out as in every run. Items
//! of the same simulation share its snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    context::Context,
    ids,
    lifecycle::State,
    models::{
        evaluation::{EvaluationPlanItem, LatencyExpectation},
        parse,
        run::{SimulationRunTarget, Transport},
        trials::{EvaluateSimulationRun, OriginKind, RerunItems, RerunSimulationRun},
    },
    store::{
        Basis, ItemKey, ItemOrigin, Kind, Manifest, NewItem, NewOrigin, NewRun, Receivers, RunHead, RunKind,
        RunOrigin, RunState, SimulationRef, Snapshot, Standing,
    },
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    bounded,
    definitions::Named,
    http::{ApiError, Request, Response},
    idempotency, runs, scoring,
    ways::Way,
};

/// The most items that a run may have that comes from another one: each names where it comes from.
const MAX_PICKED: usize = 10_000;
/// The most that the evaluations for all of its simulations may weigh together, in bytes of JSON.
const MAX_EVALUATIONS: usize = 20_000_000;
/// How many partitions of a run are read at once.
const READS: usize = 16;

/// How a run that judges another one in its place says so: under this name its label has the places of its items in the other.
pub(crate) const JUDGES_IN_PLACE: &str = "judgesInPlace";

/// Plays items of a run again, in a new run.
pub(crate) async fn rerun(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let origin = runs::found(ctx, org, run).await?;
    let now = ctx.clock.now_ms();
    let idempotency = idempotency::of(request)?;
    if let Some(answer) = runs::repeated(ctx, org, idempotency.as_ref(), now).await? {
        return Ok(answer);
    }
    let wanted: RerunSimulationRun = parse(request.optional_json()?)?;
    let new = rerun_of(ctx, org, &origin, wanted, None, None, now).await?;
    let new = NewRun {
        idempotency,
        trace: request.trace,
        ..new
    };
    runs::start(ctx, new, now).await
}

/// A run that plays items of `origin` again, of which everything is resolved: those that `wanted` names, of these `only` some if it
/// says. It says `label` of itself, or what the other says.
pub(crate) async fn rerun_of(
    ctx: &Context,
    org: Uuid,
    origin: &RunHead,
    wanted: RerunSimulationRun,
    only: Option<&BTreeSet<u32>>,
    label: Option<Map<String, Value>>,
    now: i64,
) -> Result<NewRun, ApiError> {
    must_have_ended(origin, "rerun")?;
    let items = wanted.items.unwrap_or(RerunItems::Failed);
    let cap = match wanted.concurrency_limit {
        Some(limit) => runs::cap(Some(limit))?,
        None => origin.cap,
    };
    let picked = pick(ctx, origin, |standing| {
        let fits = match items {
            RerunItems::Failed => standing.state == State::Failed,
            RerunItems::Unfinished => matches!(standing.state, State::Failed | State::Canceled),
            RerunItems::All => true,
        };
        fits && only.is_none_or(|only| only.contains(&standing.index))
    })
    .await?;
    if picked.is_empty() {
        let which = match items {
            RerunItems::Failed => "no item that failed",
            RerunItems::Unfinished => "no item that failed or was canceled",
            RerunItems::All => "no items",
        };
        return Err(ApiError::bad_request(format!(
            "there is nothing to rerun: run {} has {which}",
            origin.id
        )));
    }
    let manifest = ctx.store.manifest(origin.id).await?;
    let same = wanted.target.is_none();
    let target: SimulationRunTarget = match wanted.target {
        Some(target) => target,
        None => {
            serde_json::from_value(manifest.target.clone()).map_err(|error| ApiError::internal(&error))?
        }
    };
    // A stored target as it is now: that it was changed is why one plays again.
    let transport = match wanted.transport {
        Some(transport) => transport,
        None => transport(ctx, origin, same).await?,
    };
    let way = Way::to(ctx, org, &target, Some(&transport)).await?;
    let mut material = Material::read(ctx, origin, manifest, &picked, OriginKind::Rerun).await?;
    material.manifest.label = label.unwrap_or(material.manifest.label);
    if !same {
        // These are the other target's.
        for name in ["agentId", "agentName", "agentInbound", "agentNumber"] {
            material.manifest.label.remove(name);
        }
    }
    way.check(&material.snapshots)?;
    Ok(NewRun {
        id: ids::new_id(now),
        org,
        kind: RunKind::Simulation,
        iterations: 1,
        transport: way.provider.as_str().to_owned(),
        endpoint: way.endpoint,
        cap,
        target_type: target.target_type().as_str().to_owned(),
        target_id: way.target_id,
        manifest: Manifest {
            target: json!(target),
            notify: Receivers::of(wanted.notify),
            ..material.manifest
        },
        target: way.target,
        snapshots: material.snapshots,
        origin: Some(material.origin),
        idempotency: None,
        firing: None,
        trace: None,
    })
}

/// Judges the conversations that a run kept once more, in a new run: nothing is said, nobody is called, and no hook is told.
pub(crate) async fn evaluate(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let origin = runs::found(ctx, org, run).await?;
    let now = ctx.clock.now_ms();
    let idempotency = idempotency::of(request)?;
    if let Some(answer) = runs::repeated(ctx, org, idempotency.as_ref(), now).await? {
        return Ok(answer);
    }
    let wanted: EvaluateSimulationRun = parse(request.optional_json()?)?;
    let (new, _) = evaluation_of(ctx, org, &origin, wanted, None, &[], now).await?;
    let new = NewRun {
        idempotency,
        trace: request.trace,
        ..new
    };
    runs::start(ctx, new, now).await
}

/// A run that judges what `origin` kept, of which everything is resolved: all that can be judged, of these `only` some if it says, and
/// by these `metrics` beside those of each scenario. Also gives the places of what is judged in the other run.
pub(crate) async fn evaluation_of(
    ctx: &Context,
    org: Uuid,
    origin: &RunHead,
    wanted: EvaluateSimulationRun,
    only: Option<&BTreeSet<u32>>,
    metrics: &[Uuid],
    now: i64,
) -> Result<(NewRun, Vec<u32>), ApiError> {
    must_have_ended(origin, "evaluate")?;
    let picked = pick(ctx, origin, |standing| {
        // What was only judged before has no conversation of its own, but had one to judge.
        (origin.only_judges() || standing.was_held())
            && only.is_none_or(|only| only.contains(&standing.index))
    })
    .await?;
    if picked.is_empty() {
        return Err(ApiError::bad_request(format!(
            "there is nothing to evaluate: run {} has no item whose conversation was held to its end",
            origin.id
        )));
    }
    let manifest = ctx.store.manifest(origin.id).await?;
    let mut material = Material::read(ctx, origin, manifest, &picked, OriginKind::Evaluation).await?;
    material.judge_by(ctx, org, &wanted, metrics).await?;
    let target = ctx.store.target(origin.id).await?;
    let places = picked.into_iter().map(|(index, _)| index).collect();
    let new = NewRun {
        id: ids::new_id(now),
        org,
        kind: RunKind::Simulation,
        iterations: 1,
        transport: origin.transport.clone(),
        endpoint: origin.endpoint,
        cap: None,
        target_type: origin.target_type.clone(),
        target_id: origin.target_id,
        manifest: Manifest {
            notify: Receivers::of(wanted.notify),
            ..material.manifest
        },
        target,
        snapshots: material.snapshots,
        origin: Some(material.origin),
        idempotency: None,
        firing: None,
        trace: None,
    };
    Ok((new, places))
}

fn must_have_ended(origin: &RunHead, verb: &str) -> Result<(), ApiError> {
    if origin.state == RunState::Ended {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "run {} has not ended; wait for its end, or cancel it, before you {verb} it",
        origin.id
    )))
}

/// How a run reached its target, as its request said it; a number that it asked for only where the target is the `same`.
async fn transport(ctx: &Context, origin: &RunHead, same: bool) -> Result<Transport, ApiError> {
    let provider =
        serde_json::from_value(json!(origin.transport)).map_err(|error| ApiError::internal(&error))?;
    let endpoint = origin.endpoint.map(|id| ("endpointId".to_owned(), json!(id)));
    let target = ctx.store.target(origin.id).await?;
    let asked = same && target.get("numberAsked").is_some();
    let number = target.get("number").filter(|_| asked).cloned();
    let number = number.map(|number| ("targetNumber".to_owned(), number));
    Ok(Transport {
        provider,
        extra: endpoint.into_iter().chain(number).collect(),
    })
}

/// What a run says of itself in another API's words, without the places of its items in the run that it judges.
fn without_places(mut label: Map<String, Value>) -> Map<String, Value> {
    label.remove(JUDGES_IN_PLACE);
    label
}

/// An item by its place in its run, and the place of its simulation.
type Picked = (u32, u32);

/// The items of a run that are wanted, in order.
async fn pick(
    ctx: &Context,
    origin: &RunHead,
    wanted: impl Fn(&Standing) -> bool,
) -> Result<Vec<Picked>, ApiError> {
    let mut picked = Vec::new();
    let mut partitions = stream::iter(0..origin.partitions())
        .map(|partition| ctx.store.standings(origin.id, partition))
        .buffered(READS);
    while let Some(standings) = partitions.try_next().await? {
        let wanted = standings.iter().filter(|standing| wanted(standing));
        picked.extend(wanted.map(|standing| (standing.index, standing.simulation)));
        if picked.len() > MAX_PICKED {
            return Err(ApiError::bad_request(format!(
                "run {} has more than {MAX_PICKED} of these items, which is the most that a run made of another one may have",
                origin.id
            )));
        }
    }
    Ok(picked)
}

/// What a new run is made of that comes from another one.
struct Material {
    /// What the other run was asked for, with the simulations of the new run's items.
    manifest: Manifest,
    /// The different snapshots.
    snapshots: Vec<Snapshot>,
    /// For each snapshot, whose it is.
    owners: Vec<SimulationRef>,
    origin: NewOrigin,
}

impl Material {
    /// Reads what the picked items of `origin` worked from, each snapshot once however many items share it.
    async fn read(
        ctx: &Context,
        origin: &RunHead,
        manifest: Manifest,
        picked: &[Picked],
        kind: OriginKind,
    ) -> Result<Self, ApiError> {
        let distinct = |places: &mut dyn Iterator<Item = u32>| -> Vec<u32> {
            places.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let simulations = distinct(&mut picked.iter().map(|&(_, simulation)| simulation));
        let mut whole: BTreeMap<u32, Snapshot> = BTreeMap::new();
        let mut sources: HashMap<u32, (u32, Option<ItemOrigin>)> = HashMap::new();
        for (n, basis) in ctx.store.bases(origin.id, &simulations).await? {
            match basis {
                Basis::Whole(snapshot) => {
                    whole.insert(n, *snapshot);
                    sources.insert(n, (n, None));
                }
                Basis::Same { at, origin } => {
                    sources.insert(n, (at, Some(origin)));
                }
            }
        }
        let elsewhere = distinct(
            &mut sources
                .values()
                .map(|&(at, _)| at)
                .filter(|at| !whole.contains_key(at)),
        );
        for (n, basis) in ctx.store.bases(origin.id, &elsewhere).await? {
            if let Basis::Whole(snapshot) = basis {
                whole.insert(n, *snapshot);
            }
        }
        let broken = || ApiError::internal(&std::io::Error::other("an item without its snapshot"));
        let (mut refs, mut items) = (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
        let (mut snapshots, mut owners) = (Vec::new(), Vec::new());
        let mut places: HashMap<u32, u32> = HashMap::new();
        for &(index, simulation) in picked {
            let reference = manifest.refs.get(simulation as usize).ok_or_else(broken)?;
            let &(at, before) = sources.get(&simulation).ok_or_else(broken)?;
            if let Some(snapshot) = whole.remove(&at) {
                places.insert(at, u32::try_from(snapshots.len()).unwrap_or(u32::MAX));
                snapshots.push(snapshot);
                owners.push(reference.clone());
            }
            let item = ItemKey {
                run: origin.id,
                index,
            };
            let held = before.and_then(|before| before.conversation).unwrap_or(item);
            items.push(NewItem {
                snapshot: *places.get(&at).ok_or_else(broken)?,
                origin: ItemOrigin {
                    item,
                    conversation: (kind == OriginKind::Evaluation).then_some(held),
                },
            });
            refs.push(reference.clone());
        }
        Ok(Self {
            manifest: Manifest {
                refs,
                // Whose places its items have is for the new run to say.
                label: without_places(manifest.label),
                notify: Receivers::default(),
                ..manifest
            },
            snapshots,
            owners,
            origin: NewOrigin {
                run: RunOrigin {
                    kind,
                    run: origin.id,
                    root: origin.origin.map_or(origin.id, |before| before.root),
                },
                items,
            },
        })
    }

    /// Gives the snapshots the evaluations that a request asks for, and these `metrics` beside their own. What it does not say is taken
    /// from the stored scenario as it is now, or left as it was where the scenario came inline or is gone.
    async fn judge_by(
        &mut self,
        ctx: &Context,
        org: Uuid,
        wanted: &EvaluateSimulationRun,
        metrics: &[Uuid],
    ) -> Result<(), ApiError> {
        let chosen = self.chosen(wanted)?;
        let mut named = Named::default();
        let ids: Vec<String> = self
            .owners
            .iter()
            .filter_map(|owner| owner.scenario_id)
            .map(|id| id.to_string())
            .collect();
        named
            .load(ctx, org, Kind::Scenario, ids.iter().map(String::as_str))
            .await?;
        for ((snapshot, owner), chosen) in self.snapshots.iter_mut().zip(&self.owners).zip(chosen) {
            let id = owner.scenario_id.map(|id| id.to_string());
            let stored = id.and_then(|id| named.get(Kind::Scenario, &id).ok());
            if let Value::Object(scenario) = &mut snapshot.scenario {
                let stored = stored.map(|(_, stored)| stored);
                chosen.write(scenario, stored);
                if let Some(stored) = stored {
                    scoring::renew(scenario, stored, &snapshot.simulation);
                }
                scoring::add_metrics(scenario, metrics);
            }
        }
        self.resolve_outputs(ctx, org).await
    }

    /// What a request says of each snapshot: for its simulation, else for its scenario, else for all.
    fn chosen<'a>(&self, wanted: &'a EvaluateSimulationRun) -> Result<Vec<Chosen<'a>>, ApiError> {
        let entries = wanted.scenarios.as_deref().unwrap_or_default();
        for (n, entry) in entries.iter().enumerate() {
            let fits = |owner: &SimulationRef| {
                named_is(entry.simulation_id.as_ref(), Some(owner.simulation_id))
                    || named_is(entry.scenario_id.as_ref(), owner.scenario_id)
            };
            if !self.owners.iter().any(fits) {
                return Err(ApiError::bad_request(format!(
                    "scenarios.{n}: no conversation of run {} belongs to {}",
                    self.origin.run.run,
                    entry
                        .simulation_id
                        .as_ref()
                        .or(entry.scenario_id.as_ref())
                        .map_or("it", String::as_str)
                )));
            }
        }
        let of = |owner: &SimulationRef| {
            let by_simulation = entries
                .iter()
                .find(|entry| named_is(entry.simulation_id.as_ref(), Some(owner.simulation_id)));
            let by_scenario = || {
                entries
                    .iter()
                    .find(|entry| named_is(entry.scenario_id.as_ref(), owner.scenario_id))
            };
            let entry = by_simulation.or_else(by_scenario);
            Chosen {
                evaluations: entry
                    .map(|entry| entry.evaluations.as_slice())
                    .or(wanted.evaluations.as_deref()),
                latency_expectations: entry
                    .and_then(|entry| entry.latency_expectations.as_deref())
                    .or(wanted.latency_expectations.as_deref()),
            }
        };
        let chosen: Vec<Chosen<'_>> = self.owners.iter().map(of).collect();
        let mut all = 0_usize;
        for one in &chosen {
            all = all.saturating_add(bounded::weight(&json!(one.evaluations)));
            if all > MAX_EVALUATIONS {
                return Err(ApiError::new(
                    413,
                    format!(
                        "the evaluations of all simulations may have at most {} MB together",
                        MAX_EVALUATIONS / 1_000_000
                    ),
                ));
            }
        }
        Ok(chosen)
    }

    /// Takes the structured outputs that the evaluations name as they are now. One that is gone is left as it was when the
    /// conversation was held, if it was there then.
    async fn resolve_outputs(&mut self, ctx: &Context, org: Uuid) -> Result<(), ApiError> {
        let scenarios = self.snapshots.iter().map(|snapshot| &snapshot.scenario);
        let ids: Vec<String> = scenarios.flat_map(runs::output_ids).collect();
        let mut outputs = Named::default();
        outputs
            .load(ctx, org, Kind::StructuredOutput, ids.iter().map(String::as_str))
            .await?;
        let scoring = scoring::Material::load(
            ctx,
            org,
            self.snapshots.iter().map(|snapshot| &snapshot.scenario),
            &[],
        )
        .await?;
        for snapshot in &mut self.snapshots {
            let metrics = scoring.complete(&mut snapshot.scenario);
            // A metric that is gone since is judged as it was.
            snapshot.metrics.retain(|id, _| !metrics.contains_key(id));
            snapshot.metrics.extend(metrics);
            if !scoring::is_judged(&snapshot.scenario) {
                let name = snapshot.scenario.get("name").and_then(Value::as_str);
                return Err(ApiError::bad_request(format!(
                    "scenario '{}' has no evaluations; add at least one before you evaluate",
                    name.unwrap_or_default()
                )));
            }
            let mut kept = Map::new();
            for id in runs::output_ids(&snapshot.scenario) {
                let output = match (
                    outputs.get(Kind::StructuredOutput, &id),
                    snapshot.outputs.remove(&id),
                ) {
                    (Ok((_, output)), _) => output.clone(),
                    (Err(_), Some(before)) => before,
                    (Err(missing), None) => match kept.remove(&id) {
                        // Named twice.
                        Some(output) => output,
                        None => return Err(missing),
                    },
                };
                kept.insert(id, output);
            }
            snapshot.outputs = kept;
        }
        Ok(())
    }
}

/// Whether a client's text is this id.
fn named_is(named: Option<&String>, id: Option<Uuid>) -> bool {
    id.is_some() && named.and_then(|named| Uuid::try_parse(named).ok()) == id
}

/// What a request says about how a conversation is judged.
#[derive(Debug, Clone, Copy)]
struct Chosen<'a> {
    evaluations: Option<&'a [EvaluationPlanItem]>,
    latency_expectations: Option<&'a [LatencyExpectation]>,
}

impl Chosen<'_> {
    /// Writes it into the `scenario` that a conversation was held by, of which everything else stays; `stored` is the scenario
    /// as it is now.
    fn write(&self, scenario: &mut Map<String, Value>, stored: Option<&Value>) {
        let fields = [
            ("evaluations", self.evaluations.map(|chosen| json!(chosen))),
            (
                "latencyExpectations",
                self.latency_expectations.map(|chosen| json!(chosen)),
            ),
        ];
        for (name, chosen) in fields {
            let value = match (chosen, stored) {
                (Some(chosen), _) => Some(chosen),
                (None, Some(stored)) => stored.get(name).cloned(),
                (None, None) => continue,
            };
            match value {
                Some(value) => scenario.insert(name.to_owned(), value),
                None => scenario.remove(name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(body: Value, scenario: Value, stored: Option<Value>) -> Value {
        let wanted: EvaluateSimulationRun = parse(body).unwrap();
        let chosen = Chosen {
            evaluations: wanted.evaluations.as_deref(),
            latency_expectations: wanted.latency_expectations.as_deref(),
        };
        let mut scenario = scenario.as_object().cloned().unwrap();
        chosen.write(&mut scenario, stored.as_ref());
        Value::Object(scenario)
    }

    #[test]
    fn what_is_not_chosen_is_the_stored_scenarios_or_stays() {
        let evaluation = |name: &str| json!([{"structuredOutput": {"name": name, "schema": {"type": "boolean"}}, "comparator": "=", "value": true}]);
        let latency = json!([{"metric": "turn", "aggregation": "max", "thresholdMs": 5}]);
        let old = json!({"name": "s", "instructions": "then", "evaluations": evaluation("old"), "latencyExpectations": latency});
        let now = json!({"name": "t", "instructions": "now", "evaluations": evaluation("now")});
        assert_eq!(chosen(json!({}), old.clone(), None), old);
        assert_eq!(
            chosen(json!({}), old.clone(), Some(now.clone())),
            json!({"name": "s", "instructions": "then", "evaluations": evaluation("now")}),
            "only how it is judged changes"
        );
        let asked = json!({"evaluations": evaluation("asked")});
        let judged = chosen(asked.clone(), old.clone(), Some(now));
        assert_eq!(judged["evaluations"], asked["evaluations"]);
        assert_eq!(judged.get("latencyExpectations"), None);
        let judged = chosen(asked, old.clone(), None);
        assert_eq!(judged["latencyExpectations"], latency);
        let judged = chosen(json!({"latencyExpectations": []}), old, None);
        assert_eq!(
            (&judged["evaluations"], &judged["latencyExpectations"]),
            (&evaluation("old"), &json!([]))
        );
    }
}
