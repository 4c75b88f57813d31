//! The CPU target: C compiled by the host's compiler, loaded as a shared object, run by one pool of threads.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the CPU target loads code and describes the processor in Linux' ways (memfd, /proc); build it on Linux"
);

mod device;
mod launch;
mod memory;
mod pool;
mod tiles;

#[cfg(feature = "tuner")]
pub mod cc;
#[cfg(feature = "tuner")]
mod gauge;
#[cfg(feature = "tuner")]
mod session;

pub use device::describe;
pub use launch::{Bound, Executable, Module};
pub use memory::Buffer;
#[cfg(feature = "engine")]
pub(crate) use memory::available;
pub use pool::{Pool, Turn};
#[cfg(feature = "tuner")]
pub use session::CpuSession;
