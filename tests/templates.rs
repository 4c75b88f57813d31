//! Every built-in template, over the plans of real models and over ragged shapes: its description evaluates, its space is
//! not empty, its launches fit the device, its source renders.

#![cfg(feature = "tuner")]

use jitune::backend::cpu;
use jitune::device::{Device, Target};
use jitune::model::{Buckets, Model, ModelError, Plan};
use jitune::problem::{Dtype, Problem};
use jitune::recipe::Role;
use jitune::space;
use jitune::template::Library;

/// Shapes beside those of models: every op, dtype and epilogue, odd sizes, the unfused pieces.
const EXTRA: &[&str] = &[
    "matmul m=7 n=1000 k=1544 dtype=f32",
    "matmul m=7 n=1000 k=1544 dtype=tf32",
    "matmul m=1 n=1001 k=77 dtype=bf16",
    "matmul m=300 n=1001 k=77 dtype=f16 epilogue=bias",
    "matmul m=33 n=2000 k=2048 dtype=bf16 epilogue=swiglu",
    "matmul m=129 n=3072 k=2048 dtype=f16 epilogue=bias_rope_kv heads=32 kv_heads=8 head_dim=64 pages=8",
    "attention batch=3 q=77 kv=333 heads=6 kv_heads=2 head_dim=80 dtype=f16",
    "attention batch=1 q=1 kv=1 heads=1 kv_heads=1 head_dim=256 causal=0 dtype=bf16",
    "attention batch=1 q=100 kv=100 heads=4 kv_heads=4 head_dim=96 dtype=f32",
    "decode batch=3 context=4097 heads=32 kv_heads=8 head_dim=128 page=16 lens=mixed dtype=bf16",
    "decode batch=1 context=1 heads=4 kv_heads=4 head_dim=80 dtype=f32",
    "rmsnorm rows=33 cols=1003 residual=1 dtype=bf16",
    "layernorm rows=5 cols=77 dtype=f32",
    "layernorm rows=4096 cols=4096 residual=1 dtype=bf16",
    "silu_mul rows=3 cols=1001 dtype=bf16",
    "gelu rows=3 cols=8192 dtype=f16",
    "rope tokens=9 heads=32 head_dim=64 dtype=bf16",
    "softmax rows=2 cols=128256 dtype=f32",
    "embedding tokens=5 vocab=50 hidden=77 dtype=bf16",
    "argmax rows=3 cols=1003 dtype=f16",
];

fn problems(dtype: Dtype) -> Vec<Problem> {
    let mut list: Vec<Problem> = Vec::new();
    for name in Model::presets() {
        // One model with all its buckets, the others at the ends of theirs.
        let buckets = match name {
            "llama-3.2-1b" => Buckets::default(),
            _ => Buckets { batch: vec![1, 32], prefill: vec![2048], ..Buckets::default() },
        };
        match Plan::new(&Model::preset(name).unwrap(), &buckets, dtype) {
            Ok(plan) => list.extend(plan.problems()),
            Err(e) => assert!(matches!(e, ModelError::Unplanned { .. }), "{name}: {e}"),
        }
    }
    list.extend(EXTRA.iter().map(|t| t.parse::<Problem>().unwrap()));
    list.sort();
    list.dedup();
    list
}

fn check(device: &Device, problem: &Problem, library: &Library) -> Vec<String> {
    let mut bad = Vec::new();
    let templates = match library.for_problem(problem, device) {
        Ok(list) => list,
        Err(e) => return vec![format!("{}: {e}", device.arch)],
    };
    let mut configs = 0;
    for t in templates {
        let place = format!("{} {} {problem}", device.arch, t.name());
        let space = match space::enumerate(&t.recipe, problem, device) {
            Ok(space) => space,
            Err(e) => {
                bad.push(format!("{place}: {e}"));
                continue;
            }
        };
        configs += space.candidates.len();
        for c in space.candidates.iter().take(2) {
            if !c.cost_us.is_finite() || c.cost_us <= 0.0 {
                bad.push(format!("{place}: cost {}", c.cost_us));
            }
            match t.recipe.launch(problem, device, &c.config) {
                Ok(l) if l.kernels.is_empty() => bad.push(format!("{place}: launches nothing")),
                Ok(l) => {
                    let most = l.kernels.iter().map(|k| u64::from(k.smem)).max().unwrap_or(0);
                    if device.smem > 0 && most > device.smem {
                        bad.push(format!("{place}: {most} bytes of shared memory"));
                    }
                }
                Err(e) => bad.push(format!("{place}: {e}")),
            }
            if let Err(e) = library.render(&t, problem, device, &c.config) {
                bad.push(format!("{place}: {e}"));
            }
        }
    }
    if configs == 0 {
        bad.push(format!("{} {problem}: no legal config", device.arch));
    }
    bad
}

#[test]
fn cuda_templates_answer_every_problem_on_every_architecture() {
    let library = Library::built_in().unwrap();
    let mut bad = Vec::new();
    for arch in Device::ARCHITECTURES {
        let device = Device::ahead_of_time(arch).unwrap();
        for p in problems(Dtype::Bf16) {
            bad.extend(check(&device, &p, &library));
            if let Err(e) = library.reference(&p, &device) {
                bad.push(format!("reference: {e}"));
            }
        }
    }
    assert!(bad.is_empty(), "{} problems:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn cpu_templates_answer_every_problem() {
    let library = Library::built_in().unwrap();
    let device = cpu::describe(Some(2));
    let bad: Vec<String> = problems(Dtype::F32)
        .iter()
        .filter(|p| p.dtype != Dtype::Tf32)
        .flat_map(|p| check(&device, p, &library))
        .collect();
    assert!(bad.is_empty(), "{} problems:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn fingerprints_tell_templates_apart() {
    let library = Library::built_in().unwrap();
    let all: Vec<String> = library.all(Role::Kernel).map(|t| library.fingerprint(t)).collect();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), distinct.len());
}

#[test]
fn a_config_that_a_smaller_bucket_would_not_search_serves_it() {
    let library = Library::built_in().unwrap();
    let device = cpu::describe(Some(2));
    let of = |m: u32| -> Problem { format!("matmul m={m} n=2048 k=2048 dtype=f32").parse().unwrap() };
    let gemm = &library.get(Target::Cpu, "cpu_gemm").unwrap().recipe;
    let searched = |m: u32| space::enumerate(gemm, &of(m), &device).unwrap().candidates;
    let small = searched(33);
    let only_large: Vec<_> = searched(64).into_iter().filter(|c| small.iter().all(|s| s.config != c.config)).collect();
    assert!(!only_large.is_empty());
    for c in only_large {
        assert!(gemm.serves(&of(64), &of(33), &device, &c.config), "{}", c.config);
    }
}
