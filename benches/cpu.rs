//! The host's tuned f32 products against the `gemm` crate and against this machine's read bandwidth, side by side:
//! `cargo bench --bench cpu -- [--db FOLDER] [--out FILE] [--budget S] [--trials N] [--seconds S] [--threads N]`.
//!
//! Tunes the plain products of llama-3.2-1b at M = 1, 128, 512 and 2048, then runs winner and peer in one process on the
//! same inputs and threads, in turn, round by round. W, and with it x and y, rotates through four times the L3.
//! Prints medians, and ends with 1 when a geometric mean is under its bar. `--out` gets the raw samples, one JSON line a
//! shape.

mod side;

use gemm::Parallelism;
use jitune::backend::cpu::{self, Bound, Buffer, Executable, Module, Pool};
use jitune::device::{Device, Target};
use jitune::problem::{Inputs, Problem, Tolerance};
use jitune::template::Library;
use jitune::winner::Winner;
use jitune_db::{Db, OpenOptions};
use rayon::prelude::*;
use side::{Args, Ceiling, Res, args, geometric_mean, load, median, timed, tuned};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// The model's products as (name, N, K).
const PRODUCTS: [(&str, i64, i64); 4] =
    [("qkv", 3072, 2048), ("o", 2048, 2048), ("gate_up", 16384, 2048), ("down", 2048, 8192)];
const ROWS: [i64; 4] = [1, 128, 512, 2048];
/// The least geometric means over the shapes: of the speed of `gemm` for M >= 128, of the read bandwidth for M = 1.
const BAR_GEMM: f64 = 1.0;
const BAR_READ: f64 = 0.85;
/// Rounds of each shape; the time for a shape may end them early, but not before the least.
const ROUNDS: usize = 201;
const LEAST_ROUNDS: usize = 7;
/// What was measured, one entry a round: seconds a launch, and for M = 1 the bytes a second that memory gave.
#[derive(Default)]
struct Samples {
    ours: Vec<f64>,
    peer: Vec<f64>,
    read: Vec<f64>,
}

fn main() -> ExitCode {
    // The tuner's workers are this program.
    jitune::worker_main();
    match args(300).and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cpu: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Res<bool> {
    let temporary = tempfile::tempdir()?;
    let folder = args.db.clone().unwrap_or_else(|| temporary.path().join("db"));
    let mut out = args.out.as_ref().map(std::fs::File::create).transpose()?;
    let library = Library::built_in()?;
    let db = Db::open(&folder, OpenOptions::default())?;
    let text = |m: i64, n: i64, k: i64| format!("matmul m={m} n={n} k={k} dtype=f32");
    let shapes = ROWS.iter().flat_map(|&m| PRODUCTS.iter().map(move |&(_, n, k)| text(m, n, k)));
    let problems: Vec<Problem> = shapes.map(|t| t.parse()).collect::<Result<_, _>>()?;
    let winners = tuned(&db, &library, args, &problems)?;
    let device = cpu::describe(args.threads);
    let pool = Pool::new(device.units as usize)?;
    let ceiling = Ceiling::new(&library, &device, temporary.path())?;

    let before = load();
    println!("{}, {} threads; load before the first round: {before}\n", device.name, pool.threads());
    println!(
        "{:<8} {:>5} {:>10} {:>11} {:>10} {:>11} {:>6} {:>10} {:>6}  winner",
        "product", "m", "jitune us", "rate", "gemm us", "rate", "ratio", "read", "share"
    );
    let (mut against_gemm, mut of_read) = (Vec::new(), Vec::new());
    for (winner, name) in winners.iter().zip(names()) {
        let p = &winner.problem;
        let samples = Duel::new(&db, &library, winner, &device)?.run(&pool, &ceiling, args.seconds)?;
        let (ours, peer) = (median(&samples.ours), median(&samples.peer));
        let rate = |s: f64| match p.dim("m") {
            1 => format!("{:.1} GB/s", p.bytes() as f64 / s * 1e-9),
            _ => format!("{:.1} GF/s", p.flops() / s * 1e-9),
        };
        let (mut read, mut share) = (String::new(), String::new());
        if samples.read.is_empty() {
            against_gemm.push(peer / ours);
        } else {
            let ceiling = median(&samples.read);
            let reached = p.bytes() as f64 / ours / ceiling;
            of_read.push(reached);
            (read, share) = (format!("{:.1} GB/s", ceiling * 1e-9), format!("{:.0}%", reached * 100.0));
        }
        println!(
            "{name:<8} {:>5} {:>10.1} {:>11} {:>10.1} {:>11} {:>6.2} {read:>10} {share:>6}  {} {}",
            p.dim("m"),
            ours * 1e6,
            rate(ours),
            peer * 1e6,
            rate(peer),
            peer / ours,
            winner.template(),
            winner.config,
        );
        if let Some(file) = &mut out {
            let line = serde_json::json!({
                "at": jitune_db::now(), "cpu": device.name, "threads": pool.threads(), "load_before": before,
                "problem": p.to_string(), "template": winner.template(), "config": winner.config.to_string(),
                "jitune_s": samples.ours, "gemm_s": samples.peer, "read_bytes_per_s": samples.read,
            });
            writeln!(file, "{line}")?;
        }
    }
    let (gemm, read) = (geometric_mean(&against_gemm), geometric_mean(&of_read));
    let verdict = |met: bool| if met { "met" } else { "NOT MET" };
    println!("\nload after the last round: {}", load());
    println!(
        "M >= 128, speed over gemm's, geometric mean: {gemm:.3} (at least {BAR_GEMM}: {})",
        verdict(gemm >= BAR_GEMM)
    );
    println!(
        "M = 1, share of the read bandwidth, geometric mean: {read:.3} (at least {BAR_READ}: {})",
        verdict(read >= BAR_READ)
    );
    Ok(gemm >= BAR_GEMM && read >= BAR_READ)
}

fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|_| PRODUCTS.iter().map(|(name, ..)| *name))
}

/// One shape: a winner and its peer on the same memory.
struct Duel {
    problem: Problem,
    bound: Vec<Bound>,
    /// x, w and y of each set.
    sets: Vec<[Buffer; 3]>,
    _workspace: Buffer,
}

impl Duel {
    fn new(db: &Db, library: &Library, winner: &Winner, device: &Device) -> Res<Duel> {
        let problem = winner.problem;
        let template = library.get(Target::Cpu, winner.template()).ok_or("the winner's template is gone")?;
        let launch = template.recipe.launch(&problem, &winner.device, &winner.config)?;
        let code = db.artifact(&winner.artifact.parse()?)?.ok_or("the winner's code is gone")?;
        // SAFETY: code of the tuner's that won.
        let executable = Executable::new(&unsafe { Module::load(&code) }?, &launch, problem.tensors().len())?;
        let workspace = Buffer::zeroed(launch.workspace as usize)?;
        let count = (4 * device.l3.max(device.l2)).div_ceil(problem.bytes()).clamp(1, 16);
        let sets: Vec<[Buffer; 3]> = (0..count).map(|seed| set(&problem, seed)).collect::<Res<_>>()?;
        let bind = |set: &[Buffer; 3]| {
            let addresses: Vec<u64> = set.iter().map(Buffer::address).collect();
            // SAFETY: x, w and y of the problem, which live beside what is bound to them.
            unsafe { executable.bind(&addresses, workspace.address()) }
        };
        let bound = sets.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Duel { problem, bound, sets, _workspace: workspace })
    }

    /// Checks one against the other, then times them in turn.
    fn run(&mut self, pool: &Pool, ceiling: &Ceiling, seconds: f64) -> Res<Samples> {
        self.sets[0][2].bytes_mut().fill(0xff);
        self.ours(pool);
        let ours = floats(self.sets[0][2].bytes());
        self.sets[0][2].bytes_mut().fill(0xff);
        self.peer(pool.threads());
        let peer = floats(self.sets[0][2].bytes());
        let (mut errors, mut squares) = (0.0, 0.0);
        for (a, b) in ours.iter().zip(&peer) {
            errors += (f64::from(*a) - f64::from(*b)).powi(2);
            squares += f64::from(*b).powi(2);
        }
        let rms = (errors / squares).sqrt();
        // Two right results differ by at most what both may differ from the exact one.
        if rms.is_nan() || rms > 2.0 * Tolerance::of(&self.problem).rms {
            return Err(format!("{}: the two results differ by {rms:.1e}", self.problem).into());
        }
        let reading = ceiling.reading(self.problem.bytes() as usize * self.sets.len())?;
        let mut samples = Samples::default();
        let begun = Instant::now();
        let launches = self.sets.len() as f64;
        let enough = |rounds: usize| rounds >= LEAST_ROUNDS && begun.elapsed().as_secs_f64() > seconds;
        while samples.ours.len() < ROUNDS && !enough(samples.ours.len()) {
            // What follows the peer finds its threads still looking for work: kernel and reading do so by turns.
            let (reads, odd) = (self.problem.dim("m") == 1, samples.ours.len() % 2 == 1);
            if reads && odd {
                samples.read.push(reading.bytes_per_s(pool));
            }
            samples.ours.push(timed(|| self.ours(pool)) / launches);
            if reads && !odd {
                samples.read.push(reading.bytes_per_s(pool));
            }
            samples.peer.push(timed(|| self.peer(pool.threads())) / launches);
        }
        Ok(samples)
    }

    fn ours(&self, pool: &Pool) {
        self.bound.iter().for_each(|b| b.run(pool));
    }

    fn peer(&mut self, threads: usize) {
        let [m, n, k] = ["m", "n", "k"].map(|d| self.problem.dim(d) as usize);
        let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
        for [x, w, y] in &mut self.sets {
            let (x, w) = (x.address() as *const f32, w.address() as *const f32);
            let y = y.bytes_mut().as_mut_ptr().cast::<f32>();
            let (rows_y, rows) = (n as isize, k as isize);
            // SAFETY: row-major x [m, k] and y [m, n], and w [n, k] read as its transpose; all of the problem's sizes.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    y,
                    1,
                    rows_y,
                    false,
                    x,
                    1,
                    rows,
                    w,
                    rows,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    }
}

/// Memory for x, w and y; the inputs are the problem's own for that seed.
fn set(problem: &Problem, seed: u64) -> Res<[Buffer; 3]> {
    const EACH: usize = 1 << 18;
    let inputs = Inputs::new(problem, seed);
    let tensors = problem.tensors();
    let of = |name: &str| -> Res<Buffer> {
        let bytes = tensors.iter().find(|t| t.name == name).map_or(0, |t| t.bytes());
        let mut buffer = Buffer::new(bytes as usize)?;
        if let Some(input) = inputs.iter().find(|i| i.tensor.name == name) {
            let chunks = buffer.bytes_mut().par_chunks_mut(4 * EACH).enumerate();
            chunks.for_each(|(i, chunk)| input.write((i * EACH) as u64, chunk));
        }
        Ok(buffer)
    };
    Ok([of("x")?, of("w")?, of("y")?])
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
