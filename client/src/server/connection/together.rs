//! Commands that are sent together, before the first of them is answered: where the way is long, each answer that is waited
//! for costs a round trip. libpq has one command under way, so that what these answer is read past it.

use std::collections::VecDeque;
use std::ffi::CString;

use super::copy::Ahead;
use super::{Session, unexpected};
use crate::error::{Error, Kind, Result};
use crate::report;
use crate::server::result::{QueryResult, ResultSet};
use crate::server::wire::{Event, Wire};

/// What was sent together and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// Commands whose answers have not come to their ends, all of them read past libpq.
    pub(super) answers: usize,
    /// Where that cannot be, those that libpq sends one after the other.
    pub(super) later: VecDeque<CString>,
}

impl Session {
    /// Sends commands none of which depends on what another answers. [`result`](Self::result) gives what comes of the
    /// first, `None` after that, and then what comes of the next.
    pub fn send_together(&mut self, commands: &[Vec<u8>]) -> Result<()> {
        if !self.pg.has_wire() {
            return self.send_in_turn(commands);
        }
        if self.is_ahead() || self.together.answers > 0 {
            return Err(Error::local("a command was sent whose answer is still to come"));
        }
        self.consume_unsolicited()?;
        let messages = commands.iter().map(|text| Ahead::new(b'Q', text)).collect::<Result<Vec<_>>>()?;
        self.running = true;
        self.together.answers = commands.len();
        for mut message in messages {
            match self.send_all(&mut message) {
                // That the server has gone shows when it is read what it has said: its last words are in that.
                Err(error) if error.kind() == Kind::Connection => break,
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Asks for all that is going to be asked for: [`rows`](Self::rows) has the answers then.
    pub fn ask_together(&mut self, questions: &[String]) -> Result<()> {
        let texts: Vec<_> = questions.iter().map(|question| question.as_bytes().to_vec()).collect();
        self.send_together(&texts)?;
        for question in questions {
            let answer = self.rows_of(question);
            match answer {
                Err(error) if !matches!(error.kind(), Kind::Server(_)) => return Err(error),
                answer => self.answered.push((question.clone(), answer)),
            }
        }
        Ok(())
    }

    /// The same by libpq, which sends each when the one before is answered.
    fn send_in_turn(&mut self, commands: &[Vec<u8>]) -> Result<()> {
        let texts = commands.iter().map(|text| CString::new(&text[..]));
        let texts: std::result::Result<_, _> = texts.collect();
        self.together.later = texts.map_err(|_| Error::local("command contains a NUL byte"))?;
        self.send_later()
    }

    /// Has libpq send the next of those that it sends one after the other, if there is one.
    pub(super) fn send_later(&mut self) -> Result<()> {
        match self.together.later.pop_front() {
            Some(command) => self.send(command.as_bytes()),
            None => Ok(()),
        }
    }

    /// The next result past libpq.
    pub(super) fn result_past_libpq(&mut self) -> Result<Option<QueryResult>> {
        let mut wire = self.wire.take().unwrap_or_default();
        let outcome = self.result_of_wire(&mut wire);
        self.wire = Some(wire);
        outcome
    }

    fn result_of_wire(&mut self, wire: &mut Wire) -> Result<Option<QueryResult>> {
        let mut set = ResultSet::default();
        let mut failure = None;
        loop {
            while let Some(event) = wire.next()? {
                match event {
                    Event::Columns(columns) => set.describe(columns)?,
                    Event::Row(row) => set.add(row)?,
                    Event::Complete(tag) if failure.is_none() => return Ok(Some(set.complete(tag))),
                    Event::Error(error) => _ = failure.get_or_insert(error.into()),
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Ready => {
                        self.together.answers -= 1;
                        self.running = self.together.answers > 0;
                        return failure.map_or(Ok(None), Err);
                    }
                    Event::Other => {}
                    other => return Err(unexpected(&format!("{other:?}"))),
                }
            }
            self.read_wire(wire).map_err(|error| last_words(failure.take(), error))?;
        }
    }
}

/// What the server said before it went says more than that it has gone.
pub(super) fn last_words(said: Option<Error>, error: Error) -> Error {
    match said {
        Some(said) if error.kind() == Kind::Connection => Error::connection(said.message()),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::fake_server::{FakeServer, message, ready, report};

    fn setting(value: &str) -> Vec<u8> {
        let row = [&[0, 1, 0, 0, 0, u8::try_from(value.len()).unwrap()][..], value.as_bytes()].concat();
        let columns = [&[0, 1][..], b"setting", &[0; 19]].concat();
        [message(b'T', &columns), message(b'D', &row), message(b'C', b"SHOW\0"), ready()].concat()
    }

    fn asked(answers: Vec<Vec<u8>>) -> (FakeServer, Session, Result<()>) {
        let server = FakeServer::start(answers);
        let mut session = server.connect();
        let outcome = session.ask_together(&["SHOW a", "SHOW b", "SHOW c"].map(str::to_owned));
        (server, session, outcome)
    }

    #[test]
    fn what_was_asked_for_is_there() {
        let unknown = [report(b'E', "ERROR", "42704", "unrecognized"), ready()].concat();
        let (server, mut session, outcome) =
            asked(vec![setting("1"), unknown, setting("3"), setting("4"), setting("5")]);
        outcome.unwrap();
        assert_eq!(session.show("c").unwrap(), "3");
        assert_eq!(session.show("b").unwrap_err().kind(), Kind::Server(*b"42704"));
        assert_eq!(session.show("a").unwrap(), "1");
        // What was answered once is asked for again, by libpq.
        assert_eq!(session.show("a").unwrap(), "4");
        assert_eq!(session.show("d").unwrap(), "5");
        assert_eq!(server.commands(), ["SHOW a", "SHOW b", "SHOW c", "SHOW a", "SHOW d"]);
    }

    #[test]
    fn a_server_that_goes_is_noticed() {
        let (_server, _session, outcome) = asked(vec![setting("1")]);
        assert_eq!(outcome.unwrap_err().kind(), Kind::Connection);
        let last_words = report(b'E', "FATAL", "57P01", "terminating connection");
        let (_server, _session, outcome) = asked(vec![setting("1"), last_words]);
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), Kind::Connection);
        assert!(error.message().contains("FATAL:  terminating connection"), "{error}");
    }

    /// Two settings and what comes of them, then a third.
    fn one_after_the_other(send: impl Fn(&mut Session, &[Vec<u8>]) -> Result<()>, first: Vec<u8>) {
        let server = FakeServer::start(vec![first.clone(), setting("2"), setting("3")]);
        let mut session = server.connect();
        send(&mut session, &[b"SHOW a".to_vec(), b"SHOW b".to_vec()]).unwrap();
        assert!(session.send(b"SHOW c").is_err());
        if first == setting("1") {
            let answer = session.result().unwrap().unwrap();
            assert_eq!((answer.value(0, 0), answer.rows()), (Some(&b"1"[..]), 1));
            assert!(session.result().unwrap().is_none());
        } else {
            assert_eq!(session.result().unwrap_err().kind(), Kind::Server(*b"42704"));
        }
        let answer = session.result().unwrap().unwrap();
        assert_eq!(answer.value(0, 0), Some(&b"2"[..]));
        assert!(session.result().unwrap().is_none());
        assert_eq!(session.show("c").unwrap(), "3");
        assert_eq!(server.commands(), ["SHOW a", "SHOW b", "SHOW c"]);
    }

    #[test]
    fn nothing_is_sent_between() {
        let unknown = [report(b'E', "ERROR", "42704", "unrecognized"), ready()].concat();
        for first in [setting("1"), unknown] {
            one_after_the_other(Session::send_together, first.clone());
            // As where nothing can be read past libpq.
            one_after_the_other(Session::send_in_turn, first);
        }
    }
}
