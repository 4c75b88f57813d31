//! The CUDA target: the driver API, loaded at run time, and NVRTC for those who compile.

mod context;
mod device;
mod driver;
mod launch;

#[cfg(feature = "tuner")]
mod nvml;
#[cfg(feature = "tuner")]
pub mod nvrtc;
#[cfg(feature = "tuner")]
mod session;
#[cfg(feature = "tuner")]
mod support;

/// Whether the loader finds one of these libraries. cudarc's own question needs it to load the driver at run time, which
/// another crate of a program may have chosen otherwise.
fn present(names: &[&str]) -> bool {
    // SAFETY: the initialisers of NVIDIA's libraries have no preconditions.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

pub(crate) use context::Context;
pub(crate) use device::open;
pub use device::{describe, driver_version, gpu_count, gpu_uuid};
pub(crate) use driver::{Buffer, Module, Order};
pub use driver::{Event, Graph, Stream, StreamRef};
#[cfg(feature = "engine")]
pub(crate) use driver::{HostBuffer, available};
pub(crate) use launch::{ALIGNMENT, Bound, Executable};
#[cfg(feature = "tuner")]
pub use nvml::Sensors;
#[cfg(feature = "tuner")]
pub use session::CudaSession;
