//! Other backends, and text for SQL.

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// pg_terminate_backend without waiting: raises 42501 where the caller may not, false (and a
/// WARNING) where there is no such process.
#[allow(unsafe_code)]
pub fn terminate(pid: u32) -> bool {
    let pid = i32::try_from(pid).unwrap_or(0);
    // SAFETY: the function takes an int4 and an int8 and uses no expression context.
    let answer = unsafe {
        direct_function_call::<bool>(pg_sys::pg_terminate_backend, &[pid.into_datum(), 0i64.into_datum()])
    };
    answer.unwrap_or(false)
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
