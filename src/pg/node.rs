//! PostgreSQL's lists and nodes, as the grammar yields them.

use std::ffi::{CStr, c_void};

use pgrx::pg_sys;
use protocol::command::{RawFile, RawOption, RawValue};

/// The pointers of a list; a null list is empty.
///
/// # Safety
/// `list` is null or a valid List of pointers that is not changed meanwhile.
#[allow(unsafe_code)]
pub unsafe fn pointers(list: *mut pg_sys::List) -> impl Iterator<Item = *mut c_void> {
    // SAFETY: as the caller promises.
    let cells = unsafe {
        match list.as_ref() {
            Some(list) => {
                std::slice::from_raw_parts(list.elements, usize::try_from(list.length).unwrap_or(0))
            }
            None => &[],
        }
    };
    // SAFETY: a List of pointers.
    cells.iter().map(|cell| unsafe { cell.ptr_value })
}

/// Options, from a list of DefElem.
///
/// # Safety
/// `list` is null or a valid List of DefElem whose arguments are null, String or Integer.
#[allow(unsafe_code)]
pub unsafe fn options(list: *mut pg_sys::List) -> Vec<RawOption> {
    // SAFETY: as the caller promises.
    unsafe {
        pointers(list)
            .map(|pointer| {
                let element = &*pointer.cast::<pg_sys::DefElem>();
                RawOption { name: bytes(element.defname), value: value(element.arg) }
            })
            .collect()
    }
}

/// Files, from a list of DefElem: the path is the name, the argument a list of options.
///
/// # Safety
/// `list` is null or such a List.
#[allow(unsafe_code)]
pub unsafe fn files(list: *mut pg_sys::List) -> Vec<RawFile> {
    // SAFETY: as the caller promises.
    unsafe {
        pointers(list)
            .map(|pointer| {
                let element = &*pointer.cast::<pg_sys::DefElem>();
                RawFile { path: bytes(element.defname), options: options(element.arg.cast()) }
            })
            .collect()
    }
}

/// # Safety
/// `node` is null, a String or an Integer.
#[allow(unsafe_code)]
unsafe fn value(node: *mut pg_sys::Node) -> Option<RawValue> {
    // SAFETY: the tag says what the node is.
    unsafe {
        match node.as_ref()?.type_ {
            pg_sys::NodeTag::T_Integer => {
                Some(RawValue::Integer(i64::from((*node.cast::<pg_sys::Integer>()).ival)))
            }
            pg_sys::NodeTag::T_String => Some(RawValue::Text(bytes((*node.cast::<pg_sys::String>()).sval))),
            _ => None,
        }
    }
}

/// # Safety
/// `text` is a C string.
#[allow(unsafe_code)]
unsafe fn bytes(text: *const std::ffi::c_char) -> Vec<u8> {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text).to_bytes().to_vec() }
}
