//! What the operating system offers and no safe crate has.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Has a part of a file written to disk soon, without waiting for it: the fsync at the end then has
/// little left to do. No promise, so that failure does not matter.
pub fn start_writeback(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (libc::off64_t::try_from(offset), libc::off64_t::try_from(length)) else {
        return;
    };
    // SAFETY: the descriptor is open, and the call reads and writes no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Whether a signal is ignored, as it may be from the beginning.
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes are a valid sigaction, and with no new one the call only writes the old.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Ignores a signal.
pub fn ignore(signal: c_int) {
    // SAFETY: no code of ours runs when the signal comes.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Has libpq and the C library speak the user's language. Nothing here depends on what else a locale says,
/// so that numbers stay as they are.
pub fn use_language() {
    // SAFETY: the strings are C strings; only one thread is there so early.
    unsafe {
        // The one says in which characters, the other in which language.
        libc::setlocale(libc::LC_CTYPE, c"".as_ptr());
        libc::setlocale(libc::LC_MESSAGES, c"".as_ptr());
    }
}

/// A function of the libraries that the program was started with, libpq's own included.
pub fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the name is a C string; nothing is called.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Ends the process without running what libraries want to have run at its end: other threads may still be
/// in their midst.
pub fn exit(code: c_int) -> ! {
    // SAFETY: nothing comes after it.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set for the process that the test starts: which language it is does not change any more once a program
    /// runs.
    const STARTED: &str = "PPB_TEST_OF_LANGUAGE";

    #[test]
    fn the_users_language() {
        if std::env::var_os(STARTED).is_some() {
            use_language();
            for category in [libc::LC_CTYPE, libc::LC_MESSAGES, libc::LC_NUMERIC] {
                // SAFETY: nothing is set; the string is static until the next call.
                let name = unsafe { CStr::from_ptr(libc::setlocale(category, std::ptr::null())) };
                println!("LOCALE {}", name.to_string_lossy());
            }
            return;
        }
        let test = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "os::tests::the_users_language", "--nocapture"])
            .env(STARTED, "1")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let said = String::from_utf8(test.stdout).unwrap();
        let locales: Vec<&str> =
            said.lines().filter_map(|line| line.split_once("LOCALE ")).map(|at| at.1).collect();
        // The locale of numbers stays that of every program's beginning.
        assert_eq!(locales, ["C.UTF-8", "C.UTF-8", "C"], "{said}");
    }
}
