//! What has to be given back when a backend ends, however it ends.

use std::cell::Cell;

use pgrx::pg_sys;

/// Calls `handler` before this backend leaves shared memory, on FATAL too, where nothing unwinds
/// and no `Drop` runs. Once in a backend, however often it is asked for.
///
/// The handler must not raise an error, and may touch only what no interrupted code holds
/// borrowed.
#[allow(unsafe_code)]
pub fn on_exit(handler: fn()) {
    thread_local! {
        static REGISTERED: Cell<bool> = const { Cell::new(false) };
    }
    HANDLER.set(Some(handler));
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a static function.
        unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::from(0usize)) }
    }
}

thread_local! {
    static HANDLER: Cell<Option<fn()>> = const { Cell::new(None) };
}

#[pgrx::pg_guard]
extern "C-unwind" fn callback(_code: std::ffi::c_int, _arg: pg_sys::Datum) {
    if let Some(handler) = HANDLER.get() {
        handler();
    }
}
