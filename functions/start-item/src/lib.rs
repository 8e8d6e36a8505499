//! Holds (a slice of) an item's conversation: tester and target talk through the model client, and every reply is kept
//! before the next one is asked for.

mod call;
mod mock;

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use futures_util::FutureExt;
use ringback_shared::{
    batch::{self, Outcome},
    clock::Deadline,
    context::{BoxError, Context},
    conversation::{Conversation, Next, Reply},
    costs::{ModelCosts, ModelUse},
    ids,
    lifecycle::{Cause, Failure, Fault, Item},
    line::Line,
    llm::{ChatReply, ChatRequest, Json, ModelError, Purpose, ToolCall},
    models::Object,
    progress,
    provider::{ChatTurn, Remote},
    queue::Message,
    store::{ItemKey, RunKind, StoreError, TransitionError},
    tool,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// How much longer than one model call a worker's claim holds, in milliseconds: for the reply to be written.
const LEASE_MARGIN_MS: i64 = 15_000;
/// What must be left of a claim beyond the longest model call when one begins, in milliseconds.
const RENEWAL_MARGIN_MS: i64 = 5_000;
/// What must be left of an invocation after a tool was run: for its result to be written.
const TOOL_MARGIN: Duration = Duration::from_secs(10);
/// How often a worker looks whether its item was canceled.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Handles one batch of messages; see [`batch::process`].
///
/// # Errors
/// When the batch as a whole cannot be handled.
pub async fn handle(
    ctx: &Context,
    event: SqsEvent,
    deadline: Deadline,
) -> Result<SqsBatchResponse, BoxError> {
    batch::process(ctx, "run-items", event, deadline, |message, deadline| {
        work(ctx, message, deadline)
    })
    .await
}

/// Why a worker stops before the conversation is over.
#[derive(Debug)]
enum Stop {
    /// The item is no longer this worker's: canceled, or taken over.
    Lost,
    /// The store failed: the claim runs out and somebody goes on.
    Store(StoreError),
    /// A side of the conversation failed.
    Failed {
        failure: Failure,
        transient: bool,
        /// How long whoever failed wants to be left alone, in milliseconds.
        rest_ms: i64,
    },
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        if error.is_duplicate() {
            Self::Lost
        } else {
            Self::Store(error)
        }
    }
}

impl From<TransitionError> for Stop {
    fn from(error: TransitionError) -> Self {
        match error {
            TransitionError::Refused { .. } => Self::Lost,
            TransitionError::Store(error) => error.into(),
        }
    }
}

/// How a slice ended.
enum Slice {
    /// The conversation is over, for this reason.
    Over(String),
    /// It is over and was judged as it went.
    Judged(Played),
    /// The slice's time is over.
    Unfinished,
}

async fn work(ctx: &Context, message: Message, deadline: Deadline) -> Outcome {
    if message.item.call.is_some() {
        return Box::pin(call::work(ctx, message.item)).await;
    }
    let owner = ctx.owner();
    let lease_ms =
        i64::try_from(ctx.config.models.timeout.as_millis()).unwrap_or(i64::MAX / 4) + LEASE_MARGIN_MS;
    let resumed = AtomicBool::new(false);
    let now = ctx.clock.now_ms();
    let claimed = ctx
        .store
        .transition(message.item, |item| {
            resumed.store(item.started_at().is_some(), Ordering::Relaxed);
            item.claim(&owner, lease_ms, now)
        })
        .await;
    let item = match claimed {
        Ok(item) => item,
        Err(TransitionError::Refused { .. }) => return Outcome::Drop("nothing to do for this item now"),
        Err(TransitionError::Store(error)) if error.is_duplicate() => {
            return Outcome::Drop("the item does not exist");
        }
        Err(TransitionError::Store(error)) => return Outcome::Retry(error.to_string()),
    };
    let mut worker = Worker {
        ctx,
        owner,
        lease_ms,
        item,
        looked: Instant::now(),
        slice: Deadline::after(ctx.config.slice),
        progressed: false,
        uses: Vec::new(),
    };
    // A panic costs the item an attempt and nobody else anything.
    let resumed = resumed.load(Ordering::Relaxed);
    let talked = match worker.item.kind {
        RunKind::Simulation => {
            AssertUnwindSafe(worker.converse(resumed, deadline).boxed())
                .catch_unwind()
                .await
        }
        RunKind::Eval => {
            AssertUnwindSafe(worker.play(resumed, deadline).boxed())
                .catch_unwind()
                .await
        }
    };
    let talked = talked.unwrap_or_else(|_| {
        let failure = Failure::new(
            "Ringback failed on this conversation; see its log",
            Some(Fault::Ringback),
        )
        .with(Cause::Aborted);
        Err(Stop::Failed {
            failure,
            transient: true,
            rest_ms: 0,
        })
    });
    worker.hand_over(talked).await
}

/// A model that nobody configured is nobody's fault but the configuration's.
fn fault(error: &ModelError, side: Fault) -> Fault {
    if matches!(error, ModelError::NotConfigured { .. }) {
        Fault::Ringback
    } else {
        side
    }
}

/// A mock conversation that was played to its end.
struct Played {
    /// Why it did not pass, if it did not.
    verdict: Result<(), Failure>,
    /// What is kept of it, as a JSON text.
    result: String,
}

/// A worker with its claim on an item.
struct Worker<'a> {
    ctx: &'a Context,
    owner: String,
    lease_ms: i64,
    item: Item,
    looked: Instant,
    slice: Deadline,
    progressed: bool,
    /// What the replies so far took.
    uses: Vec<ModelUse>,
}

impl Worker<'_> {
    async fn converse(&mut self, resumed: bool, deadline: Deadline) -> Result<Slice, Stop> {
        let briefing = self.ctx.briefing(self.item.run, self.item.simulation).await?;
        let replies: Vec<Reply> = self.kept(resumed).await?;
        self.uses = replies.iter().filter_map(ModelUse::of_reply).collect();
        let mut talk = Conversation::new(briefing.plan(self.ctx.config.limits), replies);
        loop {
            let now = self.ctx.clock.now_ms();
            let reply = match talk.next(now) {
                Next::End(reason) => return Ok(Slice::Over(reason.to_string())),
                Next::Say { .. } | Next::Call { .. } | Next::Ask { .. } if self.slice_is_over(deadline) => {
                    return Ok(Slice::Unfinished);
                }
                Next::Say { speaker, text } => talk.say(speaker, text, now),
                Next::Call {
                    speaker,
                    request,
                    model,
                } => {
                    let answer = self.ask(speaker.purpose(), request, &model).await?;
                    let mut reply = talk.accept(answer, now, self.ctx.clock.now_ms());
                    for (place, tool, call) in talk.to_run(&reply) {
                        let result = self.run_tool(&tool, &call, deadline).await?;
                        if let Some(kept) = reply.tool_results.get_mut(place) {
                            kept.result = result;
                        }
                    }
                    reply
                }
                Next::Ask {
                    remote,
                    previous,
                    input,
                } => {
                    let turn = self.ask_remote(&remote, previous.as_deref(), &input).await?;
                    talk.accept_turn(turn, now, self.ctx.clock.now_ms())
                }
            };
            self.keep(reply.n, &reply, ModelUse::of_reply(&reply)).await?;
            talk.push(reply);
        }
    }

    /// A call must fit into what is left of the invocation.
    fn slice_is_over(&self, deadline: Deadline) -> bool {
        self.slice.left().is_zero() || deadline.left() < self.ctx.config.models.timeout
    }

    /// The records that are kept of the conversation, if there may be any.
    async fn kept<T: DeserializeOwned>(&self, resumed: bool) -> Result<Vec<T>, Stop> {
        if !resumed {
            return Ok(Vec::new());
        }
        let detail = self.ctx.store.item_detail(self.item.id()).await?;
        let read = |turn: &String| {
            serde_json::from_str(turn).map_err(|error| StoreError::Corrupt(error.to_string()))
        };
        Ok(detail.turns.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Keeps the `n`-th record of a conversation before anything follows from it.
    async fn keep(&mut self, n: u32, record: &impl Serialize, used: Option<ModelUse>) -> Result<(), Stop> {
        let json = serde_json::to_string(record).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.ctx.store.append_turn(self.item.id(), n, &json).await?;
        self.progressed = true;
        self.uses.extend(used);
        Ok(())
    }

    /// Asks a model for its next reply, which says what it cost.
    async fn ask(
        &mut self,
        purpose: Purpose,
        request: ChatRequest,
        model: &Value,
    ) -> Result<ChatReply, Stop> {
        let side = match purpose {
            Purpose::Tester => ("tester", Fault::Tester),
            Purpose::Target => ("target", Fault::Target),
            Purpose::Judge | Purpose::Writer => ("judge", Fault::Provider),
        };
        let failed = |error: ModelError| {
            let failure = Failure::new(
                &format!("the {}'s model failed: {error}", side.0),
                Some(fault(&error, side.1)),
            );
            let late = matches!(error, ModelError::Timeout { .. });
            Stop::Failed {
                failure: failure.with(if late { Cause::Timeout } else { Cause::Error }),
                transient: error.is_transient(),
                rest_ms: 0,
            }
        };
        let (mut endpoint, name) = self.ctx.config.models.resolve(model, purpose).map_err(failed)?;
        if let Some(trace) = self.item.trace.filter(|_| purpose == Purpose::Target) {
            endpoint = endpoint.traced(trace.child(ids::span_id()));
        }
        let request = ChatRequest {
            model: name,
            ..request
        };
        let ctx = self.ctx;
        let answer = self.hold(ctx.chat(purpose, &endpoint, &request)).await?;
        let prices = &self.ctx.config.prices;
        answer
            .map(|reply| prices.charge(&request.model, reply))
            .map_err(failed)
    }

    /// Asks whoever holds the target's side for its next turn.
    async fn ask_remote(
        &mut self,
        remote: &(Remote, Object),
        previous: Option<&str>,
        input: &[Json],
    ) -> Result<ChatTurn, Stop> {
        let (remote, variables) = remote;
        let line = Line::of(self.ctx, self.item.org, remote.endpoint).await?;
        let line = line.map_err(|why| Stop::Failed {
            failure: Failure::new(
                &format!("the endpoint {why} through which the assistant was to be chatted with; create one and run again"),
                Some(Fault::Ringback),
            ),
            transient: false,
            rest_ms: 0,
        })?;
        let (outbound, within) = (self.ctx.outbound.clone(), self.ctx.config.models.timeout);
        let provider = line.provider().traced(self.item.trace);
        let turn = provider.chat(&outbound, remote, variables, previous, input, within);
        let turn = self.hold(turn).await?;
        turn.map_err(|error| Stop::Failed {
            failure: Failure::new(
                &format!("the chat with the target broke off: {error}"),
                Some(error.fault()),
            ),
            // A turn that may have been taken is not taken again: its tools may have been run.
            transient: error.is_busy().is_some(),
            rest_ms: error.is_busy().unwrap_or_default(),
        })
    }

    /// Runs a tool of the target for real, within what is left of the invocation.
    async fn run_tool(&mut self, tool: &Value, call: &ToolCall, deadline: Deadline) -> Result<String, Stop> {
        let outbound = self.ctx.outbound.clone();
        let longest = self
            .ctx
            .config
            .models
            .timeout
            .min(deadline.left().saturating_sub(TOOL_MARGIN));
        let now = self.ctx.clock.now_ms();
        self.hold(tool::run(&outbound, tool, call, longest, now)).await
    }

    /// Waits for what somebody outside does. Meanwhile the worker keeps its claim and looks whether the item was canceled: then it
    /// waits no longer.
    async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        self.stay().await?;
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(LOOK_EVERY) => self.stay().await?,
            }
        }
    }

    /// Makes sure that the claim holds for another call, at the price of nothing while it is fresh.
    async fn stay(&mut self) -> Result<(), Stop> {
        let now = self.ctx.clock.now_ms();
        let until = self.item.lease.as_ref().map_or(0, |lease| lease.until);
        if until - now < self.lease_ms - LEASE_MARGIN_MS + RENEWAL_MARGIN_MS {
            let (owner, lease_ms) = (self.owner.clone(), self.lease_ms);
            self.item = self
                .ctx
                .store
                .transition(self.item.clone(), |item| item.renew(&owner, lease_ms, now))
                .await?;
            self.looked = Instant::now();
        } else if self.looked.elapsed() >= LOOK_EVERY {
            let at = ItemKey::of(&self.item);
            let present = self.ctx.store.item(at).await?.ok_or(Stop::Lost)?;
            if present
                .lease
                .as_ref()
                .is_none_or(|lease| lease.owner != self.owner)
            {
                return Err(Stop::Lost);
            }
            self.item = present;
            self.looked = Instant::now();
        }
        Ok(())
    }

    /// Writes how the slice ended, and with it what the item is owed now.
    async fn hand_over(self, talked: Result<Slice, Stop>) -> Outcome {
        let (owner, now, progressed) = (&self.owner, self.ctx.clock.now_ms(), self.progressed);
        let store = &self.ctx.store;
        // Whatever the step is, what was spent so far is written with it.
        let costs = ModelCosts::of(&self.uses);
        let written = match talked {
            Ok(Slice::Over(reason)) => {
                store
                    .transition(self.item, |item| {
                        Ok(item.end_conversation(owner, &reason, now)?.charged(&costs))
                    })
                    .await
            }
            Ok(Slice::Judged(played)) => {
                let Played { verdict, result } = played;
                store
                    .conclude(
                        self.item,
                        |item| {
                            Ok(item
                                .conclude(owner, mock::DONE, verdict.clone(), now)?
                                .charged(&costs))
                        },
                        &result,
                    )
                    .await
            }
            Ok(Slice::Unfinished) => {
                store
                    .transition(self.item, |item| {
                        Ok(item.yield_slice(owner, now)?.charged(&costs))
                    })
                    .await
            }
            Err(Stop::Failed {
                failure,
                transient,
                rest_ms,
            }) => {
                tracing::warn!(transient, reason = failure.reason, "the conversation broke off");
                store
                    .transition(self.item, |item| {
                        let next = match transient {
                            true => item.retry_after(owner, &failure, progressed, rest_ms, now),
                            false => item.fail(owner, &failure, now),
                        };
                        Ok(next?.charged(&costs))
                    })
                    .await
            }
            Err(Stop::Lost) => {
                progress::charge_late(self.ctx, self.item, &costs).await;
                return Outcome::Drop("the item is no longer this worker's");
            }
            Err(Stop::Store(error)) => return Outcome::Retry(error.to_string()),
        };
        match written {
            Ok(_) => Outcome::Done,
            Err(TransitionError::Refused { item, .. }) => {
                progress::charge_late(self.ctx, *item, &costs).await;
                Outcome::Drop("the item is no longer this worker's")
            }
            Err(TransitionError::Store(error)) => Outcome::Retry(error.to_string()),
        }
    }
}
