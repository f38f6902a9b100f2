//! Cancel requests, which nobody waits for: the server, or the network, may be what does not answer.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::server::pq::Canceller;

/// How long the program waits for requests under way before it ends. One that gets through takes a round
/// trip or two.
const PATIENCE: Duration = Duration::from_secs(1);

static UNDER_WAY: Mutex<usize> = Mutex::new(0);
static CHANGED: Condvar = Condvar::new();

/// Sends a request, on a thread of its own: libpq's function may wait as long as TCP does.
pub fn start(canceller: Canceller) {
    let under_way = Counted::new();
    // Without a thread there is no request, and the server finds out when it writes.
    let _ = std::thread::Builder::new().spawn(move || {
        canceller.cancel();
        drop(under_way);
    });
}

/// Waits until all requests were sent, but not for long. False if some are still under way: they end with
/// the process.
pub fn wait() -> bool {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = CHANGED.wait_timeout_while(under_way, PATIENCE, |number| *number > 0);
    *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
}

/// A request, as long as it is under way.
struct Counted;

impl Counted {
    fn new() -> Self {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        CHANGED.notify_all();
    }
}
