//! The Lambda function `start-item`: wiring only; the handler is in the library.

use aws_lambda_events::sqs::SqsEvent;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use ringback_shared::{clock::Deadline, context::Context, telemetry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    telemetry::init();
    let ctx = &Context::from_env()?;
    ctx.warm_up().await;
    lambda_runtime::run(service_fn(async |event: LambdaEvent<SqsEvent>| {
        let deadline = Deadline::at(event.context.deadline, ctx.clock.now_ms());
        ctx.invocation(ringback_start_item::handle(ctx, event.payload, deadline))
            .await
    }))
    .await
}
