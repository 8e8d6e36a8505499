//! A provider that keeps to the contract of `infra/PROVIDER.md` and counts what it is asked. Nobody talks: a call goes on
//! until the test ends it, Ringback asks for its end, or the time is over that [`Auto::Both`] gives it.
//!
//! What was said follows from the order alone. A call whose tester has a directive (see [`crate::stand_in`]) names a caller
//! of its `sim`, as a chat does, so that the judge can tell the simulations apart. Where an order says what becomes of tools that
//! have no mock, the target uses each of its functions once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use reqwest::Url;
use ringback_shared::{
    clock::{Clock, SystemClock, iso},
    webhook::{ID_HEADER, SIGNATURE_HEADER, Secret, TIMESTAMP_HEADER, sign},
};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::fixtures::LONG;

/// A secret that is not the endpoint's.
const WRONG_SECRET: &str = "whsec_dGhlIHdyb25nIHNlY3JldCBvZiB0aGUgc3RhbmQtaW4=";
/// A minute more than a webhook's time may differ.
const TOO_FAR_SECONDS: i64 = 360;
/// The pause before a webhook that was not kept is sent again.
const PAUSE: Duration = Duration::from_millis(50);

/// How it answers when a call is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placing {
    /// It places the call and says so.
    Accept,
    /// It places the call, but does not say so: it answers 500 and closes the connection by turns, 500 first.
    AcceptWithoutAnswer,
    /// It places the call at once, but does not say so until it is told another way.
    AcceptLate,
    /// It places nothing and answers with this status.
    Refuse(u16),
    /// It does nothing until it is told another way, and that then.
    Hang,
}

/// What a placed call does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auto {
    /// Nothing.
    Manual,
    /// It starts at once and ends after this time, with both webhooks.
    Both { talk_ms: u64 },
    /// The same, but the calls take these times by turns.
    ByTurns { talks_ms: &'static [u64] },
}

impl Auto {
    /// How long the `number`th call takes, if it does anything by itself.
    fn talk(self, number: usize) -> Option<Duration> {
        let ms = match self {
            Self::Manual => return None,
            Self::Both { talk_ms } => talk_ms,
            Self::ByTurns { talks_ms } => talks_ms[number % talks_ms.len()],
        };
        Some(Duration::from_millis(ms))
    }
}

/// What is wrong with a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tamper {
    Nothing,
    WrongSecret,
    OldTimestamp,
    FutureTimestamp,
    /// One byte is another one than was signed; JSON stays JSON.
    ChangedByte,
    NoSignature,
    /// Signed as it should be, but not JSON.
    NotJson,
}

/// A placed call. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CallRecord {
    pub(crate) id: String,
    pub(crate) correlation: String,
    pub(crate) idempotency_key: String,
    /// The header with the endpoint's key.
    pub(crate) authorization: Option<String>,
    /// The trace that its order belongs to.
    pub(crate) traceparent: Option<String>,
    pub(crate) body: Value,
    pub(crate) placed: i64,
    pub(crate) started: Option<i64>,
    pub(crate) ended: Option<i64>,
    /// How often its end was asked for.
    pub(crate) end_requests: usize,
    /// How often it was placed: more than once where the same key was posted again.
    pub(crate) placed_times: usize,
    /// How its webhooks were answered, in their order; 0 for no answer.
    pub(crate) answers: Vec<u16>,
}

/// How often it was asked for what, whatever the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// To place a call.
    pub(crate) placings: usize,
    /// To place a call, and it refused.
    pub(crate) refused: usize,
    /// For a call by its id.
    pub(crate) by_id: usize,
    /// For a call by its correlation value.
    pub(crate) by_correlation: usize,
    /// To end a call.
    pub(crate) ends: usize,
}

struct Line {
    record: CallRecord,
    /// The call-started event, once there is one.
    begun: Option<Value>,
    /// The call-ended event, once it has ended.
    over: Option<Value>,
}

struct Log {
    lines: Vec<Line>,
    asked: Asked,
    up: usize,
    most_up: usize,
    unanswered: usize,
    secret: Option<Secret>,
    auto: Auto,
    silent: bool,
    forgetful: bool,
    reticent: bool,
    moved_to: Option<String>,
    latencies: Vec<u64>,
    laid_over: Map<String, Value>,
}

impl Log {
    fn find(&self, id: &str) -> Option<usize> {
        self.lines.iter().position(|line| line.record.id == id)
    }

    fn line(&mut self, id: &str) -> &mut Line {
        let index = self.find(id).unwrap_or_else(|| panic!("no call has the id {id}"));
        &mut self.lines[index]
    }
}

struct Shared {
    log: Mutex<Log>,
    placing: watch::Sender<Placing>,
    /// Goes up when something happens to a call.
    changes: watch::Sender<u64>,
    http: reqwest::Client,
    tasks: Mutex<JoinSet<()>>,
}

pub(crate) struct ProviderStandIn {
    base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl ProviderStandIn {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0", None).await
    }

    /// At an address; `base` is where others reach it, if not there.
    pub(crate) async fn start_at(address: &str, base: Option<String>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let base = base.unwrap_or_else(|| format!("http://{}", listener.local_addr().unwrap()));
        let http = ringback_shared::net::client()
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let log = Log {
            lines: Vec::new(),
            asked: Asked::default(),
            up: 0,
            most_up: 0,
            unanswered: 0,
            secret: None,
            auto: Auto::Manual,
            silent: false,
            forgetful: false,
            reticent: false,
            moved_to: None,
            latencies: vec![800, 1000, 1200],
            laid_over: Map::new(),
        };
        let shared = Arc::new(Shared {
            log: Mutex::new(log),
            placing: watch::Sender::new(Placing::Accept),
            changes: watch::Sender::new(0),
            http,
            tasks: Mutex::default(),
        });
        let router = Router::new()
            .route("/calls", post(place).get(find))
            .route("/calls/{id}", get(look))
            .route("/calls/{id}/end", post(end))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            shared,
            _server: server,
        }
    }

    /// The endpoint's `url`.
    pub(crate) fn url(&self) -> String {
        format!("{}/calls", self.base)
    }

    /// The secret of the endpoint, as the answer to its creation shows it.
    pub(crate) fn set_secret(&self, secret: &str) {
        self.shared.log().secret = Some(Secret::parse(secret).unwrap());
    }

    /// From now on, and for those that hang.
    pub(crate) fn answer_placing(&self, placing: Placing) {
        self.shared.placing.send_replace(placing);
    }

    /// For the calls that are placed from now on.
    pub(crate) fn auto(&self, auto: Auto) {
        self.shared.log().auto = auto;
    }

    /// While it is silent no webhook is sent, but who asks gets the truth.
    pub(crate) fn silent(&self, silent: bool) {
        self.shared.log().silent = silent;
    }

    /// While it is forgetful its webhooks do not repeat the correlation value of their call.
    pub(crate) fn forgetful(&self, forgetful: bool) {
        self.shared.log().forgetful = forgetful;
    }

    /// While it is reticent it ends calls as it is asked to, but leaves it to the test to send their call-ended events.
    pub(crate) fn reticent(&self, reticent: bool) {
        self.shared.log().reticent = reticent;
    }

    /// Ringback answers at `base` now, and webhooks go there whatever their calls' orders say, as they do where a name stands
    /// before an address.
    pub(crate) fn moved_to(&self, base: &str) {
        self.shared.log().moved_to = Some(base.to_owned());
    }

    /// The `turn` figures of the calls that end from now on, one for each answer of the target.
    pub(crate) fn latencies(&self, turns: &[u64]) {
        self.shared.log().latencies = turns.to_vec();
    }

    /// Fields for the call-ended events of the calls that end from now on, instead of the usual ones; null takes one away.
    pub(crate) fn ended_with(&self, fields: Value) {
        let Value::Object(fields) = fields else {
            panic!("not an object: {fields}")
        };
        self.shared.log().laid_over = fields;
    }

    /// All calls that were ever placed, in their order.
    pub(crate) fn calls(&self) -> Vec<CallRecord> {
        let log = self.shared.log();
        log.lines.iter().map(|line| line.record.clone()).collect()
    }

    pub(crate) fn asked(&self) -> Asked {
        self.shared.log().asked
    }

    /// How many calls go on: placed and not ended.
    pub(crate) fn calls_up(&self) -> usize {
        self.shared.log().up
    }

    /// The ids of the calls that go on.
    pub(crate) fn ids_up(&self) -> BTreeSet<String> {
        let log = self.shared.log();
        let up = log.lines.iter().filter(|line| line.over.is_none());
        up.map(|line| line.record.id.clone()).collect()
    }

    /// How many calls ever went on at once.
    pub(crate) fn most_up(&self) -> usize {
        self.shared.log().most_up
    }

    /// Waits until the calls are such.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        enough: impl Fn(&[CallRecord]) -> bool,
    ) -> Vec<CallRecord> {
        let mut changes = self.shared.changes.subscribe();
        let wait = async {
            loop {
                let calls = self.calls();
                if enough(&calls) {
                    return calls;
                }
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        waited.unwrap_or_else(|_| panic!("waited {LONG:?} for {what}"))
    }

    /// Starts the call, if it has not, and gives its call-started event, the same one each time, without sending it.
    pub(crate) fn started_event(&self, call_id: &str) -> Value {
        self.shared.start(call_id)
    }

    /// Ends the call, if it has not, and gives its call-ended event, the same one each time, without sending it.
    pub(crate) fn ended_event(&self, call_id: &str) -> Value {
        self.shared.end(call_id, false).0
    }

    /// Starts the call, if it has not, and sends its call-started event, the same one with the same `webhook-id` each time.
    /// Gives the answer's status; 0 for no answer, and where the stand-in is silent.
    pub(crate) async fn send_started(&self, call_id: &str) -> u16 {
        self.shared.tell(call_id, &self.started_event(call_id)).await
    }

    /// Ends the call, if it has not, and sends its call-ended event, the same one with the same `webhook-id` each time.
    /// Gives the answer's status; 0 for no answer, and where the stand-in is silent.
    ///
    /// A call that had not started counts as started when it was placed. So this can be called before
    /// [`ProviderStandIn::send_started`], for events that come in the wrong order.
    pub(crate) async fn send_ended(&self, call_id: &str) -> u16 {
        self.shared.tell(call_id, &self.ended_event(call_id)).await
    }

    /// Sends any body as a webhook with an id of its own, even while the stand-in is silent; gives the answer's status, 0
    /// for no answer.
    pub(crate) async fn deliver(&self, url: &str, body: Vec<u8>, tamper: Tamper) -> u16 {
        let id = format!("test-{}", Uuid::now_v7());
        self.shared.post(url, &id, body, tamper).await
    }
}

impl Drop for ProviderStandIn {
    fn drop(&mut self) {
        // The tasks hold what holds them. It is poisoned where a test fails already.
        if let Ok(mut tasks) = self.shared.tasks.lock() {
            tasks.abort_all();
        }
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap();
        // Forget those that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Places a call, unless one was placed with this key; gives its id.
    fn place(self: &Arc<Self>, key: &str, headers: &HeaderMap, body: Value) -> String {
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let (id, talk) = {
            let mut log = self.log();
            let known = log
                .lines
                .iter_mut()
                .find(|line| line.record.idempotency_key == key);
            if let Some(line) = known {
                line.record.placed_times += 1;
                let id = line.record.id.clone();
                drop(log);
                self.changed();
                return id;
            }
            let id = format!("call-{}", Uuid::now_v7());
            let record = CallRecord {
                id: id.clone(),
                correlation: body["correlation"].as_str().unwrap_or_default().to_owned(),
                idempotency_key: key.to_owned(),
                authorization: header("authorization"),
                traceparent: header("traceparent"),
                body,
                placed: SystemClock.now_ms(),
                started: None,
                ended: None,
                end_requests: 0,
                placed_times: 1,
                answers: Vec::new(),
            };
            let talk = log.auto.talk(log.lines.len());
            log.lines.push(Line {
                record,
                begun: None,
                over: None,
            });
            log.up += 1;
            log.most_up = log.most_up.max(log.up);
            (id, talk)
        };
        self.changed();
        if let Some(talk) = talk {
            self.spawn(Arc::clone(self).play(id.clone(), talk));
        }
        id
    }

    /// A call that starts and ends by itself, unless its end is asked for before.
    async fn play(self: Arc<Self>, id: String, talk: Duration) {
        if self.log().line(&id).over.is_some() {
            return;
        }
        let begun = self.start(&id);
        self.tell_until_kept(&id, &begun).await;
        // They talk.
        tokio::time::sleep(talk).await;
        let (over, now) = self.end(&id, false);
        if now {
            self.tell_until_kept(&id, &over).await;
        }
    }

    /// Starts the call, if it has not; gives the event.
    fn start(&self, id: &str) -> Value {
        let event = {
            let mut log = self.log();
            let line = log.line(id);
            if let Some(begun) = &line.begun {
                return begun.clone();
            }
            let record = &mut line.record;
            let started = record.started.unwrap_or_else(|| SystemClock.now_ms());
            // Who was asked to hang up before does not start any more, whatever a test sends.
            if record.ended.is_none() {
                record.started = Some(started);
            }
            let event = json!({
                "type": "call.started", "callId": id, "correlation": record.correlation,
                "startedAt": iso(started), "listenUrl": listen_url(id),
            });
            line.begun = Some(event.clone());
            event
        };
        self.changed();
        event
    }

    /// Ends the call, if it has not; gives the event and whether it is new.
    fn end(&self, id: &str, asked: bool) -> (Value, bool) {
        let event = {
            let mut guard = self.log();
            let log = &mut *guard;
            let index = log.find(id).unwrap_or_else(|| panic!("no call has the id {id}"));
            let line = &mut log.lines[index];
            if let Some(over) = &line.over {
                return (over.clone(), false);
            }
            if !asked {
                line.record.started.get_or_insert(line.record.placed);
            }
            let ended = SystemClock.now_ms();
            line.record.ended = Some(ended);
            let mut event = ended_event(&line.record, index + 1, ended, asked, &log.latencies);
            for (name, value) in &log.laid_over {
                if value.is_null() {
                    event.remove(name);
                } else {
                    event.insert(name.clone(), value.clone());
                }
            }
            let event = Value::Object(event);
            line.over = Some(event.clone());
            log.up -= 1;
            event
        };
        self.changed();
        (event, true)
    }

    /// Sends a call's event, unless it is silent; gives the answer's status.
    async fn tell(&self, id: &str, event: &Value) -> u16 {
        let hook = if event["type"] == "call.started" {
            "callStarted"
        } else {
            "callEnded"
        };
        let mut event = event.clone();
        let url = {
            let mut log = self.log();
            if log.silent {
                return 0;
            }
            if let (true, Some(fields)) = (log.forgetful, event.as_object_mut()) {
                fields.remove("correlation");
            }
            let url = &log.line(id).record.body["webhooks"][hook];
            let url: Url = url
                .as_str()
                .and_then(|url| url.parse().ok())
                .unwrap_or_else(|| panic!("the order has no {hook}: {url}"));
            match &log.moved_to {
                Some(base) => format!("{base}{}", url.path()),
                None => url.to_string(),
            }
        };
        let body = event.to_string().into_bytes();
        let status = self
            .post(&url, &format!("{id}-{hook}"), body, Tamper::Nothing)
            .await;
        self.log().line(id).record.answers.push(status);
        self.changed();
        status
    }

    fn is_silent(&self) -> bool {
        self.log().silent
    }

    /// Sends a call's event until it is kept or refused, however long nobody answers.
    async fn tell_until_kept(&self, id: &str, event: &Value) {
        while !self.is_silent() && matches!(self.tell(id, event).await, 0 | 500..) {
            // A server that is started again needs a while.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn post(&self, url: &str, id: &str, mut body: Vec<u8>, tamper: Tamper) -> u16 {
        let secret = self.log().secret.clone();
        let secret = if tamper == Tamper::WrongSecret {
            Secret::parse(WRONG_SECRET).unwrap()
        } else {
            secret.expect("the test calls set_secret before a webhook is sent")
        };
        let timestamp = SystemClock.now_ms() / 1000
            + match tamper {
                Tamper::OldTimestamp => -TOO_FAR_SECONDS,
                Tamper::FutureTimestamp => TOO_FAR_SECONDS,
                _ => 0,
            };
        if tamper == Tamper::NotJson {
            body.insert(0, b'{');
        }
        let signature = sign(&secret, id, timestamp, &body);
        if tamper == Tamper::ChangedByte {
            change(&mut body);
        }
        let mut request = self
            .http
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(ID_HEADER, id)
            .header(TIMESTAMP_HEADER, timestamp.to_string());
        if tamper != Tamper::NoSignature {
            request = request.header(SIGNATURE_HEADER, signature);
        }
        let answer = request.body(body).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }
}

/// Another last digit, or another last byte where there is none.
fn change(body: &mut [u8]) {
    if let Some(digit) = body.iter_mut().rev().find(|byte| byte.is_ascii_digit()) {
        *digit = if *digit == b'9' { b'8' } else { *digit + 1 };
    } else if let Some(last) = body.last_mut() {
        *last ^= 1;
    }
}

fn listen_url(id: &str) -> String {
    format!("wss://provider.example/{id}")
}

/// What the order's tester is a tester of.
fn simulation(body: &Value) -> String {
    let prompts = body["tester"]["model"]["messages"].as_array().into_iter();
    let directive = prompts.flatten().find_map(|message| {
        let (_, rest) = message["content"].as_str()?.split_once("<<")?;
        rest.split_once(">>")?.0.parse::<Value>().ok()
    });
    let sim = directive.and_then(|directive| Some(directive["sim"].as_str()?.to_owned()));
    sim.unwrap_or_else(|| "voice".to_owned())
}

/// The call-ended event of the `number`th call. Where its end was asked for before it had started, nothing was said.
fn ended_event(
    record: &CallRecord,
    number: usize,
    ended: i64,
    asked: bool,
    turns: &[u64],
) -> Map<String, Value> {
    let sim = simulation(&record.body);
    let lines = [
        ("user", format!("Hello, caller {number} of {sim}.")),
        ("bot", "Answer 1 from the phone.".to_owned()),
        ("user", format!("Point 2 of caller {number}.")),
        ("bot", "Answer 2 from the phone.".to_owned()),
        ("user", format!("Thanks from caller {number}, goodbye.")),
        ("bot", "Answer 3 from the phone.".to_owned()),
    ];
    let said = if record.started.is_some() { &lines[..] } else { &[] };
    let started = record.started.unwrap_or(ended);
    // Spread over the whole call, however short it was.
    let at = |n: i64| started + (ended - started) * n / 6;
    let mut messages = Vec::new();
    let mut transcript = Vec::new();
    for (n, (role, text)) in (0..).zip(said) {
        #[expect(clippy::cast_precision_loss, reason = "a call is shorter than 2^53 ms")]
        let seconds = (at(n) - started) as f64 / 1000.0;
        messages.push(json!({
            "role": role, "message": text, "time": at(n), "endTime": at(n + 1), "secondsFromStart": seconds,
        }));
        let name = if *role == "user" { "User" } else { "AI" };
        transcript.push(format!("{name}: {text}"));
    }
    if record.started.is_some() {
        messages.extend(tools_used(&record.body, started));
    }
    let latencies = turns.iter().map(|turn| {
        let (model, voice, transcriber) = (turn / 2, turn / 4, turn / 8);
        json!({
            "turn": turn, "model": model, "voice": voice, "transcriber": transcriber,
            "endpointing": turn - model - voice - transcriber,
        })
    });
    let latencies: Vec<Value> = latencies.filter(|_| !said.is_empty()).collect();
    let reason = if asked {
        "ended-by-request"
    } else {
        "customer-ended-call"
    };
    let fields = [
        ("type", json!("call.ended")),
        ("callId", json!(record.id)),
        ("correlation", json!(record.correlation)),
        ("endedAt", json!(iso(ended))),
        ("endedReason", json!(reason)),
        ("transcript", json!(transcript.join("\n"))),
        ("messages", json!(messages)),
        ("turnLatencies", json!(latencies)),
        (
            "recordingUrl",
            json!(format!("https://provider.example/{}.wav", record.id)),
        ),
        ("cost", json!(0.042)),
    ];
    let started = record.started.map(|started| ("startedAt", json!(iso(started))));
    fields
        .into_iter()
        .chain(started)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The functions of the order's target, each used once, if the order says what becomes of those without a mock.
fn tools_used(order: &Value, time: i64) -> Vec<Value> {
    let target = &order["target"];
    let assistant = match target["type"].as_str() {
        Some("squad") => &target["squad"]["members"][0]["assistant"],
        _ => &target["assistant"],
    };
    let (Some(mode), Some(tools)) = (
        order["unmockedTools"].as_str(),
        assistant["model"]["tools"].as_array(),
    ) else {
        return Vec::new();
    };
    let mut used = Vec::new();
    for name in tools.iter().filter_map(|tool| tool["function"]["name"].as_str()) {
        let mocks = order["toolMocks"].as_array().into_iter().flatten();
        let mock = mocks
            .filter(|mock| mock["toolName"] == name && mock["enabled"] != false)
            .find_map(|mock| mock["result"].as_str());
        let result = match (mock, mode) {
            (Some(result), _) => result.to_owned(),
            (None, "error") => format!("Error: {name} was not run"),
            (None, _) => format!("{name} ran for real"),
        };
        let call = json!({"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}});
        used.push(json!({"role": "tool_calls", "toolCalls": [call], "time": time, "endTime": time}));
        used.push(json!({
            "role": "tool_call_result", "toolCallId": name, "name": name, "result": result, "time": time, "endTime": time,
        }));
    }
    used
}

/// A call as who asks for it sees it.
fn shown(line: &Line) -> Value {
    let record = &line.record;
    let status = match (record.started, record.ended) {
        (_, Some(_)) => "ended",
        (Some(_), None) => "in-progress",
        (None, None) => "queued",
    };
    // Of a call that has ended its event says all, with what a test has laid over it.
    let started = record.started.filter(|_| line.over.is_none());
    let mut call = json!({"startedAt": started.map(iso), "endedAt": null, "endedReason": null});
    if let (Some(call), Some(Value::Object(over))) = (call.as_object_mut(), &line.over) {
        call.extend(over.clone());
        call.remove("type");
    }
    call["id"] = json!(record.id);
    call["correlation"] = json!(record.correlation);
    call["status"] = json!(status);
    call
}

fn problem(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({ "message": message }))).into_response()
}

/// A connection that is closed without an answer: the body fails before the head is on its way.
fn hung_up() -> Response {
    let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other(
        "the stand-in was told to hang up",
    ))]);
    Body::from_stream(broken).into_response()
}

async fn place(State(shared): State<Arc<Shared>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    shared.log().asked.placings += 1;
    let Some(key) = header("idempotency-key") else {
        return problem(400, "there is no Idempotency-Key");
    };
    let mut placings = shared.placing.subscribe();
    let placing = *placings
        .wait_for(|placing| *placing != Placing::Hang)
        .await
        .unwrap();
    if let Placing::Refuse(status) = placing {
        shared.log().asked.refused += 1;
        return problem(status, "the stand-in was told to refuse");
    }
    let id = shared.place(&key, &headers, body);
    if placing == Placing::AcceptLate {
        let told = placings.wait_for(|placing| *placing != Placing::AcceptLate).await;
        drop(told.unwrap());
    }
    if placing == Placing::AcceptWithoutAnswer {
        let mut log = shared.log();
        log.unanswered += 1;
        return if log.unanswered % 2 == 1 {
            problem(500, "the stand-in was told not to say what it did")
        } else {
            hung_up()
        };
    }
    let answer = json!({"id": id, "listenUrl": listen_url(&id)});
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn look(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let mut log = shared.log();
    log.asked.by_id += 1;
    match log.find(&id) {
        Some(index) => Json(shown(&log.lines[index])).into_response(),
        None => problem(404, "there is no such call"),
    }
}

async fn find(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let url = Url::parse(&format!("http://provider/?{}", query.unwrap_or_default())).unwrap();
    let mut pairs = url.query_pairs();
    let Some((_, correlation)) = pairs.find(|(name, _)| name == "correlation") else {
        return problem(400, "there is no correlation");
    };
    let mut log = shared.log();
    log.asked.by_correlation += 1;
    let lines = log.lines.iter();
    let found: Vec<Value> = lines
        .filter(|line| line.record.correlation == correlation)
        .map(shown)
        .collect();
    Json(json!({ "results": found })).into_response()
}

async fn end(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    {
        let mut log = shared.log();
        log.asked.ends += 1;
        match log.find(&id) {
            Some(index) => log.lines[index].record.end_requests += 1,
            None => return problem(404, "there is no such call"),
        }
    }
    shared.changed();
    let (over, now) = shared.end(&id, true);
    if !now {
        return problem(409, "the call is over already");
    }
    if !shared.log().reticent {
        let teller = Arc::clone(&shared);
        shared.spawn(async move { teller.tell_until_kept(&id, &over).await });
    }
    Json(json!({})).into_response()
}
