//! Other backends, and text for SQL.

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// Whether this role may execute pg_terminate_backend at all: an administrator may have revoked it.
#[allow(unsafe_code)]
pub fn may_execute_terminate() -> bool {
    let function = pg_sys::Oid::from(pg_sys::F_PG_TERMINATE_BACKEND);
    // SAFETY: the function takes an oid and a text and uses no expression context.
    let answer = unsafe {
        direct_function_call::<bool>(
            pg_sys::has_function_privilege_id,
            &[function.into_datum(), "EXECUTE".into_datum()],
        )
    };
    answer.unwrap_or(false)
}

/// Whether this role may terminate a session that was logged in by `login_role`: the rule of
/// pg_signal_backend (signalfuncs.c), which asks it of a process and not of a role.
#[allow(unsafe_code)]
pub fn may_terminate(login_role: u32) -> bool {
    let role = pg_sys::Oid::from(login_role);
    let signal_backend = pg_sys::Oid::from(pg_sys::ROLE_PG_SIGNAL_BACKEND);
    // SAFETY: called in a transaction, where the catalog can be read.
    unsafe {
        let user = pg_sys::GetUserId();
        if role == pg_sys::InvalidOid || pg_sys::superuser_arg(role) {
            return pg_sys::superuser();
        }
        pg_sys::has_privs_of_role(user, role) || pg_sys::has_privs_of_role(user, signal_backend)
    }
}

/// Ends a backend as pg_terminate_backend does, with its process group. Calls nothing of PostgreSQL:
/// the caller knows, by the lock that it holds, that the process is there and what it does.
#[allow(unsafe_code)]
pub fn terminate(pid: u32) {
    if let Ok(pid @ 2..) = libc::pid_t::try_from(pid) {
        // SAFETY: a system call. A process that has gone meanwhile is no error.
        unsafe { libc::kill(-pid, libc::SIGTERM) };
    }
}

/// Text of unknown encoding for a result: as it is where the database's encoding takes it, else
/// with question marks for what is not ASCII.
#[allow(unsafe_code)]
pub fn text_in_server_encoding(bytes: &[u8]) -> String {
    // SAFETY: reads a static.
    let utf8 = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32;
    match std::str::from_utf8(bytes) {
        Ok(text) if utf8 || text.is_ascii() => text.to_owned(),
        _ => bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect(),
    }
}
