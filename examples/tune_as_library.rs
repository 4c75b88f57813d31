//! Tunes two kernels for the host's processor, seals the winners, and looks them up, all in one process:
//! `cargo run --release --features tuner --example tune_as_library -- FOLDER`. The folder keeps what was found.

use jitune::db::Db;
use jitune::device::DeviceId;
use jitune::problem::Problem;
use jitune::runtime::Runtime;
use jitune::template::Library;
use jitune::{export, tune};
use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    // The tuner's workers are this program, started again: they go no further.
    jitune::worker_main();
    let folder = std::env::args().nth(1).ok_or("usage: tune_as_library FOLDER")?;
    let (report, found) = tune(folder.as_ref())?;
    println!("{} of {} were stored before", report.stored(), found.len());
    found.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Tunes what is not stored in the folder yet, and says which kernels answer.
pub fn tune(folder: &Path) -> Result<(tune::Report, Vec<String>), Box<dyn Error>> {
    let problems: [Problem; 2] =
        ["matmul m=1 n=256 k=256 dtype=f32".parse()?, "rmsnorm rows=8 cols=256 dtype=f32".parse()?];
    let (db, library) = (Db::open(folder, jitune::journal::options())?, Library::built_in()?);
    let options = tune::Options {
        devices: vec![DeviceId::Cpu(0)],
        budget: Some(Duration::from_secs(20)),
        ..tune::Options::default()
    };
    let report = tune::run(&db, &library, &problems, &options, &(), &AtomicBool::new(false))?;
    let bundle = export::seal(&db, &library, export::Options::default())?.bundle;
    let runtime = Runtime::cpu(&bundle, None)?;
    let answer = |problem| runtime.lookup(problem).map(|k| format!("{problem}: {} {}", k.template(), k.config()));
    let found = problems.iter().map(answer).collect::<Result<_, _>>()?;
    Ok((report, found))
}
