//! Squads: who their members are, how one of them hands the conversation to another, and what that one gets to read.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    Json, Object, Reply, Side, Speaker, Tools, fill, nonempty, overridden, said, tool_call_message, variable,
};

/// The longest name of a function that servers take, in characters.
const LONGEST_NAME: usize = 64;
/// What the next member is told where the caller has not just said something: many servers want a user's message last.
const TAKE_OVER: &str = "(You have taken over this conversation. You speak now.)";
/// Stands above the tools that others used: the next member's server may not know them.
const USED: &str = "Before you took over this conversation, these tools were used in it:";

/// The agent under test.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// One assistant.
    Assistant(&'a Value),
    /// A squad whose members have their assistants with them. The first one begins.
    Squad(&'a Value),
}

impl<'a> Target<'a> {
    /// The target as a run keeps it: `{"assistant": …}` or `{"squad": …}`.
    #[must_use]
    pub fn of(kept: &'a Value) -> Self {
        match kept.get("squad") {
            Some(squad) => Self::Squad(squad),
            None => Self::Assistant(kept.get("assistant").unwrap_or(&Value::Null)),
        }
    }

    /// Who may be the target, with the scenario's `overrides` over each; one assistant is the only one.
    pub(super) fn members(self, overrides: &Value) -> Vec<Member> {
        match self {
            Self::Assistant(assistant) => vec![Member {
                assistant: overridden(assistant, &[overrides]).0,
                ..Member::default()
            }],
            Self::Squad(squad) => {
                let shared = squad.get("membersOverrides").unwrap_or(&Value::Null);
                let members = squad.get("members").and_then(Value::as_array);
                let members = members.into_iter().flatten();
                members
                    .map(|member| Member::of(member, &[shared, overrides]))
                    .collect()
            }
        }
    }
}

/// Whether the target, or a member of the squad that it is, speaks and listens by itself, without a transcriber and a voice
/// around a language model: "GPT Live". `kept` is the target as a run keeps it, `overrides` the scenario's.
///
/// It is told by its model's name, which says `realtime` or `live`. An endpoint of the user's own is never one.
#[must_use]
pub fn has_live_target(kept: &Value, overrides: &Value) -> bool {
    let live = |member: &Member| {
        let model = member.assistant.get("model");
        let field = |name: &str| model.and_then(|model| model.get(name)?.as_str());
        let name = field("model").unwrap_or_default().to_lowercase();
        let mut words = name.split(|c: char| !c.is_alphanumeric());
        field("provider") != Some("custom-llm")
            && (name.contains("realtime") || words.any(|word| word == "live"))
    };
    Target::of(kept).members(overrides).iter().any(live)
}

/// One who may be the target.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Its assistant with all overrides.
    pub(super) assistant: Object,
    /// Its name in the squad; none outside of one.
    pub(super) name: Option<String>,
    /// The id of the stored assistant that it is.
    pub(super) id: Option<String>,
    /// Its `assistantDestinations`, if it is in a squad.
    destinations: Option<Vec<Value>>,
    variables: Object,
}

impl Member {
    /// The member with its own overrides and then those of `layers` over its assistant. Its name is not one of the `layers`',
    /// which would give the same one to all.
    fn of(member: &Value, layers: &[&Value]) -> Self {
        let field = |name: &str| member.get(name).unwrap_or(&Value::Null);
        let (base, own) = (field("assistant"), field("assistantOverrides"));
        let mut all = vec![own];
        all.extend(layers);
        let (assistant, variables) = overridden(base, &all);
        let name = nonempty(own.get("name")).or_else(|| nonempty(base.get("name")));
        let id = nonempty(member.get("assistantId")).or_else(|| nonempty(base.get("id")));
        let destinations = field("assistantDestinations").as_array();
        Self {
            assistant,
            name: name.map(str::to_owned),
            id: id.map(str::to_owned),
            destinations: Some(destinations.cloned().unwrap_or_default()),
            variables,
        }
    }
}

/// How much of the conversation the next member gets to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum History {
    /// All of it, with what tools gave back.
    #[default]
    All,
    /// What was said.
    Spoken,
    /// The last messages of what was said.
    Last(usize),
    /// Nothing.
    None,
}

impl History {
    /// What a destination asks for: its `contextEngineeringPlan`, or the `transferMode` of before.
    fn of(destination: &Object) -> Self {
        let plan = destination.get("contextEngineeringPlan");
        let field = |name: &str| plan.and_then(|plan| plan.get(name));
        let forgets = destination.get("transferMode").and_then(Value::as_str) == Some("delete-history");
        match field("type").and_then(Value::as_str) {
            Some("none") => Self::None,
            Some("userAndAssistantMessages") => Self::Spoken,
            Some("lastNMessages") => {
                let most = field("maxMessages").and_then(|most| crate::models::lenient::integer(most).ok());
                Self::Last(usize::try_from(most.unwrap_or(0)).unwrap_or(0))
            }
            None if forgets => Self::None,
            _ => Self::All,
        }
    }
}

/// One destination of a handoff.
#[derive(Debug, Clone)]
struct Way {
    /// What it is called: by its name, or by its id where it has none.
    label: String,
    /// The id that the destination gives, if it gives one.
    id: Option<String>,
    /// The member's place in the squad; none where the squad has no such member.
    member: Option<u32>,
    /// What it is for.
    description: Option<String>,
    /// What is said before, by who hands over.
    message: Option<String>,
    history: History,
}

impl Way {
    /// Reads a destination; none if it does not lead to an assistant.
    fn of(destination: &Value, from: &Member, members: &[Member]) -> Option<Self> {
        let fields = destination
            .as_object()
            .filter(|fields| leads_to_an_assistant(fields))?;
        let id = nonempty(fields.get("assistantId"));
        let inline = fields
            .get("assistant")
            .and_then(|assistant| assistant.get("name"));
        let name = nonempty(fields.get("assistantName")).or_else(|| nonempty(inline));
        let with = |fits: &dyn Fn(&Member) -> bool| members.iter().position(fits);
        let place = match (id, name) {
            (Some(id), _) => with(&|member| member.id.as_deref().is_some_and(|own| same(own, id))),
            (None, Some(name)) => with(&|member| member.name.as_deref() == Some(name))
                .or_else(|| with(&|member| member.name.as_deref().is_some_and(|own| same(own, name)))),
            (None, None) => None,
        };
        let called = place
            .and_then(|place| members.get(place))
            .and_then(|member| member.name.as_deref());
        let message = nonempty(fields.get("message"));
        Some(Self {
            label: called.or(name).or(id)?.to_owned(),
            id: id.map(str::to_owned),
            member: place.and_then(|place| u32::try_from(place).ok()),
            description: nonempty(fields.get("description")).map(str::to_owned),
            message: message.map(|text| fill(text, |path| variable(&from.variables, path))),
            history: History::of(fields),
        })
    }

    fn is_called(&self, asked: &str) -> bool {
        same(&self.label, asked) || self.id.as_deref().is_some_and(|id| same(id, asked))
    }
}

/// Models do not always keep to the case of a name, nor clients to that of an id.
fn same(one: &str, other: &str) -> bool {
    one.trim().to_lowercase() == other.trim().to_lowercase()
}

fn leads_to_an_assistant(destination: &Object) -> bool {
    matches!(
        destination.get("type").and_then(Value::as_str),
        None | Some("assistant")
    )
}

/// A function by which a member hands the conversation over.
#[derive(Debug, Clone)]
pub(super) struct Handoff {
    ways: Vec<Way>,
    /// Whether its arguments name the destination.
    asks: bool,
}

impl Handoff {
    /// The destination that a call with these arguments means.
    fn way(&self, arguments: &str) -> Result<&Way, String> {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        let asked = arguments
            .get("destination")
            .and_then(Value::as_str)
            .filter(|_| self.asks);
        let found = match (asked, self.ways.as_slice()) {
            (Some(asked), ways) => ways.iter().find(|way| way.is_called(asked)),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        found.ok_or_else(|| {
            let labels: Vec<&str> = self.ways.iter().map(|way| way.label.as_str()).collect();
            format!(
                "Error: destination must be one of {}. The conversation was not handed over.",
                labels.join(", ")
            )
        })
    }

    /// Whether a call leads to who is asked for by name or by id.
    pub(super) fn leads_to(&self, arguments: &str, asked: &str) -> bool {
        self.way(arguments).is_ok_and(|way| way.is_called(asked))
    }

    /// Where a call of the member at `from` leads, by its place in the squad, and what the tool says.
    ///
    /// # Errors
    /// Nowhere; what the tool says then.
    pub(super) fn lead(&self, arguments: &str, from: usize) -> Result<(u32, String), String> {
        let way = self.way(arguments)?;
        match way.member {
            None => Err(format!(
                "Error: the squad has no member {}. The conversation was not handed over.",
                way.label
            )),
            Some(place) if place as usize == from => Err(format!(
                "Error: this is {} already; answer the caller.",
                way.label
            )),
            Some(place) => Ok((
                place,
                format!("The conversation was handed over to {}.", way.label),
            )),
        }
    }
}

impl Side {
    /// The destination that a reply of this side handed the conversation to.
    fn way(&self, reply: &Reply) -> Option<&Way> {
        let mut pairs = reply.tool_calls.iter().zip(&reply.tool_results);
        let (call, _) = pairs.find(|(_, result)| result.handoff.is_some())?;
        self.handoffs.get(&call.name)?.way(&call.arguments).ok()
    }

    /// How much the next member gets to read after this reply.
    pub(super) fn history(&self, reply: &Reply) -> Option<History> {
        self.way(reply).map(|way| way.history)
    }

    /// What is said when this reply hands over and says nothing else.
    pub(super) fn handing_over(&self, reply: &Reply) -> Option<String> {
        self.way(reply)?.message.clone()
    }
}

/// Whether a tool hands the conversation to an assistant.
fn hands_over(tool: &Object) -> bool {
    let kind = tool.get("type").and_then(Value::as_str);
    let destinations = tool.get("destinations").and_then(Value::as_array);
    let mut destinations = destinations.into_iter().flatten().filter_map(Value::as_object);
    matches!(kind, Some("handoff" | "transferCall")) && destinations.any(leads_to_an_assistant)
}

impl Tools {
    /// The tools of a target. A squad's member has functions besides that hand the conversation over.
    pub(super) fn of_member(member: &Member, members: &[Member]) -> Self {
        let Some(destinations) = &member.destinations else {
            return Self::of(&member.assistant);
        };
        let mut tools = Self::default();
        let given = member
            .assistant
            .get("model")
            .and_then(|model| model.get("tools"))
            .and_then(Value::as_array);
        let given = given.into_iter().flatten().filter_map(Value::as_object);
        let (handing, others): (Vec<_>, Vec<_>) = given.partition(|tool| hands_over(tool));
        // First those that have their names: the others' are made so that they differ from them.
        for tool in others {
            tools.add(tool);
        }
        for tool in handing {
            tools.add_handing(tool, member, members);
        }
        for destination in destinations {
            if let Some(way) = Way::of(destination, member, members) {
                tools.offer_way(way);
            }
        }
        tools
    }

    /// A tool with destinations. One that has a name is one function, which asks for the destination if there are several; one
    /// without is a function for each destination.
    fn add_handing(&mut self, tool: &Object, member: &Member, members: &[Member]) {
        let destinations = tool.get("destinations").and_then(Value::as_array);
        let ways = destinations.into_iter().flatten();
        let ways: Vec<Way> = ways
            .filter_map(|destination| Way::of(destination, member, members))
            .collect();
        let function = tool.get("function").and_then(Value::as_object);
        let field = |name: &str| function.and_then(|function| function.get(name));
        let legacy =
            (tool.get("type").and_then(Value::as_str) == Some("transferCall")).then_some("transferCall");
        // A name that another tool has is as good as none.
        let name = nonempty(field("name")).or(legacy);
        let Some(name) = name.filter(|name| !self.names.contains(*name)) else {
            for way in ways {
                self.offer_way(way);
            }
            return;
        };
        let mut parameters = match field("parameters") {
            Some(Value::Object(parameters)) => parameters.clone(),
            _ => Object::new(),
        };
        parameters.entry("type").or_insert_with(|| json!("object"));
        let properties = parameters.entry("properties").or_insert_with(|| json!({}));
        let has = properties.get("destination").is_some();
        let several = ways.len() > 1 || legacy.is_some();
        if let Some(properties) = properties.as_object_mut().filter(|_| several && !has) {
            let mut labels: Vec<&str> = ways.iter().map(|way| way.label.as_str()).collect();
            let mut seen = HashSet::new();
            labels.retain(|label| seen.insert(*label));
            let destination = json!({"type": "string", "enum": labels, "description": "Whom to hand the conversation over to."});
            properties.insert("destination".to_owned(), destination);
            let required = parameters.entry("required").or_insert_with(|| json!([]));
            if let Some(required) = required.as_array_mut() {
                required.push(json!("destination"));
            }
        }
        let about = ways.iter().filter_map(|way| {
            let description = way.description.as_deref()?;
            Some(format!(" {}: {}.", way.label, description.trim_end_matches('.')))
        });
        let description = match nonempty(field("description")) {
            Some(own) => own.to_owned(),
            None => format!(
                "Hands the conversation over to another assistant.{}",
                about.collect::<String>()
            ),
        };
        let mut offered = json!({"name": name, "description": description, "parameters": parameters});
        if let Some(strict) = field("strict") {
            offered["strict"] = strict.clone();
        }
        let asks = several || has;
        self.offer_handoff(name, &offered, Handoff { ways, asks });
    }

    /// A function that hands over to one destination, unless there is one already.
    fn offer_way(&mut self, way: Way) {
        let known = |handoff: &Handoff| match handoff.ways.as_slice() {
            [known] => !handoff.asks && known.member == way.member && same(&known.label, &way.label),
            _ => false,
        };
        if self.handoffs.values().any(known) {
            return;
        }
        let name = function_name(&way.label, &self.names);
        let description = match &way.description {
            Some(description) => format!("Hands the conversation over to {}: {description}", way.label),
            None => format!("Hands the conversation over to {}.", way.label),
        };
        let offered = json!({"name": name, "description": description, "parameters": {"type": "object", "properties": {}}});
        let handoff = Handoff {
            ways: vec![way],
            asks: false,
        };
        self.offer_handoff(&name, &offered, handoff);
    }

    fn offer_handoff(&mut self, name: &str, function: &Value, handoff: Handoff) {
        // A server refuses two tools of one name.
        if self.names.insert(name.to_owned()) {
            self.offered
                .push(Json::new(&json!({"type": "function", "function": function})));
            self.handoffs.insert(name.to_owned(), handoff);
        }
    }
}

/// `handoff_to_` and the name of whom it leads to, as servers take it: letters, digits, `_` and `-`, at most 64 of them. With a
/// number behind it where that is `taken`.
fn function_name(label: &str, taken: &HashSet<String>) -> String {
    let mut name = String::new();
    for c in label.chars() {
        let c = if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        };
        if c != '_' || !name.ends_with('_') {
            name.push(c);
        }
    }
    let name = name.trim_matches('_');
    let name = format!("handoff_to_{}", if name.is_empty() { "member" } else { name });
    let mut names = (1_u32..).map(|n| {
        let suffix = if n == 1 { String::new() } else { format!("_{n}") };
        let kept: String = name.chars().take(LONGEST_NAME - suffix.len()).collect();
        format!("{kept}{suffix}")
    });
    names.find(|name| !taken.contains(name)).unwrap_or_default()
}

/// What the member at the place `member` gets to read when the conversation is handed to it: its own prompts, what was said,
/// and what tools gave back. Its own tool calls of before stand there as such; those of others, whose tools its server does not
/// know, are told in a message. No prompt of another member is in it.
pub(super) fn view<'a>(
    prompts: &[Json],
    history: History,
    replies: impl Iterator<Item = (&'a Reply, usize)>,
    member: usize,
) -> Vec<Json> {
    let all = history == History::All;
    // Whether the tester said it, and the message.
    let mut messages: Vec<(bool, Json)> = Vec::new();
    let (mut heard, mut used) = (String::new(), String::new());
    for (reply, by) in replies {
        let content = reply.content.as_deref();
        if reply.speaker == Speaker::Tester {
            if let Some(text) = content {
                heard.push_str(if heard.is_empty() { "" } else { " " });
                heard.push_str(text);
            }
            continue;
        }
        if !heard.is_empty() {
            messages.push((true, said("user", &heard)));
            heard.clear();
        }
        if all && by == member && !reply.tool_calls.is_empty() {
            messages.push((false, tool_call_message(content, &reply.tool_calls)));
            for result in &reply.tool_results {
                messages.push((false, result.message()));
            }
            continue;
        }
        if let Some(text) = content {
            messages.push((false, said("assistant", text)));
        }
        for (call, result) in reply.tool_calls.iter().zip(&reply.tool_results) {
            used.push_str(&format!(
                "\n- {} {}: {}",
                call.name, call.arguments, result.result
            ));
        }
    }
    if !heard.is_empty() {
        messages.push((true, said("user", &heard)));
    }
    match history {
        History::None => messages.clear(),
        History::Last(most) => drop(messages.drain(..messages.len().saturating_sub(most))),
        History::All | History::Spoken => {}
    }
    let mut view = prompts.to_vec();
    if all && !used.is_empty() {
        view.push(said("system", &format!("{USED}{used}")));
    }
    let answers = messages.last().is_some_and(|(tester, _)| *tester);
    view.extend(messages.into_iter().map(|(_, message)| message));
    if !answers {
        view.push(said("user", TAKE_OVER));
    }
    view
}

/// Whether a message of a [`view`] stands where no user's is.
pub(super) fn stands_in(message: &Json) -> bool {
    *message == said("user", TAKE_OVER)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        conversation::{Conversation, EndedReason, Limits, Next, Parts, Plan},
        llm::{ChatReply, ToolCall},
    };

    const ID: &str = "123e4567-e89b-42d3-a456-426614174000";
    const GENERATES: &str = "assistant-speaks-first-with-model-generated-message";

    /// A desk that hands over to Billing, which hands back. Billing is stored.
    fn squad() -> Value {
        json!({
            "name": "Shop",
            "members": [
                {
                    "assistant": {
                        "name": "Front Desk", "endCallPhrases": ["so long"],
                        "model": {
                            "messages": [{"role": "system", "content": "Desk of {{shop}} for {{name | default: 'you'}}."}],
                            "tools": [{"type": "function", "function": {"name": "lookUp"}}, {"type": "endCall"}],
                        },
                    },
                    "assistantDestinations": [
                        {"type": "assistant", "assistantName": "Billing", "message": "One moment, {{name}}.", "description": "money."},
                        {"type": "assistant", "assistantName": "Nobody"},
                        {"type": "number", "number": "+123"},
                    ],
                },
                {
                    "assistantId": ID,
                    "assistant": {
                        "id": ID, "name": "Billing", "endCallMessage": "Bye, {{name}}.",
                        "model": {
                            "provider": "custom-llm", "messages": [{"role": "system", "content": "Billing of {{shop}}."}],
                            "tools": [
                                {"type": "handoff", "destinations": [{"type": "assistant", "assistantName": "front desk"}]},
                                {"type": "function", "function": {"name": "bill"}}, {"type": "endCall"},
                            ],
                        },
                    },
                    "assistantOverrides": {"model": {"temperature": 0.2}},
                },
            ],
            "membersOverrides": {"name": "All", "variableValues": {"shop": "A&B", "name": "nobody"}},
        })
    }

    fn plan_of(squad: &Value, mocks: &Value) -> Arc<Plan> {
        let overrides = json!({"variableValues": {"name": "Ann"}});
        Arc::new(Plan::new(&Parts {
            personality: &Value::Null,
            instructions: "Pay.",
            target: Target::Squad(squad),
            tool_mocks: mocks,
            target_overrides: &overrides,
            remote: None,
            runs_tools: false,
            limits: Limits::default(),
        }))
    }

    fn plan() -> Arc<Plan> {
        plan_of(&squad(), &json!([{"toolName": "bill", "result": "$8"}]))
    }

    fn text(text: &str) -> ChatReply {
        ChatReply {
            content: Some(text.to_owned()),
            ..ChatReply::default()
        }
    }

    fn called(calls: &[(&str, Value)]) -> ChatReply {
        let call = |(name, arguments): &(&str, Value)| ToolCall {
            id: String::new(),
            name: (*name).to_owned(),
            arguments: arguments.to_string(),
        };
        ChatReply {
            tool_calls: calls.iter().map(call).collect(),
            ..ChatReply::default()
        }
    }

    fn feed(conversation: &mut Conversation, reply: ChatReply) -> Reply {
        let record = conversation.accept(reply, 0, 1);
        conversation.push(record.clone());
        record
    }

    /// The conversation of `plan` after these replies, the first of which is the tester's.
    fn after(plan: Arc<Plan>, replies: Vec<ChatReply>) -> Conversation {
        let mut conversation = Conversation::new(plan, vec![]);
        for reply in replies {
            feed(&mut conversation, reply);
        }
        conversation
    }

    fn request(conversation: &Conversation) -> (Speaker, Value) {
        match conversation.next(0) {
            Next::Call { speaker, request, .. } => (speaker, serde_json::to_value(request).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn functions(request: &Value) -> Vec<&str> {
        let tools = request["tools"].as_array().unwrap();
        tools
            .iter()
            .map(|tool| tool["function"]["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn a_member_hands_over_and_the_next_one_goes_on_in_the_same_turn() {
        let mut conversation = after(plan(), vec![text("My bill?")]);
        let (speaker, desk) = request(&conversation);
        assert_eq!(speaker, Speaker::Target);
        assert_eq!(desk["messages"][0]["content"], "Desk of A&B for Ann.");
        assert_eq!(
            functions(&desk),
            ["lookUp", "endCall", "handoff_to_Billing", "handoff_to_Nobody"]
        );
        assert_eq!(
            desk["tools"][2]["function"]["description"],
            "Hands the conversation over to Billing: money."
        );
        feed(&mut conversation, called(&[("lookUp", json!({"n": 1}))]));
        let handing = feed(&mut conversation, called(&[("handoff_to_Billing", json!({}))]));
        assert_eq!(handing.content.as_deref(), Some("One moment, Ann."));
        assert_eq!(handing.tool_results[0].handoff, Some(1));
        assert_eq!(handing.assistant_name.as_deref(), Some("Front Desk"));
        let (speaker, billing) = request(&conversation);
        assert_eq!((speaker, &billing["temperature"]), (Speaker::Target, &json!(0.2)));
        assert_eq!(functions(&billing), ["bill", "endCall", "handoff_to_Front_Desk"]);
        let messages = billing["messages"].as_array().unwrap();
        assert_eq!(
            messages[0],
            json!({"role": "system", "content": "Billing of A&B."})
        );
        let used = messages[1]["content"].as_str().unwrap();
        assert!(
            used.starts_with(USED) && used.contains("- lookUp {\"n\":1}: Error"),
            "{used}"
        );
        assert_eq!(
            messages[2..],
            [
                json!({"role": "user", "content": "My bill?"}),
                json!({"role": "assistant", "content": "One moment, Ann."}),
                json!({"role": "user", "content": TAKE_OVER}),
            ]
        );
        // Its own tools work as those of any target, and the caller hears one turn.
        let result = feed(&mut conversation, called(&[("bill", json!({}))]));
        assert!(result.tool_results[0].mocked && result.tool_results[0].result == "$8");
        feed(&mut conversation, text("It is $8."));
        let (speaker, tester) = request(&conversation);
        assert_eq!(speaker, Speaker::Tester);
        let heard = tester["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(heard["content"], "One moment, Ann. It is $8.");
        // It stays the target, and it has its own way to end the call.
        feed(&mut conversation, text("So long then"));
        let reply = feed(&mut conversation, text("So long"));
        assert_eq!(conversation.ended(), None, "the phrase of another member");
        assert_eq!(reply.assistant_id.as_deref(), Some(ID));
        feed(&mut conversation, text("Bye"));
        let reply = feed(
            &mut conversation,
            called(&[("endCall", json!({"reason": "done"}))]),
        );
        assert_eq!(reply.content.as_deref(), Some("Bye, Ann."));
        assert_eq!(conversation.ended(), Some(EndedReason::AssistantEndedCall));
        assert_eq!(conversation.hang_up_reason().as_deref(), Some("done"));
        let who = |message: &Value| {
            (
                message["role"].as_str().unwrap().to_owned(),
                message["assistantName"].as_str().unwrap_or_default().to_owned(),
                message.get("assistantId").is_some(),
            )
        };
        let told: Vec<_> = conversation.messages().iter().map(who).collect();
        let told: Vec<_> = told
            .iter()
            .map(|(role, name, id)| (role.as_str(), name.as_str(), *id))
            .collect();
        let (desk, billing) = (("Front Desk", false), ("Billing", true));
        let expected = [
            ("user", ("", false)),
            ("tool_calls", desk),
            ("tool_call_result", desk),
            ("assistant", desk),
            ("tool_calls", desk),
            ("tool_call_result", desk),
            ("tool_calls", billing),
            ("tool_call_result", billing),
            ("assistant", billing),
            ("user", ("", false)),
            ("assistant", billing),
            ("user", ("", false)),
            ("assistant", billing),
            ("tool_calls", billing),
            ("tool_call_result", billing),
        ];
        assert_eq!(told, expected.map(|(role, (name, id))| (role, name, id)));
    }

    #[test]
    fn a_member_that_gets_the_conversation_back_finds_its_own_tools_as_they_were() {
        let conversation = after(
            plan(),
            vec![
                text("My bill?"),
                called(&[("lookUp", json!({}))]),
                called(&[("handoff_to_Billing", json!({}))]),
                called(&[("bill", json!({}))]),
                called(&[("handoff_to_Front_Desk", json!({}))]),
            ],
        );
        let (_, desk) = request(&conversation);
        let roles: Vec<_> = desk["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].as_str().unwrap())
            .collect();
        assert_eq!(
            roles,
            [
                "system",
                "system",
                "user",
                "assistant",
                "tool",
                "assistant",
                "tool",
                "user"
            ]
        );
        let used = desk["messages"][1]["content"].as_str().unwrap();
        assert!(
            used.contains("- bill {}: $8") && !used.contains("lookUp"),
            "{used}"
        );
    }

    #[test]
    fn who_cannot_take_over_does_not() {
        for (name, arguments, why) in [
            ("handoff_to_Nobody", json!({}), "no member Nobody"),
            ("handoff_to_Front_Desk", json!({}), "was not run"),
            ("lookUp", json!({"destination": "Billing"}), "was not run"),
        ] {
            let mut conversation = after(plan(), vec![text("My bill?")]);
            let reply = feed(&mut conversation, called(&[(name, arguments)]));
            let result = &reply.tool_results[0];
            assert!(
                result.result.starts_with("Error") && result.result.contains(why),
                "{}",
                result.result
            );
            assert_eq!((result.handoff, reply.content), (None, None));
            let (_, request) = request(&conversation);
            assert_eq!(request["messages"][0]["content"], "Desk of A&B for Ann.");
        }
        // Of two in one reply the first counts.
        let mut conversation = after(plan(), vec![text("My bill?")]);
        let twice = called(&[
            ("handoff_to_Billing", json!({})),
            ("handoff_to_Billing", json!({})),
        ]);
        let results = feed(&mut conversation, twice).tool_results;
        assert_eq!((results[0].handoff, results[1].handoff), (Some(1), None));
        assert!(results[1].result.starts_with("Error"));
        // A mock of the scenario stands for the handoff as for any tool.
        let mocks = json!([{"toolName": "handoff_to_Billing", "result": "Billing is closed"}]);
        let mut conversation = after(plan_of(&squad(), &mocks), vec![text("My bill?")]);
        let reply = feed(&mut conversation, called(&[("handoff_to_Billing", json!({}))]));
        assert_eq!(
            (&*reply.tool_results[0].result, reply.tool_results[0].handoff),
            ("Billing is closed", None)
        );
        // The end of the call comes before everything.
        let ends = called(&[("handoff_to_Billing", json!({})), ("endCall", json!({}))]);
        let conversation = after(plan(), vec![text("My bill?"), ends]);
        assert_eq!(conversation.ended(), Some(EndedReason::AssistantEndedCall));
    }

    #[test]
    fn members_that_hand_to_each_other_for_ever_are_stopped() {
        let mut conversation = after(plan(), vec![text("My bill?")]);
        for n in 0..=Limits::default().max_tool_rounds {
            assert_eq!(conversation.ended(), None, "{n}");
            let name = ["handoff_to_Billing", "handoff_to_Front_Desk"][n as usize % 2];
            let reply = feed(&mut conversation, called(&[(name, json!({}))]));
            assert!(reply.tool_results[0].handoff.is_some());
        }
        assert_eq!(conversation.ended(), Some(EndedReason::MaxToolRoundsReached));
    }

    #[test]
    fn a_member_with_a_first_message_says_it_and_the_caller_answers() {
        let mut squad = squad();
        squad["members"][1]["assistant"]["firstMessage"] = json!("Billing, {{name}}?");
        let conversation = after(
            plan_of(&squad, &Value::Null),
            vec![text("My bill?"), called(&[("handoff_to_Billing", json!({}))])],
        );
        // Also who goes on from the stored replies says it, once.
        let stored = serde_json::to_string(conversation.replies()).unwrap();
        let plan = plan_of(&squad, &Value::Null);
        let mut resumed = Conversation::new(Arc::clone(&plan), serde_json::from_str(&stored).unwrap());
        let Next::Say { speaker, text } = resumed.next(5) else {
            panic!("it speaks first")
        };
        assert_eq!((speaker, text.as_str()), (Speaker::Target, "Billing, Ann?"));
        let reply = resumed.say(speaker, text, 5);
        assert_eq!(reply.assistant_name.as_deref(), Some("Billing"));
        resumed.push(reply);
        let (speaker, tester) = request(&resumed);
        assert_eq!(speaker, Speaker::Tester);
        let heard = tester["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(heard["content"], "One moment, Ann. Billing, Ann?");
        feed(&mut resumed, said_yes());
        let (_, billing) = request(&resumed);
        assert_eq!(billing["messages"][0]["content"], "Billing of A&B.");
        // One that leaves its first words to its model is asked for them.
        squad["members"][1]["assistant"]["firstMessageMode"] = json!(GENERATES);
        let asked = after(
            plan_of(&squad, &Value::Null),
            vec![said_yes(), called(&[("handoff_to_Billing", json!({}))])],
        );
        assert_eq!(request(&asked).0, Speaker::Target);
    }

    fn said_yes() -> ChatReply {
        text("Yes")
    }

    #[test]
    fn a_tool_with_a_name_asks_for_the_destination() {
        let mut squad = squad();
        let destinations = json!([
            {"type": "assistant", "assistantId": ID.to_uppercase(), "description": "money"},
            {"type": "assistant", "assistantName": "Nobody"},
            {"type": "dynamic"},
        ]);
        let own = json!({"type": "handoff", "destinations": destinations, "function": {
            "name": "escalate", "strict": true,
            "parameters": {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]}}});
        let legacy = json!({"type": "transferCall", "destinations": [destinations[0]]});
        let plain = json!({"type": "transferCall", "destinations": [{"type": "number", "number": "+1"}], "function": {"name": "dial"}});
        squad["members"][0]["assistant"]["model"]["tools"] = json!([own, legacy, plain]);
        squad["members"][0]["assistantDestinations"] = Value::Null;
        let conversation = after(plan_of(&squad, &Value::Null), vec![text("My bill?")]);
        let (_, desk) = request(&conversation);
        assert_eq!(functions(&desk), ["dial", "escalate", "transferCall"]);
        let escalate = &desk["tools"][1]["function"];
        assert_eq!(
            escalate["parameters"]["properties"]["destination"]["enum"],
            json!(["Billing", "Nobody"])
        );
        assert_eq!(escalate["parameters"]["required"], json!(["why", "destination"]));
        assert_eq!(
            (&escalate["strict"], &escalate["description"]),
            (
                &json!(true),
                &json!("Hands the conversation over to another assistant. Billing: money.")
            )
        );
        for (name, destination, member) in [
            ("escalate", json!("Billing"), Some(1)),
            ("escalate", json!(" billing "), Some(1)),
            ("escalate", json!(ID), Some(1)),
            ("escalate", json!("Nobody"), None),
            ("escalate", json!("Sales"), None),
            ("escalate", Value::Null, None),
            ("transferCall", json!("Billing"), Some(1)),
            ("transferCall", Value::Null, Some(1)),
            ("transferCall", json!("Sales"), None),
        ] {
            let call = called(&[(name, json!({"destination": destination}))]);
            let reply = conversation.accept(call, 0, 1);
            let result = &reply.tool_results[0];
            assert_eq!(result.handoff, member, "{name} {destination}: {}", result.result);
            assert_eq!(result.result.starts_with("Error"), member.is_none());
        }
        let garbled = ChatReply {
            tool_calls: vec![ToolCall {
                arguments: "{".to_owned(),
                name: "escalate".to_owned(),
                ..ToolCall::default()
            }],
            ..ChatReply::default()
        };
        let result = &conversation.accept(garbled, 0, 1).tool_results[0];
        assert!(
            result.result.contains("one of Billing, Nobody"),
            "{}",
            result.result
        );
    }

    #[test]
    fn a_destination_says_how_much_the_next_member_reads() {
        let read = |more: Value| {
            let mut squad = squad();
            let destination = &mut squad["members"][0]["assistantDestinations"][0];
            destination
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let conversation = after(
                plan_of(&squad, &Value::Null),
                vec![
                    text("Hi"),
                    text("Hello"),
                    text("My bill?"),
                    called(&[("lookUp", json!({}))]),
                    called(&[("handoff_to_Billing", json!({}))]),
                ],
            );
            let (_, request) = request(&conversation);
            let messages = request["messages"].as_array().unwrap().clone();
            assert_eq!(messages[0]["content"], "Billing of A&B.");
            messages[1..]
                .iter()
                .map(|message| message["content"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let moment = "One moment, Ann.";
        let plan = |plan: Value| json!({ "contextEngineeringPlan": plan });
        assert_eq!(
            read(plan(json!({"type": "userAndAssistantMessages"}))),
            ["Hi", "Hello", "My bill?", moment, TAKE_OVER]
        );
        assert_eq!(
            read(plan(json!({"type": "lastNMessages", "maxMessages": 2.0}))),
            ["My bill?", moment, TAKE_OVER]
        );
        assert_eq!(read(plan(json!({"type": "lastNMessages"}))), [TAKE_OVER]);
        assert_eq!(read(plan(json!({"type": "none"}))), [TAKE_OVER]);
        assert_eq!(read(json!({"transferMode": "delete-history"})), [TAKE_OVER]);
        let all = read(plan(json!({"type": "all"})));
        assert!(all[0].starts_with(USED));
        assert_eq!(all[1..], ["Hi", "Hello", "My bill?", moment, TAKE_OVER]);
        assert_eq!(read(json!({"message": ""}))[1..], ["Hi", "Hello", "My bill?"]);
    }

    #[test]
    fn functions_have_names_that_servers_take() {
        let mut taken = HashSet::new();
        for (label, expected) in [
            ("Billing", "handoff_to_Billing".to_owned()),
            ("Billing", "handoff_to_Billing_2".to_owned()),
            ("bill-ing  &  more!", "handoff_to_bill-ing_more".to_owned()),
            ("Büro 1", "handoff_to_B_ro_1".to_owned()),
            ("日本", "handoff_to_member".to_owned()),
            ("", "handoff_to_member_2".to_owned()),
            (&"x".repeat(90), format!("handoff_to_{}", "x".repeat(53))),
            (&"x".repeat(91), format!("handoff_to_{}_2", "x".repeat(51))),
        ] {
            let name = function_name(label, &taken);
            assert_eq!(name, expected);
            assert!(name.len() <= LONGEST_NAME && taken.insert(name));
        }
        // A tool of that name is there already, and two ways to the same member are one.
        let mut squad = squad();
        squad["members"][0]["assistant"]["model"]["tools"] = json!([
            {"type": "handoff", "destinations": [{"type": "assistant", "assistantName": "Billing"}]},
            {"type": "function", "function": {"name": "handoff_to_Billing"}},
        ]);
        let conversation = after(plan_of(&squad, &Value::Null), vec![text("Hi")]);
        let (_, desk) = request(&conversation);
        assert_eq!(
            functions(&desk),
            ["handoff_to_Billing", "handoff_to_Billing_2", "handoff_to_Nobody"]
        );
    }

    #[test]
    fn one_assistant_hands_over_to_nobody() {
        let assistant = json!({"name": "Solo", "model": {"tools": [
            {"type": "handoff", "destinations": [{"type": "assistant", "assistantName": "Billing"}]}]}});
        let kept = json!({"assistant": assistant});
        let plan = Plan::new(&Parts {
            personality: &Value::Null,
            instructions: "",
            target: Target::of(&kept),
            tool_mocks: &Value::Null,
            target_overrides: &Value::Null,
            remote: None,
            runs_tools: false,
            limits: Limits::default(),
        });
        let conversation = after(Arc::new(plan), vec![text("Hi")]);
        assert_eq!(functions(&request(&conversation).1), ["handoff"]);
        let reply = conversation.accept(called(&[("handoff", json!({}))]), 0, 1);
        assert_eq!(
            (reply.tool_results[0].handoff, reply.assistant_name),
            (None, None)
        );
        // A squad without members, which is not created, is nobody; still nothing breaks.
        let empty = json!({"squad": {"members": []}});
        let plan = Plan::new(&Parts {
            target: Target::of(&empty),
            personality: &Value::Null,
            instructions: "",
            tool_mocks: &Value::Null,
            target_overrides: &Value::Null,
            remote: None,
            runs_tools: false,
            limits: Limits::default(),
        });
        assert_eq!(
            request(&after(Arc::new(plan), vec![text("Hi")])).0,
            Speaker::Target
        );
    }

    #[test]
    fn live_models_are_told_by_their_names() {
        let live = |model: Value, overrides: Value| {
            let kept = json!({"assistant": {"model": model}});
            has_live_target(&kept, &overrides)
        };
        for (provider, name, expected) in [
            ("openai", "gpt-realtime", true),
            ("openai", "gpt-4o-realtime-preview-2024-12-17", true),
            ("openai", "GPT-Live-1", true),
            ("google", "gemini-live-2.5-flash", true),
            ("google", "gemini-2.0-flash-realtime-exp", true),
            ("openai", "gpt-4.1", false),
            ("openai", "olive-1", false),
            ("custom-llm", "gpt-realtime", false),
        ] {
            let model = json!({"provider": provider, "model": name});
            assert_eq!(live(model, Value::Null), expected, "{provider} {name}");
        }
        assert!(live(
            json!({"model": "m"}),
            json!({"model": {"model": "gpt-live"}})
        ));
        assert!(!live(Value::Null, Value::Null));
        let member = |name: &str| json!({"assistant": {"model": {"model": name}}});
        let squad = json!({"squad": {"members": [member("m"), member("gpt-realtime")]}});
        assert!(has_live_target(&squad, &Value::Null), "one is enough");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_resumed_squad_is_the_live_one(
            steps in prop::collection::vec((0..9_usize, any::<bool>()), 0..45),
            greets in any::<bool>(),
        ) {
            let mut squad = squad();
            if greets {
                squad["members"][0]["assistant"]["firstMessage"] = json!("Desk.");
            }
            let plan = plan_of(&squad, &json!([{"toolName": "bill", "result": "$8"}]));
            let mut live = Conversation::new(Arc::clone(&plan), vec![]);
            let mut stored: Vec<String> = vec![];
            for (step, says) in steps {
                let read = stored.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
                let resumed = Conversation::new(Arc::clone(&plan), read);
                let next = live.next(0);
                prop_assert_eq!(&next, &resumed.next(0));
                prop_assert_eq!(live.messages(), resumed.messages());
                let record = match next {
                    Next::End(_) => break,
                    Next::Ask { .. } => unreachable!("nobody else holds a side"),
                    Next::Say { speaker, text } => live.say(speaker, text, 0),
                    Next::Call { request, speaker, .. } => {
                        let messages = serde_json::to_value(&request.messages).unwrap();
                        let messages = messages.as_array().unwrap();
                        let calls = messages.iter().flat_map(|m| m["tool_calls"].as_array().into_iter().flatten());
                        let offered: Vec<Value> = request.tools.iter().map(|tool| tool.value()).collect();
                        let mut count = 0;
                        for call in calls {
                            count += 1;
                            // An unknown tool that was called stays as it is; those of the other member do not appear.
                            let name = &call["function"]["name"];
                            prop_assert!(speaker == Speaker::Tester || name == "other"
                                || offered.iter().any(|tool| &tool["function"]["name"] == name), "{}", name);
                        }
                        prop_assert_eq!(count, messages.iter().filter(|m| m["role"] == "tool").count());
                        prop_assert!(messages.iter().all(|m| m["content"] != ""));
                        if speaker == Speaker::Target {
                            let prompts = messages.iter().filter(|m| {
                                m["content"].as_str().is_some_and(|text| text.contains(" of A&B"))
                            });
                            prop_assert_eq!(prompts.count(), 1, "its own prompt and no other");
                            prop_assert!(messages.iter().any(|m| m["role"] == "user"));
                        }
                        // What it offers, or something that nobody does.
                        let name = offered.get(step).and_then(|tool| tool["function"]["name"].as_str());
                        let mut reply = match (name, step) {
                            (Some("endCall"), _) => text("Hm."),
                            (Some(name), _) => called(&[(name, json!({}))]),
                            (None, 8) => called(&[("other", json!({}))]),
                            _ => text("Yes."),
                        };
                        if says {
                            reply.content = Some("And so on.".to_owned());
                        }
                        live.accept(reply, 0, 1)
                    }
                };
                stored.push(serde_json::to_string(&record).unwrap());
                live.push(record);
            }
        }
    }
}
