//! The sizes between and beyond the buckets of a default tuning: what it finds answers for all of them. No device is
//! needed, since a recipe says by itself what its code serves; the winners are those that the analytic cost puts first.
#![cfg(feature = "tuner")]

use jitune::backend::cpu;
use jitune::device::{Device, Target};
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::{Dtype, Part, Problem};
use jitune::recipe::{Config, Recipe};
use jitune::space;
use jitune::template::{Library, Template};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The most tokens of a call.
const MOST: i64 = 8192;

struct Winner {
    problem: Problem,
    template: Arc<Template>,
    config: Config,
}

/// The cheapest config by prediction of all that take the problem.
fn winner(library: &Library, problem: Problem, device: &Device) -> Winner {
    let mut best: Option<(f64, Winner)> = None;
    for template in library.for_problem(&problem, device).unwrap() {
        let space = space::enumerate(&template.recipe, &problem, device).unwrap();
        if let Some(c) = space.candidates.first()
            && best.as_ref().is_none_or(|(us, _)| c.cost_us < *us)
        {
            best = Some((c.cost_us, Winner { problem, template, config: c.config.clone() }));
        }
    }
    best.unwrap().1
}

/// The size of an op that differs between the buckets of a model.
fn size(p: &Problem) -> Option<&'static str> {
    match p.op().name {
        "matmul" | "qkv" => Some("m"),
        "rmsnorm" | "argmax" | "sample" => Some("rows"),
        "embedding" => Some("tokens"),
        "decode" => Some("batch"),
        _ => None,
    }
}

/// The problems of a default tuning of a model, and those of one whose heads are normed.
fn problems(dtype: Dtype) -> Vec<Problem> {
    let mut list = Plan::new(&Model::preset("llama-3.2-1b").unwrap(), &Buckets::default(), dtype).unwrap().problems();
    for rows in [1, 4, 16, 32] {
        list.push(format!("sample rows={rows} cols=128256 top=5 dtype={dtype}").parse().unwrap());
    }
    for m in [1, 4, 16, 32, 512, 2048] {
        let text = format!("qkv m={m} k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype={dtype}");
        list.push(text.parse().unwrap());
    }
    list
}

/// The sizes that none of the winners of one family serves, as runs.
fn refused(list: &[Winner], device: &Device) -> Vec<(i64, i64)> {
    let size = size(&list[0].problem).unwrap();
    // The last product of a pass has a row a sequence, so its buckets are the batches alone.
    let largest = list.iter().map(|w| w.problem.dim(size)).max().unwrap();
    let most = if largest < 512 { largest } else { MOST };
    let served = |v: i64| {
        list.iter().rev().any(|w| {
            // One cache for all: what an engine allocates is no question of the batch.
            let mut changes = vec![(size, v)];
            changes.extend(w.problem.has("pages").then_some(("pages", 100_000)));
            let asked = w.problem.with(&changes).unwrap();
            w.template.recipe.serves(&w.problem, &asked, device, &w.config).is_ok()
        })
    };
    let mut runs: Vec<(i64, i64)> = Vec::new();
    // Every size to 600, where the tiles change, and then every 61st.
    for v in (1..=most).filter(|v| (*v <= 600 || *v == most || v % 61 == 0) && !served(*v)) {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == v => run.1 = v,
            _ => runs.push((v, v)),
        }
    }
    runs
}

fn check(device: &Device, dtype: Dtype) {
    let library = Library::built_in().unwrap();
    let mut families: BTreeMap<String, Vec<Winner>> = BTreeMap::new();
    for p in problems(dtype) {
        if let Some(size) = size(&p) {
            let family = p.with(&[(size, 1)]).unwrap().to_string();
            families.entry(family).or_default().push(winner(&library, p, device));
        }
    }
    assert!(families.len() >= 10, "{:?}", families.keys());
    let left: Vec<_> = families.iter().map(|(name, list)| (name, refused(list, device))).collect();
    assert!(left.iter().all(|(_, runs)| runs.is_empty()), "{}: {left:?}", device.arch);
}

#[test]
fn a_hopper_serves_every_size() {
    check(&Device::ahead_of_time("sm_90a").unwrap(), Dtype::Bf16);
}

#[test]
fn an_ampere_serves_every_size() {
    check(&Device::ahead_of_time("sm_80").unwrap(), Dtype::Bf16);
}

#[test]
fn a_processor_serves_every_size() {
    check(&cpu::describe(Some(2)), Dtype::F32);
}

/// A winner of the H100 as its record has it.
struct Stored {
    winner: jitune::winner::Winner,
    recipe: Recipe,
}

/// The winners of a default tuning on an H100.
fn stored(file: &str) -> Vec<Stored> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning-db/winners/nvidia-h100-80gb-hbm3/2026-11-28");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let one = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let winner: jitune::winner::Winner = serde_json::from_value(record["rec"]["body"].clone()).unwrap();
        Stored { recipe: Recipe::new(winner.description.clone()).unwrap(), winner }
    };
    text.lines().map(one).collect()
}

/// Sizes and caches that nobody tuned, of every op of a model's steps, answered by winners of the H100 that are none of the
/// portable ones; what differs between two caches is asked with the least and with a large one.
#[test]
fn the_winners_of_an_h100_answer_every_size_and_cache() {
    for file in ["journal.jsonl", "qwen3-0.6b.jsonl"] {
        let stored = stored(file);
        let contract = |p: &Problem| -> String {
            let kept = |d: &&jitune::problem::DimDef| d.part == Part::Contract;
            let dims = p.op().dims.iter().filter(kept).map(|d| format!("{}={}", d.name, p.dim(d.name)));
            format!("{} {} {:?}", p.op().name, p.types(), dims.collect::<Vec<_>>())
        };
        let mut families: BTreeMap<String, Vec<&Stored>> = BTreeMap::new();
        for s in &stored {
            families.entry(contract(&s.winner.problem)).or_default().push(s);
        }
        let answered = |list: &[&Stored], changes: &[(&str, i64)]| {
            list.iter().rev().any(|s| {
                let asked = s.winner.problem.with(changes).unwrap_or_else(|e| panic!("{changes:?}: {e}"));
                let d = &s.winner.device;
                !s.recipe.description.portable
                    && s.recipe.serves(&s.winner.problem, &asked, d, &s.winner.config).is_ok()
            })
        };
        let steps = 1..=MOST;
        let mut ops = std::collections::BTreeSet::new();
        // A probe's portable winner serves what no bucket does.
        for list in families.values().filter(|list| list.iter().any(|s| !s.recipe.description.portable)) {
            let op = list[0].winner.problem.op().name;
            ops.insert(op);
            let asked: Vec<Vec<(&str, i64)>> = match op {
                "matmul" => steps.clone().map(|m| vec![("m", m)]).collect(),
                "qkv" => steps.clone().map(|m| vec![("m", m), ("pages", 100_000), ("max_pos", 131_072)]).collect(),
                "rmsnorm" | "argmax" => steps.clone().map(|rows| vec![("rows", rows)]).collect(),
                "embedding" => steps.clone().map(|t| vec![("tokens", t), ("vocab", 1 + t * 31)]).collect(),
                "decode" => {
                    let batches = (1..=256).flat_map(|b| [1, 63, 4096, 5000, 131_072].map(|c| (b, c)));
                    let pages = |i: i64| [1, 100, 100_000][i as usize % 3];
                    batches.map(|(b, c)| vec![("batch", b), ("context", c), ("pages", pages(b))]).collect()
                }
                "paged_attention" => {
                    let sizes =
                        steps.clone().flat_map(|t| [(1, t), (t.min(256), 5000), (3, 131_072)].map(|(b, c)| (t, b, c)));
                    sizes.map(|(t, b, c)| vec![("tokens", t), ("batch", b), ("context", c), ("pages", 2048)]).collect()
                }
                _ => continue,
            };
            let refused: Vec<_> = asked.par_iter().filter(|changes| !answered(list, changes)).collect();
            assert!(
                refused.is_empty(),
                "{file}, {}: {} refused, {:?}",
                list[0].winner.problem,
                refused.len(),
                refused[0]
            );
        }
        assert!(ops.len() >= 7, "{ops:?}");
    }
}

/// What is shipped is what a look-up finds: no template, reference, option or constant changed since it was measured. Where
/// this fails with reason, the winners are measured anew.
#[test]
fn the_shipped_winners_are_of_the_templates_as_they_are() {
    let library = Library::built_in().unwrap();
    let h100 = "nvidia-h100-80gb-hbm3/2026-11-28";
    for (folder, file) in
        [(h100, "journal.jsonl"), (h100, "qwen3-0.6b.jsonl"), ("nvidia-h200/2026-11-29", "winners.jsonl")]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning-db/winners").join(folder);
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let mut stale = Vec::new();
        for line in text.lines() {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            let record: jitune::db::Record = serde_json::from_value(line["rec"].take()).unwrap();
            let winner = jitune::journal::winner(&record).unwrap();
            let compiler = record.key.get("compiler").unwrap().to_string();
            let templates = library.for_problem(&winner.problem, &winner.device).unwrap();
            let context = jitune::key::Context { device: winner.device.clone(), compiler };
            let today = context.winner(&library, &winner.problem, &templates);
            stale.extend(today.diff(&record.key).into_iter().map(|d| format!("{}: {d}", winner.problem)));
        }
        assert!(stale.is_empty(), "{file}: {} differ, {}", stale.len(), stale[0]);
    }
}

#[test]
fn any_context_is_served() {
    let library = Library::built_in().unwrap();
    for (device, dtype) in [
        (Device::ahead_of_time("sm_90a").unwrap(), "bf16"),
        (Device::ahead_of_time("sm_80").unwrap(), "bf16"),
        (cpu::describe(Some(2)), "f32"),
    ] {
        for head_dim in [64, 128] {
            let of = |batch: u32, context: u32| -> Problem {
                let text = format!("decode batch={batch} context={context} heads=32 kv_heads=8 head_dim={head_dim}");
                format!("{text} dtype={dtype}").parse().unwrap()
            };
            let w = winner(&library, of(4, 4096), &device);
            for (batch, context) in [(1, 1), (1, 63), (7, 64), (256, 5000), (3, 131_072), (65_535, 2)] {
                let asked = of(batch, context);
                assert!(
                    w.template.recipe.serves(&w.problem, &asked, &device, &w.config).is_ok(),
                    "{asked}: {}",
                    w.config
                );
            }
        }
    }
}

/// A portable template takes whatever its ops allow, with the code of one artifact a dtype.
#[test]
fn a_portable_template_serves_any_problem_of_its_ops() {
    let library = Library::built_in().unwrap();
    let pairs = [
        ("matmul m=1 n=2 k=1", "matmul m=8191 n=1001 k=77 epilogue=bias_residual"),
        ("matmul m=1 n=2 k=1", "matmul m=3 n=1002 k=77 epilogue=bias_swiglu"),
        (
            "qkv m=1 k=1 heads=1 kv_heads=1 head_dim=2",
            "qkv m=7 k=99 heads=6 kv_heads=2 head_dim=258 bias=1 qk_norm=1 page=7",
        ),
        (
            "decode batch=1 context=1 heads=1 kv_heads=1 head_dim=1",
            "decode batch=65536 context=3 heads=6 kv_heads=2 head_dim=515 page=7",
        ),
        (
            "paged_attention tokens=1 batch=1 context=1 heads=1 kv_heads=1 head_dim=1",
            "paged_attention tokens=8191 batch=300 context=99 heads=6 kv_heads=2 head_dim=515 page=7",
        ),
        (
            "attention batch=1 q=1 kv=1 heads=1 kv_heads=1 head_dim=1",
            "attention batch=3 q=70 kv=3 heads=6 kv_heads=2 head_dim=1030 causal=0",
        ),
        ("rmsnorm rows=1 cols=1", "rmsnorm rows=70000 cols=100001 residual=1 | eps=1e-3"),
        ("layernorm rows=1 cols=1", "layernorm rows=70000 cols=3"),
        ("softmax rows=1 cols=1", "softmax rows=70000 cols=3"),
        ("argmax rows=1 cols=1", "argmax rows=70000 cols=3"),
        ("sample rows=1 cols=1", "sample rows=70000 cols=3"),
        ("sample rows=1 cols=1", "sample rows=3 cols=151936 top=20"),
        ("advance words=1 ids=1 rows=1", "advance words=70000 ids=9000 rows=300"),
        ("embedding tokens=1 vocab=1 hidden=1", "embedding tokens=70000 vocab=9 hidden=33"),
        ("rope tokens=1 heads=1 head_dim=2", "rope tokens=70000 heads=3 head_dim=34"),
        ("silu_mul rows=1 cols=1", "silu_mul rows=70000 cols=3"),
        ("gelu rows=1 cols=1", "gelu rows=70000 cols=3"),
    ];
    for device in [Device::ahead_of_time("sm_80").unwrap(), cpu::describe(Some(2))] {
        for (tuned, asked) in pairs {
            let of = |text: &str| -> Problem {
                let (head, rest) = text.split_once('|').unwrap_or((text, ""));
                format!("{head} dtype={} | {rest}", if device.target == Target::Cpu { "f32" } else { "bf16" })
                    .parse()
                    .unwrap()
            };
            let (tuned, asked) = (of(tuned), of(asked));
            let list = library.taking(&tuned, &device).unwrap();
            let recipes: Vec<&Recipe> = list.iter().map(|t| &t.recipe).filter(|r| r.description.portable).collect();
            assert_eq!(recipes.len(), 1, "{tuned}");
            let config = Config::default();
            assert!(recipes[0].serves(&tuned, &asked, &device, &config).is_ok(), "{asked} on {}", device.arch);
            assert!(!recipes[0].launch(&asked, &device, &config).unwrap().kernels.is_empty());
        }
    }
}

/// What a default tuning stores last: of each op and dtype that a model calls, the winner that answers anything.
#[test]
fn every_op_has_a_probe_that_portable_templates_alone_take() {
    let library = Library::built_in().unwrap();
    for device in
        [Device::ahead_of_time("sm_80").unwrap(), Device::ahead_of_time("sm_90a").unwrap(), cpu::describe(None)]
    {
        // What is several ops in one has none: the ops by themselves answer.
        for op in jitune::problem::OPS.iter().filter(|op| !op.name.starts_with("norm_")) {
            for dtype in [Dtype::Bf16, Dtype::F32] {
                let probe = op.probe(dtype.into()).unwrap_or_else(|| panic!("{} has no probe", op.name));
                let list = library.for_problem(&probe, &device).unwrap();
                let names: Vec<&str> = list.iter().map(|t| t.name()).collect();
                assert!(
                    list.len() == 1 && list[0].recipe.description.portable,
                    "{probe} on {}: {names:?}",
                    device.arch
                );
            }
        }
    }
}
