//! Entering backup mode, and what is found out by it: the same in a coordinator and in a keeper.

use protocol::Checkpoint;

use crate::backup::registry::Facts;
use crate::cluster::Layout;
use crate::cluster::walk::{Entry, Visitor};
use crate::error::Result;
use crate::pg::backup::{self, BackupState};
use crate::pg::incremental::Increment;
use crate::pg::{interrupt, server};

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

/// Bytes in each tablespace, the data directory last.
pub fn sizes(layout: &Layout) -> Result<Vec<u64>> {
    let walk = server::walk(layout);
    let mut sizes = Vec::with_capacity(layout.tablespaces.len() + 1);
    for space in &layout.tablespaces {
        let mut size = Size(0);
        walk.tablespace(space, &mut size)?;
        sizes.push(size.0);
    }
    let mut size = Size(0);
    walk.data_directory(&mut size)?;
    sizes.push(size.0);
    Ok(sizes)
}

/// Adds up file sizes.
struct Size(u64);

impl Visitor for Size {
    fn poll(&mut self) -> Result<()> {
        interrupt::check();
        Ok(())
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
        self.0 += entry.size;
        Ok(())
    }

    // The list will say so.
    fn special(&mut self, _path: &[u8]) -> Result<()> {
        Ok(())
    }
}
