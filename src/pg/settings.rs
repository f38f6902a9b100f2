//! The extension's settings.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static MAX_BACKUPS: GucSetting<i32> = GucSetting::<i32>::new(8);

/// Defines the settings. While the postmaster loads libraries only.
pub fn define() {
    GucRegistry::define_int_guc(
        c"pg_parallel_backup.max_backups",
        c"Sets the maximum number of parallel backups that can run at once.",
        c"A backup counts from START_BACKUP until its connection ends, starts another one, or its last transfer has ended.",
        &MAX_BACKUPS,
        1,
        1024,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
    reserve_prefix();
}

/// Makes a setting that is not one of ours an error.
#[allow(unsafe_code)]
fn reserve_prefix() {
    // SAFETY: a C string, copied.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"pg_parallel_backup".as_ptr()) }
}

/// `pg_parallel_backup.max_backups`.
pub fn max_backups() -> usize {
    usize::try_from(MAX_BACKUPS.get()).unwrap_or(1)
}
