//! The command line as typed: names, help, and what clap says of it in the words of getopt_long.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, Parser, ValueHint};

use crate::error::Error;
use crate::report::PROGRAM;

/// Widest line of --help: what a terminal has, but no more than PostgreSQL's own programs print, whose tests
/// (`program_help_ok`) allow 95.
const WIDTH: usize = 90;

/// What --help consists of, in pg_basebackup's order.
const HELP: &str = "{about-with-newline}\n{usage-heading}\n  {usage}\n\n{all-args}";

/// What goes into every usage line behind the program's name.
pub const USAGE: &str = "[OPTION]...";

/// The options as typed. Values are `OsString`s where they are bytes to PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    help_template = HELP,
    max_term_width = WIDTH,
    about = "Takes a base backup of a running PostgreSQL server over several connections at once.",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true
)]
pub struct Arguments {
    /// Directory that receives the backup, or s3://BUCKET/PREFIX, gs://..., az://...
    #[arg(short = 'D', long = "pgdata", value_name = "DIRECTORY|URL", help_heading = OUTPUT, value_hint = ValueHint::DirPath)]
    pub pgdata: Option<OsString>,
    /// Output format: plain (the default) or tar
    #[arg(short = 'F', long, value_name = "p|t", help_heading = OUTPUT)]
    pub format: Option<OsString>,
    /// Only what has changed since the backup with this manifest, a file or the URL of an object
    #[arg(short = 'i', long, value_name = "OLDMANIFEST", help_heading = OUTPUT, value_hint = ValueHint::FilePath)]
    pub incremental: Option<OsString>,
    /// Number of connections that fetch files
    #[arg(short = 'j', long, value_name = "NUM", default_value = "4", help_heading = OUTPUT, allow_hyphen_values = true)]
    pub jobs: OsString,
    /// Limit of all connections together, in kB/s or with suffix "k" or "M"
    #[arg(short = 'r', long, value_name = "RATE", help_heading = OUTPUT, allow_hyphen_values = true)]
    pub max_rate: Option<OsString>,
    /// Set the copy up as a standby of this server
    #[arg(short = 'R', long, help_heading = OUTPUT)]
    pub write_recovery_conf: bool,
    /// Where the backup goes: to this client (the default), or nowhere
    #[arg(short = 't', long, value_name = "client|blackhole", help_heading = OUTPUT)]
    pub target: Option<OsString>,
    /// Put the tablespace in OLDDIR into NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR", help_heading = OUTPUT, action = ArgAction::Append)]
    pub tablespace_mapping: Vec<OsString>,
    /// Many archives of about SIZE (default: 1GB), written beside each other, and an index
    #[arg(long, value_name = "SIZE", help_heading = OUTPUT, num_args = 0..=1, require_equals = true,
          default_missing_value = "1GB")]
    pub volumes: Option<OsString>,
    /// Directory for the write-ahead log, linked from pg_wal
    #[arg(long, value_name = "WALDIR", help_heading = OUTPUT, value_hint = ValueHint::DirPath)]
    pub waldir: Option<OsString>,
    /// How the needed WAL gets into the backup (default: stream)
    #[arg(short = 'X', long, value_name = "none|fetch|stream", help_heading = OUTPUT)]
    pub wal_method: Option<OsString>,
    /// Compress tar output with gzip
    #[arg(short = 'z', long, help_heading = OUTPUT, overrides_with = "compress")]
    pub gzip: bool,
    /// Compress on the client or the server, or not at all ("none")
    #[arg(short = 'Z', long, value_name = "[{client|server}-]METHOD[:DETAIL]", help_heading = OUTPUT, overrides_with = "gzip")]
    pub compress: Option<OsString>,

    /// Kind of checkpoint to start with (default: spread)
    #[arg(short = 'c', long, value_name = "fast|spread", help_heading = GENERAL)]
    pub checkpoint: Option<OsString>,
    /// Create the slot named by --slot
    #[arg(short = 'C', long, help_heading = GENERAL)]
    pub create_slot: bool,
    /// Backup label
    #[arg(short = 'l', long, value_name = "LABEL", help_heading = GENERAL, allow_hyphen_values = true)]
    pub label: Option<OsString>,
    /// Seconds for which the server keeps the backup when its connection is lost (default: up to 300 where it can; 0: not)
    #[arg(long, value_name = "SECONDS", help_heading = GENERAL, allow_hyphen_values = true)]
    pub lease: Option<OsString>,
    /// Go on with the backup that a client has left in DIRECTORY
    #[arg(long, help_heading = GENERAL, overrides_with = "no_resume")]
    pub resume: bool,
    /// Leave nothing to go on with: remove all of a backup that is interrupted
    #[arg(long, help_heading = GENERAL, overrides_with = "resume")]
    pub no_resume: bool,
    /// Take no backup: remove what an interrupted one has left below the URL
    #[arg(long, help_heading = GENERAL)]
    pub remove_leftovers: bool,
    /// Keep what a failed backup leaves behind
    #[arg(short = 'n', long, help_heading = GENERAL)]
    pub no_clean: bool,
    /// Do not wait until the backup is on disk
    #[arg(short = 'N', long, help_heading = GENERAL)]
    pub no_sync: bool,
    /// Show progress, to people or, as JSON, to a program
    #[arg(short = 'P', long, value_name = "json", help_heading = GENERAL, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    pub progress: Option<OsString>,
    /// Existing replication slot for the WAL stream
    #[arg(short = 'S', long, value_name = "SLOTNAME", help_heading = GENERAL)]
    pub slot: Option<OsString>,
    /// Say what is being done
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = GENERAL)]
    pub verbose: u8,
    /// Print the version and exit
    #[arg(short = 'V', long, help_heading = GENERAL)]
    pub version: bool,
    /// Checksums of files in the manifest (default: CRC32C)
    #[arg(long, value_name = "SHA{224,256,384,512}|CRC32C|NONE", help_heading = GENERAL)]
    pub manifest_checksums: Option<OsString>,
    /// Write every file name of the manifest in hex
    #[arg(long, help_heading = GENERAL)]
    pub manifest_force_encode: bool,
    /// Do not look before the backup how large it will be, and whether there is room for it
    #[arg(long, help_heading = GENERAL)]
    pub no_estimate_size: bool,
    /// Write no backup manifest
    #[arg(long, help_heading = GENERAL)]
    pub no_manifest: bool,
    /// Use no temporary replication slot
    #[arg(long, help_heading = GENERAL)]
    pub no_slot: bool,
    /// Do not verify page checksums
    #[arg(long, help_heading = GENERAL)]
    pub no_verify_checksums: bool,
    /// Who verifies relation files (default: client on connections without encryption to a cluster
    /// with page checksums, else server)
    #[arg(long, value_name = "client|server", help_heading = GENERAL)]
    pub verify: Option<OsString>,
    /// The same as --target=blackhole --wal-method=none
    #[arg(long, help_heading = GENERAL)]
    pub discard: bool,
    /// Let libpq read transfers on every connection, for measuring
    #[arg(long, hide = true)]
    pub through_libpq: bool,
    /// How files get to disk
    #[arg(long, value_name = "fsync|syncfs", help_heading = GENERAL)]
    pub sync_method: Option<OsString>,
    /// Print a manual page, or completions for a shell, and exit
    #[arg(long, value_name = "man|bash|zsh|fish", help_heading = GENERAL, hide = true)]
    pub generate: Option<OsString>,
    /// Do all but the backup, and say what it would be
    #[arg(long, help_heading = GENERAL)]
    pub dry_run: bool,
    /// Write what the backup was into FILE, as JSON; "-" is standard output
    #[arg(long, value_name = "FILE", help_heading = GENERAL, value_hint = ValueHint::FilePath)]
    pub report: Option<OsString>,
    /// Show this help and exit
    #[arg(short = '?', long, help_heading = GENERAL)]
    pub help: bool,

    /// Connection string
    #[arg(short = 'd', long, value_name = "CONNSTR", help_heading = CONNECTION)]
    pub dbname: Option<OsString>,
    /// Server's host or socket directory
    #[arg(short = 'h', long, value_name = "HOSTNAME", help_heading = CONNECTION, value_hint = ValueHint::Hostname)]
    pub host: Option<OsString>,
    /// Server's port
    #[arg(short = 'p', long, value_name = "PORT", help_heading = CONNECTION)]
    pub port: Option<OsString>,
    /// Seconds between status messages (default: 10)
    #[arg(short = 's', long, value_name = "INTERVAL", help_heading = CONNECTION, allow_hyphen_values = true)]
    pub status_interval: Option<OsString>,
    /// Role to connect as
    #[arg(short = 'U', long, value_name = "NAME", help_heading = CONNECTION, value_hint = ValueHint::Username)]
    pub username: Option<OsString>,
    /// Never ask for a password
    #[arg(short = 'w', long, help_heading = CONNECTION, overrides_with = "password")]
    pub no_password: bool,
    /// Ask for a password before connecting
    #[arg(short = 'W', long, help_heading = CONNECTION, overrides_with = "no_password")]
    pub password: bool,

    #[arg(hide = true)]
    pub rest: Vec<OsString>,
}

const OUTPUT: &str = "Options controlling the output";
const GENERAL: &str = "General options";
const CONNECTION: &str = "Connection options";

/// What clap found, in the words of getopt_long.
pub fn usage_error(error: &clap::Error) -> Error {
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
