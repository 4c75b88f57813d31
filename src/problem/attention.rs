//! Attention over a whole prompt (prefill).

use super::{DimDef, Expected, Fill, Input, Inputs, OpDef, Problem, Tensor};

pub(super) static OP: OpDef = OpDef {
    name: "attention",
    summary: "o = softmax(q·kᵀ/√d)·v over a prompt, causal or full, with grouped KV heads",
    probe: "attention batch=2 q=3 kv=7 heads=4 kv_heads=2 head_dim=36",
    dims: &[
        DimDef::size("batch"),
        DimDef::size("q"),
        DimDef::size("kv"),
        DimDef::contract("heads"),
        DimDef::contract("kv_heads"),
        DimDef::contract("head_dim"),
        DimDef::option("causal", 1),
    ],
    check,
    tensors,
    flops,
    units: |p| (p.dim("batch") * p.dim("heads") * p.dim("q")) as u64,
    unit_cost: |p| (2 * p.dim("kv") * p.dim("head_dim")) as u64,
    unit,
    slack: 2.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) fn check_heads(p: &Problem) -> Result<(), String> {
    if p.dim("heads") % p.dim("kv_heads") != 0 {
        return Err("heads must be a multiple of kv_heads".into());
    }
    Ok(())
}

fn check(p: &Problem) -> Result<(), String> {
    if p.dim("causal") > 1 {
        return Err("causal is 0 or 1".into());
    }
    check_heads(p)
}

fn tensors(p: &Problem) -> Vec<Tensor> {
    let t = p.types.x;
    let [b, q, kv, h, hk, d] = ["batch", "q", "kv", "heads", "kv_heads", "head_dim"].map(|name| p.dim(name));
    let unit = Fill::Uniform { scale: 3f32.sqrt() };
    vec![
        Tensor::input("q", t, &[b, q, h, d], QUERY),
        Tensor::input("k", t, &[b, hk, kv, d], unit),
        Tensor::input("v", t, &[b, hk, kv, d], unit),
        Tensor::output("o", t, &[b, q, h, d]),
    ]
}

/// Scores with a standard deviation of about 2: peaked enough that one wrongly masked key is seen.
pub(super) const QUERY: Fill = Fill::Uniform { scale: 3.464_101_6 };

/// Keys that query `i` sees: all, or those not later than it when both ends are aligned.
fn visible(p: &Problem, i: i64) -> i64 {
    let (q, kv) = (p.dim("q"), p.dim("kv"));
    if p.dim("causal") == 1 { (i + 1 + kv - q).clamp(0, kv) } else { kv }
}

/// Pairs of a query and a key that it sees: the sum of [`visible`] over the queries.
fn pairs(p: &Problem) -> i64 {
    let (q, kv) = (p.dim("q"), p.dim("kv"));
    // Of a causal one the last query sees all keys, and each before it one less, down to none.
    let first = (kv - q).max(0);
    if p.dim("causal") == 1 { (kv * (kv + 1) - first * (first + 1)) / 2 } else { q * kv }
}

fn flops(p: &Problem) -> f64 {
    let pairs = pairs(p);
    4.0 * (p.dim("batch") * p.dim("heads") * p.dim("head_dim")) as f64 * pairs as f64
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    let [q, kv, h, hk, d] = ["q", "kv", "heads", "kv_heads", "head_dim"].map(|name| p.dim(name) as u64);
    let (row, head) = (unit / h, unit % h);
    let (batch, i) = (row / q, row % q);
    let base = (batch * hk + head / (h / hk)) * kv * d;
    let at = (row * h + head) * d;
    let q_row: Vec<f64> = (0..d).map(|c| inputs.get("q").at(at + c)).collect();
    let (k, v) = (inputs.get("k"), inputs.get("v"));
    let keys = visible(p, i as i64) as u64;
    let value = softmax_average(&q_row, keys, k, v, |j| base + j * d);
    out.extend(value.into_iter().zip(at..).map(|(value, index)| Expected::new("o", index, value)));
}

/// One query row against `keys` keys and values, which start at the indices `row`; zeros where there is no key.
pub(super) fn softmax_average(q: &[f64], keys: u64, k: &Input, v: &Input, row: impl Fn(u64) -> u64) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let score = |j: u64| scale * q.iter().zip(row(j)..).map(|(x, at)| x * k.at(at)).sum::<f64>();
    let scores: Vec<f64> = (0..keys).map(score).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    let mut acc = vec![0.0; q.len()];
    for (s, j) in scores.iter().zip(0..) {
        let e = (s - top).exp();
        sum += e;
        for (a, at) in acc.iter_mut().zip(row(j)..) {
            *a += e * v.at(at);
        }
    }
    if sum > 0.0 {
        acc.iter_mut().for_each(|a| *a /= sum);
    }
    acc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pairs_are_the_sum_over_the_queries() {
        for (q, kv) in (1..=24).flat_map(|q| (1..=24).map(move |kv| (q, kv))) {
            for causal in [0, 1] {
                let text = format!("attention batch=1 q={q} kv={kv} heads=1 kv_heads=1 head_dim=8 causal={causal}");
                let p: Problem = text.parse().unwrap();
                assert_eq!(pairs(&p), (0..q).map(|i| visible(&p, i)).sum::<i64>(), "{p}");
            }
        }
    }

    /// No operation is counted one by one: the largest sizes are planned at once.
    #[test]
    fn the_operations_of_the_largest_sizes_are_known_at_once() {
        let most = 1i64 << 30;
        let text = format!("attention batch=1 q={most} kv={most} heads=1 kv_heads=1 head_dim=1 causal=1");
        let p: Problem = text.parse().unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(p.flops(), 4.0 * (most * (most + 1) / 2) as f64);
        assert!(begun.elapsed().as_millis() < 100, "{:?}", begun.elapsed());
    }
}
