//! RMSNorm and LayerNorm, each with or without a fused residual add.

use super::{DimDef, Expected, Fill, Inputs, LEVEL, LEVELS, OpDef, Problem, Tensor};

const DIMS: &[DimDef] = &[
    DimDef::size("rows"),
    DimDef::contract("cols"),
    DimDef::option("residual", 0),
    DimDef::workload(LEVEL, LEVELS),
    // Added to the variance.
    DimDef::real("eps", 1e-5),
];

pub(super) static RMSNORM: OpDef = OpDef {
    name: "rmsnorm",
    summary: "y = x/rms(x)·weight, after an optional residual add that is written too",
    probe: "rmsnorm rows=3 cols=7",
    dims: DIMS,
    check,
    tensors: |p| tensors(p, false),
    flops: |p| (4 + p.dim("residual")) as f64 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    unit_cost: |p| 3 * p.dim("cols") as u64,
    unit: |p, inputs, row, out| unit(p, inputs, row, out, false),
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) static LAYERNORM: OpDef = OpDef {
    name: "layernorm",
    summary: "y = (x − mean)/√var·weight + bias, after an optional residual add that is written too",
    probe: "layernorm rows=3 cols=7",
    dims: DIMS,
    check,
    tensors: |p| tensors(p, true),
    flops: |p| (7 + p.dim("residual")) as f64 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    unit_cost: |p| 4 * p.dim("cols") as u64,
    unit: |p, inputs, row, out| unit(p, inputs, row, out, true),
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

fn check(p: &Problem) -> Result<(), String> {
    if p.dim("residual") > 1 {
        return Err("residual is 0 or 1".into());
    }
    Ok(())
}

fn tensors(p: &Problem, layer: bool) -> Vec<Tensor> {
    let t = p.types.x;
    let (rows, cols) = (p.dim("rows"), p.dim("cols"));
    let unit = Fill::Uniform { scale: 3f32.sqrt() };
    let mut list = vec![Tensor::input("x", t, &[rows, cols], unit)];
    if p.dim("residual") == 1 {
        list.push(Tensor::input("residual", t, &[rows, cols], unit));
    }
    list.push(Tensor::input("weight", t, &[cols], unit));
    if layer {
        list.push(Tensor::input("bias", t, &[cols], unit));
    }
    list.push(Tensor::output("y", t, &[rows, cols]));
    if p.dim("residual") == 1 {
        list.push(Tensor::output("h", t, &[rows, cols]));
    }
    list
}

fn unit(p: &Problem, inputs: &Inputs, row: u64, out: &mut Vec<Expected>, layer: bool) {
    let cols = p.dim("cols") as u64;
    let start = row * cols;
    let mut h: Vec<f64> = (start..start + cols).map(|i| inputs.get("x").at(i)).collect();
    if p.dim("residual") == 1 {
        for (v, i) in h.iter_mut().zip(start..) {
            *v += inputs.get("residual").at(i);
            out.push(Expected::new("h", i, *v));
        }
    }
    let mean = if layer { h.iter().sum::<f64>() / cols as f64 } else { 0.0 };
    let variance = h.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / cols as f64;
    let scale = 1.0 / (variance + p.real("eps")).sqrt();
    for (c, v) in h.iter().enumerate() {
        let c = c as u64;
        let shift = if layer { inputs.get("bias").at(c) } else { 0.0 };
        out.push(Expected::new("y", start + c, (v - mean) * scale * inputs.get("weight").at(c) + shift));
    }
}
