//! Retell: a phone call from a tester agent to the target's number.
//!
//! The tester agent is one of the user's account; its prompt is the dynamic variable `ringback_prompt`, which each call fills in.
//! Retell takes an idempotency key for an hour.

use reqwest::{Method, Url};
use serde_json::{Value, json};

use super::{
    CallReport, CallStatus, Found, Order, Provider, ProviderError, RetellSettings, TIMEOUT,
    ask::{Ask, is_gone},
    events::{Side, retell::report_of_call},
};
use crate::net::Outbound;

/// How long an order may be repeated under its key, in milliseconds: Retell says an hour.
pub(super) const SAME_KEY_MS: i64 = 55 * 60_000;
/// The shortest and the longest call that Retell can be told, in milliseconds.
const SHORTEST_CALL_MS: u64 = 60_000;
const LONGEST_CALL_MS: u64 = 7_200_000;
/// The keys of a call's metadata: Retell finds calls by those at the top only.
const CORRELATION: &str = "ringback_correlation";
const AGENT: &str = "ringback_agent";

fn ask(method: Method, url: Url, body: Option<&Value>) -> Ask<'_> {
    Ask {
        method,
        url,
        body,
        key: None,
        limited: true,
        within: TIMEOUT,
    }
}

/// The order as Retell takes it.
fn phone_call(settings: &RetellSettings, order: &Order, key: &str) -> Value {
    let messages = order.tester.get("model").and_then(|model| model.get("messages"));
    let prompt = messages.and_then(|messages| messages.pointer("/0/content")?.as_str());
    let first = order.tester.get("firstMessage").and_then(Value::as_str);
    let longest_ms = u64::from(order.max_duration_seconds) * 1000;
    let mut metadata = order.metadata.as_object().cloned().unwrap_or_default();
    metadata.insert(CORRELATION.to_owned(), json!(order.correlation));
    metadata.insert(AGENT.to_owned(), json!(Side::Tester));
    json!({
        "from_number": settings.from_number,
        "to_number": order.target_number,
        "override_agent_id": settings.agent_id,
        "idempotency_key": key,
        "metadata": metadata,
        "retell_llm_dynamic_variables": {
            "ringback_prompt": prompt.unwrap_or_default(),
            "ringback_first_message": first.unwrap_or_default(),
        },
        "agent_override": {"agent": {
            "webhook_url": order.webhooks.call_ended,
            "webhook_events": ["call_started", "call_ended", "call_analyzed"],
            "max_call_duration_ms": longest_ms.clamp(SHORTEST_CALL_MS, LONGEST_CALL_MS),
        }},
    })
}

pub(super) async fn place(
    provider: &Provider<'_>,
    outbound: &Outbound,
    settings: &RetellSettings,
    order: &Order,
    key: &str,
) -> Result<CallReport, ProviderError> {
    let body = phone_call(settings, order, key);
    let url = provider.at(&["v2", "create-phone-call"])?;
    let (status, answer) = provider
        .ask(outbound, ask(Method::POST, url, Some(&body)))
        .await?;
    if !status.is_success() {
        return Err(provider.refusal(status, &answer));
    }
    let id = answer.get("call_id").and_then(Value::as_str);
    Ok(CallReport {
        call_id: id.unwrap_or_default().to_owned(),
        ..CallReport::default()
    })
}

fn found(call: &Value) -> Found {
    let status = match call.get("call_status").and_then(Value::as_str) {
        Some("registered") => CallStatus::Queued,
        Some("ended" | "error" | "not_connected") => CallStatus::Ended,
        _ => CallStatus::InProgress,
    };
    Found {
        status,
        report: report_of_call(call, Side::Tester),
    }
}

pub(super) async fn look_up(
    provider: &Provider<'_>,
    outbound: &Outbound,
    call_id: Option<&str>,
    correlation: &str,
) -> Result<Option<Found>, ProviderError> {
    let id = match call_id {
        Some(id) => id.to_owned(),
        None => match find(provider, outbound, correlation).await? {
            Some(id) => id,
            None => return Ok(None),
        },
    };
    let url = provider.at(&["v2", "get-call", &id])?;
    let (status, body) = provider.ask(outbound, ask(Method::GET, url, None)).await?;
    if is_gone(status) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    Ok(Some(found(&body)))
}

/// The id of the call with this correlation value in its metadata.
async fn find(
    provider: &Provider<'_>,
    outbound: &Outbound,
    correlation: &str,
) -> Result<Option<String>, ProviderError> {
    let filter = json!({
        "filter_criteria": {
            "metadata": [{"key": CORRELATION, "type": "string", "op": "eq", "value": correlation}],
        },
        "limit": 10,
    });
    let url = provider.at(&["v3", "list-calls"])?;
    let (status, body) = provider
        .ask(outbound, ask(Method::POST, url, Some(&filter)))
        .await?;
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    let Some(calls) = body.get("items").and_then(Value::as_array) else {
        return Err(ProviderError::Unanswered("its answer has no items".to_owned()));
    };
    let named = |call: &&Value| {
        let named = call
            .get("metadata")
            .and_then(|metadata| metadata.get(CORRELATION));
        named.and_then(Value::as_str) == Some(correlation)
    };
    match calls.iter().find(named) {
        Some(call) => {
            let id = call.get("call_id").and_then(Value::as_str);
            Ok(id.map(str::to_owned))
        }
        None if calls.is_empty() => Ok(None),
        None => Err(ProviderError::Unanswered("its answer has other calls".to_owned())),
    }
}

pub(super) async fn end(
    provider: &Provider<'_>,
    outbound: &Outbound,
    call_id: &str,
) -> Result<bool, ProviderError> {
    let url = provider.at(&["v2", "stop-call", call_id])?;
    let (status, body) = provider.ask(outbound, ask(Method::POST, url, None)).await?;
    match status.as_u16() {
        404 | 410 => Ok(true),
        _ if status.is_success() => Ok(false),
        // It may refuse to stop what does not go on, or for another reason.
        400 | 409 | 422 => match look_up(provider, outbound, Some(call_id), "").await? {
            Some(found) if !found.is_over() => Err(provider.refusal(status, &body)),
            _ => Ok(true),
        },
        _ => Err(provider.refusal(status, &body)),
    }
}
