//! Bodies that the tests send, and what they ask of the answers.

use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use serde_json::{Value, json};

use crate::{
    provider::ProviderStandIn,
    server::{Api, until},
    stand_in::StandIn,
};

pub(crate) const RUNS: &str = "/eval/simulation/run";
/// How long any run of these tests may take.
pub(crate) const LONG: Duration = Duration::from_secs(400);

static CONTRACT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../shared/tests/schemas/contract.json")).unwrap());

/// `value` is what the published schema says.
#[track_caller]
pub(crate) fn assert_valid(name: &str, value: &Value) {
    let mut schema = CONTRACT.clone();
    schema["$ref"] = json!(format!("#/$defs/{name}"));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap();
    assert_all_valid(&validator, [value]);
}

/// All of them are.
#[track_caller]
pub(crate) fn assert_items_valid(items: &[Value]) {
    let mut schema = CONTRACT.clone();
    schema["$ref"] = json!("#/$defs/SimulationRunItem");
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap();
    assert_all_valid(&validator, items);
}

#[track_caller]
fn assert_all_valid<'a>(validator: &jsonschema::Validator, values: impl IntoIterator<Item = &'a Value>) {
    for value in values {
        let faults: Vec<_> = validator
            .iter_errors(value)
            .map(|fault| format!("{fault} at {}", fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{faults:#?} in {value:#}");
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

pub(crate) fn ids(values: &[Value]) -> BTreeSet<String> {
    values.iter().map(|value| text(&value["id"]).to_owned()).collect()
}

/// A tester that speaks first, in its model's words.
pub(crate) fn personality(name: &str) -> Value {
    json!({"name": name, "path": null, "assistant": {"model": {
        "provider": "openai", "model": "tester", "maxTokens": 250.0,
        "messages": [{"role": "system", "content": "You are in a hurry."}],
    }}})
}

/// What the tester `sim` is to do: `turns` turns, then it hangs up.
pub(crate) fn scenario(sim: &str, turns: usize, evaluations: Value) -> Value {
    let directive = json!({"sim": sim, "turns": turns});
    json!({"name": format!("Scenario {sim}"), "instructions": format!("Book something. <<{directive}>>"), "evaluations": evaluations})
}

/// An evaluation of an inline output.
pub(crate) fn evaluation(name: &str, kind: &str, comparator: &str, value: Value) -> Value {
    json!({"structuredOutput": {"name": name, "schema": {"type": kind}}, "comparator": comparator, "value": value})
}

/// An evaluation of an inline regular expression.
pub(crate) fn regex(name: &str, pattern: &str, kind: &str, comparator: &str, value: Value) -> Value {
    let mut evaluation = evaluation(name, kind, comparator, value);
    evaluation["structuredOutput"]["type"] = json!("regex");
    evaluation["structuredOutput"]["regex"] = json!(pattern);
    evaluation
}

/// An assistant behind the stand-in; `prompt` may carry a directive.
pub(crate) fn assistant(stand_in: &StandIn, prompt: &str) -> Value {
    json!({"name": "Clinic", "model": {
        "provider": "custom-llm", "model": "target", "url": stand_in.target_url(),
        "messages": [{"role": "system", "content": prompt}],
    }})
}

pub(crate) fn inline_target(assistant: &Value) -> Value {
    json!({"type": "assistant", "assistant": assistant})
}

pub(crate) fn inline(scenario: &Value, personality: &Value) -> Value {
    json!({"type": "simulation", "scenario": scenario, "personality": personality})
}

pub(crate) fn run(entries: Value, target: Value, iterations: u32) -> Value {
    json!({
        "simulations": entries, "target": target, "iterations": iterations,
        "transport": {"provider": "vapi.webchat"},
    })
}

/// A run of one simulation, `sim`, that passes.
pub(crate) fn simple_run(stand_in: &StandIn, sim: &str, turns: usize, iterations: u32) -> Value {
    let scenario = scenario(
        sim,
        turns,
        json!([regex("answered", "Answer 1", "boolean", "=", json!(true))]),
    );
    let target = inline_target(&assistant(stand_in, "You run a clinic."));
    run(
        json!([inline(&scenario, &personality("Pat"))]),
        target,
        iterations,
    )
}

/// The key that endpoints of these tests have.
pub(crate) const PROVIDER_KEY: &str = "pk_test";

/// Makes a provider known; it signs with the endpoint's secret from now on.
pub(crate) async fn endpoint(api: &Api, provider: &ProviderStandIn) -> Value {
    let body = json!({"name": "Phone", "url": provider.url(), "apiKey": PROVIDER_KEY});
    let endpoint = api.post("/endpoint", &body).await;
    provider.set_secret(text(&endpoint["secrets"][0]["secret"]));
    endpoint
}

/// The same run, by calls that an endpoint carries.
pub(crate) fn by_voice(mut run: Value, endpoint: &Value) -> Value {
    run["transport"] = json!({"provider": "vapi.websocket", "endpointId": endpoint["id"]});
    run
}

/// The path of the `n`-th item of a run that was just created.
pub(crate) fn item_path(created: &Value, n: usize) -> String {
    let item = &created["simulationRunItemIds"][n];
    format!("{RUNS}/{}/item/{}", text(&created["id"]), text(item))
}

/// Waits until the run has ended; gives it as it is then.
pub(crate) async fn ended(api: &Api, run: &str) -> Value {
    until("the run to end", LONG, async || {
        let run = api.get(&format!("{RUNS}/{run}")).await;
        (run["status"] == "ended").then_some(run)
    })
    .await
}

/// All items of a run, page by page.
pub(crate) async fn items(api: &Api, run: &str, limit: usize) -> Vec<Value> {
    pages(api, &format!("{RUNS}/{run}/item"), limit).await
}

/// A whole list by its cursors. Nothing comes twice and nothing is left out.
pub(crate) async fn pages(api: &Api, path: &str, limit: usize) -> Vec<Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = api.get(&format!("{path}?limit={limit}{cursor}")).await;
        let (results, metadata) = (list(&page["results"]), &page["metadata"]);
        assert_valid("PaginationMeta", metadata);
        assert!(results.len() <= limit);
        all.extend_from_slice(results);
        if metadata["hasNextPage"] == json!(true) {
            assert_eq!(results.len(), limit);
            cursor = format!("&cursor={}", text(&metadata["nextCursor"]));
            continue;
        }
        assert_eq!(metadata["nextCursor"], Value::Null);
        assert_eq!(metadata["totalItems"], json!(all.len()));
        assert_eq!(ids(&all).len(), all.len(), "an entry came twice");
        return all;
    }
}

pub(crate) fn counts(run: &Value) -> [u64; 6] {
    ["total", "passed", "failed", "running", "queued", "canceled"].map(|name| {
        run["itemCounts"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {run:#}"))
    })
}

/// The counts of a run add up to its total.
#[track_caller]
pub(crate) fn assert_counted(run: &Value, total: u64) {
    let [all, parts @ ..] = counts(run);
    assert_eq!((all, parts.iter().sum::<u64>()), (total, total), "{run:#}");
}

/// A batch of three simulations: one passes, one fails, and one passes with a tool, a stored output and skips.
pub(crate) async fn batch(api: &Api, stand_in: &StandIn, iterations: u32) -> Value {
    for (name, value) in [
        ("booked/booked", json!(true)),
        ("missed/booked", json!(false)),
        ("visits", json!(3)),
        ("mood", json!("annoyed")),
        ("price", json!(12.5)),
        ("visit", json!({"slot": {"hour": 14}, "note": "ok"})),
    ] {
        stand_in.judge(name, value);
    }
    let stored = api
        .post("/eval/simulation/personality", &personality("Pat"))
        .await;
    assert_valid("Personality", &stored);

    // By the simulation's id.
    let mut mood = evaluation("mood", "string", "=", json!("happy"));
    mood["required"] = json!(false);
    let booked = scenario(
        "booked",
        3,
        json!([
            evaluation("booked", "boolean", "=", json!(true)),
            evaluation("visits", "integer", ">=", json!(2.0)),
            evaluation("visits", "integer", "<=", json!(3)),
            regex("turn", "Answer (\\d+)", "number", "=", json!(1)),
            regex("greeting", "/^user: hello/im", "boolean", "=", json!(true)),
            mood,
        ]),
    );
    let booked = api.post("/eval/simulation/scenario", &booked).await;
    assert_valid("Scenario", &booked);
    let simulation =
        json!({"name": "Booked", "scenarioId": booked["id"], "personalityId": stored["id"], "path": "a/b"});
    let simulation = api.post("/eval/simulation", &simulation).await;
    assert_valid("Simulation", &simulation);

    // Inline, the target speaks first.
    let missed = scenario(
        "missed",
        2,
        json!([
            evaluation("booked", "boolean", "=", json!(true)),
            evaluation("mood", "string", "!=", json!("happy")),
            evaluation("price", "number", "<", json!(12.5)),
        ]),
    );
    let mut waits = personality("Wait");
    waits["assistant"]["firstMessageMode"] = json!("assistant-waits-for-user");

    // By the parts' ids, with a tool, a stored output and evaluations that are skipped.
    let visit = json!({"name": "visit", "schema": {"type": "object", "properties": {
        "slot": {"type": "object", "properties": {"hour": {"type": "integer"}}}, "note": {"type": "string"}}}});
    let visit = api.post("/structured-output", &visit).await;
    let mut long = evaluation("mood", "string", "=", json!("never asked"));
    long["structuredOutput"]["conditions"] = json!([{"type": "minMessages", "count": 99.0}]);
    let mut hung_up = regex("hung up", "goodbye", "boolean", "=", json!(true));
    hung_up["structuredOutput"]["conditions"] =
        json!([{"type": "endedReason", "operator": "notOneOf", "values": ["customer-ended-call"]}]);
    let mut tool = scenario(
        "tool",
        1,
        json!([
            {"structuredOutputId": visit["id"], "path": "slot.hour", "comparator": ">", "value": 13},
            regex("free", "The tool says (.*)\\.", "string", "=", json!("Tuesday is free")),
            long,
            hung_up,
        ]),
    );
    tool["toolMocks"] = json!([{"toolName": "findSlot", "result": "Tuesday is free"}]);
    tool["targetOverrides"] = json!({
        "variableValues": {"city": "Bern"},
        "model": {"messages": [{"role": "system", "content": "<<{\"tool\":\"findSlot\",\"place\":\"{{city}}\"}>>"}]},
    });
    tool["latencyExpectations"] = json!([{"metric": "turn", "aggregation": "p95", "thresholdMs": 2000.0}]);
    let tool = api.post("/eval/simulation/scenario", &tool).await;

    let mut assistant = assistant(stand_in, "You run a clinic.");
    assistant["firstMessage"] = json!("Clinic, good day.");
    let find_slot = json!({"type": "function", "function": {"name": "findSlot", "parameters": {"type": "object",
        "properties": {"day": {"type": "string"}}}}});
    assistant["model"]["tools"] = json!([find_slot]);
    let entries = json!([
        {"type": "simulation", "simulationId": simulation["id"]},
        {"type": "simulation", "name": "Missed", "scenario": missed, "personality": waits},
        {"type": "simulation", "scenarioId": tool["id"], "personalityId": stored["id"]},
    ]);
    run(entries, inline_target(&assistant), iterations)
}
