//! Idempotency keys. A request that creates a run writes its key's row together with the run. A request whose answer is
//! made while the client waits claims the row first, and keeps its answer there.

use uuid::Uuid;

use super::{Condition, Row, Store, StoreError, WriteError, document, integer, key, number, string, text};

/// How long an idempotency key is remembered, in milliseconds.
pub(super) const REMEMBERED_MS: i64 = 24 * 3_600_000;

/// The partition of an organization's keys. There is one for all endpoints: a key that was used for one of them is used.
pub(super) fn keys_pk(org: Uuid) -> String {
    format!("ORG#{org}#idempotency")
}

/// The row of a key, as far as all of them are alike.
pub(super) fn key_row(org: Uuid, key_hash: &str, request: &str, expires_ms: i64) -> Row {
    let mut row = key(&keys_pk(org), key_hash);
    row.insert("request".to_owned(), text(request));
    row.insert("expiresAt".to_owned(), number(expires_ms / 1000));
    row
}

/// A key that this request holds until it keeps an answer, gives the key back, or its time is over.
#[derive(Debug, Clone)]
pub struct Claim {
    org: Uuid,
    key_hash: String,
    request: String,
    owner: String,
}

/// What became of an attempt to claim a key.
#[derive(Debug)]
pub enum Claimed {
    /// Nobody used the key: the work is to be done.
    New(Claim),
    /// The same request had this answer.
    Answered {
        /// The HTTP status.
        status: i64,
        /// The body, as it was sent.
        body: String,
    },
    /// The same request is being worked on.
    AtWork,
    /// The key belongs to another request.
    OtherRequest,
}

impl Store {
    /// Claims a key (its SHA-256) for a request (its SHA-256) at `now` for `lease_ms` (milliseconds): a worker that dies
    /// holds it no longer than that.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn claim_key(
        &self,
        org: Uuid,
        key_hash: &str,
        request: &str,
        lease_ms: i64,
        now: i64,
    ) -> Result<Claimed, StoreError> {
        let claim = Claim {
            org,
            key_hash: key_hash.to_owned(),
            request: request.to_owned(),
            owner: Uuid::now_v7().to_string(),
        };
        let row = claim.row(now + lease_ms);
        // The lease is the row's expiry, so one condition frees the keys of the dead and the keys that are a day old.
        match self.put(row, Some(Condition::AbsentOrExpired(now / 1000))).await {
            Ok(()) => Ok(Claimed::New(claim)),
            Err(WriteError::Condition(Some(row))) => self.claimed_before(&claim, &row).await,
            Err(error) => Err(error.into()),
        }
    }

    async fn claimed_before(&self, claim: &Claim, row: &Row) -> Result<Claimed, StoreError> {
        if string(row, "request")? != claim.request {
            return Ok(Claimed::OtherRequest);
        }
        let Some(status) = integer(row, "status") else {
            return Ok(Claimed::AtWork);
        };
        if !row.contains_key("parts") {
            let body = string(row, "body")?.to_owned();
            return Ok(Claimed::Answered { status, body });
        }
        let whole = self.get_document(&keys_pk(claim.org), &claim.key_hash).await?;
        Ok(whole.map_or(Claimed::AtWork, |(_, body)| Claimed::Answered { status, body }))
    }

    /// Keeps the answer of a request under its key for a day from `now` (milliseconds since the Unix epoch) on. `false` when
    /// the claim ran out and somebody else has the key.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn keep_answer(
        &self,
        claim: &Claim,
        status: i64,
        body: &str,
        now: i64,
    ) -> Result<bool, StoreError> {
        let (head, mut parts) = document(&keys_pk(claim.org), &claim.key_hash, body);
        let mut row = claim.row(now + REMEMBERED_MS);
        row.extend(head);
        row.insert("status".to_owned(), number(status));
        for part in &mut parts {
            part.insert("expiresAt".to_owned(), number((now + REMEMBERED_MS) / 1000));
        }
        self.batch_put(parts).await?;
        self.put_claimed(claim, row).await
    }

    /// Gives a key back at `now` (milliseconds since the Unix epoch): the next request with it does the work.
    ///
    /// # Errors
    /// When the table cannot be written; then the key is free when the claim runs out.
    pub async fn release_key(&self, claim: &Claim, now: i64) -> Result<(), StoreError> {
        // Expired at once, and recently enough to be deleted by its expiry.
        self.put_claimed(claim, claim.row(now - 1000)).await?;
        Ok(())
    }

    async fn put_claimed(&self, claim: &Claim, row: Row) -> Result<bool, StoreError> {
        let condition = Condition::ClaimedBy(claim.owner.clone());
        match self.put(row, Some(condition)).await {
            Ok(()) => Ok(true),
            Err(WriteError::Condition(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Claim {
    fn row(&self, expires_ms: i64) -> Row {
        let mut row = key_row(self.org, &self.key_hash, &self.request, expires_ms);
        row.insert("claimedBy".to_owned(), text(&self.owner));
        row
    }
}
