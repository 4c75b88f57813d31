//! `jitune verify`: a bundle's integrity, then on this machine each winner's results against the reference on fresh
//! inputs, and its time against the stored evidence.

use super::progress::Live;
use super::select::{Where, within};
use super::sign::Signer;
use super::{CliError, table};
use jitune::bench;
use jitune::bundle::Bundle;
use jitune::device::{DeviceId, Target};
use jitune::problem::Problem;
use jitune::verify::{Answers, Finding, Options, Verified, Verifier};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune verify model.jitune\n\n\
    Needs the driver alone: what a GPU needs to fill and compare is in the bundle. Winners of other architectures are \
    skipped. Exit code 0 when every winner for this machine is right and about as fast as stored, 1 when one is wrong, \
    fails or is slower, or none is for this machine, 3 without the device, 4 when the file is damaged, or with --public-key \
    not signed by that key. Verifying runs the bundle's code: a bundle is a program, and its hashes do not say whose.")]
pub struct Args {
    /// The bundle.
    file: PathBuf,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    device: Where,
    /// How many times the stored time a winner may take.
    #[arg(long, default_value_t = 1.3, value_name = "RATIO", value_parser = within(1.0, 1000.0))]
    slack: f64,
    /// Check results alone.
    #[arg(long)]
    no_timing: bool,
    /// Check results at other sizes too that each winner answers for: the least, and some around its own.
    #[arg(long)]
    served: bool,
    /// Check the results of what the bundle answers at so many sizes drawn by the seed.
    #[arg(long, value_name = "SIZES", default_value_t = 0)]
    draw: usize,
    /// Check the results of what the bundle answers for each product at every m up to this.
    #[arg(long, value_name = "M", default_value_t = 0)]
    every: i64,
    /// Seed of inputs and of what is drawn; the time by default, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Time each winner beside what this bundle answers, in turn.
    #[arg(long, value_name = "BUNDLE")]
    beside: Option<PathBuf>,
    /// With --beside: how many times a winner's time the other's answer may take.
    #[arg(long, default_value_t = 1.25, value_name = "RATIO", value_parser = within(0.001, 1000.0))]
    worst: f64,
    /// With --beside: the same in geometric mean.
    #[arg(long, default_value_t = 1.1, value_name = "RATIO", value_parser = within(0.001, 1000.0))]
    mean: f64,
    /// Seconds after which a problem counts as hanging.
    #[arg(long, default_value_t = 300.0, value_name = "SECONDS", value_parser = within(0.05, 86_400.0))]
    patience: f64,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

/// Sizes beyond which neither a drawing nor a row of them makes sense.
const MOST: usize = 1 << 20;

/// Set for the process that verifies.
const CHILD: &str = "JITUNE_VERIFIES";

/// Verifies in a process of its own, since the bundle's code may end it: this program once more, with the same arguments.
fn apart(file: &Path) -> Result<(), CliError> {
    let failed = |source| CliError::Io { path: "the process that verifies".into(), source };
    let program = std::env::current_exe().map_err(failed)?;
    let status = Command::new(program).args(std::env::args_os().skip(1)).env(CHILD, "1").status().map_err(failed)?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        // It has said why.
        (Some(code), _) => Err(CliError::Said(code as u8)),
        (None, Some(signal @ (4 | 6 | 7 | 8 | 11))) => Err(CliError::Partly(format!(
            "{}: its code ended the process that ran it by signal {signal}; do not use it",
            file.display()
        ))),
        (None, signal) => {
            let how = signal.map_or("nobody knows how".into(), |s| format!("by signal {s}"));
            Err(failed(std::io::Error::other(format!("it was ended {how}"))))
        }
    }
}

/// Ends the process where a kernel does not: nothing else ends one.
struct Watch(Arc<Mutex<(Instant, String)>>);

impl Watch {
    /// Watches from now on; whatever comes next may take so long, and so may each problem.
    fn start(file: &Path, patience: Duration) -> Result<Watch, CliError> {
        let at = Arc::new(Mutex::new((Instant::now(), "its code, while it was loaded".to_string())));
        let (seen, file) = (Arc::clone(&at), file.display().to_string());
        let watch = move || {
            loop {
                std::thread::sleep(Duration::from_millis(100));
                let at = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if at.0.elapsed() > patience {
                    let said = format!("no end within {:.0} s (--patience)", patience.as_secs_f64());
                    err!("jitune: {file}: {}: {said}; do not use it", at.1);
                    // Threads that run it end with the process.
                    std::process::exit(1);
                }
            }
        };
        let failed = |source| CliError::Io { path: "the thread that watches".into(), source };
        std::thread::Builder::new().spawn(watch).map_err(failed)?;
        Ok(Watch(at))
    }

    /// A problem is begun.
    fn at(&self, problem: &Problem) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), problem.to_string());
    }
}

fn text(finding: &Finding) -> String {
    match finding {
        Finding::Good => "good".into(),
        Finding::Slower => "SLOWER".into(),
        Finding::Wrong { why } => format!("WRONG: {why}"),
        Finding::Unstable { why } => format!("UNSTABLE: right at first, then {why}"),
        Finding::Failed { why } => format!("FAILED: {why}"),
        Finding::Skipped { why } => format!("skipped: {why}"),
        other => format!("{other:?}"),
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if args.draw > MOST || !(0..=MOST as i64).contains(&args.every) {
        return Err(CliError::Usage(format!("--draw and --every take at most {MOST}")));
    }
    if std::env::var_os(CHILD).is_none() {
        return apart(&args.file);
    }
    // It does not outlive who waits for it.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let bundle = args.signer.open(&args.file)?;
    let id = device(&bundle, args)?;
    let watch = Watch::start(&args.file, Duration::from_secs_f64(args.patience))?;
    let mut session = bench::session(id)?;
    let seed = args.seed.unwrap_or_else(jitune_db::now);
    let options = Options { seed, slack: args.slack, timing: !args.no_timing };
    if !args.json {
        let (file, d) = (args.file.display(), session.device());
        out!("{file}: every byte is as it was sealed; verifying on {} ({}), seed {seed}\n", d.name, d.arch);
    }
    if let Some(path) = &args.beside {
        let other = args.signer.open(path)?;
        let (one, other) = (open(&other, path, id)?, open(&bundle, &args.file, id)?);
        return beside(&mut Verifier::new(session.as_mut(), options)?, &one, &other, args, &watch);
    }
    let mut verifier = Verifier::new(session.as_mut(), options)?;
    let mut lines = Vec::new();
    for held in bundle.winners() {
        let from = lines.len();
        watch.at(&held.problem());
        lines.push(verifier.tuned(&held));
        if args.served {
            lines.extend(verifier.served(&held));
        }
        if args.json {
            lines[from..].iter().for_each(|line| out!("{}", serde_json::json!(line)));
        }
    }
    if !args.json {
        show(&lines);
    }
    if args.draw > 0 || args.every > 0 {
        let asked = asked(&mut verifier, &open(&bundle, &args.file, id)?, args, seed, &watch);
        if !args.json {
            summary(&asked);
        }
        lines.extend(asked);
    }
    verdict(&args.file, &lines)
}

fn open<'b>(bundle: &'b Bundle<'b>, path: &Path, device: DeviceId) -> Result<Answers<'b>, CliError> {
    Answers::new(bundle, device).map_err(|e| CliError::Partly(format!("{}: {e}", path.display())))
}

/// What the bundle answers at sizes that it need not hold. Of those that are right only their number is shown.
fn asked(verifier: &mut Verifier<'_>, answers: &Answers<'_>, args: &Args, seed: u64, watch: &Watch) -> Vec<Verified> {
    let drawn = answers.drawn(args.draw, seed);
    if drawn.len() < args.draw {
        err!("jitune: note: {} sizes that differ were found, of the {} that --draw asks for", drawn.len(), args.draw);
    }
    let problems = [answers.every(args.every), drawn].concat();
    let bar = Live::new("{pos} of {len} sizes, {eta} left [{wide_bar}]");
    bar.set_length(problems.len() as u64);
    let one = |problem| {
        watch.at(problem);
        let line = verifier.asked(answers, problem);
        bar.inc(1);
        match args.json {
            true => out!("{}", serde_json::json!(line)),
            false if line.finding != Finding::Good => bar.suspend(|| out!("{problem}: {}", text(&line.finding))),
            false => {}
        }
        line
    };
    let lines = problems.iter().map(one).collect();
    bar.finish_and_clear();
    lines
}

/// Each winner's time beside what the other bundle answers.
fn beside(
    verifier: &mut Verifier<'_>,
    one: &Answers<'_>,
    other: &Answers<'_>,
    args: &Args,
    watch: &Watch,
) -> Result<(), CliError> {
    let (mut rows, mut ratios, mut bad) = (Vec::new(), Vec::new(), 0);
    for problem in other.tuned() {
        watch.at(&problem);
        match verifier.beside(one, other, &problem) {
            Ok(b) => {
                if args.json {
                    out!("{}", serde_json::json!(b));
                }
                let [us, others] = b.us.map(table::us);
                let [answer, winner] = b.answers.clone();
                rows.push(vec![us, others, format!("{:.3}", b.ratio()), problem.to_string(), answer, winner]);
                ratios.push(b.ratio());
            }
            Err(why) => {
                bad += 1;
                err!("{problem}: {}", text(&why));
            }
        }
    }
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    if !args.json {
        let head = ["answer us", "winner us", "ratio", "problem", "answer", "winner"];
        table::print(&head, &rows, &[0, 1, 2]);
        out!("\n{} problems: {mean:.3} in geometric mean, {worst:.3} at worst", ratios.len());
    }
    let file = args.file.display();
    match (bad, ratios.is_empty(), mean <= args.mean && worst <= args.worst) {
        (0, false, true) => Ok(()),
        (0, true, _) => Err(CliError::Partly(format!("{file}: no winner is for this machine"))),
        (0, _, _) => Err(CliError::Partly(format!("{mean:.3} in mean or {worst:.3} at worst is over the limit"))),
        (n, ..) => Err(CliError::Partly(format!("{n} problems could not be timed"))),
    }
}

/// How many of each op were right, and how near.
fn summary(lines: &[Verified]) {
    let mut ops: BTreeMap<&str, (usize, usize, f64)> = BTreeMap::new();
    for line in lines {
        let (good, all, worst) = ops.entry(line.problem.op().name).or_default();
        *all += 1;
        *good += usize::from(line.finding == Finding::Good);
        *worst = line.error_rms.unwrap_or(0.0).max(*worst);
    }
    let row = |(op, (good, all, worst)): (&&str, &(usize, usize, f64))| {
        vec![op.to_string(), good.to_string(), all.to_string(), format!("{worst:.1e}")]
    };
    let rows: Vec<Vec<String>> = ops.iter().map(row).collect();
    out!("");
    table::print(&["op", "good", "of", "worst error"], &rows, &[1, 2, 3]);
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
