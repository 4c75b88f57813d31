//! What the programs of this package share: Burn's version, its threads, and its GPU.

use std::collections::BTreeMap;

use jitune_peer::Refusal;

/// The version that Cargo.toml pins.
pub const VERSION: &str = "0.21.0";

/// Versions of what Burn runs on with a GPU.
pub fn libraries() -> BTreeMap<String, String> {
    BTreeMap::from([("cubecl".into(), "0.10.0".into()), ("cubek".into(), "0.2.0".into())])
}

/// Gives Burn so many threads, before its first work; the device's name.
pub fn processor(threads: usize) -> String {
    for variable in ["RAYON_NUM_THREADS", "MATMUL_NUM_THREADS"] {
        // SAFETY: no thread that looks at the environment has been started yet: those of the protocol read and write lines alone.
        unsafe { std::env::set_var(variable, threads.to_string()) };
    }
    format!("the processor, {threads} threads")
}

pub use gpu::Gpu;

/// A device of which this build knows nothing.
#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::Refusal;

    /// There is none.
    pub enum Gpu {}

    impl Gpu {
        /// Refuses.
        pub fn open(_: usize) -> Result<(Gpu, String), Refusal> {
            let fix = "cargo build --release --features cuda,model --manifest-path baselines/burn/Cargo.toml";
            Err(Refusal::missing("this build of Burn has no CUDA", fix))
        }
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::sync::Arc;

    use burn::backend::cuda::CudaDevice;
    use cudarc::{driver, nvrtc};

    use super::Refusal;

    /// Keeps the device's primary context, in which Burn works too, current on this thread: rounds are timed from here.
    pub struct Gpu {
        device: CudaDevice,
        context: Arc<driver::CudaContext>,
    }

    impl Gpu {
        /// The device of that ordinal, and its name; refuses as missing what Burn lacks for it.
        pub fn open(ordinal: usize) -> Result<(Gpu, String), Refusal> {
            // SAFETY: each looks for a library and closes it again. Burn panics on a thread of its own where one is not there.
            let (driver, compiler) = unsafe { (driver::sys::is_culib_present(), nvrtc::sys::is_culib_present()) };
            if !driver {
                return Err(Refusal::missing("no NVIDIA driver: libcuda was not found", "install the NVIDIA driver"));
            }
            if !compiler {
                let fix = "python3 -m pip install 'nvidia-cuda-nvrtc==13.*' 'nvidia-cuda-runtime==13.*', the folder of \
                           libnvrtc.so.13 on LD_LIBRARY_PATH and that of its headers' parent in CUDA_PATH";
                return Err(Refusal::missing("NVRTC was not found", fix));
            }
            let context = driver::CudaContext::new(ordinal).map_err(Refusal::failed)?;
            let name = context.name().map_err(Refusal::failed)?;
            Ok((Gpu { device: CudaDevice::new(ordinal), context }, name))
        }

        /// Burn's name for it.
        pub fn device(&self) -> &CudaDevice {
            &self.device
        }

        /// Bytes in use on the device, of all that use it.
        pub fn memory(&self) -> Option<u64> {
            let (free, total) = self.context.mem_get_info().ok()?;
            Some((total - free) as u64)
        }
    }
}
