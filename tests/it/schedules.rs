//! Schedules: each firing is decided once, whoever looks and dies; and who is told what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use reqwest::Method;
use ringback_local::emulator::Emulator;
use ringback_shared::{
    clock::{Clock, Deadline, SystemClock, iso, parse_iso},
    context::Context,
    ids,
    models::schedule::{CreateSchedule, FiringStatus},
    schedule::{Firing, ScheduleHead},
    store::{ListQuery, RunHead, RunKey, RunKind, RunState},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use uuid::Uuid;

use crate::{
    api::{UNKNOWN, assert_refused},
    fixtures::{
        LONG, RUNS, assert_counted, assert_valid, counts, ended, inline, inline_target, list, pages,
        personality, simple_run, text,
    },
    server::{Server, binary, local, local_with, until},
    stand_in::{Fault, Role, StandIn},
    store::{ORG, stack, stack_at},
};

pub(crate) const SCHEDULE: &str = "/schedule";
const MINUTE: i64 = 60_000;

/// A clock that tests set.
#[derive(Debug, Default)]
struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn ms(time: &str) -> i64 {
    parse_iso(time).unwrap()
}

/// A schedule of one simulation that nobody plays here.
fn schedule(cron: &str, timezone: &str, overlap: &str) -> Value {
    let scenario = json!({
        "name": "Nightly", "instructions": "Book.",
        "evaluations": [{"structuredOutput": {"name": "o", "schema": {"type": "boolean"}}, "comparator": "=", "value": true}],
    });
    let target =
        json!({"model": {"provider": "custom-llm", "model": "m", "url": "https://agent.example.com/v1"}});
    json!({
        "name": "Nightly", "cron": cron, "timezone": timezone, "overlap": overlap, "notify": null,
        "simulations": [inline(&scenario, &personality("P"))], "target": inline_target(&target),
        "transport": {"provider": "vapi.webchat"},
    })
}

/// Keeps a schedule as the API would, and gives its id.
async fn keep(ctx: &Context, body: Value) -> Uuid {
    let asked: CreateSchedule = ringback_shared::models::parse(body).unwrap();
    let (id, now) = (ids::new_id(ctx.clock.now_ms()), ctx.clock.now_ms());
    let plan = asked.plan();
    let timetable = plan.timetable().unwrap();
    let head = ScheduleHead::new(id, ORG, plan, &timetable, now);
    ctx.store.create_schedule(&head, json!(asked)).await.unwrap();
    id
}

pub(crate) async fn tick(ctx: &Context) {
    ringback_schedule::handle(ctx, Deadline::after(Duration::from_secs(60)))
        .await
        .unwrap();
}

/// All firings of a schedule in the order of time.
async fn history(ctx: &Context, schedule: Uuid) -> Vec<Firing> {
    let kept = ctx.store.firings(schedule, false, None, 100_000).await.unwrap();
    kept.into_iter().map(|kept| kept.firing).collect()
}

/// All runs that there are.
async fn runs(ctx: &Context) -> Vec<RunHead> {
    let mut query = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: false,
        after: None,
        limit: 1000,
    };
    let mut runs = Vec::new();
    loop {
        let listed = ctx
            .store
            .list_runs(ORG, RunKind::Simulation, &query)
            .await
            .unwrap();
        query.after = listed.entries.last().map(|last| last.id);
        runs.extend(listed.entries);
        if !listed.more {
            return runs;
        }
    }
}

/// Ends a run as if all of its items had passed.
async fn end(ctx: &Context, run: Uuid) {
    let head = ctx
        .store
        .run(RunKey::simulation(ORG, run))
        .await
        .unwrap()
        .unwrap();
    let now = ctx.clock.now_ms();
    let end = |head: &mut RunHead| {
        head.state = RunState::Ended;
        head.ended_at = Some(now);
        true
    };
    ctx.store.change_run(head, now, end).await.unwrap();
}

/// What became of firings, in short.
fn fates(history: &[Firing], begin: i64) -> Vec<(i64, FiringStatus, u32)> {
    let fate = |firing: &Firing| ((firing.due.at - begin) / MINUTE, firing.status, firing.due.missed);
    history.iter().map(fate).collect()
}

/// A schedule every minute for a day, and its tick comes three times each to two workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_minutes_starts_each_run_once_however_often_the_tick_comes() {
    const DAY: i64 = 1440;
    let begin = ms("2026-06-01T00:00:00Z");
    let clock = Arc::new(SetClock(AtomicI64::new(begin - 1)));
    let (_emulator, ctx) = stack_at(clock.clone()).await;
    let id = keep(&ctx, schedule("* * * * *", "UTC", "allow")).await;
    for minute in 0..DAY {
        // Somewhere in the minute, a little later each time.
        clock
            .0
            .store(begin + minute * MINUTE + minute * 37, Ordering::SeqCst);
        if minute % 10 == 0 {
            // All at once.
            join_all((0..6).map(|_| tick(&ctx))).await;
            continue;
        }
        let worker = || async {
            for _ in 0..3 {
                tick(&ctx).await;
            }
        };
        tokio::join!(worker(), worker());
    }
    let history = history(&ctx, id).await;
    let expected: Vec<_> = (0..DAY)
        .map(|minute| (minute, FiringStatus::Started, 0))
        .collect();
    assert_eq!(fates(&history, begin), expected);
    let runs = runs(&ctx).await;
    assert_eq!(runs.len(), 1440);
    let by_run: BTreeMap<Uuid, i64> = history
        .iter()
        .map(|firing| (firing.run.unwrap(), firing.due.at))
        .collect();
    for run in &runs {
        let scheduled = run.schedule.unwrap();
        assert_eq!(
            (scheduled.schedule, Some(&scheduled.at)),
            (id, by_run.get(&run.id))
        );
    }
}

#[tokio::test]
async fn an_hour_without_ticks_is_caught_up_once() {
    let begin = ms("2026-06-01T10:00:00Z");
    let clock = Arc::new(SetClock(AtomicI64::new(begin - 1)));
    let (_emulator, ctx) = stack_at(clock.clone()).await;
    let id = keep(&ctx, schedule("* * * * *", "UTC", "allow")).await;
    for minute in [0, 1, 61, 62] {
        clock.0.store(begin + minute * MINUTE + 900, Ordering::SeqCst);
        tokio::join!(tick(&ctx), tick(&ctx));
    }
    let history = history(&ctx, id).await;
    let started = FiringStatus::Started;
    assert_eq!(
        fates(&history, begin),
        [
            (0, started, 0),
            (1, started, 0),
            (61, started, 59),
            (62, started, 0)
        ]
    );
    assert_eq!(history[2].due.missed_since, Some(begin + 2 * MINUTE));
    assert_eq!(runs(&ctx).await.len(), 4);
}

/// A tick that comes late now and then, by more than a minute, costs no run.
#[tokio::test]
async fn a_tick_that_is_a_little_late_costs_no_run() {
    let begin = ms("2026-06-01T10:00:00Z");
    let clock = Arc::new(SetClock(AtomicI64::new(begin - 1)));
    let (_emulator, ctx) = stack_at(clock.clone()).await;
    let id = keep(&ctx, schedule("* * * * *", "UTC", "allow")).await;
    for at in [500, MINUTE - 10, 2 * MINUTE + 10, 3 * MINUTE, 5 * MINUTE - 1] {
        clock.0.store(begin + at, Ordering::SeqCst);
        tick(&ctx).await;
    }
    let minutes: Vec<i64> = fates(&history(&ctx, id).await, begin)
        .iter()
        .map(|fate| fate.0)
        .collect();
    assert_eq!(minutes, [0, 1, 2, 3, 4]);
}

/// The nights in which the clocks of three zones are changed, minute by minute.
#[tokio::test]
async fn the_nights_when_clocks_change_have_the_runs_that_are_documented() {
    for (zone, night, fixed, hourly, runs_fixed, runs_hourly) in [
        // Forward: what is left out starts when the clock goes on; an hour is no hour.
        (
            "Europe/Berlin",
            "2026-03-28T23:00:00Z",
            "30 2 * * *",
            "0 * * * *",
            vec!["01:00"],
            vec!["23:00", "00:00", "01:00", "02:00", "03:00"],
        ),
        (
            "America/New_York",
            "2026-03-08T05:00:00Z",
            "30 2 * * *",
            "0 * * * *",
            vec!["07:00"],
            vec!["05:00", "06:00", "07:00", "08:00", "09:00"],
        ),
        (
            "Australia/Lord_Howe",
            "2026-10-03T13:30:00Z",
            "15 2 * * *",
            "0 1-3 * * *",
            vec!["15:30"],
            vec!["14:30", "16:00"],
        ),
        // Back: a fixed time once, the hour that comes twice two times.
        (
            "Europe/Berlin",
            "2026-10-24T22:00:00Z",
            "30 2 * * *",
            "0 2 * * 6,0",
            vec!["00:30"],
            vec!["00:00"],
        ),
        (
            "America/New_York",
            "2026-11-01T04:00:00Z",
            "30 1 * * *",
            "15 * * * *",
            vec!["05:30"],
            vec!["04:15", "05:15", "06:15", "07:15", "08:15"],
        ),
        (
            "Australia/Lord_Howe",
            "2026-04-04T13:00:00Z",
            "45 1 * * *",
            "*/30 1 * * *",
            vec!["14:45"],
            vec!["14:00", "14:30", "15:00"],
        ),
    ] {
        let begin = ms(night);
        let clock = Arc::new(SetClock(AtomicI64::new(begin - 1)));
        let (_emulator, ctx) = stack_at(clock.clone()).await;
        let one = keep(&ctx, schedule(fixed, zone, "allow")).await;
        let other = keep(&ctx, schedule(hourly, zone, "allow")).await;
        for minute in 0..5 * 60 {
            clock.0.store(begin + minute * MINUTE + 100, Ordering::SeqCst);
            tick(&ctx).await;
        }
        for (id, expected) in [(one, runs_fixed), (other, runs_hourly)] {
            let times: Vec<String> = history(&ctx, id)
                .await
                .iter()
                .map(|firing| iso(firing.due.at)[11..16].to_owned())
                .collect();
            assert_eq!(times, expected, "{zone} {night}");
        }
    }
}

#[tokio::test]
async fn what_overlaps_is_skipped_or_waits_or_runs_beside() {
    use FiringStatus::{Skipped, Started, Waiting};
    let begin = ms("2026-06-01T10:00:00Z");
    let clock = Arc::new(SetClock(AtomicI64::new(begin - 1)));
    let (_emulator, ctx) = stack_at(clock.clone()).await;
    let skip = keep(&ctx, schedule("* * * * *", "UTC", "skip")).await;
    let queue = keep(&ctx, schedule("* * * * *", "UTC", "queue")).await;
    let at = async |minute: i64| {
        clock.0.store(begin + minute * MINUTE + 100, Ordering::SeqCst);
        tokio::join!(tick(&ctx), tick(&ctx));
    };
    for minute in 0..3 {
        at(minute).await;
    }
    let skipped = history(&ctx, skip).await;
    assert_eq!(
        fates(&skipped, begin),
        [(0, Started, 0), (1, Skipped, 0), (2, Skipped, 0)]
    );
    assert_eq!(
        skipped[1].reason.as_deref(),
        Some("a run of this schedule was under way")
    );
    let queued = history(&ctx, queue).await;
    assert_eq!(
        fates(&queued, begin),
        [(0, Started, 0), (1, Waiting, 0), (2, Skipped, 0)]
    );
    // The first runs end: what waited starts, and what is due then waits for that.
    for first in [&skipped[0], &queued[0]] {
        end(&ctx, first.run.unwrap()).await;
    }
    at(3).await;
    assert_eq!(fates(&history(&ctx, skip).await, begin)[3], (3, Started, 0));
    let queued = history(&ctx, queue).await;
    assert_eq!(
        fates(&queued, begin),
        [(0, Started, 0), (1, Started, 0), (2, Skipped, 0), (3, Waiting, 0)]
    );
    let heads = runs(&ctx).await;
    let of_queue: BTreeSet<i64> = heads
        .iter()
        .filter_map(|head| head.schedule)
        .filter(|scheduled| scheduled.schedule == queue)
        .map(|scheduled| (scheduled.at - begin) / MINUTE)
        .collect();
    assert_eq!(of_queue, BTreeSet::from([0, 1]));
    // What waits starts with the next tick that finds that it can.
    let head = ctx.store.schedule_head(queue).await.unwrap().unwrap();
    assert_eq!(head.waiting.map(|due| due.at), Some(begin + 3 * MINUTE));
    end(&ctx, queued[1].run.unwrap()).await;
    at(4).await;
    let queued = history(&ctx, queue).await;
    assert_eq!(fates(&queued, begin)[3..], [(3, Started, 0), (4, Waiting, 0)]);
    let head = ctx.store.schedule_head(queue).await.unwrap().unwrap();
    assert_eq!(head.last_run, queued[3].run);
}

/// The function's own binary, told by a stand-in for Lambda to work once; what it asks of the table goes through this process,
/// which kills it on the way.
struct Worker {
    child: Mutex<Option<Child>>,
    /// Which of its requests is its last, from 1; 0 if none is.
    last: usize,
    /// Whether that one still gets through.
    through: bool,
    requests: AtomicUsize,
    /// When it is over: it has answered, or is dead.
    over: Notify,
    answered: AtomicUsize,
    invoked: AtomicUsize,
    table: String,
    http: reqwest::Client,
}

impl Worker {
    /// Lets the binary handle one tick over the table of `emulator`; gives how many requests it made, and whether it lived to
    /// answer.
    async fn tick(emulator: &Emulator, last: usize, through: bool) -> (usize, bool) {
        let worker = Arc::new(Self {
            child: Mutex::new(None),
            last,
            through,
            requests: AtomicUsize::new(0),
            over: Notify::new(),
            answered: AtomicUsize::new(0),
            invoked: AtomicUsize::new(0),
            table: emulator.dynamodb_endpoint().to_owned(),
            http: ringback_shared::net::client().no_proxy().build().unwrap(),
        });
        let mut servers = JoinSet::new();
        let mut serve = async |router: axum::Router| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
            address
        };
        let table = serve(axum::Router::new().fallback(forward).with_state(worker.clone())).await;
        let runtime = serve(axum::Router::new().fallback(invoke).with_state(worker.clone())).await;
        let program = tokio::task::spawn_blocking(|| binary("schedule")).await.unwrap();
        let child = Command::new(program)
            .env_clear()
            .envs([
                ("AWS_LAMBDA_RUNTIME_API", runtime.as_str()),
                ("AWS_LAMBDA_FUNCTION_NAME", "schedule"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
                ("AWS_LAMBDA_LOG_GROUP_NAME", "g"),
                ("AWS_LAMBDA_LOG_STREAM_NAME", "s"),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "test"),
                ("AWS_SECRET_ACCESS_KEY", "test"),
                ("AWS_ENDPOINT_URL", &format!("http://{table}")),
                ("TABLE_NAME", "table"),
                ("RUN_ITEMS_QUEUE_URL", "http://127.0.0.1:1/q"),
                ("EVALUATIONS_QUEUE_URL", "http://127.0.0.1:1/q"),
                ("DELIVERIES_QUEUE_URL", "http://127.0.0.1:1/q"),
                ("SECRETS_PREFIX", "ringback"),
                ("PUBLIC_URL", "http://127.0.0.1:1"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        *worker.child.lock().unwrap() = Some(child);
        tokio::time::timeout(Duration::from_secs(60), worker.over.notified())
            .await
            .expect("the worker neither answers nor dies");
        worker.kill();
        let answered = worker.answered.load(Ordering::SeqCst) > 0;
        (worker.requests.load(Ordering::SeqCst), answered)
    }

    /// As `kill -9` does.
    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// A request to the table, on its way.
async fn forward(State(worker): State<Arc<Worker>>, headers: HeaderMap, body: Bytes) -> Response {
    let n = worker.requests.fetch_add(1, Ordering::SeqCst) + 1;
    let dies = n == worker.last;
    let sent = match dies && !worker.through {
        true => None,
        false => {
            let mut request = worker.http.post(&worker.table).body(body);
            for (name, value) in headers
                .iter()
                .filter(|(name, _)| *name != "host" && *name != "content-length")
            {
                request = request.header(name, value);
            }
            Some(request.send().await.unwrap())
        }
    };
    if dies {
        if let Some(answer) = sent {
            // It was done when the answer is there.
            answer.bytes().await.unwrap();
        }
        worker.kill();
        worker.over.notify_one();
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let answer = sent.unwrap();
    let status = answer.status();
    (status, answer.bytes().await.unwrap()).into_response()
}

/// Lambda's side: one invocation, and then none.
async fn invoke(State(worker): State<Arc<Worker>>, uri: Uri, _request: Request) -> Response {
    if !uri.path().ends_with("/next") {
        worker.answered.fetch_add(1, Ordering::SeqCst);
        worker.over.notify_one();
        return StatusCode::ACCEPTED.into_response();
    }
    if worker.invoked.fetch_add(1, Ordering::SeqCst) > 0 {
        std::future::pending::<()>().await;
    }
    let deadline = (SystemClock.now_ms() + 60_000).to_string();
    let headers = [
        ("lambda-runtime-aws-request-id", "1"),
        ("lambda-runtime-deadline-ms", deadline.as_str()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:us-east-1:000000000000:function:schedule",
        ),
    ];
    (headers, "{}").into_response()
}

/// A schedule that is due now, and only once: of one simulation, or of so many that a transaction does not hold them.
fn due_once(simulations: usize) -> Value {
    let mut body = schedule("* * * * *", "UTC", "skip");
    let entry = body["simulations"][0].clone();
    body["simulations"] = vec![entry; simulations].into();
    ended_a_moment_ago(body)
}

/// The same schedule with its last firing at the beginning of this minute.
pub(crate) fn ended_a_moment_ago(mut schedule: Value) -> Value {
    schedule["endAt"] = json!(iso(SystemClock.now_ms() / MINUTE * MINUTE));
    schedule
}

/// Keeps such a schedule as it was made a moment before it was due.
pub(crate) async fn keep_due(ctx: &Context, org: Uuid, body: Value) -> Uuid {
    let asked: CreateSchedule = ringback_shared::models::parse(body).unwrap();
    let now = ctx.clock.now_ms();
    let id = ids::new_id(now);
    let plan = asked.plan();
    let before = plan.end_at.unwrap() - 1;
    let head = ScheduleHead::new(id, org, plan.clone(), &plan.timetable().unwrap(), before);
    assert!(head.next_fire_at.is_some_and(|at| at <= now));
    ctx.store.create_schedule(&head, json!(asked)).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_between_any_two_steps_costs_no_run_and_makes_no_second() {
    for (simulations, items) in [(1, 1), (60, 60)] {
        let (emulator, ctx) = stack().await;
        let whole = keep_due(&ctx, ORG, due_once(simulations)).await;
        let (requests, answered) = Worker::tick(&emulator, 0, true).await;
        assert!(answered && history(&ctx, whole).await.len() == 1, "{requests}");
        // The index, the head, the definition, the organization, and what it writes at least.
        assert!(requests >= 5, "{requests}");
        let mut begun = 0;
        for last in 1..=requests {
            for through in [false, true] {
                let id = keep_due(&ctx, ORG, due_once(simulations)).await;
                let (made, answered) = Worker::tick(&emulator, last, through).await;
                assert!(!answered && made >= last, "it died at {made} of {last}");
                begun += history(&ctx, id).await.len();
                // Others come, one with another, and once more.
                tokio::join!(tick(&ctx), tick(&ctx));
                tick(&ctx).await;
                let history = history(&ctx, id).await;
                let [firing] = &history[..] else {
                    panic!("killed at {last} ({through}): {history:?}");
                };
                assert_eq!(firing.status, FiringStatus::Started);
                let all = runs(&ctx).await;
                let own: Vec<&RunHead> = all
                    .iter()
                    .filter(|head| head.schedule.is_some_and(|scheduled| scheduled.schedule == id))
                    .collect();
                let [run] = own[..] else {
                    panic!("killed at {last} ({through}): {} runs", own.len());
                };
                assert_eq!((Some(run.id), run.total), (firing.run, items));
                // What its items work from is whole.
                for simulation in 0..items {
                    let snapshot = ctx.store.snapshot(run.id, simulation).await.unwrap();
                    assert_eq!(snapshot.scenario["name"], "Nightly");
                }
                let head = ctx.store.schedule_head(id).await.unwrap().unwrap();
                assert_eq!((head.next_fire_at, head.open), (None, vec![run.id]));
            }
        }
        // Its last write is not its last request, or else it is.
        assert!(begun > 0 && begun < requests * 2, "{begun} of {requests}");
    }
}

/// A schedule that starts such a run as `run`, every minute.
pub(crate) fn of_run(run: &Value, name: &str) -> Value {
    let mut schedule = json!({"name": name, "cron": "* * * * *"});
    for field in ["simulations", "target", "iterations", "transport"] {
        schedule[field] = run[field].clone();
    }
    schedule
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_kept_changed_listed_and_deleted() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut body = of_run(&simple_run(&stand_in, "kept", 1, 2), "Nightly");
    body["cron"] = json!("0 2 * * MON-FRI");
    body["timezone"] = json!("Europe/Berlin");
    body["tint"] = json!({"deep": [1.5]});
    body["id"] = json!(UNKNOWN);
    let made = api.post(SCHEDULE, &body).await;
    for field in [
        "name",
        "cron",
        "timezone",
        "target",
        "simulations",
        "iterations",
        "tint",
    ] {
        let (sent, kept) = (&body[field], &made[field]);
        assert!(
            field == "target" || field == "simulations" || sent == kept,
            "{field}: {kept}"
        );
    }
    assert_ne!(made["id"], UNKNOWN);
    assert_eq!(
        (&made["overlap"], &made["active"]),
        (&json!("skip"), &json!(true))
    );
    let next = list(&made["nextFirings"]);
    assert_eq!(next.len(), 5);
    let times: Vec<i64> = next.iter().map(|at| ms(text(at))).collect();
    assert!(times.is_sorted() && times[0] > SystemClock.now_ms());
    assert!(next.iter().all(|at| text(at).ends_with("00:00.000Z")), "{next:?}");
    let path = format!("{SCHEDULE}/{}", text(&made["id"]));
    assert_eq!(api.get(&path).await, made);

    // What was read can be sent back.
    let change = async |body: &Value| api.call(Method::PATCH, &path, Some(body)).await;
    let (status, same) = change(&made).await;
    assert_eq!(
        (status, &same["simulations"], &same["createdAt"]),
        (200, &made["simulations"], &made["createdAt"])
    );
    // `null` is what a new schedule has.
    let (_, reset) =
        change(&json!({"iterations": null, "overlap": null, "timezone": null, "active": null})).await;
    assert_eq!(
        (
            &reset["iterations"],
            &reset["overlap"],
            &reset["timezone"],
            &reset["active"]
        ),
        (&json!(1), &json!("skip"), &json!("UTC"), &json!(true))
    );
    let (_, limited) = change(&json!({"concurrencyLimit": 5.0})).await;
    assert_eq!(limited["concurrencyLimit"], 5);
    // Paused, nothing is next; by another clock, something else.
    let (_, paused) = change(&json!({"active": false})).await;
    assert_eq!(
        (&paused["nextFirings"], &paused["active"]),
        (&json!([]), &json!(false))
    );
    let (_, again) =
        change(&json!({"active": true, "timezone": "UTC", "cron": "30 3 * * *", "tint": null})).await;
    assert!(
        list(&again["nextFirings"])
            .iter()
            .all(|at| text(at).ends_with("T03:30:00.000Z"))
    );
    assert_eq!(again.get("tint"), None);
    let (_, bound) =
        change(&json!({"startAt": "2090-01-01T00:00:00Z", "endAt": "2090-01-02T04:00:00+00:00"})).await;
    assert_eq!(
        bound["nextFirings"],
        json!(["2090-01-01T03:30:00.000Z", "2090-01-02T03:30:00.000Z"])
    );
    // When it is over, it can still be renamed.
    let over = ended_a_moment_ago(of_run(&simple_run(&stand_in, "over", 1, 1), "Over"));
    let over = keep_due(local.context(), ringback_api::LOCAL_ORG, over).await;
    tick(local.context()).await;
    let renamed = api
        .call(
            Method::PATCH,
            &format!("{SCHEDULE}/{over}"),
            Some(&json!({"name": "Was"})),
        )
        .await;
    assert_eq!(
        (renamed.0, &renamed.1["nextFirings"]),
        (200, &json!([])),
        "{}",
        renamed.1
    );
    api.delete(&format!("{SCHEDULE}/{over}")).await;
    let (_, unbound) = change(&json!({"startAt": null, "endAt": null})).await;
    assert_eq!(list(&unbound["nextFirings"]).len(), 5);

    api.post(SCHEDULE, &of_run(&simple_run(&stand_in, "other", 1, 1), "Hourly"))
        .await;
    assert_eq!(list(&api.get(SCHEDULE).await).len(), 2);
    assert_eq!(
        list(&api.get(&format!("{SCHEDULE}?name=night")).await),
        [api.get(&path).await]
    );
    assert_eq!(pages(&api, SCHEDULE, 1).await.len(), 2);

    for (method, path) in [
        (Method::GET, format!("{SCHEDULE}/{UNKNOWN}")),
        (Method::PATCH, format!("{SCHEDULE}/{UNKNOWN}")),
        (Method::DELETE, format!("{SCHEDULE}/nonsense")),
        (Method::POST, format!("{SCHEDULE}/{UNKNOWN}/run")),
        (Method::GET, format!("{SCHEDULE}/{UNKNOWN}/firing")),
        (Method::GET, format!("{SCHEDULE}/{UNKNOWN}/trend")),
    ] {
        assert_refused(&api.call(method, &path, None).await, 404, "not found");
    }
    let deleted = api.delete(&path).await;
    assert_eq!(deleted["id"], made["id"]);
    assert_refused(&api.call(Method::GET, &path, None).await, 404, "not found");
    assert_refused(
        &api.call(Method::GET, &format!("{path}/firing"), None).await,
        404,
        "not found",
    );
    // What was kept of it goes with the next tick.
    tick(local.context()).await;
    let id = text(&made["id"]).parse().unwrap();
    assert_eq!(local.context().store.schedule_head(id).await.unwrap(), None);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_cannot_be_right_are_refused() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let right = of_run(&simple_run(&stand_in, "right", 1, 1), "Nightly");
    let kept = api.post(SCHEDULE, &right).await;
    let path = format!("{SCHEDULE}/{}", text(&kept["id"]));
    let suite = json!([{"type": "simulationSuite", "simulationSuiteId": UNKNOWN}]);
    let stored = json!([{"type": "simulation", "simulationId": UNKNOWN}]);
    for (field, value, status, fault) in [
        ("name", json!(""), 400, "name"),
        ("cron", json!("* * * *"), 400, "five fields"),
        ("cron", json!("*/5 * * * * *"), 400, "five fields"),
        ("cron", json!("@daily"), 400, "five fields"),
        ("cron", json!("61 * * * *"), 400, "five fields"),
        ("cron", json!("0 0 31 2 *"), 400, "never fire"),
        ("cron", json!(5), 400, "cron"),
        ("timezone", json!("Mars/Olympus"), 400, "IANA"),
        ("timezone", json!("+02:00"), 400, "IANA"),
        ("startAt", json!("tomorrow"), 400, "startAt"),
        ("endAt", json!("2001-01-01T00:00:00Z"), 400, "never fire"),
        ("simulations", json!([]), 400, "simulations"),
        ("simulations", suite, 404, "not found"),
        ("simulations", stored, 404, "not found"),
        (
            "target",
            json!({"type": "assistant", "assistantId": UNKNOWN}),
            404,
            "not found",
        ),
        ("iterations", json!(0), 400, "iterations"),
        ("iterations", json!(11), 400, "iterations"),
        (
            "transport",
            json!({"provider": "vapi.websocket"}),
            400,
            "POST /endpoint",
        ),
        ("concurrencyLimit", json!(0), 400, "concurrencyLimit"),
        ("overlap", json!("pile"), 400, "`skip`, `queue`, `allow`"),
        ("active", json!("yes"), 400, "active"),
        (
            "notify",
            json!({"on": "always"}),
            400,
            "`never`, `success`, `failure`, `both`",
        ),
        (
            "notify",
            json!({"slackWebhookUrl": "slack"}),
            400,
            "notify.slackWebhookUrl",
        ),
        ("notify", json!({"server": {}}), 400, "notify.server.url"),
        ("notify", json!({"on": "failure"}), 400, "names nobody"),
        (
            "notify",
            json!({"server": {"url": "https://x", "headers": {"bad name": "x"}}}),
            400,
            "headers.bad name",
        ),
        (
            "notify",
            json!({"server": {"url": "https://x", "credentialId": "c"}}),
            400,
            "credentialId",
        ),
    ] {
        let mut wrong = right.clone();
        wrong[field] = value.clone();
        assert_refused(
            &api.call(Method::POST, SCHEDULE, Some(&wrong)).await,
            status,
            fault,
        );
        let change = json!({ field: value });
        assert_refused(
            &api.call(Method::PATCH, &path, Some(&change)).await,
            status,
            fault,
        );
    }
    assert_eq!(api.get(&path).await["updatedAt"], kept["updatedAt"]);
    for (path, fault) in [
        (format!("{path}/firing?limit=0"), "limit"),
        (format!("{path}/firing?cursor=x%20y"), "cursor"),
        (format!("{path}/firing?sortOrder=up"), "sortOrder"),
        (format!("{path}/trend?limit=101"), "limit"),
    ] {
        assert_refused(&api.call(Method::GET, &path, None).await, 400, fault);
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_runs_when_somebody_says_so_and_keeps_its_history_and_its_trend() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        let prices = json!({"tester": {"prompt": 1000, "completion": 1000}}).to_string();
        options.settings.insert("MODEL_PRICES".to_owned(), prices);
    })
    .await;
    let mut body = of_run(&simple_run(&stand_in, "now", 2, 3), "Now");
    body["active"] = json!(false);
    body["concurrencyLimit"] = json!(1);
    let made = api.post(SCHEDULE, &body).await;
    let path = format!("{SCHEDULE}/{}", text(&made["id"]));
    let run_now = async |key: &str| {
        let request = api
            .request(Method::POST, &format!("{path}/run"))
            .header("Idempotency-Key", key);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 201);
        answer.json::<Value>().await.unwrap()
    };
    // The same request is one run, however often it is sent and by how many.
    let same = join_all((0..5).map(|_| run_now("a"))).await;
    assert!(same.iter().all(|one| *one == same[0]));
    assert_valid("CreateSimulationRunResponse", &same[0]);
    let other = run_now("b").await;
    assert_ne!(other["id"], same[0]["id"]);
    assert_eq!(
        (&other["schedule"]["id"], &other["concurrencyLimit"]),
        (&made["id"], &json!(1))
    );
    for run in [&same[0], &other] {
        assert_eq!(counts(&ended(&api, text(&run["id"])).await)[..2], [3, 3]);
    }
    let history = api.get(&format!("{path}/firing")).await;
    let firings = list(&history["results"]);
    let runs: Vec<&Value> = firings.iter().map(|firing| &firing["runId"]).collect();
    assert_eq!(runs, [&other["id"], &same[0]["id"]], "the newest first");
    for firing in firings {
        assert_eq!(
            (&firing["trigger"], &firing["status"], &firing["missed"]),
            (&json!("manual"), &json!("started"), &json!(0))
        );
        assert_eq!(firing["runStatus"], "ended");
        assert_counted(firing, 3);
    }
    // Page by page, both ways.
    for (order, expected) in [("DESC", [&other, &same[0]]), ("ASC", [&same[0], &other])] {
        let mut cursor = String::new();
        for (n, run) in expected.iter().enumerate() {
            let page = api
                .get(&format!("{path}/firing?limit=1&sortOrder={order}{cursor}"))
                .await;
            assert_eq!(list(&page["results"])[0]["runId"], run["id"]);
            assert_eq!(page["metadata"]["hasNextPage"], n == 0);
            if n == 0 {
                cursor = format!("&cursor={}", text(&page["metadata"]["nextCursor"]));
            }
        }
    }
    // What a run came to is known a moment after its end.
    let points = until("the trend to be known", LONG, async || {
        let trend = api.get(&format!("{path}/trend")).await;
        let points = list(&trend["points"]).to_vec();
        points
            .iter()
            .all(|point| !point["passRate"].is_null())
            .then_some(points)
    })
    .await;
    let runs: Vec<&Value> = points.iter().map(|point| &point["runId"]).collect();
    assert_eq!(runs, [&same[0]["id"], &other["id"]], "the oldest first");
    for point in &points {
        assert_eq!(
            (&point["passRate"], &point["passed"], &point["errored"]),
            (&json!(1.0), &json!(3), &json!(0))
        );
        assert_eq!(point["latency"]["items"], 3);
        let run = api.get(&format!("{RUNS}/{}", text(&point["runId"]))).await;
        assert!(
            point["cost"].as_f64() > Some(0.0) && point["cost"] == run["cost"],
            "{point:#}"
        );
        assert_eq!(point["costsUnknown"], run["costsUnknown"]);
        assert!(point["latency"]["p50Ms"].as_f64() <= point["latency"]["p95Ms"].as_f64());
    }
    let newest = api.get(&format!("{path}/trend?limit=1")).await;
    assert_eq!(list(&newest["points"])[0]["runId"], other["id"]);

    // The month's limit holds for schedules too.
    let org = text(&api.get("/org").await[0]["id"]).to_owned();
    api.call(
        Method::PATCH,
        &format!("/org/{org}"),
        Some(&json!({"billingLimit": 0})),
    )
    .await;
    let refused = api.call(Method::POST, &format!("{path}/run"), None).await;
    assert_eq!(refused.0, 402, "{}", refused.1);
    local.shutdown().await;
}

/// The real program and the real clock; the program is killed as soon as the run is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_fires_by_the_clock_and_goes_on_after_a_crash() {
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    let body = of_run(&simple_run(&stand_in, "clock", 2, 4), "Every minute");
    let made = server.api.post(SCHEDULE, &body).await;
    let path = format!("{SCHEDULE}/{}", text(&made["id"]));
    let first = until("the clock to strike", LONG, async || {
        let history = server.api.get(&format!("{path}/firing")).await;
        list(&history["results"]).last().cloned()
    })
    .await;
    server.kill_9();
    server.restart().await;
    assert_eq!(
        (&first["trigger"], &first["scheduledFor"]),
        (&json!("cron"), &made["nextFirings"][0])
    );
    let run = ended(&server.api, text(&first["runId"])).await;
    assert_eq!(counts(&run)[..2], [4, 4]);
    assert_eq!(run["schedule"]["scheduledFor"], first["scheduledFor"]);
    let paused = server
        .api
        .call(Method::PATCH, &path, Some(&json!({"active": false})))
        .await;
    assert_eq!(paused.0, 200);
    let history = server.api.get(&format!("{path}/firing?sortOrder=ASC")).await;
    assert_eq!(list(&history["results"])[0]["runId"], first["runId"]);
    let scheduled: BTreeSet<&str> = list(&history["results"])
        .iter()
        .map(|firing| text(&firing["scheduledFor"]))
        .collect();
    assert_eq!(scheduled.len(), list(&history["results"]).len(), "no time twice");
    let path = format!("{RUNS}?limit=100");
    assert!(
        list(&server.api.get(&path).await["results"])
            .iter()
            .all(|run| run["schedule"]["id"] == made["id"])
    );
}

/// What was due or waited when a schedule is paused does not vanish without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_says_which_firings_it_left_out() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let ctx = local.context();
    stand_in.fail(Role::Tester, usize::MAX, Fault::Hang);
    let run = simple_run(&stand_in, "paused", 1, 1);
    let under_way = api.post(RUNS, &run).await;
    let mut body = of_run(&run, "Paused");
    body["overlap"] = json!("queue");
    let now = SystemClock.now_ms();
    let asked: CreateSchedule = ringback_shared::models::parse(body).unwrap();
    let plan = asked.plan();
    let timetable = plan.timetable().unwrap();
    // Made an hour ago, and a run of it is under way: the hour's firings wait as one, whoever ticks.
    let id = ids::new_id(now);
    let org = ringback_api::LOCAL_ORG;
    let mut head = ScheduleHead::new(id, org, plan, &timetable, now - 60 * MINUTE);
    head.open = vec![text(&under_way["id"]).parse().unwrap()];
    let stored = json!({"id": id, "orgId": org, "createdAt": iso(now), "updatedAt": iso(now)});
    let mut stored = stored.as_object().unwrap().clone();
    stored.extend(json!(asked).as_object().unwrap().clone());
    ctx.store.create_schedule(&head, json!(stored)).await.unwrap();
    let path = format!("{SCHEDULE}/{id}");
    tick(ctx).await;
    let late = async || {
        let history = api.get(&format!("{path}/firing?sortOrder=ASC")).await;
        list(&history["results"])[0].clone()
    };
    let waiting = late().await;
    assert_eq!(waiting["status"], "waiting", "{waiting:#}");
    assert!(waiting["missed"].as_u64() >= Some(58), "{waiting:#}");
    let (status, paused) = api
        .call(Method::PATCH, &path, Some(&json!({"active": false})))
        .await;
    assert_eq!((status, &paused["nextFirings"]), (200, &json!([])), "{paused:#}");
    let left = late().await;
    assert_eq!(
        (&left["status"], &left["scheduledFor"], &left["missed"]),
        (&json!("skipped"), &waiting["scheduledFor"], &waiting["missed"])
    );
    assert!(text(&left["reason"]).contains("paused before this firing could start"));
    stand_in.release();
    local.shutdown().await;
}
