//! `jitune tune --steps`: the kernels that make whole steps of a model the fastest.

use super::opened::{Loading, ModelArgs, failed};
use super::progress::{Live, Progress};
use super::tune::{Args, on_signals};
use super::{CliError, table};
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::engine::{Case, Compared, EngineError, StepChoice, Timer};
use jitune::problem::{MAX_DIM, Problem};
use jitune::runtime::Runtime;
use jitune::tune::{self, Options, Settled};
use jitune::winner::{InStep, Winner};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Kernels of a problem that stand in for its winner.
const RIVALS: usize = 5;
/// Tokens that sequences see most often.
const USUAL_CONTEXT: i64 = 1024;
/// Most tokens that all sequences of a step see together.
const MOST_TOKENS: i64 = 1 << 18;
/// Seconds that verifying what was chosen may take where no budget is given.
const BUDGET: u64 = 120;

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let Args { which, device, store, templates, budget, json, .. } = args;
    let stop = on_signals()?;
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
    for case in cases.iter().flatten() {
        for place in timer.tuned(*case).map_err(failed)? {
            let found = winners.get(place).map(|w| w.problem).filter(|p| !problems.contains(p));
            problems.extend(found);
        }
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
    let budget = Duration::from_secs(budget.unwrap_or(BUDGET));
    let options = Options { devices: vec![device.first()?], budget: Some(budget), nominal: true, ..Options::default() };
    let rivals = tune::rivals(&db, &library, timer.runtime().device(), &problems, RIVALS, &options, &stop)?;
    let others = beside(&timer, &rivals)?;

    let live = Live::new("{elapsed_precise}  {wide_msg}");
    let (mut choices, mut counts) = (Vec::new(), (0, 0));
    for steps in cases {
        let said = words(steps[0]);
        live.message(&said);
        let mut hear = |c: &Compared| {
            counts = (counts.0 + 1, counts.1 + u32::from(c.stays));
            let kernel = c.kernel.as_deref().unwrap_or("two kernels");
            let [before, with] = c.us.map(table::us);
            if *json {
                let event = serde_json::json!({ "event": "compared", "step": said, "problem": c.problem, "kernel": c.kernel,
                    "steps": c.steps, "us": c.us, "stays": c.stays });
                out!("{event}");
            } else if c.stays {
                live.say(&format!("{said}: {before} -> {with} us by {kernel} for {}", c.problem));
            }
            live.message(&format!("{said}: {kernel} for {}", c.problem));
            !stop.load(Ordering::Relaxed)
        };
        match timer.choose(&steps, &others, &mut hear) {
            Ok(choice) => choices.push(choice),
            Err(EngineError::Request(why)) => {
                err!("jitune: note: {said} is left out: {why}; a shorter --context needs less memory")
            }
            Err(e) => return Err(failed(e)),
        }
        if stop.load(Ordering::Relaxed) {
            live.finish_and_clear();
            return Err(CliError::Interrupted);
        }
    }
    live.finish_and_clear();
    // What verifies needs the device's memory.
    drop((timer, others));

    let mut settled: Vec<Settled> = Vec::new();
    for choice in &choices {
        for chosen in &choice.chosen {
            let found = match chosen.other {
                Some(other) => {
                    rivals.iter().flat_map(|list| list.get(other)).map(|r| &r.winner).find(|w| is(w, &chosen.kernel))
                }
                None => winners.get(chosen.kernel.winner()),
            };
            let over = found.and_then(|w| winners.iter().find(|own| own.problem == w.problem));
            let (case, [before_us, us]) = choice.steps[chosen.case];
            let Some((winner, over)) = found.zip(over) else { continue };
            settled.push(Settled {
                problem: winner.problem,
                template: winner.template().into(),
                config: winner.config.clone(),
                step: InStep {
                    step: format!("{} of {}", words(case), opened.model.name),
                    us,
                    before_us,
                    over: over.artifact.clone(),
                },
            });
        }
    }
    let mut failures = Vec::new();
    if !settled.is_empty() {
        let progress = Progress::new(*json, budget);
        let report = tune::in_steps(&db, &library, &settled, &options, &progress, &stop);
        progress.finish();
        let report = report?;
        failures.extend(report.failed().map(|f| format!("{}: {}", f.problem, f.error)));
        if report.interrupted {
            return Err(CliError::Interrupted);
        }
    }
    db.close()?;
    show(&choices, counts, *json);
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            Err(CliError::Partly(format!("{} of {} kernels are not stored: {first}", failures.len(), settled.len())))
        }
    }
}

/// The steps: for each batch the contexts that decodes are tuned for, of which the first says most of what they share.
fn cases(args: &Args, target: Target, most: i64) -> Result<Vec<Vec<Case>>, CliError> {
    let buckets = &args.which.buckets;
    let usual: &[i64] = if target == Target::Cuda { &[1, 2, 4, 8, 16, 32, 64, 128, 256] } else { &[1, 4] };
    let batches = if buckets.batch.is_empty() { usual.to_vec() } else { buckets.batch.clone() };
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

fn show(choices: &[StepChoice], (tried, stayed): (u32, u32), json: bool) {
    let mut rows = Vec::new();
    for choice in choices {
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
    if !json {
        table::print(&["step", "winners us", "chosen us", "ratio", "in the place of winners"], &rows, &[1, 2, 3]);
        out!("{tried} kernels stood in for others, {stayed} made steps faster");
    }
}
