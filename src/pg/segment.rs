//! A dynamic shared memory segment that one session publishes and others read.

use pgrx::pg_sys;

/// A published segment. It stays until [`Segment::release`] or the end of the session: releasing
/// is a call into PostgreSQL and has no place in a `Drop`.
#[derive(Debug)]
pub struct Segment {
    raw: *mut pg_sys::dsm_segment,
    handle: u32,
}

/// The length of what is published, in front of it.
const HEADER: usize = size_of::<u64>();

impl Segment {
    /// Publishes bytes for as long as the session lives.
    #[allow(unsafe_code)]
    pub fn publish(bytes: &[u8]) -> Self {
        // SAFETY: the segment is as large as what is written to it, and mapped until released.
        unsafe {
            let raw = pg_sys::dsm_create(HEADER + bytes.len(), 0);
            pg_sys::dsm_pin_mapping(raw);
            let address = pg_sys::dsm_segment_address(raw).cast::<u8>();
            address.cast::<u64>().write(bytes.len() as u64);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address.add(HEADER), bytes.len());
            Self { raw, handle: pg_sys::dsm_segment_handle(raw) }
        }
    }

    /// What other sessions read it by.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Gives it back.
    #[allow(unsafe_code)]
    pub fn release(self) {
        // SAFETY: it was made by dsm_create in this session and is released once.
        unsafe { pg_sys::dsm_detach(self.raw) }
    }
}

/// Reads what another session has published; `None` if that session is gone.
#[allow(unsafe_code)]
pub fn read(handle: u32) -> Option<Vec<u8>> {
    // SAFETY: the segment holds its length and then as many bytes, written before its handle was
    // given out; the length is checked against what is mapped.
    unsafe {
        let raw = pg_sys::dsm_attach(handle);
        if raw.is_null() {
            return None;
        }
        let address = pg_sys::dsm_segment_address(raw).cast::<u8>();
        let mapped = pg_sys::dsm_segment_map_length(raw);
        let length = usize::try_from(address.cast::<u64>().read()).unwrap_or(usize::MAX);
        let bytes = (length <= mapped - HEADER)
            .then(|| std::slice::from_raw_parts(address.add(HEADER), length).to_vec());
        pg_sys::dsm_detach(raw);
        bytes
    }
}
