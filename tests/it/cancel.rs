//! Cancellation: decided once, carried out at once, and never counted as a failure.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::{
    fixtures::{LONG, RUNS, assert_items_valid, counts, ended, items, list, simple_run, text},
    server::{Server, until},
    stand_in::{Fault, Role, StandIn},
};

/// A worker in the middle of a model call has to be gone by then.
const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_what_waits_is_canceled_and_workers_let_go() {
    let stand_in = StandIn::start().await;
    let server = Server::start(&stand_in, &["--workers", "2"]).await;
    let api = &server.api;
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &simple_run(&stand_in, "stopped", 2, 6)).await;
    let run = text(&created["id"]);
    let path = format!("{RUNS}/{run}");
    until("two targets to hang", LONG, async || {
        (stand_in.count_of(Role::Target) == 2).then_some(())
    })
    .await;
    until("two items to be counted as running", LONG, async || {
        let run = api.get(&path).await;
        (counts(&run) == [6, 0, 0, 2, 4, 0]).then_some(run)
    })
    .await;

    // One that waits, one that runs. The requests have no body and no content type.
    let all = items(api, run, 100).await;
    for status in ["queued", "running"] {
        let item = all.iter().find(|item| item["status"] == status).unwrap();
        let path = format!("{path}/item/{}", text(&item["id"]));
        let canceled = api.patch(&path).await;
        assert_eq!(canceled["status"], "canceled");
        assert!(canceled["canceledAt"].is_string() && canceled.get("failedAt").is_none());
        let (status, body) = api.call(Method::PATCH, &path, None).await;
        assert_eq!(
            (status, text(&body["message"])),
            (400, "Run item has already ended")
        );
    }
    until("the worker to let go of the item", SOON, async || {
        (stand_in.count_of(Role::Target) == 3).then_some(())
    })
    .await;
    assert_eq!(stand_in.in_flight(), 2, "and to take the next one");

    let canceled = api.patch(&path).await;
    assert_eq!(canceled["id"], created["id"]);
    until("all workers to let go", SOON, async || {
        (stand_in.in_flight() == 0).then_some(())
    })
    .await;
    let done = ended(api, run).await;
    assert_eq!(counts(&done), [6, 0, 0, 0, 0, 6]);
    assert_eq!(done["endedReason"], "canceled");
    let (status, body) = api.call(Method::PATCH, &path, None).await;
    assert_eq!((status, text(&body["message"])), (400, "Run has already ended"));
    let all = items(api, run, 100).await;
    assert_items_valid(&all);
    assert!(
        all.iter()
            .all(|item| item["status"] == "canceled" && item.get("results").is_none())
    );

    // A late reply changes nothing, and the workers are free for others.
    stand_in.release();
    let next = api.post(RUNS, &simple_run(&stand_in, "next", 1, 2)).await;
    assert_eq!(counts(&ended(api, text(&next["id"])).await), [2, 2, 0, 0, 0, 0]);
    assert_eq!(items(api, run, 100).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cancellations_at_once_are_one() {
    let stand_in = StandIn::start().await;
    let server = Server::start(&stand_in, &["--workers", "3"]).await;
    let api = &server.api;
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let mut body = simple_run(&stand_in, "raced", 2, 10);
    let entry = body["simulations"][0].clone();
    body["simulations"] = json!(vec![entry; 13]);
    let created = api.post(RUNS, &body).await;
    assert_eq!(
        list(&created["simulationRunItemIds"]).len(),
        130,
        "more than fit into one partition"
    );
    let path = format!("{RUNS}/{}", text(&created["id"]));
    until("a target to hang", LONG, async || {
        (stand_in.in_flight() > 0).then_some(())
    })
    .await;
    let answers = futures_util::future::join_all((0..8).map(|_| api.call(Method::PATCH, &path, None))).await;
    assert!(
        answers
            .iter()
            .all(|(status, _)| matches!(status, 200 | 400 | 409)),
        "{answers:#?}"
    );
    // One of them did it; the others came too late for it, or in between.
    assert!(answers.iter().any(|(status, _)| *status == 200));
    let done = ended(api, text(&created["id"])).await;
    assert_eq!(counts(&done), [130, 0, 0, 0, 0, 130]);
    assert_eq!(done["itemCounts"]["distinctSimulationTotal"], json!(13));
}
