//! What archives that are streamed go through before they are written.

use std::io::{self, BufWriter, Write};

use std::num::NonZero;

use gzp::deflate::Gzip;
use gzp::par::compress::{ParCompress, ParCompressBuilder};
use gzp::{Compression as Level, ZWriter};

use protocol::compression::Method;

use crate::options::Options;

/// How many bytes are written at a time.
const BUFFER: usize = 256 << 10;

/// How many bytes a thread compresses at a time: none of them knows what came before, which costs the less
/// the more they are.
const GZIP_BLOCK: usize = 512 << 10;

/// A writer that has an end.
pub trait Encode: Write + Send {
    /// Writes what is left.
    fn finish(self: Box<Self>) -> io::Result<()>;
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
}

impl Encoding {
    /// As the options say.
    pub fn of(options: &Options) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let specification = &options.compress.specification;
        let level = specification.level();
        match specification.method {
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

    /// What pg_wal.tar is compressed with: nothing but gzip, as in pg_basebackup.
    pub fn of_wal(self) -> Self {
        match self {
            Self::Gzip { .. } => self,
            Self::Plain | Self::Lz4 { .. } | Self::Zstd { .. } => Self::Plain,
        }
    }

    /// What the name of a compressed archive has behind `.tar`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip { .. } => ".gz",
            Self::Lz4 { .. } => ".lz4",
            Self::Zstd { .. } => ".zst",
        }
    }

    /// Compresses what is written.
    pub fn encode<W: Write + Send + 'static>(self, out: W) -> io::Result<Box<dyn Encode>> {
        match self {
            Self::Plain => Ok(Box::new(Plain(BufWriter::with_capacity(BUFFER, out)))),
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
    fn what_is_not_compressed_is_as_it_was() {
        assert!(encoded(Encoding::Plain) == content());
    }
}
