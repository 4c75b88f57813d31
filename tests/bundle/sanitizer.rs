//! Run by `scripts/asan.sh`, with AddressSanitizer in program and kernels: it stops a kernel at the first byte outside of
//! what it was bound to.

use crate::make::{self, problem};
use jitune::backend::cpu::cc;
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::problem::Inputs;
use jitune::runtime::{Queue, Runtime, View};
use std::process::Command;

const PROBLEM: &str = "rmsnorm rows=4 cols=96 dtype=f32";
/// Which byte of which tensor a planted kernel touches, and how.
const PLANT: &str = "JITUNE_TEST_PLANT";

/// Runs a norm whose code does one thing more.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn planted() {
    let (device, p) = (make::device(), problem(PROBLEM));
    let template = make::LIBRARY.get(Target::Cpu, "cpu_rmsnorm").unwrap();
    let config = make::config("cpu_rmsnorm", &p, &device);
    let mut source = make::LIBRARY.render(template, &p, &device, &config).unwrap();
    let plant = std::env::var(PLANT).unwrap_or_default();
    source.text = source.text.replacen("(void)tasks;", &format!("(void)tasks; {plant}"), 1);
    assert!(plant.is_empty() || source.text.contains(&plant));
    let (code, _) = cc::compile(&source, tempfile::tempdir().unwrap().path()).unwrap();
    let winner = make::winner("cpu_rmsnorm", &p, &device, config, &code);
    let runtime = Runtime::cpu(&Bundle::seal([(winner, code)]).unwrap(), Some(2)).unwrap();
    let memory = runtime.allocate_all(&p).unwrap();
    let bound = runtime.lookup(&p).unwrap().bind(&memory, View::none()).unwrap();
    bound.launch(Queue::Host).unwrap();
    println!("it ran");
}

#[test]
#[cfg_attr(not(jitune_asan), ignore = "run by scripts/asan.sh")]
fn a_kernel_that_leaves_its_memory_is_stopped() {
    let run = |plant: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "--nocapture", "sanitizer::planted"]).env(PLANT, plant);
        let out = child.output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (ran, text) = run("");
    assert!(ran && text.contains("it ran"), "{text}");
    let template = make::LIBRARY.get(Target::Cpu, "cpu_rmsnorm").unwrap();
    let beyond = template.recipe.description.launches[0].args.len();
    let beyond = format!("(void)*(volatile long *)&args[{beyond}];");
    for (plant, what) in [
        ("((volatile char *)args[2].p)[4 * 4 * COLS] = 1;", "WRITE of size 1"),
        ("((volatile char *)args[2].p)[-1] = 1;", "WRITE of size 1"),
        ("(void)((volatile float *)args[0].p)[4 * COLS];", "READ of size 4"),
        (beyond.as_str(), "READ of size 8"),
    ] {
        let (ran, text) = run(plant);
        assert!(!ran && text.contains("ERROR: AddressSanitizer") && text.contains(what), "{plant}: {text}");
        // The kernel's own access, not one of the program's: its file has no name any more, but its place in memory has.
        let first = text.lines().find(|l| l.trim_start().starts_with("#0")).unwrap_or_default();
        assert!(first.contains("/proc/self/fd/"), "{plant}: {first}");
    }
}

/// Sizes that are a multiple of nothing, for every template of the processor.
const RAGGED: &[&str] = &[
    "matmul m=1 n=37 k=53 dtype=f32",
    "matmul m=7 n=101 k=77 epilogue=bias dtype=bf16",
    "matmul m=67 n=106 k=41 epilogue=swiglu dtype=f32",
    "attention batch=2 q=13 kv=29 heads=6 kv_heads=2 head_dim=40 dtype=f32",
    "attention batch=1 q=33 kv=70 heads=4 kv_heads=4 head_dim=24 causal=0 dtype=f16",
    "decode batch=3 context=101 heads=6 kv_heads=2 head_dim=40 dtype=f32",
    "rmsnorm rows=5 cols=101 residual=1 dtype=bf16",
    "layernorm rows=3 cols=77 dtype=f32",
    "softmax rows=3 cols=1003 dtype=f32",
    "embedding tokens=5 vocab=19 hidden=37 dtype=bf16",
    "argmax rows=3 cols=1003 dtype=f32",
    "sample rows=21 cols=1003 top=5 dtype=f32",
    "advance words=300 ids=40 rows=7 dtype=f32",
    "rope tokens=5 heads=3 head_dim=24 dtype=f32",
    "decode batch=3 context=101 heads=6 kv_heads=2 head_dim=40 page=20 dtype=f32 kv=f16 | lens=mixed",
    "decode batch=3 context=101 heads=6 kv_heads=2 head_dim=44 dtype=bf16 kv=e4m3 | lens=mixed",
    "paged_attention tokens=21 batch=5 context=130 heads=6 kv_heads=2 head_dim=36 page=7 dtype=f32 | lens=chunk",
    "paged_attention tokens=21 batch=5 context=130 heads=6 kv_heads=2 head_dim=36 page=7 dtype=f32 kv=bf16 | lens=mixed",
    "paged_attention tokens=21 batch=5 context=130 heads=6 kv_heads=2 head_dim=36 page=7 dtype=f16 kv=e4m3 | lens=mixed",
    "qkv m=9 k=53 heads=4 kv_heads=2 head_dim=12 page=4 qk_norm=1 dtype=f32 | padding=some",
    "rope_kv m=9 heads=3 kv_heads=1 head_dim=22 page=5 qk_norm=1 dtype=f32 kv=f16 | padding=some",
    "matmul m=3 n=37 k=64 dtype=f32 w=int4-g32",
    "matmul m=3 n=48 k=64 dtype=f32 w=int8-g32 layout=lanes",
    "matmul m=37 n=48 k=64 dtype=f32 w=int4z-g32",
    "matmul m=37 n=37 k=64 dtype=f32 x=int8-row w=int8-row",
    "embedding tokens=5 vocab=19 hidden=64 dtype=f32 w=int8-g32",
];

#[test]
#[cfg_attr(not(jitune_asan), ignore = "run by scripts/asan.sh")]
fn every_template_keeps_to_its_memory() {
    let device = make::device();
    let mut seen = std::collections::BTreeSet::new();
    for text in RAGGED.iter().chain(&["silu_mul rows=3 cols=101 dtype=bf16", "gelu rows=3 cols=101 dtype=f32"]) {
        let p = problem(text);
        for template in make::LIBRARY.taking(&p, &device).unwrap() {
            let all = jitune::space::enumerate(&template.recipe, &p, &device).unwrap().candidates;
            // The two ends of the order by cost.
            for candidate in all.first().into_iter().chain(all.last()) {
                let source = make::LIBRARY.render(&template, &p, &device, &candidate.config).unwrap();
                let (code, _) = cc::compile(&source, tempfile::tempdir().unwrap().path()).unwrap();
                let winner = make::winner(template.name(), &p, &device, candidate.config.clone(), &code);
                let runtime = Runtime::cpu(&Bundle::seal([(winner, code)]).unwrap(), Some(2)).unwrap();
                let (memory, inputs) = (runtime.allocate_all(&p).unwrap(), Inputs::new(&p, 1));
                make::fill(&p, &inputs, &memory);
                let kernel = runtime.lookup(&p).unwrap();
                // SAFETY: test inputs are within their ranges.
                let views = memory.iter().map(|m| unsafe { m.view().assume_in_range() });
                let bound = kernel.bind(views, runtime.workspace(&kernel).unwrap()).unwrap();
                bound.launch(Queue::Host).unwrap();
                let off = make::error(&p, &inputs, &memory);
                assert!(off <= 1.0, "{text} by {} [{}]: {off}", template.name(), candidate.config);
            }
            seen.insert(template.name().to_string());
        }
    }
    assert!(seen.len() >= 24, "{} {seen:?}", seen.len());
}
