//! One case: a run of so many conversations on a fresh local stack, through its HTTP API.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use ringback_local::serve::{Local, Model, Options};
use ringback_shared::{ids, store::Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    BoxError, Store,
    measure::{cpu_time, peak_rss_mib},
    workload,
};

/// The least pause between two looks at the run. A look costs the system some reads, so they are counted and shown.
const POLL: Duration = Duration::from_millis(50);
/// How much longer the pause is than the look before it took: on a busy machine, or under a profiler, the looks are
/// not to become the work.
const POLL_SHARE: u32 = 20;
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct CaseArgs {
    /// Where the table is.
    #[arg(long, value_enum)]
    pub(crate) store: Store,
    /// How many conversations.
    #[arg(short = 'n')]
    pub(crate) conversations: u32,
    /// The model server.
    #[arg(long)]
    pub(crate) model_server: String,
    /// The folder for a table on disk.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Count what is asked of the table.
    #[arg(long)]
    pub(crate) count: bool,
}

/// What it took.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaseOutcome {
    /// CPU time until requests were answered.
    pub(crate) start_cpu_seconds: f64,
    /// CPU time from the request for the run to the answer that it has ended.
    pub(crate) cpu_seconds: f64,
    /// Time for the same.
    pub(crate) wall_seconds: f64,
    /// The most memory held.
    pub(crate) peak_rss_mib: Option<f64>,
    /// How often the run was looked at.
    pub(crate) polls: u32,
    /// Requests to the queues, by kind.
    pub(crate) queue: BTreeMap<String, u64>,
    /// What was asked of the table, if it was counted.
    pub(crate) table: BTreeMap<String, TableUse>,
    /// Rows that hold a turn, if they were counted.
    pub(crate) turn_rows: u64,
}

/// What one kind of request to the table came to.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TableUse {
    pub(crate) requests: f64,
    pub(crate) rows: f64,
    pub(crate) units: f64,
}

/// Runs the case and prints what it took.
pub(crate) async fn run(args: CaseArgs) -> Result<bool, BoxError> {
    let folder = match (args.store, &args.dir) {
        (Store::Memory, _) => None,
        (Store::Disk, Some(dir)) => Some(tempfile::tempdir_in(dir)?),
        (Store::Disk, None) => Some(tempfile::tempdir()?),
    };
    let folder_path = folder.as_ref().map(|folder| folder.path().to_owned());
    let local = start(args.store, folder_path, &args.model_server).await?;
    let outcome = measure(&args, &local).await;
    local.shutdown().await;
    crate::print(&outcome?, false)?;
    Ok(true)
}

/// The local stack with a new table.
pub(crate) async fn start(
    store: Store,
    data_dir: Option<PathBuf>,
    model_server: &str,
) -> Result<Local, BoxError> {
    let local = Local::start(Options {
        data_dir,
        memory: store == Store::Memory,
        workers: workload::WORKERS,
        allow_private_targets: true,
        model: Model {
            base_url: Some(model_server.to_owned()),
            ..Model::default()
        },
        ..Options::default()
    })
    .await?;
    Ok(local)
}

async fn measure(args: &CaseArgs, local: &Local) -> Result<CaseOutcome, BoxError> {
    let api = Api::new(local)?;
    let personality = api.create("personality", &workload::personality()).await?;
    let scenario = api.create("scenario", &workload::scenario()).await?;
    let run = workload::run(args.conversations, &scenario, &personality, &args.model_server);
    let context = local.context();
    let meter = context.store.meter();
    if args.count {
        meter.turn_on();
    }
    let start_cpu_seconds = cpu_time().as_secs_f64();
    let (before, queue_before) = (meter.snapshot(), local.emulator().queue_requests());
    let (cpu, start) = (cpu_time(), Instant::now());

    let run = api.create("run", &run).await?;
    let mut polls = 0;
    let mut pause = POLL;
    let ended = loop {
        tokio::time::sleep(pause).await;
        polls += 1;
        let look = Instant::now();
        let seen = api.get(&format!("run/{run}")).await?;
        pause = POLL.max(look.elapsed() * POLL_SHARE).min(POLL * POLL_SHARE);
        if seen["status"] == "ended" {
            break seen;
        }
        if start.elapsed() > LIMIT {
            return Err(format!(
                "the run did not end within {} s: {}",
                LIMIT.as_secs(),
                seen["itemCounts"]
            )
            .into());
        }
    };

    let cpu_seconds = (cpu_time() - cpu).as_secs_f64();
    let wall_seconds = start.elapsed().as_secs_f64();
    let peak_rss_mib = peak_rss_mib();
    let mut queue = local.emulator().queue_requests();
    for (kind, requests) in &mut queue {
        *requests -= queue_before.get(kind).copied().unwrap_or_default();
    }
    queue.retain(|_, requests| *requests > 0);
    let table = difference(&before, &meter.snapshot());
    if ended["itemCounts"]["passed"] != args.conversations {
        let failed = api.get(&format!("run/{run}/item?status=failed&limit=1")).await?;
        let why = &failed["results"][0];
        let why = why
            .get("failureReason")
            .or_else(|| why.get("results"))
            .unwrap_or(why);
        return Err(format!(
            "not every conversation passed: {}; one because {why}",
            ended["itemCounts"]
        )
        .into());
    }
    let turn_rows = if args.count {
        count_turns(local, &run, args.conversations).await?
    } else {
        0
    };
    Ok(CaseOutcome {
        start_cpu_seconds,
        cpu_seconds,
        wall_seconds,
        peak_rss_mib,
        polls,
        queue,
        table,
        turn_rows,
    })
}

/// How many turns are stored, in rows.
async fn count_turns(local: &Local, run: &str, conversations: u32) -> Result<u64, BoxError> {
    let run = run.parse()?;
    let mut turns = 0;
    for index in 0..conversations {
        turns += local
            .context()
            .store
            .item_detail(ids::item_id(run, index))
            .await?
            .turns
            .len() as u64;
    }
    Ok(turns)
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
pub(crate) fn difference(
    before: &BTreeMap<&'static str, Usage>,
    after: &BTreeMap<&'static str, Usage>,
) -> BTreeMap<String, TableUse> {
    after
        .iter()
        .map(|(&kind, after)| {
            let before = before.get(kind).copied().unwrap_or_default();
            let used = TableUse {
                requests: (after.requests - before.requests) as f64,
                rows: (after.rows - before.rows) as f64,
                units: after.units - before.units,
            };
            (kind.to_owned(), used)
        })
        .filter(|(_, used)| used.requests > 0.0)
        .collect()
}

/// The HTTP API, as a client sees it.
pub(crate) struct Api<'a> {
    client: reqwest::Client,
    local: &'a Local,
}

impl<'a> Api<'a> {
    pub(crate) fn new(local: &'a Local) -> Result<Self, reqwest::Error> {
        Ok(Self {
            client: ringback_shared::net::client().build()?,
            local,
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/eval/simulation/{path}", self.local.base_url())
    }

    pub(crate) async fn create(&self, path: &str, body: &Value) -> Result<String, BoxError> {
        let created = self.send(self.client.post(self.url(path)).json(body)).await?;
        Ok(created["id"]
            .as_str()
            .ok_or("the API created something without an id")?
            .to_owned())
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, BoxError> {
        self.send(self.client.get(self.url(path))).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, BoxError> {
        let answer = request.bearer_auth(self.local.api_key()).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            return Err(format!("the API answered {status}: {text}").into());
        }
        Ok(serde_json::from_str(&text)?)
    }
}
