//! Repeated trials: what a run's simulations came to, how two runs compare, what is played again, and what is judged again.

use std::sync::Arc;

use reqwest::Method;
use ringback_shared::{
    ids,
    lifecycle::{Owed, State},
    models::trials::OriginKind,
    store::{ItemKey, ItemOrigin, Manifest, NewItem, NewOrigin, NewRun, RunOrigin},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, UNKNOWN, assert_refused},
    fixtures::{
        LONG, RUNS, assert_counted, assert_items_valid, assert_valid, assistant, by_voice, counts, ended,
        endpoint, evaluation, ids as ids_of, inline, inline_target, items, list, personality, regex, run,
        scenario, simple_run, text,
    },
    hooks::{ENDED, HookReceiver, STARTED, hook, settled},
    provider::{Auto, ProviderStandIn},
    server::{Api, Server, local, until},
    stand_in::{Fault, Role, StandIn},
    store::{NOW, items_of, new_run, stack},
};

/// The path of what belongs to a run.
fn of(run: &Value, what: &str) -> String {
    format!("{RUNS}/{}/{what}", text(&run["id"]))
}

fn booked() -> Value {
    json!([evaluation("booked", "boolean", "=", json!(true))])
}

/// A stored simulation whose judge says whether it is booked.
async fn simulation(api: &Api, sim: &str) -> Value {
    let scenario = api.post(SCENARIO, &scenario(sim, 1, booked())).await;
    let personality = api.post(PERSONALITY, &personality("Pat")).await;
    let body = json!({"name": format!("Simulation {sim}"), "scenarioId": scenario["id"], "personalityId": personality["id"]});
    api.post(SIMULATION, &body).await
}

fn entry(simulation: &Value) -> Value {
    json!({"type": "simulation", "simulationId": simulation["id"]})
}

/// The entry of a list that has this id.
fn with_id<'a>(entries: &'a Value, id: &Value) -> &'a Value {
    let found = list(entries).iter().find(|entry| entry["id"] == *id);
    found.unwrap_or_else(|| panic!("no {id} in {entries:#}"))
}

/// Creates a run of `entries` and waits for its end; gives it as it is then.
async fn play(api: &Api, entries: Value, target: Value, iterations: u32) -> Value {
    let created = api.post(RUNS, &run(entries, target, iterations)).await;
    ended(api, text(&created["id"])).await
}

/// Posts without a body and without a content type.
async fn post_nothing(api: &Api, path: &str) -> (u16, Value) {
    api.call(Method::POST, path, None).await
}

#[track_caller]
fn assert_close(value: &Value, expected: f64) {
    let number = value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"));
    assert!((number - expected).abs() < 0.000_05, "{number} is not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_played_again_against_the_fixed_agent_and_compared() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.judge("good/booked", json!(true));
    stand_in.judge("bad/booked", json!(false));
    stand_in.judge_in_turn("shaky/booked", [json!(true), json!(false), json!(true)]);
    let (good, bad, shaky) = (
        simulation(&api, "good").await,
        simulation(&api, "bad").await,
        simulation(&api, "shaky").await,
    );
    let agent = api
        .post("/assistant", &assistant(&stand_in, "You run a clinic."))
        .await;
    let target = json!({"type": "assistant", "assistantId": agent["id"]});
    // One of them is named twice: its items count together.
    let entries = json!([entry(&good), entry(&bad), entry(&shaky), entry(&good)]);
    let first = play(&api, entries, target, 3).await;
    assert_eq!(counts(&first), [12, 8, 4, 0, 0, 0]);

    let summary = api.get(&of(&first, "summary")).await;
    assert_eq!(
        (&summary["runId"], &summary["status"], summary.get("origin")),
        (&first["id"], &json!("ended"), None)
    );
    let totals = &summary["totals"];
    for (name, count) in [
        ("simulations", 3),
        ("flaky", 1),
        ("trials", 12),
        ("passed", 8),
        ("failed", 4),
        ("errored", 0),
        ("canceled", 0),
        ("open", 0),
    ] {
        assert_eq!(totals[name], count, "{name} of {totals}");
    }
    assert_close(&totals["passRate"], 8.0 / 12.0);
    assert_eq!(
        summary["flaky"],
        json!([{"id": shaky["id"], "name": "Simulation shaky"}])
    );
    let order: Vec<&Value> = list(&summary["simulations"])
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(order, [&good["id"], &bad["id"], &shaky["id"]]);
    for (simulation, trials, passed, low, high, flaky) in [
        (&good, 6, 6, 0.6097, 1.0, false),
        (&bad, 3, 0, 0.0, 0.5615, false),
        (&shaky, 3, 2, 0.2077, 0.9385, true),
    ] {
        let one = with_id(&summary["simulations"], &simulation["id"]);
        assert_eq!(one["name"], simulation["name"]);
        assert_eq!(one["scenarioId"], simulation["scenarioId"]);
        assert_eq!(one["personalityId"], simulation["personalityId"]);
        assert_eq!(one["personalityName"], "Pat");
        assert!(text(&one["scenarioName"]).starts_with("Scenario "));
        assert_eq!(
            (&one["trials"], &one["passed"], &one["failed"], &one["flaky"]),
            (
                &json!(trials),
                &json!(passed),
                &json!(trials - passed),
                &json!(flaky)
            )
        );
        assert_close(&one["passRate"], f64::from(passed) / f64::from(trials));
        assert_close(&one["wilson95"]["low"], low);
        assert_close(&one["wilson95"]["high"], high);
        let hats = list(&one["passHatK"]);
        assert_eq!(hats.len(), usize::try_from(trials).unwrap());
        assert_eq!(hats[0], json!({"k": 1, "value": one["passRate"]}));
    }
    let hats = &with_id(&summary["simulations"], &shaky["id"])["passHatK"];
    assert_close(&hats[1]["value"], 1.0 / 3.0);
    assert_close(&hats[2]["value"], 0.0);
    let page = api
        .get(&format!("{}?page=2&limit=2", of(&first, "summary")))
        .await;
    assert_eq!(&page["totals"], totals, "of the whole run on every page");
    assert_eq!(list(&page["simulations"]), &list(&summary["simulations"])[2..]);
    assert_eq!(
        (&page["metadata"]["totalItems"], &page["metadata"]["hasNextPage"]),
        (&json!(3), &json!(false))
    );
    let refused = api
        .call(
            Method::GET,
            &format!("{}?limit=1001", of(&first, "summary")),
            None,
        )
        .await;
    assert_refused(&refused, 400, "limit");

    // The agent is fixed, and its scenarios are changed, which must not count.
    stand_in.judge("bad/booked", json!(true));
    stand_in.forget();
    let fixed = json!({"name": "Fixed clinic"});
    let (status, _) = api
        .call(
            Method::PATCH,
            &format!("/assistant/{}", text(&agent["id"])),
            Some(&fixed),
        )
        .await;
    assert_eq!(status, 200);
    let (status, _) = api
        .call(
            Method::PATCH,
            &format!("{SCENARIO}/{}", text(&bad["scenarioId"])),
            Some(&json!({"instructions": "Something else."})),
        )
        .await;
    assert_eq!(status, 200);
    let (status, created) = post_nothing(&api, &of(&first, "rerun")).await;
    assert_eq!(status, 201, "{created:#}");
    assert_valid("CreateSimulationRunResponse", &created);
    let origin = json!({"type": "rerun", "runId": first["id"]});
    assert_eq!(created["origin"], origin);
    assert_eq!(
        (&created["iterations"], &created["transport"]["provider"]),
        (&json!(1), &json!("vapi.webchat"))
    );
    let again = ended(&api, text(&created["id"])).await;
    assert_eq!(again["origin"], origin);
    assert_eq!(counts(&again), [4, 4, 0, 0, 0, 0]);
    assert_eq!(stand_in.count_of(Role::Judge), 4, "nothing else was played");
    let failed = items(&api, text(&first["id"]), 100).await;
    let failed: Vec<Value> = failed
        .into_iter()
        .filter(|item| item["status"] == "failed")
        .collect();
    let played = items(&api, text(&again["id"]), 2).await;
    assert_items_valid(&played);
    let origins = played
        .iter()
        .map(|item| text(&item["metadata"]["origin"]["itemId"]).to_owned());
    assert_eq!(
        origins.collect::<std::collections::BTreeSet<_>>(),
        ids_of(&failed)
    );
    for item in &played {
        assert_eq!(item["metadata"]["origin"]["runId"], first["id"]);
        assert_eq!(item["metadata"]["assistant"]["name"], "Fixed clinic");
        let before = failed
            .iter()
            .find(|failed| failed["id"] == item["metadata"]["origin"]["itemId"])
            .unwrap();
        for part in ["scenario", "personality", "simulation"] {
            assert_eq!(item["metadata"][part], before["metadata"][part]);
        }
        assert_ne!(item["sessionId"], before["sessionId"], "another conversation");
    }
    let listed = api.get(&format!("{RUNS}?limit=1")).await;
    assert_eq!(listed["results"][0]["origin"], origin);
    assert_eq!(listed["results"][0]["summary"]["simulationCount"], 2);

    let comparison = api
        .get(&format!(
            "{}?baseline={}",
            of(&again, "compare"),
            text(&first["id"])
        ))
        .await;
    assert_eq!(
        comparison["counts"],
        json!({"fixed": 1, "broken": 0, "stillFailing": 0, "stillPassing": 0, "flaky": 1, "added": 0, "removed": 1,
            "undecided": 0})
    );
    for (change, simulation) in [("fixed", &bad), ("flaky", &shaky), ("removed", &good)] {
        assert_eq!(
            comparison["changes"][change],
            json!([{"id": simulation["id"], "name": simulation["name"]}])
        );
        assert_eq!(
            with_id(&comparison["simulations"], &simulation["id"])["change"],
            change
        );
    }
    let side = |run: &str, simulation: &Value| {
        let one = with_id(&comparison["simulations"], &simulation["id"]);
        let side = &one[run];
        (!side.is_null()).then(|| (side["trials"].clone(), side["passed"].clone()))
    };
    assert_eq!(side("baseline", &bad), Some((json!(3), json!(0))));
    assert_eq!(side("run", &bad), Some((json!(3), json!(3))));
    assert_eq!(side("run", &shaky), Some((json!(1), json!(1))));
    assert_eq!(side("run", &good), None);
    let backwards = api
        .get(&format!(
            "{}?baseline={}",
            of(&first, "compare"),
            text(&again["id"])
        ))
        .await;
    let changed = |name: &str| list(&backwards["changes"][name]).len();
    assert_eq!((changed("broken"), changed("flaky"), changed("added")), (1, 1, 1));

    // Nothing failed in the second run; all of it can be played once more, and its items come from its own.
    let refused = post_nothing(&api, &of(&again, "rerun")).await;
    assert_refused(&refused, 400, "nothing to rerun");
    let third = api.post(&of(&again, "rerun"), &json!({"items": "all"})).await;
    let third = ended(&api, text(&third["id"])).await;
    assert_eq!(counts(&third), [4, 4, 0, 0, 0, 0]);
    assert_eq!(third["origin"]["runId"], again["id"]);
    let last = items(&api, text(&third["id"]), 100).await;
    let origins = last
        .iter()
        .map(|item| text(&item["metadata"]["origin"]["itemId"]).to_owned());
    assert_eq!(
        origins.collect::<std::collections::BTreeSet<_>>(),
        ids_of(&played)
    );

    // A target that is gone cannot be played against, another one can.
    api.delete(&format!("/assistant/{}", text(&agent["id"]))).await;
    let all = json!({"items": "all"});
    let gone = api.call(Method::POST, &of(&third, "rerun"), Some(&all)).await;
    assert_refused(&gone, 404, "Assistant");
    let other = inline_target(&assistant(&stand_in, "You run another clinic."));
    let body = json!({"items": "all", "target": other, "concurrencyLimit": 2.0});
    let fourth = api.post(&of(&third, "rerun"), &body).await;
    assert_eq!(
        (&fourth["concurrencyLimit"], &fourth["target"]),
        (&json!(2), &other)
    );
    let fourth = ended(&api, text(&fourth["id"])).await;
    assert_eq!(counts(&fourth), [4, 4, 0, 0, 0, 0]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_and_cancellations_are_no_trials() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.fail(Role::Tester, 1, Fault::Status(400));
    let created = api.post(RUNS, &simple_run(&stand_in, "out", 1, 2)).await;
    let first = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&first), [2, 1, 1, 0, 0, 0]);
    let summary = api.get(&of(&first, "summary")).await;
    let one = &summary["simulations"][0];
    assert_eq!(
        [&one["trials"], &one["passed"], &one["failed"], &one["errored"]],
        [&json!(1), &json!(1), &json!(0), &json!(1)]
    );
    assert_eq!(
        (&one["passRate"], &one["flaky"], &summary["flaky"]),
        (&json!(1.0), &json!(false), &json!([]))
    );
    // It failed all the same, so it is played again.
    let (status, again) = post_nothing(&api, &of(&first, "rerun")).await;
    assert_eq!(status, 201, "{again:#}");
    let again = ended(&api, text(&again["id"])).await;
    assert_eq!(counts(&again), [1, 1, 0, 0, 0, 0]);
    let compare = |run: &Value, baseline: &Value| {
        format!(
            "{}?baseline={}",
            of(run, "compare"),
            baseline.as_str().unwrap_or_default()
        )
    };
    let comparison = api.get(&compare(&again, &first["id"])).await;
    assert_eq!(comparison["counts"]["stillPassing"], 1);

    // What runs has not been decided, and cannot be played or judged again yet.
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &simple_run(&stand_in, "stopped", 1, 2)).await;
    until("the targets to hang", LONG, async || {
        (stand_in.in_flight() == 2).then_some(())
    })
    .await;
    // A run's own state follows those of its items a moment later.
    let summary = until("the run to be seen as running", LONG, async || {
        let summary = api.get(&of(&created, "summary")).await;
        (summary["status"] == "running").then_some(summary)
    })
    .await;
    assert_eq!(summary["totals"]["open"], 2);
    let one = &summary["simulations"][0];
    assert_eq!(
        (&one["passRate"], &one["wilson95"], &one["passHatK"]),
        (&Value::Null, &Value::Null, &json!([]))
    );
    for what in ["rerun", "evaluate"] {
        let refused = post_nothing(&api, &of(&created, what)).await;
        assert_refused(&refused, 400, "has not ended");
    }
    api.patch(&format!("{RUNS}/{}", text(&created["id"]))).await;
    let stopped = ended(&api, text(&created["id"])).await;
    stand_in.release();
    assert_eq!(counts(&stopped), [2, 0, 0, 0, 0, 2]);
    let totals = &api.get(&of(&stopped, "summary")).await["totals"];
    assert_eq!(
        (&totals["canceled"], &totals["trials"], &totals["passRate"]),
        (&json!(2), &json!(0), &Value::Null)
    );
    let refused = post_nothing(&api, &of(&stopped, "rerun")).await;
    assert_refused(&refused, 400, "nothing to rerun");
    let refused = post_nothing(&api, &of(&stopped, "evaluate")).await;
    assert_refused(&refused, 400, "nothing to evaluate");
    let again = api
        .post(&of(&stopped, "rerun"), &json!({"items": "unfinished"}))
        .await;
    let again = ended(&api, text(&again["id"])).await;
    assert_eq!(counts(&again), [2, 2, 0, 0, 0, 0]);
    let comparison = api.get(&compare(&again, &stopped["id"])).await;
    assert_eq!(comparison["counts"]["undecided"], 1);

    // What a comparison needs.
    let missing = api.call(Method::GET, &of(&again, "compare"), None).await;
    assert_refused(&missing, 400, "baseline");
    let unknown = api
        .call(Method::GET, &compare(&again, &json!(UNKNOWN)), None)
        .await;
    assert_refused(&unknown, 404, "not found");
    let (org, key) = (Uuid::now_v7(), "rb_stranger");
    let store = &local.context().store;
    store.ensure_org(org, "strangers").await.unwrap();
    store
        .put_api_key(org, "test", &ids::sha256_hex(key.as_bytes()))
        .await
        .unwrap();
    let stranger = Api {
        key: Some(key.to_owned()),
        ..api.clone()
    };
    let own = stranger.post(RUNS, &simple_run(&stand_in, "own", 1, 1)).await;
    ended(&stranger, text(&own["id"])).await;
    let foreign = stranger
        .call(Method::GET, &compare(&own, &again["id"]), None)
        .await;
    assert_refused(&foreign, 404, "not found");
    for (method, what) in [
        (Method::GET, "summary"),
        (Method::GET, "compare"),
        (Method::POST, "rerun"),
        (Method::POST, "evaluate"),
    ] {
        assert_refused(
            &stranger.call(method, &of(&again, what), None).await,
            404,
            "not found",
        );
    }
    for (what, body) in [
        ("rerun", json!({"items": "some"})),
        ("rerun", json!({"concurrencyLimit": 0, "items": "all"})),
        ("rerun", json!({"target": {"type": "assistant"}})),
        ("rerun", json!([])),
        ("evaluate", json!({"evaluations": []})),
        ("evaluate", json!({"scenarios": [{"evaluations": booked()}]})),
        (
            "evaluate",
            json!({"scenarios": [{"scenarioId": UNKNOWN, "simulationId": UNKNOWN, "evaluations": booked()}]}),
        ),
        (
            "evaluate",
            json!({"scenarios": [{"scenarioId": UNKNOWN, "evaluations": booked()}]}),
        ),
    ] {
        let (status, refused) = api.call(Method::POST, &of(&again, what), Some(&body)).await;
        assert_eq!(status, 400, "{body}: {refused}");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_conversations_are_judged_again_and_nobody_talks() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.judge("stored/booked", json!(false));
    stand_in.judge("inline/booked", json!(false));
    let stored = simulation(&api, "stored").await;
    let mut inlined = scenario("inline", 1, booked());
    inlined["hooks"] = json!([
        hook(STARTED, &receiver.url("/told")),
        hook(ENDED, &receiver.url("/told"))
    ]);
    let entries = json!([entry(&stored), inline(&inlined, &personality("Sam"))]);
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    let first = play(&api, entries, target, 2).await;
    assert_eq!(counts(&first), [4, 0, 4, 0, 0, 0]);
    let held = items(&api, text(&first["id"]), 100).await;
    for item in held.iter().filter(|item| item.get("hooks").is_some()) {
        let path = format!("{RUNS}/{}/item/{}", text(&first["id"]), text(&item["id"]));
        for event in [STARTED, ENDED] {
            settled(&api, &path, event).await;
        }
    }
    let told = receiver.told().len();
    assert_eq!(told, 4, "two of two items");

    // The stored scenario as it is now needs no model; the inline one is judged as before.
    let changed = json!({"evaluations": [regex("answered", "Answer 1", "boolean", "=", json!(true))],
        "instructions": "Never said."});
    let (status, _) = api
        .call(
            Method::PATCH,
            &format!("{SCENARIO}/{}", text(&stored["scenarioId"])),
            Some(&changed),
        )
        .await;
    assert_eq!(status, 200);
    stand_in.forget();
    let (status, created) = post_nothing(&api, &of(&first, "evaluate")).await;
    assert_eq!(status, 201, "{created:#}");
    assert_valid("CreateSimulationRunResponse", &created);
    let origin = json!({"type": "evaluation", "runId": first["id"]});
    assert_eq!(created["origin"], origin);
    let judged = ended(&api, text(&created["id"])).await;
    assert_eq!(judged["origin"], origin);
    assert_eq!(counts(&judged), [4, 2, 2, 0, 0, 0]);
    assert_eq!(
        (stand_in.count(), stand_in.count_of(Role::Judge)),
        (2, 2),
        "nobody talked"
    );
    let verdicts = items(&api, text(&judged["id"]), 100).await;
    assert_items_valid(&verdicts);
    assert_judged_again(&verdicts, &held);
    for item in &verdicts {
        let stored = item["simulationId"] == stored["id"];
        let scenario = &item["metadata"]["scenario"];
        assert_eq!(item["status"], if stored { "passed" } else { "failed" });
        assert!(text(&scenario["instructions"]).starts_with("Book something."));
        assert_eq!(
            scenario["evaluations"],
            if stored {
                changed["evaluations"].clone()
            } else {
                inlined["evaluations"].clone()
            }
        );
        assert_eq!((item.get("hooks"), item["metadata"].get("hooks")), (None, None));
    }
    assert_eq!(receiver.told().len(), told, "and nobody was told");
    let comparison = format!("{}?baseline={}", of(&judged, "compare"), text(&first["id"]));
    let comparison = api.get(&comparison).await;
    assert_eq!(
        (
            &comparison["counts"]["fixed"],
            &comparison["counts"]["stillFailing"]
        ),
        (&json!(1), &json!(1))
    );

    // By other evaluations for one simulation and the rest, with a stored output as it is at that moment. What was only judged
    // can be judged as well: it is the same conversation.
    stand_in.judge("mood", json!("happy"));
    stand_in.judge("calm", json!(true));
    let output = json!({"name": "mood", "schema": {"type": "string"}});
    let output = api.post("/structured-output", &output).await;
    let mood = json!([{"structuredOutputId": output["id"], "comparator": "=", "value": "happy"}]);
    let body = json!({
        "scenarios": [{"scenarioId": stored["scenarioId"], "evaluations": mood}],
        "evaluations": [evaluation("calm", "boolean", "=", json!(true))],
    });
    stand_in.forget();
    let third = api.post(&of(&judged, "evaluate"), &body).await;
    api.delete(&format!("/structured-output/{}", text(&output["id"])))
        .await;
    let third = ended(&api, text(&third["id"])).await;
    assert_eq!(counts(&third), [4, 4, 0, 0, 0, 0]);
    assert_eq!((stand_in.count(), stand_in.count_of(Role::Judge)), (4, 4));
    assert_eq!(
        third["origin"],
        json!({"type": "evaluation", "runId": judged["id"]})
    );
    let last = items(&api, text(&third["id"]), 100).await;
    assert_judged_again(&last, &verdicts);
    for item in &last {
        let name = if item["simulationId"] == stored["id"] {
            "mood"
        } else {
            "calm"
        };
        let named = text(&item["results"]["evaluations"][0]["name"]);
        assert_eq!(named, name, "{item:#}");
    }
    let gone = json!({"evaluations": mood});
    let gone = api.call(Method::POST, &of(&first, "evaluate"), Some(&gone)).await;
    assert_refused(&gone, 404, "Structured output");
    // The output that is gone is still what the conversations of the third run are judged by, unless the scenario says more.
    let by_simulation =
        json!({"scenarios": [{"simulationId": text(&stored["id"]).to_uppercase(), "evaluations": mood}]});
    let fourth = api.post(&of(&third, "evaluate"), &by_simulation).await;
    let fourth = ended(&api, text(&fourth["id"])).await;
    assert_eq!(counts(&fourth), [4, 4, 0, 0, 0, 0]);

    // A rerun of what was only judged plays it, judged by what it was judged by.
    stand_in.judge("inline/booked", json!(true));
    stand_in.forget();
    let (status, played) = post_nothing(&api, &of(&judged, "rerun")).await;
    assert_eq!(status, 201, "{played:#}");
    let played = ended(&api, text(&played["id"])).await;
    assert_eq!(counts(&played), [2, 2, 0, 0, 0, 0]);
    assert!(stand_in.count_of(Role::Target) > 0);
    local.shutdown().await;
}

/// The items of an evaluation show the conversations of those that they came from, one by one.
#[track_caller]
fn assert_judged_again(judged: &[Value], held: &[Value]) {
    assert_eq!(judged.len(), held.len());
    for item in judged {
        let origin = &item["metadata"]["origin"];
        let before = held
            .iter()
            .find(|held| held["id"] == origin["itemId"])
            .unwrap_or_else(|| panic!("no origin: {item:#}"));
        assert_eq!(origin["runId"], before["runId"]);
        assert!(!list(&before["metadata"]["call"]["messages"]).is_empty());
        assert_eq!(item["metadata"]["call"], before["metadata"]["call"]);
        for field in [
            "simulationId",
            "scenarioId",
            "personalityId",
            "callId",
            "sessionId",
        ] {
            assert_eq!(item.get(field), before.get(field), "{field}");
        }
        for part in ["assistant", "personality", "simulation"] {
            assert_eq!(item["metadata"][part], before["metadata"][part]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_calls_are_judged_again_without_a_call_or_a_slot() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local(&stand_in).await;
    provider.auto(Auto::Both { talk_ms: 20 });
    provider.latencies(&[800, 1000, 1200]);
    let endpoint = endpoint(&api, &provider).await;
    let created = api
        .post(RUNS, &by_voice(simple_run(&stand_in, "called", 3, 3), &endpoint))
        .await;
    let first = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&first), [3, 3, 0, 0, 0, 0]);
    let held = items(&api, text(&first["id"]), 100).await;
    let calls = provider.calls().len();

    let expectation = json!({"metric": "turn", "aggregation": "max", "thresholdMs": 1199, "required": true});
    let body = json!({"latencyExpectations": [expectation]});
    let judged = api.post(&of(&first, "evaluate"), &body).await;
    assert_eq!(
        judged["transport"], first["transport"],
        "how the conversations were held"
    );
    let judged = ended(&api, text(&judged["id"])).await;
    assert_eq!(
        counts(&judged),
        [3, 0, 3, 0, 0, 0],
        "the third answer was too slow"
    );
    assert_judged_again(&items(&api, text(&judged["id"]), 100).await, &held);
    assert_eq!(provider.calls().len(), calls);
    let store = &local.context().store;
    let org: Uuid = text(&judged["orgId"]).parse().unwrap();
    assert_eq!(store.waiting_runs(org).await.unwrap(), []);

    // A rerun of it calls again, through the same endpoint.
    let (status, again) = post_nothing(&api, &of(&judged, "rerun")).await;
    assert_eq!(
        (status, &again["transport"]),
        (201, &first["transport"]),
        "{again:#}"
    );
    let again = ended(&api, text(&again["id"])).await;
    assert_eq!(counts(&again), [3, 0, 3, 0, 0, 0]);
    assert_eq!(provider.calls().len(), calls + 3);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_play_or_judge_again_that_is_sent_again_makes_one_run() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let created = api.post(RUNS, &simple_run(&stand_in, "once", 1, 2)).await;
    let first = ended(&api, text(&created["id"])).await;
    let send = |path: String, key: &'static str, body: &'static str| {
        let request = api
            .request(Method::POST, &path)
            .header("Idempotency-Key", key)
            .body(body);
        async move {
            let answer = request.send().await.unwrap();
            (
                answer.status().as_u16(),
                answer.json::<Value>().await.unwrap_or_default(),
            )
        }
    };
    let all = r#"{"items": "all"}"#;
    let rerun = send(of(&first, "rerun"), "key", all).await;
    assert_eq!(rerun.0, 201, "{}", rerun.1);
    assert_eq!(send(of(&first, "rerun"), "key", all).await, rerun);
    let unfinished = r#"{"items": "all", "concurrencyLimit": 1}"#;
    let other = send(of(&first, "rerun"), "key", unfinished).await;
    assert_refused(&other, 409, "Idempotency-Key");
    // The same body means something else elsewhere.
    let elsewhere = send(of(&first, "evaluate"), "key", all).await;
    assert_refused(&elsewhere, 409, "Idempotency-Key");
    let again = ended(&api, text(&rerun.1["id"])).await;
    let of_another = send(of(&again, "rerun"), "key", all).await;
    assert_refused(&of_another, 409, "Idempotency-Key");

    let judged = send(of(&first, "evaluate"), "other key", "").await;
    assert_eq!(judged.0, 201, "{}", judged.1);
    assert_eq!(send(of(&first, "evaluate"), "other key", "").await, judged);
    ended(&api, text(&judged.1["id"])).await;
    assert_eq!(list(&api.get(RUNS).await).len(), 3);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_judges_again_goes_on() {
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    let created = server.api.post(RUNS, &simple_run(&stand_in, "kept", 1, 4)).await;
    let first = ended(&server.api, text(&created["id"])).await;
    stand_in.judge("booked", json!(true));
    stand_in.forget();
    stand_in.fail(Role::Judge, 4, Fault::Hang);
    let body = json!({"evaluations": booked()});
    let judged = server.api.post(&of(&first, "evaluate"), &body).await;
    until("four judges", LONG, async || {
        (stand_in.count_of(Role::Judge) == 4).then_some(())
    })
    .await;
    let path = format!("{RUNS}/{}", text(&judged["id"]));
    let at_work = until("the items to be counted", LONG, async || {
        let run = server.api.get(&path).await;
        (counts(&run) == [4, 0, 0, 4, 0, 0]).then_some(run)
    })
    .await;
    assert_eq!(at_work["status"], "running");
    server.kill_9();
    stand_in.release();
    server.restart().await;
    assert_counted(&server.api.get(&path).await, 4);
    let done = ended(&server.api, text(&judged["id"])).await;
    assert_eq!(counts(&done), [4, 4, 0, 0, 0, 0]);
    assert_eq!(
        (stand_in.count(), stand_in.count_of(Role::Judge)),
        (8, 8),
        "each was judged once more, and no word was said"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_items_of_a_simulation_share_its_snapshot() {
    let (emulator, ctx) = stack().await;
    let other = new_run(2, 60);
    let mut snapshots = other.snapshots.clone();
    for (n, snapshot) in snapshots.iter_mut().enumerate() {
        snapshot.simulation = json!({"name": format!("simulation {n}")});
        snapshot.scenario = json!({"name": "s", "hooks": [hook(STARTED, "https://example.com")]});
    }
    // Two of each three, by turns.
    let taken: Vec<u32> = (0..120).filter(|n| n % 3 != 0).collect();
    let key = |index| ItemKey { run: other.id, index };
    let from = |kind| {
        let items = taken.iter().map(|&index| NewItem {
            snapshot: index / 60,
            origin: ItemOrigin {
                item: key(index),
                conversation: (kind == OriginKind::Evaluation).then(|| key(index)),
            },
        });
        let refs = taken
            .iter()
            .map(|&index| other.manifest.refs[index as usize / 60].clone());
        NewRun {
            endpoint: Some(Uuid::from_u128(8)),
            cap: Some(1),
            manifest: Manifest {
                refs: refs.collect(),
                ..other.manifest.clone()
            },
            snapshots: snapshots.clone(),
            origin: Some(NewOrigin {
                run: RunOrigin {
                    kind,
                    run: other.id,
                    root: other.id,
                },
                items: items.collect(),
            }),
            ..new_run(1, 1)
        }
    };
    let judged = from(OriginKind::Evaluation);
    let items = items_of(&ctx, &judged).await;
    assert_eq!(items.len(), 80);
    for item in &items {
        assert_eq!(
            (item.state, item.waiting(), item.hooked, item.call.is_some()),
            (State::Evaluating, Some(Owed::Evaluate), false, false)
        );
        assert!(item.due_at.is_some_and(|at| at > NOW) && item.slots.is_empty());
    }
    assert_eq!(ctx.store.waiting_runs(judged.org).await.unwrap(), []);
    let played = from(OriginKind::Rerun);
    let again = items_of(&ctx, &played).await;
    for item in &again {
        assert_eq!(
            (item.state, item.owed, item.hooked, item.call.is_some()),
            (State::Queued, Owed::Admit, true, true)
        );
    }
    for new in [&judged, &played] {
        for (n, &index) in (0_u32..).zip(&taken) {
            let briefing = ctx.briefing(new.id, n).await.unwrap();
            let origin = briefing.origin.unwrap();
            assert_eq!(*briefing.snapshot, snapshots[index as usize / 60]);
            assert_eq!(origin.item, key(index));
            assert_eq!(origin.conversation.is_some(), new.id == judged.id);
            assert_eq!(ctx.store.snapshot(new.id, n).await.unwrap(), *briefing.snapshot);
        }
        let (one, two) = (ctx.briefing(new.id, 0).await, ctx.briefing(new.id, 1).await);
        assert!(Arc::ptr_eq(&one.unwrap().snapshot, &two.unwrap().snapshot));
        let names = ctx.store.names(new.id).await.unwrap();
        assert_eq!(names.len(), 2);
        for (n, reference) in other.manifest.refs.iter().enumerate() {
            assert_eq!(
                names[&reference.simulation_id].simulation,
                format!("simulation {n}")
            );
        }
    }
    let standings = ctx.store.standings(judged.id, 0).await.unwrap();
    let places: Vec<u32> = standings.iter().map(|standing| standing.index).collect();
    assert_eq!(places, (0..80).collect::<Vec<_>>());
    assert!(standings.iter().all(|standing| !standing.was_held()));
    emulator.shutdown().await;
}
