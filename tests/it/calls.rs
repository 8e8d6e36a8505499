//! What the store promises for calls, on the embedded stack: slots are never given twice, what a provider says converges
//! however it comes, and what is to be told is written with what it tells of.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use proptest::prelude::*;
use reqwest::Method;
use ringback_shared::{
    admission,
    clock::{Clock, Deadline, iso},
    context::Context,
    lifecycle::{Call, Facts, Failure, Fault, HookEvent, Item, Lease, Owed, Slots, Source, State},
    progress,
    provider::{CallReport, Event, ProviderKind},
    receive,
    secrets::EndpointSecrets,
    signature::TOLERANCE_MS,
    store::{HookKey, ItemKey, NewEvent, NewRun},
    webhook::{ID_HEADER, SIGNATURE_HEADER, Secret, TIMESTAMP_HEADER, sign},
};
use serde_json::json;
use uuid::Uuid;

use crate::store::{NOW, items_of, new_run, stack};

const ENDPOINT: Uuid = Uuid::from_u128(8);
const LONGEST_MS: i64 = 600_000;

fn voice_run(simulations: u32, iterations: u32) -> NewRun {
    NewRun {
        transport: "vapi.websocket".to_owned(),
        endpoint: Some(ENDPOINT),
        ..new_run(simulations, iterations)
    }
}

async fn now_stored(ctx: &Context, item: &Item) -> Item {
    ctx.store.item(ItemKey::of(item)).await.unwrap().unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// The items that have slots; no slot is held twice, and the rows of the slots say the same.
async fn holders(ctx: &Context, all: &[Item]) -> Vec<Item> {
    let mut holders = Vec::new();
    for item in all {
        let item = now_stored(ctx, item).await;
        if !item.slots.is_empty() {
            holders.push(item);
        }
    }
    let said: Vec<u32> = holders.iter().flat_map(|item| item.slots.calls.clone()).collect();
    let distinct: BTreeSet<u32> = said.iter().copied().collect();
    assert_eq!(distinct.len(), said.len(), "a slot is held twice: {said:?}");
    if let Some(first) = all.first() {
        let rows = ctx.store.held_call_slots(first.org).await.unwrap();
        assert_eq!(rows, distinct.into_iter().collect::<Vec<_>>());
    }
    holders
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_never_given_twice_and_none_is_lost() {
    let (emulator, ctx) = stack().await;
    let slots = ctx.config.call_slots as usize;
    let all = items_of(&ctx, &voice_run(4, 10)).await;
    let org = all[0].org;
    let mut over = 0;
    while over < all.len() {
        // As many as would all see the same free slots.
        for admitted in join_all((0..8).map(|_| admission::admit(&ctx, org, soon()))).await {
            admitted.unwrap();
        }
        let holders = holders(&ctx, &all).await;
        assert_eq!(
            holders.len(),
            (slots / 2).min(all.len() - over),
            "as many as there are slots for"
        );
        // Half of them end; what they give back is given out in the next round.
        for item in holders.into_iter().take(slots.div_ceil(4)) {
            let placed = ctx
                .store
                .transition(item, |item| item.claim_call("a", 1000, LONGEST_MS, NOW))
                .await
                .unwrap();
            let ended = Facts::ended(Source::Report, NOW, "done");
            ctx.store
                .transition(placed, |item| Ok(item.observe(ended.clone(), NOW)))
                .await
                .unwrap();
            over += 1;
        }
    }
    assert!(holders(&ctx, &all).await.is_empty());
    admission::admit(&ctx, org, soon()).await.unwrap();
    assert_eq!(
        ctx.store.waiting_runs(org).await.unwrap(),
        [],
        "nothing waits any more"
    );
    emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_cap_holds_to_it_and_the_others_go_on() {
    let (emulator, ctx) = stack().await;
    let capped = items_of(
        &ctx,
        &NewRun {
            cap: Some(2),
            ..new_run(1, 9)
        },
    )
    .await;
    let capped_calls = items_of(
        &ctx,
        &NewRun {
            cap: Some(1),
            ..voice_run(1, 5)
        },
    )
    .await;
    let calls = items_of(&ctx, &voice_run(1, 5)).await;
    let org = calls[0].org;
    let admitted = |items: Vec<Item>| {
        let ctx = &ctx;
        async move {
            let mut admitted = Vec::new();
            for item in &items {
                let item = now_stored(ctx, item).await;
                if item.state == State::Admitted {
                    admitted.push(item);
                }
            }
            admitted
        }
    };
    for _ in 0..2 {
        admission::admit(&ctx, org, soon()).await.unwrap();
        assert_eq!(admitted(capped.clone()).await.len(), 2);
        assert_eq!(admitted(capped_calls.clone()).await.len(), 1);
        assert_eq!(admitted(calls.clone()).await.len(), 4, "ten slots are five calls");
    }
    let chat = admitted(capped.clone()).await.remove(0);
    assert_eq!((chat.slots.calls.len(), chat.slots.run.is_some()), (0, true));
    let held = ctx
        .store
        .transition(chat, |item| item.claim("a", 1000, NOW))
        .await
        .unwrap();
    assert!(held.slots.run.is_some(), "while it is held");
    let over = ctx
        .store
        .transition(held, |item| item.end_conversation("a", "x", NOW))
        .await
        .unwrap();
    assert!(over.slots.is_empty());
    admission::admit(&ctx, org, soon()).await.unwrap();
    assert_eq!(admitted(capped.clone()).await.len(), 2, "the next one");
    assert_eq!(admitted(capped_calls).await.len(), 1);
    emulator.shutdown().await;
}

/// What comes of a call from outside: what the provider says, with or without saying whose call it is, its answer to the
/// order, and somebody who cancels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Happening {
    Said { event: Event, correlated: bool },
    Answered,
    Canceled,
}

fn report(event: Event) -> NewEvent {
    let body = match event {
        Event::Ended => json!({
            "callId": "call", "endedReason": "done", "cost": 0.5, "startedAt": "2026-11-22T17:00:00.000Z",
            "endedAt": "2026-11-22T17:01:00.000Z", "messages": [{"role": "bot", "message": "Hello"}],
        }),
        _ => json!({"callId": "call", "startedAt": "2026-11-22T17:00:00.000Z"}),
    };
    let report: CallReport = serde_json::from_value(body.clone()).unwrap();
    NewEvent {
        event,
        source: Source::Report,
        digest: format!("{event:?}"),
        facts: report.facts(Source::Report, event, NOW).unwrap(),
        body: body.to_string(),
    }
}

/// Does to an item what the functions do.
async fn happen(ctx: &Context, item: &Item, call: &str, happening: &Happening) {
    match happening {
        Happening::Said { event, correlated } => {
            let mut event = report(*event);
            if let Some(id) = &mut event.facts.call_id {
                call.clone_into(&mut id.value);
            }
            if *correlated {
                ctx.store.keep_event(ItemKey::of(item), &event).await.unwrap();
                progress::fold(ctx, ItemKey::of(item), &event.facts)
                    .await
                    .unwrap();
            } else {
                ctx.store
                    .keep_stray_event(ENDPOINT, call, &event, NOW)
                    .await
                    .unwrap();
                progress::fold_strays(ctx, ENDPOINT, call).await.unwrap();
            }
        }
        Happening::Answered => {
            let answer = NewEvent {
                event: Event::Placed,
                source: Source::Report,
                digest: "answer".to_owned(),
                facts: Facts::call(Source::Report, call),
                body: json!({ "callId": call }).to_string(),
            };
            let item = now_stored(ctx, item).await;
            ctx.store
                .placed(item, &answer, |item| item.placed("a", call, NOW))
                .await
                .unwrap();
            // As relay does when it sees whose call it is.
            progress::fold_strays(ctx, ENDPOINT, call).await.unwrap();
        }
        Happening::Canceled => {
            let item = now_stored(ctx, item).await;
            let _over_already = ctx.store.transition(item, |item| item.cancel(NOW)).await;
        }
    }
}

/// Everything that happens to a call, in some order, with some of it doubled.
fn happenings() -> impl Strategy<Value = (Vec<Happening>, bool)> {
    let correlated = || any::<bool>();
    (
        correlated(),
        correlated(),
        any::<bool>(),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    )
        .prop_flat_map(|(started, ended, cancel, again)| {
            let said = |event, correlated| Happening::Said { event, correlated };
            let mut all = vec![
                said(Event::Started, started),
                said(Event::Ended, ended),
                Happening::Answered,
            ];
            let doubled: Vec<Happening> = again.iter().map(|index| index.get(&all).clone()).collect();
            // The order's answer comes once.
            all.extend(doubled.into_iter().filter(|one| *one != Happening::Answered));
            if cancel {
                all.push(Happening::Canceled);
            }
            (Just(all).prop_shuffle(), Just(cancel))
        })
}

#[test]
fn a_call_ends_as_the_same_item_however_its_provider_says_so() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (emulator, ctx) = runtime.block_on(stack());
    let all = runtime.block_on(items_of(&ctx, &voice_run(10, 10)));
    let used = AtomicUsize::new(0);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((happenings, cancel) in happenings())| {
        let at = used.fetch_add(1, Ordering::Relaxed);
        prop_assume!(at < all.len());
        let call = format!("call-{at}");
        let (item, record) = runtime.block_on(async {
            let slots = Slots { calls: vec![0, 1], run: None };
            let item = now_stored(&ctx, &all[at]).await;
            ctx.store.admit(&item, &slots, 0, NOW).await.unwrap();
            let item = now_stored(&ctx, &item).await;
            let item = ctx.store.transition(item, |item| item.claim_call("a", 60_000, LONGEST_MS, NOW)).await.unwrap();
            for happening in &happenings {
                happen(&ctx, &item, &call, happening).await;
            }
            let detail = ctx.store.item_detail(item.id()).await.unwrap();
            let item = now_stored(&ctx, &item).await;
            let record = ringback_shared::call_record::CallRecord::of(&item, &detail).unwrap();
            (item, record)
        });
        let mut facts = report(Event::Ended).facts.join(report(Event::Started).facts);
        if let Some(id) = &mut facts.call_id {
            call.clone_into(&mut id.value);
        }
        prop_assert_eq!(&item.facts, &facts);
        prop_assert!(item.slots.is_empty(), "its slots are free");
        prop_assert_eq!(record.transcript, "AI: Hello");
        if cancel {
            prop_assert_eq!((item.state, item.owed), (State::Canceled, Owed::Nothing));
        } else {
            prop_assert_eq!((item.state, item.owed), (State::Evaluating, Owed::Evaluate));
        }
        let held = runtime.block_on(ctx.store.held_call_slots(item.org)).unwrap();
        prop_assert_eq!(held, Vec::<u32>::new());
    });
    runtime.block_on(emulator.shutdown());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_told_is_written_with_what_it_tells_of() {
    let (emulator, ctx) = stack().await;
    let mut run = new_run(1, 3);
    run.snapshots[0].scenario["hooks"] = json!([{"on": "simulation.run.ended", "do": [{"type": "webhook"}]}]);
    let all = items_of(&ctx, &run).await;
    let hook = |item: &Item, event| {
        let key = HookKey::of_item(item.id(), event);
        let ctx = &ctx;
        async move { ctx.store.hook(&key).await.unwrap() }
    };
    assert!(all[0].hooked);
    let claims = join_all((0..8).map(|n| {
        ctx.store.transition(all[0].clone(), move |item| {
            item.claim(&format!("worker {n}"), 1000, NOW)
        })
    }))
    .await;
    let held = claims.into_iter().find_map(Result::ok).unwrap();
    let started = hook(&held, HookEvent::Started).await.unwrap();
    assert_eq!(
        (started.owed, started.version),
        (Owed::Deliver, 1),
        "written once"
    );
    assert_eq!(hook(&held, HookEvent::Ended).await, None);
    let canceled = ctx.store.transition(held, |item| item.cancel(NOW)).await.unwrap();
    assert!(hook(&canceled, HookEvent::Ended).await.unwrap().canceled);
    // What is due leads to it.
    let due: Vec<HookKey> = ctx
        .store
        .due(None, 100)
        .await
        .unwrap()
        .iter()
        .filter_map(ringback_shared::store::DueKey::hook)
        .collect();
    assert_eq!(due.len(), 2, "{due:?}");
    let never = ctx
        .store
        .transition(all[1].clone(), |item| item.cancel(NOW))
        .await
        .unwrap();
    assert_eq!(
        hook(&never, HookEvent::Ended).await,
        None,
        "it never left the queue"
    );
    emulator.shutdown().await;
}

/// A clock that stands still.
#[derive(Debug)]
struct Still(i64);

impl Clock for Still {
    fn now_ms(&self) -> i64 {
        self.0
    }
}

/// A webhook as API Gateway hands it over.
fn delivery(
    endpoint: Uuid,
    secret: &Secret,
    at: i64,
    body: &[u8],
    in_base64: bool,
) -> ApiGatewayV2httpRequest {
    let mut request = ApiGatewayV2httpRequest::default();
    request.raw_path = Some(format!("/hooks/{endpoint}/call-ended"));
    request.request_context.http.method = Method::POST;
    let seconds = at / 1000;
    for (name, value) in [
        (ID_HEADER, "msg_1".to_owned()),
        (TIMESTAMP_HEADER, seconds.to_string()),
        (SIGNATURE_HEADER, sign(secret, "msg_1", seconds, body)),
    ] {
        request.headers.insert(name, value.parse().unwrap());
    }
    request.is_base64_encoded = in_base64;
    request.body = Some(if in_base64 {
        STANDARD.encode(body)
    } else {
        String::from_utf8(body.to_vec()).unwrap()
    });
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_verified_over_its_raw_bytes_at_the_time_of_the_clock() {
    let (emulator, mut ctx) = stack().await;
    ctx.clock = Arc::new(Still(NOW));
    let ctx = ctx;
    let made = EndpointSecrets::generate(None, Uuid::nil(), NOW).unwrap();
    ctx.secrets.put_endpoint(ENDPOINT, &made).await.unwrap();
    ctx.store
        .put_endpoint(ENDPOINT, new_run(1, 1).org, ProviderKind::Generic)
        .await
        .unwrap();
    let secret = Secret::parse(made.accepted()[0]).unwrap();
    let take = |at: i64, body: &[u8], in_base64: bool| {
        let request = delivery(ENDPOINT, &secret, at, body, in_base64);
        let ctx = &ctx;
        async move { receive::handle(ctx, Event::Ended, request).await.status_code }
    };
    let tolerance = i64::from(TOLERANCE_MS);
    let good = br#"{"callId": "call", "endedReason": "Schlu\u00df \u2713"}"#;
    assert_eq!(take(NOW, good, true).await, 200, "base64 is undone once");
    assert_eq!(take(NOW, good, false).await, 200, "and it is the same event");
    assert_eq!(ctx.store.stray_events(ENDPOINT, "call").await.unwrap().len(), 1);
    for (ms, status) in [
        // The header has whole seconds.
        (-tolerance + 1000, 200),
        (tolerance, 200),
        (-tolerance - 1000, 401),
        (tolerance + 1000, 401),
    ] {
        assert_eq!(take(NOW + ms, good, true).await, status, "{ms} ms from the clock");
    }
    // What is signed and cannot be read is kept, however large it is, and its reason repeats nothing of it.
    let long = format!(
        r#"{{"callId": "call", "messages": "{}"}}"#,
        "secret words ".repeat(40_000)
    );
    for body in [
        &b"\xff\xfe"[..],
        b"{",
        b"[]",
        br#"{"callId": "call", "type": "call.paused"}"#,
        long.as_bytes(),
    ] {
        assert_eq!(take(NOW, body, true).await, 400);
    }
    let kept = ctx.store.quarantined(&iso(NOW)[..10]).await.unwrap();
    assert_eq!(kept.len(), 5);
    for one in &kept {
        let reason = one["reason"].as_str().unwrap();
        assert!(!reason.contains("secret") && reason.len() < 300, "{reason}");
    }
    assert!(kept.iter().any(|one| one["body"] == long));
    let mut broken = delivery(ENDPOINT, &secret, NOW, good, true);
    broken.body = Some("***".to_owned());
    assert_eq!(receive::handle(&ctx, Event::Ended, broken).await.status_code, 400);
    for in_base64 in [true, false] {
        assert_eq!(
            take(NOW, &vec![b' '; receive::MAX_BODY + 1], in_base64).await,
            413
        );
    }
    emulator.shutdown().await;
}

#[test]
fn the_largest_head_of_an_item_stays_below_four_kilobytes() {
    let longest = "\u{10ffff}".repeat(1000);
    let failure = Failure::new(&longest, Some(Fault::Ringback));
    let report: CallReport = serde_json::from_value(json!({
        "callId": "c".repeat(256), "endedReason": longest, "cost": 1e9, "recordingUrl": longest, "fault": "ringback",
        "startedAt": "2026-11-22T17:00:00.000Z",
    }))
    .unwrap();
    let item = Item {
        hooked: true,
        slots: Slots {
            calls: vec![100_000, 100_001],
            run: Some(99_999),
        },
        call: Some(Call {
            turned_away: u32::MAX,
            endpoint: Uuid::max(),
            intended_at: Some(NOW),
            deadline: Some(NOW + LONGEST_MS),
        }),
        lease: Some(Lease {
            owner: Uuid::max().to_string(),
            until: NOW,
        }),
        not_before: Some(NOW),
        facts: report.facts(Source::Report, Event::Ended, NOW).unwrap(),
        decided_at: Some(NOW),
        failure: Some(failure),
        ..Item::admitted(Uuid::max(), Uuid::max(), 99_999, 10, NOW)
    };
    assert!(serde_json::to_string(&item).unwrap().len() < 4096);
}
