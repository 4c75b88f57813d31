//! Two layers with jitune's products beside the same two with Burn's.

use burn::backend::NdArray;
use burn::tensor::{Distribution, Tensor, activation::gelu};
use jitune::db::Db;
use jitune::device::DeviceId;
use jitune::template::Library;
use jitune::{export, tune};
use jitune_burn_example::{Kernels, Linear};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const WIDTH: usize = 96;
const INNER: usize = 160;

/// Tunes the products of the model for a few tokens, and seals the winners.
fn bundle(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let text = |m: usize, n: usize, k: usize| format!("matmul m={m} n={n} k={k} dtype=f32");
    let shapes = [1, 32].into_iter().flat_map(|m| [text(m, INNER, WIDTH), text(m, WIDTH, INNER)]);
    let problems = shapes.map(|t| t.parse()).collect::<Result<Vec<_>, _>>()?;
    let (db, library) = (Db::open(folder.join("db"), jitune::journal::options())?, Library::built_in()?);
    let options = tune::Options {
        devices: vec![DeviceId::Cpu(0)],
        budget: Some(Duration::from_secs(60)),
        ..tune::Options::default()
    };
    let report = tune::run(&db, &library, &problems, &options, &(), &AtomicBool::new(false))?;
    assert!(report.failed().next().is_none(), "{report:?}");
    let path = folder.join("model.jitune");
    export::seal(&db, &library, export::Options::default())?.bundle.write(&path)?;
    Ok(path)
}

/// The largest difference of two results, over the root mean square of the second.
fn distance(a: Tensor<NdArray, 2>, b: Tensor<NdArray, 2>) -> f32 {
    let rms = b.clone().powi_scalar(2).mean().sqrt().into_scalar();
    (a - b).abs().max().into_scalar() / rms
}

fn main() -> Result<(), Box<dyn Error>> {
    jitune::worker_main();
    let folder = tempfile::tempdir()?;
    let kernels = Kernels::load(&bundle(folder.path())?).map_err(|e| e.to_string())?;
    let device = Default::default();
    let random = |rows: usize, columns: usize, scale: f64| {
        Tensor::<NdArray, 2>::random([rows, columns], Distribution::Normal(0.0, scale), &device)
    };
    let (up, down) = (random(INNER, WIDTH, 0.1), random(WIDTH, INNER, 0.1));
    let (tuned_up, tuned_down) = (Linear::new(up.clone(), kernels.clone()), Linear::new(down.clone(), kernels));
    // 20 rows are no tuned size: the kernel of 32 runs them, or another that may.
    for m in [1, 32, 20] {
        let x = random(m, WIDTH, 1.0);
        let theirs = gelu(x.clone().matmul(up.clone().transpose())).matmul(down.clone().transpose());
        let inner = gelu(tuned_up.forward(x).map_err(|e| e.to_string())?);
        let ours = tuned_down.forward(inner).map_err(|e| e.to_string())?;
        assert_eq!(ours.dims(), [m, WIDTH]);
        let far = distance(ours, theirs);
        assert!(far < 1e-4, "{m} rows: {far}");
    }
    // What is transposed, or a part of a larger tensor.
    for x in [random(WIDTH, 32, 1.0).transpose(), random(64, WIDTH, 1.0).slice([32..64])] {
        let ours = tuned_up.forward(x.clone()).map_err(|e| e.to_string())?;
        let far = distance(ours, x.matmul(up.clone().transpose()));
        assert!(far < 1e-4, "{far}");
    }
    assert!(tuned_up.forward(random(1, INNER, 1.0)).is_err_and(|e| e.to_string().contains("columns")));
    println!("test a_model_with_tuned_products ... ok");
    Ok(())
}
