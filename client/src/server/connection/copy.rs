//! Answers that are a COPY, read past libpq where that can be, and what comes unasked after one. Past libpq the next
//! command can be sent while the last is answered: the server reads it when it has finished that, without a wait between
//! them.

use std::io::ErrorKind;
use std::time::Duration;

use rustix::event::PollFlags;

use super::together::last_words;
use super::{Session, unexpected};
use crate::error::{Error, Result};
use crate::report;
use crate::server::pq::Status;
use crate::server::tls::Step;
use crate::server::wire::{CopySink, Event, Wire};

/// A command that the server may not have read yet.
pub(super) struct Ahead {
    message: Vec<u8>,
    /// How much of it is on its way.
    sent: usize,
    /// What a try to send more has to wait for.
    waits_for: PollFlags,
}

impl Ahead {
    pub(super) fn new(kind: u8, text: &[u8]) -> Result<Self> {
        let length = u32::try_from(text.len() + 5).map_err(|_| Error::local("command is too long"))?;
        let message = [&[kind][..], &length.to_be_bytes(), text, &[0]].concat();
        Ok(Self { message, sent: 0, waits_for: PollFlags::OUT })
    }

    fn is_sent(&self) -> bool {
        self.sent == self.message.len()
    }

    /// Whether it is this command.
    fn has(&self, text: &[u8]) -> bool {
        self.message.get(5..).is_some_and(|rest| rest.strip_suffix(&[0]) == Some(text))
    }
}

impl Session {
    /// Sends a command that answers with a COPY and nothing else, unless it was sent ahead, and reads all of that. `past_libpq`
    /// asks for the bytes to be read without libpq, where that can be; there the sink's next command is sent ahead.
    pub fn copy_out(&mut self, command: &[u8], past_libpq: bool, sink: &mut impl CopySink) -> Result<()> {
        if past_libpq && self.pg.has_wire() {
            // libpq is idle and its buffer empty: the answer to the last command was read to its end.
            let mut wire = self.wire.take().unwrap_or_default();
            let outcome = self.copy_out_of_wire(command, &mut wire, sink);
            self.wire = Some(wire);
            return outcome;
        }
        let nothing = || Error::connection("server sent no COPY data stream");
        self.send(command)?;
        if self.result()?.ok_or_else(nothing)?.status() != Status::PGRES_COPY_OUT {
            return Err(nothing());
        }
        while let Some(message) = self.copy_data()? {
            sink.message(&message)?;
        }
        // An error that ended the copy comes first: it says why something is missing.
        self.finish()
    }

    fn copy_out_of_wire(&mut self, command: &[u8], wire: &mut Wire, sink: &mut impl CopySink) -> Result<()> {
        let mut message = match self.ahead.take() {
            Some(ahead) if ahead.has(command) => ahead,
            Some(_) => return Err(Error::local("another command was sent ahead")),
            None => Ahead::new(b'Q', command)?,
        };
        self.running = true;
        self.send_all(&mut message)?;
        let mut copying = false;
        let mut complete = false;
        let mut failure = None;
        loop {
            wire.gather(sink.keeps());
            while let Some(event) = wire.next()? {
                match event {
                    Event::CopyBegins => copying = true,
                    Event::Data(chunk) if copying => sink.data(chunk)?,
                    Event::Message(payload) if copying => {
                        sink.message(payload)?;
                        wire.gather(sink.keeps());
                    }
                    Event::CopyDone if copying => copying = false,
                    Event::Complete(_) if !copying => complete = true,
                    Event::Error(error) => {
                        copying = false;
                        failure.get_or_insert(error.into());
                    }
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Ready => {
                        self.running = self.is_ahead();
                        return match failure {
                            Some(error) => Err(error),
                            None if complete => Ok(()),
                            None => Err(unexpected("no command tag")),
                        };
                    }
                    Event::Other => {}
                    other => return Err(unexpected(&format!("{other:?}"))),
                }
            }
            if self.ahead.is_none()
                && let Some(next) = sink.next_command()?
            {
                self.ahead = Some(Ahead::new(b'Q', &next)?);
            }
            self.read_wire(wire).map_err(|error| last_words(failure.take(), error))?;
        }
    }

    /// Reads what has come, and waits until something has.
    pub(super) fn read_wire(&mut self, wire: &mut Wire) -> Result<()> {
        let mut read = false;
        self.send_ahead();
        loop {
            match self.pg.read(wire.space()) {
                Ok(Step::Done(0)) if !read => {
                    return Err(Error::connection(
                        "server closed the connection unexpectedly\n\tThis probably means the server \
                         terminated abnormally\n\tbefore or while processing the request.",
                    ));
                }
                Ok(Step::Done(count)) => {
                    wire.filled(count);
                    read = true;
                    // TLS gives no more than a record at a time.
                    if self.is_plain() || count == 0 || wire.is_full() {
                        // A signal is heard even while bytes never cease to come.
                        return self.abort.check();
                    }
                }
                Ok(_) if read => return self.abort.check(),
                Ok(step) => {
                    let wants = if matches!(step, Step::WantWrite) { PollFlags::OUT } else { PollFlags::IN };
                    let unsent = self.ahead.as_ref().filter(|ahead| !ahead.is_sent());
                    let also = unsent.map_or(PollFlags::empty(), |ahead| ahead.waits_for);
                    self.wait_for(wants | also, None, None)?;
                    self.send_ahead();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It comes again once what was read is dealt with.
                Err(_) if read => return Ok(()),
                Err(error) => {
                    return Err(Error::connection(format!(
                        "could not receive data from server: {}",
                        crate::error::os_message(&error)
                    )));
                }
            }
        }
    }

    /// Sends what the server takes of the command that is ahead. It may take nothing as long as it sends itself. That it has
    /// gone shows when the rest of its answer is read: its last words are in that.
    fn send_ahead(&mut self) {
        let Some(mut ahead) = self.ahead.take() else { return };
        if self.send_some(&mut ahead).is_err() {
            ahead.waits_for = PollFlags::empty();
        }
        self.ahead = Some(ahead);
    }

    /// Sends a message past libpq.
    pub(super) fn send_all(&mut self, message: &mut Ahead) -> Result<()> {
        while !message.is_sent() {
            self.send_some(message)?;
            if !message.is_sent() {
                self.wait_for(message.waits_for, None, None)?;
            }
        }
        Ok(())
    }

    /// Sends as much of a message past libpq as the server takes.
    fn send_some(&mut self, message: &mut Ahead) -> Result<()> {
        while !message.is_sent() {
            match self.pg.write(&message.message[message.sent..]) {
                Ok(Step::Done(count)) => message.sent += count,
                Ok(Step::WantRead) => {
                    message.waits_for = PollFlags::IN;
                    break;
                }
                Ok(Step::WantWrite) => {
                    message.waits_for = PollFlags::OUT;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::connection(format!(
                        "could not send data to server: {}",
                        crate::error::os_message(&error)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Looks at what came unasked since libpq was left out, to the end of a message: libpq can go on.
    pub(super) fn consume_unsolicited(&mut self) -> Result<()> {
        let Some(mut wire) = self.wire.take() else { return Ok(()) };
        let outcome = self.read_unasked(&mut wire);
        self.wire = Some(wire);
        outcome
    }

    /// Reads what came unasked since libpq was left out: notices, or the end.
    fn read_unasked(&mut self, wire: &mut Wire) -> Result<()> {
        loop {
            while let Some(event) = wire.next()? {
                match event {
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Error(error) => return Err(Error::connection(error.text)),
                    Event::Other => {}
                    other => return Err(unexpected(&format!("{other:?}"))),
                }
            }
            if wire.is_empty() && !self.wait(Some(Duration::ZERO), None)? {
                return Ok(());
            }
            self.read_wire(wire)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Chunk;
    use crate::error::Kind;
    use crate::server::fake_server::{FakeServer, copy, message, report};

    struct Nobody;

    impl CopySink for Nobody {
        fn message(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn data(&mut self, _: Chunk<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_comes_after_a_transfer_is_heard() {
        let parameter = message(b'S', b"TimeZone\0UTC\0");
        let last_words = report(b'E', "FATAL", "57P01", "terminating connection");
        let server = FakeServer::start(vec![[copy(&[]), parameter, last_words].concat()]);
        let mut session = server.connect();
        session.copy_out(b"SEND_FILES_CONTENT", true, &mut Nobody).unwrap();
        let error = session.send(b"STOP_BACKUP").unwrap_err();
        assert_eq!((error.kind(), error.message()), (Kind::Connection, "FATAL:  terminating connection"));
    }

    /// Wants this to be sent next.
    struct Then(Option<&'static [u8]>);

    impl CopySink for Then {
        fn message(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn data(&mut self, _: Chunk<'_>) -> Result<()> {
            Ok(())
        }
        fn next_command(&mut self) -> Result<Option<Vec<u8>>> {
            Ok(self.0.take().map(<[u8]>::to_vec))
        }
    }

    #[test]
    fn a_command_is_sent_ahead() {
        let answer = copy(&[]);
        let half = answer.len() / 2;
        // The server goes on with the first answer when it has read the second command.
        let answers = || vec![answer[..half].to_vec(), [&answer[half..], &answer].concat(), answer.clone()];
        let server = FakeServer::start(answers());
        let mut session = server.connect();
        session.copy_out(b"FIRST", true, &mut Then(Some(b"SECOND"))).unwrap();
        assert!(session.is_ahead());
        session.copy_out(b"SECOND", true, &mut Nobody).unwrap();
        assert!(!session.is_ahead());
        session.copy_out(b"THIRD", true, &mut Nobody).unwrap();
        assert_eq!(server.commands(), ["FIRST", "SECOND", "THIRD"]);

        // Another one would get its answer.
        let server = FakeServer::start(answers());
        let mut session = server.connect();
        session.copy_out(b"FIRST", true, &mut Then(Some(b"SECOND"))).unwrap();
        assert!(session.send(b"STOP_BACKUP").unwrap_err().message().contains("still to come"));
        assert!(session.copy_out(b"THIRD", true, &mut Nobody).unwrap_err().message().contains("sent ahead"));
    }

    /// A server that sends as long as it can, and reads nothing meanwhile, takes a command that fits no buffer when it has come to
    /// the end.
    #[test]
    fn a_long_command_does_not_hold_up_the_answer() {
        const LONG: &[u8] = &[b'x'; 4 << 20];
        let data = crate::server::fake_server::frame(&protocol::Frame::Data(&[0; 8 << 20]));
        let server = FakeServer::start(vec![copy(&[data]), copy(&[])]);
        let mut session = server.connect();
        session.copy_out(b"FIRST", true, &mut Then(Some(LONG))).unwrap();
        session.copy_out(LONG, true, &mut Nobody).unwrap();
        assert_eq!(server.commands().iter().map(String::len).collect::<Vec<_>>(), [5, LONG.len()]);
    }
}
