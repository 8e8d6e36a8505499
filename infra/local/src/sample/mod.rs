//! A sample agent and a scripted tester, for the demo and for tests: two chat-completions endpoints with no language
//! model behind them. Both derive what they say from the messages of the request alone.

mod agent;
pub mod provider;
mod tester;

use axum::{Json, Router, routing::post};
use serde::Deserialize;
use serde_json::{Value, json};

/// The name under which the agent answers.
pub const AGENT_MODEL: &str = "sample-clinic-agent";
/// The name under which the tester answers.
pub const TESTER_MODEL: &str = "scripted-tester";

/// The tools of the sample agent, as an assistant declares them.
#[must_use]
pub fn agent_tools() -> Value {
    agent::tools()
}

/// The endpoints: `/agent/v1/chat/completions` and `/tester/v1/chat/completions`.
pub fn router() -> Router {
    Router::new()
        .route(
            "/agent/v1/chat/completions",
            post(|request| answer(request, AGENT_MODEL, agent::reply)),
        )
        .route(
            "/tester/v1/chat/completions",
            post(|request| answer(request, TESTER_MODEL, tester::reply)),
        )
}

/// What the endpoints read of a chat-completions request.
#[derive(Debug, Default, Deserialize)]
struct Request {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Tool>,
}

impl Request {
    /// Whether the caller can answer calls of this tool.
    fn offers(&self, tool: &str) -> bool {
        self.tools.iter().any(|offered| offered.function.name == tool)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

impl Message {
    /// The text, whether it comes as a string or in parts.
    fn text(&self) -> String {
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts: Vec<&str> = parts
                    .iter()
                    .filter_map(|part| part.get("text")?.as_str())
                    .collect();
                texts.join(" ")
            }
            _ => String::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct ToolCall {
    id: String,
    function: Named,
}

#[derive(Debug, Deserialize)]
struct Tool {
    function: Named,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// What an endpoint says.
#[derive(Debug, Clone, PartialEq)]
enum Reply {
    Say(String),
    Call { tool: &'static str, arguments: Value },
}

async fn answer(
    Json(request): Json<Request>,
    model: &'static str,
    reply: fn(&Request) -> Reply,
) -> Json<Value> {
    let calls = request
        .messages
        .iter()
        .filter_map(|message| message.tool_calls.as_ref())
        .flatten()
        .count();
    let (message, reason) = match reply(&request) {
        Reply::Say(text) => (json!({"role": "assistant", "content": text}), "stop"),
        Reply::Call { tool, arguments } => {
            let call = json!({
                "id": format!("call_{}", calls + 1),
                "type": "function",
                "function": {"name": tool, "arguments": arguments.to_string()},
            });
            (
                json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                "tool_calls",
            )
        }
    };
    let words: usize = request
        .messages
        .iter()
        .map(|message| message.text().split_whitespace().count())
        .sum();
    let said = message["content"]
        .as_str()
        .map_or(0, |text| text.split_whitespace().count());
    Json(json!({
        "id": "chatcmpl-sample",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        // Words: nothing here counts tokens.
        "usage": {"prompt_tokens": words, "completion_tokens": said, "total_tokens": words + said},
    }))
}
