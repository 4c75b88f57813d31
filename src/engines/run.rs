//! A run: each engine in turn on each workload, round by round, every row on the disk as soon as it is known.

use super::check::{CONTEXT, Reference, verdict};
use super::client::{Outcome, Progress, Trip, drive};
use super::groups::{groups, needs};
use super::known::{Known, Places};
use super::link::{Link, Via};
use super::measured::{Meanwhile, Measured};
use super::process::{Engine, Unanswered};
use super::rows::{Cell, Check, End, EngineTrace, Line, Of, Request, Run, Start, State, Tokenization};
use super::service::{Gone, Heard, Service};
use super::watch::Watch;
use super::workload::Workload;
use crate::device::Device;
use crate::file::place;
use jitune_peer::engine::{Load, Loaded, Stats, Submit};
use jitune_peer::{Device as On, RefusalKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The precision that answers are checked against.
const EXACT: &str = "f32";

/// An engine as it was entered.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is called in the report: its name, with `#2` for its twin.
    pub label: String,
    /// The engine.
    pub name: String,
    /// How it is reached.
    pub via: Via,
    /// Its settings.
    pub options: BTreeMap<String, String>,
    /// Most seconds of a workload with it, where that is less than the workload's own.
    pub seconds: Option<f64>,
}

/// What is run.
pub struct Setup {
    /// The engines, in the order of the first round; the rounds after it go there and back.
    pub entries: Vec<Entry>,
    /// The model, as engines are told it.
    pub model: PathBuf,
    /// Another file of the same model for some engines, by name and precision: a GGUF file for one that reads no folders.
    pub other: BTreeMap<(String, String), PathBuf>,
    /// The precisions.
    pub dtypes: Vec<String>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Rounds.
    pub rounds: u32,
    /// The device.
    pub on: On,
    /// What it is.
    pub device: Device,
    /// Most bytes on the device for each engine that takes a limit.
    pub memory: Option<u64>,
    /// Where engines are found.
    pub places: Places,
    /// The engine whose logits in f32 are the reference, its device, and its settings; none: no check.
    pub reference: Option<(Entry, On)>,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of its weights that a decode step reads, by precision.
    pub weight_bytes: BTreeMap<String, u64>,
    /// Bytes of keys and values of a token in 16 bits.
    pub token_bytes: u64,
    /// How fast the model's tokenizer is.
    pub tokenization: Vec<Tokenization>,
    /// Lines of an earlier run in the same folder.
    pub earlier: Vec<Line>,
}

impl Setup {
    /// Whether an engine's steps go over all of the context that it was told.
    fn fixed(&self, entry: &Entry) -> bool {
        let known = Known::named(&entry.name).filter(|_| entry.via == Via::Process);
        known.is_some_and(|known| known.fixed(self.device.target, &entry.options))
    }

    /// What an engine loads.
    fn file(&self, engine: &str, dtype: &str) -> &PathBuf {
        self.other.get(&(engine.into(), dtype.into())).unwrap_or(&self.model)
    }

    /// Seconds that the device's measured ceilings leave at least for so many passes over the weights and these requests: the weights are read in each
    /// pass, keys and values of all tokens before it for each token of an answer, and each token of a prompt takes two operations a weight.
    /// None for a precision whose bytes are not known.
    fn needed_s(&self, dtype: &str, steps: u64, trips: &[Trip]) -> Option<f64> {
        let weights = *self.weight_bytes.get(dtype)? as f64;
        let token = self.token_bytes as f64 * if dtype == EXACT { 2.0 } else { 1.0 };
        let c = &self.device.ceilings;
        let rate = if dtype == EXACT { c.single } else { c.half };
        let of = |trip: &Trip| {
            let (prompt, answer) = (trip.prompt as f64, trip.tokens() as f64);
            let read = token * answer * (prompt + answer / 2.0);
            read / c.read + 2.0 * self.parameters as f64 * prompt / rate
        };
        Some(steps as f64 * weights / c.read + trips.iter().map(of).sum::<f64>())
    }
}

/// Who hears what happens.
pub trait Observer {
    /// A line was written.
    fn line(&mut self, line: &Line);

    /// What is being done; of how many cells how many are done.
    fn doing(&mut self, what: &str, done: usize, all: usize);
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The rows cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The engine whose logits are the reference does not give them.
    #[error("the reference, {name}: {why}; --reference names another engine, and --no-check checks no logits")]
    Reference {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
}

/// Runs what is not in `setup.earlier` yet, and writes all to `file`. Whether it was cut off is in the last line.
pub fn run(
    setup: &Setup,
    run: Run,
    file: &Path,
    observer: &mut dyn Observer,
    stop: &Arc<AtomicBool>,
) -> Result<(), RunError> {
    let begun = Instant::now();
    let mut sink = Sink::open(file, run, &setup.earlier, observer)?;
    for line in &setup.tokenization {
        sink.put(Line::Tokenization(line.clone()))?;
    }
    let mut this = Running { setup, stop, reference: None, own: BTreeMap::new(), checks: BTreeMap::new() };
    for line in &setup.earlier {
        if let Line::Check(check) = line
            && check.state != State::Failed
        {
            this.checks.insert((check.engine.clone(), check.dtype.clone()), check.clone());
        }
    }
    'all: for round in 0..setup.rounds {
        for dtype in &setup.dtypes {
            let mut order: Vec<&Entry> = setup.entries.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for entry in order {
                let left = |w: &&Workload| !sink.done.contains(&of(entry, dtype, w, round));
                let cells: Vec<&Workload> = setup.workloads.iter().filter(left).collect();
                for group in groups(&cells, setup.fixed(entry)) {
                    this.engine(entry, dtype, round, &group, &mut sink)?;
                    if stop.load(Ordering::Relaxed) {
                        break 'all;
                    }
                }
            }
        }
    }
    let cut = stop.load(Ordering::Relaxed);
    sink.put(Line::End(End { seconds: sink.before + begun.elapsed().as_secs_f64(), cut }))
}

/// Whether an engine's program is found and its libraries load on the device.
pub fn is_here(setup: &Setup, name: &str) -> bool {
    let Ok(command) = setup.places.command(name) else { return false };
    let log = setup.places.scratch.join(format!("{name}-here.log"));
    Engine::start(command, log, setup.on, BTreeMap::new(), &Arc::default()).is_ok()
}

fn of(entry: &Entry, dtype: &str, workload: &Workload, round: u32) -> Of {
    Of { engine: entry.label.clone(), dtype: dtype.into(), workload: workload.name.clone(), round }
}

/// The first list, and what is new in the second.
fn joined<T: Clone>(first: &[T], second: &[T], same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let new = second.iter().filter(|b| first.iter().all(|a| !same(a, b)));
    first.iter().chain(new).cloned().collect()
}

/// The rows' file, and which cells are in it.
struct Sink<'o> {
    path: PathBuf,
    file: File,
    observer: &'o mut dyn Observer,
    done: BTreeSet<Of>,
    cells: usize,
    /// Seconds that earlier runs took.
    before: f64,
}

impl Sink<'_> {
    /// The file appears with all that an earlier run had in it, so that nothing is lost whenever this one ends.
    fn open<'o>(
        path: &Path,
        mut run: Run,
        earlier: &[Line],
        observer: &'o mut dyn Observer,
    ) -> Result<Sink<'o>, RunError> {
        let io = |source| RunError::Io { path: path.into(), source };
        for line in earlier {
            if let Line::Run(before) = line {
                run.engines = joined(&before.engines, &run.engines, |a, b| a == b);
                run.workloads = joined(&before.workloads, &run.workloads, |a, b| a.name == b.name);
                run.dtypes = joined(&before.dtypes, &run.dtypes, |a, b| a == b);
                run.rounds = run.rounds.max(before.rounds);
            }
        }
        let path = &place(path).map_err(io)?;
        let part = path.with_extension("part");
        let file = File::create(&part).map_err(io)?;
        let cells = run.engines.len() * run.workloads.len() * run.dtypes.len() * run.rounds as usize;
        let mut sink = Sink { path: path.into(), file, observer, done: BTreeSet::new(), cells, before: 0.0 };
        sink.write(&Line::Run(Box::new(run)))?;
        for line in earlier {
            match line {
                Line::Run(_) => continue,
                Line::End(end) => {
                    sink.before = sink.before.max(end.seconds);
                    continue;
                }
                // What was not there, or went wrong, is tried again.
                Line::Cell(cell) if !matches!(cell.state, State::Missing | State::Failed) => {
                    sink.done.insert(cell.of.clone());
                }
                _ => (),
            }
            sink.write(line)?;
        }
        sink.file.sync_all().map_err(io)?;
        std::fs::rename(&part, path).map_err(io)?;
        Ok(sink)
    }

    fn write(&mut self, line: &Line) -> Result<(), RunError> {
        let io = |source| RunError::Io { path: self.path.clone(), source };
        let mut text = serde_json::to_vec(line).map_err(|e| io(std::io::Error::other(e)))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(io)
    }

    fn put(&mut self, line: Line) -> Result<(), RunError> {
        self.write(&line)?;
        if let Line::Cell(cell) = &line {
            if cell.state != State::Cut {
                self.done.insert(cell.of.clone());
            }
            self.file.sync_data().map_err(|source| RunError::Io { path: self.path.clone(), source })?;
        }
        self.observer.line(&line);
        Ok(())
    }

    fn doing(&mut self, what: &str) {
        self.observer.doing(what, self.done.len(), self.cells);
    }
}

struct Running<'s> {
    setup: &'s Setup,
    stop: &'s Arc<AtomicBool>,
    reference: Option<Reference>,
    /// The divergence of each precision itself, where the reference engine has it.
    own: BTreeMap<String, Option<f64>>,
    /// What became of the check of an engine in a precision.
    checks: BTreeMap<(String, String), Check>,
}

impl Running<'_> {
    /// One engine, started once for some workloads.
    fn engine(
        &mut self,
        entry: &Entry,
        dtype: &str,
        round: u32,
        cells: &[&Workload],
        sink: &mut Sink<'_>,
    ) -> Result<(), RunError> {
        let key = (entry.label.clone(), dtype.to_string());
        if let Some(check) = self.checks.get(&key).filter(|check| check.state == State::Wrong) {
            return lost(entry, dtype, round, cells, State::Wrong, check.why.clone().unwrap_or_default(), sink);
        }
        sink.doing(&format!("{} {dtype}: starts", entry.label));
        let begun = Instant::now();
        let (context, sequences) = needs(cells);
        let load = Load {
            folder: self.setup.file(&entry.name, dtype).clone(),
            dtype: dtype.into(),
            context,
            sequences,
            prefix: cells[0].prefix,
            memory: self.setup.memory,
            workload: if let [one] = cells { Some(one.asked()) } else { None },
        };
        let (place, names) = ((&self.setup.places, self.setup.on), [entry.label.as_str(), entry.name.as_str()]);
        let started = Link::start(&entry.via, names, &entry.options, place, load, self.stop);
        let mut line = Start {
            engine: entry.label.clone(),
            round,
            dtype: dtype.into(),
            workloads: cells.iter().map(|w| w.name.clone()).collect(),
            target: if matches!(self.setup.on, On::Cuda(_)) { "cuda".into() } else { "cpu".into() },
            transport: if entry.via == Via::Process { "process".into() } else { "http".into() },
            ..Start::default()
        };
        let (mut engine, loaded) = match started {
            Ok(started) => started,
            Err(why) => {
                let state = match &why {
                    Unanswered::Interrupted => State::Cut,
                    Unanswered::Refused(r) if r.kind == RefusalKind::Unsupported => State::Unsupported,
                    Unanswered::Refused(r) if r.kind == RefusalKind::Missing => State::Missing,
                    _ => State::Failed,
                };
                line.why = Some(why.to_string());
                if let Unanswered::Refused(refusal) = &why {
                    line.fix.clone_from(&refusal.fix);
                }
                sink.put(Line::Start(Box::new(line)))?;
                return lost(entry, dtype, round, cells, state, why.to_string(), sink);
            }
        };
        line.start_s = Some(begun.elapsed().as_secs_f64());
        line.version.clone_from(&engine.about().version);
        // Engines have names of their own for it, and rows of two devices share no ratio.
        line.device.clone_from(&self.setup.device.name);
        line.libraries.clone_from(&engine.about().libraries);
        line.batching = format!("{:?}", loaded.batching).to_lowercase();
        (line.sequences, line.memory_bytes) = (loaded.sequences, loaded.memory_bytes);
        line.notes.clone_from(&loaded.notes);
        sink.put(Line::Start(Box::new(line)))?;
        if !self.checks.contains_key(&key) {
            sink.doing(&format!("{} {dtype}: its logits", entry.label));
            let check = self.check(entry, dtype, &mut engine, &loaded)?;
            if self.stop.load(Ordering::Relaxed) {
                // What was interrupted says nothing of the engine.
                return Ok(());
            }
            self.checks.insert(key, check.clone());
            sink.put(Line::Check(check.clone()))?;
            if check.state == State::Wrong {
                return lost(entry, dtype, round, cells, State::Wrong, check.why.unwrap_or_default(), sink);
            }
        }
        for (at, workload) in cells.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let cell = of(entry, dtype, workload, round);
            sink.doing(&format!("{} {dtype}: {}", entry.label, workload.name));
            let lasts = self.cell(entry, &cell, workload, &mut engine, &loaded, sink)?;
            let rest = &cells[at + 1..];
            if !lasts && !rest.is_empty() && !self.stop.load(Ordering::Relaxed) {
                drop(engine);
                return self.engine(entry, dtype, round, rest, sink);
            }
        }
        Ok(())
    }

    /// Compares an engine's logits with the reference's.
    fn check(&mut self, entry: &Entry, dtype: &str, engine: &mut Link, loaded: &Loaded) -> Result<Check, RunError> {
        let unchecked = |why: String| {
            let (engine, dtype) = (entry.label.clone(), dtype.into());
            Check { engine, dtype, state: State::Unchecked, why: Some(why), ..Check::default() }
        };
        let Some((reference, _)) = &self.setup.reference else {
            return Ok(unchecked("no reference was asked for".into()));
        };
        if self.reference.is_none() {
            let name = reference.name.clone();
            match self.refer(loaded.vocab) {
                Ok(reference) => self.reference = Some(reference),
                Err(Unanswered::Interrupted) => return Ok(unchecked("interrupted".into())),
                Err(why) => return Err(RunError::Reference { name, why: why.to_string() }),
            }
        }
        let own = match self.own.get(dtype) {
            Some(own) => *own,
            None => {
                let own = self.own(dtype);
                self.own.insert(dtype.into(), own);
                own
            }
        };
        let Some(reference) = &self.reference else { return Ok(unchecked("there is no reference".into())) };
        let divergence = match engine {
            Link::Process(engine) => reference.divergence(engine, &self.setup.places.scratch),
            Link::Http(server) => reference.divergence_of_likely(server),
        };
        Ok(match divergence {
            Ok(got) => verdict(&entry.label, dtype, &reference.name, got, own),
            Err(Unanswered::Refused(refusal)) if refusal.kind == RefusalKind::Unsupported => unchecked(refusal.why),
            Err(why) => Check { state: State::Failed, ..unchecked(why.to_string()) },
        })
    }

    /// Loads the model into the reference engine.
    fn referring(&self, dtype: &str) -> Result<Engine, Unanswered> {
        let Some((entry, on)) = &self.setup.reference else { return Err(Unanswered::Interrupted) };
        let command = self.setup.places.command(&entry.name).map_err(Unanswered::Refused)?;
        let log = self.setup.places.scratch.join(format!("{}-reference.log", entry.name));
        let mut engine = Engine::start(command, log, *on, entry.options.clone(), self.stop)?;
        let folder = self.setup.file(&entry.name, dtype).clone();
        let load =
            Load { folder, dtype: dtype.into(), context: CONTEXT, sequences: 1, prefix: false, ..Load::default() };
        engine.load(load)?;
        Ok(engine)
    }

    fn refer(&self, vocab: u64) -> Result<Reference, Unanswered> {
        Reference::of(&mut self.referring(EXACT)?, vocab, &self.setup.places.scratch)
    }

    /// What a precision costs in the reference engine; none where that has it not.
    fn own(&self, dtype: &str) -> Option<f64> {
        if dtype == EXACT {
            return Some(0.0);
        }
        let engine = self.referring(dtype);
        self.reference.as_ref()?.divergence(&mut engine.ok()?, &self.setup.places.scratch).ok().map(|d| d.kl)
    }

    /// One workload on one engine; whether the engine is good for another, and neither gone nor silent.
    fn cell(
        &mut self,
        entry: &Entry,
        cell: &Of,
        workload: &Workload,
        engine: &mut Link,
        loaded: &Loaded,
        sink: &mut Sink<'_>,
    ) -> Result<bool, RunError> {
        let mut workload = workload.clone();
        if let Some(seconds) = entry.seconds {
            workload.seconds = workload.seconds.min(seconds);
        }
        let fresh = |state: State, why: String| Cell { of: cell.clone(), state, why: Some(why), measured: None };
        if let Err(why) = engine.reset() {
            sink.put(Line::Cell(Box::new(fresh(State::Failed, why.to_string()))))?;
            return Ok(false);
        }
        let before = engine.stats();
        let watch = Watch::start(self.setup.on, engine.process_id());
        let origin = engine.now();
        let mut sampled = Sampled { engine, origin, asked: Duration::ZERO };
        let (observer, done, all) = (&mut sink.observer, sink.done.len(), sink.cells);
        let name = format!("{} {}: {}", cell.engine, cell.dtype, cell.workload);
        let outcome = drive(&mut sampled, &workload, loaded.vocab, self.stop, &mut |p: &Progress| {
            let what = format!("{name}, {} of {} answers, {} tokens", p.ended, p.sent, p.tokens);
            observer.doing(&what, done, all);
        });
        let (meanwhile, trace) = watch.end();
        let Outcome { trips, state, why } = match outcome {
            Ok(outcome) => outcome,
            Err(why) => {
                sink.put(Line::Cell(Box::new(fresh(State::Failed, why.to_string()))))?;
                return Ok(true);
            }
        };
        let after = engine.stats();
        let samples = engine.take_samples();
        for trip in &trips {
            sink.put(Line::Request(Box::new(Request::of(cell, trip))))?;
        }
        for reading in trace {
            sink.put(Line::Trace(EngineTrace { of: cell.clone(), reading }))?;
        }
        let mut measured = Measured::of(&trips, &workload.limits);
        measured.meanwhile = self.meanwhile(meanwhile, &before, &after, &samples, &measured);
        let needed = measured.meanwhile.steps.and_then(|steps| self.setup.needed_s(&cell.dtype, steps, &trips));
        // Steps of the warm-up are counted, and so is its time.
        let whole = trips.iter().filter_map(|trip| trip.end).max().map(|end| end.as_secs_f64());
        measured.meanwhile.roofline = needed.zip(whole.filter(|s| *s > 0.0)).map(|(needed, whole)| needed / whole);
        let lasts = !matches!(state, State::Failed | State::Stalled);
        sink.put(Line::Cell(Box::new(Cell { of: cell.clone(), state, why, measured: Some(measured) })))?;
        Ok(lasts)
    }

    /// What the engine said of itself, beside what was seen of it.
    fn meanwhile(
        &self,
        seen: Meanwhile,
        before: &Stats,
        after: &Stats,
        samples: &[Stats],
        measured: &Measured,
    ) -> Meanwhile {
        let grown = |pick: fn(&Stats) -> Option<u64>| Some(pick(after)?.saturating_sub(pick(before).unwrap_or(0)));
        let steps = grown(|s| s.steps);
        let a_step = |total: Option<u64>| Some(total? as f64 / steps.filter(|n| *n > 0)? as f64);
        let used = |s: &Stats| Some(s.used_pages? as f64 / s.pages.filter(|n| *n > 0)? as f64);
        let live = |s: &Stats| Some(s.live_tokens? as f64 / (s.used_pages.filter(|n| *n > 0)? * s.page_tokens?) as f64);
        let lives: Vec<f64> = samples.iter().filter_map(live).collect();
        let (cached, computed) = (grown(|s| s.cached_tokens), grown(|s| s.prompt_tokens));
        let host = after.host_s.map(|s| s - before.host_s.unwrap_or(0.0));
        let joules = seen.power_w.map(|w| w * measured.duration_s);
        Meanwhile {
            pages_used: samples.iter().chain([after]).filter_map(used).reduce(f64::max),
            live_share: (!lives.is_empty()).then(|| lives.iter().sum::<f64>() / lives.len() as f64),
            prefix_hits: cached.zip(computed).filter(|(c, p)| c + p > 0).map(|(c, p)| c as f64 / (c + p) as f64),
            steps,
            launches_a_step: a_step(grown(|s| s.launches)),
            host_us_a_step: host.zip(steps).filter(|(_, n)| *n > 0).map(|(s, n)| s * 1e6 / n as f64),
            to_device_a_step: a_step(grown(|s| s.to_device_bytes)),
            to_host_a_step: a_step(grown(|s| s.to_host_bytes)),
            preempted: grown(|s| s.preempted),
            joules_a_token: joules.filter(|_| measured.output_tokens > 0).map(|j| j / measured.output_tokens as f64),
            ..seen
        }
    }
}

/// Says of cells that they were not measured.
fn lost(
    entry: &Entry,
    dtype: &str,
    round: u32,
    cells: &[&Workload],
    state: State,
    why: String,
    sink: &mut Sink<'_>,
) -> Result<(), RunError> {
    for workload in cells {
        let of = of(entry, dtype, workload, round);
        sink.put(Line::Cell(Box::new(Cell { of, state, why: Some(why.clone()), measured: None })))?;
    }
    Ok(())
}

/// How often an engine is asked what it holds while it works.
const SAMPLE: Duration = Duration::from_secs(1);

/// An engine whose clock begins with the cell, and which is asked now and then what it holds.
struct Sampled<'e> {
    engine: &'e mut Link,
    origin: Duration,
    asked: Duration,
}

impl Service for Sampled<'_> {
    fn now(&self) -> Duration {
        self.engine.now().saturating_sub(self.origin)
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        self.engine.submit(id, request)
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        self.engine.cancel(id)
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        let now = self.now();
        if now >= self.asked + SAMPLE {
            self.asked = now;
            self.engine.sample()?;
        }
        let heard = self.engine.next(until.saturating_add(self.origin))?;
        Ok(heard.map(|heard| Heard { at: heard.at.saturating_sub(self.origin), ..heard }))
    }
}
