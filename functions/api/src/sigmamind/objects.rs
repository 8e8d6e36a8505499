//! What is stored, by the ids that clients of SigmaMind know it by.

use ringback_shared::{
    clock::iso,
    models::Object,
    store::{Definition, Kind},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Asked,
    answer::{Answer, Prefix},
};
use crate::{
    built_in, definitions,
    filters::Definitions,
    http::{ApiError, Response},
};

/// The definition that an id stands for.
pub(super) async fn found(
    asked: Asked<'_>,
    prefix: Prefix,
    kind: Kind,
    id: Uuid,
) -> Result<Definition, ApiError> {
    if let Some(built_in) = built_in::get(kind, id) {
        return Ok(built_in);
    }
    let stored = asked.ctx.store.definition(asked.org, kind, id).await?;
    stored.ok_or_else(|| prefix.missing(&prefix.id(id)))
}

/// All definitions of a kind that fit, newest first.
pub(super) async fn all(
    asked: Asked<'_>,
    kind: Kind,
    fits: impl Fn(&Value) -> bool,
) -> Result<Vec<Definition>, ApiError> {
    let mut found = Vec::new();
    let mut definitions = Definitions::all(asked.ctx, asked.org, kind);
    while let Some(entries) = definitions.next().await? {
        found.extend(entries.into_iter().filter(|one| fits(&one.body)));
    }
    Ok(found)
}

/// Keeps a new definition with this id and these fields.
pub(super) async fn keep(
    asked: Asked<'_>,
    kind: Kind,
    id: Uuid,
    fields: Object,
) -> Result<Definition, ApiError> {
    let fields = match kind {
        Kind::Webhook => fields,
        // As every shape wants it.
        _ => definitions::check_new(kind, Value::Object(fields))?,
    };
    let body = definitions::whole(asked.org, id, fields, asked.ctx.clock.now_ms());
    let store = &asked.ctx.store;
    store
        .create_definition(asked.org, kind, id, body.clone(), &[])
        .await?;
    Ok(Definition { id, version: 1, body })
}

/// Writes changes into a definition; null takes a field away.
pub(super) async fn change(
    asked: Asked<'_>,
    kind: Kind,
    read: Definition,
    changes: &Object,
) -> Result<Definition, ApiError> {
    let mut body = definitions::changed(&read.body, changes);
    if kind != Kind::Webhook {
        // As every shape wants it.
        definitions::check_new(kind, definitions::without_own(json!(body)))?;
    }
    body.insert("updatedAt".to_owned(), json!(iso(asked.ctx.clock.now_ms())));
    let body = Value::Object(body);
    let store = &asked.ctx.store;
    store
        .update_definition(asked.org, kind, &read, body.clone(), &[])
        .await?;
    Ok(Definition {
        body,
        version: read.version + 1,
        ..read
    })
}

/// Deletes a definition that nothing else needs.
pub(super) async fn delete(asked: Asked<'_>, kind: Kind, id: Uuid) -> Answer {
    let deleted = definitions::delete(asked.ctx, asked.org, kind, &id.to_string()).await?;
    match deleted.status() {
        200 => Ok(Response::of(204, &Value::Null)),
        status => {
            let why = serde_json::from_str::<Value>(deleted.body()).unwrap_or_default();
            Err(ApiError::new(status, text(&why, "message")))
        }
    }
}

/// A text of a stored definition.
pub(super) fn text<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The fields of an object.
pub(super) fn fields(value: Value) -> Object {
    match value {
        Value::Object(fields) => fields,
        _ => Object::new(),
    }
}
