//! Targets: the only code that knows a device, and the only `unsafe` of the crate.
//!
//! Each target compiles a source, loads an artifact, launches it on memory, times it and says what the device is. What a
//! runtime offers of both, [`Memory`], [`View`], [`Bound`] and [`Queue`], is safe: it checks lengths, owners and overlaps,
//! and where that cannot be (memory and streams of others, indices) the promise is an `unsafe` constructor.

use crate::device::Target;
use std::path::PathBuf;

pub mod cpu;
pub mod cuda;
mod elf;
#[cfg(feature = "engine")]
pub(crate) mod heap;
mod machine;
#[cfg(feature = "engine")]
pub(crate) mod mapped;
mod memory;
#[cfg(feature = "engine")]
mod metadata;
#[cfg(feature = "tuner")]
pub mod session;

pub use machine::{Bound, Queue};
pub(crate) use machine::{Executable, Machine, Module};
pub use memory::{Memory, View, Workspace};
#[cfg(feature = "engine")]
pub(crate) use metadata::{Bounds, Metadata, Tables};

/// What can go wrong on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No NVIDIA driver.
    #[error("no NVIDIA driver here (libcuda is not found); install the driver, or choose --target cpu")]
    NoDriver,
    /// The driver is older than the code needs.
    #[error("the NVIDIA driver supports CUDA {found}, and jitune's kernels need {needed}; update the driver")]
    OldDriver {
        /// What the driver offers.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// No such GPU.
    #[error("there is no GPU {ordinal}; {count} found")]
    NoGpu {
        /// The asked ordinal.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A call to the driver failed.
    #[error("{call} failed: {name} ({code})")]
    Driver {
        /// The function.
        call: &'static str,
        /// The error's name.
        name: String,
        /// Its number.
        code: u32,
    },
    /// NVRTC is not here.
    #[error(
        "NVRTC is not found (looked at {places}); \
         `pip install nvidia-cuda-nvrtc` and set JITUNE_NVRTC to the folder that holds libnvrtc.so"
    )]
    NoNvrtc {
        /// Where it was looked for.
        places: String,
    },
    /// A C compiler is not here.
    #[error("no C compiler (tried {tried}); install gcc or clang, or set JITUNE_CC")]
    NoCompiler {
        /// The names tried.
        tried: String,
    },
    /// The compiler did not get to judge the source: it was killed, or lacked memory, space or a part of itself.
    #[error("the compiler could not do its work: {why}")]
    Compiler {
        /// How it ended, and its last words.
        why: String,
    },
    /// The compiler refused the source.
    #[error("the compiler refused the source:\n{log}")]
    Compile {
        /// Its messages.
        log: String,
    },
    /// The compiler accepted the source but its result is not usable.
    #[error("the compiled kernel is refused: {why}")]
    Unfit {
        /// Spills, ignored directives, …
        why: String,
    },
    /// An artifact that does not load or lacks an entry.
    #[error("the artifact does not load: {why}")]
    Load {
        /// The loader's message.
        why: String,
    },
    /// A launch that does not fit the device.
    #[error("the launch is impossible: {why}")]
    Launch {
        /// Why.
        why: String,
    },
    /// Memory that does not fit what is bound to it.
    #[error("it cannot be bound: {why}")]
    Bind {
        /// What is missing.
        why: String,
    },
    /// Tables of a step that would lead its kernels out of their memory.
    #[cfg(feature = "engine")]
    #[error("a step's tables are wrong: {why}")]
    Metadata {
        /// What is out of its bounds.
        why: String,
    },
    /// A launch on the wrong kind of queue.
    #[error("a {} kernel cannot be launched on a {} queue", kernel.name(), queue.name())]
    WrongQueue {
        /// What the kernel is for.
        kernel: Target,
        /// What it was launched on.
        queue: Target,
    },
    /// A stream, a graph or memory of another GPU than the kernel's.
    #[error(
        "it is of GPU {other}, and the kernel is loaded on GPU {kernel}; take it from the runtime that found the kernel"
    )]
    WrongGpu {
        /// The kernel's GPU.
        kernel: usize,
        /// The GPU of what was given.
        other: usize,
    },
    /// Bytes outside of a memory.
    #[error("{len} bytes from byte {at} on are outside of a memory of {have} bytes")]
    Range {
        /// The first byte.
        at: u64,
        /// How many.
        len: u64,
        /// The memory's size.
        have: u64,
    },
    /// A pool of threads that cannot be had.
    #[error("a pool of {asked} threads cannot be had ({why}); ask for fewer, with --threads")]
    Threads {
        /// The asked number.
        asked: usize,
        /// What stands against it.
        why: String,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Memory for a problem does not fit.
    #[error("{needed} bytes are needed and {free} are free on the device")]
    OutOfMemory {
        /// Needed bytes.
        needed: u64,
        /// Free bytes.
        free: u64,
    },
    /// A candidate that changed the process it ran in, or left something running there.
    #[error("it left {what} behind")]
    LeftBehind {
        /// What.
        what: String,
    },
    /// The measuring itself is broken.
    #[error("measurement refused: {0}")]
    Measurement(String),
}

impl BackendError {
    /// True when the device context is lost or the process is not as it was, so that the process must be replaced.
    pub fn is_fault(&self) -> bool {
        // The sticky errors: 700 illegal address, 701 is not sticky, 702 timeout, 709 context destroyed, 710 assert,
        // 714 to 719 hardware stack, instruction, misalignment, address space, pc, launch failure.
        matches!(
            self,
            BackendError::Driver { code: 700 | 702 | 709 | 710 | 714..=719, .. } | BackendError::LeftBehind { .. }
        )
    }
}

/// Checks the bytes of a shared object, for fuzzing.
#[cfg(fuzzing)]
pub fn fuzz_shared_object(bytes: &[u8]) -> Result<(), String> {
    let _ = elf::check_cubin(bytes);
    elf::SharedObject::read(bytes).map(drop)
}

/// Lets a closed pipe end the process, as it ends other command-line tools. Not for a process that talks to workers: a
/// dead worker closes its pipe too.
#[cfg(feature = "tuner")]
pub fn default_sigpipe() {
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    const SIGPIPE: i32 = 13;
    const SIG_DFL: usize = 0;
    // SAFETY: sets a disposition, before any thread is started.
    unsafe { signal(SIGPIPE, SIG_DFL) };
}
