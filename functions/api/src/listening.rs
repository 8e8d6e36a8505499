//! What those are sent who listen to runs in another API's words.

use ringback_shared::{
    context::{BoxError, Context},
    lifecycle::Hook,
    listeners::{Listener, Shape},
    secrets::OrgHooks,
};
use serde_json::Value;
use uuid::Uuid;

use crate::{cekura, sigmamind};

/// What one who listens is sent.
#[derive(Debug)]
pub struct Letter {
    /// The body.
    pub body: Value,
    /// Headers beside those of the signature.
    pub headers: Vec<(&'static str, String)>,
    /// Whose secret it is signed with, if not with the organization's.
    pub signed_as: Option<Uuid>,
}

/// What a listener is sent for a hook, with the secrets of its organization.
///
/// # Errors
/// When what the hook tells of cannot be read.
pub async fn letter(
    ctx: &Context,
    hook: &Hook,
    listener: &Listener,
    secrets: &OrgHooks,
) -> Result<Letter, BoxError> {
    let letter = match listener.shape {
        Shape::Cekura => cekura::letter(ctx, hook, secrets).await,
        Shape::Sigmamind => sigmamind::letter(ctx, hook, listener).await,
    };
    letter.map_err(|error| error.text().into())
}
