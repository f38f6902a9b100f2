//! The connection's socket, and the wait for a client that is slow to read.
//!
//! Bytes go past libpq's send buffer; where nothing is encrypted on the way, file bytes go from the page
//! cache to the socket without a copy in user space.
//!
//! The rules are those of `secure_write` (be-secure.c): the socket does not block, a wait is for the
//! socket, the latch and the postmaster, and inside a message only termination is heard. But for one
//! thing: process signal barriers are served. DROP DATABASE, DROP TABLESPACE and, on a standby, the replay
//! of both wait until every process has done so, and a client may not read for hours, if
//! `pg_parallel_backup.client_timeout` lets it.

use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{PgLogLevel, pg_sys};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};

use crate::pg::{settings, shim};

/// What is asked for of a Unix socket's send buffer.
const SEND_BUFFER: usize = 256 * 1024;

/// How much of a hole is filled at once.
const ZEROES: [u8; 16 * 1024] = [0; 16 * 1024];

/// The client is gone. The process ends at the next look at interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLost;

/// A plain connection's socket.
#[derive(Debug)]
pub struct Socket(BorrowedFd<'static>);

impl Socket {
    /// The session's socket, where it carries bytes as they are; `None` under TLS or GSSAPI
    /// encryption.
    #[allow(unsafe_code)]
    pub fn plain() -> Option<Self> {
        // SAFETY: the entry is this process's own. The socket stays open as long as the process.
        unsafe {
            let entry = pg_sys::MyBEEntry.as_ref()?;
            let encrypted = entry.st_ssl
                || (entry.st_gss && !entry.st_gssstatus.is_null() && (*entry.st_gssstatus).gss_enc);
            let socket = shim::ppb_socket();
            (!encrypted && socket >= 0).then(|| Self(BorrowedFd::borrow_raw(socket)))
        }
    }

    /// Lets the kernel keep more than it does by default of what the client has not read yet, on a Unix socket, up to
    /// `net.core.wmem_max`: a whole chunk and what follows it, so that neither side waits for the other in the middle of
    /// one. That of a TCP connection grows by itself, and would not any more.
    pub fn widen(&self) {
        // Linux gives twice what it is asked for, and says so.
        let is_narrow = sockopt::socket_send_buffer_size(self.0).is_ok_and(|size| size < 2 * SEND_BUFFER);
        if is_narrow && sockopt::socket_domain(self.0) == Ok(AddressFamily::UNIX) {
            // Without it all goes on as well, with more waits.
            let _: Result<(), Errno> = sockopt::set_socket_send_buffer_size(self.0, SEND_BUFFER);
        }
    }

    /// Sends bytes, after what libpq still holds. `more` says that the rest of a message follows.
    pub fn send(&self, bytes: &[u8], more: bool) -> Result<(), ConnectionLost> {
        flush()?;
        self.send_bytes(bytes, if more { libc::MSG_MORE } else { 0 })
    }

    /// Sends bytes of the message.
    pub fn continue_with(&self, bytes: &[u8]) -> Result<(), ConnectionLost> {
        self.send_bytes(bytes, 0)
    }

    /// Sends zeroes of the message.
    pub fn send_zeroes(&self, mut length: usize) -> Result<(), ConnectionLost> {
        while length > 0 {
            let part = length.min(ZEROES.len());
            self.send_bytes(&ZEROES[..part], 0)?;
            length -= part;
        }
        Ok(())
    }

    /// Sends up to `length` bytes of a file from `offset`, straight from the page cache. Returns
    /// how many went out, fewer where the file ends, and the error of a read that failed; the
    /// rest of the message is still owed.
    #[allow(unsafe_code)]
    pub fn send_file(
        &self,
        file: &File,
        offset: u64,
        length: usize,
    ) -> Result<(usize, Option<io::Error>), ConnectionLost> {
        still_there()?;
        let mut sent = 0;
        let mut stall = Stall::default();
        let mut at = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
        while sent < length {
            // SAFETY: both descriptors are open, and the offset is this frame's own.
            let count =
                unsafe { libc::sendfile(self.0.as_raw_fd(), file.as_raw_fd(), &mut at, length - sent) };
            match usize::try_from(count) {
                Ok(0) => break,
                Ok(count) => {
                    sent += count;
                    stall = Stall::default();
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match Trouble::of(&error) {
                        Trouble::Interrupted => {}
                        Trouble::Full => stall.wait()?,
                        Trouble::Lost => return Err(lost()),
                        Trouble::Other => return Ok((sent, Some(error))),
                    }
                }
            }
        }
        Ok((sent, None))
    }

    #[allow(unsafe_code)]
    fn send_bytes(&self, mut bytes: &[u8], flags: i32) -> Result<(), ConnectionLost> {
        still_there()?;
        let mut stall = Stall::default();
        while !bytes.is_empty() {
            // SAFETY: the bytes are readable for their length.
            let count = unsafe {
                libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags | libc::MSG_NOSIGNAL)
            };
            match usize::try_from(count) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    stall = Stall::default();
                }
                Err(_) => match Trouble::of(&io::Error::last_os_error()) {
                    Trouble::Interrupted => {}
                    Trouble::Full => stall.wait()?,
                    Trouble::Lost | Trouble::Other => return Err(lost()),
                },
            }
        }
        Ok(())
    }
}

/// Sends bytes past libpq's send buffer, encrypted if the connection is, after what it still holds.
#[allow(unsafe_code)]
pub fn send_encrypted(mut bytes: &[u8]) -> Result<(), ConnectionLost> {
    flush()?;
    let mut stall = Stall::default();
    while !bytes.is_empty() {
        // SAFETY: the session has a client; the bytes are readable for their length, and the same ones
        // are given again where nothing was taken.
        let count = unsafe { guarded(|| shim::ppb_secure_write(bytes.as_ptr().cast(), bytes.len())) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => {
                bytes = &bytes[count..];
                stall = Stall::default();
            }
            _ => match Trouble::of(&io::Error::last_os_error()) {
                Trouble::Interrupted if count < 0 => {}
                // That TLS waits for the client to say something first cannot be: sessions are not
                // renegotiated.
                Trouble::Full if count < 0 => stall.wait()?,
                _ => return Err(lost()),
            },
        }
    }
    Ok(())
}

/// Sends what libpq still holds.
#[allow(unsafe_code)]
pub fn flush() -> Result<(), ConnectionLost> {
    still_there()?;
    let mut stall = Stall::default();
    // SAFETY: libpq's methods are set for every session; each is called by itself.
    unsafe {
        while shim::ppb_is_send_pending() {
            if guarded(|| shim::ppb_flush_if_writable()) != 0 {
                return Err(ConnectionLost);
            }
            if shim::ppb_is_send_pending() {
                stall.wait()?;
            }
        }
    }
    Ok(())
}

/// A client that takes nothing, and since when.
#[derive(Default)]
struct Stall(Option<Instant>);

impl Stall {
    /// Waits until the socket takes more. The process may end here: on termination, since a stuck
    /// client must not hold it back, and with the postmaster. A client that has taken nothing for as long as
    /// `pg_parallel_backup.client_timeout` is given up as one that is gone.
    #[allow(unsafe_code)]
    fn wait(&mut self) -> Result<(), ConnectionLost> {
        let since = *self.0.get_or_insert_with(Instant::now);
        let left = settings::client_timeout().map(|timeout| timeout.saturating_sub(since.elapsed()));
        // Rounded up, so that what is left is never none before its time.
        let timeout = left.map_or(-1, |left| c_long::try_from(left.as_millis() + 1).unwrap_or(c_long::MAX));
        // SAFETY: a session's wait set is for its socket, latch and postmaster. Barriers are served with
        // nothing said to the client; ProcessClientWriteInterrupt ends the process or returns.
        unsafe {
            guarded(|| shim::ppb_serve_barriers());
            let events = guarded(|| shim::ppb_wait_writable(timeout));
            if events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                pgrx::ereport!(
                    FATAL,
                    pgrx::PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
                    "terminating connection due to unexpected postmaster exit"
                );
            }
            if events & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
                guarded(|| shim::ppb_serve_barriers());
                pg_sys::ProcessClientWriteInterrupt(true);
            }
            if events == 0 && left.is_some() {
                // To the log alone: the client is owed the rest of a message.
                pgrx::ereport!(
                    PgLogLevel::LOG_SERVER_ONLY,
                    pgrx::PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
                    "terminating parallel backup transfer due to client timeout"
                );
                return Err(lost());
            }
        }
        Ok(())
    }
}

/// What a failed call on the socket means.
enum Trouble {
    Interrupted,
    Full,
    Lost,
    Other,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINTR) => Self::Interrupted,
            Some(libc::EAGAIN) => Self::Full,
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ETIMEDOUT | libc::ECONNABORTED) => {
                Self::Lost
            }
            _ => Self::Other,
        }
    }
}

/// Fails where the client was given up before. It is owed the rest of a message, so anything else would be taken for
/// that; and the socket may well take some more, since it is not said to be writable before most of it is free.
#[allow(unsafe_code)]
fn still_there() -> Result<(), ConnectionLost> {
    // SAFETY: a flag of this process.
    if unsafe { pg_sys::ClientConnectionLost } == 0 { Ok(()) } else { Err(ConnectionLost) }
}

/// Makes the next look at interrupts end the process, as `internal_flush` does.
#[allow(unsafe_code)]
fn lost() -> ConnectionLost {
    // SAFETY: flags of this process, written as a signal handler would.
    unsafe {
        pg_sys::ClientConnectionLost = 1;
        pg_sys::InterruptPending = 1;
    }
    ConnectionLost
}
