//! Personalities: who the tester is.

use ringback_shared::{models::Object, store::Kind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Refusal},
    objects::{self, Asked, Filter, Numbers, Resource, own, text},
};
use crate::http::Response;

/// Personalities.
pub(super) struct Personalities;

/// The longest name, in characters.
const NAME: usize = 80;

/// The system prompt of an assistant.
pub(crate) fn system_prompt(assistant: &Value) -> &str {
    let messages = assistant.pointer("/model/messages").and_then(Value::as_array);
    let system = messages
        .into_iter()
        .flatten()
        .find(|message| text(message, "role") == "system");
    system.map(|message| text(message, "content")).unwrap_or_default()
}

/// An assistant with this system prompt, in the place of the one that it has.
pub(crate) fn with_system_prompt(assistant: &mut Object, prompt: &str) {
    let mut model = match assistant.remove("model") {
        Some(Value::Object(model)) => model,
        // It names no model, so that it speaks through the one that the operator configured.
        _ => json!({ "provider": "openai" })
            .as_object()
            .cloned()
            .unwrap_or_default(),
    };
    let mut messages = match model.remove("messages") {
        Some(Value::Array(messages)) => messages,
        _ => Vec::new(),
    };
    messages.retain(|message| text(message, "role") != "system");
    messages.insert(0, json!({ "role": "system", "content": prompt }));
    model.insert("messages".to_owned(), Value::Array(messages));
    assistant.insert("model".to_owned(), Value::Object(model));
}

impl Resource for Personalities {
    const KIND: Kind = Kind::Personality;
    const BARE: bool = true;

    async fn write(_: Asked<'_>, mut fields: Fields, stored: Option<&Value>) -> Result<Object, Refusal> {
        let name = fields.required_text("name", 1..=NAME);
        let prompt = fields.required_text("prompt", 1..=20_000);
        let provider = fields.choice("provider", &["11labs", "cartesia"]);
        let voice = fields.text("voice_id", 0..=255);
        let rest = fields.checked()?;
        let mut assistant = stored
            .and_then(|stored| stored.get("assistant")?.as_object().cloned())
            .unwrap_or_default();
        with_system_prompt(&mut assistant, &prompt);
        if let Some(voice) = voice.filter(|voice| !voice.is_empty()) {
            let provider = provider.unwrap_or_else(|| "11labs".to_owned());
            assistant.insert(
                "voice".to_owned(),
                json!({ "provider": provider, "voiceId": voice }),
            );
        }
        let kept: Object = rest
            .into_iter()
            .filter(|(name, _)| !["id", "name", "prompt", "project"].contains(&name.as_str()))
            .collect();
        let mut body = Object::new();
        body.insert("name".to_owned(), json!(name));
        body.insert("assistant".to_owned(), Value::Object(assistant));
        body.insert("cekura".to_owned(), Value::Object(kept));
        if let Some(path) = stored.and_then(|stored| stored.get("path")) {
            body.insert("path".to_owned(), path.clone());
        }
        Ok(body)
    }

    fn names(_: &Value) -> Vec<(Kind, Uuid)> {
        Vec::new()
    }

    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object {
        let assistant = body.get("assistant").unwrap_or(&Value::Null);
        let voice = |field: &str| assistant.pointer(&format!("/voice/{field}")).cloned();
        let defaults = json!({
            "language": "en", "accent": null, "background_noise": "off", "voice_model": null, "interruption_level": null,
            "speed": 1.0, "end_call_enabled": true, "voice_id": voice("voiceId"),
        });
        let mut shown = defaults.as_object().cloned().unwrap_or_default();
        shown.extend(own(body));
        shown.insert("name".to_owned(), json!(text(body, "name")));
        shown.insert("prompt".to_owned(), json!(system_prompt(assistant)));
        shown.insert("project".to_owned(), json!(numbers.of(Kind::Project, asked.org)));
        shown
    }

    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal> {
        let language = asked.request.query.get("language").map(str::to_owned);
        Ok(Box::new(move |body| {
            let own = body.pointer("/cekura/language").and_then(Value::as_str);
            language
                .as_deref()
                .is_none_or(|wanted| own.unwrap_or("en") == wanted)
        }))
    }
}

/// Makes a copy of a personality, which may be one of those that nobody can change, with the changes in the body.
pub(super) async fn fork(asked: Asked<'_>, id: &str) -> Answer {
    let read = objects::found(asked, Kind::Personality, objects::number(id)?).await?;
    let mut shown = objects::shown::<Personalities>(asked, std::slice::from_ref(&read)).await?;
    let mut fields = match shown.pop() {
        Some(Value::Object(fields)) => fields,
        _ => Object::new(),
    };
    let name = format!("{} (copy)", text(&read.body, "name"));
    let name: String = name.chars().take(NAME).collect();
    fields.insert("name".to_owned(), json!(name));
    if let Value::Object(changes) = asked.request.optional_json()? {
        fields.extend(changes);
    }
    let made = objects::keep::<Personalities>(asked, Fields::new(fields)).await?;
    let mut shown = objects::shown::<Personalities>(asked, &[made]).await?;
    Ok(Response::created(shown.pop())?)
}
