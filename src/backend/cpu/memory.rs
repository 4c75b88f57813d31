//! Host memory between guard zones.

use crate::backend::BackendError;
use rayon::prelude::*;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;

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

// SAFETY: plain memory, with no thread affinity.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory of `len` bytes that holds poison (all ones), with its guards.
    pub fn new(len: usize) -> Result<Buffer, BackendError> {
        let mut buffer = Buffer::zeroed(len)?;
        buffer.poison();
        Ok(buffer)
    }

    /// Memory of `len` zeros between poisoned guards; pages are taken when they are first written.
    pub fn zeroed(len: usize) -> Result<Buffer, BackendError> {
        // The system promises pages that it does not have, and kills who writes to them: so it is asked before.
        let free = available();
        let full = || BackendError::OutOfMemory { needed: len as u64, free };
        if len as u64 > free {
            return Err(full());
        }
        let align = if len < HUGE { PAGE } else { HUGE };
        let size = len.checked_add(2 * GUARD).and_then(|s| s.checked_next_multiple_of(align));
        let mapped = size.and_then(|s| s.checked_add(align - PAGE)).ok_or_else(full)?;
        let (readable, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping wherever the system likes.
        let mapping = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, readable, private) }.map_err(|_| full())?;
        // SAFETY: the first multiple of `align` in the mapping, which is `align` less a page longer than what is needed.
        let base = unsafe { mapping.cast::<u8>().add(mapping.addr().next_multiple_of(align) - mapping.addr()) };
        if align == HUGE {
            let whole = mapped - (base.addr() - mapping.addr());
            // SAFETY: pages of this mapping alone. Where huge ones are not to be had, small ones do.
            let _ = unsafe { madvise(base.cast(), whole, Advice::LinuxHugepage) };
        }
        let mut buffer = Buffer { mapping, mapped, base, len };
        buffer.poison_guards();
        Ok(buffer)
    }

    /// The same, with all its pages taken: what the machine does not have is an error now, and not the end of the process later.
    pub fn committed(len: usize) -> Result<Buffer, BackendError> {
        let mut buffer = Buffer::zeroed(len)?;
        let whole = buffer.mapped - (buffer.base.addr() - buffer.mapping.addr());
        // SAFETY: pages of this mapping alone.
        match unsafe { madvise(buffer.base.cast(), whole, Advice::LinuxPopulateWrite) } {
            Ok(()) => {}
            Err(Errno::INVAL) => buffer.bytes_mut().iter_mut().step_by(PAGE).for_each(|byte| {
                // SAFETY: a byte of its own; the compiler must not leave out what it knows to be there.
                unsafe { std::ptr::from_mut(byte).write_volatile(0) }
            }),
            Err(_) => return Err(BackendError::OutOfMemory { needed: len as u64, free: available() }),
        }
        Ok(buffer)
    }

    /// Fills it and its guards with poison again.
    pub fn poison(&mut self) {
        self.poison_guards();
        self.bytes_mut().par_chunks_mut(CHUNK).for_each(|c| c.fill(0xff));
    }

    fn zones(&self) -> [*mut u8; 2] {
        // SAFETY: both zones lie inside the mapping.
        unsafe { [self.base, self.base.add(GUARD + self.len)] }
    }

    fn poison_guards(&mut self) {
        for zone in self.zones() {
            sanitizer::allow(zone, GUARD);
            // SAFETY: inside the mapping, and nobody's data.
            unsafe { zone.write_bytes(0xff, GUARD) };
            sanitizer::forbid(zone, GUARD);
        }
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.base.addr() as u64 + GUARD as u64
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an empty buffer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it and its guards read-only: a kernel that writes there ends its process, instead of giving those
    /// after it other inputs.
    pub fn seal(&mut self) {
        // SAFETY: whole pages that belong to this mapping alone. Without the protection it works as before.
        let _ = unsafe { mprotect(self.mapping, self.mapped, MprotectFlags::READ) };
    }

    /// Lets its owner write to it again.
    pub fn unseal(&mut self) {
        // SAFETY: as in `seal`.
        let _ = unsafe { mprotect(self.mapping, self.mapped, MprotectFlags::READ | MprotectFlags::WRITE) };
    }

    /// Its contents. Who launches a kernel that writes here promised that nobody borrows them meanwhile.
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
        self.zones().into_iter().all(|zone| {
            sanitizer::allow(zone, GUARD);
            // SAFETY: inside the mapping.
            let holds = unsafe { std::slice::from_raw_parts(zone, GUARD) }.iter().all(|b| *b == 0xff);
            sanitizer::forbid(zone, GUARD);
            holds
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.zones().into_iter().for_each(|zone| sanitizer::allow(zone, GUARD));
        // SAFETY: nothing borrows it any more, and a kernel's addresses are its caller's promise.
        let _ = unsafe { munmap(self.mapping, self.mapped) };
    }
}

/// Bytes that the system can still give.
pub(crate) fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |k| k << 10)
}

/// Tells AddressSanitizer, where the program was built with it, that nobody may touch a zone: kernels that were built with
/// it too then stop at the first byte outside.
mod sanitizer {
    #[cfg(jitune_asan)]
    unsafe extern "C" {
        fn __asan_poison_memory_region(at: *const u8, len: usize);
        fn __asan_unpoison_memory_region(at: *const u8, len: usize);
    }

    pub(super) fn forbid(at: *const u8, len: usize) {
        let _ = (at, len);
        #[cfg(jitune_asan)]
        // SAFETY: marks addresses; reads and writes nothing there.
        unsafe {
            __asan_poison_memory_region(at, len);
        }
    }

    pub(super) fn allow(at: *const u8, len: usize) {
        let _ = (at, len);
        #[cfg(jitune_asan)]
        // SAFETY: as above.
        unsafe {
            __asan_unpoison_memory_region(at, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_does_not_have_is_an_error() {
        for len in [usize::MAX, usize::MAX - PAGE, isize::MAX as usize, 1 << 46] {
            for made in [Buffer::new(len), Buffer::zeroed(len), Buffer::committed(len)] {
                assert!(matches!(made, Err(BackendError::OutOfMemory { needed, .. }) if needed == len as u64));
            }
        }
    }

    #[test]
    fn a_write_outside_is_seen() {
        for len in [0, 1, 4097, HUGE + 3] {
            let mut buffer = Buffer::new(len).unwrap();
            assert!(buffer.guards_hold() && buffer.bytes().iter().all(|b| *b == 0xff));
            sanitizer::allow(buffer.zones()[1], 1);
            // SAFETY: the first byte of the second guard.
            unsafe { buffer.zones()[1].write(0) };
            assert!(!buffer.guards_hold());
            buffer.poison();
            assert!(buffer.guards_hold());
        }
    }
}
