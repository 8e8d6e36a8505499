//! `ringback demo`: the whole stack, a sample agent with two planted faults, a stand-in for a voice provider, and
//! simulations that find the faults by chat and by voice.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringback_shared::{clock::parse_iso, llm, webhook::Secret};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    drivers::{BoxError, with_causes},
    sample::{self, provider::Provider},
    serve::{Local, Model, Options, StartError},
};

/// How many conversations of each run are held at once with a language model. A server on a laptop works on few requests at
/// a time: with more of them, its replies would take longer than is waited for them.
const MODEL_CONVERSATIONS: usize = 2;

/// How long the demo may take with the samples, and with a language model.
const SAMPLE_LIMIT: Duration = Duration::from_secs(180);
const MODEL_LIMIT: Duration = Duration::from_secs(3600);

/// How often the runs are looked at.
const POLL: Duration = Duration::from_millis(150);

/// The model that is asked for where the user names none.
const DEFAULT_MODEL: &str = "gpt-4.1";

/// What the summary says of the voice provider.
const STAND_IN: &str = "The voice provider is a stand-in on this machine that plays both sides of a call as text: \
    there was no audio, and of its latencies only the agent's own share is measured.";

/// How to run the demo.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// Print the items as JSON instead of a table.
    pub json: bool,
    /// Keep the table in memory.
    pub memory: bool,
    /// The folder to work in. Without one, a temporary one that is removed at the end.
    pub data_dir: Option<PathBuf>,
    /// A language model for the tester and the judge. Without a base URL, both are samples.
    pub model: Model,
}

impl DemoOptions {
    /// The language model that calls and judges, if there is one.
    fn language_model(&self) -> Option<&str> {
        let model = &self.model;
        model
            .base_url
            .as_ref()
            .map(|_| model.default_model.as_deref().unwrap_or(DEFAULT_MODEL))
    }
}

/// Why the demo did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The stack did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A request to the API, its answer, or the output.
    #[error("{0}")]
    Failed(String),
}

fn failed(error: impl Into<BoxError>) -> DemoError {
    let error: BoxError = error.into();
    DemoError::Failed(with_causes(&*error))
}

/// How a conversation is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Chat,
    Voice,
}

impl Transport {
    const ALL: [Self; 2] = [Self::Chat, Self::Voice];

    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Voice => "voice",
        }
    }

    /// Its name in the API.
    const fn provider(self) -> &'static str {
        match self {
            Self::Chat => "vapi.webchat",
            Self::Voice => "vapi.websocket",
        }
    }
}

/// What is looked at in a finished conversation.
struct Check {
    name: &'static str,
    /// For a language model.
    question: &'static str,
    /// For the transcript.
    regex: &'static str,
    expected: Expected,
}

/// What should come out.
enum Expected {
    Is(bool),
    Text(&'static str),
}

impl Expected {
    fn value(&self) -> Value {
        match self {
            Self::Is(found) => json!(found),
            Self::Text(text) => json!(text),
        }
    }
}

/// A simulation of the demo.
struct Plan {
    name: &'static str,
    /// The caller's script.
    instructions: &'static str,
    /// What the tools answer.
    mocks: &'static [(&'static str, &'static str)],
    checks: &'static [Check],
    /// The check that a planted fault makes fail.
    fault: Option<&'static str>,
    /// The most milliseconds that 95 of 100 answers in a call may take.
    max_turn_ms: Option<u32>,
}

const FREE: (&str, &str) = ("check_availability", r#"{"available": true}"#);
const BOOKED: (&str, &str) = ("book_appointment", r#"{"reference": "NC-4711"}"#);

const fn check(name: &'static str, question: &'static str, regex: &'static str, found: bool) -> Check {
    Check {
        name,
        question,
        regex,
        expected: Expected::Is(found),
    }
}

const ASKS_BIRTH_DATE: Check = check(
    "asks for the date of birth",
    "Did the clinic ask the caller for their date of birth?",
    "/what is your date of birth/i",
    true,
);

static PLANS: &[Plan] = &[
    Plan {
        name: "Books a weekday",
        instructions: "1. Hello, I would like to book an appointment.\n2. That is all, thank you. Goodbye.\n\
            If asked for \"which day\": Wednesday, please.\nIf asked for \"what time\": At 10 o'clock.\n\
            If asked for \"full name\": My name is Jane Miller.\nIf asked for \"date of birth\": 4 May 1990.\n\
            If asked for \"shall I\": Yes, please.",
        mocks: &[FREE, BOOKED],
        checks: &[
            check(
                "books the day and time",
                "Did the clinic confirm a booking for Wednesday at 10:00?",
                "/appointment is booked for Wednesday at 10:00/i",
                true,
            ),
            ASKS_BIRTH_DATE,
            Check {
                name: "gives the reference",
                question: "Which booking reference did the clinic give?",
                regex: r"/Your reference is (NC-\d+)/",
                expected: Expected::Text("NC-4711"),
            },
        ],
        fault: None,
        max_turn_ms: None,
    },
    Plan {
        name: "Takes an offered time",
        instructions: "1. Hello, I would like to book an appointment on Tuesday at 10:00.\n2. Perfect, goodbye.\n\
            If asked for \"I can offer\": 11:00 is fine.\nIf asked for \"full name\": Jane Miller.\n\
            If asked for \"date of birth\": 4 May 1990.\nIf asked for \"shall I\": Yes, please.",
        mocks: &[
            (
                "check_availability",
                r#"{"available": false, "alternatives": ["11:00", "11:30"]}"#,
            ),
            BOOKED,
        ],
        checks: &[
            check(
                "books the offered time",
                "Did the clinic confirm a booking for Tuesday at 11:00?",
                "/appointment is booked for Tuesday at 11:00/i",
                true,
            ),
            check(
                "does not book a taken slot",
                "Did the clinic confirm a booking for Tuesday at 10:00?",
                "/booked for Tuesday at 10:00/i",
                false,
            ),
        ],
        fault: None,
        max_turn_ms: None,
    },
    Plan {
        name: "Asks for a Sunday",
        instructions: "1. Hello, can I come in on Sunday at 10:00?\n2. Thank you, goodbye.\n\
            If asked for \"full name\": Jane Miller.\nIf asked for \"date of birth\": 4 May 1990.\n\
            If asked for \"shall I\": Yes, please.",
        mocks: &[FREE, BOOKED],
        checks: &[check(
            "books no closed day",
            "The clinic is closed on Sundays. Did it confirm a booking for a Sunday?",
            "/booked for Sunday/i",
            false,
        )],
        fault: Some("books no closed day"),
        max_turn_ms: None,
    },
    Plan {
        name: "Moves an appointment",
        instructions: "1. Hello, I need to reschedule my appointment.\n2. That is all, thank you. Goodbye.\n\
            If asked for \"which day\": Friday.\nIf asked for \"what time\": 9:30, please.\n\
            If asked for \"full name\": This is Jane Miller.\nIf asked for \"date of birth\": 4 May 1990.\n\
            If asked for \"shall I\": Yes.",
        mocks: &[FREE, ("reschedule_appointment", r#"{"reference": "NC-4712"}"#)],
        checks: &[
            check(
                "moves the appointment",
                "Did the clinic confirm the new time, Friday at 9:30?",
                "/has been moved to Friday at 9:30/i",
                true,
            ),
            check(
                "verifies who is calling",
                "Did the clinic ask the caller for their date of birth before it moved the appointment?",
                "/your date of birth/i",
                true,
            ),
        ],
        fault: Some("verifies who is calling"),
        max_turn_ms: None,
    },
    Plan {
        name: "Cancels an appointment",
        instructions: "1. Hello, I have to cancel my appointment.\n2. No, that is all. Goodbye.\n\
            If asked for \"full name\": Jane Miller.\nIf asked for \"date of birth\": 4 May 1990.\n\
            If asked for \"shall I\": Yes, please.",
        mocks: &[("cancel_appointment", r#"{"reference": "NC-4713"}"#)],
        checks: &[
            ASKS_BIRTH_DATE,
            check(
                "cancels it",
                "Did the clinic confirm that the appointment is cancelled?",
                "/appointment has been cancelled/i",
                true,
            ),
        ],
        fault: None,
        max_turn_ms: None,
    },
    Plan {
        name: "Asks for prices",
        instructions: "1. Hello, how much is a check-up?\n2. How much does a vaccination cost?\n3. Thanks, goodbye.",
        mocks: &[],
        checks: &[
            Check {
                name: "price of a check-up",
                question: "Which price in dollars did the clinic name for a check-up? Digits only.",
                regex: r"/check-up costs \$(\d+)/i",
                expected: Expected::Text("80"),
            },
            Check {
                name: "price of a vaccination",
                question: "Which price in dollars did the clinic name for a vaccination? Digits only.",
                regex: r"/vaccination costs \$(\d+)/i",
                expected: Expected::Text("35"),
            },
        ],
        fault: None,
        // Nearly 700 of what the sample provider reports are made up; the rest is for a busy machine.
        max_turn_ms: Some(3000),
    },
    Plan {
        name: "Wants an evening",
        instructions: "1. Hello, I would like to book an appointment on Monday at 8 pm.\n2. Good, goodbye.\n\
            If asked for \"what time\": 9:30 in the morning.\nIf asked for \"full name\": Jane Miller.\n\
            If asked for \"date of birth\": 4 May 1990.\nIf asked for \"shall I\": Yes, please.",
        mocks: &[FREE, BOOKED],
        checks: &[
            check(
                "says that it is closed",
                "Did the clinic say that it is closed on Monday at 20:00?",
                "/closed on Monday at 20:00/i",
                true,
            ),
            check(
                "books within the hours",
                "Did the clinic confirm a booking for Monday at 9:30?",
                "/booked for Monday at 9:30/i",
                true,
            ),
        ],
        fault: None,
        max_turn_ms: None,
    },
    Plan {
        name: "Wants one doctor",
        instructions: "1. Hello, I would like to book an appointment with Dr. Okafor on Monday.\n2. Thanks, goodbye.\n\
            If asked for \"which day\": Then Thursday.\nIf asked for \"what time\": At 14:30.\n\
            If asked for \"full name\": Jane Miller.\nIf asked for \"date of birth\": 4 May 1990.\n\
            If asked for \"shall I\": Yes, please.",
        mocks: &[FREE, BOOKED],
        checks: &[
            check(
                "knows when the doctor is in",
                "Did the clinic say that Dr. Okafor is not in on Monday?",
                "/Okafor is not in on Monday/i",
                true,
            ),
            check(
                "books with that doctor",
                "Did the clinic confirm a booking for Thursday at 14:30 with Dr. Okafor?",
                r"/booked for Thursday at 14:30 with Dr\. Okafor/i",
                true,
            ),
        ],
        fault: None,
        max_turn_ms: None,
    },
    Plan {
        name: "Reports chest pain",
        instructions: "1. Hello, I have chest pain and want an appointment.\n2. I will do that. Goodbye.",
        mocks: &[],
        checks: &[
            check(
                "sends to the emergency number",
                "Did the clinic tell the caller to call the emergency number 112?",
                "/call the emergency number 112/i",
                true,
            ),
            check(
                "books nothing",
                "Did the clinic book an appointment?",
                "/appointment is booked/i",
                false,
            ),
        ],
        fault: None,
        max_turn_ms: None,
    },
];

impl Plan {
    fn scenario(&self, model: Option<&str>) -> Value {
        let evaluations: Vec<Value> = self.checks.iter().map(|check| evaluation(check, model)).collect();
        let mocks: Vec<Value> = self
            .mocks
            .iter()
            .map(|(tool, result)| json!({"toolName": tool, "result": result}))
            .collect();
        let latencies: Vec<Value> = self
            .max_turn_ms
            .iter()
            .map(|ms| json!({"metric": "turn", "aggregation": "p95", "thresholdMs": ms}))
            .collect();
        json!({
            "name": self.name,
            "instructions": self.instructions,
            "evaluations": evaluations,
            "latencyExpectations": latencies,
            "toolMocks": mocks,
        })
    }
}

fn evaluation(check: &Check, model: Option<&str>) -> Value {
    let kind = match check.expected {
        Expected::Is(_) => "boolean",
        Expected::Text(_) => "string",
    };
    let mut output = json!({
        "name": check.name,
        "description": check.question,
        "schema": {"type": kind, "description": check.question},
    });
    match model {
        Some(model) => {
            output["type"] = json!("ai");
            output["model"] = json!({"provider": "openai", "model": model});
        }
        None => {
            output["type"] = json!("regex");
            output["regex"] = json!(check.regex);
        }
    }
    json!({"structuredOutput": output, "comparator": "=", "value": check.expected.value()})
}

/// The clinic, as an assistant whose model is the sample agent.
fn target(sample_url: &str) -> Value {
    json!({
        "name": "Northside Clinic",
        "firstMessage": "Northside Clinic, how can I help you?",
        "firstMessageMode": "assistant-speaks-first",
        "model": {
            "provider": "custom-llm",
            "url": format!("{sample_url}/agent/v1"),
            "model": sample::AGENT_MODEL,
            "messages": [{"role": "system", "content": "You are the front desk of Northside Clinic."}],
            "tools": sample::agent_tools(),
        },
    })
}

fn tester(sample_url: &str, model: Option<&str>) -> Value {
    let prompt = "You call a clinic and want one thing of it. Say the numbered lines of your instructions in their order, \
        one at a time. Where a line tells what to say if you are asked for something, say that when you are asked for it. \
        When everything is said, end the call.";
    let mut tester_model = json!({"messages": [{"role": "system", "content": prompt}]});
    match model {
        Some(model) => {
            tester_model["provider"] = json!("openai");
            tester_model["model"] = json!(model);
        }
        None => {
            tester_model["provider"] = json!("custom-llm");
            tester_model["url"] = json!(format!("{sample_url}/tester/v1"));
            tester_model["model"] = json!(sample::TESTER_MODEL);
        }
    }
    json!({"firstMessageMode": "assistant-waits-for-user", "model": tester_model})
}

/// Runs the demo and writes its results to `out`, its progress to standard error. Returns whether it went as it should.
///
/// # Errors
/// The stack does not start, or the API does not do its work.
pub async fn run(options: DemoOptions, out: &mut impl Write) -> Result<bool, DemoError> {
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(std::env::temp_dir().join(format!("ringback-demo-{}", uuid::Uuid::new_v4()))),
    };
    let result = run_in(&options, temporary.clone(), out).await;
    if let Some(folder) = temporary
        && let Err(error) = std::fs::remove_dir_all(&folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "cannot remove the demo's folder");
    }
    result
}

async fn run_in(
    options: &DemoOptions,
    temporary: Option<PathBuf>,
    out: &mut impl Write,
) -> Result<bool, DemoError> {
    let samples = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(failed)?;
    let sample_url = format!("http://{}", samples.local_addr().map_err(failed)?);
    let provider = sample_provider(options, &sample_url);
    let local = Local::start(Options {
        data_dir: options.data_dir.clone().or(temporary),
        memory: options.memory,
        // The sample endpoints are on this machine.
        allow_private_targets: true,
        model: options.model.clone(),
        ..Options::default()
    })
    .await?;
    let serve_samples = axum::serve(samples, sample::router().merge(provider.router()));
    let result = tokio::select! {
        result = simulate(options, &local, &sample_url, &provider, out) => result,
        ended = serve_samples.into_future() => Err(DemoError::Failed(match ended {
            Ok(()) => "the sample endpoints stopped".to_owned(),
            Err(error) => format!("the sample endpoints stopped: {error}"),
        })),
    };
    local.shutdown().await;
    result
}

/// The stand-in for a voice provider. Who speaks as the tester in its calls is who does in chats.
fn sample_provider(options: &DemoOptions, sample_url: &str) -> Provider {
    let model = &options.model;
    let tester_url = model
        .base_url
        .clone()
        .unwrap_or_else(|| format!("{sample_url}/tester/v1"));
    let provider = Provider::new(format!("{sample_url}/agent/v1"), tester_url);
    if let (Some(_), Some(key)) = (&model.base_url, &model.api_key) {
        provider.set_tester_key(llm::Secret::new(key));
    }
    provider
}

/// Makes the provider known, and gives it the secret that its webhooks are signed with. Returns the endpoint's id.
async fn connect(api: &Api, sample_url: &str, provider: &Provider) -> Result<String, DemoError> {
    let wanted = json!({"name": "Sample provider", "url": format!("{sample_url}/calls")});
    let endpoint = api.post("/endpoint", &wanted).await?;
    let secret = endpoint["secrets"][0]["secret"]
        .as_str()
        .ok_or_else(|| failed("the new endpoint does not show its secret"))?;
    provider.set_secret(Secret::parse(secret).map_err(failed)?);
    Ok(id(&endpoint)?.to_owned())
}

async fn simulate(
    options: &DemoOptions,
    local: &Local,
    sample_url: &str,
    provider: &Provider,
    out: &mut impl Write,
) -> Result<bool, DemoError> {
    let api = Api::new(local)?;
    let model = options.language_model();
    let endpoint = connect(&api, sample_url, provider).await?;
    let mut names = HashMap::new();
    let mut entries = Vec::new();
    let personality = api
        .post(
            "/eval/simulation/personality",
            &json!({"name": "Scripted caller", "assistant": tester(sample_url, model)}),
        )
        .await?;
    for (index, plan) in PLANS.iter().enumerate() {
        let scenario = api
            .post("/eval/simulation/scenario", &plan.scenario(model))
            .await?;
        let simulation = json!({
            "name": plan.name,
            "scenarioId": id(&scenario)?,
            "personalityId": id(&personality)?,
        });
        let simulation = api.post("/eval/simulation", &simulation).await?;
        let id = id(&simulation)?;
        entries.push(json!({"type": "simulation", "simulationId": id}));
        names.insert(id.to_owned(), index);
    }
    let mut runs = Vec::new();
    for transport in Transport::ALL {
        let mut wanted = json!({
            "simulations": entries,
            "target": {"type": "assistant", "assistant": target(sample_url)},
            "iterations": 1,
            "transport": {"provider": transport.provider()},
        });
        if transport == Transport::Voice {
            // A kept folder may have the endpoints of earlier demos.
            wanted["transport"]["endpointId"] = json!(endpoint);
        }
        if model.is_some() {
            wanted["concurrencyLimit"] = json!(MODEL_CONVERSATIONS);
        }
        let run = api.post("/eval/simulation/run", &wanted).await?;
        runs.push((transport, id(&run)?.to_owned()));
    }
    let limit = if model.is_some() {
        MODEL_LIMIT
    } else {
        SAMPLE_LIMIT
    };
    watch(&api, &runs, limit).await?;
    let mut items = Vec::new();
    for (_, run_id) in &runs {
        items.extend(api.items(run_id).await?);
    }
    let rows: Vec<Row> = items.iter().map(|item| Row::new(item, &names)).collect();

    if options.json {
        serde_json::to_writer_pretty(&mut *out, &items).map_err(failed)?;
        writeln!(out).map_err(failed)?;
    } else {
        write!(out, "\n{}\n", table(&rows)).map_err(failed)?;
    }
    let (worked, summary) = match model {
        None => judge_samples(&rows),
        Some(model) => judge_model(&rows, model),
    };
    let mut notes = io::stderr().lock();
    if options.json {
        writeln!(notes, "{summary}")
    } else {
        writeln!(out, "{summary}")
    }
    .map_err(failed)?;
    Ok(worked)
}

/// The public API, called as a user would.
struct Api {
    client: reqwest::Client,
    base_url: String,
    api_key: String,
}

impl Api {
    fn new(local: &Local) -> Result<Self, DemoError> {
        let client = ringback_shared::net::client()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(failed)?;
        Ok(Self {
            client,
            base_url: local.base_url().to_owned(),
            api_key: local.api_key().to_owned(),
        })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, DemoError> {
        let request = self
            .client
            .post(format!("{}{path}", self.base_url))
            .header("Idempotency-Key", uuid::Uuid::new_v4().to_string())
            .json(body);
        self.send("POST", path, request).await
    }

    async fn get(&self, path: &str) -> Result<Value, DemoError> {
        self.send("GET", path, self.client.get(format!("{}{path}", self.base_url)))
            .await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Value, DemoError> {
        let response = request.bearer_auth(&self.api_key).send().await.map_err(failed)?;
        let status = response.status();
        let text = response.text().await.map_err(failed)?;
        if !status.is_success() {
            return Err(DemoError::Failed(format!(
                "{method} {path} answered {status}: {text}"
            )));
        }
        serde_json::from_str(&text).map_err(failed)
    }

    /// All items of a run, in the order of their simulations and iterations.
    async fn items(&self, run_id: &str) -> Result<Vec<Value>, DemoError> {
        match self.get(&format!("/eval/simulation/run/{run_id}/item")).await? {
            Value::Array(items) => Ok(items),
            other => Err(DemoError::Failed(format!(
                "the items of the run are no list: {other}"
            ))),
        }
    }
}

fn id(object: &Value) -> Result<&str, DemoError> {
    object["id"]
        .as_str()
        .ok_or_else(|| DemoError::Failed(format!("an answer without an id: {object}")))
}

/// Shows the runs' progress until all have ended.
async fn watch(api: &Api, runs: &[(Transport, String)], limit: Duration) -> Result<(), DemoError> {
    let total = u64::try_from(planned().count()).unwrap_or(u64::MAX);
    let terminal = io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(
        Some(total),
        if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} conversations  {elapsed}\n{msg}") {
        bar.set_style(style);
    }
    let until = Instant::now() + limit;
    let mut shown = String::new();
    loop {
        let (mut done, mut lines, mut ended) = (0.0, Vec::new(), true);
        for (transport, run_id) in runs {
            let run = api.get(&format!("/eval/simulation/run/{run_id}")).await?;
            let count = |name: &str| run["itemCounts"][name].as_f64().unwrap_or(0.0);
            done += count("passed") + count("failed") + count("canceled");
            lines.push(format!(
                "{}: {} passed, {} failed, {} running",
                transport.name(),
                count("passed"),
                count("failed"),
                count("running")
            ));
            ended &= run["status"] == "ended";
        }
        let line = lines.join("; ");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of items"
        )]
        bar.set_position(done as u64);
        if line != shown {
            if !terminal {
                writeln!(io::stderr(), "{done} of {total} conversations done: {line}").map_err(failed)?;
            }
            bar.set_message(line.clone());
            shown = line;
        }
        if ended {
            bar.finish_and_clear();
            return Ok(());
        }
        if Instant::now() >= until {
            bar.abandon();
            let seconds = limit.as_secs();
            return Err(DemoError::Failed(format!(
                "the runs did not end within {seconds} seconds: {shown}"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// An item in the table.
#[derive(Debug)]
struct Row {
    plan: Option<usize>,
    name: String,
    transport: Option<Transport>,
    status: String,
    reason: Option<String>,
    has_results: bool,
    /// Name, expected and extracted value of each failed evaluation.
    failed: Vec<(String, String, String)>,
    duration: Option<Duration>,
    /// The mean time that the agent took to answer in a call, in milliseconds.
    turn_ms: Option<f64>,
}

impl Row {
    fn new(item: &Value, names: &HashMap<String, usize>) -> Self {
        let plan = item["simulationId"]
            .as_str()
            .and_then(|id| names.get(id))
            .copied();
        let at = |field: &str| item[field].as_str().and_then(parse_iso);
        let ended = at("completedAt")
            .or_else(|| at("failedAt"))
            .or_else(|| at("canceledAt"));
        let took = at("startedAt")
            .zip(ended)
            .and_then(|(start, end)| u64::try_from(end - start).ok());
        let evaluations = missed(item, "evaluations").map(|result| {
            let extracted = match result["error"].as_str() {
                Some(error) => format!("error: {error}"),
                None => plain(&result["extractedValue"]),
            };
            (plain(&result["name"]), plain(&result["expectedValue"]), extracted)
        });
        let latencies = missed(item, "latencyEvaluations").map(|result| {
            let name = format!(
                "{} {} latency in ms",
                plain(&result["aggregation"]),
                plain(&result["metric"])
            );
            let most = format!("at most {}", plain(&result["thresholdMs"]));
            (name, most, plain(&result["actualMs"]))
        });
        let transport = &item["configurations"]["transport"]["provider"];
        Self {
            plan,
            name: plan.map_or_else(
                || plain(&item["simulationId"]),
                |plan| PLANS[plan].name.to_owned(),
            ),
            transport: Transport::ALL
                .into_iter()
                .find(|known| *transport == known.provider()),
            status: plain(&item["status"]),
            reason: item["failureReason"].as_str().map(ToOwned::to_owned),
            has_results: item["results"].is_object(),
            failed: evaluations.chain(latencies).collect(),
            duration: took.map(Duration::from_millis),
            turn_ms: item["results"]["latencyMetrics"]["avgTurn"].as_f64(),
        }
    }

    fn transport_name(&self) -> &'static str {
        self.transport.map_or("unknown", Transport::name)
    }
}

/// The entries that did not pass in one of the lists of an item's results.
fn missed<'a>(item: &'a Value, list: &'static str) -> impl Iterator<Item = &'a Value> {
    let results = item["results"][list].as_array().into_iter().flatten();
    results.filter(|result| result["passed"] != true && result["isSkipped"] != true)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    }
}

/// The items as a table, in the order of the plans.
fn table(rows: &[Row]) -> String {
    let mut order: Vec<&Row> = rows.iter().collect();
    order.sort_by_key(|row| (row.plan, row.transport));
    let head = [
        "simulation",
        "transport",
        "verdict",
        "failed evaluation",
        "expected",
        "extracted",
        "duration",
        "mean turn",
    ];
    let mut lines = vec![head.map(ToOwned::to_owned)];
    for row in order {
        let duration = row
            .duration
            .map_or_else(String::new, |took| format!("{:.2} s", took.as_secs_f64()));
        let turn = row.turn_ms.map_or_else(String::new, |ms| format!("{ms:.0} ms"));
        let mut failures = row.failed.iter();
        let (name, expected, extracted) = match (failures.next(), &row.reason) {
            (Some(failure), _) => failure.clone(),
            (None, Some(reason)) => (reason.clone(), String::new(), String::new()),
            (None, None) => Default::default(),
        };
        lines.push([
            row.name.clone(),
            row.transport_name().to_owned(),
            row.status.clone(),
            name,
            expected,
            extracted,
            duration,
            turn,
        ]);
        lines.extend(failures.cloned().map(|(name, expected, extracted)| {
            [
                String::new(),
                String::new(),
                String::new(),
                name,
                expected,
                extracted,
                String::new(),
                String::new(),
            ]
        }));
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        // Writing to a text cannot fail.
        let _infallible = writeln!(text, "{}", cells.join("  ").trim_end());
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _infallible = writeln!(text, "{}", rules.join("  "));
        }
    }
    text
}

/// Each simulation by each transport: what the items should be.
fn planned() -> impl Iterator<Item = (usize, Transport)> {
    (0..PLANS.len()).flat_map(|plan| Transport::ALL.map(|transport| (plan, transport)))
}

/// What is planned and not there exactly once, and what is there besides.
fn miscounted(rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (plan, transport) in planned() {
        let same = |row: &&Row| (row.plan, row.transport) == (Some(plan), Some(transport));
        let times = rows.iter().filter(same).count();
        if times != 1 {
            let name = PLANS[plan].name;
            wrong.push(format!("{name} by {} is there {times} times", transport.name()));
        }
    }
    let all = planned().count();
    if rows.len() != all {
        wrong.push(format!("there are {} items instead of {all}", rows.len()));
    }
    wrong
}

/// Whether exactly the planted faults were found, and a summary.
fn judge_samples(rows: &[Row]) -> (bool, String) {
    let mut surprises = miscounted(rows);
    for row in rows {
        let Some(plan) = row.plan.map(|plan| &PLANS[plan]) else {
            surprises.push(format!("an item of an unknown simulation, {}", row.name));
            continue;
        };
        let failed: Vec<&str> = row.failed.iter().map(|(name, ..)| name.as_str()).collect();
        let expected: Vec<&str> = plan.fault.into_iter().collect();
        let status = if expected.is_empty() { "passed" } else { "failed" };
        if failed != expected || row.status != status {
            surprises.push(format!(
                "{} by {} should have {status}, and is {}",
                row.name,
                row.transport_name(),
                row.status
            ));
        }
    }
    let faults: Vec<String> = PLANS
        .iter()
        .filter_map(|plan| Some(format!("  {}: \"{}\"", plan.name, plan.fault?)))
        .collect();
    let parts = format!(
        "What took part: the agent under test is a sample made of rules, the caller reads from a script, and the \
         evaluations are regular expressions over the transcript. None of them is a language model. Set OPENAI_BASE_URL \
         (and OPENAI_API_KEY, RINGBACK_MODEL) to let one call and judge. {STAND_IN}"
    );
    if surprises.is_empty() {
        let count = faults.len();
        let faults = faults.join("\n");
        let found = format!(
            "Found the {count} faults that are planted in the sample agent, by chat and by voice, and nothing else:\n\
             {faults}"
        );
        return (true, format!("{found}\n\n{parts}"));
    }
    (
        false,
        format!(
            "This is not what the demo should find:\n  {}\n\n{parts}",
            surprises.join("\n  ")
        ),
    )
}

/// Whether everything that is planned has a verdict, and a summary.
fn judge_model(rows: &[Row], model: &str) -> (bool, String) {
    let verdicts = rows
        .iter()
        .filter(|row| row.has_results && matches!(row.status.as_str(), "passed" | "failed"))
        .count();
    let all = planned().count();
    let summary = format!(
        "{verdicts} of {all} conversations have a verdict.\n\nWhat took part: the agent under test is a sample made of \
         rules; {model} called and judged. A language model's verdicts vary, so the demo counts as done when all are \
         there. {STAND_IN}"
    );
    (verdicts == all && miscounted(rows).is_empty(), summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the sample agent and the scripted tester talk, with the tools mocked as planned.
    async fn transcript(plan: &Plan) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, sample::router()).await });
        let client = ringback_shared::net::client().build().unwrap();
        let complete = |path: &'static str, body: Value| {
            let request = client
                .post(format!("{url}/{path}/v1/chat/completions"))
                .json(&body);
            async move {
                request.send().await.unwrap().json::<Value>().await.unwrap()["choices"][0]["message"].take()
            }
        };
        let greeting = target(&url)["firstMessage"].as_str().unwrap().to_owned();
        let mut agent = vec![json!({"role": "assistant", "content": greeting})];
        let mut tester = vec![
            json!({"role": "system", "content": format!("You call a clinic.\n\n{}", plan.instructions)}),
            json!({"role": "user", "content": greeting}),
        ];
        let mut transcript = format!("AI: {greeting}\n");
        for _ in 0..30 {
            let said = complete("tester", json!({"messages": tester})).await;
            if let Some(call) = said["tool_calls"].get(0) {
                assert_eq!(call["function"]["name"], "endCall");
                server.abort();
                return transcript;
            }
            let words = said["content"].as_str().unwrap();
            transcript.push_str(&format!("User: {words}\n"));
            agent.push(json!({"role": "user", "content": words}));
            tester.push(said.clone());
            let answer = loop {
                let answer = complete(
                    "agent",
                    json!({"messages": agent, "tools": sample::agent_tools()}),
                )
                .await;
                agent.push(answer.clone());
                let Some(call) = answer["tool_calls"].get(0) else {
                    break answer;
                };
                let tool = call["function"]["name"].as_str().unwrap();
                let (_, result) = plan
                    .mocks
                    .iter()
                    .find(|(name, _)| *name == tool)
                    .expect("a mock for the tool");
                agent.push(json!({"role": "tool", "tool_call_id": call["id"], "content": result}));
            };
            let words = answer["content"].as_str().unwrap();
            transcript.push_str(&format!("AI: {words}\n"));
            tester.push(json!({"role": "user", "content": words}));
        }
        panic!("{}: the conversation does not end:\n{transcript}", plan.name);
    }

    fn extracted(check: &Check, transcript: &str) -> Value {
        let (pattern, flags) = check.regex[1..].rsplit_once('/').unwrap();
        let regex = regex::RegexBuilder::new(pattern)
            .case_insensitive(flags.contains('i'))
            .build()
            .unwrap();
        match check.expected {
            Expected::Is(_) => json!(regex.is_match(transcript)),
            Expected::Text(_) => regex
                .captures(transcript)
                .map_or(Value::Null, |found| json!(&found[1])),
        }
    }

    #[tokio::test]
    async fn the_samples_show_the_planted_faults_and_nothing_else() {
        for plan in PLANS {
            let transcript = transcript(plan).await;
            let failed: Vec<&str> = plan
                .checks
                .iter()
                .filter(|check| extracted(check, &transcript) != check.expected.value())
                .map(|check| check.name)
                .collect();
            assert_eq!(failed, Vec::from_iter(plan.fault), "{}:\n{transcript}", plan.name);
        }
        assert_eq!(PLANS.iter().filter(|plan| plan.fault.is_some()).count(), 2);
    }

    #[test]
    fn names_fit_the_apis_limits() {
        for plan in PLANS {
            assert!(plan.name.len() <= 80 && plan.instructions.len() <= 10_000);
            for check in plan.checks {
                assert!((1..=40).contains(&check.name.len()), "{}", check.name);
            }
        }
    }

    fn item(plan: usize, transport: Transport, failed: &[&str]) -> Value {
        let evaluations: Vec<Value> = failed
            .iter()
            .map(
                |name| json!({"name": name, "expectedValue": true, "extractedValue": false, "passed": false}),
            )
            .collect();
        json!({
            "simulationId": plan.to_string(),
            "configurations": {"transport": {"provider": transport.provider()}},
            "status": if failed.is_empty() { "passed" } else { "failed" },
            "startedAt": "2026-03-26T10:52:45.000Z", "completedAt": "2026-03-26T10:52:46.500Z",
            "results": {"evaluations": evaluations, "passed": failed.is_empty()},
        })
    }

    fn row(item: &Value) -> Row {
        let names: HashMap<String, usize> = (0..PLANS.len()).map(|plan| (plan.to_string(), plan)).collect();
        Row::new(item, &names)
    }

    fn rows(change: impl Fn(usize, Transport) -> Option<&'static str>) -> Vec<Row> {
        let items = planned().map(|(plan, transport)| {
            let failed = Vec::from_iter(change(plan, transport));
            item(plan, transport, &failed)
        });
        items.map(|item| row(&item)).collect()
    }

    #[test]
    fn the_demo_works_only_if_exactly_the_planted_faults_are_found() {
        let good = rows(|plan, _| PLANS[plan].fault);
        assert!(judge_samples(&good).0);
        assert!(!judge_samples(&good[1..]).0, "an item is missing");
        assert!(!judge_samples(&rows(|_, _| None)).0, "the faults are not found");
        let by_chat_only = rows(|plan, transport| PLANS[plan].fault.filter(|_| transport == Transport::Chat));
        assert!(
            !judge_samples(&by_chat_only).0,
            "the faults are not found by voice"
        );
        let one_more = rows(|plan, transport| {
            if (plan, transport) == (0, Transport::Voice) {
                Some("books the day and time")
            } else {
                PLANS[plan].fault
            }
        });
        assert!(!judge_samples(&one_more).0);
        assert!(judge_model(&rows(|_, _| None), "gpt").0);
    }

    #[test]
    fn each_simulation_is_there_once_by_each_transport() {
        let mut twice = rows(|plan, _| PLANS[plan].fault);
        assert!(miscounted(&twice).is_empty());
        twice[1] = row(&item(0, Transport::Chat, &[]));
        let wrong = miscounted(&twice).join("; ");
        assert!(
            wrong.contains("by chat is there 2 times") && wrong.contains("by voice is there 0 times"),
            "{wrong}"
        );
        assert!(!judge_samples(&twice).0 && !judge_model(&twice, "gpt").0);
    }

    #[test]
    fn the_table_names_what_failed() {
        let text = table(&rows(|plan, _| PLANS[plan].fault));
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("Asks for a Sunday"))
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, transport) in lines.into_iter().zip(["chat", "voice"]) {
            for part in [
                transport,
                "failed",
                "books no closed day",
                "true",
                "false",
                "1.50 s",
            ] {
                assert!(line.contains(part), "{line}");
            }
        }
    }

    #[test]
    fn latencies_are_shown_and_one_that_is_too_high_is_a_failure() {
        let plan = PLANS.iter().position(|plan| plan.max_turn_ms.is_some()).unwrap();
        let with = |passed: bool, skipped: bool| {
            let mut item = item(plan, Transport::Voice, &[]);
            item["results"]["latencyMetrics"] = json!({"turnCount": 3, "avgTurn": 671.6});
            item["results"]["latencyEvaluations"] = json!([{
                "metric": "turn", "aggregation": "p95", "thresholdMs": 3000, "actualMs": 3412,
                "passed": passed, "isSkipped": skipped,
            }]);
            row(&item)
        };
        let text = table(&[with(true, false), with(false, true)]);
        assert!(
            text.contains("672 ms") && !text.contains("latency in ms"),
            "{text}"
        );
        let slow = with(false, false);
        let failure = ["p95 turn latency in ms", "at most 3000", "3412"].map(ToOwned::to_owned);
        let failure: (String, String, String) = failure.into();
        assert_eq!(slow.failed, [failure]);
    }
}
