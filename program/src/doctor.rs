//! `jitune doctor`: what is here, what is missing, and the one command that brings it.

use super::select::Store;
use super::{CliError, table};
use jitune::backend::cpu::{self, cc};
use jitune::backend::cuda::{self, nvrtc};
use nvml_wrapper::error::NvmlError;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune doctor\n\nExit code 3 when nothing can be tuned here.")]
pub struct Args {
    #[command(flatten)]
    store: Store,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

struct Finding {
    what: &'static str,
    here: bool,
    detail: String,
    remedy: String,
}

fn finding<T>(what: &'static str, found: Result<T, String>, text: impl Fn(&T) -> String, remedy: &str) -> Finding {
    match found {
        Ok(v) => Finding { what, here: true, detail: text(&v), remedy: String::new() },
        Err(e) => Finding { what, here: false, detail: e, remedy: remedy.into() },
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let list = look(args);
    let here = |what: &str| list.iter().any(|f| f.what == what && f.here);
    let cuda = here("NVIDIA GPU") && here("NVRTC");
    let cpu = here("C compiler");
    if args.json {
        let found =
            |f: &Finding| serde_json::json!({"what": f.what, "here": f.here, "detail": f.detail, "remedy": f.remedy});
        let findings: Vec<_> = list.iter().map(found).collect();
        out!("{}", serde_json::json!({"findings": findings, "can_tune": {"cuda": cuda, "cpu": cpu}}));
    } else {
        let row = |f: &Finding| {
            vec![if f.here { "ok" } else { "--" }.into(), f.what.into(), f.detail.clone(), f.remedy.clone()]
        };
        let rows: Vec<Vec<String>> = list.iter().map(row).collect();
        table::print(&["", "what", "found", "to bring it"], &rows, &[]);
        let word = |b: bool| if b { "can" } else { "cannot" };
        out!("This machine {} tune for its GPU and {} tune for its CPU.", word(cuda), word(cpu));
    }
    match cuda || cpu {
        true => Ok(()),
        false => Err(jitune::backend::BackendError::NoCompiler { tried: "gcc, clang".into() }.into()),
    }
}

fn look(args: &Args) -> Vec<Finding> {
    let driver = cuda::driver_version().map_err(|e| e.to_string());
    let gpus = cuda::gpu_count().map_err(|e| e.to_string()).and_then(|n| match n {
        0 => Err("the driver sees no GPU".to_string()),
        n => {
            let name = |i| cuda::describe(i).map(|d| format!("{} ({})", d.name, d.arch));
            (0..n).map(name).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())
        }
    });
    let nvml = nvml_wrapper::Nvml::init().and_then(|n| n.sys_driver_version()).map_err(|e| match e {
        NvmlError::LibloadingError(_) => "libnvidia-ml is not found".to_string(),
        e => e.to_string(),
    });
    let host = cpu::describe(None);
    let cache = |v: u64| format!("{} KiB", v >> 10);
    vec![
        finding(
            "NVIDIA driver",
            driver,
            |v| format!("CUDA {}.{}", v / 1000, v % 1000 / 10),
            "install the NVIDIA driver",
        ),
        finding("NVIDIA GPU", gpus, |list| list.join(", "), ""),
        finding("NVML", nvml, |v| format!("driver {v}"), "comes with the NVIDIA driver"),
        finding(
            "NVRTC",
            nvrtc::open().map_err(|_| match std::env::var_os("JITUNE_NVRTC").filter(|v| !v.is_empty()) {
                Some(given) => format!("libnvrtc is not in {}, as JITUNE_NVRTC says", given.to_string_lossy()),
                None => "libnvrtc is not found".to_string(),
            }),
            |n| format!("{} at {}", n.version, n.path),
            "pip install nvidia-cuda-nvrtc, then set JITUNE_NVRTC to its lib folder",
        ),
        Finding {
            what: "processor",
            here: true,
            detail: format!(
                "{} ({}), {} threads, L1 {}, L2 {}, L3 {}",
                host.name,
                host.arch,
                host.units,
                cache(host.l1),
                cache(host.l2),
                cache(host.l3)
            ),
            remedy: String::new(),
        },
        finding(
            "C compiler",
            cc::open().map_err(|e| e.to_string()),
            |c| format!("{} ({})", c.version, c.path.display()),
            "apt-get install gcc (or clang)",
        ),
        database(args),
    ]
}

/// Whether a database can be written: an existing one is only looked at, a new one is tried in its parent folder.
fn database(args: &Args) -> Finding {
    let written = || -> Result<String, String> {
        let path = args.store.path().map_err(|e| e.to_string())?;
        let existing = path.ancestors().find(|p| p.exists()).unwrap_or(&path).to_path_buf();
        let probe = existing.join(format!(".jitune-{}", std::process::id()));
        std::fs::write(&probe, b"probe").map_err(|e| format!("{}: {e}", existing.display()))?;
        std::fs::remove_file(&probe).map_err(|e| format!("{}: {e}", probe.display()))?;
        let state = if path.exists() { "there, can be written" } else { "not there yet, can be made" };
        Ok(format!("{}: {state}", path.display()))
    };
    finding("database", written(), Clone::clone, "choose a folder that can be written with --db or JITUNE_DB")
}
