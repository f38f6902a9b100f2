//! How large the cluster is, before the backup starts: whether there is room for it is better known before a
//! checkpoint is paid for.

use protocol::command::SendFileList;
use protocol::features::Feature;
use protocol::{BackupPath, Command, SqlState, reply};

use super::files::each_listed;
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
        sizes.files += u64::from(is_file);
        // Directories too: a tablespace may have no files.
        add(&mut sizes, bytes(answer, row, 0)?, size);
        Ok(())
    })?;
    Ok(sizes)
}

fn add(sizes: &mut Sizes, name: &[u8], size: u64) {
    let tablespace = BackupPath::parse(name).ok().and_then(|path| tablespace_of(path.as_bytes()));
    let sum = match tablespace {
        Some(oid) => sizes.tablespaces.entry(oid).or_default(),
        None => &mut sizes.data,
    };
    *sum = sum.saturating_add(size);
}

fn tablespace_of(path: &[u8]) -> Option<u32> {
    let rest = path.strip_prefix(b"pg_tblspc/")?;
    let end = memchr::memchr(b'/', rest)?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_tablespaces_by_their_paths() {
        let mut sizes = Sizes::default();
        for (name, size) in [
            (&b"base/5/1"[..], 1),
            (b"pg_tblspc/16385/PG_18_202506291/5/2", 10),
            (b"pg_tblspc/16385/PG_18_202506291/5/3", 10),
            (b"pg_tblspc/notes", 100),
            (b"pg_tblspc/x/y", 1000),
            (b"pg_tblspc/16386/PG_18_202506291", 0),
        ] {
            add(&mut sizes, name, size);
        }
        assert_eq!((sizes.data, sizes.total()), (1101, 1121));
        assert_eq!(sizes.tablespaces, [(16385, 20), (16386, 0)].into());
        add(&mut sizes, b"base/5/4", u64::MAX);
        assert_eq!(sizes.total(), u64::MAX);
    }
}
