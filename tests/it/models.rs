//! Models that fail: what passes again is tried again, and what does not is told apart by whose fault it was.

use serde_json::{Value, json};

use crate::{
    fixtures::{
        RUNS, assert_items_valid, assistant, counts, ended, evaluation, items, list, simple_run, text,
    },
    server::{Api, local},
    stand_in::{Fault, Role, StandIn},
};

/// Runs one item to its end.
async fn one(api: &Api, body: &Value) -> (Value, Value) {
    let created = api.post(RUNS, body).await;
    let done = ended(api, text(&created["id"])).await;
    let mut items = items(api, text(&created["id"]), 10).await;
    assert_items_valid(&items);
    assert_eq!(items.len(), 1);
    (done, items.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_pass_are_waited_out() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    // More than one call's own attempts: the item is given back and taken again.
    stand_in.fail(Role::Target, 4, Fault::Status(503));
    let (done, item) = one(&api, &simple_run(&stand_in, "patient", 2, 1)).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{item:#}");
    assert_eq!(stand_in.count_of(Role::Target), 2 + 4);
    assert_eq!(
        stand_in.count_of(Role::Tester),
        3,
        "what was said is not said again"
    );
    assert_eq!(
        (item.get("failureReason"), item.get("failureFault")),
        (None, None)
    );

    stand_in.forget();
    stand_in.fail(Role::Tester, 1, Fault::TryAgain);
    stand_in.fail(Role::Target, 2, Fault::TryAgain);
    stand_in.fail(Role::Judge, 1, Fault::Status(500));
    stand_in.judge("booked", json!(true));
    let mut body = simple_run(&stand_in, "limited", 1, 1);
    body["simulations"][0]["scenario"]["evaluations"] =
        json!([evaluation("booked", "boolean", "=", json!(true))]);
    let (done, item) = one(&api, &body).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{item:#}");
    assert_eq!(
        (stand_in.count_of(Role::Judge), stand_in.count()),
        (2, 2 + 1 + 1 + 2 + 2)
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_stay_are_failures_and_name_the_one_at_fault() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    for (role, fault, at_fault) in [
        (Role::Target, Fault::Status(400), "target"),
        (Role::Target, Fault::Status(401), "target"),
        (Role::Target, Fault::NoCompletion, "target"),
        (Role::Tester, Fault::Status(400), "tester"),
        (Role::Tester, Fault::NoCompletion, "tester"),
    ] {
        stand_in.release();
        stand_in.forget();
        stand_in.fail(role, 1, fault.clone());
        let (done, item) = one(&api, &simple_run(&stand_in, "broken", 1, 1)).await;
        assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
        assert_eq!(
            (&item["status"], &item["failureFault"]),
            (&json!("failed"), &json!(at_fault)),
            "{fault:?}: {item:#}"
        );
        let reason = text(&item["failureReason"]);
        assert!(reason.contains(at_fault) && reason.len() <= 2000, "{reason}");
        assert!(item["failedAt"].is_string() && item.get("completedAt").is_none());
        assert_eq!(item.get("results"), None, "there was nothing to judge");
        assert_eq!(
            stand_in.calls().iter().filter(|call| call.role == role).count(),
            1,
            "it is of no use to ask again"
        );
    }
    // What was said until then is kept.
    stand_in.release();
    let mut body = simple_run(&stand_in, "halfway", 3, 1);
    body["target"]["assistant"] = assistant(&stand_in, "x");
    body["target"]["assistant"]["model"]["url"] = json!("http://127.0.0.1:1/v1");
    body["target"]["assistant"]["model"]["provider"] = json!("nobody");
    let (_, item) = one(&api, &body).await;
    assert!(!list(&item["metadata"]["call"]["messages"]).is_empty());
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_that_makes_no_sense_passes_nobody() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut body = simple_run(&stand_in, "judged", 1, 1);
    let evaluations = json!([
        evaluation("booked", "boolean", "=", json!(true)),
        evaluation("visits", "integer", ">=", json!(1)),
    ]);
    body["simulations"][0]["scenario"]["evaluations"] = evaluations;
    // However often it is asked.
    stand_in.fail(Role::Judge, usize::MAX, Fault::Nonsense);
    let (done, item) = one(&api, &body).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    for evaluation in list(&item["results"]["evaluations"]) {
        assert_eq!(
            (&evaluation["passed"], &evaluation["extractedValue"]),
            (&json!(false), &Value::Null)
        );
        assert!(!text(&evaluation["error"]).is_empty());
    }
    assert_eq!(list(&item["results"]["evaluations"]).len(), 2);

    // A value of the wrong type is no value.
    stand_in.release();
    stand_in.judge("booked", json!("perhaps"));
    stand_in.judge("visits", json!(1.5));
    let (done, item) = one(&api, &body).await;
    assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0]);
    for evaluation in list(&item["results"]["evaluations"]) {
        assert_eq!(evaluation["passed"], false);
        assert!(!text(&evaluation["error"]).is_empty());
    }
    local.shutdown().await;
}
