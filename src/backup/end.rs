//! Leaving backup mode, and what the copy needs from then on: the same in a coordinator and in a keeper.

use std::fs;
use std::os::unix::ffi::OsStringExt;

use crate::backup::registry::Counters;
use crate::backup::results::Stopped;
use crate::backup::wal_ranges::wal_spans;
use crate::cluster::wal::WalRange;
use crate::error::{Error, Result};
use crate::pg::backup::BackupState;
use crate::pg::{interrupt, server, wal};

/// Leaves backup mode. Once that is tried the backup is over, whatever fails after.
pub fn leave(state: &mut BackupState, control_file: Vec<u8>, counters: &Counters) -> Result<Stopped> {
    state.stop();
    let start = (state.start_lsn(), state.start_timeline());
    let stop = (state.stop_lsn(), state.stop_timeline());
    let wal = WalRange::new(start, stop, wal::segment_size());
    let spans = wal_spans(&wal::timeline_history(stop.1), start, stop)?;
    let names = fs::read_dir("pg_wal").map_err(|error| Error::io("open directory", b"pg_wal", error))?;
    let wal_files = wal.list(names.map(|entry| {
        interrupt::check();
        let entry = entry.map_err(|error| Error::io("read directory", b"pg_wal", error))?;
        Ok(entry.file_name().into_vec())
    }))?;
    let totals = counters.totals();
    Ok(Stopped { wal, in_recovery: server::in_recovery(), control_file, spans, wal_files, totals })
}
