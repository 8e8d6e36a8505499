//! Endpoints: the providers that carry an organization's calls, and the secrets that their webhooks are signed with.

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    models::{Validate, check, parse},
    provider::{Webhooks, is_url},
    secrets::EndpointSecrets,
    store::{Definition, Kind},
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    definitions::found,
    filters,
    http::{ApiError, Request, Response},
    lists::ListRequest,
    signing::{self, Change},
};

/// The longest name and URL of an endpoint, and the longest key for its requests, in characters.
const MAX_NAME: usize = 80;
const MAX_URL: usize = 2000;
const MAX_KEY: usize = 4000;
/// How many endpoints' secrets are read at once for a list.
const READS: usize = 10;

/// What a client sends to make or change an endpoint.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "UpdateEndpoint")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Wanted {
    /// Display name.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_NAME)))]
    name: Option<String>,
    /// What kind of provider it is.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["generic", null])))]
    provider: Option<String>,
    /// Where calls are ordered. It cannot be changed.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = MAX_URL), regex(pattern = "^https?://."), extend("format" = "uri"))
    )]
    url: Option<String>,
    /// The key for requests to the provider; `null` takes it away.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = MAX_KEY), regex(pattern = "^[!-~]+$"))
    )]
    #[serde(default, deserialize_with = "present")]
    api_key: Option<Option<String>>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Validate for Wanted {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(name) = &self.name {
            check::length(path, "name", name, 1, MAX_NAME, faults);
        }
        if self
            .provider
            .as_deref()
            .is_some_and(|provider| provider != "generic")
        {
            faults.push("provider must be generic".to_owned());
        }
        if let Some(url) = &self.url {
            check::length(path, "url", url, 1, MAX_URL, faults);
            if !is_url(url) {
                faults.push("url must be an http or https URL".to_owned());
            }
        }
        if let Some(Some(key)) = &self.api_key {
            check::length(path, "apiKey", key, 1, MAX_KEY, faults);
            if key.chars().any(|c| !c.is_ascii_graphic()) {
                faults.push("apiKey must be visible ASCII characters without spaces".to_owned());
            }
        }
    }
}

/// A change of an endpoint's secrets.
async fn begin(ctx: &Context, endpoint: &Definition) -> Result<Change<EndpointSecrets>, ApiError> {
    Change::begin(ctx, endpoint.id).await?.ok_or_else(|| {
        tracing::error!(endpoint = %endpoint.id, "an endpoint has no secrets");
        ApiError::new(
            503,
            "this endpoint's secrets cannot be read at the moment; try again, and if that does not help, delete the \
             endpoint and make it anew",
        )
    })
}

/// An endpoint as clients see it. Of its secrets only `new`, which was made just now, is shown. Without any it is one that is
/// only waiting to be deleted.
fn view(ctx: &Context, endpoint: &Definition, secrets: Option<&EndpointSecrets>, new: Option<Uuid>) -> Value {
    let mut view = endpoint.body.clone();
    if let Some(object) = view.as_object_mut() {
        let has_key = secrets.is_some_and(|secrets| secrets.api_key.is_some());
        let signing = secrets
            .map(|secrets| secrets.signing.as_slice())
            .unwrap_or_default();
        let webhooks = Webhooks::of(&ctx.config.public_url, endpoint.id);
        object.insert("hasApiKey".to_owned(), json!(has_key));
        object.insert(
            "secrets".to_owned(),
            signing::view(signing, |secret| Some(secret.id) == new),
        );
        object.insert("webhooks".to_owned(), json!(webhooks));
    }
    view
}

/// An endpoint as clients see it who did not make a secret.
async fn shown(ctx: &Context, endpoint: Definition) -> Result<Value, ApiError> {
    let secrets = signing::stored(ctx, endpoint.id).await?;
    Ok(view(ctx, &endpoint, secrets.as_ref(), None))
}

/// Makes a provider known.
pub(crate) async fn create(ctx: &Context, org: Uuid, body: Value) -> Result<Response, ApiError> {
    let wanted: Wanted = parse(body)?;
    let url = wanted
        .url
        .ok_or_else(|| ApiError::bad_request("url is required: where calls are ordered"))?;
    let now = ctx.clock.now_ms();
    let (id, secret) = (ids::new_id(now), ids::new_id(now));
    let secrets =
        EndpointSecrets::generate(wanted.api_key.flatten(), secret, now).map_err(signing::no_random)?;
    let endpoint = Definition {
        id,
        version: 1,
        body: json!({
            "id": id,
            "orgId": org,
            "createdAt": iso(now),
            "updatedAt": iso(now),
            "name": wanted.name.unwrap_or_else(|| "Voice provider".to_owned()),
            "provider": "generic",
            "url": url,
        }),
    };
    // What nothing names comes first, so that an endpoint that can be seen is whole.
    ctx.secrets
        .put_endpoint(id, &secrets)
        .await
        .map_err(|error| signing::unavailable(&error))?;
    ctx.store.put_endpoint(id, org).await?;
    ctx.store
        .create_definition(org, Kind::Endpoint, id, endpoint.body.clone(), &[])
        .await?;
    Response::created(view(ctx, &endpoint, Some(&secrets), Some(secret)))
}

/// Reads an endpoint.
pub(crate) async fn read(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let endpoint = found(ctx, org, Kind::Endpoint, id).await?;
    Response::ok(shown(ctx, endpoint).await?)
}

/// Lists endpoints.
pub(crate) async fn list(ctx: &Context, org: Uuid, request: &Request) -> Result<Response, ApiError> {
    let wanted = ListRequest::of_definitions(Kind::Endpoint, &request.query)?;
    let mut listed = Vec::new();
    let show = |endpoint| listed.push(endpoint);
    let found = filters::definitions(ctx, org, Kind::Endpoint, &wanted, &request.query, show).await?;
    let views: Vec<Value> = stream::iter(listed)
        .map(|endpoint| shown(ctx, endpoint))
        .buffered(READS)
        .try_collect()
        .await?;
    wanted.answer(views, found)
}

/// Writes an endpoint with other `fields`, unless somebody else changed it since it was read.
async fn rewrite(
    ctx: &Context,
    org: Uuid,
    read: &Definition,
    fields: &[(&str, Value)],
) -> Result<Definition, ApiError> {
    let mut changed = Definition {
        version: read.version + 1,
        ..read.clone()
    };
    if let Some(object) = changed.body.as_object_mut() {
        for (name, value) in fields {
            object.insert((*name).to_owned(), value.clone());
        }
        object.insert("updatedAt".to_owned(), json!(iso(ctx.clock.now_ms())));
    }
    ctx.store
        .update_definition(org, Kind::Endpoint, read, changed.body.clone(), &[])
        .await?;
    Ok(changed)
}

/// Changes name or key of an endpoint.
pub(crate) async fn update(ctx: &Context, org: Uuid, id: &str, body: Value) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    let wanted: Wanted = parse(body)?;
    let mut fields = Vec::new();
    if let Some(name) = wanted.name {
        fields.push(("name", json!(name)));
    }
    if wanted
        .url
        .is_some_and(|url| read.body.get("url").and_then(Value::as_str) != Some(&url))
    {
        return Err(ApiError::bad_request(
            "url cannot be changed, because calls that are up can be ended there only; create another endpoint",
        ));
    }
    let Some(key) = wanted.api_key else {
        let changed = rewrite(ctx, org, &read, &fields).await?;
        return Response::ok(shown(ctx, changed).await?);
    };
    let mut change = begin(ctx, &read).await?;
    change.secrets.api_key = key;
    let changed = rewrite(ctx, org, &read, &fields).await?;
    let kept = change.finish(ctx).await?;
    Response::ok(view(ctx, &changed, Some(&kept), None))
}

/// Deletes an endpoint with its secrets.
pub(crate) async fn delete(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    // What is still seen can be deleted again; secrets that nothing names would let webhooks in for ever.
    let kept = match Change::<EndpointSecrets>::begin(ctx, read.id).await? {
        Some(change) => Some(change.forget(ctx).await?),
        None => None,
    };
    ctx.store.delete_endpoint(read.id).await?;
    ctx.store.delete_definition(org, Kind::Endpoint, &read).await?;
    Response::ok(view(ctx, &read, kept.as_ref(), None))
}

/// Adds a secret, which the answer shows.
pub(crate) async fn add_secret(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    let mut change = begin(ctx, &read).await?;
    let made = change.add(ctx)?;
    let changed = rewrite(ctx, org, &read, &[]).await?;
    let kept = change.finish(ctx).await?;
    Response::created(view(ctx, &changed, Some(&kept), Some(made)))
}

/// Deletes a secret.
pub(crate) async fn remove_secret(
    ctx: &Context,
    org: Uuid,
    id: &str,
    secret: &str,
) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    let mut change = begin(ctx, &read).await?;
    change.remove(secret)?;
    let changed = rewrite(ctx, org, &read, &[]).await?;
    let kept = change.finish(ctx).await?;
    Response::ok(view(ctx, &changed, Some(&kept), None))
}
