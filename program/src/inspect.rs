//! `jitune inspect`: what a bundle holds, on any machine.

use super::sign::Signer;
use super::{CliError, table};
use jitune::bundle::{ArtifactRole, Bundle, Held, VERSION};
use jitune::report::text::date;
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune inspect model.jitune\n\n\
    Reads the whole file and checks every hash; needs neither a device nor a database. Exit code 4 when the file is damaged, \
    or with --public-key when it is not signed by that key: a hash says that a file is whole, not who made it.")]
pub struct Args {
    /// The bundle.
    file: PathBuf,
    #[command(flatten)]
    signer: Signer,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let bundle = args.signer.open(&args.file)?;
    if args.json {
        out!("{}", json(&bundle));
        return Ok(());
    }
    use crate::out::one_line;
    let arches: Vec<String> = bundle.arches().iter().map(|(t, a)| format!("{} {a}", t.name())).collect();
    out!("file        {}, {} bytes, format {VERSION}", args.file.display(), bundle.as_bytes().len());
    out!("sealed by   jitune {}, newest winner of {}", one_line(bundle.sealed_by()), date(bundle.created()));
    out!("signature   {}", args.signer.said());
    out!("holds       {} winners for {}", bundle.len(), one_line(&arches.join(", ")));
    for (role, name) in
        [(ArtifactRole::Kernel, "kernels"), (ArtifactRole::Reference, "references"), (ArtifactRole::Support, "support")]
    {
        let (count, bytes) =
            bundle.artifacts().filter(|a| a.role == role).fold((0, 0), |(n, b), a| (n + 1, b + a.bytes.len()));
        if count > 0 {
            out!("            {count} {name}, {bytes} bytes");
        }
    }
    let mut devices: Vec<&str> = bundle.devices().iter().map(|d| d.name.as_str()).collect();
    devices.dedup();
    out!("tuned on    {}\n", one_line(&devices.join(", ")));
    let row = |h: Held<'_>| {
        let e = h.evidence();
        vec![
            h.device().arch.clone(),
            table::us(e.median_us),
            format!("{:.0}%", e.roofline_share * 100.0),
            e.samples_us.len().to_string(),
            format!("{:.1e}", e.error_rms),
            e.ties.len().to_string(),
            h.artifact().bytes.len().to_string(),
            format!("{}{}", h.problem(), if e.step.is_some() { ", in steps" } else { "" }),
            format!("{} {}", h.description().name, h.config()),
        ]
    };
    let rows: Vec<Vec<String>> = bundle.winners().map(row).collect();
    let header = ["arch", "us", "of ceiling", "samples", "error", "ties", "bytes", "problem", "winner"];
    table::print(&header, &rows, &[1, 2, 3, 4, 5, 6]);
    Ok(())
}

fn json(bundle: &Bundle<'_>) -> serde_json::Value {
    let artifact = |a: jitune::bundle::SealedArtifact<'_>| serde_json::json!({"role": a.role, "bytes": a.bytes.len(), "blake3": a.hash()});
    let winner = |h: Held<'_>| {
        serde_json::json!({
            "problem": h.problem(), "template": h.description().name, "config": h.config(),
            "target": h.device().target, "arch": h.device().arch, "device": h.device().name,
            "artifact": h.artifact().hash(), "verifiable_without_compiler":
                h.device().target == jitune::device::Target::Cpu || h.reference().is_some(),
            "evidence": h.evidence(),
        })
    };
    serde_json::json!({
        "format": VERSION, "bytes": bundle.as_bytes().len(), "sealed_by": bundle.sealed_by(), "created": bundle.created(),
        "artifacts": bundle.artifacts().map(artifact).collect::<Vec<_>>(),
        "winners": bundle.winners().map(winner).collect::<Vec<_>>(),
    })
}
