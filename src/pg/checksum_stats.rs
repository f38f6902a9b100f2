//! Page checksum failures in pg_stat_database.

use pgrx::pg_sys;

/// Counts failures of one file; `database` is 0 for shared relations.
#[allow(unsafe_code)]
pub fn report(database: u32, failures: u32) {
    let database = pg_sys::Oid::from(database);
    let failures = i32::try_from(failures).unwrap_or(i32::MAX);
    // SAFETY: both functions take plain values; the first makes the entry that the second, which
    // must not allocate, needs.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::pgstat_prepare_report_checksum_failure(database);
        pg_sys::pgstat_report_checksum_failures_in_db(database, failures);
    }
}
