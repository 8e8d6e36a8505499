//! Logs. Messages carry ids, never what was said in a conversation and never a secret.

use tracing::Level;
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt, prelude::*};

/// Whether an event of `target` may be shown at `level`. At the level `TRACE` the AWS SDK shows requests with their bodies and Lambda's runtime the
/// events as they came: in them are transcripts, keys and secrets.
#[must_use]
pub fn may_be_shown(level: Level, target: &str) -> bool {
    level != Level::TRACE
        || !["aws_", "lambda_runtime"]
            .iter()
            .any(|shows| target.starts_with(shows))
}

/// Sends the process's logs to standard output as Lambda expects them: JSON lines, at the level that `AWS_LAMBDA_LOG_LEVEL`
/// or `RUST_LOG` names, `info` otherwise.
#[expect(
    clippy::disallowed_methods,
    reason = "logs begin before the configuration is read"
)]
pub fn init() {
    let level = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let filter = EnvFilter::try_new(level.unwrap_or_default().to_lowercase()).unwrap_or_default();
    let filter = if filter.to_string().is_empty() {
        EnvFilter::new("info")
    } else {
        filter
    };
    let layer = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_filter(filter_fn(|event| may_be_shown(*event.level(), event.target())));
    // A second call in one process keeps the first one's settings.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_show_of_requests_is_not_logged() {
        for target in [
            "aws_smithy_runtime::client::orchestrator",
            "lambda_runtime::layers::api_response",
        ] {
            assert!(!may_be_shown(Level::TRACE, target), "{target}");
            assert!(may_be_shown(Level::DEBUG, target), "{target}");
        }
        assert!(may_be_shown(Level::TRACE, "ringback_shared::store"));
    }
}
