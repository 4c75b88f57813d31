//! Winners made by hand: compiled for this machine, or with bytes that only look like code.

use jitune::backend::cpu;
use jitune::device::{Device, Target};
use jitune::problem::{Expected, Inputs, Problem, Role, Tensor, Tolerance, expected};
use jitune::recipe::Config;
use jitune::runtime::Memory;
use jitune::space::enumerate;
use jitune::template::Library;
use jitune::winner::{Evidence, Winner};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

/// Threads of the device that winners are made for.
pub const THREADS: usize = 2;

pub static LIBRARY: LazyLock<Library> = LazyLock::new(|| Library::built_in().unwrap());

/// What the compiled winners are for: small, and of several templates.
pub const COMPILED: [(&str, &str); 7] = [
    ("cpu_rmsnorm", "rmsnorm rows=4 cols=96 dtype=f32"),
    ("cpu_rmsnorm", "rmsnorm rows=64 cols=96 residual=1 dtype=bf16"),
    ("cpu_gemv", "matmul m=1 n=48 k=64 dtype=f32"),
    ("cpu_gemv", "matmul m=4 n=48 k=64 dtype=f32"),
    ("cpu_gemm", "matmul m=64 n=48 k=64 dtype=f32"),
    ("cpu_gemm", "matmul m=16 n=48 k=64 epilogue=swiglu dtype=f32"),
    ("cpu_quantize", "quantize rows=5 cols=96 to=int8-row dtype=f32"),
];

pub fn device() -> Device {
    cpu::describe(Some(THREADS))
}

pub fn problem(text: &str) -> Problem {
    text.parse().unwrap()
}

/// A winner of `code` with evidence of some kind.
pub fn winner(template: &str, problem: &Problem, device: &Device, config: Config, code: &[u8]) -> Winner {
    let target = device.target;
    let evidence = Evidence {
        samples_us: vec![12.5, 12.25, 13.0],
        median_us: 12.5,
        roofline_us: 6.25,
        roofline_share: 0.5,
        memory_bound: true,
        compared: 48,
        trials: 3,
        space: 9,
        at: 1_790_000_000,
        ..Evidence::default()
    };
    Winner {
        problem: *problem,
        config,
        artifact: blake3::hash(code).to_hex().to_string(),
        description: LIBRARY.get(target, template).unwrap().recipe.description.clone(),
        device: device.clone(),
        evidence,
    }
}

/// The cheapest legal config by the analytic cost; for a product of many tokens one of those whose rules do not depend
/// on how many.
pub fn config(template: &str, problem: &Problem, device: &Device) -> Config {
    let template = LIBRARY.get(device.target, template).unwrap();
    let list = enumerate(&template.recipe, problem, device).unwrap().candidates;
    let any_m = |c: &Config| c.get("panels").is_none_or(|p| p == 1) && c.get("copy").is_none_or(|c| c == 1);
    list.into_iter().map(|c| c.config).find(any_m).unwrap()
}

/// Compiles a winner for this machine.
pub fn compiled(template: &str, problem: &Problem, device: &Device) -> (Winner, Vec<u8>) {
    let config = config(template, problem, device);
    let source = LIBRARY.render(LIBRARY.get(Target::Cpu, template).unwrap(), problem, device, &config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (code, _) = cpu::cc::compile(&source, folder.path()).unwrap();
    (winner(template, problem, device, config, &code), code)
}

/// [`COMPILED`], once for all tests.
pub static WINNERS: LazyLock<Vec<(Winner, Vec<u8>)>> = LazyLock::new(|| {
    let device = device();
    COMPILED.iter().map(|(template, text)| compiled(template, &problem(text), &device)).collect()
});

/// A winner whose code is not code.
pub fn fake(template: &str, text: &str, device: &Device, code: &[u8]) -> (Winner, Vec<u8>) {
    let p = problem(text);
    let config = config(template, &p, device);
    (winner(template, &p, device, config, code), code.to_vec())
}

/// The built example of that name. `cargo test` builds it; `cargo test --test NAME` alone does not, and may leave an older
/// one there, which is not taken.
pub fn example(name: &str) -> Option<PathBuf> {
    fn newest(folder: &Path) -> SystemTime {
        let of = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            if path.is_dir() { newest(&path) } else { path.metadata().unwrap().modified().unwrap() }
        };
        std::fs::read_dir(folder).unwrap().map(of).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(name);
    let made = std::fs::metadata(&program).and_then(|m| m.modified()).ok();
    if made.is_none_or(|made| made < newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))) {
        println!("SKIPPED: {} is not up to date; `cargo build --example {name}`", program.display());
        return None;
    }
    Some(program)
}

/// Uploads inputs and poison, in the order of the problem's tensors.
pub fn fill(p: &Problem, inputs: &Inputs, memory: &[Memory]) {
    for (t, m) in p.tensors().iter().zip(memory) {
        let mut bytes = vec![0xff; t.bytes() as usize];
        if let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) {
            input.write(0, &mut bytes);
        }
        m.upload(&bytes).unwrap();
    }
}

/// The largest error of any output against the f64 reference, as a share of its limit.
pub fn error(p: &Problem, inputs: &Inputs, memory: &[Memory]) -> f64 {
    let all = expected(p, inputs, 1, u64::MAX / 2);
    let mut worst = 0f64;
    for (t, m) in p.tensors().iter().zip(memory).filter(|(t, _)| t.role == Role::Out) {
        let mut bytes = vec![0; t.bytes() as usize];
        m.download(&mut bytes).unwrap();
        let mine: Vec<&Expected> = all.iter().filter(|e| e.tensor == t.name).collect();
        let rms = (mine.iter().map(|e| e.value * e.value).sum::<f64>() / mine.len() as f64).sqrt();
        for e in mine {
            let scaled = e.error(t.storage, value(t, &bytes, e.index)) / (rms + e.value.abs()).max(f64::MIN_POSITIVE);
            worst = worst.max(if scaled.is_finite() { scaled / Tolerance::of_tensor(p, t).max } else { f64::INFINITY });
        }
    }
    worst
}

fn value(t: &Tensor, bytes: &[u8], index: u64) -> f64 {
    t.storage.value(bytes, index)
}
