//! `jitune run`: a model's answer to a prompt.

use super::progress::{Live, Progress};
use super::select::{Store, Templates, Where, dtype, say};
use super::sign::Signer;
use super::weights::not_usable;
use super::{CliError, export, out, table};
use jitune::bundle::Bundle;
use jitune::device::{DeviceId, Target};
use jitune::engine::{Engine, EngineError, Generated, Options};
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::{Dtype, Problem, probes};
use jitune::runtime::{Runtime, RuntimeError};
use jitune::tokenizer::{Message, Stream, Tokenizer, TokenizerError};
use jitune::weights::Weights;
use jitune::{export as sealing, tune};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune run --model ./my-model --prompt 'Why is the sky blue?'\n  \
    jitune run --model ./my-model.gguf --raw --prompt 'Once upon a time' --max-tokens 200\n  \
    jitune run --model ./my-model --ids 1,5,7 --ignore-eos --json --logits logits.f32\n\n\
    Runs on the winners of the database, or of a bundle. What is not tuned runs on portable kernels, which are compiled\n\
    first where they are not there yet; `jitune tune --model` finds better ones.")]
pub struct Args {
    /// A folder as Hugging Face has it (config.json and safetensors), or a GGUF file.
    #[arg(long, value_name = "FOLDER|FILE.gguf")]
    model: String,
    /// The prompt: what a user says to the model, put into its chat template.
    #[arg(long, value_name = "TEXT", required_unless_present = "ids")]
    prompt: Option<String>,
    /// Take the prompt as it is, without the chat template; special tokens in it are read as such.
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// The prompt, as the ids of its tokens; no tokenizer is needed.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', conflicts_with = "prompt", allow_hyphen_values = true)]
    ids: Vec<i32>,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 takes the most likely token each time; nothing else is there yet.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Go on after the model's end tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// Write the logits of every token of the prompt to this file, row by row, as little-endian f32.
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// bf16, f16 or f32; bf16 on a GPU and f32 on a CPU by default.
    #[arg(long, value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Take the kernels from this bundle alone; neither a database nor a compiler is needed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["db", "templates"])]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if args.temperature != 0.0 {
        return Err(CliError::Usage("--temperature: only 0, the most likely token, is there yet".into()));
    }
    let target = args.device.target()?;
    let dtype = args.dtype.unwrap_or(if target == Target::Cuda { Dtype::Bf16 } else { Dtype::F32 });
    if Model::preset(&args.model).is_some() {
        let text = format!("{} is a preset, and has no weights; write ./{0} to mean a folder", args.model);
        return Err(CliError::Usage(text));
    }
    let path = Path::new(&args.model);
    let (model, mut notes) = Model::load(&args.model)?;
    let (weights, more) = Weights::open(path, &model).map_err(not_usable)?;
    notes.extend(more);
    say(&notes);
    let ends = if args.ignore_eos { Vec::new() } else { Model::ends(path)? };
    let (tokenizer, ids) = match &args.prompt {
        Some(text) => {
            let tokenizer = Tokenizer::open(path).map_err(unreadable)?;
            let ids = encoded(&tokenizer, text, args.raw).map_err(unreadable)?;
            (Some(tokenizer), ids)
        }
        None => (None, args.ids.clone()),
    };
    let context = ids.len() as i64 + i64::from(args.max_tokens);
    if context > model.max_position_embeddings {
        let most = model.max_position_embeddings;
        err!("jitune: note: {context} tokens are more than the {most} that the model was made for");
    }
    let options = Options { dtype, context, page: Buckets::of(target).page };
    let buckets = Buckets { batch: vec![1], prefill: vec![context], chunk: Vec::new(), context, page: options.page };
    let problems = Plan::new(&model, &buckets, dtype)?.problems();
    let runtime = match &args.bundle {
        Some(file) => load(&args.signer.open(file)?, args.device.first()?)?,
        None => stored(args, &problems)?,
    };

    let line = Live::new("{elapsed_precise} [{bar:24}] {bytes}/{total_bytes}  {binary_bytes_per_sec}, {eta} left");
    let engine = Engine::open(runtime, &model, &weights, options, |there, all| {
        line.set_length(all);
        line.set_position(there);
    });
    line.finish_and_clear();
    let mut engine = engine.map_err(failed)?;
    let mut stream = tokenizer.as_ref().map(Stream::new);
    let (mut text, mut wrong) = (String::new(), None);
    let mut heard = |id: i32| {
        let ended = ends.contains(&id);
        // What ends an answer is no part of it.
        let piece = match stream.as_mut().filter(|_| !ended).map(|stream| stream.push(id)) {
            Some(Ok(piece)) => piece,
            Some(Err(e)) => {
                wrong = Some(e);
                return true;
            }
            None => String::new(),
        };
        if !args.json {
            out::piece(&piece);
        }
        text += &piece;
        ended
    };
    let generated =
        engine.generate(&ids, args.max_tokens as usize, args.logits.is_some(), &mut heard).map_err(failed)?;
    if let Some(e) = wrong {
        return Err(unreadable(e));
    }
    if let (Some(file), Some(logits)) = (&args.logits, &generated.logits) {
        let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(file, bytes).map_err(|source| CliError::Io { path: file.clone(), source })?;
    }
    show(args, &engine, &generated, tokenizer.is_some().then_some(text));
    Ok(())
}

fn encoded(tokenizer: &Tokenizer, text: &str, raw: bool) -> Result<Vec<i32>, TokenizerError> {
    if raw {
        return tokenizer.encode(text, true);
    }
    let chat = tokenizer.chat(&[Message { role: "user".into(), content: text.into() }])?;
    // The template has what begins a text.
    tokenizer.encode(&chat, false)
}

fn unreadable(e: TokenizerError) -> CliError {
    match e {
        TokenizerError::Io { path, source } => CliError::Io { path, source },
        other => CliError::Usage(other.to_string()),
    }
}

fn show(args: &Args, engine: &Engine, generated: &Generated, text: Option<String>) {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    let after = generated.ids.len().saturating_sub(1);
    let each = (after > 0).then(|| milliseconds(generated.rest) / after as f64);
    let seconds = (generated.first + generated.rest).as_secs_f64();
    let rate = generated.ids.len() as f64 / seconds;
    if args.json {
        let line = serde_json::json!({
            "ids": generated.ids, "text": text, "ttft_ms": milliseconds(generated.first), "tpot_ms": each,
            "tokens_per_s": rate, "memory_bytes": engine.bytes(),
        });
        out!("{line}");
    } else if text.is_some() {
        out!("");
    } else {
        out!("{}", generated.ids.iter().map(i32::to_string).collect::<Vec<_>>().join(","));
    }
    let each = each.map_or_else(String::new, |ms| format!(", {ms:.2} ms a token after it"));
    err!(
        "{} tokens: the first after {:.1} ms{each}, {rate:.1} tokens/s; {} bytes on the device",
        generated.ids.len(),
        milliseconds(generated.first),
        table::grouped(engine.bytes()),
    );
    if let (untuned @ 1.., all) = engine.portable() {
        err!(
            "jitune: note: {untuned} of {all} kernels are portable ones; `jitune tune --model {}` finds better",
            args.model
        );
    }
}

/// A runtime on the database's winners for the device at hand, portable ones for these problems among them.
fn stored(args: &Args, problems: &[Problem]) -> Result<Runtime, CliError> {
    let id = args.device.first()?;
    let arch = args.device.describe()?.arch;
    let library = args.templates.library()?;
    let probes = probes(problems);
    let seal = |db: &jitune_db::Db| {
        let filter = |w: &jitune::winner::Winner| w.device.arch == arch;
        let options = sealing::Options { filter: &filter, verifiable: false, ..sealing::Options::default() };
        sealing::seal(db, &library, options).map_err(|e| export::failed(Path::new("the winners"), e))
    };
    let has_all = |bundle: &Bundle<'_>| probes.iter().all(|p| bundle.winners().any(|w| w.problem() == *p));
    // To read is enough where all is there, and works beside a tuner.
    if let Ok(db) = args.store.read() {
        let found = seal(&db)?.bundle;
        if has_all(&found) {
            return load(&found, id);
        }
    }
    jitune::key::compiler(id.target())?;
    let db = args.store.open()?;
    let budget = tune::default_budget(id.target());
    let options = tune::Options { devices: vec![id], budget: Some(budget), nominal: true, ..tune::Options::default() };
    let (stop, progress) = (super::tune::on_signals()?, Progress::new(false, budget));
    let report = tune::run(&db, &library, &probes, &options, &progress, &stop);
    progress.finish();
    if report?.interrupted {
        return Err(CliError::Interrupted);
    }
    let found = seal(&db)?.bundle;
    db.close()?;
    load(&found, id)
}

fn load(bundle: &Bundle<'_>, id: DeviceId) -> Result<Runtime, CliError> {
    let loaded = match id {
        DeviceId::Cuda(ordinal) => Runtime::cuda(bundle, ordinal),
        DeviceId::Cpu(threads) => Runtime::cpu(bundle, (threads > 0).then_some(threads)),
    };
    loaded.map_err(|e| failed(e.into()))
}

fn failed(e: EngineError) -> CliError {
    match e {
        EngineError::Model(e) => CliError::Model(e),
        EngineError::Weights(e) => not_usable(e),
        EngineError::Backend(e) | EngineError::Runtime(RuntimeError::Target(e)) => CliError::Target(e),
        EngineError::Prompt(why) => CliError::Usage(why),
        other => CliError::Partly(other.to_string()),
    }
}
