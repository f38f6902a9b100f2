//! The command line of `pg_parallel_restore`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, Parser, ValueHint};

use crate::error::{Error, Result};
use crate::options::arguments::usage_error;
use crate::options::check::MAX_JOBS;
use crate::options::generate::{Described, with_words};
use crate::options::numbers::parse_int;
use crate::options::tablespace::{TablespaceMap, canonical};
use crate::options::words::{progress, sync_method};
use crate::options::{Progress, Sync};
use crate::report;

/// The program's own name.
pub const PROGRAM: &str = "pg_parallel_restore";

const USAGE: &str = "[OPTION]... BACKUP...";
const LIST_USAGE: &str = "list [OPTION]... PLACE";
const PRUNE_USAGE: &str = "prune --keep-full=NUM [OPTION]... PLACE";
const WIDTH: usize = 90;
const HELP: &str = "{about-with-newline}\n{usage-heading}\n  {usage}\n\n{all-args}{after-help}";
const OUTPUT: &str = "Options controlling the output";
const GENERAL: &str = "General options";

/// Words that options take, for shells to offer.
const WORDS: [(&str, &[&str]); 2] = [("progress", &["json"]), ("sync_method", &["fsync", "syncfs"])];

/// What the user wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// A backup, or a full one and the increments that go on from it, the oldest first.
    pub backups: Vec<OsString>,
    /// The data directory that is to be.
    pub target: PathBuf,
    /// Threads.
    pub jobs: usize,
    /// Where tablespaces go instead.
    pub tablespaces: TablespaceMap,
    /// Where WAL goes instead of pg_wal.
    pub waldir: Option<PathBuf>,
    /// Where the backups of a chain are until they are one.
    pub work_directory: PathBuf,
    /// Whether a backup without a manifest is restored.
    pub may_lack_manifest: bool,
    /// Leave the pieces of a restore that failed.
    pub no_clean: bool,
    /// How files get to disk.
    pub sync: Sync,
    /// Show progress, and to whom.
    pub progress: Option<Progress>,
    /// Say more.
    pub verbose: bool,
    /// PostgreSQL's program that makes one backup of several.
    pub combine: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// A data directory.
    Restore(Box<Options>),
    /// What backups there are.
    List {
        /// Where.
        place: OsString,
        /// As JSON.
        json: bool,
    },
    /// Removes backups.
    Prune {
        /// Where.
        place: OsString,
        /// How many full ones stay of each cluster, at least one.
        keep_full: usize,
        /// Only says what would be removed.
        dry_run: bool,
    },
    /// Some text on stdout, and success.
    Print(String),
}

/// The options as typed.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    help_template = HELP,
    max_term_width = WIDTH,
    about = "Makes a data directory of the archives of a base backup, and checks every file meanwhile.",
    after_help = "\
BACKUP is a directory with archives, or an object store's prefix (s3://bucket/prefix). An increment comes behind the
backups that it needs, the full one first; one in volumes finds them where it is itself.

\"pg_parallel_restore list PLACE\" shows what backups in volumes there are below a directory or prefix,
\"pg_parallel_restore prune --keep-full=NUM PLACE\" removes those that are too many.",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true
)]
pub struct Arguments {
    /// Directory that is to be the data directory
    #[arg(short = 'D', long = "pgdata", value_name = "DIRECTORY", help_heading = OUTPUT, value_hint = ValueHint::DirPath)]
    pgdata: Option<OsString>,
    /// Number of threads
    #[arg(short = 'j', long, value_name = "NUM", default_value = "4", help_heading = OUTPUT, allow_hyphen_values = true)]
    jobs: OsString,
    /// Put the tablespace that was in OLDDIR into NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR", help_heading = OUTPUT, action = ArgAction::Append)]
    tablespace_mapping: Vec<OsString>,
    /// Directory for the write-ahead log, linked from pg_wal
    #[arg(long, value_name = "WALDIR", help_heading = OUTPUT, value_hint = ValueHint::DirPath)]
    waldir: Option<OsString>,

    /// Keep what a restore that failed leaves behind
    #[arg(short = 'n', long, help_heading = GENERAL)]
    no_clean: bool,
    /// Restore a backup that has no manifest, and cannot be checked
    #[arg(long, help_heading = GENERAL)]
    no_manifest: bool,
    /// Do not wait until the data directory is on disk
    #[arg(short = 'N', long, help_heading = GENERAL)]
    no_sync: bool,
    /// Show progress, to people or, as JSON, to a program
    #[arg(short = 'P', long, value_name = "json", help_heading = GENERAL, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    progress: Option<OsString>,
    /// The program pg_combinebackup, where increments are restored (default: that of the backups' version)
    #[arg(long, value_name = "PATH", help_heading = GENERAL, value_hint = ValueHint::ExecutablePath)]
    pg_combinebackup: Option<OsString>,
    /// How files get to disk
    #[arg(long, value_name = "fsync|syncfs", help_heading = GENERAL)]
    sync_method: Option<OsString>,
    /// Print a manual page, or completions for a shell, and exit
    #[arg(long, value_name = "man|bash|zsh|fish", help_heading = GENERAL, hide = true)]
    generate: Option<OsString>,
    /// Say what is being done
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = GENERAL)]
    verbose: u8,
    /// Print the version and exit
    #[arg(short = 'V', long, help_heading = GENERAL)]
    version: bool,
    /// Directory that has increments and their full backup until they are one (default: that of the
    /// output with ".restore" behind its name)
    #[arg(long, value_name = "DIRECTORY", help_heading = GENERAL, value_hint = ValueHint::DirPath)]
    work_directory: Option<OsString>,
    /// Show this help and exit
    #[arg(short = '?', long, help_heading = GENERAL)]
    help: bool,

    #[arg(hide = true)]
    backups: Vec<OsString>,
}

/// The options of `list` as typed.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    help_template = HELP,
    max_term_width = WIDTH,
    about = "Shows the backups in volumes of a directory or an object store's prefix, and below.",
    disable_help_flag = true,
    disable_version_flag = true,
    infer_long_args = true
)]
struct ListArguments {
    /// Print a JSON array
    #[arg(long, help_heading = GENERAL)]
    json: bool,
    /// Show this help and exit
    #[arg(short = '?', long, help_heading = GENERAL)]
    help: bool,

    #[arg(hide = true)]
    places: Vec<OsString>,
}

/// The options of `prune` as typed.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    help_template = HELP,
    max_term_width = WIDTH,
    about = "Removes the oldest backups in volumes of a directory or an object store's prefix, and below.",
    after_help = "A full backup goes with all that goes on from it, and not before what does: an increment's index first.",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true
)]
struct PruneArguments {
    /// Full backups of each cluster that stay, the newest, with their increments
    #[arg(long, value_name = "NUM", help_heading = GENERAL, allow_hyphen_values = true)]
    keep_full: Option<OsString>,
    /// Only say what would be removed
    #[arg(long, help_heading = GENERAL)]
    dry_run: bool,
    /// Show this help and exit
    #[arg(short = '?', long, help_heading = GENERAL)]
    help: bool,

    #[arg(hide = true)]
    places: Vec<OsString>,
}

/// Reads a command line, the program's name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // A directory of such a name is "./list".
    match arguments.get(1).map(|first| first.as_bytes()) {
        Some(b"list") => {
            arguments.remove(1);
            return parse_list(arguments);
        }
        Some(b"prune") => {
            arguments.remove(1);
            return parse_prune(arguments);
        }
        _ => {}
    }
    let raw = Arguments::try_parse_from(arguments).map_err(|error| usage_error(&error))?;
    if raw.help {
        return Ok(help(Arguments::command(), USAGE));
    }
    if raw.version {
        let version = env!("CARGO_PKG_VERSION");
        return Ok(Invocation::Print(format!("{PROGRAM} (pg_parallel_backup) {version}\n")));
    }
    if let Some(what) = &raw.generate {
        return described().generate(&what.to_string_lossy()).map(Invocation::Print);
    }
    check(raw).map(|options| Invocation::Restore(Box::new(options)))
}

fn parse_list(arguments: Vec<OsString>) -> Result<Invocation> {
    let raw = ListArguments::try_parse_from(arguments).map_err(|error| usage_error(&error))?;
    if raw.help {
        return Ok(help(ListArguments::command(), LIST_USAGE));
    }
    Ok(Invocation::List { place: one_place(raw.places)?, json: raw.json })
}

fn parse_prune(arguments: Vec<OsString>) -> Result<Invocation> {
    let raw = PruneArguments::try_parse_from(arguments).map_err(|error| usage_error(&error))?;
    if raw.help {
        return Ok(help(PruneArguments::command(), PRUNE_USAGE));
    }
    let Some(keep_full) = raw.keep_full else { return Err(Error::usage("must specify --keep-full")) };
    let keep_full = parse_int(&keep_full, "--keep-full", 1, i64::from(i32::MAX))?;
    let keep_full = usize::try_from(keep_full).unwrap_or(usize::MAX);
    Ok(Invocation::Prune { place: one_place(raw.places)?, keep_full, dry_run: raw.dry_run })
}

fn one_place(mut places: Vec<OsString>) -> Result<OsString> {
    match (places.pop(), places.first()) {
        (Some(place), None) => Ok(place),
        (None, _) => Err(Error::usage("no place specified")),
        (Some(second), Some(_)) => Err(Error::usage(format!(
            "too many command-line arguments (first is \"{}\")",
            places.get(1).unwrap_or(&second).to_string_lossy()
        ))),
    }
}

/// --help, under the name by which the program was called.
fn help(command: clap::Command, usage: &str) -> Invocation {
    let mut command = command.override_usage(format!("{} {usage}", report::program()));
    Invocation::Print(command.render_help().to_string())
}

fn described() -> Described {
    Described {
        program: PROGRAM,
        usage: USAGE,
        command: Arguments::command(),
        for_shells: with_words(Arguments::command(), &WORDS),
        more: include_str!("manual.roff"),
    }
}

fn check(raw: Arguments) -> Result<Options> {
    let Some(target) = raw.pgdata.filter(|target| !target.is_empty()) else {
        return Err(Error::usage("must specify output directory"));
    };
    let target = canonical(&PathBuf::from(target));
    if raw.backups.is_empty() {
        return Err(Error::usage("no backup specified"));
    }
    let mut tablespaces = TablespaceMap::default();
    for mapping in &raw.tablespace_mapping {
        tablespaces.add(mapping.as_bytes())?;
    }
    let waldir = raw.waldir.map(|waldir| canonical(&PathBuf::from(waldir)));
    if let Some(waldir) = &waldir {
        if !waldir.is_absolute() {
            return Err(Error::local("WAL directory location must be an absolute path"));
        }
        if *waldir == target {
            return Err(Error::local("WAL directory and output directory must not be the same"));
        }
    }
    let work_directory = match raw.work_directory {
        Some(directory) => canonical(&PathBuf::from(directory)),
        None => {
            let mut name = target.clone().into_os_string();
            name.push(".restore");
            name.into()
        }
    };
    let jobs = parse_int(&raw.jobs, "-j/--jobs", 1, MAX_JOBS)?;
    let method = sync_method(raw.sync_method.as_deref())?;
    Ok(Options {
        backups: raw.backups,
        target,
        // Between 1 and MAX_JOBS.
        jobs: usize::try_from(jobs).unwrap_or(1),
        tablespaces,
        waldir,
        work_directory,
        may_lack_manifest: raw.no_manifest,
        no_clean: raw.no_clean,
        sync: if raw.no_sync { Sync::None } else { method },
        progress: progress(raw.progress.as_deref())?,
        verbose: raw.verbose > 0,
        combine: raw.pg_combinebackup.map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options> {
        let line = std::iter::once(PROGRAM).chain(arguments.iter().copied()).map(OsString::from);
        match parse(line)? {
            Invocation::Restore(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_commands_are_sound() {
        Arguments::command().debug_assert();
        ListArguments::command().debug_assert();
        PruneArguments::command().debug_assert();
    }

    #[test]
    fn lists_and_prunes() {
        let parse = |words: &[&str]| parse(words.iter().map(OsString::from));
        assert!(
            matches!(parse(&[PROGRAM, "list", "p", "--json"]), Ok(Invocation::List { place, json: true }) if place == "p")
        );
        assert!(matches!(
            parse(&[PROGRAM, "prune", "--keep-full=3", "p", "--dry-run"]),
            Ok(Invocation::Prune { place, keep_full: 3, dry_run: true }) if place == "p"
        ));
        for (words, message) in [
            (&["list"][..], "no place specified"),
            (&["list", "a", "b"], "too many command-line arguments (first is \"b\")"),
            (&["list", "a", "b", "c"], "too many command-line arguments (first is \"b\")"),
            (&["prune", "a"], "must specify --keep-full"),
            (&["prune", "a", "--keep-full=0"], "--keep-full must be in range 1..2147483647"),
            (&["prune", "a", "--keep-full=-1"], "--keep-full must be in range 1..2147483647"),
        ] {
            assert_eq!(parse(&[&[PROGRAM], words].concat()).unwrap_err().message(), message);
        }
    }

    #[test]
    fn every_option() {
        let usual = options(&["-D", "x/", "b"]).unwrap();
        assert_eq!((usual.target.as_os_str(), usual.jobs, usual.sync), ("x".as_ref(), 4, Sync::Fsync));
        assert_eq!(usual.work_directory.as_os_str(), "x.restore");
        let all = options(&[
            "-Dx",
            "-j2",
            "-T/a=/b",
            "--waldir=/w",
            "-n",
            "--no-manifest",
            "-N",
            "-P=json",
            "-v",
            "--pg-combinebackup=/p",
            "--work-directory",
            "w",
            "full",
            "one",
            "two",
        ])
        .unwrap();
        assert_eq!(all.backups, ["full", "one", "two"]);
        assert!(all.no_clean && all.may_lack_manifest && all.verbose && all.sync == Sync::None);
        assert_eq!((all.jobs, all.progress), (2, Some(Progress::Json)));
        assert_eq!(all.tablespaces.locate(b"/a").as_os_str(), "/b");
        assert_eq!(
            (all.waldir.unwrap().as_os_str(), all.combine.unwrap().as_os_str()),
            ("/w".as_ref(), "/p".as_ref())
        );
        assert_eq!(all.work_directory.as_os_str(), "w");
    }

    #[test]
    fn every_option_is_in_the_manual() {
        let plain = described().generate("man").unwrap().replace('\\', "");
        for option in Arguments::command().get_opts().filter(|option| !option.is_hide_set()) {
            let name = option.get_long().unwrap();
            assert!(plain.contains(&format!("--{name}")), "{name}");
        }
        for shell in ["bash", "zsh", "fish"] {
            assert!(described().generate(shell).unwrap().contains("tablespace-mapping"), "{shell}");
        }
    }

    #[test]
    fn refused() {
        for (arguments, message) in [
            (&["b"][..], "must specify output directory"),
            (&["-D", "x"], "no backup specified"),
            (&["-D", "x", "b", "--waldir=w"], "WAL directory location must be an absolute path"),
            (&["-D", "/x", "b", "--waldir=/x/"], "WAL directory and output directory must not be the same"),
            (&["-D", "x", "b", "-j0"], "-j/--jobs must be in range 1..1024"),
            (&["-D", "x", "b", "--sync-method=x"], "unrecognized sync method: x"),
            (&["-D", "x", "b", "--nonsense"], "unrecognized option \"--nonsense\""),
        ] {
            assert_eq!(options(arguments).unwrap_err().message(), message);
        }
    }
}
