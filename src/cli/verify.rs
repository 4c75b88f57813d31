//! `jitune verify`: a bundle's integrity, then on this machine each winner's results against the reference on fresh
//! inputs, and its time against the stored evidence.

use super::export::{Verification, unusable};
use super::select::Where;
use super::{CliError, table};
use crate::backend::session::{Runnable, Session, Setup};
use crate::backend::{BackendError, cpu, cuda};
use crate::bundle::{Bundle, Extras, Held};
use crate::device::Target;
use crate::problem::Problem;
use crate::recipe::{Config, Launch, Recipe};
use crate::runtime::{launch_on, served_on};
use crate::template::Library;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Rounds of timing, as the tuner's finals have.
const ROUNDS: u32 = 15;
/// Series that a winner may have before it counts as slower: another process may have taken the machine once.
const TRIES: u32 = 3;

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

/// What was found of one winner.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Finding {
    /// Right, and about as fast as stored.
    Good,
    /// Right, and slower than the slack allows.
    Slower,
    /// Its results differ.
    Wrong {
        /// How.
        why: String,
    },
    /// It does not run.
    Failed {
        /// Why.
        why: String,
    },
    /// It is not for this machine.
    Skipped {
        /// Why.
        why: String,
    },
}

/// One line of the report.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Line {
    /// The problem.
    pub problem: Problem,
    /// The template.
    pub template: String,
    /// The architecture it was made for.
    pub arch: String,
    /// The problem that it was tuned for, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Problem>,
    /// The stored median in microseconds; absent for another problem than the tuned one.
    pub stored_us: Option<f64>,
    /// The median now; absent when it was not timed.
    pub now_us: Option<f64>,
    /// Root mean square error over that of the reference.
    pub error_rms: Option<f64>,
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
}

impl Finding {
    /// Whether it speaks against the bundle.
    pub fn is_bad(&self) -> bool {
        matches!(self, Finding::Slower | Finding::Wrong { .. } | Finding::Failed { .. })
    }

    fn text(&self) -> String {
        match self {
            Finding::Good => "good".into(),
            Finding::Slower => "SLOWER".into(),
            Finding::Wrong { why } => format!("WRONG: {why}"),
            Finding::Failed { why } => format!("FAILED: {why}"),
            Finding::Skipped { why } => format!("skipped: {why}"),
        }
    }
}

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of the inputs.
    pub seed: u64,
    /// How many times the stored time a winner may take.
    pub slack: f64,
    /// Whether it is timed.
    pub timing: bool,
}

/// Verifies one winner on an open session.
pub fn verify(held: &Held<'_>, session: &mut dyn Session, folder: &Folder, options: Options) -> Line {
    let mut line = Line { stored_us: Some(held.evidence().median_us), ..blank(held, held.problem()) };
    line.finding = match launch_on(held, session.device()) {
        Err(why) => Finding::Skipped { why },
        Ok(launch) => check(held, launch, session, folder, options, &mut line).unwrap_or_else(|why| why),
    };
    line
}

/// Verifies the results of one winner at other sizes that it answers for.
pub fn verify_served(held: &Held<'_>, session: &mut dyn Session, folder: &Folder, options: Options) -> Vec<Line> {
    let options = Options { timing: false, ..options };
    // What does not run here at all has a line that says so.
    let served = served_on(held, session.device()).unwrap_or_default();
    let one = |(asked, launch)| {
        let mut line = Line { tuned: Some(held.problem()), ..blank(held, asked) };
        line.finding = check(held, launch, session, folder, options, &mut line).unwrap_or_else(|why| why);
        line
    };
    served.into_iter().map(one).collect()
}

fn blank(held: &Held<'_>, problem: Problem) -> Line {
    Line {
        problem,
        template: held.description().name.clone(),
        arch: held.device().arch.clone(),
        tuned: None,
        stored_us: None,
        now_us: None,
        error_rms: None,
        finding: Finding::Good,
    }
}

/// Runs `launch` on the problem of `line`.
fn check(
    held: &Held<'_>,
    launch: Launch,
    session: &mut dyn Session,
    folder: &Folder,
    options: Options,
    line: &mut Line,
) -> Result<Finding, Finding> {
    let failed = |e: BackendError| Finding::Failed { why: e.to_string() };
    let setup = setup(held, line.problem, session, folder, options.seed)?;
    session.prepare(&setup).map_err(|e| match e {
        e @ BackendError::OutOfMemory { .. } => Finding::Skipped { why: e.to_string() },
        e => failed(e),
    })?;
    let (artifact, hash) = folder.put(held.artifact().bytes).map_err(failed)?;
    let runnable = Runnable { artifact, hash, launch };
    let tried = session.attempt(&runnable, 0).map_err(failed)?;
    line.error_rms = Some(tried.check.rms);
    if let Some(why) = tried.check.wrong {
        return Ok(Finding::Wrong { why });
    }
    let Some(stored_us) = line.stored_us.filter(|_| options.timing) else { return Ok(Finding::Good) };
    for _ in 0..TRIES {
        let series = session.finals(std::slice::from_ref(&runnable), ROUNDS).map_err(failed)?;
        let median = series.first().map_or(f64::INFINITY, |s| s.median());
        let best = line.now_us.map_or(median, |us| us.min(median));
        line.now_us = Some(best);
        if best <= stored_us * options.slack {
            return Ok(Finding::Good);
        }
    }
    Ok(Finding::Slower)
}

/// What the session needs to fill and compare: from the bundle, else compiled here where NVRTC is.
fn setup(
    held: &Held<'_>,
    problem: Problem,
    session: &dyn Session,
    folder: &Folder,
    seed: u64,
) -> Result<Setup, Finding> {
    let failed = |why: String| Finding::Failed { why };
    if session.device().target == Target::Cpu {
        return Ok(Setup { problem, seed, support: None, reference: None });
    }
    let extras = match (held.support(), held.reference()) {
        (Some(support), Some((code, description))) => {
            Extras { support: support.bytes.to_vec(), reference: (code.bytes.to_vec(), description.clone()) }
        }
        _ => {
            let why = |e: String| Finding::Skipped { why: format!("the bundle holds no reference for it: {e}") };
            let library = Library::built_in().map_err(|e| why(e.to_string()))?;
            let made = Verification::new(&library).extras(&problem, session.device()).map_err(why)?;
            made.ok_or_else(|| failed("no reference".into()))?
        }
    };
    let (code, description) = extras.reference;
    let recipe = Recipe::new(description).map_err(|e| failed(e.to_string()))?;
    if problem != held.problem() && !recipe.serves(&held.problem(), &problem, session.device(), &Config::default()) {
        return Err(Finding::Skipped { why: "the bundle's reference does not answer for this size".into() });
    }
    let launch = recipe.launch(&problem, session.device(), &Config::default()).map_err(|e| failed(e.to_string()))?;
    let put = |bytes: &[u8]| folder.put(bytes).map_err(|e| failed(e.to_string()));
    let (artifact, hash) = put(&code)?;
    let support = put(&extras.support)?;
    Ok(Setup { problem, seed, support: Some(support), reference: Some(Runnable { artifact, hash, launch }) })
}

/// A folder of its own for the files that a session reads, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    pub fn new() -> Result<Folder, BackendError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("jitune-verify-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(|source| BackendError::Io { path: path.clone(), source })?;
        Ok(Folder(path))
    }

    /// Stores bytes under their hash.
    fn put(&self, bytes: &[u8]) -> Result<(PathBuf, String), BackendError> {
        let hash = blake3::hash(bytes).to_hex().to_string();
        let path = self.0.join(&hash);
        std::fs::write(&path, bytes).map_err(|source| BackendError::Io { path: path.clone(), source })?;
        Ok((path, hash))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if !(args.slack >= 1.0 && args.slack.is_finite()) {
        return Err(CliError::Usage(format!("--slack {}: it must be at least 1", args.slack)));
    }
    let bundle = Bundle::open(&args.file).map_err(|e| unusable(&args.file, e))?;
    let mut session = session(&bundle, args)?;
    let folder = Folder::new()?;
    let options = Options { seed: jitune_db::now(), slack: args.slack, timing: !args.no_timing };
    if !args.json {
        let (file, d) = (args.file.display(), session.device());
        println!("{file}: every byte is as it was sealed; verifying on {} ({})\n", d.name, d.arch);
    }
    let mut lines = Vec::new();
    for held in bundle.winners() {
        let from = lines.len();
        lines.push(verify(&held, session.as_mut(), &folder, options));
        if args.served {
            lines.extend(verify_served(&held, session.as_mut(), &folder, options));
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

fn session(bundle: &Bundle<'_>, args: &Args) -> Result<Box<dyn Session>, CliError> {
    let has = |t: Target| bundle.arches().iter().any(|(have, _)| *have == t);
    let target = match args.device.target {
        Some(t) => t,
        // What the bundle is for, and a GPU before the CPU where it is for both.
        None if has(Target::Cuda) && !has(Target::Cpu) => Target::Cuda,
        None if has(Target::Cuda) => args.device.target()?,
        None => Target::Cpu,
    };
    let ordinal = args.device.gpus.split(',').next().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    Ok(match target {
        Target::Cuda => Box::new(cuda::CudaSession::open(ordinal)?),
        Target::Cpu => Box::new(cpu::CpuSession::open(args.device.threads)?),
    })
}

fn show(lines: &[Line]) {
    let row = |l: &Line| {
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
            l.finding.text(),
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

fn verdict(file: &Path, lines: &[Line]) -> Result<(), CliError> {
    let bad = lines.iter().filter(|l| l.finding.is_bad()).count();
    let checked = lines.iter().filter(|l| !matches!(l.finding, Finding::Skipped { .. })).count();
    let file = file.display();
    match (bad, checked) {
        (0, 0) => Err(CliError::Partly(format!("{file}: no winner is for this machine"))),
        (0, _) => Ok(()),
        _ => Err(CliError::Partly(format!("{file}: {bad} of {checked} checks found a difference"))),
    }
}
