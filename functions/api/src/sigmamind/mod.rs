//! The API in the shape of SigmaMind: test cases, batch runs and test runs, under ids with prefixes, and webhooks, which only it writes.
//!
//! An agent is an assistant, a test case is a scenario, a batch run is a run and a test run is an item of one; what was made in another
//! shape is seen here, too. Agents, the cancellation of batch runs and test runs, and reruns are Ringback's own, in the same style.

mod agents;
mod answer;
mod batches;
mod cases;
mod jobs;
mod objects;
mod webhooks;

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use ringback_shared::context::Context;
use tracing::{
    Instrument, Span,
    field::{Empty, display},
};
use uuid::Uuid;

use self::answer::{Answer, fault};
pub(crate) use self::webhooks::letter;
use crate::{
    bounded,
    http::{ApiError, Request},
};

/// The beginning of the paths that are of this shape.
const ROOT: &str = "v1";
/// The header in which clients of SigmaMind send the key; as a bearer's it is the same.
const KEY: &str = "x-api-key";

/// Who asks, and for what.
#[derive(Clone, Copy)]
struct Asked<'a> {
    ctx: &'a Context,
    org: Uuid,
    request: &'a Request,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    List(Of),
    Create(Of),
    Read(Of),
    Update(Of),
    Delete(Of),
    CancelBatch,
    RerunBatch,
    CancelJob,
}

/// What is read and written in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Agent,
    Case,
    Batch,
    Job,
    Webhook,
}

/// The operations: method, path and what is done.
const OPERATIONS: &[(&str, &str, Action)] = &[
    ("GET", "/v1/agents", Action::List(Of::Agent)),
    ("POST", "/v1/agents", Action::Create(Of::Agent)),
    ("GET", "/v1/agents/{agentId}", Action::Read(Of::Agent)),
    ("PUT", "/v1/agents/{agentId}", Action::Update(Of::Agent)),
    ("DELETE", "/v1/agents/{agentId}", Action::Delete(Of::Agent)),
    ("GET", "/v1/test-cases", Action::List(Of::Case)),
    ("POST", "/v1/test-cases", Action::Create(Of::Case)),
    ("GET", "/v1/test-cases/{testCaseId}", Action::Read(Of::Case)),
    ("PUT", "/v1/test-cases/{testCaseId}", Action::Update(Of::Case)),
    ("DELETE", "/v1/test-cases/{testCaseId}", Action::Delete(Of::Case)),
    ("GET", "/v1/batch-runs", Action::List(Of::Batch)),
    ("POST", "/v1/batch-runs", Action::Create(Of::Batch)),
    ("GET", "/v1/batch-runs/{batchId}", Action::Read(Of::Batch)),
    ("DELETE", "/v1/batch-runs/{batchId}", Action::Delete(Of::Batch)),
    ("POST", "/v1/batch-runs/{batchId}/cancel", Action::CancelBatch),
    ("POST", "/v1/batch-runs/{batchId}/rerun", Action::RerunBatch),
    ("GET", "/v1/test-runs", Action::List(Of::Job)),
    ("GET", "/v1/test-runs/{jobId}", Action::Read(Of::Job)),
    ("POST", "/v1/test-runs/{jobId}/cancel", Action::CancelJob),
    ("GET", "/v1/webhooks", Action::List(Of::Webhook)),
    ("POST", "/v1/webhooks", Action::Create(Of::Webhook)),
    ("GET", "/v1/webhooks/{webhookId}", Action::Read(Of::Webhook)),
    ("PUT", "/v1/webhooks/{webhookId}", Action::Update(Of::Webhook)),
    ("DELETE", "/v1/webhooks/{webhookId}", Action::Delete(Of::Webhook)),
];

/// The operations by method and path, for whoever describes them.
pub(crate) fn operations() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPERATIONS.iter().map(|(method, path, _)| (*method, *path))
}

fn steps(path: &str) -> Vec<&str> {
    path.split('/').filter(|step| !step.is_empty()).collect()
}

/// Whether a path is of this shape.
pub(crate) fn is_path(path: &str) -> bool {
    steps(path).first() == Some(&ROOT)
}

/// What the id in a path is, if it fits an operation's; nothing where it has none.
fn fits<'a>(template: &str, path: &[&'a str]) -> Option<&'a str> {
    let wanted = steps(template);
    if wanted.len() != path.len() {
        return None;
    }
    let mut id = "";
    for (wanted, &step) in wanted.iter().zip(path) {
        match wanted.starts_with('{') {
            true => id = step,
            false if *wanted != step => return None,
            false => {}
        }
    }
    Some(id)
}

fn template(path: &str) -> Option<&'static str> {
    let path = steps(path);
    let found = OPERATIONS
        .iter()
        .find(|(_, template, _)| fits(template, &path).is_some());
    found.map(|(_, template, _)| *template)
}

/// Handles one request. It always has an answer, in the shape that clients of SigmaMind parse.
pub(crate) async fn handle(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    let span = tracing::error_span!(
        "request",
        method = %event.request_context.http.method,
        path = event.raw_path.as_deref().and_then(template).unwrap_or("none"),
        apiRequestId = event.request_context.request_id,
        org = Empty
    );
    let path = event.raw_path.clone().unwrap_or_default();
    let key = event.headers.get(KEY).and_then(|key| key.to_str().ok());
    let key = key.map(|key| key.trim().to_owned());
    let answer = match Request::decode(event) {
        Ok(mut request) => {
            request.bearer = request.bearer.or(key);
            // On the heap, because it holds whatever any operation may need.
            Box::pin(route(ctx, &request)).instrument(span).await
        }
        Err(error) => Err(error),
    };
    let answer = answer.and_then(|answer| match bounded::refused(answer.body()) {
        Some(error) => Err(error),
        None => Ok(answer),
    });
    let answer = answer.unwrap_or_else(|error| fault(error, &path, ctx.clock.now_ms()));
    answer.encode()
}

async fn route(ctx: &Context, request: &Request) -> Answer {
    let principal = crate::authenticate(ctx, request).await;
    let org = principal
        .map_err(|error| match error.status() {
            401 => ApiError::unauthorized("the API key is missing or wrong; send it as the header X-API-Key"),
            _ => error,
        })?
        .org;
    Span::current().record("org", display(org));
    let path = steps(&request.path);
    let mut allowed = Vec::new();
    for (method, template, action) in OPERATIONS {
        let Some(id) = fits(template, &path) else { continue };
        if *method == request.method {
            return act(Asked { ctx, org, request }, *action, id).await;
        }
        allowed.push(*method);
    }
    match allowed.is_empty() {
        true => Err(ApiError::no_route(request)),
        false => Err(ApiError::method_not_allowed(request, &allowed)),
    }
}

async fn act(asked: Asked<'_>, action: Action, id: &str) -> Answer {
    match action {
        Action::List(Of::Agent) => agents::list(asked).await,
        Action::Create(Of::Agent) => agents::create(asked).await,
        Action::Read(Of::Agent) => agents::read(asked, id).await,
        Action::Update(Of::Agent) => agents::update(asked, id).await,
        Action::Delete(Of::Agent) => agents::delete(asked, id).await,
        Action::List(Of::Case) => cases::list(asked).await,
        Action::Create(Of::Case) => cases::create(asked).await,
        Action::Read(Of::Case) => cases::read(asked, id).await,
        Action::Update(Of::Case) => cases::update(asked, id).await,
        Action::Delete(Of::Case) => cases::delete(asked, id).await,
        Action::List(Of::Batch) => batches::list(asked).await,
        Action::Create(Of::Batch) => Box::pin(batches::create(asked)).await,
        Action::Read(Of::Batch) => batches::read(asked, id).await,
        Action::Delete(Of::Batch) => batches::delete(asked, id).await,
        Action::CancelBatch => batches::cancel(asked, id).await,
        Action::RerunBatch => Box::pin(batches::rerun(asked, id)).await,
        Action::List(Of::Job) => jobs::list(asked).await,
        Action::Read(Of::Job) => jobs::read(asked, id).await,
        Action::CancelJob => jobs::cancel(asked, id).await,
        Action::List(Of::Webhook) => webhooks::list(asked).await,
        Action::Create(Of::Webhook) => webhooks::create(asked).await,
        Action::Read(Of::Webhook) => webhooks::read(asked, id).await,
        Action::Update(Of::Webhook) => webhooks::update(asked, id).await,
        Action::Delete(Of::Webhook) => webhooks::delete(asked, id).await,
        // There are none of these.
        Action::Create(Of::Job) | Action::Update(Of::Batch | Of::Job) | Action::Delete(Of::Job) => {
            Err(ApiError::no_route(asked.request))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found() {
        for (path, found) in [
            ("/v1/test-runs/job_1", Some("/v1/test-runs/{jobId}")),
            ("/v1/test-runs/job_1/cancel", Some("/v1/test-runs/{jobId}/cancel")),
            ("/v1/batch-runs/", Some("/v1/batch-runs")),
            ("/v1/nothing", None),
            ("/v1", None),
        ] {
            assert_eq!(template(path), found, "{path}");
            assert!(is_path(path));
        }
        for path in ["/", "/test_framework/v1/results/", "/v10/agents", "/eval/run"] {
            assert!(!is_path(path), "{path}");
        }
    }
}
