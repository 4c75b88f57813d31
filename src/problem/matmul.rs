//! y = x·Wᵀ with its epilogues.

use super::{DimDef, Expected, Fill, Inputs, Layout, OpDef, Problem, Tensor, scaled, scaled_x};

pub(super) static OP: OpDef = OpDef {
    name: "matmul",
    summary: "y = x·Wᵀ, with bias, then SwiGLU or a residual add",
    probe: "matmul m=3 n=10 k=7",
    dims: &[
        DimDef::size("m"),
        DimDef::contract("n"),
        DimDef::contract("k"),
        DimDef::words("epilogue", &["none", "bias", "residual", "bias_residual", "swiglu", "bias_swiglu"]),
        DimDef::derived("bias", |p| i64::from(p.word("epilogue").starts_with("bias"))),
        DimDef::derived("residual", |p| i64::from(p.word("epilogue").ends_with("residual"))),
        DimDef::derived("swiglu", |p| i64::from(p.word("epilogue").ends_with("swiglu"))),
    ],
    check: |p| match (p.dim("swiglu"), p.dim("n") % 2) {
        (1, 1) => Err("swiglu pairs gate and up columns, so n must be even".into()),
        _ => scaled::check(p),
    },
    tensors,
    flops: |p| 2.0 * p.dim("m") as f64 * p.dim("n") as f64 * p.dim("k") as f64,
    units: |p| (p.dim("m") * p.dim("n") / columns(p)) as u64,
    unit_cost: |p| (2 * p.dim("k") * columns(p)) as u64,
    unit,
    slack: 1.0,
    mixed: true,
    scaled: true,
    cached: false,
};

/// Columns of x·Wᵀ that one unit of the reference covers.
pub(super) fn columns(p: &Problem) -> i64 {
    1 + p.dim("swiglu")
}

pub(super) fn tensors(p: &Problem) -> Vec<Tensor> {
    let t = p.types.y;
    let [m, n] = ["m", "n"].map(|name| p.dim(name));
    let unit = Fill::Uniform { scale: 3f32.sqrt() };
    let columns_of = if p.dim("swiglu") == 1 { Layout::GateUp } else { Layout::RowMajor };
    let mut list = scaled_x::tensors(p);
    list.extend(scaled::tensors(p, columns_of, p.dim("k")));
    if p.dim("bias") == 1 {
        list.push(Tensor::input("bias", t, &[n], unit).laid(columns_of));
    }
    if p.dim("residual") == 1 {
        list.push(Tensor::input("residual", t, &[m, n], unit));
    }
    list.push(Tensor::output("y", t, &[m, n / columns(p)]));
    list
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    unit_of(p, inputs, unit, out, |row| row_of(p, inputs, row));
}

/// A row of x.
pub(super) fn row_of(p: &Problem, inputs: &Inputs, row: u64) -> Vec<f64> {
    scaled_x::row(p, inputs, row)
}

/// One unit of the product of rows that are given.
pub(super) fn unit_of(
    p: &Problem,
    inputs: &Inputs,
    unit: u64,
    out: &mut Vec<Expected>,
    rows: impl Fn(u64) -> Vec<f64>,
) {
    let n = p.dim("n") as u64;
    let step = columns(p) as u64;
    let (row, col) = (unit / (n / step), unit % (n / step) * step);
    let (x, w) = (rows(row), scaled::Weights::of(p, inputs));
    let product = |col: u64| w.dot(&x, col) + if p.dim("bias") == 1 { inputs.get("bias").at(col) } else { 0.0 };
    let value = if p.dim("swiglu") == 1 {
        let (gate, up) = (product(col), product(col + 1));
        gate / (1.0 + (-gate).exp()) * up
    } else {
        product(col) + if p.dim("residual") == 1 { inputs.get("residual").at(row * n + col) } else { 0.0 }
    };
    out.push(Expected::new("y", unit, value));
}
