//! Roles: all processes have one.

/// The role that this process acts as.
pub fn current() -> u32 {
    10
}

/// The role that it logged in as.
pub fn login() -> u32 {
    10
}
