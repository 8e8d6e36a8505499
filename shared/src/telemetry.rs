//! Logs. Messages carry ids, never what was said in a conversation and never a secret.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

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
        .with_span_list(false);
    // A second call in one process keeps the first one's settings.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}
