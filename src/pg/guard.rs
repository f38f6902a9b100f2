//! Clean-up after an error, whoever raised it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::Result;

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

/// Runs `body` and then, however it ends, `after`.
pub fn with_end<T>(body: impl FnOnce() -> Result<T>, after: impl Fn()) -> Result<T> {
    let value = on_failure(body, &after)?;
    after();
    Ok(value)
}
