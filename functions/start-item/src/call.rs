//! Does what a voice item is owed: places its call, looks it up, hangs it up.

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::FutureExt;
use ringback_shared::{
    batch::Outcome,
    context::Context,
    ids,
    lifecycle::MAX_ATTEMPTS,
    lifecycle::{Facts, Failure, Fault, Item, Owed, Source},
    line::Line,
    provider::{self, Dialect, Event, Found, Order, ProviderError, Webhooks},
    store::{ItemKey, NewEvent, StoreError, TransitionError},
    webhook::Correlation,
};
use serde_json::json;

/// How long a claim holds, in milliseconds: two requests to the provider, and time to write.
const LEASE_MS: i64 = 60_000;
/// What a call's end is called that was learned by asking for it.
const HUNG_UP: &str = "hang-up";

/// What is said of an order without an answer that never turned up.
const UNKNOWN_ORDER: &str =
    "the voice provider did not answer the order and does not know of a call; it was not ordered twice";

/// What the worker was sent for.
#[derive(Debug, Clone, Copy)]
struct Step {
    owed: Owed,
    /// Somebody may have placed the call before.
    again: bool,
}

pub(crate) async fn work(ctx: &Context, item: Item) -> Outcome {
    let owner = ctx.owner();
    let now = ctx.clock.now_ms();
    let longest_ms = i64::try_from(ctx.config.max_call.as_millis()).unwrap_or(i64::MAX / 4);
    let claimed = ctx
        .store
        .transition(item, |item| item.claim_call(&owner, LEASE_MS, longest_ms, now))
        .await;
    let item = match claimed {
        Ok(item) => item,
        Err(TransitionError::Refused { .. }) => return Outcome::Drop("nothing to do for this item now"),
        Err(TransitionError::Store(error)) if error.is_duplicate() => {
            return Outcome::Drop("the item does not exist");
        }
        Err(TransitionError::Store(error)) => return Outcome::Retry(error.to_string()),
    };
    if item.owed == Owed::Nothing {
        return Outcome::Done;
    }
    let step = Step {
        owed: item.owed,
        // The intent of a first start is the one that was written just now.
        again: item
            .call
            .as_ref()
            .is_some_and(|call| call.intended_at != Some(now)),
    };
    let worker = Worker {
        ctx,
        owner,
        ordered: AtomicBool::new(false),
    };
    let done = AssertUnwindSafe(Box::pin(worker.perform(item.clone(), step)))
        .catch_unwind()
        .await;
    let done = match done {
        // What was not sent need not be looked for.
        Ok(Err(TransitionError::Store(error))) if worker.has_not_begun(step) => {
            let failure = Failure::new(&error.to_string(), Some(Fault::Ringback));
            worker.turned_away(item, step, &failure, 0).await
        }
        Ok(done) => done,
        Err(_) => {
            let failure = Failure::new("Ringback failed on this call; see its log", Some(Fault::Ringback));
            match worker.has_not_begun(step) {
                true => worker.turned_away(item, step, &failure, 0).await,
                false => worker.broke_off(item, step, &failure, true).await,
            }
        }
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(TransitionError::Refused { .. }) => Outcome::Drop("the item is no longer this worker's"),
        Err(TransitionError::Store(error)) => Outcome::Retry(error.to_string()),
    }
}

/// What names the item to the provider.
fn token(item: &Item, line: &Line) -> String {
    let correlation = Correlation {
        run: item.run,
        index: item.index,
    };
    correlation.to_token(line.correlation_key())
}

/// When its call was ordered at the earliest, in milliseconds since the Unix epoch.
fn since(item: &Item) -> i64 {
    let intended = item.call.as_ref().and_then(|call| call.intended_at);
    intended.unwrap_or(item.updated_at)
}

struct Worker<'a> {
    ctx: &'a Context,
    owner: String,
    /// Whether the order may have left.
    ordered: AtomicBool,
}

impl Worker<'_> {
    async fn perform(&self, item: Item, step: Step) -> Result<(), TransitionError> {
        if step.owed != Owed::Start || step.again {
            // Should the stream have lost what the provider said, it is folded here.
            let kept = Box::pin(self.kept(&item)).await?;
            let news = kept.ended.is_some() || (step.owed == Owed::Start && kept.call_id.is_some());
            if news {
                return self.heard(item, kept).await;
            }
        }
        let line = match Box::pin(self.line(&item)).await? {
            Ok(line) => line,
            Err(failure) => return self.broke_off(item, step, &failure, false).await,
        };
        match step.owed {
            Owed::Start => Box::pin(self.start(item, step, &line)).await,
            Owed::HangUp => Box::pin(self.hang_up(item, &line)).await,
            _ => Box::pin(self.look_up(item, step, &line)).await,
        }
    }

    /// What the provider's events say that were kept.
    async fn kept(&self, item: &Item) -> Result<Facts, StoreError> {
        let strays = match (&item.call, item.call_id()) {
            (Some(call), Some(id)) => self.ctx.store.stray_events(call.endpoint, id).await?,
            _ => Vec::new(),
        };
        for event in strays {
            self.ctx.store.keep_event(ItemKey::of(item), &event).await?;
        }
        let events = self.ctx.store.item_detail(item.id()).await?.events;
        let facts = events.into_iter().map(|(head, _)| head.facts);
        Ok(facts.fold(Facts::default(), Facts::join))
    }

    /// The endpoint that the run was created with.
    async fn line(&self, item: &Item) -> Result<Result<Line, Failure>, StoreError> {
        let gone = |what: &dyn std::fmt::Display| {
            let reason = format!("the voice provider's endpoint {what}; create one and run again");
            Failure::new(&reason, Some(Fault::Ringback))
        };
        let Some(endpoint) = item.call.as_ref().map(|call| call.endpoint) else {
            return Ok(Err(gone(&"is not named by its run")));
        };
        let line = Line::of(self.ctx, item.org, endpoint).await?;
        Ok(line.map_err(|why| gone(&why)))
    }

    async fn start(&self, item: Item, step: Step, line: &Line) -> Result<(), TransitionError> {
        let provider = line.provider().traced(item.trace);
        let (token, since) = (token(&item, line), since(&item));
        let may_repeat = provider.may_repeat(since, self.ctx.clock.now_ms());
        if step.again {
            // An intent without an answer: whether there is a call, only the provider knows.
            match provider.look_up(&self.ctx.outbound, None, &token, since).await {
                Ok(Some(found)) => return self.learned(item, &found).await,
                Ok(None) if may_repeat => {}
                Ok(None) => {
                    let failure = Failure::new(UNKNOWN_ORDER, Some(Fault::Provider));
                    return self.uncertain(item, step, &failure).await;
                }
                Err(error) if error.is_transient() && !may_repeat => {
                    let failure = Failure::new(&error.to_string(), Some(Fault::Provider));
                    return self.uncertain(item, step, &failure).await;
                }
                Err(error) => return self.failed(item, step, &error).await,
            }
        }
        let order = self.order(&item, line).await?;
        self.ordered.store(true, Ordering::Relaxed);
        match provider
            .place(&self.ctx.outbound, &order, &item.id().to_string())
            .await
        {
            Ok(report) => {
                let now = self.ctx.clock.now_ms();
                let shown = ids::shown_call_id(line.endpoint, &report.call_id);
                tracing::Span::current().record("callId", tracing::field::display(shown));
                tracing::info!("a call was ordered");
                let body = json!({ "callId": report.call_id, "listenUrl": report.listen_url }).to_string();
                let answer = NewEvent {
                    event: Event::Placed,
                    source: Source::Report,
                    digest: ids::sha256_hex(body.as_bytes()),
                    facts: Facts::call(Source::Report, &report.call_id),
                    body,
                };
                self.ctx
                    .store
                    .placed(item, &answer, |item| {
                        item.placed(&self.owner, &report.call_id, now)
                    })
                    .await?;
                Ok(())
            }
            // Of a first order it is known now that nothing was placed; of a repeated one only the provider knows.
            Err(error) if !step.again && !matches!(error, ProviderError::Unanswered(_)) => {
                tracing::warn!(%error, "a call was not placed");
                let failure = Failure::new(&error.to_string(), Some(error.fault()));
                if let Some(rest_ms) = error.is_busy() {
                    return self.turned_away(item, step, &failure, rest_ms).await;
                }
                let now = self.ctx.clock.now_ms();
                self.ctx
                    .store
                    .transition(item, |item| item.refused(&self.owner, &failure, now))
                    .await?;
                Ok(())
            }
            Err(error) if error.is_transient() && !may_repeat => {
                let failure = Failure::new(&error.to_string(), Some(Fault::Provider));
                self.uncertain(item, step, &failure).await
            }
            Err(error) => self.failed(item, step, &error).await,
        }
    }

    /// Nobody knows whether the call was placed, and it must not be placed again: it is looked for soon, and then until it must be
    /// over.
    async fn uncertain(&self, item: Item, step: Step, failure: &Failure) -> Result<(), TransitionError> {
        if item.attempts + 1 < MAX_ATTEMPTS {
            return self.broke_off(item, step, failure, true).await;
        }
        self.heard(item, Facts::default()).await
    }

    async fn order(&self, item: &Item, line: &Line) -> Result<Order, StoreError> {
        let briefing = self.ctx.briefing(item.run, item.simulation).await?;
        let token = token(item, line);
        let mut webhooks = Webhooks::of(&self.ctx.config.public_url, line.endpoint);
        if *line.dialect() != Dialect::Generic {
            // Who speaks another contract does not repeat the value, but sends its events where it is told to.
            webhooks = webhooks.about(&token);
        }
        Ok(provider::order(
            item,
            token,
            webhooks,
            u32::try_from(self.ctx.config.max_call.as_secs()).unwrap_or(u32::MAX),
            &briefing.snapshot,
            &briefing.target,
        ))
    }

    async fn look_up(&self, item: Item, step: Step, line: &Line) -> Result<(), TransitionError> {
        let found = line
            .provider()
            .look_up(
                &self.ctx.outbound,
                item.call_id(),
                &token(&item, line),
                since(&item),
            )
            .await;
        let now = self.ctx.clock.now_ms();
        let overdue = item.call.as_ref().is_some_and(|call| call.is_overdue(now));
        match found {
            // A report with what was said may be on its way still.
            Ok(Some(found)) if !overdue && found.is_fresh_end(now) => {
                self.heard(item, Facts::default()).await
            }
            Ok(Some(found)) if !overdue || (found.is_over() && found.facts(now).is_ok()) => {
                self.learned(item, &found).await
            }
            found if overdue => {
                let reason = match (item.call_id(), &found) {
                    (Some(_), Ok(Some(found))) if found.is_waiting() => {
                        "the voice provider did not begin the call in time"
                    }
                    (Some(_), _) => "the voice provider did not report the call's end in time",
                    (None, _) => UNKNOWN_ORDER,
                };
                if let Ok(Some(found)) = &found
                    && let Err(error) = line
                        .provider()
                        .end(&self.ctx.outbound, &found.report.call_id)
                        .await
                {
                    // Its slots are given back all the same: it was told how long it may last.
                    tracing::warn!(%error, "a call could not be ended");
                }
                let failure = Failure::new(reason, Some(Fault::Provider));
                self.broke_off(item, step, &failure, false).await
            }
            Ok(_) => self.heard(item, Facts::default()).await,
            Err(error) => {
                tracing::warn!(%error, "a call could not be looked up");
                self.heard(item, Facts::default()).await
            }
        }
    }

    async fn hang_up(&self, item: Item, line: &Line) -> Result<(), TransitionError> {
        let provider = line.provider();
        let mut call_id = item.call_id().map(str::to_owned);
        // Canceled before its answer came, or asked to end before: whether it is up, the provider knows.
        if call_id.is_none() || item.attempts > 0 {
            match provider
                .look_up(
                    &self.ctx.outbound,
                    call_id.as_deref(),
                    &token(&item, line),
                    since(&item),
                )
                .await
            {
                Ok(Some(found)) if found.is_over() => return self.learned(item, &found).await,
                Ok(Some(found)) => call_id = Some(found.report.call_id),
                Ok(None) if call_id.is_none() => {
                    // Whoever was placing it has answered or given up by now: there is no call.
                    let now = self.ctx.clock.now_ms();
                    if item.decided_at.is_some_and(|at| now >= at + LEASE_MS) {
                        self.ctx
                            .store
                            .transition(item, |item| item.not_placed(&self.owner, now))
                            .await?;
                        return Ok(());
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a call could not be looked up");
                }
            }
        }
        let Some(call_id) = call_id else {
            return self.heard(item, Facts::default()).await;
        };
        let now = self.ctx.clock.now_ms();
        let facts = match provider.end(&self.ctx.outbound, &call_id).await {
            Ok(true) => {
                Facts::call(Source::LookUp, &call_id).join(Facts::ended(Source::Inferred, now, HUNG_UP))
            }
            Ok(false) => Facts::call(Source::LookUp, &call_id),
            Err(error) => {
                tracing::warn!(%error, "a call could not be ended");
                Facts::call(Source::LookUp, &call_id)
            }
        };
        self.heard(item, facts).await
    }

    /// Writes what a look-up found: the whole of it if the call is over, for the verdict.
    async fn learned(&self, item: Item, found: &Found) -> Result<(), TransitionError> {
        let now = self.ctx.clock.now_ms();
        let facts = match found.facts(now) {
            // Who does not say since when it is up says nothing new of a call that is known to be up.
            Ok(facts) if item.started_at().is_some() && found.report.started_at.is_none() => Facts {
                started: None,
                ..facts
            },
            Ok(facts) => facts,
            Err(odd) => {
                tracing::warn!(%odd, "a call's look-up is not what the contract says");
                return self.heard(item, Facts::default()).await;
            }
        };
        if facts.ended.is_some() {
            let body = serde_json::to_string(&found.report)
                .map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let new = NewEvent {
                event: Event::Ended,
                source: Source::LookUp,
                digest: ids::sha256_hex(body.as_bytes()),
                facts: facts.clone(),
                body,
            };
            self.ctx.store.keep_event(ItemKey::of(&item), &new).await?;
        }
        self.heard(item, facts).await
    }

    async fn heard(&self, item: Item, facts: Facts) -> Result<(), TransitionError> {
        let now = self.ctx.clock.now_ms();
        self.ctx
            .store
            .transition(item, |item| item.heard(&self.owner, facts.clone(), now))
            .await?;
        Ok(())
    }

    /// Nothing was sent for an order that may be the first, and somebody who tries cannot succeed at once.
    fn has_not_begun(&self, step: Step) -> bool {
        step.owed == Owed::Start && !step.again && !self.ordered.load(Ordering::Relaxed)
    }

    /// The order was not sent or was turned away: it is owed again.
    async fn turned_away(
        &self,
        item: Item,
        step: Step,
        failure: &Failure,
        rest_ms: i64,
    ) -> Result<(), TransitionError> {
        let now = self.ctx.clock.now_ms();
        self.ctx
            .store
            .transition(item, |item| {
                item.turned_away(&self.owner, failure, step.again, rest_ms, now)
            })
            .await?;
        Ok(())
    }

    async fn failed(&self, item: Item, step: Step, error: &ProviderError) -> Result<(), TransitionError> {
        let failure = Failure::new(&error.to_string(), Some(error.fault()));
        if let (Owed::Start, Some(rest_ms)) = (step.owed, error.is_busy()) {
            return self.turned_away(item, step, &failure, rest_ms).await;
        }
        self.broke_off(item, step, &failure, error.is_transient()).await
    }

    async fn broke_off(
        &self,
        item: Item,
        step: Step,
        failure: &Failure,
        transient: bool,
    ) -> Result<(), TransitionError> {
        tracing::warn!(transient, reason = failure.reason, "a call broke off");
        if step.owed == Owed::HangUp {
            return self.heard(item, Facts::default()).await;
        }
        let now = self.ctx.clock.now_ms();
        self.ctx
            .store
            .transition(item, |item| match transient {
                true => item.retry(&self.owner, failure, false, now),
                false => item.fail(&self.owner, failure, now),
            })
            .await?;
        Ok(())
    }
}
