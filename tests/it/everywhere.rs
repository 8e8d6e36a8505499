//! What must hold wherever Ringback runs. `RINGBACK_TARGET` says where:
//!
//! - nothing, or `serve`: the program on this machine, started here;
//! - `deployed`: a stack that is up already, on an emulator of AWS or in an account:
//!
//! | variable | |
//! | --- | --- |
//! | `RINGBACK_TARGET_URL` | the API's address |
//! | `RINGBACK_API_KEY` | a key of an organization that has nothing else to do |
//! | `RINGBACK_TARGET_QUEUE`, `RINGBACK_TARGET_DEAD_LETTERS` | the stack's outputs `RunItemsQueueUrl` and `RunItemsDeadLettersUrl` |
//! | `RINGBACK_TARGET_HOOKS` | where webhooks are sent, if not where the stack says: an emulator answers at no name of AWS's |
//! | `RINGBACK_TARGET_REPLACE` | a command that replaces all functions, one after the other, while a batch goes on |
//! | `RINGBACK_MODELS_LISTEN`, `RINGBACK_MODELS_URL` | where the stand-in for all models listens, and the base of its URL as the functions reach it (a tunnel); the stack's `ModelBaseUrl` is that and `/v1` |
//! | `RINGBACK_PROVIDER_LISTEN`, `RINGBACK_PROVIDER_URL` | the same for the stand-in of a voice provider |
//! | `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, … | to reach the queues with |
//!
//! The stack has to allow private targets where the stand-ins are on private addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, environment::EnvironmentVariableCredentialsProvider};
use aws_sdk_sqs::config::Credentials;
use reqwest::Method;
use ringback_shared::aws::http_client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    cekura,
    crash::by_caller,
    fixtures::{
        RUNS, assert_counted, assert_items_valid, assert_valid, batch, by_voice, counts, ended, endpoint,
        items, list, simple_run, text,
    },
    provider::{Auto, ProviderStandIn, Tamper},
    schedules::{SCHEDULE, of_run},
    server::{Api, Server, until},
    sigmamind,
    stand_in::StandIn,
    voice::{batch_by_voice, check_verdict},
    writers::{GENERATE, three_scenarios, wish},
};

/// The longest that one of the steps may take: a scheduler ticks once a minute, and who is replaced in the middle of a turn is
/// waited for until its claim has run out.
const STEP: Duration = Duration::from_secs(600);

/// How many conversations go on while everything is replaced.
const BATCH: u32 = 200;

fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().unwrap();
    Some(value).filter(|value| !value.is_empty())
}

fn required(name: &str) -> String {
    variable(name).unwrap_or_else(|| panic!("RINGBACK_TARGET=deployed needs {name}"))
}

/// Where it runs.
enum Target {
    Serve(Box<Server>),
    Deployed { replacing: Option<Child> },
}

struct Place {
    target: Target,
    api: Api,
    models: StandIn,
    provider: ProviderStandIn,
    sqs: aws_sdk_sqs::Client,
    queue: String,
    dead_letters: String,
}

impl Place {
    async fn find() -> Self {
        match variable("RINGBACK_TARGET").as_deref() {
            None | Some("serve") => Self::serve().await,
            Some("deployed") => Self::deployed().await,
            Some(other) => panic!("RINGBACK_TARGET is {other}: serve and deployed are known"),
        }
    }

    async fn serve() -> Self {
        let models = StandIn::start().await;
        let server = Server::start(&models, &[]).await;
        let (sqs, parts) = local_queues(server.folder.path());
        Self {
            api: server.api.clone(),
            target: Target::Serve(Box::new(server)),
            models,
            provider: ProviderStandIn::start().await,
            sqs,
            queue: text(&parts["RunItemsQueueUrl"]).to_owned(),
            dead_letters: text(&parts["RunItemsDeadLettersUrl"]).to_owned(),
        }
    }

    async fn deployed() -> Self {
        let listen = required("RINGBACK_MODELS_LISTEN");
        let models = StandIn::start_at(&listen, variable("RINGBACK_MODELS_URL")).await;
        let listen = variable("RINGBACK_PROVIDER_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let provider = ProviderStandIn::start_at(&listen, variable("RINGBACK_PROVIDER_URL")).await;
        if let Some(base) = variable("RINGBACK_TARGET_HOOKS") {
            provider.moved_to(&base);
        }
        let sqs = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(required("AWS_REGION")))
            .credentials_provider(EnvironmentVariableCredentialsProvider::new())
            .http_client(http_client().unwrap());
        let sqs = match variable("AWS_ENDPOINT_URL") {
            Some(endpoint) => sqs.endpoint_url(endpoint),
            None => sqs,
        };
        Self {
            target: Target::Deployed { replacing: None },
            api: Api::new(
                required("RINGBACK_TARGET_URL").trim_end_matches('/'),
                &required("RINGBACK_API_KEY"),
            ),
            models,
            provider,
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
            queue: required("RINGBACK_TARGET_QUEUE"),
            dead_letters: required("RINGBACK_TARGET_DEAD_LETTERS"),
        }
    }

    /// Replaces everything that runs. Of a stack all functions, one after the other, which goes on when this returns; the program is
    /// killed and started again.
    async fn replace(&mut self) {
        match &mut self.target {
            Target::Serve(server) => {
                server.kill_9();
                server.restart().await;
                self.api = server.api.clone();
            }
            Target::Deployed { replacing } => {
                replaced_by(replacing.take());
                let Some(command) = variable("RINGBACK_TARGET_REPLACE") else {
                    return;
                };
                let child = Command::new("sh")
                    .args(["-c", &command])
                    .stdin(Stdio::null())
                    .spawn()
                    .unwrap();
                self.target = Target::Deployed {
                    replacing: Some(child),
                };
            }
        }
    }

    /// What is at `path` now, if there is an answer: while everything is replaced, the function that answers is as well.
    async fn now(&self, path: &str) -> Option<Value> {
        let answer = self.api.request(Method::GET, path).send().await.ok()?;
        let answer = answer.error_for_status().ok()?;
        answer.json().await.ok()
    }

    /// The bodies of the messages in the dead-letter queue that nobody looks at now, with their reasons.
    async fn dead_letters(&self) -> Vec<(String, String)> {
        let received = self
            .sqs
            .receive_message()
            .queue_url(&self.dead_letters)
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .wait_time_seconds(1)
            .send()
            .await
            .unwrap();
        let read = received.messages().iter().map(|message| {
            let attributes = message.message_attributes();
            let reason = attributes.and_then(|all| all.get("reason")?.string_value());
            let body = message.body().unwrap_or_default();
            (body.to_owned(), reason.unwrap_or_default().to_owned())
        });
        read.collect()
    }
}

/// Waits until a replacement is done.
fn replaced_by(replacing: Option<Child>) {
    if let Some(mut child) = replacing {
        assert!(child.wait().unwrap().success(), "RINGBACK_TARGET_REPLACE failed");
    }
}

/// The queues of a program that serves on this machine, and where it says that its parts are.
fn local_queues(folder: &Path) -> (aws_sdk_sqs::Client, Value) {
    let parts = std::fs::read_to_string(folder.join("data/stack.json")).unwrap();
    let parts: Value = serde_json::from_str(&parts).unwrap();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("any", "any", None, None, "test"))
        .endpoint_url(text(&parts["QueueEndpoint"]))
        .http_client(http_client().unwrap())
        .build();
    (aws_sdk_sqs::Client::from_conf(config), parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_where_it_runs() {
    let mut place = Place::find().await;
    eprintln!("at {}", place.api.base);
    // Begun first, because the clock takes the longest.
    let schedule = a_schedule(&place).await;
    chats(&place).await;
    what_needs_secrets(&place).await;
    cekura::a_result_and_what_it_is_made_of(&place.models, &place.api).await;
    sigmamind::a_batch_run_and_what_it_is_made_of(&place.models, &place.api).await;
    calls(&place).await;
    poison(&place).await;
    a_firing(&place, &schedule).await;
    a_replacement(&mut place).await;
}

async fn chats(place: &Place) {
    eprintln!("a batch by chat");
    let body = batch(&place.api, &place.models, 4).await;
    let created = place.api.post(RUNS, &body).await;
    assert_valid("CreateSimulationRunResponse", &created);
    let done = ended(&place.api, text(&created["id"])).await;
    assert_valid("SimulationRun", &done);
    assert_eq!(counts(&done), [12, 8, 4, 0, 0, 0]);
    let all = items(&place.api, text(&created["id"]), 5).await;
    assert_items_valid(&all);
    assert_eq!(all.len(), 12);
    for item in &all {
        assert!(
            !list(&item["metadata"]["call"]["messages"]).is_empty(),
            "{item:#}"
        );
    }
}

/// What has a function of its own on AWS.
async fn what_needs_secrets(place: &Place) {
    eprintln!("what asks models or changes secrets");
    let api = &place.api;
    let described = api.get("/openapi.json").await;
    assert!(described["paths"]["/endpoint/{id}"].is_object());
    place.models.judge("scenarios", three_scenarios());
    let wish = wish(api, &place.models).await;
    let written = api.post(GENERATE, &wish).await;
    assert_valid("GenerateScenariosResponse", &written);
    let secrets = api.get("/hook/secret").await;
    assert!(!list(&secrets["secrets"]).is_empty(), "{secrets:#}");
    // Each function says what there is at its paths, and neither answers what is the other's.
    for (path, status) in [
        ("/endpoint", 405),
        ("/eval/simulation/run", 405),
        ("/endpoints", 404),
    ] {
        let (answered, error) = api.call(Method::PUT, path, None).await;
        assert_eq!(answered, status, "{path}: {error:#}");
    }
}

async fn calls(place: &Place) {
    eprintln!("a batch by voice");
    let (api, provider) = (&place.api, &place.provider);
    provider.auto(Auto::Both { talk_ms: 100 });
    let endpoint = endpoint(api, provider).await;
    let body = by_voice(batch_by_voice(&place.models, provider, 2), &endpoint);
    let created = api.post(RUNS, &body).await;
    let done = ended(api, text(&created["id"])).await;
    assert_eq!(counts(&done), [6, 2, 4, 0, 0, 0]);
    let all = items(api, text(&created["id"]), 100).await;
    assert_items_valid(&all);
    all.iter().for_each(check_verdict);
    let calls = provider.calls();
    assert_eq!(calls.len(), 6, "each placed once: {calls:#?}");
    assert!(
        calls.iter().all(|call| call.answers == [200, 200]),
        "webhooks: {calls:#?}"
    );
    // Not believed without the right signature.
    let hooks = variable("RINGBACK_TARGET_HOOKS").unwrap_or_else(|| api.base.clone());
    let url = format!("{hooks}/hooks/{}/call-ended", text(&endpoint["id"]));
    for tamper in [
        Tamper::WrongSecret,
        Tamper::ChangedByte,
        Tamper::NoSignature,
        Tamper::OldTimestamp,
    ] {
        let event = json!({"type": "call.ended", "callId": Uuid::now_v7()}).to_string();
        assert_eq!(
            provider.deliver(&url, event.into_bytes(), tamper).await,
            401,
            "{tamper:?}"
        );
    }
}

async fn poison(place: &Place) {
    eprintln!("poison");
    let sent = format!("no message of this queue {}", Uuid::now_v7());
    place
        .sqs
        .send_message()
        .queue_url(&place.queue)
        .message_body(&sent)
        .send()
        .await
        .unwrap();
    let reason = until("the poison among the dead letters", STEP, async || {
        let letters = place.dead_letters().await;
        letters
            .into_iter()
            .find_map(|(body, reason)| (body == sent).then_some(reason))
    })
    .await;
    assert!(reason.contains("not a message of this queue"), "{reason}");
    // Nobody is held up by it.
    let run = place
        .api
        .post(RUNS, &simple_run(&place.models, "after", 1, 2))
        .await;
    assert_eq!(
        counts(&ended(&place.api, text(&run["id"])).await),
        [2, 2, 0, 0, 0, 0]
    );
}

/// A schedule that fires every minute.
async fn a_schedule(place: &Place) -> Value {
    let body = of_run(&simple_run(&place.models, "clock", 1, 2), "Every minute");
    place.api.post(SCHEDULE, &body).await
}

async fn a_firing(place: &Place, schedule: &Value) {
    eprintln!("a schedule");
    let path = format!("{SCHEDULE}/{}", text(&schedule["id"]));
    let first = until("the clock to strike", STEP, async || {
        let history = place.api.get(&format!("{path}/firing?sortOrder=ASC")).await;
        list(&history["results"]).first().cloned()
    })
    .await;
    assert_eq!(
        (&first["trigger"], &first["scheduledFor"]),
        (&json!("cron"), &schedule["nextFirings"][0])
    );
    let run = ended(&place.api, text(&first["runId"])).await;
    assert_eq!(counts(&run), [2, 2, 0, 0, 0, 0]);
    assert_eq!(run["schedule"]["scheduledFor"], first["scheduledFor"]);
    place.api.delete(&path).await;
}

/// Everything is replaced while a batch is under way. Nothing is lost, and nothing is done twice but the reply that was on its way.
async fn a_replacement(place: &mut Place) {
    eprintln!("a replacement of everything during a batch of {BATCH}");
    place.models.forget();
    place.models.latency(Duration::from_millis(20));
    let mut body = simple_run(&place.models, "replaced", 3, 10);
    let entry = body["simulations"][0].clone();
    body["simulations"] = vec![entry; BATCH as usize / 10].into();
    let created = place.api.post(RUNS, &body).await;
    let run = text(&created["id"]);
    let path = format!("{RUNS}/{run}");
    let mut replaced = 0_u32;
    for quarter in 1..=3 {
        let far = until("a part of the batch", STEP, async || {
            let [total, passed, ..] = counts(&place.now(&path).await?);
            (passed * 4 >= total * quarter).then_some((passed, total))
        })
        .await;
        if far.0 == far.1 {
            break;
        }
        place.replace().await;
        replaced += 1;
    }
    assert!(
        replaced > 0,
        "the batch was over before anything could be replaced"
    );
    let done = until("the run to end", STEP, async || {
        let run = place.now(&path).await?;
        (run["status"] == "ended").then_some(run)
    })
    .await;
    if let Target::Deployed { replacing } = &mut place.target {
        replaced_by(replacing.take());
    }
    assert_counted(&done, u64::from(BATCH));
    assert_eq!(counts(&done)[..2], [u64::from(BATCH); 2], "{done:#}");
    let all = items(&place.api, run, 100).await;
    assert_items_valid(&all);
    let ids: BTreeSet<&str> = all.iter().map(|item| text(&item["id"])).collect();
    assert_eq!(ids.len(), BATCH as usize);
    for item in &all {
        assert_eq!(item["status"], "passed", "{item:#}");
    }
    // At most the reply that was on its way is asked for again, at each replacement.
    let callers = by_caller(&place.models.calls());
    let (held, begun): (BTreeMap<_, _>, BTreeMap<_, _>) =
        callers.iter().partition(|(_, calls)| calls.len() > 1);
    assert_eq!(held.len(), BATCH as usize);
    assert!(
        begun.is_empty(),
        "conversations that nobody went on with: {begun:?}"
    );
    for calls in held.values() {
        let again: usize = calls.values().map(|times| times - 1).sum();
        assert!(again <= replaced as usize, "{calls:#?}");
    }
    eprintln!("replaced {replaced} times");
}
