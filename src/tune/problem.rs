//! Tuning one problem: the loop, readable top to bottom.

use super::compilers::{NotCompiled, Outcome};
use super::search::{Point, Searcher};
use super::statistics::ties;
use super::verdict::Verdict;
use super::{Event, TuneError, Tuner};
use crate::artifact::Artifact;
use crate::backend::session::{Runnable, Series, Setup};
use crate::device::Target;
use crate::problem::Problem;
use crate::recipe::{Config, Recipe};
use crate::space;
use crate::sync::lock;
use crate::template::Template;
use crate::tune::measurer::Measurer;
use crate::winner::{Evidence, Winner};
use jitune_db::{Key, Record};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Rounds of a first timing.
const SCREEN_ROUNDS: u32 = 5;
/// Rounds of the finals.
const FINAL_ROUNDS: u32 = 24;
/// Candidates in the finals, and how far behind the best they may be.
const FINALISTS: usize = 4;
const FINAL_MARGIN: f64 = 1.08;
/// Problems up to this size are checked once more on other inputs; for larger ones making them costs too much, and the
/// check runs on the same inputs again.
const FRESH_BYTES: u64 = 128 << 20;

/// A candidate that measured right.
struct Right {
    point: Point,
    us: f64,
    compiled: Option<Artifact>,
    errors: Errors,
}

/// How far a right candidate is from the reference, and how much was compared.
#[derive(Clone, Copy, Default)]
struct Errors {
    rms: f64,
    max: f64,
    compared: u64,
}

/// What is known of a problem while it is tuned.
struct Work<'a> {
    problem: Problem,
    templates: Vec<Arc<Template>>,
    keys: Vec<Key>,
    known: Vec<HashMap<String, Verdict>>,
    searcher: Searcher,
    right: Vec<Right>,
    rejected: BTreeMap<String, u32>,
    tried: u32,
    roofline_us: f64,
    space: u64,
    measurer: &'a mut Measurer,
}

/// The finals' choice, its series, and the names of those it ties with.
type Chosen = ((Point, Artifact), Series, Vec<String>);

impl Tuner<'_> {
    /// The stored winner of a problem, if there is one whose artifact is there too.
    pub(super) fn stored(
        &self,
        problem: &Problem,
        device: &crate::device::Device,
    ) -> Result<Option<Winner>, TuneError> {
        let templates = self.templates(problem, device)?;
        let key = self.context(device).winner(self.library, problem, &templates);
        let Some(record) = self.db.winner(&key)? else { return Ok(None) };
        let Ok(winner) = serde_json::from_value::<Winner>(record.body) else { return Ok(None) };
        let hash = winner.artifact.parse();
        let present = hash.ok().map(|h| self.db.artifact(&h)).transpose()?.flatten().is_some();
        Ok(present.then_some(winner))
    }

    /// Tunes one problem on one device and stores its winner.
    pub(super) fn tune_problem(
        &self,
        problem: &Problem,
        measurer: &mut Measurer,
        budget: Duration,
        index: usize,
    ) -> Result<Winner, TuneError> {
        let start = Instant::now();
        let device = measurer.device().clone();
        let mut work = self.open(problem, measurer)?;
        self.tell(Event::Problem { index, problem: *problem, space: work.space, budget_s: budget.as_secs_f64() });
        let setup = self.bench().setup(problem, &device, self.seed)?;
        work.measurer.prepare(setup.clone())?;
        loop {
            let batch = work.searcher.next_batch();
            if batch.is_empty() {
                break;
            }
            self.run_batch(&mut work, &batch, start + budget)?;
            if work.best_us() <= work.roofline_us * (1.0 + self.options.near_roofline) {
                break;
            }
            if start.elapsed() > budget && !work.right.is_empty() || self.stopped() {
                break;
            }
        }
        if work.right.is_empty() {
            return Err(match self.stopped() {
                true => TuneError::Interrupted,
                false => TuneError::NoneRight { problem: *problem, rejected: summary(&work.rejected) },
            });
        }
        let (chosen, series, tied) = self.finals(&mut work, &device)?;
        let errors = self.check_again(&mut work, &chosen, setup)?;
        if device.target == Target::Cpu && !self.options.nominal {
            // What a processor reaches changes while others use the machine: a winner is held against the best so far.
            work.measurer.ceilings(self.bench().support(problem.dtype, &device)?)?;
        }
        let winner = self.winner(&work, chosen, series, tied, errors, start)?;
        self.store(&winner, &device, &work)?;
        Ok(winner)
    }

    fn open<'m>(&self, problem: &Problem, measurer: &'m mut Measurer) -> Result<Work<'m>, TuneError> {
        let device = measurer.device().clone();
        let templates = self.templates(problem, &device)?;
        let context = self.context(&device);
        let (mut points, mut keys, mut known) = (Vec::new(), Vec::new(), Vec::new());
        for (i, t) in templates.iter().enumerate() {
            let space = space::enumerate(&t.recipe, problem, &device)?;
            points.extend(space.candidates.into_iter().map(|c| Point {
                template: i,
                config: c.config,
                cost_us: c.cost_us,
            }));
            let key = context.trials(self.library, problem, t);
            let mut seen = HashMap::new();
            for record in self.db.trials(&key)? {
                if let (Some(sub), Ok(verdict)) = (record.sub, serde_json::from_value(record.body)) {
                    seen.insert(sub, verdict);
                }
            }
            keys.push(key);
            known.push(seen);
        }
        if points.is_empty() {
            return Err(TuneError::EmptySpace { problem: *problem });
        }
        let remembered = self.remembered(problem, &templates);
        let space = points.len() as u64;
        let searcher = Searcher::new(points, self.options.search, self.trials, &remembered, self.seed);
        let roofline_us = device.roofline(problem).0 * 1e6;
        Ok(Work {
            problem: *problem,
            templates,
            keys,
            known,
            searcher,
            right: Vec::new(),
            rejected: BTreeMap::new(),
            tried: 0,
            roofline_us,
            space,
            measurer,
        })
    }

    /// Compiles what is not known yet and measures it as it comes; on the host's processor only when all is compiled,
    /// since there the compilers use the device itself.
    fn run_batch(&self, work: &mut Work, batch: &[Point], until: Instant) -> Result<(), TuneError> {
        let (reply, outcomes) = channel();
        let mut waiting = 0;
        for (number, point) in batch.iter().enumerate() {
            if let Some(verdict) = work.known[point.template].get(&point.config.to_string()).cloned() {
                self.account(work, point, verdict, None)?;
                continue;
            }
            match self.library.render(
                &work.templates[point.template],
                &work.problem,
                work.measurer.device(),
                &point.config,
            ) {
                Ok(source) => {
                    self.compilers.submit(&source, Some((reply.clone(), number)));
                    waiting += 1;
                }
                Err(e) => self.judged(work, point, Verdict::Rejected { why: e.to_string() }, None)?,
            }
        }
        drop(reply);
        let exclusive = work.measurer.device().target == Target::Cpu;
        let mut ready = Vec::new();
        for _ in 0..waiting {
            let begun = Instant::now();
            let next = outcomes.recv();
            work.measurer.spent.waiting += begun.elapsed().as_secs_f64();
            // The pool only drops a sender when it is told to stop.
            let Ok(outcome) = next else { return Err(TuneError::Interrupted) };
            if exclusive {
                ready.push(outcome);
            } else {
                self.take(work, batch, outcome, until)?;
            }
        }
        // The cheapest by prediction first, however the compilers finished.
        ready.sort_by_key(|(number, _)| *number);
        ready.into_iter().try_for_each(|outcome| self.take(work, batch, outcome, until))
    }

    fn take(
        &self,
        work: &mut Work,
        batch: &[Point],
        (number, outcome): (usize, Outcome),
        until: Instant,
    ) -> Result<(), TuneError> {
        if self.stopped() {
            return Ok(());
        }
        let point = &batch[number];
        // Once the time is up and something works, the rest of the batch is let go, unjudged.
        if Instant::now() > until && !work.right.is_empty() {
            return Ok(());
        }
        let compiled = match outcome {
            Ok(c) if c.info.spills > 0 => {
                let why = format!("spills {} bytes", c.info.spills);
                return self.judged(work, point, Verdict::Rejected { why }, None);
            }
            Ok(c) => c,
            Err(NotCompiled::Broken(f)) => return Err(TuneError::Device(f)),
            Err(NotCompiled::Judged(verdict)) => return self.judged(work, point, verdict, None),
        };
        let runnable = match self.runnable(work, point, &compiled) {
            Ok(r) => r,
            Err(e) => return self.judged(work, point, Verdict::Rejected { why: e.to_string() }, None),
        };
        let verdict = work.measurer.attempt(&runnable, SCREEN_ROUNDS, self.deadline(work.roofline_us))?;
        self.judged(work, point, verdict, Some(compiled))
    }

    /// Writes a new verdict down and takes it into account.
    fn judged(
        &self,
        work: &mut Work,
        point: &Point,
        verdict: Verdict,
        compiled: Option<Artifact>,
    ) -> Result<(), TuneError> {
        let body = serde_json::to_value(&verdict).map_err(|e| TuneError::Record(e.to_string()))?;
        let key = work.keys[point.template].clone();
        self.db.put_trial(&Record::trial(key, point.config.to_string(), body))?;
        self.account(work, point, verdict, compiled)
    }

    fn account(
        &self,
        work: &mut Work,
        point: &Point,
        verdict: Verdict,
        compiled: Option<Artifact>,
    ) -> Result<(), TuneError> {
        work.tried += 1;
        match (&verdict, verdict.median_us()) {
            (Verdict::Measured { error_rms, error_max, compared, .. }, Some(us)) => {
                work.searcher.tell(point, us);
                let errors = Errors { rms: *error_rms, max: *error_max, compared: *compared };
                work.right.push(Right { point: point.clone(), us, compiled, errors });
            }
            _ => *work.rejected.entry(verdict.reason().into()).or_default() += 1,
        }
        let template = work.templates[point.template].name().to_string();
        self.tell(Event::Trial {
            problem: work.problem,
            template,
            config: point.config.clone(),
            verdict,
            best_us: work.best_us(),
            roofline_us: work.roofline_us,
            trials: work.tried,
        });
        Ok(())
    }

    fn runnable(&self, work: &Work, point: &Point, compiled: &Artifact) -> Result<Runnable, TuneError> {
        let recipe: &Recipe = &work.templates[point.template].recipe;
        let launch = recipe.launch(&work.problem, work.measurer.device(), &point.config)?;
        Ok(Runnable { artifact: compiled.clone(), launch })
    }

    /// Times the best few round by round in turn, and picks from those that cannot be told apart the one that comes
    /// first by prediction, then by name: two runs and two machines of a kind choose alike.
    fn finals(&self, work: &mut Work, device: &crate::device::Device) -> Result<Chosen, TuneError> {
        work.right.sort_by(|a, b| a.us.total_cmp(&b.us));
        let limit = work.right[0].us * FINAL_MARGIN;
        work.right.retain(|r| r.us <= limit);
        work.right.truncate(FINALISTS);
        let mut finalists: Vec<(Point, Artifact)> = Vec::new();
        for right in &work.right {
            let compiled = match &right.compiled {
                Some(c) => c.clone(),
                // Its verdict is remembered from an earlier run: only the artifact is made again.
                None => self.bench().artifact(
                    &work.templates[right.point.template],
                    &work.problem,
                    device,
                    &right.point.config,
                )?,
            };
            finalists.push((right.point.clone(), compiled));
        }
        let runnables: Vec<Runnable> =
            finalists.iter().map(|(p, c)| self.runnable(work, p, c)).collect::<Result<_, _>>()?;
        let deadline = self.deadline(work.roofline_us) * 4;
        let series = work.measurer.finals(&runnables, FINAL_ROUNDS, deadline)?;
        let mut tied = ties(&series);
        let name = |i: usize| format!("{} {}", work.templates[finalists[i].0.template].name(), finalists[i].0.config);
        tied.sort_by(|&a, &b| {
            let (x, y) = (&finalists[a].0, &finalists[b].0);
            x.cost_us.total_cmp(&y.cost_us).then_with(|| name(a).cmp(&name(b)))
        });
        let chosen = tied[0];
        let others = tied[1..].iter().map(|&i| name(i)).collect();
        Ok((finalists[chosen].clone(), series[chosen].clone(), others))
    }

    /// The winner is checked once more after all timing, on other inputs where that is affordable.
    fn check_again(
        &self,
        work: &mut Work,
        (point, compiled): &(Point, Artifact),
        setup: Setup,
    ) -> Result<Errors, TuneError> {
        if work.problem.tensors().iter().map(|t| t.bytes()).sum::<u64>() <= FRESH_BYTES {
            let fresh = Setup { seed: setup.seed.wrapping_add(0x5eed), ..setup };
            work.measurer.prepare(fresh)?;
        }
        let runnable = self.runnable(work, point, compiled)?;
        match work.measurer.attempt(&runnable, 0, self.deadline(work.roofline_us))? {
            Verdict::Measured { error_rms, error_max, compared, .. } => {
                let before = work.right.iter().find(|r| r.point == *point).map_or_else(Errors::default, |r| r.errors);
                let (rms, max) = (before.rms.max(error_rms), before.max.max(error_max));
                Ok(Errors { rms, max, compared: before.compared + compared })
            }
            other => {
                // It was right and is not any more: a race. It loses its standing, in the journal too.
                let key = work.keys[point.template].clone();
                let body = serde_json::to_value(&other).map_err(|e| TuneError::Record(e.to_string()))?;
                self.db.put_trial(&Record::trial(key, point.config.to_string(), body))?;
                let config = format!("{} {}", work.templates[point.template].name(), point.config);
                Err(TuneError::Unstable { problem: work.problem, config, verdict: Box::new(other) })
            }
        }
    }

    fn winner(
        &self,
        work: &Work,
        (point, compiled): (Point, Artifact),
        series: Series,
        tied: Vec<String>,
        errors: Errors,
        start: Instant,
    ) -> Result<Winner, TuneError> {
        let device = work.measurer.device().clone();
        let median_us = series.median();
        let (roofline_s, memory_bound) = device.roofline(&work.problem);
        let roofline_us = roofline_s * 1e6;
        let mut description = work.templates[point.template].recipe.description.clone();
        // A bundle needs the names of the tunables (they are in the config) but not the lists to choose from.
        for (name, values) in &mut description.tunables {
            *values = point.config.get(name).into_iter().collect();
        }
        Ok(Winner {
            problem: work.problem,
            config: point.config,
            artifact: compiled.hash,
            description,
            evidence: Evidence {
                median_us,
                roofline_us,
                roofline_share: roofline_us / median_us,
                memory_bound,
                error_rms: errors.rms,
                error_max: errors.max,
                compared: errors.compared,
                ties: tied,
                trials: work.tried,
                rejected: work.rejected.clone(),
                space: work.space,
                compiler_report: compiled.info,
                environment: self.environment(),
                seconds: start.elapsed().as_secs_f64(),
                at: jitune_db::now(),
                samples_us: series.us,
                clocks_mhz: series.mhz.into_iter().filter(|m| *m > 0).collect(),
                dropped_rounds: series.dropped,
            },
            device,
        })
    }

    fn store(&self, winner: &Winner, device: &crate::device::Device, work: &Work) -> Result<(), TuneError> {
        let file = self.scratch.join(&winner.artifact);
        let bytes = std::fs::read(&file).map_err(|source| TuneError::Io { path: file, source })?;
        self.db.put_artifact(&bytes)?;
        let key = self.context(device).winner(self.library, &winner.problem, &work.templates);
        let body = serde_json::to_value(winner).map_err(|e| TuneError::Record(e.to_string()))?;
        self.db.put_winner(&Record::winner(key, body))?;
        self.remember(winner);
        Ok(())
    }

    /// Configs of the winners of neighbouring problems: same op and template, any shape; the latest first.
    fn remembered(&self, problem: &Problem, templates: &[Arc<Template>]) -> Vec<(usize, Config)> {
        let memory = lock(&self.memory);
        let near = memory.iter().rev().filter(|(p, ..)| p.op().name == problem.op().name && p.dtype == problem.dtype);
        let place = |name: &str| templates.iter().position(|t| t.name() == name);
        let mut list: Vec<(usize, Config)> = Vec::new();
        for (_, template, config) in near {
            if let Some(i) = place(template)
                && !list.contains(&(i, config.clone()))
                && list.len() < 4
            {
                list.push((i, config.clone()));
            }
        }
        list
    }

    fn remember(&self, winner: &Winner) {
        let mut memory = lock(&self.memory);
        memory.push((winner.problem, winner.template().to_string(), winner.config.clone()));
    }
}

impl Work<'_> {
    fn best_us(&self) -> f64 {
        self.right.iter().map(|r| r.us).fold(f64::INFINITY, f64::min)
    }
}

fn summary(rejected: &BTreeMap<String, u32>) -> String {
    rejected.iter().map(|(why, n)| format!("{n} {why}")).collect::<Vec<_>>().join(", ")
}
