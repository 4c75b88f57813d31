//! `jitune try`: candidates of one problem, compiled, checked and timed in this very process, so that a debugger, a
//! profiler or a memory checker sees them. Stores nothing.

use super::select::{Templates, Where, at_least_one};
use super::{CliError, table};
use jitune::attempt::{self, Attempt};
use jitune::backend::cuda::CudaSession;
use jitune::backend::session::{Doubt, Session};
use jitune::bench;
use jitune::device::DeviceId;
use jitune::problem::Problem;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune try 'rmsnorm rows=4096 cols=2048' --top 5\n  \
    jitune try 'matmul m=512 n=2048 k=2048' --template matmul_hopper --config 'tile_m=128 …'\n  \
    compute-sanitizer jitune try 'matmul m=65 n=1000 k=264' --rounds 0 --exact-memory\n\n\
    Exit code 1 when a candidate is wrong or does not compile.")]
pub struct Args {
    /// The problem.
    problem: String,
    /// This template alone.
    #[arg(long)]
    template: Option<String>,
    /// This config alone (needs --template).
    #[arg(long, requires = "template")]
    config: Option<String>,
    /// Configs of each template, the cheapest by prediction first.
    #[arg(long, default_value_t = 1, value_parser = at_least_one())]
    top: usize,
    /// Rounds of timing; 0 only checks.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Print only the config of the fastest candidate that is right.
    #[arg(long)]
    fastest: bool,
    /// GPU: give every tensor an allocation of its exact size, for memory checkers.
    #[arg(long)]
    exact_memory: bool,
    /// Seed of the inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    templates: Templates,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let problem: Problem = args.problem.parse()?;
    let library = args.templates.library()?;
    let options = attempt::Options {
        template: args.template.clone(),
        config: args.config.as_ref().map(|text| text.parse().map_err(CliError::Usage)).transpose()?,
        top: args.top,
        rounds: args.rounds,
        seed: args.seed,
    };
    let mut session: Box<dyn Session> = match args.device.first()? {
        DeviceId::Cuda(ordinal) if args.exact_memory => Box::new(CudaSession::open(ordinal)?.with_exact_memory()),
        device => bench::session(device)?,
    };
    let list = attempt::attempts(session.as_mut(), &library, &problem, &options)?;
    if args.fastest {
        let right = list.iter().filter_map(|a| Some((a.right_us()?, a)));
        let (_, fastest) = right
            .min_by(|(a, _), (b, _)| a.total_cmp(b))
            .ok_or_else(|| CliError::Partly("no candidate is right".into()))?;
        out!("{}", fastest.config);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    table::print(&["us", "template", "config", "verdict"], &rows, &[0]);
    match (list.len(), list.iter().filter(|a| a.right_us().is_none()).count()) {
        (0, _) => Err(CliError::Usage("no template of that name takes the problem".into())),
        (_, 0) => Ok(()),
        (n, bad) => Err(CliError::Partly(format!("{bad} of {n} candidates are not right"))),
    }
}

fn row(attempt: &Attempt) -> Vec<String> {
    let verdict = match &attempt.outcome {
        Err(e) => e.to_string(),
        Ok((info, tried)) => match (&tried.check.wrong, &tried.doubt) {
            (Some(why), _) => format!("WRONG: {why}"),
            (None, Some(Doubt::Unstable(why))) => format!("UNSTABLE: right at first, then {why}"),
            (None, Some(Doubt::Implausible(why))) => format!("not believed: {why}"),
            (None, None) => format!(
                "right, error {:.1e} / {:.1e}, {} registers, {} spills",
                tried.check.rms, tried.check.max, info.registers, info.spills
            ),
        },
    };
    let us = attempt.right_us().unwrap_or(f64::NAN);
    vec![table::us(us), attempt.template.clone(), attempt.config.to_string(), verdict]
}
