//! Who carries an organization's calls, with what only this process may know: an endpoint with its secrets.

use uuid::Uuid;

use crate::{
    context::Context,
    provider::{Dialect, Provider, ProviderKind},
    secrets::EndpointSecrets,
    store::{Kind, StoreError},
};

/// An endpoint as it is asked.
#[derive(Debug)]
pub struct Line {
    /// The endpoint.
    pub endpoint: Uuid,
    /// Whose events it gets.
    pub kind: ProviderKind,
    url: String,
    dialect: Dialect,
    secrets: EndpointSecrets,
    hook_headers: Vec<(String, String)>,
    correlation_key: [u8; 32],
}

/// Why there is no line: a part of a sentence about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLine {
    /// It is not there any more.
    #[error("was deleted")]
    Deleted,
    /// It cannot be used without them.
    #[error("has no secrets")]
    NoSecrets,
    /// What is stored of it is not of this version.
    #[error("cannot be understood")]
    Corrupt,
}

impl Line {
    /// The line of `endpoint` of `org`, with secrets that are not older than 5 seconds: a key that was changed a moment ago must
    /// not fail items for good.
    ///
    /// # Errors
    /// When table or secrets cannot be read.
    pub async fn of(ctx: &Context, org: Uuid, endpoint: Uuid) -> Result<Result<Self, NoLine>, StoreError> {
        let stored = ctx.store.definition(org, Kind::Endpoint, endpoint).await?;
        let Some(stored) = stored else {
            return Ok(Err(NoLine::Deleted));
        };
        let url = stored.body.get("url").and_then(|url| url.as_str());
        let kind = stored.body.get("provider").cloned().unwrap_or_default();
        let (Some(url), Ok(kind), Ok(dialect)) =
            (url, serde_json::from_value(kind), Dialect::of(&stored.body))
        else {
            return Ok(Err(NoLine::Corrupt));
        };
        let secrets = ctx
            .secrets
            .endpoint_anew(endpoint)
            .await
            .map_err(|error| StoreError::Throttled(error.to_string()))?;
        let Some((secrets, correlation_key)) = secrets.and_then(|secrets| {
            let key = secrets.correlation_key()?;
            Some((secrets, key))
        }) else {
            return Ok(Err(NoLine::NoSecrets));
        };
        Ok(Ok(Self {
            endpoint,
            kind,
            url: url.to_owned(),
            dialect,
            hook_headers: secrets.hook_headers(),
            secrets,
            correlation_key,
        }))
    }

    /// Its provider, to be asked.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        Provider {
            url: &self.url,
            api_key: self.secrets.api_key.as_deref(),
            dialect: &self.dialect,
            trace: None,
            hook_headers: &self.hook_headers,
        }
    }

    /// How its provider is talked to.
    #[must_use]
    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    /// What authenticates the correlation values of its calls.
    #[must_use]
    pub fn correlation_key(&self) -> &[u8; 32] {
        &self.correlation_key
    }
}
