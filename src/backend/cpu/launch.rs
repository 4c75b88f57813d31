//! Loading shared objects, and running their kernels on the pool.

use super::pool::Pool;
use crate::backend::BackendError;
use crate::recipe::{Arg, KernelLaunch, Launch};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `void entry(const jt_arg *args, long task, long tasks)`.
type Entry = unsafe extern "C" fn(*const u64, std::ffi::c_long, std::ffi::c_long);

/// A loaded shared object.
pub struct Module {
    library: Arc<libloading::Library>,
}

impl Module {
    /// Loads a shared object from memory, through a private file that is removed at once.
    pub fn load(bytes: &[u8]) -> Result<Module, BackendError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("jitune-{}-{}.so", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let io = |source| BackendError::Io { path: path.clone(), source };
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(io)?;
        let written = file.write_all(bytes).map_err(io);
        drop(file);
        // SAFETY: the object is one of ours (its hash was checked); it has no initialisers.
        let library = written.and_then(|()| {
            unsafe { libloading::Library::new(&path) }.map_err(|e| BackendError::Load { why: e.to_string() })
        });
        let _ = std::fs::remove_file(&path);
        Ok(Module { library: Arc::new(library?) })
    }

    fn entry(&self, name: &str) -> Result<Entry, BackendError> {
        let load = |e: libloading::Error| BackendError::Load { why: format!("entry {name}: {e}") };
        // SAFETY: every entry of a CPU template has this type.
        unsafe { self.library.get::<Entry>(name.as_bytes()) }.map(|s| *s).map_err(load)
    }
}

/// A launch with its addresses.
pub struct Bound {
    kernels: Vec<(Entry, KernelLaunch, Vec<u64>)>,
    _library: Arc<libloading::Library>,
}

impl Bound {
    /// Binds `launch` to the address of each tensor of its problem, in order, and to `workspace`.
    pub fn new(module: &Module, launch: &Launch, tensors: &[u64], workspace: u64) -> Result<Bound, BackendError> {
        let bind = |k: &KernelLaunch| -> Result<_, BackendError> {
            let slot = |a: &Arg| match a {
                Arg::Tensor(i) => tensors.get(*i).copied().ok_or_else(|| BackendError::Launch {
                    why: format!("{} needs tensor {i}, {} addresses given", k.entry, tensors.len()),
                }),
                Arg::I32(v) => Ok(i64::from(*v) as u64),
                Arg::I64(v) => Ok(*v as u64),
                Arg::F32(v) => Ok(f64::from(*v).to_bits()),
                Arg::Workspace(at) => Ok(workspace + at),
                Arg::Map(_) => Err(BackendError::Launch { why: "a CPU kernel takes no tensor map".into() }),
            };
            Ok((module.entry(&k.entry)?, k.clone(), k.args.iter().map(slot).collect::<Result<Vec<_>, _>>()?))
        };
        let kernels = launch.kernels.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Bound { kernels, _library: module.library.clone() })
    }

    /// Runs its kernels, one after another, on `pool`; returns when they are done.
    pub fn run(&self, pool: &Pool) {
        for (entry, k, args) in &self.kernels {
            let tasks = i64::from(k.grid[0]);
            let args = Args(args.as_ptr());
            pool.run(tasks, k.block as usize, &|task| {
                let args = &args;
                // SAFETY: the entry lives in the library that `self` holds; the addresses are the caller's promise.
                unsafe { entry(args.0, task as std::ffi::c_long, tasks as std::ffi::c_long) }
            });
        }
    }
}

struct Args(*const u64);

// SAFETY: the slots are only read, and outlive the run.
unsafe impl Sync for Args {}
