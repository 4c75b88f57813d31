//! `jitune engine` (hidden): jitune's own engine, as `jitune bench` drives it.

use super::opened::ModelArgs;
use super::precision::{PrecisionArgs, Stored, stored};
use super::select::{Gpus, Store, Templates, Where};
use super::sign::Signer;
use super::tuned::Tuned;
use jitune::device::{DeviceId, Target};
use jitune::engine::{Engine as Inner, Event, Finish as Why, Options, Request, Sampling};
use jitune::model::Model;
use jitune::problem::Dtype;
use jitune::setting::Setting;
use jitune_peer::engine::{
    About, Batching, End, Engine, Finish, Load, Loaded, Logits, Stats, Submit, Teller, serve as serve_engine,
};
use jitune_peer::{Device, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments: where the kernels come from; all else is asked for.
#[derive(clap::Args)]
pub struct Args {
    /// Take the kernels from this bundle alone.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["db", "templates"])]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
}

/// Answers until its standard input ends.
pub(super) fn run(args: Args) -> ExitCode {
    serve_engine(Ours {
        args,
        device: None,
        options: BTreeMap::new(),
        loaded: None,
        engine: None,
        numbers: HashMap::new(),
    })
}

struct Ours {
    args: Args,
    device: Option<DeviceId>,
    /// Of `hello`: `tokens`, the most tokens of a step, `chunk`, the most of prompts beside decodes, `weights`, what they are on the device,
    /// `kv_dtype`, what the cache is, and `name`, for a twin.
    options: BTreeMap<String, String>,
    loaded: Option<Load>,
    engine: Option<Open>,
    /// The engine's numbers of requests, by those of who asks. They are as many as there were requests.
    numbers: HashMap<u64, u64>,
}

struct Open {
    inner: Inner,
    ends: Vec<i32>,
    /// What is to be said of its setting.
    note: Option<String>,
}

impl Ours {
    /// What the weights are stored as.
    fn weights(&self) -> Result<Stored, Refusal> {
        let asked = self.options.get("weights").map(|text| stored(text));
        asked.transpose().map(Option::unwrap_or_default).map_err(|why| Refusal::failed(format!("weights: {why}")))
    }

    /// What the cache is stored as.
    fn kv_dtype(&self) -> Result<Option<Dtype>, Refusal> {
        let asked = self.options.get("kv_dtype").map(|text| super::precision::kv_dtype(text));
        asked.transpose().map_err(|why| Refusal::failed(format!("kv_dtype: {why}")))
    }

    /// An engine for what was loaded; one that gives logits has no other use, and little room.
    fn open(&self, load: &Load, logits: bool) -> Result<Open, Refusal> {
        let Some(device) = self.device else { return Err(Refusal::failed("`hello` comes first")) };
        let Some(dtype) = Dtype::parse(&load.dtype).filter(|d| DTYPES.contains(&d.name())) else {
            return Err(Refusal::unsupported(format!("{} is none of {}", load.dtype, DTYPES.join(", "))));
        };
        let cuda = device.target() == Target::Cuda;
        let (gpus, threads) = match device {
            DeviceId::Cuda(ordinal) => (Gpus::These(vec![ordinal]), None),
            DeviceId::Cpu(threads) => (Gpus::All, Some(threads)),
        };
        let args = ModelArgs {
            model: load.folder.to_string_lossy().into_owned(),
            precision: PrecisionArgs { dtype: Some(dtype), weights: self.weights()?, kv_dtype: self.kv_dtype()? },
            bundle: self.args.bundle.clone(),
            signer: self.args.signer.clone(),
            device: Where { target: Some(device.target()), gpus, threads },
            store: self.args.store.clone(),
            templates: self.args.templates.clone(),
        };
        let opened = args.open().map_err(Refusal::failed)?;
        let mut options: Options = opened.options(load.context as i64);
        let tuned = match &load.workload {
            Some(asked) if !logits => Tuned::find(&opened, options.context, Some(asked)).map_err(Refusal::failed)?,
            _ => None,
        };
        let usual = Setting { sequences: load.sequences.max(1) as i64, ..Setting::usual(cuda) };
        let setting = tuned.as_ref().map_or(usual, |tuned| tuned.serving.setting);
        let given = |name: &str| match self.options.get(name) {
            Some(text) => text.parse().map(Some).map_err(|_| Refusal::failed(format!("{name}={text} is no number"))),
            None => Ok(None),
        };
        options.sequences = setting.sequences.min(usual.sequences);
        let (tokens, chunk) = (given("tokens")?, given("chunk")?);
        options.tokens = tokens.unwrap_or(setting.tokens);
        // A step that was given has no other bound than its own, unless one was given too.
        options.chunk = chunk.or(tokens.is_none().then_some(setting.chunk));
        (options.memory, options.prefix, options.waiting) = (load.memory, load.prefix, usize::MAX >> 1);
        if logits {
            (options.logits, options.sequences, options.tokens) = (true, 1, options.tokens.min(512));
        }
        let inner = opened.engine(options).map_err(Refusal::failed)?;
        let note = tuned.map(|tuned| tuned.says(tuned.serving.setting));
        Ok(Open { inner, note, ends: Model::ends(&args.path()).map_err(Refusal::failed)? })
    }

    /// The engine that answers requests.
    fn serving(&mut self) -> Result<&Open, Refusal> {
        if self.engine.as_ref().is_none_or(|open| open.inner.options().logits) {
            let Some(load) = self.loaded.clone() else { return Err(Refusal::failed("`load` comes first")) };
            self.engine = None;
            self.engine = Some(self.open(&load, false)?);
        }
        self.engine.as_ref().ok_or_else(|| Refusal::failed("`load` comes first"))
    }
}

/// The precisions of whole models.
const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

impl Engine for Ours {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let (id, target) = match device {
            Device::Cuda(ordinal) => (DeviceId::Cuda(ordinal), Target::Cuda),
            Device::Cpu(threads) => (DeviceId::Cpu(threads), Target::Cpu),
        };
        let gpus = Gpus::These(if let Device::Cuda(ordinal) = device { vec![ordinal] } else { vec![0] });
        let threads = if let Device::Cpu(threads) = device { Some(threads) } else { None };
        let described = Where { target: Some(target), gpus, threads }.describe().map_err(Refusal::failed)?;
        self.device = Some(id);
        self.options.clone_from(options);
        Ok(About {
            engine: options.get("name").cloned().unwrap_or_else(|| "jitune".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            device: described.name,
            libraries: BTreeMap::new(),
            dtypes: DTYPES.map(String::from).to_vec(),
        })
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        self.engine = None;
        self.loaded = Some(load.clone());
        let open = self.serving()?;
        let (stats, options) = (open.inner.stats(), open.inner.options());
        let mut notes = match stats.portable {
            0 => Vec::new(),
            n => vec![format!("{n} of {} kernels are untuned; `jitune tune --model` finds better ones", stats.kernels)],
        };
        notes.extend(open.note.clone());
        Ok(Loaded {
            batching: Batching::Continuous,
            sequences: options.sequences as usize,
            memory_bytes: Some(open.inner.plan().bytes()),
            vocab: open.inner.vocab().unsigned_abs(),
            notes,
        })
    }

    fn submit(&mut self, id: u64, request: Submit, teller: &Teller) -> Result<(), Refusal> {
        let open = self.serving()?;
        let request = taken(&request, &open.ends);
        let teller = teller.clone();
        let submitted = open.inner.submit_to(request, move |event| match event {
            Event::Token(token) => teller.tokens(id, vec![token.id.unsigned_abs()]),
            Event::Logits(_) => true,
            Event::End(end) => teller.end(id, ended(end)),
        });
        let number = submitted.map_err(Refusal::failed)?;
        self.numbers.insert(id, number);
        Ok(())
    }

    fn cancel(&mut self, id: u64, _: &Teller) {
        if let (Some(open), Some(number)) = (&self.engine, self.numbers.get(&id)) {
            open.inner.cancel(*number);
        }
    }

    fn logits(&mut self, prompt: &[u32], file: &Path) -> Result<Logits, Refusal> {
        let Some(load) = self.loaded.clone() else { return Err(Refusal::failed("`load` comes first")) };
        if self.engine.as_ref().is_none_or(|open| !open.inner.options().logits) {
            self.engine = None;
            self.engine = Some(self.open(&load, true)?);
        }
        let Some(open) = &self.engine else { return Err(Refusal::failed("`load` comes first")) };
        let vocab = open.inner.vocab().unsigned_abs();
        let prompt: Vec<i32> = prompt.iter().map(|id| i32::try_from(*id).unwrap_or(-1)).collect();
        let request = Request { prompt, most: 1, logits: true, ..Request::default() };
        let io = |e: std::io::Error| Refusal::failed(format!("{}: {e}", file.display()));
        let (mut to, mut written) = (BufWriter::new(File::create(file).map_err(io)?), 0);
        for event in open.inner.submit(request).map_err(Refusal::failed)? {
            match event {
                Event::Logits(rows) => {
                    written += rows.len() as u64;
                    rows.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())).map_err(io)?;
                }
                Event::End(end) if end.why != Why::Length => {
                    return Err(Refusal::failed(format!("the prompt ended: {:?}", end.why)));
                }
                Event::Token(_) | Event::End(_) => (),
            }
        }
        to.flush().map_err(io)?;
        Ok(Logits { rows: written / vocab.max(1), vocab })
    }

    fn stats(&mut self) -> Stats {
        let Some(open) = &self.engine else { return Stats::default() };
        let stats = open.inner.stats();
        let count = |n: usize| Some(n as u64);
        Stats {
            memory_bytes: Some(open.inner.plan().bytes()),
            peak_bytes: Some(open.inner.plan().bytes()),
            waiting: count(stats.waiting),
            running: count(stats.running),
            pages: count(stats.pages),
            used_pages: count(stats.used),
            page_tokens: Some(open.inner.options().page.unsigned_abs()),
            steps: Some(stats.steps),
            prompt_tokens: Some(stats.prompt_tokens),
            cached_tokens: Some(stats.cached_tokens),
            answer_tokens: Some(stats.answer_tokens),
            live_tokens: count(stats.live),
            preempted: Some(stats.preempted),
            host_s: Some(stats.host.as_secs_f64()),
            launches: Some(stats.launches),
            to_device_bytes: Some(stats.told),
            to_host_bytes: Some(stats.heard),
            steps_bound: Some(stats.bound),
            steps_bound_ms: Some(stats.binding.as_secs_f64() * 1e3),
            steps_bound_late: Some(stats.bound_late),
            steps_bound_late_ms: Some(stats.binding_late.as_secs_f64() * 1e3),
        }
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        // What prompts left in the cache goes with the engine; one that gave logits is of no use for requests.
        if self.engine.as_ref().is_some_and(|open| open.inner.options().prefix) {
            self.engine = None;
        }
        self.serving().map(|_| ())
    }
}

/// A request of the protocol as the engine takes it; `ends` are the tokens that end answers.
pub(super) fn taken(request: &Submit, ends: &[i32]) -> Request {
    let prompt = request.prompt.iter().map(|id| i32::try_from(*id).unwrap_or(-1)).collect();
    let ends = if request.ignore_eos { Vec::new() } else { ends.to_vec() };
    let sampling = Sampling {
        temperature: request.sampling.temperature,
        top_p: request.sampling.top_p,
        top_k: i32::try_from(request.sampling.top_k).unwrap_or(0),
        seed: request.sampling.seed,
        ..Sampling::GREEDY
    };
    Request { prompt, most: request.most, ends, sampling, logits: false }
}

/// The end of an answer as the protocol tells it.
pub(super) fn ended(end: jitune::engine::End) -> End {
    let (why, error) = match end.why {
        Why::Stop => (Finish::Stop, None),
        Why::Length => (Finish::Length, None),
        Why::Cancelled => (Finish::Cancelled, None),
        Why::Failed(why) => (Finish::Failed, Some(why)),
    };
    End { why, error, cached: Some(end.cached as u64) }
}
