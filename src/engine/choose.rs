//! Which kernels make a whole step the fastest.
//!
//! A kernel's own time is taken between launches of itself, whose blocks and weights come in while the last ones end. In a step another
//! kernel is before it, which may leave it no room on the multiprocessors, or another division of their shared memory, so that of two
//! kernels that take the same time by themselves one makes a step some percent longer (docs/performance/engine.md). What a step takes
//! is known by taking it: kind by kind each kernel that came close by itself stands in for the one that runs, both in turn, and stays
//! where the step is faster each time.

use super::EngineError;
use super::measure::{Case, Timer};
use super::step::{Answers, Instead, fused};
use crate::bundle::Bundle;
use crate::median::median;
use crate::model::with_norms_in_products;
use crate::problem::Problem;
use crate::program::Program;
use crate::runtime::{Kernel, Match, Runtime};
use std::sync::Arc;

/// By which share steps have to be faster for a kernel to stay, each time that both are timed; none of them may be slower by as much.
const GAIN: f64 = 0.003;
/// By which share all that was chosen has to make them faster together.
const WORTH: f64 = 0.005;
/// Rounds of one turn.
const ROUNDS: usize = 3;
/// Turns of a comparison; the first that speaks against a kernel is the last.
const TURNS: usize = 2;
const LAST_TURNS: usize = 4;
/// Times that all kinds are gone through: what stands beside a kernel has changed since it was asked.
const SWEEPS: usize = 3;

/// A kernel that steps run better than what they would run by times of kernels alone.
#[derive(Clone)]
#[non_exhaustive]
pub struct Chosen {
    /// The kernel, for the problem of the step.
    pub kernel: Arc<Kernel>,
    /// Of which of the other runtimes it is; none: of the timer's own.
    pub other: Option<usize>,
    /// The first of the cases in which it runs.
    pub case: usize,
}

/// What was chosen for some steps.
#[derive(Clone)]
#[non_exhaustive]
pub struct StepChoice {
    /// The steps, each with its median microseconds with what ran before, and with all that was chosen, in turn; as before where nothing was.
    pub steps: Vec<(Case, [f64; 2])>,
    /// What was chosen.
    pub chosen: Vec<Chosen>,
}

/// A kernel that stood in for another, or a norm and its product as one kernel or two.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Compared {
    /// The problem.
    pub problem: Problem,
    /// Template and config; none: two kernels in the place of one.
    pub kernel: Option<String>,
    /// How many of the steps run it, or its winner's code for another size.
    pub steps: usize,
    /// Microseconds of those that were timed, together, before and with it: what speaks against it ends that.
    pub us: [f64; 2],
    /// Whether it stays.
    pub stays: bool,
}

/// A norm and the product behind it, and both as one.
#[derive(Clone, Copy)]
struct Pair {
    product: Problem,
    both: Problem,
}

/// When steps count as faster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The first of them has to be by itself; whatever speaks against it ends the comparison.
    FirstAbove,
    /// All together, timed to the end.
    Together,
}

/// Whether choosing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// It does.
    On,
    /// With nothing new: what stays so far is what is to be made sure of.
    ToTheEnd,
    /// It does not, and nothing is chosen.
    No,
}

/// Who hears what was compared, and says before each step whether to go on.
pub trait Watch {
    /// Two were compared.
    fn compared(&mut self, it: &Compared);
    /// Whether to go on.
    fn go(&mut self) -> Go;
}

/// Median microseconds of steps with the one and with the other kernels, and whether the others are better.
type Versus = (Vec<[f64; 2]>, bool);

/// What is on its way to a choice.
struct Choosing<'a> {
    cases: &'a [Case],
    programs: Vec<Program>,
    pairs: Vec<Pair>,
    now: Instead,
    /// How often that changed.
    changes: u32,
    watch: &'a mut dyn Watch,
}

impl Timer {
    /// The kernels of the timer's runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.core.runtime
    }

    /// The places in the runtime's bundle of the winners that were tuned for the very problems of the step of a case, norms in products
    /// among them, portable ones left out.
    pub fn tuned(&self, case: Case) -> Result<Vec<usize>, EngineError> {
        let program = self.program(case)?;
        let mut list = Vec::new();
        let pairs = pairs(&program);
        let problems = program.steps.iter().map(|step| &step.problem).chain(pairs.iter().map(|pair| &pair.both));
        for kernel in problems.filter_map(|p| own(&self.core.runtime, p)) {
            if !list.contains(&kernel.winner()) {
                list.push(kernel.winner());
            }
        }
        Ok(list)
    }

    /// Loads a bundle beside the runtime's, for [`Timer::choose`].
    pub fn beside(&self, bundle: &Bundle<'_>) -> Result<Runtime, EngineError> {
        Ok(self.core.runtime.beside(bundle)?)
    }

    /// Chooses, of the kernels that these runtimes have for the very problems of some decode steps, those with which they are the fastest,
    /// and whether norms are in products. What several of the steps run has to serve all of them, the first above all. Nothing where `watch`
    /// does not let it go on.
    pub fn choose(
        &mut self,
        cases: &[Case],
        others: &[Runtime],
        watch: &mut dyn Watch,
    ) -> Result<Option<StepChoice>, EngineError> {
        let found = self.search(cases, others, watch);
        self.core.answer_by(&Instead::new())?;
        found
    }

    fn search(
        &mut self,
        cases: &[Case],
        others: &[Runtime],
        watch: &mut dyn Watch,
    ) -> Result<Option<StepChoice>, EngineError> {
        let programs = cases.iter().map(|case| self.program(*case)).collect::<Result<Vec<_>, _>>()?;
        let mut all_pairs: Vec<Pair> = Vec::new();
        for pair in programs.iter().flat_map(pairs) {
            if !all_pairs.iter().any(|p| p.both == pair.both) {
                all_pairs.push(pair);
            }
        }
        let mut choosing =
            Choosing { cases, programs, pairs: all_pairs.clone(), now: Instead::new(), changes: 0, watch };
        for pair in all_pairs {
            let Some(one) = own(&self.core.runtime, &pair.both).filter(|one| self.core.has_room(one)) else { continue };
            let other = if self.runs(&choosing, &pair.both).is_empty() { Some(one) } else { None };
            self.compare(&mut choosing, pair.product, pair.both, other)?;
        }
        // Of each kind, how often anything had changed when it was asked.
        let mut asked: Vec<(Problem, u32)> = Vec::new();
        for _ in 0..SWEEPS {
            for problem in self.kinds(&choosing)? {
                if asked.contains(&(problem, choosing.changes)) {
                    continue;
                }
                let mut tried = vec![self.answers(&choosing.now).lookup(&problem)?];
                for runtime in std::iter::once(&self.core.runtime).chain(others) {
                    let Some(kernel) = own(runtime, &problem).filter(|k| self.core.has_room(k)) else { continue };
                    if !tried.iter().any(|k| k.template() == kernel.template() && k.config() == kernel.config()) {
                        tried.push(kernel);
                    }
                }
                for kernel in tried.drain(1..) {
                    self.compare(&mut choosing, problem, problem, Some(kernel))?;
                }
                asked.push((problem, choosing.changes));
            }
        }
        let Choosing { programs, pairs: all_pairs, now, watch, .. } = choosing;
        let winners = Instead::new();
        let (times, better) = match now.is_empty() {
            true => {
                let mut times = Vec::new();
                for case in cases {
                    let Some(us) = self.in_turn(*case, &winners, Go::ToTheEnd, watch)? else { return Ok(None) };
                    times.push([us; 2]);
                }
                (times, false)
            }
            false => match self.versus(cases, &winners, &now, Rule::Together, watch)? {
                Some(versus) => versus,
                None => return Ok(None),
            },
        };
        let steps: Vec<(Case, [f64; 2])> = cases.iter().copied().zip(times).collect();
        if !better {
            let steps = steps.into_iter().map(|(case, [us, _])| (case, [us, us])).collect();
            return Ok(Some(StepChoice { steps, chosen: Vec::new() }));
        }
        let mut chosen: Vec<Chosen> = Vec::new();
        for (problem, kernel) in &now {
            let kernel = match (kernel, all_pairs.iter().find(|pair| pair.both == *problem)) {
                (Some(kernel), _) => Arc::clone(kernel),
                // Two kernels, of which the product's says so; it may be among the chosen already.
                (None, Some(pair)) if !now.contains_key(&pair.product) => self.core.runtime.lookup(&pair.product)?,
                (None, _) => continue,
            };
            let is_its = |other: &Runtime| own(other, problem).is_some_and(|its| Arc::ptr_eq(&its, &kernel));
            let other = others.iter().position(is_its);
            let runs = |p: &Program| fused(self.answers(&now), p).steps.iter().any(|s| s.problem == *kernel.problem());
            let Some(case) = programs.iter().position(runs) else { continue };
            chosen.push(Chosen { kernel, other, case });
        }
        chosen.sort_by_key(|c| (c.case, c.kernel.problem().to_string()));
        Ok(Some(StepChoice { steps, chosen }))
    }

    fn answers<'a>(&'a self, instead: &'a Instead) -> Answers<'a> {
        Answers { runtime: &self.core.runtime, instead }
    }

    /// The places of the cases whose steps run a problem now, or another size by the kernel for it.
    fn runs(&self, choosing: &Choosing<'_>, problem: &Problem) -> Vec<usize> {
        let answers = self.answers(&choosing.now);
        let answered = |asked: &Problem| {
            let rung = self.core.runtime.lookup(asked).map(|kernel| kernel.rung());
            matches!(rung, Ok(Match::Bucket { tuned }) if tuned.bucket() == problem.bucket())
        };
        let run = |p: &Program| {
            fused(answers, p).steps.iter().any(|step| step.problem == *problem || answered(&step.problem))
        };
        (0..choosing.programs.len()).filter(|at| run(&choosing.programs[*at])).collect()
    }

    /// The problems of all steps, as they run now, each once: what takes most of them first.
    fn kinds(&self, choosing: &Choosing<'_>) -> Result<Vec<Problem>, EngineError> {
        let answers = self.answers(&choosing.now);
        let mut kinds: Vec<(Problem, f64)> = Vec::new();
        for program in &choosing.programs {
            for step in &fused(answers, program).steps {
                let us = answers.lookup(&step.problem)?.predicted_us();
                match kinds.iter_mut().find(|(problem, _)| *problem == step.problem) {
                    Some((_, all)) => *all += us,
                    None => kinds.push((step.problem, us)),
                }
            }
        }
        kinds.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Ok(kinds.into_iter().map(|(problem, _)| problem).collect())
    }

    /// Lets a kernel, or none, stand for `problem` where the steps that run `of` are faster so.
    fn compare(
        &mut self,
        choosing: &mut Choosing<'_>,
        of: Problem,
        problem: Problem,
        kernel: Option<Arc<Kernel>>,
    ) -> Result<(), EngineError> {
        if choosing.watch.go() != Go::On {
            return Ok(());
        }
        let mut with = choosing.now.clone();
        let is_pair = choosing.pairs.iter().any(|pair| pair.both == problem);
        match &kernel {
            // The winner is in nobody's place.
            Some(k) if !is_pair && Arc::ptr_eq(k, &self.core.runtime.lookup(&problem)?) => with.remove(&problem),
            _ => with.insert(problem, kernel.clone()),
        };
        let mut places = self.runs(choosing, &of);
        places.extend(self.runs(choosing, &problem).into_iter().filter(|at| !places.contains(at)).collect::<Vec<_>>());
        let cases: Vec<Case> = places.iter().map(|at| choosing.cases[*at]).collect();
        let versus = self.versus(&cases, &choosing.now, &with, Rule::FirstAbove, choosing.watch)?;
        let Some((times, stays)) = versus else { return Ok(()) };
        if stays {
            choosing.now = with;
            choosing.changes += 1;
        }
        let us = times.iter().fold([0.0; 2], |[a, b], [us, with]| [a + us, b + with]);
        let kernel = kernel.map(|k| format!("{} {}", k.template(), k.config()));
        choosing.watch.compared(&Compared { problem, kernel, steps: cases.len(), us, stays });
        Ok(())
    }

    /// Medians of the microseconds of steps with the one and with the other kernels, in turn, and whether the others made all of them
    /// together faster each time, and none slower. Nothing where it is not gone on.
    fn versus(
        &mut self,
        cases: &[Case],
        one: &Instead,
        other: &Instead,
        rule: Rule,
        watch: &mut dyn Watch,
    ) -> Result<Option<Versus>, EngineError> {
        let (turns, share, until) = match rule {
            Rule::FirstAbove => (TURNS, GAIN, Go::On),
            Rule::Together => (LAST_TURNS, WORTH, Go::ToTheEnd),
        };
        let mut us: Vec<[Vec<f64>; 2]> = cases.iter().map(|_| Default::default()).collect();
        let mut better = !cases.is_empty();
        for _ in 0..turns {
            let mut sums = [0.0; 2];
            for (place, case) in cases.iter().enumerate() {
                let (Some(before), Some(with)) =
                    (self.in_turn(*case, one, until, watch)?, self.in_turn(*case, other, until, watch)?)
                else {
                    return Ok(None);
                };
                let these = [before, with];
                (0..2).for_each(|i| us[place][i].push(these[i]));
                (0..2).for_each(|i| sums[i] += these[i]);
                let first = rule == Rule::FirstAbove && place == 0;
                better &= these[1] < these[0] * (if first { 1.0 - share } else { 1.0 + share });
                if rule == Rule::FirstAbove && !better {
                    break;
                }
            }
            better &= sums[1] < sums[0] * (1.0 - share);
            if rule == Rule::FirstAbove && !better {
                break;
            }
        }
        let timed = us.into_iter().filter(|[a, _]| !a.is_empty());
        Ok(Some((timed.map(|us| us.map(|us| median(&us))).collect(), better)))
    }

    /// Microseconds of a step with these kernels; nothing where it is not gone on, `until` there and further.
    fn in_turn(
        &mut self,
        case: Case,
        instead: &Instead,
        until: Go,
        watch: &mut dyn Watch,
    ) -> Result<Option<f64>, EngineError> {
        self.core.answer_by(instead)?;
        let mut goes_on = || match watch.go() {
            Go::On => true,
            Go::ToTheEnd => until == Go::ToTheEnd,
            Go::No => false,
        };
        let Some(mut turns) = self.turns_where(case, &mut goes_on)? else { return Ok(None) };
        let mut us = Vec::new();
        // The first binds.
        for round in 0..=ROUNDS {
            if !goes_on() {
                return Ok(None);
            }
            let (step_us, tokens) = self.turn(&mut turns)?;
            turns.back(tokens);
            us.extend((round > 0).then_some(step_us));
        }
        Ok(Some(median(&us)))
    }

    fn program(&self, case: Case) -> Result<Program, EngineError> {
        match case {
            Case::Decode { batch, context } => self.core.decode(batch, context),
            Case::Prompt { .. } => Err(EngineError::Request("kernels are chosen by steps that decode".into())),
        }
    }
}

/// The kernel that was tuned for this very problem, unless it is portable.
fn own(runtime: &Runtime, problem: &Problem) -> Option<Arc<Kernel>> {
    let kernel = runtime.lookup(problem).ok()?;
    (kernel.rung() == Match::Exact && !kernel.is_portable()).then_some(kernel)
}

/// Each norm of a program with the product that alone reads it, once.
fn pairs(program: &Program) -> Vec<Pair> {
    let mut list = Vec::new();
    with_norms_in_products(program, |_, product, both| {
        list.push(Pair { product: *product, both: *both });
        false
    });
    list
}
