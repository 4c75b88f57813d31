//! The CPU target: C compiled by the host's compiler, loaded as a shared object, run by one pool of threads.

mod device;
mod launch;
mod memory;
mod pool;

#[cfg(feature = "tuner")]
pub mod cc;
#[cfg(feature = "tuner")]
mod gauge;
#[cfg(feature = "tuner")]
mod session;

pub use device::describe;
pub use launch::{Bound, Module};
pub use memory::Buffer;
pub use pool::Pool;
#[cfg(feature = "tuner")]
pub use session::CpuSession;
