//! Compression at this end.

mod inflate;

pub use inflate::{Failure, Inflater};
