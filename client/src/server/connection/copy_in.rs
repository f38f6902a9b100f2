//! Commands that take a COPY.

use rustix::event::PollFlags;

use super::{Session, unexpected};
use crate::error::Result;
use crate::server::pq::{Sending, Status};

/// Bytes in a CopyData message.
const MESSAGE: usize = 64 << 10;

impl Session {
    /// Sends a command that takes a COPY and answers with nothing, and all that `read` yields, which says how much
    /// of a buffer it has filled, nothing at the end.
    pub fn copy_in(&mut self, command: &[u8], read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        self.send(command)?;
        if self.result()?.is_none_or(|answer| answer.status() != Status::PGRES_COPY_IN) {
            return Err(unexpected("no COPY"));
        }
        self.set_nonblocking(true)?;
        self.put_all(read)?;
        self.set_nonblocking(false)?;
        self.finish()
    }

    fn put_all(&mut self, mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        let mut buffer = vec![0; MESSAGE];
        loop {
            let count = read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.put(|session| session.pg.offer_copy_data(&buffer[..count]))?;
            // libpq would keep all that the socket does not take: its buffer grows.
            self.put(|session| session.pg.flush())?;
        }
        self.put(|session| session.pg.offer_copy_end())?;
        self.put(|session| session.pg.flush())
    }

    /// Sends something, as soon as the socket takes it. What the server says meanwhile is read: it might wait for
    /// that.
    fn put(&mut self, mut send: impl FnMut(&mut Self) -> Sending) -> Result<()> {
        loop {
            match send(self) {
                Sending::Done => return self.abort.check(),
                Sending::Error => return Err(self.lost("could not send COPY data")),
                Sending::Full => {
                    let ready = self.wait_for(PollFlags::IN | PollFlags::OUT, None, None)?;
                    if ready && !self.pg.consume_input() {
                        return Err(self.lost("could not receive data"));
                    }
                    if self.pg.flush() == Sending::Error {
                        return Err(self.lost("could not send COPY data"));
                    }
                }
            }
        }
    }

    fn set_nonblocking(&mut self, nonblocking: bool) -> Result<()> {
        if self.pg.set_nonblocking(nonblocking) {
            Ok(())
        } else {
            Err(self.lost("could not set the connection's mode"))
        }
    }
}
