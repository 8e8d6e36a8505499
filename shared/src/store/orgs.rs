//! Organizations and their API keys.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Condition, Row, Store, StoreError, Write, WriteError, integer, items::DECISION_TRIES, key, number, read,
    string, text, write,
};

/// Who a request speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The organization.
    pub org: Uuid,
    /// The name of the API key.
    pub key_name: String,
}

/// A limit of an organization that stands for the system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnLimit {
    /// The limit.
    pub limit: u32,
    /// Since when there is one, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// When it was last changed, in milliseconds since the Unix epoch.
    pub updated_at: i64,
}

/// An organization's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Org {
    /// What it is called.
    pub name: String,
    /// How many call slots it has, if not as many as the system gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<OwnLimit>,
    /// How much it may spend in a calendar month (UTC), in millionths of a US dollar, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_limit: Option<i64>,
    /// When they were last changed, in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<i64>,
    /// Grows by one with every change; 0 when there was none.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(version: &u64) -> bool {
    *version == 0
}

impl Org {
    /// How many call slots it has where the system gives `default`.
    #[must_use]
    pub fn call_slots(&self, default: u32) -> u32 {
        self.concurrency.map_or(default, |own| own.limit)
    }

    /// Sets its own number of call slots at `now` (milliseconds since the Unix epoch), or takes it away.
    pub fn limit_concurrency(&mut self, limit: Option<u32>, now: i64) {
        let before = self.concurrency;
        self.concurrency = limit.map(|limit| OwnLimit {
            limit,
            created_at: before.map_or(now, |own| own.created_at),
            updated_at: match before {
                Some(own) if own.limit == limit => own.updated_at,
                _ => now,
            },
        });
    }
}

pub(super) fn org_pk(org: Uuid) -> String {
    format!("ORG#{org}")
}

/// The sort key of an organization's own row.
pub(super) const ORG: &str = "ORG";
/// What the partitions of API keys begin with.
pub(super) const API_KEY: &str = "KEY#";

fn api_key_pk(sha256: &str) -> String {
    format!("{API_KEY}{sha256}")
}

/// The row of an API key.
pub(super) fn api_key_row(org: Uuid, name: &str, sha256: &str) -> Row {
    let mut row = key(&api_key_pk(sha256), "KEY");
    row.insert("org".to_owned(), text(org.to_string()));
    row.insert("name".to_owned(), text(name));
    row
}

/// The partition of the number of changes of secrets.
pub(super) fn revision_pk(name: &str) -> String {
    format!("SECRET#{name}")
}

/// The condition that the settings have this version.
fn at(version: u64) -> Condition {
    match version {
        0 => Condition::Unversioned,
        version => Condition::Version(version),
    }
}

/// Lets a transaction pass only while an organization's settings have this version.
pub(super) fn unchanged(org: Uuid, version: u64) -> Write {
    Write::check(&org_pk(org), ORG, at(version))
}

/// How often the secrets of one name were changed, and when the last change was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Revision {
    /// The number of the last change, 0 when there was none.
    pub number: u64,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub at: i64,
}

impl Store {
    /// Makes an organization unless it is there.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn ensure_org(&self, org: Uuid, name: &str) -> Result<(), StoreError> {
        let mut row = key(&org_pk(org), ORG);
        row.insert("name".to_owned(), text(name));
        match self.put(row, Some(Condition::Absent)).await {
            Ok(()) | Err(WriteError::Condition(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads an organization's settings; one that nobody has made yet has none.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn org(&self, org: Uuid) -> Result<Org, StoreError> {
        let row = self.get(&org_pk(org), ORG).await?;
        Ok(row.map(read).transpose()?.unwrap_or_default())
    }

    /// Changes an organization's settings at `now` (milliseconds since the Unix epoch). When somebody wrote in between, `change`
    /// is asked again with what they wrote. What changes nothing is not written. Whoever gives out slots hears of it.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn change_org(
        &self,
        org: Uuid,
        now: i64,
        change: impl Fn(&mut Org),
    ) -> Result<Org, StoreError> {
        for _ in 0..DECISION_TRIES {
            let before = self.org(org).await?;
            let mut next = before.clone();
            change(&mut next);
            if next == before {
                return Ok(before);
            }
            next.version = before.version + 1;
            next.updated_at = Some(now);
            let row = write(&org_pk(org), ORG, &next)?;
            match self.put(row, Some(at(before.version))).await {
                Ok(()) => return Ok(next),
                Err(WriteError::Condition(_)) => {}
                Err(WriteError::Other(error)) => return Err(error),
            }
        }
        Err(StoreError::Throttled(
            "an organization is changed by too many at once".to_owned(),
        ))
    }

    /// Keeps an API key of `org`. Only the key's SHA-256 (lower-case hexadecimal) is stored.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_api_key(&self, org: Uuid, name: &str, sha256: &str) -> Result<(), StoreError> {
        Ok(self.put(api_key_row(org, name, sha256), None).await?)
    }

    /// Finds whose API key has this SHA-256 (lower-case hexadecimal).
    ///
    /// The key itself is never compared: a digest is looked up, so timing tells nothing of a stored key.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn principal(&self, sha256: &str) -> Result<Option<Principal>, StoreError> {
        let Some(row) = self.get(&api_key_pk(sha256), "KEY").await? else {
            return Ok(None);
        };
        let org = string(&row, "org")?
            .parse()
            .map_err(|_| StoreError::Corrupt("an API key without an org".into()))?;
        Ok(Some(Principal {
            org,
            key_name: string(&row, "name")?.to_owned(),
        }))
    }

    /// Takes an API key away by its SHA-256 (lower-case hexadecimal). It is refused from then on: nobody keeps what a key stands for.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn delete_api_key(&self, sha256: &str) -> Result<(), StoreError> {
        self.delete(&api_key_pk(sha256), "KEY").await
    }

    /// How often the secrets that are kept under `name` were changed.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn revision(&self, name: &str) -> Result<Revision, StoreError> {
        let Some(row) = self.get(&revision_pk(name), "REVISION").await? else {
            return Ok(Revision::default());
        };
        let version = integer(&row, "version").and_then(|version| u64::try_from(version).ok());
        match (version, integer(&row, "at")) {
            (Some(number), Some(at)) => Ok(Revision { number, at }),
            _ => Err(StoreError::Corrupt(
                "a revision without a number or a time".into(),
            )),
        }
    }

    /// Takes the number after `read` for a change that is begun at `now` (milliseconds since the Unix epoch). Of those who
    /// have read the same, one gets it. The row stays when the secrets go, so that no number is given out twice.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when somebody else took it; or when the table cannot be written.
    pub async fn claim_revision(&self, name: &str, read: Revision, now: i64) -> Result<u64, StoreError> {
        let next = read.number + 1;
        let mut row = key(&revision_pk(name), "REVISION");
        row.insert("version".to_owned(), number(next));
        row.insert("at".to_owned(), number(now));
        let condition = if read.number == 0 {
            Condition::Absent
        } else {
            Condition::Version(read.number)
        };
        self.put(row, Some(condition)).await?;
        Ok(next)
    }
}
