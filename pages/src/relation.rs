//! Names of relation files, and of the directories that hold them.

use protocol::BackupPath;

use crate::page::SEGMENT_BLOCKS;

/// The largest relation segment number and relfilenode: both are uint32 on disk.
const MAX_NUMBER: u64 = u32::MAX as u64;

/// A fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The data.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation is reset to.
    Init,
}

/// A relation file's name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// The relfilenode.
    pub number: u32,
    /// The fork.
    pub fork: Fork,
    /// Which segment of the fork.
    pub segment: u32,
}

impl RelationFile {
    /// Reads the name of a file that is no temporary relation's, by the rules of
    /// `parse_filename_for_nontemp_relation` (reinit.c): numbers have no leading zero and fit
    /// uint32, so that each file has one name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let (number, rest) = number(name)?;
        let (fork, rest) = fork(rest)?;
        let segment = match rest.split_first() {
            None => 0,
            Some((b'.', digits)) => match self::number(digits)? {
                (segment, []) => segment,
                _ => return None,
            },
            Some(_) => return None,
        };
        Some(Self { number, fork, segment })
    }

    /// The number of the file's first block in its fork.
    pub fn first_block(&self) -> u32 {
        self.segment.wrapping_mul(SEGMENT_BLOCKS)
    }

    /// The file whose presence says that the relation is unlogged.
    pub fn init_fork_name(&self) -> Vec<u8> {
        format!("{}_init", self.number).into_bytes()
    }
}

/// The database whose relations a directory holds, 0 for `global`; `None` for any other directory.
/// `directory` is relative to the data directory, a tablespace's files stand under
/// `pg_tblspc/<oid>`, and `version_directory` is the one there that belongs to the server.
///
/// The rule of `sendDir` (basebackup.c), which compares prefixes: a directory of digits directly
/// under the data directory counts too.
pub fn database_of(directory: &[u8], version_directory: &[u8]) -> Option<u32> {
    if directory == b"global" {
        return Some(0);
    }
    let (parent, name) = split(directory);
    if directory.is_empty() || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let under_base = b"base".starts_with(parent);
    let under_tablespace = !version_directory.is_empty() && parent.ends_with(version_directory);
    (under_base || under_tablespace).then(|| wrapping_number(name))
}

/// For whoever knows a listed file by its path alone: what it is if it is a relation file. A
/// tablespace's listing has the server's own version directory only, so that the path says which it
/// is.
pub fn of_listed(path: &BackupPath) -> Option<RelationFile> {
    let (directory, name) = split(path.as_bytes());
    let version_directory = match path.components().next() {
        Some(b"pg_tblspc") => path.components().nth(2).filter(|name| name.starts_with(b"PG_")),
        _ => None,
    };
    database_of(directory, version_directory.unwrap_or_default())?;
    RelationFile::parse(name)
}

/// Whether the name is a temporary relation's: `t<proc>_<relfilenode>`, then fork and segment
/// (`looks_like_temp_rel_name`, fd.c).
pub fn is_temporary(name: &[u8]) -> bool {
    let parse = || {
        let rest = digits(name.strip_prefix(b"t")?)?;
        let rest = digits(rest.strip_prefix(b"_")?)?;
        let (_, rest) = fork(rest)?;
        let rest = match rest.strip_prefix(b".") {
            Some(segment) => digits(segment)?,
            None => rest,
        };
        rest.is_empty().then_some(())
    };
    parse().is_some()
}

/// The directory that a path is in, empty for the data directory, and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b'/', path) {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// `atooid`: what does not fit wraps, as it does in the server.
fn wrapping_number(digits: &[u8]) -> u32 {
    digits.iter().fold(0u32, |value, digit| value.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')))
}

/// A positive number without leading zero, and what follows it.
fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    if !matches!(text.first(), Some(b'1'..=b'9')) {
        return None;
    }
    let mut value = 0u64;
    let mut rest = text;
    while let Some((digit @ b'0'..=b'9', tail)) = rest.split_first() {
        value = value * 10 + u64::from(digit - b'0');
        if value > MAX_NUMBER {
            return None;
        }
        rest = tail;
    }
    Some((u32::try_from(value).ok()?, rest))
}

/// Skips at least one digit.
fn digits(text: &[u8]) -> Option<&[u8]> {
    let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
    (count > 0).then(|| &text[count..])
}

/// The fork that a name goes on with, the main fork where it names none.
fn fork(text: &[u8]) -> Option<(Fork, &[u8])> {
    let Some(name) = text.strip_prefix(b"_") else { return Some((Fork::Main, text)) };
    [(&b"fsm"[..], Fork::FreeSpaceMap), (b"vm", Fork::VisibilityMap), (b"init", Fork::Init)]
        .into_iter()
        .find_map(|(suffix, fork)| Some((fork, name.strip_prefix(suffix)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u32, fork: Fork, segment: u32) -> Option<RelationFile> {
        Some(RelationFile { number, fork, segment })
    }

    #[test]
    fn relation_files() {
        for (name, expected) in [
            (&b"16384"[..], file(16384, Fork::Main, 0)),
            (b"16384.1", file(16384, Fork::Main, 1)),
            (b"16384_fsm", file(16384, Fork::FreeSpaceMap, 0)),
            (b"16384_vm.12", file(16384, Fork::VisibilityMap, 12)),
            (b"16384_init", file(16384, Fork::Init, 0)),
            (b"4294967295", file(u32::MAX, Fork::Main, 0)),
            (b"4294967296", None),
            (b"99999999999999999999999", None),
            (b"0", None),
            (b"017", None),
            (b"16384.0", None),
            (b"16384.01", None),
            (b"16384.", None),
            (b"16384_", None),
            (b"16384_main", None),
            (b"16384_fsmx", None),
            (b"16384.1_fsm", None),
            (b"t3_16384", None),
            (b"PG_VERSION", None),
            (b"", None),
        ] {
            assert_eq!(RelationFile::parse(name), expected, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn temporary_relations() {
        for (name, expected) in [
            (&b"t3_16384"[..], true),
            (b"t3_16384_fsm", true),
            (b"t3_16384.1", true),
            (b"t3_16384_vm.01", true),
            (b"t3_", false),
            (b"t_16384", false),
            (b"t3_16384.", false),
            (b"t3_16384x", false),
            (b"t3_16384_foo", false),
            (b"16384", false),
            (b"", false),
        ] {
            assert_eq!(is_temporary(name), expected, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn listed_relation_files() {
        for (path, expected) in [
            ("base/5/16384", Some(0)),
            ("base/5/16384_vm.2", Some(262_144)),
            ("global/1262", Some(0)),
            ("pg_tblspc/16384/PG_18_202506291/5/16390.1", Some(131_072)),
            ("pg_tblspc/16384/XX_18_202506291/5/16390", None),
            ("pg_tblspc/16384/PG_18_202506291/16390", None),
            // sendDir compares prefixes.
            ("7/16384", Some(0)),
            ("base/5/PG_VERSION", None),
            ("base/99999", None),
            ("pg_xact/0000", None),
            ("pg_xact/99999", None),
            ("16384", None),
            ("global/pg_filenode.map", None),
        ] {
            let file = of_listed(&BackupPath::from_bytes(path).unwrap());
            assert_eq!(file.map(|file| file.first_block()), expected, "{path}");
        }
    }
}
