//! The HTTP API: who may ask, what is refused and how, and requests that are sent twice.

use aws_lambda_events::{
    apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse},
    encodings::Body,
};
use futures_util::future::join_all;
use reqwest::{
    Method,
    header::{AUTHORIZATION, HeaderValue},
};
use serde_json::{Value, json};

use crate::{
    fixtures::{
        RUNS, assert_counted, assert_valid, assistant, counts, ended, evaluation, ids, inline, inline_target,
        items, list, personality, regex, run, scenario, simple_run, text,
    },
    server::{Api, Server, local},
    stand_in::StandIn,
};

pub(crate) const PERSONALITY: &str = "/eval/simulation/personality";
pub(crate) const SCENARIO: &str = "/eval/simulation/scenario";
pub(crate) const SIMULATION: &str = "/eval/simulation";
pub(crate) const UNKNOWN: &str = "0190a000-0000-7000-8000-000000000001";

/// The shape of every refusal.
#[track_caller]
pub(crate) fn assert_refused(answer: &(u16, Value), status: u16, message: &str) {
    let (answered, body) = answer;
    assert_eq!(
        (*answered, &body["statusCode"]),
        (status, &json!(status)),
        "{body}"
    );
    assert!(
        body["error"].is_string() && body["message"].to_string().contains(message),
        "{message}: {body}"
    );
}

pub(crate) fn passing(sim: &str) -> Value {
    scenario(
        sim,
        1,
        json!([regex("answered", "Answer 1", "boolean", "=", json!(true))]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_sees_nothing_and_unknown_ids_are_not_found() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let nobody = Api {
        key: None,
        ..api.clone()
    };
    let stranger = Api {
        key: Some("rb_other".to_owned()),
        ..api.clone()
    };
    let made = api.post(RUNS, &simple_run(&stand_in, "secret", 1, 1)).await;
    let run = format!("{RUNS}/{}", text(&made["id"]));
    let item = format!("{run}/item/{}", text(&made["simulationRunItemIds"][0]));
    for who in [
        &nobody,
        &stranger,
        &Api {
            key: Some(String::new()),
            ..api.clone()
        },
    ] {
        for path in [
            PERSONALITY,
            SCENARIO,
            SIMULATION,
            RUNS,
            &run,
            &item,
            "/no/such/path",
        ] {
            assert_refused(&who.call(Method::GET, path, None).await, 401, "key");
        }
        assert_refused(&who.call(Method::PATCH, &run, None).await, 401, "key");
    }
    let basic = nobody
        .request(Method::GET, RUNS)
        .basic_auth("rb_test_key", Some(""))
        .send()
        .await
        .unwrap();
    assert_eq!(basic.status(), 401);
    let lower = nobody
        .request(Method::GET, RUNS)
        .header("AUTHORIZATION", "bearer rb_test_key")
        .send()
        .await
        .unwrap();
    assert_eq!(lower.status(), 200, "the scheme's case does not matter");

    let other = api.post(RUNS, &simple_run(&stand_in, "other", 1, 1)).await;
    let foreign = format!("{run}/item/{}", text(&other["simulationRunItemIds"][0]));
    for id in [UNKNOWN, "1", "%20", "nothing"] {
        for path in [
            PERSONALITY,
            SCENARIO,
            SIMULATION,
            RUNS,
            "/assistant",
            "/squad",
            "/structured-output",
        ] {
            assert_refused(
                &api.call(Method::GET, &format!("{path}/{id}"), None).await,
                404,
                "not found",
            );
        }
        assert_refused(
            &api.call(Method::DELETE, &format!("{SCENARIO}/{id}"), None).await,
            404,
            "not found",
        );
        assert_refused(
            &api.call(Method::PATCH, &format!("{RUNS}/{id}"), None).await,
            404,
            "not found",
        );
        assert_refused(
            &api.call(Method::GET, &format!("{RUNS}/{id}/item"), None).await,
            404,
            "not found",
        );
        assert_refused(
            &api.call(Method::PATCH, &format!("{run}/item/{id}"), None).await,
            404,
            "not found",
        );
    }
    // An item of another run is none of this one.
    assert_refused(&api.call(Method::GET, &foreign, None).await, 404, "not found");
    assert_refused(&api.call(Method::PATCH, &foreign, None).await, 404, "not found");
    assert_refused(
        &api.call(Method::GET, "/no/such/path", None).await,
        404,
        "Cannot GET /no/such/path",
    );
    assert_refused(
        &api.call(Method::PUT, PERSONALITY, Some(&json!({}))).await,
        405,
        "Cannot PUT",
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_a_structured_output_changes_only_where_that_is_asked_for() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let made = api
        .post(
            "/structured-output",
            &json!({"name": "outcome", "schema": {"type": "string"}}),
        )
        .await;
    let path = format!("/structured-output/{}", text(&made["id"]));
    let other = json!({"schema": {"type": "boolean"}});
    for query in ["", "?schemaOverride=false"] {
        let refused = api
            .call(Method::PATCH, &format!("{path}{query}"), Some(&other))
            .await;
        assert_refused(&refused, 400, "schemaOverride=true");
        let same =
            json!({"description": "How it ended", "schema": {"type": "string", "enum": ["won", "lost"]}});
        let (status, changed) = api
            .call(Method::PATCH, &format!("{path}{query}"), Some(&same))
            .await;
        assert_eq!((status, &changed["schema"]), (200, &same["schema"]));
    }
    let (status, changed) = api
        .call(
            Method::PATCH,
            &format!("{path}?schemaOverride=true"),
            Some(&other),
        )
        .await;
    assert_eq!((status, &changed["schema"]), (200, &other["schema"]));
    assert_eq!(api.get(&path).await, changed);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_right_is_refused_with_every_fault_named() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let output = json!({"name": "x", "schema": {"type": "boolean"}});
    let with = |evaluation: Value| scenario("bad", 1, json!([evaluation]));
    let long = "x".repeat(81);
    let refused = [
        (PERSONALITY, json!({"name": "no assistant"}), "assistant"),
        (
            PERSONALITY,
            json!({"name": long, "assistant": {}}),
            "name must be shorter",
        ),
        (
            PERSONALITY,
            json!({"name": "x", "assistant": {}, "path": "a b"}),
            "path",
        ),
        (PERSONALITY, json!({"name": 7, "assistant": {}}), "name"),
        (PERSONALITY, json!([]), ""),
        (PERSONALITY, json!("text"), ""),
        (SCENARIO, json!({"instructions": "x", "evaluations": []}), "name"),
        (
            SCENARIO,
            json!({"name": "x", "instructions": "x".repeat(10_001), "evaluations": []}),
            "instructions must be shorter",
        ),
        (
            SCENARIO,
            with(json!({"comparator": "=", "value": true})),
            "exactly one",
        ),
        (
            SCENARIO,
            with(
                json!({"structuredOutput": output, "structuredOutputId": UNKNOWN, "comparator": "=", "value": true}),
            ),
            "exactly one",
        ),
        (
            SCENARIO,
            json!({"name": "x", "instructions": "x", "evaluations": [], "hooks": [
                {"on": "call.ended", "do": vec![json!({"type": "webhook"}); 51]},
            ]}),
            "hooks must not have more than 50 actions",
        ),
        (
            SCENARIO,
            json!({"name": "x", "instructions": "x", "evaluations": [], "hooks": [{"on": "call.paused", "do": []}]}),
            "hooks",
        ),
        (
            SCENARIO,
            with(json!({"structuredOutput": output, "comparator": ">", "value": true})),
            "comparator must be = or !=",
        ),
        (
            SCENARIO,
            with(json!({"structuredOutput": output, "comparator": "~", "value": true})),
            "comparator",
        ),
        (
            SCENARIO,
            with(json!({"structuredOutput": output, "comparator": "=", "value": "yes"})),
            "value must be a boolean",
        ),
        (
            SCENARIO,
            with(json!({"structuredOutput": output, "comparator": "=", "value": {}})),
            "value",
        ),
        (
            SCENARIO,
            with(evaluation(&"n".repeat(41), "string", "=", json!("x"))),
            "evaluations.0.structuredOutput.name",
        ),
        (
            SCENARIO,
            with(evaluation("n", "object", "=", json!("x"))),
            "schema",
        ),
        (
            SIMULATION,
            json!({"scenarioId": "7", "personalityId": UNKNOWN}),
            "scenarioId",
        ),
        (
            RUNS,
            json!({"target": {"type": "assistant", "assistantId": UNKNOWN}}),
            "simulations",
        ),
    ];
    for (path, body, fault) in refused {
        let answer = api.call(Method::POST, path, Some(&body)).await;
        assert_refused(&answer, 400, fault);
        assert!(answer.1["message"].is_array(), "a list of faults: {}", answer.1);
    }
    // Two faults are named both.
    let two = scenario("bad", 1, json!([{"comparator": ">", "value": "x"}]));
    let (_, body) = api.call(Method::POST, SCENARIO, Some(&two)).await;
    assert_eq!(list(&body["message"]).len(), 2, "{body}");

    let good = simple_run(&stand_in, "good", 1, 2);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    for (body, status, fault) in [
        (changed(&|b| b["simulations"] = json!([])), 400, "simulations"),
        (
            changed(&|b| b["simulations"][0]["scenarioId"] = json!(UNKNOWN)),
            400,
            "scenario",
        ),
        (
            changed(&|b| b["simulations"][0]["scenario"] = Value::Null),
            400,
            "scenario",
        ),
        (
            changed(&|b| b["simulations"][0]["type"] = json!("other")),
            400,
            "simulations",
        ),
        (
            changed(&|b| b["simulations"][0]["scenario"]["evaluations"] = json!([])),
            400,
            "evaluation",
        ),
        (
            changed(&|b| b["simulations"][0] = json!({"type": "simulation", "simulationId": UNKNOWN})),
            404,
            "not found",
        ),
        (
            changed(&|b| b["target"] = json!({"type": "assistant", "assistantId": UNKNOWN})),
            404,
            "not found",
        ),
        (
            changed(&|b| b["target"] = json!({"type": "assistant"})),
            400,
            "assistant",
        ),
        (changed(&|b| b["target"] = Value::Null), 400, "target"),
        (changed(&|b| b["iterations"] = json!(0)), 400, "iterations"),
        (
            changed(&|b| b["iterations"] = json!(11)),
            400,
            "iterations must be between 1 and 10",
        ),
        (changed(&|b| b["iterations"] = json!(2.5)), 400, "iterations"),
        (changed(&|b| b["iterations"] = json!("2")), 400, "iterations"),
        (
            changed(&|b| b["transport"]["provider"] = json!("pigeon")),
            400,
            "transport",
        ),
    ] {
        assert_refused(&api.call(Method::POST, RUNS, Some(&body)).await, status, fault);
    }
    assert_eq!(list(&api.get(RUNS).await).len(), 0, "nothing was begun");

    for (body, fault) in [
        ("", "body"),
        ("{", "JSON"),
        ("{\"name\": \"x\"", "JSON"),
        ("null", ""),
        ("\u{0}", "JSON"),
    ] {
        let answer = api
            .request(Method::POST, PERSONALITY)
            .body(body)
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        assert_refused(&(status, answer.json().await.unwrap()), 400, fault);
    }
    for query in [
        "limit=-1",
        "limit=1001",
        "limit=x",
        "page=0",
        "sortOrder=UP",
        "createdAtGt=now",
        "cursor=x",
        "sortBy=mood",
    ] {
        assert_refused(
            &api.call(Method::GET, &format!("{RUNS}?{query}"), None).await,
            400,
            "",
        );
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_real_clients_send_is_accepted() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    // Whole numbers as floats, an explicit null, fields that nobody knows, no content type.
    let mut body = personality("Float");
    body["assistant"]["maxDurationSeconds"] = json!(60.0);
    body["assistant"]["silenceTimeoutSeconds"] = json!(30.0);
    body["tint"] = json!({"deep": [1.5]});
    body["id"] = json!(UNKNOWN);
    let sent = api
        .request(Method::POST, PERSONALITY)
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), 201);
    let made: Value = sent.json().await.unwrap();
    assert_valid("Personality", &made);
    assert_ne!(made["id"], UNKNOWN, "ids are ours");
    assert_eq!(made["tint"], json!({"deep": [1.5]}), "what is unknown is kept");
    let path = format!("{PERSONALITY}/{}", text(&made["id"]));
    assert_eq!(api.get(&path).await, made);

    // A change replaces what it names, null clears, the rest stays.
    let folder = json!({"path": "a/b", "name": "Renamed"});
    let (status, changed) = api.call(Method::PATCH, &path, Some(&folder)).await;
    assert_eq!(
        (status, &changed["path"], &changed["name"]),
        (200, &json!("a/b"), &json!("Renamed"))
    );
    assert_eq!(
        (&changed["assistant"], &changed["createdAt"]),
        (&made["assistant"], &made["createdAt"])
    );
    let (status, cleared) = api.call(Method::PATCH, &path, Some(&json!({"path": null}))).await;
    assert_eq!((status, &cleared["path"]), (200, &Value::Null));
    assert_refused(
        &api.call(Method::PATCH, &path, Some(&json!({"name": "x".repeat(81)})))
            .await,
        400,
        "name",
    );

    let mut body = simple_run(&stand_in, "lenient", 1, 2);
    body["iterations"] = json!(2.0);
    let mut created = api.post(RUNS, &body).await;
    assert_eq!(
        (
            &created["iterations"],
            list(&created["simulationRunItemIds"]).len()
        ),
        (&json!(2), 2)
    );
    // A run may be canceled without a body, or with an empty object.
    let run = format!("{RUNS}/{}", text(&created["id"]));
    let (status, _) = api.call(Method::PATCH, &run, Some(&json!({}))).await;
    assert!(matches!(status, 200 | 400));
    created = ended(&api, text(&created["id"])).await;
    assert_counted(&created, 2);

    // A definition in use stays; one that is not can go, once.
    let scenario = api.post(SCENARIO, &passing("used")).await;
    let simulation = json!({"scenarioId": scenario["id"], "personalityId": made["id"]});
    let simulation = api.post(SIMULATION, &simulation).await;
    for (kind, id, code) in [
        (SCENARIO, &scenario["id"], "scenario_in_use"),
        (PERSONALITY, &made["id"], "personality_in_use"),
    ] {
        let (status, body) = api
            .call(Method::DELETE, &format!("{kind}/{}", text(id)), Some(&json!({})))
            .await;
        assert_eq!((status, &body["error"]), (409, &json!(code)), "{body}");
    }
    assert_eq!(
        api.delete(&format!("{SIMULATION}/{}", text(&simulation["id"])))
            .await,
        simulation
    );
    let gone = format!("{SCENARIO}/{}", text(&scenario["id"]));
    assert_eq!(api.delete(&gone).await, scenario);
    assert_refused(&api.call(Method::DELETE, &gone, None).await, 404, "not found");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_kept_whole_or_refused() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let prompt = |bytes: usize| format!("<<{{\"place\":\"afar\"}}>>{}", "é".repeat(bytes / 2));
    // More than a row of the table can hold.
    let target = assistant(&stand_in, &prompt(1_200_000));
    let created = api
        .post(
            RUNS,
            &run(
                json!([inline(&passing("large"), &personality("Pat"))]),
                inline_target(&target),
                1,
            ),
        )
        .await;
    assert_eq!(
        created["target"]["assistant"]["model"]["messages"],
        target["model"]["messages"]
    );
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0]);
    assert_eq!(done["target"], created["target"]);
    let item = &items(&api, text(&created["id"]), 1).await[0];
    assert_eq!(
        item["metadata"]["assistant"]["model"]["messages"],
        target["model"]["messages"]
    );
    assert!(
        item["metadata"]["call"]["transcript"]
            .as_str()
            .unwrap()
            .contains("Answer 1 from afar.")
    );

    let definition = json!({"name": "Large", "assistant": assistant(&stand_in, &prompt(500_000))});
    assert_refused(
        &api.call(Method::POST, PERSONALITY, Some(&definition)).await,
        413,
        "",
    );
    let body = json!({"name": "Large", "assistant": assistant(&stand_in, &prompt(7_000_000))});
    assert_refused(
        &api.call(Method::POST, PERSONALITY, Some(&body)).await,
        413,
        "bytes",
    );
    let left = api.get(PERSONALITY).await;
    assert!(
        list(&left).iter().all(|left| left["orgId"].is_null()),
        "only built-in ones"
    );
    local.shutdown().await;
}

/// Posts a run with a key; gives status and the very bytes of the answer.
pub(crate) async fn post_with_key(api: &Api, key: &str, body: &Value) -> (u16, String) {
    let request = api
        .request(Method::POST, RUNS)
        .header("Idempotency-Key", key)
        .body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_makes_one_run() {
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    let api = server.api.clone();
    let body = simple_run(&stand_in, "once", 1, 3);
    let answers = join_all((0..8).map(|_| post_with_key(&api, "key-1", &body))).await;
    let (status, first) = &answers[0];
    assert_eq!(*status, 201, "{first}");
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:#?}");
    assert_eq!(list(&api.get(RUNS).await).len(), 1);
    let created: Value = first.parse().unwrap();
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [3, 3, 0, 0, 0, 0]);
    let calls = stand_in.count();
    assert_eq!(
        &post_with_key(&api, "key-1", &body).await,
        &answers[0],
        "the same when the run has ended"
    );

    let mut other = body.clone();
    other["iterations"] = json!(2);
    let (status, refusal) = post_with_key(&api, "key-1", &other).await;
    assert_refused(&(status, refusal.parse().unwrap()), 409, "Idempotency-Key");
    // Another key, and none, make runs of their own.
    let (status, second) = post_with_key(&api, "key-2", &body).await;
    assert_eq!(status, 201);
    let second: Value = second.parse().unwrap();
    let third = api.post(RUNS, &body).await;
    assert_eq!(ids(&[created.clone(), second.clone(), third.clone()]).len(), 3);
    for run in [&second, &third] {
        ended(&api, text(&run["id"])).await;
    }
    assert_eq!(stand_in.count(), calls * 3);

    // Over a crash as well. The link is the only thing that has the address in it.
    server.kill_9();
    server.restart().await;
    let (status, again) = post_with_key(&server.api, "key-1", &body).await;
    let again: Value = again.replace(&server.api.base, &api.base).parse().unwrap();
    assert_eq!((status, again), (201, created));
    assert_eq!(list(&server.api.get(RUNS).await).len(), 3);
    assert_eq!(stand_in.count(), calls * 3);
}

/// The ids of the secrets in an answer, of which `shown` show their text.
#[track_caller]
fn secrets(answer: &Value, shown: usize) -> Vec<String> {
    let secrets = answer["secrets"].as_array().unwrap();
    let texts = secrets.iter().filter_map(|secret| secret["secret"].as_str());
    assert_eq!(
        texts.filter(|text| text.starts_with("whsec_")).count(),
        shown,
        "{answer}"
    );
    secrets
        .iter()
        .map(|secret| text(&secret["id"]).to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_added_and_deleted_but_never_the_last() {
    let (local, api) = local(&StandIn::start().await).await;
    let provider = json!({ "url": "https://calls.example.com/v1", "apiKey": "the-key" });
    let endpoint = api.post("/endpoint", &provider).await;
    secrets(&endpoint, 1);
    let endpoint = format!("/endpoint/{}", text(&endpoint["id"]));
    let shown = api.get(&endpoint).await;
    secrets(&shown, 0);
    assert_eq!(shown["hasApiKey"], true);
    assert!(!shown.to_string().contains("the-key"));

    // Receivers need the secrets of outgoing hooks, so all of them are shown.
    let first = secrets(&api.get("/hook/secret").await, 1);
    assert_eq!(secrets(&api.get("/hook/secret").await, 1), first, "made once");
    let of_endpoint = format!("{endpoint}/secret");
    let (hooks, of_endpoint) = ("/hook/secret", of_endpoint.as_str());
    for (path, read, all) in [(hooks, hooks, true), (of_endpoint, endpoint.as_str(), false)] {
        let shows = |count: usize, new: usize| if all { count } else { new };
        for count in 2..=5 {
            let added = api.post(path, &json!({})).await;
            assert_eq!(secrets(&added, shows(count, 1)).len(), count);
        }
        let many = api.call(Method::POST, path, None).await;
        assert_refused(&many, 400, "at most 5 secrets");
        let ids = secrets(&api.get(read).await, shows(5, 0));
        let (last, others) = ids.split_last().unwrap();
        for (n, id) in others.iter().enumerate() {
            let left = api.delete(&format!("{path}/{id}")).await;
            assert_eq!(secrets(&left, shows(4 - n, 0)), ids[n + 1..]);
        }
        let gone = api
            .call(Method::DELETE, &format!("{path}/{}", others[0]), None)
            .await;
        assert_refused(&gone, 404, "not found");
        let only = api.call(Method::DELETE, &format!("{path}/{last}"), None).await;
        assert_refused(&only, 400, "the only secret");
    }

    // Of those who change the same, none undoes what another did.
    let adding = (0..3).map(|_| api.call(Method::POST, "/hook/secret", None));
    let added = join_all(adding)
        .await
        .iter()
        .filter(|(status, _)| *status == 201)
        .count();
    assert!(added > 0);
    secrets(&api.get("/hook/secret").await, 1 + added);

    assert_eq!(api.delete(&endpoint).await["url"], provider["url"]);
    assert_refused(&api.call(Method::GET, &endpoint, None).await, 404, "not found");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_personality_keeps_its_credentials_until_they_are_named() {
    let stand_in = StandIn::start().await;
    let (_local, api) = local(&stand_in).await;
    let credentials = json!([{"provider": "custom-llm", "apiKey": "of the caller"}]);
    let mut wanted = personality("careful");
    wanted["assistant"]["credentials"] = credentials.clone();
    let made = api.post(PERSONALITY, &wanted).await;
    let path = format!("{PERSONALITY}/{}", text(&made["id"]));
    let change = async |body: Value| {
        let (status, changed) = api.call(Method::PATCH, &path, Some(&body)).await;
        assert_eq!(status, 200, "{changed}");
        changed["assistant"].clone()
    };
    let changed = change(json!({"assistant": {"firstMessage": "Hello."}})).await;
    assert_eq!(
        (
            &changed["credentials"],
            &changed["firstMessage"],
            &changed["model"]
        ),
        (&credentials, &json!("Hello."), &Value::Null),
        "the assistant is replaced as a whole, but for its credentials"
    );
    let cleared = change(json!({"assistant": {"firstMessage": "Hello.", "credentials": []}})).await;
    assert_eq!(cleared["credentials"], json!([]));

    // A secret stays with its URL, wherever in the assistant that is.
    let server = |host: &str| json!({"url": format!("https://{host}.example.com/hooks")});
    let assistant = |own: &Value, tool: &Value| {
        let tool = json!({"type": "function", "function": {"name": "book"}, "server": tool});
        json!({"assistant": {"server": own, "serverUrl": "https://old.example.com", "model": {"tools": [tool]}}})
    };
    let with_secret = |host: &str, secret: &str| {
        let mut server = server(host);
        server["secret"] = json!(secret);
        server
    };
    let mut body = assistant(&with_secret("a", "one"), &with_secret("b", "two"));
    body["assistant"]["serverUrlSecret"] = json!("three");
    change(body).await;
    let changed = change(assistant(&server("a"), &server("c"))).await;
    assert_eq!(changed["server"], with_secret("a", "one"));
    assert_eq!(changed["model"]["tools"][0]["server"], server("c"));
    assert_eq!(changed["serverUrlSecret"], "three");
    let changed = change(assistant(&with_secret("a", "new"), &server("c"))).await;
    assert_eq!(changed["server"], with_secret("a", "new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_is_used_or_deleted_and_never_both() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut ended = [0, 0];
    for n in 0..24 {
        let made = api
            .post(SCENARIO, &scenario(&format!("s{n}"), 1, json!([])))
            .await;
        let path = format!("{SCENARIO}/{}", text(&made["id"]));
        let body = json!({"scenarioId": made["id"], "personalityId": "a0000000-0000-4000-8000-000000000001"});
        let used = async { api.call(Method::POST, SIMULATION, Some(&body)).await };
        let deleted = async { api.call(Method::DELETE, &path, None).await };
        let (used, deleted) = tokio::join!(used, deleted);
        match (used.0, deleted.0) {
            (201, 409) => {
                assert_eq!(deleted.1["error"], "scenario_in_use", "{deleted:?}");
                ended[0] += 1;
            }
            (404, 200) => ended[1] += 1,
            other => panic!("{other:?}: {used:?} {deleted:?}"),
        }
    }
    assert_eq!(ended[0] + ended[1], 24);
    local.shutdown().await;
}

/// On AWS the API is two functions, and routes lead to them by the path. A path that is written otherwise than described may be led
/// to the wrong one.
#[tokio::test(flavor = "multi_thread")]
async fn each_function_answers_its_part_and_says_how_paths_of_the_other_are_written() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let ctx = local.context();
    let request = |path: &str| {
        let mut event = ApiGatewayV2httpRequest::default();
        event.raw_path = Some(path.to_owned());
        event.request_context.http.method = Method::GET;
        let key = format!("Bearer {}", api.key.as_deref().unwrap());
        event
            .headers
            .insert(AUTHORIZATION, HeaderValue::from_str(&key).unwrap());
        event
    };
    let read = |answer: ApiGatewayV2httpResponse| {
        let Some(Body::Text(body)) = answer.body else {
            panic!("no text: {:?}", answer.body);
        };
        (
            u16::try_from(answer.status_code).unwrap(),
            serde_json::from_str::<Value>(&body).unwrap(),
        )
    };
    for path in ["/endpoint", "/endpoint/", "/hook/secret", "/openapi.json"] {
        let answer = read(ringback_api::handle_with_secrets(ctx, request(path)).await);
        assert_eq!(answer.0, 200, "{path}: {:#}", answer.1);
        let answer = read(ringback_api::handle_without_secrets(ctx, request(path)).await);
        let described = path.trim_end_matches('/');
        assert_refused(&answer, 404, &format!("write the path as {described}"));
    }
    for path in [SCENARIO, "/health", RUNS] {
        let answer = read(ringback_api::handle_without_secrets(ctx, request(path)).await);
        assert_eq!(answer.0, 200, "{path}: {:#}", answer.1);
        let answer = read(ringback_api::handle_with_secrets(ctx, request(path)).await);
        assert_refused(&answer, 404, &format!("write the path as {path}"));
    }
}
