//! A full backup and the increments that go on from it: each is restored by itself, and PostgreSQL's own
//! pg_combinebackup makes one of them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::member::{Backup, Places};
use super::options::Options;
use super::{tablespaces, way};
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::options::Sync;
use crate::output::cleanup::{Cleanup, Purpose};
use crate::output::{Modes, sync};
use crate::report;
use crate::report::progress::{Counters, Phase};

/// PostgreSQL's program.
const PROGRAM: &str = "pg_combinebackup";

/// First version whose pg_combinebackup makes links.
const LINKS_SINCE: u32 = 18;

/// How often it is looked whether it has ended.
const EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Restores all of them, the oldest first, as one.
pub fn restore(
    options: &Options,
    backups: &[Backup],
    counters: &Counters,
    abort: &Abort,
    cleanup: &Cleanup,
) -> Result<()> {
    // Before hours are spent: whether there is any at all.
    let candidates = candidates(options)?;
    let mut members = Vec::new();
    for (number, backup) in backups.iter().enumerate() {
        if options.verbose {
            report::info(format_args!("restoring backup \"{}\"", backup.name()));
        }
        let root = options.work_directory.join(number.to_string());
        let apart = |oid: u32| options.work_directory.join(format!("{number}.{oid}"));
        let places = Places {
            root,
            waldir: None,
            tablespaces: backup.tablespaces().map(|(oid, _)| (oid, apart(oid))).collect(),
        };
        let mut way = way(options);
        // It goes when all is one.
        way.sync = Sync::None;
        backup.restore(&places, way, counters, abort, cleanup)?;
        members.push(places);
    }
    let (Some(last), Some(backup)) = (members.last(), backups.last()) else { return Ok(()) };
    let version = version_of_data(&last.root)?;
    let program = matching(&candidates, version)?;
    let last_tablespaces = tablespaces(options, backup);

    cleanup.claim(Purpose::Data, &options.target, Modes::STRICT.directory)?;
    for place in last_tablespaces.values() {
        cleanup.claim(Purpose::Tablespace, place, Modes::STRICT.directory)?;
    }
    // It wants its output empty, and takes all of its input.
    cleanup.lend()?;
    let mut arguments: Vec<OsString> = members.iter().map(|member| member.root.clone().into()).collect();
    arguments.extend(["-o".into(), options.target.clone().into()]);
    for (oid, place) in &last_tablespaces {
        let Some(from) = last.tablespaces.get(oid) else { continue };
        arguments
            .extend(["-T".into(), mapping(&fs::canonicalize(from).unwrap_or_else(|_| from.clone()), place)]);
    }
    match options.sync {
        Sync::None => arguments.push("--no-sync".into()),
        Sync::Fsync => {}
        Sync::Syncfs => arguments.push("--sync-method=syncfs".into()),
    }
    if version >= LINKS_SINCE && are_on_one_device(last, &options.target, last_tablespaces.values()) {
        // What is combined is removed, so that nobody will ever change it.
        arguments.push("--link".into());
    }
    counters.enter(Phase::Sync);
    if options.verbose {
        report::info(format_args!("combining {} backups by \"{}\"", members.len(), program.display()));
    }
    combine(&program, &arguments, abort)?;
    let mode =
        fs::metadata(&last.root).map_err(|error| Error::io("stat file", &last.root, &error))?.permissions();
    for directory in std::iter::once(&options.target).chain(last_tablespaces.values()) {
        fs::set_permissions(directory, mode.clone())
            .map_err(|error| Error::io("set permissions on directory", directory, &error))?;
    }
    if let Some(waldir) = &options.waldir {
        move_wal(options, waldir, cleanup)?;
    }
    if options.sync != Sync::None {
        cleanup.made().iter().try_for_each(|path| sync::sync_parent(path))?;
    }
    abort.check()?;
    cleanup.remove_within(&options.work_directory);
    cleanup.finish(options.sync != Sync::None)
}

/// `OLDDIR=NEWDIR`, in which an equals sign of a name has a backslash before it.
fn mapping(old: &Path, new: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for (at, side) in [old, new].into_iter().enumerate() {
        if at > 0 {
            bytes.push(b'=');
        }
        for byte in side.as_os_str().as_bytes() {
            if *byte == b'=' {
                bytes.push(b'\\');
            }
            bytes.push(*byte);
        }
    }
    OsString::from_vec(bytes)
}

/// The programs of that name that there are, in the order in which they are tried: the one that was named, or else
/// that beside this program, those on PATH, and where Debian has those of each version.
fn candidates(options: &Options) -> Result<Vec<(PathBuf, u32)>> {
    if let Some(program) = &options.combine {
        return Ok(vec![(program.clone(), version_of(program)?)]);
    }
    let mut places: Vec<PathBuf> = Vec::new();
    places.extend(std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM))));
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).map(|directory| directory.join(PROGRAM)));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin").join(PROGRAM)));
    }
    let found: Vec<_> = places
        .into_iter()
        .filter(|place| place.is_file())
        .filter_map(|place| version_of(&place).ok().map(|version| (place, version)))
        .collect();
    if found.is_empty() { Err(no_program(None)) } else { Ok(found) }
}

fn matching(candidates: &[(PathBuf, u32)], version: u32) -> Result<PathBuf> {
    let found = candidates.iter().find(|(_, of)| *of == version);
    found.map(|(program, _)| program.clone()).ok_or_else(|| no_program(Some(version)))
}

fn no_program(version: Option<u32>) -> Error {
    let what = version.map_or_else(String::new, |version| format!(" of PostgreSQL {version}"));
    Error::local(format!("could not find the program \"{PROGRAM}\"{what}"))
        .with_detail("Increments are made one with their full backup by it.")
        .with_hint("Install PostgreSQL's client programs, or name it by --pg-combinebackup.")
}

/// "pg_combinebackup (PostgreSQL) 18.1", or a version that is not released yet.
fn version_of(program: &Path) -> Result<u32> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io("execute program", program, &error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.strip_prefix(PROGRAM).and_then(|rest| rest.trim_start().strip_prefix("(PostgreSQL) "));
    number
        .map(|number| number.chars().take_while(char::is_ascii_digit).collect::<String>())
        .and_then(|major| major.parse().ok())
        .ok_or_else(|| Error::local(format!("program \"{}\" is not {PROGRAM}", program.display())))
}

/// The major version of a data directory.
fn version_of_data(root: &Path) -> Result<u32> {
    let path = root.join("PG_VERSION");
    let text = fs::read_to_string(&path).map_err(|error| Error::io("read file", &path, &error))?;
    text.trim().parse().map_err(|_| Error::local(format!("invalid data in \"{}\"", path.display())))
}

/// Whether all of it can be linked to instead of copied.
fn are_on_one_device<'a>(
    last: &'a Places,
    target: &'a Path,
    tablespaces: impl Iterator<Item = &'a PathBuf>,
) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let Some(first) = device(&last.root) else { return false };
    let own = last.tablespaces.values().map(PathBuf::as_path);
    own.chain([target]).chain(tablespaces.map(PathBuf::as_path)).all(|path| device(path) == Some(first))
}

/// Runs it to its end, or that of the restore.
fn combine(program: &Path, arguments: &[OsString], abort: &Abort) -> Result<()> {
    let failed = |error: io::Error| Error::io("execute program", program, &error);
    // A group of its own: Ctrl-C is for this program to act upon.
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let said = child.stderr.take().map(|stderr| std::thread::spawn(|| pass_on(stderr)));
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            if let Some(said) = said {
                // A panic was reported.
                let _ = said.join();
            }
            return if status.success() {
                Ok(())
            } else {
                Err(Error::local(format!("{PROGRAM} failed: {status}")))
            };
        }
        if abort.check().is_err() {
            if let Some(process) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // It has no handler, and ends.
                let _ = kill_process(process, Signal::TERM);
            }
            child.wait().map_err(failed)?;
            return Err(Error::aborted());
        }
        let mut descriptors = [PollFd::from_borrowed_fd(abort.as_fd(), PollFlags::IN)];
        match poll(&mut descriptors, Some(&EVERY)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// What it says, but for its warning that links share their content with what is removed here in a moment.
fn pass_on(stderr: impl io::Read) {
    for line in io::BufReader::new(stderr).lines().map_while(io::Result::ok) {
        if !line.contains("--link mode was used") {
            report::print(&line);
        }
    }
}

/// WAL to where it is to be, which may be on another device.
fn move_wal(options: &Options, waldir: &Path, cleanup: &Cleanup) -> Result<()> {
    cleanup.claim(Purpose::Wal, waldir, Modes::STRICT.directory)?;
    let pg_wal = options.target.join("pg_wal");
    let mode = fs::metadata(&pg_wal).map_err(|error| Error::io("stat file", &pg_wal, &error))?.permissions();
    copy_directory(&pg_wal, waldir, options.sync != Sync::None)?;
    fs::set_permissions(waldir, mode)
        .map_err(|error| Error::io("set permissions on directory", waldir, &error))?;
    fs::remove_dir_all(&pg_wal).map_err(|error| Error::io("remove directory", &pg_wal, &error))?;
    std::os::unix::fs::symlink(waldir, &pg_wal)
        .map_err(|error| Error::io("create symbolic link", &pg_wal, &error))?;
    if options.sync == Sync::None { Ok(()) } else { sync::sync_path(&options.target) }
}

fn copy_directory(from: &Path, to: &Path, sync: bool) -> Result<()> {
    let failed = |error| Error::io("read directory", from, &error);
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(failed)?.is_dir() {
            fs::create_dir(&new).map_err(|error| Error::io("create directory", &new, &error))?;
            let mode = entry.metadata().map_err(failed)?.permissions();
            fs::set_permissions(&new, mode)
                .map_err(|error| Error::io("set permissions on directory", &new, &error))?;
            copy_directory(&old, &new, sync)?;
        } else {
            fs::copy(&old, &new).map_err(|error| Error::io("write to file", &new, &error))?;
            if sync {
                File::open(&new)
                    .and_then(|file| file.sync_all())
                    .map_err(|error| Error::io("fsync file", &new, &error))?;
            }
        }
    }
    if sync { sync::sync_path(to) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        assert_eq!(mapping(Path::new("/a=b"), Path::new("/c")), "/a\\=b=/c");
    }

    #[test]
    fn programs_by_their_version() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("program");
        let made = |says: &str| {
            use std::os::unix::fs::PermissionsExt;
            fs::write(&program, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            version_of(&program)
        };
        assert_eq!(made("pg_combinebackup (PostgreSQL) 18.1 (Debian 18.1-1)").unwrap(), 18);
        assert_eq!(made("pg_combinebackup (PostgreSQL) 19devel").unwrap(), 19);
        assert!(made("pg_basebackup (PostgreSQL) 18.1").is_err());
        assert!(version_of(Path::new("/nonexistent")).is_err());
        let candidates = [(PathBuf::from("/a"), 17), (PathBuf::from("/b"), 18)];
        assert_eq!(matching(&candidates, 18).unwrap(), Path::new("/b"));
        assert_eq!(
            matching(&candidates, 16).unwrap_err().message(),
            "could not find the program \"pg_combinebackup\" of PostgreSQL 16"
        );
    }
}
