//! A mock conversation with checkpoints, as a pure state machine.
//!
//! [`Script`] is fixed for the whole of it; [`Mock`] is a script and the steps so far. [`Mock::next`] says what to do, the caller
//! does it, keeps the [`Step`] and then pushes it. A mock conversation made anew from the kept steps goes on exactly where the
//! other one was. What needs nobody outside (mocks that are replayed, exact answers, patterns) is no step.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Json, Limits, Member, Reply, Runnable, Side, Speaker, Target, ToolResult,
    checkpoint::{self, Answer, Called},
    fill, runnable, said, squad, tool_call_message,
};
use crate::{
    clock::iso,
    costs::ModelUse,
    llm::{ChatReply, ChatRequest, Purpose, ToolCall, apply_settings},
    models::{
        Object,
        eval::{
            ChatEvalMessage, ChatEvalToolCall, ContinuePlan, EvalVerdict, JudgeModel, JudgePlan, JudgePlanAi,
            JudgePlanMatch, JudgeVerdict, ToolArguments,
        },
    },
};

/// The longest conversation that a model judges, in bytes of JSON.
const LONGEST_JUDGED: usize = 500_000;
/// The longest text of a tool or model that a step keeps, in bytes.
const LONGEST_KEPT: usize = 1_000_000;
/// What a model that judges is told where the plan tells it nothing.
const JUDGE: &str = "You judge an assistant. Below is a conversation as JSON. Decide whether the last message is a good, correct \
and helpful reply to what came before it. Answer with exactly one word: pass or fail.";
/// Follows the conversation where the plan's messages have none of a user: many servers want one.
const ASK: &str = "Answer with exactly one word: pass or fail.";

/// What a [`Script`] is made from.
#[derive(Debug, Clone, Copy)]
pub struct ScriptParts<'a> {
    /// The messages of the eval.
    pub messages: &'a [ChatEvalMessage],
    /// The agent under test, with its tools resolved.
    pub target: Target<'a>,
    /// What is laid over each of its assistants, or null.
    pub overrides: &'a Value,
    /// Whether tools without a mock are run for real.
    pub runs_tools: bool,
    /// How long it may be.
    pub limits: Limits,
}

/// The fixed part of a mock conversation.
#[derive(Debug)]
pub struct Script {
    messages: Vec<ChatEvalMessage>,
    /// The target: one, or a squad's members in their order. There is always a first one.
    first: Side,
    others: Vec<Side>,
    /// The tools of each member as they are configured, by their names, if they are run for real.
    tools: Vec<Runnable>,
    max_ms: i64,
}

impl Script {
    /// The script of these parts. A part that is missing or has another type counts as empty.
    #[must_use]
    pub fn new(parts: &ScriptParts<'_>) -> Self {
        let members = parts.target.members(parts.overrides);
        let nobody = Member::default();
        let others = members.iter().skip(1);
        let tools = members.iter().filter(|_| parts.runs_tools);
        Self {
            messages: parts.messages.to_vec(),
            first: Side::target(members.first().unwrap_or(&nobody), &members),
            others: others.map(|member| Side::target(member, &members)).collect(),
            tools: tools.map(|member| runnable(&member.assistant)).collect(),
            max_ms: parts.limits.max_seconds.saturating_mul(1000),
        }
    }

    /// The member of the target with that place.
    fn side(&self, member: usize) -> &Side {
        match member {
            0 => &self.first,
            place => self.others.get(place - 1).unwrap_or(&self.first),
        }
    }

    /// Whether anything is judged.
    #[must_use]
    pub fn has_checkpoints(messages: &[ChatEvalMessage]) -> bool {
        messages.iter().any(|message| {
            matches!(
                message,
                ChatEvalMessage::AssistantEvaluation(_) | ChatEvalMessage::ToolEvaluation(_)
            )
        })
    }
}

/// One thing that somebody outside did for a mock conversation: the record that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its place, from 0.
    pub n: u32,
    /// When it began, in milliseconds since the Unix epoch.
    pub at: i64,
    /// When it was done, in milliseconds since the Unix epoch.
    pub ended_at: i64,
    /// What was done.
    pub done: Done,
    /// What the model call took, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<ModelUse>,
}

/// What was done in a [`Step`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Done {
    /// The target answered.
    #[serde(rename_all = "camelCase")]
    Answered {
        /// What it said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        /// The tools that it called.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
    },
    /// A model judged.
    Judged {
        /// What it said.
        #[serde(default)]
        verdict: String,
    },
    /// A tool was run.
    Ran {
        /// What it gave back.
        result: String,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum MockNext {
    /// Ask the target, then [`Mock::answered`].
    Answer {
        /// The request; its `model` is empty until the model is resolved.
        request: ChatRequest,
        /// The assistant's `model` object, for choosing the server.
        model: Arc<Value>,
    },
    /// Ask a model for a verdict, then [`Mock::judged`].
    Judge {
        /// The request; its `model` is empty until the model is resolved.
        request: ChatRequest,
        /// The judge's `model` object, for choosing the server.
        model: Arc<Value>,
    },
    /// Run a tool, then [`Mock::ran`].
    Run {
        /// The tool as it is configured.
        tool: Arc<Value>,
        /// The call.
        call: ToolCall,
    },
    /// Nothing: it is over, and passed or not.
    Done {
        /// Whether every checkpoint passed.
        passed: bool,
    },
    /// Nothing: its time is over.
    TimedOut,
}

/// A turn of the target whose tools have not all given something back.
#[derive(Debug, Clone)]
struct Open {
    content: Option<String>,
    calls: Vec<ToolCall>,
    results: Vec<ToolResult>,
}

/// What the conversation waits for.
#[derive(Debug, Clone, Default)]
enum Wait {
    /// Nothing: it goes on by itself.
    #[default]
    No,
    /// The target's answer.
    Answer,
    /// A tool that is run for real.
    Tool,
    /// A model's verdict on what was answered or given back.
    Verdict {
        subject: Subject,
        /// The request for the verdict.
        request: Box<(ChatRequest, Arc<Value>)>,
    },
}

/// What is judged at a checkpoint.
#[derive(Debug, Clone)]
enum Subject {
    /// A turn of the target.
    Turn(Option<String>, Vec<ToolCall>),
    /// What the next open call gave back.
    Response(String),
    /// A response of a tool that nobody called.
    Nothing,
}

/// A mock conversation: its script and the steps so far.
#[derive(Debug, Clone)]
pub struct Mock {
    script: Arc<Script>,
    /// When it started, in milliseconds since the Unix epoch.
    started_ms: i64,
    steps: u32,
    /// The place of the message that is next.
    at: usize,
    wait: Wait,
    /// The conversation as the active member's model sees it.
    view: Vec<Json>,
    /// Whether the last message of the view stands for a user's that is missing.
    stands_in: bool,
    /// What was injected so far: a member that takes over is told of it too.
    injected: Vec<Json>,
    /// The turns so far, from which a member that takes over reads them.
    replies: Vec<Reply>,
    members: Vec<usize>,
    active: usize,
    open: Option<Open>,
    /// The conversation as those who judge see it.
    history: Vec<Value>,
    /// The messages of the result.
    shown: Vec<Value>,
    checked: u32,
    failed: u32,
    over: bool,
}

impl Mock {
    /// The mock conversation that started at `started_ms` (milliseconds since the Unix epoch) after `steps`, which are the kept
    /// ones in their order.
    #[must_use]
    pub fn new(script: Arc<Script>, started_ms: i64, steps: impl IntoIterator<Item = Step>) -> Self {
        let view = script.first.base.messages.clone();
        let mut mock = Self {
            script,
            started_ms,
            steps: 0,
            at: 0,
            wait: Wait::No,
            view,
            stands_in: false,
            injected: Vec::new(),
            replies: Vec::new(),
            members: Vec::new(),
            active: 0,
            open: None,
            history: Vec::new(),
            shown: Vec::new(),
            checked: 0,
            failed: 0,
            over: false,
        };
        mock.go_on();
        for step in steps {
            mock.push(step);
        }
        mock
    }

    /// What to do next. `now_ms` is the time in milliseconds since the Unix epoch. Changes nothing.
    #[must_use]
    pub fn next(&self, now_ms: i64) -> MockNext {
        if self.over {
            return MockNext::Done {
                passed: self.passed(),
            };
        }
        if now_ms.saturating_sub(self.started_ms) >= self.script.max_ms {
            return MockNext::TimedOut;
        }
        match &self.wait {
            Wait::Answer => {
                let side = self.side();
                let request = ChatRequest {
                    model: String::new(),
                    messages: self.view.clone(),
                    tools: side.base.tools.clone(),
                    tool_choice: None,
                    response_format: None,
                    ..side.base
                };
                let model = Arc::clone(&side.model);
                MockNext::Answer { request, model }
            }
            Wait::Verdict { request, .. } => {
                let (request, model) = (request.0.clone(), Arc::clone(&request.1));
                MockNext::Judge { request, model }
            }
            Wait::Tool => match self
                .open_call()
                .and_then(|call| Some((self.tool(&call.name)?, call)))
            {
                Some((tool, call)) => MockNext::Run {
                    tool: Arc::clone(tool),
                    call: call.clone(),
                },
                None => MockNext::Done { passed: false },
            },
            Wait::No => MockNext::Done {
                passed: self.passed(),
            },
        }
    }

    /// Whether every checkpoint so far passed.
    fn passed(&self) -> bool {
        self.failed == 0
    }

    fn step(&self, at: i64, ended_at: i64, done: Done, used: Option<ModelUse>) -> Step {
        Step {
            n: self.steps,
            at,
            ended_at,
            done,
            used,
        }
    }

    /// The record of the target's answer. Times are in milliseconds since the Unix epoch. Changes nothing: keep the record, then
    /// [`Mock::push`] it. So of the other two.
    #[must_use]
    pub fn answered(&self, reply: ChatReply, at: i64, ended_at: i64) -> Step {
        let used = ModelUse::of(Purpose::Target, &reply);
        let mut tool_calls = reply.tool_calls;
        for (index, call) in tool_calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = call_id(self.at, index);
            }
        }
        let content = reply.content.filter(|text| !text.is_empty());
        self.step(at, ended_at, Done::Answered { content, tool_calls }, Some(used))
    }

    /// The record of a model's verdict.
    #[must_use]
    pub fn judged(&self, reply: &ChatReply, at: i64, ended_at: i64) -> Step {
        let used = ModelUse::of(Purpose::Judge, reply);
        let verdict = cut(reply.content.clone().unwrap_or_default());
        self.step(at, ended_at, Done::Judged { verdict }, Some(used))
    }

    /// The record of what a tool gave back.
    #[must_use]
    pub fn ran(&self, result: String, at: i64, ended_at: i64) -> Step {
        let result = cut(result);
        self.step(at, ended_at, Done::Ran { result }, None)
    }

    /// Adds a kept step. One that does not belong there is passed over.
    pub fn push(&mut self, step: Step) {
        self.steps = self.steps.max(step.n.saturating_add(1));
        match (std::mem::take(&mut self.wait), step.done) {
            (Wait::Answer, Done::Answered { content, tool_calls }) => self.answer(content, tool_calls),
            (Wait::Verdict { subject, .. }, Done::Judged { verdict }) => {
                self.conclude(subject, read_verdict(&verdict));
            }
            (Wait::Tool, Done::Ran { result }) => self.returned(result),
            (wait, _) => {
                self.wait = wait;
                return;
            }
        }
        self.go_on();
    }

    fn side(&self) -> &Side {
        self.script.side(self.active)
    }

    fn tool(&self, name: &str) -> Option<&Arc<Value>> {
        self.script.tools.get(self.active)?.get(name)
    }

    /// The first call of the open turn that nothing was given back for.
    fn open_call(&self) -> Option<&ToolCall> {
        let open = self.open.as_ref()?;
        open.calls.get(open.results.len())
    }

    /// Goes through the messages until something is to be done outside, or to the end.
    fn go_on(&mut self) {
        while matches!(self.wait, Wait::No) && !self.over {
            let script = Arc::clone(&self.script);
            let Some(message) = script.messages.get(self.at) else {
                self.over = true;
                return;
            };
            match message {
                ChatEvalMessage::Tool(tool) => {
                    self.shown.push(json!({"role": "tool", "content": tool.content}));
                    if self.open_call().is_some() {
                        self.give_back(tool.content.clone(), true);
                    } else {
                        // Servers refuse an answer to a call that was not made; what it says is known all the same.
                        let note = format!("Tool result: {}", tool.content);
                        self.inject(&note);
                        self.history
                            .push(json!({"role": "tool", "content": tool.content}));
                    }
                    self.at += 1;
                }
                ChatEvalMessage::ToolEvaluation(_) => self.judge_tool(),
                // Everything else comes after what the tools gave back.
                _ if self.open_call().is_some() => self.settle_next(),
                ChatEvalMessage::User(user) => {
                    self.hear(&user.content);
                    let message = json!({"role": "user", "content": user.content});
                    self.history.push(message.clone());
                    self.shown.push(message);
                    self.at += 1;
                }
                ChatEvalMessage::System(system) => {
                    self.inject(&system.content);
                    let message = json!({"role": "system", "content": system.content});
                    self.history.push(message.clone());
                    self.shown.push(message);
                    self.at += 1;
                }
                ChatEvalMessage::Assistant(mock) => {
                    let calls = calls(self.at, mock.tool_calls.as_deref().unwrap_or_default());
                    let message = assistant_message(mock.content.as_deref(), &calls);
                    self.history.push(message.clone());
                    self.shown.push(message);
                    self.at += 1;
                    self.speak(mock.content.clone(), calls);
                }
                ChatEvalMessage::AssistantEvaluation(_) => self.wait = Wait::Answer,
            }
        }
    }

    fn hear(&mut self, text: &str) {
        if std::mem::take(&mut self.stands_in) {
            self.view.pop();
        }
        self.view.push(said("user", text));
        self.remember(Speaker::Tester, Some(text.to_owned()), Vec::new(), Vec::new());
    }

    fn inject(&mut self, text: &str) {
        let message = said("system", text);
        self.view.push(message.clone());
        self.injected.push(message);
        self.stands_in = false;
    }

    fn remember(
        &mut self,
        speaker: Speaker,
        content: Option<String>,
        tool_calls: Vec<ToolCall>,
        tool_results: Vec<ToolResult>,
    ) {
        self.members.push(self.active);
        self.replies.push(Reply {
            n: u32::try_from(self.replies.len()).unwrap_or(u32::MAX),
            speaker,
            content,
            tool_calls,
            tool_results,
            at: 0,
            ended_at: 0,
            usage: None,
            model: None,
            assistant_name: None,
            assistant_id: None,
            cost: None,
            chat_id: None,
        });
    }

    /// The target's turn becomes part of the conversation, once its tools have given something back.
    fn speak(&mut self, content: Option<String>, calls: Vec<ToolCall>) {
        let content = content.filter(|text| !text.is_empty());
        if !calls.is_empty() {
            self.open = Some(Open {
                content,
                calls,
                results: Vec::new(),
            });
        } else if let Some(text) = content {
            self.view.push(said("assistant", &text));
            self.stands_in = false;
            self.remember(Speaker::Target, Some(text), calls, Vec::new());
        }
    }

    /// Gets something for the next open call that no mock answers.
    fn settle_next(&mut self) {
        match self.open_call().map(|call| self.own_result(call)) {
            Some(Some(result)) => self.returned(result),
            Some(None) => self.wait = Wait::Tool,
            None => {}
        }
    }

    /// The next open call gave `result` back, which no mock says.
    fn returned(&mut self, result: String) {
        let script = Arc::clone(&self.script);
        if let Some(ChatEvalMessage::ToolEvaluation(checkpoint)) = script.messages.get(self.at) {
            return self.judge_response(&checkpoint.judge_plan, result);
        }
        let name = self.open_call().map(|call| call.name.clone());
        self.shown.push(tool_message(name.as_deref(), &result));
        self.give_back(result, false);
    }

    /// What a call gives back that nobody outside is asked for; nothing for a tool that is to be run.
    fn own_result(&self, call: &ToolCall) -> Option<String> {
        let side = self.side();
        if side.end_tools.contains(&call.name) {
            return Some("The call has ended.".to_owned());
        }
        if let Some(way) = side.handoffs.get(&call.name) {
            return Some(match way.lead(&call.arguments, self.active) {
                Ok((_, said)) => said,
                Err(why) => why,
            });
        }
        if self.tool(&call.name).is_some() {
            return None;
        }
        Some(format!(
            "Error: the tool {} was not run, because the eval has no tool message for it.",
            call.name
        ))
    }

    /// The next open call gives `result` back. When it was the last one, the turn is part of the conversation.
    fn give_back(&mut self, result: String, mocked: bool) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let place = open.results.len();
        if let Some(call) = open.calls.get(place) {
            let handed = open.results.iter().any(|result| result.handoff.is_some());
            let lead = self
                .side()
                .handoffs
                .get(&call.name)
                .and_then(|way| way.lead(&call.arguments, self.active).ok());
            let handoff = lead.map(|(member, _)| member).filter(|_| !handed);
            self.history
                .push(json!({"role": "tool", "name": call.name, "content": result}));
            open.results.push(ToolResult {
                tool_call_id: call.id.clone(),
                name: call.name.clone(),
                result,
                mocked,
                handoff,
            });
        }
        if open.results.len() < open.calls.len() {
            self.open = Some(open);
            return;
        }
        self.view
            .push(tool_call_message(open.content.as_deref(), &open.calls));
        self.view.extend(open.results.iter().map(ToolResult::message));
        self.stands_in = false;
        let handoff = open.results.iter().find_map(|result| result.handoff);
        self.remember(Speaker::Target, open.content, open.calls, open.results);
        if let Some(member) = handoff {
            self.hand_over(member as usize);
        }
    }

    /// Makes another member the target, with what it is to know of the conversation.
    fn hand_over(&mut self, member: usize) {
        let history = self.replies.last().and_then(|reply| self.side().history(reply));
        self.active = member;
        let mut prompts = self.side().base.messages.clone();
        prompts.extend(self.injected.iter().cloned());
        self.view = squad::view(
            &prompts,
            history.unwrap_or_default(),
            self.replies.iter().zip(self.members.iter().copied()),
            member,
        );
        self.stands_in = self.view.last().is_some_and(squad::stands_in);
    }

    /// The target answered at a checkpoint: its plan says how that is judged.
    fn answer(&mut self, content: Option<String>, tool_calls: Vec<ToolCall>) {
        let script = Arc::clone(&self.script);
        let Some(ChatEvalMessage::AssistantEvaluation(checkpoint)) = script.messages.get(self.at) else {
            return;
        };
        let verdict = match &checkpoint.judge_plan {
            JudgePlan::Exact(plan) => {
                checkpoint::exact(plan, &self.answer_for(plan, content.as_deref(), &tool_calls))
            }
            JudgePlan::Regex(plan) => {
                checkpoint::patterns(plan, &self.answer_for(plan, content.as_deref(), &tool_calls))
            }
            JudgePlan::Ai(plan) => {
                let last = assistant_message(content.as_deref(), &tool_calls);
                return self.ask_judge(plan, &last, Subject::Turn(content, tool_calls));
            }
        };
        self.conclude(Subject::Turn(content, tool_calls), verdict);
    }

    /// The target's answer as a plan compares it. Who a conversation is handed to may be asked for by name or by id, whichever of
    /// them the model was told, and also where a function has only one destination and no argument says it.
    fn answer_for(&self, plan: &JudgePlanMatch, content: Option<&str>, calls: &[ToolCall]) -> Answer {
        const DESTINATION: &str = "destination";
        let expected = plan.tool_calls.as_deref().unwrap_or_default();
        let called = |(n, call): (usize, &ToolCall)| {
            let mut arguments = arguments(&call.arguments);
            let asked = expected
                .get(n)
                .and_then(|expected| expected.arguments.as_ref()?.to_object());
            let asked = asked.as_ref().and_then(|asked| asked.get(DESTINATION)?.as_str());
            if let (Some(way), Some(asked), Some(arguments)) =
                (self.side().handoffs.get(&call.name), asked, &mut arguments)
                && way.leads_to(&call.arguments, asked)
            {
                arguments.insert(DESTINATION.to_owned(), json!(asked));
            }
            Called {
                name: call.name.clone(),
                arguments,
            }
        };
        Answer {
            content: content.unwrap_or_default().to_owned(),
            tool_calls: calls.iter().enumerate().map(called).collect(),
        }
    }

    /// A checkpoint for what a tool gives back.
    fn judge_tool(&mut self) {
        let Some(call) = self.open_call() else {
            let why = "The assistant called no tool, so there is no tool response to judge".to_owned();
            return self.conclude(Subject::Nothing, Err(why));
        };
        let side = self.side();
        let ours = side.end_tools.contains(&call.name) || side.handoffs.contains_key(&call.name);
        match self.own_result(call) {
            // It comes back with the result.
            None => self.wait = Wait::Tool,
            Some(result) if ours => self.returned(result),
            Some(result) => {
                let why = format!(
                    "The tool {} was not run, so there is no tool response to judge; \"unmockedTools\": \"run\" in the request runs it",
                    call.name
                );
                self.conclude(Subject::Response(result), Err(why));
            }
        }
    }

    fn judge_response(&mut self, plan: &JudgePlan, result: String) {
        let name = self.open_call().map(|call| call.name.clone());
        let last = tool_message(name.as_deref(), &result);
        match plan {
            JudgePlan::Ai(plan) => self.ask_judge(plan, &last, Subject::Response(result)),
            JudgePlan::Exact(_) | JudgePlan::Regex(_) => {
                let why = "Only a model can judge a tool's response".to_owned();
                self.conclude(Subject::Response(result), Err(why));
            }
        }
    }

    /// Waits for a model's verdict on `last`, or knows already that there can be none.
    fn ask_judge(&mut self, plan: &JudgePlanAi, last: &Value, subject: Subject) {
        let mut conversation = self.history.clone();
        conversation.push(last.clone());
        let size = Json::new(&conversation).text().len();
        if size > LONGEST_JUDGED {
            let why = format!(
                "The conversation has {size} bytes, more than the {LONGEST_JUDGED} that a model judges"
            );
            return self.conclude(subject, Err(why));
        }
        let given = plan.model.as_ref();
        let model = match given {
            Some(model) => Arc::new(json!(settings_of(model))),
            None => Arc::clone(&self.side().model),
        };
        let mut request = ChatRequest {
            messages: judge_messages(given, plan.auto_include_message_history, &conversation),
            ..ChatRequest::default()
        };
        if let Some(settings) = model.as_object() {
            apply_settings(settings, &mut request);
        }
        self.wait = Wait::Verdict {
            subject,
            request: Box::new((request, model)),
        };
    }

    /// A checkpoint has its verdict: the conversation goes on as its plan says.
    fn conclude(&mut self, subject: Subject, verdict: Result<(), String>) {
        self.checked += 1;
        let passed = verdict.is_ok();
        self.failed += u32::from(!passed);
        let judge = json!(JudgeVerdict {
            status: if passed {
                EvalVerdict::Pass
            } else {
                EvalVerdict::Fail
            },
            failure_reason: verdict.err(),
            extra: Object::new(),
        });
        let script = Arc::clone(&self.script);
        let plan = match script.messages.get(self.at) {
            Some(ChatEvalMessage::AssistantEvaluation(checkpoint)) => checkpoint.continue_plan.as_ref(),
            _ => None,
        };
        let place = self.at;
        self.at += 1;
        self.over = !passed && plan.is_some_and(|plan| plan.exit_on_failure_enabled);
        match subject {
            Subject::Turn(content, calls) => {
                let mut message = assistant_message(content.as_deref(), &calls);
                message["judge"] = judge;
                let (content, calls, replaced) = continued(plan, place, content, calls);
                let told = assistant_message(content.as_deref(), &calls);
                if replaced {
                    message["continuedWith"] = told.clone();
                }
                self.shown.push(message);
                self.history.push(told);
                self.speak(content, calls);
            }
            Subject::Response(result) => {
                let name = self.open_call().map(|call| call.name.clone());
                let mut message = tool_message(name.as_deref(), &result);
                message["judge"] = judge;
                self.shown.push(message);
                self.give_back(result, false);
            }
            Subject::Nothing => {
                let mut message = tool_message(None, "");
                message["judge"] = judge;
                self.shown.push(message);
            }
        }
    }

    /// The messages so far with the verdicts, as clients see them.
    #[must_use]
    pub fn messages(&self) -> &[Value] {
        &self.shown
    }

    /// How many checkpoints were judged, and how many of them failed.
    #[must_use]
    pub const fn counts(&self) -> (u32, u32) {
        (self.checked, self.failed)
    }

    /// What came of it until `ended_ms` (milliseconds since the Unix epoch), as clients see it: it passed if it is over and every
    /// checkpoint passed.
    #[must_use]
    pub fn result(&self, ended_ms: i64) -> Value {
        let passed = self.over && self.passed();
        json!({
            "status": if passed { EvalVerdict::Pass } else { EvalVerdict::Fail },
            "messages": self.shown,
            "startedAt": iso(self.started_ms),
            "endedAt": iso(ended_ms),
        })
    }
}

/// The turn with which the conversation goes on: the plan's own where it has one, whatever the verdict was. Says whether the plan
/// replaced anything.
fn continued(
    plan: Option<&ContinuePlan>,
    place: usize,
    content: Option<String>,
    tool_calls: Vec<ToolCall>,
) -> (Option<String>, Vec<ToolCall>, bool) {
    let text = plan.and_then(|plan| plan.content_override.clone());
    let others = plan.and_then(|plan| plan.tool_calls_override.as_deref());
    let replaced = text.is_some() || others.is_some();
    (
        text.or(content),
        others.map_or(tool_calls, |others| calls(place, others)),
        replaced,
    )
}

fn call_id(place: usize, n: usize) -> String {
    format!("call_{place}_{n}")
}

/// The calls that a message at `place` has, as a model would have made them.
fn calls(place: usize, calls: &[ChatEvalToolCall]) -> Vec<ToolCall> {
    let call = |(n, call): (usize, &ChatEvalToolCall)| ToolCall {
        id: call_id(place, n),
        name: call.name.clone(),
        arguments: match &call.arguments {
            Some(ToolArguments::Object(object)) => json!(object).to_string(),
            Some(ToolArguments::Text(text)) if !text.trim().is_empty() => text.clone(),
            Some(ToolArguments::Text(_)) | None => "{}".to_owned(),
        },
    };
    calls.iter().enumerate().map(call).collect()
}

/// What a model wrote as arguments; none where it is no JSON object.
fn arguments(text: &str) -> Option<Object> {
    if text.trim().is_empty() {
        return Some(Object::new());
    }
    serde_json::from_str(text).ok()
}

/// A turn of the assistant as clients and judges see it.
fn assistant_message(content: Option<&str>, calls: &[ToolCall]) -> Value {
    let mut message = json!({"role": "assistant"});
    if let Some(text) = content {
        message["content"] = json!(text);
    }
    if !calls.is_empty() {
        let call = |call: &ToolCall| match arguments(&call.arguments) {
            Some(arguments) => json!({"name": call.name, "arguments": arguments}),
            None => json!({"name": call.name, "arguments": call.arguments}),
        };
        message["toolCalls"] = calls.iter().map(call).collect();
    }
    message
}

fn tool_message(name: Option<&str>, content: &str) -> Value {
    let mut message = json!({"role": "tool", "content": content});
    if let Some(name) = name {
        message["name"] = json!(name);
    }
    message
}

/// What a judge's settings are, without what it is told.
fn settings_of(model: &JudgeModel) -> Object {
    let mut settings = match json!(model) {
        Value::Object(settings) => settings,
        _ => Object::new(),
    };
    settings.remove("messages");
    settings
}

/// What a judge is told: the plan's messages with the conversation filled in, or the conversation and what to do with it.
fn judge_messages(model: Option<&JudgeModel>, includes_history: bool, conversation: &[Value]) -> Vec<Json> {
    let given = model.map_or(&[][..], |model| &model.messages);
    let mut messages: Vec<Json> = Vec::with_capacity(given.len() + 2);
    let mut asks = false;
    for message in given {
        let mut message = message.clone();
        asks |= message.get("role").and_then(Value::as_str) == Some("user");
        match message.get_mut("content") {
            Some(Value::String(text)) => *text = fill(text, |path| part(conversation, path)),
            Some(Value::Array(parts)) => {
                for part_of in parts {
                    if let Some(Value::String(text)) = part_of.get_mut("text") {
                        *text = fill(text, |path| part(conversation, path));
                    }
                }
            }
            _ => {}
        }
        messages.push(Json::new(&message));
    }
    if given.is_empty() {
        messages.push(said("system", JUDGE));
        if includes_history {
            messages.push(said("user", &json!(conversation).to_string()));
            asks = true;
        }
    }
    if !asks {
        messages.push(said("user", ASK));
    }
    messages
}

/// What a placeholder of a judge's message stands for: `messages`, all of the conversation as JSON; `messages[n]`, one of its
/// messages, where -1 is the last one; `messages[n].content`, a field of it.
fn part(conversation: &[Value], path: &str) -> Option<String> {
    let rest = path.trim().strip_prefix("messages")?;
    if rest.is_empty() {
        return Some(json!(conversation).to_string());
    }
    let (message, rest) = if let Some(rest) = rest.strip_prefix(".last") {
        (conversation.last()?, rest)
    } else if let Some(rest) = rest.strip_prefix(".first") {
        (conversation.first()?, rest)
    } else {
        let (index, rest) = rest.strip_prefix('[')?.split_once(']')?;
        let index: i64 = index.trim().parse().ok()?;
        let from_end = usize::try_from(index.unsigned_abs()).ok()?;
        let place = if index < 0 {
            conversation.len().checked_sub(from_end)?
        } else {
            from_end
        };
        (conversation.get(place)?, rest)
    };
    let mut value = message;
    for name in rest.split('.').skip(1) {
        value = value.get(name)?;
    }
    if !rest.is_empty() && !rest.starts_with('.') {
        return None;
    }
    Some(match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// What a judge said: pass or fail and nothing else, but for case, quotes, marks and punctuation.
fn read_verdict(text: &str) -> Result<(), String> {
    let word = text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    match word.as_str() {
        "pass" => Ok(()),
        "fail" => Err("The judge's verdict is fail".to_owned()),
        _ => {
            let said: String = text.chars().take(200).collect();
            Err(format!(
                "The judge's verdict cannot be read: expected 'pass' or 'fail' but got: '{said}'"
            ))
        }
    }
}

/// A text as a step keeps it.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST_KEPT {
        let mut end = LONGEST_KEPT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::llm::Usage;

    const STARTED: i64 = 1_700_000_000_000;

    fn script(messages: Value, target: &Value, runs_tools: bool) -> Arc<Script> {
        let messages: Vec<ChatEvalMessage> = serde_json::from_value(messages).unwrap();
        Arc::new(Script::new(&ScriptParts {
            messages: &messages,
            target: Target::of(target),
            overrides: &Value::Null,
            runs_tools,
            limits: Limits::default(),
        }))
    }

    fn agent() -> Value {
        json!({"assistant": {
            "model": {
                "model": "m", "messages": [{"role": "system", "content": "You help."}],
                "tools": [{"type": "function", "function": {"name": "find"}, "server": {"url": "https://a"}}, {"type": "endCall"}],
            },
        }})
    }

    fn says(content: &str, calls: &[&str]) -> ChatReply {
        ChatReply {
            content: Some(content.to_owned()),
            tool_calls: calls
                .iter()
                .map(|name| ToolCall {
                    name: (*name).to_owned(),
                    arguments: "{\"q\":1}".to_owned(),
                    ..ToolCall::default()
                })
                .collect(),
            usage: Some(Usage::default()),
            model: Some("m".to_owned()),
            ..ChatReply::default()
        }
    }

    /// Plays a script with replies of the target, the judge and the tools in the order in which they are asked for.
    fn play(script: &Arc<Script>, replies: &[ChatReply]) -> (Mock, Vec<Step>) {
        let mut mock = Mock::new(Arc::clone(script), STARTED, Vec::new());
        let mut steps = Vec::new();
        for reply in replies {
            let step = match mock.next(STARTED) {
                MockNext::Answer { .. } => mock.answered(reply.clone(), STARTED, STARTED + 5),
                MockNext::Judge { .. } => mock.judged(reply, STARTED, STARTED + 5),
                MockNext::Run { .. } => {
                    mock.ran(reply.content.clone().unwrap_or_default(), STARTED, STARTED + 5)
                }
                MockNext::Done { .. } | MockNext::TimedOut => break,
            };
            steps.push(step.clone());
            mock.push(step);
        }
        (mock, steps)
    }

    fn asked(mock: &Mock) -> Vec<Value> {
        match mock.next(STARTED) {
            MockNext::Answer { request, .. } | MockNext::Judge { request, .. } => {
                request.messages.iter().map(Json::value).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_call_has_an_answer_before_the_target_is_asked_again() {
        let messages = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "judgePlan": {"type": "exact", "content": "Hello"}},
            {"role": "tool", "content": "one"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "judgePlan": {"type": "exact", "content": "Done"}},
        ]);
        let script = script(messages, &agent(), false);
        // Two calls and one mock: the second gets an error, since nothing is run.
        let (mock, _) = play(&script, &[says("Hello", &["find", "find"])]);
        let told = asked(&mock);
        assert_eq!(told.len(), 6);
        let ids: Vec<&Value> = told[2]["tool_calls"]
            .as_array()
            .unwrap()
            .iter()
            .map(|call| &call["id"])
            .collect();
        assert_ne!(ids[0], ids[1]);
        assert_eq!(
            (&told[3]["tool_call_id"], &told[3]["content"]),
            (ids[0], &json!("one"))
        );
        assert_eq!(&told[4]["tool_call_id"], ids[1]);
        assert!(told[4]["content"].as_str().unwrap().contains("was not run"));
        // A mock for a call that was not made is known all the same.
        let (mock, _) = play(&script, &[says("Hello", &[])]);
        let told = asked(&mock);
        assert_eq!(
            (&told[3]["role"], &told[3]["content"]),
            (&json!("system"), &json!("Tool result: one"))
        );
        let (mock, _) = play(&script, &[says("Hello", &[]), says("Done", &["endCall"])]);
        assert_eq!(mock.next(STARTED), MockNext::Done { passed: true });
        assert_eq!(mock.counts(), (2, 0));
    }

    #[test]
    fn tools_run_only_where_that_is_asked_for() {
        let messages = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "judgePlan": {"type": "exact", "toolCalls": [{"name": "find"}]}},
            {"role": "tool", "judgePlan": {"type": "ai"}},
            {"role": "assistant", "judgePlan": {"type": "exact", "content": "ok"}},
        ]);
        let runs = script(messages.clone(), &agent(), true);
        let (mock, _) = play(&runs, &[says("", &["find"])]);
        let MockNext::Run { tool, call } = mock.next(STARTED) else {
            panic!("{:?}", mock.next(STARTED));
        };
        assert_eq!(
            (&tool["server"]["url"], call.name.as_str()),
            (&json!("https://a"), "find")
        );
        let (mock, _) = play(&runs, &[says("", &["find"]), says("found it", &[])]);
        let told = asked(&mock);
        assert!(
            told[1]["content"].as_str().unwrap().contains("found it"),
            "the judge is told: {told:?}"
        );
        let (mock, _) = play(
            &runs,
            &[says("", &["find"]), says("found it", &[]), says("pass", &[])],
        );
        assert_eq!(asked(&mock).last().unwrap()["content"], "found it");
        let (mock, _) = play(&script(messages, &agent(), false), &[says("", &["find"])]);
        assert_eq!(mock.counts(), (2, 1));
    }

    #[test]
    fn placeholders_of_judges_are_filled_in() {
        let conversation = [
            json!({"role": "user", "content": "Hi {{messages}}"}),
            json!({"role": "assistant", "content": "Yes", "toolCalls": [{"name": "t"}]}),
        ];
        for (path, expected) in [
            ("messages[-1].content", Some("Yes")),
            ("messages[0].role", Some("user")),
            (" messages.last.content ", Some("Yes")),
            ("messages.first.role", Some("user")),
            ("messages[-1].toolCalls", Some("[{\"name\":\"t\"}]")),
            ("messages[-1].content.more", None),
            ("messages[-3]", None),
            ("messages[2]", None),
            ("messages[x]", None),
            ("messages[-1]x", None),
            ("message", None),
        ] {
            assert_eq!(part(&conversation, path).as_deref(), expected, "{path}");
        }
        assert_eq!(part(&conversation, "messages[-9223372036854775808]"), None);
        assert_eq!(
            part(&conversation, "messages").unwrap(),
            json!(conversation).to_string()
        );
        // What was said is not filled in once more.
        let plan: JudgeModel = serde_json::from_value(json!({
            "provider": "openai", "model": "j", "messages": [{"role": "user", "content": "{{messages[0].content}}|{{unknown}}"}],
        }))
        .unwrap();
        let messages = judge_messages(Some(&plan), true, &conversation);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].value()["content"], "Hi {{messages}}|{{unknown}}");
        for (includes, place) in [(true, 1), (false, 1)] {
            let messages = judge_messages(None, includes, &conversation);
            let last = messages[place].value()["content"]
                .as_str()
                .unwrap()
                .contains("Yes");
            assert_eq!(last, includes);
        }
    }

    #[test]
    fn a_verdict_is_one_word() {
        for (said, passes) in [
            ("pass", Some(true)),
            (" PASS\n", Some(true)),
            ("\"fail\".", Some(false)),
            ("**Pass**", Some(true)),
            ("", None),
            ("pass or fail", None),
            ("The answer is pass", None),
            ("true", None),
        ] {
            let verdict = read_verdict(said);
            let unreadable = verdict
                .as_ref()
                .err()
                .is_some_and(|why| why.contains("cannot be read"));
            assert_eq!(
                (verdict.is_ok(), unreadable),
                (passes == Some(true), passes.is_none()),
                "{said}"
            );
        }
    }

    #[test]
    fn a_step_that_belongs_elsewhere_is_passed_over_and_time_runs_out() {
        let messages = json!([{"role": "assistant", "judgePlan": {"type": "exact", "content": "x"}}]);
        let mut mock = Mock::new(script(messages, &agent(), false), STARTED, Vec::new());
        let stray = mock.ran("x".to_owned(), STARTED, STARTED);
        mock.push(stray);
        assert!(matches!(mock.next(STARTED), MockNext::Answer { .. }));
        assert_eq!(mock.next(STARTED + 600_000), MockNext::TimedOut);
        assert_eq!(mock.result(STARTED)["status"], "fail");
    }

    proptest! {
        /// Whoever goes on from the kept steps comes to the same conversation, wherever the other one stopped.
        #[test]
        fn it_goes_on_from_any_step(kinds in prop::collection::vec(0..7_u8, 1..12), replies in prop::collection::vec((0..4_u8, 0..3_usize), 24), runs in any::<bool>(), at in 0..24_usize) {
            let message = |kind: &u8| match kind {
                0 => json!({"role": "user", "content": "u"}),
                1 => json!({"role": "system", "content": "s"}),
                2 => json!({"role": "assistant", "content": "a", "toolCalls": [{"name": "find", "arguments": {"x": 1}}]}),
                3 => json!({"role": "tool", "content": "t"}),
                4 => json!({"role": "assistant", "judgePlan": {"type": "exact", "content": "r1"}, "continuePlan": {"toolCallsOverride": [{"name": "find"}]}}),
                5 => json!({"role": "assistant", "judgePlan": {"type": "ai"}}),
                _ => json!({"role": "tool", "judgePlan": {"type": "ai"}}),
            };
            let script = script(kinds.iter().map(message).collect(), &agent(), runs);
            let replies: Vec<ChatReply> = replies
                .iter()
                .map(|(say, calls)| says(&format!("r{say}"), &["find", "endCall", "unknown"][..*calls]))
                .collect();
            let (mock, steps) = play(&script, &replies);
            let text = serde_json::to_string(&steps).unwrap();
            let kept: Vec<Step> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&kept, &steps);
            let at = at.min(kept.len());
            let mut other = Mock::new(Arc::clone(&script), STARTED, kept[..at].to_vec());
            for step in &kept[at..] {
                other.push(step.clone());
            }
            prop_assert_eq!(other.next(STARTED), mock.next(STARTED));
            prop_assert_eq!(other.result(STARTED), mock.result(STARTED));
            // No server is asked about a call that has no answer.
            if let MockNext::Answer { request, .. } = mock.next(STARTED) {
                let (mut made, mut answered) = (Vec::new(), Vec::new());
                for message in request.messages.iter().map(Json::value) {
                    made.extend(message["tool_calls"].as_array().into_iter().flatten().map(|call| call["id"].clone()));
                    answered.extend(message.get("tool_call_id").cloned());
                }
                prop_assert_eq!(made, answered);
            }
        }
    }
}
