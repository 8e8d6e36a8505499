//! The generic contract, as `infra/PROVIDER.md` says it.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    CallReport, Found, Order, Provider, ProviderError, TIMEOUT,
    ask::{Ask, is_gone},
    named,
};
use crate::net::Outbound;

pub(super) async fn place(
    provider: &Provider<'_>,
    outbound: &Outbound,
    order: &Order,
    key: &str,
) -> Result<CallReport, ProviderError> {
    let ask = Ask {
        method: Method::POST,
        url: provider.at(&[])?,
        body: Some(&json!(order)),
        key: Some(key),
        limited: false,
        within: TIMEOUT,
    };
    let (status, body) = provider.ask(outbound, ask).await?;
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    Ok(serde_json::from_value(named(body)).unwrap_or_default())
}

pub(super) async fn look_up(
    provider: &Provider<'_>,
    outbound: &Outbound,
    call_id: Option<&str>,
    correlation: &str,
) -> Result<Option<Found>, ProviderError> {
    let url = match call_id {
        Some(id) => provider.at(&[id])?,
        None => {
            let mut url = provider.at(&[])?;
            url.query_pairs_mut().append_pair("correlation", correlation);
            url
        }
    };
    let ask = Ask {
        method: Method::GET,
        url,
        body: None,
        key: None,
        limited: false,
        within: TIMEOUT,
    };
    let (status, mut body) = provider.ask(outbound, ask).await?;
    if call_id.is_some() && is_gone(status) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    if call_id.is_none() {
        let Some(results) = body.get_mut("results").and_then(Value::as_array_mut) else {
            return Err(ProviderError::Unanswered("its answer has no results".to_owned()));
        };
        if results.is_empty() {
            return Ok(None);
        }
        let ours = |call: &&mut Value| call.get("correlation").and_then(Value::as_str) == Some(correlation);
        match results.iter_mut().find(ours) {
            Some(call) => body = call.take(),
            // It does not look at what it is asked for: none of these may be taken for the item's.
            None => return Err(ProviderError::Unanswered("its answer has other calls".to_owned())),
        }
    }
    let status = serde_json::from_value(body.get("status").cloned().unwrap_or_default());
    let report = serde_json::from_value(named(body));
    match (status, report) {
        (Ok(status), Ok(report)) => Ok(Some(Found { status, report })),
        _ => Err(ProviderError::Unanswered("its answer is no call".to_owned())),
    }
}

pub(super) async fn end(
    provider: &Provider<'_>,
    outbound: &Outbound,
    call_id: &str,
) -> Result<bool, ProviderError> {
    let ask = Ask {
        method: Method::POST,
        url: provider.at(&[call_id, "end"])?,
        body: None,
        key: None,
        limited: false,
        within: TIMEOUT,
    };
    let (status, body) = provider.ask(outbound, ask).await?;
    match status.as_u16() {
        404 | 409 | 410 => Ok(true),
        _ if status.is_success() => Ok(false),
        _ => Err(provider.refusal(status, &body)),
    }
}
