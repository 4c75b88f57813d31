//! `jitune model`: the plan of a model.

use super::progress::Live;
use super::select::{BucketArgs, Where, say};
use super::{CliError, table};
use jitune::device::Device;
use jitune::model::{Call, Model, Plan};
use jitune::problem::Dtype;
use jitune::weights::{self, Weights, WeightsError};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = help())]
pub struct Args {
    /// A preset (listed below), or a folder with the Hugging Face config.json of a Llama, Mistral, Qwen2 (or 2.5) or dense
    /// Qwen3, or a GGUF file of one.
    model: String,
    #[command(flatten)]
    buckets: BucketArgs,
    #[command(flatten)]
    device: Where,
    /// Plan for this architecture (sm_80, sm_86, sm_89, sm_90a), which need not be here.
    #[arg(long, conflicts_with = "target")]
    arch: Option<String>,
    /// Write a folder with the model's config.json and random weights that any engine loads; SEED is a number.
    #[arg(long, value_name = "random:SEED", requires = "output", value_parser = seed)]
    init: Option<u64>,
    /// The folder that --init writes.
    #[arg(short, long, value_name = "FOLDER", requires = "init")]
    output: Option<PathBuf>,
    /// Look at the weights in the folder too: whether they are all there, of their shapes, and finite.
    #[arg(long, conflicts_with = "init")]
    weights: bool,
    /// Print the problems alone, one a line, as --plan reads them.
    #[arg(long, conflicts_with = "json")]
    problems: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn help() -> String {
    let presets: Vec<&str> = Model::presets().collect();
    format!(
        "Example:\n  jitune model llama-3.2-1b --batch 1,8 --prefill 1024\n  \
         jitune model ./my-model --problems > plan.txt   # edit it, then: jitune tune --plan plan.txt\n  \
         jitune model ./my-model --weights\n  \
         jitune model llama-3.2-1b --init random:7 --dtype bf16 -o ./random-1b\n\n\
         Presets: {}.\n\n\
         A config.json is planned exactly or refused by the name of the key that stands in the way.",
        presets.join(", ")
    )
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if let (Some(seed), Some(folder)) = (args.init, &args.output) {
        return init(args, seed, folder);
    }
    if args.weights {
        return weights(args);
    }
    let device = match &args.arch {
        Some(arch) => super::compile::ahead(arch)?,
        None => args.device.describe()?,
    };
    let (model, plan, notes) = args.buckets.plan(&args.model, device.target)?;
    say(&notes);
    if args.json {
        let text = serde_json::json!({
            "model": args.model, "parameters": model.parameters(), "config": model, "notes": notes, "device": device,
            "calls": plan.calls,
        });
        out!("{text}");
    } else if args.problems {
        for p in plan.problems() {
            out!("{p}");
        }
    } else {
        out!("{}: {}, {} parameters", model.name, model.family.name(), grouped(model.parameters()));
        print(&plan, &device);
    }
    Ok(())
}

fn seed(text: &str) -> Result<u64, String> {
    let seed = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
    seed.ok_or_else(|| "it is random:SEED, where SEED is a number".into())
}

/// Writes a folder of random weights, in the type that is asked for, or that of the configuration.
fn init(args: &Args, seed: u64, folder: &Path) -> Result<(), CliError> {
    let (model, notes) = Model::load(&args.model)?;
    say(&notes);
    let dtype = args.buckets.dtype.or(model.dtype).unwrap_or(Dtype::Bf16);
    let line = Live::new("{elapsed_precise} [{bar:24}] {bytes}/{total_bytes}  {binary_bytes_per_sec}, {eta} left");
    let progress = |written, total| {
        line.set_length(total);
        line.set_position(written);
    };
    let written = weights::write(&model, seed, dtype, folder, progress);
    line.finish_and_clear();
    written.map_err(not_usable)?;
    out!("{}: {}, {} random parameters in {dtype}", folder.display(), model.name, grouped(model.parameters()));
    Ok(())
}

/// Looks at the weights of a folder.
fn weights(args: &Args) -> Result<(), CliError> {
    let (model, mut notes) = Model::load(&args.model)?;
    let path = Path::new(&args.model);
    if Model::preset(&args.model).is_some() {
        let text = format!("--weights looks into a folder, and {} is a preset; write ./{0} to mean one", args.model);
        return Err(CliError::Usage(text));
    }
    // Beside a config.json lie its weights; any other file holds them.
    let beside = path.parent().filter(|_| path.is_file() && path.extension().is_some_and(|e| e == "json"));
    let (weights, more) = Weights::open(beside.unwrap_or(path), &model).map_err(not_usable)?;
    notes.extend(more);
    say(&notes);
    weights.check().map_err(not_usable)?;
    let (tensors, files, bytes) = weights.checkpoint().size();
    let parameters = model.parameters();
    if args.json {
        let text = serde_json::json!({
            "model": args.model, "parameters": parameters, "notes": notes, "tensors": tensors, "files": files,
            "bytes": bytes,
        });
        out!("{text}");
    } else {
        let said = format!("{tensors} tensors in {files} files, {bytes} bytes, all there and finite");
        out!("{}: {} parameters; {said}", model.name, grouped(parameters));
    }
    Ok(())
}

pub(super) fn not_usable(e: WeightsError) -> CliError {
    match e {
        WeightsError::Io { path, source } => CliError::Io { path, source },
        other => CliError::Usage(other.to_string()),
    }
}

/// A count with its thousands set apart.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn print(plan: &Plan, device: &Device) {
    let measured = if device.ceilings.measured { "measured" } else { "nominal" };
    out!(
        "{} ({}), {} ceilings: read {}, matrix products {}",
        device.name,
        device.arch,
        measured,
        table::bytes(device.ceilings.read),
        table::flops(device.ceilings.half),
    );
    let mut total = 0.0;
    let row = |c: &Call| {
        let (roofline, memory) = device.roofline(&c.problem);
        vec![
            c.phase.name().into(),
            c.bucket.to_string(),
            c.role.clone(),
            c.calls.to_string(),
            format!("{:.3}", c.problem.flops() / 1e9),
            format!("{:.3}", c.problem.bytes() as f64 / 1e6),
            table::us(roofline * 1e6),
            if memory { "bytes" } else { "operations" }.into(),
            c.problem.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = plan.calls.iter().map(row).collect();
    let header = ["phase", "bucket", "role", "calls", "GFLOP", "MB", "roofline us", "bound by", "problem"];
    table::print(&header, &rows, &[1, 3, 4, 5, 6]);
    let mut passes: Vec<(jitune::model::Phase, i64, f64)> = Vec::new();
    for c in &plan.calls {
        let time = c.calls as f64 * device.roofline(&c.problem).0;
        total += time;
        match passes.iter_mut().find(|(p, b, _)| (*p, *b) == (c.phase, c.bucket)) {
            Some((.., t)) => *t += time,
            None => passes.push((c.phase, c.bucket, time)),
        }
    }
    for (phase, bucket, time) in passes {
        out!("one {} pass, bucket {bucket}: roofline {} us", phase.name(), table::us(time * 1e6));
    }
    debug_assert!(total > 0.0);
}
