//! Organizations and their API keys.

use uuid::Uuid;

use super::{Condition, Store, StoreError, WriteError, integer, key, number, string, text};

/// Who a request speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The organization.
    pub org: Uuid,
    /// The name of the API key.
    pub key_name: String,
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
        let mut row = key(&format!("ORG#{org}"), "ORG");
        row.insert("name".to_owned(), text(name));
        match self.put(row, Some(Condition::Absent)).await {
            Ok(()) | Err(WriteError::Condition(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps an API key of `org`. Only the key's SHA-256 (lower-case hexadecimal) is stored.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn put_api_key(&self, org: Uuid, name: &str, sha256: &str) -> Result<(), StoreError> {
        let mut row = key(&format!("KEY#{sha256}"), "KEY");
        row.insert("org".to_owned(), text(org.to_string()));
        row.insert("name".to_owned(), text(name));
        Ok(self.put(row, None).await?)
    }

    /// Finds whose API key has this SHA-256 (lower-case hexadecimal).
    ///
    /// The key itself is never compared: a digest is looked up, so timing tells nothing of a stored key.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn principal(&self, sha256: &str) -> Result<Option<Principal>, StoreError> {
        let Some(row) = self.get(&format!("KEY#{sha256}"), "KEY").await? else {
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

    /// How often the secrets that are kept under `name` were changed.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn revision(&self, name: &str) -> Result<Revision, StoreError> {
        let Some(row) = self.get(&format!("SECRET#{name}"), "REVISION").await? else {
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
        let mut row = key(&format!("SECRET#{name}"), "REVISION");
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
