//! What the simulations of a run came to: read from its items, compared with the run before it, and kept as the run's report.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    costs::ModelCosts,
    models::{schedule::RunLatency, trials::SimulationName},
    store::{ListQuery, Names, RunHead, RunKey, RunState, SimulationRef, Store, StoreError},
    trials::{self, Identity, Pair, Trials},
};

/// How many partitions of a run are read at once.
const READS: usize = 16;
/// How many names each of a report's lists has at most.
const LISTED: usize = 100;
/// How many runs of a schedule, and how many of all, are looked at for the one to compare with.
const RUNS_OF_SCHEDULE: usize = 20;
const RUNS: usize = 200;
/// How many of them are read in one go.
const PIECE: usize = 50;

/// A simulation of a run with all of its items.
#[derive(Debug)]
pub struct Played {
    /// What it is.
    pub reference: SimulationRef,
    /// What it and its parts were called when the run was created.
    pub names: Names,
    /// What became of its items, stored or not.
    pub trials: Trials,
}

impl Played {
    /// Its id and its name.
    #[must_use]
    pub fn name(&self) -> SimulationName {
        SimulationName {
            id: self.reference.simulation_id.to_string(),
            name: self.names.simulation.clone(),
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
}

/// The simulations of a run.
#[derive(Debug)]
pub struct Results {
    /// The different ones in the run's order: a simulation that was named more than once is one.
    pub simulations: Vec<Played>,
    /// How long the target took to answer, in milliseconds: of each item that was measured its mean.
    pub latencies: Vec<f64>,
}

impl Results {
    /// Reads them. Of the items only what a count needs is read, a partition at a time.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn of(store: &Store, head: &RunHead) -> Result<Self, StoreError> {
        let (manifest, mut names) = tokio::try_join!(store.manifest(head.id), store.names(head.id))?;
        let mut places: HashMap<Uuid, usize> = HashMap::new();
        let mut simulations: Vec<Played> = Vec::new();
        let mut items: Vec<u32> = Vec::new();
        let mut place_of = Vec::with_capacity(manifest.refs.len());
        for reference in manifest.refs {
            let id = reference.simulation_id;
            let place = *places.entry(id).or_insert(simulations.len());
            if place == simulations.len() {
                items.push(0);
                simulations.push(Played {
                    reference,
                    names: names.remove(&id).unwrap_or_default(),
                    trials: Trials::default(),
                });
            }
            if let Some(items) = items.get_mut(place) {
                *items += head.iterations;
            }
            place_of.push(place);
        }
        let mut latencies = Vec::new();
        let mut partitions = stream::iter(0..head.partitions())
            .map(|partition| store.standings(head.id, partition))
            .buffered(READS);
        while let Some(standings) = partitions.try_next().await? {
            for standing in standings {
                let place = place_of.get(standing.simulation as usize);
                if let Some(played) = place.and_then(|&place| simulations.get_mut(place)) {
                    played.trials.add(standing.outcome());
                }
                latencies.extend(standing.latency_ms.map(f64::from));
            }
        }
        for (played, items) in simulations.iter_mut().zip(items) {
            // Items that are not stored yet are waiting.
            played.trials.open += items.saturating_sub(played.trials.items());
        }
        Ok(Self {
            simulations,
            latencies,
        })
    }

    /// All of their items together.
    #[must_use]
    pub fn total(&self) -> Trials {
        let all = self.simulations.iter();
        all.fold(Trials::default(), |sum, played| sum.plus(played.trials))
    }

    /// The same simulations in these results and in those of another run before; see [`trials::pairs`].
    #[must_use]
    pub fn pairs(&self, baseline: &Self) -> Vec<Pair> {
        let identities =
            |results: &Self| -> Vec<Identity> { results.simulations.iter().map(Played::identity).collect() };
        trials::pairs(&identities(baseline), &identities(self))
    }

    fn latency(&self) -> Option<RunLatency> {
        let mut all = self.latencies.clone();
        all.sort_by(f64::total_cmp);
        let count = all.len();
        // The smallest one that so many of a hundred are not above.
        let percentile = |share: usize| all.get((count * share).div_ceil(100).saturating_sub(1)).copied();
        #[expect(clippy::cast_precision_loss, reason = "a run has at most 100,000 items")]
        let mean = all.iter().sum::<f64>() / count as f64;
        Some(RunLatency {
            p50_ms: percentile(50)?,
            p95_ms: percentile(95)?,
            mean_ms: mean.round(),
            items: u32::try_from(count).unwrap_or(u32::MAX),
        })
    }
}

/// Simulations that have something in common: how many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// How many they are.
    pub count: u32,
    /// The first hundred.
    pub first: Vec<SimulationName>,
}

impl Listed {
    fn add(&mut self, played: &Played) {
        self.count += 1;
        if self.first.len() < LISTED {
            self.first.push(played.name());
        }
    }
}

/// What a run came to, as it is told and kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// What the run is called.
    pub title: String,
    /// The name of the schedule that started it, if one did.
    pub schedule: Option<String>,
    /// Its items.
    pub trials: Trials,
    /// What they cost, as far as it was known then.
    pub costs: ModelCosts,
    /// How long the target took to answer, where that was measured.
    pub latency: Option<RunLatency>,
    /// The run that it is compared with, if there is one.
    pub baseline: Option<Uuid>,
    /// What fails now and did not before.
    pub newly_failing: Listed,
    /// What failed before and fails.
    pub still_failing: Listed,
    /// What failed before and passes.
    pub fixed: Listed,
    /// What passed and failed within the run, or passes and did so within the run before.
    pub flaky: Listed,
}

impl Report {
    /// What a run that has ended came to, compared with the one before it. It has no title yet.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn of(store: &Store, head: &RunHead) -> Result<Self, StoreError> {
        let results = Results::of(store, head).await?;
        let mut report = Self {
            trials: results.total(),
            costs: head
                .counts
                .as_ref()
                .map(|counts| counts.costs.clone())
                .unwrap_or_default(),
            latency: results.latency(),
            ..Self::default()
        };
        match baseline(store, head).await? {
            Some((run, before)) => {
                report.baseline = Some(run);
                report.compare(&results, Some(&before));
            }
            None => report.compare(&results, None),
        }
        Ok(report)
    }

    /// What was kept of a run's.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn kept(store: &Store, run: Uuid) -> Result<Option<Self>, StoreError> {
        Ok(Self::all_kept(store, &[run]).await?.remove(&run))
    }

    /// The same of many runs; those of which nothing was kept are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn all_kept(store: &Store, runs: &[Uuid]) -> Result<BTreeMap<Uuid, Self>, StoreError> {
        let kept = store.reports(runs).await?.into_iter();
        let read = |(run, text): (Uuid, String)| match serde_json::from_str(&text) {
            Ok(report) => Ok((run, report)),
            Err(error) => Err(StoreError::Corrupt(error.to_string())),
        };
        kept.map(read).collect()
    }

    /// Keeps it with its run, unless somebody else was faster; gives the one that is kept.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn keep(self, store: &Store, run: Uuid) -> Result<Self, StoreError> {
        let text = serde_json::to_string(&self).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        match store.keep_report(run, &text).await {
            Err(error) if error.is_duplicate() => Ok(Self::kept(store, run).await?.unwrap_or(self)),
            kept => kept.map(|()| self),
        }
    }

    fn compare(&mut self, results: &Results, before: Option<&Results>) {
        let pairs = match before {
            Some(before) => results.pairs(before),
            None => (0..results.simulations.len()).map(|n| (None, Some(n))).collect(),
        };
        for (old, new) in pairs {
            let Some(played) = new.and_then(|n| results.simulations.get(n)) else {
                continue;
            };
            let now = played.trials;
            // Where nothing was decided, there is nothing to compare with.
            let old = old
                .and_then(|n| before?.simulations.get(n))
                .map(|old| old.trials)
                .filter(|old| old.count() > 0);
            let list = match (old, now.failed > 0) {
                _ if now.count() == 0 => continue,
                _ if now.is_flaky() => &mut self.flaky,
                (Some(old), true) if old.passed == 0 => &mut self.still_failing,
                (Some(_) | None, true) => &mut self.newly_failing,
                (Some(old), false) if old.passed == 0 => &mut self.fixed,
                (Some(old), false) if old.is_flaky() => &mut self.flaky,
                (Some(_) | None, false) => continue,
            };
            list.add(played);
        }
    }
}

/// The run that another one is compared with, and what it came to: the one that it came from; or, of a schedule's run, the last one that the
/// schedule had started before; of any other the last one before that was asked for the same. It has ended, nobody canceled it, and it
/// has decided something: a night in which a provider was out is no measure.
async fn baseline(store: &Store, head: &RunHead) -> Result<Option<(Uuid, Results)>, StoreError> {
    if let Some(origin) = head.origin {
        let key = RunKey {
            run: origin.run,
            ..head.key()
        };
        return match store.run(key).await?.filter(|origin| origin.deleted_at.is_none()) {
            Some(origin) => Ok(Some((origin.id, Results::of(store, &origin).await?))),
            None => Ok(None),
        };
    }
    let fits = |other: &RunHead| {
        other.state == RunState::Ended
            && other.canceled_at.is_none()
            && other.deleted_at.is_none()
            && other.origin.is_none()
    };
    if let Some(scheduled) = head.schedule {
        let mut previous = scheduled.previous;
        for _ in 0..RUNS_OF_SCHEDULE {
            let Some(run) = previous else { break };
            let Some(other) = store.run(RunKey { run, ..head.key() }).await? else {
                break;
            };
            if fits(&other)
                && let Some(found) = measured(store, &other).await?
            {
                return Ok(Some(found));
            }
            previous = other.schedule.and_then(|scheduled| scheduled.previous);
        }
        return Ok(None);
    }
    let mut query = ListQuery {
        ids: Uuid::nil()..=head.id,
        newest_first: true,
        after: Some(head.id),
        limit: PIECE,
    };
    let mut seen = 0;
    while seen < RUNS {
        let listed = store.list_runs(head.org, head.kind, &query).await?;
        seen += listed.entries.len();
        query.after = listed.entries.last().map(|last| last.id);
        for other in listed.entries {
            if other.asked == head.asked
                && fits(&other)
                && let Some(found) = measured(store, &other).await?
            {
                return Ok(Some(found));
            }
        }
        if !listed.more {
            break;
        }
    }
    Ok(None)
}

/// What a run came to, if any of its items was decided. Where a report of it was kept, that says so without its items.
async fn measured(store: &Store, head: &RunHead) -> Result<Option<(Uuid, Results)>, StoreError> {
    let kept = Report::kept(store, head.id).await?;
    if kept.is_some_and(|report| report.trials.count() == 0) {
        return Ok(None);
    }
    let results = Results::of(store, head).await?;
    Ok((results.total().count() > 0).then_some((head.id, results)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(name: &str, passed: u32, failed: u32) -> Played {
        Played {
            reference: SimulationRef {
                simulation_id: Uuid::now_v7(),
                scenario_id: None,
                personality_id: None,
            },
            names: Names {
                simulation: name.to_owned(),
                ..Names::default()
            },
            trials: Trials {
                passed,
                failed,
                ..Trials::default()
            },
        }
    }

    fn results(simulations: Vec<Played>) -> Results {
        Results {
            simulations,
            latencies: Vec::new(),
        }
    }

    #[test]
    fn what_changed_is_told_apart_from_what_was_so_before() {
        let before = results(vec![
            played("broken", 2, 0),
            played("bad", 0, 2),
            played("fixed", 0, 2),
            played("shaky", 1, 1),
            played("good", 2, 0),
            played("shaken", 1, 1),
            played("out", 0, 0),
            played("gone", 0, 1),
        ]);
        let now = results(vec![
            played("broken", 0, 2),
            played("bad", 0, 2),
            played("fixed", 2, 0),
            played("shaky", 2, 0),
            played("good", 2, 0),
            played("shaken", 0, 2),
            played("out", 0, 2),
            played("new and bad", 0, 2),
            played("new and good", 2, 0),
            played("new and shaky", 1, 1),
        ]);
        let lists = |report: &Report| {
            [
                &report.newly_failing,
                &report.still_failing,
                &report.fixed,
                &report.flaky,
            ]
            .map(|list| {
                assert_eq!(list.count as usize, list.first.len());
                list.first
                    .iter()
                    .map(|one| one.name.clone())
                    .collect::<Vec<_>>()
                    .join(", ")
            })
        };
        let mut report = Report::default();
        report.compare(&now, Some(&before));
        assert_eq!(
            lists(&report),
            [
                "broken, shaken, out, new and bad",
                "bad",
                "fixed",
                "shaky, new and shaky"
            ]
        );
        let mut first = Report::default();
        first.compare(&now, None);
        assert_eq!(
            lists(&first),
            ["broken, bad, shaken, out, new and bad", "", "", "new and shaky"]
        );
    }

    #[test]
    fn lists_end_but_counts_do_not() {
        let now = results((0..150).map(|n| played(&n.to_string(), 0, 1)).collect());
        let mut report = Report::default();
        report.compare(&now, None);
        assert_eq!(
            (report.newly_failing.count, report.newly_failing.first.len()),
            (150, LISTED)
        );
    }

    #[test]
    fn latencies_become_a_mean_and_percentiles() {
        let latency = |latencies: &[f64]| {
            let all = Results {
                latencies: latencies.to_vec(),
                ..results(Vec::new())
            };
            all.latency()
                .map(|found| (found.mean_ms, found.p50_ms, found.p95_ms, found.items))
        };
        assert_eq!(latency(&[]), None);
        assert_eq!(latency(&[7.0]), Some((7.0, 7.0, 7.0, 1)));
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(latency(&hundred), Some((51.0, 50.0, 95.0, 100)));
    }
}
