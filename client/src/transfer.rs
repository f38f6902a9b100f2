//! One connection's work: take files from the queue, fetch them, write them. The coordinator does
//! the same as every worker.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::command::SendFilesContent;
use protocol::{BackupId, BackupPath, Command, DigestAlgorithm, FileBegin, FileRequest, SqlState};

use crate::connection::Session;
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::pq::Status;
use crate::progress::Counters;
use crate::queue::{FileNumber, Queue, Take};
use crate::receive::{Received, Receiver, Sink};
use crate::report;
use crate::target::Target;
use crate::wal;

/// How long a connection without work sleeps before it looks whether it is still alive.
const PATIENCE: Duration = Duration::from_millis(250);

/// Answers after which no other file would fare better on this connection: the backup is gone, or
/// never was ours.
const HOPELESS: [SqlState; 5] = [
    SqlState::UNDEFINED_OBJECT,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    SqlState::SYNTAX_ERROR,
    SqlState::INSUFFICIENT_PRIVILEGE,
    SqlState::FEATURE_NOT_SUPPORTED,
];

/// The manifest, as all connections write it.
pub type SharedManifest = Mutex<Manifest<std::io::BufWriter<File>>>;

/// What all connections work on.
pub struct Work<'a> {
    /// The files.
    pub queue: &'a Queue,
    /// Where they go.
    pub target: &'a Target,
    /// The backup.
    pub backup: BackupId,
    /// The algorithm of the transfers' digests.
    pub algorithm: DigestAlgorithm,
    /// Takes files that are complete.
    pub manifest: Option<&'a SharedManifest>,
    /// The size that a WAL segment must have.
    pub segment_size: u64,
    /// Progress.
    pub counters: &'a Counters,
}

impl Work<'_> {
    /// Works until the queue is empty. An error of kind `Connection` or `Server` ends this
    /// connection's part only: what it had not finished is back in the queue. Any other error ends
    /// the backup.
    pub fn run(&self, session: &mut Session) -> Result<()> {
        loop {
            match self.queue.take(PATIENCE) {
                Take::Done => return Ok(()),
                Take::Wait => session.check_alive()?,
                Take::Batch(files) => self.fetch(session, &files)?,
            }
        }
    }

    fn fetch(&self, session: &mut Session, files: &[FileNumber]) -> Result<()> {
        let paths: Vec<BackupPath> = files.iter().map(|file| self.queue.path(*file)).collect();
        let mut receiver = Receiver::new(&paths, self.algorithm);
        let mut writer = Writer { work: self, files, paths: &paths, open: None };
        let outcome = self.receive(session, &paths, &mut receiver, &mut writer);
        writer.forget();
        let Err(error) = outcome else { return Ok(()) };
        let hopeless = HOPELESS.iter().any(|state| error.is_server(*state));
        if !hopeless && !matches!(error.kind(), Kind::Connection | Kind::Server(_)) {
            // Our own trouble, such as a full disk: nobody else would fare better.
            return Err(error);
        }
        let mut left = files[receiver.position()..].iter();
        let mut verdict = Ok(());
        // The file whose turn it was is to blame; those behind it were not even looked at.
        if !hopeless && let Some(file) = left.next() {
            verdict = match error.kind() {
                // Reported as what it is, the end of the connection.
                Kind::Connection => self.queue.failed(*file, &error),
                _ => self.failed(*file, &error),
            };
        }
        left.for_each(|file| self.queue.give_back(*file));
        verdict?;
        if hopeless || error.kind() == Kind::Connection { Err(error) } else { Ok(()) }
    }

    fn failed(&self, file: FileNumber, error: &Error) -> Result<()> {
        self.queue.failed(file, error)?;
        let path = self.queue.path(file);
        report::warning(format_args!("could not fetch file \"{path}\", will try again: {error}"));
        Ok(())
    }

    fn receive(
        &self,
        session: &mut Session,
        paths: &[BackupPath],
        receiver: &mut Receiver<'_>,
        writer: &mut Writer<'_>,
    ) -> Result<()> {
        let command = Command::SendFilesContent(SendFilesContent {
            files: paths.iter().cloned().map(FileRequest::whole).collect(),
            backup_id: Some(self.backup),
            file_checksum: self.algorithm,
            ..SendFilesContent::default()
        });
        session.send(&command.to_bytes())?;
        let nothing = || Error::connection("server sent no COPY data stream");
        if session.result()?.ok_or_else(nothing)?.status() != Status::PGRES_COPY_OUT {
            return Err(nothing());
        }
        while let Some(message) = session.copy_data()? {
            receiver.message(&message, writer)?;
        }
        // An error that ended the copy comes first: it says why files are missing.
        session.finish()?;
        receiver.finish()
    }
}

/// Writes one batch.
struct Writer<'a> {
    work: &'a Work<'a>,
    files: &'a [FileNumber],
    paths: &'a [BackupPath],
    open: Option<(File, PathBuf, u64)>,
}

impl Writer<'_> {
    /// What was received of a file that is not complete does not count.
    fn forget(&mut self) {
        if let Some((_, _, received)) = self.open.take() {
            self.work.counters.lost(received);
        }
    }
}

impl Sink for Writer<'_> {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        let path = &self.paths[file];
        if wal_file_name(path).is_some_and(wal::is_segment) && begin.size != self.work.segment_size {
            return Err(Error::local(format!("unexpected WAL file size \"{path}\"")));
        }
        let place = self.work.target.path(path);
        let opened = self.work.target.create(&place, begin.mode)?;
        self.open = Some((opened, place, 0));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((file, path, received)) = &mut self.open {
            file.write_all(bytes).map_err(|error| Error::io("write to file", path, &error))?;
            *received += bytes.len() as u64;
            self.work.counters.received(bytes.len());
        }
        Ok(())
    }

    fn end(&mut self, file: usize, received: &Received) -> Result<()> {
        self.open = None;
        let path = &self.paths[file];
        // As in BASE_BACKUP, WAL segments are not in the manifest, all else is.
        if let Some(manifest) = self.work.manifest
            && !wal_file_name(path).is_some_and(wal::is_segment)
        {
            let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
            manifest
                .file(path.as_bytes(), received.size, received.mtime, &received.digest)
                .map_err(|error| manifest_error(&error))?;
        }
        self.work.counters.file();
        self.work.queue.finish();
        Ok(())
    }

    fn vanished(&mut self, file: usize) -> Result<()> {
        let path = &self.paths[file];
        if let Some(name) = wal_file_name(path) {
            return Err(Error::local(format!(
                "could not find WAL file \"{}\"",
                String::from_utf8_lossy(name)
            )));
        }
        // An earlier try may have written some of it.
        self.work.target.remove(path)?;
        self.work.counters.file();
        self.work.queue.finish();
        Ok(())
    }

    fn damaged(&mut self, file: usize, error: Error) -> Result<()> {
        self.forget();
        self.work.failed(self.files[file], &error)
    }
}

/// The error of a manifest that cannot be written.
pub fn manifest_error(error: &std::io::Error) -> Error {
    Error::local(format!("could not write backup manifest: {}", crate::error::os_message(error)))
}

/// The name of a file that is directly in pg_wal.
fn wal_file_name(path: &BackupPath) -> Option<&[u8]> {
    path.as_bytes().strip_prefix(b"pg_wal/").filter(|name| !name.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_pg_wal() {
        let name = |path: &str| {
            wal_file_name(&BackupPath::from_bytes(path).unwrap())
                .map(|n| String::from_utf8_lossy(n).into_owned())
        };
        assert_eq!(name("pg_wal/00000002.history").as_deref(), Some("00000002.history"));
        assert_eq!(name("pg_wal/archive_status/x"), None);
        assert_eq!(name("base/1"), None);
    }
}
