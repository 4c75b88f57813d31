//! The unfused pieces that the fusions replace, and the two ends of a model: the embedding gather and arg-max.

use super::tensor::IndexFill;
use super::{DimDef, DimKind, Expected, Fill, Inputs, Layout, OpDef, Part, Problem, Storage, Tensor, scaled};

const ROWS_COLS: &[DimDef] = &[DimDef::size("rows"), DimDef::contract("cols")];
const UNIT: Fill = Fill::Uniform { scale: 1.732_050_8 };

fn rows_cols(p: &Problem) -> (i64, i64) {
    (p.dim("rows"), p.dim("cols"))
}

fn any(_: &Problem) -> Result<(), String> {
    Ok(())
}

pub(super) static SILU_MUL: OpDef = OpDef {
    name: "silu_mul",
    summary: "y = silu(gate)·up over interleaved gate and up columns",
    probe: "silu_mul rows=3 cols=7",
    dims: ROWS_COLS,
    check: any,
    tensors: |p| {
        let (t, (rows, cols)) = (p.types.x, rows_cols(p));
        vec![Tensor::input("x", t, &[rows, 2 * cols], UNIT), Tensor::output("y", t, &[rows, cols])]
    },
    flops: |p| 5.0 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| (p.dim("rows") * p.dim("cols")) as u64,
    unit_cost: |_| 2,
    unit: |_, inputs, i, out| {
        let (gate, up) = (inputs.get("x").at(2 * i), inputs.get("x").at(2 * i + 1));
        out.push(Expected::new("y", i, gate / (1.0 + (-gate).exp()) * up));
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) static GELU: OpDef = OpDef {
    name: "gelu",
    summary: "y = x·Φ(x), the erf form",
    probe: "gelu rows=3 cols=7",
    dims: ROWS_COLS,
    check: any,
    tensors: |p| {
        let (t, (rows, cols)) = (p.types.x, rows_cols(p));
        vec![Tensor::input("x", t, &[rows, cols], UNIT), Tensor::output("y", t, &[rows, cols])]
    },
    flops: |p| 8.0 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| (p.dim("rows") * p.dim("cols")) as u64,
    unit_cost: |_| 1,
    unit: |_, inputs, i, out| {
        let x = inputs.get("x").at(i);
        out.push(Expected::new("y", i, 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))));
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

/// The error function to 1e-13: by its Maclaurin series near 0, and beyond by the continued fraction of what it lacks to 1 (Abramowitz and
/// Stegun 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    if x.abs() > 2.5 {
        let a = x.abs();
        let fraction = (1..=80).rev().fold(0.0, |rest, n| f64::from(n) / 2.0 / (a + rest));
        return (1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt())).copysign(x);
    }
    let mut term = x;
    let mut sum = x;
    for n in 1..60 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub(super) static ROPE: OpDef = OpDef {
    name: "rope",
    summary: "rotates adjacent pairs of every head by the token's position",
    probe: "rope tokens=3 heads=2 head_dim=6",
    dims: &[
        DimDef::size("tokens"),
        DimDef::contract("heads"),
        DimDef::contract("head_dim"),
        DimDef::capacity("max_pos", |_| 4096),
    ],
    check: |p| {
        if p.dim("head_dim") % 2 != 0 || p.dim("max_pos") < 1 {
            return Err("head_dim must be even and max_pos at least 1".into());
        }
        Ok(())
    },
    tensors: |p| {
        let [tokens, h, d, max_pos] = ["tokens", "heads", "head_dim", "max_pos"].map(|name| p.dim(name));
        let t = p.types.x;
        vec![
            Tensor::input("x", t, &[tokens, h, d], UNIT),
            Tensor::input("positions", Storage::I32, &[tokens], Fill::Index(IndexFill::Below(max_pos))),
            Tensor::input("cos_sin", Storage::F32, &[max_pos, d / 2, 2], Fill::CosSin)
                .touching(tokens.min(max_pos) * d),
            Tensor::output("y", t, &[tokens, h, d]),
        ]
    },
    flops: |p| 3.0 * (p.dim("tokens") * p.dim("heads") * p.dim("head_dim")) as f64,
    units: |p| (p.dim("tokens") * p.dim("heads") * p.dim("head_dim") / 2) as u64,
    unit_cost: |_| 4,
    unit: |p, inputs, unit, out| {
        let [h, d] = ["heads", "head_dim"].map(|name| p.dim(name) as u64);
        let at = 2 * unit;
        let (token, j) = (at / (h * d), at % d);
        let table = inputs.get("cos_sin");
        let entry = inputs.get("positions").at(token) as u64 * d + j;
        let (cos, sin) = (table.at(entry), table.at(entry + 1));
        let (a, b) = (inputs.get("x").at(at), inputs.get("x").at(at + 1));
        out.push(Expected::new("y", at, a * cos - b * sin));
        out.push(Expected::new("y", at + 1, a * sin + b * cos));
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) static SOFTMAX: OpDef = OpDef {
    name: "softmax",
    summary: "softmax over the last dimension",
    probe: "softmax rows=3 cols=7",
    dims: ROWS_COLS,
    check: any,
    tensors: |p| {
        let (t, (rows, cols)) = (p.types.x, rows_cols(p));
        vec![Tensor::input("x", t, &[rows, cols], Fill::Uniform { scale: 4.0 }), Tensor::output("y", t, &[rows, cols])]
    },
    flops: |p| 5.0 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    unit_cost: |p| p.dim("cols") as u64,
    unit: |p, inputs, row, out| {
        let cols = p.dim("cols") as u64;
        let x: Vec<f64> = (row * cols..(row + 1) * cols).map(|i| inputs.get("x").at(i)).collect();
        let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|v| (v - top).exp()).sum();
        out.extend(x.iter().zip(row * cols..).map(|(v, i)| Expected::new("y", i, (v - top).exp() / sum)));
    },
    slack: 2.0,
    mixed: false,
    scaled: false,
    cached: false,
};

pub(super) static EMBEDDING: OpDef = OpDef {
    name: "embedding",
    summary: "gathers rows of the embedding table",
    probe: "embedding tokens=3 vocab=5 hidden=7",
    dims: &[
        DimDef::size("tokens"),
        DimDef { name: "vocab", part: Part::Capacity, kind: DimKind::Required },
        DimDef::contract("hidden"),
    ],
    check: scaled::check,
    tensors: |p| {
        let [tokens, vocab, hidden] = ["tokens", "vocab", "hidden"].map(|name| p.dim(name));
        let rows = tokens.min(vocab);
        let touched = |t: Tensor| {
            // What one scale is for all of is read whole.
            let all = t.shape.iter().product::<u64>() as i64;
            let of_rows = if t.shape.first() == Some(&(vocab as u64)) { all / vocab * rows } else { all };
            t.touching(of_rows)
        };
        let mut list = vec![Tensor::input("ids", Storage::I32, &[tokens], Fill::Index(IndexFill::Below(vocab)))];
        list.extend(scaled::tensors(p, Layout::RowMajor, 1).into_iter().map(touched));
        list.push(Tensor::output("y", p.types.y, &[tokens, hidden]));
        list
    },
    flops: |_| 0.0,
    units: |p| p.dim("tokens") as u64,
    unit_cost: |p| p.dim("hidden") as u64,
    unit: |p, inputs, token, out| {
        let (hidden, table) = (p.dim("hidden") as u64, scaled::Weights::of(p, inputs));
        let id = inputs.get("ids").at(token) as u64;
        out.extend((0..hidden).map(|c| Expected::new("y", token * hidden + c, table.at(id, c))));
    },
    slack: 1.0,
    mixed: false,
    scaled: true,
    cached: false,
};

pub(super) static ARGMAX: OpDef = OpDef {
    name: "argmax",
    summary: "the index of each row's largest value, the lowest among equals",
    probe: "argmax rows=3 cols=7",
    dims: ROWS_COLS,
    check: any,
    tensors: |p| {
        let (rows, cols) = rows_cols(p);
        vec![Tensor::input("x", p.types.x, &[rows, cols], UNIT), Tensor::output("y", Storage::I32, &[rows])]
    },
    flops: |p| (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    unit_cost: |p| p.dim("cols") as u64,
    unit: |p, inputs: &Inputs, row, out| {
        let cols = p.dim("cols") as u64;
        let x = inputs.get("x");
        let mut best = (0, f64::NEG_INFINITY);
        for c in 0..cols {
            let v = x.at(row * cols + c);
            if v > best.1 {
                best = (c, v);
            }
        }
        out.push(Expected::new("y", row, best.0 as f64));
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of a C library.
    #[test]
    fn the_error_function_is_that_at_any_argument() {
        for (x, value) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.4999, 0.999_592_830_099_666_6),
            (2.5001, 0.999_593_265_756_529_3),
            (3.0, 0.999_977_909_503_001_4),
            (5.0, 0.999_999_999_998_462_5),
            (85.0, 1.0),
            (1e300, 1.0),
            (f64::INFINITY, 1.0),
        ] {
            assert!((erf(x) - value).abs() < 1e-9 && (erf(-x) + value).abs() < 1e-9, "{x}: {}", erf(x));
        }
        // No step where one way ends and the other begins.
        let step = erf(2.5 + 1e-12) - erf(2.5);
        assert!(step.abs() < 1e-13, "{step}");
    }
}
