//! The demo's stand-in provider: it keeps to the contract of `infra/PROVIDER.md`, but its calls are written, not spoken.
//! What tester and target say comes from two chat-completions endpoints.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use reqwest::Url;
use ringback_shared::{
    clock::{Clock, SystemClock, iso},
    conversation::{self, Conversation, Limits, Next, Parts, Plan, Reply, Speaker},
    llm::{self, Endpoint, ModelClient},
    models::simulation::UnmockedTools,
    net::Outbound,
    webhook::{ID_HEADER, SIGNATURE_HEADER, Secret, TIMESTAMP_HEADER, sign},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet};

use super::{AGENT_MODEL, TESTER_MODEL};

/// The most turns of a call, of both sides together.
const MOST_TURNS: u32 = 40;
/// How long a call may take where its order does not say, in seconds.
const LONGEST_CALL: i64 = 600;
/// How long a model may take for one reply.
const MODEL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often one webhook is sent until it is kept, how long each time may take, and the first pause between them.
const HOOK_ATTEMPTS: u32 = 5;
const HOOK_TIMEOUT: Duration = Duration::from_secs(10);
const HOOK_PAUSE: Duration = Duration::from_millis(200);

/// The provider. Dropping it stops its calls.
pub struct Provider {
    shared: Arc<Shared>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

impl Provider {
    /// A provider whose testers are at `tester_url`, and its targets at `agent_url` where their models have no URL. Both
    /// are the URL up to, or with, `/chat/completions`.
    #[must_use]
    pub fn new(agent_url: String, tester_url: String) -> Self {
        let shared = Shared {
            agent_url,
            tester_url,
            tester_key: Mutex::default(),
            clients: Clients::new(),
            secret: Mutex::default(),
            book: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What the testers' endpoint is asked with from now on.
    pub fn set_tester_key(&self, key: llm::Secret) {
        *lock(&self.shared.tester_key) = Some(key);
    }

    /// What webhooks are signed with from now on. Without a secret none is sent.
    pub fn set_secret(&self, secret: Secret) {
        *lock(&self.shared.secret) = Some(secret);
    }

    /// The contract's routes; an endpoint's `url` ends in `/calls`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/calls", post(place).get(find))
            .route("/calls/{id}", get(look))
            .route("/calls/{id}/end", post(end))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&self.shared))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // A router may outlive this: what it is asked to place then is not accepted.
        drop(lock(&self.shared.tasks).take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone)]
struct Clients {
    models: ModelClient,
    hooks: reqwest::Client,
}

impl Clients {
    fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            models: ModelClient::new(Outbound::new(true)),
            hooks: ringback_shared::net::client()
                .no_proxy()
                .timeout(HOOK_TIMEOUT)
                .build()?,
        })
    }
}

struct Shared {
    agent_url: String,
    tester_url: String,
    tester_key: Mutex<Option<llm::Secret>>,
    clients: Result<Clients, reqwest::Error>,
    secret: Mutex<Option<Secret>>,
    book: Mutex<Book>,
    /// The calls that go on; none once the provider was dropped.
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// All calls, for as long as the provider lives.
#[derive(Debug, Default)]
struct Book {
    calls: HashMap<String, Call>,
    /// The calls' ids by the keys that they were placed with.
    by_key: HashMap<String, String>,
}

#[derive(Debug)]
struct Call {
    /// What is told of it when somebody asks.
    state: Value,
    hang_up: Arc<Notify>,
}

impl Book {
    /// The id of the call that was placed with `key`; for a new one also what tells it to end.
    fn place(&mut self, key: &str, correlation: &str) -> (String, Option<Arc<Notify>>) {
        if let Some(id) = self.by_key.get(key) {
            return (id.clone(), None);
        }
        let id = uuid::Uuid::new_v4().to_string();
        let hang_up = Arc::new(Notify::new());
        let call = Call {
            state: json!({
                "id": id, "correlation": correlation, "status": "queued",
                "startedAt": null, "endedAt": null, "endedReason": null,
            }),
            hang_up: Arc::clone(&hang_up),
        };
        self.calls.insert(id.clone(), call);
        self.by_key.insert(key.to_owned(), id.clone());
        (id, Some(hang_up))
    }

    /// Takes over what `event` says of a call.
    fn note(&mut self, id: &str, status: &str, event: &Value) {
        let state = self.calls.get_mut(id).and_then(|call| call.state.as_object_mut());
        if let (Some(state), Some(event)) = (state, event.as_object()) {
            state.extend(event.clone());
            state.remove("type");
            state.insert("status".to_owned(), json!(status));
        }
    }

    fn with_correlation(&self, correlation: &str) -> Vec<&Value> {
        let states = self.calls.values().map(|call| &call.state);
        states
            .filter(|state| state["correlation"] == correlation)
            .collect()
    }

    /// Tells a call to end; says whether it was still going on.
    fn hang_up(&self, id: &str) -> Option<bool> {
        let call = self.calls.get(id)?;
        let over = call.state["status"] == "ended";
        if !over {
            call.hang_up.notify_one();
        }
        Some(!over)
    }
}

/// A call to be placed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    correlation: String,
    tester: Value,
    target: Target,
    webhooks: Webhooks,
    max_duration_seconds: Option<i64>,
    /// What the target's tools answer.
    #[serde(default)]
    tool_mocks: Value,
    /// What happens when it uses another one.
    unmocked_tools: Option<UnmockedTools>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    assistant: Option<Value>,
    squad: Option<Value>,
    #[serde(default)]
    assistant_overrides: Value,
}

impl Target {
    /// Who is under test, if the order says it.
    fn who(&self) -> Option<conversation::Target<'_>> {
        let assistant = || self.assistant.as_ref().map(conversation::Target::Assistant);
        self.squad
            .as_ref()
            .map(conversation::Target::Squad)
            .or_else(assistant)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Webhooks {
    call_started: String,
    call_ended: String,
}

impl Order {
    /// Why the call cannot be placed as it is ordered, if that is so.
    fn fault(&self) -> Option<&'static str> {
        if self.target.who().is_none() {
            return Some("target has neither an assistant nor a squad");
        }
        // Who asked for the real thing must not be told that it works when it got an error.
        let real = self.unmocked_tools == Some(UnmockedTools::Run);
        real.then_some("unmockedTools run cannot be done: this provider has no tools to run; use error")
    }

    /// The conversation of the call. Whatever tool has no mock gets an error: there is nothing here to run it with.
    fn plan(&self) -> Plan {
        // Of the tester's prompts a plan reads the first only: the others follow as its instructions.
        let prompts = self.tester["model"]["messages"].as_array();
        let others: Vec<&str> = prompts
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .skip(1)
            .filter_map(|message| message["content"].as_str())
            .collect();
        Plan::new(&Parts {
            personality: &self.tester,
            instructions: &others.join("\n\n"),
            target: self
                .target
                .who()
                .unwrap_or(conversation::Target::Assistant(&Value::Null)),
            tool_mocks: &self.tool_mocks,
            target_overrides: &self.target.assistant_overrides,
            remote: None,
            runs_tools: false,
            limits: Limits {
                max_turns: MOST_TURNS,
                max_seconds: self.max_duration_seconds.unwrap_or(LONGEST_CALL),
                ..Limits::default()
            },
        })
    }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

async fn place(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let Some(key) = key else {
        return problem(StatusCode::BAD_REQUEST, "send the header Idempotency-Key");
    };
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the order of a call: {error}")),
    };
    if let Some(fault) = order.fault() {
        return problem(StatusCode::BAD_REQUEST, &format!("the order of a call: {fault}"));
    }
    let clients = match &shared.clients {
        Ok(clients) => clients.clone(),
        // Asking again would not help: no status that means "unknown".
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the HTTP client: {error}")),
    };
    let mut tasks = lock(&shared.tasks);
    let Some(tasks) = tasks.as_mut() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the provider has stopped");
    };
    // Forget those that have ended.
    while tasks.try_join_next().is_some() {}
    let (id, new) = lock(&shared.book).place(key, &order.correlation);
    if let Some(hang_up) = new {
        tasks.spawn(Arc::clone(&shared).play(clients, id.clone(), order, hang_up));
    }
    (StatusCode::CREATED, Json(json!({ "id": id }))).into_response()
}

async fn look(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match lock(&shared.book).calls.get(&id) {
        Some(call) => Json(&call.state).into_response(),
        None => problem(StatusCode::NOT_FOUND, "there is no such call"),
    }
}

async fn find(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    match asked_correlation(&query.unwrap_or_default()) {
        Some(correlation) => {
            Json(json!({ "results": lock(&shared.book).with_correlation(&correlation) })).into_response()
        }
        None => problem(StatusCode::BAD_REQUEST, "ask with ?correlation=…"),
    }
}

fn asked_correlation(query: &str) -> Option<String> {
    let url = Url::parse(&format!("http://provider/?{query}")).ok()?;
    let mut pairs = url.query_pairs();
    let (_, value) = pairs.find(|(name, _)| name == "correlation")?;
    Some(value.into_owned())
}

async fn end(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match lock(&shared.book).hang_up(&id) {
        Some(true) => (StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response(),
        Some(false) => problem(StatusCode::CONFLICT, "the call is over already"),
        None => problem(StatusCode::NOT_FOUND, "there is no such call"),
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending {
    reason: &'static str,
    fault: Option<&'static str>,
}

impl Ending {
    const fn of(reason: &'static str) -> Self {
        Self { reason, fault: None }
    }

    /// One side's model does not answer.
    const fn failed(speaker: Speaker) -> Self {
        match speaker {
            Speaker::Target => Self {
                reason: "target-failed",
                fault: Some("target"),
            },
            Speaker::Tester => Self {
                reason: "tester-failed",
                fault: Some("tester"),
            },
        }
    }
}

impl Shared {
    /// A whole call, with its webhooks.
    async fn play(self: Arc<Self>, clients: Clients, id: String, order: Order, hang_up: Arc<Notify>) {
        let begun = json!({
            "type": "call.started", "callId": id, "correlation": order.correlation,
            "startedAt": iso(SystemClock.now_ms()),
        });
        lock(&self.book).note(&id, "in-progress", &begun);
        let talk = async {
            let mut conversation = Conversation::new(order.plan(), Vec::new());
            let ending = tokio::select! {
                ending = self.converse(&clients.models, &mut conversation) => ending,
                () = hang_up.notified() => Ending::of("ended-by-request"),
            };
            let over = ended(&begun, SystemClock.now_ms(), conversation.replies(), ending);
            lock(&self.book).note(&id, "ended", &over);
            over
        };
        // The call does not wait for the word of its start, the word of its end does.
        let ((), over) = tokio::join!(
            self.tell(&clients.hooks, &order.webhooks.call_started, &begun),
            talk
        );
        self.tell(&clients.hooks, &order.webhooks.call_ended, &over).await;
    }

    async fn converse(&self, models: &ModelClient, conversation: &mut Conversation) -> Ending {
        loop {
            let now = SystemClock.now_ms();
            let reply = match conversation.next(now) {
                Next::End(reason) => return Ending::of(reason.as_str()),
                Next::Say { speaker, text } => conversation.say(speaker, text, now),
                // No order names anybody else.
                Next::Ask { .. } => return Ending::failed(Speaker::Target),
                Next::Call {
                    speaker,
                    mut request,
                    model,
                } => {
                    let (endpoint, name) = self.leg(speaker, &model);
                    request.model = name;
                    match models.chat(&endpoint, &request).await {
                        Ok(reply) => conversation.accept(reply, now, SystemClock.now_ms()),
                        Err(error) => {
                            tracing::warn!(%error, ?speaker, "a call of the sample provider fails");
                            return Ending::failed(speaker);
                        }
                    }
                }
            };
            conversation.push(reply);
        }
    }

    /// Whom to ask for what `speaker` says, and the model's name there.
    fn leg(&self, speaker: Speaker, model: &Value) -> (Endpoint, String) {
        let (url, api_key, name) = match speaker {
            Speaker::Tester => {
                let key = lock(&self.tester_key).clone();
                (self.tester_url.as_str(), key, TESTER_MODEL)
            }
            Speaker::Target => {
                let url = model["url"].as_str().unwrap_or(&self.agent_url);
                (url, None, AGENT_MODEL)
            }
        };
        let endpoint = Endpoint {
            base_url: url.to_owned(),
            api_key,
            headers: BTreeMap::new(),
            timeout: MODEL_TIMEOUT,
            trusted: true,
        };
        (endpoint, model["model"].as_str().unwrap_or(name).to_owned())
    }

    /// Sends a webhook until it is kept or refused.
    async fn tell(&self, client: &reqwest::Client, url: &str, event: &Value) {
        let secret = lock(&self.secret).clone();
        let Some(secret) = secret else {
            tracing::warn!("the sample provider has no secret to sign with, so it tells nothing");
            return;
        };
        let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
        let body = event.to_string();
        for attempt in 0..HOOK_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(HOOK_PAUSE * 2_u32.pow(attempt - 1)).await;
            }
            let timestamp = SystemClock.now_ms() / 1000;
            let answer = client
                .post(url)
                .header(CONTENT_TYPE, "application/json")
                .header(ID_HEADER, id.as_str())
                .header(TIMESTAMP_HEADER, timestamp.to_string())
                .header(SIGNATURE_HEADER, sign(&secret, &id, timestamp, body.as_bytes()))
                .body(body.clone())
                .send()
                .await;
            match answer {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) if !answer.status().is_server_error() => {
                    tracing::warn!(status = %answer.status(), "a webhook of the sample provider is refused");
                    return;
                }
                Ok(answer) => tracing::debug!(status = %answer.status(), "a webhook is sent again"),
                Err(error) => tracing::debug!(%error, "a webhook is sent again"),
            }
        }
        tracing::warn!("a webhook of the sample provider is not kept");
    }
}

/// The call-ended event of the call whose call-started event is `begun`.
fn ended(begun: &Value, ended_ms: i64, replies: &[Reply], ending: Ending) -> Value {
    let mut event = begun.clone();
    event["type"] = json!("call.ended");
    event["endedAt"] = json!(iso(ended_ms));
    event["endedReason"] = json!(ending.reason);
    event["transcript"] = json!(conversation::transcript(replies));
    event["messages"] = json!(messages(replies));
    event["turnLatencies"] = json!(latencies(replies));
    event["cost"] = json!(0);
    if let Some(fault) = ending.fault {
        event["fault"] = json!(fault);
    }
    event
}

/// The messages in the contract's form.
fn messages(replies: &[Reply]) -> Vec<Value> {
    let mut messages = conversation::messages(replies);
    // The tester's own tools, such as its way to hang up, are not part of the call.
    messages.retain(|message| message["speaker"] != "tester");
    for message in &mut messages {
        if message["role"] == "assistant" {
            message["role"] = json!("bot");
        }
        if let Some(fields) = message.as_object_mut() {
            for ours in ["content", "speaker", "mocked"] {
                fields.remove(ours);
            }
        }
    }
    messages
}

/// The figures of each answer of the target, in milliseconds.
///
/// The model's is measured. Nothing is heard or spoken here, so the other three are made up, from the number of words
/// alone: they are the same for the same conversation, whenever and on whatever machine it is run.
fn latencies(replies: &[Reply]) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut heard = None;
    for turn in replies.chunk_by(|one, next| one.speaker == next.speaker) {
        let said = turn.iter().filter_map(|reply| reply.content.as_deref());
        let words: usize = said.map(|text| text.split_whitespace().count()).sum();
        if turn.iter().any(|reply| reply.speaker == Speaker::Tester) {
            heard = Some(words);
            continue;
        }
        // What the target says first answers nothing.
        let Some(heard) = heard.take().filter(|_| words > 0) else {
            continue;
        };
        let model: i64 = turn.iter().map(|reply| reply.ended_at - reply.at).sum();
        let scaled = |base: i64, words: usize| base + 5 * i64::try_from(words).unwrap_or(0);
        let (voice, transcriber, endpointing) = (scaled(180, words), scaled(100, heard), 300);
        entries.push(json!({
            "turn": model + voice + transcriber + endpointing,
            "model": model, "voice": voice, "transcriber": transcriber, "endpointing": endpointing,
        }));
    }
    entries
}

#[cfg(test)]
mod tests {
    use ringback_shared::{
        llm::{ChatReply, ToolCall},
        signature::{Scheme, Unverified},
    };
    use tokio::net::TcpListener;

    use super::*;

    fn body() -> Value {
        json!({
            "correlation": "rbc1.x",
            "tester": {"firstMessageMode": "assistant-waits-for-user", "model": {"messages": [
                {"role": "system", "content": "You call a clinic."},
                {"role": "system", "content": "1. How much is a check-up?\n2. Thanks, goodbye."},
            ]}},
            "target": {
                "type": "assistant", "assistant": {"firstMessage": "Hello {{name}}!"},
                "assistantOverrides": {"variableValues": {"name": "Ann"}},
            },
            "webhooks": {"callStarted": "http://ringback/started", "callEnded": "http://ringback/ended"},
            "toolMocks": [{"toolName": "book", "result": "booked"}],
            "metadata": {"iterationNumber": 1},
        })
    }

    fn order() -> Order {
        serde_json::from_value(body()).unwrap()
    }

    fn said(text: &str) -> ChatReply {
        ChatReply {
            content: Some(text.to_owned()),
            ..ChatReply::default()
        }
    }

    fn called(text: Option<&str>, tool: &str) -> ChatReply {
        let call = ToolCall {
            id: "call_1".to_owned(),
            name: tool.to_owned(),
            arguments: "{}".to_owned(),
        };
        ChatReply {
            content: text.map(ToOwned::to_owned),
            tool_calls: vec![call],
            ..ChatReply::default()
        }
    }

    /// A conversation in which the target uses a tool and the tester hangs up.
    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(order().plan(), Vec::new());
        let Next::Say { speaker, text } = conversation.next(1000) else {
            panic!("the target speaks first")
        };
        conversation.push(conversation.say(speaker, text, 1000));
        for (reply, at, ended_at) in [
            (said("I want a slot"), 1000, 1200),
            (called(None, "book"), 1200, 1500),
            (said("It is booked."), 1500, 1900),
            (called(Some("Bye now"), "endCall"), 1900, 2000),
        ] {
            let reply = conversation.accept(reply, at, ended_at);
            conversation.push(reply);
        }
        conversation
    }

    #[test]
    fn the_tester_gets_all_of_its_prompts() {
        let mut order = order();
        order.tester["firstMessageMode"] = json!("assistant-speaks-first-with-model-generated-message");
        let conversation = Conversation::new(order.plan(), Vec::new());
        let Next::Call { speaker, request, .. } = conversation.next(0) else {
            panic!("the tester speaks first")
        };
        assert_eq!(speaker, Speaker::Tester);
        let prompt = request.messages[0].value();
        let prompt = prompt["content"].as_str().unwrap();
        assert!(prompt.contains("You call a clinic.") && prompt.contains("2. Thanks, goodbye."));
    }

    #[test]
    fn a_tool_without_a_mock_gets_an_error_and_is_never_said_to_run() {
        let mut body = body();
        body["unmockedTools"] = json!("error");
        body["toolMocks"] = json!([{"toolName": "book", "result": "booked", "enabled": false}]);
        let order: Order = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(order.fault(), None);
        let mut conversation = Conversation::new(order.plan(), Vec::new());
        conversation.push(conversation.say(Speaker::Target, "Hello".to_owned(), 0));
        for reply in [said("I want a slot"), called(None, "book")] {
            let reply = conversation.accept(reply, 0, 0);
            conversation.push(reply);
        }
        let event = ended(&json!({}), 0, conversation.replies(), Ending::of("x"));
        let result = event["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(result["role"], "tool_call_result");
        assert!(
            result["result"].as_str().unwrap().starts_with("Error"),
            "{result}"
        );
        body["unmockedTools"] = json!("run");
        let order: Order = serde_json::from_value(body.clone()).unwrap();
        assert!(order.fault().unwrap().contains("unmockedTools"));
        body["unmockedTools"] = json!("perhaps");
        assert!(serde_json::from_value::<Order>(body).is_err());
    }

    #[test]
    fn a_squad_is_played_by_its_members() {
        let mut body = body();
        body["target"] = json!({"type": "squad", "assistantOverrides": {"variableValues": {"name": "Ann"}}, "squad": {"members": [
            {"assistant": {"name": "Desk", "firstMessage": "Hello {{name}}!"},
                "assistantDestinations": [{"type": "assistant", "assistantName": "Billing"}]},
            {"assistant": {"name": "Billing"}},
        ]}});
        let order: Order = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(order.fault(), None);
        let mut conversation = Conversation::new(order.plan(), Vec::new());
        assert!(matches!(conversation.next(0), Next::Say { text, .. } if text == "Hello Ann!"));
        conversation.push(conversation.say(Speaker::Target, "Hello Ann!".to_owned(), 0));
        for reply in [
            said("My bill?"),
            called(None, "handoff_to_Billing"),
            said("It is $80."),
        ] {
            let reply = conversation.accept(reply, 0, 0);
            conversation.push(reply);
        }
        let event = ended(&json!({}), 0, conversation.replies(), Ending::of("x"));
        let messages = event["messages"].as_array().unwrap();
        let names = [&messages[0], messages.last().unwrap()].map(|message| &message["assistantName"]);
        assert_eq!(names, ["Desk", "Billing"]);
        body["target"] = json!({"type": "squad"});
        let order: Order = serde_json::from_value(body).unwrap();
        assert!(order.fault().is_some());
    }

    #[test]
    fn the_events_are_the_contracts() {
        let conversation = conversation();
        let begun =
            json!({"type": "call.started", "callId": "c", "correlation": "rbc1.x", "startedAt": iso(1000)});
        let ending = Ending::of(conversation.ended().unwrap().as_str());
        let event = ended(&begun, 2000, conversation.replies(), ending);
        assert_eq!(
            (&event["type"], &event["endedReason"], &event["endedAt"]),
            (
                &json!("call.ended"),
                &json!("customer-ended-call"),
                &json!(iso(2000))
            )
        );
        assert_eq!(
            event["transcript"],
            "AI: Hello Ann!\nUser: I want a slot\nAI: It is booked.\nUser: Bye now"
        );
        let messages = event["messages"].as_array().unwrap();
        let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(
            roles,
            ["bot", "user", "tool_calls", "tool_call_result", "bot", "user"]
        );
        assert_eq!(
            messages[1],
            json!({"role": "user", "message": "I want a slot", "time": 1000, "endTime": 1200, "secondsFromStart": 0.0})
        );
        assert_eq!(messages[2]["toolCalls"][0]["function"]["name"], "book");
        assert_eq!(
            (&messages[3]["toolCallId"], &messages[3]["result"]),
            (&json!("call_1"), &json!("booked"))
        );
        assert_eq!(event.get("fault"), None);
        let failed = ended(&begun, 2000, &[], Ending::failed(Speaker::Tester));
        assert_eq!(failed["fault"], "tester");
        assert_eq!(Ending::failed(Speaker::Target).fault, Some("target"));
    }

    #[test]
    fn an_answer_has_its_measured_model_and_made_up_figures() {
        // The greeting is no answer, and the tool is part of the one answer: 300 ms and 400 ms.
        assert_eq!(
            latencies(conversation().replies()),
            [json!({"turn": 1315, "model": 700, "voice": 195, "transcriber": 120, "endpointing": 300})]
        );
    }

    #[test]
    fn a_key_places_one_call() {
        let mut book = Book::default();
        let (id, new) = book.place("item-1", "rbc1.x");
        assert!(new.is_some());
        let (again, new) = book.place("item-1", "rbc1.x");
        assert_eq!((&again, new.is_some()), (&id, false));
        assert_ne!(book.place("item-2", "rbc1.y").0, id);
        assert_eq!(book.with_correlation("rbc1.x").len(), 1);
        assert!(book.with_correlation("rbc1.z").is_empty());
        assert_eq!((book.hang_up(&id), book.hang_up("?")), (Some(true), None));
        book.note(
            &id,
            "ended",
            &json!({"type": "call.ended", "endedReason": "because"}),
        );
        assert_eq!(book.hang_up(&id), Some(false));
        let state = &book.calls[&id].state;
        assert_eq!(
            (&state["endedReason"], state.get("type")),
            (&json!("because"), None)
        );
    }

    #[test]
    fn a_correlation_is_decoded() {
        let found = asked_correlation("a=b&correlation=rbc1.x%2Fy");
        assert_eq!(found.as_deref(), Some("rbc1.x/y"));
        assert_eq!(asked_correlation(""), None);
    }

    #[test]
    fn only_a_target_brings_its_own_server_and_only_the_testers_gets_the_key() {
        let provider = Provider::new("http://agent".to_owned(), "http://tester".to_owned());
        let key = llm::Secret::new("key");
        provider.set_tester_key(key.clone());
        let own = json!({"url": "http://own", "model": "m"});
        for (speaker, model, url, name) in [
            (Speaker::Target, &own, "http://own", "m"),
            (Speaker::Target, &json!({}), "http://agent", AGENT_MODEL),
            (Speaker::Tester, &own, "http://tester", "m"),
        ] {
            let (endpoint, named) = provider.shared.leg(speaker, model);
            assert_eq!((endpoint.base_url.as_str(), named.as_str()), (url, name));
            assert_eq!(
                endpoint.api_key,
                (speaker == Speaker::Tester).then(|| key.clone())
            );
        }
    }

    #[tokio::test]
    async fn a_call_is_placed_once_played_and_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let provider = Provider::new(format!("{url}/agent/v1"), format!("{url}/tester/v1"));
        let secret = Secret::generate().unwrap();
        provider.set_secret(secret.clone());
        let (told, mut events) = tokio::sync::mpsc::unbounded_channel();
        let hook = post(move |headers: HeaderMap, body: Bytes| {
            let (told, secret) = (told.clone(), secret.clone());
            async move {
                let delivery = Unverified::new("POST", "", &headers, body.to_vec());
                let profile = Scheme::StandardWebhooks.profile();
                let now = SystemClock.now_ms();
                let delivery = delivery.verify(&profile, &[secret.to_text()], now).unwrap();
                told.send(delivery.parse::<Value>().unwrap()).unwrap();
            }
        });
        let router = crate::sample::router()
            .merge(provider.router())
            .route("/hooks", hook);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let client = ringback_shared::net::client().build().unwrap();
        let mut body = body();
        body["webhooks"] =
            json!({"callStarted": format!("{url}/hooks"), "callEnded": format!("{url}/hooks")});
        let mut ids = Vec::new();
        for _ in 0..2 {
            let request = client
                .post(format!("{url}/calls"))
                .header("Idempotency-Key", "item-1");
            let answer = request.json(&body).send().await.unwrap();
            assert_eq!(answer.status(), 201);
            ids.push(answer.json::<Value>().await.unwrap()["id"].take());
        }
        assert_eq!(ids[0], ids[1]);
        let begun = events.recv().await.unwrap();
        assert_eq!(
            (&begun["type"], &begun["callId"]),
            (&json!("call.started"), &ids[0])
        );
        let over = events.recv().await.unwrap();
        assert_eq!(
            (&over["type"], &over["endedReason"]),
            (&json!("call.ended"), &json!("customer-ended-call"))
        );
        let transcript = over["transcript"].as_str().unwrap();
        assert!(transcript.contains("check-up costs $80"), "{transcript}");
        let found = client
            .get(format!("{url}/calls?correlation=rbc1.x"))
            .send()
            .await
            .unwrap();
        let found = found.json::<Value>().await.unwrap();
        assert_eq!(found["results"][0]["status"], "ended");
        assert_eq!(found["results"][0]["transcript"], over["transcript"]);
        let id = ids[0].as_str().unwrap();
        for (id, status) in [(id, 409_u16), ("none", 404)] {
            let request = client.post(format!("{url}/calls/{id}/end"));
            assert_eq!(request.send().await.unwrap().status(), status);
        }
        assert!(events.try_recv().is_err(), "a second call was made");
        server.abort();
    }
}
