//! Caches of keys and values in a type of their own: values in bf16 or f16, or codes of E4M3 with an f32 scale for the keys and one for the
//! values of each KV head, `kv_scales [2, kv_heads]`.

use super::{Fill, Inputs, Problem, Storage, Tensor};

/// The scales' tensor.
const SCALES: &str = "kv_scales";

/// What the caches are stored as.
pub(super) fn storage(p: &Problem) -> Storage {
    p.types.kv.unwrap_or(p.types.y)
}

/// How caches that are read are filled. Values have unit variance: of codes with the scales of [`scales`].
pub(super) fn fill(p: &Problem) -> Fill {
    Fill::Uniform { scale: if p.types.has_codes_of_caches() { 448.0 } else { 3f32.sqrt() } }
}

/// The scale that gives codes uniform in ±448, with scales uniform in [0.5, 1.5) times it, unit variance.
pub(super) const READ: f32 = 0.003_714_4;

/// The scales of caches that are codes, uniform in [0.5, 1.5) times `unit`.
pub(super) fn scales(p: &Problem, unit: f32) -> Option<Tensor> {
    let fill = Fill::Between { low: 0.5 * unit, high: 1.5 * unit };
    p.types.has_codes_of_caches().then(|| Tensor::input(SCALES, Storage::F32, &[2, p.dim("kv_heads")], fill))
}

/// What codes of keys and of values of a KV head are worth: 1 where caches are no codes.
pub(super) fn worth(p: &Problem, inputs: &Inputs, head: u64) -> [f64; 2] {
    match p.types.has_codes_of_caches() {
        false => [1.0; 2],
        true => [head, p.dim("kv_heads") as u64 + head].map(|at| inputs.get(SCALES).at(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::expected;

    fn stored(inputs: &Inputs, name: &str) -> Vec<f64> {
        let input = inputs.get(name);
        let mut bytes = vec![0; input.tensor.bytes() as usize];
        input.write(0, &mut bytes);
        (0..input.tensor.len()).map(|i| input.tensor.storage.value(&bytes, i)).collect()
    }

    /// By the definition, from what is stored: a scale of another head, or of the keys for the values, is another result.
    #[test]
    fn attention_is_that_over_code_times_scale() {
        let text = "decode batch=2 context=5 heads=4 kv_heads=2 head_dim=4 page=2 dtype=f32";
        for op in [text.to_string(), text.replace("decode", "paged_attention tokens=2")] {
            let coded: Problem = format!("{op} kv=e4m3").parse().unwrap();
            let plain: Problem = op.parse().unwrap();
            let (inputs, mut same) = (Inputs::new(&coded, 3), Inputs::new(&plain, 3));
            let scales = stored(&inputs, "kv_scales");
            assert!(scales.iter().enumerate().all(|(i, s)| *s > 0.0 && !scales[..i].contains(s)));
            for (which, name) in ["k_cache", "v_cache"].into_iter().enumerate() {
                // [pages, kv_heads = 2, page = 2, head_dim = 4]
                let scaled = |(i, code): (usize, f64)| code * scales[which * 2 + i / 8 % 2];
                same.set(name, stored(&inputs, name).into_iter().enumerate().map(scaled).collect());
            }
            for input in inputs.iter().filter(|i| !["k_cache", "v_cache", "kv_scales"].contains(&i.tensor.name)) {
                same.set(input.tensor.name, stored(&inputs, input.tensor.name));
            }
            let all = |p: &Problem, inputs: &Inputs| expected(p, inputs, 1, u64::MAX / 2);
            let (one, two) = (all(&coded, &inputs), all(&plain, &same));
            assert_eq!((one.len(), two.len()), (32, 32));
            for (a, b) in one.iter().zip(&two) {
                // The values were rounded to f32 on the way.
                assert!((a.value - b.value).abs() < 1e-6, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn codes_and_scales_are_counted_and_have_unit_variance() {
        let p: Problem = "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 kv=e4m3".parse().unwrap();
        let names: Vec<_> = p.tensors().iter().map(|t| t.name).collect();
        assert_eq!(names.join(" "), "q k_cache v_cache kv_scales block_table lens o");
        let (q, codes, tables) = (2 * 8 * 32 * 64 * 2, 2 * 8 * 8192 * 8 * 64, 8 * 128 * 4 + 8 * 4);
        assert_eq!(p.bytes(), q + codes + tables + 2 * 8 * 4);
        assert!(p.op().probe(p.types()).unwrap().is_probe());
        let p: Problem = "decode batch=9 context=99 heads=64 kv_heads=64 head_dim=8 page=11 kv=e4m3".parse().unwrap();
        let inputs = Inputs::new(&p, 3);
        let scales = stored(&inputs, "kv_scales");
        let values = stored(&inputs, "k_cache").into_iter().enumerate().map(|(i, c)| c * scales[i / 88 % 64]);
        let variance = values.map(|v| v * v).sum::<f64>() / inputs.get("k_cache").tensor.len() as f64;
        assert!((0.9..1.1).contains(&variance), "{variance}");
    }
}
