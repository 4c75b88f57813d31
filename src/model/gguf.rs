//! The metadata of a GGUF file to [`Model`]: what changes the computation is read or refused by name.
//!
//! Keys by the specification of GGUF in the repository of ggml, and their meaning by llama.cpp. What the metadata does not say (biases, a
//! tied head, norms of heads) the file's tensors do.

use super::{Family, Model, Rope, Scaling};
use crate::gguf::{Header, Value};
use crate::problem::Problem;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys of an architecture that change the computation, and the number that does not.
const NUMBERS: &[(&str, f64)] = &[
    ("attention.clamp_kqv", 0.0),
    ("attention.kv_lora_rank", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.output_scale", 0.0),
    ("attention.q_lora_rank", 0.0),
    ("attention.scale", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.temperature_length", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 0.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("final_logit_softcapping", 0.0),
    ("leading_dense_block_count", 0.0),
    ("logit_scale", 0.0),
    ("nextn_predict_layers", 0.0),
    ("pooling_type", 0.0),
    ("residual_scale", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
];

/// The same of truth values.
const FLAGS: &[(&str, bool)] = &[("attention.causal", true), ("swin_norm", false), ("use_parallel_residual", false)];

/// Keys of an architecture that change the computation whatever they say.
const REFUSED: &[&str] = &["rope.dimension_sections", "attention.sliding_window_pattern"];

/// Keys of an architecture that change nothing here: the tensors say it, or other norms and scalings read it.
const HARMLESS: &[&str] = &[
    "attention.layer_norm_epsilon",
    "decoder_start_token_id",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
];

/// The keys of the file's architecture, and which of them were read.
struct Keys<'h> {
    header: &'h Header,
    who: &'h str,
    read: RefCell<BTreeSet<String>>,
}

impl Keys<'_> {
    fn name(&self, what: &str) -> String {
        let name = format!("{}.{what}", self.who);
        self.read.borrow_mut().insert(name.clone());
        name
    }

    fn size(&self, what: &str) -> Result<Option<i64>, String> {
        let name = self.name(what);
        match self.header.int(&name)? {
            Some(v) if (1..=super::config::MAX_SIZE).contains(&v) => Ok(Some(v)),
            Some(v) => Err(format!("{name} = {v} is no size")),
            None => Ok(None),
        }
    }

    fn needed(&self, what: &str) -> Result<i64, String> {
        self.size(what)?.ok_or_else(|| format!("{} is missing", self.name(what)))
    }

    fn number(&self, what: &str) -> Result<Option<f64>, String> {
        self.header.float(&self.name(what))
    }

    /// What is left when the model is read: what changes the computation is refused unless it is neutral, and what is not known is
    /// returned by its name.
    fn rest(&self) -> Result<Vec<String>, String> {
        for (what, neutral) in NUMBERS {
            if let Some(v) = self.number(what)?.filter(|v| v != neutral) {
                return Err(format!("{} = {v} is not supported", self.name(what)));
            }
        }
        for (what, neutral) in FLAGS {
            if let Some(v) = self.header.flag(&self.name(what))?.filter(|v| v != neutral) {
                return Err(format!("{} = {v} is not supported", self.name(what)));
            }
        }
        let (read, prefix) = (self.read.borrow(), format!("{}.", self.who));
        let mut unknown = Vec::new();
        for (name, value) in &self.header.values {
            let Some(what) = name.strip_prefix(&prefix).filter(|_| !read.contains(name)) else { continue };
            let expert = what.contains("expert") && self.header.float(name)? != Some(0.0);
            if REFUSED.contains(&what) || expert {
                return Err(format!("{name} = {value} is not supported"));
            }
            if !HARMLESS.contains(&what) {
                unknown.push(name.clone());
            }
        }
        Ok(unknown)
    }
}

/// The tokens that the embedding of a file has rows for.
pub(super) fn vocab(header: &Header) -> Option<i64> {
    match header.tensors.iter().find(|t| t.name == "token_embd.weight")?.shape[..] {
        [vocab, _] => i64::try_from(vocab).ok().filter(|v| (1..=super::config::MAX_SIZE).contains(v)),
        _ => None,
    }
}

/// The token that the tokenizer's metadata has under this key; all ones stand for none in llama.cpp.
pub(super) fn token(header: &Header, key: &str, vocab: i64) -> Result<Option<i32>, String> {
    let key = format!("tokenizer.ggml.{key}");
    let id = header.int(&key)?.filter(|id| *id != i64::from(u32::MAX));
    id.map(|id| super::config::token(&key, id, vocab)).transpose()
}

/// The model of a file of this name, and what is to be said of it; `factors` are the elements of its tensor `rope_freqs.weight`, where it
/// has one.
pub(super) fn read(name: &str, header: &Header, factors: Option<Vec<f64>>) -> Result<(Model, Vec<String>), String> {
    if let Some(kind) = header.text("general.type")?.filter(|kind| *kind != "model") {
        return Err(format!("general.type '{kind}' is not supported; model is"));
    }
    let who = header.text("general.architecture")?.ok_or("general.architecture is missing")?;
    let family = match who {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(format!("general.architecture '{other}' is not supported; llama, qwen2 and qwen3 are")),
    };
    let keys = Keys { header, who, read: RefCell::default() };
    let tensors: BTreeSet<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    let has = |tensor: &str| tensors.contains(tensor);
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(format!("{heads} heads are no multiple of {kv_heads} of keys and values"));
    }
    let head_dim = match keys.size("attention.key_length")? {
        Some(d) => d,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(format!("{} = {hidden} is no multiple of the {heads} heads", keys.name("embedding_length")));
        }
    };
    for what in ["attention.value_length", "rope.dimension_count"] {
        if let Some(v) = keys.size(what)?.filter(|v| *v != head_dim) {
            return Err(format!("{} = {v} is not supported, where a head has {head_dim}", keys.name(what)));
        }
    }
    let vocab = vocab(header).ok_or("token_embd.weight says no vocabulary")?;
    if let Some(said) = keys.size("vocab_size")?.filter(|said| *said != vocab) {
        let name = keys.name("vocab_size");
        return Err(format!("{name} = {said}, but token_embd.weight has {vocab} rows; one of them is wrong"));
    }
    if let Some(Value::List { count, .. }) = header.values.get("tokenizer.ggml.tokens")
        && *count > vocab.unsigned_abs()
    {
        return Err(format!("tokenizer.ggml.tokens has {count} tokens, but token_embd.weight {vocab} rows"));
    }
    for key in ["bos_token_id", "eos_token_id"] {
        token(header, key, vocab)?;
    }
    let eps = "attention.layer_norm_rms_epsilon";
    let eps =
        Problem::held(&keys.name(eps), keys.number(eps)?.ok_or_else(|| format!("{} is missing", keys.name(eps)))?)?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(1e4);
    if !theta.is_finite() || theta <= 1.0 {
        return Err(format!("{} = {theta} must be above 1, and a number", keys.name("rope.freq_base")));
    }
    let model = Model {
        name: name.into(),
        family,
        hidden,
        intermediate: keys.needed("feed_forward_length")?,
        layers: super::config::layers(&keys.name("block_count"), keys.needed("block_count")?)?,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rms_norm_eps: eps,
        rope: Rope { theta, scaling: scaling(&keys, factors, head_dim)? },
        tie_word_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_down.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        sliding_window: None,
        max_position_embeddings: keys.size("context_length")?.unwrap_or(2048),
        dtype: None,
        quantization: None,
    };
    let unknown = keys.rest()?;
    let note = || format!("not known, and passed over: {}", unknown.join(", "));
    Ok((model, (!unknown.is_empty()).then(note).into_iter().collect()))
}

fn scaling(keys: &Keys<'_>, factors: Option<Vec<f64>>, head_dim: i64) -> Result<Scaling, String> {
    let name = keys.name("rope.scaling.type");
    let kind = keys.header.text(&name)?;
    if let Some(other) = kind.filter(|kind| !["none", "linear"].contains(kind)) {
        return Err(format!("{name} '{other}' is not supported; none and linear are"));
    }
    let (new, old) = (keys.number("rope.scaling.factor")?, keys.number("rope.scale_linear")?);
    let factor_name =
        keys.name(if new.is_none() && old.is_some() { "rope.scale_linear" } else { "rope.scaling.factor" });
    let factor = new.or(old);
    if let Some(v) = factor.filter(|v| v.is_nan() || *v <= 0.0) {
        return Err(format!("{factor_name} = {v} must be above 0"));
    }
    let scaled = match (kind, factor) {
        (Some("linear"), None) => return Err(format!("{factor_name} is missing; {name} 'linear' needs it")),
        (Some("none"), Some(v)) if v != 1.0 => {
            return Err(format!("{name} says 'none', but {factor_name} = {v}; one of them is wrong"));
        }
        (_, None | Some(1.0)) => Scaling::Default,
        (_, Some(factor)) => Scaling::Linear { factor },
    };
    let Some(factors) = factors else { return Ok(scaled) };
    if factors.len() as i64 * 2 != head_dim || !factors.iter().all(|f| *f > 0.0 && f.is_finite()) {
        return Err("rope_freqs.weight has no divisor above 0 for each pair of a head".into());
    }
    match scaled {
        Scaling::Default => Ok(Scaling::Factors { factors }),
        _ => Err(format!("{factor_name} beside rope_freqs.weight is not supported; one of them is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    /// A small file with some keys more, or other ones.
    fn with(who: &str, more: impl Fn(&mut Writer), but: &[&str]) -> Result<(Model, Vec<String>), String> {
        let mut w = Writer::default();
        w.text("general.architecture", who);
        for (what, v) in [
            ("block_count", 1),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("context_length", 128),
        ] {
            if !but.contains(&what) {
                w.u32(&format!("{who}.{what}"), v);
            }
        }
        if !but.contains(&"attention.layer_norm_rms_epsilon") {
            w.f32(&format!("{who}.attention.layer_norm_rms_epsilon"), 1e-5);
        }
        w.tensor("token_embd.weight", &[50, 32], 0, vec![0; 50 * 32 * 4]);
        more(&mut w);
        let factors = but.contains(&"factors").then(|| vec![1.0, 2.0, 4.0, 8.0]);
        read("m", &Header::read(&w.file()).unwrap(), factors)
    }

    #[test]
    fn the_epsilon_is_the_decimal_whose_f32_is_stored() {
        let eps = "attention.layer_norm_rms_epsilon";
        let of = |v: f32| with("llama", |w| drop(w.f32(&format!("llama.{eps}"), v).file()), &[eps]);
        for decimal in [1e-5, 1e-6, 1e-12] {
            assert_eq!(of(decimal as f32).unwrap().0.rms_norm_eps, decimal);
        }
        for lost in [1e-13f32, 6e-13, 1e-2, 1.234_567_9e-7, 0.0, f32::NAN] {
            let e = of(lost).map(|(model, _)| model).unwrap_err();
            assert!(e.starts_with(&format!("llama.{eps} = ")) && e.contains("a multiple of 1e-12"), "{lost}: {e}");
        }
        assert!(with("llama", |_| {}, &[eps]).unwrap_err().contains("rms_epsilon is missing"));
    }

    #[test]
    fn keys_that_change_the_computation_are_refused_by_name() {
        type Change = fn(&mut Writer);
        let cases: &[(&[&str], Change, &str)] = &[
            (
                &[],
                |w| drop(w.text("llama.rope.freq_base", "big").file()),
                "llama.rope.freq_base = \"big\" is not a number",
            ),
            (&[], |w| drop(w.words("llama.rope.freq_base", 6, &[0]).file()), "llama.rope.freq_base = a list of 1"),
            (&[], |w| drop(w.words("llama.expert_count", 4, &[8]).file()), "llama.expert_count = a list of 1"),
            (
                &[],
                |w| drop(w.text("llama.attention.sliding_window", "9").file()),
                "sliding_window = \"9\" is not a number",
            ),
            (&[], |w| drop(w.text("llama.rope.dimension_count", "8").file()), "dimension_count = \"8\" is not a whole"),
            (
                &["attention.head_count_kv"],
                |w| drop(w.words("llama.attention.head_count_kv", 4, &[2]).file()),
                "head_count_kv = a list of 1 is not a whole number",
            ),
            (&[], |w| drop(w.u32("llama.rope.scaling.type", 1).file()), "rope.scaling.type = 1 is not a text"),
            (
                &[],
                |w| drop(w.u32("llama.vocab_size", 51).file()),
                "llama.vocab_size = 51, but token_embd.weight has 50",
            ),
            (
                &[],
                |w| drop(w.texts("tokenizer.ggml.tokens", &["a"; 51]).file()),
                "tokenizer.ggml.tokens has 51 tokens, but token_embd.weight 50 rows",
            ),
            (
                &[],
                |w| drop(w.u32("tokenizer.ggml.eos_token_id", 50).file()),
                "tokenizer.ggml.eos_token_id = 50 is no token: those of the model go from 0 to 49",
            ),
            (&[], |w| drop(w.u32("tokenizer.ggml.bos_token_id", 1 << 31).file()), "bos_token_id = 2147483648 is no"),
            (&[], |w| drop(w.u32("llama.expert_count", 8).file()), "llama.expert_count = 8 is not supported"),
            (&[], |w| drop(w.u32("llama.expert_feed_forward_length", 8).file()), "expert_feed_forward_length = 8"),
            (&[], |w| drop(w.flag("llama.attention.causal", false).file()), "llama.attention.causal = false"),
            (&[], |w| drop(w.u32("llama.attention.causal", 1).file()), "attention.causal = 1 is not true or false"),
            (&[], |w| drop(w.f32("llama.attention.scale", 0.5).file()), "llama.attention.scale = 0.5"),
            (&[], |w| drop(w.flag("llama.use_parallel_residual", true).file()), "use_parallel_residual = true"),
            (&[], |w| drop(w.u32("llama.pooling_type", 1).file()), "llama.pooling_type = 1"),
            (&[], |w| drop(w.f32("llama.rope.scaling.attn_factor", 2.0).file()), "attn_factor = 2"),
            (&[], |w| drop(w.words("llama.rope.dimension_sections", 5, &[1, 1]).file()), "rope.dimension_sections"),
            (&[], |w| drop(w.text("general.type", "adapter").file()), "general.type 'adapter' is not supported"),
            (&[], |w| drop(w.text("llama.rope.scaling.type", "yarn").file()), "'yarn' is not supported"),
            (&["factors"], |w| drop(w.text("llama.rope.scaling.type", "yarn").file()), "'yarn' is not supported"),
            (&["factors"], |w| drop(w.f32("llama.rope.scaling.factor", 4.0).file()), "beside rope_freqs.weight"),
            (&["factors"], |w| drop(w.f32("llama.rope.scale_linear", 4.0).file()), "llama.rope.scale_linear beside"),
            (&[], |w| drop(w.text("llama.rope.scaling.type", "linear").file()), "rope.scaling.factor is missing"),
            (&[], |w| drop(w.f32("llama.rope.scaling.factor", 0.0).file()), "rope.scaling.factor = 0 must be above 0"),
            (
                &[],
                |w| drop(w.text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0).file()),
                "one of them is wrong",
            ),
        ];
        for (but, change, said) in cases {
            let e = with("llama", change, but).map(|(model, _)| model).expect_err(said);
            assert!(e.contains(said), "'{said}': {e}");
        }
    }

    #[test]
    fn neutral_keys_change_nothing_and_unknown_ones_are_named() {
        let (plain, notes) = with("qwen3", |_| {}, &[]).unwrap();
        assert_eq!(notes, [""; 0]);
        let (same, notes) = with(
            "qwen3",
            |w| {
                w.u32("qwen3.expert_count", 0).flag("qwen3.attention.causal", true).u32("qwen3.pooling_type", 0);
                w.f32("qwen3.rope.scaling.attn_factor", 1.0).u32("qwen3.vocab_size", 50).text("general.type", "model");
                w.text("general.name", "x").text("tokenizer.ggml.model", "gpt2").u32("llama.wheels", 4);
                w.u32("tokenizer.ggml.bos_token_id", u32::MAX).u32("tokenizer.ggml.eos_token_id", 49);
            },
            &[],
        )
        .unwrap();
        assert_eq!((same, notes), (plain.clone(), Vec::new()));
        let (same, notes) =
            with("qwen3", |w| drop(w.u32("qwen3.wheels", 4).text("qwen3.horn", "x").file()), &[]).unwrap();
        assert_eq!(same, plain);
        assert_eq!(notes, ["not known, and passed over: qwen3.horn, qwen3.wheels"]);
        let linear = with("llama", |w| drop(w.f32("llama.rope.scale_linear", 4.0).file()), &[]).unwrap().0;
        assert_eq!(linear.rope.scaling, Scaling::Linear { factor: 4.0 });
    }
}
