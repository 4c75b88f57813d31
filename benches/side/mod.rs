//! What the programs here that measure side by side share: their options, winners, the read test, and statistics.

use jitune::backend::cpu::{Bound, Buffer, Executable, Module, Pool, cc};
use jitune::device::{Device, DeviceId};
use jitune::problem::Problem;
use jitune::recipe::{Arg, KernelLaunch, Launch};
use jitune::template::Library;
use jitune::tune::{self, Event, Observer, Options};
use jitune::winner::Winner;
use jitune_db::Db;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Most that one reading of the bandwidth goes through.
const READ_BYTES: usize = 256 << 20;

pub type Res<T> = Result<T, Box<dyn Error>>;

pub struct Args {
    pub db: Option<PathBuf>,
    pub out: Option<PathBuf>,
    pub budget: u64,
    pub trials: usize,
    pub seconds: f64,
    pub threads: Option<usize>,
}

/// The options of the program, whose tuner has so many seconds unless they say another number.
pub fn args(budget: u64) -> Res<Args> {
    let mut args = Args { db: None, out: None, budget, trials: 16, seconds: 4.0, threads: None };
    let mut list = std::env::args().skip(1);
    while let Some(word) = list.next() {
        let mut value = || list.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--db" => args.db = Some(value()?.into()),
            "--out" => args.out = Some(value()?.into()),
            "--budget" => args.budget = value()?.parse()?,
            "--trials" => args.trials = value()?.parse()?,
            "--seconds" => args.seconds = value()?.parse()?,
            "--threads" => args.threads = Some(value()?.parse()?),
            other => return Err(format!("{other} is not known").into()),
        }
    }
    Ok(args)
}

/// Prints winners as they come.
struct Lines;

impl Observer for Lines {
    fn event(&self, event: &Event) {
        if let Event::Won { winner, stored, .. } = event {
            let how = if *stored { "stored" } else { "tuned" };
            eprintln!("{how}: {} in {:.1} us", winner.problem, winner.evidence.median_us);
        }
    }
}

/// The winners of problems, tuned now where the database has none.
pub fn tuned(db: &Db, library: &Library, args: &Args, problems: &[Problem]) -> Res<Vec<Winner>> {
    let options = Options {
        devices: vec![DeviceId::Cpu(args.threads.unwrap_or(0))],
        budget: Some(Duration::from_secs(args.budget)),
        trials: Some(args.trials),
        ..Options::default()
    };
    let report = tune::run(db, library, problems, &options, &Lines, &AtomicBool::new(false))?;
    let missing =
        || report.failed().next().map_or("a problem has no winner".into(), |f| format!("{}: {}", f.problem, f.error));
    report
        .kinds
        .iter()
        .flat_map(|kind| kind.winners.iter().cloned())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| missing().into())
}

/// Reads memory as fast as this machine does, with the kernel that the tuner's own ceiling comes from.
pub struct Ceiling {
    module: Arc<Module>,
    threads: u32,
    from: Buffer,
    sink: Buffer,
}

/// A reading of so many bytes.
pub struct Reading {
    bound: Bound,
    bytes: usize,
}

impl Ceiling {
    pub fn new(library: &Library, device: &Device, folder: &Path) -> Res<Ceiling> {
        let (code, _) = cc::compile(&library.support(&"matmul m=1 n=1 k=1 dtype=f32".parse()?, device)?, folder)?;
        let threads = device.units;
        let (from, sink) = (Buffer::new(READ_BYTES)?, Buffer::new(64 * threads as usize)?);
        // SAFETY: the support code, compiled just now.
        Ok(Ceiling { module: unsafe { Module::load(&code) }?, threads, from, sink })
    }

    /// Reads as much as a round of the kernel that it is held against: on a busy machine, a longer one would be
    /// interrupted more often.
    pub fn reading(&self, bytes: usize) -> Res<Reading> {
        let bytes = bytes.min(READ_BYTES);
        let kernel = KernelLaunch {
            entry: "read_sum".into(),
            grid: [self.threads, 1, 1],
            block: self.threads,
            cluster: 1,
            smem: 0,
            pdl: false,
            args: vec![Arg::Tensor(0), Arg::I64(bytes as i64), Arg::Tensor(1)],
        };
        let launch = Launch { kernels: vec![kernel], workspace: 0, zero: false };
        let executable = Executable::new(&self.module, &launch, 2)?;
        // SAFETY: so many bytes are there, and 64 for each thread; a reading lives no longer than its ceiling.
        Ok(Reading { bound: unsafe { executable.bind(&[self.from.address(), self.sink.address()], 0) }?, bytes })
    }
}

impl Reading {
    pub fn bytes_per_s(&self, pool: &Pool) -> f64 {
        self.bytes as f64 / timed(|| self.bound.run(pool))
    }
}

pub fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

pub fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0
}

pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// How busy the machine is: figures of a shared one cannot be repeated.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_string()
}
