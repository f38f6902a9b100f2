//! The bytes of a TLS connection, read and written without libpq's buffers: by OpenSSL's own
//! functions, of the library that libpq has loaded. libpq hands out the connection's `SSL` for such
//! purposes (`PQsslStruct`); its descriptor and its callbacks stay as libpq has set them.
//!
//! The functions are looked up when the program runs: it needs no OpenSSL of its own, and where libpq
//! was built without, or with another library, nothing is found and libpq does it all.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::io::{self, ErrorKind};
use std::mem::transmute;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::os::symbol;

/// OpenSSL's names for how a call went (SSL_get_error(3)).
const SSL_ERROR_SSL: c_int = 1;
const SSL_ERROR_WANT_READ: c_int = 2;
const SSL_ERROR_WANT_WRITE: c_int = 3;
const SSL_ERROR_SYSCALL: c_int = 5;
const SSL_ERROR_ZERO_RETURN: c_int = 6;

/// What a read or a write came to.
#[derive(Debug)]
pub enum Step {
    /// So many bytes; a read of none is the end of the stream.
    Done(usize),
    /// The socket must become readable first.
    WantRead,
    /// It must become writable first.
    WantWrite,
}

type Read = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> c_int;
type Write = unsafe extern "C" fn(*mut c_void, *const c_void, c_int) -> c_int;
type GetError = unsafe extern "C" fn(*const c_void, c_int) -> c_int;
type ClearErrors = unsafe extern "C" fn();
type NextError = unsafe extern "C" fn() -> c_ulong;
type Reason = unsafe extern "C" fn(c_ulong) -> *const c_char;

/// OpenSSL's functions.
struct Functions {
    read: Read,
    write: Write,
    get_error: GetError,
    clear_errors: ClearErrors,
    next_error: NextError,
    reason: Reason,
}

/// A connection's TLS.
#[derive(Clone, Copy)]
pub struct Tls {
    ssl: NonNull<c_void>,
    functions: &'static Functions,
}

impl Tls {
    /// # Safety
    /// `ssl` must be NULL or an `SSL` of the OpenSSL library that this program has loaded, which
    /// outlives the value and is used by nobody else during a call.
    pub unsafe fn new(ssl: *mut c_void) -> Option<Self> {
        Some(Self { ssl: NonNull::new(ssl)?, functions: functions()? })
    }

    /// Reads what there is of the bytes that were sent.
    pub fn read(self, buffer: &mut [u8]) -> io::Result<Step> {
        let most = c_int::try_from(buffer.len()).unwrap_or(c_int::MAX);
        // SAFETY: by the contract of `new`; the buffer is writable for that length.
        self.run(|| unsafe { (self.functions.read)(self.ssl.as_ptr(), buffer.as_mut_ptr().cast(), most) })
    }

    /// Writes at least one of the bytes. After `Want...` the same ones must be offered again. That the other side has
    /// closed the connection, which reading takes for its end, is an error: whoever writes would try for ever.
    pub fn write(self, bytes: &[u8]) -> io::Result<Step> {
        let most = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        // SAFETY: by the contract of `new`; the bytes are readable for that length.
        let step =
            self.run(|| unsafe { (self.functions.write)(self.ssl.as_ptr(), bytes.as_ptr().cast(), most) })?;
        if matches!(step, Step::Done(0)) {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "SSL connection has been closed unexpectedly"));
        }
        Ok(step)
    }

    fn run(self, call: impl FnOnce() -> c_int) -> io::Result<Step> {
        // SAFETY: the functions have no preconditions but those of `new`. The queue of errors is this
        // thread's, and what others have left in it would be taken for this call's.
        unsafe { (self.functions.clear_errors)() };
        // The end of the socket leaves it as it is.
        errno::set_errno(errno::Errno(0));
        let count = call();
        if let Ok(count @ 1..) = usize::try_from(count) {
            return Ok(Step::Done(count));
        }
        let system = io::Error::last_os_error();
        // SAFETY: as above.
        match unsafe { (self.functions.get_error)(self.ssl.as_ptr(), count) } {
            SSL_ERROR_WANT_READ => Ok(Step::WantRead),
            SSL_ERROR_WANT_WRITE => Ok(Step::WantWrite),
            SSL_ERROR_ZERO_RETURN => Ok(Step::Done(0)),
            // Without a number the socket has ended without a farewell.
            SSL_ERROR_SYSCALL if count < 0 && system.raw_os_error() != Some(0) => Err(system),
            SSL_ERROR_SYSCALL => Ok(Step::Done(0)),
            SSL_ERROR_SSL => Err(io::Error::other(format!("SSL error: {}", self.reason()))),
            other => Err(io::Error::other(format!("unrecognized SSL error code: {other}"))),
        }
    }

    fn reason(self) -> String {
        // SAFETY: as in `run`; the text is static.
        unsafe {
            let code = (self.functions.next_error)();
            let reason = (self.functions.reason)(code);
            if reason.is_null() {
                format!("code {code}")
            } else {
                CStr::from_ptr(reason).to_string_lossy().into_owned()
            }
        }
    }
}

fn functions() -> Option<&'static Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    FUNCTIONS
        .get_or_init(|| {
            // SAFETY: the signatures are those of OpenSSL's manual, the same from 1.1.1 on, and a
            // function pointer has the size and the form of what dlsym returns.
            unsafe {
                Some(Functions {
                    read: transmute::<NonNull<c_void>, Read>(symbol(c"SSL_read")?),
                    write: transmute::<NonNull<c_void>, Write>(symbol(c"SSL_write")?),
                    get_error: transmute::<NonNull<c_void>, GetError>(symbol(c"SSL_get_error")?),
                    clear_errors: transmute::<NonNull<c_void>, ClearErrors>(symbol(c"ERR_clear_error")?),
                    next_error: transmute::<NonNull<c_void>, NextError>(symbol(c"ERR_get_error")?),
                    reason: transmute::<NonNull<c_void>, Reason>(symbol(c"ERR_reason_error_string")?),
                })
            }
        })
        .as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn end_of_socket(_: *mut c_void, _: *mut c_void, _: c_int) -> c_int {
        -1
    }
    unsafe extern "C" fn refuse(_: *mut c_void, _: *const c_void, _: c_int) -> c_int {
        errno::set_errno(errno::Errno(libc::EPIPE));
        -1
    }
    unsafe extern "C" fn take_nothing(_: *mut c_void, _: *const c_void, _: c_int) -> c_int {
        -1
    }
    unsafe extern "C" fn syscall(_: *const c_void, _: c_int) -> c_int {
        SSL_ERROR_SYSCALL
    }
    unsafe extern "C" fn zero_return(_: *const c_void, _: c_int) -> c_int {
        SSL_ERROR_ZERO_RETURN
    }
    unsafe extern "C" fn clear() {}
    unsafe extern "C" fn next() -> c_ulong {
        0
    }
    unsafe extern "C" fn reason(_: c_ulong) -> *const c_char {
        std::ptr::null()
    }

    #[test]
    fn an_error_from_before_is_not_this_calls() {
        static FUNCTIONS: Functions = Functions {
            read: end_of_socket,
            write: refuse,
            get_error: syscall,
            clear_errors: clear,
            next_error: next,
            reason,
        };
        let tls = Tls { ssl: NonNull::dangling(), functions: &FUNCTIONS };
        errno::set_errno(errno::Errno(libc::EIO));
        assert!(matches!(tls.read(&mut [0; 8]), Ok(Step::Done(0))));
        let error = tls.write(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn nobody_goes_on_to_write_what_nobody_takes() {
        for get_error in [syscall, zero_return] {
            let functions: &'static Functions = Box::leak(Box::new(Functions {
                read: end_of_socket,
                write: take_nothing,
                get_error,
                clear_errors: clear,
                next_error: next,
                reason,
            }));
            let tls = Tls { ssl: NonNull::dangling(), functions };
            assert!(matches!(tls.read(&mut [0; 8]), Ok(Step::Done(0))));
            assert_eq!(tls.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
        }
    }
}
