//! `jitune explain`: the key of a problem, and why it hits or misses.

use super::CliError;
use super::select::{Store, Templates, Where, Which};
use jitune::journal;
use jitune::key::{self, Context};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune explain --problem 'matmul m=1 n=2048 k=2048'")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let device = args.device.describe()?;
    let library = args.templates.library()?;
    let problems = args.which.problems(device.target)?;
    let db = args.store.read()?;
    let context = Context { compiler: key::compiler(device.target)?, device };
    for problem in problems {
        let templates = library.for_problem(&problem, &context.device)?;
        let key = context.winner(&library, &problem, &templates);
        let found = db.winner(&key)?;
        let near = if found.is_none() { db.near(&key, &["problem", "target"], 3)? } else { Vec::new() };
        let diffs: Vec<Vec<String>> = near.iter().map(|(_, d)| d.iter().map(ToString::to_string).collect()).collect();
        if args.json {
            let hit = found.as_ref().map(|r| &r.body);
            out!(
                "{}",
                serde_json::json!({"problem": problem, "key": key, "id": key.id().to_string(), "hit": hit, "near": diffs})
            );
            continue;
        }
        out!("{problem}\n  key {}", key.id());
        for (name, value) in key.compile.iter().filter(|(n, _)| *n != "problem") {
            out!("    compile.{name} = {value}");
        }
        for (name, value) in &key.timing {
            out!("    timing.{name} = {value}");
        }
        match found.as_ref().and_then(journal::winner) {
            Some(w) => out!(
                "  hit: {} [{}], {:.2} us, {:.0}% of the roofline, {} trials",
                w.template(),
                w.config,
                w.evidence.median_us,
                w.evidence.roofline_share * 100.0,
                w.evidence.trials
            ),
            None => {
                out!("  miss");
                for diff in diffs {
                    out!("    a stored record differs in: {}", diff.join("; "));
                }
                if near.is_empty() {
                    out!("    nothing is stored for this problem; `jitune tune --problem '{problem}'` does it");
                }
            }
        }
    }
    Ok(())
}
