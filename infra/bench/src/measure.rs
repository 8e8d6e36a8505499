//! What a process has used so far.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The CPU time of this process, user and system, of all its threads.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The most memory that this process has held so far, in MiB; `None` where the system does not say.
pub(crate) fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// `value` with three decimals: what is behind them is noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time() {
        let before = cpu_time();
        let sum = (0..5_000_000_u64).fold(0, |sum: u64, n| sum.wrapping_mul(31).wrapping_add(n));
        assert!(std::hint::black_box(sum) != 1 && cpu_time() > before);
    }

    #[test]
    fn values_are_rounded() {
        assert_eq!((rounded(1.23456), rounded(2.0)), (1.235, 2.0));
    }
}
