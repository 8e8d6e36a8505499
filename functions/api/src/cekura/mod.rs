//! The API in the shape of Cekura: the same agents, scenarios, runs and schedules under integer ids, and metrics, test profiles and the
//! project, which only it writes.
//!
//! An agent is an assistant, a result is a run and a run is an item of one; what was made in another shape is seen here, too. What only
//! clients of Cekura know of a thing is kept with it under `cekura`.

mod agents;
mod answer;
mod conversations;
mod cron;
mod launch;
mod metrics;
mod objects;
mod personalities;
mod profiles;
mod projects;
mod results;
mod scenarios;
mod transcripts;
mod webhooks;
mod whole;

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use ringback_shared::{context::Context, lifecycle::Hook, secrets::OrgHooks};
use tracing::{
    Instrument, Span,
    field::{Empty, display},
};

use self::{
    agents::Agents,
    answer::{Answer, Refusal},
    metrics::Metrics,
    objects::Asked,
    personalities::Personalities,
    profiles::TestProfiles,
    scenarios::Scenarios,
};
use crate::{
    bounded,
    http::{ApiError, Request},
    listening::Letter,
};

pub(crate) use self::{
    agents::{chat_target, name as agent_name},
    cron::{as_of_now, listen},
    personalities::{system_prompt, with_system_prompt},
};

/// What the webhook of a project or an agent is sent for a hook.
pub(crate) async fn letter(ctx: &Context, hook: &Hook, secrets: &OrgHooks) -> Result<Letter, ApiError> {
    let letter = webhooks::letter(ctx, hook, secrets).await;
    letter.map_err(Refusal::into_error)
}

/// The beginnings of the paths that are of this shape.
const ROOTS: [&str; 3] = ["test_framework", "schedules", "user"];

/// The header in which clients of Cekura send the key; as a bearer's it is the same.
const KEY: &str = "x-cekura-api-key";

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    List(Of),
    Create(Of),
    Read(Of),
    Replace(Of),
    Update(Of),
    Delete(Of),
    Launch,
    ShortList,
    AgentPersonalities,
    Fork,
    DeleteScenarios,
    Tags,
    BulkMetrics,
    Predefined,
    CopyPredefined,
    Rerun,
    Evaluate,
    BulkEvaluate,
    EndCalls,
    BulkDelete,
    Bulk,
    EndCall,
    ListenUrl,
}

/// What is read and written in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Agent,
    Personality,
    Scenario,
    Metric,
    TestProfile,
    Result,
    Run,
    CronJob,
    Project,
}

/// The operations: method, path and what is done. A path's `{version}` is `v1` or `v2`, `{…}` is any one step, and `{channel}` what
/// follows `run_scenarios`. Paths may end with a slash or not, and a step may end with `-external`.
const OPERATIONS: &[(&str, &str, Action)] = &[
    (
        "GET",
        "/test_framework/{version}/aiagents/",
        Action::List(Of::Agent),
    ),
    (
        "POST",
        "/test_framework/{version}/aiagents/",
        Action::Create(Of::Agent),
    ),
    (
        "GET",
        "/test_framework/{version}/aiagents/short_list/",
        Action::ShortList,
    ),
    (
        "GET",
        "/test_framework/{version}/aiagents/{id}/",
        Action::Read(Of::Agent),
    ),
    (
        "PUT",
        "/test_framework/{version}/aiagents/{id}/",
        Action::Replace(Of::Agent),
    ),
    (
        "PATCH",
        "/test_framework/{version}/aiagents/{id}/",
        Action::Update(Of::Agent),
    ),
    (
        "DELETE",
        "/test_framework/{version}/aiagents/{id}/",
        Action::Delete(Of::Agent),
    ),
    (
        "GET",
        "/test_framework/{version}/aiagents/{id}/personalities/",
        Action::AgentPersonalities,
    ),
    (
        "GET",
        "/test_framework/{version}/personalities/",
        Action::List(Of::Personality),
    ),
    (
        "POST",
        "/test_framework/{version}/personalities/",
        Action::Create(Of::Personality),
    ),
    (
        "GET",
        "/test_framework/{version}/personalities/{id}/",
        Action::Read(Of::Personality),
    ),
    (
        "PUT",
        "/test_framework/{version}/personalities/{id}/",
        Action::Replace(Of::Personality),
    ),
    (
        "PATCH",
        "/test_framework/{version}/personalities/{id}/",
        Action::Update(Of::Personality),
    ),
    (
        "DELETE",
        "/test_framework/{version}/personalities/{id}/",
        Action::Delete(Of::Personality),
    ),
    (
        "POST",
        "/test_framework/{version}/personalities/{id}/fork/",
        Action::Fork,
    ),
    (
        "GET",
        "/test_framework/{version}/scenarios/",
        Action::List(Of::Scenario),
    ),
    (
        "POST",
        "/test_framework/{version}/scenarios/",
        Action::Create(Of::Scenario),
    ),
    ("GET", "/test_framework/{version}/scenarios/tags/", Action::Tags),
    (
        "POST",
        "/test_framework/{version}/scenarios/delete_scenarios/",
        Action::DeleteScenarios,
    ),
    (
        "POST",
        "/test_framework/{version}/scenarios/{channel}/",
        Action::Launch,
    ),
    (
        "GET",
        "/test_framework/{version}/scenarios/{id}/",
        Action::Read(Of::Scenario),
    ),
    (
        "PUT",
        "/test_framework/{version}/scenarios/{id}/",
        Action::Replace(Of::Scenario),
    ),
    (
        "PATCH",
        "/test_framework/{version}/scenarios/{id}/",
        Action::Update(Of::Scenario),
    ),
    (
        "DELETE",
        "/test_framework/{version}/scenarios/{id}/",
        Action::Delete(Of::Scenario),
    ),
    (
        "GET",
        "/test_framework/{version}/metrics/",
        Action::List(Of::Metric),
    ),
    (
        "POST",
        "/test_framework/{version}/metrics/",
        Action::Create(Of::Metric),
    ),
    (
        "POST",
        "/test_framework/{version}/metrics/bulk_create/",
        Action::BulkMetrics,
    ),
    (
        "GET",
        "/test_framework/{version}/metrics/{id}/",
        Action::Read(Of::Metric),
    ),
    (
        "PUT",
        "/test_framework/{version}/metrics/{id}/",
        Action::Replace(Of::Metric),
    ),
    (
        "PATCH",
        "/test_framework/{version}/metrics/{id}/",
        Action::Update(Of::Metric),
    ),
    (
        "DELETE",
        "/test_framework/{version}/metrics/{id}/",
        Action::Delete(Of::Metric),
    ),
    (
        "GET",
        "/test_framework/{version}/predefined-metrics/",
        Action::Predefined,
    ),
    (
        "POST",
        "/test_framework/{version}/predefined-metrics/copy/",
        Action::CopyPredefined,
    ),
    (
        "GET",
        "/test_framework/{version}/test-profiles/",
        Action::List(Of::TestProfile),
    ),
    (
        "POST",
        "/test_framework/{version}/test-profiles/",
        Action::Create(Of::TestProfile),
    ),
    (
        "GET",
        "/test_framework/{version}/test-profiles/{id}/",
        Action::Read(Of::TestProfile),
    ),
    (
        "PUT",
        "/test_framework/{version}/test-profiles/{id}/",
        Action::Replace(Of::TestProfile),
    ),
    (
        "PATCH",
        "/test_framework/{version}/test-profiles/{id}/",
        Action::Update(Of::TestProfile),
    ),
    (
        "DELETE",
        "/test_framework/{version}/test-profiles/{id}/",
        Action::Delete(Of::TestProfile),
    ),
    (
        "GET",
        "/test_framework/{version}/results/",
        Action::List(Of::Result),
    ),
    (
        "POST",
        "/test_framework/{version}/results/bulk_delete/",
        Action::BulkDelete,
    ),
    (
        "POST",
        "/test_framework/{version}/results/bulk_evaluate_metrics/",
        Action::BulkEvaluate,
    ),
    (
        "GET",
        "/test_framework/{version}/results/{id}/",
        Action::Read(Of::Result),
    ),
    (
        "DELETE",
        "/test_framework/{version}/results/{id}/",
        Action::Delete(Of::Result),
    ),
    (
        "POST",
        "/test_framework/{version}/results/{id}/rerun/",
        Action::Rerun,
    ),
    (
        "POST",
        "/test_framework/{version}/results/{id}/evaluate_metrics/",
        Action::Evaluate,
    ),
    (
        "POST",
        "/test_framework/{version}/results/{id}/end_calls/",
        Action::EndCalls,
    ),
    ("GET", "/test_framework/{version}/runs/", Action::List(Of::Run)),
    ("GET", "/test_framework/{version}/runs/bulk/", Action::Bulk),
    (
        "GET",
        "/test_framework/{version}/runs/{id}/",
        Action::Read(Of::Run),
    ),
    (
        "POST",
        "/test_framework/{version}/runs/{id}/end_call/",
        Action::EndCall,
    ),
    (
        "GET",
        "/test_framework/{version}/runs/{id}/get_listen_url/",
        Action::ListenUrl,
    ),
    (
        "GET",
        "/schedules/{version}/cron-jobs/",
        Action::List(Of::CronJob),
    ),
    (
        "POST",
        "/schedules/{version}/cron-jobs/",
        Action::Create(Of::CronJob),
    ),
    (
        "GET",
        "/schedules/{version}/cron-jobs/{id}/",
        Action::Read(Of::CronJob),
    ),
    (
        "PUT",
        "/schedules/{version}/cron-jobs/{id}/",
        Action::Replace(Of::CronJob),
    ),
    (
        "PATCH",
        "/schedules/{version}/cron-jobs/{id}/",
        Action::Update(Of::CronJob),
    ),
    (
        "DELETE",
        "/schedules/{version}/cron-jobs/{id}/",
        Action::Delete(Of::CronJob),
    ),
    ("GET", "/user/{version}/projects/", Action::List(Of::Project)),
    ("GET", "/user/{version}/projects/{id}/", Action::Read(Of::Project)),
    (
        "PUT",
        "/user/{version}/projects/{id}/",
        Action::Replace(Of::Project),
    ),
    (
        "PATCH",
        "/user/{version}/projects/{id}/",
        Action::Update(Of::Project),
    ),
];

/// The operations by method and path, for whoever describes them.
pub(crate) fn operations() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPERATIONS.iter().map(|(method, path, _)| (*method, *path))
}

/// A path that fits an operation's.
struct Fit<'a> {
    version: u8,
    /// What `{id}` stands for.
    id: &'a str,
    /// What `{channel}` stands for.
    channel: &'a str,
}

/// Whether a path is of this shape.
pub(crate) fn is_path(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    first.is_some_and(|first| ROOTS.contains(&first))
}

fn steps(path: &str) -> Vec<&str> {
    let steps = path.split('/').filter(|step| !step.is_empty());
    steps
        .map(|step| step.strip_suffix("-external").unwrap_or(step))
        .collect()
}

fn fits<'a>(template: &str, path: &[&'a str]) -> Option<Fit<'a>> {
    let wanted = steps(template);
    if wanted.len() != path.len() {
        return None;
    }
    let mut fit = Fit {
        version: 1,
        id: "",
        channel: "",
    };
    for (wanted, &step) in wanted.iter().zip(path) {
        match *wanted {
            "{version}" if step == "v1" => fit.version = 1,
            "{version}" if step == "v2" => fit.version = 2,
            "{version}" => return None,
            "{channel}" => fit.channel = step.strip_prefix("run_scenarios")?,
            // Words beside ids are operations of their own.
            "{id}" if !step.starts_with(|c: char| c.is_ascii_digit()) => return None,
            "{id}" => fit.id = step,
            wanted if wanted == step => {}
            _ => return None,
        }
    }
    Some(fit)
}

/// The template of a path, if it is one of this shape's.
fn template(path: &str) -> Option<&'static str> {
    let path = steps(path);
    let found = OPERATIONS
        .iter()
        .find(|(_, template, _)| fits(template, &path).is_some());
    found.map(|(_, template, _)| *template)
}

/// Handles one request. It always has an answer, in the shape that clients of Cekura parse.
pub(crate) async fn handle(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    let span = tracing::error_span!(
        "request",
        method = %event.request_context.http.method,
        path = event.raw_path.as_deref().and_then(template).unwrap_or("none"),
        apiRequestId = event.request_context.request_id,
        org = Empty
    );
    let key = event.headers.get(KEY).and_then(|key| key.to_str().ok());
    let key = key.map(|key| key.trim().to_owned());
    let answer = match Request::decode(event) {
        Ok(mut request) => {
            request.bearer = request.bearer.or(key);
            // On the heap, because it holds whatever any operation may need.
            Box::pin(route(ctx, &request)).instrument(span).await
        }
        Err(error) => Err(error.into()),
    };
    let answer = answer.and_then(|answer| match bounded::refused(answer.body()) {
        Some(error) => Err(error.into()),
        None => Ok(answer),
    });
    answer.unwrap_or_else(Refusal::response).encode()
}

async fn route(ctx: &Context, request: &Request) -> Answer {
    let org = crate::authenticate(ctx, request)
        .await
        .map_err(|error| match error.status() {
            401 => Refusal::unauthorized(),
            _ => error.into(),
        })?
        .org;
    Span::current().record("org", display(org));
    let path = steps(&request.path);
    let mut allowed = Vec::new();
    for (method, template, action) in OPERATIONS {
        let Some(fit) = fits(template, &path) else {
            continue;
        };
        if *method == request.method {
            let asked = Asked {
                ctx,
                org,
                request,
                version: fit.version,
            };
            return act(asked, *action, &fit).await;
        }
        allowed.push(*method);
    }
    match allowed.is_empty() {
        true => Err(Refusal::not_found()),
        false => Err(Refusal::method_not_allowed(request, &allowed)),
    }
}

async fn act(asked: Asked<'_>, action: Action, fit: &Fit<'_>) -> Answer {
    use objects as o;
    let id = fit.id;
    match action {
        Action::List(of) => match of {
            Of::Agent => o::list::<Agents>(asked).await,
            Of::Personality => o::list::<Personalities>(asked).await,
            Of::Scenario => o::list::<Scenarios>(asked).await,
            Of::Metric => o::list::<Metrics>(asked).await,
            Of::TestProfile => o::list::<TestProfiles>(asked).await,
            Of::Result => Box::pin(results::list(asked)).await,
            Of::Run => Box::pin(conversations::list(asked)).await,
            Of::CronJob => cron::list(asked).await,
            Of::Project => projects::list(asked).await,
        },
        Action::Create(of) => match of {
            Of::Agent => o::create::<Agents>(asked).await,
            Of::Personality => o::create::<Personalities>(asked).await,
            Of::Scenario => o::create::<Scenarios>(asked).await,
            Of::Metric => o::create::<Metrics>(asked).await,
            Of::TestProfile => o::create::<TestProfiles>(asked).await,
            Of::CronJob => Box::pin(cron::create(asked)).await,
            Of::Result | Of::Run | Of::Project => Err(Refusal::not_found()),
        },
        Action::Read(of) => match of {
            Of::Agent => o::read::<Agents>(asked, id).await,
            Of::Personality => o::read::<Personalities>(asked, id).await,
            Of::Scenario => o::read::<Scenarios>(asked, id).await,
            Of::Metric => o::read::<Metrics>(asked, id).await,
            Of::TestProfile => o::read::<TestProfiles>(asked, id).await,
            Of::Result => Box::pin(results::read(asked, id)).await,
            Of::Run => Box::pin(conversations::read(asked, id)).await,
            Of::CronJob => cron::read(asked, id).await,
            Of::Project => projects::read(asked, id).await,
        },
        Action::Replace(of) | Action::Update(of) => {
            let partly = matches!(action, Action::Update(_));
            match of {
                Of::Agent => o::update::<Agents>(asked, id, partly).await,
                Of::Personality => o::update::<Personalities>(asked, id, partly).await,
                Of::Scenario => o::update::<Scenarios>(asked, id, partly).await,
                Of::Metric => o::update::<Metrics>(asked, id, partly).await,
                Of::TestProfile => o::update::<TestProfiles>(asked, id, partly).await,
                Of::CronJob => Box::pin(cron::update(asked, id, partly)).await,
                Of::Project => projects::update(asked, id).await,
                Of::Result | Of::Run => Err(Refusal::not_found()),
            }
        }
        Action::Delete(of) => match of {
            Of::Agent => o::delete::<Agents>(asked, id).await,
            Of::Personality => o::delete::<Personalities>(asked, id).await,
            Of::Scenario => o::delete::<Scenarios>(asked, id).await,
            Of::Metric => o::delete::<Metrics>(asked, id).await,
            Of::TestProfile => o::delete::<TestProfiles>(asked, id).await,
            Of::Result => results::delete(asked, id).await,
            Of::CronJob => cron::delete(asked, id).await,
            Of::Run | Of::Project => Err(Refusal::not_found()),
        },
        Action::Launch => Box::pin(launch::launch(asked, fit.channel)).await,
        Action::ShortList => agents::short_list(asked).await,
        Action::AgentPersonalities => agents::personalities(asked, id).await,
        Action::Fork => personalities::fork(asked, id).await,
        Action::DeleteScenarios => scenarios::delete_many(asked).await,
        Action::Tags => scenarios::tags(asked).await,
        Action::BulkMetrics => metrics::bulk_create(asked).await,
        Action::Predefined => metrics::predefined(asked),
        Action::CopyPredefined => metrics::copy(asked).await,
        Action::Rerun => Box::pin(results::rerun(asked, id)).await,
        Action::Evaluate => Box::pin(results::evaluate(asked, id)).await,
        Action::BulkEvaluate => Box::pin(results::bulk_evaluate(asked)).await,
        Action::EndCalls => Box::pin(results::end_calls(asked, id)).await,
        Action::BulkDelete => Box::pin(results::bulk_delete(asked)).await,
        Action::Bulk => Box::pin(conversations::bulk(asked)).await,
        Action::EndCall => Box::pin(conversations::end_call(asked, id)).await,
        Action::ListenUrl => Box::pin(conversations::listen_url(asked, id)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_same_with_and_without_what_clients_add() {
        let found = |method: &str, path: &str| {
            let path = steps(path);
            OPERATIONS
                .iter()
                .find(|(known, template, _)| *known == method && fits(template, &path).is_some())
                .map(|(_, template, action)| {
                    let fit = fits(template, &path).unwrap();
                    (*action, fit.version, fit.id.to_owned(), fit.channel.to_owned())
                })
        };
        let is = |action, version, id: &str, channel: &str| {
            Some((action, version, id.to_owned(), channel.to_owned()))
        };
        for (method, path, expected) in [
            (
                "GET",
                "/test_framework/v1/results/7",
                is(Action::Read(Of::Result), 1, "7", ""),
            ),
            (
                "GET",
                "/test_framework/v2/results/7/",
                is(Action::Read(Of::Result), 2, "7", ""),
            ),
            (
                "GET",
                "/test_framework/v1/runs-external/bulk",
                is(Action::Bulk, 1, "", ""),
            ),
            (
                "GET",
                "/schedules/v1/cron-jobs-external",
                is(Action::List(Of::CronJob), 1, "", ""),
            ),
            (
                "POST",
                "/test_framework/v1/scenarios/run_scenarios_text/",
                is(Action::Launch, 1, "", "_text"),
            ),
            (
                "POST",
                "/test_framework/v1/scenarios-external/run_scenarios",
                is(Action::Launch, 1, "", ""),
            ),
            (
                "POST",
                "/test_framework/v1/scenarios/delete_scenarios",
                is(Action::DeleteScenarios, 1, "", ""),
            ),
            (
                "GET",
                "/test_framework/v1/scenarios/tags",
                is(Action::Tags, 1, "", ""),
            ),
            ("GET", "/test_framework/v3/results/7", None),
            ("GET", "/test_framework/v1/results/none/", None),
            ("POST", "/test_framework/v1/scenarios/generate-bg", None),
        ] {
            assert_eq!(found(method, path), expected, "{method} {path}");
        }
        assert!(
            is_path("/test_framework/v1/results") && is_path("/schedules/v1/x") && !is_path("/schedule/1")
        );
    }
}
