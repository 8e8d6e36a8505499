//! Runs a tool of the agent under test for real: where a request asks for it, and never otherwise.
//!
//! A tool with a server is sent a `tool-calls` message, as the agent's platform would send it; an `apiRequest` is the HTTP request
//! that it describes. Whatever goes wrong is an answer as well, for the agent to deal with.

use std::time::Duration;

use reqwest::{
    Method, RequestBuilder, Url,
    header::{HeaderName, HeaderValue},
};
use serde_json::{Value, json};

use crate::{
    conversation::fill,
    llm::ToolCall,
    models::Object,
    net::{Outbound, Refused, without_url},
};

/// The longest answer of a tool, in bytes.
const LARGEST: usize = 256 * 1024;
/// How long a tool has unless its server says, in seconds.
const TIMEOUT_SECONDS: f64 = 20.0;

/// What `tool` gives back for `call`, within `longest` at most and within what its server allows. `now_ms` is the time in
/// milliseconds since the Unix epoch.
pub async fn run(
    outbound: &Outbound,
    tool: &Value,
    call: &ToolCall,
    longest: Duration,
    now_ms: i64,
) -> String {
    match answer(outbound, tool, call, longest, now_ms).await {
        Ok(result) => result,
        Err(why) => format!("Error: the tool {} failed: {why}", call.name),
    }
}

async fn answer(
    outbound: &Outbound,
    tool: &Value,
    call: &ToolCall,
    longest: Duration,
    now_ms: i64,
) -> Result<String, String> {
    let api = tool.get("type").and_then(Value::as_str) == Some("apiRequest");
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    let server = if api {
        tool
    } else {
        tool.get("server").unwrap_or(&Value::Null)
    };
    let text = server.get("url").and_then(Value::as_str).unwrap_or_default();
    if text.is_empty() {
        return Err("it has no server with a url".to_owned());
    }
    let text = if api {
        // What is filled in stays within its place.
        fill(text, |name| {
            let value = arguments.get(name).and_then(plain)?;
            let encoded: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
            // In a path a plus is a plus.
            Some(encoded.replace('+', "%20"))
        })
    } else {
        text.to_owned()
    };
    let url: Url = text.parse().map_err(|_| "its url is no URL".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("its url must be an http or https URL".to_owned());
    }
    let client = outbound
        .client(&url, false)
        .map_err(|refused| refused.to_string())?;
    let request = if api {
        let method = tool.get("method").and_then(Value::as_str).unwrap_or("GET");
        let method = Method::from_bytes(method.to_uppercase().as_bytes())
            .map_err(|_| "its method is none".to_owned())?;
        let request = client.request(method.clone(), url);
        match method {
            Method::GET | Method::HEAD => request,
            _ => request.json(&arguments),
        }
    } else {
        client.post(url).json(&tool_calls(call, &arguments, now_ms))
    };
    let seconds = server
        .get("timeoutSeconds")
        .and_then(Value::as_f64)
        .unwrap_or(TIMEOUT_SECONDS);
    let timeout = Duration::try_from_secs_f64(seconds.max(1.0)).map_or(longest, |asked| asked.min(longest));
    let request = with_headers(request, server.get("headers"))?.timeout(timeout);
    let mut response = request
        .send()
        .await
        .map_err(|error| match Refused::find(&error) {
            Some(refused) => refused.to_string(),
            None if error.is_timeout() => format!("no answer within {} s", timeout.as_secs()),
            None => without_url(error),
        })?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(without_url)? {
        if body.len() + chunk.len() > LARGEST {
            return Err(format!("its answer has more than {} KB", LARGEST / 1024));
        }
        body.extend_from_slice(&chunk);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        return Err(format!("it answered with status {}", status.as_u16()));
    }
    Ok(if api { body } else { result_in(&body, &call.id) })
}

/// The message that a tool's server is sent.
fn tool_calls(call: &ToolCall, arguments: &Value, now_ms: i64) -> Value {
    let function = json!({"name": call.name, "arguments": arguments});
    json!({"message": {
        "type": "tool-calls",
        "timestamp": now_ms,
        "toolCallList": [{
            "id": call.id, "name": call.name, "arguments": arguments, "type": "function", "function": function,
        }],
        "toolCalls": [{"id": call.id, "type": "function", "function": function}],
    }})
}

/// What a server's answer says for a call: its `result` or `error` among `results`, or else all of it.
fn result_in(body: &str, call_id: &str) -> String {
    let parsed: Value = serde_json::from_str(body).unwrap_or_default();
    let results = parsed.get("results").and_then(Value::as_array);
    let of_call = |result: &&Value| result.get("toolCallId").and_then(Value::as_str) == Some(call_id);
    let found = results.and_then(|results| results.iter().find(of_call).or_else(|| results.first()));
    let Some(found) = found else {
        return body.to_owned();
    };
    let text = |name: &str| found.get(name).and_then(plain);
    match (text("result"), text("error")) {
        (Some(result), _) => result,
        (None, Some(error)) => format!("Error: {error}"),
        (None, None) => String::new(),
    }
}

/// A value as text: a text is itself. Nothing for null.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The request with a server's headers: as names and values, or as a schema with values.
fn with_headers(mut request: RequestBuilder, headers: Option<&Value>) -> Result<RequestBuilder, String> {
    let empty = Object::new();
    let headers = headers.and_then(Value::as_object).unwrap_or(&empty);
    let schema = headers.get("properties").and_then(Value::as_object);
    for (name, value) in schema.unwrap_or(headers) {
        let value = match (schema.is_some(), value) {
            (true, Value::Object(property)) => property.get("value").or_else(|| property.get("default")),
            (false, value) => Some(value),
            (true, _) => None,
        };
        let Some(text) = value.and_then(plain) else {
            continue;
        };
        // These belong to the connection.
        if ["host", "content-length", "transfer-encoding", "connection"]
            .iter()
            .any(|taken| name.eq_ignore_ascii_case(taken))
        {
            continue;
        }
        let parsed = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(text));
        let (Ok(key), Ok(mut value)) = parsed else {
            return Err(format!("its header {name:?} cannot be sent"));
        };
        value.set_sensitive(true);
        request = request.header(key, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_call_is_found_in_what_its_server_answers() {
        let both =
            r#"{"results": [{"toolCallId": "a", "result": "one"}, {"toolCallId": "b", "result": {"n": 2}}]}"#;
        for (body, id, expected) in [
            (both, "a", "one"),
            (both, "b", r#"{"n":2}"#),
            (
                r#"{"results": [{"toolCallId": "a", "error": "no such day"}]}"#,
                "a",
                "Error: no such day",
            ),
            (r#"{"results": [{"result": 3}]}"#, "a", "3"),
            ("plain words", "a", "plain words"),
            (r#"{"results": [{}]}"#, "a", ""),
        ] {
            assert_eq!(result_in(body, id), expected, "{body}");
        }
    }
}
