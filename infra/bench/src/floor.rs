//! The floor: the same model calls by the same client, and nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringback_shared::{
    llm::{ChatRequest, Endpoint, Json, ModelClient},
    net::Outbound,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    BoxError,
    measure::cpu_time,
    workload::{EXCHANGES, SMALL_TALK, TARGET_MODEL, TARGET_PROMPT, TESTER_MODEL, TESTER_PROMPT, WORKERS},
};

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct FloorArgs {
    /// How many conversations' calls.
    #[arg(short = 'n')]
    pub(crate) conversations: u32,
    /// The model server.
    #[arg(long)]
    pub(crate) model_server: String,
}

/// What it took.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FloorOutcome {
    /// CPU time.
    pub(crate) cpu_seconds: f64,
    /// Time.
    pub(crate) wall_seconds: f64,
}

/// Makes the calls and prints what they took.
pub(crate) async fn run(args: FloorArgs) -> Result<bool, BoxError> {
    let models = ModelClient::new(Outbound::new(true));
    let endpoint = Arc::new(Endpoint {
        base_url: args.model_server,
        api_key: None,
        headers: std::collections::BTreeMap::new(),
        timeout: Duration::from_secs(60),
        trusted: true,
    });
    let slots = Arc::new(Semaphore::new(WORKERS));
    let (cpu, start) = (cpu_time(), Instant::now());
    let mut conversations = JoinSet::new();
    for _ in 0..args.conversations {
        let (models, endpoint, slots) = (models.clone(), Arc::clone(&endpoint), Arc::clone(&slots));
        conversations.spawn(async move {
            let _slot = slots.acquire().await?;
            converse(&models, &endpoint).await
        });
    }
    while let Some(done) = conversations.join_next().await {
        done??;
    }
    let outcome = FloorOutcome {
        cpu_seconds: (cpu_time() - cpu).as_secs_f64(),
        wall_seconds: start.elapsed().as_secs_f64(),
    };
    crate::print(&outcome, false)?;
    Ok(true)
}

/// The nine calls of a conversation, with what was said so far in each.
async fn converse(models: &ModelClient, endpoint: &Endpoint) -> Result<(), BoxError> {
    let message = |role: &str, text: &str| Json::new(&json!({"role": role, "content": text}));
    let mut tester = vec![
        message("system", TESTER_PROMPT),
        message("user", "(The call is connected.)"),
    ];
    let mut target = vec![message("system", TARGET_PROMPT)];
    let ask = async |model: &str, messages: &[Json]| {
        let request = ChatRequest {
            model: model.to_owned(),
            messages: messages.to_vec(),
            ..ChatRequest::default()
        };
        models.chat(endpoint, &request).await
    };
    for _ in 0..EXCHANGES {
        ask(TESTER_MODEL, &tester).await?;
        target.push(message("user", SMALL_TALK));
        ask(TARGET_MODEL, &target).await?;
        target.push(message("assistant", SMALL_TALK));
        tester.push(message("assistant", SMALL_TALK));
        tester.push(message("user", SMALL_TALK));
    }
    // The judge reads the whole conversation.
    ask(TESTER_MODEL, &tester).await?;
    Ok(())
}
