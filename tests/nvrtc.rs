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
    "matmul m=129 n=3072 k=2048 dtype=f16 epilogue=bias_rope_kv heads=32 kv_heads=8 head_dim=64 pages=8",
    "matmul m=100 n=1001 k=77 dtype=bf16",
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
    let model = Model::preset("llama-3.2-1b").unwrap();
    let mut list = Plan::new(&model, &Buckets::default(), Dtype::Bf16).unwrap().problems();
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
