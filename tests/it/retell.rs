//! A stand-in for Retell: calls by phone from an agent that plays the tester. It checks what it is asked as Retell's published types
//! say, and more strictly where they do not say: what it does not know it refuses.
//!
//! Nobody talks. What was said in a call follows from the order alone: a call whose dynamic variables have a directive (see
//! [`crate::stand_in`]) names a caller of its `sim`. The agent is the tester, the user is the target.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use jsonschema::Validator;
use ringback_shared::clock::{Clock, SystemClock};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

use crate::carrier::{
    Auth, Carrier, Decision, Delivery, Placing, Sent, Sign, Speaker, Webhook, check_key, complaints,
    dialogue, hex, hmac_sha256, hung_up, lay_over, read_json, seconds, spoken, validator,
};

/// The one agent and the one number of the account.
const AGENT: &str = "agent_0198f0000000700080000000000";
const NUMBER: &str = "+15550142";
const AGENT_VERSION: u64 = 3;
/// How often a webhook is sent again that was not kept.
const RETRIES: u64 = 3;
/// How long the answer of a webhook is waited for, unless the order says otherwise.
const WEBHOOK_TIMEOUT_MS: u64 = 10_000;
/// How long a key stands for the same call.
const SAME_KEY_MS: i64 = 3_600_000;
/// What a call costs, in cents.
const COST: f64 = 4.2;
/// How long the tester takes for its turns.
const TURNS: [u32; 3] = [300, 310, 320];
/// The events that are sent where the order does not say which.
const EVENTS: [&str; 3] = ["call_started", "call_ended", "call_analyzed"];

/// A placed call. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RetellRecord {
    pub(crate) id: String,
    /// What the metadata says.
    pub(crate) correlation: String,
    /// As the body says.
    pub(crate) idempotency_key: Option<String>,
    pub(crate) body: Value,
    pub(crate) placed: i64,
    pub(crate) started: Option<i64>,
    pub(crate) ended: Option<i64>,
    /// How often its end was asked for.
    pub(crate) end_requests: usize,
    /// How often it was placed: more than once where the same order came again with its key.
    pub(crate) placed_times: usize,
    /// Its webhooks, in the order of their answers.
    pub(crate) sent: Vec<Sent>,
}

/// How often it was asked for what, whatever the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RetellAsked {
    /// To place a call.
    pub(crate) placings: usize,
    /// To place a call, and it refused or was busy.
    pub(crate) refused: usize,
    /// For a call by its id.
    pub(crate) by_id: usize,
    /// For a list of calls.
    pub(crate) lists: usize,
    /// To stop a call.
    pub(crate) stops: usize,
}

#[derive(Debug)]
struct Line {
    record: RetellRecord,
    /// What there is to say of it once it has ended, without its analysis.
    over: Option<Map<String, Value>>,
    analysis: Option<Value>,
}

#[derive(Debug)]
struct Log {
    lines: Vec<Line>,
    asked: RetellAsked,
    auth: Auth,
    talk: Option<Duration>,
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

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    carrier: Carrier,
}

#[derive(Debug)]
pub(crate) struct RetellStandIn {
    base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl RetellStandIn {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            log: Mutex::new(Log {
                lines: Vec::new(),
                asked: RetellAsked::default(),
                auth: Auth::AsTold,
                talk: Some(Duration::from_millis(50)),
                laid_over: Map::new(),
            }),
            carrier: Carrier::new(format!("key_{}", Uuid::now_v7().simple())),
        });
        let router = Router::new()
            .fallback(answer)
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
        self.base.clone()
    }

    /// The API key that it wants to see, and signs with.
    pub(crate) fn key(&self) -> String {
        self.shared.carrier.key().to_owned()
    }

    /// The id of the only agent.
    pub(crate) fn agent_id(&self) -> String {
        AGENT.to_owned()
    }

    /// The only number that calls can be placed from.
    #[expect(clippy::wrong_self_convention, reason = "it is the order's from_number")]
    pub(crate) fn from_number(&self) -> String {
        NUMBER.to_owned()
    }

    /// How its webhooks prove where they come from, from now on.
    pub(crate) fn auth(&self, auth: Auth) {
        self.shared.log().auth = auth;
    }

    /// For everything that happens from now on.
    pub(crate) fn delivery(&self, delivery: Delivery) {
        self.shared.carrier.deliver(delivery);
    }

    /// Sends what waits for that because of [`Delivery::Late`]. Returns when all of it was kept or given up.
    pub(crate) async fn release(&self) {
        self.shared.carrier.release().await;
    }

    /// From now on, and for those that hang.
    pub(crate) fn placing(&self, placing: Placing) {
        self.shared.carrier.placing(placing);
    }

    /// Ringback answers at `base` now, and webhooks go there whatever their orders say.
    pub(crate) fn moved_to(&self, base: &str) {
        self.shared.carrier.moved_to(base);
    }

    /// Calls that are placed from now on start at once and end after this time.
    pub(crate) fn auto(&self, talk_ms: u64) {
        self.shared.log().talk = Some(Duration::from_millis(talk_ms));
    }

    /// Calls that are placed from now on start and end when the test says so, unless they are delivered [`Delivery::Early`].
    pub(crate) fn manual(&self) {
        self.shared.log().talk = None;
    }

    /// Fields for the ends from now on, instead of the usual ones of a call. Null takes one away.
    pub(crate) fn ended_with(&self, fields: Value) {
        let Value::Object(fields) = fields else {
            panic!("not an object: {fields}")
        };
        self.shared.log().laid_over = fields;
    }

    /// Starts a call, if it has not, and sends what is to be sent then.
    pub(crate) async fn start_call(&self, id: &str) {
        let webhooks = self.shared.start(id);
        self.shared.carrier.begun(id, webhooks).await;
    }

    /// Ends a call, if it has not, and sends what is to be sent then. Who has not started was never connected.
    pub(crate) async fn end_call(&self, id: &str, reason: &str) {
        let (webhooks, _) = self.shared.end(id, reason);
        self.shared.carrier.over(id, webhooks).await;
    }

    /// All calls that were ever placed, in their order.
    pub(crate) fn calls(&self) -> Vec<RetellRecord> {
        let log = self.shared.log();
        let records = log.lines.iter().map(|line| &line.record);
        records
            .map(|record| RetellRecord {
                sent: self.shared.carrier.sent(&record.id),
                ..record.clone()
            })
            .collect()
    }

    pub(crate) fn asked(&self) -> RetellAsked {
        self.shared.log().asked
    }

    /// Whatever it was asked that Retell would not have put up with.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.shared.carrier.faults()
    }

    /// Waits until it is so.
    pub(crate) async fn wait_for(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        self.shared.carrier.wait_for(what, || enough(self)).await;
    }
}

impl Drop for RetellStandIn {
    fn drop(&mut self) {
        self.shared.carrier.stop();
    }
}

/// The signature of a webhook.
pub(crate) fn signature(key: &str, body: &[u8], now_ms: i64) -> String {
    let signed = [body, now_ms.to_string().as_bytes()].concat();
    format!("v={now_ms},d={}", hex(&hmac_sha256(key.as_bytes(), &signed)))
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Places a call, unless the order came before with its key; gives its id, whether it is new and how long it takes by itself.
    fn place(&self, body: Value) -> Result<(String, bool, Option<Duration>), Refusal> {
        let key = body["idempotency_key"].as_str().map(str::to_owned);
        let now = SystemClock.now_ms();
        let placed = {
            let mut log = self.log();
            // The last one: an older call may have had the key more than an hour ago.
            let known = log.lines.iter_mut().rev().find(|line| {
                let record = &line.record;
                key.is_some() && record.idempotency_key == key && record.placed > now - SAME_KEY_MS
            });
            if let Some(line) = known {
                if line.record.body != body {
                    return Err("idempotency_key: it came with another request".to_owned().into());
                }
                line.record.placed_times += 1;
                (line.record.id.clone(), false, None)
            } else {
                let id = format!("call_{}", Uuid::now_v7().simple());
                let correlation = body["metadata"]["ringback_correlation"].as_str();
                let record = RetellRecord {
                    id: id.clone(),
                    correlation: correlation.unwrap_or_default().to_owned(),
                    idempotency_key: key,
                    body,
                    placed: now,
                    started: None,
                    ended: None,
                    end_requests: 0,
                    placed_times: 1,
                    sent: Vec::new(),
                };
                log.lines.push(Line {
                    record,
                    over: None,
                    analysis: None,
                });
                (id, true, log.talk)
            }
        };
        self.carrier.changed();
        Ok(placed)
    }

    /// A call that starts and ends by itself, unless its end is asked for before.
    async fn play(self: Arc<Self>, id: String, talk: Duration) {
        let webhooks = self.start(&id);
        self.carrier.begun(&id, webhooks).await;
        // They talk.
        tokio::time::sleep(talk).await;
        // The tester hangs up.
        let (webhooks, now) = self.end(&id, "agent_hangup");
        if now {
            self.carrier.over(&id, webhooks).await;
        }
    }

    /// Starts a call, if it has not; gives what is to be sent.
    fn start(&self, id: &str) -> Vec<Webhook> {
        let webhook = {
            let mut log = self.log();
            let record = &mut log.line(id).record;
            if record.started.is_some() || record.ended.is_some() {
                return Vec::new();
            }
            record.started = Some(SystemClock.now_ms());
            let index = log.find(id).unwrap();
            self.event(&log, index, "call_started", &shown(&log.lines[index]))
        };
        self.carrier.changed();
        webhook.into_iter().collect()
    }

    /// Ends a call, if it has not; gives what is to be sent and whether it is new.
    fn end(&self, id: &str, reason: &str) -> (Vec<Webhook>, bool) {
        let webhooks = {
            let mut log = self.log();
            let record = &mut log.line(id).record;
            if record.ended.is_some() {
                return (Vec::new(), false);
            }
            record.ended = Some(SystemClock.now_ms());
            let index = log.find(id).unwrap();
            let mut over = outcome(&log.lines[index].record, index + 1, reason);
            let spoken = log.lines[index].record.started.is_some();
            let mut analysis = Map::new();
            let usual = json!({
                "call_summary": "They talked.", "in_voicemail": false, "user_sentiment": "Neutral",
                "call_successful": spoken, "custom_analysis_data": {},
            });
            analysis.insert("call_analysis".to_owned(), usual);
            // The overlay may be of the analysis too.
            let (of_analysis, of_call): (Map<String, Value>, Map<String, Value>) = log
                .laid_over
                .clone()
                .into_iter()
                .partition(|(name, _)| name == "call_analysis");
            lay_over(&mut over, &of_call);
            lay_over(&mut analysis, &of_analysis);
            log.lines[index].over = Some(over);
            let ended = self.event(&log, index, "call_ended", &shown(&log.lines[index]));
            log.lines[index].analysis = analysis.remove("call_analysis");
            let analyzed = self.event(&log, index, "call_analyzed", &shown(&log.lines[index]));
            ended.into_iter().chain(analyzed).collect()
        };
        self.carrier.changed();
        (webhooks, true)
    }

    /// An event of a call, if the order says where to.
    fn event(&self, log: &Log, index: usize, event: &str, call: &Value) -> Option<Webhook> {
        let record = &log.lines[index].record;
        let agent = &record.body["agent_override"]["agent"];
        let wanted = match agent["webhook_events"].as_array() {
            Some(wanted) => wanted.iter().any(|wanted| wanted == event),
            None => EVENTS.contains(&event),
        };
        let url = agent["webhook_url"].as_str().filter(|_| wanted)?;
        let auth = log.auth;
        let key = self.carrier.key().to_owned();
        let sign: Sign = Arc::new(move |_, body| {
            let key = match auth {
                Auth::Missing => return Vec::new(),
                Auth::AsTold => key.clone(),
                Auth::Wrong => format!("{key}!"),
            };
            let signature = signature(&key, body, SystemClock.now_ms());
            vec![("x-retell-signature".to_owned(), signature)]
        });
        let timeout = agent["webhook_timeout_ms"].as_u64();
        Some(Webhook {
            order: record.id.clone(),
            event: event.to_owned(),
            url: url.to_owned(),
            body: json!({"event": event, "call": call}),
            retries: RETRIES,
            excluded: Vec::new(),
            within: Duration::from_millis(timeout.unwrap_or(WEBHOOK_TIMEOUT_MS)),
            sign,
        })
    }
}

/// What there is to say of the `number`th call at its end. Where it has not started, nothing was said.
fn outcome(record: &RetellRecord, number: usize, reason: &str) -> Map<String, Value> {
    let variables = record.body["retell_llm_dynamic_variables"].as_object();
    let prompts = variables
        .into_iter()
        .flatten()
        .filter_map(|(_, value)| value.as_str());
    let ended = record.ended.unwrap();
    let mut fields = json!({"disconnection_reason": reason, "end_timestamp": ended});
    if let Some(started) = record.started {
        let lines = dialogue(prompts, number);
        let at = |n: i64| seconds(spoken(n).0);
        let mut transcript = String::new();
        let mut objects = Vec::new();
        for (n, (speaker, text)) in (0..).zip(&lines) {
            let (role, name) = match speaker {
                Speaker::Tester => ("agent", "Agent"),
                Speaker::Target => ("user", "User"),
            };
            let words: Vec<&str> = text.split(' ').collect();
            let length = (seconds(spoken(n).1) - at(n)) / f64::from(u32::try_from(words.len()).unwrap());
            let words = (0_u32..).zip(words).map(|(m, word)| {
                let start = at(n) + length * f64::from(m);
                json!({"word": word, "start": start, "end": start + length})
            });
            objects.push(json!({"role": role, "content": text, "words": words.collect::<Vec<_>>()}));
            transcript += &format!("{name}: {text}\n");
        }
        let mut woven = objects.clone();
        if reason == "agent_hangup" {
            woven.extend([
                json!({
                    "role": "tool_call_invocation", "tool_call_id": "tool_call_end", "name": "end_call",
                    "arguments": "{\"execution_message\":\"\"}",
                }),
                json!({
                    "role": "tool_call_result", "tool_call_id": "tool_call_end", "content": "Call ended.",
                    "successful": true,
                }),
            ]);
        }
        let length = seconds(ended - started);
        let recording = format!("https://storage.retell.example/{}", record.id);
        let more = json!({
            "duration_ms": ended - started, "transcript": transcript, "transcript_object": objects,
            "transcript_with_tool_calls": woven, "recording_url": format!("{recording}/recording.wav"),
            "recording_multi_channel_url": format!("{recording}/recording_multichannel.wav"),
            "public_log_url": format!("{recording}/public.log"),
            "latency": {
                "e2e": figures(TURNS), "llm": figures(TURNS.map(|turn| turn / 2)),
                "tts": figures(TURNS.map(|turn| turn / 4)),
            },
            "call_cost": {
                "combined_cost": COST, "total_duration_seconds": length, "total_duration_unit_price": 0.07,
                "product_costs": [
                    {"product": "retell_voice_engine", "unit_price": 0.05, "cost": 3.0},
                    {"product": "gpt_4_1", "unit_price": 0.02, "cost": 1.2},
                ],
            },
            "llm_token_usage": {"average": 60, "num_requests": 3, "values": [50, 60, 70]},
            "collected_dynamic_variables": {}, "telephony_identifier": {"twilio_call_sid": "CA5d0c"},
        });
        fields
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
    }
    let Value::Object(fields) = fields else {
        unreachable!()
    };
    fields
}

fn figures(values: [u32; 3]) -> Value {
    json!({
        "p50": values[1], "p90": values[2], "p95": values[2], "p99": values[2], "min": values[0],
        "max": values[2], "num": 3, "values": values,
    })
}

/// A call as who asks for it sees it.
fn shown(line: &Line) -> Value {
    let record = &line.record;
    let body = &record.body;
    let reason = line
        .over
        .as_ref()
        .and_then(|over| over.get("disconnection_reason"));
    let broken = reason
        .and_then(Value::as_str)
        .is_some_and(|reason| reason.starts_with("error"));
    let status = match (record.started, record.ended) {
        (Some(_), Some(_)) if broken => "error",
        (Some(_), Some(_)) => "ended",
        (None, Some(_)) => "not_connected",
        (Some(_), None) => "ongoing",
        (None, None) => "registered",
    };
    let mut call = json!({
        "call_type": "phone_call", "call_id": record.id, "agent_id": AGENT, "agent_version": AGENT_VERSION,
        "agent_name": "Tester", "call_status": status, "direction": "outbound", "data_storage_setting": "everything",
        "opt_in_signed_url": false,
    });
    let call_fields = call.as_object_mut().unwrap();
    for field in [
        "from_number",
        "to_number",
        "metadata",
        "retell_llm_dynamic_variables",
        "custom_sip_headers",
    ] {
        if let Some(value) = body.get(field) {
            call_fields.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(started) = record.started {
        call_fields.insert("start_timestamp".to_owned(), json!(started));
    }
    if let Some(over) = &line.over {
        // What a test has laid over, it may have taken away.
        call_fields.extend(over.clone());
    }
    if let Some(analysis) = &line.analysis {
        call_fields.insert("call_analysis".to_owned(), analysis.clone());
    }
    call
}

/// A call as a list has it.
fn listed(line: &Line) -> Value {
    let mut call = shown(line);
    for field in ["transcript", "transcript_object", "transcript_with_tool_calls"] {
        call.as_object_mut().unwrap().remove(field);
    }
    call
}

/// Why it does not do what it is asked.
enum Refusal {
    /// The request is wrong, and whoever made it should have known.
    Fault(u16, Vec<String>),
    /// The request is right, but this is the answer.
    Answer(u16, String),
}

impl From<String> for Refusal {
    fn from(fault: String) -> Self {
        Self::Fault(400, vec![fault])
    }
}

/// An error as Retell says it.
fn problem(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({"status": "error", "message": message}))).into_response()
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let answered = match check_key(&headers, shared.carrier.key()) {
        Err(fault) => Err(Refusal::Fault(401, vec![fault.to_owned()])),
        Ok(()) if uri.query().is_some() => Err("there should be no query".to_owned().into()),
        Ok(()) => match (method.as_str(), &segments[..]) {
            ("POST", ["v2", "create-phone-call"]) => shared.place_checked(&headers, &body).await,
            ("GET", ["v2", "get-call", id]) => shared.look(&body, id),
            ("POST", ["v3", "list-calls"]) => shared.list(&headers, &body),
            ("POST", ["v2", "stop-call", id]) => shared.stop(&body, id),
            _ => Err(Refusal::Fault(404, vec![format!("Cannot {method} {path}")])),
        },
    };
    shared.carrier.changed();
    match answered {
        Ok(answer) => answer,
        Err(Refusal::Answer(status, message)) => problem(status, &message),
        Err(Refusal::Fault(status, messages)) => {
            for message in &messages {
                shared.carrier.fault(format!("{method} {path}: {message}"));
            }
            problem(status, &messages.join("; "))
        }
    }
}

fn unknown(id: &str) -> Refusal {
    Refusal::Answer(404, format!("Call {id} not found"))
}

fn check_bare(body: &[u8]) -> Result<(), Refusal> {
    if body.is_empty() {
        Ok(())
    } else {
        Err("there should be no body".to_owned().into())
    }
}

impl Shared {
    async fn place_checked(self: &Arc<Self>, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
        self.log().asked.placings += 1;
        self.carrier.changed();
        let body = read_json(headers, body)?;
        let mut faults = complaints(&SCHEMAS["call"], &body);
        if faults.is_empty() {
            if body["from_number"] != NUMBER {
                faults.push(format!(
                    "from_number: {} is not a number of this account",
                    body["from_number"]
                ));
            }
            match body.get("override_agent_id") {
                Some(id) if id == AGENT => {}
                Some(id) => faults.push(format!("override_agent_id: there is no agent {id}")),
                None => faults.push("the number has no agent, so override_agent_id is needed".to_owned()),
            }
            let version = &body["override_agent_version"];
            let known = version.is_null()
                || *version == AGENT_VERSION
                || version == "latest"
                || version == "latest_published";
            if !known {
                faults.push(format!("override_agent_version: there is no version {version}"));
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::Fault(400, faults));
        }
        let decision = self.carrier.decide().await;
        let refused = match decision {
            Decision::Accept | Decision::Unanswered { .. } => None,
            Decision::Refuse(status) => Some(problem(status, "the stand-in was told to refuse")),
            Decision::Busy(seconds) => {
                let mut answer = problem(429, "Account rate limited, please throttle your requests.");
                answer
                    .headers_mut()
                    .insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
                Some(answer)
            }
        };
        if let Some(answer) = refused {
            self.log().asked.refused += 1;
            return Ok(answer);
        }
        let (id, is_new, talk) = self.place(body)?;
        let registered = shown(self.log().line(&id));
        if is_new && self.carrier.delivery() == Delivery::Early {
            Arc::clone(self).play(id.clone(), talk.unwrap_or_default()).await;
        } else if let Some(talk) = talk {
            self.carrier.spawn(Arc::clone(self).play(id.clone(), talk));
        }
        self.carrier.may_answer().await;
        if let Decision::Unanswered { hang_up } = decision {
            return Ok(if hang_up {
                hung_up()
            } else {
                problem(500, "the stand-in was told not to say what it did")
            });
        }
        Ok((StatusCode::CREATED, Json(registered)).into_response())
    }

    fn look(&self, body: &[u8], id: &str) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.by_id += 1;
        check_bare(body)?;
        let index = log.find(id).ok_or_else(|| unknown(id))?;
        Ok(Json(shown(&log.lines[index])).into_response())
    }

    fn stop(self: &Arc<Self>, body: &[u8], id: &str) -> Result<Response, Refusal> {
        {
            let mut log = self.log();
            log.asked.stops += 1;
            check_bare(body)?;
            let index = log.find(id).ok_or_else(|| unknown(id))?;
            log.lines[index].record.end_requests += 1;
        }
        let (webhooks, now) = self.end(id, "manual_stopped");
        if !now {
            return Err(Refusal::Answer(404, format!("Call {id} is not ongoing")));
        }
        let (shared, id) = (Arc::clone(self), id.to_owned());
        self.carrier
            .spawn(async move { shared.carrier.over(&id, webhooks).await });
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    fn list(&self, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.lists += 1;
        let body = read_json(headers, body)?;
        let mut faults = complaints(&SCHEMAS["list"], &body);
        let criteria = body["filter_criteria"].as_object().into_iter().flatten();
        let filters: Vec<Filter<'_>> = criteria
            .flat_map(|(name, filter)| Filter::read(name, filter, &mut faults))
            .collect();
        if !faults.is_empty() {
            return Err(Refusal::Fault(400, faults));
        }
        let mut calls: Vec<Value> = log
            .lines
            .iter()
            .map(listed)
            .filter(|call| filters.iter().all(|filter| filter.fits(call)))
            .collect();
        if body["sort_order"] != "ascending" {
            calls.reverse();
        }
        let total = calls.len();
        let number = |name: &str| body[name].as_u64().map(|number| usize::try_from(number).unwrap());
        let after = match body["pagination_key"].as_str() {
            None => 0,
            Some(key) => match calls.iter().position(|call| call["call_id"] == key) {
                Some(index) => index + 1,
                None => return Err("pagination_key: it is none of ours".to_owned().into()),
            },
        };
        let from = after + number("skip").unwrap_or(0);
        let page: Vec<Value> = calls
            .into_iter()
            .skip(from)
            .take(number("limit").unwrap_or(50))
            .collect();
        let has_more = from + page.len() < total;
        let mut answer = json!({"has_more": has_more});
        if let (true, Some(last)) = (has_more, page.last()) {
            answer["pagination_key"] = last["call_id"].clone();
        }
        if body["include_total"] == true {
            answer["total"] = json!(total);
        }
        answer["items"] = json!(page);
        Ok(Json(answer).into_response())
    }
}

/// One condition of a list.
#[derive(Debug)]
struct Filter<'a> {
    name: &'a str,
    key: Option<&'a str>,
    kind: &'a str,
    op: &'a str,
    value: &'a Value,
}

impl<'a> Filter<'a> {
    /// The conditions of one of the criteria. What is wrong with them becomes a fault.
    fn read(name: &'a str, given: &'a Value, faults: &mut Vec<String>) -> Vec<Self> {
        let all = ["string", "number", "boolean", "range", "enum", "present"];
        let (kinds, keyed): (&[&str], bool) = match name {
            "metadata" | "dynamic_variables" | "custom_attributes" | "custom_analysis_data" => (&all, true),
            "call_id" => (&["string", "enum"], false),
            "from_number" | "to_number" | "batch_call_id" => (&["string"], false),
            "start_timestamp" | "end_timestamp" | "duration_ms" | "combined_cost" | "e2e_latency_p50" => {
                (&["number", "range"], false)
            }
            "call_status" | "call_type" | "direction" | "disconnection_reason" | "user_sentiment" => {
                (&["enum"], false)
            }
            "call_successful" | "in_voicemail" => (&["boolean"], false),
            _ => {
                faults.push(format!("filter_criteria.{name}: the stand-in does not know it"));
                return Vec::new();
            }
        };
        let filters = match given {
            Value::Array(filters) if keyed => &filters[..],
            Value::Object(_) if !keyed => std::slice::from_ref(given),
            _ => {
                faults.push(format!("filter_criteria.{name}: it has another shape"));
                return Vec::new();
            }
        };
        let read = filters
            .iter()
            .filter_map(|filter| match Self::one(name, filter, kinds, keyed) {
                Ok(filter) => Some(filter),
                Err(fault) => {
                    faults.push(format!("filter_criteria.{name}: {fault}"));
                    None
                }
            });
        read.collect()
    }

    fn one(name: &'a str, filter: &'a Value, kinds: &[&str], keyed: bool) -> Result<Self, String> {
        let text = |field: &str| {
            filter[field]
                .as_str()
                .ok_or(format!("it has no {field}: {filter}"))
        };
        let (kind, op, value) = (text("type")?, text("op")?, &filter["value"]);
        let key = if keyed { Some(text("key")?) } else { None };
        let known = ["type", "op", "value", "key"];
        let fields = filter.as_object().into_iter().flatten();
        for (field, _) in fields {
            if !known.contains(&field.as_str()) || (field == "key" && !keyed) {
                return Err(format!("it should not have {field}"));
            }
        }
        let numbers = |value: &Value| {
            value
                .as_array()
                .is_some_and(|all| all.iter().all(Value::is_number))
        };
        let (ops, fits): (&[&str], bool) = match kind {
            "string" => (&["eq", "ne", "sw", "ew", "co"], value.is_string()),
            "number" => (&["eq", "ne", "gt", "ge", "lt", "le"], value.is_number()),
            "boolean" => (&["eq"], value.is_boolean()),
            "range" => (&["bt"], numbers(value) && value.as_array().unwrap().len() == 2),
            "enum" => {
                let strings = value
                    .as_array()
                    .is_some_and(|all| all.iter().all(Value::is_string));
                (&["in"], strings)
            }
            "present" => (&["pr", "np"], value.is_null()),
            other => return Err(format!("there is no type {other}")),
        };
        if !kinds.contains(&kind) || !ops.contains(&op) || !fits {
            return Err(format!("type, op and value do not fit: {filter}"));
        }
        let values: &[&str] = match name {
            "call_status" => &["not_connected", "ongoing", "ended", "error"],
            "call_type" => &["web_call", "phone_call"],
            "direction" => &["inbound", "outbound"],
            _ => &[],
        };
        let mut given = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        match given.find(|value| !values.is_empty() && !values.contains(value)) {
            Some(value) => Err(format!("it cannot be {value}")),
            None => Ok(Self {
                name,
                key,
                kind,
                op,
                value,
            }),
        }
    }

    fn fits(&self, call: &Value) -> bool {
        let analysis = &call["call_analysis"];
        let is = match (self.name, self.key) {
            ("metadata", Some(key)) => &call["metadata"][key],
            ("dynamic_variables", Some(key)) => &call["retell_llm_dynamic_variables"][key],
            ("custom_analysis_data", Some(key)) => &analysis["custom_analysis_data"][key],
            ("combined_cost", _) => &call["call_cost"]["combined_cost"],
            ("e2e_latency_p50", _) => &call["latency"]["e2e"]["p50"],
            (name @ ("call_successful" | "in_voicemail" | "user_sentiment"), _) => &analysis[name],
            (name, None) => &call[name],
            _ => &Value::Null,
        };
        let text = is.as_str().unwrap_or_default();
        let wanted = self.value.as_str().unwrap_or_default();
        let number = is.as_f64();
        let compared = number.zip(self.value.as_f64());
        match (self.kind, self.op) {
            ("present", op) => is.is_null() == (op == "np"),
            (_, "ne") => is != self.value,
            _ if is.is_null() => false,
            ("string" | "boolean", "eq") => is == self.value,
            ("string", "sw") => text.starts_with(wanted),
            ("string", "ew") => text.ends_with(wanted),
            ("string", _) => text.contains(wanted),
            ("number", op) => compared.is_some_and(|(is, wanted)| match op {
                "eq" => is.total_cmp(&wanted).is_eq(),
                "gt" => is > wanted,
                "ge" => is >= wanted,
                "lt" => is < wanted,
                _ => is <= wanted,
            }),
            ("range", _) => {
                let bounds = (self.value[0].as_f64(), self.value[1].as_f64());
                number.is_some_and(|is| bounds.0.unwrap() <= is && is <= bounds.1.unwrap())
            }
            _ => self.value.as_array().unwrap().contains(is),
        }
    }
}

static SCHEMAS: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| {
    let definitions = json!({"call": call_schema(), "list": list_schema()});
    let names = ["call", "list"];
    names
        .into_iter()
        .map(|name| (name, validator(&definitions, name)))
        .collect()
});

/// What a list may be asked for, from Retell's types (`retell-sdk` 6.2.13). The conditions are looked at apart.
fn list_schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "filter_criteria": {"type": "object"}, "include_total": {"type": "boolean"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 1000}, "pagination_key": {"type": "string"},
            "skip": {"type": "integer", "minimum": 0}, "sort_order": {"enum": ["ascending", "descending"]},
        },
    })
}

/// What a call may be ordered with, from Retell's types (`retell-sdk` 6.2.13).
fn call_schema() -> Value {
    let number = json!({"type": "string", "pattern": "^\\+[1-9]\\d{1,14}$"});
    let whole = |from: u64, to: u64| json!({"type": "integer", "minimum": from, "maximum": to});
    let mut agent = Map::new();
    for name in [
        "agent_name",
        "allow_dtmf_interruption",
        "allow_user_dtmf",
        "ambient_sound",
        "ambient_sound_volume",
        "backchannel_frequency",
        "backchannel_words",
        "boosted_keywords",
        "call_screening_option",
        "contact_memory_config",
        "custom_stt_config",
        "data_storage_setting",
        "denoising_enhancement_level",
        "denoising_mode",
        "enable_backchannel",
        "enable_dnc_detection",
        "enable_dynamic_responsiveness",
        "enable_dynamic_voice_speed",
        "enable_expressive_mode",
        "expressive_emotion_tags",
        "expressive_mode_prompt",
        "fallback_voice_ids",
        "guardrail_config",
        "handbook_config",
        "interruption_sensitivity",
        "ivr_option",
        "language",
        "opt_in_signed_url",
        "pii_config",
        "post_call_analysis_data",
        "post_call_analysis_model",
        "post_session_tools",
        "pre_session_tools",
        "pronunciation_dictionary",
        "reminder_max_count",
        "reminder_trigger_ms",
        "response_engine",
        "responsiveness",
        "signed_url_expiration_ms",
        "stt_mode",
        "timezone",
        "user_dtmf_options",
        "version_description",
        "version_title",
        "vocab_specialization",
        "voice_id",
        "voice_model",
        "voice_speed",
        "voice_temperature",
        "voicemail_option",
        "volume",
    ] {
        agent.insert(name.to_owned(), json!(true));
    }
    let events = [
        "call_started",
        "call_ended",
        "call_analyzed",
        "transcript_updated",
        "transfer_started",
        "transfer_bridged",
        "transfer_cancelled",
        "transfer_ended",
    ];
    for (name, schema) in [
        ("begin_message_delay_ms", whole(0, 5000)),
        ("data_storage_retention_days", whole(1, 730)),
        ("end_call_after_silence_ms", whole(10_000, u64::from(u32::MAX))),
        ("max_call_duration_ms", whole(60_000, 7_200_000)),
        ("ring_duration_ms", whole(5000, 300_000)),
        ("webhook_timeout_ms", whole(1, 300_000)),
        (
            "webhook_url",
            json!({"type": ["string", "null"], "format": "uri", "pattern": "^https?://"}),
        ),
        (
            "webhook_events",
            json!({"type": ["array", "null"], "items": {"enum": events}, "uniqueItems": true}),
        ),
    ] {
        agent.insert(name.to_owned(), schema);
    }
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object", "additionalProperties": false, "required": ["from_number", "to_number"],
        "properties": {
            "from_number": number, "to_number": number, "override_agent_id": {"type": "string", "minLength": 1},
            "override_agent_version": {"type": ["string", "integer"]},
            "idempotency_key": {"type": "string", "minLength": 1}, "metadata": {"type": "object"},
            "retell_llm_dynamic_variables": strings, "custom_sip_headers": strings,
            "honor_internal_dnc": {"type": "boolean"}, "ignore_e164_validation": {"type": "boolean"},
            "agent_override": {
                "type": "object", "additionalProperties": false,
                "properties": {
                    "agent": {"type": "object", "additionalProperties": false, "properties": agent},
                    "retell_llm": {"type": "object"}, "conversation_flow": {"type": "object"},
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carrier::{Listener, ask};

    fn order(to: &Listener, key: &str) -> Value {
        json!({
            "from_number": NUMBER, "to_number": "+15550100", "override_agent_id": AGENT, "idempotency_key": key,
            "metadata": {"ringback_correlation": format!("rbc1.{key}"), "ringback_agent": "tester"},
            "retell_llm_dynamic_variables": {
                "ringback_prompt": "Book. <<{\"sim\":\"booked\",\"turns\":2}>>", "ringback_first_message": "",
            },
            "agent_override": {"agent": {
                "webhook_url": format!("{}/hooks/e/call-ended?correlation=rbc1.{key}", to.base),
                "webhook_events": EVENTS, "max_call_duration_ms": 600_000,
            }},
        })
    }

    async fn post(retell: &RetellStandIn, path: &str, body: &Value) -> (u16, Option<String>, Value) {
        let url = format!("{}{path}", retell.url());
        ask("POST", &url, &retell.key(), Some(body)).await
    }

    const PLACE: &str = "/v2/create-phone-call";

    #[test]
    fn the_signature_is_the_published_one() {
        let signed = signature("test-api-key", br#"{"event":"call_ended"}"#, 1_700_000_000_000);
        let digest = "07024cabe7dd8f6d1c6e4a8324ca92c812e6ad4a7ee506c04f7e462e3321823e";
        assert_eq!(signed, format!("v=1700000000000,d={digest}"));
    }

    #[tokio::test]
    async fn a_call_is_played_and_told_as_it_is_delivered() {
        let (retell, to) = (RetellStandIn::start().await, Listener::start().await);
        retell.auto(5);
        for (delivery, events) in [
            (
                Delivery::Normal,
                &["call_started", "call_ended", "call_analyzed"][..],
            ),
            (Delivery::Early, &["call_started", "call_ended", "call_analyzed"]),
            (
                Delivery::Reversed,
                &["call_analyzed", "call_ended", "call_started"],
            ),
            (
                Delivery::Duplicated,
                &[
                    "call_started",
                    "call_started",
                    "call_ended",
                    "call_ended",
                    "call_analyzed",
                    "call_analyzed",
                ],
            ),
        ] {
            retell.delivery(delivery);
            let (status, _, placed) = post(&retell, PLACE, &order(&to, &format!("{delivery:?}"))).await;
            assert_eq!((status, &placed["call_status"]), (201, &json!("registered")));
            if delivery == Delivery::Early {
                assert_eq!(retell.calls()[1].sent.len(), 3, "before the answer");
            }
            retell
                .wait_for("all events", |retell| {
                    retell.calls().last().unwrap().sent.len() == events.len()
                })
                .await;
            let sent = retell.calls().pop().unwrap().sent;
            let named: Vec<&str> = sent.iter().map(|sent| sent.event.as_str()).collect();
            assert_eq!(named, events, "{delivery:?}");
            for (headers, path, body) in to.heard() {
                assert_eq!(path, format!("/hooks/e/call-ended?correlation=rbc1.{delivery:?}"));
                let told = headers["x-retell-signature"].to_str().unwrap();
                let (_, rest) = told.split_once("v=").unwrap();
                let now = rest.split_once(',').unwrap().0.parse().unwrap();
                assert_eq!(told, signature(&retell.key(), &body, now));
            }
        }
        retell.delivery(Delivery::Late);
        post(&retell, PLACE, &order(&to, "late")).await;
        retell
            .wait_for("the end", |retell| retell.calls()[4].ended.is_some())
            .await;
        assert!(to.heard().is_empty());
        retell.release().await;
        assert_eq!(to.heard().len(), 3);
        retell.delivery(Delivery::Never);
        post(&retell, PLACE, &order(&to, "never")).await;
        retell
            .wait_for("the end", |retell| retell.calls()[5].ended.is_some())
            .await;
        assert!(to.heard().is_empty());
        assert_eq!(retell.faults(), [""; 0]);
    }

    #[tokio::test]
    async fn a_call_is_what_was_said_and_can_be_found() {
        let (retell, to) = (RetellStandIn::start().await, Listener::start().await);
        retell.manual();
        assert_eq!(
            (retell.agent_id().as_str(), retell.from_number().as_str()),
            (AGENT, NUMBER)
        );
        to.answer(&[500, 200, 503, 503, 503, 503, 404]);
        let (_, _, placed) = post(&retell, PLACE, &order(&to, "k")).await;
        let (status, _, again) = post(&retell, PLACE, &order(&to, "k")).await;
        assert_eq!((status, &again["call_id"]), (201, &placed["call_id"]));
        let id = placed["call_id"].as_str().unwrap();
        let call = format!("{}/v2/get-call/{id}", retell.url());
        retell.start_call(id).await;
        assert_eq!(
            ask("GET", &call, &retell.key(), None).await.2["call_status"],
            "ongoing"
        );
        retell.ended_with(json!({"recording_url": null, "call_analysis": {"call_successful": true}}));
        retell.end_call(id, "user_hangup").await;
        let record = retell.calls().pop().unwrap();
        assert_eq!((record.placed_times, record.correlation.as_str()), (2, "rbc1.k"));
        let statuses: Vec<u16> = record.sent.iter().map(|sent| sent.status).collect();
        assert_eq!(
            statuses,
            [500, 200, 503, 503, 503, 503, 404, 200],
            "three more tries"
        );
        assert_eq!(record.sent[5].attempt, 4);
        let ended: Value = serde_json::from_slice(&to.heard()[2].2).unwrap();
        assert_eq!(
            (ended["event"].as_str(), ended["call"].get("call_analysis")),
            (Some("call_ended"), None)
        );
        let whole = ask("GET", &call, &retell.key(), None).await.2;
        assert_eq!(whole["transcript_object"][0]["role"], "agent");
        assert_eq!(
            whole["transcript_object"][0]["content"],
            "Hello, caller 1 of booked."
        );
        assert_eq!(whole["transcript_object"][1]["words"][0]["word"], "Answer");
        assert_eq!(whole["disconnection_reason"], "user_hangup");
        assert_eq!(whole.get("recording_url"), None);

        let metadata = |op: &str, value: &str| {
            json!({"filter_criteria": {"metadata": [
                {"key": "ringback_correlation", "type": "string", "op": op, "value": value},
            ]}, "limit": 10})
        };
        for (filter, count) in [
            (metadata("eq", "rbc1.k"), 1),
            (metadata("eq", "rbc1.other"), 0),
            (metadata("sw", "rbc1."), 1),
            (
                json!({"filter_criteria": {"call_status": {"type": "enum", "op": "in", "value": ["ended"]}}}),
                1,
            ),
            (
                json!({"filter_criteria": {"duration_ms": {"type": "number", "op": "lt", "value": 0}}}),
                0,
            ),
        ] {
            let (status, _, found) = post(&retell, "/v3/list-calls", &filter).await;
            assert_eq!(status, 200, "{found}");
            assert_eq!(found["items"].as_array().unwrap().len(), count, "{filter}");
            assert_eq!(found["items"][0].get("transcript"), None);
        }
        let stop = format!("{}/v2/stop-call/{id}", retell.url());
        assert_eq!(ask("POST", &stop, &retell.key(), None).await.0, 404, "it is over");
        let placed = post(&retell, PLACE, &order(&to, "stopped")).await.2;
        let stop = format!(
            "{}/v2/stop-call/{}",
            retell.url(),
            placed["call_id"].as_str().unwrap()
        );
        assert_eq!(ask("POST", &stop, &retell.key(), None).await.0, 204);
        retell
            .wait_for("its webhooks", |retell| retell.calls()[1].sent.len() == 2)
            .await;
        assert_eq!(retell.calls()[1].end_requests, 1);
        assert_eq!(retell.faults(), [""; 0]);
        let asked = retell.asked();
        assert_eq!(
            (asked.placings, asked.by_id, asked.lists, asked.stops),
            (3, 2, 5, 2)
        );
    }

    #[tokio::test]
    async fn what_retell_would_not_take_is_a_fault() {
        let (retell, to) = (RetellStandIn::start().await, Listener::start().await);
        retell.manual();
        for (pointer, value) in [
            ("/from_number", json!("+15550199")),
            ("/to_number", json!("5550100")),
            ("/override_agent_id", json!("agent_other")),
            ("/metadata", json!("text")),
            ("/retell_llm_dynamic_variables/ringback_prompt", json!(7)),
            ("/agent_override/agent/webhook_events", json!(["call_begun"])),
            ("/agent_override/agent/max_call_duration_ms", json!(59_999)),
            ("/agent_override/agent", json!({"webhook": "http://a"})),
            ("/agent_override", json!({"llm": {}})),
            ("/idempotency_key", Value::Null),
        ] {
            let mut body = order(&to, "bad");
            *body.pointer_mut(pointer).unwrap() = value;
            let before = retell.faults().len();
            let (status, _, answer) = post(&retell, PLACE, &body).await;
            assert_eq!((status, &answer["status"]), (400, &json!("error")), "{pointer}");
            assert_eq!(
                retell.faults().len(),
                before + 1,
                "{pointer}: {:?}",
                retell.faults()
            );
        }
        let filter = json!({"filter_criteria": {"metadata": [{"type": "string", "op": "is", "key": "a", "value": "b"}]}});
        assert_eq!(post(&retell, "/v3/list-calls", &filter).await.0, 400);
        post(&retell, PLACE, &order(&to, "k")).await;
        let mut other = order(&to, "k");
        other["to_number"] = json!("+15550101");
        assert_eq!(
            post(&retell, PLACE, &other).await.0,
            400,
            "the same key, another order"
        );
        let call = format!("{}/v2/get-call/none", retell.url());
        assert_eq!(ask("GET", &call, "key_wrong", None).await.0, 401);
        assert_eq!(ask("GET", &call, &retell.key(), None).await.0, 404);
        assert_eq!(retell.faults().len(), 13, "{:#?}", retell.faults());

        for (placing, status, wait, places) in [
            (Placing::Refuse(402), 402, None, false),
            (
                Placing::Busy {
                    retry_after_seconds: 7,
                    times: 1,
                },
                429,
                Some("7"),
                false,
            ),
            (Placing::AcceptWithoutAnswer, 500, None, true),
            (Placing::AcceptWithoutAnswer, 0, None, true),
        ] {
            let before = retell.calls().len();
            retell.placing(placing);
            let key = format!("placing-{before}-{status}");
            let answer = post(&retell, PLACE, &order(&to, &key)).await;
            assert_eq!((answer.0, answer.1.as_deref()), (status, wait), "{placing:?}");
            assert_eq!(retell.calls().len() > before, places, "{placing:?}");
        }
        assert_eq!(retell.asked().refused, 2);
        retell.placing(Placing::Hang);
        let hung = order(&to, "hung");
        let (answer, ()) = tokio::join!(post(&retell, PLACE, &hung), async {
            retell
                .wait_for("it to hang", |retell| retell.asked().placings == 17)
                .await;
            retell.placing(Placing::Accept);
        });
        assert_eq!(answer.0, 201);
        for (auth, signed) in [(Auth::Missing, false), (Auth::Wrong, true)] {
            retell.auth(auth);
            let placed = post(&retell, PLACE, &order(&to, &format!("{auth:?}"))).await.2;
            retell.moved_to(&to.base);
            retell.start_call(placed["call_id"].as_str().unwrap()).await;
            let (headers, _, body) = to.heard().pop().unwrap();
            assert_eq!(headers.contains_key("x-retell-signature"), signed);
            if signed {
                let told = headers["x-retell-signature"].to_str().unwrap();
                let now = told[2..].split_once(',').unwrap().0.parse().unwrap();
                assert_ne!(told, signature(&retell.key(), &body, now));
            }
        }
    }
}
