//! What the programs of this package share: Candle's version, and whether it can run on a GPU here.

use jitune_peer::Refusal;

/// The version that Cargo.toml pins.
pub const VERSION: &str = "0.11.1";

/// Refuses as missing what Candle lacks for a GPU: it panics where a library is not there.
#[cfg(not(feature = "cuda"))]
pub fn gpu() -> Result<(), Refusal> {
    Err(Refusal::missing("this build of Candle has no CUDA", "sh baselines/candle/build-cuda.sh"))
}

/// Refuses as missing what Candle lacks for a GPU: it panics where a library is not there.
#[cfg(feature = "cuda")]
pub fn gpu() -> Result<(), Refusal> {
    use candle_core::cuda_backend::cudarc::{cublas, curand, driver};
    // SAFETY: each looks for a library and closes it again. Candle panics where one is not there.
    let (driver, libraries) = unsafe {
        let libraries = cublas::sys::is_culib_present() && curand::sys::is_culib_present();
        (driver::sys::is_culib_present(), libraries)
    };
    if !driver {
        return Err(Refusal::missing("no NVIDIA driver: libcuda was not found", "install the NVIDIA driver"));
    }
    if !libraries {
        let fix =
            "python3 -m pip install 'nvidia-cublas==13.*' 'nvidia-curand==10.4.*', their folders on LD_LIBRARY_PATH";
        return Err(Refusal::missing("cuBLAS or cuRAND was not found", fix));
    }
    Ok(())
}
