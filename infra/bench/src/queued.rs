//! What waiting costs: a run of so many items of which only a few may be under way at a time, and one whose items are all put
//! on the queue at once. Of both is counted how many messages the queue handed over and how many items they began.
//!
//! The conversations are as short as they can be (one model call), because not they are measured.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ringback_local::serve::Local;
use ringback_shared::queue::WorkQueue;
use serde::{Deserialize, Serialize};

use crate::{
    BoxError, Store,
    case::{Api, TableUse, difference, start},
    measure::rounded,
    workload,
};

/// How often the run is looked at. Seldom, because a look costs requests to the table.
const POLL: Duration = Duration::from_secs(1);
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// The most requests to the table for an item from its creation to its verdict: two replies, four changes of its state, one or
/// two requests for each of them to be counted, and what it takes to find it and to give it its slot.
const REQUESTS_PER_ITEM: f64 = 24.0;

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct QueuedArgs {
    /// How many items.
    #[arg(short = 'n')]
    pub(crate) items: u32,
    /// How many may be under way at a time; as many as there are workers if not given.
    #[arg(long)]
    pub(crate) cap: Option<u32>,
    /// The model server.
    #[arg(long)]
    pub(crate) model_server: String,
}

/// What it took.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QueuedOutcome {
    /// How many items.
    pub(crate) items: u32,
    /// How many could be under way at a time, if that was limited.
    pub(crate) cap: Option<u32>,
    /// Messages that the queue of the conversations handed over.
    pub(crate) received: u64,
    /// Items whose conversation began.
    pub(crate) started: u64,
    /// How long it took.
    pub(crate) wall_seconds: f64,
    /// Requests to the table for each item.
    pub(crate) table_requests_per_item: f64,
    /// What was asked of the table for each item, by kind.
    pub(crate) table_per_item: BTreeMap<String, TableUse>,
}

impl QueuedOutcome {
    /// What is above its budget.
    pub(crate) fn faults(&self) -> Vec<String> {
        let at = match self.cap {
            Some(cap) => format!("{} items, {cap} at a time", self.items),
            None => format!("{} items", self.items),
        };
        let mut faults = Vec::new();
        if (self.received, self.started) != (u64::from(self.items), u64::from(self.items)) {
            faults.push(format!(
                "over budget: {at}: {} messages were received for {} items that began; it should be one for each",
                self.received, self.started
            ));
        }
        if self.table_requests_per_item > REQUESTS_PER_ITEM {
            faults.push(format!(
                "over budget: {at}: {} requests to the table for an item; {REQUESTS_PER_ITEM} are allowed",
                self.table_requests_per_item
            ));
        }
        faults
    }
}

/// Runs the case and prints what it took.
pub(crate) async fn run(args: QueuedArgs) -> Result<bool, BoxError> {
    let local = start(Store::Memory, None, &args.model_server).await?;
    let outcome = measure(&args, &local).await;
    local.shutdown().await;
    crate::print(&outcome?, false)?;
    Ok(true)
}

async fn measure(args: &QueuedArgs, local: &Local) -> Result<QueuedOutcome, BoxError> {
    let api = Api::new(local)?;
    let personality = api.create("personality", &workload::brief_personality()).await?;
    let scenario = api.create("scenario", &workload::brief_scenario()).await?;
    let body = workload::brief_run(args.items, args.cap, &scenario, &personality, &args.model_server);
    let meter = local.context().store.meter();
    meter.turn_on();
    let (before, start) = (meter.snapshot(), Instant::now());
    let run = api.create("run", &body).await?;
    let ended = loop {
        tokio::time::sleep(POLL).await;
        let seen = api.get(&format!("run/{run}")).await?;
        if seen["status"] == "ended" {
            break seen;
        }
        if start.elapsed() > LIMIT {
            let counts = &seen["itemCounts"];
            return Err(format!("the run did not end within {} s: {counts}", LIMIT.as_secs()).into());
        }
    };
    let wall_seconds = start.elapsed().as_secs_f64();
    let n = f64::from(args.items);
    let table = difference(&before, &meter.snapshot());
    let table_per_item: BTreeMap<String, TableUse> = table
        .into_iter()
        .map(|(kind, used)| {
            let used = TableUse {
                requests: rounded(used.requests / n),
                rows: rounded(used.rows / n),
                units: rounded(used.units / n),
            };
            (kind, used)
        })
        .collect();
    if ended["itemCounts"]["passed"] != args.items {
        return Err(format!("not every item passed: {}", ended["itemCounts"]).into());
    }
    let received = local.emulator().messages_received();
    Ok(QueuedOutcome {
        items: args.items,
        cap: args.cap,
        received: received
            .get(WorkQueue::RunItems.as_str())
            .copied()
            .unwrap_or_default(),
        started: count_started(local, &run, args.items).await?,
        wall_seconds: rounded(wall_seconds),
        table_requests_per_item: rounded(table_per_item.values().map(|used| used.requests).sum()),
        table_per_item,
    })
}

/// How many items say when their conversation began.
async fn count_started(local: &Local, run: &str, items: u32) -> Result<u64, BoxError> {
    let stored = local.context().store.items_from(run.parse()?, 0, items).await?;
    let started = stored.iter().filter(|item| item.started_at().is_some());
    Ok(started.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(received: u64, started: u64, table_requests_per_item: f64) -> QueuedOutcome {
        QueuedOutcome {
            items: 10,
            cap: Some(2),
            received,
            started,
            wall_seconds: 1.0,
            table_requests_per_item,
            table_per_item: BTreeMap::new(),
        }
    }

    #[test]
    fn one_message_too_many_is_over_budget() {
        assert_eq!(outcome(10, 10, 24.0).faults(), Vec::<String>::new());
        assert!(outcome(11, 10, 1.0).faults()[0].contains("11 messages were received for 10 items"));
        assert!(outcome(10, 9, 1.0).faults()[0].contains("for 9 items"));
        assert!(outcome(10, 10, 24.1).faults()[0].contains("24.1 requests"));
    }
}
