//! `jitune tune`: the main job.

use super::progress::Progress;
use super::select::{Store, Templates, Where, Which, Whole, at_least_one, within};
use super::{CliError, table};
use jitune::device::DeviceId;
use jitune::tune::{self, OfKind, Options, Report, Search, Spent};
use jitune::winner::Winner;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune tune --model llama-3.2-1b\n  \
    jitune tune --problem 'matmul m=7 n=1000 k=1544 dtype=f32'\n  \
    jitune tune --model ./my-model --batch 1,8 --prefill 1024 --gpus all --budget 600\n  \
    jitune tune --serving --model ./my-model --workload chat --ttft 100 --tpot 20\n  \
    jitune tune --steps --model ./my-model\n\n\
    Winners are stored as they are found; run again to go on, or to see that nothing is left to do.")]
pub struct Args {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub device: Where,
    #[command(flatten)]
    pub store: Store,
    #[command(flatten)]
    pub templates: Templates,
    #[cfg(feature = "bench")]
    #[command(flatten)]
    pub serving: ServingArgs,
    #[cfg(feature = "engine")]
    #[command(flatten)]
    pub steps: StepsArgs,
    /// Wall time for all problems together; 225 on a GPU and 240 on a CPU by default, and 300 with --serving. With --steps it counts
    /// from when the model is loaded, and there is no end by default.
    #[arg(long, value_name = "SECONDS")]
    pub budget: Option<u64>,
    /// Most candidates a problem; 64 on a GPU and 16 on a CPU by default.
    #[arg(long, value_parser = at_least_one())]
    trials: Option<usize>,
    /// How candidates are chosen.
    #[arg(long, value_parser = search, default_value = "auto", value_name = "auto|exhaustive|random|evolve")]
    search: Search,
    /// Stop a problem that comes this close to its roofline.
    #[arg(long, default_value_t = tune::Options::default().near_roofline, value_name = "SHARE", value_parser = within(0.0, 1.0))]
    near_roofline: f64,
    /// Compile workers; as many as cores and memory allow by default.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    compilers: Option<usize>,
    /// Seconds after which a candidate counts as hanging.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = within(0.05, 3600.0))]
    patience: f64,
    /// Seed of the search and of the inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tune problems again that have a winner, and believe nothing that was found before.
    #[arg(long)]
    pub again: bool,
    /// Use nominal ceilings in place of measured ones: a quicker start, and rough rooflines.
    #[arg(long)]
    nominal_ceilings: bool,
    /// Print events, and at the end the report, as JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of a search for the limits of the engine's steps.
#[cfg(feature = "bench")]
#[derive(clap::Args)]
pub struct ServingArgs {
    /// Find the tokens of a step, the requests at a time and the tokens of prompts beside decodes that serve --model best under a
    /// workload, in place of kernels; `jitune serve` takes them.
    #[arg(long, requires = "model", conflicts_with_all = ["problem", "plan", "steps"])]
    pub serving: bool,
    /// The workload, as of `jitune bench`, chat by default; its load is where the search begins.
    #[arg(long, value_name = "NAME[:SETTINGS]", requires = "serving")]
    pub workload: Option<String>,
    /// Most milliseconds to the first token; by default the workload's.
    #[arg(long, value_name = "MS", requires = "serving", value_parser = within(1e-3, 1e6))]
    pub ttft: Option<f64>,
    /// Most milliseconds a token after the first; by default the workload's.
    #[arg(long, value_name = "MS", requires = "serving", value_parser = within(1e-3, 1e6))]
    pub tpot: Option<f64>,
    /// The workload's short form, for a small model on a processor.
    #[arg(long, requires = "serving")]
    pub quick: bool,
    /// Measure a small grid of settings too, to compare with.
    #[arg(long, requires = "serving")]
    pub grid: bool,
    /// Most bytes on the device, such as 4G; by default what is free there.
    #[arg(long, value_name = "BYTES", requires = "serving", value_parser = super::select::bytes)]
    pub memory: Option<u64>,
}

/// Arguments of a search for the kernels of whole steps.
#[cfg(feature = "engine")]
#[derive(clap::Args)]
pub struct StepsArgs {
    /// Find, of the kernels that came close to the winners of --model, those with which its decode steps are the fastest, and
    /// whether norms are in products; `run`, `serve`, `step` and `export` take them. Needs weights, of whatever values, and
    /// kernels that were tuned before.
    #[arg(long, requires = "model", conflicts_with_all = ["problem", "plan"])]
    pub steps: bool,
}

impl Args {
    /// How candidates are looked for.
    pub(super) fn options(&self, devices: Vec<DeviceId>, budget: Duration) -> Options {
        Options {
            devices,
            budget: Some(budget),
            trials: self.trials,
            near_roofline: self.near_roofline,
            search: self.search,
            compilers: self.compilers,
            patience: Duration::from_secs_f64(self.patience),
            again: self.again,
            seed: self.seed,
            ..Options::default()
        }
    }
}

fn search(text: &str) -> Result<Search, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is auto, exhaustive, random or evolve".into())
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let target = args.device.target()?;
    let Whole { problems, narrow } = args.which.whole(target)?;
    let devices = args.device.devices()?;
    let library = args.templates.library()?;
    jitune::key::compiler(target)?;
    let db = args.store.open()?;
    for line in &db.report().bad_lines {
        err!("jitune: warning: a damaged line of the journal was set aside: {line}");
    }
    let budget = args.budget.map_or_else(|| tune::default_budget(target), Duration::from_secs);
    let options = Options { narrow, nominal: args.nominal_ceilings, ..args.options(devices, budget) };
    let stop = on_signals()?;
    let progress = Progress::new(args.json, budget);
    let report = tune::run(&db, &library, &problems, &options, &progress, &stop);
    progress.finish();
    let report = report?;
    db.close()?;
    if args.json {
        out!("{}", serde_json::json!({ "event": "report", "report": report }));
    } else {
        show(&report);
    }
    if report.interrupted {
        return Err(CliError::Interrupted);
    }
    match report.failed().count() {
        0 => Ok(()),
        n => Err(CliError::Partly(format!("{n} of {} problems have no winner", asked(&report)))),
    }
}

/// Whether a signal ends the program at once: where there is nothing to bring to an end.
pub(super) static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// Turns Ctrl-C, SIGTERM and SIGHUP into a flag, the same one each time. A second one does not wait for the work at hand.
pub(super) fn on_signals() -> Result<Arc<AtomicBool>, CliError> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let stop = Arc::new(AtomicBool::new(false));
    if STOP.set(stop.clone()).is_err() {
        return Ok(STOP.get().cloned().unwrap_or(stop));
    }
    let signal = stop.clone();
    let heard = move || {
        if signal.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        if AT_ONCE.load(Ordering::Relaxed) {
            err!("\njitune: interrupted; what was finished is stored");
            std::process::exit(130);
        }
    };
    let unheard = |e: std::io::Error| CliError::Usage(format!("signals cannot be handled: {e}"));
    let hangup = Some(SIGHUP).filter(|_| !is_ignored(SIGHUP));
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)).map_err(unheard)?;
    let listens = move || signals.forever().for_each(|_| heard());
    std::thread::Builder::new().name("jitune-signals".into()).spawn(listens).map_err(unheard)?;
    Ok(stop)
}

/// Whether whoever started the program had a signal ignored, as nohup has the one of a closed terminal.
fn is_ignored(signal: i32) -> bool {
    let mask = std::fs::read_to_string("/proc/self/status").ok();
    let mask = mask.and_then(|text| text.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(|m| m.trim().to_string()));
    let mask = mask.and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// How many problems the run was about: each counts once for every kind of device.
fn asked(report: &Report) -> usize {
    report.kinds.iter().map(|k| k.winners.len()).sum()
}

fn show(report: &Report) {
    report.kinds.iter().for_each(of_kind);
    let cut_off = report.winners().filter(|w| w.evidence.cut_off).count();
    if cut_off > 0 {
        let searches =
            if cut_off == 1 { "1 winner's search was" } else { &format!("{cut_off} winners' searches were") };
        out!("{searches} cut off, by time or by compilers or workers that failed; run again to go on");
    }
    let tried: u32 = report.winners().map(|w| w.evidence.trials).sum();
    out!(
        "{} of {} problems have winners ({} stored before), {tried} candidates tried, {:.1} s",
        report.winners().count(),
        asked(report),
        report.stored(),
        report.seconds
    );
    if report.compiling.sources > 0 {
        let mut s = Spent::default();
        report.kinds.iter().for_each(|k| s.add(&k.spent));
        out!(
            "time of the measuring workers: preparing {:.1} s, verifying {:.1} s, measuring {:.1} s, waiting for compilers \
             {:.1} s, recovering {:.1} s; compiling {:.1} s over all workers for {} sources",
            s.preparing,
            s.verifying,
            s.measuring,
            s.waiting,
            s.recovering,
            report.compiling.seconds,
            report.compiling.sources
        );
    }
}

/// What was found on the devices of one kind.
fn of_kind(kind: &OfKind) {
    let winners: Vec<&Winner> = kind.winners.iter().flatten().collect();
    let row = |w: &&Winner| {
        let e = &w.evidence;
        let rate = if e.memory_bound { table::bytes(w.bytes_per_s()) } else { table::flops(w.flops()) };
        let rejected: Vec<String> = e.rejected.iter().map(|(why, n)| format!("{n} {why}")).collect();
        vec![
            table::us(e.median_us),
            rate,
            format!("{:.0}%", e.roofline_share * 100.0),
            e.trials.to_string(),
            if rejected.is_empty() { "-".into() } else { rejected.join(", ") },
            w.problem.to_string(),
            format!("{} {}", w.template(), w.config),
        ]
    };
    let rows: Vec<Vec<String>> = winners.iter().map(row).collect();
    table::print(&["us", "rate", "of ceiling", "trials", "rejected", "problem", "winner"], &rows, &[0, 1, 2, 3]);
    for f in &kind.failed {
        out!("no winner: {}: {}", f.problem, super::progress::why(&f.problem, &f.error));
    }
    out!("");
    for d in &kind.devices {
        let kind = if d.ceilings.measured { "measured ceilings" } else { "nominal ceilings" };
        let (read, copy) = (table::bytes(d.ceilings.read), table::bytes(d.ceilings.copy));
        let single = table::flops(d.ceilings.single);
        out!("{} ({}), {kind}: read {read}, copy {copy}, f32 products {single}", d.name, d.arch);
    }
}
