//! Tells others that an item's conversation has started or ended: each action of the scenario's hooks is a signed request,
//! sent at least once and always under the same name.

use std::{panic::AssertUnwindSafe, time::Duration};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use futures_util::{FutureExt, future::join_all};
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use ringback_shared::{
    batch::{self, Outcome},
    call_record::CallRecord,
    clock::Deadline,
    context::{BoxError, Briefing, Context},
    hooks::{self, Action, Missed},
    lifecycle::{Delivery, DeliveryState, Hook, Item},
    models::simulation::Server,
    net::{Refused, without_url},
    queue::HookMessage,
    store::{ItemKey, StoreError},
    webhook::{ID_HEADER, SIGNATURE_HEADER, Secret, TIMESTAMP_HEADER, sign},
};
use serde_json::Value;

/// How long an answer is waited for where nobody says how long, in seconds.
const TIMEOUT_SECONDS: i64 = 20;
/// How much longer than the longest answer a worker's claim holds, in milliseconds.
const LEASE_MARGIN_MS: i64 = 15_000;
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

async fn deliver(ctx: &Context, hook: Hook) -> Result<Outcome, StoreError> {
    let briefing = ctx.briefing(hook.run, hook.simulation).await?;
    let actions = hooks::actions(&briefing.snapshot, &briefing.target, hook.event);
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
    let at = ItemKey {
        run: hook.run,
        index: hook.index,
    };
    let Some(item) = ctx.store.item(at).await? else {
        return Ok(Outcome::Quarantine("a hook without its item".to_owned()));
    };
    let detail = ctx.store.item_detail(hook.item()).await?;
    let letter = Letter {
        ctx,
        hook: &hook,
        item: &item,
        record: CallRecord::of(&item, &detail)?,
        briefing: &briefing,
        secrets: secrets(ctx, &hook).await?,
    };
    let letter = &letter;
    let mut left = CONCURRENCY;
    let attended = actions.into_iter().map(|action| {
        let before = hook.delivery(action.hook, action.action);
        let due = before.state == DeliveryState::Pending && before.next_attempt_at.is_none_or(|at| at <= now);
        let go = due && left > 0;
        left -= usize::from(go);
        async move {
            match go {
                true => letter.attempt(action, before).await,
                false => before,
            }
        }
    });
    let deliveries: Vec<Delivery> = join_all(attended.collect::<Vec<_>>()).await;
    let now = ctx.clock.now_ms();
    ctx.store
        .change_hook(hook.clone(), |hook| hook.delivered(&owner, &deliveries, now))
        .await?;
    Ok(Outcome::Done)
}

/// What the organization's hooks are signed with.
async fn secrets(ctx: &Context, hook: &Hook) -> Result<Vec<Secret>, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| StoreError::Throttled(error.to_string());
    let stored = ctx
        .secrets
        .org_hooks(hook.org)
        .await
        .map_err(|error| unavailable(&error))?;
    let secrets = stored
        .map(|stored| stored.secrets())
        .transpose()
        .map_err(|error| StoreError::Corrupt(error.to_string()))?
        .unwrap_or_default();
    if secrets.is_empty() {
        return Err(unavailable(
            &"the organization has no secret to sign its hooks with; make one with POST /hook/secret",
        ));
    }
    Ok(secrets)
}

fn timeout_ms(action: &Action) -> i64 {
    let seconds = action.server.as_ref().and_then(|server| server.timeout_seconds);
    seconds.unwrap_or(TIMEOUT_SECONDS).clamp(1, 300) * 1000
}

/// What is told to everybody who wants to hear of one hook.
struct Letter<'a> {
    ctx: &'a Context,
    hook: &'a Hook,
    item: &'a Item,
    record: CallRecord,
    briefing: &'a Briefing,
    secrets: Vec<Secret>,
}

/// Why an attempt did not succeed.
enum Failed {
    /// It may next time.
    Missed(Missed, String),
    /// It never will.
    Never(String),
}

impl Letter<'_> {
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
        tracing::warn!(run = %hook.run, index = hook.index, event = hook.event.title(), attempts, error, "a hook was not taken");
        delivery.error = Some(error.chars().take(MAX_ERROR).collect());
        delivery
    }

    async fn send(&self, action: &Action, server: &Server) -> Result<u16, Failed> {
        let url: Url = server
            .url
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(|_| Failed::Never("the server's url is not a URL".to_owned()))?;
        let client = self
            .ctx
            .outbound
            .client(&url, false)
            .map_err(|refused| Failed::Never(refused.to_string()))?;
        let body = hooks::body(
            self.hook,
            self.item,
            &self.briefing.snapshot,
            &self.record,
            &action.include,
        )
        .to_string();
        let headers = self.headers(action, server, body.as_bytes())?;
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

    fn headers(&self, action: &Action, server: &Server, body: &[u8]) -> Result<HeaderMap, Failed> {
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
        // Ours last: nobody may say another name or signature than these.
        let id = self.hook.webhook_id(action.hook, action.action);
        let seconds = self.ctx.clock.now_ms() / 1000;
        let signatures: Vec<String> = self
            .secrets
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
