//! Interrupts and waiting.

use std::time::Duration;

use pgrx::pg_sys;
use rustix::time::{ClockId, clock_gettime};

/// What a backend waits for, as pg_stat_activity names it.
#[derive(Debug, Clone, Copy)]
pub enum WaitEvent {
    /// BaseBackupThrottle.
    Throttle,
    /// BackupWaitWalArchive.
    WalArchive,
    /// Extension: until transfers have ended.
    Transfers,
    /// Extension: a coordinator for its backup's keeper, or the other way round.
    Keeper,
}

/// Serves interrupts: query cancel and termination end here, by an ERROR or with the process.
#[allow(unsafe_code)]
pub fn check() {
    pgrx::check_for_interrupts!();
}

/// Whether `check` would do something.
#[allow(unsafe_code)]
pub fn is_pending() -> bool {
    // SAFETY: a flag that signal handlers of this process set.
    unsafe { std::ptr::read_volatile(&raw const pg_sys::InterruptPending) != 0 }
}

/// Waits on the latch for at most `timeout`, then serves interrupts. Returns early when the latch
/// is set; ends the process with the postmaster.
#[allow(unsafe_code)]
pub fn sleep(timeout: Duration, event: WaitEvent) {
    let event = match event {
        WaitEvent::Throttle => pg_sys::WaitEventTimeout::WAIT_EVENT_BASE_BACKUP_THROTTLE,
        WaitEvent::WalArchive => pg_sys::WaitEventIPC::WAIT_EVENT_BACKUP_WAIT_WAL_ARCHIVE,
        WaitEvent::Transfers | WaitEvent::Keeper => pg_sys::PG_WAIT_EXTENSION,
    };
    // Rounded up, so that a short wait is one.
    let milliseconds = timeout.as_micros().div_ceil(1000).try_into().unwrap_or(i64::MAX);
    // SAFETY: MyLatch is this process's own.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            milliseconds,
            event,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check();
}

/// Marks the time of reading a file for pg_stat_activity (BaseBackupRead).
#[allow(unsafe_code)]
pub fn while_reading<T>(read: impl FnOnce() -> T) -> T {
    // SAFETY: both only write this process's entry; a read that panics leaves a wait event behind,
    // which the next one overwrites.
    unsafe {
        pg_sys::pgstat_report_wait_start(pg_sys::WaitEventIO::WAIT_EVENT_BASEBACKUP_READ);
        let result = read();
        pg_sys::pgstat_report_wait_end();
        result
    }
}

/// Microseconds of the system's monotonic clock: the same in every process, and nobody sets it.
pub fn monotonic() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000)
}

/// Microseconds since PostgreSQL's epoch, by the clock on the wall.
#[allow(unsafe_code)]
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
