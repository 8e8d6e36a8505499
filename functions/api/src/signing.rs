//! What endpoints and outgoing hooks have in common: secrets that are signed with, and changes of them that do not undo each
//! other.

use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    secrets::{MAX_SIGNING_SECRETS, SecretSet, SecretsError, SigningSecret},
    store::Revision,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::http::ApiError;

/// After this long a change that was begun and is not finished is taken for dead, in milliseconds: a request has less than
/// half of that.
const ABANDONED_MS: i64 = 60_000;

pub(crate) fn unavailable(error: &SecretsError) -> ApiError {
    tracing::error!(%error, "the secrets' store is not available");
    ApiError::new(
        503,
        "the secrets' store is not available at the moment; try again",
    )
}

pub(crate) fn no_random(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(&std::io::Error::other(error.to_string()))
}

/// The secrets of `owner` as they are now.
pub(crate) async fn stored<S: SecretSet>(ctx: &Context, owner: Uuid) -> Result<Option<S>, ApiError> {
    ctx.secrets
        .stored(owner)
        .await
        .map_err(|error| unavailable(&error))
}

/// Secrets as clients see them, with their text only where `shown` says so.
pub(crate) fn view(signing: &[SigningSecret], shown: impl Fn(&SigningSecret) -> bool) -> Value {
    let entries = signing.iter().map(|signing| {
        let mut entry = json!({ "id": signing.id, "createdAt": iso(signing.created_at) });
        if shown(signing) {
            entry["secret"] = json!(signing.secret);
        }
        entry
    });
    entries.collect()
}

/// A change of an owner's secrets. It takes effect by [`Change::finish`] or [`Change::forget`], of which one succeeds where
/// several have read the same.
#[derive(Debug)]
pub(crate) struct Change<S> {
    owner: Uuid,
    read: Revision,
    pub(crate) secrets: S,
}

impl<S: SecretSet> Change<S> {
    /// Reads the secrets of `owner`; `None` when there are none.
    pub(crate) async fn begin(ctx: &Context, owner: Uuid) -> Result<Option<Self>, ApiError> {
        // The number first: what is read after it is not older, unless somebody has not finished.
        let read = ctx.store.revision(&S::name(owner)).await?;
        let Some(mut secrets) = stored::<S>(ctx, owner).await? else {
            return Ok(None);
        };
        let finished = *secrets.revision() >= read.number;
        if !finished && ctx.clock.now_ms() - read.at < ABANDONED_MS {
            return Err(ApiError::new(
                409,
                "a change of these secrets is under way or was broken off; try again in a minute",
            ));
        }
        Ok(Some(Self { owner, read, secrets }))
    }

    /// Adds a secret to sign with; gives its id.
    pub(crate) fn add(&mut self, ctx: &Context, secret: String) -> Result<Uuid, ApiError> {
        let signing = self.secrets.signing();
        if signing.iter().any(|known| known.secret == secret) {
            // Whoever deletes one of two that are the same believes that it counts no longer.
            return Err(ApiError::bad_request(format!(
                "{} has this secret already",
                S::OWNER
            )));
        }
        if signing.len() >= MAX_SIGNING_SECRETS {
            return Err(ApiError::bad_request(format!(
                "{} may have at most {MAX_SIGNING_SECRETS} secrets; delete one that is no longer used",
                S::OWNER
            )));
        }
        let now = ctx.clock.now_ms();
        let id = ids::new_id(now);
        signing.push(SigningSecret {
            id,
            created_at: now,
            secret,
        });
        Ok(id)
    }

    /// Takes away the secret that a client names by its id.
    pub(crate) fn remove(&mut self, id: &str) -> Result<(), ApiError> {
        let signing = self.secrets.signing();
        let place = Uuid::try_parse(id)
            .ok()
            .and_then(|id| signing.iter().position(|secret| secret.id == id))
            .ok_or_else(|| ApiError::not_found("Secret", id))?;
        if signing.len() == 1 {
            return Err(ApiError::bad_request(
                "this is the only secret; add another one before you delete it",
            ));
        }
        signing.remove(place);
        Ok(())
    }

    async fn claim(&mut self, ctx: &Context) -> Result<(), ApiError> {
        let name = S::name(self.owner);
        let now = ctx.clock.now_ms();
        *self.secrets.revision() = ctx.store.claim_revision(&name, self.read, now).await?;
        Ok(())
    }

    /// Writes the secrets as they are now here, unless somebody else changed them since they were read.
    pub(crate) async fn finish(mut self, ctx: &Context) -> Result<S, ApiError> {
        self.claim(ctx).await?;
        ctx.secrets
            .put(self.owner, &self.secrets)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(self.secrets)
    }

    /// Takes all of them away, unless somebody else changed them since they were read; gives what they were.
    pub(crate) async fn forget(mut self, ctx: &Context) -> Result<S, ApiError> {
        self.claim(ctx).await?;
        ctx.secrets
            .delete::<S>(self.owner)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(self.secrets)
    }
}
