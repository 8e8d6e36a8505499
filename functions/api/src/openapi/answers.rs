//! What the API answers where it puts an object together itself instead of writing a model.

use std::borrow::Cow;

use ringback_shared::{
    models::Object,
    provider::{ProviderKind, RetellSettings, VapiSettings, Webhooks},
    signature::Scheme,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

pub(crate) use crate::endpoints::{Wanted as UpdateEndpoint, WantedSecret as AddEndpointSecret};
use crate::orgs::{MAX_CONCURRENCY, MAX_NAME};

/// That the API is up.
#[derive(Debug, JsonSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: String,
}

/// A description in OpenAPI.
#[derive(Debug, JsonSchema)]
pub struct Description {
    /// The version of OpenAPI.
    pub openapi: String,
    /// What is described.
    pub info: Object,
    /// The operations by path and method.
    pub paths: Object,
    /// What the operations refer to.
    pub components: Object,
}

/// A secret that hooks are signed with.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct HookSecret {
    /// Unique id.
    pub id: String,
    /// When it was made.
    pub created_at: String,
    /// The secret in the form of Standard Webhooks.
    pub secret: String,
}

/// The secrets that outgoing hooks are signed with.
#[derive(Debug, JsonSchema)]
pub struct HookSecrets {
    /// All of them; receivers need one that fits.
    pub secrets: Vec<HookSecret>,
}

/// A secret that an endpoint's webhooks may be signed with.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct EndpointSecret {
    /// Unique id.
    pub id: String,
    /// When it was made.
    pub created_at: String,
    /// The secret, in the answer to the request that made it only.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// A voice provider.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Endpoint {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// Display name.
    pub name: String,
    /// Whose calls and events they are.
    pub provider: ProviderKind,
    /// Where calls are ordered.
    pub url: String,
    /// Whether requests to it carry a key.
    pub has_api_key: bool,
    /// How its webhooks are signed.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Scheme>,
    /// How Vapi carries its calls.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub vapi: Option<VapiSettings>,
    /// How Retell carries its calls.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub retell: Option<RetellSettings>,
    /// Verified events that say nothing about an item, by their kind.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub ignored_events: Option<std::collections::BTreeMap<String, u64>>,
    /// What its webhooks may be signed with.
    pub secrets: Vec<EndpointSecret>,
    /// Where it sends its webhooks.
    pub webhooks: Webhooks,
}

/// A voice provider to make known: what a change may say, and more of it is required.
#[derive(Debug)]
pub struct CreateEndpoint;

impl JsonSchema for CreateEndpoint {
    fn schema_name() -> Cow<'static, str> {
        "CreateEndpoint".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = UpdateEndpoint::json_schema(generator);
        schema.insert("description".to_owned(), json!("A voice provider to make known."));
        schema
    }
}

/// What a structured output came to: for a preview the value under the output's id, or why it was skipped; otherwise a message
/// that the values are kept.
#[derive(Debug, JsonSchema)]
pub struct Extracted {
    /// That the values are kept.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The structured outputs that were not run, by id.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Object>,
    /// The values by the output's id.
    #[schemars(flatten)]
    pub values: std::collections::BTreeMap<String, Value>,
}

/// An organization with its settings.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Organization {
    /// Unique id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its own number of call slots; null where the system's counts.
    pub concurrency_limit: Option<i64>,
    /// What it may spend in a calendar month, in US dollars; null for any amount.
    pub billing_limit: Option<f64>,
    /// What it has spent in this calendar month (UTC), in US dollars, as far as it is known.
    pub spent_this_month: f64,
    /// When it was created, if that is known.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When its settings were last changed, if that is known.
    #[schemars(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

/// A change of an organization's settings; what it does not name stays.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateOrganization {
    /// Its name.
    #[schemars(default, with = "String", length(min = 1, max = MAX_NAME))]
    pub name: Option<String>,
    /// Call slots; null for the system's.
    #[schemars(range(min = 2, max = MAX_CONCURRENCY))]
    pub concurrency_limit: Option<i64>,
    /// US dollars a calendar month; null for any amount.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub billing_limit: Option<f64>,
}
