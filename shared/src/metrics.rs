//! Metrics in CloudWatch's embedded metric format: what happens during an invocation is kept and written at its end, as JSON lines
//! from which CloudWatch makes metrics. They are of the namespace `Ringback`, and each has the dimension `Stack`, of which a dashboard
//! knows its own; what else they have is in the documentation of the functions here.
//!
//! `relay` makes those of items from the stream's records. A batch of records that fails is handled again, so what it says may count
//! twice: metrics show how things go, while counts and costs of runs are exact.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};

use crate::{
    lifecycle::{Item, State},
    llm::Purpose,
    trials::Outcome,
};

/// The namespace of all metrics.
pub const NAMESPACE: &str = "Ringback";

/// The most values that a line may have of one metric.
const MOST_VALUES: usize = 100;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Metric {
    ItemsEnded,
    TimeInState,
    WebhooksRefused,
    ModelLatency,
    Cost,
    Quarantined,
}

impl Metric {
    const fn name(self) -> &'static str {
        match self {
            Self::ItemsEnded => "ItemsEnded",
            Self::TimeInState => "TimeInState",
            Self::WebhooksRefused => "WebhooksRefused",
            Self::ModelLatency => "ModelLatency",
            Self::Cost => "Cost",
            Self::Quarantined => "Quarantined",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::ItemsEnded | Self::WebhooksRefused | Self::Quarantined => "Count",
            Self::TimeInState | Self::ModelLatency => "Milliseconds",
            Self::Cost => "None",
        }
    }

    /// The dimension that it has besides the stack.
    const fn dimension(self) -> Option<&'static str> {
        match self {
            Self::ItemsEnded => Some("Verdict"),
            Self::TimeInState => Some("State"),
            Self::ModelLatency => Some("Role"),
            Self::WebhooksRefused | Self::Cost | Self::Quarantined => None,
        }
    }
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// Nowhere, and nothing is kept.
    Nothing,
    /// Standard output, which is Lambda's log.
    Output,
    /// A list that is asked for.
    Kept(Mutex<Vec<Value>>),
}

/// What is known of one dimension's value (or of the stack as a whole) since the last flush.
type Values = BTreeMap<Metric, Vec<f64>>;

#[derive(Debug)]
struct Inner {
    stack: String,
    sink: Sink,
    /// By the name and the value of the dimension besides the stack.
    values: Mutex<BTreeMap<Option<(&'static str, &'static str)>, Values>>,
}

/// Takes what is measured. Cloning is cheap; clones are one.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    /// Metrics that nobody wants.
    fn default() -> Self {
        Self::new("", Sink::Nothing)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
const fn float(number: i64) -> f64 {
    number as f64
}

impl Metrics {
    fn new(stack: &str, sink: Sink) -> Self {
        Self(Arc::new(Inner {
            stack: stack.to_owned(),
            sink,
            values: Mutex::default(),
        }))
    }

    /// Metrics of `stack` that go to standard output.
    #[must_use]
    pub fn to_output(stack: &str) -> Self {
        Self::new(stack, Sink::Output)
    }

    /// Metrics of `stack` that are kept, for tests: see [`Metrics::flushed`].
    #[must_use]
    pub fn kept(stack: &str) -> Self {
        Self::new(stack, Sink::Kept(Mutex::default()))
    }

    /// The lines so far where they are kept.
    #[must_use]
    pub fn flushed(&self) -> Vec<Value> {
        match &self.0.sink {
            Sink::Kept(lines) => locked(lines).clone(),
            Sink::Nothing | Sink::Output => Vec::new(),
        }
    }

    fn record(&self, metric: Metric, of: &'static str, value: f64) {
        if matches!(self.0.sink, Sink::Nothing) {
            return;
        }
        let dimension = metric.dimension().map(|name| (name, of));
        let mut all = locked(&self.0.values);
        let values = all.entry(dimension).or_default().entry(metric).or_default();
        match values.first_mut() {
            // What is counted is added up; of what is measured every value is of interest.
            Some(count) if metric.unit() == "Count" => *count += value,
            _ => values.push(value),
        }
    }

    /// `item` was as `before`, or not there. If it has left a state, `TimeInState` by `State` says for how many milliseconds it was there;
    /// if it has ended, `ItemsEnded` by `Verdict` counts it; and `Cost` has what it has cost since then, in US dollars.
    pub fn item_changed(&self, before: Option<&Item>, item: &Item) {
        if let Some(before) = before
            && before.state != item.state
            && !before.state.is_terminal()
            && let (Some(from), Some(to)) = (before.state_since, item.state_since)
        {
            self.record(
                Metric::TimeInState,
                state(before.state),
                float((to - from).max(0)),
            );
        }
        if let Some(verdict) = ended(before, item) {
            self.record(Metric::ItemsEnded, verdict, 1.0);
        }
        let before = before.map_or(0, |before| before.costs().cost);
        self.cost(item.costs().cost.saturating_sub(before));
    }

    /// Something has cost `micros` millionths of a US dollar, or less than was said before: `Cost`.
    pub fn cost(&self, micros: i64) {
        if micros != 0 {
            self.record(Metric::Cost, "", float(micros) / 1e6);
        }
    }

    /// A webhook was refused because its signature or its time is wrong: `WebhooksRefused`.
    pub fn webhook_refused(&self) {
        self.record(Metric::WebhooksRefused, "", 1.0);
    }

    /// A model has answered after this time: `ModelLatency` by `Role`, in milliseconds.
    pub fn model_answered(&self, purpose: Purpose, after: Duration) {
        let role = match purpose {
            Purpose::Tester => "tester",
            Purpose::Target => "target",
            Purpose::Judge => "judge",
            Purpose::Writer => "writer",
        };
        let ms = (after.as_secs_f64() * 1000.0).round();
        self.record(Metric::ModelLatency, role, ms);
    }

    /// A message, a webhook or a record cannot be read and was put aside: `Quarantined`.
    pub fn quarantined(&self) {
        self.record(Metric::Quarantined, "", 1.0);
    }

    /// Writes what was measured since the last time. `now` is in milliseconds since the Unix epoch.
    pub fn flush(&self, now: i64) {
        let all = std::mem::take(&mut *locked(&self.0.values));
        for (dimension, mut values) in all {
            while values.values().any(|values| !values.is_empty()) {
                let mut some = Values::new();
                for (&metric, values) in &mut values {
                    let rest = values.split_off(values.len().min(MOST_VALUES));
                    let first = std::mem::replace(values, rest);
                    if !first.is_empty() {
                        some.insert(metric, first);
                    }
                }
                self.write(line(&self.0.stack, dimension, &some, now));
            }
        }
    }

    fn write(&self, line: Value) {
        match &self.0.sink {
            Sink::Nothing => {}
            Sink::Output => {
                // In one piece. There is nobody to be told that it could not be written.
                let _ = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
            }
            Sink::Kept(lines) => locked(lines).push(line),
        }
    }

    /// What writes at the end of an invocation, however it ends: keep it until then.
    #[must_use]
    pub fn at_end(&self, clock: &crate::clock::SharedClock) -> AtEnd {
        AtEnd {
            metrics: self.clone(),
            clock: Arc::clone(clock),
        }
    }
}

/// Writes the metrics when it is dropped.
#[derive(Debug)]
pub struct AtEnd {
    metrics: Metrics,
    clock: crate::clock::SharedClock,
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.metrics.flush(self.clock.now_ms());
    }
}

const fn state(state: State) -> &'static str {
    match state {
        State::Queued => "queued",
        State::Admitted => "admitted",
        State::Running => "running",
        State::Evaluating => "evaluating",
        State::Passed => "passed",
        State::Failed => "failed",
        State::Canceled => "canceled",
    }
}

/// How an item came out that has ended with this change: `passed`, `failed`, `canceled`, or `faulted` where it was not the agent's fault.
#[must_use]
pub fn ended(before: Option<&Item>, item: &Item) -> Option<&'static str> {
    if before.is_some_and(|before| before.state.is_terminal()) {
        return None;
    }
    match Outcome::of(item.state, item.failure.as_ref()) {
        Outcome::Open => None,
        Outcome::Passed => Some("passed"),
        Outcome::Failed => Some("failed"),
        Outcome::Errored => Some("faulted"),
        Outcome::Canceled => Some("canceled"),
    }
}

/// A line of the embedded metric format.
fn line(stack: &str, dimension: Option<(&str, &str)>, values: &Values, now: i64) -> Value {
    let mut dimensions = vec!["Stack"];
    dimensions.extend(dimension.map(|(name, _)| name));
    let metrics = values.keys();
    let metrics = metrics.map(|metric| json!({ "Name": metric.name(), "Unit": metric.unit() }));
    let about = json!({
        "Timestamp": now,
        "CloudWatchMetrics": [{
            "Namespace": NAMESPACE,
            "Dimensions": [dimensions],
            "Metrics": metrics.collect::<Vec<_>>(),
        }],
    });
    let mut line = Map::new();
    line.insert("_aws".to_owned(), about);
    line.insert("Stack".to_owned(), json!(stack));
    if let Some((name, value)) = dimension {
        line.insert(name.to_owned(), json!(value));
    }
    for (metric, values) in values {
        let value = match values.as_slice() {
            [one] => json!(one),
            all => json!(all),
        };
        line.insert(metric.name().to_owned(), value);
    }
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        costs::ModelCosts,
        lifecycle::{Failure, Fault, Slots},
    };

    const NOW: i64 = 1_700_000_000_000;

    fn item() -> Item {
        Item::admitted(Uuid::from_u128(1), Uuid::from_u128(2), 3, 1, NOW)
    }

    /// The lines of what is recorded by `record`.
    fn written(record: impl FnOnce(&Metrics)) -> Vec<Value> {
        let metrics = Metrics::kept("prod");
        record(&metrics);
        metrics.flush(NOW);
        metrics.flush(NOW);
        metrics.flushed()
    }

    #[test]
    fn a_line_is_in_the_embedded_metric_format() {
        let lines = written(|metrics| {
            metrics.model_answered(Purpose::Tester, Duration::from_micros(1_499_500));
            metrics.webhook_refused();
            metrics.webhook_refused();
            metrics.cost(1_500_000);
            metrics.cost(-250_000);
            metrics.cost(0);
            metrics.model_answered(Purpose::Tester, Duration::from_millis(2));
            metrics.quarantined();
        });
        let about = |dimensions: Value, metrics: &[(&str, &str)]| {
            let metrics: Vec<Value> = metrics
                .iter()
                .map(|(name, unit)| json!({"Name": name, "Unit": unit}))
                .collect();
            json!({"Timestamp": NOW, "CloudWatchMetrics": [
                {"Namespace": "Ringback", "Dimensions": [dimensions], "Metrics": metrics}]})
        };
        let stack = about(
            json!(["Stack"]),
            &[
                ("WebhooksRefused", "Count"),
                ("Cost", "None"),
                ("Quarantined", "Count"),
            ],
        );
        let role = about(json!(["Stack", "Role"]), &[("ModelLatency", "Milliseconds")]);
        assert_eq!(
            lines,
            [
                json!({"_aws": stack, "Stack": "prod", "WebhooksRefused": 2.0, "Cost": [1.5, -0.25], "Quarantined": 1.0}),
                json!({"_aws": role, "Stack": "prod", "Role": "tester", "ModelLatency": [1500.0, 2.0]}),
            ]
        );
    }

    #[test]
    fn a_line_has_at_most_a_hundred_values_of_a_metric() {
        let lines = written(|metrics| {
            metrics.webhook_refused();
            for micros in 1..=250 {
                metrics.cost(micros * 1_000_000);
            }
        });
        let lengths: Vec<usize> = lines
            .iter()
            .map(|line| line["Cost"].as_array().unwrap().len())
            .collect();
        assert_eq!(lengths, [100, 100, 50]);
        assert_eq!(
            (&lines[0]["Cost"][0], &lines[2]["Cost"][49]),
            (&json!(1.0), &json!(250.0))
        );
        assert_eq!(lines[0]["WebhooksRefused"], json!(1.0));
        let named = |line: &Value| {
            line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
                .as_array()
                .unwrap()
                .len()
        };
        assert_eq!(
            lines.iter().map(named).collect::<Vec<_>>(),
            [2, 1, 1],
            "only what is there is named"
        );
    }

    #[test]
    fn nothing_is_written_where_nothing_was_measured_or_nobody_wants_it() {
        assert_eq!(written(|_| {}), [json!(null); 0]);
        let unwanted = Metrics::default();
        unwanted.webhook_refused();
        unwanted.flush(NOW);
        assert!(unwanted.flushed().is_empty() && locked(&unwanted.0.values).is_empty());
    }

    #[tokio::test]
    async fn what_was_measured_is_written_also_when_the_work_fails_or_panics() {
        use futures_util::FutureExt;
        let metrics = Metrics::kept("prod");
        let clock: crate::clock::SharedClock = Arc::new(crate::clock::SystemClock);
        let work = async {
            let _written = metrics.at_end(&clock);
            metrics.quarantined();
            std::future::ready(()).await;
            panic!("it is broken");
        };
        assert!(std::panic::AssertUnwindSafe(work).catch_unwind().await.is_err());
        assert_eq!(metrics.flushed().len(), 1);
    }

    /// What a change of an item is measured as: the names of what has values, with them.
    fn measured(before: Option<&Item>, item: &Item) -> Vec<(String, String, f64)> {
        let lines = written(|metrics| metrics.item_changed(before, item));
        let mut all = Vec::new();
        for line in lines {
            let of = line.get("State").or_else(|| line.get("Verdict"));
            let of = of.and_then(Value::as_str).unwrap_or_default();
            for name in ["TimeInState", "ItemsEnded", "Cost"] {
                if let Some(value) = line.get(name) {
                    all.push((name.to_owned(), of.to_owned(), value.as_f64().unwrap()));
                }
            }
        }
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    }

    fn is(name: &str, of: &str, value: f64) -> (String, String, f64) {
        (name.to_owned(), of.to_owned(), value)
    }

    #[test]
    fn the_time_in_a_state_is_from_one_change_of_state_to_the_next() {
        let queued = item().queued();
        assert_eq!(measured(None, &queued), []);
        let admitted = queued.admit(&Slots::default(), NOW + 5).unwrap();
        assert_eq!(
            measured(Some(&queued), &admitted),
            [is("TimeInState", "queued", 5.0)]
        );
        let running = admitted.claim("a", 1000, NOW + 12).unwrap();
        assert_eq!(
            measured(Some(&admitted), &running),
            [is("TimeInState", "admitted", 7.0)]
        );
        let renewed = running.renew("a", 1000, NOW + 100).unwrap();
        assert_eq!(measured(Some(&running), &renewed), []);
        let ended = renewed.end_conversation("a", "x", NOW + 212).unwrap();
        assert_eq!(
            measured(Some(&renewed), &ended),
            [is("TimeInState", "running", 200.0)]
        );
        let judging = ended.claim_evaluation("b", 1000, NOW + 300).unwrap();
        let costs = ModelCosts {
            cost: 2_000_000,
            ..ModelCosts::default()
        };
        let passed = judging.decide("b", Ok(()), NOW + 312).unwrap().charged(&costs);
        assert_eq!(
            measured(Some(&judging), &passed),
            [
                is("Cost", "", 2.0),
                is("ItemsEnded", "passed", 1.0),
                is("TimeInState", "evaluating", 100.0)
            ]
        );
        let late = passed
            .charge(&ModelCosts {
                cost: 3_000_000,
                ..ModelCosts::default()
            })
            .unwrap();
        assert_eq!(
            measured(Some(&passed), &late),
            [is("Cost", "", 1.0)],
            "counted by its difference"
        );
        assert_eq!(measured(Some(&passed), &passed), []);
        // Of a row that an older version wrote it is not known.
        let old = Item {
            state_since: None,
            ..queued
        };
        assert_eq!(measured(Some(&old), &admitted), []);
    }

    #[test]
    fn a_failure_that_is_not_the_agents_is_a_fault() {
        let held = item().claim("a", 1000, NOW).unwrap();
        for (fault, verdict) in [
            (None, "failed"),
            (Some(Fault::Target), "failed"),
            (Some(Fault::Tester), "faulted"),
            (Some(Fault::Provider), "faulted"),
            (Some(Fault::Ringback), "faulted"),
        ] {
            let failed = held.fail("a", &Failure::new("x", fault), NOW).unwrap();
            assert_eq!(ended(Some(&held), &failed), Some(verdict));
        }
        let canceled = item().canceled(NOW);
        assert_eq!(
            ended(None, &canceled),
            Some("canceled"),
            "stored as it was canceled"
        );
        assert_eq!(
            (ended(Some(&canceled), &canceled), ended(None, &held)),
            (None, None)
        );
    }
}
