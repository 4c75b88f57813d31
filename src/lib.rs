//! jitune generates CUDA and CPU kernels per shape and per machine, compiles them just in time, tunes them, keeps the
//! winners, and ships them in a bundle that production loads with the driver alone.
//!
//! One sentence of data flow: **Model → Problem → Space → Config → Source → Artifact → Verdict → Winner → Bundle →
//! Launch.** Each arrow is one type and one function; everything up to `Source` is pure.
//!
//! Feature `runtime`, the default, is what production links: bundle, look-up, launch. `tuner` adds the making of kernels,
//! `engine` the running of models, `serve` OpenAI's HTTP API on top of it.
//! The program is a package of its own, `jitune-cli`.

#![deny(unsafe_code)]

pub mod artifact;
#[allow(unsafe_code)]
pub mod backend;
pub mod bundle;
pub mod device;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(not(feature = "tuner"))]
mod file;
#[cfg(feature = "tuner")]
pub mod file;
#[cfg(feature = "engine")]
pub mod gguf;
mod limits;
#[cfg(any(feature = "engine", feature = "engines"))]
pub mod logits;
#[cfg(any(feature = "tuner", feature = "engine"))]
mod median;
pub mod problem;
pub mod program;
pub mod recipe;
pub mod runtime;
mod sync;
pub mod winner;

#[cfg(feature = "tuner")]
pub mod attempt;
#[cfg(feature = "tuner")]
pub mod bench;
#[cfg(feature = "tuner")]
pub mod compare;
#[cfg(feature = "engines")]
pub mod engines;
#[cfg(feature = "tuner")]
pub mod export;
#[cfg(feature = "tuner")]
pub mod journal;
#[cfg(feature = "tuner")]
pub mod key;
#[cfg(any(feature = "tuner", feature = "engine"))]
pub mod model;
#[cfg(feature = "tuner")]
pub mod report;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "tuner")]
pub mod setting;
#[cfg(feature = "tuner")]
pub mod source;
#[cfg(feature = "tuner")]
pub mod space;
#[cfg(feature = "tuner")]
pub mod template;
#[cfg(feature = "engine")]
pub mod tokenizer;
#[cfg(feature = "tuner")]
pub mod tune;
#[cfg(feature = "tuner")]
pub mod verdict;
#[cfg(feature = "tuner")]
pub mod verify;
#[cfg(feature = "engine")]
pub mod weights;
#[cfg(feature = "tuner")]
pub mod worker;
#[cfg(feature = "tuner")]
pub use jitune_db as db;
#[cfg(feature = "tuner")]
pub use worker::worker_main;
