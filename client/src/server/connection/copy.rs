//! Answers that are a COPY, read past libpq where that can be, and what comes unasked after one.

use std::io::ErrorKind;
use std::time::Duration;

use rustix::event::PollFlags;

use super::{Session, unexpected};
use crate::error::{Error, Kind, Result};
use crate::report;
use crate::server::pq::Status;
use crate::server::tls::Step;
use crate::server::wire::{CopySink, Event, Wire};

impl Session {
    /// Sends a command that answers with a COPY and nothing else, and reads all of that. `past_libpq`
    /// asks for the bytes to be read without libpq, where that can be.
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
        self.send_message(b'Q', command)?;
        self.running = true;
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
                    Event::Complete if !copying => complete = true,
                    Event::Error(error) => {
                        copying = false;
                        let kind = match error.state {
                            Some(state) if !error.is_fatal => Kind::Server(state),
                            _ => Kind::Connection,
                        };
                        failure.get_or_insert(Error::new(kind, error.text));
                    }
                    Event::Notice(notice) => report::print(&notice.text),
                    Event::Ready => {
                        self.running = false;
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
            if let Err(error) = self.read_wire(wire) {
                // What the server said before it went says more.
                return Err(match failure {
                    Some(last_words) if error.kind() == Kind::Connection => {
                        Error::connection(last_words.message())
                    }
                    _ => error,
                });
            }
        }
    }

    /// Reads what has come, and waits until something has.
    fn read_wire(&mut self, wire: &mut Wire) -> Result<()> {
        let mut read = false;
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
                Ok(Step::WantRead) => {
                    self.wait(None, None)?;
                }
                Ok(Step::WantWrite) => {
                    self.wait_for(PollFlags::OUT, None, None)?;
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

    /// Sends a message past libpq.
    fn send_message(&mut self, kind: u8, text: &[u8]) -> Result<()> {
        let length = u32::try_from(text.len() + 5).map_err(|_| Error::local("command is too long"))?;
        let message = [&[kind][..], &length.to_be_bytes(), text, &[0]].concat();
        let mut rest = &message[..];
        while !rest.is_empty() {
            match self.pg.write(rest) {
                Ok(Step::Done(count)) => rest = &rest[count..],
                Ok(Step::WantRead) => {
                    self.wait(None, None)?;
                }
                Ok(Step::WantWrite) => {
                    self.wait_for(PollFlags::OUT, None, None)?;
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
}
