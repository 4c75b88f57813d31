//! Wrappers over the driver calls that jitune makes. Each owns its handle with the context that it lives in: calls and
//! drops, on whatever thread, go to the right GPU and leave the caller's own context current.

use super::context::{self, Context, Relaxed};
use crate::backend::{BackendError, elf};
use crate::sync::lock;
use cudarc::driver::sys;
use std::any::Any;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

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

/// Code on a GPU, with its kernels found.
pub(crate) struct Module {
    handle: sys::CUmodule,
    entries: HashMap<String, Function>,
    pub(super) context: Arc<Context>,
}

// SAFETY: driver handles may be used from any thread; the driver locks.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin, and finds those of `entries` that it has.
    ///
    /// # Safety
    /// The image must be a compiler's: that its tables lie within it is checked, and no more. Kernels that are launched do
    /// to memory what they please.
    pub(crate) unsafe fn load<'e>(
        context: &Arc<Context>,
        cubin: &[u8],
        entries: impl IntoIterator<Item = &'e str>,
    ) -> Result<Arc<Module>, BackendError> {
        let unloadable = |e: BackendError| match e {
            fault if fault.is_fault() => fault,
            other => BackendError::Load { why: other.to_string() },
        };
        // The driver is not told where the image ends. Anything but an ELF file may be taken as text, up to a zero byte.
        elf::check_cubin(cubin).map_err(|why| BackendError::Load { why })?;
        let _current = context.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()) };
        check("cuModuleLoadData", code).map_err(unloadable)?;
        let mut module = Module { handle, entries: HashMap::new(), context: Arc::clone(context) };
        for name in entries {
            if let Some(function) = module.find(name).map_err(unloadable)? {
                module.entries.insert(name.into(), function);
            }
        }
        Ok(Arc::new(module))
    }

    /// The kernel of that name, where the code has it; on the GPU by then, whatever the driver leaves to the first launch otherwise.
    fn find(&self, name: &str) -> Result<Option<Function>, BackendError> {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        let mut handle = ptr::null_mut();
        // SAFETY: both handles are valid and the name is a C string.
        match unsafe { sys::cuModuleGetFunction(&mut handle, self.handle, name.as_ptr()) } {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => return Ok(None),
            code => check("cuModuleGetFunction", code)?,
        }
        load(handle)?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the function handle is valid.
            check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut value, which, handle) })
                .map(|()| value as u32)
        };
        use sys::CUfunction_attribute as A;
        Ok(Some(Function {
            handle,
            threads: attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            smem: attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            parameters: parameters(handle),
        }))
    }

    /// An entry that was found when the code was loaded.
    pub(super) fn function(&self, name: &str) -> Result<&Function, BackendError> {
        self.entries.get(name).ok_or_else(|| BackendError::Load { why: format!("it has no kernel {name}") })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let Ok(_current) = self.context.bind() else { return };
        // A launch may still run. Where waiting is not allowed, because this thread or a stranger captures, the code is left
        // to the end of the context rather than taken from under a kernel.
        if self.context.synchronize().is_err_and(|e| !e.is_fault()) {
            return;
        }
        // SAFETY: the handle is ours; an error here (a lost context) leaves nothing to do.
        unsafe { sys::cuModuleUnload(self.handle) };
    }
}

/// A kernel of a loaded module; valid while the module is.
pub(super) struct Function {
    pub handle: sys::CUfunction,
    /// Most threads of a block.
    pub threads: u32,
    /// Static shared memory in bytes.
    smem: u32,
    /// Bytes of each parameter, where the driver tells.
    pub parameters: Option<Vec<usize>>,
}

// SAFETY: as for `Module`.
unsafe impl Send for Function {}
unsafe impl Sync for Function {}

/// Shared memory of a block that needs no asking.
const PLAIN_SMEM: u32 = 48 << 10;

impl Function {
    /// Allows launches with `smem` bytes of dynamic shared memory. One that needs more than the usual is allowed all that
    /// the GPU has, so that launches of other sizes ask for nothing else.
    pub(super) fn allow(&self, smem: u32, context: &Context) -> Result<(), BackendError> {
        let most = context.limits.smem.saturating_sub(self.smem);
        if smem > most {
            let why = format!("{smem} bytes of dynamic shared memory, and at most {most} are left");
            return Err(BackendError::Launch { why });
        }
        if smem + self.smem <= PLAIN_SMEM {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let _current = context.bind()?;
        // SAFETY: the function handle is valid.
        let code = unsafe { sys::cuFuncSetAttribute(self.handle, attribute, most as i32) };
        check("cuFuncSetAttribute", code)
            .map_err(|e| BackendError::Launch { why: format!("{smem} bytes of dynamic shared memory: {e}") })
    }

    /// Blocks of `block` threads with `smem` bytes of dynamic shared memory that one multiprocessor holds at once.
    #[cfg(feature = "tuner")]
    pub(super) fn blocks_per_sm(&self, block: u32, smem: u32, context: &Context) -> Result<u32, BackendError> {
        let mut n = 0;
        let _current = context.bind()?;
        // SAFETY: the function handle is valid.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut n, self.handle, block as i32, smem as usize)
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code).map(|()| n as u32)
    }
}

/// A call that not every driver has.
///
/// # Safety
/// `T` is the type that cuda.h gives to the call.
unsafe fn optional<T: Copy>(call: &[u8]) -> Option<T> {
    // SAFETY: the driver, which is loaded already and never unloaded; the type is the caller's promise.
    ["libcuda.so.1", "libcuda.so"].into_iter().find_map(|name| unsafe {
        let driver = libloading::Library::new(name).ok()?;
        let found = driver.get::<T>(call).ok().map(|s| *s);
        std::mem::forget(driver);
        found
    })
}

/// Puts a kernel's code on the GPU now. Drivers before CUDA 12.4 do it when they like.
fn load(function: sys::CUfunction) -> Result<(), BackendError> {
    type Load = unsafe extern "C" fn(sys::CUfunction) -> sys::CUresult;
    static LOAD: OnceLock<Option<Load>> = OnceLock::new();
    // SAFETY: the type of cuda.h.
    match LOAD.get_or_init(|| unsafe { optional(b"cuFuncLoad\0") }) {
        // SAFETY: the function handle is valid.
        Some(load) => check("cuFuncLoad", unsafe { load(function) }),
        None => Ok(()),
    }
}

/// Bytes of each parameter of a kernel. Drivers before CUDA 12.4 do not tell.
fn parameters(function: sys::CUfunction) -> Option<Vec<usize>> {
    type Info = unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult;
    static INFO: OnceLock<Option<Info>> = OnceLock::new();
    // SAFETY: the type of cuda.h.
    let info = (*INFO.get_or_init(|| unsafe { optional(b"cuFuncGetParamInfo\0") }))?;
    let mut sizes = Vec::new();
    loop {
        let (mut at, mut size) = (0, 0);
        // SAFETY: the function handle is valid; an index past the last parameter is an error.
        match unsafe { info(function, sizes.len(), &mut at, &mut size) } {
            sys::CUresult::CUDA_SUCCESS => sizes.push(size),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Some(sizes),
            _ => return None,
        }
    }
}

/// Free bytes of the current context's GPU; none where it does not say.
fn free() -> u64 {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two sizes.
    unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
    free as u64
}

/// Free bytes of a GPU.
#[cfg(feature = "engine")]
pub(crate) fn available(context: &Arc<Context>) -> Result<u64, BackendError> {
    let _current = context.bind()?;
    Ok(free())
}

/// Device memory.
pub(crate) struct Buffer {
    ptr: sys::CUdeviceptr,
    bytes: u64,
    pub(crate) context: Arc<Context>,
}

impl Buffer {
    /// Allocates; the contents are undefined.
    pub(crate) fn new(context: &Arc<Context>, bytes: u64) -> Result<Buffer, BackendError> {
        let (_current, _relaxed) = (context.bind()?, Relaxed::new());
        let mut ptr = 0;
        // SAFETY: writes the address to `ptr`.
        let code = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(16) as usize) };
        if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(BackendError::OutOfMemory { needed: bytes, free: free() });
        }
        check("cuMemAlloc", code)?;
        Ok(Buffer { ptr, bytes, context: Arc::clone(context) })
    }

    /// Its device address.
    pub(crate) fn address(&self) -> u64 {
        self.ptr
    }

    /// Its size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    fn inside(&self, at: u64, len: u64) -> Result<(), BackendError> {
        match at.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(BackendError::Range { at, len, have: self.bytes }),
        }
    }

    /// Copies from the host, after all work of the context so far; returns when done.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), BackendError> {
        self.inside(at, data.len() as u64)?;
        // SAFETY: the range lies inside the allocation.
        unsafe { copy_in(&self.context, self.ptr + at, data) }
    }

    /// Copies to the host; waits for the context's work.
    pub(crate) fn read(&self, at: u64, data: &mut [u8]) -> Result<(), BackendError> {
        self.inside(at, data.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { copy_out(&self.context, self.ptr + at, data) }
    }

    /// Fills all of it with zeros; returns when done.
    pub(crate) fn zero(&self) -> Result<(), BackendError> {
        let _current = self.context.bind()?;
        let default = ptr::null_mut();
        // SAFETY: within the allocation, on the context's default stream.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(self.ptr, 0, self.bytes as usize, default) })?;
        // SAFETY: that stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(default) })
    }

    /// Fills all of it with a byte, in stream order.
    #[cfg(feature = "tuner")]
    pub(crate) fn fill(&self, byte: u8, stream: &Stream) -> Result<(), BackendError> {
        self.fill_first(self.bytes, byte, stream)
    }

    /// Fills its first `bytes` with a byte, in stream order.
    #[cfg(feature = "tuner")]
    pub(crate) fn fill_first(&self, bytes: u64, byte: u8, stream: &Stream) -> Result<(), BackendError> {
        self.inside(0, bytes)?;
        // SAFETY: within the allocation.
        unsafe { fill(self.ptr, bytes, byte, stream) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Ok(_current) = self.context.bind() else { return };
        let _relaxed = Relaxed::new();
        // SAFETY: the allocation is ours. The driver waits for what runs before it takes memory back.
        unsafe { sys::cuMemFree_v2(self.ptr) };
    }
}

/// Memory of the host that kernels read and write where it is, over the bus. It holds zeros at first.
#[cfg(feature = "engine")]
pub(crate) struct HostBuffer {
    ptr: *mut c_void,
    bytes: u64,
    pub(crate) context: Arc<Context>,
}

// SAFETY: an allocation that any thread may use; who copies takes care of the order (`Memory`).
#[cfg(feature = "engine")]
unsafe impl Send for HostBuffer {}
#[cfg(feature = "engine")]
unsafe impl Sync for HostBuffer {}

#[cfg(feature = "engine")]
impl HostBuffer {
    pub(crate) fn new(context: &Arc<Context>, bytes: u64) -> Result<HostBuffer, BackendError> {
        let (_current, _relaxed) = (context.bind()?, Relaxed::new());
        let (mut ptr, len) = (ptr::null_mut(), bytes.max(16) as usize);
        // SAFETY: writes the address to `ptr`.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut ptr, len, 0) })?;
        // SAFETY: just allocated, of that length.
        unsafe { ptr.cast::<u8>().write_bytes(0, len) };
        Ok(HostBuffer { ptr, bytes, context: Arc::clone(context) })
    }

    /// Its address, which is the same for the host and, with unified addressing, for the GPU.
    pub(crate) fn address(&self) -> u64 {
        self.ptr as u64
    }

    /// Its size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }
}

#[cfg(feature = "engine")]
impl Drop for HostBuffer {
    fn drop(&mut self) {
        let Ok(_current) = self.context.bind() else { return };
        let _relaxed = Relaxed::new();
        // SAFETY: the allocation is ours.
        unsafe { sys::cuMemFreeHost(self.ptr) };
    }
}

/// Fills memory with a byte, in stream order.
///
/// # Safety
/// `address` is memory of the stream's GPU of at least `bytes` bytes, until the fill is done.
#[cfg(feature = "tuner")]
pub(super) unsafe fn fill(address: u64, bytes: u64, byte: u8, stream: &Stream) -> Result<(), BackendError> {
    let _current = stream.context.bind()?;
    // SAFETY: the caller's promise.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, byte, bytes as usize, stream.handle) })
}

/// Copies from the host. Neither waits the driver's copy for streams that do not block, nor they for it, and from pageable
/// memory it may return before the last bytes have arrived: so the context is waited for on both sides.
///
/// # Safety
/// `address` is memory of the context's GPU of at least `data.len()` bytes.
pub(super) unsafe fn copy_in(context: &Context, address: u64, data: &[u8]) -> Result<(), BackendError> {
    let _current = context.bind()?;
    context.synchronize()?;
    // SAFETY: the caller's promise, and `data` lives through the call.
    check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(address, data.as_ptr().cast(), data.len()) })?;
    context.synchronize()
}

/// Copies to the host; waits for the context's work.
///
/// # Safety
/// `address` is memory of the context's GPU of at least `data.len()` bytes.
pub(super) unsafe fn copy_out(context: &Context, address: u64, data: &mut [u8]) -> Result<(), BackendError> {
    let _current = context.bind()?;
    context.synchronize()?;
    // SAFETY: the caller's promise.
    check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), address, data.len()) })
}

/// What a captured graph needs as long as it may be replayed.
pub(crate) type Kept = Box<dyn Any + Send + Sync>;

/// An ordered queue of work on one GPU.
pub struct Stream {
    pub(super) handle: sys::CUstream,
    pub(super) context: Arc<Context>,
    /// Its own, where a handle may come again.
    number: u64,
    state: Mutex<Capturing>,
}

/// What a stream captures, while it does.
#[derive(Default)]
struct Capturing {
    open: bool,
    kept: Vec<Kept>,
    orders: Vec<Arc<Order>>,
}

/// Which stream used a workspace last, so that its uses follow each other: those of one stream do by themselves.
#[derive(Default)]
pub(crate) struct Order(Mutex<Option<u64>>);

impl Order {
    /// Waits for the work of another stream than the one of that number, where that used it last; until the result is dropped nobody
    /// else enqueues work that uses it.
    fn turn(&self, number: u64, context: &Context) -> Result<MutexGuard<'_, Option<u64>>, BackendError> {
        let mut last = match self.0.try_lock() {
            // Whoever has it may wait for this thread's capture to end.
            Err(TryLockError::WouldBlock) if context.captures_here() => {
                let why = "its workspace is in use elsewhere, and this thread captures a stream; do it before or after"
                    .into();
                return Err(BackendError::Launch { why });
            }
            Ok(last) => last,
            Err(_) => lock(&self.0),
        };
        if last.is_some_and(|of| of != number) {
            context.synchronize()?;
        }
        *last = Some(number);
        Ok(last)
    }
}

// SAFETY: as for `Module`.
unsafe impl Send for Stream {}
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default one.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Stream, BackendError> {
        let _current = context.bind()?;
        let mut handle = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut handle, flags) })?;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (context, number) = (Arc::clone(context), NUMBER.fetch_add(1, Ordering::Relaxed));
        Ok(Stream { handle, context, number, state: Mutex::default() })
    }

    /// Waits until its work is done.
    pub fn synchronize(&self) -> Result<(), BackendError> {
        let _current = self.context.bind()?;
        // SAFETY: the handle is valid.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) })
    }

    /// Whether its work is done; what went wrong with it, where something did.
    #[cfg(feature = "engine")]
    pub(crate) fn is_done(&self) -> Result<bool, BackendError> {
        let _current = self.context.bind()?;
        // SAFETY: the handle is valid.
        match unsafe { sys::cuStreamQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code).map(|()| true),
        }
    }

    /// The `CUstream` for other libraries. It ends with this value.
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
        let Ok(_current) = self.context.bind() else { return };
        // SAFETY: the handle is ours; its work goes on to its end.
        unsafe { sys::cuStreamDestroy_v2(self.handle) };
    }
}

/// A stream that somebody holds: one of ours, or a `CUstream` that was made elsewhere.
#[derive(Clone, Copy)]
pub struct StreamRef<'s> {
    pub(super) handle: sys::CUstream,
    owner: Option<&'s Stream>,
    _held: PhantomData<&'s ()>,
}

// SAFETY: as for `Module`.
unsafe impl Send for StreamRef<'_> {}
unsafe impl Sync for StreamRef<'_> {}

impl StreamRef<'_> {
    /// Takes a stream handle made elsewhere.
    ///
    /// # Safety
    /// `handle` is a `CUstream` of the primary context of the GPU that it's used with, or null for that context's default
    /// stream. It exists as long as the result is used. Where it captures, what is launched on it (the [`Bound`], and with
    /// it code and memory) outlives the captured graph. What is launched on it, and on other streams or in graphs at the same time,
    /// shares no workspace.
    ///
    /// [`Bound`]: crate::runtime::Bound
    pub unsafe fn from_raw(handle: *mut c_void) -> Self {
        StreamRef { handle: handle.cast(), owner: None, _held: PhantomData }
    }

    /// Refuses a stream of ours that is another GPU's.
    pub(super) fn of(&self, context: &Context) -> Result<(), BackendError> {
        match self.owner {
            Some(stream) if stream.context.ordinal() != context.ordinal() => {
                Err(BackendError::WrongGpu { kernel: context.ordinal(), other: stream.context.ordinal() })
            }
            _ => Ok(()),
        }
    }

    /// Enqueues a launch by `enqueue`. Where the stream is one of ours and captures, what `kept` gives is held as long as the graph, which
    /// takes the turns of `order` whenever it is replayed; otherwise the launch takes its turn now.
    pub(crate) fn enter(
        &self,
        order: Option<&Arc<Order>>,
        kept: impl FnOnce() -> Kept,
        enqueue: impl FnOnce() -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let Some(stream) = self.owner else { return enqueue() };
        loop {
            let captures = lock(&stream.state).open;
            let turn = match order.filter(|_| !captures) {
                Some(order) => Some(order.turn(stream.number, &stream.context)?),
                None => None,
            };
            let mut state = lock(&stream.state);
            match (state.open, order) {
                (true, order) => {
                    state.kept.push(kept());
                    if let Some(order) = order.filter(|o| !state.orders.iter().any(|other| Arc::ptr_eq(o, other))) {
                        state.orders.push(Arc::clone(order));
                    }
                }
                // A capture that another thread has ended since.
                (false, Some(_)) if turn.is_none() => continue,
                (false, _) => {}
            }
            return enqueue();
        }
    }
}

impl<'s> From<&'s Stream> for StreamRef<'s> {
    fn from(stream: &'s Stream) -> StreamRef<'s> {
        StreamRef { handle: stream.handle, owner: Some(stream), _held: PhantomData }
    }
}

/// A point in the time of a stream.
pub struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: as for `Module`.
unsafe impl Send for Event {}
unsafe impl Sync for Event {}

impl Event {
    /// An event that records time, for streams of the same GPU.
    pub fn new(stream: &Stream) -> Result<Event, BackendError> {
        let _current = stream.context.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, 0) })?;
        Ok(Event { handle, context: Arc::clone(&stream.context) })
    }

    /// Records the present end of the stream.
    pub fn record(&self, stream: &Stream) -> Result<(), BackendError> {
        let _current = self.context.bind()?;
        // SAFETY: both handles are valid; the driver refuses a stream of another context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.handle) })
    }

    /// Seconds from `start` to this one, both reached.
    pub fn seconds_since(&self, start: &Event) -> Result<f64, BackendError> {
        let _current = self.context.bind()?;
        let mut ms = 0f32;
        // SAFETY: both handles are valid.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut ms, start.handle, self.handle) })?;
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.context.bind() else { return };
        // SAFETY: the handle is ours.
        unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}

/// Captured work that is replayed with one launch. It keeps the code and the memory that it uses.
pub struct Graph {
    exec: sys::CUgraphExec,
    context: Arc<Context>,
    /// Of the workspaces that it uses, always in the same order.
    orders: Vec<Arc<Order>>,
    /// Dropped after the graph itself.
    _kept: Vec<Kept>,
}

// SAFETY: the handle may move between threads. It is not `Sync`: two must not launch one graph at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `work` launches on `stream`; nothing runs. Whatever `work` gives, or where it panics, the stream is as
    /// before.
    pub fn capture<E: From<BackendError>>(stream: &Stream, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let capture = Capture::begin(stream)?;
        work()?;
        Ok(capture.finish()?)
    }

    /// Puts it where the GPU runs it from, in the order of `stream`; otherwise the first launch does.
    #[cfg(feature = "engine")]
    pub(crate) fn upload(&self, stream: &Stream) -> Result<(), BackendError> {
        StreamRef::from(stream).of(&self.context)?;
        let _current = self.context.bind()?;
        // SAFETY: both handles are valid.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(self.exec, stream.handle) })
    }

    /// Replays it on `stream`, which captures nothing.
    pub fn launch(&self, stream: &Stream) -> Result<(), BackendError> {
        StreamRef::from(stream).of(&self.context)?;
        let turns = self.orders.iter().map(|order| order.turn(stream.number, &self.context));
        let _turns = turns.collect::<Result<Vec<_>, _>>()?;
        let state = lock(&stream.state);
        if state.open {
            return Err(BackendError::Launch { why: "a graph is not captured into another".into() });
        }
        let _current = self.context.bind()?;
        // SAFETY: both handles are valid, and what the graph uses is kept with it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, stream.handle) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_current) = self.context.bind() else { return };
        // SAFETY: the handle is ours; the driver lets a replay that runs come to its end.
        unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}

/// A stream that captures; dropping it ends that.
struct Capture<'s> {
    stream: &'s Stream,
    open: bool,
    _known: context::Capturing<'s>,
}

impl<'s> Capture<'s> {
    fn begin(stream: &'s Stream) -> Result<Capture<'s>, BackendError> {
        let _current = stream.context.bind()?;
        let mut state = lock(&stream.state);
        if state.open {
            return Err(BackendError::Launch { why: "the stream captures already".into() });
        }
        let known = stream.context.capturing();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid.
        let begun = check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.handle, mode) });
        state.open = begun.is_ok();
        begun.map(|()| Capture { stream, open: true, _known: known })
    }

    /// Ends the capture: its graph, and what was launched on the way.
    fn end(&mut self) -> (Result<Captured, BackendError>, Capturing) {
        self.open = false;
        let mut state = lock(&self.stream.state);
        let ended = self.stream.context.bind().and_then(|_current| {
            let mut graph = ptr::null_mut();
            // SAFETY: the stream is capturing; ending it also after a failure puts it back in order.
            let code = unsafe { sys::cuStreamEndCapture(self.stream.handle, &mut graph) };
            let captured = Captured(graph);
            check("cuStreamEndCapture", code).map(|()| captured)
        });
        (ended, std::mem::take(&mut *state))
    }

    fn finish(mut self) -> Result<Graph, BackendError> {
        let (captured, Capturing { kept, mut orders, .. }) = self.end();
        orders.sort_by_key(Arc::as_ptr);
        let (captured, context) = (captured?, Arc::clone(&self.stream.context));
        let _current = context.bind()?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is valid and no longer needed once instantiated.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, captured.0, 0) };
        check("cuGraphInstantiate", code)?;
        drop(_current);
        Ok(Graph { exec, context, orders, _kept: kept })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open {
            let _ = self.end();
        }
    }
}

/// A graph that is not executable; null where the capture broke.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the handle is ours.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}
