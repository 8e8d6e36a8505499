//! Many items by one request.

use std::{collections::BTreeSet, time::Duration};

use ringback_local::emulator::{Emulator, Storage};
use ringback_shared::store::{RunHead, RunKey, Store};
use serde_json::json;

use crate::{
    fixtures::{
        LONG, RUNS, assert_counted, assistant, counts, ended, ids, inline_target, items, list, regex, run,
        text,
    },
    server::{Server, until},
    stand_in::{Fault, Role, StandIn},
};

/// The run's head as it lies in the folder of a program that is dead.
async fn head(server: &Server, org: &str, run: &str) -> RunHead {
    let emulator = Emulator::start(Storage::File(server.folder.path().join("data/table.sqlite")))
        .await
        .unwrap();
    let store = Store::new(emulator.dynamodb().config().clone(), "ringback");
    let head = store
        .run(RunKey::simulation(org.parse().unwrap(), run.parse().unwrap()))
        .await
        .unwrap()
        .unwrap();
    emulator.shutdown().await;
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_items_are_there_at_once_and_none_is_lost_or_doubled_by_a_crash() {
    // A program that was not optimized takes minutes for all of them: then some verdicts are enough.
    large(300, if cfg!(debug_assertions) { 20 } else { 3000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_expansion_was_broken_off_drains() {
    large(11, 110).await;
}

/// A run of `entries` times ten items, killed in its expansion, watched until so many have passed.
async fn large(entries: usize, verdicts: u64) {
    let total = entries as u64 * 10;
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    // The shortest of conversations: a fixed greeting and one reply that ends it; the verdict needs no model.
    let scenario = json!({"name": "Short", "instructions": "Ask.", "evaluations": [
        regex("yes", "Yes, it is", "boolean", "=", json!(true))]});
    let personality = json!({"name": "Pat", "assistant": {"firstMessage": "Is this the clinic?"}});
    let scenario = server.api.post("/eval/simulation/scenario", &scenario).await;
    let personality = server
        .api
        .post("/eval/simulation/personality", &personality)
        .await;
    let entry =
        json!({"type": "simulation", "scenarioId": scenario["id"], "personalityId": personality["id"]});
    let mut target = assistant(&stand_in, "<<{\"say\":\"Yes, it is. Goodbye.\"}>>");
    target["endCallPhrases"] = json!(["goodbye"]);
    let body = run(json!(vec![entry; entries]), inline_target(&target), 10);

    // Nobody comes far before all of it was looked at.
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = server.api.post(RUNS, &body).await;
    let wanted: BTreeSet<String> = list(&created["simulationRunItemIds"])
        .iter()
        .map(|id| text(id).to_owned())
        .collect();
    assert_eq!(wanted.len() as u64, total);
    let run = text(&created["id"]);
    let path = format!("{RUNS}/{run}");
    assert_counted(&server.api.get(&path).await, total);
    let last = text(list(&created["simulationRunItemIds"]).last().unwrap());
    let unborn = server.api.get(&format!("{path}/item/{last}")).await;
    assert_eq!(
        (&unborn["status"], &unborn["iterationNumber"]),
        (&json!("queued"), &json!(10))
    );

    // An item that is stored was written after its run was created.
    let early = text(&created["simulationRunItemIds"][60]);
    until("the expansion to be under way", LONG, async || {
        let item = server.api.get(&format!("{path}/item/{early}")).await;
        (item["updatedAt"] != item["createdAt"]).then_some(())
    })
    .await;
    server.kill_9();
    let broken_off: u64 = head(&server, text(&created["orgId"]), run).await.expanded.into();
    // A short expansion may be over before the kill; the long one never is.
    assert!(
        broken_off >= 1 && (broken_off < total || total < 3000),
        "killed in the middle of the expansion: {broken_off}"
    );

    server.restart().await;
    assert_counted(&server.api.get(&path).await, total);
    assert_eq!(ids(&items(&server.api, run, 500).await), wanted);
    stand_in.release();
    let run = until("the verdicts", Duration::from_secs(900), async || {
        let run = server.api.get(&path).await;
        assert_counted(&run, total);
        tokio::time::sleep(Duration::from_millis(100)).await;
        (counts(&run)[1] >= verdicts).then_some(run)
    })
    .await;
    assert_eq!(run["itemCounts"]["distinctSimulationTotal"], json!(entries));
    assert_eq!(run["itemCounts"]["failed"], json!(0));
    if verdicts < total {
        return;
    }
    let done = ended(&server.api, text(&run["id"])).await;
    assert_eq!(counts(&done), [total, total, 0, 0, 0, 0]);
    let passed = server
        .api
        .get(&format!("{path}/item?status=passed&limit=1"))
        .await;
    assert_eq!(passed["metadata"]["totalItems"], json!(total));
    // Nothing was asked twice but for what was under way at the crash.
    let calls = u64::try_from(stand_in.count()).unwrap();
    assert!(
        (total..=total + 16).contains(&calls),
        "{calls} calls for {total} verdicts"
    );
}
