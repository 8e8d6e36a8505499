//! Who is told how a run came out, and that a schedule could not start one.

use reqwest::Method;
use ringback_api::LOCAL_ORG;
use ringback_shared::models::schedule::NotifyOn;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, assert_refused},
    fixtures::{
        LONG, RUNS, assert_valid, assistant, ended, evaluation, inline_target, list, personality, run,
        scenario, simple_run, text,
    },
    hooks::{HookReceiver, Told, hook_secret},
    schedules::{ended_a_moment_ago, keep_due, of_run, tick},
    server::{Api, local, until},
    stand_in::{Fault, Role, StandIn},
};

/// Stored simulations by these names, each with one evaluation (`name/booked`) that a judge decides; in a suite with these
/// fields.
async fn suite(api: &Api, names: &[&str], fields: Value) -> Value {
    let caller = api.post(PERSONALITY, &personality("Pat")).await;
    let mut ids = Vec::new();
    for name in names {
        let booked = json!([evaluation("booked", "boolean", "=", json!(true))]);
        let scenario = api.post(SCENARIO, &scenario(name, 1, booked)).await;
        let body = json!({"name": name, "scenarioId": scenario["id"], "personalityId": caller["id"]});
        ids.push(api.post(SIMULATION, &body).await["id"].clone());
    }
    let mut body = json!({"name": "Suite <of> & all", "simulationIds": ids});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    api.post("/eval/simulation/suite", &body).await
}

/// A run of a suite that nobody else is told of.
fn of_suite(stand_in: &StandIn, suite: &Value, iterations: u32) -> Value {
    let entries = json!([{"type": "simulationSuite", "simulationSuiteId": suite["id"]}]);
    run(
        entries,
        inline_target(&assistant(stand_in, "You run a clinic.")),
        iterations,
    )
}

/// Those who were told at `path`, once so many were.
async fn told(receiver: &HookReceiver, path: &str, count: usize) -> Vec<Told> {
    let enough = |told: &[Told]| told.iter().filter(|told| told.path == path).count() >= count;
    let all = receiver.wait_for(&format!("{count} at {path}"), enough).await;
    all.into_iter().filter(|told| told.path == path).collect()
}

/// What is read in a part of a Slack message.
fn words(part: &Value) -> String {
    match part["type"].as_str() {
        Some("text") => text(&part["text"]).to_owned(),
        Some("emoji") => format!(":{}:", text(&part["name"])),
        Some("link") => text(&part["url"]).to_owned(),
        _ => list(&part["elements"]).iter().map(words).collect(),
    }
}

fn names(list_of: &Value) -> Vec<&str> {
    list(&list_of["simulations"])
        .iter()
        .map(|one| text(&one["name"]))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suites_run_says_what_newly_fails_what_is_fixed_and_what_is_flaky() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let secret = hook_secret(&api).await;
    let fields = json!({"slackWebhookUrl": receiver.url("/slack")});
    let suite = suite(&api, &["steady", "breaks", "mends", "wavers"], fields).await;
    let decide = |breaks: bool, mends: bool, wavers: [bool; 2]| {
        stand_in.judge("steady/booked", json!(true));
        stand_in.judge("breaks/booked", json!(breaks));
        stand_in.judge("mends/booked", json!(mends));
        stand_in.judge_in_turn("wavers/booked", wavers.map(|value| json!(value)));
    };
    let mut body = of_suite(&stand_in, &suite, 2);
    body["notify"] = json!({"server": {"url": receiver.url("/hook"), "headers": {"x-team": "qa"}}});
    // The first attempts at both go wrong.
    receiver.answer("/slack", &[503, 200]);
    receiver.answer("/hook", &[500, 200]);

    decide(true, false, [true, true]);
    let first = api.post(RUNS, &body).await;
    assert_valid("CreateSimulationRunResponse", &first);
    ended(&api, text(&first["id"])).await;
    let [once, twice] = &told(&receiver, "/hook", 2).await[..] else {
        panic!("told twice")
    };
    assert_eq!(
        (once.id(), &once.body),
        (twice.id(), &twice.body),
        "the same again"
    );
    let webhook = &once.body;
    assert!(once.is_signed_with(&secret));
    assert_eq!(
        (&webhook["type"], &webhook["runId"], &webhook["success"]),
        (&json!("run.ended"), &first["id"], &json!(false))
    );
    assert_eq!(webhook["baselineRunId"], Value::Null);
    assert_eq!(
        names(&webhook["newlyFailing"]),
        ["mends"],
        "there was nothing before"
    );
    assert_eq!(
        webhook["itemCounts"],
        json!({"total": 8, "passed": 6, "failed": 2, "canceled": 0, "errored": 0})
    );
    assert_eq!(webhook["passRate"], 0.75);
    assert_eq!(webhook["url"], first["url"]);

    decide(false, true, [true, false]);
    let second = api.post(RUNS, &body).await;
    ended(&api, text(&second["id"])).await;
    let all = told(&receiver, "/hook", 4).await;
    let webhook = &all.last().unwrap().body;
    assert_eq!(
        (&webhook["runId"], &webhook["baselineRunId"]),
        (&second["id"], &first["id"])
    );
    for (list, expected) in [
        ("newlyFailing", vec!["breaks"]),
        ("stillFailing", vec![]),
        ("fixed", vec!["mends"]),
        ("flaky", vec!["wavers"]),
    ] {
        assert_eq!(names(&webhook[list]), expected, "{list}: {webhook:#}");
        assert_eq!(webhook[list]["count"], expected.len());
    }
    // What is told is what the comparison says.
    let path = format!(
        "{RUNS}/{}/compare?baseline={}",
        text(&second["id"]),
        text(&first["id"])
    );
    let compared = api.get(&path).await;
    assert_eq!(
        list(&compared["changes"]["broken"]),
        list(&webhook["newlyFailing"]["simulations"])
    );

    // Slack gets a message in its own form, in which a name is nothing but a text.
    let slack = told(&receiver, "/slack", 4).await;
    let message = &slack.last().unwrap().body;
    let blocks = list(&message["blocks"]);
    assert!(blocks.len() == 1 && blocks[0]["type"] == "rich_text");
    let parts: Vec<String> = list(&blocks[0]["elements"]).iter().map(words).collect();
    let expected = [
        ":x: Suite <of> & all failed",
        "5 of 8 passed, 3 failed, pass rate 62 %, answers after",
        "Newly failing (1)",
        "breaks",
        "Fixed (1)",
        "mends",
        "Flaky (1)",
        "wavers",
        text(&second["url"]),
    ];
    assert_eq!(parts.len(), expected.len(), "{parts:#?}");
    for (part, expected) in parts.iter().zip(expected) {
        assert!(part.starts_with(expected), "{part} is not {expected}");
    }
    assert!(text(&message["text"]).starts_with("Suite &lt;of&gt; &amp; all failed: 5 of 8 passed"));
    // The run says to whom it was told, without the URLs, which are secrets.
    let run = until("what became of the notices", LONG, async || {
        let run = api.get(&format!("{RUNS}/{}", text(&second["id"]))).await;
        let done = list(&run["notices"])
            .iter()
            .all(|notice| notice["status"] == "delivered");
        done.then_some(run)
    })
    .await;
    let notices = list(&run["notices"]);
    for (notice, kind) in notices.iter().zip(["webhook", "slack"]) {
        let state = (
            &notice["type"],
            &notice["status"],
            &notice["attempts"],
            &notice["statusCode"],
        );
        assert_eq!(state, (&json!(kind), &json!("delivered"), &json!(2), &json!(200)));
    }
    assert!(
        notices.len() == 2 && !run.to_string().contains("/slack"),
        "{run:#}"
    );
    // Slack was told of nothing but these two runs, each until it said yes.
    assert_eq!(receiver.told_at("/slack").len(), 4);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_outcomes_that_somebody_wants_are_told() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    for (passes, word) in [(true, "passing"), (false, "failing")] {
        stand_in.judge(&format!("{word}/booked"), json!(passes));
        let fields = json!({"slackWebhookUrl": receiver.url("/slack")});
        let suite = suite(&api, &[word], fields).await;
        for on in NotifyOn::ALL {
            let mut body = of_suite(&stand_in, &suite, 1);
            let path = format!("/{word}/{on}");
            body["notify"] = json!({"on": on, "server": {"url": receiver.url(&path)}});
            let run = api.post(RUNS, &body).await;
            ended(&api, text(&run["id"])).await;
            if on.wants(passes) {
                let [told] = &told(&receiver, &path, 1).await[..] else {
                    panic!("told once")
                };
                assert_eq!(told.body["success"], passes);
            }
        }
        // The suite's own webhook goes by what the request says, too: two of each outcome.
    }
    told(&receiver, "/slack", 4).await;
    let mut paths: Vec<String> = receiver.told().into_iter().map(|told| told.path).collect();
    paths.retain(|path| path != "/slack");
    paths.sort();
    assert_eq!(
        paths,
        [
            "/failing/both",
            "/failing/failure",
            "/passing/both",
            "/passing/success"
        ]
    );
    assert_eq!(receiver.told_at("/slack").len(), 4);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canceled_runs_reruns_and_new_verdicts_are_told_where_somebody_asks() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let notify = |path: &str| json!({"server": {"url": receiver.url(path)}});
    stand_in.judge("first/booked", json!(false));
    let fields = json!({"slackWebhookUrl": receiver.url("/slack")});
    let suite = suite(&api, &["first"], fields).await;
    let first = api.post(RUNS, &of_suite(&stand_in, &suite, 1)).await;
    ended(&api, text(&first["id"])).await;
    told(&receiver, "/slack", 1).await;

    stand_in.judge("first/booked", json!(true));
    let path = format!("{RUNS}/{}", text(&first["id"]));
    for (what, body) in [
        ("rerun", json!({"notify": notify("/rerun")})),
        ("evaluate", json!({"notify": notify("/evaluate")})),
    ] {
        let run = api.post(&format!("{path}/{what}"), &body).await;
        ended(&api, text(&run["id"])).await;
        let [told] = &told(&receiver, &format!("/{what}"), 1).await[..] else {
            panic!("told once")
        };
        assert_eq!(
            (&told.body["runId"], &told.body["baselineRunId"]),
            (&run["id"], &first["id"])
        );
        assert_eq!(names(&told.body["fixed"]), ["first"], "{what}: {:#}", told.body);
    }
    assert_eq!(
        receiver.told_at("/slack").len(),
        1,
        "they are no runs of the suite"
    );

    stand_in.fail(Role::Tester, 100, Fault::Hang);
    let mut body = simple_run(&stand_in, "held", 3, 2);
    body["notify"] = notify("/canceled");
    let held = api.post(RUNS, &body).await;
    api.patch(&format!("{RUNS}/{}", text(&held["id"]))).await;
    let [canceled] = &told(&receiver, "/canceled", 1).await[..] else {
        panic!("told once")
    };
    assert_eq!(
        (&canceled.body["endedReason"], &canceled.body["success"]),
        (&json!("canceled"), &json!(false))
    );
    assert_eq!(canceled.body["itemCounts"]["canceled"], 2);
    stand_in.release();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_evals_is_told_too() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let eval = |name: &str, content: &str| {
        json!({"name": name, "type": "chat.mockConversation", "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "judgePlan": {"type": "regex", "content": content}},
        ]})
    };
    let run = |second: &str| {
        json!({
            "evals": [{"eval": eval("greets", "Answer")}, {"eval": eval("waves", second)}],
            "target": {"type": "assistant", "assistant": assistant(&stand_in, "You run a clinic.")},
            "type": "eval", "notify": {"server": {"url": receiver.url("/evals")}},
        })
    };
    for (n, pattern) in [(1, "Answer"), (2, "Never")] {
        let made = api.post("/eval/run", &run(pattern)).await;
        let all = told(&receiver, "/evals", n).await;
        let webhook = &all[n - 1].body;
        assert_eq!(webhook["name"], "greets, waves");
        assert_eq!(
            (&webhook["runId"], &webhook["success"]),
            (&made["id"], &json!(n == 1)),
            "{webhook:#}"
        );
        assert_eq!(
            names(&webhook["newlyFailing"]),
            if n == 1 { vec![] } else { vec!["waves"] }
        );
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_run_is_told_and_so_is_a_schedule_that_cannot_start_one() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let ctx = local.context();
    let secret = hook_secret(&api).await;
    stand_in.judge("nightly/booked", json!(false));
    let suite = suite(&api, &["nightly"], json!({})).await;
    let mut body = ended_a_moment_ago(of_run(&of_suite(&stand_in, &suite, 1), "Nightly"));
    body["notify"] = json!({
        "on": "failure", "slackWebhookUrl": receiver.url("/slack"), "server": {"url": receiver.url("/hook")},
    });
    let id = keep_due(ctx, LOCAL_ORG, body.clone()).await;
    tokio::join!(tick(ctx), tick(ctx));
    let [ended] = &told(&receiver, "/hook", 1).await[..] else {
        panic!("told once")
    };
    assert_eq!(
        (&ended.body["type"], &ended.body["name"]),
        (&json!("run.ended"), &json!("Nightly"))
    );
    assert_eq!(
        ended.body["schedule"],
        json!({"id": id, "name": "Nightly", "scheduledFor": body["endAt"]})
    );

    // The suite is gone: nobody gets a green night.
    let path = format!("/eval/simulation/suite/{}", text(&suite["id"]));
    api.delete(&path).await;
    let gone = keep_due(ctx, LOCAL_ORG, body.clone()).await;
    tokio::join!(tick(ctx), tick(ctx));
    let all = told(&receiver, "/hook", 2).await;
    let failed = &all[1];
    assert!(failed.is_signed_with(&secret));
    assert_eq!(
        (&failed.body["type"], &failed.body["schedule"]["id"]),
        (&json!("schedule.failed"), &json!(gone))
    );
    assert!(
        text(&failed.body["reason"]).contains("not found"),
        "{:#}",
        failed.body
    );
    let slack = told(&receiver, "/slack", 2).await;
    assert!(text(&slack[1].body["text"]).starts_with("Nightly did not start: "));
    let history = until("what became of the notices", LONG, async || {
        let history = api.get(&format!("/schedule/{gone}/firing")).await;
        let notices = list(&list(&history["results"])[0]["notices"]).to_vec();
        notices
            .iter()
            .all(|notice| notice["status"] == "delivered")
            .then_some(notices)
    })
    .await;
    let kinds: Vec<&str> = history.iter().map(|notice| text(&notice["type"])).collect();
    assert_eq!(kinds, ["webhook", "slack"]);
    let history = ctx.store.firings(gone, true, None, 10).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].firing.run, None);
    assert!(history[0].firing.reason.as_deref().unwrap().contains("not found"));
    // It is told once, although the tick comes again.
    tick(ctx).await;
    assert_eq!(receiver.told_at("/hook").len(), 2);
    local.shutdown().await;
}

/// Night after night: the run before is the measure, unless it decided nothing or was canceled.
#[tokio::test(flavor = "multi_thread")]
async fn a_night_without_a_provider_is_no_measure_for_the_next() {
    let stand_in = StandIn::start().await;
    let receiver = HookReceiver::start().await;
    let (local, api) = local(&stand_in).await;
    let suite = suite(&api, &["weak", "strong"], json!({})).await;
    let mut body = of_run(&of_suite(&stand_in, &suite, 1), "Nightly");
    body["active"] = json!(false);
    body["notify"] = json!({"server": {"url": receiver.url("/night")}});
    let schedule = api.post("/schedule", &body).await;
    let path = format!("/schedule/{}/run", text(&schedule["id"]));
    stand_in.judge("strong/booked", json!(true));
    let mut nights: Vec<(Value, Value)> = Vec::new();
    let mut night = async |weak: bool, out: bool, canceled: bool| {
        stand_in.judge("weak/booked", json!(weak));
        if out {
            stand_in.fail(Role::Tester, 100, Fault::Status(400));
        }
        if canceled {
            stand_in.fail(Role::Tester, 100, Fault::Hang);
        }
        let run = api.post(&path, &json!({})).await;
        if canceled {
            api.patch(&format!("{RUNS}/{}", text(&run["id"]))).await;
        }
        let all = told(&receiver, "/night", nights.len() + 1).await;
        stand_in.release();
        let told = all[nights.len()].body.clone();
        assert_eq!(told["runId"], run["id"]);
        nights.push((run["id"].clone(), told.clone()));
        told
    };
    let first = night(false, false, false).await;
    assert_eq!(names(&first["newlyFailing"]), ["weak"]);
    let out = night(false, true, false).await;
    assert_eq!(
        out["itemCounts"],
        json!({"total": 2, "passed": 0, "failed": 2, "canceled": 0, "errored": 2})
    );
    assert_eq!((&out["passRate"], &out["success"]), (&Value::Null, &json!(false)));
    for list in ["newlyFailing", "stillFailing", "fixed", "flaky"] {
        assert_eq!(
            out[list]["count"], 0,
            "an outage says nothing of the agent: {out:#}"
        );
    }
    let canceled = night(false, false, true).await;
    assert_eq!(canceled["endedReason"], "canceled");
    let still = night(false, false, false).await;
    assert_eq!(still["baselineRunId"], first["runId"]);
    assert_eq!(
        (names(&still["stillFailing"]), &still["newlyFailing"]["count"]),
        (vec!["weak"], &json!(0))
    );
    let fixed = night(true, false, false).await;
    assert_eq!(
        (&fixed["baselineRunId"], names(&fixed["fixed"])),
        (&still["runId"], vec!["weak"])
    );

    // Whom nobody names is told nothing, and that is said.
    for notify in [
        json!({"on": "failure"}),
        json!({"slackWebhookURL": "https://hooks.example.com/x"}),
    ] {
        let mut body = of_suite(&stand_in, &suite, 1);
        body["notify"] = notify.clone();
        assert_refused(
            &api.call(Method::POST, RUNS, Some(&body)).await,
            400,
            "names nobody",
        );
        let again = format!("{RUNS}/{}/rerun", text(&first["runId"]));
        let body = json!({"notify": notify});
        assert_refused(
            &api.call(Method::POST, &again, Some(&body)).await,
            400,
            "names nobody",
        );
    }
    local.shutdown().await;
}
