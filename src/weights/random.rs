//! Folders of random weights that any engine loads.

use super::checkpoint::{INDEX, ONE};
use super::names::{Natural, natural};
use super::{WeightsError, to_bf16, to_f16};
use crate::model::Model;
use crate::problem::{Dtype, Storage, hash_uniform};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Bytes of a file's tensors, beyond which the next file begins.
const FILE_BYTES: u64 = 4 << 30;
/// Elements that are made at a time.
const PART: u64 = 1 << 22;

/// Writes a folder with the model's `config.json` and random weights of this type, bf16, f16 or f32, the same for the same seed: `progress`
/// hears the bytes that are written and those of all tensors. A folder that holds a model already is refused.
///
/// Products keep what goes through them of about the same size, and the head makes logits of a standard deviation of about
/// four: with small random weights, as initialisers make them, all tokens would be equally likely to a few thousandths.
pub fn write(
    model: &Model,
    seed: u64,
    dtype: Dtype,
    folder: &Path,
    progress: impl Fn(u64, u64),
) -> Result<(), WeightsError> {
    write_files(model, seed, dtype, folder, FILE_BYTES, progress)
}

pub(super) fn write_files(
    model: &Model,
    seed: u64,
    dtype: Dtype,
    folder: &Path,
    file_bytes: u64,
    progress: impl Fn(u64, u64),
) -> Result<(), WeightsError> {
    let storage = match dtype {
        Dtype::Bf16 => Storage::Bf16,
        Dtype::F16 => Storage::F16,
        Dtype::F32 | Dtype::Tf32 => Storage::F32,
        Dtype::E4m3 => return Err(WeightsError::Type { name: "a weight".into(), dtype: dtype.to_string() }),
    };
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| WeightsError::Io { path, source }
    };
    let config = model.config(dtype).map_err(|e| WeightsError::File { path: folder.into(), why: e.to_string() })?;
    new_folder(folder)?;
    let all = natural(model);
    let bytes = |n: &Natural| storage.bytes(n.shape.iter().product());
    let total: u64 = all.iter().map(bytes).sum();
    let mut files: Vec<Vec<&Natural>> = vec![Vec::new()];
    let mut filled = 0;
    for n in &all {
        if filled > 0 && filled + bytes(n) > file_bytes {
            files.push(Vec::new());
            filled = 0;
        }
        filled += bytes(n);
        if let Some(last) = files.last_mut() {
            last.push(n);
        }
    }
    let name = |number: usize| match files.len() {
        1 => ONE.to_string(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let (mut written, mut map) = (0, Map::new());
    for (number, tensors) in files.iter().enumerate() {
        let path = folder.join(name(number));
        let mut file = BufWriter::new(File::create(&path).map_err(io(&path))?);
        file.write_all(&header(tensors, storage)).map_err(io(&path))?;
        for n in tensors {
            map.insert(n.name.clone(), name(number).into());
            let (spread, center) = spread(n, model);
            let own = own_seed(seed, &n.name);
            let elements: u64 = n.shape.iter().product();
            for start in (0..elements).step_by(PART as usize) {
                let value = |i: u64| center + spread * hash_uniform(own, i);
                let part = start..elements.min(start + PART);
                let bytes: Vec<u8> = match storage {
                    Storage::Bf16 => part.into_par_iter().flat_map_iter(|i| to_bf16(value(i))).collect(),
                    Storage::F16 => part.into_par_iter().flat_map_iter(|i| to_f16(value(i))).collect(),
                    _ => part.into_par_iter().flat_map_iter(|i| value(i).to_le_bytes()).collect(),
                };
                file.write_all(&bytes).map_err(io(&path))?;
                written += bytes.len() as u64;
                progress(written, total);
            }
        }
        file.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).map_err(io(&path))?;
    }
    if files.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let path = folder.join(INDEX);
        std::fs::write(&path, format!("{index:#}\n")).map_err(io(&path))?;
    }
    // Last: a folder with it is whole.
    let path = folder.join("config.json");
    std::fs::write(&path, format!("{config:#}\n")).map_err(io(&path))
}

/// Makes a folder for a model; one that holds one already is refused.
pub(super) fn new_folder(folder: &Path) -> Result<(), WeightsError> {
    std::fs::create_dir_all(folder).map_err(|source| WeightsError::Io { path: folder.into(), source })?;
    match ["config.json", ONE, INDEX].map(|name| folder.join(name)).into_iter().find(|path| path.exists()) {
        Some(path) => Err(WeightsError::File { path, why: "it exists; -o names a folder without a model".into() }),
        None => Ok(()),
    }
}

/// The header of a safetensors file: its length in eight bytes, and JSON that is padded to a multiple of eight.
fn header(tensors: &[&Natural], storage: Storage) -> Vec<u8> {
    let dtype = match storage {
        Storage::Bf16 => "BF16",
        Storage::F16 => "F16",
        _ => "F32",
    };
    let (mut map, mut at) = (Map::new(), 0);
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    for n in tensors {
        let end = at + storage.bytes(n.shape.iter().product());
        map.insert(n.name.clone(), json!({ "dtype": dtype, "shape": n.shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut text = Value::Object(map).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The largest magnitude of a tensor's elements, and what they lie around. A uniform number has its bound over √3 for a
/// standard deviation.
fn spread(n: &Natural, model: &Model) -> (f32, f32) {
    let columns = n.shape.last().copied().unwrap_or(1) as f32;
    match (n.shape.len(), n.name.as_str()) {
        (_, name) if name.ends_with("norm.weight") || name.ends_with("layernorm.weight") => (0.2, 1.0),
        (1, _) => (0.2, 0.0),
        (_, "lm_head.weight") => (4.0 * (3.0 / columns).sqrt(), 0.0),
        (_, "model.embed_tokens.weight") if model.tie_word_embeddings => (4.0 * (3.0 / columns).sqrt(), 0.0),
        (_, "model.embed_tokens.weight") => (1.0, 0.0),
        _ => ((3.0 / columns).sqrt(), 0.0),
    }
}

/// A seed for each tensor: the first bytes of a hash of its name and the folder's seed.
fn own_seed(seed: u64, name: &str) -> u64 {
    let hash = blake3::hash(format!("{seed} {name}").as_bytes());
    u64::from_le_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default())
}
