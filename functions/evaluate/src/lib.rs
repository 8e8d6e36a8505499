//! Judges a finished conversation: extracts what the scenario's evaluations ask for, compares, and writes the verdict and
//! the results in one transaction.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use futures_util::FutureExt;
use ringback_shared::{
    batch::{self, Outcome},
    call_record::CallRecord,
    clock::Deadline,
    context::{BoxError, Context},
    costs::{self, Extracted, Judged, ModelCosts, ModelUse},
    evaluation::{self, Evaluation, Extractions, Facts, Group, Plan, Transport, Verdict},
    ids,
    lifecycle::{Failure, Fault, Item, Source},
    line::Line,
    llm::{ChatRequest, ModelError, Purpose},
    measure::{self, Conversation},
    models::{evaluation::LatencyExpectation, simulation::CreateScenario},
    progress,
    provider::{Event, More, ProviderError},
    queue::Message,
    scores::Scoring,
    store::{ItemDetail, ItemKey, NewEvent, StoreError, TransitionError},
    webhook::Correlation,
};

/// How much longer than one model call a worker's claim holds, in milliseconds.
const LEASE_MARGIN_MS: i64 = 15_000;
/// How long is waited for what a provider does not know yet of a call that is over, and how long between two questions.
const MORE_WITHIN: Duration = Duration::from_secs(30);
const MORE_PAUSE: Duration = Duration::from_secs(2);
/// After a question that took so long the claim is renewed.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

/// Handles one batch of messages; see [`batch::process`].
///
/// # Errors
/// When the batch as a whole cannot be handled.
pub async fn handle(
    ctx: &Context,
    event: SqsEvent,
    deadline: Deadline,
) -> Result<SqsBatchResponse, BoxError> {
    batch::process(ctx, "evaluations", event, deadline, |message, _| {
        work(ctx, message)
    })
    .await
}

/// Why there is no verdict.
#[derive(Debug)]
enum Stop {
    /// The item is no longer this worker's: canceled, or taken over.
    Lost,
    /// The store failed: the claim runs out and somebody goes on.
    Store(StoreError),
    /// The judging failed.
    Failed { failure: Failure, transient: bool },
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<TransitionError> for Stop {
    fn from(error: TransitionError) -> Self {
        match error {
            TransitionError::Refused { .. } => Self::Lost,
            TransitionError::Store(error) => Self::Store(error),
        }
    }
}

async fn work(ctx: &Context, message: Message) -> Outcome {
    let owner = ctx.owner();
    let now = ctx.clock.now_ms();
    let lease_ms =
        i64::try_from(ctx.config.models.timeout.as_millis()).unwrap_or(i64::MAX / 4) + LEASE_MARGIN_MS;
    let mut item = match ctx
        .store
        .transition(message.item, |item| item.claim_evaluation(&owner, lease_ms, now))
        .await
    {
        Ok(item) => item,
        Err(TransitionError::Refused { .. }) => return Outcome::Drop("nothing to judge now"),
        Err(TransitionError::Store(error)) if error.is_duplicate() => {
            return Outcome::Drop("the item does not exist");
        }
        Err(TransitionError::Store(error)) => return Outcome::Retry(error.to_string()),
    };
    let mut bill = Bill::default();
    let judged = AssertUnwindSafe(judge(ctx, &mut item, &owner, lease_ms, &mut bill))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            let failure = Failure::new(
                "Ringback failed to judge this conversation; see its log",
                Some(Fault::Ringback),
            );
            Err(Stop::Failed {
                failure,
                transient: true,
            })
        });
    let now = ctx.clock.now_ms();
    let costs = bill.costs();
    let written = match judged {
        Ok((verdict, latency)) => {
            let failure = (!verdict.results.passed).then(|| {
                Failure::new(
                    &format!("required evaluations failed: {}", verdict.failed().join(", ")),
                    None,
                )
            });
            let decided = || failure.clone().map_or(Ok(()), Err);
            let outcome_met = verdict.outcome_met();
            let judged = Judged {
                verdict,
                model_uses: bill.judging,
            };
            match serde_json::to_string(&judged) {
                Ok(result) => {
                    ctx.store
                        .conclude(
                            item,
                            |item| {
                                let decided = item.decide(&owner, decided(), now)?;
                                Ok(decided.charged(&costs).measured(latency, outcome_met))
                            },
                            &result,
                        )
                        .await
                }
                Err(error) => return Outcome::Quarantine(error.to_string()),
            }
        }
        Err(Stop::Failed { failure, transient }) => {
            tracing::warn!(transient, reason = failure.reason, "not judged");
            ctx.store
                .transition(item, |item| {
                    let next = match transient {
                        true => item.retry(&owner, &failure, false, now),
                        false => item.fail(&owner, &failure, now),
                    };
                    Ok(next?.charged(&costs))
                })
                .await
        }
        Err(Stop::Lost) => {
            progress::charge_late(ctx, item, &costs).await;
            return Outcome::Drop("the item is no longer this worker's");
        }
        Err(Stop::Store(error)) => return Outcome::Retry(error.to_string()),
    };
    match written {
        Ok(_) => Outcome::Done,
        Err(TransitionError::Refused { item, .. }) => {
            progress::charge_late(ctx, *item, &costs).await;
            Outcome::Drop("the item is no longer this worker's")
        }
        Err(TransitionError::Store(error)) => Outcome::Retry(error.to_string()),
    }
}

/// What an item's model calls took.
#[derive(Debug, Default)]
struct Bill {
    /// Those of the conversation.
    talking: Vec<ModelUse>,
    /// Those of the judging models.
    judging: Vec<ModelUse>,
}

impl Bill {
    fn costs(&self) -> ModelCosts {
        ModelCosts::of(self.talking.iter().chain(&self.judging))
    }
}

/// The item's conversation with what its provider says of it only when it is asked. Where that is not known yet, it is waited for for
/// a moment; what cannot be learned is left out.
async fn whole(
    ctx: &Context,
    item: &mut Item,
    owner: &str,
    lease_ms: i64,
    detail: &ItemDetail,
) -> Result<CallRecord, Stop> {
    let record = CallRecord::of(item, detail)?;
    let (Some(call), Some(call_id)) = (&item.call, item.call_id().map(str::to_owned)) else {
        return Ok(record);
    };
    let Ok(line) = Line::of(ctx, item.org, call.endpoint).await? else {
        return Ok(record);
    };
    let correlation = Correlation {
        run: item.run,
        index: item.index,
    };
    let token = correlation.to_token(line.correlation_key());
    let since = call.intended_at.unwrap_or(item.updated_at);
    let wordless = line.kind.is_wordless();
    let deadline = Deadline::after(MORE_WITHIN);
    loop {
        let provider = line.provider();
        let asked = Instant::now();
        let more = provider.more(&ctx.outbound, &call_id, &token, since, &record, wordless);
        let more = match tokio::time::timeout(deadline.left(), more).await {
            Ok(more) => more,
            Err(_) => Err(ProviderError::Unanswered("it takes too long".to_owned())),
        };
        // The claim was for what comes after this. Mostly there is nothing to ask.
        if asked.elapsed() > LONG_ENOUGH {
            let now = ctx.clock.now_ms();
            *item = ctx
                .store
                .transition(item.clone(), |item| item.renew(owner, lease_ms, now))
                .await?;
        }
        match more {
            Ok(More::Nothing) => return Ok(record),
            Ok(More::Report(report)) => {
                let now = ctx.clock.now_ms();
                let Ok(facts) = report.facts(Source::LookUp, Event::Ended, now) else {
                    return Ok(record);
                };
                let body =
                    serde_json::to_string(&report).map_err(|error| StoreError::Corrupt(error.to_string()))?;
                let event = NewEvent {
                    event: Event::Ended,
                    source: Source::LookUp,
                    digest: ids::sha256_hex(body.as_bytes()),
                    facts,
                    body,
                };
                ctx.store.keep_event(ItemKey::of(item), &event).await?;
                let detail = ctx.store.item_detail(item.id()).await?;
                return Ok(CallRecord::of(item, &detail)?);
            }
            Ok(More::Later) => {}
            Err(error) => {
                tracing::warn!(%error, "a call could not be looked up");
                if !error.is_transient() {
                    return Ok(record);
                }
            }
        }
        if deadline.left() <= MORE_PAUSE {
            tracing::warn!("judged by what was reported of the call");
            return Ok(record);
        }
        tokio::time::sleep(MORE_PAUSE).await;
        let now = ctx.clock.now_ms();
        *item = ctx
            .store
            .transition(item.clone(), |item| item.renew(owner, lease_ms, now))
            .await?;
    }
}

/// Brings the conversation and the evaluations together and asks for what only a model can extract. What that took and what the
/// conversation took is in `bill`, whatever comes of it. Gives the verdict and the mean time that the target took to answer, in
/// milliseconds.
async fn judge(
    ctx: &Context,
    item: &mut Item,
    owner: &str,
    lease_ms: i64,
    bill: &mut Bill,
) -> Result<(Verdict, Option<u32>), Stop> {
    let corrupt = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
    let (briefing, mut detail) = tokio::try_join!(
        ctx.briefing(item.run, item.simulation),
        ctx.store.item_detail(item.id())
    )?;
    let extracts = std::mem::take(&mut detail.extracts);
    // Of a conversation of another item nothing is paid for once more.
    bill.talking = costs::replies(&detail)?;
    // The conversation may be another item's, which is judged here once more.
    let (held, detail) = match briefing.origin.and_then(|origin| origin.conversation) {
        Some(at) => ctx.store.conversation(at).await?,
        None => (item.clone(), detail),
    };
    let voice = held.call.is_some();
    if let Some(ended) = held.ended()
        && let Some(fault) = ended.fault
    {
        // An outage is not the target's failure: there is nothing to judge.
        return Err(Stop::Failed {
            failure: Failure::new(&format!("the call broke off: {}", ended.reason), Some(fault)),
            transient: false,
        });
    }
    let record = match briefing.origin.and_then(|origin| origin.conversation) {
        Some(_) => CallRecord::of(&held, &detail)?,
        None => whole(ctx, item, owner, lease_ms, &detail).await?,
    };
    let latency = record.mean_latency_ms();
    let (messages, transcript) = (record.messages, record.transcript);
    let facts = Facts {
        messages: &messages,
        transcript: &transcript,
        ended_reason: held.ended().map(|ended| ended.reason.as_str()),
        started_ms: held.started_at(),
        ended_ms: held.ended().map(|ended| ended.at),
        transport: if voice { Transport::Voice } else { Transport::Chat },
        live_target: briefing.has_live_target(),
    };
    let snapshot = &briefing.snapshot;
    let scenario: CreateScenario = serde_json::from_value(snapshot.scenario.clone()).map_err(corrupt)?;
    let expectations: Vec<LatencyExpectation> = scenario.latency_expectations.unwrap_or_default();
    let mut evaluations = Vec::with_capacity(scenario.evaluations.len());
    for plan_item in scenario.evaluations {
        let named = plan_item
            .structured_output_id
            .as_deref()
            .and_then(|id| snapshot.outputs.get(id));
        let output = named
            .map(|output| serde_json::from_value(output.clone()))
            .transpose()
            .map_err(corrupt)?;
        evaluations.push(Evaluation {
            item: plan_item,
            output,
        });
    }
    let scoring = Scoring::of(&snapshot.scenario, &snapshot.metrics);
    let plan = Plan::new(&evaluations, &expectations, scoring, &facts);
    let mut extractions = Extractions::new();
    for kept in &extracts {
        let kept: Extracted = serde_json::from_str(kept).map_err(corrupt)?;
        extractions.extend(kept.extractions);
        bill.judging.push(kept.used);
    }
    // One request needs no keeping: the verdict comes right after it.
    let keep = plan.groups().len() > 1;
    let kept = extractions.clone();
    for (n, group) in plan.open_groups(&kept).enumerate() {
        if n > 0 {
            // The claim was for one request.
            let now = ctx.clock.now_ms();
            *item = ctx
                .store
                .transition(item.clone(), |item| item.renew(owner, lease_ms, now))
                .await?;
        }
        let found = extract(ctx, group).await?;
        bill.judging.push(found.used.clone());
        if keep {
            let n = u32::try_from(group.outputs.first().copied().unwrap_or_default()).unwrap_or(u32::MAX);
            let json = serde_json::to_string(&found).map_err(corrupt)?;
            match ctx.store.keep_extraction(item.id(), n, &json).await {
                Err(error) if !error.is_duplicate() => return Err(error.into()),
                _ => {}
            }
        }
        extractions.extend(found.extractions);
    }
    let conversation = Conversation {
        utterances: &measure::utterances(&messages),
        latencies: &record.latencies,
        replied_in: &record.replied_in,
        duration_ms: facts
            .ended_ms
            .zip(facts.started_ms)
            .map(|(ended, started)| ended - started),
        voice,
    };
    Ok((plan.verdict(&extractions, &conversation), latency))
}

/// Asks a model for the values of a group of outputs.
async fn extract(ctx: &Context, group: &Group) -> Result<Extracted, Stop> {
    let failed = |error: ModelError| {
        let fault = if matches!(error, ModelError::NotConfigured { .. }) {
            Fault::Ringback
        } else {
            Fault::Provider
        };
        Stop::Failed {
            failure: Failure::new(&format!("the evaluation's model failed: {error}"), Some(fault)),
            transient: error.is_transient(),
        }
    };
    let (endpoint, model) = ctx
        .config
        .models
        .resolve(&group.model, Purpose::Judge)
        .map_err(failed)?;
    let ask = |request: ChatRequest| {
        let (endpoint, model) = (&endpoint, model.clone());
        async move {
            let request = ChatRequest { model, ..request };
            ctx.chat(Purpose::Judge, endpoint, &request).await
        }
    };
    let reply = match ask(group.request.clone()).await {
        // Some servers know no JSON schemas; the prompt asks for the same JSON.
        Err(ModelError::Status {
            status: 400 | 422, ..
        }) => ask(group.without_format()).await,
        answer => answer,
    };
    let reply = ctx.config.prices.charge(&model, reply.map_err(failed)?);
    Ok(Extracted {
        extractions: evaluation::read(group, reply.content.as_deref().unwrap_or_default()),
        used: ModelUse::of(Purpose::Judge, &reply),
    })
}
