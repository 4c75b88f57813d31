//! Weights: the tensors of a checkpoint, held against a model, and arranged as the model's programs read them.
//!
//! Reads files and makes bytes; knows no device and no kernel. Hugging Face's safetensors folders, in one file or several, and
//! GGUF files.
//! `names` says which tensors a model has and what a program's tensors are made of, `checkpoint` finds them in files, `fill`
//! makes these of them, plain or in a scaled format,
//! `random` makes folders of random ones, [`pack`] files of other engines, [`quant`] codes and scales.

mod blocks;
mod cache;
mod checkpoint;
mod fill;
mod names;
pub mod pack;
pub mod quant;
mod quantized;
mod random;

pub use blocks::Format;
#[cfg(all(test, feature = "tuner"))]
pub(crate) use cache::add_scales;
pub use checkpoint::{Checkpoint, Stored};
pub use fill::Filler;
pub use names::{Natural, Rows, Source, natural, source};
pub use random::write;

use crate::model::Model;
use crate::problem::Storage;
use half::{bf16, f16};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Names that an error lists.
const NAMED: usize = 8;

/// Why weights cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A folder without weights.
    #[error("{folder}: neither model.safetensors nor model.safetensors.index.json is in it")]
    None {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Tensors that the model needs.
    #[error("missing: {}", listed(.names))]
    Missing {
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors that the model has no place for: whoever leaves them out computes another model.
    #[error("the model has no place for: {}; is the config.json of these weights?", listed(.names))]
    LeftOver {
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor of another shape.
    #[error("{name} has the shape {found:?}, and the model's is {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// What the model says.
        wanted: Vec<u64>,
    },
    /// A tensor of a type that is not read.
    #[error(
        "{name} is of {dtype}; BF16, F16 and F32 are read, and of ggml's types also Q8_0, Q4_0, Q4_1, Q4_K and Q6_K"
    )]
    Type {
        /// Its name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A weight that is no number.
    #[error("{name}: element {index} is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Which of its elements, row by row.
        index: u64,
        /// NaN or an infinity.
        value: f64,
    },
    /// A weight that a narrower type cannot hold.
    #[error("{name}: element {index} is {value}, more than {storage} holds; --dtype bf16 or f32 does", storage = .storage.name())]
    TooLarge {
        /// The tensor.
        name: String,
        /// Which of its elements, row by row.
        index: u64,
        /// Its value.
        value: f64,
        /// The type.
        storage: Storage,
    },
    /// Codes and scales that are not what their format says, or that a format cannot hold.
    #[error("{why}")]
    Quantised {
        /// Which, and why.
        why: String,
    },
    /// A tensor that is no weight of the model.
    #[error("{model} has no weight {name}")]
    Unknown {
        /// The model.
        model: String,
        /// What was asked for.
        name: String,
    },
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", names[..names.len() - more].join(", "))
}

/// The weights of a model.
#[derive(Debug)]
pub struct Weights {
    model: Model,
    checkpoint: Checkpoint,
}

impl Weights {
    /// Opens a checkpoint and holds it against the model: whether each of its tensors is there, in its shape, and nothing
    /// else. Beside it what is to be said of what was passed over. Elements are looked at when they are read.
    pub fn open(path: &Path, model: &Model) -> Result<(Weights, Vec<String>), WeightsError> {
        let checkpoint = Checkpoint::open(path)?;
        let notes = checkpoint.check(model, &natural(model))?;
        Ok((Weights { model: model.clone(), checkpoint }, notes))
    }

    /// The files behind it.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Looks at every element of every tensor that the model uses.
    pub fn check(&self) -> Result<(), WeightsError> {
        natural(&self.model).iter().try_for_each(|n| {
            let held = self.held(n)?;
            (0..n.shape[0]).into_par_iter().try_for_each(|at| held.row(at).check())
        })
    }

    /// cos and sin of position × frequency in turn, of each pair of each position.
    fn rope(&self, out: &mut [u8]) {
        let frequencies = self.model.rope.inverse_frequencies(self.model.head_dim);
        out.par_chunks_exact_mut(frequencies.len() * 8).enumerate().for_each(|(position, row)| {
            for (pair, f) in row.as_chunks_mut::<8>().0.iter_mut().zip(&frequencies) {
                let (sin, cos) = (position as f64 * f).sin_cos();
                pair[..4].copy_from_slice(&(cos as f32).to_le_bytes());
                pair[4..].copy_from_slice(&(sin as f32).to_le_bytes());
            }
        });
    }
}

/// The elements of a row one by one: those of blocks in f32.
struct Unpacked {
    storage: Storage,
    values: Vec<u8>,
}

impl Unpacked {
    fn of(format: Format, row: &[u8], columns: u64) -> Unpacked {
        if let Format::Plain(storage) = format {
            return Unpacked { storage, values: Vec::new() };
        }
        let mut values = vec![0.0; columns as usize];
        format.unpack(row, &mut values);
        Unpacked { storage: Storage::F32, values: values.into_iter().flat_map(f32::to_le_bytes).collect() }
    }

    fn bytes<'a>(&'a self, row: &'a [u8]) -> &'a [u8] {
        if self.values.is_empty() { row } else { &self.values }
    }
}

/// Looks at the elements of a row; none may be NaN or infinite.
fn finite(bytes: &[u8], storage: Storage, row: u64, name: &str) -> Result<(), WeightsError> {
    // All ones in the exponent: the loop ends nowhere early, so that it is vectorised.
    let any = match storage {
        Storage::Bf16 => {
            bytes.as_chunks().0.iter().fold(false, |any, b| any | (u16::from_le_bytes(*b) & 0x7f80 == 0x7f80))
        }
        Storage::F16 => {
            bytes.as_chunks().0.iter().fold(false, |any, b| any | (u16::from_le_bytes(*b) & 0x7c00 == 0x7c00))
        }
        Storage::F32 => bytes.as_chunks().0.iter().fold(false, |any, b| any | !f32::from_le_bytes(*b).is_finite()),
        Storage::E4m3 | Storage::I32 | Storage::Int4 | Storage::Int8 | Storage::U8 => return Ok(()),
    };
    if !any {
        return Ok(());
    }
    let columns = bytes.len() as u64 * 8 / storage.bits();
    let first = (0..columns).find(|i| !storage.value(bytes, *i).is_finite()).unwrap_or(0);
    let (index, value) = (row * columns + first, storage.value(bytes, first));
    Err(WeightsError::NotFinite { name: name.into(), index, value })
}

/// Rounds a row of a tensor into another type.
fn put(from: &[u8], storage: Storage, out: &mut [u8], to: Storage, row: u64, name: &str) -> Result<(), WeightsError> {
    finite(from, storage, row, name)?;
    if storage == to {
        out.copy_from_slice(from);
        return Ok(());
    }
    match (storage, to) {
        (Storage::Bf16, Storage::F32) => convert(from, out, |b| bf16::from_le_bytes(b).to_f32(), f32::to_le_bytes),
        (Storage::F16, Storage::F32) => convert(from, out, |b| f16::from_le_bytes(b).to_f32(), f32::to_le_bytes),
        (Storage::F32, Storage::Bf16) => convert(from, out, f32::from_le_bytes, to_bf16),
        (Storage::F16, Storage::Bf16) => convert(from, out, |b| f16::from_le_bytes(b).to_f32(), to_bf16),
        (Storage::F32, Storage::F16) => convert(from, out, f32::from_le_bytes, to_f16),
        (Storage::Bf16, Storage::F16) => convert(from, out, |b| bf16::from_le_bytes(b).to_f32(), to_f16),
        _ => return Err(WeightsError::Type { name: name.into(), dtype: format!("{storage} where {to} is wanted") }),
    }
    // What was finite and is not any more was too large.
    finite(out, to, row, name).map_err(|e| match e {
        WeightsError::NotFinite { name, index, .. } => {
            let columns = from.len() as u64 * 8 / storage.bits();
            WeightsError::TooLarge { name, index, value: storage.value(from, index - row * columns), storage: to }
        }
        other => other,
    })
}

fn to_bf16(v: f32) -> [u8; 2] {
    bf16::from_f32(v).to_le_bytes()
}

fn to_f16(v: f32) -> [u8; 2] {
    f16::from_f32(v).to_le_bytes()
}

fn convert<const FROM: usize, const TO: usize>(
    from: &[u8],
    out: &mut [u8],
    value: impl Fn([u8; FROM]) -> f32,
    bits: impl Fn(f32) -> [u8; TO],
) {
    for (to, from) in out.as_chunks_mut::<TO>().0.iter_mut().zip(from.as_chunks::<FROM>().0) {
        *to = bits(value(*from));
    }
}

#[cfg(test)]
pub(in crate::weights) mod tests {
    use super::*;
    use crate::gguf::Writer;
    use crate::model::{Buckets, Pass, Precision};
    use crate::problem::{Dtype, Types};
    use crate::program::Life;
    use std::collections::BTreeMap;
    use std::fs;

    /// Small, and with every tensor that a family can have.
    pub(in crate::weights) fn tiny(family: &str) -> Model {
        let preset = match family {
            "mistral" => "mistral-7b-v0.3",
            "qwen2" => "qwen2.5-7b",
            "qwen3" => "qwen3-0.6b",
            _ => "llama-3.2-1b",
        };
        let bias = family == "llama";
        let base = Model::preset(preset).unwrap();
        let (qkv_bias, o_bias, mlp_bias) = (bias || base.qkv_bias, bias, bias);
        let sizes =
            Model { hidden: 24, intermediate: 40, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, vocab: 50, ..base };
        Model { max_position_embeddings: 64, qkv_bias, o_bias, mlp_bias, ..sizes }
    }

    pub(in crate::weights) fn folder(model: &Model, dtype: Dtype, file_bytes: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        random::write_files(model, 7, dtype, folder.path(), file_bytes, |_, _| {}).unwrap();
        folder
    }

    /// Every weight of the model's programs in that type, by name.
    pub(in crate::weights) fn filled(
        weights: &Weights,
        model: &Model,
        precision: impl Into<Precision>,
    ) -> Result<BTreeMap<String, Vec<u8>>, WeightsError> {
        let buckets = Buckets { batch: vec![1], prefill: vec![], chunk: vec![], context: 64, page: 8 };
        let precision = &precision.into();
        let pass = Pass::all(model, &buckets, precision).unwrap().remove(0);
        let of_weight = pass.program.tensors.iter().filter(|t| t.life == Life::Weight);
        let mut filler = weights.filler(precision);
        of_weight
            .map(|t| {
                let mut bytes = vec![0xff; t.bytes() as usize];
                filler.fill(t, &mut bytes).map(|()| (t.name.clone(), bytes))
            })
            .collect()
    }

    #[test]
    fn a_folder_is_read_as_the_programs_want_it() {
        for family in ["llama", "mistral", "qwen2", "qwen3"] {
            let model = tiny(family);
            let place = folder(&model, Dtype::F32, u64::MAX);
            let (read, _) = Model::load(place.path().to_str().unwrap()).unwrap();
            let model = Model { name: read.name.clone(), dtype: Some(Dtype::F32), ..model };
            assert_eq!(read, model);
            let (weights, notes) = Weights::open(place.path(), &model).unwrap();
            weights.check().unwrap();
            assert_eq!(notes, Vec::<String>::new());
            let all = filled(&weights, &model, Dtype::F32).unwrap();
            // Row by row, against what the layout says.
            for (name, bytes) in &all {
                let Some(Source::Rows(rows)) = source(&model, name) else { continue };
                let columns = rows.of[0].shape.get(1).copied().unwrap_or(1) as usize * 4;
                for (at, row) in bytes.chunks(columns).enumerate() {
                    let (of, from) = rows.row(at as u64, false);
                    let natural = weights.checkpoint().get(&rows.of[of].name).unwrap();
                    assert_eq!(row, &natural.bytes[from as usize * columns..][..columns], "{name}, row {at}");
                }
            }
            // The table: pair 1 at position 3.
            let f = model.rope.inverse_frequencies(8)[1];
            let pair = &all["rope"][(3 * 4 + 1) * 8..][..8];
            assert_eq!(Storage::F32.value(pair, 0), f64::from((3.0 * f).cos() as f32));
            assert_eq!(Storage::F32.value(pair, 1), f64::from((3.0 * f).sin() as f32));
        }
    }

    #[test]
    fn several_files_are_as_one_and_types_are_rounded() {
        let model = tiny("qwen3");
        let (one, several) = (folder(&model, Dtype::F32, u64::MAX), folder(&model, Dtype::F32, 5000));
        let open = |place: &tempfile::TempDir| Weights::open(place.path(), &model).unwrap().0;
        let (one, several) = (open(&one), open(&several));
        assert!(one.checkpoint().size().1 == 1 && several.checkpoint().size().1 > 3);
        assert_eq!(filled(&one, &model, Dtype::F32).unwrap(), filled(&several, &model, Dtype::F32).unwrap());
        for (stored, wanted) in [(Dtype::Bf16, Dtype::F32), (Dtype::F16, Dtype::Bf16), (Dtype::F32, Dtype::F16)] {
            let place = folder(&model, stored, u64::MAX);
            let weights = open(&place);
            let (same, other) = (filled(&weights, &model, stored).unwrap(), filled(&weights, &model, wanted).unwrap());
            let (from, to) = (Types::from(stored).w, Types::from(wanted).w);
            for (name, bytes) in same.iter().filter(|(name, _)| *name != "rope") {
                for i in 0..bytes.len() as u64 * 8 / from.bits() {
                    let value = from.value(bytes, i) as f32;
                    assert_eq!(to.value(&other[name], i), f64::from(to.round(value)), "{name} {i}");
                }
            }
        }
    }

    /// What opening or reading says after the one file of a folder, or its index, was changed.
    fn said(model: &Model, stored: &Model, wanted: Dtype, change: impl Fn(&Path)) -> String {
        let place = folder(stored, Dtype::F32, u64::MAX);
        change(place.path());
        match Weights::open(place.path(), model) {
            Err(e) => e.to_string(),
            Ok((weights, notes)) => match weights.check().and_then(|()| filled(&weights, model, wanted)) {
                Err(e) => e.to_string(),
                Ok(_) => format!("{notes:?}"),
            },
        }
    }

    #[test]
    fn what_is_not_the_models_is_said_by_name() {
        let model = tiny("llama");
        let more = Model { layers: 3, ..model.clone() };
        let wider = Model { intermediate: 48, ..model.clone() };
        let plain = Model { o_bias: false, ..model.clone() };
        let untied = Model { tie_word_embeddings: false, ..model.clone() };
        let nothing = |_: &Path| {};
        // One element of the first tensor that is written.
        let poke = |value: f32| {
            move |folder: &Path| {
                let path = folder.join("model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let data = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
                bytes[data + 8..data + 12].copy_from_slice(&value.to_le_bytes());
                fs::write(&path, bytes).unwrap();
            }
        };
        let text = |from: &'static str, to: &'static str| {
            move |folder: &Path| {
                let path = folder.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
                let bytes = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
                fs::write(&path, bytes).unwrap();
            }
        };
        let index = |map: &'static str| {
            move |folder: &Path| fs::write(folder.join("model.safetensors.index.json"), map).unwrap()
        };
        let f32 = Dtype::F32;
        for (said, words) in [
            (said(&more, &model, f32, nothing), "missing: model.layers.2.input_layernorm.weight, "),
            (said(&more, &model, f32, nothing), " more"),
            (said(&model, &more, f32, nothing), "the model has no place for: model.layers.2."),
            (said(&plain, &model, f32, nothing), "no place for: model.layers.0.self_attn.o_proj.bias, model.layers.1."),
            (said(&wider, &model, f32, nothing), "has the shape [40, 24], and the model's is [48, 24]"),
            (said(&untied, &model, f32, nothing), "missing: lm_head.weight"),
            (said(&model, &untied, f32, nothing), "lm_head.weight is passed over: tie_word_embeddings"),
            (said(&model, &model, f32, poke(f32::NAN)), "model.layers.0.input_layernorm.weight: element 2 is NaN"),
            (said(&model, &model, Dtype::F16, poke(1e6)), "element 2 is 1000000, more than f16 holds"),
            (said(&model, &model, Dtype::Bf16, poke(f32::MAX)), "more than bf16 holds"),
            (said(&model, &model, f32, poke(1e6)), "[]"),
            (said(&model, &model, f32, text("F32", "I32")), "is of I32; BF16, F16 and F32 are read"),
            (said(&model, &model, f32, text("\"shape\":[24]", "\"shape\":[25]")), "model.safetensors: "),
            (
                said(&model, &model, f32, |f| fs::remove_file(f.join("model.safetensors")).unwrap()),
                "neither model.safe",
            ),
            (
                said(&model, &model, f32, |f| fs::write(f.join("model.safetensors"), "short").unwrap()),
                "model.safetensors: ",
            ),
            (
                said(&model, &model, f32, index("{\"weight_map\":{\"a\":\"../a\"}}")),
                "\"../a\", which is no file of this folder",
            ),
            (said(&model, &model, f32, index("{}")), "index.json: missing field"),
            (said(&model, &model, f32, index("{\"weight_map\":{\"a\":\"gone\"}}")), "gone: "),
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    /// The same weights as llama.cpp's converter writes them: other names, and in files of Llama q and k in pairs.
    pub(in crate::weights) fn as_gguf(model: &Model, weights: &Weights, with: impl Fn(&mut Writer)) -> Vec<u8> {
        let who = if model.family == crate::model::Family::Mistral { "llama" } else { model.family.name() };
        let mut w = Writer::default();
        w.text("general.architecture", who);
        for (key, value) in [
            ("block_count", model.layers),
            ("embedding_length", model.hidden),
            ("feed_forward_length", model.intermediate),
            ("attention.head_count", model.heads),
            ("attention.head_count_kv", model.kv_heads),
            ("attention.key_length", model.head_dim),
            ("context_length", model.max_position_embeddings),
        ] {
            w.u32(&format!("{who}.{key}"), value as u32);
        }
        w.f32(&format!("{who}.rope.freq_base"), model.rope.theta as f32);
        w.f32(&format!("{who}.attention.layer_norm_rms_epsilon"), model.rms_norm_eps as f32);
        for n in natural(model) {
            let stored = weights.checkpoint().get(&n.name).unwrap();
            let theirs = [
                ("model.embed_tokens", "token_embd"),
                ("model.norm", "output_norm"),
                ("lm_head", "output"),
                ("model.layers.", "blk."),
                ("input_layernorm", "attn_norm"),
                ("post_attention_layernorm", "ffn_norm"),
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("self_attn.o_proj", "attn_output"),
                ("self_attn.q_norm", "attn_q_norm"),
                ("self_attn.k_norm", "attn_k_norm"),
                ("mlp.gate_proj", "ffn_gate"),
                ("mlp.up_proj", "ffn_up"),
                ("mlp.down_proj", "ffn_down"),
            ];
            let name = theirs.iter().fold(n.name.clone(), |name, (ours, theirs)| name.replace(ours, theirs));
            let mut bytes = stored.bytes.to_vec();
            let projected = n.name.contains("q_proj") || n.name.contains("k_proj");
            if who == "llama" && projected {
                // Rows of a head: [2, d / 2] turned round.
                let (d, row) = (model.head_dim as usize, bytes.len() / n.shape[0] as usize);
                for (to, head) in bytes.chunks_mut(d * row).zip(stored.bytes.chunks(d * row)) {
                    for j in 0..d {
                        let from = j % 2 * (d / 2) + j / 2;
                        to[j * row..(j + 1) * row].copy_from_slice(&head[from * row..(from + 1) * row]);
                    }
                }
            }
            w.tensor(&name, &n.shape, 0, bytes);
        }
        with(&mut w);
        w.file()
    }

    #[test]
    fn a_gguf_file_is_the_same_model() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        for family in ["llama", "mistral", "qwen2", "qwen3"] {
            let rope = crate::model::Rope { theta: 1e4, scaling: crate::model::Scaling::Default };
            let model = Model { rope, ..tiny(family) };
            let stored = folder(&model, Dtype::F32, u64::MAX);
            let weights = Weights::open(stored.path(), &model).unwrap().0;
            fs::write(&path, as_gguf(&model, &weights, |_| {})).unwrap();
            let (read, _) = Model::load(path.to_str().unwrap()).unwrap();
            // Mistral is llama to llama.cpp, and no type of all weights is said.
            let same = Model { name: read.name.clone(), family: read.family, dtype: None, ..model.clone() };
            assert_eq!(read, same, "{family}");
            let (other, notes) = Weights::open(&path, &read).unwrap();
            assert!(notes.is_empty() && other.check().is_ok());
            assert_eq!(filled(&weights, &model, Dtype::F32).unwrap(), filled(&other, &read, Dtype::F32).unwrap());
        }
        // What is the same of Llama 3: a divisor for each frequency.
        let model = tiny("llama");
        let stored = folder(&model, Dtype::F32, u64::MAX);
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        let plain = crate::model::Rope { scaling: crate::model::Scaling::Default, ..model.rope.clone() };
        let (from, to) = (plain.inverse_frequencies(8), model.rope.inverse_frequencies(8));
        let factors: Vec<u8> = from.iter().zip(&to).flat_map(|(f, t)| ((f / t) as f32).to_le_bytes()).collect();
        fs::write(
            &path,
            as_gguf(&model, &weights, |w| drop(w.tensor("rope_freqs.weight", &[4], 0, factors.clone()).file())),
        )
        .unwrap();
        let (read, _) = Model::load(path.to_str().unwrap()).unwrap();
        for (a, b) in read.rope.inverse_frequencies(8).iter().zip(&to) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
        assert!(Weights::open(&path, &read).is_ok());
    }

    #[test]
    fn blocks_are_rows_and_what_a_gguf_lacks_is_said() {
        let model = Model { hidden: 256, layers: 1, ..tiny("qwen3") };
        let stored = folder(&model, Dtype::F32, u64::MAX);
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        let bytes = as_gguf(&model, &weights, |_| {});
        // The first tensor by name in the file, whose type and shape stand behind it.
        let said = |name: &str, change: &dyn Fn(&mut [u8])| {
            let mut bytes = bytes.clone();
            let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
            change(&mut bytes[at..]);
            fs::write(&path, bytes).unwrap();
            match Model::load(path.to_str().unwrap()) {
                Err(e) => e.to_string(),
                Ok((read, _)) => match Weights::open(&path, &read) {
                    Err(e) => e.to_string(),
                    Ok((weights, _)) => {
                        format!("{:?}", weights.check().and_then(|()| filled(&weights, &read, Dtype::F32)).err())
                    }
                },
            }
        };
        // u32 dimensions, u64 each, then the type.
        let kind = |kind: u32| move |rest: &mut [u8]| rest[20..24].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(said("token_embd.weight", &|_| {}), "None");
        for format in [2, 3, 8, 12, 14, 30, 1] {
            // Whatever its bytes mean there, they are read as blocks of whole rows, or a scale is no number.
            let found = said("token_embd.weight", &kind(format));
            assert!(found == "None" || found.contains("NotFinite"), "{format}: {found}");
        }
        for (name, change, words) in [
            ("token_embd.weight", &kind(7) as &dyn Fn(&mut [u8]), "is of ggml's type 7"),
            ("blk.0.ffn_down.weight", &kind(12), "rows of 40 elements are no blocks of Q4K"),
            (
                "qwen3.block_count",
                &|r: &mut [u8]| r[4..8].copy_from_slice(&2u32.to_le_bytes()),
                "missing: model.layers.1.",
            ),
            ("qwen3.block_count", &|r: &mut [u8]| r[4..8].fill(0), "qwen3.block_count = 0 is no size"),
            ("qwen3.rope.freq_base", &|r: &mut [u8]| r[4..8].fill(0), "must be above 1"),
            ("attention.head_count_kv", &|r: &mut [u8]| r[4] = 3, "no multiple of 3"),
        ] {
            let found = said(name, change);
            assert!(found.contains(words), "{words}: {found}");
        }
        let whole = bytes.len();
        fs::write(&path, &bytes[..whole - 40]).unwrap();
        let (read, _) = Model::load(path.to_str().unwrap()).unwrap();
        let cut = Weights::open(&path, &read).unwrap_err().to_string();
        let sizes = format!("it is cut short: it has {} bytes, and should have {whole} at least", whole - 40);
        assert!(cut.contains(&sizes), "{cut}");
        fs::write(&path, &bytes[..100]).unwrap();
        let cut = Model::load(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(cut.contains("the file is cut short at 100 bytes, or damaged"), "{cut}");
        fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
        assert!(Model::load(path.to_str().unwrap()).unwrap_err().to_string().contains("the file ends"));
    }

    #[test]
    fn a_folder_is_never_written_over() {
        let model = tiny("qwen2");
        let place = folder(&model, Dtype::Bf16, u64::MAX);
        let again = write(&model, 8, Dtype::Bf16, place.path(), |_, _| {}).unwrap_err();
        assert!(again.to_string().contains("it exists"), "{again}");
        let same = folder(&model, Dtype::Bf16, u64::MAX);
        let bytes = |f: &tempfile::TempDir| fs::read(f.path().join("model.safetensors")).unwrap();
        assert_eq!(bytes(&place), bytes(&same));
        let other = tempfile::tempdir().unwrap();
        write(&model, 8, Dtype::Bf16, other.path(), |_, _| {}).unwrap();
        assert_ne!(bytes(&place), bytes(&other));
    }
}
