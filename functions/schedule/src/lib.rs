//! The tick of the schedules, once a minute: each one whose time has come starts a run, or it is noted why not.
//!
//! A run that a schedule starts is resolved by the same code that answers a request for a run, which is why this function stands on
//! the API's library. The tick may come late, more than once, or to several at the same time: whatever is decided is decided once.

use std::panic::AssertUnwindSafe;

use futures_util::{FutureExt, StreamExt, stream};
use ringback_api::firing;
use ringback_shared::{
    clock::Deadline,
    context::{BoxError, Context},
    telemetry,
};
use tracing::Instrument;
use uuid::Uuid;

/// How many schedules are taken in one go, about; the next tick finds the others.
const LIMIT: i32 = 1000;
/// How many of them are looked after at once: the snapshots of a run may have 50 MB.
const CONCURRENCY: usize = 4;

/// Looks after every schedule that is due. One that fails is logged and found again by the next tick.
///
/// # Errors
/// When the index cannot be read.
pub async fn handle(ctx: &Context, deadline: Deadline) -> Result<(), BoxError> {
    let due = ctx.store.due_schedules(ctx.clock.now_ms(), LIMIT).await?;
    let found = due.len();
    let failed = stream::iter(due)
        .map(|schedule| {
            let span = telemetry::schedule_span(schedule);
            look_after(ctx, schedule, deadline).instrument(span).boxed()
        })
        .buffer_unordered(CONCURRENCY)
        .fold(0, async |failed: usize, done: bool| failed + usize::from(!done))
        .await;
    if found > 0 {
        tracing::info!(found, failed, "looked after schedules");
    }
    Ok(())
}

/// Looks after one schedule; whether that could be done. One that cannot be helped does not take the others along.
async fn look_after(ctx: &Context, schedule: Uuid, deadline: Deadline) -> bool {
    let looked = AssertUnwindSafe(firing::look_after(ctx, schedule, deadline)).catch_unwind();
    match looked.await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::warn!(%error, "a schedule was not looked after"),
        Err(_) => tracing::error!("looking after a schedule panicked"),
    }
    false
}
