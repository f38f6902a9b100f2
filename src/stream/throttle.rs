//! One rate for all connections of a backup.

use std::time::Duration;

use crate::pg::shmem::atomic::{AtomicI64, Ordering};

/// How often a second a connection should get a turn, as in basebackup_throttle.c.
const FREQUENCY: u64 = 8;

/// The longest single wait, so that an aborted backup is noticed.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Most bytes to send at once under a rate of `rate` kB/s: a whole number of blocks, at least one.
pub fn chunk(rate: u32, block_size: usize, most: usize) -> usize {
    let turn = usize::try_from(u64::from(rate) * 1024 / FREQUENCY).unwrap_or(most);
    (turn.min(most) / block_size * block_size).max(block_size)
}

/// Takes `bytes` off the budget. `next` is when the next byte may go, shared by all connections;
/// times are in microseconds. Returns when these bytes may go: at once if the budget was idle,
/// and never is what was not used saved up.
pub fn reserve(next: &AtomicI64, now: i64, bytes: u64, rate: u32) -> i64 {
    let cost = i64::try_from(bytes.saturating_mul(1_000_000) / (u64::from(rate) * 1024)).unwrap_or(i64::MAX);
    let mut seen = next.load(Ordering::Relaxed);
    loop {
        let start = seen.max(now);
        match next.compare_exchange_weak(
            seen,
            start.saturating_add(cost),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => return start,
            Err(other) => seen = other,
        }
    }
}

/// How long to wait before looking again; `None` once the time has come.
pub fn remaining(until: i64, now: i64) -> Option<Duration> {
    u64::try_from(until - now)
        .ok()
        .filter(|micros| *micros > 0)
        .map(|micros| Duration::from_micros(micros).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_one_budget() {
        let next = AtomicI64::new(0);
        // 1,024 kB/s: a mebibyte takes a second, whoever sends it.
        let turns: Vec<i64> = (0..4).map(|_| reserve(&next, 5_000_000, 1 << 20, 1024)).collect();
        assert_eq!(turns, [5_000_000, 6_000_000, 7_000_000, 8_000_000]);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let next = AtomicI64::new(0);
        reserve(&next, 0, 1024, 32);
        assert_eq!(reserve(&next, 10_000_000, 1024, 32), 10_000_000);
    }

    #[test]
    fn chunks_are_blocks() {
        assert_eq!(chunk(32, 8192, 262_144), 8192);
        assert_eq!(chunk(1024, 8192, 262_144), 131_072);
        assert_eq!(chunk(1_048_576, 8192, 262_144), 262_144);
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(remaining(5, 5), None);
        assert_eq!(remaining(5, 6), None);
        assert_eq!(remaining(1_000, 0), Some(Duration::from_millis(1)));
        assert_eq!(remaining(60_000_000, 0), Some(LONGEST_WAIT));
    }
}
