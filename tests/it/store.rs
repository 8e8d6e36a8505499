//! What the store promises, on the embedded stack: one winner in every race, documents whole, nothing twice.

use std::{
    collections::BTreeSet,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use futures_util::future::join_all;
use proptest::prelude::*;
use ringback_local::emulator::{Emulator, Storage};
use ringback_shared::{
    batch::{self, Outcome},
    clock::{Deadline, SharedClock, SystemClock},
    config::Config,
    context::{Context, Parts},
    ids,
    lifecycle::{Ended, Fact, Facts, Failure, HookEvent, Item, Refused, Source, State, Tally},
    listeners::{Listener, Shape, Wanted},
    progress,
    queue::Message,
    secrets::{LocalSecrets, Secrets},
    store::{
        Created, HookKey, ItemKey, Kind, ListQuery, Manifest, NewRun, PARTITION, Receivers, RunHead, RunKey,
        RunKind, RunOwed, RunState, SimulationRef, Snapshot, TransitionError, schema,
    },
};
use serde_json::json;
use uuid::Uuid;

pub(crate) const NOW: i64 = 1_774_522_365_565;
pub(crate) const ORG: Uuid = Uuid::from_u128(7);

/// A table of its own, with nobody at work on it.
pub(crate) async fn stack() -> (Emulator, Context) {
    stack_at(Arc::new(SystemClock)).await
}

/// The same, at a time of its own.
pub(crate) async fn stack_at(clock: SharedClock) -> (Emulator, Context) {
    let emulator = Emulator::start(Storage::Memory).await.unwrap();
    schema::create_table(&emulator.dynamodb(), "table").await.unwrap();
    let queue = emulator
        .create_queue("items", Duration::from_secs(30))
        .await
        .unwrap();
    let config = Config::read(&|name| match name {
        "TABLE_NAME" => Some("table".to_owned()),
        "RUN_ITEMS_QUEUE_URL" | "EVALUATIONS_QUEUE_URL" | "DELIVERIES_QUEUE_URL" => Some(queue.url.clone()),
        "DEAD_LETTERS_QUEUE_URL" => Some(queue.dead_letter_url.clone()),
        "SECRETS_PREFIX" => Some("ringback".to_owned()),
        "PUBLIC_URL" => Some("http://localhost".to_owned()),
        _ => None,
    })
    .unwrap();
    let (dynamodb, sqs) = (
        emulator.dynamodb().config().clone(),
        emulator.sqs().config().clone(),
    );
    let context = Context::new(Parts {
        dynamodb,
        sqs,
        config,
        clock,
        metrics: ringback_shared::metrics::Metrics::default(),
        secrets: Secrets::new(Arc::new(LocalSecrets::default())),
    });
    (emulator, context)
}

pub(crate) fn new_run(simulations: u32, iterations: u32) -> NewRun {
    let snapshot = Snapshot {
        scenario: json!({"name": "s"}),
        personality: json!({"name": "p"}),
        simulation: json!({}),
        outputs: serde_json::Map::new(),
        metrics: serde_json::Map::new(),
        eval: serde_json::Value::Null,
    };
    let reference = || SimulationRef {
        simulation_id: Uuid::now_v7(),
        scenario_id: None,
        personality_id: None,
    };
    NewRun {
        id: ids::new_id(NOW),
        org: ORG,
        kind: RunKind::Simulation,
        iterations,
        transport: "vapi.webchat".to_owned(),
        endpoint: None,
        cap: None,
        target_type: "assistant".to_owned(),
        target_id: None,
        manifest: Manifest {
            simulations: json!([]),
            target: json!({}),
            refs: (0..simulations).map(|_| reference()).collect(),
            notify: Receivers::default(),
            label: serde_json::Map::new(),
        },
        target: json!({}),
        snapshots: vec![snapshot; simulations as usize],
        origin: None,
        idempotency: None,
        firing: None,
        trace: None,
    }
}

/// A run whose items are all stored; gives them.
async fn items(ctx: &Context, simulations: u32, iterations: u32) -> Vec<Item> {
    items_of(ctx, &new_run(simulations, iterations)).await
}

/// The same for any run.
pub(crate) async fn items_of(ctx: &Context, run: &NewRun) -> Vec<Item> {
    let Created::New(head) = ctx.store.create_run(run, NOW).await.unwrap() else {
        panic!("a run like this was there before");
    };
    let head = progress::expand_until(ctx, *head, u32::MAX, Deadline::after(Duration::from_secs(60)))
        .await
        .unwrap();
    ctx.store.items_from(head.id, 0, head.total).await.unwrap()
}

fn failed<T>(result: &Result<T, TransitionError>) -> Option<Refused> {
    match result {
        Err(TransitionError::Refused { why, .. }) => Some(*why),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_race_has_one_winner() {
    let (emulator, ctx) = stack().await;
    let all = items(&ctx, 3, 10).await;

    // Thirty-two workers for one item.
    let claims = join_all((0..32).map(|n| {
        ctx.store.transition(all[0].clone(), move |item| {
            item.claim(&format!("worker {n}"), 1000, NOW)
        })
    }))
    .await;
    let winner = claims.iter().flatten().collect::<Vec<_>>();
    assert_eq!(winner.len(), 1);
    assert_eq!(
        claims
            .iter()
            .filter(|claim| failed(claim) == Some(Refused::Held))
            .count(),
        31
    );
    let lost = claims.iter().find_map(|claim| match claim {
        Err(TransitionError::Refused { item, .. }) => Some(item),
        _ => None,
    });
    assert_eq!(lost.unwrap().lease, winner[0].lease, "the losers see who won");

    // Thirty-two decisions, one half against the other.
    let held = winner[0].clone();
    let owner = held.lease.clone().unwrap().owner;
    let failure = Failure::new("no", None);
    let decisions = join_all((0..32).map(|n| {
        let (owner, failure) = (owner.clone(), failure.clone());
        let decide = move |item: &Item| {
            if n % 2 == 0 {
                item.cancel(NOW)
            } else {
                item.fail(&owner, &failure, NOW)
            }
        };
        ctx.store.transition(held.clone(), decide)
    }))
    .await;
    let won = decisions.iter().flatten().collect::<Vec<_>>();
    assert_eq!(won.len(), 1);
    let at = ItemKey::of(&held);
    assert_eq!(
        ctx.store.item(at).await.unwrap().as_ref(),
        Some(won[0]),
        "the first one stays"
    );

    // Two at a time on each of many items, and observations: every write has a version of its own.
    for item in &all[1..9] {
        let writes = join_all((0..2).map(|n| {
            ctx.store.transition(item.clone(), move |item| {
                Ok(item.observe(Facts::started(Source::Report, NOW + n), NOW))
            })
        }))
        .await;
        let versions: BTreeSet<u64> = writes
            .iter()
            .map(|write| write.as_ref().unwrap().version)
            .collect();
        assert_eq!(versions, BTreeSet::from([2, 3]));
    }
    let many = join_all((0..8).map(|n| {
        ctx.store.transition(all[9].clone(), move |item| {
            Ok(item.observe(Facts::started(Source::Report, NOW + n), NOW))
        })
    }))
    .await;
    let last = ctx
        .store
        .item(ItemKey {
            run: held.run,
            index: 9,
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        last.version,
        1 + many.iter().flatten().count() as u64,
        "none is lost"
    );
    assert_eq!(many.iter().flatten().count(), 8);
    assert_eq!(last.started_at(), Some(NOW + 7));
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_appended_once_and_large_documents_come_back_whole() {
    let (emulator, ctx) = stack().await;
    let all = items(&ctx, 1, 2).await;
    let id = all[0].id();
    // Small ones and one that needs several rows, each by eight writers at once.
    let bodies = |size: usize| {
        (0..8)
            .map(move |n| json!({"n": n, "text": "ü€".repeat(size)}).to_string())
            .collect::<Vec<_>>()
    };
    let mut kept = Vec::new();
    for (n, size) in [(0, 1), (1, 150_000), (2, 10)] {
        let bodies = bodies(size);
        let appended = join_all(bodies.iter().map(|body| ctx.store.append_turn(id, n, body))).await;
        let won: Vec<_> = appended
            .iter()
            .zip(&bodies)
            .filter(|(result, _)| result.is_ok())
            .map(|(_, body)| body)
            .collect();
        assert_eq!(won.len(), 1);
        assert!(
            appended
                .iter()
                .all(|result| result.as_ref().err().is_none_or(|error| error.is_duplicate()))
        );
        kept.push(won[0].clone());
    }
    assert_eq!(ctx.store.item_detail(id).await.unwrap().turns, kept);

    // The verdict with its large result: one of three judges writes both, whole.
    let ended = ctx
        .store
        .transition(all[0].clone(), |item| {
            Ok(item.observe(Facts::ended(Source::Report, NOW, "done"), NOW))
        })
        .await
        .unwrap();
    let held = ctx
        .store
        .transition(ended, |item| item.claim_evaluation("judge", 1000, NOW))
        .await
        .unwrap();
    let results: Vec<String> = (0..3).map(|n| n.to_string().repeat(900_000)).collect();
    let verdicts = join_all(results.iter().map(|result| {
        ctx.store
            .conclude(held.clone(), |item| item.decide("judge", Ok(()), NOW), result)
    }))
    .await;
    assert_eq!(verdicts.iter().flatten().count(), 1);
    let at = verdicts.iter().position(Result::is_ok).unwrap();
    assert_eq!(verdicts[at].as_ref().unwrap().state, State::Passed);
    assert_eq!(
        ctx.store.item_detail(id).await.unwrap().result.as_ref(),
        Some(&results[at])
    );
    assert_eq!(
        ctx.store.item_result(id).await.unwrap().as_ref(),
        Some(&results[at])
    );
    assert_eq!(ctx.store.item_result(all[1].id()).await.unwrap(), None);
    assert_eq!(
        ctx.store.item_detail(all[1].id()).await.unwrap(),
        Default::default()
    );
    assert!(
        ctx.store.append_turn(all[1].id(), 0, "x").await.is_ok(),
        "turns are each item's own"
    );

    // What a run was asked for.
    let mut large = new_run(3, 10);
    let text = "☎".repeat(200_000);
    large.manifest.target = json!({"assistant": text});
    large.target = json!({"assistant": text, "snapshot": true});
    for (n, snapshot) in large.snapshots.iter_mut().enumerate() {
        snapshot.scenario = json!({"n": n, "text": text});
    }
    assert!(matches!(
        ctx.store.create_run(&large, NOW).await.unwrap(),
        Created::New(_)
    ));
    assert_eq!(ctx.store.manifest(large.id).await.unwrap(), large.manifest);
    assert_eq!(ctx.store.target(large.id).await.unwrap(), large.target);
    for n in 0..3 {
        assert_eq!(
            ctx.store.snapshot(large.id, n).await.unwrap(),
            large.snapshots[n as usize]
        );
    }
    // A definition that is too large says so.
    let refused = ctx
        .store
        .create_definition(ORG, Kind::Scenario, Uuid::now_v7(), json!({"text": text}), &[])
        .await;
    assert!(refused.unwrap_err().to_string().contains("KB"));
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_created_once_per_key() {
    let (emulator, ctx) = stack().await;
    let with_key = |key: &str, request: &str| {
        let idempotency = Some((key.to_owned(), request.to_owned()));
        NewRun {
            idempotency,
            ..new_run(2, 10)
        }
    };
    let created = join_all((0..8).map(|_| {
        let new = with_key("key", "request");
        let ctx = &ctx;
        async move { ctx.store.create_run(&new, NOW).await.unwrap() }
    }))
    .await;
    let made: Vec<_> = created
        .iter()
        .filter_map(|c| {
            if let Created::New(head) = c {
                Some(head)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(made.len(), 1);
    let before = created
        .iter()
        .filter(|c| **c == Created::Before(made[0].id))
        .count();
    assert_eq!(before, 7);
    let query = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: true,
        after: None,
        limit: 100,
    };
    assert_eq!(
        ctx.store
            .list_runs(ORG, RunKind::Simulation, &query)
            .await
            .unwrap()
            .entries
            .len(),
        1
    );
    assert_eq!(
        ctx.store
            .create_run(&with_key("key", "another"), NOW)
            .await
            .unwrap(),
        Created::OtherRequest
    );
    assert!(matches!(
        ctx.store
            .create_run(&with_key("key 2", "request"), NOW)
            .await
            .unwrap(),
        Created::New(_)
    ));
    // After a day the key is free, whether or not the row was deleted by then.
    let day = 24 * 3_600_000;
    assert_eq!(
        ctx.store
            .create_run(&with_key("key", "request"), NOW + day - 2000)
            .await
            .unwrap(),
        Created::Before(made[0].id)
    );
    assert!(matches!(
        ctx.store
            .create_run(&with_key("key", "new"), NOW + day + 2000)
            .await
            .unwrap(),
        Created::New(_)
    ));
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_that_expand_a_run_at_once_store_each_item_once() {
    let (emulator, ctx) = stack().await;
    let Created::New(head) = ctx.store.create_run(&new_run(47, 9), NOW).await.unwrap() else {
        panic!("it is new")
    };
    assert_eq!((head.total, head.expanded), (423, 0));
    // One of them has seen it long ago, one goes only part of the way, as if it died there.
    let expand = |until: u32| {
        let (ctx, mut head) = (&ctx, (*head).clone());
        async move {
            while head.expanded < until {
                head = ctx.store.expand(&head, NOW).await.unwrap();
            }
            head
        }
    };
    let heads = join_all([expand(423), expand(423), expand(120), expand(423)]).await;
    assert!(heads.iter().filter(|head| head.expanded == 423).count() >= 3);
    let stored = ctx.store.items_from(head.id, 0, 1000).await.unwrap();
    assert_eq!(
        stored.iter().map(|item| item.index).collect::<Vec<_>>(),
        (0..423).collect::<Vec<_>>()
    );
    for item in &stored {
        assert_eq!(
            (item.simulation, item.iteration, item.version),
            (item.index / 9, item.index % 9 + 1, 1)
        );
    }
    // Somebody who still holds the first head changes nothing, not even an item that has moved on.
    let moved = ctx
        .store
        .transition(stored[3].clone(), |item| item.cancel(NOW))
        .await
        .unwrap();
    let again = ctx.store.expand(&head, NOW).await.unwrap();
    assert_eq!(again.expanded, 423);
    assert_eq!(
        ctx.store
            .item(ItemKey {
                run: head.id,
                index: 3
            })
            .await
            .unwrap(),
        Some(moved)
    );
    emulator.shutdown().await;
}

/// Something that is observed of a conversation.
fn observation() -> impl Strategy<Value = Facts> {
    let source = prop_oneof![Just(Source::Inferred), Just(Source::LookUp), Just(Source::Report)];
    (source, 0..4_u8, 0..5_i64).prop_map(|(source, kind, n)| match kind {
        0 => Facts::started(source, NOW + n),
        1 => Facts {
            ended: Some(Fact {
                source,
                value: Ended {
                    at: NOW + n,
                    reason: n.to_string(),
                    fault: None,
                },
            }),
            ..Facts::default()
        },
        2 => Facts {
            cost: Some(Fact { source, value: n }),
            ..Facts::default()
        },
        _ => Facts::call(source, &n.to_string()),
    })
}

/// A history, and the same in another order with some of it doubled.
fn histories() -> impl Strategy<Value = (Vec<Facts>, Vec<Facts>)> {
    prop::collection::vec(observation(), 1..8).prop_flat_map(|history| {
        let again = prop::collection::vec(prop::sample::select(history.clone()), 0..4);
        (
            Just(history.clone()),
            again.prop_flat_map(move |again| Just([history.clone(), again].concat()).prop_shuffle()),
        )
    })
}

#[test]
fn observations_make_the_same_item_in_every_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (emulator, ctx) = runtime.block_on(stack());
    let all = runtime.block_on(items(&ctx, 20, 10));
    let used = AtomicUsize::new(0);
    let config = ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((history, shuffled) in histories(), cancel in any::<Option<prop::sample::Index>>())| {
        let at = used.fetch_add(2, Ordering::Relaxed) % all.len();
        let (one, two) = runtime.block_on(async {
            let (mut one, mut two) = (fresh(&ctx, &all[at]).await, fresh(&ctx, &all[at + 1]).await);
            for facts in &history {
                one = ctx.store.transition(one, |item| Ok(item.observe(facts.clone(), NOW))).await.unwrap();
            }
            if cancel.is_some() {
                one = ctx.store.transition(one, |item| item.cancel(NOW)).await.unwrap();
            }
            // The other one all at once, with the cancellation somewhere in between.
            let first = two.clone();
            let cut = cancel.map_or(shuffled.len(), |cancel| cancel.index(shuffled.len() + 1));
            for facts in &shuffled[..cut] {
                let before = two.state;
                two = ctx.store.transition(two, |item| Ok(item.observe(facts.clone(), NOW))).await.unwrap();
                assert!(two.state >= before, "never back");
            }
            if cancel.is_some() {
                two = ctx.store.transition(two, |item| item.cancel(NOW)).await.unwrap();
            }
            join_all(shuffled[cut..].iter().map(async |facts| loop {
                // From an old copy of the item. Who meets too many others tries again, as a message would.
                match ctx.store.transition(first.clone(), |item| Ok(item.observe(facts.clone(), NOW))).await {
                    Err(TransitionError::Store(error)) if error.is_throttled() => {}
                    written => break written.unwrap(),
                }
            })).await;
            let at = ItemKey::of(&two);
            (one, ctx.store.item(at).await.unwrap().unwrap())
        });
        prop_assert_eq!(&one.facts, &two.facts);
        prop_assert_eq!((one.state, one.owed), (two.state, two.owed));
        prop_assert_eq!(one.state == State::Canceled, cancel.is_some());
    });
    runtime.block_on(emulator.shutdown());
}

/// The item as it is stored, or, when a case before has used it, one that is written anew.
async fn fresh(ctx: &Context, item: &Item) -> Item {
    let stored = ctx.store.item(ItemKey::of(item)).await.unwrap().unwrap();
    if stored.version == 1 {
        return stored;
    }
    let blank = Item {
        version: stored.version + 1,
        ..item.clone()
    };
    ctx.store.transition(stored, |_| Ok(blank.clone())).await.unwrap()
}

/// A run that waits until somebody was told of it.
fn held_run() -> NewRun {
    let mut run = new_run(2, 3);
    run.cap = Some(2);
    run.manifest.notify.listeners.push(Listener {
        shape: Shape::Cekura,
        id: None,
        url: "https://example.com".to_owned(),
        wants: vec![Wanted::Before],
    });
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_run_begins_when_it_is_released_and_never_hangs() {
    let (emulator, ctx) = stack().await;
    let deadline = || Deadline::after(Duration::from_secs(60));
    let now = ctx.clock.now_ms();
    let run = NewRun {
        id: ids::new_id(now),
        ..held_run()
    };
    let Created::New(head) = ctx.store.create_run(&run, now).await.unwrap() else {
        panic!("a run like this was there before");
    };
    let as_held = |head: &RunHead| (head.is_held(), head.owed, head.expanded);
    assert_eq!(as_held(&head), (true, RunOwed::Release, 0));
    assert_eq!(ctx.store.waiting_runs(ORG).await.unwrap().len(), 0);
    let told = ctx.store.hook(&HookKey::of_run(run.id, HookEvent::RunHeld)).await;
    assert!(told.unwrap().unwrap().is_waiting());
    // Whoever looks after it leaves it as it is.
    let head = progress::advance(&ctx, *head, deadline()).await.unwrap();
    assert_eq!(as_held(&head), (true, RunOwed::Release, 0));
    let released = ctx.store.release_run(head.clone(), now).await.unwrap();
    assert_eq!(as_held(&released), (false, RunOwed::Expand, 0));
    assert_eq!(ctx.store.waiting_runs(ORG).await.unwrap().len(), 1);
    // Who comes late, with what was read before, changes nothing.
    assert_eq!(ctx.store.release_run(head.clone(), now).await.unwrap(), released);
    let withhold = |head: &mut RunHead| head.withhold("late", now);
    assert_eq!(ctx.store.change_run(head, now, withhold).await.unwrap(), released);
    let begun = progress::advance(&ctx, released, deadline()).await.unwrap();
    assert_eq!((begun.expanded, begun.owed), (6, RunOwed::Recount));

    // One that was made long ago, of which nobody came to an end of telling.
    let Created::New(old) = ctx.store.create_run(&held_run(), NOW).await.unwrap() else {
        panic!("a run like this was there before");
    };
    let over = progress::advance(&ctx, (*old).clone(), deadline()).await.unwrap();
    assert!(over.canceled_at.is_some() && over.withheld.is_some(), "{over:?}");
    progress::recount_all(&ctx, &over, deadline()).await.unwrap();
    let over = ctx.store.run(old.key()).await.unwrap().unwrap();
    assert_eq!(
        (over.state, over.counts.as_ref().map(|counts| counts.canceled)),
        (RunState::Ended, Some(6))
    );
    assert_eq!(ctx.store.release_run(*old, now).await.unwrap(), over);
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tallies_are_what_a_recount_gives() {
    let (emulator, ctx) = stack().await;
    let all = items(&ctx, 25, 10).await;
    let run = all[0].run;
    let total = u32::try_from(all.len()).unwrap();
    assert_eq!(
        ctx.store.tally(run, total).await.unwrap(),
        Tally::of(all.iter().map(Item::standing)),
        "what nobody counted is queued"
    );
    // Items move in all directions while others count.
    let step = |item: Item| {
        let (ctx, item_index) = (&ctx, item.index);
        async move {
            let kind = item_index % 7;
            if kind == 0 {
                return;
            }
            let mut item = ctx
                .store
                .transition(item, |item| item.claim("w", 1000, NOW))
                .await
                .unwrap();
            if kind > 1 {
                item = ctx
                    .store
                    .transition(item, |item| item.end_conversation("w", "done", NOW))
                    .await
                    .unwrap();
            }
            if kind > 2 {
                let next = ctx
                    .store
                    .transition(item, |item| item.claim_evaluation("w", 1000, NOW))
                    .await
                    .unwrap();
                let verdict = || {
                    if kind == 3 {
                        Err(Failure::new("no", None))
                    } else {
                        Ok(())
                    }
                };
                let decide = |item: &Item| {
                    if kind == 4 {
                        item.cancel(NOW)
                    } else {
                        item.decide("w", verdict(), NOW)
                    }
                };
                ctx.store.transition(next, decide).await.unwrap();
            }
            if item_index.is_multiple_of(5) {
                progress::recount(ctx, RunKey::simulation(ORG, run), item_index / PARTITION)
                    .await
                    .unwrap();
            }
        }
    };
    join_all(all.iter().cloned().map(step)).await;
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    progress::recount_all(&ctx, &head, Deadline::after(Duration::from_secs(60)))
        .await
        .unwrap();
    let now = ctx.store.items_from(run, 0, total).await.unwrap();
    let counted = ctx.store.tally(run, total).await.unwrap();
    assert_eq!(counted, Tally::of(now.iter().map(Item::standing)));
    assert!(
        counted.queued > 0
            && counted.running > 0
            && counted.passed > 0
            && counted.failed > 0
            && counted.canceled > 0
    );
    assert_eq!(
        ctx.store
            .run(RunKey::simulation(ORG, run))
            .await
            .unwrap()
            .unwrap()
            .ended_at,
        None
    );
    // A count of earlier items does not replace a later one.
    let (_, stored) = ctx.store.partition(run, 1).await.unwrap();
    let mut stale = stored.clone().unwrap();
    stale.versions -= 1;
    stale.tally.passed = 99;
    ctx.store.put_tally(run, 1, &stale).await.unwrap();
    assert_eq!(ctx.store.partition(run, 1).await.unwrap().1, stored);
    // When the last one is over, so is the run, once.
    for item in now.iter().filter(|item| !item.state.is_terminal()) {
        ctx.store
            .transition(item.clone(), |item| item.cancel(NOW))
            .await
            .unwrap();
    }
    join_all(
        (0..3)
            .cycle()
            .take(12)
            .map(|partition| progress::recount(&ctx, RunKey::simulation(ORG, run), partition)),
    )
    .await;
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(head.counts.as_ref().map(Tally::terminal), Some(total));
    progress::recount_all(&ctx, &head, Deadline::after(Duration::from_secs(60)))
        .await
        .unwrap();
    assert_eq!(
        ctx.store.run(RunKey::simulation(ORG, run)).await.unwrap(),
        Some(head)
    );
    emulator.shutdown().await;
}

fn record(id: &str, body: &str) -> SqsMessage {
    let mut message = SqsMessage::default();
    message.message_id = Some(id.to_owned());
    message.body = Some(body.to_owned());
    message
}

/// What is in the dead-letter queue: body, source and reason of each message.
async fn dead_letters(config: &Config, sqs: &aws_sdk_sqs::Client) -> Vec<(String, String, String)> {
    let url = config.dead_letters_queue_url.as_deref().unwrap();
    let mut all = Vec::new();
    loop {
        let received = sqs
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .send()
            .await
            .unwrap();
        if received.messages().is_empty() {
            return all;
        }
        all.extend(received.messages().iter().map(|message| {
            let attributes = message.message_attributes().unwrap();
            let text = |name: &str| attributes[name].string_value().unwrap().to_owned();
            (message.body().unwrap().to_owned(), text("source"), text("reason"))
        }));
    }
}

fn event(records: Vec<SqsMessage>) -> SqsEvent {
    let mut event = SqsEvent::default();
    event.records = records;
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_reports_what_to_repeat_and_sets_aside_what_never_succeeds() {
    let (emulator, ctx) = stack().await;
    let all = items(&ctx, 1, 10).await;
    let body = |n: usize| serde_json::to_string(&Message { item: all[n].clone() }).unwrap();
    let huge = format!("not a message {}", "x".repeat(700_000));
    let records = vec![
        record("done", &body(0)),
        record("again", &body(1)),
        record("panics", &body(2)),
        record("garbage", &huge),
        record("nothing", "null"),
        record("dropped", &body(3)),
        record("hangs", &body(4)),
        record("refused", &body(5)),
        record("done", &body(0)),
        record("also done", &body(6)),
    ];
    let worked = AtomicUsize::new(0);
    let work = |message: Message, _| {
        worked.fetch_add(1, Ordering::Relaxed);
        async move {
            match message.item.index {
                1 => Outcome::Retry("not now".to_owned()),
                2 => panic!("asked to"),
                3 => Outcome::Drop("too late"),
                4 => std::future::pending().await,
                5 => Outcome::Quarantine("never".to_owned()),
                _ => Outcome::Done,
            }
        }
    };
    // Two seconds are kept back for the answer.
    let deadline = Deadline::after(Duration::from_secs(8));
    let response = batch::process(&ctx, "items", event(records), deadline, work)
        .await
        .unwrap();
    let again: BTreeSet<_> = response
        .batch_item_failures
        .iter()
        .map(|failure| failure.item_identifier.as_str())
        .collect();
    assert_eq!(again, BTreeSet::from(["again", "hangs"]));
    assert_eq!(
        worked.load(Ordering::Relaxed),
        7,
        "a message that came twice is worked on once"
    );
    let aside = dead_letters(&ctx.config, &emulator.sqs()).await;
    let bodies: BTreeSet<_> = aside.iter().map(|(body, ..)| body.clone()).collect();
    assert_eq!(aside.len(), 4, "{aside:?}");
    assert_eq!(bodies.len(), 4, "{aside:?}");
    for (kept, reason) in [
        (body(2), "asked to"),
        (huge.clone(), "not a message"),
        ("null".to_owned(), "not a message"),
        (body(5), "never"),
    ] {
        let (_, source, why) = aside.iter().find(|(body, ..)| *body == kept).expect("kept whole");
        assert_eq!(source, "items");
        assert!(why.contains(reason), "{why}");
    }

    // An empty identifier would mean that all of the batch failed, so it is never given.
    let records = vec![record("", &body(0)), record("x", &body(1))];
    let refused = batch::process(&ctx, "items", event(records), deadline, |_: Message, _| {
        ready(Outcome::Done)
    })
    .await;
    assert!(refused.is_err());
    let nothing = batch::process(&ctx, "items", event(Vec::new()), deadline, |_: Message, _| {
        ready(Outcome::Done)
    })
    .await
    .unwrap();
    assert!(nothing.batch_item_failures.is_empty());
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_change_the_same_secrets_one_gets_the_next_number() {
    let (emulator, ctx) = stack().await;
    assert_eq!(ctx.store.revision("org/a").await.unwrap().number, 0);
    for next in 1..=3_u64 {
        let read = ctx.store.revision("org/a").await.unwrap();
        let claims = join_all((0..8).map(|_| ctx.store.claim_revision("org/a", read, NOW + 1))).await;
        let won: Vec<u64> = claims.iter().flatten().copied().collect();
        assert_eq!(won, [next]);
        for lost in claims.into_iter().filter_map(Result::err) {
            assert!(lost.is_duplicate(), "{lost}");
        }
        let now = ctx.store.revision("org/a").await.unwrap();
        assert_eq!((now.number, now.at), (next, NOW + 1));
    }
    assert_eq!(ctx.store.revision("org/b").await.unwrap().number, 0);
    emulator.shutdown().await;
}

/// What is read of many items at once says of each what its head says.
#[tokio::test]
async fn what_was_stopped_before_its_end_was_not_held() {
    let (_emulator, ctx) = stack().await;
    let mut items = items(&ctx, 1, 3).await.into_iter();
    let mut next = || items.next().unwrap();
    let to = |item: Item, change: fn(&Item) -> Result<Item, Refused>| ctx.store.transition(item, change);
    let ended = |at: i64| Facts::ended(Source::Report, at, "x");

    // Stopped, and hung up a while later.
    let item = to(next(), |item| item.claim("w", 1000, NOW)).await.unwrap();
    let item = to(item, |item| item.cancel(NOW + 1000)).await.unwrap();
    progress::fold(&ctx, ItemKey::of(&item), &ended(NOW + 5000))
        .await
        .unwrap();
    // Stopped while it was judged.
    let item = to(next(), |item| item.claim("w", 1000, NOW)).await.unwrap();
    progress::fold(&ctx, ItemKey::of(&item), &ended(NOW + 500))
        .await
        .unwrap();
    to(item, |item| item.cancel(NOW + 1000)).await.unwrap();
    // Never begun, and with a latency that somebody measured.
    to(next(), |item| item.clone().measured(Some(120), None).cancel(NOW))
        .await
        .unwrap();

    let standings = ctx.store.standings(only_run(&ctx).await, 0).await.unwrap();
    let held: Vec<bool> = standings.iter().map(|standing| standing.was_held()).collect();
    assert_eq!(held, [false, true, false]);
    let decided: Vec<Option<i64>> = standings.iter().map(|standing| standing.decided_at).collect();
    assert_eq!(decided, [Some(NOW + 1000), Some(NOW + 1000), Some(NOW)]);
    assert_eq!(standings[2].latency_ms, Some(120));
}

/// The only run that there is.
async fn only_run(ctx: &Context) -> Uuid {
    let query = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: true,
        after: None,
        limit: 1,
    };
    let listed = ctx
        .store
        .list_runs(ORG, RunKind::Simulation, &query)
        .await
        .unwrap();
    listed.entries[0].id
}
