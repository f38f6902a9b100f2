//! Who fetches which file when: the queue, parts and batches, retries and connections that are made anew, and
//! what is done with the bytes that come, up to where they are known to be right.

pub mod batch;
pub mod increment;
pub mod ordered;
pub mod pipeline;
pub mod queue;
pub mod receive;
pub mod reconnect;
pub mod reverify;
pub mod split;
pub mod transfer;
pub mod writer;
