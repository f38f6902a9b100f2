//! Who is asking.

use pgrx::pg_sys;

/// The OID of the role that this session acts as.
#[allow(unsafe_code)]
pub fn current() -> u32 {
    // SAFETY: reads a static that every authenticated session has set.
    unsafe { pg_sys::GetUserId().to_u32() }
}

/// The OID of the role that this session logged in as, by which pg_terminate_backend decides who may
/// signal it.
#[allow(unsafe_code)]
pub fn login() -> u32 {
    // SAFETY: a session has a PGPROC as long as it can carry out a command.
    unsafe { (*pg_sys::MyProc).roleId.to_u32() }
}

/// Whether the role that this session acts as is a superuser. Starts a transaction where none is open: a walsender has none,
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

/// Whether the role that this session acts as may read all files of the server: a superuser, with the
/// REPLICATION attribute, or with the rights of pg_read_server_files. To be asked within a transaction.
#[allow(unsafe_code)]
pub fn may_read_cluster() -> bool {
    // SAFETY: these read the catalogs.
    unsafe {
        let role = pg_sys::GetUserId();
        pg_sys::superuser_arg(role)
            || pg_sys::has_rolreplication(role)
            || pg_sys::has_privs_of_role(role, pg_sys::Oid::from(pg_sys::ROLE_PG_READ_SERVER_FILES))
    }
}
