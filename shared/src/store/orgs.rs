//! Organizations and their API keys.

use uuid::Uuid;

use super::{Condition, Store, StoreError, WriteError, key, string, text};

/// Who a request speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The organization.
    pub org: Uuid,
    /// The name of the API key.
    pub key_name: String,
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
}
