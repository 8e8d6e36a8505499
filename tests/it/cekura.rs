//! The API in the shape of Cekura: what is made there or in another shape, launches, results and their counts, and refusals.

use std::{collections::BTreeSet, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, passing},
    fixtures::{LONG, RUNS, assistant, ended, endpoint, inline, list, personality, run, text},
    hooks::{HookReceiver, NEVER, Told, hook_secret},
    provider::{Auto, ProviderStandIn},
    server::{Api, local, until},
    stand_in::{Fault, Role, StandIn},
};

const V1: &str = "/test_framework/v1";
const V2: &str = "/test_framework/v2";
const CRON: &str = "/schedules/v1/cron-jobs/";

fn answer(value: Value) -> Value {
    json!({"applies": true, "because": ["Turn 2 shows it."], "turns": [2], "value": value})
}

fn outcome(met: &[bool]) -> Value {
    let part = |met: &bool| json!({"expected": "E", "happened": "H.", "met": met, "turns": [2]});
    json!({"parts": met.iter().map(part).collect::<Vec<_>>()})
}

fn id(value: &Value) -> u64 {
    value["id"].as_u64().unwrap_or_else(|| panic!("no id in {value}"))
}

fn ids(values: &Value) -> Vec<u64> {
    list(values).iter().map(id).collect()
}

/// Who plays: an agent that is asked over HTTP, and a personality.
async fn cast(stand_in: &StandIn, api: &Api) -> (Value, Value) {
    let agent = json!({
        "name": "Booker", "description": "You book tables.", "telephony": {"phone_number": "+15550100", "inbound": true},
        "model": assistant(stand_in, "You book tables.")["model"],
    });
    let agent = api.post(&format!("{V2}/aiagents/"), &agent).await;
    let caller = json!({"name": "Pat", "prompt": "You are Pat.", "language": "en"});
    (agent, api.post(&format!("{V1}/personalities/"), &caller).await)
}

async fn metric(api: &Api, body: Value) -> Value {
    api.post(&format!("{V1}/metrics/"), &body).await
}

async fn scenario(api: &Api, cast: &(Value, Value), sim: &str, more: Value) -> Value {
    let mut body = json!({
        "name": sim, "agent": cast.0["id"], "personality": cast.1["id"], "tags": [sim],
        "instructions": format!("Book a table. <<{{\"sim\":\"{sim}\",\"turns\":1}}>>"),
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    api.post(&format!("{V1}/scenarios/"), &body).await
}

async fn launch(api: &Api, body: Value) -> Value {
    api.post(&format!("{V1}/scenarios/run_scenarios_text/"), &body)
        .await
}

async fn completed(api: &Api, result: u64) -> Value {
    let path = format!("{V1}/results/{result}/");
    until("the result", Duration::from_secs(60), async || {
        let found = api.get(&path).await;
        ["completed", "failed", "cancelled"]
            .contains(&text(&found["status"]))
            .then_some(found)
    })
    .await
}

/// A refusal's status and body.
async fn refused(api: &Api, method: Method, path: &str, body: Value) -> (u16, Value) {
    api.call(method, path, Some(&body)).await
}

/// All runs in a result.
fn runs(result: &Value) -> Vec<&Value> {
    result["runs"].as_object().unwrap().values().collect()
}

/// What a result's counts must be, counted anew from its runs.
fn assert_counts(result: &Value) {
    let runs = runs(result);
    let count = |fits: &dyn Fn(&Value) -> bool| runs.iter().filter(|run| fits(run)).count();
    let terminal = |run: &Value| ["completed", "failed", "timeout"].contains(&text(&run["status"]));
    let scored = |run: &Value| run["expected_outcome"]["score"].is_number();
    for (field, expected) in [
        ("total_runs_count", runs.len()),
        ("completed_runs_count", count(&|run| run["status"] == "completed")),
        ("success_runs_count", count(&|run| run["success"] == true)),
        (
            "failed_runs_count",
            count(&|run| terminal(run) && run["success"] == false),
        ),
        ("total_expected_outcome_count", count(&scored)),
        (
            "met_expected_outcome_count",
            count(&|run| run["expected_outcome"]["score"] == 100),
        ),
    ] {
        assert_eq!(result[field], json!(expected), "{field} of {result}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a dozen")]
    let rate = count(&|run| run["success"] == true) as f64 / runs.len() as f64;
    assert!(
        (result["success_rate"].as_f64().unwrap() - rate).abs() < 1e-9,
        "{result}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_counts_what_its_runs_came_to() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let polite = metric(
        &api,
        json!({"name": "Polite", "description": "Was it polite?", "eval_type": "binary_workflow_adherence"}),
    )
    .await;
    let short = metric(
        &api,
        json!({"name": "Short", "description": "Was it short?", "eval_type": "binary_qualitative"}),
    )
    .await;
    let tone = metric(
        &api,
        json!({"name": "Tone", "description": "How was the tone?", "eval_type": "continuous_qualitative"}),
    )
    .await;
    let guests = metric(
        &api,
        json!({"name": "Guests", "description": "How many guests?", "eval_type": "numeric"}),
    )
    .await;
    let mood = metric(&api, json!({"name": "Mood", "description": "The mood", "eval_type": "enum", "enum_values": ["good", "bad"]})).await;
    let latency = metric(&api, json!({"name": "Latency", "function_name": "latency"})).await;
    let talk = metric(&api, json!({"name": "Talk", "function_name": "silence"})).await;
    let all: Vec<u64> = [&polite, &short, &tone, &guests, &mood, &latency, &talk]
        .map(id)
        .to_vec();
    for sim in ["a", "b", "c", "d"] {
        stand_in.judge(&format!("{sim}/Tone"), answer(json!(4.5)));
        stand_in.judge(&format!("{sim}/Guests"), answer(json!(17)));
        stand_in.judge(&format!("{sim}/Mood"), answer(json!("bad")));
        // It only tells.
        stand_in.judge(&format!("{sim}/Short"), answer(json!(false)));
        stand_in.judge(&format!("{sim}/Polite"), answer(json!(true)));
        stand_in.judge(&format!("{sim}/Expected Outcome"), outcome(&[true, true]));
    }
    stand_in.judge("b/Polite", answer(json!(false)));
    stand_in.judge("c/Expected Outcome", outcome(&[true, false, true]));
    // What does not apply is skipped, and is no failure.
    stand_in.judge(
        "d/Polite",
        json!({"applies": false, "because": [], "turns": [], "value": false}),
    );
    let mut scenarios = Vec::new();
    for sim in ["a", "b", "c"] {
        scenarios.push(id(&scenario(
            &api,
            &cast,
            sim,
            json!({"metrics": all, "expected_outcome_prompt": "It is booked."}),
        )
        .await));
    }
    scenarios.push(id(
        &scenario(&api, &cast, "d", json!({"metrics": [id(&polite)]})).await
    ));
    let launched = launch(
        &api,
        json!({"agent_id": cast.0["id"], "scenarios": scenarios, "frequency": 3, "name": "Twelve"}),
    )
    .await;
    assert_eq!(list(&launched["runs"]).len(), 12);
    assert_eq!(
        (&launched["status"], &launched["success_rate"]),
        (&json!("pending"), &json!(0))
    );
    let number = id(&launched);
    let result = completed(&api, number).await;
    assert_counts(&result);
    let counts = |field: &str| result[field].as_u64().unwrap();
    assert_eq!(
        (
            counts("total_runs_count"),
            counts("success_runs_count"),
            counts("failed_runs_count")
        ),
        (12, 6, 6)
    );
    assert_eq!(
        (
            counts("total_expected_outcome_count"),
            counts("met_expected_outcome_count")
        ),
        (9, 6)
    );
    assert_eq!(result["name"], "Twelve");
    assert_seed(&result);

    // Each metric has its own kind of value, and explanations that name turns.
    let of = |name: &str, metric: &str| {
        let run = runs(&result)
            .into_iter()
            .find(|run| run["scenario_name"] == name)
            .unwrap();
        let metrics = list(&run["evaluation"]["metrics"]);
        metrics.iter().find(|one| one["name"] == metric).unwrap().clone()
    };
    for (name, which, field, value) in [
        ("a", "Polite", "score", json!(5)),
        ("b", "Polite", "score", json!(0)),
        ("b", "Polite", "type", json!("binary_workflow_adherence")),
        ("a", "Short", "type", json!("binary_qualitative")),
        ("a", "Tone", "score", json!(4.5)),
        ("a", "Guests", "score", json!(17)),
        ("a", "Mood", "enum", json!("bad")),
        ("a", "Polite", "explanation", json!(["Turn 2 shows it."])),
        ("d", "Polite", "score", Value::Null),
        (
            "d",
            "Polite",
            "extra",
            json!({"categories": [], "turns": [], "skipped": true, "trigger_failed": true}),
        ),
        (
            "d",
            "Polite",
            "explanation",
            json!(["It does not apply to this conversation."]),
        ),
        (
            "a",
            "Talk",
            "explanation",
            json!(["There is no figure: a chat has no speaking times."]),
        ),
    ] {
        assert_eq!(of(name, which)[field], value, "{name} {which} {field}");
    }
    let percentiles = of("a", "Latency")["extra"]["percentiles"].clone();
    let at = |name: &str| percentiles[name].as_f64().unwrap();
    let names = ["p25", "p50", "p75", "p90", "p95", "p99"];
    assert!(
        names.windows(2).all(|pair| at(pair[0]) <= at(pair[1])),
        "{percentiles}"
    );

    // The second version names binary metrics as they are, and the rate is per cent.
    let newer = api.get(&format!("{V2}/results/{number}/")).await;
    assert_eq!(newer["success_rate"], json!(50.0));
    let run = runs(&newer)
        .into_iter()
        .find(|run| run["scenario_name"] == "b")
        .unwrap();
    let polite = &run["evaluation"]["metrics"][0];
    assert_eq!(
        (&polite["eval_type"], &polite["passed"]),
        (&json!("binary"), &json!(false))
    );

    // The runs by themselves: filtered, in pages, several at once, and alone.
    let path = format!("{V1}/runs/?result_id={number}");
    let mut seen = BTreeSet::new();
    for (page, count) in [(1, 5), (2, 5), (3, 2)] {
        let answer = api.get(&format!("{path}&page_size=5&page={page}")).await;
        assert_eq!(
            (&answer["count"], list(&answer["results"]).len()),
            (&json!(12), count)
        );
        assert_eq!(
            (answer["previous"].is_null(), answer["next"].is_null()),
            (page == 1, page == 3)
        );
        seen.extend(ids(&answer["results"]));
    }
    assert_eq!(seen, ids(&launched["runs"]).into_iter().collect());
    assert_eq!(api.get(&format!("{path}&success=true")).await["count"], 6);
    assert_eq!(
        api.get(&format!(
            "{path}&status__in=completed,failed&scenario__id={}",
            scenarios[0]
        ))
        .await["count"],
        3
    );
    assert_eq!(api.get(&format!("{path}&status=pending")).await["count"], 0);
    let first = id(&launched["runs"][0]);
    let alone = api
        .get(&format!(
            "{V1}/runs/{first}/?ql={{status,metadata{{ended_reason}}}}"
        ))
        .await;
    assert_eq!(
        alone,
        json!({"id": first, "status": "completed", "metadata": {"ended_reason": "customer-ended-call"}})
    );
    let whole = api.get(&format!("{V1}/runs-external/{first}")).await;
    assert!(
        text(&whole["transcript"]).contains("Main Agent: Answer 1 from nowhere."),
        "{whole}"
    );
    assert_eq!(whole["transcript_object"][0]["role"], "Testing Agent");
    assert_eq!(
        (&whole["result_id"], &whole["evaluation_status"]),
        (&json!(number), &json!("success"))
    );
    assert_eq!(whole["rubric"][0]["conditions"], "score eq 100");
    let second = id(&launched["runs"][1]);
    let bulk = api
        .get(&format!("{V1}/runs/bulk/?run_ids={second},{first}"))
        .await;
    assert_eq!(ids(&bulk), [second, first]);
    local.shutdown().await;
}

/// A launch from end to end, and that refusals are in this shape.
pub(crate) async fn a_result_and_what_it_is_made_of(stand_in: &StandIn, api: &Api) {
    eprintln!("a result in the shape of Cekura");
    let cast = cast(stand_in, api).await;
    let polite =
        json!({"name": "Polite", "description": "Was it polite?", "eval_type": "binary_workflow_adherence"});
    let polite = metric(api, polite).await;
    stand_in.judge("here/Polite", answer(json!(true)));
    stand_in.judge("here/Expected Outcome", outcome(&[true]));
    let more = json!({"metrics": [id(&polite)], "expected_outcome_prompt": "It is booked."});
    let scenario = scenario(api, &cast, "here", more).await;
    let body = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]], "frequency": 2});
    let result = completed(api, id(&launch(api, body).await)).await;
    assert_counts(&result);
    assert_seed(&result);
    assert_eq!(result["success_runs_count"], 2);
    let (status, fault) = api.call(Method::PUT, &format!("{V1}/results/"), None).await;
    assert_eq!((status, fault["detail"].is_string()), (405, true), "{fault}");
}

/// Every field that a result is documented to have is there with its type.
fn assert_seed(result: &Value) {
    fn is(value: &Value, kind: &str) -> bool {
        match kind {
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "number?" => value.is_number() || value.is_null(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            "array" => value.is_array(),
            "time" => ringback_shared::clock::parse_iso(text(value)).is_some(),
            "duration" => {
                let (minutes, seconds) = text(value).split_once(':').unwrap();
                [minutes, seconds]
                    .iter()
                    .all(|part| part.len() >= 2 && part.bytes().all(|b| b.is_ascii_digit()))
            }
            other => panic!("{other}"),
        }
    }
    let check = |value: &Value, fields: &[(&str, &str)]| {
        for (field, kind) in fields {
            let found = value
                .get(field)
                .unwrap_or_else(|| panic!("{field} is missing in {value}"));
            assert!(is(found, kind), "{field} is {found}, and not {kind}");
        }
    };
    let counts = [
        "met_expected_outcome_count",
        "total_expected_outcome_count",
        "total_runs_count",
        "completed_runs_count",
        "success_runs_count",
        "failed_runs_count",
    ];
    check(result, &counts.map(|count| (count, "integer")));
    check(
        result,
        &[
            ("id", "integer"),
            ("name", "string"),
            ("agent", "integer"),
            ("agent_name", "string"),
            ("agent_inbound", "boolean"),
            ("status", "string"),
            ("success_rate", "number"),
            ("run_as_text", "boolean"),
            ("is_cronjob", "boolean"),
            ("runs", "object"),
            ("scenarios", "array"),
            ("run_type", "string"),
            ("created_at", "time"),
            ("updated_at", "time"),
        ],
    );
    let states = [
        "running",
        "completed",
        "failed",
        "pending",
        "in_progress",
        "evaluating",
        "in_queue",
        "timeout",
        "cancelled",
    ];
    assert!(states.contains(&text(&result["status"])), "{}", result["status"]);
    let rate = result["success_rate"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&rate), "{rate}");
    for scenario in list(&result["scenarios"]) {
        check(scenario, &[("id", "integer"), ("name", "string")]);
    }
    for (key, run) in result["runs"].as_object().unwrap() {
        assert_eq!(*key, id(run).to_string());
        check(
            run,
            &[
                ("id", "integer"),
                ("scenario", "integer"),
                ("outbound_number", "string"),
                ("expected_outcome", "object"),
                ("success", "boolean"),
                ("timestamp", "time"),
                ("executed_at", "time"),
                ("error_message", "string"),
                ("status", "string"),
                ("duration", "duration"),
                ("scenario_name", "string"),
                ("personality_name", "string"),
                ("metadata", "object"),
                ("inbound_number", "string"),
            ],
        );
        assert!(states.contains(&text(&run["status"])), "{}", run["status"]);
        let outcome = &run["expected_outcome"];
        if *outcome != json!({}) {
            check(
                outcome,
                &[
                    ("score", "number"),
                    ("explanation", "array"),
                    ("outcome_alignments", "array"),
                ],
            );
            for line in list(&outcome["explanation"]) {
                assert!(text(line).starts_with(['✅', '❌']), "{line}");
            }
            for part in list(&outcome["outcome_alignments"]) {
                check(
                    part,
                    &[
                        ("outcome", "string"),
                        ("prompt_part", "string"),
                        ("aligned", "boolean"),
                    ],
                );
            }
        }
        for metric in list(&run["evaluation"]["metrics"]) {
            check(
                metric,
                &[
                    ("id", "integer"),
                    ("name", "string"),
                    ("type", "string"),
                    ("score", "number?"),
                    ("explanation", "array"),
                    ("extra", "object"),
                ],
            );
            check(&metric["extra"], &[("categories", "array")]);
            let kinds = [
                "binary_workflow_adherence",
                "binary_qualitative",
                "continuous_qualitative",
                "numeric",
                "enum",
            ];
            assert!(kinds.contains(&text(&metric["type"])), "{metric}");
            assert_eq!(metric.get("enum").is_some(), metric["type"] == "enum", "{metric}");
            if let Some(percentiles) = metric["extra"].get("percentiles") {
                check(percentiles, &[("p50", "number")]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rubric_decides_and_conversations_are_judged_again_in_their_place() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let tone = metric(
        &api,
        json!({"name": "Tone", "description": "How was the tone?", "eval_type": "continuous_qualitative"}),
    )
    .await;
    let short = metric(
        &api,
        json!({"name": "Short", "description": "Was it short?", "eval_type": "binary"}),
    )
    .await;
    let project = id(&api.get("/user/v1/projects/").await["results"][0]);
    let path = format!("/user/v1/projects/{project}/");
    let rule = |metric: &Value, op: &str, value: Value| json!({"metric_id": metric["id"], "conditions": {"operator": "and", "conditions": [{"field": "score", "op": op, "value": value}]}});
    let rubric = |logic: &str| json!({"rubric_config": {"evaluation_logic": logic, "rules": [rule(&tone, "gte", json!(4)), rule(&short, "eq", json!(true))]}});
    let (status, kept) = api.call(Method::PATCH, &path, Some(&rubric("or"))).await;
    assert_eq!(
        (status, &kept["rubric_config"]),
        (200, &rubric("or")["rubric_config"])
    );
    for sim in ["a", "b"] {
        stand_in.judge(&format!("{sim}/Short"), answer(json!(false)));
        stand_in.judge(&format!("{sim}/Expected Outcome"), outcome(&[false]));
    }
    stand_in.judge("a/Tone", answer(json!(4)));
    stand_in.judge("b/Tone", answer(json!(3.9)));
    let mut scenarios = Vec::new();
    for sim in ["a", "b"] {
        let more = json!({"metrics": [id(&tone), id(&short)], "expected_outcome_prompt": "It is booked."});
        scenarios.push(id(&scenario(&api, &cast, sim, more).await));
    }
    let launched = launch(&api, json!({"agent_id": cast.0["id"], "scenarios": scenarios})).await;
    let number = id(&launched);
    let result = completed(&api, number).await;
    let success = |result: &Value| -> Vec<Value> {
        let mut runs = runs(result);
        runs.sort_by_key(|run| run["scenario_name"].to_string());
        runs.iter().map(|run| run["success"].clone()).collect()
    };
    assert_eq!(
        success(&result),
        [json!(true), json!(false)],
        "the rubric decides, and not the outcome"
    );
    assert_eq!(result["met_expected_outcome_count"], 0);
    let rules = list(&result["performance_metrics"]);
    assert_eq!(rules.len(), 2, "{rules:?}");

    // By another rubric and with another metric, the same conversations come to something else, under the same ids.
    let calls = stand_in.count_of(Role::Target);
    let (status, _) = api.call(Method::PATCH, &path, Some(&rubric("and"))).await;
    assert_eq!(status, 200);
    stand_in.judge("b/Short", answer(json!(true)));
    stand_in.judge("b/Tone", answer(json!(4.1)));
    let mood = metric(&api, json!({"name": "Mood", "description": "The mood", "eval_type": "enum", "enum_values": ["good", "bad"]})).await;
    stand_in.judge("Mood", answer(json!("good")));
    let again = api
        .expect(
            Method::POST,
            &format!("{V1}/results/{number}/evaluate_metrics"),
            Some(&json!({"metric_ids": [mood["id"]]})),
            200,
        )
        .await;
    assert_eq!((id(&again), &again["status"]), (number, &json!("running")));
    let result = completed(&api, number).await;
    assert_eq!(success(&result), [json!(false), json!(true)]);
    assert_counts(&result);
    assert_eq!(
        stand_in.count_of(Role::Target),
        calls,
        "nothing was said once more"
    );
    for run in runs(&result) {
        let names: Vec<&str> = list(&run["evaluation"]["metrics"])
            .iter()
            .map(|one| text(&one["name"]))
            .collect();
        assert_eq!(names, ["Tone", "Short", "Mood"]);
    }
    assert_eq!(
        api.get(&format!("{V1}/results/")).await["count"],
        1,
        "it is no result of its own"
    );

    // A rerun is a result of its own; of the runs that are named.
    let second = id(&launched["runs"][1]);
    let rerun = api
        .expect(
            Method::POST,
            &format!("{V1}/results/{number}/rerun/"),
            Some(&json!({"run_ids": [second]})),
            200,
        )
        .await;
    assert_ne!(id(&rerun), number);
    assert_eq!(rerun["total_runs_count"], 1);
    let rerun = completed(&api, id(&rerun)).await;
    assert_counts(&rerun);
    assert_eq!(api.get(&format!("{V1}/results/")).await["count"], 2);

    // What is deleted is gone in every shape, with its runs.
    let uuid = text(&runs(&result)[0]["metadata"]["ringback_run_id"]).to_owned();
    let (status, _) = api
        .call(Method::DELETE, &format!("{V1}/results/{number}/"), None)
        .await;
    assert_eq!(status, 204);
    for path in [
        format!("{V1}/results/{number}/"),
        format!("{V1}/runs/{second}/"),
        format!("{RUNS}/{uuid}"),
    ] {
        assert_eq!(api.call(Method::GET, &path, None).await.0, 404, "{path}");
    }
    assert_eq!(api.get(&format!("{V1}/results/")).await["count"], 1);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_shape_made_has_integer_ids() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let pat = api.post(PERSONALITY, &personality("Pat")).await;
    api.post(SCENARIO, &passing("sim")).await;
    let target = api
        .post("/assistant", &assistant(&stand_in, "You run a clinic."))
        .await;
    stand_in.judge("booked", json!(true));
    let entries = json!([inline(&passing("sim"), &personality("Pat"))]);
    let target = json!({"type": "assistant", "assistantId": target["id"]});
    let created = api.post(RUNS, &run(entries, target, 2)).await;
    let ended = ended(&api, text(&created["id"])).await;

    let agents = api.get(&format!("{V1}/aiagents/")).await;
    let agent = &agents["results"][0];
    assert!(
        agent["id"].is_u64() && agent["description"] == "You run a clinic.",
        "{agent}"
    );
    // Those that are built in come first.
    let personalities = api.get(&format!("{V1}/personalities/")).await;
    let own = list(&personalities)
        .iter()
        .find(|one| one["name"] == "Pat")
        .unwrap();
    assert_eq!(
        id(own),
        id(&api.get(&format!("{V1}/personalities/{}/", id(own))).await)
    );
    let scenarios = api.get(&format!("{V1}/scenarios/")).await;
    assert_eq!(scenarios["results"][0]["name"], passing("sim")["name"]);
    let results = api.get(&format!("{V1}/results/")).await;
    let result = &results["results"][0];
    assert_counts(result);
    assert_eq!(
        (&result["agent"], &result["total_runs_count"]),
        (&agent["id"], &json!(2))
    );
    assert_eq!(result["success_runs_count"], ended["itemCounts"]["passed"]);
    let metrics = runs(result)[0]["evaluation"]["metrics"].clone();
    assert_eq!(
        list(&metrics).len(),
        1,
        "its evaluations are shown as metrics: {metrics}"
    );

    // And the other way round: what is changed here keeps what it is there.
    let path = format!("{V1}/scenarios/{}/", id(&scenarios["results"][0]));
    let (status, changed) = api
        .call(
            Method::PATCH,
            &path,
            Some(&json!({"name": "renamed", "tags": ["x"]})),
        )
        .await;
    assert_eq!(
        (status, &changed["name"], &changed["tags"]),
        (200, &json!("renamed"), &json!(["x"]))
    );
    let there = &api.get(SCENARIO).await[0];
    assert_eq!(
        (&there["name"], &there["evaluations"]),
        (&json!("renamed"), &passing("sim")["evaluations"])
    );
    let path = format!("{V1}/aiagents/{}/", id(agent));
    let (status, _) = api
        .call(Method::PATCH, &path, Some(&json!({"agent_name": "Clinic"})))
        .await;
    assert_eq!(status, 200);
    let there = &api.get("/assistant").await[0];
    assert_eq!(
        (&there["name"], &there["model"]),
        (
            &json!("Clinic"),
            &assistant(&stand_in, "You run a clinic.")["model"]
        )
    );
    assert_eq!(text(&pat["name"]), "Pat");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn personalities_and_test_profiles_multiply_a_launch() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let other = api
        .post(
            &format!("{V1}/personalities/"),
            &json!({"name": "Kim", "prompt": "You are Kim."}),
        )
        .await;
    let mut profiles = Vec::new();
    for name in ["Ann", "Ben"] {
        let information =
            json!({"testing_agent_variables": {"name": name}, "main_agent_variables": {"known": name}});
        let body = json!({"name": name, "information": information, "agent": cast.0["id"]});
        profiles.push(api.post(&format!("{V1}/test-profiles/"), &body).await);
    }
    let more = json!({"instructions": "You are {{test_profile.name}}. <<{\"sim\":\"a\",\"turns\":1}>>"});
    let scenario = scenario(&api, &cast, "a", more).await;
    let body = json!({
        "scenarios": [scenario["id"]], "personality_ids": [cast.1["id"], other["id"]],
        "test_profile_ids": [profiles[0]["id"], profiles[1]["id"]], "frequency": 2,
    });
    let launched = launch(&api, body).await;
    assert_eq!(list(&launched["runs"]).len(), 8, "the agent is the scenario's");
    assert_eq!(launched["runs"][0]["test_profile_data"]["name"], "Ann");
    // More than a run may repeat a simulation.
    let body = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]], "frequency": 25});
    assert_eq!(list(&launch(&api, body).await["runs"]).len(), 25);
    let result = completed(&api, id(&launched)).await;
    assert_counts(&result);
    let mut seen = BTreeSet::new();
    for run in runs(&result) {
        // Nothing judged it, and that is said.
        assert_eq!(
            (&run["success"], &run["metadata"]["nothing_judged"]),
            (&json!(true), &json!(true))
        );
        let run = api.get(&format!("{V1}/runs/{}/", id(run))).await;
        let profile = text(&run["test_profile_data"]["name"]).to_owned();
        assert!(
            text(&run["scenario_instructions"]).starts_with(&format!("You are {profile}.")),
            "{run}"
        );
        seen.insert((profile, text(&run["personality_name"]).to_owned()));
    }
    assert_eq!(seen.len(), 4);
    // By tags, and by a folder.
    assert_eq!(
        list(&launch(&api, json!({"agent_id": cast.0["id"], "tags": ["a"]})).await["runs"]).len(),
        1
    );
    let path = format!("{V1}/scenarios/{}/", id(&scenario));
    let (status, _) = api
        .call(
            Method::PATCH,
            &path,
            Some(&json!({"folder_path": "Sales.Inbound"})),
        )
        .await;
    assert_eq!(status, 200);
    assert_eq!(
        list(&launch(&api, json!({"agent_id": cast.0["id"], "folder_path": "Sales"})).await["runs"]).len(),
        1
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_measured() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 0 });
    provider.latencies(&[800, 1000, 1200]);
    let (local, api) = local(&stand_in).await;
    endpoint(&api, &provider).await;
    let cast = cast(&stand_in, &api).await;
    let names = [
        "latency",
        "talk_ratio",
        "words_per_minute",
        "interruptions",
        "silence",
        "repetition_count",
        "turn_count",
    ];
    let metrics = api
        .post(
            &format!("{V1}/predefined-metrics/copy/"),
            &json!({"codes": names}),
        )
        .await;
    let scenario = scenario(&api, &cast, "a", json!({"metrics": ids(&metrics)})).await;
    let body = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]]});
    let launched = api.post(&format!("{V1}/scenarios/run_scenarios/"), &body).await;
    let result = completed(&api, id(&launched)).await;
    assert_counts(&result);
    assert_seed(&result);
    assert_eq!(
        (&result["run_as_text"], &result["run_type"]),
        (&json!(false), &json!("Voice"))
    );
    let run = api.get(&format!("{V1}/runs/{}/", id(&launched["runs"][0]))).await;
    let found = |name: &str| {
        let metrics = list(&run["evaluation"]["metrics"]);
        metrics
            .iter()
            .find(|one| one["function_name"] == name)
            .unwrap()
            .clone()
    };
    let latency = found("latency");
    assert_eq!(
        (&latency["score"], &latency["extra"]["percentiles"]["p99"]),
        (&json!(1000), &json!(1200.0))
    );
    for name in names {
        assert!(found(name)["score"].is_number(), "{}", found(name));
    }
    assert_eq!(
        found("turn_count")["score"].as_u64().unwrap() as usize,
        list(&run["transcript_object"]).len(),
        "{run}"
    );
    assert!(run["voice_recording_url"].is_string() && run["provider_call_id"].is_string());
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cron_jobs_start_results() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let scenario = scenario(&api, &cast, "a", json!({})).await;
    let body = json!({
        "name": "Nightly", "agent": cast.0["id"], "scenarios": [scenario["id"]], "crontab_expression": "0 3 * * *",
        "timezone": "Europe/Berlin", "frequency": 2, "execution_mode": "text", "notify_on": "never",
    });
    let job = api.post(CRON, &body).await;
    for (field, value) in body.as_object().unwrap() {
        assert_eq!(job[field], *value, "{field}");
    }
    assert_eq!(
        (&job["is_active"], &job["run_as_text"]),
        (&json!(true), &json!(true))
    );
    let path = format!("{CRON}{}/", id(&job));
    assert_eq!(api.get(&path).await, job);
    assert_eq!(
        list(&api.get(&format!("{CRON}?agent_id={}", id(&cast.0))).await).len(),
        1
    );
    let (status, changed) = api
        .call(
            Method::PATCH,
            &path,
            Some(&json!({"crontab_expression": "30 4 * * 1", "is_active": false})),
        )
        .await;
    assert_eq!(
        (status, &changed["crontab_expression"], &changed["is_active"]),
        (200, &json!("30 4 * * 1"), &json!(false))
    );
    assert_eq!(changed["scenarios"], job["scenarios"]);
    // Null takes away what was said.
    let (_, capped) = api
        .call(Method::PATCH, &path, Some(&json!({"concurrency_limit": 3})))
        .await;
    let null = json!({"concurrency_limit": null, "timezone": null});
    let (_, free) = api.call(Method::PATCH, &path, Some(&null)).await;
    assert_eq!(
        (&capped["concurrency_limit"], &capped["timezone"]),
        (&json!(3), &json!("Europe/Berlin"))
    );
    assert_eq!(
        (&free["concurrency_limit"], &free["timezone"]),
        (&Value::Null, &json!("UTC"))
    );
    // Run by hand in the other shape: it is the same schedule.
    let schedule = api.get("/schedule").await[0]["id"].clone();
    let started = api
        .post(&format!("/schedule/{}/run", text(&schedule)), &json!({}))
        .await;
    ended(&api, text(&started["id"])).await;
    let results = api.get(&format!("{V1}/results/")).await;
    let result = &results["results"][0];
    assert_eq!(
        (
            &result["is_cronjob"],
            &result["name"],
            &result["total_runs_count"]
        ),
        (&json!(true), &json!("Nightly"), &json!(2))
    );
    // One that names tags plays what has them when it fires.
    let tagged = json!({"name": "Tagged", "agent": cast.0["id"], "tags": ["a"], "crontab_expression": "0 3 * * *", "execution_mode": "text"});
    let tagged = api.post(CRON, &tagged).await;
    assert_eq!(
        (&tagged["tags"], &tagged["scenarios"]),
        (&json!(["a"]), &json!([]))
    );
    self::scenario(&api, &cast, "b", json!({"tags": ["a", "b"]})).await;
    let schedule = api.get("/schedule?name=Tagged").await[0]["id"].clone();
    // What another shape wrote into it holds for its runs.
    let other = json!({"iterations": 3});
    let (status, _) = api
        .call(
            Method::PATCH,
            &format!("/schedule/{}", text(&schedule)),
            Some(&other),
        )
        .await;
    assert_eq!(status, 200);
    let started = api
        .post(&format!("/schedule/{}/run", text(&schedule)), &json!({}))
        .await;
    assert_eq!(started["itemCounts"]["total"], 6, "{started}");
    for (field, value) in [
        ("crontab_expression", json!("x")),
        ("timezone", json!("Nowhere/Land")),
        ("execution_mode", json!("sip")),
        ("agent", json!(99_999)),
        ("notify_on", json!("sometimes")),
    ] {
        let mut wrong = body.clone();
        wrong[field] = value;
        let (status, fault) = refused(&api, Method::POST, CRON, wrong).await;
        assert_eq!(status, 400, "{fault}");
        assert!(fault[field][0].is_string(), "{field}: {fault}");
    }
    let (status, _) = api.call(Method::DELETE, &path, None).await;
    assert_eq!((status, api.call(Method::GET, &path, None).await.0), (204, 404));
    local.shutdown().await;
}

/// The project's path.
async fn project(api: &Api) -> String {
    let project = id(&api.get("/user/v1/projects/").await["results"][0]);
    format!("/user/v1/projects/{project}/")
}

async fn change(api: &Api, path: &str, body: Value) -> Value {
    api.expect(Method::PATCH, path, Some(&body), 200).await
}

/// What was told at `path` of these events, once so many were.
async fn told(receiver: &HookReceiver, path: &str, event: &str, count: usize) -> Vec<Told> {
    let fits = |told: &&Told| told.path == path && told.body["event_type"] == event;
    let enough = |told: &[Told]| told.iter().filter(fits).count() >= count;
    let all = receiver
        .wait_for(&format!("{count} times {event} at {path}"), enough)
        .await;
    all.iter().filter(fits).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_tell_before_a_result_begins_and_when_it_is_over() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let path = project(&api).await;
    let before = api.get(&path).await;
    assert_eq!(
        (
            &before["webhook_url"],
            &before["webhook_secret_configured"],
            &before["notify_pre_run_webhook"]
        ),
        (&json!(""), &json!(false), &json!(false))
    );
    let wanted = json!({"webhook_url": receiver.url("/hook"), "webhook_secret": "s3cr3t", "notify_pre_run_webhook": true});
    let kept = change(&api, &path, wanted).await;
    assert_eq!(
        (
            &kept["webhook_secret"],
            &kept["webhook_secret_configured"],
            &kept["notify_result_webhook_failed"]
        ),
        (&Value::Null, &json!(true), &json!(true))
    );
    let secret = hook_secret(&api).await;
    let profile =
        json!({"name": "P", "agent": cast.0["id"], "information": {"main_agent_variables": {"a": "b"}}});
    let profile = api.post(&format!("{V1}/test-profiles/"), &profile).await;
    stand_in.judge("a/polite", answer(json!(true)));
    stand_in.judge("a/Expected Outcome", outcome(&[true]));
    let polite = metric(
        &api,
        json!({"name": "polite", "description": "Is it polite?", "eval_type": "binary"}),
    )
    .await;
    let scenario = scenario(
        &api,
        &cast,
        "a",
        json!({"expected_outcome_prompt": "A table is booked.", "metrics": [polite["id"]]}),
    )
    .await;
    // The first attempt goes wrong; until the second one is taken nothing begins.
    receiver.answer("/hook", &[503, 200]);
    let body = json!({
        "agent_id": cast.0["id"], "scenarios": [scenario["id"]], "test_profile_ids": [profile["id"]], "frequency": 2,
        "concurrency_limit": 1, "name": "Before a deploy",
    });
    let launched = launch(&api, body.clone()).await;
    let first = told(&receiver, "/hook", "result.pre_trigger", 1).await;
    assert_eq!(stand_in.count(), 0, "it waits");
    let result_path = format!("{V1}/results/{}/", id(&launched));
    let waiting = api.get(&result_path).await;
    assert_eq!(
        (&waiting["status"], &waiting["total_runs_count"]),
        (&json!("pending"), &json!(2))
    );
    let attempts = told(&receiver, "/hook", "result.pre_trigger", 2).await;
    let key = format!("result_pre_trigger:{}", id(&launched));
    for attempt in &attempts {
        assert_eq!(attempt.header("x-cekura-idempotency-key"), Some(key.as_str()));
        assert_eq!(attempt.header("x-cekura-secret"), Some("s3cr3t"));
        assert!(attempt.is_signed_with(&secret));
        assert_eq!((attempt.id(), &attempt.body), (first[0].id(), &first[0].body));
    }
    let data = &attempts[0].body["data"];
    assert_eq!(
        (&data["result_id"], &data["label"], &data["agent_id"]),
        (&launched["id"], &json!("Before a deploy"), &cast.0["id"])
    );
    assert!(data["timestamp"].is_string());
    let run = &data["runs"][launched["runs"][0]["id"].to_string()];
    assert_eq!(
        run,
        &json!({
            "id": launched["runs"][0]["id"], "scenario": {"id": scenario["id"], "name": "a"},
            "test_profile": {"id": profile["id"], "name": "P", "information": {
                "main_agent_variables": {"a": "b"},
            }},
            "personality": {"id": cast.1["id"], "name": "Pat"}, "phone_number": "+15550100",
        })
    );
    assert_eq!(data["runs"].as_object().unwrap().len(), 2);
    let result = completed(&api, id(&launched)).await;
    let [over] = &told(&receiver, "/hook", "result.completed", 1).await[..] else {
        panic!("told once")
    };
    assert!(over.is_signed_with(&secret));
    assert_eq!(over.header("x-cekura-secret"), Some("s3cr3t"));
    let data = &over.body["data"];
    for field in [
        "id",
        "name",
        "agent",
        "status",
        "run_as_text",
        "is_cronjob",
        "created_at",
        "met_expected_outcome_count",
        "total_expected_outcome_count",
        "total_runs_count",
    ] {
        assert_eq!(data[field], result[field], "{field}");
    }
    assert_eq!(
        (&data["success_rate"], &data["met_expected_outcome_count"]),
        (&json!(100.0), &json!(2))
    );
    let run = &data["runs"][launched["runs"][0]["id"].to_string()];
    let read = api
        .get(&format!("{V1}/runs/{}/", launched["runs"][0]["id"]))
        .await;
    assert_eq!(
        run["scenario"],
        json!({
            "id": scenario["id"], "name": "a", "personality_name": "Pat", "expected_outcome_prompt": "A table is booked.",
        })
    );
    for field in [
        "id",
        "expected_outcome",
        "success",
        "transcript_object",
        "timestamp",
        "executed_at",
        "error_message",
        "voice_recording",
    ] {
        assert_eq!(run[field], read[field], "{field}");
    }
    assert!(text(&run["transcript_object"][0]["time"]).contains(':'), "{run}");
    let metric = &run["evaluation"]["metrics"][0];
    assert_eq!(
        (
            &metric["name"],
            &metric["eval_type"],
            &metric["passed"],
            &metric["score"]
        ),
        (&json!("polite"), &json!("binary"), &json!(true), &json!(5))
    );
    assert_eq!(metric["type"], read["evaluation"]["metrics"][0]["type"]);
    // What became of both is said with the run in the other shape.
    let run = text(&read["metadata"]["ringback_run_id"]);
    let notices = until("both to be settled", LONG, async || {
        let run = api.get(&format!("{RUNS}/{run}")).await;
        let notices = list(&run["notices"]).to_vec();
        (notices.len() == 2 && notices.iter().all(|one| one["status"] == "delivered")).then_some(notices)
    })
    .await;
    assert_eq!(notices[0]["event"], "run.held");

    // A success that nobody wants to hear of is not told; a failure is.
    change(
        &api,
        &path,
        json!({"notify_result_webhook_success": false, "notify_pre_run_webhook": false, "webhook_secret": ""}),
    )
    .await;
    let quiet = launch(&api, body.clone()).await;
    completed(&api, id(&quiet)).await;
    stand_in.judge("a/polite", answer(json!(false)));
    let failing = launch(&api, body).await;
    completed(&api, id(&failing)).await;
    let about = |told: &Told| told.body["data"]["id"].clone();
    let failed = |told: &&Told| about(told) == failing["id"];
    let all = receiver
        .wait_for("the failure", |told| told.iter().any(|told| failed(&told)))
        .await;
    let failure = all.iter().find(failed).unwrap();
    assert_eq!(failure.body["data"]["success_rate"], 0.0);
    assert_eq!(failure.header("x-cekura-secret"), None);
    assert!(!all.iter().any(|told| about(told) == quiet["id"]));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_nobody_could_be_told_of_before_is_cancelled_with_the_reason() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let mut cast = cast(&stand_in, &api).await;
    let scenario = scenario(&api, &cast, "a", json!({})).await;
    // The agent's own webhook counts before the project's.
    change(
        &api,
        &project(&api).await,
        json!({"webhook_url": receiver.url("/project")}),
    )
    .await;
    let own = json!({"webhook_url": receiver.url("/agent"), "notify_pre_run_webhook": true});
    cast.0 = change(&api, &format!("{V2}/aiagents/{}/", id(&cast.0)), own).await;
    receiver.answer("/agent", &[500, 404, 500, 403, 200]);
    let body = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]], "frequency": 3});
    let launched = launch(&api, body.clone()).await;
    let result = completed(&api, id(&launched)).await;
    assert_eq!(
        (&result["status"], &result["total_runs_count"]),
        (&json!("cancelled"), &json!(3))
    );
    for run in runs(&result) {
        assert_eq!(run["status"], "cancelled");
        let why = text(&run["error_message"]);
        assert!(why.contains("before it begins") && why.contains("403"), "{why}");
    }
    assert_eq!(told(&receiver, "/agent", "result.pre_trigger", 4).await.len(), 4);
    assert_eq!(stand_in.count(), 0);
    let over = told(&receiver, "/agent", "result.completed", 1).await;
    assert_eq!(
        (&over[0].body["data"]["id"], &over[0].body["data"]["status"]),
        (&launched["id"], &json!("cancelled"))
    );
    assert_eq!(receiver.told_at("/project").len(), 0);

    // One that waits can be stopped, and its webhook's answer changes nothing any more. A run of it cannot be stopped alone.
    receiver.answer("/agent", &[NEVER]);
    let launched = launch(&api, body.clone()).await;
    told(&receiver, "/agent", "result.pre_trigger", 5).await;
    let waiting = api.get(&format!("{V1}/results/{}/", id(&launched))).await;
    let metadata = &runs(&waiting)[0]["metadata"];
    let (run, item) = (
        text(&metadata["ringback_run_id"]),
        text(&metadata["ringback_item_id"]),
    );
    let (status, fault) = api
        .call(
            Method::PATCH,
            &format!("{RUNS}/{run}/item/{item}"),
            Some(&json!({"status": "canceled"})),
        )
        .await;
    assert_eq!(
        (status, text(&fault["message"]).contains("waits to begin")),
        (409, true),
        "{fault}"
    );
    let stopped = api
        .expect(
            Method::POST,
            &format!("{V1}/results/{}/end_calls/", id(&launched)),
            Some(&json!({})),
            200,
        )
        .await;
    assert_eq!(stopped["id"], launched["id"]);
    let result = completed(&api, id(&launched)).await;
    assert_eq!(result["status"], "cancelled");
    assert_eq!(stand_in.count(), 0);

    // Of one that was stopped between two attempts nothing is told any more.
    receiver.answer("/agent", &[503]);
    let launched = launch(&api, body).await;
    told(&receiver, "/agent", "result.pre_trigger", 6).await;
    let path = format!("{V1}/results/{}/", id(&launched));
    let waiting = api.get(&path).await;
    let run = text(&runs(&waiting)[0]["metadata"]["ringback_run_id"]);
    api.expect(Method::POST, &format!("{path}end_calls/"), Some(&json!({})), 200)
        .await;
    let notice = until("it to be settled", LONG, async || {
        let run = api.get(&format!("{RUNS}/{run}")).await;
        let notice = list(&run["notices"]).first()?.clone();
        (notice["status"] != "pending").then_some(notice)
    })
    .await;
    assert_eq!(notice["status"], "skipped", "{notice}");
    assert!(notice["attempts"].as_u64().unwrap() < 4, "{notice}");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cron_job_started_is_told_as_its() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let scenario = scenario(&api, &cast, "a", json!({})).await;
    let wanted = json!({
        "webhook_url": receiver.url("/hook"), "notify_result_webhook_success": false, "notify_pre_run_webhook": true,
    });
    change(&api, &project(&api).await, wanted).await;
    let job = |name: &str, told: Option<&str>| {
        let mut job = json!({
            "name": name, "agent": cast.0["id"], "scenarios": [scenario["id"]], "crontab_expression": "0 3 * * *",
            "execution_mode": "text",
        });
        if let Some(told) = told {
            job["notify_on"] = json!(told);
        }
        job
    };
    for (name, told) in [
        ("All", None),
        ("Failures", Some("failure")),
        ("Quiet", Some("never")),
    ] {
        let job = api.post(CRON, &job(name, told)).await;
        assert_eq!(job["notify_on"], told.unwrap_or("both"));
        let schedule = api.get(&format!("/schedule?name={name}")).await[0]["id"].clone();
        let started = api
            .post(&format!("/schedule/{}/run", text(&schedule)), &json!({}))
            .await;
        ended(&api, text(&started["id"])).await;
    }
    let over = told(&receiver, "/hook", "result.completed", 1).await;
    assert_eq!(
        (&over[0].body["data"]["name"], &over[0].body["data"]["is_cronjob"]),
        (&json!("All"), &json!(true))
    );
    let before = told(&receiver, "/hook", "result.pre_trigger", 3).await;
    let labels: Vec<&str> = before
        .iter()
        .map(|told| text(&told.body["data"]["label"]))
        .collect();
    assert_eq!(labels, ["All", "Failures", "Quiet"]);
    assert_eq!(told(&receiver, "/hook", "result.completed", 1).await.len(), 1);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_is_failed_and_what_was_stopped_is_cancelled() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let scenario = scenario(&api, &cast, "a", json!({})).await;
    let body = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]], "frequency": 2});
    // The tester's model is nobody's that is tested.
    stand_in.fail(Role::Tester, 1, Fault::Status(400));
    let result = completed(&api, id(&launch(&api, body.clone()).await)).await;
    assert_counts(&result);
    let broken: Vec<&Value> = runs(&result)
        .into_iter()
        .filter(|run| run["status"] == "failed")
        .collect();
    assert_eq!(broken.len(), 1, "{result}");
    assert_eq!(
        (&broken[0]["success"], broken[0]["error_message"] == ""),
        (&json!(false), false)
    );
    assert_eq!(result["failed_infrastructure_runs"], json!([broken[0]["id"]]));
    stand_in.fail(Role::Target, 2, Fault::Hang);
    let launched = launch(&api, body).await;
    until("both to be under way", Duration::from_secs(30), async || {
        (stand_in.in_flight() == 2).then_some(())
    })
    .await;
    let first = id(&launched["runs"][0]);
    let run = api
        .expect(
            Method::POST,
            &format!("{V1}/runs/{first}/end_call/"),
            Some(&json!({})),
            200,
        )
        .await;
    assert_eq!(run["status"], "cancelled");
    let ended = api
        .expect(
            Method::POST,
            &format!("{V1}/results/{}/end_calls/", id(&launched)),
            Some(&json!({})),
            200,
        )
        .await;
    assert_eq!(id(&ended), id(&launched));
    let result = completed(&api, id(&launched)).await;
    assert_eq!(result["status"], "cancelled");
    assert_counts(&result);
    stand_in.release();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_in_the_shape_that_clients_expect() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let cast = cast(&stand_in, &api).await;
    let scenario = scenario(&api, &cast, "a", json!({})).await;
    let metrics = format!("{V1}/metrics/");
    let launches = format!("{V1}/scenarios/run_scenarios_text/");
    let fine = json!({"agent_id": cast.0["id"], "scenarios": [scenario["id"]]});
    let with = |field: &str, value: Value| {
        let mut body = fine.clone();
        body[field] = value;
        body
    };
    for (path, body, field, words) in [
        (metrics.as_str(), json!({}), "name", "required"),
        (
            &metrics,
            json!({"name": "x", "eval_type": "stars", "description": "d"}),
            "eval_type",
            "not a valid choice",
        ),
        (
            &metrics,
            json!({"name": "x", "eval_type": "enum", "description": "d"}),
            "enum_values",
            "2 to",
        ),
        (
            &metrics,
            json!({"name": "x", "eval_type": "binary", "type": "custom_code", "description": "d"}),
            "type",
            "Python",
        ),
        (
            &metrics,
            json!({"name": "x", "function_name": "nothing"}),
            "function_name",
            "not a valid choice",
        ),
        (
            &launches,
            json!({"agent_id": cast.0["id"]}),
            "scenarios",
            "exactly one",
        ),
        (&launches, with("tags", json!(["a"])), "scenarios", "exactly one"),
        (
            &launches,
            with("scenarios", json!([99_999])),
            "scenarios",
            "does not exist",
        ),
        (
            &launches,
            with("agent_id", json!(99_999)),
            "agent_id",
            "does not exist",
        ),
        (&launches, with("agent_id", json!("x")), "agent_id", "integer"),
        (
            &launches,
            with("frequency", json!(0)),
            "frequency",
            "greater than or equal",
        ),
        (
            &launches,
            with("personality_ids", json!([cast.0["id"]])),
            "personality_ids",
            "does not exist",
        ),
        (
            &launches,
            with("websocket_url", json!("wss://x")),
            "websocket_url",
            "websocket",
        ),
        (
            &launches,
            with("mock_tool_names", json!([])),
            "mock_tool_names",
            "toolMocks",
        ),
    ] {
        let (status, fault) = refused(&api, Method::POST, path, body).await;
        assert_eq!(status, 400, "{fault}");
        assert!(text(&fault[field][0]).contains(words), "{field}: {fault}");
    }
    let project = id(&api.get("/user/v1/projects/").await["results"][0]);
    let path = format!("/user/v1/projects/{project}/");
    for (field, value, words) in [
        ("webhook_url", json!("example.com/hook"), "valid URL"),
        ("webhook_secret", json!("ü"), "ASCII"),
        ("notify_result_webhook_failed", json!("perhaps"), "boolean"),
        ("notify_call_log_webhook_failed", json!(true), "did not make"),
    ] {
        let (status, fault) = refused(&api, Method::PATCH, &path, json!({ field: value })).await;
        assert_eq!(status, 400, "{field}: {fault}");
        assert!(text(&fault[field][0]).contains(words), "{field}: {fault}");
    }
    for (suffix, words) in [
        ("_api_chat", "over REST"),
        ("_sip", "endpoint"),
        ("_with_websockets", "websocket"),
        ("", "voice provider"),
        ("_vapi_webrtc", "endpoint for vapi"),
    ] {
        let (status, fault) = refused(
            &api,
            Method::POST,
            &format!("{V1}/scenarios/run_scenarios{suffix}/"),
            fine.clone(),
        )
        .await;
        assert_eq!(status, 400, "{fault}");
        assert!(text(&fault[0]).contains(words), "{suffix}: {fault}");
    }
    for path in [
        format!("{V1}/results/99999/"),
        format!("{V1}/results/{}/", id(&scenario)),
        format!("{V1}/runs/1/"),
        format!("{V1}/scenarios/nothing/"),
        format!("{V1}/nothing/"),
        format!("{V1}/results/?page=2"),
    ] {
        let (status, fault) = api.call(Method::GET, &path, None).await;
        assert_eq!(status, 404, "{path}: {fault}");
        assert!(fault["detail"].is_string(), "{path}: {fault}");
    }
    let (status, fault) = api.call(Method::DELETE, &format!("{V1}/results/"), None).await;
    assert_eq!((status, fault["detail"].is_string()), (405, true));
    // The key is the same, under another header.
    let stranger = Api::new(&api.base, "nobody's");
    let (status, fault) = stranger.call(Method::GET, &format!("{V1}/results/"), None).await;
    assert_eq!((status, fault["detail"].is_string()), (401, true));
    let asked = api.http.get(format!("{}{V1}/results/", api.base));
    let status = asked
        .header("X-CEKURA-API-KEY", api.key.as_deref().unwrap())
        .send()
        .await
        .unwrap()
        .status();
    assert_eq!(status.as_u16(), 200);
    local.shutdown().await;
}
