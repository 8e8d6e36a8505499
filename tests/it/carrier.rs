//! What the stand-ins of Vapi and of Retell have in common: when they send which webhook how often, how they answer when
//! something is to be placed, and how they find fault with what they are asked.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{Arc, LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Url;
use serde_json::Value;
use sha2::Sha256;
use tokio::{sync::watch, task::JoinSet};

use crate::fixtures::LONG;

/// The pause before a webhook that was not kept is sent again, however long the real one would wait.
const PAUSE: Duration = Duration::from_millis(50);

/// When webhooks are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Each once, when its time has come.
    Normal,
    /// Each twice, both at the same time.
    Duplicated,
    /// All of them after the end of the call, the last one first.
    Reversed,
    /// When their time has come, but the call is played before the request that places it is answered.
    Early,
    /// When the test says so.
    Late,
    /// Not at all, but who asks gets the truth.
    Never,
}

/// How it answers when a call, a run or a chat is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placing {
    /// It does it and says so.
    Accept,
    /// It does it, but does not say so: it answers 500 and closes the connection by turns, 500 first.
    AcceptWithoutAnswer,
    /// It does it at once, but does not say so until it is told another way.
    AcceptLate,
    /// It does nothing and answers with this status.
    Refuse(u16),
    /// It does nothing and answers 429 so often; after that it accepts.
    Busy { retry_after_seconds: u64, times: usize },
    /// It does nothing until it is told another way, and that then.
    Hang,
}

/// How its webhooks prove where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// As it was told.
    AsTold,
    /// Not at all.
    Missing,
    /// With another secret than it was told.
    Wrong,
}

/// A webhook that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) event: String,
    /// 1 for the first time, more where it was sent again because it was not kept.
    pub(crate) attempt: u64,
    /// How it was answered; 0 for no answer.
    pub(crate) status: u16,
}

/// The headers that prove where a webhook comes from, made anew each time that it is sent.
pub(crate) type Sign = Arc<dyn Fn(&Url, &[u8]) -> Vec<(String, String)> + Send + Sync>;

/// A webhook that is to be sent.
#[derive(Clone)]
pub(crate) struct Webhook {
    /// Of which call or run.
    pub(crate) order: String,
    pub(crate) event: String,
    pub(crate) url: String,
    pub(crate) body: Value,
    /// How often it is sent again while it is not kept.
    pub(crate) retries: u64,
    /// It is not sent again after these answers.
    pub(crate) excluded: Vec<u16>,
    pub(crate) within: Duration,
    pub(crate) sign: Sign,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("order", &self.order)
            .field("event", &self.event)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Post {
    delivery: Delivery,
    moved_to: Option<String>,
    /// What waits for the test to release it.
    held: Vec<Webhook>,
    /// What waits for the end of its call.
    withheld: BTreeMap<String, Vec<Webhook>>,
    sent: Vec<(String, Sent)>,
}

#[derive(Debug)]
struct Book {
    /// All that it was asked and the real one would not have put up with.
    faults: Vec<String>,
    unanswered: usize,
}

/// What is to be done with a request to place something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Accept,
    /// Do it, and answer 500 or, where it says so, close the connection.
    Unanswered {
        hang_up: bool,
    },
    Refuse(u16),
    /// 429, with these seconds in `Retry-After`.
    Busy(u64),
}

/// The part of a stand-in that does not depend on whose it is.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// The key that it wants to see.
    key: String,
    post: Mutex<Post>,
    book: Mutex<Book>,
    placing: watch::Sender<Placing>,
    /// Goes up when something happens.
    changes: watch::Sender<u64>,
    http: reqwest::Client,
    tasks: Mutex<JoinSet<()>>,
}

impl Carrier {
    pub(crate) fn new(key: String) -> Self {
        let http = ringback_shared::net::client().no_proxy().build().unwrap();
        Self {
            key,
            post: Mutex::new(Post {
                delivery: Delivery::Normal,
                moved_to: None,
                held: Vec::new(),
                withheld: BTreeMap::new(),
                sent: Vec::new(),
            }),
            book: Mutex::new(Book {
                faults: Vec::new(),
                unanswered: 0,
            }),
            placing: watch::Sender::new(Placing::Accept),
            changes: watch::Sender::new(0),
            http,
            tasks: Mutex::default(),
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap()
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Waits until it is so.
    pub(crate) async fn wait_for(&self, what: &str, enough: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !enough() {
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        waited.unwrap_or_else(|_| panic!("waited {LONG:?} for {what}; faults so far: {:#?}", self.faults()));
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap();
        // Forget those that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// The tasks hold what holds them.
    pub(crate) fn stop(&self) {
        // It is poisoned where a test fails already.
        if let Ok(mut tasks) = self.tasks.lock() {
            tasks.abort_all();
        }
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.book.lock().unwrap().faults.clone()
    }

    pub(crate) fn fault(&self, fault: String) {
        self.book.lock().unwrap().faults.push(fault);
        self.changed();
    }

    pub(crate) fn placing(&self, placing: Placing) {
        self.placing.send_replace(placing);
    }

    /// What to do with a request to place something. Waits while it is to hang.
    pub(crate) async fn decide(&self) -> Decision {
        let mut placings = self.placing.subscribe();
        loop {
            let waited = placings.wait_for(|placing| *placing != Placing::Hang).await;
            drop(waited.unwrap());
            let mut decision = None;
            self.placing.send_if_modified(|placing| {
                let (decided, left) = match *placing {
                    Placing::Hang => return false,
                    Placing::Busy { times: 0, .. } => (Decision::Accept, Some(Placing::Accept)),
                    Placing::Busy {
                        retry_after_seconds,
                        times,
                    } => {
                        let left = Placing::Busy {
                            retry_after_seconds,
                            times: times - 1,
                        };
                        (Decision::Busy(retry_after_seconds), Some(left))
                    }
                    Placing::Accept | Placing::AcceptLate => (Decision::Accept, None),
                    Placing::Refuse(status) => (Decision::Refuse(status), None),
                    Placing::AcceptWithoutAnswer => {
                        let mut book = self.book.lock().unwrap();
                        book.unanswered += 1;
                        let hang_up = book.unanswered.is_multiple_of(2);
                        (Decision::Unanswered { hang_up }, None)
                    }
                };
                decision = Some(decided);
                *placing = left.unwrap_or(*placing);
                left.is_some()
            });
            if let Some(decision) = decision {
                return decision;
            }
        }
    }

    /// Waits while what was done is not to be said.
    pub(crate) async fn may_answer(&self) {
        let mut placings = self.placing.subscribe();
        let waited = placings.wait_for(|placing| *placing != Placing::AcceptLate).await;
        drop(waited.unwrap());
    }

    pub(crate) fn deliver(&self, delivery: Delivery) {
        self.post().delivery = delivery;
    }

    pub(crate) fn delivery(&self) -> Delivery {
        self.post().delivery
    }

    pub(crate) fn moved_to(&self, base: &str) {
        self.post().moved_to = Some(base.to_owned());
    }

    /// What was sent of a call or a run, in the order of the answers.
    pub(crate) fn sent(&self, order: &str) -> Vec<Sent> {
        let post = self.post();
        let sent = post.sent.iter().filter(|(of, _)| of == order);
        sent.map(|(_, sent)| sent.clone()).collect()
    }

    /// Sends what is said when a call starts, unless it is told another way. Returns when all of it was kept or given up.
    pub(crate) async fn begun(&self, order: &str, webhooks: Vec<Webhook>) {
        let now = {
            let mut post = self.post();
            if post.delivery == Delivery::Reversed {
                post.withheld
                    .entry(order.to_owned())
                    .or_default()
                    .extend(webhooks);
                return;
            }
            post.due(webhooks)
        };
        self.send_all(now).await;
    }

    /// Sends what is said when a call ends, unless it is told another way. Returns when all of it was kept or given up.
    pub(crate) async fn over(&self, order: &str, webhooks: Vec<Webhook>) {
        let now = {
            let mut post = self.post();
            let mut all = post.withheld.remove(order).unwrap_or_default();
            all.extend(webhooks);
            if post.delivery == Delivery::Reversed {
                all.reverse();
            }
            post.due(all)
        };
        self.send_all(now).await;
    }

    /// Sends what waits for that.
    pub(crate) async fn release(&self) {
        let held = std::mem::take(&mut self.post().held);
        for webhook in held {
            self.send(&webhook).await;
        }
    }

    async fn send_all(&self, (webhooks, twice): (Vec<Webhook>, bool)) {
        for webhook in webhooks {
            if twice {
                tokio::join!(self.send(&webhook), self.send(&webhook));
            } else {
                self.send(&webhook).await;
            }
        }
    }

    /// Sends a webhook until it is kept or given up.
    async fn send(&self, webhook: &Webhook) {
        let body = webhook.body.to_string().into_bytes();
        for attempt in 1..=webhook.retries + 1 {
            if attempt > 1 {
                tokio::time::sleep(PAUSE).await;
            }
            let url: Url = webhook.url.parse().unwrap();
            let url = match &self.post().moved_to {
                Some(base) => {
                    let mut moved: Url = format!("{base}{}", url.path()).parse().unwrap();
                    moved.set_query(url.query());
                    moved
                }
                None => url,
            };
            let mut headers = HeaderMap::new();
            for (name, value) in (webhook.sign)(&url, &body) {
                let name: header::HeaderName = name.parse().unwrap();
                headers.insert(name, value.parse().unwrap());
            }
            headers.insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("application/json"),
            );
            let request = self.http.post(url).timeout(webhook.within);
            let answer = request.headers(headers).body(body.clone()).send().await;
            let status = answer.map_or(0, |answer| answer.status().as_u16());
            let sent = Sent {
                event: webhook.event.clone(),
                attempt,
                status,
            };
            self.post().sent.push((webhook.order.clone(), sent));
            self.changed();
            if (200..300).contains(&status) || webhook.excluded.contains(&status) {
                return;
            }
        }
    }
}

impl Post {
    /// What of it is to be sent now, and whether twice.
    fn due(&mut self, webhooks: Vec<Webhook>) -> (Vec<Webhook>, bool) {
        match self.delivery {
            Delivery::Never => (Vec::new(), false),
            Delivery::Late => {
                self.held.extend(webhooks);
                (Vec::new(), false)
            }
            delivery => (webhooks, delivery == Delivery::Duplicated),
        }
    }
}

/// The fault of a request without the right key.
pub(crate) fn check_key(headers: &HeaderMap, key: &str) -> Result<(), &'static str> {
    match headers.get(header::AUTHORIZATION) {
        None => Err("there is no Authorization"),
        Some(value) if value.as_bytes() == format!("Bearer {key}").as_bytes() => Ok(()),
        Some(_) => Err("the Authorization is not Bearer with the key"),
    }
}

/// A body that must be a JSON object and is sent as one.
pub(crate) fn read_json(headers: &HeaderMap, body: &[u8]) -> Result<Value, String> {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str());
    match kind {
        Some(Ok(kind)) if kind.split(';').next().unwrap().trim() == "application/json" => {}
        other => return Err(format!("the Content-Type is {other:?}")),
    }
    match serde_json::from_slice(body) {
        Ok(body @ Value::Object(_)) => Ok(body),
        Ok(other) => Err(format!("the body is no object: {other}")),
        Err(error) => Err(format!("the body is no JSON: {error}")),
    }
}

/// What a schema does not allow, each with where it is.
pub(crate) fn complaints(validator: &jsonschema::Validator, body: &Value) -> Vec<String> {
    let faults = validator.iter_errors(body);
    faults
        .map(|fault| {
            let path = fault.instance_path().to_string();
            format!("{}: {fault}", path.trim_start_matches('/').replace('/', "."))
        })
        .collect()
}

/// A validator of one of the definitions.
pub(crate) fn validator(definitions: &Value, name: &str) -> jsonschema::Validator {
    let schema = serde_json::json!({"$defs": definitions, "$ref": format!("#/$defs/{name}")});
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&schema).unwrap()
}

/// A connection that is closed without an answer: the body fails before the head is on its way.
pub(crate) fn hung_up() -> Response {
    let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other(
        "the stand-in was told to hang up",
    ))]);
    Body::from_stream(broken).into_response()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

pub(crate) fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    Tester,
    Target,
}

/// What is said in the `number`th call whose tester has these prompts, from what they tell the tester to be: see
/// [`crate::stand_in`].
pub(crate) fn dialogue<'a>(
    prompts: impl IntoIterator<Item = &'a str>,
    number: usize,
) -> [(Speaker, String); 6] {
    let directive = prompts.into_iter().find_map(directive);
    let sim = directive.and_then(|directive| Some(directive["sim"].as_str()?.to_owned()));
    let sim = sim.unwrap_or_else(|| "voice".to_owned());
    [
        (Speaker::Tester, format!("Hello, caller {number} of {sim}.")),
        (Speaker::Target, "Answer 1 from the phone.".to_owned()),
        (Speaker::Tester, format!("Point 2 of caller {number}.")),
        (Speaker::Target, "Answer 2 from the phone.".to_owned()),
        (Speaker::Tester, format!("Thanks from caller {number}, goodbye.")),
        (Speaker::Target, "Answer 3 from the phone.".to_owned()),
    ]
}

/// How long the target takes for its turns, in milliseconds.
pub(crate) const TARGET_TURNS: [u32; 3] = [800, 1000, 1200];

/// When the line `n` of a [`dialogue`] begins and ends, in milliseconds from the start of the call. It takes some seconds, however
/// short the call was by the clock on the wall: nobody really talks.
pub(crate) fn spoken(n: i64) -> (i64, i64) {
    const LINE: i64 = 500;
    const TESTERS_TURN: i64 = 300;
    let answers = TARGET_TURNS.map(i64::from);
    let pauses = (0..=n).map(|line| match usize::try_from(line / 2).unwrap() {
        // The tester begins.
        0 if line == 0 => 0,
        _ if line % 2 == 0 => TESTERS_TURN,
        turn => answers[turn],
    });
    let begin = pauses.sum::<i64>() + n * LINE;
    (begin, begin + LINE)
}

/// The JSON between `<<` and `>>` in a prompt.
pub(crate) fn directive(prompt: &str) -> Option<Value> {
    let (_, rest) = prompt.split_once("<<")?;
    rest.split_once(">>")?.0.parse().ok()
}

/// Milliseconds as seconds.
pub(crate) fn seconds(ms: i64) -> f64 {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default()).as_secs_f64()
}

/// Lays fields over others; null takes one away.
pub(crate) fn lay_over(fields: &mut serde_json::Map<String, Value>, over: &serde_json::Map<String, Value>) {
    for (name, value) in over {
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
}

/// Who hears webhooks in the checks of the stand-ins themselves.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) base: String,
    heard: Arc<Mutex<Vec<(HeaderMap, String, Bytes)>>>,
    /// What it answers, one after the other; 200 when none is left.
    answers: Arc<Mutex<Vec<u16>>>,
    _server: JoinSet<()>,
}

impl Listener {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (heard, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (kept, left) = (Arc::clone(&heard), Arc::clone(&answers));
        let hear = async move |headers: HeaderMap, uri: axum::http::Uri, body: Bytes| {
            kept.lock().unwrap().push((headers, uri.to_string(), body));
            let answer: Option<u16> = left.lock().unwrap().pop();
            axum::http::StatusCode::from_u16(answer.unwrap_or(200)).unwrap()
        };
        let router = axum::Router::new().fallback(hear);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            heard,
            answers,
            _server: server,
        }
    }

    /// What it answers next, one after the other.
    pub(crate) fn answer(&self, answers: &[u16]) {
        let answers = answers.iter().rev().copied().collect();
        *self.answers.lock().unwrap() = answers;
    }

    /// What it has heard since it was asked last: headers, path and body.
    pub(crate) fn heard(&self) -> Vec<(HeaderMap, String, Bytes)> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// A request with a key; gives status, `Retry-After` and body. Status 0 is no answer.
pub(crate) async fn ask(
    method: &str,
    url: &str,
    key: &str,
    body: Option<&Value>,
) -> (u16, Option<String>, Value) {
    // Without connections that outlive the test whose runtime they belong to.
    static HTTP: LazyLock<reqwest::Client> = LazyLock::new(|| {
        let http = ringback_shared::net::client()
            .no_proxy()
            .pool_max_idle_per_host(0);
        http.build().unwrap()
    });
    let mut request = HTTP.request(method.parse().unwrap(), url).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    let Ok(answer) = request.send().await else {
        return (0, None, Value::Null);
    };
    let status = answer.status().as_u16();
    let wait = answer.headers().get(header::RETRY_AFTER);
    let wait = wait.map(|wait| wait.to_str().unwrap().to_owned());
    let body = answer.bytes().await.unwrap();
    (status, wait, serde_json::from_slice(&body).unwrap_or_default())
}
