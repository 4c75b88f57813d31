//! The scales of a cache of codes, as checkpoints have them: of the keys and of the values of a layer, for all its heads or for each.

use super::blocks::Format;
use super::checkpoint::Checkpoint;
use super::{Weights, WeightsError};
use crate::model::Model;

/// What they are called in a layer's attention, the keys' first.
const NAMES: [&str; 2] = ["k_scale", "v_scale"];

fn name(layer: i64, which: &str) -> String {
    format!("model.layers.{layer}.self_attn.{which}")
}

/// Whether a tensor of a checkpoint is one of the model's.
pub(super) fn is_scale(model: &Model, of: &str) -> bool {
    let layer = || of.strip_prefix("model.layers.")?.split_once('.')?.0.parse::<i64>().ok();
    layer().is_some_and(|l| (0..model.layers).contains(&l) && NAMES.iter().any(|which| name(l, which) == of))
}

/// The scales of the heads of a layer's keys, or its values; 1 where the checkpoint has none.
fn scales(checkpoint: &Checkpoint, model: &Model, of: &str) -> Result<Vec<f32>, WeightsError> {
    let heads = model.kv_heads.unsigned_abs();
    let stored = match checkpoint.get(of) {
        Err(WeightsError::Missing { .. }) => return Ok(vec![1.0; heads as usize]),
        stored => stored?,
    };
    let count: u64 = stored.shape.iter().product();
    if count != 1 && count != heads {
        return Err(WeightsError::Shape { name: of.into(), found: stored.shape.to_vec(), wanted: vec![heads] });
    }
    let Format::Plain(storage) = stored.format else {
        return Err(WeightsError::Type { name: of.into(), dtype: format!("{:?}", stored.format) });
    };
    let each = (0..heads).map(|head| storage.value(stored.bytes, head % count) as f32);
    let values: Vec<f32> = each.collect();
    match values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
        Some(v) => Err(WeightsError::Quantised { why: format!("{of}: {v} is no scale") }),
        None => Ok(values),
    }
}

/// Looks at the scales that a checkpoint has of a model's cache, and says how many tensors they are.
pub(super) fn check(checkpoint: &Checkpoint, model: &Model) -> Result<usize, WeightsError> {
    let names = (0..model.layers).flat_map(|layer| NAMES.map(|which| name(layer, which)));
    names.filter(|of| checkpoint.has(of)).try_fold(0, |count, of| scales(checkpoint, model, &of).map(|_| count + 1))
}

impl Weights {
    /// `kv_scales [2, kv_heads]` of a layer.
    pub(super) fn cache_scales(&self, layer: i64, out: &mut [u8]) -> Result<(), WeightsError> {
        let mut all = Vec::new();
        for which in NAMES {
            all.extend(scales(&self.checkpoint, &self.model, &name(layer, which))?);
        }
        out.as_chunks_mut().0.iter_mut().zip(all).for_each(|(to, scale)| *to = scale.to_le_bytes());
        Ok(())
    }
}

/// Puts f32 tensors of these names, behind `model.`, into a folder's one file: tests hold scales that no random folder has.
#[cfg(test)]
pub(crate) fn add_scales(folder: &std::path::Path, scales: &[(&str, &[f32])]) {
    let path = folder.join(super::checkpoint::ONE);
    let bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let mut body = bytes[data..].to_vec();
    for (of, values) in scales {
        let begin = body.len();
        body.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = serde_json::json!({ "dtype": "F32", "shape": [values.len()], "data_offsets": [begin, body.len()] });
        header[format!("model.{of}")] = entry;
    }
    let mut text = header.to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    std::fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &body].concat()).unwrap();
}

#[cfg(test)]
mod tests {
    use super::super::tests::{filled, folder, tiny};
    use super::*;
    use crate::model::Precision;
    use crate::problem::{Dtype, Storage};

    #[test]
    fn scales_of_a_cache_are_those_of_the_checkpoint_or_one() {
        let (model, precision) = (tiny("qwen3"), Precision::from(Dtype::F32).with_cache(Some(Storage::E4m3)));
        let opened = |scales: &[(&str, &[f32])]| {
            let place = folder(&model, Dtype::F32, u64::MAX);
            add_scales(place.path(), scales);
            let (weights, notes) = Weights::open(place.path(), &model)?;
            let all = filled(&weights, &model, &precision)?;
            let of = |layer: i64| {
                let bytes = &all[&format!("layers.{layer}.kv_scales")];
                (0..4).map(|i| Storage::F32.value(bytes, i)).collect::<Vec<f64>>()
            };
            Ok::<_, WeightsError>((notes.len(), of(0), of(1)))
        };
        assert_eq!(opened(&[]).unwrap(), (0, vec![1.0; 4], vec![1.0; 4]));
        let (k, v) = ("layers.1.self_attn.k_scale", "layers.1.self_attn.v_scale");
        assert_eq!(opened(&[(k, &[0.5]), (v, &[2.0, 3.0])]).unwrap(), (1, vec![1.0; 4], vec![0.5, 0.5, 2.0, 3.0]));
        for (name, values, said) in [
            (k, &[1.0, 2.0, 3.0][..], "has the shape [3], and the model's is [2]"),
            (v, &[0.0], "0 is no scale"),
            (v, &[f32::NAN], "NaN is no scale"),
            ("layers.2.self_attn.k_scale", &[1.0], "no place for: model.layers.2.self_attn.k_scale"),
            ("layers.1.self_attn.q_scale", &[1.0], "no place for"),
        ] {
            let e = opened(&[(name, values)]).unwrap_err().to_string();
            assert!(e.contains(said), "{said}: {e}");
        }
    }
}
