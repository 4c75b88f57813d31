//! The CUDA target: the driver API, loaded at run time, and NVRTC for those who compile.

mod device;
mod driver;
mod launch;

#[cfg(feature = "tuner")]
pub mod nvrtc;
#[cfg(feature = "tuner")]
mod session;
#[cfg(feature = "tuner")]
mod support;

pub use device::{Gpu, driver_version, gpu_count};
pub use driver::{Buffer, Event, Graph, Module, Stream};
pub use launch::{Bound, RawStream};
#[cfg(feature = "tuner")]
pub use session::CudaSession;
