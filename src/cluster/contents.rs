//! Which files a backup has: the exclusions of basebackup.c, in one place for the walk and for
//! the check of a path that a client asks for, so that the two cannot differ.

use crate::cluster::names::Pages;
use crate::cluster::relation::{RelationFile, database_of, is_temporary, split};
use crate::cluster::{Layout, Tablespace};
use protocol::BackupPath;

/// Where the links to tablespaces stand.
pub const TABLESPACE_DIR: &[u8] = b"pg_tblspc";
/// Where WAL is.
pub const WAL_DIR: &[u8] = b"pg_wal";

/// Prefix of temporary files and directories (PG_TEMP_FILE_PREFIX).
const TEMP_FILE_PREFIX: &[u8] = b"pgsql_tmp";

/// Directories, at any depth, whose contents the server removes or makes anew when it starts;
/// they are kept, empty, for their permissions. Twin of `excludeDirContents` in basebackup.c.
const EMPTIED_DIRECTORIES: [&[u8]; 7] = [
    // Temporary statistics; extensions keep data there too.
    b"pg_stat_tmp",
    // Slots of the original are of no use to the copy, and would hold back its WAL.
    b"pg_replslot",
    // Emptied by dsm_cleanup_for_mmap.
    b"pg_dynshmem",
    // Emptied by AsyncShmemInit.
    b"pg_notify",
    // Loaded for debugging at most, see SerialInit.
    b"pg_serial",
    // Emptied by DeleteAllExportedSnapshotFiles.
    b"pg_snapshots",
    // Zeroed by StartupSUBTRANS.
    b"pg_subtrans",
];

/// Files left out at any depth. Twin of `excludeFiles` in basebackup.c.
const EXCLUDED_FILES: [&[u8]; 7] = [
    // A half-written ALTER SYSTEM.
    b"postgresql.auto.conf.tmp",
    // A half-written current_logfiles.
    b"current_logfiles.tmp",
    // These are the client's to write, from START_BACKUP's results.
    b"backup_label",
    b"tablespace_map",
    // That of the backup which this server was started from.
    b"backup_manifest",
    // The running server's own.
    b"postmaster.pid",
    b"postmaster.opts",
];

/// The relation cache is rebuilt at start; its temporary files have a suffix
/// (RELCACHE_INIT_FILENAME).
const RELCACHE_INIT_PREFIX: &[u8] = b"pg_internal.init";

/// Left behind by a file manager, never by a server.
const MACOS_FILE: &[u8] = b".DS_Store";

/// STOP_BACKUP returns it, so that it is the last by construction.
const CONTROL_FILE: &[u8] = b"global/pg_control";

/// What a name in a directory is to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Not part of it.
    Excluded,
    /// Part of it, and so is what it contains.
    Included,
    /// A directory that is part of it, without what it contains.
    Emptied,
    /// pg_wal: as [`Verdict::Emptied`], but for the directories that BASE_BACKUP puts there.
    Wal,
    /// The entry of a tablespace: what is in its version directory is part of it.
    Tablespace(&'a Tablespace),
}

/// A directory that holds relations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationDir {
    /// The database's OID, 0 for `global`.
    pub database: u32,
}

/// Where PostgreSQL keeps a relation's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// `global`.
    Global,
    /// `base`.
    Default,
    /// A tablespace with this OID.
    Other(u32),
}

/// A relation file as PostgreSQL's block references name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation {
    /// Where it is.
    pub space: Space,
    /// The database's OID, 0 in `global`.
    pub database: u32,
    /// Which it is there.
    pub file: RelationFile,
}

impl Relation {
    /// Reads the path of a listed file, relative to the data directory; `None` for a file of no relation, and for one in
    /// a directory of digits elsewhere, which sendDir takes for a database's (see [`database_of`]): where
    /// pg_combinebackup puts nothing together everything is sent whole.
    pub fn of(layout: &Layout, path: &[u8]) -> Option<Self> {
        let (directory, name) = split(path);
        let RelationDir { database } = RelationDir::of(layout, directory)?;
        let file = RelationFile::parse(name)?;
        let space = match directory.strip_prefix(TABLESPACE_DIR).and_then(|rest| rest.strip_prefix(b"/")) {
            Some(rest) => Space::Other(layout.tablespace(rest.split(|byte| *byte == b'/').next()?)?.oid),
            None if directory == b"global" => Space::Global,
            None if directory.starts_with(b"base/") => Space::Default,
            None => return None,
        };
        Some(Self { space, database, file })
    }
}

impl RelationDir {
    /// Reads a directory's path relative to the data directory.
    pub fn of(layout: &Layout, directory: &[u8]) -> Option<Self> {
        database_of(directory, &layout.version_directory).map(|database| Self { database })
    }
}

/// What the entry `name` of `directory` is to a backup, by names alone; `path` is both together. `directory` is
/// relative to the data directory and empty for it, a tablespace's files stand under `pg_tblspc/<oid>`.
///
/// Left to the caller: what kind of file it is, and whether the relation is unlogged.
pub fn verdict<'a>(layout: &'a Layout, directory: &[u8], name: &[u8], path: &[u8]) -> Verdict<'a> {
    if name.starts_with(TEMP_FILE_PREFIX)
        || name == MACOS_FILE
        || EXCLUDED_FILES.contains(&name)
        || name.starts_with(RELCACHE_INIT_PREFIX)
    {
        return Verdict::Excluded;
    }
    // In `global`, which has no database, BASE_BACKUP does not look for temporary relations.
    if RelationDir::of(layout, directory).is_some_and(|dir| dir.database != 0) && is_temporary(name) {
        return Verdict::Excluded;
    }
    if path == CONTROL_FILE {
        return Verdict::Excluded;
    }
    if EMPTIED_DIRECTORIES.contains(&name) {
        return Verdict::Emptied;
    }
    if path == WAL_DIR {
        return Verdict::Wal;
    }
    if directory == TABLESPACE_DIR {
        if let Some(space) = layout.tablespace(name) {
            return Verdict::Tablespace(space);
        }
        // Made since the backup started: WAL replay makes it in the copy too.
        if name.iter().all(u8::is_ascii_digit) {
            return Verdict::Excluded;
        }
    }
    // Of a tablespace, only what belongs to this server's version.
    if is_tablespace_entry(layout, directory) && name != layout.version_directory {
        return Verdict::Excluded;
    }
    // A tablespace inside the data directory is sent as a tablespace, not a second time here.
    if layout.is_tablespace(path) {
        return Verdict::Emptied;
    }
    Verdict::Included
}

/// A path that a client asks for, found to be one that SEND_FILE_LIST could have listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The tablespace that it is in, and how many components lead to that.
    pub tablespace: Option<&'a Tablespace>,
    /// The relation that it belongs to, and the database of that.
    pub relation: Option<(RelationFile, RelationDir)>,
    /// The file beside it whose presence says that its relation is unlogged.
    pub init_fork: Option<Vec<u8>>,
    /// The pages that it has.
    pub pages: Pages,
}

impl Member<'_> {
    /// The database that it belongs to, 0 for none.
    pub fn database(&self) -> u32 {
        self.relation.map_or(0, |(_, directory)| directory.database)
    }
}

/// The file of `directory` whose presence says that `name` there is a fork of an unlogged relation,
/// which replay makes anew.
pub fn init_fork(layout: &Layout, directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    RelationDir::of(layout, directory)?;
    layout.names.init_fork(directory, name)
}

/// Checks a path component by component. `None` where no list could have had it; whether it is
/// there, and a regular file, is seen when it is opened.
pub fn member<'a>(layout: &'a Layout, path: &BackupPath) -> Option<Member<'a>> {
    let mut tablespace = None;
    let mut directory = Vec::new();
    let mut components = path.components().peekable();
    while let Some(name) = components.next() {
        let last = components.peek().is_none();
        let below = join(&directory, name);
        match verdict(layout, &directory, name, &below) {
            Verdict::Excluded => return None,
            Verdict::Included => {}
            Verdict::Tablespace(space) => tablespace = Some(space),
            // The directory itself may be asked for, and is then refused as a directory.
            Verdict::Emptied | Verdict::Wal if last => {}
            Verdict::Emptied | Verdict::Wal => return None,
        }
        if last {
            let relation =
                RelationDir::of(layout, &directory).and_then(|dir| Some((RelationFile::parse(name)?, dir)));
            let below_relations = tablespace.is_some()
                || [&b"base/"[..], b"global/"].iter().any(|top| path.as_bytes().starts_with(top));
            let file = relation.map(|(file, _)| file);
            return Some(Member {
                tablespace,
                relation,
                init_fork: init_fork(layout, &directory, name),
                pages: layout.names.pages(name, file, below_relations),
            });
        }
        directory = below;
    }
    None
}

/// `directory/name`, or `name` alone in the data directory itself.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn is_tablespace_entry(layout: &Layout, directory: &[u8]) -> bool {
    let (parent, name) = split(directory);
    parent == TABLESPACE_DIR && layout.tablespace(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::relation::Fork;

    fn layout() -> Layout {
        let space = |oid, location: &[u8], relative: Option<&[u8]>| Tablespace {
            oid,
            location: location.to_vec(),
            relative: relative.map(<[u8]>::to_vec),
        };
        let tablespaces = vec![
            space(16384, b"/srv/space", None),
            space(16385, b"/data/inside", Some(b"inside")),
            space(16386, b"pg_tblspc/16386", Some(b"pg_tblspc/16386")),
        ];
        Layout::new(tablespaces, b"PG_18_202506291".to_vec(), Default::default())
    }

    fn check(path: &str) -> Option<Option<(u32, Fork, u32)>> {
        let path = BackupPath::from_bytes(path).unwrap();
        member(&layout(), &path)
            .map(|member| member.relation.map(|(file, dir)| (file.number, file.fork, dir.database)))
    }

    #[test]
    fn members_of_a_backup() {
        for (path, relation) in [
            ("PG_VERSION", None),
            ("base/5/PG_VERSION", None),
            ("base/5/16384", Some((16384, Fork::Main, 5))),
            ("base/5/16384_fsm.1", Some((16384, Fork::FreeSpaceMap, 5))),
            ("global/1262", Some((1262, Fork::Main, 0))),
            ("global/pg_filenode.map", None),
            // What looks like a temporary relation is one only in a database's directory.
            ("global/t3_16384", None),
            ("t3_16384", None),
            ("pg_tblspc/16384/PG_18_202506291/5/16390", Some((16390, Fork::Main, 5))),
            ("pg_tblspc/16386/PG_18_202506291/5/16390", Some((16390, Fork::Main, 5))),
            ("pg_xact/0000", None),
            ("standby.signal", None),
            ("a file with spaces", None),
            ("pg_control", None),
            // Directories pass: they are refused when they are opened.
            ("pg_wal", None),
            ("pg_replslot", None),
            ("pg_tblspc/16384", None),
        ] {
            assert_eq!(check(path), Some(relation), "{path}");
        }
    }

    #[test]
    fn not_members_of_a_backup() {
        for path in [
            "global/pg_control",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x",
            "pg_replslot/slot/state",
            "pg_stat_tmp/x",
            "pg_dynshmem/x",
            "pg_notify/0000",
            "pg_serial/0000",
            "pg_snapshots/x",
            "pg_subtrans/0000",
            "base/5/pg_stat_tmp/x",
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "base/5/backup_manifest",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "global/pg_internal.init",
            "base/5/pg_internal.init.123",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            ".DS_Store",
            "pg_tblspc/99999/PG_18_202506291/5/1",
            "pg_tblspc/16384/PG_17_202406281/5/1",
            "pg_tblspc/16384/PG_18_202506291/pgsql_tmp/x",
            "pg_tblspc/16384/PG_18_202506291/5/t3_1",
            "pg_tblspc/16384/file",
            "inside/PG_18_202506291/5/1",
        ] {
            assert_eq!(check(path), None, "{path}");
        }
    }

    #[test]
    fn relations_by_path() {
        let layout = layout();
        let of = |path: &str| {
            let relation = Relation::of(&layout, path.as_bytes())?;
            Some((relation.space, relation.database, relation.file.number, relation.file.segment))
        };
        assert_eq!(of("base/5/16384.2"), Some((Space::Default, 5, 16384, 2)));
        assert_eq!(of("global/1262_vm"), Some((Space::Global, 0, 1262, 0)));
        for oid in [16384, 16386] {
            let path = format!("pg_tblspc/{oid}/PG_18_202506291/5/16390");
            assert_eq!(of(&path), Some((Space::Other(oid), 5, 16390, 0)));
        }
        for path in [
            "PG_VERSION",
            "base/5/PG_VERSION",
            "global/pg_filenode.map",
            "5432/16384",
            "16384",
            "pg_xact/0000",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn directories_of_relations() {
        let of = |directory: &str| RelationDir::of(&layout(), directory.as_bytes()).map(|dir| dir.database);
        assert_eq!(of("base/5"), Some(5));
        assert_eq!(of("global"), Some(0));
        assert_eq!(of("pg_tblspc/16384/PG_18_202506291/16401"), Some(16401));
        assert_eq!(of("5432"), Some(5432), "sendDir compares a prefix of ./base");
        assert_eq!(of(""), None);
        assert_eq!(of("base"), None);
        assert_eq!(of("base/x5"), None);
        assert_eq!(of("pg_tblspc/16384"), None);
        assert_eq!(of("pg_multixact/123"), None);
    }
}
