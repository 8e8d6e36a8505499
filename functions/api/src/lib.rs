//! The HTTP API.

mod built_in;
mod definitions;
mod endpoints;
mod filters;
mod hook_secrets;
mod http;
mod items;
mod lists;
mod orgs;
mod runs;
mod signing;

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use ringback_shared::{
    context::{BoxError, Context},
    ids,
    store::{Kind, Principal},
};
use uuid::Uuid;

use crate::http::{ApiError, Request, Response};

/// The org of a local stack.
pub const LOCAL_ORG: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

/// Handles one request. It always has an answer: what goes wrong becomes an error in the shape that clients parse.
pub async fn handle(ctx: &Context, event: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    let answer = match Request::decode(event) {
        Ok(request) => route(ctx, &request).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(ApiError::response).encode()
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

async fn route(ctx: &Context, request: &Request) -> Result<Response, ApiError> {
    let path: Vec<&str> = request
        .path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let method = request.method.as_str();
    if (method, path.as_slice()) == ("GET", ["health"].as_slice()) {
        return Response::ok(serde_json::json!({ "status": "ok" }));
    }
    let Principal { org, .. } = authenticate(ctx, request).await?;
    let define = |kind, id| definitions::serve(ctx, org, kind, id, request);
    match (method, path.as_slice()) {
        (_, ["assistant"]) => define(Kind::Assistant, None).await,
        (_, ["assistant", id]) => define(Kind::Assistant, Some(id)).await,
        (_, ["endpoint", rest @ ..]) => endpoints::serve(ctx, org, rest, request).await,
        (_, ["hook", "secret", rest @ ..]) => hook_secrets::serve(ctx, org, rest, request).await,
        (_, ["org", rest @ ..]) => orgs::serve(ctx, org, rest, request).await,
        (_, ["structured-output"]) => define(Kind::StructuredOutput, None).await,
        (_, ["structured-output", id]) => define(Kind::StructuredOutput, Some(id)).await,
        (_, ["eval", "simulation", "personality"]) => define(Kind::Personality, None).await,
        (_, ["eval", "simulation", "personality", id]) => define(Kind::Personality, Some(id)).await,
        (_, ["eval", "simulation", "scenario"]) => define(Kind::Scenario, None).await,
        (_, ["eval", "simulation", "scenario", id]) => define(Kind::Scenario, Some(id)).await,
        ("GET", ["eval", "simulation", "concurrency"]) => {
            Response::ok(orgs::concurrency_now(ctx, org).await?)
        }
        (_, ["eval", "simulation", "concurrency"]) => Err(method_not_allowed(request)),
        (_, ["eval", "simulation", "suite"]) => define(Kind::Suite, None).await,
        (_, ["eval", "simulation", "suite", id]) => define(Kind::Suite, Some(id)).await,
        ("POST", ["eval", "simulation", "suite", id, "duplicate"]) => {
            definitions::duplicate_suite(ctx, org, id).await
        }
        ("POST", ["eval", "simulation", "run"]) => runs::create(ctx, org, request).await,
        ("GET", ["eval", "simulation", "run"]) => runs::list(ctx, org, request).await,
        ("GET", ["eval", "simulation", "run", id]) => {
            let head = runs::found(ctx, org, id).await?;
            Response::ok(runs::current(ctx, &head).await?)
        }
        ("PATCH", ["eval", "simulation", "run", id]) => runs::cancel(ctx, org, id).await,
        ("GET", ["eval", "simulation", "run", id, "item"]) => items::list(ctx, org, id, request).await,
        ("GET", ["eval", "simulation", "run", id, "item", item]) => items::get(ctx, org, id, item).await,
        ("PATCH", ["eval", "simulation", "run", id, "item", item]) => items::cancel(ctx, org, id, item).await,
        (_, ["eval", "simulation", "run", ..] | ["eval", "simulation", "suite", _, "duplicate"]) => {
            Err(method_not_allowed(request))
        }
        (_, ["eval", "simulation"]) => define(Kind::Simulation, None).await,
        (_, ["eval", "simulation", id]) => define(Kind::Simulation, Some(id)).await,
        _ => Err(ApiError::new(404, format!("Cannot {method} {}", request.path))),
    }
}

fn method_not_allowed(request: &Request) -> ApiError {
    ApiError::new(405, format!("Cannot {} {}", request.method, request.path))
}

async fn authenticate(ctx: &Context, request: &Request) -> Result<Principal, ApiError> {
    let refused = || {
        ApiError::new(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer <key>'",
        )
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
