//! Which of the decode winners of a few contexts answers for another context, and what it launches there.

use crate::{Driver, cubin, driver, make, sealed};
use jitune::backend::cuda;
use jitune::bundle::Bundle;
use jitune::device::Device;
use jitune::problem::Problem;
use jitune::recipe::{Config, Recipe};
use jitune::runtime::{Kernel, Match, Runtime};
use jitune::winner::Winner;
use std::path::Path;

/// Llama-3.2-1b's, over a cache that an engine would have.
fn decode(batch: i64, context: i64) -> Problem {
    let text = format!("decode batch={batch} context={context} heads=32 kv_heads=8 head_dim=64 dtype=bf16");
    make::problem(&format!("{text} | pages=4096 max_pages=128"))
}

/// A runtime on these winners, with what stands for their code.
fn runtime(winners: impl IntoIterator<Item = Winner>) -> Runtime {
    let one = |w: Winner| {
        let recipe = Recipe::new(w.description.clone()).unwrap();
        let code = cubin(&recipe.launch(&w.problem, &w.device, &w.config).unwrap());
        sealed(w, code)
    };
    Runtime::cuda(&Bundle::seal(winners.into_iter().map(one)).unwrap(), 0).unwrap()
}

/// The batch and the context that the answer was tuned for.
fn tuned(kernel: &Kernel) -> (i64, i64) {
    let p = match kernel.rung() {
        Match::Exact => *kernel.problem(),
        Match::Bucket { tuned } => tuned,
    };
    (p.dim("batch"), p.dim("context"))
}

/// Parts of each sequence in the launch of a kernel whose blocks have one key-value head each, of all queries that share it.
fn parts(driver: &Driver, runtime: &Runtime, kernel: &Kernel) -> i64 {
    let memory = runtime.allocate_all(kernel.problem()).unwrap();
    // SAFETY: nothing computes here.
    let views = memory.iter().map(|m| unsafe { m.view().assume_in_range() });
    let bound = kernel.bind(views, runtime.workspace(kernel).unwrap()).unwrap();
    let first = driver.launched();
    bound.launch(&runtime.stream().unwrap()).unwrap();
    let launched = driver.launch(first);
    assert_eq!(i64::from(launched.grid[1]), kernel.problem().dim("batch"));
    assert_eq!(launched.grid[0] % 8, 0, "key-value heads");
    i64::from(launched.grid[0] / 8)
}

/// The winners of an H100 for 512 and 4096 tokens, with the times that they took there: 512 tokens answer for fewer, and above
/// those 4096, whose kernels are asked for less than they were tuned for rather than more.
#[test]
fn decode_between_two_contexts_is_answered_by_the_longer_one() {
    let driver = driver();
    let here = cuda::describe(0).unwrap();
    let file = "tuning-db/winners/nvidia-h100-80gb-hbm3/2026-11-28/journal.jsonl";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let read = |line: &str| -> Option<Winner> {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let winner: Winner = serde_json::from_value(record["rec"]["body"].clone()).ok()?;
        let decodes = winner.problem.op().name == "decode" && !winner.description.portable;
        decodes.then(|| Winner { device: Device { silicon: here.silicon.clone(), ..winner.device.clone() }, ..winner })
    };
    let winners: Vec<Winner> = text.lines().filter_map(read).collect();
    let runtime = runtime(winners.clone());
    assert_eq!(runtime.problems().len(), 14);
    for batch in [1, 4, 16, 32, 64, 128, 256] {
        for (context, by) in
            [(100, 512), (256, 512), (512, 512), (1024, 4096), (2048, 4096), (4096, 4096), (8192, 4096)]
        {
            let kernel = runtime.lookup(&decode(batch, context)).unwrap();
            assert_eq!(tuned(&kernel), (batch, by), "{batch}, {context}");
            let winner = winners.iter().find(|w| w.problem.bucket() == decode(batch, by).bucket()).unwrap();
            let (split, parts) = (winner.config.get("split").unwrap(), parts(&driver, &runtime, &kernel));
            assert!(
                parts * split >= context && (parts - 1) * split < context,
                "{batch}, {context}: {parts} of {split}"
            );
        }
    }
}

/// With winners that take what their template says, for the contexts that a tuning has, no context is answered by a kernel that
/// takes much longer than the best one for it.
#[test]
fn no_context_is_far_from_its_best_kernel() {
    let driver = driver();
    let device = cuda::describe(0).unwrap();
    let recipe = &make::LIBRARY.get(device.target, "decode_split").unwrap().recipe;
    let cost = |p: &Problem, config: &Config| recipe.instance(p, &device, config).unwrap().cost_us().unwrap();
    let best = |p: &Problem| {
        let candidates = jitune::space::enumerate(recipe, p, &device).unwrap().candidates;
        candidates.into_iter().next().unwrap().config
    };
    let winner = |p: Problem| {
        let mut winner = make::winner("decode_split", &p, &device, best(&p), b"");
        winner.evidence.median_us = cost(&p, &winner.config);
        winner
    };
    for (contexts, most) in [(&[256, 512, 1024, 2048, 4096][..], 1.2), (&[512, 4096], 1.45)] {
        let buckets = [1, 4, 16, 32].into_iter().flat_map(|b| contexts.iter().map(move |c| decode(b, *c)));
        let winners: Vec<Winner> = buckets.map(winner).collect();
        let runtime = runtime(winners.clone());
        for batch in [1, 2, 4, 8, 32] {
            for context in [64, 256, 300, 512, 700, 1024, 1500, 2048, 3000, 4096, 8000] {
                let asked = decode(batch, context);
                let kernel = runtime.lookup(&asked).unwrap();
                let (batch, bucket) = tuned(&kernel);
                let config = &winners.iter().find(|w| w.problem == decode(batch, bucket)).unwrap().config;
                let times = cost(&asked, config) / cost(&asked, &best(&asked));
                assert!(times < most, "{asked}: by {batch}, {bucket}: {times}");
                let (split, parts) = (config.get("split").unwrap(), parts(&driver, &runtime, &kernel));
                assert!(parts * split >= context && (parts - 1) * split < context, "{asked}: {parts} of {split}");
            }
        }
    }
}
