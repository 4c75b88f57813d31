//! The context of one GPU, which every handle holds and makes current for as long as it calls the driver.

use super::driver::check;
use crate::backend::BackendError;
use crate::sync::lock;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};
use std::thread::ThreadId;

/// The primary context of one GPU: what the runtime API, and every library that uses it, has there too.
pub(crate) struct Context {
    handle: sys::CUcontext,
    device: sys::CUdevice,
    ordinal: usize,
    pub(super) limits: Limits,
    gate: Gate,
}

/// What a launch on this GPU may ask for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Static and dynamic shared memory of a block in bytes.
    pub smem: u32,
    /// Bytes of all arguments.
    pub parameters: usize,
}

// SAFETY: a context handle may be used from any thread; the driver locks.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of a device, the same for all who hold it; it is released with the last handle.
    pub(super) fn retain(device: sys::CUdevice, ordinal: usize, limits: Limits) -> Result<Arc<Context>, BackendError> {
        static HELD: LazyLock<Mutex<HashMap<usize, Weak<Context>>>> = LazyLock::new(Mutex::default);
        let mut held = lock(&HELD);
        if let Some(context) = held.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(context);
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the device exists.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) })?;
        let context = Arc::new(Context { handle, device, ordinal, limits, gate: Gate::default() });
        held.insert(ordinal, Arc::downgrade(&context));
        Ok(context)
    }

    /// The GPU's number in this process.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Makes it current on this thread until the result is dropped, which puts the caller's own context back.
    pub(super) fn bind(&self) -> Result<Current<'_>, BackendError> {
        let mut current = ptr::null_mut();
        // SAFETY: writes a handle; the context is retained as long as `self` lives.
        let pushed = unsafe {
            check("cuCtxGetCurrent", sys::cuCtxGetCurrent(&mut current))?;
            let other = current != self.handle;
            if other {
                check("cuCtxPushCurrent", sys::cuCtxPushCurrent_v2(self.handle))?;
            }
            other
        };
        Ok(Current { pushed, _of: PhantomData })
    }

    /// Leaves it current on the calling thread.
    pub(crate) fn make_current(&self) -> Result<(), BackendError> {
        // SAFETY: the context is retained as long as `self` lives; once released, the driver refuses its handle.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    /// Waits for all its work, and before that for captures to end: the driver would break them.
    pub(super) fn synchronize(&self) -> Result<(), BackendError> {
        let _none = self.gate.wait()?;
        let _current = self.bind()?;
        // SAFETY: no arguments.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// Whether this thread captures one of its streams.
    pub(super) fn captures_here(&self) -> bool {
        lock(&self.gate.threads).contains(&std::thread::current().id())
    }

    /// Notes that this thread captures a stream, until the result is dropped.
    pub(super) fn capturing(&self) -> Capturing<'_> {
        lock(&self.gate.threads).push(std::thread::current().id());
        Capturing(&self.gate)
    }
}

/// Who captures streams of a context.
#[derive(Default)]
struct Gate {
    threads: Mutex<Vec<ThreadId>>,
    ended: Condvar,
}

impl Gate {
    /// Waits until nobody captures; nobody begins before the result is dropped.
    fn wait(&self) -> Result<impl Sized + '_, BackendError> {
        let threads = lock(&self.threads);
        if threads.contains(&std::thread::current().id()) {
            let why = "it waits for the GPU, and this thread captures a stream; do it before or after".into();
            return Err(BackendError::Launch { why });
        }
        Ok(self.ended.wait_while(threads, |t| !t.is_empty()).unwrap_or_else(PoisonError::into_inner))
    }
}

/// A thread that captures.
pub(super) struct Capturing<'c>(&'c Gate);

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        let mut threads = lock(&self.0.threads);
        let own = std::thread::current().id();
        if let Some(at) = threads.iter().position(|t| *t == own) {
            threads.swap_remove(at);
        }
        self.0.ended.notify_all();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: balances the retain; no handle is left.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A context that is current.
pub(super) struct Current<'c> {
    pushed: bool,
    /// It belongs to this thread.
    _of: PhantomData<(&'c Context, *mut ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: takes off what `bind` put on.
            unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}

/// While this lives, the calling thread may allocate and free though it captures a stream: neither becomes part of the
/// capture, and without this either would end it.
pub(super) struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    pub(super) fn new() -> Relaxed {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps the thread's mode with `mode`.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed(mode)
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}
