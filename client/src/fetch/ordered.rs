//! For outputs that take files one after the other: what was fetched waits here, whole and known to be right,
//! until its turn comes.
//!
//! Every file, or part of one, has a ticket, given out by the queue in the order in which they are claimed;
//! the parts of a file have tickets that follow each other. Whoever delivers what is next writes it, and
//! everything behind it that is there already. A ticket is never given back: what failed is claimed
//! again, before anything else, with the ticket that it had. So the lowest ticket is always at some
//! connection or about to be, and never waits for another, while the queue gives out no more than what fits a window.
//!
//! Where an output takes several files beside each other the same holds of the parts of each of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pages::checksum::{Checksum, combine_crcs, from_crc, to_crc};
use protocol::ChecksumAlgorithm;

use crate::error::{Error, Result};
use crate::fetch::queue::{FileNumber, Item, Part};
use crate::fetch::receive::Received;
use crate::fetch::transfer::Work;
use crate::fetch::writer::{ZEROES, checksum_filled_up, piece};
use crate::output::collected::Collected;
use crate::output::{Attributes, Intake, OutputFile};

/// How many bytes a part of a file has. Tests are quicker with fewer.
pub const PART: u64 = if cfg!(test) { 64 << 10 } else { 8 << 20 };

/// How many parts are on their way for each connection: one that comes, one that waits.
pub const PARTS_PER_JOB: u64 = 2;

/// What waits for its turn: one for everything, or, where files come beside each other, one for each file in parts.
#[derive(Debug)]
pub struct Sequencer {
    each: bool,
    lines: Mutex<HashMap<Line, State>>,
}

/// A file, where each has a line of its own.
type Line = Option<FileNumber>;

#[derive(Debug, Default)]
struct State {
    /// What is to be written next: a ticket, or a part by its offset.
    next: u64,
    waiting: BTreeMap<u64, Delivery>,
    /// Somebody is at it, or it has failed: then nobody will be again.
    writing: bool,
    /// The file whose parts are being written.
    parts: Option<Parts>,
}

/// What became of a file, or of a part.
#[derive(Debug)]
pub struct Delivery {
    /// Which.
    pub item: Item,
    /// What came; nothing if it is no more on the server.
    pub came: Option<(Received, Arc<Collected>)>,
}

/// A file in parts, some of them written.
#[derive(Debug)]
enum Parts {
    /// It had vanished when its first part was asked for.
    LeftOut,
    Written {
        checksum: Running,
        attributes: Attributes,
    },
}

/// The checksum of a file, made of its parts in their order.
#[derive(Debug)]
enum Running {
    /// That of the parts can be put together.
    Crc(Option<u32>),
    /// Others are made over everything once more.
    Other(Box<Checksum>),
}

impl Sequencer {
    /// For an output that takes files so; none where the order means nothing.
    pub fn of(intake: Intake) -> Option<Self> {
        match intake {
            Intake::Any | Intake::Sized => None,
            Intake::Ordered => Some(Self { each: false, lines: Mutex::default() }),
            Intake::InOrderEach => Some(Self { each: true, lines: Mutex::default() }),
        }
    }

    /// One of the same kind, for other files.
    pub fn another(&self) -> Self {
        Self { each: self.each, lines: Mutex::default() }
    }

    /// An item is dealt with: it is written when its turn comes, maybe now, maybe by somebody else.
    pub fn deliver(&self, work: &Work<'_>, delivery: Delivery) -> Result<()> {
        let Some((line, place)) = self.place(delivery.item) else {
            let item = delivery.item;
            write(work, delivery, &mut None)?;
            work.queue.written(item);
            return Ok(());
        };
        let mut lines = self.lock();
        let mut state = lines.entry(line).or_default();
        state.waiting.insert(place, delivery);
        if state.writing {
            return Ok(());
        }
        while let Some(delivery) = state.waiting.remove(&state.next) {
            state.writing = true;
            let mut parts = state.parts.take();
            drop(lines);
            // Others deliver meanwhile. Where this fails the backup does.
            let item = delivery.item;
            write(work, delivery, &mut parts)?;
            work.queue.written(item);
            lines = self.lock();
            state = lines.entry(line).or_default();
            state.parts = parts;
            state.next += self.step(item);
            state.writing = false;
        }
        if self.each && state.waiting.is_empty() && state.parts.is_none() && !state.writing && state.next > 0
        {
            lines.remove(&line);
        }
        Ok(())
    }

    /// In which line it is, and where in that; none for a whole file that waits for no other.
    fn place(&self, item: Item) -> Option<(Line, u64)> {
        match item.part {
            _ if !self.each => Some((None, item.ticket)),
            Some(part) => Some((Some(item.file), part.offset)),
            None => None,
        }
    }

    fn step(&self, item: Item) -> u64 {
        match item.part {
            Some(part) if self.each => part.length,
            _ => 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Line, State>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(work: &Work<'_>, delivery: Delivery, parts: &mut Option<Parts>) -> Result<()> {
    let Delivery { item, came } = delivery;
    match (item.part, came) {
        (None, Some((received, content))) => work.collected(item, &received, &content),
        (None, None) => work.file_vanished(item),
        (Some(part), came) => write_part(work, item, &part, came, parts),
    }
}

/// The first part says whether there is a file. Where a later one has vanished the file is gone for good, and
/// replay removes it: zeroes take the place, as where it has shrunk.
fn write_part(
    work: &Work<'_>,
    item: Item,
    part: &Part,
    came: Option<(Received, Arc<Collected>)>,
    parts: &mut Option<Parts>,
) -> Result<()> {
    let path = work.name(item);
    if part.offset == 0 {
        *parts = Some(match &came {
            Some((received, _)) => {
                Parts::Written { checksum: Running::new(work.algorithm), attributes: received.attributes() }
            }
            None => Parts::LeftOut,
        });
    }
    let is_last = part.offset + part.length == part.size;
    let failed = |error: std::io::Error| Error::io("write to file", &work.output.shown(&path), &error);
    match parts {
        None => return Err(Error::local(format!("parts of file \"{path}\" are out of order"))),
        Some(Parts::LeftOut) if is_last => return work.file_vanished(item),
        Some(Parts::LeftOut) => {}
        Some(Parts::Written { checksum, attributes }) => {
            let (content, of_part) = match came {
                Some((received, content)) => (content, received.checksum),
                None => {
                    let zeroes = zeroes(part).map_err(failed)?;
                    (Arc::new(zeroes), checksum_filled_up(work.algorithm, &[], part.length))
                }
            };
            checksum.add(&of_part, &content).map_err(failed)?;
            work.output.put(&piece(&path, item.part, part.size, *attributes), &content)?;
        }
    }
    if !is_last {
        work.queue.finish(false);
        return Ok(());
    }
    match parts.take() {
        Some(Parts::Written { checksum, attributes }) => {
            work.recorded(item, part.size, attributes.mtime, &checksum.finish())
        }
        _ => Ok(()),
    }
}

fn zeroes(part: &Part) -> std::io::Result<Collected> {
    let content = Collected::new(part.offset, part.length, || Err(std::io::ErrorKind::Unsupported.into()))?;
    let mut at = part.offset;
    while at < part.offset + part.length {
        let left = part.offset + part.length - at;
        let count = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        content.write(&ZEROES[..count], at)?;
        at += count as u64;
    }
    Ok(content)
}

impl Running {
    fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::Crc32c => Self::Crc(None),
            other => Self::Other(Box::new(Checksum::new(other))),
        }
    }

    fn add(&mut self, of_part: &[u8], content: &Collected) -> std::io::Result<()> {
        match self {
            Self::Crc(crc) => {
                *crc = Some(match *crc {
                    None => to_crc(of_part),
                    Some(crc) => combine_crcs(crc, to_crc(of_part), content.len()),
                });
                Ok(())
            }
            Self::Other(checksum) => content.read_out(|bytes| {
                checksum.update(bytes);
                Ok(())
            }),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc(crc) => from_crc(crc.unwrap_or(0)),
            Self::Other(checksum) => checksum.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::OsString;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::abort::Abort;
    use crate::fetch::increment::Increments;
    use crate::fetch::queue::{Claimed, Queue, TRIES, Turn};
    use crate::fetch::split::Splits;
    use crate::manifest::Manifest;
    use crate::options::{self, Invocation, ManifestOptions};
    use crate::output::cleanup::Cleanup;
    use crate::output::{self, About, Layout, Modes, tar};
    use crate::report::progress::Counters;
    use pages::names::NameRules;
    use protocol::{BackupPath, Lsn};

    const KB: u64 = 1 << 10;

    /// What happens to a file, or to one of its parts.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Comes,
        /// The part that begins there is no more.
        Vanishes(u64),
    }

    const FILES: [(&str, u64, Fate); 8] = [
        ("base/5/100", 300 * KB, Fate::Comes),
        ("base/5/200", 200 * KB, Fate::Vanishes(0)),
        ("base/5/300", 250 * KB, Fate::Vanishes(PART)),
        ("base/5/400", PART, Fate::Comes),
        ("base/5/500", 1000 * KB + 1, Fate::Comes),
        ("notes", 400 * KB, Fate::Comes),
        ("gone", 10, Fate::Vanishes(0)),
        ("empty", 0, Fate::Comes),
    ];

    fn content(file: u64, offset: u64, length: u64) -> Vec<u8> {
        (offset..offset + length).map(|at| ((at / 512 * 7 + file * 13) % 251) as u8).collect()
    }

    /// A backup over connections that fail, are lost and find files gone.
    fn backed_up(jobs: usize, algorithm: ChecksumAlgorithm, seed: u64, form: &[&str]) {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        let mut arguments: Vec<OsString> =
            ["pg_parallel_basebackup", "-Ft", "-Z", "lz4", "-X", "none"].map(OsString::from).to_vec();
        arguments.extend(form.iter().map(OsString::from));
        arguments.extend(["-D".into(), target.clone().into_os_string()]);
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let (abort, cleanup) = (Arc::new(Abort::new().unwrap()), Cleanup::default());
        let mut output = output::of(&options, &abort, &cleanup).unwrap();
        output.claim(Modes::STRICT).unwrap();
        output.prepare(&Layout { tablespaces: &[], wal_summaries: false }).unwrap();

        let queue = Queue::new(jobs, false).for_intake(output.intake());
        let small = (0..40).map(|number| (format!("small/{number}"), 3 * KB + number, Fate::Comes));
        let files: Vec<_> =
            FILES.map(|(name, size, fate)| (name.to_owned(), size, fate)).into_iter().collect();
        let files: Vec<_> = files.into_iter().chain(small).collect();
        for (name, size, _) in &files {
            queue.push(&BackupPath::from_bytes(name.as_str()).unwrap(), *size).unwrap();
        }
        queue.complete();
        let out: Box<dyn Write + Send> =
            Box::new(std::fs::File::create(place.path().join("manifest")).unwrap());
        let manifest = ManifestOptions { checksums: algorithm, force_encode: false };
        let manifest = Mutex::new(Manifest::new(out, manifest, 180_000, 1).unwrap());
        let (counters, splits, sequencer) =
            (Counters::default(), Splits::default(), Sequencer::of(output.intake()).unwrap());
        let work = Work {
            queue: &queue,
            splits: &splits,
            increments: &Increments::default(),
            output: &*output,
            pipelined: None,
            backup: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            algorithm,
            pages: None,
            names: NameRules::Since17,
            verify: None,
            past_libpq: true,
            sync: false,
            manifest: Some(&manifest),
            compression: protocol::compression::WireCompression::default(),
            passes: false,
            sequencer: Some(&sequencer),
            wal: None,
            journal: None,
            done: None,
            counters: &counters,
        };
        let failures = Mutex::new(HashMap::<usize, u8>::new());
        let window = jobs as u64 * PARTS_PER_JOB * PART;
        let began = Instant::now();
        std::thread::scope(|scope| {
            for job in 0..jobs as u64 {
                let (work, failures, files) = (&work, &failures, &files);
                scope.spawn(move || {
                    let mut random = seed * 97 + job;
                    let mut turn = Turn::default();
                    loop {
                        assert!(began.elapsed() < Duration::from_secs(120), "nobody goes on");
                        let items = match work.queue.claim(&mut turn, Duration::from_millis(10)) {
                            Claimed::Done => return,
                            Claimed::Wait => continue,
                            Claimed::Batch(items) => items,
                        };
                        let unwritten = work.queue.unwritten();
                        assert!(unwritten <= window.max(400 * KB), "{unwritten} are on their way");
                        for item in items {
                            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            let dice = random >> 33;
                            let may_fail = {
                                let mut failures = failures.lock().unwrap();
                                let count = failures.entry(item.file).or_default();
                                let may_fail = dice.is_multiple_of(7) && *count + 1 < TRIES;
                                *count += u8::from(may_fail);
                                may_fail
                            };
                            if may_fail {
                                work.queue.failed(item, &Error::local("x")).unwrap();
                            } else if dice % 7 == 1 {
                                work.queue.release(item);
                            } else {
                                std::thread::sleep(Duration::from_micros(dice % 300));
                                came(work, item, &files[item.file]);
                            }
                        }
                    }
                });
            }
        });
        assert!(queue.is_complete());
        assert_eq!(counters.done().1, files.len() as u64);
        output.about(About {
            id: work.backup,
            began: String::new(),
            server_version: 180_000,
            system_identifier: 1,
            start: (Lsn(1), 1),
            stop: (Lsn(2), 1),
            segment_size: 16 << 20,
            tablespaces: Vec::new(),
            prior: None,
        });
        output.close().unwrap();

        manifest.into_inner().unwrap().finish(&[]).unwrap();
        let manifest = std::fs::read_to_string(place.path().join("manifest")).unwrap();
        let mut members = HashMap::new();
        for entry in std::fs::read_dir(&target).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|suffix| suffix == "lz4") {
                let (mut archive, compressed) = (Vec::new(), std::fs::File::open(file).unwrap());
                lz4::Decoder::new(compressed).unwrap().read_to_end(&mut archive).unwrap();
                for (name, content) in tar::members(&archive) {
                    assert!(members.insert(name, content).is_none(), "nothing is there twice");
                }
            }
        }
        for (number, (name, size, fate)) in files.iter().enumerate() {
            let mut expected = content(number as u64, 0, *size);
            match *fate {
                Fate::Vanishes(0) => {
                    assert!(!members.contains_key(name) && !manifest.contains(name), "{name}");
                    continue;
                }
                Fate::Vanishes(offset) => {
                    let offset = usize::try_from(offset).unwrap();
                    expected[offset..offset + usize::try_from(PART).unwrap()].fill(0);
                }
                Fate::Comes => {}
            }
            assert!(members[name] == expected, "{name} with {jobs} jobs");
            let checksum = protocol::id::to_hex(&Checksum::of(algorithm, &expected));
            let entry = manifest.lines().find(|line| line.contains(&format!("\"{name}\""))).unwrap();
            assert!(entry.contains(&checksum), "{name}: {entry}");
        }
    }

    fn came(work: &Work<'_>, item: Item, (_, size, fate): &(String, u64, Fate)) {
        let (offset, length) = item.part.map_or((0, *size), |part| (part.offset, part.length));
        if *fate == Fate::Vanishes(offset) {
            return work.vanished(item).unwrap();
        }
        let bytes = content(item.file as u64, offset, length);
        let content = Collected::new(offset, length, tempfile::tempfile).unwrap();
        content.write(&bytes, offset).unwrap();
        let received = Received {
            size: *size,
            offset,
            length,
            mtime: 0,
            mode: 0o600,
            checksum: Checksum::of(work.algorithm, &bytes),
            mismatches: Vec::new(),
        };
        work.complete(item, &received, Some(Arc::new(content))).unwrap();
    }

    #[test]
    fn files_come_in_order_whatever_happens_to_them() {
        for jobs in 1..=8 {
            for seed in 0..3 {
                backed_up(jobs, ChecksumAlgorithm::Crc32c, seed, &[]);
            }
        }
        backed_up(3, ChecksumAlgorithm::Sha256, 1, &[]);
    }

    #[test]
    fn parts_come_in_order_in_files_beside_each_other() {
        for jobs in 1..=8 {
            for seed in 0..3 {
                backed_up(jobs, ChecksumAlgorithm::Crc32c, seed, &["--volumes=1MB"]);
            }
        }
        backed_up(3, ChecksumAlgorithm::Sha256, 1, &["--volumes=1MB"]);
    }
}
