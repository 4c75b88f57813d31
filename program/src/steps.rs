//! `jitune tune --steps`: the kernels that make whole steps of a model the fastest.

use super::opened::{Loading, ModelArgs, failed};
use super::progress::{Live, Progress};
use super::tune::{AT_ONCE, Args, on_signals};
use super::{CliError, table};
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::engine::{Case, Compared, EngineError, Go, StepChoice, Timer, Watch};
use jitune::problem::{MAX_DIM, Problem};
use jitune::runtime::Runtime;
use jitune::tune::{self, Options, Settled};
use jitune::winner::{InStep, Winner};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Kernels of a problem that stand in for its winner.
const RIVALS: usize = 5;
/// Tokens that sequences see most often.
const USUAL_CONTEXT: i64 = 1024;
/// Most tokens that all sequences of a step see together.
const MOST_TOKENS: i64 = 1 << 18;
/// Seconds that compiling what came close, and verifying what was chosen, may take where no budget is given.
const BUDGET: u64 = 120;

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let Args { which, device, store, templates, budget, json, .. } = args;
    let stop = on_signals()?;
    AT_ONCE.store(true, Ordering::Relaxed);
    let model = ModelArgs::of(which, device, store, templates)?;
    let opened = model.open()?;
    let cases = cases(args, opened.target, opened.model.max_position_embeddings)?;
    let (batch, context) = largest(&cases);
    let mut options = opened.options(context);
    options.sequences = batch;
    options.tokens = batch.max(context.min(512));
    let bundle = opened.alone(&options)?;
    let (runtime, mut line) = (opened.on(&bundle)?, Loading::default());
    let timer = Timer::open(runtime, &opened.model, &opened.weights, options, |there, all| line.show(there, all));
    drop(line);
    let mut timer = timer.map_err(failed)?;

    let winners: Vec<Winner> = bundle.winners().map(|held| held.winner()).collect();
    let mut problems: Vec<Problem> = Vec::new();
    // Of each batch, the problems that have a choice.
    let mut asked: Vec<Vec<Problem>> = Vec::new();
    for steps in &cases {
        let mut these: Vec<Problem> = Vec::new();
        for case in steps {
            let places = timer.tuned(*case).map_err(failed)?;
            let found = places.into_iter().flat_map(|place| winners.get(place)).map(|w| w.problem);
            these.extend(found.filter(|p| !these.contains(p)).collect::<Vec<_>>());
        }
        problems.extend(these.iter().filter(|p| !problems.contains(p)).collect::<Vec<_>>());
        asked.push(these);
    }
    if problems.is_empty() {
        let text = format!(
            "none of these steps has a kernel that was tuned for it; `jitune tune {}` finds some",
            model.tuned_by()
        );
        return Err(CliError::Partly(text));
    }
    let library = templates.library()?;
    let db = store.open()?;
    let begun = Instant::now();
    let left = |share: f64| match budget {
        Some(budget) => part(Duration::from_secs(*budget).saturating_sub(begun.elapsed()), share),
        None => Duration::from_secs(BUDGET),
    };
    let within =
        |share: f64| Ok::<_, CliError>(Options { nominal: true, ..args.options(vec![device.first()?], left(share)) });
    AT_ONCE.store(false, Ordering::Relaxed);
    let here = timer.runtime().device().clone();
    let rivals = tune::rivals(&db, &library, &here, &problems, RIVALS, &within(1.0 / 3.0)?, &stop)?;
    let others = beside(&timer, &rivals)?;

    let live = Live::new("{elapsed_precise}  {wide_msg}");
    let mut done = Done { choices: Vec::new(), compared: (0, 0), settled: 0, withdrawn: 0, not_stored: Vec::new() };
    // What could not be verified beside the engine is tried again without it.
    let mut again: Vec<Settled> = Vec::new();
    let store = |settled: &[Settled], options: &Options| {
        let progress = Progress::new(*json, options.budget.unwrap_or_default());
        let report = tune::in_steps(&db, &library, settled, options, &progress, &stop);
        progress.finish();
        match report? {
            report if report.interrupted => Err(CliError::Interrupted),
            report => Ok(report),
        }
    };
    for (at, steps) in cases.iter().enumerate() {
        let said = words(steps[0]);
        live.message(&said);
        let share = 1.0 / (cases.len() - at) as f64;
        let ends = |part: f64| budget.and_then(|_| Instant::now().checked_add(left(share * part)));
        let (no_more, end) = (ends(0.5), ends(0.75));
        let mut watch = Comparing { said: &said, json: *json, live: &live, compared: &mut done.compared, no_more, end };
        AT_ONCE.store(true, Ordering::Relaxed);
        let choice = timer.choose(steps, &others, &mut watch);
        AT_ONCE.store(false, Ordering::Relaxed);
        let choice = match choice {
            Ok(Some(choice)) => choice,
            Ok(None) => {
                err!("jitune: note: {said}: the time was up before anything was chosen");
                continue;
            }
            Err(EngineError::Request(why)) => {
                err!("jitune: note: {said} is left out: {why}; a shorter --context needs less memory");
                continue;
            }
            Err(e) => return Err(failed(e)),
        };
        if no_more.is_some_and(|end| end <= Instant::now()) {
            err!("jitune: note: {said}: the time was up before all kernels were compared");
        } else {
            let replaced = |p: &&Problem| !choice.chosen.iter().any(|c| c.kernel.problem().bucket() == p.bucket());
            let kept: Vec<Problem> = asked[at].iter().filter(replaced).copied().collect();
            let alike =
                |a: &Winner, b: &Winner| a.problem == b.problem && a.template() == b.template() && a.config == b.config;
            let compared = |w: &Winner| {
                winners.iter().chain(rivals.iter().flatten().map(|r| &r.winner)).any(|other| alike(w, other))
            };
            done.withdrawn += tune::not_in_steps(&db, &library, &here, &kept, &compared)?;
        }
        let settled = settled(&choice, &winners, &rivals, &opened.model.name);
        done.settled += settled.len();
        if !settled.is_empty() {
            live.message(&format!("{said}: verifying"));
            let report = store(&settled, &within(share)?)?;
            let failed = |s: &Settled| report.failed().any(|f| f.problem == s.problem);
            again.extend(settled.into_iter().filter(failed));
        }
        done.choices.push(choice);
    }
    live.finish_and_clear();
    drop((timer, others));
    if !again.is_empty() {
        let report = store(&again, &within(1.0)?)?;
        done.not_stored.extend(report.failed().map(|f| format!("{}: {}", f.problem, f.error)));
    }
    db.close()?;
    done.show(*json);
    match done.not_stored.first() {
        None => Ok(()),
        Some(first) => {
            let (failed, all) = (done.not_stored.len(), done.settled);
            Err(CliError::Partly(format!("{failed} of {all} kernels are not stored: {first}")))
        }
    }
}

/// A part of a time, which may be longer than any clock runs.
fn part(time: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * share).unwrap_or(Duration::MAX)
}

/// Tells what is compared, and ends it in time.
struct Comparing<'a> {
    said: &'a str,
    json: bool,
    live: &'a Live,
    /// How many kernels stood in for others, and how many of them stayed.
    compared: &'a mut (u32, u32),
    /// When nothing new is compared any more, and when nothing at all.
    no_more: Option<Instant>,
    end: Option<Instant>,
}

impl Watch for Comparing<'_> {
    fn compared(&mut self, c: &Compared) {
        let Comparing { said, live, .. } = self;
        *self.compared = (self.compared.0 + 1, self.compared.1 + u32::from(c.stays));
        let kernel = c.kernel.as_deref().unwrap_or("two kernels");
        let [before, with] = c.us.map(table::us);
        if self.json {
            let event = serde_json::json!({ "event": "compared", "step": said, "problem": c.problem, "kernel": c.kernel,
                "steps": c.steps, "us": c.us, "stays": c.stays });
            out!("{event}");
        } else if c.stays {
            live.say(&format!("{said}: {before} -> {with} us by {kernel} for {}", c.problem));
        }
        live.message(&format!("{said}: {kernel} for {}", c.problem));
    }

    fn go(&mut self) -> Go {
        let is_over = |end: Option<Instant>| end.is_some_and(|end| end <= Instant::now());
        match (is_over(self.no_more), is_over(self.end)) {
            (_, true) => Go::No,
            (true, _) => Go::ToTheEnd,
            _ => Go::On,
        }
    }
}

/// What is to be stored of a choice.
fn settled(choice: &StepChoice, winners: &[Winner], rivals: &[Vec<tune::Rival>], model: &str) -> Vec<Settled> {
    let settle = |chosen: &jitune::engine::Chosen| {
        let winner = match chosen.other {
            Some(other) => {
                rivals.iter().flat_map(|list| list.get(other)).map(|r| &r.winner).find(|w| is(w, &chosen.kernel))
            }
            None => winners.get(chosen.kernel.winner()),
        }?;
        let over = winners.iter().find(|own| own.problem == winner.problem)?;
        let (case, [before_us, us]) = choice.steps[chosen.case];
        let step = format!("{} of {model}", words(case));
        Some(Settled {
            problem: winner.problem,
            template: winner.template().into(),
            config: winner.config.clone(),
            step: InStep { step, us, before_us, over: over.artifact.clone() },
        })
    };
    choice.chosen.iter().filter_map(settle).collect()
}

/// The steps: for each batch the contexts that decodes are tuned for, of which the first says most of what they share.
fn cases(args: &Args, target: Target, most: i64) -> Result<Vec<Vec<Case>>, CliError> {
    let buckets = &args.which.buckets;
    let usual: &[i64] = if target == Target::Cuda { &[1, 2, 4, 8, 16, 32, 64, 128, 256] } else { &[1, 4] };
    let mut batches = if buckets.batch.is_empty() { usual.to_vec() } else { buckets.batch.clone() };
    // Once each: a second choice would be held against the first one's.
    let mut known = HashSet::new();
    batches.retain(|batch| known.insert(*batch));
    let longest = buckets.context.unwrap_or(4096).min(most);
    if let Some(bad) = batches.iter().chain([&longest]).find(|n| !(1..=MAX_DIM).contains(*n)) {
        return Err(CliError::Usage(format!("{bad} is no size of a step")));
    }
    let shorter = std::iter::successors(Some(256), |c| Some(4 * c)).take_while(|c| *c < longest);
    let mut contexts: Vec<i64> = shorter.chain([longest]).collect();
    contexts.sort_by_key(|c| (c - USUAL_CONTEXT).abs());
    let of = |batch: &i64| {
        let all = contexts.iter().map(|context| (*batch, *context)).enumerate();
        let fits = all.filter(|(i, (b, c))| *i == 0 || b.saturating_mul(*c) <= MOST_TOKENS);
        fits.map(|(_, (batch, context))| Case::Decode { batch, context }).collect()
    };
    Ok(batches.iter().map(of).collect())
}

/// The most sequences, and the longest context.
fn largest(cases: &[Vec<Case>]) -> (i64, i64) {
    let sizes = cases.iter().flatten().map(|case| match case {
        Case::Decode { batch, context } => (*batch, *context),
        Case::Prompt { tokens } => (1, *tokens),
    });
    sizes.fold((1, 1), |(a, b), (batch, context)| (a.max(batch), b.max(context)))
}

fn words(case: Case) -> String {
    match case {
        Case::Decode { batch, context } => format!("decode batch={batch} context={context}"),
        Case::Prompt { tokens } => format!("prompt tokens={tokens}"),
    }
}

fn is(winner: &Winner, kernel: &jitune::runtime::Kernel) -> bool {
    winner.problem.bucket() == kernel.problem().bucket()
        && winner.template() == kernel.template()
        && winner.config == *kernel.config()
}

/// The first rivals of all problems, the second ones, and so on, each loaded beside the winners.
fn beside(timer: &Timer, rivals: &[Vec<tune::Rival>]) -> Result<Vec<Runtime>, CliError> {
    let mut list = Vec::new();
    for place in 0..RIVALS {
        let parts: Vec<_> =
            rivals.iter().filter_map(|of| of.get(place)).map(|r| (r.winner.clone(), r.code.clone())).collect();
        if !parts.is_empty() {
            let bundle = Bundle::seal(parts).map_err(|e| CliError::Partly(e.to_string()))?;
            list.push(timer.beside(&bundle).map_err(failed)?);
        }
    }
    Ok(list)
}

/// What came of it.
struct Done {
    choices: Vec<StepChoice>,
    /// Kernels that stood in for others, and those that stayed.
    compared: (u32, u32),
    /// Kernels that were chosen.
    settled: usize,
    /// Of how many problems an earlier choice is withdrawn.
    withdrawn: usize,
    /// Why some are not stored.
    not_stored: Vec<String>,
}

impl Done {
    fn show(&self, json: bool) {
        let mut rows = Vec::new();
        for choice in &self.choices {
            for (at, (case, [before_us, us])) in choice.steps.iter().enumerate() {
                let chosen = || choice.chosen.iter().filter(|c| c.case == at).map(|c| &c.kernel);
                if json {
                    let kernels: Vec<_> = chosen()
                        .map(|k| serde_json::json!({ "problem": k.problem(), "template": k.template(), "config": k.config() }))
                        .collect();
                    let (step, kind) = (words(*case), "steps");
                    let event = serde_json::json!({ "event": kind, "step": step, "before_us": before_us, "us": us, "chosen": kernels });
                    out!("{event}");
                }
                let kernels: Vec<String> =
                    chosen().map(|k| format!("{} {}", k.problem().op().name, k.template())).collect();
                let ratio = format!("{:.3}", us / before_us);
                rows.push(vec![words(*case), table::us(*before_us), table::us(*us), ratio, kernels.join(", ")]);
            }
        }
        if json {
            return;
        }
        let (tried, stayed) = self.compared;
        table::print(&["step", "winners us", "chosen us", "ratio", "in the place of winners"], &rows, &[1, 2, 3]);
        out!("{tried} kernels stood in for others, {stayed} made steps faster");
        if self.withdrawn > 0 {
            out!("{} that were chosen earlier do so no more: the winners run there again", self.withdrawn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_longest_time_is_one() {
        let (longest, minute) = (Duration::from_secs(u64::MAX), Duration::from_secs(60));
        assert!(part(longest, 1.0) >= longest && part(longest, 0.5) > Duration::from_secs(u64::MAX / 3));
        assert_eq!((part(minute, 0.25), part(minute, 0.0)), (Duration::from_secs(15), Duration::ZERO));
    }
}
