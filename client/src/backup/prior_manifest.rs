//! The manifest of the backup that an incremental one is to go on from: to the coordinator, before START_BACKUP.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::SqlState;
use protocol::command::{MANIFEST_PIECE, ManifestPiece};
use protocol::features::Feature;
use sha2::{Digest as _, Sha256};

use crate::abort::Abort;
use crate::catalog::index::Digest;
use crate::error::{Error, Kind, Result};
use crate::objects::{self, location::Named};
use crate::output::MANIFEST;
use crate::server::connection::{Route, Session};
use crate::server::route;

/// First server version that has incremental backups.
const SINCE: i32 = 170_000;

/// Uploads it: by PostgreSQL's own command, or in pieces by a procedure. The digest of what was uploaded.
pub(super) fn upload(coordinator: &mut Session, manifest: &Named, abort: &Arc<Abort>) -> Result<Digest> {
    if coordinator.server_version() < SINCE {
        return Err(Error::local("server does not support incremental backup")
            .with_hint("Incremental backups need PostgreSQL 17 or later."));
    }
    if !route::features(coordinator)?.has(Feature::Incremental) {
        return Err(Error::local("server does not support incremental backup")
            .with_hint("The extension pg_parallel_backup of the server is older than 0.3.0."));
    }
    let (mut manifest, shown) = open(manifest, abort)?;
    let mut hash = Sha256::new();
    let read = |buffer: &mut [u8]| loop {
        match manifest.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error, &shown)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                return Ok(count);
            }
        }
    };
    let uploaded = match coordinator.route() {
        Route::Replication => coordinator.copy_in(b"UPLOAD_MANIFEST", read),
        Route::Procedures => by_calls(coordinator, read),
    };
    uploaded.map_err(|error| match error.kind() {
        Kind::Server(_) | Kind::Connection => explain(error).context("could not upload manifest"),
        _ => error,
    })?;
    Ok(hash.finalize().into())
}

/// The manifest, and its name for a message.
fn open(manifest: &Named, abort: &Arc<Abort>) -> Result<(Box<dyn Read + Send>, PathBuf)> {
    match manifest {
        Named::Path(path) => match File::open(path) {
            Ok(file) => Ok((Box::new(file), path.clone())),
            Err(error) => Err(Error::io("open file", path, &error)),
        },
        Named::Objects(object) => {
            let read = objects::read(object, abort).map_err(|error| {
                if object.prefix.rsplit('/').next() == Some(MANIFEST) {
                    error
                } else {
                    error.with_hint(format!(
                        "The manifest of a backup below \"{object}\" is \"{object}/{MANIFEST}\"."
                    ))
                }
            })?;
            Ok((read, PathBuf::from(object.to_string())))
        }
    }
}

/// An error of an object store is known already; of a file the system knows.
fn unreadable(error: io::Error, shown: &Path) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| Error::io("read file", shown, &error))
}

fn by_calls(coordinator: &mut Session, mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
    let mut offset = 0;
    let mut piece = read_piece(&mut read)?;
    loop {
        // A full piece says nothing of whether another follows.
        let next = if piece.len() == MANIFEST_PIECE { read_piece(&mut read)? } else { Vec::new() };
        let call = ManifestPiece { offset, bytes: &piece, is_last: next.is_empty() };
        coordinator.send(&call.to_call())?;
        coordinator.finish()?;
        if next.is_empty() {
            return Ok(());
        }
        offset += piece.len() as u64;
        piece = next;
    }
}

/// As much as goes into one call, less at the end.
fn read_piece(read: &mut impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut piece = vec![0; MANIFEST_PIECE];
    let mut length = 0;
    while length < piece.len() {
        match read(&mut piece[length..])? {
            0 => break,
            count => length += count,
        }
    }
    piece.truncate(length);
    Ok(piece)
}

/// What may be missing on a server that has no such procedure, or does not let it be called.
fn explain(error: Error) -> Error {
    if error.is_server(SqlState::UNDEFINED_FUNCTION) {
        error.with_hint(
            "The extension in this database is older than its library: run ALTER EXTENSION pg_parallel_backup UPDATE.",
        )
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::fake_server::{FakeServer, message, ready};

    fn calls(manifest: &[u8]) -> Vec<String> {
        let reply = || [message(b'C', b"CALL\0"), ready()].concat();
        let server = FakeServer::start((0..manifest.len() / MANIFEST_PIECE + 1).map(|_| reply()).collect());
        let mut left = manifest;
        // A reader may give less than it is asked for.
        let read = |buffer: &mut [u8]| {
            let most = buffer.len().min(100_000);
            Ok(left.read(&mut buffer[..most]).unwrap())
        };
        by_calls(&mut server.connect(), read).unwrap();
        server.commands()
    }

    #[test]
    fn pieces() {
        assert_eq!(
            calls(b"{}"),
            [r"CALL parallel_backup.upload_manifest(piece => '\x7b7d', is_last => true)"]
        );
        assert_eq!(calls(b""), [r"CALL parallel_backup.upload_manifest(piece => '\x', is_last => true)"]);
        let full = calls(&vec![b'x'; MANIFEST_PIECE]);
        assert!(full.len() == 1 && full[0].ends_with(", is_last => true)"));
        let more = calls(&vec![b'x'; MANIFEST_PIECE + 1]);
        assert!(more.len() == 2 && !more[0].contains("is_last") && more[0].contains("7878"));
        assert_eq!(
            more[1],
            r"CALL parallel_backup.upload_manifest(piece => '\x78', piece_offset => 1048576, is_last => true)"
        );
    }
}
