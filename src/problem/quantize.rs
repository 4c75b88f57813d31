//! Tokens made codes with scales, as products of scaled tokens take them: of values as they are, or of what a norm makes of them.

use super::{DimDef, Expected, Fill, Granularity, Inputs, LEVEL, LEVELS, OpDef, Problem, Storage, Tensor, XFormat};

/// Formats whose scales follow from the tokens themselves; one scale for all of them would need all of them first.
const FORMATS: &[&str] = &["int8-row", "e4m3-row", "e4m3-g128"];

pub(super) static PLAIN: OpDef = OpDef {
    name: "quantize",
    summary: "rows as codes with scales: the largest magnitude of what shares a scale is the largest code",
    probe: "quantize rows=3 cols=7",
    dims: &[
        DimDef::size("rows"),
        DimDef::contract("cols"),
        DimDef::words("to", FORMATS),
        DimDef::derived("codes", codes),
    ],
    check: |_| Ok(()),
    tensors,
    flops: |p| 2.0 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    unit_cost: |p| 3 * p.dim("cols") as u64,
    unit,
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) static NORMED: OpDef = OpDef {
    name: "norm_quantize",
    summary: "x/rms(x)·weight as codes with scales, not rounded in between",
    probe: "norm_quantize rows=3 cols=7",
    dims: &[
        DimDef::size("rows"),
        DimDef::contract("cols"),
        DimDef::words("to", FORMATS),
        DimDef::derived("codes", codes),
        DimDef::workload(LEVEL, LEVELS),
        // Added to the variance.
        DimDef::real("eps", 1e-5),
    ],
    flops: |p| 6.0 * (p.dim("rows") * p.dim("cols")) as f64,
    unit_cost: |p| 6 * p.dim("cols") as u64,
    ..PLAIN
};

/// 0, 1, 2: the place of `to` among the formats, for code.
fn codes(p: &Problem) -> i64 {
    FORMATS.iter().position(|f| *f == p.word("to")).unwrap_or(0) as i64
}

/// What the codes are, and what one scale is for.
fn format(p: &Problem) -> XFormat {
    XFormat::parse(p.word("to")).unwrap_or(XFormat { codes: Storage::Int8, per: Granularity::Row })
}

fn tensors(p: &Problem) -> Vec<Tensor> {
    let (t, [rows, cols], to) = (p.types.x, ["rows", "cols"].map(|name| p.dim(name)), format(p));
    let unit = Fill::Uniform { scale: 3f32.sqrt() };
    let mut list = vec![Tensor::input("x", t, &[rows, cols], unit)];
    if p.has("eps") {
        list.push(Tensor::input("weight", t, &[cols], unit));
    }
    list.push(Tensor::output("y", to.codes, &[rows, cols]));
    list.push(Tensor::output("y_scales", Storage::F32, &to.per.scales(rows, cols)));
    list
}

fn unit(p: &Problem, inputs: &Inputs, row: u64, out: &mut Vec<Expected>) {
    let (cols, to) = (p.dim("cols") as u64, format(p));
    let mut values: Vec<f64> = (row * cols..(row + 1) * cols).map(|i| inputs.get("x").at(i)).collect();
    if p.has("eps") {
        let mean = values.iter().map(|v| v * v).sum::<f64>() / cols as f64;
        let scale = 1.0 / (mean + p.real("eps")).sqrt();
        values.iter_mut().zip(0..).for_each(|(v, c)| *v *= scale * inputs.get("weight").at(c));
    }
    let largest = to.largest();
    let run = to.per.run(p.dim("cols")) as usize;
    let first_scale = row * values.len().div_ceil(run) as u64;
    for (part, at) in values.chunks(run).zip(first_scale..) {
        let scale = part.iter().fold(0.0, |top: f64, v| top.max(v.abs())) / largest;
        let first = row * cols + (at - first_scale) * run as u64;
        out.extend(
            part.iter().zip(first..).map(|(v, i)| Expected::new("y", i, if scale > 0.0 { v / scale } else { 0.0 })),
        );
        out.push(Expected::new("y_scales", at, scale));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::expected;

    /// By the definition: scales are of the largest, a norm goes before, and the last group of a row is shorter.
    #[test]
    fn codes_are_values_over_the_largest() {
        for (to, run, largest) in [("int8-row", 300, 127.0), ("e4m3-row", 300, 448.0), ("e4m3-g128", 128, 448.0)] {
            for (op, normed) in [("quantize", false), ("norm_quantize", true)] {
                let p: Problem = format!("{op} rows=3 cols=300 to={to} dtype=f32").parse().unwrap();
                let inputs = Inputs::new(&p, 2);
                let all = expected(&p, &inputs, 1, u64::MAX / 2);
                let of = |name: &str| all.iter().filter(|e| e.tensor == name).map(|e| e.value).collect::<Vec<_>>();
                let (codes, scales) = (of("y"), of("y_scales"));
                assert_eq!((codes.len(), scales.len()), (900, 3 * 300usize.div_ceil(run)));
                for row in 0..3 {
                    let mut x: Vec<f64> = (0..300).map(|c| inputs.get("x").at(row * 300 + c)).collect();
                    if normed {
                        let rms = (x.iter().map(|v| v * v).sum::<f64>() / 300.0 + 1e-5).sqrt();
                        x = x.iter().zip(0..).map(|(v, c)| v / rms * inputs.get("weight").at(c)).collect();
                    }
                    for (group, part) in x.chunks(run).enumerate() {
                        let top = part.iter().map(|v| v.abs()).fold(0.0, f64::max);
                        let at = row as usize * 300usize.div_ceil(run) + group;
                        assert!((scales[at] * largest / top - 1.0).abs() < 1e-12);
                        for (i, v) in part.iter().enumerate() {
                            let code = codes[row as usize * 300 + group * run + i];
                            assert!((code * scales[at] - v).abs() < 1e-12 && code.abs() <= largest + 1e-9);
                        }
                    }
                }
            }
        }
    }
}
