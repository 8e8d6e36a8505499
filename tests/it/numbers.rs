//! Numbers of objects: one for each, the same for ever, whoever asks and however many ask at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use ringback_local::emulator::Emulator;
use ringback_shared::store::{Kind, Numbered, Store, StoreError};
use serde_json::json;
use uuid::Uuid;

use crate::store::{NOW, ORG, stack};

const OTHER: Uuid = Uuid::from_u128(8);
const SCENARIO: Numbered = Numbered::Definition(Kind::Scenario);
const METRIC: Numbered = Numbered::Definition(Kind::Metric);

fn some(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::now_v7()).collect()
}

/// Sets how many numbers of an organization were drawn.
async fn drawn(emulator: &Emulator, org: Uuid, count: u64) {
    let row = [
        ("pk", AttributeValue::S(format!("ORG#{org}#number"))),
        ("sk", AttributeValue::S("next".to_owned())),
        ("drawn", AttributeValue::N(count.to_string())),
    ];
    emulator
        .dynamodb()
        .put_item()
        .table_name("table")
        .set_item(Some(row.map(|(name, value)| (name.to_owned(), value)).into()))
        .send()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_stays_and_is_found_both_ways() {
    let (emulator, ctx) = stack().await;
    let store = &ctx.store;
    assert!(store.numbers(ORG, SCENARIO, &[]).await.unwrap().is_empty());
    assert_eq!(store.numbered(ORG, &[]).await.unwrap(), BTreeMap::new());

    // In the order that was asked for, and an id that stands there twice has one number.
    let ids = some(3);
    let asked = [ids[2], ids[0], ids[2], ids[1], ids[0]];
    let first = store.numbers(ORG, SCENARIO, &asked).await.unwrap();
    assert_eq!((first[0], first[1]), (first[2], first[4]));
    assert_eq!(BTreeSet::from_iter(first.clone()), BTreeSet::from([1, 2, 3]));

    // They stay when others get theirs; and the same id of something else is something else.
    let more = some(2);
    let mixed = [ids[0], more[0], ids[1], more[1], ids[2]];
    let second = store.numbers(ORG, SCENARIO, &mixed).await.unwrap();
    assert_eq!([second[0], second[2], second[4]], [first[1], first[3], first[0]]);
    let metric = store.numbers(ORG, METRIC, &ids[..1]).await.unwrap();
    let run = store.numbers(ORG, Numbered::Run, &ids[..1]).await.unwrap();
    let all: Vec<u64> = [&second[..], &metric, &run].concat();
    assert_eq!(BTreeSet::from_iter(all.clone()), BTreeSet::from_iter(1..=7));
    assert_eq!(store.numbers(ORG, SCENARIO, &asked).await.unwrap(), first);

    // What was never given is left out, whatever it is, and one that stands there twice is found once.
    let asked: Vec<u64> = [&all[..], &all, &[0, 8, 1 << 31, u64::MAX]].concat();
    let found = store.numbered(ORG, &asked).await.unwrap();
    let mut expected: BTreeMap<u64, (Numbered, Uuid)> = second
        .iter()
        .zip(mixed)
        .map(|(&n, id)| (n, (SCENARIO, id)))
        .collect();
    expected.insert(metric[0], (METRIC, ids[0]));
    expected.insert(run[0], (Numbered::Run, ids[0]));
    assert_eq!(found, expected);

    // Of every kind.
    for kind in Kind::ALL {
        let what = Numbered::Definition(kind);
        let n = store.numbers(ORG, what, &ids[..1]).await.unwrap();
        assert_eq!(store.numbered(ORG, &n).await.unwrap()[&n[0]], (what, ids[0]));
    }

    // Another organization has its own, of the same objects too.
    assert_eq!(store.numbered(OTHER, &all).await.unwrap(), BTreeMap::new());
    assert_eq!(store.numbers(OTHER, METRIC, &ids[1..2]).await.unwrap(), [1]);
    let theirs = store.numbered(OTHER, &all).await.unwrap();
    assert_eq!(theirs, BTreeMap::from([(1, (METRIC, ids[1]))]));
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_at_the_same_time_is_told_the_same() {
    let (emulator, ctx) = stack().await;
    // Each asks in an order of its own for 60 of 220 objects, ten further on than the one before; the last four for the same.
    let all = some(220);
    let of = |caller: usize| {
        let from = caller.min(16) * 10;
        let mut ids = all[from..from + 60].to_vec();
        ids.rotate_left(caller * 7 % 60);
        ids
    };
    let told = join_all((0..20).map(|caller| {
        let (store, ids) = (&ctx.store, of(caller));
        async move {
            let numbers = store.numbers(ORG, Numbered::Run, &ids).await.unwrap();
            (ids, numbers)
        }
    }))
    .await;
    let mut numbers: HashMap<Uuid, u64> = HashMap::new();
    for (ids, given) in told {
        assert_eq!(given.len(), ids.len());
        for (id, n) in ids.into_iter().zip(given) {
            assert_eq!(*numbers.entry(id).or_insert(n), n, "{id} has two numbers");
        }
    }
    assert_eq!(numbers.len(), all.len());
    let distinct: BTreeSet<u64> = numbers.values().copied().collect();
    assert_eq!(distinct.len(), all.len(), "two have the same number");
    assert!(!distinct.contains(&0));

    // The table says what they were told, and nothing besides.
    let again = ctx.store.numbers(ORG, Numbered::Run, &all).await.unwrap();
    assert!(all.iter().zip(&again).all(|(id, n)| numbers[id] == *n));
    let any: Vec<u64> = (0..5000).collect();
    let found = ctx.store.numbered(ORG, &any).await.unwrap();
    let expected = numbers.into_iter().map(|(id, n)| (n, (Numbered::Run, id)));
    assert_eq!(found, expected.collect());
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_get_their_numbers_at_once_until_there_are_no_more() {
    let (emulator, ctx) = stack().await;
    let store = &ctx.store;
    let ids = some(300);
    let numbers = store.numbers(ORG, SCENARIO, &ids).await.unwrap();
    assert_eq!(BTreeSet::from_iter(numbers.clone()), BTreeSet::from_iter(1..=300));
    let found = store.numbered(ORG, &numbers).await.unwrap();
    let expected = numbers.iter().zip(&ids).map(|(&n, &id)| (n, (SCENARIO, id)));
    assert_eq!(found, expected.collect());

    // A counter that has fallen behind gives no number twice.
    drawn(&emulator, ORG, 0).await;
    let late = store.numbers(ORG, SCENARIO, &some(60)).await.unwrap();
    assert!(late.iter().all(|n| *n > 300), "{late:?}");

    // The largest is given, and none above it; those that there are stay.
    let largest = (1 << 31) - 1;
    drawn(&emulator, ORG, largest - 1).await;
    let last = some(1);
    assert_eq!(store.numbers(ORG, METRIC, &last).await.unwrap(), [largest]);
    for _ in 0..2 {
        let refused = store.numbers(ORG, METRIC, &some(1)).await;
        assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{refused:?}");
    }
    assert_eq!(store.numbers(ORG, METRIC, &last).await.unwrap(), [largest]);
    assert_eq!(store.numbers(ORG, SCENARIO, &ids).await.unwrap(), numbers);
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_outlast_their_objects_and_go_with_the_organization() {
    let (emulator, ctx) = stack().await;
    let store = &ctx.store;
    for org in [ORG, OTHER] {
        store
            .create_org(org, "an organization", "a key", &format!("digest of {org}"))
            .await
            .unwrap();
    }
    let ids = some(3);
    for (kind, id) in [Kind::Metric, Kind::TestProfile, Kind::Project]
        .into_iter()
        .zip(&ids)
    {
        let body = json!({"name": "kept"});
        store.create_definition(ORG, kind, *id, body, &[]).await.unwrap();
    }
    let numbers = store.numbers(ORG, METRIC, &ids).await.unwrap();
    let others = store.numbers(OTHER, METRIC, &ids[1..]).await.unwrap();

    let read = store
        .definition(ORG, Kind::Metric, ids[0])
        .await
        .unwrap()
        .unwrap();
    store.delete_definition(ORG, Kind::Metric, &read).await.unwrap();
    assert_eq!(store.numbers(ORG, METRIC, &ids).await.unwrap(), numbers);
    assert_eq!(
        store.numbered(ORG, &numbers[..1]).await.unwrap()[&numbers[0]],
        (METRIC, ids[0])
    );

    // The counter, and two rows of each number.
    let operator = Store::new(
        emulator.dynamodb_of_others().unwrap().config().clone(),
        &ctx.config.table,
    );
    let held = operator.holdings(ORG, NOW).await.unwrap();
    assert_eq!((held.holding.definitions, held.holding.others), (2, 7));
    store.close_org(&held).await.unwrap();
    store.remove_runs(&held).await.unwrap();
    store.remove_org(&held).await.unwrap();
    assert!(operator.holdings(ORG, NOW).await.unwrap().is_empty());
    assert_eq!(store.numbered(ORG, &numbers).await.unwrap(), BTreeMap::new());
    assert_eq!(store.numbers(OTHER, METRIC, &ids[1..]).await.unwrap(), others);
    emulator.shutdown().await;
}
