//! The device: a context, a stream of it, and memory.

use std::{ffi::c_void, sync::Arc};

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use jitune_peer::{Refusal, Stream};

use crate::error::{During, Error};

pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl Gpu {
    pub fn new(ordinal: usize) -> Result<Gpu, Refusal> {
        // SAFETY: looks for the library and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err(Refusal::missing("no NVIDIA driver: libcuda was not found", "install the NVIDIA driver"));
        }
        let context = CudaContext::new(ordinal).during("opening the device")?;
        let stream = context.new_stream().during("creating a stream")?;
        Ok(Gpu { context, stream })
    }

    pub fn name(&self) -> Result<String, Error> {
        self.context.name().during("reading the device's name")
    }

    pub fn stream(&self) -> Stream {
        // SAFETY: made by cudarc, which destroys it with `self`; the work that hands it out keeps `self`.
        unsafe { Stream::new(self.stream.cu_stream().cast()) }
    }

    pub fn wait(&self) -> Result<(), Error> {
        self.stream.synchronize().during("waiting for the device")
    }
}

/// Device memory of the context that is current.
pub struct Buffer {
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// Filled with ones: NaN in every dtype.
    pub fn new(bytes: usize) -> Result<Buffer, Error> {
        // SAFETY: the memory is filled before anyone reads it.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.during("allocating device memory")?;
        let buffer = Buffer { at, bytes };
        buffer.poison()?;
        Ok(buffer)
    }

    pub fn of(content: &[u8]) -> Result<Buffer, Error> {
        let buffer = Buffer::new(content.len())?;
        // SAFETY: as many bytes as were allocated.
        unsafe { result::memcpy_htod_sync(buffer.at, content) }.during("copying an input to the device")?;
        settle()?;
        Ok(buffer)
    }

    pub fn pointer(&self) -> *mut c_void {
        self.at as *mut c_void
    }

    pub fn poison(&self) -> Result<(), Error> {
        // SAFETY: within the allocation.
        unsafe { result::memset_d8_sync(self.at, 0xff, self.bytes) }.during("filling device memory")?;
        settle()
    }

    /// `N` bytes from `offset` on; none beyond the end.
    pub fn read<const N: usize>(&self, offset: usize) -> Result<Option<[u8; N]>, Error> {
        if offset.checked_add(N).is_none_or(|end| end > self.bytes) {
            return Ok(None);
        }
        let mut bytes = [0; N];
        // SAFETY: within the allocation.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, self.at + offset as u64) }.during("reading a result")?;
        Ok(Some(bytes))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once; a failure leaves it to the end of the process.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// The driver's copies and fills may return before they are done, and no stream of ours waits for them.
fn settle() -> Result<(), Error> {
    result::ctx::synchronize().during("waiting for the device")
}
