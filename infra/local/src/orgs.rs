//! `ringback org`: administers the organizations in a stack's table, with the operator's own credentials for AWS.

use std::{fmt, sync::Arc};

use aws_config::BehaviorVersion;
use ringback_shared::{
    aws::http_client,
    ids,
    secrets::{EndpointSecrets, OrgHooks, SecretSet, Secrets, SecretsError, SecretsManager},
    store::{Holdings, Store, StoreError},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::serve::random_key;

/// What the first API key of an organization is called.
const FIRST_KEY: &str = "first";

/// What to do.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// Make an organization of this name, and its first API key.
    Create(String),
    /// Make a further API key.
    AddKey {
        /// The organization.
        org: Uuid,
        /// What to call the key.
        name: String,
    },
    /// Revoke the API key with this SHA-256 (hexadecimal).
    DeleteKey(String),
    /// Show the organizations.
    List,
    /// Delete everything that is kept of an organization.
    Delete {
        /// The organization.
        org: Uuid,
        /// Do it. Otherwise it is only said what there is.
        yes: bool,
        /// Also while runs are going on.
        force: bool,
    },
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the digest of a key.
        let name = match self {
            Self::Create(_) => "Create",
            Self::AddKey { .. } => "AddKey",
            Self::DeleteKey(_) => "DeleteKey",
            Self::List => "List",
            Self::Delete { .. } => "Delete",
        };
        f.debug_struct(name).finish_non_exhaustive()
    }
}

/// Why it was not done. The texts hold no key.
#[derive(Debug, thiserror::Error)]
pub enum OrgError {
    /// The HTTP client for AWS could not be made.
    #[error("the HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// A name is missing.
    #[error("the name must not be blank")]
    Blank,
    /// There is no such organization.
    #[error("there is no organization {0} in the table; `ringback org list` shows those that there are")]
    Unknown(Uuid),
    /// What was given is no digest of a key.
    #[error("--sha256 must be the 64 hexadecimal digits of an API key's SHA-256")]
    NoDigest,
    /// Runs of the organization are going on.
    #[error(
        "{0} runs of the organization are going on, or their calls are still up: cancel them and wait until they have ended, or \
         say --force"
    )]
    GoingOn(u64),
    /// Runs of the organization have just ended.
    #[error(
        "{0} runs of the organization were written a moment ago, and somebody may still be at work on them: wait for four \
         minutes, or say --force"
    )]
    Settling(u64),
    /// The table.
    #[error(
        "{0}; --table must be the stack's output TableName, and AWS_REGION and the credentials those of its account"
    )]
    Table(#[from] StoreError),
    /// The secrets.
    #[error("{0}; nothing that names them was deleted: do it again")]
    Secrets(#[from] SecretsError),
}

/// A stack's table, and where its secrets are.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The table.
    pub store: Store,
    /// The secrets, if they are to be deleted with an organization.
    pub secrets: Option<Secrets>,
}

impl Stack {
    /// The stack with the table `table`, by the credentials, the region and the endpoint that the environment or the profile names.
    /// The names of its secrets begin with `secrets_prefix`; without it they are left alone.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub async fn connect(table: &str, secrets_prefix: Option<&str>) -> Result<Self, OrgError> {
        let aws = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client()?)
            .load()
            .await;
        let manager = |prefix| SecretsManager::new((&aws).into(), prefix);
        Ok(Self {
            store: Store::new((&aws).into(), table),
            secrets: secrets_prefix.map(|prefix| Secrets::new(Arc::new(manager(prefix)))),
        })
    }
}

fn not_blank(name: &str) -> Result<&str, OrgError> {
    Some(name.trim())
        .filter(|name| !name.is_empty())
        .ok_or(OrgError::Blank)
}

/// The SHA-256 under which a key is kept, from the key or from its digest as it was given.
///
/// # Errors
/// The digest is none.
pub fn key_digest(key: Option<&str>, sha256: Option<&str>) -> Result<Option<String>, OrgError> {
    match sha256 {
        Some(digest) if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(Some(digest.to_ascii_lowercase()))
        }
        Some(_) => Err(OrgError::NoDigest),
        None => Ok(key.map(|key| ids::sha256_hex(key.trim().as_bytes()))),
    }
}

/// Does it at `now` (milliseconds since the Unix epoch); gives what is to be shown.
///
/// # Errors
/// It cannot be done as it was asked, or the table or the secrets cannot be reached.
pub async fn run(stack: &Stack, action: Action, now: i64) -> Result<Value, OrgError> {
    let store = &stack.store;
    match action {
        Action::Create(name) => {
            let (org, name, key) = (ids::new_id(now), not_blank(&name)?, random_key());
            let digest = ids::sha256_hex(key.as_bytes());
            store.create_org(org, name, FIRST_KEY, &digest).await?;
            Ok(json!({ "orgId": org, "name": name, "apiKey": key }))
        }
        Action::AddKey { org, name } => {
            let (name, key) = (not_blank(&name)?, random_key());
            let digest = ids::sha256_hex(key.as_bytes());
            if store.find_org(org).await?.is_none() {
                return Err(OrgError::Unknown(org));
            }
            store.put_api_key(org, name, &digest).await?;
            Ok(json!({ "orgId": org, "name": name, "apiKey": key }))
        }
        Action::DeleteKey(digest) => {
            let Some(principal) = store.principal(&digest).await? else {
                return Ok(json!({ "deleted": false }));
            };
            store.delete_api_key(&digest).await?;
            Ok(json!({ "deleted": true, "orgId": principal.org, "name": principal.key_name }))
        }
        Action::List => {
            let orgs = store.list_orgs().await?.into_iter();
            Ok(orgs
                .map(|(org, name)| json!({ "orgId": org, "name": name }))
                .collect())
        }
        Action::Delete { org, yes, force } => delete(stack, org, yes, force, now).await,
    }
}

/// The names of an organization's secrets as far as its rows name them. There need not be one of each.
fn secret_names(held: &Holdings) -> Vec<String> {
    let endpoints = held.endpoints.iter().map(|&id| EndpointSecrets::name(id));
    endpoints.chain([OrgHooks::name(held.org)]).collect()
}

fn may_go(held: &Holdings, force: bool) -> Result<(), OrgError> {
    match (held.going_on, held.settling) {
        _ if force => Ok(()),
        (0, 0) => Ok(()),
        (0, settling) => Err(OrgError::Settling(settling)),
        (going_on, _) => Err(OrgError::GoingOn(going_on)),
    }
}

async fn delete(stack: &Stack, org: Uuid, yes: bool, force: bool, now: i64) -> Result<Value, OrgError> {
    let store = &stack.store;
    let first = store.holdings(org, now).await?;
    if first.is_empty() {
        return Ok(json!({ "orgId": org, "found": false, "deleted": false }));
    }
    let told = |held: &Holdings, deleted: bool| {
        let mut answer = json!({
            "orgId": org, "name": first.name, "found": true, "deleted": deleted,
            "counts": first.holding.max(held.holding),
        });
        let field = match stack.secrets {
            Some(_) => "secrets",
            None => "secretsLeft",
        };
        answer[field] = json!(secret_names(held));
        answer
    };
    if !yes {
        let mut answer = told(&first, false);
        answer["runsGoingOn"] = json!(first.going_on);
        return Ok(answer);
    }
    may_go(&first, force)?;
    store.close_org(&first).await?;
    // What came in while it was being closed.
    let held = store.holdings(org, now).await?;
    may_go(&held, force)?;
    store.remove_runs(&held).await?;
    if let Some(secrets) = &stack.secrets {
        for &endpoint in &held.endpoints {
            secrets.delete::<EndpointSecrets>(endpoint).await?;
        }
        secrets.delete::<OrgHooks>(org).await?;
    }
    store.remove_org(&held).await?;
    Ok(told(&held, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_by_itself_or_by_its_digest() {
        let digest = ids::sha256_hex(b"rb_1");
        assert_eq!(key_digest(Some("rb_1\n"), None).unwrap(), Some(digest.clone()));
        assert_eq!(
            key_digest(Some("rb_2"), Some(&digest.to_uppercase())).unwrap(),
            Some(digest)
        );
        assert_eq!(key_digest(None, None).unwrap(), None);
        for odd in ["", "rb_1", &"g".repeat(64)] {
            assert!(
                matches!(key_digest(None, Some(odd)), Err(OrgError::NoDigest)),
                "{odd}"
            );
        }
    }

    #[test]
    fn names_are_not_blank() {
        assert_eq!(not_blank(" main ").unwrap(), "main");
        for blank in ["", " \t"] {
            assert!(matches!(not_blank(blank), Err(OrgError::Blank)));
        }
    }
}
