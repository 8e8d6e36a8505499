//! Structured outputs, the evaluations that use them, and what an item's results look like.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    Object, Validate,
    check::{join, length, uuid},
    kinds, lenient,
};

#[expect(clippy::ref_option, reason = "serde's signature")]
fn optional_number<S: Serializer>(value: &Option<f64>, output: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(number) => lenient::number(number, output),
        None => output.serialize_none(),
    }
}

const fn yes() -> bool {
    true
}

/// How a structured output is taken from a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StructuredOutputType {
    /// A language model reads the conversation.
    #[default]
    Ai,
    /// A regular expression is matched against the transcript.
    Regex,
}

/// The type of a value in a [`JsonSchema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SchemaType {
    /// Text.
    #[default]
    String,
    /// Any number.
    Number,
    /// A number without a fraction.
    Integer,
    /// True or false.
    Boolean,
    /// A list.
    Array,
    /// Named values.
    Object,
}

impl SchemaType {
    /// Whether a value of this type can be compared: anything but lists and objects.
    #[must_use]
    pub const fn is_primitive(self) -> bool {
        !matches!(self, Self::Array | Self::Object)
    }

    /// The type's name in JSON Schema.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

impl fmt::Display for SchemaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A JSON Schema. Keywords that are not fields here are kept in `extra`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JsonSchema {
    /// The type of the value.
    pub r#type: SchemaType,
    /// The schema of a list's items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Box<JsonSchema>>,
    /// The schemas of an object's properties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, JsonSchema>>,
    /// What the value means, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A regular expression for a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// A well-known format of a text, for example `date-time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = FORMATS.into_iter().map(Some).chain([None]).collect::<Vec<_>>()))]
    pub format: Option<String>,
    /// The properties that an object must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<Vec<String>>,
    /// The allowed values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#enum: Option<Vec<serde_json::Value>>,
    /// The schema's title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Every other keyword.
    #[serde(flatten)]
    pub extra: Object,
}

const FORMATS: [&str; 9] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
];

impl Validate for JsonSchema {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        // Another keyword (`$ref`, `allOf`, …) may say what the content is.
        if self.r#type == SchemaType::Array && self.items.is_none() && self.extra.is_empty() {
            faults.push(format!("{} is required when type is array", join(path, "items")));
        }
        if self.r#type == SchemaType::Object && self.properties.is_none() && self.extra.is_empty() {
            faults.push(format!(
                "{} is required when type is object",
                join(path, "properties")
            ));
        }
        if self
            .format
            .as_deref()
            .is_some_and(|format| !FORMATS.contains(&format))
        {
            faults.push(format!(
                "{} must be one of {}",
                join(path, "format"),
                FORMATS.join(", ")
            ));
        }
        if let Some(items) = &self.items {
            items.validate(&join(path, "items"), faults);
        }
        for (name, schema) in self.properties.iter().flatten() {
            schema.validate(&join(&join(path, "properties"), name), faults);
        }
    }
}

/// Storage rules for a structured output.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComplianceOverride {
    /// Keep the output even where HIPAA mode would drop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_store_on_hipaa_enabled: Option<bool>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// What must hold for a structured output to run at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Condition {
    /// The conversation has enough messages.
    MinMessages(MinMessagesCondition),
    /// The call was long enough.
    MinCallDuration(MinCallDurationCondition),
    /// The call ended for one of some reasons, or for none of them.
    EndedReason(EndedReasonCondition),
}

/// At least `count` messages.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinMessagesCondition {
    /// How many, 0 or more.
    #[serde(deserialize_with = "lenient::integer")]
    #[schemars(range(min = 0))]
    pub count: i64,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// At least `seconds` long.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinCallDurationCondition {
    /// The duration in seconds, 0 or more.
    #[serde(serialize_with = "lenient::number")]
    #[schemars(range(min = 0))]
    pub seconds: f64,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// The ended reason is, or is not, among `values`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndedReasonCondition {
    /// Whether the reason must be among the values.
    pub operator: Membership,
    /// The reasons; any text.
    #[schemars(length(min = 1))]
    pub values: Vec<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// Whether a value must be in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Membership {
    /// It must be in the list.
    #[default]
    OneOf,
    /// It must not be in the list.
    NotOneOf,
}

impl Validate for Condition {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::MinMessages(c) if c.count < 0 => {
                faults.push(format!("{} must not be less than 0", join(path, "count")));
            }
            Self::MinCallDuration(c) if c.seconds < 0.0 => {
                faults.push(format!("{} must not be less than 0", join(path, "seconds")));
            }
            Self::EndedReason(c) if c.values.is_empty() => {
                faults.push(format!(
                    "{} must contain at least 1 element",
                    join(path, "values")
                ));
            }
            _ => {}
        }
    }
}

/// The definition of a structured output: the body that creates one, and the inline form in a scenario.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateStructuredOutput {
    /// How it is extracted; absent means by a language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<StructuredOutputType>,
    /// The pattern of a `regex` output, bare or as `/…/flags`, 1 to 1000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub regex: Option<String>,
    /// The model that extracts it, as an assistant's `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Object>,
    /// Storage rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance_plan: Option<ComplianceOverride>,
    /// What must hold for it to run; all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
    /// Its name, 1 to 40 characters.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// The schema of its value.
    pub schema: JsonSchema,
    /// What it extracts, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The assistants it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant_ids: Option<Vec<String>>,
    /// The workflows it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_ids: Option<Vec<String>>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

impl CreateStructuredOutput {
    /// How it is extracted.
    #[must_use]
    pub fn kind(&self) -> StructuredOutputType {
        self.r#type.unwrap_or_default()
    }
}

fn regex_length(path: &str, regex: Option<&String>, faults: &mut Vec<String>) {
    if let Some(regex) = regex {
        length(path, "regex", regex, 1, 1000, faults);
    }
}

impl Validate for CreateStructuredOutput {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        length(path, "name", &self.name, 1, 40, faults);
        regex_length(path, self.regex.as_ref(), faults);
        if self.kind() == StructuredOutputType::Regex && self.regex.is_none() {
            faults.push(format!("{} is required when type is regex", join(path, "regex")));
        }
        if self.kind() == StructuredOutputType::Regex
            && let Some(Err(why)) = self.regex.as_deref().map(crate::evaluation::compile)
        {
            faults.push(format!("{}: {why}", join(path, "regex")));
        }
        self.conditions.validate(&join(path, "conditions"), faults);
        self.schema.validate(&join(path, "schema"), faults);
    }
}

/// A request to run a structured output on conversations that are over.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["structuredOutputId"], "properties": {"structuredOutputId": {"not": {"type": "null"}}, "structuredOutput": {"type": "null"}}}, {"required": ["structuredOutput"], "properties": {"structuredOutput": {"not": {"type": "null"}}, "structuredOutputId": {"type": "null"}}}]))]
pub struct RunStructuredOutput {
    /// Whether to answer with what was found instead of keeping it.
    #[serde(default, deserialize_with = "kinds::off")]
    pub preview_enabled: bool,
    /// A stored structured output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_output_id: Option<String>,
    /// One defined in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_output: Option<CreateStructuredOutput>,
    /// The calls: one for a preview, else 1 to 100. A call's id or, also for a chat, the run item's.
    #[schemars(length(min = 1, max = 100))]
    pub call_ids: Vec<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// The most calls of one request that keeps what it finds.
const CALLS: usize = 100;

impl Validate for RunStructuredOutput {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let stored = ("structuredOutputId", self.structured_output_id.is_some());
        let inline = ("structuredOutput", self.structured_output.is_some());
        kinds::one_of(path, stored, inline, faults);
        self.structured_output
            .validate(&join(path, "structuredOutput"), faults);
        let calls = join(path, "callIds");
        if self.preview_enabled && self.call_ids.len() != 1 {
            faults.push(format!(
                "{calls} must contain exactly 1 element when previewEnabled is true"
            ));
        } else if self.call_ids.is_empty() {
            faults.push(format!("{calls} must contain at least 1 element"));
        } else if self.call_ids.len() > CALLS {
            faults.push(format!("{calls} must contain no more than {CALLS} elements"));
        }
    }
}

/// Changes to a structured output; what is absent stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStructuredOutput {
    /// How it is extracted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<StructuredOutputType>,
    /// The pattern, 1 to 1000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub regex: Option<String>,
    /// The model that extracts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Object>,
    /// Storage rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance_plan: Option<ComplianceOverride>,
    /// What must hold for it to run; `null` clears it.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub conditions: Option<Option<Vec<Condition>>>,
    /// Its name, 1 to 40 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub name: Option<String>,
    /// The schema of its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<JsonSchema>,
    /// What it extracts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The assistants it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant_ids: Option<Vec<String>>,
    /// The workflows it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_ids: Option<Vec<String>>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

impl Validate for UpdateStructuredOutput {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(name) = &self.name {
            length(path, "name", name, 1, 40, faults);
        }
        regex_length(path, self.regex.as_ref(), faults);
        if let Some(conditions) = &self.conditions {
            conditions.validate(&join(path, "conditions"), faults);
        }
        self.schema.validate(&join(path, "schema"), faults);
    }
}

/// A stored structured output.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StructuredOutput {
    /// Its id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it was last changed, RFC 3339.
    pub updated_at: String,
    /// What it is. Serialised in line with the fields above.
    #[serde(flatten)]
    pub definition: CreateStructuredOutput,
}

impl Validate for StructuredOutput {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        self.definition.validate(path, faults);
    }
}

/// A value that can be compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "must be a number, a string or a boolean")]
pub enum Primitive {
    /// True or false.
    Boolean(bool),
    /// A number.
    Number(#[serde(serialize_with = "lenient::number")] f64),
    /// Text.
    Text(String),
}

impl Primitive {
    /// The value's type in words.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Boolean(_) => "boolean",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
        }
    }

    /// Whether a value of this type can be compared with what `schema` describes.
    #[must_use]
    pub const fn fits(&self, schema: SchemaType) -> bool {
        matches!(
            (self, schema),
            (Self::Boolean(_), SchemaType::Boolean)
                | (Self::Number(_), SchemaType::Number | SchemaType::Integer)
                | (Self::Text(_), SchemaType::String)
        )
    }
}

/// How an extracted value is compared with the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Comparator {
    /// Equal.
    #[serde(rename = "=")]
    Equal,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
    /// Greater.
    #[serde(rename = ">")]
    Greater,
    /// Less.
    #[serde(rename = "<")]
    Less,
    /// Greater or equal.
    #[serde(rename = ">=")]
    GreaterOrEqual,
    /// Less or equal.
    #[serde(rename = "<=")]
    LessOrEqual,
}

impl Comparator {
    /// The comparator as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::Less => "<",
            Self::GreaterOrEqual => ">=",
            Self::LessOrEqual => "<=",
        }
    }

    /// Whether it asks for an order, which only numbers have.
    #[must_use]
    pub const fn is_ordering(self) -> bool {
        !matches!(self, Self::Equal | Self::NotEqual)
    }
}

impl fmt::Display for Comparator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One evaluation of a scenario: a structured output, stored or inline, and what its value must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["structuredOutputId"], "properties": {"structuredOutputId": {"not": {"type": "null"}}, "structuredOutput": {"type": "null"}}}, {"required": ["structuredOutput"], "properties": {"structuredOutput": {"not": {"type": "null"}}, "structuredOutputId": {"type": "null"}}}]))]
pub struct EvaluationPlanItem {
    /// The id of a stored structured output. Either this or `structured_output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub structured_output_id: Option<String>,
    /// An inline structured output with a primitive value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_output: Option<CreateStructuredOutput>,
    /// Where in an object output the value to compare is, in dot notation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How to compare.
    pub comparator: Comparator,
    /// What to compare with.
    pub value: Primitive,
    /// Whether the item fails with this evaluation; absent means that it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

impl EvaluationPlanItem {
    /// Whether the item fails with this evaluation.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required.unwrap_or(true)
    }
}

impl Validate for EvaluationPlanItem {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if self.structured_output_id.is_some() == self.structured_output.is_some() {
            let at = if path.is_empty() {
                String::new()
            } else {
                format!("{path}: ")
            };
            faults.push(format!(
                "{at}exactly one of structuredOutputId and structuredOutput must be given"
            ));
        }
        if let Some(id) = &self.structured_output_id {
            uuid(path, "structuredOutputId", id, faults);
        }
        if self.comparator.is_ordering() && !matches!(self.value, Primitive::Number(_)) {
            faults.push(format!(
                "{} must be = or != for a {}",
                join(path, "comparator"),
                self.value.type_name()
            ));
        }
        if let Some(inline) = &self.structured_output {
            let inline_path = join(path, "structuredOutput");
            inline.validate(&inline_path, faults);
            let schema = inline.schema.r#type;
            if !schema.is_primitive() {
                faults.push(format!(
                    "{} must be string, number, integer or boolean",
                    join(&inline_path, "schema.type")
                ));
            } else if !self.value.fits(schema) {
                faults.push(format!(
                    "{} must be a {schema}, as the schema says",
                    join(path, "value")
                ));
            }
            if self.path.as_deref().is_some_and(|p| !p.is_empty()) {
                faults.push(format!(
                    "{} applies only to a stored object output",
                    join(path, "path")
                ));
            }
        }
    }
}

/// What a latency expectation measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LatencyMetric {
    /// From the end of the caller's speech to the start of the agent's.
    Turn,
    /// The language model's time to its first token.
    Model,
    /// The voice's time to its first audio.
    Voice,
}

/// How a call's latencies become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Aggregation {
    /// The arithmetic mean.
    Mean,
    /// The middle value.
    Median,
    /// The 95th percentile by nearest rank.
    P95,
    /// The highest value.
    Max,
}

/// A ceiling on a latency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyExpectation {
    /// What is measured.
    pub metric: LatencyMetric,
    /// How it is aggregated.
    pub aggregation: Aggregation,
    /// The ceiling in milliseconds, itself allowed.
    #[serde(serialize_with = "lenient::number")]
    #[schemars(range(min = 0))]
    pub threshold_ms: f64,
    /// Whether the item fails with this expectation; absent means that it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

impl Validate for LatencyExpectation {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if self.threshold_ms < 0.0 {
            faults.push(format!("{} must not be less than 0", join(path, "thresholdMs")));
        }
    }
}

/// A call's mean latencies in milliseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyMetrics {
    /// How many turns were measured.
    #[serde(deserialize_with = "lenient::integer")]
    pub turn_count: i64,
    /// Mean of the whole turn.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub avg_turn: Option<f64>,
    /// Mean of the transcriber.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub avg_transcriber: Option<f64>,
    /// Mean of the language model.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub avg_model: Option<f64>,
    /// Mean of the voice.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub avg_voice: Option<f64>,
    /// Mean of endpointing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub avg_endpointing: Option<f64>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// How a latency expectation came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyEvaluationResult {
    /// What was measured.
    pub metric: LatencyMetric,
    /// How it was aggregated.
    pub aggregation: Aggregation,
    /// The ceiling in milliseconds.
    #[serde(serialize_with = "lenient::number")]
    pub threshold_ms: f64,
    /// The measured value, rounded to a millisecond; absent when skipped or never measured.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_number"
    )]
    pub actual_ms: Option<f64>,
    /// How many turns had a measurement.
    #[serde(deserialize_with = "lenient::integer")]
    pub sample_count: i64,
    /// Whether the ceiling was kept.
    pub passed: bool,
    /// Whether the item fails with it.
    #[serde(default = "yes")]
    pub required: bool,
    /// Whether it was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_skipped: Option<bool>,
    /// Why it was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// How one evaluation came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StructuredOutputEvaluationResult {
    /// The structured output's id; `inline` for an inline one.
    pub structured_output_id: String,
    /// The structured output's name.
    pub name: String,
    /// The path within an object output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The structured output's description at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The structured output's schema at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<JsonSchema>,
    /// The value found; `null` when there is none.
    #[serde(default)]
    pub extracted_value: Option<Primitive>,
    /// The value that was expected.
    pub expected_value: Primitive,
    /// How they were compared.
    pub comparator: Comparator,
    /// Whether the comparison held.
    pub passed: bool,
    /// Whether the item fails with it.
    #[serde(default = "yes")]
    pub required: bool,
    /// Why there is no value to compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_skipped: Option<bool>,
    /// Why it was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

/// An item's results.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunItemResults {
    /// One result for each evaluation, in the scenario's order.
    pub evaluations: Vec<StructuredOutputEvaluationResult>,
    /// Whether everything that is required and was not skipped passed.
    pub passed: bool,
    /// The call's latencies, where some were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_metrics: Option<LatencyMetrics>,
    /// One result for each latency expectation; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_evaluations: Option<Vec<LatencyEvaluationResult>>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::models::parse;

    fn output(kind: &str) -> Value {
        json!({"name": "booked", "schema": {"type": kind}})
    }

    #[test]
    fn what_a_client_sends_comes_back() {
        let body = json!({
            "type": "ai", "name": "n", "custom": {"a": 1}, "compliancePlan": {"forceStoreOnHipaaEnabled": true},
            "model": {"provider": "openai", "model": "gpt-4.1"},
            "conditions": [
                {"type": "minMessages", "count": 4, "x": 1},
                {"type": "minCallDuration", "seconds": 10.5},
                {"type": "endedReason", "operator": "notOneOf", "values": ["a"]}
            ],
            "schema": {"type": "object", "additionalProperties": false, "required": ["a"], "properties": {
                "a": {"type": "array", "items": {"type": "string", "enum": ["x"], "format": "date"}}
            }}
        });
        let read: CreateStructuredOutput = parse(body.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), body);
        let change: UpdateStructuredOutput = parse(json!({"name": "m", "conditions": null})).unwrap();
        assert_eq!(
            serde_json::to_value(&change).unwrap(),
            json!({"name": "m", "conditions": null})
        );
    }

    #[test]
    fn numbers_may_come_as_floats_and_go_as_integers() {
        let read: EvaluationPlanItem =
            parse(json!({"structuredOutput": output("integer"), "comparator": ">=", "value": 3.0})).unwrap();
        assert!(read.is_required());
        assert_eq!(serde_json::to_value(&read).unwrap()["value"], json!(3));
        let latency: LatencyExpectation =
            parse(json!({"metric": "turn", "aggregation": "p95", "thresholdMs": 2000.0})).unwrap();
        assert_eq!(
            serde_json::to_value(&latency).unwrap()["thresholdMs"],
            json!(2000)
        );
    }

    #[test]
    fn every_limit_is_named_with_its_path() {
        let faults = |item: Value| {
            let read = parse::<Vec<EvaluationPlanItem>>(json!([item]));
            read.err().map_or(String::new(), |invalid| invalid.to_string())
        };
        let id = "0193e6a4-0000-7000-8000-000000000000";
        for (item, fault) in [
            (
                json!({"structuredOutputId": id, "comparator": "=", "value": true, "path": null}),
                "",
            ),
            (json!({"comparator": "=", "value": 1}), "0: exactly one of"),
            (
                json!({"structuredOutputId": id, "structuredOutput": output("string"), "comparator": "=", "value": ""}),
                "0: exactly one of",
            ),
            (
                json!({"structuredOutputId": "x", "comparator": "=", "value": 1}),
                "0.structuredOutputId must be a UUID",
            ),
            (
                json!({"structuredOutputId": id, "comparator": ">", "value": true}),
                "0.comparator must be = or != for a boolean",
            ),
            (
                json!({"structuredOutputId": id, "comparator": "<=", "value": "a"}),
                "0.comparator must be = or != for a string",
            ),
            (
                json!({"structuredOutput": output("boolean"), "comparator": "=", "value": "true"}),
                "0.value must be a boolean",
            ),
            (
                json!({"structuredOutput": {"name": "o", "schema": {"type": "object", "properties": {}}}, "comparator": "=", "value": 1}),
                "0.structuredOutput.schema.type",
            ),
            (
                json!({"structuredOutput": {"name": "", "schema": {"type": "integer"}}, "comparator": "=", "value": 1}),
                "0.structuredOutput.name must be between 1 and 40 characters",
            ),
            (
                json!({"structuredOutput": {"name": "r", "type": "regex", "schema": {"type": "boolean"}}, "comparator": "=", "value": true}),
                "0.structuredOutput.regex is required",
            ),
            (
                json!({"structuredOutputId": id, "comparator": "~", "value": 1}),
                "comparator: unknown variant",
            ),
            (
                json!({"structuredOutputId": id, "comparator": "=", "value": null}),
                "must be a number, a string or a boolean",
            ),
        ] {
            let found = faults(item);
            assert!(
                found.contains(fault) && found.is_empty() == fault.is_empty(),
                "{fault}: {found}"
            );
        }
        for (schema, fault) in [
            (json!({"type": "array"}), "schema.items is required"),
            (json!({"type": "object"}), "schema.properties is required"),
            (
                json!({"type": "array", "items": {"type": "string", "format": "colour"}}),
                "schema.items.format must be one of",
            ),
        ] {
            let found = parse::<CreateStructuredOutput>(json!({"name": "n", "schema": schema})).unwrap_err();
            assert!(found.to_string().contains(fault), "{found}");
        }
        assert!(
            parse::<CreateStructuredOutput>(
                json!({"name": "n", "schema": {"type": "array", "prefixItems": []}})
            )
            .is_ok()
        );
    }

    #[test]
    fn what_is_run_and_on_which_calls_is_checked() {
        let calls = |count: usize| vec!["c"; count];
        for (body, fault) in [
            (json!({"structuredOutputId": "x", "callIds": ["c"]}), ""),
            (
                json!({"structuredOutputId": null, "structuredOutput": output("array"), "callIds": ["c"]}),
                "structuredOutput.schema.items is required",
            ),
            (
                json!({"structuredOutput": output("string"), "callIds": calls(100), "previewEnabled": null}),
                "",
            ),
            (
                json!({"structuredOutput": output("string"), "callIds": calls(101)}),
                "no more than 100",
            ),
            (
                json!({"structuredOutput": output("string"), "callIds": []}),
                "at least 1",
            ),
            (
                json!({"structuredOutput": output("string"), "callIds": calls(2), "previewEnabled": true}),
                "exactly 1",
            ),
            (json!({"structuredOutput": output("string")}), "callIds"),
            (json!({"callIds": ["c"]}), "must be given"),
            (
                json!({"structuredOutputId": "x", "structuredOutput": output("string"), "callIds": ["c"]}),
                "cannot be combined",
            ),
            (
                json!({"structuredOutputId": "x", "callIds": ["c"], "previewEnabled": "yes"}),
                "previewEnabled",
            ),
        ] {
            let found = parse::<RunStructuredOutput>(body).err();
            let found = found.map_or(String::new(), |invalid| invalid.to_string());
            assert!(
                found.contains(fault) && found.is_empty() == fault.is_empty(),
                "{fault}: {found}"
            );
        }
    }

    #[test]
    fn an_absent_extracted_value_is_null() {
        let result: StructuredOutputEvaluationResult = serde_json::from_value(json!({
            "structuredOutputId": "inline", "name": "n", "expectedValue": true, "comparator": "=", "passed": false
        }))
        .unwrap();
        let out = serde_json::to_value(&result).unwrap();
        assert_eq!(out.get("extractedValue"), Some(&Value::Null));
        assert!(out.get("error").is_none());
    }
}
