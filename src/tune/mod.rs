//! Tuning: from problems to stored winners, on every device at hand at once.
//!
//! Owns the loop, the search, the statistics and the compile pool. The parent never touches a device: workers do.

mod adopted;
mod ceilings;
mod compilers;
mod error;
mod events;
mod lanes;
mod measurer;
mod narrow;
mod problem;
mod search;
mod statistics;
mod steps;

pub use ceilings::ceilings;
pub use error::TuneError;
pub use events::{Compiling, Event, Failed, Observer, OfKind, Report};
pub use measurer::Spent;
pub use search::{Point, Search, Searcher};
pub use statistics::{noise, ties};
pub use steps::{Rival, Settled, in_steps, not_in_steps, rivals};

use crate::backend::BackendError;
use crate::bench::{Bench, Folder};
use crate::device::{Device, DeviceId, Target};
use crate::journal;
use crate::key::Context;
use crate::problem::Problem;
use crate::space;
use crate::sync::{into_inner, lock};
use crate::template::{Library, Template};
use crate::winner::{Evidence, InStep, Winner};
use compilers::Compilers;
use jitune_db::Db;
use lanes::{Lane, Queue, Remembered, Turn, at_once, lanes};
use measurer::{Measurer, Place};
use narrow::in_turn;
use problem::Tuning;
use std::collections::BTreeMap;
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
/// Problems that are tuned at a time on a GPU: while the candidates of one are measured those of the others are compiled. As many as a
/// model has families, so that none waits for its turn and is then tuned alone.
const LANES: usize = 20;

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
    /// Stop a problem within this share of its roofline: two runs that stop are no further apart. On a processor only where its ceilings
    /// are measured.
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
    /// Those of the problems that are searched only among what was measured for others of the problems that differ from them
    /// in one size, the best by prediction: code that has been compiled.
    pub narrow: Vec<Problem>,
    /// Problems that are tuned at a time on a device; by default 20 on a GPU, and one on a processor, whose time the
    /// compilers would take.
    pub lanes: Option<usize>,
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
            near_roofline: 0.015,
            search: Search::default(),
            compilers: None,
            patience: Duration::from_secs(5),
            again: false,
            nominal: false,
            narrow: Vec::new(),
            lanes: None,
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
    Duration::from_secs(if target == Target::Cuda { 225 } else { 240 })
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
    /// Problems that are tuned at a time on one device.
    lanes: usize,
    /// What had won before.
    stored: Mutex<Vec<Remembered>>,
    /// Configs that are not searched for, since whole steps chose them.
    settled: &'a [Settled],
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
    with_tuner(db, library, options, observer, stop, &[], |tuner| tuner.run_all(problems))
}

/// Works with a tuner, which is watched meanwhile.
fn with_tuner<R>(
    db: &Db,
    library: &Library,
    options: &Options,
    observer: &dyn Observer,
    stop: &AtomicBool,
    settled: &[Settled],
    work: impl FnOnce(&Tuner<'_>) -> Result<R, TuneError>,
) -> Result<R, TuneError> {
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
        lanes: options.lanes.unwrap_or(if target == Target::Cuda { LANES } else { 1 }).max(1),
        stored: Mutex::default(),
        settled,
    };
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let watch = std::thread::Builder::new().spawn_scoped(scope, || tuner.watch(&done));
        watch.map_err(|e| BackendError::Threads { asked: 1, why: e.to_string() })?;
        let _end = Done(&done);
        work(&tuner)
    });
    drop(tuner);
    result
}

/// Says that a run is over, also where it ends in a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
            // What is only looked up takes no time that could be up.
            let over = !self.options.stored_only && self.start.elapsed() >= self.budget.saturating_add(GRACE);
            if told || over {
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
        let mut kinds: Vec<(Device, Vec<Measurer>)> = Vec::new();
        for &id in &self.devices {
            // Describing a device is cheap and needs no measurement, so a second run over stored winners ends at once.
            let measurer = Measurer::start(self.exe.clone(), id, self.halt.clone())?;
            let device = measurer.device();
            match kinds.iter_mut().find(|(d, _)| d.silicon == device.silicon && d.arch == device.arch) {
                Some((_, list)) => list.push(measurer),
                None => kinds.push((device.clone(), vec![measurer])),
            }
        }
        let (measurers, queues): (Vec<Vec<Measurer>>, Vec<Queue>) = kinds
            .into_iter()
            .map(|(device, measurers)| {
                let mut report = OfKind { winners: vec![None; problems.len()], ..OfKind::default() };
                let mut todo = self.todo(problems, &device, &mut report);
                if self.options.stored_only {
                    todo.clear();
                }
                report.devices.extend(todo.is_empty().then_some(device));
                // In the order of the plan where nobody works beside.
                let alone = self.lanes == 1 && measurers.len() == 1;
                let is_narrow = |p: &Problem| self.is_narrow(p);
                let lanes = match alone {
                    true => vec![Lane::new(in_turn(todo, problems, is_narrow))],
                    false => lanes(problems, &todo, is_narrow),
                };
                let queue = Queue {
                    problems,
                    waiting: Mutex::new(Lane::all(&lanes)),
                    lanes,
                    next: AtomicUsize::new(0),
                    devices: measurers.len(),
                    report: Mutex::new(report),
                };
                (measurers, queue)
            })
            .unzip();
        let stored = queues.iter().map(|queue| lock(&queue.report).stored).sum();
        self.tell(Event::Plan { problems: problems.len() * queues.len(), stored });
        // All devices work at the same time, those of other kinds too: they share the time and the compilers.
        let at_work = measurers.into_iter().zip(&queues).filter(|(_, queue)| !lock(&queue.waiting).is_empty());
        let places = at_work.flat_map(|(list, queue)| list.into_iter().map(move |measurer| (measurer, queue)));
        at_once(places, |(measurer, queue)| self.on_device(measurer, queue))?;
        Ok(Report {
            kinds: queues.into_iter().map(|queue| into_inner(queue.report)).collect(),
            compiling: self.compilers.spent(),
            seconds: self.start.elapsed().as_secs_f64(),
            interrupted: self.stopped(),
        })
    }

    /// The positions of the problems that have no stored winner for a device, or are to be tuned again.
    fn todo(&self, problems: &[Problem], device: &Device, report: &mut OfKind) -> Vec<usize> {
        if !self.settled.is_empty() {
            return (0..problems.len()).collect();
        }
        let mut todo = Vec::new();
        for (index, &problem) in problems.iter().enumerate() {
            match self.look_up(&problem, device) {
                Ok(Some(winner)) if !self.options.again && (self.is_final(&winner) || self.options.stored_only) => {
                    lock(&self.stored).push(Remembered::of(&winner));
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
        // What has no winner yet comes first.
        todo.sort_by_key(|&index| report.winners[index].is_some());
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

    /// One device: its worker lives and dies here, and the lanes take turns at it.
    fn on_device(&self, mut measurer: Measurer, queue: &Queue<'_>) -> Result<(), TuneError> {
        let start = Instant::now();
        if self.measures_ceilings() {
            let support = self.bench().support(&queue.problems[queue.lanes[0].turn().order[0]], measurer.device());
            match support.and_then(|support| measurer.ceilings(support)) {
                // The time was up: said below, of each problem.
                Err(TuneError::Interrupted) if !self.stopped() => {}
                other => drop(other?),
            }
        }
        self.tell(Event::Device { device: Box::new(measurer.device().clone()) });
        let place = Place::new(measurer);
        let ended = at_once(0..self.lanes.min(queue.lanes.len()), |_| self.lane(&place, queue));
        let mut spent = place.spent();
        spent.waiting = start.elapsed().as_secs_f64() - spent.busy();
        let mut report = lock(&queue.report);
        report.spent.add(&spent);
        report.devices.push(place.device());
        ended
    }

    /// Tunes problems one after the other, as long as there are some that nobody else has taken.
    fn lane(&self, place: &Place, queue: &Queue<'_>) -> Result<(), TuneError> {
        while let Some(lane) = queue.lanes.get(queue.next.fetch_add(1, Ordering::Relaxed)) {
            self.one_by_one(place, queue, lane.turn())?;
            if let Some(rest) = lane.rest() {
                self.one_by_one(place, queue, rest)?;
            }
        }
        Ok(())
    }

    /// Tunes these problems one after the other.
    fn one_by_one(&self, place: &Place, queue: &Queue<'_>, turn: &Turn) -> Result<(), TuneError> {
        // What won so far, the latest last.
        let mut won: Vec<Remembered> = lock(&self.stored).clone();
        for &index in &turn.order {
            if self.stopped() {
                return Ok(());
            }
            if let Some(winner) = self.one(place, queue, index, &turn.beside, &won)? {
                won.push(Remembered::of(&winner));
                lock(&queue.report).winners[index] = Some(winner);
            }
        }
        Ok(())
    }

    /// Tunes one problem. An error is one that the next problem would meet too.
    fn one(
        &self,
        place: &Place,
        queue: &Queue<'_>,
        index: usize,
        beside: &[usize],
        neighbours: &[Remembered],
    ) -> Result<Option<Winner>, TuneError> {
        let problem = queue.problems[index];
        let failed = |e: &TuneError| {
            self.failed(index, problem, e, &mut lock(&queue.report));
            Ok(None)
        };
        let (left, device) = (self.left(), place.device());
        let share = queue.begin(index, &device, |p| self.is_narrow(p)) * (queue.devices * self.lanes) as f64;
        if left.is_zero() {
            return failed(&TuneError::NoTime { problem });
        }
        // Never so little that nothing can be tried: the first candidate always runs.
        let seconds = (left.as_secs_f64() * share.min(1.0)).max(0.2);
        let budget = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let tuned = |space| Tuning::open(self, place, space, neighbours, budget)?.run(index);
        let found = match self.settled_on(&problem, &device) {
            Some(space) => space.and_then(tuned),
            None => match self.adopted(&problem, &device).and_then(|space| space.map(tuned).transpose()) {
                // What won elsewhere and is not right here, does not compile or is slower than is said of it leaves the search as it would
                // be without it.
                Ok(Some(winner)) if self.is_final(&winner) => Ok(winner),
                Err(TuneError::NoneRight { .. }) | Ok(_) => {
                    self.searched(&problem, queue, beside, &device).and_then(tuned)
                }
                Err(e) => Err(e),
            },
        };
        match found {
            Ok(winner) => {
                self.tell(Event::Won { index, winner: Box::new(winner.clone()), stored: false });
                Ok(Some(winner))
            }
            Err(TuneError::Interrupted) if self.stopped() => Ok(None),
            Err(TuneError::Interrupted) => failed(&TuneError::NoTime { problem }),
            Err(TuneError::Device(f)) if f.is_of_the_machine() => Err(TuneError::Device(f)),
            Err(
                e @ (TuneError::Sick(_)
                | TuneError::Unjudged(_)
                | TuneError::Db(_)
                | TuneError::Io { .. }
                | TuneError::Lost(_)),
            ) => Err(e),
            Err(e) => failed(&e),
        }
    }

    /// What is searched for a problem that nothing is known of.
    fn searched(
        &self,
        problem: &Problem,
        queue: &Queue<'_>,
        beside: &[usize],
        device: &Device,
    ) -> Result<JoinedSpace, TuneError> {
        let narrowed = match self.is_narrow(problem) {
            true => self.narrowed(problem, queue.problems, beside, device)?,
            false => None,
        };
        narrowed.map_or_else(|| self.space(problem, device), Ok)
    }

    /// The legal configs of all templates that take a problem.
    fn space(&self, problem: &Problem, device: &Device) -> Result<JoinedSpace, TuneError> {
        let space = self.space_of(problem, device, self.library.for_problem(problem, device)?)?;
        space.ok_or(TuneError::EmptySpace { problem: *problem })
    }

    /// The legal configs of these templates, if there are any.
    fn space_of(
        &self,
        problem: &Problem,
        device: &Device,
        templates: Vec<Arc<Template>>,
    ) -> Result<Option<JoinedSpace>, TuneError> {
        let mut points = Vec::new();
        for (template, t) in templates.iter().enumerate() {
            let space = space::enumerate(&t.recipe, problem, device)?;
            let named = |c: space::Candidate| Point { template, config: c.config, cost_us: c.cost_us };
            points.extend(space.candidates.into_iter().map(named));
        }
        points.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us));
        let space = JoinedSpace { problem: *problem, templates, points: points.into(), won: None, step: None };
        Ok(Some(space).filter(|space| !space.points.is_empty()))
    }

    /// The stored winner of a problem, if there is one that was chosen here and whose artifact is there too.
    fn look_up(&self, problem: &Problem, device: &Device) -> Result<Option<Winner>, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let key = self.context(device).winner(self.library, problem, &templates);
        let stored = self.db.winner(&key)?.and_then(|record| journal::own_winner(&record, &templates).ok());
        let Some(winner) = stored else { return Ok(None) };
        let hash = winner.artifact.parse();
        let present = hash.ok().map(|h| self.db.artifact(&h)).transpose()?.flatten().is_some();
        Ok(present.then_some(winner))
    }

    fn bench(&self) -> Bench<'_, Compilers> {
        Bench::new(self.library, &self.compilers)
    }
}

/// What is known of a search whose winner is the only config.
struct Won {
    /// As far as it counts here.
    evidence: Evidence,
    /// Microseconds above which the search goes on.
    most_us: f64,
}

/// The legal configs of all templates that take a problem.
struct JoinedSpace {
    problem: Problem,
    templates: Vec<Arc<Template>>,
    /// The cheapest by prediction first.
    points: Arc<[Point]>,
    /// Where they are not all there are: what is known of the search that left no others.
    won: Option<Won>,
    /// Where a whole step chose the only one.
    step: Option<InStep>,
}
