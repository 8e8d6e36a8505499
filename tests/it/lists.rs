//! What the filters of lists leave, and that pages of what is left neither overlap nor skip.

use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, passing},
    fixtures::{
        RUNS, assert_valid, assistant, ended, ids, inline, inline_target, list, personality, run, text,
    },
    server::{Api, local},
    stand_in::StandIn,
};

const SUITE: &str = "/eval/simulation/suite";

/// The names in a list, which is asked for in one go and in pages of two.
async fn names(api: &Api, path: &str) -> Vec<String> {
    let name = |one: &Value| text(&one["name"]).to_owned();
    let whole: Vec<String> = list(&api.get(path).await).iter().map(name).collect();
    let and = if path.contains('?') { '&' } else { '?' };
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{path}{and}limit=2{cursor}")).await;
        assert_eq!(page["metadata"]["totalItems"].as_f64(), Some(whole.len() as f64));
        paged.extend(list(&page["results"]).iter().map(name));
        match page["metadata"]["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, whole, "{path}");
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_found_by_name_ids_change_and_suite() {
    let (local, api) = local(&StandIn::start().await).await;
    let caller = api.post(PERSONALITY, &personality("Pat")).await;
    let (mut scenarios, mut simulations) = (Vec::new(), Vec::new());
    for name in ["Book a table", "book a room", "Cancel", "Rebook", "Ask"] {
        let mut body = passing("x");
        body["name"] = json!(name);
        let scenario = api.post(SCENARIO, &body).await;
        let body = json!({"name": name, "scenarioId": scenario["id"], "personalityId": caller["id"]});
        simulations.push(api.post(SIMULATION, &body).await);
        scenarios.push(scenario);
    }
    assert_eq!(names(&api, SCENARIO).await.len(), 5);
    assert_eq!(
        names(&api, &format!("{SCENARIO}?name=BOOK")).await,
        ["Rebook", "book a room", "Book a table"]
    );
    assert_eq!(
        names(&api, &format!("{SCENARIO}?name=book&sortOrder=ASC")).await,
        ["Book a table", "book a room", "Rebook"]
    );
    assert_eq!(
        names(&api, &format!("{SCENARIO}?name=nothing")).await,
        Vec::<String>::new()
    );
    // Repeated, or separated by commas.
    let (one, two) = (text(&scenarios[0]["id"]), text(&scenarios[2]["id"]));
    for any in [format!("idAny={one}&idAny={two}"), format!("idAny={one},{two}")] {
        assert_eq!(
            names(&api, &format!("{SCENARIO}?{any}")).await,
            ["Cancel", "Book a table"]
        );
    }
    assert_eq!(
        api.call(reqwest::Method::GET, &format!("{SCENARIO}?idAny=7"), None)
            .await
            .0,
        400
    );

    // What was changed since.
    let path = format!("{SCENARIO}/{one}");
    let changed = api
        .call(
            reqwest::Method::PATCH,
            &path,
            Some(&json!({"name": "Book two tables"})),
        )
        .await
        .1;
    let at = text(&changed["updatedAt"]);
    assert_eq!(
        names(&api, &format!("{SCENARIO}?updatedAtGe={at}")).await,
        ["Book two tables"]
    );
    assert_eq!(
        names(&api, &format!("{SCENARIO}?updatedAtLt={at}")).await.len(),
        4
    );
    assert_eq!(
        names(&api, &format!("{SCENARIO}?updatedAtGt={at}&name=book"))
            .await
            .len(),
        0
    );
    assert_eq!(
        names(&api, &format!("{SCENARIO}?updatedAtLe={at}")).await.len(),
        5
    );
    assert_eq!(
        names(&api, &format!("{PERSONALITY}?updatedAtGe=2020-01-01T00:00:00Z"))
            .await
            .len(),
        8,
        "with the built-in ones"
    );

    // What is in no suite.
    let body = json!({"name": "Nightly", "simulationIds": [simulations[1]["id"], simulations[3]["id"]]});
    api.post(SUITE, &body).await;
    assert_eq!(
        names(&api, &format!("{SIMULATION}?standaloneOnly=true")).await,
        ["Ask", "Cancel", "Book a table"]
    );
    assert_eq!(
        names(&api, &format!("{SIMULATION}?standaloneOnly=false"))
            .await
            .len(),
        5
    );
    assert_eq!(names(&api, &format!("{SUITE}?name=night")).await, ["Nightly"]);
    assert_eq!(
        names(&api, &format!("{SUITE}?name=day")).await,
        Vec::<String>::new()
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_found_by_status_result_and_target() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let stored = api.post("/assistant", &assistant(&stand_in, "")).await;
    let by_id = json!({"type": "assistant", "assistantId": stored["id"]});
    let caller = personality("Pat");
    let play = async |scenario: Value, target: &Value| {
        let entry = inline(&scenario, &caller);
        let made = api.post(RUNS, &run(json!([entry]), target.clone(), 1)).await;
        ended(&api, text(&made["id"])).await;
        text(&made["id"]).to_owned()
    };
    let here = inline_target(&assistant(&stand_in, ""));
    let passed = play(passing("good"), &here).await;
    let mut wrong = passing("bad");
    wrong["evaluations"][0]["value"] = json!(match wrong["evaluations"][0]["value"] {
        Value::Bool(value) => !value,
        _ => panic!("the passing scenario asks for something else: {wrong}"),
    });
    let failed = play(wrong, &by_id).await;
    let found = async |filter: &str| ids(list(&api.get(&format!("{RUNS}?{filter}")).await));
    let set = |runs: &[&String]| runs.iter().map(|&run| run.clone()).collect();
    assert_eq!(found("filterStatus=passed").await, set(&[&passed]));
    assert_eq!(found("filterStatus=failed").await, set(&[&failed]));
    assert_eq!(found("filterStatus=running").await, set(&[]));
    assert_eq!(found("status=ended").await, set(&[&passed, &failed]));
    assert_eq!(found("status=queued").await, set(&[]));
    assert_eq!(
        found(&format!("targetId={}", text(&stored["id"]))).await,
        set(&[&failed])
    );
    assert_eq!(
        found("targetType=assistant&filterStatus=failed").await,
        set(&[&failed])
    );
    assert_eq!(found("targetType=squad").await, set(&[]));
    assert_eq!(
        found("updatedAtGe=2020-01-01T00:00:00Z").await,
        set(&[&passed, &failed])
    );
    for wrong in [
        "status=over",
        "filterStatus=canceled",
        "targetType=x",
        "targetId=7",
        "updatedAtGe=soon",
    ] {
        let (status, body) = api
            .call(reqwest::Method::GET, &format!("{RUNS}?{wrong}"), None)
            .await;
        assert_eq!(status, 400, "{body}");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_runs_says_what_they_played() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let caller = api.post(PERSONALITY, &personality("Pat")).await;
    let scenario = api.post(SCENARIO, &passing("stored")).await;
    let body = json!({"name": "Stored", "scenarioId": scenario["id"], "personalityId": caller["id"]});
    let simulation = api.post(SIMULATION, &body).await;
    let body = json!({"name": "Nightly", "simulationIds": [simulation["id"], simulation["id"]]});
    let suite = api.post(SUITE, &body).await;
    let by_id = json!({"type": "simulation", "simulationId": simulation["id"]});
    let by_suite = json!({"type": "simulationSuite", "simulationSuiteId": suite["id"]});
    let here = inline(&passing("here"), &personality("Sam"));
    let target = inline_target(&assistant(&stand_in, ""));
    for entries in [
        json!([by_id]),
        json!([by_suite]),
        json!([by_suite, here]),
        json!([here]),
    ] {
        let made = api.post(RUNS, &run(entries, target.clone(), 1)).await;
        ended(&api, text(&made["id"])).await;
    }
    api.delete(&format!("{SUITE}/{}", text(&suite["id"]))).await;
    let page = api.get(&format!("{RUNS}?page=1&sortOrder=ASC")).await;
    let mut told = Vec::new();
    for one in list(&page["results"]) {
        assert_valid("SimulationRunListItem", one);
        let (summary, source) = (&one["summary"], &one["summary"]["source"]);
        assert_eq!(summary["targetSnapshotName"], "Clinic");
        let count = summary["simulationCount"].as_f64().unwrap();
        told.push(json!([
            source["type"],
            source["id"],
            source["name"],
            source["linkable"],
            source["simulationIds"],
            count
        ]));
    }
    let (simulation, suite) = (&simulation["id"], &suite["id"]);
    assert_eq!(
        told,
        [
            json!(["simulation", simulation, "Stored", true, [simulation], 1.0]),
            json!(["suite", suite, "Nightly", false, [simulation], 2.0]),
            json!(["adHoc", null, "3 simulations", false, [simulation], 3.0]),
            json!(["adHoc", null, "Scenario here / Sam", false, [], 1.0]),
        ]
    );
    let bare = api.get(RUNS).await;
    assert!(list(&bare).iter().all(|one| one.get("summary").is_none()));
    local.shutdown().await;
}
