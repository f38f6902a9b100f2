//! The command line: pg_basebackup's options under pg_basebackup's names, parsed once into types
//! that cannot contradict each other.

pub mod tablespace;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser};
use protocol::{Checkpoint, ChecksumAlgorithm};

use crate::error::{Error, Result};
use crate::options::tablespace::{TablespaceMap, canonical};
use crate::report::PROGRAM;

/// What the user wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the backup goes.
    pub target: PathBuf,
    /// Connections that carry files.
    pub jobs: usize,
    /// Where tablespaces go instead.
    pub tablespaces: TablespaceMap,
    /// How the starting checkpoint is spread.
    pub checkpoint: Checkpoint,
    /// The backup label.
    pub label: Vec<u8>,
    /// Show progress.
    pub progress: bool,
    /// Say more.
    pub verbose: bool,
    /// In kB/s.
    pub max_rate: Option<u32>,
    /// How WAL gets into the backup.
    pub wal: Wal,
    /// Where WAL goes instead of pg_wal.
    pub waldir: Option<PathBuf>,
    /// Make the copy a standby.
    pub write_recovery_conf: bool,
    /// Leave the pieces of a failed backup.
    pub no_clean: bool,
    /// How the copy gets to disk.
    pub sync: Sync,
    /// What the manifest is to be, if there is to be one.
    pub manifest: Option<ManifestOptions>,
    /// Whether page checksums are verified.
    pub verify_checksums: bool,
    /// Who verifies those of relation files; by the kind of connection if it was not said.
    pub verify: Option<Side>,
    /// Write nothing: to measure what it costs to get here.
    pub discard: bool,
    /// Read transfers from the socket without libpq, where that can be.
    pub past_libpq: bool,
    /// How to connect.
    pub connection: ConnectionOptions,
}

/// How WAL gets into the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wal {
    /// Not at all: it is expected in an archive.
    None,
    /// After the backup, from pg_wal.
    Fetch,
    /// While the backup runs, over a connection of its own.
    Stream {
        /// The slot that keeps it from being removed.
        slot: Slot,
        /// How often the server is told how far we are; never for zero.
        status_interval: Duration,
    },
}

/// The replication slot of a WAL stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// None.
    None,
    /// One that goes away with the connection.
    Temporary,
    /// The user's.
    Named {
        /// Its name.
        name: String,
        /// Whether it is to be created.
        create: bool,
    },
}

/// An end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This one.
    Client,
    /// The other.
    Server,
}

/// How the copy gets to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// As the operating system likes.
    None,
    /// Each file.
    Fsync,
    /// Each file system.
    Syncfs,
}

/// What the manifest is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestOptions {
    /// The files' checksums.
    pub checksums: ChecksumAlgorithm,
    /// Write all names in hex.
    pub force_encode: bool,
}

/// How to connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// A connection string or URI.
    pub conninfo: Option<OsString>,
    /// -h.
    pub host: Option<OsString>,
    /// -p.
    pub port: Option<OsString>,
    /// -U.
    pub user: Option<OsString>,
    /// When to ask for a password.
    pub password: PasswordPrompt,
}

/// When to ask for a password.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PasswordPrompt {
    /// When the server wants one.
    #[default]
    Auto,
    /// Never.
    Never,
    /// At once.
    Always,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// A backup.
    Backup(Box<Options>),
    /// Some text on stdout, and success.
    Print(String),
}

/// Reads a command line, the program's name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    let raw = match Arguments::try_parse_from(arguments) {
        Ok(raw) => raw,
        Err(error) => return Err(usage_error(&error)),
    };
    if raw.help {
        return Ok(Invocation::Print(Arguments::command().render_help().to_string()));
    }
    if raw.version {
        return Ok(Invocation::Print(format!(
            "{PROGRAM} (pg_parallel_backup) {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    check(raw).map(|options| Invocation::Backup(Box::new(options)))
}

/// The options as typed. Values are `OsString`s where they are bytes to PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    about = "Takes a base backup of a running PostgreSQL server over several connections at once.",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true
)]
struct Arguments {
    /// Directory that receives the backup
    #[arg(short = 'D', long = "pgdata", value_name = "DIRECTORY", help_heading = OUTPUT)]
    pgdata: Option<OsString>,
    /// Output format; only plain (the default) so far
    #[arg(short = 'F', long, value_name = "p|t", help_heading = OUTPUT)]
    format: Option<OsString>,
    /// Number of connections that fetch files
    #[arg(short = 'j', long, value_name = "NUM", default_value = "4", help_heading = OUTPUT, allow_hyphen_values = true)]
    jobs: OsString,
    /// Limit of all connections together, in kB/s or with suffix "k" or "M"
    #[arg(short = 'r', long, value_name = "RATE", help_heading = OUTPUT, allow_hyphen_values = true)]
    max_rate: Option<OsString>,
    /// Set the copy up as a standby of this server
    #[arg(short = 'R', long, help_heading = OUTPUT)]
    write_recovery_conf: bool,
    /// Put the tablespace in OLDDIR into NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR", help_heading = OUTPUT, action = ArgAction::Append)]
    tablespace_mapping: Vec<OsString>,
    /// Directory for the write-ahead log, linked from pg_wal
    #[arg(long, value_name = "WALDIR", help_heading = OUTPUT)]
    waldir: Option<OsString>,
    /// How the needed WAL gets into the backup (default: stream)
    #[arg(short = 'X', long, value_name = "none|fetch|stream", help_heading = OUTPUT)]
    wal_method: Option<OsString>,

    /// Kind of checkpoint to start with (default: spread)
    #[arg(short = 'c', long, value_name = "fast|spread", help_heading = GENERAL)]
    checkpoint: Option<OsString>,
    /// Create the slot named by --slot
    #[arg(short = 'C', long, help_heading = GENERAL)]
    create_slot: bool,
    /// Backup label
    #[arg(short = 'l', long, value_name = "LABEL", help_heading = GENERAL, allow_hyphen_values = true)]
    label: Option<OsString>,
    /// Keep what a failed backup leaves behind
    #[arg(short = 'n', long, help_heading = GENERAL)]
    no_clean: bool,
    /// Do not wait until the backup is on disk
    #[arg(short = 'N', long, help_heading = GENERAL)]
    no_sync: bool,
    /// Show progress
    #[arg(short = 'P', long, help_heading = GENERAL)]
    progress: bool,
    /// Existing replication slot for the WAL stream
    #[arg(short = 'S', long, value_name = "SLOTNAME", help_heading = GENERAL)]
    slot: Option<OsString>,
    /// Say what is being done
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = GENERAL)]
    verbose: u8,
    /// Print the version and exit
    #[arg(short = 'V', long, help_heading = GENERAL)]
    version: bool,
    /// Checksums of files in the manifest (default: CRC32C)
    #[arg(long, value_name = "SHA{224,256,384,512}|CRC32C|NONE", help_heading = GENERAL)]
    manifest_checksums: Option<OsString>,
    /// Write every file name of the manifest in hex
    #[arg(long, help_heading = GENERAL)]
    manifest_force_encode: bool,
    /// Accepted: the server estimates nothing, the list has all sizes
    #[arg(long, help_heading = GENERAL)]
    no_estimate_size: bool,
    /// Write no backup manifest
    #[arg(long, help_heading = GENERAL)]
    no_manifest: bool,
    /// Use no temporary replication slot
    #[arg(long, help_heading = GENERAL)]
    no_slot: bool,
    /// Do not verify page checksums
    #[arg(long, help_heading = GENERAL)]
    no_verify_checksums: bool,
    /// Who verifies relation files (default: client on connections without encryption to a cluster
    /// with page checksums, else server)
    #[arg(long, value_name = "client|server", help_heading = GENERAL)]
    verify: Option<OsString>,
    /// Receive and verify everything and write nothing, for measuring
    #[arg(long, help_heading = GENERAL)]
    discard: bool,
    /// Let libpq read transfers on every connection, for measuring
    #[arg(long, hide = true)]
    through_libpq: bool,
    /// How files get to disk
    #[arg(long, value_name = "fsync|syncfs", help_heading = GENERAL)]
    sync_method: Option<OsString>,
    /// Show this help and exit
    #[arg(short = '?', long, help_heading = GENERAL)]
    help: bool,

    /// Connection string
    #[arg(short = 'd', long, value_name = "CONNSTR", help_heading = CONNECTION)]
    dbname: Option<OsString>,
    /// Server's host or socket directory
    #[arg(short = 'h', long, value_name = "HOSTNAME", help_heading = CONNECTION)]
    host: Option<OsString>,
    /// Server's port
    #[arg(short = 'p', long, value_name = "PORT", help_heading = CONNECTION)]
    port: Option<OsString>,
    /// Seconds between status messages (default: 10)
    #[arg(short = 's', long, value_name = "INTERVAL", help_heading = CONNECTION, allow_hyphen_values = true)]
    status_interval: Option<OsString>,
    /// Role to connect as
    #[arg(short = 'U', long, value_name = "NAME", help_heading = CONNECTION)]
    username: Option<OsString>,
    /// Never ask for a password
    #[arg(short = 'w', long, help_heading = CONNECTION, overrides_with = "password")]
    no_password: bool,
    /// Ask for a password before connecting
    #[arg(short = 'W', long, help_heading = CONNECTION, overrides_with = "no_password")]
    password: bool,

    #[arg(hide = true)]
    rest: Vec<OsString>,
}

const OUTPUT: &str = "Options controlling the output";
const GENERAL: &str = "General options";
const CONNECTION: &str = "Connection options";

/// Most jobs: no server has more walsenders than MAX_BACKENDS, and nobody's disk has use for them.
const MAX_JOBS: i64 = 1024;

/// How often the server hears of the WAL stream: pg_basebackup's default.
const STATUS_INTERVAL: i64 = 10;

fn check(raw: Arguments) -> Result<Options> {
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

/// --max-rate: kB/s as a decimal number, with "k" or "M" behind it.
fn parse_max_rate(source: &str) -> Result<u32> {
    let text = source.trim_start();
    let digits = number_prefix(text);
    let invalid = || Error::local(format!("transfer rate \"{source}\" is not a valid value"));
    if digits == 0 {
        return Err(invalid());
    }
    let mut rate: f64 = text[..digits].parse().map_err(|_| invalid())?;
    if rate <= 0.0 {
        return Err(Error::local("transfer rate must be greater than zero"));
    }
    let suffix = text[digits..].trim();
    match suffix {
        "" | "k" => {}
        "M" => rate *= 1024.0,
        other => return Err(Error::local(format!("invalid --max-rate unit: \"{other}\""))),
    }
    if rate > f64::from(u32::MAX) {
        return Err(Error::local(format!("transfer rate \"{source}\" exceeds integer range")));
    }
    // Positive and in range: what is behind the point is cut off, as pg_basebackup does.
    let rate = rate as u32;
    if protocol::command::MAX_RATE_RANGE.contains(&i64::from(rate)) {
        Ok(rate)
    } else {
        Err(Error::local(format!("transfer rate \"{source}\" is out of range")))
    }
}

/// Length of the decimal number that a text begins with: sign, digits, point, exponent.
fn number_prefix(text: &str) -> usize {
    (1..=text.len())
        .rev()
        .filter(|end| text.is_char_boundary(*end))
        .find(|end| {
            let prefix = &text[..*end];
            prefix.ends_with(|c: char| c.is_ascii_digit() || c == '.')
                && !prefix.contains(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E')
                && prefix.parse::<f64>().is_ok()
        })
        .unwrap_or(0)
}

fn parse_int(text: &OsStr, option: &str, least: i64, most: i64) -> Result<i64> {
    let value: i64 = text.to_string_lossy().trim().parse().map_err(|_| {
        Error::local(format!("invalid value \"{}\" for option {option}", text.to_string_lossy()))
    })?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Error::local(format!("{option} must be in range {least}..{most}")))
    }
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

/// What clap found, in the words of getopt_long.
fn usage_error(error: &clap::Error) -> Error {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let option = argument.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => Error::usage(format!("unrecognized option \"{option}\"")),
        ErrorKind::InvalidValue | ErrorKind::NoEquals | ErrorKind::WrongNumberOfValues
            if error.get(ContextKind::InvalidValue).is_none_or(|value| value.to_string().is_empty()) =>
        {
            Error::usage(format!("option \"{option}\" requires an argument"))
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Error::usage(line.strip_prefix("error: ").unwrap_or(line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options> {
        let line = std::iter::once(PROGRAM).chain(arguments.iter().copied()).map(OsString::from);
        match parse(line)? {
            Invocation::Backup(options) => Ok(*options),
            Invocation::Print(text) => panic!("printed {text}"),
        }
    }

    fn complaint(arguments: &[&str]) -> String {
        options(arguments).unwrap_err().message().to_owned()
    }

    #[test]
    fn the_command_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let options = options(&["-D", "x"]).unwrap();
        assert_eq!(options.jobs, 4);
        assert_eq!(options.label, b"pg_parallel_basebackup base backup");
        assert_eq!(options.checkpoint, Checkpoint::Spread);
        assert_eq!(
            options.wal,
            Wal::Stream { slot: Slot::Temporary, status_interval: Duration::from_secs(10) }
        );
        assert_eq!(options.sync, Sync::Fsync);
        assert_eq!(
            options.manifest,
            Some(ManifestOptions { checksums: ChecksumAlgorithm::Crc32c, force_encode: false })
        );
        assert!(options.verify_checksums && options.past_libpq);
        assert!(options.verify.is_none() && !options.discard);
        assert_eq!(options.connection, ConnectionOptions::default());
    }

    #[test]
    fn every_option_by_its_names() {
        let options = options(&[
            "--pgdata=/t",
            "-j8",
            "-Fp",
            "-r",
            "1M",
            "-R",
            "-T/a=/b",
            "--tablespace-mapping=/c=/d",
            "--waldir=/w/",
            "-Xs",
            "-cFAST",
            "-C",
            "-Ss1",
            "-l",
            "-label",
            "-n",
            "-N",
            "-P",
            "-vv",
            "--manifest-checksums=sha256",
            "--manifest-force-encode",
            "--no-verify-checksums",
            "--verify=server",
            "--sync-method",
            "syncfs",
            "-d",
            "host=a",
            "-h",
            "b",
            "-p",
            "1",
            "-s",
            "0",
            "-U",
            "u",
            "-w",
            "-W",
        ])
        .unwrap();
        assert_eq!(options.jobs, 8);
        assert_eq!(options.max_rate, Some(1024));
        assert_eq!(options.waldir.unwrap().as_os_str(), "/w");
        assert_eq!(options.label, b"-label");
        assert_eq!(options.sync, Sync::None);
        assert_eq!(
            options.wal,
            Wal::Stream {
                slot: Slot::Named { name: "s1".into(), create: true },
                status_interval: Duration::ZERO
            }
        );
        assert_eq!(options.connection.password, PasswordPrompt::Always);
        assert_eq!(options.connection.host.unwrap(), "b");
        assert!(options.write_recovery_conf && options.no_clean && options.progress && options.verbose);
        assert!(!options.verify_checksums);
        assert_eq!(options.verify, Some(Side::Server));
    }

    #[test]
    fn directories_by_their_shortest_names() {
        for (argument, target) in [("new/.", "new"), ("./new/", "./new"), ("a/../b", "a/../b"), (".", ".")] {
            assert_eq!(options(&["-D", argument]).unwrap().target.as_os_str(), target);
        }
        let options = options(&["-D", "x", "--waldir", "/a/../w/."]).unwrap();
        assert_eq!(options.waldir.unwrap().as_os_str(), "/w");
    }

    #[test]
    fn discard_needs_no_place() {
        let options = options(&["--discard", "--verify", "client"]).unwrap();
        assert!(options.discard);
        assert_eq!(options.verify, Some(Side::Client));
        assert_eq!((options.wal, options.sync), (Wal::None, Sync::None));
    }

    #[test]
    fn the_last_of_a_repeated_option_counts_and_names_can_be_cut() {
        let options = options(&["-D", "x", "-D", "y", "--check=fast", "--wal-m=none"]).unwrap();
        assert_eq!(options.target.as_os_str(), "y");
        assert_eq!(options.checkpoint, Checkpoint::Fast);
        assert_eq!(options.wal, Wal::None);
    }

    #[test]
    fn conflicts() {
        for (arguments, message) in [
            (&["-v"][..], "must specify output directory"),
            (&["-D", "x", "y"], "too many command-line arguments (first is \"y\")"),
            (&["-D", "x", "-X", "fetch", "-S", "s"], "replication slots can only be used with WAL streaming"),
            (&["-D", "x", "--no-slot", "-S", "s"], "--no-slot cannot be used with slot name"),
            (&["-D", "x", "-C"], "--create-slot needs a slot to be specified using --slot"),
            (&["-D", "x", "-C", "--no-slot"], "--create-slot needs a slot to be specified using --slot"),
            (&["-D", "x", "--discard"], "--discard and --pgdata are incompatible options"),
            (&["--discard", "-X", "fetch"], "--discard and --wal-method are incompatible options"),
            (
                &["-D", "x", "--verify=both"],
                "invalid verify argument \"both\", must be \"client\" or \"server\"",
            ),
            (
                &["-D", "/x/y", "--waldir", "/x/./z/../y/"],
                "WAL directory and output directory must not be the same",
            ),
            (&["-D", "x", "--waldir", "w"], "WAL directory location must be an absolute path"),
            (
                &["-D", "x", "-P", "--no-estimate-size"],
                "--progress and --no-estimate-size are incompatible options",
            ),
            (
                &["-D", "x", "--no-manifest", "--manifest-checksums=none"],
                "--no-manifest and --manifest-checksums are incompatible options",
            ),
            (
                &["-D", "x", "--no-manifest", "--manifest-force-encode"],
                "--no-manifest and --manifest-force-encode are incompatible options",
            ),
            (
                &["-D", "x", "-c", "slow"],
                "invalid checkpoint argument \"slow\", must be \"fast\" or \"spread\"",
            ),
            (
                &["-D", "x", "-X", "all"],
                "invalid wal-method option \"all\", must be \"fetch\", \"stream\", or \"none\"",
            ),
            (&["-D", "x", "-F", "z"], "invalid output format \"z\", must be \"plain\" or \"tar\""),
            (&["-D", "x", "-Ft"], "tar format is not supported by this version"),
            (&["-D", "x", "-j", "0"], "-j/--jobs must be in range 1..1024"),
            (&["-D", "x", "-j", "two"], "invalid value \"two\" for option -j/--jobs"),
            (&["-D", "x", "-s", "-1"], "-s/--status-interval must be in range 0..2147483"),
            (&["-D", "x", "--sync-method=no"], "unrecognized sync method: no"),
            (&["-D", "x", "--manifest-checksums=md5"], "unrecognized checksum algorithm: \"md5\""),
            (&["-D", "x", "--nonsense"], "unrecognized option \"--nonsense\""),
            (&["-D"], "option \"--pgdata\" requires an argument"),
        ] {
            assert_eq!(complaint(arguments), message, "{arguments:?}");
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in
            [("32", 32), ("100k", 100), (" 64 k ", 64), ("1M", 1024), ("1.5M", 1536), ("1024M", 1_048_576)]
        {
            assert_eq!(parse_max_rate(text).unwrap(), rate, "{text}");
        }
        for (text, message) in [
            ("", "transfer rate \"\" is not a valid value"),
            ("fast", "transfer rate \"fast\" is not a valid value"),
            ("0", "transfer rate must be greater than zero"),
            ("-1", "transfer rate must be greater than zero"),
            ("31", "transfer rate \"31\" is out of range"),
            ("1025M", "transfer rate \"1025M\" is out of range"),
            ("10G", "invalid --max-rate unit: \"G\""),
            ("10kB", "invalid --max-rate unit: \"kB\""),
            ("99999999999", "transfer rate \"99999999999\" exceeds integer range"),
        ] {
            assert_eq!(parse_max_rate(text).unwrap_err().message(), message);
        }
    }

    #[test]
    fn help_and_version() {
        for flag in ["-?", "--help"] {
            match parse([PROGRAM, flag].map(OsString::from)).unwrap() {
                Invocation::Print(text) => {
                    assert!(text.contains("--tablespace-mapping <OLDDIR=NEWDIR>"), "{text}");
                    assert!(text.contains("-h, --host"), "{text}");
                }
                Invocation::Backup(_) => panic!("{flag} starts a backup"),
            }
        }
        match parse([PROGRAM, "-V"].map(OsString::from)).unwrap() {
            Invocation::Print(text) => assert!(text.starts_with("pg_parallel_basebackup (")),
            Invocation::Backup(_) => panic!("-V starts a backup"),
        }
    }
}
