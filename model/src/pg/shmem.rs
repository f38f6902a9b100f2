//! Shared memory that loom watches: new for each order that it tries.

use std::cell::Cell;
use std::ffi::CStr;
use std::marker::PhantomData;

use loom::sync::Mutex;

use crate::backup::registry::Counters;
use crate::backup::table::{Backup, Transfer};

/// Atomics that loom watches.
pub mod atomic {
    pub use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
}

// How many backups the server of this model may have; loom's threads take turns on one of the system's.
thread_local! {
    static PLACES: Cell<usize> = const { Cell::new(1) };
}

/// Sets how many backups there may be, for the models that follow.
pub fn set_places(places: usize) {
    PLACES.set(places);
}

loom::lazy_static! {
    static ref TABLE: Mutex<(Vec<Backup>, Vec<Option<Transfer>>)> = Mutex::new((
        vec![Backup::FREE; PLACES.get()],
        vec![None; super::server::max_backends()],
    ));
    static ref COUNTERS: Vec<Counters> = (0..PLACES.get()).map(|_| Zeroed::zeroed()).collect();
}

/// What zeroed memory is a value of.
pub trait Zeroed {
    /// That value.
    fn zeroed() -> Self;
}

impl Zeroed for atomic::AtomicU32 {
    fn zeroed() -> Self {
        Self::new(0)
    }
}
impl Zeroed for atomic::AtomicU64 {
    fn zeroed() -> Self {
        Self::new(0)
    }
}
impl Zeroed for atomic::AtomicI64 {
    fn zeroed() -> Self {
        Self::new(0)
    }
}

/// Defines a struct of fields that processes share.
#[macro_export]
macro_rules! shared_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        impl $crate::pg::shmem::Zeroed for $name {
            fn zeroed() -> Self {
                Self { $($field: $crate::pg::shmem::Zeroed::zeroed(),)* }
            }
        }
    };
}

/// An array of shared memory.
#[derive(Debug)]
pub struct Array<T>(PhantomData<fn() -> T>);

impl Array<Counters> {
    /// The array.
    pub const fn new(_name: &'static CStr) -> Self {
        Self(PhantomData)
    }

    /// It is as long as was set.
    pub fn request(&self, _length: usize) {}

    /// It is there at the first look.
    pub fn initialize(&self) {}

    /// The array.
    pub fn get(&self) -> &'static [Counters] {
        &COUNTERS
    }
}

/// Two arrays under a lock.
#[derive(Debug)]
pub struct Locked<A, B>(PhantomData<fn() -> (A, B)>);

impl Locked<Backup, Option<Transfer>> {
    /// The arrays.
    pub const fn new(_name: &'static CStr) -> Self {
        Self(PhantomData)
    }

    /// They are as long as was set.
    pub fn request(&self, _first: usize, _second: usize) {}

    /// They are there at the first look.
    pub fn initialize(&self, _first: Backup, _second: Option<Transfer>) {}

    /// Looks at the arrays, or changes them, as one step to all other processes.
    pub fn with<T>(&self, step: impl FnOnce(&mut [Backup], &mut [Option<Transfer>]) -> T) -> T {
        let mut held = TABLE.lock().expect("a step has panicked");
        let (backups, transfers) = &mut *held;
        step(backups, transfers)
    }
}
