//! What was said, as clients of Cekura read it: the agent under test is the main agent, who simulates is the testing agent.

use ringback_shared::measure::{self, Side};
use serde_json::{Value, json};

use super::objects::text;

const TESTING: &str = "Testing Agent";
const MAIN: &str = "Main Agent";

/// A conversation's messages, with the tools that were used. Times are in seconds since its start.
pub(crate) fn object(messages: &[Value]) -> Vec<Value> {
    let mut spoken = measure::utterances(messages).into_iter();
    let mut entries = Vec::new();
    for message in messages {
        let is_spoken = !measure::utterances(std::slice::from_ref(message)).is_empty();
        if let Some(said) = is_spoken.then(|| spoken.next()).flatten() {
            let role = match said.side {
                Side::Tester => TESTING,
                Side::Agent => MAIN,
            };
            entries.push(json!({
                "role": role, "content": said.text, "turn": said.turn, "start_time": said.start, "end_time": said.end,
                "time": clock(said.start),
            }));
        }
        let calls = message.get("toolCalls").or_else(|| message.get("tool_calls"));
        for call in calls.and_then(Value::as_array).into_iter().flatten() {
            let function = call.get("function").unwrap_or(&Value::Null);
            let data = json!({
                "id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments"),
            });
            entries.push(tool("Function Call", text(function, "name"), &data));
        }
        if matches!(text(message, "role"), "tool_call_result" | "tool") {
            let result = message.get("result").or_else(|| message.get("content"));
            let id = message.get("toolCallId").or_else(|| message.get("tool_call_id"));
            let data = json!({ "id": id, "result": result });
            entries.push(tool("Function Call Result", text(message, "name"), &data));
        }
    }
    entries
}

fn tool(role: &str, content: &str, data: &Value) -> Value {
    json!({ "role": role, "content": content, "start_time": null, "end_time": null, "time": clock(None), "data": data })
}

/// A time since the start in minutes and seconds.
fn clock(seconds: Option<f64>) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
    let ms = (seconds.unwrap_or_default() * 1000.0) as i64;
    super::whole::minutes(Some(ms))
}

/// A conversation as text, a line for each thing that was said.
pub(crate) fn lines(entries: &[Value]) -> String {
    let spoken = entries
        .iter()
        .filter(|entry| [TESTING, MAIN].contains(&text(entry, "role")));
    let lines: Vec<String> = spoken
        .map(|entry| {
            format!(
                "[{}] {}: {}",
                text(entry, "time"),
                text(entry, "role"),
                text(entry, "content")
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_told_by_who_is_tested() {
        let messages = [
            json!({"role": "user", "message": "Hello.", "secondsFromStart": 1.2, "duration": 800.0}),
            json!({"role": "assistant", "content": "One moment.", "toolCalls": [
                {"id": "t", "function": {"name": "book", "arguments": "{}"}}
            ]}),
            json!({"role": "tool_call_result", "name": "book", "toolCallId": "t", "result": "done"}),
            json!({"role": "bot", "message": "Done."}),
        ];
        let entries = object(&messages);
        let roles: Vec<&str> = entries.iter().map(|entry| text(entry, "role")).collect();
        assert_eq!(
            roles,
            [
                "Testing Agent",
                "Main Agent",
                "Function Call",
                "Function Call Result",
                "Main Agent"
            ]
        );
        assert_eq!(
            entries[2]["data"],
            json!({"id": "t", "name": "book", "arguments": "{}"})
        );
        assert_eq!(entries[3]["data"], json!({"id": "t", "result": "done"}));
        assert!(lines(&entries).starts_with("[00:01] Testing Agent: Hello.\n"));
        assert_eq!(lines(&entries).lines().count(), 3);
    }
}
