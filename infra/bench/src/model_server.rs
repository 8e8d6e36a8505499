//! An OpenAI-compatible server that answers at once: what the system is given to talk to.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{get, post},
    serve::{Listener, ListenerExt},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::{
    BoxError,
    workload::{BRIEF_MODEL, EXCHANGES, FAREWELL, SMALL_TALK, TARGET_MODEL},
};

/// How to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelServerArgs {
    /// How long an answer takes, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
}

/// What was asked so far.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    /// Model calls.
    pub(crate) calls: u64,
    /// Connections, the one that asks for this included.
    pub(crate) connections: u64,
    /// The most calls that were open at a time.
    pub(crate) most_at_once: u64,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    open: AtomicU64,
    most_at_once: AtomicU64,
    connections: AtomicU64,
    latency: Duration,
}

/// A listener that counts.
struct Counting {
    inner: TcpListener,
    counters: Arc<Counters>,
}

impl Listener for Counting {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let accepted = Listener::accept(&mut self.inner).await;
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        accepted
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Serves on a free port, whose URL it prints as its first line, until standard input ends: then whoever started
/// it has gone.
pub(crate) async fn run(args: ModelServerArgs) -> Result<bool, BoxError> {
    let counters = Arc::new(Counters {
        latency: Duration::from_millis(args.latency_ms),
        ..Counters::default()
    });
    let inner = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    crate::print(&format!("http://{}/v1", inner.local_addr()?), false)?;
    let router = Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/stats", get(stats))
        .with_state(Arc::clone(&counters));
    let listener = Counting { inner, counters }.tap_io(|stream| {
        // Without it an answer in two packets waits for an acknowledgement.
        let _only_slower = stream.set_nodelay(true);
    });
    let served = axum::serve(listener, router);
    let mut nothing = Vec::new();
    let mut input = tokio::io::stdin();
    tokio::select! {
        served = served.into_future() => served?,
        ended = input.read_to_end(&mut nothing) => { ended?; }
    }
    Ok(true)
}

async fn stats(State(counters): State<Arc<Counters>>) -> impl IntoResponse {
    axum::Json(Stats {
        calls: counters.calls.load(Ordering::Relaxed),
        connections: counters.connections.load(Ordering::Relaxed),
        most_at_once: counters.most_at_once.load(Ordering::Relaxed),
    })
}

async fn complete(State(counters): State<Arc<Counters>>, body: Bytes) -> impl IntoResponse {
    counters.calls.fetch_add(1, Ordering::Relaxed);
    let open = counters.open.fetch_add(1, Ordering::Relaxed) + 1;
    counters.most_at_once.fetch_max(open, Ordering::Relaxed);
    if !counters.latency.is_zero() {
        tokio::time::sleep(counters.latency).await;
    }
    let answer = answer(&body);
    counters.open.fetch_sub(1, Ordering::Relaxed);
    ([(CONTENT_TYPE, "application/json")], answer)
}

/// The answer to a request: a judge gets a value of the form that it asks for, the target's last turn ends the
/// call, and everything else is small talk.
fn answer(request: &[u8]) -> String {
    let last = EXCHANGES as usize - 1;
    let content = if contains(request, br#""response_format":"#) {
        let request: Value = serde_json::from_slice(request).unwrap_or_default();
        let schema = request.pointer("/response_format/json_schema/schema");
        example(schema.unwrap_or(&Value::Null)).to_string()
    } else if contains(request, BRIEF_MODEL.as_bytes())
        || contains(request, TARGET_MODEL.as_bytes()) && count(request, br#""role":"assistant""#) >= last
    {
        format!("You are booked. {FAREWELL}.")
    } else {
        SMALL_TALK.to_owned()
    };
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [{
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": content},
        }],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    })
    .to_string()
}

/// A value that fits `schema`: everything is there and true.
fn example(schema: &Value) -> Value {
    if let Some(first) = schema.get("enum").and_then(|values| values.get(0)) {
        return first.clone();
    }
    let kind = match schema.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .unwrap_or(""),
        _ => "",
    };
    match kind {
        "object" => {
            let properties = schema.get("properties").and_then(Value::as_object);
            properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), example(schema)))
                .collect()
        }
        "array" => json!([]),
        "string" => json!("yes"),
        "number" | "integer" => json!(1),
        _ => json!(true),
    }
}

fn count(text: &[u8], wanted: &[u8]) -> usize {
    text.windows(wanted.len())
        .filter(|window| *window == wanted)
        .count()
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// A model server in a process of its own.
#[derive(Debug)]
pub(crate) struct ModelServer {
    url: String,
    // Killed when dropped; and its standard input, which ends with this process, is kept open.
    _process: Child,
}

impl ModelServer {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(latency_ms: u64) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["model-server", "--latency-ms", &latency_ms.to_string()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the model server has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let url = serde_json::from_str(&line).map_err(|_| "the model server did not start")?;
        Ok(Self {
            url,
            _process: process,
        })
    }

    /// Where it is, `/v1` included.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it was asked so far, by others than this process.
    pub(crate) async fn stats(&self) -> Result<Stats, BoxError> {
        let client = ringback_shared::net::client().build()?;
        let answer = client.get(format!("{}/stats", self.url)).send().await?;
        let text = answer.text().await?;
        let stats: Stats = serde_json::from_str(&text)?;
        Ok(Stats {
            connections: stats.connections.saturating_sub(1),
            ..stats
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(request: &Value) -> String {
        let answer: Value = serde_json::from_str(&answer(request.to_string().as_bytes())).unwrap();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn the_targets_fourth_reply_ends_the_call() {
        let mut messages = vec![json!({"role": "system", "content": "Be kind."})];
        for turn in 1..=EXCHANGES {
            messages.push(json!({"role": "user", "content": "Hello"}));
            let said = content(&json!({"model": TARGET_MODEL, "messages": messages}));
            assert_eq!(said.contains(FAREWELL), turn == EXCHANGES, "turn {turn}");
            let said = content(&json!({"model": crate::workload::TESTER_MODEL, "messages": messages}));
            assert!(!said.contains(FAREWELL));
            messages.push(json!({"role": "assistant", "content": "Hello"}));
        }
    }

    #[test]
    fn a_brief_target_ends_the_call_at_once() {
        let messages = json!([{"role": "user", "content": "Hello"}]);
        let said = content(&json!({"model": BRIEF_MODEL, "messages": messages}));
        assert!(said.contains("You are booked") && said.contains(FAREWELL));
    }

    #[test]
    fn a_judge_gets_what_it_asks_for() {
        let more = json!({"n": {"type": ["null", "number"]}, "s": {"enum": ["a", "b"]}});
        let schema = json!({"type": "object", "properties": {
            "booked": {"type": "boolean"},
            "more": {"type": "object", "properties": more},
        }});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let said = content(&json!({"model": "m", "messages": [], "response_format": format}));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said, json!({"booked": true, "more": {"n": 1, "s": "a"}}));
    }
}
