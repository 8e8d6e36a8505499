//! An OpenAI-compatible server that plays the tester, the target, the judge and the writer, and counts what it is asked.
//!
//! What it replies follows from the messages alone, so a repeated call gets the same reply. One thing is new each time:
//! the tester's first reply names a caller (`caller 7 of booked`), which every later request of that conversation
//! carries, so that conversations of the same simulation can be told apart. How it behaves is written into the prompts as
//! JSON between `<<` and `>>`: `sim` and `turns` for the tester, `say`, `tool` and `place` for the target.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json,
    extract::{OriginalUri, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Tester,
    Target,
    Judge,
    /// Who writes scenarios and suggestions.
    Writer,
}

/// What it does instead of replying.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// An error with this status.
    Status(u16),
    /// 429, to be tried again at once.
    TryAgain,
    /// 200 with something that is no chat completion.
    NoCompletion,
    /// A chat completion that says nothing sensible.
    Nonsense,
    /// No reply until [`StandIn::release`].
    Hang,
}

/// One call as it was received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) role: Role,
    pub(crate) sim: String,
    /// Which conversation; 0 for a call that begins one.
    pub(crate) caller: usize,
    /// Where in the conversation, or what the judge is asked for.
    pub(crate) step: String,
}

#[derive(Debug, Default)]
struct Log {
    calls: Vec<Call>,
    /// The `traceparent` of each call that had one.
    traces: Vec<(Role, String)>,
    /// What the writer was given, each time.
    written_from: Vec<Vec<Value>>,
    callers: usize,
    values: BTreeMap<String, Value>,
    /// What is said next for an output of a simulation, one after the other.
    in_turn: BTreeMap<String, VecDeque<Value>>,
    faults: Vec<(Role, usize, Fault)>,
    in_flight: usize,
    max_in_flight: usize,
}

impl Log {
    /// Gives the outputs of a simulation the values whose turn it is.
    fn take_turns(&mut self, sim: &str) {
        let of_sim = |name: &str| name.split_once('/').is_some_and(|(named, _)| named == sim);
        for (name, values) in self.in_turn.iter_mut().filter(|(name, _)| of_sim(name)) {
            if let Some(value) = values.pop_front() {
                self.values.insert(name.clone(), value);
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    latency_ms: AtomicU64,
    releases: watch::Sender<u64>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

pub(crate) struct StandIn {
    base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl StandIn {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            latency_ms: AtomicU64::new(0),
            releases: watch::Sender::new(0),
        });
        let router = axum::Router::new()
            .fallback(answer)
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            shared,
            _server: server,
        }
    }

    /// Where testers and judges are asked: what goes into `OPENAI_BASE_URL`.
    pub(crate) fn url(&self) -> String {
        format!("{}/v1", self.base)
    }

    /// The target's own endpoint.
    pub(crate) fn target_url(&self) -> String {
        format!("{}/target/v1", self.base)
    }

    /// Every reply takes this long.
    pub(crate) fn latency(&self, latency: Duration) {
        self.shared
            .latency_ms
            .store(u64::try_from(latency.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// What the judge says for an output, and the writer in a field: `name` for all simulations, or `sim/name` for one.
    pub(crate) fn judge(&self, name: &str, value: Value) {
        self.shared.log().values.insert(name.to_owned(), value);
    }

    /// What the judge says for an output of a simulation (`sim/name`), one value for each time that it is asked. The last one
    /// stays.
    pub(crate) fn judge_in_turn(&self, name: &str, values: impl IntoIterator<Item = Value>) {
        let values = values.into_iter().collect();
        self.shared.log().in_turn.insert(name.to_owned(), values);
    }

    /// The next `times` calls in this role go wrong.
    pub(crate) fn fail(&self, role: Role, times: usize, fault: Fault) {
        self.shared.log().faults.push((role, times, fault));
    }

    /// All faults are over; calls that hang are answered.
    pub(crate) fn release(&self) {
        self.shared.log().faults.clear();
        self.shared.releases.send_modify(|n| *n += 1);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.log().calls.clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.log().calls.len()
    }

    pub(crate) fn count_of(&self, role: Role) -> usize {
        self.shared
            .log()
            .calls
            .iter()
            .filter(|call| call.role == role)
            .count()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.shared.log().in_flight
    }

    pub(crate) fn max_in_flight(&self) -> usize {
        self.shared.log().max_in_flight
    }

    /// The messages that the writer was given, each time that it was asked.
    pub(crate) fn written_from(&self) -> Vec<Vec<Value>> {
        self.shared.log().written_from.clone()
    }

    /// The `traceparent` of each call that had one.
    pub(crate) fn traces(&self) -> Vec<(Role, String)> {
        self.shared.log().traces.clone()
    }

    /// Forgets the calls so far.
    pub(crate) fn forget(&self) {
        let mut log = self.shared.log();
        log.calls.clear();
        log.written_from.clear();
    }
}

/// A call that is being answered. It is dropped when the caller hangs up.
struct Flight(Arc<Shared>);

impl Flight {
    fn new(shared: Arc<Shared>) -> Self {
        {
            let mut log = shared.log();
            log.in_flight += 1;
            log.max_in_flight = log.max_in_flight.max(log.in_flight);
        }
        Self(shared)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.log().in_flight -= 1;
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Response {
    if !uri.path().ends_with("/chat/completions") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let _flight = Flight::new(Arc::clone(&shared));
    let asked = Asked::read(uri.path(), &request);
    let mut releases = shared.releases.subscribe();
    let (fault, caller) = {
        let mut log = shared.log();
        log.calls.push(Call {
            role: asked.role,
            sim: asked.sim.clone(),
            caller: asked.caller.unwrap_or(0),
            step: asked.step.clone(),
        });
        if let Some(trace) = headers.get("traceparent") {
            log.traces.push((asked.role, trace.to_str().unwrap().to_owned()));
        }
        if asked.role == Role::Writer {
            log.written_from.push(asked.messages.clone());
        }
        log.callers += 1;
        let due = log
            .faults
            .iter_mut()
            .find(|(role, left, _)| *role == asked.role && *left > 0);
        let fault = due.map(|(_, left, fault)| {
            *left -= 1;
            fault.clone()
        });
        (fault, log.callers)
    };
    let latency = Duration::from_millis(shared.latency_ms.load(Ordering::Relaxed));
    if !latency.is_zero() {
        // The model thinks.
        tokio::time::sleep(latency).await;
    }
    let problem = json!({"error": {"message": "the stand-in was told to fail"}});
    match fault {
        Some(Fault::Status(status)) => {
            return (StatusCode::from_u16(status).unwrap(), Json(problem)).into_response();
        }
        Some(Fault::TryAgain) => {
            return (
                StatusCode::TOO_MANY_REQUESTS,
                [(header::RETRY_AFTER, "0")],
                Json(problem),
            )
                .into_response();
        }
        Some(Fault::NoCompletion) => return "<html>It works!</html>".into_response(),
        Some(Fault::Nonsense) => {
            return completion(&json!({"role": "assistant", "content": "Let me think {"}));
        }
        Some(Fault::Hang) => releases.changed().await.unwrap(),
        None => {}
    }
    let message = match asked.role {
        Role::Tester => asked.tester(caller),
        Role::Target => asked.target(),
        Role::Judge | Role::Writer => {
            let mut log = shared.log();
            log.take_turns(&asked.sim);
            json!({"role": "assistant", "content": asked.judge(&log.values).to_string()})
        }
    };
    completion(&message)
}

fn completion(message: &Value) -> Response {
    let finish_reason = if message.get("tool_calls").is_some() {
        "tool_calls"
    } else {
        "stop"
    };
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "stand-in",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }))
    .into_response()
}

/// A request, read.
#[derive(Debug)]
struct Asked {
    role: Role,
    sim: String,
    caller: Option<usize>,
    step: String,
    messages: Vec<Value>,
    directive: Value,
    schema: Value,
}

fn text(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

/// `caller 7 of booked` in a text.
fn identity(text: &str) -> Option<(usize, String)> {
    text.split("caller ").skip(1).find_map(|rest| {
        let (number, rest) = rest.split_once(" of ")?;
        Some((
            number.parse().ok()?,
            rest.chars().take_while(char::is_ascii_alphanumeric).collect(),
        ))
    })
}

impl Asked {
    fn read(path: &str, request: &Value) -> Self {
        let messages = request["messages"].as_array().cloned().unwrap_or_default();
        let role = match path {
            path if path.starts_with("/target/") => Role::Target,
            _ => match request["response_format"]["json_schema"]["name"].as_str() {
                Some("scenarios" | "improvements") => Role::Writer,
                Some(_) => Role::Judge,
                None => Role::Tester,
            },
        };
        let directive = messages
            .iter()
            .filter(|message| message["role"] == "system")
            .find_map(|message| {
                text(message)
                    .split_once("<<")?
                    .1
                    .split_once(">>")?
                    .0
                    .parse::<Value>()
                    .ok()
            })
            .unwrap_or_default();
        let known = messages.iter().find_map(|message| identity(text(message)));
        let (caller, sim) = match known {
            Some((caller, sim)) => (Some(caller), sim),
            None => (None, directive["sim"].as_str().unwrap_or_default().to_owned()),
        };
        let schema = request["response_format"]["json_schema"]["schema"].clone();
        let step = match schema["properties"].as_object() {
            Some(properties) => properties.keys().cloned().collect::<Vec<_>>().join(","),
            None => messages.len().to_string(),
        };
        Self {
            role,
            sim,
            caller,
            step,
            messages,
            directive,
            schema,
        }
    }

    fn said_by(&self, role: &str) -> usize {
        self.messages
            .iter()
            .filter(|message| message["role"] == role)
            .count()
    }

    fn tester(&self, new: usize) -> Value {
        let turns = usize::try_from(self.directive["turns"].as_u64().unwrap_or(2)).unwrap();
        match (self.said_by("assistant"), self.caller) {
            (said, Some(caller)) if said >= turns => json!({
                "role": "assistant",
                "content": format!("Thanks from caller {caller}, goodbye."),
                "tool_calls": [{"id": "call_end", "type": "function",
                    "function": {"name": "endCall", "arguments": "{\"reason\":\"done\"}"}}],
            }),
            (said, Some(caller)) => {
                json!({"role": "assistant", "content": format!("Point {} of caller {caller}.", said + 1)})
            }
            (_, None) => {
                json!({"role": "assistant", "content": format!("Hello, caller {new} of {}.", self.sim)})
            }
        }
    }

    fn target(&self) -> Value {
        if let Some(say) = self.directive["say"].as_str() {
            return json!({"role": "assistant", "content": say});
        }
        let (turn, tool) = (self.said_by("user"), self.directive["tool"].as_str());
        if let Some(tool) = tool.filter(|_| turn == 1 && self.said_by("tool") == 0) {
            return json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_tool", "type": "function",
                "function": {"name": tool, "arguments": "{\"day\":\"Monday\"}"}}]});
        }
        let last = self
            .messages
            .last()
            .filter(|message| message["role"] == "tool")
            .map(text);
        let tool = last
            .map(|result| format!(" The tool says {result}."))
            .unwrap_or_default();
        let place = self.directive["place"].as_str().unwrap_or("nowhere");
        json!({"role": "assistant", "content": format!("Answer {turn} from {place}.{tool}")})
    }

    fn judge(&self, values: &BTreeMap<String, Value>) -> Value {
        self.fill(&self.schema, "", values)
    }

    /// What the prompt calls the value with this key: `key: name` on a line of its own.
    fn listed(&self, key: &str) -> Option<&str> {
        let mut lines = self.messages.iter().flat_map(|message| text(message).lines());
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }

    /// A value for `schema`: what was configured for its name, or something of its type.
    fn fill(&self, schema: &Value, name: &str, values: &BTreeMap<String, Value>) -> Value {
        let title = schema["title"].as_str().unwrap_or_default();
        let described = schema["description"].as_str().unwrap_or_default();
        for name in [name, title, described]
            .into_iter()
            .filter(|name| !name.is_empty())
        {
            if let Some(value) = values
                .get(&format!("{}/{name}", self.sim))
                .or_else(|| values.get(name))
            {
                return value.clone();
            }
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.first().and_then(Value::as_str).unwrap_or_default(),
            kind => kind.as_str().unwrap_or_default(),
        };
        match kind {
            "object" => {
                let properties = schema["properties"].as_object().cloned().unwrap_or_default();
                let filled = properties.iter().map(|(key, schema)| {
                    let name = self
                        .listed(key)
                        .unwrap_or(if key == "value" { name } else { key });
                    (key.clone(), self.fill(schema, name, values))
                });
                Value::Object(filled.collect::<Map<_, _>>())
            }
            "array" => json!([]),
            "boolean" => json!(false),
            "integer" | "number" => json!(0),
            _ => schema["enum"].get(0).cloned().unwrap_or_else(|| json!("nothing")),
        }
    }
}
