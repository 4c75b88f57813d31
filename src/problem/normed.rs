//! The norm before a product, and the product, as one: the same result as `rmsnorm` and then `matmul` or `qkv`, the normed row rounded to
//! its type on the way. No portable code has it: whoever finds no tuned winner runs the two.

use super::{DimDef, Fill, Inputs, LEVEL, LEVELS, OpDef, Problem, Tensor, matmul, qkv};

pub(super) static MATMUL: OpDef = OpDef {
    name: "norm_matmul",
    summary: "y = rmsnorm(x)·Wᵀ, with bias, then SwiGLU or a residual add",
    probe: "",
    dims: &[
        DimDef::size("m"),
        DimDef::contract("n"),
        DimDef::contract("k"),
        DimDef::words("epilogue", &["none", "bias", "residual", "bias_residual", "swiglu", "bias_swiglu"]),
        DimDef::derived("bias", |p| i64::from(p.word("epilogue").starts_with("bias"))),
        DimDef::derived("residual", |p| i64::from(p.word("epilogue").ends_with("residual"))),
        DimDef::derived("swiglu", |p| i64::from(p.word("epilogue").ends_with("swiglu"))),
        DimDef::workload(LEVEL, LEVELS),
        DimDef::real("eps", 1e-5),
    ],
    check: |p| of_values(p).and_then(|()| (matmul::OP.check)(p)),
    tensors: |p| with_norm(p, matmul::tensors(p)),
    unit_cost: |p| (2 * p.dim("k") * (1 + matmul::columns(p))) as u64,
    unit: |p, inputs, unit, out| matmul::unit_of(p, inputs, unit, out, |row| normed(p, inputs, row)),
    slack: 2.0,
    mixed: false,
    ..matmul::OP
};

pub(super) static QKV: OpDef = OpDef {
    name: "norm_qkv",
    summary: "Q, K and V of new tokens that are normed first, with bias or q/k norms, RoPE and the KV-cache write",
    probe: "",
    check: |p| of_values(p).and_then(|()| (qkv::OP.check)(p)),
    tensors: |p| with_norm(p, qkv::tensors(p)),
    unit_cost: |p| (2 * p.dim("k") * (1 + qkv::columns(p))) as u64,
    unit: |p, inputs, unit, out| qkv::unit_of(p, inputs, unit, out, |row| normed(p, inputs, row)),
    slack: 2.0,
    ..qkv::OP
};

/// Refuses tokens that are codes already.
fn of_values(p: &Problem) -> Result<(), String> {
    match p.types().x_scales {
        Some(_) => Err(format!("{} norms x first, so x has no codes and scales yet", p.op().name)),
        None => Ok(()),
    }
}

/// The tensors of the product, with the norm's weights behind x.
fn with_norm(p: &Problem, mut product: Vec<Tensor>) -> Vec<Tensor> {
    let weights = Tensor::input("norm", p.types.x, &[p.dim("k")], Fill::Uniform { scale: 3f32.sqrt() });
    product.insert(1, weights);
    product
}

/// A row as the norm leaves it.
fn normed(p: &Problem, inputs: &Inputs, row: u64) -> Vec<f64> {
    let (values, norm) = (matmul::row_of(p, inputs, row), inputs.get("norm"));
    let mean = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
    let scale = 1.0 / (mean + p.real("eps")).sqrt();
    let round = |v: f64| f64::from(norm.tensor.storage.round(v as f32));
    values.iter().zip(0..).map(|(v, i)| round(v * scale * norm.at(i))).collect()
}

/// The problem that is a norm and the product behind it, where there is one.
pub fn norm_and_product(norm: &Problem, product: &Problem) -> Option<Problem> {
    let product_of_rows = matches!(product.op().name, "matmul" | "qkv") && norm.op().name == "rmsnorm";
    let same = || {
        norm.dim("residual") == 0
            && norm.types() == product.types().unscaled()
            && (norm.dim("rows"), norm.dim("cols")) == (product.dim("m"), product.dim("k"))
    };
    if !product_of_rows || !same() {
        return None;
    }
    let text = match product.op().name {
        // A product's text has neither capacity nor workload.
        "matmul" => format!("norm_{product} | eps={:e}", norm.real("eps")),
        _ if norm.real("eps") == product.real("eps") => format!("norm_{product}"),
        _ => return None,
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::expected;

    #[test]
    fn it_is_the_norm_and_then_the_product() {
        let pairs = [
            ("rmsnorm rows=3 cols=40 dtype=bf16 | eps=1e-3", "matmul m=3 n=6 k=40 epilogue=bias_swiglu dtype=bf16"),
            ("rmsnorm rows=2 cols=9 dtype=f32", "matmul m=2 n=5 k=9 epilogue=residual dtype=f32"),
            (
                "rmsnorm rows=3 cols=40 dtype=bf16 | eps=1e-6",
                "qkv m=3 k=40 heads=2 kv_heads=1 head_dim=4 page=2 bias=1 qk_norm=1 dtype=bf16",
            ),
            // Zero points and codes in an order of their own.
            (
                "rmsnorm rows=3 cols=128 dtype=bf16",
                "matmul m=3 n=6 k=128 epilogue=bias_swiglu dtype=bf16 w=int4z-g32 layout=quads",
            ),
        ];
        for (norm, product) in pairs.map(|(n, p)| (n.parse::<Problem>().unwrap(), p.parse::<Problem>().unwrap())) {
            let both = norm_and_product(&norm, &product).unwrap();
            assert_eq!((both.dim("m"), both.dim("n")), (product.dim("m"), product.dim("n")));
            assert_eq!(both.real("eps"), norm.real("eps"));
            // The norm of what the two read, by its own op.
            let inputs = Inputs::new(&both, 5);
            let mut first = Inputs::new(&norm, 5);
            let all = |name: &str, len: u64| (0..len).map(|i| inputs.get(name).at(i)).collect::<Vec<f64>>();
            let [rows, cols] = ["rows", "cols"].map(|name| norm.dim(name) as u64);
            first.set("x", all("x", rows * cols));
            first.set("weight", all("norm", cols));
            let storage = norm.types().x;
            let mut normed = vec![0.0; (rows * cols) as usize];
            for e in expected(&norm, &first, 1, u64::MAX / 2) {
                normed[e.index as usize] = f64::from(storage.round(e.value as f32));
            }
            let mut second = Inputs::new(&product, 5);
            second.set("x", normed);
            for input in inputs.iter().filter(|i| !["x", "norm"].contains(&i.tensor.name)) {
                second.set(input.tensor.name, all(input.tensor.name, input.tensor.len()));
            }
            let two = expected(&product, &second, 1, u64::MAX / 2);
            let one = expected(&both, &inputs, 1, u64::MAX / 2);
            assert_eq!(one.len(), two.len());
            for (a, b) in one.iter().zip(&two) {
                assert!(
                    a.index == b.index && (a.value - b.value).abs() <= 1e-9 * (1.0 + b.value.abs()),
                    "{both}: {a:?} {b:?}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_belong_together_is_not_one() {
        let one = |norm: &str, product: &str| norm_and_product(&norm.parse().unwrap(), &product.parse().unwrap());
        let norm = "rmsnorm rows=3 cols=40";
        assert!(one(norm, "matmul m=3 n=6 k=40").is_some());
        for product in
            ["matmul m=2 n=6 k=40", "matmul m=3 n=6 k=41", "matmul m=3 n=6 k=40 dtype=f32", "argmax rows=3 cols=40"]
        {
            assert_eq!(one(norm, product), None, "{product}");
        }
        assert_eq!(one("rmsnorm rows=3 cols=40 residual=1", "matmul m=3 n=6 k=40"), None);
        assert_eq!(one("layernorm rows=3 cols=40", "matmul m=3 n=6 k=40"), None);
        let qkv = "qkv m=3 k=40 heads=2 kv_heads=1 head_dim=4 page=2";
        assert_eq!(one("rmsnorm rows=3 cols=40 | eps=1e-3", qkv), None);
    }
}
