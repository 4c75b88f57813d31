//! A model's weights and the kernels for it: what `run`, `serve` and `step` begin with.

use super::error::not_usable;
use super::precision::{PrecisionArgs, Stored, dtype_of, with_cache};
use super::progress::{Live, Progress};
use super::select::{Store, Templates, Where, Which, say};
use super::sign::Signer;
use super::{CliError, export};
use jitune::bundle::Bundle;
use jitune::device::{DeviceId, Target};
use jitune::engine::{Engine, EngineError, Options};
use jitune::model::{Buckets, Model, Plan, Precision};
use jitune::problem::Problem;
use jitune::runtime::{Runtime, RuntimeError};
use jitune::weights::Weights;
use jitune::{export as sealing, tune};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The least context that is worth serving.
const LEAST_CONTEXT: i64 = 256;

/// Which model, on what.
#[derive(clap::Args)]
pub(super) struct ModelArgs {
    /// A folder as Hugging Face has it (config.json and safetensors), a repository in its local cache (ORG/NAME), or a GGUF
    /// file.
    #[arg(long, value_name = "FOLDER|ORG/NAME|FILE.gguf")]
    pub model: String,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Take the kernels from this bundle alone; neither a database nor a compiler is needed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["db", "templates"])]
    pub bundle: Option<PathBuf>,
    #[command(flatten)]
    pub signer: Signer,
    #[command(flatten)]
    pub device: Where,
    #[command(flatten)]
    pub store: Store,
    #[command(flatten)]
    pub templates: Templates,
}

/// A model whose files were read.
pub(super) struct Opened<'a> {
    pub args: &'a ModelArgs,
    pub model: Model,
    pub weights: Weights,
    pub target: Target,
    /// What it runs in.
    pub precision: Precision,
}

impl ModelArgs {
    /// The model that is to be tuned as a whole, on the database's kernels.
    pub fn of(which: &Which, device: &Where, store: &Store, templates: &Templates) -> Result<ModelArgs, CliError> {
        let Some(model) = which.model.clone() else { return Err(CliError::Usage("it needs --model".into())) };
        Ok(ModelArgs {
            model,
            precision: which.buckets.precision.clone(),
            bundle: None,
            signer: Signer::default(),
            device: device.clone(),
            store: store.clone(),
            templates: templates.clone(),
        })
    }

    /// The options by which `jitune tune` finds kernels for what these say.
    pub fn tuned_by(&self) -> String {
        let asked = &self.precision;
        let dtype = asked.dtype.map_or_else(String::new, |dtype| format!(" --dtype {dtype}"));
        let weights =
            if asked.weights == Stored::AsTheyAre { String::new() } else { format!(" --weights {}", asked.weights) };
        let cache = asked.kv_dtype.map_or_else(String::new, |dtype| format!(" --kv-dtype {dtype}"));
        format!("--model {}{dtype}{weights}{cache}", self.model)
    }

    /// Says how many of the kernels that an engine has bound nobody tuned, and what finds better ones.
    pub fn say_portable(&self, engine: &Engine) {
        if let Some(note) = self.portable(engine) {
            err!("jitune: note: {note}");
        }
    }

    /// What it says, where nobody tuned some.
    pub fn portable(&self, engine: &Engine) -> Option<String> {
        let (stats, tuned_by) = (engine.stats(), self.tuned_by());
        let (portable, kernels) = (stats.portable, stats.kernels);
        let (from, batch) = match stats.portable_from {
            _ if portable == 0 => return None,
            Some(from) if from > 1 => (
                format!(", some of them in each decode of {from} sequences or more, which can take many times as long"),
                format!(" --batch {}", engine.options().sequences),
            ),
            _ => Default::default(),
        };
        Some(format!(
            "{portable} of {kernels} kernels are portable ones{from}; `jitune tune {tuned_by}{batch}` finds better"
        ))
    }

    /// The folder or file.
    pub fn path(&self) -> PathBuf {
        Model::place(&self.model)
    }

    /// Reads what the model is, and finds its weights.
    pub fn open(&self) -> Result<Opened<'_>, CliError> {
        let target = self.device.target()?;
        let asked = &self.precision;
        let dtype = dtype_of(asked.dtype, target)?;
        if Model::preset(&self.model).is_some() {
            let text = format!("{} is a preset, and has no weights; write ./{0} to mean a folder", self.model);
            return Err(CliError::Usage(text));
        }
        let (model, mut notes) = Model::load(&self.model)?;
        let (weights, more) = Weights::open(&self.path(), &model).map_err(not_usable)?;
        notes.extend(more);
        let (precision, more) = asked.weights.precision(dtype, target, || Ok(weights.precision(dtype, target)))?;
        notes.extend(more);
        let precision = with_cache(precision, asked.kv_dtype, target)?;
        // What is rounded, tokens and cache too, is said wherever something is.
        let stored = precision.to_string();
        if stored != dtype.to_string() {
            notes.push(format!("its tensors are in {stored}"));
        }
        say(&notes);
        Ok(Opened { args: self, model, weights, target, precision })
    }
}

impl Opened<'_> {
    /// Options for sequences of so many tokens, one at a time.
    pub fn options(&self, context: i64) -> Options {
        if context > self.model.max_position_embeddings {
            let most = self.model.max_position_embeddings;
            err!("jitune: note: {context} tokens are more than the {most} that the model was made for");
        }
        let mut options = Options::new(&self.precision, context);
        options.page = Buckets::of(self.target).page;
        options
    }

    /// The kernels on the device.
    pub fn runtime(&self, options: &Options) -> Result<Runtime, CliError> {
        self.on(&self.bundle(options)?)
    }

    /// The kernels of a bundle on the device.
    pub fn on(&self, bundle: &Bundle<'_>) -> Result<Runtime, CliError> {
        let loaded = match self.args.device.first()? {
            DeviceId::Cuda(ordinal) => Runtime::cuda(bundle, ordinal),
            DeviceId::Cpu(threads) => Runtime::cpu(bundle, (threads > 0).then_some(threads)),
        };
        loaded.map_err(|e| failed(e.into()))
    }

    /// The kernels: the bundle that was named, or the database's winners, portable ones among them, and what steps run in their places.
    pub fn bundle(&self, options: &Options) -> Result<Bundle<'static>, CliError> {
        self.kernels(options, true)
    }

    /// The same by what each kernel takes alone.
    pub fn alone(&self, options: &Options) -> Result<Bundle<'static>, CliError> {
        self.kernels(options, false)
    }

    fn kernels(&self, options: &Options, in_steps: bool) -> Result<Bundle<'static>, CliError> {
        // Before anything is compiled.
        options.check(&self.model).map_err(failed)?;
        if let Some(file) = &self.args.bundle {
            return self.args.signer.open(file);
        }
        // What is one token longer has that token as the last of an answer, which no kernel reads.
        let context = self.model.sliding_window.map_or(options.context, |window| options.context.min(window));
        let page = options.page;
        let buckets = Buckets { batch: vec![1], prefill: vec![context], chunk: Vec::new(), context, page };
        self.args.stored(&Plan::new(&self.model, &buckets, &self.precision)?.portable(), in_steps)
    }

    /// The engine, with its memory planned and its weights loaded.
    pub fn engine(&self, options: Options) -> Result<Engine, CliError> {
        self.try_engine(options)?.map_err(failed)
    }

    /// The engine with the context that was asked for, or else with the longest one up to the model's own that there is memory for. `of` gives
    /// the options of a context, and `open` opens an engine with them.
    pub fn longest(
        &self,
        asked: Option<i64>,
        of: impl Fn(i64) -> Options,
        open: impl Fn(Options) -> Result<Result<Engine, EngineError>, CliError>,
    ) -> Result<Engine, CliError> {
        let mut context = asked.unwrap_or(self.model.max_position_embeddings);
        loop {
            let options = of(context);
            let page = options.page;
            match open(options)? {
                Err(EngineError::Memory { needed, most, plan }) if asked.is_none() && context > LEAST_CONTEXT => {
                    // A page less for each that there is no room for; what else there is shrinks with it.
                    let each = (plan.cache / plan.pages.max(1).unsigned_abs()).max(1);
                    let over = i64::try_from((needed - most.min(needed)).div_ceil(each)).unwrap_or(i64::MAX).max(1);
                    let pages = (context - 1) / page + 1;
                    context = (pages.saturating_sub(over).saturating_mul(page)).max(LEAST_CONTEXT).min(context - 1);
                }
                other => return other.map_err(failed),
            }
        }
    }

    /// As [`Opened::engine`], with what it says where it cannot run.
    pub fn try_engine(&self, options: Options) -> Result<Result<Engine, EngineError>, CliError> {
        let begun = Instant::now();
        let (runtime, mut line) = (self.runtime(&options)?, Loading::default());
        let engine = Engine::open(runtime, &self.model, &self.weights, options, |there, all| line.show(there, all));
        drop(line);
        if let Ok(engine) = &engine {
            let (stats, there) = (engine.stats(), begun.elapsed().as_secs_f64());
            let bound = match stats.bound {
                0 => String::new(),
                all => format!(", with {all} steps bound in {:.0} ms", stats.binding.as_secs_f64() * 1e3),
            };
            err!("memory: {}; there after {there:.2} s{bound}", engine.plan());
        }
        Ok(engine)
    }
}

/// How far weights are on their way to the device.
#[derive(Default)]
pub(super) struct Loading(Option<Live>);

impl Loading {
    pub fn show(&mut self, there: u64, all: u64) {
        let new =
            || Live::new("{elapsed_precise} [{bar:24}] {bytes}/{total_bytes}  {binary_bytes_per_sec}, {eta} left");
        let line = self.0.get_or_insert_with(new);
        line.set_length(all);
        line.set_position(there);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.finish_and_clear();
        }
    }
}

impl ModelArgs {
    /// The database's winners for the device at hand, those of these portable problems among them.
    fn stored(&self, probes: &[Problem], in_steps: bool) -> Result<Bundle<'static>, CliError> {
        let id = self.device.first()?;
        let arch = self.device.describe()?.arch;
        let library = self.templates.library()?;
        let seal = |db: &jitune_db::Db| {
            let filter = |w: &jitune::winner::Winner| w.device.arch == arch;
            let options =
                sealing::Options { filter: &filter, verifiable: false, in_steps, ..sealing::Options::default() };
            sealing::seal(db, &library, options).map_err(|e| export::failed(Path::new("the winners"), e))
        };
        let has_all = |bundle: &Bundle<'_>| probes.iter().all(|p| bundle.winners().any(|w| w.problem() == *p));
        // To read is enough where all is there, and works beside a tuner.
        if let Ok(db) = self.store.read() {
            let found = seal(&db)?.bundle;
            if has_all(&found) {
                return Ok(found);
            }
        }
        jitune::key::compiler(id.target())?;
        let db = self.store.open()?;
        let budget = tune::default_budget(id.target());
        let options =
            tune::Options { devices: vec![id], budget: Some(budget), nominal: true, ..tune::Options::default() };
        let (stop, progress) = (super::tune::on_signals()?, Progress::new(false, budget));
        let report = tune::run(&db, &library, probes, &options, &progress, &stop);
        progress.finish();
        if report?.interrupted {
            return Err(CliError::Interrupted);
        }
        let found = seal(&db)?.bundle;
        db.close()?;
        Ok(found)
    }
}

/// What to say of an engine that cannot run, or refuses.
pub(super) fn failed(e: EngineError) -> CliError {
    match e {
        EngineError::Model(e) => CliError::Model(e),
        EngineError::Weights(e) => not_usable(e),
        EngineError::Backend(e) | EngineError::Runtime(RuntimeError::Target(e)) => CliError::Target(e),
        EngineError::Request(why) | EngineError::Options(why) => CliError::Usage(why),
        EngineError::Refused(why) => CliError::Usage(why.to_string()),
        // What was given does not go together: too little memory, a bundle without the kernels.
        e @ (EngineError::Memory { .. }
        | EngineError::Runtime(RuntimeError::Untuned { .. } | RuntimeError::NoArch { .. })) => {
            CliError::Usage(e.to_string())
        }
        other => CliError::Partly(other.to_string()),
    }
}
