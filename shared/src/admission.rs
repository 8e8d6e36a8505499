//! Who gets call slots: the oldest waiting run first, one item of each in turn, as long as there are slots.
//!
//! Whoever creates a run and whoever gives slots back writes first and then looks here, so no wake-up is lost; `sweep` looks
//! as well. Any number of them may look at the same time: a slot is a row that is put only where none is.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{
    clock::Deadline,
    context::Context,
    lifecycle::{CALL_SLOTS, Owed, REQUEUE_AFTER_MS, Slots},
    store::{Admitted, PARTITION, StoreError, Waiting},
};

/// Time that is kept back, so that an invocation ends before its deadline.
const MARGIN: std::time::Duration = std::time::Duration::from_secs(2);
/// How many items of a run are looked at first to find one that waits, and then in each further look.
const LOOK_AHEAD: u32 = 10;
const LOOK_FURTHER: u32 = PARTITION;
/// How far a run's place may fall behind before it is written: behind only means another look.
const PLACE_LAG: u32 = 5;

/// The organization's call slots that nobody holds, as far as this look knows.
struct Free(Vec<u32>);

impl Free {
    fn pair(&self) -> Option<Vec<u32>> {
        self.0.get(..CALL_SLOTS).map(<[u32]>::to_vec)
    }

    fn take(&mut self, taken: &Slots) {
        self.0.retain(|slot| !taken.calls.contains(slot));
    }
}

/// Admits what waits in `org` until there are too few slots, nothing waits, or the deadline is near.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn admit(ctx: &Context, org: Uuid, deadline: Deadline) -> Result<(), StoreError> {
    let mut go_on = true;
    while go_on && deadline.left() > MARGIN {
        go_on = false;
        let waiting = ctx.store.waiting_runs(org).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let held: BTreeSet<u32> = ctx.store.held_call_slots(org).await?.into_iter().collect();
        let free = (0..ctx.config.call_slots).filter(|slot| !held.contains(slot));
        let mut free = Free(free.collect());
        for run in waiting {
            let calls = if run.voice {
                let Some(pair) = free.pair() else { continue };
                pair
            } else {
                Vec::new()
            };
            let slot = match run.cap {
                None => None,
                Some(cap) => match free_run_slot(ctx, &run, cap).await? {
                    Some(slot) => Some(slot),
                    None => continue,
                },
            };
            let slots = Slots { calls, run: slot };
            match admit_one(ctx, org, &run, &slots, deadline).await? {
                One::Admitted => {
                    free.take(&slots);
                    go_on = true;
                }
                // The slots are free still, but somebody else is at work: look at everything anew.
                One::Lost => {
                    go_on = true;
                    break;
                }
                One::NoneWaits => {}
            }
        }
    }
    Ok(())
}

async fn free_run_slot(ctx: &Context, run: &Waiting, cap: u32) -> Result<Option<u32>, StoreError> {
    let held: BTreeSet<u32> = ctx.store.held_run_slots(run.run).await?.into_iter().collect();
    Ok((0..cap).find(|slot| !held.contains(slot)))
}

/// What came of looking for an item to admit.
enum One {
    Admitted,
    Lost,
    NoneWaits,
}

/// Admits the first item of a run that waits.
async fn admit_one(
    ctx: &Context,
    org: Uuid,
    run: &Waiting,
    slots: &Slots,
    deadline: Deadline,
) -> Result<One, StoreError> {
    let mut next = run.next;
    let mut one = One::NoneWaits;
    let mut count = LOOK_AHEAD;
    'look: while next < run.total && deadline.left() > MARGIN {
        let items = ctx.store.items_from(run.run, next, count).await?;
        count = LOOK_FURTHER;
        if items.is_empty() {
            // Not expanded yet; who expands it looks again.
            break;
        }
        for item in items {
            if item.index != next {
                // What is between is being stored at this moment.
                break 'look;
            }
            if item.owed == Owed::Admit {
                one = match ctx.store.admit(&item, slots, ctx.clock.now_ms()).await? {
                    Admitted::Yes => {
                        next = item.index + 1;
                        One::Admitted
                    }
                    Admitted::Past | Admitted::Lost => One::Lost,
                };
                break 'look;
            }
            next = item.index + 1;
        }
    }
    if next >= run.total {
        ctx.store.end_waiting(org, run.run).await?;
    } else if next - run.next >= PLACE_LAG {
        put_off(ctx, org, &Waiting { next, ..run.clone() }).await?;
    }
    Ok(one)
}

/// Writes a run's place, with the next look ahead.
async fn put_off(ctx: &Context, org: Uuid, run: &Waiting) -> Result<(), StoreError> {
    let due_at = ctx.clock.now_ms() + REQUEUE_AFTER_MS;
    ctx.store
        .put_waiting(
            org,
            &Waiting {
                due_at,
                ..run.clone()
            },
        )
        .await
}

/// Looks at what waits in `org` because `sweep` found that it is due.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn sweep(ctx: &Context, org: Uuid, deadline: Deadline) -> Result<(), StoreError> {
    // The next look is moved forward first, so that an organization that cannot be helped does not hold up the others.
    for run in ctx.store.waiting_runs(org).await? {
        put_off(ctx, org, &run).await?;
    }
    admit(ctx, org, deadline).await
}
