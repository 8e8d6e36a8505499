//! The Lambda function `sigmamind`: wiring only; the handler is in the library.

use aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use ringback_shared::{context::Context, telemetry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    telemetry::init();
    let ctx = &Context::from_env()?;
    ctx.warm_up().await;
    lambda_runtime::run(service_fn(async |event: LambdaEvent<ApiGatewayV2httpRequest>| {
        Ok::<_, Error>(
            ctx.invocation(ringback_sigmamind::handle(ctx, event.payload))
                .await,
        )
    }))
    .await
}
