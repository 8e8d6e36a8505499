//! Suites of simulations, and what is kept because something uses it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, UNKNOWN, assert_refused, passing},
    fixtures::{assert_valid, list, pages, personality, text},
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
