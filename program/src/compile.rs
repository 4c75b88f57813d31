//! `jitune compile`: everything but measuring, for any architecture, on a machine with no GPU.

use super::progress::Live;
use super::select::{Templates, Which};
use super::{CliError, table};
use jitune::artifact::ArtifactInfo;
use jitune::backend::BackendError;
use jitune::backend::cuda::nvrtc;
use jitune::device::{Device, Target};
use jitune::problem::Problem;
use jitune::recipe::Launch;
use jitune::space;
use jitune::template::{Library, Template, TemplateError};
use rayon::prelude::*;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune compile --model llama-3.2-1b --arch sm_80,sm_86,sm_89,sm_90a\n\n\
    Compiles, for every problem and every template that takes it, the configs that the analytic cost puts first, and \
    prints registers, spills, shared memory and predicted occupancy. Exit code 1 when one does not compile or spills, or \
    when no template takes a problem.")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    templates: Templates,
    /// Architectures.
    #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_86,sm_89,sm_90a")]
    arch: Vec<String>,
    /// Configs of each template and problem, the cheapest by prediction first.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

/// The description of an architecture that need not be here.
pub(super) fn ahead(arch: &str) -> Result<Device, CliError> {
    Device::ahead_of_time(arch).ok_or_else(|| {
        let later = if arch.starts_with("sm_1") {
            "; portable kernels run on later GPUs too, and are compiled there"
        } else {
            ""
        };
        CliError::Usage(format!(
            "'{arch}' is not supported; architectures are {}{later}",
            Device::ARCHITECTURES.join(", ")
        ))
    })
}

struct Job {
    device: Device,
    problem: Problem,
    template: std::sync::Arc<Template>,
    candidate: space::Candidate,
    launch: Launch,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    nvrtc::open()?;
    let library = args.templates.library()?;
    let problems = args.which.problems(Target::Cuda)?;
    let mut jobs = Vec::new();
    let mut refused: Vec<(&str, Problem, String)> = Vec::new();
    // Once each, however often one is named.
    for (_, arch) in args.arch.iter().enumerate().filter(|(i, arch)| !args.arch[..*i].contains(arch)) {
        let device = ahead(arch)?;
        for &problem in &problems {
            let templates = match library.for_steps(&problem, &device) {
                Ok(list) => list,
                Err(e @ TemplateError::NoTemplate { .. }) => {
                    refused.push((arch, problem, e.to_string()));
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let before = jobs.len();
            for template in templates {
                let space = space::enumerate(&template.recipe, &problem, &device).map_err(recipe)?;
                for candidate in space.candidates.into_iter().take(args.top as usize) {
                    let launch = template.recipe.launch(&problem, &device, &candidate.config).map_err(recipe)?;
                    let (device, template) = (device.clone(), template.clone());
                    jobs.push(Job { device, problem, template, candidate, launch });
                }
            }
            if jobs.len() == before {
                refused.push((arch, problem, format!("no config of any template is legal for '{problem}' on {arch}")));
            }
        }
    }
    let bar = Live::new("{pos} of {len} kernels, {eta} left [{wide_bar}]");
    bar.set_length(jobs.len() as u64);
    let one = |job: &Job| {
        let outcome = compile(&library, job);
        bar.inc(1);
        if args.json {
            bar.suspend(|| out!("{}", json(job, &outcome)));
        }
        outcome
    };
    let outcomes: Vec<Result<ArtifactInfo, BackendError>> = jobs.par_iter().map(one).collect();
    bar.finish_and_clear();
    let mut bad = 0;
    let mut rows = Vec::new();
    for (job, outcome) in jobs.iter().zip(&outcomes) {
        let fine = matches!(outcome, Ok(info) if info.spills == 0);
        bad += usize::from(!fine);
        if args.json {
            continue;
        }
        let (registers, spills, smem, occupancy) = match outcome {
            Ok(i) => (i.registers.to_string(), i.spills.to_string(), (smem(job, i)).to_string(), occupancy(job, i)),
            Err(e) => ("-".into(), "-".into(), "-".into(), first_line(e)),
        };
        let template = job.template.name().to_string();
        let config = job.candidate.config.to_string();
        rows.push(vec![
            job.device.arch.clone(),
            template,
            registers,
            spills,
            smem,
            occupancy,
            job.problem.to_string(),
            config,
        ]);
    }
    for (arch, problem, why) in &refused {
        match args.json {
            true => out!("{}", serde_json::json!({ "arch": arch, "problem": problem, "error": why })),
            false => err!("jitune: {why}"),
        }
    }
    if !args.json {
        let header = ["arch", "template", "registers", "spills", "smem", "occupancy", "problem", "config"];
        table::print(&header, &rows, &[2, 3, 4, 5]);
        out!("{} compiled, {bad} failed or spilled", jobs.len());
    }
    let mut failures = Vec::new();
    if bad > 0 {
        failures.push(format!("{bad} of {} kernels failed to compile or spill", jobs.len()));
    }
    if !refused.is_empty() {
        failures.push(format!("problems that were not compiled: {}", refused.len()));
    }
    if failures.is_empty() { Ok(()) } else { Err(CliError::Partly(failures.join("; "))) }
}

fn recipe(e: jitune::recipe::RecipeError) -> CliError {
    CliError::Template(e.into())
}

fn compile(library: &Library, job: &Job) -> Result<ArtifactInfo, BackendError> {
    let source = library
        .render(&job.template, &job.problem, &job.device, &job.candidate.config)
        .map_err(|e| BackendError::Compile { log: e.to_string() })?;
    nvrtc::compile(&source).map(|(_, info)| info)
}

fn smem(job: &Job, info: &ArtifactInfo) -> u64 {
    u64::from(info.smem) + job.launch.kernels.iter().map(|k| u64::from(k.smem)).max().unwrap_or(0)
}

fn occupancy(job: &Job, info: &ArtifactInfo) -> String {
    let block = job.launch.kernels.iter().map(|k| k.block).max().unwrap_or(1);
    format!("{:.0}%", job.device.occupancy(info.registers, block, smem(job, info)).1 * 100.0)
}

fn first_line(e: &BackendError) -> String {
    e.to_string().lines().find(|l| l.contains("error")).unwrap_or(&e.to_string()).chars().take(120).collect()
}

fn json(job: &Job, outcome: &Result<ArtifactInfo, BackendError>) -> serde_json::Value {
    let mut v = serde_json::json!({
        "arch": job.device.arch, "template": job.template.name(), "problem": job.problem,
        "config": job.candidate.config, "cost_us": job.candidate.cost_us,
    });
    match outcome {
        Ok(info) => {
            v["report"] = serde_json::json!(info);
            v["smem"] = smem(job, info).into();
            v["occupancy"] = occupancy(job, info).into();
        }
        Err(e) => v["error"] = e.to_string().into(),
    }
    v
}
