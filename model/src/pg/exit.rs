//! What is called when a process ends.

use std::cell::Cell;

loom::thread_local! {
    static HANDLER: Cell<Option<fn()>> = Cell::new(None);
}

/// Registers it; the last one counts.
pub fn on_exit(handler: fn()) {
    HANDLER.with(|own| own.set(Some(handler)));
}

/// Ends this process.
pub fn leave() {
    if let Some(handler) = HANDLER.with(Cell::take) {
        handler();
    }
}
