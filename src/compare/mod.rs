//! Head to head: jitune's winners beside what people use, on the same problems, bytes and device, in one run.
//!
//! Owns the peers' processes, the rounds, the check of every peer's numbers and the rows. Rendering is `report`'s; how
//! calls are timed is the crate `jitune-peer`'s, for jitune's own kernels too. `docs/peers.md` has the protocol.

mod counters;
mod measure;
mod monitor;
mod ours;
mod peers;
mod pieces;
mod sass;
mod task;

pub use counters::{Profiled, Profiler};
pub use measure::times;
pub use ours::Ours;
#[cfg(fuzzing)]
pub use peers::fuzz_lines;
pub use peers::{Conversation, KNOWN, Known, Places, Unanswered};
pub use pieces::Chain;
pub use sass::mix;

use crate::device::{Device, Target};
use crate::file::place;
use crate::problem::Problem;
use crate::recipe::Recipe;
use crate::report::Rows;
use crate::report::rows::{
    Calls, Counters, End, Line, Noise, Pair, Peer, ProblemLine, Row, Run, State, Trace, WinnerLine,
};
use crate::winner::Winner;
use jitune_peer::RefusalKind;
pub(crate) use monitor::Monitor;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// jitune's own name among the peers.
pub const OURS: &str = "jitune";
/// The name of its twin: the same program entered again, which shows the instrument's own noise.
pub const TWIN: &str = "jitune-again";
/// The way of ours that ratios are against.
pub const TUNED: &str = "tuned";
/// Rows under this many microseconds do not count for the noise.
const NOISE_FROM_US: f64 = 5.0;
/// A peer that is lost so often is not started again.
const MOST_LOSSES: u32 = 3;

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program, which is jitune's own peer.
    pub exe: PathBuf,
    /// The bundle with the winners.
    pub winners: PathBuf,
    /// The device, with measured ceilings.
    pub device: Device,
    /// The same as peers are told it.
    pub on: jitune_peer::Device,
    /// Peers by name, beside jitune's own.
    pub peers: Vec<String>,
    /// Settings of each peer.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
    /// Where peers are.
    pub places: Places,
    /// Rounds of each problem, and seconds after which they end early.
    pub rounds: u32,
    /// Seconds for the rounds of one problem.
    pub seconds: f64,
    /// Least microseconds of a round.
    pub round_us: f64,
    /// Seconds that a peer may warm up.
    pub warm_s: f64,
    /// Seed of the inputs.
    pub seed: u64,
    /// Reads hardware counters.
    pub profiler: Option<Profiler>,
    /// Of these peers.
    pub counted: Vec<String>,
    /// What an earlier run, cut off before its end, has measured already: kept, and not measured again.
    pub done: Option<Rows>,
}

/// A problem to compare on.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The problem.
    pub problem: Problem,
    /// Where a model calls it.
    pub calls: Vec<Calls>,
    /// Its winner.
    pub winner: Option<Winner>,
    /// Its tuning history: seconds since its start, microseconds.
    pub history: Vec<(f64, f64)>,
}

/// Hears of each line as it is stored, and of what goes on between them.
pub trait Observer {
    /// A line of `rows.jsonl`.
    fn line(&mut self, line: &Line);
    /// So many problems are measured from now on; the lines before were an earlier run's.
    fn measuring(&mut self, problems: usize);
    /// What goes on, in a few words.
    fn doing(&mut self, what: &str);
}

/// Why a comparison cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Our own peer did not start.
    #[error("jitune's own peer does not start: {0}")]
    Ours(String),
    /// A row that does not serialise.
    #[error("a row cannot be written: {0}")]
    Row(#[from] serde_json::Error),
}

/// A peer of this run.
struct Entrant {
    label: String,
    conversation: Option<Conversation>,
    losses: u32,
}

/// What each peer is started with.
struct Starter<'a> {
    options: &'a Options,
    stop: &'a Arc<AtomicBool>,
}

impl Starter<'_> {
    fn start(&self, label: &str) -> Result<Conversation, Unanswered> {
        let o = self.options;
        let command = self.command(label).map_err(Unanswered::Refused)?;
        let log = o.places.scratch.join(format!("{label}.log"));
        Conversation::start(command, log, o.on, self.settings(label), self.stop)
    }

    fn command(&self, label: &str) -> Result<Command, jitune_peer::Refusal> {
        if label == OURS || label == TWIN {
            let mut command = Command::new(&self.options.exe);
            command.arg("peer");
            return Ok(command);
        }
        self.options.places.command(label)
    }

    fn settings(&self, label: &str) -> BTreeMap<String, String> {
        let mut settings = self.options.settings.get(label).cloned().unwrap_or_default();
        if label == OURS || label == TWIN {
            settings.insert(ours::WINNERS.into(), self.options.winners.display().to_string());
            settings.insert(ours::NAME.into(), label.into());
        }
        settings
    }
}

/// The file that rows are appended to, each synced before the next is measured.
struct Sink<'a> {
    path: &'a Path,
    file: File,
    observer: &'a mut dyn Observer,
}

impl Sink<'_> {
    fn put(&mut self, line: Line) -> Result<(), CompareError> {
        let mut text = line.text()?;
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| CompareError::Io { path: self.path.into(), source })?;
        self.observer.line(&line);
        Ok(())
    }
}

/// Measures every problem on every peer and appends the rows to `file` as they come. `run` says what is known of the
/// run; its peers are filled in here.
pub fn run(
    asked: &[Asked],
    options: &Options,
    mut run: Run,
    file: &Path,
    observer: &mut dyn Observer,
    stop: &Arc<AtomicBool>,
) -> Result<(), CompareError> {
    let begun = Instant::now();
    let io = |source| CompareError::Io { path: file.into(), source };
    let done = options.done.clone().unwrap_or_default();
    let starter = Starter { options, stop };
    let monitor = Monitor::start(options.on);
    let mut entrants = Vec::new();
    let labels = [OURS, TWIN].into_iter().chain(options.peers.iter().map(String::as_str));
    for label in labels {
        let started = starter.start(label);
        run.peers.push(described(label, &started));
        match started {
            Ok(c) => entrants.push(Entrant { label: label.into(), conversation: Some(c), losses: 0 }),
            Err(why) if label == OURS => return Err(CompareError::Ours(why.to_string())),
            Err(_) => {}
        }
    }
    // The file appears with all that an earlier run had in it, so that nothing is lost whenever this one ends.
    let file = &place(file).map_err(io)?;
    let part = file.with_extension("part");
    let mut sink = Sink { path: file, file: File::create(&part).map_err(io)?, observer };
    sink.put(Line::Run(Box::new(run)))?;
    let (mut pairs, mut stored) = (done.noise.clone().map_or_else(Vec::new, |n| n.pairs), Vec::new());
    let (kept, rest): (Vec<&Asked>, Vec<&Asked>) = asked.iter().partition(|a| measured(a, &done).is_some());
    for line in kept.into_iter().filter_map(|a| measured(a, &done)) {
        sink.put(Line::Problem(Box::new(line.clone())))?;
        for row in done.rows.iter().filter(|r| r.problem == line.problem) {
            sink.put(Line::Row(Box::new(row.clone())))?;
            stored.push(row.clone());
        }
    }
    for reading in &done.trace {
        sink.put(Line::Trace(reading.clone()))?;
    }
    std::fs::rename(&part, file).map_err(io)?;
    // The time goes on where the earlier run's ended.
    let before = done.end.as_ref().map_or(0.0, |e| e.seconds).max(done.trace.last().map_or(0.0, |t| t.t));
    let mut traced = 0;
    sink.observer.measuring(rest.len());
    for ask in rest {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sink.put(Line::Problem(Box::new(problem_line(ask, &options.device))))?;
        sink.observer.doing("inputs and reference");
        let folder = options.places.scratch.join("inputs");
        std::fs::create_dir_all(&folder).map_err(io)?;
        let made =
            task::prepare(&ask.problem, &options.device, options.seed, &folder, options.round_us, options.warm_s);
        let prepared = made.map_err(|source| CompareError::Io { path: folder.clone(), source })?;
        let rows = measure::measure(&ask.problem, &prepared, &mut entrants, options, &monitor, stop, sink.observer);
        // The inputs of the next problem are others; what stays behind goes with the scratch folder.
        let _ = std::fs::remove_dir_all(&folder);
        pairs.retain(|p: &Pair| p.problem != ask.problem.to_string());
        pairs.extend(pair(&ask.problem, &rows));
        for mut row in rows.into_iter().filter(|r| r.peer != TWIN) {
            row.counters = ask.winner.as_ref().filter(|_| row.peer == OURS && row.way == TUNED).and_then(of_driver);
            sink.put(Line::Row(Box::new(row.clone())))?;
            stored.push(row);
        }
        for reading in monitor.since(traced) {
            traced += 1;
            sink.put(Line::Trace(Trace { t: before + reading.t, ..reading }))?;
        }
        revive(&mut entrants, &starter);
    }
    if let Some(profiler) = &options.profiler
        && !stop.load(Ordering::Relaxed)
    {
        entrants.clear();
        for row in count(profiler, asked, options, &starter, &stored) {
            sink.put(Line::Row(Box::new(row)))?;
        }
    }
    let worst = pairs.iter().filter(|p| p.us > NOISE_FROM_US).map(|p| (p.ratio - 1.0).abs()).reduce(f64::max);
    sink.put(Line::Noise(Noise { pairs, worst }))?;
    let cut = stop.load(Ordering::Relaxed);
    sink.put(Line::End(End { seconds: before + begun.elapsed().as_secs_f64(), cut }))
}

/// The line of a problem that an earlier run measured to its end, with the same winner.
fn measured<'a>(ask: &Asked, done: &'a Rows) -> Option<&'a ProblemLine> {
    let name = ask.problem.to_string();
    let line = done.problems.iter().find(|p| p.problem == name).filter(|_| done.whole(&name))?;
    let chosen = |w: &WinnerLine| (w.template.clone(), w.config.clone());
    let now = ask.winner.as_ref().map(|w| (w.template().to_string(), w.config.to_string()));
    (line.winner.as_ref().map(chosen) == now).then_some(line)
}

/// Starts lost peers again: a crash costs the rows of one problem.
fn revive(entrants: &mut [Entrant], starter: &Starter<'_>) {
    for entrant in entrants.iter_mut().filter(|e| e.conversation.is_none()) {
        entrant.losses += 1;
        if entrant.losses < MOST_LOSSES {
            entrant.conversation = starter.start(&entrant.label).ok();
        }
    }
}

fn described(label: &str, started: &Result<Conversation, Unanswered>) -> Peer {
    match started {
        Ok(c) => Peer {
            peer: label.into(),
            version: Some(c.about.version.clone()),
            device: Some(c.about.device.clone()),
            libraries: c.about.libraries.clone(),
            here: true,
            ..Peer::default()
        },
        Err(Unanswered::Refused(refusal)) => {
            let known = KNOWN.iter().find(|k| k.name == label).map(|k| k.fix.to_string());
            let known = known.filter(|_| refusal.kind == RefusalKind::Missing);
            let fix = refusal.fix.clone().filter(|f| !f.is_empty()).or(known);
            Peer { peer: label.into(), why: Some(refusal.why.clone()), fix, ..Peer::default() }
        }
        Err(lost) => Peer { peer: label.into(), why: Some(lost.to_string()), ..Peer::default() },
    }
}

fn problem_line(ask: &Asked, device: &Device) -> ProblemLine {
    let (roofline, memory_bound) = device.roofline(&ask.problem);
    ProblemLine {
        problem: ask.problem.to_string(),
        op: ask.problem.op().name.into(),
        calls: ask.calls.clone(),
        flops: ask.problem.flops(),
        bytes: ask.problem.bytes(),
        roofline_us: roofline * 1e6,
        memory_bound,
        winner: ask.winner.as_ref().map(winner_line),
        history: ask.history.clone(),
    }
}

fn winner_line(w: &Winner) -> WinnerLine {
    let (e, of) = (&w.evidence, resources(w));
    let of_cuda = |v: u32| of.as_ref().map(|_| v);
    WinnerLine {
        template: w.template().into(),
        config: w.config.to_string(),
        trials: e.trials,
        rejected: e.rejected.clone(),
        registers: of_cuda(e.compiler_report.registers),
        shared_bytes: of.as_ref().map(|r| r.shared_bytes),
        spills: of_cuda(e.compiler_report.spills),
        blocks_per_sm: of.as_ref().map(|r| r.blocks_per_sm as u32),
    }
}

/// Ours and its twin on one problem.
fn pair(problem: &Problem, rows: &[Row]) -> Option<Pair> {
    let of = |peer: &str| rows.iter().find(|r| r.peer == peer && r.way == TUNED && r.state == State::Ok);
    let (us, again) = (of(OURS)?.times()?.median_us, of(TWIN)?.times()?.median_us);
    Some(Pair { problem: problem.to_string(), ratio: again / us, us })
}

/// What a winner's first kernel takes of a multiprocessor, by its registers, threads and shared memory; none on a CPU.
struct Resources {
    kernels: u32,
    shared_bytes: u64,
    blocks_per_sm: u64,
    share: f64,
}

fn resources(winner: &Winner) -> Option<Resources> {
    if winner.device.target != Target::Cuda {
        return None;
    }
    let info = &winner.evidence.compiler_report;
    let recipe = Recipe::new(winner.description.clone()).ok()?;
    let launch = recipe.launch(&winner.problem, &winner.device, &winner.config).ok()?;
    let first = launch.kernels.first()?;
    let shared_bytes = u64::from(info.smem) + u64::from(first.smem);
    let (blocks_per_sm, share) = winner.device.occupancy(info.registers, first.block, shared_bytes);
    Some(Resources { kernels: launch.kernels.len() as u32, shared_bytes, blocks_per_sm, share })
}

/// What can be said of a winner's kernel without counters.
fn of_driver(winner: &Winner) -> Option<Counters> {
    let of = resources(winner)?;
    Some(Counters {
        source: "driver".into(),
        occupancy_pct: Some(of.share * 100.0),
        kernels: Some(of.kernels),
        registers: Some(winner.evidence.compiler_report.registers),
        shared_bytes: Some(of.shared_bytes),
        ..Counters::default()
    })
}

/// Every kernel of one call of each way of a peer on a problem, as ncu counts it.
pub fn profile(
    profiler: &Profiler,
    problem: &Problem,
    peer: &str,
    options: &Options,
) -> Result<Vec<(String, Vec<Profiled>)>, String> {
    let starter = Starter { options, stop: &Arc::default() };
    let command = starter.command(peer).map_err(|e| e.why)?;
    let found = profiler
        .count(
            &command,
            options.on,
            starter.settings(peer),
            &mut inputs(&[*problem], options),
            &options.places.scratch,
            starter.stop,
        )
        .map_err(|e| e.to_string())?;
    Ok(found.into_iter().map(|((_, way), kernels)| (way, kernels)).collect())
}

/// Problems made ready one by one, with one set each: a profiler empties the caches itself.
fn inputs<'a>(
    problems: &'a [Problem],
    options: &'a Options,
) -> impl Iterator<Item = std::io::Result<task::Prepared>> + 'a {
    let folder = options.places.scratch.join("inputs");
    problems.iter().map(move |problem| {
        std::fs::create_dir_all(&folder)?;
        let mut made = task::prepare(problem, &options.device, options.seed, &folder, 1.0, 0.0)?;
        made.task.sets = 1;
        Ok(made)
    })
}

/// The rows of the counted peers again, with their counters. A peer that cannot be profiled keeps its rows as they are.
fn count(profiler: &Profiler, asked: &[Asked], options: &Options, starter: &Starter<'_>, stored: &[Row]) -> Vec<Row> {
    let scratch = &options.places.scratch;
    let mut again = Vec::new();
    for label in options.counted.iter().filter(|l| stored.iter().any(|r| r.peer == **l)) {
        let Ok(command) = starter.command(label) else { continue };
        let problems: Vec<Problem> = asked.iter().map(|a| a.problem).collect();
        let found = profiler.count(
            &command,
            options.on,
            starter.settings(label),
            &mut inputs(&problems, options),
            scratch,
            starter.stop,
        );
        match found {
            Ok(found) => {
                let counted = |r: &&Row| r.peer == *label && r.state == State::Ok;
                again.extend(stored.iter().filter(counted).filter_map(|r| {
                    let kernels = found.get(&(r.problem.clone(), r.way.clone())).filter(|k| !k.is_empty())?;
                    Some(Row { counters: Some(counters::summary(kernels)), ..r.clone() })
                }));
            }
            Err(why) => tracing::warn!("{label} cannot be profiled: {why}"),
        }
    }
    again
}
