//! libpq, safe. Unsafe code is here, in `tls` and in `os`: each call goes to libpq with pointers that this
//! module owns, and copies out what has to outlive the call.
//!
//! A binding of our own over pq-sys, because the safe ones take commands and values as `str`, and
//! labels, conninfo values and results are bytes in any encoding.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::mem::transmute;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

pub use pq_sys::ExecStatusType as Status;

use crate::os::symbol;
use crate::server::tls::{Step, Tls};

/// A connection. One thread uses it at a time.
pub struct Pg {
    raw: NonNull<pq_sys::PGconn>,
}

// SAFETY: libpq lets any thread use a connection as long as no two do at once, and every method
// that changes it takes `&mut self`; those that take `&self` only read and `Pg` is not Sync.
unsafe impl Send for Pg {}

/// A result of a command that libpq has read.
pub struct PgResult {
    raw: NonNull<pq_sys::PGresult>,
}

// SAFETY: nothing changes a result once libpq has handed it out, and its documentation lets it be passed between threads.
unsafe impl Send for PgResult {}

/// One CopyData message, freed by libpq.
pub struct CopyData {
    raw: NonNull<c_char>,
    length: usize,
}

/// What became of something that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// All of it was taken.
    Done,
    /// The socket takes no more at the moment.
    Full,
    /// The connection is lost.
    Error,
}

/// What PQgetCopyData had to say.
pub enum CopyRead {
    /// A message.
    Data(CopyData),
    /// Nothing complete yet: wait for the socket, then consume input.
    WouldBlock,
    /// The copy is over: ask for the result.
    Done,
    /// It failed.
    Error,
}

/// How far a connection that was begun has come.
pub enum Progress {
    /// It is there.
    Done,
    /// The socket must become readable first.
    WantRead,
    /// It must become writable first.
    WantWrite,
    /// It cannot be made.
    Failed,
}

/// Cancels whatever a connection is running.
pub enum Canceller {
    /// Over a connection that is encrypted as the other is.
    AsConnected(NonNull<c_void>, &'static CancelFunctions),
    /// In the clear: all that libpq had before 17.
    Plain(NonNull<pq_sys::PGcancel>),
}

// SAFETY: the objects have all they need from the connection in them, and any thread may use them.
unsafe impl Send for Canceller {}

/// libpq's functions from 17 on. They are looked up when the program runs, since it is linked with older
/// ones too.
pub struct CancelFunctions {
    create: CreateCancel,
    run: RunCancel,
    finish: FinishCancel,
}

type CreateCancel = unsafe extern "C" fn(*mut pq_sys::PGconn) -> *mut c_void;
type RunCancel = unsafe extern "C" fn(*mut c_void) -> c_int;
type FinishCancel = unsafe extern "C" fn(*mut c_void);

/// A keyword with a value.
pub type Keyword = (CString, CString);

impl Pg {
    /// Connects and waits until that worked or failed; `None` where memory is short. Later
    /// keywords override earlier ones.
    pub fn connect(keywords: &[Keyword]) -> Option<Self> {
        let (names, values) = pointers(keywords);
        // SAFETY: both arrays are NULL-terminated, of equal length, and outlive the call.
        let raw = unsafe { pq_sys::PQconnectdbParams(names.as_ptr(), values.as_ptr(), 0) };
        Self::adopt(raw)
    }

    /// Begins to connect and goes no further: enough for libpq to have worked out all options,
    /// those of a service file included.
    pub fn start(keywords: &[Keyword]) -> Option<Self> {
        let (names, values) = pointers(keywords);
        // SAFETY: as in `connect`.
        let raw = unsafe { pq_sys::PQconnectStartParams(names.as_ptr(), values.as_ptr(), 0) };
        Self::adopt(raw)
    }

    /// Goes on with a connection that was begun, as far as it gets without waiting.
    pub fn poll(&mut self) -> Progress {
        // SAFETY: the connection is live.
        match unsafe { pq_sys::PQconnectPoll(self.raw.as_ptr()) } {
            pq_sys::PostgresPollingStatusType::PGRES_POLLING_OK => Progress::Done,
            pq_sys::PostgresPollingStatusType::PGRES_POLLING_READING => Progress::WantRead,
            pq_sys::PostgresPollingStatusType::PGRES_POLLING_WRITING => Progress::WantWrite,
            _ => Progress::Failed,
        }
    }

    fn adopt(raw: *mut pq_sys::PGconn) -> Option<Self> {
        let raw = NonNull::new(raw)?;
        // SAFETY: the connection is live, and the function has the type that libpq asks for.
        unsafe { pq_sys::PQsetNoticeProcessor(raw.as_ptr(), Some(notice), std::ptr::null_mut()) };
        Some(Self { raw })
    }

    /// Whether the connection is up.
    pub fn is_ok(&self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQstatus(self.raw.as_ptr()) == pq_sys::ConnStatusType::CONNECTION_OK }
    }

    /// Whether it failed because the server wanted a password.
    pub fn needs_password(&self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQconnectionNeedsPassword(self.raw.as_ptr()) != 0 }
    }

    /// The last error, without the newline at its end.
    pub fn error_message(&self) -> String {
        // SAFETY: the connection is live; the string is copied at once.
        unsafe { text(pq_sys::PQerrorMessage(self.raw.as_ptr())) }
    }

    /// Whether what is sent is encrypted on its way.
    pub fn is_encrypted(&self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQsslInUse(self.raw.as_ptr()) != 0 || pq_sys::PQgssEncInUse(self.raw.as_ptr()) != 0 }
    }

    /// A parameter that the server reported.
    pub fn parameter_status(&self, name: &CStr) -> Option<String> {
        // SAFETY: the connection is live; a NULL answer means that there is none.
        unsafe {
            let value = pq_sys::PQparameterStatus(self.raw.as_ptr(), name.as_ptr());
            (!value.is_null()).then(|| text(value))
        }
    }

    /// The server's version number, such as 180006.
    pub fn server_version(&self) -> i32 {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQserverVersion(self.raw.as_ptr()) }
    }

    /// The server process at the other end.
    pub fn backend_pid(&self) -> i32 {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQbackendPID(self.raw.as_ptr()) }
    }

    /// The host that was reached, by the name it was given as.
    pub fn host(&self) -> CString {
        // SAFETY: the connection is live; the string is copied at once.
        unsafe { owned(pq_sys::PQhost(self.raw.as_ptr())) }
    }

    /// The address that was reached, empty for a socket of the file system.
    pub fn host_address(&self) -> CString {
        // SAFETY: as in `host`.
        unsafe { owned(pq_sys::PQhostaddr(self.raw.as_ptr())) }
    }

    /// The port that was reached.
    pub fn port(&self) -> CString {
        // SAFETY: as in `host`.
        unsafe { owned(pq_sys::PQport(self.raw.as_ptr())) }
    }

    /// All options of the connection that have a value.
    pub fn options(&self) -> Vec<Keyword> {
        // SAFETY: the connection is live; `take_options` frees the array.
        unsafe { take_options(pq_sys::PQconninfo(self.raw.as_ptr())) }
    }

    /// Whether the bytes that the connection carries can be read and written past libpq. They can
    /// not under GSSAPI encryption.
    pub fn has_wire(&self) -> bool {
        !self.is_encrypted() || self.tls().is_some()
    }

    /// Reads past libpq. libpq must be idle, with nothing left in its buffer.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        if let Some(tls) = self.tls() {
            return tls.read(buffer);
        }
        let socket = self.socket().ok_or(io::ErrorKind::NotConnected)?;
        match rustix::io::read(socket, buffer) {
            Ok(count) => Ok(Step::Done(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(Step::WantRead),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes past libpq, as `read` reads. After `Want...` the same bytes must be offered again.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Step> {
        if let Some(tls) = self.tls() {
            return tls.write(bytes);
        }
        let socket = self.socket().ok_or(io::ErrorKind::NotConnected)?;
        // The runtime ignores SIGPIPE.
        match rustix::io::write(socket, bytes) {
            Ok(count) => Ok(Step::Done(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(Step::WantWrite),
            Err(error) => Err(error.into()),
        }
    }

    fn tls(&self) -> Option<Tls> {
        // SAFETY: the connection is live; its SSL is OpenSSL's if it has one by that name, lives as
        // long, and is used by libpq only in calls on the same connection.
        unsafe { Tls::new(pq_sys::PQsslStruct(self.raw.as_ptr(), c"OpenSSL".as_ptr())) }
    }

    /// The socket, to wait for.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the connection is live, and while it is borrowed nothing can close the socket.
        unsafe {
            let socket = pq_sys::PQsocket(self.raw.as_ptr());
            (socket >= 0).then(|| BorrowedFd::borrow_raw(socket))
        }
    }

    /// Sends a command. False on failure.
    pub fn send_query(&mut self, command: &CStr) -> bool {
        // SAFETY: the connection is live, the command a C string.
        unsafe { pq_sys::PQsendQuery(self.raw.as_ptr(), command.as_ptr()) != 0 }
    }

    /// Asks for each row as a result of its own. False on failure.
    pub fn set_single_row_mode(&mut self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQsetSingleRowMode(self.raw.as_ptr()) != 0 }
    }

    /// Reads what the socket has. False on failure.
    pub fn consume_input(&mut self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQconsumeInput(self.raw.as_ptr()) != 0 }
    }

    /// Whether `result` would have to wait.
    pub fn is_busy(&mut self) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQisBusy(self.raw.as_ptr()) != 0 }
    }

    /// The next result of the command, `None` after the last.
    pub fn result(&mut self) -> Option<PgResult> {
        // SAFETY: the connection is live; the result is owned from here on.
        NonNull::new(unsafe { pq_sys::PQgetResult(self.raw.as_ptr()) }).map(|raw| PgResult { raw })
    }

    /// The next CopyData message, if one is complete.
    pub fn copy_data(&mut self) -> CopyRead {
        let mut buffer = std::ptr::null_mut();
        // SAFETY: the connection is live; where a length comes back, the buffer is ours to free.
        let length = unsafe { pq_sys::PQgetCopyData(self.raw.as_ptr(), &mut buffer, 1) };
        match (usize::try_from(length), NonNull::new(buffer)) {
            (Ok(0), _) => CopyRead::WouldBlock,
            (Ok(length), Some(raw)) => CopyRead::Data(CopyData { raw, length }),
            (Err(_), _) if length == -1 => CopyRead::Done,
            _ => CopyRead::Error,
        }
    }

    /// Sends a CopyData message. False on failure.
    pub fn put_copy_data(&mut self, data: &[u8]) -> bool {
        let Ok(length) = c_int::try_from(data.len()) else { return false };
        // SAFETY: the connection is live, the slice has that length.
        unsafe {
            pq_sys::PQputCopyData(self.raw.as_ptr(), data.as_ptr().cast(), length) > 0
                && pq_sys::PQflush(self.raw.as_ptr()) == 0
        }
    }

    /// Whether sending gives way where the socket is full, instead of waiting. False on failure.
    pub fn set_nonblocking(&mut self, nonblocking: bool) -> bool {
        // SAFETY: the connection is live.
        unsafe { pq_sys::PQsetnonblocking(self.raw.as_ptr(), c_int::from(nonblocking)) == 0 }
    }

    /// Takes a CopyData message, without waiting. What is `Full` has not taken it.
    pub fn offer_copy_data(&mut self, data: &[u8]) -> Sending {
        let Ok(length) = c_int::try_from(data.len()) else { return Sending::Error };
        // SAFETY: the connection is live, the slice has that length.
        match unsafe { pq_sys::PQputCopyData(self.raw.as_ptr(), data.as_ptr().cast(), length) } {
            1 => Sending::Done,
            0 => Sending::Full,
            _ => Sending::Error,
        }
    }

    /// Ends a copy, without waiting, likewise.
    pub fn offer_copy_end(&mut self) -> Sending {
        // SAFETY: the connection is live; NULL means that no error is to be forced.
        match unsafe { pq_sys::PQputCopyEnd(self.raw.as_ptr(), std::ptr::null()) } {
            1 => Sending::Done,
            0 => Sending::Full,
            _ => Sending::Error,
        }
    }

    /// Sends what was taken, without waiting. What is `Full` has not sent all.
    pub fn flush(&mut self) -> Sending {
        // SAFETY: the connection is live.
        match unsafe { pq_sys::PQflush(self.raw.as_ptr()) } {
            0 => Sending::Done,
            1 => Sending::Full,
            _ => Sending::Error,
        }
    }

    /// Ends a copy. False on failure.
    pub fn put_copy_end(&mut self) -> bool {
        // SAFETY: the connection is live; NULL means that no error is to be forced.
        unsafe {
            pq_sys::PQputCopyEnd(self.raw.as_ptr(), std::ptr::null()) > 0
                && pq_sys::PQflush(self.raw.as_ptr()) == 0
        }
    }

    /// What cancels the connection's commands.
    pub fn canceller(&self) -> Option<Canceller> {
        if let Some(functions) = cancel_functions() {
            // SAFETY: the connection is live; the object is owned from here on.
            let raw = unsafe { (functions.create)(self.raw.as_ptr()) };
            return NonNull::new(raw).map(|raw| Canceller::AsConnected(raw, functions));
        }
        // SAFETY: as above.
        NonNull::new(unsafe { pq_sys::PQgetCancel(self.raw.as_ptr()) }).map(Canceller::Plain)
    }

    /// Ends the conversation without a word, so that closing it cannot wait for a peer that reads nothing.
    pub fn hang_up(&self) {
        if let Some(socket) = self.socket() {
            // The other side may have been quicker.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        // SAFETY: the connection is live, and nobody can use it afterwards.
        unsafe { pq_sys::PQfinish(self.raw.as_ptr()) }
    }
}

impl PgResult {
    /// How the command went.
    pub fn status(&self) -> Status {
        // SAFETY: the result is live.
        unsafe { pq_sys::PQresultStatus(self.raw.as_ptr()) }
    }

    /// The error message in full, without the newline at its end.
    pub fn error_message(&self) -> String {
        // SAFETY: the result is live; the string is copied at once.
        unsafe { text(pq_sys::PQresultErrorMessage(self.raw.as_ptr())) }
    }

    /// The SQLSTATE, if the error came from the server.
    pub fn sqlstate(&self) -> Option<[u8; 5]> {
        // SAFETY: the result is live; a NULL answer means that there is none.
        unsafe {
            let state = pq_sys::PQresultErrorField(self.raw.as_ptr(), c_int::from(b'C'));
            if state.is_null() { None } else { CStr::from_ptr(state).to_bytes().try_into().ok() }
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        // SAFETY: the result is live.
        usize::try_from(unsafe { pq_sys::PQntuples(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// The number of rows that the command tag has, if it has one.
    pub fn affected_rows(&self) -> Option<u64> {
        // SAFETY: the result is live; the string lives as long, and is empty where there is no number.
        unsafe { text(pq_sys::PQcmdTuples(self.raw.as_ptr())) }.parse().ok()
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        // SAFETY: the result is live.
        usize::try_from(unsafe { pq_sys::PQnfields(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// A column's name.
    pub fn column_name(&self, column: usize) -> String {
        let Ok(column) = c_int::try_from(column) else { return String::new() };
        // SAFETY: the result is live; NULL for a column that is not there.
        unsafe { text(pq_sys::PQfname(self.raw.as_ptr(), column)) }
    }

    /// A value's bytes, `None` for NULL and where there is no such value.
    pub fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: the result is live and has this value; libpq gives its length, and it lives as
        // long as the result.
        unsafe {
            if pq_sys::PQgetisnull(self.raw.as_ptr(), row, column) != 0 {
                return None;
            }
            let value = pq_sys::PQgetvalue(self.raw.as_ptr(), row, column);
            let length = usize::try_from(pq_sys::PQgetlength(self.raw.as_ptr(), row, column)).ok()?;
            Some(std::slice::from_raw_parts(value.cast(), length))
        }
    }
}

impl fmt::Debug for PgResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgResult({:?})", self.status())
    }
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: the result is live, and nobody can use it afterwards.
        unsafe { pq_sys::PQclear(self.raw.as_ptr()) }
    }
}

impl std::ops::Deref for CopyData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: libpq allocated that many bytes for us.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().cast(), self.length) }
    }
}

impl Drop for CopyData {
    fn drop(&mut self) {
        // SAFETY: libpq allocated it, and nobody can use it afterwards.
        unsafe { pq_sys::PQfreemem(self.raw.as_ptr().cast()) }
    }
}

impl Canceller {
    /// Asks the server to cancel, and waits until it has heard. What comes of it shows on the connection.
    pub fn cancel(&self) {
        match self {
            // SAFETY: the object is live, and nobody else uses it.
            Self::AsConnected(raw, functions) => unsafe {
                (functions.run)(raw.as_ptr());
            },
            Self::Plain(raw) => {
                let mut message: [c_char; 256] = [0; 256];
                // SAFETY: the object is live, and the buffer has the length that is passed.
                unsafe { pq_sys::PQcancel(raw.as_ptr(), message.as_mut_ptr(), 256) };
            }
        }
    }
}

impl Drop for Canceller {
    fn drop(&mut self) {
        match self {
            // SAFETY: the object is live, and nobody can use it afterwards.
            Self::AsConnected(raw, functions) => unsafe { (functions.finish)(raw.as_ptr()) },
            // SAFETY: as above.
            Self::Plain(raw) => unsafe { pq_sys::PQfreeCancel(raw.as_ptr()) },
        }
    }
}

fn cancel_functions() -> Option<&'static CancelFunctions> {
    static FUNCTIONS: OnceLock<Option<CancelFunctions>> = OnceLock::new();
    FUNCTIONS
        .get_or_init(|| {
            // SAFETY: the signatures are those of libpq-fe.h, PGcancelConn being opaque, and a function
            // pointer has the size and the form of what dlsym returns.
            unsafe {
                Some(CancelFunctions {
                    create: transmute::<NonNull<c_void>, CreateCancel>(symbol(c"PQcancelCreate")?),
                    run: transmute::<NonNull<c_void>, RunCancel>(symbol(c"PQcancelBlocking")?),
                    finish: transmute::<NonNull<c_void>, FinishCancel>(symbol(c"PQcancelFinish")?),
                })
            }
        })
        .as_ref()
}

/// The options in a connection string or URI that have a value.
pub fn parse_conninfo(conninfo: &CStr) -> Result<Vec<Keyword>, String> {
    let mut message = std::ptr::null_mut();
    // SAFETY: the string is a C string; the message, if any, is ours to free.
    unsafe {
        let options = pq_sys::PQconninfoParse(conninfo.as_ptr(), &mut message);
        if options.is_null() {
            let complaint = text(message);
            pq_sys::PQfreemem(message.cast());
            return Err(complaint);
        }
        Ok(take_options(options))
    }
}

/// The options that the environment and a default service give.
pub fn default_options() -> Vec<Keyword> {
    // SAFETY: `take_options` frees the array.
    unsafe { take_options(pq_sys::PQconndefaults()) }
}

/// Copies an array of options and frees it.
///
/// # Safety
/// The array must be one that libpq allocated, or NULL.
unsafe fn take_options(options: *mut pq_sys::PQconninfoOption) -> Vec<Keyword> {
    let mut taken = Vec::new();
    if options.is_null() {
        return taken;
    }
    // SAFETY: the array ends with an entry whose keyword is NULL.
    unsafe {
        let mut option = options;
        while !(*option).keyword.is_null() {
            if !(*option).val.is_null() && *(*option).val != 0 {
                taken.push((owned((*option).keyword), owned((*option).val)));
            }
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(options);
    }
    taken
}

/// Arrays of pointers, NULL-terminated.
fn pointers(keywords: &[Keyword]) -> (Vec<*const c_char>, Vec<*const c_char>) {
    let end = std::iter::once(std::ptr::null());
    (
        keywords.iter().map(|(name, _)| name.as_ptr()).chain(end.clone()).collect(),
        keywords.iter().map(|(_, value)| value.as_ptr()).chain(end).collect(),
    )
}

/// # Safety
/// The pointer must be NULL or a C string.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by the function's contract.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().trim_end().to_owned()
}

/// # Safety
/// The pointer must be NULL or a C string.
unsafe fn owned(string: *const c_char) -> CString {
    if string.is_null() {
        return CString::default();
    }
    // SAFETY: by the function's contract.
    unsafe { CStr::from_ptr(string) }.to_owned()
}

/// Notices go where all messages go.
unsafe extern "C" fn notice(_: *mut c_void, message: *const c_char) {
    // SAFETY: libpq passes a C string.
    let message = unsafe { text(message) };
    // A panic must not unwind into libpq; there is nobody to tell about one either.
    let _ = std::panic::catch_unwind(|| crate::report::print(&message));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conninfo_is_parsed_by_libpq() {
        let mut options = parse_conninfo(c"host=a,b port=5433 application_name='x y' dbname=''").unwrap();
        options.sort();
        let pairs: Vec<_> = options.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [(c"application_name", c"x y"), (c"host", c"a,b"), (c"port", c"5433")]);
        assert!(parse_conninfo(c"nonsense").unwrap_err().contains("missing \"=\""));
    }
}
