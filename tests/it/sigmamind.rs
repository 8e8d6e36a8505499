//! The API in the shape of SigmaMind: agents, test cases, batch runs and test runs, its webhooks, and that all shapes tell the same.

use std::{collections::BTreeMap, time::Duration};

use aws_lambda_events::{
    apigw::ApiGatewayV2httpRequest,
    encodings::Body,
    http::{HeaderValue, Method as EventMethod},
};
use proptest::prelude::*;
use reqwest::Method;
use ringback_shared::{
    clock::{Deadline, parse_iso},
    context::Context,
    lifecycle::{Failure, Fault, Item},
    progress,
    store::RunKey,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    fixtures::{LONG, RUNS, assistant, items, list, text},
    hooks::{HookReceiver, Told, hook_secret},
    server::{Api, local, until},
    stand_in::{Fault as Trouble, Role, StandIn},
    store::stack,
};

const AGENTS: &str = "/v1/agents";
const CASES: &str = "/v1/test-cases";
const BATCHES: &str = "/v1/batch-runs";
const JOBS: &str = "/v1/test-runs";
const WEBHOOKS: &str = "/v1/webhooks";

fn outcome(met: &[bool]) -> Value {
    let part = |met: &bool| json!({"expected": "E", "happened": "It came so.", "met": met, "turns": [2]});
    json!({"parts": met.iter().map(part).collect::<Vec<_>>()})
}

async fn agent(stand_in: &StandIn, api: &Api) -> String {
    let model = assistant(stand_in, "You book tables.")["model"].clone();
    let body = json!({"name": "Booker", "model": model});
    text(&api.post(AGENTS, &body).await["agentId"]).to_owned()
}

async fn case(api: &Api, agent: &str, sim: &str, attempt: u32) -> Value {
    let body = json!({
        "agentId": agent, "label": sim, "userPrompt": format!("Book a table. <<{{\"sim\":\"{sim}\",\"turns\":1}}>>"),
        "successCriteria": "A table is booked.", "attempt": attempt,
        "mockData": [{"variableName": "customer_name", "value": "John Doe"}],
    });
    api.post(CASES, &body).await
}

async fn batch(api: &Api, agent: &str, cases: &[Value]) -> Value {
    let ids: Vec<&str> = cases.iter().map(|case| text(&case["testCaseId"])).collect();
    api.post(BATCHES, &json!({"agentId": agent, "testCases": ids}))
        .await
}

/// A batch run once it is over.
async fn over(api: &Api, agent: &str, batch: &Value) -> Value {
    let path = format!("{BATCHES}/{}?agentId={agent}", text(&batch["batchId"]));
    until("the batch run to be over", LONG, async || {
        let found = api.get(&path).await;
        ["completed", "cancelled"]
            .contains(&text(&found["status"]))
            .then_some(found)
    })
    .await
}

async fn jobs(api: &Api, agent: &str, batch: &Value) -> Vec<Value> {
    let batch = text(&batch["batchId"]);
    let page = api
        .get(&format!("{JOBS}?agentId={agent}&batchId={batch}&size=100"))
        .await;
    assert_eq!(page["hasNext"], false);
    list(&page["data"]).to_vec()
}

/// The UUID in an id, in its digits.
fn uuid(id: &Value) -> Uuid {
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (_, code) = text(id).split_once('_').unwrap();
    assert_eq!(code.len(), 22, "{id}");
    let value = |byte: u8| digits.iter().position(|digit| *digit == byte).unwrap() as u128;
    Uuid::from_u128(code.bytes().fold(0, |sum, byte| sum * 62 + value(byte)))
}

/// Every field that a test run is documented to have is there with its meaning.
fn assert_seed(job: &Value, batch: &Value, case: &Value) {
    assert_eq!(
        (&job["batchId"], &job["workspaceId"]),
        (&batch["batchId"], &batch["workspaceId"])
    );
    assert!(text(&job["workspaceId"]).starts_with("org_"));
    assert_eq!(job["agent"], batch["agent"]);
    for field in ["agentId", "name", "status"] {
        assert!(job["agent"][field].is_string(), "{field}: {job}");
    }
    assert_eq!(&job["testCase"], case);
    assert!(
        text(&job["jobId"]).starts_with("job_") && text(&job["chatId"]).starts_with("chat_"),
        "{job}"
    );
    let time = |field: &str| {
        let written = text(&job[field]);
        assert!(
            written.len() == 24 && written.ends_with('Z'),
            "{field}: {written}"
        );
        parse_iso(written).unwrap()
    };
    assert!(time("createdDate") <= time("completedDate"));
    assert!(
        job["isSuccessful"].is_boolean() && !text(&job["remarks"]).is_empty(),
        "{job}"
    );
    let conversation = list(&job["conversation"]);
    assert!(conversation.len() >= 2, "{job}");
    for said in conversation {
        assert!(["user", "assistant"].contains(&text(&said["role"])) && said["content"].is_string());
        assert_eq!(said.as_object().unwrap().len(), 2);
    }
}

/// A batch run and what it is made of, wherever the system runs.
pub(crate) async fn a_batch_run_and_what_it_is_made_of(stand_in: &StandIn, api: &Api) {
    eprintln!("a batch run in the shape of SigmaMind");
    let agent = agent(stand_in, api).await;
    stand_in.judge("there/Expected Outcome", outcome(&[true]));
    let case = case(api, &agent, "there", 2).await;
    let batch = batch(api, &agent, std::slice::from_ref(&case)).await;
    let done = over(api, &agent, &batch).await;
    assert_eq!(
        (&done["successfulAttempts"], &done["totalAttempts"]),
        (&json!(2), &json!(2))
    );
    for job in jobs(api, &agent, &batch).await {
        assert_seed(&job, &done, &case);
    }
    let (status, fault) = api.call(Method::PUT, BATCHES, None).await;
    assert_eq!((status, &fault["path"]), (405, &json!(BATCHES)), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_three_cases_and_five_attempts_is_the_same_in_every_shape() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let agent = agent(&stand_in, &api).await;
    let mut cases = Vec::new();
    for sim in ["a", "b", "c"] {
        cases.push(case(&api, &agent, sim, 5).await);
    }
    let [first, ..] = &cases[..] else { panic!("three") };
    assert_eq!(
        first,
        &json!({
            "testCaseId": first["testCaseId"], "label": "a", "workspaceId": first["workspaceId"], "llmModel": null,
            "agent": {"agentId": agent, "name": "Booker", "status": "Live"}, "attempt": 5,
            "mockData": [{"variableName": "customer_name", "value": "John Doe"}],
            "userPrompt": "Book a table. <<{\"sim\":\"a\",\"turns\":1}>>", "successCriteria": "A table is booked.",
        })
    );
    stand_in.judge("a/Expected Outcome", outcome(&[true]));
    stand_in.judge_in_turn(
        "b/Expected Outcome",
        [[true, true], [true, false]].map(|met| outcome(&met)),
    );
    stand_in.judge("c/Expected Outcome", outcome(&[false]));
    let made = batch(&api, &agent, &cases).await;
    let fields: Vec<&String> = made.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["agent", "batchId", "createdDate", "workspaceId"]);
    let done = over(&api, &agent, &made).await;
    assert_eq!(
        ["successfulAttempts", "failedAttempts", "totalAttempts"].map(|field| done[field].clone()),
        [json!(6), json!(9), json!(15)]
    );
    assert_eq!(list(&done["testCases"]), cases);
    let all = jobs(&api, &agent, &made).await;
    assert_eq!(all.len(), 15);
    for job in &all {
        let case = cases
            .iter()
            .find(|case| case["testCaseId"] == job["testCase"]["testCaseId"]);
        assert_seed(job, &done, case.unwrap());
        let alone = api
            .get(&format!(
                "{JOBS}/{}?batchId={}&agentId={agent}",
                text(&job["jobId"]),
                text(&made["batchId"])
            ))
            .await;
        assert_eq!(alone, *job);
    }
    // The same as Vapi's run items.
    let run = uuid(&made["batchId"]);
    let read = api.get(&format!("{RUNS}/{run}")).await;
    assert_eq!(
        ["total", "passed", "failed"].map(|field| read["itemCounts"][field].clone()),
        [json!(15), json!(6), json!(9)]
    );
    assert_eq!(read["iterations"], 5);
    let by_id: BTreeMap<String, Value> = items(&api, &run.to_string(), 10)
        .await
        .into_iter()
        .map(|item| (text(&item["id"]).to_owned(), item))
        .collect();
    for job in &all {
        let item = api
            .get(&format!("{RUNS}/{run}/item/{}", uuid(&job["jobId"])))
            .await;
        assert_eq!(by_id[text(&item["id"])]["status"], item["status"]);
        assert_eq!(job["isSuccessful"], item["status"] == "passed");
        let said: Vec<Value> = list(&item["metadata"]["call"]["messages"])
            .iter()
            .filter(|said| ["user", "assistant"].contains(&text(&said["role"])))
            .map(|said| json!({"role": said["role"], "content": said["content"]}))
            .collect();
        assert_eq!(list(&job["conversation"]), said);
        let variables = &item["metadata"]["scenario"]["targetOverrides"]["variableValues"];
        assert_eq!(variables, &json!({"customer_name": "John Doe"}));
    }
    // And as Cekura's result.
    let results = api.get("/test_framework/v1/results/").await;
    let result = &results["results"][0];
    assert_eq!(
        [
            "total_runs_count",
            "success_runs_count",
            "failed_runs_count",
            "agent_name"
        ]
        .map(|field| result[field].clone()),
        [json!(15), json!(6), json!(9), json!("Booker")]
    );
    for run in result["runs"].as_object().unwrap().values() {
        let id = text(&run["metadata"]["ringback_item_id"]);
        let job = all
            .iter()
            .find(|job| uuid(&job["jobId"]).to_string() == id)
            .unwrap();
        assert_eq!(run["success"], job["isSuccessful"]);
        let read = api.get(&format!("/test_framework/v1/runs/{}/", run["id"])).await;
        let spoken = list(&read["transcript_object"])
            .iter()
            .filter(|said| text(&said["role"]).ends_with("Agent"));
        let said: Vec<&Value> = spoken.map(|said| &said["content"]).collect();
        let told: Vec<&Value> = list(&job["conversation"])
            .iter()
            .map(|said| &said["content"])
            .collect();
        assert_eq!(said, told);
    }
    // What another shape made and started is seen here.
    let numbers = api.get("/test_framework/v2/aiagents/").await;
    let scenarios = api.get("/test_framework/v1/scenarios/").await;
    let launched = api
        .post(
            "/test_framework/v1/scenarios/run_scenarios_text/",
            &json!({
                "agent_id": numbers["results"][0]["id"], "scenarios": [scenarios["results"][0]["id"]], "frequency": 3,
                "personality_ids": [list(&api.get("/test_framework/v1/personalities/").await)[0]["id"]],
            }),
        )
        .await;
    assert_eq!(launched["status"], "pending");
    let page = api.get(&format!("{BATCHES}?agentId={agent}")).await;
    let batches = |page: &Value| -> Vec<Value> {
        let all = list(&page["data"]).iter();
        all.map(|batch| batch["batchId"].clone()).collect()
    };
    let unscoped = api.get(BATCHES).await;
    assert_eq!(batches(&unscoped), batches(&page), "there is no other agent");
    assert_eq!(
        page["data"][0]["testCases"][0]["attempt"], 3,
        "as often as it was played"
    );
    assert_eq!(
        (
            &page["totalCount"],
            &page["data"][0]["totalAttempts"],
            &page["data"][1]["batchId"]
        ),
        (&json!(2), &json!(3), &made["batchId"])
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_wrong_is_refused_in_its_own_shape() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let (one, other) = (agent(&stand_in, &api).await, agent(&stand_in, &api).await);
    let case = case(&api, &one, "a", 2).await;
    let made = batch(&api, &one, std::slice::from_ref(&case)).await;
    over(&api, &one, &made).await;
    let second = batch(&api, &one, std::slice::from_ref(&case)).await;
    let job = jobs(&api, &one, &made).await[0].clone();
    let (batch_id, job_id) = (text(&made["batchId"]), text(&job["jobId"]));
    let path = format!("{JOBS}/{job_id}?batchId={batch_id}&agentId={one}");
    // Ids may be written without their prefix, with a hyphen, and as the UUID that they are.
    for written in [
        job_id.replace('_', "-"),
        job_id[4..].to_owned(),
        uuid(&job["jobId"]).to_string(),
    ] {
        let path = format!(
            "{JOBS}/{written}?batchId={}&agentId={}",
            &batch_id[6..],
            &one[6..]
        );
        assert_eq!(api.get(&path).await["jobId"], job["jobId"]);
    }
    for path in [
        format!(
            "{JOBS}/{job_id}?batchId={}&agentId={one}",
            text(&second["batchId"])
        ),
        format!("{JOBS}/{job_id}?batchId={batch_id}&agentId={other}"),
        format!("{JOBS}/job_nothing?batchId={batch_id}&agentId={one}"),
        format!("{BATCHES}/{batch_id}?agentId={other}"),
        format!("{BATCHES}/batch_{}?agentId={one}", "0".repeat(22)),
        format!("{CASES}/{}?agentId={other}", text(&case["testCaseId"])),
        format!("{WEBHOOKS}/wh_x"),
        format!("{AGENTS}/agent_x"),
        "/v1/nothing".to_owned(),
    ] {
        let (status, fault) = api.call(Method::GET, &path, None).await;
        assert_eq!(status, 404, "{path}: {fault}");
        let fields: Vec<&String> = fault.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["error", "message", "path", "status", "timestamp"]);
        assert_eq!(
            (&fault["error"], &fault["status"], &fault["path"]),
            (
                &json!("Not Found"),
                &json!(404),
                &json!(path.split('?').next().unwrap())
            )
        );
        assert!(parse_iso(text(&fault["timestamp"])).is_some());
    }
    for path in [
        JOBS.to_owned(),
        format!("{JOBS}/{job_id}?batchId={batch_id}"),
        format!("{BATCHES}/{batch_id}"),
        CASES.to_owned(),
        format!("{BATCHES}?agentId={one}&size=0"),
        format!("{BATCHES}?agentId={one}&page=-1"),
    ] {
        let (status, fault) = api.call(Method::GET, &path, None).await;
        assert_eq!(
            (status, &fault["error"]),
            (400, &json!("Bad Request")),
            "{path}: {fault}"
        );
    }
    let fine = json!({"agentId": one, "userPrompt": "Book.", "successCriteria": "It is booked."});
    let with = |field: &str, value: Value| {
        let mut body = fine.clone();
        body[field] = value;
        body
    };
    for (path, body, words) in [
        (
            CASES,
            with("userPrompt", json!("")),
            "userPrompt: must not be blank",
        ),
        (CASES, with("agentId", json!(null)), "agentId: must not be blank"),
        (
            CASES,
            with("attempt", json!(0)),
            "attempt: must be a whole number",
        ),
        (
            CASES,
            with("attempt", json!("5")),
            "attempt: must be a whole number",
        ),
        (CASES, with("mockData", json!([{"value": "x"}])), "variableName"),
        (CASES, with("llmModel", json!("gpt-4o-fast-tier")), "-fast-tier"),
        (CASES, with("label", json!("x".repeat(81))), "label: size must be"),
        (BATCHES, json!({"agentId": one}), "testCases: must be a list"),
        (
            BATCHES,
            json!({"agentId": one, "testCases": []}),
            "testCases: must be a list",
        ),
        (
            WEBHOOKS,
            json!({"name": "n", "agentId": one, "url": "ftp://x", "events": ["batch_completed"]}),
            "url: must be",
        ),
        (
            WEBHOOKS,
            json!({"name": "n", "agentId": one, "url": "https://x", "events": ["never"]}),
            "is none of",
        ),
    ] {
        let (status, fault) = api.call(Method::POST, path, Some(&body)).await;
        assert_eq!(status, 400, "{fault}");
        assert!(text(&fault["message"]).contains(words), "{words}: {fault}");
    }
    // A test case of another agent, and one that is not there.
    for ids in [json!([case["testCaseId"]]), json!(["tc_nothing"])] {
        let body = json!({"agentId": other, "testCases": ids});
        let (status, fault) = api.call(Method::POST, BATCHES, Some(&body)).await;
        assert_eq!(status, 404, "{fault}");
    }
    let stranger = Api::new(&api.base, "nobody's");
    let (status, fault) = stranger.call(Method::GET, &path, None).await;
    assert_eq!(
        (status, text(&fault["message"]).contains("X-API-Key")),
        (401, true),
        "{fault}"
    );
    let asked = api.http.get(format!("{}{path}", api.base));
    let asked = asked.header("X-API-Key", api.key.as_deref().unwrap());
    assert_eq!(asked.send().await.unwrap().status().as_u16(), 200);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_cases_and_agents_are_changed_and_runs_are_stopped_and_tried_again() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let agent = agent(&stand_in, &api).await;
    let first = case(&api, &agent, "a", 2).await;
    let path = format!("{CASES}/{}", text(&first["testCaseId"]));
    let body = json!({
        "agentId": agent, "label": "A", "userPrompt": "Book. <<{\"sim\":\"a\",\"turns\":1}>>",
        "successCriteria": "It is booked.", "llmModel": "gpt-4o-mini", "attempt": 3, "mockData": [],
    });
    let changed = api.expect(Method::PUT, &path, Some(&body), 200).await;
    for (field, value) in body.as_object().unwrap() {
        if field != "agentId" {
            assert_eq!(changed[field], *value, "{field}");
        }
    }
    assert_eq!(api.get(&format!("{path}?agentId={agent}")).await, changed);
    let scenario = api
        .get(&format!(
            "/eval/simulation/scenario/{}",
            uuid(&first["testCaseId"])
        ))
        .await;
    assert_eq!(
        scenario["targetOverrides"],
        json!({"model": {"model": "gpt-4o-mini"}})
    );
    let again = json!({"name": "Clerk", "systemPrompt": "You are a clerk.", "status": "Testing"});
    let clerk = api
        .expect(Method::PUT, &format!("{AGENTS}/{agent}"), Some(&again), 200)
        .await;
    assert_eq!(
        (&clerk["name"], &clerk["status"], &clerk["systemPrompt"]),
        (&json!("Clerk"), &json!("Testing"), &json!("You are a clerk."))
    );
    assert_eq!(api.get(&format!("{AGENTS}?size=1")).await["data"][0], clerk);

    // Those that are tried differently often are so many entries.
    let second = case(&api, &agent, "b", 1).await;
    stand_in.judge("a/Expected Outcome", outcome(&[true]));
    stand_in.judge("b/Expected Outcome", outcome(&[false]));
    let made = batch(&api, &agent, &[changed.clone(), second.clone()]).await;
    let done = over(&api, &agent, &made).await;
    assert_eq!(
        ["successfulAttempts", "failedAttempts", "totalAttempts"].map(|field| done[field].clone()),
        [json!(3), json!(1), json!(4)]
    );
    let attempts: Vec<&Value> = list(&done["testCases"])
        .iter()
        .map(|case| &case["attempt"])
        .collect();
    assert_eq!(attempts, [&json!(3), &json!(1)]);
    let all = jobs(&api, &agent, &made).await;
    let numbers: Vec<&Value> = all.iter().map(|job| &job["attemptNumber"]).collect();
    assert_eq!(numbers, [&json!(1), &json!(2), &json!(3), &json!(1)]);
    let job = &all[0];
    assert_eq!(job["agent"]["name"], "Clerk");
    assert!(text(&job["remarks"]).contains("It came so."), "{job}");

    // What failed is tried again, as a batch run of its own.
    let path =
        |batch: &Value, what: &str| format!("{BATCHES}/{}/{what}?agentId={agent}", text(&batch["batchId"]));
    stand_in.judge("b/Expected Outcome", outcome(&[true]));
    let rerun = api
        .post(&path(&made, "rerun"), &json!({"attempts": "failed"}))
        .await;
    let done = over(&api, &agent, &rerun).await;
    assert_eq!(
        (&done["successfulAttempts"], &done["totalAttempts"]),
        (&json!(1), &json!(1))
    );

    // One of a batch run is stopped, and then all of it.
    stand_in.fail(Role::Target, 2, Trouble::Hang);
    let held = batch(&api, &agent, &[case(&api, &agent, "d", 2).await]).await;
    until("both to begin", LONG, async || {
        (stand_in.in_flight() == 2).then_some(())
    })
    .await;
    let open = jobs(&api, &agent, &held).await;
    for field in ["completedDate", "isSuccessful", "remarks"] {
        assert!(open[0].get(field).is_none(), "{field}: {}", open[0]);
    }
    let stopped = api
        .expect(
            Method::POST,
            &format!(
                "{JOBS}/{}/cancel?agentId={agent}&batchId={}",
                text(&open[0]["jobId"]),
                text(&held["batchId"])
            ),
            None,
            200,
        )
        .await;
    assert_eq!(
        (&stopped["status"], &stopped["isSuccessful"]),
        (&json!("cancelled"), &json!(false))
    );
    api.expect(Method::POST, &path(&held, "cancel"), None, 200).await;
    let done = over(&api, &agent, &held).await;
    assert_eq!(
        (
            &done["status"],
            &done["cancelledAttempts"],
            &done["failedAttempts"]
        ),
        (&json!("cancelled"), &json!(2), &json!(0))
    );
    stand_in.release();
    let gone = format!("{BATCHES}/{}?agentId={agent}", text(&held["batchId"]));
    assert_eq!(api.call(Method::DELETE, &gone, None).await.0, 204);
    assert_eq!(api.call(Method::GET, &gone, None).await.0, 404);
    let gone = format!("{CASES}/{}?agentId={agent}", text(&second["testCaseId"]));
    assert_eq!(api.call(Method::DELETE, &gone, None).await.0, 204);
    assert_eq!(
        api.get(&format!("{CASES}?agentId={agent}")).await["totalCount"],
        2
    );
    local.shutdown().await;
}

/// What was told at `path`, once so much was.
async fn told(receiver: &HookReceiver, path: &str, count: usize) -> Vec<Told> {
    let fits = |told: &&Told| told.path == path;
    let enough = |told: &[Told]| told.iter().filter(fits).count() >= count;
    let all = receiver.wait_for(&format!("{count} at {path}"), enough).await;
    all.iter().filter(fits).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_tell_of_conversations_and_of_the_end_of_a_batch_run() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let (agent, other) = (agent(&stand_in, &api).await, agent(&stand_in, &api).await);
    let wanted = |agent: &str, path: &str, events: Value| json!({"name": "CI", "agentId": agent, "url": receiver.url(path), "events": events});
    let all = json!([
        "conversation_started",
        "conversation_ended",
        "conversation_analyzed",
        "batch_completed"
    ]);
    let every = api.post(WEBHOOKS, &wanted(&agent, "/all", all)).await;
    let secret = text(&every["secret"]).to_owned();
    assert_eq!(secret.len(), 32);
    assert_eq!(
        (&every["agentId"], &every["active"], &every["events"][2]),
        (&json!(agent), &json!(true), &json!("conversation_analysed"))
    );
    let ends = api
        .post(WEBHOOKS, &wanted(&agent, "/ends", json!(["batch_completed"])))
        .await;
    api.post(WEBHOOKS, &wanted(&other, "/other", json!(["batch_completed"])))
        .await;
    let path = format!("{WEBHOOKS}/{}", text(&every["webhookId"]));
    let read = api.get(&path).await;
    assert!(read.get("secret").is_none(), "it is told once: {read}");
    assert_eq!(
        api.get(&format!("{WEBHOOKS}?agentId={agent}")).await["totalCount"],
        2
    );
    stand_in.judge("a/Expected Outcome", outcome(&[true]));
    let case = case(&api, &agent, "a", 2).await;
    let made = batch(&api, &agent, std::slice::from_ref(&case)).await;
    let done = over(&api, &agent, &made).await;
    let all = told(&receiver, "/all", 7).await;
    let mut events: BTreeMap<&str, usize> = BTreeMap::new();
    for told in &all {
        assert!(told.is_signed_with(&format!("whsec_{secret}")));
        assert!(!told.is_signed_with(&hook_secret(&api).await), "its own secret");
        let body = &told.body;
        assert_eq!(
            ["workspaceId", "agentId", "batchId", "webhookId"].map(|field| body[field].clone()),
            [
                made["workspaceId"].clone(),
                json!(agent),
                made["batchId"].clone(),
                every["webhookId"].clone()
            ]
        );
        assert!(parse_iso(text(&body["timestamp"])).is_some());
        *events.entry(text(&body["event"])).or_default() += 1;
        match text(&body["event"]) {
            "batch_completed" => assert_eq!(body["batchRun"], done),
            event => {
                let run = &body["testRun"];
                assert_eq!((&body["jobId"], &body["chatId"]), (&run["jobId"], &run["chatId"]));
                assert_eq!(run["testCase"], case);
                if event != "conversation_started" {
                    assert!(list(&run["conversation"]).len() >= 2, "{body}");
                }
                if event == "conversation_analysed" {
                    assert_eq!(
                        (&run["isSuccessful"], &run["status"]),
                        (&json!(true), &json!("completed"))
                    );
                }
            }
        }
    }
    assert_eq!(
        events,
        BTreeMap::from([
            ("batch_completed", 1),
            ("conversation_analysed", 2),
            ("conversation_ended", 2),
            ("conversation_started", 2)
        ])
    );
    assert_eq!(told(&receiver, "/ends", 1).await.len(), 1);
    assert!(receiver.told_at("/other").is_empty());
    // How far each is says the item in the native shape, and the run.
    let run = uuid(&made["batchId"]);
    let item = uuid(&jobs(&api, &agent, &made).await[0]["jobId"]);
    until("the item's to be settled", LONG, async || {
        let hooks = api.get(&format!("{RUNS}/{run}/item/{item}")).await["metadata"]["hooks"].clone();
        let judged = hooks["simulation.run.judged"].as_array()?.first()?;
        (judged["status"] == "delivered").then_some(())
    })
    .await;
    // One that is switched off, and one that is gone, hear nothing more.
    let mut off = wanted(&agent, "/all", json!(["batch_completed"]));
    off["active"] = json!(false);
    assert_eq!(
        api.expect(Method::PUT, &path, Some(&off), 200).await["active"],
        false
    );
    assert_eq!(
        api.get(&format!("{WEBHOOKS}?agentId={agent}&active=false")).await["data"][0]["webhookId"],
        every["webhookId"]
    );
    let gone = format!("{WEBHOOKS}/{}", text(&ends["webhookId"]));
    assert_eq!(api.call(Method::DELETE, &gone, None).await.0, 204);
    assert_eq!(api.call(Method::GET, &gone, None).await.0, 404);
    let last = api
        .post(WEBHOOKS, &wanted(&agent, "/last", json!(["batch_completed"])))
        .await;
    assert_ne!(last["secret"], every["secret"]);
    over(&api, &agent, &batch(&api, &agent, &[case]).await).await;
    assert_eq!(told(&receiver, "/last", 1).await.len(), 1);
    assert_eq!(
        (receiver.told_at("/all").len(), receiver.told_at("/ends").len()),
        (7, 1)
    );
    local.shutdown().await;
}

/// What becomes of an item in a random run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waits,
    Runs,
    IsJudged,
    Passes,
    Fails,
    BreaksOff,
    IsStopped,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop::sample::select(vec![
        Fate::Waits,
        Fate::Runs,
        Fate::IsJudged,
        Fate::Passes,
        Fate::Passes,
        Fate::Fails,
        Fate::BreaksOff,
        Fate::IsStopped,
    ])
}

async fn meet(ctx: &Context, item: Item, fate: Fate) {
    let now = ctx.clock.now_ms();
    let step = async |item: Item, change: &dyn Fn(&Item) -> Item| {
        ctx.store.transition(item, |item| Ok(change(item))).await.unwrap()
    };
    let begin = |item: &Item| item.claim("w", 60_000, now).unwrap();
    let end = |item: &Item| item.end_conversation("w", "over", now).unwrap();
    let judge = |item: &Item| item.claim_evaluation("j", 60_000, now).unwrap();
    match fate {
        Fate::Waits => {}
        Fate::IsStopped => _ = step(item, &|item| item.cancel(now).unwrap()).await,
        Fate::Runs => _ = step(item, &begin).await,
        Fate::BreaksOff => {
            let item = step(item, &begin).await;
            let failure = Failure::new("down", Some(Fault::Provider));
            step(item, &|item| item.fail("w", &failure, now).unwrap()).await;
        }
        Fate::IsJudged => _ = step(step(item, &begin).await, &end).await,
        Fate::Passes | Fate::Fails => {
            let item = step(step(step(item, &begin).await, &end).await, &judge).await;
            let passes = fate == Fate::Passes;
            let verdict = || match passes {
                true => Ok(()),
                false => Err(Failure::new("no", None)),
            };
            let decide = |item: &Item| {
                item.decide("j", verdict(), now)
                    .unwrap()
                    .measured(None, Some(passes))
            };
            step(item, &decide).await;
        }
    }
}

/// Asks the API without a server.
async fn ask(ctx: &Context, method: EventMethod, path: &str, body: Option<&Value>) -> Value {
    let mut event = ApiGatewayV2httpRequest::default();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    event.raw_path = Some(path.to_owned());
    event.raw_query_string = Some(query.to_owned());
    event.request_context.http.method = method;
    event
        .headers
        .insert("authorization", HeaderValue::from_static("Bearer key"));
    event.body = body.map(Value::to_string);
    let answer = ringback_api::handle(ctx, event).await;
    let Some(Body::Text(body)) = answer.body else {
        panic!("no text")
    };
    assert!(answer.status_code < 300, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

async fn compare(ctx: &Context, attempts: &[u32], fates: &[Fate]) {
    let model = json!({"provider": "custom-llm", "model": "m", "url": "https://agent.example.com/v1"});
    let agent = json!({"name": "A", "model": model});
    let agent = ask(ctx, EventMethod::POST, AGENTS, Some(&agent)).await["agentId"].clone();
    let mut cases = Vec::new();
    for attempt in attempts {
        let case = json!({"agentId": agent, "userPrompt": "Book.", "successCriteria": "Booked.", "attempt": attempt});
        cases.push(ask(ctx, EventMethod::POST, CASES, Some(&case)).await["testCaseId"].clone());
    }
    let body = json!({"agentId": agent, "testCases": cases});
    let made = ask(ctx, EventMethod::POST, BATCHES, Some(&body)).await;
    let run = uuid(&made["batchId"]);
    let key = RunKey::simulation(ringback_api::LOCAL_ORG, run);
    let deadline = Deadline::after(Duration::from_secs(60));
    let head = ctx.store.run(key).await.unwrap().unwrap();
    let head = progress::expand_until(ctx, head, u32::MAX, deadline)
        .await
        .unwrap();
    let items = ctx.store.items_from(run, 0, head.total).await.unwrap();
    for (item, fate) in items.into_iter().zip(fates.iter().cycle()) {
        meet(ctx, item, *fate).await;
    }
    for partition in 0..head.partitions() {
        progress::recount(ctx, key, partition).await.unwrap();
    }
    let all: Vec<Fate> = fates.iter().copied().cycle().take(head.total as usize).collect();
    let count = |of: &[Fate]| all.iter().filter(|fate| of.contains(fate)).count();
    let (passed, failed) = (count(&[Fate::Passes]), count(&[Fate::Fails, Fate::BreaksOff]));
    let (stopped, total) = (count(&[Fate::IsStopped]), all.len());

    let vapi = ask(ctx, EventMethod::GET, &format!("{RUNS}/{run}"), None).await;
    let counts = &vapi["itemCounts"];
    assert_eq!(
        ["passed", "failed", "canceled", "total"].map(|field| counts[field].as_u64().unwrap() as usize),
        [passed, failed, stopped, total]
    );
    let results = ask(ctx, EventMethod::GET, "/test_framework/v1/results/", None).await;
    let result = &results["results"][0];
    assert_eq!(
        [
            "success_runs_count",
            "failed_runs_count",
            "total_runs_count",
            "total_expected_outcome_count",
            "met_expected_outcome_count"
        ]
        .map(|field| result[field].as_u64().unwrap() as usize),
        [passed, failed, total, count(&[Fate::Passes, Fate::Fails]), passed]
    );
    let scope = format!("agentId={}&batchId={}", text(&agent), text(&made["batchId"]));
    let path = format!("{BATCHES}/{}?{scope}", text(&made["batchId"]));
    let batch = ask(ctx, EventMethod::GET, &path, None).await;
    assert_eq!(
        [
            "successfulAttempts",
            "failedAttempts",
            "cancelledAttempts",
            "totalAttempts"
        ]
        .map(|field| batch[field].as_u64().unwrap() as usize),
        [passed, failed, stopped, total]
    );
    let ended = vapi["status"] == "ended";
    assert_eq!(batch["status"] == "completed", ended, "{batch}");
    assert_eq!(
        ["completed", "failed"].contains(&text(&result["status"])),
        ended,
        "{result}"
    );

    // And one by one.
    let jobs = ask(ctx, EventMethod::GET, &format!("{JOBS}?{scope}&size=100"), None).await;
    let items = ask(
        ctx,
        EventMethod::GET,
        &format!("{RUNS}/{run}/item?limit=100"),
        None,
    )
    .await;
    let runs: Vec<&Value> = result["runs"].as_object().unwrap().values().collect();
    assert_eq!((list(&jobs["data"]).len(), runs.len()), (total, total));
    for job in list(&jobs["data"]) {
        let id = uuid(&job["jobId"]).to_string();
        let item = list(&items["results"])
            .iter()
            .find(|item| item["id"] == json!(id))
            .unwrap();
        let run = runs
            .iter()
            .find(|run| run["metadata"]["ringback_item_id"] == json!(id))
            .unwrap();
        let over = ["passed", "failed", "canceled"].contains(&text(&item["status"]));
        let success = over.then_some(item["status"] == "passed");
        assert_eq!(job.get("isSuccessful").and_then(Value::as_bool), success, "{job}");
        assert_eq!(run["success"].as_bool(), success, "{run}");
        assert_eq!(job.get("completedDate").is_some(), over);
    }
}

#[test]
fn the_shapes_agree_on_every_count_of_random_runs() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (emulator, ctx) = runtime.block_on(stack());
    runtime.block_on(ringback_api::bootstrap(&ctx, "key")).unwrap();
    let config = ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (attempts, fates) = (
        prop::collection::vec(1..=4_u32, 1..4),
        prop::collection::vec(fate(), 1..13),
    );
    proptest!(config, |(attempts in attempts, fates in fates)| {
        runtime.block_on(compare(&ctx, &attempts, &fates));
    });
    runtime.block_on(emulator.shutdown());
}
