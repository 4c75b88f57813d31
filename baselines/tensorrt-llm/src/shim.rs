//! The shim's C interface, as `shim/jitune_trtllm.h` has it.

use jitune_peer::Refusal;
use jitune_peer::engine::{Finish, Sampling};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// The version of the interface that is known here.
const ABI: i32 = 1;
/// Bytes of an error.
const ERROR: usize = 2048;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

/// How an engine is opened.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Options {
    /// Most requests at a time; 0 for what the engine was built for.
    pub max_batch: i32,
    /// Most tokens of a step; 0 for what the engine was built for.
    pub max_tokens: i32,
    /// Not 0 where what is kept of one prompt may serve another.
    pub reuse_blocks: i32,
    /// Not 0 where a prompt may be computed in parts.
    pub chunked_context: i32,
    /// Share of the free memory for keys and values; 0 for the usual one.
    pub memory_fraction: f32,
}

#[repr(C)]
struct Chosen {
    temperature: f32,
    top_p: f32,
    top_k: i32,
    seed: u64,
}

#[repr(C)]
struct Event {
    request: u64,
    kind: i32,
    why: i32,
    ids: *const i32,
    count: usize,
    error: *const c_char,
}

type Open = unsafe extern "C" fn(*const c_char, *const Options, *mut *mut Handle, *mut c_char, usize) -> i32;
type Enqueue =
    unsafe extern "C" fn(*mut Handle, *const i32, usize, i32, *const Chosen, i32, *mut u64, *mut c_char, usize) -> i32;
type Await = unsafe extern "C" fn(*mut Handle, i32, *mut *const Event, *mut usize, *mut c_char, usize) -> i32;
type Cancel = unsafe extern "C" fn(*mut Handle, u64, *mut c_char, usize) -> i32;
type Close = unsafe extern "C" fn(*mut Handle);

/// The loaded shim.
pub struct Shim {
    library: Library,
}

/// An engine that is open.
pub struct Executor {
    handle: *mut Handle,
    enqueue: Enqueue,
    wait: Await,
    cancel: Cancel,
    close: Close,
    /// Code that the functions are in; never taken out of memory, since libraries of CUDA do not bear that.
    _library: &'static Library,
}

// SAFETY: the executor behind it takes requests and cancellations from any thread; `heard` is called by one alone, which `&mut self` of
// its only caller sees to.
unsafe impl Send for Executor {}
unsafe impl Sync for Executor {}

/// What was heard of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Its next tokens.
    Tokens(Vec<u32>),
    /// Its end, and what went wrong.
    End(Finish, Option<String>),
}

impl Shim {
    /// Loads the shim and what it is linked with.
    pub fn load(path: &Path) -> Result<Shim, Refusal> {
        let fix = "sh baselines/tensorrt-llm/build.sh TRTLLM_INCLUDE TRTLLM_LIB";
        let missing = |why: String| Refusal::missing(format!("{}: {why}", path.display()), fix);
        // SAFETY: the user says that this library may run here.
        let library = unsafe { Library::new(path) }.map_err(|e| missing(e.to_string()))?;
        let shim = Shim { library };
        let abi: unsafe extern "C" fn() -> i32 = shim.get(b"jitune_trtllm_abi\0")?;
        // SAFETY: it takes nothing and returns a number.
        match unsafe { abi() } {
            ABI => Ok(shim),
            other => Err(missing(format!("it has interface {other}, and {ABI} is known here; build it again"))),
        }
    }

    /// The version of TensorRT-LLM.
    pub fn version(&self) -> Result<String, Refusal> {
        let version: unsafe extern "C" fn() -> *const c_char = self.get(b"jitune_trtllm_version\0")?;
        // SAFETY: it returns a text that stays, or null.
        let text = unsafe { version() };
        // SAFETY: as above.
        Ok(if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() })
    }

    /// Opens the folder of a built engine.
    pub fn open(self, folder: &Path, options: &Options) -> Result<Executor, Refusal> {
        let path = CString::new(folder.as_os_str().as_bytes()).map_err(Refusal::failed)?;
        let open: Open = self.get(b"jitune_trtllm_open\0")?;
        let (enqueue, wait) = (self.get(b"jitune_trtllm_enqueue\0")?, self.get(b"jitune_trtllm_await\0")?);
        let (cancel, close) = (self.get(b"jitune_trtllm_cancel\0")?, self.get(b"jitune_trtllm_close\0")?);
        let mut handle = std::ptr::null_mut();
        // SAFETY: all pointers live as long as the call, and the error is as long as it is said.
        said(|error| unsafe { open(path.as_ptr(), options, &mut handle, error, ERROR) })?;
        Ok(Executor { handle, enqueue, wait, cancel, close, _library: Box::leak(Box::new(self.library)) })
    }

    fn get<T: Copy>(&self, name: &[u8]) -> Result<T, Refusal> {
        // SAFETY: names and types are those of the header, whose version was compared.
        let symbol: Result<Symbol<'_, T>, _> = unsafe { self.library.get(name) };
        symbol.map(|symbol| *symbol).map_err(|e| Refusal::failed(format!("the shim lacks a function: {e}")))
    }
}

impl Executor {
    /// Asks for at most `most` tokens after a prompt; the token `end` ends the answer. Returns the executor's number of the request.
    pub fn enqueue(&self, prompt: &[u32], most: usize, sampling: &Sampling, end: Option<u32>) -> Result<u64, Refusal> {
        let ids: Result<Vec<i32>, _> = prompt.iter().map(|id| i32::try_from(*id)).collect();
        let ids = ids.map_err(|_| Refusal::failed("a token of the prompt is beyond what the executor counts to"))?;
        let most = i32::try_from(most).map_err(Refusal::failed)?;
        let chosen = Chosen {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: i32::try_from(sampling.top_k).map_err(Refusal::failed)?,
            seed: sampling.seed,
        };
        let end = end.and_then(|id| i32::try_from(id).ok()).unwrap_or(-1);
        let mut request = 0;
        said(|error| {
            // SAFETY: the handle is open, and all pointers live as long as the call.
            unsafe {
                (self.enqueue)(self.handle, ids.as_ptr(), ids.len(), most, &chosen, end, &mut request, error, ERROR)
            }
        })?;
        Ok(request)
    }

    /// What is heard within a time, by the executor's numbers of requests. Called from one thread alone.
    pub fn heard(&self, wait: Duration) -> Result<Vec<(u64, Heard)>, Refusal> {
        let (mut events, mut count) = (std::ptr::null(), 0);
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the handle is open, and all pointers live as long as the call.
        said(|error| unsafe { (self.wait)(self.handle, wait, &mut events, &mut count, error, ERROR) })?;
        if events.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: it gave so many events, which stay until it is called again.
        let events: &[Event] = unsafe { std::slice::from_raw_parts(events, count) };
        Ok(events.iter().map(|event| (event.request, event.read())).collect())
    }

    /// Ends a request early.
    pub fn cancel(&self, request: u64) -> Result<(), Refusal> {
        // SAFETY: the handle is open, and the error is as long as it is said.
        said(|error| unsafe { (self.cancel)(self.handle, request, error, ERROR) })
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody has it any more.
        unsafe { (self.close)(self.handle) }
    }
}

impl Event {
    fn read(&self) -> Heard {
        if self.kind == 0 {
            // SAFETY: tokens of an event are so many, and stay as long as it.
            let ids =
                if self.count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(self.ids, self.count) } };
            return Heard::Tokens(ids.iter().map(|id| id.unsigned_abs()).collect());
        }
        // SAFETY: it is null or a text that stays as long as the event.
        let error =
            (!self.error.is_null()).then(|| unsafe { CStr::from_ptr(self.error) }.to_string_lossy().into_owned());
        let why = match self.why {
            0 => Finish::Length,
            1 => Finish::Stop,
            2 => Finish::Cancelled,
            _ => Finish::Failed,
        };
        Heard::End(why, error)
    }
}

/// Calls what writes why it failed.
fn said(call: impl FnOnce(*mut c_char) -> i32) -> Result<(), Refusal> {
    let mut error = [0_u8; ERROR];
    if call(error.as_mut_ptr().cast()) == 0 {
        return Ok(());
    }
    let why = CStr::from_bytes_until_nul(&error).map_or_else(|_| "no reason".into(), CStr::to_string_lossy);
    Err(Refusal::failed(why))
}
