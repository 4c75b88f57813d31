//! Loading shared objects, and running their kernels on the pool.

use super::pool::Pool;
use crate::backend::BackendError;
use crate::backend::elf::SharedObject;
use crate::recipe::{Arg, KernelLaunch, Launch};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `void entry(const jt_arg *args, long task, long tasks)`.
type Entry = unsafe extern "C" fn(*const u64, c_long, c_long);

/// A loaded shared object.
pub struct Module {
    object: SharedObject,
    /// Where it is loaded.
    base: usize,
    /// Keeps it loaded.
    _library: Library,
}

impl Module {
    /// Loads a shared object from memory; no file of the system's is written.
    ///
    /// # Safety
    /// The code is run: its initialisers now, its kernels when they are launched. It must be made for jitune, and do to
    /// memory what the launches say that come with it. That it is whole is checked before, and that an entry is its own
    /// when it is found.
    pub unsafe fn load(bytes: &[u8]) -> Result<Arc<Module>, BackendError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let unloadable = |why: String| BackendError::Load { why };
        let object = SharedObject::read(bytes).map_err(unloadable)?;
        let file = anonymous(bytes).map_err(|e| unloadable(format!("no memory for its file: {e}")))?;
        let path = spelling(file.as_raw_fd(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // SAFETY: the caller's promise.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let (library, base) = placed(library.map_err(|e| unloadable(whole(&e)))?);
        let base = base.ok_or_else(|| unloadable("the loader does not say where it is".into()))?;
        Ok(Arc::new(Module { object, base, _library: library }))
    }

    /// A function of its own: the loader would also find those of the libraries that it needs, such as `system`.
    fn entry(&self, name: &str) -> Result<Entry, BackendError> {
        let at = self.object.function(name);
        let at =
            at.ok_or_else(|| BackendError::Load { why: format!("entry {name}: its code defines no such function") })?;
        // SAFETY: the address of loaded code of the library that is held; every entry of a CPU template has this type, which
        // is part of the promise that `load` was given.
        Ok(unsafe { std::mem::transmute::<usize, Entry>(self.base + at as usize) })
    }
}

/// Where a library is loaded.
fn placed(library: Library) -> (Library, Option<usize>) {
    unsafe extern "C" {
        fn dlinfo(handle: *mut c_void, request: c_int, answer: *mut c_void) -> c_int;
    }
    /// Asks for the loader's entry of a library, which begins with that address.
    const LINK_MAP: c_int = 2;
    let handle = library.into_raw();
    let mut entry: *const usize = std::ptr::null();
    // SAFETY: the handle is open; a pointer is written, to an entry that lives as long as the library is loaded.
    unsafe {
        let found = dlinfo(handle, LINK_MAP, std::ptr::from_mut(&mut entry).cast()) == 0;
        (Library::from_raw(handle), entry.as_ref().copied().filter(|_| found))
    }
}

/// What the loader says, with the reason.
fn whole(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), |source| format!("{e}: {source}"))
}

/// A file without a name that holds `bytes`.
fn anonymous(bytes: &[u8]) -> io::Result<File> {
    // Systems may refuse a memory file that could be executed as a program, and older ones do not know the flag.
    let fd = match memfd_create("jitune", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("jitune", MemfdFlags::CLOEXEC),
        made => made,
    };
    let mut file = File::from(fd?);
    file.write_all(bytes)?;
    Ok(file)
}

/// A path of an open file that no other call gives: the loader answers one that it has seen with the library of then, and
/// numbers of files come again. So `number` is written into it, as slashes that change nothing.
fn spelling(file: RawFd, number: u64) -> String {
    let digits = u64::BITS - number.leading_zeros();
    let slashes: String = (0..digits).map(|i| if number >> i & 1 == 1 { "./" } else { ".//" }).collect();
    format!("/proc/self/fd/{slashes}{file}")
}

/// A launch whose entries are found; it lacks the addresses.
pub struct Executable {
    kernels: Vec<(Entry, KernelLaunch)>,
    _module: Arc<Module>,
}

impl Executable {
    /// Finds the entries of a launch over so many tensors.
    pub fn new(module: &Arc<Module>, launch: &Launch, tensors: usize) -> Result<Arc<Executable>, BackendError> {
        let find = |k: &KernelLaunch| {
            let refused = |why: String| Err(BackendError::Launch { why: format!("{}: {why}", k.entry) });
            if k.grid[0] == 0 || k.grid[1..] != [1, 1] || k.block == 0 {
                return refused(format!("a grid of {:?} tasks on {} threads; tasks are a line", k.grid, k.block));
            }
            for arg in &k.args {
                match arg {
                    Arg::Tensor(i) if *i >= tensors => return refused(format!("it takes tensor {i} of {tensors}")),
                    Arg::Workspace(at) if *at > launch.workspace => {
                        return refused(format!("byte {at} of a workspace of {}", launch.workspace));
                    }
                    Arg::Map(_) => return refused("a CPU kernel takes no tensor map".into()),
                    _ => {}
                }
            }
            Ok((module.entry(&k.entry)?, k.clone()))
        };
        let kernels = launch.kernels.iter().map(find).collect::<Result<_, _>>()?;
        Ok(Arc::new(Executable { kernels, _module: Arc::clone(module) }))
    }

    /// Binds it to the address of each tensor, in order, and of the workspace (any where none is needed).
    ///
    /// # Safety
    /// From now to the end of the last run, each address is that of memory of the tensor's size, aligned to its elements,
    /// which nothing else reads or writes while a run lasts; and tensors whose values say where memory is read or written
    /// (pages, slots, ids, lengths) hold values within their range.
    pub unsafe fn bind(self: &Arc<Self>, tensors: &[u64], workspace: u64) -> Result<Bound, BackendError> {
        let slot = |a: &Arg| match a {
            Arg::Tensor(i) => tensors.get(*i).copied(),
            Arg::I32(v) => Some(i64::from(*v) as u64),
            Arg::I64(v) => Some(*v as u64),
            Arg::F32(v) => Some(f64::from(*v).to_bits()),
            Arg::Workspace(at) => workspace.checked_add(*at),
            Arg::Map(_) => None,
        };
        let slots = |(_, k): &(Entry, KernelLaunch)| k.args.iter().map(slot).collect::<Option<Box<[u64]>>>();
        let args = self.kernels.iter().map(slots).collect::<Option<_>>().ok_or_else(|| BackendError::Launch {
            why: format!("{} addresses are not enough, or the workspace ends outside of memory", tensors.len()),
        })?;
        Ok(Bound { executable: Arc::clone(self), args })
    }
}

/// A launch with its addresses.
pub struct Bound {
    executable: Arc<Executable>,
    /// Of each kernel, with nothing behind the last: a memory checker sees who reads on.
    args: Vec<Box<[u64]>>,
}

impl Bound {
    /// Puts other memory in the place of a tensor.
    ///
    /// # Safety
    /// As for [`Executable::bind`].
    pub unsafe fn set_tensor(&mut self, tensor: usize, address: u64) {
        self.set(|arg| matches!(arg, Arg::Tensor(i) if *i == tensor).then_some(address));
    }

    /// Puts another workspace in the place of the one it has.
    ///
    /// # Safety
    /// As for [`Executable::bind`].
    pub unsafe fn set_workspace(&mut self, address: u64) {
        self.set(|arg| match arg {
            Arg::Workspace(at) => Some(address.wrapping_add(*at)),
            _ => None,
        });
    }

    fn set(&mut self, value: impl Fn(&Arg) -> Option<u64>) {
        for ((_, k), slots) in self.executable.kernels.iter().zip(&mut self.args) {
            for (arg, slot) in k.args.iter().zip(slots) {
                if let Some(value) = value(arg) {
                    *slot = value;
                }
            }
        }
    }

    /// Runs its kernels, one after another, on `pool`; returns when they are done. Nothing else runs there between them: what one
    /// leaves in the workspace may say where the next reads.
    pub fn run(&self, pool: &Pool) {
        let mut turn = pool.turn();
        for ((entry, k), args) in self.executable.kernels.iter().zip(&self.args) {
            let tasks = i64::from(k.grid[0]);
            let args = Args(args.as_ptr());
            turn.run(tasks, k.block as usize, &|task| {
                let args = &args;
                // SAFETY: the entry lives in the library that the executable holds; the addresses are the promise that
                // `bind` was given, and a run of the pool is over before the slots can change.
                unsafe { entry(args.0, task as c_long, tasks as c_long) }
            });
        }
    }
}

struct Args(*const u64);

// SAFETY: the slots are only read, and outlive the run.
unsafe impl Sync for Args {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_given_twice() {
        let all: std::collections::BTreeSet<String> = (0..5000).map(|n| spelling(7, n)).collect();
        assert_eq!(all.len(), 5000);
        assert!(all.iter().all(|path| path.len() < 100 && path.ends_with('7')));
    }

    /// A sampled token is the same wherever it is drawn, because a weight is: the code of the template has the bits of the
    /// reference, in vectors of each width.
    #[cfg(feature = "tuner")]
    #[test]
    fn weights_of_samples_have_the_bits_of_the_reference() {
        use crate::backend::cpu::{Buffer, Pool, cc, describe};
        use crate::problem::{hash_uniform, sampled_weight};
        use crate::recipe::{Arg, Config, KernelLaunch};
        const N: usize = 1 << 20;
        let (library, device) = (crate::template::Library::built_in().unwrap(), describe(Some(1)));
        let p = "sample rows=1 cols=9 dtype=f32".parse().unwrap();
        let template = library.get(crate::device::Target::Cpu, "cpu_sample_portable").unwrap();
        let mut source = library.render(template, &p, &device, &Config::default()).unwrap();
        source.text += "void weights_of(const jt_arg *args, long task, long tasks) {\n\
            (void)tasks;\n\
            for (long i = task * 1024; i < task * 1024 + 1024; i += VL) {\n\
            vu w = weigh(load_f32((const float *)args[0].p + i)); memcpy((uint32_t *)args[1].p + i, &w, SIMD); }\n}\n";
        let special = [0.0, -0.0, -31.0, -31f32.next_up(), -31f32.next_down(), f32::NAN, f32::NEG_INFINITY, -1e-45];
        let z: Vec<f32> = (0..N as u64).map(|i| hash_uniform(1, i) * 16.0 - 16.0).collect();
        let z = [&special[..], &z[special.len()..]].concat();
        let mut memory = [Buffer::new(4 * N).unwrap(), Buffer::new(4 * N).unwrap()];
        memory[0].bytes_mut().copy_from_slice(&z.iter().flat_map(|z| z.to_le_bytes()).collect::<Vec<_>>());
        let simd = device.simd.max(16);
        for width in [16, 32, 64].into_iter().filter(|w| *w <= simd) {
            let text = source.text.replace(&format!("#define SIMD {simd}\n"), &format!("#define SIMD {width}\n"));
            let source = crate::source::Source { text, ..source.clone() };
            let (code, _) = cc::compile(&source, tempfile::tempdir().unwrap().path()).unwrap();
            // SAFETY: the code of a built-in template, compiled for this machine.
            let module = unsafe { Module::load(&code) }.unwrap();
            let (args, entry) = (vec![Arg::Tensor(0), Arg::Tensor(1)], "weights_of".into());
            let grid = [(N / 1024) as u32, 1, 1];
            let kernel = KernelLaunch { entry, grid, block: 1, cluster: 1, smem: 0, pdl: false, args };
            let launch = Launch { kernels: vec![kernel], workspace: 0, zero: false };
            memory[1].poison();
            let addresses = memory.each_ref().map(Buffer::address);
            // SAFETY: both buffers have the elements that the tasks read and write.
            let bound = unsafe { Executable::new(&module, &launch, 2).unwrap().bind(&addresses, 0) }.unwrap();
            bound.run(&Pool::new(1).unwrap());
            for (z, w) in z.iter().zip(memory[1].bytes().as_chunks::<4>().0) {
                assert_eq!(u32::from_le_bytes(*w), sampled_weight(*z), "{z} in {width} bytes");
            }
        }
    }
}
