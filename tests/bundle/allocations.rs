//! The largest allocation that a thread asked for, so that a test can say that damaged lengths are never believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // A thread that is ending has no cell any more, and nothing to measure.
    let _ = LARGEST.try_with(|l| l.set(l.get().max(size)));
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The largest single allocation of this thread while `work` runs.
pub fn largest<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = LARGEST.replace(0);
    let out = work();
    (LARGEST.replace(before), out)
}
