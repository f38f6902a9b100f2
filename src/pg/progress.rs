//! This backend's row in pg_stat_progress_basebackup.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::pg_sys;

/// The phases of BASE_BACKUP.
#[derive(Debug, Clone, Copy)]
pub enum Phase {
    /// Waiting for the checkpoint to finish.
    WaitCheckpoint,
    /// Estimating the backup's size.
    EstimateSize,
    /// Streaming database files.
    StreamFiles,
    /// Waiting for WAL archiving to finish.
    WaitWalArchive,
    /// Transferring WAL files.
    TransferWal,
}

/// Begins a row, or begins it anew.
pub fn start(phase: Phase, total: Option<u64>, tablespaces: usize) {
    start_command();
    set_phase(phase);
    set_total(total);
    set(pg_sys::PROGRESS_BASEBACKUP_TBLSPC_TOTAL, i64::try_from(tablespaces).unwrap_or(0));
}

/// The phase.
pub fn set_phase(phase: Phase) {
    let number = match phase {
        Phase::WaitCheckpoint => pg_sys::PROGRESS_BASEBACKUP_PHASE_WAIT_CHECKPOINT,
        Phase::EstimateSize => pg_sys::PROGRESS_BASEBACKUP_PHASE_ESTIMATE_BACKUP_SIZE,
        Phase::StreamFiles => pg_sys::PROGRESS_BASEBACKUP_PHASE_STREAM_BACKUP,
        Phase::WaitWalArchive => pg_sys::PROGRESS_BASEBACKUP_PHASE_WAIT_WAL_ARCHIVE,
        Phase::TransferWal => pg_sys::PROGRESS_BASEBACKUP_PHASE_TRANSFER_WAL,
    };
    set(pg_sys::PROGRESS_BASEBACKUP_PHASE, i64::from(number));
}

/// The backup's estimated size in bytes; shown as NULL where it is not known.
pub fn set_total(total: Option<u64>) {
    let total = total.map_or(-1, |total| i64::try_from(total).unwrap_or(i64::MAX));
    set(pg_sys::PROGRESS_BASEBACKUP_BACKUP_TOTAL, total);
}

/// Bytes that this connection has sent.
pub fn set_streamed(bytes: u64) {
    set(pg_sys::PROGRESS_BASEBACKUP_BACKUP_STREAMED, i64::try_from(bytes).unwrap_or(i64::MAX));
}

/// Has `begin_again` called when a transaction has ended and no row is there: an aborted transaction takes it
/// away, whatever it was about. For the rest of this backend's life, once however often it is asked for.
///
/// `begin_again` must not raise an error.
#[allow(unsafe_code)]
pub fn on_loss(begin_again: fn()) {
    if BEGIN_AGAIN.replace(Some(begin_again)).is_none() {
        // SAFETY: the callback is a static function.
        unsafe { pg_sys::RegisterXactCallback(Some(transaction_ended), std::ptr::null_mut()) }
    }
}

thread_local! {
    static BEGIN_AGAIN: Cell<Option<fn()>> = const { Cell::new(None) };
}

#[pgrx::pg_guard]
#[allow(unsafe_code)]
extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    let over = [pg_sys::XactEvent::XACT_EVENT_ABORT, pg_sys::XactEvent::XACT_EVENT_COMMIT].contains(&event);
    // SAFETY: this process's own entry, which only this process writes to.
    let gone = unsafe { pg_sys::MyBEEntry.as_ref() }.is_some_and(|entry| {
        entry.st_progress_command == pg_sys::ProgressCommandType::PROGRESS_COMMAND_INVALID
    });
    if let Some(begin_again) = BEGIN_AGAIN.get()
        && over
        && gone
    {
        begin_again();
    }
}

/// Removes the row.
#[allow(unsafe_code)]
pub fn end() {
    // SAFETY: writes this process's entry only.
    unsafe { pg_sys::pgstat_progress_end_command() }
}

#[allow(unsafe_code)]
fn start_command() {
    // SAFETY: writes this process's entry only.
    unsafe {
        pg_sys::pgstat_progress_start_command(
            pg_sys::ProgressCommandType::PROGRESS_COMMAND_BASEBACKUP,
            pg_sys::InvalidOid,
        );
    }
}

#[allow(unsafe_code)]
fn set(parameter: u32, value: i64) {
    // SAFETY: the parameter is one of the command's.
    unsafe { pg_sys::pgstat_progress_update_param(parameter as i32, value) }
}
