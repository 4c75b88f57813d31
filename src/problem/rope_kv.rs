//! What stands behind the product of `qkv` where that is a `matmul`: Q, K and V of new tokens, normed and rotated, K and V written to the
//! paged cache, which may be codes.

use super::{DimDef, Inputs, LEVEL, LEVELS, OpDef, Tensor, qkv};

pub(super) static OP: OpDef = OpDef {
    name: "rope_kv",
    summary: "q/k norms, RoPE and the KV-cache write of the product of Q, K and V",
    probe: "rope_kv m=3 heads=3 kv_heads=1 head_dim=6 page=5",
    dims: &[
        DimDef::size("m"),
        DimDef::contract("heads"),
        DimDef::contract("kv_heads"),
        DimDef::contract("head_dim"),
        DimDef::option("page", 64),
        DimDef::option("qk_norm", 0),
        DimDef::derived("n", qkv::width),
        DimDef::workload("padding", &["none", "some"]),
        DimDef::workload(LEVEL, LEVELS),
        DimDef::capacity("pages", qkv::pages),
        DimDef::capacity("max_pos", |_| 4096),
        DimDef::real("eps", 1e-6),
    ],
    check: qkv::check_places,
    tensors: |p| {
        let mut list = vec![Tensor::input("x", p.types.x, &[p.dim("m"), p.dim("n")], qkv::UNIT)];
        list.extend(qkv::behind_product(p));
        list
    },
    flops: |p| 3.0 * (p.dim("m") * (p.dim("heads") + p.dim("kv_heads")) * p.dim("head_dim")) as f64,
    units: |p| (p.dim("m") * p.dim("n") / qkv::columns(p)) as u64,
    unit_cost: |p| 4 * qkv::columns(p) as u64,
    unit: |p, inputs: &Inputs, unit, out| {
        let (n, step) = (p.dim("n") as u64, qkv::columns(p) as u64);
        let (row, first) = (unit / (n / step), unit % (n / step) * step);
        let values = (first..first + step).map(|col| inputs.get("x").at(row * n + col)).collect();
        qkv::finished(p, inputs, [row, first], values, out);
    },
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: true,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Expected, Problem, expected};

    /// A product and this are `qkv`, but for the rounding of the product: with the identity for weights there is none.
    #[test]
    fn it_is_what_qkv_does_behind_its_product() {
        let rest = "heads=2 kv_heads=1 head_dim=4 page=2 qk_norm=1 dtype=f32 | padding=some eps=1e-3";
        let qkv: Problem = format!("qkv m=5 k=16 {rest}").parse().unwrap();
        let this: Problem = format!("rope_kv m=5 {rest}").parse().unwrap();
        let (mut one, mut two) = (Inputs::new(&qkv, 3), Inputs::new(&this, 3));
        let all = |inputs: &Inputs, name: &str| {
            let input = inputs.get(name);
            (0..input.tensor.len()).map(|i| input.at(i)).collect::<Vec<f64>>()
        };
        one.set("w", (0..16 * 16).map(|i| f64::from(u8::from(i / 16 == i % 16))).collect());
        for name in ["x", "q_norm", "k_norm", "positions", "slots", "cos_sin"] {
            two.set(name, all(&one, name));
        }
        let both = [(&qkv, &one), (&this, &two)].map(|(p, inputs)| expected(p, inputs, 1, u64::MAX / 2));
        assert!(both[0].len() == 5 * 8 + 4 * 8 && both[0] == both[1]);
        // As codes, K and V are these in units of their scales, the first head's of K and the next of V.
        let coded = this.with_types(crate::problem::Types { kv: Some(crate::problem::Storage::E4m3), ..this.types() });
        let coded = coded.unwrap();
        let mut inputs = Inputs::new(&coded, 3);
        for name in ["x", "q_norm", "k_norm", "positions", "slots", "cos_sin"] {
            inputs.set(name, all(&one, name));
        }
        let scales = all(&inputs, "kv_scales");
        let scaled = |e: &Expected| {
            let scale = [("y", 1.0), ("k_cache", scales[0]), ("v_cache", scales[1])];
            let scale = scale.iter().find(|(name, _)| *name == e.tensor).unwrap().1;
            Expected { value: e.value / scale, ..*e }
        };
        assert_eq!(expected(&coded, &inputs, 1, u64::MAX / 2), both[1].iter().map(scaled).collect::<Vec<_>>());
    }
}
