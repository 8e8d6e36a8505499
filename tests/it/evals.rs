//! Evals: mock conversations with checkpoints, over HTTP and against agents and judges that say what their prompts tell them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json,
    extract::{OriginalUri, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use reqwest::Method;
use ringback_local::serve::Local;
use ringback_shared::{
    clock::Deadline,
    store::{RunKey, RunKind},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    api::{UNKNOWN, assert_refused},
    fixtures::{LONG, assert_valid, list, text},
    server::{Api, Server, local, until},
    stand_in::StandIn,
};

const EVAL: &str = "/eval";
const RUN: &str = "/eval/run";

/// What was asked of it: the path and the body.
type Asked = (String, Value);

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    hangs: AtomicBool,
    latency_ms: AtomicU64,
}

/// Agents, judges and tools. What one of the models says is in its system prompt as JSON between `<<` and `>>`: `on` gives a reply
/// for what was said last; `verdict` is a judge's; with `passIf` a judge passes what contains that.
pub(crate) struct Script {
    pub(crate) base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl Script {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            shared,
            _server: server,
        }
    }

    /// The `model` of an agent or judge with these instructions.
    fn model(&self, who: &str, prompt: &str) -> Value {
        json!({
            "provider": "custom-llm", "model": who, "url": format!("{}/{who}/v1", self.base),
            "messages": [{"role": "system", "content": prompt}],
        })
    }

    /// An assistant that says what `on` has for what was said last.
    fn agent(&self, on: &Value) -> Value {
        let mut agent = json!({"name": "Clinic", "model": self.model("target", &format!("You run a clinic. <<{}>>", json!({ "on": on })))});
        agent["model"]["tools"] = json!([
            {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {"time": {}}}}},
            {"type": "function", "function": {"name": "weather"}},
        ]);
        agent
    }

    pub(crate) fn asked_of(&self, who: &str) -> Vec<Value> {
        let asked = self.shared.asked.lock().unwrap();
        let of = asked
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("/{who}/")));
        of.map(|(_, body)| body.clone()).collect()
    }

    fn count(&self) -> usize {
        self.shared.asked.lock().unwrap().len()
    }

    fn hang(&self, hangs: bool) {
        self.shared.hangs.store(hangs, Ordering::Relaxed);
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    OriginalUri(uri): OriginalUri,
    Json(body): Json<Value>,
) -> Response {
    shared
        .asked
        .lock()
        .unwrap()
        .push((uri.path().to_owned(), body.clone()));
    let latency = shared.latency_ms.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(latency)).await;
    while shared.hangs.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if uri.path().starts_with("/tool/") {
        let call = &body["message"]["toolCallList"][0];
        let result = format!(
            "Sunny in {}",
            call["arguments"]["city"].as_str().unwrap_or("town")
        );
        return Json(json!({"results": [{"toolCallId": call["id"], "result": result}]})).into_response();
    }
    let messages = list(&body["messages"]);
    let all: String = messages
        .iter()
        .filter(|message| message["role"] == "system" || uri.path().starts_with("/judge/"))
        .filter_map(|message| message["content"].as_str())
        .collect();
    let directive = all
        .split_once("<<")
        .and_then(|(_, rest)| rest.split_once(">>"))
        .and_then(|(directive, _)| serde_json::from_str::<Value>(directive).ok())
        .unwrap_or_default();
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] != "system")
        .and_then(|message| message["content"].as_str())
        .unwrap_or_default();
    let reply = if let Some(wanted) = directive["passIf"].as_str() {
        let told = all.split_once(">>").map_or("", |(_, told)| told);
        json!(if told.contains(wanted) { "pass" } else { "fail" })
    } else if directive["verdict"].is_string() {
        directive["verdict"].clone()
    } else {
        directive["on"]
            .get(last)
            .cloned()
            .unwrap_or(json!("I do not know."))
    };
    if let Some(status) = reply["status"].as_u64() {
        let status = StatusCode::from_u16(u16::try_from(status).unwrap()).unwrap();
        return (status, Json(json!({"error": {"message": "no"}}))).into_response();
    }
    let message = match &reply {
        Value::String(text) => json!({"role": "assistant", "content": text}),
        reply => {
            let calls = reply["calls"].as_array().cloned().unwrap_or_default();
            let calls: Vec<Value> = calls
                .iter()
                .enumerate()
                .map(|(n, call)| {
                    let function = json!({"name": call["name"], "arguments": call["arguments"].to_string()});
                    json!({"id": format!("made_{n}"), "type": "function", "function": function})
                })
                .collect();
            json!({"role": "assistant", "content": reply["say"], "tool_calls": calls})
        }
    };
    Json(json!({
        "model": body["model"], "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }))
    .into_response()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn checkpoint(plan: Value) -> Value {
    json!({"role": "assistant", "judgePlan": plan})
}

fn exact(content: &str) -> Value {
    checkpoint(json!({"type": "exact", "content": content}))
}

fn regex(pattern: &str) -> Value {
    checkpoint(json!({"type": "regex", "content": pattern}))
}

fn eval(messages: &[Value]) -> Value {
    json!({"type": "chat.mockConversation", "messages": messages})
}

fn target(agent: &Value) -> Value {
    json!({"type": "assistant", "assistant": agent})
}

fn run_of(messages: &[Value], agent: &Value) -> Value {
    json!({"type": "eval", "eval": eval(messages), "target": target(agent)})
}

async fn ended(api: &Api, id: &Value) -> Value {
    let run = until("the run to end", LONG, async || {
        let run = api.get(&format!("{RUN}/{}", text(id))).await;
        (run["status"] == "ended").then_some(run)
    })
    .await;
    assert_valid("EvalRun", &run);
    run
}

async fn played(api: &Api, body: &Value) -> Value {
    let created = api.post(RUN, body).await;
    assert_eq!(
        (&created["evalRunId"], &created["workflowId"]),
        (&created["id"], &created["id"])
    );
    assert_eq!(created["status"], "queued");
    for later in ["endedReason", "endedAt"] {
        assert_eq!(created.get(later), None, "{created:#}");
    }
    assert_eq!(
        (&created["results"], &created["cost"], &created["costs"]),
        (&json!([]), &json!(0), &json!([]))
    );
    ended(api, &created["id"]).await
}

/// Keeps an eval of one exact checkpoint, and plays it; gives the run as it is when it has ended.
pub(crate) async fn one_eval(api: &Api, script: &Script) -> Value {
    let eval = api.post(EVAL, &eval(&[user("Hello"), exact("Hi")])).await;
    let agent = script.agent(&json!({"Hello": "Hi"}));
    let body = json!({"type": "eval", "evalId": eval["id"], "target": target(&agent)});
    played(api, &body).await
}

/// The verdicts on the judged messages of a run's only result, with their reasons.
fn verdicts(run: &Value) -> Vec<(String, Option<String>)> {
    let messages = list(&run["results"][0]["messages"]);
    let judged = messages.iter().filter_map(|message| message.get("judge"));
    judged
        .map(|judge| {
            let reason = judge["failureReason"].as_str().map(str::to_owned);
            (text(&judge["status"]).to_owned(), reason)
        })
        .collect()
}

async fn start() -> (Script, StandIn, Local, Api) {
    let (script, stand_in) = (Script::start().await, StandIn::start().await);
    let (local, api) = local(&stand_in).await;
    (script, stand_in, local, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_evals_give_their_documented_verdicts() {
    let (script, _stand_in, local, api) = start().await;
    let agent = script.agent(&json!({
        "Hello": "Hello! How can I help?",
        "Book at two": {"say": null, "calls": [{"name": "book", "arguments": {"time": "2:00 PM"}}]},
        "Book at 14": {"calls": [{"name": "book", "arguments": {"time": "14:00", "n": 14}}]},
        "Both": {"calls": [{"name": "book", "arguments": {"time": "14:00"}}, {"name": "weather", "arguments": {}}]},
        "Weather?": "It is Sunny today.",
        "{\"booked\": true}": "Your appointment is confirmed.",
    }));
    let calls = |kind: &str, calls: Value| checkpoint(json!({"type": kind, "toolCalls": calls}));
    let pass = |n: usize| vec![("pass".to_owned(), None); n];
    let fail = |reason: &str| vec![("fail".to_owned(), Some(reason.to_owned()))];
    let judge = |prompt: &str| {
        let model = script.model("judge", prompt);
        checkpoint(json!({"type": "ai", "model": model}))
    };
    let tool = json!({"role": "tool", "content": "{\"booked\": true}"});
    for (messages, expected) in [
        (vec![user("Hello"), exact("hello! HOW can i help?")], pass(1)),
        (
            vec![user("Hello"), exact("Hello! How can I help")],
            fail("Expected exact match: 'Hello! How can I help' but got: 'Hello! How can I help?'"),
        ),
        (
            vec![
                user("Book at two"),
                calls("exact", json!([{"name": "book", "arguments": {"time": "14:00"}}])),
            ],
            fail("Tool call arguments mismatch. Expected time: '14:00' but got: '2:00 PM'"),
        ),
        // Types matter, and arguments may come as the text of an object.
        (
            vec![
                user("Book at 14"),
                calls(
                    "exact",
                    json!([{"name": "book", "arguments": "{\"time\": \"14:00\", \"n\": 14.0}"}]),
                ),
            ],
            pass(1),
        ),
        (
            vec![
                user("Book at 14"),
                calls(
                    "exact",
                    json!([{"name": "book", "arguments": {"time": "14:00", "n": "14"}}]),
                ),
            ],
            fail("Tool call arguments mismatch. Expected n: '14' but got: '14' (a string but got a number)"),
        ),
        // In order, by their names where there are no arguments.
        (
            vec![
                user("Both"),
                calls("exact", json!([{"name": "book"}, {"name": "weather"}])),
            ],
            pass(1),
        ),
        (
            vec![
                user("Both"),
                calls("exact", json!([{"name": "weather"}, {"name": "book"}])),
            ],
            fail("Expected tool calls: 'weather, book' but got: 'book, weather'"),
        ),
        (
            vec![user("Both"), calls("exact", json!([{"name": "book"}]))],
            fail("Expected tool calls: 'book' but got: 'book, weather'"),
        ),
        // Any part, bare, between slashes with flags, and what looks ahead.
        (vec![user("Weather?"), regex("Sunny")], pass(1)),
        (vec![user("Weather?"), regex("/sunny|warm/i")], pass(1)),
        (vec![user("Weather?"), regex("(?i)SUNNY")], pass(1)),
        (
            vec![user("Weather?"), regex("^(?![\\s\\S]*rain)[\\s\\S]+$")],
            pass(1),
        ),
        (
            vec![user("Weather?"), regex("rainy")],
            fail("Expected match of pattern: 'rainy' but got: 'It is Sunny today.'"),
        ),
        (
            vec![
                user("Book at two"),
                calls(
                    "regex",
                    json!([{"name": "book", "arguments": {"time": "^2:\\d\\d"}}]),
                ),
            ],
            pass(1),
        ),
        (
            vec![
                user("Book at two"),
                checkpoint(json!({"type": "regex", "content": "[\\s\\S]*",
                "toolCalls": [{"name": "book", "arguments": {"time": "^14"}}]})),
            ],
            fail("Tool call arguments mismatch. Expected time: '^14' but got: '2:00 PM'"),
        ),
        // A call, what the tool gives back, and what comes of it.
        (
            vec![
                user("Book at two"),
                calls("exact", json!([{"name": "book"}])),
                tool,
                regex("/confirmed/i"),
            ],
            pass(2),
        ),
        // By a model: what it is told is filled in, and it says one word.
        (
            vec![
                user("Weather?"),
                judge("<<{\"passIf\": \"Sunny\"}>> Judge this: {{messages[-1]}}"),
            ],
            pass(1),
        ),
        (
            vec![
                user("Weather?"),
                judge("<<{\"passIf\": \"Weather?\"}>> Judge this: {{ messages }}"),
            ],
            pass(1),
        ),
        (
            vec![
                user("Weather?"),
                judge("<<{\"passIf\": \"Weather?\"}>> Judge this: {{messages[-1].content}}"),
            ],
            fail("The judge's verdict is fail"),
        ),
        (
            vec![user("Weather?"), judge("<<{\"verdict\": \" **Pass**.\"}>>")],
            pass(1),
        ),
        (
            vec![user("Weather?"), judge("<<{\"verdict\": \"It passes\"}>>")],
            fail("The judge's verdict cannot be read: expected 'pass' or 'fail' but got: 'It passes'"),
        ),
    ] {
        let run = played(&api, &run_of(&messages, &agent)).await;
        assert_eq!(verdicts(&run), expected, "{run:#}");
        let passed = expected.iter().all(|(status, _)| status == "pass");
        assert_eq!(run["results"][0]["status"], if passed { "pass" } else { "fail" });
        assert_eq!(
            (&run["endedReason"], run.get("endedMessage")),
            (&json!("mockConversation.done"), None)
        );
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_how_the_conversation_goes_on() {
    let (script, _stand_in, local, api) = start().await;
    let agent = script.agent(&json!({
        "Hello": "Good day.", "Again": "Good day again.", "Once more": "And once more.",
    }));
    let mut stops = exact("Hi.");
    stops["continuePlan"] = json!({"exitOnFailureEnabled": true});
    let messages = [
        user("Hello"),
        stops.clone(),
        user("Again"),
        exact("Good day again."),
    ];
    let run = played(&api, &run_of(&messages, &agent)).await;
    assert_eq!(verdicts(&run).len(), 1);
    assert_eq!(
        list(&run["results"][0]["messages"]).len(),
        2,
        "later turns are not played"
    );
    assert_eq!(run["endedReason"], "mockConversation.done");

    // Without it, all is played; an override is what the target has said from then on, whatever the verdict was.
    let mut goes_on = exact("Good day.");
    goes_on["continuePlan"] = json!({"contentOverride": "Welcome to the clinic."});
    let before = script.count();
    let messages = [
        json!({"role": "system", "content": "The caller is in a hurry."}),
        user("Hello"),
        goes_on,
        json!({"role": "assistant", "toolCalls": [{"name": "weather", "arguments": {"city": "Bern"}}]}),
        json!({"role": "tool", "content": "Rain"}),
        user("Again"),
        exact("nothing like it"),
        user("Once more"),
        exact("and once MORE."),
    ];
    let run = played(&api, &run_of(&messages, &agent)).await;
    let statuses: Vec<String> = verdicts(&run).into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, ["pass", "fail", "pass"]);
    assert_eq!(run["results"][0]["status"], "fail");
    let shown = list(&run["results"][0]["messages"]);
    assert_eq!(shown.len(), messages.len());
    assert_eq!(
        (&shown[2]["content"], &shown[2]["continuedWith"]["content"]),
        (&json!("Good day."), &json!("Welcome to the clinic."))
    );
    assert_eq!(script.count() - before, 3);
    let asked = script.asked_of("target").pop().unwrap();
    let told: Vec<Value> = list(&asked["messages"])[1..].to_vec();
    let roles: Vec<&str> = told.iter().map(|message| text(&message["role"])).collect();
    assert_eq!(
        roles,
        [
            "system",
            "user",
            "assistant",
            "assistant",
            "tool",
            "user",
            "assistant",
            "user"
        ]
    );
    assert_eq!(told[2]["content"], "Welcome to the clinic.");
    let call = &told[3]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], "{\"city\":\"Bern\"}");
    assert_eq!(
        (&told[4]["tool_call_id"], &told[4]["content"]),
        (&call["id"], &json!("Rain"))
    );
    assert_eq!(told[6]["content"], "Good day again.");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_without_a_mock_run_only_if_the_request_says_so() {
    let (script, _stand_in, local, api) = start().await;
    let mut agent = script.agent(&json!({
        "Weather?": {"calls": [{"name": "weather", "arguments": {"city": "Bern"}}]},
        "Thanks": "You are welcome.",
    }));
    agent["model"]["tools"][1]["server"] = json!({"url": format!("{}/tool/weather", script.base)});
    let judge = script.model("judge", "<<{\"passIf\": \"Sunny in Bern\"}>> {{messages[-1]}}");
    let messages = [
        user("Weather?"),
        checkpoint(json!({"type": "exact", "toolCalls": [{"name": "weather"}]})),
        json!({"role": "tool", "judgePlan": {"type": "ai", "model": judge}}),
        user("Thanks"),
        exact("You are welcome."),
    ];
    let mut body = run_of(&messages, &agent);
    let run = played(&api, &body).await;
    assert!(script.asked_of("tool").is_empty());
    let reason = verdicts(&run)[1].1.clone().unwrap();
    assert!(
        reason.contains("weather was not run") && reason.contains("unmockedTools"),
        "{reason}"
    );

    body["unmockedTools"] = json!("run");
    let run = played(&api, &body).await;
    assert_eq!(script.asked_of("tool").len(), 1);
    assert_eq!(run["results"][0]["status"], "pass", "{run:#}");
    assert_eq!(run["unmockedTools"], "run");
    let response = &run["results"][0]["messages"][2];
    assert_eq!(
        (&response["role"], &response["content"]),
        (&json!("tool"), &json!("Sunny in Bern"))
    );
    let told = script.asked_of("target").pop().unwrap();
    assert!(told["messages"].to_string().contains("Sunny in Bern"));

    // No call, no response.
    let messages = [user("Thanks"), exact("You are welcome."), messages[2].clone()];
    let run = played(&api, &run_of(&messages, &agent)).await;
    assert!(verdicts(&run)[1].1.as_deref().unwrap().contains("called no tool"));
    body["unmockedTools"] = json!("maybe");
    assert_refused(
        &api.call(Method::POST, RUN, Some(&body)).await,
        400,
        "unmockedTools",
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_evals_stored_targets_squads_and_overrides() {
    let (script, _stand_in, local, api) = start().await;
    let mut agent = script.agent(&json!({"Hello": "Good day."}));
    agent["model"]["messages"][0]["content"] =
        json!("Clinic in {{city}}. <<{\"on\": {\"Where?\": \"In {{city}}.\", \"Hello\": \"Good day.\"}}>>");
    let agent = api.post("/assistant", &agent).await;
    let stored = api
        .post(
            EVAL,
            &json!({"name": "Greets", "messages": [user("Hello"), exact("Good day.")]}),
        )
        .await;
    assert_valid("Eval", &stored);
    let inline = json!({"messages": [user("Where?"), exact("In Bern.")]});
    let body = json!({
        "evals": [{"evalId": stored["id"]}, {"eval": inline}, {"eval": {"messages": [user("Hello"), exact("no")]}}],
        "target": {"type": "assistant", "assistantId": agent["id"], "assistantOverrides": {"variableValues": {"city": "Bern"}}},
    });
    let run = played(&api, &body).await;
    let statuses: Vec<&Value> = list(&run["results"])
        .iter()
        .map(|result| &result["status"])
        .collect();
    assert_eq!(statuses, ["pass", "pass", "fail"], "{run:#}");
    assert_eq!(list(&run["evals"]).len(), 3);
    assert_eq!(run["target"]["assistantId"], agent["id"]);

    // A member hands over, and the next one answers.
    let desk = json!({"name": "Desk", "model": script.model("desk",
        "<<{\"on\": {\"A bill\": {\"calls\": [{\"name\": \"handoff_to_Billing\", \"arguments\": {}}]}}}>>")});
    let billing = json!({"name": "Billing", "model": script.model("billing", "<<{\"on\": {\"How much?\": \"Ten.\"}}>>")});
    let squad = json!({"members": [
        {"assistant": desk, "assistantDestinations": [{"type": "assistant", "assistantName": "Billing"}]},
        {"assistant": billing},
    ]});
    let messages = [
        user("A bill"),
        checkpoint(
            json!({"type": "exact", "toolCalls": [{"name": "handoff_to_Billing", "arguments": {"destination": "billing"}}]}),
        ),
        user("How much?"),
        exact("Ten."),
    ];
    let body = json!({"eval": eval(&messages), "target": {"type": "squad", "squad": squad}});
    let run = played(&api, &body).await;
    assert_eq!(run["results"][0]["status"], "pass", "{run:#}");
    let told = script.asked_of("billing").pop().unwrap();
    let said: Vec<&Value> = list(&told["messages"])
        .iter()
        .filter(|message| message["role"] == "user")
        .map(|message| &message["content"])
        .collect();
    assert_eq!(said, ["A bill", "How much?"], "{told:#}");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evals_and_their_runs_are_kept_listed_and_deleted() {
    let (script, _stand_in, local, api) = start().await;
    let agent = script.agent(&json!({"Hello": "Good day."}));
    let body = json!({"name": "Greets", "description": "d", "type": "chat.mockConversation", "messages": [user("Hello"), exact("Good day.")]});
    let greets = api.post(EVAL, &body).await;
    let other = api.post(EVAL, &json!({"messages": [user(""), regex("x")]})).await;
    assert_eq!(api.get(&format!("{EVAL}/{}", text(&greets["id"]))).await, greets);
    let page = api.get(EVAL).await;
    assert_valid("EvalPaginatedResponse", &page);
    assert_eq!(list(&page["results"]).len(), 2);
    let page = api.get(&format!("{EVAL}?id={}", text(&other["id"]))).await;
    assert_eq!(list(&page["results"]), std::slice::from_ref(&other));
    let change = json!({"name": "Greets well"});
    let (status, changed) = api
        .call(
            Method::PATCH,
            &format!("{EVAL}/{}", text(&greets["id"])),
            Some(&change),
        )
        .await;
    assert_eq!(
        (status, &changed["name"], &changed["messages"]),
        (200, &change["name"], &greets["messages"])
    );
    for (body, why) in [
        (json!({"messages": [regex("(")]}), "messages.0.judgePlan.content"),
        (
            json!({"messages": [{"role": "assistant", "judgePlan": {"type": "exact"}}]}),
            "messages.0.judgePlan.content",
        ),
        (
            json!({"messages": [user(&"x".repeat(1001))]}),
            "messages.0.content",
        ),
        (json!({"messages": [{"role": "judge"}]}), "role"),
        (json!({"messages": [], "name": ""}), "name"),
    ] {
        assert_refused(&api.call(Method::POST, EVAL, Some(&body)).await, 400, why);
    }

    let run = |id: &Value| json!({"evalId": id, "target": target(&agent)});
    let first = played(&api, &run(&greets["id"])).await;
    assert_eq!((&first["evalId"], first.get("eval")), (&greets["id"], None));
    let second = played(&api, &run_of(&[user("Hello"), exact("Good day.")], &agent)).await;
    for (query, expected) in [
        ("", vec![&second, &first]),
        ("?sortOrder=ASC&limit=1", vec![&first]),
        (&*format!("?id={}", text(&first["id"])), vec![&first]),
        (&*format!("?evalId={}", text(&greets["id"])), vec![&first]),
        ("?search=greets%20WELL", vec![&first]),
        (&*format!("?search={}", text(&second["id"])), vec![&second]),
        ("?search=nothing", vec![]),
        ("?status=running", vec![]),
    ] {
        let page = api.get(&format!("{RUN}{query}")).await;
        assert_valid("EvalRunPaginatedResponse", &page);
        let shown: Vec<&Value> = list(&page["results"]).iter().collect();
        assert_eq!(shown, expected, "{query}");
    }
    // Runs of evals are no runs of simulations, and the other way round.
    let foreign = api
        .call(
            Method::GET,
            &format!("/eval/simulation/run/{}", text(&first["id"])),
            None,
        )
        .await;
    assert_refused(&foreign, 404, "not found");

    // An eval that is deleted leaves its runs; a run that is deleted is gone.
    assert_eq!(
        api.delete(&format!("{EVAL}/{}", text(&greets["id"]))).await,
        changed
    );
    assert_eq!(api.get(&format!("{RUN}/{}", text(&first["id"]))).await, first);
    let refused = api.call(Method::POST, RUN, Some(&run(&greets["id"]))).await;
    assert_refused(&refused, 404, "Eval");
    assert_eq!(api.delete(&format!("{RUN}/{}", text(&first["id"]))).await, first);
    let gone = api
        .call(Method::GET, &format!("{RUN}/{}", text(&first["id"])), None)
        .await;
    assert_refused(&gone, 404, "Eval run");
    assert_eq!(api.get(RUN).await["metadata"]["totalItems"], 1);

    // What a run needs.
    let no_checkpoint = json!({"eval": eval(&[user("Hello")]), "target": target(&agent)});
    for (body, status, why) in [
        (no_checkpoint, 400, "checkpoint"),
        (json!({"target": target(&agent)}), 400, "evalId"),
        (
            json!({"evalId": UNKNOWN, "eval": eval(&[]), "target": target(&agent)}),
            400,
            "eval",
        ),
        (json!({"evals": [], "target": target(&agent)}), 400, "evals"),
        (run(&json!(UNKNOWN)), 404, "Eval"),
        (
            json!({"evalId": other["id"], "target": {"type": "assistant", "assistantId": UNKNOWN}}),
            404,
            "Assistant",
        ),
        (
            json!({"evalId": other["id"], "target": {"type": "agent"}}),
            400,
            "target",
        ),
    ] {
        assert_refused(&api.call(Method::POST, RUN, Some(&body)).await, status, why);
    }

    // The same request is answered by the same run.
    let body = run(&other["id"]);
    let send = async |body: &Value| {
        let request = api
            .request(Method::POST, RUN)
            .header("Idempotency-Key", "k")
            .json(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, once) = send(&body).await;
    assert_eq!(status, 201);
    ended(&api, &once["id"]).await;
    assert_eq!(send(&body).await, (201, once));
    let changed = json!({"evalId": other["id"], "target": target(&script.agent(&json!({})))});
    assert_eq!(send(&changed).await.0, 409);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_breaks_off_says_why_and_shows_how_far_it_came() {
    let (script, _stand_in, local, api) = start().await;
    let agent = script.agent(&json!({"Hello": "Good day.", "Broken": {"status": 400}}));
    let messages = [
        user("Hello"),
        exact("Good day."),
        user("Broken"),
        exact("x"),
        user("Hello"),
        exact("y"),
    ];
    let run = played(&api, &run_of(&messages, &agent)).await;
    assert_eq!(run["endedReason"], "error");
    assert!(text(&run["endedMessage"]).contains("400"), "{run:#}");
    assert_eq!(run["results"][0]["status"], "fail");
    assert_eq!(verdicts(&run), [("pass".to_owned(), None)]);
    assert_eq!(list(&run["results"][0]["messages"]).len(), 3);

    // Stopped while the target is silent.
    script.hang(true);
    let created = api.post(RUN, &run_of(&messages, &agent)).await;
    let path = format!("{RUN}/{}", text(&created["id"]));
    let before = script.count();
    let running = until("the run to be running", LONG, async || {
        let run = api.get(&path).await;
        (run["status"] == "running").then_some(run)
    })
    .await;
    assert_eq!(
        (running.get("endedReason"), &running["results"]),
        (None, &json!([]))
    );
    api.patch(&path).await;
    let canceled = ended(&api, &created["id"]).await;
    assert_eq!(canceled["endedReason"], "cancelled");
    assert_eq!(canceled["results"][0]["status"], "fail");
    let again = api.call(Method::PATCH, &path, None).await;
    assert_refused(&again, 400, "already ended");

    // Deleted while it is running: it is stopped, and what is kept of it goes when nobody works on it any more.
    let created = api.post(RUN, &run_of(&messages, &agent)).await;
    until("the target to be asked", LONG, async || {
        (script.count() > before + 1).then_some(())
    })
    .await;
    let path = format!("{RUN}/{}", text(&created["id"]));
    api.delete(&path).await;
    assert_refused(&api.call(Method::GET, &path, None).await, 404, "not found");
    script.hang(false);
    let ctx = local.context();
    let key = RunKey {
        org: text(&created["orgId"]).parse().unwrap(),
        kind: RunKind::Eval,
        run: text(&created["id"]).parse().unwrap(),
    };
    let head = until("the deleted run to end", LONG, async || {
        let head = ctx.store.run(key).await.unwrap()?;
        head.ended_at.is_some().then_some(head)
    })
    .await;
    assert!(!head.is_deletable(ctx.clock.now_ms()));
    let later = head.deleted_at.unwrap() + 240_000;
    assert!(head.is_deletable(later));
    ctx.store.delete_run(&head).await.unwrap();
    assert_eq!(ctx.store.run(key).await.unwrap(), None);
    assert!(ctx.store.items_from(key.run, 0, 9).await.unwrap().is_empty());
    assert!(ctx.store.manifest(key.run).await.is_err());
    // A sweep that comes late finds nothing to do.
    ringback_sweep::handle(
        ctx,
        ringback_sweep::Scope::Everything,
        Deadline::after(Duration::from_secs(30)),
    )
    .await
    .unwrap();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_has_timed_out() {
    let (script, stand_in) = (Script::start().await, StandIn::start().await);
    let server = Server::start_with(&stand_in, &[], &[("MAX_CONVERSATION_SECONDS", "1")]).await;
    script.shared.latency_ms.store(1_100, Ordering::Relaxed);
    let agent = script.agent(&json!({"Hello": "Good day."}));
    let messages = [
        user("Hello"),
        exact("Good day."),
        user("Hello"),
        exact("Good day."),
    ];
    let run = played(&server.api, &run_of(&messages, &agent)).await;
    assert_eq!(run["endedReason"], "timeout");
    assert!(text(&run["endedMessage"]).contains("1 s"), "{run:#}");
    assert_eq!(verdicts(&run), [("pass".to_owned(), None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_are_told_by_model_and_what_is_unknown_is_named() {
    let (script, stand_in) = (Script::start().await, StandIn::start().await);
    let prices = json!({"target": {"prompt": 2, "completion": 8}}).to_string();
    let server = Server::start_with(&stand_in, &[], &[("MODEL_PRICES", &prices)]).await;
    let agent = script.agent(&json!({"Hello": "Good day."}));
    let judge = script.model("judge", "<<{\"verdict\": \"pass\"}>>");
    let messages = [
        user("Hello"),
        exact("Good day."),
        user("Hello"),
        checkpoint(json!({"type": "ai", "model": judge})),
    ];
    let run = played(&server.api, &run_of(&messages, &agent)).await;
    // 200 tokens read at 2 dollars for a million, and 20 written at 8.
    assert_eq!(run["cost"], json!(0.00056), "{run:#}");
    assert_eq!(
        run["costs"],
        json!([
            {"type": "model", "model": "target", "cost": 0.00056, "promptTokens": 200, "completionTokens": 20},
            {"type": "model", "model": "judge", "cost": null, "unknown": true, "promptTokens": 100, "completionTokens": 10},
        ])
    );
    assert_eq!(run["costsUnknown"], json!(["judge"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_goes_on_without_a_verdict_lost_or_doubled() {
    let (script, stand_in) = (Script::start().await, StandIn::start().await);
    // Slices that are over before a conversation is.
    let mut server = Server::start_with(&stand_in, &[], &[("SLICE_SECONDS", "1")]).await;
    script.shared.latency_ms.store(100, Ordering::Relaxed);
    let agent = script.agent(&json!({"Hello": "Good day."}));
    let judge = script.model("judge", "<<{\"passIf\": \"Good day\"}>> {{messages[-1]}}");
    let mut messages = Vec::new();
    for n in 0..12 {
        messages.push(user("Hello"));
        messages.push(match n % 3 {
            0 => exact("Good day."),
            1 => exact("wrong"),
            _ => checkpoint(json!({"type": "ai", "model": judge})),
        });
    }
    let one = json!({"eval": {"messages": messages}});
    let body = json!({"evals": vec![one; 4], "target": target(&agent)});
    let created = server.api.post(RUN, &body).await;
    let calls = 4 * (12 + 4);
    for part in [1, 2] {
        until("a part of the calls", LONG, async || {
            (script.count() >= part * calls / 3).then_some(())
        })
        .await;
        server.kill_9();
        server.restart().await;
    }
    let run = ended(&server.api, &created["id"]).await;
    assert_eq!(run["endedReason"], "mockConversation.done");
    assert_eq!(list(&run["results"]).len(), 4);
    for result in list(&run["results"]) {
        let judged = list(&result["messages"])
            .iter()
            .filter_map(|message| message.get("judge"));
        let statuses: Vec<&str> = judged.map(|judge| text(&judge["status"])).collect();
        assert_eq!(statuses, ["pass", "fail", "pass"].repeat(4), "{result:#}");
        assert_eq!(list(&result["messages"]).len(), 24);
    }
    let again = script.count() - calls;
    assert!(
        again <= 2 * 4,
        "{again} calls were made again after two crashes of four conversations"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pattern_or_template_holds_a_worker_up() {
    let (script, _stand_in, local, api) = start().await;
    let long = format!("{}!", "a".repeat(900));
    let agent = script.agent(&json!({"Hello": long}));
    let patterns = [
        "^(a+)+$",
        "(a|aa)+$",
        "^(a|a?)+$",
        "(?=(a+)+$)a",
        "((a*)*)*b",
        "(?<!b)(a+)+c",
        "(.*)*(.*)*(.*)*\\1c",
    ];
    let mut messages = Vec::new();
    for pattern in patterns {
        messages.extend([user("Hello"), regex(pattern)]);
    }
    let many = "{{messages}}".repeat(80);
    let judge = script.model("judge", &format!("<<{{\"verdict\": \"pass\"}}>>{many}"));
    messages.extend([user("Hello"), checkpoint(json!({"type": "ai", "model": judge}))]);
    let run = played(&api, &run_of(&messages, &agent)).await;
    assert_eq!(run["endedReason"], "mockConversation.done", "{run:#}");
    let found = verdicts(&run);
    assert_eq!(found.len(), patterns.len() + 1);
    for (status, reason) in &found[..patterns.len()] {
        assert_eq!(status, "fail", "{reason:?}");
        assert!(reason.is_some());
    }
    let told = script.asked_of("judge").pop().unwrap().to_string();
    assert!(told.len() < 3_000_000, "{} bytes", told.len());
    local.shutdown().await;
}
