//! A folder of compressed-tensors: the weights of a model's linear layers in a scaled format, all else as it is.
//!
//! Embeddings and the head stay in the type of the model, as llm-compressor leaves them. One safetensors file, and a `config.json` with
//! the `quantization_config` by which transformers and vLLM read it.

use super::{Failed, Order, Weights, WeightsError, whole};
use crate::model::Model;
use crate::problem::{Dtype, Granularity, SCALE_BLOCK, ScaledFormat, Storage, XFormat, Zero};
use crate::weights::checkpoint::ONE;
use crate::weights::names::{Natural, natural};
use crate::weights::quant::{CompressedTensors, Method, quantize};
use crate::weights::random::new_folder;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// How weights are made codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// The format.
    pub format: ScaledFormat,
    /// The type of scales.
    pub scale: Storage,
    /// How a scale is chosen.
    pub method: Method,
    /// What readers are told to round tokens to before these layers, as they come: a format with a scale a token.
    pub tokens: Option<XFormat>,
}

/// A tensor of the file.
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: u64,
}

impl Entry {
    fn new(name: String, dtype: &'static str, shape: &[u64]) -> Entry {
        let each = match dtype {
            "I64" => 8,
            "F32" | "I32" => 4,
            "BF16" | "F16" => 2,
            _ => 1,
        };
        Entry { name, dtype, shape: shape.to_vec(), bytes: each * shape.iter().product::<u64>() }
    }
}

/// The name of a type in safetensors' headers.
fn dtype_of(storage: Storage) -> &'static str {
    match storage {
        Storage::Bf16 => "BF16",
        Storage::F16 => "F16",
        Storage::E4m3 => "F8_E4M3",
        Storage::Int8 => "I8",
        Storage::I32 | Storage::Int4 => "I32",
        Storage::U8 => "U8",
        Storage::F32 => "F32",
    }
}

/// The rows and columns of a weight that becomes codes, and its name without what follows.
fn linear(n: &Natural) -> Option<(&str, [u64; 2])> {
    let base = n.name.strip_suffix(".weight")?;
    let &[rows, columns] = &n.shape[..] else { return None };
    (base != "lm_head" && !base.ends_with("embed_tokens")).then_some((base, [rows, columns]))
}

/// The tensors of one weight, in their order in the file.
fn entries(n: &Natural, q: &Quantization, plain: Storage) -> Vec<Entry> {
    let Some((base, [rows, columns])) = linear(n) else {
        return vec![Entry::new(n.name.clone(), dtype_of(plain), &n.shape)];
    };
    let named = |what: &str| format!("{base}.{what}");
    let mut scales: Vec<u64> = q.format.per.scales(rows as i64, columns as i64).into_iter().map(|d| d as u64).collect();
    if q.format.per == Granularity::Row {
        scales.push(1);
    }
    let mut list = match q.format.codes {
        Storage::Int4 => vec![
            Entry::new(named("weight_packed"), "I32", &[rows, columns.div_ceil(8)]),
            Entry::new(named("weight_shape"), "I64", &[2]),
        ],
        codes => vec![Entry::new(named("weight"), dtype_of(codes), &[rows, columns])],
    };
    list.push(Entry::new(named("weight_scale"), dtype_of(q.scale), &scales));
    if q.format.zero == Zero::Zero {
        let groups = scales.get(1).copied().unwrap_or(1);
        list.push(Entry::new(named("weight_zero_point"), "I32", &[rows.div_ceil(8), groups]));
    }
    list
}

/// What a reader of the folder is told.
fn config(q: &Quantization) -> Value {
    let (kind, bits) = match q.format.codes {
        Storage::E4m3 => ("float", 8),
        Storage::Int8 => ("int", 8),
        _ => ("int", 4),
    };
    let mut weights = json!({
        "num_bits": bits, "type": kind, "symmetric": q.format.zero == Zero::None, "dynamic": false,
        "observer": if q.method == Method::Search { "mse" } else { "minmax" },
    });
    let strategy = match q.format.per {
        Granularity::Tensor => "tensor",
        Granularity::Row => "channel",
        Granularity::Group(g) => {
            weights["group_size"] = g.into();
            "group"
        }
        Granularity::Block => {
            weights["block_structure"] = json!([SCALE_BLOCK, SCALE_BLOCK]);
            "block"
        }
    };
    weights["strategy"] = strategy.into();
    let format = match q.format.codes {
        Storage::Int4 => "pack-quantized",
        Storage::E4m3 => "float-quantized",
        _ => "int-quantized",
    };
    let tokens = q
        .tokens
        .map(|_| json!({ "num_bits": 8, "type": kind, "symmetric": true, "dynamic": true, "strategy": "token" }));
    let group =
        json!({ "targets": ["Linear"], "weights": weights, "input_activations": tokens, "output_activations": null });
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": { "group_0": group }, "ignore": ["lm_head"], "kv_cache_scheme": null,
    })
}

/// Writes a folder of the model's weights with those of its linear layers in this format, all else in `dtype`; `progress` hears the
/// bytes that are written and those of all. A folder that holds a model already is refused.
pub fn compressed(
    weights: &Weights,
    q: Quantization,
    dtype: Dtype,
    folder: &Path,
    progress: impl Fn(u64, u64),
) -> Result<(), WeightsError> {
    let bad = |why: String| WeightsError::File { path: folder.into(), why };
    if q.format.zero == Zero::Min {
        return Err(bad(format!("compressed-tensors has no {}; it has int4, int4z, int8 and e4m3", q.format)));
    }
    let plain = match dtype {
        Dtype::Bf16 => Storage::Bf16,
        Dtype::F16 => Storage::F16,
        Dtype::F32 | Dtype::Tf32 => Storage::F32,
        Dtype::E4m3 => return Err(WeightsError::Type { name: "a weight".into(), dtype: dtype.to_string() }),
    };
    let model: &Model = &weights.model;
    let mut described = model.config(dtype).map_err(|e| bad(e.to_string()))?;
    described["quantization_config"] = config(&q);
    new_folder(folder)?;
    let all = natural(model);
    let (mut header, mut total) = (Map::new(), 0);
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    for e in all.iter().flat_map(|n| entries(n, &q, plain)) {
        let end = total + e.bytes;
        header.insert(e.name, json!({ "dtype": e.dtype, "shape": e.shape, "data_offsets": [total, end] }));
        total = end;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    whole(&folder.join(ONE), |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(text.as_bytes())?;
        let mut written = 0;
        for n in &all {
            written += match linear(n) {
                None => weights.write(n, plain, Order::Halves, out)?,
                Some((_, shape)) => codes(weights, n, shape, &q, out)?,
            };
            progress(written, total);
        }
        Ok(())
    })?;
    // Last: a folder with it is whole.
    whole(&folder.join("config.json"), |out| Ok(writeln!(out, "{described:#}")?))
}

/// Writes the tensors of a weight in the order of its entries. Returns their bytes.
fn codes(
    weights: &Weights,
    n: &Natural,
    shape: [u64; 2],
    q: &Quantization,
    out: &mut impl Write,
) -> Result<u64, Failed> {
    let mut bytes = Vec::new();
    weights.write(n, Storage::F32, Order::Halves, &mut bytes)?;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    drop(bytes);
    let bad = |e: crate::weights::quant::QuantError| {
        Failed::Weights(WeightsError::File { path: n.name.clone().into(), why: e.to_string() })
    };
    let packed = quantize(&n.name, &values, shape, (q.format, q.scale), q.method).map_err(bad)?;
    let tensors = CompressedTensors::pack(&n.name, &packed).map_err(bad)?;
    let dimensions: Vec<u8> = match q.format.codes {
        Storage::Int4 => shape.iter().flat_map(|d| (*d as i64).to_le_bytes()).collect(),
        _ => Vec::new(),
    };
    let parts = [tensors.weight, dimensions, tensors.weight_scale, tensors.weight_zero_point.unwrap_or_default()];
    parts.iter().try_for_each(|part| out.write_all(part))?;
    Ok(parts.iter().map(|part| part.len() as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::quant::Compressed;
    use crate::weights::tests::{folder, tiny};
    use safetensors::tensor::SafeTensors;

    fn open(path: &Path) -> Weights {
        let (model, _) = Model::load(path.to_str().unwrap()).unwrap();
        Weights::open(path, &model).unwrap().0
    }

    #[test]
    fn what_is_written_is_what_is_quantised() {
        let stored = folder(&tiny("qwen3"), Dtype::F32, u64::MAX);
        let weights = open(stored.path());
        for (name, scale, kind) in [
            ("int4-g32", Storage::Bf16, "pack-quantized"),
            ("int4z-g32", Storage::F16, "pack-quantized"),
            ("int8-row", Storage::F32, "int-quantized"),
            ("e4m3-b128", Storage::F32, "float-quantized"),
        ] {
            let q = Quantization {
                format: ScaledFormat::parse(name).unwrap(),
                scale,
                method: Method::AbsMax,
                tokens: None,
            };
            let place = tempfile::tempdir().unwrap();
            compressed(&weights, q, Dtype::Bf16, place.path(), |written, total| assert!(written <= total)).unwrap();
            let config: Value =
                serde_json::from_slice(&std::fs::read(place.path().join("config.json")).unwrap()).unwrap();
            assert_eq!(config["quantization_config"]["format"], kind);
            assert_eq!(config["torch_dtype"], "bfloat16");
            let bytes = std::fs::read(place.path().join(ONE)).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mut linears = 0;
            for n in natural(&weights.model) {
                let Some((base, shape)) = linear(&n) else {
                    assert_eq!(file.tensor(&n.name).unwrap().dtype(), safetensors::Dtype::BF16);
                    continue;
                };
                linears += 1;
                let data = |what: &str| file.tensor(&format!("{base}.{what}")).map(|t| t.data()).ok();
                let read = Compressed {
                    name: base,
                    n: shape[0],
                    k: shape[1],
                    codes: q.format.codes,
                    per: q.format.per,
                    weight: data("weight_packed").or(data("weight")).unwrap(),
                    scale,
                    weight_scale: data("weight_scale").unwrap(),
                    weight_zero_point: data("weight_zero_point"),
                };
                let mut values = Vec::new();
                let Ok(_) = weights.write(&n, Storage::F32, Order::Halves, &mut values) else { panic!("{base}") };
                let values: Vec<f32> = values.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
                let wanted = quantize(base, &values, shape, (q.format, scale), q.method).unwrap();
                assert_eq!(read.unpack().unwrap(), wanted, "{base}");
            }
            assert_eq!(linears, 7 * weights.model.layers);
            let again = compressed(&weights, q, Dtype::Bf16, place.path(), |_, _| {}).unwrap_err().to_string();
            assert!(again.contains("it exists"), "{again}");
        }
        let q = Quantization {
            format: ScaledFormat::parse("int4m-g32").unwrap(),
            scale: Storage::F16,
            method: Method::AbsMax,
            tokens: None,
        };
        let e = compressed(&weights, q, Dtype::Bf16, stored.path(), |_, _| {}).unwrap_err().to_string();
        assert!(e.contains("int4m-g32"), "{e}");
    }
}
