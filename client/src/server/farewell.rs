//! What the server is to be told when the program ends before the thread that made a backup gets to it: a second signal
//! ends it, whatever that waits for.

use std::sync::{Mutex, PoisonError};

/// To be done, and bounded in time by whoever has made it.
type Farewell = Box<dyn FnOnce() + Send>;

static FAREWELL: Mutex<Option<Farewell>> = Mutex::new(None);

/// From now on there is something to say.
pub fn prepare(farewell: impl FnOnce() + Send + 'static) {
    *lock() = Some(Box::new(farewell));
}

/// There is nothing to say any more.
pub fn forget() {
    lock().take();
}

/// Says it, once.
pub fn say() {
    let farewell = lock().take();
    if let Some(farewell) = farewell {
        farewell();
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Farewell>> {
    FAREWELL.lock().unwrap_or_else(PoisonError::into_inner)
}
