//! The SQL procedures' transactions: a transfer must hold back nothing, so it runs in none.
//!
//! The way of VACUUM: commit what CALL began, work, and begin a transaction again for CALL to end.
//! An error in between finds no transaction to abort, and nobody cleans up after it but Rust.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::pg_sys;

use crate::error::{Error, Result};
use crate::pg::shim;

/// How the CALL that is being executed came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// As a statement of its own, by the simple query protocol, of the procedure with this OID.
    Simple(pg_sys::Oid),
    /// As a statement of its own, by the extended query protocol.
    Extended,
    /// From a function, a procedure or a DO block.
    Nested,
}

thread_local! {
    static ORIGIN: Cell<Origin> = const { Cell::new(Origin::Nested) };
}

static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

/// Whether a command needs a transaction of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// It calls into PostgreSQL for what an aborted transaction cleans up; it has no snapshot.
    Own,
    /// It sends bytes, for as long as that takes.
    None,
}

/// What PostgreSQL's function manager says of a call.
#[derive(Debug, Clone, Copy)]
pub struct Invocation {
    function: pg_sys::Oid,
    /// By a CALL that lets transactions end: not if the procedure is SECURITY DEFINER or has
    /// settings of its own, which are undone in the transaction they were made in.
    by_call: bool,
}

impl Invocation {
    /// Reads it. `info` is what a function of C language gets.
    // Only what PostgreSQL calls has one to give.
    #[allow(unsafe_code, clippy::not_unsafe_ptr_arg_deref)]
    pub fn of(info: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the function manager's own structures; the context is a CallContext if its tag
        // says so.
        unsafe {
            let context = (*info).context;
            let by_call = !context.is_null()
                && (*context).type_ == pg_sys::NodeTag::T_CallContext
                && !(*context.cast::<pg_sys::CallContext>()).atomic;
            Self { function: (*(*info).flinfo).fn_oid, by_call }
        }
    }
}

/// Sets the hook that tells how a CALL came in. Once, while the postmaster loads libraries.
#[allow(unsafe_code)]
pub fn install() {
    // SAFETY: the postmaster is single-threaded, and nothing else runs while it loads libraries.
    unsafe {
        if PREVIOUS.set(pg_sys::ProcessUtility_hook).is_ok() {
            pg_sys::ProcessUtility_hook = Some(process_utility);
        }
    }
}

/// Runs a procedure's work outside of the transaction that CALL began. Refused unless the CALL is
/// a statement of its own: 25001 inside a transaction block or another procedure, 0A000 by the
/// extended protocol, which cannot describe several result sets.
#[allow(unsafe_code)]
pub fn run(
    name: &'static CStr,
    invocation: Invocation,
    transaction: Transaction,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let procedure = name.to_str().unwrap_or_default();
    match ORIGIN.replace(Origin::Nested) {
        // Another function that the CALL of some procedure came upon is nested too.
        Origin::Simple(function) if function == invocation.function => {}
        Origin::Extended => return Err(Error::ExtendedProtocol { procedure }),
        Origin::Simple(_) | Origin::Nested => return Err(Error::NestedCall { procedure }),
    }
    // SAFETY: looks at the state of transactions, and raises 25001 where a block is open.
    unsafe { pg_sys::PreventInTransactionBlock(true, name.as_ptr()) };
    if !invocation.by_call {
        return Err(Error::NestedCall { procedure });
    }
    // SAFETY: the CALL is at top level, so that the only snapshots are its portal's, and its
    // transaction may be ended and another begun (ExecuteCallStmt, non-atomic). The memory context
    // is the portal's, which outlives transactions; it is put back, since ending a transaction
    // leaves another behind.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::ForgetPortalSnapshots();
        pg_sys::CommitTransactionCommand();
        if transaction == Transaction::Own {
            pg_sys::StartTransactionCommand();
        }
        pg_sys::CurrentMemoryContext = context;
        work()?;
        if transaction == Transaction::None {
            pg_sys::StartTransactionCommand();
        }
        pg_sys::CurrentMemoryContext = context;
    }
    Ok(())
}

/// Whether commands are to be logged (log_replication_commands).
#[allow(unsafe_code)]
pub fn log_commands() -> bool {
    // SAFETY: reads a setting.
    unsafe { pg_sys::log_replication_commands }
}

// Every utility statement of the server passes through here, and its errors must come out as they
// went in: a guard would take position, constraint and context off them. So there is none, and
// nothing in this frame has a destructor that an error could jump over.
#[allow(unsafe_code, clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL's own arguments. The next in the chain is called as PostgreSQL would.
    unsafe {
        let node = (*statement).utilityStmt;
        if (*node).type_ == pg_sys::NodeTag::T_CallStmt {
            let call = (*node.cast::<pg_sys::CallStmt>()).funcexpr;
            let function = if call.is_null() { pg_sys::InvalidOid } else { (*call).funcid };
            let top_level = context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL;
            // By the extended protocol the destination of a CALL is none at all (PortalRunMulti).
            ORIGIN.set(match (*destination).mydest {
                pg_sys::CommandDest::DestRemote if top_level => Origin::Simple(function),
                _ if top_level => Origin::Extended,
                _ => Origin::Nested,
            });
        }
        let next = PREVIOUS.get().copied().flatten().or(shim::ppb_standard_process_utility);
        if let Some(next) = next {
            next(statement, query, read_only_tree, context, parameters, environment, destination, completion);
        }
    }
}
