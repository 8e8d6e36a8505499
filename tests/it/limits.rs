//! Limits of organizations: call slots, costs and the spending cap, and that one does not hold up another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lambda_events::{
    dynamodb::{Event, EventRecord},
    streams::DynamoDbEventResponse,
};
use futures_util::future::join_all;
use reqwest::Method;
use ringback_local::{
    drivers::{Stop, StreamMapping, feed_stream},
    emulator::Emulator,
    serve::Local,
};
use ringback_shared::{
    admission,
    clock::Deadline,
    context::Context,
    costs::ModelCosts,
    ids,
    lifecycle::{Fact, Facts, Item, Slots, Source, State},
    progress,
    store::{Admitted, Created, ItemKey, NewRun, RunHead, RunKey, head_from_image},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    fixtures::{
        LONG, RUNS, assert_items_valid, assert_valid, assistant, by_voice, ended, endpoint, evaluation,
        inline, inline_target, items, list, personality, run, scenario, simple_run, text,
    },
    provider::{Auto, ProviderStandIn},
    server::{Api, Server, local, local_with, until},
    stand_in::{Fault, Role, StandIn},
    store::{NOW, items_of, new_run, stack},
};

const CONCURRENCY: &str = "/eval/simulation/concurrency";
/// The organization of the runs that [`new_run`] makes.
const ORG: Uuid = Uuid::from_u128(7);
/// A month after [`NOW`].
const LATER: i64 = NOW + 31 * 24 * 3_600_000;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn costs(cost: i64, unknown: &[&str]) -> ModelCosts {
    ModelCosts {
        cost,
        unknown: unknown.iter().map(|&model| model.to_owned()).collect(),
    }
}

fn call_cost(source: Source, value: i64) -> Facts {
    Facts {
        cost: Some(Fact { source, value }),
        ..Facts::default()
    }
}

async fn stored(ctx: &Context, item: &Item) -> Item {
    ctx.store.item(ItemKey::of(item)).await.unwrap().unwrap()
}

/// A number of dollars as millionths.
#[track_caller]
fn micros(dollars: &Value) -> i64 {
    let dollars = dollars
        .as_f64()
        .unwrap_or_else(|| panic!("not a number: {dollars}"));
    ringback_shared::costs::micros(dollars).unwrap()
}

// --- The store --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spent_is_counted_once_however_often_it_is_written() {
    let (emulator, ctx) = stack().await;
    let all = items_of(&ctx, &new_run(12, 10)).await;
    let run = all[0].run;
    // All of them at once, each by several workers at once who have seen the same.
    join_all(all.iter().map(|item| {
        let ctx = &ctx;
        async move {
            let now = ctx.clock.now_ms();
            let held = ctx
                .store
                .transition(item.clone(), |item| item.claim("w", 60_000, now))
                .await
                .unwrap();
            let talked = costs(1000 + i64::from(item.index), &[]);
            let ended = join_all((0..3).map(|_| {
                ctx.store.transition(held.clone(), |item| {
                    Ok(item.end_conversation("w", "done", now)?.charged(&talked))
                })
            }))
            .await;
            assert_eq!(ended.iter().flatten().count(), 1);
            // Late and doubled: the same, less, and at last what a judge took.
            for late in [talked.cost, talked.cost, 500, talked.cost + 7] {
                let late = costs(late, &["nobody knows"]);
                let item = held.clone();
                join_all((0..2).map(|_| progress::charge_late(ctx, item.clone(), &late))).await;
            }
            // The provider's cost, looked up and then reported, in one order or the other and more than once.
            let mut told = vec![
                call_cost(Source::LookUp, 900),
                call_cost(Source::Report, 300),
                call_cost(Source::LookUp, 900),
            ];
            told.rotate_left(item.index as usize % 3);
            for facts in &told {
                let at = ItemKey::of(item);
                for folded in join_all((0..2).map(|_| progress::fold(ctx, at, facts))).await {
                    folded.unwrap();
                }
            }
        }
    }))
    .await;
    let expected: i64 = (0..120).map(|index| 1000 + index + 7 + 300).sum();
    for item in &all {
        let item = stored(&ctx, item).await;
        assert_eq!(
            item.costs(),
            costs(1307 + i64::from(item.index), &["nobody knows"])
        );
    }
    // Should this run into another month, both count.
    let now = ctx.clock.now_ms();
    let months: BTreeMap<String, i64> = [now - 600_000, now]
        .map(|at| (ringback_shared::clock::month(at), at))
        .into();
    let mut spent = 0;
    for at in months.into_values() {
        spent += ctx.store.spent(ORG, at).await.unwrap();
    }
    assert_eq!(spent, expected);
    assert_eq!(ctx.store.spent(Uuid::nil(), now).await.unwrap(), 0);

    // The tallies say the same, and so does the run.
    let cancel = |item: Item| {
        let ctx = &ctx;
        async move { ctx.store.transition(item, |item| item.cancel(NOW)).await }
    };
    for item in &all {
        cancel(stored(&ctx, item).await).await.unwrap();
    }
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    progress::recount_all(&ctx, &head, soon()).await.unwrap();
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        head.counts.as_ref().map(|counts| counts.costs.clone()),
        Some(costs(expected, &["nobody knows"]))
    );

    // Of a run that has ended, costs may still be told: in both partitions, counted by several at once.
    for index in [3, 111] {
        let at = ItemKey { run, index };
        progress::fold(&ctx, at, &call_cost(Source::Report, 301))
            .await
            .unwrap();
    }
    let recounts = (0..8).map(|n| progress::recount(&ctx, RunKey::simulation(ORG, run), n % 2));
    for counted in join_all(recounts).await {
        counted.unwrap();
    }
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    let counts = head.counts.unwrap();
    assert_eq!((counts.costs.cost, counts.canceled), (expected + 2, 120));
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cost_counts_in_its_month_and_nothing_is_written_for_nothing() {
    let (emulator, ctx) = stack().await;
    let all = items_of(&ctx, &new_run(1, 3)).await;
    let spent = async || {
        (
            ctx.store.spent(ORG, NOW).await.unwrap(),
            ctx.store.spent(ORG, LATER).await.unwrap(),
        )
    };
    let held = |n: usize| {
        let (ctx, item) = (&ctx, all[n].clone());
        async move {
            ctx.store
                .transition(item, |item| item.claim("w", 60_000, NOW))
                .await
        }
    };
    let first = held(0).await.unwrap();
    let nothing = ctx
        .store
        .transition(first, |item| {
            Ok(item.yield_slice("w", NOW)?.charged(&costs(0, &["m"])))
        })
        .await
        .unwrap();
    assert_eq!(spent().await, (0, 0), "what is not known is not counted");
    assert_eq!(nothing.costs(), costs(0, &["m"]));
    let again = ctx
        .store
        .transition(nothing, |item| item.claim("w", 60_000, NOW))
        .await
        .unwrap();
    let over = ctx
        .store
        .transition(again, |item| {
            Ok(item.end_conversation("w", "done", NOW)?.charged(&costs(40, &[])))
        })
        .await
        .unwrap();
    assert_eq!(spent().await, (40, 0));
    // A month later the provider says what the call cost, and then that it was less.
    for (source, cost, later) in [(Source::LookUp, 50, 50), (Source::Report, 20, 20)] {
        let facts = call_cost(source, cost);
        let item = stored(&ctx, &over).await;
        ctx.store
            .transition(item, |item| Ok(item.observe(facts.clone(), LATER)))
            .await
            .unwrap();
        assert_eq!(spent().await, (40, later));
    }
    // A worker whose item was canceled under it: in the month in which that was.
    let second = held(1).await.unwrap();
    let canceled = ctx
        .store
        .transition(second.clone(), |item| item.cancel(NOW))
        .await
        .unwrap();
    progress::charge_late(&ctx, second, &costs(5, &[])).await;
    assert_eq!(spent().await, (45, 20));
    let charged = stored(&ctx, &canceled).await;
    assert_eq!(
        (charged.state, charged.updated_at),
        (State::Canceled, canceled.updated_at)
    );
    emulator.shutdown().await;
}

fn calls(simulations: u32, iterations: u32) -> NewRun {
    NewRun {
        transport: "vapi.websocket".to_owned(),
        endpoint: Some(Uuid::from_u128(8)),
        ..new_run(simulations, iterations)
    }
}

/// As many look at once as would all see the same free slots.
async fn admit(ctx: &Context) -> usize {
    for admitted in join_all((0..6).map(|_| admission::admit(ctx, ORG, soon()))).await {
        assert!(!admitted.unwrap(), "nothing is left to be done");
    }
    ctx.store.held_call_slots(ORG).await.unwrap().len()
}

async fn limit(ctx: &Context, limit: Option<u32>) {
    ctx.store
        .change_org(ORG, NOW, |org| org.limit_concurrency(limit, NOW))
        .await
        .unwrap();
}

/// One of those that have slots gives them back.
async fn give_back(ctx: &Context, run: Uuid, total: u32) {
    let all = ctx.store.items_from(run, 0, total).await.unwrap();
    let holder = all.into_iter().find(|item| !item.slots.is_empty()).unwrap();
    ctx.store
        .transition(holder, |item| item.cancel(NOW))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organizations_own_limit_is_exact_when_it_is_lowered_and_raised() {
    let (emulator, ctx) = stack().await;
    let all = items_of(&ctx, &calls(6, 10)).await;
    let (run, total) = (all[0].run, 60);
    assert_eq!(admit(&ctx).await, 10, "the default");
    limit(&ctx, Some(4)).await;
    for held in [8, 6, 4] {
        give_back(&ctx, run, total).await;
        assert_eq!(admit(&ctx).await, held, "nobody starts above the limit");
    }
    for _ in 0..4 {
        give_back(&ctx, run, total).await;
        assert_eq!(admit(&ctx).await, 4, "one for one");
    }
    limit(&ctx, Some(13)).await;
    assert_eq!(admit(&ctx).await, 12, "a call takes two");
    limit(&ctx, None).await;
    give_back(&ctx, run, total).await;
    assert_eq!(admit(&ctx).await, 10);

    // Lowered and raised while others give slots out and back: never more than the limit, unless they were held before it.
    for (n, next) in [6, 2, 8, 4, 10, 2, 12].into_iter().enumerate() {
        let (..) = tokio::join!(
            limit(&ctx, Some(next)),
            give_back(&ctx, run, total),
            admit(&ctx),
            admit(&ctx),
        );
        let held = ctx.store.held_call_slots(ORG).await.unwrap().len();
        let after = admit(&ctx).await;
        assert!(
            after <= held.max(next as usize),
            "{n}: {after} of {next}, {held} before"
        );
        if held + 2 > next as usize {
            assert_eq!(after, held, "{n}");
        } else {
            assert_eq!(after, next as usize, "{n}");
        }
    }

    // Who chose slots under another limit gets none.
    let item = ctx.store.items_from(run, 0, total).await.unwrap();
    let waits = item.into_iter().find(|item| item.state == State::Queued).unwrap();
    let settings = ctx.store.org(ORG).await.unwrap();
    let slots = Slots {
        calls: vec![500, 501],
        run: None,
    };
    limit(&ctx, Some(40)).await;
    let stale = ctx
        .store
        .admit(&waits, &slots, settings.version, NOW)
        .await
        .unwrap();
    assert_eq!(stale, Admitted::Lost);
    let fresh = ctx
        .store
        .admit(&waits, &slots, settings.version + 1, NOW)
        .await
        .unwrap();
    assert_eq!(fresh, Admitted::Yes);
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_changed_at_once_are_all_kept() {
    let (emulator, ctx) = stack().await;
    // As its operator has written it, and as nobody has written it.
    ctx.store.ensure_org(ORG, "before").await.unwrap();
    for org in [ORG, Uuid::from_u128(9)] {
        let (a, b, c) = tokio::join!(
            ctx.store
                .change_org(org, NOW, |org| org.name = "after".to_owned()),
            ctx.store.change_org(org, NOW, |org| org.billing_limit = Some(5)),
            ctx.store
                .change_org(org, NOW, |org| org.limit_concurrency(Some(4), NOW)),
        );
        let versions: BTreeSet<u64> = [a, b, c].map(|org| org.unwrap().version).into();
        assert_eq!(versions, BTreeSet::from([1, 2, 3]));
        let now = ctx.store.org(org).await.unwrap();
        assert_eq!(
            (now.name.as_str(), now.billing_limit, now.call_slots(10)),
            ("after", Some(5), 4)
        );
        let same = ctx
            .store
            .change_org(org, LATER, |org| org.billing_limit = Some(5))
            .await
            .unwrap();
        assert_eq!(same, now, "what changes nothing is not written");
    }
    ctx.store.ensure_org(ORG, "again").await.unwrap();
    assert_eq!(ctx.store.org(ORG).await.unwrap().name, "after", "it is made once");
    emulator.shutdown().await;
}

// --- Turns ------------------------------------------------------------------------------------------------------------

/// What the stream has told until there is a record of each of these runs.
async fn records(emulator: &Emulator, runs: BTreeSet<String>) -> Vec<EventRecord> {
    let kept: Arc<Mutex<Vec<EventRecord>>> = Arc::default();
    let (switch, stop) = Stop::new();
    let keep = Arc::clone(&kept);
    let feed = feed_stream(
        emulator.stream(),
        StreamMapping::new("relay", "table"),
        move |event, _| {
            keep.lock().unwrap().extend(event.records);
            async { Ok(DynamoDbEventResponse::default()) }
        },
        stop,
    );
    let told = until("the records", LONG, async || {
        let kept = kept.lock().unwrap();
        let heads: BTreeSet<String> = kept.iter().filter_map(run_of).collect();
        runs.is_subset(&heads).then(|| kept.clone())
    });
    let told = tokio::select! {
        () = feed => panic!("the stream ended"),
        told = told => told,
    };
    drop(switch);
    told
}

/// The run whose head a record is about.
fn run_of(record: &EventRecord) -> Option<String> {
    let head = head_from_image(record.change.new_image.clone()).ok()?;
    Some(head.id.to_string())
}

async fn head(ctx: &Context, run: &NewRun) -> RunHead {
    ctx.store
        .run(RunKey::simulation(run.org, run.id))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_organizations_large_runs_do_not_hold_up_anothers() {
    let (emulator, ctx) = stack().await;
    let new = |org: u128, iterations: u32| NewRun {
        org: Uuid::from_u128(org),
        ..new_run(2, iterations)
    };
    // The noisy one's come first, whichever way one goes through them.
    let noisy: Vec<NewRun> = (0..12).map(|_| new(1, 20_000)).collect();
    // Two steps' worth, which a busy machine does in a turn as well.
    let quiet = new(2, 50);
    for run in noisy.iter().chain([&quiet]) {
        assert!(matches!(
            ctx.store.create_run(run, NOW).await.unwrap(),
            Created::New(_)
        ));
    }
    let all = noisy
        .iter()
        .chain([&quiet])
        .map(|run| run.id.to_string())
        .collect();
    let mut event = Event::default();
    event.records = records(&emulator, all).await;

    // How many of the noisy one's runs have had a turn when the quiet one's is there as a whole.
    let before_it = async {
        until("the quiet one's items", LONG, async || {
            (head(&ctx, &quiet).await.expanded == 100).then_some(())
        })
        .await;
        let heads = join_all(noisy.iter().map(|run| head(&ctx, run))).await;
        heads.iter().filter(|head| head.expanded > 0).count()
    };
    let began = Instant::now();
    let handled = async {
        ringback_relay::handle(&ctx, event, soon()).await.unwrap();
        began.elapsed()
    };
    let (before_it, took) = tokio::join!(before_it, handled);
    assert!(before_it <= 6, "{before_it} of 12 runs went before it");
    assert!(took < Duration::from_secs(30), "the next batch waited {took:?}");
    // What is not done goes on with the records of what was.
    let heads = join_all(noisy.iter().map(|run| head(&ctx, run))).await;
    assert!(heads.iter().all(|head| head.expanded > 0));
    assert!(
        heads.iter().any(|head| head.expanded < head.total),
        "there was too little to do"
    );
    emulator.shutdown().await;
}

// --- End to end -------------------------------------------------------------------------------------------------------

/// Another organization's client.
async fn stranger(local: &Local, api: &Api) -> (Uuid, Api) {
    let (org, key) = (Uuid::now_v7(), format!("rb_{}", Uuid::now_v7().simple()));
    let store = &local.context().store;
    store.ensure_org(org, "strangers").await.unwrap();
    store
        .put_api_key(org, "test", &ids::sha256_hex(key.as_bytes()))
        .await
        .unwrap();
    let api = Api {
        key: Some(key),
        ..api.clone()
    };
    (org, api)
}

/// The path of the caller's organization.
async fn org_path(api: &Api) -> String {
    let listed = api.get("/org").await;
    let [org] = list(&listed) else {
        panic!("one organization: {listed:#}")
    };
    format!("/org/{}", text(&org["id"]))
}

async fn set(api: &Api, path: &str, change: Value) -> Value {
    let (status, org) = api.call(Method::PATCH, path, Some(&change)).await;
    assert_eq!(status, 200, "{org:#}");
    org
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_sets_its_own_limits_and_no_others() {
    let (local, api) = local(&StandIn::start().await).await;
    let path = org_path(&api).await;
    let org = api.get(&path).await;
    assert_eq!(
        (
            &org["name"],
            &org["concurrencyLimit"],
            &org["billingLimit"],
            micros(&org["spentThisMonth"])
        ),
        (&json!("local"), &Value::Null, &Value::Null, 0)
    );
    let default = api.get(CONCURRENCY).await;
    assert_valid("SimulationConcurrencyResponse", &default);
    assert_eq!(
        (
            &default["concurrencyLimit"],
            &default["isDefault"],
            &default["createdAt"],
            &default["updatedAt"]
        ),
        (&json!(10), &json!(true), &Value::Null, &Value::Null)
    );

    let change = json!({"name": "Clinic", "concurrencyLimit": 5.0, "billingLimit": 12.5});
    let changed = set(&api, &path, change.clone()).await;
    for (name, value) in change.as_object().unwrap() {
        assert_eq!(changed[name].as_f64(), value.as_f64(), "{name}");
    }
    assert_eq!(changed["name"], "Clinic");
    let own = api.get(CONCURRENCY).await;
    assert_valid("SimulationConcurrencyResponse", &own);
    assert_eq!(
        (
            &own["concurrencyLimit"],
            &own["isDefault"],
            &own["availableToStart"],
            &own["createdAt"]
        ),
        (&json!(5), &json!(false), &json!(2), &own["updatedAt"])
    );
    assert!(own["createdAt"].is_string());
    // What a client has read it may send back.
    assert_eq!(set(&api, &path, changed.clone()).await, changed);
    let more = set(&api, &path, json!({"concurrencyLimit": 6})).await;
    assert_eq!(
        (&more["name"], &more["billingLimit"]),
        (&json!("Clinic"), &json!(12.5))
    );
    assert_eq!(api.get(CONCURRENCY).await["createdAt"], own["createdAt"]);
    set(
        &api,
        &path,
        json!({"concurrencyLimit": null, "billingLimit": null}),
    )
    .await;
    let back = api.get(CONCURRENCY).await;
    assert_eq!(back, default);

    for wrong in [
        json!({"name": "n".repeat(41)}),
        json!({"concurrencyLimit": 1}),
        json!({"concurrencyLimit": 1001}),
        json!({"concurrencyLimit": 2.5}),
        json!({"billingLimit": -1}),
        json!({"billing_limit": 5}),
    ] {
        let (status, body) = api.call(Method::PATCH, &path, Some(&wrong)).await;
        assert_eq!(
            (status, &body["error"], &body["statusCode"]),
            (400, &json!("Bad Request"), &json!(400))
        );
        let field = wrong.as_object().unwrap().keys().next().unwrap();
        assert!(body["message"].to_string().contains(field), "{body:#}");
    }

    // Another's is not there, and its own is as it was.
    let (org, stranger) = stranger(&local, &api).await;
    let foreign = format!("/org/{org}");
    for method in [Method::GET, Method::PATCH] {
        for (api, path) in [(&api, foreign.as_str()), (&stranger, &path), (&api, "/org/none")] {
            let (status, body) = api
                .call(method.clone(), path, Some(&json!({"concurrencyLimit": 2})))
                .await;
            assert_eq!(
                (status, &body["error"]),
                (404, &json!("Not Found")),
                "{method} {path}"
            );
        }
    }
    assert_eq!(stranger.get(CONCURRENCY).await["isDefault"], true);
    assert_eq!(org_path(&stranger).await, foreign);
    local.shutdown().await;
}

/// Every call of a model of [`PRICES`] costs this much, in millionths of a dollar: the stand-in counts 3 and 2 tokens.
const CALL: i64 = 4_000;
const PRICES: &str = r#"{"stand-in": {"prompt": 1000, "completion": 500}}"#;

/// A run whose items are judged by a model.
fn judged_run(stand_in: &StandIn, iterations: u32) -> Value {
    stand_in.judge("booked", json!(true));
    let scenario = scenario(
        "paid",
        2,
        json!([evaluation("booked", "boolean", "=", json!(true))]),
    );
    run(
        json!([inline(&scenario, &personality("Pat"))]),
        inline_target(&assistant(stand_in, "You run a clinic.")),
        iterations,
    )
}

#[track_caller]
fn assert_refused(status: u16, body: &Value, org: &str) {
    assert_eq!(status, 402, "{body:#}");
    let names: BTreeSet<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["message", "reason", "statusCode"]));
    assert_eq!(
        (&body["statusCode"], &body["reason"]),
        (&json!(402), &json!("billing_limit"))
    );
    assert!(
        text(&body["message"]).contains(&format!("PATCH {org}")),
        "{body:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_above_the_spending_cap_is_refused() {
    let stand_in = StandIn::start().await;
    let server = Server::start_with(&stand_in, &[], &[("MODEL_PRICES", PRICES)]).await;
    let api = &server.api;
    let path = org_path(api).await;
    set(api, &path, json!({"billingLimit": 0.01})).await;
    let body = judged_run(&stand_in, 2);
    let create = async |key: &str, body: &Value| {
        let request = api.request(Method::POST, RUNS).header("Idempotency-Key", key);
        let answer = request.json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, created) = create("first", &body).await;
    assert_eq!((status, micros(&created["cost"])), (201, 0), "{created:#}");
    let run = text(&created["id"]);
    let done = ended(api, run).await;
    assert_valid("SimulationRun", &done);

    // Every call is on an item's bill, and the run's cost is the sum.
    let spent = CALL * i64::try_from(stand_in.count()).unwrap();
    assert_eq!(micros(&done["cost"]), spent);
    assert_eq!(done.get("costsUnknown"), None);
    assert_eq!(micros(&api.get(&path).await["spentThisMonth"]), spent);
    let all = items(api, run, 10).await;
    assert_items_valid(&all);
    assert_eq!(all.iter().map(|item| micros(&item["cost"])).sum::<i64>(), spent);
    let mut tokens: BTreeMap<String, u64> = BTreeMap::new();
    for item in &all {
        assert_eq!(item.get("costsUnknown"), None, "{item:#}");
        let lines = list(&item["costs"]);
        let purposes: Vec<&str> = lines.iter().map(|line| text(&line["purpose"])).collect();
        assert_eq!(purposes, ["tester", "target", "judge"]);
        for line in lines {
            assert_eq!(
                (&line["type"], &line["model"]),
                (&json!("model"), &json!("stand-in"))
            );
            let prompt = line["promptTokens"].as_u64().unwrap();
            assert_eq!(line["completionTokens"].as_u64().unwrap(), prompt / 3 * 2);
            assert_eq!(micros(&line["cost"]), CALL * i64::try_from(prompt / 3).unwrap());
            *tokens.entry(text(&line["purpose"]).to_owned()).or_default() += prompt;
        }
    }
    for (purpose, role) in [
        ("tester", Role::Tester),
        ("target", Role::Target),
        ("judge", Role::Judge),
    ] {
        assert_eq!(tokens[purpose], 3 * stand_in.count_of(role) as u64, "{purpose}");
    }

    // As much as the limit is spent: nothing new is started, and what was created before is answered as before.
    assert!(spent >= 10_000);
    let (status, refused) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_refused(status, &refused, &path);
    let (status, refused) = create("second", &body).await;
    assert_refused(status, &refused, &path);
    let extract = json!({
        "previewEnabled": true,
        "callIds": [created["simulationRunItemIds"][0]],
        "structuredOutput": {"name": "booked", "schema": {"type": "boolean"}},
    });
    for (start, body) in [
        (format!("{RUNS}/{run}/rerun"), json!({"items": "all"})),
        (format!("{RUNS}/{run}/evaluate"), json!({})),
        ("/structured-output/run".to_owned(), extract.clone()),
    ] {
        let (status, refused) = api.call(Method::POST, &start, Some(&body)).await;
        assert_refused(status, &refused, &path);
    }
    assert_eq!(create("first", &body).await, (201, created.clone()));
    let (status, _) = create("first", &judged_run(&stand_in, 1)).await;
    assert_eq!(status, 409);
    let listed = api.get(RUNS).await;
    assert_eq!(list(&listed).len(), 1);
    assert_eq!(micros(&listed[0]["cost"]), spent);

    // Exactly the limit is too much, a millionth below it is not.
    #[expect(clippy::cast_precision_loss, reason = "a few cents")]
    let limit = |micros: i64| json!({"billingLimit": micros as f64 / 1e6});
    set(api, &path, limit(spent)).await;
    assert_eq!(create("second", &body).await.0, 402);
    set(api, &path, limit(spent + 1)).await;
    let (status, second) = create("second", &body).await;
    assert_eq!(status, 201, "a refused request has not used up its key");
    ended(api, text(&second["id"])).await;
    let spent = CALL * i64::try_from(stand_in.count()).unwrap();
    assert_eq!(micros(&api.get(&path).await["spentThisMonth"]), spent);
    assert_eq!(create("third", &body).await.0, 402);
    set(api, &path, json!({"billingLimit": null})).await;
    let (status, third) = create("third", &body).await;
    assert_eq!(status, 201);
    ended(api, text(&third["id"])).await;
    // What a request waits for belongs to no item, and is paid for all the same.
    let before = micros(&api.get(&path).await["spentThisMonth"]);
    let (status, extracted) = api
        .call(Method::POST, "/structured-output/run", Some(&extract))
        .await;
    assert_eq!(status, 200, "{extracted:#}");
    assert_eq!(micros(&api.get(&path).await["spentThisMonth"]), before + CALL);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_canceled_conversation_had_cost_is_counted() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        options
            .settings
            .insert("MODEL_PRICES".to_owned(), PRICES.to_owned());
    })
    .await;
    let path = org_path(&api).await;
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &simple_run(&stand_in, "stopped", 2, 3)).await;
    let run = format!("{RUNS}/{}", text(&created["id"]));
    until("three targets to hang", LONG, async || {
        (stand_in.count_of(Role::Target) == 3).then_some(())
    })
    .await;
    assert_eq!(
        micros(&api.get(&path).await["spentThisMonth"]),
        0,
        "nothing is over yet"
    );
    api.patch(&run).await;
    // Each tester has said something; the targets' answers never came.
    until("the workers to say what it cost", LONG, async || {
        let spent = micros(&api.get(&path).await["spentThisMonth"]);
        assert!(spent <= 3 * CALL, "{spent}");
        (spent == 3 * CALL).then_some(())
    })
    .await;
    until("the run to show it", LONG, async || {
        (micros(&api.get(&run).await["cost"]) == 3 * CALL).then_some(())
    })
    .await;
    let all = items(&api, text(&created["id"]), 10).await;
    for item in &all {
        assert_eq!(
            (&item["status"], micros(&item["cost"])),
            (&json!("canceled"), CALL)
        );
    }
    // And those that fail.
    stand_in.release();
    stand_in.fail(Role::Target, usize::MAX, Fault::Status(400));
    let failed = api.post(RUNS, &simple_run(&stand_in, "failed", 2, 2)).await;
    let failed = ended(&api, text(&failed["id"])).await;
    assert_eq!(micros(&failed["cost"]), 2 * CALL);
    assert_eq!(micros(&api.get(&path).await["spentThisMonth"]), 5 * CALL);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_that_are_not_known_are_named_and_not_counted() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let path = org_path(&api).await;
    set(&api, &path, json!({"billingLimit": 0.000_001})).await;
    let body = judged_run(&stand_in, 1);
    let created = api.post(RUNS, &body).await;
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(
        (micros(&done["cost"]), &done["costsUnknown"]),
        (0, &json!(["stand-in"]))
    );
    let all = items(&api, text(&created["id"]), 10).await;
    assert_eq!(all[0]["costsUnknown"], json!(["stand-in"]));
    for line in list(&all[0]["costs"]) {
        assert_eq!(line["cost"], Value::Null, "{line:#}");
        assert!(line["promptTokens"].as_u64().unwrap() > 0);
    }
    assert_eq!(micros(&api.get(&path).await["spentThisMonth"]), 0);
    let second = api.post(RUNS, &body).await;
    ended(&api, text(&second["id"])).await;
    // A limit of nothing lets nothing start.
    set(&api, &path, json!({"billingLimit": 0})).await;
    let (status, refused) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_refused(status, &refused, &path);
    assert!(text(&refused["message"]).contains("MODEL_PRICES"));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_start_when_the_limit_is_raised() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        options.settings.insert("CALL_SLOTS".to_owned(), "2".to_owned());
        options
            .settings
            .insert("MODEL_PRICES".to_owned(), PRICES.to_owned());
    })
    .await;
    let path = org_path(&api).await;
    let endpoint = endpoint(&api, &provider).await;
    let created = api
        .post(RUNS, &by_voice(judged_run(&stand_in, 8), &endpoint))
        .await;
    let calls = provider.wait_for("a call", |calls| !calls.is_empty()).await;
    assert_eq!(calls.len(), 1);
    let slots = async || {
        let slots = api.get(CONCURRENCY).await;
        assert_valid("SimulationConcurrencyResponse", &slots);
        ["concurrencyLimit", "activeSimulations", "availableToStart"]
            .map(|name| slots[name].as_f64().unwrap())
    };
    assert_eq!(slots().await, [2.0, 2.0, 0.0]);

    // Nothing else happens that would make anybody look.
    set(&api, &path, json!({"concurrencyLimit": 6})).await;
    let calls = provider.wait_for("three calls", |calls| calls.len() == 3).await;
    assert_eq!(slots().await, [6.0, 6.0, 0.0]);

    // Lowered below what is held: nothing is taken away and nothing new starts.
    set(&api, &path, json!({"concurrencyLimit": 2})).await;
    assert_eq!(slots().await, [2.0, 6.0, 0.0]);
    for (over, held) in [(0, 4.0), (1, 2.0)] {
        assert_eq!(provider.send_ended(&calls[over].id).await, 200);
        until("the slots to be given back", LONG, async || {
            (slots().await[1] == held).then_some(())
        })
        .await;
    }
    assert_eq!((provider.calls().len(), slots().await), (3, [2.0, 2.0, 0.0]));
    provider.auto(Auto::Both { talk_ms: 0 });
    assert_eq!(provider.send_ended(&calls[2].id).await, 200);
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(provider.most_up(), 3);

    // The provider said what each call cost, and a model judged it.
    let all = items(&api, text(&created["id"]), 10).await;
    assert_eq!(all.len(), 8);
    for item in &all {
        assert_eq!(micros(&item["cost"]), 42_000 + CALL, "{item:#}");
        let lines = list(&item["costs"]);
        let kinds: Vec<&str> = lines.iter().map(|line| text(&line["type"])).collect();
        assert_eq!(kinds, ["model", "call"]);
        assert_eq!(micros(&lines[1]["cost"]), 42_000);
    }
    assert_eq!(micros(&done["cost"]), 8 * (42_000 + CALL));
    assert_eq!(
        micros(&api.get(&path).await["spentThisMonth"]),
        8 * (42_000 + CALL)
    );
    local.shutdown().await;
}
