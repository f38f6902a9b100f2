//! The arguments of a procedure, by their places in its declaration (sql/pg_parallel_backup--*.sql).
//!
//! Text is taken as bytes: it is in the database's encoding, whatever that is, and pgrx's strings are
//! UTF-8 or an error.

// Reads what the function manager gives.
#![allow(unsafe_code)]

use pgrx::{Array, FromDatum, pg_getarg, pg_sys};

/// What a procedure was called with.
#[derive(Debug, Clone, Copy)]
pub struct Arguments(pg_sys::FunctionCallInfo);

impl Arguments {
    /// Those of a function of C language.
    pub fn of(info: pg_sys::FunctionCallInfo) -> Self {
        Self(info)
    }

    /// An argument that is declared as text; `None` is NULL, here and below.
    pub fn text(self, place: usize) -> Option<Vec<u8>> {
        self.get::<&[u8]>(place).map(<[u8]>::to_vec)
    }

    /// One that is declared as bytea.
    pub fn bytes(self, place: usize) -> Option<Vec<u8>> {
        self.text(place)
    }

    /// One that is declared as boolean.
    pub fn boolean(self, place: usize) -> Option<bool> {
        self.get(place)
    }

    /// One that is declared as int4.
    pub fn int4(self, place: usize) -> Option<i32> {
        self.get(place)
    }

    /// One that is declared as int8.
    pub fn int8(self, place: usize) -> Option<i64> {
        self.get(place)
    }

    /// One that is declared as text[], its dimensions left aside.
    pub fn texts(self, place: usize) -> Option<Vec<Option<Vec<u8>>>> {
        let array: Array<'_, &[u8]> = self.get(place)?;
        Some(array.iter().map(|element| element.map(<[u8]>::to_vec)).collect())
    }

    /// One that is declared as int8[], likewise.
    pub fn int8s(self, place: usize) -> Option<Vec<Option<i64>>> {
        let array: Array<'_, i64> = self.get(place)?;
        Some(array.iter().collect())
    }

    /// An argument that the declaration does not have, since the extension was not updated with the library,
    /// is one that was not given.
    fn get<T: FromDatum>(self, place: usize) -> Option<T> {
        // SAFETY: the call is under way, and its declaration has an argument of this type there if it has one
        // at all; the bytes of text are laid out as those of bytea.
        unsafe {
            let count = usize::try_from((*self.0).nargs).unwrap_or(0);
            if place < count { pg_getarg(self.0, place) } else { None }
        }
    }
}
