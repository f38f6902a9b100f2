//! Whether a restored cluster has the WAL that makes it consistent, and whether that is sound: what pg_verifybackup
//! leaves to pg_waldump.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use protocol::Lsn;
use protocol::wal::Segment;

use super::archive::CHUNK;
use crate::abort::Abort;
use crate::error::{Error, Result};
use crate::manifest::WalRange;
use crate::wal::SegmentSize;
use crate::wal::check::{Cluster, Records};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it.
    All,
    /// None: it is expected to come from an archive.
    None,
}

/// Looks for the WAL of these ranges in a directory, and reads it. Ranges may be of several timelines.
pub fn check(directory: &Path, system: u64, ranges: &[WalRange], abort: &Abort) -> Result<Found> {
    let segments = segments(directory)?;
    let Some(size) = segments.first().map(|(_, size)| *size) else { return Ok(Found::None) };
    let segment_size = SegmentSize::new(size)?;
    let parsed: Vec<Segment> = segments.iter().filter_map(|(name, _)| segment_size.parse(name)).collect();
    for range in ranges {
        let cluster = Cluster { system, segment_size };
        let mut position = segment_size.start_of(range.start);
        let mut records: Option<Records> = None;
        while position < range.end {
            let number = segment_size.number(position);
            // The segment in which a timeline ended may be there as the next timeline's alone, which begins with a copy.
            let of_range =
                |segment: &&Segment| segment.number == number && segment.timeline >= range.timeline;
            let segment = parsed.iter().filter(of_range).min_by_key(|segment| segment.timeline);
            let Some(segment) = segment else {
                let name = segment_size.file_name(Segment { timeline: range.timeline, number });
                return Err(Error::local(format!("could not find WAL file \"{name}\"")));
            };
            let path = directory.join(segment_size.file_name(*segment));
            let records = records.get_or_insert_with(|| Records::new(cluster, segment.timeline, position));
            let end = Lsn(position.0 + size).min(range.end);
            read(&path, end.0 - position.0, abort, |bytes| records.push(bytes))?;
            position = Lsn(position.0 + size);
        }
    }
    Ok(Found::All)
}

/// Names that are as long as a segment's, with their sizes.
fn segments(directory: &Path) -> Result<Vec<(String, u64)>> {
    let failed = |error| Error::io("read directory", directory, &error);
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            segments.push((name, entry.metadata().map_err(failed)?.len()));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

fn read(path: &Path, length: u64, abort: &Abort, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let failed = |error| Error::io("read file", path, &error);
    let mut file = File::open(path).map_err(failed)?.take(length);
    let mut buffer = vec![0; CHUNK];
    let mut read = 0;
    loop {
        abort.check()?;
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        read += count as u64;
        each(&buffer[..count]).map_err(|error| error.fatal())?;
    }
    if read == length {
        Ok(())
    } else {
        Err(Error::local(format!("WAL file \"{}\" is too short", path.display())))
    }
}
