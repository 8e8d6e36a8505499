//! The description of the API in OpenAPI 3.1, made from the table of operations and the types of the models.
//!
//! It is not made where requests are answered: the committed copy is served, and a test sees that it is what [`document`] makes.

pub mod answers;
pub(crate) mod examples;
pub(crate) mod parameters;

use std::collections::BTreeSet;

use ringback_shared::models::{page::PaginationMeta, run::PaymentRequired, simulation::InUseConflict};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::operations::{self, Operation};
use parameters::Parameter;

/// Gives the schema of a type, or a reference to it.
pub(crate) type Model = fn(&mut SchemaGenerator) -> Schema;

/// The [`Model`] of a type.
pub(crate) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The body that an operation takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Body {
    pub(crate) schema: Model,
    /// As JSON; empty where a reader needs none.
    pub(crate) example: &'static str,
}

/// What an operation answers when it does what it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// A status and an object.
    One(u16, Model),
    /// A list of the first, or a page of the second.
    List(Model, Model),
}

/// How an operation may refuse. That the key is wrong and that something is out of order is said of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the request is wrong.
    BadRequest,
    /// 401: the key is missing or wrong.
    Unauthorized,
    /// 402: the organization may not spend more.
    PaymentRequired,
    /// 404: it is not there, or it is another organization's.
    NotFound,
    /// 409: somebody else changed it, or the `Idempotency-Key` was used for something else.
    Conflict,
    /// 409: something else needs it.
    InUse,
    /// 413: it is too large to be read or kept.
    TooLarge,
    /// 424: a model did not do its part.
    Model,
    /// 429: there were too many requests.
    TooManyRequests,
    /// 500: a fault of the API.
    Internal,
    /// 503: what the API needs is not available at the moment.
    Unavailable,
}

impl Refusal {
    const ALL: [Self; 11] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::PaymentRequired,
        Self::NotFound,
        Self::Conflict,
        Self::InUse,
        Self::TooLarge,
        Self::Model,
        Self::TooManyRequests,
        Self::Internal,
        Self::Unavailable,
    ];

    /// What every operation that asks for a key may answer.
    const ALWAYS: [Self; 4] = [
        Self::Unauthorized,
        Self::TooManyRequests,
        Self::Internal,
        Self::Unavailable,
    ];

    const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::PaymentRequired => 402,
            Self::NotFound => 404,
            Self::Conflict | Self::InUse => 409,
            Self::TooLarge => 413,
            Self::Model => 424,
            Self::TooManyRequests => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is wrong; the message says how.",
            Self::Unauthorized => "The API key is missing or wrong.",
            Self::PaymentRequired => "The organization may not spend more.",
            Self::NotFound => "It is not there, or it is another organization's.",
            Self::Conflict => {
                "Somebody else changed it, or the Idempotency-Key was used for another request."
            }
            Self::InUse => "A simulation uses it.",
            Self::TooLarge => "It is too large.",
            Self::Model => "The language model that the answer depends on did not do its part.",
            Self::TooManyRequests => "There were too many requests; try again later.",
            Self::Internal => "A fault of the API.",
            Self::Unavailable => "What the API needs is not available at the moment; try again.",
        }
    }

    /// The schema of its body. Some refusals come from what stands before the API, which says a message only.
    fn schema(self, generator: &mut SchemaGenerator) -> Value {
        let error = json!({ "$ref": "#/components/schemas/Error" });
        match self {
            Self::PaymentRequired => generator.subschema_for::<PaymentRequired>().to_value(),
            Self::InUse => generator.subschema_for::<InUseConflict>().to_value(),
            Self::TooLarge | Self::TooManyRequests | Self::Internal | Self::Unavailable => json!({
                "anyOf": [error, { "$ref": "#/components/schemas/Message" }]
            }),
            _ => error,
        }
    }

    fn response(self, generator: &mut SchemaGenerator) -> Value {
        let mut response = json!({
            "description": self.about(),
            "content": content(self.schema(generator)),
        });
        if self == Self::Unauthorized {
            response["headers"] = json!({ "WWW-Authenticate": {
                "description": "What kind of key is asked for.", "required": true, "schema": { "type": "string" },
            }});
        }
        response
    }
}

/// What is said about an operation besides its method and path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    /// Its name for programs.
    pub(crate) id: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) query: &'static [&'static [Parameter]],
    /// Whether an `Idempotency-Key` keeps it from being done twice.
    pub(crate) idempotent: bool,
    pub(crate) body: Option<Body>,
    /// Whether the body may be left out.
    pub(crate) optional: bool,
    pub(crate) answer: Answer,
    /// Where in the answer to a creation the id of what was created is.
    pub(crate) created: &'static str,
    pub(crate) refuses: &'static [Refusal],
}

impl About {
    /// What a line of the table does not have to say.
    pub(crate) const NOTHING: Self = Self {
        id: "",
        tag: "",
        summary: "",
        query: &[],
        idempotent: false,
        body: None,
        optional: false,
        answer: Answer::One(200, schema_of::<answers::Health>),
        created: "/id",
        refuses: &[],
    };
}

/// Generators for what is read and for what is written: a field with a default is optional in the one and always there in the
/// other.
struct Generators {
    input: SchemaGenerator,
    output: SchemaGenerator,
}

impl Generators {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            input: settings().for_deserialize().into_generator(),
            output: settings().for_serialize().into_generator(),
        }
    }
}

/// Makes the description.
///
/// # Errors
/// An example is not JSON.
pub fn document() -> Result<Value, serde_json::Error> {
    let mut generators = Generators::new();
    let mut paths = Map::new();
    let mut bodies = Map::new();
    let mut tags: Vec<&str> = Vec::new();
    for operation in operations::all() {
        if let Some(body) = operation.about.body {
            bodies.insert(
                operation.about.id.to_owned(),
                (body.schema)(&mut generators.input).to_value(),
            );
        }
        if !tags.contains(&operation.about.tag) {
            tags.push(operation.about.tag);
        }
        let described = described(operation, &mut generators.output);
        method_of(&mut paths, operation.path, operation.method, described);
    }
    for (event, what) in [("call-started", "has started"), ("call-ended", "is over")] {
        let path = format!("/hooks/{{endpointId}}/{event}");
        method_of(&mut paths, &path, "POST", webhook(event, what));
    }
    let responses: Map<String, Value> = Refusal::ALL
        .into_iter()
        .map(|refusal| (format!("{refusal:?}"), refusal.response(&mut generators.output)))
        .collect();
    let schemas = schemas(&mut bodies, &mut generators);
    for operation in operations::all() {
        let (Some(body), Some(schema)) = (operation.about.body, bodies.remove(operation.about.id)) else {
            continue;
        };
        let mut content = content(schema);
        if !body.example.is_empty() {
            let example: Value = serde_json::from_str(body.example)?;
            content["application/json"]["examples"] = json!({ "example": { "value": example } });
        }
        paths[operation.path][operation.method.to_lowercase()]["requestBody"] =
            json!({ "required": !operation.about.optional, "content": content });
    }
    tags.push("Webhooks");
    let tags: Value = tags.into_iter().map(|name| json!({ "name": name })).collect();
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ringback",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Open, self-hosted simulation testing for voice and chat agents",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": { "key": {
                "type": "http", "scheme": "bearer", "description": "An API key of an organization.",
            }},
        },
    }))
}

fn method_of(paths: &mut Map<String, Value>, path: &str, method: &str, operation: Value) {
    let methods = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    methods[method.to_lowercase()] = operation;
}

fn content(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

/// The names in a path's template.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// An operation, but for the body that it takes.
fn described(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let about = &operation.about;
    let mut taken: Vec<Value> = names(operation.path).map(path_parameter).collect();
    taken.extend(about.query.iter().copied().flatten().map(Parameter::describe));
    if about.idempotent {
        taken.push(json!({
            "name": "Idempotency-Key", "in": "header",
            "description": "The same request with the same key is done once; the key is kept for a day at least.",
            "schema": { "type": "string", "pattern": "^[ -~]*$", "maxLength": 255 },
        }));
    }
    let (status, schema) = match about.answer {
        Answer::One(status, model) => (status, model(generator).to_value()),
        Answer::List(bare, paged) => {
            let (bare, paged) = (bare(generator).to_value(), paged(generator).to_value());
            let metadata = generator.subschema_for::<PaginationMeta>().to_value();
            (
                200,
                json!({ "oneOf": [
                    {
                        "type": "array",
                        "description": "Without page, limit and cursor.",
                        "items": bare,
                    },
                    {
                        "type": "object",
                        "description": "With page, limit or cursor.",
                        "required": ["results", "metadata"],
                        "properties": { "results": { "type": "array", "items": paged }, "metadata": metadata },
                    },
                ]}),
            )
        }
    };
    let mut answer = json!({ "description": about.summary, "content": content(schema) });
    if status == 201 {
        let member = format!("{}/{{id}}", operation.path);
        let links: Map<String, Value> = operations::all()
            .filter(|other| other.path.starts_with(&member) && names(other.path).count() == 1)
            .map(|other| {
                let id = format!("$response.body#{}", about.created);
                let link = json!({ "operationId": other.about.id, "parameters": { "id": id } });
                (other.about.id.to_owned(), link)
            })
            .collect();
        if !links.is_empty() {
            answer["links"] = Value::Object(links);
        }
    }
    let mut responses = Map::new();
    responses.insert(status.to_string(), answer);
    let always = Refusal::ALWAYS.iter().filter(|_| !operation.action.is_public());
    for refusal in about.refuses.iter().chain(always) {
        let reference = json!({ "$ref": format!("#/components/responses/{refusal:?}") });
        responses.insert(refusal.status().to_string(), reference);
    }
    let mut described = json!({
        "operationId": about.id,
        "tags": [about.tag],
        "summary": about.summary,
        "responses": responses,
    });
    if !taken.is_empty() {
        described["parameters"] = json!(taken);
    }
    if operation.action.is_public() {
        described["security"] = json!([]);
    }
    described
}

fn path_parameter(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "format": "uuid" } })
}

/// A route for a provider's webhooks, which are answered by functions of their own.
fn webhook(event: &str, what: &str) -> Value {
    let header = |name: &str, about: &str| json!({ "name": name, "in": "header", "required": true, "description": about, "schema": { "type": "string" } });
    let refused = |about: &str| json!({ "description": about, "content": content(json!({ "$ref": "#/components/schemas/Error" })) });
    let or_before = |about: &str| {
        json!({ "description": about, "content": content(json!({ "anyOf": [
            { "$ref": "#/components/schemas/Error" }, { "$ref": "#/components/schemas/Message" },
        ]})) })
    };
    json!({
        "operationId": if event == "call-started" { "callStarted" } else { "callEnded" },
        "tags": ["Webhooks"],
        "summary": format!("Takes the webhook of a voice provider that says that a call {what}"),
        "description": "Signed by the rules of Standard Webhooks with a secret of the endpoint. infra/PROVIDER.md says what is in it.",
        "security": [],
        "parameters": [
            path_parameter("endpointId"),
            header("webhook-id", "The event's id, the same each time that it is sent."),
            header("webhook-timestamp", "When it was sent, in seconds since the Unix epoch."),
            header("webhook-signature", "`v1,` and the HMAC-SHA256 over id, time and body in base64; several are separated by spaces."),
        ],
        "requestBody": { "required": true, "content": content(json!({ "type": "object" })) },
        "responses": {
            "200": refused("It is kept, now or before."),
            "400": refused("The signature is right, but it cannot be read."),
            "401": refused("The signature is missing or wrong, or the time is too far from the clock."),
            "404": refused("There is no such endpoint, or the call is not one of its calls."),
            "413": or_before("It is too large."),
            "500": or_before("A fault of the API."),
            "503": or_before("It could not be kept; send it again."),
        },
    })
}

const REFERENCE: &str = "#/components/schemas/";

/// All schemas. What is read in another way than it is written is there twice, and the one that is read is called `…Input`, also
/// in `bodies`.
fn schemas(bodies: &mut Map<String, Value>, generators: &mut Generators) -> Map<String, Value> {
    let mut input = generators.input.take_definitions(true);
    let mut output = generators.output.take_definitions(true);
    for schema in input.values_mut().chain(output.values_mut()) {
        walk(schema, &mut plain);
    }
    for schema in output.values_mut() {
        walk(schema, &mut with_formats);
    }
    let mut differ: BTreeSet<String> = input
        .iter()
        .filter(|(name, schema)| output.get(*name).is_some_and(|written| written != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    // What names something that differs is another thing, too.
    loop {
        let more: Vec<String> = input
            .iter()
            .filter(|(name, schema)| {
                output.contains_key(*name) && !differ.contains(*name) && names_one_of(schema, &differ)
            })
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        differ.extend(more);
    }
    let mut rename = |object: &mut Map<String, Value>| {
        let name = object
            .get("$ref")
            .and_then(referred)
            .filter(|name| differ.contains(*name));
        if let Some(name) = name {
            let name = format!("{REFERENCE}{name}Input");
            object.insert("$ref".to_owned(), json!(name));
        }
    };
    for schema in input.values_mut().chain(bodies.values_mut()) {
        walk(schema, &mut rename);
    }
    let mut all = output;
    for (name, schema) in input {
        let name = if differ.contains(&name) {
            format!("{name}Input")
        } else {
            name
        };
        all.insert(name, schema);
    }
    all.insert(
        "Error".to_owned(),
        json!({
            "type": "object",
            "description": "Why a request is refused.",
            "required": ["message", "error", "statusCode"],
            "properties": {
                "message": {
                    "description": "One sentence, or one for each fault.",
                    "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
                },
                "error": { "type": ["string", "null"], "description": "The status in words." },
                "statusCode": { "type": "integer" },
            },
        }),
    );
    all.insert(
        "Message".to_owned(),
        json!({
            "type": "object",
            "description": "A refusal of what stands before the API.",
            "required": ["message"],
            "properties": { "message": { "type": "string" } },
        }),
    );
    all
}

fn referred(reference: &Value) -> Option<&str> {
    reference.as_str()?.strip_prefix(REFERENCE)
}

fn names_one_of(schema: &Value, wanted: &BTreeSet<String>) -> bool {
    match schema {
        Value::Object(object) => {
            object
                .get("$ref")
                .and_then(referred)
                .is_some_and(|name| wanted.contains(name))
                || object.values().any(|inner| names_one_of(inner, wanted))
        }
        Value::Array(list) => list.iter().any(|inner| names_one_of(inner, wanted)),
        _ => false,
    }
}

/// Changes every object in `value`, the inner ones first.
fn walk(value: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            for inner in object.values_mut() {
                walk(inner, change);
            }
            change(object);
        }
        Value::Array(list) => {
            for inner in list {
                walk(inner, change);
            }
        }
        _ => {}
    }
}

/// Writes a choice of constants as an enum, and leaves out formats that only say how a number is kept here.
fn plain(object: &mut Map<String, Value>) {
    let kept = object.get("format").and_then(Value::as_str);
    if matches!(kept, Some("int64" | "uint32" | "double")) {
        object.remove("format");
    }
    let constants: Option<Vec<Value>> = object
        .get("oneOf")
        .and_then(Value::as_array)
        .and_then(|variants| {
            variants
                .iter()
                .map(|variant| variant.get("const").cloned())
                .collect()
        });
    if let Some(constants) = constants.filter(|constants| constants.iter().all(Value::is_string)) {
        object.remove("oneOf");
        object.insert("type".to_owned(), json!("string"));
        object.insert("enum".to_owned(), Value::Array(constants));
    }
}

/// Says of the texts in what is written which are ids and times: they are by their names.
fn with_formats(object: &mut Map<String, Value>) {
    let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, schema) in properties {
        let format = match name.as_str() {
            "id" | "orgId" | "runId" | "sessionId" | "callId" => "uuid",
            name if name.ends_with("At") => "date-time",
            _ => continue,
        };
        let is_text = [json!("string"), json!(["string", "null"])].contains(&schema["type"]);
        if is_text && schema.get("format").is_none() {
            schema["format"] = json!(format);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_copy_is_what_the_code_says() {
        let committed: Value = serde_json::from_str(crate::OPENAPI).unwrap();
        assert!(
            document().unwrap() == committed,
            "functions/api/openapi.json is out of date; write it anew:\n\
             cargo run -- openapi > functions/api/openapi.json"
        );
    }

    #[test]
    fn every_reference_leads_to_something_and_every_operation_has_a_name_of_its_own() {
        let document = document().unwrap();
        let mut references = 0;
        let mut lost = Vec::new();
        walk(&mut document.clone(), &mut |object| {
            if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
                references += 1;
                if document.pointer(reference.trim_start_matches('#')).is_none() {
                    lost.push(reference.to_owned());
                }
            }
        });
        assert!(lost.is_empty() && references > 100, "{references}: {lost:?}");
        let ids: BTreeSet<&str> = operations::all().map(|operation| operation.about.id).collect();
        assert_eq!(ids.len(), operations::all().count());
        assert!(!ids.contains(""));
    }

    #[test]
    fn what_is_read_may_leave_out_what_is_always_written() {
        let document = document().unwrap();
        let schema = |name: &str| document["components"]["schemas"][name].clone();
        let required = |name: &str| schema(name)["required"].clone();
        assert!(
            required("ScenarioToolMock")
                .as_array()
                .unwrap()
                .contains(&json!("enabled"))
        );
        assert_eq!(required("ScenarioToolMockInput"), json!(["toolName"]));
        assert_eq!(
            document["paths"]["/eval/simulation/scenario"]["post"]["requestBody"]["content"]["application/json"]
                ["schema"],
            json!({ "$ref": "#/components/schemas/CreateScenarioInput" })
        );
        assert_eq!(
            schema("Personality")["properties"]["orgId"]["type"],
            json!(["string", "null"])
        );
        assert!(
            required("Personality")
                .as_array()
                .unwrap()
                .contains(&json!("orgId"))
        );
        assert_eq!(schema("ItemStatus")["enum"].as_array().unwrap().len(), 6);
        let target = schema("CreateSimulationRun")["properties"]["iterations"].clone();
        assert_eq!((&target["minimum"], &target["maximum"]), (&json!(1), &json!(10)));
    }

    #[test]
    fn every_example_is_what_its_schema_says() {
        for operation in operations::all() {
            let Some(body) = operation.about.body.filter(|body| !body.example.is_empty()) else {
                continue;
            };
            assert!(serde_json::from_str::<Value>(body.example).unwrap().is_object());
        }
    }
}
