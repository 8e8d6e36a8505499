//! A stand-in for Vapi: runs of its simulations, calls by phone, and chats with assistants that only it knows. It checks what it is
//! asked as Vapi's published types say, and more strictly where they do not say: what it does not know it refuses.
//!
//! Nobody talks. What was said in a call follows from the order alone: a call whose tester has a directive (see
//! [`crate::stand_in`]) names a caller of its `sim`. A run says so from the target's side (`bot` is the target); a call by phone
//! is a call of the tester, who therefore is its `bot`. Where a scenario has tool mocks, the target uses each of its functions once.

use std::{
    collections::BTreeMap,
    fmt,
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
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jsonschema::Validator;
use reqwest::Url;
use ringback_shared::clock::{Clock, SystemClock, around_iso, iso};
use serde_json::{Map, Value, json};
use sha2::Sha512;
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

use crate::carrier::{
    Auth, Carrier, Decision, Delivery, Placing, Sent, Sign, Speaker, TARGET_TURNS, Webhook, check_key,
    complaints, dialogue, directive, hex, hmac_sha256, hung_up, lay_over, read_json, seconds, spoken,
    validator,
};

/// The organization that everything belongs to.
const ORG: &str = "0198f000-0000-7000-8000-00000000000a";
/// The one phone number of the organization.
const PHONE_NUMBER: &str = "0198f000-0000-7000-8000-00000000000b";
/// What a leg of the target and one of the tester cost. A call by phone costs both together.
const TARGET_COST: f64 = 0.03;
const TESTER_COST: f64 = 0.012;
const CALL_COST: f64 = 0.042;
const CHAT_COST: f64 = 0.0021;
/// How long the tester takes for its turns.
const TESTER_TURNS: [u32; 3] = [300, 310, 320];
/// The server messages of a call whose assistant does not say which it wants.
const SERVER_MESSAGES: [&str; 2] = ["status-update", "end-of-call-report"];

/// An HMAC credential, as Vapi's `HMACAuthenticationPlan` has it.
#[derive(Debug, Clone)]
pub(crate) struct HmacPlan {
    pub(crate) secret_key: String,
    pub(crate) secret_is_base64: bool,
    pub(crate) algorithm: Algorithm,
    pub(crate) signature_header: String,
    pub(crate) signature_prefix: String,
    pub(crate) signature_encoding: Encoding,
    pub(crate) include_timestamp: bool,
    pub(crate) timestamp_header: String,
    /// Vapi does not say which unit it takes. Seconds, unless this is set.
    pub(crate) timestamp_in_ms: bool,
    /// `{timestamp}.{body}` with a timestamp and `{body}` without, unless it is another one.
    pub(crate) payload_format: Option<String>,
    pub(crate) message_id_header: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Hex,
    Base64,
}

impl HmacPlan {
    /// With this secret and Vapi's defaults.
    pub(crate) fn new(secret_key: &str) -> Self {
        Self {
            secret_key: secret_key.to_owned(),
            secret_is_base64: false,
            algorithm: Algorithm::Sha256,
            signature_header: "x-signature".to_owned(),
            signature_prefix: String::new(),
            signature_encoding: Encoding::Hex,
            include_timestamp: true,
            timestamp_header: "x-timestamp".to_owned(),
            timestamp_in_ms: false,
            payload_format: None,
            message_id_header: None,
        }
    }

    /// The headers of a request that is made at `now`.
    pub(crate) fn headers(&self, url: &Url, body: &[u8], now_ms: i64, wrong: bool) -> Vec<(String, String)> {
        let timestamp = if self.timestamp_in_ms {
            now_ms
        } else {
            now_ms / 1000
        };
        let timestamp = timestamp.to_string();
        let id = format!("msg_{}", Uuid::now_v7().simple());
        let usual = if self.include_timestamp {
            "{timestamp}.{body}"
        } else {
            "{body}"
        };
        // The body comes last: what it says is no placeholder.
        let payload = self.payload_format.as_deref().unwrap_or(usual);
        let payload = payload
            .replace("{timestamp}", &timestamp)
            .replace("{method}", "POST")
            .replace("{url}", url.as_str())
            .replace("{svix-id}", &id)
            .replace("{body}", str::from_utf8(body).unwrap());
        let mut key = if self.secret_is_base64 {
            STANDARD.decode(&self.secret_key).unwrap()
        } else {
            self.secret_key.clone().into_bytes()
        };
        if wrong {
            key.push(b'!');
        }
        let signature = match self.algorithm {
            Algorithm::Sha256 => hmac_sha256(&key, payload.as_bytes()),
            Algorithm::Sha512 => {
                let mut mac = Hmac::<Sha512>::new_from_slice(&key).unwrap();
                mac.update(payload.as_bytes());
                mac.finalize().into_bytes().to_vec()
            }
        };
        let signature = match self.signature_encoding {
            Encoding::Hex => hex(&signature),
            Encoding::Base64 => STANDARD.encode(signature),
        };
        let signature = format!("{}{signature}", self.signature_prefix);
        let mut headers = vec![(self.signature_header.clone(), signature)];
        if self.include_timestamp {
            headers.push((self.timestamp_header.clone(), timestamp));
        }
        headers.extend(self.message_id_header.clone().map(|name| (name, id)));
        headers
    }
}

/// A webhook credential that a server may name.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    Hmac(HmacPlan),
    /// A token in a header, after `Bearer ` if so.
    Bearer {
        token: String,
        header: String,
        prefix: bool,
    },
}

/// The ids of what belongs to a run with one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Legs {
    pub(crate) item: String,
    pub(crate) tester_call: String,
    pub(crate) target_call: String,
}

/// A run that was created or a call that was placed. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VapiRecord {
    pub(crate) id: String,
    /// The scenario's name of a run, what the tester's metadata says of a call.
    pub(crate) correlation: String,
    /// The header, which Vapi does not look at.
    pub(crate) idempotency_key: Option<String>,
    pub(crate) body: Value,
    /// Of a run.
    pub(crate) legs: Option<Legs>,
    pub(crate) placed: i64,
    pub(crate) started: Option<i64>,
    pub(crate) ended: Option<i64>,
    /// How often its end was asked for.
    pub(crate) end_requests: usize,
    /// Its webhooks, in the order of their answers.
    pub(crate) sent: Vec<Sent>,
}

/// A turn of a chat.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRecord {
    pub(crate) id: String,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) body: Value,
    /// What was said in this chat and those before it, without its output.
    pub(crate) messages: Vec<Value>,
    pub(crate) output: Vec<Value>,
    pub(crate) at: i64,
}

/// How often it was asked for what, whatever the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VapiAsked {
    /// To create a run, to place a call or for a turn of a chat.
    pub(crate) placings: usize,
    /// The same, and it refused or was busy.
    pub(crate) refused: usize,
    /// For a run, its items, a call or a chat by its id.
    pub(crate) by_id: usize,
    /// For a list of runs or calls.
    pub(crate) lists: usize,
    /// To cancel a run.
    pub(crate) cancels: usize,
    /// To control a call.
    pub(crate) controls: usize,
    /// For an assistant.
    pub(crate) assistants: usize,
}

/// What an assistant answers: from what it is, with the variables filled in, and what was said so far.
type Replies = Box<dyn Fn(&Value, &[Value]) -> Vec<Value> + Send + Sync>;

struct Line {
    record: VapiRecord,
    /// What is said of its end: what the hook of a run says, or the report of a call.
    over: Option<Map<String, Value>>,
    /// The same of its legs' calls.
    legs: [Map<String, Value>; 2],
}

struct Log {
    lines: Vec<Line>,
    chats: Vec<ChatRecord>,
    asked: VapiAsked,
    assistants: BTreeMap<String, Value>,
    credentials: BTreeMap<String, Credential>,
    auth: Auth,
    talk: Option<Duration>,
    laid_over: Map<String, Value>,
    replies: Replies,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Log {
    fn find(&self, id: &str) -> Option<usize> {
        self.lines.iter().position(|line| line.record.id == id)
    }

    fn line(&mut self, id: &str) -> &mut Line {
        let index = self
            .find(id)
            .unwrap_or_else(|| panic!("no run or call has the id {id}"));
        &mut self.lines[index]
    }

    /// The assistant that is the target of a run, or the first one of its squad.
    fn target(&self, body: &Value) -> Value {
        let target = &body["target"];
        let member = if target["type"] == "squad" {
            &target["squad"]["members"][0]
        } else {
            target
        };
        match member["assistantId"].as_str() {
            Some(id) => self.assistants.get(id).cloned().unwrap_or_default(),
            None => member["assistant"].clone(),
        }
    }
}

#[derive(Debug)]
struct Shared {
    base: String,
    log: Mutex<Log>,
    carrier: Carrier,
}

#[derive(Debug)]
pub(crate) struct VapiStandIn {
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl VapiStandIn {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            base: format!("http://{}", listener.local_addr().unwrap()),
            log: Mutex::new(Log {
                lines: Vec::new(),
                chats: Vec::new(),
                asked: VapiAsked::default(),
                assistants: BTreeMap::new(),
                credentials: BTreeMap::new(),
                auth: Auth::AsTold,
                talk: Some(Duration::from_millis(50)),
                laid_over: Map::new(),
                replies: Box::new(usual_reply),
            }),
            carrier: Carrier::new(Uuid::now_v7().to_string()),
        });
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            _server: server,
        }
    }

    /// The endpoint's `url`.
    pub(crate) fn url(&self) -> String {
        self.shared.base.clone()
    }

    /// The API key that it wants to see.
    pub(crate) fn key(&self) -> String {
        self.shared.carrier.key().to_owned()
    }

    /// The id of the only phone number that calls can be placed from.
    pub(crate) fn phone_number_id(&self) -> String {
        PHONE_NUMBER.to_owned()
    }

    /// How its webhooks prove where they come from, from now on.
    pub(crate) fn auth(&self, auth: Auth) {
        self.shared.log().auth = auth;
    }

    /// Makes a webhook credential known under an id. A server that names another one is refused.
    pub(crate) fn credential(&self, id: &str, credential: Credential) {
        self.shared.log().credentials.insert(id.to_owned(), credential);
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

    /// Makes an assistant known that only Vapi knows. Its id must be a UUID.
    pub(crate) fn assistant(&self, id: &str, body: Value) {
        let parsed: Result<Uuid, _> = id.parse();
        assert!(parsed.is_ok(), "Vapi's ids are UUIDs, not {id}");
        let faults = complaints(&SCHEMAS["assistant"], &body);
        assert!(faults.is_empty(), "Vapi has no such assistants: {faults:#?}");
        self.shared.log().assistants.insert(id.to_owned(), body);
    }

    /// Calls that are placed from now on start at once and end after this time.
    pub(crate) fn auto(&self, talk_ms: u64) {
        self.shared.log().talk = Some(Duration::from_millis(talk_ms));
    }

    /// Calls that are placed from now on start and end when the test says so, unless they are delivered [`Delivery::Early`].
    pub(crate) fn manual(&self) {
        self.shared.log().talk = None;
    }

    /// Fields for the ends from now on, instead of the usual ones: of the hook of a run, of the report of a call by phone, and of
    /// the calls of both. Null takes one away.
    pub(crate) fn ended_with(&self, fields: Value) {
        let Value::Object(fields) = fields else {
            panic!("not an object: {fields}")
        };
        self.shared.log().laid_over = fields;
    }

    /// What assistants answer in chats, instead of the usual.
    pub(crate) fn chat_replies(
        &self,
        replies: impl Fn(&Value, &[Value]) -> Vec<Value> + Send + Sync + 'static,
    ) {
        self.shared.log().replies = Box::new(replies);
    }

    /// Starts a call or the call of a run, if it has not, and sends what is to be sent then.
    pub(crate) async fn start_call(&self, id: &str) {
        let webhooks = self.shared.start(id);
        self.shared.carrier.begun(id, webhooks).await;
    }

    /// Ends a call or the call of a run, if it has not, and sends what is to be sent then. Who has not started was never connected.
    pub(crate) async fn end_call(&self, id: &str, reason: &str) {
        let (webhooks, _) = self.shared.end(id, reason, false);
        self.shared.carrier.over(id, webhooks).await;
    }

    /// All runs that were ever created, in their order.
    pub(crate) fn runs(&self) -> Vec<VapiRecord> {
        self.records(true)
    }

    /// All calls that were ever placed by phone, in their order.
    pub(crate) fn calls(&self) -> Vec<VapiRecord> {
        self.records(false)
    }

    fn records(&self, runs: bool) -> Vec<VapiRecord> {
        let log = self.shared.log();
        let lines = log.lines.iter().map(|line| &line.record);
        lines
            .filter(|record| record.legs.is_some() == runs)
            .map(|record| VapiRecord {
                sent: self.shared.carrier.sent(&record.id),
                ..record.clone()
            })
            .collect()
    }

    /// All turns of chats, in their order.
    pub(crate) fn chats(&self) -> Vec<ChatRecord> {
        self.shared.log().chats.clone()
    }

    pub(crate) fn asked(&self) -> VapiAsked {
        self.shared.log().asked
    }

    /// Whatever it was asked that Vapi would not have put up with.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.shared.carrier.faults()
    }

    /// Waits until it is so.
    pub(crate) async fn wait_for(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        self.shared.carrier.wait_for(what, || enough(self)).await;
    }
}

impl Drop for VapiStandIn {
    fn drop(&mut self) {
        self.shared.carrier.stop();
    }
}

/// A server's part of a webhook: where it goes, how often, and what proves where it comes from.
fn webhook(log: &Log, order: &str, event: &str, server: &Value, body: Value) -> Webhook {
    let headers = server["headers"].as_object().into_iter().flatten();
    let headers: Vec<(String, String)> = headers
        .map(|(name, value)| (name.to_lowercase(), value.as_str().unwrap().to_owned()))
        .collect();
    let credential = server["credentialId"].as_str();
    let credential = credential.and_then(|id| log.credentials.get(id).cloned());
    let auth = log.auth;
    let sign: Sign = Arc::new(move |url, body| {
        let wrong = auth == Auth::Wrong;
        let mut all = match &credential {
            _ if auth == Auth::Missing => return Vec::new(),
            None => Vec::new(),
            Some(Credential::Hmac(plan)) => plan.headers(url, body, SystemClock.now_ms(), wrong),
            Some(Credential::Bearer {
                token,
                header,
                prefix,
            }) => {
                let prefix = if *prefix { "Bearer " } else { "" };
                let wrong = if wrong { "!" } else { "" };
                vec![(header.to_lowercase(), format!("{prefix}{token}{wrong}"))]
            }
        };
        // Those of the server win.
        all.extend(headers.iter().map(|(name, value)| {
            let wrong = if wrong { "!" } else { "" };
            (name.clone(), format!("{value}{wrong}"))
        }));
        all
    });
    let plan = &server["backoffPlan"];
    let excluded = plan["excludedStatusCodes"].as_array().into_iter().flatten();
    Webhook {
        order: order.to_owned(),
        event: event.to_owned(),
        url: server["url"].as_str().unwrap().to_owned(),
        body,
        // A whole number may be written with a fraction of zero.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the schema says that it is from 0 to 10"
        )]
        retries: plan["maxRetries"].as_f64().unwrap_or_default() as u64,
        excluded: excluded
            .map(|status| u16::try_from(status.as_u64().unwrap()).unwrap())
            .collect(),
        within: Duration::from_secs_f64(server["timeoutSeconds"].as_f64().unwrap_or(20.0)),
        sign,
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Creates a run or places a call; gives its id and how long it takes by itself.
    fn place(&self, headers: &HeaderMap, body: Value) -> (String, Option<Duration>) {
        let id = || Uuid::now_v7().to_string();
        let is_run = body.get("simulations").is_some();
        let correlation = if is_run {
            &body["simulations"][0]["scenario"]["name"]
        } else {
            &body["assistant"]["metadata"]["ringback"]["correlation"]
        };
        let record = VapiRecord {
            id: id(),
            correlation: correlation.as_str().unwrap_or_default().to_owned(),
            idempotency_key: idempotency_key(headers),
            legs: is_run.then(|| Legs {
                item: id(),
                tester_call: id(),
                target_call: id(),
            }),
            body,
            placed: SystemClock.now_ms(),
            started: None,
            ended: None,
            end_requests: 0,
            sent: Vec::new(),
        };
        let id = record.id.clone();
        let talk = {
            let mut log = self.log();
            log.lines.push(Line {
                record,
                over: None,
                legs: Default::default(),
            });
            log.talk
        };
        self.carrier.changed();
        (id, talk)
    }

    /// A call that starts and ends by itself, unless its end is asked for before.
    async fn play(self: Arc<Self>, id: String, talk: Duration) {
        let webhooks = self.start(&id);
        self.carrier.begun(&id, webhooks).await;
        // They talk.
        tokio::time::sleep(talk).await;
        let is_run = self.log().line(&id).record.legs.is_some();
        // The tester hangs up.
        let reason = if is_run {
            "customer-ended-call"
        } else {
            "assistant-ended-call"
        };
        let (webhooks, now) = self.end(&id, reason, false);
        if now {
            self.carrier.over(&id, webhooks).await;
        }
    }

    /// Starts a call, if it has not; gives what is to be sent.
    fn start(&self, id: &str) -> Vec<Webhook> {
        let webhooks = {
            let mut log = self.log();
            let record = &mut log.line(id).record;
            if record.started.is_some() || record.ended.is_some() {
                return Vec::new();
            }
            record.started = Some(SystemClock.now_ms());
            let index = log.find(id).unwrap();
            match &log.lines[index].record.legs {
                Some(legs) => {
                    let event = json!({
                        "type": "simulation.run.started", "simulationId": simulation_id(id), "runId": id,
                        "simulationRunItemId": legs.item, "iterationNumber": 1, "isSimulation": true,
                        "calls": calls_of(legs),
                    });
                    log.hooks(index, &event)
                }
                None => [("ringing", json!({})), ("in-progress", json!({}))]
                    .into_iter()
                    .filter_map(|(status, more)| self.message(&log, index, "status-update", status, more))
                    .collect(),
            }
        };
        self.carrier.changed();
        webhooks
    }

    /// Ends a call, if it has not; gives what is to be sent and whether it is new.
    fn end(&self, id: &str, reason: &str, canceled: bool) -> (Vec<Webhook>, bool) {
        let webhooks = {
            let mut log = self.log();
            let record = &mut log.line(id).record;
            if record.ended.is_some() {
                return (Vec::new(), false);
            }
            record.ended = Some(SystemClock.now_ms());
            let index = log.find(id).unwrap();
            log.settle(index, reason, canceled);
            match &log.lines[index].record.legs {
                Some(_) => {
                    let event = Value::Object(log.lines[index].over.clone().unwrap());
                    log.hooks(index, &event)
                }
                None => {
                    let over = log.lines[index].over.clone().unwrap();
                    let reason = json!({"endedReason": over.get("endedReason")});
                    let ended = self.message(&log, index, "status-update", "ended", reason);
                    let report = self.message(&log, index, "end-of-call-report", "", Value::Object(over));
                    ended.into_iter().chain(report).collect()
                }
            }
        };
        self.carrier.changed();
        (webhooks, true)
    }

    /// A server message of a call by phone, if its assistant wants to hear it.
    fn message(&self, log: &Log, index: usize, kind: &str, status: &str, more: Value) -> Option<Webhook> {
        let record = &log.lines[index].record;
        let assistant = self.assistant_of(log, &record.body);
        let wanted = match assistant["serverMessages"].as_array() {
            Some(wanted) => wanted.iter().any(|wanted| wanted == kind),
            None => SERVER_MESSAGES.contains(&kind),
        };
        if !wanted || !assistant["server"].is_object() {
            return None;
        }
        let mut message = json!({
            "timestamp": SystemClock.now_ms(), "type": kind, "call": self.shown_call(&log.lines[index]),
            "assistant": assistant, "customer": record.body["customer"],
            "phoneNumber": {"id": PHONE_NUMBER, "orgId": ORG, "number": "+15550199"},
        });
        // A call at its start says of itself what it is then, not what it has become.
        if !status.is_empty() {
            message["status"] = json!(status);
            message["call"]["status"] = json!(status);
        }
        message
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let event = if status.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind} {status}")
        };
        let body = json!({ "message": message });
        Some(webhook(log, &record.id, &event, &assistant["server"], body))
    }

    /// The assistant of a call by phone.
    fn assistant_of(&self, log: &Log, body: &Value) -> Value {
        match body["assistantId"].as_str() {
            Some(id) => log.assistants.get(id).cloned().unwrap_or_default(),
            None => body["assistant"].clone(),
        }
    }

    /// A call by phone as who asks for it sees it.
    fn shown_call(&self, line: &Line) -> Value {
        let record = &line.record;
        let body = &record.body;
        let mut call = shown(&record.id, "outboundPhoneCall", record, line.over.as_ref());
        for field in ["name", "assistant", "assistantId", "phoneNumberId", "customer"] {
            if let Some(value) = body.get(field) {
                call.insert(field.to_owned(), value.clone());
            }
        }
        let plan = &body["assistant"]["monitorPlan"];
        let mut monitor = Map::new();
        if plan["listenEnabled"] != false {
            monitor.insert("listenUrl".to_owned(), json!(listen_url(&record.id)));
        }
        if plan["controlEnabled"] != false {
            let url = format!("{}/{}/control", self.base, record.id);
            monitor.insert("controlUrl".to_owned(), json!(url));
        }
        call.insert("monitor".to_owned(), Value::Object(monitor));
        Value::Object(call)
    }

    /// The call with this id: one by phone, or a leg of a run.
    fn find_call(&self, log: &Log, id: &str) -> Option<Value> {
        self.all_calls(log).into_iter().find(|call| call["id"] == id)
    }

    /// All calls, the oldest first.
    fn all_calls(&self, log: &Log) -> Vec<Value> {
        let mut all = Vec::new();
        for line in &log.lines {
            let Some(legs) = &line.record.legs else {
                all.push(self.shown_call(line));
                continue;
            };
            for (id, facts) in [&legs.target_call, &legs.tester_call].into_iter().zip(&line.legs) {
                let over = line.record.ended.map(|_| facts);
                let mut call = shown(id, "vapi.websocketCall", &line.record, over);
                call.insert("monitor".to_owned(), json!({"listenUrl": listen_url(id)}));
                all.push(Value::Object(call));
            }
        }
        all
    }
}

impl Log {
    /// The webhooks that the scenario of a run wants at this event.
    fn hooks(&self, index: usize, event: &Value) -> Vec<Webhook> {
        let record = &self.lines[index].record;
        let kind = event["type"].as_str().unwrap();
        let hooks = record.body["simulations"][0]["scenario"]["hooks"].as_array();
        let hooks = hooks.into_iter().flatten().filter(|hook| hook["on"] == kind);
        let actions = hooks.flat_map(|hook| hook["do"].as_array().into_iter().flatten());
        actions
            .filter(|action| action["server"].is_object())
            .map(|action| {
                let mut event = event.clone();
                for field in ["transcript", "messages", "recordingUrl"] {
                    if action["include"][field] != true {
                        event.as_object_mut().unwrap().remove(field);
                    }
                }
                webhook(self, &record.id, kind, &action["server"], event)
            })
            .collect()
    }

    /// Writes down what there is to say of a call that has just ended.
    fn settle(&mut self, index: usize, reason: &str, canceled: bool) {
        let record = &self.lines[index].record;
        let body = &record.body;
        let (over, legs) = match &record.legs {
            None => {
                let prompts = prompts(&body["assistant"]);
                let lines = dialogue(prompts.iter().map(String::as_str), index + 1);
                let view = View {
                    bot: Speaker::Tester,
                    assistant: body["assistant"].clone(),
                    tools: Vec::new(),
                    turns: TESTER_TURNS,
                    cost: CALL_COST,
                };
                (report(&view, &lines, record, reason), Default::default())
            }
            Some(legs) => {
                let entry = &body["simulations"][0];
                let mut all = prompts(&entry["personality"]["assistant"]);
                all.extend(entry["scenario"]["instructions"].as_str().map(str::to_owned));
                let lines = dialogue(all.iter().map(String::as_str), index + 1);
                let target = self.target(body);
                let view = View {
                    bot: Speaker::Target,
                    tools: tools_used(&target, &entry["scenario"]["toolMocks"]),
                    assistant: target,
                    turns: TARGET_TURNS,
                    cost: TARGET_COST,
                };
                let mut target = report(&view, &lines, record, reason);
                let view = View {
                    bot: Speaker::Tester,
                    assistant: entry["personality"]["assistant"].clone(),
                    tools: Vec::new(),
                    turns: TESTER_TURNS,
                    cost: TESTER_COST,
                };
                // They see it from the other side.
                let other = match reason {
                    "customer-ended-call" => "assistant-ended-call",
                    "assistant-ended-call" => "customer-ended-call",
                    other => other,
                };
                let mut tester = report(&view, &lines, record, other);
                let artifact = &target["artifact"];
                let mut over = json!({
                    "type": "simulation.run.ended", "simulationId": simulation_id(&record.id), "runId": record.id,
                    "simulationRunItemId": legs.item, "iterationNumber": 1, "isSimulation": true,
                    "calls": calls_of(legs), "endedReason": reason, "canceled": canceled,
                    "endedAt": target["endedAt"], "transcript": artifact["transcript"],
                    "messages": artifact["messages"], "recordingUrl": artifact["recordingUrl"],
                });
                if let Some(started) = target.get("startedAt") {
                    over["startedAt"] = started.clone();
                }
                if ["error", "fault", "failed"]
                    .iter()
                    .any(|word| reason.contains(word))
                {
                    over["failureReason"] = json!(reason);
                }
                lay_over(&mut target, &self.laid_over);
                lay_over(&mut tester, &self.laid_over);
                let Value::Object(over) = over else { unreachable!() };
                (over, [target, tester])
            }
        };
        let mut over = over;
        lay_over(&mut over, &self.laid_over);
        let line = &mut self.lines[index];
        line.over = Some(over);
        line.legs = legs;
    }
}

/// What the prompts of an assistant say.
fn prompts(assistant: &Value) -> Vec<String> {
    let messages = assistant["model"]["messages"].as_array().into_iter().flatten();
    let texts = messages.filter_map(|message| message["content"].as_str());
    texts.map(str::to_owned).collect()
}

/// Whose call it is, and what is particular to it.
struct View {
    bot: Speaker,
    assistant: Value,
    /// The tools that the bot used: name and result.
    tools: Vec<(String, String)>,
    turns: [u32; 3],
    cost: f64,
}

/// The functions of the target, each used once, if the scenario says what they give back.
fn tools_used(target: &Value, mocks: &Value) -> Vec<(String, String)> {
    let (Some(tools), Some(mocks)) = (target["model"]["tools"].as_array(), mocks.as_array()) else {
        return Vec::new();
    };
    let names = tools.iter().filter_map(|tool| tool["function"]["name"].as_str());
    names
        .map(|name| {
            let mut mocks = mocks.iter();
            let mock = mocks.find(|mock| mock["toolName"] == name && mock["enabled"] != false);
            let result = match mock {
                Some(mock) => mock["result"].as_str().unwrap_or_default().to_owned(),
                None => format!("{name} ran for real"),
            };
            (name.to_owned(), result)
        })
        .collect()
}

/// What an end-of-call report says of a call. Where it has not started, nothing was said.
fn report(view: &View, lines: &[(Speaker, String)], record: &VapiRecord, reason: &str) -> Map<String, Value> {
    let ended = record.ended.unwrap();
    let started = record.started.unwrap_or(ended);
    let said = if record.started.is_some() { lines } else { &[] };
    let at = |n: i64| started + spoken(n).0;
    let mut messages = Vec::new();
    let mut transcript = String::new();
    if let (Some(_), Some(prompt)) = (record.started, prompts(&view.assistant).first()) {
        messages.push(json!({"role": "system", "message": prompt, "time": started, "secondsFromStart": 0.0}));
    }
    let mut tools = view.tools.iter();
    for (n, (speaker, text)) in (0..).zip(said) {
        let is_bot = *speaker == view.bot;
        let from_start = seconds(at(n) - started);
        // The first time that the bot speaks.
        if is_bot {
            for (id, (name, result)) in tools.by_ref().enumerate() {
                let call = json!({
                    "id": format!("call_{id}"), "type": "function",
                    "function": {"name": name, "arguments": "{}"},
                });
                messages.push(json!({
                    "role": "tool_calls", "toolCalls": [call], "message": "", "time": at(n),
                    "secondsFromStart": from_start,
                }));
                messages.push(json!({
                    "role": "tool_call_result", "toolCallId": format!("call_{id}"), "name": name,
                    "result": result, "time": at(n), "secondsFromStart": from_start,
                }));
            }
        }
        let mut message = json!({
            "role": if is_bot { "bot" } else { "user" }, "message": text, "time": at(n), "endTime": started + spoken(n).1,
            "secondsFromStart": from_start,
        });
        if is_bot {
            message["source"] = json!("");
        }
        messages.push(message);
        transcript += &format!("{}: {text}\n", if is_bot { "AI" } else { "User" });
    }
    // Who ends the call does so with a tool.
    if reason == "assistant-ended-call" && record.started.is_some() {
        let call = json!({
            "id": "call_end", "type": "function", "function": {"name": "endCall", "arguments": "{}"},
        });
        messages.push(json!({
            "role": "tool_calls", "toolCalls": [call], "message": "", "time": ended,
            "secondsFromStart": seconds(ended - started),
        }));
        messages.push(json!({
            "role": "tool_call_result", "toolCallId": "call_end", "name": "endCall", "result": "Success.",
            "time": ended, "secondsFromStart": seconds(ended - started),
        }));
    }
    let recording = format!("https://storage.vapi.example/{}-{}", record.id, view.turns[0]);
    let mut artifact = json!({
        "messages": messages, "messagesOpenAIFormatted": open_ai(&messages), "transcript": transcript,
        "recordingUrl": format!("{recording}-mono.wav"), "stereoRecordingUrl": format!("{recording}-stereo.wav"),
        "recording": {
            "stereoUrl": format!("{recording}-stereo.wav"),
            "mono": {
                "combinedUrl": format!("{recording}-mono.wav"), "assistantUrl": format!("{recording}-assistant.wav"),
                "customerUrl": format!("{recording}-customer.wav"),
            },
        },
        "structuredOutputs": {}, "variableValues": {},
    });
    if !said.is_empty() {
        artifact["performanceMetrics"] = metrics(view.turns);
    }
    let minutes = seconds(ended - started) / 60.0;
    let (model, voice) = (view.cost / 2.0, view.cost / 2.0);
    let mut fields = json!({
        "endedReason": reason, "endedAt": iso(ended), "cost": view.cost,
        "costs": [
            {"type": "model", "model": view.assistant["model"], "promptTokens": 120, "completionTokens": 40,
                "cost": model},
            {"type": "voice", "voice": {"provider": "vapi"}, "characters": 90, "cost": voice},
            {"type": "vapi", "subType": "normal", "minutes": minutes, "cost": 0},
        ],
        "costBreakdown": {
            "transport": 0, "stt": 0, "llm": model, "tts": voice, "vapi": 0, "total": view.cost,
            "llmPromptTokens": 120, "llmCompletionTokens": 40, "ttsCharacters": 90,
        },
        "analysis": {"summary": "They talked.", "successEvaluation": "true"},
        "artifact": artifact,
    });
    if record.started.is_some() {
        fields["startedAt"] = json!(iso(started));
    }
    let Value::Object(fields) = fields else {
        unreachable!()
    };
    fields
}

fn metrics(turns: [u32; 3]) -> Value {
    let latencies = turns.map(|turn| {
        let (model, voice, transcriber) = (turn / 2, turn / 4, turn / 8);
        json!({
            "turnLatency": turn, "modelLatency": model, "voiceLatency": voice, "transcriberLatency": transcriber,
            "endpointingLatency": turn - model - voice - transcriber,
        })
    });
    let average = |field: &str| {
        let sum: f64 = latencies.iter().filter_map(|turn| turn[field].as_f64()).sum();
        sum / 3.0
    };
    json!({
        "turnLatencies": latencies, "turnLatencyAverage": average("turnLatency"),
        "modelLatencyAverage": average("modelLatency"), "voiceLatencyAverage": average("voiceLatency"),
        "transcriberLatencyAverage": average("transcriberLatency"),
        "endpointingLatencyAverage": average("endpointingLatency"),
        "numUserInterrupted": 0, "numAssistantInterrupted": 0,
    })
}

/// The messages of a call as a model takes them.
fn open_ai(messages: &[Value]) -> Vec<Value> {
    let spoken = messages.iter().filter_map(|message| {
        let role = match message["role"].as_str() {
            Some("bot") => "assistant",
            Some(role @ ("user" | "system")) => role,
            _ => return None,
        };
        Some(json!({"role": role, "content": message["message"]}))
    });
    spoken.collect()
}

fn listen_url(id: &str) -> String {
    format!("wss://listen.vapi.example/{id}/listen")
}

fn calls_of(legs: &Legs) -> Value {
    json!({
        "testerCallId": legs.tester_call, "targetCallId": legs.target_call, "listenUrl": listen_url(&legs.target_call),
    })
}

/// The id that the simulation of a run gets: it is made from the inline one, for this run.
fn simulation_id(run: &str) -> String {
    Uuid::new_v5(&run.parse().unwrap(), b"simulation").to_string()
}

/// What every call says of itself.
fn shown(id: &str, kind: &str, record: &VapiRecord, over: Option<&Map<String, Value>>) -> Map<String, Value> {
    let status = match (record.started, record.ended) {
        (_, Some(_)) => "ended",
        (Some(_), None) => "in-progress",
        (None, None) => "queued",
    };
    let updated = record.ended.or(record.started).unwrap_or(record.placed);
    let mut call = Map::new();
    for (name, value) in [
        ("id", json!(id)),
        ("orgId", json!(ORG)),
        ("type", json!(kind)),
        ("createdAt", json!(iso(record.placed))),
        ("updatedAt", json!(iso(updated))),
        ("status", json!(status)),
    ] {
        call.insert(name.to_owned(), value);
    }
    if let Some(over) = over {
        call.extend(over.clone());
    } else if let Some(started) = record.started {
        call.insert("startedAt".to_owned(), json!(iso(started)));
    }
    call
}

/// How an item of a run stands.
fn item_status(line: &Line) -> &'static str {
    match (&line.over, line.record.started) {
        (Some(over), _) if over.get("canceled") == Some(&json!(true)) => "canceled",
        (Some(over), _) if over.contains_key("failureReason") => "failed",
        (Some(_), _) => "passed",
        (None, Some(_)) => "running",
        (None, None) => "queued",
    }
}

fn shown_run(line: &Line, listed: bool) -> Value {
    let record = &line.record;
    let status = match (record.started, record.ended) {
        (_, Some(_)) => "ended",
        (Some(_), None) => "running",
        (None, None) => "queued",
    };
    let item = item_status(line);
    let count = |status: &str| usize::from(item == status);
    let updated = record.ended.or(record.started).unwrap_or(record.placed);
    let mut run = json!({
        "id": record.id, "orgId": ORG, "status": status, "queuedAt": iso(record.placed),
        "createdAt": iso(record.placed), "updatedAt": iso(updated),
        "itemCounts": {
            "total": 1, "passed": count("passed"), "failed": count("failed"), "running": count("running"),
            "queued": count("queued"), "canceled": count("canceled"),
        },
        "simulations": record.body["simulations"], "target": record.body["target"], "iterations": 1,
        "transport": record.body.get("transport").unwrap_or(&json!({"provider": "vapi.websocket"})),
    });
    if let Some(started) = record.started {
        run["startedAt"] = json!(iso(started));
    }
    if let Some(ended) = record.ended {
        run["endedAt"] = json!(iso(ended));
        run["endedReason"] = json!(if item == "canceled" {
            "canceled"
        } else {
            "completed"
        });
    }
    if listed {
        run["summary"] = json!({
            "source": {"type": "adHoc", "name": "Ad hoc", "linkable": false, "simulationIds": []},
            "simulationCount": 1,
        });
    }
    run
}

fn shown_item(log: &Log, line: &Line) -> Value {
    let record = &line.record;
    let legs = record.legs.as_ref().unwrap();
    let status = item_status(line);
    let updated = record.ended.or(record.started).unwrap_or(record.placed);
    let entry = &record.body["simulations"][0];
    let mut item = json!({
        "id": legs.item, "orgId": ORG, "simulationId": simulation_id(&record.id), "runId": record.id,
        "status": status, "queuedAt": iso(record.placed), "createdAt": iso(record.placed),
        "updatedAt": iso(updated), "iterationNumber": 1, "hooks": entry["scenario"]["hooks"],
        "metadata": {
            "assistant": log.target(&record.body), "scenario": entry["scenario"],
            "personality": entry["personality"],
            "simulation": {"id": simulation_id(&record.id), "name": entry["scenario"]["name"]},
        },
        "configurations": {"transport": {"provider": "vapi.websocket"}},
    });
    if let Some(started) = record.started {
        item["startedAt"] = json!(iso(started));
        item["callId"] = json!(legs.target_call);
        item["metadata"]["call"] = json!({"monitor": {"listenUrl": listen_url(&legs.target_call)}});
    }
    let Some(over) = &line.over else { return item };
    for field in ["transcript", "messages", "recordingUrl"] {
        if let Some(value) = over.get(field) {
            item["metadata"]["call"][field] = value.clone();
        }
    }
    let ended = json!(iso(record.ended.unwrap()));
    match status {
        "canceled" => item["canceledAt"] = ended,
        "failed" => {
            item["failedAt"] = ended;
            item["failureReason"] = over["failureReason"].clone();
        }
        _ => {
            item["completedAt"] = ended;
            item["results"] = json!({"passed": true, "evaluations": [{
                "structuredOutputId": "inline", "name": "ringback", "extractedValue": true, "expectedValue": true,
                "comparator": "=", "passed": true, "required": false,
            }]});
        }
    }
    item
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

/// An error as Vapi says it.
fn problem(status: u16, message: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    let error = status.canonical_reason().unwrap_or("Error");
    let body = json!({"message": message, "error": error, "statusCode": status.as_u16()});
    (status, Json(body)).into_response()
}

fn found(status: u16, body: &Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn idempotency_key(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("idempotency-key")?.to_str().ok()?.to_owned())
}

/// A request, taken apart.
struct Request {
    headers: HeaderMap,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    fn json(&self) -> Result<Value, Refusal> {
        Ok(read_json(&self.headers, &self.body)?)
    }

    /// One of the parameters.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(named, _)| named == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A whole number from the parameters.
    fn number(&self, name: &str, within: std::ops::RangeInclusive<usize>) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if within.contains(&number) => Ok(Some(number)),
            _ => Err(format!("{name} must be within {within:?}, not {text}").into()),
        }
    }

    /// Whether something is within the times of the parameters.
    fn in_time(&self, entry: &Value) -> Result<bool, Refusal> {
        for field in ["createdAt", "updatedAt"] {
            let (at, _) = around_iso(entry[field].as_str().unwrap()).unwrap();
            for comparison in ["Gt", "Lt", "Ge", "Le"] {
                let name = format!("{field}{comparison}");
                let Some(text) = self.get(&name) else { continue };
                let Some((before, after)) = around_iso(text) else {
                    return Err(format!("{name} must be an ISO 8601 date, not {text}").into());
                };
                let fits = match comparison {
                    "Gt" => at > before,
                    "Lt" => at < after,
                    "Ge" => at >= after,
                    _ => at <= before,
                };
                if !fits {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The parameters are among these and those of every list, each once.
    fn check_query(&self, more: &[&str]) -> Result<(), Refusal> {
        let mut seen = Vec::new();
        for (name, _) in &self.query {
            let time = ["createdAt", "updatedAt"]
                .iter()
                .find_map(|field| name.strip_prefix(field))
                .is_some_and(|comparison| ["Gt", "Lt", "Ge", "Le"].contains(&comparison));
            let known = more.contains(&name.as_str()) || (!more.is_empty() && time);
            if !known || seen.contains(&name) {
                return Err(format!("property {name} should not exist").into());
            }
            seen.push(name);
        }
        Ok(())
    }

    /// There is nothing but a path.
    fn check_bare(&self) -> Result<(), Refusal> {
        self.check_query(&[])?;
        if self.body.is_empty() {
            Ok(())
        } else {
            Err("there should be no body".to_owned().into())
        }
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let url = Url::parse(&format!("http://vapi{uri}")).unwrap();
    let request = Request {
        headers,
        query: url.query_pairs().into_owned().collect(),
        body,
    };
    let path: Vec<&str> = url.path().split('/').skip(1).collect();
    let is_control = matches!(path[..], [_, "control"]);
    let answered = match check_key(&request.headers, shared.carrier.key()) {
        // Who knows the URL may control the call.
        Err(fault) if !is_control => Err(Refusal::Fault(401, vec![fault.to_owned()])),
        _ => shared.route(&method, &path, &request).await,
    };
    shared.carrier.changed();
    match answered {
        Ok(answer) => answer,
        Err(Refusal::Answer(status, message)) => problem(status, &json!(message)),
        Err(Refusal::Fault(status, messages)) => {
            for message in &messages {
                shared
                    .carrier
                    .fault(format!("{method} {}: {message}", url.path()));
            }
            if status == 401 {
                return problem(401, &json!("Invalid Key."));
            }
            problem(status, &json!(messages))
        }
    }
}

/// An id in a path.
fn check_id(id: &str) -> Result<(), Refusal> {
    match id.parse::<Uuid>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("id must be a UUID, not {id}").into()),
    }
}

fn unknown(what: &str, id: &str) -> Refusal {
    Refusal::Answer(404, format!("Couldn't find {what} {id}"))
}

impl Shared {
    async fn route(
        self: &Arc<Self>,
        method: &Method,
        path: &[&str],
        request: &Request,
    ) -> Result<Response, Refusal> {
        match (method.as_str(), path) {
            ("POST", ["eval", "simulation", "run"]) => self.place_checked(request, "run").await,
            ("GET", ["eval", "simulation", "run"]) => self.list_runs(request),
            ("GET", ["eval", "simulation", "run", id]) => {
                self.look(request, id, |_, line| shown_run(line, false))
            }
            ("PATCH", ["eval", "simulation", "run", id]) => self.cancel(request, id),
            ("GET", ["eval", "simulation", "run", id, "item"]) => self.list_items(request, id),
            ("POST", ["call"]) => self.place_checked(request, "call").await,
            ("GET", ["call"]) => self.list_calls(request),
            ("GET", ["call", id]) => {
                let mut log = self.log();
                log.asked.by_id += 1;
                request.check_bare()?;
                check_id(id)?;
                let call = self.find_call(&log, id);
                Ok(found(200, &call.ok_or_else(|| unknown("call", id))?))
            }
            ("POST", [id, "control"]) => self.control(request, id),
            ("POST", ["chat"]) => self.chat(request).await,
            ("GET", ["assistant", id]) => {
                let mut log = self.log();
                log.asked.assistants += 1;
                request.check_bare()?;
                check_id(id)?;
                let assistant = log.assistants.get(*id).ok_or_else(|| unknown("assistant", id))?;
                let mut assistant = assistant.clone();
                assistant["id"] = json!(id);
                assistant["orgId"] = json!(ORG);
                assistant["createdAt"] = json!("2026-01-01T00:00:00.000Z");
                assistant["updatedAt"] = json!("2026-01-02T00:00:00.000Z");
                Ok(found(200, &assistant))
            }
            _ => Err(Refusal::Fault(
                404,
                vec![format!("Cannot {method} /{}", path.join("/"))],
            )),
        }
    }

    /// Creates a run or places a call, if the order is right.
    async fn place_checked(self: &Arc<Self>, request: &Request, what: &str) -> Result<Response, Refusal> {
        self.log().asked.placings += 1;
        self.carrier.changed();
        let body = request.json()?;
        request.check_query(&[])?;
        {
            let log = self.log();
            check(&SCHEMAS[what], &body, |faults| {
                if what == "run" {
                    check_run(&log, &body, faults);
                } else {
                    check_call(&log, &body, faults);
                }
            })?;
            for id in assistants_named(&body) {
                if !log.assistants.contains_key(id) {
                    return Err(Refusal::Answer(400, format!("Couldn't find assistant {id}")));
                }
            }
        }
        let decision = self.carrier.decide().await;
        if let Some(answer) = self.refused(decision) {
            return Ok(answer);
        }
        let (id, talk) = self.place(&request.headers, body);
        if self.carrier.delivery() == Delivery::Early {
            Arc::clone(self).play(id.clone(), talk.unwrap_or_default()).await;
        } else if let Some(talk) = talk {
            self.carrier.spawn(Arc::clone(self).play(id.clone(), talk));
        }
        self.carrier.may_answer().await;
        if let Decision::Unanswered { hang_up } = decision {
            return Ok(unanswered(hang_up));
        }
        let mut log = self.log();
        let line = log.line(&id);
        let answer = match &line.record.legs {
            None => {
                // It answers what it was when it was placed.
                let mut call = self.shown_call(&Line {
                    record: VapiRecord {
                        started: None,
                        ended: None,
                        ..line.record.clone()
                    },
                    over: None,
                    legs: Default::default(),
                });
                call["cost"] = json!(0);
                call
            }
            Some(legs) => json!({
                "id": id, "orgId": ORG, "status": "queued", "queuedAt": iso(line.record.placed),
                "createdAt": iso(line.record.placed), "updatedAt": iso(line.record.placed),
                "simulations": line.record.body["simulations"], "target": line.record.body["target"],
                "iterations": 1, "transport": {"provider": "vapi.websocket"},
                "simulationRunItemIds": [legs.item],
                "url": format!("https://dashboard.vapi.example/simulations/runs/{id}"),
            }),
        };
        Ok(found(201, &answer))
    }

    /// What it answers where it does nothing.
    fn refused(&self, decision: Decision) -> Option<Response> {
        let answer = match decision {
            Decision::Accept | Decision::Unanswered { .. } => return None,
            Decision::Refuse(status) => problem(status, &json!("the stand-in was told to refuse")),
            Decision::Busy(seconds) => {
                let mut answer = problem(429, &json!("ThrottlerException: Too Many Requests"));
                answer
                    .headers_mut()
                    .insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
                answer
            }
        };
        self.log().asked.refused += 1;
        self.carrier.changed();
        Some(answer)
    }

    /// A run by its id.
    fn look(&self, request: &Request, id: &str, say: fn(&Log, &Line) -> Value) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.by_id += 1;
        request.check_bare()?;
        check_id(id)?;
        let line = run_of(&log, id)?;
        Ok(found(200, &say(&log, line)))
    }

    fn list_items(&self, request: &Request, id: &str) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.by_id += 1;
        request.check_query(&[
            "page",
            "limit",
            "sortOrder",
            "sortBy",
            "status",
            "simulationId",
            "runId",
        ])?;
        check_id(id)?;
        let item = shown_item(&log, run_of(&log, id)?);
        let wanted = ["status", "simulationId", "runId"]
            .iter()
            .all(|name| request.get(name).is_none_or(|wanted| item[*name] == wanted));
        let items = if wanted { vec![item] } else { Vec::new() };
        listed(request, items)
    }

    fn list_runs(&self, request: &Request) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.lists += 1;
        request.check_query(&[
            "page",
            "limit",
            "sortOrder",
            "sortBy",
            "status",
            "filterStatus",
            "targetType",
            "targetId",
        ])?;
        let paged = request.get("page").or(request.get("limit")).is_some();
        let runs = log.lines.iter().filter(|line| line.record.legs.is_some());
        let runs = runs.map(|line| shown_run(line, paged));
        let runs = runs.filter(|run| {
            let result = match (run["status"].as_str(), run["itemCounts"]["passed"].as_u64()) {
                (Some("ended"), Some(1)) => "passed",
                (Some("ended"), _) => "failed",
                _ => "running",
            };
            let target = &run["target"];
            let target_id = target.get("assistantId").or(target.get("squadId"));
            [
                ("status", run["status"].as_str()),
                ("filterStatus", Some(result)),
                ("targetType", target["type"].as_str()),
                ("targetId", target_id.and_then(Value::as_str)),
            ]
            .iter()
            .all(|(name, is)| request.get(name).is_none_or(|wanted| *is == Some(wanted)))
        });
        listed(request, runs.collect())
    }

    fn list_calls(&self, request: &Request) -> Result<Response, Refusal> {
        let mut log = self.log();
        log.asked.lists += 1;
        request.check_query(&["id", "assistantId", "phoneNumberId", "limit"])?;
        let limit = request.number("limit", 0..=1000)?.unwrap_or(100);
        let mut calls = Vec::new();
        for call in self.all_calls(&log).into_iter().rev() {
            let wanted = ["id", "assistantId", "phoneNumberId"]
                .iter()
                .all(|name| request.get(name).is_none_or(|wanted| call[*name] == wanted));
            if request.in_time(&call)? && wanted {
                calls.push(call);
            }
        }
        calls.truncate(limit);
        Ok(found(200, &json!(calls)))
    }

    fn cancel(self: &Arc<Self>, request: &Request, id: &str) -> Result<Response, Refusal> {
        {
            let mut log = self.log();
            log.asked.cancels += 1;
            request.check_bare()?;
            check_id(id)?;
            run_of(&log, id)?;
            log.line(id).record.end_requests += 1;
        }
        self.carrier.changed();
        let (webhooks, now) = self.end(id, "manually-canceled", true);
        if !now {
            return Err(Refusal::Answer(400, "Run has already ended".to_owned()));
        }
        self.tell(id, webhooks);
        let mut log = self.log();
        Ok(found(200, &shown_run(log.line(id), false)))
    }

    fn control(self: &Arc<Self>, request: &Request, id: &str) -> Result<Response, Refusal> {
        let kind = {
            let mut log = self.log();
            log.asked.controls += 1;
            let body = request.json()?;
            check(&SCHEMAS["control"], &body, |_| {})?;
            match log.find(id) {
                Some(index) if log.lines[index].record.legs.is_none() => {}
                _ => return Err(unknown("call", id)),
            }
            let record = &mut log.line(id).record;
            if body["type"] == "end-call" {
                record.end_requests += 1;
            }
            if record.ended.is_some() {
                return Err(Refusal::Answer(404, format!("call {id} is over")));
            }
            body["type"].clone()
        };
        self.carrier.changed();
        if kind == "end-call" {
            let (webhooks, _) = self.end(id, "manually-canceled", true);
            self.tell(id, webhooks);
        }
        Ok(found(200, &json!({"success": true})))
    }

    /// Sends what is to be sent at the end of a call, while its end is answered.
    fn tell(self: &Arc<Self>, id: &str, webhooks: Vec<Webhook>) {
        let (shared, id) = (Arc::clone(self), id.to_owned());
        self.carrier
            .spawn(async move { shared.carrier.over(&id, webhooks).await });
    }

    async fn chat(&self, request: &Request) -> Result<Response, Refusal> {
        self.log().asked.placings += 1;
        self.carrier.changed();
        let body = request.json()?;
        request.check_query(&[])?;
        let (assistant, before) = {
            let log = self.log();
            check(&SCHEMAS["chat"], &body, |faults| {
                exactly_one("", &body, &["assistantId", "assistant"], faults);
                if body["stream"] == true {
                    faults.push("stream: the stand-in does not stream".to_owned());
                }
            })?;
            let assistant = match body["assistantId"].as_str() {
                None => body["assistant"].clone(),
                Some(id) => match log.assistants.get(id) {
                    Some(assistant) => assistant.clone(),
                    None => return Err(Refusal::Answer(400, format!("Couldn't find assistant {id}"))),
                },
            };
            let before = match body["previousChatId"].as_str() {
                None => Vec::new(),
                Some(id) => {
                    let mut chats = log.chats.iter();
                    let Some(before) = chats.find(|chat| chat.id == id) else {
                        return Err(Refusal::Answer(404, format!("Couldn't find previous chat {id}")));
                    };
                    if before.body.get("assistantId") != body.get("assistantId") {
                        let fault = format!("previousChatId: {id} is a chat of another assistant");
                        return Err(fault.into());
                    }
                    [&before.messages[..], &before.output[..]].concat()
                }
            };
            (assistant, before)
        };
        let input = match &body["input"] {
            Value::String(text) => vec![json!({"role": "user", "content": text})],
            input => input.as_array().unwrap().clone(),
        };
        let messages = [before, input].concat();
        check_tool_messages(&messages)?;
        let decision = self.carrier.decide().await;
        if let Some(answer) = self.refused(decision) {
            return Ok(answer);
        }
        let assistant = with_variables(&assistant, &body["assistantOverrides"]["variableValues"]);
        let record = {
            let mut log = self.log();
            let record = ChatRecord {
                id: Uuid::now_v7().to_string(),
                idempotency_key: idempotency_key(&request.headers),
                output: (log.replies)(&assistant, &messages),
                body,
                messages,
                at: SystemClock.now_ms(),
            };
            log.chats.push(record.clone());
            record
        };
        self.carrier.changed();
        if let Decision::Unanswered { hang_up } = decision {
            return Ok(unanswered(hang_up));
        }
        let mut chat = record.body;
        let costs = json!([
            {"type": "model", "model": assistant["model"], "promptTokens": 20, "completionTokens": 5, "cost": 0.0011},
            {"type": "chat", "cost": 0.001},
        ]);
        for (field, value) in [
            ("id", json!(record.id)),
            ("orgId", json!(ORG)),
            ("createdAt", json!(iso(record.at))),
            ("updatedAt", json!(iso(record.at))),
            ("messages", json!(record.messages)),
            ("output", json!(record.output)),
            ("cost", json!(CHAT_COST)),
            ("costs", costs),
        ] {
            chat[field] = value;
        }
        Ok(found(201, &chat))
    }
}

fn unanswered(hang_up: bool) -> Response {
    if hang_up {
        hung_up()
    } else {
        problem(500, &json!("the stand-in was told not to say what it did"))
    }
}

fn run_of<'a>(log: &'a Log, id: &str) -> Result<&'a Line, Refusal> {
    let index = log.find(id).ok_or_else(|| unknown("simulation run", id))?;
    match &log.lines[index] {
        line if line.record.legs.is_some() => Ok(line),
        _ => Err(unknown("simulation run", id)),
    }
}

/// A list as it is asked for: bare where neither `page` nor `limit` is, the newest first unless it is asked for otherwise.
fn listed(request: &Request, all: Vec<Value>) -> Result<Response, Refusal> {
    let page = request.number("page", 1..=usize::MAX)?;
    let limit = request.number("limit", 0..=1000)?;
    let ascending = match request.get("sortOrder") {
        None | Some("DESC") => false,
        Some("ASC") => true,
        Some(other) => return Err(format!("sortOrder must be ASC or DESC, not {other}").into()),
    };
    if !matches!(request.get("sortBy"), None | Some("createdAt")) {
        return Err("sortBy: the stand-in sorts by createdAt".to_owned().into());
    }
    let mut entries = Vec::new();
    for entry in all {
        if request.in_time(&entry)? {
            entries.push(entry);
        }
    }
    if !ascending {
        entries.reverse();
    }
    let (number, size, total) = (page.unwrap_or(1), limit.unwrap_or(100), entries.len());
    let skipped = (number - 1).saturating_mul(size);
    let entries: Vec<Value> = entries.into_iter().skip(skipped).take(size).collect();
    if page.or(limit).is_none() {
        return Ok(found(200, &json!(entries)));
    }
    let metadata = json!({
        "itemsPerPage": size, "totalItems": total, "currentPage": number,
        "totalPages": total.div_ceil(size.max(1)), "hasNextPage": skipped + entries.len() < total,
        "sortOrder": if ascending { "ASC" } else { "DESC" },
    });
    Ok(found(200, &json!({"results": entries, "metadata": metadata})))
}

/// An assistant whose prompts have their variables filled in.
fn with_variables(assistant: &Value, variables: &Value) -> Value {
    let mut assistant = assistant.clone();
    let messages = assistant["model"]
        .get_mut("messages")
        .and_then(Value::as_array_mut);
    for message in messages.into_iter().flatten() {
        let Some(text) = message["content"].as_str() else {
            continue;
        };
        let mut text = text.to_owned();
        for (name, value) in variables.as_object().into_iter().flatten() {
            let value = match value {
                Value::String(value) => value.clone(),
                other => other.to_string(),
            };
            for form in [format!("{{{{{name}}}}}"), format!("{{{{ {name} }}}}")] {
                text = text.replace(&form, &value);
            }
        }
        message["content"] = json!(text);
    }
    assistant
}

/// What an assistant answers unless a test says otherwise: what its directive says (`say`, `tool` and `place`, as in
/// [`crate::stand_in`]). Vapi runs a tool itself before it answers.
fn usual_reply(assistant: &Value, messages: &[Value]) -> Vec<Value> {
    let prompts = prompts(assistant);
    let directive = prompts.iter().find_map(|prompt| directive(prompt));
    let directive = directive.unwrap_or_default();
    let reply = |content: String| json!({"role": "assistant", "content": content});
    if let Some(say) = directive["say"].as_str() {
        return vec![reply(say.to_owned())];
    }
    let turn = messages
        .iter()
        .filter(|message| message["role"] == "user")
        .count();
    let place = directive["place"].as_str().unwrap_or("vapi");
    match directive["tool"].as_str().filter(|_| turn == 1) {
        None => vec![reply(format!("Answer {turn} from {place}."))],
        Some(tool) => {
            let call = json!({
                "id": "call_tool", "type": "function",
                "function": {"name": tool, "arguments": "{\"day\":\"Monday\"}"},
            });
            let result = format!("{tool} ran for real");
            vec![
                json!({"role": "assistant", "tool_calls": [call]}),
                json!({"role": "tool", "tool_call_id": "call_tool", "content": result}),
                reply(format!("Answer {turn} from {place}. The tool says {result}.")),
            ]
        }
    }
}

/// What a tool gave back follows the call of that tool.
fn check_tool_messages(messages: &[Value]) -> Result<(), Refusal> {
    let mut called = Vec::new();
    for message in messages {
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        called.extend(calls.map(|call| &call["id"]));
        if message["role"] == "tool" && !called.contains(&&message["tool_call_id"]) {
            return Err(format!("input: no tool was called before {message}").into());
        }
    }
    Ok(())
}

/// Everything that is wrong with a body: first what the schema says, then what only `more` knows.
fn check(schema: &Validator, body: &Value, more: impl FnOnce(&mut Vec<String>)) -> Result<(), Refusal> {
    let mut faults = complaints(schema, body);
    if faults.is_empty() {
        more(&mut faults);
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Fault(400, faults))
    }
}

fn exactly_one(at: &str, object: &Value, names: &[&str], faults: &mut Vec<String>) {
    let given: Vec<&&str> = names.iter().filter(|name| object.get(**name).is_some()).collect();
    if given.len() != 1 {
        faults.push(format!("{at}: exactly one of {names:?} is needed, not {given:?}"));
    }
}

/// The ids of the assistants that an order names.
fn assistants_named(body: &Value) -> Vec<&str> {
    let members = body["target"]["squad"]["members"].as_array();
    let members = members.into_iter().flatten();
    [body, &body["target"]]
        .into_iter()
        .chain(members)
        .filter_map(|of| of["assistantId"].as_str())
        .collect()
}

/// What the schema of a run does not say.
fn check_run(log: &Log, body: &Value, faults: &mut Vec<String>) {
    let entries = body["simulations"].as_array().unwrap();
    if entries.len() != 1 || body["iterations"].as_f64().is_some_and(|n| n > 1.0) {
        faults.push("the stand-in plays runs of one item only".to_owned());
    }
    if body["transport"]["provider"] == "vapi.webchat" {
        faults.push("transport: the stand-in does not chat in runs".to_owned());
    }
    let target = &body["target"];
    match target["type"].as_str() {
        Some("squad") => {
            exactly_one("target", target, &["squadId", "squad"], faults);
            if target.get("squadId").is_some() {
                faults.push("target.squadId: there is no such squad".to_owned());
            }
            let members = target["squad"]["members"].as_array().into_iter().flatten();
            for (n, member) in members.enumerate() {
                let at = format!("target.squad.members.{n}");
                exactly_one(&at, member, &["assistantId", "assistant"], faults);
            }
        }
        _ => exactly_one("target", target, &["assistantId", "assistant"], faults),
    }
    for (n, entry) in entries.iter().enumerate() {
        let at = format!("simulations.{n}");
        for [by_id, inline] in [["scenarioId", "scenario"], ["personalityId", "personality"]] {
            exactly_one(&at, entry, &[by_id, inline], faults);
        }
        for id in ["simulationId", "scenarioId", "personalityId"] {
            if entry.get(id).is_some() {
                faults.push(format!("{at}.{id}: there is no such definition"));
            }
        }
        let evaluations = entry["scenario"]["evaluations"].as_array().into_iter().flatten();
        for (m, evaluation) in evaluations.enumerate() {
            check_evaluation(&format!("{at}.scenario.evaluations.{m}"), evaluation, faults);
        }
        let hooks = entry["scenario"]["hooks"].as_array().into_iter().flatten();
        let actions = hooks.flat_map(|hook| hook["do"].as_array().into_iter().flatten());
        for action in actions {
            check_server(log, &action["server"], faults);
        }
    }
}

fn check_evaluation(at: &str, evaluation: &Value, faults: &mut Vec<String>) {
    let both = ["structuredOutputId", "structuredOutput"];
    exactly_one(at, evaluation, &both, faults);
    let Some(output) = evaluation.get("structuredOutput") else {
        faults.push(format!("{at}: there is no such structured output"));
        return;
    };
    if (output["type"] == "regex") != output.get("regex").is_some() {
        faults.push(format!("{at}.structuredOutput: type and regex do not match"));
    }
    let value = &evaluation["value"];
    let fits = match output["schema"]["type"].as_str() {
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|value| value.fract() == 0.0),
        other => {
            faults.push(format!(
                "{at}.structuredOutput.schema.type: {other:?} is no primitive"
            ));
            return;
        }
    };
    if !fits {
        faults.push(format!(
            "{at}.value: {value} does not have the type of the output"
        ));
    }
    let compares = !matches!(evaluation["comparator"].as_str(), Some("=" | "!="));
    if compares && !value.is_number() {
        faults.push(format!("{at}.comparator: only numbers can be compared so"));
    }
}

fn check_server(log: &Log, server: &Value, faults: &mut Vec<String>) {
    if let Some(id) = server["credentialId"].as_str()
        && !log.credentials.contains_key(id)
    {
        faults.push(format!("server.credentialId: there is no credential {id}"));
    }
}

/// What the schema of a call does not say.
fn check_call(log: &Log, body: &Value, faults: &mut Vec<String>) {
    exactly_one("", body, &["assistantId", "assistant"], faults);
    if body["phoneNumberId"] != PHONE_NUMBER {
        faults.push(format!(
            "phoneNumberId: {} is no number of this org",
            body["phoneNumberId"]
        ));
    }
    check_server(log, &body["assistant"]["server"], faults);
}

static SCHEMAS: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| {
    let definitions = definitions();
    let names = ["run", "call", "chat", "control", "assistant"];
    names
        .into_iter()
        .map(|name| (name, validator(&definitions, name)))
        .collect()
});

/// An object with these fields and no others.
fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
}

fn text(longest: usize) -> Value {
    json!({"type": "string", "maxLength": longest})
}

fn one_of(names: &[&str]) -> Value {
    json!({"type": "string", "enum": names})
}

fn list_of(items: &Value) -> Value {
    json!({"type": "array", "items": items})
}

fn some_of(items: &Value) -> Value {
    json!({"type": "array", "items": items, "minItems": 1})
}

fn within(from: f64, to: f64) -> Value {
    json!({"type": "number", "minimum": from, "maximum": to})
}

fn whole(from: u32, to: u32) -> Value {
    json!({"type": "integer", "minimum": from, "maximum": to})
}

fn defined(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

/// What Vapi takes, from its types (`vapi_server_sdk` 3.0.0) and its OpenAPI description.
fn definitions() -> Value {
    let string = json!({"type": "string"});
    let name = json!({"type": "string", "minLength": 1, "maxLength": 80});
    let flag = json!({"type": "boolean"});
    let anything = json!({"type": "object"});
    let uuid = json!({"type": "string", "format": "uuid"});
    let path = json!({
        "type": ["string", "null"], "maxLength": 255,
        "pattern": "^[a-zA-Z0-9][a-zA-Z0-9._-]*(?:/[a-zA-Z0-9][a-zA-Z0-9._-]*){0,2}$",
    });
    let backoff = object(
        &["type", "maxRetries", "baseDelaySeconds"],
        json!({
            "type": one_of(&["fixed", "exponential"]), "maxRetries": whole(0, 10),
            "baseDelaySeconds": within(0.0, 10.0), "excludedStatusCodes": list_of(&whole(100, 599)),
        }),
    );
    let server = object(
        &["url"],
        json!({
            "url": {"type": "string", "format": "uri", "pattern": "^https?://"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "credentialId": string, "timeoutSeconds": within(1.0, 300.0), "backoffPlan": backoff,
            "staticIpAddressesEnabled": flag, "encryptedPaths": list_of(&string),
        }),
    );
    let assistant = assistant_properties();
    let mut overrides = assistant.clone();
    overrides["variableValues"] = anything.clone();
    overrides["tools:append"] = list_of(&defined("tool"));
    let action = object(
        &["type"],
        json!({
            "type": one_of(&["webhook"]), "server": defined("server"),
            "include": object(&[], json!({"transcript": flag, "messages": flag, "recordingUrl": flag})),
        }),
    );
    let on = one_of(&["simulation.run.started", "simulation.run.ended"]);
    let output = object(
        &["name", "schema"],
        json!({
            "name": {"type": "string", "minLength": 1, "maxLength": 40}, "type": one_of(&["ai", "regex"]),
            "regex": {"type": "string", "minLength": 1, "maxLength": 1000},
            "schema": {"type": "object", "required": ["type"]}, "model": anything, "compliancePlan": anything,
            "conditions": {"type": ["array", "null"]}, "description": string, "assistantIds": list_of(&uuid),
            "workflowIds": list_of(&uuid),
        }),
    );
    let evaluation = object(
        &["comparator", "value"],
        json!({
            "structuredOutputId": uuid, "structuredOutput": output, "path": string,
            "comparator": one_of(&["=", "!=", ">", "<", ">=", "<="]),
            "value": {"type": ["number", "string", "boolean"]}, "required": flag,
        }),
    );
    let expectation = object(
        &["metric", "aggregation", "thresholdMs"],
        json!({
            "metric": one_of(&["turn", "model", "voice"]),
            "aggregation": one_of(&["mean", "median", "p95", "max"]), "thresholdMs": {"type": "number"},
            "required": flag,
        }),
    );
    let scenario = object(
        &["name", "instructions", "evaluations"],
        json!({
            "name": name, "instructions": text(10_000), "evaluations": some_of(&evaluation),
            "hooks": list_of(&object(&["on", "do"], json!({"on": on, "do": some_of(&action)}))),
            "targetOverrides": object(&[], overrides.clone()),
            "toolMocks": list_of(&object(
                &["toolName"],
                json!({"toolName": string, "result": string, "enabled": flag}),
            )),
            "latencyExpectations": list_of(&expectation), "path": path,
        }),
    );
    let personality = object(
        &["name", "assistant"],
        json!({"name": name, "assistant": defined("assistant"), "path": path}),
    );
    let entry = object(
        &["type"],
        json!({
            "type": one_of(&["simulation"]), "simulationId": uuid, "scenarioId": uuid, "scenario": scenario,
            "personalityId": uuid, "personality": personality, "name": text(80),
        }),
    );
    let member = object(
        &[],
        json!({
            "assistantId": uuid, "assistant": defined("assistant"),
            "assistantOverrides": object(&[], overrides.clone()), "assistantDestinations": {"type": "array"},
            "assistantVersion": string,
        }),
    );
    let squad = object(
        &["members"],
        json!({"name": string, "members": some_of(&member), "membersOverrides": object(&[], overrides.clone())}),
    );
    let run = object(
        &["simulations", "target"],
        json!({
            "simulations": some_of(&entry), "iterations": whole(1, 10),
            "transport": object(&["provider"], json!({"provider": one_of(&["vapi.websocket", "vapi.webchat"])})),
            "target": {
                "type": "object", "required": ["type"],
                "properties": {"type": one_of(&["assistant", "squad"])},
                "if": {"properties": {"type": {"const": "squad"}}},
                "then": object(&[], json!({"type": true, "squadId": uuid, "squad": squad})),
                "else": object(&[], json!({"type": true, "assistantId": uuid, "assistant": defined("assistant")})),
            },
        }),
    );
    let customer = object(
        &["number"],
        json!({
            "number": {"type": "string", "pattern": "^\\+[1-9]\\d{1,14}$"}, "numberE164CheckEnabled": flag,
            "extension": text(10), "name": text(40), "email": text(40), "externalId": text(40),
            "assistantOverrides": object(&[], overrides.clone()),
        }),
    );
    let call = object(
        &["customer", "phoneNumberId"],
        json!({
            "name": text(40), "assistantId": uuid, "assistant": defined("assistant"), "phoneNumberId": uuid,
            "customer": customer, "assistantOverrides": object(&[], overrides),
        }),
    );
    json!({
        "server": server, "assistant": object(&[], assistant), "model": model(), "tool": tool(),
        "monitorPlan": object(&[], json!({
            "listenEnabled": flag, "listenAuthenticationEnabled": flag, "controlEnabled": flag,
            "controlAuthenticationEnabled": flag, "monitorIds": list_of(&uuid),
        })),
        "run": run, "call": call, "chat": chat(),
        "control": object(&["type"], json!({
            "type": one_of(&["end-call", "say", "add-message", "control", "transfer", "handoff"]),
            "content": string, "endCallAfterSpoken": flag, "message": anything, "control": string,
            "destination": anything,
        })),
    })
}

/// The fields of `CreateAssistantDTO`.
fn assistant_properties() -> Value {
    let string = json!({"type": "string"});
    let flag = json!({"type": "boolean"});
    let anything = json!({"type": "object"});
    let provided =
        json!({"type": "object", "required": ["provider"], "properties": {"provider": {"type": "string"}}});
    json!({
        "name": text(40), "model": defined("model"), "voice": provided, "transcriber": provided,
        "firstMessage": string, "firstMessageInterruptionsEnabled": flag,
        "firstMessageMode": one_of(&[
            "assistant-speaks-first", "assistant-speaks-first-with-model-generated-message", "assistant-waits-for-user",
        ]),
        "voicemailDetection": {"type": ["string", "object"]}, "clientMessages": list_of(&string),
        "serverMessages": list_of(&one_of(&[
            "assistant.started", "assistant.speechStarted", "conversation-update", "end-of-call-report",
            "function-call", "hang", "language-changed", "language-change-detected", "model-output",
            "phone-call-control", "speech-update", "status-update", "transcript",
            "transcript[transcriptType=\"final\"]", "tool-calls", "transfer-destination-request",
            "handoff-destination-request", "transfer-update", "user-interrupted", "voice-input", "chat.created",
            "chat.deleted", "session.created", "session.updated", "session.deleted", "call.deleted",
            "call.delete.failed", "call.artifact.upload",
        ])),
        "maxDurationSeconds": within(10.0, 43_200.0), "backgroundSound": string,
        "modelOutputInMessagesEnabled": flag, "transportConfigurations": list_of(&anything),
        "observabilityPlan": anything, "credentials": list_of(&anything), "hooks": list_of(&anything),
        "voicemailMessage": text(1000), "endCallMessage": text(1000), "endCallPhrases": list_of(&string),
        "compliancePlan": anything, "metadata": anything, "backgroundSpeechDenoisingPlan": anything,
        "analysisPlan": anything, "artifactPlan": anything, "startSpeakingPlan": anything,
        "stopSpeakingPlan": anything, "monitorPlan": defined("monitorPlan"), "credentialIds": list_of(&string),
        "server": defined("server"), "keypadInputPlan": anything,
    })
}

/// The fields of all models together.
fn model() -> Value {
    let string = json!({"type": "string"});
    let flag = json!({"type": "boolean"});
    let anything = json!({"type": "object"});
    let role = one_of(&["assistant", "function", "user", "system", "tool"]);
    let message = object(
        &["role"],
        json!({"role": role, "content": {"type": ["string", "null"]}}),
    );
    let mut model = object(
        &["provider", "model"],
        json!({
            "provider": one_of(&[
                "anthropic", "anthropic-bedrock", "anyscale", "cerebras", "custom-llm", "deepinfra", "deep-seek",
                "google", "groq", "inflection-ai", "minimax", "openai", "openrouter", "perplexity-ai",
                "together-ai", "xai", "vapi",
            ]),
            "model": string, "messages": list_of(&message), "tools": list_of(&defined("tool")),
            "toolIds": list_of(&string), "toolRefs": list_of(&anything), "knowledgeBase": anything,
            "speaker": anything, "reasoner": anything, "fallbackModels": list_of(&string),
            "toolStrictCompatibilityMode": string, "promptCacheRetention": string, "promptCacheKey": string,
            "serviceTier": string, "reasoningEffort": string, "temperature": within(0.0, 2.0),
            "maxTokens": within(50.0, 10_000.0), "emotionRecognitionEnabled": flag,
            "numFastTurns": {"type": "number", "minimum": 0}, "metadataSendMode": string,
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "url": {"type": "string", "format": "uri"}, "wordLevelConfidenceEnabled": flag,
            "timeoutSeconds": within(0.0, 300.0), "thinking": anything, "realtimeConfig": anything,
            "version": string, "workflowId": string, "workflow": anything,
        }),
    );
    model["if"] = json!({"properties": {"provider": {"const": "custom-llm"}}});
    model["then"] = json!({"required": ["url"]});
    model
}

fn tool() -> Value {
    let string = json!({"type": "string"});
    let function = object(
        &["name"],
        json!({
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}, "description": string,
            "parameters": {"type": "object"}, "strict": {"type": "boolean"},
        }),
    );
    json!({
        "type": "object", "required": ["type"],
        "properties": {
            "type": one_of(&[
                "apiRequest", "bash", "code", "computer", "dtmf", "endCall", "function",
                "gohighlevel.calendar.availability.check", "gohighlevel.calendar.event.create",
                "gohighlevel.contact.create", "gohighlevel.contact.get", "google.calendar.availability.check",
                "google.calendar.event.create", "google.sheets.row.append", "handoff", "mcp", "query",
                "slack.message.send", "sms", "textEditor", "transferCall", "sipRequest", "voicemail",
            ]),
            "function": function, "server": defined("server"),
        },
        "if": {"properties": {"type": {"enum": ["endCall", "function"]}}},
        "then": {"additionalProperties": false, "properties": {
            "type": true, "function": true, "server": true, "messages": {"type": "array"},
            "async": {"type": "boolean"}, "variableExtractionPlan": {"type": "object"},
            "parameters": {"type": "array"}, "rejectionPlan": {"type": "object"},
        }},
    })
}

/// What a chat may be asked with here: the variables are all that may be laid over an assistant.
fn chat() -> Value {
    let string = json!({"type": "string"});
    let uuid = json!({"type": "string", "format": "uuid"});
    let plain = |required: &[&str], more: Value| {
        let mut properties =
            json!({"role": string, "content": string, "name": string, "metadata": {"type": "object"}});
        properties
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        object(required, properties)
    };
    let call = object(
        &["id", "type", "function"],
        json!({
            "id": string, "type": one_of(&["function"]),
            "function": object(&["name", "arguments"], json!({"name": string, "arguments": string})),
        }),
    );
    let message = json!({
        "type": "object", "required": ["role"],
        "properties": {"role": one_of(&["system", "developer", "user", "assistant", "tool"])},
        "if": {"properties": {"role": {"const": "assistant"}}},
        "then": plain(&["role"], json!({
            "content": {"type": ["string", "null"]}, "refusal": string, "tool_calls": some_of(&call),
        })),
        "else": {
            "if": {"properties": {"role": {"const": "tool"}}},
            "then": plain(&["role", "content", "tool_call_id"], json!({"tool_call_id": string})),
            "else": plain(&["role", "content"], json!({})),
        },
    });
    object(
        &["input"],
        json!({
            "assistantId": uuid, "assistant": defined("assistant"), "name": text(40), "stream": {"type": "boolean"},
            "previousChatId": uuid, "assistantOverrides": object(&[], json!({"variableValues": {"type": "object"}})),
            "input": {
                "type": ["string", "array"], "minLength": 1, "minItems": 1, "items": message,
            },
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carrier::{Listener, ask};

    const TOKEN: &str = "rbc1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const ASSISTANT: &str = "0198f000-0000-7000-8000-0000000000aa";
    const RUN: &str = "/eval/simulation/run";

    fn server(to: &Listener, path: &str) -> Value {
        json!({
            "url": format!("{}/hooks/e/{path}?correlation={TOKEN}", to.base), "headers": {"x-vapi-secret": "s3cret"},
            "timeoutSeconds": 20, "backoffPlan": {"type": "exponential", "maxRetries": 2, "baseDelaySeconds": 1},
        })
    }

    fn tester() -> Value {
        json!({"name": "Pat", "model": {
            "provider": "openai", "model": "tester", "maxTokens": 250.0,
            "messages": [{"role": "system", "content": "Hurry. <<{\"sim\":\"booked\",\"turns\":2}>>"}],
            "tools": [{"type": "endCall"}],
        }})
    }

    fn run(to: &Listener) -> Value {
        let hook = |on: &str, path: &str| {
            let mut action = json!({"type": "webhook", "server": server(to, path)});
            if path == "call-ended" {
                action["include"] = json!({"transcript": true, "messages": true, "recordingUrl": true});
            }
            json!({"on": on, "do": [action]})
        };
        let target = json!({"name": "Clinic", "model": {
            "provider": "custom-llm", "model": "target", "url": "http://t/v1",
            "messages": [{"role": "system", "content": "You run a clinic."}],
            "tools": [{"type": "function", "function": {"name": "findSlot", "parameters": {"type": "object"}}}],
        }});
        json!({
            "simulations": [{
                "type": "simulation",
                "scenario": {
                    "name": TOKEN, "instructions": "Book. <<{\"sim\":\"booked\",\"turns\":2}>>",
                    "evaluations": [{
                        "structuredOutput": {"name": "ringback", "type": "regex", "regex": "[\\s\\S]",
                            "schema": {"type": "boolean"}},
                        "comparator": "=", "value": true, "required": false,
                    }],
                    "hooks": [
                        hook("simulation.run.started", "call-started"), hook("simulation.run.ended", "call-ended"),
                    ],
                    "toolMocks": [{"toolName": "findSlot", "result": "Tuesday is free"}],
                    "targetOverrides": {"variableValues": {"city": "Bern"}},
                },
                "personality": {"name": "Pat", "assistant": tester()},
            }],
            "target": {"type": "assistant", "assistant": target},
            "iterations": 1, "transport": {"provider": "vapi.websocket"},
        })
    }

    fn call(to: &Listener) -> Value {
        let mut assistant = tester();
        assistant["maxDurationSeconds"] = json!(600);
        assistant["metadata"] = json!({"ringback": {"correlation": TOKEN, "agent": "tester"}});
        assistant["server"] = server(to, "call-ended");
        assistant["serverMessages"] = json!(["status-update", "end-of-call-report"]);
        assistant["monitorPlan"] = json!({"listenEnabled": true, "controlEnabled": true});
        json!({
            "name": "ringback", "assistant": assistant, "phoneNumberId": PHONE_NUMBER,
            "customer": {"number": "+15550100"},
        })
    }

    async fn post(vapi: &VapiStandIn, path: &str, body: &Value) -> (u16, Option<String>, Value) {
        ask("POST", &format!("{}{path}", vapi.url()), &vapi.key(), Some(body)).await
    }

    async fn get(vapi: &VapiStandIn, path: &str) -> (u16, Value) {
        let answer = ask("GET", &format!("{}{path}", vapi.url()), &vapi.key(), None).await;
        (answer.0, answer.2)
    }

    fn text(value: &Value) -> &str {
        value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
    }

    #[test]
    fn the_signature_is_the_one_of_our_vectors() {
        let url: Url = "http://r/hook?a=b".parse().unwrap();
        let body = br#"{"message":{"type":"status-update","status":"ended"}}"#;
        let signed = |plan: &HmacPlan| plan.headers(&url, body, 1_700_000_000_000, false);
        let plan = HmacPlan::new("vapi_test_secret");
        let digest = "242d1dfb67dba287b71dfa4cfe0c7572f3bc9437d9cf3d789f5ae490b70c4dd5";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            signed(&plan),
            [pair("x-signature", digest), pair("x-timestamp", "1700000000")]
        );
        let digest = "sha256=2307b27f9a770dd30e0b4c81dd3a04919fa6ead6abd6fd17ef921138ede061da";
        let bare = HmacPlan {
            include_timestamp: false,
            signature_header: "x-vapi-signature".to_owned(),
            signature_prefix: "sha256=".to_owned(),
            ..plan.clone()
        };
        assert_eq!(signed(&bare), [pair("x-vapi-signature", digest)]);
        let other = HmacPlan {
            algorithm: Algorithm::Sha512,
            signature_encoding: Encoding::Base64,
            secret_is_base64: true,
            secret_key: STANDARD.encode("vapi_test_secret"),
            payload_format: Some("{method} {url} {svix-id} {timestamp}".to_owned()),
            timestamp_in_ms: true,
            message_id_header: Some("svix-id".to_owned()),
            ..plan
        };
        let headers = signed(&other);
        assert_eq!(headers[1], pair("x-timestamp", "1700000000000"));
        let mut mac = Hmac::<Sha512>::new_from_slice(b"vapi_test_secret").unwrap();
        mac.update(format!("POST {url} {} 1700000000000", headers[2].1).as_bytes());
        let expected = STANDARD.encode(mac.finalize().into_bytes());
        assert_eq!(headers[0], pair("x-signature", &expected));
    }

    #[tokio::test]
    async fn a_run_is_played_and_told_as_it_is_delivered() {
        let (vapi, to) = (VapiStandIn::start().await, Listener::start().await);
        vapi.auto(5);
        let (started, ended) = ("simulation.run.started", "simulation.run.ended");
        for (delivery, events) in [
            (Delivery::Normal, &[started, ended][..]),
            (Delivery::Early, &[started, ended]),
            (Delivery::Reversed, &[ended, started]),
            (Delivery::Duplicated, &[started, started, ended, ended]),
        ] {
            vapi.delivery(delivery);
            let (status, _, created) = post(&vapi, RUN, &run(&to)).await;
            assert_eq!(status, 201, "{created}");
            if delivery == Delivery::Early {
                assert_eq!(vapi.runs()[1].sent.len(), 2, "before the answer");
            }
            let id = text(&created["id"]);
            vapi.wait_for("all events", |vapi| {
                vapi.runs().last().unwrap().sent.len() == events.len()
            })
            .await;
            let record = vapi.runs().pop().unwrap();
            let named: Vec<&str> = record.sent.iter().map(|sent| sent.event.as_str()).collect();
            assert_eq!((record.id.as_str(), named), (id, events.to_vec()), "{delivery:?}");
            for (headers, path, body) in to.heard() {
                let body: Value = serde_json::from_slice(&body).unwrap();
                let at = if body["type"] == started {
                    "call-started"
                } else {
                    "call-ended"
                };
                assert_eq!(path, format!("/hooks/e/{at}?correlation={TOKEN}"));
                assert_eq!(
                    (headers["x-vapi-secret"].to_str().unwrap(), &body["runId"]),
                    ("s3cret", &json!(id))
                );
                assert_eq!(body.get("transcript").is_some(), body["type"] == ended);
            }
        }
        vapi.delivery(Delivery::Late);
        post(&vapi, RUN, &run(&to)).await;
        vapi.wait_for("the end", |vapi| vapi.runs()[4].ended.is_some())
            .await;
        assert!(to.heard().is_empty());
        vapi.release().await;
        assert_eq!(to.heard().len(), 2);
        vapi.delivery(Delivery::Never);
        post(&vapi, RUN, &run(&to)).await;
        vapi.wait_for("the end", |vapi| vapi.runs()[5].ended.is_some())
            .await;
        assert!(to.heard().is_empty());

        let now = iso(SystemClock.now_ms() + 1000);
        for (query, count, total) in [
            ("?page=1&limit=4&createdAtGe=2026-01-01T00:00:00.000Z", 4, 6),
            ("?page=2&limit=4", 2, 6),
            (&format!("?limit=4&createdAtGe={now}"), 0, 0),
            ("?page=1&filterStatus=running", 0, 0),
        ] {
            let (status, page) = get(&vapi, &format!("{RUN}{query}")).await;
            assert_eq!(status, 200, "{page}");
            let results = page["results"].as_array().unwrap();
            assert_eq!(
                (results.len(), &page["metadata"]["totalItems"]),
                (count, &json!(total)),
                "{query}"
            );
            if query.starts_with("?page=1&limit") {
                assert_eq!(results[0]["id"], vapi.runs()[5].id, "the newest first");
                assert_eq!(results[0]["simulations"][0]["scenario"]["name"], TOKEN);
            }
        }
        assert_eq!(get(&vapi, RUN).await.1.as_array().unwrap().len(), 6);
        assert_eq!(vapi.faults(), [""; 0]);
    }

    #[tokio::test]
    async fn a_run_is_told_from_the_target_s_side() {
        let (vapi, to) = (VapiStandIn::start().await, Listener::start().await);
        vapi.manual();
        to.answer(&[503, 503, 503]);
        let created = post(&vapi, RUN, &run(&to)).await.2;
        let id = text(&created["id"]);
        let items = format!("{RUN}/{id}/item");
        assert_eq!(get(&vapi, &items).await.1[0]["status"], "queued");
        vapi.start_call(id).await;
        assert_eq!(get(&vapi, &items).await.1[0]["status"], "running");
        vapi.end_call(id, "customer-ended-call").await;
        let record = vapi.runs().pop().unwrap();
        let tries: Vec<(u64, u16)> = record
            .sent
            .iter()
            .map(|sent| (sent.attempt, sent.status))
            .collect();
        assert_eq!(
            tries,
            [(1, 503), (2, 503), (3, 503), (1, 200)],
            "as often as the plan says"
        );
        let (_, _, body) = to.heard().pop().unwrap();
        let hook: Value = serde_json::from_slice(&body).unwrap();
        let roles: Vec<&str> = hook["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| text(&m["role"]))
            .collect();
        let expected = [
            "system",
            "user",
            "tool_calls",
            "tool_call_result",
            "bot",
            "user",
            "bot",
            "user",
            "bot",
        ];
        assert_eq!(roles, expected);
        assert_eq!(hook["messages"][1]["message"], "Hello, caller 1 of booked.");
        assert_eq!(hook["messages"][3]["result"], "Tuesday is free");
        assert_eq!(
            (&hook["canceled"], &hook["endedReason"]),
            (&json!(false), &json!("customer-ended-call"))
        );
        let item = &get(&vapi, &items).await.1[0];
        assert_eq!(
            (&item["status"], &item["metadata"]["call"]["messages"]),
            (&json!("passed"), &hook["messages"])
        );
        let legs = record.legs.unwrap();
        assert_eq!(hook["calls"]["targetCallId"], legs.target_call);
        for (leg, bot, turn) in [
            (&legs.target_call, "Answer 1 from", 800),
            (&legs.tester_call, "Hello, caller", 300),
        ] {
            let call = get(&vapi, &format!("/call/{leg}")).await.1;
            let artifact = &call["artifact"];
            assert_eq!(
                artifact["performanceMetrics"]["turnLatencies"][0]["turnLatency"],
                turn
            );
            let messages = artifact["messages"].as_array().unwrap();
            let said = messages.iter().find(|message| message["role"] == "bot").unwrap();
            assert!(text(&said["message"]).starts_with(bot), "{said}");
        }
        let cancel = format!("{}{RUN}/{id}", vapi.url());
        let (status, _, over) = ask("PATCH", &cancel, &vapi.key(), None).await;
        assert_eq!((status, text(&over["message"])), (400, "Run has already ended"));
        let created = post(&vapi, RUN, &run(&to)).await.2;
        let cancel = format!("{}{RUN}/{}", vapi.url(), text(&created["id"]));
        assert_eq!(
            ask("PATCH", &cancel, &vapi.key(), None).await.2["itemCounts"]["canceled"],
            1
        );
        vapi.wait_for("the hook", |vapi| vapi.runs()[1].sent.len() == 1)
            .await;
        assert_eq!((vapi.runs()[1].end_requests, vapi.asked().cancels), (1, 2));
        vapi.ended_with(json!({"failureReason": "no answer", "transcript": null}));
        let id = text(&post(&vapi, RUN, &run(&to)).await.2["id"]).to_owned();
        vapi.end_call(&id, "call.start.error-get-transport").await;
        let item = &get(&vapi, &format!("{RUN}/{id}/item")).await.1[0];
        assert_eq!(
            (&item["status"], &item["failureReason"]),
            (&json!("failed"), &json!("no answer"))
        );
        assert_eq!(vapi.faults(), [""; 0]);
    }

    #[tokio::test]
    async fn a_call_by_phone_is_told_from_the_tester_s_side() {
        let (vapi, to) = (VapiStandIn::start().await, Listener::start().await);
        vapi.auto(5);
        let (status, _, placed) = post(&vapi, "/call", &call(&to)).await;
        assert_eq!((status, &placed["status"]), (201, &json!("queued")), "{placed}");
        vapi.wait_for("the report", |vapi| vapi.calls()[0].sent.len() == 4)
            .await;
        let events: Vec<String> = vapi.calls()[0]
            .sent
            .iter()
            .map(|sent| sent.event.clone())
            .collect();
        let updates = ["ringing", "in-progress", "ended"].map(|status| format!("status-update {status}"));
        assert_eq!(
            events,
            [&updates[..], &["end-of-call-report".to_owned()]].concat()
        );
        let (_, _, body) = to.heard().pop().unwrap();
        let report: Value = serde_json::from_slice(&body).unwrap();
        let report = &report["message"];
        assert_eq!(
            report["call"]["assistant"]["metadata"]["ringback"]["correlation"],
            TOKEN
        );
        assert_eq!(report["endedReason"], "assistant-ended-call");
        let messages = report["artifact"]["messages"].as_array().unwrap();
        assert_eq!(messages[0]["role"], "system");
        assert_eq!(
            (&messages[1]["role"], text(&messages[1]["message"])),
            (&json!("bot"), "Hello, caller 1 of booked.")
        );
        assert_eq!(messages.last().unwrap()["name"], "endCall");
        let path = format!("/call/{}", text(&placed["id"]));
        assert_eq!(get(&vapi, &path).await.1["cost"], 0.042);
        let control = text(&placed["monitor"]["controlUrl"]);
        let end = json!({"type": "end-call"});
        assert_eq!(
            ask("POST", control, "no key", Some(&end)).await.0,
            404,
            "it is over"
        );

        vapi.manual();
        let placed = post(&vapi, "/call", &call(&to)).await.2;
        let control = text(&placed["monitor"]["controlUrl"]);
        assert_eq!(ask("POST", control, "no key", Some(&end)).await.0, 200);
        vapi.wait_for("its report", |vapi| vapi.calls()[1].sent.len() == 2)
            .await;
        assert_eq!((vapi.calls()[1].started, vapi.asked().controls), (None, 2));
        let since = iso(vapi.calls()[0].placed);
        let list = format!(
            "/call?limit=1&createdAtGe={since}&phoneNumberId={}",
            vapi.phone_number_id()
        );
        let listed = get(&vapi, &list).await.1;
        assert_eq!(
            (listed.as_array().unwrap().len(), &listed[0]["id"]),
            (1, &placed["id"])
        );
        assert_eq!(
            (vapi.calls()[1].correlation.as_str(), vapi.asked().lists),
            (TOKEN, 1)
        );
        assert_eq!(vapi.faults(), [""; 0]);
    }

    #[tokio::test]
    async fn webhooks_prove_where_they_come_from_as_they_are_told() {
        let (vapi, to) = (VapiStandIn::start().await, Listener::start().await);
        vapi.manual();
        let plan = HmacPlan::new("secret");
        vapi.credential("hmac", Credential::Hmac(plan.clone()));
        let header = "X-Vapi-Secret".to_owned();
        let token = "s3cret".to_owned();
        vapi.credential(
            "bearer",
            Credential::Bearer {
                token,
                header,
                prefix: true,
            },
        );
        for (id, auth) in [
            ("hmac", Auth::AsTold),
            ("hmac", Auth::Wrong),
            ("bearer", Auth::AsTold),
            ("hmac", Auth::Missing),
        ] {
            vapi.auth(auth);
            let mut body = call(&to);
            let server = body["assistant"]["server"].as_object_mut().unwrap();
            server.remove("headers");
            server.insert("credentialId".to_owned(), json!(id));
            let placed = post(&vapi, "/call", &body).await.2;
            vapi.moved_to(&to.base);
            vapi.start_call(text(&placed["id"])).await;
            let (headers, _, body) = to.heard().pop().unwrap();
            let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            if id == "bearer" {
                assert_eq!(header("x-vapi-secret"), Some("Bearer s3cret"));
            } else if auth == Auth::Missing {
                assert_eq!(header("x-signature"), None);
            } else {
                let now = header("x-timestamp").unwrap().parse::<i64>().unwrap() * 1000;
                let url = "http://r".parse().unwrap();
                let right = plan.headers(&url, &body, now, false);
                assert_eq!(header("x-signature") == Some(&right[0].1), auth == Auth::AsTold);
            }
        }
        let mut body = call(&to);
        body["assistant"]["server"]["credentialId"] = json!("other");
        assert_eq!(post(&vapi, "/call", &body).await.0, 400);
    }

    #[tokio::test]
    async fn assistants_chat() {
        let vapi = VapiStandIn::start().await;
        let prompt = "<<{\"tool\":\"findSlot\",\"place\":\"{{city}}\"}>>";
        vapi.assistant(
            ASSISTANT,
            json!({"name": "Clinic", "model": {
                "provider": "openai", "model": "m", "messages": [{"role": "system", "content": prompt}],
            }}),
        );
        assert_eq!(
            get(&vapi, &format!("/assistant/{ASSISTANT}")).await.1["name"],
            "Clinic"
        );
        assert_eq!(get(&vapi, &format!("/assistant/{}", Uuid::nil())).await.0, 404);
        let overrides = json!({"variableValues": {"city": "Bern"}});
        let body = json!({"assistantId": ASSISTANT, "input": "Hello", "assistantOverrides": overrides});
        let (status, _, first) = post(&vapi, "/chat", &body).await;
        assert_eq!(status, 201, "{first}");
        let output = first["output"].as_array().unwrap();
        assert_eq!((output.len(), &output[1]["role"]), (3, &json!("tool")));
        assert_eq!(
            output[2]["content"],
            "Answer 1 from Bern. The tool says findSlot ran for real."
        );
        vapi.chat_replies(|assistant, messages| {
            let name = text(&assistant["name"]).to_owned();
            vec![json!({"role": "assistant", "content": format!("{name} {}", messages.len())})]
        });
        let input = json!([{"role": "user", "content": "Thanks"}]);
        let body = json!({"assistantId": ASSISTANT, "input": input, "previousChatId": first["id"]});
        let second = post(&vapi, "/chat", &body).await.2;
        assert_eq!(second["output"][0]["content"], "Clinic 5");
        assert_eq!(vapi.chats()[1].messages.len(), 5);
        assert_eq!(
            (vapi.chats()[1].id.as_str(), vapi.asked().assistants),
            (text(&second["id"]), 2)
        );
        let mut unknown = body.clone();
        unknown["previousChatId"] = json!(Uuid::nil());
        assert_eq!(post(&vapi, "/chat", &unknown).await.0, 404);
        let unknown = json!({"assistantId": Uuid::nil(), "input": "Hello"});
        assert_eq!(post(&vapi, "/chat", &unknown).await.0, 400);
        vapi.placing(Placing::Busy {
            retry_after_seconds: 2,
            times: 2,
        });
        for wait in [Some("2"), Some("2"), None] {
            assert_eq!(post(&vapi, "/chat", &body).await.1.as_deref(), wait);
        }
        assert_eq!((vapi.faults(), vapi.chats().len()), (Vec::new(), 3));
        for body in [
            json!({"assistantId": ASSISTANT}),
            json!({"assistantId": ASSISTANT, "input": []}),
            json!({"assistantId": ASSISTANT, "input": [{"role": "bot", "content": "a"}]}),
            json!({"assistantId": ASSISTANT, "input": [{"role": "tool", "tool_call_id": "x", "content": "a"}]}),
            json!({"assistantId": "clinic", "input": "Hello"}),
            json!({"assistantId": ASSISTANT, "input": "Hello", "assistantOverrides": {"firstMessage": "a"}}),
            json!({"input": "Hello"}),
        ] {
            let before = vapi.faults().len();
            assert_eq!(post(&vapi, "/chat", &body).await.0, 400, "{body}");
            assert!(vapi.faults().len() > before, "{body}");
        }
    }

    #[tokio::test]
    async fn what_vapi_would_not_take_is_a_fault() {
        let (vapi, to) = (VapiStandIn::start().await, Listener::start().await);
        vapi.manual();
        let scenario = "/simulations/0/scenario";
        let hooks = "/simulations/0/scenario/hooks/0";
        for (pointer, value) in [
            ("/iterations", json!(11)),
            ("/transport/provider", json!("twilio")),
            ("/target/type", json!("number")),
            ("/target/assistant", json!({"nickname": "a"})),
            ("/target", json!({"type": "assistant"})),
            ("/target", json!({"type": "assistant", "assistantId": "clinic"})),
            ("/target/assistant/name", json!("n".repeat(41))),
            ("/simulations/0/personality/name", json!("n".repeat(81))),
            (&format!("{scenario}/name"), json!("")),
            (&format!("{scenario}/instructions"), json!("n".repeat(10_001))),
            (&format!("{scenario}/evaluations"), json!([])),
            (&format!("{scenario}/evaluations/0/comparator"), json!("~")),
            (&format!("{scenario}/evaluations/0/value"), json!("yes")),
            (
                &format!("{scenario}/evaluations/0/structuredOutput/name"),
                json!("n".repeat(41)),
            ),
            (&format!("{hooks}/on"), json!("call.started")),
            (&format!("{hooks}/do/0/type"), json!("call")),
            (&format!("{hooks}/do/0/server/timeoutSeconds"), json!(301)),
            (&format!("{hooks}/do/0/server/backoffPlan/maxRetries"), json!(11)),
            (&format!("{hooks}/do/0/server/headers/x-vapi-secret"), json!(7)),
            (
                &format!("{scenario}/toolMocks/0"),
                json!({"toolName": "a", "answer": "b"}),
            ),
            (&format!("{scenario}/targetOverrides"), json!({"city": "Bern"})),
        ] {
            let mut body = run(&to);
            *body.pointer_mut(pointer).unwrap() = value;
            let before = vapi.faults().len();
            let (status, _, answer) = post(&vapi, RUN, &body).await;
            assert_eq!(
                (status, &answer["error"], &answer["statusCode"]),
                (400, &json!("Bad Request"), &json!(400))
            );
            assert!(vapi.faults().len() > before, "{pointer}");
        }
        for (pointer, value) in [
            ("/metadata", json!({})),
            ("/customer/number", json!("5550100")),
            ("/phoneNumberId", json!(Uuid::nil())),
            ("/assistantId", json!(ASSISTANT)),
            ("/assistant/serverMessages", json!(["ended"])),
            ("/assistant/maxDurationSeconds", json!(9)),
        ] {
            let mut body = call(&to);
            match body.pointer_mut(pointer) {
                Some(at) => *at = value,
                None => body[&pointer[1..]] = value,
            }
            let before = vapi.faults().len();
            assert_eq!(post(&vapi, "/call", &body).await.0, 400, "{pointer}");
            assert!(vapi.faults().len() > before, "{pointer}");
        }
        let before = vapi.faults().len();
        assert_eq!(
            ask("GET", &format!("{}/call", vapi.url()), "wrong", None).await.0,
            401
        );
        assert_eq!(get(&vapi, "/call?page=1").await.0, 400);
        assert_eq!(get(&vapi, "/calls").await.0, 404);
        assert_eq!(get(&vapi, &format!("{RUN}?limit=1001")).await.0, 400);
        assert_eq!(vapi.faults().len(), before + 4);
        let mut unknown = run(&to);
        unknown["target"] = json!({"type": "assistant", "assistantId": ASSISTANT});
        assert_eq!(post(&vapi, RUN, &unknown).await.0, 400, "nobody's fault");
        assert_eq!(
            (vapi.faults().len(), vapi.runs().len() + vapi.calls().len()),
            (before + 4, 0)
        );
        for (placing, status) in [
            (Placing::Refuse(402), 402),
            (Placing::AcceptWithoutAnswer, 500),
            (Placing::AcceptWithoutAnswer, 0),
        ] {
            vapi.placing(placing);
            assert_eq!(post(&vapi, RUN, &run(&to)).await.0, status);
        }
        assert_eq!((vapi.runs().len(), vapi.asked().refused), (2, 1));
    }
}
