//! What organizations spend: for each org and month a few rows that items' changes add to.

use uuid::Uuid;

use super::{Range, Store, StoreError, Write, integer};
use crate::{clock, lifecycle::Item};

/// Over how many rows an org's month is spread, so that items that end at once rarely meet on one.
const SHARDS: u32 = 16;
/// The attribute that is added to.
const MICROS: &str = "micros";

pub(super) fn spent_pk(org: Uuid) -> String {
    format!("ORG#{org}#spent")
}

/// What is written in the same transaction as an item's change if that changes what the item cost: the difference, in the month
/// of the change. It stands or falls with the change, so it is counted once however often somebody tries. Of a sum that turns
/// out smaller, as when a report corrects a look-up, the difference is below 0.
pub(super) fn spending(before: &Item, after: &Item) -> Option<Write> {
    let difference = after.costs().cost.saturating_sub(before.costs().cost);
    (difference != 0).then(|| {
        let sk = format!("{}#{:02}", clock::month(after.updated_at), after.index % SHARDS);
        Write::add(&spent_pk(after.org), &sk, MICROS, difference)
    })
}

impl Store {
    /// Adds `micros` millionths of a US dollar to what `org` has spent in the month of `now` (milliseconds since the Unix epoch):
    /// for a model call that belongs to no item.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn spend(&self, org: Uuid, micros: i64, now: i64) -> Result<(), StoreError> {
        if micros == 0 {
            return Ok(());
        }
        let shard = Uuid::now_v7().as_u128() % u128::from(SHARDS);
        let sk = format!("{}#{shard:02}", clock::month(now));
        let add = Write::add(&spent_pk(org), &sk, MICROS, micros);
        Ok(self.transact(vec![add]).await?)
    }

    /// What `org` has spent in the calendar month (UTC) of `now` (milliseconds since the Unix epoch), in millionths of a US
    /// dollar, as far as costs are known.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn spent(&self, org: Uuid, now: i64) -> Result<i64, StoreError> {
        let month = format!("{}#", clock::month(now));
        let rows = self
            .query(&spent_pk(org), Range::Prefix(&month), true, None)
            .await?;
        let spent = rows.iter().filter_map(|row| integer(row, MICROS));
        Ok(spent.fold(0, i64::saturating_add))
    }
}
