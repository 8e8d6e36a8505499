//! What a run's simulations came to, and how two runs compare.

use std::collections::BTreeMap;

use ringback_shared::{
    context::Context,
    models::{
        page::PaginationMeta,
        trials::{
            Change, ComparedSide, ComparedSimulation, PlayedSimulation, SimulationName,
            SimulationRunComparison, SimulationRunSummary, SimulationTrials, SummaryTotals, TrialCounts,
        },
    },
    results::{Played, Results},
    trials::{self, Trials},
};
use serde_json::Map;
use uuid::Uuid;

use crate::{
    http::{ApiError, Query, Request, Response},
    lists, runs,
};

/// The most simulations on a page, and how many there are unless the request says so.
const PAGE: usize = 1000;
/// The most simulations in a list that is not paged.
const LISTED: usize = 1000;

fn shown(played: &Played) -> PlayedSimulation {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string());
    PlayedSimulation {
        simulation: played.name(),
        scenario_id: text(played.reference.scenario_id),
        scenario_name: played.names.scenario.clone(),
        personality_id: text(played.reference.personality_id),
        personality_name: played.names.personality.clone(),
    }
}

fn side(played: &Played) -> ComparedSide {
    ComparedSide {
        simulation_id: played.reference.simulation_id.to_string(),
        trials: played.trials.count(),
        passed: played.trials.passed,
        pass_rate: played.trials.pass_rate(),
    }
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
    let results = Results::of(&ctx.store, &head).await?;
    let (total, all) = (results.total(), results.simulations);
    let flaky: Vec<SimulationName> = all
        .iter()
        .filter(|played| played.trials.is_flaky())
        .map(Played::name)
        .collect();
    let simulations = page.of(&all).map(|played| SimulationTrials {
        simulation: shown(played),
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
    let (before, now) = tokio::try_join!(Results::of(&ctx.store, &baseline), Results::of(&ctx.store, &head))?;
    let pairs = now.pairs(&before);
    let mut compared: Vec<(Change, Option<&Played>, Option<&Played>)> = Vec::with_capacity(pairs.len());
    for (in_baseline, here) in pairs {
        let old = in_baseline.and_then(|n| before.simulations.get(n));
        let new = here.and_then(|n| now.simulations.get(n));
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
            simulation: shown(new.or(old)?),
            change,
            run: new.map(side),
            baseline: old.map(side),
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
