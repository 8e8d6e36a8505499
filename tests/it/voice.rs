//! Calls: what a provider is asked for and what it says, and what becomes of the items that the calls are held for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::Method;
use ringback_local::serve::Local;
use ringback_shared::{
    clock::{Clock, Deadline, SystemClock, iso},
    ids,
};
use ringback_sweep::Scope;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    fixtures::{
        LONG, PROVIDER_KEY, RUNS, assert_counted, assert_items_valid, assert_valid, assistant, by_voice,
        counts, ended, endpoint, evaluation, ids as ids_of, inline, inline_target, item_path, items, list,
        personality, regex, run, scenario, simple_run, text,
    },
    hooks::{ENDED, HookReceiver, STARTED, hook, hook_secret, settled},
    provider::{Auto, CallRecord, Placing, ProviderStandIn, Tamper},
    server::{Api, Server, local, local_with, until},
    stand_in::{Call, Fault, Role, StandIn},
};

/// The stack in this process with so many call slots; a call takes two.
pub(crate) async fn local_with_slots(stand_in: &StandIn, slots: usize) -> (Local, Api) {
    local_with(stand_in, |options| {
        options
            .settings
            .insert("CALL_SLOTS".to_owned(), slots.to_string());
    })
    .await
}

/// What the minute tick comes to in the end: whatever is owed is looked after as if its time had come.
pub(crate) async fn sweep(local: &Local) {
    let deadline = Deadline::after(Duration::from_secs(60));
    ringback_sweep::handle(local.context(), Scope::Everything, deadline)
        .await
        .unwrap();
}

/// Another organization's client.
pub(crate) async fn stranger(local: &Local, api: &Api) -> Api {
    let (org, key) = (Uuid::now_v7(), format!("rb_{}", Uuid::now_v7().simple()));
    let store = &local.context().store;
    store.ensure_org(org, "strangers").await.unwrap();
    store
        .put_api_key(org, "test", &ids::sha256_hex(key.as_bytes()))
        .await
        .unwrap();
    Api {
        key: Some(key),
        ..api.clone()
    }
}

/// A ceiling on a latency.
fn at_most(metric: &str, aggregation: &str, ms: f64, required: bool) -> Value {
    json!({"metric": metric, "aggregation": aggregation, "thresholdMs": ms, "required": required})
}

/// A batch by voice of three simulations: one passes, one misses its goal, and the target of one is too slow.
pub(crate) fn batch_by_voice(stand_in: &StandIn, provider: &ProviderStandIn, iterations: u32) -> Value {
    for (name, value) in [
        ("booked/booked", true),
        ("missed/booked", false),
        ("slow/booked", true),
    ] {
        stand_in.judge(name, json!(value));
    }
    provider.latencies(&[800, 1000, 1200]);
    let evaluations = || {
        json!([
            evaluation("booked", "boolean", "=", json!(true)),
            regex("answered", "Answer (\\d+)", "number", "=", json!(1)),
        ])
    };
    let mut booked = scenario("booked", 3, evaluations());
    booked["targetOverrides"] = json!({"variableValues": {"city": "Bern"}});
    booked["latencyExpectations"] = json!([
        at_most("turn", "mean", 1000.0, true),
        at_most("model", "max", 599.0, false)
    ]);
    let missed = scenario("missed", 3, evaluations());
    let mut slow = scenario("slow", 3, evaluations());
    slow["latencyExpectations"] = json!([at_most("turn", "max", 1199.0, true)]);
    let mut pat = personality("Pat");
    pat["assistant"]["firstMessage"] = json!("Hello there.");
    let entries = json!([
        inline(&booked, &pat),
        inline(&missed, &personality("Sam")),
        inline(&slow, &pat)
    ]);
    run(
        entries,
        inline_target(&assistant(stand_in, "You run a clinic.")),
        iterations,
    )
}

/// An item says of its call what the provider said. The call has started.
#[track_caller]
fn assert_told(item: &Value, provider: &ProviderStandIn, call: &str) {
    let (begun, over) = (provider.started_event(call), provider.ended_event(call));
    let told = &item["metadata"]["call"];
    assert_eq!(item["startedAt"], begun["startedAt"], "{item:#}");
    for name in ["endedAt", "endedReason", "transcript", "messages", "recordingUrl"] {
        assert_eq!(told[name], over[name], "{name} of {item:#}");
    }
    assert_eq!(number(&told["cost"]), number(&over["cost"]));
    assert_eq!(told["providerCallId"], call);
    assert_eq!(item.get("sessionId"), None);
    let id: Result<Uuid, _> = text(&item["callId"]).parse();
    assert!(id.is_ok(), "{item:#}");
}

/// A number, whichever way it is written.
#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// What the contract says about an order.
fn check_order(call: &CallRecord, item: &Value, base: &str, endpoint: &Value, target: &Value) {
    let order = &call.body;
    assert_eq!(call.idempotency_key, text(&item["id"]));
    assert_eq!(call.authorization, Some(format!("Bearer {PROVIDER_KEY}")));
    assert!(call.correlation.starts_with("rbc1."), "{order:#}");
    let hooks = format!("{base}/hooks/{}", text(&endpoint["id"]));
    assert_eq!(
        order["webhooks"],
        json!({"callStarted": format!("{hooks}/call-started"), "callEnded": format!("{hooks}/call-ended")})
    );
    assert_eq!(order["maxDurationSeconds"], 600);
    assert_eq!(
        order["metadata"],
        json!({"runId": item["runId"], "simulationRunItemId": item["id"], "simulationId": item["simulationId"],
            "iterationNumber": item["iterationNumber"]})
    );

    let (tester, snapshot) = (&order["tester"], &item["metadata"]);
    let mocks = snapshot["scenario"].get("toolMocks").cloned();
    assert_eq!(order["toolMocks"], mocks.unwrap_or(json!([])));
    let personality = &snapshot["personality"]["assistant"];
    assert_eq!(tester.get("firstMessage"), personality.get("firstMessage"));
    for name in ["provider", "model", "maxTokens"] {
        let (asked, wanted) = (&tester["model"][name], &personality["model"][name]);
        assert_eq!(
            (asked.as_str(), asked.as_f64()),
            (wanted.as_str(), wanted.as_f64()),
            "{name}"
        );
    }
    let [prompt] = list(&tester["model"]["messages"]) else {
        panic!("one prompt: {tester:#}")
    };
    assert_eq!(prompt["role"], "system");
    for part in ["You are in a hurry.", text(&snapshot["scenario"]["instructions"])] {
        assert!(text(&prompt["content"]).contains(part), "{prompt:#}");
    }
    let tools = list(&tester["model"]["tools"]);
    assert!(
        tools.iter().any(|tool| tool["type"] == "endCall"),
        "a tester can hang up: {tester:#}"
    );

    assert_eq!(
        (&order["target"]["type"], &order["target"]["assistant"]),
        (&json!("assistant"), target)
    );
    assert_eq!(
        order["target"].get("assistantOverrides"),
        snapshot["scenario"].get("targetOverrides")
    );
}

/// An item's expectations of latency: metric, what was measured, whether it passed and whether it had to.
fn latencies(item: &Value) -> Vec<(&str, f64, bool, bool)> {
    let judged = item["results"]["latencyEvaluations"].as_array();
    let judged = judged.into_iter().flatten().map(|judged| {
        assert_eq!(judged["sampleCount"].as_f64(), Some(3.0), "{judged:#}");
        assert_eq!(judged.get("isSkipped"), None, "a call has latencies");
        let flag = |name: &str| judged[name].as_bool().unwrap();
        (
            text(&judged["metric"]),
            number(&judged["actualMs"]),
            flag("passed"),
            flag("required"),
        )
    });
    judged.collect()
}

/// The verdicts of [`batch_by_voice`]: what was expected of each simulation, and what its figures are.
pub(crate) fn check_verdict(item: &Value) {
    let (status, expected) = match text(&item["metadata"]["scenario"]["name"]) {
        "Scenario booked" => (
            "passed",
            vec![("turn", 1000.0, true, true), ("model", 600.0, false, false)],
        ),
        "Scenario missed" => ("failed", vec![]),
        "Scenario slow" => ("failed", vec![("turn", 1200.0, false, true)]),
        other => panic!("no simulation is called {other}"),
    };
    assert_eq!(item["status"], status, "{item:#}");
    assert_eq!(item["results"]["passed"], status == "passed");
    assert_eq!(latencies(item), expected, "{item:#}");
    let metrics = &item["results"]["latencyMetrics"];
    for (name, expected) in [
        ("turnCount", 3.0),
        ("avgTurn", 1000.0),
        ("avgModel", 500.0),
        ("avgVoice", 250.0),
        ("avgTranscriber", 125.0),
        ("avgEndpointing", 125.0),
    ] {
        assert!(
            (number(&metrics[name]) - expected).abs() < 0.5,
            "{name}: {metrics:#}"
        );
    }
    let [booked, answered] = list(&item["results"]["evaluations"]) else {
        panic!("two evaluations: {item:#}")
    };
    let missed = item["metadata"]["scenario"]["name"] == "Scenario missed";
    assert_eq!(
        (&booked["extractedValue"], &booked["passed"]),
        (&json!(!missed), &json!(!missed))
    );
    assert_eq!(
        (number(&answered["extractedValue"]), &answered["passed"]),
        (1.0, &json!(true))
    );
    assert_eq!(item.get("failureReason").is_some(), status == "failed");
    assert_eq!(item.get("failureFault"), None, "the verdict is the agent's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_batch_of_three_simulations_ends_with_twelve_verdicts() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 100 });
    let server = Server::start(&stand_in, &[]).await;
    let api = &server.api;
    let endpoint = endpoint(api, &provider).await;
    let body = by_voice(batch_by_voice(&stand_in, &provider, 4), &endpoint);

    let created = api.post(RUNS, &body).await;
    assert_valid("CreateSimulationRunResponse", &created);
    let run = text(&created["id"]);
    let done = ended(api, run).await;
    assert_valid("SimulationRun", &done);
    assert_eq!(counts(&done), [12, 4, 8, 0, 0, 0]);
    assert_eq!(
        (
            &done["itemCounts"]["distinctSimulationTotal"],
            &done["itemCounts"]["distinctSimulationFailed"]
        ),
        (&json!(3), &json!(2))
    );
    assert_eq!(
        (&done["endedReason"], &done["target"]),
        (&json!("completed"), &body["target"])
    );
    assert_eq!(done["transport"]["provider"], "vapi.websocket");

    let all = items(api, run, 5).await;
    assert_items_valid(&all);
    let calls = provider
        .wait_for("the last answer", |calls| {
            calls.iter().all(|call| call.answers.len() == 2)
        })
        .await;
    assert_eq!((calls.len(), provider.calls_up()), (12, 0));
    assert!((1..=5).contains(&provider.most_up()), "ten slots are five calls");
    let mut names = BTreeSet::new();
    for item in &all {
        let of = |call: &&CallRecord| call.idempotency_key == text(&item["id"]);
        let [call] = calls.iter().filter(of).collect::<Vec<_>>()[..] else {
            panic!("not one call for {item:#}")
        };
        assert_eq!((call.placed_times, call.end_requests), (1, 0));
        assert_eq!(call.answers, [200, 200], "each event was sent once and kept");
        check_order(call, item, &api.base, &endpoint, &body["target"]["assistant"]);
        assert_told(item, &provider, &call.id);
        check_verdict(item);
        assert_eq!(item["configurations"]["transport"]["provider"], "vapi.websocket");
        names.insert(text(&item["callId"]));
    }
    assert_eq!(names.len(), 12, "every call has a name of its own");
    let asked = provider.asked();
    assert_eq!((asked.placings, asked.ends), (12, 0));
    assert_eq!(stand_in.count_of(Role::Judge), 12);
    assert_eq!(stand_in.count(), 12, "no conversation is held by models of ours");
}

/// What may happen to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The provider answers that the call is placed. Until then only its webhooks can name the call.
    Answer,
    /// It sends the call-started event.
    Started,
    /// It sends the call-ended event.
    Ended,
    /// Somebody cancels the item.
    Cancel,
}

/// Every order of these steps, each once.
fn orders(steps: &[Step]) -> BTreeSet<Vec<Step>> {
    if steps.is_empty() {
        return BTreeSet::from([Vec::new()]);
    }
    let mut all = BTreeSet::new();
    for (n, first) in steps.iter().enumerate() {
        let rest = [&steps[..n], &steps[n + 1..]].concat();
        all.extend(
            orders(&rest)
                .into_iter()
                .map(|rest| [vec![*first], rest].concat()),
        );
    }
    all
}

/// One call, step by step.
#[derive(Debug, Clone)]
struct Case {
    steps: Vec<Step>,
    /// Its webhooks name the item. Otherwise they wait until the call's name is known.
    correlated: bool,
}

/// Each of these orders with webhooks that name the item, and with webhooks that do not.
fn cases(orders: impl IntoIterator<Item = Vec<Step>>) -> Vec<Case> {
    let both = |steps: Vec<Step>| {
        [true, false].map(|correlated| Case {
            steps: steps.clone(),
            correlated,
        })
    };
    orders.into_iter().flat_map(both).collect()
}

/// How many cases are played at a time. Each needs two slots, so the others run only if those before gave theirs back.
const AT_ONCE: usize = 8;

/// A case that is over.
struct Played {
    case: Case,
    provider: ProviderStandIn,
    call: String,
    path: String,
    item: Value,
}

/// Plays one case on a run of `body`; gives the item as it is once it has all facts.
async fn play(api: &Api, body: &Value, case: Case) -> Played {
    let provider = ProviderStandIn::start().await;
    provider.answer_placing(Placing::AcceptLate);
    provider.forgetful(!case.correlated);
    // Where the test does not end the call, Ringback must.
    provider.reticent(case.steps.contains(&Step::Ended));
    let endpoint = endpoint(api, &provider).await;
    let created = api.post(RUNS, &by_voice(body.clone(), &endpoint)).await;
    let path = item_path(&created, 0);
    let calls = provider.wait_for("an order", |calls| !calls.is_empty()).await;
    let call = calls[0].id.clone();
    let is = async |status: &str| {
        until(status, LONG, async || {
            (api.get(&path).await["status"] == status).then_some(())
        })
        .await;
    };
    for (n, step) in case.steps.iter().enumerate() {
        let before = &case.steps[..n];
        // What the provider said counts from when it is known of which item it was said.
        let known = case.correlated || before.contains(&Step::Answer);
        match step {
            Step::Answer => {
                provider.answer_placing(Placing::Accept);
                until("the call's id", LONG, async || {
                    api.get(&path).await["callId"].is_string().then_some(())
                })
                .await;
            }
            Step::Started => assert_eq!(provider.send_started(&call).await, 200, "{case:?}"),
            Step::Ended => assert_eq!(provider.send_ended(&call).await, 200, "{case:?}"),
            Step::Cancel => {
                if known && before.contains(&Step::Ended) {
                    is("evaluating").await;
                } else if known && before.contains(&Step::Started) {
                    is("running").await;
                } else {
                    is("queued").await;
                }
                assert_eq!(api.patch(&path).await["status"], "canceled", "{case:?}");
            }
        }
    }
    let over = provider
        .wait_for("the end of the call", |calls| calls[0].ended.is_some())
        .await;
    let (began, ended) = (case.steps.contains(&Step::Started), provider.ended_event(&call));
    let item = until("all facts of the item", LONG, async || {
        let item = api.get(&path).await;
        let terminal = matches!(text(&item["status"]), "passed" | "failed" | "canceled");
        let told = !began || item["metadata"]["call"]["endedAt"] == ended["endedAt"];
        (terminal && told && item["callId"].is_string()).then_some(item)
    })
    .await;
    let canceled = case.steps.contains(&Step::Cancel);
    assert_eq!(
        item["status"],
        if canceled { "canceled" } else { "passed" },
        "{case:?}: {item:#}"
    );
    assert_eq!(item.get("results").is_some(), !canceled);
    if began {
        assert_told(&item, &provider, &call);
    } else {
        assert_eq!(
            (item.get("startedAt"), item["metadata"].get("call")),
            (None, None),
            "nobody picked up"
        );
    }
    assert_items_valid(std::slice::from_ref(&item));
    assert_eq!((provider.calls_up(), over.len()), (0, 1), "{case:?}");
    Played {
        case,
        provider,
        call,
        path,
        item,
    }
}

/// Plays all cases; then tells everything once more, and shows that all slots are free and no item is another one.
async fn play_all(api: &Api, stand_in: &StandIn, body: &Value, cases: Vec<Case>) {
    let played: Vec<Played> = stream::iter(cases)
        .map(|case| play(api, body, case))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    stand_in.release();
    for one in &played {
        assert_eq!(one.provider.send_started(&one.call).await, 200, "{:?}", one.case);
        assert_eq!(one.provider.send_ended(&one.call).await, 200, "{:?}", one.case);
        let (status, body) = api.call(Method::PATCH, &one.path, None).await;
        assert_eq!(
            (status, text(&body["message"])),
            (400, "Run item has already ended")
        );
    }

    // As many calls as there are slots for are up at the same time.
    let provider = ProviderStandIn::start().await;
    let endpoint = endpoint(api, &provider).await;
    let pairs = u32::try_from(AT_ONCE).unwrap();
    let last = api
        .post(RUNS, &by_voice(simple_run(stand_in, "last", 2, pairs), &endpoint))
        .await;
    let calls = provider
        .wait_for("a call in all slots", |calls| calls.len() == AT_ONCE)
        .await;
    assert_eq!(provider.calls_up(), AT_ONCE);
    for call in calls {
        assert_eq!(provider.send_ended(&call.id).await, 200);
    }
    let done = ended(api, text(&last["id"])).await;
    assert_eq!(counts(&done)[..2], [u64::from(pairs); 2]);

    // What was said last was looked at before the calls after it, and changed nothing. (The answer to an order, or a hang-up,
    // may have been written after the item was read.)
    for one in &played {
        let mut now = api.get(&one.path).await;
        if one.case.steps.contains(&Step::Started) {
            // What its conversation had cost by model may be told late as well.
            let mut before = one.item.clone();
            for name in ["updatedAt", "cost", "costs", "costsUnknown"] {
                now[name] = Value::Null;
                before[name] = Value::Null;
            }
            assert_eq!(now, before, "{:?}", one.case);
        } else {
            // Only now it is told that the call had begun.
            let fixed = |item: &Value| ["status", "callId", "canceledAt"].map(|name| item[name].clone());
            assert_eq!(fixed(&now), fixed(&one.item), "{:?}", one.case);
        }
        let run = api.get(&format!("{RUNS}/{}", run_of(&one.path))).await;
        assert_eq!((&run["status"], counts(&run)[0]), (&json!("ended"), 1));
        let calls = one.provider.calls();
        assert_eq!((calls.len(), one.provider.calls_up()), (1, 0), "{:?}", one.case);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_in_any_order_twice_early_and_late_make_one_item() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with_slots(&stand_in, 2 * AT_ONCE).await;
    let all = orders(&[
        Step::Answer,
        Step::Started,
        Step::Started,
        Step::Ended,
        Step::Ended,
    ]);
    assert_eq!(all.len(), 30);
    // Its verdict rests on the transcript, so what was said must arrive as well.
    let body = simple_run(&stand_in, "ordered", 2, 1);
    play_all(&api, &stand_in, &body, cases(all)).await;
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_any_point_leaves_one_item_and_no_call() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with_slots(&stand_in, 2 * AT_ONCE).await;
    stand_in.judge("booked", json!(true));
    // Nobody is judged before it is canceled.
    stand_in.fail(Role::Judge, usize::MAX, Fault::Hang);
    let mut body = simple_run(&stand_in, "stopped", 2, 1);
    body["simulations"][0]["scenario"]["evaluations"] =
        json!([evaluation("booked", "boolean", "=", json!(true))]);
    let by_itself = orders(&[Step::Answer, Step::Started, Step::Ended, Step::Cancel]);
    // The call goes on until Ringback ends it.
    let by_request = orders(&[Step::Answer, Step::Started, Step::Cancel]);
    let unheard = orders(&[Step::Answer, Step::Cancel]);
    let all = by_itself.into_iter().chain(by_request).chain(unheard);
    play_all(&api, &stand_in, &body, cases(all)).await;
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_canceled_without_a_call_and_what_is_up_is_hung_up_before_its_slots_are_free() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    // One call at a time.
    let (local, api) = local_with_slots(&stand_in, 2).await;
    let endpoint = endpoint(&api, &provider).await;
    let order = |iterations| by_voice(simple_run(&stand_in, "stopped", 2, iterations), &endpoint);
    let created = api.post(RUNS, &order(2)).await;
    let calls = provider.wait_for("an order", |calls| !calls.is_empty()).await;
    let slots = async || {
        let slots = api.get("/eval/simulation/concurrency").await;
        assert_valid("SimulationConcurrencyResponse", &slots);
        ["concurrencyLimit", "activeSimulations", "availableToStart"].map(|name| number(&slots[name]))
    };
    assert_eq!(slots().await, [2.0, 2.0, 0.0]);
    let (waiting, up) = match text(&created["simulationRunItemIds"][0]) == calls[0].idempotency_key {
        true => (item_path(&created, 1), item_path(&created, 0)),
        false => (item_path(&created, 0), item_path(&created, 1)),
    };
    let canceled = api.patch(&waiting).await;
    assert_eq!(
        (&canceled["status"], canceled.get("callId")),
        (&json!("canceled"), None)
    );
    assert_eq!(provider.send_started(&calls[0].id).await, 200);
    until("the call to be up", LONG, async || {
        (api.get(&up).await["status"] == "running").then_some(())
    })
    .await;
    assert_eq!(api.patch(&up).await["status"], "canceled");
    let calls = provider
        .wait_for("the hang-up", |calls| calls[0].ended.is_some())
        .await;
    assert_eq!((calls[0].end_requests > 0, provider.calls_up()), (true, 0));
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [2, 0, 0, 0, 0, 2]);

    // It is canceled while the provider thinks about the order, and places the call after Ringback has asked for it.
    provider.answer_placing(Placing::Hang);
    let before = provider.asked();
    let created = api.post(RUNS, &order(1)).await;
    let path = item_path(&created, 0);
    until("the order", LONG, async || {
        (provider.asked().placings > before.placings).then_some(())
    })
    .await;
    assert_eq!(api.patch(&path).await["status"], "canceled");
    until("the question whether there is a call", LONG, async || {
        (provider.asked().by_correlation > before.by_correlation).then_some(())
    })
    .await;
    provider.answer_placing(Placing::Accept);
    provider.wait_for("the late call", |calls| calls.len() == 2).await;
    until("the call's id", LONG, async || {
        api.get(&path).await["callId"].is_string().then_some(())
    })
    .await;
    // Nobody has to come by: it is hung up when it is known what it is called.
    until("the late hang-up", LONG, async || {
        (provider.calls_up() == 0).then_some(())
    })
    .await;
    assert_eq!(api.get(&path).await["status"], "canceled");

    // Both gave their slots back, and neither was placed a second time.
    provider.auto(Auto::Both { talk_ms: 0 });
    let created = api.post(RUNS, &order(1)).await;
    assert_eq!(
        counts(&ended(&api, text(&created["id"])).await),
        [1, 1, 0, 0, 0, 0]
    );
    assert_eq!(slots().await, [2.0, 0.0, 1.0]);
    let keys: BTreeSet<_> = provider
        .calls()
        .into_iter()
        .map(|call| call.idempotency_key)
        .collect();
    assert_eq!(
        (keys.len(), provider.calls().len(), provider.most_up()),
        (3, 3, 1)
    );
    local.shutdown().await;
}

/// The id of the run that an item's path names.
fn run_of(path: &str) -> &str {
    let (run, _) = path.split_once("/item/").unwrap();
    run.rsplit('/').next().unwrap()
}

/// Where an endpoint's events go.
fn hook_url(endpoint: &Value, name: &str) -> String {
    text(&endpoint["webhooks"][name]).to_owned()
}

/// A call that is up, with the path of its item, as the item is then.
async fn one_call(
    api: &Api,
    stand_in: &StandIn,
    provider: &ProviderStandIn,
    endpoint: &Value,
) -> (String, String, Value) {
    let created = api
        .post(RUNS, &by_voice(simple_run(stand_in, "up", 2, 1), endpoint))
        .await;
    let path = item_path(&created, 0);
    let calls = provider.wait_for("an order", |calls| !calls.is_empty()).await;
    // First the answer and then the event, so that nobody writes the item after this.
    until("the call's id", LONG, async || {
        api.get(&path).await["callId"].is_string().then_some(())
    })
    .await;
    assert_eq!(provider.send_started(&calls[0].id).await, 200);
    let item = until("the call to be up", LONG, async || {
        Some(api.get(&path).await).filter(|item| item["status"] == "running")
    })
    .await;
    (calls[0].id.clone(), path, item)
}

/// What was quarantined today, and yesterday if the day has just changed.
async fn quarantined(local: &Local, since: i64) -> Vec<Value> {
    let days: BTreeSet<String> = [since, SystemClock.now_ms()]
        .map(|at| iso(at)[..10].to_owned())
        .into();
    let mut all = Vec::new();
    for day in days {
        all.extend(local.context().store.quarantined(&day).await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_foreign_webhooks_change_nothing() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let strangers = stranger(&local, &api).await;
    let [provider, second, foreign] = [
        ProviderStandIn::start().await,
        ProviderStandIn::start().await,
        ProviderStandIn::start().await,
    ];
    let own_endpoint = endpoint(&api, &provider).await;
    let second_endpoint = endpoint(&api, &second).await;
    let foreign_endpoint = endpoint(&strangers, &foreign).await;
    // The end of the call carries more than fits into one row.
    let long = format!("User: Hello.\nAI: Answer 1, {}", "and so on, ".repeat(100_000));
    provider.ended_with(json!({"transcript": long, "cost": 0.07}));
    let (call, path, before) = one_call(&api, &stand_in, &provider, &own_endpoint).await;
    let (started, over) = (
        hook_url(&own_endpoint, "callStarted"),
        hook_url(&own_endpoint, "callEnded"),
    );

    // Of two ends the later one is kept: if one of these were believed, it would show.
    let mut forged = provider.ended_event(&call);
    forged["endedAt"] = json!("2090-01-01T00:00:00.000Z");
    forged["endedReason"] = json!("forged");
    forged["transcript"] = json!("AI: Answer 1.");
    let mut stray = forged.clone();
    stray.as_object_mut().unwrap().remove("correlation");
    let bytes = |event: &Value| event.to_string().into_bytes();
    let unchanged = async |why: &str| assert_eq!(api.get(&path).await, before, "{why}");
    for url in [&started, &over] {
        for tamper in [
            Tamper::WrongSecret,
            Tamper::OldTimestamp,
            Tamper::FutureTimestamp,
            Tamper::ChangedByte,
            Tamper::NoSignature,
        ] {
            assert_eq!(
                provider.deliver(url, bytes(&forged), tamper).await,
                401,
                "{tamper:?}"
            );
            unchanged(&format!("{tamper:?}")).await;
        }
    }

    // Rightly signed, but not by whom the call belongs to; and signed by the right one, but sent to the wrong place.
    let unknown = format!("{}/hooks/{}/call-ended", api.base, Uuid::now_v7());
    let nonsense = format!("{}/hooks/mine/call-ended", api.base);
    let (second_over, foreign_over) = (
        hook_url(&second_endpoint, "callEnded"),
        hook_url(&foreign_endpoint, "callEnded"),
    );
    for (why, sender, url, event, status) in [
        (
            "an endpoint that does not exist",
            &provider,
            &unknown,
            &forged,
            404,
        ),
        ("no endpoint", &provider, &nonsense, &forged, 404),
        ("another endpoint's secret", &second, &over, &forged, 401),
        (
            "the own secret at another endpoint",
            &provider,
            &second_over,
            &forged,
            401,
        ),
        ("another endpoint's call", &second, &second_over, &forged, 404),
        ("a foreign secret", &foreign, &over, &forged, 401),
        ("a foreign call", &foreign, &foreign_over, &forged, 404),
        // It may well have a call of that name itself.
        (
            "a foreign call without correlation",
            &foreign,
            &foreign_over,
            &stray,
            200,
        ),
    ] {
        assert_eq!(
            sender.deliver(url, bytes(event), Tamper::Nothing).await,
            status,
            "{why}"
        );
        unchanged(why).await;
    }

    let mut huge = forged.clone();
    huge["transcript"] = json!("x".repeat(4_000_001));
    assert_eq!(provider.deliver(&over, bytes(&huge), Tamper::Nothing).await, 413);
    let got = api.http.get(&over).send().await.unwrap();
    assert_eq!(got.status(), 405, "an event is posted");
    assert_eq!(got.headers()["allow"], "POST");
    unchanged("too large").await;

    // Who signs nonsense is told so, and it is kept for whoever looks into it.
    let since = SystemClock.now_ms();
    assert_eq!(
        provider.deliver(&over, bytes(&forged), Tamper::NotJson).await,
        400
    );
    let mut without = forged.clone();
    without.as_object_mut().unwrap().remove("callId");
    assert_eq!(
        provider.deliver(&over, bytes(&without), Tamper::Nothing).await,
        400
    );
    let mut odd = forged.clone();
    odd["endedAt"] = json!("yesterday");
    assert_eq!(provider.deliver(&over, bytes(&odd), Tamper::Nothing).await, 400);
    unchanged("nonsense").await;
    let kept = quarantined(&local, since).await;
    let mut bodies: Vec<_> = kept.iter().map(|kept| text(&kept["body"]).to_owned()).collect();
    let mut sent = vec![format!("{{{forged}"), without.to_string(), odd.to_string()];
    bodies.sort();
    sent.sort();
    assert_eq!(bodies, sent);
    for message in &kept {
        assert_eq!(message["source"], "webhooks");
        assert!(!text(&message["reason"]).is_empty());
    }
    let reason = |field: &str| kept.iter().any(|kept| text(&kept["reason"]).contains(field));
    assert!(reason("callId") && reason("endedAt"), "{kept:#?}");

    // The truth comes last, and is all there is.
    assert_eq!(provider.send_ended(&call).await, 200);
    assert_eq!(counts(&ended(&api, run_of(&path)).await), [1, 1, 0, 0, 0, 0]);
    let item = api.get(&path).await;
    assert_told(&item, &provider, &call);
    assert_eq!(item["metadata"]["call"]["transcript"], long, "it is kept whole");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_says_without_correlation_is_about_its_own_calls_only() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let [provider, second] = [ProviderStandIn::start().await, ProviderStandIn::start().await];
    let own_endpoint = endpoint(&api, &provider).await;
    let second_endpoint = endpoint(&api, &second).await;
    let (call, path, before) = one_call(&api, &stand_in, &provider, &own_endpoint).await;
    // Two providers of one organization may well use the same name for a call, if it is no more than a number.
    let mut other = provider.ended_event(&call);
    other["endedReason"] = json!("zzz-of-another-call");
    other["endedAt"] = json!("2090-01-01T00:00:00.000Z");
    other.as_object_mut().unwrap().remove("correlation");
    let url = hook_url(&second_endpoint, "callEnded");
    assert_eq!(
        second
            .deliver(&url, other.to_string().into_bytes(), Tamper::Nothing)
            .await,
        200
    );
    assert_eq!(api.get(&path).await, before);
    // It would be folded before what comes after it.
    assert_eq!(provider.send_ended(&call).await, 200);
    assert_eq!(counts(&ended(&api, run_of(&path)).await), [1, 1, 0, 0, 0, 0]);
    assert_told(&api.get(&path).await, &provider, &call);
    local.shutdown().await;
}

/// How long the calls of the full house take, in milliseconds: so different that they do not end together.
const TALKS_MS: &[u64] = &[900, 100, 500, 800, 200];

#[tokio::test(flavor = "multi_thread")]
async fn forty_calls_share_six_slots_of_which_none_is_idle_for_long() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local_with_slots(&stand_in, 6).await;
    let endpoint = endpoint(&api, &provider).await;
    let mut body = simple_run(&stand_in, "busy", 2, 10);
    body["simulations"] = json!(vec![body["simulations"][0].clone(); 4]);
    let created = api.post(RUNS, &by_voice(body, &endpoint)).await;
    // What one call gives back is given out again while the others are up.
    for over in 0..3 {
        let calls = provider
            .wait_for("three calls", |calls| calls.len() == over + 3)
            .await;
        assert_eq!(provider.calls_up(), 3);
        assert_eq!(provider.send_ended(&calls[over].id).await, 200);
    }
    let first = provider.wait_for("three others", |calls| calls.len() == 6).await;
    provider.auto(Auto::ByTurns { talks_ms: TALKS_MS });
    for call in &first[3..] {
        assert_eq!(provider.send_ended(&call.id).await, 200);
    }
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [40, 40, 0, 0, 0, 0]);
    assert_eq!(provider.most_up(), 3, "each takes two slots");

    let calls = provider.calls();
    let keys: BTreeSet<_> = calls.iter().map(|call| &call.idempotency_key).collect();
    assert_eq!((calls.len(), keys.len()), (40, 40));
    let sorted = |time: fn(&CallRecord) -> i64| {
        let mut times: Vec<i64> = calls.iter().map(time).collect();
        times.sort_unstable();
        times
    };
    let (placed, ended) = (sorted(|call| call.placed), sorted(|call| call.ended.unwrap()));
    // The slots that the n-th end gave back are those that the (n + 3)rd call took.
    let longest = placed[3..]
        .iter()
        .zip(&ended)
        .map(|(next, end)| next - end)
        .max()
        .unwrap();
    // Who missed that they are free would find them at the next minute, or the one after it.
    assert!(
        longest < 40_000,
        "slots were free for {longest} ms while others waited"
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_batch_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 400 });
    let receiver = HookReceiver::start().await;
    let mut server = Server::start_with(&stand_in, &[], &[("CALL_SLOTS", "6")]).await;
    let endpoint = endpoint(&server.api, &provider).await;
    let secret = hook_secret(&server.api).await;
    let mut body = by_voice(batch_by_voice(&stand_in, &provider, 4), &endpoint);
    let url = receiver.url("/told");
    for entry in body["simulations"].as_array_mut().unwrap() {
        entry["scenario"]["hooks"] = json!([hook(STARTED, &url), hook(ENDED, &url)]);
    }
    let created = server.api.post(RUNS, &body).await;
    let run = text(&created["id"]);
    for (moment, calls, over) in [
        ("the first orders are out", 1, 0),
        ("some calls are over and their slots are given away", 4, 2),
        ("some are judged and others begin", 8, 7),
        ("the last call is over", 12, 12),
    ] {
        provider
            .wait_for(moment, |all| {
                all.len() >= calls && all.iter().filter(|call| call.ended.is_some()).count() >= over
            })
            .await;
        server.kill_9();
        server.restart().await;
        provider.moved_to(&server.api.base);
        assert_counted(&server.api.get(&format!("{RUNS}/{run}")).await, 12);
    }
    let api = &server.api;
    let done = ended(api, run).await;
    assert_eq!(counts(&done), [12, 4, 8, 0, 0, 0]);

    let calls = provider.calls();
    let by_key: BTreeMap<_, _> = calls
        .iter()
        .map(|call| (call.idempotency_key.as_str(), call))
        .collect();
    assert_eq!(
        (calls.len(), by_key.len(), provider.calls_up()),
        (12, 12, 0),
        "no call twice"
    );
    assert!(
        calls.iter().all(|call| call.placed_times == 1),
        "nor ordered twice: who finds an intent asks first"
    );
    assert!(provider.most_up() <= 3, "slots are held over a crash");
    let all = items(api, run, 100).await;
    assert_eq!(all.len(), 12);
    assert_items_valid(&all);
    for item in &all {
        assert_told(item, &provider, &by_key[text(&item["id"])].id);
        check_verdict(item);
    }

    let mut names = BTreeMap::new();
    for item in &all {
        let id = text(&item["id"]);
        for event in [STARTED, ENDED] {
            let deliveries = settled(api, &format!("{RUNS}/{run}/item/{id}"), event).await;
            let [delivery] = &deliveries[..] else {
                panic!("{deliveries:#?}")
            };
            assert_eq!(delivery["status"], "delivered", "{delivery:#}");
            names.insert(
                (id.to_owned(), event.to_owned()),
                text(&delivery["webhookId"]).to_owned(),
            );
        }
    }
    let mut told = BTreeMap::<_, BTreeSet<String>>::new();
    for one in receiver.told() {
        assert!(one.is_signed_with(&secret));
        told.entry(one.about()).or_default().insert(one.id().to_owned());
    }
    let expected: BTreeMap<_, _> = names
        .iter()
        .map(|(about, id)| (about.clone(), BTreeSet::from([id.clone()])))
        .collect();
    assert_eq!(told, expected, "each is told under one id, however often");
    assert_eq!(
        names.values().collect::<BTreeSet<_>>().len(),
        24,
        "and under its own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_which_nothing_is_heard_is_looked_up_and_judged() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.silent(true);
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let body = by_voice(batch_by_voice(&stand_in, &provider, 1), &endpoint);
    let created = api.post(RUNS, &body).await;
    let run = text(&created["id"]);
    let calls = provider.wait_for("three calls", |calls| calls.len() == 3).await;
    until("the calls' ids", LONG, async || {
        let items = items(&api, run, 10).await;
        items.iter().all(|item| item["callId"].is_string()).then_some(())
    })
    .await;
    assert_eq!(provider.asked().by_id, 0, "nobody asks before it is time");

    // They are up.
    for call in &calls {
        provider.started_event(&call.id);
    }
    sweep(&local).await;
    until("three items to run", LONG, async || {
        let run = api.get(&format!("{RUNS}/{run}")).await;
        (counts(&run) == [3, 0, 0, 3, 0, 0]).then_some(())
    })
    .await;
    for item in items(&api, run, 10).await {
        assert_eq!(
            (&item["status"], item["startedAt"].is_string()),
            (&json!("running"), true)
        );
    }

    // They are over.
    for call in &calls {
        provider.ended_event(&call.id);
    }
    sweep(&local).await;
    let done = ended(&api, run).await;
    assert_eq!(counts(&done), [3, 1, 2, 0, 0, 0]);
    assert!(provider.asked().by_id >= 6);
    let before = items(&api, run, 10).await;
    assert_items_valid(&before);
    let silent = provider.calls();
    for item in &before {
        let call = silent
            .iter()
            .find(|call| call.idempotency_key == text(&item["id"]))
            .unwrap();
        assert!(call.answers.is_empty(), "no event was sent");
        assert_told(item, &provider, &call.id);
        check_verdict(item);
    }

    // The webhooks come after all: the item says the same.
    provider.silent(false);
    for call in &calls {
        assert_eq!(provider.send_ended(&call.id).await, 200);
        assert_eq!(provider.send_started(&call.id).await, 200);
    }
    let next = api
        .post(RUNS, &by_voice(simple_run(&stand_in, "next", 2, 1), &endpoint))
        .await;
    let last = provider.wait_for("a fourth call", |calls| calls.len() == 4).await;
    assert_eq!(provider.send_ended(&last[3].id).await, 200);
    assert_eq!(counts(&ended(&api, text(&next["id"])).await), [1, 1, 0, 0, 0, 0]);
    for (item, before) in items(&api, run, 10).await.iter_mut().zip(before) {
        item["updatedAt"] = before["updatedAt"].clone();
        assert_eq!(*item, before);
    }
    assert_eq!(provider.asked().placings, 4);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_does_not_answer_is_asked_first_and_never_places_a_call_twice() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let run_on = async |provider: &ProviderStandIn, iterations: u32| {
        let endpoint = endpoint(&api, provider).await;
        let body = by_voice(simple_run(&stand_in, "patient", 2, iterations), &endpoint);
        api.post(RUNS, &body).await
    };

    // It places both calls, but one answer is an error and the other one is none. It sends no webhooks either.
    let mute = ProviderStandIn::start().await;
    mute.answer_placing(Placing::AcceptWithoutAnswer);
    mute.silent(true);
    mute.auto(Auto::Both { talk_ms: 0 });
    let of_mute = run_on(&mute, 2).await;
    // It did not take the order the first time.
    let late = ProviderStandIn::start().await;
    late.answer_placing(Placing::Refuse(503));
    late.auto(Auto::Both { talk_ms: 0 });
    let of_late = run_on(&late, 1).await;
    until("the order that was not taken", LONG, async || {
        (late.asked().refused == 1).then_some(())
    })
    .await;
    late.answer_placing(Placing::Accept);
    // It will not have it.
    let unwilling = ProviderStandIn::start().await;
    unwilling.answer_placing(Placing::Refuse(422));
    let of_unwilling = run_on(&unwilling, 1).await;
    // The call broke off by no fault of the target.
    let broken = ProviderStandIn::start().await;
    broken.ended_with(json!({"fault": "provider", "endedReason": "line-down", "transcript": null}));
    broken.auto(Auto::Both { talk_ms: 0 });
    let of_broken = run_on(&broken, 1).await;

    let done = ended(&api, text(&of_mute["id"])).await;
    assert_eq!(counts(&done), [2, 2, 0, 0, 0, 0]);
    let asked = mute.asked();
    assert_eq!(
        (mute.calls().len(), asked.placings),
        (2, 2),
        "it was asked for them instead"
    );
    assert!(asked.by_correlation >= 2, "{asked:?}");
    for item in items(&api, text(&of_mute["id"]), 10).await {
        let calls = mute.calls();
        let call = calls
            .iter()
            .find(|call| call.idempotency_key == text(&item["id"]))
            .unwrap();
        assert_told(&item, &mute, &call.id);
    }

    let done = ended(&api, text(&of_late["id"])).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0]);
    let asked = late.asked();
    assert_eq!((late.calls().len(), asked.placings), (1, 2));
    assert!(asked.by_correlation >= 1, "it may have placed it: {asked:?}");

    let done = ended(&api, text(&of_unwilling["id"])).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    let item = api.get(&item_path(&of_unwilling, 0)).await;
    assert_eq!(
        (&item["failureFault"], item.get("callId")),
        (&json!("provider"), None)
    );
    let reason = text(&item["failureReason"]);
    assert!(
        reason.contains("422") && reason.contains("told to refuse"),
        "{reason}"
    );
    assert_eq!(unwilling.asked().placings, 1, "it is of no use to ask again");

    let done = ended(&api, text(&of_broken["id"])).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    let item = api.get(&item_path(&of_broken, 0)).await;
    assert_eq!(
        (&item["failureFault"], item.get("results")),
        (&json!("provider"), None),
        "{item:#}"
    );
    assert!(text(&item["failureReason"]).contains("line-down"), "{item:#}");
    // Where the provider has no transcript, its messages are one.
    let call = &item["metadata"]["call"];
    let transcript = text(&call["transcript"]);
    assert!(transcript.starts_with("User: Hello, caller 1 of patient.\nAI: Answer 1 from the phone.\n"));
    assert_eq!(transcript.lines().count(), list(&call["messages"]).len());
    local.shutdown().await;
}

/// How many conversations were under way at the same time, at least: each from its second model call to its last.
fn most_at_once(calls: &[Call]) -> usize {
    let mut spans = BTreeMap::<usize, (usize, usize)>::new();
    // The first call of a conversation does not know its caller yet.
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.caller != 0) {
        spans.entry(call.caller).or_insert((at, at)).1 = at;
    }
    let under_way = |at: usize| {
        spans
            .values()
            .filter(|(first, last)| (first..=last).contains(&&at))
            .count()
    };
    (0..calls.len()).map(under_way).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_run_with_a_cap_holds_no_more_conversations_at_once() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut body = simple_run(&stand_in, "capped", 3, 4);
    body["simulations"] = json!(vec![body["simulations"][0].clone(); 3]);
    for cap in [json!(0), json!(-1), json!(1.5), json!("two")] {
        body["concurrencyLimit"] = cap;
        let (status, answer) = api.call(Method::POST, RUNS, Some(&body)).await;
        assert_eq!(status, 400, "{answer:#}");
        assert!(
            answer["message"].to_string().contains("concurrencyLimit"),
            "{answer:#}"
        );
    }
    body["concurrencyLimit"] = json!(2);
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &body).await;
    assert_valid("CreateSimulationRunResponse", &created);
    assert_eq!(created["concurrencyLimit"], 2);
    let run = text(&created["id"]);
    until("two conversations", LONG, async || {
        (stand_in.count_of(Role::Target) >= 2).then_some(())
    })
    .await;
    until("two items to be counted as running", LONG, async || {
        let run = api.get(&format!("{RUNS}/{run}")).await;
        (counts(&run) == [12, 0, 0, 2, 10, 0]).then_some(())
    })
    .await;
    stand_in.release();
    let done = ended(&api, run).await;
    assert_eq!(counts(&done), [12, 12, 0, 0, 0, 0]);
    assert_eq!(done["concurrencyLimit"], 2);
    assert_eq!(most_at_once(&stand_in.calls()), 2);

    // One that is canceled while its items wait gives way to the next.
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let stopped = api.post(RUNS, &body).await;
    let path = format!("{RUNS}/{}", text(&stopped["id"]));
    until("two of them to run", LONG, async || {
        (counts(&api.get(&path).await)[3] == 2).then_some(())
    })
    .await;
    api.patch(&path).await;
    assert_eq!(
        counts(&ended(&api, text(&stopped["id"])).await),
        [12, 0, 0, 0, 0, 12]
    );
    stand_in.release();

    // The cap is of the run, not of the organization: without one there is none.
    body.as_object_mut().unwrap().remove("concurrencyLimit");
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let free = api.post(RUNS, &body).await;
    assert_eq!(free.get("concurrencyLimit"), None);
    until("all twelve at once", LONG, async || {
        let run = api.get(&format!("{RUNS}/{}", text(&free["id"]))).await;
        (counts(&run) == [12, 0, 0, 12, 0, 0]).then_some(())
    })
    .await;
    stand_in.release();
    assert_eq!(
        counts(&ended(&api, text(&free["id"])).await),
        [12, 12, 0, 0, 0, 0]
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_run_with_a_cap_places_no_more_calls_at_once_however_many_slots_there_are() {
    let stand_in = StandIn::start().await;
    let [capped, free] = [ProviderStandIn::start().await, ProviderStandIn::start().await];
    capped.auto(Auto::Both { talk_ms: 300 });
    let (local, api) = local_with_slots(&stand_in, 20).await;
    let capped_endpoint = endpoint(&api, &capped).await;
    let free_endpoint = endpoint(&api, &free).await;
    let body = simple_run(&stand_in, "capped", 2, 5);
    let mut slow = by_voice(body.clone(), &capped_endpoint);
    slow["concurrencyLimit"] = json!(1);
    let slow = api.post(RUNS, &slow).await;
    assert_eq!(slow["concurrencyLimit"], 1);
    // Another run has the slots that this one may not take.
    let quick = api.post(RUNS, &by_voice(body, &free_endpoint)).await;
    let calls = free.wait_for("all five at once", |calls| calls.len() == 5).await;
    assert_eq!(free.calls_up(), 5);
    assert_eq!(counts(&ended(&api, text(&slow["id"])).await), [5, 5, 0, 0, 0, 0]);
    assert_eq!((capped.most_up(), capped.calls().len()), (1, 5));
    let answers = join_all(calls.iter().map(|call| free.send_ended(&call.id))).await;
    assert_eq!(answers, [200; 5]);
    assert_eq!(counts(&ended(&api, text(&quick["id"])).await), [5, 5, 0, 0, 0, 0]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_shows_a_secret_once_and_is_its_organizations_own() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let strangers = stranger(&local, &api).await;
    let run = simple_run(&stand_in, "rung", 2, 1);

    // Without one there are no calls, and the answer says what to do. Who does not say how gets a chat.
    let mut voice = run.clone();
    voice["transport"] = json!({"provider": "vapi.websocket"});
    let (status, answer) = api.call(Method::POST, RUNS, Some(&voice)).await;
    assert_eq!(status, 400, "{answer:#}");
    assert!(text(&answer["message"]).contains("POST /endpoint"), "{answer:#}");
    voice["transport"] = Value::Null;
    let chat = api.post(RUNS, &voice).await;
    assert_eq!(chat["transport"], json!({"provider": "vapi.webchat"}));
    ended(&api, text(&chat["id"])).await;
    for url in [
        "",
        "provider.example",
        "ftp://provider.example/calls",
        "http://",
        "/calls",
        "https://a b/",
    ] {
        let (status, answer) = api
            .call(Method::POST, "/endpoint", Some(&json!({"url": url})))
            .await;
        assert_eq!(status, 400, "{url}: {answer:#}");
        assert!(answer["message"].to_string().contains("url"), "{url}: {answer:#}");
    }
    for body in [
        json!({}),
        json!({"url": provider.url(), "provider": "other"}),
        json!({"url": provider.url(), "apiKey": "two words"}),
        json!({"url": provider.url(), "secret": "mine"}),
    ] {
        let (status, answer) = api.call(Method::POST, "/endpoint", Some(&body)).await;
        assert_eq!(status, 400, "{answer:#}");
    }
    assert_eq!(api.get("/endpoint").await, json!([]), "nothing came of these");

    let created = endpoint(&api, &provider).await;
    let id = text(&created["id"]);
    let path = format!("/endpoint/{id}");
    assert!(text(&created["secrets"][0]["secret"]).starts_with("whsec_"));
    assert_eq!(
        (&created["hasApiKey"], &created["url"]),
        (&json!(true), &json!(provider.url()))
    );
    assert_eq!(
        hook_url(&created, "callStarted"),
        format!("{}/hooks/{id}/call-started", api.base)
    );
    assert_eq!(
        hook_url(&created, "callEnded"),
        format!("{}/hooks/{id}/call-ended", api.base)
    );
    let mut shown = created.clone();
    shown["secrets"][0].as_object_mut().unwrap().remove("secret");
    assert_eq!(api.get(&path).await, shown, "the secret was shown the last time");
    assert_eq!(api.get("/endpoint").await, json!([shown]));
    assert!(
        ![created.to_string(), shown.to_string()]
            .iter()
            .any(|text| text.contains(PROVIDER_KEY))
    );

    // To others it does not exist.
    let foreign = endpoint(&strangers, &ProviderStandIn::start().await).await;
    assert_eq!(
        ids_of(list(&strangers.get("/endpoint").await)),
        ids_of(std::slice::from_ref(&foreign))
    );
    let secret = format!("{path}/secret");
    let first = format!("{secret}/{}", text(&created["secrets"][0]["id"]));
    let change = json!({"name": "Mine"});
    for (method, path, body) in [
        (Method::GET, &path, None),
        (Method::PATCH, &path, Some(&change)),
        (Method::DELETE, &path, None),
        (Method::POST, &secret, Some(&json!({}))),
        (Method::DELETE, &first, None),
    ] {
        let (status, answer) = strangers.call(method.clone(), path, body).await;
        assert_eq!(status, 404, "{method} {path}: {answer:#}");
    }
    let (status, answer) = strangers
        .call(Method::POST, RUNS, Some(&by_voice(run.clone(), &created)))
        .await;
    assert_eq!(status, 404, "{answer:#}");
    assert_eq!(api.get(&path).await, shown, "and nobody else has changed it");

    // Changed: another name, and no key any more.
    let (status, changed) = api
        .call(
            Method::PATCH,
            &path,
            Some(&json!({"name": "Trunk", "apiKey": null})),
        )
        .await;
    assert_eq!(
        (status, &changed["name"], &changed["hasApiKey"], &changed["url"]),
        (200, &json!("Trunk"), &json!(false), &created["url"])
    );
    let (status, answer) = api.call(Method::PATCH, &path, Some(&json!({"url": "no"}))).await;
    assert_eq!(status, 400, "{answer:#}");
    // A run that names none takes the only one.
    voice["transport"] = json!({"provider": "vapi.websocket"});
    provider.auto(Auto::Both { talk_ms: 0 });
    let done = api.post(RUNS, &voice).await;
    assert_eq!(counts(&ended(&api, text(&done["id"])).await), [1, 1, 0, 0, 0, 0]);
    assert_eq!(provider.calls()[0].authorization, None);

    let gone = api.delete(&path).await;
    assert_eq!(gone["id"], created["id"]);
    let (status, _) = api.call(Method::GET, &path, None).await;
    assert_eq!((status, api.get("/endpoint").await), (404, json!([])));
    let event = json!({"callId": "any", "endedReason": "any"})
        .to_string()
        .into_bytes();
    let late = provider
        .deliver(&hook_url(&created, "callEnded"), event, Tamper::Nothing)
        .await;
    assert_eq!(late, 404, "what was deleted takes no events");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_of_an_endpoint_is_replaced_while_calls_are_up() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let created = endpoint(&api, &provider).await;
    let path = format!("/endpoint/{}/secret", text(&created["id"]));
    let first = &created["secrets"][0];
    let (call, item, _) = one_call(&api, &stand_in, &provider, &created).await;
    let url = hook_url(&created, "callStarted");
    let sign_and_tell = async |secret: &Value| {
        provider.set_secret(text(&secret["secret"]));
        let event = provider.started_event(&call).to_string().into_bytes();
        provider.deliver(&url, event, Tamper::Nothing).await
    };
    let (status, only) = api
        .call(Method::DELETE, &format!("{path}/{}", text(&first["id"])), None)
        .await;
    assert_eq!(status, 400, "{only:#}");
    assert!(text(&only["message"]).contains("only secret"), "{only:#}");
    let (status, _) = api
        .call(Method::DELETE, &format!("{path}/{}", Uuid::now_v7()), None)
        .await;
    assert_eq!(status, 404);

    let added = api.post(&path, &json!({})).await;
    let [old, second] = list(&added["secrets"]) else {
        panic!("two secrets: {added:#}")
    };
    assert_eq!(
        (&old["id"], old.get("secret")),
        (&first["id"], None),
        "only the new one is shown"
    );
    assert_ne!(second["secret"], first["secret"]);
    assert_eq!(sign_and_tell(first).await, 200);
    assert_eq!(sign_and_tell(second).await, 200);
    let left = api.delete(&format!("{path}/{}", text(&first["id"]))).await;
    assert_eq!(
        ids_of(list(&left["secrets"])),
        ids_of(std::slice::from_ref(second))
    );
    assert_eq!(sign_and_tell(first).await, 401);
    let before = api.get(&item).await;
    assert_eq!(sign_and_tell(second).await, 200);
    assert_eq!(provider.send_ended(&call).await, 200);
    assert_eq!(counts(&ended(&api, run_of(&item)).await), [1, 1, 0, 0, 0, 0]);
    assert_eq!(
        (&before["status"], before.get("results")),
        (&json!("running"), None)
    );
    assert_told(&api.get(&item).await, &provider, &call);

    // There is an end to them.
    let mut made = 1;
    let refusal = loop {
        let (status, answer) = api.call(Method::POST, &path, Some(&json!({}))).await;
        if status != 201 {
            break (status, answer);
        }
        made += 1;
        assert!(made < 100, "they are unlimited");
    };
    assert_eq!(refusal.0, 400, "{:#}", refusal.1);
    local.shutdown().await;
}
