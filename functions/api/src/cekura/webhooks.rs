//! Webhooks in Cekura's words: `result.pre_trigger` before a run begins, and `result.completed` when it is over.

use futures_util::future::try_join_all;
use ringback_shared::{
    context::Context,
    lifecycle::{Hook, HookEvent, Item, Subject},
    listeners::{Listener, Shape, Wanted},
    models::{Object, schedule::NotifyOn},
    provider::is_url,
    secrets::OrgHooks,
    store::{Kind, NewRun, RunKey},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Fields, Refusal},
    conversations::{self, Part},
    objects::{Asked, Numbers, own},
    projects,
    whole::{Label, READS, Whole, all_metrics, run_number},
};
use crate::{
    hook_secrets,
    http::{ApiError, Request},
    listening::Letter,
    signing::Change,
};

/// The header that shows the project's secret as it is.
const SECRET_HEADER: &str = "x-cekura-secret";
/// The header that names what is told before a run, the same at each attempt.
const KEY_HEADER: &str = "x-cekura-idempotency-key";
/// The longest URL and the longest secret, in characters.
const URL: usize = 2000;
const SECRET: usize = 255;
/// The most that the transcripts of one webhook weigh together, in bytes of JSON. Receivers refuse bodies that are too large, and then
/// they are told nothing.
const TRANSCRIPTS: usize = 4_000_000;

/// What is told unless somebody says otherwise: who gives a URL wants to be told how it came out, and holds no run up.
const SWITCHES: [(&str, bool); 7] = [
    ("notify_pre_run_webhook", false),
    ("notify_result_webhook_success", true),
    ("notify_result_webhook_failed", true),
    ("notify_result_webhook_error", true),
    ("notify_cronjob_webhook_success", true),
    ("notify_cronjob_webhook_failed", true),
    ("notify_cronjob_webhook_error", true),
];
/// What there is nothing of in Ringback that could be told.
const UNTOLD: [&str; 4] = [
    "notify_call_log_webhook_success",
    "notify_call_log_webhook_failed",
    "forward_vapi_webhook",
    "forward_retell_webhook",
];

/// Checks what a project or an agent says of webhooks.
pub(super) fn check(fields: &mut Fields) {
    let url = fields.text("webhook_url", 0..=URL).filter(|url| !url.is_empty());
    if url.is_some_and(|url| !is_url(&url)) {
        fields.wrong(
            "webhook_url",
            "Enter a valid URL, which begins with http:// or https://.",
        );
    }
    for (name, _) in SWITCHES {
        // Kept as what it is, however it was written.
        if let Some(flag) = fields.flag(name) {
            fields.put(name, json!(flag));
        }
    }
    for name in UNTOLD {
        if fields.flag(name) == Some(true) {
            fields.wrong(
                name,
                "Ringback tells of results only, and not of calls that it did not make; leave this out.",
            );
        }
    }
}

/// The secret that a request sets for the project: a text, or nothing to take it away.
pub(super) fn secret(fields: &mut Fields) -> Option<Option<String>> {
    let secret = fields.text("webhook_secret", 0..=SECRET)?;
    if !secret.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        fields.wrong(
            "webhook_secret",
            "It is sent as a header: use ASCII characters only.",
        );
    }
    Some(Some(secret).filter(|secret| !secret.is_empty()))
}

/// Keeps the secret.
pub(super) async fn keep_secret(asked: Asked<'_>, secret: Option<String>) -> Result<(), Refusal> {
    let (ctx, org) = (asked.ctx, asked.org);
    hook_secrets::first(ctx, org).await?;
    let change = Change::<OrgHooks>::begin(ctx, org).await?;
    let mut change =
        change.ok_or_else(|| ApiError::new(503, "the secrets' store is not available; try again"))?;
    if change.secrets.shown != secret {
        change.secrets.shown = secret;
        change.finish(ctx).await?;
    }
    Ok(())
}

/// What a project shows of its webhooks.
pub(super) fn shown(project: &Object) -> Object {
    let switch = |(name, default): (&str, bool)| {
        let value = project.get(name).cloned().unwrap_or_else(|| json!(default));
        (name.to_owned(), value)
    };
    let mut shown: Object = SWITCHES.into_iter().map(switch).collect();
    let url = project.get("webhook_url").cloned().unwrap_or_else(|| json!(""));
    shown.insert("webhook_url".to_owned(), url);
    shown
}

/// Who starts a run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Starter {
    Request,
    /// A cron job, which says of which outcomes it is told.
    Cron(NotifyOn),
}

impl Starter {
    /// What a cron job says.
    pub(super) fn cron(told: Option<&str>) -> Self {
        Self::Cron(match told {
            Some("never") => NotifyOn::Never,
            Some("success") => NotifyOn::Success,
            Some("failure") => NotifyOn::Failure,
            _ => NotifyOn::Both,
        })
    }
}

/// Lets the project's webhook listen to a new run, or that of the agent, where either wants to.
pub(super) async fn listen(asked: Asked<'_>, new: &mut NewRun, starter: Starter) -> Result<(), Refusal> {
    let agent = new.manifest.label.get("agentId").and_then(Value::as_str);
    let agent = agent.and_then(|id| Uuid::try_parse(id).ok()).or(new.target_id);
    let agent = match agent {
        Some(agent) => {
            asked
                .ctx
                .store
                .definition(asked.org, Kind::Assistant, agent)
                .await?
        }
        None => None,
    };
    let project = own(&projects::stored(asked).await?.body);
    let agent = agent.map(|agent| own(&agent.body)).unwrap_or_default();
    // What the agent says counts before what the project says.
    let said = |name: &str| agent.get(name).or_else(|| project.get(name));
    let url = |of: &Object| {
        let url = of.get("webhook_url").and_then(Value::as_str);
        url.filter(|url| !url.is_empty()).map(str::to_owned)
    };
    let Some(url) = url(&agent).or_else(|| url(&project)) else {
        return Ok(());
    };
    let is_on = |name: &str| {
        let default = SWITCHES.iter().any(|(known, on)| *known == name && *on);
        said(name).and_then(Value::as_bool).unwrap_or(default)
    };
    let (which, told) = match starter {
        Starter::Request => ("result", NotifyOn::Both),
        Starter::Cron(told) => ("cronjob", told),
    };
    let mut wants = Vec::new();
    if is_on("notify_pre_run_webhook") {
        wants.push(Wanted::Before);
    }
    for (outcome, wanted) in [
        ("success", Wanted::Success),
        ("failed", Wanted::Failed),
        ("error", Wanted::Error),
    ] {
        if told.wants(wanted == Wanted::Success) && is_on(&format!("notify_{which}_webhook_{outcome}")) {
            wants.push(wanted);
        }
    }
    if !wants.is_empty() {
        new.manifest.notify.listeners.push(Listener {
            shape: Shape::Cekura,
            id: None,
            url,
            wants,
        });
    }
    Ok(())
}

/// What is sent for a hook.
pub(super) async fn letter(ctx: &Context, hook: &Hook, secrets: &OrgHooks) -> Result<Letter, Refusal> {
    let asked = Asked {
        ctx,
        org: hook.org,
        request: &Request::default(),
        version: 2,
    };
    let Subject::Run { run, kind } = hook.subject else {
        return Err(Refusal::not_found());
    };
    let key = RunKey {
        org: hook.org,
        kind,
        run,
    };
    let head = ctx.store.run(key).await?.ok_or_else(Refusal::not_found)?;
    let mut headers: Vec<(&'static str, String)> = Vec::new();
    headers.extend(secrets.shown.clone().map(|secret| (SECRET_HEADER, secret)));
    let mut numbers = Numbers::default();
    let (event, data) = match hook.event {
        HookEvent::RunHeld => {
            let whole = Whole::new(asked, head).await?;
            whole.number(asked, &mut numbers).await?;
            let result = whole.result_number(&numbers);
            headers.push((KEY_HEADER, format!("result_pre_trigger:{result}")));
            ("result.pre_trigger", before(asked, &whole, &numbers))
        }
        _ => {
            let whole = Whole::read(asked, head, Some(&[])).await?;
            whole.number(asked, &mut numbers).await?;
            ("result.completed", completed(asked, &whole, &numbers).await?)
        }
    };
    Ok(Letter {
        body: json!({ "event_type": event, "data": data }),
        headers,
        signed_as: None,
    })
}

/// What is told before a run begins.
fn before(asked: Asked<'_>, whole: &Whole, numbers: &Numbers) -> Value {
    let common = whole.common(asked, numbers);
    let get = |name: &str| common.get(name).cloned().unwrap_or_default();
    let result = whole.result_number(numbers);
    let label = Label::of(&whole.manifest);
    let profiles = label.get("profiles").and_then(Value::as_array);
    let run = |item: &Item| {
        let place = item.simulation as usize;
        let reference = whole.manifest.refs.get(place);
        let scenario = reference.and_then(|one| numbers.of(Kind::Scenario, one.scenario_id?));
        let personality = reference.and_then(|one| numbers.of(Kind::Personality, one.personality_id?));
        let id = run_number(result, item.index);
        let entry = json!({
            "id": id,
            "scenario": { "id": scenario, "name": whole.scenario_name(item) },
            "test_profile": profiles.and_then(|profiles| profiles.get(place)),
            "personality": { "id": personality, "name": whole.personality_name(item) },
            "phone_number": label.text("agentNumber").filter(|number| !number.is_empty()),
        });
        (id.to_string(), entry)
    };
    let mut data = json!({
        "result_id": result, "label": get("name"), "agent_id": get("agent"), "timestamp": get("created_at"),
        "runs": whole.items.iter().map(run).collect::<Object>(),
    });
    if let Some(left) = whole.left_out() {
        data["runs_left_out"] = json!(left);
    }
    data
}

/// What is told of a run that is over.
async fn completed(asked: Asked<'_>, whole: &Whole, numbers: &Numbers) -> Result<Value, Refusal> {
    let mut data = whole.common(asked, numbers);
    let mut runs = Object::new();
    let (mut weight, mut without) = (0, 0_u32);
    for some in whole.items.chunks(READS) {
        let read = some
            .iter()
            .map(|item| conversations::shown(asked, whole, numbers, item, Part::Whole));
        for (item, run) in some.iter().zip(try_join_all(read).await?) {
            let get = |name: &str| run.get(name).cloned().unwrap_or_default();
            let mut transcript = get("transcript_object");
            weight += transcript.to_string().len();
            if weight > TRANSCRIPTS {
                transcript = json!([]);
                without += 1;
            }
            let id = get("id");
            let key = id.to_string();
            let entry = json!({
                "id": id,
                "scenario": {
                    "id": get("scenario"), "name": get("scenario_name"), "personality_name": get("personality_name"),
                    "expected_outcome_prompt": get("expected_outcome_prompt"),
                },
                "expected_outcome": get("expected_outcome"), "success": get("success"), "status": get("status"),
                "evaluation": { "metrics": metrics(whole, numbers, item) },
                "transcript_object": transcript, "voice_recording": get("voice_recording"),
                "timestamp": get("timestamp"), "executed_at": get("executed_at"), "duration": get("duration"),
                "error_message": get("error_message"), "metadata": get("metadata"),
            });
            runs.insert(key, entry);
        }
    }
    data.insert("runs".to_owned(), Value::Object(runs));
    if let Some(left) = whole.left_out() {
        data.insert("runs_left_out".to_owned(), json!(left));
    }
    if without > 0 {
        data.insert("transcripts_left_out".to_owned(), json!(without));
    }
    Ok(Value::Object(data))
}

/// A run's metrics under both names of their types: the older one, which the first version has, and the one that the second has.
fn metrics(whole: &Whole, numbers: &Numbers, item: &Item) -> Vec<Value> {
    let (verdict, scores) = (whole.verdict(item), whole.scores(item));
    let older = all_metrics(1, numbers, verdict, &scores);
    let mut all = all_metrics(2, numbers, verdict, &scores);
    for (metric, older) in all.iter_mut().zip(older) {
        metric["type"] = older.get("type").cloned().unwrap_or_default();
    }
    all
}
