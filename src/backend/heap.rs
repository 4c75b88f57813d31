//! What the allocator keeps of memory that nobody uses any more.

/// Gives it back to the system. Whoever loads a model has needed much for a moment, and keeps its memory for long.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(kept: usize) -> std::ffi::c_int;
        }
        // SAFETY: a function of the C library that this links, which any thread may call at any time; what is in use stays.
        unsafe { malloc_trim(0) };
    }
}
