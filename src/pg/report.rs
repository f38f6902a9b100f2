//! Errors, warnings and notices to the client and the log.

use std::any::Any;

use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
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

/// Looks at what unwinds after an ERROR: its SQLSTATE, message and hint.
pub fn with_caught(unwinding: &(dyn Any + Send), look: impl FnOnce(SqlState, &str, Option<&str>)) {
    let report = match unwinding.downcast_ref::<CaughtError>() {
        Some(CaughtError::PostgresError(report) | CaughtError::ErrorReport(report)) => Some(report),
        Some(CaughtError::RustPanic { ereport, .. }) => Some(ereport),
        None => unwinding.downcast_ref::<ErrorReportWithLevel>(),
    };
    match report {
        Some(report) => look(state(report.sql_error_code()), report.message(), report.hint()),
        None => look(SqlState::INTERNAL_ERROR, "unexpected failure", None),
    }
}

/// The SQLSTATE of PostgreSQL's number for it (UNPACK_SQLSTATE).
fn state(code: PgSqlErrorCode) -> SqlState {
    let number = code as i32;
    SqlState::from_bytes(std::array::from_fn(|place| {
        u8::try_from(number >> (6 * place) & 0x3F).unwrap_or(0).wrapping_add(b'0')
    }))
}

/// PostgreSQL's number for a SQLSTATE: six bits a character (MAKE_SQLSTATE).
fn code(state: SqlState) -> PgSqlErrorCode {
    let number = state.as_bytes().iter().enumerate().fold(0i32, |number, (place, byte)| {
        number | (i32::from(byte.wrapping_sub(b'0')) & 0x3F) << (6 * place)
    });
    PgSqlErrorCode::from(number)
}
