//! Agents: who is tested. An agent is an assistant with what else clients of Cekura say of it.

use ringback_shared::{models::Object, provider::is_e164, store::Kind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Refusal},
    objects::{self, Asked, Filter, Numbers, Resource, own, text},
    personalities::{system_prompt, with_system_prompt},
    webhooks,
};
use crate::http::Response;

/// Agents.
pub(super) struct Agents;

/// The longest name of an assistant, and of an agent, in characters.
const ASSISTANT_NAME: usize = 40;
const NAME: usize = 255;
/// Who agents may be hosted by.
const PROVIDERS: [&str; 20] = [
    "vapi",
    "retell",
    "elevenlabs",
    "vocera",
    "sms",
    "whatsapp",
    "self_hosted",
    "agentforce",
    "cisco",
    "bland",
    "livekit",
    "pipecat",
    "synthflow",
    "agora",
    "koreai",
    "genesys",
    "amazon_connect",
    "telnyx",
    "sierra",
    "custom",
];
/// The flat fields of the first version that the second one nests: where it has them.
const NESTED: [(&str, &str); 6] = [
    ("contact_number", "/telephony/phone_number"),
    ("inbound", "/telephony/inbound"),
    ("sip_endpoint", "/telephony/sip_uri"),
    ("outbound_numbers", "/telephony/outbound_numbers"),
    ("assistant_provider", "/provider/type"),
    ("assistant_id", "/provider/agent_id"),
];
/// What is kept under names of Ringback's own, or made anew.
const TAKEN: [&str; 12] = [
    "id",
    "webhook_secret",
    "name",
    "project",
    "description",
    "contact_number",
    "telephony",
    "provider",
    "model",
    "agent_speaks_first",
    "created_at",
    "updated_at",
];

impl Resource for Agents {
    const KIND: Kind = Kind::Assistant;
    const BARE: bool = false;

    async fn write(asked: Asked<'_>, fields: Fields, stored: Option<&Value>) -> Result<Object, Refusal> {
        let mut fields = Fields::new(flat(asked.version, fields.checked()?));
        let name = fields.required_text("agent_name", 1..=NAME);
        let description = fields.text("description", 0..=100_000).unwrap_or_default();
        let inbound = fields.flag("inbound").unwrap_or(true);
        let number = fields
            .text("contact_number", 0..=20)
            .filter(|number| !number.is_empty());
        if number.as_deref().is_some_and(|number| !is_e164(number)) {
            fields.wrong("contact_number", "Give the number in E.164, such as +15550100.");
        }
        if !inbound && number.is_none() {
            fields.wrong("contact_number", "This field is required for outbound agents.");
        }
        webhooks::check(&mut fields);
        fields.choice("assistant_provider", &PROVIDERS);
        fields.text("assistant_id", 0..=255);
        let model = fields.object("model");
        let first = fields.text("first_message", 0..=10_000);
        let speaks_first = fields.flag("agent_gives_first_message");
        if fields.raw("webhook_secret").is_some_and(|secret| secret != "") {
            fields.wrong(
                "webhook_secret",
                "All webhooks show the project's secret: set it with PATCH /user/v1/projects/{id}/, and leave this out.",
            );
        }
        let keys: Vec<String> = fields.names(|name| {
            name.ends_with("_api_key")
                || (name.ends_with("_secret") && name != "webhook_secret")
                || name.ends_with("_token")
                || name == "credentials"
        });
        for key in keys {
            fields.wrong(
                &key,
                "Ringback keeps the keys of providers with its endpoints: create one with POST /endpoint, and leave this out.",
            );
        }
        let rest = fields.checked()?;
        let mut assistant = stored.and_then(Value::as_object).cloned().unwrap_or_default();
        for own in ["id", "orgId", "createdAt", "updatedAt"] {
            assistant.remove(own);
        }
        let short: String = name.chars().take(ASSISTANT_NAME).collect();
        assistant.insert("name".to_owned(), json!(short));
        let same_model = model.as_ref() == assistant.get("model").and_then(Value::as_object);
        if let Some(model) = model {
            assistant.insert("model".to_owned(), Value::Object(model));
        }
        // What a model is told stays as it was written there, also in another shape, unless this changes it.
        let told = Value::Object(assistant.clone());
        let is_told = !system_prompt(&told).is_empty();
        let changed = stored.is_some_and(|stored| self::description(stored) != description);
        if !is_told || (changed && same_model) {
            with_system_prompt(&mut assistant, &description);
        }
        match number {
            Some(number) => assistant.insert("phoneNumber".to_owned(), json!(number)),
            None => assistant.remove("phoneNumber"),
        };
        if let Some(first) = first {
            assistant.insert("firstMessage".to_owned(), json!(first));
        }
        if let Some(speaks) = speaks_first {
            let mode = if speaks {
                "assistant-speaks-first"
            } else {
                "assistant-waits-for-user"
            };
            assistant.insert("firstMessageMode".to_owned(), json!(mode));
        }
        let kept = rest
            .into_iter()
            .filter(|(name, value)| !TAKEN.contains(&name.as_str()) && !value.is_null());
        let mut kept: Object = kept.collect();
        if system_prompt(&Value::Object(assistant.clone())) != description {
            kept.insert("description".to_owned(), json!(description));
        }
        assistant.insert("cekura".to_owned(), Value::Object(kept));
        Ok(assistant)
    }

    fn names(_: &Value) -> Vec<(Kind, Uuid)> {
        Vec::new()
    }

    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object {
        let own = own(body);
        let get = |name: &str| own.get(name).cloned().unwrap_or_default();
        let name = name(body);
        let speaks_first = text(body, "firstMessageMode") != "assistant-waits-for-user";
        let inbound = own.get("inbound").and_then(Value::as_bool).unwrap_or(true);
        let number = body.get("phoneNumber").cloned().unwrap_or_default();
        let mut shown = json!({
            "description": description(body), "model": body.get("model"), "language": "en", "project": numbers.of(Kind::Project, asked.org),
            "first_message": body.get("firstMessage"),
        })
        .as_object()
        .cloned()
        .unwrap_or_default();
        shown.extend(own.clone());
        let mut put = |name: &str, value: Value| {
            shown.insert(name.to_owned(), value);
        };
        if asked.version == 1 {
            put("agent_name", json!(name));
            put("name", json!(name));
            put("inbound", json!(inbound));
            put("contact_number", number);
            put("assistant_provider", get("assistant_provider"));
            put("assistant_id", get("assistant_id"));
            put("agent_gives_first_message", json!(speaks_first));
            return shown;
        }
        put("name", json!(name));
        put("agent_speaks_first", json!(speaks_first));
        put(
            "telephony",
            json!({
                "phone_number": number, "inbound": inbound, "sip_uri": get("sip_endpoint"),
                "outbound_numbers": get("outbound_numbers"),
            }),
        );
        let provider = own.get("assistant_provider").map(
            |kind| json!({ "type": kind, "agent_id": get("assistant_id"), "credentials_configured": false }),
        );
        put("provider", json!(provider));
        for (flat, _) in NESTED {
            shown.remove(flat);
        }
        for flat in ["agent_name", "agent_gives_first_message"] {
            shown.remove(flat);
        }
        shown
    }

    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal> {
        let search = asked.request.query.get("search").map(str::to_lowercase);
        let assistant = asked.request.query.get("assistant_id").map(str::to_owned);
        Ok(Box::new(move |body| {
            search
                .as_ref()
                .is_none_or(|part| name(body).to_lowercase().contains(part))
                && assistant
                    .as_ref()
                    .is_none_or(|id| body.pointer("/cekura/assistant_id").and_then(Value::as_str) == Some(id))
        }))
    }
}

/// What an agent is called.
pub(crate) fn name(body: &Value) -> String {
    let own = body.pointer("/cekura/agent_name").and_then(Value::as_str);
    own.unwrap_or_else(|| text(body, "name")).to_owned()
}

/// Who hosts an agent, if that is somebody who knows it by an id of theirs.
pub(super) fn hosted_by(body: &Value) -> Option<&str> {
    let provider = body.pointer("/cekura/assistant_provider").and_then(Value::as_str);
    provider.filter(|provider| !["self_hosted", "custom", "vocera"].contains(provider))
}

/// The id by which a run names an agent: Vapi's for one that it hosts, for it knows its own assistants better than what is written of
/// them here.
pub(super) fn target_id(body: &Value, id: Uuid) -> String {
    let remote = body.pointer("/cekura/assistant_id").and_then(Value::as_str);
    match (hosted_by(body), remote.filter(|remote| !remote.is_empty())) {
        (Some("vapi"), Some(remote)) => remote.to_owned(),
        _ => id.to_string(),
    }
}

/// The same for an agent that is to be chatted with, or why that cannot be.
pub(crate) fn chat_target(body: &Value, id: Uuid) -> Result<String, String> {
    let has_model = body.pointer("/model/url").is_some();
    match hosted_by(body).filter(|provider| *provider != "vapi" && !has_model) {
        Some(provider) => Err(format!(
            "Ringback cannot chat with agents of {provider}: give the agent a model that can be asked over HTTP (model.url), or call \
             it with run_scenarios."
        )),
        None => Ok(target_id(body, id)),
    }
}

/// What an agent is said to be: in words of its own, or else in those that its model is told.
fn description(body: &Value) -> &str {
    let own = body.pointer("/cekura/description").and_then(Value::as_str);
    own.unwrap_or_else(|| system_prompt(body))
}

/// Whether somebody calls an agent; an outbound one calls.
pub(super) fn is_inbound(body: &Value) -> bool {
    body.pointer("/cekura/inbound")
        .and_then(Value::as_bool)
        .unwrap_or(true)
}

/// The fields of an agent as the first version has them.
fn flat(version: u8, mut fields: Object) -> Object {
    let all = Value::Object(fields.clone());
    for (flat, at) in NESTED {
        if let Some(value) = all.pointer(at).filter(|value| !value.is_null()) {
            fields.entry(flat).or_insert_with(|| value.clone());
        }
    }
    if all
        .pointer("/provider/credentials")
        .is_some_and(|value| !value.is_null())
    {
        fields.insert("credentials".to_owned(), json!(true));
    }
    if let Some(speaks) = fields.remove("agent_speaks_first") {
        fields.insert("agent_gives_first_message".to_owned(), speaks);
    }
    let name = fields.remove("name");
    if let Some(name) = name.filter(|_| version == 2 || !fields.contains_key("agent_name")) {
        fields.insert("agent_name".to_owned(), name);
    }
    fields
}

/// The personalities that may play against an agent: all of them.
pub(super) async fn personalities(asked: Asked<'_>, id: &str) -> Answer {
    objects::found(asked, Kind::Assistant, objects::number(id)?).await?;
    objects::list::<super::personalities::Personalities>(asked).await
}

/// Agents by id and name.
pub(super) async fn short_list(asked: Asked<'_>) -> Answer {
    let all = objects::all::<Agents>(asked).await?;
    let mut numbers = Numbers::default();
    numbers
        .load_all(asked, all.iter().map(|one| (Kind::Assistant, one.id)))
        .await?;
    let entries: Vec<Value> = all
        .iter()
        .map(|one| json!({ "id": numbers.of(Kind::Assistant, one.id), "name": name(&one.body) }))
        .collect();
    Ok(Response::ok(entries)?)
}
