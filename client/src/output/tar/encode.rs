//! What archives that are streamed go through before they are written.

use std::io::{self, BufWriter, Write};

use std::num::NonZero;

use gzp::deflate::Gzip;
use gzp::par::compress::{ParCompress, ParCompressBuilder};
use gzp::{Compression as Level, ZWriter};

use compression::Step;
use protocol::compression::{Method, WireCompression};
use protocol::frame::Compression;

use crate::options::Options;

/// How many bytes are written at a time.
const BUFFER: usize = 256 << 10;

/// What the server's frames come in is written as it is where it is no less than this: what was gathered before goes
/// out first.
const PASSED: usize = 64 << 10;

/// How many bytes a thread compresses at a time: none of them knows what came before, which costs the less
/// the more they are.
const GZIP_BLOCK: usize = 512 << 10;

/// What is between the server's frames is compressed so many bytes at a time, at most,
const BETWEEN: usize = 256 << 10;

/// and by zstd at its cheapest level that still makes headers small.
const BETWEEN_LEVEL: i32 = 1;

/// A writer that has an end.
pub trait Encode: Write + Send {
    /// Writes what is left.
    fn finish(self: Box<Self>) -> io::Result<()>;

    /// Writes what was compressed by the same method elsewhere: whole frames.
    fn pass(&mut self, _frames: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// As it is.
struct Plain<W: Write>(BufWriter<W>);

/// gzip, on several threads, in one member: PostgreSQL's reader refuses a second.
struct Gzipped<W: Write + Send + 'static> {
    /// Nothing once it has ended.
    out: Option<ParCompress<'static, Gzip, W>>,
    failed: bool,
}

/// LZ4, in one frame.
struct Lz4<W: Write>(lz4::Encoder<W>);

/// Zstandard, in one frame.
struct Zstd<W: Write>(zstd::Encoder<'static, W>);

/// The server's frames as they came, and what is between them in frames of our own.
struct Framed<W: Write> {
    out: BufWriter<W>,
    encoder: compression::Encoder,
    /// What is between them and is not written yet.
    between: Vec<u8>,
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// gzip at a level from 1 to 9.
    Gzip {
        /// The level.
        level: u32,
        /// By so many threads.
        threads: usize,
    },
    /// LZ4 at a level from 0 to 12.
    Lz4 {
        /// The level.
        level: u32,
    },
    /// Zstandard.
    Zstd {
        /// The level.
        level: i32,
        /// By so many threads; 0 for the one that writes.
        workers: u32,
        /// Looking for matches at a long distance.
        long: bool,
    },
    /// By the server, so.
    ByServer(Compression),
}

impl Encoding {
    /// As the options say.
    pub fn of(options: &Options) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let specification = &options.compress.specification;
        let level = specification.level();
        let is_by_server = options.compress.of_server().is_some();
        match specification.method {
            Method::Lz4 if is_by_server => Self::ByServer(Compression::Lz4),
            Method::Zstd if is_by_server => Self::ByServer(Compression::Zstd),
            Method::None => Self::Plain,
            // What zlib takes for its default.
            Method::Gzip => Self::Gzip { level: u32::try_from(level).unwrap_or(6), threads },
            Method::Lz4 => Self::Lz4 { level: u32::try_from(level).unwrap_or(0) },
            Method::Zstd => Self::Zstd {
                level,
                workers: match specification.workers {
                    Some(workers) => u32::try_from(workers).unwrap_or(0),
                    // On one core a second thread would only take turns with the first.
                    None => u32::try_from(threads).ok().filter(|threads| *threads > 1).unwrap_or(0),
                },
                long: specification.long.unwrap_or(false),
            },
        }
    }

    /// The same for one of many archives, which are compressed beside each other.
    pub fn of_volumes(options: &Options) -> Self {
        match Self::of(options) {
            Self::Gzip { level, .. } => Self::Gzip { level, threads: 1 },
            Self::Zstd { level, long, .. } => {
                let workers = options.compress.specification.workers.unwrap_or(0);
                Self::Zstd { level, workers: u32::try_from(workers).unwrap_or(0), long }
            }
            other => other,
        }
    }

    /// What pg_wal.tar is compressed with: nothing but gzip, as in pg_basebackup.
    pub fn of_wal(options: &Options) -> Self {
        match Self::of(options) {
            // What the server is to compress with it, the WAL stream is not part of.
            gzip @ Self::Gzip { .. } if options.compress.of_server().is_none() => gzip,
            _ => Self::Plain,
        }
    }

    /// What the name of a compressed archive has behind `.tar`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain | Self::ByServer(Compression::None) => "",
            Self::Gzip { .. } => ".gz",
            Self::Lz4 { .. } | Self::ByServer(Compression::Lz4) => ".lz4",
            Self::Zstd { .. } | Self::ByServer(Compression::Zstd) => ".zst",
        }
    }

    /// Compresses what is written.
    pub fn encode<W: Write + Send + 'static>(self, out: W) -> io::Result<Box<dyn Encode>> {
        match self {
            Self::Plain => Ok(Box::new(Plain(BufWriter::with_capacity(BUFFER, out)))),
            Self::ByServer(algorithm) => {
                // Headers, and what the server found not to get smaller.
                let level = (algorithm == Compression::Zstd).then_some(BETWEEN_LEVEL);
                let between = WireCompression { algorithm, level, long: false };
                let encoder = compression::Encoder::new(&between).map_err(io::Error::other)?;
                let encoder = encoder.ok_or(io::ErrorKind::InvalidInput)?;
                let out = BufWriter::with_capacity(PASSED, out);
                Ok(Box::new(Framed { out, encoder, between: Vec::with_capacity(BETWEEN) }))
            }
            Self::Lz4 { level } => {
                // As PostgreSQL has it (astreamer_lz4.c).
                let encoder = lz4::EncoderBuilder::new()
                    .block_size(lz4::BlockSize::Max256KB)
                    .checksum(lz4::ContentChecksum::NoChecksum)
                    .level(level)
                    .build(out)?;
                Ok(Box::new(Lz4(encoder)))
            }
            Self::Zstd { level, workers, long } => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                encoder.multithread(workers)?;
                encoder.long_distance_matching(long)?;
                Ok(Box::new(Zstd(encoder)))
            }
            Self::Gzip { level, threads } => {
                let builder = ParCompressBuilder::new()
                    .buffer_size(GZIP_BLOCK)
                    .and_then(|builder| builder.num_threads(threads.max(1)))
                    .map_err(io::Error::other)?
                    .compression_level(Level::new(level));
                Ok(Box::new(Gzipped { out: Some(builder.from_writer(out)), failed: false }))
            }
        }
    }
}

impl<W: Write + Send> Encode for Plain<W> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Framed<W> {
    fn write_between(&mut self) -> io::Result<()> {
        if self.between.is_empty() {
            return Ok(());
        }
        self.encoder.begin(self.between.len() as u64).map_err(io::Error::other)?;
        let frame = self.encoder.encode(&self.between, Step::End).map_err(io::Error::other)?;
        self.out.write_all(frame)?;
        self.between.clear();
        Ok(())
    }
}

impl<W: Write + Send> Encode for Framed<W> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.write_between()?;
        self.out.flush()
    }

    fn pass(&mut self, frames: &[u8]) -> io::Result<()> {
        self.write_between()?;
        self.out.write_all(frames)
    }
}

impl<W: Write> Write for Framed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.between.len() >= BETWEEN {
            self.write_between()?;
        }
        let taken = bytes.len().min(BETWEEN - self.between.len());
        self.between.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_between()?;
        self.out.flush()
    }
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send> Encode for Lz4<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let (mut out, ended) = self.0.finish();
        ended.and_then(|()| out.flush())
    }
}

impl<W: Write> Write for Lz4<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send> Encode for Zstd<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish()?.flush()
    }
}

impl<W: Write> Write for Zstd<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send + 'static> Gzipped<W> {
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut ParCompress<'static, Gzip, W>) -> io::Result<T>,
    ) -> io::Result<T> {
        let out = self.out.as_mut().ok_or_else(|| io::Error::other("compression has ended"))?;
        let done = work(out);
        self.failed |= done.is_err();
        done
    }
}

impl<W: Write + Send + 'static> Encode for Gzipped<W> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let finished = self.with(|out| out.finish().map_err(unwrapped)?.flush());
        self.failed = true;
        finished
    }
}

impl<W: Write + Send + 'static> Write for Gzipped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|out| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(Write::flush)
    }
}

/// Of an archive that is given up: its end would be written, and a panic is what becomes of an error then.
impl<W: Write + Send + 'static> Drop for Gzipped<W> {
    fn drop(&mut self) {
        if !self.failed
            && let Some(mut out) = self.out.take()
        {
            let _ = out.finish();
        }
    }
}

/// The system's error, if it is one, so that its words are the system's.
fn unwrapped(error: gzp::GzpError) -> io::Error {
    match error {
        gzp::GzpError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn content() -> Vec<u8> {
        (0..400_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    fn encoded(encoding: Encoding) -> Vec<u8> {
        let out = Shared::default();
        let mut encoder = encoding.encode(out.clone()).unwrap();
        content().chunks(100_001).for_each(|piece| encoder.write_all(piece).unwrap());
        encoder.finish().unwrap();
        std::mem::take(&mut *out.0.lock().unwrap())
    }

    #[test]
    fn gzip_is_one_member() {
        for threads in [0, 1, 3] {
            let bytes = encoded(Encoding::Gzip { level: 1, threads });
            let mut reader = flate2::bufread::GzDecoder::new(&bytes[..]);
            let mut decoded = Vec::new();
            reader.read_to_end(&mut decoded).unwrap();
            assert!(decoded == content(), "{threads} threads");
            assert!(reader.into_inner().is_empty(), "nothing behind the first member");
            assert!(bytes.len() < content().len() / 2);
        }
    }

    #[test]
    fn one_frame_of_lz4_and_of_zstd() {
        for level in [0, 9] {
            let bytes = encoded(Encoding::Lz4 { level });
            let mut decoded = Vec::new();
            lz4::Decoder::new(&bytes[..]).unwrap().read_to_end(&mut decoded).unwrap();
            assert!(decoded == content(), "lz4 at level {level}");
        }
        for (level, workers, long) in [(1, 0, false), (3, 2, false), (-5, 1, true)] {
            let bytes = encoded(Encoding::Zstd { level, workers, long });
            let mut decoder = zstd::Decoder::new(&bytes[..]).unwrap().single_frame();
            decoder.window_log_max(27).unwrap();
            let mut decoded = Vec::new();
            decoder.read_to_end(&mut decoded).unwrap();
            assert!(decoded == content(), "zstd at level {level}");
        }
    }

    #[test]
    fn frames_of_the_server_between_ours() {
        for algorithm in [Compression::Lz4, Compression::Zstd] {
            let asked = WireCompression { algorithm, ..WireCompression::default() };
            let mut server = compression::Encoder::new(&asked).unwrap().unwrap();
            server.begin(content().len() as u64).unwrap();
            let stream = server.encode(&content(), Step::End).unwrap();
            let out = Shared::default();
            let mut encoder = Encoding::ByServer(algorithm).encode(out.clone()).unwrap();
            encoder.write_all(b"header").unwrap();
            stream.chunks(100_000).for_each(|piece| encoder.pass(piece).unwrap());
            encoder.write_all(&content()).unwrap();
            stream.chunks(stream.len()).for_each(|piece| encoder.pass(piece).unwrap());
            encoder.finish().unwrap();
            let bytes = std::mem::take(&mut *out.0.lock().unwrap());
            assert!(memchr::memmem::find_iter(&bytes, stream).count() == 2, "{algorithm:?}: as it came");
            let mut decoded = Vec::new();
            if algorithm == Compression::Zstd {
                zstd::Decoder::new(&bytes[..]).unwrap().read_to_end(&mut decoded).unwrap();
            } else {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let mut decoder = lz4::Decoder::new(rest).unwrap();
                    decoder.read_to_end(&mut decoded).unwrap();
                    rest = decoder.finish().0;
                }
            }
            assert!(decoded == [b"header", &content()[..], &content(), &content()].concat(), "{algorithm:?}");
        }
        assert!(encoded(Encoding::ByServer(Compression::Zstd)).len() < content().len() / 2);
        assert!(Encoding::Plain.encode(Shared::default()).unwrap().pass(b"x").is_err());
    }

    #[test]
    fn what_is_not_compressed_is_as_it_was() {
        assert!(encoded(Encoding::Plain) == content());
    }
}
