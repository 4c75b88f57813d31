//! jitune generates CUDA and CPU kernels per shape and per machine, compiles them just in time, tunes them, keeps the
//! winners, and ships them in a bundle that production loads with the driver alone.
//!
//! One sentence of data flow: **Model → Problem → Space → Config → Source → Artifact → Verdict → Winner → Bundle →
//! Launch.** Each arrow is one type and one function; everything up to `Source` is pure.
//!
//! Feature `runtime` is what production links: bundle, look-up, launch. `tuner` adds the making of kernels, `cli` the
//! program.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod backend;
pub mod bundle;
pub mod device;
pub mod problem;
pub mod recipe;
pub mod runtime;
pub mod winner;

#[cfg(feature = "tuner")]
pub mod compare;
#[cfg(feature = "tuner")]
pub mod key;
#[cfg(feature = "tuner")]
pub mod model;
#[cfg(feature = "tuner")]
pub mod report;
#[cfg(feature = "tuner")]
pub mod space;
#[cfg(feature = "tuner")]
pub mod template;
#[cfg(feature = "tuner")]
pub mod tune;
#[cfg(feature = "tuner")]
pub mod worker;

#[cfg(feature = "cli")]
pub mod cli;
