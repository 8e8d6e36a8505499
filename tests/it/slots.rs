//! Slots and queues under load: never more at once than there are slots for, no message for what only waits, and one run for one
//! key however many ask at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use reqwest::Method;
use ringback_local::{emulator::Emulator, serve::Local};
use ringback_shared::{
    admission,
    clock::{Clock, Deadline},
    context::Context,
    lifecycle::{Facts, Item, REQUEUE_AFTER_MS, SURE_AFTER_MS, Source},
    queue::WorkQueue,
    store::{ItemKey, NewRun, RunKey},
};
use ringback_sweep::Scope;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::post_with_key,
    fixtures::{
        LONG, RUNS, assert_valid, assistant, by_voice, counts, ended, endpoint, list, simple_run, text,
    },
    provider::{Auto, ProviderStandIn},
    server::{Api, local, until},
    stand_in::{Call, Fault, Role, StandIn},
    store::{NOW, items_of, new_run, stack},
    voice::local_with_slots,
};

/// A run of `entries` times ten items that pass.
fn large_run(stand_in: &StandIn, sim: &str, entries: usize) -> Value {
    let mut body = simple_run(stand_in, sim, 2, 10);
    body["simulations"] = json!(vec![body["simulations"][0].clone(); entries]);
    body
}

/// The organization's limit, what is active, and how many more could start, by the API.
async fn concurrency(api: &Api) -> [u64; 3] {
    let slots = api.get("/eval/simulation/concurrency").await;
    assert_valid("SimulationConcurrencyResponse", &slots);
    ["concurrencyLimit", "activeSimulations", "availableToStart"].map(|name| {
        let n = slots[name].as_u64();
        n.unwrap_or_else(|| panic!("{name} is not a whole number: {slots:#}"))
    })
}

/// How many messages the queue of the conversations has handed over.
fn received(local: &Local) -> u64 {
    let received = local.emulator().messages_received();
    received.get("run-items").copied().unwrap_or_default()
}

async fn backlog(ctx: &Context) -> usize {
    ctx.queues.backlog(WorkQueue::RunItems).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_calls_under_six_slots_are_three_at_a_time_and_the_count_of_slots_is_true_all_the_while()
{
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local_with_slots(&stand_in, 6).await;
    let endpoint = endpoint(&api, &provider).await;
    assert_eq!(concurrency(&api).await, [6, 0, 3]);
    let body = by_voice(large_run(&stand_in, "crowd", 20), &endpoint);
    let created = api.post(RUNS, &body).await;
    let run = text(&created["id"]);
    let (org, id): (Uuid, Uuid) = (text(&created["orgId"]).parse().unwrap(), run.parse().unwrap());

    // Three are up, and the others wait for slots: there is no message for them.
    let first = provider.wait_for("three calls", |calls| calls.len() == 3).await;
    let ctx = local.context();
    until("all items to be stored", LONG, async || {
        let head = ctx.store.run(RunKey::simulation(org, id)).await.unwrap().unwrap();
        (head.expanded == head.total).then_some(())
    })
    .await;
    assert_eq!(concurrency(&api).await, [6, 6, 0]);
    assert_eq!(ctx.store.held_call_slots(org).await.unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!((received(&local), backlog(ctx).await), (3, 0));
    assert_eq!(provider.calls_up(), 3);

    // The others take no longer than they must.
    provider.auto(Auto::Both { talk_ms: 0 });
    let over = join_all(first.iter().map(|call| provider.send_ended(&call.id))).await;
    assert_eq!(over, [200; 3]);
    let mut seen = BTreeMap::<u64, usize>::new();
    let mut looks = 0;
    let done = until("the run to end", LONG, async || {
        let before = provider.ids_up();
        let [limit, active, available] = concurrency(&api).await;
        let after = provider.ids_up();
        assert_eq!(limit, 6);
        assert!(
            active <= limit && active % 2 == 0,
            "{active} of {limit} slots are said to be held"
        );
        assert_eq!(available, (limit - active) / 2);
        let up_all_the_while = before.intersection(&after).count() as u64;
        assert!(
            active >= 2 * up_all_the_while,
            "{active} slots are said to be held while {up_all_the_while} calls are up"
        );
        *seen.entry(active).or_default() += 1;
        looks += 1;
        if looks % 8 != 0 {
            return None;
        }
        let run = api.get(&format!("{RUNS}/{run}")).await;
        (run["status"] == "ended").then_some(run)
    })
    .await;
    assert_eq!(counts(&done), [200, 200, 0, 0, 0, 0]);
    assert!(seen.contains_key(&6), "all slots were in use: {seen:?}");
    assert_eq!(concurrency(&api).await, [6, 0, 3]);
    assert_eq!(ctx.store.held_call_slots(org).await.unwrap(), Vec::<u32>::new());

    assert_eq!((provider.most_up(), provider.calls_up()), (3, 0));
    let calls = provider.calls();
    let keys: BTreeSet<_> = calls.iter().map(|call| &call.idempotency_key).collect();
    assert_eq!((calls.len(), keys.len()), (200, 200));
    assert!(calls.iter().all(|call| call.placed_times == 1));
    assert_eq!(provider.asked().placings, 200);
    assert_eq!(received(&local), 200, "a message for each item, and no other");
    local.shutdown().await;
}

/// How many conversations of `sim` were under way at the same time, at least: each from its second model call to its last.
fn most_at_once(calls: &[Call], sim: &str) -> usize {
    let mut spans = BTreeMap::<usize, (usize, usize)>::new();
    for (at, call) in calls.iter().enumerate() {
        // The first call of a conversation does not know its caller yet.
        if call.sim == sim && call.caller != 0 {
            spans.entry(call.caller).or_insert((at, at)).1 = at;
        }
    }
    let under_way = |at: usize| {
        spans
            .values()
            .filter(move |(first, last)| (first..=last).contains(&&at))
    };
    (0..calls.len())
        .map(|at| under_way(at).count())
        .max()
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_caps_hold_exactly_to_them_side_by_side_by_chat_and_by_voice() {
    let stand_in = StandIn::start().await;
    let [one, two] = [ProviderStandIn::start().await, ProviderStandIn::start().await];
    let (local, api) = local_with_slots(&stand_in, 20).await;
    let endpoints = [endpoint(&api, &one).await, endpoint(&api, &two).await];
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let capped = |mut body: Value, cap: usize| {
        body["concurrencyLimit"] = json!(cap);
        body
    };
    let caps = [2, 3, 1, 2];
    let voice = |endpoint: &Value| by_voice(simple_run(&stand_in, "phone", 2, 6), endpoint);
    let bodies = [
        simple_run(&stand_in, "pairs", 3, 10),
        simple_run(&stand_in, "triples", 3, 10),
        voice(&endpoints[0]),
        voice(&endpoints[1]),
    ];
    let mut runs = Vec::new();
    for (body, cap) in bodies.into_iter().zip(caps) {
        let created = api.post(RUNS, &capped(body, cap)).await;
        assert_eq!(created["concurrencyLimit"], json!(cap));
        runs.push(text(&created["id"]).to_owned());
    }

    // As many as may are under way, and no more, although there are slots and workers for all.
    for (run, cap) in runs.iter().zip([2, 3]) {
        until("as many conversations as may be", LONG, async || {
            let run = api.get(&format!("{RUNS}/{run}")).await;
            (counts(&run) == [10, 0, 0, cap, 10 - cap, 0]).then_some(())
        })
        .await;
    }
    let first = [
        one.wait_for("one call", |calls| !calls.is_empty()).await,
        two.wait_for("two calls", |calls| calls.len() >= 2).await,
    ];
    assert_eq!((first[0].len(), first[1].len()), (1, 2));
    assert_eq!(
        concurrency(&api).await,
        [20, 6, 7],
        "the slots of calls are the organization's, and a chat takes none"
    );
    assert_eq!(
        received(&local),
        8,
        "no message for what waits for its run's slot"
    );

    for (provider, calls) in [&one, &two].into_iter().zip(&first) {
        provider.auto(Auto::Both { talk_ms: 20 });
        let over = join_all(calls.iter().map(|call| provider.send_ended(&call.id))).await;
        assert_eq!(over, vec![200; calls.len()]);
    }
    stand_in.release();
    for (run, total) in runs.iter().zip([10, 10, 6, 6]) {
        assert_eq!(counts(&ended(&api, run).await), [total, total, 0, 0, 0, 0]);
    }
    let calls = stand_in.calls();
    assert_eq!(["pairs", "triples"].map(|sim| most_at_once(&calls, sim)), [2, 3]);
    assert_eq!((one.most_up(), two.most_up()), (1, 2));
    assert_eq!((one.calls().len(), two.calls().len()), (6, 6));
    assert_eq!(concurrency(&api).await, [20, 0, 10]);
    assert_eq!(received(&local), 32, "a message for each item, and no other");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_send_the_same_request_at_once_get_one_run_and_another_request_is_refused() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let stored = api
        .post("/assistant", &assistant(&stand_in, "You run a clinic."))
        .await;
    let mut body = simple_run(&stand_in, "once", 1, 3);
    body["target"] = json!({"type": "assistant", "assistantId": stored["id"]});
    let answers = join_all((0..50).map(|_| post_with_key(&api, "same", &body))).await;
    let (status, first) = &answers[0];
    assert_eq!(*status, 201, "{first}");
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:#?}");
    assert_eq!(list(&api.get(RUNS).await).len(), 1);
    let created: Value = first.parse().unwrap();
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [3, 3, 0, 0, 0, 0]);

    // Of two requests with the same key one is first, whichever; the other is refused, however often it is sent.
    let mut other = body.clone();
    other["iterations"] = json!(2);
    let bodies = [&body, &other];
    let answers = join_all((0..40).map(|n| post_with_key(&api, "contested", bodies[n % 2]))).await;
    let of = |which: usize| answers.iter().skip(which).step_by(2).collect::<Vec<_>>();
    let (won, lost) = if answers[0].0 == 201 {
        (of(0), of(1))
    } else {
        (of(1), of(0))
    };
    assert!(
        won.iter().all(|&answer| answer.0 == 201 && answer == won[0]),
        "{won:#?}"
    );
    for (status, refusal) in lost {
        let refusal: Value = refusal.parse().unwrap();
        assert_eq!((*status, &refusal["statusCode"]), (409, &json!(409)));
        assert!(
            text(&refusal["message"]).contains("Idempotency-Key"),
            "{refusal:#}"
        );
    }
    assert_eq!(list(&api.get(RUNS).await).len(), 2);
    let second: Value = won[0].1.parse().unwrap();
    ended(&api, text(&second["id"])).await;

    // What the request named is gone; its answer is not.
    api.delete(&format!("/assistant/{}", text(&stored["id"]))).await;
    let again = post_with_key(&api, "same", &body).await;
    assert_eq!((again.0, &again.1), (201, first));
    let (status, _) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_eq!(status, 404, "a new run cannot be made of it");
    assert_eq!(post_with_key(&api, "same", &other).await.0, 409);
    local.shutdown().await;
}

/// A clock whose hands the test moves.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Messages that were received and whose worker has not finished.
struct Underway {
    items: Vec<Item>,
    receipts: Vec<String>,
}

/// A queue with nobody at work on it, at a time that the test says.
struct Idle {
    emulator: Emulator,
    ctx: Context,
    hands: Arc<Hands>,
}

impl Idle {
    async fn new() -> Self {
        let (emulator, mut ctx) = stack().await;
        let hands = Arc::new(Hands(AtomicI64::new(NOW)));
        ctx.clock = Arc::<Hands>::clone(&hands);
        Self { emulator, ctx, hands }
    }

    /// What the minute tick does at this time after [`NOW`], in milliseconds.
    async fn sweep(&self, after: i64) {
        self.hands.0.store(NOW + after, Ordering::Relaxed);
        ringback_sweep::handle(&self.ctx, Scope::Due, soon())
            .await
            .unwrap();
    }

    /// Receives so many messages.
    async fn receive(&self, count: usize) -> Underway {
        let (mut items, mut receipts) = (Vec::new(), Vec::new());
        while items.len() < count {
            let asked = (count - items.len()).min(10);
            let answer = self
                .emulator
                .sqs()
                .receive_message()
                .queue_url(&self.ctx.config.run_items_queue_url)
                .max_number_of_messages(i32::try_from(asked).unwrap())
                .send()
                .await
                .unwrap();
            assert!(!answer.messages().is_empty(), "there are fewer than {count}");
            for message in answer.messages() {
                let sent: ringback_shared::queue::Message =
                    serde_json::from_str(message.body().unwrap()).unwrap();
                items.push(sent.item);
                receipts.push(message.receipt_handle().unwrap().to_owned());
            }
        }
        Underway { items, receipts }
    }

    /// Messages are gone.
    async fn delete(&self, receipts: &[String]) {
        for receipt in receipts {
            self.emulator
                .sqs()
                .delete_message()
                .queue_url(&self.ctx.config.run_items_queue_url)
                .receipt_handle(receipt)
                .send()
                .await
                .unwrap();
        }
    }

    async fn stored(&self, all: &[Item]) -> Vec<Item> {
        let count = u32::try_from(all.len()).unwrap();
        self.ctx.store.items_from(all[0].run, 0, count).await.unwrap()
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_has_to_wait_for_long_is_not_put_on_its_queue_again_and_what_is_lost_is() {
    let idle = Idle::new().await;
    let ctx = &idle.ctx;
    let all = items_of(ctx, &new_run(3, 10)).await;
    ctx.queues.send(&all, NOW).await.unwrap();
    assert_eq!(backlog(ctx).await, 30);

    // For hours: nothing is sent, and nothing is even written.
    for minute in (2..240).step_by(10) {
        idle.sweep(minute * 60_000).await;
    }
    assert_eq!(backlog(ctx).await, 30);
    assert_eq!(idle.stored(&all).await, all);

    // Twenty messages are lost. The first look only notes it, for they might have been received a moment ago.
    let hours = 240 * 60_000;
    let lost = idle.receive(20).await;
    idle.delete(&lost.receipts).await;
    idle.sweep(hours).await;
    idle.sweep(hours + SURE_AFTER_MS - 1).await;
    assert_eq!(backlog(ctx).await, 10);
    let noted = idle.stored(&all).await;
    assert_eq!(noted.iter().filter(|item| item.missed_at.is_some()).count(), 20);
    idle.sweep(hours + SURE_AFTER_MS).await;
    assert_eq!(backlog(ctx).await, 30, "as many as wait");
    let sent = idle.stored(&all).await;
    assert_eq!(sent.iter().filter(|item| item.requeues == 1).count(), 20);
    idle.sweep(hours + 2 * SURE_AFTER_MS).await;
    idle.sweep(hours + 10 * 60_000).await;
    assert_eq!(backlog(ctx).await, 30, "and no more");
    assert_eq!(idle.stored(&all).await, sent);

    // Received by workers that have not claimed their items yet: the queue is empty, and nothing is lost.
    let working = idle.receive(30).await;
    idle.sweep(hours + 11 * 60_000).await;
    assert_eq!(backlog(ctx).await, 0);
    for item in working.items {
        // Which twenty were put on the queue again was a guess, so a message may be another's; the first one counts.
        let _claimed_before = ctx
            .store
            .transition(item, |item| item.claim("a", 3_600_000, NOW + hours + 11 * 60_000))
            .await;
    }
    idle.delete(&working.receipts).await;
    let left = idle.stored(&all).await;
    let left = left.iter().filter(|item| item.lease.is_none()).count();
    idle.sweep(hours + 12 * 60_000).await;
    assert_eq!(backlog(ctx).await, left, "what nobody has a message of");
    idle.emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_whose_message_was_lost_does_not_wait_for_ever_behind_those_of_others() {
    let idle = Idle::new().await;
    let ctx = &idle.ctx;
    let lost = items_of(ctx, &new_run(1, 1)).await;
    // There is always something on the queue, of others who have not waited for long.
    let others = items_of(ctx, &new_run(1, 10)).await;
    ctx.queues.send(&others, NOW).await.unwrap();
    for item in &others {
        let young = |item: &Item| {
            Ok(Item {
                version: item.version + 1,
                due_at: Some(i64::MAX >> 11),
                ..item.clone()
            })
        };
        ctx.store.transition(item.clone(), young).await.unwrap();
    }
    idle.sweep(REQUEUE_AFTER_MS + 3_600_000).await;
    assert_eq!(idle.stored(&lost).await, lost, "it may be among them");
    let day = REQUEUE_AFTER_MS + 24 * 3_600_000;
    idle.sweep(day).await;
    idle.sweep(day + SURE_AFTER_MS).await;
    assert_eq!(idle.stored(&lost).await[0].requeues, 1);
    assert_eq!(backlog(ctx).await, 11);
    idle.emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_admit_an_item_costs_the_same_however_many_wait() {
    let (emulator, ctx) = stack().await;
    let run = NewRun {
        transport: "vapi.websocket".to_owned(),
        endpoint: Some(Uuid::from_u128(8)),
        ..new_run(32, 10)
    };
    let all = items_of(&ctx, &run).await;
    let org = all[0].org;
    admission::admit(&ctx, org, soon()).await.unwrap();
    let at_once = ctx.store.held_call_slots(org).await.unwrap().len() / 2;
    ctx.store.meter().turn_on();
    let asked = || -> u64 {
        let kinds = ctx.store.meter().snapshot();
        kinds.values().map(|used| used.requests).sum()
    };
    // One call after the other ends, and the next one gets its slots.
    let mut costs = Vec::new();
    for item in &all[..300] {
        let item = ctx.store.item(ItemKey::of(item)).await.unwrap().unwrap();
        let placed = ctx
            .store
            .transition(item, |item| item.claim_call("a", 1000, 600_000, NOW))
            .await
            .unwrap();
        let over = Facts::ended(Source::Report, NOW, "done");
        ctx.store
            .transition(placed, |item| Ok(item.observe(over.clone(), NOW)))
            .await
            .unwrap();
        let before = asked();
        admission::admit(&ctx, org, soon()).await.unwrap();
        costs.push(asked() - before);
        assert_eq!(
            ctx.store.held_call_slots(org).await.unwrap().len(),
            2 * at_once,
            "the next one has its slots"
        );
    }
    let first: u64 = costs[..100].iter().sum();
    let last: u64 = costs[200..].iter().sum();
    // What waits, the organization's settings, the slots that are held, the next items, and the admission; now and then the run's
    // place.
    assert!(
        first <= 550,
        "{first} requests to admit a hundred items: {costs:?}"
    );
    assert!(
        last.abs_diff(first) <= 5,
        "{first} requests for the first hundred, {last} for the last"
    );
    emulator.shutdown().await;
}
