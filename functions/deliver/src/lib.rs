//! Tells others that an item's conversation has started or ended, how a run came out, or that a schedule could not start one:
//! each of them gets a signed request, sent at least once and always under the same name.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use futures_util::{FutureExt, future::join_all};
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use ringback_api::listening::Letter;
use ringback_shared::{
    batch::{self, Outcome},
    call_record::CallRecord,
    clock::Deadline,
    context::{BoxError, Briefing, Context},
    hooks::{self, Action, Form, Missed},
    lifecycle::{Delivery, DeliveryState, Hook, HookEvent, Item, Subject},
    listeners::{self, Listener},
    models::{schedule::Notify, simulation::Server},
    net::{Refused, without_url},
    notices::{self, Notice},
    queue::HookMessage,
    results::Report,
    secrets::OrgHooks,
    store::{ItemKey, Kind, Manifest, Receivers, RunHead, RunKey, RunKind, StoreError},
    webhook::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign},
};
use serde_json::Value;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// How long an answer is waited for where nobody says how long, in seconds.
const TIMEOUT_SECONDS: i64 = 20;
/// How much longer than the longest answer a worker's claim holds, in milliseconds.
const LEASE_MARGIN_MS: i64 = 15_000;
/// How many names a run's title is made of.
const TITLES: usize = 3;
/// How many runs are counted at once: each may have 100,000 simulations, and is held in memory with the one before it.
static COUNTING: Semaphore = Semaphore::const_new(1);
/// How many actions of one hook are sent in one go, all at once: the claim is for one answer. The others come next.
const CONCURRENCY: usize = 8;
/// The longest description of what went wrong, in characters.
const MAX_ERROR: usize = 300;
/// Headers that say how a request is framed, which is not for its sender to say.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "transfer-encoding",
    "upgrade",
];

/// Handles one batch of messages; see [`batch::process`].
///
/// # Errors
/// When the batch as a whole cannot be handled.
pub async fn handle(
    ctx: &Context,
    event: SqsEvent,
    deadline: Deadline,
) -> Result<SqsBatchResponse, BoxError> {
    batch::process(ctx, "deliveries", event, deadline, |message, _| {
        work(ctx, message)
    })
    .await
}

async fn work(ctx: &Context, message: HookMessage) -> Outcome {
    match AssertUnwindSafe(Box::pin(deliver(ctx, message.hook)))
        .catch_unwind()
        .await
    {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Retry(error.to_string()),
        // The claim runs out, and sweep sends it again.
        Err(_) => Outcome::Drop("the handler panicked"),
    }
}

async fn deliver(ctx: &Context, hook: Hook) -> Result<Outcome, BoxError> {
    let Some(matter) = Box::pin(Matter::of(ctx, &hook)).await? else {
        return Ok(Outcome::Drop("what it tells of is gone"));
    };
    let actions = matter.actions(&hook);
    let owner = ctx.owner();
    let now = ctx.clock.now_ms();
    let lease_ms = actions.iter().map(timeout_ms).max().unwrap_or(0) + LEASE_MARGIN_MS;
    let claimed = ctx
        .store
        .change_hook(hook, |hook| hook.claim(&owner, lease_ms, now))
        .await?;
    let Some(hook) = claimed else {
        return Ok(Outcome::Drop("nothing to deliver now"));
    };
    let held = matter.held(&hook);
    // Of a run that was canceled, or has begun, nothing is told any more that is told before it begins.
    let too_late = held.as_ref().is_some_and(|head| !head.is_held());
    let listeners = matter.listeners();
    let Some(content) = Box::pin(matter.content(ctx, &hook)).await? else {
        return Ok(Outcome::Quarantine("a hook without what it tells of".to_owned()));
    };
    let mut left = CONCURRENCY;
    let mut attended = Vec::with_capacity(actions.len());
    for action in actions {
        let mut before = hook.delivery(action.hook, action.action);
        if too_late && before.state == DeliveryState::Pending {
            before.state = DeliveryState::Skipped;
            before.error = Some("the run waits no longer".to_owned());
        }
        let due = before.state == DeliveryState::Pending && before.next_attempt_at.is_none_or(|at| at <= now);
        let go = due && left > 0;
        left -= usize::from(go);
        attended.push((action, before, go));
    }
    let mut secrets = None;
    let mut letters = BTreeMap::new();
    if attended.iter().any(|(.., go)| *go) {
        let stored = self::secrets(ctx, &hook, !listeners.is_empty()).await?;
        for (action, ..) in attended.iter().filter(|(.., go)| *go) {
            if let Some(listener) = listeners::of_action(&listeners, action) {
                let letter = Box::pin(ringback_api::listening::letter(ctx, &hook, listener, &stored));
                letters.insert(action.action, letter.await?);
            }
        }
        secrets = Some(stored);
    }
    let post = &Post {
        ctx,
        hook: &hook,
        content,
        secrets,
        letters,
    };
    let attended = attended.into_iter().map(async |(action, before, go)| match go {
        true => post.attempt(action, before).await,
        false => before,
    });
    let deliveries: Vec<Delivery> = join_all(attended.collect::<Vec<_>>()).await;
    let now = ctx.clock.now_ms();
    // Before the hook is settled: who dies in between tells it again, and the run begins all the same.
    if let Some(head) = held {
        let_go(ctx, *head, &deliveries, now).await?;
    }
    ctx.store
        .change_hook(hook.clone(), |hook| hook.delivered(&owner, &deliveries, now))
        .await?;
    Ok(Outcome::Done)
}

/// Lets a run begin that was held until somebody was told of it, once all were told; or cancels it, when one of them was given up.
async fn let_go(ctx: &Context, head: RunHead, deliveries: &[Delivery], now: i64) -> Result<(), StoreError> {
    if deliveries.iter().any(|one| one.state == DeliveryState::Pending) {
        return Ok(());
    }
    match deliveries.iter().find(|one| one.state == DeliveryState::Failed) {
        Some(failed) => {
            let why = format!(
                "the webhook that is told of the run before it begins was not taken: {}",
                failed.error.as_deref().unwrap_or_default()
            );
            ctx.store
                .change_run(head, now, |head| head.withhold(&why, now))
                .await?;
        }
        None => {
            ctx.store.release_run(head, now).await?;
        }
    }
    Ok(())
}

/// What a hook tells of, as far as it says who is told.
enum Matter {
    /// An item's conversation.
    Item {
        at: ItemKey,
        briefing: Arc<Briefing>,
        listeners: Arc<[Listener]>,
    },
    /// A run, of one that has ended with what it came to.
    Run {
        head: Box<RunHead>,
        receivers: Receivers,
        report: Option<Box<Report>>,
    },
    /// A schedule that did not start a run.
    Firing {
        schedule: Uuid,
        fire_at: i64,
        name: String,
        notify: Option<Notify>,
    },
}

/// What is told.
enum Content {
    Item {
        item: Box<Item>,
        record: Box<CallRecord>,
        briefing: Arc<Briefing>,
    },
    Notice(Notice),
    /// A run that waits to begin; only those are told who have their own words for it.
    Held,
}

impl Matter {
    /// Nothing where what it tells of is not there any more.
    async fn of(ctx: &Context, hook: &Hook) -> Result<Option<Self>, StoreError> {
        Ok(match hook.subject {
            Subject::Item {
                run,
                index,
                simulation,
            } => Some(Self::Item {
                at: ItemKey { run, index },
                briefing: ctx.briefing(run, simulation).await?,
                listeners: match hook.listened {
                    true => ctx.listeners(run).await?,
                    false => Arc::default(),
                },
            }),
            Subject::Run { run, kind } => {
                let key = RunKey {
                    org: hook.org,
                    kind,
                    run,
                };
                let head = ctx.store.run(key).await?;
                match head.filter(|head| head.deleted_at.is_none()) {
                    Some(head) => {
                        let manifest = ctx.store.manifest(run).await?;
                        Some(Self::Run {
                            // Counted before the hook is claimed, which is for as long as it takes to be told.
                            report: match hook.event {
                                HookEvent::RunHeld => None,
                                _ => Some(Box::new(report(ctx, &head, &manifest).await?)),
                            },
                            receivers: manifest.notify,
                            head: Box::new(head),
                        })
                    }
                    None => None,
                }
            }
            Subject::Firing { schedule, fire_at } => {
                let stored = ctx.store.definition(hook.org, Kind::Schedule, schedule).await?;
                stored.map(|stored| Self::Firing {
                    schedule,
                    fire_at,
                    name: name_of(&stored.body),
                    notify: stored
                        .body
                        .get("notify")
                        .and_then(|notify| serde_json::from_value(notify.clone()).ok()),
                })
            }
        })
    }

    /// The run that waits until this was told.
    fn held(&self, hook: &Hook) -> Option<Box<RunHead>> {
        match self {
            Self::Run { head, .. } if hook.event == HookEvent::RunHeld => Some(head.clone()),
            _ => None,
        }
    }

    fn listeners(&self) -> Arc<[Listener]> {
        match self {
            Self::Item { listeners, .. } => Arc::clone(listeners),
            Self::Run { receivers, .. } => Arc::from(receivers.listeners.as_slice()),
            Self::Firing { .. } => Arc::default(),
        }
    }

    fn actions(&self, hook: &Hook) -> Vec<Action> {
        match self {
            Self::Item {
                briefing, listeners, ..
            } => {
                let mut all = hooks::actions(&briefing.snapshot, &briefing.target, hook.event);
                let outcome = listeners::Outcome::default();
                all.extend(listeners::actions(listeners, hook.event, outcome));
                all
            }
            Self::Run {
                head,
                receivers,
                report,
            } => {
                let (mut all, outcome) = match report {
                    Some(report) => (
                        notices::actions(receivers, head.is_success()),
                        listeners::Outcome::of(head, report.trials.errored),
                    ),
                    None => Default::default(),
                };
                all.extend(listeners::actions(&receivers.listeners, hook.event, outcome));
                all
            }
            Self::Firing { notify, .. } => notices::actions(&Receivers::of(notify.clone()), false),
        }
    }

    async fn content(self, ctx: &Context, hook: &Hook) -> Result<Option<Content>, StoreError> {
        let public_url = &ctx.config.public_url;
        Ok(match self {
            Self::Item { at, briefing, .. } => match ctx.store.item(at).await? {
                Some(item) => {
                    let detail = ctx.store.item_detail(item.id()).await?;
                    Some(Content::Item {
                        record: Box::new(CallRecord::of(&item, &detail)?),
                        item: Box::new(item),
                        briefing,
                    })
                }
                None => None,
            },
            Self::Run {
                head,
                report: Some(report),
                ..
            } => Some(Content::Notice(notices::of_run(hook, &head, &report, public_url))),
            Self::Run { report: None, .. } => Some(Content::Held),
            Self::Firing {
                schedule,
                fire_at,
                name,
                ..
            } => Some(Content::Notice(notices::of_firing(
                hook, schedule, fire_at, &name, public_url,
            ))),
        })
    }
}

impl Content {
    /// What one of those is sent who are told in Ringback's words.
    fn body(&self, hook: &Hook, action: &Action) -> Value {
        match self {
            Self::Item {
                item,
                record,
                briefing,
            } => hooks::body(hook, item, &briefing.snapshot, record, &action.include),
            Self::Notice(notice) if action.form == Form::Slack => notice.slack.clone(),
            Self::Notice(notice) => notice.webhook.clone(),
            Self::Held => Value::Null,
        }
    }
}

fn name_of(value: &Value) -> String {
    let name = value.get("name").and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}

/// What a run came to, and what it is called: counted once, so that who is told again is told the same.
async fn report(ctx: &Context, head: &RunHead, manifest: &Manifest) -> Result<Report, StoreError> {
    if let Some(report) = Report::kept(&ctx.store, head.id).await? {
        return Ok(report);
    }
    let _turn = COUNTING.acquire().await;
    // Whoever had the turn before may have counted this one.
    if let Some(report) = Report::kept(&ctx.store, head.id).await? {
        return Ok(report);
    }
    let schedule = match head.schedule {
        Some(scheduled) => {
            let stored = ctx.store.definition(head.org, Kind::Schedule, scheduled.schedule);
            stored.await?.map(|stored| name_of(&stored.body))
        }
        None => None,
    };
    let report = Report {
        title: schedule.clone().unwrap_or_else(|| title_of(head, manifest)),
        schedule,
        ..Report::of(&ctx.store, head).await?
    };
    report.keep(&ctx.store, head.id).await
}

/// What a run that no schedule started is called: as the suites, simulations or evals that its request names.
fn title_of(head: &RunHead, manifest: &Manifest) -> String {
    let entries = manifest.simulations.as_array().into_iter().flatten();
    let (mut names, what) = match head.kind {
        RunKind::Simulation => (entries.map(name_of).collect(), "simulations"),
        RunKind::Eval => (head.eval_names.clone(), "evals"),
    };
    names.retain(|name| !name.is_empty());
    if names.is_empty() {
        return format!("{} {what}", manifest.refs.len());
    }
    let more = names.len().saturating_sub(TITLES);
    names.truncate(TITLES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// What the organization's hooks are signed with. Those who listen choose and delete secrets of their own, which count at once.
async fn secrets(ctx: &Context, hook: &Hook, listened: bool) -> Result<OrgHooks, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| StoreError::Throttled(error.to_string());
    let stored = match listened {
        true => ctx.secrets.org_hooks_anew(hook.org).await,
        false => ctx.secrets.org_hooks(hook.org).await,
    };
    let stored = stored.map_err(|error| unavailable(&error))?;
    let none = || {
        unavailable(&"the organization has no secret to sign its hooks with; make one with POST /hook/secret")
    };
    stored
        .filter(|stored| !stored.signing.is_empty())
        .ok_or_else(none)
}

fn timeout_ms(action: &Action) -> i64 {
    let seconds = action.server.as_ref().and_then(|server| server.timeout_seconds);
    seconds.unwrap_or(TIMEOUT_SECONDS).clamp(1, 300) * 1000
}

/// What is told to everybody who wants to hear of one hook.
struct Post<'a> {
    ctx: &'a Context,
    hook: &'a Hook,
    content: Content,
    /// There when anything is sent.
    secrets: Option<OrgHooks>,
    /// What those are sent who have their own words, by the places of their actions.
    letters: BTreeMap<u32, Letter>,
}

/// Why an attempt did not succeed.
enum Failed {
    /// It may next time.
    Missed(Missed, String),
    /// It never will.
    Never(String),
}

impl Post<'_> {
    /// Makes the attempt that an action is due for; gives what became of the action, which was `before`.
    async fn attempt(&self, action: Action, before: Delivery) -> Delivery {
        let Some(server) = &action.server else {
            return Delivery {
                state: DeliveryState::Skipped,
                error: Some("neither the hook nor the target's assistant names a server".to_owned()),
                ..before
            };
        };
        let mut delivery = Delivery {
            attempts: before.attempts + 1,
            status_code: None,
            error: None,
            next_attempt_at: None,
            ..before
        };
        let failed = match self.send(&action, server).await {
            Ok(status) => {
                delivery.state = DeliveryState::Delivered;
                delivery.status_code = Some(status);
                delivery.delivered_at = Some(self.ctx.clock.now_ms());
                return delivery;
            }
            Err(failed) => failed,
        };
        let (again, error) = match failed {
            Failed::Missed(missed, error) => {
                if let Missed::Status(status) = missed {
                    delivery.status_code = Some(status);
                }
                let plan = server.backoff_plan.as_ref();
                (hooks::again_after_ms(plan, delivery.attempts, missed), error)
            }
            Failed::Never(error) => (None, error),
        };
        match again {
            Some(ms) => delivery.next_attempt_at = Some(self.ctx.clock.now_ms() + ms),
            None => delivery.state = DeliveryState::Failed,
        }
        let (hook, attempts) = (self.hook, delivery.attempts);
        tracing::warn!(subject = ?hook.subject, event = hook.event.title(), attempts, error, "a hook was not taken");
        delivery.error = Some(error.chars().take(MAX_ERROR).collect());
        delivery
    }

    async fn send(&self, action: &Action, server: &Server) -> Result<u16, Failed> {
        let url: Url = server
            .url
            .as_deref()
            .unwrap_or_default()
            .parse()
            .ok()
            .filter(|url: &Url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Failed::Never("the server's url is not an http or https URL".to_owned()))?;
        let client = self
            .ctx
            .outbound
            .client(&url, false)
            .map_err(|refused| Failed::Never(refused.to_string()))?;
        let letter = self
            .letters
            .get(&action.action)
            .filter(|_| action.form == Form::Listener);
        let body = match letter {
            Some(letter) => letter.body.to_string(),
            None => self.content.body(self.hook, action).to_string(),
        };
        let headers = self.headers(action, server, letter, body.as_bytes())?;
        let timeout = Duration::from_millis(timeout_ms(action).unsigned_abs());
        let sent = client
            .post(url)
            .headers(headers)
            .timeout(timeout)
            .body(body)
            .send()
            .await;
        let status = match sent {
            Ok(answer) => answer.status(),
            Err(error) => {
                if let Some(refused) = Refused::find(&error) {
                    return Err(Failed::Never(refused.to_string()));
                }
                let text = match error.is_timeout() {
                    true => format!("no answer within {} s", timeout.as_secs()),
                    false => without_url(error),
                };
                return Err(Failed::Missed(Missed::NoAnswer, text));
            }
        };
        if status.is_success() {
            return Ok(status.as_u16());
        }
        let status = status.as_u16();
        Err(Failed::Missed(
            Missed::Status(status),
            format!("answered with status {status}"),
        ))
    }

    fn headers(
        &self,
        action: &Action,
        server: &Server,
        letter: Option<&Letter>,
        body: &[u8],
    ) -> Result<HeaderMap, Failed> {
        let mut headers = HeaderMap::new();
        let mut put = |name: &str, value: &str| {
            let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
            let (Ok(name), Ok(value)) = parsed else {
                return Err(Failed::Never(format!("the header {name:?} cannot be sent")));
            };
            headers.insert(name, value);
            Ok(())
        };
        for (name, value) in server.headers.iter().flatten() {
            if FRAMING.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            match value {
                Value::String(text) => put(name, text)?,
                other => put(name, &other.to_string())?,
            }
        }
        for (name, value) in letter.iter().flat_map(|letter| &letter.headers) {
            put(name, value)?;
        }
        // Ours last: nobody may say another name or signature than these.
        let id = self.hook.webhook_id(action.hook, action.action);
        let seconds = self.ctx.clock.now_ms() / 1000;
        let secrets = self.secrets.as_ref();
        let secrets = secrets.map(|all| all.secrets_of(letter.and_then(|letter| letter.signed_as)));
        let secrets = match secrets.transpose() {
            Ok(Some(secrets)) if !secrets.is_empty() => secrets,
            // It may be a moment before a new one is seen everywhere; one that was deleted does not come back.
            _ => {
                let why = "there is no secret to sign it with; was the webhook deleted?".to_owned();
                return Err(Failed::Missed(Missed::NoAnswer, why));
            }
        };
        let signatures: Vec<String> = secrets
            .iter()
            .map(|secret| sign(secret, &id, seconds, body))
            .collect();
        put(ID_HEADER, &id)?;
        put(TIMESTAMP_HEADER, &seconds.to_string())?;
        put(SIGNATURE_HEADER, &signatures.join(" "))?;
        put(CONTENT_TYPE.as_str(), "application/json")?;
        Ok(headers)
    }
}
