//! A fixed array in the main shared memory segment.

use std::ffi::CStr;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::pg_sys;

/// Types that all processes may share and that zeroed memory is a value of: atomics, and what
/// is made of them by [`shared_struct`](crate::shared_struct).
///
/// # Safety
/// All bits zero is a value, and every access through a shared reference is atomic.
#[allow(unsafe_code)]
pub unsafe trait Shared: Sync + 'static {}

// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicU8 {}
// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicU32 {}
// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicU64 {}
// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicI64 {}
// SAFETY: made of what is shared.
#[allow(unsafe_code)]
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Defines a struct of [`Shared`](crate::pg::shmem::Shared) fields, which is shared itself.
#[macro_export]
macro_rules! shared_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        // SAFETY: the bound says that each field is shared.
        #[allow(unsafe_code)]
        unsafe impl $crate::pg::shmem::Shared for $name where $($type: $crate::pg::shmem::Shared,)* {}
    };
}

/// An array that is laid out when the postmaster starts, and again after a crash.
#[derive(Debug)]
pub struct Array<T> {
    name: &'static CStr,
    address: AtomicPtr<T>,
    length: AtomicUsize,
}

impl<T: Shared> Array<T> {
    /// An array that is not there yet.
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(std::ptr::null_mut()), length: AtomicUsize::new(0) }
    }

    /// Reserves the memory: in the shmem_request hook.
    #[allow(unsafe_code)]
    pub fn request(&self, length: usize) {
        self.length.store(length, Ordering::Relaxed);
        // SAFETY: called while requests are taken.
        unsafe { pg_sys::RequestAddinShmemSpace(length * size_of::<T>()) }
    }

    /// Lays out the memory: in the shmem_startup hook, in the postmaster.
    #[allow(unsafe_code)]
    pub fn initialize(&self) {
        let bytes = self.length.load(Ordering::Relaxed) * size_of::<T>();
        let mut found = false;
        // SAFETY: the memory was requested; PostgreSQL aligns it to a cache line; zeroes are a
        // value of T. No other process is attached yet.
        unsafe {
            let address = pg_sys::ShmemInitStruct(self.name.as_ptr(), bytes, &mut found);
            if !found {
                std::ptr::write_bytes(address.cast::<u8>(), 0, bytes);
            }
            self.address.store(address.cast(), Ordering::Release);
        }
    }

    /// The array; empty where it was never laid out.
    #[allow(unsafe_code)]
    pub fn get(&self) -> &'static [T] {
        let address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            return &[];
        }
        // SAFETY: laid out with this length, and never unmapped while the process lives.
        unsafe { std::slice::from_raw_parts(address, self.length.load(Ordering::Relaxed)) }
    }
}
