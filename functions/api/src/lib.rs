//! The HTTP API.

mod bounded;
mod built_in;
mod cekura;
mod definitions;
mod endpoints;
mod evals;
mod filters;
pub mod firing;
mod hook_secrets;
mod http;
mod idempotency;
mod items;
pub mod listening;
mod lists;
#[cfg(feature = "schema")]
pub mod openapi;
mod operations;
mod orgs;
mod reruns;
mod runs;
mod schedules;
mod scoring;
mod sigmamind;
mod signing;
mod trials;
mod ways;
mod writers;

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use ringback_shared::{
    context::{BoxError, Context},
    ids,
    store::Principal,
};
use tracing::{
    Instrument, Span,
    field::{Empty, display},
};
use uuid::Uuid;

use crate::{
    http::{ApiError, Request, Response},
    operations::{Action, Found, SecretAction},
};

/// The description of the API that is served at `/openapi.json`, in OpenAPI 3.1. It is made from the code by `ringback openapi`.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// The org of a local stack.
pub const LOCAL_ORG: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

/// Handles one request, whatever it is. It always has an answer: what goes wrong becomes an error in the shape that clients parse.
pub async fn handle(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    if event.raw_path.as_deref().is_some_and(cekura::is_path) {
        return handle_cekura(ctx, event).await;
    }
    if event.raw_path.as_deref().is_some_and(sigmamind::is_path) {
        return handle_sigmamind(ctx, event).await;
    }
    let answers = async |action, asked: Asked<'_>| match action {
        Action::Secret(action) => answer_with_secrets(action, asked).await,
        action => answer(action, asked).await,
    };
    respond(ctx, event, answers).await
}

/// Handles one request, as the function `api` does: all but what [`handle_with_secrets`] is for, so that the function has no model's key,
/// changes no secrets and stays small.
pub async fn handle_without_secrets(
    ctx: &Context,
    event: ApiGatewayV2httpRequest,
) -> ApiGatewayV2httpResponse {
    respond(ctx, event, answer).await
}

/// Handles one request, as the function `api-secrets` does: what asks models, changes secrets, or is large and seldom wanted.
pub async fn handle_with_secrets(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    let answers = async |action, asked: Asked<'_>| match action {
        Action::Secret(action) => answer_with_secrets(action, asked).await,
        _ => Err(ApiError::elsewhere(asked.request)),
    };
    respond(ctx, event, answers).await
}

/// Handles one request in the shape of Cekura's API, as the function `cekura` does.
pub async fn handle_cekura(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    Box::pin(cekura::handle(ctx, event)).await
}

/// The operations of the API in the shape of Cekura, each by method and path. In a path `{version}` is `v1` or `v2`, and `{channel}` is
/// `run_scenarios` or a longer name that begins with it.
pub fn cekura_operations() -> impl Iterator<Item = (&'static str, &'static str)> {
    cekura::operations()
}

/// Handles one request in the shape of SigmaMind's API, as the function `sigmamind` does.
pub async fn handle_sigmamind(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    Box::pin(sigmamind::handle(ctx, event)).await
}

/// The operations of the API in the shape of SigmaMind, each by method and path.
pub fn sigmamind_operations() -> impl Iterator<Item = (&'static str, &'static str)> {
    sigmamind::operations()
}

/// The operations, each by method and path, and whether it is one of those that [`handle_with_secrets`] answers.
pub fn operations() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    operations::all().map(|operation| {
        let with_secrets = matches!(operation.action, Action::Secret(_));
        (operation.method, operation.path, with_secrets)
    })
}

/// A request whose operation and sender are known.
#[derive(Clone, Copy)]
struct Asked<'a> {
    ctx: &'a Context,
    /// Nil for what is public.
    org: Uuid,
    request: &'a Request,
    /// What the first `{…}` of the path stands for.
    id: &'a str,
    /// What the second one stands for.
    inner: &'a str,
}

async fn respond(
    ctx: &Context,
    event: ApiGatewayV2httpRequest,
    answers: impl AsyncFn(Action, Asked<'_>) -> Result<Response, ApiError>,
) -> ApiGatewayV2httpResponse {
    let span = span(&event);
    let answer = match Request::decode(event) {
        // On the heap, because it holds whatever any operation may need.
        Ok(request) => Box::pin(route(ctx, &request, answers)).instrument(span).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(ApiError::response).encode()
}

/// The span of a request. Its path is shown as its template: what is in a path or a query is for the client to choose.
fn span(event: &ApiGatewayV2httpRequest) -> Span {
    tracing::error_span!(
        "request",
        method = %event.request_context.http.method,
        path = event.raw_path.as_deref().and_then(operations::template).unwrap_or("none"),
        apiRequestId = event.request_context.request_id,
        org = Empty
    )
}

/// Makes the local org with this API key.
///
/// # Errors
/// When the table cannot be written.
pub async fn bootstrap(ctx: &Context, api_key: &str) -> Result<(), BoxError> {
    ctx.store.ensure_org(LOCAL_ORG, "local").await?;
    Ok(ctx
        .store
        .put_api_key(LOCAL_ORG, "local", &ids::sha256_hex(api_key.as_bytes()))
        .await?)
}

/// Answers a request by the operation that it names.
async fn route(
    ctx: &Context,
    request: &Request,
    answers: impl AsyncFn(Action, Asked<'_>) -> Result<Response, ApiError>,
) -> Result<Response, ApiError> {
    let found = operations::find(&request.method, &request.path);
    let org = match &found {
        Found::Operation { action, .. } if action.is_public() => Uuid::nil(),
        Found::OtherMethod { public: true, .. } => Uuid::nil(),
        // Who has no key does not learn what there is.
        _ => {
            let org = authenticate(ctx, request).await?.org;
            Span::current().record("org", display(org));
            org
        }
    };
    let (action, id, inner) = match found {
        Found::Operation { action, id, inner } => (action, id, inner),
        Found::OtherMethod { allowed, .. } => return Err(ApiError::method_not_allowed(request, &allowed)),
        Found::Nothing => return Err(ApiError::no_route(request)),
    };
    answers(
        action,
        Asked {
            ctx,
            org,
            request,
            id,
            inner,
        },
    )
    .await
}

/// Answers what needs the table, and of secrets no more than an endpoint's key.
async fn answer(action: Action, asked: Asked<'_>) -> Result<Response, ApiError> {
    let Asked {
        ctx,
        org,
        request,
        id,
        inner,
    } = asked;
    match action {
        Action::Health => Response::ok(serde_json::json!({ "status": "ok" })),
        Action::List(kind) => definitions::list(ctx, org, kind, request).await,
        Action::Create(kind) => definitions::create(ctx, org, kind, request.json()?).await,
        Action::Read(kind) => Response::ok(definitions::found(ctx, org, kind, id).await?.body),
        Action::Update(kind) => definitions::update(ctx, org, kind, id, request).await,
        Action::Delete(kind) => definitions::delete(ctx, org, kind, id).await,
        Action::DuplicateSuite => definitions::duplicate_suite(ctx, org, id).await,
        Action::ListOrgs => orgs::list(ctx, org).await,
        Action::ReadOrg => orgs::read(ctx, org, id).await,
        Action::UpdateOrg => orgs::update(ctx, org, id, request.json()?).await,
        Action::ReadConcurrency => Response::ok(orgs::concurrency_now(ctx, org).await?),
        Action::ListRuns => runs::list(ctx, org, request).await,
        Action::CreateRun => Box::pin(runs::create(ctx, org, request)).await,
        Action::ReadRun => {
            let head = runs::found(ctx, org, id).await?;
            Response::ok(bounded::run(serde_json::json!(runs::current(ctx, &head).await?)))
        }
        Action::SummarizeRun => trials::summary(ctx, org, id, request).await,
        Action::CompareRuns => trials::compare(ctx, org, id, request).await,
        Action::RerunRun => Box::pin(reruns::rerun(ctx, org, id, request)).await,
        Action::EvaluateRun => Box::pin(reruns::evaluate(ctx, org, id, request)).await,
        Action::CancelRun => runs::cancel(ctx, org, id).await,
        Action::ListItems => items::list(ctx, org, id, request).await,
        Action::ReadItem => items::get(ctx, org, id, inner).await,
        Action::CancelItem => items::cancel(ctx, org, id, inner).await,
        Action::ListEvalRuns => evals::list(ctx, org, request).await,
        Action::CreateEvalRun => Box::pin(evals::create(ctx, org, request)).await,
        Action::ReadEvalRun => evals::read(ctx, org, id).await,
        Action::CancelEvalRun => evals::cancel(ctx, org, id).await,
        Action::DeleteEvalRun => evals::delete(ctx, org, id).await,
        Action::Secret(_) => Err(ApiError::elsewhere(request)),
    }
}

/// Answers what asks models, changes secrets, or is large and seldom wanted.
async fn answer_with_secrets(action: SecretAction, asked: Asked<'_>) -> Result<Response, ApiError> {
    let Asked {
        ctx,
        org,
        request,
        id,
        inner,
    } = asked;
    match action {
        SecretAction::Describe => Ok(Response::document(OPENAPI)),
        SecretAction::SuggestImprovements => {
            let work = writers::suggestions(ctx, org, id, inner, request);
            idempotency::once(ctx, org, request, work).await
        }
        SecretAction::GenerateScenarios => {
            idempotency::once(ctx, org, request, writers::scenarios(ctx, org, request)).await
        }
        SecretAction::RunStructuredOutput => {
            idempotency::once(ctx, org, request, writers::structured_output(ctx, org, request)).await
        }
        SecretAction::ListEndpoints => endpoints::list(ctx, org, request).await,
        SecretAction::CreateEndpoint => endpoints::create(ctx, org, request.json()?).await,
        SecretAction::ReadEndpoint => endpoints::read(ctx, org, id).await,
        SecretAction::UpdateEndpoint => endpoints::update(ctx, org, id, request.json()?).await,
        SecretAction::DeleteEndpoint => endpoints::delete(ctx, org, id).await,
        SecretAction::AddEndpointSecret => {
            endpoints::add_secret(ctx, org, id, request.optional_json()?).await
        }
        SecretAction::DeleteEndpointSecret => endpoints::remove_secret(ctx, org, id, inner).await,
        SecretAction::ReadHookSecrets => hook_secrets::read(ctx, org).await,
        SecretAction::AddHookSecret => hook_secrets::add(ctx, org).await,
        SecretAction::DeleteHookSecret => hook_secrets::remove(ctx, org, id).await,
        SecretAction::ListSchedules => schedules::list(ctx, org, request).await,
        SecretAction::CreateSchedule => Box::pin(schedules::create(ctx, org, request.json()?)).await,
        SecretAction::ReadSchedule => schedules::read(ctx, org, id).await,
        SecretAction::UpdateSchedule => {
            Box::pin(schedules::update(ctx, org, id, request.optional_json()?)).await
        }
        SecretAction::DeleteSchedule => schedules::delete(ctx, org, id).await,
        SecretAction::RunSchedule => Box::pin(firing::run_now(ctx, org, id, request)).await,
        SecretAction::ListFirings => schedules::firings(ctx, org, id, request).await,
        SecretAction::ReadTrend => schedules::trend(ctx, org, id, request).await,
    }
}

async fn authenticate(ctx: &Context, request: &Request) -> Result<Principal, ApiError> {
    let refused = || {
        ApiError::unauthorized("the API key is missing or wrong; send it as 'Authorization: Bearer <key>'")
    };
    let key = request
        .bearer
        .as_deref()
        .filter(|key| !key.is_empty())
        .ok_or_else(refused)?;
    ctx.store
        .principal(&ids::sha256_hex(key.as_bytes()))
        .await?
        .ok_or_else(refused)
}
