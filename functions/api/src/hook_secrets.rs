//! The secrets that an organization's outgoing hooks are signed with. Their receivers need them, so they are shown.

use ringback_shared::{context::Context, secrets::OrgHooks, webhook::Secret};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    http::{ApiError, Response},
    signing::{self, Change},
};

/// Shows the secrets; an organization that has none yet gets its first.
pub(crate) async fn read(ctx: &Context, org: Uuid) -> Result<Response, ApiError> {
    let hooks = match signing::stored(ctx, org).await? {
        Some(hooks) => hooks,
        None => first(ctx, org).await?,
    };
    Response::ok(view(&hooks))
}

fn view(hooks: &OrgHooks) -> Value {
    json!({ "secrets": signing::view(&hooks.signing, |_| true) })
}

/// The secrets of an organization that has none yet.
pub(crate) async fn first(ctx: &Context, org: Uuid) -> Result<OrgHooks, ApiError> {
    ctx.secrets
        .ensure_org_hooks(org, ctx.clock.now_ms())
        .await
        .map_err(|error| signing::unavailable(&error))
}

/// Adds a secret.
pub(crate) async fn add(ctx: &Context, org: Uuid) -> Result<Response, ApiError> {
    let Some(mut change) = Change::<OrgHooks>::begin(ctx, org).await? else {
        return Response::created(view(&first(ctx, org).await?));
    };
    let secret = Secret::generate().map_err(signing::no_random)?;
    change.add(ctx, secret.to_text())?;
    Response::created(view(&change.finish(ctx).await?))
}

/// Deletes a secret.
pub(crate) async fn remove(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let mut change = Change::<OrgHooks>::begin(ctx, org)
        .await?
        .ok_or_else(|| ApiError::not_found("Secret", id))?;
    change.remove(id)?;
    Response::ok(view(&change.finish(ctx).await?))
}
