//! The connection's socket, written to past libpq's send buffer: file bytes go from the page cache
//! to the socket without a copy in user space.
//!
//! Only where nothing is encrypted on the way. The rules are those of `secure_write`
//! (be-secure.c): the socket does not block, a wait is for the socket, the latch and the
//! postmaster, and inside a message only termination is heard.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

/// What the bindings lack: libpq/libpq.h.
mod external {
    use std::ffi::{c_char, c_int};

    use pgrx::pg_sys;

    /// PQcommMethods, the same in every supported version.
    #[repr(C)]
    pub struct PqCommMethods {
        pub comm_reset: unsafe extern "C-unwind" fn(),
        pub flush: unsafe extern "C-unwind" fn() -> c_int,
        pub flush_if_writable: unsafe extern "C-unwind" fn() -> c_int,
        pub is_send_pending: unsafe extern "C-unwind" fn() -> bool,
        pub putmessage: unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int,
        pub putmessage_noblock: unsafe extern "C-unwind" fn(c_char, *const c_char, usize),
    }

    #[allow(unsafe_code)]
    unsafe extern "C" {
        pub static PqCommMethods: *const PqCommMethods;
        pub static FeBeWaitSet: *mut pg_sys::WaitEventSet;
    }

    #[allow(unsafe_code)]
    unsafe extern "C-unwind" {
        pub fn secure_write(port: *mut pg_sys::Port, bytes: *const std::ffi::c_void, length: usize) -> isize;
    }
}

/// FeBeWaitSetSocketPos: the socket's place in FeBeWaitSet.
const SOCKET_POSITION: i32 = 0;

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
        // SAFETY: a session with a client has both, and its socket is the first field of Port in
        // every version. The socket stays open as long as the process.
        unsafe {
            let entry = pg_sys::MyBEEntry.as_ref()?;
            let encrypted = entry.st_ssl
                || (entry.st_gss && !entry.st_gssstatus.is_null() && (*entry.st_gssstatus).gss_enc);
            if encrypted || pg_sys::MyProcPort.is_null() {
                return None;
            }
            let socket = *pg_sys::MyProcPort.cast::<std::ffi::c_int>();
            (socket >= 0).then(|| Self(BorrowedFd::borrow_raw(socket)))
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
        let mut sent = 0;
        let mut at = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
        while sent < length {
            // SAFETY: both descriptors are open, and the offset is this frame's own.
            let count =
                unsafe { libc::sendfile(self.0.as_raw_fd(), file.as_raw_fd(), &mut at, length - sent) };
            match usize::try_from(count) {
                Ok(0) => break,
                Ok(count) => sent += count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match Trouble::of(&error) {
                        Trouble::Interrupted => {}
                        Trouble::Full => self.wait(),
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
        while !bytes.is_empty() {
            // SAFETY: the bytes are readable for their length.
            let count = unsafe {
                libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags | libc::MSG_NOSIGNAL)
            };
            match usize::try_from(count) {
                Ok(count) => bytes = &bytes[count..],
                Err(_) => match Trouble::of(&io::Error::last_os_error()) {
                    Trouble::Interrupted => {}
                    Trouble::Full => self.wait(),
                    Trouble::Lost | Trouble::Other => return Err(lost()),
                },
            }
        }
        Ok(())
    }

    /// Waits until the socket takes more. The process may end here: on termination, since a stuck
    /// client must not hold it back, and with the postmaster.
    #[allow(unsafe_code)]
    fn wait(&self) {
        let mut event = pg_sys::WaitEvent::default();
        // SAFETY: the wait set has the socket, the latch and the postmaster's death, and room for
        // one event is given. ProcessClientWriteInterrupt ends the process or returns.
        unsafe {
            pg_sys::ModifyWaitEvent(
                external::FeBeWaitSet,
                SOCKET_POSITION,
                pg_sys::WL_SOCKET_WRITEABLE,
                std::ptr::null_mut(),
            );
            pg_sys::WaitEventSetWait(
                external::FeBeWaitSet,
                -1,
                &mut event,
                1,
                pg_sys::WaitEventClient::WAIT_EVENT_CLIENT_WRITE,
            );
            if event.events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                pgrx::ereport!(
                    FATAL,
                    pgrx::PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
                    "terminating connection due to unexpected postmaster exit"
                );
            }
            if event.events & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
                pg_sys::ProcessClientWriteInterrupt(true);
            }
        }
    }
}

/// Sends bytes past libpq's send buffer, encrypted if the connection is, after what it still holds.
#[allow(unsafe_code)]
pub fn send_encrypted(mut bytes: &[u8]) -> Result<(), ConnectionLost> {
    flush()?;
    while !bytes.is_empty() {
        // SAFETY: the port is the session's; the bytes are readable for their length. The flush
        // before has made the write wait where the socket is full.
        let count = unsafe {
            let port = pg_sys::MyProcPort;
            guarded(|| external::secure_write(port, bytes.as_ptr().cast(), bytes.len()))
        };
        match usize::try_from(count) {
            Ok(count) if count > 0 => bytes = &bytes[count..],
            _ => match Trouble::of(&io::Error::last_os_error()) {
                Trouble::Interrupted | Trouble::Full if count < 0 => {}
                _ => return Err(lost()),
            },
        }
    }
    Ok(())
}

/// Sends what libpq still holds, and puts it into blocking mode.
#[allow(unsafe_code)]
fn flush() -> Result<(), ConnectionLost> {
    // SAFETY: the method table is set for every session.
    let flushed = unsafe {
        let flush = (*external::PqCommMethods).flush;
        guarded(|| flush())
    };
    if flushed == 0 { Ok(()) } else { Err(ConnectionLost) }
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
