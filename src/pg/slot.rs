//! A replication slot that keeps WAL for as long as this process lives.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use protocol::Lsn;

use crate::pg::shim;

/// Makes a physical slot that is this process's alone, and that goes with it, by an exit callback of PostgreSQL's
/// own, or when the server starts again after a crash: RS_TEMPORARY. It keeps WAL from the redo point of the
/// last checkpoint on, which no backup that is started later reaches behind.
///
/// It stays acquired: one that was let go counts as idle, and `idle_replication_slot_timeout` ends such. An error is
/// PostgreSQL's: no slot is free (53400), slots are impossible (55000).
#[allow(unsafe_code)]
pub fn create(name: &CStr) {
    // SAFETY: a C string, copied; this process has no slot yet. What an error leaves behind is cleaned up
    // when the process ends.
    unsafe {
        pg_sys::CheckSlotRequirements();
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCreate(
            name.as_ptr(),
            false,
            pg_sys::ReplicationSlotPersistency::RS_TEMPORARY,
            false,
        );
        // Neither for failover nor copied from another server.
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_sys::ReplicationSlotCreate(
            name.as_ptr(),
            false,
            pg_sys::ReplicationSlotPersistency::RS_TEMPORARY,
            false,
            false,
            false,
        );
        pg_sys::ReplicationSlotReserveWal();
        pg_sys::ReplicationSlotMarkDirty();
        pg_sys::ReplicationSlotSave();
    }
}

/// Lets go of the WAL before this position.
#[allow(unsafe_code)]
pub fn advance(position: Lsn) {
    // SAFETY: this process has the slot.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_guard_ffi_boundary(|| shim::ppb_advance_slot(position.0));
        }
    }
}

/// Whether the checkpointer wants the slot to go, since it keeps more than `max_slot_wal_keep_size`: it terminates the
/// process that has the slot, and says no more than that. Takes spinlocks only.
#[allow(unsafe_code)]
pub fn is_lost() -> bool {
    // SAFETY: only this process changes its slot's restart_lsn while it has the slot.
    unsafe {
        let slot = pg_sys::MyReplicationSlot;
        if slot.is_null() {
            return false;
        }
        matches!(
            pg_sys::GetWALAvailability((*slot).data.restart_lsn),
            pg_sys::WALAvailability::WALAVAIL_UNRESERVED | pg_sys::WALAvailability::WALAVAIL_REMOVED
        )
    }
}

/// Drops the slot.
#[allow(unsafe_code)]
pub fn drop_own() {
    // SAFETY: this process's own slots: letting go of a temporary one leaves it to the clean-up, which
    // drops all that the process has.
    unsafe {
        if pg_sys::MyReplicationSlot.is_null() {
            return;
        }
        pg_sys::ReplicationSlotRelease();
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCleanup();
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_sys::ReplicationSlotCleanup(false);
    }
}
