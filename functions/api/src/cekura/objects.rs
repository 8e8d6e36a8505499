//! What is stored, by the integer ids that clients of Cekura know it by.

use std::collections::{BTreeMap, HashMap};

use ringback_shared::{
    clock::iso,
    context::Context,
    ids,
    models::Object,
    store::{Definition, Kind, Numbered},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Answer, Fields, Paging, Refusal, nothing};
use crate::{
    built_in, definitions,
    filters::Definitions,
    http::{Request, Response},
};

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) ctx: &'a Context,
    pub(super) org: Uuid,
    pub(super) request: &'a Request,
    /// Which version of the API: 1 or 2.
    pub(super) version: u8,
}

/// The integer ids of things, read at once.
#[derive(Debug, Default)]
pub(super) struct Numbers(HashMap<(Numbered, Uuid), u64>);

impl Numbers {
    /// Adds those of these things.
    pub(super) async fn load(
        &mut self,
        asked: Asked<'_>,
        what: Numbered,
        ids: impl IntoIterator<Item = Uuid>,
    ) -> Result<(), Refusal> {
        let mut new: Vec<Uuid> = ids
            .into_iter()
            .filter(|id| !self.0.contains_key(&(what, *id)))
            .collect();
        new.sort_unstable();
        new.dedup();
        let numbers = asked.ctx.store.numbers(asked.org, what, &new).await?;
        self.0.extend(new.into_iter().map(|id| (what, id)).zip(numbers));
        Ok(())
    }

    /// Adds those of all definitions that are named.
    pub(super) async fn load_all(
        &mut self,
        asked: Asked<'_>,
        named: impl IntoIterator<Item = (Kind, Uuid)>,
    ) -> Result<(), Refusal> {
        let mut by_kind: HashMap<Kind, Vec<Uuid>> = HashMap::new();
        for (kind, id) in named {
            by_kind.entry(kind).or_default().push(id);
        }
        for (kind, ids) in by_kind {
            self.load(asked, Numbered::Definition(kind), ids).await?;
        }
        Ok(())
    }

    pub(super) fn of_run(&self, run: Uuid) -> Option<u64> {
        self.0.get(&(Numbered::Run, run)).copied()
    }

    pub(super) fn of(&self, kind: Kind, id: Uuid) -> Option<u64> {
        self.0.get(&(Numbered::Definition(kind), id)).copied()
    }

    /// The number of what a text names by its UUID; null where it names nothing.
    pub(super) fn named(&self, kind: Kind, id: Option<&Value>) -> Value {
        let id = id.and_then(Value::as_str).and_then(|id| Uuid::try_parse(id).ok());
        json!(id.and_then(|id| self.of(kind, id)))
    }

    /// The numbers of what a list of texts names.
    pub(super) fn all_named(&self, kind: Kind, ids: Option<&Value>) -> Value {
        uuids(ids)
            .filter_map(|id| self.of(kind, id))
            .map(Value::from)
            .collect()
    }
}

/// The UUIDs in a text or a list of texts.
pub(super) fn uuids(ids: Option<&Value>) -> impl Iterator<Item = Uuid> {
    let (one, list) = match ids {
        Some(Value::Array(list)) => (None, list.as_slice()),
        one => (one, &[][..]),
    };
    let texts = one.into_iter().chain(list).filter_map(Value::as_str);
    texts.filter_map(|id| Uuid::try_parse(id).ok())
}

/// The number in a path.
pub(super) fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| Refusal::not_found())
}

/// The definition with this number.
pub(super) async fn found(asked: Asked<'_>, kind: Kind, number: u64) -> Result<Definition, Refusal> {
    let known = asked.ctx.store.numbered(asked.org, &[number]).await?;
    match known.get(&number) {
        Some((Numbered::Definition(of), id)) if *of == kind => {
            let found = definitions::found(asked.ctx, asked.org, kind, &id.to_string()).await;
            found.map_err(|error| match error.is_not_found() {
                true => Refusal::not_found(),
                false => error.into(),
            })
        }
        _ => Err(Refusal::not_found()),
    }
}

/// The definition whose number a parameter of the query is, if it is there.
pub(super) async fn asked_for(asked: Asked<'_>, name: &str, kind: Kind) -> Result<Option<Uuid>, Refusal> {
    match asked.request.query.get(name) {
        Some(text) => Ok(Some(found(asked, kind, number(text)?).await?.id)),
        None => Ok(None),
    }
}

/// The definitions that a field names, in its order. What is not there is a fault of the field.
pub(super) async fn all_found(
    asked: Asked<'_>,
    fields: &mut Fields,
    name: &str,
    kind: Kind,
    numbers: &[u64],
) -> Result<Vec<Definition>, Refusal> {
    let known = asked.ctx.store.numbered(asked.org, numbers).await?;
    let mut ids = BTreeMap::new();
    for &number in numbers {
        if let Some((Numbered::Definition(of), id)) = known.get(&number)
            && *of == kind
        {
            ids.insert(number, *id);
        }
    }
    let wanted: Vec<Uuid> = ids.values().copied().collect();
    let stored = asked.ctx.store.definitions(asked.org, kind, &wanted).await?;
    let built_in = wanted.iter().filter_map(|&id| built_in::get(kind, id));
    let by_id: HashMap<Uuid, Definition> = stored
        .into_iter()
        .chain(built_in)
        .map(|one| (one.id, one))
        .collect();
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        match ids.get(number).and_then(|id| by_id.get(id)) {
            Some(definition) => found.push(definition.clone()),
            None => fields.wrong(name, format!("Invalid pk \"{number}\" - object does not exist.")),
        }
    }
    Ok(found)
}

/// The definition that a field names, if it names one.
pub(super) async fn named(
    asked: Asked<'_>,
    fields: &mut Fields,
    name: &str,
    kind: Kind,
) -> Result<Option<Definition>, Refusal> {
    let Some(number) = fields.id(name) else {
        return Ok(None);
    };
    Ok(all_found(asked, fields, name, kind, &[number]).await?.pop())
}

/// The definitions that a field names, if it is there.
pub(super) async fn all_named(
    asked: Asked<'_>,
    fields: &mut Fields,
    name: &str,
    kind: Kind,
) -> Result<Option<Vec<Definition>>, Refusal> {
    let Some(numbers) = fields.ids(name) else {
        return Ok(None);
    };
    all_found(asked, fields, name, kind, &numbers).await.map(Some)
}

/// Whether a definition is in a list.
pub(super) type Filter = Box<dyn Fn(&Value) -> bool + Send>;

/// How definitions of one kind are written and shown.
pub(super) trait Resource {
    const KIND: Kind;
    /// Whether a list of them is the bare list.
    const BARE: bool;

    /// Reads what a client wrote: the fields as they are stored, over those of `stored` where there is one. `fields` is all of what
    /// clients write, also where the request changes only some of it.
    async fn write(asked: Asked<'_>, fields: Fields, stored: Option<&Value>) -> Result<Object, Refusal>;

    /// The definitions that one names.
    fn names(body: &Value) -> Vec<(Kind, Uuid)>;

    /// One as clients see it, without its id and times.
    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object;

    /// Whether it is in a list that was asked for with these query parameters.
    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal>;
}

/// Definitions as clients see them.
pub(super) async fn shown<R: Resource>(
    asked: Asked<'_>,
    definitions: &[Definition],
) -> Result<Vec<Value>, Refusal> {
    let mut numbers = Numbers::default();
    let named = definitions.iter().flat_map(|one| R::names(&one.body));
    let own = definitions.iter().map(|one| (R::KIND, one.id));
    numbers.load_all(asked, named.chain(own)).await?;
    Ok(definitions
        .iter()
        .map(|one| {
            let mut shown = R::show(asked, &one.body, &numbers);
            shown.insert("id".to_owned(), json!(numbers.of(R::KIND, one.id)));
            for (name, stored) in [("created_at", "createdAt"), ("updated_at", "updatedAt")] {
                shown.insert(name.to_owned(), one.body.get(stored).cloned().unwrap_or_default());
            }
            Value::Object(shown)
        })
        .collect())
}

async fn one<R: Resource>(asked: Asked<'_>, status: i64, definition: Definition) -> Answer {
    let mut shown = shown::<R>(asked, &[definition]).await?;
    Ok(Response::of(status, &shown.pop().unwrap_or_default()))
}

/// All definitions of a kind that fit the query, newest first.
pub(super) async fn all<R: Resource>(asked: Asked<'_>) -> Result<Vec<Definition>, Refusal> {
    let fits = R::filter(asked).await?;
    let mut found = Vec::new();
    let mut definitions = Definitions::all(asked.ctx, asked.org, R::KIND);
    while let Some(entries) = definitions.next().await? {
        found.extend(entries.into_iter().filter(|one| fits(&one.body)));
    }
    Ok(found)
}

pub(super) async fn list<R: Resource>(asked: Asked<'_>) -> Answer {
    let paging = Paging::of(&asked.request.query)?;
    let found = all::<R>(asked).await?;
    if R::BARE {
        return Ok(Response::ok(shown::<R>(asked, &found).await?)?);
    }
    let places = paging.places(found.len())?;
    let entries = shown::<R>(asked, found.get(places).unwrap_or_default()).await?;
    paging.answer(&asked.ctx.config.public_url, asked.request, found.len(), entries)
}

pub(super) async fn read<R: Resource>(asked: Asked<'_>, id: &str) -> Answer {
    let definition = found(asked, R::KIND, number(id)?).await?;
    one::<R>(asked, 200, definition).await
}

/// Keeps a new definition of what a client wrote.
pub(super) async fn keep<R: Resource>(asked: Asked<'_>, fields: Fields) -> Result<Definition, Refusal> {
    let fields = R::write(asked, fields, None).await?;
    keep_written::<R>(asked, fields).await
}

/// Keeps a new definition with these fields.
pub(super) async fn keep_written<R: Resource>(
    asked: Asked<'_>,
    fields: Object,
) -> Result<Definition, Refusal> {
    let now = asked.ctx.clock.now_ms();
    let id = ids::new_id(now);
    let body = definitions::whole(asked.org, id, fields, now);
    asked
        .ctx
        .store
        .create_definition(asked.org, R::KIND, id, body.clone(), &[])
        .await?;
    Ok(Definition { id, version: 1, body })
}

pub(super) async fn create<R: Resource>(asked: Asked<'_>) -> Answer {
    let definition = keep::<R>(asked, Fields::of(asked.request)?).await?;
    one::<R>(asked, 201, definition).await
}

/// Changes a definition: all of it, or `partly` what the request names.
pub(super) async fn update<R: Resource>(asked: Asked<'_>, id: &str, partly: bool) -> Answer {
    let Value::Object(body) = asked.request.optional_json()? else {
        return Err(Refusal::list("Send a JSON object."));
    };
    let read = found(asked, R::KIND, number(id)?).await?;
    let changed = change::<R>(asked, read, body, partly).await?;
    one::<R>(asked, 200, changed).await
}

/// Writes changes into a definition.
pub(super) async fn change<R: Resource>(
    asked: Asked<'_>,
    read: Definition,
    body: Object,
    partly: bool,
) -> Result<Definition, Refusal> {
    built_in::refuse(R::KIND, &read.id.to_string(), "changed")?;
    let fields = if partly {
        let mut shown = shown::<R>(asked, std::slice::from_ref(&read)).await?;
        let mut all = match shown.pop() {
            Some(Value::Object(all)) => all,
            _ => Object::new(),
        };
        all.extend(body);
        all
    } else {
        body
    };
    let fields = R::write(asked, Fields::new(fields), Some(&read.body)).await?;
    let mut changed = Object::new();
    for own in ["id", "orgId", "createdAt"] {
        changed.insert(own.to_owned(), read.body.get(own).cloned().unwrap_or_default());
    }
    changed.insert("updatedAt".to_owned(), json!(iso(asked.ctx.clock.now_ms())));
    changed.extend(fields);
    let changed = Value::Object(changed);
    asked
        .ctx
        .store
        .update_definition(asked.org, R::KIND, &read, changed.clone(), &[])
        .await?;
    Ok(Definition {
        body: changed,
        version: read.version + 1,
        ..read
    })
}

pub(super) async fn delete<R: Resource>(asked: Asked<'_>, id: &str) -> Answer {
    let definition = found(asked, R::KIND, number(id)?).await?;
    let deleted = definitions::delete(asked.ctx, asked.org, R::KIND, &definition.id.to_string()).await?;
    match deleted.status() {
        200 => nothing(),
        // Something else still needs it.
        _ => Err(Refusal::list(format!(
            "It is still used: {}",
            serde_json::from_str::<Value>(deleted.body())
                .ok()
                .and_then(|body| body.get("message")?.as_str().map(str::to_owned))
                .unwrap_or_default()
        ))),
    }
}

/// The fields of the body that are kept for clients of Cekura only.
pub(super) fn own(body: &Value) -> Object {
    body.get("cekura")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default()
}

/// A text of a stored definition.
pub(super) fn text<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or_default()
}
