//! `jitune model`: the plan of a model.

use super::select::{BucketArgs, Where, Which};
use super::{CliError, table};
use jitune::device::Device;
use jitune::model::{Call, Plan};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune model llama-3.2-1b --batch 1,8 --prefill 1024\n  \
    jitune model ./my-model --problems > plan.txt   # edit it, then: jitune tune --plan plan.txt")]
pub struct Args {
    /// A preset (llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, qwen2.5-0.5b, qwen2.5-7b, mistral-7b-v0.3) or a folder with
    /// a Hugging Face config.json.
    model: String,
    #[command(flatten)]
    buckets: BucketArgs,
    #[command(flatten)]
    device: Where,
    /// Plan for this architecture (sm_80, sm_86, sm_89, sm_90a), which need not be here.
    #[arg(long, conflicts_with = "target")]
    arch: Option<String>,
    /// Print the problems alone, one a line, as --plan reads them.
    #[arg(long, conflicts_with = "json")]
    problems: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let device = match &args.arch {
        Some(arch) => super::compile::ahead(arch)?,
        None => args.device.describe()?,
    };
    let which =
        Which { model: Some(args.model.clone()), problem: Vec::new(), plan: None, buckets: args.buckets.clone() };
    let plan = which.plan_of_model(device.target)?;
    if args.json {
        let text = serde_json::json!({ "model": args.model, "device": device, "calls": plan.calls });
        println!("{text}");
    } else if args.problems {
        for p in plan.problems() {
            println!("{p}");
        }
    } else {
        print(&plan, &device);
    }
    Ok(())
}

fn print(plan: &Plan, device: &Device) {
    let measured = if device.ceilings.measured { "measured" } else { "nominal" };
    println!(
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
        println!("one {} pass, bucket {bucket}: roofline {} us", phase.name(), table::us(time * 1e6));
    }
    debug_assert!(total > 0.0);
}
