//! Errors, warnings and notices to the client and the log.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use protocol::SqlState;

use crate::error::Error;

/// Raises an error of the extension as an ERROR of PostgreSQL. To be called at the boundary only.
pub fn raise(error: &Error) -> ! {
    let mut report = ErrorReport::new(code(error.sqlstate()), error.to_string(), "pg_parallel_backup");
    if let Some(hint) = error.hint() {
        report = report.set_hint(hint);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR returned");
}

/// A WARNING with SQLSTATE 01000.
pub fn warning(message: impl Into<String>) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message.into(), "pg_parallel_backup")
        .report(PgLogLevel::WARNING);
}

/// A WARNING with a hint.
pub fn warning_with_hint(message: impl Into<String>, hint: impl Into<String>) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message.into(), "pg_parallel_backup")
        .set_hint(hint)
        .report(PgLogLevel::WARNING);
}

/// A NOTICE.
pub fn notice(message: impl Into<String>) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message.into(), "pg_parallel_backup")
        .report(PgLogLevel::NOTICE);
}

/// A LOG message.
pub fn log(message: impl Into<String>) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message.into(), "pg_parallel_backup")
        .report(PgLogLevel::LOG);
}

/// PostgreSQL's number for a SQLSTATE: six bits a character (MAKE_SQLSTATE).
fn code(state: SqlState) -> PgSqlErrorCode {
    let number = state.as_bytes().iter().enumerate().fold(0i32, |number, (place, byte)| {
        number | (i32::from(byte.wrapping_sub(b'0')) & 0x3F) << (6 * place)
    });
    PgSqlErrorCode::from(number)
}
