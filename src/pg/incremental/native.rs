//! backup/basebackup_incremental.c, which keeps all of it in one memory context: the names of the prior
//! backup's files, and, once a backup has started, a table of the blocks that have changed.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_void};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::cluster::contents::{Relation, Space};
use crate::cluster::page::SEGMENT_BLOCKS;
use crate::cluster::relation::Fork;
use crate::error::{Error, Result};
use crate::pg::incremental::{Method, Uploaded};
use crate::pg::shim::{self, IncrementalBackupInfo as Info};
use crate::pg::{entry, guard};

/// The server's own name of what UPLOAD_MANIFEST has read (walsender.c). A stock server keeps it to itself, and
/// so do patches before 0.3.0.
const UPLOADED: &CStr = c"uploaded_manifest";

/// Handed to the parser at once: what it has not parsed yet it keeps, up to 128 kB (MAX_CHUNK).
const APPENDED: usize = 64 * 1024;

/// A prior backup's manifest that comes in pieces, one command each. It outlives the commands, so it has a memory
/// context and a resource owner of its own: the parser's hash belongs to whatever owner was current when it began.
#[derive(Debug)]
pub struct Manifest {
    info: *mut Info,
    context: pg_sys::MemoryContext,
    /// Null once the manifest is complete.
    owner: pg_sys::ResourceOwner,
}

impl Manifest {
    /// Begins with nothing.
    #[allow(unsafe_code)]
    pub fn begin() -> Result<Self> {
        const NAME: &CStr = c"parallel backup manifest";
        // SAFETY: the name is a constant. An owner without a parent lives until it is deleted.
        let owner = unsafe { pg_sys::ResourceOwnerCreate(std::ptr::null_mut(), NAME.as_ptr()) };
        let context = new_context(top_context(), NAME);
        let mut manifest = Self { info: std::ptr::null_mut(), context, owner };
        manifest.info = guard::on_failure(
            // SAFETY: the context is new, and all that is made goes into it.
            || manifest.owning(|| unsafe { guarded(|| shim::ppb_increment_create(context)) }),
            || release(context, owner),
        )?;
        Ok(manifest)
    }

    /// Takes what follows. An ERROR of the parser's leaves a manifest that is good for nothing but
    /// [`Self::release`].
    #[allow(unsafe_code)]
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(APPENDED).try_for_each(|piece| {
            let (info, data, length) = (self.info, piece.as_ptr().cast(), piece.len() as i32);
            // SAFETY: not finished yet; the bytes are copied. No piece is longer than an int can say.
            self.owning(|| unsafe { guarded(|| shim::ppb_increment_append_manifest(info, data, length)) })
        })
    }

    /// Nothing follows: the rest is parsed and the manifest's checksum verified, or an ERROR raised, likewise.
    #[allow(unsafe_code)]
    pub fn finish(&mut self) -> Result<()> {
        let info = self.info;
        // SAFETY: not finished yet.
        self.owning(|| unsafe { guarded(|| shim::ppb_increment_end_manifest(info)) })?;
        release_owner(std::mem::replace(&mut self.owner, std::ptr::null_mut()));
        Ok(())
    }

    /// Gives it back.
    pub fn release(self) {
        release(self.context, self.owner);
    }

    /// The complete manifest, for a backup.
    pub fn into_increment(self) -> Increment {
        CURRENT.set(self.info);
        Increment { info: self.info, own: Cell::new(Some(self.context)) }
    }

    /// Runs what makes or frees the parser's resources.
    #[allow(unsafe_code)]
    fn owning<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        // SAFETY: reads and writes a static of this process; what was current is so again afterwards, after an
        // ERROR too.
        unsafe {
            let before = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = self.owner;
            guard::with_end(|| Ok(call()), || pg_sys::CurrentResourceOwner = before)
        }
    }
}

thread_local! {
    /// What the last increment goes by, null once UPLOAD_MANIFEST has taken another.
    static CURRENT: Cell<*mut Info> = const { Cell::new(std::ptr::null_mut()) };
}

/// A prior backup's manifest as an incremental backup goes by it, and, once prepared, what has changed since.
#[derive(Debug)]
pub struct Increment {
    info: *mut Info,
    /// Its memory context, where it is ours and not the walsender's.
    own: Cell<Option<pg_sys::MemoryContext>>,
}

impl Increment {
    /// Finds out what has changed, after do_pg_backup_start and with its state: waits until WAL is summarized up to
    /// there, reads the summaries, and notes in the state what the label is to say of the prior backup. An ERROR
    /// where the manifest does not fit this cluster's history or summaries are missing.
    #[allow(unsafe_code)]
    pub fn prepare(&self, state: &mut pg_sys::BackupState) {
        // SAFETY: the manifest is complete.
        unsafe { guarded(|| shim::ppb_increment_prepare(self.info, state)) }
    }

    /// What decides how each file goes into the backup, once it is prepared.
    pub fn methods(&self) -> Methods<'_> {
        Methods {
            increment: self,
            scratch: new_context(current_context(), c"parallel backup file method"),
            blocks: vec![0; SEGMENT_BLOCKS as usize],
        }
    }

    /// Gives back what is ours. A second time does nothing.
    pub fn release(&self) {
        if let Some(context) = self.own.take() {
            CURRENT.set(std::ptr::null_mut());
            release(context, std::ptr::null_mut());
        }
    }
}

/// Asks for one file after the other.
#[derive(Debug)]
pub struct Methods<'a> {
    increment: &'a Increment,
    /// What an answer leaves behind: it is asked for as many files as the cluster has.
    scratch: pg_sys::MemoryContext,
    blocks: Vec<pg_sys::BlockNumber>,
}

impl Methods<'_> {
    /// How a relation file of this size goes into the backup. Fails where the manifest is gone.
    #[allow(unsafe_code)]
    pub fn of(&mut self, path: &[u8], relation: &Relation, size: u64) -> Result<Method<'_>> {
        if CURRENT.get() != self.increment.info {
            return Err(Error::ManifestReplaced);
        }
        let path = CString::new(path).unwrap_or_default();
        let (mut count, mut truncation_block_length) = (0, 0);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        // The numbers of common/relpath.h, which shim.c holds them against.
        let fork = match relation.file.fork {
            Fork::Main => 0,
            Fork::FreeSpaceMap => 1,
            Fork::VisibilityMap => 2,
            Fork::Init => 3,
        };
        // SAFETY: constants.
        let space = unsafe {
            match relation.space {
                Space::Global => shim::ppb_global_tablespace,
                Space::Default => shim::ppb_default_tablespace,
                Space::Other(oid) => pg_sys::Oid::from(oid),
            }
        };
        let (info, blocks) = (self.increment.info, self.blocks.as_mut_ptr());
        // SAFETY: the backup is prepared. There is room for every block of a segment (RELSEG_SIZE), more than
        // which a file has no list. The context that was current is so again afterwards.
        let has_blocks = unsafe {
            let before = pg_sys::CurrentMemoryContext;
            pg_sys::MemoryContextReset(self.scratch);
            pg_sys::CurrentMemoryContext = self.scratch;
            guard::with_end(
                || {
                    Ok(guarded(|| {
                        shim::ppb_increment_has_blocks(
                            info,
                            path.as_ptr(),
                            pg_sys::Oid::from(relation.database),
                            space,
                            relation.file.number,
                            fork,
                            relation.file.segment,
                            size,
                            &mut count,
                            blocks,
                            &mut truncation_block_length,
                        )
                    }))
                },
                || pg_sys::CurrentMemoryContext = before,
            )?
        };
        if !has_blocks {
            return Ok(Method::Whole);
        }
        let blocks = &self.blocks[..usize::try_from(count).unwrap_or(0)];
        Ok(Method::Blocks { blocks, truncation_block_length })
    }

    /// Gives back what the answers have left behind. After an ERROR the command's own context does it.
    pub fn end(self) {
        release(self.scratch, std::ptr::null_mut());
    }
}

/// Fails unless WAL is summarized, as BASE_BACKUP fails at the option itself.
#[allow(unsafe_code)]
pub fn check_summaries() -> Result<()> {
    // SAFETY: reads a setting.
    if unsafe { shim::ppb_summarizes_wal() } { Ok(()) } else { Err(Error::NoSummaries) }
}

/// The manifest that UPLOAD_MANIFEST has taken in this session.
#[allow(unsafe_code)]
pub fn uploaded() -> Uploaded {
    let place = entry::symbol(UPLOADED).cast::<*mut Info>();
    if place.is_null() {
        // SAFETY: reads a static.
        return if unsafe { pg_sys::am_walsender } { Uploaded::NotHandedOver } else { Uploaded::Nothing };
    }
    // SAFETY: the walsender's static, null or complete. It was allocated in the context that UPLOAD_MANIFEST deletes
    // with the next one: the callback lies there too, and tells of that.
    unsafe {
        let info = *place;
        if info.is_null() {
            return Uploaded::Nothing;
        }
        let context = pg_sys::GetMemoryChunkContext(info.cast());
        let callback = pg_sys::MemoryContextAllocZero(context, size_of::<pg_sys::MemoryContextCallback>())
            .cast::<pg_sys::MemoryContextCallback>();
        (*callback).func = Some(forget);
        (*callback).arg = info.cast();
        pg_sys::MemoryContextRegisterResetCallback(context, callback);
        CURRENT.set(info);
        Uploaded::Manifest(Increment { info, own: Cell::new(None) })
    }
}

/// The walsender lets go of a manifest.
// No guard: nothing in here raises an error or a panic.
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn forget(info: *mut c_void) {
    if CURRENT.get() == info.cast() {
        CURRENT.set(std::ptr::null_mut());
    }
}

#[allow(unsafe_code)]
fn top_context() -> pg_sys::MemoryContext {
    // SAFETY: reads a static that every process has set.
    unsafe { pg_sys::TopMemoryContext }
}

#[allow(unsafe_code)]
fn current_context() -> pg_sys::MemoryContext {
    // SAFETY: reads a static that every process has set.
    unsafe { pg_sys::CurrentMemoryContext }
}

#[allow(unsafe_code)]
fn new_context(parent: pg_sys::MemoryContext, name: &'static CStr) -> pg_sys::MemoryContext {
    // SAFETY: the name is a constant, as it must be.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

#[allow(unsafe_code)]
fn release(context: pg_sys::MemoryContext, owner: pg_sys::ResourceOwner) {
    release_owner(owner);
    // SAFETY: nothing of what lies in it is used any more.
    unsafe { pg_sys::MemoryContextDelete(context) }
}

/// Frees the parser's hash, if that is still there, and the owner.
#[allow(unsafe_code)]
fn release_owner(owner: pg_sys::ResourceOwner) {
    use pg_sys::ResourceReleasePhase::{
        RESOURCE_RELEASE_AFTER_LOCKS, RESOURCE_RELEASE_BEFORE_LOCKS, RESOURCE_RELEASE_LOCKS,
    };
    if owner.is_null() {
        return;
    }
    // SAFETY: our own owner, not the current one, in the order that is asked for. One without a parent is at the top
    // level (as ReleaseAuxProcessResources has it, resowner.c); it is no transaction's, so that nothing else is
    // released; not to commit spares warnings of what is still there.
    unsafe {
        for phase in [RESOURCE_RELEASE_BEFORE_LOCKS, RESOURCE_RELEASE_LOCKS, RESOURCE_RELEASE_AFTER_LOCKS] {
            pg_sys::ResourceOwnerRelease(owner, phase, false, true);
        }
        pg_sys::ResourceOwnerDelete(owner);
    }
}
