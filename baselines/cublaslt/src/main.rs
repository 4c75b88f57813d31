//! Times NVIDIA's cuBLASLt on jitune's matrix products, as a peer to compare with.
//!
//! ```text
//! cargo build --release
//! export LD_LIBRARY_PATH=/usr/local/cuda/lib64        # the folder of libcublasLt.so.13
//! target/release/jitune-peer-cublaslt 'matmul m=1 n=3072 k=2048 dtype=bf16'
//! target/release/jitune-peer-cublaslt < problems.txt  # one problem a line; blank lines and # are skipped
//! ```
//!
//! A problem is `matmul m=… n=… k=… [dtype=bf16|f16|f32|tf32] [epilogue=none|bias]`: y[m, n] = x[m, k]·w[n, k]ᵀ, all
//! row-major. Up to 16 algorithms of the heuristics, with 32 MB of workspace, are checked against sampled elements in
//! f64 and timed: replays of a CUDA graph whose nodes rotate over inputs of twice the L2 cache, each replay after a
//! flush of that cache. One JSON line a problem goes to standard output, messages to standard error. Nothing of CUDA is
//! needed to build; to run, a driver (libcuda.so.1) and libcublasLt.so.13.
//!
//! Exit codes: 0, all measured; 1, a measurement failed; 2, a problem is not understood; 3, no driver, no device, or no
//! cuBLASLt.

mod error;
mod gpu;
mod lt;
mod measure;
mod problem;
mod values;

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
};

use error::Error;
use problem::Problem;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!("usage: jitune-peer-cublaslt ['matmul m=… n=… k=… [dtype=bf16|f16|f32|tf32] [epilogue=none|bias]' …]");
        println!("       without arguments, problems are read from standard input, one a line");
        return ExitCode::SUCCESS;
    }
    match problems(&arguments).and_then(|p| run(&p)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jitune-peer-cublaslt: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn problems(arguments: &[String]) -> Result<Vec<Problem>, Error> {
    let lines = if arguments.is_empty() {
        io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?
    } else {
        arguments.to_vec()
    };
    lines.iter().map(|l| l.trim()).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::parse).collect()
}

/// Measures every problem; one that fails does not keep the others from being measured.
fn run(problems: &[Problem]) -> Result<(), Error> {
    let gpu = gpu::Gpu::new()?;
    let lt = lt::Lt::new()?;
    let mut failed = None;
    for problem in problems {
        match measure::measure(&gpu, &lt, problem) {
            Ok(report) => {
                let mut out = io::stdout().lock();
                serde_json::to_writer(&mut out, &report)?;
                writeln!(out).and_then(|()| out.flush())?;
            }
            Err(error) => {
                eprintln!("jitune-peer-cublaslt: {error}");
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
