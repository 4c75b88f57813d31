//! Tuning one problem: the loop, readable top to bottom.

use super::LOOK;

use super::compilers::{NotCompiled, Outcome};
use super::lanes::{Remembered, remembered};
use super::measurer::{Measurer, Place};
use super::search::{Point, Searcher};
use super::statistics::ties;
use super::{Event, JoinedSpace, TuneError, Tuner, Won};
use crate::artifact::Artifact;
use crate::backend::session::{Check, Element, Runnable, Series, Setup, Timed, distance};
use crate::device::{Device, Target};
use crate::journal;
use crate::problem::{Expected, Inputs, Tolerance, expected_here};
use crate::verdict::{Judged, Standing, Verdict};
use crate::winner::{Evidence, Winner};
use jitune_db::Key;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::MutexGuard;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Rounds of a first timing.
const SCREEN_ROUNDS: u32 = 5;
/// Rounds of the finals.
const FINAL_ROUNDS: u32 = 24;
/// Rounds with fewer of which there are no finals.
const LEAST_ROUNDS: u32 = 5;
/// Candidates in the finals.
const FINALISTS: usize = 4;
/// Of a problem that operations bound so many are timed in turn for these rounds to say who the finalists are: between checks a GPU's
/// clock is higher than it stays, and of the first timings the tenth won. How far behind the best of that a finalist may be.
const CONTENDERS: usize = 10;
const HEAT_ROUNDS: u32 = 6;
const HEAT_MARGIN: f64 = 1.04;
/// Candidates in a row that may be left unjudged before the machine is given up.
const UNJUDGED_IN_A_ROW: u32 = 8;
/// How far behind the best a candidate of the first timings may be.
const FINAL_MARGIN: f64 = 1.08;
/// Input reads that a winner's own check in this process may cost, and elements of its outputs that it looks at.
const OWN_BUDGET: u64 = 1 << 20;
const OWN_ELEMENTS: usize = 4096;
/// Where nothing but bringing in is left to do, a winner is still verified in another process when that takes no longer.
const SOON: Duration = Duration::from_millis(600);

/// A candidate that measured right.
struct Right {
    point: Point,
    us: f64,
    samples_us: Vec<f64>,
    /// Absent where its verdict is of an earlier run.
    artifact: Option<Artifact>,
    errors: Errors,
}

/// How far a right candidate is from the reference, and how much was compared.
#[derive(Clone, Copy, Default)]
struct Errors {
    rms: f64,
    max: f64,
    compared: u64,
}

/// A candidate that may win.
struct Finalist {
    point: Point,
    artifact: Artifact,
    runnable: Runnable,
}

/// The finals' choice, its times, and the names of those it ties with.
struct Chosen {
    point: Point,
    artifact: Artifact,
    series: Series,
    ties: Vec<String>,
}

/// One problem while it is tuned on one device, and what is known of it so far.
pub(super) struct Tuning<'a> {
    tuner: &'a Tuner<'a>,
    place: &'a Place,
    device: Device,
    setup: Setup,
    space: JoinedSpace,
    /// Of each template, the key of its trials, and the verdicts of earlier runs by config.
    keys: Vec<Key>,
    known: Vec<HashMap<String, Verdict>>,
    searcher: Searcher,
    /// What the searcher gave and nobody compiled yet.
    next: VecDeque<Point>,
    right: Vec<Right>,
    /// How long it took to make the problem ready.
    preparing: Duration,
    /// About how long a round of timing takes, in seconds.
    round_s: f64,
    /// What was seen twice, in two workers, of candidates: written down once another candidate has shown that the machine
    /// works.
    doubted: Vec<(Point, Verdict)>,
    /// Candidates in a row that the machine kept from being judged.
    unjudged: u32,
    /// Whether a candidate was left without a verdict of its own, by time, an interruption or the machine.
    cut_off: bool,
    rejected: BTreeMap<String, u32>,
    tried: u32,
    roofline_us: f64,
    start: Instant,
    budget: Duration,
}

impl<'a> Tuning<'a> {
    /// Reads what earlier runs found. The configs of `neighbours` are tried first.
    pub(super) fn open(
        tuner: &'a Tuner<'a>,
        place: &'a Place,
        space: JoinedSpace,
        neighbours: &[Remembered],
        budget: Duration,
    ) -> Result<Tuning<'a>, TuneError> {
        let start = Instant::now();
        let device = place.device();
        let setup = tuner.bench().setup(&space.problem, &device, tuner.options.seed)?;
        let context = tuner.context(&device);
        let (mut keys, mut known) = (Vec::new(), Vec::new());
        for t in &space.templates {
            let key = context.trials(tuner.library, &space.problem, t);
            // Told to tune again, it believes nothing that was found before.
            let verdicts = if tuner.options.again { Vec::new() } else { journal::verdicts(tuner.db, &key)? };
            keys.push(key);
            known.push(verdicts.into_iter().map(|(config, verdict)| (config.to_string(), verdict)).collect());
        }
        let (points, options) = (space.points.clone(), tuner.options);
        let first = remembered(neighbours, &space.problem, &space.templates);
        let searcher = Searcher::new(points, options.search, tuner.trials, &first, options.seed);
        let roofline_us = device.roofline(&space.problem).0 * 1e6;
        Ok(Tuning {
            tuner,
            place,
            device,
            setup,
            space,
            keys,
            known,
            searcher,
            next: VecDeque::new(),
            right: Vec::new(),
            preparing: Duration::ZERO,
            round_s: 0.0,
            doubted: Vec::new(),
            unjudged: 0,
            cut_off: false,
            rejected: BTreeMap::new(),
            tried: 0,
            roofline_us,
            start,
            budget,
        })
    }

    /// Finds the winner and stores it.
    pub(super) fn run(mut self, index: usize) -> Result<Winner, TuneError> {
        let (tuner, problem) = (self.tuner, self.space.problem);
        let (space, budget_s) = (self.space.points.len() as u64, self.budget.as_secs_f64());
        tuner.tell(Event::Problem { index, problem, space, budget_s });
        let (chosen, errors) = loop {
            self.search()?;
            if self.right.is_empty() {
                return Err(match (tuner.stopped(), tuner.time_is_up()) {
                    (true, _) => TuneError::Interrupted,
                    (false, true) if self.rejected.is_empty() => TuneError::NoTime { problem },
                    _ => TuneError::NoneRight { problem, rejected: summary(&self.rejected) },
                });
            }
            let rounds = self.final_rounds();
            // Who is alone is timed again only where there is time.
            let soon = rounds < LEAST_ROUNDS || self.right.len() == 1 && self.is_late();
            let chosen = if soon { Some(self.best_so_far()?) } else { self.finals(rounds)? };
            // Where none of the finalists is left, the next may hold what they promised.
            let Some(chosen) = chosen else { continue };
            match self.check_again(&chosen)? {
                Ok(errors) => break (chosen, errors),
                Err(judged) => self.dismiss(&chosen.point, judged)?,
            }
        };
        self.settle()?;
        if self.device.target == Target::Cpu && tuner.measures_ceilings() && !self.is_hurried() {
            // What a processor reaches changes while others use the machine: a winner is held against the best so far.
            let support = tuner.bench().support(&problem, &self.device);
            match support.and_then(|support| self.place.ceilings(support)) {
                Ok(()) => self.device = self.place.device(),
                Err(TuneError::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        let artifact = chosen.artifact.clone();
        let mut winner = self.winner(chosen, errors);
        if let Some(Won { evidence: won, most_us }) = self.space.won.take() {
            let e = &mut winner.evidence;
            (e.narrow, e.space) = (won.narrow, won.space);
            e.cut_off |= won.cut_off || e.median_us > most_us;
            e.trials = e.trials.saturating_add(won.trials);
            if e.ties.is_empty() {
                e.ties = won.ties;
            }
        }
        winner.evidence.step = self.space.step.take();
        self.store(&winner, &artifact)?;
        Ok(winner)
    }

    /// Tries candidates, and leaves it at that.
    pub(super) fn try_only(mut self) -> Result<(), TuneError> {
        self.search()?;
        self.settle()
    }

    /// Tries candidates until the best is near the roofline, or none is left, or the time is up.
    fn search(&mut self) -> Result<(), TuneError> {
        while self.best_us() > self.near_us() {
            if self.is_late() || self.tuner.stopped() {
                self.cut_off = true;
                break;
            }
            if self.next.is_empty() {
                self.next = self.searcher.next_batch().into();
            }
            let batch: Vec<Point> = self.next.drain(..self.next.len().min(self.batch_size())).collect();
            if batch.is_empty() {
                break;
            }
            self.run_batch(&batch)?;
        }
        Ok(())
    }

    /// The time at which nothing is left to be gained; none by what a processor is only said to reach, which a fast one exceeds.
    fn near_us(&self) -> f64 {
        let rough = self.device.target == Target::Cpu && !self.device.ceilings.measured;
        if rough { 0.0 } else { self.roofline_us * (1.0 + self.tuner.options.near_roofline) }
    }

    /// How many candidates are compiled before they are measured. A processor waits meanwhile: as many as there are compilers, so that
    /// nothing is compiled for which there is no time.
    fn batch_size(&self) -> usize {
        if self.device.target == Target::Cpu { self.tuner.compilers.workers() } else { usize::MAX }
    }

    /// Lets a candidate go that was right and is not any more, or cannot be believed: in the journal too, where that is its
    /// own doing.
    fn dismiss(&mut self, point: &Point, judged: Judged) -> Result<(), TuneError> {
        let Judged { verdict, standing } = judged;
        let verdict = match verdict {
            Verdict::Wrong { .. } | Verdict::Timeout { .. } | Verdict::Fault { .. } | Verdict::WorkerLost { .. } => {
                Verdict::Unstable { why: verdict.evidence() }
            }
            other => other,
        };
        match standing {
            Standing::Own | Standing::Twice => self.write(point, &verdict)?,
            Standing::Open => self.cut_off = true,
        }
        *self.rejected.entry(verdict.reason().into()).or_default() += 1;
        self.right.retain(|r| r.point != *point);
        let (problem, config) = (self.space.problem, self.name(point));
        self.tuner.tell(Event::Unstable { problem, config, verdict });
        Ok(())
    }

    /// Something works, and no time is left but for bringing it in.
    fn is_late(&self) -> bool {
        !self.right.is_empty() && (self.start.elapsed() + self.ending() > self.budget || self.tuner.time_is_up())
    }

    /// What there is to do after the search: the finalists are timed, and the winner is verified on inputs made anew, each about as long as
    /// a candidate was tried.
    fn ending(&self) -> Duration {
        let limit = self.best_us() * FINAL_MARGIN;
        let finalists = self.right.iter().filter(|r| r.us <= limit).count().min(FINALISTS);
        let tries = (finalists + 1) as f64 * f64::from(SCREEN_ROUNDS);
        self.preparing + Duration::from_secs_f64(self.round_s * tries)
    }

    /// No time is left for more than bringing in what is at hand.
    fn is_hurried(&self) -> bool {
        self.tuner.stopped() || self.tuner.left() < self.preparing + Duration::from_secs(1)
    }

    /// The rounds of the finals that there is time for.
    fn final_rounds(&self) -> u32 {
        if self.is_hurried() {
            return 0;
        }
        let left = self.tuner.left().saturating_sub(self.preparing).as_secs_f64();
        let each = self.round_s * self.right.len().min(FINALISTS) as f64;
        if each * f64::from(FINAL_ROUNDS) <= left { FINAL_ROUNDS } else { (left / each) as u32 }
    }

    /// Whether more than the finalists are timed in turn before the finals.
    fn has_heat(&self) -> bool {
        let (_, memory_bound) = self.device.roofline(&self.space.problem);
        let rounds = HEAT_ROUNDS as usize * CONTENDERS + FINAL_ROUNDS as usize * FINALISTS;
        let left = self.tuner.left().saturating_sub(self.preparing).as_secs_f64();
        !memory_bound && self.device.target == Target::Cuda && self.round_s * rounds as f64 <= left
    }

    fn best_us(&self) -> f64 {
        self.right.iter().map(|r| r.us).fold(f64::INFINITY, f64::min)
    }

    fn name(&self, point: &Point) -> String {
        format!("{} {}", self.space.templates[point.template].name(), point.config)
    }

    /// Compiles what is not known yet, and then measures all of it: meanwhile the device is another lane's, and a processor
    /// the compilers'.
    fn run_batch(&mut self, batch: &[Point]) -> Result<(), TuneError> {
        let (to, outcomes) = channel();
        let mut sources = Vec::new();
        for (number, point) in batch.iter().enumerate() {
            if let Some(verdict) = self.known[point.template].get(&point.config.to_string()).cloned() {
                self.account(point, verdict, None);
                continue;
            }
            let template = &self.space.templates[point.template];
            match self.tuner.library.render(template, &self.space.problem, &self.device, &point.config) {
                Ok(source) => sources.push((number, source)),
                Err(e) => self.refused(point, e.to_string())?,
            }
        }
        let (asked, mut waiting) = (self.tuner.compilers.submit(&sources, &to), sources.len());
        drop((to, sources));
        if self.tuner.lanes == 1 {
            // Nobody else wants the device while the candidates are compiled.
            drop(self.turn()?);
        }
        let mut ready = Vec::new();
        while waiting > 0 {
            // Once the problem's time is up the rest is not waited for, as soon as there is something to choose from.
            let any = !ready.is_empty() || !self.right.is_empty();
            if self.tuner.stopped() || self.is_late() || self.start.elapsed() > self.budget && any {
                self.tuner.compilers.cancel(asked);
                self.cut_off = true;
                break;
            }
            match outcomes.recv_timeout(LOOK) {
                Ok(next) => {
                    waiting -= 1;
                    ready.push(next);
                }
                Err(RecvTimeoutError::Timeout) if !self.tuner.compilers.halted() => {}
                // The compilers only drop a sender when they are told to stop.
                Err(_) => return Err(TuneError::Interrupted),
            }
        }
        if ready.is_empty() || self.tuner.stopped() {
            self.cut_off |= !ready.is_empty();
            return Ok(());
        }
        // The cheapest by prediction first, however the compilers finished.
        ready.sort_by_key(|(number, _)| *number);
        let runnable = |(number, outcome): &(usize, Outcome)| {
            let artifact = outcome.as_ref().ok().filter(|a| a.info.spills == 0)?;
            self.runnable(&batch[*number], artifact).ok()
        };
        let runnables: Vec<Option<Runnable>> = ready.iter().map(runnable).collect();
        let mut measurer = self.turn()?;
        for (at, (number, outcome)) in ready.into_iter().enumerate() {
            let next = runnables[at + 1..].iter().flatten().next();
            self.take(&mut measurer, &batch[number], outcome, runnables[at].clone(), next)?;
        }
        Ok(())
    }

    /// A turn at the measuring worker, with the problem ready.
    fn turn(&mut self) -> Result<MutexGuard<'a, Measurer>, TuneError> {
        let measurer = self.place.turn(&self.setup)?;
        self.preparing = measurer.preparing();
        Ok(measurer)
    }

    /// Judges a candidate that the compilers are done with, and then the next that can run. Once the time is up, what is left is let go,
    /// unjudged.
    fn take(
        &mut self,
        measurer: &mut Measurer,
        point: &Point,
        outcome: Outcome,
        runnable: Option<Runnable>,
        next: Option<&Runnable>,
    ) -> Result<(), TuneError> {
        if self.tuner.stopped() || self.is_late() {
            self.cut_off = true;
            return Ok(());
        }
        let artifact = match outcome {
            Ok(a) if a.info.spills > 0 => return self.refused(point, format!("spills {} bytes", a.info.spills)),
            Ok(a) => a,
            Err(NotCompiled::Broken(f)) => return Err(TuneError::Device(f)),
            Err(NotCompiled::Judged(judged)) => return self.judged(point, judged, None),
        };
        let runnable = match runnable.map_or_else(|| self.runnable(point, &artifact), Ok) {
            Ok(r) => r,
            Err(e) => return self.refused(point, e.to_string()),
        };
        // By the worker's own clock: it may have begun before it was asked.
        let spent = |m: &Measurer| m.spent.verifying + m.spent.measuring;
        let before = spent(measurer);
        let deadline = self.tuner.deadline(self.roofline_us);
        let mut judged = measurer.attempt(&runnable, next, SCREEN_ROUNDS, deadline)?;
        let mut artifact = artifact;
        if judged.standing == Standing::Twice {
            // A compiler may say that it is done and leave anything: what it makes of the source anew is believed.
            match self.compiled_anew(point)? {
                Ok(again) if again.hash == artifact.hash => {}
                Ok(again) => {
                    artifact = again;
                    judged = measurer.attempt(&self.runnable(point, &artifact)?, None, SCREEN_ROUNDS, deadline)?;
                }
                Err(NotCompiled::Broken(f)) => return Err(TuneError::Device(f)),
                Err(NotCompiled::Judged(other)) => judged = other,
            }
        }
        if let Verdict::Measured { .. } = judged.verdict {
            self.round_s = (spent(measurer) - before) / f64::from(SCREEN_ROUNDS);
        }
        self.judged(point, judged, Some(artifact))
    }

    /// A candidate compiled once more.
    fn compiled_anew(&self, point: &Point) -> Result<Outcome, TuneError> {
        let template = &self.space.templates[point.template];
        let source = self.tuner.library.render(template, &self.space.problem, &self.device, &point.config)?;
        self.tuner.compilers.anew(&source)
    }

    /// A candidate that a rule of ours refuses.
    fn refused(&mut self, point: &Point, why: String) -> Result<(), TuneError> {
        self.judged(point, Judged { verdict: Verdict::Rejected { why }, standing: Standing::Own }, None)
    }

    /// Takes a new verdict into account, and writes it down where it is the candidate's own.
    fn judged(&mut self, point: &Point, judged: Judged, artifact: Option<Artifact>) -> Result<(), TuneError> {
        let Judged { verdict, standing } = judged;
        self.unjudged = if standing == Standing::Open { self.unjudged + 1 } else { 0 };
        if self.unjudged > UNJUDGED_IN_A_ROW {
            let why = verdict.evidence();
            return Err(TuneError::Unjudged(format!(
                "{UNJUDGED_IN_A_ROW} candidates in a row could not be judged: {why}"
            )));
        }
        match standing {
            Standing::Own => self.write(point, &verdict)?,
            Standing::Twice => self.doubted.push((point.clone(), verdict.clone())),
            Standing::Open => self.cut_off = true,
        }
        let measured = matches!(verdict, Verdict::Measured { .. });
        self.account(point, verdict, artifact);
        if measured { self.settle() } else { Ok(()) }
    }

    /// The machine works, since a candidate was right just now: what was seen twice before is the candidates' own.
    fn settle(&mut self) -> Result<(), TuneError> {
        std::mem::take(&mut self.doubted).into_iter().try_for_each(|(point, verdict)| self.write(&point, &verdict))
    }

    fn write(&self, point: &Point, verdict: &Verdict) -> Result<(), TuneError> {
        let key = self.keys[point.template].clone();
        self.tuner.db.put_trial(&journal::of_verdict(key, &point.config, verdict)?)?;
        Ok(())
    }

    fn account(&mut self, point: &Point, verdict: Verdict, artifact: Option<Artifact>) {
        self.tried += 1;
        match (&verdict, verdict.median_us()) {
            (Verdict::Measured { samples_us, error_rms, error_max, compared }, Some(us)) => {
                self.searcher.tell(point, us);
                let errors = Errors { rms: *error_rms, max: *error_max, compared: *compared };
                let samples_us = samples_us.clone();
                self.right.push(Right { point: point.clone(), us, samples_us, artifact, errors });
            }
            _ => *self.rejected.entry(verdict.reason().into()).or_default() += 1,
        }
        self.tuner.tell(Event::Trial {
            problem: self.space.problem,
            template: self.space.templates[point.template].name().to_string(),
            config: point.config.clone(),
            verdict,
            best_us: self.best_us(),
            roofline_us: self.roofline_us,
            trials: self.tried,
        });
    }

    fn runnable(&self, point: &Point, artifact: &Artifact) -> Result<Runnable, TuneError> {
        let recipe = &self.space.templates[point.template].recipe;
        let launch = recipe.launch(&self.space.problem, &self.device, &point.config)?;
        Ok(Runnable { artifact: artifact.clone(), launch })
    }

    /// Times the best few round by round in turn, and picks from those that cannot be told apart the one that comes
    /// first by prediction, then by name: two runs and two machines of a kind choose alike. Those that are not right any
    /// more are let go; none may be left.
    fn finals(&mut self, rounds: u32) -> Result<Option<Chosen>, TuneError> {
        self.right.sort_by(|a, b| a.us.total_cmp(&b.us));
        let limit = self.right[0].us * FINAL_MARGIN;
        let most = if rounds == FINAL_ROUNDS && self.has_heat() { CONTENDERS } else { FINALISTS };
        let mut list = Vec::new();
        for right in self.right.iter().filter(|r| r.us <= limit).take(most) {
            let artifact = self.artifact(right)?;
            let runnable = self.runnable(&right.point, &artifact)?;
            list.push(Finalist { point: right.point.clone(), artifact, runnable });
        }
        if list.len() > FINALISTS {
            let mut heat = self.timed_right(list, HEAT_ROUNDS)?;
            heat.sort_by(|(_, a), (_, b)| a.median().total_cmp(&b.median()));
            let limit = heat.first().map_or(0.0, |(_, best)| best.median() * HEAT_MARGIN);
            list = heat.into_iter().take(FINALISTS).filter(|(_, s)| s.median() <= limit).map(|(f, _)| f).collect();
        }
        let mut kept = self.timed_right(list, rounds)?;
        let series: Vec<Series> = kept.iter().map(|(_, series)| series.clone()).collect();
        let mut tied = ties(&series);
        tied.sort_by(|&a, &b| {
            let (x, y) = (&kept[a].0.point, &kept[b].0.point);
            x.cost_us.total_cmp(&y.cost_us).then_with(|| self.name(x).cmp(&self.name(y)))
        });
        let Some(&first) = tied.first() else { return Ok(None) };
        let ties = tied[1..].iter().map(|&i| self.name(&kept[i].0.point)).collect();
        let (Finalist { point, artifact, .. }, series) = kept.swap_remove(first);
        Ok(Some(Chosen { point, artifact, series, ties }))
    }

    /// Times these in turn; lets those go that are not right any more.
    fn timed_right(&mut self, list: Vec<Finalist>, rounds: u32) -> Result<Vec<(Finalist, Series)>, TuneError> {
        let runnables: Vec<Runnable> = list.iter().map(|f| f.runnable.clone()).collect();
        let deadline = self.tuner.deadline(self.roofline_us) * list.len().max(FINALISTS) as u32;
        let found = self.turn()?.finals(&runnables, rounds, deadline)?;
        let mut kept = Vec::new();
        for (finalist, timed) in list.into_iter().zip(found) {
            match timed {
                Ok(Timed { series, doubt: None }) => kept.push((finalist, series)),
                Ok(Timed { doubt: Some(doubt), .. }) => self.dismiss(&finalist.point, doubt.into())?,
                Err(judged) => self.dismiss(&finalist.point, judged)?,
            }
        }
        Ok(kept)
    }

    /// The best of the first timings, where there is no time for finals.
    fn best_so_far(&mut self) -> Result<Chosen, TuneError> {
        self.cut_off = true;
        self.right.sort_by(|a, b| a.us.total_cmp(&b.us));
        let right = &self.right[0];
        let series = Series { us: right.samples_us.clone(), ..Series::default() };
        Ok(Chosen { point: right.point.clone(), artifact: self.artifact(right)?, series, ties: Vec::new() })
    }

    /// The code of a candidate that is right.
    fn artifact(&self, right: &Right) -> Result<Artifact, TuneError> {
        match &right.artifact {
            Some(a) => Ok(a.clone()),
            // Its verdict is remembered from an earlier run: only the artifact is made again.
            None => {
                let template = &self.space.templates[right.point.template];
                self.tuner.bench().artifact(template, &self.space.problem, &self.device, &right.point.config)
            }
        }
    }

    /// The same code on the problem's other workloads, which no look-up tells apart: what is wrong with it there, or what was found before.
    fn check_variants(
        &mut self,
        runnable: &Runnable,
        seed: u64,
        judged: Judged,
        deadline: Duration,
    ) -> Result<Judged, TuneError> {
        for problem in self.space.problem.variants() {
            if !matches!(judged.verdict, Verdict::Measured { .. }) || self.is_hurried() {
                break;
            }
            let setup = Setup { single: true, ..self.tuner.bench().setup(&problem, &self.device, seed)? };
            let (there, _) = self.place.bare_turn().verify(&setup, runnable, &[], deadline)?;
            if !matches!(there.verdict, Verdict::Measured { .. }) {
                return Ok(there.on(&problem));
            }
        }
        Ok(judged)
    }

    /// The winner is checked once more after all timing, on other inputs, in a process where none of the candidates ran that
    /// lost. Whether its outputs are right is seen here: the word of a process that it ran in is not enough.
    fn check_again(&mut self, chosen: &Chosen) -> Result<Result<Errors, Judged>, TuneError> {
        let runnable = self.runnable(&chosen.point, &chosen.artifact)?;
        // Other inputs are made in that time too.
        let deadline = self.tuner.deadline(self.roofline_us) + self.preparing;
        let judged = if self.is_hurried() && self.preparing > SOON {
            self.turn()?.attempt(&runnable, None, 0, deadline)?
        } else {
            let seed = self.setup.seed.wrapping_add(0x5eed);
            let fresh = Setup { seed, single: true, ..self.setup.clone() };
            let list = expected_here(&fresh.problem, &Inputs::new(&fresh.problem, fresh.seed), fresh.seed, OWN_BUDGET);
            let list: Vec<Expected> = list.iter().step_by(list.len().div_ceil(OWN_ELEMENTS).max(1)).copied().collect();
            let elements: Vec<Element> =
                list.iter().map(|e| Element { tensor: e.tensor.into(), index: e.index }).collect();
            let (judged, values) = self.place.bare_turn().verify(&fresh, &runnable, &elements, deadline)?;
            match own_check(&fresh, &list, &values).wrong.filter(|_| !values.is_empty()) {
                Some(why) => Judged { verdict: Verdict::Unstable { why }, standing: Standing::Own },
                None => self.check_variants(&runnable, seed, judged, deadline)?,
            }
        };
        let Verdict::Measured { error_rms, error_max, compared, .. } = judged.verdict else { return Ok(Err(judged)) };
        let earlier = self.right.iter().find(|r| r.point == chosen.point);
        let before = earlier.map_or_else(Errors::default, |r| r.errors);
        let (rms, max) = (before.rms.max(error_rms), before.max.max(error_max));
        Ok(Ok(Errors { rms, max, compared: before.compared + compared }))
    }

    fn winner(&self, chosen: Chosen, errors: Errors) -> Winner {
        let Chosen { point, artifact, series, ties } = chosen;
        let device = self.device.clone();
        let median_us = series.median();
        let (roofline_s, memory_bound) = device.roofline(&self.space.problem);
        let roofline_us = roofline_s * 1e6;
        let mut description = self.space.templates[point.template].recipe.description.clone();
        description.keep(&point.config);
        Winner {
            problem: self.space.problem,
            config: point.config,
            artifact: artifact.hash,
            description,
            evidence: Evidence {
                median_us,
                roofline_us,
                roofline_share: roofline_us / median_us,
                memory_bound,
                error_rms: errors.rms,
                error_max: errors.max,
                compared: errors.compared,
                ties,
                trials: self.tried,
                rejected: self.rejected.clone(),
                space: self.space.points.len() as u64,
                cut_off: self.cut_off,
                narrow: false,
                compiler_report: artifact.info,
                environment: self.tuner.environment(),
                seconds: self.start.elapsed().as_secs_f64(),
                at: jitune_db::now(),
                samples_us: series.us,
                clocks_mhz: series.mhz.into_iter().filter(|m| *m > 0).collect(),
                dropped_rounds: series.dropped,
                step: None,
            },
            device,
        }
    }

    fn store(&self, winner: &Winner, artifact: &Artifact) -> Result<(), TuneError> {
        let tuner = self.tuner;
        let code = artifact.bytes().map_err(|source| TuneError::Io { path: artifact.path.clone(), source })?;
        tuner.db.put_artifact(&code)?;
        let (context, in_steps) = (tuner.context(&self.device), winner.evidence.step.is_some());
        let key = context.of_winner(tuner.library, &winner.problem, &self.space.templates, in_steps);
        tuner.db.put_winner(&journal::of_winner(key, winner)?)?;
        Ok(())
    }
}

/// How far outputs that came back are from what they should be.
fn own_check(setup: &Setup, list: &[Expected], values: &[f64]) -> Check {
    let mut check = Check::default();
    for tensor in setup.problem.tensors() {
        let of = || list.iter().zip(values).filter(|(e, _)| e.tensor == tensor.name);
        let mut got = of().map(|(_, value)| *value);
        let found = distance(tensor.storage, of().map(|(e, _)| e), |_| got.next().unwrap_or(f64::NAN));
        check.add(tensor.name, &found, Tolerance::of_tensor(&setup.problem, &tensor));
    }
    check
}

fn summary(rejected: &BTreeMap<String, u32>) -> String {
    rejected.iter().map(|(why, n)| format!("{n} {why}")).collect::<Vec<_>>().join(", ")
}
