//! Takes the webhooks of providers that say that a call has started.

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use ringback_shared::{context::Context, provider::Event, receive};

/// Handles one webhook; see [`receive::handle`].
pub async fn handle(ctx: &Context, request: ApiGatewayV2httpRequest) -> ApiGatewayV2httpResponse {
    receive::handle(ctx, Event::Started, request).await
}
