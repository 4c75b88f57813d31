//! Attention of one new token per sequence over a paged KV cache.

use super::attention::{QUERY, check_heads, softmax_average};
use super::tensor::IndexFill;
use super::{DimDef, Expected, Fill, Inputs, Layout, OpDef, Problem, Storage, Tensor, cache};

pub(super) static OP: OpDef = OpDef {
    name: "decode",
    summary: "attention of one token per sequence over a paged KV cache with a block table",
    probe: "decode batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5",
    dims: &[
        DimDef::size("batch"),
        DimDef::size("context"),
        DimDef::contract("heads"),
        DimDef::contract("kv_heads"),
        DimDef::contract("head_dim"),
        DimDef::option("page", 64),
        DimDef::workload("lens", &["full", "mixed"]),
        DimDef::capacity("max_pages", max_pages),
        DimDef::capacity("pages", |p| p.dim("batch") * p.dim("max_pages")),
    ],
    check: |p| {
        if p.dim("max_pages") < max_pages(p) {
            return Err(format!(
                "a block table of {} pages a sequence does not hold the context; give max_pages=",
                p.dim("max_pages")
            ));
        }
        check(p)
    },
    tensors,
    flops: |p| 4.0 * (tokens(p) * p.dim("heads") * p.dim("head_dim")) as f64,
    units: |p| (p.dim("batch") * p.dim("heads")) as u64,
    unit_cost: |p| (2 * p.dim("context") * p.dim("head_dim")) as u64,
    unit,
    slack: 2.0,
    mixed: false,
    scaled: false,
    cached: true,
};

/// More sequences than any server decodes at once; keeps the sums over them short.
pub(crate) const MAX_BATCH: i64 = 1 << 16;

pub(super) fn check(p: &Problem) -> Result<(), String> {
    if p.dim("page") < 1 {
        return Err("page must be at least 1".into());
    }
    if p.dim("batch") > MAX_BATCH {
        return Err(format!("batch must be at most {MAX_BATCH}"));
    }
    if p.dim("pages") < 1 {
        return Err("pages must be at least 1".into());
    }
    check_heads(p)
}

pub(super) fn max_pages(p: &Problem) -> i64 {
    let page = p.dim("page").max(1);
    (p.dim("context") + page - 1) / page
}

/// The length of sequence `b`: the context, or for mixed lengths spread evenly down to 1, the first one longest.
pub(super) fn length(context: i64, batch: i64, b: i64) -> i64 {
    (context - context * b / batch).max(1)
}

/// KV tokens of all sequences together.
fn tokens(p: &Problem) -> i64 {
    let (batch, context) = (p.dim("batch"), p.dim("context"));
    if p.word("lens") == "full" { batch * context } else { (0..batch).map(|b| length(context, batch, b)).sum() }
}

fn tensors(p: &Problem) -> Vec<Tensor> {
    let t = p.types.x;
    let [b, context, h, hk, d] = ["batch", "context", "heads", "kv_heads", "head_dim"].map(|name| p.dim(name));
    let [page, max_pages, pages] = ["page", "max_pages", "pages"].map(|name| p.dim(name));
    let (unit, kv) = (cache::fill(p), cache::storage(p));
    let lens = if p.word("lens") == "full" { IndexFill::Full(context) } else { IndexFill::Lengths(context) };
    let read = tokens(p).saturating_mul(hk).saturating_mul(d);
    let mut list = vec![
        Tensor::input("q", t, &[b, h, d], QUERY),
        Tensor::input("k_cache", kv, &[pages, hk, page, d], unit)
            .laid(Layout::Paged)
            .touching(read.min(pages.saturating_mul(hk).saturating_mul(page).saturating_mul(d))),
        Tensor::input("v_cache", kv, &[pages, hk, page, d], unit)
            .laid(Layout::Paged)
            .touching(read.min(pages.saturating_mul(hk).saturating_mul(page).saturating_mul(d))),
    ];
    list.extend(cache::scales(p, cache::READ));
    list.extend([
        Tensor::input("block_table", Storage::I32, &[b, max_pages], Fill::Index(IndexFill::Distinct(pages))),
        Tensor::input("lens", Storage::I32, &[b], Fill::Index(lens)),
        Tensor::output("o", t, &[b, h, d]),
    ]);
    list
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    let [h, hk, d, page, max_pages] =
        ["heads", "kv_heads", "head_dim", "page", "max_pages"].map(|name| p.dim(name) as u64);
    let (b, head) = (unit / h, unit % h);
    let [of_k, of_v] = cache::worth(p, inputs, head / (h / hk));
    let q_row: Vec<f64> = (0..d).map(|c| inputs.get("q").at(unit * d + c) * of_k).collect();
    let table = inputs.get("block_table");
    let row = |j: u64| {
        let physical = table.at(b * max_pages + j / page) as u64;
        ((physical * hk + head / (h / hk)) * page + j % page) * d
    };
    let (k, v) = (inputs.get("k_cache"), inputs.get("v_cache"));
    let keys = inputs.get("lens").at(b) as u64;
    let value = softmax_average(&q_row, keys, k, v, row);
    out.extend(value.into_iter().zip(unit * d..).map(|(value, index)| Expected::new("o", index, value * of_v)));
}
