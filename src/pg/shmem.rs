//! What is in the main shared memory segment: arrays of atomics, and arrays under a lock.

use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicUsize};

use pgrx::pg_sys;

use self::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// What several processes may touch at once. `model/` compiles the users of it with others in their place, which try
/// every order.
pub mod atomic {
    pub use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
}

/// Types that all processes may share and that zeroed memory is a value of: atomics, and what
/// is made of them by [`shared_struct`](crate::shared_struct).
///
/// # Safety
/// All bits zero is a value, and every access through a shared reference is atomic.
#[allow(unsafe_code)]
pub unsafe trait Shared: Sync + 'static {}

// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicU32 {}
// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicU64 {}
// SAFETY: atomics.
#[allow(unsafe_code)]
unsafe impl Shared for AtomicI64 {}

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

/// Two arrays of plain values, under one LWLock.
#[derive(Debug)]
pub struct Locked<A, B> {
    name: &'static CStr,
    lock: AtomicPtr<pg_sys::LWLock>,
    first: AtomicPtr<A>,
    first_length: AtomicUsize,
    second: AtomicPtr<B>,
    second_length: AtomicUsize,
}

impl<A: Copy + Send, B: Copy + Send> Locked<A, B> {
    /// Arrays that are not there yet.
    pub const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            lock: AtomicPtr::new(std::ptr::null_mut()),
            first: AtomicPtr::new(std::ptr::null_mut()),
            first_length: AtomicUsize::new(0),
            second: AtomicPtr::new(std::ptr::null_mut()),
            second_length: AtomicUsize::new(0),
        }
    }

    /// Reserves the memory and the lock: in the shmem_request hook.
    #[allow(unsafe_code)]
    pub fn request(&self, first: usize, second: usize) {
        self.first_length.store(first, Ordering::Relaxed);
        self.second_length.store(second, Ordering::Relaxed);
        // SAFETY: called while requests are taken; the name is a C string, copied.
        unsafe {
            pg_sys::RequestAddinShmemSpace(self.offset() + second * size_of::<B>());
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
        }
    }

    /// Lays out the memory, each array with this value: in the shmem_startup hook, in the postmaster.
    #[allow(unsafe_code)]
    pub fn initialize(&self, first: A, second: B) {
        const { assert!(align_of::<A>() <= 64 && align_of::<B>() <= 64) }
        let (firsts, seconds) =
            (self.first_length.load(Ordering::Relaxed), self.second_length.load(Ordering::Relaxed));
        let mut found = false;
        // SAFETY: memory and lock were requested. PostgreSQL aligns the memory to a cache line, and the
        // second array's offset is aligned for it. No other process is attached yet; those to come are
        // forks with the same layout of both types.
        unsafe {
            let bytes = self.offset() + seconds * size_of::<B>();
            let address = pg_sys::ShmemInitStruct(self.name.as_ptr(), bytes, &mut found).cast::<u8>();
            let (array, other) = (address.cast::<A>(), address.add(self.offset()).cast::<B>());
            if !found {
                (0..firsts).for_each(|at| array.add(at).write(first));
                (0..seconds).for_each(|at| other.add(at).write(second));
            }
            self.first.store(array, Ordering::Relaxed);
            self.second.store(other, Ordering::Relaxed);
            let lock = &raw mut (*pg_sys::GetNamedLWLockTranche(self.name.as_ptr())).lock;
            self.lock.store(lock, Ordering::Release);
        }
    }

    /// Looks at the arrays, or changes them, as one step to all other processes.
    ///
    /// `step` must not call PostgreSQL, so that no ERROR can jump over it, and must not come back
    /// here. While the lock is held interrupts are held back, so that the process does not end in
    /// `step` but by a crash, after which the postmaster begins with new shared memory; a panic of
    /// Rust gives the lock back. So an exit callback (before_shmem_exit) can always take it: nobody who
    /// is on the way out holds it, whether or not the version's shmem_exit releases locks first, and
    /// the callback runs long before ProcKill takes the process its PGPROC, without which it could not
    /// wait.
    #[allow(unsafe_code)]
    pub fn with<T>(&self, step: impl FnOnce(&mut [A], &mut [B]) -> T) -> T {
        let lock = self.lock.load(Ordering::Acquire);
        if lock.is_null() {
            return step(&mut [], &mut []);
        }
        // SAFETY: laid out with these lengths, and never unmapped while the process lives; the lock
        // makes the references the only ones. Nothing between acquire and release can raise an ERROR,
        // and what unwinds is caught.
        unsafe {
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let (first, second) =
                    (self.first.load(Ordering::Relaxed), self.second.load(Ordering::Relaxed));
                #[cfg(feature = "valgrind")]
                crate::pg::shim::ppb_is_defined(
                    first.cast(),
                    self.offset() + self.second_length.load(Ordering::Relaxed) * size_of::<B>(),
                );
                step(
                    std::slice::from_raw_parts_mut(first, self.first_length.load(Ordering::Relaxed)),
                    std::slice::from_raw_parts_mut(second, self.second_length.load(Ordering::Relaxed)),
                )
            }));
            pg_sys::LWLockRelease(lock);
            outcome.unwrap_or_else(|panic| resume_unwind(panic))
        }
    }

    /// Where the second array begins.
    fn offset(&self) -> usize {
        (self.first_length.load(Ordering::Relaxed) * size_of::<A>()).next_multiple_of(align_of::<B>())
    }
}
