//! Clean-up after an error, whoever raised it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx::pg_sys;
use protocol::SqlState;

use crate::error::Result;
use crate::pg::report;

/// Runs `body`; if it fails, by a value or by an ERROR of PostgreSQL's that unwinds through here,
/// runs `clean_up` and lets the failure go on. For what a `Drop` must not do: call PostgreSQL
/// while unwinding.
pub fn on_failure<T>(body: impl FnOnce() -> Result<T>, clean_up: impl FnOnce()) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            clean_up();
            Err(error)
        }
        Err(unwinding) => {
            clean_up();
            resume_unwind(unwinding)
        }
    }
}

/// Runs `body`; if it fails, hands SQLSTATE, message and hint to `tell`, and lets the failure go on. For a process
/// that ends with it, since nothing is left that could go on: locks that the failure has left are given back.
#[allow(unsafe_code)]
pub fn on_failure_told<T>(
    body: impl FnOnce() -> Result<T>,
    tell: impl FnOnce(SqlState, &str, Option<&str>),
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tell(error.sqlstate(), &error.to_string(), error.hint().as_deref());
            Err(error)
        }
        Err(unwinding) => {
            // SAFETY: nobody in this process believes to hold one after an ERROR.
            unsafe { pg_sys::LWLockReleaseAll() };
            report::with_caught(&*unwinding, tell);
            resume_unwind(unwinding)
        }
    }
}

/// Runs `body` and then, however it ends, `after`.
pub fn with_end<T>(body: impl FnOnce() -> Result<T>, after: impl Fn()) -> Result<T> {
    let value = on_failure(body, &after)?;
    after();
    Ok(value)
}
