//! Entering backup mode, and what is found out by it: the same in a coordinator and in a keeper.

use protocol::Checkpoint;

use crate::backup::registry::Facts;
use crate::cluster::Layout;
use crate::error::Result;
use crate::pg::backup::{self, BackupState};
use crate::pg::incremental::Increment;
use crate::pg::server;

/// A backup that has begun in this process.
#[derive(Debug)]
pub struct Begun {
    /// PostgreSQL's state of it.
    pub state: BackupState,
    /// What decides which files it has.
    pub layout: Layout,
    /// The content of tablespace_map, empty where there is no tablespace.
    pub tablespace_map: Vec<u8>,
}

/// What is asked of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// How the starting checkpoint is spread.
    pub checkpoint: Checkpoint,
    /// Whether to estimate sizes.
    pub progress: bool,
    /// Whether the server verifies pages by default.
    pub verify_checksums: bool,
    /// kB/s over all connections.
    pub max_rate: Option<u32>,
}

/// Enters backup mode, which the end of the process leaves. With an increment the label says what it goes by.
pub fn enter(label: &[u8], wanted: &Wanted, increment: Option<&Increment>) -> Result<Begun> {
    let fast = wanted.checkpoint == Checkpoint::Fast;
    let started = backup::start(&backup::label(label), fast, increment)?;
    Ok(Begun {
        state: started.state,
        layout: server::layout(started.tablespaces),
        tablespace_map: started.tablespace_map,
    })
}

impl Begun {
    /// The facts of the backup, whose layout is published in this segment.
    pub fn facts(&self, wanted: &Wanted, layout_handle: u32, incremental: bool) -> Facts {
        Facts {
            start_lsn: self.state.start_lsn(),
            start_timeline: self.state.start_timeline(),
            in_recovery: self.state.started_in_recovery(),
            verify_checksums: wanted.verify_checksums,
            max_rate: wanted.max_rate,
            layout_handle,
            incremental,
        }
    }
}
