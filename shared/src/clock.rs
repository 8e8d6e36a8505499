//! Time as a value: handlers take it from their context, so that tests decide what time it is.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

/// A source of the current time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The current time, in milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn now_ms(&self) -> i64 {
        Timestamp::now().as_millisecond()
    }
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The moment by which a handler must have answered, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(std::time::Instant);

impl Deadline {
    /// The deadline that lies `budget` ahead of now.
    #[must_use]
    pub fn after(budget: Duration) -> Self {
        Self(std::time::Instant::now() + budget)
    }

    /// The deadline of a Lambda invocation.
    ///
    /// `deadline_ms` is the invocation's deadline and `now_ms` the current time, both in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at(deadline_ms: u64, now_ms: i64) -> Self {
        let left = deadline_ms.saturating_sub(u64::try_from(now_ms).unwrap_or(0));
        Self::after(Duration::from_millis(left))
    }

    /// The time left; zero once the deadline has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(std::time::Instant::now())
    }
}

/// Writes milliseconds since the Unix epoch as RFC 3339 in UTC with milliseconds, for example `2026-03-26T10:52:45.565Z`.
#[must_use]
pub fn iso(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

/// The calendar month in UTC of `ms` (milliseconds since the Unix epoch), for example `2026-03`.
#[must_use]
pub fn month(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m").to_string()
}

/// Reads an RFC 3339 timestamp as milliseconds since the Unix epoch.
#[must_use]
pub fn parse_iso(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|t| t.as_millisecond())
}

/// Reads a timestamp from a query, in which the plus sign of an offset that was not encoded is a space.
fn from_query(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| text.replace(' ', "+").parse()).ok()
}

/// The whole milliseconds next to an RFC 3339 timestamp, since the Unix epoch: the last one that is not after it and the first
/// one that is not before it. What is kept has whole milliseconds, what it is compared with may be finer.
#[must_use]
pub fn around_iso(text: &str) -> Option<(i64, i64)> {
    const NANOS: i128 = 1_000_000;
    let nanos = from_query(text)?.as_nanosecond();
    let ms = |nanos: i128| i64::try_from(nanos.div_euclid(NANOS)).ok();
    Some((ms(nanos)?, ms(nanos + NANOS - 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_round_trips_with_milliseconds() {
        assert_eq!(iso(1_774_522_365_565), "2026-03-26T10:52:45.565Z");
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_iso("2026-03-26T10:52:45.565Z"), Some(1_774_522_365_565));
        assert_eq!(parse_iso("2030-01-01T12:30:15.250000Z"), Some(1_893_501_015_250));
        let offset = around_iso("2026-03-26T12:52:45.565 02:00");
        assert_eq!(offset, Some((1_774_522_365_565, 1_774_522_365_565)));
        assert_eq!(parse_iso("yesterday"), None);
        assert_eq!(
            around_iso("1970-01-01T00:00:01.000500Z"),
            Some((1000, 1001)),
            "between two milliseconds"
        );
        assert_eq!(around_iso("1970-01-01T00:00:01Z"), Some((1000, 1000)));
        assert_eq!(around_iso("1969-12-31T23:59:59.9995Z"), Some((-1, 0)));
        assert_eq!(around_iso("yesterday"), None);
    }

    #[test]
    fn a_month_ends_at_midnight_in_utc() {
        let midnight = parse_iso("2026-12-01T00:00:00Z").unwrap();
        assert_eq!(
            (month(midnight - 1).as_str(), month(midnight).as_str()),
            ("2026-11", "2026-12")
        );
    }
}
