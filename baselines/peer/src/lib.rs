//! A peer of jitune: a program that runs the same problems some other way, and is timed as jitune's own kernels are.
//!
//! Owns the messages ([`Ask`], [`Answer`]), the trait to write a peer in Rust ([`Peer`], [`Work`]), and the loop that
//! serves it ([`serve`]): rounds, cold caches, CUDA graphs, clocks. Knows no problem and no library.
//!
//! ```no_run
//! # use jitune_peer::*;
//! # use std::collections::BTreeMap;
//! struct Mine;
//! impl Peer for Mine {
//!     fn hello(&mut self, _: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
//!         Ok(About { peer: "mine".into(), ..About::default() })
//!     }
//!     fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
//!         Err(Refusal::unsupported(format!("no {}", task.op)))
//!     }
//! }
//! fn main() -> std::process::ExitCode {
//!     serve(Mine)
//! }
//! ```

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod cuda;
pub mod engine;
pub mod layout;
pub mod numbers;
mod protocol;
mod serve;
mod timer;

pub use cuda::{Cuda, CudaError, Graph, Stream};
pub use protocol::{
    About, Answer, Ask, Device, Numbered, PROTOCOL, Refusal, RefusalKind, RefusedWay, Round, Task, TaskTensor, Way,
    decode,
};
pub use serve::{serve, serve_on};
pub use timer::Timer;

use std::collections::BTreeMap;

/// A library to compare with.
pub trait Peer {
    /// Opens the device and says who it is, or what is missing and the command that brings it. Called once, first.
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal>;

    /// Everything outside of the timing: reads the files, fills `task.sets` sets of tensors, transposes, autotunes.
    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal>;
}

/// A problem that is ready.
pub struct Prepared {
    /// What runs it.
    pub work: Box<dyn Work>,
    /// The ways it can be run; calls name them by their place here.
    pub ways: Vec<Way>,
    /// The ways that this peer has and that do not run this problem.
    pub refused: Vec<RefusedWay>,
}

/// Runs a problem.
pub trait Work {
    /// One call of a way on one set, as a user writes it; asynchronous on a GPU.
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal>;

    /// Returns when the device has done all calls.
    fn wait(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// The stream that calls of a way go to, where they may be captured into a graph.
    fn stream(&self, way: usize) -> Option<Stream> {
        let _ = way;
        None
    }

    /// Elements of an output of the last call of that way on set 0, which has been waited for.
    fn read(&mut self, way: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal>;

    /// Fills the outputs of set 0 with all ones (NaN, -1), where they are this peer's own.
    fn poison(&mut self, way: usize) -> Result<(), Refusal> {
        let _ = way;
        Ok(())
    }
}
