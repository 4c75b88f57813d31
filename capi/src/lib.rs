//! The runtime of jitune for C. `include/jitune.h` says what each function does; this crate is how.
//!
//! [`handle`] is what the pointers point to; [`ffi`] is the boundary: pointers checked, errors and panics turned into
//! statuses and text.
#![deny(unsafe_code)]

mod handle;

#[allow(unsafe_code)]
pub mod ffi;
