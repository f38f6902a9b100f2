//! Names of relation files.

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

    /// The file whose presence says that the relation is unlogged.
    pub fn init_fork_name(&self) -> Vec<u8> {
        format!("{}_init", self.number).into_bytes()
    }
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
}
