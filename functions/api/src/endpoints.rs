//! Endpoints: the providers that carry an organization's calls, and the secrets that their webhooks are signed with.

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    models::{Invalid, Validate, check, parse},
    provider::{ProviderKind, RetellSettings, VapiSettings, Webhooks, is_url},
    secrets::{EndpointSecrets, SigningSecret},
    signature::Scheme,
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
/// Where the providers are that have one address.
const VAPI: &str = "https://api.vapi.ai";
const RETELL: &str = "https://api.retellai.com";
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
    /// Whose calls and events they are. It cannot be changed.
    provider: Option<ProviderKind>,
    /// Where calls are ordered; of Vapi and Retell it is known. It cannot be changed.
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
    /// How the provider's webhooks are signed. Without it, as that provider does.
    signature: Option<Scheme>,
    /// What they are signed with. Without it Ringback makes one, where the scheme leaves that to the receiver.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_KEY)))]
    secret: Option<String>,
    /// How Vapi carries calls.
    vapi: Option<VapiSettings>,
    /// How Retell carries calls.
    retell: Option<RetellSettings>,
}

/// What a client sends to add a secret.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "AddEndpointSecret")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WantedSecret {
    /// The secret. Without it Ringback makes one, where the scheme leaves that to the receiver.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_KEY)))]
    secret: Option<String>,
}

impl Validate for WantedSecret {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(secret) = &self.secret {
            check::length(path, "secret", secret, 1, MAX_KEY, faults);
        }
    }
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Validate for Wanted {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(name) = &self.name {
            check::length(path, "name", name, 1, MAX_NAME, faults);
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
        if let Some(secret) = &self.secret {
            check::length(path, "secret", secret, 1, MAX_KEY, faults);
        }
        if let Some(signature) = &self.signature {
            signature.validate(&check::join(path, "signature"), faults);
        }
        if let Some(vapi) = &self.vapi {
            vapi.validate(&check::join(path, "vapi"), faults);
        }
        if let Some(retell) = &self.retell {
            retell.validate(&check::join(path, "retell"), faults);
        }
    }
}

impl Wanted {
    /// Settings belong to their provider only.
    fn check_settings(&self, provider: ProviderKind) -> Result<(), ApiError> {
        for (name, given, own) in [
            ("vapi", self.vapi.is_some(), ProviderKind::Vapi),
            ("retell", self.retell.is_some(), ProviderKind::Retell),
        ] {
            if given && provider != own {
                return Err(ApiError::bad_request(format!(
                    "{name} is for endpoints with the provider {name} only"
                )));
            }
        }
        Ok(())
    }
}

/// How a provider signs by itself, or may be told to.
fn usual_signature(provider: ProviderKind) -> Scheme {
    match provider {
        ProviderKind::Generic => Scheme::StandardWebhooks,
        ProviderKind::Vapi => Scheme::VapiSecret,
        ProviderKind::Retell => Scheme::Retell,
        ProviderKind::Elevenlabs => Scheme::Elevenlabs,
        ProviderKind::Bland => Scheme::Bland,
        ProviderKind::Twilio => Scheme::Twilio(Default::default()),
        ProviderKind::Livekit => Scheme::Livekit(Default::default()),
        ProviderKind::Telnyx => Scheme::Telnyx,
    }
}

/// A secret of `scheme`: the one that the client gives, or a new one.
fn secret_for(scheme: &Scheme, given: Option<String>) -> Result<Option<String>, ApiError> {
    match given {
        Some(secret) => {
            let checked = scheme.check_secret(&secret);
            checked.map_err(|wrong| ApiError::bad_request(format!("secret: {wrong}")))?;
            Ok(Some(secret))
        }
        None => scheme
            .generate()
            .map(|made| made.map_err(signing::no_random))
            .transpose(),
    }
}

fn wants_secret() -> ApiError {
    ApiError::bad_request(
        "secret is required: with this signature the provider makes the secret, so look it up there and send it",
    )
}

/// Vapi signs only with a credential that it knows; all that can be told to it with an order are headers.
fn check_credential(scheme: &Scheme, vapi: Option<&VapiSettings>) -> Result<(), ApiError> {
    let told = scheme.plain_header("told").is_some();
    match vapi {
        Some(vapi) if vapi.credential_id.is_none() && !told => Err(ApiError::bad_request(
            "vapi.credentialId is required with this signature: create a webhook credential at Vapi with the same settings and \
             secret, or use the scheme vapi-secret",
        )),
        _ => Ok(()),
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
        if let Some(secrets) = secrets {
            object.insert("signature".to_owned(), json!(secrets.signature));
        }
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
    let (secrets, ignored) = tokio::try_join!(signing::stored(ctx, endpoint.id), async {
        Ok::<_, ApiError>(ctx.store.ignored_events(endpoint.id).await?)
    })?;
    let mut view = view(ctx, &endpoint, secrets.as_ref(), None);
    if !ignored.is_empty() {
        view["ignoredEvents"] = json!(ignored);
    }
    Ok(view)
}

/// Makes a provider known.
pub(crate) async fn create(ctx: &Context, org: Uuid, body: Value) -> Result<Response, ApiError> {
    let wanted: Wanted = parse(body)?;
    let provider = wanted.provider.unwrap_or_default();
    wanted.check_settings(provider)?;
    let usual = match provider {
        ProviderKind::Vapi => Some(VAPI),
        ProviderKind::Retell => Some(RETELL),
        _ => None,
    };
    let url = wanted
        .url
        .or_else(|| usual.map(str::to_owned))
        .ok_or_else(|| ApiError::bad_request("url is required: where calls are ordered"))?;
    let api_key = wanted.api_key.flatten();
    if usual.is_some() && api_key.is_none() {
        return Err(ApiError::bad_request(
            "apiKey is required: the private key of your account at the provider",
        ));
    }
    let (mut vapi, retell) = (wanted.vapi, wanted.retell);
    if provider == ProviderKind::Vapi {
        let vapi = vapi.get_or_insert_default();
        vapi.calls = Some(vapi.way());
    }
    if provider == ProviderKind::Retell && retell.is_none() {
        return Err(ApiError::bad_request(
            "retell is required: agentId, the agent that plays the tester, and fromNumber, the number it calls from",
        ));
    }
    let signature = wanted.signature.unwrap_or_else(|| usual_signature(provider));
    check_credential(&signature, vapi.as_ref())?;
    let now = ctx.clock.now_ms();
    let (id, secret_id) = (ids::new_id(now), ids::new_id(now));
    let given = wanted.secret.is_some();
    let secret = secret_for(&signature, wanted.secret)?;
    let signing = secret.map(|secret| SigningSecret {
        id: secret_id,
        created_at: now,
        secret,
    });
    let secrets = EndpointSecrets::new(api_key, signature, signing).map_err(signing::no_random)?;
    if secrets.accepted().is_empty() {
        return Err(wants_secret());
    }
    let mut body = json!({
        "id": id,
        "orgId": org,
        "createdAt": iso(now),
        "updatedAt": iso(now),
        "name": wanted.name.unwrap_or_else(|| "Voice provider".to_owned()),
        "provider": provider,
        "url": url,
    });
    if let Some(vapi) = vapi {
        body["vapi"] = json!(vapi);
    }
    if let Some(retell) = retell {
        body["retell"] = json!(retell);
    }
    let endpoint = Definition { id, version: 1, body };
    // What nothing names comes first, so that an endpoint that can be seen is whole.
    ctx.secrets
        .put_endpoint(id, &secrets)
        .await
        .map_err(|error| signing::unavailable(&error))?;
    ctx.store.put_endpoint(id, org, provider).await?;
    ctx.store
        .create_definition(org, Kind::Endpoint, id, endpoint.body.clone(), &[])
        .await?;
    // Who gave the secret has it.
    let made = (!given).then_some(secret_id);
    Response::created(view(ctx, &endpoint, Some(&secrets), made))
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

/// Changes name, key, settings or signature of an endpoint.
pub(crate) async fn update(ctx: &Context, org: Uuid, id: &str, body: Value) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    let wanted: Wanted = parse(body)?;
    let is = |field: &str, value: &Value| read.body.get(field) == Some(value);
    let provider = read.body.get("provider").cloned().unwrap_or_default();
    let provider: ProviderKind = serde_json::from_value(provider).unwrap_or_default();
    if wanted.provider.is_some_and(|other| other != provider) {
        return Err(ApiError::bad_request(
            "provider cannot be changed; create another endpoint",
        ));
    }
    wanted.check_settings(provider)?;
    let mut fields = Vec::new();
    if let Some(name) = wanted.name {
        fields.push(("name", json!(name)));
    }
    if wanted.url.is_some_and(|url| !is("url", &json!(url))) {
        return Err(ApiError::bad_request(
            "url cannot be changed, because calls that are up can be ended there only; create another endpoint",
        ));
    }
    let present = read.body.get("vapi").cloned();
    let present: Option<VapiSettings> = present.and_then(|vapi| serde_json::from_value(vapi).ok());
    let mut vapi = wanted.vapi;
    if let (Some(vapi), Some(present)) = (&mut vapi, &present) {
        vapi.calls = Some(vapi.calls.unwrap_or(present.way()));
        let mut faults = Vec::new();
        vapi.validate("vapi", &mut faults);
        if !faults.is_empty() {
            return Err(Invalid(faults).into());
        }
    }
    if let (Some(vapi), Some(present)) = (&vapi, &present)
        && vapi.way() != present.way()
    {
        return Err(ApiError::bad_request(
            "vapi.calls cannot be changed, because calls that are up are looked up in their own way; create another endpoint",
        ));
    }
    if let Some(vapi) = &vapi {
        fields.push(("vapi", json!(vapi)));
    }
    if let Some(retell) = wanted.retell {
        fields.push(("retell", json!(retell)));
    }
    let vapi = vapi.or(present);
    if wanted.api_key.is_none() && wanted.signature.is_none() && wanted.secret.is_none() {
        if let Some(secrets) = signing::stored::<EndpointSecrets>(ctx, read.id).await? {
            check_credential(&secrets.signature, vapi.as_ref())?;
        }
        let changed = rewrite(ctx, org, &read, &fields).await?;
        return Response::ok(shown(ctx, changed).await?);
    }
    let mut change = begin(ctx, &read).await?;
    if let Some(key) = wanted.api_key {
        if key.is_none() && matches!(provider, ProviderKind::Vapi | ProviderKind::Retell) {
            return Err(ApiError::bad_request(
                "apiKey cannot be taken away: requests to Vapi and Retell need it",
            ));
        }
        change.secrets.api_key = key;
    }
    if wanted.signature.is_none() && wanted.secret.is_some() {
        return Err(ApiError::bad_request(
            "secret goes with a new signature; to add one for the present signature use POST /endpoint/{id}/secret",
        ));
    }
    let mut made = None;
    if let Some(signature) = wanted.signature {
        let given = wanted.secret.is_some();
        if given || change.secrets.signing.is_empty() || !change.secrets.fit(&signature) {
            // Secrets of another scheme count no longer.
            change.secrets.signing.clear();
            if let Some(secret) = secret_for(&signature, wanted.secret)? {
                let id = change.add(ctx, secret)?;
                made = (!given).then_some(id);
            }
        }
        change.secrets.signature = signature;
    }
    if change.secrets.accepted().is_empty() {
        return Err(wants_secret());
    }
    check_credential(&change.secrets.signature, vapi.as_ref())?;
    let changed = rewrite(ctx, org, &read, &fields).await?;
    let kept = change.finish(ctx).await?;
    Response::ok(view(ctx, &changed, Some(&kept), made))
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

/// Adds a secret; the answer shows it if it was made here.
pub(crate) async fn add_secret(
    ctx: &Context,
    org: Uuid,
    id: &str,
    body: Value,
) -> Result<Response, ApiError> {
    let read = found(ctx, org, Kind::Endpoint, id).await?;
    let wanted: WantedSecret = parse(body)?;
    let mut change = begin(ctx, &read).await?;
    let given = wanted.secret.is_some();
    let secret = secret_for(&change.secrets.signature, wanted.secret)?.ok_or_else(wants_secret)?;
    let made = change.add(ctx, secret)?;
    let changed = rewrite(ctx, org, &read, &[]).await?;
    let kept = change.finish(ctx).await?;
    Response::created(view(ctx, &changed, Some(&kept), (!given).then_some(made)))
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
