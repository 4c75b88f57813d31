//! The little of the CUDA driver that timing needs, loaded at run time. Works on whatever context is current, so that it
//! times calls of libraries that brought their own bindings.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

/// Bytes that are read ahead of a replay: some 40 µs on a large GPU.
const HEAD_START_BYTES: u64 = 128 << 20;

type Code = c_int;
type Handle = *mut c_void;

/// A failed call of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// libcuda is not there.
    #[error("no CUDA driver: {0}")]
    NoDriver(String),
    /// A call failed.
    #[error("{call} gave error {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// `CUresult`.
        code: i32,
    },
}

macro_rules! driver {
    ($($name:ident: $symbol:literal ($($arg:ty),*);)*) => {
        struct Driver { $($name: unsafe extern "C" fn($($arg),*) -> Code,)* _library: libloading::Library }

        impl Driver {
            fn load() -> Result<Driver, CudaError> {
                let missing = |e: libloading::Error| CudaError::NoDriver(e.to_string());
                // SAFETY: the driver's library may be loaded by anyone, and the types are those of cuda.h.
                unsafe {
                    let library = libloading::Library::new("libcuda.so.1").map_err(missing)?;
                    Ok(Driver { $($name: *library.get($symbol).map_err(missing)?,)* _library: library })
                }
            }
        }
    };
}

driver! {
    init: b"cuInit\0" (c_uint);
    alloc: b"cuMemAlloc_v2\0" (*mut u64, usize);
    free: b"cuMemFree_v2\0" (u64);
    fill: b"cuMemsetD8_v2\0" (u64, u8, usize);
    module_load: b"cuModuleLoadData\0" (*mut Handle, *const c_void);
    module_unload: b"cuModuleUnload\0" (Handle);
    module_function: b"cuModuleGetFunction\0" (*mut Handle, Handle, *const c_char);
    launch: b"cuLaunchKernel\0" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
    event_create: b"cuEventCreate\0" (*mut Handle, c_uint);
    event_destroy: b"cuEventDestroy_v2\0" (Handle);
    event_record: b"cuEventRecord\0" (Handle, Handle);
    event_wait: b"cuEventSynchronize\0" (Handle);
    event_elapsed: b"cuEventElapsedTime\0" (*mut f32, Handle, Handle);
    stream_wait: b"cuStreamSynchronize\0" (Handle);
    capture_begin: b"cuStreamBeginCapture_v2\0" (Handle, c_int);
    capture_end: b"cuStreamEndCapture\0" (Handle, *mut Handle);
    graph_instantiate: b"cuGraphInstantiateWithFlags\0" (*mut Handle, Handle, u64);
    graph_destroy: b"cuGraphDestroy\0" (Handle);
    graph_launch: b"cuGraphLaunch\0" (Handle, Handle);
    graph_exec_destroy: b"cuGraphExecDestroy\0" (Handle);
    profiler_start: b"cuProfilerStart\0" ();
    profiler_stop: b"cuProfilerStop\0" ();
}

/// The driver, two events, and memory that is read to empty the L2.
pub struct Cuda {
    driver: Driver,
    start: Handle,
    end: Handle,
    flush: Option<Flush>,
}

struct Flush {
    module: Handle,
    function: Handle,
    at: u64,
    bytes: u64,
}

/// A `CUstream` of the current context.
#[derive(Clone, Copy, Debug)]
pub struct Stream(*mut c_void);

impl Stream {
    /// Takes a stream made elsewhere.
    ///
    /// # Safety
    /// `handle` is a `CUstream`, or null for the default stream, that outlives the use of this value.
    pub unsafe fn new(handle: *mut c_void) -> Stream {
        Stream(handle)
    }

    /// The context's default stream.
    pub fn null() -> Stream {
        Stream(ptr::null_mut())
    }

    /// The handle.
    pub fn handle(self) -> *mut c_void {
        self.0
    }
}

/// A captured graph. Freed by [`Cuda::drop_graph`], since that needs the driver.
pub struct Graph(Handle);

fn check(call: &'static str, code: Code) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Call { call, code }) }
}

impl Cuda {
    /// On the context that is current.
    pub fn new() -> Result<Cuda, CudaError> {
        let driver = Driver::load()?;
        // SAFETY: plain calls; the handles are owned by the value that is returned.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            let event = || {
                let mut event = ptr::null_mut();
                check("cuEventCreate", (driver.event_create)(&mut event, 0)).map(|()| event)
            };
            let (start, end) = (event()?, event()?);
            Ok(Cuda { driver, start, end, flush: None })
        }
    }

    /// Reads `bytes` (0: nothing) of memory of its own on `stream`, so that the L2 holds nothing else. No line of it becomes dirty.
    pub fn flush(&mut self, stream: Stream, bytes: u64) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        if self.flush.as_ref().is_none_or(|f| f.bytes < bytes) {
            self.drop_flush();
            self.flush = Some(self.make_flush(bytes)?);
        }
        let Some(flush) = &self.flush else { return Ok(()) };
        let (mut at, mut quads) = (flush.at, (bytes / 16) as u32);
        let mut arguments = [ptr::from_mut(&mut at).cast::<c_void>(), ptr::from_mut(&mut quads).cast()];
        // SAFETY: the two arguments are those of flush.ptx, and the memory holds that many 16-byte words.
        let code = unsafe {
            let none = ptr::null_mut();
            (self.driver.launch)(flush.function, 528, 1, 1, 512, 1, 1, 0, stream.0, arguments.as_mut_ptr(), none)
        };
        check("cuLaunchKernel", code)
    }

    fn make_flush(&self, bytes: u64) -> Result<Flush, CudaError> {
        let image = concat!(include_str!("flush.ptx"), "\0");
        let d = &self.driver;
        let (mut module, mut function, mut at) = (ptr::null_mut(), ptr::null_mut(), 0);
        // SAFETY: the image ends with a zero byte; what is made is owned by the value that is returned.
        unsafe {
            check("cuModuleLoadData", (d.module_load)(&mut module, image.as_ptr().cast()))?;
            check("cuModuleGetFunction", (d.module_function)(&mut function, module, c"flush".as_ptr()))?;
            check("cuMemAlloc", (d.alloc)(&mut at, bytes as usize))?;
            check("cuMemsetD8", (d.fill)(at, 0, bytes as usize))?;
        }
        Ok(Flush { module, function, at, bytes })
    }

    fn drop_flush(&mut self) {
        if let Some(flush) = self.flush.take() {
            // SAFETY: ours, and no launch uses them: every round ends with a wait.
            unsafe {
                (self.driver.free)(flush.at);
                (self.driver.module_unload)(flush.module);
            }
        }
    }

    /// Captures what `enqueue` puts on `stream`; nothing runs.
    pub fn capture<E: From<CudaError>>(
        &self,
        stream: Stream,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let d = &self.driver;
        // Relaxed: libraries may allocate or query while they enqueue.
        const RELAXED: c_int = 2;
        // What a call allocates and keeps is given back when the graph is launched again.
        const AUTO_FREE: u64 = 1;
        // SAFETY: the stream is the caller's; the capture is ended whatever `enqueue` gives, and the graph destroyed
        // when its executable form exists.
        unsafe {
            check("cuStreamBeginCapture", (d.capture_begin)(stream.0, RELAXED))?;
            let enqueued = enqueue();
            let mut graph = ptr::null_mut();
            let ended = check("cuStreamEndCapture", (d.capture_end)(stream.0, &mut graph));
            enqueued?;
            ended?;
            let mut exec = ptr::null_mut();
            let made = check("cuGraphInstantiate", (d.graph_instantiate)(&mut exec, graph, AUTO_FREE));
            (d.graph_destroy)(graph);
            made?;
            Ok(Graph(exec))
        }
    }

    /// Replays it on `stream` and waits: microseconds between two events. At least `flush_bytes` are read before, and
    /// never nothing: while they are, the replay is enqueued, so no time of the host lies between the events.
    pub fn replay(&mut self, graph: &Graph, stream: Stream, flush_bytes: u64) -> Result<f64, CudaError> {
        self.flush(stream, flush_bytes.max(HEAD_START_BYTES))?;
        let d = &self.driver;
        let mut ms = 0.0;
        // SAFETY: graph and events are ours and the events are waited for before they are read.
        unsafe {
            check("cuEventRecord", (d.event_record)(self.start, stream.0))?;
            check("cuGraphLaunch", (d.graph_launch)(graph.0, stream.0))?;
            check("cuEventRecord", (d.event_record)(self.end, stream.0))?;
            check("cuEventSynchronize", (d.event_wait)(self.end))?;
            check("cuEventElapsedTime", (d.event_elapsed)(&mut ms, self.start, self.end))?;
        }
        Ok(f64::from(ms) * 1e3)
    }

    /// Waits for a stream.
    pub fn wait(&self, stream: Stream) -> Result<(), CudaError> {
        // SAFETY: the stream is the caller's.
        check("cuStreamSynchronize", unsafe { (self.driver.stream_wait)(stream.0) })
    }

    /// Frees a graph.
    pub fn drop_graph(&self, graph: Graph) {
        // SAFETY: ours, and every replay was waited for; a failure leaves it to the end of the process.
        unsafe { (self.driver.graph_exec_destroy)(graph.0) };
    }

    /// Tells a profiler around the process to look, or to look away.
    pub fn profile(&self, on: bool) -> Result<(), CudaError> {
        // SAFETY: plain calls.
        unsafe {
            if on {
                check("cuProfilerStart", (self.driver.profiler_start)())
            } else {
                check("cuProfilerStop", (self.driver.profiler_stop)())
            }
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        self.drop_flush();
        // SAFETY: ours; a failure leaves them to the end of the process.
        unsafe {
            (self.driver.event_destroy)(self.start);
            (self.driver.event_destroy)(self.end);
        }
    }
}
