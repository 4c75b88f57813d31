//! `jitune verify`: a bundle's integrity, then on this machine each winner's results against the reference on fresh
//! inputs, and its time against the stored evidence.

use super::export::unusable;
use super::select::Where;
use super::{CliError, table};
use jitune::bench;
use jitune::bundle::Bundle;
use jitune::device::{DeviceId, Target};
use jitune::problem::Problem;
use jitune::verify::{Finding, Options, Verified, Verifier};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune verify model.jitune\n\n\
    Needs the driver alone: what a GPU needs to fill and compare is in the bundle. Winners of other architectures are\n\
    skipped. Exit code 0 when every winner for this machine is right and about as fast as stored, 1 when one is wrong,\n\
    fails or is slower, or none is for this machine, 3 without the device, 4 when the file is damaged.")]
pub struct Args {
    /// The bundle.
    file: PathBuf,
    #[command(flatten)]
    device: Where,
    /// How many times the stored time a winner may take.
    #[arg(long, default_value_t = 1.3, value_name = "RATIO")]
    slack: f64,
    /// Check results alone.
    #[arg(long)]
    no_timing: bool,
    /// Check results at other sizes too that each winner answers for: the least, and some around its own.
    #[arg(long)]
    served: bool,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

fn text(finding: &Finding) -> String {
    match finding {
        Finding::Good => "good".into(),
        Finding::Slower => "SLOWER".into(),
        Finding::Wrong { why } => format!("WRONG: {why}"),
        Finding::Failed { why } => format!("FAILED: {why}"),
        Finding::Skipped { why } => format!("skipped: {why}"),
        other => format!("{other:?}"),
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if !(args.slack >= 1.0 && args.slack.is_finite()) {
        return Err(CliError::Usage(format!("--slack {}: it must be at least 1", args.slack)));
    }
    let bundle = Bundle::open(&args.file).map_err(|e| unusable(&args.file, e))?;
    let mut session = bench::session(device(&bundle, args)?)?;
    let options = Options { seed: jitune_db::now(), slack: args.slack, timing: !args.no_timing };
    if !args.json {
        let (file, d) = (args.file.display(), session.device());
        println!("{file}: every byte is as it was sealed; verifying on {} ({})\n", d.name, d.arch);
    }
    let mut verifier = Verifier::new(session.as_mut(), options)?;
    let mut lines = Vec::new();
    for held in bundle.winners() {
        let from = lines.len();
        lines.push(verifier.tuned(&held));
        if args.served {
            lines.extend(verifier.served(&held));
        }
        if args.json {
            lines[from..].iter().for_each(|line| println!("{}", serde_json::json!(line)));
        }
    }
    if !args.json {
        show(&lines);
    }
    verdict(&args.file, &lines)
}

fn device(bundle: &Bundle<'_>, args: &Args) -> Result<DeviceId, CliError> {
    let has = |t: Target| bundle.arches().iter().any(|(have, _)| *have == t);
    // What the bundle is for, and a GPU before the CPU where it is for both.
    let target = match args.device.target {
        None if has(Target::Cuda) && !has(Target::Cpu) => Some(Target::Cuda),
        None if !has(Target::Cuda) => Some(Target::Cpu),
        asked => asked,
    };
    Where { target, ..args.device.clone() }.first()
}

fn show(lines: &[Verified]) {
    let row = |l: &Verified| {
        let number = |v: Option<f64>, f: &dyn Fn(f64) -> String| v.map_or("-".into(), f);
        vec![
            number(l.stored_us, &table::us),
            number(l.now_us, &table::us),
            number(l.now_us.zip(l.stored_us).map(|(now, stored)| now / stored), &|r| format!("{r:.2}")),
            number(l.error_rms, &|e| format!("{e:.1e}")),
            l.problem.to_string(),
            l.tuned
                .as_ref()
                .map_or(l.template.clone(), |tuned| format!("{} of {}", l.template, differing(tuned, &l.problem))),
            text(&l.finding),
        ]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    table::print(&["stored us", "now us", "ratio", "error", "problem", "template", "verdict"], &rows, &[0, 1, 2, 3]);
}

/// The dimensions of a problem that another has of another size, as text.
fn differing(tuned: &Problem, other: &Problem) -> String {
    let dims = tuned.op().dims.iter().filter(|d| tuned.dim(d.name) != other.dim(d.name));
    dims.map(|d| format!("{}={}", d.name, tuned.dim(d.name))).collect::<Vec<_>>().join(" ")
}

fn verdict(file: &Path, lines: &[Verified]) -> Result<(), CliError> {
    let bad = lines.iter().filter(|l| l.finding.is_bad()).count();
    let checked = lines.iter().filter(|l| !matches!(l.finding, Finding::Skipped { .. })).count();
    let file = file.display();
    match (bad, checked) {
        (0, 0) => Err(CliError::Partly(format!("{file}: no winner is for this machine"))),
        (0, _) => Ok(()),
        _ => Err(CliError::Partly(format!("{file}: {bad} of {checked} checks found a difference"))),
    }
}
