//! A run of Ringback as a result of Cekura: what is read of it, what it counts, and the three shapes in which it is shown.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::iso,
    evaluation::Verdict,
    lifecycle::{Item, State},
    models::{
        Object,
        evaluation::StructuredOutputEvaluationResult,
        metric::{Alignment, EvalType, ExpectedOutcome, MetricResult, RuleResult, Scores, Standing},
    },
    store::{self, Kind, ListQuery, Manifest, Names, Numbered, RunHead, RunKind, RunState},
    trials::Outcome,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    agents,
    answer::Refusal,
    metrics,
    objects::{Asked, Numbers},
};
use crate::{items, reruns::JUDGES_IN_PLACE, runs};

/// The most runs that are shown with their result. What has more says how many are left out; they are in the list of runs.
const SHOWN: u32 = 500;
/// How many results of items are read at once.
pub(super) const READS: usize = 16;
/// How many ids a result has for its runs: the most items that a run of Ringback may have, rounded up.
const RUNS_BITS: u32 = 17;

/// The id of an item, made of that of its run.
pub(super) fn run_number(result: u64, index: u32) -> u64 {
    (result << RUNS_BITS) | u64::from(index)
}

/// Which result an item's id belongs to, and which of its items it is.
pub(super) fn split_run(number: u64) -> (u64, u32) {
    let index = number & ((1 << RUNS_BITS) - 1);
    (number >> RUNS_BITS, u32::try_from(index).unwrap_or(u32::MAX))
}

/// What a run was asked for in this shape; a run of another shape has said nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label<'a>(&'a Object);

impl<'a> Label<'a> {
    pub(super) fn of(manifest: &'a Manifest) -> Self {
        Self(&manifest.label)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }
}

/// The agent that a run tests: the one that it was asked for, or its target.
pub(super) fn agent_of(head: &RunHead, label: &Label<'_>) -> Option<Uuid> {
    let asked = label.text("agentId").and_then(|id| Uuid::try_parse(id).ok());
    let target = head.target_id.filter(|_| head.target_type == "assistant");
    asked.or(target)
}

/// A run of Ringback with all that its result shows.
pub(super) struct Whole {
    pub(super) head: RunHead,
    pub(super) manifest: Manifest,
    names: BTreeMap<Uuid, Names>,
    /// Its items, or some of them, as far as their standings tell.
    pub(super) items: Vec<Item>,
    /// Whose verdict an item has, if it is not its own.
    judged_as: HashMap<u32, Uuid>,
    /// What they came to, where that was read.
    verdicts: HashMap<u32, Verdict>,
    counts: Counts,
    agent_name: String,
    agent_inbound: bool,
}

/// How many of a result's runs came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    total: u32,
    open: u32,
    evaluating: u32,
    completed: u32,
    success: u32,
    failed: u32,
    cancelled: u32,
    outcomes: u32,
    outcomes_met: u32,
}

impl Counts {
    fn add(&mut self, item: &Item) {
        self.total += 1;
        match Outcome::of(item.state, item.failure.as_ref()) {
            Outcome::Open => {
                self.open += 1;
                self.evaluating += u32::from(item.state == State::Evaluating);
            }
            Outcome::Canceled => self.cancelled += 1,
            Outcome::Passed => self.success += 1,
            Outcome::Failed | Outcome::Errored => self.failed += 1,
        }
        self.completed += u32::from(is_judged(item));
        self.outcomes += u32::from(item.outcome_met.is_some());
        self.outcomes_met += u32::from(item.outcome_met == Some(true));
    }

    fn success_rate(&self, version: u8) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        let share = f64::from(self.success) / f64::from(self.total);
        // The first version tells the share, the second one per cent.
        match version {
            1 => share,
            _ => share * 100.0,
        }
    }

    fn status(&self, head: &RunHead) -> &'static str {
        match head.state {
            RunState::Ended if self.open > 0 => "running",
            RunState::Ended if head.canceled_at.is_some() => "cancelled",
            RunState::Ended if self.completed == 0 && self.failed > 0 => "failed",
            RunState::Ended => "completed",
            RunState::Queued => "pending",
            RunState::Running if self.open > 0 && self.open == self.evaluating => "evaluating",
            RunState::Running => "running",
        }
    }
}

/// Fills in what an item came to.
fn stands(item: &mut Item, standing: store::Standing) {
    item.state = standing.state;
    item.failure = standing.failure;
    item.facts = standing.facts;
    item.decided_at = standing.decided_at;
    item.latency_ms = standing.latency_ms;
    item.outcome_met = standing.outcome_met;
}

/// Whether an item has a verdict: then its run is completed, whatever the verdict is.
fn is_judged(item: &Item) -> bool {
    let fault = item.failure.as_ref().and_then(|failure| failure.fault);
    match item.state {
        State::Passed => true,
        State::Failed => fault.is_none(),
        _ => false,
    }
}

/// Where a run stands in Cekura's words.
pub(super) fn status_of(item: &Item) -> &'static str {
    match item.state {
        State::Queued => "in_queue",
        State::Admitted => "pending",
        State::Running => "in_progress",
        State::Evaluating => "evaluating",
        State::Passed => "completed",
        State::Failed if is_judged(item) => "completed",
        State::Failed => "failed",
        State::Canceled => "cancelled",
    }
}

/// A run that judges another one's conversations once more, in its place: it is no result of its own.
pub(super) struct InPlace {
    pub(super) head: RunHead,
    /// The places of its items in the other.
    pub(super) places: Vec<u32>,
}

/// Those of the organization, newest first, where somebody has read them.
pub(super) type Judging<'a> = Option<&'a [InPlace]>;

/// The places of a run's items in the run that it judges in its place, if it does.
pub(super) async fn places_of(asked: Asked<'_>, head: &RunHead) -> Result<Option<Vec<u32>>, Refusal> {
    if !head.only_judges() {
        return Ok(None);
    }
    let manifest = asked.ctx.store.manifest(head.id).await?;
    let places = manifest.label.get(JUDGES_IN_PLACE).cloned();
    Ok(places.and_then(|places| serde_json::from_value(places).ok()))
}

/// Puts what was found when a run was judged again in the place of what was found before, oldest first, and notes whose verdict an item has
/// then. What could not be judged stays as it was. The items are in order.
async fn judge_again(
    asked: Asked<'_>,
    head: &RunHead,
    judging: Judging<'_>,
    items: &mut [Item],
) -> Result<HashMap<u32, Uuid>, Refusal> {
    let mut judged_as = HashMap::new();
    if head.state != RunState::Ended {
        return Ok(judged_as);
    }
    let is_of = |newer: &RunHead| newer.origin.is_some_and(|origin| origin.run == head.id);
    let mut read = Vec::new();
    if judging.is_none() {
        for newer in heads_since(asked, head.id).await?.into_iter().filter(is_of) {
            if let Some(places) = places_of(asked, &newer).await? {
                read.push(InPlace { head: newer, places });
            }
        }
    }
    let all = judging.unwrap_or(&read).iter().rev();
    for InPlace { head: newer, places } in all.filter(|newer| is_of(&newer.head)) {
        let wanted: Vec<u32> = (0..)
            .zip(places)
            .filter_map(|(index, place)| {
                let is_there = items.binary_search_by_key(place, |item| item.index).is_ok();
                is_there.then_some(index)
            })
            .collect();
        for found in items::load(asked.ctx, newer, &wanted).await? {
            let place = places.get(found.index as usize);
            let place = place.and_then(|place| items.binary_search_by_key(place, |item| item.index).ok());
            let Some(item) = place.and_then(|place| items.get_mut(place)) else {
                continue;
            };
            match Outcome::of(found.state, found.failure.as_ref()) {
                Outcome::Canceled | Outcome::Errored => continue,
                Outcome::Open => item.state = State::Evaluating,
                Outcome::Passed | Outcome::Failed => item.state = found.state,
            }
            judged_as.insert(item.index, found.id());
            item.failure = found.failure;
            item.decided_at = found.decided_at;
            item.outcome_met = found.outcome_met;
            item.updated_at = found.updated_at;
        }
    }
    Ok(judged_as)
}

/// The organization's runs from this one on, newest first.
pub(super) async fn heads_since(asked: Asked<'_>, first: Uuid) -> Result<Vec<RunHead>, Refusal> {
    let mut query = ListQuery {
        ids: first..=Uuid::max(),
        newest_first: true,
        after: None,
        limit: 500,
    };
    let mut heads = Vec::new();
    loop {
        let listed = asked
            .ctx
            .store
            .list_runs(asked.org, RunKind::Simulation, &query)
            .await?;
        query.after = listed.entries.last().map(|head| head.id);
        heads.extend(
            listed
                .entries
                .into_iter()
                .filter(|head| head.deleted_at.is_none()),
        );
        if !listed.more || query.after.is_none() {
            return Ok(heads);
        }
    }
}

impl Whole {
    /// Reads a run, with the verdicts on what is shown of it.
    pub(super) async fn read(asked: Asked<'_>, head: RunHead, judging: Judging<'_>) -> Result<Self, Refusal> {
        let whole = Self::read_heads(asked, head, judging).await?;
        whole.with_verdicts(asked, SHOWN).await
    }

    /// Reads a run, of its items only these, with the verdicts on them. It counts no others.
    pub(super) async fn read_some(
        asked: Asked<'_>,
        head: RunHead,
        indexes: &[u32],
        judging: Judging<'_>,
    ) -> Result<Self, Refusal> {
        let mut indexes = indexes.to_vec();
        indexes.sort_unstable();
        let items = items::load(asked.ctx, &head, &indexes).await?;
        let whole = Self::of(asked, head, items, judging).await?;
        whole.with_verdicts(asked, u32::MAX).await
    }

    /// A run that was just made, with those of its items that are shown.
    pub(super) async fn new(asked: Asked<'_>, head: RunHead) -> Result<Self, Refusal> {
        let indexes = 0..head.total.min(SHOWN);
        let items = indexes.map(|index| head.item(index, head.created_at)).collect();
        Self::of(asked, head, items, Some(&[])).await
    }

    /// Reads a run, of its items what a count needs: a result may have 100,000.
    pub(super) async fn read_heads(
        asked: Asked<'_>,
        head: RunHead,
        judging: Judging<'_>,
    ) -> Result<Self, Refusal> {
        let store = &asked.ctx.store;
        // Those that are not stored yet wait.
        let mut items: Vec<Item> = (0..head.total)
            .map(|index| head.item(index, head.created_at))
            .collect();
        let mut partitions = stream::iter(0..head.partitions())
            .map(|partition| store.standings(head.id, partition))
            .buffered(READS);
        while let Some(standings) = partitions.try_next().await? {
            for standing in standings {
                if let Some(item) = items.get_mut(standing.index as usize) {
                    stands(item, standing);
                }
            }
        }
        drop(partitions);
        Self::of(asked, head, items, judging).await
    }

    /// A run with these of its items, in order.
    async fn of(
        asked: Asked<'_>,
        head: RunHead,
        mut items: Vec<Item>,
        judging: Judging<'_>,
    ) -> Result<Self, Refusal> {
        let store = &asked.ctx.store;
        let (manifest, names) = tokio::try_join!(store.manifest(head.id), store.names(head.id))?;
        let judged_as = judge_again(asked, &head, judging, &mut items).await?;
        let mut counts = Counts::default();
        for item in &items {
            counts.add(item);
        }
        let label = Label::of(&manifest);
        let mut agent_name = label.text("agentName").map(str::to_owned);
        let mut agent_inbound = label.get("agentInbound").and_then(Value::as_bool);
        if agent_name.is_none() {
            let agent = match agent_of(&head, &label) {
                Some(agent) => store.definition(asked.org, Kind::Assistant, agent).await?,
                None => None,
            };
            agent_inbound = agent.as_ref().map(|agent| agents::is_inbound(&agent.body));
            agent_name = match agent {
                Some(agent) => Some(agents::name(&agent.body)),
                None => runs::target_name(&store.target(head.id).await?),
            };
        }
        Ok(Self {
            head,
            names,
            items,
            judged_as,
            verdicts: HashMap::new(),
            counts,
            agent_name: agent_name.unwrap_or_default(),
            agent_inbound: agent_inbound.unwrap_or(true),
            manifest,
        })
    }

    /// The same with the verdicts on the first of its items, and without the others.
    async fn with_verdicts(mut self, asked: Asked<'_>, most: u32) -> Result<Self, Refusal> {
        self.items.truncate(most as usize);
        let judged = self.items.iter().filter(|item| is_judged(item)).map(|item| {
            let of = self.judged_as.get(&item.index).copied();
            (item.index, of.unwrap_or_else(|| item.id()))
        });
        let store = &asked.ctx.store;
        let mut read = stream::iter(judged.collect::<Vec<_>>())
            .map(|(index, id)| async move { Ok::<_, Refusal>((index, store.item_result(id).await?)) })
            .buffered(READS);
        while let Some((index, result)) = read.try_next().await? {
            let verdict = result.and_then(|result| serde_json::from_str::<Verdict>(&result).ok());
            self.verdicts.extend(verdict.map(|verdict| (index, verdict)));
        }
        drop(read);
        Ok(self)
    }

    /// What was scored of an item.
    pub(super) fn scores(&self, item: &Item) -> Scores {
        self.verdicts.get(&item.index).map(scores_of).unwrap_or_default()
    }

    /// The agent that it tests.
    pub(super) fn agent(&self) -> Option<Uuid> {
        agent_of(&self.head, &Label::of(&self.manifest))
    }

    /// What an item's scenario was called.
    pub(super) fn scenario_name(&self, item: &Item) -> &str {
        self.names_of(item)
            .map(|names| names.scenario.as_str())
            .unwrap_or_default()
    }

    /// The things that are named by number in what is shown.
    pub(super) async fn number(&self, asked: Asked<'_>, numbers: &mut Numbers) -> Result<(), Refusal> {
        numbers.load(asked, Numbered::Run, [self.head.id]).await?;
        let label = Label::of(&self.manifest);
        let shown: BTreeSet<usize> = self.items.iter().map(|item| item.simulation as usize).collect();
        let refs = shown
            .into_iter()
            .filter_map(|place| self.manifest.refs.get(place));
        let mut named: Vec<(Kind, Uuid)> = refs
            .flat_map(|one| {
                let scenario = one.scenario_id.map(|id| (Kind::Scenario, id));
                scenario
                    .into_iter()
                    .chain(one.personality_id.map(|id| (Kind::Personality, id)))
            })
            .collect();
        named.extend(agent_of(&self.head, &label).map(|agent| (Kind::Assistant, agent)));
        for verdict in self.verdicts.values() {
            named.extend(named_in(verdict));
        }
        numbers.load_all(asked, named).await
    }

    /// What an item's personality was called.
    pub(super) fn personality_name(&self, item: &Item) -> &str {
        self.names_of(item)
            .map(|names| names.personality.as_str())
            .unwrap_or_default()
    }

    /// The verdict on an item, where it was read.
    pub(super) fn verdict(&self, item: &Item) -> Option<&Verdict> {
        self.verdicts.get(&item.index)
    }

    /// What a scenario and a personality of it were called.
    fn names_of(&self, item: &Item) -> Option<&Names> {
        let reference = self.manifest.refs.get(item.simulation as usize)?;
        self.names.get(&reference.simulation_id)
    }

    pub(super) fn result_number(&self, numbers: &Numbers) -> u64 {
        numbers.of_run(self.head.id).unwrap_or_default()
    }

    /// One of its runs, as it stands in a result.
    pub(super) fn run(&self, asked: Asked<'_>, numbers: &Numbers, item: &Item) -> Value {
        let reference = self.manifest.refs.get(item.simulation as usize);
        let scenario = reference.and_then(|one| numbers.of(Kind::Scenario, one.scenario_id?));
        let names = self.names_of(item);
        let verdict = self.verdicts.get(&item.index);
        let scores = verdict.map(scores_of).unwrap_or_default();
        let (inbound, outbound) = self.numbers_called();
        json!({
            "id": run_number(self.result_number(numbers), item.index),
            "scenario": scenario,
            "scenario_name": names.map(|names| names.scenario.as_str()).unwrap_or_default(),
            "personality_name": names.map(|names| names.personality.as_str()).unwrap_or_default(),
            "outbound_number": outbound,
            "inbound_number": inbound,
            "expected_outcome": expected_outcome(scores.expected_outcome.as_ref()),
            "success": success_of(item),
            "evaluation": { "metrics": all_metrics(asked.version, numbers, verdict, &scores) },
            "timestamp": iso(self.head.created_at),
            "executed_at": item.started_at().map(iso),
            "error_message": self.error_message(item),
            "status": status_of(item),
            "duration": minutes(duration_ms(item)),
            "metadata": self.metadata(item, verdict),
        })
    }

    /// Why a run broke off, or never began; nothing where it has a verdict.
    pub(super) fn error_message(&self, item: &Item) -> String {
        let failure = item.failure.as_ref().filter(|_| !is_judged(item));
        let withheld = self
            .head
            .withheld
            .as_ref()
            .filter(|_| item.state == State::Canceled);
        let why = failure.map(|failure| &failure.reason).or(withheld);
        why.cloned().unwrap_or_default()
    }

    /// The numbers of the agent's and the tester's side, as far as they are known.
    fn numbers_called(&self) -> (String, String) {
        let label = Label::of(&self.manifest);
        let own = label.text("agentNumber").unwrap_or_default().to_owned();
        match self.agent_inbound {
            true => (String::new(), own),
            false => (own, String::new()),
        }
    }

    fn metadata(&self, item: &Item, verdict: Option<&Verdict>) -> Value {
        let mut metadata = json!({
            "ringback_run_id": self.head.id, "ringback_item_id": item.id(), "iteration": item.iteration,
        });
        if let Some(ended) = item.ended() {
            metadata["ended_reason"] = json!(ended.reason);
        }
        if let Some(id) = item.call_id() {
            metadata["provider_call_id"] = json!(id);
        }
        if verdict.is_some_and(|verdict| verdict.all_required_skipped) {
            metadata["nothing_judged"] = json!(true);
        }
        metadata
    }

    /// The fields that all shapes of a result have.
    pub(super) fn common(&self, asked: Asked<'_>, numbers: &Numbers) -> Object {
        let label = Label::of(&self.manifest);
        let counts = &self.counts;
        let name = label.text("name").map(str::to_owned);
        let mut scenarios: Vec<Value> = Vec::new();
        let mut known = BTreeSet::new();
        for item in &self.items {
            let reference = self.manifest.refs.get(item.simulation as usize);
            let id = reference.and_then(|one| numbers.of(Kind::Scenario, one.scenario_id?));
            let name = self
                .names_of(item)
                .map(|names| names.scenario.as_str())
                .unwrap_or_default();
            if known.insert((id, name)) {
                scenarios.push(json!({ "id": id, "name": name }));
            }
        }
        let run_type = label.text("runType").unwrap_or(match self.head.endpoint {
            Some(_) => "Voice",
            None => "Text",
        });
        let fields = json!({
            "id": self.result_number(numbers),
            "name": name.unwrap_or_else(|| format!("{} {}", self.agent_name, iso(self.head.created_at))),
            "agent": agent_of(&self.head, &label).and_then(|agent| numbers.of(Kind::Assistant, agent)),
            "agent_name": self.agent_name,
            "agent_inbound": self.agent_inbound,
            "status": counts.status(&self.head),
            "success_rate": counts.success_rate(asked.version),
            "run_as_text": self.head.endpoint.is_none(),
            "is_cronjob": self.head.schedule.is_some(),
            "met_expected_outcome_count": counts.outcomes_met,
            "total_expected_outcome_count": counts.outcomes,
            "total_runs_count": counts.total,
            "completed_runs_count": counts.completed,
            "success_runs_count": counts.success,
            "failed_runs_count": counts.failed,
            "scenarios": scenarios,
            "run_type": run_type,
            "agent_version": null,
            "created_at": iso(self.head.created_at),
            "updated_at": iso(self.head.updated_at),
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Object::new(),
        }
    }

    fn runs_by_id(&self, asked: Asked<'_>, numbers: &Numbers) -> Object {
        let runs = self.items.iter().map(|item| {
            let run = self.run(asked, numbers, item);
            let id = run.get("id").map(Value::to_string).unwrap_or_default();
            (id, run)
        });
        runs.collect()
    }

    pub(super) fn left_out(&self) -> Option<u32> {
        Some(self.head.total.saturating_sub(SHOWN)).filter(|&left| left > 0)
    }

    /// The result as a list, a rerun and a new evaluation show it.
    pub(super) fn result(&self, asked: Asked<'_>, numbers: &Numbers) -> Value {
        let mut fields = self.common(asked, numbers);
        fields.insert("runs".to_owned(), Value::Object(self.runs_by_id(asked, numbers)));
        if let Some(left) = self.left_out() {
            fields.insert("runs_left_out".to_owned(), json!(left));
        }
        Value::Object(fields)
    }

    /// The result as it is read alone.
    pub(super) fn detail(&self, asked: Asked<'_>, numbers: &Numbers) -> Value {
        let Value::Object(mut fields) = self.result(asked, numbers) else {
            return Value::Null;
        };
        let id = |item: &Item| run_number(self.result_number(numbers), item.index);
        let ids = |fits: &dyn Fn(&Item) -> bool| -> Vec<u64> {
            let items = self.items.iter().filter(|item| fits(item));
            items.map(id).collect()
        };
        let over = |item: &Item| item.state.is_terminal();
        let errored =
            |item: &Item| over(item) && status_of(item) != "completed" && item.state != State::Canceled;
        let failed = |item: &Item| item.state == State::Failed && is_judged(item);
        let total_ms: i64 = self.items.iter().filter_map(duration_ms).sum();
        let metrics = Summary::of(self);
        let label = Label::of(&self.manifest);
        let reasons: Vec<Value> = self.failed_reasons(numbers);
        let failed_count = self.items.iter().filter(|item| failed(item)).count();
        let parts = json!({
            "overall_evaluation": metrics.overall(asked, numbers, self.counts.success_rate(asked.version)),
            "total_duration": minutes(Some(total_ms)),
            "connected_runs": ids(&|item| item.started_at().is_some()),
            "not_connected_runs": ids(&|item| over(item) && item.started_at().is_none()),
            "failed_infrastructure_runs": ids(&errored),
            "failed_workflow_runs": ids(&failed),
            "successful_calls": ids(&|item| item.state == State::Passed),
            "critical_categories": [],
            "metrics": metrics.ids(numbers),
            "runs_by_tags": {},
            "latency_data": self.latencies(),
            "failed_reasons": (failed_count > 0).then(|| json!({ "issues": reasons, "total_failed_runs": failed_count })),
            "ai_summary": null,
            "ai_summary_status": if failed_count == 0 { "skipped_no_failures" } else { "pending" },
            "next_steps": null,
            "path_coverage": null,
            "performance_metrics": self.rules(numbers),
            "run_settings": label.get("settings").unwrap_or(&Value::Null),
        });
        if let Value::Object(parts) = parts {
            fields.extend(parts);
        }
        Value::Object(fields)
    }

    /// Why runs failed, each reason once.
    fn failed_reasons(&self, numbers: &Numbers) -> Vec<Value> {
        let mut by_reason: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for item in self
            .items
            .iter()
            .filter(|item| item.state == State::Failed && is_judged(item))
        {
            if let Some(failure) = &item.failure {
                let run = run_number(self.result_number(numbers), item.index);
                by_reason.entry(&failure.reason).or_default().push(run);
            }
        }
        let mut reasons: Vec<_> = by_reason.into_iter().collect();
        reasons.sort_by_key(|(reason, runs)| (std::cmp::Reverse(runs.len()), *reason));
        (1..)
            .zip(reasons)
            .map(|(rank, (reason, runs))| {
                json!({ "rank": rank, "description": reason, "affected_count": runs.len(), "run_ids": runs })
            })
            .collect()
    }

    fn latencies(&self) -> Value {
        let mut all: Vec<u32> = self.items.iter().filter_map(|item| item.latency_ms).collect();
        all.sort_unstable();
        let at = |per_cent: usize| {
            all.get((all.len() * per_cent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        json!({ "unit": "ms", "count": all.len(), "p50": at(50), "p90": at(90), "p95": at(95), "p99": at(99) })
    }

    /// How often each rule of the rubric held.
    fn rules(&self, numbers: &Numbers) -> Vec<Value> {
        let mut found: Vec<(RuleResult, u32, u32, u32)> = Vec::new();
        for verdict in self.verdicts.values() {
            for rule in scores_of(verdict)
                .rubric
                .into_iter()
                .flat_map(|rubric| rubric.rules)
            {
                let same = |known: &(RuleResult, u32, u32, u32)| {
                    known.0.metric_id == rule.metric_id && known.0.conditions == rule.conditions
                };
                let place = match found.iter().position(same) {
                    Some(place) => place,
                    None => {
                        found.push((rule.clone(), 0, 0, 0));
                        found.len() - 1
                    }
                };
                if let Some((_, passed, failed, skipped)) = found.get_mut(place) {
                    match rule.passed {
                        Some(true) => *passed += 1,
                        Some(false) => *failed += 1,
                        None => *skipped += 1,
                    }
                }
            }
        }
        found.sort_by(|(a, ..), (b, ..)| (&a.metric_id, &a.conditions).cmp(&(&b.metric_id, &b.conditions)));
        found
            .into_iter()
            .map(|(rule, passed, failed, skipped)| {
                json!({
                    "metric_id": numbers.named(Kind::Metric, Some(&json!(rule.metric_id))), "metric_name": rule.metric_name,
                    "conditions": rule.conditions, "passed_count": passed, "failed_count": failed, "skipped_count": skipped,
                })
            })
            .collect()
    }

    /// The answer to the request that launched it.
    pub(super) fn launched(&self, asked: Asked<'_>, numbers: &Numbers) -> Value {
        let fields = self.common(asked, numbers);
        let label = Label::of(&self.manifest);
        let result = self.result_number(numbers);
        let profiles: Vec<&Value> = label
            .get("profiles")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .collect();
        let runs: Vec<Value> = self
            .items
            .iter()
            .map(|item| {
                let reference = self.manifest.refs.get(item.simulation as usize);
                json!({
                    "id": run_number(result, item.index), "status": "pending",
                    "scenario": reference.and_then(|one| numbers.of(Kind::Scenario, one.scenario_id?)),
                    "scenario_name": self.names_of(item).map(|names| names.scenario.as_str()),
                    "number": null, "inbound_number": null,
                    "test_profile_data": profiles.get(item.simulation as usize),
                    "outbound_dial_window_opens_at": null, "outbound_dial_window_seconds": null,
                    "outbound_dial_window_closes_at": null,
                })
            })
            .collect();
        let get = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let mut launched = json!({
            "id": result, "name": get("name"), "agent": get("agent"), "status": "pending", "success_rate": 0,
            "run_as_text": get("run_as_text"), "runs": runs, "created_at": get("created_at"),
        });
        if let Some(left) = self.left_out() {
            launched["runs_left_out"] = json!(left);
        }
        launched
    }
}

/// What is known of how each metric came out over a result's runs.
struct Summary(Vec<(MetricResult, Vec<MetricResult>)>);

impl Summary {
    fn of(whole: &Whole) -> Self {
        let mut by_id: Vec<(MetricResult, Vec<MetricResult>)> = Vec::new();
        for item in &whole.items {
            let Some(verdict) = whole.verdicts.get(&item.index) else {
                continue;
            };
            for metric in scores_of(verdict).metrics {
                match by_id
                    .iter_mut()
                    .find(|(known, _)| known.metric_id == metric.metric_id)
                {
                    Some((_, all)) => all.push(metric),
                    None => by_id.push((metric.clone(), vec![metric])),
                }
            }
        }
        Self(by_id)
    }

    fn ids(&self, numbers: &Numbers) -> Vec<Value> {
        let metric = |(metric, _): &(MetricResult, Vec<MetricResult>)| json!({ "id": numbers.named(Kind::Metric, Some(&json!(metric.metric_id))), "name": metric.name });
        self.0.iter().map(metric).collect()
    }

    fn overall(&self, asked: Asked<'_>, numbers: &Numbers, success_rate: f64) -> Value {
        let mut summary = Object::new();
        let (mut worst, mut numeric, mut enums) = (Vec::new(), Vec::new(), Vec::new());
        for (metric, all) in &self.0 {
            let id = numbers.named(Kind::Metric, Some(&json!(metric.metric_id)));
            let values: Vec<f64> = all
                .iter()
                .filter_map(|one| {
                    one.score
                        .or(one.passed.map(|holds| if holds { 5.0 } else { 0.0 }))
                })
                .collect();
            let score = mean(&values);
            let p50 = median(&values);
            let kind = metrics::eval_type(asked.version, metric.eval_type, metric.decides);
            summary.insert(
                id.to_string(),
                json!({
                    "id": id, "name": metric.name, "type": kind, "score": score, "explanation": "",
                    "function_name": metric.measure, "vocera_defined_metric_code": metric.measure, "p50": p50,
                }),
            );
            match metric.eval_type {
                EvalType::Binary if all.iter().any(|one| one.passed == Some(false)) => {
                    worst.push(id.to_string())
                }
                EvalType::Numeric => numeric.push(json!({
                    "name": metric.name, "type": "numeric", "value": score, "percentiles": { "p50": p50 },
                })),
                EvalType::Enum => enums.push(id.to_string()),
                _ => {}
            }
        }
        json!({
            "success_rate": success_rate, "metric_summary": summary,
            "worst_performing_metrics": { "binary_adherence": worst }, "numeric_metrics": numeric, "enum_metrics": enums,
            "extra_metrics": [],
        })
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53")]
    let count = values.len() as f64;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len().div_ceil(2).saturating_sub(1)).copied()
}

/// What was scored, as it is kept among an item's results.
pub(super) fn scores_of(verdict: &Verdict) -> Scores {
    serde_json::from_value(Value::Object(verdict.results.extra.clone())).unwrap_or_default()
}

/// The metrics and structured outputs that a verdict names.
pub(super) fn named_in(verdict: &Verdict) -> Vec<(Kind, Uuid)> {
    let metrics = scores_of(verdict).metrics;
    let metrics = metrics
        .iter()
        .filter_map(|metric| Some((Kind::Metric, Uuid::try_parse(&metric.metric_id).ok()?)));
    let outputs = verdict.results.evaluations.iter();
    let outputs = outputs.filter_map(|result| {
        let id = Uuid::try_parse(&result.structured_output_id).ok()?;
        Some((Kind::StructuredOutput, id))
    });
    metrics.chain(outputs).collect()
}

/// Whether a run is a success, once that is decided.
pub(super) fn success_of(item: &Item) -> Option<bool> {
    item.state.is_terminal().then_some(item.state == State::Passed)
}

pub(super) fn duration_ms(item: &Item) -> Option<i64> {
    Some((item.ended()?.at - item.started_at()?).max(0))
}

/// A duration in minutes and seconds.
pub(super) fn minutes(ms: Option<i64>) -> String {
    let seconds = ms.unwrap_or_default() / 1000;
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

/// The expected outcome in Cekura's words; an empty object where there is none.
pub(super) fn expected_outcome(outcome: Option<&ExpectedOutcome>) -> Value {
    let Some(outcome) = outcome else { return json!({}) };
    let alignment = |part: &Alignment| json!({ "outcome": part.happened, "prompt_part": part.expected, "aligned": part.met, "turns": part.turns });
    json!({
        "score": outcome.score, "explanation": outcome.explanation,
        "outcome_alignments": outcome.alignments.iter().map(alignment).collect::<Vec<_>>(),
    })
}

/// A metric of a run in Cekura's words. A binary one has both the older score and whether it holds.
fn metric(version: u8, numbers: &Numbers, result: &MetricResult) -> Value {
    let kind = metrics::eval_type(version, result.eval_type, result.decides);
    let score = match result.eval_type {
        EvalType::Binary => result.passed.map(|holds| if holds { 5.0 } else { 0.0 }),
        _ => result.score,
    };
    let mut extra = json!({ "categories": [], "turns": result.turns });
    if let Some(percentiles) = result.percentiles {
        extra["percentiles"] = json!(percentiles);
    }
    match result.status {
        Standing::Scored => {}
        Standing::Skipped => {
            extra["skipped"] = json!(true);
            extra["trigger_failed"] = json!(true);
        }
        Standing::Error => extra["error"] = json!(true),
    }
    let mut shown = json!({
        "id": numbers.named(Kind::Metric, Some(&json!(result.metric_id))), "name": result.name, "type": kind,
        "eval_type": kind, "score": whole(score), "explanation": result.explanation, "extra": extra,
    });
    if let Some(measure) = result.measure {
        shown["function_name"] = json!(measure);
        shown["vocera_defined_metric_code"] = json!(measure);
    }
    match result.eval_type {
        EvalType::Binary => shown["passed"] = json!(result.passed),
        EvalType::Enum => {
            shown["enum"] = json!(result.value);
            shown["value"] = json!(result.value);
        }
        EvalType::Rating | EvalType::Numeric => {}
    }
    shown
}

/// A number without a fraction where it has none.
fn whole(number: Option<f64>) -> Value {
    match number {
        #[expect(clippy::cast_possible_truncation, reason = "it is small and has no fraction")]
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
        number => json!(number),
    }
}

/// An evaluation of a scenario in another shape, as a metric.
fn evaluation(version: u8, numbers: &Numbers, result: &StructuredOutputEvaluationResult) -> Value {
    let skipped = result.is_skipped == Some(true);
    let why = match (&result.skip_reason, &result.error) {
        (Some(why), _) | (None, Some(why)) => why.clone(),
        (None, None) => format!(
            "found {}, expected {} {}",
            json!(result.extracted_value),
            result.comparator,
            json!(result.expected_value)
        ),
    };
    let kind = metrics::eval_type(version, EvalType::Binary, result.required);
    let passed = (!skipped).then_some(result.passed);
    let id = numbers.named(Kind::StructuredOutput, Some(&json!(result.structured_output_id)));
    let mut extra = json!({ "categories": [] });
    if skipped {
        extra["skipped"] = json!(true);
    }
    json!({
        // One that came inline has no id.
        "id": id.as_u64().unwrap_or_default(), "name": result.name, "type": kind, "eval_type": kind,
        "score": passed.map(|holds| if holds { 5 } else { 0 }), "passed": passed, "explanation": [why], "extra": extra,
    })
}

/// All metrics of a run: those of its scenario, and its evaluations.
pub(super) fn all_metrics(
    version: u8,
    numbers: &Numbers,
    verdict: Option<&Verdict>,
    scores: &Scores,
) -> Vec<Value> {
    let evaluations = verdict
        .map(|verdict| verdict.results.evaluations.as_slice())
        .unwrap_or_default();
    let metrics = scores
        .metrics
        .iter()
        .map(|result| metric(version, numbers, result));
    let evaluations = evaluations
        .iter()
        .map(|result| evaluation(version, numbers, result));
    metrics.chain(evaluations).collect()
}
