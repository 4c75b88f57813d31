//! GGUF, as llama.cpp's converter writes it.

use super::{Failed, Order, whole};
use crate::gguf::Writer;
use crate::model::{Family, Model, Scaling};
use crate::problem::Storage;
use crate::tokenizer::Vocabulary;
use crate::weights::names::{Natural, natural, to_gguf};
use crate::weights::quant::{Method, QuantError, ggml_format, quantize, to_ggml};
use crate::weights::{Format, Weights, WeightsError};
use std::io::Write;
use std::path::Path;

/// What a file says of texts.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// The tokenizer. Without one, a file says so (`no_vocab`), and token ids alone can be computed.
    pub vocabulary: Option<Vocabulary>,
    /// The token that begins a text.
    pub first: Option<u32>,
    /// The token that ends one.
    pub last: Option<u32>,
}

/// A tensor of the file.
enum Part {
    Of(Natural, Format),
    /// Divisors of RoPE's frequencies.
    Divisors(Vec<f32>),
}

/// Writes a GGUF file of a model's weights in f32, f16, bf16, Q8_0, Q4_0 or Q4_1, vectors in f32 as llama.cpp wants them. `progress` hears the bytes that are
/// written and those of all tensors. Returns what is to be said of the file.
pub fn gguf(
    weights: &Weights,
    texts: &Texts,
    format: impl Into<Format>,
    path: &Path,
    progress: impl Fn(u64, u64),
) -> Result<Vec<String>, WeightsError> {
    let model = &weights.model;
    let bad = |why: String| WeightsError::File { path: path.into(), why };
    let format = format.into();
    let (kind, file_type) = match format {
        Format::Plain(Storage::F32) => (0, 0),
        Format::Plain(Storage::F16) => (1, 1),
        Format::Plain(Storage::Bf16) => (30, 32),
        Format::Q4_0 => (2, 2),
        Format::Q4_1 => (3, 3),
        Format::Q8_0 => (8, 7),
        other => return Err(bad(format!("{other:?} is not written; f32, f16 and bf16, q8_0, q4_0 and q4_1 are"))),
    };
    let (architecture, order) = match model.family {
        Family::Llama | Family::Mistral => ("llama", Order::Pairs),
        Family::Qwen2 | Family::Qwen3 => (model.family.name(), Order::Halves),
    };
    let mut notes = Vec::new();
    if let Some(window) = model.sliding_window {
        let text = "llama.cpp's layers of such files see all; up to there it is the same";
        notes.push(format!("sliding_window = {window} is not written: {text}"));
    }
    let mut file = Writer::default();
    file.text("general.architecture", architecture).u32("general.file_type", file_type);
    let name = model.name.rsplit('/').next().unwrap_or_default();
    file.text("general.name", name);
    sizes(&mut file, model, architecture).map_err(bad)?;
    words(&mut file, texts);
    let mut total = 0;
    if let Some(divisors) = divisors(model) {
        let bytes = divisors.len() as u64 * 4;
        file.add("rope_freqs.weight", &[divisors.len() as u64], 0, bytes, Part::Divisors(divisors));
        total += bytes;
    }
    for n in natural(model) {
        let name = to_gguf(&n.name).ok_or_else(|| bad(format!("GGUF has no name for {}", n.name)))?;
        let plain = Format::Plain(Storage::F32);
        let (format, kind) = if n.shape.len() == 1 { (plain, 0) } else { (format, kind) };
        let row = n.shape.last().copied().unwrap_or(1);
        let Some(bytes) = format.bytes(row) else {
            return Err(bad(format!("{}: rows of {row} elements are no blocks of {format:?}", n.name)));
        };
        let bytes = n.shape.iter().product::<u64>() / row * bytes;
        file.add(&name, &n.shape.clone(), kind, bytes, Part::Of(n, format));
        total += bytes;
    }
    let mut written = 0;
    whole(path, |out| {
        file.write(out, |part, out| {
            written += match part {
                Part::Of(n, Format::Plain(storage)) => weights.write(n, *storage, order, out)?,
                Part::Of(n, format) => blocks(weights, n, *format, order, out)?,
                Part::Divisors(list) => {
                    list.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))?;
                    list.len() as u64 * 4
                }
            };
            progress(written, total);
            Ok::<(), Failed>(())
        })
    })?;
    Ok(notes)
}

/// Writes a weight in blocks. Returns their bytes.
fn blocks(weights: &Weights, n: &Natural, format: Format, order: Order, out: &mut impl Write) -> Result<u64, Failed> {
    let mut bytes = Vec::new();
    weights.write(n, Storage::F32, order, &mut bytes)?;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    drop(bytes);
    let scaled =
        ggml_format(format).ok_or_else(|| WeightsError::Type { name: n.name.clone(), dtype: format!("{format:?}") })?;
    let bad = |e: QuantError| WeightsError::Quantised { why: e.to_string() };
    let packed = quantize(&n.name, &values, [n.shape[0], n.shape[1]], scaled, Method::Search).map_err(bad)?;
    let blocks = to_ggml(&n.name, &packed, format).map_err(bad)?;
    out.write_all(&blocks)?;
    Ok(blocks.len() as u64)
}

/// What the model is, under the names of its architecture.
fn sizes(file: &mut Writer<Part>, m: &Model, architecture: &str) -> Result<(), String> {
    for (key, value) in [
        ("vocab_size", m.vocab),
        ("context_length", m.max_position_embeddings),
        ("embedding_length", m.hidden),
        ("block_count", m.layers),
        ("feed_forward_length", m.intermediate),
        ("attention.head_count", m.heads),
        ("attention.head_count_kv", m.kv_heads),
        ("attention.key_length", m.head_dim),
        ("attention.value_length", m.head_dim),
        ("rope.dimension_count", m.head_dim),
    ] {
        let value = u32::try_from(value).map_err(|_| format!("{key} = {value} is no size"))?;
        file.u32(&format!("{architecture}.{key}"), value);
    }
    let key = |what: &str| format!("{architecture}.{what}");
    file.f32(&key("attention.layer_norm_rms_epsilon"), m.rms_norm_eps as f32);
    file.f32(&key("rope.freq_base"), m.rope.theta as f32);
    if let Scaling::Linear { factor } = m.rope.scaling {
        file.text(&key("rope.scaling.type"), "linear").f32(&key("rope.scaling.factor"), factor as f32);
    }
    Ok(())
}

/// The tokenizer.
fn words(file: &mut Writer<Part>, texts: &Texts) {
    let key = |what: &str| format!("tokenizer.ggml.{what}");
    match &texts.vocabulary {
        None => {
            file.text(&key("model"), "no_vocab");
        }
        Some(v) => {
            file.text(&key("model"), "gpt2").text(&key("pre"), &v.split);
            file.texts(&key("tokens"), &list(&v.tokens)).words(&key("token_type"), 5, &v.kinds);
            file.texts(&key("merges"), &list(&v.merges)).flag(&key("add_bos_token"), v.begins && texts.first.is_some());
        }
    }
    for (what, id) in [("bos_token_id", texts.first), ("eos_token_id", texts.last)] {
        if let Some(id) = id {
            file.u32(&key(what), id);
        }
    }
}

fn list(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// By what each of RoPE's frequencies is divided, where that is no factor of all.
fn divisors(m: &Model) -> Option<Vec<f32>> {
    match &m.rope.scaling {
        Scaling::Default | Scaling::Linear { .. } => None,
        Scaling::Factors { factors } => Some(factors.iter().map(|f| *f as f32).collect()),
        Scaling::Llama3 { .. } => {
            let plain = crate::model::Rope { theta: m.rope.theta, scaling: Scaling::Default };
            let (from, to) = (plain.inverse_frequencies(m.head_dim), m.rope.inverse_frequencies(m.head_dim));
            Some(from.iter().zip(&to).map(|(f, t)| (f / t) as f32).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;
    use crate::model::Rope;
    use crate::problem::Dtype;
    use crate::weights::tests::{as_gguf, filled, folder, tiny};
    use std::fs;

    const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

    fn plain(family: &str) -> Model {
        Model { rope: Rope { theta: 1e4, scaling: Scaling::Default }, sliding_window: None, ..tiny(family) }
    }

    fn open(path: &Path) -> (Weights, Model) {
        let (model, _) = Model::load(path.to_str().unwrap()).unwrap();
        (Weights::open(path, &model).unwrap().0, model)
    }

    /// The bytes of each tensor by its name.
    fn tensors(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut list: Vec<_> = Header::read(bytes).unwrap().tensors;
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let size = |kind: u32| if kind == 0 { 4 } else { 2 };
        list.into_iter()
            .map(|t| {
                let length = t.shape.iter().product::<u64>() as usize * size(t.kind);
                assert!(t.at.is_multiple_of(ALIGNED), "{}", t.name);
                (t.name, t.kind, bytes[t.at..t.at + length].to_vec())
            })
            .collect()
    }

    const ALIGNED: usize = 32;

    #[test]
    fn what_is_written_is_the_same_model() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        for family in FAMILIES {
            let stored = folder(&plain(family), Dtype::F32, u64::MAX);
            let (weights, model) = open(stored.path());
            assert_eq!(gguf(&weights, &Texts::default(), Dtype::F32, &path, |_, _| {}).unwrap(), [""; 0]);
            let (other, read) = open(&path);
            // Mistral is llama to llama.cpp, and no type of all weights is said.
            let same = Model { name: read.name.clone(), family: read.family, dtype: None, ..model.clone() };
            assert_eq!(read, same, "{family}");
            assert_eq!(filled(&weights, &model, Dtype::F32).unwrap(), filled(&other, &read, Dtype::F32).unwrap());
            // As llama.cpp's converter has it, tensor by tensor: heads in pairs for Llama, biases too, as they are for Qwen.
            assert_eq!(tensors(&fs::read(&path).unwrap()), tensors(&as_gguf(&model, &weights, |_| {})), "{family}");
            // Of such a file as of a folder.
            let again = place.path().join("again.gguf");
            gguf(&other, &Texts::default(), Dtype::F32, &again, |_, _| {}).unwrap();
            assert_eq!(tensors(&fs::read(&path).unwrap()), tensors(&fs::read(&again).unwrap()), "{family}");
        }
        // Nothing is left beside the files.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[test]
    fn types_are_rounded_once_and_vectors_stay_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        for (from, to, kind) in
            [(Dtype::Bf16, Dtype::Bf16, 30), (Dtype::F32, Dtype::F16, 1), (Dtype::F16, Dtype::Bf16, 30)]
        {
            let (weights, model) = open(folder(&plain("llama"), from, u64::MAX).path());
            let heard = std::cell::Cell::new((0, 0));
            gguf(&weights, &Texts::default(), to, &path, |a, b| heard.set((a, b))).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert!(heard.get().0 == heard.get().1 && heard.get().0 <= bytes.len() as u64, "{heard:?}");
            for (name, found, _) in tensors(&bytes) {
                let vector = name.contains("norm") || name.ends_with("bias");
                assert_eq!(found, if vector { 0 } else { kind }, "{name}");
            }
            let (other, read) = open(&path);
            assert_eq!(filled(&weights, &model, to).unwrap(), filled(&other, &read, to).unwrap());
        }
    }

    #[test]
    fn blocks_are_the_weights_within_their_steps() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        let model = Model { hidden: 64, intermediate: 96, ..plain("llama") };
        let (weights, model) = open(folder(&model, Dtype::F32, u64::MAX).path());
        let wanted = filled(&weights, &model, Dtype::F32).unwrap();
        let square =
            |list: &[u8], of: &dyn Fn(u64) -> f64| (0..list.len() as u64 / 4).map(|i| of(i).powi(2)).sum::<f64>();
        for (format, kind, most) in [(Format::Q8_0, 8, 0.01), (Format::Q4_0, 2, 0.12), (Format::Q4_1, 3, 0.12)] {
            gguf(&weights, &Texts::default(), format, &path, |_, _| {}).unwrap();
            let header = Header::read(&fs::read(&path).unwrap()).unwrap();
            let kinds: Vec<u32> = header.tensors.iter().filter(|t| t.shape.len() == 2).map(|t| t.kind).collect();
            assert!(kinds.iter().all(|k| *k == kind), "{format:?} {kinds:?}");
            let (other, read) = open(&path);
            for (name, found) in filled(&other, &read, Dtype::F32).unwrap() {
                let value = |bytes: &[u8], i| Storage::F32.value(bytes, i);
                let of = &wanted[&name];
                let (error, all) = (square(of, &|i| value(of, i) - value(&found, i)), square(of, &|i| value(of, i)));
                let vector = name.contains("norm") || name.ends_with("bias") || name == "rope";
                assert!(
                    error.sqrt() <= if vector { 1e-6 } else { most } * all.sqrt(),
                    "{format:?} {name}: {error} {all}"
                );
            }
        }
        let odd = Model { intermediate: 72, ..model };
        let (weights, _) = open(folder(&odd, Dtype::F32, u64::MAX).path());
        let said = gguf(&weights, &Texts::default(), Format::Q8_0, &path, |_, _| {}).unwrap_err().to_string();
        assert!(said.contains("rows of 72 elements are no blocks"), "{said}");
    }

    #[test]
    fn what_changes_frequencies_is_written() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        // Llama 3's, which is a divisor for each in such a file, and a factor of all.
        let linear = Rope { theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } };
        for model in [tiny("llama"), Model { rope: linear, ..tiny("qwen3") }] {
            let (weights, model) = open(folder(&model, Dtype::F32, u64::MAX).path());
            gguf(&weights, &Texts::default(), Dtype::F32, &path, |_, _| {}).unwrap();
            let (_, read) = open(&path);
            let (found, wanted) = (read.rope.inverse_frequencies(8), model.rope.inverse_frequencies(8));
            assert!(model.rope.scaling != Scaling::Default && found.len() == 4);
            assert!(found.iter().zip(&wanted).all(|(f, w)| (f / w - 1.0).abs() < 1e-6), "{found:?} {wanted:?}");
        }
        let model = Model { sliding_window: Some(16), ..plain("mistral") };
        let (weights, _) = open(folder(&model, Dtype::F32, u64::MAX).path());
        let notes = gguf(&weights, &Texts::default(), Dtype::F32, &path, |_, _| {}).unwrap();
        assert!(notes[0].contains("sliding_window = 16"), "{notes:?}");
    }

    #[test]
    fn texts_are_written_and_nothing_half() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        let stored = folder(&plain("qwen3"), Dtype::F32, u64::MAX);
        let (weights, model) = open(stored.path());
        let tokens: Vec<String> = (0..model.vocab).map(|id| format!("t{id}")).collect();
        let kinds = vec![1; tokens.len()];
        let (merges, split) = (vec!["t 1".to_string()], "qwen2".to_string());
        let vocabulary = Vocabulary { tokens, kinds, merges, split, begins: false };
        let texts = Texts { vocabulary: Some(vocabulary.clone()), first: Some(3), last: Some(4) };
        gguf(&weights, &texts, Dtype::Bf16, &path, |_, _| {}).unwrap();
        let found = Vocabulary::open(&path, model.vocab as usize).unwrap().unwrap();
        assert_eq!((found, Model::begin(&path).unwrap()), (vocabulary, Some(3)));
        assert_eq!(Model::ends(&path).unwrap(), [4]);
        let before = fs::read(&path).unwrap();
        // A weight that is no number, in the middle of the file.
        let file = stored.path().join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2 / 4 * 4;
        let data = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        bytes[middle + data % 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        // Not in place: it is mapped.
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let said = gguf(&open(stored.path()).0, &texts, Dtype::F32, &path, |_, _| {}).unwrap_err();
        assert!(matches!(said, WeightsError::NotFinite { .. }), "{said}");
        assert!(fs::read(&path).unwrap() == before && fs::read_dir(place.path()).unwrap().count() == 1);
    }
}
