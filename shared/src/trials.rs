//! What repeated trials say about an agent, as pure functions: pass rates, pass^k, Wilson intervals, and how two runs compare.
//!
//! A *trial* is an item that was decided: it passed, or it failed by the agent's fault. What failed by the fault of anybody
//! else, was canceled or is not over is counted beside, and no rate is made of it.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    lifecycle::{Failure, Fault, State},
    models::trials::{Change, Interval, PassHatK},
};

/// The greatest k for which pass^k is given.
pub const MAX_K: u32 = 10;

/// How many standard deviations of the normal distribution are 95 % of it, to both sides.
const Z: f64 = 1.959_963_984_540_054;

/// What an item says about the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed by the agent's fault: a required evaluation failed, or the agent could not be talked to.
    Failed,
    /// It failed by the fault of the tester, a provider or Ringback.
    Errored,
    /// Somebody stopped it.
    Canceled,
    /// It is not over.
    Open,
}

impl Outcome {
    /// The outcome of an item in `state`, with its failure if it failed. A failure that is nobody's fault is a verdict.
    #[must_use]
    pub fn of(state: State, failure: Option<&Failure>) -> Self {
        match state {
            State::Queued | State::Admitted | State::Running | State::Evaluating => Self::Open,
            State::Passed => Self::Passed,
            State::Canceled => Self::Canceled,
            State::Failed => match failure.and_then(|failure| failure.fault) {
                None | Some(Fault::Target) => Self::Failed,
                Some(Fault::Tester | Fault::Provider | Fault::Ringback) => Self::Errored,
            },
        }
    }
}

/// The items of a simulation, or of many, by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    /// Passed.
    pub passed: u32,
    /// Failed by the agent's fault.
    pub failed: u32,
    /// Failed by the fault of somebody else.
    pub errored: u32,
    /// Canceled.
    pub canceled: u32,
    /// Not over.
    pub open: u32,
}

impl Trials {
    /// Counts one more item.
    pub fn add(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Failed => &mut self.failed,
            Outcome::Errored => &mut self.errored,
            Outcome::Canceled => &mut self.canceled,
            Outcome::Open => &mut self.open,
        };
        *count += 1;
    }

    /// Both in one.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            errored: self.errored + other.errored,
            canceled: self.canceled + other.canceled,
            open: self.open + other.open,
        }
    }

    /// How many items they are.
    #[must_use]
    pub fn items(self) -> u32 {
        self.count() + self.errored + self.canceled + self.open
    }

    /// How many of them are trials.
    #[must_use]
    pub fn count(self) -> u32 {
        self.passed + self.failed
    }

    /// Whether some trials passed and some failed.
    #[must_use]
    pub fn is_flaky(self) -> bool {
        self.passed > 0 && self.failed > 0
    }

    /// The share of the trials that passed, from 0 to 1; nothing without trials.
    #[must_use]
    pub fn pass_rate(self) -> Option<f64> {
        (self.count() > 0).then(|| f64::from(self.passed) / f64::from(self.count()))
    }

    /// pass^k: the chance that `k` trials all pass, by the unbiased estimator C(passed, k) / C(trials, k). Nothing for fewer
    /// than `k` trials, or for no `k`.
    #[must_use]
    pub fn pass_hat(self, k: u32) -> Option<f64> {
        let trials = self.count();
        if k == 0 || k > trials {
            return None;
        }
        // As a product of ratios below 1: the binomials themselves would not fit.
        let ratio = |n: u32| f64::from(self.passed.saturating_sub(n)) / f64::from(trials - n);
        Some((0..k).map(ratio).product())
    }

    /// pass^k for every k from 1 to the number of trials, but at most [`MAX_K`].
    #[must_use]
    pub fn pass_hats(self) -> Vec<PassHatK> {
        (1..=MAX_K)
            .map_while(|k| self.pass_hat(k).map(|value| PassHatK { k, value }))
            .collect()
    }

    /// The Wilson score interval of the pass rate at 95 %, without a correction for continuity; nothing without trials.
    #[must_use]
    pub fn wilson95(self) -> Option<Interval> {
        let (rate, trials) = (self.pass_rate()?, f64::from(self.count()));
        let square = Z * Z;
        let scale = 1.0 + square / trials;
        let center = (rate + square / (2.0 * trials)) / scale;
        let variance = rate * (1.0 - rate) / trials + square / (4.0 * trials * trials);
        let reach = Z * variance.sqrt() / scale;
        // At the ends the formula gives 0 and 1 exactly; rounding would not.
        Some(Interval {
            low: if self.passed == 0 {
                0.0
            } else {
                (center - reach).max(0.0)
            },
            high: if self.failed == 0 {
                1.0
            } else {
                (center + reach).min(1.0)
            },
        })
    }
}

/// What became of a simulation from the `baseline` to `now`; `None` where a run does not have it.
#[must_use]
pub fn change(baseline: Option<Trials>, now: Option<Trials>) -> Change {
    let (baseline, now) = match (baseline, now) {
        (None, Some(_)) => return Change::Added,
        (Some(_), None) => return Change::Removed,
        (None, None) => return Change::Undecided,
        (Some(baseline), Some(now)) => (baseline, now),
    };
    if baseline.count() == 0 || now.count() == 0 {
        return Change::Undecided;
    }
    if baseline.is_flaky() || now.is_flaky() {
        return Change::Flaky;
    }
    match (baseline.passed > 0, now.passed > 0) {
        (false, true) => Change::Fixed,
        (true, false) => Change::Broken,
        (false, false) => Change::StillFailing,
        (true, true) => Change::StillPassing,
    }
}

/// What a simulation is recognized by in another run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id; one made for the run where it came inline.
    pub simulation: Uuid,
    /// The stored scenario, unless it came inline.
    pub scenario: Option<Uuid>,
    /// The stored personality, unless it came inline.
    pub personality: Option<Uuid>,
    /// Its name; empty if it has none.
    pub name: String,
}

/// A simulation's place in the baseline and in the run.
pub type Pair = (Option<usize>, Option<usize>);

/// Finds the same simulations in two runs: by id, else by scenario and personality, else by name. Of several that look the
/// same, the first goes with the first. Gives those of the run in order, then those that only the baseline has.
#[must_use]
pub fn pairs(baseline: &[Identity], now: &[Identity]) -> Vec<Pair> {
    let mut matched = Matched {
        of: vec![None; now.len()],
        taken: vec![false; baseline.len()],
    };
    matched.by(baseline, now, |identity| Some(identity.simulation));
    matched.by(baseline, now, |identity| {
        Some((identity.scenario?, identity.personality?))
    });
    matched.by(baseline, now, |identity| {
        Some(identity.name.as_str()).filter(|name| !name.is_empty())
    });
    let Matched { of, taken } = matched;
    let here = of.into_iter().enumerate().map(|(n, before)| (before, Some(n)));
    let removed = taken.into_iter().enumerate().filter(|(_, taken)| !taken);
    here.chain(removed.map(|(n, _)| (Some(n), None))).collect()
}

/// What was found so far.
struct Matched {
    /// The place in the baseline of each simulation of the run.
    of: Vec<Option<usize>>,
    /// Whether a simulation of the baseline is one of them.
    taken: Vec<bool>,
}

impl Matched {
    fn by<'a, K: Eq + Hash>(
        &mut self,
        baseline: &'a [Identity],
        now: &'a [Identity],
        key: impl Fn(&'a Identity) -> Option<K>,
    ) {
        let mut free: HashMap<K, VecDeque<usize>> = HashMap::new();
        for (n, identity) in baseline.iter().enumerate() {
            if self.taken.get(n) == Some(&false)
                && let Some(key) = key(identity)
            {
                free.entry(key).or_default().push_back(n);
            }
        }
        for (identity, before) in now.iter().zip(&mut self.of) {
            if before.is_none()
                && let Some(n) = key(identity).and_then(|key| free.get_mut(&key)?.pop_front())
            {
                *before = Some(n);
                if let Some(taken) = self.taken.get_mut(n) {
                    *taken = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trials(passed: u32, failed: u32) -> Trials {
        Trials {
            passed,
            failed,
            ..Trials::default()
        }
    }

    fn close(a: f64, b: f64, within: f64) -> bool {
        (a - b).abs() <= within
    }

    #[test]
    fn only_the_agents_own_failures_count_against_it() {
        let failed = |fault| Failure::new("why", fault);
        for (state, fault, outcome) in [
            (State::Queued, None, Outcome::Open),
            (State::Admitted, None, Outcome::Open),
            (State::Running, None, Outcome::Open),
            (State::Evaluating, None, Outcome::Open),
            (State::Passed, None, Outcome::Passed),
            (State::Canceled, None, Outcome::Canceled),
            (State::Failed, None, Outcome::Failed),
            (State::Failed, Some(Fault::Target), Outcome::Failed),
            (State::Failed, Some(Fault::Tester), Outcome::Errored),
            (State::Failed, Some(Fault::Provider), Outcome::Errored),
            (State::Failed, Some(Fault::Ringback), Outcome::Errored),
        ] {
            let failure = (state == State::Failed).then(|| failed(fault));
            assert_eq!(
                Outcome::of(state, failure.as_ref()),
                outcome,
                "{state:?} {fault:?}"
            );
        }
        assert_eq!(Outcome::of(State::Failed, None), Outcome::Failed);
    }

    #[test]
    fn what_is_no_trial_changes_no_rate() {
        let mut all = trials(3, 1);
        let (rate, hats, interval) = (all.pass_rate(), all.pass_hats(), all.wilson95());
        for outcome in [Outcome::Errored, Outcome::Canceled, Outcome::Open, Outcome::Open] {
            all.add(outcome);
        }
        assert_eq!((all.count(), all.items()), (4, 8));
        assert_eq!(
            (all.pass_rate(), all.pass_hats(), all.wilson95()),
            (rate, hats, interval)
        );
        assert_eq!(all.plus(all).items(), 16);
    }

    #[test]
    fn wilson_intervals_are_the_published_ones() {
        // The first four are method 3 of table I in Newcombe, Statistics in Medicine 17 (1998), to its four digits.
        for (passed, of, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (1, 1, 0.2065, 1.0),
            (0, 1, 0.0, 0.7935),
            (5, 10, 0.2366, 0.7634),
            (10, 10, 0.7225, 1.0),
            (0, 10, 0.0, 0.2775),
        ] {
            let interval = trials(passed, of - passed).wilson95().unwrap();
            assert!(
                close(interval.low, low, 0.000_05) && close(interval.high, high, 0.000_05),
                "{passed} of {of}: {interval:?}"
            );
        }
        // All pass: n / (n + z²).
        let all = trials(1, 0).wilson95().unwrap();
        assert!(close(all.low, 1.0 / (1.0 + Z * Z), 1e-15));
        assert!(close(all.high, 1.0, 0.0));
    }

    #[test]
    fn without_trials_nothing_is_said() {
        let none = Trials {
            errored: 3,
            open: 1,
            ..Trials::default()
        };
        assert_eq!(
            (none.pass_rate(), none.wilson95(), none.pass_hat(1)),
            (None, None, None)
        );
        assert!(none.pass_hats().is_empty() && !none.is_flaky());
    }

    #[test]
    fn pass_hat_k_is_the_unbiased_estimator() {
        // C(c, k) / C(n, k).
        for (passed, failed, k, numerator, denominator) in [
            (3, 1, 1, 3.0, 4.0),
            (3, 1, 2, 3.0, 6.0),
            (3, 1, 3, 1.0, 4.0),
            (3, 1, 4, 0.0, 1.0),
            (5, 5, 5, 1.0, 252.0),
            (8, 2, 3, 56.0, 120.0),
            (1, 0, 1, 1.0, 1.0),
            (0, 3, 2, 0.0, 1.0),
        ] {
            let value = trials(passed, failed).pass_hat(k).unwrap();
            assert!(
                close(value, numerator / denominator, 1e-12),
                "{passed} of {}, k = {k}: {value}",
                passed + failed
            );
        }
        assert_eq!(
            trials(2, 0)
                .pass_hats()
                .iter()
                .map(|hat| (hat.k, hat.value))
                .collect::<Vec<_>>(),
            [(1, 1.0), (2, 1.0)]
        );
        assert_eq!(trials(90, 10).pass_hats().len(), MAX_K as usize);
        assert_eq!((trials(3, 1).pass_hat(0), trials(3, 1).pass_hat(5)), (None, None));
    }

    #[test]
    fn a_change_is_told_from_the_trials_of_both_runs() {
        let (pass, fail, mixed, none) = (trials(2, 0), trials(0, 3), trials(1, 1), Trials::default());
        for (baseline, now, expected) in [
            (Some(fail), Some(pass), Change::Fixed),
            (Some(pass), Some(fail), Change::Broken),
            (Some(fail), Some(fail), Change::StillFailing),
            (Some(pass), Some(pass), Change::StillPassing),
            (Some(mixed), Some(pass), Change::Flaky),
            (Some(fail), Some(mixed), Change::Flaky),
            (Some(mixed), Some(mixed), Change::Flaky),
            (Some(none), Some(mixed), Change::Undecided),
            (Some(mixed), Some(none), Change::Undecided),
            (Some(none), Some(none), Change::Undecided),
            (None, Some(pass), Change::Added),
            (None, Some(none), Change::Added),
            (Some(fail), None, Change::Removed),
        ] {
            assert_eq!(change(baseline, now), expected, "{baseline:?} {now:?}");
        }
    }

    fn identity(simulation: u128, parts: Option<(u128, u128)>, name: &str) -> Identity {
        Identity {
            simulation: Uuid::from_u128(simulation),
            scenario: parts.map(|(scenario, _)| Uuid::from_u128(scenario)),
            personality: parts.map(|(_, personality)| Uuid::from_u128(personality)),
            name: name.to_owned(),
        }
    }

    #[test]
    fn simulations_are_found_by_id_then_by_parts_then_by_name() {
        let baseline = [
            identity(1, Some((10, 20)), "by id"),
            identity(2, Some((11, 20)), "by parts"),
            identity(3, None, "by name"),
            identity(4, None, "gone"),
            identity(5, None, "twice"),
            identity(6, None, "twice"),
            identity(7, None, ""),
        ];
        let now = [
            identity(106, None, "twice"),
            identity(103, None, "by name"),
            // The same parts as the first of the baseline, which is another's by its id.
            identity(105, Some((10, 20)), "new"),
            identity(102, Some((11, 20)), "renamed"),
            identity(1, Some((11, 20)), "changed"),
            identity(107, None, ""),
        ];
        assert_eq!(
            pairs(&baseline, &now),
            [
                (Some(4), Some(0)),
                (Some(2), Some(1)),
                (None, Some(2)),
                (Some(1), Some(3)),
                (Some(0), Some(4)),
                (None, Some(5)),
                (Some(3), None),
                (Some(5), None),
                (Some(6), None),
            ]
        );
        assert_eq!(pairs(&[], &[]), []);
    }

    /// A simulation's id, its scenario's and personality's, and its name.
    type Named = (u128, Option<(u128, u128)>, String);

    proptest! {
        #[test]
        fn intervals_contain_the_rate_and_narrow_with_more_trials(passed in 0_u32..2000, failed in 0_u32..2000) {
            prop_assume!(passed + failed > 0);
            let here = trials(passed, failed);
            let (rate, interval) = (here.pass_rate().unwrap(), here.wilson95().unwrap());
            prop_assert!(0.0 <= interval.low && interval.low <= rate);
            prop_assert!(rate <= interval.high && interval.high <= 1.0);
            let more = trials(passed * 4, failed * 4).wilson95().unwrap();
            prop_assert!(more.high - more.low < interval.high - interval.low);
            // Seen from the other side it is the mirror image.
            let mirrored = trials(failed, passed).wilson95().unwrap();
            prop_assert!(close(mirrored.low, 1.0 - interval.high, 1e-9));
        }

        #[test]
        fn pass_hat_k_begins_with_the_rate_and_only_falls(passed in 0_u32..60, failed in 0_u32..60) {
            let here = trials(passed, failed);
            let hats = here.pass_hats();
            prop_assert_eq!(hats.len() as u32, here.count().min(MAX_K));
            prop_assert_eq!(hats.first().map(|hat| hat.value), here.pass_rate());
            for pair in hats.windows(2) {
                prop_assert!(pair[1].value <= pair[0].value && pair[1].value >= 0.0);
            }
            for hat in hats {
                prop_assert_eq!(hat.value > 0.0, hat.k <= passed);
            }
        }

        #[test]
        fn a_change_seen_backwards_is_its_opposite(
            before in proptest::option::of((0_u32..3, 0_u32..3)),
            after in proptest::option::of((0_u32..3, 0_u32..3)),
        ) {
            let side = |counts: Option<(u32, u32)>| counts.map(|(passed, failed)| trials(passed, failed));
            let opposite = match change(side(before), side(after)) {
                Change::Fixed => Change::Broken,
                Change::Broken => Change::Fixed,
                Change::Added => Change::Removed,
                Change::Removed => Change::Added,
                same => same,
            };
            prop_assert_eq!(change(side(after), side(before)), opposite);
        }

        #[test]
        fn every_simulation_is_in_exactly_one_pair(
            baseline in proptest::collection::vec((0_u128..6, proptest::option::of((0_u128..2, 0_u128..2)), "[ab]?"), 0..8),
            now in proptest::collection::vec((0_u128..6, proptest::option::of((0_u128..2, 0_u128..2)), "[ab]?"), 0..8),
        ) {
            let identities = |all: &[Named]| -> Vec<Identity> {
                all.iter().map(|(id, parts, name)| identity(*id, *parts, name)).collect()
            };
            let found = pairs(&identities(&baseline), &identities(&now));
            let mut before: Vec<usize> = found.iter().filter_map(|pair| pair.0).collect();
            before.sort_unstable();
            prop_assert_eq!(before, (0..baseline.len()).collect::<Vec<_>>());
            let after: Vec<usize> = found.iter().filter_map(|pair| pair.1).collect();
            prop_assert_eq!(after, (0..now.len()).collect::<Vec<_>>());
        }
    }
}
