//! The handles of the CUDA target, on a driver that stands in for the real one (`driver.c`): two GPUs, whose every call says
//! whether it came with the right context. What it cannot show is computing; `examples/two_gpus.rs` does on real ones.
#![cfg(feature = "tuner")]

mod contexts;
mod session;

#[path = "../bundle/make.rs"]
#[allow(dead_code)]
mod make;

use jitune::backend::cuda::{self, Event, Graph, Sensors, Stream, nvrtc};
use jitune::backend::{BackendError, cuda::StreamRef};
use jitune::bundle::Bundle;
use jitune::device::{Device, Target};
use jitune::recipe::{Arg, Description, ExprText, Launch};
use jitune::runtime::{Bound, Kernel, Memory, Queue, Runtime, RuntimeError, View};
use jitune::winner::Winner;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// What `driver.c` counts, by its numbers; the last is how often a context is retained.
const KINDS: [&str; 7] = ["modules", "memory", "streams", "events", "graphs", "executable graphs", "contexts"];
const MEMORY: usize = 1;

/// What was launched.
#[repr(C)]
struct Launched {
    ordinal: c_int,
    captured: c_int,
    smem: c_int,
    grid: [u32; 3],
    block: u32,
    name: [c_char; 64],
    values: [u64; 96],
}

struct Driver {
    library: libloading::Library,
    folder: &'static Path,
    _turn: MutexGuard<'static, ()>,
}

/// The stand-in, loaded under the driver's name before anyone asks for that; one test at a time has it, and at its end
/// nothing may be left and nothing have gone wrong.
fn driver() -> Driver {
    static TURN: Mutex<()> = Mutex::new(());
    static BUILT: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for (source, name) in [("driver.c", "libcuda.so"), ("nvml.c", "libnvidia-ml.so.1")] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(source);
            let mut cc = std::process::Command::new("cc");
            cc.args(["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", "-pthread", "-ffp-contract=off"])
                .arg(format!("-Wl,-soname,{name}"));
            assert!(cc.arg(source).arg("-o").arg(folder.path().join(name)).arg("-lm").status().unwrap().success());
            // The loader answers a name that it has loaded with what it has loaded.
            std::mem::forget(unsafe { libloading::Library::new(folder.path().join(name)) }.unwrap());
        }
        folder
    });
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let library = unsafe { libloading::Library::new(BUILT.path().join("libcuda.so")) }.unwrap();
    Driver { library, folder: BUILT.path(), _turn: turn }
}

impl Driver {
    fn ask<A, R>(&self, name: &str, arg: A) -> R {
        unsafe { self.library.get::<unsafe extern "C" fn(A) -> R>(name.as_bytes()).unwrap()(arg) }
    }

    fn count(&self, kind: usize, ordinal: usize) -> usize {
        let count = unsafe { self.library.get::<unsafe extern "C" fn(c_int, c_int) -> c_int>(b"fake_count").unwrap() };
        unsafe { count(kind as c_int, ordinal as c_int) as usize }
    }

    fn fail(&self, call: &str) {
        self.ask::<_, ()>("fake_fail", CString::new(call).unwrap().as_ptr());
    }

    fn launched(&self) -> i32 {
        self.ask("fake_launched", ())
    }

    fn launch(&self, number: i32) -> &Launched {
        unsafe { &*self.ask::<_, *const Launched>("fake_launch", number) }
    }

    fn last(&self) -> &Launched {
        self.launch(self.launched() - 1)
    }

    fn synchronized(&self) -> i32 {
        self.ask("fake_synchronized", ())
    }

    fn looked_up(&self) -> i32 {
        self.ask("fake_looked_up", ())
    }

    fn current(&self) -> *const c_void {
        self.ask("fake_current", ())
    }

    fn gpu_of(&self, address: u64) -> Option<i32> {
        let mut ordinal = -1;
        let get = unsafe {
            self.library.get::<unsafe extern "C" fn(*mut c_int, c_int, u64) -> c_int>(b"cuPointerGetAttribute").unwrap()
        };
        (unsafe { get(&mut ordinal, 9, address) } == 0).then_some(ordinal)
    }

    fn no_faults(&self) {
        assert_eq!(self.ask::<_, c_int>("fake_faults", ()), 0, "calls with the wrong context, or handles that are not");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.no_faults();
        for (kind, name) in KINDS.iter().enumerate() {
            assert_eq!((self.count(kind, 0), self.count(kind, 1)), (0, 0), "{name} left");
        }
    }
}

/// What stands for a cubin with the kernels of a launch.
fn cubin(launch: &Launch) -> Vec<u8> {
    let bytes = |arg: &Arg| match arg {
        Arg::Map(_) => "128",
        Arg::I32(_) | Arg::F32(_) => "4",
        _ => "8",
    };
    let line = |k: &jitune::recipe::KernelLaunch| {
        let sizes: Vec<&str> = k.args.iter().map(bytes).collect();
        format!("{} 0 {}\n", k.entry, sizes.join(" "))
    };
    let text: String = launch.kernels.iter().map(line).collect();
    code(&text)
}

fn code(text: &str) -> Vec<u8> {
    // The header of a cubin with one section, which is empty, at its beginning.
    let mut bytes = [0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 190;
    (bytes[58], bytes[60]) = (64, 1);
    [&bytes[..], text.as_bytes(), b"\0"].concat()
}

/// A winner of this template on GPU 0, with the config that `which` picks.
fn winner_of(template: &str, text: &str, which: impl Fn(&Launch) -> bool) -> (Winner, Launch) {
    let (p, device) = (make::problem(text), cuda::describe(0).unwrap());
    let recipe = &make::LIBRARY.get(Target::Cuda, template).unwrap().recipe;
    let all = jitune::space::enumerate(recipe, &p, &device).unwrap().candidates;
    let launch = |c: &jitune::recipe::Config| recipe.launch(&p, &device, c).unwrap();
    let config = all.into_iter().map(|c| c.config).find(|c| which(&launch(c))).unwrap();
    let launch = launch(&config);
    (make::winner(template, &p, &device, config, b""), launch)
}

fn sealed(mut winner: Winner, code: Vec<u8>) -> (Winner, Vec<u8>) {
    winner.artifact = blake3::hash(&code).to_hex().to_string();
    (winner, code)
}

const NORM: &str = "rmsnorm rows=4 cols=2048 dtype=bf16";
const PRODUCT: &str = "matmul m=256 n=512 k=1024 dtype=bf16";

fn winner(template: &str, text: &str) -> (Winner, Vec<u8>) {
    let (winner, launch) = winner_of(template, text, |_| true);
    sealed(winner, cubin(&launch))
}

/// A norm, and a product that takes tensor maps and a good deal of shared memory.
fn bundle() -> Bundle<'static> {
    Bundle::seal([winner("rmsnorm", NORM), winner("matmul_hopper", PRODUCT)]).unwrap()
}

fn ready(runtime: &Runtime, text: &str) -> (Arc<Kernel>, Vec<Memory>, Bound) {
    let kernel = runtime.lookup(&make::problem(text)).unwrap();
    let memory = runtime.allocate_all(kernel.problem()).unwrap();
    let bound = kernel.bind(&memory, runtime.workspace(&kernel).unwrap()).unwrap();
    (kernel, memory, bound)
}

/// Streams that share a workspace wait for each other, graphs that use it too; one stream alone waits for nothing.
#[test]
fn uses_of_a_workspace_follow_each_other() {
    let driver = driver();
    let text = "argmax rows=4 cols=128256 dtype=bf16";
    let (zeroed, launch) = winner_of("argmax", text, |launch| launch.workspace > 0 && launch.zero);
    let runtime = Runtime::cuda(&Bundle::seal([sealed(zeroed, cubin(&launch))]).unwrap(), 0).unwrap();
    let (kernel, memory, mut bound) = ready(&runtime, text);
    let [one, other] = [(); 2].map(|()| runtime.stream().unwrap());
    let waits = |work: &dyn Fn()| {
        let before = driver.synchronized();
        work();
        driver.synchronized() - before
    };
    let launched = |stream: &Stream| bound.launch(stream).unwrap();
    assert_eq!(waits(&|| launched(&one)) + waits(&|| launched(&one)), 0);
    assert_eq!((waits(&|| launched(&other)), waits(&|| launched(&other))), (1, 0));
    let graph = Graph::capture(&one, || bound.launch(&one)).unwrap();
    assert_eq!((waits(&|| graph.launch(&other).unwrap()), waits(&|| graph.launch(&one).unwrap())), (0, 1));
    assert_eq!((waits(&|| launched(&one)), waits(&|| launched(&other))), (0, 1));
    // A stream that is made where another was is another.
    drop(other);
    let new = runtime.stream().unwrap();
    assert_eq!(waits(&|| launched(&new)), 1);
    // One that is shared by clones is one; a graph is no part of another.
    let shared = kernel.bind(&memory, runtime.workspace(&kernel).unwrap()).unwrap();
    assert_eq!((waits(&|| shared.launch(&one).unwrap()), waits(&|| launched(&one))), (0, 1));
    assert!(Graph::capture(&one, || graph.launch(&one)).is_err());
    for (workspace, says) in [
        (View::from(runtime.workspace_of(1 << 20, false).unwrap()), "wants one of zeros"),
        (runtime.allocate(1 << 20).unwrap().into(), "made by Runtime::workspace"),
    ] {
        let refused = bound.set_workspace(workspace).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    bound.set_workspace(runtime.workspace_of(1 << 20, true).unwrap()).unwrap();
}

#[test]
fn two_runtimes_keep_to_their_gpus() {
    let driver = driver();
    let bundle = bundle();
    // The second opened is the one that a thread would be left with.
    let runtimes = [Runtime::cuda(&bundle, 0).unwrap(), Runtime::cuda(&bundle, 1).unwrap()];
    assert!(driver.current().is_null(), "opening leaves the thread as it was");
    for (ordinal, runtime) in runtimes.iter().enumerate() {
        let (kernel, memory, bound) = ready(runtime, NORM);
        let workspace = runtime.workspace(&kernel).unwrap();
        for address in memory.iter().map(Memory::address).chain([workspace.address()]) {
            assert_eq!(driver.gpu_of(address), Some(ordinal as i32));
        }
        let stream = runtime.stream().unwrap();
        bound.launch(&stream).unwrap();
        assert_eq!(driver.last().ordinal, ordinal as i32);
        stream.synchronize().unwrap();
        // SAFETY: null is the default stream of the kernel's context.
        bound.launch(unsafe { StreamRef::from_raw(std::ptr::null_mut()) }).unwrap();
        assert_eq!(driver.last().ordinal, ordinal as i32);
        let data = vec![ordinal as u8 + 1; memory[0].len() as usize];
        let mut back = vec![0; data.len()];
        memory[0].upload(&data).unwrap();
        memory[0].download(&mut back).unwrap();
        assert!(data == back);
        assert!(memory[0].upload(&vec![0; data.len() + 1]).is_err());
    }
    drop(runtimes);
}

#[test]
fn any_thread_may_use_and_drop_what_another_made_and_keeps_its_own_context() {
    let driver = driver();
    let bundle = bundle();
    let runtimes: Vec<Arc<Runtime>> = (0..2).map(|i| Arc::new(Runtime::cuda(&bundle, i).unwrap())).collect();
    std::thread::scope(|s| {
        for worker in 0..6 {
            let (driver, runtimes) = (&driver, &runtimes);
            s.spawn(move || {
                // A third of them have a context of somebody else's, a third that of a GPU, and the rest none.
                match worker % 3 {
                    0 => driver.ask::<_, ()>("fake_push_foreign", ()),
                    1 => runtimes[worker % 2].make_current().unwrap(),
                    _ => {}
                }
                let own = driver.current();
                for round in 0..50 {
                    let ordinal = (worker + round) % 2;
                    let runtime = &runtimes[ordinal];
                    let (_, memory, bound) = ready(runtime, if round % 3 == 0 { PRODUCT } else { NORM });
                    assert_eq!(driver.gpu_of(memory[0].address()), Some(ordinal as i32));
                    let stream = runtime.stream().unwrap();
                    let (start, end) = (Event::new(&stream).unwrap(), Event::new(&stream).unwrap());
                    start.record(&stream).unwrap();
                    bound.launch(&stream).unwrap();
                    let graph = Graph::capture(&stream, || bound.launch(&stream)).unwrap();
                    graph.launch(&stream).unwrap();
                    end.record(&stream).unwrap();
                    stream.synchronize().unwrap();
                    end.seconds_since(&start).unwrap();
                    memory[0].download(&mut [0; 16]).unwrap();
                    assert_eq!(driver.current(), own);
                    // Another thread, without a context, is where all of it ends.
                    std::thread::spawn(move || drop((graph, bound, memory, stream, start, end))).join().unwrap();
                }
                assert_eq!(driver.current(), own);
                if worker % 3 != 2 {
                    driver.ask::<_, ()>("fake_pop", ());
                }
            });
        }
    });
    driver.no_faults();
    // The last handle is what a context lives by.
    let (memory, stream) = (runtimes[1].allocate(64).unwrap(), runtimes[1].stream().unwrap());
    drop(runtimes);
    assert_eq!((driver.count(6, 0), driver.count(6, 1)), (0, 1));
    memory.upload(&[1; 64]).unwrap();
    drop(memory);
    stream.synchronize().unwrap();
}

#[test]
fn what_is_of_another_gpu_is_refused() {
    let driver = driver();
    let bundle = bundle();
    let runtimes = [Runtime::cuda(&bundle, 0).unwrap(), Runtime::cuda(&bundle, 1).unwrap()];
    let kernel = runtimes[0].lookup(&make::problem(NORM)).unwrap();
    let other = runtimes[1].allocate_all(kernel.problem()).unwrap();
    let e = kernel.bind(&other, View::none()).err().unwrap();
    assert!(matches!(e, RuntimeError::Target(BackendError::WrongGpu { kernel: 0, other: 1 })), "{e}");
    let (_, _, mut bound) = ready(&runtimes[0], NORM);
    assert!(matches!(bound.set_tensor(0, &other[0]), Err(BackendError::WrongGpu { .. })));
    let stream = runtimes[1].stream().unwrap();
    assert!(matches!(bound.launch(&stream), Err(BackendError::WrongGpu { kernel: 0, other: 1 })));
    assert!(matches!(bound.launch(Queue::Host), Err(BackendError::WrongQueue { .. })));
    let own = runtimes[0].stream().unwrap();
    let graph = Graph::capture(&own, || bound.launch(&own)).unwrap();
    assert!(matches!(graph.launch(&stream), Err(BackendError::WrongGpu { .. })));
    driver.no_faults();
    // Two runtimes on one GPU share its memory and its streams.
    let twin = Runtime::cuda(&bundle, 0).unwrap();
    let memory = twin.allocate_all(kernel.problem()).unwrap();
    kernel.bind(&memory, View::none()).unwrap().launch(&twin.stream().unwrap()).unwrap();
}

#[test]
fn a_capture_ends_and_frees_whatever_comes_of_it() {
    let driver = driver();
    let runtime = Runtime::cuda(&bundle(), 0).unwrap();
    let stream = runtime.stream().unwrap();
    let (_, memory, bound) = ready(&runtime, NORM);
    let is_free = || Graph::capture(&stream, || bound.launch(&stream)).unwrap().launch(&stream).unwrap();

    let failed: Result<Graph, RuntimeError> = Graph::capture(&stream, || {
        bound.launch(&stream)?;
        Ok(bound.launch(Queue::Host)?)
    });
    assert!(failed.is_err());
    is_free();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = Graph::capture(&stream, || -> Result<(), BackendError> { std::panic::resume_unwind(Box::new(())) });
    }));
    assert!(panicked.is_err());
    is_free();
    driver.fail("cuGraphInstantiateWithFlags");
    assert!(Graph::capture(&stream, || bound.launch(&stream)).is_err());
    is_free();
    // What would end a capture in the driver, on the thread that captures, does not.
    let (problem, held) = (make::problem(NORM), runtime.allocate(100).unwrap());
    let graph = Graph::capture(&stream, || -> Result<(), RuntimeError> {
        let memory = runtime.allocate_all(&problem)?;
        drop(held);
        // What has to wait for the GPU is refused, and the capture goes on.
        let refused = memory[0].upload(&[0; 4]).unwrap_err();
        assert!(refused.to_string().contains("captures a stream"), "{refused}");
        let other = runtime.lookup(&problem)?.bind(&memory, View::none())?;
        drop(memory);
        other.launch(&stream)?;
        Ok(Graph::capture(&stream, || other.launch(&stream)).map(drop).or_else(|e| match e {
            BackendError::Launch { .. } => Ok(()),
            other => Err(other),
        })?)
    });
    let graph = graph.unwrap();
    // The graph keeps the memory of what was launched into it, and its code.
    let with = driver.count(MEMORY, 0);
    let address = driver.last().values[0];
    assert_eq!(driver.gpu_of(address), Some(0));
    drop((bound, memory, runtime));
    graph.launch(&stream).unwrap();
    assert!(driver.gpu_of(address).is_some() && driver.count(0, 0) > 0 && with > 0);
    drop(graph);
    assert_eq!(driver.gpu_of(address), None);
}

#[test]
fn other_addresses_need_no_new_binding_and_functions_are_found_once() {
    let driver = driver();
    let runtime = Runtime::cuda(&bundle(), 0).unwrap();
    let stream = runtime.stream().unwrap();
    let found = driver.looked_up();
    for text in [NORM, PRODUCT] {
        let (kernel, memory, mut bound) = ready(&runtime, text);
        bound.launch(&stream).unwrap();
        let takes = |m: &Memory| driver.last().values.contains(&m.address());
        let others = runtime.allocate_all(kernel.problem()).unwrap();
        for (i, (before, after)) in memory.iter().zip(&others).enumerate() {
            bound.launch(&stream).unwrap();
            assert!(takes(before) && !takes(after), "tensor {i} of {text}");
            bound.set_tensor(i, after).unwrap();
            bound.launch(&stream).unwrap();
            assert!(!takes(before) && takes(after), "tensor {i} of {text}");
        }
        // What is refused leaves it as it was.
        let whole = runtime.allocate(others[0].len() + 16).unwrap();
        // SAFETY: it is refused for where it lies.
        let crooked = unsafe { View::from_raw(whole.address() + 8, others[0].len()) };
        let e = bound.set_tensor(0, crooked).unwrap_err().to_string();
        assert!(e.contains("no multiple of 16"), "{e}");
        bound.launch(&stream).unwrap();
        assert!(takes(&others[0]));
    }
    // Sizes that were not tuned need nothing of the module either.
    let (kernel, ..) = ready(&runtime, "rmsnorm rows=9 cols=2048 dtype=bf16");
    assert!(matches!(kernel.rung(), jitune::runtime::Match::Bucket { .. }));
    assert_eq!(driver.looked_up(), found);
}

#[test]
fn launches_of_one_module_with_different_shared_memory_both_run() {
    let driver = driver();
    let large = |l: &Launch| l.kernels[0].smem > 190 << 10;
    let small = |l: &Launch| (48 << 10..150 << 10).contains(&l.kernels[0].smem);
    let (a, launch) = winner_of("matmul_hopper", PRODUCT, large);
    let (b, other) = winner_of("matmul_hopper", "matmul m=512 n=512 k=1024 dtype=bf16", small);
    assert_eq!(launch.kernels[0].args.len(), other.kernels[0].args.len());
    let code = cubin(&launch);
    for order in [[a.clone(), b.clone()], [b, a]] {
        let problems = order.each_ref().map(|w| w.problem.to_string());
        let bundle = Bundle::seal(order.map(|w| sealed(w, code.clone()))).unwrap();
        let runtime = Runtime::cuda(&bundle, 0).unwrap();
        assert_eq!((driver.count(0, 0), runtime.problems().len()), (1, 2));
        let stream = runtime.stream().unwrap();
        let bound = problems.map(|text| ready(&runtime, &text).2);
        for b in bound.iter().chain(&bound) {
            b.launch(&stream).unwrap();
        }
    }
}

#[test]
fn what_the_driver_would_read_past_or_refuse_is_found_at_the_start() {
    let _driver = driver();
    let (norm, launch) = winner_of("rmsnorm", NORM, |_| true);
    let sound = cubin(&launch);
    let entry = launch.kernels[0].entry.as_str();
    let loads = |change: &dyn Fn(&mut Description), code: &[u8]| -> String {
        let mut w = norm.clone();
        change(&mut w.description);
        let bundle = match Bundle::seal([sealed(w, code.to_vec())]) {
            Ok(bundle) => bundle,
            Err(e) => return e.to_string(),
        };
        Runtime::cuda(&bundle, 0).err().map_or_else(|| "it loads".into(), |e| e.to_string())
    };
    let keep = |_: &mut Description| {};
    let text = |s: &str| ExprText(s.into());
    let crowded = code(&String::from_utf8_lossy(&sound[64..sound.len() - 1]).replacen(" 0 ", " 4096 ", 1));
    assert_eq!(loads(&keep, &sound), "it loads");
    for (what, said, part) in [
        ("no ELF file", loads(&keep, b"// PTX that never ends"), "no 64-bit"),
        (
            "a table of sections outside of it",
            loads(&keep, &{
                let mut c = sound.clone();
                c[41] = 0xff;
                c
            }),
            "cut off",
        ),
        ("no such kernel", loads(&keep, &code("another 0 8 8\n")), "has no kernel"),
        (
            "one argument more",
            loads(&keep, &code(&format!("{entry} 0 8 8 8 8 8 8 8 8 8 8 8 8\n"))),
            "takes arguments of",
        ),
        ("none", loads(&keep, &code(&format!("{entry} 0\n"))), "takes arguments of"),
        (
            "a hundred",
            loads(
                &|d| {
                    let args = &mut d.launches[0].args;
                    let last = args[args.len() - 1].clone();
                    args.resize(100, last);
                },
                &sound,
            ),
            "100 arguments, and 64 are the most",
        ),
        ("a grid too tall", loads(&|d| d.launches[0].grid[1] = text("65536"), &sound), "65536"),
        (
            "blocks without end",
            loads(&|d| d.launches[0].grid = [text("2147483647"), text("65535"), text("1")], &sound),
            "blocks for rmsnorm",
        ),
        ("a block too large", loads(&|d| d.launches[0].block = text("1025"), &sound), "blocks of 1025 threads"),
        ("crooked clusters", loads(&|d| d.launches[0].cluster = text("3"), &sound), "clusters of 3"),
        ("more shared memory than there is", loads(&|d| d.launches[0].smem = text("232449"), &sound), "shared memory"),
        ("static shared memory counts", loads(&|d| d.launches[0].smem = text("232000"), &crowded), "shared memory"),
    ] {
        assert!(said.contains(part), "{what}: {said}");
    }
}

#[test]
fn opening_that_fails_leaves_nothing() {
    let driver = driver();
    let bundle = bundle();
    for call in ["cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain"] {
        driver.fail(call);
        assert!(Runtime::cuda(&bundle, 1).is_err(), "{call}");
        assert_eq!(driver.count(6, 1), 0, "{call}");
    }
    let unfit = Bundle::seal([make::fake("rmsnorm", NORM, &cuda::describe(0).unwrap(), b"x")]).unwrap();
    assert!(Runtime::cuda(&unfit, 0).is_err());
    assert!(matches!(
        Runtime::cuda(&bundle, 2),
        Err(RuntimeError::Target(BackendError::NoGpu { ordinal: 2, count: 2 }))
    ));
    // Describing needs no context.
    let Device { cc, .. } = cuda::describe(1).unwrap();
    assert_eq!((cc, driver.count(6, 1)), (90, 0));
}

#[test]
fn sensors_are_those_of_the_gpu_that_cuda_means() {
    let _driver = driver();
    assert_eq!(cuda::gpu_uuid(1).unwrap(), "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f");
    let mhz = |ordinal| Sensors::open(ordinal).unwrap().mhz();
    assert_eq!((mhz(0), mhz(1)), (1000, 1001));
    assert!(Sensors::open(2).is_none());
}

#[test]
fn too_much_memory_is_an_error() {
    let driver = driver();
    let runtime = Runtime::cuda(&bundle(), 0).unwrap();
    let e = runtime.allocate(1 << 40).err().unwrap();
    assert!(matches!(e, RuntimeError::Target(BackendError::OutOfMemory { needed, .. }) if needed == 1 << 40));
    driver.no_faults();
}

/// The example for real GPUs, on these.
#[test]
fn the_example_finds_all_where_it_belongs() {
    let driver = driver();
    let Some(program) = make::example("two_gpus") else { return };
    let file = driver.folder.join("model.jitune");
    bundle().write(&file).unwrap();
    let run = |file: Option<&Path>| {
        let mut command = std::process::Command::new(&program);
        let out = command.args(file).arg("--handles-only").env("LD_LIBRARY_PATH", driver.folder).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (good, text) = run(Some(&file));
    assert!(good && text.contains("all landed where it belongs"), "{text}");
    // Without a bundle it compiles kernels of its own, which this driver does not know.
    if nvrtc::open().is_ok() {
        let (_, text) = run(None);
        assert!(text.contains("compiled 3 kernels"), "{text}");
    }
}

/// Handles go between threads.
#[test]
fn handles_are_send_and_sync() {
    fn both<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    both::<(Runtime, Kernel, Bound, Memory, View)>();
    both::<(Stream, Event)>();
    sent::<Graph>();
}
