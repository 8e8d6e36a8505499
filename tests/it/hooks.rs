//! Hooks: who is told that a conversation starts and ends, with which words, how often, and what becomes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use ringback_shared::{
    clock::{Clock, SystemClock},
    signature::{Scheme, Unverified},
    webhook::{ID_HEADER, SIGNATURE_HEADER},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::{
    fixtures::{
        LONG, RUNS, assert_items_valid, by_voice, counts, ended, endpoint, evaluation, item_path, items,
        list, regex, simple_run, text,
    },
    provider::{Auto, Placing, ProviderStandIn},
    server::{Api, local, local_with, until},
    stand_in::{Fault, Role, StandIn},
};

pub(crate) const STARTED: &str = "simulation.run.started";
pub(crate) const ENDED: &str = "simulation.run.ended";
/// An answer that never comes.
pub(crate) const NEVER: u16 = 0;

/// One request as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) path: String,
    method: Method,
    headers: HeaderMap,
    raw: Bytes,
    pub(crate) body: Value,
    /// When it came, in milliseconds since the Unix epoch.
    at: i64,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn id(&self) -> &str {
        self.header(ID_HEADER).unwrap_or_default()
    }

    /// Whether one of its signatures was made with this secret, at about the time at which it came.
    pub(crate) fn is_signed_with(&self, secret: &str) -> bool {
        let delivery = Unverified::new("POST", "", &self.headers, self.raw.to_vec());
        let profile = Scheme::StandardWebhooks.profile();
        delivery.verify(&profile, &[secret], self.at).is_ok()
    }

    fn signatures(&self) -> usize {
        let header = self.header(SIGNATURE_HEADER).unwrap_or_default();
        header.split(' ').filter(|part| part.starts_with("v1,")).count()
    }

    /// The item and the event that it is about.
    pub(crate) fn about(&self) -> (String, String) {
        let field = |name: &str| text(&self.body[name]).to_owned();
        (field("simulationRunItemId"), field("type"))
    }
}

#[derive(Debug, Default)]
struct Log {
    told: Vec<Told>,
    answers: BTreeMap<String, Vec<u16>>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    /// Goes up with every request.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

/// A server that hooks are sent to. It answers 200 unless it is told otherwise.
pub(crate) struct HookReceiver {
    base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl HookReceiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let router = axum::Router::new()
            .fallback(take)
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

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// How the attempts of each delivery to `path` are answered, one after the other and then always as the last.
    pub(crate) fn answer(&self, path: &str, statuses: &[u16]) {
        self.shared
            .log()
            .answers
            .insert(path.to_owned(), statuses.to_vec());
    }

    /// All requests so far.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.shared.log().told.clone()
    }

    /// The requests to `path` so far.
    pub(crate) fn told_at(&self, path: &str) -> Vec<Told> {
        self.told().into_iter().filter(|told| told.path == path).collect()
    }

    /// Waits until the requests are such.
    pub(crate) async fn wait_for(&self, what: &str, enough: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let mut changes = self.shared.changes.subscribe();
        let wait = async {
            loop {
                let told = self.told();
                if enough(&told) {
                    return told;
                }
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        waited.unwrap_or_else(|_| panic!("waited {LONG:?} for {what}"))
    }
}

async fn take(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    raw: Bytes,
) -> StatusCode {
    let told = Told {
        path: uri.path().to_owned(),
        method,
        headers,
        body: serde_json::from_slice(&raw).unwrap_or_default(),
        raw,
        at: SystemClock.now_ms(),
    };
    let status = {
        let mut log = shared.log();
        let same = |other: &&Told| other.path == told.path && other.id() == told.id();
        let before = log.told.iter().filter(same).count();
        let answers = log.answers.get(&told.path).map_or(&[][..], Vec::as_slice);
        let status = answers.get(before).or(answers.last()).copied().unwrap_or(200);
        log.told.push(told);
        status
    };
    shared.changes.send_modify(|n| *n += 1);
    if status == NEVER {
        std::future::pending::<()>().await;
    }
    StatusCode::from_u16(status).unwrap()
}

/// The secret that hooks are signed with at first.
pub(crate) async fn hook_secret(api: &Api) -> String {
    let answer = api.get("/hook/secret").await;
    let [secret] = list(&answer["secrets"]) else {
        panic!("one secret at first: {answer:#}")
    };
    text(&secret["secret"]).to_owned()
}

/// A hook with one webhook.
pub(crate) fn hook(on: &str, url: &str) -> Value {
    json!({"on": on, "do": [{"type": "webhook", "server": {"url": url}}]})
}

/// What an item says of the deliveries of an event, once it is settled what became of all of them.
pub(crate) async fn settled(api: &Api, item: &str, event: &str) -> Vec<Value> {
    let wanted = list(&api.get(item).await["hooks"])
        .iter()
        .filter(|hook| hook["on"] == event)
        .map(|hook| list(&hook["do"]).len())
        .sum::<usize>();
    assert!(wanted > 0, "nobody is to be told of {event}");
    let mut deliveries = until("all deliveries to be settled", LONG, async || {
        let item = api.get(item).await;
        let deliveries = item["metadata"]["hooks"][event].as_array()?;
        let open = deliveries.iter().any(|delivery| delivery["status"] == "pending");
        (deliveries.len() == wanted && !open).then(|| deliveries.clone())
    })
    .await;
    deliveries.sort_by_key(|delivery| (delivery["hook"].as_u64(), delivery["action"].as_u64()));
    deliveries
}

/// A run whose scenario has these hooks.
fn hooked(mut run: Value, hooks: &Value) -> Value {
    run["simulations"][0]["scenario"]["hooks"] = hooks.clone();
    run
}

/// A conversation's request says which it is about and when, in the words of the contract.
fn check_told(told: &Told, item: &Value, began: i64, secret: &str, by_voice: bool) {
    let body = &told.body;
    assert_eq!(told.method, Method::POST);
    assert!(
        told.header("content-type")
            .unwrap()
            .starts_with("application/json")
    );
    assert!(told.is_signed_with(secret));
    assert_eq!(told.signatures(), 1);
    for name in ["simulationId", "runId", "iterationNumber"] {
        assert_eq!(body[name], item[name], "{name}: {body:#}");
    }
    assert_eq!(body["simulationRunItemId"], item["id"]);
    assert_eq!(body["isSimulation"], true);
    let at = body["timestamp"].as_i64().unwrap();
    assert!(
        (began..=told.at).contains(&at),
        "{at} is not within {began} and {}",
        told.at
    );
    let calls = &body["calls"];
    if by_voice {
        let call = &item["metadata"]["call"]["providerCallId"];
        assert_eq!(
            calls["listenUrl"],
            format!("wss://provider.example/{}", text(call))
        );
        let names = [&calls["testerCallId"], &calls["targetCallId"]];
        assert!(
            names.iter().any(|&name| name == call || *name == item["callId"]),
            "{calls:#} is not of {call}"
        );
    } else {
        assert_eq!(body.get("calls"), None);
    }
    if body["type"] == ENDED {
        let call = &item["metadata"]["call"];
        assert_eq!(body["canceled"], false);
        assert_eq!(body["failureReason"], Value::Null);
        assert_eq!(body["startedAt"], item["startedAt"]);
        assert_eq!(body["endedAt"], call["endedAt"]);
        let reason = by_voice.then_some(&call["endedReason"]);
        assert_eq!(body.get("endedReason"), reason, "a chat has none");
        let included = told.path == "/full";
        for name in ["transcript", "messages"] {
            assert_eq!(
                body.get(name),
                included.then_some(&call[name]),
                "{name}: {body:#}"
            );
        }
        let recording = (included && by_voice).then_some(&call["recordingUrl"]);
        assert_eq!(body.get("recordingUrl"), recording);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_and_calls_tell_when_they_start_and_when_they_are_over() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 50 });
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let secret = hook_secret(&api).await;
    let began = SystemClock.now_ms();

    let full = json!({
        "type": "webhook",
        "server": {"url": receiver.url("/full"), "timeoutSeconds": 10.0,
            "headers": {"x-team": "qa", "authorization": "Bearer of news"}},
        "include": {"transcript": true, "messages": true, "recordingUrl": true},
    });
    let bare = json!({"type": "webhook", "server": {"url": receiver.url("/bare")}});
    // The older names of the events mean the same.
    let hooks = json!([
        {"on": "call.started", "do": [full, bare]},
        {"on": "call.ended", "do": [full]},
        {"on": ENDED, "do": [bare]},
    ]);
    let mut body = hooked(simple_run(&stand_in, "told", 2, 2), &hooks);
    let scenario = api
        .post("/eval/simulation/scenario", &body["simulations"][0]["scenario"])
        .await;
    let names: Vec<_> = list(&scenario["hooks"])
        .iter()
        .map(|hook| text(&hook["on"]))
        .collect();
    assert_eq!(names, [STARTED, ENDED, ENDED]);
    let entry = &mut body["simulations"][0];
    *entry = json!({"type": "simulation", "scenarioId": scenario["id"], "personality": entry["personality"]});

    for (body, is_voice) in [(body.clone(), false), (by_voice(body, &endpoint), true)] {
        let run = api.post(RUNS, &body).await;
        let run = text(&run["id"]);
        assert_eq!(counts(&ended(&api, run).await), [2, 2, 0, 0, 0, 0]);
        for item in items(&api, run, 10).await {
            let id = text(&item["id"]);
            let path = format!("{RUNS}/{run}/item/{id}");
            let mut ids = Vec::new();
            for (event, places) in [(STARTED, [(0, 0), (0, 1)]), (ENDED, [(1, 0), (2, 0)])] {
                let deliveries = settled(&api, &path, event).await;
                for (delivery, (hook, action)) in deliveries.iter().zip(places) {
                    assert_eq!(
                        [
                            &delivery["hook"],
                            &delivery["action"],
                            &delivery["attempts"],
                            &delivery["statusCode"]
                        ],
                        [&json!(hook), &json!(action), &json!(1), &json!(200)]
                    );
                    assert_eq!(delivery["status"], "delivered");
                    assert!(!delivery["deliveredAt"].is_null(), "{delivery:#}");
                    assert_eq!(
                        (delivery.get("error"), delivery.get("nextAttemptAt")),
                        (None, None)
                    );
                    ids.push((text(&delivery["webhookId"]).to_owned(), event));
                }
            }
            let told = receiver.told();
            let told: Vec<_> = told
                .iter()
                .filter(|told| told.body["simulationRunItemId"] == id)
                .collect();
            let mut received: Vec<_> = told
                .iter()
                .map(|told| (told.id().to_owned(), text(&told.body["type"])))
                .collect();
            received.sort();
            ids.sort();
            assert_eq!(received, ids, "each once, under its own id");
            for told in told {
                check_told(told, &item, began, &secret, is_voice);
                let team = (told.path == "/full").then_some("qa");
                assert_eq!(told.header("x-team"), team);
                assert_eq!(told.header("authorization"), team.map(|_| "Bearer of news"));
            }
        }
        assert_items_valid(&items(&api, run, 10).await);
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_before_the_verdict() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.judge("booked", json!(true));
    stand_in.fail(Role::Judge, usize::MAX, Fault::Hang);
    let hooks = json!([hook(ENDED, &receiver.url("/over"))]);
    let mut body = hooked(simple_run(&stand_in, "early", 1, 1), &hooks);
    body["simulations"][0]["scenario"]["evaluations"] =
        json!([evaluation("booked", "boolean", "=", json!(true))]);
    let run = api.post(RUNS, &body).await;
    receiver.wait_for("the end", |told| !told.is_empty()).await;
    assert_eq!(api.get(&item_path(&run, 0)).await["status"], "evaluating");
    stand_in.release();
    assert_eq!(counts(&ended(&api, text(&run["id"])).await), [1, 1, 0, 0, 0, 0]);
    settled(&api, &item_path(&run, 0), ENDED).await;
    assert_eq!(receiver.told().len(), 1, "the verdict is not told");
    local.shutdown().await;
}

/// How a delivery is tried again.
fn plan(kind: &str, retries: u32, seconds: f64, excluded: &[u16]) -> Value {
    json!({"type": kind, "maxRetries": retries, "baseDelaySeconds": seconds, "excludedStatusCodes": excluded})
}

/// An address where nobody listens, for as long as the socket is kept: then nobody else is given it.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/gone", socket.local_addr().unwrap());
    (socket, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_fails_is_tried_again_as_its_plan_says_and_never_changes_a_verdict() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    // Where, with which plan, and what is answered; how it ends, after how many attempts, and with which status.
    let cases = [
        (
            "/flaky",
            Some(plan("fixed", 5, 0.0, &[])),
            vec![500, 500, 200],
            "delivered",
            3,
            Some(200),
        ),
        (
            "/slower",
            Some(plan("fixed", 3, 1.0, &[404])),
            vec![429, 204],
            "delivered",
            2,
            Some(204),
        ),
        (
            "/doubling",
            Some(plan("exponential", 2, 1.0, &[])),
            vec![503, 503, 201],
            "delivered",
            3,
            Some(201),
        ),
        (
            "/excluded",
            Some(plan("fixed", 5, 0.0, &[400, 404])),
            vec![404],
            "failed",
            1,
            Some(404),
        ),
        (
            "/no-retries",
            Some(plan("fixed", 0, 0.0, &[])),
            vec![500],
            "failed",
            1,
            Some(500),
        ),
        // Without a plan, what may pass by itself is tried again.
        ("/no-plan", None, vec![500, 200], "delivered", 2, Some(200)),
        (
            "/no-plan-and-no-such-path",
            None,
            vec![404],
            "failed",
            1,
            Some(404),
        ),
        (
            "/never-well",
            Some(plan("fixed", 2, 0.0, &[])),
            vec![502],
            "failed",
            3,
            Some(502),
        ),
        (
            "/asleep",
            Some(plan("fixed", 0, 0.0, &[])),
            vec![NEVER],
            "failed",
            1,
            None,
        ),
        (
            "/gone",
            Some(plan("fixed", 1, 0.0, &[])),
            vec![],
            "failed",
            2,
            None,
        ),
    ];
    let (_held, gone) = nobody();
    let mut actions = Vec::new();
    for (path, plan, answers, ..) in &cases {
        receiver.answer(path, answers);
        let url = if *path == "/gone" {
            gone.clone()
        } else {
            receiver.url(path)
        };
        let mut server = json!({ "url": url });
        if *path == "/asleep" {
            server["timeoutSeconds"] = json!(2);
        }
        if let Some(plan) = plan {
            server["backoffPlan"] = plan.clone();
        }
        actions.push(json!({"type": "webhook", "server": server}));
    }
    let hooks = json!([{"on": ENDED, "do": actions}]);
    let run = api
        .post(RUNS, &hooked(simple_run(&stand_in, "failing", 1, 1), &hooks))
        .await;
    let done = ended(&api, text(&run["id"])).await;
    assert_eq!(
        counts(&done),
        [1, 1, 0, 0, 0, 0],
        "hooks are no part of the verdict"
    );
    let path = item_path(&run, 0);
    let deliveries = settled(&api, &path, ENDED).await;
    for (delivery, (path, _, _, status, attempts, code)) in deliveries.iter().zip(&cases) {
        assert_eq!(delivery["status"], *status, "{path}: {delivery:#}");
        assert_eq!(delivery["attempts"], *attempts, "{path}: {delivery:#}");
        assert_eq!(
            delivery.get("statusCode"),
            code.map(|code: u16| json!(code)).as_ref(),
            "{path}"
        );
        assert_eq!(
            delivery.get("deliveredAt").is_some(),
            *status == "delivered",
            "{path}"
        );
        if *status == "failed" {
            assert!(!text(&delivery["error"]).is_empty(), "{path}: {delivery:#}");
        }
        assert_eq!(delivery.get("nextAttemptAt"), None, "{path}");
        let told = receiver.told_at(path);
        if *path != "/gone" {
            assert_eq!(told.len(), *attempts, "{path}");
        }
        assert!(
            told.iter().all(|told| told.id() == text(&delivery["webhookId"])),
            "{path}: one delivery has one id"
        );
        let bodies: BTreeSet<_> = told.iter().map(|told| told.raw.to_vec()).collect();
        assert!(
            bodies.len() <= 1,
            "{path}: who takes the second attempt reads what the first said"
        );
    }
    let item = api.get(&path).await;
    assert_items_valid(std::slice::from_ref(&item));
    assert_eq!(
        (item.get("failureReason"), &item["status"]),
        (None, &json!("passed"))
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_without_a_server_goes_to_the_targets_and_is_skipped_where_there_is_none() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let hooks =
        json!([{"on": STARTED, "do": [{"type": "webhook"}]}, {"on": ENDED, "do": [{"type": "webhook"}]}]);
    let lonely = hooked(simple_run(&stand_in, "lonely", 1, 1), &hooks);
    let mut served = lonely.clone();
    served["target"]["assistant"]["server"] = json!({"url": receiver.url("/assistant")});
    for (body, status, attempts) in [(lonely, "skipped", 0), (served, "delivered", 1)] {
        let run = api.post(RUNS, &body).await;
        assert_eq!(counts(&ended(&api, text(&run["id"])).await), [1, 1, 0, 0, 0, 0]);
        for event in [STARTED, ENDED] {
            let deliveries = settled(&api, &item_path(&run, 0), event).await;
            let [delivery] = &deliveries[..] else {
                panic!("{deliveries:#?}")
            };
            assert_eq!(delivery["status"], status, "{delivery:#}");
            assert_eq!(delivery["attempts"], attempts, "{delivery:#}");
        }
        assert_eq!(
            receiver.told().len(),
            2 * attempts,
            "a start and an end, or nothing"
        );
    }
    assert!(receiver.told().iter().all(|told| told.path == "/assistant"));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_a_private_address_unless_the_operator_allows_it() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local_with(&stand_in, |options| options.allow_private_targets = false).await;
    // The operator's own model plays the target as well: it may be on the loopback interface.
    let hooks = json!([
        hook(STARTED, &receiver.url("/started")),
        hook(ENDED, &receiver.url("/ended")),
        hook(ENDED, "http://169.254.169.254/latest/meta-data"),
    ]);
    let mut body = hooked(simple_run(&stand_in, "guarded", 2, 1), &hooks);
    body["simulations"][0]["scenario"]["evaluations"] =
        json!([regex("talked", "User: .*caller", "boolean", "=", json!(true))]);
    body["target"]["assistant"]["model"] = json!({"provider": "openai", "model": "target",
        "messages": [{"role": "system", "content": "You run a clinic."}]});
    let run = api.post(RUNS, &body).await;
    let done = ended(&api, text(&run["id"])).await;
    let path = item_path(&run, 0);
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{:#}", api.get(&path).await);
    for event in [STARTED, ENDED] {
        for delivery in settled(&api, &path, event).await {
            assert_eq!(delivery["status"], "failed", "{delivery:#}");
            assert!(text(&delivery["error"]).contains("private"), "{delivery:#}");
            assert_eq!(delivery.get("statusCode"), None);
        }
    }
    assert_eq!(receiver.told().len(), 0);

    // Nor is a provider there.
    let endpoint = endpoint(&api, &provider).await;
    let run = api.post(RUNS, &by_voice(body, &endpoint)).await;
    let done = ended(&api, text(&run["id"])).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    let item = api.get(&item_path(&run, 0)).await;
    assert!(text(&item["failureReason"]).contains("private"), "{item:#}");
    assert_ne!(
        item["failureFault"], "target",
        "the agent under test has no part in it"
    );
    assert_eq!((provider.asked().placings, receiver.told().len()), (0, 0));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_canceled_says_so_and_who_never_left_the_queue_says_nothing() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        options.settings.insert("CALL_SLOTS".to_owned(), "2".to_owned());
    })
    .await;
    let endpoint = endpoint(&api, &provider).await;
    let url = receiver.url("/told");
    let hooks = json!([hook(STARTED, &url), hook(ENDED, &url)]);
    let body = hooked(simple_run(&stand_in, "stopped", 2, 2), &hooks);

    // Two calls, of which one waits for the slots of the other.
    let run = api.post(RUNS, &by_voice(body.clone(), &endpoint)).await;
    let calls = provider.wait_for("a call", |calls| !calls.is_empty()).await;
    let up = calls[0].idempotency_key.clone();
    assert_eq!(provider.send_started(&calls[0].id).await, 200);
    receiver.wait_for("its start", |told| told.len() == 1).await;
    api.patch(&format!("{RUNS}/{}", text(&run["id"]))).await;
    let done = ended(&api, text(&run["id"])).await;
    assert_eq!(counts(&done), [2, 0, 0, 0, 0, 2]);
    let told = receiver.wait_for("its end", |told| told.len() >= 2).await;
    assert_eq!(told[1].about(), (up.clone(), ENDED.to_owned()));
    assert_eq!(told[1].body["canceled"], true);
    assert_eq!(told[1].body["failureReason"], Value::Null);

    // Two chats in the middle of a reply.
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let run = api.post(RUNS, &body).await;
    until("two targets to hang", LONG, async || {
        (stand_in.count_of(Role::Target) == 2).then_some(())
    })
    .await;
    api.patch(&format!("{RUNS}/{}", text(&run["id"]))).await;
    let chats: BTreeSet<_> = list(&run["simulationRunItemIds"])
        .iter()
        .map(|id| text(id).to_owned())
        .collect();
    let told = receiver
        .wait_for("two more starts and ends", |told| told.len() >= 6)
        .await;
    let mut about: Vec<_> = told[2..].iter().map(Told::about).collect();
    about.sort();
    let each = |id: &String| [(id.clone(), ENDED.to_owned()), (id.clone(), STARTED.to_owned())];
    let mut expected: Vec<_> = chats.iter().flat_map(each).collect();
    expected.sort();
    assert_eq!(
        about, expected,
        "and nothing of the call that was never placed, which was canceled long before"
    );
    for told in told.iter().filter(|told| told.body["type"] == ENDED) {
        assert_eq!(told.body["canceled"], true);
    }
    stand_in.release();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_replaced_without_a_hook_that_cannot_be_verified() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let first = hook_secret(&api).await;
    assert!(first.starts_with("whsec_"));
    assert_eq!(hook_secret(&api).await, first, "it is made once");
    let hooks = json!([hook(ENDED, &receiver.url("/signed"))]);
    let body = hooked(simple_run(&stand_in, "signed", 1, 1), &hooks);
    let tell = async || {
        let run = api.post(RUNS, &body).await;
        settled(&api, &item_path(&run, 0), ENDED).await;
        receiver.told().pop().unwrap()
    };
    let secrets = async || {
        let answer = api.get("/hook/secret").await;
        let secret = |one: &Value| (text(&one["id"]).to_owned(), text(&one["secret"]).to_owned());
        list(&answer["secrets"])
            .iter()
            .map(secret)
            .collect::<BTreeMap<_, _>>()
    };
    let told = tell().await;
    assert_eq!((told.signatures(), told.is_signed_with(&first)), (1, true));

    api.post("/hook/secret", &json!({})).await;
    let both = secrets().await;
    assert_eq!(both.len(), 2);
    let second = both.values().find(|&secret| *secret != first).unwrap();
    let told = tell().await;
    assert_eq!(told.signatures(), 2);
    assert!(told.is_signed_with(&first) && told.is_signed_with(second));

    let (old, _) = both.iter().find(|(_, secret)| **secret == first).unwrap();
    api.delete(&format!("/hook/secret/{old}")).await;
    assert_eq!(secrets().await.values().collect::<Vec<_>>(), [second]);
    let told = tell().await;
    assert_eq!(told.signatures(), 1);
    assert!(told.is_signed_with(second) && !told.is_signed_with(&first));
    let (status, _) = api
        .call(Method::DELETE, &format!("/hook/secret/{old}"), None)
        .await;
    assert_eq!(status, 404, "it is gone");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_could_not_be_held_says_why() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    provider.answer_placing(Placing::Refuse(422));
    let hooks = json!([
        hook(STARTED, &receiver.url("/told")),
        hook(ENDED, &receiver.url("/told"))
    ]);
    let body = hooked(simple_run(&stand_in, "refused", 1, 1), &hooks);
    let run = api.post(RUNS, &by_voice(body, &endpoint)).await;
    let done = ended(&api, text(&run["id"])).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    settled(&api, &item_path(&run, 0), ENDED).await;
    let item = api.get(&item_path(&run, 0)).await;
    let told = receiver.told();
    assert_eq!(told.len(), 1, "it never started");
    let body = &told[0].body;
    assert_eq!((&body["type"], &body["canceled"]), (&json!(ENDED), &json!(false)));
    assert_eq!(body["failureReason"], item["failureReason"]);
    assert!(text(&body["failureReason"]).contains("422"), "{body:#}");
    assert_eq!(
        (body.get("calls"), body.get("startedAt"), body.get("endedReason")),
        (None, None, None)
    );
    local.shutdown().await;
}
