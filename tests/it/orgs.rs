//! `ringback org`: organizations are made in the table, and deleted with everything that is kept of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    process::Command,
    task::Poll,
};

use aws_sdk_dynamodb::types::AttributeValue;
use reqwest::Method;
use ringback_local::{
    orgs::{self, Action, OrgError, Stack},
    serve::Local,
};
use ringback_shared::{
    clock::{Clock, SystemClock},
    ids,
    secrets::{EndpointSecrets, OrgHooks},
    store::{Kind, Numbered, Store},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    evals::{Script, one_eval},
    fixtures::{
        LONG, RUNS, assistant, by_voice, ended, endpoint, inline, inline_target, item_path, list,
        personality, regex, run, scenario, simple_run, text,
    },
    hooks::{ENDED, HookReceiver, hook, settled},
    provider::{Auto, ProviderStandIn, Tamper},
    schedules::{SCHEDULE, of_run},
    server::{Api, finished, local, local_with, program, until},
    stand_in::StandIn,
};

/// Every row of the table, whole, by its key.
type Table = BTreeMap<(String, String), String>;

/// A value of a row, in an order of its own.
fn plain(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::M(map) => map
            .iter()
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect(),
        AttributeValue::L(list) => list.iter().map(plain).collect(),
        other => json!(format!("{other:?}")),
    }
}

async fn table(local: &Local) -> Table {
    let client = local.emulator().dynamodb_of_others().unwrap();
    let mut all = Table::new();
    let mut start = None;
    loop {
        let page = client
            .scan()
            .table_name(&local.context().config.table)
            .set_exclusive_start_key(start)
            .send()
            .await
            .unwrap();
        for row in page.items() {
            let key = |name: &str| row[name].as_s().unwrap().clone();
            let whole = plain(&AttributeValue::M(row.clone()));
            all.insert((key("pk"), key("sk")), whole.to_string());
        }
        start = page.last_evaluated_key().cloned();
        if start.is_none() {
            return all;
        }
    }
}

/// The table once nothing is owed to any row and nobody writes any more.
async fn quiet(local: &Local) -> Table {
    let (mut before, mut same) = (Table::new(), 0);
    until("the table to be quiet", LONG, async || {
        let now = table(local).await;
        let owed = now.values().any(|row| row.contains("\"dueShard\""));
        same = if owed || now != before { 0 } else { same + 1 };
        before = now;
        (same > 40).then(|| before.clone())
    })
    .await
}

/// The stack as the command sees it.
fn stack(local: &Local) -> Stack {
    Stack {
        store: Store::new(
            local.emulator().dynamodb_of_others().unwrap().config().clone(),
            &local.context().config.table,
        ),
        secrets: Some(local.context().secrets.clone()),
    }
}

/// When all that has just been written was written long ago.
fn later() -> i64 {
    SystemClock.now_ms() + 300_000
}

async fn act(stack: &Stack, action: Action) -> Value {
    orgs::run(stack, action, later()).await.unwrap()
}

/// A new organization, its client and the digest of its key.
async fn made(stack: &Stack, api: &Api, name: &str) -> (Uuid, Api) {
    let made = act(stack, Action::Create(name.to_owned())).await;
    let api = Api {
        key: Some(text(&made["apiKey"]).to_owned()),
        ..api.clone()
    };
    (text(&made["orgId"]).parse().unwrap(), api)
}

/// What others do for an organization.
struct Others {
    stand_in: StandIn,
    script: Script,
    receiver: HookReceiver,
}

/// What one shape of the API keeps of an organization beside all others: definitions, and numbers for them.
async fn number(store: &Store, org: Uuid) {
    for kind in [Kind::Metric, Kind::TestProfile, Kind::Project] {
        let (id, body) = (ids::new_id(SystemClock.now_ms()), json!({"name": "kept"}));
        store.create_definition(org, kind, id, body, &[]).await.unwrap();
        let numbers = store.numbers(org, Numbered::Definition(kind), &[id]).await;
        assert_eq!(numbers.unwrap().len(), 1);
    }
}

/// One of each kind of what an organization can have; gives its endpoint.
async fn furnish(api: &Api, others: &Others, provider: &ProviderStandIn) -> Uuid {
    let Others {
        stand_in,
        script,
        receiver,
    } = others;
    provider.auto(Auto::Both { talk_ms: 20 });
    let simple = |sim: &str| simple_run(stand_in, sim, 1, 1);
    // Definitions.
    let person = api
        .post("/eval/simulation/personality", &personality("Pat"))
        .await;
    let judged = json!([regex("answered", "Answer 1", "boolean", "=", json!(true))]);
    let mut hooked = scenario("hooked", 1, judged);
    hooked["hooks"] = json!([hook(ENDED, &receiver.url("/told"))]);
    let stored = api.post("/eval/simulation/scenario", &hooked).await;
    let simulation = json!({"name": "S", "scenarioId": stored["id"], "personalityId": person["id"]});
    let simulation = api.post("/eval/simulation", &simulation).await;
    let suite = json!({"name": "Suite", "simulationIds": [simulation["id"]]});
    let suite = api.post("/eval/simulation/suite", &suite).await;
    let agent = assistant(stand_in, "You run a clinic.");
    let stored = api.post("/assistant", &agent).await;
    let members = json!([{"assistantId": stored["id"]}]);
    api.post("/squad", &json!({"name": "Squad", "members": members}))
        .await;
    let output =
        json!({"name": "visit", "schema": {"type": "object", "properties": {"hour": {"type": "integer"}}}});
    api.post("/structured-output", &output).await;
    // A chat with hooks, of the suite and inline, with an idempotency key; and again.
    let entries = json!([
        {"type": "simulationSuite", "simulationSuiteId": suite["id"]},
        inline(&hooked, &personality("Sam")),
    ]);
    let body = run(entries, inline_target(&agent), 2);
    let asked = api
        .request(Method::POST, RUNS)
        .header("Idempotency-Key", "once")
        .json(&body);
    let chat: Value = asked.send().await.unwrap().json().await.unwrap();
    ended(api, text(&chat["id"])).await;
    settled(api, &item_path(&chat, 0), ENDED).await;
    let again = format!("{RUNS}/{}/rerun", text(&chat["id"]));
    let again = api
        .post(&again, &json!({"items": "all", "concurrencyLimit": 1}))
        .await;
    ended(api, text(&again["id"])).await;
    // Calls; an event of a call that nobody knows, one that cannot be read, and one that says nothing.
    let endpoint = endpoint(api, provider).await;
    let call = api.post(RUNS, &by_voice(simple("call"), &endpoint)).await;
    ended(api, text(&call["id"])).await;
    let calls = provider
        .wait_for("the last answer", |calls| {
            calls.iter().all(|call| call.answers.len() == 2)
        })
        .await;
    let mut stray = provider.started_event(&calls[0].id);
    stray["callId"] = json!(format!("{}-nobodys", calls[0].id));
    stray.as_object_mut().unwrap().remove("correlation");
    let url = text(&endpoint["webhooks"]["callStarted"]);
    for (body, status) in [
        (stray.to_string(), 200),
        (json!({"odd": "x".repeat(400_000)}).to_string(), 400),
    ] {
        assert_eq!(
            provider.deliver(url, body.into_bytes(), Tamper::Nothing).await,
            status
        );
    }
    let added = format!("/endpoint/{}/secret", text(&endpoint["id"]));
    api.post(&added, &json!({})).await;
    api.post("/hook/secret", &json!({})).await;
    // An eval.
    one_eval(api, script).await;
    // A schedule that fired.
    let mut schedule = of_run(&simple("scheduled"), "Nightly");
    schedule["active"] = json!(false);
    let schedule = api.post(SCHEDULE, &schedule).await;
    let fired = format!("{SCHEDULE}/{}/run", text(&schedule["id"]));
    let fired = api.post(&fired, &json!({})).await;
    ended(api, text(&fired["id"])).await;
    text(&endpoint["id"]).parse().unwrap()
}

/// Polls `work` at most so often, and then drops it, wherever it is: `None` if it was not done then.
async fn interrupted<T>(work: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_organization_leaves_nothing_and_the_others_are_untouched() {
    let others = Others {
        stand_in: StandIn::start().await,
        script: Script::start().await,
        receiver: HookReceiver::start().await,
    };
    let (local, api) = local_with(&others.stand_in, |options| {
        let price = json!({"prompt": 1000, "completion": 1000});
        let prices = json!({"tester": price, "target": price}).to_string();
        options.settings.insert("MODEL_PRICES".to_owned(), prices);
    })
    .await;
    let stack = stack(&local);
    let providers = [ProviderStandIn::start().await, ProviderStandIn::start().await];
    let (stays, staying) = made(&stack, &api, "stays").await;
    let kept = furnish(&staying, &others, &providers[0]).await;
    number(&stack.store, stays).await;
    let before = quiet(&local).await;

    let (goes, going) = made(&stack, &api, "goes").await;
    act(
        &stack,
        Action::AddKey {
            org: goes,
            name: "ci".to_owned(),
        },
    )
    .await;
    let began = SystemClock.now_ms();
    let gone = furnish(&going, &others, &providers[1]).await;
    number(&stack.store, goes).await;
    let full = quiet(&local).await;
    // Everything is there of which nothing may stay.
    for prefix in [
        "CALL#",
        "ENDPOINT#",
        "ITEM#",
        "KEY#",
        "QUARANTINE#",
        "RUN#",
        "SCHEDULE#",
        "SECRET#endpoint/",
        "SECRET#org/",
    ] {
        let rows = |table: &Table| table.keys().filter(|(pk, _)| pk.starts_with(prefix)).count();
        assert!(rows(&full) > rows(&before), "{prefix}");
    }
    let own = format!("ORG#{goes}#");
    let kinds: BTreeSet<&str> = full
        .keys()
        .filter_map(|(pk, _)| pk.strip_prefix(&own)?.split('#').next())
        .collect();
    for kind in [
        "assistant",
        "call",
        "endpoint",
        "eval",
        "evalrun",
        "idempotency",
        "metric",
        "number",
        "personality",
        "project",
        "run",
        "scenario",
        "schedule",
        "simulation",
        "spent",
        "squad",
        "structured-output",
        "suite",
        "test-profile",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }

    // Without --yes it is only shown.
    let delete = |yes| Action::Delete {
        org: goes,
        yes,
        force: false,
    };
    let shown = act(&stack, delete(false)).await;
    assert_eq!(
        (&shown["deleted"], &shown["name"], &shown["runsGoingOn"]),
        (&json!(false), &json!("goes"), &json!(0))
    );
    let counts = json!({
        "apiKeys": 2, "definitions": 11, "schedules": 1, "endpoints": 1, "runs": 4, "evalRuns": 1, "items": 11,
        "calls": 3, "quarantined": 1, "others": shown["counts"]["others"],
    });
    assert_eq!(shown["counts"], counts);
    assert_eq!(
        shown["secrets"],
        json!([format!("endpoint/{gone}"), format!("org/{goes}")])
    );
    // Nor while somebody may be at work, nor while a call is up. As of when it all began, so that it does not matter how long it took.
    let early = orgs::run(&stack, delete(true), began).await;
    assert!(matches!(early, Err(OrgError::Settling(5))), "{early:?}");
    assert_eq!(table(&local).await, full);
    providers[1].auto(Auto::Manual);
    let endpoint = json!({"id": gone});
    let up = simple_run(&others.stand_in, "up", 1, 1);
    let up = going.post(RUNS, &by_voice(up, &endpoint)).await;
    let early = orgs::run(&stack, delete(true), later()).await;
    assert!(matches!(early, Err(OrgError::GoingOn(1))), "{early:?}");
    providers[1].wait_for("the call", |calls| calls.len() == 2).await;
    going.patch(&format!("{RUNS}/{}", text(&up["id"]))).await;
    ended(&going, text(&up["id"])).await;
    let full = quiet(&local).await;

    // It is broken off again and again, and goes on where it was.
    let (mut breaks, mut left) = (0, full.len());
    let mut polls = 20;
    let deleted = loop {
        let work = orgs::run(&stack, delete(true), later());
        if let Some(deleted) = interrupted(work, polls).await {
            break deleted.unwrap();
        }
        polls += polls / 5;
        let rows = table(&local).await.len();
        breaks += usize::from(rows < left);
        left = rows;
        let again = act(&stack, delete(false)).await;
        assert_eq!(
            again["found"],
            true,
            "{rows} rows are left, and {} were to stay",
            before.len()
        );
    };
    // How often depends on how much is done at a time.
    assert!(breaks > 0, "it was broken off {breaks} times");
    assert_eq!(
        (&deleted["deleted"], &deleted["found"]),
        (&json!(true), &json!(true))
    );

    // Nothing is left of it, and nothing else was touched.
    let after = quiet(&local).await;
    let differs: Vec<_> = after
        .iter()
        .filter(|(key, row)| before.get(*key) != Some(*row))
        .chain(before.iter().filter(|(key, _)| !after.contains_key(*key)))
        .map(|(key, _)| key)
        .collect();
    assert!(differs.is_empty(), "{differs:#?}");
    let secrets = &local.context().secrets;
    assert!(secrets.stored::<EndpointSecrets>(gone).await.unwrap().is_none());
    assert!(secrets.stored::<OrgHooks>(goes).await.unwrap().is_none());
    assert!(secrets.stored::<EndpointSecrets>(kept).await.unwrap().is_some());
    assert!(secrets.stored::<OrgHooks>(stays).await.unwrap().is_some());
    assert_eq!(going.call(Method::GET, RUNS, None).await.0, 401);
    assert_eq!(staying.call(Method::GET, RUNS, None).await.0, 200);
    let nothing = act(&stack, delete(true)).await;
    assert_eq!(nothing, json!({"orgId": goes, "found": false, "deleted": false}));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_administers_a_table_that_is_elsewhere() {
    let (local, api) = local(&StandIn::start().await).await;
    let org = |args: &[&str], key: Option<&str>| {
        let mut command = Command::new(program());
        command
            .arg("org")
            .args(args)
            .args(["--table", &local.context().config.table])
            .env("AWS_ENDPOINT_URL", local.dynamodb_endpoint())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env_remove("AWS_PROFILE")
            .env_remove("RINGBACK_API_KEY");
        if let Some(key) = key {
            command.env("RINGBACK_API_KEY", key);
        }
        finished(command)
    };
    let allowed = async |key: &str| {
        let api = Api {
            key: Some(key.to_owned()),
            ..api.clone()
        };
        api.call(Method::GET, RUNS, None).await.0 == 200
    };
    let (done, made, said) = org(&["create", "main"], None).await;
    assert!(done, "{said}");
    let (id, key) = (text(&made["orgId"]), text(&made["apiKey"]));
    assert_eq!(
        (&made["name"], id.parse::<Uuid>().unwrap().get_version_num()),
        (&json!("main"), 7)
    );
    assert!(key.starts_with("rb_") && key.len() >= 35, "{key}");
    assert!(allowed(key).await);
    // Only its digest is kept.
    assert!(table(&local).await.values().all(|row| !row.contains(key)));
    let (done, _, said) = org(&["create", " "], None).await;
    assert!(!done && said.contains("blank"), "{said}");
    let (_, listed, _) = org(&["list"], None).await;
    let names: Vec<&str> = list(&listed).iter().map(|org| text(&org["name"])).collect();
    assert!(names.contains(&"main") && names.len() == 2, "{listed}");

    let (_, second, _) = org(&["add-key", id, "--name", "ci"], None).await;
    let second = text(&second["apiKey"]);
    assert!(allowed(second).await && second != key);
    let unknown = Uuid::from_u128(9).to_string();
    let (done, _, said) = org(&["add-key", &unknown, "--name", "ci"], None).await;
    assert!(
        !done && said.contains(&unknown) && said.contains("no organization"),
        "{said}"
    );
    let (done, shown, _) = org(&["delete-key"], Some(second)).await;
    assert_eq!(
        (done, &shown["deleted"], &shown["name"]),
        (true, &json!(true), &json!("ci"))
    );
    assert!(!allowed(second).await && allowed(key).await);
    let digest = ids::sha256_hex(second.as_bytes());
    let (done, shown, said) = org(&["delete-key", "--sha256", &digest], None).await;
    assert_eq!((done, &shown["deleted"]), (true, &json!(false)));
    assert!(said.contains("no such API key"), "{said}");
    let (done, _, said) = org(&["delete-key"], None).await;
    assert!(!done && said.contains("RINGBACK_API_KEY"), "{said}");

    let (done, shown, said) = org(&["delete", id], None).await;
    assert_eq!((done, &shown["counts"]["apiKeys"]), (true, &json!(1)), "{said}");
    assert!(said.contains("--yes") && allowed(key).await, "{said}");
    let (done, gone, said) = org(&["delete", id, "--yes"], None).await;
    assert_eq!(
        (done, &gone["deleted"], &gone["secretsLeft"]),
        (true, &json!(true), &json!([format!("org/{id}")])),
        "{said}"
    );
    assert!(!allowed(key).await);
    let (done, shown, said) = org(&["delete", id, "--yes"], None).await;
    assert_eq!((done, &shown["found"]), (true, &json!(false)));
    assert!(said.contains("there is nothing"), "{said}");
    local.shutdown().await;
}
