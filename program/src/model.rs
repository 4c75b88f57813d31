//! `jitune model`: the plan of a model.

use super::select::{BucketArgs, Where, say};
use super::{CliError, table};
use jitune::device::Device;
use jitune::model::{Call, Model, Plan};

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
    #[cfg(feature = "engine")]
    #[command(flatten)]
    weights: super::weights::OfWeights,
    /// Print the problems alone, one a line, as --plan reads them.
    #[arg(long, conflicts_with = "json")]
    problems: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const OF_WEIGHTS: &str = "jitune model ./my-model --check-weights\n  \
    jitune model llama-3.2-1b --init random:7 --dtype bf16 -o ./random-1b";

fn help() -> String {
    let presets: Vec<&str> = Model::presets().collect();
    format!(
        "Example:\n  jitune model llama-3.2-1b --batch 1,8 --prefill 1024\n  \
         jitune model ./my-model --problems > plan.txt   # edit it, then: jitune tune --plan plan.txt\n  \
         {}\n\n\
         Presets: {}.\n\n\
         A config.json is planned exactly or refused by the name of the key that stands in the way.",
        if cfg!(feature = "engine") { OF_WEIGHTS } else { "" },
        presets.join(", ")
    )
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    #[cfg(feature = "engine")]
    if args.weights.asked() {
        return super::weights::run(&args.weights, &args.model, args.buckets.precision.dtype, args.json);
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
        out!("{}: {}, {} parameters", model.name, model.family.name(), table::grouped(model.parameters()));
        print(&plan, &device);
    }
    Ok(())
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
