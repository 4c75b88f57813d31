//! Two runtimes on two GPUs in one process: allocations, launches and drops, from several threads, land where they belong.
//!
//! ```text
//! two_gpus [BUNDLE] [--handles-only]
//! ```
//! Takes the kernels of a bundle for these GPUs, or compiles some of its own where NVRTC is to be had. With fewer than two
//! GPUs it says `skipped: N GPUs` and ends with 0; with 1 when something landed elsewhere, leaked or is wrong, with 2 when it
//! cannot be tried. `--handles-only` looks at no results.

use cudarc::driver::sys;
use jitune::backend::BackendError;
use jitune::backend::cuda::{self, Graph, nvrtc};
use jitune::bundle::Bundle;
use jitune::device::Device;
use jitune::problem::{Inputs, Problem, Role, Storage, Tolerance, expected};
use jitune::recipe::Config;
use jitune::runtime::{Memory, Runtime, RuntimeError};
use jitune::space;
use jitune::template::{Library, Template};
use jitune::winner::{Evidence, Winner};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is compiled where no bundle is given.
const OWN: [&str; 3] = [
    "rmsnorm rows=64 cols=2048 dtype=bf16",
    "matmul m=256 n=512 k=1024 dtype=bf16",
    "matmul m=4 n=2048 k=2048 dtype=bf16",
];
/// Threads, and how often each goes through the GPUs.
const THREADS: usize = 4;
const ROUNDS: usize = 25;
/// Bytes that each round allocates and drops on another thread: what leaks is seen among other users of the GPU.
const LARGE: u64 = 64 << 20;
/// Bytes by which the free memory may differ between two looks.
const SLACK: u64 = 512 << 20;

fn main() -> ExitCode {
    let count = match cuda::gpu_count() {
        Ok(count) => count,
        Err(e) => {
            println!("skipped: 0 GPUs ({e})");
            return ExitCode::SUCCESS;
        }
    };
    if count < 2 {
        println!("skipped: {count} GPUs");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(faults) if faults.is_empty() => {
            println!("all landed where it belongs");
            ExitCode::SUCCESS
        }
        Ok(faults) => {
            faults.iter().for_each(|f| println!("WRONG: {f}"));
            ExitCode::from(1)
        }
        Err(e) => {
            eprintln!("two_gpus: {e}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Res<Vec<String>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let results = !args.iter().any(|a| a == "--handles-only");
    let bundle = match args.iter().find(|a| !a.starts_with("--")) {
        Some(path) => Bundle::open(path)?,
        None => own()?,
    };
    let mut faults = Vec::new();
    let before = current();
    // The second opened is the one that a thread without care would be left with.
    let runtimes = [Runtime::cuda(&bundle, 0)?, Runtime::cuda(&bundle, 1)?];
    if current() != before {
        faults.push("opening a GPU changed the thread's context".into());
    }
    for r in &runtimes {
        println!("{} ({}), {} kernels", r.device().name, r.device().arch, r.problems().len());
    }
    let problems: Vec<Problem> =
        runtimes[0].problems().filter(|p| usable(p) && runtimes[1].lookup(p).is_ok()).collect();
    let problems = &problems[..problems.len().min(6)];
    if problems.is_empty() {
        return Err("the bundle has no small problem without indices for both GPUs".into());
    }
    faults.extend(strangers(&runtimes, &problems[0])?);
    let free = [free(&runtimes[0])?, free(&runtimes[1])?];
    let found: Vec<Res<Vec<String>>> = std::thread::scope(|s| {
        let start = |i| {
            let runtimes = &runtimes;
            s.spawn(move || worker(i, runtimes, problems, results))
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    for list in found {
        faults.extend(list?);
    }
    for (i, r) in runtimes.iter().enumerate() {
        let now = self::free(r)?;
        println!("GPU {i}: {} MiB free before, {} MiB after", free[i] >> 20, now >> 20);
        if now + SLACK < free[i] {
            faults.push(format!("GPU {i} has {} MiB less than before", (free[i] - now) >> 20));
        }
    }
    println!("{THREADS} threads, {ROUNDS} rounds each over {} problems on both GPUs", problems.len());
    Ok(faults)
}

/// Small, and without indices, whose range would have to be promised.
fn usable(p: &Problem) -> bool {
    let tensors = p.tensors();
    let indices = tensors.iter().any(|t| t.storage == Storage::I32 && t.role == Role::In);
    !indices && tensors.iter().map(|t| t.bytes()).sum::<u64>() < 64 << 20
}

/// Winners that nobody tuned: of each problem the first template that has a config, and its first by cost.
fn own() -> Res<Bundle<'static>> {
    let library = Library::built_in()?;
    let mut parts: Vec<(Winner, Vec<u8>)> = Vec::new();
    let mut arches: Vec<String> = Vec::new();
    for device in [cuda::describe(0)?, cuda::describe(1)?] {
        if arches.contains(&device.arch) {
            continue;
        }
        for text in OWN {
            parts.push(compiled(&library, &text.parse()?, &device)?);
        }
        arches.push(device.arch);
    }
    println!("compiled {} kernels for {}", parts.len(), arches.join(" and "));
    Ok(Bundle::seal(parts)?)
}

fn compiled(library: &Library, problem: &Problem, device: &Device) -> Res<(Winner, Vec<u8>)> {
    // A template may take a problem and have no config for it on this device.
    let first = |template: Arc<Template>| -> Res<Option<(Arc<Template>, Config)>> {
        let all = space::enumerate(&template.recipe, problem, device)?.candidates;
        Ok(all.into_iter().next().map(|c| (template, c.config)))
    };
    let found = library.for_problem(problem, device)?.into_iter().find_map(|template| first(template).transpose());
    let (template, config) = found.ok_or_else(|| format!("no config for '{problem}'"))??;
    let (code, _) = nvrtc::compile(&library.render(&template, problem, device, &config)?)?;
    let evidence = Evidence { samples_us: vec![1.0], median_us: 1.0, ..Evidence::default() };
    let winner = Winner {
        problem: *problem,
        config,
        artifact: blake3::hash(&code).to_hex().to_string(),
        description: template.recipe.description.clone(),
        device: device.clone(),
        evidence,
    };
    Ok((winner, code))
}

/// What is of the other GPU is refused.
fn strangers(runtimes: &[Runtime; 2], problem: &Problem) -> Res<Vec<String>> {
    let mut faults = Vec::new();
    let kernel = runtimes[0].lookup(problem)?;
    let workspace = runtimes[0].workspace(&kernel)?;
    let wrong = |e: &RuntimeError| matches!(e, RuntimeError::Target(BackendError::WrongGpu { kernel: 0, other: 1 }));
    match kernel.bind(runtimes[1].allocate_all(problem)?, &workspace) {
        Err(e) if wrong(&e) => {}
        Err(e) => faults.push(format!("memory of GPU 1 is refused for another reason: {e}")),
        Ok(_) => faults.push("a kernel on GPU 0 is bound to memory of GPU 1".into()),
    }
    let bound = kernel.bind(runtimes[0].allocate_all(problem)?, &workspace)?;
    match bound.launch(&runtimes[1].stream()?) {
        Err(BackendError::WrongGpu { kernel: 0, other: 1 }) => {}
        Err(e) => faults.push(format!("a stream of GPU 1 is refused for another reason: {e}")),
        Ok(()) => faults.push("a kernel on GPU 0 is launched on a stream of GPU 1".into()),
    }
    Ok(faults)
}

/// One thread: a third of them begin with a context of their own, GPU 1's, which must stay.
fn worker(number: usize, runtimes: &[Runtime; 2], problems: &[Problem], results: bool) -> Res<Vec<String>> {
    let mut faults = Vec::new();
    if number % 3 == 1 {
        runtimes[1].make_current()?;
    }
    let own = current();
    for round in 0..ROUNDS {
        let ordinal = (number + round) % 2;
        let problem = &problems[(number + round / 2) % problems.len()];
        let runtime = &runtimes[ordinal];
        let kernel = runtime.lookup(problem)?;
        let (memory, workspace) = (runtime.allocate_all(problem)?, runtime.workspace(&kernel)?);
        let large = runtime.allocate(LARGE)?;
        for address in memory.iter().chain([&large]).map(Memory::address).chain([workspace.address()]) {
            if ordinal_of(address) != Some(ordinal) {
                faults.push(format!("memory for GPU {ordinal} lies on {:?}", ordinal_of(address)));
            }
        }
        let inputs = Inputs::new(problem, number as u64);
        fill(problem, &inputs, &memory)?;
        let bound = kernel.bind(&memory, &workspace)?;
        let stream = runtime.stream()?;
        bound.launch(&stream)?;
        stream.synchronize()?;
        fill(problem, &inputs, &memory)?;
        let graph = Graph::capture(&stream, || bound.launch(&stream))?;
        graph.launch(&stream)?;
        stream.synchronize()?;
        if results && let Some(why) = wrong(problem, &inputs, &memory)? {
            faults.push(format!("'{problem}' on GPU {ordinal}: {why}"));
        }
        if current() != own {
            faults.push(format!("thread {number} was left with another context"));
        }
        // A thread that never saw a GPU is where all of it ends; the last launch may still run.
        graph.launch(&stream)?;
        let end = std::thread::spawn(move || {
            drop((large, graph, bound, kernel, memory, workspace, stream));
            current().is_null()
        });
        if !end.join().unwrap_or(false) {
            faults.push("dropping left a context on a thread that had none".into());
        }
    }
    Ok(faults)
}

/// Uploads inputs, and poison for outputs.
fn fill(problem: &Problem, inputs: &Inputs, memory: &[Memory]) -> Res<()> {
    for (t, m) in problem.tensors().iter().zip(memory) {
        let mut bytes = vec![0xff; t.bytes() as usize];
        if let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) {
            input.write(0, &mut bytes);
        }
        m.upload(&bytes)?;
    }
    Ok(())
}

/// How a sample of the results differs from the f64 reference, if it does.
fn wrong(problem: &Problem, inputs: &Inputs, memory: &[Memory]) -> Res<Option<String>> {
    let sample = expected(problem, inputs, 1, 1 << 20);
    for (t, m) in problem.tensors().iter().zip(memory).filter(|(t, _)| t.role == Role::Out) {
        let mut bytes = vec![0; t.bytes() as usize];
        m.download(&mut bytes)?;
        let (mut errors, mut squares) = (0.0, 0.0);
        for e in sample.iter().filter(|e| e.tensor == t.name) {
            errors += e.error(t.storage, t.storage.value(&bytes, e.index)).powi(2);
            squares += e.value * e.value;
        }
        let rms = (errors / f64::max(squares, f64::MIN_POSITIVE)).sqrt();
        if rms > Tolerance::of_tensor(problem, t).rms {
            return Ok(Some(format!("{} is off by {rms:.1e}", t.name)));
        }
    }
    Ok(None)
}

/// The GPU of an address, as the driver says.
fn ordinal_of(address: u64) -> Option<usize> {
    let mut ordinal = -1i32;
    let which = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    // SAFETY: writes an integer; any address may be asked about.
    let code = unsafe { sys::cuPointerGetAttribute((&raw mut ordinal).cast(), which, address) };
    (code == sys::CUresult::CUDA_SUCCESS).then_some(ordinal as usize)
}

/// The calling thread's context.
fn current() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes a handle, once the driver is there.
    unsafe { sys::cuCtxGetCurrent(&mut context) };
    context
}

/// Free bytes of a runtime's GPU, asked on a thread of its own.
fn free(runtime: &Runtime) -> Res<u64> {
    std::thread::scope(|s| {
        let asked = s.spawn(|| {
            runtime.make_current()?;
            let (mut free, mut total) = (0, 0);
            // SAFETY: writes two sizes.
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
            Ok(free as u64)
        });
        asked.join().unwrap_or_else(|_| Err("a thread panicked".into()))
    })
}
