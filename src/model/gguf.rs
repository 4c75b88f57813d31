//! The metadata of a GGUF file to [`Model`]: what changes the computation is read or refused by name.
//!
//! Keys by the specification of GGUF in the repository of ggml. What the metadata does not say (biases, a tied head, norms
//! of heads) the file's tensors do.

use super::{Family, Model, Rope, Scaling};
use crate::gguf::Header;
use std::collections::BTreeSet;

/// Keys of an architecture that change the computation, and the value that does not.
const NEUTRAL: [(&str, f64); 7] = [
    ("expert_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 0.0),
    ("embedding_scale", 0.0),
    ("residual_scale", 0.0),
];

/// The model of a file of this name; `factors` are the elements of its tensor `rope_freqs.weight`, where it has one.
pub(super) fn read(name: &str, header: &Header, factors: Option<Vec<f64>>) -> Result<Model, String> {
    let who = header.text("general.architecture").ok_or("general.architecture is missing")?;
    let family = match who {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(format!("general.architecture '{other}' is not supported; llama, qwen2 and qwen3 are")),
    };
    let key = |what: &str| format!("{who}.{what}");
    let size = |what: &str| match header.int(&key(what)) {
        Some(v) if (1..=super::config::MAX_SIZE).contains(&v) => Ok(Some(v)),
        Some(v) => Err(format!("{} = {v} is no size", key(what))),
        None => Ok(None),
    };
    let needed = |what: &str| size(what)?.ok_or_else(|| format!("{} is missing", key(what)));
    for (what, neutral) in NEUTRAL {
        if let Some(v) = header.float(&key(what)).filter(|v| *v != neutral) {
            return Err(format!("{} = {v} is not supported", key(what)));
        }
    }
    let tensors: BTreeSet<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    let has = |tensor: &str| tensors.contains(tensor);
    let (hidden, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    let kv_heads = size("attention.head_count_kv")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(format!("{heads} heads are no multiple of {kv_heads} of keys and values"));
    }
    let head_dim = match size("attention.key_length")? {
        Some(d) => d,
        None if hidden % heads == 0 => hidden / heads,
        None => return Err(format!("{} = {hidden} is no multiple of the {heads} heads", key("embedding_length"))),
    };
    for what in ["attention.value_length", "rope.dimension_count"] {
        if let Some(v) = size(what)?.filter(|v| *v != head_dim) {
            return Err(format!("{} = {v} is not supported, where a head has {head_dim}", key(what)));
        }
    }
    let embedding = header.tensors.iter().find(|t| t.name == "token_embd.weight");
    let vocab = match embedding.map(|t| &t.shape[..]) {
        Some([vocab, _]) => i64::try_from(*vocab).ok().filter(|v| *v <= super::config::MAX_SIZE),
        _ => None,
    };
    let eps = header.float(&key("attention.layer_norm_rms_epsilon")).filter(|e| *e > 0.0 && *e < 1.0);
    let theta = header.float(&key("rope.freq_base")).unwrap_or(1e4);
    if theta.is_nan() || theta <= 1.0 {
        return Err(format!("{} = {theta} must be above 1", key("rope.freq_base")));
    }
    Ok(Model {
        name: name.into(),
        family,
        hidden,
        intermediate: needed("feed_forward_length")?,
        layers: super::config::layers(&key("block_count"), needed("block_count")?)?,
        heads,
        kv_heads,
        head_dim,
        vocab: vocab.ok_or("token_embd.weight says no vocabulary")?,
        rms_norm_eps: eps.ok_or_else(|| format!("{} is missing, or no ε", key("attention.layer_norm_rms_epsilon")))?,
        rope: Rope { theta, scaling: scaling(header, &key, factors, head_dim)? },
        tie_word_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_down.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        sliding_window: None,
        max_position_embeddings: size("context_length")?.unwrap_or(2048),
        dtype: None,
        quantization: None,
    })
}

fn scaling(
    header: &Header,
    key: &impl Fn(&str) -> String,
    factors: Option<Vec<f64>>,
    head_dim: i64,
) -> Result<Scaling, String> {
    if let Some(factors) = factors {
        return match factors.len() as i64 * 2 == head_dim && factors.iter().all(|f| *f > 0.0 && f.is_finite()) {
            true => Ok(Scaling::Factors { factors }),
            false => Err("rope_freqs.weight has no divisor above 0 for each pair of a head".into()),
        };
    }
    let kind = header.text(&key("rope.scaling.type")).unwrap_or("none");
    let factor = header.float(&key("rope.scaling.factor")).or_else(|| header.float(&key("rope.scale_linear")));
    match (kind, factor) {
        ("none", None) => Ok(Scaling::Default),
        ("none" | "linear", Some(1.0)) => Ok(Scaling::Default),
        ("none" | "linear", Some(factor)) if factor > 0.0 => Ok(Scaling::Linear { factor }),
        (other, _) => Err(format!("{} '{other}' is not supported; none and linear are", key("rope.scaling.type"))),
    }
}
