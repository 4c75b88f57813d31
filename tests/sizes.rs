//! The sizes between the buckets of a default tuning that the H100's stored winners refuse, as `docs/performance.md` lists
//! them: no device is needed, since a recipe says by itself what its code serves.

use jitune::problem::Problem;
use jitune::recipe::Recipe;
use jitune::winner::Winner;
use std::collections::BTreeMap;
use std::path::Path;

/// The size of each op that differs between the buckets of a model.
const SIZES: [(&str, &str); 5] =
    [("matmul", "m"), ("rmsnorm", "rows"), ("embedding", "tokens"), ("argmax", "rows"), ("decode", "batch")];
/// Of a prompt, the longest of the default buckets.
const MOST: i64 = 2048;

fn winners() -> BTreeMap<String, Winner> {
    let journal = "tuning-db/winners/nvidia-h100-80gb-hbm3/2026-11-25/journal.jsonl";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(journal)).unwrap();
    let record = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["rec"].take();
    let winner = |mut r: serde_json::Value| serde_json::from_value::<Winner>(r["body"].take()).unwrap();
    let of_winners = text.lines().filter(|l| l.contains(r#""kind":"winner""#)).map(record);
    of_winners.map(winner).map(|w| (w.problem.to_string(), w)).collect()
}

/// The sizes that none of the winners of one family serves, as runs.
fn refused(list: &[(Winner, Recipe)], size: &str) -> Vec<(i64, i64)> {
    let most = list.iter().map(|(w, _)| w.problem.dim(size)).max().unwrap().min(MOST);
    let served = |v: i64| {
        list.iter().any(|(w, recipe)| {
            let asked = w.problem.with(&[(size, v)]);
            asked.is_ok_and(|asked| recipe.serves(&w.problem, &asked, &w.device, &w.config))
        })
    };
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for v in (1..=most).filter(|v| !served(*v)) {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == v => run.1 = v,
            _ => runs.push((v, v)),
        }
    }
    runs
}

#[test]
fn what_a_default_tuning_leaves_unanswered() {
    let mut families: BTreeMap<String, Vec<(Winner, Recipe)>> = BTreeMap::new();
    for w in winners().into_values() {
        let Some((_, size)) = SIZES.iter().find(|(op, _)| *op == w.problem.op().name) else { continue };
        // Outside of the model, whose products but the last have an epilogue.
        let of_model = match w.problem.op().name {
            "matmul" => w.problem.word("epilogue") != "none" || w.problem.dim("n") == 128_256,
            "decode" => w.problem.dim("context") == 4096,
            _ => w.problem.to_string().find("residual").is_none(),
        };
        if of_model {
            let same: Problem =
                w.problem.with(&[(size, 1), ("pages", 64)]).or_else(|_| w.problem.with(&[(size, 1)])).unwrap();
            let recipe = Recipe::new(w.description.clone()).unwrap();
            families.entry(same.to_string()).or_default().push((w, recipe));
        }
    }
    let text = |(name, list): (&String, &Vec<(Winner, Recipe)>)| {
        let op = list[0].0.problem.op().name;
        let size = SIZES.iter().find(|(o, _)| *o == op).unwrap().1;
        let short = if op == "matmul" {
            let p: Problem = name.parse().unwrap();
            format!("{}x{} {}", p.dim("n"), p.dim("k"), p.word("epilogue"))
        } else {
            op.to_string()
        };
        format!("{short}: {:?}", refused(list, size))
    };
    let mut found: Vec<String> = families.iter().map(text).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "128256x2048 none: [(2, 3), (5, 8), (17, 24)]",
            "16384x2048 swiglu: [(17, 24), (33, 128)]",
            "2048x2048 residual: [(2, 3), (5, 8), (17, 24), (33, 64)]",
            "2048x8192 residual: [(2, 3), (5, 8), (33, 64)]",
            "3072x2048 rope_kv: [(2, 3), (5, 8), (17, 24), (33, 128)]",
            "argmax: []",
            "decode: []",
            "embedding: []",
            "rmsnorm: []",
        ]
    );
}
