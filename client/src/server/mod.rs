//! How to talk to a server: connections by libpq, the two ways in, commands and their results, and the reading
//! of transfers past libpq. What is fetched, and where it goes, others say.

pub mod cancel;
pub mod connection;
#[cfg(test)]
pub mod fake_server;
pub mod farewell;
pub mod pq;
pub mod prompt;
pub mod reply;
pub mod result;
pub mod route;
pub mod tls;
pub mod wire;
