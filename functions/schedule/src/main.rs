//! The Lambda function `schedule`: wiring only; the handler is in the library.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use ringback_shared::{clock::Deadline, context::Context, telemetry};
use serde::de::IgnoredAny;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    telemetry::init();
    let ctx = &Context::from_env()?;
    ctx.warm_up().await;
    lambda_runtime::run(service_fn(async |event: LambdaEvent<IgnoredAny>| {
        let deadline = Deadline::at(event.context.deadline, ctx.clock.now_ms());
        ctx.invocation(ringback_schedule::handle(ctx, deadline)).await
    }))
    .await
}
