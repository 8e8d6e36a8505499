//! Who gets call slots: the oldest waiting run first, one item of each in turn, as long as there are slots.
//!
//! Whoever creates a run and whoever gives slots back writes first and then looks here, so no wake-up is lost; `sweep` looks
//! as well. Any number of them may look at the same time: a slot is a row that is put only where none is.
//!
//! An organization's limit may be lowered below what it holds. The slots above the limit are not taken away, and they count:
//! `free_slots` leaves out as many below it. Admission is written on the condition that the limit is the one that was read.

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use crate::{
    clock::Deadline,
    context::Context,
    lifecycle::{CALL_SLOTS, Item, Owed, REQUEUE_AFTER_MS, Slots},
    progress::MARGIN,
    store::{Admitted, PARTITION, StoreError, Waiting},
};

/// How many items are read where those that were expected to wait do not.
const LOOK_FURTHER: u32 = PARTITION;
/// How far a run's place may fall behind before it is written: behind only means that some items are read once more.
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
    while deadline.left() > MARGIN {
        match look(ctx, org, deadline).await? {
            Look::Done => return Ok(false),
            Look::OutOfTime => return Ok(true),
            Look::Overtaken => {}
        }
    }
    Ok(true)
}

/// How a look ended.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// There is nothing left to do for it. What became free or began to wait after it had read is looked at by whoever made
    /// it so: they write first and look afterwards. So nothing is read again at its end.
    Done,
    /// The deadline is near.
    OutOfTime,
    /// Somebody else is at work on the same: everything has to be looked at anew.
    Overtaken,
}

/// Reads what waits and what is free once, and admits from that.
async fn look(ctx: &Context, org: Uuid, deadline: Deadline) -> Result<Look, StoreError> {
    let waiting = ctx.store.waiting_runs(org).await?;
    if waiting.is_empty() {
        return Ok(Look::Done);
    }
    // The limit before what is held: from then on the condition watches over it.
    let settings = ctx.store.org(org).await?;
    let free = if waiting.iter().any(|run| run.voice) {
        let held = ctx.store.held_call_slots(org).await?;
        free_slots(settings.call_slots(ctx.config.call_slots), &held)
    } else {
        Vec::new()
    };
    let mut free = Free(free);
    let mut lines: Vec<Line> = waiting
        .into_iter()
        .map(|run| Line::new(run, settings.version))
        .collect();
    let look = take_turns(ctx, &mut lines, &mut free, deadline).await?;
    for line in &lines {
        line.keep_place(ctx, org).await?;
    }
    Ok(look)
}

/// One item of each run in turn, for as long as any of them can be given slots.
async fn take_turns(
    ctx: &Context,
    lines: &mut [Line],
    free: &mut Free,
    deadline: Deadline,
) -> Result<Look, StoreError> {
    let mut go_on = true;
    while go_on {
        go_on = false;
        for line in &mut *lines {
            if deadline.left() <= MARGIN {
                return Ok(Look::OutOfTime);
            }
            match line.admit_one(ctx, free, deadline).await? {
                Some(Admitted::Yes) => go_on = true,
                Some(Admitted::Past | Admitted::Lost) => return Ok(Look::Overtaken),
                None => {}
            }
        }
    }
    Ok(Look::Done)
}

/// A run that waits, as far as this look knows.
struct Line {
    run: Waiting,
    /// The version of the organization's settings that the slots were counted by.
    settings: u64,
    /// No item before this one waits.
    next: u32,
    /// Items from there on, as they were read.
    ahead: VecDeque<Item>,
    /// The run's own slots that nobody holds, once they were read.
    own: Option<Vec<u32>>,
}

impl Line {
    fn new(run: Waiting, settings: u64) -> Self {
        Self {
            next: run.next,
            run,
            settings,
            ahead: VecDeque::new(),
            own: None,
        }
    }

    /// Admits the run's first item that waits, if there is one and there are slots for it.
    async fn admit_one(
        &mut self,
        ctx: &Context,
        free: &mut Free,
        deadline: Deadline,
    ) -> Result<Option<Admitted>, StoreError> {
        let mut slots = Slots::default();
        let mut room = usize::MAX;
        if self.run.voice {
            let Some(pair) = free.pair() else { return Ok(None) };
            room = free.0.len() / CALL_SLOTS;
            slots.calls = pair;
        }
        if let Some(cap) = self.run.cap {
            let own = self.own_slots(ctx, cap).await?;
            let Some(&slot) = own.first() else { return Ok(None) };
            room = room.min(own.len());
            slots.run = Some(slot);
        }
        let Some(item) = self.first_waiting(ctx, room, deadline).await? else {
            return Ok(None);
        };
        let admitted = ctx
            .store
            .admit(&item, &slots, self.settings, ctx.clock.now_ms())
            .await?;
        if admitted == Admitted::Yes {
            self.next = item.index + 1;
            free.take(&slots);
            if let Some(own) = &mut self.own {
                own.retain(|&slot| slots.run != Some(slot));
            }
        }
        Ok(Some(admitted))
    }

    async fn own_slots(&mut self, ctx: &Context, cap: u32) -> Result<&[u32], StoreError> {
        if self.own.is_none() {
            let held: BTreeSet<u32> = ctx
                .store
                .held_run_slots(self.run.run)
                .await?
                .into_iter()
                .collect();
            let free = (0..cap).filter(|slot| !held.contains(slot));
            // A cap may be any number, but no more slots are needed than there are items.
            let most = self.run.total.saturating_sub(self.next);
            self.own = Some(free.take(most as usize).collect());
        }
        Ok(self.own.as_deref().unwrap_or_default())
    }

    /// The run's first item that waits. Of those ahead so many are read as there is `room` for, and not all that wait.
    async fn first_waiting(
        &mut self,
        ctx: &Context,
        room: usize,
        deadline: Deadline,
    ) -> Result<Option<Item>, StoreError> {
        let mut count = u32::try_from(room)
            .unwrap_or(LOOK_FURTHER)
            .saturating_add(PLACE_LAG)
            .min(LOOK_FURTHER);
        while self.next < self.run.total {
            if self.ahead.is_empty() {
                if deadline.left() <= MARGIN {
                    break;
                }
                self.ahead = ctx.store.items_from(self.run.run, self.next, count).await?.into();
                count = LOOK_FURTHER;
            }
            match self.ahead.pop_front() {
                Some(item) if item.index == self.next && item.owed == Owed::Admit => return Ok(Some(item)),
                Some(item) if item.index == self.next => self.next += 1,
                // Not expanded yet, or being stored at this moment; who expands it looks again.
                Some(_) | None => {
                    self.ahead.clear();
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Writes how far the run is, if that is worth a write.
    async fn keep_place(&self, ctx: &Context, org: Uuid) -> Result<(), StoreError> {
        if self.next >= self.run.total {
            ctx.store.end_waiting(org, self.run.run).await
        } else if self.next - self.run.next >= PLACE_LAG {
            let next = self.next;
            put_off(
                ctx,
                org,
                &Waiting {
                    next,
                    ..self.run.clone()
                },
            )
            .await
        } else {
            Ok(())
        }
    }
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
    let now = ctx.clock.now_ms();
    let waiting = ctx.store.waiting_runs(org).await?;
    for run in waiting.iter().filter(|run| run.due_at <= now) {
        if deadline.left() <= MARGIN {
            break;
        }
        put_off(ctx, org, run).await?;
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
