//! Host memory between guard zones.

use rayon::prelude::*;
use std::alloc::{Layout, handle_alloc_error};
use std::ffi::{c_int, c_long, c_void};

/// Poisoned bytes before and after.
pub(super) const GUARD: usize = 4096;
/// Page alignment, so that no two buffers share a cache line or page.
const PAGE: usize = 4096;
/// Buffers of at least this size start on a multiple of it and ask for pages of this size: a stream that needs a new
/// translation every 4 KB falls behind the memory, the more so in a virtual machine.
const HUGE: usize = 2 << 20;
/// What one thread fills at a time.
const CHUNK: usize = 1 << 20;

/// Memory that kernels read and write through raw addresses.
pub struct Buffer {
    /// What was mapped; the guards and the contents lie inside.
    mapping: *mut c_void,
    mapped: usize,
    /// Start of the first guard.
    base: *mut u8,
    len: usize,
}

unsafe extern "C" {
    fn mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, file: c_int, offset: c_long) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, prot: c_int) -> c_int;
}
// Linux on x86-64 and AArch64.
const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const MAP_PRIVATE: c_int = 2;
const MAP_ANONYMOUS: c_int = 0x20;
const MADV_HUGEPAGE: c_int = 14;

// SAFETY: plain memory, with no thread affinity.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory of `len` bytes that holds poison (all ones), with its guards.
    ///
    /// # Panics
    /// When `len` is within a few pages of the address space.
    pub fn new(len: usize) -> Buffer {
        let mut buffer = Buffer::zeroed(len);
        buffer.poison();
        buffer
    }

    /// Memory of `len` zeros between poisoned guards; pages are taken when they are first written.
    ///
    /// # Panics
    /// When `len` is within a few pages of the address space.
    pub fn zeroed(len: usize) -> Buffer {
        let align = if len < HUGE { PAGE } else { HUGE };
        let size = len.checked_add(2 * GUARD).and_then(|s| s.checked_next_multiple_of(align));
        let mapped = size.and_then(|s| s.checked_add(align - PAGE)).unwrap_or_else(|| unreachable!("{len} bytes"));
        // SAFETY: a new private mapping wherever the system likes.
        let mapping =
            unsafe { mmap(std::ptr::null_mut(), mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) };
        if mapping.addr() == usize::MAX {
            let layout = Layout::from_size_align(mapped, PAGE).unwrap_or(Layout::new::<u8>());
            handle_alloc_error(layout);
        }
        // SAFETY: the first multiple of `align` in the mapping, which is `align` less a page longer than what is needed.
        let base = unsafe { mapping.cast::<u8>().add(mapping.addr().next_multiple_of(align) - mapping.addr()) };
        if align == HUGE {
            // SAFETY: pages of this mapping alone. Where huge ones are not to be had, small ones do.
            unsafe { madvise(base.cast(), mapped - (base.addr() - mapping.addr()), MADV_HUGEPAGE) };
        }
        let mut buffer = Buffer { mapping, mapped, base, len };
        buffer.poison_guards();
        buffer
    }

    /// Fills it and its guards with poison again.
    pub fn poison(&mut self) {
        self.poison_guards();
        self.bytes_mut().par_chunks_mut(CHUNK).for_each(|c| c.fill(0xff));
    }

    fn poison_guards(&mut self) {
        // SAFETY: both zones lie inside the mapping.
        let zone = |at: usize| unsafe { self.base.add(at).write_bytes(0xff, GUARD) };
        zone(0);
        zone(GUARD + self.len);
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.base.addr() as u64 + GUARD as u64
    }

    /// Makes it and its guards read-only for good: a kernel that writes there ends its process, instead of giving those
    /// after it other inputs.
    pub fn seal(&mut self) {
        // SAFETY: whole pages that belong to this mapping alone. Without the protection it works as before.
        unsafe { mprotect(self.mapping, self.mapped, PROT_READ) };
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: inside the mapping and initialised; kernels that write it do not run while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.add(GUARD), self.len) }
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(GUARD), self.len) }
    }

    /// True while both guard zones hold poison.
    pub fn guards_hold(&self) -> bool {
        // SAFETY: both zones lie inside the mapping.
        let zone = |at: usize| unsafe { std::slice::from_raw_parts(self.base.add(at), GUARD) };
        zone(0).iter().chain(zone(GUARD + self.len)).all(|b| *b == 0xff)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: nothing borrows it any more, and a kernel's addresses are its caller's promise.
        unsafe { munmap(self.mapping, self.mapped) };
    }
}
