//! The result sets of the four commands: each row has a checksum of all rows so far, and each set says at its
//! end how many it has. A row that is missing shows in the checksum of the next, and the last in the number.

use pages::rows::RowChecksum;
use protocol::reply::{CHECKSUM, Column};

use crate::error::{Error, Result};
use crate::server::connection::Session;
use crate::server::pq::Status;
use crate::server::result::QueryResult;

/// The reply to a command, as far as it has come.
#[derive(Debug)]
pub struct Reply {
    checksum: RowChecksum,
    /// Rows of the set that comes.
    rows: u64,
    /// Nothing but that says that rows came as they were sent.
    is_plain: bool,
}

impl Reply {
    /// To the command that was just sent.
    pub fn new(session: &Session) -> Self {
        Self { checksum: RowChecksum::new(), rows: 0, is_plain: session.is_plain() }
    }

    /// The next result set, which must begin with these columns.
    pub fn result_set(&mut self, session: &mut Session, columns: &[Column]) -> Result<QueryResult> {
        let answer = session.result_set(columns)?;
        self.check(&answer)?;
        Ok(answer)
    }

    /// Checks the rows of a result, of a whole set or of one that comes row by row. Fails where one is not
    /// what the server sent, or is missing.
    pub fn check(&mut self, answer: &QueryResult) -> Result<()> {
        self.check_rows(answer)?;
        self.rows += answer.rows() as u64;
        if answer.status() != Status::PGRES_TUPLES_OK {
            return Ok(());
        }
        let came = std::mem::take(&mut self.rows);
        match answer.affected_rows() {
            Some(sent) if sent == came => Ok(()),
            // Before 0.3.0.
            None if !self.is_plain => Ok(()),
            _ => Err(Error::connection(
                "server's answer was damaged in transit: it has not as many rows as the server sent",
            )),
        }
    }

    fn check_rows(&mut self, answer: &QueryResult) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::fake_server::{FakeServer, message, ready};
    use protocol::reply::FILE_LIST;

    const ROWS: [[&str; 5]; 3] = [
        ["base", "d", "0", "1", "448"],
        ["base/1", "f", "8192", "1", "384"],
        ["global", "d", "0", "1", "448"],
    ];

    /// A list of these rows but for one, with this tag.
    fn answer(missing: Option<usize>, tag: &str) -> Vec<u8> {
        let count = |number: usize| i16::try_from(number).unwrap().to_be_bytes();
        let columns = FILE_LIST.iter().chain([&CHECKSUM]);
        let described: Vec<u8> =
            columns.flat_map(|column| [column.name.as_bytes(), &[0; 1], &[0; 18]].concat()).collect();
        let mut checksum = RowChecksum::new();
        let rows = ROWS.map(|row| {
            let sum = checksum.add(row.iter().map(|value| Some(value.as_bytes())));
            let value = |value: &[u8]| [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat();
            let values = row.iter().flat_map(|text| value(text.as_bytes())).chain(value(sum.as_bytes()));
            message(b'D', &[&count(6)[..], &values.collect::<Vec<_>>()].concat())
        });
        let came = rows.into_iter().enumerate().filter(|(at, _)| Some(*at) != missing).map(|(_, row)| row);
        let end = |tag: &str| message(b'C', format!("{tag}\0").as_bytes());
        [
            message(b'T', &[&count(6)[..], &described].concat()),
            came.collect::<Vec<_>>().concat(),
            end(tag),
            end("SEND_FILE_LIST"),
            ready(),
        ]
        .concat()
    }

    /// What is thought of it, all at once and row by row.
    fn verdicts(answer: &[u8]) -> [Result<()>; 2] {
        let server = FakeServer::start(vec![answer.to_vec(); 2]);
        let mut session = server.connect();
        [false, true].map(|by_row| {
            session.send(b"SEND_FILE_LIST").unwrap();
            if by_row {
                session.row_by_row().unwrap();
            }
            let mut reply = Reply::new(&session);
            let mut verdict = Ok(());
            while let Some(answer) = session.result().unwrap() {
                if answer.status() != Status::PGRES_COMMAND_OK {
                    verdict = verdict.and(reply.check(&answer));
                }
            }
            verdict
        })
    }

    #[test]
    fn no_row_may_be_missing() {
        for verdict in verdicts(&answer(None, "SELECT 3")) {
            verdict.unwrap();
        }
        for (missing, tag, words) in [
            (Some(0), "SELECT 3", "a row's checksum does not match"),
            (Some(1), "SELECT 3", "a row's checksum does not match"),
            (Some(2), "SELECT 3", "it has not as many rows as the server sent"),
            (None, "SELECT 2", "it has not as many rows as the server sent"),
            (None, "SELECT", "it has not as many rows as the server sent"),
        ] {
            for verdict in verdicts(&answer(missing, tag)) {
                let error = verdict.unwrap_err();
                assert_eq!(
                    error.message(),
                    format!("server's answer was damaged in transit: {words}"),
                    "{missing:?} {tag}"
                );
            }
        }
    }
}
