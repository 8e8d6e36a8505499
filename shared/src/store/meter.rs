//! Counts what is asked of the table, for the benchmark and the operating notes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_sdk_dynamodb::types::ConsumedCapacity;
use serde::Serialize;

/// What one kind of request came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Requests sent.
    pub requests: u64,
    /// Rows written.
    pub rows: u64,
    /// Capacity units consumed, as the table reports them.
    pub units: f64,
}

/// Counters by kind of request. Off until [`Meter::turn_on`]; then the table is asked for the capacity that it consumed.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    on: AtomicBool,
    kinds: Mutex<BTreeMap<&'static str, Usage>>,
}

impl Meter {
    /// Begins to count.
    pub fn turn_on(&self) {
        self.0.on.store(true, Ordering::Relaxed);
    }

    /// The counts by kind of request so far.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, Usage> {
        self.0
            .kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self, kind: &'static str, capacity: &[ConsumedCapacity]) {
        self.wrote(kind, 0, capacity);
    }

    pub(super) fn wrote(&self, kind: &'static str, rows: usize, capacity: &[ConsumedCapacity]) {
        if !self.is_on() {
            return;
        }
        let mut kinds = self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = kinds.entry(kind).or_default();
        usage.requests += 1;
        usage.rows += rows as u64;
        usage.units += capacity
            .iter()
            .filter_map(ConsumedCapacity::capacity_units)
            .sum::<f64>();
    }
}
