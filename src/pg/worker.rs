//! A background process of the library's own: how a session starts it, and where it begins.

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use pgrx::pg_sys;

use crate::pg::shim;

/// What the process is called in pg_stat_activity (`backend_type`) and in the log.
const KIND: &CStr = c"parallel backup keeper";

/// Where it begins: the name of the function below.
const ENTRY: &CStr = c"parallel_backup_keeper_main";

/// The library that has it.
const LIBRARY: &CStr = c"pg_parallel_backup";

/// Bytes of an order at most.
pub const MAX_ORDER: usize = pg_sys::BGW_EXTRALEN as usize - 1;

static MAIN: OnceLock<fn(&[u8])> = OnceLock::new();

/// A process that this session has started.
#[derive(Debug)]
pub struct Worker(*mut pg_sys::BackgroundWorkerHandle);

/// What it is doing at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Working.
    Active,
    /// Waiting for somebody.
    Idle,
}

/// Says what such a process does with its order. Once, while the postmaster loads libraries.
pub fn install(main: fn(&[u8])) {
    let _ = MAIN.set(main);
}

/// Asks for a process that carries out an order, and is not started again after it has ended in whatever
/// way. `None` where `max_worker_processes` are taken. It begins as soon as the server has a consistent state, on a
/// standby too.
#[allow(unsafe_code)]
pub fn start(name: &CStr, order: &[u8]) -> Option<Worker> {
    debug_assert!(order.len() <= MAX_ORDER);
    // SAFETY: all zeroes is a value of it.
    let mut worker: pg_sys::BackgroundWorker = unsafe { std::mem::zeroed() };
    copy(name.to_bytes(), &mut worker.bgw_name);
    copy(KIND.to_bytes(), &mut worker.bgw_type);
    copy(LIBRARY.to_bytes(), &mut worker.bgw_library_name);
    copy(ENTRY.to_bytes(), &mut worker.bgw_function_name);
    // Its length first: an order has zeroes in it.
    let length = u8::try_from(order.len()).unwrap_or(0);
    copy(&[&[length], order].concat(), &mut worker.bgw_extra);
    // A database connection, though to no database: without one there is no row in pg_stat_activity.
    worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    let mut handle = std::ptr::null_mut();
    // SAFETY: the worker is filled in, and copied; the handle is in the command's memory, as its user is.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle).then_some(Worker(handle))
    }
}

impl Worker {
    /// Whether it has ended, or will never begin.
    #[allow(unsafe_code)]
    pub fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is as RegisterDynamicBackgroundWorker made it.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

/// Shows in pg_stat_activity what this process does.
#[allow(unsafe_code)]
pub fn report(activity: Activity, text: &str) {
    let state = match activity {
        Activity::Active => pg_sys::BackendState::STATE_RUNNING,
        Activity::Idle => pg_sys::BackendState::STATE_IDLE,
    };
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: a C string, copied; writes this process's entry only.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) }
}

/// Reads the configuration again, if it was asked to.
#[allow(unsafe_code)]
pub fn reload_settings() {
    // SAFETY: a flag of this process's signal handler; the files are read as every process of the server does
    // between two pieces of work.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ConfigReloadPending) != 0 {
            std::ptr::write_volatile(&raw mut pg_sys::ConfigReloadPending, 0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

fn copy<const N: usize>(bytes: &[u8], field: &mut [c_char; N]) {
    // The last one stays zero.
    for (to, from) in field[..N - 1].iter_mut().zip(bytes) {
        *to = *from as c_char;
    }
}

/// Where PostgreSQL calls in, by this name.
// SAFETY: no other function of the server's has it.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn parallel_backup_keeper_main(_argument: pg_sys::Datum) {
    // SAFETY: sets signal handlers of PostgreSQL's.
    unsafe { shim::ppb_take_signals() };
    // SAFETY: this process's own entry, which the registration above has filled in. No database, and the
    // role that the server was initialized by, as the server's own processes have it: nothing here acts on
    // somebody's behalf. It ends the transaction that it begins, and leaves no snapshot behind.
    let order = unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        let extra = &(*pg_sys::MyBgworkerEntry).bgw_extra;
        let length = usize::from(extra[0] as u8).min(MAX_ORDER);
        extra[1..=length].iter().map(|byte| *byte as u8).collect::<Vec<u8>>()
    };
    if let Some(main) = MAIN.get() {
        main(&order);
    }
}
