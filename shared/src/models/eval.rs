//! Evals: mock conversations with checkpoints at which the target's answer is judged, and their runs.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::assistant::{CreateAssistant, CreateSquad};
use super::schedule::Notify;
use super::simulation::{NAME, TargetType, UnmockedTools};
use super::{Object, Validate, check, kinds, lenient};
use crate::conversation::check_patterns;

/// A message of a mock conversation, told apart by its role and whether it has a judge plan.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(tag = "role")]
#[schemars(transform = by_role_and_plan)]
pub enum ChatEvalMessage {
    /// What the user says.
    #[serde(rename = "user")]
    User(ChatEvalUserMessage),
    /// An instruction injected into the conversation.
    #[serde(rename = "system")]
    System(ChatEvalSystemMessage),
    /// What the assistant says: put in its mouth, or in a result what it did say.
    #[serde(rename = "assistant")]
    Assistant(ChatEvalAssistantMessage),
    /// What a tool answers.
    #[serde(rename = "tool")]
    Tool(ChatEvalToolMessage),
    /// A checkpoint: the target speaks and is judged.
    #[serde(rename = "assistant")]
    AssistantEvaluation(ChatEvalAssistantEvaluation),
    /// A checkpoint: a tool's answer is judged.
    #[serde(rename = "tool")]
    ToolEvaluation(ChatEvalToolEvaluation),
}

/// A checkpoint is also what a mock of its role would be with fields that are not modelled.
fn by_role_and_plan(schema: &mut schemars::Schema) {
    let schema = schema.ensure_object();
    if let Some(kinds) = schema.remove("oneOf") {
        schema.insert("anyOf".to_owned(), kinds);
    }
}

impl<'de> Deserialize<'de> for ChatEvalMessage {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut object = Object::deserialize(input)?;
        let role = object.remove("role");
        let judged = object.get("judgePlan").is_some_and(|plan| !plan.is_null());
        match (role.as_ref().and_then(Value::as_str), judged) {
            (Some("user"), _) => kinds::inner(object).map(Self::User),
            (Some("system"), _) => kinds::inner(object).map(Self::System),
            (Some("assistant"), false) => kinds::inner(object).map(Self::Assistant),
            (Some("assistant"), true) => kinds::inner(object).map(Self::AssistantEvaluation),
            (Some("tool"), false) => kinds::inner(object).map(Self::Tool),
            (Some("tool"), true) => kinds::inner(object).map(Self::ToolEvaluation),
            _ => Err(serde::de::Error::custom(
                "role must be one of the following values: user, system, assistant, tool",
            )),
        }
    }
}

kinds::tagged! {
    /// How a checkpoint is judged.
    JudgePlan by "type" {
        /// The content and tool calls must equal the plan's.
        Exact(JudgePlanMatch) = "exact",
        /// The content and tool arguments must match the plan's patterns.
        Regex(JudgePlanMatch) = "regex",
        /// A model judges.
        Ai(JudgePlanAi) = "ai",
    }
}

kinds::tagged! {
    /// What an eval tests.
    EvalRunTarget by "type" {
        /// One assistant.
        Assistant(EvalRunTargetAssistant) = "assistant",
        /// A squad of assistants.
        Squad(EvalRunTargetSquad) = "squad",
    }
}

/// The arguments of a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum ToolArguments {
    /// As an object.
    Object(Object),
    /// As an object's JSON text.
    Text(String),
}

/// What the user says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalUserMessage {
    /// The text.
    pub content: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// An instruction injected into the conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalSystemMessage {
    /// The text.
    pub content: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What the assistant says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalAssistantMessage {
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The tools it calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ChatEvalToolCall>>,
    /// In a result: how it was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeVerdict>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What a tool answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalToolMessage {
    /// The answer as text.
    pub content: String,
    /// In a result: how it was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeVerdict>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A checkpoint: the target speaks and is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalAssistantEvaluation {
    /// How it is judged.
    pub judge_plan: JudgePlan,
    /// How the conversation goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_plan: Option<ContinuePlan>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A checkpoint: a tool's answer is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalToolEvaluation {
    /// How it is judged; only a model can.
    pub judge_plan: JudgePlan,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvalToolCall {
    /// The tool's name.
    pub name: String,
    /// The arguments; without any only the name is compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<ToolArguments>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// What to compare with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgePlanMatch {
    /// The expected content or its pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The expected tool calls, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ChatEvalToolCall>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How a model judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgePlanAi {
    /// The model; the assistant's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<JudgeModel>,
    /// Whether the conversation is added when the model has no messages of its own.
    #[serde(default = "kinds::yes", deserialize_with = "kinds::on")]
    pub auto_include_message_history: bool,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A model that judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgeModel {
    /// Whose model it is.
    pub provider: JudgeProvider,
    /// The model's name.
    pub model: String,
    /// What the model is told.
    #[serde(default, deserialize_with = "kinds::or_default")]
    pub messages: Vec<Object>,
    /// Sampling temperature, 0 to 2.
    #[serde(
        serialize_with = "kinds::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub temperature: Option<f64>,
    /// The most tokens in the verdict, 50 to 10000.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_tokens: Option<i64>,
    /// Base URL of a custom model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Headers for a custom model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Object>,
    /// Seconds a custom model may take, 20 to 600.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout_seconds: Option<i64>,
    /// Extended thinking, for Anthropic's models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Extended thinking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Thinking {
    /// Always on.
    #[serde(rename = "type")]
    pub kind: ThinkingType,
    /// The most tokens to think with.
    #[serde(deserialize_with = "lenient::integer")]
    pub budget_tokens: i64,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How the conversation goes on after a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContinuePlan {
    /// Whether a failed checkpoint ends the conversation.
    #[serde(default, deserialize_with = "kinds::off")]
    pub exit_on_failure_enabled: bool,
    /// Content that takes the answer's place from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_override: Option<String>,
    /// Tool calls that take the answer's place from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls_override: Option<Vec<ChatEvalToolCall>>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// How a checkpoint was judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgeVerdict {
    /// The verdict.
    pub status: EvalVerdict,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A new eval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateEval {
    /// The mock conversation.
    pub messages: Vec<ChatEvalMessage>,
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the eval is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kind of eval.
    #[serde(rename = "type", default, deserialize_with = "kinds::or_default")]
    pub kind: EvalType,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// Changes to an eval; the messages are replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateEval {
    /// The mock conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatEvalMessage>>,
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the eval is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kind of eval.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<EvalType>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored eval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Eval {
    /// The mock conversation.
    pub messages: Vec<ChatEvalMessage>,
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
    /// What the eval is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kind of eval.
    #[serde(rename = "type", default, deserialize_with = "kinds::or_default")]
    pub kind: EvalType,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// An eval run to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateEvalRun {
    /// An eval defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<CreateEval>,
    /// What to test.
    pub target: EvalRunTarget,
    /// The kind of run.
    #[serde(rename = "type", default, deserialize_with = "kinds::or_default")]
    pub kind: EvalRunType,
    /// A stored eval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_id: Option<String>,
    /// Several evals, played one beside the other; their results come in this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = EVALS))]
    pub evals: Option<Vec<EvalRunEntry>>,
    /// What happens when the target uses a tool for which the eval has no tool message; without it the tool gets an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmocked_tools: Option<UnmockedTools>,
    /// Who is told how it came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// One of the evals of a run: a stored one or one defined in place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRunEntry {
    /// A stored eval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_id: Option<String>,
    /// An eval defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<CreateEval>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The assistant to test.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRunTargetAssistant {
    /// An assistant defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant: Option<CreateAssistant>,
    /// Fields that replace the assistant's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_overrides: Option<Object>,
    /// A stored assistant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_id: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The squad to test.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRunTargetSquad {
    /// A squad defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squad: Option<CreateSquad>,
    /// Fields that replace the assistants' own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_overrides: Option<Object>,
    /// A stored squad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squad_id: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// A stored eval run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRun {
    /// Where the run stands.
    pub status: EvalRunStatus,
    /// Why it ended, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_reason: Option<EvalEndedReason>,
    /// The eval, if defined in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<CreateEval>,
    /// What it tests.
    pub target: EvalRunTarget,
    /// Unique id.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// When it was created.
    pub created_at: String,
    /// When it started, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// What went wrong, unless it ended normally.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_message: Option<String>,
    /// One result per eval.
    #[serde(default, deserialize_with = "kinds::or_default")]
    pub results: Vec<EvalRunResult>,
    /// Cost in US dollars.
    #[serde(
        default,
        deserialize_with = "kinds::or_default",
        serialize_with = "lenient::number"
    )]
    pub cost: f64,
    /// What the cost consists of.
    #[serde(default, deserialize_with = "kinds::or_default")]
    pub costs: Vec<Object>,
    /// The kind of run.
    #[serde(rename = "type", default, deserialize_with = "kinds::or_default")]
    pub kind: EvalRunType,
    /// The eval, if stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_id: Option<String>,
    /// The evals, if they were asked for as several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evals: Option<Vec<EvalRunEntry>>,
    /// What happens when the target uses a tool for which the eval has no tool message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmocked_tools: Option<UnmockedTools>,
    /// The models of calls whose cost is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs_unknown: Vec<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// The answer to starting an eval run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateEvalRunResponse {
    /// The run.
    #[serde(flatten)]
    pub run: EvalRun,
    /// The run's id again.
    pub eval_run_id: String,
    /// Id of the process that carries the run out.
    pub workflow_id: String,
}

/// What came of one eval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRunResult {
    /// The verdict on the whole conversation.
    pub status: EvalVerdict,
    /// The conversation as it went.
    pub messages: Vec<ChatEvalMessage>,
    /// When it started.
    pub started_at: String,
    /// When it ended.
    pub ended_at: String,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

kinds::names! {
    /// Where an eval run stands.
    EvalRunStatus {
        /// It is under way.
        Running = "running",
        /// It is over.
        Ended = "ended",
        /// It waits to start.
        Queued = "queued",
    }
}

kinds::names! {
    /// Why an eval run ended.
    EvalEndedReason {
        /// The conversation was played to its end.
        Done = "mockConversation.done",
        /// Something broke.
        Error = "error",
        /// It took too long.
        Timeout = "timeout",
        /// The user cancelled it.
        Cancelled = "cancelled",
        /// The server gave it up.
        Aborted = "aborted",
    }
}

kinds::names! {
    /// Whether a checkpoint or eval passed.
    EvalVerdict {
        /// It passed.
        Pass = "pass",
        /// It failed.
        Fail = "fail",
    }
}

kinds::names! {
    /// The kind of an eval.
    #[derive(Default)]
    EvalType {
        /// A mock conversation.
        #[default]
        MockConversation = "chat.mockConversation",
    }
}

kinds::names! {
    /// The kind of an eval run.
    #[derive(Default)]
    EvalRunType {
        /// A run of one eval.
        #[default]
        Eval = "eval",
    }
}

kinds::names! {
    /// Whose model judges.
    JudgeProvider {
        /// OpenAI.
        OpenAi = "openai",
        /// Anthropic.
        Anthropic = "anthropic",
        /// Google.
        Google = "google",
        /// Groq.
        Groq = "groq",
        /// Any server that speaks OpenAI's protocol.
        Custom = "custom-llm",
    }
}

kinds::names! {
    /// The kind of thinking.
    ThinkingType {
        /// Switched on.
        Enabled = "enabled",
    }
}

impl ToolArguments {
    /// The arguments as an object, unless the text is not that of one.
    #[must_use]
    pub fn to_object(&self) -> Option<Object> {
        match self {
            Self::Object(object) => Some(object.clone()),
            Self::Text(text) if text.trim().is_empty() => Some(Object::new()),
            Self::Text(text) => serde_json::from_str(text).ok(),
        }
    }
}

impl EvalRunTarget {
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

    /// Fields that replace the target's own.
    #[must_use]
    pub const fn overrides(&self) -> Option<&Object> {
        match self {
            Self::Assistant(target) => target.assistant_overrides.as_ref(),
            Self::Squad(target) => target.assistant_overrides.as_ref(),
        }
    }
}

/// The longest content of a message or plan.
const CONTENT: usize = 1000;
/// The most messages of an eval.
const MESSAGES: usize = 500;
/// The most tool calls of a message or plan.
const CALLS: usize = 100;
/// The most evals of a run.
pub const EVALS: usize = 50;

/// An eval has no more messages than can be played.
fn messages(path: &str, messages: &Vec<ChatEvalMessage>, faults: &mut Vec<String>) {
    let path = check::join(path, "messages");
    if messages.len() > MESSAGES {
        faults.push(format!("{path} must contain no more than {MESSAGES} elements"));
    }
    messages.validate(&path, faults);
}

impl Validate for CreateEval {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        messages(path, &self.messages, faults);
        head(path, self.name.as_ref(), self.description.as_ref(), faults);
    }
}

impl Validate for UpdateEval {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(changed) = &self.messages {
            messages(path, changed, faults);
        }
        head(path, self.name.as_ref(), self.description.as_ref(), faults);
    }
}

fn head(path: &str, name: Option<&String>, description: Option<&String>, faults: &mut Vec<String>) {
    if let Some(name) = name {
        check::length(path, "name", name, 1, NAME, faults);
    }
    kinds::text(path, "description", description, 500, faults);
}

impl Validate for ChatEvalMessage {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::User(message) => check::length(path, "content", &message.content, 0, CONTENT, faults),
            Self::Assistant(message) => {
                kinds::text(path, "content", message.content.as_ref(), CONTENT, faults);
                tool_calls(path, "toolCalls", message.tool_calls.as_ref(), faults);
            }
            Self::System(_) | Self::Tool(_) => {}
            Self::AssistantEvaluation(checkpoint) => {
                checkpoint
                    .judge_plan
                    .validate(&check::join(path, "judgePlan"), faults);
                checkpoint
                    .continue_plan
                    .validate(&check::join(path, "continuePlan"), faults);
            }
            Self::ToolEvaluation(checkpoint) => {
                let path = check::join(path, "judgePlan");
                if !matches!(checkpoint.judge_plan, JudgePlan::Ai(_)) {
                    faults.push(format!("{path}.type must be ai for a tool's answer"));
                }
                checkpoint.judge_plan.validate(&path, faults);
            }
        }
    }
}

/// The tool calls of a message or plan.
fn tool_calls(path: &str, field: &str, calls: Option<&Vec<ChatEvalToolCall>>, faults: &mut Vec<String>) {
    let path = check::join(path, field);
    if calls.is_some_and(|calls| calls.len() > CALLS) {
        faults.push(format!("{path} must contain no more than {CALLS} elements"));
    }
    if let Some(calls) = calls {
        calls.validate(&path, faults);
    }
}

impl Validate for ChatEvalToolCall {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 0, 100, faults);
        if self
            .arguments
            .as_ref()
            .is_some_and(|arguments| arguments.to_object().is_none())
        {
            faults.push(format!("{} must be an object", check::join(path, "arguments")));
        }
    }
}

impl Validate for JudgePlan {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::Exact(plan) | Self::Regex(plan) => {
                if plan.content.is_none() && plan.tool_calls.as_ref().is_none_or(Vec::is_empty) {
                    faults.push(format!(
                        "{} or toolCalls must be given",
                        check::join(path, "content")
                    ));
                }
                kinds::text(path, "content", plan.content.as_ref(), CONTENT, faults);
                tool_calls(path, "toolCalls", plan.tool_calls.as_ref(), faults);
                if matches!(self, Self::Regex(_))
                    && let Err((place, why)) = check_patterns(plan)
                {
                    faults.push(format!("{}: {why}", check::join(path, &place)));
                }
            }
            Self::Ai(plan) => plan.model.validate(&check::join(path, "model"), faults),
        }
    }
}

impl Validate for JudgeModel {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "model", &self.model, 0, 100, faults);
        kinds::range(path, "temperature", self.temperature, 0.0, 2.0, faults);
        kinds::range(
            path,
            "maxTokens",
            self.max_tokens.map(kinds::float),
            50.0,
            10_000.0,
            faults,
        );
        if self.provider == JudgeProvider::Custom {
            if self.url.is_none() {
                faults.push(format!("{} must be given", check::join(path, "url")));
            }
            let timeout = self.timeout_seconds.map(kinds::float);
            kinds::range(path, "timeoutSeconds", timeout, 20.0, 600.0, faults);
        }
        if let Some(thinking) = &self.thinking {
            let budget = kinds::float(thinking.budget_tokens);
            let inner = check::join(path, "thinking");
            check::range(&inner, "budgetTokens", budget, 1024.0, 100_000.0, faults);
            if self.max_tokens.is_some_and(|most| most <= thinking.budget_tokens) {
                let path = check::join(path, "maxTokens");
                faults.push(format!("{path} must be greater than thinking.budgetTokens"));
            }
        }
    }
}

impl Validate for ContinuePlan {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        kinds::text(
            path,
            "contentOverride",
            self.content_override.as_ref(),
            CONTENT,
            faults,
        );
        let calls = self.tool_calls_override.as_ref();
        tool_calls(path, "toolCallsOverride", calls, faults);
    }
}

impl Validate for CreateEvalRun {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let one = self.eval_id.is_some() || self.eval.is_some();
        match &self.evals {
            Some(_) if one => faults.push(format!(
                "{} cannot be combined with evalId or eval",
                check::join(path, "evals")
            )),
            Some(evals) => {
                let path = check::join(path, "evals");
                if !(1..=EVALS).contains(&evals.len()) {
                    faults.push(format!("{path} must contain 1 to {EVALS} elements"));
                }
                evals.validate(&path, faults);
            }
            None => kinds::one_of(
                path,
                ("evalId", self.eval_id.is_some()),
                ("eval", self.eval.is_some()),
                faults,
            ),
        }
        self.eval.validate(&check::join(path, "eval"), faults);
        self.target.validate(&check::join(path, "target"), faults);
        self.notify.validate(&check::join(path, "notify"), faults);
    }
}

impl Validate for EvalRunEntry {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let id = ("evalId", self.eval_id.is_some());
        kinds::one_of(path, id, ("eval", self.eval.is_some()), faults);
        self.eval.validate(&check::join(path, "eval"), faults);
    }
}

impl Validate for EvalRunTarget {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::Assistant(target) => {
                let id = ("assistantId", target.assistant_id.is_some());
                kinds::one_of(path, id, ("assistant", target.assistant.is_some()), faults);
                target.assistant.validate(&check::join(path, "assistant"), faults);
            }
            Self::Squad(target) => {
                let id = ("squadId", target.squad_id.is_some());
                kinds::one_of(path, id, ("squad", target.squad.is_some()), faults);
                target.squad.validate(&check::join(path, "squad"), faults);
            }
        }
    }
}
