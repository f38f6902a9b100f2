//! What is refused, and what an option means that was not given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{Checkpoint, ChecksumAlgorithm};

use super::arguments::Arguments;
use super::numbers::{parse_int, parse_max_rate};
use super::tablespace::{TablespaceMap, canonical};
use super::{ConnectionOptions, ManifestOptions, Options, PasswordPrompt, Side, Slot, Sync, Wal};
use crate::error::{Error, Result};
use crate::report::PROGRAM;

/// Most jobs: no server has more walsenders than MAX_BACKENDS, and nobody's disk has use for them.
const MAX_JOBS: i64 = 1024;

/// How often the server hears of the WAL stream: pg_basebackup's default.
const STATUS_INTERVAL: i64 = 10;

/// Options that do not contradict each other.
pub fn check(raw: Arguments) -> Result<Options> {
    let checkpoint = match raw.checkpoint.as_deref().map(lower).as_deref() {
        None | Some("spread") => Checkpoint::Spread,
        Some("fast") => Checkpoint::Fast,
        Some(_) => {
            return Err(Error::local(format!(
                "invalid checkpoint argument \"{}\", must be \"fast\" or \"spread\"",
                shown(raw.checkpoint.as_deref())
            )));
        }
    };
    match raw.format.as_deref().map(OsStr::as_bytes) {
        None | Some(b"p" | b"plain") => {}
        Some(b"t" | b"tar") => {
            return Err(Error::local("tar format is not supported by this version")
                .with_hint("Leave out -F, or use -F plain."));
        }
        Some(_) => {
            return Err(Error::local(format!(
                "invalid output format \"{}\", must be \"plain\" or \"tar\"",
                shown(raw.format.as_deref())
            )));
        }
    }
    let max_rate = raw.max_rate.as_deref().map(|text| parse_max_rate(&text.to_string_lossy())).transpose()?;
    let status_interval = match raw.status_interval.as_deref() {
        None => STATUS_INTERVAL,
        Some(text) => parse_int(text, "-s/--status-interval", 0, i64::from(i32::MAX / 1000))?,
    };
    let mut tablespaces = TablespaceMap::default();
    for mapping in &raw.tablespace_mapping {
        tablespaces.add(mapping.as_bytes())?;
    }
    enum Method {
        None,
        Fetch,
        Stream,
    }
    let method = match raw.wal_method.as_deref().map(OsStr::as_bytes) {
        Some(b"n" | b"none") => Method::None,
        Some(b"f" | b"fetch") => Method::Fetch,
        None if raw.discard => Method::None,
        None | Some(b"s" | b"stream") => Method::Stream,
        Some(_) => {
            return Err(Error::local(format!(
                "invalid wal-method option \"{}\", must be \"fetch\", \"stream\", or \"none\"",
                shown(raw.wal_method.as_deref())
            )));
        }
    };
    let sync_method = match raw.sync_method.as_deref().map(OsStr::as_bytes) {
        None | Some(b"fsync") => Sync::Fsync,
        Some(b"syncfs") => Sync::Syncfs,
        Some(_) => {
            return Err(Error::local(format!(
                "unrecognized sync method: {}",
                raw.sync_method.as_deref().unwrap_or_default().to_string_lossy()
            )));
        }
    };
    let verify = match raw.verify.as_deref().map(OsStr::as_bytes) {
        None => None,
        Some(b"client") => Some(Side::Client),
        Some(b"server") => Some(Side::Server),
        Some(_) => {
            return Err(Error::local(format!(
                "invalid verify argument \"{}\", must be \"client\" or \"server\"",
                shown(raw.verify.as_deref())
            )));
        }
    };
    let jobs = parse_int(&raw.jobs, "-j/--jobs", 1, MAX_JOBS)?;

    if let Some(first) = raw.rest.first() {
        return Err(Error::usage(format!(
            "too many command-line arguments (first is \"{}\")",
            first.to_string_lossy()
        )));
    }
    if raw.discard {
        for (option, given) in [
            ("--pgdata", raw.pgdata.is_some()),
            ("--wal-method", !matches!(method, Method::None)),
            ("--waldir", raw.waldir.is_some()),
            ("--tablespace-mapping", !raw.tablespace_mapping.is_empty()),
            ("--write-recovery-conf", raw.write_recovery_conf),
        ] {
            if given {
                return Err(incompatible("--discard", option));
            }
        }
    }
    let target = match raw.pgdata {
        Some(target) => target,
        None if raw.discard => OsString::new(),
        None => return Err(Error::usage("must specify output directory")),
    };
    if raw.slot.is_some() && !matches!(method, Method::Stream) {
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
    // Without "." alone: what ".." means here depends on links.
    let target: PathBuf = PathBuf::from(target).components().collect();
    let waldir = raw.waldir.map(|path| canonical(Path::new(&path)));
    if waldir.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(Error::usage("WAL directory location must be an absolute path"));
    }
    // By the same name; another name for it is found out when the directories are claimed.
    if let (Some(waldir), Ok(target)) = (&waldir, std::path::absolute(&target))
        && *waldir == canonical(&target)
    {
        return Err(Error::usage("WAL directory and output directory must not be the same"));
    }
    if raw.progress && raw.no_estimate_size {
        return Err(incompatible("--progress", "--no-estimate-size"));
    }
    if raw.no_manifest && raw.manifest_checksums.is_some() {
        return Err(incompatible("--no-manifest", "--manifest-checksums"));
    }
    if raw.no_manifest && raw.manifest_force_encode {
        return Err(incompatible("--no-manifest", "--manifest-force-encode"));
    }
    let checksums = match raw.manifest_checksums {
        None => ChecksumAlgorithm::Crc32c,
        Some(name) => name.to_string_lossy().parse().map_err(|()| {
            Error::local(format!("unrecognized checksum algorithm: \"{}\"", name.to_string_lossy()))
        })?,
    };
    let slot = match raw.slot {
        Some(name) => Slot::Named {
            name: name.into_string().map_err(|name| {
                Error::local(format!("invalid replication slot name \"{}\"", name.to_string_lossy()))
            })?,
            create: raw.create_slot,
        },
        None if raw.no_slot => Slot::None,
        None => Slot::Temporary,
    };
    Ok(Options {
        target,
        // Between 1 and MAX_JOBS.
        jobs: usize::try_from(jobs).unwrap_or(1),
        tablespaces,
        checkpoint,
        label: raw.label.map_or_else(|| format!("{PROGRAM} base backup").into_bytes(), OsStringExt::into_vec),
        progress: raw.progress,
        verbose: raw.verbose > 0,
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
        sync: if raw.no_sync || raw.discard { Sync::None } else { sync_method },
        // What --discard would write into it is made all the same.
        manifest: (!raw.no_manifest)
            .then_some(ManifestOptions { checksums, force_encode: raw.manifest_force_encode }),
        verify_checksums: !raw.no_verify_checksums,
        verify,
        discard: raw.discard,
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
    })
}

fn incompatible(one: &str, other: &str) -> Error {
    Error::usage(format!("{one} and {other} are incompatible options"))
}

fn lower(text: &OsStr) -> String {
    text.to_string_lossy().to_ascii_lowercase()
}

fn shown(text: Option<&OsStr>) -> String {
    text.unwrap_or_default().to_string_lossy().into_owned()
}
