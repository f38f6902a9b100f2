//! The result sets of the four commands, each row of which has a checksum of all rows so far.

use pages::rows::RowChecksum;
use protocol::reply::{CHECKSUM, Column};

use crate::error::{Error, Result};
use crate::server::connection::Session;
use crate::server::pq::QueryResult;

/// The reply to a command, as far as it has come.
#[derive(Debug)]
pub struct Reply {
    checksum: RowChecksum,
    /// Nothing but the checksums says that rows came as they were sent.
    is_plain: bool,
}

impl Reply {
    /// To the command that was just sent.
    pub fn new(session: &Session) -> Self {
        Self { checksum: RowChecksum::new(), is_plain: session.is_plain() }
    }

    /// The next result set, which must begin with these columns.
    pub fn result_set(&mut self, session: &mut Session, columns: &[Column]) -> Result<QueryResult> {
        let answer = session.result_set(columns)?;
        self.check(&answer)?;
        Ok(answer)
    }

    /// Checks the rows of a result. Fails where one is not what the server sent.
    pub fn check(&mut self, answer: &QueryResult) -> Result<()> {
        // What a later version adds comes after it, and is covered as well.
        let Some(place) = (0..answer.columns()).rev().find(|at| answer.column_name(*at) == CHECKSUM.name)
        else {
            return if self.is_plain { Err(no_checksum()) } else { Ok(()) };
        };
        for row in 0..answer.rows() {
            let values = (0..answer.columns()).filter(|at| *at != place).map(|at| answer.value(row, at));
            let checksum = self.checksum.add(values);
            if answer.value(row, place) != Some(checksum.as_bytes()) {
                return Err(Error::connection(
                    "server's answer was damaged in transit: a row's checksum does not match",
                ));
            }
        }
        Ok(())
    }
}

fn no_checksum() -> Error {
    Error::local("the server's version of pg_parallel_backup sends no checksums of its answers, so that damage on the way could not be noticed")
        .with_hint("Update pg_parallel_backup on the server and restart it, or use an encrypted connection.")
}
