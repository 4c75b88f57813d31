//! Aligned host memory between guard zones.

use rayon::prelude::*;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Poisoned bytes before and after.
pub(super) const GUARD: usize = 4096;
/// Page alignment, so that no two buffers share a cache line or page.
const ALIGN: usize = 4096;

/// Memory that kernels read and write through raw addresses.
pub struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
    len: usize,
    sealed: bool,
}

unsafe extern "C" {
    fn mprotect(address: *mut std::ffi::c_void, bytes: usize, protection: std::ffi::c_int) -> std::ffi::c_int;
}
const PROT_READ: std::ffi::c_int = 1;
const PROT_WRITE: std::ffi::c_int = 2;

// SAFETY: plain memory, with no thread affinity.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory of `len` bytes that holds poison (all ones), with its guards.
    ///
    /// # Panics
    /// When `len` is within a page of the address space.
    pub fn new(len: usize) -> Buffer {
        let size = len
            .checked_add(2 * GUARD)
            .and_then(|s| s.checked_next_multiple_of(ALIGN))
            .unwrap_or_else(|| unreachable!("{len} bytes"));
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else { unreachable!("{len} bytes") };
        // SAFETY: the layout is not empty.
        let Some(base) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: the whole allocation.
        unsafe { base.as_ptr().write_bytes(0xff, size) };
        Buffer { base, layout, len, sealed: false }
    }

    /// Fills it and its guards with poison again.
    pub fn poison(&mut self) {
        // SAFETY: both zones lie inside the allocation.
        let zone = |at: usize| unsafe { self.base.as_ptr().add(at).write_bytes(0xff, GUARD) };
        zone(0);
        zone(GUARD + self.len);
        self.bytes_mut().par_chunks_mut(1 << 20).for_each(|c| c.fill(0xff));
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64 + GUARD as u64
    }

    /// Makes it and its guards read-only for good: a kernel that writes there ends its process, instead of giving those
    /// after it other inputs.
    pub fn seal(&mut self) {
        // SAFETY: whole pages that belong to this allocation alone. Without the protection it works as before.
        self.sealed = unsafe { mprotect(self.base.as_ptr().cast(), self.layout.size(), PROT_READ) } == 0;
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: inside the allocation and initialised; kernels that write it do not run while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(GUARD), self.len) }
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(GUARD), self.len) }
    }

    /// True while both guard zones hold poison.
    pub fn guards_hold(&self) -> bool {
        // SAFETY: both zones lie inside the allocation.
        let zone = |at: usize| unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), GUARD) };
        zone(0).iter().chain(zone(GUARD + self.len)).all(|b| *b == 0xff)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: as in `seal`; where the pages cannot be made writable again the allocator must not get them back.
        if self.sealed
            && unsafe { mprotect(self.base.as_ptr().cast(), self.layout.size(), PROT_READ | PROT_WRITE) } != 0
        {
            return;
        }
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
