//! Messages to the client.

use std::cell::Cell;
use std::ffi::c_char;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::pg::shim;
use crate::pg::socket::{self, ConnectionLost};

/// Message types of the frontend/backend protocol.
pub mod tag {
    /// RowDescription.
    pub const ROW_DESCRIPTION: u8 = b'T';
    /// DataRow.
    pub const DATA_ROW: u8 = b'D';
    /// CommandComplete.
    pub const COMMAND_COMPLETE: u8 = b'C';
    /// CopyOutResponse.
    pub const COPY_OUT: u8 = b'H';
    /// CopyData.
    pub const COPY_DATA: u8 = b'd';
    /// CopyDone.
    pub const COPY_DONE: u8 = b'c';
}

/// How much is gathered before it is sent: libpq's own buffer has this size.
const GATHERED: usize = 8192;

/// Sends a message, with others that are as short. It is complete on the wire before another is, or the
/// connection is lost, which ends the process at the next look at interrupts.
#[allow(unsafe_code)]
pub fn put_message(tag: u8, payload: &[u8]) {
    thread_local! {
        static SINCE_FLUSH: Cell<usize> = const { Cell::new(0) };
    }
    // SAFETY: the payload is copied.
    unsafe {
        guarded(|| shim::ppb_put_message(tag as c_char, payload.as_ptr().cast(), payload.len()));
    }
    let gathered = SINCE_FLUSH.get() + payload.len();
    SINCE_FLUSH.set(gathered);
    if gathered >= GATHERED {
        SINCE_FLUSH.set(0);
        // The next look at interrupts says that the client is gone.
        let _: Result<(), ConnectionLost> = socket::flush();
    }
}
