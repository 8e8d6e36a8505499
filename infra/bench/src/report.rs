//! Runs the cases and puts what they took together.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::Stdio,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::process::Command;

use crate::{
    BoxError, Cli, Store,
    case::{CaseOutcome, TableUse},
    floor::FloorOutcome,
    measure::rounded,
    model_server::{ModelServer, Stats},
    queued::QueuedOutcome,
    workload::{CALLS, REPLIES, WORKERS},
};

/// The most rows that are written for a model's reply.
const ROWS_PER_REPLY: f64 = 1.0;
/// The most rows that are written for an item besides; a row in a transaction counts as one.
const OTHER_ROWS_PER_ITEM: f64 = 8.0;
/// The most connections to the model server: one for each conversation and each judge that may be under way.
const CONNECTIONS: u64 = WORKERS as u64 + 40;

/// The operating notes, which say what an item costs.
const NOTES: &str = include_str!("../../README.md");
/// How far what is counted may be from what the notes say, as a part of it.
const TOLERANCE: f64 = 0.15;
/// From how many conversations on the counts of one are what the notes say: a run's own rows are spread over them.
const MANY: u32 = 100;

/// The sizes that are taken if none are given.
const SIZES: [u32; 3] = [50, 200, 1000];

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: &'static str,
    /// `release`, or `debug` whose times mean nothing.
    build: &'static str,
    cores: usize,
    workload: Workload,
    /// Model calls alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Floor>,
    cases: Vec<Case>,
    /// By store.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ratios: BTreeMap<&'static str, Ratios>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    model_calls_per_conversation: u32,
    conversations_at_once: usize,
    model_latency_ms: u64,
    timed: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Floor {
    conversations: u32,
    cpu_ms_per_conversation: f64,
    conversations_per_second: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    store: Store,
    conversations: u32,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    times: Option<Times>,
    per_conversation: PerConversation,
    table_rows_per_reply: f64,
    other_table_rows_per_item: f64,
    model_connections: u64,
    most_model_calls_at_once: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    /// From the request for the run to its end, without the model server's.
    cpu_seconds: f64,
    /// The least and the most of the repetitions.
    cpu_seconds_range: [f64; 2],
    wall_seconds: f64,
    conversations_per_second: f64,
    cpu_ms_per_conversation: f64,
    #[serde(rename = "peakRssMB")]
    peak_rss_mb: Option<f64>,
    /// From the start of the process until it answers requests.
    start_cpu_seconds: f64,
    /// How often the run was looked at; the looks are in the CPU time.
    polls: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PerConversation {
    model_calls: f64,
    table_requests: f64,
    table_rows: f64,
    table_write_units: f64,
    table_read_units: f64,
    queue_requests: f64,
    /// By kind of request.
    table: BTreeMap<String, TableUse>,
    /// Requests to the queues, by kind.
    queue: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ratios {
    /// CPU per conversation at 1,000 conversations to that at 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_1000_to_200: Option<f64>,
    /// CPU per conversation of the largest case to that of its model calls alone.
    cpu_to_floor: f64,
}

/// Runs what `cli` asks for and prints the report. Gives `false` when a check failed.
pub(crate) async fn run(cli: Cli) -> Result<bool, BoxError> {
    let stores = or_default(cli.store.clone(), &[Store::Memory, Store::Disk]);
    let sizes = or_default(cli.conversations.clone(), &SIZES);
    let largest = sizes.iter().copied().max().unwrap_or(1);
    let floor = if cli.check {
        None
    } else {
        Some(measure_floor(&cli, largest).await?)
    };
    let mut cases = Vec::new();
    for &store in &stores {
        for &conversations in &sizes {
            progress(&format!("{} store, {conversations} conversations", store.name()));
            let times = if cli.check {
                None
            } else {
                Some(time(&cli, store, conversations).await?)
            };
            cases.push(count(&cli, store, conversations, times).await?);
        }
    }
    let ratios = match &floor {
        Some(floor) => stores
            .iter()
            .filter_map(|&store| Some((store.name(), ratios(&cases, store, floor)?)))
            .collect(),
        None => BTreeMap::new(),
    };
    let faults: Vec<String> = if cli.check {
        cases.iter().flat_map(faults).collect()
    } else {
        Vec::new()
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        workload: Workload {
            model_calls_per_conversation: CALLS,
            conversations_at_once: WORKERS,
            model_latency_ms: cli.latency_ms,
            timed: if cli.check { 0 } else { cli.repeat },
        },
        floor,
        cases,
        ratios,
    };
    crate::print(&report, true)?;
    for fault in &faults {
        progress(fault);
    }
    Ok(faults.is_empty())
}

/// The size of the runs whose items wait, unless sizes are given, and how many are under way at a time where that is limited.
const QUEUED: u32 = 10_000;
const CAP: u32 = 8;

/// Counts what waiting costs and prints it. Gives `false` when a check failed.
pub(crate) async fn queued(cli: Cli) -> Result<bool, BoxError> {
    let mut outcomes: Vec<QueuedOutcome> = Vec::new();
    for items in or_default(cli.conversations.clone(), &[QUEUED]) {
        for cap in [Some(CAP), None] {
            let waits = if cap.is_some() { "a slot" } else { "a worker" };
            progress(&format!("{items} items that wait for {waits}"));
            let models = ModelServer::start(cli.latency_ms).await?;
            let (items, cap) = (items.to_string(), cap.map(|cap| cap.to_string()));
            let mut arguments = vec!["queued", "-n", &items, "--model-server", models.url()];
            if let Some(cap) = &cap {
                arguments.extend(["--cap", cap]);
            }
            outcomes.push(part(&arguments).await?);
        }
    }
    crate::print(&outcomes, true)?;
    let faults = outcomes.iter().flat_map(QueuedOutcome::faults);
    let faults: Vec<String> = faults.filter(|_| cli.check).collect();
    for fault in &faults {
        progress(fault);
    }
    Ok(faults.is_empty())
}

fn or_default<T: Copy + Ord>(mut given: Vec<T>, default: &[T]) -> Vec<T> {
    if given.is_empty() {
        return default.to_vec();
    }
    given.sort_unstable();
    given.dedup();
    given
}

/// Tells the user something, on standard error.
pub(crate) fn progress(text: &str) {
    // Nobody is left to tell if this fails.
    let _unheard = writeln!(io::stderr(), "ringback-bench: {text}");
}

async fn measure_floor(cli: &Cli, conversations: u32) -> Result<Floor, BoxError> {
    progress(&format!("model calls alone, {conversations} conversations"));
    let mut outcomes = Vec::new();
    for _ in 0..cli.repeat {
        let models = ModelServer::start(cli.latency_ms).await?;
        let count = conversations.to_string();
        let outcome: FloorOutcome = part(&["floor", "-n", &count, "--model-server", models.url()]).await?;
        let calls = models.stats().await?.calls;
        if calls != u64::from(conversations) * u64::from(CALLS) {
            return Err(
                format!("the floor made {calls} model calls for {conversations} conversations").into(),
            );
        }
        outcomes.push(outcome);
    }
    let median = median(outcomes, |outcome| outcome.cpu_seconds).ok_or("nothing was measured")?;
    let n = f64::from(conversations);
    Ok(Floor {
        conversations,
        cpu_ms_per_conversation: rounded(median.cpu_seconds * 1000.0 / n),
        conversations_per_second: rounded(n / median.wall_seconds),
    })
}

async fn time(cli: &Cli, store: Store, conversations: u32) -> Result<Times, BoxError> {
    let mut outcomes = Vec::new();
    for _ in 0..cli.repeat {
        outcomes.push(case(cli, store, conversations, false).await?.0);
    }
    let cpu = |outcome: &CaseOutcome| outcome.cpu_seconds;
    let least = outcomes.iter().map(cpu).fold(f64::INFINITY, f64::min);
    let most = outcomes.iter().map(cpu).fold(0.0, f64::max);
    let median = median(outcomes, cpu).ok_or("nothing was measured")?;
    let n = f64::from(conversations);
    Ok(Times {
        cpu_seconds: rounded(median.cpu_seconds),
        cpu_seconds_range: [rounded(least), rounded(most)],
        wall_seconds: rounded(median.wall_seconds),
        conversations_per_second: rounded(n / median.wall_seconds),
        cpu_ms_per_conversation: rounded(median.cpu_seconds * 1000.0 / n),
        peak_rss_mb: median.peak_rss_mib.map(|mib| rounded(mib * 1.048_576)),
        start_cpu_seconds: rounded(median.start_cpu_seconds),
        polls: median.polls,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
async fn count(cli: &Cli, store: Store, conversations: u32, times: Option<Times>) -> Result<Case, BoxError> {
    let (outcome, models) = case(cli, store, conversations, true).await?;
    let n = f64::from(conversations);
    let table: BTreeMap<String, TableUse> = outcome
        .table
        .iter()
        .map(|(kind, used)| {
            let used = TableUse {
                requests: rounded(used.requests / n),
                rows: rounded(used.rows / n),
                units: rounded(used.units / n),
            };
            (kind.clone(), used)
        })
        .collect();
    let sum = |of: fn(&TableUse) -> f64, written: Option<bool>| {
        let kinds = outcome
            .table
            .iter()
            .filter(|(kind, _)| written.is_none_or(|written| written == is_write(kind)));
        kinds.map(|(_, used)| of(used)).sum::<f64>()
    };
    let rows = sum(|used| used.rows, None);
    let turns = outcome.turn_rows as f64;
    Ok(Case {
        store,
        conversations,
        times,
        per_conversation: PerConversation {
            model_calls: rounded(models.calls as f64 / n),
            table_requests: rounded(sum(|used| used.requests, None) / n),
            table_rows: rounded(rows / n),
            table_write_units: rounded(sum(|used| used.units, Some(true)) / n),
            table_read_units: rounded(sum(|used| used.units, Some(false)) / n),
            queue_requests: rounded(outcome.queue.values().sum::<u64>() as f64 / n),
            table,
            queue: outcome
                .queue
                .iter()
                .map(|(kind, &requests)| (kind.clone(), rounded(requests as f64 / n)))
                .collect(),
        },
        table_rows_per_reply: rounded(turns / (n * f64::from(REPLIES))),
        other_table_rows_per_item: rounded((rows - turns) / n),
        model_connections: models.connections,
        most_model_calls_at_once: models.most_at_once,
    })
}

fn is_write(kind: &str) -> bool {
    !(kind.contains("Get") || kind.starts_with("Query") || kind.starts_with("Scan"))
}

/// One case in a process of its own, against a model server of its own.
async fn case(
    cli: &Cli,
    store: Store,
    conversations: u32,
    count: bool,
) -> Result<(CaseOutcome, Stats), BoxError> {
    let models = ModelServer::start(cli.latency_ms).await?;
    let n = conversations.to_string();
    let mut arguments = vec![
        "case",
        "--store",
        store.name(),
        "-n",
        &n,
        "--model-server",
        models.url(),
    ];
    let dir = cli
        .dir
        .as_ref()
        .map(|dir| dir.to_str().ok_or("--dir must be valid UTF-8"))
        .transpose()?;
    if let Some(dir) = dir {
        arguments.extend(["--dir", dir]);
    }
    if count {
        arguments.push("--count");
    }
    let outcome = part(&arguments).await?;
    Ok((outcome, models.stats().await?))
}

/// Starts this program as one of its parts and reads what it prints.
async fn part<T: DeserializeOwned>(arguments: &[&str]) -> Result<T, BoxError> {
    let output = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        return Err(format!(
            "'ringback-bench {}' failed: {}",
            arguments.join(" "),
            output.status
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The one in the middle by `key`; of an even number, the lower one.
fn median<T>(mut outcomes: Vec<T>, key: impl Fn(&T) -> f64) -> Option<T> {
    outcomes.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let middle = outcomes.len().checked_sub(1)? / 2;
    Some(outcomes.swap_remove(middle))
}

fn ratios(cases: &[Case], store: Store, floor: &Floor) -> Option<Ratios> {
    let cpu = |n: u32| {
        let case = cases
            .iter()
            .find(|case| case.store == store && case.conversations == n)?;
        Some(case.times.as_ref()?.cpu_ms_per_conversation)
    };
    Some(Ratios {
        cpu_1000_to_200: cpu(1000)
            .zip(cpu(200))
            .map(|(at_1000, at_200)| rounded(at_1000 / at_200)),
        cpu_to_floor: rounded(cpu(floor.conversations)? / floor.cpu_ms_per_conversation),
    })
}

/// The number that the notes have in the row that begins with `what`.
fn noted(what: &str) -> Option<f64> {
    let row = NOTES
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| {what} | ")))?;
    row.split_whitespace().next()?.parse().ok()
}

/// What is above its budget, or is not what the operating notes say.
fn faults(case: &Case) -> Vec<String> {
    let at = format!(
        "{} store, {} conversations",
        case.store.name(),
        case.conversations
    );
    let mut faults = Vec::new();
    let mut check = |kept: bool, what: String| {
        if !kept {
            faults.push(format!("over budget: {at}: {what}"));
        }
    };
    let calls = case.per_conversation.model_calls;
    check(
        calls <= f64::from(CALLS),
        format!("{calls} model calls for a conversation instead of {CALLS}"),
    );
    let rows = case.table_rows_per_reply;
    check(
        rows <= ROWS_PER_REPLY,
        format!("{rows} rows for a model's reply; {ROWS_PER_REPLY} is allowed"),
    );
    let rows = case.other_table_rows_per_item;
    check(
        rows <= OTHER_ROWS_PER_ITEM,
        format!("{rows} rows for an item besides; {OTHER_ROWS_PER_ITEM} are allowed"),
    );
    if case.conversations >= MANY {
        let counted = &case.per_conversation;
        for (what, count) in [
            ("write units of the table", counted.table_write_units),
            ("read units of the table", counted.table_read_units),
        ] {
            let noted = noted(what).unwrap_or(f64::NAN);
            check(
                (count - noted).abs() <= noted * TOLERANCE,
                format!("{count} {what} for an item; infra/README.md says {noted}"),
            );
        }
    }
    let connections = case.model_connections;
    check(
        connections <= CONNECTIONS,
        format!("{connections} connections to the model; {CONNECTIONS} are allowed"),
    );
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(rows_per_reply: f64, other_rows: f64, model_calls: f64) -> Case {
        Case {
            store: Store::Memory,
            conversations: 20,
            times: None,
            per_conversation: PerConversation {
                model_calls,
                table_requests: 20.0,
                table_rows: 14.0,
                table_write_units: 20.0,
                table_read_units: 5.0,
                queue_requests: 0.5,
                table: BTreeMap::new(),
                queue: BTreeMap::new(),
            },
            table_rows_per_reply: rows_per_reply,
            other_table_rows_per_item: other_rows,
            model_connections: 16,
            most_model_calls_at_once: 16,
        }
    }

    #[test]
    fn what_is_over_budget_is_named() {
        assert_eq!(faults(&case(1.0, 8.0, 9.0)), Vec::<String>::new());
        assert!(faults(&case(1.1, 8.0, 9.0))[0].contains("1.1 rows for a model's reply"));
        assert!(faults(&case(1.0, 8.1, 9.0))[0].contains("8.1 rows for an item"));
        assert!(faults(&case(1.0, 8.0, 9.05))[0].contains("9.05 model calls"));
    }

    #[test]
    fn what_the_notes_say_of_the_costs_is_checked() {
        let mut many = case(1.0, 8.0, 9.0);
        many.conversations = MANY;
        let noted = |what| noted(what).unwrap();
        many.per_conversation.table_write_units = noted("write units of the table");
        many.per_conversation.table_read_units = noted("read units of the table");
        assert_eq!(faults(&many), Vec::<String>::new());
        many.per_conversation.table_write_units *= 1.2;
        assert!(faults(&many)[0].contains("write units of the table for an item; infra/README.md says"));
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0], |x| *x), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0], |x| *x), Some(1.0));
        assert_eq!(median(Vec::<f64>::new(), |x| *x), None);
    }

    #[test]
    fn kinds_are_reads_or_writes() {
        let writes: Vec<bool> = [
            "GetItem",
            "BatchGetItem",
            "Query",
            "QueryDue",
            "PutItem",
            "TransactWriteItems",
            "BatchWriteItem",
        ]
        .map(is_write)
        .to_vec();
        assert_eq!(writes, [false, false, false, false, true, true, true]);
    }
}
