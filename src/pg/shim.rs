//! shim.c's declarations. What it declares is the server's; what is declared here is shim.c's alone.

use std::ffi::{c_char, c_int, c_long, c_void};

use pgrx::pg_sys;

/// `TimeLineHistoryEntry`, which only shim.c looks into.
#[repr(C)]
pub struct TimeLineHistoryEntry(c_void);

// Data, and functions that cannot raise an error.
#[allow(unsafe_code)]
unsafe extern "C" {
    pub static ppb_internal_language: pg_sys::Oid;
    pub static ppb_standard_process_utility: pg_sys::ProcessUtility_hook_type;
    pub fn ppb_control_file_lock() -> *mut pg_sys::LWLock;
    pub fn ppb_backup_status() -> pg_sys::SessionBackupState::Type;
    pub fn ppb_timeline_entry(
        entry: *const TimeLineHistoryEntry,
        timeline: *mut pg_sys::TimeLineID,
        begin: *mut pg_sys::XLogRecPtr,
        end: *mut pg_sys::XLogRecPtr,
    );
    pub fn ppb_socket() -> c_int;
    pub fn ppb_is_send_pending() -> bool;
    pub fn ppb_take_signals();
    #[cfg(feature = "valgrind")]
    pub fn ppb_is_defined(memory: *const c_void, length: usize);
}

// Functions that may raise an error: to be called through a guard, one at a time.
#[allow(unsafe_code)]
unsafe extern "C-unwind" {
    pub fn ppb_archive_is_busy(file: *const c_char) -> bool;
    pub fn ppb_timeline_history(timeline: pg_sys::TimeLineID) -> *mut pg_sys::List;
    pub fn ppb_put_message(kind: c_char, bytes: *const c_char, length: usize);
    pub fn ppb_flush_if_writable() -> c_int;
    pub fn ppb_secure_write(bytes: *const c_void, length: usize) -> isize;
    pub fn ppb_wait_writable(timeout: c_long) -> u32;
    pub fn ppb_serve_barriers();
    pub fn ppb_advance_slot(position: pg_sys::XLogRecPtr);
}

/// `IncrementalBackupInfo`, which only the server looks into.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
#[repr(C)]
pub struct IncrementalBackupInfo(c_void);

// From 17. Data, and what cannot raise an error.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
#[allow(unsafe_code)]
unsafe extern "C" {
    pub static ppb_global_tablespace: pg_sys::Oid;
    pub static ppb_default_tablespace: pg_sys::Oid;
    pub fn ppb_summarizes_wal() -> bool;
}

// From 17. Functions that may raise an error.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
#[allow(unsafe_code)]
unsafe extern "C-unwind" {
    pub fn ppb_increment_create(context: pg_sys::MemoryContext) -> *mut IncrementalBackupInfo;
    pub fn ppb_increment_append_manifest(
        info: *mut IncrementalBackupInfo,
        data: *const c_char,
        length: c_int,
    );
    pub fn ppb_increment_end_manifest(info: *mut IncrementalBackupInfo);
    pub fn ppb_increment_prepare(info: *mut IncrementalBackupInfo, state: *mut pg_sys::BackupState);
    pub fn ppb_increment_has_blocks(
        info: *mut IncrementalBackupInfo,
        path: *const c_char,
        database: pg_sys::Oid,
        tablespace: pg_sys::Oid,
        number: u32,
        fork: c_int,
        segment: u32,
        size: usize,
        count: *mut u32,
        blocks: *mut pg_sys::BlockNumber,
        truncation_block_length: *mut u32,
    ) -> bool;
}
