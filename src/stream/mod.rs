//! Bytes out: result sets, frames, checksums and the rate limit.

pub mod cache;
pub mod compress;
pub mod content;
mod kept;
pub mod outbox;
pub mod parts;
pub mod rows;
pub mod throttle;
