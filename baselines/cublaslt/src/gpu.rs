//! Owned handles of the CUDA driver: memory, a stream, events, graphs. Everything here lives on one context, which
//! outlives it, and on one stream.

use std::{ffi::c_void, ptr, sync::Arc};

use cudarc::driver::{CudaContext, result, sys};

use crate::error::{During, Error};

/// Bytes read between two replays: more than any L2 cache.
const FLUSH_BYTES: usize = 256 << 20;

pub struct Gpu {
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    start: sys::CUevent,
    end: sys::CUevent,
    module: sys::CUmodule,
    flush: sys::CUfunction,
    flushed: Buffer,
    pub l2: usize,
    sms: u32,
}

impl Gpu {
    pub fn new() -> Result<Gpu, Error> {
        // SAFETY: looks for the library and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        let context = CudaContext::new(0).map_err(Error::NoDevice)?;
        let attribute = |a| context.attribute(a).during("reading a device attribute");
        let l2 = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(1) as usize;
        let sms = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).during("creating a stream")?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).during("creating an event");
        let (start, end) = (event()?, event()?);
        let image = concat!(include_str!("flush.ptx"), "\0");
        // SAFETY: the image ends with a zero byte, and the module lives as long as the function taken from it.
        let (module, flush) = unsafe {
            let module = result::module::load_data(image.as_ptr().cast()).during("loading the flush kernel")?;
            (module, result::module::get_function(module, c"flush".to_owned()).during("loading the flush kernel")?)
        };
        let flushed = Buffer::new(FLUSH_BYTES)?;
        flushed.fill(0)?;
        Ok(Gpu { context, stream, start, end, module, flush, flushed, l2, sms })
    }

    pub fn name(&self) -> Result<String, Error> {
        self.context.name().during("reading the device's name")
    }

    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the stream is ours and alive.
        unsafe { result::stream::synchronize(self.stream) }.during("waiting for the device")
    }

    /// Captures what `enqueue` puts on the stream into a graph.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive; the capture is ended whatever `enqueue` returns, and the graph is destroyed once
        // its executable form exists.
        unsafe {
            result::stream::begin_capture(self.stream, mode).during("beginning a capture")?;
            let enqueued = enqueue();
            let graph = result::stream::end_capture(self.stream);
            enqueued?;
            let graph = graph.during("ending a capture")?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).during("destroying a graph")?;
            Ok(Graph(exec.during("instantiating a graph")?))
        }
    }

    /// Milliseconds of each of `times` replays, every one of them with a cold L2 cache.
    pub fn replay(&self, graph: &Graph, times: usize) -> Result<Vec<f64>, Error> {
        (0..times)
            .map(|_| {
                self.flush()?;
                // SAFETY: graph, stream and events are alive, and the events are waited for before they are read.
                unsafe {
                    result::event::record(self.start, self.stream).during("recording an event")?;
                    result::graph::launch(graph.0, self.stream).during("launching a graph")?;
                    result::event::record(self.end, self.stream).during("recording an event")?;
                    result::event::synchronize(self.end).during("waiting for a replay")?;
                    result::event::elapsed(self.start, self.end).map(f64::from).during("reading an event")
                }
            })
            .collect()
    }

    fn flush(&self) -> Result<(), Error> {
        let mut buffer = self.flushed.at;
        let mut quads = (FLUSH_BYTES / 16) as u32;
        let mut arguments = [ptr::from_mut(&mut buffer).cast::<c_void>(), ptr::from_mut(&mut quads).cast()];
        // SAFETY: the two arguments are those of flush.ptx, and the buffer holds that many 16-byte words.
        unsafe { result::launch_kernel(self.flush, (4 * self.sms, 1, 1), (512, 1, 1), 0, self.stream, &mut arguments) }
            .during("launching the flush kernel")
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing uses these handles any more; a failure leaves them to the end of the process.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::event::destroy(self.start);
            let _ = result::event::destroy(self.end);
            let _ = result::module::unload(self.module);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

pub struct Graph(sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is ours, and every replay has been waited for.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Device memory.
pub struct Buffer {
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    pub fn new(bytes: usize) -> Result<Buffer, Error> {
        // SAFETY: the memory is written before it is read, by `fill` or `repeat`.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.during("allocating device memory")?;
        Ok(Buffer { at, bytes })
    }

    pub fn pointer(&self) -> *mut c_void {
        self.at as *mut c_void
    }

    pub fn fill(&self, byte: u8) -> Result<(), Error> {
        // SAFETY: within the allocation.
        unsafe { result::memset_d8_sync(self.at, byte, self.bytes) }.during("filling device memory")?;
        self.settle()
    }

    /// Fills the buffer with `pattern` again and again.
    pub fn repeat(&self, pattern: &[u8]) -> Result<(), Error> {
        let mut filled = pattern.len().min(self.bytes);
        // SAFETY: each copy lies within the allocation, and source and destination do not overlap.
        unsafe {
            result::memcpy_htod_sync(self.at, &pattern[..filled]).during("copying inputs to the device")?;
            while filled < self.bytes {
                let more = filled.min(self.bytes - filled);
                result::memcpy_dtod_sync(self.at + filled as u64, self.at, more).during("repeating inputs")?;
                filled += more;
            }
        }
        self.settle()
    }

    /// `bytes.len()` bytes from `offset` on.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        debug_assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: within the allocation.
        unsafe { result::memcpy_dtoh_sync(bytes, self.at + offset as u64) }.during("reading a result")
    }

    /// The driver's copies and fills within the device return before they are done, and our stream does not wait
    /// for the default one.
    fn settle(&self) -> Result<(), Error> {
        result::ctx::synchronize().during("waiting for the device")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { result::free_sync(self.at) };
    }
}
