//! `jitune profile`: one kernel's full card.

use super::compare::{bundle, on};
use super::select::{Store, Templates, Where};
use super::{CliError, table};
use jitune::compare::{self, Options, Places, Profiled, Profiler};
use jitune::device::{Device, Target};
use jitune::journal;
use jitune::key::{self, Context};
use jitune::problem::Problem;
use jitune::recipe::Recipe;
use jitune::template::Library;
use jitune::tune;
use jitune::winner::Winner;
use jitune_db::Db;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune profile 'matmul m=32 n=16384 k=2048 epilogue=swiglu'\n\n\
    Needs a stored winner. Counters need ncu (Nsight Compute) in PATH and the right to read them; the instruction mix \
    needs nvdisasm or cuobjdump. What is not here is said and left out. Exit code 1 without a winner.")]
pub struct Args {
    /// The problem.
    problem: String,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// A peer's kernels instead of jitune's.
    #[arg(long, default_value = compare::OURS, value_name = "NAME")]
    peer: String,
    /// Another folder with peers' programs.
    #[arg(long, value_name = "FOLDER")]
    peer_dir: Option<PathBuf>,
    /// The Python that runs the torch peer.
    #[arg(long, default_value = "python3")]
    python: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let problem: Problem = args.problem.parse()?;
    let id = args.device.first()?;
    let library = args.templates.library()?;
    let scratch = super::compare::scratch()?;
    let exe = std::env::current_exe().map_err(|source| CliError::Io { path: "jitune".into(), source })?;
    let device = tune::ceilings(&exe, id, &library, &problem, scratch.path())?;
    let db = args.store.read()?;
    let winner = stored(&db, &library, &problem, &device)?;
    let bundle = bundle(&db, &library, &device, scratch.path())?;
    let (kernels, why) = match (device.target, Profiler::find()) {
        (Target::Cpu, _) => (Vec::new(), Some("a processor's counters are not read".to_string())),
        (Target::Cuda, None) => (Vec::new(), Some("ncu is not in PATH".to_string())),
        (Target::Cuda, Some(ncu)) => {
            let options = Options {
                exe,
                winners: bundle,
                device: device.clone(),
                on: on(id, &device),
                peers: vec![args.peer.clone()],
                settings: BTreeMap::new(),
                places: Places {
                    folder: args.peer_dir.clone(),
                    python: args.python.clone(),
                    scratch: scratch.path().into(),
                },
                rounds: 1,
                seconds: 1.0,
                round_us: 1.0,
                warm_s: 0.0,
                seed: 1,
                profiler: None,
                counted: Vec::new(),
                done: None,
            };
            match compare::profile(&ncu, &problem, &args.peer, &options) {
                Ok(found) => (found, None),
                Err(why) => (Vec::new(), Some(why)),
            }
        }
    };
    let code = scratch.path().join("kernel.cubin");
    let mix = db
        .artifact(&winner.artifact.parse().map_err(|_| missing(&problem))?)?
        .filter(|_| device.target == Target::Cuda && args.peer == compare::OURS)
        .and_then(|bytes| std::fs::write(&code, bytes).ok())
        .and_then(|()| compare::mix(&code));
    if args.json {
        let ways: Vec<_> = kernels.iter().map(|(way, k)| serde_json::json!({"way": way, "kernels": k})).collect();
        out!(
            "{}",
            serde_json::json!({
                "problem": problem, "device": device, "winner": winner, "peer": args.peer, "ways": ways,
                "no_counters": why, "instructions": mix,
            })
        );
        return Ok(());
    }
    card(&winner, &device);
    for (way, list) in &kernels {
        counters(&args.peer, way, list);
    }
    if let Some(why) = why {
        out!("\nno counters: {why}");
    }
    match mix {
        Some(mix) => instructions(&mix),
        None if args.peer == compare::OURS => out!("\nno instruction mix: no nvdisasm or cuobjdump in PATH"),
        None => {}
    }
    Ok(())
}

fn missing(problem: &Problem) -> CliError {
    CliError::Partly(format!(
        "'{problem}' has no winner for this device that a look-up finds; `jitune tune --problem '{problem}'` finds one"
    ))
}

fn stored(db: &Db, library: &Library, problem: &Problem, device: &Device) -> Result<Winner, CliError> {
    let context = Context { device: device.clone(), compiler: key::compiler(device.target)? };
    let templates = library.for_problem(problem, device)?;
    let record = db.winner(&context.winner(library, problem, &templates))?;
    record.and_then(|record| journal::own_winner(&record, &templates).ok()).ok_or_else(|| missing(problem))
}

/// What is known without counters: the roofline, and how the kernel fills the device.
fn card(w: &Winner, device: &Device) {
    let e = &w.evidence;
    let (roofline, memory) = device.roofline(&w.problem);
    out!("{}\non {} ({})", w.problem, device.name, device.arch);
    out!("{} {}\n", w.template(), w.config);
    let line = |name: &str, text: String| out!("{name:<22}{text}");
    line("time", format!("{} us, median of {} rounds", table::us(e.median_us), e.samples_us.len()));
    let bound = if memory { "bytes" } else { "operations" };
    line(
        "roofline",
        format!("{} us, set by {bound}: {:.1}% of it reached", table::us(roofline * 1e6), roofline * 1e8 / e.median_us),
    );
    line("rates", format!("{}, {}", table::flops(w.flops()), table::bytes(w.bytes_per_s())));
    if device.target == Target::Cpu {
        return;
    }
    let info = &e.compiler_report;
    let launch = Recipe::new(w.description.clone()).and_then(|r| r.launch(&w.problem, device, &w.config));
    let Ok(launch) = launch else { return };
    for k in &launch.kernels {
        let shared = u64::from(info.smem) + u64::from(k.smem);
        let (blocks, share) = device.occupancy(info.registers, k.block, shared);
        let grid: u64 = k.grid.iter().map(|g| u64::from(*g)).product();
        let waves = grid as f64 / (blocks.max(1) * u64::from(device.units)) as f64;
        line(
            &k.entry,
            format!(
                "{grid} blocks of {} threads, {} registers, {} bytes of spills, {shared} bytes of shared memory",
                k.block, info.registers, info.spills
            ),
        );
        line("", format!("{blocks} blocks a multiprocessor ({:.0}% of its warps), {waves:.2} waves", share * 100.0));
    }
}

fn counters(peer: &str, way: &str, kernels: &[Profiled]) {
    out!("\n{peer}/{way}, as ncu counts one call on cold caches:");
    let number = |k: &Profiled, name: &str, scale: f64| {
        k.metrics.get(name).map_or("-".to_string(), |v| format!("{:.1}", v * scale))
    };
    let row = |k: &Profiled| {
        vec![
            number(k, "gpu__time_duration.sum", 1e-3),
            k.tensor_pct().map_or("-".into(), |v| format!("{v:.1}")),
            number(k, "sm__warps_active.avg.pct_of_peak_sustained_active", 1.0),
            number(k, "dram__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
            number(k, "lts__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
            number(k, "launch__waves_per_multiprocessor", 1.0),
            number(k, "launch__registers_per_thread", 1.0),
            k.kernel.chars().take(60).collect(),
        ]
    };
    let rows: Vec<Vec<String>> = kernels.iter().map(row).collect();
    let header = ["us", "tensor %", "occupancy %", "memory %", "L2 %", "waves", "registers", "kernel"];
    table::print(&header, &rows, &[0, 1, 2, 3, 4, 5, 6]);
}

fn instructions(mix: &BTreeMap<String, u64>) {
    let all = mix.get("all").copied().unwrap_or(1).max(1);
    out!("\n{all} instructions (as they stand in the code, not as often as they run):");
    let mut list: Vec<(&String, &u64)> = mix.iter().filter(|(name, _)| *name != "all").collect();
    list.sort_by(|a, b| b.1.cmp(a.1));
    let row = |(name, n): (&String, &u64)| {
        vec![n.to_string(), format!("{:.1}%", *n as f64 * 100.0 / all as f64), name.clone()]
    };
    let rows: Vec<Vec<String>> = list.into_iter().map(row).collect();
    table::print(&["number", "share", "kind"], &rows, &[0, 1]);
}
