//! The command line: pg_basebackup's options under pg_basebackup's names, parsed once into types
//! that cannot contradict each other.

pub mod arguments;
pub mod check;
pub mod compress;
pub mod generate;
pub mod numbers;
pub mod tablespace;
pub mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use protocol::{Checkpoint, ChecksumAlgorithm};

use self::arguments::{Arguments, USAGE, usage_error};
use self::check::check;
use self::compress::Compress;
use self::tablespace::TablespaceMap;
use crate::error::Result;
use crate::objects::location::{Location, Named};
use crate::report::{self, PROGRAM};

/// What the user wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the backup goes.
    pub target: PathBuf,
    /// The same, if it is a prefix of an object store.
    pub objects: Option<Location>,
    /// In which form.
    pub format: Format,
    /// Of which size archives are, if there are to be many of them.
    pub volumes: Option<u64>,
    /// How it is compressed, and where.
    pub compress: Compress,
    /// The manifest of the backup that this one is to go on from, if it is to have only what has changed since.
    pub incremental: Option<Named>,
    /// Connections that carry files.
    pub jobs: usize,
    /// Where tablespaces go instead.
    pub tablespaces: TablespaceMap,
    /// How the starting checkpoint is spread.
    pub checkpoint: Checkpoint,
    /// The backup label.
    pub label: Vec<u8>,
    /// Look how large the cluster is, and whether there is room for it, before the backup starts.
    pub estimate: bool,
    /// Say what would be done, and do not do it.
    pub dry_run: bool,
    /// Where a report of the backup goes.
    pub report: Option<PathBuf>,
    /// Show progress, and to whom.
    pub progress: Option<Progress>,
    /// Say more.
    pub verbose: bool,
    /// Whether the server is to keep the backup when the connection that coordinates it is lost.
    pub lease: Lease,
    /// Whether a backup with a lease can be gone on with after this process.
    pub resume: Resume,
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
    /// Write nothing: the target is the black hole.
    pub discard: bool,
    /// Read transfers from the socket without libpq, where that can be.
    pub past_libpq: bool,
    /// How to connect.
    pub connection: ConnectionOptions,
}

impl Options {
    /// Whether the backup itself goes to standard output.
    pub fn is_stdout(&self) -> bool {
        self.format == Format::Tar && self.target.as_os_str() == STDOUT
    }
}

/// The name that stands for standard output.
pub const STDOUT: &str = "-";

/// The form of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory like the server's.
    Plain,
    /// An archive for each tablespace.
    Tar,
}

/// How long the server is to keep a backup whose coordinator it has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Not at all.
    Never,
    /// Nothing was said of it: some minutes, if that takes nothing that somebody else could need, and can be had.
    Light,
    /// So many seconds, for as many of which another process can go on with it.
    Seconds(u32),
}

impl Lease {
    /// What is asked of the server, if anything.
    pub fn seconds(self) -> Option<u32> {
        match self {
            Self::Never => None,
            Self::Light => Some(LIGHT_LEASE),
            Self::Seconds(seconds) => Some(seconds),
        }
    }

    /// Whether the user has asked for it.
    pub fn is_asked_for(self) -> bool {
        matches!(self, Self::Seconds(_))
    }
}

/// Of a lease that nobody has asked for: long enough for a switch or a firewall that is restarted.
const LIGHT_LEASE: u32 = 300;

/// What is to be done about a backup that this process, or one before it, does not bring to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// It cannot be gone on with.
    Never,
    /// It is left so that another process can go on with it.
    Possible,
    /// This is the process that goes on with it.
    Now,
}

/// Who looks at progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// People.
    Text,
    /// A program, which gets a line of JSON a second.
    Json,
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
    /// To remove what an interrupted one has left below a prefix.
    RemoveLeftovers(Location),
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
        return Ok(Invocation::Print(help()));
    }
    if raw.version {
        return Ok(Invocation::Print(format!(
            "{PROGRAM} (pg_parallel_backup) {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    if let Some(what) = &raw.generate {
        return generate::generate(&what.to_string_lossy()).map(Invocation::Print);
    }
    if raw.remove_leftovers {
        return check::leftovers(&raw).map(Invocation::RemoveLeftovers);
    }
    check(raw).map(|options| Invocation::Backup(Box::new(options)))
}

/// --help, under the name by which the program was called.
fn help() -> String {
    let mut command = Arguments::command().override_usage(format!("{} {USAGE}", report::program()));
    command.render_help().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options> {
        let line = std::iter::once(PROGRAM).chain(arguments.iter().copied()).map(OsString::from);
        match parse(line)? {
            Invocation::Backup(options) => Ok(*options),
            other => panic!("no backup: {other:?}"),
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
        assert_eq!(options.lease, Lease::Light);
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
            "--lease=60",
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
        assert_eq!((options.lease, options.resume), (Lease::Seconds(60), Resume::Possible));
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
        assert!(options.write_recovery_conf && options.no_clean && options.verbose);
        assert_eq!(options.progress, Some(Progress::Text));
        assert!(!options.verify_checksums);
        assert_eq!(options.verify, Some(Side::Server));
    }

    #[test]
    fn an_increment() {
        let options = options(&["-D", "x", "-i", "/old/backup_manifest", "--lease=0"]).unwrap();
        assert_eq!(options.incremental, Some(Named::Path("/old/backup_manifest".into())));
    }

    #[test]
    fn the_manifest_of_a_prior_backup() {
        let prior = |argument: &str| {
            options(&["-D", "x", "-i", argument]).map(|options| options.incremental.unwrap())
        };
        assert_eq!(
            prior("old://m").unwrap_err().message(),
            "unrecognized storage \"old\", must be \"s3\", \"gs\", \"az\", or \"file\""
        );
        assert_eq!(prior("./old://m").unwrap(), Named::Path("./old://m".into()));
        assert_eq!(prior("file:///old/m").unwrap(), Named::Path("/old/m".into()));
        match prior("s3://b/old/backup_manifest").unwrap() {
            Named::Objects(object) => assert_eq!(object.to_string(), "s3://b/old/backup_manifest"),
            other => panic!("{other:?}"),
        }
        assert_eq!(prior("s3://b").unwrap_err().message(), "\"s3://b\" is a bucket and no manifest");
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
    fn a_target_that_needs_no_place() {
        let options = options(&["-t", "blackhole", "-X", "fetch", "-Z", "none"]).unwrap();
        assert!(options.discard && options.target.as_os_str().is_empty());
        assert_eq!((options.wal, options.sync), (Wal::Fetch, Sync::None));
    }

    #[test]
    fn the_black_hole_and_the_client_are_targets() {
        let options = options(&["-D", "x", "-t", "client", "-z", "-Z", "none"]).unwrap();
        assert!(!options.discard && options.compress.is_none());
        assert_eq!(options.target.as_os_str(), "x");
    }

    #[test]
    fn progress_with_and_without_a_form() {
        for (arguments, progress) in [
            (&["-P"][..], Some(Progress::Text)),
            (&["-Pv"], Some(Progress::Text)),
            (&["-vP"], Some(Progress::Text)),
            (&["--progress"], Some(Progress::Text)),
            (&["--progress=json"], Some(Progress::Json)),
            (&["-P=json"], Some(Progress::Json)),
            (&["--prog=json", "-P"], Some(Progress::Text)),
            (&["-v"], None),
        ] {
            let options = options(&[&["-D", "x"], arguments].concat()).unwrap();
            assert_eq!(options.progress, progress, "{arguments:?}");
            let has_v = arguments.iter().any(|argument| argument.contains('v'));
            assert_eq!(options.verbose, has_v, "{arguments:?}");
        }
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
            (&["-v"][..], "must specify output directory or backup target"),
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
            (
                &["-D", "x", "-Z", "server-squash"],
                "could not initiate base backup: ERROR:  unrecognized compression algorithm: \"squash\"",
            ),
            (&["-t", "blackhole", "-Fp"], "cannot specify both format and backup target"),
            (
                &["-t", "blackhole", "-D", "x", "-X", "none"],
                "cannot specify both output directory and backup target",
            ),
            (&["-t", "client"], "must specify output directory or backup target"),
            (&["-t", "blackhole"], "WAL cannot be streamed when a backup target is specified"),
            (
                &["-t", "blackhole", "-X", "none", "--waldir=/w"],
                "WAL directory location cannot be specified along with a backup target",
            ),
            (
                &["-t", "blackhole", "-X", "none", "-Z", "client-lz4"],
                "client-side compression is not possible when a backup target is specified",
            ),
            (
                &["-t", "blackhole", "-X", "none", "-R"],
                "recovery configuration cannot be written when a backup target is used",
            ),
            (&["-t", "blackhole:x", "-X", "none"], "target \"blackhole\" does not accept a target detail"),
            (&["-t", "bogus", "-X", "none"], "unrecognized target: \"bogus\""),
            (&["-t", "server", "-X", "none"], "target \"server\" requires a target detail"),
            (&["-t", "server:/x", "-X", "none"], "backup target \"server\" is not supported"),
            (&["-D", "x", "-z"], "only tar mode backups can be compressed"),
            (&["-D", "x", "-Z", "lz4"], "only tar mode backups can be compressed"),
            (&["-D", "x", "-z", "-Z", "1"], "only tar mode backups can be compressed"),
            (&["-D", "-", "-Ft"], "cannot stream write-ahead logs in tar mode to stdout"),
            (
                &["-D", "x", "-Ft", "--waldir=/w"],
                "WAL directory location can only be specified in plain mode",
            ),
            (&["-D", "x", "--progress=xml"], "invalid progress argument \"xml\", must be \"json\""),
            (&["-D", "x", "--dry-run", "--report=r"], "--dry-run and --report are incompatible options"),
            (
                &["-D", "x", "--progress=json", "--report=-"],
                "cannot write both progress and report to stdout",
            ),
            (&["-D", "x", "--report=x/y/r"], "report file must not be in a directory of the backup"),
            (&["-D", "x", "--report=a/../x"], "report file must not be in a directory of the backup"),
            (
                &["-D", "x", "--waldir=/w", "--report=/w/r"],
                "report file must not be in a directory of the backup",
            ),
            (&["--discard", "-t", "blackhole"], "--discard and --target are incompatible options"),
            (&["-D", "x", "--lease", "-1"], "--lease must be in range 0..2147483647"),
            (&["-D", "x", "--resume"], "--resume needs --lease"),
            (&["-D", "x", "--resume", "--lease=0"], "--resume needs --lease"),
            (&["-D", "x", "--resume", "-i", "m"], "--resume and --incremental are incompatible options"),
            (
                &["-D", "x", "--resume", "--lease=1", "--dry-run"],
                "--resume and --dry-run are incompatible options",
            ),
            (&["-D", "x", "--resume", "--lease=1", "-Ft"], "only backups in plain format can be resumed"),
            (&["--discard", "--resume", "--lease=1"], "only backups in plain format can be resumed"),
            (&["-D", "x", "--lease=1h"], "invalid value \"1h\" for option --lease"),
            (&["-D", "x", "--lease=1", "-i", "m"], "--lease and --incremental are incompatible options"),
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
    fn help_and_version() {
        for flag in ["-?", "--help"] {
            match parse([PROGRAM, flag].map(OsString::from)).unwrap() {
                Invocation::Print(text) => {
                    assert!(text.contains("--tablespace-mapping <OLDDIR=NEWDIR>"), "{text}");
                    assert!(text.contains("-h, --host"), "{text}");
                }
                Invocation::Backup(_) | Invocation::RemoveLeftovers(_) => panic!("{flag} starts a backup"),
            }
        }
        match parse([PROGRAM, "-V"].map(OsString::from)).unwrap() {
            Invocation::Print(text) => assert!(text.starts_with("pg_parallel_basebackup (")),
            Invocation::Backup(_) | Invocation::RemoveLeftovers(_) => panic!("-V starts a backup"),
        }
    }
}
