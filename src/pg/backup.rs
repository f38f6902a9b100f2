//! PostgreSQL's non-exclusive backup state: `do_pg_backup_start` and what goes with it.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use protocol::Lsn;

use crate::cluster::Tablespace;
use crate::pg::{node, server};

/// `tablespaceinfo` of backup/basebackup.h, which the bindings lack. The same since version 9.
#[repr(C)]
struct TablespaceInfo {
    oid: pg_sys::Oid,
    path: *mut std::ffi::c_char,
    rpath: *mut std::ffi::c_char,
    size: i64,
}

/// The state of a backup that this session has started. It outlives the command that made it, so
/// it lives in Rust's memory and not in the command's context.
#[derive(Debug)]
pub struct BackupState(Box<pg_sys::BackupState>);

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

/// Enters backup mode as pg_backup_start does. A failure, or the end of the session, leaves it
/// again.
#[allow(unsafe_code)]
pub fn start(label: &CStr, fast: bool) -> Started {
    let mut state = Box::<pg_sys::BackupState>::default();
    let mut list = std::ptr::null_mut();
    // SAFETY: the handler is a static function; the label is a C string; the state is zeroed and
    // stays where it is; the list and the map are made in the current memory context.
    let map = unsafe {
        pg_sys::register_persistent_abort_backup_handler();
        let map = pg_sys::makeStringInfo();
        pg_sys::do_pg_backup_start(label.as_ptr(), fast, &mut list, &mut *state, map);
        map
    };
    // SAFETY: do_pg_backup_start filled the list with tablespaceinfo, and the StringInfo.
    let (tablespaces, tablespace_map) = unsafe {
        let tablespaces = node::pointers(list)
            .map(|pointer| {
                let info = &*pointer.cast::<TablespaceInfo>();
                Tablespace {
                    oid: info.oid.to_u32(),
                    location: CStr::from_ptr(info.path).to_bytes().to_vec(),
                    relative: (!info.rpath.is_null()).then(|| CStr::from_ptr(info.rpath).to_bytes().to_vec()),
                }
            })
            .collect();
        let length = usize::try_from((*map).len).unwrap_or(0);
        (tablespaces, std::slice::from_raw_parts((*map).data.cast::<u8>(), length).to_vec())
    };
    Started { state: BackupState(state), tablespaces, tablespace_map }
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
        Lsn(self.0.startpoint)
    }

    /// Its timeline.
    pub fn start_timeline(&self) -> u32 {
        self.0.starttli
    }

    /// Whether the server was a standby when the backup started.
    pub fn started_in_recovery(&self) -> bool {
        self.0.started_in_recovery
    }

    /// Where the backup ended, once it has.
    pub fn stop_lsn(&self) -> Lsn {
        Lsn(self.0.stoppoint)
    }

    /// The timeline of that.
    pub fn stop_timeline(&self) -> u32 {
        self.0.stoptli
    }

    /// The content of backup_label.
    #[allow(unsafe_code)]
    pub fn label_file(&mut self) -> Vec<u8> {
        // SAFETY: the state is a started backup's; the answer is a palloc'd C string.
        unsafe {
            let content = pg_sys::build_backup_content(&mut *self.0, false);
            let bytes = CStr::from_ptr(content).to_bytes().to_vec();
            pg_sys::pfree(content.cast());
            bytes
        }
    }

    /// Leaves backup mode and fills in where the backup ended. Does not wait for the archive:
    /// do_pg_backup_stop forgets the session's state before it waits, and a cancelled wait would
    /// lose the backup.
    #[allow(unsafe_code)]
    pub fn stop(&mut self) {
        // SAFETY: the session is in backup mode with this state.
        unsafe { pg_sys::do_pg_backup_stop(&mut *self.0, false) }
    }
}

/// A label as do_pg_backup_start takes it. The grammar cannot yield a NUL.
pub fn label(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The tablespaces of the cluster, for an estimate without a backup: the entries of pg_tblspc
/// that do_pg_backup_start would take.
pub fn current_tablespaces() -> Vec<Tablespace> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let data_directory = server::data_directory();
    let mut tablespaces = Vec::new();
    for entry in std::fs::read_dir("pg_tblspc").into_iter().flatten().flatten() {
        let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let in_place = format!("pg_tblspc/{oid}").into_bytes();
        let kind = entry.file_type();
        if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
            tablespaces.push(Tablespace { oid, location: in_place.clone(), relative: Some(in_place) });
        } else if let Ok(target) = std::fs::read_link(entry.path()) {
            let relative =
                target.strip_prefix(&data_directory).ok().map(|path| path.as_os_str().as_bytes().to_vec());
            tablespaces.push(Tablespace { oid, location: target.into_os_string().into_vec(), relative });
        }
    }
    tablespaces
}
