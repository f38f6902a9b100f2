//! PostgreSQL's non-exclusive backup state: `do_pg_backup_start` and what goes with it.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use protocol::Lsn;

use crate::cluster::Tablespace;
use crate::error::{Error, Result};
use crate::pg::incremental::Increment;
use crate::pg::{interrupt, node, server};

/// `tablespaceinfo` of backup/basebackup.h, which no server installs: nothing but the tests on each
/// version (006_tablespaces) would see a change of it.
#[repr(C)]
struct TablespaceInfo {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    oid: *const std::ffi::c_char,
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    oid: pg_sys::Oid,
    path: *mut std::ffi::c_char,
    rpath: *mut std::ffi::c_char,
    size: i64,
}

/// The state of a backup that this session has started. It outlives the command that made it, so
/// it lives in Rust's memory and not in the command's context.
#[derive(Debug)]
pub struct BackupState {
    start: (Lsn, u32),
    started_in_recovery: bool,
    stop: (Lsn, u32),
    label_file: Vec<u8>,
    /// PostgreSQL's own, from 16; before, the content of backup_label is the state.
    #[cfg(not(feature = "pg15"))]
    native: Box<pg_sys::BackupState>,
}

/// What a started backup begins with.
#[derive(Debug)]
pub struct Started {
    /// Its state.
    pub state: BackupState,
    /// The tablespaces, in the order PostgreSQL found them.
    pub tablespaces: Vec<Tablespace>,
    /// The content of tablespace_map, empty where there is no tablespace.
    pub tablespace_map: Vec<u8>,
}

/// Whether this session is in backup mode, by START_BACKUP, pg_backup_start or BASE_BACKUP.
#[allow(unsafe_code)]
pub fn session_in_backup() -> bool {
    // SAFETY: reads a static.
    unsafe { pg_sys::get_backup_status() == pg_sys::SessionBackupState::SESSION_BACKUP_RUNNING }
}

/// Enters backup mode as pg_backup_start does, for what `increment` says or for all of the cluster. A
/// failure, or the end of the session, leaves it again.
#[allow(unsafe_code)]
pub fn start(label: &CStr, fast: bool, increment: Option<&Increment>) -> Result<Started> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the handler is a static function; the map is made in the current memory context.
    let map = unsafe {
        pg_sys::register_persistent_abort_backup_handler();
        pg_sys::makeStringInfo()
    };
    // SAFETY: the map is an empty StringInfo.
    let mut state = unsafe { enter(label, fast, &mut list, map) };
    // SAFETY: do_pg_backup_start filled the list with tablespaceinfo, and the StringInfo.
    let (tablespaces, tablespace_map) = unsafe {
        let tablespaces = node::pointers(list).map(|pointer| tablespace(&*pointer.cast()));
        (with_in_place(tablespaces.collect())?, content(map))
    };
    if let Some(increment) = increment {
        state.prepare(increment);
    }
    Ok(Started { state, tablespaces, tablespace_map })
}

/// do_pg_backup_start: the values that it yields, and its list and map filled.
///
/// # Safety
/// `map` is a StringInfo.
#[cfg(not(feature = "pg15"))]
#[allow(unsafe_code)]
unsafe fn enter(
    label: &CStr,
    fast: bool,
    list: &mut *mut pg_sys::List,
    map: pg_sys::StringInfo,
) -> BackupState {
    let mut native = Box::<pg_sys::BackupState>::default();
    // SAFETY: the label is a C string; the state is zeroed and stays where it is.
    unsafe { pg_sys::do_pg_backup_start(label.as_ptr(), fast, list, &mut *native, map) };
    let label_file = label_content(&mut native);
    BackupState {
        start: (Lsn(native.startpoint), native.starttli),
        started_in_recovery: native.started_in_recovery,
        stop: Default::default(),
        label_file,
        native,
    }
}

/// What backup_label is to hold.
#[cfg(not(feature = "pg15"))]
#[allow(unsafe_code)]
fn label_content(native: &mut pg_sys::BackupState) -> Vec<u8> {
    // SAFETY: the state is that of a backup that has started; the answer is a palloc'd C string.
    unsafe {
        let content = pg_sys::build_backup_content(native, false);
        let bytes = CStr::from_ptr(content).to_bytes().to_vec();
        pg_sys::pfree(content.cast());
        bytes
    }
}

/// do_pg_backup_start: the values that it yields, and its list and map filled.
///
/// # Safety
/// `map` is a StringInfo.
#[cfg(feature = "pg15")]
#[allow(unsafe_code)]
unsafe fn enter(
    label: &CStr,
    fast: bool,
    list: &mut *mut pg_sys::List,
    map: pg_sys::StringInfo,
) -> BackupState {
    let mut timeline = 0;
    // It has no way to say so. A standby that is promoted in between is found by
    // do_pg_backup_stop, from the content of backup_label.
    let started_in_recovery = server::in_recovery();
    // SAFETY: the label is a C string; the content of backup_label goes into a StringInfo of the
    // current memory context.
    let (start, label_file) = unsafe {
        let label_file = pg_sys::makeStringInfo();
        let start = pg_sys::do_pg_backup_start(label.as_ptr(), fast, &mut timeline, label_file, list, map);
        (start, content(label_file))
    };
    BackupState { start: (Lsn(start), timeline), started_in_recovery, stop: Default::default(), label_file }
}

/// # Safety
/// `info` is as do_pg_backup_start made it.
#[allow(unsafe_code)]
unsafe fn tablespace(info: &TablespaceInfo) -> Tablespace {
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    let oid = info.oid.to_u32();
    // SAFETY: the name of an entry of pg_tblspc, digits all of it.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let oid = unsafe { CStr::from_ptr(info.oid) }.to_str().ok().and_then(|oid| oid.parse().ok()).unwrap_or(0);
    // SAFETY: a C string, and one or null.
    unsafe {
        Tablespace {
            oid,
            location: CStr::from_ptr(info.path).to_bytes().to_vec(),
            relative: (!info.rpath.is_null()).then(|| CStr::from_ptr(info.rpath).to_bytes().to_vec()),
        }
    }
}

/// From 16, do_pg_backup_start lists tablespaces that are directories in pg_tblspc
/// (allow_in_place_tablespaces) too. In 15 BASE_BACKUP sends them as part of the data directory.
fn with_in_place(tablespaces: Vec<Tablespace>) -> Result<Vec<Tablespace>> {
    #[cfg(not(feature = "pg15"))]
    let in_place = [];
    #[cfg(feature = "pg15")]
    let in_place = current_tablespaces()?.into_iter().filter(Tablespace::in_place);
    Ok(tablespaces.into_iter().chain(in_place).collect())
}

/// # Safety
/// `info` is a StringInfo.
#[allow(unsafe_code)]
unsafe fn content(info: pg_sys::StringInfo) -> Vec<u8> {
    // SAFETY: data has len bytes.
    unsafe {
        let length = usize::try_from((*info).len).unwrap_or(0);
        std::slice::from_raw_parts((*info).data.cast::<u8>(), length).to_vec()
    }
}

/// Leaves backup mode without a backup, if the session is in it.
#[allow(unsafe_code)]
pub fn abort() {
    // SAFETY: the argument says that this is not the start phase, so it acts only if a backup runs.
    unsafe { pg_sys::do_pg_abort_backup(0, pg_sys::Datum::from(false)) }
}

impl BackupState {
    /// The start LSN.
    pub fn start_lsn(&self) -> Lsn {
        self.start.0
    }

    /// Its timeline.
    pub fn start_timeline(&self) -> u32 {
        self.start.1
    }

    /// Whether the server was a standby when the backup started.
    pub fn started_in_recovery(&self) -> bool {
        self.started_in_recovery
    }

    /// Where the backup ended, once it has.
    pub fn stop_lsn(&self) -> Lsn {
        self.stop.0
    }

    /// The timeline of that.
    pub fn stop_timeline(&self) -> u32 {
        self.stop.1
    }

    /// The content of backup_label.
    pub fn label_file(&self) -> Vec<u8> {
        self.label_file.clone()
    }

    /// Finds out what has changed since the prior backup; the label says which that is.
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    fn prepare(&mut self, increment: &Increment) {
        increment.prepare(&mut self.native);
        self.label_file = label_content(&mut self.native);
    }

    #[cfg(any(feature = "pg15", feature = "pg16"))]
    fn prepare(&mut self, increment: &Increment) {
        increment.never()
    }

    /// Leaves backup mode and fills in where the backup ended. Does not wait for the archive:
    /// do_pg_backup_stop forgets the session's state before it waits, and a cancelled wait would
    /// lose the backup.
    pub fn stop(&mut self) {
        self.stop = self.leave();
    }

    #[cfg(not(feature = "pg15"))]
    #[allow(unsafe_code)]
    fn leave(&mut self) -> (Lsn, u32) {
        // SAFETY: the session is in backup mode with this state.
        unsafe { pg_sys::do_pg_backup_stop(&mut *self.native, false) }
        (Lsn(self.native.stoppoint), self.native.stoptli)
    }

    #[cfg(feature = "pg15")]
    #[allow(unsafe_code)]
    fn leave(&mut self) -> (Lsn, u32) {
        let mut timeline = 0;
        let mut content = self.label_file.clone();
        content.push(0);
        // SAFETY: the session is in backup mode, and this is the C string that it began with; it is
        // only read.
        let stop = unsafe { pg_sys::do_pg_backup_stop(content.as_mut_ptr().cast(), false, &mut timeline) };
        (Lsn(stop), timeline)
    }
}

/// A label as do_pg_backup_start takes it. The grammar cannot yield a NUL.
pub fn label(bytes: &[u8]) -> CString {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The tablespaces of the cluster, for an estimate without a backup: the entries of pg_tblspc
/// that do_pg_backup_start would take.
pub fn current_tablespaces() -> Result<Vec<Tablespace>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let data_directory = server::data_directory();
    let mut tablespaces = Vec::new();
    let failed = |error| Error::io("read directory", b"pg_tblspc", error);
    for entry in std::fs::read_dir("pg_tblspc").map_err(failed)? {
        interrupt::check();
        let entry = entry.map_err(failed)?;
        let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let in_place = format!("pg_tblspc/{oid}").into_bytes();
        // What is dropped meanwhile is no tablespace any more.
        let kind = entry.file_type();
        if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
            tablespaces.push(Tablespace { oid, location: in_place.clone(), relative: Some(in_place) });
        } else if let Ok(target) = std::fs::read_link(entry.path()) {
            let relative =
                target.strip_prefix(&data_directory).ok().map(|path| path.as_os_str().as_bytes().to_vec());
            tablespaces.push(Tablespace { oid, location: target.into_os_string().into_vec(), relative });
        }
    }
    Ok(tablespaces)
}
