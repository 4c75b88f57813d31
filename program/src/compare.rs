//! `jitune compare`: the winners head to head with what people use.

use super::export::failed as not_exported;
use super::progress::{Live, Progress, left};
use super::select::{Store, Templates, Where, Which, within};
use super::sign::unusable;
use super::{CliError, table};
use clap::builder::NonEmptyStringValueParser;
use jitune::bench::Folder;
use jitune::compare::{self, Asked, Chain, CompareError, KNOWN, Options, Places, Profiler};
use jitune::device::{Device, DeviceId, Target};
use jitune::export;
use jitune::problem::Problem;
use jitune::report::Rows;
use jitune::report::rows::{Calls, Line, Run, State};
use jitune::template::Library;
use jitune::tune;
use jitune::verdict::Verdict;
use jitune::winner::Winner;
use jitune_db::Db;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune compare --model llama-3.2-1b\n  \
    jitune compare --model llama-3.2-1b --quick --peers cpu,candle\n  \
    jitune compare --model ./my-model --precisions\n  \
    jitune compare --model ./my-model --precisions=f32,bf16,int4-g128\n  \
    jitune compare --problem 'matmul m=32 n=4096 k=4096' --peers cublaslt --counters\n\n\
    Problems without a winner are tuned first. Every peer's numbers are checked; rounds are interleaved. Rows are stored \
    as they are measured, so Ctrl-C keeps what there is. Exit code 1 when a result of ours is wrong or missing, 130 after \
    Ctrl-C. `jitune report --from FOLDER/rows.jsonl` makes the report again; --resume goes on with a run that was cut off.")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Peers beside jitune: cublaslt, torch, candle, burn, cpu, or programs jitune-peer-NAME; by default all that the
    /// device could run.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", value_parser = NonEmptyStringValueParser::new())]
    peers: Option<Vec<String>>,
    /// The Python that runs the torch peer.
    #[arg(long, default_value = "python3")]
    python: String,
    /// Another folder with peers' programs.
    #[arg(long, value_name = "FOLDER")]
    peer_dir: Option<PathBuf>,
    /// A setting of a peer, such as torch.compile_mode=default; may be given several times.
    #[arg(long, value_name = "PEER.KEY=VALUE")]
    set: Vec<String>,
    /// Rounds of each problem; 21 by default, 5 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds after which a problem's rounds end early; 12 by default, 3 with --quick.
    #[arg(long, value_parser = within(0.0, 86400.0))]
    seconds: Option<f64>,
    /// Seconds that a peer may warm up on a problem; 5 by default, 0.5 with --quick.
    #[arg(long, value_parser = within(0.0, 3600.0))]
    warm: Option<f64>,
    /// A short comparison: fewer rounds, and of a model the buckets --batch 1 and --prefill 512 alone.
    #[arg(long)]
    quick: bool,
    /// Wall time for tuning what has no winner yet; 225 by default, 60 with --quick.
    #[arg(long, value_name = "SECONDS")]
    budget: Option<u64>,
    /// Compare only what has a winner already.
    #[arg(long)]
    no_tune: bool,
    /// Read hardware counters of jitune's and cuBLASLt's kernels through ncu.
    #[arg(long)]
    counters: bool,
    /// Go on with the run in the output folder that was cut off: what it measured to the end is kept.
    #[arg(long)]
    resume: bool,
    /// The folder for rows.jsonl, report.md and report.html.
    #[arg(short, long, default_value = "jitune-compare", value_name = "FOLDER")]
    output: PathBuf,
    /// Print the rows as JSON lines.
    #[arg(long)]
    json: bool,
    /// Compare precisions of the whole model on the kernels that are tuned for each, in place of kernels: time, memory, and what each
    /// does to its answers beside f32's; all by default, or of f32, tf32, f16, bf16, stored and the formats of --weights those that
    /// are named.
    #[cfg(feature = "engine")]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', num_args = 0.., require_equals = true, requires = "model")]
    precisions: Option<Vec<String>>,
    /// The text that --precisions are compared on; one of its own by default.
    #[cfg(feature = "engine")]
    #[arg(long, value_name = "FILE", requires = "precisions")]
    text: Option<PathBuf>,
}

/// The rows' file.
const ROWS: &str = "rows.jsonl";
/// The peers whose counters are read.
const COUNTED: [&str; 2] = [compare::OURS, "cublaslt"];

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    for output in [&args.output, &args.output.join(ROWS)] {
        args.store.keeps_out(output)?;
    }
    #[cfg(feature = "engine")]
    if let Some(precisions) = &args.precisions {
        let asked = &args.which.buckets.precision;
        if asked.weights != super::precision::Stored::default() || asked.kv_dtype.is_some() {
            let why = "--precisions names what is compared, as in --precisions=w8a8,int4-g128/kv-e4m3; --weights and --kv-dtype go without it";
            return Err(CliError::Usage(why.into()));
        }
        return super::precisions::run(&super::precisions::Arguments {
            which: &args.which,
            device: &args.device,
            store: &args.store,
            templates: &args.templates,
            precisions,
            text: args.text.as_deref(),
            output: &args.output,
            json: args.json,
        });
    }
    let target = args.device.target()?;
    let id = args.device.first()?;
    let mut which = args.which.clone();
    if args.quick && which.model.is_some() {
        which.buckets.batch.truncate(1);
        which.buckets.prefill.truncate(1);
    }
    let problems = which.problems(target)?;
    let calls = calls(&which, target, &problems)?;
    let library = args.templates.library()?;
    let settings = settings(&args.set)?;
    let profiler = match (args.counters, Profiler::find()) {
        (true, None) => return Err(CliError::Usage("--counters needs ncu (Nsight Compute) in PATH".into())),
        (true, found) => found,
        (false, _) => None,
    };
    let io = |path: &Path, source| CliError::Io { path: path.into(), source };
    std::fs::create_dir_all(&args.output).map_err(|e| io(&args.output, e))?;
    let scratch = scratch()?;
    let exe = std::env::current_exe().map_err(|e| io(Path::new("jitune"), e))?;
    let stop = super::tune::on_signals()?;

    let db = args.store.open()?;
    let winners = tuned(args, &db, &library, &problems, id, &stop)?;
    if stop.load(Ordering::Relaxed) {
        // Before anything was compared: an earlier run's rows stay as they are.
        return Err(CliError::Interrupted);
    }
    let device = tune::ceilings(&exe, id, &library, &problems[0], scratch.path())?;
    let bundle = bundle(&db, &library, &device, scratch.path())?;
    let asked: Vec<Asked> = problems
        .iter()
        .zip(winners)
        .zip(calls)
        .map(|((p, winner), calls)| Asked { problem: *p, calls, winner, history: history(&db, &library, p, &device) })
        .collect();
    db.close()?;

    let all = KNOWN.iter().filter(|k| k.targets.contains(&target));
    let options = Options {
        exe,
        winners: bundle,
        device: device.clone(),
        on: on(id, &device),
        peers: args.peers.clone().unwrap_or_else(|| all.map(|k| k.name.into()).collect()),
        settings,
        places: Places { folder: args.peer_dir.clone(), python: args.python.clone(), scratch: scratch.path().into() },
        rounds: args.rounds.unwrap_or(if args.quick { 5 } else { 21 }).max(1),
        seconds: args.seconds.unwrap_or(if args.quick { 3.0 } else { 12.0 }),
        round_us: if target == Target::Cuda { 300.0 } else { 1000.0 },
        warm_s: args.warm.unwrap_or(if args.quick { 0.5 } else { 5.0 }),
        seed: jitune_db::now(),
        profiler,
        counted: COUNTED.map(String::from).to_vec(),
        done: if args.resume { earlier(&args.output.join(ROWS), &device)? } else { None },
    };
    let run = Run {
        at: jitune_db::now(),
        jitune: env!("CARGO_PKG_VERSION").into(),
        command: std::env::args_os()
            .skip(1)
            .fold("jitune".into(), |all, word| format!("{all} {}", word.to_string_lossy())),
        model: which.model.clone(),
        device: Some(device),
        host: host(target),
        rounds: options.rounds,
        quick: args.quick,
        peers: Vec::new(),
    };
    let rows = args.output.join(ROWS);
    let mut teller = Teller {
        json: args.json,
        live: Live::new("{elapsed_precise}  {wide_msg}"),
        problems: asked.len(),
        at: 0,
        before: 0,
        begun: None,
        bad: 0,
    };
    // Rows of problems that are not asked for now do not come to stand in the new file.
    let asks = |rows: &Rows| rows.problems.iter().all(|p| asked.iter().any(|a| a.problem.to_string() == p.problem));
    if !options.done.as_ref().is_some_and(asks) {
        super::rows::set_aside(&rows)?;
    }
    let compared = compare::run(&asked, &options, run, &rows, &mut teller, &stop);
    teller.live.finish_and_clear();
    compared.map_err(failed)?;
    let rows = super::rows::read(&rows)?;
    let files = super::report::write(&args.output, &rows)?;
    if !args.json {
        super::report::show(&rows);
        out!("written: {}", files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
    }
    if stop.load(Ordering::Relaxed) {
        return Err(CliError::Cut);
    }
    match teller.bad {
        0 => Ok(()),
        n => Err(CliError::Partly(format!("{n} of jitune's own results are wrong or missing"))),
    }
}

/// A folder for what peers are told of.
pub(super) fn scratch() -> Result<Folder, CliError> {
    let folder = Folder::temporary()?;
    match folder.path().to_str() {
        Some(_) => Ok(folder),
        None => {
            let folder = folder.path().display();
            Err(CliError::Usage(format!("TMPDIR: peers are told paths as text, and {folder} is none")))
        }
    }
}

/// The rows of a run that was cut off; one on another device cannot be gone on with.
fn earlier(path: &Path, device: &Device) -> Result<Option<Rows>, CliError> {
    if !path.exists() {
        return Ok(None);
    }
    let rows = super::rows::read(path)?;
    let here = |d: &Device| d.silicon == device.silicon && d.arch == device.arch;
    match rows.run.device.as_ref().is_some_and(here) {
        true => Ok(Some(rows)),
        false => Err(CliError::Usage(format!("--resume: {} was measured on another device", path.display()))),
    }
}

fn failed(e: CompareError) -> CliError {
    match e {
        CompareError::Io { path, source } => CliError::Io { path, source },
        other => CliError::Partly(other.to_string()),
    }
}

/// Where the model calls each problem.
fn calls(which: &Which, target: Target, problems: &[Problem]) -> Result<Vec<Vec<Calls>>, CliError> {
    let Some(name) = &which.model else { return Ok(vec![Vec::new(); problems.len()]) };
    // The notes were said when the problems were listed.
    let (_, plan, _) = which.buckets.plan(name, target)?;
    let of = |p: &Problem| {
        let mine = plan.calls.iter().filter(|c| c.problem == *p);
        mine.map(|c| Calls { role: c.role.clone(), phase: c.phase, bucket: c.bucket, calls: c.calls }).collect()
    };
    Ok(problems.iter().map(of).collect())
}

pub(super) fn settings(list: &[String]) -> Result<BTreeMap<String, BTreeMap<String, String>>, CliError> {
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for text in list {
        let parts = text.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        let Some(((peer, key), value)) = parts else {
            return Err(CliError::Usage(format!("--set {text}: it is written PEER.KEY=VALUE")));
        };
        all.entry(peer.into()).or_default().insert(key.into(), value.into());
    }
    Ok(all)
}

/// The winner of each problem; what has none is tuned, and so are the pieces that fused problems replace.
fn tuned(
    args: &Args,
    db: &Db,
    library: &Library,
    problems: &[Problem],
    id: DeviceId,
    stop: &AtomicBool,
) -> Result<Vec<Option<Winner>>, CliError> {
    let mut list = problems.to_vec();
    for piece in problems.iter().filter_map(Chain::unfused).flat_map(|c| c.problems().collect::<Vec<_>>()) {
        if !list.contains(&piece) {
            list.push(piece);
        }
    }
    let budget = match args.budget {
        Some(seconds) => Duration::from_secs(seconds),
        None if args.quick => Duration::from_secs(60),
        None => tune::default_budget(Target::Cuda),
    };
    let options = tune::Options {
        devices: vec![id],
        budget: Some(budget),
        trials: (id.target() == Target::Cpu).then_some(10),
        stored_only: args.no_tune,
        ..tune::Options::default()
    };
    let progress = Progress::new(args.json, budget);
    let report = tune::run(db, library, &list, &options, &progress, stop);
    progress.finish();
    // One device was named.
    let mut winners = report?.kinds.into_iter().next().map(|kind| kind.winners).unwrap_or_default();
    winners.truncate(problems.len());
    Ok(winners)
}

/// The device as peers name it.
pub(super) fn on(id: DeviceId, device: &Device) -> jitune_peer::Device {
    match id {
        DeviceId::Cuda(ordinal) => jitune_peer::Device::Cuda(ordinal),
        DeviceId::Cpu(_) => jitune_peer::Device::Cpu(device.units as usize),
    }
}

/// Seals the winners that a look-up finds on this device now, for jitune's own peer.
pub(super) fn bundle(db: &Db, library: &Library, device: &Device, folder: &Path) -> Result<PathBuf, CliError> {
    let path = folder.join("winners.jitune");
    let filter = |w: &Winner| w.device.arch == device.arch && w.device.silicon == device.silicon;
    let compiler = jitune::key::compiler(device.target)?;
    let options = export::Options {
        filter: &filter,
        compiler: Some(&compiler),
        stale: false,
        verifiable: false,
        in_steps: false,
    };
    let export = export::seal(db, library, options).map_err(|e| not_exported(&path, e))?;
    export.bundle.write(&path).map_err(|e| unusable(&path, e))?;
    Ok(path)
}

/// The stored trials of a problem on this device, in order.
fn history(db: &Db, library: &Library, problem: &Problem, device: &Device) -> Vec<(f64, f64)> {
    let Ok(compiler) = jitune::key::compiler(device.target) else { return Vec::new() };
    let context = jitune::key::Context { device: device.clone(), compiler };
    let templates = library.for_problem(problem, device).unwrap_or_default();
    let keys = templates.iter().map(|t| context.trials(library, problem, t));
    let mut records: Vec<_> = keys.filter_map(|k| db.trials(&k).ok()).flatten().collect();
    records.retain(|r| !r.merged);
    records.sort_by_key(|r| r.at);
    let Some(first) = records.first().map(|r| r.at) else { return Vec::new() };
    let point = |r: &jitune_db::Record| match jitune::journal::verdict(r)? {
        Verdict::Measured { samples_us, .. } => Some(((r.at - first) as f64, compare::times(samples_us)?.median_us)),
        _ => None,
    };
    records.iter().filter_map(point).collect()
}

pub(super) fn host(target: Target) -> BTreeMap<String, String> {
    let mut host = BTreeMap::new();
    let mut put = |name: &str, value: String| drop(host.insert(name.to_string(), value));
    let cpu = jitune::backend::cpu::describe(None);
    put("processor", format!("{} ({}), {} threads", cpu.name, cpu.arch, cpu.units));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    put("kernel", kernel.trim().to_string());
    if let Ok(compiler) = jitune::key::compiler(target) {
        put("compiler", compiler);
    }
    if let Ok(driver) = nvml_wrapper::Nvml::init().and_then(|n| n.sys_driver_version()) {
        put("driver", driver);
    }
    host
}

/// Says what comes in.
struct Teller {
    json: bool,
    live: Live,
    problems: usize,
    /// The problem that is measured, and how many an earlier run had measured.
    at: usize,
    before: usize,
    begun: Option<Instant>,
    bad: usize,
}

impl Teller {
    /// The place of the problem, and about how long the rest takes once one is done.
    fn place(&self) -> String {
        let done = self.at.saturating_sub(self.before + 1);
        let rest = (self.problems + 1).saturating_sub(self.at);
        let about = self.begun.filter(|_| done > 0).map(|t| t.elapsed() / done as u32 * rest as u32);
        format!("{}/{}{}", self.at, self.problems, about.map_or_else(String::new, |t| format!(", about {}", left(t))))
    }
}

impl compare::Observer for Teller {
    fn measuring(&mut self, problems: usize) {
        (self.before, self.begun) = (self.problems - problems, Some(Instant::now()));
    }

    fn doing(&mut self, what: &str) {
        if !self.json {
            self.live.message(&format!("{}  {what}", self.place()));
        }
    }

    fn line(&mut self, line: &Line) {
        if let Line::Row(row) = line
            && row.peer == compare::OURS
            // A problem without any way of ours has one row that names none.
            && matches!(row.way.as_str(), compare::TUNED | "")
        {
            self.bad += usize::from(!matches!(row.state, State::Ok | State::Cut));
        }
        if self.json {
            if let Ok(text) = line.text() {
                out!("{text}");
            }
            return;
        }
        match line {
            Line::Run(run) => {
                for p in &run.peers {
                    match (&p.here, &p.why) {
                        (false, why) => {
                            let fix = p.fix.as_ref().map_or(String::new(), |f| format!("; {f}"));
                            self.live.say(&format!(
                                "{}: not here: {}{fix}",
                                p.peer,
                                why.as_deref().unwrap_or("unknown")
                            ));
                        }
                        (true, _) => self.live.say(&format!("{} {}", p.peer, p.version.as_deref().unwrap_or_default())),
                    }
                }
            }
            Line::Problem(p) => {
                self.at += 1;
                self.live.say(&format!("[{}] {}", self.place(), p.problem));
            }
            Line::Row(row) => {
                let name = format!("{}/{}", row.peer, row.way);
                match (row.state, row.times()) {
                    (State::Ok, Some(t)) => {
                        let ratio = row.ratio.map_or(String::new(), |r| format!("  {r:.2}x"));
                        let part = if row.covers == "all" { String::new() } else { format!("  ({})", row.covers) };
                        let remark = row.why.as_ref().map_or(String::new(), |why| format!("  {why}"));
                        self.live
                            .say(&format!("    {name:<24} {:>10} us{ratio}{part}{remark}", table::us(t.median_us)));
                    }
                    (state, _) => {
                        self.live.say(&format!("    {name:<24} {state:?}: {}", row.why.as_deref().unwrap_or_default()))
                    }
                }
            }
            _ => {}
        }
    }
}
