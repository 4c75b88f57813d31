//! `jitune explain`: the key of a problem, and why it hits or misses.

use super::select::{Store, Templates, Where, Which};
use super::{CliError, table};
use jitune::journal;
use jitune::key::{self, Context};
use jitune::winner::Winner;
use jitune_db::{Db, Key};
use std::collections::BTreeMap;

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
        let winner = found.as_ref().map(|record| journal::own_winner(record, &templates));
        // A winner without its code serves nobody.
        let lost = match &winner {
            Some(Ok(w)) => !has_code(&db, w)?,
            _ => false,
        };
        let for_steps = library.for_steps(&problem, &context.device)?;
        let trials = for_steps.iter().map(|t| trials(&db, context.trials(&library, &problem, t), t.name()));
        let trials = trials.collect::<Result<Vec<_>, _>>()?;
        let chosen = db.winner(&context.in_steps(&library, &problem, &for_steps))?;
        let in_steps = match &chosen {
            Some(record) => journal::winner_of(record, &for_steps).ok(),
            None => None,
        };
        let unused = match (&chosen, &winner, &in_steps) {
            (Some(record), _, Some(_)) if record.merged => Some(journal::MERGED),
            (_, Some(Ok(won)), Some(w)) if w.evidence.step.as_ref().is_some_and(|step| step.over != won.artifact) => {
                Some("it was chosen in the place of another winner")
            }
            (_, Some(Ok(_)), Some(w)) if !has_code(&db, w)? => Some(NO_CODE),
            _ => None,
        };
        if args.json {
            let hit = found.as_ref().filter(|_| matches!(winner, Some(Ok(_))) && !lost).map(|r| &r.body);
            let not_taken = match &winner {
                Some(Err(why)) => Some(why.to_string()),
                Some(Ok(_)) if lost => Some(NO_CODE.to_string()),
                _ => None,
            };
            let text = serde_json::json!({
                "problem": problem, "key": key, "id": key.id().to_string(), "hit": hit, "not_taken": not_taken,
                "near": diffs, "trials": trials, "in_steps": in_steps, "in_steps_not_used": unused,
            });
            out!("{text}");
            continue;
        }
        out!("{problem}\n  key {}", key.id());
        for (name, value) in key.compile.iter().filter(|(n, _)| *n != "problem") {
            out!("    compile.{name} = {value}");
        }
        for (name, value) in &key.timing {
            out!("    timing.{name} = {value}");
        }
        match &winner {
            Some(Err(why)) => {
                out!(
                    "  miss\n    a record of this key is not taken: {why}; `jitune tune --problem '{problem}'` finds a winner"
                )
            }
            Some(Ok(_)) if lost => {
                out!(
                    "  miss\n    a record of this key is not taken: {NO_CODE}; `jitune tune --problem '{problem}'` compiles it again"
                )
            }
            Some(Ok(w)) => out!(
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
        if let (Some(Ok(_)), Some(w)) = (&winner, &in_steps)
            && let Some(step) = &w.evidence.step
        {
            let (before, us) = (table::us(step.before_us), table::us(step.us));
            out!(
                "  in steps: {} [{}], {:.2} us; {}: {before} -> {us} us",
                w.template(),
                w.config,
                w.evidence.median_us,
                step.step
            );
            if let Some(why) = unused {
                out!("    not used: {why}; `jitune tune --steps` chooses again");
            }
        }
        for t in trials.iter().filter(|t| t.used > 0 || !t.unused.is_empty()) {
            let verdicts: Vec<String> =
                t.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
            let verdicts = if verdicts.is_empty() { String::new() } else { format!(": {}", verdicts.join(", ")) };
            out!("  {} trials of {} are used{verdicts}", t.used, t.template);
            for Unused { trials, why } in &t.unused {
                out!("    {trials} are not: {why}");
            }
        }
    }
    Ok(())
}

const NO_CODE: &str = "its code is missing or damaged";

fn has_code(db: &Db, winner: &Winner) -> Result<bool, CliError> {
    let hash = winner.artifact.parse().ok();
    Ok(hash.map(|hash| db.artifact(&hash)).transpose()?.flatten().is_some())
}

/// The stored verdicts on a problem's candidates of one template.
#[derive(serde::Serialize)]
struct Trials {
    template: String,
    used: usize,
    /// How many of these have each verdict.
    verdicts: BTreeMap<String, usize>,
    unused: Vec<Unused>,
}

/// Stored verdicts that a search does not take over.
#[derive(serde::Serialize)]
struct Unused {
    trials: usize,
    why: String,
}

/// What a search would take over from earlier runs, and the nearest of what it would not.
fn trials(db: &Db, key: Key, template: &str) -> Result<Trials, CliError> {
    let mut unused = Vec::new();
    for (record, diffs) in db.near(&key, &["problem", "target", "template"], 3)? {
        let why = match diffs.iter().find(|d| d.name == "judging") {
            Some(d) if d.stored.as_deref() == Some("2") => {
                "they are of a version that did not look whether candidates stayed right".into()
            }
            Some(_) => "they are of a version that stored failures which were not the candidate's fault".into(),
            None => {
                let differ: Vec<String> = diffs.iter().map(ToString::to_string).collect();
                format!("they differ in: {}", differ.join("; "))
            }
        };
        unused.push(Unused { trials: db.trials(&record.key)?.len(), why });
    }
    let (used, merged): (Vec<_>, Vec<_>) = db.trials(&key)?.into_iter().partition(|record| !record.merged);
    if !merged.is_empty() {
        unused.push(Unused { trials: merged.len(), why: "they came with a merged journal".into() });
    }
    let mut verdicts = BTreeMap::new();
    for record in &used {
        let verdict = record.body["verdict"].as_str().unwrap_or("unknown").replace('_', " ");
        *verdicts.entry(verdict).or_default() += 1;
    }
    Ok(Trials { template: template.into(), used: used.len(), verdicts, unused })
}
