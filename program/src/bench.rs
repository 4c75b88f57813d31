//! `jitune bench`: whole engines head to head on workloads, as their clients see them.

use super::CliError;
use super::compare::{host, on, scratch, settings};
use super::engine_report;
use super::precision::dtype;
use super::progress::{Live, left};
use super::select::{Store, Templates, Where, bytes};
use clap::builder::NonEmptyStringValueParser;
use jitune::device::Target;
use jitune::engines::http::Words;
use jitune::engines::known::{KNOWN, Known, Places};
use jitune::engines::link::Via;
use jitune::engines::rows::{Cell, Line, Run, State};
use jitune::engines::run::{self as running, Entry, RunError, Setup};
use jitune::engines::workload::Workload;
use jitune::model::Model;
use jitune::problem::Dtype;
use jitune::tokenizer::Tokenizer;
use jitune::tune;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune bench --model ./my-model --workload sustained,chat,documents,code\n  \
    jitune bench --model ./my-model --engines jitune,jitune,candle --quick\n  \
    jitune bench --model ./my-model --workload batch-1,batch-32 --engines jitune,vllm --set vllm.max_num_seqs=32\n\n\
    Every engine gets the same weights and the same token ids, and its logits are checked before it is measured. Rows are \
    stored as they are measured; --resume goes on with a run that was cut off, or adds engines and workloads to one on the \
    same device. Exit code 1 when jitune's own cells are wrong or missing, 130 after Ctrl-C.")]
pub struct Args {
    /// A folder as Hugging Face has it (config.json and safetensors), a repository in its local cache (ORG/NAME), or a GGUF
    /// file.
    #[arg(long, value_name = "FOLDER|ORG/NAME|FILE.gguf")]
    model: String,
    /// The same model as another file for one engine, such as lmrs=model.lmrs; may be given several times. llama.cpp, which reads no
    /// folders, gets a GGUF file that is written beside the rows.
    #[arg(long, value_name = "ENGINE=FILE", value_parser = file)]
    file: Vec<(String, PathBuf)>,
    /// Workloads: sustained-1024, sustained-128, chat, documents, code, batch-N; `sustained` is both of its kind. Each may have
    /// settings, as in chat:rate=4,answer=64; docs/engines.md names them.
    #[arg(
        long,
        value_name = "NAME,…",
        default_value = "batch-1,batch-4,batch-16,batch-32,sustained,chat,documents,code"
    )]
    workload: String,
    /// Engines: jitune, candle, burn, transformers, transformers-serve, llama-cpp, vllm, or programs jitune-engine-NAME; one that stands twice shows the
    /// noise. By default jitune twice, and all that the device could run.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", value_parser = NonEmptyStringValueParser::new())]
    engines: Option<Vec<String>>,
    /// A server that speaks OpenAI's HTTP API and is there already; may be given several times.
    #[arg(long, value_name = "LABEL=URL")]
    server: Vec<String>,
    /// A server to start by a command, in which {model}, {port}, {dtype}, {context} and {sequences} are filled in; may be given
    /// several times.
    #[arg(long, value_name = "LABEL=COMMAND")]
    start: Vec<String>,
    /// Drive all engines through their own HTTP servers, those that have one.
    #[arg(long)]
    http: bool,
    /// Precisions: bf16 on a GPU and f32 on a CPU by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", value_parser = NonEmptyStringValueParser::new())]
    dtypes: Option<Vec<String>>,
    /// Scaled down: what all engines do on two cores in ten minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds; each engine is started once a round, and every other round goes the other way.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Most seconds of a workload, of all engines or of one.
    #[arg(long, value_name = "[ENGINE=]SECONDS", value_parser = seconds)]
    seconds: Vec<(Option<String>, f64)>,
    /// A setting of an engine, such as transformers.mode=dynamic; may be given several times.
    #[arg(long, value_name = "ENGINE.KEY=VALUE")]
    set: Vec<String>,
    /// The engine whose logits in f32 the others are checked against; by default transformers where it is here, and jitune on
    /// the CPU elsewhere.
    #[arg(long, value_name = "NAME", conflicts_with = "no_check")]
    reference: Option<String>,
    /// Check no logits; the report says so.
    #[arg(long)]
    no_check: bool,
    /// Dollars an hour, for the cost of tokens.
    #[arg(long, value_name = "gpu=X,cpu=Y", value_delimiter = ',', value_parser = price)]
    price: Vec<(String, f64)>,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Take jitune's kernels from this bundle alone.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["db", "templates"])]
    bundle: Option<PathBuf>,
    /// The Python that runs transformers and vLLM.
    #[arg(long, default_value = PYTHON)]
    python: String,
    /// Another folder with engines' programs.
    #[arg(long, value_name = "FOLDER")]
    peer_dir: Option<PathBuf>,
    /// Most bytes on the device for engines that take a limit, such as 40G.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    #[command(flatten)]
    beside: engine_report::Beside,
    /// Write each cell beside the reports also as another tool writes its results.
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    export: Option<engine_report::Format>,
    /// Go on with the run in the output folder.
    #[arg(long)]
    resume: bool,
    /// The folder for engines.jsonl and the reports.
    #[arg(short, long, default_value = "jitune-bench", value_name = "FOLDER")]
    output: PathBuf,
    /// Print the rows as JSON lines, but for those of single requests.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<(Option<String>, f64), String> {
    let (engine, number) = text.rsplit_once('=').map_or((None, text), |(e, n)| (Some(e.to_string()), n));
    match number.parse::<f64>() {
        Ok(n) if (0.1..=86400.0).contains(&n) => Ok((engine, n)),
        _ => Err("it is a number of seconds, or ENGINE=SECONDS".into()),
    }
}

fn file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((engine, file)) if !engine.is_empty() && !file.is_empty() => Ok((engine.into(), file.into())),
        _ => Err("it is ENGINE=FILE".into()),
    }
}

fn price(text: &str) -> Result<(String, f64), String> {
    let (what, number) = text.split_once('=').unwrap_or((text, ""));
    let number = number.trim_end_matches("/h").trim_start_matches('$');
    match number.parse::<f64>() {
        Ok(n) if matches!(what, "gpu" | "cpu") && (0.0..1e6).contains(&n) => Ok((what.into(), n)),
        _ => Err("it is gpu=DOLLARS or cpu=DOLLARS, of an hour".into()),
    }
}

/// The Python of a machine.
const PYTHON: &str = "python3";
/// The rows' file.
const ROWS: &str = "engines.jsonl";

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    for output in [&args.output, &args.output.join(ROWS)] {
        args.store.keeps_out(output)?;
    }
    let target = args.device.target()?;
    let device = args.device.describe()?;
    let (model, _) = Model::load(&args.model)?;
    python(&args.python)?;
    let io = |path: &Path, source| CliError::Io { path: path.into(), source };
    std::fs::create_dir_all(&args.output).map_err(|e| io(&args.output, e))?;
    let scratch = scratch()?;
    let exe = std::env::current_exe().map_err(|e| io(Path::new("jitune"), e))?;
    let stop = super::tune::on_signals()?;
    let rows = args.output.join(ROWS);
    let earlier = if args.resume && rows.exists() { Some(engine_report::read(&rows)?) } else { None };
    if let Some(Run { device: before, model: name, parameters, .. }) = earlier.as_ref().map(|runs| &runs.run) {
        let other = match () {
            _ if before.as_ref().is_some_and(|before| before.silicon != device.silicon) => "on another device",
            _ if (name, *parameters) != (&args.model, model.parameters()) => "of another model",
            _ => "",
        };
        if !other.is_empty() {
            return Err(CliError::Usage(format!("--resume: {} was measured {other}", rows.display())));
        }
    }
    let on = on(args.device.first()?, &device);
    let mut places = Places {
        exe,
        ours: ours(args),
        folder: args.peer_dir.clone(),
        python: args.python.clone(),
        scratch: scratch.path().into(),
        vocab: model.vocab.unsigned_abs(),
        words: None,
    };
    let entries = entries(args, target, &places)?;
    precisions(args, &entries)?;
    let path = Model::place(&args.model);
    if entries.iter().any(|e| e.via != Via::Process) {
        places.words = words(&path, places.vocab);
    }
    let context = usize::try_from(model.max_position_embeddings).unwrap_or(usize::MAX);
    let workloads = workloads(args, context)?;
    // As they are measured here: a datasheet's would make shares of nothing.
    let problem = "matmul m=1 n=2048 k=2048".parse()?;
    let device =
        tune::ceilings(&places.exe, args.device.first()?, &args.templates.library()?, &problem, scratch.path())?;
    let mut setup = Setup {
        other: BTreeMap::new(),
        model: path.canonicalize().unwrap_or_else(|_| path.clone()),
        dtypes: args.dtypes.clone().unwrap_or_else(|| vec![if target == Target::Cuda { "bf16" } else { "f32" }.into()]),
        rounds: args.rounds,
        on,
        device: device.clone(),
        memory: args.memory,
        reference: None,
        parameters: model.parameters(),
        weight_bytes: weight_bytes(&model),
        token_bytes: token_bytes(&model),
        tokenization: super::tokenization::lines(&path, &args.python, scratch.path()),
        earlier: earlier.map_or_else(Vec::new, |runs| runs.lines()),
        entries,
        workloads,
        places,
    };
    setup.other = files(args, &setup, &model)?;
    setup.reference = reference(args, &setup)?;
    let run = Run {
        at: jitune_db::now(),
        jitune: env!("CARGO_PKG_VERSION").into(),
        command: super::command_line(),
        model: args.model.clone(),
        parameters: model.parameters(),
        weight_bytes: setup.weight_bytes.clone(),
        token_bytes: setup.token_bytes,
        host: host(target),
        threads: if let jitune_peer::Device::Cpu(threads) = on { threads } else { 0 },
        device: Some(device),
        rounds: args.rounds,
        quick: args.quick,
        engines: setup.entries.iter().map(|e| e.label.clone()).collect(),
        workloads: setup.workloads.clone(),
        dtypes: setup.dtypes.clone(),
        prices: args.price.iter().cloned().collect(),
    };
    let mut teller = Teller {
        json: args.json,
        live: Live::new("{elapsed_precise}  {wide_msg}"),
        begun: Instant::now(),
        first: None,
        bad: 0,
    };
    if !args.resume {
        super::rows::set_aside(&rows)?;
    }
    let ran = running::run(&setup, run, &rows, &mut teller, &stop);
    teller.live.finish_and_clear();
    ran.map_err(|e| match e {
        RunError::Io { path, source } => CliError::Io { path, source },
        other => CliError::Partly(other.to_string()),
    })?;
    engine_report::write(&rows, &args.output, &args.beside, args.json)?;
    if let Some(format) = args.export {
        engine_report::export(&rows, format, &args.output)?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err(CliError::Cut);
    }
    match teller.bad {
        0 => Ok(()),
        n => Err(CliError::Partly(format!("{n} of jitune's own cells are wrong or missing"))),
    }
}

/// What `jitune engine` is told: where its kernels are.
fn ours(args: &Args) -> Vec<String> {
    let text = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into()).to_string_lossy().into_owned();
    let mut list = Vec::new();
    if let Some(bundle) = &args.bundle {
        list.extend(["--bundle".into(), text(bundle)]);
    }
    if let Some(db) = &args.store.db {
        list.extend(["--db".into(), text(db)]);
    }
    for folder in &args.templates.templates {
        list.extend(["--templates".into(), text(folder)]);
    }
    list
}

/// What prompts are made of for servers that take text alone.
fn words(model: &Path, vocab: u64) -> Option<Arc<Words>> {
    let tokenizer = Tokenizer::open(model).ok()?;
    let encode = |text: &str| {
        let ids = tokenizer.encode(text, true).ok()?;
        Some(ids.into_iter().map(i32::unsigned_abs).collect())
    };
    Words::find(vocab, |id| tokenizer.token(i32::try_from(id).ok()?).ok(), encode).map(Arc::new)
}

/// The engines as they were entered; one that comes again has a number behind its name.
fn entries(args: &Args, target: Target, places: &Places) -> Result<Vec<Entry>, CliError> {
    let settings = settings(&args.set)?;
    let all = || {
        let runs = |known: &&Known| known.targets.contains(&target) && (args.http || !known.served_alone());
        let known = KNOWN.iter().filter(runs).map(|known| known.name.to_string());
        ["jitune".to_string()].into_iter().chain(known).collect()
    };
    let named = |list: &[String], option: &str, via: fn(String) -> Via| {
        let one = |text: &String| match text.split_once('=') {
            Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name.to_string(), via(rest.to_string()))),
            _ => Err(CliError::Usage(format!("{option} {text}: it is written LABEL=…"))),
        };
        list.iter().map(one).collect::<Result<Vec<_>, _>>()
    };
    let mut names: Vec<(String, Via)> = Vec::new();
    for name in args.engines.clone().unwrap_or_else(all) {
        let http = args.http || Known::named(&name).is_some_and(Known::served_alone);
        let via = match (http, places.server(&name)) {
            (true, Some(line)) => Via::Command(line),
            (true, None) if args.engines.is_none() => continue,
            (true, None) => return Err(CliError::Usage(format!("--http: {name} has no server of its own"))),
            (false, _) => Via::Process,
        };
        names.push((name, via));
    }
    names.extend(named(&args.server, "--server", Via::Url)?);
    names.extend(named(&args.start, "--start", Via::Command)?);
    let mut list: Vec<Entry> = Vec::new();
    for (name, via) in names {
        let before = list.iter().filter(|e| e.name == name).count();
        let label = if before == 0 { name.clone() } else { format!("{name}#{}", before + 1) };
        let of = |key: &String| *key == name || *key == label;
        let limit = args.seconds.iter().rev().find(|(engine, _)| engine.as_ref().is_none_or(of));
        let options = settings.get(&label).or_else(|| settings.get(&name)).cloned().unwrap_or_default();
        list.push(Entry { label, via, options, seconds: limit.map(|(_, s)| *s), name });
    }
    // What one of several lacks, its rows say.
    let lacks = |e: &Entry| if e.via == Via::Process { places.command(&e.name).err() } else { None };
    if let Some(lacking) = list.iter().map(lacks).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty()) {
        let said: Vec<String> = lacking.into_iter().map(|refusal| refusal.why).collect();
        return Err(CliError::Usage(format!("--engines: none of these is here: {}", said.join("; "))));
    }
    match settings.keys().find(|key| list.iter().all(|e| e.name != **key && e.label != **key)) {
        Some(key) => Err(CliError::Usage(format!("--set {key}.…: no engine {key} was entered"))),
        None => Ok(list),
    }
}

/// Refuses a Python that does not run, unless it is the one that nobody asked for.
fn python(name: &str) -> Result<(), CliError> {
    if name == PYTHON {
        return Ok(());
    }
    let mut command = Command::new(name);
    let ran = command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match ran {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CliError::Usage(format!("--python {name}: `{name} --version` ended with {status}"))),
        Err(e) => Err(CliError::Usage(format!("--python {name}: {e}"))),
    }
}

/// Refuses precisions that no engine knows; what a program of somebody's own knows is its own affair.
fn precisions(args: &Args, entries: &[Entry]) -> Result<(), CliError> {
    let own = |e: &Entry| e.name != "jitune" && Known::named(&e.name).is_none();
    // ggml's types are as many as its files have.
    let ggml = |name: &str| {
        let rest = name.strip_prefix('i').unwrap_or(name).strip_prefix('q');
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let known = |name: &String| ["f32", "f16", "bf16", "fp8", "int8", "int4"].contains(&name.as_str()) || ggml(name);
    match args.dtypes.iter().flatten().find(|name| !known(name)) {
        Some(name) if !entries.iter().any(own) => Err(CliError::Usage(format!(
            "--dtypes {name}: no engine knows it; all know f32 and bf16, and some f16, fp8, int8, int4 or a type of ggml such as q8_0"
        ))),
        _ => Ok(()),
    }
}

/// The workloads; `sustained` is both of its kind, and what follows a name with settings and has none of its own is another setting.
fn workloads(args: &Args, context: usize) -> Result<Vec<Workload>, CliError> {
    let mut texts: Vec<String> = Vec::new();
    for part in args.workload.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match texts.last_mut() {
            Some(last) if last.contains(':') && part.contains('=') && !part.contains(':') => {
                *last += &format!(",{part}")
            }
            _ if part == "sustained" => texts.extend(["sustained-1024".into(), "sustained-128".into()]),
            _ => texts.push(part.into()),
        }
    }
    let parse = |text: &String| Workload::parse(text, args.quick, context);
    let list = texts.iter().map(parse).collect::<Result<Vec<_>, _>>();
    let list = list.map_err(|e| CliError::Usage(format!("--workload: {e}")))?;
    match list.iter().enumerate().find(|(i, w)| list[..*i].iter().any(|b| b.name == w.name)) {
        Some((_, twice)) => Err(CliError::Usage(format!("--workload: {} stands twice in it", twice.name))),
        None => Ok(list),
    }
}

/// What engines load in place of the model's folder, by engine and precision.
fn files(args: &Args, setup: &Setup, model: &Model) -> Result<BTreeMap<(String, String), PathBuf>, CliError> {
    const READS_NO_FOLDERS: &str = "llama-cpp";
    let mut other = BTreeMap::new();
    for (engine, file) in &args.file {
        let file = file.canonicalize().map_err(|source| CliError::Io { path: file.clone(), source })?;
        for dtype in &setup.dtypes {
            other.insert((engine.clone(), dtype.clone()), file.clone());
        }
    }
    let entered = setup.entries.iter().any(|e| e.name == READS_NO_FOLDERS && e.via == Via::Process);
    if !entered || !setup.model.is_dir() || setup.places.command(READS_NO_FOLDERS).is_err() {
        return Ok(other);
    }
    for name in &setup.dtypes {
        let key = (READS_NO_FOLDERS.to_string(), name.clone());
        let dtype = dtype(name).ok().filter(|dtype| matches!(dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16));
        if let (None, Some(dtype)) = (other.get(&key), dtype) {
            let file = args.output.join(format!("model-{name}.gguf"));
            if !file.exists() {
                super::pack::gguf_of(&setup.model, model, dtype, &file)?;
            }
            other.insert(key, file.canonicalize().map_err(|source| CliError::Io { path: file, source })?);
        }
    }
    Ok(other)
}

/// Who says what is right: transformers where it is, and otherwise jitune on the processor, which is held to it by its tests.
fn reference(args: &Args, setup: &Setup) -> Result<Option<(Entry, jitune_peer::Device)>, CliError> {
    if args.no_check {
        return Ok(None);
    }
    let entry = |name: &str| Entry {
        label: name.into(),
        name: name.into(),
        via: Via::Process,
        options: [("mode".to_string(), "dynamic".to_string())].into_iter().filter(|_| name == "transformers").collect(),
        seconds: None,
    };
    let cpu = jitune_peer::Device::Cpu(std::thread::available_parallelism().map_or(1, |n| n.get()));
    Ok(Some(match &args.reference {
        Some(name) => (entry(name), setup.on),
        None if setup.entries.iter().any(|e| e.name == "transformers") && running::is_here(setup, "transformers") => {
            (entry("transformers"), setup.on)
        }
        None => (entry("jitune"), cpu),
    }))
}

/// Bytes that a decode step reads of the weights, by the precisions that are no block formats.
fn weight_bytes(model: &Model) -> BTreeMap<String, u64> {
    let embedding = (model.hidden * model.vocab).unsigned_abs();
    let read = model.parameters() - if model.tie_word_embeddings { 0 } else { embedding };
    [("f32", 4), ("bf16", 2), ("f16", 2)].into_iter().map(|(name, bytes)| (name.to_string(), read * bytes)).collect()
}

/// Bytes of keys and values of a token in 16 bits.
fn token_bytes(model: &Model) -> u64 {
    (4 * model.layers * model.kv_heads * model.head_dim).unsigned_abs()
}

/// Says what comes in.
struct Teller {
    json: bool,
    live: Live,
    begun: Instant,
    /// How many cells were there at the start.
    first: Option<usize>,
    bad: usize,
}

impl running::Observer for Teller {
    fn doing(&mut self, what: &str, done: usize, all: usize) {
        if self.json {
            return;
        }
        let first = *self.first.get_or_insert(done);
        let (new, rest) = (done - first.min(done), all.saturating_sub(done));
        let about = (new > 0).then(|| self.begun.elapsed() / new as u32 * rest as u32);
        let about = about.map_or_else(String::new, |time| format!(", about {}", left(time)));
        self.live.message(&format!("[{done}/{all}{about}]  {what}"));
    }

    fn line(&mut self, line: &Line) {
        if let Line::Cell(cell) = line
            && cell.of.engine == "jitune"
        {
            self.bad += usize::from(!matches!(cell.state, State::Ok | State::Cut));
        }
        if self.json {
            if !matches!(line, Line::Request(_) | Line::Trace(_))
                && let Ok(text) = serde_json::to_string(line)
            {
                out!("{text}");
            }
            return;
        }
        match line {
            Line::Start(start) => {
                let text = match (&start.why, start.start_s) {
                    (Some(why), _) => {
                        let fix =
                            start.fix.as_ref().filter(|f| !f.is_empty()).map_or(String::new(), |f| format!("; {f}"));
                        format!("{} {}: not here: {why}{fix}", start.engine, start.dtype)
                    }
                    (None, s) => format!(
                        "{} {} {}: ready after {:.1} s{}",
                        start.engine,
                        start.version,
                        start.dtype,
                        s.unwrap_or(0.0),
                        start.notes.iter().map(|n| format!("; {n}")).collect::<String>(),
                    ),
                };
                self.live.say(&text);
            }
            Line::Check(check) => self.live.say(&match (&check.kl, &check.why) {
                (Some(kl), None) => format!(
                    "{} {}: logits as {}'s in f32 (KL {kl:.1e}, the same most likely token at {:.1}%)",
                    check.engine,
                    check.dtype,
                    check.reference,
                    check.top1.unwrap_or(0.0) * 100.0
                ),
                (_, why) => {
                    format!(
                        "{} {}: {:?}: {}",
                        check.engine,
                        check.dtype,
                        check.state,
                        why.as_deref().unwrap_or_default()
                    )
                }
            }),
            Line::Tokenization(t) => self.live.say(&match (t.encode, t.decode) {
                (Some(encode), Some(decode)) => {
                    format!("tokenizer, {}: {encode:.0} tokens/s encoded, {decode:.0} decoded", t.by)
                }
                _ => format!("tokenizer, {}: not measured: {}", t.by, t.why.as_deref().unwrap_or_default()),
            }),
            Line::Cell(cell) => self.live.say(&cell_line(cell)),
            _ => (),
        }
    }
}

fn cell_line(cell: &Cell) -> String {
    let name = format!("    {:<16} {:<18}", cell.of.engine, cell.of.workload);
    let why = cell.why.as_ref().map_or(String::new(), |why| format!("  {why}"));
    match &cell.measured {
        Some(m) if m.completed > 0 => format!(
            "{name} {:>9.1} tokens/s  TTFT {:>8.1} ms  TPOT {:>7.2} ms  {} answers{}{why}",
            m.output_throughput,
            m.ttft_ms.median,
            m.tpot_ms.median,
            m.completed,
            if cell.state == State::Ok { String::new() } else { format!("  {:?}", cell.state) },
        ),
        _ => format!("{name} {:?}{why}", cell.state),
    }
}
