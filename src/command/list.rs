//! SEND_FILE_LIST.

use std::rc::Rc;

use protocol::command::SendFileList;
use protocol::path::encode;
use protocol::{BlockList, CommandKind, reply};

use crate::backup::handle::{self, Handle};
use crate::backup::{session, sizes};
use crate::cluster::Layout;
use crate::cluster::contents::Relation;
use crate::cluster::page::BLOCK_SIZE;
use crate::cluster::walk::{Entry, Visitor};
use crate::error::{Error, Result};
use crate::pg::incremental::{Increment, Method, Methods};
use crate::pg::{backup, interrupt, progress, report, server, walsender};
use crate::stream::rows::{Reply, ResultSet};

/// Lists the files of a running backup, or of the cluster as it is for an estimate.
pub fn run(command: &SendFileList) -> Result<()> {
    if command.estimate {
        let layout = server::layout(backup::current_tablespaces()?);
        return if command.totals { totals(&layout) } else { list(&layout, None, None) };
    }
    handle::transfer(command.backup_id, CommandKind::SendFileList, |handle| {
        if handle.is_stopped() {
            return Err(Error::Stopped(handle.id));
        }
        let increment = if handle.facts.incremental { Some(increment(handle)?) } else { None };
        walsender::set_state_backup();
        list(&handle.layout, Some(handle), increment.as_deref())
    })
}

/// A row for each tablespace, the data directory last.
fn totals(layout: &Layout) -> Result<()> {
    let sizes = sizes::sizes(layout)?;
    let mut sets = Reply::default();
    let mut set = sets.begin(reply::FILE_TOTALS);
    let tablespaces = layout.tablespaces.iter().map(|space| Some(space.oid.to_string())).chain([None]);
    for (oid, size) in tablespaces.zip(sizes) {
        set.row(&[oid, Some(size.files.to_string()), Some(size.bytes.to_string())]);
    }
    set.end();
    Ok(())
}

/// What has changed is known in the session that has started the backup, and nowhere else.
fn increment(handle: &Handle) -> Result<Rc<Increment>> {
    let own = session::with(|session| session.increment.clone().filter(|_| session.id == handle.id));
    own.flatten().ok_or(Error::ListElsewhere(handle.id))
}

fn list(layout: &Layout, handle: Option<&Handle>, increment: Option<&Increment>) -> Result<()> {
    let walk = server::walk(layout);
    let mut sets = Reply::default();
    let columns = if increment.is_some() { reply::INCREMENTAL_FILE_LIST } else { reply::FILE_LIST };
    let mut rows = Rows {
        set: sets.begin(columns),
        layout,
        handle,
        methods: increment.map(Increment::methods),
        bytes: 0,
    };
    walk.run(&mut rows)?;
    if let Some(methods) = rows.methods {
        methods.end();
    }
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
    layout: &'a Layout,
    handle: Option<&'a Handle>,
    /// How files go into an incremental backup.
    methods: Option<Methods<'a>>,
    /// To be sent of all files so far.
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
        let kind = if entry.directory { "d" } else { "f" };
        let values = [
            encode(entry.path),
            kind.to_owned(),
            entry.size.to_string(),
            entry.mtime.to_string(),
            entry.mode.to_string(),
        ]
        .map(Some);
        let Some(methods) = &mut self.methods else {
            self.bytes += entry.size;
            self.set.row(&values);
            return Ok(());
        };
        let relation =
            Some(()).filter(|()| !entry.directory).and_then(|()| Relation::of(self.layout, entry.path));
        let method = match relation {
            Some(relation) => methods.of(entry.path, &relation, entry.size)?,
            None => Method::Whole,
        };
        let [blocks, truncation] = match method {
            Method::Whole => {
                self.bytes += entry.size;
                [None, None]
            }
            Method::Blocks { blocks, truncation_block_length } => {
                let list = BlockList::of(blocks).ok_or(Error::BlockOrder { path: entry.path.to_vec() })?;
                self.bytes += list.len() * BLOCK_SIZE as u64;
                [Some(list.to_string()), Some(truncation_block_length.to_string())]
            }
        };
        let [name, kind, size, mtime, mode] = values;
        self.set.row(&[name, kind, size, mtime, mode, blocks, truncation]);
        Ok(())
    }

    fn special(&mut self, path: &[u8]) -> Result<()> {
        report::warning(format!("skipping special file \"{}\"", encode(path)));
        Ok(())
    }
}
