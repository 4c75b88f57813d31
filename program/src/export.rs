//! `jitune export`: seals stored winners into one file.
//!
//! Owns which winners go in and what goes with them; the file itself is `bundle`'s.

use super::select::{Store, Templates, Where, Which};
use super::{CliError, table};
use jitune::backend::BackendError;
use jitune::backend::cuda::nvrtc;
use jitune::bundle::{Bundle, BundleError, Extras, Part};
use jitune::device::{Device, Target};
use jitune::problem::Problem;
use jitune::recipe::Config;
use jitune::template::{Library, Source};
use jitune::winner::Winner;
use jitune_db::Db;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune export -o model.jitune\n  \
    jitune export --model llama-3.2-1b --arch sm_90a,sm_80 -o model.jitune\n\n\
    Without problems it takes every stored winner of this machine's architecture. Exit code 1 when a winner had to be\n\
    left out or an asked problem has none: the file holds the rest, and is not written where there is no rest.")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Architectures, such as sm_90a or x86_64-avx2; by default the one of this machine, or `all`.
    #[arg(long, value_delimiter = ',')]
    arch: Vec<String>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Leave out the code that `jitune verify` needs on a GPU machine without NVRTC.
    #[arg(long)]
    no_verification: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A bundle, and what had to be left out.
#[derive(Debug)]
pub struct Gathered {
    /// The bundle.
    pub bundle: Bundle<'static>,
    /// Winners that could not go in, and why.
    pub left_out: Vec<(Problem, String)>,
}

/// Why nothing could be gathered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatherError {
    /// The database.
    #[error(transparent)]
    Db(#[from] jitune_db::Error),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Seals the stored winners that `filter` takes: of several for one problem and kind of device, the newest. `extras`
/// gives what verification needs beside the kernel, where it needs anything.
pub fn seal(
    db: &Db,
    filter: impl Fn(&Winner) -> bool,
    extras: &dyn Fn(&Winner) -> Option<Extras>,
) -> Result<Gathered, GatherError> {
    let mut newest: BTreeMap<_, Winner> = BTreeMap::new();
    for record in db.winners()? {
        // Records of another version may not read as winners; they are kept there, and not exported.
        let Ok(winner) = serde_json::from_value::<Winner>(record?.body) else { continue };
        if !filter(&winner) {
            continue;
        }
        let d = &winner.device;
        let key = (d.target, d.arch.clone(), winner.problem, d.silicon.clone());
        let newer = |old: &Winner| (old.evidence.at, &old.artifact) < (winner.evidence.at, &winner.artifact);
        if newest.get(&key).is_none_or(newer) {
            newest.insert(key, winner);
        }
    }
    let (mut parts, mut left_out) = (Vec::new(), Vec::new());
    for winner in newest.into_values() {
        let code = match winner.artifact.parse() {
            Ok(hash) => db.artifact(&hash)?,
            Err(_) => None,
        };
        match code {
            Some(code) => {
                let part = Part { extras: extras(&winner), winner, code };
                match part.check() {
                    Ok(()) => parts.push(part),
                    Err(e) => left_out.push((part.winner.problem, e.to_string())),
                }
            }
            None => {
                let why = format!("its artifact {} is missing or damaged; tune it again", winner.artifact);
                left_out.push((winner.problem, why));
            }
        }
    }
    Ok(Gathered { bundle: Bundle::seal(parts)?, left_out })
}

/// Compiles what a GPU machine without NVRTC needs to verify a winner: each source once.
pub struct Verification<'a> {
    library: &'a Library,
    compiled: RefCell<HashMap<String, Result<Vec<u8>, String>>>,
}

impl<'a> Verification<'a> {
    /// From these templates.
    pub fn new(library: &'a Library) -> Verification<'a> {
        Verification { library, compiled: RefCell::default() }
    }

    /// The support code and the reference of a CUDA problem. The CPU needs neither: its reference is the host's own.
    pub fn extras(&self, problem: &Problem, device: &Device) -> Result<Option<Extras>, String> {
        if device.target == Target::Cpu {
            return Ok(None);
        }
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let support = self.library.support(problem.dtype, device).map_err(|e| text(&e))?;
        let template = self.library.reference(problem, device).map_err(|e| text(&e))?;
        let source = self.library.render(&template, problem, device, &Config::default()).map_err(|e| text(&e))?;
        let reference = (self.compile(&source)?, template.recipe.description.clone());
        Ok(Some(Extras { support: self.compile(&support)?, reference }))
    }

    fn compile(&self, source: &Source) -> Result<Vec<u8>, String> {
        let mut known = self.compiled.borrow_mut();
        let made = known.entry(source.hash());
        made.or_insert_with(|| nvrtc::compile(source).map(|(cubin, _)| cubin).map_err(|e: BackendError| e.to_string()))
            .clone()
    }
}

/// A bundle's error as the program's: the file cannot be used.
pub(super) fn unusable(path: &Path, e: BundleError) -> CliError {
    match e {
        BundleError::Io { path, source, .. } => CliError::Io { path, source },
        other => CliError::Io { path: path.into(), source: std::io::Error::other(other) },
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let library = args.templates.library()?;
    let arches = match args.arch.as_slice() {
        [] => vec![args.device.describe()?.arch],
        list => list.to_vec(),
    };
    let every = arches.iter().any(|a| a == "all");
    let asked = asked(args, &arches, every)?;
    let filter = |w: &Winner| {
        (every || arches.contains(&w.device.arch)) && asked.as_ref().is_none_or(|list| list.contains(&w.problem))
    };
    let verification = Verification::new(&library);
    let unverified = RefCell::new(HashSet::new());
    let extras = |w: &Winner| {
        if args.no_verification {
            return None;
        }
        verification.extras(&w.problem, &w.device).unwrap_or_else(|why| {
            unverified.borrow_mut().insert(why);
            None
        })
    };
    let gathered = seal(&args.store.read()?, filter, &extras).map_err(|e| match e {
        GatherError::Db(e) => CliError::Db(e),
        GatherError::Bundle(e) => unusable(&args.output, e),
    })?;
    let bundle = &gathered.bundle;
    let mut missing: Vec<(Problem, String)> = gathered.left_out.clone();
    let held: HashSet<Problem> = bundle.winners().map(|h| h.problem()).collect();
    for problem in asked.iter().flatten() {
        if !held.contains(problem) && !missing.iter().any(|(p, _)| p == problem) {
            missing.push((*problem, "no winner is stored; `jitune tune` finds one".into()));
        }
    }
    if bundle.is_empty() {
        let reasons = missing.iter().map(|(p, why)| format!("\n  {p}: {why}")).collect::<String>();
        let places = arches.join(", ");
        let text = format!(
            "nothing to export for {places}; `jitune tune` finds winners, `jitune db list` shows them{reasons}"
        );
        return Err(CliError::Partly(text));
    }
    bundle.write(&args.output).map_err(|e| unusable(&args.output, e))?;
    say(args, bundle, &missing, &unverified.into_inner());
    match missing.len() {
        0 => Ok(()),
        n => Err(CliError::Partly(format!("{n} problems were left out"))),
    }
}

/// The asked problems; `None` for all that are stored.
fn asked(args: &Args, arches: &[String], every: bool) -> Result<Option<Vec<Problem>>, CliError> {
    let w = &args.which;
    if w.model.is_none() && w.problem.is_empty() && w.plan.is_none() {
        return Ok(None);
    }
    // A model's dtype follows the target.
    let cuda = arches.iter().any(|a| a.starts_with("sm_"));
    let target = if every {
        args.device.target()?
    } else if cuda {
        Target::Cuda
    } else {
        Target::Cpu
    };
    w.problems(target).map(Some)
}

fn say(args: &Args, bundle: &Bundle<'_>, missing: &[(Problem, String)], unverified: &HashSet<String>) {
    for why in unverified {
        eprintln!(
            "jitune: warning: the file can be verified only where NVRTC is: {}",
            why.lines().next().unwrap_or_default()
        );
    }
    if args.json {
        let left_out: Vec<_> = missing.iter().map(|(p, why)| serde_json::json!({"problem": p, "why": why})).collect();
        println!(
            "{}",
            serde_json::json!({
                "file": args.output, "bytes": bundle.as_bytes().len(), "winners": bundle.len(),
                "artifacts": bundle.artifacts().len(), "left_out": left_out,
            })
        );
        return;
    }
    let rows: Vec<Vec<String>> = missing.iter().map(|(p, why)| vec![p.to_string(), why.clone()]).collect();
    if !rows.is_empty() {
        table::print(&["left out", "why"], &rows, &[]);
    }
    let arches: Vec<String> = bundle.arches().iter().map(|(t, a)| format!("{} {a}", t.name())).collect();
    println!(
        "{}: {} winners for {}, {} artifacts, {} bytes",
        args.output.display(),
        bundle.len(),
        arches.join(", "),
        bundle.artifacts().len(),
        bundle.as_bytes().len()
    );
}
