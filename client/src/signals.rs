//! Signals: which end the backup, and how; which are none of our business.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::abort::Abort;
use crate::error::{Error, Kind, Result};
use crate::os;
use crate::output::cleanup::Cleanup;
use crate::report;
use crate::server::farewell;

/// Ends the backup on the first signal, so that it is cleaned up, and on the second cleans up at once,
/// whatever the other threads wait for. `interrupted` is what is said then.
pub fn watch(abort: &Arc<Abort>, cleanup: &Arc<Cleanup>, interrupted: &'static str) -> Result<()> {
    // A file that would be longer than the user's limit is then an error like any other (EFBIG). SIGPIPE
    // is ignored by the runtime.
    os::ignore(SIGXFSZ);
    // Ignored from the beginning: by nohup, or by a shell for what a script puts into the background. Who
    // did that wants them to have no effect.
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !os::is_ignored(*signal));
    let mut signals = Signals::new(heard)
        .map_err(|error| Error::local(format!("could not set up signal handlers: {error}")))?;
    let interrupted = move || Error::new(Kind::Interrupted, interrupted);
    let (abort, cleanup) = (Arc::clone(abort), Arc::clone(cleanup));
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // Nothing is there to be cleaned up, and nobody looks.
            if !abort.expects_cleanup() {
                os::exit(1);
            }
            if abort.check().is_err() {
                let cause = abort.cause().unwrap_or_else(interrupted);
                let cause = cleanup.explain(cause);
                abort.report(&cause);
                // Waits for whoever is at it already. A signal more changes nothing, but for SIGKILL.
                cleanup.end(&cause);
                if cleanup.is_suspended() {
                    os::exit(i32::from(crate::SUSPENDED));
                }
                farewell::say();
                os::exit(1);
            }
            abort.fail(interrupted());
        }
    });
    Ok(())
}

/// Reports a panic as what it is, in whatever thread; the thread's owner ends the backup.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
        let place = panic.location().map_or_else(String::new, |place| format!(" ({place})"));
        report::bug(&format!("{what}{place}"));
    }));
}
