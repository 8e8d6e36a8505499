//! A chat between the tester and the target, as a pure state machine.
//!
//! [`Plan`] is fixed for the whole conversation; [`Conversation`] is a plan and the replies so far. [`Conversation::next`]
//! says what to do, the caller does it, stores the [`Reply`] and then pushes it. A conversation made anew from the stored
//! replies goes on exactly where the other one was.
//!
//! The target may be a squad: then one member after the other is the target, and the stored replies alone say which.

mod checkpoint;
mod mock;
mod squad;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    llm::{ChatReply, ChatRequest, Json, Purpose, ToolCall, Usage, apply_settings, text_of},
    models::Object,
    provider::{ChatTurn, Remote},
};

use self::squad::{Handoff, Member};
pub use self::{
    checkpoint::check as check_patterns,
    mock::{Done, Mock, MockNext, Script, ScriptParts, Step},
    squad::{Target, has_live_target},
};

const END_CALL: &str = "endCall";
/// What is said to who speaks first, where somebody must have said something.
const CONNECTED: &str = "(The call is connected. You speak first.)";
/// What is said to who has said nothing.
const WAITING: &str = "(The caller waits for an answer.)";
/// The model of who holds the target's side somewhere else, as far as costs are concerned.
const REMOTE_MODEL: &str = "vapi-chat";

/// One of the two who talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Speaker {
    /// The simulated caller.
    Tester,
    /// The agent under test.
    Target,
}

impl Speaker {
    /// The one who listens.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Tester => Self::Target,
            Self::Target => Self::Tester,
        }
    }

    /// What this one's model is for.
    #[must_use]
    pub const fn purpose(self) -> Purpose {
        match self {
            Self::Tester => Purpose::Tester,
            Self::Target => Purpose::Target,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Tester => "tester",
            Self::Target => "target",
        }
    }
}

/// Why a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedReason {
    /// The tester hung up.
    CustomerEndedCall,
    /// The target hung up.
    AssistantEndedCall,
    /// The target said one of its `endCallPhrases`.
    AssistantSaidEndCallPhrase,
    /// The time is over.
    ExceededMaxDuration,
    /// The turns are used up.
    MaxTurnsReached,
    /// One side kept using tools and said nothing.
    MaxToolRoundsReached,
    /// One side had nothing to say, twice in a row.
    SilenceTimedOut,
}

impl EndedReason {
    /// The reason as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CustomerEndedCall => "customer-ended-call",
            Self::AssistantEndedCall => "assistant-ended-call",
            Self::AssistantSaidEndCallPhrase => "assistant-said-end-call-phrase",
            Self::ExceededMaxDuration => "exceeded-max-duration",
            Self::MaxTurnsReached => "max-turns-reached",
            Self::MaxToolRoundsReached => "max-tool-rounds-reached",
            Self::SilenceTimedOut => "silence-timed-out",
        }
    }
}

impl std::fmt::Display for EndedReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long a conversation may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The most turns, of both sides together.
    pub max_turns: u32,
    /// The most seconds from the first reply on. The target's own `maxDurationSeconds` holds where it is smaller.
    pub max_seconds: i64,
    /// The most tool rounds in one turn.
    pub max_tool_rounds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_turns: 40,
            max_seconds: 600,
            max_tool_rounds: 8,
        }
    }
}

/// What a tool gave back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    /// The id of the call that it answers.
    pub tool_call_id: String,
    /// The tool's name.
    pub name: String,
    /// What the model gets to read.
    pub result: String,
    /// Whether a tool mock of the scenario gave it.
    pub mocked: bool,
    /// The squad's member that the conversation was handed to by this call, by its place in the squad, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff: Option<u32>,
}

impl ToolResult {
    /// As the model that called the tool reads it.
    fn message(&self) -> Json {
        Json::new(&json!({"role": "tool", "tool_call_id": self.tool_call_id, "content": self.result}))
    }
}

/// One reply of one side: the record that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Its place in the conversation, from 0.
    pub n: u32,
    /// Who replied.
    pub speaker: Speaker,
    /// What was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The tools that were called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// What they gave back, one result for each call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_results: Vec<ToolResult>,
    /// When the model was asked, in milliseconds since the Unix epoch.
    pub at: i64,
    /// When it had answered.
    pub ended_at: i64,
    /// What it took; absent for a fixed first message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The name of the squad's member that replied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant_name: Option<String>,
    /// The id of the stored assistant that this member is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant_id: Option<String>,
    /// What it cost in millionths of a US dollar, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<i64>,
    /// The id of the chat that this was a turn of, if somebody else holds the target's side of the conversation: its tools were run
    /// there, before it spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_id: Option<String>,
}

/// What a [`Plan`] is made from.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The personality's assistant.
    pub personality: &'a Value,
    /// The scenario's instructions for the tester.
    pub instructions: &'a str,
    /// The agent under test, with its tools resolved.
    pub target: Target<'a>,
    /// The scenario's `toolMocks`, or null.
    pub tool_mocks: &'a Value,
    /// The scenario's `targetOverrides`, or null.
    pub target_overrides: &'a Value,
    /// Who is asked for the target's words, if they are not its model's.
    pub remote: Option<&'a Remote>,
    /// Whether tools without a mock are run for real.
    pub runs_tools: bool,
    /// How long it may be.
    pub limits: Limits,
}

/// What one side brings along.
#[derive(Debug, Clone)]
struct Side {
    /// The `model` object without prompt and tools, for choosing a server.
    model: Arc<Value>,
    /// The request without the conversation.
    base: ChatRequest,
    /// The tools that end the call.
    end_tools: HashSet<String>,
    /// What ends the call when said, in lower case.
    end_phrases: Vec<String>,
    /// What is said when a tool ends the call and nothing else is said.
    end_message: Option<String>,
    /// Who it is, if it is a squad's member with a name.
    name: Option<String>,
    /// The stored assistant that it is, if it is a squad's member.
    id: Option<String>,
    /// What it says first when the conversation is handed to it, if it does not leave that to its model.
    greeting: Option<String>,
    /// Its tools that hand the conversation to another member.
    handoffs: HashMap<String, Handoff>,
}

impl Side {
    fn new(assistant: &Object, messages: Vec<Json>, tools: Tools) -> Self {
        let mut model = assistant
            .get("model")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let mut base = ChatRequest {
            messages,
            tools: tools.offered,
            ..ChatRequest::default()
        };
        apply_settings(&model, &mut base);
        for bulky in ["messages", "tools"] {
            model.remove(bulky);
        }
        let phrases = assistant
            .get("endCallPhrases")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let phrases = phrases
            .filter_map(Value::as_str)
            .map(|phrase| phrase.trim().to_lowercase());
        Self {
            model: Arc::new(Value::Object(model)),
            base,
            end_tools: tools.ending,
            end_phrases: phrases.filter(|phrase| !phrase.is_empty()).collect(),
            end_message: assistant.get("endCallMessage").and_then(text_of),
            name: None,
            id: None,
            greeting: None,
            handoffs: tools.handoffs,
        }
    }

    /// The target, or one member of it; `members` are all of them.
    fn target(member: &Member, members: &[Member]) -> Self {
        let assistant = &member.assistant;
        let mut tools = Tools::of_member(member, members);
        if assistant.get("endCallFunctionEnabled") == Some(&Value::Bool(true)) {
            tools.offer_end_call();
        }
        let opening = prompt(assistant).iter().map(Json::new).collect();
        let speaks = mode(assistant) == Mode::Speaks;
        let greeting = assistant.get("firstMessage").filter(|_| speaks);
        Self {
            name: member.name.clone(),
            id: member.id.clone(),
            greeting: greeting.and_then(text_of),
            ..Self::new(assistant, opening, tools)
        }
    }
}

/// A conversation's fixed part: both sides, who starts and the limits.
#[derive(Debug, Clone)]
pub struct Plan {
    tester: Side,
    /// The target: one, or a squad's members in their order. There is always a first one.
    first: Side,
    others: Vec<Side>,
    mocks: HashMap<String, String>,
    /// The tools of each member that are run for real.
    tools: Vec<Runnable>,
    /// Who holds the target's side, and the values of its variables.
    remote: Option<Arc<(Remote, Object)>>,
    starter: Speaker,
    first_message: Option<String>,
    limits: Limits,
}

const RULES: &str = "You are the person who calls, and you talk with an agent. Stay in this role all the time: never \
act as the agent, never say that you are an AI or that this is a test. Say only what the caller says, briefly, as people \
speak. When what you want is done, or when it is clear that it cannot be done, say goodbye and call the endCall tool.";

impl Plan {
    /// The plan for these parts. A part that is missing or has another type counts as empty.
    #[must_use]
    pub fn new(parts: &Parts<'_>) -> Self {
        let empty = Object::new();
        let personality = parts.personality.as_object().unwrap_or(&empty);
        let system = tester_prompt(personality, &[parts.instructions, RULES]);
        let (starter, mut first_message, generated) = match mode(personality) {
            Mode::Waits => (Speaker::Target, None, false),
            Mode::Generates => (Speaker::Tester, None, true),
            Mode::Speaks => {
                let fixed = personality.get("firstMessage").and_then(text_of);
                (Speaker::Tester, fixed.clone(), fixed.is_none())
            }
        };
        let mut opening = vec![Json::new(&json!({"role": "system", "content": system}))];
        if generated {
            // Many servers refuse a conversation without a user's message.
            opening.push(said("user", CONNECTED));
        }
        let mut tools = Tools::of(personality);
        tools.offer_end_call();
        let tester = Side::new(personality, opening, tools);

        let members = parts.target.members(parts.target_overrides);
        let nobody = Member::default();
        let lead = members.first().unwrap_or(&nobody);
        let assistant = &lead.assistant;
        if starter == Speaker::Target && mode(assistant) != Mode::Generates {
            first_message = assistant.get("firstMessage").and_then(text_of);
        }
        let others = members.iter().skip(1);

        let mocks = parts.tool_mocks.as_array().into_iter().flatten();
        let mocks = mocks
            .filter(|mock| mock.get("enabled") != Some(&Value::Bool(false)))
            .filter_map(|mock| {
                let result = mock.get("result").and_then(Value::as_str).unwrap_or_default();
                Some((mock.get("toolName")?.as_str()?.to_owned(), result.to_owned()))
            });
        let mut limits = parts.limits;
        let own = assistant.get("maxDurationSeconds");
        if let Some(own) = own
            .and_then(|own| crate::models::lenient::integer(own).ok())
            .filter(|own| *own > 0)
        {
            limits.max_seconds = limits.max_seconds.min(own);
        }
        let mut first = Side::target(lead, &members);
        if parts.remote.is_some() {
            // Which of its tools ends the call is not known for sure.
            first.end_tools.insert(END_CALL.to_owned());
        }
        Self {
            tester,
            first,
            others: others.map(|member| Side::target(member, &members)).collect(),
            mocks: mocks.collect(),
            tools: members
                .iter()
                .filter(|_| parts.runs_tools)
                .map(|member| runnable(&member.assistant))
                .collect(),
            remote: parts.remote.map(|remote| {
                let variables = parts.target_overrides.get("variableValues");
                let variables = variables.and_then(Value::as_object).cloned();
                Arc::new((remote.clone(), variables.unwrap_or_default()))
            }),
            starter,
            first_message,
            limits,
        }
    }

    /// The side that speaks; of the target it is the `member` with that place.
    fn side(&self, speaker: Speaker, member: usize) -> &Side {
        match (speaker, member) {
            (Speaker::Tester, _) => &self.tester,
            (Speaker::Target, 0) => &self.first,
            (Speaker::Target, place) => self.others.get(place - 1).unwrap_or(&self.first),
        }
    }

    /// What the tools give back that one reply calls. Of several handoffs in it the first that is possible is done.
    fn results(&self, speaker: Speaker, member: usize, calls: &[ToolCall]) -> Vec<ToolResult> {
        let mut handed = None;
        let result = |call: &ToolCall| {
            let result = self.result(speaker, member, call, handed);
            handed = handed.or(result.handoff);
            result
        };
        calls.iter().map(result).collect()
    }

    fn result(&self, speaker: Speaker, member: usize, call: &ToolCall, handed: Option<u32>) -> ToolResult {
        let side = self.side(speaker, member);
        let mock = if speaker == Speaker::Target {
            self.mocks.get(&call.name)
        } else {
            None
        };
        let mut handoff = None;
        let result = match (mock, side.handoffs.get(&call.name)) {
            (Some(result), _) => result.clone(),
            (None, _) if side.end_tools.contains(&call.name) => "The call has ended.".to_owned(),
            (None, _) if speaker == Speaker::Tester => {
                format!("Error: the caller has no tool {}.", call.name)
            }
            (None, Some(_)) if handed.is_some() => {
                "Error: the conversation was handed over by another call already.".to_owned()
            }
            (None, Some(way)) => match way.lead(&call.arguments, member) {
                Ok((place, said)) => {
                    handoff = Some(place);
                    said
                }
                Err(why) => why,
            },
            (None, None) => format!(
                "Error: the tool {0} was not run. Add a tool mock with the name {0}.",
                call.name
            ),
        };
        ToolResult {
            tool_call_id: call.id.clone(),
            name: call.name.clone(),
            result,
            mocked: mock.is_some(),
            handoff,
        }
    }
}

/// A personality's first system message, and `more` after it.
fn tester_prompt(personality: &Object, more: &[&str]) -> String {
    let own = prompt(personality)
        .first()
        .and_then(|message| message.get("content"))
        .and_then(text_of);
    let mut system = String::new();
    for part in std::iter::once(own.as_deref().unwrap_or_default()).chain(more.iter().copied()) {
        if !part.trim().is_empty() {
            system.push_str(if system.is_empty() { "" } else { "\n\n" });
            system.push_str(part.trim());
        }
    }
    system
}

/// The tester as a provider of calls is told of it: the personality with one system message, which is its own first one and
/// the scenario's instructions, and with an `endCall` tool if it has none.
#[must_use]
pub fn tester(personality: &Value, instructions: &str) -> Value {
    let mut tester = personality.as_object().cloned().unwrap_or_default();
    let system = tester_prompt(&tester, &[instructions]);
    let has_end_call = !Tools::of(&tester).ending.is_empty();
    let model = tester.entry("model").or_insert_with(|| json!({}));
    if let Some(model) = model.as_object_mut() {
        model.insert(
            "messages".to_owned(),
            json!([{"role": "system", "content": system}]),
        );
        if !has_end_call {
            match model.entry("tools").or_insert_with(|| json!([])) {
                Value::Array(tools) => tools.push(json!({"type": "endCall"})),
                other => *other = json!([{"type": "endCall"}]),
            }
        }
    }
    Value::Object(tester)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Speaks,
    Generates,
    Waits,
}

fn mode(assistant: &Object) -> Mode {
    match assistant.get("firstMessageMode").and_then(Value::as_str) {
        Some("assistant-waits-for-user") => Mode::Waits,
        Some("assistant-speaks-first-with-model-generated-message") => Mode::Generates,
        _ => Mode::Speaks,
    }
}

/// An assistant's tools as its model is told of them.
pub(crate) fn offered_tools(assistant: &Object) -> Vec<Json> {
    Tools::of(assistant).offered
}

/// An assistant's messages from before the conversation.
pub(crate) fn prompt(assistant: &Object) -> &[Value] {
    let messages = assistant.get("model").and_then(|model| model.get("messages"));
    messages.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn said(role: &str, text: &str) -> Json {
    Json::new(&json!({"role": role, "content": text}))
}

/// Lays `overrides` over an assistant. Of its `model` only the fields that they name are replaced.
fn lay_over(assistant: &mut Object, overrides: &Object) {
    for (key, value) in overrides {
        match (key.as_str(), value) {
            ("variableValues" | "tools:append", _) => {}
            ("model", Value::Object(fields)) => {
                let model = assistant.entry("model").or_insert_with(|| json!({}));
                match model.as_object_mut() {
                    Some(model) => model.extend(fields.clone()),
                    None => *model = value.clone(),
                }
            }
            _ => _ = assistant.insert(key.clone(), value.clone()),
        }
    }
    if let Some(Value::Array(more)) = overrides.get("tools:append") {
        let model = assistant.entry("model").or_insert_with(|| json!({}));
        if let Some(tools) = model
            .as_object_mut()
            .map(|model| model.entry("tools").or_insert_with(|| json!([])))
        {
            match tools.as_array_mut() {
                Some(tools) => tools.extend(more.iter().cloned()),
                None => *tools = Value::Array(more.clone()),
            }
        }
    }
}

/// The value of a variable, which may be inside of another one: `shop.city`.
fn variable(variables: &Object, path: &str) -> Option<String> {
    let mut steps = path.split('.');
    let first = variables.get(steps.next()?)?;
    match steps.try_fold(first, |at, key| at.get(key))? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// An assistant with the overrides laid over it, the last ones on top, and the placeholders filled in from the variables of
/// all of them. Gives these variables too.
pub(crate) fn overridden(assistant: &Value, layers: &[&Value]) -> (Object, Object) {
    let mut assistant = assistant.as_object().cloned().unwrap_or_default();
    let mut variables = Object::new();
    for overrides in layers.iter().filter_map(|layer| layer.as_object()) {
        lay_over(&mut assistant, overrides);
        if let Some(Value::Object(values)) = overrides.get("variableValues") {
            variables.extend(values.clone());
        }
    }
    let lookup = |path: &str| variable(&variables, path);
    for key in ["firstMessage", "endCallMessage"] {
        if let Some(Value::String(text)) = assistant.get_mut(key) {
            *text = fill(text, lookup);
        }
    }
    let messages = assistant
        .get_mut("model")
        .and_then(|model| model.get_mut("messages"));
    for message in messages.and_then(Value::as_array_mut).into_iter().flatten() {
        match message.get_mut("content") {
            Some(Value::String(text)) => *text = fill(text, lookup),
            Some(Value::Array(parts)) => {
                for part in parts {
                    if let Some(Value::String(text)) = part.get_mut("text") {
                        *text = fill(text, lookup);
                    }
                }
            }
            _ => {}
        }
    }
    (assistant, variables)
}

/// How long a text may become by what is filled in, in bytes: a few placeholders of a large value would make any amount.
const FILLED: usize = 1_000_000;

/// Replaces `{{name}}` by what `lookup` knows for it, and `{{name | default: "text"}}` by the text where it knows nothing.
/// A placeholder that cannot be filled stays, so that it is seen; so does one whose value would make the text too long.
pub fn fill(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let Some(length) = rest[start..].find("}}") else {
            break;
        };
        let end = start + length + 2;
        let (name, filter) = match rest[start + 2..end - 2].split_once('|') {
            Some((name, filter)) => (name.trim(), Some(filter)),
            None => (rest[start + 2..end - 2].trim(), None),
        };
        let fallback = filter.and_then(|filter| {
            let text = filter.trim().strip_prefix("default:")?.trim();
            let quoted = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
            quoted('"').or_else(|| quoted('\'')).map(str::to_owned)
        });
        out.push_str(&rest[..start]);
        match lookup(name).or(fallback) {
            Some(value) if out.len() + value.len() <= FILLED => out.push_str(&value),
            Some(_) | None => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn nonempty(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn tool_kind(tool: &Object) -> &str {
    nonempty(tool.get("type")).unwrap_or("function")
}

/// What a tool takes that does not say it itself.
fn usual_parameters(kind: &str) -> Value {
    let properties = match kind {
        "dtmf" => json!({"dtmf": {"type": "string", "description": "The keys to press, such as 1234#."}}),
        "query" => json!({"knowledgeBaseNames": {"type": "array", "items": {"type": "string"}}}),
        _ => json!({}),
    };
    json!({"type": "object", "properties": properties})
}

/// What a tool is called.
fn tool_name(tool: &Object) -> Option<&str> {
    let own = tool
        .get("function")
        .and_then(|function| nonempty(function.get("name")));
    let top = nonempty(tool.get("name"));
    match tool_kind(tool) {
        "function" => own.or(top),
        "apiRequest" => top.or(own),
        kind => own.or(top).or(Some(kind)),
    }
}

/// The tools of an assistant that can be run, by their names, each with the server that is asked.
type Runnable = HashMap<String, Arc<Value>>;

fn runnable(assistant: &Object) -> Runnable {
    let server = assistant.get("server").cloned().or_else(|| {
        let url = assistant.get("serverUrl")?;
        Some(json!({ "url": url }))
    });
    let tools = assistant.get("model").and_then(|model| model.get("tools"));
    let tools = tools.and_then(Value::as_array).into_iter().flatten();
    let mut named = HashMap::new();
    for tool in tools.filter_map(Value::as_object) {
        let kind = tool_kind(tool);
        let Some(name) = tool_name(tool).filter(|_| matches!(kind, "function" | "apiRequest")) else {
            continue;
        };
        let mut tool = tool.clone();
        if kind == "function"
            && let Some(server) = &server
        {
            tool.entry("server").or_insert_with(|| server.clone());
        }
        named
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Value::Object(tool)));
    }
    named
}

/// The tools of one side.
#[derive(Debug, Default)]
struct Tools {
    offered: Vec<Json>,
    names: HashSet<String>,
    ending: HashSet<String>,
    handoffs: HashMap<String, Handoff>,
}

impl Tools {
    fn of(assistant: &Object) -> Self {
        let mut tools = Self::default();
        let given = assistant
            .get("model")
            .and_then(|model| model.get("tools"))
            .and_then(Value::as_array);
        for tool in given.into_iter().flatten().filter_map(Value::as_object) {
            tools.add(tool);
        }
        tools
    }

    fn add(&mut self, tool: &Object) {
        let kind = tool_kind(tool);
        let function = tool.get("function").and_then(Value::as_object);
        let field = |name: &str| function.and_then(|function| function.get(name));
        let Some(name) = tool_name(tool) else { return };
        // A server refuses two tools of one name.
        if !self.names.insert(name.to_owned()) {
            return;
        }
        let mut out = Object::new();
        out.insert("name".to_owned(), name.into());
        if let Some(description) =
            nonempty(field("description")).or_else(|| nonempty(tool.get("description")))
        {
            out.insert("description".to_owned(), description.into());
        }
        let body = if kind == "apiRequest" {
            tool.get("body")
        } else {
            None
        };
        let parameters = field("parameters").or(body).filter(|schema| schema.is_object());
        out.insert(
            "parameters".to_owned(),
            parameters.cloned().unwrap_or_else(|| usual_parameters(kind)),
        );
        if let Some(strict) = field("strict") {
            out.insert("strict".to_owned(), strict.clone());
        }
        if kind == END_CALL || name == END_CALL {
            self.ending.insert(name.to_owned());
        }
        self.offered
            .push(Json::new(&json!({"type": "function", "function": out})));
    }

    fn offer_end_call(&mut self) {
        if self.ending.is_empty() {
            let tool = json!({"type": "function", "function": {
                "name": END_CALL,
                "description": "Ends the call.",
                "parameters": {"type": "object", "properties": {
                    "reason": {"type": "string", "description": "Why the call ends, in a few words."}
                }}
            }});
            if let Some(tool) = tool.as_object() {
                self.add(tool);
            }
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Record this fixed first message with [`Conversation::say`]; no model is called.
    Say {
        /// Who says it.
        speaker: Speaker,
        /// What is said.
        text: String,
    },
    /// Ask a model, then [`Conversation::accept`] its reply.
    Call {
        /// Who is to reply.
        speaker: Speaker,
        /// The request; its `model` is empty until the model is resolved.
        request: ChatRequest,
        /// The assistant's `model` object, for choosing the server.
        model: Arc<Value>,
    },
    /// Ask whoever holds the target's side, then [`Conversation::accept_turn`] what it says.
    Ask {
        /// Who it is, and the values of the target's variables.
        remote: Arc<(Remote, Object)>,
        /// The chat that goes on.
        previous: Option<String>,
        /// What was said since then: messages with `role` and `content`.
        input: Vec<Json>,
    },
    /// Nothing: it is over.
    End(EndedReason),
}

/// A conversation: its plan and the replies so far.
#[derive(Debug, Clone)]
pub struct Conversation {
    plan: Arc<Plan>,
    replies: Vec<Reply>,
    /// For each reply which member of the target was the target then.
    members: Vec<usize>,
    /// The conversation as each side's model sees it, of the target the active member's.
    tester_view: Vec<Json>,
    target_view: Vec<Json>,
    /// The member that is the target now.
    active: usize,
    /// Whether the last reply made it that.
    handed: bool,
    speaker: Speaker,
    /// What the speaker has said in this turn; the other side hears it when the turn is over.
    spoken: String,
    turns: u32,
    tool_rounds: u32,
    silent: bool,
    ended: Option<EndedReason>,
}

impl Conversation {
    /// The conversation after `replies`, which are the stored ones in their order.
    #[must_use]
    pub fn new(plan: impl Into<Arc<Plan>>, replies: Vec<Reply>) -> Self {
        let plan = plan.into();
        let mut conversation = Self {
            replies: Vec::with_capacity(replies.len()),
            members: Vec::new(),
            tester_view: plan.tester.base.messages.clone(),
            target_view: plan.first.base.messages.clone(),
            active: 0,
            handed: false,
            speaker: plan.starter,
            spoken: String::new(),
            turns: 0,
            tool_rounds: 0,
            silent: false,
            ended: None,
            plan,
        };
        for reply in replies {
            conversation.push(reply);
        }
        conversation
    }

    /// What to do next. `now_ms` is the time in milliseconds since the Unix epoch. Changes nothing.
    #[must_use]
    pub fn next(&self, now_ms: i64) -> Next {
        if let Some(reason) = self.ended {
            return Next::End(reason);
        }
        let plan = &*self.plan;
        let Some(first) = self.replies.first() else {
            return match &plan.first_message {
                Some(text) => Next::Say {
                    speaker: self.speaker,
                    text: text.clone(),
                },
                None => self.call(),
            };
        };
        if now_ms.saturating_sub(first.at) >= plan.limits.max_seconds.saturating_mul(1000) {
            return Next::End(EndedReason::ExceededMaxDuration);
        }
        match &self.side().greeting {
            Some(text) if self.handed => Next::Say {
                speaker: self.speaker,
                text: text.clone(),
            },
            _ => self.call(),
        }
    }

    /// The side that is to speak.
    fn side(&self) -> &Side {
        self.plan.side(self.speaker, self.active)
    }

    /// What whoever holds the target's side has not heard yet, and the chat that it goes on from.
    fn ask(&self, remote: &Arc<(Remote, Object)>) -> Next {
        let turns = self.replies.iter().rev();
        let previous = turns.into_iter().find_map(|reply| reply.chat_id.clone());
        let opening = self.plan.first.base.messages.len();
        let mut input: Vec<Json> = match previous {
            Some(_) if self.silent => vec![said("user", WAITING)],
            // Its own words are in the chat already.
            Some(_) => self.target_view.last().cloned().into_iter().collect(),
            None => self.target_view.iter().skip(opening).cloned().collect(),
        };
        if input.is_empty() {
            input.push(said("user", CONNECTED));
        }
        Next::Ask {
            remote: Arc::clone(remote),
            previous,
            input,
        }
    }

    fn call(&self) -> Next {
        if let (Speaker::Target, Some(remote)) = (self.speaker, &self.plan.remote) {
            return self.ask(remote);
        }
        let side = self.side();
        let view = match self.speaker {
            Speaker::Tester => &self.tester_view,
            Speaker::Target => &self.target_view,
        };
        let request = ChatRequest {
            model: String::new(),
            messages: view.clone(),
            tools: side.base.tools.clone(),
            tool_choice: None,
            response_format: None,
            ..side.base
        };
        Next::Call {
            speaker: self.speaker,
            request,
            model: Arc::clone(&side.model),
        }
    }

    fn record(&self, content: Option<String>, tool_calls: Vec<ToolCall>, at: i64, ended_at: i64) -> Reply {
        let side = self.side();
        Reply {
            n: u32::try_from(self.replies.len()).unwrap_or(u32::MAX),
            speaker: self.speaker,
            content,
            tool_results: self.plan.results(self.speaker, self.active, &tool_calls),
            tool_calls,
            at,
            ended_at,
            usage: None,
            model: None,
            assistant_name: side.name.clone(),
            assistant_id: side.id.clone(),
            cost: None,
            chat_id: None,
        }
    }

    /// The record of a fixed first message, said at `now_ms`. Changes nothing: store the record, then
    /// [`Conversation::push`] it.
    #[must_use]
    pub fn say(&self, speaker: Speaker, text: String, now_ms: i64) -> Reply {
        Reply {
            speaker,
            ..self.record(Some(text), Vec::new(), now_ms, now_ms)
        }
    }

    /// The record of a model's reply to the last [`Next::Call`], with the results of its tool calls. Times are in
    /// milliseconds since the Unix epoch. Changes nothing: store the record, then [`Conversation::push`] it.
    #[must_use]
    pub fn accept(&self, reply: ChatReply, started_ms: i64, ended_ms: i64) -> Reply {
        let side = self.side();
        let mut calls = reply.tool_calls;
        for (index, call) in calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = format!("call_{}_{index}", self.replies.len());
            }
        }
        let mut content = reply
            .content
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty());
        if content.is_none() && calls.iter().any(|call| side.end_tools.contains(&call.name)) {
            content.clone_from(&side.end_message);
        }
        let mut record = self.record(content, calls, started_ms, ended_ms);
        if record.content.is_none() {
            // Who hands over without a word says what the destination has for that.
            record.content = side.handing_over(&record);
        }
        Reply {
            usage: reply.usage,
            model: reply.model,
            cost: reply.cost,
            ..record
        }
    }

    /// The record of a turn of whoever holds the target's side. Times are in milliseconds since the Unix epoch. Changes nothing:
    /// store the record, then [`Conversation::push`] it.
    #[must_use]
    pub fn accept_turn(&self, turn: ChatTurn, started_ms: i64, ended_ms: i64) -> Reply {
        let reply = ChatReply {
            content: turn.content,
            tool_calls: turn.tools.iter().map(|(call, _)| call.clone()).collect(),
            // What it took is known by its cost only.
            model: Some(REMOTE_MODEL.to_owned()),
            cost: turn.cost,
            ..ChatReply::default()
        };
        let mut record = self.accept(reply, started_ms, ended_ms);
        for (kept, (_, result)) in record.tool_results.iter_mut().zip(turn.tools) {
            kept.result = result.unwrap_or_default();
        }
        record.chat_id = Some(turn.chat_id);
        record
    }

    /// The tools of an accepted reply that are to be run for real, each with the place of its result: until then that says that it
    /// was not run.
    #[must_use]
    pub fn to_run(&self, reply: &Reply) -> Vec<(usize, Arc<Value>, ToolCall)> {
        let Some(tools) = self.plan.tools.get(self.active) else {
            return Vec::new();
        };
        let side = self.plan.side(reply.speaker, self.active);
        let calls = reply.tool_calls.iter().zip(&reply.tool_results).enumerate();
        let to_run = calls.filter_map(|(place, (call, result))| {
            let own = side.end_tools.contains(&call.name) || side.handoffs.contains_key(&call.name);
            let tool = tools.get(&call.name).filter(|_| !result.mocked && !own)?;
            Some((place, Arc::clone(tool), call.clone()))
        });
        if reply.speaker == Speaker::Target {
            to_run.collect()
        } else {
            Vec::new()
        }
    }

    /// Adds a stored reply.
    pub fn push(&mut self, reply: Reply) {
        let side = self.plan.side(reply.speaker, self.active);
        self.handed = false;
        let ended_by = |target: EndedReason| match reply.speaker {
            Speaker::Tester => EndedReason::CustomerEndedCall,
            Speaker::Target => target,
        };
        self.speaker = reply.speaker;
        let content = reply.content.as_deref();
        if let Some(text) = content {
            self.spoken
                .push_str(if self.spoken.is_empty() { "" } else { " " });
            self.spoken.push_str(text);
        }
        let own = match reply.speaker {
            Speaker::Tester => &mut self.tester_view,
            Speaker::Target => &mut self.target_view,
        };
        if reply.tool_calls.is_empty() {
            if let Some(text) = content {
                own.push(said("assistant", text));
            }
        } else {
            own.push(tool_call_message(content, &reply.tool_calls));
            own.extend(reply.tool_results.iter().map(ToolResult::message));
        }
        if reply
            .tool_calls
            .iter()
            .any(|call| side.end_tools.contains(&call.name))
        {
            self.ended = Some(ended_by(EndedReason::AssistantEndedCall));
        } else if content.is_some_and(|text| ends_with_phrase(text, &side.end_phrases)) {
            self.ended = Some(ended_by(EndedReason::AssistantSaidEndCallPhrase));
        } else if !reply.tool_calls.is_empty() && reply.chat_id.is_none() {
            self.silent = false;
            self.tool_rounds += 1;
            if self.tool_rounds > self.plan.limits.max_tool_rounds {
                self.ended = Some(EndedReason::MaxToolRoundsReached);
            }
        } else if content.is_none() && self.spoken.is_empty() {
            // The same side gets a second chance.
            if self.silent {
                self.ended = Some(EndedReason::SilenceTimedOut);
            }
            self.silent = true;
        } else {
            self.pass_on();
        }
        let handoff = reply.tool_results.iter().find_map(|result| result.handoff);
        self.members.push(self.active);
        self.replies.push(reply);
        if let (Some(member), None) = (handoff, self.ended) {
            self.hand_over(member);
        }
    }

    /// Makes another member the target: it goes on in the same turn, with what it is to know of the conversation.
    fn hand_over(&mut self, member: u32) {
        let former = self.plan.side(self.speaker, self.active);
        let history = self.replies.last().and_then(|reply| former.history(reply));
        self.active = member as usize;
        self.handed = true;
        self.target_view = squad::view(
            &self.side().base.messages,
            history.unwrap_or_default(),
            self.replies.iter().zip(self.members.iter().copied()),
            self.active,
        );
    }

    /// Ends the speaker's turn.
    fn pass_on(&mut self) {
        let heard = said("user", &self.spoken);
        self.speaker = self.speaker.other();
        match self.speaker {
            Speaker::Tester => self.tester_view.push(heard),
            Speaker::Target => self.target_view.push(heard),
        }
        self.spoken.clear();
        self.silent = false;
        self.tool_rounds = 0;
        self.turns += 1;
        if self.turns >= self.plan.limits.max_turns {
            self.ended = Some(EndedReason::MaxTurnsReached);
        }
    }

    /// The replies so far.
    #[must_use]
    pub fn replies(&self) -> &[Reply] {
        &self.replies
    }

    /// Why it ended, where a reply ended it. The time limit shows in [`Conversation::next`] only.
    #[must_use]
    pub const fn ended(&self) -> Option<EndedReason> {
        self.ended
    }

    /// Why the side that hung up says that it did.
    #[must_use]
    pub fn hang_up_reason(&self) -> Option<String> {
        let last = self.replies.last()?;
        let side = self.plan.side(last.speaker, self.active);
        let call = last
            .tool_calls
            .iter()
            .find(|call| side.end_tools.contains(&call.name))?;
        let arguments: Value = serde_json::from_str(&call.arguments).ok()?;
        text_of(arguments.get("reason")?)
    }

    /// When it started, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn started_ms(&self) -> Option<i64> {
        self.replies.first().map(|reply| reply.at)
    }

    /// When the last reply was complete, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn ended_ms(&self) -> Option<i64> {
        self.replies.last().map(|reply| reply.ended_at)
    }

    /// What was said and done, for `metadata.call.messages`. See [`messages`].
    #[must_use]
    pub fn messages(&self) -> Vec<Value> {
        messages(&self.replies)
    }

    /// What was said. See [`transcript`].
    #[must_use]
    pub fn transcript(&self) -> String {
        transcript(&self.replies)
    }
}

fn tool_call_message(content: Option<&str>, calls: &[ToolCall]) -> Json {
    Json::new(&json!({"role": "assistant", "content": content, "tool_calls": functions(calls)}))
}

fn functions(calls: &[ToolCall]) -> Vec<Value> {
    let function = |call: &ToolCall| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}});
    calls.iter().map(function).collect()
}

fn ends_with_phrase(text: &str, phrases: &[String]) -> bool {
    if phrases.is_empty() {
        return false;
    }
    let text = text.to_lowercase();
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// The messages of these replies: `assistant` is the target, `user` the tester; tool use of either side shows as
/// `tool_calls` and `tool_call_result` with a `speaker`. `time` and `endTime` are milliseconds since the Unix epoch. What a
/// squad's member said and did has its `assistantName` and, if it is stored, its `assistantId`.
///
/// Prompts are left out: they are in the item's snapshots already, and the tester's is nothing that the target was told.
#[must_use]
pub fn messages(replies: &[Reply]) -> Vec<Value> {
    let start = replies.first().map_or(0, |reply| reply.at);
    let mut messages = Vec::with_capacity(replies.len());
    for reply in replies {
        let mut add = |role: &str, text: &str, rest: Value| {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a conversation is shorter than 2^53 ms"
            )]
            let seconds = reply.at.saturating_sub(start) as f64 / 1000.0;
            let mut message = json!({
                "role": role, "content": text, "message": text,
                "time": reply.at, "endTime": reply.ended_at, "secondsFromStart": seconds,
            });
            if let (Some(message), Value::Object(rest)) = (message.as_object_mut(), rest) {
                message.extend(rest);
                for (field, value) in [
                    ("assistantName", &reply.assistant_name),
                    ("assistantId", &reply.assistant_id),
                ] {
                    if let Some(value) = value {
                        message.insert(field.to_owned(), json!(value));
                    }
                }
            }
            messages.push(message);
        };
        let role = match reply.speaker {
            Speaker::Tester => "user",
            Speaker::Target => "assistant",
        };
        // Somebody else's tools were run before it spoke.
        let (before, after) = match reply.chat_id {
            Some(_) => (None, reply.content.as_deref()),
            None => (reply.content.as_deref(), None),
        };
        if let Some(text) = before {
            add(role, text, json!({}));
        }
        let speaker = reply.speaker.as_str();
        if !reply.tool_calls.is_empty() {
            add(
                "tool_calls",
                "",
                json!({"toolCalls": functions(&reply.tool_calls), "speaker": speaker}),
            );
        }
        for result in &reply.tool_results {
            let rest = json!({
                "toolCallId": result.tool_call_id, "name": result.name, "result": result.result,
                "mocked": result.mocked, "speaker": speaker,
            });
            add("tool_call_result", &result.result, rest);
        }
        if let Some(text) = after {
            add(role, text, json!({}));
        }
    }
    messages
}

/// What was said, one line for each utterance: `AI: …` is the target, `User: …` the tester.
#[must_use]
pub fn transcript(replies: &[Reply]) -> String {
    let mut transcript = String::new();
    for reply in replies {
        if let Some(text) = &reply.content {
            transcript.push_str(if reply.speaker == Speaker::Tester {
                "User: "
            } else {
                "AI: "
            });
            transcript.push_str(text);
            transcript.push('\n');
        }
    }
    transcript.truncate(transcript.trim_end().len());
    transcript
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan_of(personality: Value, target: Value, overrides: Value, mocks: Value) -> Arc<Plan> {
        Arc::new(Plan::new(&Parts {
            personality: &personality,
            instructions: "Book a table.",
            target: Target::Assistant(&target),
            tool_mocks: &mocks,
            target_overrides: &overrides,
            remote: None,
            runs_tools: false,
            limits: Limits::default(),
        }))
    }

    /// A conversation whose target is held by somebody else.
    fn with_remote(personality: &Value) -> Conversation {
        let remote = Remote {
            endpoint: uuid::Uuid::nil(),
            assistant_id: "a".to_owned(),
        };
        let plan = Plan::new(&Parts {
            personality,
            instructions: "Book a table.",
            target: Target::Assistant(&target()),
            tool_mocks: &Value::Null,
            target_overrides: &overrides(),
            remote: Some(&remote),
            runs_tools: false,
            limits: Limits::default(),
        });
        Conversation::new(plan, vec![])
    }

    /// What the holder of the target's side is asked: which chat goes on, and with what.
    fn asked(conversation: &Conversation) -> (Option<String>, Value) {
        match conversation.next(5) {
            Next::Ask {
                previous,
                input,
                remote,
            } => {
                assert_eq!(remote.1, *overrides()["variableValues"].as_object().unwrap());
                (previous, serde_json::to_value(&input).unwrap())
            }
            next => panic!("{next:?}"),
        }
    }

    fn turn(chat_id: &str, content: Option<&str>, tools: Vec<(ToolCall, Option<String>)>) -> ChatTurn {
        ChatTurn {
            chat_id: chat_id.to_owned(),
            content: content.map(str::to_owned),
            tools,
            cost: Some(7),
        }
    }

    fn tester_says(conversation: &mut Conversation, text: &str) {
        assert!(matches!(
            conversation.next(5),
            Next::Call {
                speaker: Speaker::Tester,
                ..
            }
        ));
        let reply = ChatReply {
            content: Some(text.to_owned()),
            ..ChatReply::default()
        };
        conversation.push(conversation.accept(reply, 5, 6));
    }

    #[test]
    fn who_holds_the_targets_side_is_asked_for_its_turns() {
        let mut personality = personality();
        personality["firstMessageMode"] = json!("assistant-waits-for-user");
        let mut conversation = with_remote(&personality);
        let Next::Say { speaker, text } = conversation.next(5) else {
            panic!("the target has a first message")
        };
        assert_eq!((speaker, text.as_str()), (Speaker::Target, "Hello Ann!"));
        conversation.push(conversation.say(speaker, text, 5));
        tester_says(&mut conversation, "A table, please.");
        let both = json!([
            {"role": "assistant", "content": "Hello Ann!"}, {"role": "user", "content": "A table, please."},
        ]);
        assert_eq!(
            asked(&conversation),
            (None, both),
            "all of it, for the chat is new"
        );
        let call = ToolCall {
            id: "c1".to_owned(),
            name: "book".to_owned(),
            arguments: "{}".to_owned(),
        };
        let tools = vec![(call.clone(), Some("booked".to_owned()))];
        conversation.push(conversation.accept_turn(turn("chat-1", Some("Done."), tools), 6, 7));
        let messages = conversation.messages();
        let roles: Vec<_> = messages
            .iter()
            .map(|message| message["role"].as_str().unwrap())
            .collect();
        assert_eq!(
            roles,
            ["assistant", "user", "tool_calls", "tool_call_result", "assistant"]
        );
        assert_eq!(messages[3]["result"], "booked");
        tester_says(&mut conversation, "Thanks.");
        let news = json!([{"role": "user", "content": "Thanks."}]);
        assert_eq!(asked(&conversation), (Some("chat-1".to_owned()), news));
        let resumed = Conversation::new(Arc::clone(&conversation.plan), conversation.replies.clone());
        assert_eq!(asked(&resumed), asked(&conversation));
        // Who says nothing is asked once more.
        conversation.push(conversation.accept_turn(turn("chat-2", None, vec![]), 8, 9));
        let wait = json!([{"role": "user", "content": WAITING}]);
        assert_eq!(asked(&conversation), (Some("chat-2".to_owned()), wait));
        let end = ToolCall {
            name: "endCall".to_owned(),
            ..call
        };
        let last = turn("chat-3", Some("Bye."), vec![(end, None)]);
        conversation.push(conversation.accept_turn(last, 9, 10));
        assert_eq!(conversation.next(10), Next::End(EndedReason::AssistantEndedCall));
        let costs: i64 = conversation.replies().iter().filter_map(|reply| reply.cost).sum();
        assert_eq!(costs, 21);
    }

    #[test]
    fn who_holds_the_targets_side_may_have_to_speak_first() {
        let mut personality = personality();
        personality["firstMessageMode"] = json!("assistant-waits-for-user");
        let mut conversation = with_remote(&personality);
        let plan = Arc::make_mut(&mut conversation.plan);
        plan.first_message = None;
        let connected = json!([{"role": "user", "content": CONNECTED}]);
        assert_eq!(asked(&conversation), (None, connected));
    }

    fn personality() -> Value {
        json!({"model": {"provider": "openai", "temperature": 0.3, "messages": [
            {"role": "system", "content": "You are in a hurry."}, {"role": "system", "content": "hidden"}
        ]}})
    }

    fn target() -> Value {
        json!({
            "firstMessage": "Hello {{ name }}!",
            "endCallPhrases": ["Have a nice DAY"],
            "endCallMessage": "Bye {{name}}.",
            "model": {"provider": "openai", "model": "m", "maxTokens": 50.0, "messages": [
                {"role": "system", "content": "Serve {{name}} of {{shop.city}} {{missing}} {{x | default: 'y'}}"}
            ], "tools": [
                {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}, "strict": true}},
                {"type": "apiRequest", "name": "lookUp", "function": {"name": "api"}, "body": {"type": "object", "properties": {"id": {"type": "string"}}}},
                {"type": "endCall"},
                {"type": "dtmf"},
                {"type": "function", "function": {"name": "book"}}
            ]}
        })
    }

    fn overrides() -> Value {
        json!({"variableValues": {"name": "Ann", "shop": {"city": "Bern"}}, "model": {"temperature": 0.9}, "maxDurationSeconds": 60})
    }

    fn mocks() -> Value {
        json!([{"toolName": "book", "result": "booked"}, {"toolName": "lookUp", "result": "x", "enabled": false}])
    }

    fn plan() -> Arc<Plan> {
        plan_of(personality(), target(), overrides(), mocks())
    }

    fn text(text: &str) -> ChatReply {
        ChatReply {
            content: Some(text.to_owned()),
            ..ChatReply::default()
        }
    }

    fn calls(content: Option<&str>, names: &[&str]) -> ChatReply {
        let call = |name: &&str| ToolCall {
            id: String::new(),
            name: (*name).to_owned(),
            arguments: "{}".to_owned(),
        };
        let content = content.map(str::to_owned);
        ChatReply {
            content,
            tool_calls: names.iter().map(call).collect(),
            ..ChatReply::default()
        }
    }

    fn feed(conversation: &mut Conversation, reply: ChatReply, at: i64) -> Reply {
        let record = conversation.accept(reply, at, at + 10);
        conversation.push(record.clone());
        record
    }

    fn request(conversation: &Conversation, now: i64) -> (Speaker, Value) {
        match conversation.next(now) {
            Next::Call { speaker, request, .. } => (speaker, serde_json::to_value(request).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_filled_in_does_not_make_a_text_of_any_length() {
        let large = "x".repeat(300_000);
        let filled = fill(&"{{a}}".repeat(69_000), |_| Some(large.clone()));
        assert!(filled.len() < FILLED + 69_000 * 5);
        assert!(filled.starts_with('x') && filled.ends_with("{{a}}"));
    }

    #[test]
    fn the_tester_gets_its_prompt_the_instructions_and_a_way_to_hang_up() {
        let conversation = Conversation::new(plan(), vec![]);
        let (speaker, request) = request(&conversation, 0);
        assert_eq!(speaker, Speaker::Tester);
        let system = request["messages"][0]["content"].as_str().unwrap();
        assert!(
            system.starts_with("You are in a hurry.\n\nBook a table.\n\n"),
            "{system}"
        );
        assert!(!system.contains("hidden"));
        assert_eq!(request["messages"][1]["role"], "user");
        assert_eq!(request["tools"][0]["function"]["name"], "endCall");
        assert_eq!(request["temperature"], 0.3);
    }

    #[test]
    fn the_target_is_as_configured_with_the_overrides() {
        let mut conversation = Conversation::new(plan(), vec![]);
        feed(&mut conversation, text("Hi"), 0);
        let Next::Call {
            speaker,
            request,
            model,
        } = conversation.next(0)
        else {
            panic!()
        };
        assert_eq!(
            (speaker, &*model),
            (
                Speaker::Target,
                &json!({"provider": "openai", "model": "m", "maxTokens": 50.0, "temperature": 0.9})
            )
        );
        let request = serde_json::to_value(request).unwrap();
        assert_eq!(
            request["messages"],
            json!([{"role": "system", "content": "Serve Ann of Bern {{missing}} y"}, {"role": "user", "content": "Hi"}])
        );
        assert_eq!(
            (&request["temperature"], &request["max_tokens"]),
            (&json!(0.9), &json!(50))
        );
        let names: Vec<_> = request["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["function"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["book", "lookUp", "endCall", "dtmf"]);
        assert_eq!(
            request["tools"][1]["function"]["parameters"]["properties"]["id"]["type"],
            "string"
        );
    }

    #[test]
    fn who_starts_and_how_follows_from_the_modes() {
        let (speaks, generates, waits) = (
            "assistant-speaks-first",
            "assistant-speaks-first-with-model-generated-message",
            "assistant-waits-for-user",
        );
        for (mode, first, target_mode, expected) in [
            (Some(speaks), Some("Hey"), speaks, (Speaker::Tester, Some("Hey"))),
            (None, Some("Hey"), speaks, (Speaker::Tester, Some("Hey"))),
            (None, None, speaks, (Speaker::Tester, None)),
            (Some(generates), Some("Hey"), speaks, (Speaker::Tester, None)),
            (
                Some(waits),
                Some("Hey"),
                speaks,
                (Speaker::Target, Some("Hello Ann!")),
            ),
            (Some(waits), None, waits, (Speaker::Target, Some("Hello Ann!"))),
            (Some(waits), None, generates, (Speaker::Target, None)),
        ] {
            let (mut personality, mut target) = (personality(), target());
            personality["firstMessageMode"] = json!(mode);
            personality["firstMessage"] = json!(first);
            target["firstMessageMode"] = json!(target_mode);
            let mut conversation =
                Conversation::new(plan_of(personality, target, overrides(), Value::Null), vec![]);
            let found = match conversation.next(5) {
                Next::Say { speaker, text } => {
                    let reply = conversation.say(speaker, text, 5);
                    conversation.push(reply.clone());
                    let (next, request) = request(&conversation, 5);
                    assert_eq!(next, reply.speaker.other());
                    assert_eq!(
                        request["messages"].as_array().unwrap().last().unwrap()["content"],
                        json!(reply.content)
                    );
                    (reply.speaker, reply.content)
                }
                Next::Call { speaker, .. } => (speaker, None),
                Next::Ask { .. } => unreachable!("nobody else holds a side"),
                Next::End(reason) => panic!("{reason}"),
            };
            assert_eq!(
                found,
                (expected.0, expected.1.map(str::to_owned)),
                "{mode:?} {first:?} {target_mode}"
            );
        }
    }

    #[test]
    fn tools_are_mocked_or_refused_and_the_same_side_goes_on() {
        let mut conversation = Conversation::new(plan(), vec![]);
        feed(&mut conversation, text("A table please"), 1000);
        let reply = feed(
            &mut conversation,
            calls(Some("One moment."), &["book", "lookUp"]),
            2000,
        );
        assert_eq!(reply.tool_results[0].result, "booked");
        assert!(reply.tool_results[0].mocked && !reply.tool_results[1].mocked);
        assert!(reply.tool_results[1].result.contains("lookUp"));
        assert_ne!(reply.tool_calls[0].id, reply.tool_calls[1].id);
        let (speaker, request_) = request(&conversation, 2100);
        assert_eq!(speaker, Speaker::Target);
        let sent = request_["messages"].as_array().unwrap();
        assert_eq!(sent[2]["tool_calls"][0]["function"]["name"], "book");
        assert_eq!(
            sent[3],
            json!({"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "booked"})
        );
        feed(&mut conversation, text("It is booked."), 3000);
        let (speaker, request_) = request(&conversation, 3100);
        assert_eq!(speaker, Speaker::Tester);
        let heard = request_["messages"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            heard,
            json!({"role": "user", "content": "One moment. It is booked."})
        );
        assert_eq!(
            conversation.transcript(),
            "User: A table please\nAI: One moment.\nAI: It is booked."
        );
        let messages = conversation.messages();
        let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(
            roles,
            [
                "user",
                "assistant",
                "tool_calls",
                "tool_call_result",
                "tool_call_result",
                "assistant"
            ]
        );
        assert_eq!(messages[2]["toolCalls"][1]["function"]["name"], "lookUp");
        assert_eq!(
            messages[3],
            json!({"role": "tool_call_result", "toolCallId": reply.tool_calls[0].id, "name": "book", "result": "booked",
                "content": "booked", "message": "booked", "mocked": true, "speaker": "target",
                "time": 2000, "endTime": 2010, "secondsFromStart": 1.0})
        );
    }

    #[test]
    fn every_way_to_end() {
        let ended = |replies: Vec<ChatReply>| {
            let mut conversation = Conversation::new(plan(), vec![]);
            for reply in replies {
                assert_eq!(conversation.ended(), None);
                feed(&mut conversation, reply, 0);
            }
            match conversation.next(0) {
                Next::End(reason) => (Some(reason), conversation),
                _ => (None, conversation),
            }
        };
        let mut goodbye = calls(Some("Thanks, bye"), &["endCall"]);
        goodbye.tool_calls[0].arguments = r#"{"reason":"done"}"#.to_owned();
        let (reason, conversation) = ended(vec![goodbye]);
        assert_eq!(reason, Some(EndedReason::CustomerEndedCall));
        assert_eq!(conversation.hang_up_reason().as_deref(), Some("done"));
        assert_eq!(conversation.transcript(), "User: Thanks, bye");
        assert_eq!(conversation.messages()[1]["speaker"], "tester");
        let (reason, conversation) = ended(vec![text("a"), calls(None, &["endCall"])]);
        assert_eq!(reason, Some(EndedReason::AssistantEndedCall));
        assert_eq!(conversation.transcript(), "User: a\nAI: Bye Ann.");
        assert_eq!(
            ended(vec![text("a"), text("so have a nice day!")]).0,
            Some(EndedReason::AssistantSaidEndCallPhrase)
        );
        assert_eq!(
            ended(vec![text("have a nice day")]).0,
            None,
            "the phrase of the other side"
        );
        assert_eq!(
            ended(vec![text("a"), text(" "), ChatReply::default()]).0,
            Some(EndedReason::SilenceTimedOut)
        );
        assert_eq!(ended(vec![text("a"), text(""), text("b"), text("")]).0, None);
        assert_eq!(
            ended((0..40).map(|_| text("x")).collect()).0,
            Some(EndedReason::MaxTurnsReached)
        );
        assert_eq!(ended((0..39).map(|_| text("x")).collect()).0, None);
        let rounds = |n| {
            std::iter::once(text("a"))
                .chain((0..n).map(|_| calls(None, &["book"])))
                .collect()
        };
        assert_eq!(ended(rounds(8)).0, None);
        assert_eq!(ended(rounds(9)).0, Some(EndedReason::MaxToolRoundsReached));
        let mut conversation = Conversation::new(plan(), vec![]);
        feed(&mut conversation, text("a"), 1000);
        assert!(matches!(conversation.next(60_999), Next::Call { .. }));
        assert_eq!(
            conversation.next(61_000),
            Next::End(EndedReason::ExceededMaxDuration)
        );
        for reason in [
            EndedReason::MaxToolRoundsReached,
            EndedReason::AssistantSaidEndCallPhrase,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn placeholders_that_cannot_be_filled_stay() {
        let known = |name: &str| (name == "a").then(|| "{{a}}".to_owned());
        for (text, filled) in [
            ("{{a}}-{{ a }}", "{{a}}-{{a}}"),
            ("{{b}} {{a", "{{b}} {{a"),
            ("{{b | default: \"x\"}}{{b|upcase}}", "x{{b|upcase}}"),
            ("}}{{}}é{{a}}", "}}{{}}é{{a}}"),
        ] {
            assert_eq!(fill(text, known), filled);
        }
    }

    fn any_reply() -> impl Strategy<Value = ChatReply> {
        let names = prop::collection::vec(
            prop::sample::select(vec!["book", "lookUp", "other", "dtmf"]),
            0..3,
        );
        let content = prop::option::of(prop::sample::select(vec![
            "",
            "Hello",
            "Yes.",
            "have a nice day",
            "é\"\n",
        ]));
        (content, names, 0..30_u8).prop_map(|(content, mut names, hang_up)| {
            if hang_up == 0 {
                names.push("endCall");
            }
            calls(content, &names)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_resumed_conversation_is_the_live_one(
            replies in prop::collection::vec(any_reply(), 0..45),
            waits in any::<bool>(),
        ) {
            let mut personality = personality();
            if waits {
                personality["firstMessageMode"] = json!("assistant-waits-for-user");
            }
            let plan = plan_of(personality, target(), overrides(), mocks());
            let mut live = Conversation::new(Arc::clone(&plan), vec![]);
            let mut stored: Vec<String> = vec![];
            for (step, reply) in (0..).zip(replies) {
                let read = stored.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
                let resumed = Conversation::new(Arc::clone(&plan), read);
                let next = live.next(step * 700);
                prop_assert_eq!(&next, &resumed.next(step * 700));
                prop_assert_eq!(live.messages(), resumed.messages());
                let record = match next {
                    Next::End(_) => break,
                    Next::Ask { .. } => unreachable!("nobody else holds a side"),
                    Next::Say { speaker, text } => live.say(speaker, text, step * 700),
                    Next::Call { request, .. } => {
                        // What a server checks: every tool call is answered, nothing is empty.
                        let messages = serde_json::to_value(&request.messages).unwrap();
                        let messages = messages.as_array().unwrap();
                        let calls = messages.iter().flat_map(|m| m["tool_calls"].as_array().into_iter().flatten()).count();
                        prop_assert_eq!(calls, messages.iter().filter(|m| m["role"] == "tool").count());
                        prop_assert!(messages.iter().all(|m| m["content"] != "" && (m["content"].is_string() || m.get("tool_calls").is_some())));
                        live.accept(reply, step * 700, step * 700 + 1)
                    }
                };
                prop_assert_eq!(i64::from(record.n), step);
                stored.push(serde_json::to_string(&record).unwrap());
                live.push(record);
            }
        }
    }
}
