//! A file's bytes as one complete frame of zstd or lz4, a stream (docs/protocol.md), by way of the outbox.
//!
//! What is compressed was read, verified and checksummed before, by `content`'s reader. What the library holds
//! back between two chunks is at most one of its blocks.

use compression::{Encoder, Step};
use pages::checksum::Checksum;
use protocol::ChecksumAlgorithm;
use protocol::compression::WireCompression;
use protocol::frame::{Compression, Frame, StreamEnd};

use crate::error::Result;
use crate::stream::content::{TransferControl, poll};
use crate::stream::outbox::{CHUNK, Outbox};

/// What is tried before it is said how a file comes. A block of zstd's, so that a stream loses nothing by being
/// flushed there.
const SAMPLE: usize = 128 * 1024;

/// A file whose sample does not lose as many hundredths comes as it is.
const WORTH_PERCENT: usize = 5;

/// Compresses files; keeps its memory from one to the next.
#[derive(Debug)]
pub struct Compressor {
    encoder: Encoder,
    asked: WireCompression,
    buffer: Vec<u8>,
}

/// What went out of a stream.
#[derive(Debug)]
pub struct Stream {
    bytes: u64,
    /// Of the frame before it, and of its bytes.
    checksum: Checksum,
}

impl Compressor {
    /// Makes contexts for what was asked for, if that is any compression.
    pub fn new(asked: &WireCompression) -> Result<Option<Self>> {
        let compressor =
            Encoder::new(asked)?.map(|encoder| Self { encoder, asked: *asked, buffer: vec![0; CHUNK] });
        Ok(compressor)
    }

    /// Whether it does what is asked for.
    pub fn is_for(&self, asked: &WireCompression) -> bool {
        self.asked == *asked
    }

    /// Bytes of its memory, about.
    pub fn memory(&self) -> usize {
        self.buffer.len() + self.encoder.memory().unwrap_or_default()
    }

    /// Sends a file of `length` bytes, at least one, as a stream, or only its first ones as they are where a
    /// stream is not worth it; says so by `head` before. Returns how many have gone out, and the stream that they are
    /// in. `read` fills a buffer with those that come next.
    pub fn send<'f>(
        &mut self,
        length: u64,
        head: impl Fn(Compression) -> Frame<'f>,
        outbox: &mut Outbox,
        pace: &impl TransferControl,
        mut read: impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<(u64, Option<Stream>)> {
        poll(outbox, pace)?;
        let sample = usize::try_from(length).map_or(SAMPLE, |length| length.min(SAMPLE));
        let bytes = &mut self.buffer[..sample];
        let step = if sample as u64 == length { Step::End } else { Step::Flush };
        let tried = read(bytes).and_then(|()| {
            self.encoder.begin(length)?;
            Ok(self.encoder.encode(bytes, step)?)
        });
        let stream = match tried {
            Ok(stream) => stream,
            Err(error) => {
                // By it the client knows which file failed.
                outbox.frame(&head(Compression::None));
                return Err(error);
            }
        };
        let mut done = sample as u64;
        if stream.len() * 100 > sample * (100 - WORTH_PERCENT) {
            outbox.frame(&head(Compression::None));
            put(bytes, outbox, pace)?;
            pace.sent(done);
            return Ok((done, None));
        }
        let head = head(self.asked.algorithm);
        let mut sent = Stream::begin(&head);
        outbox.frame(&head);
        sent.put(stream, outbox, pace)?;
        pace.sent(done);
        while done < length {
            poll(outbox, pace)?;
            let chunk = usize::try_from(length - done).map_or(CHUNK, |left| left.min(CHUNK));
            let bytes = &mut self.buffer[..chunk];
            read(bytes)?;
            done += chunk as u64;
            let step = if done == length { Step::End } else { Step::Continue };
            sent.put(self.encoder.encode(bytes, step)?, outbox, pace)?;
            pace.sent(chunk as u64);
        }
        Ok((done, Some(sent)))
    }
}

impl Stream {
    fn begin(head: &Frame<'_>) -> Self {
        let mut stream = Self { bytes: 0, checksum: Checksum::new(ChecksumAlgorithm::Crc32c) };
        stream.cover(head);
        stream
    }

    fn put(&mut self, bytes: &[u8], outbox: &mut Outbox, pace: &impl TransferControl) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.checksum.update(bytes);
        by_turns(bytes, outbox, pace, |turn, outbox| outbox.stream(turn))
    }

    fn cover(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::with_capacity(128);
        frame.encode(&mut bytes);
        self.checksum.update(&bytes);
    }

    /// What is said of it before the file ends by the frame `end`.
    pub fn end(mut self, end: &Frame<'_>) -> StreamEnd {
        self.cover(end);
        let mut checksum = [0; 4];
        checksum.copy_from_slice(&self.checksum.finish());
        StreamEnd { bytes: self.bytes, checksum }
    }
}

/// Sends bytes that are in memory, as they are.
fn put(bytes: &[u8], outbox: &mut Outbox, pace: &impl TransferControl) -> Result<()> {
    by_turns(bytes, outbox, pace, |mut rest, outbox| {
        let length = rest.len();
        for place in outbox.places(length) {
            let (here, after) = rest.split_at(place.len());
            place.copy_from_slice(here);
            rest = after;
        }
        outbox.filled(length);
    })
}

/// Hands bytes to the outbox as their turn comes.
fn by_turns(
    bytes: &[u8],
    outbox: &mut Outbox,
    pace: &impl TransferControl,
    mut send: impl FnMut(&[u8], &mut Outbox),
) -> Result<()> {
    for turn in bytes.chunks(pace.chunk(CHUNK).min(CHUNK)) {
        // Nothing that has had its turn waits for the next.
        if pace.is_limited() {
            outbox.flush();
        }
        pace.throttle(turn.len() as u64)?;
        send(turn, outbox);
    }
    Ok(())
}
