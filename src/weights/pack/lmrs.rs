//! The file of lm.rs, version 4, and a tokenizer file that passes token ids through its program.

use super::{Failed, Order, whole};
use crate::model::{Family, Model, Scaling};
use crate::problem::Storage;
use crate::weights::names::{Natural, natural};
use crate::weights::{Weights, WeightsError};
use std::io::{Result as Written, Write};
use std::path::{Path, PathBuf};

/// The code point of token 0 in [`tokenizer`]'s file; the others follow it.
pub const FIRST_CHARACTER: u32 = 0x1_0000;
/// One more than the highest id in the chat template that lm.rs's program has built in.
const TEMPLATE: i64 = 128_010;
/// Bytes before the tensors.
const HEAD: usize = 256;
/// Elements of a group of Q8_0, at most.
const GROUP: u64 = 128;
/// llama.cpp's and everyone's name of the architecture, by lm.rs's number.
const LLAMA: u8 = 1;

/// The tensors of layers, in the order of the file; of each, those of all layers.
const OF_LAYERS: [&str; 9] = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.down_proj",
    "mlp.up_proj",
];

/// How the products' weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32.
    F32,
    /// 8 bits, and an f32 scale for each group.
    Q8_0,
}

/// Writes lm.rs's file of a model's weights: `progress` hears the bytes that are read of the checkpoint as f32, and all of them. lm.rs
/// computes Llama 3.2 alone: others are refused by what it would compute wrongly.
pub fn lmrs(weights: &Weights, kind: Kind, path: &Path, progress: impl Fn(u64, u64)) -> Result<(), WeightsError> {
    let model = &weights.model;
    fits(model).map_err(|why| WeightsError::File { path: path.into(), why })?;
    // Groups lie in rows, which are `hidden` or longer ones long.
    let mut group = GROUP;
    while [model.hidden, model.intermediate, model.heads * model.head_dim]
        .iter()
        .any(|n| !n.unsigned_abs().is_multiple_of(group))
    {
        group /= 2;
    }
    let all = natural(model);
    let order = order(model, &all);
    let total: u64 = order.iter().map(|n| Storage::F32.bytes(n.shape.iter().product())).sum();
    let mut read = 0;
    whole(path, |out| {
        out.write_all(&head(model, kind, group)?)?;
        for n in order {
            read += match kind {
                Kind::Q8_0 if n.shape.len() > 1 => {
                    let mut groups = Groups { to: &mut *out, group: group as usize, scales: Vec::new() };
                    let bytes = weights.write(n, Storage::F32, Order::Halves, &mut groups)?;
                    let scales = groups.scales;
                    out.write_all(&scales)?;
                    bytes
                }
                _ => weights.write(n, Storage::F32, Order::Halves, out)?,
            };
            progress(read, total);
        }
        Ok(())
    })
}

/// Writes the tokenizer file that goes with it: each token is one character, from [`FIRST_CHARACTER`] on, so that ids go in and out of lm.rs's
/// program as text, and none ends an answer.
pub fn tokenizer(vocab: u32, first: u32, path: &Path) -> Result<(), WeightsError> {
    let character = |id: u32| char::from_u32(FIRST_CHARACTER + id).filter(|_| id < vocab);
    whole(path, |out| {
        for word in [vocab, 4, first, u32::MAX] {
            out.write_all(&word.to_le_bytes())?;
        }
        for id in 0..vocab {
            let c = character(id).ok_or_else(|| {
                Failed::Io(std::io::Error::other(format!("{vocab} tokens are more than there are characters")))
            })?;
            let mut text = [0; 4];
            let text = c.encode_utf8(&mut text).as_bytes();
            out.write_all(&1f32.to_le_bytes())?;
            out.write_all(&(text.len() as u32).to_le_bytes())?;
            out.write_all(text)?;
        }
        Ok(())
    })
}

/// Where the tokenizer file of a model's file lies: beside it, `.tokenizer` behind its name.
pub fn tokenizer_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tokenizer");
    name.into()
}

/// Whether lm.rs computes this model: what it has no place for, and what is fixed in its source.
fn fits(m: &Model) -> Result<(), String> {
    let scaling = Scaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    let why = match () {
        _ if m.family != Family::Llama => "its architecture is not Llama's",
        _ if m.rope.scaling != scaling => {
            "lm.rs scales RoPE as Llama 3.2 does (llama3, factor 32), whatever a file says"
        }
        _ if !m.tie_word_embeddings => "lm.rs takes the embedding for the head",
        _ if m.qkv_bias || m.o_bias || m.mlp_bias => "lm.rs has no biases",
        _ if m.vocab < TEMPLATE => {
            "lm.rs's program begins each prompt with the tokens of Llama 3's chat template, from 128000 on"
        }
        _ => return Ok(()),
    };
    Err(format!("lm.rs does not compute this model: {why}"))
}

fn order<'a>(model: &Model, all: &'a [Natural]) -> Vec<&'a Natural> {
    let named = |name: String| all.iter().filter(move |n| n.name == name);
    let of_layers = OF_LAYERS
        .iter()
        .flat_map(|part| (0..model.layers).flat_map(move |layer| named(format!("model.layers.{layer}.{part}.weight"))));
    let (first, last) = (named("model.embed_tokens.weight".into()), named("model.norm.weight".into()));
    first.chain(of_layers).chain(last).collect()
}

fn head(m: &Model, kind: Kind, group: u64) -> Written<Vec<u8>> {
    let mut head = [&b"lmrs"[..], &4u32.to_le_bytes()].concat();
    for size in
        [m.hidden, m.intermediate, m.layers, m.heads, m.head_dim, m.kv_heads, m.vocab, m.max_position_embeddings]
    {
        head.extend(u32::try_from(size).map_err(std::io::Error::other)?.to_le_bytes());
    }
    head.extend((m.rms_norm_eps as f32).to_le_bytes());
    head.extend((m.rope.theta as f32).to_le_bytes());
    head.extend([if kind == Kind::Q8_0 { 1 } else { 0 }, LLAMA]);
    head.extend((group as u32).to_le_bytes());
    head.resize(HEAD, 0);
    Ok(head)
}

/// Takes whole groups of f32, writes 8 bits of each element and keeps the groups' scales, which stand behind a tensor.
struct Groups<'a, W> {
    to: &'a mut W,
    group: usize,
    scales: Vec<u8>,
}

impl<W: Write> Write for Groups<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Written<usize> {
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mut out = Vec::with_capacity(values.len());
        for group in values.chunks(self.group) {
            let scale = group.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0;
            self.scales.extend(scale.to_le_bytes());
            // A group of zeros has no scale; they stay zeros.
            let by = if scale > 0.0 { scale } else { 1.0 };
            out.extend(group.iter().map(|v| (v / by).round_ties_even() as i8 as u8));
        }
        self.to.write_all(&out)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Written<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Dtype;
    use crate::weights::tests::folder;
    use std::fs;

    fn small() -> Model {
        let base = Model::preset("llama-3.2-1b").unwrap();
        let (vocab, max_position_embeddings) = (TEMPLATE, 512);
        Model {
            hidden: 32,
            intermediate: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            vocab,
            max_position_embeddings,
            ..base
        }
    }

    fn open(place: &Path) -> Weights {
        let (model, _) = Model::load(place.to_str().unwrap()).unwrap();
        Weights::open(place, &model).unwrap().0
    }

    #[test]
    fn tensors_stand_one_after_the_other_in_the_order_of_the_program() {
        let stored = folder(&small(), Dtype::F32, u64::MAX);
        let weights = open(stored.path());
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.lmrs");
        lmrs(&weights, Kind::F32, &path, |_, _| {}).unwrap();
        let bytes = fs::read(&path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((&bytes[..4], word(4)), (&b"lmrs"[..], 4));
        assert_eq!((2..10).map(|i| word(i * 4)).collect::<Vec<_>>(), [32, 64, 2, 4, 8, 2, 128_010, 512]);
        assert_eq!((f32::from_bits(word(40)), f32::from_bits(word(44))), (1e-5, 5e5));
        assert_eq!((bytes[48], bytes[49], word(50), bytes[54]), (0, 1, 32, 0));
        // The whole file, by hand: down before up.
        let layers =
            ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let layers =
            layers.into_iter().chain(["post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]);
        let names: Vec<String> = std::iter::once("model.embed_tokens.weight".to_string())
            .chain(layers.flat_map(|part| [0, 1].map(|layer| format!("model.layers.{layer}.{part}.weight"))))
            .chain(["model.norm.weight".to_string()])
            .collect();
        let tensors: Vec<u8> =
            names.iter().flat_map(|name| weights.checkpoint().get(name).unwrap().bytes.to_vec()).collect();
        assert_eq!(weights.checkpoint().size().0, names.len());
        assert!(bytes[HEAD..] == tensors);
        // The rows of heads are Hugging Face's in any file: of one whose rows are in pairs too.
        let paired = place.path().join("m.gguf");
        crate::weights::pack::gguf(&weights, &Default::default(), Dtype::F32, &paired, |_, _| {}).unwrap();
        let q = weights.model.clone();
        let (read, _) = (Weights::open(&paired, &q).unwrap().0, ());
        lmrs(&read, Kind::F32, &path, |_, _| {}).unwrap();
        assert!(fs::read(&path).unwrap()[HEAD..] == tensors);
    }

    #[test]
    fn groups_are_rounded_to_their_largest() {
        let stored = folder(&small(), Dtype::F32, u64::MAX);
        let weights = open(stored.path());
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.lmrs");
        lmrs(&weights, Kind::Q8_0, &path, |_, _| {}).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[48], &bytes[50..54]), (1, &32u32.to_le_bytes()[..]));
        let f32s = |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
        let embedding = f32s(weights.checkpoint().get("model.embed_tokens.weight").unwrap().bytes);
        let (q, rest) = bytes[HEAD..].split_at(embedding.len());
        let (scales, rest) = rest.split_at(embedding.len() / 32 * 4);
        let scales = f32s(scales);
        let mut largest = 0;
        for (i, (v, q)) in embedding.iter().zip(q).enumerate() {
            let q = *q as i8;
            largest = largest.max(q.unsigned_abs());
            assert!((v - f32::from(q) * scales[i / 32]).abs() <= scales[i / 32] * 0.501, "{i}: {v} {q}");
        }
        assert_eq!(largest, 127);
        // Norms stay whole.
        let norm = weights.checkpoint().get("model.layers.0.input_layernorm.weight").unwrap().bytes;
        assert_eq!(&rest[..norm.len()], norm);
    }

    #[test]
    fn ids_are_characters() {
        let place = tempfile::tempdir().unwrap();
        let path = tokenizer_of(&place.path().join("m.lmrs"));
        assert!(path.ends_with("m.lmrs.tokenizer"));
        tokenizer(128_256, 128_000, &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(8), word(12)), (128_256, 128_000, u32::MAX));
        assert_eq!(bytes.len(), 16 + 128_256 * 12);
        let text = std::str::from_utf8(&bytes[16 + 12 * 1000 + 8..][..4]).unwrap();
        assert_eq!(text.chars().map(u32::from).collect::<Vec<_>>(), [FIRST_CHARACTER + 1000]);
        assert!(tokenizer(2_000_000, 0, &path).unwrap_err().to_string().contains("characters"));
    }

    #[test]
    fn what_it_would_compute_wrongly_is_refused() {
        let said = |model: Model| fits(&model).unwrap_err();
        assert_eq!(fits(&small()), Ok(()));
        let plain = crate::model::Rope { theta: 5e5, scaling: Scaling::Default };
        for (model, words) in [
            (Model { rope: plain, ..small() }, "scales RoPE"),
            (Model { tie_word_embeddings: false, ..small() }, "for the head"),
            (Model { mlp_bias: true, ..small() }, "no biases"),
            (Model { vocab: 49_152, ..small() }, "chat template"),
            (Model { family: Family::Qwen2, ..small() }, "architecture"),
        ] {
            assert!(said(model).contains(words), "{words}");
        }
    }
}
