//! How BASE_BACKUP reads the names of files: which belong to an unlogged relation, and which have
//! pages. Its rules became stricter at one major version (`sendDir` and `sendFile` in basebackup.c,
//! `parse_filename_for_nontemp_relation` in reinit.c).

use protocol::BackupPath;

use crate::page::SEGMENT_BLOCKS;
use crate::relation::{self, Fork, RelationFile};

/// The rules of a major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRules {
    /// Relation files, and only they, may be of unlogged relations and have pages.
    #[default]
    Since17,
    /// Any digits will do for a relation's number, but not in `global`; every file has pages that
    /// is in `base`, `global` or a tablespace, but for a few by name.
    Before17,
}

/// Which pages a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// None.
    None,
    /// Pages from this block of the fork on.
    From(u32),
    /// A segment number of zero, or none after a dot, where pages are verified.
    InvalidSegment,
}

/// Bytes in a number at most (OIDCHARS).
const MAX_DIGITS: usize = 10;

/// Files without pages in the directories that have them. Twin of `noChecksumFiles` (basebackup.c),
/// without those that no backup has.
const WITHOUT_PAGES: [&[u8]; 2] = [b"pg_filenode.map", b"PG_VERSION"];

/// The first version with the strict rules, as servers number themselves.
const STRICT_SINCE: u32 = 170_000;

impl NameRules {
    /// The rules of a server by its version number, such as 150018.
    pub const fn of_server(version: u32) -> Self {
        if version < STRICT_SINCE { Self::Before17 } else { Self::Since17 }
    }

    /// The init fork that makes a file of a directory with relations part of an unlogged one, if
    /// the file is a fork other than that.
    pub fn init_fork(self, directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Since17 => RelationFile::parse(name)
                .filter(|file| file.fork != Fork::Init)
                .map(|file| file.init_fork_name()),
            Self::Before17 if directory == b"global" => None,
            Self::Before17 => {
                let number = digits(name).filter(|number| number.len() <= MAX_DIGITS)?;
                let rest = &name[number.len()..];
                let fork = [&b"_fsm"[..], b"_vm"].into_iter().find(|fork| rest.starts_with(fork));
                let rest = &rest[fork.map_or(0, <[u8]>::len)..];
                let segment_fits =
                    rest.strip_prefix(b".").is_some_and(|s| digits(s).is_some_and(|d| d.len() == s.len()));
                (rest.is_empty() || segment_fits).then(|| [number, b"_init"].concat())
            }
        }
    }

    /// The pages of a file. `relation` is what its name says where its directory has relations,
    /// `below_relations` whether it is anywhere below `base`, `global` or a tablespace.
    pub fn pages(self, name: &[u8], relation: Option<RelationFile>, below_relations: bool) -> Pages {
        match self {
            Self::Since17 => relation.map_or(Pages::None, |file| Pages::From(file.first_block())),
            Self::Before17 if !below_relations || WITHOUT_PAGES.contains(&name) => Pages::None,
            Self::Before17 => {
                let Some(dot) = memchr::memchr(b'.', name) else { return Pages::From(0) };
                // atoi: what follows the digits does not matter.
                let segment = digits(&name[dot + 1..]).unwrap_or_default().iter();
                match segment.fold(0u32, |n, d| n.wrapping_mul(10).wrapping_add(u32::from(d - b'0'))) {
                    0 => Pages::InvalidSegment,
                    segment => Pages::From(segment.wrapping_mul(SEGMENT_BLOCKS)),
                }
            }
        }
    }

    /// The same for whoever knows a listed file by its path alone.
    pub fn pages_of(self, path: &BackupPath) -> Pages {
        let mut components = path.components();
        let below_relations = match (components.next(), components.next(), components.next()) {
            (Some(b"base" | b"global"), Some(_), _) => true,
            // Nothing else there that has a number for a name is ever listed.
            (Some(b"pg_tblspc"), Some(space), Some(_)) => space.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        let (_, name) = relation::split(path.as_bytes());
        self.pages(name, relation::of_listed(path), below_relations)
    }
}

/// The digits that a text begins with, if any.
fn digits(text: &[u8]) -> Option<&[u8]> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then(|| &text[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_forks() {
        for (name, strict, loose) in [
            ("16384", Some("16384_init"), Some("16384_init")),
            ("16384_fsm.1", Some("16384_init"), Some("16384_init")),
            ("16384_init", None, None),
            ("16384_init.1", None, None),
            ("0017", None, Some("0017_init")),
            ("16384.01", None, Some("16384_init")),
            ("9999999999", None, Some("9999999999_init")),
            ("99999999999", None, None),
            ("16384.", None, None),
            ("16384x", None, None),
            ("16384_fsm_vm", None, None),
            ("PG_VERSION", None, None),
        ] {
            let of = |names: NameRules| names.init_fork(b"base/5", name.as_bytes());
            assert_eq!(of(NameRules::Since17).as_deref(), strict.map(str::as_bytes), "{name}");
            assert_eq!(of(NameRules::Before17).as_deref(), loose.map(str::as_bytes), "{name}");
        }
        assert!(NameRules::Since17.init_fork(b"global", b"1").is_some());
        assert!(NameRules::Before17.init_fork(b"global", b"1").is_none());
    }

    #[test]
    fn pages() {
        for (name, strict, loose) in [
            ("16384", Pages::From(0), Pages::From(0)),
            ("16384_vm.2", Pages::From(262_144), Pages::From(262_144)),
            ("PG_VERSION", Pages::None, Pages::None),
            ("pg_filenode.map", Pages::None, Pages::None),
            ("notes", Pages::None, Pages::From(0)),
            ("notes.2x", Pages::None, Pages::From(262_144)),
            ("notes.txt", Pages::None, Pages::InvalidSegment),
            ("16384.0", Pages::None, Pages::InvalidSegment),
            ("16384.", Pages::None, Pages::InvalidSegment),
        ] {
            let relation = RelationFile::parse(name.as_bytes());
            assert_eq!(NameRules::Since17.pages(name.as_bytes(), relation, true), strict, "{name}");
            assert_eq!(NameRules::Before17.pages(name.as_bytes(), relation, true), loose, "{name}");
        }
        assert_eq!(NameRules::Before17.pages(b"1", None, false), Pages::None);
    }

    #[test]
    fn pages_by_path() {
        for (path, strict, loose) in [
            ("base/5/16384", Pages::From(0), Pages::From(0)),
            ("base/5/16384_vm.2", Pages::From(262_144), Pages::From(262_144)),
            ("base/5/notes", Pages::None, Pages::From(0)),
            ("base/5/16384.0", Pages::None, Pages::InvalidSegment),
            ("base/5/PG_VERSION", Pages::None, Pages::None),
            ("base/notes", Pages::None, Pages::From(0)),
            ("base/5/deeper/notes.3", Pages::None, Pages::From(393_216)),
            ("global/1262", Pages::From(0), Pages::From(0)),
            ("global/pg_filenode.map", Pages::None, Pages::None),
            ("global/config_exec_params", Pages::None, Pages::From(0)),
            ("pg_tblspc/16384/PG_15_202209061/5/16390.1", Pages::From(131_072), Pages::From(131_072)),
            ("pg_tblspc/16384/PG_15_202209061/5/notes", Pages::None, Pages::From(0)),
            ("pg_tblspc/16384/PG_15_202209061/notes", Pages::None, Pages::From(0)),
            ("pg_tblspc/notes", Pages::None, Pages::None),
            ("pg_tblspc/notes/16384", Pages::None, Pages::None),
            // Each rule as sendDir has it: the older compares whole prefixes.
            ("7/16384", Pages::From(0), Pages::None),
            ("base", Pages::None, Pages::None),
            ("pg_xact/0000", Pages::None, Pages::None),
            ("notes", Pages::None, Pages::None),
        ] {
            let path = BackupPath::from_bytes(path).unwrap();
            assert_eq!(NameRules::Since17.pages_of(&path), strict, "{path}");
            assert_eq!(NameRules::Before17.pages_of(&path), loose, "{path}");
        }
    }

    #[test]
    fn rules_by_version() {
        for (version, names) in [
            (150_000, NameRules::Before17),
            (150_018, NameRules::Before17),
            (160_010, NameRules::Before17),
            (170_000, NameRules::Since17),
            (180_006, NameRules::Since17),
        ] {
            assert_eq!(NameRules::of_server(version), names, "{version}");
        }
    }
}
