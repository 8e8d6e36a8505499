//! What a language model does while the client waits: scenarios for an agent, suggestions after a failure, and structured
//! outputs of conversations that are over.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    call_record::CallRecord,
    clock::Deadline,
    context::Context,
    evaluation::{self, Facts, Single, Transport, Verdict},
    ids,
    lifecycle::{Item, State},
    llm::{ChatReply, ChatRequest, Endpoint, ModelError, Purpose},
    models::{
        evaluation::{Condition, CreateStructuredOutput, RunStructuredOutput},
        parse,
        run::{GenerateScenarios, Improvements, SimulationRunTarget, TargetAssistant, TargetSquad},
    },
    store::{ItemDetail, ItemKey, Kind},
    writing::{self, Failed},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    definitions,
    http::{ApiError, Request, Response},
    items, orgs, runs,
};

/// How long a request may take with all its model calls. API Gateway gives up after 30 s and the function after 29; what is
/// left is for keeping what was found.
const BUDGET: Duration = Duration::from_secs(25);
/// A model that is asked again needs at least this long.
const ONCE_MORE: Duration = Duration::from_secs(3);
/// How many conversations are read or given to a model at once.
const AT_ONCE: usize = 8;

// ---------------------------------------------------------------------------------------------------------------------
// Asking

/// Asks a model until `read` can use its reply, twice at most, all within `deadline`. `model` is the `model` object of a
/// structured output, or null for the configured one.
async fn answer<T>(
    ctx: &Context,
    org: Uuid,
    deadline: &Deadline,
    model: &Value,
    purpose: Purpose,
    asked: ChatRequest,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ApiError> {
    let failed = |error: ModelError| refusal(&error, model);
    let (endpoint, name) = ctx.config.models.resolve(model, purpose).map_err(failed)?;
    let mut request = ChatRequest { model: name, ..asked };
    let reply = chat(ctx, org, deadline, purpose, &endpoint, &mut request)
        .await
        .map_err(failed)?;
    let reply = reply.content.unwrap_or_default();
    let mut fault = match read(&reply) {
        Ok(found) => return Ok(found),
        Err(fault) => fault,
    };
    if deadline.left() > ONCE_MORE {
        let mut request = writing::again(&request, &reply, &fault);
        let reply = chat(ctx, org, deadline, purpose, &endpoint, &mut request)
            .await
            .map_err(failed)?;
        fault = match read(reply.content.as_deref().unwrap_or_default()) {
            Ok(found) => return Ok(found),
            Err(fault) => fault,
        };
    }
    tracing::warn!(%purpose, "a model's answer cannot be used");
    Err(ApiError::model(format!(
        "the language model for {purpose} gave no answer that can be used: {fault}; try again, or use another model"
    )))
}

/// Asks once, and once more without the response format where a server knows none: the prompt asks for the same JSON.
async fn chat(
    ctx: &Context,
    org: Uuid,
    deadline: &Deadline,
    purpose: Purpose,
    endpoint: &Endpoint,
    request: &mut ChatRequest,
) -> Result<ChatReply, ModelError> {
    let within = || Endpoint {
        timeout: endpoint.timeout.min(deadline.left()),
        ..endpoint.clone()
    };
    let answer = match ctx.chat(purpose, &within(), request).await {
        Err(ModelError::Status {
            status: 400 | 422, ..
        }) if request.response_format.is_some() => {
            request.response_format = None;
            ctx.chat(purpose, &within(), request).await
        }
        answer => answer,
    };
    let reply = ctx.config.prices.charge(&request.model, answer?);
    // It belongs to no item, whose rows would tell of it.
    ctx.metrics.cost(reply.cost.unwrap_or_default());
    let now = ctx.clock.now_ms();
    if let Err(error) = ctx.store.spend(org, reply.cost.unwrap_or_default(), now).await {
        // The reply is there and paid for.
        tracing::warn!(%error, "what a model call cost is not counted");
    }
    Ok(reply)
}

/// What a client is told of a model that gave no reply.
fn refusal(error: &ModelError, model: &Value) -> ApiError {
    tracing::warn!(%error, "a model gave no reply");
    match error {
        // The client's own words about its model.
        ModelError::Invalid(_) | ModelError::Refused { .. } if !model.is_null() => {
            ApiError::bad_request(error.to_string())
        }
        ModelError::Timeout { host, seconds } => ApiError::model(format!(
            "the language model at {host} gave no reply within {seconds} s; use a faster model: a request waits at most {} \
             s for its models",
            BUDGET.as_secs()
        )),
        _ => ApiError::model(error.to_string()),
    }
}

/// A flag in the query.
fn flag(request: &Request, name: &str, default: bool) -> Result<bool, ApiError> {
    match request.query.get(name).map(str::to_lowercase).as_deref() {
        None => Ok(default),
        Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(_) => Err(ApiError::bad_request(format!("{name} must be true or false"))),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Scenarios

/// Writes scenarios for an assistant or a squad. Nothing is kept.
pub(crate) async fn scenarios(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let deadline = Deadline::after(BUDGET);
    let wanted: GenerateScenarios = parse(request.json()?)?;
    let target = target_for_writing(ctx, org, wanted).await?;
    orgs::check_billing_limit(ctx, org, ctx.clock.now_ms()).await?;
    let asked = writing::scenarios(&writing::agents(&target, &Value::Null));
    let read = writing::read_scenarios;
    let written = answer(ctx, org, &deadline, &Value::Null, Purpose::Writer, asked, read).await?;
    Response::created(written)
}

/// The target that a request for scenarios names, as a run would keep it.
async fn target_for_writing(ctx: &Context, org: Uuid, wanted: GenerateScenarios) -> Result<Value, ApiError> {
    let target = if wanted.squad_id.is_some() {
        SimulationRunTarget::Squad(TargetSquad {
            squad_id: wanted.squad_id,
            ..TargetSquad::default()
        })
    } else {
        SimulationRunTarget::Assistant(TargetAssistant {
            assistant_id: wanted.assistant_id,
            ..TargetAssistant::default()
        })
    };
    Ok(runs::resolve_target(ctx, org, &target).await?.0)
}

// ---------------------------------------------------------------------------------------------------------------------
// Suggestions after a failure

/// What is known of a conversation, for a model to read.
fn facts<'a>(item: &'a Item, record: &'a CallRecord) -> Facts<'a> {
    Facts {
        messages: &record.messages,
        transcript: &record.transcript,
        ended_reason: item.ended().map(|ended| ended.reason.as_str()),
        started_ms: item.started_at(),
        ended_ms: item.ended().map(|ended| ended.at),
        transport: if item.call.is_some() {
            Transport::Voice
        } else {
            Transport::Chat
        },
        // No latency is looked at here.
        live_target: false,
    }
}

/// Suggests what to change after an item failed. What was suggested before is the answer unless `force` says otherwise;
/// what is new is kept unless `persist` says otherwise.
pub(crate) async fn suggestions(
    ctx: &Context,
    org: Uuid,
    run: &str,
    item: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::after(BUDGET);
    let (force, persist) = (flag(request, "force", false)?, flag(request, "persist", true)?);
    let head = runs::found(ctx, org, run).await?;
    let index = items::index_of(&head, item)?;
    let loaded = items::load(ctx, &head, &[index]).await?.pop();
    let item = loaded.ok_or_else(|| ApiError::not_found("Run item", item))?;
    if item.state != State::Failed {
        return Err(ApiError::bad_request(format!(
            "suggestions are written for run items that failed, and this one is {}",
            item.state.shown()
        )));
    }
    let id = item.id();
    if !force && let Some(kept) = kept_suggestions(ctx, id).await? {
        return Response::created(kept);
    }
    orgs::check_billing_limit(ctx, org, ctx.clock.now_ms()).await?;
    let (briefing, detail) =
        tokio::try_join!(ctx.briefing(item.run, item.simulation), ctx.store.item_detail(id))?;
    // The conversation of an item that was only judged is another one's.
    let other = match briefing.origin.and_then(|origin| origin.conversation) {
        Some(at) => Some(ctx.store.conversation(at).await?),
        None => None,
    };
    let (held, kept) = other
        .as_ref()
        .map_or((&item, &detail), |(held, kept)| (held, kept));
    let record = CallRecord::of(held, kept)?;
    let verdict = verdict(&detail)?;
    let asked = writing::improvements(&Failed {
        target: &briefing.target,
        scenario: &briefing.snapshot.scenario,
        facts: facts(held, &record),
        reason: item.failure.as_ref().map(|failure| failure.reason.as_str()),
        results: verdict.as_ref().map(|verdict| &verdict.results),
    });
    let read = writing::read_improvements;
    let written = answer(ctx, org, &deadline, &Value::Null, Purpose::Writer, asked, read).await?;
    if persist {
        let text = serde_json::to_string(&written).map_err(|error| ApiError::internal(&error))?;
        if !ctx.store.keep_improvements(id, &text, force).await?
            && let Some(kept) = kept_suggestions(ctx, id).await?
        {
            // Somebody else was asked for them at the same time: all answers are what the item shows.
            return Response::created(kept);
        }
    }
    Response::created(written)
}

fn verdict(detail: &ItemDetail) -> Result<Option<Verdict>, ApiError> {
    let stored = detail.result.as_deref().map(serde_json::from_str).transpose();
    stored.map_err(|error| ApiError::internal(&error))
}

async fn kept_suggestions(ctx: &Context, item: Uuid) -> Result<Option<Improvements>, ApiError> {
    let kept = ctx.store.improvements(item).await?;
    let kept = kept.as_deref().map(serde_json::from_str).transpose();
    kept.map_err(|error| ApiError::internal(&error))
}

// ---------------------------------------------------------------------------------------------------------------------
// Structured outputs of conversations that are over

/// What a structured output came to for a conversation.
enum Outcome {
    /// The value; null where the conversation shows none.
    Found(Value),
    /// It was not run, because this condition of it does not hold.
    Skipped(Condition),
}

/// Runs a structured output on conversations that are over: a preview answers with what was found, otherwise it is kept
/// with each item, in the place of what the same output found before.
pub(crate) async fn structured_output(
    ctx: &Context,
    org: Uuid,
    request: &Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::after(BUDGET);
    let wanted: RunStructuredOutput = parse(request.json()?)?;
    let (id, definition) = output_to_run(ctx, org, &wanted).await?;
    // All of them are there before a model is asked for any. A call that is named twice, in whatever way, is one.
    let found: Vec<(String, Item)> = stream::iter(wanted.call_ids.clone())
        .map(|call| async move {
            let item = conversation(ctx, org, &call).await?;
            Ok::<_, ApiError>((call, item))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut calls: BTreeMap<Uuid, (String, Item)> = BTreeMap::new();
    for (call, item) in found {
        calls.entry(item.id()).or_insert((call, item));
    }
    orgs::check_billing_limit(ctx, org, ctx.clock.now_ms()).await?;
    let (definition, deadline) = (&definition, &deadline);
    if wanted.preview_enabled
        && let Some((_, item)) = calls.values().next()
    {
        let answer = match extract(ctx, org, deadline, definition, item).await? {
            Outcome::Found(value) => json!({ id.to_string(): result(definition, value) }),
            Outcome::Skipped(unmet) => {
                let skipped = json!({"name": definition.name, "unmetCondition": unmet});
                json!({ "skipped": { id.to_string(): skipped } })
            }
        };
        return Response::ok(answer);
    }
    let all = calls.len();
    let outcomes: Vec<(String, Result<bool, ApiError>)> = stream::iter(calls.into_values())
        .map(|(call, item)| async move {
            (
                call,
                keep_extracted(ctx, org, deadline, id, definition, &item).await,
            )
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    report(all, outcomes)
}

/// Whether it was found and kept, or skipped.
async fn keep_extracted(
    ctx: &Context,
    org: Uuid,
    deadline: &Deadline,
    output: Uuid,
    definition: &CreateStructuredOutput,
    item: &Item,
) -> Result<bool, ApiError> {
    if deadline.left() < ONCE_MORE {
        return Err(ApiError::model(
            "there was no time left for it; name these calls in a request of their own",
        ));
    }
    match extract(ctx, org, deadline, definition, item).await? {
        Outcome::Found(value) => {
            let found = result(definition, value).to_string();
            ctx.store.keep_output(item.id(), output, &found).await?;
            Ok(true)
        }
        Outcome::Skipped(_) => Ok(false),
    }
}

/// What is answered when a structured output was run on some calls: an error if any of them failed, for who reads only the
/// status must not take a part for the whole. What was kept stays, and running it again replaces it.
fn report(all: usize, outcomes: Vec<(String, Result<bool, ApiError>)>) -> Result<Response, ApiError> {
    let (mut kept, mut skipped, mut failed) = (0_usize, Vec::new(), Vec::new());
    let mut first = None;
    for (call, outcome) in outcomes {
        match outcome {
            Ok(true) => kept += 1,
            Ok(false) => skipped.push(call),
            Err(error) => {
                failed.push(call);
                first.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first {
        failed.sort_unstable();
        let done = format!(
            "the structured output was kept for {kept} of {all} calls, and not for {}: ",
            failed.join(", ")
        );
        return Err(error.after(&done));
    }
    let mut message = format!("The structured output was extracted from {kept} of {all} calls and kept.");
    if !skipped.is_empty() {
        skipped.sort_unstable();
        message.push_str(&format!(
            " Its conditions do not hold for {}.",
            skipped.join(", ")
        ));
    }
    Response::ok(json!({ "message": message }))
}

/// A structured output's result as clients see it.
fn result(definition: &CreateStructuredOutput, value: Value) -> Value {
    let mut result = Map::new();
    result.insert("name".to_owned(), json!(definition.name));
    result.insert("result".to_owned(), value);
    if let Some(plan) = &definition.compliance_plan {
        result.insert("compliancePlan".to_owned(), json!(plan));
    }
    Value::Object(result)
}

/// The structured output of a request, and the id that its results have.
async fn output_to_run(
    ctx: &Context,
    org: Uuid,
    wanted: &RunStructuredOutput,
) -> Result<(Uuid, CreateStructuredOutput), ApiError> {
    if let Some(inline) = &wanted.structured_output {
        let id = ids::inline_output_id(org, &json!(inline).to_string());
        return Ok((id, inline.clone()));
    }
    let id = wanted.structured_output_id.as_deref().unwrap_or_default();
    let stored = definitions::found(ctx, org, Kind::StructuredOutput, id).await?;
    let definition = serde_json::from_value(stored.body).map_err(|error| ApiError::internal(&error))?;
    Ok((stored.id, definition))
}

/// The item whose conversation a client names, by its call or by itself. The conversation is over.
async fn conversation(ctx: &Context, org: Uuid, call: &str) -> Result<Item, ApiError> {
    let missing = || ApiError::not_found("Call", call);
    let id = Uuid::try_parse(call).map_err(|_| missing())?;
    let at = match ctx.store.item_of_call(org, id).await? {
        Some(at) => at,
        None => {
            let (head, index) = ctx.store.run_of_item(org, id).await?.ok_or_else(missing)?;
            ItemKey { run: head.id, index }
        }
    };
    // One that is not stored yet has not begun.
    let mut item = ctx.store.item(at).await?;
    if let Some(judged) = &item
        && judged.started_at().is_none()
        && judged.is_over()
        && let Some(origin) = ctx.briefing(judged.run, judged.simulation).await?.origin
        && let Some(held) = origin.conversation
    {
        // The conversation of an item that was only judged is another one's.
        item = ctx.store.item(held).await?;
    }
    item.filter(|item| item.started_at().is_some() && (item.is_over() || item.ended().is_some()))
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "call {call} has no conversation that is over; wait for its end"
            ))
        })
}

/// Runs a structured output on one conversation.
async fn extract(
    ctx: &Context,
    org: Uuid,
    deadline: &Deadline,
    definition: &CreateStructuredOutput,
    item: &Item,
) -> Result<Outcome, ApiError> {
    let detail = ctx.store.item_detail(item.id()).await?;
    let record = CallRecord::of(item, &detail)?;
    match Single::new(definition, &facts(item, &record)) {
        Single::Skipped {
            unmet: Some(unmet), ..
        } => Ok(Outcome::Skipped(unmet)),
        Single::Skipped { reason, .. } => Err(ApiError::bad_request(format!(
            "{} cannot be extracted: {reason}",
            definition.name
        ))),
        Single::Known(found) => found
            .map(Outcome::Found)
            .map_err(|reason| ApiError::bad_request(format!("{}: {reason}", definition.name))),
        Single::Asked(_) if record.messages.is_empty() && record.transcript.trim().is_empty() => {
            // A model would make something up.
            Err(ApiError::bad_request(
                "nothing is known of what was said in this call, so there is nothing to extract from",
            ))
        }
        Single::Asked(group) => {
            let read = |reply: &str| {
                let missing = || Err("it lacks the value".to_owned());
                evaluation::read(&group, reply).remove(&0).unwrap_or_else(missing)
            };
            let asked = group.request.clone();
            let found = answer(ctx, org, deadline, &group.model, Purpose::Judge, asked, read).await?;
            Ok(Outcome::Found(found))
        }
    }
}
