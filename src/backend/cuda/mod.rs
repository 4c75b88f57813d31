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

/// Whether the loader finds one of these libraries. cudarc's own question needs it to load the driver at run time, which
/// another crate of a program may have chosen otherwise.
fn present(names: &[&str]) -> bool {
    // SAFETY: the initialisers of NVIDIA's libraries have no preconditions.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

pub use device::{Gpu, driver_version, gpu_count};
pub use driver::{Buffer, Event, Graph, Module, Stream};
pub use launch::{Bound, RawStream};
#[cfg(feature = "tuner")]
pub use session::CudaSession;
