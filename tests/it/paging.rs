//! Pages: that they hold every entry exactly once whatever happens meanwhile, in every order, and that none is too large.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use ringback_shared::clock::parse_iso;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, assert_refused, passing},
    fixtures::{
        LONG, RUNS, assert_items_valid, assert_valid, assistant, counts, ended, ids, inline, inline_target,
        list, pages, personality, regex, run, simple_run, text,
    },
    server::{Api, local, until},
    stand_in::{Fault, Role, StandIn},
};

/// What Lambda can answer with, in bytes.
const LAMBDA: usize = 6_291_456;

/// Whether the first time is in the range that the second one bounds.
type Compare = fn(i64, i64) -> bool;

fn named(entries: &[Value]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| text(&entry["id"]).to_owned())
        .collect()
}

/// A list as one page, its entries' ids and the page after it.
async fn page(api: &Api, path: &str, query: &str) -> (Vec<String>, Option<String>) {
    let page = api.get(&format!("{path}?{query}")).await;
    let metadata = &page["metadata"];
    assert_valid("PaginationMeta", metadata);
    let next = metadata["nextCursor"].as_str().map(str::to_owned);
    assert_eq!(metadata["hasNextPage"], json!(next.is_some()));
    (named(list(&page["results"])), next)
}

/// All of a list by its cursors, `limit` at a time.
async fn paged(api: &Api, path: &str, query: &str, limit: usize) -> Vec<String> {
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let (some, next) = page(api, path, &format!("{query}&limit={limit}{cursor}")).await;
        paged.extend(some);
        match next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return paged,
        }
    }
}

/// The same, which is also what one page of all holds.
async fn sorted(api: &Api, path: &str, query: &str, limit: usize) -> Vec<String> {
    let whole = api.get(&format!("{path}?page=1&limit=1000&{query}")).await;
    let whole = named(list(&whole["results"]));
    assert_eq!(paged(api, path, query, limit).await, whole, "{path}?{query}");
    whole
}

/// A run of the shortest of conversations: a fixed greeting and one reply that ends it; the verdict needs no model.
fn short(stand_in: &StandIn, personality: &Value, entries: usize, iterations: u32) -> Value {
    let scenario = json!({"name": "Short", "instructions": "Ask.", "evaluations": [
        regex("yes", "Yes, it is", "boolean", "=", json!(true))]});
    let mut target = assistant(stand_in, "<<{\"say\":\"Yes, it is. Goodbye.\"}>>");
    target["endCallPhrases"] = json!(["goodbye"]);
    let entry = inline(&scenario, personality);
    run(json!(vec![entry; entries]), inline_target(&target), iterations)
}

fn greeter() -> Value {
    json!({"name": "Pat", "assistant": {"firstMessage": "Is this the clinic?"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_items_come_once_each_while_they_change() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let created = api.post(RUNS, &short(&stand_in, &greeter(), 100, 10)).await;
    let mut wanted: Vec<String> = list(&created["simulationRunItemIds"])
        .iter()
        .map(|id| text(id).to_owned())
        .collect();
    wanted.reverse();
    assert_eq!(wanted.len(), 1000);
    let run = format!("{RUNS}/{}", text(&created["id"]));
    until("targets to hang", LONG, async || {
        (stand_in.in_flight() > 0).then_some(())
    })
    .await;

    let items = format!("{run}/item");
    let (mut by_number, mut by_cursor, mut cursor) = (Vec::new(), Vec::new(), String::new());
    let mut seen = BTreeSet::new();
    for number in 1..=10 {
        for (query, all) in [
            (format!("page={number}&limit=100"), &mut by_number),
            (format!("limit=100{cursor}"), &mut by_cursor),
        ] {
            let page = api.get(&format!("{items}?{query}")).await;
            let (results, metadata) = (list(&page["results"]), &page["metadata"]);
            assert_eq!((results.len(), &metadata["totalItems"]), (100, &json!(1000)));
            assert_eq!(metadata["hasNextPage"], json!(number < 10));
            cursor = metadata["nextCursor"]
                .as_str()
                .map_or(String::new(), |next| format!("&cursor={next}"));
            seen.extend(results.iter().map(|item| text(&item["status"]).to_owned()));
            all.extend(named(results));
        }
        match number {
            2 => stand_in.release(),
            4 => {
                until("some verdicts", LONG, async || {
                    (counts(&api.get(&run).await)[1] >= 5).then_some(())
                })
                .await;
            }
            6 => {
                api.patch(&run).await;
            }
            8 => {
                ended(&api, text(&created["id"])).await;
            }
            _ => {}
        }
    }
    assert_eq!(by_number, wanted);
    assert_eq!(by_cursor, wanted);
    // They did change meanwhile: the first pages had what waits, the last ones what is over.
    for status in ["queued", "passed"] {
        assert!(seen.contains(status), "{seen:?}");
    }

    // Those of one state are still each there once, and all states together are all.
    let mut by_status = Vec::new();
    for status in ["queued", "running", "evaluating", "passed", "failed", "canceled"] {
        by_status.extend(paged(&api, &items, &format!("status={status}"), 240).await);
    }
    by_status.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(by_status, wanted);
    local.shutdown().await;
}

/// From when to when, in milliseconds.
fn duration(from: &Value, until: &Value) -> Option<i64> {
    Some(parse_iso(until.as_str()?)? - parse_iso(from.as_str()?)?)
}

/// The ids by their key, then by id, the greatest first; what is not known comes last.
fn expected(keys: BTreeMap<String, Option<i64>>) -> Vec<String> {
    let mut keys: Vec<(Option<i64>, String)> = keys.into_iter().map(|(id, key)| (key, id)).collect();
    keys.sort_unstable();
    keys.into_iter().rev().map(|(_, id)| id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_and_items_are_sorted_by_duration_and_cost() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut runs = Vec::new();
    for (sim, turns) in [("long", 6), ("short", 1), ("middle", 3)] {
        let created = api.post(RUNS, &simple_run(&stand_in, sim, turns, 4)).await;
        ended(&api, text(&created["id"])).await;
        runs.push(text(&created["id"]).to_owned());
    }
    stand_in.fail(Role::Target, usize::MAX, Fault::Hang);
    let open = api.post(RUNS, &simple_run(&stand_in, "open", 1, 3)).await;
    let open = text(&open["id"]);

    let mut keys = BTreeMap::new();
    for run in list(&api.get(RUNS).await) {
        keys.insert(
            text(&run["id"]).to_owned(),
            duration(&run["startedAt"], &run["endedAt"]),
        );
    }
    let wanted = expected(keys);
    assert_eq!(wanted.last().map(String::as_str), Some(open), "it has none yet");
    assert_eq!(sorted(&api, RUNS, "sortBy=duration", 1).await, wanted);
    let backwards = sorted(&api, RUNS, "sortBy=duration&sortOrder=ASC", 3).await;
    assert!(backwards.iter().eq(wanted.iter().rev()));
    // A filter keeps the order.
    let over: Vec<String> = wanted.iter().filter(|id| *id != open).cloned().collect();
    assert_eq!(sorted(&api, RUNS, "sortBy=duration&status=ended", 2).await, over);

    for run in &runs {
        let items = format!("{RUNS}/{run}/item");
        let mut keys = BTreeMap::new();
        for item in list(&api.get(&items).await) {
            let call = &item["metadata"]["call"];
            keys.insert(
                text(&item["id"]).to_owned(),
                duration(&item["startedAt"], &call["endedAt"]),
            );
        }
        assert!(keys.values().all(Option::is_some));
        let wanted = expected(keys);
        assert_eq!(sorted(&api, &items, "sortBy=duration", 3).await, wanted);
        let backwards = sorted(&api, &items, "sortBy=duration&sortOrder=ASC&status=passed", 1).await;
        assert!(backwards.iter().eq(wanted.iter().rev()));
    }
    // Where nothing is known, what is newer comes first.
    let items = format!("{RUNS}/{open}/item");
    let by_creation = sorted(&api, &items, "", 2).await;
    for by in ["duration", "cost"] {
        assert_eq!(
            sorted(&api, &items, &format!("sortBy={by}"), 2).await,
            by_creation
        );
    }
    // A cursor is for the order that it was given in.
    let (_, next) = page(&api, RUNS, "limit=1").await;
    let path = format!("{RUNS}?limit=1&sortBy=duration&cursor={}", next.unwrap());
    assert_refused(&api.call(Method::GET, &path, None).await, 400, "cursor");
    stand_in.release();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_sorted_by_creation_and_their_cursors_hold_while_others_come_and_go() {
    let (local, api) = local(&StandIn::start().await).await;
    let assistant = json!({"model": {"provider": "openai", "model": "m"}});
    let output = json!({"name": "visits", "schema": {"type": "integer"}});
    let endpoint = json!({"name": "Phone", "url": "http://127.0.0.1:1/v1"});
    for (path, body, built_in) in [
        (PERSONALITY, personality("Pat"), 7),
        (SCENARIO, passing("x"), 0),
        ("/assistant", assistant, 0),
        ("/structured-output", output, 0),
        ("/endpoint", endpoint, 0),
    ] {
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(text(&api.post(path, &body).await["id"]).to_owned());
        }
        made.sort_unstable();
        let all = sorted(&api, path, "page=1&limit=100", 2).await;
        assert_eq!(all.len(), made.len() + built_in, "{path}");
        assert!(all.iter().take(5).eq(made.iter().rev()), "{path}");
        for by in ["duration", "cost", "createdAt", ""] {
            let query = format!("page=1&sortBy={by}");
            assert_eq!(sorted(&api, path, &query, 3).await, all, "{path}");
        }
        let backwards = sorted(&api, path, "page=1&sortOrder=ASC", 4).await;
        assert!(backwards.iter().eq(all.iter().rev()), "{path}");

        // Between two pages something new comes and what the first one ended with goes.
        let (first, next) = page(&api, path, "page=1&limit=2").await;
        assert_eq!(first, all[..2]);
        api.post(path, &body).await;
        api.delete(&format!("{path}/{}", first[1])).await;
        let cursor = next.unwrap();
        let (rest, next) = page(&api, path, &format!("page=9&limit=100&cursor={cursor}")).await;
        assert_eq!((rest.as_slice(), next), (&all[2..], None), "{path}");
        for wrong in ["x", "1", "cost.1.2"] {
            let path = format!("{path}?cursor={wrong}");
            assert_refused(&api.call(Method::GET, &path, None).await, 400, "cursor");
        }
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_the_shapes_that_clients_read() {
    let (local, api) = local(&StandIn::start().await).await;
    for name in ["visits", "mood"] {
        let output = json!({"name": name, "schema": {"type": "integer"}});
        api.post("/structured-output", &output).await;
        api.post(
            "/assistant",
            &json!({"name": name, "model": {"provider": "openai", "model": "m"}}),
        )
        .await;
    }
    let outputs = api.get("/structured-output").await;
    assert_valid("PaginationMeta", &outputs["metadata"]);
    let outputs = list(&outputs["results"]);
    assert_eq!(outputs.len(), 2, "always with metadata");
    let found = async |query: &str| {
        let found = api.get(&format!("/structured-output?{query}")).await;
        ids(list(&found["results"]))
    };
    let mood = outputs.iter().find(|output| output["name"] == "mood").unwrap();
    let mood = text(&mood["id"]);
    assert_eq!(found("name=MOO").await, BTreeSet::from([mood.to_owned()]));
    assert_eq!(
        found(&format!("id={mood}")).await,
        BTreeSet::from([mood.to_owned()])
    );
    assert_eq!(found("id=&name=").await.len(), 2);

    assert_eq!(list(&api.get("/assistant?limit=1").await).len(), 1, "a bare list");
    assert_eq!(
        list(&api.get("/assistant?limit=1&page=2").await["results"]).len(),
        1
    );
    for path in [
        PERSONALITY,
        SCENARIO,
        SIMULATION,
        "/eval/simulation/suite",
        RUNS,
        "/endpoint",
    ] {
        list(&api.get(path).await);
        list(&api.get(&format!("{path}?page=&limit=&cursor=")).await);
        for query in ["page=1", "limit=3"] {
            list(&api.get(&format!("{path}?{query}")).await["results"]);
        }
    }
    for wrong in ["standaloneOnly=1", "standaloneOnly=TRUE", "sortBy=name"] {
        let path = format!("{SIMULATION}?{wrong}");
        assert_refused(&api.call(Method::GET, &path, None).await, 400, "must be one of");
    }
    assert!(list(&api.get(&format!("{SIMULATION}?standaloneOnly=")).await).is_empty());
    // A span that ends before it begins holds nothing.
    let path = format!("{SCENARIO}?page=1&createdAtGe=2030-01-01T00:00:00Z&createdAtLe=2020-01-01T00:00:00Z");
    assert_eq!(api.get(&path).await["metadata"]["totalItems"], json!(0));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_found_by_all_their_filters() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut wrong = passing("wrong");
    wrong["evaluations"] = json!([regex("never", "Nobody says so", "boolean", "=", json!(true))]);
    let entries = json!([
        inline(&passing("right"), &personality("Pat")),
        inline(&wrong, &personality("Pat")),
    ]);
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    let created = api.post(RUNS, &run(entries, target, 3)).await;
    let id = text(&created["id"]);
    ended(&api, id).await;
    let items = format!("{RUNS}/{id}/item");
    let all = list(&api.get(&items).await).to_vec();
    assert_eq!(all.len(), 6);
    let found = async |query: &str| sorted(&api, &items, query, 2).await;
    let those = |fits: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let fit: Vec<Value> = all.iter().filter(|item| fits(item)).cloned().collect();
        named(&fit)
    };

    for status in ["queued", "running", "evaluating", "passed", "failed", "canceled"] {
        assert_eq!(
            found(&format!("status={status}")).await,
            those(&|item| item["status"] == status)
        );
    }
    assert_eq!(found("status=passed").await.len(), 3);
    assert_eq!(found("status=&simulationId=&runId=&updatedAtGt=").await.len(), 6);
    let simulation = text(&all[0]["simulationId"]);
    assert_eq!(
        found(&format!("simulationId={}", simulation.to_uppercase())).await,
        those(&|item| item["simulationId"] == simulation)
    );
    assert_eq!(found(&format!("runId={id}")).await.len(), 6);
    let other = "0190a000-0000-7000-8000-000000000001";
    for nothing in [format!("runId={other}"), format!("simulationId={other}")] {
        assert_eq!(found(&nothing).await.len(), 0);
    }
    for time in ["createdAt", "updatedAt"] {
        let at = |item: &Value| parse_iso(text(&item[time])).unwrap();
        let border = text(&all[2][time]);
        let limit = parse_iso(border).unwrap();
        let compare: [(&str, Compare); 4] = [
            ("Gt", |a, b| a > b),
            ("Ge", |a, b| a >= b),
            ("Lt", |a, b| a < b),
            ("Le", |a, b| a <= b),
        ];
        for (end, holds) in compare {
            assert_eq!(
                found(&format!("{time}{end}={border}")).await,
                those(&|item| holds(at(item), limit)),
                "{time}{end}"
            );
        }
    }
    let both = format!("status=failed&simulationId={simulation}&sortOrder=ASC");
    let mut wanted = those(&|item| item["status"] == "failed" && item["simulationId"] == simulation);
    wanted.reverse();
    assert_eq!(found(&both).await, wanted);

    for wrong in [
        "status=over",
        "status=Passed",
        "simulationId=7",
        "runId=7",
        "updatedAtLe=soon",
        "sortBy=name",
        "cursor=x",
        "cursor=0190a000-0000-7000-8000-000000000001",
    ] {
        let path = format!("{items}?{wrong}");
        assert_refused(&api.call(Method::GET, &path, None).await, 400, "");
    }
    local.shutdown().await;
}

/// Asks for something; gives it with its size in an answer of Lambda, where the body is a text in JSON.
async fn measured(api: &Api, path: &str) -> (Value, usize) {
    let answer = api.request(Method::GET, path).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200, "{path}");
    let body = answer.text().await.unwrap();
    let size = json!(body).to_string().len();
    assert!(size < LAMBDA, "{path} answered with {size} bytes");
    (body.parse().unwrap(), size)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_large_definitions_has_all_of_them_but_not_all_of_each() {
    let (local, api) = local(&StandIn::start().await).await;
    let mut body = personality("Large");
    body["path"] = json!("a/b");
    body["notes"] = json!("\"x\" ".repeat(50_000));
    let mut made = Vec::new();
    for _ in 0..24 {
        made.push(text(&api.post(PERSONALITY, &body).await["id"]).to_owned());
    }
    made.sort_unstable();
    made.reverse();
    for query in [
        "limit=1000",
        "page=1&name=",
        "updatedAtGe=2020-01-01T00:00:00Z&limit=100",
    ] {
        let (page, size) = measured(&api, &format!("{PERSONALITY}?{query}")).await;
        assert!(size > LAMBDA / 2, "there is more room: {size}");
        assert_eq!(page["metadata"]["totalItems"], json!(24 + 7));
        let entries = list(&page["results"]);
        assert!(named(entries).iter().take(24).eq(&made));
        let (brief, whole): (Vec<_>, Vec<_>) = entries.iter().partition(|one| one.get("omitted").is_some());
        assert!(
            brief.len() > 4 && whole.len() > 8,
            "{} of them whole",
            whole.len()
        );
        for one in brief.iter().filter(|one| one["name"] == "Large") {
            assert_eq!(one["omitted"], json!(["assistant", "notes"]));
            assert_eq!(one["path"], "a/b");
            assert!(one["createdAt"].is_string() && one["updatedAt"].is_string());
        }
        for one in whole.iter().filter(|one| one["name"] == "Large") {
            assert_eq!(one["notes"], body["notes"]);
        }
    }
    let (bare, _) = measured(&api, PERSONALITY).await;
    assert_eq!(list(&bare).len(), 24 + 7);
    let (one, _) = measured(&api, &format!("{PERSONALITY}/{}", made[20])).await;
    assert_eq!((&one["notes"], one.get("omitted")), (&body["notes"], None));
    // Small pages have everything.
    let all = pages(&api, PERSONALITY, 5).await;
    assert!(all.iter().all(|one| one.get("omitted").is_none()));

    // What was left out does not come back as a field, nor is it taken away.
    let path = format!("{PERSONALITY}/{}", made[20]);
    let change = json!({"name": "Other", "omitted": ["notes"]});
    let (status, changed) = api.call(Method::PATCH, &path, Some(&change)).await;
    assert_eq!((status, changed.get("omitted")), (200, None));
    assert_eq!(changed["notes"], body["notes"]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_large_items_has_all_of_them_with_their_results() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut caller = greeter();
    caller["notes"] = json!("x".repeat(300_000));
    let created = api.post(RUNS, &short(&stand_in, &caller, 5, 10)).await;
    ended(&api, text(&created["id"])).await;
    let items = format!("{RUNS}/{}/item", text(&created["id"]));
    let (page, size) = measured(&api, &format!("{items}?limit=1000")).await;
    assert!(size > LAMBDA / 2, "there is more room: {size}");
    assert_eq!(page["metadata"]["totalItems"], json!(50));
    let shown = list(&page["results"]);
    assert_items_valid(shown);
    assert_eq!(ids(shown).len(), 50);
    let omitted = |item: &Value| item["metadata"].get("omitted").is_some();
    let (brief, whole): (Vec<&Value>, Vec<&Value>) = shown.iter().partition(|item| omitted(item));
    assert!(
        brief.len() > 8 && whole.len() > 8,
        "{} of them whole",
        whole.len()
    );
    assert!(
        shown.iter().skip_while(|item| !omitted(item)).all(omitted),
        "the last ones"
    );
    for item in brief {
        let names = [
            "assistant",
            "scenario",
            "personality",
            "simulation",
            "call.messages",
            "call.transcript",
            "call.recordingUrl",
            "call.monitor",
            "call.structuredOutputs",
            "costs",
        ];
        assert_eq!(item["metadata"]["omitted"], json!(names));
        // Everything else is as in the item that is read singly.
        let (mut alone, _) = measured(&api, &format!("{items}/{}", text(&item["id"]))).await;
        assert_eq!(alone["metadata"]["personality"]["notes"], caller["notes"]);
        assert_eq!(alone["results"]["evaluations"][0]["passed"], json!(true));
        let metadata = alone["metadata"].as_object_mut().unwrap();
        metadata.insert("omitted".to_owned(), json!(names));
        metadata.retain(|name, _| ["omitted", "call"].contains(&name.as_str()));
        let call = metadata["call"].as_object_mut().unwrap();
        call.retain(|name, _| !names.contains(&format!("call.{name}").as_str()));
        alone.as_object_mut().unwrap().remove("costs");
        assert_eq!(item, &alone);
    }
    // The same in pages that need nothing left out.
    let all = pages(&api, &items, 10).await;
    assert!(!all.iter().any(omitted));
    assert_eq!(named(&all), named(shown));
    // Runs are asked for with what is inline.
    let (run, _) = measured(&api, &format!("{RUNS}?limit=1000")).await;
    assert_eq!(run["results"][0]["itemCounts"]["passed"], json!(50));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_too_large_alone_says_what_it_left_out() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let said = format!("Yes, it is. {} Goodbye.", "Well. ".repeat(560_000));
    let mut body = short(&stand_in, &greeter(), 1, 1);
    body["target"]["assistant"]["model"]["messages"][0]["content"] =
        json!(format!("<<{}>>", json!({ "say": said })));
    let created = api.post(RUNS, &body).await;
    ended(&api, text(&created["id"])).await;
    let items = format!("{RUNS}/{}/item", text(&created["id"]));
    let item = text(&created["simulationRunItemIds"][0]);
    let (alone, _) = measured(&api, &format!("{items}/{item}")).await;
    assert_items_valid(std::slice::from_ref(&alone));
    assert_eq!(
        alone["metadata"]["omitted"],
        json!([
            "call.messages",
            "assistant",
            "scenario",
            "personality",
            "simulation"
        ])
    );
    assert!(text(&alone["metadata"]["call"]["transcript"]).ends_with(&said));
    assert_eq!(alone["status"], "passed");
    let (page, size) = measured(&api, &items).await;
    assert!(size < 10_000);
    let brief = &list(&page)[0];
    assert_eq!(
        (&brief["status"], &brief["results"]),
        (&alone["status"], &alone["results"])
    );
    let (run, _) = measured(&api, &format!("{RUNS}/{}", text(&created["id"]))).await;
    assert_eq!(run["itemCounts"]["passed"], json!(1));
    local.shutdown().await;
}
