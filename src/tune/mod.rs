//! Tuning: from problems to stored winners, on every device at hand at once.
//!
//! Owns the loop, the search, the statistics and the compile pool. The parent never touches a device: workers do.

mod ceilings;
mod compilers;
mod error;
mod events;
mod measurer;
mod problem;
mod search;
mod statistics;
mod verdict;

pub use ceilings::ceilings;
pub use error::TuneError;
pub use events::{Compiling, Event, Failed, Observer, Report};
pub use measurer::Spent;
pub use search::{Point, Search, Searcher};
pub use statistics::{noise, ties};
pub use verdict::Verdict;

use crate::backend::BackendError;
use crate::bench::{self, Bench, Folder};
use crate::device::{Device, DeviceId, Target};
use crate::key::Context;
use crate::problem::Problem;
use crate::recipe::Config;
use crate::sync::{into_inner, lock};
use crate::template::{Library, Template};
use crate::winner::Winner;
use compilers::Compilers;
use jitune_db::{Db, Record};
use measurer::Measurer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How to tune.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that workers are started from, which calls [`worker_main`](crate::worker_main) first; by default the
    /// one that is running.
    pub exe: Option<PathBuf>,
    /// The devices, all of one target, one worker each; where none is named, the first GPU, or the host's processor where
    /// there is no GPU.
    pub devices: Vec<DeviceId>,
    /// Wall time for all problems together; by default [`default_budget`].
    pub budget: Option<Duration>,
    /// Most candidates a problem; by default 64 on GPUs and 16 on a processor.
    pub trials: Option<usize>,
    /// Stop a problem within this share of its roofline.
    pub near_roofline: f64,
    /// The strategy.
    pub search: Search,
    /// Compile workers; by default as many as cores but one, and memory, allow.
    pub compilers: Option<usize>,
    /// The time that one candidate may take beyond what is expected of it.
    pub patience: Duration,
    /// Tune again what is stored already.
    pub again: bool,
    /// Use the device's nominal ceilings in place of measured ones: rooflines are rough, and the start is quick.
    pub nominal: bool,
    /// Only look up what is stored.
    pub stored_only: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            exe: None,
            devices: Vec::new(),
            budget: None,
            trials: None,
            near_roofline: 0.03,
            search: Search::default(),
            compilers: None,
            patience: Duration::from_secs(5),
            again: false,
            nominal: false,
            stored_only: false,
        }
    }
}

impl Options {
    fn exe(&self) -> Result<PathBuf, TuneError> {
        let this = || std::env::current_exe().map_err(|source| TuneError::Io { path: "this program".into(), source });
        self.exe.clone().map_or_else(this, Ok)
    }

    fn devices(&self) -> Vec<DeviceId> {
        if !self.devices.is_empty() {
            return self.devices.clone();
        }
        let gpu = crate::backend::cuda::gpu_count().is_ok_and(|n| n > 0);
        vec![if gpu { DeviceId::Cuda(0) } else { DeviceId::Cpu(0) }]
    }
}

/// The wall time that a run has by default.
pub fn default_budget(target: Target) -> Duration {
    Duration::from_secs(if target == Target::Cuda { 225 } else { 150 })
}

pub(crate) struct Tuner<'a> {
    db: &'a Db,
    library: &'a Library,
    options: &'a Options,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    /// What the options say, or their defaults for this target.
    exe: PathBuf,
    devices: Vec<DeviceId>,
    budget: Duration,
    trials: usize,
    compilers: Compilers,
    scratch: PathBuf,
    seed: u64,
    compiler: String,
    memory: Mutex<Vec<(Problem, String, Config)>>,
}

/// Tunes `problems` and stores every winner as soon as it is known. `stop` ends it early: the report says so then.
pub fn run(
    db: &Db,
    library: &Library,
    problems: &[Problem],
    options: &Options,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Report, TuneError> {
    let start = Instant::now();
    let (exe, devices) = (options.exe()?, options.devices());
    let target = devices[0].target();
    let compiler = crate::key::compiler(target)?;
    let scratch = scratch(db.path())?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let by_memory = (available_memory() / 2 / compilers::WORKER_MEMORY).max(1) as usize;
    // One core is left to each measuring worker of a GPU; for the host's own processor the compilers rest while it
    // measures.
    let spare = if target == Target::Cuda { devices.len() } else { 0 };
    let compilers = options.compilers.unwrap_or_else(|| cores.saturating_sub(spare).max(1)).min(by_memory);
    let tuner = Tuner {
        db,
        library,
        options,
        observer,
        stop,
        budget: options.budget.unwrap_or_else(|| default_budget(target)),
        trials: options.trials.unwrap_or(if target == Target::Cuda { 64 } else { 16 }).max(1),
        compilers: Compilers::start(exe.clone(), scratch.path().to_path_buf(), compilers),
        exe,
        devices,
        scratch: scratch.path().to_path_buf(),
        seed: jitune_db::now(),
        compiler,
        memory: Mutex::default(),
    };
    let report = tuner.run_all(problems, start);
    drop(tuner);
    report
}

/// A folder for artifacts in the making, removed at the end; those of processes that died are removed now. The caller
/// holds the database's lock, so nobody else's is in use.
fn scratch(db: &Path) -> Result<Folder, TuneError> {
    let root = db.join("scratch");
    if root.exists() {
        std::fs::remove_dir_all(&root).map_err(|source| TuneError::Io { path: root.clone(), source })?;
    }
    Folder::at(root.join(std::process::id().to_string())).map_err(|e| match e {
        BackendError::Io { path, source } => TuneError::Io { path, source },
        other => TuneError::Target(other),
    })
}

fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemAvailable"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(4 << 30, |k| k << 10)
}

impl Tuner<'_> {
    fn tell(&self, event: Event) {
        self.observer.event(&event);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn context(&self, device: &Device) -> Context {
        Context { device: device.clone(), compiler: self.compiler.clone() }
    }

    fn templates(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TuneError> {
        Ok(self.library.for_problem(problem, device)?)
    }

    /// A candidate's deadline: far more than it can take, but little where that is little.
    fn deadline(&self, roofline_us: f64) -> Duration {
        self.options.patience + Duration::from_secs_f64(roofline_us * 1e-6 * 400.0)
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let system = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        BTreeMap::from([
            ("jitune".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("compiler".to_string(), self.compiler.clone()),
            ("kernel".to_string(), system.trim().to_string()),
        ])
    }

    fn run_all(&self, problems: &[Problem], start: Instant) -> Result<Report, TuneError> {
        let mut report = Report { winners: vec![None; problems.len()], ..Report::default() };
        // Describing a device is cheap and needs no measurement, so a second run over stored winners ends at once.
        let mut measurers = Vec::new();
        for &id in &self.devices {
            measurers.push(Mutex::new(Measurer::start(self.exe.clone(), id)?));
        }
        // Devices of one kind share winners: each problem is tuned once a kind.
        let mut kinds: Vec<(Device, Vec<usize>)> = Vec::new();
        for (i, m) in measurers.iter().enumerate() {
            let device = lock(m).device().clone();
            match kinds.iter_mut().find(|(d, _)| d.silicon == device.silicon && d.arch == device.arch) {
                Some((_, list)) => list.push(i),
                None => kinds.push((device, vec![i])),
            }
        }
        drop(measurers);
        let winners = Mutex::new(std::mem::take(&mut report.winners));
        let totals = Mutex::new(&mut report);
        for (device, members) in &kinds {
            let (mut todo, mut stored) = (Vec::new(), 0);
            for (i, p) in problems.iter().enumerate() {
                match self.stored(p, device) {
                    Ok(Some(winner)) if !self.options.again => {
                        self.remember_stored(&winner);
                        self.tell(Event::Won { index: i, winner: Box::new(winner.clone()), stored: true });
                        lock(&winners)[i] = Some(winner);
                        lock(&totals).stored += 1;
                        stored += 1;
                    }
                    Ok(_) => todo.push(i),
                    Err(e) => {
                        self.tell(Event::Failed { index: i, problem: *p, error: e.to_string() });
                        lock(&totals).failed.push(Failed { problem: *p, error: e.to_string() });
                    }
                }
            }
            self.tell(Event::Plan { problems: problems.len(), stored });
            if todo.is_empty() || self.options.stored_only {
                lock(&totals).devices.push(device.clone());
                continue;
            }
            let next = AtomicUsize::new(0);
            let errors: Mutex<Vec<TuneError>> = Mutex::default();
            std::thread::scope(|scope| {
                for &member in members {
                    let (next, todo, winners, totals, errors) = (&next, &todo, &winners, &totals, &errors);
                    scope.spawn(move || {
                        let done = self.device_thread(member, problems, todo, next, winners, totals, start);
                        if let Err(e) = done {
                            lock(errors).push(e);
                        }
                    });
                }
            });
            let failed = into_inner(errors).into_iter().next();
            if let Some(e) = failed {
                return Err(e);
            }
        }
        report.winners = into_inner(winners);
        report.compiling = self.compilers.spent();
        report.seconds = start.elapsed().as_secs_f64();
        report.interrupted = self.stopped();
        Ok(report)
    }

    fn remember_stored(&self, winner: &Winner) {
        let mut memory = lock(&self.memory);
        memory.push((winner.problem, winner.template().to_string(), winner.config.clone()));
    }

    /// One device's thread: its worker lives and dies here.
    #[allow(clippy::too_many_arguments)]
    fn device_thread(
        &self,
        member: usize,
        problems: &[Problem],
        todo: &[usize],
        next: &AtomicUsize,
        winners: &Mutex<Vec<Option<Winner>>>,
        totals: &Mutex<&mut Report>,
        start: Instant,
    ) -> Result<(), TuneError> {
        let mut measurer = Measurer::start(self.exe.clone(), self.devices[member])?;
        if !self.options.nominal {
            let support = self.bench().support(problems[todo[0]].dtype, measurer.device())?;
            measurer.ceilings(support)?;
        }
        let device = measurer.device().clone();
        self.tell(Event::Device { device: Box::new(device.clone()) });
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&index) = todo.get(at) else { break };
            if self.stopped() {
                break;
            }
            if device.target == Target::Cuda {
                self.foresee(todo.get(at + 1).map(|&i| &problems[i]), &device);
            }
            let left = self.budget.saturating_sub(start.elapsed()).as_secs_f64();
            let share = share(&device, problems, &todo[at..]) * self.devices.len() as f64;
            // Never so little that nothing can be tried: the first candidate always runs.
            let budget = Duration::from_secs_f64((left * share.min(1.0)).max(0.2));
            match self.tune_problem(&problems[index], &mut measurer, budget, index) {
                Ok(winner) => {
                    self.tell(Event::Won { index, winner: Box::new(winner.clone()), stored: false });
                    lock(winners)[index] = Some(winner);
                }
                Err(TuneError::Interrupted) => break,
                // The next problem would meet the same.
                Err(TuneError::Device(f)) if f.is_of_the_machine() => return Err(TuneError::Device(f)),
                Err(e @ (TuneError::Sick(_) | TuneError::Db(_) | TuneError::Io { .. } | TuneError::Lost(_))) => {
                    return Err(e);
                }
                Err(e) => {
                    self.tell(Event::Failed { index, problem: problems[index], error: e.to_string() });
                    let mut totals = lock(totals);
                    totals.failed.push(Failed { problem: problems[index], error: e.to_string() });
                }
            }
        }
        let mut totals = lock(totals);
        totals.spent.add(&measurer.spent);
        totals.devices.push(measurer.device().clone());
        Ok(())
    }

    /// Lets the pool compile the first candidates of the next problem while this one is measured.
    fn foresee(&self, problem: Option<&Problem>, device: &Device) {
        let Some(problem) = problem else { return };
        let Ok(templates) = self.templates(problem, device) else { return };
        if let Ok((source, _)) = bench::reference(self.library, problem, device) {
            self.compilers.submit(&source, None);
        }
        let mut points = Vec::new();
        for (i, t) in templates.iter().enumerate() {
            if let Ok(space) = crate::space::enumerate(&t.recipe, problem, device) {
                let named =
                    space.candidates.into_iter().map(|c| Point { template: i, config: c.config, cost_us: c.cost_us });
                points.extend(named);
            }
        }
        let mut searcher = Searcher::new(points, self.options.search, self.trials, &[], self.seed);
        for p in searcher.next_batch() {
            if let Ok(source) = self.library.render(&templates[p.template], problem, device, &p.config) {
                self.compilers.submit(&source, None);
            }
        }
    }

    fn bench(&self) -> Bench<'_, Compilers> {
        Bench::new(self.library, &self.compilers)
    }
}

/// The share of the remaining time that the first of the remaining problems gets: by what it costs to try it, which is
/// a constant and a number of runs.
fn share(device: &Device, problems: &[Problem], rest: &[usize]) -> f64 {
    let weight = |p: &Problem| 1.0 + device.roofline(p).0 * if device.target == Target::Cpu { 12.0 } else { 400.0 };
    let all: f64 = rest.iter().map(|&i| weight(&problems[i])).sum();
    rest.first().map_or(1.0, |&i| weight(&problems[i]) / all)
}

/// A record of a winner as it stands in a journal.
pub fn winner_of(record: &Record) -> Option<Winner> {
    serde_json::from_value(record.body.clone()).ok()
}
