//! What a process that has gone has left in the directory: what of it stays, and whether that is as it should be.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pages::checksum::Checksum;
use protocol::{BackupPath, ChecksumAlgorithm};
use walkdir::WalkDir;

use super::target::Target;
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::output::claim;
use crate::output::journal::{Entry, Record};

/// The file that settings are appended to with --write-recovery-conf, once it has come.
const APPENDED: &[u8] = b"postgresql.auto.conf";

/// How much is read at once.
const READ: usize = 256 << 10;

/// Removes every file that is not recorded: half of one may be there, one that the server does not have any more, or
/// what is written last. Makes the directories that are.
pub fn keep_only(target: &Target, record: &Record) -> Result<()> {
    for (path, mode) in &record.directories {
        target.make_listed(path, *mode)?;
    }
    for link in std::iter::once(PathBuf::new()).chain(target.links().map(Path::to_owned)) {
        let root = target.root().join(&link);
        // A root that is a link is followed, nothing below it.
        for entry in WalkDir::new(&root).min_depth(1) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(&root).to_owned();
                Error::io("read directory", &path, &error.into_io_error().unwrap_or(ErrorKind::Other.into()))
            })?;
            let below = entry.path().strip_prefix(&root).unwrap_or(entry.path());
            let name = link.join(below);
            let bytes = name.as_os_str().as_bytes();
            if entry.file_type().is_dir() || claim::is_claim(bytes) || target.is_link(&name) {
                continue;
            }
            if !BackupPath::from_bytes(bytes).is_ok_and(|path| record.files.contains_key(&path)) {
                remove(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Whether a file is there as it was recorded. If not, nothing of it is there any more.
pub fn is_there(
    target: &Target,
    path: &BackupPath,
    entry: &Entry,
    algorithm: ChecksumAlgorithm,
    abort: &Abort,
) -> Result<bool> {
    if is_as_recorded(target, path, entry, algorithm, abort)? {
        target.set_mode_of(path, entry.attributes.mode)?;
        return Ok(true);
    }
    remove(&target.path(path))?;
    Ok(false)
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_missing(&error) => Err(Error::io("remove file", path, &error)),
        _ => Ok(()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn is_as_recorded(
    target: &Target,
    path: &BackupPath,
    entry: &Entry,
    algorithm: ChecksumAlgorithm,
    abort: &Abort,
) -> Result<bool> {
    let shown = target.path(path);
    let failed = |error: io::Error| Error::io("read file", &shown, &error);
    match fs::symlink_metadata(&shown) {
        Ok(found) if !found.is_file() => return Ok(false),
        Ok(_) => {}
        Err(error) if is_missing(&error) => return Ok(false),
        Err(error) => return Err(failed(error)),
    }
    // Some have a mode that keeps out their owner, who may change that.
    target.set_mode_of(path, entry.attributes.mode | 0o600)?;
    let file = target.open_listed(path)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > entry.size && path.as_bytes() == APPENDED {
        file.set_len(entry.size).map_err(|error| Error::io("truncate file", &shown, &error))?;
    } else if size != entry.size {
        return Ok(false);
    }
    let mut checksum = Checksum::new(algorithm);
    let mut buffer = vec![0; READ.min(usize::try_from(entry.size).unwrap_or(READ)).max(1)];
    let mut at = 0;
    while at < entry.size {
        abort.check()?;
        let count = file.read_at(&mut buffer, at).map_err(failed)?;
        if count == 0 {
            return Ok(false);
        }
        checksum.update(&buffer[..count]);
        at += count as u64;
    }
    Ok(at == entry.size && checksum.finish() == entry.checksum)
}

/// Whether a link leads there, by the same name.
pub fn is_same_place(link: &Path, place: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == place)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::output::claim::CLAIM_FILE;
    use crate::output::journal::{Identity, JOURNAL_FILE};
    use crate::output::{Attributes, Modes};
    use protocol::Lsn;

    #[test]
    fn only_what_is_recorded_and_right_stays() {
        let (place, space) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("base/5")).unwrap();
        fs::create_dir(root.join("pg_tblspc")).unwrap();
        symlink(space.path(), root.join("pg_tblspc/16384")).unwrap();
        symlink(outside.path(), root.join("base/elsewhere")).unwrap();
        fs::write(outside.path().join("theirs"), "x").unwrap();
        let mut target = Target::new(root.to_owned(), Modes::STRICT);
        assert!(target.has_link("pg_tblspc/16384", space.path()));
        assert!(!target.has_link("pg_wal", space.path()));
        let path = |name: &str| BackupPath::from_bytes(name).unwrap();
        let crc = ChecksumAlgorithm::Crc32c;
        let mut record = Record {
            identity: Identity {
                id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
                system: 1,
                timeline: 1,
                start: Lsn(1),
                algorithm: crc,
            },
            directories: vec![(path("pg_notify"), 0o750)],
            files: HashMap::new(),
            processes: Vec::new(),
            is_complete: false,
        };
        let names = ["PG_VERSION", "base/5/1", "base/5/2", "base/5/3", "pg_tblspc/16384/4", "base/5/gone"];
        for name in names {
            let entry = Entry {
                size: 4,
                attributes: Attributes { mode: 0o640, mtime: 0 },
                checksum: Checksum::of(crc, b"good"),
            };
            record.files.insert(path(name), entry);
        }
        for (name, content) in [
            ("PG_VERSION", "good"),
            ("base/5/1", "baad"),
            ("base/5/2", "goo"),
            ("base/5/3", "good+"),
            ("pg_tblspc/16384/4", "good"),
            ("base/5/half", "good"),
            ("pg_tblspc/16384/half", "good"),
            (CLAIM_FILE, ""),
            (JOURNAL_FILE, ""),
        ] {
            fs::write(root.join(name), content).unwrap();
        }
        fs::set_permissions(root.join("PG_VERSION"), fs::Permissions::from_mode(0o000)).unwrap();
        keep_only(&target, &record).unwrap();
        for gone in ["base/5/half", "pg_tblspc/16384/half", "base/elsewhere"] {
            assert!(fs::symlink_metadata(root.join(gone)).is_err(), "{gone}");
        }
        for kept in [CLAIM_FILE, JOURNAL_FILE, "pg_tblspc/16384", "base/5/1", "pg_notify"] {
            assert!(fs::symlink_metadata(root.join(kept)).is_ok(), "{kept}");
        }
        assert!(outside.path().join("theirs").exists());
        let abort = Abort::new().unwrap();
        let mut good: Vec<_> = names
            .into_iter()
            .filter(|name| is_there(&target, &path(name), &record.files[&path(name)], crc, &abort).unwrap())
            .collect();
        good.sort_unstable();
        assert_eq!(good, ["PG_VERSION", "pg_tblspc/16384/4"]);
        for name in names {
            assert_eq!(root.join(name).exists(), good.contains(&name), "{name}");
        }
        let mode = fs::metadata(root.join("PG_VERSION")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);

        // What was appended to the settings goes.
        let settings = path("postgresql.auto.conf");
        fs::write(root.join("postgresql.auto.conf"), "good, and more").unwrap();
        assert!(is_there(&target, &settings, &record.files[&path("PG_VERSION")], crc, &abort).unwrap());
        assert_eq!(fs::read(root.join("postgresql.auto.conf")).unwrap(), b"good");
    }
}
