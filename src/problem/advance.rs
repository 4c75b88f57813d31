//! What a step is told, put where its kernels read it: the tokens of the step before take the places that wait for them, so that no
//! token goes through the host between two steps. Behind those tokens the last word of what was told is said again, after all else was
//! read and written: by it whoever shares the memory knows.

use super::tensor::IndexFill;
use super::{DimDef, Expected, Fill, OpDef, Storage, Tensor};

pub(super) static OP: OpDef = OpDef {
    name: "advance",
    summary: "what a step is told, with the tokens of the step before in the ids that ask for them",
    probe: "advance words=13 ids=5 rows=3",
    dims: &[DimDef::size("words"), DimDef::size("ids"), DimDef::size("rows")],
    check: |p| {
        if p.dim("ids") > p.dim("words") {
            return Err("ids must be at most words".into());
        }
        Ok(())
    },
    tensors: |p| {
        let [words, ids, rows] = ["words", "ids", "rows"].map(|name| p.dim(name));
        let told = Fill::Index(IndexFill::Told { ids, rows });
        vec![
            Tensor::input("told", Storage::I32, &[words], told),
            Tensor::input("last", Storage::I32, &[rows], Fill::Index(IndexFill::Bits)),
            Tensor::output("y", Storage::I32, &[words]),
            Tensor::output("said", Storage::I32, &[rows + 1]),
        ]
    },
    flops: |_| 0.0,
    units: |p| (p.dim("words") + p.dim("rows") + 1) as u64,
    unit_cost: |_| 1,
    unit: |p, inputs, unit, out| {
        let [words, ids, rows] = ["words", "ids", "rows"].map(|name| p.dim(name) as u64);
        let (told, last) = (inputs.get("told"), inputs.get("last"));
        if let Some(row) = unit.checked_sub(words) {
            let value = if row < rows { last.at(row) } else { told.at(words - 1) };
            return out.push(Expected::new("said", row, value));
        }
        let value = told.at(unit);
        let taken = unit < ids && value < 0.0;
        out.push(Expected::new("y", unit, if taken { last.at(((-1.0 - value) as u64).min(rows - 1)) } else { value }));
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};
