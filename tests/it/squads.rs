//! Squads: kept and checked as assistants are, run by chat with members that hand over to each other, and ordered whole by voice.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{SCENARIO, UNKNOWN, assert_refused, passing},
    evals::Script,
    fixtures::{
        RUNS, assert_items_valid, assert_valid, assistant, by_voice, counts, ended, endpoint, inline,
        inline_target, item_path, items, list, personality, run, text,
    },
    provider::{Auto, ProviderStandIn},
    server::{Api, local},
    stand_in::{Role, StandIn},
};

const SQUAD: &str = "/squad";

/// An assistant behind the stand-in with this name, whose prompt carries `directive`.
fn member(stand_in: &StandIn, name: &str, directive: &Value) -> Value {
    let mut assistant = assistant(stand_in, &format!("You are {name}. <<{directive}>>"));
    assistant["name"] = json!(name);
    assistant
}

/// The desk, which hands over to Billing at once, and Billing in `place`.
fn desk_and_billing(stand_in: &StandIn, place: &str) -> (Value, Value) {
    let tool = json!({"tool": "handoff_to_Billing", "place": "the desk"});
    (
        member(stand_in, "Desk", &tool),
        member(stand_in, "Billing", &json!({ "place": place })),
    )
}

fn to_billing() -> Value {
    json!([{"type": "assistant", "assistantName": "Billing", "message": "", "description": "whoever asks for a bill"}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_squads_is_bare_unless_a_page_is_asked_for_and_picks_by_ids() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut made = Vec::new();
    for name in ["One", "Two", "Three"] {
        let members = json!([{ "assistant": member(&stand_in, name, &json!({})) }]);
        let squad = api
            .post(SQUAD, &json!({ "name": name, "members": members }))
            .await;
        made.push(text(&squad["id"]).to_owned());
    }
    let listed = async |query: String| {
        let found = api.get(&format!("{SQUAD}?{query}")).await;
        let ids = list(&found).iter().map(|squad| text(&squad["id"]).to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(listed("limit=2".to_owned()).await, [&*made[2], &made[1]]);
    let (first, last) = (&made[0], &made[2]);
    for any in [
        format!("idAny={first}&idAny={last}"),
        format!("idAny={first},{last}"),
    ] {
        assert_eq!(listed(any).await, [&**last, first]);
    }
    let page = api.get(&format!("{SQUAD}?page=2&limit=2")).await;
    assert_eq!(text(&page["results"][0]["id"]), first);
    local.shutdown().await;
}

/// Plays `target` once by chat; gives the run at its end and its item.
async fn play(api: &Api, scenario: &Value, target: Value) -> (Value, Value) {
    let entries = json!([inline(scenario, &personality("Pat"))]);
    let made = api.post(RUNS, &run(entries, target, 1)).await;
    assert_valid("CreateSimulationRunResponse", &made);
    let done = ended(api, text(&made["id"])).await;
    assert_valid("SimulationRun", &done);
    let mut all = items(api, text(&made["id"]), 10).await;
    assert_items_valid(&all);
    assert_eq!(all.len(), 1);
    (done, all.remove(0))
}

/// An item's messages: role, text and the assistant's name.
fn told(item: &Value) -> Vec<(&str, &str, Option<&str>)> {
    let messages = list(&item["metadata"]["call"]["messages"]);
    let message = |message: &'_ Value| message["assistantName"].as_str().is_some();
    assert!(messages.iter().any(message), "nobody has a name: {item:#}");
    messages
        .iter()
        .map(|message| {
            (
                text(&message["role"]),
                message["content"].as_str().unwrap_or_default(),
                message["assistantName"].as_str(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn squads_are_kept_changed_listed_and_deleted() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let stored = api.post("/assistant", &assistant(&stand_in, "x")).await;
    let body = json!({
        "name": "Shop", "id": UNKNOWN, "tint": {"deep": [1.5]},
        "members": [
            {"assistantId": stored["id"], "assistantDestinations": to_billing()},
            {"assistant": {"name": "Billing"}, "assistantOverrides": {"firstMessage": "Hi"}},
        ],
        "membersOverrides": {"variableValues": {"city": "Bern"}},
    });
    let squad = api.post(SQUAD, &body).await;
    assert_ne!(squad["id"], UNKNOWN, "ids are ours");
    for field in ["name", "members", "membersOverrides", "tint"] {
        assert_eq!(squad[field], body[field]);
    }
    assert_eq!(squad["orgId"], stored["orgId"]);
    let path = format!("{SQUAD}/{}", text(&squad["id"]));
    assert_eq!(api.get(&path).await, squad);
    for n in 0..3 {
        let plain = json!({"name": format!("Plain {n}"), "members": [{"assistant": {}}]});
        api.post(SQUAD, &plain).await;
    }
    assert_eq!(list(&api.get(SQUAD).await).len(), 4);
    for (page, found) in [(1, 3), (2, 1)] {
        let page = api.get(&format!("{SQUAD}?page={page}&limit=3")).await;
        assert_eq!(list(&page["results"]).len(), found);
    }

    // Its members are replaced; an assistant can go although a squad names it, and the squad can still be renamed.
    api.delete(&format!("/assistant/{}", text(&stored["id"]))).await;
    let (status, renamed) = api
        .call(Method::PATCH, &path, Some(&json!({"name": "Other"})))
        .await;
    assert_eq!(
        (status, &renamed["name"], &renamed["members"]),
        (200, &json!("Other"), &body["members"])
    );
    let gone = json!({"members": body["members"]});
    let missing = format!("Assistant {} not found", text(&stored["id"]));
    assert_refused(&api.call(Method::PATCH, &path, Some(&gone)).await, 404, &missing);
    let one = json!({"members": [{"assistant": {"name": "Solo"}}], "membersOverrides": null});
    let (status, changed) = api.call(Method::PATCH, &path, Some(&one)).await;
    assert_eq!((status, &changed["members"]), (200, &one["members"]));
    assert_eq!(changed.get("membersOverrides"), None);

    for (field, value, status, fault) in [
        ("name", json!(7), 400, "name must be a string"),
        ("name", json!("x".repeat(41)), 400, "name must be shorter"),
        ("members", json!([]), 400, "members should not be empty"),
        ("members", json!("x"), 400, "members must be an array"),
        ("members", json!([{}]), 400, "members.0.assistantId or assistant"),
        (
            "members",
            json!([{"assistantId": UNKNOWN, "assistant": {}}]),
            400,
            "cannot be combined",
        ),
        (
            "members",
            json!([{"assistant": {}}, {"assistantId": "7"}]),
            400,
            "members.1.assistantId must be a UUID",
        ),
        ("members", json!([{"assistantId": UNKNOWN}]), 404, UNKNOWN),
        (
            "members",
            json!([{"assistant": {}, "assistantDestinations": [{"type": "assistant"}]}]),
            400,
            "assistantDestinations.0.assistantName",
        ),
        (
            "membersOverrides",
            json!([]),
            400,
            "membersOverrides must be an object",
        ),
    ] {
        let mut body = json!({"name": "Bad", "members": [{"assistant": {}}]});
        body[field] = value.clone();
        assert_refused(&api.call(Method::POST, SQUAD, Some(&body)).await, status, fault);
        let change = json!({ field: value });
        assert_refused(
            &api.call(Method::PATCH, &path, Some(&change)).await,
            status,
            fault,
        );
        // The same in a run that brings its squad along.
        let body = run(
            json!([inline(&passing("x"), &personality("Pat"))]),
            json!({"type": "squad", "squad": body}),
            1,
        );
        assert_refused(&api.call(Method::POST, RUNS, Some(&body)).await, status, fault);
    }
    let without = api.call(Method::POST, SQUAD, Some(&json!({"name": "x"}))).await;
    assert_refused(&without, 400, "members must be given");
    let null = api
        .call(Method::PATCH, &path, Some(&json!({"members": null})))
        .await;
    assert_refused(&null, 400, "members");
    for id in [UNKNOWN, "1", "%20"] {
        let path = format!("{SQUAD}/{id}");
        for method in [Method::GET, Method::DELETE] {
            assert_refused(&api.call(method, &path, None).await, 404, "Squad");
        }
        let change = api.call(Method::PATCH, &path, Some(&json!({}))).await;
        assert_refused(&change, 404, "not found");
    }
    let put = api.call(Method::PUT, &path, Some(&json!({}))).await;
    assert_refused(&put, 405, "Cannot PUT");
    assert_eq!(api.delete(&path).await, changed);
    assert_refused(&api.call(Method::GET, &path, None).await, 404, "not found");
    assert_eq!(list(&api.get(SQUAD).await).len(), 3);
    assert_eq!(list(&api.get(RUNS).await).len(), 0, "nothing was begun");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_squad_is_played_as_it_was_when_the_run_was_created() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let (desk, billing) = desk_and_billing(&stand_in, "the till");
    let billing = api.post("/assistant", &billing).await;
    let squad = json!({"name": "Shop", "members": [
        {"assistant": desk, "assistantDestinations": to_billing()},
        {"assistantId": billing["id"]},
    ]});
    let squad = api.post(SQUAD, &squad).await;
    let (squad_path, billing_path) = (
        format!("{SQUAD}/{}", text(&squad["id"])),
        format!("/assistant/{}", text(&billing["id"])),
    );
    let target = json!({"type": "squad", "squadId": squad["id"]});
    let body = run(
        json!([inline(&passing("bill"), &personality("Pat"))]),
        target.clone(),
        2,
    );
    // Nothing is said until both have been changed.
    stand_in.fail(Role::Tester, usize::MAX, crate::stand_in::Fault::Hang);
    let made = api.post(RUNS, &body).await;
    let (status, _) = api
        .call(
            Method::PATCH,
            &squad_path,
            Some(&json!({"name": "New", "members": [{"assistant": {"name": "Solo"}}]})),
        )
        .await;
    assert_eq!(status, 200);
    let (status, _) = api
        .call(
            Method::PATCH,
            &billing_path,
            Some(&json!({"name": "Tax", "model": null})),
        )
        .await;
    assert_eq!(status, 200);
    stand_in.release();

    let done = ended(&api, text(&made["id"])).await;
    assert_valid("SimulationRun", &done);
    assert_eq!(counts(&done), [2, 2, 0, 0, 0, 0]);
    assert_eq!(done["target"], target);
    let all = items(&api, text(&made["id"]), 10).await;
    assert_items_valid(&all);
    for item in &all {
        assert_eq!(
            &api.get(&item_path(&made, 0)).await["metadata"]["squad"],
            &item["metadata"]["squad"]
        );
        let kept = &item["metadata"]["squad"];
        assert_eq!(item["metadata"].get("assistant"), None);
        assert_eq!((&kept["id"], &kept["name"]), (&squad["id"], &json!("Shop")));
        assert_eq!(kept["members"][0], squad["members"][0]);
        assert_eq!(
            (
                &kept["members"][1]["assistantId"],
                &kept["members"][1]["assistant"]
            ),
            (&billing["id"], &billing)
        );
        let told = told(item);
        let roles_and_names: Vec<_> = told.iter().map(|(role, _, name)| (*role, *name)).collect();
        let (desk, billing_too) = (Some("Desk"), Some("Billing"));
        assert_eq!(
            roles_and_names[..4],
            [
                ("user", None),
                ("tool_calls", desk),
                ("tool_call_result", desk),
                ("assistant", billing_too)
            ]
        );
        assert_eq!(told[2].1, "The conversation was handed over to Billing.");
        assert_eq!(told[3].1, "Answer 1 from the till.");
        let messages = list(&item["metadata"]["call"]["messages"]);
        assert_eq!(
            messages[1]["toolCalls"][0]["function"]["name"],
            "handoff_to_Billing"
        );
        assert_eq!(messages[1].get("assistantId"), None, "the desk is not stored");
        assert_eq!(messages[3]["assistantId"], billing["id"]);
        assert!(text(&item["metadata"]["call"]["transcript"]).contains("AI: Answer 1 from the till."));
    }

    // Filters and names.
    let found = async |filter: &str| list(&api.get(&format!("{RUNS}?{filter}")).await).len();
    assert_eq!(found("targetType=squad").await, 1);
    assert_eq!(found("targetType=assistant").await, 0);
    assert_eq!(found(&format!("targetId={}", text(&squad["id"]))).await, 1);
    assert_eq!(found(&format!("targetId={UNKNOWN}")).await, 0);
    let page = api.get(&format!("{RUNS}?page=1")).await;
    assert_valid("SimulationRunListItem", &page["results"][0]);
    assert_eq!(page["results"][0]["summary"]["targetSnapshotName"], "Shop");

    // What is gone cannot be tested.
    let change = json!({"members": [{"assistantId": billing["id"]}]});
    let (status, _) = api.call(Method::PATCH, &squad_path, Some(&change)).await;
    assert_eq!(status, 200);
    api.delete(&billing_path).await;
    let gone = format!("Assistant {} not found", text(&billing["id"]));
    assert_refused(&api.call(Method::POST, RUNS, Some(&body)).await, 404, &gone);
    api.delete(&squad_path).await;
    let gone = format!("Squad {} not found", text(&squad["id"]));
    assert_refused(&api.call(Method::POST, RUNS, Some(&body)).await, 404, &gone);
    assert_eq!(list(&api.get(RUNS).await).len(), 1);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_squad_hands_over_by_a_tool_and_overrides_reach_every_member() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let (mut desk, billing) = desk_and_billing(&stand_in, "{{street}} in {{city}}");
    desk["model"]["tools"] = json!([
        {"type": "handoff", "destinations": [{"type": "assistant", "assistantName": "Billing"}]}]);
    let squad = json!({
        "members": [{"assistant": desk}, {"assistant": billing}],
        "membersOverrides": {"variableValues": {"city": "Basel", "street": "Main Street"}},
    });
    let mut scenario = passing("inline");
    scenario["targetOverrides"] = json!({"variableValues": {"city": "Bern"}});
    let target = json!({"type": "squad", "squad": squad});
    let (done, item) = play(&api, &scenario, target.clone()).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{item:#}");
    assert_eq!(done["target"], target);
    assert_eq!(item["metadata"]["squad"], squad);
    assert_eq!(
        told(&item)[3],
        ("assistant", "Answer 1 from Main Street in Bern.", Some("Billing"))
    );
    let page = api.get(&format!("{RUNS}?page=1&targetType=squad")).await;
    let summary = &page["results"][0]["summary"];
    assert_eq!(summary["targetSnapshotName"], "Desk", "as its first member");

    // Somebody who is not there cannot take over, and the one who tried goes on.
    let mut nobody = squad.clone();
    nobody["members"][1]["assistant"]["name"] = json!("Accounts");
    let (done, item) = play(&api, &scenario, json!({"type": "squad", "squad": nobody})).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{item:#}");
    let told = told(&item);
    assert!(
        told[2].1.starts_with("Error: the squad has no member Billing"),
        "{told:?}"
    );
    assert_eq!((told[3].0, told[3].2), ("assistant", Some("Desk")));
    assert!(told[3].1.starts_with("Answer 1 from the desk."), "{told:?}");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_told_of_the_whole_squad_and_of_tools_without_mocks() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 50 });
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let (mut desk, billing) = desk_and_billing(&stand_in, "the till");
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    desk["model"]["tools"] = json!([function("book"), function("lookUp"), function("cancel")]);
    let billing = api.post("/assistant", &billing).await;
    let squad = json!({"name": "Shop", "members": [{"assistant": desk}, {"assistantId": billing["id"]}]});
    let mut scenario = passing("voice");
    scenario["targetOverrides"] = json!({"variableValues": {"city": "Bern"}});
    scenario["toolMocks"] = json!([
        {"toolName": "book", "result": "booked"},
        {"toolName": "lookUp", "result": "never", "enabled": false},
    ]);
    for (mode, others) in [
        (None, None),
        (Some("error"), Some("Error: lookUp was not run")),
        (Some("run"), Some("lookUp ran for real")),
    ] {
        scenario["unmockedTools"] = json!(mode);
        let entries = json!([inline(&scenario, &personality("Pat"))]);
        let body = run(entries, json!({"type": "squad", "squad": squad}), 1);
        let made = api.post(RUNS, &by_voice(body, &endpoint)).await;
        let done = ended(&api, text(&made["id"])).await;
        assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0]);
        let item = api.get(&item_path(&made, 0)).await;
        assert_eq!(item["metadata"]["scenario"]["unmockedTools"], json!(mode));
        let calls = provider.calls();
        let order = &calls.last().unwrap().body;
        let mut whole = squad.clone();
        whole["members"][1]["assistant"] = billing.clone();
        assert_eq!(
            order["target"],
            json!({"type": "squad", "squad": whole, "assistantOverrides": scenario["targetOverrides"]})
        );
        assert_eq!(order.get("unmockedTools").and_then(Value::as_str), mode);
        let [mock] = list(&order["toolMocks"]) else {
            panic!("a mock that is switched off is none: {order:#}")
        };
        assert_eq!(mock["toolName"], "book");
        let messages = list(&item["metadata"]["call"]["messages"]);
        let result = |name: &str| {
            let found = messages.iter().find(|message| message["toolCallId"] == name);
            found.map(|message| text(&message["result"]).to_owned())
        };
        assert_eq!(result("book"), others.map(|_| "booked".to_owned()));
        assert_eq!(result("lookUp"), others.map(str::to_owned));
        assert_eq!(result("cancel").is_some(), others.is_some());
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_without_mocks_are_run_in_a_chat_only_where_the_scenario_says_so() {
    let (stand_in, script) = (StandIn::start().await, Script::start().await);
    let (local, api) = local(&stand_in).await;
    let mut scenario = passing("tools");
    scenario["unmockedTools"] = json!("run");
    let stored = api.post(SCENARIO, &scenario).await;
    assert_eq!(stored["unmockedTools"], "run");
    let path = format!("{SCENARIO}/{}", text(&stored["id"]));
    for (value, shown) in [
        (json!("error"), json!("error")),
        (Value::Null, Value::Null),
        (json!("run"), json!("run")),
    ] {
        let change = json!({ "unmockedTools": value });
        let (status, changed) = api.call(Method::PATCH, &path, Some(&change)).await;
        assert_eq!((status, &changed["unmockedTools"]), (200, &shown));
    }
    for method in [Method::POST, Method::PATCH] {
        let (path, mut body) = match method {
            Method::POST => (SCENARIO, scenario.clone()),
            _ => (path.as_str(), json!({})),
        };
        body["unmockedTools"] = json!("maybe");
        assert_refused(&api.call(method, path, Some(&body)).await, 400, "unmockedTools");
    }
    scenario["toolMocks"] = json!([{"toolName": "findSlot", "result": "free", "enabled": false}]);
    let mut clinic = assistant(&stand_in, "<<{\"tool\":\"findSlot\"}>>");
    clinic["model"]["tools"] = json!([{"type": "function", "function": {"name": "findSlot"}}]);
    clinic["server"] = json!({"url": format!("{}/tool/slots", script.base)});
    for (mode, expected) in [
        (None, "Error: the tool findSlot was not run"),
        (Some("error"), "Error: the tool findSlot was not run"),
        (Some("run"), "Sunny in"),
    ] {
        scenario["unmockedTools"] = json!(mode);
        let entries = json!([inline(&scenario, &personality("Pat"))]);
        let made = api.post(RUNS, &run(entries, inline_target(&clinic), 1)).await;
        ended(&api, text(&made["id"])).await;
        let item = api.get(&item_path(&made, 0)).await;
        let result = &item["metadata"]["call"]["messages"][2];
        assert_eq!(
            (&result["role"], &result["mocked"]),
            (&json!("tool_call_result"), &json!(false)),
            "a mock that is switched off is none: {item:#}"
        );
        assert!(text(&result["result"]).starts_with(expected), "{result}");
        assert_eq!(script.asked_of("tool").is_empty(), mode != Some("run"));
    }
    // What a tool's server does not do is told to the target.
    clinic["server"] = json!({"url": "http://127.0.0.1:1/"});
    let entries = json!([inline(&scenario, &personality("Pat"))]);
    let made = api.post(RUNS, &run(entries, inline_target(&clinic), 1)).await;
    let done = ended(&api, text(&made["id"])).await;
    assert_eq!(counts(&done)[1], 1, "{done:#}");
    let item = api.get(&item_path(&made, 0)).await;
    let result = text(&item["metadata"]["call"]["messages"][2]["result"]);
    assert!(
        result.starts_with("Error: the tool findSlot failed: "),
        "{result}"
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_target_has_no_latencies_to_expect_anything_of() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 50 });
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let mut scenario = passing("live");
    scenario["latencyExpectations"] = json!([{"metric": "turn", "aggregation": "max", "thresholdMs": 1}]);
    for (model, skipped) in [("gpt-realtime", true), ("gpt-4.1", false)] {
        let target = inline_target(&json!({"name": "Live", "model": {"provider": "openai", "model": model}}));
        let entries = json!([inline(&scenario, &personality("Pat"))]);
        let made = api
            .post(RUNS, &by_voice(run(entries, target, 1), &endpoint))
            .await;
        let done = ended(&api, text(&made["id"])).await;
        assert_eq!(
            counts(&done),
            [1, u64::from(skipped), u64::from(!skipped), 0, 0, 0],
            "{model}"
        );
        let item = api.get(&item_path(&made, 0)).await;
        let judged = &item["results"]["latencyEvaluations"][0];
        assert_eq!(judged["isSkipped"].as_bool().unwrap_or_default(), skipped);
        assert_eq!(judged.get("skipReason").is_some(), skipped);
    }
    local.shutdown().await;
}
