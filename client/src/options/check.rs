//! What is refused, in the order and the words of pg_basebackup, and what an option means that was not given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{Checkpoint, ChecksumAlgorithm};

use super::arguments::Arguments;
use super::compress::Compress;
use super::numbers::{VOLUME_SIZE, parse_int, parse_max_rate, parse_volume_size};
use super::tablespace::{TablespaceMap, canonical};
use super::words::{progress, shown, sync_method};
use super::{
    ConnectionOptions, Format, Lease, ManifestOptions, Options, PasswordPrompt, Progress, Resume, STDOUT,
    Side, Slot, Sync, Wal,
};
use crate::error::{Error, Result};
use crate::objects::location::{Location, Named, Place};
use crate::report::PROGRAM;

/// Most jobs: no server has more walsenders than MAX_BACKENDS, and nobody's disk has use for them.
pub const MAX_JOBS: i64 = 1024;

/// How often the server hears of the WAL stream: pg_basebackup's default.
const STATUS_INTERVAL: i64 = 10;

/// Options that do not contradict each other.
pub fn check(raw: Arguments) -> Result<Options> {
    let checkpoint = checkpoint(&raw)?;
    let format = format(&raw)?;
    let max_rate = raw.max_rate.as_deref().map(|text| parse_max_rate(&text.to_string_lossy())).transpose()?;
    let status_interval = match raw.status_interval.as_deref() {
        None => STATUS_INTERVAL,
        Some(text) => parse_int(text, "-s/--status-interval", 0, i64::from(i32::MAX / 1000))?,
    };
    let mut tablespaces = TablespaceMap::default();
    for mapping in &raw.tablespace_mapping {
        tablespaces.add(mapping.as_bytes())?;
    }
    let method = wal_method(&raw)?;
    let sync_method = sync_method(raw.sync_method.as_deref())?;
    let verify = verify(&raw)?;
    let progress = progress(raw.progress.as_deref())?;
    let lease = lease(&raw)?;
    let jobs = parse_int(&raw.jobs, "-j/--jobs", 1, MAX_JOBS)?;
    let volumes =
        raw.volumes.as_deref().map(|text| parse_volume_size(&text.to_string_lossy())).transpose()?;
    let incremental = raw.incremental.as_deref().map(prior_manifest).transpose()?;
    let place = match raw.pgdata.as_deref() {
        Some(target) => Place::parse(&target.to_string_lossy())?,
        None => Place::Path,
    };

    if let Some(first) = raw.rest.first() {
        return Err(Error::usage(format!(
            "too many command-line arguments (first is \"{}\")",
            first.to_string_lossy()
        )));
    }
    if raw.discard {
        check_discard(&raw, method)?;
    }
    // As in pg_basebackup, this one stands for the option left out.
    let target = raw.target.as_deref().filter(|target| *target != "client");
    let is_elsewhere = target.is_some() || raw.discard;
    if target.is_some() && format.is_some() {
        return Err(Error::usage("cannot specify both format and backup target"));
    }
    let is_url = place != Place::Path;
    if is_url && format == Some(Format::Plain) {
        return Err(Error::usage("only tar mode backups can be written to a URL"));
    }
    let format = format.unwrap_or(if is_url { Format::Tar } else { Format::Plain });
    let volumes = volumes.or(is_url.then_some(VOLUME_SIZE));
    let directory = match &raw.pgdata {
        Some(_) if is_elsewhere => {
            return Err(Error::usage("cannot specify both output directory and backup target"));
        }
        Some(directory) => match &place {
            Place::Directory(path) => path.clone().into_os_string(),
            _ => directory.clone(),
        },
        None if is_elsewhere => OsString::new(),
        None => return Err(Error::usage("must specify output directory or backup target")),
    };
    let compress = compress(&raw, format, target.is_some())?;
    if target.is_some() && method == Method::Stream {
        return Err(Error::usage("WAL cannot be streamed when a backup target is specified"));
    }
    if format == Format::Tar && method == Method::Stream && directory == STDOUT {
        return Err(Error::usage("cannot stream write-ahead logs in tar mode to stdout"));
    }
    if volumes.is_some() {
        if is_elsewhere {
            return Err(Error::usage("cannot specify both volumes and backup target"));
        }
        if format != Format::Tar {
            return Err(Error::usage("only tar mode backups can be written in volumes"));
        }
        if directory == STDOUT {
            return Err(Error::usage("cannot write volumes to stdout"));
        }
    }
    let slot = slot(&raw, method)?;
    let waldir = waldir(&raw, format, target.is_some(), &directory)?;
    if progress.is_some() && raw.no_estimate_size {
        return Err(incompatible("--progress", "--no-estimate-size"));
    }
    // What has changed is known in one session of the server alone (docs/protocol.md, Leases).
    let lease = match lease {
        Some(Lease::Seconds(_)) if raw.incremental.is_some() => {
            return Err(incompatible("--lease", "--incremental"));
        }
        Some(lease) => lease,
        // On standard output a signal ends this program at once: nobody would give the backup up on the server.
        None if raw.incremental.is_some() || directory == STDOUT && format == Format::Tar => Lease::Never,
        None => Lease::Light,
    };
    let resume = resume(&raw, lease.is_asked_for(), format == Format::Plain && !is_elsewhere)?;
    let manifest = manifest(&raw)?;
    if let Some(target) = target {
        check_target(&target.to_string_lossy(), raw.write_recovery_conf)?;
    }
    let options = Options {
        target: match &place {
            Place::Objects(location) => PathBuf::from(location.to_string()),
            // Without "." alone: what ".." means here depends on links.
            Place::Path | Place::Directory(_) => PathBuf::from(directory).components().collect(),
        },
        objects: match place {
            Place::Objects(location) => Some(location),
            Place::Path | Place::Directory(_) => None,
        },
        format,
        volumes,
        compress,
        // Between 1 and MAX_JOBS.
        jobs: usize::try_from(jobs).unwrap_or(1),
        incremental,
        tablespaces,
        checkpoint,
        label: raw.label.map_or_else(|| format!("{PROGRAM} base backup").into_bytes(), OsStringExt::into_vec),
        estimate: !raw.no_estimate_size,
        dry_run: raw.dry_run,
        report: raw.report.map(PathBuf::from),
        progress,
        verbose: raw.verbose > 0,
        lease,
        resume,
        max_rate,
        wal: match method {
            Method::None => Wal::None,
            Method::Fetch => Wal::Fetch,
            Method::Stream => Wal::Stream {
                slot,
                status_interval: Duration::from_secs(u64::try_from(status_interval).unwrap_or(0)),
            },
        },
        waldir,
        write_recovery_conf: raw.write_recovery_conf,
        no_clean: raw.no_clean,
        sync: if raw.no_sync || is_elsewhere { Sync::None } else { sync_method },
        // What a backup that goes nowhere would write into it is made all the same.
        manifest,
        verify_checksums: !raw.no_verify_checksums,
        verify,
        discard: is_elsewhere,
        past_libpq: !raw.through_libpq,
        connection: ConnectionOptions {
            conninfo: raw.dbname,
            host: raw.host,
            port: raw.port,
            user: raw.username,
            password: match (raw.no_password, raw.password) {
                (_, true) => PasswordPrompt::Always,
                (true, false) => PasswordPrompt::Never,
                (false, false) => PasswordPrompt::Auto,
            },
        },
    };
    check_report(&options)?;
    Ok(options)
}

/// --remove-leftovers goes with nothing but the place.
pub fn leftovers(raw: &Arguments) -> Result<Location> {
    let target = raw.pgdata.as_deref().unwrap_or_default();
    match Place::parse(&target.to_string_lossy())? {
        Place::Objects(location) => Ok(location),
        _ => Err(Error::usage("--remove-leftovers needs a storage URL as --pgdata")),
    }
}

/// Where a report cannot go.
fn check_report(options: &Options) -> Result<()> {
    let Some(report) = &options.report else { return Ok(()) };
    if options.dry_run {
        return Err(incompatible("--dry-run", "--report"));
    }
    if report.as_os_str() == STDOUT {
        if options.is_stdout() {
            return Err(Error::usage("cannot write both backup and report to stdout"));
        }
        if options.progress == Some(Progress::Json) {
            return Err(Error::usage("cannot write both progress and report to stdout"));
        }
        return Ok(());
    }
    let report = std::path::absolute(report).map(|report| canonical(&report)).unwrap_or_default();
    for directory in [Some(&options.target), options.waldir.as_ref()].into_iter().flatten() {
        let is_below = |directory: PathBuf| report.starts_with(canonical(&directory));
        if !directory.as_os_str().is_empty() && std::path::absolute(directory).is_ok_and(is_below) {
            return Err(Error::usage("report file must not be in a directory of the backup"));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Fetch,
    Stream,
}

fn checkpoint(raw: &Arguments) -> Result<Checkpoint> {
    match raw.checkpoint.as_deref().map(lower).as_deref() {
        None | Some("spread") => Ok(Checkpoint::Spread),
        Some("fast") => Ok(Checkpoint::Fast),
        Some(_) => Err(Error::local(format!(
            "invalid checkpoint argument \"{}\", must be \"fast\" or \"spread\"",
            shown(raw.checkpoint.as_deref())
        ))),
    }
}

fn format(raw: &Arguments) -> Result<Option<Format>> {
    match raw.format.as_deref().map(OsStr::as_bytes) {
        None => Ok(None),
        Some(b"p" | b"plain") => Ok(Some(Format::Plain)),
        Some(b"t" | b"tar") => Ok(Some(Format::Tar)),
        Some(_) => Err(Error::local(format!(
            "invalid output format \"{}\", must be \"plain\" or \"tar\"",
            shown(raw.format.as_deref())
        ))),
    }
}

fn wal_method(raw: &Arguments) -> Result<Method> {
    match raw.wal_method.as_deref().map(OsStr::as_bytes) {
        Some(b"n" | b"none") => Ok(Method::None),
        Some(b"f" | b"fetch") => Ok(Method::Fetch),
        None if raw.discard => Ok(Method::None),
        None | Some(b"s" | b"stream") => Ok(Method::Stream),
        Some(_) => Err(Error::local(format!(
            "invalid wal-method option \"{}\", must be \"fetch\", \"stream\", or \"none\"",
            shown(raw.wal_method.as_deref())
        ))),
    }
}

fn verify(raw: &Arguments) -> Result<Option<Side>> {
    match raw.verify.as_deref().map(OsStr::as_bytes) {
        None => Ok(None),
        Some(b"client") => Ok(Some(Side::Client)),
        Some(b"server") => Ok(Some(Side::Server)),
        Some(_) => Err(Error::local(format!(
            "invalid verify argument \"{}\", must be \"client\" or \"server\"",
            shown(raw.verify.as_deref())
        ))),
    }
}

/// --discard takes nothing of what says where a backup goes.
fn check_discard(raw: &Arguments, method: Method) -> Result<()> {
    for (option, given) in [
        ("--pgdata", raw.pgdata.is_some()),
        ("--format", raw.format.is_some()),
        ("--volumes", raw.volumes.is_some()),
        ("--target", raw.target.is_some()),
        ("--wal-method", method != Method::None),
        ("--waldir", raw.waldir.is_some()),
        ("--tablespace-mapping", !raw.tablespace_mapping.is_empty()),
        ("--write-recovery-conf", raw.write_recovery_conf),
    ] {
        if given {
            return Err(incompatible("--discard", option));
        }
    }
    Ok(())
}

/// The words for a target that is none are those of a server (`basebackup_target.c`), which pg_basebackup
/// would ask.
fn check_target(target: &str, write_recovery_conf: bool) -> Result<()> {
    let (name, detail) = match target.split_once(':') {
        Some((name, detail)) => (name, Some(detail)),
        None => (target, None),
    };
    match (name, detail) {
        ("blackhole", None) if write_recovery_conf => {
            Err(Error::local("recovery configuration cannot be written when a backup target is used"))
        }
        ("blackhole", None) => Ok(()),
        ("blackhole" | "client", Some(_)) => {
            Err(Error::local(format!("target \"{name}\" does not accept a target detail")))
        }
        ("server", None) => Err(Error::local("target \"server\" requires a target detail")),
        ("server", Some(_)) => Err(Error::local("backup target \"server\" is not supported")
            .with_detail(
                "The files of a parallel backup come over several connections, and it is this program that \
                 puts them together: nothing on the server could write them there.",
            )
            .with_hint("Run this program on the server's host, with -D, or use pg_basebackup.")),
        _ => Err(Error::local(format!("unrecognized target: \"{name}\""))),
    }
}

/// How to compress, checked against where the backup goes.
fn compress(raw: &Arguments, format: Format, has_target: bool) -> Result<Compress> {
    let mut compress = match raw.compress.as_deref() {
        _ if raw.gzip => Compress::gzip(),
        Some(text) => Compress::parse(&text.to_string_lossy())?,
        None => Compress::none(),
    };
    let by_default = if has_target { Side::Server } else { Side::Client };
    let side = *compress.side.get_or_insert(by_default);
    if has_target && side == Side::Client {
        return Err(Error::usage(
            "client-side compression is not possible when a backup target is specified",
        ));
    }
    if format == Format::Plain && side == Side::Client && !compress.is_none() {
        return Err(Error::usage("only tar mode backups can be compressed"));
    }
    Ok(compress)
}

fn slot(raw: &Arguments, method: Method) -> Result<Slot> {
    if raw.slot.is_some() && method != Method::Stream {
        return Err(Error::usage("replication slots can only be used with WAL streaming"));
    }
    if raw.no_slot && raw.slot.is_some() {
        return Err(Error::usage("--no-slot cannot be used with slot name"));
    }
    if raw.create_slot {
        if raw.slot.is_none() {
            return Err(Error::usage("--create-slot needs a slot to be specified using --slot"));
        }
        if raw.no_slot {
            return Err(incompatible("--create-slot", "--no-slot"));
        }
    }
    match &raw.slot {
        Some(name) => Ok(Slot::Named {
            name: name.clone().into_string().map_err(|name| {
                Error::local(format!("invalid replication slot name \"{}\"", name.to_string_lossy()))
            })?,
            create: raw.create_slot,
        }),
        None if raw.no_slot => Ok(Slot::None),
        None => Ok(Slot::Temporary),
    }
}

fn waldir(raw: &Arguments, format: Format, has_target: bool, directory: &OsStr) -> Result<Option<PathBuf>> {
    let Some(waldir) = &raw.waldir else { return Ok(None) };
    if has_target {
        return Err(Error::usage("WAL directory location cannot be specified along with a backup target"));
    }
    if format != Format::Plain {
        return Err(Error::usage("WAL directory location can only be specified in plain mode"));
    }
    let waldir = canonical(Path::new(waldir));
    if !waldir.is_absolute() {
        return Err(Error::usage("WAL directory location must be an absolute path"));
    }
    // By the same name; another name for it is found out when the directories are claimed.
    if std::path::absolute(directory).is_ok_and(|directory| waldir == canonical(&directory)) {
        return Err(Error::usage("WAL directory and output directory must not be the same"));
    }
    Ok(Some(waldir))
}

fn lease(raw: &Arguments) -> Result<Option<Lease>> {
    let Some(text) = raw.lease.as_deref() else { return Ok(None) };
    let seconds = parse_int(text, "--lease", 0, i64::from(i32::MAX))?;
    Ok(Some(u32::try_from(seconds).ok().filter(|seconds| *seconds > 0).map_or(Lease::Never, Lease::Seconds)))
}

/// Where the manifest is that an increment goes on from: a file, or an object.
fn prior_manifest(name: &OsStr) -> Result<Named> {
    match Named::parse(name)? {
        Named::Objects(bucket) if bucket.prefix.is_empty() => {
            Err(Error::usage(format!("\"{bucket}\" is a bucket and no manifest")))
        }
        named => Ok(named),
    }
}

/// Whether a backup can be gone on with. What an archive has of a file nobody can tell, who has not written it.
fn resume(raw: &Arguments, has_lease: bool, is_directory: bool) -> Result<Resume> {
    if !raw.resume {
        return Ok(if has_lease && is_directory && !raw.no_resume {
            Resume::Possible
        } else {
            Resume::Never
        });
    }
    if raw.dry_run {
        return Err(incompatible("--resume", "--dry-run"));
    }
    if !is_directory {
        return Err(Error::usage("only backups in plain format can be resumed"));
    }
    if raw.incremental.is_some() {
        return Err(incompatible("--resume", "--incremental"));
    }
    if !has_lease {
        return Err(Error::usage("--resume needs --lease"));
    }
    Ok(Resume::Now)
}

fn manifest(raw: &Arguments) -> Result<Option<ManifestOptions>> {
    if raw.no_manifest && raw.manifest_checksums.is_some() {
        return Err(incompatible("--no-manifest", "--manifest-checksums"));
    }
    if raw.no_manifest && raw.manifest_force_encode {
        return Err(incompatible("--no-manifest", "--manifest-force-encode"));
    }
    let checksums = match &raw.manifest_checksums {
        None => ChecksumAlgorithm::Crc32c,
        Some(name) => name.to_string_lossy().parse().map_err(|()| {
            Error::local(format!("unrecognized checksum algorithm: \"{}\"", name.to_string_lossy()))
        })?,
    };
    Ok((!raw.no_manifest).then_some(ManifestOptions { checksums, force_encode: raw.manifest_force_encode }))
}

fn incompatible(one: &str, other: &str) -> Error {
    Error::usage(format!("{one} and {other} are incompatible options"))
}

fn lower(text: &OsStr) -> String {
    text.to_string_lossy().to_ascii_lowercase()
}
