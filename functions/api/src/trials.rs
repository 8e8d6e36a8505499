//! What a run's simulations came to, and how two runs compare.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    context::Context,
    models::{
        page::PaginationMeta,
        trials::{
            Change, ComparedSide, ComparedSimulation, PlayedSimulation, SimulationName,
            SimulationRunComparison, SimulationRunSummary, SimulationTrials, SummaryTotals, TrialCounts,
        },
    },
    store::{Names, RunHead, SimulationRef},
    trials::{self, Identity, Trials},
};
use serde_json::Map;
use uuid::Uuid;

use crate::{
    http::{ApiError, Query, Request, Response},
    lists, runs,
};

/// How many partitions of a run are read at once.
const READS: usize = 16;
/// The most simulations on a page, and how many there are unless the request says so.
const PAGE: usize = 1000;
/// The most simulations in a list that is not paged.
const LISTED: usize = 1000;

/// A simulation of a run with all of its items.
struct Played {
    reference: SimulationRef,
    names: Names,
    /// How many items it has, stored or not.
    items: u32,
    trials: Trials,
}

impl Played {
    fn name(&self) -> SimulationName {
        SimulationName {
            id: self.reference.simulation_id.to_string(),
            name: self.names.simulation.clone(),
        }
    }

    fn shown(&self) -> PlayedSimulation {
        let text = |id: Option<Uuid>| id.map(|id| id.to_string());
        PlayedSimulation {
            simulation: self.name(),
            scenario_id: text(self.reference.scenario_id),
            scenario_name: self.names.scenario.clone(),
            personality_id: text(self.reference.personality_id),
            personality_name: self.names.personality.clone(),
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            simulation: self.reference.simulation_id,
            scenario: self.reference.scenario_id,
            personality: self.reference.personality_id,
            name: self.names.simulation.clone(),
        }
    }

    fn side(&self) -> ComparedSide {
        ComparedSide {
            simulation_id: self.reference.simulation_id.to_string(),
            trials: self.trials.count(),
            passed: self.trials.passed,
            pass_rate: self.trials.pass_rate(),
        }
    }
}

/// The different simulations of a run in its order: a simulation that was named more than once is one.
///
/// Of the items only what a count needs is read, a partition at a time.
async fn played(ctx: &Context, head: &RunHead) -> Result<Vec<Played>, ApiError> {
    let (manifest, mut names) = tokio::try_join!(ctx.store.manifest(head.id), ctx.store.names(head.id))?;
    let mut places: HashMap<Uuid, usize> = HashMap::new();
    let mut all: Vec<Played> = Vec::new();
    let mut place_of = Vec::with_capacity(manifest.refs.len());
    for reference in manifest.refs {
        let id = reference.simulation_id;
        let place = *places.entry(id).or_insert(all.len());
        if place == all.len() {
            all.push(Played {
                reference,
                names: names.remove(&id).unwrap_or_default(),
                items: 0,
                trials: Trials::default(),
            });
        }
        if let Some(played) = all.get_mut(place) {
            played.items += head.iterations;
        }
        place_of.push(place);
    }
    let mut partitions = stream::iter(0..head.partitions())
        .map(|partition| ctx.store.standings(head.id, partition))
        .buffered(READS);
    while let Some(standings) = partitions.try_next().await? {
        for standing in standings {
            let place = place_of.get(standing.simulation as usize);
            if let Some(played) = place.and_then(|&place| all.get_mut(place)) {
                played.trials.add(standing.outcome());
            }
        }
    }
    for played in &mut all {
        // Items that are not stored yet are waiting.
        played.trials.open += played.items.saturating_sub(played.trials.items());
    }
    Ok(all)
}

fn counts(trials: Trials) -> TrialCounts {
    TrialCounts {
        trials: trials.count(),
        passed: trials.passed,
        failed: trials.failed,
        errored: trials.errored,
        canceled: trials.canceled,
        open: trials.open,
        pass_rate: trials.pass_rate(),
    }
}

/// The page of a list that a request asks for with `page` and `limit`.
struct Page {
    number: usize,
    limit: usize,
}

impl Page {
    fn parse(query: &Query) -> Result<Self, ApiError> {
        Ok(Self {
            number: lists::whole(query, "page", 1, 1..=lists::MAX_PAGE)?,
            limit: lists::whole(query, "limit", PAGE, 1..=PAGE)?,
        })
    }

    fn of<'a, T>(&self, all: &'a [T]) -> impl Iterator<Item = &'a T> + use<'a, T> {
        let skipped = (self.number - 1).saturating_mul(self.limit);
        all.iter().skip(skipped).take(self.limit)
    }

    fn metadata(&self, total: usize) -> PaginationMeta {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        PaginationMeta {
            items_per_page: whole(self.limit),
            total_items: whole(total),
            current_page: whole(self.number),
            total_pages: Some(whole(total.div_ceil(self.limit))),
            has_next_page: Some(self.number.saturating_mul(self.limit) < total),
            next_cursor: None,
            sort_order: None,
            items_beyond_retention: None,
            created_at_le: None,
            created_at_ge: None,
            extra: Map::new(),
        }
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What each simulation of a run came to, all of its items together.
pub(crate) async fn summary(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let page = Page::parse(&request.query)?;
    let all = played(ctx, &head).await?;
    let total = all
        .iter()
        .fold(Trials::default(), |sum, played| sum.plus(played.trials));
    let flaky: Vec<SimulationName> = all
        .iter()
        .filter(|played| played.trials.is_flaky())
        .map(Played::name)
        .collect();
    let simulations = page.of(&all).map(|played| SimulationTrials {
        simulation: played.shown(),
        counts: counts(played.trials),
        pass_hat_k: played.trials.pass_hats(),
        wilson95: played.trials.wilson95(),
        flaky: played.trials.is_flaky(),
    });
    Response::ok(SimulationRunSummary {
        run_id: head.id.to_string(),
        status: runs::status(&head),
        origin: head.origin.map(runs::shown_origin),
        totals: SummaryTotals {
            simulations: number(all.len()),
            flaky: number(flaky.len()),
            counts: counts(total),
        },
        simulations: simulations.collect(),
        flaky: flaky.into_iter().take(LISTED).collect(),
        metadata: page.metadata(all.len()),
    })
}

/// How a run compares with the run that `baseline` names.
pub(crate) async fn compare(
    ctx: &Context,
    org: Uuid,
    run: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let head = runs::found(ctx, org, run).await?;
    let baseline = request.query.get("baseline").ok_or_else(|| {
        ApiError::bad_request("baseline must be given: the id of the run to compare this one with")
    })?;
    let baseline = runs::found(ctx, org, baseline).await?;
    let page = Page::parse(&request.query)?;
    let (before, now) = tokio::try_join!(played(ctx, &baseline), played(ctx, &head))?;
    let identities = |all: &[Played]| all.iter().map(Played::identity).collect::<Vec<_>>();
    let pairs = trials::pairs(&identities(&before), &identities(&now));
    let mut compared: Vec<(Change, Option<&Played>, Option<&Played>)> = Vec::with_capacity(pairs.len());
    for (in_baseline, here) in pairs {
        let old = in_baseline.and_then(|n| before.get(n));
        let new = here.and_then(|n| now.get(n));
        let change = trials::change(old.map(|old| old.trials), new.map(|new| new.trials));
        compared.push((change, old, new));
    }
    let names = || Change::ALL.iter().map(|change| change.as_str().to_owned());
    let mut counts: BTreeMap<String, u32> = names().map(|name| (name, 0)).collect();
    let mut changes: BTreeMap<String, Vec<SimulationName>> = names().map(|name| (name, Vec::new())).collect();
    for (change, old, new) in &compared {
        let change = change.as_str();
        if let Some(count) = counts.get_mut(change) {
            *count += 1;
        }
        if let (Some(list), Some(played)) = (changes.get_mut(change), new.or(*old))
            && list.len() < LISTED
        {
            list.push(played.name());
        }
    }
    let simulations = page.of(&compared).filter_map(|&(change, old, new)| {
        Some(ComparedSimulation {
            simulation: new.or(old)?.shown(),
            change,
            run: new.map(Played::side),
            baseline: old.map(Played::side),
        })
    });
    Response::ok(SimulationRunComparison {
        run_id: head.id.to_string(),
        status: runs::status(&head),
        baseline_run_id: baseline.id.to_string(),
        baseline_status: runs::status(&baseline),
        counts,
        changes,
        simulations: simulations.collect(),
        metadata: page.metadata(compared.len()),
    })
}
