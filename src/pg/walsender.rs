//! This backend as a walsender.

use pgrx::pg_sys;

/// Shows state `backup` in pg_stat_replication, where this is a walsender.
#[allow(unsafe_code)]
pub fn set_state_backup() {
    // SAFETY: WalSndSetState writes through MyWalSnd, which only a walsender has.
    unsafe {
        if pg_sys::am_walsender && !pg_sys::MyWalSnd.is_null() {
            pg_sys::WalSndSetState(pg_sys::WalSndState::WALSNDSTATE_BACKUP);
        }
    }
}
