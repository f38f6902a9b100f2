//! Where PostgreSQL calls in: the hooks, and how they are set when the library is loaded.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use pgrx::pg_sys;
use protocol::CommandKind;
use protocol::command::{RawFile, RawOption};

use crate::pg::{node, shim};

/// The contract of the server's patch that this library fits: PARALLEL_BACKUP_HOOK_VERSION of
/// replication/parallel_backup.h.
pub const HOOK_VERSION: i32 = 1;

/// What the hooks call.
#[derive(Debug, Clone, Copy)]
pub struct Handlers {
    /// Asks for shared memory.
    pub shmem_request: fn(),
    /// Lays out shared memory.
    pub shmem_startup: fn(),
    /// A command of the replication grammar.
    pub replication_command: fn(CommandKind, Vec<RawFile>, Vec<RawOption>),
    /// A function is about to be executed that starts or stops a backup by PostgreSQL's own SQL
    /// functions.
    pub backup_function: fn(),
}

/// What the patch of the server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// A stock server.
    Missing,
    /// A patch that this library fits; the hook is set.
    Fits,
    /// A patch of another version; nothing was touched.
    Other(i32),
}

/// PARALLEL_BACKUP_NODE_NAME of replication/parallel_backup.h.
const NODE_NAME: &CStr = c"ParallelBackupCmd";

/// ParallelBackupCmd of replication/parallel_backup.h, version 1.
#[repr(C)]
struct ParallelBackupCmd {
    node: pg_sys::ExtensibleNode,
    name: *const c_char,
    kind: c_int,
    files: *mut pg_sys::List,
    options: *mut pg_sys::List,
}

type ReplicationHook = Option<unsafe extern "C-unwind" fn(*mut ParallelBackupCmd)>;

/// The functions that a coordinator must not call: they would change the state that START_BACKUP has
/// set, and pg_backup_stop relies on a static that only pg_backup_start sets.
const BACKUP_FUNCTIONS: [u32; 2] = [pg_sys::F_PG_BACKUP_START, pg_sys::F_PG_BACKUP_STOP];

/// The C functions that they are.
const BACKUP_SYMBOLS: [&CStr; 2] = [c"pg_backup_start", c"pg_backup_stop"];

static HANDLERS: OnceLock<Handlers> = OnceLock::new();
static PREVIOUS: OnceLock<Previous> = OnceLock::new();
static PREVIOUS_REPLICATION: OnceLock<ReplicationHook> = OnceLock::new();

/// Hooks of other libraries, called before ours; likewise the replication hook, where there is one.
struct Previous {
    shmem_request: pg_sys::shmem_request_hook_type,
    shmem_startup: pg_sys::shmem_startup_hook_type,
    object_access: pg_sys::object_access_hook_type,
}

/// Whether the postmaster is loading shared_preload_libraries.
#[allow(unsafe_code)]
pub fn preloading() -> bool {
    // SAFETY: reads a static.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Sets the hooks. Once, while the postmaster loads libraries.
#[allow(unsafe_code)]
pub fn install(handlers: Handlers) -> Patch {
    // SAFETY: the postmaster is single-threaded, and nothing else runs while it loads libraries.
    unsafe {
        let previous = Previous {
            shmem_request: pg_sys::shmem_request_hook,
            shmem_startup: pg_sys::shmem_startup_hook,
            object_access: pg_sys::object_access_hook,
        };
        if HANDLERS.set(handlers).is_err() || PREVIOUS.set(previous).is_err() {
            return Patch::Fits;
        }
        pg_sys::shmem_request_hook = Some(shmem_request);
        pg_sys::shmem_startup_hook = Some(shmem_startup);
        pg_sys::object_access_hook = Some(object_access);
    }
    set_replication_hook()
}

/// Keeps backtraces of Rust out of errors, which would otherwise carry them to clients in DETAIL
/// where the server was started with RUST_BACKTRACE. While the postmaster loads libraries only.
#[allow(unsafe_code)]
pub fn without_backtraces() {
    const NAME: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(NAME);
    // SAFETY: the postmaster is single-threaded. The first capture settles it for this library and
    // all backends; then the environment is as it was, for what the server starts.
    unsafe {
        std::env::set_var(NAME, "0");
        let _ = std::backtrace::Backtrace::capture();
        match before {
            Some(value) => std::env::set_var(NAME, value),
            None => std::env::remove_var(NAME),
        }
    }
}

/// Finds the hook of a patched server by name, since the library is built against stock headers
/// and serves both.
#[allow(unsafe_code)]
fn set_replication_hook() -> Patch {
    // SAFETY: the version is a const int and the hook a function pointer of this type, as version
    // 1 of the contract says; the hook is touched only after the version was read.
    unsafe {
        let version = symbol(c"parallel_backup_hook_version").cast::<c_int>();
        let hook = symbol(c"parallel_backup_hook").cast::<ReplicationHook>();
        if version.is_null() || hook.is_null() {
            return Patch::Missing;
        }
        if *version != HOOK_VERSION {
            return Patch::Other(*version);
        }
        if PREVIOUS_REPLICATION.set(*hook).is_ok() {
            *hook = Some(replication_command);
        }
        Patch::Fits
    }
}

/// What the server, or a library that it has loaded, calls so; null where nothing is.
#[allow(unsafe_code)]
pub(super) fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: looks a name up in what is loaded.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

#[pgrx::pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn shmem_request() {
    if let Some(previous) = PREVIOUS.get().and_then(|previous| previous.shmem_request) {
        // SAFETY: another library's hook, called as PostgreSQL would.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous()) }
    }
    if let Some(handlers) = HANDLERS.get() {
        (handlers.shmem_request)();
    }
}

#[pgrx::pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn shmem_startup() {
    if let Some(previous) = PREVIOUS.get().and_then(|previous| previous.shmem_startup) {
        // SAFETY: another library's hook, called as PostgreSQL would.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous()) }
    }
    if let Some(handlers) = HANDLERS.get() {
        (handlers.shmem_startup)();
    }
}

// No guard, as errors of other libraries' hooks must come out as they went in; nothing in this
// frame has a destructor.
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub_id: c_int,
    argument: *mut c_void,
) {
    // SAFETY: another library's hook, called as PostgreSQL would; and a guarded function.
    unsafe {
        if let Some(previous) = PREVIOUS.get().and_then(|previous| previous.object_access) {
            previous(access, class, object, sub_id, argument);
        }
        // Every call of a function passes here: whose it is, is looked up in backup mode only.
        if access == pg_sys::ObjectAccessType::OAT_FUNCTION_EXECUTE
            && (BACKUP_FUNCTIONS.contains(&object.to_u32())
                || shim::ppb_backup_status() == pg_sys::SessionBackupState::SESSION_BACKUP_RUNNING)
        {
            function_called(object);
        }
    }
}

#[pgrx::pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn function_called(function: pg_sys::Oid) {
    if let Some(handlers) = HANDLERS.get()
        && (BACKUP_FUNCTIONS.contains(&function.to_u32()) || is_alias(function))
    {
        (handlers.backup_function)();
    }
}

/// Whether this is a backup function by another name: one of language internal that a superuser has
/// made of the same C function.
#[allow(unsafe_code)]
fn is_alias(function: pg_sys::Oid) -> bool {
    const PROCOID: i32 = pg_sys::SysCacheIdentifier::PROCOID as i32;
    // SAFETY: functions are executed in transactions, where the catalog can be read. The tuple is
    // pg_proc's and pinned until it is released, and prosrc is a text; an error in between leaves the
    // pin to the transaction's end.
    unsafe {
        if !pg_sys::IsTransactionState() {
            return false;
        }
        let tuple = pg_sys::SearchSysCache1(PROCOID, function.into());
        if tuple.is_null() {
            return false;
        }
        let mut found = false;
        if (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>()).prolang
            == shim::ppb_internal_language
        {
            let mut null = false;
            let attribute = pg_sys::Anum_pg_proc_prosrc as pg_sys::AttrNumber;
            let source = pg_sys::SysCacheGetAttr(PROCOID, tuple, attribute, &mut null);
            if !null {
                let name = pg_sys::text_to_cstring(source.cast_mut_ptr());
                found = BACKUP_SYMBOLS.contains(&CStr::from_ptr(name));
                pg_sys::pfree(name.cast());
            }
        }
        pg_sys::ReleaseSysCache(tuple);
        found
    }
}

#[pgrx::pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn replication_command(command: *mut ParallelBackupCmd) {
    if let Some(previous) = PREVIOUS_REPLICATION.get().copied().flatten() {
        // SAFETY: another library's hook, called as PostgreSQL would.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous(command)) }
    }
    // SAFETY: the node and its lists are as version 1 of the contract says, made by the grammar; the
    // name says that it is this node.
    let (kind, files, options) = unsafe {
        let command = &*command;
        assert_eq!(CStr::from_ptr(command.node.extnodename), NODE_NAME, "not a node of the hook");
        (command.kind, node::files(command.files), node::options(command.options))
    };
    let kind = match kind {
        0 => CommandKind::StartBackup,
        1 => CommandKind::SendFileList,
        2 => CommandKind::SendFilesContent,
        3 => CommandKind::StopBackup,
        other => unreachable!("version 1 of the hook has no command {other}"),
    };
    if let Some(handlers) = HANDLERS.get() {
        (handlers.replication_command)(kind, files, options);
    }
}
