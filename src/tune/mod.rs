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

pub use ceilings::ceilings;
pub use error::TuneError;
pub use events::{Compiling, Event, Failed, Observer, OfKind, Report};
pub use measurer::Spent;
pub use search::{Point, Search, Searcher};
pub use statistics::{noise, ties};

use crate::backend::BackendError;
use crate::bench::{self, Bench, Folder};
use crate::device::{Device, DeviceId, Target};
use crate::journal;
use crate::key::Context;
use crate::problem::{DimDef, Part, Problem};
use crate::recipe::Config;
use crate::space;
use crate::sync::{into_inner, lock};
use crate::template::{Library, Template};
use crate::winner::Winner;
use compilers::Compilers;
use jitune_db::Db;
use measurer::Measurer;
use problem::Tuning;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The least time of a run whose ceilings are measured: in less it is better spent on candidates.
const MEASURED_FROM: Duration = Duration::from_secs(30);
/// How often whoever waits looks whether it still should.
const LOOK: Duration = Duration::from_millis(50);
/// How long after the end of the time a run may take to bring in what is at hand, and how long after it was told to stop.
const GRACE: Duration = Duration::from_millis(2300);
const GRACE_TO_STOP: Duration = Duration::from_millis(1300);
/// How many times its roofline a candidate may take beyond the patience.
const PATIENT_ROOFLINES: f64 = 400.0;
/// About how many launches trying a problem comes to: a GPU's rounds hold many, a processor's few.
const LAUNCHES: Launches = Launches { cuda: 400.0, cpu: 12.0 };
/// Configs of neighbours that are tried first.
const REMEMBERED: usize = 4;
/// The best of each neighbour that a narrow search tries.
const OF_A_NEIGHBOUR: usize = 16;

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
    /// Those of the problems that are searched only among what was best for their neighbours, which are others of the
    /// problems that differ from them in one size: code that has been compiled.
    pub narrow: Vec<Problem>,
    /// Only look up what is stored.
    pub stored_only: bool,
    /// Seed of the search and of the inputs: with the same one two runs try the same.
    pub seed: u64,
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
            narrow: Vec::new(),
            stored_only: false,
            seed: 1,
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
    start: Instant,
    /// Set once everything is to end at once.
    halt: Arc<AtomicBool>,
    compiler: String,
    /// What won so far, the latest last.
    memory: Mutex<Vec<Remembered>>,
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
    let halt = Arc::new(AtomicBool::new(false));
    let tuner = Tuner {
        db,
        library,
        options,
        observer,
        stop,
        budget: options.budget.unwrap_or_else(|| default_budget(target)),
        trials: options.trials.unwrap_or(if target == Target::Cuda { 64 } else { 16 }).max(1),
        compilers: Compilers::start(exe.clone(), scratch.path().to_path_buf(), compilers, halt.clone())?,
        exe,
        devices,
        start,
        halt,
        compiler,
        memory: Mutex::default(),
    };
    let done = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let watch = std::thread::Builder::new().spawn_scoped(scope, || tuner.watch(&done));
        watch.map_err(|e| BackendError::Threads { asked: 1, why: e.to_string() })?;
        let report = tuner.run_all(problems);
        done.store(true, Ordering::Relaxed);
        report
    });
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

    /// Whether the time of all problems together is up.
    fn time_is_up(&self) -> bool {
        self.left().is_zero()
    }

    /// What is left of it.
    fn left(&self) -> Duration {
        self.budget.saturating_sub(self.start.elapsed())
    }

    /// Whether the device's ceilings are measured.
    fn measures_ceilings(&self) -> bool {
        !self.options.nominal && self.budget >= MEASURED_FROM
    }

    /// Ends everything that still runs a moment after the time is up, or after the run was told to stop.
    fn watch(&self, done: &AtomicBool) {
        let mut stopped: Option<Instant> = None;
        while !done.load(Ordering::Relaxed) {
            let told = self.stopped() && stopped.get_or_insert_with(Instant::now).elapsed() >= GRACE_TO_STOP;
            if told || self.start.elapsed().saturating_sub(GRACE) >= self.budget {
                self.halt.store(true, Ordering::Relaxed);
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn context(&self, device: &Device) -> Context {
        Context { device: device.clone(), compiler: self.compiler.clone() }
    }

    /// A candidate's deadline: far more than it can take, but little where that is little.
    fn deadline(&self, roofline_us: f64) -> Duration {
        self.options.patience + Duration::from_secs_f64(roofline_us * 1e-6 * PATIENT_ROOFLINES)
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let system = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        BTreeMap::from([
            ("jitune".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("compiler".to_string(), self.compiler.clone()),
            ("kernel".to_string(), system.trim().to_string()),
        ])
    }

    fn run_all(&self, problems: &[Problem]) -> Result<Report, TuneError> {
        // Devices of one kind share winners: each problem is tuned once a kind.
        let mut kinds: Vec<(Device, Vec<DeviceId>)> = Vec::new();
        for &id in &self.devices {
            // Describing a device is cheap and needs no measurement, so a second run over stored winners ends at once.
            let device = Measurer::start(self.exe.clone(), id, self.halt.clone())?.device().clone();
            match kinds.iter_mut().find(|(d, _)| d.silicon == device.silicon && d.arch == device.arch) {
                Some((_, list)) => list.push(id),
                None => kinds.push((device, vec![id])),
            }
        }
        let queues: Vec<(Vec<DeviceId>, Queue)> = kinds
            .into_iter()
            .map(|(device, ids)| {
                let mut report = OfKind { winners: vec![None; problems.len()], ..OfKind::default() };
                let mut todo = self.todo(problems, &device, &mut report);
                if self.options.stored_only {
                    todo.clear();
                }
                report.devices.extend(todo.is_empty().then_some(device));
                let (next, ahead) = (AtomicUsize::new(0), Mutex::default());
                let queue = Queue { problems, todo, next, devices: ids.len(), ahead, report: Mutex::new(report) };
                (ids, queue)
            })
            .collect();
        let stored = queues.iter().map(|(_, queue)| lock(&queue.report).stored).sum();
        self.tell(Event::Plan { problems: problems.len() * queues.len(), stored });
        // All devices work at the same time, those of other kinds too: they share the time and the compilers.
        let at_work = queues.iter().filter(|(_, queue)| !queue.todo.is_empty());
        let places: Vec<(DeviceId, &Queue)> =
            at_work.flat_map(|(ids, queue)| ids.iter().map(move |id| (*id, queue))).collect();
        let ended: Vec<Result<(), TuneError>> = std::thread::scope(|scope| {
            let spawn =
                |(id, queue)| std::thread::Builder::new().spawn_scoped(scope, move || self.device_thread(id, queue));
            let threads: Vec<_> = places.into_iter().map(spawn).collect();
            let refused = |e: std::io::Error| BackendError::Threads { asked: 1, why: e.to_string() };
            let end = |t: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| match t {
                Ok(thread) => thread.join().ok(),
                Err(e) => Some(Err(refused(e).into())),
            };
            threads.into_iter().filter_map(end).collect()
        });
        ended.into_iter().collect::<Result<(), TuneError>>()?;
        Ok(Report {
            kinds: queues.into_iter().map(|(_, queue)| into_inner(queue.report)).collect(),
            compiling: self.compilers.spent(),
            seconds: self.start.elapsed().as_secs_f64(),
            interrupted: self.stopped(),
        })
    }

    /// The positions of the problems that have no stored winner for a device, or are to be tuned again.
    fn todo(&self, problems: &[Problem], device: &Device, report: &mut OfKind) -> Vec<usize> {
        let mut todo = Vec::new();
        for (index, &problem) in problems.iter().enumerate() {
            match self.stored(&problem, device) {
                Ok(Some(winner)) if !self.options.again && (self.is_final(&winner) || self.options.stored_only) => {
                    self.remember(&winner);
                    self.tell(Event::Won { index, winner: Box::new(winner.clone()), stored: true });
                    report.winners[index] = Some(winner);
                    report.stored += 1;
                }
                Ok(winner) => {
                    // One whose search was cut off serves as long as no better one is found.
                    report.winners[index] = winner.filter(|_| !self.options.again);
                    todo.push(index);
                }
                Err(e) => self.failed(index, problem, &e, report),
            }
        }
        // What has no winner yet comes first, but neighbours before those that try what was best for them.
        todo.sort_by_key(|&index| (self.is_narrow(&problems[index]), report.winners[index].is_some()));
        todo
    }

    fn is_narrow(&self, problem: &Problem) -> bool {
        self.options.narrow.contains(problem)
    }

    /// Whether a stored winner's search has nothing left to try.
    fn is_final(&self, winner: &Winner) -> bool {
        let e = &winner.evidence;
        !e.cut_off && (!e.narrow || self.is_narrow(&winner.problem))
    }

    fn failed(&self, index: usize, problem: Problem, error: &TuneError, report: &mut OfKind) {
        let error = error.to_string();
        if report.winners[index].is_none() {
            self.tell(Event::Failed { index, problem, error: error.clone() });
            report.failed.push(Failed { problem, error });
        }
    }

    /// One device's thread: its worker lives and dies here.
    fn device_thread(&self, id: DeviceId, queue: &Queue<'_>) -> Result<(), TuneError> {
        let Queue { problems, todo, devices, report, .. } = queue;
        let mut measurer = Measurer::start(self.exe.clone(), id, self.halt.clone())?;
        if self.measures_ceilings() {
            let support = self.bench().support(&problems[todo[0]], measurer.device());
            match support.and_then(|support| measurer.ceilings(support)) {
                // The time was up: said below, of each problem.
                Err(TuneError::Interrupted) if !self.stopped() => {}
                other => drop(other?),
            }
        }
        let device = measurer.device().clone();
        self.tell(Event::Device { device: Box::new(device.clone()) });
        loop {
            let at = queue.next.fetch_add(1, Ordering::Relaxed);
            let Some(&index) = todo.get(at) else { break };
            if self.stopped() {
                break;
            }
            let problem = problems[index];
            if self.time_is_up() {
                self.failed(index, problem, &TuneError::NoTime { problem }, &mut lock(report));
                continue;
            }
            if device.target == Target::Cuda
                && let Some(&next) = todo.get(at + 1)
                && !self.is_narrow(&problems[next])
            {
                self.foresee(&problems[next], &device, queue);
            }
            let left = self.left().as_secs_f64();
            let share = share(&device, problems, &todo[at..]) * *devices as f64;
            // Never so little that nothing can be tried: the first candidate always runs.
            let budget = Duration::try_from_secs_f64((left * share.min(1.0)).max(0.2)).unwrap_or(Duration::MAX);
            let space = lock(&queue.ahead).remove(&problem).map_or_else(|| self.space(&problem, &device), Ok);
            let space = match space {
                Ok(space) if self.is_narrow(&problem) => self.narrowed(space, problems, &device),
                other => other,
            };
            let tuned = space.and_then(|space| Tuning::open(self, &mut measurer, space, budget)?.run(index));
            match tuned {
                Ok(winner) => {
                    self.tell(Event::Won { index, winner: Box::new(winner.clone()), stored: false });
                    lock(report).winners[index] = Some(winner);
                }
                Err(TuneError::Interrupted) if self.stopped() => break,
                Err(TuneError::Interrupted) => {
                    self.failed(index, problem, &TuneError::NoTime { problem }, &mut lock(report))
                }
                // The next problem would meet the same.
                Err(TuneError::Device(f)) if f.is_of_the_machine() => return Err(TuneError::Device(f)),
                Err(e @ (TuneError::Sick(_) | TuneError::Db(_) | TuneError::Io { .. } | TuneError::Lost(_))) => {
                    return Err(e);
                }
                Err(e) => self.failed(index, problem, &e, &mut lock(report)),
            }
        }
        let mut report = lock(report);
        report.spent.add(&measurer.spent);
        report.devices.push(measurer.device().clone());
        Ok(())
    }

    /// Lets the compilers make the first candidates of the next problem while this one is measured.
    fn foresee(&self, problem: &Problem, device: &Device, queue: &Queue<'_>) {
        // What is wrong with it is said when its turn comes.
        let Ok(space) = self.space(problem, device) else { return };
        if let Ok((source, _)) = bench::reference(self.library, problem, device) {
            self.compilers.submit(&source, None);
        }
        for p in self.searcher(&space, &[]).next_batch() {
            if let Ok(source) = self.library.render(&space.templates[p.template], problem, device, &p.config) {
                self.compilers.submit(&source, None);
            }
        }
        lock(&queue.ahead).insert(*problem, space);
    }

    /// The legal configs of all templates that take a problem.
    fn space(&self, problem: &Problem, device: &Device) -> Result<JoinedSpace, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let mut points = Vec::new();
        for (template, t) in templates.iter().enumerate() {
            let space = space::enumerate(&t.recipe, problem, device)?;
            let named = |c: space::Candidate| Point { template, config: c.config, cost_us: c.cost_us };
            points.extend(space.candidates.into_iter().map(named));
        }
        if points.is_empty() {
            return Err(TuneError::EmptySpace { problem: *problem });
        }
        points.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us));
        Ok(JoinedSpace { problem: *problem, templates, points: points.into(), narrow: false })
    }

    /// Of a problem's space what was best for its neighbours; the whole where that is nothing.
    fn narrowed(&self, whole: JoinedSpace, problems: &[Problem], device: &Device) -> Result<JoinedSpace, TuneError> {
        let mut best: HashSet<(String, String)> = HashSet::new();
        for neighbour in neighbours(&whole.problem, problems.iter().filter(|p| !self.is_narrow(p))) {
            let mut measured: Vec<(f64, (String, String))> = Vec::new();
            for t in self.library.for_problem(neighbour, device)? {
                let key = self.context(device).trials(self.library, neighbour, &t);
                for record in self.db.trials(&key)? {
                    let us = journal::verdict(&record).and_then(|v| v.median_us());
                    measured.extend(us.zip(record.sub).map(|(us, config)| (us, (t.name().to_string(), config))));
                }
            }
            measured.sort_by(|a, b| a.0.total_cmp(&b.0));
            best.extend(measured.into_iter().take(OF_A_NEIGHBOUR).map(|(_, named)| named));
        }
        let name = |p: &Point| (whole.templates[p.template].name().to_string(), p.config.to_string());
        let points: Vec<Point> = whole.points.iter().filter(|p| best.contains(&name(p))).cloned().collect();
        if points.is_empty() {
            return Ok(whole);
        }
        Ok(JoinedSpace { points: points.into(), narrow: true, ..whole })
    }

    fn searcher(&self, space: &JoinedSpace, remembered: &[(usize, Config)]) -> Searcher {
        Searcher::new(space.points.clone(), self.options.search, self.trials, remembered, self.options.seed)
    }

    /// The stored winner of a problem, if there is one whose artifact is there too.
    fn stored(&self, problem: &Problem, device: &Device) -> Result<Option<Winner>, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let key = self.context(device).winner(self.library, problem, &templates);
        let Some(winner) = self.db.winner(&key)?.as_ref().and_then(journal::winner) else { return Ok(None) };
        let hash = winner.artifact.parse();
        let present = hash.ok().map(|h| self.db.artifact(&h)).transpose()?.flatten().is_some();
        Ok(present.then_some(winner))
    }

    fn remember(&self, winner: &Winner) {
        let template = winner.template().to_string();
        lock(&self.memory).push(Remembered { problem: winner.problem, template, config: winner.config.clone() });
    }

    /// Configs of the winners of neighbouring problems: same op and template, any shape; the latest first.
    fn remembered(&self, problem: &Problem, templates: &[Arc<Template>]) -> Vec<(usize, Config)> {
        let memory = lock(&self.memory);
        let near = |r: &&Remembered| r.problem.op().name == problem.op().name && r.problem.types() == problem.types();
        let mut list: Vec<(usize, Config)> = Vec::new();
        for r in memory.iter().rev().filter(near) {
            let Some(place) = templates.iter().position(|t| t.name() == r.template) else { continue };
            let known = (place, r.config.clone());
            if !list.contains(&known) {
                list.push(known);
            }
            if list.len() == REMEMBERED {
                break;
            }
        }
        list
    }

    fn bench(&self) -> Bench<'_, Compilers> {
        Bench::new(self.library, &self.compilers)
    }
}

struct Launches {
    cuda: f64,
    cpu: f64,
}

/// A winner whose config is tried first for its neighbours.
struct Remembered {
    problem: Problem,
    template: String,
    config: Config,
}

/// The problems of one kind of device, and what it gave so far; shared by the threads of its devices.
struct Queue<'a> {
    problems: &'a [Problem],
    /// The positions of those that are tuned, and the next of these positions.
    todo: Vec<usize>,
    next: AtomicUsize,
    /// How many devices are of the kind.
    devices: usize,
    /// Spaces that were enumerated for the compilers before their turn.
    ahead: Mutex<HashMap<Problem, JoinedSpace>>,
    report: Mutex<OfKind>,
}

/// The legal configs of all templates that take a problem.
struct JoinedSpace {
    problem: Problem,
    templates: Vec<Arc<Template>>,
    /// The cheapest by prediction first.
    points: Arc<[Point]>,
    /// Whether they are only those that were best for the problem's neighbours.
    narrow: bool,
}

/// The nearest problems below and above one that differ from it in one size alone.
fn neighbours<'a>(problem: &Problem, all: impl Iterator<Item = &'a Problem>) -> Vec<&'a Problem> {
    let mut nearest: BTreeMap<(&str, bool), &Problem> = BTreeMap::new();
    for p in all.filter(|p| p.op().name == problem.op().name) {
        let differ = |d: &&DimDef| d.part == Part::Size && p.dim(d.name) != problem.dim(d.name);
        let Some(d) = problem.op().dims.iter().find(differ) else { continue };
        let here = problem.dim(d.name);
        if p.with(&[(d.name, here)]).map(|p| p.bucket()) != Ok(problem.bucket()) {
            continue;
        }
        let held = nearest.entry((d.name, p.dim(d.name) > here)).or_insert(p);
        if p.dim(d.name).abs_diff(here) < held.dim(d.name).abs_diff(here) {
            *held = p;
        }
    }
    nearest.into_values().collect()
}

/// The share of the remaining time that the first of the remaining problems gets: by what it costs to try it, which is a
/// constant, taken as a second, and a number of launches.
fn share(device: &Device, problems: &[Problem], rest: &[usize]) -> f64 {
    let launches = if device.target == Target::Cpu { LAUNCHES.cpu } else { LAUNCHES.cuda };
    let weight = |p: &Problem| 1.0 + device.roofline(p).0 * launches;
    let all: f64 = rest.iter().map(|&i| weight(&problems[i])).sum();
    rest.first().map_or(1.0, |&i| weight(&problems[i]) / all)
}
