//! The product that begins an attention layer: Q, K and V of new tokens, rotated, with K and V written to the paged cache.

use super::tensor::IndexFill;
use super::{
    DimDef, Expected, Fill, Inputs, LEVEL, LEVELS, Layout, OpDef, Problem, Storage, Tensor, cache, matmul, scaled,
    scaled_x,
};

pub(super) static OP: OpDef = OpDef {
    name: "qkv",
    summary: "Q, K and V of new tokens, with bias or q/k norms, RoPE and the KV-cache write",
    probe: "qkv m=3 k=7 heads=3 kv_heads=1 head_dim=6 page=5",
    dims: &[
        DimDef::size("m"),
        DimDef::contract("k"),
        DimDef::contract("heads"),
        DimDef::contract("kv_heads"),
        DimDef::contract("head_dim"),
        DimDef::option("page", 64),
        DimDef::option("bias", 0),
        DimDef::option("qk_norm", 0),
        DimDef::derived("n", width),
        DimDef::derived("residual", |_| 0),
        DimDef::derived("swiglu", |_| 0),
        DimDef::workload("padding", &["none", "some"]),
        DimDef::workload(LEVEL, LEVELS),
        DimDef::capacity("pages", pages),
        DimDef::capacity("max_pos", |_| 4096),
        DimDef::real("eps", 1e-6),
    ],
    check,
    tensors,
    flops: |p| 2.0 * p.dim("m") as f64 * p.dim("n") as f64 * p.dim("k") as f64,
    units: |p| (p.dim("m") * p.dim("n") / columns(p)) as u64,
    unit_cost: |p| (2 * p.dim("k") * columns(p)) as u64,
    unit,
    slack: 1.0,
    mixed: false,
    scaled: true,
    cached: false,
};

/// Columns of x·Wᵀ: the Q heads, the K heads, the V heads.
pub(super) fn width(p: &Problem) -> i64 {
    (p.dim("heads").saturating_add(2 * p.dim("kv_heads"))).saturating_mul(p.dim("head_dim"))
}

/// Columns that one unit of the reference covers: a pair that rotates, or the head that is normed.
pub(super) fn columns(p: &Problem) -> i64 {
    if p.dim("qk_norm") == 1 { p.dim("head_dim") } else { 2 }
}

/// Two times the rows, so that the slots that are written are scattered.
pub(super) fn pages(p: &Problem) -> i64 {
    2 * (p.dim("m") + p.dim("page") - 1) / p.dim("page").max(1)
}

/// Whether `padding=some` makes `row` one that pads a bucket.
fn padding(row: u64) -> bool {
    row % 4 == 3
}

/// The slots of a test, with -1 where a row pads.
pub(super) fn padded(slots: &mut [i32]) {
    slots.iter_mut().enumerate().filter(|(row, _)| padding(*row as u64)).for_each(|(_, slot)| *slot = -1);
}

fn check(p: &Problem) -> Result<(), String> {
    if p.dim("bias") > 1 {
        return Err("bias is 0 or 1".into());
    }
    check_places(p)?;
    scaled::check(p)
}

/// Says why rows of these heads cannot be rotated and written to such a cache.
pub(super) fn check_places(p: &Problem) -> Result<(), String> {
    let [m, d, page, pages] = ["m", "head_dim", "page", "pages"].map(|name| p.dim(name));
    if d % 2 != 0 {
        return Err("RoPE rotates pairs, so head_dim must be even".into());
    }
    if p.dim("qk_norm") > 1 {
        return Err("qk_norm is 0 or 1".into());
    }
    if width(p) > i64::from(i32::MAX) {
        return Err("(heads + 2·kv_heads)·head_dim must fit 31 bits".into());
    }
    if page < 1 || pages.saturating_mul(page) < m {
        return Err(format!("the cache has {} slots (pages·page) for {m} rows; give pages=", pages * page));
    }
    if pages.saturating_mul(page) > i64::from(i32::MAX) {
        return Err("slots are 32-bit numbers, so pages·page must fit 31 bits".into());
    }
    if p.dim("max_pos") < 1 {
        return Err("max_pos must be at least 1".into());
    }
    Ok(())
}

pub(super) const UNIT: Fill = Fill::Uniform { scale: 1.732_050_8 };

pub(super) fn tensors(p: &Problem) -> Vec<Tensor> {
    let mut list = scaled_x::tensors(p);
    list.extend(scaled::tensors(p, Layout::RopePairs, p.dim("k")));
    if p.dim("bias") == 1 {
        list.push(Tensor::input("bias", p.types.y, &[p.dim("n")], UNIT).laid(Layout::RopePairs));
    }
    list.extend(behind_product(p));
    list
}

/// The scale by which some of what is written is beyond the largest code, of keys and values of unit variance.
const WRITTEN: f32 = 0.005;

/// What the product's rows go through, and where they go.
pub(super) fn behind_product(p: &Problem) -> Vec<Tensor> {
    let t = p.types.y;
    let [m, heads, kv] = ["m", "heads", "kv_heads"].map(|name| p.dim(name));
    let [d, page, pages, max_pos] = ["head_dim", "page", "pages", "max_pos"].map(|name| p.dim(name));
    let slots = pages.saturating_mul(page);
    let (slots, written) = match p.word("padding") {
        "none" => (IndexFill::Distinct(slots), m),
        _ => (IndexFill::Padded(slots), m - m / 4),
    };
    let mut list = Vec::new();
    if p.dim("qk_norm") == 1 {
        list.push(Tensor::input("q_norm", t, &[d], UNIT).laid(Layout::RopePairsOfHead));
        list.push(Tensor::input("k_norm", t, &[d], UNIT).laid(Layout::RopePairsOfHead));
    }
    list.push(Tensor::input("positions", Storage::I32, &[m], Fill::Index(IndexFill::Below(max_pos))));
    list.push(Tensor::input("slots", Storage::I32, &[m], Fill::Index(slots)));
    let table = Tensor::input("cos_sin", Storage::F32, &[max_pos, d / 2, 2], Fill::CosSin);
    list.push(table.touching(m.min(max_pos).saturating_mul(d)));
    list.extend(cache::scales(p, WRITTEN));
    list.push(Tensor::output("y", t, &[m, heads.saturating_mul(d)]));
    for name in ["k_cache", "v_cache"] {
        let touched = written.saturating_mul(kv).saturating_mul(d);
        list.push(Tensor::output(name, cache::storage(p), &[pages, kv, page, d]).laid(Layout::Paged).touching(touched));
    }
    list
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    unit_of(p, inputs, unit, out, |row| matmul::row_of(p, inputs, row));
}

/// One unit of the product of rows that are given.
pub(super) fn unit_of(
    p: &Problem,
    inputs: &Inputs,
    unit: u64,
    out: &mut Vec<Expected>,
    rows: impl Fn(u64) -> Vec<f64>,
) {
    let (n, step) = (p.dim("n") as u64, columns(p) as u64);
    let (row, first) = (unit / (n / step), unit % (n / step) * step);
    let (x, w) = (rows(row), scaled::Weights::of(p, inputs));
    let product = |col: u64| w.dot(&x, col) + if p.dim("bias") == 1 { inputs.get("bias").at(col) } else { 0.0 };
    finished(p, inputs, [row, first], (first..first + step).map(product).collect(), out);
}

/// What becomes of [`columns`] adjacent values of the product, from that column of that row on.
pub(super) fn finished(
    p: &Problem,
    inputs: &Inputs,
    [row, first]: [u64; 2],
    mut values: Vec<f64>,
    out: &mut Vec<Expected>,
) {
    let [heads, kv, d, page] = ["heads", "kv_heads", "head_dim", "page"].map(|name| p.dim(name) as u64);
    let (head, from) = (first / d, first % d);
    if p.dim("qk_norm") == 1 && head < heads + kv {
        let weight = inputs.get(if head < heads { "q_norm" } else { "k_norm" });
        let mean = values.iter().map(|v| v * v).sum::<f64>() / d as f64;
        let scale = 1.0 / (mean + p.real("eps")).sqrt();
        values.iter_mut().zip(0..).for_each(|(v, c)| *v *= scale * weight.at(c));
    }
    let (name, start, worth) = if head < heads {
        ("y", row * heads * d + first, 1.0)
    } else {
        let slot = inputs.get("slots").at(row);
        if slot < 0.0 {
            return;
        }
        let slot = slot as u64;
        let (which, h) = if head < heads + kv { (0, head - heads) } else { (1, head - heads - kv) };
        let at = ((slot / page * kv + h) * page + slot % page) * d + from;
        (["k_cache", "v_cache"][which], at, cache::worth(p, inputs, h)[which])
    };
    let (table, at) = (inputs.get("cos_sin"), inputs.get("positions").at(row) as u64 * d + from);
    for (pair, j) in values.chunks_exact(2).zip((0..).step_by(2)) {
        let rotated = head < heads + kv;
        let (cos, sin) = if rotated { (table.at(at + j), table.at(at + j + 1)) } else { (1.0, 0.0) };
        out.push(Expected::new(name, start + j, (pair[0] * cos - pair[1] * sin) / worth));
        out.push(Expected::new(name, start + j + 1, (pair[0] * sin + pair[1] * cos) / worth));
    }
}
