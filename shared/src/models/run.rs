//! Simulation runs and their items.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::assistant::{CreateAssistant, CreateSquad};
use super::evaluation::SimulationRunItemResults;
use super::schedule::Notify;
use super::simulation::{CreatePersonality, CreateScenario, NAME, SimulationHook, TargetType};
use super::{Object, Validate, check, kinds, lenient};

kinds::tagged! {
    /// What a run plays.
    SimulationRunEntry by "type" {
        /// One simulation, stored or put together in place.
        Simulation(Box<SimulationEntry>) = "simulation",
        /// Every simulation of a suite.
        SimulationSuite(SuiteEntry) = "simulationSuite",
    }
}

kinds::tagged! {
    /// What a run tests.
    SimulationRunTarget by "type" {
        /// One assistant.
        Assistant(TargetAssistant) = "assistant",
        /// A squad of assistants.
        Squad(TargetSquad) = "squad",
    }
}

/// A simulation to play: a stored one, or a scenario and a personality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("anyOf" = [{"required": ["simulationId"], "properties": {"simulationId": {"type": "string"}}}, {"allOf": [{"oneOf": [{"required": ["scenarioId"], "properties": {"scenarioId": {"not": {"type": "null"}}, "scenario": {"type": "null"}}}, {"required": ["scenario"], "properties": {"scenario": {"not": {"type": "null"}}, "scenarioId": {"type": "null"}}}]}, {"oneOf": [{"required": ["personalityId"], "properties": {"personalityId": {"not": {"type": "null"}}, "personality": {"type": "null"}}}, {"required": ["personality"], "properties": {"personality": {"not": {"type": "null"}}, "personalityId": {"type": "null"}}}]}]}]))]
pub struct SimulationEntry {
    /// A stored simulation; every other field is then ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub simulation_id: Option<String>,
    /// A stored scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub scenario_id: Option<String>,
    /// A scenario defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario: Option<CreateScenario>,
    /// A stored personality.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub personality_id: Option<String>,
    /// A personality defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<CreatePersonality>,
    /// Display name of this entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A suite to play.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("anyOf" = [{"required": ["simulationSuiteId"], "properties": {"simulationSuiteId": {"type": "string"}}}, {"required": ["suiteId"], "properties": {"suiteId": {"type": "string"}}}]))]
pub struct SuiteEntry {
    /// The suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub simulation_suite_id: Option<String>,
    /// The suite's name when the run was created; the server writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// Older name of `simulationSuiteId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite_id: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The assistant to test: a stored one or one defined in place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["assistantId"], "properties": {"assistantId": {"not": {"type": "null"}}, "assistant": {"type": "null"}}}, {"required": ["assistant"], "properties": {"assistant": {"not": {"type": "null"}}, "assistantId": {"type": "null"}}}]))]
pub struct TargetAssistant {
    /// A stored assistant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub assistant_id: Option<String>,
    /// An assistant defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant: Option<CreateAssistant>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The squad to test: a stored one or one defined in place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["squadId"], "properties": {"squadId": {"not": {"type": "null"}}, "squad": {"type": "null"}}}, {"required": ["squad"], "properties": {"squad": {"not": {"type": "null"}}, "squadId": {"type": "null"}}}]))]
pub struct TargetSquad {
    /// A stored squad.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub squad_id: Option<String>,
    /// A squad defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squad: Option<CreateSquad>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Describes fields that Ringback adds to what others know; they are written among the fields that are not modelled.
fn describe(schema: &mut schemars::Schema, fields: Value) {
    let properties = schema
        .ensure_object()
        .entry("properties")
        .or_insert_with(|| json!({}));
    if let (Some(properties), Value::Object(fields)) = (properties.as_object_mut(), fields) {
        properties.extend(fields);
    }
}

fn transport_extras(schema: &mut schemars::Schema) {
    describe(
        schema,
        json!({ "endpointId": {
            "type": ["string", "null"], "format": "uuid",
            "description": "The voice provider's endpoint; the first one unless given.",
        }, "targetNumber": {
            "type": ["string", "null"], "pattern": r"^\+[1-9][0-9]{1,14}$",
            "description": "The target's phone number in E.164, for providers that call it; the assistant's phoneNumber unless given.",
        }}),
    );
}

fn costs() -> Value {
    json!({
        "cost": { "type": "number", "description": "What it cost in US dollars, as far as it is known." },
        "costsUnknown": {
            "type": "array", "items": { "type": "string" }, "description": "Models of calls whose cost is not known.",
        },
    })
}

fn run_extras(schema: &mut schemars::Schema) {
    describe(schema, costs());
    describe(
        schema,
        json!({
            "concurrencyLimit": {
                "type": "integer", "description": "How many of its conversations may be held at a time, if it has a limit of its own.",
            },
            "origin": {
                "type": "object", "required": ["type", "runId"],
                "description": "The run that it was made of.",
                "properties": {
                    "type": { "enum": ["rerun", "evaluation"] }, "runId": { "type": "string", "format": "uuid" },
                },
            },
            "schedule": {
                "type": "object", "required": ["id", "scheduledFor"],
                "description": "The schedule that started it, and for when.",
                "properties": {
                    "id": { "type": "string", "format": "uuid" }, "scheduledFor": { "type": "string", "format": "date-time" },
                },
            },
            "notices": {
                "type": "array",
                "items": {
                    "type": "object", "required": ["type", "webhookId", "status", "attempts"],
                    "properties": {
                        "type": { "enum": ["webhook", "slack"] }, "event": { "enum": ["run.held"] },
                        "webhookId": { "type": "string" },
                        "status": { "enum": ["pending", "delivered", "failed", "skipped"] }, "attempts": { "type": "integer" },
                        "statusCode": { "type": "integer" }, "error": { "type": "string" },
                        "deliveredAt": { "type": "string", "format": "date-time" },
                        "nextAttemptAt": { "type": "string", "format": "date-time" },
                    },
                },
                "description": "To whom its end was told, or before it began (run.held), in the answer that reads one run.",
            },
            "omitted": {
                "type": "array", "items": { "type": "string" },
                "description": "What was left out because the answer would have been too large.",
            },
        }),
    );
}

fn item_extras(schema: &mut schemars::Schema) {
    describe(schema, costs());
    describe(
        schema,
        json!({
            "costs": {
                "type": "array",
                "items": {
                    "type": "object", "required": ["type", "cost"],
                    "properties": { "type": { "enum": ["model", "call"] }, "cost": { "type": ["number", "null"] } },
                },
                "description": "What its model calls and its call cost; null where that is not known.",
            },
            "failureFault": {
                "enum": ["target", "tester", "provider", "ringback"], "description": "Whose fault the failure was.",
            },
            "allRequiredSkipped": {
                "type": "boolean", "description": "Whether it passed because every required evaluation was skipped.",
            },
        }),
    );
}

fn metadata_extras(schema: &mut schemars::Schema) {
    describe(
        schema,
        json!({
            "origin": {
                "type": "object", "required": ["runId", "itemId"],
                "description": "The item that it was made of.",
                "properties": {
                    "runId": { "type": "string", "format": "uuid" }, "itemId": { "type": "string", "format": "uuid" },
                },
            },
            "omitted": {
                "type": "array", "items": { "type": "string" },
                "description": "What was left out because the answer would have been too large.",
            },
        }),
    );
}

/// How the tester reaches the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = transport_extras)]
pub struct Transport {
    /// The kind of connection.
    pub provider: TransportProvider,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A run to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSimulationRun {
    /// What to play.
    #[schemars(length(min = 1))]
    pub simulations: Vec<SimulationRunEntry>,
    /// What to test.
    pub target: SimulationRunTarget,
    /// How often each simulation is played.
    #[serde(default = "first", deserialize_with = "iterations")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 10))]
    pub iterations: i64,
    /// How the tester reaches the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How many of its conversations may be held at a time; without it as many as the system can.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub concurrency_limit: Option<i64>,
    /// Who is told how it came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = run_extras)]
pub struct SimulationRun {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// Where the run stands.
    pub status: RunStatus,
    /// When it was queued.
    pub queued_at: String,
    /// When its first item started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When its last item ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_reason: Option<String>,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// Its items by status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_counts: Option<SimulationRunItemCounts>,
    /// What it plays.
    pub simulations: Vec<SimulationRunEntry>,
    /// What it tests.
    pub target: SimulationRunTarget,
    /// How often each simulation is played.
    #[serde(default = "first", deserialize_with = "iterations")]
    #[schemars(range(min = 1))]
    pub iterations: i64,
    /// How the tester reaches the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The answer to starting a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSimulationRunResponse {
    /// The run.
    #[serde(flatten)]
    pub run: SimulationRun,
    /// The items that were queued.
    pub simulation_run_item_ids: Vec<String>,
    /// How the run will be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Where a person can look at the run.
    pub url: String,
}

/// The items of a run by status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunItemCounts {
    /// All items.
    #[serde(deserialize_with = "lenient::integer")]
    pub total: i64,
    /// Items that passed.
    #[serde(deserialize_with = "lenient::integer")]
    pub passed: i64,
    /// Items that failed.
    #[serde(deserialize_with = "lenient::integer")]
    pub failed: i64,
    /// Items that are running or being evaluated.
    #[serde(deserialize_with = "lenient::integer")]
    pub running: i64,
    /// Items waiting to start.
    #[serde(deserialize_with = "lenient::integer")]
    pub queued: i64,
    /// Items that were canceled.
    #[serde(deserialize_with = "lenient::integer")]
    pub canceled: i64,
    /// Different stored simulations; absent when an item has none.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub distinct_simulation_total: Option<i64>,
    /// Those with a failed or canceled item; absent when an item has none.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub distinct_simulation_failed: Option<i64>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunListItem {
    /// The run.
    #[serde(flatten)]
    pub run: SimulationRun,
    /// What a list shows of it.
    pub summary: SimulationRunListSummary,
}

/// What a list shows of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunListSummary {
    /// What was played.
    pub source: SimulationRunListSource,
    /// The target's name when the run was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_snapshot_name: Option<String>,
    /// How many simulations were played.
    #[serde(deserialize_with = "lenient::integer")]
    pub simulation_count: i64,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What a run played.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunListSource {
    /// The kind of source.
    #[serde(rename = "type")]
    pub kind: SimulationRunSourceType,
    /// The suite or simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Display name.
    pub name: String,
    /// Whether the source still exists.
    pub linkable: bool,
    /// The stored simulations that were played.
    pub simulation_ids: Vec<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// One conversation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = item_extras)]
pub struct SimulationRunItem {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// The simulation it plays.
    pub simulation_id: String,
    /// Where the item stands.
    pub status: ItemStatus,
    /// When it was queued.
    pub queued_at: String,
    /// When the conversation started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// When it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<String>,
    /// When it was canceled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canceled_at: Option<String>,
    /// Why it failed, up to 2000 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// The target's call, for a voice conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// The run it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// What to call when it starts or ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<SimulationHook>>,
    /// Which iteration of its simulation it is, from 1.
    #[serde(default = "first", deserialize_with = "iterations")]
    #[schemars(range(min = 1))]
    pub iteration_number: i64,
    /// The chat session, for a chat conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The stored scenario when the run was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario_id: Option<String>,
    /// The stored personality when the run was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality_id: Option<String>,
    /// Snapshots and conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<SimulationRunItemMetadata>,
    /// What the evaluation found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<SimulationRunItemResults>,
    /// How to improve what failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub improvement_suggestions: Option<Improvements>,
    /// How the item is carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configurations: Option<SimulationRunConfiguration>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Definitions as they were when the run was created, and the conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = metadata_extras)]
pub struct SimulationRunItemMetadata {
    /// The target, if it is an assistant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant: Option<Object>,
    /// The target, if it is a squad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squad: Option<Object>,
    /// The scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario: Option<Object>,
    /// The personality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Object>,
    /// The simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulation: Option<Object>,
    /// The conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<CallMetadata>,
    /// Which hooks have fired, and how that went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Object>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A finished or running conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallMetadata {
    /// The conversation as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcript: Option<String>,
    /// The conversation as messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Object>>,
    /// The recording's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_url: Option<String>,
    /// How to follow it live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<CallMonitor>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How to follow a conversation live.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallMonitor {
    /// WebSocket address of the audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_url: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How to improve a target or scenario after a failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Improvements {
    /// Why the evaluation failed.
    pub analysis: String,
    /// For the system prompt.
    pub system_prompt_suggestions: Vec<ImprovementSuggestion>,
    /// For the tools.
    pub tool_suggestions: Vec<ImprovementSuggestion>,
    /// For the scenario and its evaluations.
    pub scenario_suggestions: Vec<ImprovementSuggestion>,
    /// A whole new system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggested_system_prompt: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// One thing to improve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImprovementSuggestion {
    /// What is wrong.
    pub issue: String,
    /// What to do about it.
    pub suggestion: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How an item is carried out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationRunConfiguration {
    /// How the tester reaches the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How many simulations may run at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationConcurrencyResponse {
    /// The organisation.
    pub org_id: String,
    /// Call slots; a voice simulation takes two.
    #[serde(deserialize_with = "lenient::integer")]
    pub concurrency_limit: i64,
    /// Call slots in use.
    #[serde(deserialize_with = "lenient::integer")]
    pub active_simulations: i64,
    /// Voice simulations that could start now.
    #[serde(deserialize_with = "lenient::integer")]
    pub available_to_start: i64,
    /// When the limit was set; none for the default.
    pub created_at: Option<String>,
    /// When the limit was last changed; none for the default.
    pub updated_at: Option<String>,
    /// Whether the limit is the default.
    pub is_default: bool,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Why a run was refused for want of payment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// Always 402.
    #[serde(deserialize_with = "lenient::integer")]
    pub status_code: i64,
    /// The reason in words.
    pub message: String,
    /// The reason as a code.
    pub reason: PaymentReason,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A request for scenario ideas; exactly one id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["assistantId"], "properties": {"assistantId": {"not": {"type": "null"}}, "squadId": {"type": "null"}}}, {"required": ["squadId"], "properties": {"squadId": {"not": {"type": "null"}}, "assistantId": {"type": "null"}}}]))]
pub struct GenerateScenarios {
    /// The assistant to test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_id: Option<String>,
    /// The squad to test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squad_id: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Scenario ideas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerateScenariosResponse {
    /// The ideas.
    pub scenarios: Vec<GeneratedScenario>,
    /// What they cover.
    pub coverage_notes: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// One scenario idea.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GeneratedScenario {
    /// Display name.
    pub name: String,
    /// The tester's goal.
    pub instructions: String,
    /// What kind of case it is.
    pub category: ScenarioCategory,
    /// Why it is worth testing.
    pub reasoning: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

kinds::names! {
    /// How the tester reaches the target.
    TransportProvider {
        /// By voice.
        Websocket = "vapi.websocket",
        /// By text.
        Webchat = "vapi.webchat",
    }
}

kinds::names! {
    /// Where a run stands.
    RunStatus {
        /// No item has started.
        Queued = "queued",
        /// Items are under way.
        Running = "running",
        /// Every item has ended.
        Ended = "ended",
    }
}

kinds::names! {
    /// Where an item stands.
    ItemStatus {
        /// Waiting to start.
        Queued = "queued",
        /// The conversation is under way.
        Running = "running",
        /// The conversation is over and being judged.
        Evaluating = "evaluating",
        /// It met every required expectation.
        Passed = "passed",
        /// It missed a required expectation, or broke off.
        Failed = "failed",
        /// It was canceled.
        Canceled = "canceled",
    }
}

kinds::names! {
    /// What kind of source a run has.
    SimulationRunSourceType {
        /// One suite.
        Suite = "suite",
        /// One stored simulation.
        Simulation = "simulation",
        /// Entries defined in place, or a mixture.
        AdHoc = "adHoc",
        /// A request without a source to name.
        Api = "api",
    }
}

kinds::names! {
    /// Why a run was refused for want of payment.
    PaymentReason {
        /// There is no wallet.
        WalletMissing = "wallet_missing",
        /// The subscription is frozen.
        SubscriptionFrozen = "subscription_frozen",
        /// There is no payment method.
        PaymentMethodMissing = "payment_method_missing",
        /// The credits are used up.
        InsufficientCredits = "insufficient_credits",
        /// The billing limit is reached.
        BillingLimit = "billing_limit",
        /// The first payment has not been made.
        InitialPaymentMissing = "initial_payment_missing",
    }
}

kinds::names! {
    /// What kind of case a scenario idea is.
    ScenarioCategory {
        /// Everything goes well.
        HappyPath = "happy_path",
        /// Something unusual happens.
        EdgeCase = "edge_case",
        /// Something goes wrong.
        FailureMode = "failure_mode",
    }
}

const fn first() -> i64 {
    1
}

fn iterations<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    Ok(lenient::optional_integer(input)?.unwrap_or(1))
}

impl ItemStatus {
    /// Whether the item will not change any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Canceled)
    }
}

impl SuiteEntry {
    /// The suite's id, under its newer or older name.
    #[must_use]
    pub fn suite(&self) -> Option<&str> {
        self.simulation_suite_id.as_deref().or(self.suite_id.as_deref())
    }
}

impl SimulationRunTarget {
    /// The kind of target.
    #[must_use]
    pub const fn target_type(&self) -> TargetType {
        match self {
            Self::Assistant(_) => TargetType::Assistant,
            Self::Squad(_) => TargetType::Squad,
        }
    }

    /// The stored target's id, unless the target is defined in place.
    #[must_use]
    pub fn target_id(&self) -> Option<&str> {
        match self {
            Self::Assistant(target) => target.assistant_id.as_deref(),
            Self::Squad(target) => target.squad_id.as_deref(),
        }
    }
}

impl Validate for CreateSimulationRun {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if self.simulations.is_empty() {
            faults.push(format!(
                "{} should not be empty",
                check::join(path, "simulations")
            ));
        }
        self.simulations
            .validate(&check::join(path, "simulations"), faults);
        self.target.validate(&check::join(path, "target"), faults);
        self.notify.validate(&check::join(path, "notify"), faults);
        // The most that is allowed is the operator's to configure.
        if self.iterations < 1 {
            faults.push(format!(
                "{} must not be less than 1",
                check::join(path, "iterations")
            ));
        }
    }
}

impl Validate for SimulationRunEntry {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::Simulation(entry) => entry.validate(path, faults),
            Self::SimulationSuite(entry) => entry.validate(path, faults),
        }
    }
}

impl Validate for SimulationEntry {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        if let Some(id) = &self.simulation_id {
            // The other fields are ignored, whatever they hold.
            check::uuid(path, "simulationId", id, faults);
            return;
        }
        let scenario = ("scenarioId", self.scenario_id.is_some());
        kinds::one_of(path, scenario, ("scenario", self.scenario.is_some()), faults);
        kinds::id(path, "scenarioId", self.scenario_id.as_ref(), faults);
        self.scenario.validate(&check::join(path, "scenario"), faults);
        let personality = ("personalityId", self.personality_id.is_some());
        kinds::one_of(
            path,
            personality,
            ("personality", self.personality.is_some()),
            faults,
        );
        kinds::id(path, "personalityId", self.personality_id.as_ref(), faults);
        self.personality
            .validate(&check::join(path, "personality"), faults);
    }
}

impl Validate for SuiteEntry {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if self.suite().is_none() {
            faults.push(format!(
                "{} must be given",
                check::join(path, "simulationSuiteId")
            ));
        }
        kinds::id(
            path,
            "simulationSuiteId",
            self.simulation_suite_id.as_ref(),
            faults,
        );
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
    }
}

impl Validate for SimulationRunTarget {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::Assistant(target) => {
                let id = ("assistantId", target.assistant_id.is_some());
                kinds::one_of(path, id, ("assistant", target.assistant.is_some()), faults);
                kinds::id(path, "assistantId", target.assistant_id.as_ref(), faults);
                target.assistant.validate(&check::join(path, "assistant"), faults);
            }
            Self::Squad(target) => {
                let id = ("squadId", target.squad_id.is_some());
                kinds::one_of(path, id, ("squad", target.squad.is_some()), faults);
                kinds::id(path, "squadId", target.squad_id.as_ref(), faults);
                target.squad.validate(&check::join(path, "squad"), faults);
            }
        }
    }
}

impl Validate for GenerateScenarios {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let assistant = ("assistantId", self.assistant_id.is_some());
        kinds::one_of(path, assistant, ("squadId", self.squad_id.is_some()), faults);
    }
}
