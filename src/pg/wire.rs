//! Messages to the client.

use pgrx::pg_sys;

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

/// Sends a message. It is complete on the wire, or the connection is lost: a write that blocks
/// gives way to termination only (`ProcessClientWriteInterrupt`). A lost connection ends the
/// process at the next look at interrupts.
#[allow(unsafe_code)]
pub fn put_message(tag: u8, payload: &[u8]) {
    let length = i32::try_from(payload.len()).unwrap_or(i32::MAX);
    let mut message = pg_sys::StringInfoData {
        data: payload.as_ptr().cast_mut().cast(),
        len: length,
        maxlen: length,
        cursor: i32::from(tag),
    };
    // SAFETY: pq_endmessage_reuse hands type, bytes and length to pq_putmessage and changes
    // nothing; the payload outlives the call.
    unsafe { pg_sys::pq_endmessage_reuse(&mut message) }
}
