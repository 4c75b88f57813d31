//! `jitune export`: seals stored winners into one file.

use super::select::{Store, Templates, Where, Which};
use super::sign::{SecretKey, unusable};
use super::{CliError, files, table};
use jitune::bundle::signature_path;
use jitune::device::{Device, Target};
use jitune::export::{self, ExportError, Options};
use jitune::problem::Problem;
use jitune::winner::Winner;
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune export -o model.jitune\n  \
    jitune export --model llama-3.2-1b --arch sm_90a,sm_80 -o model.jitune\n\n\
    Without problems it takes every stored winner of this machine's architecture. A winner whose templates were edited \
    since, or that was tuned with --templates which are not given here, is left out. Exit code 1 when a winner had to be \
    left out or an asked problem has none: the file holds the rest, and is not written where there is no rest.")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    device: Where,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    templates: Templates,
    /// Architectures, such as sm_90a or x86_64-avx2; by default the one of this machine, or `all`.
    #[arg(long, value_delimiter = ',', value_parser = arch)]
    arch: Vec<String>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Sign the file with this secret key of minisign's, one without a password (`minisign -G -W`); the signature goes to
    /// FILE.minisig, and `minisign -V` checks it too.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Leave out the code that `jitune verify` needs on a GPU machine without NVRTC.
    #[arg(long)]
    no_verification: bool,
    /// Seal what is the fastest by itself, and not what whole steps run in its place (`jitune tune --steps`).
    #[arg(long)]
    alone: bool,
    /// Seal winners too that a look-up would not find any more, such as those of templates that were edited since.
    #[arg(long)]
    stale: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Reads an architecture as devices have it: `sm_90a`, `x86_64-avx2`. That one has winners is another thing.
fn arch(text: &str) -> Result<String, String> {
    let gpu = |text: &str| text.strip_prefix("sm_").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()));
    let cpu = |text: &str| ["x86_64-", "aarch64-"].iter().any(|family| text.starts_with(family));
    let known = || format!("it is all, {}, or a processor's such as x86_64-avx2", Device::ARCHITECTURES.join(", "));
    if text == "all" || gpu(text) || cpu(text) { Ok(text.into()) } else { Err(known()) }
}

/// An export's error as the program's.
pub(super) fn failed(path: &Path, e: ExportError) -> CliError {
    match e {
        ExportError::Db(e) => CliError::Db(e),
        ExportError::Bundle(e) => unusable(path, e),
        ExportError::Target(e) => CliError::Target(e),
        other => CliError::Partly(other.to_string()),
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    args.store.keeps_out(&args.output)?;
    let key = args.sign.as_deref().map(SecretKey::read).transpose()?;
    let library = args.templates.library()?;
    let arches = match args.arch.as_slice() {
        [] => vec![args.device.describe()?.arch],
        list => list.to_vec(),
    };
    let every = arches.iter().any(|a| a == "all");
    let asked = asked(args, &arches, every)?;
    let filter = |w: &Winner| {
        (every || arches.contains(&w.device.arch)) && asked.as_ref().is_none_or(|list| list.contains(&w.problem))
    };
    let options = Options {
        filter: &filter,
        compiler: None,
        stale: args.stale,
        verifiable: !args.no_verification,
        in_steps: !args.alone,
    };
    let export = export::seal(&args.store.read()?, &library, options).map_err(|e| failed(&args.output, e))?;
    let bundle = &export.bundle;
    let mut missing: Vec<(Problem, String)> =
        export.left_out.iter().map(|left| (left.problem, left.why.to_string())).collect();
    let held: HashSet<Problem> = bundle.winners().map(|h| h.problem()).collect();
    for problem in asked.iter().flatten() {
        if !held.contains(problem) && !missing.iter().any(|(p, _)| p == problem) {
            missing.push((*problem, "no winner is stored; `jitune tune` finds one".into()));
        }
    }
    if bundle.is_empty() {
        let reasons = missing.iter().map(|(p, why)| format!("\n  {p}: {why}")).collect::<String>();
        let places = arches.join(", ");
        let text = format!(
            "nothing to export for {places}; `jitune tune` finds winners, `jitune db list` shows them{reasons}"
        );
        return Err(CliError::Partly(text));
    }
    let signature = match key {
        Some(key) => Some(key.sign(bundle, &args.output)?),
        None => {
            let beside = signature_path(&args.output);
            let left_over = beside.is_file() && !holds(&args.output, bundle.as_bytes());
            bundle.write(&args.output).map_err(|e| unusable(&args.output, e))?;
            if left_over {
                std::fs::remove_file(&beside).map_err(files::io(&beside))?;
                err!("jitune: note: {} was of the file that was there before, and is removed", beside.display());
            }
            None
        }
    };
    say(args, &export, signature.as_deref(), &missing);
    match missing.len() {
        0 => Ok(()),
        n => Err(CliError::Partly(format!("{n} problems were left out"))),
    }
}

/// Whether a file has these bytes.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let mut found = Vec::new();
    // One byte more shows that there is more.
    let read = jitune::file::open(path).and_then(|file| file.take(bytes.len() as u64 + 1).read_to_end(&mut found));
    read.is_ok() && found == bytes
}

/// The asked problems; `None` for all that are stored.
fn asked(args: &Args, arches: &[String], every: bool) -> Result<Option<Vec<Problem>>, CliError> {
    let w = &args.which;
    if w.model.is_none() && w.problem.is_empty() && w.plan.is_none() {
        return Ok(None);
    }
    // A model's dtype follows the target.
    let cuda = arches.iter().any(|a| a.starts_with("sm_"));
    let target = if every {
        args.device.target()?
    } else if cuda {
        Target::Cuda
    } else {
        Target::Cpu
    };
    w.whole(target).map(|whole| Some(whole.problems))
}

fn say(args: &Args, export: &export::Export, signature: Option<&Path>, missing: &[(Problem, String)]) {
    let bundle = &export.bundle;
    for left in &export.not_in_steps {
        err!("jitune: note: {}: what whole steps chose is not in it: {}", left.problem, left.why);
    }
    for why in &export.unverifiable {
        err!(
            "jitune: warning: the file can be verified only where NVRTC is: {}",
            why.lines().next().unwrap_or_default()
        );
    }
    if args.json {
        let left_out: Vec<_> = missing.iter().map(|(p, why)| serde_json::json!({"problem": p, "why": why})).collect();
        out!(
            "{}",
            serde_json::json!({
                "file": args.output, "bytes": bundle.as_bytes().len(), "winners": bundle.len(),
                "artifacts": bundle.artifacts().len(), "left_out": left_out, "signature": signature,
            })
        );
        return;
    }
    let rows: Vec<Vec<String>> = missing.iter().map(|(p, why)| vec![p.to_string(), why.clone()]).collect();
    if !rows.is_empty() {
        table::print(&["left out", "why"], &rows, &[]);
    }
    let arches: Vec<String> = bundle.arches().iter().map(|(t, a)| format!("{} {a}", t.name())).collect();
    out!(
        "{}: {} winners for {}, {} artifacts, {} bytes",
        args.output.display(),
        bundle.len(),
        arches.join(", "),
        bundle.artifacts().len(),
        bundle.as_bytes().len()
    );
    if let Some(path) = signature {
        out!("signed: {}", path.display());
    }
}
