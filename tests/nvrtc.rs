//! Every CUDA template compiles with the real NVRTC for every supported architecture, without spills, in the configs
//! that the analytic cost puts first. Fails, not skips, where NVRTC is missing, unless JITUNE_ALLOW_NO_NVRTC is set.

#![cfg(feature = "tuner")]

use jitune::backend::cuda::nvrtc;
use jitune::device::Device;
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::{Dtype, Problem};
use jitune::recipe::Config;
use jitune::space;
use jitune::template::{Library, Source};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Problems that bring every template into play, beside llama-3.2-1b's plan.
const EXTRA: &[&str] = &[
    "matmul m=33 n=1000 k=1544 dtype=f32",
    "matmul m=300 n=1000 k=1544 dtype=tf32 epilogue=bias",
    "matmul m=40 n=2000 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=300 n=2048 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=5 n=2000 k=2048 dtype=f16 epilogue=bias_residual",
    "matmul m=300 n=2048 k=2048 dtype=f16 epilogue=bias_residual",
    "qkv m=129 k=2048 heads=32 kv_heads=8 head_dim=64 bias=1 dtype=f16 | pages=8",
    "qkv m=4 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=300 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=7 k=100 heads=3 kv_heads=1 head_dim=10 bias=1 qk_norm=1 dtype=f32",
    "matmul m=100 n=1001 k=77 dtype=bf16",
    "matmul m=4 n=64 k=64 dtype=e4m3",
    "matmul m=300 n=70 k=50 epilogue=bias_residual dtype=e4m3",
    "attention batch=1 q=2048 kv=2048 heads=32 kv_heads=8 head_dim=128 dtype=f16",
    "attention batch=1 q=77 kv=333 heads=6 kv_heads=2 head_dim=80 causal=0 dtype=bf16",
    "attention batch=1 q=512 kv=512 heads=8 kv_heads=8 head_dim=256 dtype=bf16",
    "attention batch=1 q=100 kv=100 heads=4 kv_heads=4 head_dim=96 dtype=f32",
    "decode batch=3 context=4097 heads=32 kv_heads=8 head_dim=128 page=16 lens=mixed dtype=f16",
    "decode batch=1 context=1000 heads=4 kv_heads=4 head_dim=80 dtype=f32",
    "rmsnorm rows=33 cols=1003 residual=1 dtype=bf16",
    "layernorm rows=4096 cols=4096 residual=1 dtype=bf16",
    "silu_mul rows=512 cols=8192 dtype=bf16",
    "gelu rows=512 cols=8192 dtype=f16",
    "rope tokens=512 heads=32 head_dim=64 dtype=bf16",
    "softmax rows=32 cols=128256 dtype=f32",
];

fn problems() -> Vec<Problem> {
    let buckets = Buckets { batch: vec![1, 4, 16, 32], prefill: vec![512, 2048], context: 4096 };
    let mut list = Plan::new(&Model::load("llama-3.2-1b").unwrap(), &buckets, Dtype::Bf16).unwrap().problems();
    list.extend(EXTRA.iter().map(|t| t.parse::<Problem>().unwrap()));
    list
}

/// Sources to compile, by hash, with the names to say when one fails.
fn sources(arch: &str) -> BTreeMap<String, (String, Source)> {
    let library = Library::built_in().unwrap();
    let device = Device::ahead_of_time(arch).unwrap();
    let mut list = BTreeMap::new();
    let mut add = |name: String, source: Source| list.insert(source.hash(), (name, source));
    for dtype in Dtype::ALL {
        add(format!("support {dtype}"), library.support(dtype, &device).unwrap());
    }
    for p in problems() {
        let reference = library.reference(&p, &device).unwrap();
        add(format!("reference {p}"), library.render(&reference, &p, &device, &Config::default()).unwrap());
        for t in library.for_problem(&p, &device).unwrap() {
            let space = space::enumerate(&t.recipe, &p, &device).unwrap();
            if let Some(c) = space.candidates.first() {
                let source = library.render(&t, &p, &device, &c.config).unwrap();
                add(format!("{} {p} [{}]", t.name(), c.config), source);
            }
        }
    }
    list
}

/// Problems of every op, in shapes that only a portable template takes or that it takes too.
const PORTABLE: &[&str] = &[
    "matmul m=3 n=10 k=7",
    "matmul m=3 n=10 k=7 epilogue=bias_swiglu dtype=f32",
    "matmul m=3 n=10 k=7 dtype=e4m3",
    "qkv m=3 k=7 heads=3 kv_heads=1 head_dim=6 page=5 bias=1 qk_norm=1",
    "decode batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5",
    "rmsnorm rows=3 cols=7",
    "layernorm rows=3 cols=20001 residual=1 dtype=f16",
    "softmax rows=3 cols=7",
    "argmax rows=3 cols=7",
    "embedding tokens=3 vocab=5 hidden=7",
    "rope tokens=3 heads=2 head_dim=6",
    "silu_mul rows=3 cols=7",
    "gelu rows=3 cols=7 dtype=tf32",
];

/// Architectures beside those that a table describes; the portable tier keeps to instructions that they have too.
const LATER: [(&str, u32); 3] = [("sm_100", 100), ("sm_103", 103), ("sm_120", 120)];

#[test]
fn portable_templates_compile_for_every_architecture() {
    if nvrtc::open().is_err() && std::env::var_os("JITUNE_ALLOW_NO_NVRTC").is_some() {
        eprintln!("SKIPPED: NVRTC is not here and JITUNE_ALLOW_NO_NVRTC is set");
        return;
    }
    let library = Library::built_in().unwrap();
    let mut devices = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap()).to_vec();
    for (arch, cc) in LATER {
        let device = devices[0].clone();
        devices.push(Device { arch: arch.into(), cc, ..device });
    }
    let pairs: Vec<(&Device, &str)> =
        devices.iter().flat_map(|d| PORTABLE.iter().map(move |text| (d, *text))).collect();
    let one = |(device, text): &(&Device, &str)| {
        let p: Problem = text.parse().unwrap();
        let list = library.taking(&p, device).unwrap();
        let t = list.iter().find(|t| t.recipe.description.portable).unwrap_or_else(|| panic!("{text} has none"));
        let fixed = p.variables().into_iter().filter(|(name, _)| t.recipe.fixes(&p, name)).count();
        assert_eq!(fixed, 0, "{text}: every dimension is an argument");
        let launch = t.recipe.launch(&p, device, &Config::default()).unwrap();
        let source = library.render(t, &p, device, &Config::default()).unwrap();
        match nvrtc::compile(&source) {
            Ok(_) if launch.kernels.is_empty() => Some(format!("{text}: launches nothing")),
            Ok(_) => None,
            Err(e) => Some(format!("{} {text}: {e}", device.arch)),
        }
    };
    let bad: Vec<String> = pairs.par_iter().filter_map(one).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

fn check(arch: &str) {
    if let Err(e) = nvrtc::open() {
        assert!(std::env::var_os("JITUNE_ALLOW_NO_NVRTC").is_some(), "{e}");
        eprintln!("SKIPPED: NVRTC is not here and JITUNE_ALLOW_NO_NVRTC is set");
        return;
    }
    let sources = sources(arch);
    let one = |(name, source): &(String, Source)| match nvrtc::compile(source) {
        Ok((_, info)) if info.spills > 0 => Some(format!("{name}: spills {} bytes", info.spills)),
        Ok(_) => None,
        Err(e) => Some(format!("{name}: {e}")),
    };
    let bad: Vec<String> = sources.values().collect::<Vec<_>>().par_iter().filter_map(|s| one(s)).collect();
    assert!(bad.is_empty(), "{arch}: {} of {} failed:\n{}", bad.len(), sources.len(), bad.join("\n"));
    assert!(sources.len() > 60, "only {} sources", sources.len());
}

#[test]
fn sm_80() {
    check("sm_80");
}

#[test]
fn sm_86() {
    check("sm_86");
}

#[test]
fn sm_89() {
    check("sm_89");
}

#[test]
fn sm_90a() {
    check("sm_90a");
}
