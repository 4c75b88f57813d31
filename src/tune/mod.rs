//! Tuning: from problems to stored winners, on every device at hand at once.
//!
//! Owns the loop, the search, the statistics and the compile pool. The parent never touches a device: workers do.

mod ceilings;
mod error;
mod events;
mod measurer;
mod pool;
mod problem;
mod search;
mod statistics;
mod verdict;

pub use ceilings::ceilings;
pub use error::TuneError;
pub use events::{Event, Observer, Report};
pub use measurer::Spent;
pub use pool::Compiled;
pub use search::{Point, Search, Searcher};
pub use statistics::{noise, ties};
pub use verdict::Verdict;

use crate::backend::session::{Runnable, Setup};
use crate::device::{Device, Target};
use crate::key::Context;
use crate::problem::Problem;
use crate::recipe::Config;
use crate::template::{Library, Source, Template};
use crate::winner::Winner;
use crate::worker::Kind;
use jitune_db::{Db, Record};
use measurer::Measurer;
use pool::{NotCompiled, Pool};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How to tune.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that workers are started from.
    pub exe: PathBuf,
    /// The devices, one worker each.
    pub devices: Vec<Kind>,
    /// Wall time for all problems together.
    pub budget: Duration,
    /// Most candidates a problem.
    pub trials: usize,
    /// Stop a problem within this share of its roofline.
    pub near_roofline: f64,
    /// The strategy.
    pub search: Search,
    /// Compile workers; by default as many as cores but one, and memory, allow.
    pub compilers: Option<usize>,
    /// Seconds that one candidate may take beyond what is expected of it.
    pub patience: Duration,
    /// Tune again what is stored already.
    pub again: bool,
    /// Use the device's nominal ceilings in place of measured ones: rooflines are rough, and the start is quick.
    pub nominal: bool,
    /// Only look up what is stored.
    pub stored_only: bool,
}

pub(crate) struct Tuner<'a> {
    db: &'a Db,
    library: &'a Library,
    options: &'a Options,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    pool: Pool,
    scratch: PathBuf,
    seed: u64,
    compiler: String,
    memory: Mutex<Vec<(Problem, String, Config)>>,
}

/// Tunes `problems` and stores every winner as soon as it is known.
pub fn run(
    db: &Db,
    library: &Library,
    problems: &[Problem],
    options: &Options,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Report, TuneError> {
    let start = Instant::now();
    let target = if matches!(options.devices.first(), Some(Kind::Cuda(_))) { Target::Cuda } else { Target::Cpu };
    let compiler = crate::key::compiler(target)?;
    let scratch = scratch(db.path())?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let by_memory = (available_memory() / 2 / pool::WORKER_MEMORY).max(1) as usize;
    // One core is left to each measuring worker of a GPU; for the host's own processor the pool rests while it measures.
    let spare = if target == Target::Cuda { options.devices.len() } else { 0 };
    let compilers = options.compilers.unwrap_or_else(|| cores.saturating_sub(spare).max(1)).min(by_memory);
    let tuner = Tuner {
        db,
        library,
        options,
        observer,
        stop,
        pool: Pool::start(options.exe.clone(), scratch.path().to_path_buf(), compilers),
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
fn scratch(db: &Path) -> Result<Scratch, TuneError> {
    let root = db.join("scratch");
    let own = root.join(std::process::id().to_string());
    if root.exists() {
        std::fs::remove_dir_all(&root).map_err(|source| TuneError::Io { path: root, source })?;
    }
    std::fs::create_dir_all(&own).map_err(|source| TuneError::Io { path: own.clone(), source })?;
    Ok(Scratch(own))
}

struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is removed by the next run.
        let _ = std::fs::remove_dir_all(&self.0);
    }
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
        for &kind in &self.options.devices {
            measurers.push(Mutex::new(Measurer::start(self.options.exe.clone(), kind)?));
        }
        let lock = |m: &Mutex<Measurer>| m.lock().unwrap_or_else(PoisonError::into_inner).device().clone();
        // Devices of one kind share winners: each problem is tuned once a kind.
        let mut kinds: Vec<(Device, Vec<usize>)> = Vec::new();
        for (i, m) in measurers.iter().enumerate() {
            let device = lock(m);
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
                        winners.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(winner);
                        totals.lock().unwrap_or_else(PoisonError::into_inner).stored += 1;
                        stored += 1;
                    }
                    Ok(_) => todo.push(i),
                    Err(e) => {
                        self.tell(Event::Failed { index: i, problem: *p, error: e.to_string() });
                        totals.lock().unwrap_or_else(PoisonError::into_inner).failed.push((*p, e.to_string()));
                    }
                }
            }
            self.tell(Event::Plan { problems: problems.len(), stored });
            if todo.is_empty() || self.options.stored_only {
                totals.lock().unwrap_or_else(PoisonError::into_inner).devices.push(device.clone());
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
                            errors.lock().unwrap_or_else(PoisonError::into_inner).push(e);
                        }
                    });
                }
            });
            let failed = errors.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().next();
            if let Some(e) = failed {
                return Err(e);
            }
        }
        report.winners = winners.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.compiling = self.pool.spent();
        report.seconds = start.elapsed().as_secs_f64();
        report.interrupted = self.stopped();
        Ok(report)
    }

    fn remember_stored(&self, winner: &Winner) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut measurer = Measurer::start(self.options.exe.clone(), self.options.devices[member])?;
        if !self.options.nominal {
            let support = self.support(problems[todo[0]].dtype, measurer.device())?;
            measurer.ceilings(Some(support))?;
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
            let left = self.options.budget.saturating_sub(start.elapsed()).as_secs_f64();
            let share = share(&device, problems, &todo[at..]) * self.options.devices.len() as f64;
            // Never so little that nothing can be tried: the first candidate always runs.
            let budget = Duration::from_secs_f64((left * share.min(1.0)).max(0.2));
            match self.tune_problem(&problems[index], &mut measurer, budget, index) {
                Ok(winner) => {
                    self.tell(Event::Won { index, winner: Box::new(winner.clone()), stored: false });
                    winners.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(winner);
                }
                Err(TuneError::Interrupted) => break,
                // The next problem would meet the same.
                Err(TuneError::Device(f)) if f.is_of_the_machine() => return Err(TuneError::Device(f)),
                Err(e @ (TuneError::Sick(_) | TuneError::Db(_) | TuneError::Io { .. } | TuneError::Lost(_))) => {
                    return Err(e);
                }
                Err(e) => {
                    self.tell(Event::Failed { index, problem: problems[index], error: e.to_string() });
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.failed.push((problems[index], e.to_string()));
                }
            }
        }
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.spent.add(&measurer.spent);
        totals.devices.push(measurer.device().clone());
        Ok(())
    }

    /// Lets the pool compile the first candidates of the next problem while this one is measured.
    fn foresee(&self, problem: Option<&Problem>, device: &Device) {
        let Some(problem) = problem else { return };
        let Ok(templates) = self.templates(problem, device) else { return };
        if let Ok(source) = self.reference_source(problem, device) {
            self.pool.submit(&source.0, None);
        }
        let mut points = Vec::new();
        for (i, t) in templates.iter().enumerate() {
            if let Ok(space) = crate::space::enumerate(&t.recipe, problem, device) {
                let named =
                    space.candidates.into_iter().map(|c| Point { template: i, config: c.config, cost_us: c.cost_us });
                points.extend(named);
            }
        }
        let mut searcher = Searcher::new(points, self.options.search, self.options.trials, &[], self.seed);
        for p in searcher.next_batch() {
            if let Ok(source) = self.library.render(&templates[p.template], problem, device, &p.config) {
                self.pool.submit(&source, None);
            }
        }
    }

    fn compile_source(&self, what: &str, source: &Source) -> Result<Compiled, TuneError> {
        let (reply, outcome) = channel();
        self.pool.submit(source, Some((reply, 0)));
        match outcome.recv() {
            Ok((_, Ok(compiled))) => Ok(compiled),
            Ok((_, Err(NotCompiled::Broken(f)))) => Err(TuneError::Device(f)),
            Ok((_, Err(NotCompiled::Judged(verdict)))) => {
                Err(TuneError::Support { what: what.into(), why: format!("{verdict:?}") })
            }
            Err(_) => Err(TuneError::Interrupted),
        }
    }

    fn compile_now(
        &self,
        template: &Template,
        problem: &Problem,
        device: &Device,
        config: &Config,
    ) -> Result<Compiled, TuneError> {
        let source = self.library.render(template, problem, device, config)?;
        self.compile_source(template.name(), &source)
    }

    fn support(&self, dtype: crate::problem::Dtype, device: &Device) -> Result<(PathBuf, String), TuneError> {
        let source = self.library.support(dtype, device)?;
        self.compile_source("the support code", &source).map(|c| (c.path, c.hash))
    }

    fn reference_source(
        &self,
        problem: &Problem,
        device: &Device,
    ) -> Result<(Source, crate::recipe::Launch), TuneError> {
        let template = self.library.reference(problem, device)?;
        let none = Config::default();
        let source = self.library.render(&template, problem, device, &none)?;
        Ok((source, template.recipe.launch(problem, device, &none)?))
    }

    /// What a session needs for a problem; on the host's processor the reference is the host's own.
    fn setup(&self, problem: &Problem, device: &Device, seed: u64) -> Result<Setup, TuneError> {
        if device.target == Target::Cpu {
            return Ok(Setup { problem: *problem, seed, support: None, reference: None });
        }
        let support = self.support(problem.dtype, device)?;
        let (source, launch) = self.reference_source(problem, device)?;
        let compiled = self.compile_source("the reference", &source)?;
        let reference = Runnable { artifact: compiled.path, hash: compiled.hash, launch };
        Ok(Setup { problem: *problem, seed, support: Some(support), reference: Some(reference) })
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
