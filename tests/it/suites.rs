//! Suites of simulations, what is kept because something uses it, and the personalities that are built in.

use std::cmp::Reverse;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, UNKNOWN, assert_refused, passing},
    fixtures::{
        RUNS, assert_valid, assistant, counts, ended, inline, inline_target, item_path, list, pages,
        personality, run, text,
    },
    server::{Api, local},
    stand_in::StandIn,
};

const SUITE: &str = "/eval/simulation/suite";

/// Stored simulations that pass, called `sim0`, `sim1` and so on.
async fn simulations(api: &Api, count: usize) -> Vec<Value> {
    let caller = api.post(PERSONALITY, &personality("Pat")).await;
    let mut made = Vec::new();
    for n in 0..count {
        let name = format!("sim{n}");
        let scenario = api.post(SCENARIO, &passing(&name)).await;
        let body = json!({"name": name, "scenarioId": scenario["id"], "personalityId": caller["id"]});
        made.push(api.post(SIMULATION, &body).await);
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn suites_are_kept_changed_listed_and_copied() {
    let (local, api) = local(&StandIn::start().await).await;
    let made = simulations(&api, 3).await;
    let all = json!([made[2]["id"], made[0]["id"], made[2]["id"]]);
    let body = json!({
        "name": "Nightly", "simulationIds": all, "path": null, "tint": {"deep": [1.5]}, "id": UNKNOWN,
        "targetAssignments": [{"targetType": "assistant", "targetId": UNKNOWN}],
        "slackWebhookUrl": "https://hooks.example.com/x",
    });
    let suite = api.post(SUITE, &body).await;
    assert_valid("SimulationSuite", &suite);
    assert_ne!(suite["id"], UNKNOWN, "ids are ours");
    for field in ["simulationIds", "targetAssignments", "slackWebhookUrl", "tint"] {
        assert_eq!(suite[field], body[field]);
    }
    let path = format!("{SUITE}/{}", text(&suite["id"]));
    assert_eq!(api.get(&path).await, suite);
    let plain = json!({"name": "Empty", "simulationIds": []});
    let plain = api.post(SUITE, &plain).await;
    assert_valid("SimulationSuite", &plain);
    assert_eq!(plain["targetAssignments"], json!([]), "always there");

    // A copy is the same under another name and id, with or without a body in the request.
    let copy = api.post(&format!("{path}/duplicate"), &json!({})).await;
    assert_valid("SimulationSuite", &copy);
    assert_eq!(copy["name"], "Nightly (copy)");
    assert_ne!(copy["id"], suite["id"]);
    for field in [
        "orgId",
        "simulationIds",
        "targetAssignments",
        "slackWebhookUrl",
        "tint",
    ] {
        assert_eq!(copy[field], suite[field]);
    }
    let long = "é".repeat(80);
    let (status, renamed) = api
        .call(Method::PATCH, &path, Some(&json!({"name": long, "path": "a/b"})))
        .await;
    assert_eq!(
        (
            status,
            &renamed["name"],
            &renamed["path"],
            &renamed["simulationIds"]
        ),
        (200, &json!(long), &json!("a/b"), &all)
    );
    let (status, copy) = api.call(Method::POST, &format!("{path}/duplicate"), None).await;
    assert_eq!(
        (status, &copy["name"], &copy["path"]),
        (201, &json!(format!("{} (copy)", "é".repeat(73))), &json!("a/b"))
    );

    // Lists are replaced. A simulation can go although a suite names it, and the suite can still be changed.
    let gone = format!("{SIMULATION}/{}", text(&made[0]["id"]));
    assert_eq!(api.delete(&gone).await, made[0]);
    let (status, renamed) = api.call(Method::PATCH, &path, Some(&json!({"name": "B"}))).await;
    assert_eq!((status, &renamed["simulationIds"]), (200, &all));
    let one = json!([made[1]["id"]]);
    for (ids, status) in [(&all, 404), (&one, 200)] {
        let change = json!({"simulationIds": ids, "path": null, "targetAssignments": []});
        let (answered, _) = api.call(Method::PATCH, &path, Some(&change)).await;
        assert_eq!(answered, status);
    }
    let now = api.get(&path).await;
    assert_eq!(
        (&now["simulationIds"], &now["path"], &now["targetAssignments"]),
        (&one, &Value::Null, &json!([]))
    );

    assert_eq!(list(&api.get(SUITE).await).len(), 4);
    assert_eq!(pages(&api, SUITE, 3).await.len(), 4);
    assert_eq!(api.delete(&path).await, now);
    assert_refused(&api.call(Method::GET, &path, None).await, 404, "not found");
    assert_eq!(list(&api.get(SUITE).await).len(), 3);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suites_that_cannot_be_right_are_refused() {
    let (local, api) = local(&StandIn::start().await).await;
    let suite = json!({"name": "Nightly", "simulationIds": []});
    let path = format!("{SUITE}/{}", text(&api.post(SUITE, &suite).await["id"]));
    for (field, value, status, fault) in [
        ("name", Value::Null, 400, "name"),
        ("name", json!("x".repeat(81)), 400, "name must be shorter"),
        ("simulationIds", json!("x"), 400, "simulationIds"),
        ("simulationIds", json!([1]), 400, "simulationIds"),
        ("simulationIds", json!([UNKNOWN]), 404, UNKNOWN),
        (
            "simulationIds",
            json!(["nothing"]),
            404,
            "Simulation nothing not found",
        ),
        ("path", json!("a b"), 400, "path"),
        (
            "targetAssignments",
            json!([{"targetType": "robot", "targetId": UNKNOWN}]),
            400,
            "targetAssignments",
        ),
        (
            "targetAssignments",
            json!([{"targetType": "squad", "targetId": "7"}]),
            400,
            "targetId must be a UUID",
        ),
    ] {
        let mut body = suite.clone();
        body[field] = value.clone();
        assert_refused(&api.call(Method::POST, SUITE, Some(&body)).await, status, fault);
        if !value.is_null() {
            let change = json!({ field: value });
            assert_refused(
                &api.call(Method::PATCH, &path, Some(&change)).await,
                status,
                fault,
            );
        }
    }
    let without = api.call(Method::POST, SUITE, Some(&json!({"name": "x"}))).await;
    assert_refused(&without, 400, "simulationIds");
    assert_eq!(list(&api.get(SUITE).await).len(), 1);
    for id in [UNKNOWN, "1", "%20"] {
        let path = format!("{SUITE}/{id}");
        for method in [Method::GET, Method::DELETE] {
            assert_refused(&api.call(method, &path, None).await, 404, "Simulation suite");
        }
        let change = api.call(Method::PATCH, &path, Some(&json!({}))).await;
        assert_refused(&change, 404, "not found");
        let copy = api.call(Method::POST, &format!("{path}/duplicate"), None).await;
        assert_refused(&copy, 404, "not found");
    }
    let copy = format!("{path}/duplicate");
    assert_refused(&api.call(Method::GET, &copy, None).await, 405, "Cannot GET");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_holds_what_its_suites_hold_at_that_moment() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let made = simulations(&api, 3).await;
    let ids = json!([made[2]["id"], made[0]["id"], made[2]["id"]]);
    let suite = json!({"name": "Nightly", "simulationIds": ids});
    let suite = api.post(SUITE, &suite).await;
    let path = format!("{SUITE}/{}", text(&suite["id"]));
    let named = json!({"type": "simulationSuite", "simulationSuiteId": suite["id"]});
    let alias = json!({"type": "simulationSuite", "suiteId": suite["id"], "name": "as I like"});
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    let entries = json!([
        named,
        inline(&passing("inline"), &personality("Pat")),
        alias,
        {"type": "simulation", "simulationId": made[1]["id"]},
    ]);
    let created = api.post(RUNS, &run(entries, target.clone(), 1)).await;
    let names: Vec<&Value> = list(&created["simulations"])
        .iter()
        .map(|entry| &entry["name"])
        .collect();
    assert_eq!(names[0], "Nightly");
    assert_eq!(names[2], "Nightly", "the server writes it");
    for (entry, older) in [(0, &Value::Null), (2, &suite["id"])] {
        let entry = &created["simulations"][entry];
        assert_eq!(
            (&entry["simulationSuiteId"], &entry["suiteId"]),
            (&suite["id"], older),
            "under its newer name, and under the older one where that was used"
        );
    }
    assert_eq!(list(&created["simulationRunItemIds"]).len(), 3 + 1 + 3 + 1);

    // What changes now is of no matter to the run.
    let change = json!({"name": "Other", "simulationIds": []});
    let (status, _) = api.call(Method::PATCH, &path, Some(&change)).await;
    assert_eq!(status, 200);
    let done = ended(&api, text(&created["id"])).await;
    assert_valid("SimulationRun", &done);
    assert_eq!(counts(&done), [8, 8, 0, 0, 0, 0]);
    assert_eq!(done["simulations"], created["simulations"]);
    assert_eq!(done["itemCounts"]["distinctSimulationTotal"], 4);
    for (n, sim) in [(0, 2), (1, 0), (2, 2), (4, 2), (5, 0), (6, 2), (7, 1)] {
        let item = api.get(&item_path(&created, n)).await;
        let simulation: &Value = &made[sim];
        assert_eq!(
            (
                &item["simulationId"],
                &item["metadata"]["simulation"],
                &item["scenarioId"]
            ),
            (&simulation["id"], simulation, &simulation["scenarioId"])
        );
    }

    // A suite that holds nothing, one that names a simulation that is gone, and one that there is not.
    let only = |entry: &Value| run(json!([entry]), target.clone(), 1);
    let empty = api.call(Method::POST, RUNS, Some(&only(&named))).await;
    assert_refused(&empty, 400, "no simulations");
    let change = json!({"simulationIds": ids});
    let (status, _) = api.call(Method::PATCH, &path, Some(&change)).await;
    assert_eq!(status, 200);
    api.delete(&format!("{SIMULATION}/{}", text(&made[0]["id"])))
        .await;
    let gone = format!("Simulation {} not found", text(&made[0]["id"]));
    let refused = api.call(Method::POST, RUNS, Some(&only(&named))).await;
    assert_refused(&refused, 404, &gone);
    for (field, id, status) in [
        ("simulationSuiteId", UNKNOWN, 404),
        ("suiteId", UNKNOWN, 404),
        ("suiteId", "7", 404),
        ("simulationSuiteId", "7", 400),
        ("other", UNKNOWN, 400),
    ] {
        let entry = json!({"type": "simulationSuite", field: id});
        assert_refused(
            &api.call(Method::POST, RUNS, Some(&only(&entry))).await,
            status,
            "uite",
        );
    }
    assert_eq!(list(&api.get(RUNS).await).len(), 1, "nothing else was begun");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_request_cannot_ask_for_too_much_by_its_suites() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let made = simulations(&api, 1).await;
    let suite = json!({"name": "Long", "simulationIds": vec![made[0]["id"].clone(); 8000]});
    let suite = api.post(SUITE, &suite).await;
    let entry = json!({"type": "simulationSuite", "simulationSuiteId": suite["id"]});
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    for (entries, iterations) in [(20_000, 1), (2, 10)] {
        let body = run(json!(vec![&entry; entries]), target.clone(), iterations);
        let refused = api.call(Method::POST, RUNS, Some(&body)).await;
        assert_refused(&refused, 400, "at most 100000 items");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_simulation_uses_stays_until_no_simulation_uses_it() {
    let (local, api) = local(&StandIn::start().await).await;
    let scenario = api.post(SCENARIO, &passing("used")).await;
    let caller = api.post(PERSONALITY, &personality("Pat")).await;
    // The spelling of an id does not matter.
    let body = json!({
        "scenarioId": text(&scenario["id"]).to_uppercase(), "personalityId": text(&caller["id"]).to_uppercase(),
    });
    let user = api.post(SIMULATION, &body).await;
    // The one that uses them is the oldest of more than the first page of what is looked through.
    let others = simulations(&api, 1).await.remove(0);
    let body = json!({"scenarioId": others["scenarioId"], "personalityId": others["personalityId"]});
    for _ in 0..10 {
        join_all((0..50).map(|_| api.post(SIMULATION, &body))).await;
    }
    for (kind, used, error, schema) in [
        (
            SCENARIO,
            &scenario,
            "scenario_in_use",
            "ScenarioInUseConflictResponseDTO",
        ),
        (
            PERSONALITY,
            &caller,
            "personality_in_use",
            "PersonalityInUseConflictResponseDTO",
        ),
    ] {
        for id in [text(&used["id"]).to_owned(), text(&used["id"]).to_uppercase()] {
            let (status, body) = api.call(Method::DELETE, &format!("{kind}/{id}"), None).await;
            assert_eq!((status, &body["error"]), (409, &json!(error)), "{body}");
            assert_valid(schema, &body);
            assert!(text(&body["message"]).contains(text(&user["id"])), "{body}");
        }
    }

    // A change of the simulation frees the one, its end the other.
    let path = format!("{SIMULATION}/{}", text(&user["id"]));
    let change = json!({"scenarioId": others["scenarioId"]});
    let (status, _) = api.call(Method::PATCH, &path, Some(&change)).await;
    assert_eq!(status, 200);
    let freed = api.delete(&format!("{SCENARIO}/{}", text(&scenario["id"]))).await;
    assert_eq!(freed, scenario);
    api.delete(&path).await;
    let freed = api
        .delete(&format!("{PERSONALITY}/{}", text(&caller["id"])))
        .await;
    assert_eq!(freed, caller);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_personalities_are_listed_as_the_oldest() {
    let (local, api) = local(&StandIn::start().await).await;
    let mut newest_first = Vec::new();
    for name in ["First", "Second", "Third"] {
        newest_first.push(api.post(PERSONALITY, &personality(name)).await);
    }
    // Of two that were made in the same millisecond, either may be the newer one.
    newest_first.sort_by_key(|made| Reverse(text(&made["id"]).to_owned()));
    for n in 1..=7 {
        let built_in = api
            .get(&format!("{PERSONALITY}/a0000000-0000-4000-8000-00000000000{n}"))
            .await;
        assert_valid("Personality", &built_in);
        assert_eq!(built_in["orgId"], Value::Null);
        newest_first.push(built_in);
    }
    let oldest_first: Vec<Value> = newest_first.iter().rev().cloned().collect();
    assert_eq!(list(&api.get(PERSONALITY).await), newest_first);
    for limit in [1, 2, 3, 4, 7, 10, 11] {
        assert_eq!(
            pages(&api, PERSONALITY, limit).await,
            newest_first,
            "{limit} at a time"
        );
        // The same the other way round, by cursor and by number.
        for by_cursor in [true, false] {
            let (mut all, mut next) = (Vec::new(), String::new());
            for page in 1_usize.. {
                let query = format!("sortOrder=ASC&limit={limit}{next}");
                let answer = api.get(&format!("{PERSONALITY}?{query}")).await;
                all.extend_from_slice(list(&answer["results"]));
                let metadata = &answer["metadata"];
                assert_eq!(metadata["totalItems"], 10);
                if metadata["hasNextPage"] == json!(false) {
                    break;
                }
                next = if by_cursor {
                    format!("&cursor={}", text(&metadata["nextCursor"]))
                } else {
                    format!("&page={}", page + 1)
                };
            }
            assert_eq!(all, oldest_first, "{limit} at a time");
        }
    }

    // They obey the filters by time as well.
    for (query, count) in [
        ("createdAtGt=2026-01-01T00:00:00.000Z", 3),
        ("createdAtGe=2026-01-01T00:00:00.000Z", 10),
        ("createdAtLe=2026-01-01T00:00:00.000Z", 7),
        ("createdAtLt=2026-01-01T00:00:00.000Z", 0),
    ] {
        let answer = api.get(&format!("{PERSONALITY}?limit=2&{query}")).await;
        assert_eq!(answer["metadata"]["totalItems"], count, "{query}");
        assert_eq!(
            list(&api.get(&format!("{PERSONALITY}?{query}")).await).len(),
            count,
            "{query}"
        );
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_personalities_are_used_but_not_changed() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let id = "a0000000-0000-4000-8000-000000000004";
    let path = format!("{PERSONALITY}/{id}");
    let irene = api.get(&path).await;
    assert_eq!(irene["name"], "Impatient Irene");
    let scenario = api.post(SCENARIO, &passing("builtin")).await;
    let body = json!({"scenarioId": scenario["id"], "personalityId": id});
    let simulation = api.post(SIMULATION, &body).await;
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    let entries = json!([
        {"type": "simulation", "simulationId": simulation["id"]},
        {"type": "simulation", "scenarioId": scenario["id"], "personalityId": id},
    ]);
    let created = api.post(RUNS, &run(entries, target, 1)).await;
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [2, 2, 0, 0, 0, 0]);
    for n in 0..2 {
        let item = api.get(&item_path(&created, n)).await;
        assert_eq!(
            (&item["personalityId"], &item["metadata"]["personality"]),
            (&json!(id), &irene)
        );
    }

    for (method, done) in [(Method::PATCH, "changed"), (Method::DELETE, "deleted")] {
        let refused = api.call(method, &path, Some(&json!({"name": "Mine"}))).await;
        let message = format!("Personality {id} not found or is a Vapi default (cannot be {done})");
        assert_refused(&refused, 404, &message);
    }
    assert_eq!(api.get(&path).await, irene);
    // A copy is one's own.
    let copy = api.post(PERSONALITY, &irene).await;
    assert_eq!(copy["assistant"], irene["assistant"]);
    assert!(copy["orgId"].is_string() && copy["id"] != irene["id"]);
    api.delete(&format!("{PERSONALITY}/{}", text(&copy["id"]))).await;
    local.shutdown().await;
}
