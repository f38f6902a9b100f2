//! SEND_FILE_LIST.

use protocol::command::SendFileList;
use protocol::path::encode;
use protocol::{CommandKind, reply};

use crate::backup::handle::{self, Handle};
use crate::cluster::Layout;
use crate::cluster::walk::{Entry, Visitor};
use crate::error::{Error, Result};
use crate::pg::{backup, interrupt, progress, report, server, walsender};
use crate::stream::rows::{Reply, ResultSet};

/// Lists the files of a running backup, or of the cluster as it is for an estimate.
pub fn run(command: &SendFileList) -> Result<()> {
    if command.estimate {
        return list(&server::layout(backup::current_tablespaces()?), None);
    }
    handle::transfer(command.backup_id, CommandKind::SendFileList, |handle| {
        if handle.is_stopped() {
            return Err(Error::Stopped(handle.id));
        }
        walsender::set_state_backup();
        list(&handle.layout, Some(handle))
    })
}

fn list(layout: &Layout, handle: Option<&Handle>) -> Result<()> {
    let walk = server::walk(layout);
    let mut sets = Reply::default();
    let mut rows = Rows { set: sets.begin(reply::FILE_LIST), handle, bytes: 0 };
    walk.run(&mut rows)?;
    if let Some(handle) = handle {
        // What PROGRESS of START_BACKUP walks the whole tree for.
        handle.counters.set_total(rows.bytes);
        progress::set_total(Some(rows.bytes));
    }
    rows.set.end();
    Ok(())
}

/// Sends each entry as a row.
struct Rows<'a> {
    set: ResultSet<'a>,
    handle: Option<&'a Handle>,
    /// In all files so far.
    bytes: u64,
}

impl Visitor for Rows<'_> {
    fn poll(&mut self) -> Result<()> {
        match self.handle {
            Some(handle) => {
                handle.poll()?;
                handle.check_not_promoted()
            }
            None => {
                interrupt::check();
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<()> {
        self.bytes += entry.size;
        let kind = if entry.directory { "d" } else { "f" };
        let values = [
            encode(entry.path),
            kind.to_owned(),
            entry.size.to_string(),
            entry.mtime.to_string(),
            entry.mode.to_string(),
        ]
        .map(Some);
        self.set.row(&values);
        Ok(())
    }

    fn special(&mut self, path: &[u8]) -> Result<()> {
        report::warning(format!("skipping special file \"{}\"", encode(path)));
        Ok(())
    }
}
