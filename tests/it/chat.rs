//! One chat batch from POST to verdict.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fixtures::{
        RUNS, assert_counted, assert_items_valid, assert_valid, assistant, batch, counts, ended, ids, items,
        list, pages, simple_run, text,
    },
    server::Server,
    stand_in::{Role, StandIn},
};

/// Role and content of an item's messages.
fn talk(item: &Value) -> Vec<(&str, &str)> {
    let messages = list(&item["metadata"]["call"]["messages"]);
    messages
        .iter()
        .map(|message| {
            (
                text(&message["role"]),
                message["content"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// An item's evaluations: name, extracted value, passed, required, skipped.
fn judged(item: &Value) -> Vec<(&str, Value, bool, bool, bool)> {
    list(&item["results"]["evaluations"])
        .iter()
        .map(|e| {
            assert_eq!(
                e["isSkipped"] == json!(true),
                e.get("skipReason").is_some(),
                "{e}"
            );
            let flag = |name: &str| e[name].as_bool().unwrap_or_default();
            (
                text(&e["name"]),
                e["extractedValue"].clone(),
                flag("passed"),
                flag("required"),
                flag("isSkipped"),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_three_simulations_ends_with_fifteen_verdicts() {
    let stand_in = StandIn::start().await;
    let server = Server::start(&stand_in, &[]).await;
    let api = &server.api;
    let body = batch(api, &stand_in, 5).await;

    let created = api.post(RUNS, &body).await;
    assert_valid("CreateSimulationRunResponse", &created);
    assert_eq!(list(&created["simulationRunItemIds"]).len(), 15);
    assert!(text(&created["url"]).starts_with(&api.base));
    let run = text(&created["id"]);
    let at_once = api.get(&format!("{RUNS}/{run}")).await;
    assert_valid("SimulationRun", &at_once);
    assert_counted(&at_once, 15);

    let done = ended(api, run).await;
    assert_valid("SimulationRun", &done);
    assert_eq!(counts(&done), [15, 10, 5, 0, 0, 0]);
    assert_eq!(
        (
            &done["itemCounts"]["distinctSimulationTotal"],
            &done["itemCounts"]["distinctSimulationFailed"]
        ),
        (&json!(3), &json!(1))
    );
    assert_eq!(done["endedReason"], "completed");
    assert_eq!(
        (&done["iterations"], &done["transport"]["provider"]),
        (&json!(5), &json!("vapi.webchat"))
    );

    let all = items(api, run, 4).await;
    assert_items_valid(&all);
    assert_eq!(
        ids(&all),
        list(&created["simulationRunItemIds"])
            .iter()
            .map(|id| text(id).to_owned())
            .collect()
    );
    for item in &all {
        let one = api.get(&format!("{RUNS}/{run}/item/{}", text(&item["id"]))).await;
        assert_eq!(&one, item, "the same in the list and by itself");
        assert_eq!(
            (&item["runId"], &item["orgId"]),
            (&created["id"], &created["orgId"])
        );
        assert!(item["sessionId"].is_string() && item.get("callId").is_none());
        let status = text(&item["status"]);
        assert_eq!(item["results"]["passed"], json!(status == "passed"), "{item:#}");
        assert_eq!(item.get("completedAt").is_some(), status == "passed");
        assert_eq!(item.get("failedAt").is_some(), status == "failed");
        let said = talk(item)
            .iter()
            .filter(|(role, _)| *role == "user" || *role == "assistant")
            .count();
        assert_eq!(
            text(&item["metadata"]["call"]["transcript"]).lines().count(),
            said
        );
    }
    check_booked(&of(&all, "booked"));
    check_missed(&of(&all, "missed"));
    check_tool(&of(&all, "tool"));
    // Nobody was asked twice: every conversation has its calls, and the judge was asked once for each.
    let mut calls = stand_in.calls();
    let count = calls.len();
    calls.sort();
    calls.dedup_by(|a, b| a.caller != 0 && a == b);
    assert_eq!(calls.len(), count);
    assert_eq!(stand_in.count_of(Role::Judge), 15);
    assert!(stand_in.max_in_flight() <= 16 + 4 * 10);

    check_lists(&server, run, &all).await;
    stored_assistant(&server, &stand_in, &body).await;
}

/// The items of a simulation, by the name in the tester's instructions, in the order of the iterations.
fn of<'a>(items: &'a [Value], sim: &str) -> Vec<&'a Value> {
    let name = format!("Scenario {sim}");
    let mut found: Vec<_> = items
        .iter()
        .filter(|item| item["metadata"]["scenario"]["name"] == json!(name))
        .collect();
    found.sort_by_key(|item| item["iterationNumber"].as_u64());
    let iterations: Vec<_> = found
        .iter()
        .map(|item| item["iterationNumber"].as_u64().unwrap())
        .collect();
    assert_eq!(iterations, (1..=found.len() as u64).collect::<Vec<_>>());
    found
}

fn check_booked(items: &[&Value]) {
    assert_eq!(items.len(), 5);
    for item in items {
        assert_eq!(item["status"], "passed");
        let said = talk(item);
        let caller = said[0]
            .1
            .strip_prefix("Hello, ")
            .unwrap()
            .strip_suffix(" of booked.")
            .unwrap();
        let (second, third) = (format!("Point 2 of {caller}."), format!("Point 3 of {caller}."));
        let thanks = format!("Thanks from {caller}, goodbye.");
        assert_eq!(
            said[1..7],
            [
                ("assistant", "Answer 1 from nowhere."),
                ("user", second.as_str()),
                ("assistant", "Answer 2 from nowhere."),
                ("user", third.as_str()),
                ("assistant", "Answer 3 from nowhere."),
                ("user", thanks.as_str()),
            ]
        );
        assert_eq!(
            (said[7].0, said[8].0, said.len()),
            ("tool_calls", "tool_call_result", 9)
        );
        assert_eq!(
            judged(item),
            [
                ("booked", json!(true), true, true, false),
                ("visits", json!(3), true, true, false),
                ("visits", json!(3), true, true, false),
                ("turn", json!(1), true, true, false),
                ("greeting", json!(true), true, true, false),
                ("mood", json!("annoyed"), false, false, false),
            ]
        );
        assert_eq!(item["simulationId"], item["metadata"]["simulation"]["id"]);
        assert_eq!(item["scenarioId"], item["metadata"]["scenario"]["id"]);
        assert_eq!(item["metadata"]["simulation"]["path"], "a/b");
    }
}

fn check_missed(items: &[&Value]) {
    assert_eq!(items.len(), 5);
    for item in items {
        assert_eq!(item["status"], "failed");
        assert_eq!(
            talk(item)[0],
            ("assistant", "Clinic, good day."),
            "the tester waits"
        );
        assert!(talk(item)[1].1.ends_with("of missed."));
        assert_eq!(
            judged(item),
            [
                ("booked", json!(false), false, true, false),
                ("mood", json!("annoyed"), true, true, false),
                ("price", json!(12.5), false, true, false),
            ]
        );
        assert_eq!(item.get("failureFault"), None, "the verdict is the agent's own");
        assert_eq!(item.get("scenarioId"), None, "it came inline");
    }
}

fn check_tool(items: &[&Value]) {
    assert_eq!(items.len(), 5);
    for item in items {
        assert_eq!(item["status"], "passed");
        let said = talk(item);
        assert_eq!(said[1].0, "tool_calls");
        assert_eq!(said[2], ("tool_call_result", "Tuesday is free"));
        assert_eq!(
            said[3],
            ("assistant", "Answer 1 from Bern. The tool says Tuesday is free.")
        );
        assert_eq!(
            judged(item),
            [
                ("visit", json!(14), true, true, false),
                ("free", json!("Tuesday is free"), true, true, false),
                ("mood", Value::Null, false, true, true),
                ("hung up", Value::Null, false, true, true),
            ]
        );
        let results = &item["results"];
        assert_eq!(results["evaluations"][0]["path"], "slot.hour");
        assert_eq!(
            results["latencyEvaluations"][0]["isSkipped"], true,
            "a chat has no latency"
        );
    }
}

/// The shapes of lists, their order, paging and filters.
async fn check_lists(server: &Server, run: &str, all: &[Value]) {
    let api = &server.api;
    let items_of = format!("{RUNS}/{run}/item");
    assert_eq!(
        list(&api.get(&items_of).await),
        all,
        "a bare list where neither page nor limit is asked for"
    );
    let first = list(&api.get(&format!("{items_of}?page=1&limit=10")).await["results"]).to_vec();
    let page = api.get(&format!("{items_of}?page=2&limit=10")).await;
    assert_eq!(
        [first.as_slice(), list(&page["results"])].concat(),
        all,
        "pages do not overlap"
    );
    assert_eq!(
        (
            &page["metadata"]["currentPage"],
            &page["metadata"]["totalPages"],
            &page["metadata"]["itemsPerPage"]
        ),
        (&json!(2), &json!(2), &json!(10))
    );
    let mut backwards = list(&api.get(&format!("{items_of}?sortOrder=ASC")).await).to_vec();
    backwards.reverse();
    assert_eq!(backwards, all);
    assert_eq!(
        list(&api.get(&format!("{items_of}?status=failed")).await).len(),
        5
    );
    assert_eq!(
        list(&api.get(&format!("{items_of}?status=canceled")).await).len(),
        0
    );
    let simulation = text(&all[0]["simulationId"]);
    assert_eq!(
        list(&api.get(&format!("{items_of}?simulationId={simulation}")).await).len(),
        5
    );
    let none = api.get(&format!("{items_of}?limit=0")).await;
    assert_eq!(
        (list(&none["results"]).len(), &none["metadata"]["totalItems"]),
        (0, &json!(15))
    );

    for n in 0..7 {
        let name = format!("Extra {n}");
        api.post(
            "/eval/simulation/personality",
            &json!({"name": name, "assistant": {}}),
        )
        .await;
    }
    for path in [
        "/eval/simulation/personality",
        "/eval/simulation/scenario",
        "/eval/simulation",
        RUNS,
    ] {
        let whole = api.get(path).await;
        let mut paged = pages(api, path, 3).await;
        for run in paged.iter_mut().filter(|_| path == RUNS) {
            // What only a page has.
            run.as_object_mut().unwrap().remove("summary").unwrap();
        }
        assert_eq!(paged, list(&whole), "{path}");
        let newest_first = list(&whole).is_sorted_by(|a, b| text(&a["createdAt"]) >= text(&b["createdAt"]));
        assert!(newest_first, "{path}");
        assert_eq!(
            list(
                &api.get(&format!("{path}?createdAtGt=2030-01-01T12%3A30%3A15.250000Z"))
                    .await
            )
            .len(),
            0
        );
        assert_eq!(
            list(&api.get(&format!("{path}?createdAtLe=2030-01-01T12:30:15Z")).await),
            list(&whole)
        );
    }
    for output in list(&api.get("/structured-output?limit=5").await["results"]) {
        assert_valid("StructuredOutput", output);
    }
}

/// A target that is stored: what counts is how it was when the run was created.
async fn stored_assistant(server: &Server, stand_in: &StandIn, batch: &Value) {
    let api = &server.api;
    let stored = api
        .post(
            "/assistant",
            &assistant(stand_in, "<<{\"place\":\"the shelf\"}>>"),
        )
        .await;
    let id = text(&stored["id"]);
    let mut body = simple_run(stand_in, "stored", 1, 1);
    body["target"] = json!({"type": "assistant", "assistantId": id});
    let run = api.post(RUNS, &body).await;
    let (status, _) = api
        .call(
            Method::PATCH,
            &format!("/assistant/{id}"),
            Some(&json!({"name": "Other"})),
        )
        .await;
    assert_eq!(status, 200);
    let run = ended(api, text(&run["id"])).await;
    assert_eq!(counts(&run), [1, 1, 0, 0, 0, 0]);
    assert_eq!(run["target"], body["target"]);
    let item = &items(api, text(&run["id"]), 10).await[0];
    assert_eq!(item["metadata"]["assistant"]["name"], "Clinic");
    assert_eq!(talk(item)[1], ("assistant", "Answer 1 from the shelf."));

    // Its simulation is gone, but the run keeps what it was made from.
    let simulation = text(&batch["simulations"][0]["simulationId"]);
    let gone = api.delete(&format!("/eval/simulation/{simulation}")).await;
    assert_eq!(gone["name"], "Booked");
    let (status, _) = api
        .call(Method::GET, &format!("/eval/simulation/{simulation}"), None)
        .await;
    assert_eq!(status, 404);
    let runs = api.get(RUNS).await;
    let first = list(&runs).last().unwrap();
    assert_eq!(of(&items(api, text(&first["id"]), 100).await, "booked").len(), 5);
}
