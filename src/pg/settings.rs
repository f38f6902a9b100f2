//! The extension's settings.

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use protocol::features::{self, Feature};

use crate::pg::incremental;

static MAX_BACKUPS: GucSetting<i32> = GucSetting::<i32>::new(8);
static MAX_LEASE: GucSetting<i32> = GucSetting::<i32>::new(3600);
static CLIENT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static REPLICATION_GRAMMAR: GucSetting<bool> = GucSetting::<bool>::new(false);
static FEATURES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Defines the settings. While the postmaster loads libraries only.
pub fn define() {
    GucRegistry::define_int_guc(
        c"pg_parallel_backup.max_backups",
        c"Sets the maximum number of parallel backups that can run at once.",
        c"A backup counts from START_BACKUP until its connection ends, starts another one, or its last transfer has ended; with a lease, until it is released or the lease has run out.",
        &MAX_BACKUPS,
        1,
        1024,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"pg_parallel_backup.max_lease",
        c"Sets the longest time that a parallel backup can outlive the connection that has started it.",
        c"0 means that every backup ends with its connection.",
        &MAX_LEASE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pg_parallel_backup.client_timeout",
        c"Sets the longest time that a transfer waits for a client that takes nothing.",
        c"Such a connection is then ended. 0 means that it waits without an end.",
        &CLIENT_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"pg_parallel_backup.replication_grammar",
        c"Shows whether the server has the replication commands of parallel backups.",
        c"Where it is off, backups are taken by way of the SQL procedures.",
        &REPLICATION_GRAMMAR,
        GucContext::Internal,
        GucFlags::empty(),
    );
    GucRegistry::define_string_guc(
        c"pg_parallel_backup.features",
        c"Shows what parallel backups of this server can do that those of every server cannot.",
        c"Words with commas between them.",
        &FEATURES,
        GucContext::Internal,
        GucFlags::empty(),
    );
    reserve_prefix();
    let has = |feature: &Feature| *feature != Feature::Incremental || incremental::IS_SUPPORTED;
    let features = features::setting(Feature::ALL.into_iter().filter(has));
    show(c"pg_parallel_backup.features", &CString::new(features).unwrap_or_default());
}

/// Sets `pg_parallel_backup.replication_grammar`, by which clients choose their route.
pub fn show_replication_grammar() {
    show(c"pg_parallel_backup.replication_grammar", c"on");
}

/// Sets a setting that nobody else can.
#[allow(unsafe_code)]
fn show(setting: &CStr, value: &CStr) {
    // SAFETY: C strings, copied; while the postmaster loads libraries, and of a setting that was
    // defined.
    unsafe {
        pgrx::pg_sys::SetConfigOption(
            setting.as_ptr(),
            value.as_ptr(),
            pgrx::pg_sys::GucContext::PGC_INTERNAL,
            pgrx::pg_sys::GucSource::PGC_S_DYNAMIC_DEFAULT,
        );
    }
}

/// Makes a setting that is not one of ours an error.
#[allow(unsafe_code)]
fn reserve_prefix() {
    // SAFETY: a C string, copied.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"pg_parallel_backup".as_ptr()) }
}

/// `pg_parallel_backup.max_lease`, in seconds.
pub fn max_lease() -> u32 {
    u32::try_from(MAX_LEASE.get()).unwrap_or(0)
}

/// `pg_parallel_backup.client_timeout`; `None` is no limit.
pub fn client_timeout() -> Option<Duration> {
    u64::try_from(CLIENT_TIMEOUT.get()).ok().filter(|timeout| *timeout > 0).map(Duration::from_millis)
}

/// `pg_parallel_backup.max_backups`.
pub fn max_backups() -> usize {
    usize::try_from(MAX_BACKUPS.get()).unwrap_or(1)
}
