//! Tokens of a scaled format: the x of a product as codes of 8 bits, with f32 scales for a tensor, a token or a group of one. What
//! formats there are, which weights they go with, the tensors that belong to them, and what a code is worth.

use super::types::E4M3_MAX;
use super::{Fill, Granularity, Inputs, Problem, Storage, Tensor, Types};
use std::fmt;

/// A format of scaled tokens: `int8-row`, `e4m3-g128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct XFormat {
    /// What codes are stored as: Int8 or E4m3.
    pub codes: Storage,
    /// What part of x[m, k] one scale is for: all of it, a token, or so many consecutive elements of one.
    pub per: Granularity,
}

const FORMATS: [XFormat; 4] = [
    XFormat { codes: Storage::Int8, per: Granularity::Row },
    XFormat { codes: Storage::E4m3, per: Granularity::Tensor },
    XFormat { codes: Storage::E4m3, per: Granularity::Row },
    XFormat { codes: Storage::E4m3, per: Granularity::Group(128) },
];

impl XFormat {
    /// Every format.
    pub fn all() -> impl Iterator<Item = XFormat> {
        FORMATS.into_iter()
    }

    /// The format of that name.
    pub fn parse(name: &str) -> Option<XFormat> {
        XFormat::all().find(|f| f.to_string() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        FORMATS.map(|f| f.to_string()).join("|")
    }

    /// The largest code, which the largest magnitude of what shares a scale becomes.
    pub fn largest(self) -> f64 {
        if self.codes == Storage::Int8 { 127.0 } else { f64::from(E4M3_MAX) }
    }

    /// What codes of weights are multiplied by these: integers by integers, E4M3 by E4M3.
    pub fn goes_with(self, w: Storage) -> bool {
        match self.codes {
            Storage::Int8 => matches!(w, Storage::Int8 | Storage::Int4),
            codes => w == codes,
        }
    }
}

impl fmt::Display for XFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.codes, self.per)
    }
}

/// Says why tokens cannot be of their format, or not with these weights.
pub(super) fn check(types: Types) -> Result<(), String> {
    let Some(per) = types.x_scales else { return Ok(()) };
    let format = XFormat { codes: types.x, per };
    if !XFormat::all().any(|f| f == format) {
        return Err(format!(
            "no format has x in {} with scales for a {}; formats are {}",
            types.x,
            per.name(),
            XFormat::names()
        ));
    }
    if types.scaling.is_none() || !format.goes_with(types.w) {
        let with = if types.x == Storage::Int8 { "int8-… or int4…-…" } else { "e4m3-…" };
        return Err(format!("x={format} is multiplied by scaled weights of its kind; give w={with}"));
    }
    Ok(())
}

/// x[m, k] of a product, with what scales it. Values have unit variance.
pub(super) fn tensors(p: &Problem) -> Vec<Tensor> {
    let ([m, k], x) = (["m", "k"].map(|name| p.dim(name)), p.types.x);
    let Some(per) = p.types.x_scales else {
        return vec![Tensor::input("x", x, &[m, k], Fill::Uniform { scale: 3f32.sqrt() })];
    };
    // The mean square of a code, and of scales that are uniform in [0.5, 1.5) of their mean.
    let (codes, square) = match x {
        Storage::Int8 => (Fill::Codes { bits: 8 }, 5461.5),
        _ => (Fill::Uniform { scale: 448.0 }, 448.0 * 448.0 / 3.0),
    };
    let unit = (square * 13.0 / 12.0f64).sqrt().recip() as f32;
    let scales = Fill::Between { low: 0.5 * unit, high: 1.5 * unit };
    vec![Tensor::input("x", x, &[m, k], codes), Tensor::input("x_scales", Storage::F32, &per.scales(m, k), scales)]
}

/// A row of x as values.
pub(super) fn row(p: &Problem, inputs: &Inputs, row: u64) -> Vec<f64> {
    let (k, x) = (p.dim("k") as u64, inputs.get("x"));
    let codes = (row * k..(row + 1) * k).map(|i| x.at(i));
    let Some(per) = p.types.x_scales else { return codes.collect() };
    let (scales, run) = (inputs.get("x_scales"), per.run(p.dim("k")) as u64);
    let first = if per == Granularity::Tensor { 0 } else { row * k.div_ceil(run) };
    codes.zip(0..).map(|(code, i)| code * scales.at(first + i / run)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Dtype, ScaledFormat, expected};

    /// By the definition, from what `write` stores: a scale of another token, or of another group, is another value.
    #[test]
    fn tokens_are_what_stored_bytes_say() {
        for format in XFormat::all() {
            let w = if format.codes == Storage::Int8 { "int8-row" } else { "e4m3-row" };
            let p: Problem = format!("matmul m=5 n=3 k=300 dtype=f32 x={format} w={w}").parse().unwrap();
            let inputs = Inputs::new(&p, 3);
            let stored = |name: &str, index: u64| {
                let input = inputs.get(name);
                let mut bytes = vec![0; input.tensor.bytes() as usize];
                input.write(0, &mut bytes);
                input.tensor.storage.value(&bytes, index)
            };
            for (token, col) in [(0, 0), (0, 127), (1, 128), (4, 299), (2, 256)] {
                let at = match format.per {
                    Granularity::Tensor => 0,
                    Granularity::Row => token,
                    _ => token * 3 + col / 128,
                };
                let wanted = stored("x", token * 300 + col) * stored("x_scales", at);
                assert_eq!(row(&p, &inputs, token)[col as usize], wanted, "{p} {token} {col}");
            }
        }
    }

    #[test]
    fn results_have_unit_variance() {
        for format in XFormat::all() {
            for weights in ScaledFormat::all().filter(|w| format.goes_with(w.codes)) {
                let p: Problem = format!("matmul m=8 n=128 k=512 x={format} w={weights}").parse().unwrap();
                let all = expected(&p, &Inputs::new(&p, 3), 1, u64::MAX / 2);
                let variance = all.iter().map(|e| e.value * e.value).sum::<f64>() / all.len() as f64;
                // One scale for all of x or of w is no mean of many.
                let single = [format.per, weights.per].contains(&Granularity::Tensor);
                let range = if single { 0.05..6.0 } else { 0.6..1.5 };
                assert!(range.contains(&variance), "{p}: {variance}");
            }
        }
    }

    #[test]
    fn text_says_formats_of_tokens() {
        for text in [
            "matmul m=512 n=8192 k=8192 dtype=bf16 x=int8-row w=int8-row",
            "matmul m=512 n=8192 k=8192 dtype=bf16 x=e4m3-g128 w=e4m3-b128",
            "matmul m=3 n=8 k=9 epilogue=bias_swiglu dtype=f16 x=e4m3-tensor w=e4m3-tensor",
            "matmul m=3 n=8 k=10 dtype=f32 x=int8-row w=int4z-g32 scale=bf16",
            "qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 x=e4m3-row w=e4m3-row | pages=16",
        ] {
            let p: Problem = text.parse().unwrap();
            assert_eq!(p.to_string(), text);
            assert_eq!(p.full_text().parse::<Problem>().unwrap(), p);
            assert_eq!((p.types().unscaled().dtype(), p.types().dtype()), (Some(p.types().base()), None));
        }
        // Results of another type than the word before: that type's word.
        let p: Problem = "matmul m=1 n=2 k=4 dtype=bf16 x=int8-row w=int8-row y=f32".parse().unwrap();
        assert_eq!(p.to_string(), "matmul m=1 n=2 k=4 dtype=f32 x=int8-row w=int8-row");
        for (text, part) in [
            ("matmul m=1 n=2 k=4 x=int8-row", "of its kind"),
            ("matmul m=1 n=2 k=4 x=int8-row w=e4m3-row", "of its kind"),
            ("matmul m=1 n=2 k=4 x=e4m3-row w=int8-row", "of its kind"),
            ("matmul m=1 n=2 k=4 x=e4m3-row w=e4m3", "of its kind"),
            ("matmul m=1 n=2 k=4 x=int8-g32 w=int8-row", "one of int8-row|e4m3-tensor"),
            ("matmul m=1 n=2 k=4 x=bf16 w=int8-row", "one of int8-row|e4m3-tensor"),
            ("matmul m=1 n=2 k=4 x=int8-row x=int8-row w=int8-row", "given twice"),
            ("matmul m=1 n=2 k=4 x=int8-row w=int8-row dtype=tf32", "f32 by f32"),
            ("norm_matmul m=1 n=2 k=4 x=int8-row w=int8-row", "norms x first"),
            ("norm_qkv m=1 k=4 heads=1 kv_heads=1 head_dim=2 x=int8-row w=int8-row", "norms x first"),
            ("rmsnorm rows=1 cols=4 x=int8-row", "not a dimension"),
        ] {
            let e = text.parse::<Problem>().unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
        let p: Problem = "matmul m=1 n=2 k=4 w=int8-row".parse().unwrap();
        for types in [
            Types { x: Storage::Int8, x_scales: Some(Granularity::Block), ..p.types() },
            Types { x: Storage::Bf16, x_scales: Some(Granularity::Row), ..p.types() },
        ] {
            assert!(p.with_types(types).unwrap_err().to_string().contains("no format has x"));
        }
        assert!(Types::from(Dtype::Bf16).x_scales.is_none());
    }

    #[test]
    fn bytes_count_scales_and_tensors_stand_in_order() {
        let p: Problem = "matmul m=10 n=256 k=520 epilogue=bias x=e4m3-g128 w=e4m3-b128".parse().unwrap();
        assert_eq!(p.tensors().iter().map(|t| t.name).collect::<Vec<_>>().join(" "), "x x_scales w w_scales bias y");
        assert_eq!(p.bytes(), 10 * 520 + 10 * 5 * 4 + 256 * 520 + 2 * 5 * 4 + 256 * 2 + 10 * 256 * 2);
        assert!(p.op().probe(p.types()).unwrap().is_probe());
    }
}
