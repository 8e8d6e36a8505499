//! Logs: JSON lines on standard output. Messages carry ids, never what was said in a conversation and never a secret.
//!
//! A line is one flat object: `timestamp`, `level`, `target` and `message` come first, then the fields of the event and of the spans
//! that it happened in. So everything about a run, an item or an invocation is found by one field: `runId`, `itemId`, `callId`,
//! `traceId`, or `requestId`, which is Lambda's.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::Value;
use tracing::{
    Event, Level, Metadata, Span, Subscriber,
    field::{Empty, Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::MakeWriter,
    layer::Context,
    prelude::*,
    registry::LookupSpan,
};
use uuid::Uuid;

use crate::{
    clock::{self, Clock, SystemClock},
    lifecycle::{Hook, Item, Subject},
    store::{DueKey, ItemKey},
    trace::Trace,
};

/// What every line begins with; a field of the same name would take its place.
const OWN: [&str; 3] = ["timestamp", "level", "target"];

/// Whether an event of `target` may be shown at `level`. At the level `TRACE` the AWS SDK shows requests with their bodies and Lambda's runtime the
/// events as they came: in them are transcripts, keys and secrets.
#[must_use]
pub fn may_be_shown(level: Level, target: &str) -> bool {
    level != Level::TRACE
        || !["aws_", "lambda_runtime"]
            .iter()
            .any(|shows| target.starts_with(shows))
}

/// Sends the process's logs to standard output as Lambda expects them: JSON lines, at the level that `AWS_LAMBDA_LOG_LEVEL`
/// or `RUST_LOG` names, `info` otherwise.
#[expect(
    clippy::disallowed_methods,
    reason = "logs begin before the configuration is read"
)]
pub fn init() {
    let level = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    // A second call in one process keeps the first one's settings.
    let _ = tracing::subscriber::set_global_default(lines(&level.unwrap_or_default(), io::stdout));
}

/// What writes events as JSON lines to `writer`: those that `level`, in the form of `RUST_LOG`, lets pass; `info` where it is empty or
/// no such text.
pub fn lines<W>(level: &str, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(level.to_lowercase()).unwrap_or_default();
    let filter = if filter.to_string().is_empty() {
        EnvFilter::new("info")
    } else {
        filter
    };
    // A span is no line but says what lines are about: an error has to say it too where nothing else is logged.
    let names = |about: &Metadata<'_>| about.is_span() && *about.level() <= Level::INFO;
    let names = filter_fn(names).with_max_level_hint(LevelFilter::INFO);
    let shown = filter_fn(|event| may_be_shown(*event.level(), event.target()));
    tracing_subscriber::registry().with(Lines { writer }.with_filter(names.or(filter).and(shown)))
}

/// The span of work for an item: `runId`, `itemId`, `callId` if its call is known, and `traceId` if its run was made in a trace.
#[must_use]
pub fn item_span(item: &Item) -> Span {
    let span = span_of(ItemKey::of(item));
    if let Some(call) = item.shown_call_id() {
        span.record("callId", tracing::field::display(call));
    }
    note_trace(&span, item.trace);
    span
}

fn note_trace(span: &Span, trace: Option<Trace>) {
    if let Some(trace) = trace {
        span.record("traceId", trace.id());
    }
}

/// The span of work for an item of which only the name is known.
#[must_use]
pub fn span_of(at: ItemKey) -> Span {
    tracing::error_span!("item", runId = %at.run, itemId = %at.id(), callId = Empty, traceId = Empty)
}

/// The span of work for a run as a whole.
#[must_use]
pub fn run_span(run: Uuid) -> Span {
    tracing::error_span!("run", runId = %run)
}

/// The span of work for a schedule.
#[must_use]
pub fn schedule_span(schedule: Uuid) -> Span {
    tracing::error_span!("schedule", scheduleId = %schedule)
}

/// The span of work for a row that is due.
#[must_use]
pub fn due_span(due: &DueKey) -> Span {
    match (due.item(), due.run()) {
        (Some(at), _) => span_of(at),
        (None, Some(key)) => run_span(key.run),
        (None, None) => Span::none(),
    }
}

/// The span of work for what a hook tells of.
#[must_use]
pub fn hook_span(hook: &Hook) -> Span {
    match hook.subject {
        Subject::Item { run, index, .. } => {
            let span = span_of(ItemKey { run, index });
            note_trace(&span, hook.trace);
            span
        }
        Subject::Run { run, .. } => run_span(run),
        Subject::Firing { schedule, .. } => schedule_span(schedule),
    }
}

/// The fields of an event or of a span.
#[derive(Debug, Default)]
struct Fields(BTreeMap<&'static str, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        if !OWN.contains(&field.name()) {
            self.0.insert(field.name(), value.into());
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// A line, in its order.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(flatten)]
    fields: BTreeMap<&'static str, Value>,
}

/// Writes each event as a JSON line. The formatter of `tracing_subscriber` keeps the fields of spans in objects of their own, where a
/// search by one field does not find them.
struct Lines<W> {
    writer: W,
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut all = Fields::default();
        // From the outermost span on: what is nearer to the event says it better.
        for span in ctx
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span.extensions().get::<Fields>() {
                all.0
                    .extend(fields.0.iter().map(|(&name, value)| (name, value.clone())));
            }
        }
        event.record(&mut all);
        let about = event.metadata();
        let line = Line {
            timestamp: clock::iso(SystemClock.now_ms()),
            level: about.level().as_str(),
            target: about.target(),
            message: all.0.remove("message"),
            fields: all.0,
        };
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            // There is nobody to be told that a line could not be written.
            let _ = self.writer.make_writer_for(about).write_all(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `work` logs at `level`, without their times.
    fn logged(level: &str, work: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let writer = kept.clone();
        tracing::subscriber::with_default(lines(level, move || writer.clone()), work);
        let bytes = kept.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
            assert!(clock::parse_iso(time.as_str().unwrap()).is_some(), "{time}");
            line
        });
        lines.collect()
    }

    #[test]
    fn a_line_is_flat_and_says_what_its_spans_are_about() {
        let lines = logged("debug", || {
            let _invocation = tracing::info_span!("Lambda runtime invoke", requestId = "r").entered();
            let item = tracing::error_span!("item", runId = 7, callId = Empty, nearer = "span").entered();
            tracing::debug!("before");
            item.record("callId", "c");
            tracing::warn!(odd = ?Some(1), nearer = true, level = "mine", x = -1, f = 0.5, "what {}", "happened");
            drop(item);
            tracing::trace!("not this");
            tracing::info!(target: "elsewhere", n = 3_u64, "after");
        });
        let own = "ringback_shared::telemetry::tests";
        assert_eq!(
            lines,
            [
                json!({"level": "DEBUG", "target": own, "message": "before", "requestId": "r", "runId": 7, "nearer": "span"}),
                json!({"level": "WARN", "target": own, "message": "what happened", "requestId": "r", "runId": 7,
                    "callId": "c", "odd": "Some(1)", "nearer": true, "x": -1, "f": 0.5}),
                json!({"level": "INFO", "target": "elsewhere", "message": "after", "requestId": "r", "n": 3}),
            ]
        );
    }

    #[test]
    fn a_line_begins_with_its_time_and_level() {
        let kept = Kept::default();
        let writer = kept.clone();
        tracing::subscriber::with_default(lines("", move || writer.clone()), || tracing::info!("x"));
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("{\"timestamp\":\"20"), "{text}");
        assert!(text.contains("Z\",\"level\":\"INFO\",\"target\":\""), "{text}");
        assert!(text.ends_with("\"message\":\"x\"}\n"), "{text}");
    }

    #[test]
    fn an_error_says_what_it_is_about_at_every_level() {
        for level in ["error", "ERROR", "info", "", "no=such=level"] {
            let lines = logged(level, || {
                let _span = tracing::info_span!("invocation", requestId = "r").entered();
                tracing::debug!("not this");
                tracing::error!("that");
            });
            assert_eq!(lines.len(), 1, "{level}");
            assert_eq!(
                (&lines[0]["message"], &lines[0]["requestId"]),
                (&json!("that"), &json!("r"))
            );
        }
    }

    #[test]
    fn an_item_is_named_as_users_know_it() {
        let item = Item::admitted(uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2), 3, 1, 0);
        let lines = logged("info", || item_span(&item).in_scope(|| tracing::info!("x")));
        let expected = (json!(item.run.to_string()), json!(item.id().to_string()));
        assert_eq!(
            (&lines[0]["runId"], &lines[0]["itemId"]),
            (&expected.0, &expected.1)
        );
        assert!(lines[0].get("callId").is_none(), "{lines:?}");
    }

    #[test]
    fn what_others_show_of_requests_is_not_logged() {
        for target in [
            "aws_smithy_runtime::client::orchestrator",
            "lambda_runtime::layers::api_response",
        ] {
            assert!(!may_be_shown(Level::TRACE, target), "{target}");
            assert!(may_be_shown(Level::DEBUG, target), "{target}");
        }
        assert!(may_be_shown(Level::TRACE, "ringback_shared::store"));
    }
}
