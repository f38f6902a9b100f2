//! PostgreSQL, as far as the registry asks for it.

pub mod backend;
pub mod exit;
pub mod interrupt;
pub mod latch;
pub mod process;
pub mod role;
pub mod server;
pub mod shmem;
