//! Products of codes on this machine against what it reads and what it multiplies, side by side:
//! `cargo bench --bench codes -- [--db FOLDER] [--out FILE] [--budget S] [--trials N] [--seconds S] [--threads N]`.
//!
//! Tunes streams over scaled weights for M = 1 and 4, then runs each in turn with a reading of as many bytes; and products for M = 128
//! and 512 of tokens in f32 and of codes, in turn with the f32 winner of the shape and with a loop of nothing but products of
//! 8-bit integers in vectors; where there are tiles of AMX also the share of what these multiply. W, and with it all else, rotates
//! through four times the L3. Prints medians, and ends with 1 when a geometric mean is under its bar. `--out` gets the raw samples, one JSON line a problem.

mod side;

use jitune::backend::cpu::{self, Bound, Buffer, Executable, Module, Pool, cc};
use jitune::device::{Device, Target};
use jitune::problem::{Inputs, Problem};
use jitune::recipe::{Arg, KernelLaunch, Launch};
use jitune::source::{Language, Source};
use jitune::template::Library;
use jitune::winner::Winner;
use jitune_db::{Db, OpenOptions};
use rayon::prelude::*;
use side::{Args, Ceiling, Res, args, geometric_mean, load, median, timed, tuned};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Streams of 19 to 36 MB as (M, format, dtype).
const STREAMS: [(i64, &str, &str); 10] = [
    (1, "int4-g32", "f32"),
    (1, "int4m-g32", "f32"),
    (1, "int4-g128", "f32"),
    (1, "int8-g32", "f32"),
    (4, "int4-g32", "f32"),
    (4, "int4m-g32", "f32"),
    (4, "int8-g32", "f32"),
    (4, "int4-g32", "bf16"),
    (4, "int4m-g32", "bf16"),
    (4, "int8-g32", "bf16"),
];
/// Products of many tokens: the first is what the others are held against, the last that of codes by codes.
const PRODUCTS: [&str; 4] =
    ["", "w=int4m-g32 layout=lanes", "w=int8-g32 layout=lanes", "x=int8-row w=int8-row layout=lanes"];
const TOKENS: [i64; 2] = [128, 512];
/// The least geometric means: of the read bandwidth for M = 1 and 4, of the peak of integers and of the speed of f32 for codes by codes.
const BARS: [(&str, f64); 4] = [
    ("M = 1, share of the read test", 0.9),
    ("M = 4, share of the read test", 0.8),
    ("codes by codes, share of the peak of vectors", 0.6),
    ("codes by codes, speed over that of f32", 2.0),
];
const LEAST_ROUNDS: usize = 7;

/// Products of 8-bit integers in registers: 12 sums, so that none waits for itself.
const PEAK: &str = r"
#include <immintrin.h>
typedef union { void *p; long long i; double f; } jt_arg;
void peak_codes(const jt_arg *args, long task, long tasks) {
  __m512i s[12], x = _mm512_set1_epi32((int)task + 3), y = _mm512_set1_epi32((int)task + 5);
  for (int i = 0; i < 12; i++) s[i] = x;
  for (long long r = 0; r < args[0].i; r++)
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++)
#pragma GCC unroll 12
      for (int i = 0; i < 12; i++) s[i] = _mm512_dpbusd_epi32(s[i], x, y);
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) _mm512_storeu_si512((char *)args[1].p + 1024 * task + 64 * i, s[i]);
  (void)tasks;
}
";
const PEAK_ROUNDS: i64 = 20_000;
/// Operations of a round: 16 times 12 instructions of 64 products and as many sums.
const PEAK_EACH: f64 = 16.0 * 12.0 * 128.0;

fn main() -> ExitCode {
    // The tuner's workers are this program.
    jitune::worker_main();
    match args(900).and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("codes: {e}");
            ExitCode::from(2)
        }
    }
}

fn problems() -> Res<Vec<Problem>> {
    let streams = STREAMS.map(|(m, w, dtype)| format!("matmul m={m} n=16384 k=2048 dtype={dtype} w={w} layout=lanes"));
    let products =
        TOKENS.iter().flat_map(|m| PRODUCTS.map(|types| format!("matmul m={m} n=2048 k=2048 dtype=f32 {types}")));
    streams.into_iter().chain(products).map(|text| Ok(text.parse()?)).collect()
}

fn run(args: &Args) -> Res<bool> {
    let temporary = tempfile::tempdir()?;
    let folder = args.db.clone().unwrap_or_else(|| temporary.path().join("db"));
    let mut out = args.out.as_ref().map(std::fs::File::create).transpose()?;
    let library = Library::built_in()?;
    let db = Db::open(&folder, OpenOptions::default())?;
    let winners = tuned(&db, &library, args, &problems()?)?;
    let device = cpu::describe(args.threads);
    let pool = Pool::new(device.units as usize)?;
    let ceiling = Ceiling::new(&library, &device, temporary.path())?;
    let peak = Peak::new(&device, temporary.path())?;
    let before = load();
    println!("{}, {} threads; load before the first round: {before}\n", device.name, pool.threads());
    let mut save = |winner: &Winner, ours: &[f64], beside: &str, samples: &[f64]| -> Res<()> {
        if let Some(file) = &mut out {
            let line = serde_json::json!({
                "at": jitune_db::now(), "cpu": device.name, "threads": pool.threads(), "load_before": before,
                "problem": winner.problem.to_string(), "template": winner.template(), "config": winner.config.to_string(),
                "jitune_s": ours, beside: samples,
            });
            writeln!(file, "{line}")?;
        }
        Ok(())
    };
    let mut reached: [Vec<f64>; 4] = Default::default();

    println!("{:<44} {:>9} {:>10} {:>10} {:>6}  winner", "stream", "us", "GB/s", "read GB/s", "share");
    for winner in &winners[..STREAMS.len()] {
        let side = Side::new(&db, &library, winner, &device)?;
        let bytes = winner.problem.bytes() as f64;
        let reading = ceiling.reading(winner.problem.bytes() as usize * side.bound.len())?;
        let (mut ours, mut read) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        while ours.len() < LEAST_ROUNDS || begun.elapsed().as_secs_f64() < args.seconds {
            ours.push(side.seconds(&pool));
            read.push(reading.bytes_per_s(&pool));
        }
        let (us, rate, most) = (median(&ours) * 1e6, bytes / median(&ours), median(&read));
        reached[usize::from(winner.problem.dim("m") > 1)].push(rate / most);
        println!(
            "{:<44} {us:>9.1} {:>10.1} {:>10.1} {:>5.0}%  {} {}",
            short(winner),
            rate * 1e-9,
            most * 1e-9,
            rate / most * 100.0,
            winner.template(),
            winner.config
        );
        save(winner, &ours, "read_bytes_per_s", &read)?;
    }

    println!(
        "\n{:<44} {:>9} {:>10} {:>10} {:>6} {:>6} {:>6}  winner",
        "product", "us", "GOP/s", "VNNI peak", "share", "tiles", "/ f32"
    );
    for group in winners[STREAMS.len()..].chunks(PRODUCTS.len()) {
        let sides: Vec<Side> = group.iter().map(|w| Side::new(&db, &library, w, &device)).collect::<Res<_>>()?;
        let mut ours = vec![Vec::new(); sides.len()];
        let mut most = Vec::new();
        let begun = Instant::now();
        while most.len() < LEAST_ROUNDS || begun.elapsed().as_secs_f64() < args.seconds {
            sides.iter().zip(&mut ours).for_each(|(side, ours)| ours.push(side.seconds(&pool)));
            most.push(peak.per_s(&pool));
        }
        let first = median(&ours[0]);
        for (winner, ours) in group.iter().zip(&ours) {
            let (s, top) = (median(ours), median(&most));
            let rate = winner.problem.flops() / s;
            // Tiles of 8-bit integers hold twice as many products as those of bf16, which the tuner measured.
            let tiles = match winner.device.has_tiles() {
                true => format!("{:.0}%", rate / (2.0 * winner.device.ceilings.half) * 100.0),
                false => "-".into(),
            };
            println!(
                "{:<44} {:>9.1} {:>10.1} {:>10.1} {:>5.0}% {tiles:>6} {:>6.2}  {} {}",
                short(winner),
                s * 1e6,
                rate * 1e-9,
                top * 1e-9,
                rate / top * 100.0,
                first / s,
                winner.template(),
                winner.config
            );
            save(winner, ours, "peak_per_s", &most)?;
        }
        let last = median(ours.last().ok_or("no products")?);
        reached[2].push(group[0].problem.flops() / last / median(&most));
        reached[3].push(first / last);
    }

    println!("\nload after the last round: {}", load());
    let mut met = true;
    for ((what, bar), values) in BARS.iter().zip(&reached) {
        let mean = geometric_mean(values);
        met &= mean >= *bar;
        println!(
            "{what}, geometric mean: {mean:.3} (at least {bar}: {})",
            if mean >= *bar { "met" } else { "NOT MET" }
        );
    }
    Ok(met)
}

/// A problem without what all here share.
fn short(winner: &Winner) -> String {
    winner.problem.to_string().replace("matmul ", "").replace(" layout=lanes", "")
}

/// A winner, and as many sets of its tensors as the caches do not hold.
struct Side {
    bound: Vec<Bound>,
    _sets: Vec<Vec<Buffer>>,
    _workspace: Buffer,
}

impl Side {
    fn new(db: &Db, library: &Library, winner: &Winner, device: &Device) -> Res<Side> {
        let problem = winner.problem;
        let template = library.get(Target::Cpu, winner.template()).ok_or("the winner's template is gone")?;
        let launch = template.recipe.launch(&problem, &winner.device, &winner.config)?;
        let code = db.artifact(&winner.artifact.parse()?)?.ok_or("the winner's code is gone")?;
        // SAFETY: code of the tuner's that won.
        let executable = Executable::new(&unsafe { Module::load(&code) }?, &launch, problem.tensors().len())?;
        let workspace = Buffer::zeroed(launch.workspace as usize)?;
        let count = (4 * device.l3.max(device.l2)).div_ceil(problem.bytes()).clamp(1, 16);
        let sets: Vec<Vec<Buffer>> = (0..count).map(|seed| set(&problem, seed)).collect::<Res<_>>()?;
        let bind = |set: &Vec<Buffer>| {
            let addresses: Vec<u64> = set.iter().map(Buffer::address).collect();
            // SAFETY: the tensors of the problem, which live beside what is bound to them.
            unsafe { executable.bind(&addresses, workspace.address()) }
        };
        let bound = sets.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Side { bound, _sets: sets, _workspace: workspace })
    }

    /// Of a launch, over all sets.
    fn seconds(&self, pool: &Pool) -> f64 {
        timed(|| self.bound.iter().for_each(|b| b.run(pool))) / self.bound.len() as f64
    }
}

/// Memory for every tensor; the inputs are the problem's own for that seed.
fn set(problem: &Problem, seed: u64) -> Res<Vec<Buffer>> {
    const EACH: usize = 1 << 20;
    let inputs = Inputs::new(problem, seed);
    let mut list = Vec::new();
    for tensor in problem.tensors() {
        let mut buffer = Buffer::zeroed(tensor.bytes() as usize)?;
        if let Some(input) = inputs.iter().find(|i| i.tensor.name == tensor.name) {
            let elements = EACH as u64 * 8 / tensor.storage.bits();
            let chunks = buffer.bytes_mut().par_chunks_mut(EACH).enumerate();
            chunks.for_each(|(i, chunk)| input.write(i as u64 * elements, chunk));
        }
        list.push(buffer);
    }
    Ok(list)
}

/// Multiplies 8-bit integers as fast as this machine's vectors do.
struct Peak {
    bound: Bound,
    threads: f64,
    _sink: Buffer,
}

impl Peak {
    fn new(device: &Device, folder: &Path) -> Res<Peak> {
        let entries = vec!["peak_codes".to_string()];
        let arch = device.arch.clone();
        let source = Source { language: Language::C, text: PEAK.into(), arch, options: Vec::new(), entries };
        let (code, _) = cc::compile(&source, folder).map_err(|e| format!("the peak needs AVX-512 with VNNI: {e}"))?;
        let sink = Buffer::zeroed(1024 * device.units as usize)?;
        let kernel = KernelLaunch {
            entry: "peak_codes".into(),
            grid: [device.units, 1, 1],
            block: device.units,
            cluster: 1,
            smem: 0,
            pdl: false,
            args: vec![Arg::I64(PEAK_ROUNDS), Arg::Tensor(0)],
        };
        let launch = Launch { kernels: vec![kernel], workspace: 0, zero: false };
        // SAFETY: compiled just now.
        let executable = Executable::new(&unsafe { Module::load(&code) }?, &launch, 1)?;
        // SAFETY: 1024 bytes for each thread, which live beside what is bound to them.
        let bound = unsafe { executable.bind(&[sink.address()], 0) }?;
        Ok(Peak { bound, threads: f64::from(device.units), _sink: sink })
    }

    /// Operations a second.
    fn per_s(&self, pool: &Pool) -> f64 {
        self.threads * PEAK_ROUNDS as f64 * PEAK_EACH / timed(|| self.bound.run(pool))
    }
}
