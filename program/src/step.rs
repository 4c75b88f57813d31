//! `jitune step`: how long a whole step of a model takes, beside the sum of its kernels and the floor.

use super::opened::{Loading, ModelArgs, failed};
use super::{CliError, table};
use jitune::engine::{Case, KernelTime, StepTime, Timer};
use jitune::problem::MAX_DIM;

/// Arguments.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  jitune step --model ./my-model --batch 1,4,16 --context 512,4096 --prefill 512\n  \
    jitune step --model ./my-model --kernels --json > steps.jsonl\n\n\
    A step is timed from what its kernels are told to the tokens on the host, each step of a decode with the tokens of the one \
    before it; on a GPU as the engine runs it, each launched while the one before it runs. Its kernels are timed in the same run, \
    kind by kind: those of all layers in a row, each on its own weights, on a GPU 32 launches or \
    more and half a millisecond. The floor is what a GPU's nominal ceilings allow for the bytes and operations of the kernels; of a processor nobody knows \
    them, so it has none."
)]
pub struct Args {
    #[command(flatten)]
    open: ModelArgs,
    /// Sequences of a decode step.
    #[arg(long, value_name = "SEQUENCES,…", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    batch: Vec<i64>,
    /// Tokens that each sequence of a decode step sees.
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_value = "512", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    context: Vec<i64>,
    /// Tokens of prompts, each read as one step.
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    prefill: Vec<i64>,
    /// How often each is timed; medians are printed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Print each kind of kernel too.
    #[arg(long)]
    kernels: bool,
    /// Print a JSON object for each step, with the time of each round.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let decodes = args.context.iter().flat_map(|c| args.batch.iter().map(move |b| (*b, *c)));
    let cases: Vec<Case> = (decodes.map(|(batch, context)| Case::Decode { batch, context }))
        .chain(args.prefill.iter().map(|tokens| Case::Prompt { tokens: *tokens }))
        .collect();
    let longest = args.context.iter().chain(&args.prefill).copied().max().unwrap_or(1);
    let opened = args.open.open()?;
    let mut options = opened.options(longest);
    // The token that the last step leads to.
    options.context = longest + 1;
    options.sequences = args.batch.iter().copied().max().unwrap_or(1);
    // What a decode sees is read in chunks of a size that computes well.
    options.tokens =
        args.prefill.iter().copied().max().unwrap_or(1).max(options.sequences).max(options.context.min(512));
    let (runtime, mut line) = (opened.runtime(&options)?, Loading::default());
    let timer = Timer::open(runtime, &opened.model, &opened.weights, options, |there, all| line.show(there, all));
    drop(line);
    let mut timer = timer.map_err(failed)?;
    let mut times = Vec::new();
    for case in cases {
        let time = timer.time(case, args.rounds as usize).map_err(failed)?;
        if args.json {
            out!("{}", json(&args.open.model, &time));
        }
        times.push(time);
    }
    if !args.json {
        print(&times, args.kernels);
    }
    Ok(())
}

/// The phase, sequences or tokens, and the context of a step.
fn sizes(case: Case) -> (&'static str, i64, i64) {
    match case {
        Case::Decode { batch, context } => ("decode", batch, context),
        Case::Prompt { tokens } => ("prefill", tokens, tokens),
    }
}

fn json(model: &str, time: &StepTime) -> serde_json::Value {
    let ((phase, bucket, context), (step, kernels)) = (sizes(time.case), time.medians());
    let kinds = time.kernels.iter().map(|k| {
        serde_json::json!({
            "role": k.role, "problem": k.problem, "template": k.template, "portable": k.portable, "calls": k.calls,
            "us": k.us, "median_us": k.median(), "share": k.median() / kernels,
        })
    });
    serde_json::json!({
        "kind": "step", "model": model, "phase": phase, "bucket": bucket, "context": context, "us": time.us, "median_us": step,
        "kernels_us": kernels, "floor_us": time.floor_us, "kernels": kinds.collect::<Vec<_>>(),
    })
}

fn print(times: &[StepTime], kernels: bool) {
    let row = |time: &StepTime| {
        let ((phase, bucket, context), (step, sum)) = (sizes(time.case), time.medians());
        let portable: usize = time.kernels.iter().filter(|k| k.portable).map(|k| k.calls).sum();
        let all: usize = time.kernels.iter().map(|k| k.calls).sum();
        vec![
            phase.into(),
            bucket.to_string(),
            context.to_string(),
            table::us(step),
            table::us(sum),
            format!("{:.3}", step / sum),
            time.floor_us.map_or_else(|| "-".into(), table::us),
            time.floor_us.map_or_else(|| "-".into(), |floor| format!("{:.2}", step / floor)),
            format!("{:.1}", bucket as f64 / step * 1e6),
            format!("{portable}/{all}"),
        ]
    };
    let header =
        ["phase", "rows", "context", "step us", "kernels us", "ratio", "floor us", "ratio", "tokens/s", "portable"];
    table::print(&header, &times.iter().map(row).collect::<Vec<_>>(), &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for time in times.iter().filter(|_| kernels) {
        let ((phase, bucket, context), (_, sum)) = (sizes(time.case), time.medians());
        out!("\n{phase} {bucket}, context {context}");
        let row = |k: &KernelTime| {
            let us = k.median();
            vec![
                k.role.clone(),
                k.calls.to_string(),
                table::us(us),
                table::us(us / k.calls as f64),
                format!("{:.1}%", us / sum * 100.0),
                k.template.clone(),
                k.problem.to_string(),
            ]
        };
        let rows: Vec<_> = time.kernels.iter().map(row).collect();
        table::print(&["role", "calls", "us", "us each", "share", "template", "problem"], &rows, &[1, 2, 3, 4]);
    }
}
