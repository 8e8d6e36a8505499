//! Results: read, listed, deleted, played again and judged again.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use ringback_shared::{
    models::trials::{EvaluateSimulationRun, OriginKind, RerunItems, RerunSimulationRun},
    store::{Kind, Manifest, NewRun, Numbered, RunHead, RunKey, RunState},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Paging, Refusal, nothing},
    objects::{self, Asked, Numbers, number},
    webhooks,
    whole::{InPlace, Judging, Label, READS, Whole, agent_of, heads_since, places_of, split_run},
};
use crate::{http::Response, idempotency, reruns, runs};

/// The run that a result's number stands for.
pub(super) async fn found(asked: Asked<'_>, number: u64) -> Result<RunHead, Refusal> {
    let known = asked.ctx.store.numbered(asked.org, &[number]).await?;
    let Some((Numbered::Run, run)) = known.get(&number) else {
        return Err(Refusal::not_found());
    };
    let head = asked.ctx.store.run(RunKey::simulation(asked.org, *run)).await?;
    head.filter(|head| head.deleted_at.is_none())
        .ok_or_else(Refusal::not_found)
}

async fn whole_result(asked: Asked<'_>, head: RunHead, judging: Judging<'_>) -> Result<Value, Refusal> {
    let whole = Whole::read(asked, head, judging).await?;
    let mut numbers = Numbers::default();
    whole.number(asked, &mut numbers).await?;
    Ok(whole.result(asked, &numbers))
}

/// The answer to the request that launched a run.
pub(super) async fn launched(asked: Asked<'_>, head: RunHead) -> Answer {
    let whole = Whole::new(asked, head).await?;
    let mut numbers = Numbers::default();
    whole.number(asked, &mut numbers).await?;
    Ok(Response::created(whole.launched(asked, &numbers))?)
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let head = found(asked, number(id)?).await?;
    let whole = Whole::read(asked, head, None).await?;
    let mut numbers = Numbers::default();
    whole.number(asked, &mut numbers).await?;
    Ok(Response::ok(whole.detail(asked, &numbers))?)
}

/// All of the organization's results, and the runs that judge them in their places, both newest first.
pub(super) async fn all_heads(asked: Asked<'_>) -> Result<(Vec<RunHead>, Vec<InPlace>), Refusal> {
    let (mut results, mut judging) = (Vec::new(), Vec::new());
    for head in heads_since(asked, Uuid::nil()).await? {
        match places_of(asked, &head).await? {
            Some(places) => judging.push(InPlace { head, places }),
            None => results.push(head),
        }
    }
    Ok((results, judging))
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let query = &asked.request.query;
    let paging = Paging::of(query)?;
    let agent = objects::asked_for(asked, "agent_id", Kind::Assistant).await?;
    let search = query.get("search").map(str::to_lowercase);
    let mut scenarios = BTreeSet::new();
    for number in query.all("scenarios") {
        scenarios.insert(
            objects::found(asked, Kind::Scenario, objects::number(number)?)
                .await?
                .id,
        );
    }
    let (mut heads, judging) = all_heads(asked).await?;
    if agent.is_some() || search.is_some() || !scenarios.is_empty() {
        let store = &asked.ctx.store;
        let with_manifests: Vec<(RunHead, Manifest)> = stream::iter(heads)
            .map(|head| async move {
                let manifest = store.manifest(head.id).await?;
                Ok::<_, Refusal>((head, manifest))
            })
            .buffered(READS)
            .try_collect()
            .await?;
        let fits = |(head, manifest): &(RunHead, Manifest)| {
            let label = Label::of(manifest);
            let name = label.text("name").unwrap_or_default().to_lowercase();
            agent.is_none_or(|agent| agent_of(head, &label) == Some(agent))
                && search.as_ref().is_none_or(|part| name.contains(part))
                && (scenarios.is_empty()
                    || manifest
                        .refs
                        .iter()
                        .any(|one| one.scenario_id.is_some_and(|id| scenarios.contains(&id))))
        };
        heads = with_manifests
            .into_iter()
            .filter(fits)
            .map(|(head, _)| head)
            .collect();
    }
    let count = heads.len();
    let page = heads.get(paging.places(count)?).unwrap_or_default().to_vec();
    let mut entries = Vec::with_capacity(page.len());
    for some in page.chunks(READS / 4) {
        let read = some
            .iter()
            .map(|head| whole_result(asked, head.clone(), Some(&judging)));
        entries.extend(try_join_all(read).await?);
    }
    paging.answer(&asked.ctx.config.public_url, asked.request, count, entries)
}

/// Hides a result, stops what is open of it, and has it taken away. What judges its conversations goes with it.
async fn remove(asked: Asked<'_>, head: RunHead) -> Result<(), Refusal> {
    let mut newer = heads_since(asked, head.id).await?;
    newer.reverse();
    let mut gone = BTreeSet::from([head.id]);
    // Also what judged again what judged them.
    newer.retain(|other| {
        let judges = other
            .origin
            .is_some_and(|origin| origin.kind == OriginKind::Evaluation && gone.contains(&origin.run));
        judges && gone.insert(other.id)
    });
    for head in newer.into_iter().chain([head]) {
        runs::delete(asked.ctx, head).await?;
    }
    Ok(())
}

pub(super) async fn delete(asked: Asked<'_>, id: &str) -> Answer {
    remove(asked, found(asked, number(id)?).await?).await?;
    nothing()
}

/// The results that a field names.
async fn all_in(
    asked: Asked<'_>,
    fields: &mut Fields,
    names: &[&'static str],
) -> Result<Vec<RunHead>, Refusal> {
    let field = fields
        .first(names)
        .unwrap_or(names.first().copied().unwrap_or_default());
    let Some(ids) = fields.ids(field) else {
        fields.wrong(field, "This field is required.");
        fields.check()?;
        return Ok(Vec::new());
    };
    if ids.len() > 100 {
        fields.wrong(field, "Name at most 100.");
    }
    fields.check()?;
    let mut heads = Vec::with_capacity(ids.len());
    for id in ids {
        match found(asked, id).await {
            Ok(head) => heads.push(head),
            Err(_) => fields.wrong(field, format!("Invalid pk \"{id}\" - object does not exist.")),
        }
    }
    fields.check()?;
    Ok(heads)
}

pub(super) async fn bulk_delete(asked: Asked<'_>) -> Answer {
    let mut fields = Fields::of(asked.request)?;
    for head in all_in(asked, &mut fields, &["result_ids", "ids"]).await? {
        remove(asked, head).await?;
    }
    nothing()
}

/// Plays a result's runs again as a new result: all of them, or those that are named.
pub(super) async fn rerun(asked: Asked<'_>, id: &str) -> Answer {
    let head = found(asked, number(id)?).await?;
    let mut fields = Fields::of(asked.request)?;
    let only = only_runs(&mut fields, number(id)?, &head);
    let name = fields.text("name", 1..=255);
    fields.check()?;
    let mut label = asked.ctx.store.manifest(head.id).await?.label;
    match (name, label.get_mut("name")) {
        (Some(name), _) => {
            label.insert("name".to_owned(), json!(name));
        }
        (None, Some(Value::String(name))) => *name = format!("{name} (rerun)").chars().take(255).collect(),
        (None, _) => {}
    }
    // These belong to the places of the other run's simulations.
    label.remove("profiles");
    let now = asked.ctx.clock.now_ms();
    let wanted = RerunSimulationRun {
        items: Some(RerunItems::All),
        ..RerunSimulationRun::default()
    };
    let mut new = reruns::rerun_of(
        asked.ctx,
        asked.org,
        &head,
        wanted,
        only.as_ref(),
        Some(label),
        now,
    )
    .await?;
    webhooks::listen(asked, &mut new, webhooks::Starter::Request).await?;
    let (new, _) = runs::begin(asked.ctx, of_request(asked, new)?, now).await?;
    Ok(Response::ok(whole_result(asked, new, Some(&[])).await?)?)
}

/// A new run with what its request says of it.
pub(super) fn of_request(asked: Asked<'_>, new: NewRun) -> Result<NewRun, Refusal> {
    Ok(NewRun {
        idempotency: idempotency::of(asked.request)?,
        trace: asked.request.trace,
        ..new
    })
}

/// Judges a result's conversations once more: all of them, or those of the runs that are named, by what their scenarios ask for now
/// and by the metrics that are named beside. The result shows what was found in the place of what it showed before.
pub(super) async fn evaluate(asked: Asked<'_>, id: &str) -> Answer {
    let head = found(asked, number(id)?).await?;
    let mut fields = Fields::of(asked.request)?;
    let only = only_runs(&mut fields, number(id)?, &head);
    let metrics = objects::all_named(asked, &mut fields, "metric_ids", Kind::Metric).await?;
    fields.check()?;
    let metrics: Vec<Uuid> = metrics.into_iter().flatten().map(|metric| metric.id).collect();
    evaluate_one(asked, &head, only.as_ref(), &metrics).await?;
    Ok(Response::ok(whole_result(asked, head, None).await?)?)
}

async fn evaluate_one(
    asked: Asked<'_>,
    head: &RunHead,
    only: Option<&BTreeSet<u32>>,
    metrics: &[Uuid],
) -> Result<(), Refusal> {
    let now = asked.ctx.clock.now_ms();
    let wanted = EvaluateSimulationRun::default();
    let (mut new, places) =
        reruns::evaluation_of(asked.ctx, asked.org, head, wanted, only, metrics, now).await?;
    new.manifest
        .label
        .insert(reruns::JUDGES_IN_PLACE.to_owned(), json!(places));
    runs::begin(asked.ctx, of_request(asked, new)?, now).await?;
    Ok(())
}

/// Judges several results' conversations once more.
pub(super) async fn bulk_evaluate(asked: Asked<'_>) -> Answer {
    let mut fields = Fields::of(asked.request)?;
    let metrics = objects::all_named(asked, &mut fields, "metric_ids", Kind::Metric).await?;
    let heads = all_in(asked, &mut fields, &["result_ids"]).await?;
    let metrics: Vec<Uuid> = metrics.into_iter().flatten().map(|metric| metric.id).collect();
    let mut results = Vec::with_capacity(heads.len());
    for head in heads {
        evaluate_one(asked, &head, None, &metrics).await?;
        results.push(whole_result(asked, head, None).await?);
    }
    Ok(Response::ok(results)?)
}

/// The places of the runs that `run_ids` names, if it names any.
fn only_runs(fields: &mut Fields, result: u64, head: &RunHead) -> Option<BTreeSet<u32>> {
    let ids = fields.ids("run_ids")?;
    let mut only = BTreeSet::new();
    for id in ids {
        match split_run(id) {
            (of, index) if of == result && index < head.total => {
                only.insert(index);
            }
            _ => fields.wrong("run_ids", format!("Run {id} is not one of this result.")),
        }
    }
    Some(only)
}

/// Stops all runs of a result that are not over.
pub(super) async fn end_calls(asked: Asked<'_>, id: &str) -> Answer {
    let head = found(asked, number(id)?).await?;
    let head = match head.state {
        RunState::Ended => head,
        _ => runs::stop(asked.ctx, head).await?,
    };
    Ok(Response::ok(whole_result(asked, head, None).await?)?)
}
