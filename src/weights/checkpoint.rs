//! Checkpoints: the tensors of one or several safetensors files, or of a GGUF file, found by name.

use super::blocks::Format;
use super::names::{Natural, of_gguf};
use super::quantized::parts;
use super::{WeightsError, cache};
use crate::backend::mapped::Mapped;
use crate::file;
use crate::gguf;
use crate::model::Model;
use crate::problem::Storage;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file of a checkpoint that lies in one.
pub const ONE: &str = "model.safetensors";
/// The file that says in which others the tensors lie.
pub const INDEX: &str = "model.safetensors.index.json";
/// A GGUF file's divisors of RoPE's frequencies, which the model is read with.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The longest index that is read.
const MAX_INDEX: u64 = 64 << 20;
/// The longest header of a safetensors file.
const MAX_HEADER: usize = 100_000_000;

/// The tensors of a checkpoint, mapped into memory.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mapped)>,
    tensors: BTreeMap<String, Place>,
    /// Whether the rows of q and k are in the pairs that RoPE rotates already, as llama.cpp has them in files of Llama.
    paired: bool,
}

#[derive(Debug)]
struct Place {
    file: usize,
    start: usize,
    end: usize,
    format: Result<Format, String>,
    shape: Vec<u64>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// How its elements are stored.
    pub format: Format,
    /// Its shape, outermost first.
    pub shape: &'a [u64],
    /// Its elements, little-endian, row by row.
    pub bytes: &'a [u8],
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a folder with a safetensors checkpoint, in one file or by its index, or such a file itself, or a GGUF file.
    pub fn open(path: &Path) -> Result<Checkpoint, WeightsError> {
        let files = if path.is_dir() { files(path)? } else { vec![path.to_path_buf()] };
        let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), paired: false };
        for path in files {
            let mapped = Mapped::open(&path).map_err(|source| WeightsError::Io { path: path.clone(), source })?;
            if mapped.starts_with(&gguf::MAGIC) {
                checkpoint.add_gguf(path, mapped)?;
            } else {
                checkpoint.add(path, mapped)?;
            }
        }
        Ok(checkpoint)
    }

    fn add_gguf(&mut self, path: PathBuf, mapped: Mapped) -> Result<(), WeightsError> {
        let bad = |why: String| WeightsError::File { path: path.clone(), why };
        let header = gguf::Header::read(&mapped).map_err(|e| bad(e.to_string()))?;
        self.paired = header.text("general.architecture").map_err(bad)? == Some("llama");
        let mut longest = 0;
        for t in header.tensors {
            let format = Format::of_ggml(t.kind).ok_or_else(|| format!("ggml's type {}", t.kind));
            let end = match &format {
                // What cannot be read need not be there.
                Err(_) => Some(t.at),
                Ok(format) => {
                    let (columns, outer) = t.shape.split_last().unwrap_or((&1, &[]));
                    let rows = outer.iter().try_fold(1, |n: u64, d| n.checked_mul(*d));
                    let Some(row) = format.bytes(*columns) else {
                        return Err(bad(format!("{}: rows of {columns} elements are no blocks of {format:?}", t.name)));
                    };
                    let bytes = rows.and_then(|rows: u64| rows.checked_mul(row));
                    bytes.and_then(|bytes| t.at.checked_add(usize::try_from(bytes).ok()?))
                }
            };
            let Some(end) = end else {
                return Err(bad(format!("{} of {:?} lies beyond memory", t.name, t.shape)));
            };
            longest = longest.max(end);
            // A tensor that no model has here keeps its name, and is left over.
            let name = of_gguf(&t.name).unwrap_or(t.name);
            let place = Place { file: self.files.len(), start: t.at, end, format, shape: t.shape };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(bad(format!("{name} is there twice")));
            }
        }
        if longest > mapped.len() {
            return Err(bad(cut_short(mapped.len(), longest)));
        }
        self.files.push((path, mapped));
        Ok(())
    }

    /// Whether the rows of q and k are in pairs already.
    pub(super) fn is_paired(&self) -> bool {
        self.paired
    }

    fn add(&mut self, path: PathBuf, mapped: Mapped) -> Result<(), WeightsError> {
        let bad = |why: String| WeightsError::File { path: path.clone(), why };
        let (header, metadata) = SafeTensors::read_metadata(&mapped)
            .map_err(|e| bad(missing(&mapped).map_or_else(|| e.to_string(), |all| cut_short(mapped.len(), all))))?;
        let data = 8 + header;
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let place = Place {
                file: self.files.len(),
                start,
                end,
                format: storage(info.dtype).map(Format::Plain).ok_or_else(|| info.dtype.to_string()),
                shape: info.shape.iter().map(|d| *d as u64).collect(),
            };
            if let Some(other) = self.tensors.insert(name.clone(), place) {
                let first = self.files[other.file].0.display();
                return Err(bad(format!("{name} is in {first} too")));
            }
        }
        self.files.push((path, mapped));
        Ok(())
    }

    /// How many tensors there are, in how many files, of how many bytes.
    pub fn size(&self) -> (usize, usize, u64) {
        let bytes = self.tensors.values().map(|t| (t.end - t.start) as u64).sum();
        (self.tensors.len(), self.files.len(), bytes)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Result<Stored<'_>, WeightsError> {
        let place = self.tensors.get(name).ok_or_else(|| WeightsError::Missing { names: vec![name.into()] })?;
        let format = place.format.clone().map_err(|dtype| WeightsError::Type { name: name.into(), dtype })?;
        Ok(Stored { format, shape: &place.shape, bytes: &self.files[place.file].1[place.start..place.end] })
    }

    /// Whether it holds a tensor of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Says that what was read so far is not read again soon, nor what the system brought in beside it.
    pub(super) fn let_go(&self) {
        self.files.iter().for_each(|(_, mapped)| mapped.let_go());
    }

    /// The shape and the bytes of a tensor of whatever type.
    pub(super) fn raw(&self, name: &str) -> Option<(&[u64], &[u8])> {
        let place = self.tensors.get(name)?;
        Some((&place.shape, &self.files[place.file].1[place.start..place.end]))
    }

    /// What a tensor is of, as its file has it: bf16, f16 or f32, or the name of another type.
    pub(super) fn kind(&self, name: &str) -> Option<Result<Format, &str>> {
        self.tensors.get(name).map(|place| place.format.as_ref().map(|f| *f).map_err(String::as_str))
    }

    /// Whether it holds what the model needs, each tensor in its shape, and nothing that the model has no place for. What
    /// is passed over without changing what is computed is named.
    pub(super) fn check(&self, model: &Model, natural: &[Natural]) -> Result<Vec<String>, WeightsError> {
        // What a weight is stored as: itself, or the parts of a quantised one.
        let module = |n: &Natural| {
            let q = model.quantization.as_ref()?;
            q.module(&n.name).map(|module| (module.to_string(), q))
        };
        let named = |n: &Natural, optional: bool| match module(n) {
            None if optional => Vec::new(),
            None => vec![n.name.clone()],
            Some((module, q)) => {
                let (needed, more) = parts(q);
                if optional { more } else { needed }.iter().map(|part| format!("{module}.{part}")).collect()
            }
        };
        let needed: Vec<String> = natural.iter().flat_map(|n| named(n, false)).collect();
        let missing: Vec<String> = needed.iter().filter(|name| !self.tensors.contains_key(*name)).cloned().collect();
        if !missing.is_empty() {
            return Err(WeightsError::Missing { names: missing });
        }
        for n in natural {
            if let Some((module, q)) = module(n) {
                self.check_shape(&module, q, n)?;
                continue;
            }
            let found = self.get(&n.name)?;
            if found.shape != n.shape {
                let (name, found, wanted) = (n.name.clone(), found.shape.to_vec(), n.shape.clone());
                return Err(WeightsError::Shape { name, found, wanted });
            }
        }
        let known: BTreeSet<String> = needed.into_iter().chain(natural.iter().flat_map(|n| named(n, true))).collect();
        let mut notes = Vec::new();
        let mut left = Vec::new();
        for name in self.tensors.keys().filter(|name| !known.contains(*name)) {
            // Tables of older transformers, which follow from the configuration; and a head that the configuration ties.
            let follows = name.ends_with(".rotary_emb.inv_freq") || name == ROPE_FACTORS;
            let tied = name == "lm_head.weight" && model.tie_word_embeddings;
            match (follows || cache::is_scale(model, name), tied) {
                (true, _) => {}
                (_, true) => {
                    notes.push(format!("{name} is passed over: tie_word_embeddings makes the embedding the head"))
                }
                _ => left.push(name.clone()),
            }
        }
        if !left.is_empty() {
            return Err(WeightsError::LeftOver { names: left });
        }
        if cache::check(self, model)? > 0 {
            notes
                .push("the scales of the cache (self_attn.k_scale, v_scale) are used with --kv-dtype e4m3, and with nothing else".into());
        }
        Ok(notes)
    }
}

/// The files of a folder that hold tensors.
fn files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let (one, index) = (folder.join(ONE), folder.join(INDEX));
    let io = |source| WeightsError::Io { path: index.clone(), source };
    let bad = |why: String| WeightsError::File { path: index.clone(), why };
    let length = match std::fs::metadata(&index) {
        Ok(found) => found.len(),
        Err(_) if one.exists() => return Ok(vec![one]),
        Err(_) => return Err(WeightsError::None { folder: folder.into() }),
    };
    if length > MAX_INDEX {
        return Err(bad(format!("it has {length} bytes, {MAX_INDEX} are the most")));
    }
    let text = file::text(&index, MAX_INDEX).map_err(io)?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let mut names: Vec<String> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // It names files of its own folder, and no others.
    let own = |name: &String| Path::new(name).file_name().is_some_and(|file| file == name.as_str());
    match names.iter().find(|name| !own(name)) {
        Some(other) => Err(bad(format!("it names {other:?}, which is no file of this folder"))),
        None => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
    }
}

/// What is said of a file that should have more bytes.
fn cut_short(there: usize, all: usize) -> String {
    format!("it is cut short: it has {there} bytes, and should have {all} at least; fetch it again")
}

/// How many bytes a safetensors file should have at least, where it has fewer.
fn missing(bytes: &[u8]) -> Option<usize> {
    let Some(length) = bytes.first_chunk() else { return Some(8) };
    let data = usize::try_from(u64::from_le_bytes(*length)).ok()?.checked_add(8)?;
    // A longer header is none: such a file is another thing.
    let all = match bytes.get(8..data) {
        None => Some(data).filter(|_| data <= MAX_HEADER && bytes.get(8) == Some(&b'{')),
        Some(header) => {
            let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
            let ends = tensors.values().filter_map(|t| t["data_offsets"][1].as_u64()).max()?;
            data.checked_add(usize::try_from(ends).ok()?)
        }
    };
    all.filter(|all| *all > bytes.len())
}

fn storage(dtype: Dtype) -> Option<Storage> {
    match dtype {
        Dtype::BF16 => Some(Storage::Bf16),
        Dtype::F16 => Some(Storage::F16),
        Dtype::F32 => Some(Storage::F32),
        _ => None,
    }
}
