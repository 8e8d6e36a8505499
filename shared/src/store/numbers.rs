//! Numbers: small integers for objects whose own ids are UUIDs, for an API shape that knows no others. An object gets its number when
//! somebody first asks for it, so what was made in another shape, or before there were numbers, has one as well.
//!
//! The numbers of an organization are drawn from one counter, some at a time, and what is drawn and not used is never drawn again. An
//! object's number and what a number stands for are two rows, written in one transaction on the condition that neither is there: so
//! of those who ask at the same time one gives the number, and the others read it. Nothing ever changes or deletes them but the
//! removal of the organization.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::{
    Condition, Kind, Row, Store, StoreError, Write, WriteError, definitions::partition, integer, key, number,
    string, text,
};

/// The row that counts the numbers, and its count.
const NEXT: &str = "next";
const DRAWN: &str = "drawn";
/// How many objects get their numbers in one transaction, which takes at most 100 rows.
const BLOCK: usize = 50;
/// The largest number: clients may keep one in 32 bits.
const LARGEST: u64 = 0x7fff_ffff;

/// The partition of an organization's numbers.
pub(super) fn numbers_pk(org: Uuid) -> String {
    partition(org, "number")
}

/// What has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Numbered {
    /// A definition of this kind.
    Definition(Kind),
    /// A run, of whichever kind.
    Run,
}

impl Numbered {
    fn name(self) -> &'static str {
        match self {
            Self::Definition(kind) => kind.name(),
            Self::Run => "run",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        match name {
            "run" => Some(Self::Run),
            _ => Kind::of_name(name).map(Self::Definition),
        }
    }
}

/// The key of the row that is found by the object.
fn by_id(what: Numbered, id: Uuid) -> String {
    format!("id#{}#{id}", what.name())
}

/// The key of the row that is found by the number.
fn by_number(n: u64) -> String {
    format!("n#{n:020}")
}

/// Both rows say the same.
fn rows(org: Uuid, what: Numbered, id: Uuid, n: u64) -> [Row; 2] {
    [by_id(what, id), by_number(n)].map(|sk| {
        let mut row = key(&numbers_pk(org), &sk);
        row.insert("what".to_owned(), text(what.name()));
        row.insert("id".to_owned(), text(id));
        row.insert("number".to_owned(), number(n));
        row
    })
}

/// What a row says.
fn said(row: &Row) -> Result<(Numbered, Uuid, u64), StoreError> {
    let corrupt = || StoreError::Corrupt("a number's row is not whole".to_owned());
    let what = Numbered::of_name(string(row, "what")?).ok_or_else(corrupt)?;
    let id = string(row, "id")?.parse().map_err(|_| corrupt())?;
    let n = integer(row, "number").and_then(|n| u64::try_from(n).ok());
    Ok((what, id, n.ok_or_else(corrupt)?))
}

impl Store {
    /// The numbers of an organization's objects, in the order of `ids`. Those that have none get one: small, positive, never given
    /// again within the organization, the same for ever. Whether there are such objects is not looked at.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when the organization has used up its numbers, which are below 2³¹; or when the table cannot be read
    /// or written.
    pub async fn numbers(&self, org: Uuid, what: Numbered, ids: &[Uuid]) -> Result<Vec<u64>, StoreError> {
        // In one order for all who ask, so that those who ask for the same meet in the same blocks.
        let wanted: BTreeSet<Uuid> = ids.iter().copied().collect();
        let mut missing: Vec<Uuid> = wanted.into_iter().collect();
        let mut given = self.given(org, what, &missing).await?;
        missing.retain(|id| !given.contains_key(id));
        while let Some(block) = missing.chunks(BLOCK).next() {
            let first = self.draw(org, block.len()).await?;
            let new = block.iter().copied().zip(first..);
            let writes = new
                .clone()
                .flat_map(|(id, n)| rows(org, what, id, n))
                .map(|row| Write::put(row, Condition::Absent));
            match self.transact(writes.collect()).await {
                Ok(()) => given.extend(new),
                // Some of them have got a number since. The others are tried again, with new numbers: should the counter be behind
                // what it was, as in a table that was put together from two copies, that is over once it has caught up.
                Err(WriteError::Condition(_)) => given.extend(self.given(org, what, block).await?),
                Err(error) => return Err(error.into()),
            }
            missing.retain(|id| !given.contains_key(id));
        }
        let number_of = |id| given.get(id).copied();
        let numbers: Option<Vec<u64>> = ids.iter().map(number_of).collect();
        numbers.ok_or_else(|| StoreError::Corrupt("an object has no number".to_owned()))
    }

    /// What these numbers stand for, whatever is left of it. Numbers that were never given are left out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn numbered(
        &self,
        org: Uuid,
        numbers: &[u64],
    ) -> Result<BTreeMap<u64, (Numbered, Uuid)>, StoreError> {
        let wanted: BTreeSet<u64> = numbers.iter().copied().collect();
        let keys = wanted.into_iter().map(|n| (numbers_pk(org), by_number(n)));
        let rows = self.batch_get(keys.collect()).await?;
        let entries = rows
            .iter()
            .map(|row| said(row).map(|(what, id, n)| (n, (what, id))));
        entries.collect()
    }

    /// The numbers that those of these objects have which have one. None may be there twice.
    async fn given(&self, org: Uuid, what: Numbered, ids: &[Uuid]) -> Result<HashMap<Uuid, u64>, StoreError> {
        let keys = ids.iter().map(|&id| (numbers_pk(org), by_id(what, id)));
        let rows = self.batch_get(keys.collect()).await?;
        rows.iter()
            .map(|row| said(row).map(|(_, id, n)| (id, n)))
            .collect()
    }

    /// Draws so many numbers for this caller alone, and gives the first.
    async fn draw(&self, org: Uuid, count: usize) -> Result<u64, StoreError> {
        let too_many = || StoreError::TooLarge(format!("an organization has at most {LARGEST} numbers"));
        let amount = i64::try_from(count).map_err(|_| too_many())?;
        let last = self.add(&numbers_pk(org), NEXT, DRAWN, amount).await?;
        match u64::try_from(last) {
            Ok(n) if n <= LARGEST => Ok(n.saturating_sub(count as u64) + 1),
            _ => Err(too_many()),
        }
    }
}
