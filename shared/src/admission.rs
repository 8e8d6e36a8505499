//! Who gets call slots: the oldest waiting run first, one item of each in turn, as long as there are slots.
//!
//! Whoever creates a run and whoever gives slots back writes first and then looks here, so no wake-up is lost; `sweep` looks
//! as well. Any number of them may look at the same time: a slot is a row that is put only where none is.
//!
//! An organization's limit may be lowered below what it holds. The slots above the limit are not taken away, and they count:
//! `free_slots` leaves out as many below it. Admission is written on the condition that the limit is the one that was read.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{
    clock::Deadline,
    context::Context,
    lifecycle::{CALL_SLOTS, Owed, REQUEUE_AFTER_MS, Slots},
    progress::MARGIN,
    store::{Admitted, PARTITION, StoreError, Waiting},
};

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

/// The call slots that may be given out under `limit` while those of `held` (ascending) are held.
///
/// With a limit that was lowered, slots above it are still held. Then only slots below a bound are given out, so low that they
/// and all held ones from the bound on make up the limit. While the limit stays, the bound can only rise, as what is above it is
/// given back: so whoever gives out slots from an older look keeps to the limit as well.
fn free_slots(limit: u32, held: &[u32]) -> Vec<u32> {
    let from = |bound: u32| held.len() - held.partition_point(|&slot| slot < bound);
    let keeps = |&bound: &u32| bound as usize + from(bound) <= limit as usize;
    let bound = (0..=limit).rev().find(keeps).unwrap_or(0);
    (0..bound)
        .filter(|slot| held.binary_search(slot).is_err())
        .collect()
}

/// Admits what waits in `org` until there are too few slots, nothing waits, or the deadline is near: then it gives `true`.
///
/// # Errors
/// When the table cannot be read or written.
pub async fn admit(ctx: &Context, org: Uuid, deadline: Deadline) -> Result<bool, StoreError> {
    let mut go_on = true;
    while go_on && deadline.left() > MARGIN {
        go_on = false;
        let waiting = ctx.store.waiting_runs(org).await?;
        if waiting.is_empty() {
            return Ok(false);
        }
        // The limit before what is held: from then on the condition watches over it.
        let settings = ctx.store.org(org).await?;
        let held = ctx.store.held_call_slots(org).await?;
        let mut free = Free(free_slots(settings.call_slots(ctx.config.call_slots), &held));
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
            match admit_one(ctx, org, &run, &slots, settings.version, deadline).await? {
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
    Ok(go_on)
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
    settings: u64,
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
                let now = ctx.clock.now_ms();
                one = match ctx.store.admit(&item, slots, settings, now).await? {
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
    admit(ctx, org, deadline).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    #[test]
    fn what_is_held_above_a_lowered_limit_counts() {
        for (limit, held, free) in [
            (4, &[][..], &[0, 1, 2, 3][..]),
            (4, &[0, 3], &[1, 2]),
            (4, &[0, 1, 2, 3], &[]),
            (4, &[8, 9], &[0, 1]),
            (4, &[0, 1, 8, 9], &[]),
            (4, &[2, 3, 8, 9], &[]),
            (6, &[4, 5, 8, 9], &[0, 1]),
            (6, &[0, 1, 8, 9], &[2, 3]),
            (2, &[0, 1, 2, 3, 4, 5], &[]),
        ] {
            assert_eq!(free_slots(limit, held), free, "{limit} {held:?}");
        }
    }

    proptest! {
        // As many as the limit leaves, and whoever looked before others gave back and took slots does not exceed it.
        #[test]
        fn the_limit_holds_for_everybody_who_looks(
            limit in 0..12_u32,
            mut held in prop::collection::btree_set(0..16_u32, 0..16),
            steps in prop::collection::vec((any::<bool>(), any::<Index>(), 0..3_usize), 0..40),
        ) {
            let most = held.len().max(limit as usize);
            let mut looks: Vec<Vec<u32>> = Vec::new();
            for (gives_back, which, look) in steps {
                let now: Vec<u32> = held.iter().copied().collect();
                let free = free_slots(limit, &now);
                prop_assert_eq!(free.len(), (limit as usize).saturating_sub(now.len()));
                looks.push(free);
                if gives_back && !now.is_empty() {
                    held.remove(which.get(&now));
                } else {
                    // From this look, or one of those before. A slot that is held is not given out twice.
                    let old = &looks[looks.len().saturating_sub(1 + look)];
                    if !old.is_empty() {
                        held.insert(*which.get(old));
                    }
                }
                prop_assert!(held.len() <= most.max(limit as usize));
                prop_assert!(held.len() <= now.len().max(limit as usize), "one more than the limit");
            }
        }
    }
}
