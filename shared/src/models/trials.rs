//! Repeated trials: what a run's simulations came to, how two runs compare, and new runs out of what an old one kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Object, Validate, check,
    evaluation::{EvaluationPlanItem, LatencyExpectation},
    kinds, lenient,
    page::PaginationMeta,
    run::{RunStatus, SimulationRunTarget, Transport},
    schedule::Notify,
};

kinds::names! {
    /// How a run came from another one.
    OriginKind {
        /// It plays items of the other run again.
        Rerun = "rerun",
        /// It judges the conversations that the other run kept.
        Evaluation = "evaluation",
    }
}

kinds::names! {
    /// Which items of a run are played again.
    RerunItems {
        /// Those that failed, whosever fault it was.
        Failed = "failed",
        /// Those that failed and those that were canceled.
        Unfinished = "unfinished",
        /// All of them.
        All = "all",
    }
}

kinds::names! {
    /// What became of a simulation between two runs. Only trials count: items that passed or failed by the agent's fault.
    Change {
        /// All its trials failed, and now all pass.
        Fixed = "fixed",
        /// All its trials passed, and now all fail.
        Broken = "broken",
        /// All its trials failed in both runs.
        StillFailing = "stillFailing",
        /// All its trials passed in both runs.
        StillPassing = "stillPassing",
        /// Some of its trials passed and some failed within one of the runs.
        Flaky = "flaky",
        /// The baseline does not have it.
        Added = "added",
        /// Only the baseline has it.
        Removed = "removed",
        /// One of the runs has no trial of it.
        Undecided = "undecided",
    }
}

/// Where a run comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunOrigin {
    /// How it came from there.
    #[serde(rename = "type")]
    pub kind: OriginKind,
    /// The other run.
    pub run_id: String,
}

/// Where an item comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemOrigin {
    /// The other run.
    pub run_id: String,
    /// Its item.
    pub item_id: String,
}

/// A request to play items of a run again; all of it may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RerunSimulationRun {
    /// Which items; absent means those that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<RerunItems>,
    /// How the tester reaches the target; absent means as in the other run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How many conversations may be held at a time; absent means as in the other run.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub concurrency_limit: Option<i64>,
    /// What to test; absent means what the other run tested, as it is now if it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<SimulationRunTarget>,
    /// Who is told how it came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A request to judge a run's conversations again; all of it may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluateSimulationRun {
    /// How the conversations of some scenarios or simulations are judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenarios: Option<Vec<ScenarioEvaluations>>,
    /// How all others are judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub evaluations: Option<Vec<EvaluationPlanItem>>,
    /// Ceilings on the target's latency, where `scenarios` does not say otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_expectations: Option<Vec<LatencyExpectation>>,
    /// Who is told how it came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How the conversations of a scenario or a simulation are judged; exactly one id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["scenarioId"], "properties": {"scenarioId": {"not": {"type": "null"}}, "simulationId": {"type": "null"}}}, {"required": ["simulationId"], "properties": {"simulationId": {"not": {"type": "null"}}, "scenarioId": {"type": "null"}}}]))]
pub struct ScenarioEvaluations {
    /// The scenario whose conversations these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario_id: Option<String>,
    /// The simulation whose conversations these are; it counts before `scenario_id` of another entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulation_id: Option<String>,
    /// The checks that decide whether an item passes.
    #[schemars(length(min = 1))]
    pub evaluations: Vec<EvaluationPlanItem>,
    /// Ceilings on the target's latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_expectations: Option<Vec<LatencyExpectation>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A simulation by its id and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationName {
    /// The simulation.
    pub id: String,
    /// Its name when the run was created.
    pub name: String,
}

/// A simulation of a run with the names that it and its parts had when the run was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlayedSimulation {
    /// The simulation.
    #[serde(flatten)]
    pub simulation: SimulationName,
    /// The stored scenario, unless it came inline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario_id: Option<String>,
    /// The scenario's name.
    pub scenario_name: String,
    /// The stored personality, unless it came inline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality_id: Option<String>,
    /// The personality's name.
    pub personality_name: String,
}

/// Items by what they say about the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialCounts {
    /// Items that were decided: passed, or failed by the agent's fault.
    pub trials: u32,
    /// Trials that passed.
    pub passed: u32,
    /// Trials that failed.
    pub failed: u32,
    /// Items that failed by the fault of somebody else: they say nothing about the agent.
    pub errored: u32,
    /// Items that were canceled.
    pub canceled: u32,
    /// Items that are not over.
    pub open: u32,
    /// Passed by trials; null without trials.
    pub pass_rate: Option<f64>,
}

/// An estimate of the chance that `k` trials in a row pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PassHatK {
    /// How many trials.
    pub k: u32,
    /// The estimate, from 0 to 1.
    pub value: f64,
}

/// Bounds of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// The lower bound, from 0 to 1.
    pub low: f64,
    /// The upper bound, from 0 to 1.
    pub high: f64,
}

/// What a simulation came to in a run, all of its iterations and entries together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationTrials {
    /// The simulation.
    #[serde(flatten)]
    pub simulation: PlayedSimulation,
    /// Its items.
    #[serde(flatten)]
    pub counts: TrialCounts,
    /// pass^k for k from 1 to the number of trials, but at most 10; empty without trials.
    pub pass_hat_k: Vec<PassHatK>,
    /// The Wilson 95 % interval of the pass rate; null without trials.
    pub wilson95: Option<Interval>,
    /// Whether some trials passed and some failed.
    pub flaky: bool,
}

/// A run's items in all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SummaryTotals {
    /// Different simulations.
    pub simulations: u32,
    /// Those that are flaky.
    pub flaky: u32,
    /// All items.
    #[serde(flatten)]
    pub counts: TrialCounts,
}

/// What a run's simulations came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunSummary {
    /// The run.
    pub run_id: String,
    /// Where the run stands.
    pub status: RunStatus,
    /// Where it comes from, if it came from another run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<RunOrigin>,
    /// All items, also of simulations on other pages.
    pub totals: SummaryTotals,
    /// The flaky simulations of the whole run, at most 1,000 of them.
    pub flaky: Vec<SimulationName>,
    /// The simulations on this page, in the run's order.
    pub simulations: Vec<SimulationTrials>,
    /// Where the page stands in the list of simulations.
    pub metadata: PaginationMeta,
}

/// A simulation in one of two runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedSide {
    /// The simulation's id in that run.
    pub simulation_id: String,
    /// Items that passed, or failed by the agent's fault.
    pub trials: u32,
    /// Trials that passed.
    pub passed: u32,
    /// Passed by trials; null without trials.
    pub pass_rate: Option<f64>,
}

/// A simulation in two runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedSimulation {
    /// The simulation; as the baseline has it where only the baseline does.
    #[serde(flatten)]
    pub simulation: PlayedSimulation,
    /// What became of it.
    pub change: Change,
    /// In the run; null where it was removed.
    pub run: Option<ComparedSide>,
    /// In the baseline; null where it was added.
    pub baseline: Option<ComparedSide>,
}

/// How a run compares with another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunComparison {
    /// The run.
    pub run_id: String,
    /// Where it stands.
    pub status: RunStatus,
    /// The run that it is compared with.
    pub baseline_run_id: String,
    /// Where that one stands.
    pub baseline_status: RunStatus,
    /// How many simulations changed how; every change is named.
    pub counts: BTreeMap<String, u32>,
    /// The simulations by change, at most 1,000 of each.
    pub changes: BTreeMap<String, Vec<SimulationName>>,
    /// The simulations on this page: the run's in its order, then those that only the baseline has.
    pub simulations: Vec<ComparedSimulation>,
    /// Where the page stands in the list of simulations.
    pub metadata: PaginationMeta,
}

impl Validate for RerunSimulationRun {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        self.target.validate(&check::join(path, "target"), faults);
        self.notify.validate(&check::join(path, "notify"), faults);
    }
}

impl Validate for EvaluateSimulationRun {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        self.scenarios.validate(&check::join(path, "scenarios"), faults);
        self.evaluations
            .validate(&check::join(path, "evaluations"), faults);
        some(path, self.evaluations.as_deref(), faults);
        self.latency_expectations
            .validate(&check::join(path, "latencyExpectations"), faults);
        self.notify.validate(&check::join(path, "notify"), faults);
    }
}

impl Validate for ScenarioEvaluations {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let scenario = ("scenarioId", self.scenario_id.is_some());
        kinds::one_of(
            path,
            scenario,
            ("simulationId", self.simulation_id.is_some()),
            faults,
        );
        kinds::id(path, "scenarioId", self.scenario_id.as_ref(), faults);
        kinds::id(path, "simulationId", self.simulation_id.as_ref(), faults);
        self.evaluations
            .validate(&check::join(path, "evaluations"), faults);
        some(path, Some(&self.evaluations), faults);
        self.latency_expectations
            .validate(&check::join(path, "latencyExpectations"), faults);
    }
}

/// Nothing can be judged by no evaluation.
fn some(path: &str, evaluations: Option<&[EvaluationPlanItem]>, faults: &mut Vec<String>) {
    if evaluations.is_some_and(<[_]>::is_empty) {
        faults.push(format!(
            "{} should not be empty",
            check::join(path, "evaluations")
        ));
    }
}
