//! Definitions of simulations: personalities, scenarios, simulations and suites.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::assistant::CreateAssistant;
use super::evaluation::{EvaluationPlanItem, LatencyExpectation};
use super::{Object, Validate, check, kinds, lenient};

/// A new personality: who the tester plays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatePersonality {
    /// Display name.
    #[schemars(length(max = NAME))]
    pub name: String,
    /// The tester's configuration.
    pub assistant: CreateAssistant,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Changes to a personality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdatePersonality {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// The tester's configuration, replaced as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant: Option<CreateAssistant>,
    /// Folder it is filed under; `null` removes it from its folder.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<Option<String>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored personality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Personality {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to; none for a built-in one.
    pub org_id: Option<String>,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// Display name.
    pub name: String,
    /// The tester's configuration.
    pub assistant: CreateAssistant,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A new scenario: what the tester tries to do and how the outcome is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateScenario {
    /// Display name.
    #[schemars(length(max = NAME))]
    pub name: String,
    /// The tester's goal.
    #[schemars(length(max = INSTRUCTIONS))]
    pub instructions: String,
    /// The checks that decide whether a run passes.
    pub evaluations: Vec<EvaluationPlanItem>,
    /// What to call when an item starts or ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<SimulationHook>>,
    /// Fields that replace the target's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_overrides: Option<Object>,
    /// Fixed results for the target's tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_mocks: Option<Vec<ScenarioToolMock>>,
    /// What happens when the target uses a tool that has no mock; without it the provider of the call decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmocked_tools: Option<UnmockedTools>,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<String>,
    /// Ceilings on the target's latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_expectations: Option<Vec<LatencyExpectation>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Changes to a scenario; lists are replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateScenario {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// The tester's goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = INSTRUCTIONS))]
    pub instructions: Option<String>,
    /// The checks that decide whether a run passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<Vec<EvaluationPlanItem>>,
    /// What to call when an item starts or ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<SimulationHook>>,
    /// Fields that replace the target's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_overrides: Option<Object>,
    /// Fixed results for the target's tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_mocks: Option<Vec<ScenarioToolMock>>,
    /// What happens when the target uses a tool that has no mock; `null` leaves it to the provider of the call.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    pub unmocked_tools: Option<Option<UnmockedTools>>,
    /// Folder it is filed under; `null` removes it from its folder.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<Option<String>>,
    /// Ceilings on the target's latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_expectations: Option<Vec<LatencyExpectation>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scenario {
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
    /// The tester's goal.
    pub instructions: String,
    /// The checks that decide whether a run passes.
    pub evaluations: Vec<EvaluationPlanItem>,
    /// What to call when an item starts or ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<SimulationHook>>,
    /// Fields that replace the target's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_overrides: Option<Object>,
    /// Fixed results for the target's tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_mocks: Option<Vec<ScenarioToolMock>>,
    /// What happens when the target uses a tool that has no mock; without it the provider of the call decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmocked_tools: Option<UnmockedTools>,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Ceilings on the target's latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_expectations: Option<Vec<LatencyExpectation>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A fixed result for one of the target's tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScenarioToolMock {
    /// The tool's exact name.
    pub tool_name: String,
    /// What the target gets instead of calling the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Whether the mock applies.
    #[serde(default = "kinds::yes", deserialize_with = "kinds::on")]
    #[schemars(with = "Option<bool>")]
    pub enabled: bool,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What to do when an item starts or ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationHook {
    /// The event.
    pub on: SimulationHookEvent,
    /// The actions, in order.
    #[serde(rename = "do")]
    pub actions: Vec<SimulationHookWebhookAction>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A request to a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationHookWebhookAction {
    /// The kind of action.
    #[serde(rename = "type")]
    pub kind: SimulationHookActionType,
    /// Where to send it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// What the payload carries besides ids and times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<SimulationHookInclude>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What a hook's payload carries besides ids and times.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationHookInclude {
    /// The transcript as text.
    #[serde(default, deserialize_with = "kinds::off")]
    #[schemars(with = "Option<bool>")]
    pub transcript: bool,
    /// The messages.
    #[serde(default, deserialize_with = "kinds::off")]
    #[schemars(with = "Option<bool>")]
    pub messages: bool,
    /// The recording's address.
    #[serde(default, deserialize_with = "kinds::off")]
    #[schemars(with = "Option<bool>")]
    pub recording_url: bool,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Where and how to send a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Seconds to wait for an answer, 20 unless given.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: Option<i64>,
    /// Stored credential for authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<()>")]
    pub credential_id: Option<String>,
    /// Whether to send from fixed addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_ip_addresses_enabled: Option<bool>,
    /// Paths of the body to encrypt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 0))]
    pub encrypted_paths: Option<Vec<String>>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^https?://."), extend("format" = "uri"))]
    pub url: Option<String>,
    /// Headers to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Object>,
    /// How to retry; without it, what may pass by itself is retried some times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_plan: Option<BackoffPlan>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Reads how a delay develops. Clients made from a description in which it is an object send one, with the word in it.
fn backoff_type<'de, D: Deserializer<'de>>(input: D) -> Result<BackoffType, D::Error> {
    let word = match Value::deserialize(input)? {
        Value::Object(mut object) => object.remove("type").unwrap_or_default(),
        word => word,
    };
    let word = Option::<BackoffType>::deserialize(word).map_err(serde::de::Error::custom)?;
    Ok(word.unwrap_or_default())
}

/// How a failed request is retried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackoffPlan {
    /// How the delay develops.
    #[serde(rename = "type", default, deserialize_with = "backoff_type")]
    #[schemars(with = "Option<BackoffType>")]
    pub kind: BackoffType,
    /// The most retries.
    #[serde(default, deserialize_with = "kinds::integer_or_default")]
    #[schemars(with = "Option<i64>", range(min = 0, max = 10))]
    pub max_retries: i64,
    /// Seconds before the first retry.
    #[serde(
        default,
        deserialize_with = "kinds::or_default",
        serialize_with = "lenient::number"
    )]
    #[schemars(with = "Option<f64>", range(min = 0, max = 10))]
    pub base_delay_seconds: f64,
    /// Statuses that are not retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excluded_status_codes: Option<Vec<Value>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A new simulation: one scenario played by one personality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSimulation {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// The scenario.
    #[schemars(extend("format" = "uuid"))]
    pub scenario_id: String,
    /// The personality.
    #[schemars(extend("format" = "uuid"))]
    pub personality_id: String,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Changes to a simulation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateSimulation {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// The scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub scenario_id: Option<String>,
    /// The personality.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub personality_id: Option<String>,
    /// Folder it is filed under; `null` removes it from its folder.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<Option<String>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Simulation {
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// When it was created.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The scenario.
    pub scenario_id: String,
    /// The personality.
    pub personality_id: String,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A new suite of simulations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSimulationSuite {
    /// Display name.
    #[schemars(length(max = NAME))]
    pub name: String,
    /// Slack webhook for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slack_webhook_url: Option<String>,
    /// The simulations, in order.
    #[schemars(extend("items" = {"type": "string", "format": "uuid"}))]
    pub simulation_ids: Vec<String>,
    /// Targets the suite is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_assignments: Option<Vec<TargetAssignment>>,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Changes to a suite; lists are replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateSimulationSuite {
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = NAME))]
    pub name: Option<String>,
    /// Slack webhook for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slack_webhook_url: Option<String>,
    /// The simulations, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("items" = {"type": "string", "format": "uuid"}))]
    pub simulation_ids: Option<Vec<String>>,
    /// Targets the suite is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_assignments: Option<Vec<TargetAssignment>>,
    /// Folder it is filed under; `null` removes it from its folder.
    #[serde(
        default,
        deserialize_with = "lenient::nullable",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = check::FOLDER_PATH), regex(pattern = check::FOLDER_PATTERN))]
    pub path: Option<Option<String>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationSuite {
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
    /// Slack webhook for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slack_webhook_url: Option<String>,
    /// Folder it is filed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The simulations, in order.
    pub simulation_ids: Vec<String>,
    /// Targets the suite is meant for.
    #[serde(default, deserialize_with = "kinds::or_default")]
    pub target_assignments: Vec<TargetAssignment>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A target that a suite is meant for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetAssignment {
    /// The kind of target.
    pub target_type: TargetType,
    /// The target's id.
    #[schemars(extend("format" = "uuid"))]
    pub target_id: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Why a definition cannot be deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InUseConflict {
    /// What is in use.
    pub error: InUse,
    /// The reason in words.
    pub message: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

kinds::names! {
    /// When a hook fires; despite the names, once per item. The older names are read too.
    SimulationHookEvent {
        /// The item has started.
        #[serde(alias = "call.started")]
        Started = "simulation.run.started",
        /// The item has ended.
        #[serde(alias = "call.ended")]
        Ended = "simulation.run.ended",
    }
}

kinds::names! {
    /// The kind of a hook's action.
    SimulationHookActionType {
        /// A request to a webhook.
        Webhook = "webhook",
    }
}

kinds::names! {
    /// How the delay between retries develops.
    #[derive(Default)]
    BackoffType {
        /// It stays the same.
        #[default]
        Fixed = "fixed",
        /// It doubles.
        Exponential = "exponential",
    }
}

kinds::names! {
    /// The kind of a target.
    TargetType {
        /// One assistant.
        Assistant = "assistant",
        /// A squad of assistants.
        Squad = "squad",
    }
}

kinds::names! {
    /// What happens when the target uses a tool that has no mock, or one that is switched off.
    UnmockedTools {
        /// It gets an error.
        Error = "error",
        /// It runs for real, where tools can be run.
        Run = "run",
    }
}

kinds::names! {
    /// What a simulation still uses.
    InUse {
        /// A scenario.
        Scenario = "scenario_in_use",
        /// A personality.
        Personality = "personality_in_use",
    }
}

impl BackoffPlan {
    /// Whether an answer with `status` must not be retried.
    #[must_use]
    pub fn excludes(&self, status: u16) -> bool {
        let codes = self.excluded_status_codes.as_deref().unwrap_or_default();
        codes.iter().any(|code| code.as_f64() == Some(f64::from(status)))
    }
}

/// The longest display name.
pub(crate) const NAME: usize = 80;
/// The longest instructions.
pub(crate) const INSTRUCTIONS: usize = 10_000;

impl Validate for CreatePersonality {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 0, NAME, faults);
        self.assistant.validate(&check::join(path, "assistant"), faults);
        kinds::folder(path, self.path.as_ref(), faults);
    }
}

impl Validate for UpdatePersonality {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        self.assistant.validate(&check::join(path, "assistant"), faults);
        kinds::folder(path, self.path.iter().flatten().next(), faults);
    }
}

impl Validate for CreateScenario {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 0, NAME, faults);
        check::length(path, "instructions", &self.instructions, 0, INSTRUCTIONS, faults);
        self.evaluations
            .validate(&check::join(path, "evaluations"), faults);
        self.hooks.validate(&check::join(path, "hooks"), faults);
        few_actions(path, self.hooks.as_deref(), faults);
        self.latency_expectations
            .validate(&check::join(path, "latencyExpectations"), faults);
        kinds::folder(path, self.path.as_ref(), faults);
    }
}

impl Validate for UpdateScenario {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        kinds::text(
            path,
            "instructions",
            self.instructions.as_ref(),
            INSTRUCTIONS,
            faults,
        );
        self.evaluations
            .validate(&check::join(path, "evaluations"), faults);
        self.hooks.validate(&check::join(path, "hooks"), faults);
        few_actions(path, self.hooks.as_deref(), faults);
        self.latency_expectations
            .validate(&check::join(path, "latencyExpectations"), faults);
        kinds::folder(path, self.path.iter().flatten().next(), faults);
    }
}

/// The most actions that a scenario's hooks may have: what became of each stands in one row.
const ACTIONS: usize = 50;

fn few_actions(path: &str, hooks: Option<&[SimulationHook]>, faults: &mut Vec<String>) {
    let hooks = hooks.unwrap_or_default();
    if hooks.iter().map(|hook| hook.actions.len()).sum::<usize>() > ACTIONS {
        let path = check::join(path, "hooks");
        faults.push(format!("{path} must not have more than {ACTIONS} actions in all"));
    }
}

impl Validate for SimulationHook {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        self.actions.validate(&check::join(path, "do"), faults);
    }
}

impl Validate for SimulationHookWebhookAction {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let path = check::join(path, "server");
        self.server.validate(&path, faults);
        let Some(server) = &self.server else { return };
        server.validate_as_receiver(&path, faults);
    }
}

impl Server {
    /// What is sent to it is signed and not more: to pass over what was asked for would send it unprotected.
    pub(crate) fn validate_as_receiver(&self, path: &str, faults: &mut Vec<String>) {
        if self
            .url
            .as_deref()
            .is_some_and(|url| !crate::provider::is_url(url))
        {
            faults.push(format!("{path}.url must be an http or https URL"));
        }
        if self.credential_id.is_some() {
            faults.push(format!(
                "{path}.credentialId is not supported; use headers, or the hook's signature"
            ));
        }
        if self
            .encrypted_paths
            .as_ref()
            .is_some_and(|paths| !paths.is_empty())
        {
            faults.push(format!("{path}.encryptedPaths is not supported"));
        }
    }
}

impl Validate for Server {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let timeout = self.timeout_seconds.map(kinds::float);
        kinds::range(path, "timeoutSeconds", timeout, 1.0, 300.0, faults);
        self.backoff_plan
            .validate(&check::join(path, "backoffPlan"), faults);
    }
}

impl Validate for BackoffPlan {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::range(
            path,
            "maxRetries",
            kinds::float(self.max_retries),
            0.0,
            10.0,
            faults,
        );
        check::range(
            path,
            "baseDelaySeconds",
            self.base_delay_seconds,
            0.0,
            10.0,
            faults,
        );
    }
}

impl Validate for CreateSimulation {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        check::uuid(path, "scenarioId", &self.scenario_id, faults);
        check::uuid(path, "personalityId", &self.personality_id, faults);
        kinds::folder(path, self.path.as_ref(), faults);
    }
}

impl Validate for UpdateSimulation {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        kinds::id(path, "scenarioId", self.scenario_id.as_ref(), faults);
        kinds::id(path, "personalityId", self.personality_id.as_ref(), faults);
        kinds::folder(path, self.path.iter().flatten().next(), faults);
    }
}

impl Validate for CreateSimulationSuite {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 0, NAME, faults);
        self.target_assignments
            .validate(&check::join(path, "targetAssignments"), faults);
        kinds::folder(path, self.path.as_ref(), faults);
    }
}

impl Validate for UpdateSimulationSuite {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(path, "name", self.name.as_ref(), NAME, faults);
        self.target_assignments
            .validate(&check::join(path, "targetAssignments"), faults);
        kinds::folder(path, self.path.iter().flatten().next(), faults);
    }
}

impl Validate for TargetAssignment {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::uuid(path, "targetId", &self.target_id, faults);
    }
}
