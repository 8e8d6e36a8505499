//! Runs: single conversations of a result.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use ringback_shared::{
    call_record::CallRecord,
    clock::parse_iso,
    lifecycle::Item,
    models::metric::{RuleResult, Scores},
    store::{Kind, RunHead, TransitionError},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Paging, Refusal},
    objects::{self, Asked, Numbers, number, text},
    personalities::system_prompt,
    results, transcripts,
    whole::{Judging, Whole, duration_ms, run_number, split_run, status_of, success_of},
};
use crate::{
    http::{Query, Response},
    items, runs,
};

/// The most runs that are read at once by their ids.
const MOST: usize = 100;
/// The most results that one list of runs looks through.
const RESULTS: usize = 1000;

/// Whether a run is shown with all that it has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// Without what was said.
    Brief,
}

/// A run as clients see it who read it alone, or in a list.
pub(super) async fn shown(
    asked: Asked<'_>,
    whole: &Whole,
    numbers: &Numbers,
    item: &Item,
    part: Part,
) -> Result<Value, Refusal> {
    let (ctx, head) = (asked.ctx, &whole.head);
    let mut run = whole.run(asked, numbers, item);
    let reference = whole.manifest.refs.get(item.simulation as usize);
    let personality = reference.and_then(|one| numbers.of(Kind::Personality, one.personality_id?));
    let common = whole.common(asked, numbers);
    let get = |name: &str| common.get(name).cloned().unwrap_or_default();
    let scores = whole.scores(item);
    let more = json!({
        "provider_call_id": item.call_id(), "call_id": item.call_id(), "trace_id": item.trace.map(|trace| trace.id()),
        "scenario_type": "instruction", "personality": personality,
        "agent": get("agent"), "agent_name": get("agent_name"), "agent_version": null,
        "result_id": get("id"), "result_name": get("name"), "run_as_text": get("run_as_text"), "run_type": get("run_type"),
        "evaluation_status": match success_of(item) {
            Some(true) => json!("success"),
            Some(false) => json!("failure"),
            None => Value::Null,
        },
        "rubric": rubric(numbers, &scores), "is_reviewed": false, "feedback": null, "critical_categories": [],
        "generated_mock_tool_entries": [], "agent_number": get("agent_number"), "email_id": null,
        "testing_channel_index": null, "outbound_dial_window_opens_at": null, "outbound_dial_window_seconds": null,
        "outbound_dial_window_closes_at": null,
        "call_ended_reason": item.ended().map(|ended| ended.reason.clone()),
    });
    merge(&mut run, more);
    if part == Part::Brief {
        return Ok(run);
    }
    let briefing = ctx.briefing(head.id, item.simulation).await?;
    let (held, detail) = match briefing.origin.and_then(|origin| origin.conversation) {
        Some(at) => ctx.store.conversation(at).await?,
        None => (item.clone(), ctx.store.item_detail(item.id()).await?),
    };
    let record = CallRecord::of(&held, &detail)?;
    let entries = transcripts::object(&record.messages);
    let transcript = match entries.is_empty() {
        true => record.transcript.clone(),
        false => transcripts::lines(&entries),
    };
    let scenario = &briefing.snapshot.scenario;
    let mocks = scenario.get("toolMocks").and_then(Value::as_array);
    let mocked: Vec<&str> = mocks
        .into_iter()
        .flatten()
        .map(|mock| text(mock, "toolName"))
        .collect();
    let profile = match briefing.snapshot.simulation.get("testProfile") {
        Some(profile) => {
            let mut numbers = Numbers::default();
            let id = objects::uuids(profile.get("id"));
            numbers
                .load_all(asked, id.map(|id| (Kind::TestProfile, id)))
                .await?;
            json!({
                "id": numbers.named(Kind::TestProfile, profile.get("id")), "name": profile.get("name"),
                "information": {
                    "main_agent_variables": profile.get("mainAgentVariables"),
                    "testing_agent_variables": profile.get("testingAgentVariables"),
                },
            })
        }
        None => Value::Null,
    };
    let more = json!({
        "transcript": transcript, "transcript_object": entries, "voice_recording_url": record.recording_url,
        "voice_recording": record.recording_url, "scenario_instructions": text(scenario, "instructions"),
        "expected_outcome_prompt": text(scenario, "expectedOutcome"),
        "personality_prompt": system_prompt(briefing.snapshot.personality.get("assistant").unwrap_or(&Value::Null)),
        "test_profile_data": profile, "mocked_tool_names": mocked, "provider_call_details": record.detail,
        "listen_url": record.listen_url,
    });
    merge(&mut run, more);
    Ok(run)
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

fn rubric(numbers: &Numbers, scores: &Scores) -> Vec<Value> {
    let rules = scores.rubric.as_ref().map(|rubric| rubric.rules.as_slice());
    let rule = |rule: &RuleResult| {
        json!({
            "metric_id": numbers.named(Kind::Metric, Some(&json!(rule.metric_id))), "metric_name": rule.metric_name,
            "value": rule.value, "explanation": rule.explanation, "passed": rule.passed, "conditions": rule.conditions,
        })
    };
    rules.unwrap_or_default().iter().map(rule).collect()
}

/// A run by its id, with the result that it belongs to.
async fn found(asked: Asked<'_>, id: &str) -> Result<(RunHead, u32), Refusal> {
    let (result, index) = split_run(number(id)?);
    let head = results::found(asked, result).await?;
    match index < head.total {
        true => Ok((head, index)),
        false => Err(Refusal::not_found()),
    }
}

/// Some runs of one result.
async fn some(
    asked: Asked<'_>,
    head: RunHead,
    indexes: &[u32],
    part: Part,
    judging: Judging<'_>,
) -> Result<Vec<Value>, Refusal> {
    let whole = Whole::read_some(asked, head, indexes, judging).await?;
    let mut numbers = Numbers::default();
    whole.number(asked, &mut numbers).await?;
    let mut all = Vec::with_capacity(whole.items.len());
    for item in &whole.items {
        all.push(shown(asked, &whole, &numbers, item, part).await?);
    }
    Ok(all)
}

pub(super) async fn read(asked: Asked<'_>, id: &str) -> Answer {
    let (head, index) = found(asked, id).await?;
    let run = some(asked, head, &[index], Part::Whole, None).await?.pop();
    let mut run = run.ok_or_else(Refusal::not_found)?;
    select(&asked.request.query, &mut run)?;
    Ok(Response::ok(run)?)
}

/// Several runs by their ids, in that order, as a bare list.
pub(super) async fn bulk(asked: Asked<'_>) -> Answer {
    let query = &asked.request.query;
    let name = if query.get("run_ids").is_some() {
        "run_ids"
    } else {
        "ids"
    };
    let text = query
        .get(name)
        .ok_or_else(|| Refusal::field("run_ids", "This field is required."))?;
    let mut ids = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let id = part.parse::<u64>();
        ids.push(id.map_err(|_| Refusal::field(name, "Expected ids, separated by commas."))?);
    }
    if ids.len() > MOST {
        return Err(Refusal::field(name, format!("Name at most {MOST} runs.")));
    }
    let mut by_result: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for &id in &ids {
        let (result, index) = split_run(id);
        by_result.entry(result).or_default().insert(index);
    }
    let mut shown: BTreeMap<u64, Value> = BTreeMap::new();
    for (result, indexes) in by_result {
        let Ok(head) = results::found(asked, result).await else {
            continue;
        };
        let indexes: Vec<u32> = indexes.into_iter().filter(|&index| index < head.total).collect();
        for run in some(asked, head, &indexes, Part::Whole, None).await? {
            let id = run.get("id").and_then(Value::as_u64).unwrap_or_default();
            shown.insert(id, run);
        }
    }
    let mut all: Vec<Value> = ids.iter().filter_map(|id| shown.get(id).cloned()).collect();
    for run in &mut all {
        select(query, run)?;
    }
    Ok(Response::ok(all)?)
}

/// Stops one run.
pub(super) async fn end_call(asked: Asked<'_>, id: &str) -> Answer {
    let (head, index) = found(asked, id).await?;
    let head = runs::ensure_item(asked.ctx, head, index).await?;
    let item = items::load(asked.ctx, &head, &[index]).await?.pop();
    let item = item.ok_or_else(Refusal::not_found)?;
    let now = asked.ctx.clock.now_ms();
    match asked.ctx.store.transition(item, |item| item.cancel(now)).await {
        Ok(_) => {}
        Err(TransitionError::Refused { .. }) => return Err(Refusal::list("The run is over.")),
        Err(TransitionError::Store(error)) => return Err(error.into()),
    }
    let run = some(asked, head, &[index], Part::Whole, None).await?.pop();
    Ok(Response::ok(run)?)
}

/// Where the audio of a call that is up can be listened to.
pub(super) async fn listen_url(asked: Asked<'_>, id: &str) -> Answer {
    let (head, index) = found(asked, id).await?;
    let run = some(asked, head, &[index], Part::Whole, None)
        .await?
        .pop()
        .unwrap_or_default();
    match run.get("listen_url").filter(|url| !url.is_null()) {
        Some(url) => Ok(Response::ok(json!({ "listen_url": url }))?),
        None => Err(Refusal::list("The run has no call that can be listened to.")),
    }
}

/// What a list of runs is to hold.
#[derive(Default)]
struct Filters {
    ids: Option<BTreeSet<u64>>,
    results: Option<BTreeSet<Uuid>>,
    agents: Option<BTreeSet<Uuid>>,
    scenarios: Option<BTreeSet<Uuid>>,
    personalities: Option<BTreeSet<Uuid>>,
    statuses: Option<BTreeSet<String>>,
    success: Option<bool>,
    as_text: Option<bool>,
    created: Option<RangeInclusive<i64>>,
    duration: Option<RangeInclusive<i64>>,
    call: Option<(String, bool)>,
    ended: Option<(Vec<String>, bool)>,
    search: Option<String>,
}

impl Filters {
    async fn of(asked: Asked<'_>) -> Result<Self, Refusal> {
        let query = &asked.request.query;
        let all = |names: &[&str]| -> Result<Option<Vec<u64>>, Refusal> {
            let mut numbers = Vec::new();
            for name in names {
                for text in query.all(name) {
                    let number = text.parse();
                    numbers.push(number.map_err(|_| Refusal::field(name, "Enter a number."))?);
                }
            }
            Ok((!numbers.is_empty()).then_some(numbers))
        };
        let flag = |name: &str| match query.get(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(Refusal::field(name, "Must be a valid boolean.")),
        };
        let time = |names: &[&str]| {
            let given = names.iter().find_map(|name| Some((*name, query.get(name)?)));
            given
                .map(|(name, text)| {
                    let ms = parse_iso(text).or_else(|| parse_iso(&format!("{text}T00:00:00Z")));
                    ms.ok_or_else(|| Refusal::field(name, "Enter a valid date/time."))
                })
                .transpose()
        };
        let seconds = |name: &str| {
            let text = query.get(name);
            text.map(|text| {
                let seconds = text.parse::<i64>().ok();
                seconds
                    .map(|seconds| seconds.saturating_mul(1000))
                    .ok_or_else(|| Refusal::field(name, "Enter a number of seconds."))
            })
            .transpose()
        };
        let mut results = BTreeSet::new();
        let wanted = all(&["result_id", "result__id", "result__id__in"])?;
        for number in wanted.iter().flatten() {
            results.extend(results::found(asked, *number).await.ok().map(|head| head.id));
        }
        let definitions = async |kind: Kind, names: &[&str]| -> Result<Option<BTreeSet<Uuid>>, Refusal> {
            let Some(numbers) = all(names)? else {
                return Ok(None);
            };
            let mut ids = BTreeSet::new();
            for number in numbers {
                ids.extend(objects::found(asked, kind, number).await.ok().map(|one| one.id));
            }
            Ok(Some(ids))
        };
        let (from, to) = (
            time(&["timestamp__gte", "created_at_from"])?,
            time(&["timestamp__lte", "created_at_to"])?,
        );
        let (least, most) = (seconds("duration__gte")?, seconds("duration__lte")?);
        let call = |name: &str| query.get(name).map(str::to_owned);
        let statuses: BTreeSet<String> = ["status", "status__in"]
            .into_iter()
            .flat_map(|name| query.all(name).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let ended: Vec<String> = ["call_ended_reason", "call_ended_reason__in"]
            .into_iter()
            .flat_map(|name| query.all(name).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let part = call("call_ended_reason__icontains").map(|part| (vec![part.to_lowercase()], true));
        Ok(Self {
            ids: all(&["id", "id__in"])?.map(|ids| ids.into_iter().collect()),
            results: wanted.map(|_| results),
            agents: definitions(
                Kind::Assistant,
                &["agent_id", "result__agent_id", "result__agent_id__in"],
            )
            .await?,
            scenarios: definitions(Kind::Scenario, &["scenario__id", "scenario__id__in", "scenarios"])
                .await?,
            personalities: definitions(
                Kind::Personality,
                &["personality__id", "personality__id__in", "personalities"],
            )
            .await?,
            statuses: (!statuses.is_empty()).then_some(statuses),
            success: flag("success")?,
            as_text: flag("result__run_as_text")?,
            created: (from.is_some() || to.is_some())
                .then(|| from.unwrap_or(i64::MIN)..=to.unwrap_or(i64::MAX)),
            duration: (least.is_some() || most.is_some())
                .then(|| least.unwrap_or(i64::MIN)..=most.unwrap_or(i64::MAX)),
            call: call("call_id")
                .or_else(|| call("provider_call_id"))
                .map(|id| (id, false))
                .or_else(|| {
                    let part = call("call_id__icontains").or_else(|| call("provider_call_id__icontains"));
                    part.map(|part| (part.to_lowercase(), true))
                }),
            ended: part.or((!ended.is_empty()).then_some((ended, false))),
            search: call("search").map(|part| part.to_lowercase()),
        })
    }

    fn takes_result(&self, head: &RunHead) -> bool {
        self.results
            .as_ref()
            .is_none_or(|results| results.contains(&head.id))
            && self
                .as_text
                .is_none_or(|as_text| as_text == head.endpoint.is_none())
            && self
                .created
                .as_ref()
                .is_none_or(|times| times.contains(&head.created_at))
    }

    fn takes(&self, whole: &Whole, result: u64, item: &Item) -> bool {
        let reference = whole.manifest.refs.get(item.simulation as usize);
        let is_in = |set: &Option<BTreeSet<Uuid>>, id: Option<Uuid>| {
            set.as_ref()
                .is_none_or(|set| id.is_some_and(|id| set.contains(&id)))
        };
        let reason = item
            .ended()
            .map(|ended| ended.reason.to_lowercase())
            .unwrap_or_default();
        self.ids
            .as_ref()
            .is_none_or(|ids| ids.contains(&run_number(result, item.index)))
            && is_in(&self.scenarios, reference.and_then(|one| one.scenario_id))
            && is_in(&self.personalities, reference.and_then(|one| one.personality_id))
            && self
                .statuses
                .as_ref()
                .is_none_or(|statuses| statuses.contains(status_of(item)))
            && self
                .success
                .is_none_or(|success| success_of(item) == Some(success))
            && self
                .duration
                .as_ref()
                .is_none_or(|range| duration_ms(item).is_some_and(|ms| range.contains(&ms)))
            && self.call.as_ref().is_none_or(|(wanted, part)| {
                item.call_id().is_some_and(|id| match part {
                    true => id.to_lowercase().contains(wanted),
                    false => id == wanted,
                })
            })
            && self.ended.as_ref().is_none_or(|(wanted, part)| {
                wanted.iter().any(|wanted| match part {
                    true => reason.contains(wanted),
                    false => reason == wanted.to_lowercase(),
                })
            })
            && self
                .search
                .as_ref()
                .is_none_or(|part| whole.scenario_name(item).to_lowercase().contains(part))
    }
}

/// The runs of all results that fit, newest result first and in their order there.
pub(super) async fn list(asked: Asked<'_>) -> Answer {
    let query = &asked.request.query;
    let paging = Paging::of(query)?;
    let filters = Filters::of(asked).await?;
    let (mut heads, judging) = results::all_heads(asked).await?;
    heads.retain(|head| filters.takes_result(head));
    if heads.len() > RESULTS {
        return Err(Refusal::list(format!(
            "More than {RESULTS} results fit: name some by result_id, or say when they were made (timestamp__gte, timestamp__lte)."
        )));
    }
    let mut places: Vec<(usize, u32)> = Vec::new();
    let mut wholes = Vec::with_capacity(heads.len());
    for head in heads {
        let whole = Whole::read_heads(asked, head, Some(&judging)).await?;
        let mut numbers = Numbers::default();
        whole.number(asked, &mut numbers).await?;
        let agent = whole.agent();
        let fits = filters
            .agents
            .as_ref()
            .is_none_or(|agents| agent.is_some_and(|agent| agents.contains(&agent)));
        if fits {
            let result = whole.result_number(&numbers);
            let fit = whole
                .items
                .iter()
                .filter(|item| filters.takes(&whole, result, item));
            places.extend(fit.map(|item| (wholes.len(), item.index)));
        }
        wholes.push(whole.head);
    }
    let count = places.len();
    let page = places.get(paging.places(count)?).unwrap_or_default();
    let mut entries = Vec::with_capacity(page.len());
    for group in page.chunk_by(|(a, _), (b, _)| a == b) {
        let Some(head) = group.first().and_then(|(place, _)| wholes.get(*place)) else {
            continue;
        };
        let indexes: Vec<u32> = group.iter().map(|(_, index)| *index).collect();
        entries.extend(some(asked, head.clone(), &indexes, Part::Brief, Some(&judging)).await?);
    }
    for entry in &mut entries {
        select(query, entry)?;
    }
    paging.answer(&asked.ctx.config.public_url, asked.request, count, entries)
}

/// Leaves of `value` only what `ql` names, as in `{id,metadata{ended_reason}}`. The id always stays.
fn select(query: &Query, value: &mut Value) -> Result<(), Refusal> {
    let Some(text) = query.get("ql") else {
        return Ok(());
    };
    let wrong = || Refusal::field("ql", "Write the fields as {id,metadata{ended_reason}}.");
    let mut rest = text.trim();
    let id = value.get("id").cloned();
    keep(&mut rest, value, 0).ok_or_else(wrong)?;
    if !rest.trim().is_empty() {
        return Err(wrong());
    }
    if let (Some(id), Some(object)) = (id, value.as_object_mut()) {
        object.insert("id".to_owned(), id);
    }
    Ok(())
}

/// Reads one selection from the beginning of `text` and leaves no more of `value`.
fn keep(text: &mut &str, value: &mut Value, depth: usize) -> Option<()> {
    *text = text.trim_start().strip_prefix('{')?;
    let mut kept = serde_json::Map::new();
    loop {
        *text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            *text = rest;
            break;
        }
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
        let (name, rest) = text.split_at(end);
        *text = rest.trim_start();
        if name.is_empty() || depth > 8 {
            return None;
        }
        let mut inner = value.get(name).cloned().unwrap_or_default();
        if text.starts_with('{') {
            keep(text, &mut inner, depth + 1)?;
        }
        kept.insert(name.to_owned(), inner);
        *text = text.trim_start();
        *text = text.strip_prefix(',').unwrap_or(text);
    }
    match value {
        Value::Object(object) => *object = kept,
        Value::Array(list) => {
            // The same of each entry.
            for entry in list {
                if let Some(object) = entry.as_object_mut() {
                    object.retain(|name, _| kept.contains_key(name));
                }
            }
        }
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_selected_by_name() {
        let run = json!({"id": 1, "status": "completed", "metadata": {"a": 1, "b": 2}, "list": [{"x": 1, "y": 2}], "more": 3});
        for (ql, expected) in [
            ("{status}", json!({"id": 1, "status": "completed"})),
            (
                " { metadata { a } , status } ",
                json!({"id": 1, "status": "completed", "metadata": {"a": 1}}),
            ),
            ("{list{x}}", json!({"id": 1, "list": [{"x": 1}]})),
            ("{gone}", json!({"id": 1, "gone": null})),
        ] {
            let mut value = run.clone();
            let query = Query::parse(&format!("ql={ql}"));
            select(&query, &mut value).unwrap();
            assert_eq!(value, expected, "{ql}");
        }
        for ql in ["status", "{status", "{{status}}", "{status}}", "{-}"] {
            let mut value = run.clone();
            assert!(
                select(&Query::parse(&format!("ql={ql}")), &mut value).is_err(),
                "{ql}"
            );
        }
    }
}
