//! Test runs: single attempts of a batch run. A test run is an item.

use ringback_shared::{
    call_record::CallRecord,
    clock::iso,
    evaluation::Verdict,
    ids,
    lifecycle::{Item, State},
    measure::{self, Side},
    models::metric::{RuleResult, Scores},
    store::{Manifest, RunHead, SimulationRef, TransitionError},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked, agents,
    answer::{Answer, Paging, Prefix, required},
    batches, cases,
};
use crate::{
    http::{ApiError, Response},
    items, runs,
};

/// Where a test run stands.
fn status(item: &Item) -> &'static str {
    match item.state {
        State::Queued | State::Admitted => "queued",
        State::Running => "running",
        State::Evaluating => "evaluating",
        State::Passed | State::Failed => "completed",
        State::Canceled => "cancelled",
    }
}

/// A test run as clients see it.
pub(super) async fn shown(
    asked: Asked<'_>,
    head: &RunHead,
    manifest: &Manifest,
    item: &Item,
    agent: &Value,
) -> Result<Value, ApiError> {
    let ctx = asked.ctx;
    let briefing = ctx.briefing(head.id, item.simulation).await?;
    let (held, detail) = match briefing.origin.and_then(|origin| origin.conversation) {
        Some(at) => ctx.store.conversation(at).await?,
        None => (item.clone(), ctx.store.item_detail(item.id()).await?),
    };
    let record = CallRecord::of(&held, &detail)?;
    let spoken = measure::utterances(&record.messages).into_iter().map(|said| {
        let role = match said.side {
            Side::Tester => "user",
            Side::Agent => "assistant",
        };
        json!({ "role": role, "content": said.text })
    });
    let reference = manifest.refs.get(item.simulation as usize);
    let scenario_id = reference.and_then(|one| one.scenario_id);
    // A test case that is tried several times may be as many entries.
    let same = |one: &&SimulationRef| scenario_id.is_some() && one.scenario_id == scenario_id;
    let entries = manifest.refs.iter().filter(same).count().max(1);
    let earlier = manifest.refs.iter().take(item.simulation as usize);
    let number = batches::attempts(head, earlier.filter(same).count()) + i64::from(item.iteration);
    let scenario = &briefing.snapshot.scenario;
    let attempt = batches::attempts(head, entries);
    let conversation = match (held.started_at(), held.call.is_some()) {
        (None, _) => Value::Null,
        (Some(_), true) => json!(Prefix::Call.id(item.id())),
        (Some(_), false) => json!(Prefix::Chat.id(item.id())),
    };
    let mut shown = json!({
        "batchId": Prefix::Batch.id(head.id), "workspaceId": Prefix::Org.id(asked.org), "agent": agent,
        "testCase": cases::shown(asked, scenario_id, scenario, agent, attempt), "jobId": Prefix::Job.id(item.id()),
        "chatId": conversation, "createdDate": iso(item.started_at().unwrap_or(head.created_at)),
        "conversation": spoken.collect::<Vec<_>>(), "status": status(item), "attemptNumber": number,
    });
    if item.state.is_terminal() {
        let result = ctx.store.item_result(item.id()).await?;
        let verdict = result.and_then(|result| serde_json::from_str::<Verdict>(&result).ok());
        shown["completedDate"] = json!(iso(item.decided_at.unwrap_or(item.updated_at)));
        shown["isSuccessful"] = json!(item.state == State::Passed);
        shown["remarks"] = json!(remarks(head, item, verdict.as_ref()));
    }
    Ok(shown)
}

/// Why a test run came out as it did, in words.
fn remarks(head: &RunHead, item: &Item, verdict: Option<&Verdict>) -> String {
    let mut lines: Vec<String> = Vec::new();
    if let Some(verdict) = verdict {
        let scores: Scores =
            serde_json::from_value(Value::Object(verdict.results.extra.clone())).unwrap_or_default();
        lines.extend(
            scores
                .expected_outcome
                .into_iter()
                .flat_map(|outcome| outcome.explanation),
        );
        for result in &verdict.results.evaluations {
            let why = match (&result.skip_reason, &result.error) {
                (Some(why), _) | (None, Some(why)) => why.clone(),
                (None, None) => format!(
                    "found {}, expected {} {}",
                    json!(result.extracted_value),
                    result.comparator,
                    json!(result.expected_value)
                ),
            };
            lines.push(format!("{}: {why}", result.name));
        }
        for metric in scores.metrics {
            lines.extend(
                metric
                    .explanation
                    .into_iter()
                    .map(|why| format!("{}: {why}", metric.name)),
            );
        }
        let rules = scores.rubric.into_iter().flat_map(|rubric| rubric.rules);
        let failed = rules.filter(|rule: &RuleResult| rule.passed == Some(false));
        lines.extend(failed.map(|rule| format!("{} does not hold.", rule.metric_name)));
    }
    if lines.is_empty() || item.state != State::Passed {
        let failure = item.failure.as_ref().map(|failure| failure.reason.clone());
        lines.extend(failure.filter(|reason| !lines.contains(reason)));
    }
    if lines.is_empty() {
        lines.push(match item.state {
            State::Canceled => head
                .withheld
                .clone()
                .unwrap_or_else(|| "It was cancelled.".to_owned()),
            State::Passed => "The conversation was held to its end.".to_owned(),
            _ => "It failed.".to_owned(),
        });
    }
    lines.join("\n")
}

/// A batch run that is scoped by its agent, with what it was asked for.
async fn scope(asked: Asked<'_>) -> Result<(RunHead, Manifest, Value), ApiError> {
    let agent = required(asked, "agentId", Prefix::Agent)?;
    let batch = required(asked, "batchId", Prefix::Batch)?;
    let (head, manifest) = batches::found(asked, batch, agent).await?;
    Ok((head, manifest, agents::shown(asked, Some(agent)).await?))
}

/// The place in a batch run of the test run that an id stands for; one of another batch run is not found.
fn place(head: &RunHead, id: &str) -> Result<u32, ApiError> {
    let job: Uuid = Prefix::Job.found(id)?;
    let index = ids::item_index(head.id, job).filter(|&index| index < head.total);
    index.ok_or_else(|| Prefix::Job.missing(id))
}

async fn one(asked: Asked<'_>, head: &RunHead, index: u32, id: &str) -> Result<Item, ApiError> {
    let item = items::load(asked.ctx, head, &[index]).await?.pop();
    item.ok_or_else(|| Prefix::Job.missing(id))
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let (head, manifest, agent) = scope(asked).await?;
    let item = one(asked, &head, place(&head, id)?, id).await?;
    Response::ok(shown(asked, &head, &manifest, &item, &agent).await?)
}

pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let (head, manifest, agent) = scope(asked).await?;
    let paging = Paging::of(&asked.request.query)?;
    let count = head.total as usize;
    let places: Vec<u32> = paging
        .places(count)
        .filter_map(|place| u32::try_from(place).ok())
        .collect();
    let mut entries = Vec::with_capacity(places.len());
    for item in items::load(asked.ctx, &head, &places).await? {
        entries.push(shown(asked, &head, &manifest, &item, &agent).await?);
    }
    paging.answer(count, entries)
}

/// Stops a test run.
pub(super) async fn cancel(asked: Asked<'_>, id: &str) -> Answer {
    let (head, manifest, agent) = scope(asked).await?;
    let index = place(&head, id)?;
    let head = runs::ensure_item(asked.ctx, head, index).await?;
    let item = one(asked, &head, index, id).await?;
    let now = asked.ctx.clock.now_ms();
    let item = match item.state.is_terminal() {
        true => item,
        false => match asked.ctx.store.transition(item, |item| item.cancel(now)).await {
            Ok(item) => item,
            Err(TransitionError::Refused { .. }) => one(asked, &head, index, id).await?,
            Err(TransitionError::Store(error)) => return Err(error.into()),
        },
    };
    Response::ok(shown(asked, &head, &manifest, &item, &agent).await?)
}
