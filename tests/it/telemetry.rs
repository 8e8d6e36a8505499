//! What can be seen from the outside of what goes on: logs, metrics and traces.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::{Arc, Mutex},
};

use reqwest::Method;
use ringback_local::serve::Local;
use ringback_shared::{
    clock::{Clock, SystemClock},
    metrics::Metrics,
    telemetry,
};
use serde_json::{Value, json};

use crate::{
    fixtures::{RUNS, by_voice, counts, ended, endpoint, ids, items, simple_run, text},
    provider::{Auto, ProviderStandIn, Tamper},
    server::{Api, KEY, local, local_with, until},
    stand_in::{Role, StandIn},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Takes what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// It is taken until what comes with it is dropped.
    fn taken(level: &str) -> (Self, (tracing::Dispatch, tracing::subscriber::DefaultGuard)) {
        let log = Self::default();
        let writer = log.clone();
        let lines = telemetry::lines(level, move || writer.clone());
        // Where there is one subscriber alone, `tracing` never shows what a thread without one, of another test, has met first.
        let other = tracing::Dispatch::new(telemetry::lines(level, io::sink));
        (log, (other, tracing::subscriber::set_default(lines)))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Starts a run whose request has this header as well; gives its id.
async fn start(api: &Api, run: &Value, header: (&str, &str)) -> String {
    let request = api.request(Method::POST, RUNS).json(run);
    let answer = request.header(header.0, header.1).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 201);
    let created: Value = answer.json().await.unwrap();
    text(&created["id"]).to_owned()
}

fn traceparent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

/// The values of a metric by what it is about (or by nothing), over all lines.
fn measured(lines: &[Value], metric: &str) -> BTreeMap<String, Vec<f64>> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.get(metric).is_some()) {
        assert_eq!(line["Stack"], "test");
        let of = ["Verdict", "State", "Role"]
            .iter()
            .find_map(|name| line.get(name));
        let values = match &line[metric] {
            Value::Array(values) => values.iter().map(|value| value.as_f64().unwrap()).collect(),
            one => vec![one.as_f64().unwrap()],
        };
        let of = of.map(text).unwrap_or_default().to_owned();
        found.entry(of).or_default().extend(values);
    }
    found
}

/// What was measured once `metric` has come to `sum`: a change is shown a moment before `relay` has told of it.
async fn measurements(local: &Local, metric: &str, sum: f64) -> Vec<Value> {
    let metrics = &local.context().metrics;
    until(metric, crate::fixtures::LONG, async || {
        metrics.flush(SystemClock.now_ms());
        let lines = metrics.flushed();
        let values = measured(&lines, metric);
        (values.values().flatten().sum::<f64>() >= sum).then_some(lines)
    })
    .await
}

// One thread, so that the log is this test's.
#[tokio::test]
async fn a_run_is_followed_by_its_id_and_nothing_confidential_is_logged() {
    let (log, _taken) = Log::taken("warn,ringback=debug");
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| options.metrics = Metrics::kept("test")).await;
    let endpoint = endpoint(&api, &provider).await;
    let secret = text(&endpoint["secrets"][0]["secret"]);
    let url = text(&endpoint["webhooks"]["callEnded"]);
    let body = json!({"callId": "x", "event": "call.ended"}).to_string();
    assert_eq!(provider.deliver(url, body.into(), Tamper::WrongSecret).await, 401);

    let run = simple_run(&stand_in, "seen", 2, 3);
    let run = start(&api, &run, ("traceparent", &traceparent())).await;
    let done = ended(&api, &run).await;
    assert_eq!(counts(&done), [3, 3, 0, 0, 0, 0]);
    let all = items(&api, &run, 100).await;
    measurements(&local, "ItemsEnded", 3.0).await;

    let lines = log.lines();
    let said =
        |message: &str| -> Vec<&Value> { lines.iter().filter(|line| line["message"] == message).collect() };
    let [made] = said("run created")[..] else {
        panic!("{lines:#?}");
    };
    assert_eq!((&made["runId"], &made["path"]), (&json!(run), &json!(RUNS)));
    assert!(made["org"].is_string() && made["level"] == "INFO", "{made}");
    let ends: Vec<Value> = said("item ended").into_iter().cloned().collect();
    let named: BTreeSet<String> = ends.iter().map(|line| text(&line["itemId"]).to_owned()).collect();
    assert_eq!(named, ids(&all));
    for line in &ends {
        let seen = (&line["runId"], &line["traceId"], &line["verdict"], &line["level"]);
        assert_eq!(
            seen,
            (&json!(run), &json!(TRACE), &json!("passed"), &json!("INFO"))
        );
    }
    let [refused] = said("a webhook was refused")[..] else {
        panic!("{lines:#?}");
    };
    assert_eq!(refused["endpointId"], endpoint["id"]);
    for line in lines.iter().filter(|line| line.get("itemId").is_some()) {
        assert!(line.get("runId").is_some(), "{line}");
    }
    let about_items = lines.iter().filter(|line| line.get("itemId").is_some()).count();
    assert!(about_items <= 3 * 6, "{about_items} lines about 3 items");
    let text = log.text();
    let words = [
        "Book something",
        "in a hurry",
        "Answer 1",
        "run a clinic",
        "Hello, caller",
        "goodbye",
    ];
    for never in words
        .into_iter()
        .chain([KEY, secret, crate::fixtures::PROVIDER_KEY])
    {
        assert!(!text.contains(never), "{never} is in the log");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_is_measured() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| options.metrics = Metrics::kept("test")).await;
    let endpoint = endpoint(&api, &provider).await;
    let url = text(&endpoint["webhooks"]["callEnded"]);
    assert_eq!(
        provider.deliver(url, b"{}".to_vec(), Tamper::OldTimestamp).await,
        401
    );
    assert_eq!(provider.deliver(url, b"{".to_vec(), Tamper::Nothing).await, 400);

    let mut run = simple_run(&stand_in, "measured", 2, 5);
    run["simulations"][0]["scenario"]["evaluations"] =
        json!([crate::fixtures::evaluation("booked", "boolean", "=", json!(true))]);
    run["concurrencyLimit"] = json!(2);
    let run = api.post(RUNS, &run).await;
    let done = ended(&api, text(&run["id"])).await;
    assert_eq!(counts(&done), [5, 0, 5, 0, 0, 0]);
    let lines = measurements(&local, "ItemsEnded", 5.0).await;

    let all = |metric: &str| measured(&lines, metric);
    let ends = all("ItemsEnded");
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["failed"]);
    assert_eq!(ends["failed"].iter().sum::<f64>(), 5.0);
    let states: Vec<(String, usize)> = all("TimeInState")
        .into_iter()
        .map(|(state, times)| (state, times.len()))
        .collect();
    let expected = ["admitted", "evaluating", "queued", "running"].map(|state| (state.to_owned(), 5));
    assert_eq!(states, expected);
    let roles: BTreeMap<String, usize> = all("ModelLatency")
        .into_iter()
        .map(|(role, times)| (role, times.len()))
        .collect();
    for (name, role) in [
        ("tester", Role::Tester),
        ("target", Role::Target),
        ("judge", Role::Judge),
    ] {
        assert_eq!(roles.get(name), Some(&stand_in.count_of(role)), "{name}");
    }
    assert_eq!(all("WebhooksRefused")[""], [1.0]);
    assert_eq!(all("Quarantined")[""], [1.0]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_items_cost_is_measured_once() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        options.metrics = Metrics::kept("test");
        let prices = json!({"stand-in": {"prompt": 1000, "completion": 1000},
            "tester": {"prompt": 1000, "completion": 1000}, "target": {"prompt": 1000, "completion": 1000}});
        options
            .settings
            .insert("MODEL_PRICES".to_owned(), prices.to_string());
    })
    .await;
    let run = api.post(RUNS, &simple_run(&stand_in, "paid", 2, 3)).await;
    let run = text(&run["id"]);
    ended(&api, run).await;
    let all = items(&api, run, 100).await;
    let cost: f64 = all
        .iter()
        .map(|item| item["metadata"]["cost"].as_f64().unwrap_or_default())
        .sum();
    let lines = measurements(&local, "ItemsEnded", 3.0).await;
    let calls = stand_in.count() as f64;
    let measured: f64 = measured(&lines, "Cost").values().flatten().sum();
    assert!(
        (measured - calls * 0.005).abs() < 1e-9,
        "{measured} for {calls} calls, {cost} by the items"
    );
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_to_the_agent_and_to_nobody_else() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let run = simple_run(&stand_in, "traced", 2, 2);
    // A malformed one is passed over, and X-Ray's if it is not sampled.
    for header in [
        ("x-ray-nothing", "1"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ),
        (
            "x-amzn-trace-id",
            "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Sampled=0",
        ),
    ] {
        let run = start(&api, &run, header).await;
        assert_eq!(counts(&ended(&api, &run).await), [2, 2, 0, 0, 0, 0]);
        assert_eq!(stand_in.traces(), [], "{header:?}");
    }
    let mut seen = 0;
    for header in [
        ("traceparent", traceparent()),
        (
            "x-amzn-trace-id",
            format!("Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent={SPAN};Sampled=1"),
        ),
    ] {
        let before = stand_in.count_of(Role::Target);
        let run = start(&api, &run, (header.0, &header.1)).await;
        assert_eq!(counts(&ended(&api, &run).await), [2, 2, 0, 0, 0, 0]);
        let traces = stand_in.traces().split_off(seen);
        assert_eq!(traces.len(), stand_in.count_of(Role::Target) - before);
        seen += traces.len();
        for (role, trace) in &traces {
            assert_eq!(*role, Role::Target);
            assert!(
                trace.starts_with(&format!("00-{TRACE}-")) && trace.ends_with("-01"),
                "{trace}"
            );
            assert!(!trace.contains(SPAN), "{trace}");
        }
        let spans: BTreeSet<&String> = traces.iter().map(|(_, trace)| trace).collect();
        assert_eq!(spans.len(), traces.len(), "each request is a span of its own");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_with_the_order_of_a_call() {
    let stand_in = StandIn::start().await;
    let provider = ProviderStandIn::start().await;
    provider.auto(Auto::Both { talk_ms: 20 });
    let (local, api) = local(&stand_in).await;
    let endpoint = endpoint(&api, &provider).await;
    let run = by_voice(simple_run(&stand_in, "called", 2, 1), &endpoint);
    for header in [("traceparent", traceparent()), ("x-none", "1".to_owned())] {
        let run = start(&api, &run, (header.0, &header.1)).await;
        ended(&api, &run).await;
    }
    let calls = provider.calls();
    assert_eq!(calls.len(), 2);
    let traced = calls[0].traceparent.as_deref().unwrap();
    assert!(
        traced.starts_with(&format!("00-{TRACE}-")) && !traced.contains(SPAN),
        "{traced}"
    );
    assert_eq!(calls[1].traceparent, None);
    local.shutdown().await;
}
