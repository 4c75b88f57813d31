//! Safe wrappers over the driver calls that jitune makes. Each owns its handle and releases it when dropped.

use crate::backend::BackendError;
use cudarc::driver::sys;
use std::ffi::{CStr, CString, c_void};
use std::ptr;

/// Turns a driver result into ours, with the call's name.
pub(super) fn check(call: &'static str, code: sys::CUresult) -> Result<(), BackendError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: cuGetErrorName writes a pointer to a static string, or leaves null for an unknown code.
    let name = unsafe {
        sys::cuGetErrorName(code, &mut text);
        if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(BackendError::Driver { call, name, code: code as u32 })
}

/// Code on the device.
pub struct Module {
    handle: sys::CUmodule,
}

// SAFETY: driver handles may be used from any thread; the driver locks.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin into the current context.
    pub fn load(cubin: &[u8]) -> Result<Module, BackendError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the image is a whole cubin (the driver parses its ELF header for its size).
        let code = unsafe { sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()) };
        check("cuModuleLoadData", code).map_err(|e| match e {
            fault if fault.is_fault() => fault,
            other => BackendError::Load { why: other.to_string() },
        })?;
        Ok(Module { handle })
    }

    /// The kernel of that name, allowed `smem` bytes of dynamic shared memory.
    pub fn function(&self, name: &str, smem: u32) -> Result<Function, BackendError> {
        let c = CString::new(name).map_err(|e| BackendError::Load { why: e.to_string() })?;
        let mut handle = ptr::null_mut();
        // SAFETY: both handles are valid and the name is a C string.
        let code = unsafe { sys::cuModuleGetFunction(&mut handle, self.handle, c.as_ptr()) };
        check("cuModuleGetFunction", code).map_err(|e| BackendError::Load { why: format!("entry {name}: {e}") })?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if smem > 48 << 10 {
            // SAFETY: the function handle is valid.
            let code = unsafe { sys::cuFuncSetAttribute(handle, attribute, smem as i32) };
            check("cuFuncSetAttribute", code)
                .map_err(|e| BackendError::Launch { why: format!("{smem} bytes of shared memory: {e}") })?;
        }
        Ok(Function { handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the handle is ours; an error here (a lost context) leaves nothing to do.
        unsafe { sys::cuModuleUnload(self.handle) };
    }
}

/// A kernel of a loaded module; valid while the module is.
#[derive(Clone, Copy)]
pub struct Function {
    pub(super) handle: sys::CUfunction,
}

// SAFETY: as for `Module`.
unsafe impl Send for Function {}
unsafe impl Sync for Function {}

impl Function {
    /// Blocks of `block` threads and `smem` bytes that one multiprocessor holds at once.
    pub fn blocks_per_sm(&self, block: u32, smem: u32) -> Result<u32, BackendError> {
        let mut n = 0;
        // SAFETY: the function handle is valid.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut n, self.handle, block as i32, smem as usize)
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code).map(|()| n as u32)
    }
}

/// Device memory.
pub struct Buffer {
    ptr: sys::CUdeviceptr,
    bytes: u64,
}

impl Buffer {
    /// Allocates; the contents are undefined.
    pub fn new(bytes: u64) -> Result<Buffer, BackendError> {
        let mut ptr = 0;
        // SAFETY: writes the address to `ptr`.
        let code = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(16) as usize) };
        if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (mut free, mut total) = (0, 0);
            // SAFETY: writes two sizes.
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
            return Err(BackendError::OutOfMemory { needed: bytes, free: free as u64 });
        }
        check("cuMemAlloc", code)?;
        Ok(Buffer { ptr, bytes })
    }

    /// A buffer that holds `data`.
    pub fn from_bytes(data: &[u8]) -> Result<Buffer, BackendError> {
        let b = Buffer::new(data.len() as u64)?;
        b.write(0, data)?;
        Ok(b)
    }

    /// Its device address.
    pub fn address(&self) -> u64 {
        self.ptr
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// True for an empty buffer.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn inside(&self, at: u64, len: usize) -> Result<(), BackendError> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(BackendError::Launch { why: format!("bytes {at}+{len} of a buffer of {}", self.bytes) });
        }
        Ok(())
    }

    /// Copies from the host, after all work of the context so far; returns when done.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), BackendError> {
        self.inside(at, data.len())?;
        // SAFETY: the range lies inside the allocation.
        unsafe { copy_in(self.ptr + at, data) }
    }

    /// Copies to the host; waits for the context's work.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Result<(), BackendError> {
        self.inside(at, data.len())?;
        synchronize()?;
        // SAFETY: as in `write`.
        check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), self.ptr + at, data.len()) })
    }

    /// Fills all of it with a byte, in stream order.
    pub fn fill(&self, byte: u8, stream: &Stream) -> Result<(), BackendError> {
        self.fill_first(self.bytes, byte, stream)
    }

    /// Fills its first `bytes` with a byte, in stream order.
    pub fn fill_first(&self, bytes: u64, byte: u8, stream: &Stream) -> Result<(), BackendError> {
        self.inside(0, bytes as usize)?;
        // SAFETY: within the allocation.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(self.ptr, byte, bytes as usize, stream.handle) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the allocation is ours.
        unsafe { sys::cuMemFree_v2(self.ptr) };
    }
}

/// Copies to device memory that a buffer owns; returns when done.
#[cfg(feature = "tuner")]
pub(super) fn write(address: u64, data: &[u8]) -> Result<(), BackendError> {
    // SAFETY: the callers pass addresses of tensors with their sizes, inside buffers that they hold.
    unsafe { copy_in(address, data) }
}

/// Copies from the host. Neither waits the driver's copy for streams that do not block, nor they for it, and from pageable
/// memory it may return before the last bytes have arrived: so the context is waited for on both sides.
///
/// # Safety
/// `address` is device memory of at least `data.len()` bytes.
unsafe fn copy_in(address: u64, data: &[u8]) -> Result<(), BackendError> {
    synchronize()?;
    // SAFETY: the caller's promise, and `data` lives through the call.
    check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(address, data.as_ptr().cast(), data.len()) })?;
    synchronize()
}

/// Waits for all work of the current context.
pub(super) fn synchronize() -> Result<(), BackendError> {
    // SAFETY: no arguments.
    check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
}

/// An ordered queue of work.
pub struct Stream {
    pub(super) handle: sys::CUstream,
}

impl Stream {
    /// A stream that does not wait for the default one.
    pub fn new() -> Result<Stream, BackendError> {
        let mut handle = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut handle, flags) })?;
        Ok(Stream { handle })
    }

    /// Waits until its work is done.
    pub fn synchronize(&self) -> Result<(), BackendError> {
        // SAFETY: the handle is valid.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) })
    }

    /// The handle for other libraries.
    pub fn raw(&self) -> *mut c_void {
        self.handle.cast()
    }

    /// The stream as a peer's timer takes it; it must outlive that use.
    #[cfg(feature = "tuner")]
    pub fn peer(&self) -> jitune_peer::Stream {
        // SAFETY: the handle is valid while `self` is, and the peer that asks holds both.
        unsafe { jitune_peer::Stream::new(self.raw()) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        unsafe { sys::cuStreamDestroy_v2(self.handle) };
    }
}

/// A point in a stream's time.
pub struct Event {
    handle: sys::CUevent,
}

impl Event {
    /// An event that records time.
    pub fn new() -> Result<Event, BackendError> {
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, 0) })?;
        Ok(Event { handle })
    }

    /// Records the present end of the stream.
    pub fn record(&self, stream: &Stream) -> Result<(), BackendError> {
        // SAFETY: both handles are valid.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.handle) })
    }

    /// Seconds from `start` to this one, both reached.
    pub fn seconds_since(&self, start: &Event) -> Result<f64, BackendError> {
        let mut ms = 0f32;
        // SAFETY: both handles are valid.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut ms, start.handle, self.handle) })?;
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}

/// Captured work that is replayed with one launch.
pub struct Graph {
    exec: sys::CUgraphExec,
}

impl Graph {
    /// Captures what `work` launches on `stream`.
    pub fn capture(stream: &Stream, work: impl FnOnce() -> Result<(), BackendError>) -> Result<Graph, BackendError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid and not capturing.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.handle, mode) })?;
        let done = work();
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is capturing; ending it also after a failure puts it back in order.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.handle, &mut graph) });
        done?;
        ended?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is valid and no longer needed once instantiated.
        let made = unsafe {
            let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            sys::cuGraphDestroy(graph);
            made
        };
        made.map(|()| Graph { exec })
    }

    /// Replays it on `stream`.
    pub fn launch(&self, stream: &Stream) -> Result<(), BackendError> {
        // SAFETY: both handles are valid.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, stream.handle) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}
