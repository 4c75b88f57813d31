//! `jitune try`: candidates of one problem, compiled, checked and timed in this very process, so that a debugger, a
//! profiler or a memory checker sees them. Stores nothing.

use super::select::{Templates, Where};
use super::{CliError, table};
use crate::backend::cpu::{CpuSession, cc};
use crate::backend::cuda::{CudaSession, nvrtc};
use crate::backend::session::{Runnable, Session, Setup};
use crate::backend::{ArtifactInfo, BackendError};
use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::{Config, Launch};
use crate::space;
use crate::template::{Language, Library, Source};
use crate::worker::Kind;
use std::path::{Path, PathBuf};

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
    #[arg(long, default_value_t = 1)]
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
    let folder = std::env::temp_dir().join(format!("jitune-try-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|source| CliError::Io { path: folder.clone(), source })?;
    let done = attempts(args, &problem, &library, &folder);
    // What stays behind lies in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&folder);
    done
}

fn attempts(args: &Args, problem: &Problem, library: &Library, folder: &Path) -> Result<(), CliError> {
    let mut session: Box<dyn Session> = match args.device.devices()?.first() {
        Some(Kind::Cuda(ordinal)) if args.exact_memory => Box::new(CudaSession::open(*ordinal)?.with_exact_memory()),
        Some(Kind::Cuda(ordinal)) => Box::new(CudaSession::open(*ordinal)?),
        _ => Box::new(CpuSession::open(args.device.threads)),
    };
    let device = session.device().clone();
    session.prepare(&setup(library, problem, &device, args.seed, folder)?)?;
    let recipe = |e: crate::recipe::RecipeError| CliError::Template(e.into());
    let (mut rows, mut bad) = (Vec::new(), 0);
    let mut fastest: Option<(f64, String)> = None;
    let templates = match &args.template {
        Some(name) => library.taking(problem, &device)?.into_iter().filter(|t| t.name() == name).collect(),
        None => library.for_problem(problem, &device)?,
    };
    for t in templates {
        let configs: Vec<Config> = match &args.config {
            Some(text) => {
                let config: Config = text.parse().map_err(CliError::Usage)?;
                t.recipe.check(problem, &device, &config).map_err(recipe)?;
                vec![config]
            }
            None => {
                let space = space::enumerate(&t.recipe, problem, &device).map_err(recipe)?;
                space.candidates.into_iter().take(args.top).map(|c| c.config).collect()
            }
        };
        for config in configs {
            let launch = t.recipe.launch(problem, &device, &config).map_err(recipe)?;
            let source = library.render(&t, problem, &device, &config)?;
            let tried = build(&source, launch, folder)
                .and_then(|(runnable, info)| session.attempt(&runnable, args.rounds).map(|tried| (tried, info)));
            let (us, said) = match tried {
                Err(e) if e.is_fault() => return Err(e.into()),
                Err(e) => (f64::NAN, e.to_string()),
                Ok((tried, info)) => {
                    let us = tried.series.as_ref().map_or(f64::NAN, |s| s.median());
                    let errors = format!("error {:.1e} / {:.1e}", tried.check.rms, tried.check.max);
                    let right = format!("right, {errors}, {} registers, {} spills", info.registers, info.spills);
                    (us, tried.check.wrong.map_or(right, |w| format!("WRONG: {w}")))
                }
            };
            let right = said.starts_with("right");
            bad += usize::from(!right);
            if right && fastest.as_ref().is_none_or(|(least, _)| us < *least) {
                fastest = Some((us, config.to_string()));
            }
            rows.push(vec![table::us(us), t.name().to_string(), config.to_string(), said]);
        }
    }
    if args.fastest {
        let (_, config) = fastest.ok_or_else(|| CliError::Partly("no candidate is right".into()))?;
        println!("{config}");
        return Ok(());
    }
    table::print(&["us", "template", "config", "verdict"], &rows, &[0]);
    match (rows.len(), bad) {
        (0, _) => Err(CliError::Usage("no template of that name takes the problem".into())),
        (_, 0) => Ok(()),
        (n, bad) => Err(CliError::Partly(format!("{bad} of {n} candidates are not right"))),
    }
}

/// What a session needs for a problem: on a GPU the support code and the reference, compiled here.
fn setup(library: &Library, problem: &Problem, device: &Device, seed: u64, folder: &Path) -> Result<Setup, CliError> {
    if device.target == Target::Cpu {
        return Ok(Setup { problem: *problem, seed, support: None, reference: None });
    }
    let none = Launch { kernels: Vec::new(), workspace: 0, zero: false };
    let (support, _) = build(&library.support(problem.dtype, device)?, none, folder)?;
    let template = library.reference(problem, device)?;
    let config = Config::default();
    let launch = template.recipe.launch(problem, device, &config).map_err(|e| CliError::Template(e.into()))?;
    let (reference, _) = build(&library.render(&template, problem, device, &config)?, launch, folder)?;
    Ok(Setup { problem: *problem, seed, support: Some((support.artifact, support.hash)), reference: Some(reference) })
}

fn build(source: &Source, launch: Launch, folder: &Path) -> Result<(Runnable, ArtifactInfo), BackendError> {
    let (bytes, info) = match source.language {
        Language::Cuda => nvrtc::compile(source)?,
        Language::C => cc::compile(source, folder)?,
    };
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let artifact: PathBuf = folder.join(&hash);
    std::fs::write(&artifact, &bytes).map_err(|source| BackendError::Io { path: artifact.clone(), source })?;
    Ok((Runnable { artifact, hash, launch }, info))
}
