//! Two layers with jitune's products beside the same two with Candle's, on the processor.

use candle_core::{Device, Module, Result, Tensor};
use jitune::db::Db;
use jitune::device::DeviceId;
use jitune::template::Library;
use jitune::{export, tune};
use jitune_candle_example::{Kernels, Linear};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const WIDTH: usize = 96;
const INNER: usize = 160;

/// Tunes the products of the model for a few tokens, and seals the winners.
fn bundle(folder: &Path) -> std::result::Result<PathBuf, Box<dyn std::error::Error>> {
    let text = |m: usize, n: usize, k: usize| format!("matmul m={m} n={n} k={k} dtype=f32");
    let shapes = [1, 32].into_iter().flat_map(|m| [text(m, INNER, WIDTH), text(m, WIDTH, INNER)]);
    let problems = shapes.map(|t| t.parse()).collect::<std::result::Result<Vec<_>, _>>()?;
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
fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    let rms = b.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? / rms)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    jitune::worker_main();
    let folder = tempfile::tempdir()?;
    let device = Device::Cpu;
    let kernels = Kernels::load(&bundle(folder.path())?, &device)?;
    let weight = |n: usize, k: usize| Tensor::randn(0f32, 1.0 / (k as f32).sqrt(), (n, k), &device);
    let (up, down) = (weight(INNER, WIDTH)?, weight(WIDTH, INNER)?);
    let (tuned_up, tuned_down) = (Linear::new(up.clone(), kernels.clone()), Linear::new(down.clone(), kernels));
    // 20 rows are no tuned size: the kernel of 32 runs them, or another that may.
    for m in [1, 32, 20] {
        let x = Tensor::randn(0f32, 1.0, (m, WIDTH), &device)?;
        let theirs = x.matmul(&up.t()?)?.gelu()?.matmul(&down.t()?)?;
        let ours = tuned_down.forward(&tuned_up.forward(&x)?.gelu()?)?;
        let far = distance(&ours, &theirs)?;
        assert!(ours.dims() == [m, WIDTH] && far < 1e-4, "{m} rows: {far}");
    }
    // A part of a larger tensor lies at an offset; one that is transposed is copied first.
    let wide = Tensor::randn(0f32, 1.0, (64, WIDTH), &device)?;
    for x in [wide.narrow(0, 32, 32)?, Tensor::randn(0f32, 1.0, (WIDTH, 32), &device)?.t()?] {
        let far = distance(&tuned_up.forward(&x)?, &x.matmul(&up.t()?)?)?;
        assert!(far < 1e-4, "{far}");
    }
    let refused = tuned_up.forward(&Tensor::zeros((1, INNER), candle_core::DType::F32, &device)?);
    assert!(refused.unwrap_err().to_string().contains("of as many columns"));
    println!("test a_model_with_tuned_products ... ok");
    Ok(())
}
