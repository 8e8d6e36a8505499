use proptest::{prelude::*, sample::Index};

use super::*;

const NOW: i64 = 1_700_000_000_000;

fn item() -> Item {
    Item::admitted(Uuid::nil(), ids::new_id(NOW), 7, 5, NOW)
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![Just(Source::Inferred), Just(Source::LookUp), Just(Source::Report)]
}

fn observation() -> impl Strategy<Value = Facts> {
    prop_oneof![
        (source(), 0_i64..50).prop_map(|(source, at)| Facts::started(source, NOW + at)),
        (source(), 0_i64..50, "[a-c]").prop_map(|(source, at, why)| Facts::ended(source, NOW + at, &why)),
        (source(), 0_i64..9).prop_map(|(source, value)| Facts {
            cost: Some(Fact { source, value }),
            ..Facts::default()
        }),
        (source(), "[a-c]").prop_map(|(source, id)| Facts::call(source, &id)),
    ]
}

/// What users and workers can see of an item, without the count of writes.
fn visible(item: &Item) -> (State, Owed, Facts, Option<Lease>, Option<Failure>) {
    (
        item.state,
        item.owed,
        item.facts.clone(),
        item.lease.clone(),
        item.failure.clone(),
    )
}

#[derive(Debug, Clone)]
enum Step {
    Observe(Facts),
    Claim,
    ClaimEvaluation,
    Renew,
    Yield,
    End,
    Retry,
    Fail,
    Pass,
    Cancel,
    Requeue(bool),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        observation().prop_map(Step::Observe),
        Just(Step::Claim),
        Just(Step::ClaimEvaluation),
        Just(Step::Renew),
        Just(Step::Yield),
        Just(Step::End),
        Just(Step::Retry),
        Just(Step::Fail),
        Just(Step::Pass),
        Just(Step::Cancel),
        any::<bool>().prop_map(Step::Requeue),
        (0_i64..400_000).prop_map(Step::Wait),
    ]
}

fn apply(item: &Item, step: &Step, owner: &str, now: i64) -> Result<Item, Refused> {
    let failure = Failure::new("it broke", Some(Fault::Provider));
    match step {
        Step::Observe(facts) => Ok(item.observe(facts.clone(), now)),
        Step::Claim => item.claim(owner, 75_000, now),
        Step::ClaimEvaluation => item.claim_evaluation(owner, 75_000, now),
        Step::Renew => item.renew(owner, 75_000, now),
        Step::Yield => item.yield_slice(owner, now),
        Step::End => item.end_conversation(owner, "customer-ended-call", now),
        Step::Retry => item.retry(owner, &failure, false, now),
        Step::Fail => item.fail(owner, &failure, now),
        Step::Pass => item.decide(owner, Ok(()), now),
        Step::Cancel => item.cancel(now),
        Step::Requeue(void) => item.requeue(*void, now),
        Step::Wait(_) => Ok(item.clone()),
    }
}

proptest! {
    #[test]
    fn observations_in_any_order_and_number_give_the_same_item(
        history in prop::collection::vec(observation(), 0..8),
        shuffle in prop::collection::vec(any::<Index>(), 0..24),
    ) {
        let straight = history.iter().fold(item(), |item, facts| item.observe(facts.clone(), NOW));
        // Any picks, then all of them backwards: a permutation with duplicates.
        let mixed = shuffle
            .iter()
            .filter(|_| !history.is_empty())
            .map(|index| index.get(&history))
            .chain(history.iter().rev())
            .fold(item(), |item, facts| item.observe(facts.clone(), NOW));
        prop_assert_eq!(visible(&straight), visible(&mixed));
    }

    #[test]
    fn joining_is_commutative_associative_and_idempotent(a in observation(), b in observation(), c in observation()) {
        prop_assert_eq!(a.clone().join(b.clone()), b.clone().join(a.clone()));
        prop_assert_eq!(a.clone().join(b.clone()).join(c.clone()), a.clone().join(b.join(c)));
        prop_assert_eq!(a.clone().join(a.clone()), a);
    }

    #[test]
    fn state_never_goes_back_and_the_first_decision_stays(
        steps in prop::collection::vec((step(), prop_oneof![Just("a"), Just("b")]), 0..40),
    ) {
        let (mut current, mut now) = (item(), NOW);
        for (step, owner) in &steps {
            if let Step::Wait(ms) = step {
                now += ms;
            }
            let Ok(next) = apply(&current, step, owner, now) else { continue };
            prop_assert!(next.state >= current.state, "{:?} -> {:?} by {:?}", current.state, next.state, step);
            if current.state.is_terminal() {
                prop_assert_eq!(next.state, current.state);
                prop_assert_eq!(&next.failure, &current.failure);
                prop_assert_eq!(next.decided_at, current.decided_at);
            }
            // Whatever is open is owed something and somebody will look after it; whatever is over is left alone.
            prop_assert_eq!(next.state.is_terminal(), next.owed == Owed::Nothing);
            prop_assert_eq!(next.owed == Owed::Nothing, next.due_at.is_none());
            prop_assert!(matches!(step, Step::Wait(_)) || next.version == current.version + 1);
            current = next;
        }
    }

    #[test]
    fn only_one_of_two_workers_holds_an_item(wait in 0_i64..200_000) {
        let held = item().claim("a", 75_000, NOW).unwrap();
        let now = NOW + wait;
        let second = held.claim("b", 75_000, now);
        prop_assert_eq!(second.is_ok(), wait >= 75_000);
        if let Ok(taken) = second {
            prop_assert_eq!(taken.renew("a", 75_000, now), Err(Refused::Held));
            prop_assert_eq!(taken.end_conversation("a", "x", now), Err(Refused::Held));
        }
    }
}

#[test]
fn an_item_lives_from_start_to_verdict() {
    let running = item().claim("a", 75_000, NOW).unwrap();
    assert_eq!(
        (running.state, running.owed, running.waiting()),
        (State::Running, Owed::Continue, None)
    );
    assert_eq!(running.due_at, Some(NOW + 75_000));
    let yielded = running.yield_slice("a", NOW + 10).unwrap();
    assert_eq!(yielded.waiting(), Some(Owed::Continue));
    let again = yielded.claim("b", 75_000, NOW + 20).unwrap();
    assert_eq!(again.started_at(), Some(NOW), "the conversation started once");
    let ended = again
        .end_conversation("b", "customer-ended-call", NOW + 30)
        .unwrap();
    assert_eq!(
        (ended.state, ended.waiting()),
        (State::Evaluating, Some(Owed::Evaluate))
    );
    assert_eq!(ended.claim("c", 1, NOW + 30), Err(Refused::Past));
    let judged = ended.claim_evaluation("c", 75_000, NOW + 40).unwrap();
    let failed = judged
        .decide("c", Err(Failure::new("no", None)), NOW + 50)
        .unwrap();
    assert_eq!((failed.state, failed.decided_at), (State::Failed, Some(NOW + 50)));
    assert_eq!(failed.cancel(NOW + 60), Err(Refused::Past));
}

#[test]
fn attempts_pause_longer_and_end_in_failure() {
    let failure = Failure::new("the model answered 503", Some(Fault::Target));
    let (mut current, mut now) = (item(), NOW);
    let mut pauses = Vec::new();
    while !current.state.is_terminal() {
        current = current
            .claim("a", 75_000, now)
            .unwrap()
            .retry("a", &failure, false, now)
            .unwrap();
        if let Some(again) = current.not_before {
            assert_eq!(current.claim("a", 75_000, now), Err(Refused::TooEarly));
            pauses.push(again - now);
            now = again;
        }
    }
    assert_eq!(pauses, [5_000, 20_000, 80_000]);
    assert_eq!(current.failure, Some(failure));
}

#[test]
fn requeueing_backs_off_and_keeps_the_step() {
    let mut current = item();
    assert_eq!(current.requeue(false, NOW), Err(Refused::TooEarly));
    let mut gaps = Vec::new();
    for _ in 0..7 {
        let now = current.due_at.unwrap();
        current = current.requeue(false, now).unwrap();
        gaps.push((current.due_at.unwrap() - now) / 60_000);
        assert_eq!(current.waiting(), Some(Owed::Start));
    }
    assert_eq!(gaps, [2, 4, 8, 16, 32, 60, 60]);
    let dead = item()
        .claim("gone", 75_000, NOW)
        .unwrap()
        .requeue(true, NOW + 1)
        .unwrap();
    assert!(
        dead.claim("new", 75_000, NOW + 1).is_ok(),
        "the lease of a process that is gone is void"
    );
}

#[test]
fn a_missing_message_is_believed_to_be_lost_only_the_second_time() {
    let fresh = item();
    assert_eq!(fresh.miss(NOW), Err(Refused::TooEarly), "it is not due");
    let due = fresh.due_at.unwrap();
    let noted = fresh.miss(due).unwrap();
    assert_eq!(
        (noted.missed_at, noted.due_at, noted.requeues, noted.waiting()),
        (Some(due), Some(due), 0, fresh.waiting())
    );
    assert!(!noted.begins_to_wait(Some(&fresh)), "nobody sends it for that");
    assert_eq!(noted.miss(due + SURE_AFTER_MS - 1), Err(Refused::TooEarly));
    let sent = noted.miss(due + SURE_AFTER_MS).unwrap();
    assert_eq!((sent.missed_at, sent.requeues), (None, 1));
    assert_eq!(sent.due_at, Some(due + SURE_AFTER_MS + REQUEUE_AFTER_MS));
    // Whoever has the message after all claims the item as if nothing had been noted.
    let held = noted.claim("a", 75_000, due).unwrap();
    assert_eq!(
        (held.missed_at, held.miss(due + 999_999)),
        (None, Err(Refused::Past))
    );
    let over = noted.cancel(due).unwrap();
    assert_eq!(
        (over.missed_at, over.miss(due + 999_999)),
        (None, Err(Refused::Past))
    );
}

#[test]
fn tallies_count_each_item_once() {
    let base = item();
    let of = |index: u32, state: State| Item {
        state,
        index,
        simulation: index / 5,
        ..base.clone()
    };
    let items = [
        of(0, State::Admitted),
        of(1, State::Running),
        of(5, State::Failed),
        of(6, State::Canceled),
        of(9, State::Passed),
    ];
    let tally = Tally::of(items.iter().map(Item::standing));
    assert_eq!(
        (
            tally.queued,
            tally.running,
            tally.passed,
            tally.failed,
            tally.canceled
        ),
        (1, 1, 1, 1, 1)
    );
    assert_eq!(
        (tally.total, tally.terminal(), tally.failed_simulations.clone()),
        (5, 3, vec![1])
    );
    let (first, second) = items.split_at(2);
    let halves = Tally::sum(&[first, second].map(|half| Tally::of(half.iter().map(Item::standing))));
    assert_eq!(halves, tally);
}

#[test]
fn a_long_reason_says_that_it_was_cut() {
    let failure = Failure::new(&"ä".repeat(400), None);
    assert_eq!(failure.reason.chars().count(), Failure::MAX_REASON);
    assert!(failure.reason.ends_with('…'));
}

#[test]
fn what_was_held_before_is_only_judged() {
    let item = item().held_before();
    assert_eq!(
        (item.state, item.waiting(), item.is_over()),
        (State::Evaluating, Some(Owed::Evaluate), true)
    );
    assert!(item.begins_to_wait(None) && item.due_at.is_some());
    assert_eq!(item.claim("a", 1000, NOW), Err(Refused::Past));
    assert_eq!(item.claim_call("a", 1000, 1000, NOW), Err(Refused::Past));
    let held = item.claim_evaluation("a", 1000, NOW).unwrap();
    let passed = held.decide("a", Ok(()), NOW).unwrap();
    assert_eq!((passed.state, passed.owed), (State::Passed, Owed::Nothing));
    // A worker that died is followed by another one, and what is canceled stays so.
    let swept = held.requeue(true, NOW + 1).unwrap();
    assert!(swept.claim_evaluation("b", 1000, NOW + 1).is_ok());
    let canceled = held.cancel(NOW).unwrap();
    assert_eq!((canceled.state, canceled.owed), (State::Canceled, Owed::Nothing));
    assert_eq!(held.started_at(), None);
}

proptest! {
    #[test]
    fn a_tally_is_read_as_it_was_written(failed in proptest::collection::btree_set(0..100_000_u32, 0..50)) {
        let tally = Tally {
            failed_simulations: failed.into_iter().collect(),
            ..Tally::default()
        };
        let written = serde_json::to_string(&tally).unwrap();
        prop_assert!(written.len() < 20_000, "a run's head has room for it");
        prop_assert_eq!(serde_json::from_str::<Tally>(&written).unwrap(), tally);
    }
}

#[test]
fn rows_of_an_older_version_are_read_and_what_is_absent_takes_no_place() {
    let item = Item::admitted(Uuid::from_u128(1), Uuid::from_u128(2), 3, 1, 5);
    let mut row = serde_json::to_value(&item).unwrap();
    assert_eq!(row["stateSince"], 5);
    assert!(row.get("trace").is_none());
    row.as_object_mut().unwrap().remove("stateSince");
    let old: Item = serde_json::from_value(row.clone()).unwrap();
    assert_eq!((old.state_since, old.trace), (None, None));
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (stored, read) in [
        (serde_json::json!(traceparent), Some(traceparent.to_owned())),
        (serde_json::json!("what nobody wrote"), None),
        (serde_json::json!(null), None),
    ] {
        row["trace"] = stored;
        let item: Item = serde_json::from_value(row.clone()).unwrap();
        assert_eq!(item.trace.map(|trace| trace.to_string()), read);
    }
}
