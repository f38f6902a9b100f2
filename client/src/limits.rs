//! How many files this process may have open, and whether a backup gets by with that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Result};
use crate::output::directory::target::OPEN_DIRECTORIES;

/// What each connection needs at most: its socket, the file that it writes, and a cancel request.
const FOR_CONNECTION: u64 = 3;

/// What else is open: standard streams, pipes, WAL, the manifest, directories that are claimed, configuration
/// that libpq reads.
const BESIDE: u64 = 64;

/// Raises the limit as far as that goes, and fails if that is not far enough.
pub fn allow_files(connections: usize) -> Result<()> {
    let needed = needed(connections);
    let limit = getrlimit(Resource::Nofile);
    // Each tablespace takes some more, and how many there are only the server knows: all that may be had does no harm.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let most = limit.maximum.or(limit.current).unwrap_or_default();
    Err(Error::local(format!("cannot open enough files for {connections} connections"))
        .with_detail(format!("This backup needs up to {needed} open files; the limit is {most}."))
        .with_hint("Raise the limit (\"ulimit -n\"), or use fewer jobs (-j)."))
}

fn needed(connections: usize) -> u64 {
    FOR_CONNECTION * connections as u64 + OPEN_DIRECTORIES as u64 + BESIDE
}
