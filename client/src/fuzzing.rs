//! What `fuzz/` calls, compiled for it alone: reading what somebody else has written.

use std::io::Cursor;

use pages::names::NameRules;
use protocol::command::FileRequest;
use protocol::compression::WireCompression;
use protocol::frame::FileBegin;
use protocol::{BackupPath, ChecksumAlgorithm};
use sha2::{Digest as _, Sha256};

use crate::catalog::index::Index;
use crate::chunk::Chunk;
use crate::error::{Error, Result};
use crate::fetch::receive::{Checks, PageRule, Received, Receiver, Sink};
use crate::restore;
use crate::server::result::ResultSet;
use crate::server::wire::{Event, Wire};

/// Counts what is handed on of each file, which must be what was announced.
#[derive(Default)]
struct Counting {
    open: Option<(usize, u64)>,
    done: usize,
}

impl Sink for Counting {
    fn begin(&mut self, file: usize, begin: &FileBegin<'_>) -> Result<()> {
        assert!(self.open.is_none() && file == self.done);
        self.open = Some((0, begin.length));
        Ok(())
    }
    fn data(&mut self, chunk: Chunk<'_>) -> Result<()> {
        let (received, length) = self.open.as_mut().expect("data of no file");
        *received += chunk.len();
        assert!(*received as u64 <= *length);
        Ok(())
    }
    fn end(&mut self, file: usize, received: Received) -> Result<()> {
        let (bytes, length) = self.open.take().expect("end of no file");
        assert!(file == self.done && bytes as u64 == length && received.length == length);
        self.done += 1;
        Ok(())
    }
    fn vanished(&mut self, file: usize) -> Result<()> {
        assert!(self.open.is_none() && file == self.done);
        self.done += 1;
        Ok(())
    }
    fn damaged(&mut self, file: usize, _: Error) -> Result<()> {
        assert!(file == self.done);
        self.open = None;
        self.done += 1;
        Ok(())
    }
}

/// Some files are asked for, and the server's bytes come in these pieces.
pub fn transfer(pieces: &[&[u8]]) {
    let request = |path: &str| FileRequest::whole(BackupPath::parse(path.as_bytes()).expect("a path"));
    let wanted = ["PG_VERSION", "base/1/1259", "base/1/2619", "pg_xact/0000"].map(request);
    let checks = Checks {
        algorithm: ChecksumAlgorithm::Crc32c,
        by_server: false,
        pages: Some(PageRule::Always),
        names: NameRules::of_server(180_000),
        compression: WireCompression::default(),
        passes: false,
    };
    let mut receiver = Receiver::new(&wanted, checks);
    let mut sink = Counting::default();
    let read = each_event(pieces, |event| match event {
        Event::Message(message) => receiver.message(message, &mut sink),
        Event::Data(chunk) => receiver.data(chunk, &mut sink),
        _ => Ok(()),
    });
    if read.is_ok() && receiver.finish().is_ok() {
        assert_eq!(sink.done, wanted.len());
    }
}

/// Result sets that are read past libpq, in these pieces.
pub fn results(pieces: &[&[u8]]) {
    let mut set = ResultSet::default();
    // What is refused is refused.
    let _ = each_event(pieces, |event| match event {
        Event::Columns(columns) => set.describe(columns),
        Event::Row(row) => set.add(row),
        Event::Complete(tag) => {
            let whole = std::mem::take(&mut set).complete(tag);
            // Each row has a value or none for each column, and nothing else.
            let beyond = whole.columns()..whole.columns() + 2;
            assert!((0..whole.rows()).all(|row| beyond.clone().all(|at| whole.value(row, at).is_none())));
            Ok(())
        }
        _ => Ok(()),
    });
}

/// What a server's bytes say that come in these pieces, up to the first thing that is refused.
fn each_event(pieces: &[&[u8]], mut take: impl FnMut(Event<'_>) -> Result<()>) -> Result<()> {
    let mut wire = Wire::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let space = wire.space();
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            wire.filled(count);
            rest = &rest[count..];
            while let Some(event) = wire.next()? {
                take(event)?;
            }
        }
    }
    Ok(())
}

/// A manifest's text without its last line, and with.
pub fn manifest(text: &[u8]) {
    let _ = restore::manifest::Manifest::parse(text);
    let mut whole = text.to_vec();
    if !whole.ends_with(b"\n") {
        whole.push(b'\n');
    }
    let checksum = protocol::id::to_hex(&Sha256::digest(&whole));
    whole.extend(format!("\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes());
    if restore::manifest::Manifest::parse(&whole).is_ok() {
        // Either it is there, in lines as PostgreSQL writes them, or it is not, or it is refused.
        let name = restore::manifest::TABLESPACE_MAP;
        if let Ok(Some(shortened)) = restore::manifest::without(&whole, name) {
            assert!(restore::manifest::Manifest::parse(&shortened).is_ok());
        }
    }
}

/// An index.
pub fn index(json: &[u8]) {
    if let Ok(index) = Index::parse(json) {
        let again = index.to_json().expect("what was read can be written");
        assert!(Index::parse(&again).expect("what was written can be read") == index);
    }
}

/// An archive, whose compression is said by its first byte.
pub fn archive(data: &[u8]) {
    let Some((first, stored)) = data.split_first() else { return };
    restore::read_archive(*first, Cursor::new(stored.to_vec()));
}
