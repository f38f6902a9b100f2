//! How large the cluster is, before the backup starts: whether there is room for it is better known before a
//! checkpoint is paid for.

use protocol::command::SendFileList;
use protocol::features::Feature;
use protocol::{Command, SqlState, reply};

use super::files::{each_listed, listed_path};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::output::space::Sizes;
use crate::server::connection::{Session, bytes, number};
use crate::server::route;

/// Sizes as the server has them now. `wal` is what a backup has of it at least.
pub(super) fn estimate(coordinator: &mut Session, abort: &Abort, wal: u64) -> Result<Sizes> {
    if route::features(coordinator)?.has(Feature::Totals) {
        match totals(coordinator, abort, wal) {
            // By the procedures of a database whose extension was not updated along with the library.
            Err(error) if error.is_server(SqlState::UNDEFINED_FUNCTION) => {}
            outcome => return outcome,
        }
    }
    listed(coordinator, abort, wal)
}

/// As the server has added them up.
fn totals(coordinator: &mut Session, abort: &Abort, wal: u64) -> Result<Sizes> {
    let mut sizes = Sizes { wal, ..Sizes::default() };
    let mut has_data = false;
    let list = SendFileList { estimate: true, totals: true, ..SendFileList::default() };
    let command = Command::SendFileList(list);
    each_listed(coordinator, &command, reply::FILE_TOTALS, abort, |answer, row| {
        let (files, size): (u64, u64) = (number(answer, row, 1)?, number(answer, row, 2)?);
        sizes.files = sizes.files.saturating_add(files);
        if answer.value(row, 0).is_some() {
            sizes.tablespaces.insert(number(answer, row, 0)?, size);
        } else {
            sizes.data = size;
            has_data = true;
        }
        Ok(())
    })?;
    if has_data { Ok(sizes) } else { Err(Error::local("server sent no size of the data directory")) }
}

/// From the sizes of all files, of a server that does not add them up.
fn listed(coordinator: &mut Session, abort: &Abort, wal: u64) -> Result<Sizes> {
    let mut sizes = Sizes { wal, ..Sizes::default() };
    let command = Command::SendFileList(SendFileList { estimate: true, ..SendFileList::default() });
    each_listed(coordinator, &command, reply::FILE_LIST, abort, |answer, row| {
        let is_file = bytes(answer, row, 1)? == b"f";
        let size = if is_file { number(answer, row, 2)? } else { 0 };
        sizes.add(&listed_path(answer, row)?, is_file, size);
        Ok(())
    })?;
    Ok(sizes)
}
