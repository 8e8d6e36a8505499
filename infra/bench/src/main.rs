//! Measures the whole system on one workload: conversations of four exchanges and a judge, nine model calls each,
//! held by the local stack, with a model server that answers at once. Prints JSON.
//!
//! `cargo run --release -p ringback-bench` takes every store and size. Each case runs in a process of its own, so
//! that its CPU time and its peak of memory are its own, and the model server in another one, so that neither
//! includes it. A case is timed some times and then counted once, because counting asks the table for more.
//!
//! `--check` only counts, and fails where a conversation costs more model calls or rows than it may. Counts are the
//! same on every machine, so the gate can run it; times are not, so it does not look at them.
//!
//! `--startup FOLDER` measures how long the functions take until they are ready.
//!
//! `--queued` counts what waiting costs: messages that begin no item, and requests to the table.

mod case;
mod floor;
mod measure;
mod model_server;
mod queued;
mod report;
mod startup;
mod workload;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{case::CaseArgs, floor::FloorArgs, model_server::ModelServerArgs, queued::QueuedArgs};

/// Any error; the program ends with its text.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the table is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
enum Store {
    /// In memory.
    Memory,
    /// In a file.
    Disk,
}

impl Store {
    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// Measures Ringback and prints JSON.
#[derive(Debug, Parser)]
#[command(name = "ringback-bench", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Where the table is. Both if not given.
    #[arg(long, value_enum)]
    store: Vec<Store>,
    /// How many conversations. 50, 200 and 1000 if not given; further ones after a comma.
    #[arg(short = 'n', long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    conversations: Vec<u32>,
    /// How often each case is timed; the one with the median of CPU time is shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeat: u32,
    /// How long the model server takes for an answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// The folder for tables on disk. The system's one for temporary files if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Count instead of timing, and fail where a count is above its budget.
    #[arg(long)]
    check: bool,
    /// Count what it costs to wait instead: of a run whose items wait for a slot, and of one whose items wait on the queue.
    /// `-n` says how many items; 10000 if not given. With `--check`, fail where a message was received for nothing.
    #[arg(long)]
    queued: bool,
    /// Measure how long the functions' binaries in this folder take until they are ready, as multiples of what one takes that does
    /// nothing. With `--check`, fail where one takes too long.
    #[arg(long, value_name = "FOLDER")]
    startup: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the program starts itself as.
#[derive(Debug, Subcommand)]
enum Part {
    /// One case in this process.
    #[command(hide = true)]
    Case(CaseArgs),
    /// Items that wait, in this process.
    #[command(hide = true)]
    Queued(QueuedArgs),
    /// Model calls and nothing else.
    #[command(hide = true)]
    Floor(FloorArgs),
    /// An OpenAI-compatible server that answers at once, until its standard input ends.
    #[command(hide = true)]
    ModelServer(ModelServerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr)
        .init();
    let result = match cli.part {
        Some(Part::Case(args)) => run(2, case::run(args)),
        Some(Part::Floor(args)) => run(2, floor::run(args)),
        Some(Part::ModelServer(args)) => run(1, model_server::run(args)),
        Some(Part::Queued(args)) => run(2, queued::run(args)),
        None if cli.startup.is_some() => {
            let folder = cli.startup.unwrap_or_default();
            run(1, async move { startup::run(&folder, cli.check).await })
        }
        None if cli.queued => run(1, report::queued(cli)),
        None => run(1, report::run(cli)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _unheard = writeln!(io::stderr(), "ringback-bench: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Runs `work` on as many threads as the program that is measured has.
fn run(threads: usize, work: impl Future<Output = Result<bool, BoxError>>) -> Result<bool, BoxError> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(work)
}

/// The text of an error with its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Writes `value` to standard output as one JSON document, on one line or many.
fn print(value: &impl serde::Serialize, pretty: bool) -> Result<(), BoxError> {
    let text = if pretty {
        serde_json::to_string_pretty(value)?
    } else {
        serde_json::to_string(value)?
    };
    Ok(writeln!(io::stdout(), "{text}")?)
}
