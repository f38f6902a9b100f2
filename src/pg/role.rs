//! Who is asking.

use pgrx::pg_sys;

/// The OID of the role that this session acts as.
#[allow(unsafe_code)]
pub fn current() -> u32 {
    // SAFETY: reads a static that every authenticated session has set.
    unsafe { pg_sys::GetUserId().to_u32() }
}

/// Whether that is a superuser. Starts a transaction where none is open: a walsender has none,
/// and the catalog may have to be read.
#[allow(unsafe_code)]
pub fn is_superuser() -> bool {
    // SAFETY: the transaction that is started is ended, and the memory context restored, before
    // anything else happens; an error in between aborts the transaction.
    unsafe {
        if pg_sys::IsTransactionState() {
            return pg_sys::superuser_arg(pg_sys::GetUserId());
        }
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::StartTransactionCommand();
        let answer = pg_sys::superuser_arg(pg_sys::GetUserId());
        pg_sys::CommitTransactionCommand();
        pg_sys::CurrentMemoryContext = context;
        answer
    }
}
