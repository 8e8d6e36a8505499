//! A killed process loses nothing and does nothing twice, but for the one reply that was not yet written.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    fixtures::{
        LONG, RUNS, assert_counted, assert_items_valid, batch, counts, ended, evaluation, items, simple_run,
        text,
    },
    server::{Server, until},
    stand_in::{Call, Fault, Role, StandIn},
};

/// How often each call of each conversation was made.
pub(crate) fn by_caller(calls: &[Call]) -> BTreeMap<usize, BTreeMap<(Role, String), usize>> {
    let mut callers = BTreeMap::<_, BTreeMap<_, _>>::new();
    for call in calls.iter().filter(|call| call.caller != 0) {
        *callers
            .entry(call.caller)
            .or_default()
            .entry((call.role, call.step.clone()))
            .or_default() += 1;
    }
    callers
}

/// What is the same whoever held the conversation, and when.
fn comparable(value: &Value) -> Value {
    const OWN: [&str; 16] = [
        "id",
        "runId",
        "sessionId",
        "simulationId",
        "queuedAt",
        "createdAt",
        "updatedAt",
        "startedAt",
        "completedAt",
        "failedAt",
        "endedAt",
        "time",
        "endTime",
        "secondsFromStart",
        "scenarioId",
        "personalityId",
    ];
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !OWN.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), comparable(value)))
            .collect(),
        Value::Array(values) => values.iter().map(comparable).collect(),
        Value::String(text) => {
            let mut parts = text.split("caller ");
            let first = parts.next().unwrap_or_default().to_owned();
            let rest =
                parts.map(|part| format!("caller {}", part.trim_start_matches(|c: char| c.is_ascii_digit())));
            json!(first + &rest.collect::<String>())
        }
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_killed_halfway_goes_on_to_the_same_verdicts() {
    let stand_in = StandIn::start().await;
    stand_in.latency(Duration::from_millis(40));
    let mut server = Server::start(&stand_in, &[]).await;
    let body = batch(&server.api, &stand_in, 5).await;
    let run = server.api.post(RUNS, &body).await;
    ended(&server.api, text(&run["id"])).await;
    let expected = items(&server.api, text(&run["id"]), 100).await;
    let uninterrupted = stand_in.count();
    let callers = by_caller(&stand_in.calls());
    assert!(
        callers
            .values()
            .flat_map(BTreeMap::values)
            .all(|&times| times == 1)
    );
    stand_in.forget();

    let run = server.api.post(RUNS, &body).await;
    let run = text(&run["id"]);
    until("half of the calls", LONG, async || {
        (stand_in.count() >= uninterrupted / 2).then_some(())
    })
    .await;
    server.kill_9();
    let before = stand_in.count();
    assert!(before < uninterrupted, "it was still going on");
    server.restart().await;
    assert_counted(&server.api.get(&format!("{RUNS}/{run}")).await, 15);

    let done = ended(&server.api, run).await;
    assert_eq!(counts(&done), [15, 10, 5, 0, 0, 0]);
    let all = items(&server.api, run, 100).await;
    assert_items_valid(&all);
    let comparable = |items: &[Value]| items.iter().map(comparable).collect::<Vec<_>>();
    assert_eq!(comparable(&all), comparable(&expected));

    // At most one call of each conversation was made again, and no other.
    let callers = by_caller(&stand_in.calls());
    let (held, begun): (Vec<_>, Vec<_>) = callers.values().partition(|calls| calls.len() > 1);
    assert_eq!(held.len(), 15, "{callers:#?}");
    assert!(
        begun.is_empty(),
        "a conversation that nobody went on with: {begun:?}"
    );
    for calls in held {
        let again: usize = calls.values().map(|times| times - 1).sum();
        assert!(again <= 1, "{calls:#?}");
    }
    let again = stand_in.count() - uninterrupted;
    assert!(again <= 15, "{again} calls were repeated for 15 conversations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_judges_judges_again_and_talks_no_more() {
    let stand_in = StandIn::start().await;
    stand_in.judge("booked", json!(true));
    let mut server = Server::start(&stand_in, &[]).await;
    let mut body = simple_run(&stand_in, "judged", 2, 4);
    body["simulations"][0]["scenario"]["evaluations"] =
        json!([evaluation("booked", "boolean", "=", json!(true))]);
    stand_in.fail(Role::Judge, 4, Fault::Hang);
    let run = server.api.post(RUNS, &body).await;
    let run = text(&run["id"]);
    until("four judges", LONG, async || {
        (stand_in.count_of(Role::Judge) == 4).then_some(())
    })
    .await;
    let at_work = server.api.get(&format!("{RUNS}/{run}")).await;
    assert_eq!(
        counts(&at_work),
        [4, 0, 0, 4, 0, 0],
        "what is being judged is running"
    );
    server.kill_9();
    stand_in.release();
    let talked = stand_in.count() - 4;
    server.restart().await;

    let done = ended(&server.api, run).await;
    assert_eq!(counts(&done), [4, 4, 0, 0, 0, 0]);
    assert_eq!(stand_in.count_of(Role::Judge), 8, "each once more");
    assert_eq!(stand_in.count() - 8, talked, "no word was said again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_run_stays_as_it_is_over_a_crash() {
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    let run = server.api.post(RUNS, &simple_run(&stand_in, "kept", 2, 3)).await;
    let run = text(&run["id"]);
    let before = ended(&server.api, run).await;
    let (listed, calls) = (items(&server.api, run, 2).await, stand_in.count());
    server.kill_9();
    server.restart().await;
    assert_eq!(server.api.get(&format!("{RUNS}/{run}")).await, before);
    assert_eq!(items(&server.api, run, 2).await, listed);
    assert_eq!(stand_in.count(), calls);
}
