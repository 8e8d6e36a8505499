//! What a model does while the client waits: scenarios, suggestions after a failure, structured outputs of conversations
//! that are over; and requests of these kinds that are sent again.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use ringback_shared::store::{Claim, Claimed, Created, NewRun};
use serde_json::{Value, json};

use crate::{
    api::{SCENARIO, UNKNOWN, assert_refused},
    fixtures::{
        LONG, RUNS, assert_items_valid, assert_valid, assistant, by_voice, ended, endpoint, evaluation,
        inline, inline_target, item_path, items, list, personality, run, scenario, simple_run, text,
    },
    provider::{Auto, ProviderStandIn},
    server::{Api, local, local_with, until},
    stand_in::{Fault, Role, StandIn},
    store::{NOW, ORG, new_run, stack},
    voice::stranger,
};

pub(crate) const GENERATE: &str = "/eval/simulation/scenario/generate";
const OUTPUT: &str = "/structured-output";
const RUN_OUTPUT: &str = "/structured-output/run";

/// What the writer answers: one scenario of each category.
pub(crate) fn three_scenarios() -> Value {
    let of = |category: &str| {
        let name = format!("A caller and a {category}");
        json!({"name": name, "instructions": "Book a room.", "category": category, "reasoning": "It matters."})
    };
    json!([of("happy_path"), of("edge_case"), of("failure_mode")])
}

/// Stores an assistant and gives the request for scenarios to test it with.
pub(crate) async fn wish(api: &Api, stand_in: &StandIn) -> Value {
    let mut assistant = assistant(stand_in, "You run a clinic by the lake.");
    assistant["model"]["headers"] = json!({"x-key": "of the target"});
    let stored = api.post("/assistant", &assistant).await;
    json!({"assistantId": stored["id"]})
}

async fn post(api: &Api, path: &str, body: &Value) -> (u16, Value) {
    api.call(Method::POST, path, Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_are_written_for_an_assistant_and_can_be_stored() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let wish = wish(&api, &stand_in).await;
    let mut scenarios = three_scenarios();
    scenarios[1]["name"] = json!("é".repeat(200));
    stand_in.judge("scenarios", scenarios);
    stand_in.judge("coverageNotes", json!("All but payments."));

    let written = api.post(GENERATE, &wish).await;
    assert_valid("GenerateScenariosResponse", &written);
    assert_eq!(written["coverageNotes"], "All but payments.");
    assert_eq!(list(&written["scenarios"]).len(), 3);
    assert_eq!(text(&written["scenarios"][1]["name"]).chars().count(), 80);
    assert_eq!(api.get(SCENARIO).await, json!([]), "nothing is kept");
    for scenario in list(&written["scenarios"]) {
        let body = json!({
            "name": scenario["name"], "instructions": scenario["instructions"],
            "evaluations": [evaluation("booked", "boolean", "=", json!(true))],
        });
        api.post(SCENARIO, &body).await;
    }

    let [asked] = &stand_in.written_from()[..] else {
        panic!("the writer was not asked once");
    };
    let material: Value = text(&asked[1]["content"]).parse().unwrap();
    assert_eq!(
        material["agents"][0]["systemPrompt"],
        "You run a clinic by the lake."
    );
    let all = json!(asked).to_string();
    assert!(
        !all.contains("of the target") && !all.contains("http"),
        "what the writer need not know: {all}"
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_scenarios_that_cannot_be_met_says_why() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let wish = wish(&api, &stand_in).await;
    for (body, status, fault) in [
        (json!({}), 400, "assistantId or squadId must be given"),
        (
            json!({"assistantId": wish["assistantId"], "squadId": UNKNOWN}),
            400,
            "cannot be combined",
        ),
        (json!({"assistantId": 7}), 400, "assistantId"),
        (json!([]), 400, ""),
        (json!({"assistantId": UNKNOWN}), 404, UNKNOWN),
        (json!({"assistantId": "nothing"}), 404, "nothing"),
        (json!({"squadId": UNKNOWN}), 404, UNKNOWN),
    ] {
        assert_refused(&post(&api, GENERATE, &body).await, status, fault);
    }
    assert_eq!(stand_in.count(), 0, "no model was asked");

    // A reply that makes no sense is asked for once more, with the reason.
    stand_in.judge("scenarios", three_scenarios());
    stand_in.fail(Role::Writer, 1, Fault::Nonsense);
    assert_eq!(list(&api.post(GENERATE, &wish).await["scenarios"]).len(), 3);
    let again = stand_in.written_from();
    assert_eq!((again.len(), again[1].len()), (2, 4));
    assert!(text(&again[1][3]["content"]).contains("cannot be used"));

    // And then it is an error that no client takes for one that passes by itself.
    let mut wrong = three_scenarios();
    wrong[2]["category"] = json!("sad_path");
    let mut long = three_scenarios();
    long[0]["instructions"] = json!("x".repeat(10_001));
    for (scenarios, fault) in [
        (wrong, "scenarios.2.category"),
        (long, "scenarios.0.instructions"),
        (json!([]), "scenarios is empty"),
        (json!("none"), "scenarios must be a list"),
    ] {
        stand_in.forget();
        stand_in.judge("scenarios", scenarios);
        assert_refused(&post(&api, GENERATE, &wish).await, 424, fault);
        assert_eq!(stand_in.count_of(Role::Writer), 2, "{fault}");
    }
    stand_in.forget();
    stand_in.fail(Role::Writer, 1, Fault::Status(401));
    assert_refused(&post(&api, GENERATE, &wish).await, 424, "401");
    assert_eq!(stand_in.count(), 1);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_slow_or_not_there_is_no_fault_of_the_servers() {
    let stand_in = StandIn::start().await;
    let (slow, api) = local_with(&stand_in, |options| {
        options
            .settings
            .insert("MODEL_TIMEOUT_SECONDS".to_owned(), "1".to_owned());
    })
    .await;
    let body = wish(&api, &stand_in).await;
    stand_in.fail(Role::Writer, usize::MAX, Fault::Hang);
    assert_refused(&post(&api, GENERATE, &body).await, 424, "no reply within 1 s");
    stand_in.release();
    slow.shutdown().await;

    let (nobody, api) = local_with(&stand_in, |options| options.model.base_url = None).await;
    let body = wish(&api, &stand_in).await;
    assert_refused(&post(&api, GENERATE, &body).await, 424, "OPENAI_BASE_URL");
    nobody.shutdown().await;
}

/// A run of two simulations, of which `missed` fails and `booked` passes: the paths of their items.
async fn one_missed(api: &Api, stand_in: &StandIn) -> (String, String) {
    stand_in.judge("booked/booked", json!(true));
    stand_in.judge("missed/booked", json!(false));
    let wanted = || {
        json!([
            evaluation("booked", "boolean", "=", json!(true)),
            evaluation("mood", "string", "!=", json!("angry")),
        ])
    };
    let entries = json!([
        inline(&scenario("missed", 2, wanted()), &personality("Pat")),
        inline(&scenario("booked", 2, wanted()), &personality("Pat")),
    ]);
    let target = inline_target(&assistant(stand_in, "You run a clinic by the lake."));
    let created = api.post(RUNS, &run(entries, target, 1)).await;
    ended(api, text(&created["id"])).await;
    let paths = (item_path(&created, 0), item_path(&created, 1));
    assert_eq!(api.get(&paths.0).await["status"], "failed");
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn suggestions_after_a_failure_are_kept_with_the_item() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let (missed, booked) = one_missed(&api, &stand_in).await;
    let generate = format!("{missed}/generate");
    // As the clients send it: no body, and no content type.
    let ask = async |query: &str| {
        let (status, answer) = api.call(Method::POST, &format!("{generate}{query}"), None).await;
        assert_eq!(status, 201, "{answer}");
        assert_valid("SimulationRunItemImprovements", &answer);
        answer
    };
    let shown = async || api.get(&missed).await["improvementSuggestions"].clone();
    let one = |issue: &str| json!([{"issue": issue, "suggestion": "Say so."}]);
    stand_in.judge("analysis", json!("first"));
    stand_in.judge("systemPromptSuggestions", one("It forgot the time."));
    stand_in.judge("suggestedSystemPrompt", Value::Null);
    stand_in.forget();

    let unkept = ask("?persist=false").await;
    assert_eq!(unkept["analysis"], "first");
    assert_eq!(shown().await, Value::Null);
    let first = ask("").await;
    assert_eq!(first, unkept);
    assert_eq!(stand_in.count_of(Role::Writer), 2);
    assert_eq!(shown().await, first);
    assert_eq!(first["systemPromptSuggestions"], one("It forgot the time."));
    assert_eq!(first.get("suggestedSystemPrompt"), None);

    // What it was written from.
    let asked = stand_in.written_from();
    let material: Value = text(&asked[0][1]["content"]).parse().unwrap();
    assert_eq!(
        material["agents"][0]["systemPrompt"],
        "You run a clinic by the lake."
    );
    assert!(text(&material["conversation"]).contains("Answer 1 from nowhere."));
    assert!(text(&material["scenario"]["instructions"]).contains("Book something."));
    let [not_met] = list(&material["notMet"]) else {
        panic!("one evaluation failed: {material:#}");
    };
    assert_eq!(
        (&not_met["name"], &not_met["expected"], &not_met["found"]),
        (&json!("booked"), &json!("= true"), &json!(false))
    );

    // Kept, until somebody wants others.
    stand_in.judge("analysis", json!("second"));
    for query in ["", "?force=false", "?force=false&persist=false", "?persist=true"] {
        assert_eq!(ask(query).await, first, "{query}");
    }
    assert_eq!(stand_in.count_of(Role::Writer), 2);
    assert_eq!(ask("?force=true&persist=false").await["analysis"], "second");
    assert_eq!(shown().await, first);
    let second = ask("?force=true").await;
    assert_eq!(second["analysis"], "second");
    assert_eq!((shown().await, ask("").await), (second.clone(), second.clone()));
    assert_eq!(stand_in.count_of(Role::Writer), 4);
    let run = missed.split("/item/").next().unwrap();
    let all = items(&api, run.rsplit('/').next().unwrap(), 10).await;
    assert_items_valid(&all);
    let suggested: Vec<_> = all
        .iter()
        .filter_map(|item| item.get("improvementSuggestions"))
        .collect();
    assert_eq!(suggested, [&second]);

    // Those who ask at the same time are told the same.
    let both = join_all((0..4).map(|_| ask(""))).await;
    assert!(both.iter().all(|answer| *answer == second));

    for query in [
        "?force=yes",
        "?force=2",
        "?persist=truly",
        "?persist=no&force=true",
    ] {
        let answer = api.call(Method::POST, &format!("{generate}{query}"), None).await;
        assert_refused(&answer, 400, "must be true or false");
    }
    let passed = api.call(Method::POST, &format!("{booked}/generate"), None).await;
    assert_refused(&passed, 400, "this one is passed");
    for path in [
        format!("{run}/item/{UNKNOWN}/generate"),
        format!("{RUNS}/{UNKNOWN}/item/{UNKNOWN}/generate"),
    ] {
        assert_refused(&api.call(Method::POST, &path, None).await, 404, "not found");
    }
    let stranger = stranger(&local, &api).await;
    assert_refused(
        &stranger.call(Method::POST, &generate, None).await,
        404,
        "not found",
    );
    // A reply without a list that belongs there.
    stand_in.judge("toolSuggestions", json!("none"));
    let answer = api
        .call(Method::POST, &format!("{generate}?force=true"), None)
        .await;
    assert_refused(&answer, 424, "toolSuggestions must be a list");
    assert_eq!(shown().await, second, "what was kept stays");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_nothing_to_suggest_or_extract_before_a_conversation_is_over() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.fail(Role::Tester, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &simple_run(&stand_in, "waits", 1, 1)).await;
    let path = item_path(&created, 0);
    until("the item to start", LONG, async || {
        (api.get(&path).await["status"] == "running").then_some(())
    })
    .await;
    let answer = api.call(Method::POST, &format!("{path}/generate"), None).await;
    assert_refused(&answer, 400, "this one is running");
    let body = json!({"structuredOutput": {"name": "x", "schema": {"type": "string"}},
        "callIds": [created["simulationRunItemIds"][0]]});
    assert_refused(&post(&api, RUN_OUTPUT, &body).await, 400, "is over");
    stand_in.release();
    ended(&api, text(&created["id"])).await;
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_structured_output_is_run_on_calls_and_chats_that_are_over() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 50 });
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let voice = api
        .post(RUNS, &by_voice(simple_run(&stand_in, "called", 2, 1), &endpoint))
        .await;
    let chat = api.post(RUNS, &simple_run(&stand_in, "wrote", 2, 1)).await;
    for run in [&voice, &chat] {
        ended(&api, text(&run["id"])).await;
    }
    let (called, wrote) = (item_path(&voice, 0), item_path(&chat, 0));
    let call = api.get(&called).await["callId"].clone();
    let (by_voice, by_chat) = (
        &voice["simulationRunItemIds"][0],
        &chat["simulationRunItemIds"][0],
    );
    let kept = async |path: &str| api.get(path).await["metadata"]["call"]["structuredOutputs"].clone();
    let run_on = async |body: Value| {
        let (status, answer) = post(&api, RUN_OUTPUT, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };

    // A preview, by the call's id and by the item's, with a stored output.
    stand_in.judge("floor", json!(3));
    let floor = json!({"name": "floor", "schema": {"type": "integer"},
        "compliancePlan": {"forceStoreOnHipaaEnabled": true}});
    let stored = api.post(OUTPUT, &floor).await;
    let id = text(&stored["id"]);
    let found = json!({"name": "floor", "result": 3, "compliancePlan": {"forceStoreOnHipaaEnabled": true}});
    stand_in.forget();
    for name in [&call, by_voice, by_chat] {
        let body = json!({"structuredOutputId": id, "callIds": [name], "previewEnabled": true});
        assert_eq!(run_on(body).await, json!({ id: found }));
    }
    assert_eq!(stand_in.count_of(Role::Judge), 3);
    assert_eq!(
        (kept(&called).await, kept(&wrote).await),
        (Value::Null, Value::Null)
    );

    // Kept, each call once however often it is named, and replaced when it is run again.
    let all = json!({"structuredOutputId": id, "callIds": [call, by_voice, by_chat]});
    let answer = run_on(all.clone()).await;
    assert!(text(&answer["message"]).contains("from 2 of 2 calls"), "{answer}");
    assert_eq!(stand_in.count_of(Role::Judge), 5);
    for path in [&called, &wrote] {
        assert_eq!(kept(path).await, json!({ id: found }));
    }
    stand_in.judge("floor", json!(4));
    run_on(all.clone()).await;
    assert_eq!(kept(&wrote).await[id]["result"], 4);
    for run in [&voice, &chat] {
        let all = items(&api, text(&run["id"]), 10).await;
        assert_items_valid(&all);
        assert_eq!(all[0]["metadata"]["call"]["structuredOutputs"][id]["result"], 4);
    }

    // One in place, without a model: it has the same id each time.
    let answered =
        json!({"name": "answered", "type": "regex", "regex": "Answer (\\d+)", "schema": {"type": "integer"}});
    let preview = json!({"structuredOutput": answered, "callIds": [by_chat], "previewEnabled": true});
    let first = run_on(preview.clone()).await;
    assert_eq!(first, run_on(preview).await);
    let (inline, found) = first.as_object().unwrap().iter().next().unwrap();
    assert_eq!(*found, json!({"name": "answered", "result": 1}));
    run_on(json!({"structuredOutput": answered, "callIds": [by_chat]})).await;
    let both = kept(&wrote).await;
    assert_eq!((&both[inline], &both[id]["result"]), (found, &json!(4)));

    // Its conditions hold here as well.
    let mut gated = floor.clone();
    gated["conditions"] = json!([{"type": "minMessages", "count": 1}, {"type": "minMessages", "count": 99}]);
    let answer =
        run_on(json!({"structuredOutput": gated, "callIds": [by_chat], "previewEnabled": true})).await;
    let skipped = answer["skipped"].as_object().unwrap().values().next().unwrap();
    assert_eq!(
        *skipped,
        json!({"name": "floor", "unmetCondition": gated["conditions"][1]})
    );
    let answer = run_on(json!({"structuredOutput": gated, "callIds": [by_chat]})).await;
    assert!(text(&answer["message"]).contains("from 0 of 1 calls"), "{answer}");
    assert!(text(&answer["message"]).contains(text(by_chat)), "{answer}");

    refused_outputs(&local, &api, &stand_in, &all).await;
    local.shutdown().await;
}

/// What is wrong with a request to run a structured output. `all` is one that is right.
async fn refused_outputs(local: &ringback_local::serve::Local, api: &Api, stand_in: &StandIn, all: &Value) {
    let with = |field: &str, value: Value| {
        let mut body = all.clone();
        body[field] = value;
        body
    };
    let audio = json!({"name": "tone", "schema": {"type": "string"}, "target": "messages-with-audio"});
    let chat = &all["callIds"][2];
    for (body, status, fault) in [
        (with("callIds", json!([])), 400, "callIds"),
        (with("previewEnabled", json!(true)), 400, "exactly 1"),
        (with("callIds", json!([chat, UNKNOWN])), 404, UNKNOWN),
        (with("callIds", json!(["nothing"])), 404, "nothing"),
        (with("structuredOutputId", json!(UNKNOWN)), 404, UNKNOWN),
        (with("structuredOutput", audio.clone()), 400, "cannot be combined"),
        (
            json!({"structuredOutput": audio, "callIds": [chat]}),
            400,
            "a chat has none",
        ),
        (
            json!({"structuredOutput": {"name": "x", "type": "regex", "regex": "(", "schema": {"type": "string"}},
                "callIds": [chat]}),
            400,
            "unclosed group",
        ),
        (
            json!({"structuredOutput": {"name": "x", "schema": {"type": "string"}, "model": {"provider": "custom-llm"}},
                "callIds": [chat], "previewEnabled": true}),
            400,
            "no url",
        ),
    ] {
        stand_in.forget();
        assert_refused(&post(api, RUN_OUTPUT, &body).await, status, fault);
        assert_eq!(stand_in.count(), 0, "{fault}: no model was asked");
    }
    let stranger = stranger(local, api).await;
    let one = json!({"name": "x", "type": "regex", "regex": "x", "schema": {"type": "boolean"}});
    for call in list(&all["callIds"]) {
        let body = json!({"structuredOutput": one, "callIds": [call]});
        assert_refused(&post(&stranger, RUN_OUTPUT, &body).await, 404, "not found");
    }

    // A value that is none: asked for twice for each call, and what failed is named.
    stand_in.judge("floor", json!("perhaps"));
    let (status, answer) = post(api, RUN_OUTPUT, all).await;
    assert_refused(&(status, answer.clone()), 424, "expected integer, got string");
    assert!(text(&answer["message"]).contains(text(chat)), "{answer}");
    assert_eq!(stand_in.count_of(Role::Judge), 4);
    stand_in.judge("floor", json!(5));
}

/// Posts with an idempotency key; gives status and the very bytes of the answer.
async fn with_key(api: &Api, path: &str, key: &str, body: &Value) -> (u16, String) {
    let request = api
        .request(Method::POST, path)
        .header("Idempotency-Key", key)
        .body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[track_caller]
fn assert_key_refused(answer: &(u16, String), status: u16, message: &str) {
    assert_refused(&(answer.0, answer.1.parse().unwrap()), status, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_is_answered_by_what_was_written() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let wish = wish(&api, &stand_in).await;
    stand_in.judge("scenarios", three_scenarios());

    // While the first one is at work, and after it.
    stand_in.fail(Role::Writer, 1, Fault::Hang);
    let (first, ()) = tokio::join!(with_key(&api, GENERATE, "key-1", &wish), async {
        until("the writer to be asked", LONG, async || {
            (stand_in.count_of(Role::Writer) == 1).then_some(())
        })
        .await;
        let second = with_key(&api, GENERATE, "key-1", &wish).await;
        assert_key_refused(&second, 409, "still being worked on");
        let other = with_key(&api, GENERATE, "key-1", &json!({})).await;
        assert_key_refused(&other, 409, "another request");
        stand_in.release();
    });
    assert_eq!(first.0, 201, "{}", first.1);
    let again = join_all((0..4).map(|_| with_key(&api, GENERATE, "key-1", &wish))).await;
    assert!(again.iter().all(|answer| *answer == first), "{again:#?}");
    assert_eq!(stand_in.count_of(Role::Writer), 1);

    // Many at once do the work once.
    stand_in.forget();
    let answers = join_all((0..8).map(|_| with_key(&api, GENERATE, "key-2", &wish))).await;
    let made: Vec<_> = answers.iter().filter(|answer| answer.0 == 201).collect();
    assert!(!made.is_empty() && made.iter().all(|answer| **answer == *made[0]));
    assert!(
        answers
            .iter()
            .all(|answer| answer.0 == 201 || answer.1.contains("still being worked on")),
        "{answers:#?}"
    );
    assert_eq!(stand_in.count_of(Role::Writer), 1);

    // After an error the key is free.
    stand_in.fail(Role::Writer, 1, Fault::Status(401));
    assert_eq!(with_key(&api, GENERATE, "key-3", &wish).await.0, 424);
    assert_eq!(with_key(&api, GENERATE, "key-3", &json!({})).await.0, 400);
    assert_eq!(with_key(&api, GENERATE, "key-3", &wish).await.0, 201);

    // One keyspace for all endpoints and all of a request.
    let new_run = simple_run(&stand_in, "keyed", 1, 1);
    let created = with_key(&api, RUNS, "key-4", &new_run).await;
    assert_eq!(created.0, 201, "{}", created.1);
    assert_key_refused(
        &with_key(&api, GENERATE, "key-4", &wish).await,
        409,
        "another request",
    );
    assert_key_refused(
        &with_key(&api, RUNS, "key-1", &new_run).await,
        409,
        "another request",
    );
    assert_eq!(with_key(&api, RUNS, "key-4", &new_run).await, created);
    let item: Value = created.1.parse().unwrap();
    ended(&api, text(&item["id"])).await;
    let output = json!({"structuredOutput": {"name": "answered", "type": "regex", "regex": "Answer", "schema":
        {"type": "boolean"}}, "callIds": [item["simulationRunItemIds"][0]]});
    let kept = with_key(&api, RUN_OUTPUT, "key-5", &output).await;
    assert_eq!(kept.0, 200, "{}", kept.1);
    assert_eq!(with_key(&api, RUN_OUTPUT, "key-5", &output).await, kept);
    let with_query = format!("{RUN_OUTPUT}?x=1");
    assert_key_refused(
        &with_key(&api, &with_query, "key-5", &output).await,
        409,
        "another request",
    );

    for path in [GENERATE, RUNS, RUN_OUTPUT] {
        let refused = with_key(&api, path, &"k".repeat(256), &wish).await;
        assert_key_refused(&refused, 400, "255 characters");
    }
    assert_eq!(with_key(&api, GENERATE, &"k".repeat(255), &wish).await.0, 201);
    let stranger = stranger(&local, &api).await;
    assert_eq!(
        with_key(&stranger, GENERATE, "key-1", &wish).await.0,
        404,
        "another organization's key is another key"
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suggestions_that_are_forced_are_written_once_for_each_key() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let (missed, _) = one_missed(&api, &stand_in).await;
    let forced = format!("{missed}/generate?force=true");
    let ask = async |key: &str, path: &str| {
        let request = api.request(Method::POST, path).header("Idempotency-Key", key);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    stand_in.judge("analysis", json!("first"));
    let first = ask("key", &forced).await;
    assert_eq!(first.0, 201, "{}", first.1);
    stand_in.judge("analysis", json!("second"));
    assert_eq!(ask("key", &forced).await, first);
    assert_eq!(stand_in.count_of(Role::Writer), 1);
    assert_key_refused(
        &ask("key", &format!("{missed}/generate")).await,
        409,
        "another request",
    );
    assert!(ask("another", &forced).await.1.contains("second"));
    local.shutdown().await;
}

fn claim(claimed: Claimed) -> Claim {
    match claimed {
        Claimed::New(claim) => claim,
        other => panic!("the key was not free: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_again_after_an_error_a_crash_or_a_day() {
    let (emulator, ctx) = stack().await;
    const LEASE: i64 = 35_000;
    let try_at = async |request: &str, now: i64| {
        ctx.store
            .claim_key(ORG, "key", request, LEASE, now)
            .await
            .unwrap()
    };
    let dead = claim(try_at("request", NOW).await);
    assert!(matches!(try_at("request", NOW + 1).await, Claimed::AtWork));
    assert!(matches!(try_at("other", NOW + 1).await, Claimed::OtherRequest));
    let later = NOW + LEASE + 2000;
    let second = claim(try_at("request", later).await);
    // Who was believed dead and is not cannot write over it.
    assert!(!ctx.store.keep_answer(&dead, 201, "{}", later).await.unwrap());
    ctx.store.release_key(&dead, later).await.unwrap();
    assert!(matches!(try_at("request", later).await, Claimed::AtWork));
    ctx.store.release_key(&second, later).await.unwrap();
    let third = claim(try_at("other", later).await);

    // An answer that does not fit into a row.
    let long = json!({"text": "ä😀\"".repeat(200_000)}).to_string();
    assert!(ctx.store.keep_answer(&third, 201, &long, later).await.unwrap());
    match try_at("other", later + 3_600_000).await {
        Claimed::Answered { status, body } => assert!(status == 201 && body == long),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        try_at("request", later + 1).await,
        Claimed::OtherRequest
    ));
    // Runs have the same keys.
    let run = |request: &str| NewRun {
        idempotency: Some(("key".to_owned(), request.to_owned())),
        ..new_run(1, 1)
    };
    let created = ctx.store.create_run(&run("a run"), later + 1).await.unwrap();
    assert_eq!(created, Created::OtherRequest);
    let day = later + 24 * 3_600_000 + 2000;
    let created = ctx.store.create_run(&run("a run"), day).await.unwrap();
    assert!(matches!(created, Created::New(_)));
    assert!(matches!(try_at("other", day).await, Claimed::OtherRequest));

    // One winner.
    let claims = join_all((0..16).map(|_| ctx.store.claim_key(ORG, "one", "request", LEASE, NOW))).await;
    let won = claims
        .into_iter()
        .filter(|claimed| matches!(claimed, Ok(Claimed::New(_))))
        .count();
    assert_eq!(won, 1);
    tokio::time::timeout(Duration::from_secs(60), emulator.shutdown())
        .await
        .unwrap();
}
