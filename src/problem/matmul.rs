//! y = x·Wᵀ with its epilogues.

use super::tensor::IndexFill;
use super::{DimDef, Expected, Fill, Inputs, OpDef, Problem, Scalar, Tensor};

pub(super) static OP: OpDef = OpDef {
    name: "matmul",
    summary: "y = x·Wᵀ, with bias, residual add, SwiGLU, or RoPE and the KV-cache write",
    dims: &[
        DimDef::size("m"),
        DimDef::contract("n"),
        DimDef::contract("k"),
        DimDef::words("epilogue", &["none", "bias", "residual", "swiglu", "rope_kv", "bias_rope_kv"]),
        DimDef::option("heads", 0),
        DimDef::option("kv_heads", 0),
        DimDef::option("head_dim", 0),
        DimDef::option("page", 64),
        DimDef::capacity("pages", pages),
        DimDef::capacity("max_pos", |p| if has_rope(p) { 4096 } else { 0 }),
    ],
    check,
    tensors,
    flops: |p| 2.0 * p.dim("m") as f64 * p.dim("n") as f64 * p.dim("k") as f64,
    units: |p| (p.dim("m") * p.dim("n") / pair(p)) as u64,
    unit_cost: |p| (2 * p.dim("k") * pair(p)) as u64,
    unit,
    slack: 1.0,
};

fn has_bias(p: &Problem) -> bool {
    matches!(p.word("epilogue"), "bias" | "bias_rope_kv")
}

fn has_rope(p: &Problem) -> bool {
    matches!(p.word("epilogue"), "rope_kv" | "bias_rope_kv")
}

/// Whether it is a product whose operands alone are in E4M3.
pub(super) fn takes_e4m3(p: &Problem) -> bool {
    p.op().name == OP.name && matches!(p.word("epilogue"), "none" | "bias" | "residual")
}

/// Columns of x·Wᵀ that one unit of the reference covers: pairs where the epilogue mixes neighbours.
fn pair(p: &Problem) -> i64 {
    if p.word("epilogue") == "swiglu" || has_rope(p) { 2 } else { 1 }
}

/// Two times the rows, so that the slots that are written are scattered.
fn pages(p: &Problem) -> i64 {
    if has_rope(p) { 2 * (p.dim("m") + p.dim("page") - 1) / p.dim("page").max(1) } else { 0 }
}

fn check(p: &Problem) -> Result<(), String> {
    let [m, n, heads, kv_heads, d] = ["m", "n", "heads", "kv_heads", "head_dim"].map(|name| p.dim(name));
    if p.word("epilogue") == "swiglu" && n % 2 != 0 {
        return Err("swiglu pairs gate and up columns, so n must be even".into());
    }
    if !has_rope(p) {
        return Ok(());
    }
    if heads < 1 || kv_heads < 1 || d < 2 || d % 2 != 0 {
        return Err("rope_kv needs heads=, kv_heads= and an even head_dim=".into());
    }
    let width = (heads + 2 * kv_heads).saturating_mul(d);
    if n != width {
        return Err(format!("n must be (heads + 2·kv_heads)·head_dim = {width}"));
    }
    let (page, pages) = (p.dim("page"), p.dim("pages"));
    if page < 1 || pages * page < m {
        return Err(format!("the cache has {} slots (pages·page) for {m} rows; give pages=", pages * page));
    }
    if p.dim("max_pos") < 1 {
        return Err("max_pos must be at least 1".into());
    }
    Ok(())
}

fn tensors(p: &Problem) -> Vec<Tensor> {
    let (operand, t) = (Scalar::Elem(p.dtype), Scalar::Elem(p.dtype.result()));
    let [m, n, k] = ["m", "n", "k"].map(|name| p.dim(name));
    let unit = Fill::Uniform { scale: 3f32.sqrt() };
    let mut list = vec![
        Tensor::input("x", operand, &[m, k], unit),
        Tensor::input("w", operand, &[n, k], Fill::Uniform { scale: (3.0 / k as f32).sqrt() }),
    ];
    if has_bias(p) {
        list.push(Tensor::input("bias", t, &[n], unit));
    }
    if p.word("epilogue") == "residual" {
        list.push(Tensor::input("residual", t, &[m, n], unit));
    }
    let mut width = n / if p.word("epilogue") == "swiglu" { 2 } else { 1 };
    if has_rope(p) {
        let [heads, kv, d, page, pages, max_pos] =
            ["heads", "kv_heads", "head_dim", "page", "pages", "max_pos"].map(|name| p.dim(name));
        width = heads * d;
        list.push(Tensor::input("positions", Scalar::I32, &[m], Fill::Index(IndexFill::Below(max_pos))));
        list.push(Tensor::input("slots", Scalar::I32, &[m], Fill::Index(IndexFill::Distinct(pages * page))));
        let table = Tensor::input("cos_sin", Scalar::F32, &[max_pos, d / 2, 2], Fill::CosSin);
        list.push(table.touching(m.min(max_pos).saturating_mul(d)));
        list.push(Tensor::output("y", t, &[m, width]));
        for name in ["k_cache", "v_cache"] {
            list.push(Tensor::output(name, t, &[pages, kv, page, d]).touching(m.saturating_mul(kv).saturating_mul(d)));
        }
    } else {
        list.push(Tensor::output("y", t, &[m, width]));
    }
    list
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    let [n, k] = ["n", "k"].map(|name| p.dim(name) as u64);
    let step = pair(p) as u64;
    let (row, col) = (unit / (n / step), unit % (n / step) * step);
    let (x, w) = (inputs.get("x"), inputs.get("w"));
    let product = |col: u64| {
        let dot: f64 = (0..k).map(|i| x.at(row * k + i) * w.at(col * k + i)).sum();
        dot + if has_bias(p) { inputs.get("bias").at(col) } else { 0.0 }
    };
    match p.word("epilogue") {
        "swiglu" => {
            let (gate, up) = (product(col), product(col + 1));
            out.push(Expected::new("y", row * n / 2 + col / 2, gate / (1.0 + (-gate).exp()) * up));
        }
        "rope_kv" | "bias_rope_kv" => rope_kv(p, inputs, row, col, [product(col), product(col + 1)], out),
        "residual" => {
            out.push(Expected::new("y", row * n + col, product(col) + inputs.get("residual").at(row * n + col)))
        }
        _ => out.push(Expected::new("y", row * n + col, product(col))),
    }
}

fn rope_kv(p: &Problem, inputs: &Inputs, row: u64, col: u64, [a, b]: [f64; 2], out: &mut Vec<Expected>) {
    let [heads, kv, d, page] = ["heads", "kv_heads", "head_dim", "page"].map(|name| p.dim(name) as u64);
    let (head, j) = (col / d, col % d);
    let position = inputs.get("positions").at(row) as u64;
    let table = inputs.get("cos_sin");
    let at = position * d + j;
    let (cos, sin) = if head < heads + kv { (table.at(at), table.at(at + 1)) } else { (1.0, 0.0) };
    let (name, index) = if head < heads {
        ("y", row * heads * d + col)
    } else {
        let (name, h) = if head < heads + kv { ("k_cache", head - heads) } else { ("v_cache", head - heads - kv) };
        let slot = inputs.get("slots").at(row) as u64;
        (name, ((slot / page * kv + h) * page + slot % page) * d + j)
    };
    out.push(Expected::new(name, index, a * cos - b * sin));
    out.push(Expected::new(name, index + 1, a * sin + b * cos));
}
