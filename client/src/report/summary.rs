//! --report: what a backup was, as a JSON object, for whoever watches over backups.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use protocol::Lsn;
use serde::Serialize;

use super::counters::{Counters, Outcome, Phase};
use super::json::{now, rfc3339, seconds};
use super::meter::Shares;
use crate::error::{Error, Result, os_message};
use crate::manifest::WalRange;
use crate::options::{Format, Options, Wal};
use crate::report::PROGRAM;

/// How much of a rate limit must have been used for it to count as the limit.
const RATE_USED: f64 = 0.9;

/// The FILE that stands for standard output.
const STDOUT: &str = "-";

/// Bytes of a megabyte, as PostgreSQL counts.
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// What was learned of the server, and of the backup.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The server's version number.
    pub server_version: i32,
    /// The cluster.
    pub system_identifier: u64,
    /// The way that the commands take.
    pub way: &'static str,
    /// Whether client and server are on one host.
    pub is_local: bool,
    /// Where WAL that the backup needs begins, on which timeline.
    pub start: Option<(Lsn, u32)>,
    /// Where it ends.
    pub stop: Option<(Lsn, u32)>,
    /// The manifest's WAL ranges.
    pub wal_ranges: Vec<WalRange>,
    /// Pages with wrong checksums that the server has found.
    pub checksum_failures: u64,
    /// Of an increment: bytes that were sent, and those of a full backup.
    pub increment: Option<(u64, u64)>,
}

/// Where a report goes.
#[derive(Debug)]
pub struct Destination {
    /// None for standard output.
    path: Option<PathBuf>,
    mode: u32,
    began: Timestamp,
}

/// The report. docs/options.md has the fields.
#[derive(Debug, Serialize)]
struct Summary {
    program: &'static str,
    version: &'static str,
    outcome: Outcome,
    error: Option<String>,
    began: String,
    ended: String,
    directory: Option<String>,
    format: &'static str,
    label: String,
    /// None if it was not reached.
    server: Option<Server>,
    /// None for a full backup, and where it did not come that far.
    increment: Option<Increment>,
    bytes: u64,
    files: u64,
    mb_per_second: f64,
    seconds: Seconds,
    connections: Connections,
    retries: u64,
    checksum_failures: u64,
    wal: WalReport,
    limit: Option<&'static str>,
    shares: Percentages,
}

#[derive(Debug, Serialize)]
struct Server {
    version: i32,
    /// Text, for it has more digits than all programs read of a number.
    system_identifier: String,
    way: &'static str,
}

#[derive(Debug, Serialize)]
struct Increment {
    sent_bytes: u64,
    cluster_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Seconds {
    total: f64,
    prepare: f64,
    checkpoint: f64,
    files: f64,
    stop: f64,
    sync: f64,
}

#[derive(Debug, Serialize)]
struct Connections {
    files: usize,
    wal: usize,
    lost: u64,
    replaced: u64,
}

#[derive(Debug, Serialize)]
struct WalReport {
    method: &'static str,
    start: Option<String>,
    start_timeline: Option<u32>,
    end: Option<String>,
    end_timeline: Option<u32>,
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    timeline: u32,
    start: String,
    end: String,
}

/// Of the time that connections were at files.
#[derive(Debug, Serialize)]
struct Percentages {
    waiting_for_server: u64,
    client_cpu: u64,
    disk_write: u64,
}

impl Destination {
    /// With the mode of the file. Fails if it could not be written later: the backup is not to be made in vain.
    pub fn new(path: &Path, mode: u32) -> Result<Self> {
        let began = Timestamp::now();
        if path.as_os_str() == STDOUT {
            return Ok(Self { path: None, mode, began });
        }
        match fs::symlink_metadata(path) {
            // It is replaced in the end, and neither a device nor what a link leads to must be.
            Ok(found) if !found.is_file() => {
                return Err(Error::local(format!(
                    "report file \"{}\" exists but is not a regular file",
                    path.display()
                )));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("access file", path, &error));
            }
            _ => {}
        }
        let destination = Self { path: Some(path.to_owned()), mode, began };
        let (temporary, _) = destination.create_beside(path)?;
        fs::remove_file(&temporary).map_err(|error| Error::io("remove file", &temporary, &error))?;
        Ok(destination)
    }

    /// Writes it: all of it, or not at all.
    pub fn write(
        &self,
        options: &Options,
        counters: &Counters,
        facts: &Facts,
        error: Option<&Error>,
    ) -> Result<()> {
        let summary = Summary::new(options, counters, facts, error, self.began);
        let failed =
            |error: io::Error| Error::local(format!("could not write report: {}", os_message(&error)));
        let mut text = serde_json::to_vec_pretty(&summary).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        let Some(path) = &self.path else {
            let mut stdout = io::stdout().lock();
            return stdout.write_all(&text).and_then(|()| stdout.flush()).map_err(failed);
        };
        let (temporary, mut file) = self.create_beside(path)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        let renamed =
            written.map_err(|error| Error::io("write to file", &temporary, &error)).and_then(|()| {
                fs::rename(&temporary, path).map_err(|error| Error::io("write file", path, &error))
            });
        if renamed.is_err() {
            // The first error says more.
            let _ = fs::remove_file(&temporary);
        }
        renamed
    }

    /// A file of our own in the same directory.
    fn create_beside(&self, path: &Path) -> Result<(PathBuf, File)> {
        let mut name = std::ffi::OsString::from(".");
        name.push(
            path.file_name()
                .ok_or_else(|| Error::local(format!("report file \"{}\" has no name", path.display())))?,
        );
        name.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = made.map_err(|error| Error::io("create file", &temporary, &error))?;
        // The umask is strict, for the backup's sake; this file says nothing secret.
        match file.set_permissions(fs::Permissions::from_mode(self.mode)) {
            Ok(()) => Ok((temporary, file)),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(Error::io("set permissions on file", &temporary, &error))
            }
        }
    }
}

impl Summary {
    fn new(
        options: &Options,
        counters: &Counters,
        facts: &Facts,
        error: Option<&Error>,
        began: Timestamp,
    ) -> Self {
        let (bytes, files) = counters.done();
        let (lost, replaced) = counters.lost_connections();
        let fetched = counters.lasted(Phase::Files).as_secs_f64();
        let lasted = |phase| seconds(counters.lasted(phase));
        let is_over = matches!(counters.outcome(), Outcome::Complete | Outcome::Damaged);
        Self {
            program: PROGRAM,
            version: env!("CARGO_PKG_VERSION"),
            outcome: counters.outcome(),
            error: error.map(|error| error.message().to_owned()),
            began: rfc3339(began),
            ended: now(),
            directory: (!options.discard).then(|| options.target.display().to_string()),
            format: match options.format {
                Format::Plain => "plain",
                Format::Tar => "tar",
            },
            label: String::from_utf8_lossy(&options.label).into_owned(),
            server: (facts.server_version > 0).then(|| Server {
                version: facts.server_version,
                system_identifier: facts.system_identifier.to_string(),
                way: facts.way,
            }),
            increment: facts
                .increment
                .map(|(sent_bytes, cluster_bytes)| Increment { sent_bytes, cluster_bytes }),
            bytes,
            files,
            mb_per_second: if fetched > 0.0 { round(bytes as f64 / MEGABYTE / fetched) } else { 0.0 },
            seconds: Seconds {
                total: seconds(counters.elapsed()),
                prepare: lasted(Phase::Prepare),
                checkpoint: lasted(Phase::Checkpoint),
                files: lasted(Phase::Files),
                stop: lasted(Phase::Stop),
                sync: lasted(Phase::Sync),
            },
            connections: Connections {
                files: options.jobs,
                wal: usize::from(matches!(options.wal, Wal::Stream { .. })),
                lost,
                replaced,
            },
            retries: counters.retries(),
            checksum_failures: facts.checksum_failures,
            wal: WalReport {
                method: match options.wal {
                    Wal::None => "none",
                    Wal::Fetch => "fetch",
                    Wal::Stream { .. } => "stream",
                },
                start: facts.start.map(|(lsn, _)| lsn.to_string()),
                start_timeline: facts.start.map(|(_, timeline)| timeline),
                end: facts.stop.map(|(lsn, _)| lsn.to_string()),
                end_timeline: facts.stop.map(|(_, timeline)| timeline),
                ranges: facts.wal_ranges.iter().map(Range::from).collect(),
            },
            limit: is_over.then(|| limit(options.max_rate, counters, facts)),
            shares: Percentages::from(&counters.shares()),
        }
    }
}

impl From<&WalRange> for Range {
    fn from(range: &WalRange) -> Self {
        Self { timeline: range.timeline, start: range.start.to_string(), end: range.end.to_string() }
    }
}

impl From<&Shares> for Percentages {
    fn from(shares: &Shares) -> Self {
        let of = |part: Duration| super::progress::percent(millis(part), millis(shares.busy()).max(1));
        Self {
            waiting_for_server: of(shares.waited),
            client_cpu: of(shares.cpu),
            disk_write: of(shares.blocked()),
        }
    }
}

/// What the backup could not be faster for: first the phase that took most of the time, and in that of files
/// what the connections spent most of theirs with.
fn limit(max_rate: Option<u32>, counters: &Counters, facts: &Facts) -> &'static str {
    let [checkpoint, files, stop, sync] =
        [Phase::Checkpoint, Phase::Files, Phase::Stop, Phase::Sync].map(|phase| counters.lasted(phase));
    if checkpoint > files + stop + sync {
        return "checkpoint";
    }
    if sync > files {
        return "disk write";
    }
    let rate = counters.done().0 as f64 / 1024.0 / files.as_secs_f64().max(f64::EPSILON);
    if max_rate.is_some_and(|most| rate >= f64::from(most) * RATE_USED) {
        return "rate limit";
    }
    let shares = counters.shares();
    if shares.waited * 2 >= shares.busy() {
        // From here nobody can tell a server that is slow from a way that is.
        return if facts.is_local { "server" } else { "server or network" };
    }
    if shares.cpu >= shares.blocked() { "client CPU" } else { "disk write" }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::options::{self, Invocation};

    fn options(arguments: &[&str]) -> Options {
        let line = [&[PROGRAM], arguments].concat().into_iter().map(std::ffi::OsString::from);
        match options::parse(line).unwrap() {
            Invocation::Backup(options) => *options,
            other => panic!("no backup: {other:?}"),
        }
    }

    #[test]
    fn written_beside_and_renamed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("report.json");
        fs::write(&path, "old").unwrap();
        let destination = Destination::new(&path, 0o640).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let counters = Counters::default();
        counters.expect(1, 10);
        counters.received(10);
        counters.file();
        counters.end(Outcome::Complete);
        let facts = Facts {
            start: Some((Lsn(0x200_0028), 1)),
            stop: Some((Lsn(0x200_0120), 2)),
            wal_ranges: vec![WalRange { timeline: 1, start: Lsn(0x200_0028), end: Lsn(0x200_0120) }],
            server_version: 180_000,
            system_identifier: u64::MAX,
            increment: Some((10, 1000)),
            ..Facts::default()
        };
        destination.write(&options(&["-D", "x", "-j", "3"]), &counters, &facts, None).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (&value["outcome"], &value["bytes"], &value["files"]),
            (&"complete".into(), &10.into(), &1.into())
        );
        assert_eq!(value["wal"]["ranges"][0]["end"], "0/2000120");
        assert_eq!(value["wal"]["end_timeline"], 2);
        assert_eq!(value["increment"]["cluster_bytes"], 1000);
        assert_eq!(value["connections"]["files"], 3);
        assert_eq!(value["server"]["system_identifier"], "18446744073709551615");
        assert!(value["limit"].is_string() && value["error"].is_null());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        // Nothing else is left.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_before() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("link");
        symlink("/dev/null", &link).unwrap();
        for path in [link.as_path(), place.path(), Path::new("/dev/null")] {
            let error = Destination::new(path, 0o600).unwrap_err();
            assert!(error.message().ends_with("exists but is not a regular file"), "{error}");
        }
        let error = Destination::new(&place.path().join("no/report"), 0o600).unwrap_err();
        assert!(error.message().ends_with("No such file or directory"), "{error}");
        assert!(Destination::new(Path::new("-"), 0o600).unwrap().path.is_none());
    }

    #[test]
    fn the_limit_is_where_the_time_has_gone() {
        let limit = |shares: Shares, is_local, max_rate| {
            let counters = Counters::default();
            counters.enter(Phase::Files);
            counters.expect(1, 1 << 40);
            counters.received(1 << 40);
            std::thread::sleep(Duration::from_millis(2));
            counters.spent(&shares);
            super::limit(max_rate, &counters, &Facts { is_local, ..Facts::default() })
        };
        let of = |waited, cpu| Shares {
            wall: Duration::from_secs(10),
            waited: Duration::from_secs(waited),
            cpu: Duration::from_secs(cpu),
            ..Shares::default()
        };
        assert_eq!(limit(of(6, 2), true, None), "server");
        assert_eq!(limit(of(6, 2), false, None), "server or network");
        assert_eq!(limit(of(2, 5), true, None), "client CPU");
        assert_eq!(limit(of(2, 3), true, None), "disk write");
        assert_eq!(limit(of(2, 3), true, Some(32)), "rate limit");
        let counters = Counters::default();
        counters.enter(Phase::Checkpoint);
        std::thread::sleep(Duration::from_millis(2));
        counters.enter(Phase::Files);
        counters.enter(Phase::Stop);
        assert_eq!(super::limit(None, &counters, &Facts::default()), "checkpoint");
    }
}
