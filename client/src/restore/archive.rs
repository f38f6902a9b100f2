//! Archives as they are read: through decompression, member by member, to their very end.

use std::io::{self, BufReader, Read};

use compression::Lz4Frames;
use flate2::bufread::MultiGzDecoder;
use protocol::BackupPath;

use super::layout::Compression;
use crate::error::{Error, Result, os_message};

/// How much is read at once, of what is compressed and of what is not.
pub const CHUNK: usize = 256 << 10;

/// What an archive ends with: two blocks of zeroes.
const END: u64 = 1024;

/// A member of an archive.
#[derive(Debug)]
pub struct Member {
    /// Where it belongs, below where the archive does.
    pub path: BackupPath,
    /// Its mode.
    pub mode: u32,
    /// Its bytes.
    pub size: u64,
    /// What it is.
    pub kind: MemberKind,
    /// Where its bytes are in the archive, if that is not compressed.
    pub position: u64,
}

/// What a member is.
#[derive(Debug)]
pub enum MemberKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Link(Vec<u8>),
}

/// Hands every member of an archive on, and makes sure that the archive ends where it says. `shown` is its name.
pub fn read(
    stored: Box<dyn Read + Send>,
    compression: Compression,
    prefix: &str,
    shown: &str,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<Next>,
) -> Result<()> {
    let reader = decompress(stored, compression).map_err(|error| failed(shown, &error))?;
    let mut archive = tar::Archive::new(Tail { reader, read: 0, zeroes: 0 });
    let entries = archive.entries().map_err(|error| failed(shown, &error))?;
    // As they are: a name that does not fit into a header is read into memory however long it says it is.
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| failed(shown, &error))?;
        let Some(member) = member(&entry, prefix, shown)? else { continue };
        if each(member, &mut entry)? == Next::Enough {
            return Ok(());
        }
    }
    // What is behind the last member is read as well: compression has its own checksum there.
    let mut tail = archive.into_inner();
    io::copy(&mut tail, &mut io::sink()).map_err(|error| failed(shown, &error))?;
    if tail.zeroes < END { Err(cut(shown)) } else { Ok(()) }
}

/// Whether the rest of an archive is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Yes.
    More,
    /// No.
    Enough,
}

/// The members of an archive that is not compressed, in a file that is at its beginning and in which bytes can be read
/// in any order.
pub fn index(file: &std::fs::File, prefix: &str, shown: &str) -> Result<Vec<Member>> {
    let length = file.metadata().map_err(|error| failed(shown, &error))?.len();
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut members = Vec::new();
    let mut end = 0;
    for entry in archive.entries_with_seek().map_err(|error| failed(shown, &error))?.raw(true) {
        let entry = entry.map_err(|error| failed(shown, &error))?;
        let data_end = entry.raw_file_position().checked_add(entry.size());
        end = data_end
            .and_then(|end| end.checked_next_multiple_of(512))
            .filter(|end| *end <= length)
            .ok_or_else(|| cut(shown))?;
        members.extend(member(&entry, prefix, shown)?);
    }
    // The reader stops at the first block of zeroes, whatever follows.
    let mut tail = vec![0xFF; usize::try_from(END).unwrap_or(0)];
    let read = std::os::unix::fs::FileExt::read_exact_at(file, &mut tail, end);
    if read.is_err() || tail.iter().any(|byte| *byte != 0) { Err(cut(shown)) } else { Ok(members) }
}

fn member<R: Read>(entry: &tar::Entry<'_, R>, prefix: &str, shown: &str) -> Result<Option<Member>> {
    let name = entry.path_bytes();
    let trimmed = name.strip_prefix(b"./").unwrap_or(&name);
    let trimmed = trimmed.strip_suffix(b"/").unwrap_or(trimmed);
    let header = entry.header();
    let kind = header.entry_type();
    let refuse = |why: &str| {
        Err(Error::local(format!(
            "archive \"{shown}\" has a member that no backup has: \"{}\"",
            String::from_utf8_lossy(&name)
        ))
        .with_detail(why.to_owned()))
    };
    // PostgreSQL writes no headers that extend others, and its own programs read none.
    if !(kind.is_dir() || kind.is_symlink() || kind.is_file() || kind.is_contiguous()) {
        let kind = char::from(kind.as_byte()).escape_default();
        return refuse(&format!(
            "It is neither a file nor a directory nor a symbolic link, but of type \"{kind}\"."
        ));
    }
    // The directory itself, as other programs pack it.
    if kind.is_dir() && matches!(trimmed, b"" | b".") {
        return Ok(None);
    }
    let path = match BackupPath::from_bytes([prefix.as_bytes(), trimmed].concat()) {
        Ok(path) => path,
        Err(error) => return refuse(&format!("The {error}.")),
    };
    let (kind, size) = if kind.is_dir() {
        (MemberKind::Directory, 0)
    } else if kind.is_symlink() {
        let Some(target) = entry.link_name_bytes() else { return refuse("It is a link to nowhere.") };
        (MemberKind::Link(target.into_owned()), 0)
    } else {
        (MemberKind::File, entry.size())
    };
    let mode = match header.mode() {
        // Bits that make a program something else are nothing that a data directory has.
        Ok(mode) => mode & 0o777,
        Err(_) => return refuse("Its mode is not a number."),
    };
    Ok(Some(Member { path, mode, size, kind, position: entry.raw_file_position() }))
}

fn decompress(stored: Box<dyn Read + Send>, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    let buffered = BufReader::with_capacity(CHUNK, stored);
    Ok(match compression {
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(MultiGzDecoder::new(buffered)),
        Compression::Lz4 => Box::new(Lz4Reader::new(buffered)?),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
    })
}

fn failed(shown: &str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut(shown),
        _ => Error::local(format!("could not read archive \"{shown}\": {}", os_message(error))),
    }
}

fn cut(shown: &str) -> Error {
    Error::local(format!("archive \"{shown}\" has no end"))
        .with_detail("It was cut, or is damaged, or is still being written.")
}

/// A file's bytes failed to come out of an archive.
pub fn unreadable(shown: &str, error: &io::Error) -> Error {
    failed(shown, error)
}

/// Counts the zeroes that were read last, and sees an end that is no end of an archive.
struct Tail<R> {
    reader: R,
    read: u64,
    zeroes: u64,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        // Archives consist of blocks.
        if count == 0 && !buffer.is_empty() && !self.read.is_multiple_of(512) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read += count as u64;
        let read = &buffer[..count];
        let zeroes = read.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        self.zeroes = if zeroes == count as u64 { self.zeroes + zeroes } else { zeroes };
        Ok(count)
    }
}

/// Frames of lz4, one after the other.
struct Lz4Reader<R> {
    frames: Lz4Frames,
    input: R,
    is_within: bool,
}

impl<R: io::BufRead> Lz4Reader<R> {
    fn new(input: R) -> io::Result<Self> {
        let frames = Lz4Frames::new().map_err(|failure| io::Error::other(failure.0))?;
        Ok(Self { frames, input, is_within: false })
    }
}

impl<R: io::BufRead> Read for Lz4Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.input.fill_buf()?;
            let is_end = input.is_empty();
            if is_end && !self.is_within {
                return Ok(0);
            }
            let (taken, filled, ended) = self
                .frames
                .decompress(input, buffer)
                .map_err(|failure| io::Error::new(io::ErrorKind::InvalidData, failure.0))?;
            self.input.consume(taken);
            self.is_within = !ended;
            if filled > 0 || buffer.is_empty() {
                return Ok(filled);
            }
            if is_end && self.is_within {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Seek, Write};

    use super::*;

    fn tar(names: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in names {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o4640);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            // By hand: the library refuses what no archive should have.
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
        match compression {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Lz4 => {
                let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
                encoder.write_all(bytes).unwrap();
                let (stream, result) = encoder.finish();
                result.unwrap();
                stream
            }
            Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    const ALL: [Compression; 4] = [Compression::None, Compression::Gzip, Compression::Lz4, Compression::Zstd];

    fn contents(stored: Vec<u8>, compression: Compression) -> Result<Vec<(String, u32, Vec<u8>)>> {
        let mut found = Vec::new();
        read(Box::new(Cursor::new(stored)), compression, "p/", "base.tar", |member, bytes| {
            let mut content = Vec::new();
            bytes.read_to_end(&mut content).map_err(|error| unreadable("base.tar", &error))?;
            found.push((String::from_utf8_lossy(member.path.as_bytes()).into_owned(), member.mode, content));
            Ok(Next::More)
        })?;
        Ok(found)
    }

    #[test]
    fn members_through_one_frame_and_several() {
        let large: Vec<u8> = (0..1_000_000u32).flat_map(|number| (number % 251).to_le_bytes()).collect();
        let archive = tar(&[("./a", b"hello"), ("b/", b""), ("b/c", &large)]);
        for compression in ALL {
            let whole = compressed(&archive, compression);
            let parts = archive.chunks(700_000).flat_map(|part| compressed(part, compression)).collect();
            for stored in [whole, parts] {
                let found = contents(stored, compression).unwrap();
                let names: Vec<_> = found.iter().map(|(name, mode, _)| (&name[..], *mode)).collect();
                assert_eq!(names, [("p/a", 0o640), ("p/b", 0o640), ("p/b/c", 0o640)], "{compression:?}");
                assert!(found[0].2 == b"hello" && found[2].2 == large);
            }
        }
    }

    #[test]
    fn what_was_cut_or_changed_is_noticed() {
        let noise: Vec<u8> =
            (0..200_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let archive = tar(&[("a", &noise)]);
        for compression in ALL {
            let stored = compressed(&archive, compression);
            for length in [0, 10, 600, stored.len() / 2, stored.len() - 513] {
                let mut cut = stored.clone();
                cut.truncate(length);
                assert!(contents(cut, compression).is_err(), "{compression:?} {length}");
            }
        }
        let error = contents(archive[..archive.len() - 600].to_vec(), Compression::None).unwrap_err();
        assert_eq!(error.message(), "archive \"base.tar\" has no end");
    }

    #[test]
    fn what_no_backup_has_is_refused() {
        for (name, why) in [
            ("/a", "The path has an empty, \".\" or \"..\" component."),
            ("a/../../b", "The path has an empty, \".\" or \"..\" component."),
            ("..", "The path has an empty, \".\" or \"..\" component."),
        ] {
            let error = contents(tar(&[(name, b"x")]), Compression::None).unwrap_err();
            assert_eq!(
                error.message(),
                format!("archive \"base.tar\" has a member that no backup has: \"{name}\"")
            );
            assert_eq!(error.detail(), Some(why));
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Fifo);
        header.set_size(0);
        header.set_mode(0o600);
        builder.append_data(&mut header, "fifo", io::empty()).unwrap();
        let error = contents(builder.into_inner().unwrap(), Compression::None).unwrap_err();
        let detail = |kind| {
            format!("It is neither a file nor a directory nor a symbolic link, but of type \"{kind}\".")
        };
        assert_eq!(error.detail(), Some(&*detail('6')));
        // A long name in GNU's form, which has a member of its own.
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o600);
        builder.append_data(&mut header, "n/".repeat(200), &b"x"[..]).unwrap();
        let error = contents(builder.into_inner().unwrap(), Compression::None).unwrap_err();
        assert_eq!(error.detail(), Some(&*detail('L')));
    }

    #[test]
    fn an_index_is_what_reading_finds() {
        let archive = tar(&[("a", b"hello"), ("b/", b""), ("c", &[7; 5000])]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&archive).unwrap();
        file.rewind().unwrap();
        let members = index(&file, "", "base.tar").unwrap();
        let found: Vec<_> =
            members.iter().map(|member| (member.path.as_bytes(), member.size, member.position)).collect();
        assert_eq!(found, [(&b"a"[..], 5, 512), (b"b", 0, 1536), (b"c", 5000, 2048)]);
        for length in [archive.len() - 1025, archive.len() - 1, 3000, 100] {
            file.set_len(length as u64).unwrap();
            file.rewind().unwrap();
            assert!(index(&file, "", "base.tar").is_err(), "{length}");
        }
    }
}
