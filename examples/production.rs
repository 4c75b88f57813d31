//! What a production process does with a bundle: load it with the driver alone, look problems up by typed key, launch
//! them on a stream of its own and inside a graph capture of its own, and check what came out.
//!
//! ```text
//! production BUNDLE [PROBLEM…] [--device cpu|cuda[:N]] [--threads N] [--all]
//! ```
//! Without problems it takes a sample of each op of the bundle; then a shape that was never tuned, answered by the
//! a tuned bucket near it, and one that nothing serves. Exits with 0 when all is right, 1 when a result is wrong, 2 when
//! the bundle or the device cannot be used or nothing serves an asked problem. Built with `--no-default-features --features runtime`: no compiler, no
//! NVRTC, no database.

use jitune::backend::cuda;
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::problem::{Dtype, Expected, Inputs, Problem, Role, Tensor, Tolerance, expected};
use jitune::runtime::{Bound, Kernel, Match, Memory, Queue, Runtime, RuntimeError};
use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

/// Input values that the reference of one problem may read on the host; larger ones are checked by a sample.
const REFERENCE_BUDGET: u64 = 20 << 20;
/// Problems of each op in the sample.
const EACH_OP: usize = 3;
/// Launches that are timed.
const LAUNCHES: usize = 20;
/// Launches that are captured into one graph.
const IN_GRAPH: usize = 3;
/// Look-ups of one timed round, and rounds.
const LOOK_UPS: u32 = 10_000;
const LOOK_UP_ROUNDS: u32 = 20;

struct Args {
    bundle: String,
    problems: Vec<Problem>,
    device: Option<Target>,
    ordinal: usize,
    threads: Option<usize>,
    all: bool,
}

fn main() -> ExitCode {
    match args().and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("production: {e}");
            ExitCode::from(2)
        }
    }
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut args =
        Args { bundle: String::new(), problems: Vec::new(), device: None, ordinal: 0, threads: None, all: false };
    let mut list = std::env::args().skip(1);
    while let Some(word) = list.next() {
        let mut value = |name: &str| list.next().ok_or(format!("{name} needs a value"));
        match word.as_str() {
            "--device" => {
                let text = value("--device")?;
                let (name, ordinal) = text.split_once(':').unwrap_or((&text, "0"));
                args.ordinal = ordinal.parse()?;
                args.device = Some(match name {
                    "cpu" => Target::Cpu,
                    "cuda" => Target::Cuda,
                    other => return Err(format!("--device takes cpu or cuda, not '{other}'").into()),
                });
            }
            "--threads" => args.threads = Some(value("--threads")?.parse()?),
            "--all" => args.all = true,
            _ if args.bundle.is_empty() => args.bundle = word,
            _ => args.problems.push(word.parse()?),
        }
    }
    if args.bundle.is_empty() {
        return Err("usage: production BUNDLE [PROBLEM…] [--device cpu|cuda[:N]] [--threads N] [--all]".into());
    }
    Ok(args)
}

/// The device: as asked, else the GPU where the bundle and the machine have one, else the CPU.
fn open(bundle: &Bundle<'_>, args: &Args) -> Result<Runtime, RuntimeError> {
    let has_cuda = bundle.arches().iter().any(|(target, _)| *target == Target::Cuda);
    let here = || cuda::gpu_count().is_ok_and(|n| n > args.ordinal);
    match args.device {
        Some(Target::Cuda) => Runtime::cuda(bundle, args.ordinal),
        None if has_cuda && here() => Runtime::cuda(bundle, args.ordinal),
        _ => Runtime::cpu(bundle, args.threads),
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let bundle = Bundle::open(&args.bundle)?;
    let read = start.elapsed();
    let runtime = open(&bundle, args)?;
    println!(
        "{}: {} winners, {} bytes, sealed by jitune {}; read and checked in {:.1} ms, {} loaded for {} ({}) in {:.1} ms",
        args.bundle,
        bundle.len(),
        bundle.as_bytes().len(),
        bundle.sealed_by(),
        read.as_secs_f64() * 1e3,
        runtime.problems().len(),
        runtime.device().name,
        runtime.device().arch,
        (start.elapsed() - read).as_secs_f64() * 1e3,
    );
    for refusal in runtime.skipped().iter().take(3) {
        println!("  not for this device: {refusal}");
    }
    let asked = if args.problems.is_empty() { sample(&runtime, args.all) } else { args.problems.clone() };
    let untuned = if args.problems.is_empty() { untuned(&runtime) } else { None };
    println!(
        "\n{:<74} {:<7} {:<18} {:>9} {:>10} {:>10} {:>8}",
        "problem", "rung", "template", "error rms", "median µs", "tuned µs", "look-up"
    );
    let mut right = true;
    for problem in asked.iter().chain(&untuned) {
        right &= row(&runtime, problem)?;
    }
    match refused(&runtime) {
        Some((problem, e)) => println!("\nrefused as it must be, '{problem}':\n  {e}"),
        None => {
            right = false;
            println!("\nWRONG: a problem that nothing was tuned for got a kernel");
        }
    }
    println!("\n{}", if right { "all results are right" } else { "SOME RESULTS ARE WRONG" });
    Ok(right)
}

/// The first, the middle and the last problem of each op.
fn sample(runtime: &Runtime, all: bool) -> Vec<Problem> {
    let problems: Vec<Problem> = runtime.problems().collect();
    if all {
        return problems;
    }
    let mut ops: Vec<&str> = problems.iter().map(|p| p.op().name).collect();
    ops.dedup();
    let of = |op: &str| {
        let mine: Vec<Problem> = problems.iter().filter(|p| p.op().name == op).copied().collect();
        let mut picked: Vec<Problem> = (0..EACH_OP).map(|i| mine[i * (mine.len() - 1) / (EACH_OP - 1)]).collect();
        picked.dedup();
        picked
    };
    ops.into_iter().flat_map(of).collect()
}

/// A shape that was never tuned, with 7 of what a tuned one has 4 or another number of, that some bucket serves.
fn untuned(runtime: &Runtime) -> Option<Problem> {
    let change = |p: Problem| {
        ["m", "rows", "tokens", "batch", "q"].into_iter().find_map(|dim| {
            let other = p.with(&[(dim, 7)]).ok()?;
            let kernel = runtime.lookup(&other).ok()?;
            matches!(kernel.rung(), Match::Bucket { .. }).then_some(other)
        })
    };
    runtime.problems().find_map(change)
}

/// A problem that nobody tuned and no bucket may serve: another width of the weights, or another dtype. The typed error
/// says what is near.
fn refused(runtime: &Runtime) -> Option<(Problem, RuntimeError)> {
    let refuse = |other: Problem| runtime.lookup(&other).err().map(|e| (other, e));
    let wider = |p: Problem| {
        ["k", "cols", "head_dim", "hidden"]
            .into_iter()
            .find_map(|dim| p.has(dim).then(|| p.with(&[(dim, p.dim(dim) + 8)]).ok()).flatten().and_then(refuse))
    };
    let other_dtype = |p: Problem| Dtype::ALL.into_iter().find_map(|dtype| p.with_types(dtype).ok().and_then(refuse));
    runtime.problems().find_map(wider).or_else(|| runtime.problems().find_map(other_dtype))
}

/// Runs one problem, checks it and prints its row; false where a result is wrong.
fn row(runtime: &Runtime, problem: &Problem) -> Result<bool, Box<dyn Error>> {
    let kernel = runtime.lookup(problem)?;
    let look_up = look_up_ns(runtime, problem)?;

    let inputs = Inputs::new(problem, 11);
    let memory = runtime.allocate_all(problem)?;
    fill(problem, &inputs, &memory)?;
    // SAFETY: the indices among the inputs (ids, slots, pages, lengths) are within their range, and stay as they are.
    let views = memory.iter().map(|m| unsafe { m.view().assume_in_range() });
    let bound = kernel.bind(views, &runtime.workspace(&kernel)?)?;
    let expected = expected(problem, &inputs, 11, REFERENCE_BUDGET);
    let (us, mut checks) = match runtime.target() {
        Target::Cpu => on_host(&bound)?,
        Target::Cuda => on_stream(&runtime.stream()?, &bound, || poison(problem, &memory))?,
    };
    checks.push("launches");
    let (rms, right) = compare(problem, &expected, &memory)?;
    println!(
        "{:<74} {:<7} {:<18} {rms:>9.1e} {us:>10.2} {:>10.2} {:>5.0} ns{}",
        problem.to_string(),
        rung(&kernel),
        kernel.template(),
        kernel.tuned_us(),
        look_up,
        if right { String::new() } else { format!("  WRONG after {}", checks.join(" and ")) },
    );
    if let Match::Bucket { tuned } = kernel.rung() {
        println!("  answered by the kernel of '{tuned}'");
    }
    Ok(right)
}

/// Nanoseconds of one look-up: the best of some rounds, since only the machine's other work makes one longer.
fn look_up_ns(runtime: &Runtime, problem: &Problem) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..LOOK_UP_ROUNDS {
        let start = Instant::now();
        for _ in 0..LOOK_UPS {
            black_box(runtime.lookup(black_box(problem))?);
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(LOOK_UPS));
    }
    Ok(best)
}

fn rung(kernel: &Kernel) -> &'static str {
    match kernel.rung() {
        Match::Exact => "exact",
        Match::Bucket { .. } => "bucket",
    }
}

/// The median microseconds of some launches on the runtime's pool.
fn on_host(bound: &Bound) -> Result<(f64, Vec<&'static str>), Box<dyn Error>> {
    let mut us = Vec::new();
    for _ in 0..LAUNCHES {
        let start = Instant::now();
        bound.launch(Queue::Host)?;
        us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok((median(us), Vec::new()))
}

/// The median microseconds of some launches on a stream; then, on poisoned outputs, the same launch captured into a
/// graph and replayed, so that what is checked came out of the graph.
fn on_stream(
    stream: &cuda::Stream,
    bound: &Bound,
    poison: impl FnOnce() -> Result<(), Box<dyn Error>>,
) -> Result<(f64, Vec<&'static str>), Box<dyn Error>> {
    let mut us = Vec::new();
    for _ in 0..LAUNCHES {
        let (start, end) = (cuda::Event::new(stream)?, cuda::Event::new(stream)?);
        start.record(stream)?;
        bound.launch(stream)?;
        end.record(stream)?;
        stream.synchronize()?;
        us.push(end.seconds_since(&start)? * 1e6);
    }
    poison()?;
    let graph = cuda::Graph::capture(stream, || (0..IN_GRAPH).try_for_each(|_| bound.launch(stream)))?;
    graph.launch(stream)?;
    stream.synchronize()?;
    Ok((median(us), vec!["a graph of"]))
}

fn median(mut us: Vec<f64>) -> f64 {
    us.sort_by(f64::total_cmp);
    us[us.len() / 2]
}

/// Uploads the inputs, and poison for the outputs.
fn fill(problem: &Problem, inputs: &Inputs, memory: &[Memory]) -> Result<(), Box<dyn Error>> {
    for (t, m) in problem.tensors().iter().zip(memory) {
        if let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) {
            let mut bytes = vec![0; t.bytes() as usize];
            input.write(0, &mut bytes);
            m.upload(&bytes)?;
        }
    }
    poison(problem, memory)
}

fn poison(problem: &Problem, memory: &[Memory]) -> Result<(), Box<dyn Error>> {
    for (t, m) in problem.tensors().iter().zip(memory) {
        if t.role == Role::Out {
            m.upload(&vec![0xff; t.bytes() as usize])?;
        }
    }
    Ok(())
}

/// The root mean square error over that of the reference, of the worst output tensor, and whether each is within its limits.
fn compare(problem: &Problem, expected: &[Expected], memory: &[Memory]) -> Result<(f64, bool), Box<dyn Error>> {
    let (mut worst, mut right) = (0f64, true);
    for (t, m) in problem.tensors().iter().zip(memory) {
        if t.role != Role::Out {
            continue;
        }
        let mut bytes = vec![0; t.bytes() as usize];
        m.download(&mut bytes)?;
        let (mut errors, mut squares) = (0.0, 0.0);
        for e in expected.iter().filter(|e| e.tensor == t.name) {
            errors += e.error(t.storage, value(t, &bytes, e.index)).powi(2);
            squares += e.value * e.value;
        }
        let rms = (errors / f64::max(squares, f64::MIN_POSITIVE)).sqrt();
        (worst, right) = (worst.max(rms), right && rms <= Tolerance::of_tensor(problem, t).rms);
    }
    Ok((worst, right))
}

fn value(t: &Tensor, bytes: &[u8], index: u64) -> f64 {
    t.storage.value(bytes, index)
}
