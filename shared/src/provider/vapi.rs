//! Vapi: calls through its simulation transport or by phone, and chats with assistants that only Vapi knows.
//!
//! Vapi knows no idempotency keys. An order without an answer is looked for by its correlation value, which is the name of the
//! scenario in the simulation transport and in the tester's metadata by phone, and never repeated.

use std::time::Duration;

use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    CallReport, CallStatus, Found, Order, Provider, ProviderError, TIMEOUT, VapiCalls, VapiSettings,
    ask::{Ask, is_gone},
    events::{
        Side,
        vapi::{agent_of_call, report_of_call},
    },
};
use crate::{
    clock::iso,
    lifecycle::Fault,
    llm::{Json, ToolCall},
    models::Object,
    net::Outbound,
};

/// How many runs and calls Vapi lists on a page.
const PAGE: usize = 50;
/// How many pages are looked through for an order.
const PAGES: usize = 20;
/// How far Vapi's clock may be from the own one, in milliseconds.
const CLOCKS_MS: i64 = 120_000;
/// How long after it was meant an order may have come to Vapi, in milliseconds.
const ON_ITS_WAY_MS: i64 = 180_000;
/// The longest name of a scenario, personality or simulation.
const MAX_NAME: usize = 80;
/// What belongs to Ringback's own definitions and is no part of an assistant.
const OWN_FIELDS: [&str; 5] = ["id", "orgId", "createdAt", "updatedAt", "phoneNumber"];
/// Where a report says that the calls of a run's legs were asked.
pub(super) const LEGS: &str = "legs";
/// How often Vapi sends a webhook again that was not kept, and the first pause before that, in seconds.
const RETRIES: u32 = 10;
const FIRST_PAUSE_SECONDS: u32 = 1;

fn get(url: Url) -> Ask<'static> {
    Ask {
        method: Method::GET,
        url,
        body: None,
        key: None,
        limited: false,
        within: TIMEOUT,
    }
}

/// Where a webhook goes: a Vapi `Server`.
fn server(provider: &Provider<'_>, settings: &VapiSettings, url: &str) -> Value {
    let mut server = json!({
        "url": url,
        "timeoutSeconds": 20,
        "backoffPlan": {
            "type": "exponential", "maxRetries": RETRIES, "baseDelaySeconds": FIRST_PAUSE_SECONDS,
        },
    });
    if let Some(server) = server.as_object_mut() {
        match &settings.credential_id {
            Some(id) => _ = server.insert("credentialId".to_owned(), json!(id)),
            None => {
                let headers = provider.hook_headers.iter().cloned();
                let headers: Map<String, Value> = headers.map(|(name, value)| (name, json!(value))).collect();
                server.insert("headers".to_owned(), Value::Object(headers));
            }
        }
    }
    server
}

/// An assistant without what Vapi does not know of.
fn plain(assistant: &Value) -> Value {
    let mut assistant = assistant.as_object().cloned().unwrap_or_default();
    for field in OWN_FIELDS {
        assistant.remove(field);
    }
    Value::Object(assistant)
}

fn name(order: &Order) -> String {
    let name = order.tester.get("name").and_then(Value::as_str);
    let name = name.filter(|name| !name.is_empty()).unwrap_or("Tester");
    name.chars().take(MAX_NAME).collect()
}

/// A squad whose members are described, not named: their ids are Ringback's.
fn whole_squad(squad: &Value) -> Value {
    let mut squad = plain(squad);
    let members = squad.get_mut("members").and_then(Value::as_array_mut);
    for member in members.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(assistant) = member.get("assistant").map(plain) {
            member.remove("assistantId");
            member.insert("assistant".to_owned(), assistant);
        }
    }
    squad
}

/// How long the tester's call may last, in seconds: its own time or the order's, whichever is shorter.
fn longest(tester: &Object, order: &Order) -> u64 {
    let most = u64::from(order.max_duration_seconds);
    let own = tester.get("maxDurationSeconds").and_then(Value::as_f64);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number that is neither negative nor large"
    )]
    own.filter(|own| (1.0..1e9).contains(own))
        .map_or(most, |own| (own as u64).min(most))
}

/// The personality's assistant, marked as the tester: both legs are calls, and one must not be taken for the other.
fn tester(order: &Order) -> Value {
    let mut tester = plain(&order.personality);
    if let Some(fields) = tester.as_object_mut() {
        let longest = longest(fields, order);
        fields.insert("maxDurationSeconds".to_owned(), json!(longest));
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        match metadata.as_object_mut() {
            Some(metadata) => _ = metadata.insert("ringback".to_owned(), json!({"agent": Side::Tester})),
            None => *metadata = json!({"ringback": {"agent": Side::Tester}}),
        }
    }
    tester
}

/// The order as a run of Vapi's simulations with one item. Ringback judges itself, so all that Vapi is told to evaluate is that
/// something was said.
fn simulation(provider: &Provider<'_>, settings: &VapiSettings, order: &Order) -> Value {
    let hook = |on: &str, url: &str| {
        let mut webhook = json!({"type": "webhook", "server": server(provider, settings, url)});
        if on == "simulation.run.ended" {
            webhook["include"] = json!({"transcript": true, "messages": true, "recordingUrl": true});
        }
        json!({"on": on, "do": [webhook]})
    };
    let mut scenario = json!({
        "name": order.correlation,
        "instructions": order.instructions,
        "evaluations": [{
            "structuredOutput": {
                "name": "ringback", "type": "regex", "regex": r"[\s\S]", "schema": {"type": "boolean"},
            },
            "comparator": "=", "value": true, "required": false,
        }],
        "hooks": [
            hook("simulation.run.started", &order.webhooks.call_started),
            hook("simulation.run.ended", &order.webhooks.call_ended),
        ],
    });
    if let Some(scenario) = scenario.as_object_mut() {
        if order.tool_mocks.as_array().is_some_and(|mocks| !mocks.is_empty()) {
            scenario.insert("toolMocks".to_owned(), order.tool_mocks.clone());
        }
        if let Some(overrides) = order.target.get("assistantOverrides") {
            scenario.insert("targetOverrides".to_owned(), overrides.clone());
        }
    }
    let target = match (order.target.get("squad"), order.target.get("assistantId")) {
        (Some(squad), _) => json!({"type": "squad", "squad": whole_squad(squad)}),
        (None, Some(id)) => json!({"type": "assistant", "assistantId": id}),
        (None, None) => {
            let assistant = order.target.get("assistant").unwrap_or(&Value::Null);
            json!({"type": "assistant", "assistant": plain(assistant)})
        }
    };
    json!({
        "simulations": [{
            "type": "simulation",
            "scenario": scenario,
            "personality": {"name": name(order), "assistant": tester(order)},
        }],
        "target": target,
        "iterations": 1,
        "transport": {"provider": "vapi.websocket"},
    })
}

/// The order as a call of the tester to the target's number.
fn phone_call(provider: &Provider<'_>, settings: &VapiSettings, order: &Order) -> Value {
    let mut tester = plain(&order.tester);
    if let Some(tester) = tester.as_object_mut() {
        let longest = longest(tester, order);
        let mut metadata = match tester.get("metadata") {
            Some(Value::Object(metadata)) => metadata.clone(),
            _ => Map::new(),
        };
        let ours = json!({"correlation": order.correlation, "agent": Side::Tester});
        metadata.insert("ringback".to_owned(), ours);
        for (field, value) in [
            ("name", json!(name(order).chars().take(40).collect::<String>())),
            ("maxDurationSeconds", json!(longest)),
            ("metadata", Value::Object(metadata)),
            ("server", server(provider, settings, &order.webhooks.call_ended)),
            ("serverMessages", json!(["status-update", "end-of-call-report"])),
            (
                "monitorPlan",
                json!({"listenEnabled": true, "controlEnabled": true}),
            ),
        ] {
            tester.insert(field.to_owned(), value);
        }
    }
    json!({
        "name": "ringback",
        "assistant": tester,
        "phoneNumberId": settings.phone_number_id,
        "customer": {"number": order.target_number},
    })
}

pub(super) async fn place(
    provider: &Provider<'_>,
    outbound: &Outbound,
    settings: &VapiSettings,
    order: &Order,
) -> Result<CallReport, ProviderError> {
    let (url, body) = match settings.way() {
        VapiCalls::Simulations => (
            provider.at(&["eval", "simulation", "run"])?,
            simulation(provider, settings, order),
        ),
        VapiCalls::Phone => (provider.at(&["call"])?, phone_call(provider, settings, order)),
    };
    let ask = Ask {
        method: Method::POST,
        url,
        body: Some(&body),
        key: None,
        limited: true,
        within: TIMEOUT,
    };
    let (status, answer) = provider.ask(outbound, ask).await?;
    if !status.is_success() {
        return Err(provider.refusal(status, &answer));
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    Ok(CallReport {
        call_id: text(answer.get("id")).unwrap_or_default(),
        listen_url: text(answer.get("monitor").and_then(|monitor| monitor.get("listenUrl"))),
        ..CallReport::default()
    })
}

fn texts<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}

/// What the item of a run of Vapi's simulations says of the call.
fn found_item(run: &str, item: &Value) -> Found {
    let status = match texts(item, "status") {
        Some("queued") => CallStatus::Queued,
        Some("passed" | "failed" | "canceled") => CallStatus::Ended,
        // While Vapi evaluates, what was said may not be there yet.
        _ => CallStatus::InProgress,
    };
    let call = item.get("metadata").and_then(|metadata| metadata.get("call"));
    let call = call.unwrap_or(&Value::Null);
    let owned = |value: Option<&str>| value.map(str::to_owned);
    let messages = call.get("messages").and_then(Value::as_array).cloned();
    // Ringback's own evaluation is not required: what failed, failed for another reason.
    let fault = match texts(item, "status") {
        Some("canceled") => Some(Fault::Ringback),
        Some("failed") => Some(Fault::Provider),
        _ => None,
    };
    let ended_at = ["completedAt", "failedAt", "canceledAt"]
        .iter()
        .find_map(|field| texts(item, field));
    Found {
        status,
        report: CallReport {
            call_id: run.to_owned(),
            started_at: owned(texts(item, "startedAt")),
            ended_at: owned(ended_at),
            ended_reason: match texts(item, "status") {
                Some("canceled") => Some("canceled".to_owned()),
                Some("failed") => owned(texts(item, "failureReason")),
                _ => None,
            },
            transcript: owned(texts(call, "transcript")),
            messages,
            recording_url: owned(texts(call, "recordingUrl")),
            listen_url: owned(
                call.get("monitor")
                    .and_then(|monitor| texts(monitor, "listenUrl")),
            ),
            fault,
            detail: Some(json!({"simulationRunItemId": item.get("id"), "callId": item.get("callId")})),
            ..CallReport::default()
        },
    }
}

fn found_call(call: &Value) -> Found {
    let status = match texts(call, "status") {
        Some("scheduled" | "queued") => CallStatus::Queued,
        Some("ringing") => CallStatus::Ringing,
        Some("ended" | "not-found" | "deletion-failed") => CallStatus::Ended,
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
    settings: &VapiSettings,
    call_id: Option<&str>,
    correlation: &str,
    since: i64,
) -> Result<Option<Found>, ProviderError> {
    let since = (iso(since - CLOCKS_MS), iso(since + CLOCKS_MS + ON_ITS_WAY_MS));
    match (settings.way(), call_id) {
        (VapiCalls::Simulations, Some(run)) => run_of(provider, outbound, run).await,
        (VapiCalls::Simulations, None) => match find_run(provider, outbound, correlation, &since).await? {
            Some(run) => run_of(provider, outbound, &run).await,
            None => Ok(None),
        },
        (VapiCalls::Phone, Some(id)) => {
            let call = call_of(provider, outbound, id).await?;
            Ok(call.as_ref().map(found_call))
        }
        (VapiCalls::Phone, None) => find_call(provider, outbound, settings, correlation, &since).await,
    }
}

/// What is known of a run's call. Where it is over, the call of its item says why, and what is told by no item.
async fn run_of(
    provider: &Provider<'_>,
    outbound: &Outbound,
    run: &str,
) -> Result<Option<Found>, ProviderError> {
    let ask = get(provider.at(&["eval", "simulation", "run", run, "item"])?);
    let (status, body) = provider.ask(outbound, ask).await?;
    if is_gone(status) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    let items = body.as_array().or_else(|| body.get("results")?.as_array());
    match items.and_then(|items| items.first()) {
        Some(item) => {
            let mut found = found_item(run, item);
            if let (true, Some(call)) = (found.is_over(), texts(item, "callId"))
                // What only the leg says can do without.
                && let Ok(Some(leg)) = legs(provider, outbound, call, None).await
            {
                let report = &mut found.report;
                report.turn_latencies = leg.turn_latencies;
                report.cost = leg.cost;
                report.ended_at = leg.ended_at.or(report.ended_at.take());
                report.ended_reason = report.ended_reason.take().or(leg.ended_reason);
                report.fault = report.fault.or(leg.fault);
                report.detail = leg.detail;
            }
            Ok(Some(found))
        }
        None => Err(ProviderError::Unanswered("its run has no item yet".to_owned())),
    }
}

/// The run whose scenario has this correlation value for a name.
async fn find_run(
    provider: &Provider<'_>,
    outbound: &Outbound,
    correlation: &str,
    (since, until): &(String, String),
) -> Result<Option<String>, ProviderError> {
    for page in 1..=PAGES {
        let mut url = provider.at(&["eval", "simulation", "run"])?;
        url.query_pairs_mut()
            .append_pair("page", &page.to_string())
            .append_pair("limit", &PAGE.to_string())
            .append_pair("createdAtGe", since)
            .append_pair("createdAtLe", until);
        let (status, body) = provider.ask(outbound, get(url)).await?;
        if !status.is_success() {
            return Err(provider.refusal(status, &body));
        }
        let Some(runs) = body.get("results").and_then(Value::as_array) else {
            return Err(ProviderError::Unanswered("its answer has no results".to_owned()));
        };
        let ours = |run: &&Value| {
            let scenario = run.pointer("/simulations/0/scenario/name");
            scenario.and_then(Value::as_str) == Some(correlation)
        };
        if let Some(id) = runs.iter().find(ours).and_then(|run| texts(run, "id")) {
            return Ok(Some(id.to_owned()));
        }
        if runs.len() < PAGE {
            return Ok(None);
        }
    }
    Err(ProviderError::Unanswered(
        "it has more runs than can be looked through".to_owned(),
    ))
}

async fn call_of(
    provider: &Provider<'_>,
    outbound: &Outbound,
    id: &str,
) -> Result<Option<Value>, ProviderError> {
    let (status, body) = provider.ask(outbound, get(provider.at(&["call", id])?)).await?;
    if is_gone(status) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(provider.refusal(status, &body));
    }
    Ok(Some(body))
}

/// The call whose tester has this correlation value in its metadata. The list has no pages: the next one ends where this begins.
async fn find_call(
    provider: &Provider<'_>,
    outbound: &Outbound,
    settings: &VapiSettings,
    correlation: &str,
    (since, until): &(String, String),
) -> Result<Option<Found>, ProviderError> {
    let mut until = until.clone();
    for _ in 0..PAGES {
        let mut url = provider.at(&["call"])?;
        url.query_pairs_mut()
            .append_pair("limit", &PAGE.to_string())
            .append_pair("createdAtGe", since)
            .append_pair("createdAtLe", &until);
        if let Some(id) = &settings.phone_number_id {
            url.query_pairs_mut().append_pair("phoneNumberId", id);
        }
        let (status, body) = provider.ask(outbound, get(url)).await?;
        if !status.is_success() {
            return Err(provider.refusal(status, &body));
        }
        let Some(calls) = body.as_array() else {
            return Err(ProviderError::Unanswered("its answer is no list".to_owned()));
        };
        let ours = |call: &&Value| {
            let named = call.pointer("/assistant/metadata/ringback/correlation");
            named.and_then(Value::as_str) == Some(correlation)
        };
        if let Some(call) = calls.iter().find(ours) {
            return Ok(Some(found_call(call)));
        }
        let oldest = calls.iter().filter_map(|call| texts(call, "createdAt")).min();
        match oldest {
            Some(oldest) if calls.len() >= PAGE && oldest != until => until = oldest.to_owned(),
            _ => return Ok(None),
        }
    }
    Err(ProviderError::Unanswered(
        "it has more calls than can be looked through".to_owned(),
    ))
}

pub(super) async fn end(
    provider: &Provider<'_>,
    outbound: &Outbound,
    settings: &VapiSettings,
    call_id: &str,
) -> Result<bool, ProviderError> {
    match settings.way() {
        VapiCalls::Simulations => {
            let ask = Ask {
                method: Method::PATCH,
                ..get(provider.at(&["eval", "simulation", "run", call_id])?)
            };
            let (status, body) = provider.ask(outbound, ask).await?;
            match status.as_u16() {
                404 | 410 => Ok(true),
                // Somebody else is canceling it.
                409 => Ok(false),
                // It says so of a run that has ended, and may say so of others.
                400 => match run_of(provider, outbound, call_id).await? {
                    Some(found) if !found.is_over() => Err(provider.refusal(status, &body)),
                    _ => Ok(true),
                },
                _ if status.is_success() => Ok(false),
                _ => Err(provider.refusal(status, &body)),
            }
        }
        VapiCalls::Phone => {
            let Some(call) = call_of(provider, outbound, call_id).await? else {
                return Ok(true);
            };
            if found_call(&call).is_over() {
                return Ok(true);
            }
            let control = call.pointer("/monitor/controlUrl").and_then(Value::as_str);
            let control = control.and_then(|url| url.parse::<Url>().ok());
            let Some(url) = control.filter(|url| matches!(url.scheme(), "http" | "https")) else {
                return Err(ProviderError::Unanswered(
                    "the call has no URL to control it by yet".to_owned(),
                ));
            };
            let ask = Ask {
                method: Method::POST,
                url,
                body: Some(&json!({"type": "end-call"})),
                key: None,
                limited: false,
                within: TIMEOUT,
            };
            // Not with the key: whoever the URL belongs to, it is not asked for.
            let (status, body) = provider.ask_bare(outbound, ask).await?;
            match status {
                // It may be over, or not be up yet: who asks again looks first.
                _ if is_gone(status) || status.is_success() => Ok(false),
                _ => Err(provider.refusal(status, &body)),
            }
        }
    }
}

/// What the call of the target's leg says that a run of simulations does not: latencies, and the cost of both legs. `None` while
/// Vapi does not know it yet.
pub(super) async fn legs(
    provider: &Provider<'_>,
    outbound: &Outbound,
    target: &str,
    tester: Option<&str>,
) -> Result<Option<CallReport>, ProviderError> {
    let Some(call) = call_of(provider, outbound, target).await? else {
        return Ok(None);
    };
    let measured = call.pointer("/artifact/performanceMetrics").is_some();
    // It may be the other leg's: what measures the tester says nothing about the target.
    if !found_call(&call).is_over() || !measured || agent_of_call(&call) != Side::Target {
        return Ok(None);
    }
    let mut cost = call.get("cost").and_then(Value::as_f64);
    if let Some(tester) = tester
        && let Some(leg) = call_of(provider, outbound, tester).await?
        && let (Some(one), Some(other)) = (cost, leg.get("cost").and_then(Value::as_f64))
    {
        cost = Some(one + other);
    }
    let report = report_of_call(&call, Side::Target);
    Ok(Some(CallReport {
        ended_at: report.ended_at,
        ended_reason: report.ended_reason,
        fault: report.fault,
        turn_latencies: report.turn_latencies,
        cost,
        detail: Some(json!({LEGS: {"target": target, "tester": tester}})),
        ..CallReport::default()
    }))
}

/// An assistant that only Vapi knows, and who asks Vapi for its words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// The endpoint whose key is used.
    pub endpoint: Uuid,
    /// Vapi's id of the assistant.
    pub assistant_id: String,
}

/// What an assistant said in one turn of a chat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTurn {
    /// Vapi's id of the chat so far: the next turn goes on from it.
    pub chat_id: String,
    /// What it said.
    pub content: Option<String>,
    /// The tools that Vapi ran, each with what it gave back.
    pub tools: Vec<(ToolCall, Option<String>)>,
    /// What it cost in millionths of a US dollar, if Vapi says so.
    pub cost: Option<i64>,
}

impl Provider<'_> {
    /// The assistant with this id, as Vapi describes it. `None` when Vapi knows none.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn assistant(&self, outbound: &Outbound, id: &str) -> Result<Option<Object>, ProviderError> {
        let (status, body) = self.ask(outbound, get(self.at(&["assistant", id])?)).await?;
        match body {
            _ if is_gone(status) => Ok(None),
            Value::Object(assistant) if status.is_success() => Ok(Some(assistant)),
            _ if status.is_success() => {
                Err(ProviderError::Unanswered("its answer is no assistant".to_owned()))
            }
            body => Err(self.refusal(status, &body)),
        }
    }

    /// Asks an assistant for its next turn: `input` is what was said since the chat `previous`, or all of it where there is none.
    ///
    /// # Errors
    /// A refusal, or no answer that says anything.
    pub async fn chat(
        &self,
        outbound: &Outbound,
        remote: &Remote,
        variables: &Object,
        previous: Option<&str>,
        input: &[Json],
        within: Duration,
    ) -> Result<ChatTurn, ProviderError> {
        let mut body = json!({"assistantId": remote.assistant_id, "input": input});
        if let Some(previous) = previous {
            body["previousChatId"] = json!(previous);
        }
        if !variables.is_empty() {
            body["assistantOverrides"] = json!({"variableValues": variables});
        }
        let ask = Ask {
            method: Method::POST,
            url: self.at(&["chat"])?,
            body: Some(&body),
            key: None,
            limited: true,
            within,
        };
        let (status, answer) = self.ask(outbound, ask).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &answer));
        }
        turn_of(&answer).ok_or_else(|| ProviderError::Unanswered("its answer is no chat".to_owned()))
    }
}

fn turn_of(chat: &Value) -> Option<ChatTurn> {
    let output = chat.get("output")?.as_array()?;
    let mut said = Vec::new();
    let mut tools: Vec<(ToolCall, Option<String>)> = Vec::new();
    for message in output {
        match texts(message, "role") {
            Some("assistant") => {
                said.extend(message.get("content").and_then(crate::llm::text_of));
                let calls = ["tool_calls", "toolCalls"]
                    .iter()
                    .find_map(|field| message.get(field)?.as_array());
                for call in calls.into_iter().flatten() {
                    let function = call.get("function").unwrap_or(&Value::Null);
                    let arguments = match function.get("arguments") {
                        Some(Value::String(text)) => text.clone(),
                        Some(Value::Null) | None => "{}".to_owned(),
                        Some(other) => other.to_string(),
                    };
                    let call = ToolCall {
                        id: texts(call, "id").unwrap_or_default().to_owned(),
                        name: texts(function, "name").unwrap_or_default().to_owned(),
                        arguments,
                    };
                    tools.push((call, None));
                }
            }
            Some("tool") => {
                let id = texts(message, "tool_call_id").or_else(|| texts(message, "toolCallId"));
                let answered = tools.iter_mut().find(|(call, _)| Some(call.id.as_str()) == id);
                if let Some((_, result)) = answered {
                    *result = message.get("content").and_then(crate::llm::text_of);
                }
            }
            _ => {}
        }
    }
    let said: Vec<String> = said.into_iter().filter(|text| !text.trim().is_empty()).collect();
    #[expect(clippy::cast_possible_truncation, reason = "clamped before")]
    let micros = |dollars: f64| (dollars * 1e6).round().clamp(0.0, 1e15) as i64;
    Some(ChatTurn {
        chat_id: texts(chat, "id")?.to_owned(),
        content: (!said.is_empty()).then(|| said.join("\n")),
        tools,
        cost: chat.get("cost").and_then(Value::as_f64).map(micros),
    })
}
