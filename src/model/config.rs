//! `config.json` to [`Model`]: every key that changes the computation is read or refused by name.
//!
//! A key that is left out means what it means to the model's class in transformers. What transformers passes over in
//! silence is named in a note, so that nobody believes it was read.

use super::{Family, Model, ModelError, Quantization, Rope, Scaling};
use crate::problem::{Dtype, Problem};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Sizes above this are mistakes, and would overflow the products of a plan.
pub(super) const MAX_SIZE: i64 = 1 << 24;
/// More layers than this are a mistake too, and their programs would fill the memory; the largest published models have some
/// 130.
const MAX_LAYERS: i64 = 1 << 10;

pub(super) fn layers(key: &str, layers: i64) -> Result<i64, String> {
    match layers {
        0..=MAX_LAYERS => Ok(layers),
        _ => Err(format!("{key} = {layers}: models go to {MAX_LAYERS} layers")),
    }
}

/// The number of a token, which is one of the vocabulary's.
pub(super) fn token(key: &str, id: i64, vocab: i64) -> Result<i32, String> {
    let known = i32::try_from(id).ok().filter(|_| (0..vocab).contains(&id));
    known.ok_or_else(|| format!("{key} = {id} is no token: those of the model go from 0 to {}", vocab - 1))
}

/// The same of what a configuration says: a number or a list of some, or null for none.
pub(super) fn tokens(key: &str, value: &Value, vocab: i64) -> Result<Vec<i32>, String> {
    let list = match value {
        Value::Null => &[],
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let one = |v: &Value| match v.as_i64() {
        Some(id) => token(key, id, vocab),
        None => Err(format!("{key} = {} is no token", shortened(v))),
    };
    list.iter().map(one).collect()
}

/// The model of a configuration, and what is to be said of it.
pub(super) fn read(name: &str, file: &Path, text: &str) -> Result<(Model, Vec<String>), ModelError> {
    model(name, text)
        .map(|(model, notes)| (model, notes.into_iter().map(|note| format!("{}: {note}", file.display())).collect()))
        .map_err(|why| ModelError::Config { path: file.into(), why })
}

/// What [`read`] reads as this model, with weights of this type: the keys that transformers 4 and 5 both know.
pub(super) fn write(model: &Model, dtype: Dtype) -> Result<Value, String> {
    let m = model;
    // What counts things is written without a decimal point.
    let whole = |v: f64| if v.fract() == 0.0 && v.abs() < 1e15 { json!(v as i64) } else { json!(v) };
    let scaling = match m.rope.scaling {
        // The keys of `llama3` cannot be told from the factors that they gave.
        Scaling::Factors { .. } => return Err("no config.json has a factor for each frequency of RoPE".into()),
        Scaling::Default => Value::Null,
        Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: old } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": whole(old),
        }),
    };
    let dtype = match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    let mut config = json!({
        "architectures": [m.family.architecture()], "model_type": m.family.name(), "hidden_act": "silu",
        "hidden_size": m.hidden, "intermediate_size": m.intermediate, "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim,
        "vocab_size": m.vocab, "max_position_embeddings": m.max_position_embeddings, "rms_norm_eps": m.rms_norm_eps,
        "rope_theta": m.rope.theta, "rope_scaling": scaling, "tie_word_embeddings": m.tie_word_embeddings,
        "torch_dtype": dtype,
    });
    match m.family {
        Family::Llama => {
            config["attention_bias"] = m.qkv_bias.into();
            config["mlp_bias"] = m.mlp_bias.into();
        }
        Family::Qwen3 => config["attention_bias"] = m.qkv_bias.into(),
        Family::Mistral | Family::Qwen2 => {}
    }
    match m.family {
        Family::Mistral => config["sliding_window"] = m.sliding_window.into(),
        Family::Qwen2 | Family::Qwen3 => {
            config["use_sliding_window"] = m.sliding_window.is_some().into();
            config["sliding_window"] = m.sliding_window.into();
            // The layers of a Qwen slide from here on.
            config["max_window_layers"] = if m.sliding_window.is_some() { 0 } else { m.layers }.into();
        }
        Family::Llama => {}
    }
    Ok(config)
}

fn model(name: &str, text: &str) -> Result<(Model, Vec<String>), String> {
    let mut keys = Keys::parse(text)?;
    let mut notes = Vec::new();
    let family = family(&mut keys)?;
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(act) = keys.word(key)?.filter(|a| !["silu", "swish"].contains(&a.as_str())) {
            return Err(format!("{key} '{act}' is not supported; silu is"));
        }
    }
    let hidden = keys.needed("hidden_size")?;
    let layers = layers("num_hidden_layers", keys.needed("num_hidden_layers")?)?;
    let heads = keys.needed("num_attention_heads")?;
    let kv_heads = match (keys.map.get("num_key_value_heads"), family) {
        (Some(_), _) | (None, Family::Llama) => keys.size("num_key_value_heads")?.unwrap_or(heads),
        (None, Family::Mistral) => 8,
        (None, Family::Qwen2 | Family::Qwen3) => 32,
    };
    if heads % kv_heads != 0 {
        return Err(format!("num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"));
    }
    let head_dim = match (keys.size("head_dim")?, family) {
        (Some(d), _) => d,
        (None, Family::Qwen3) => 128,
        (None, _) if hidden % heads != 0 => {
            return Err(format!(
                "hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, and head_dim is missing"
            ));
        }
        (None, _) => hidden / heads,
    };
    if head_dim % 2 != 0 {
        return Err(format!("head_dim = {head_dim} must be even for RoPE"));
    }
    let rms_norm_eps = Problem::held("rms_norm_eps", keys.number("rms_norm_eps")?.unwrap_or(1e-6))?;
    let attention_bias = keys.flag("attention_bias")?;
    let mlp_bias = keys.flag("mlp_bias")?;
    let has_attention_bias = match family {
        Family::Llama | Family::Qwen3 => attention_bias.unwrap_or(false),
        Family::Mistral | Family::Qwen2 => false,
    };
    let has_mlp_bias = family == Family::Llama && mlp_bias.unwrap_or(false);
    let class = family.architecture();
    let mut passed_over = |key: &str, given: Option<bool>, means: bool| {
        if let Some(value) = given.filter(|v| *v != means) {
            let has = if means { "always has" } else { "never has" };
            notes.push(format!("{key} = {value} is passed over, as {class} does: it {has} them"));
        }
    };
    passed_over("attention_bias", attention_bias, has_attention_bias || family == Family::Qwen2);
    passed_over("mlp_bias", mlp_bias, has_mlp_bias);
    // Elsewhere it is a key of another model's.
    let qkv_bias = if family == Family::Qwen2 { keys.flag("qkv_bias")? } else { None };
    passed_over("qkv_bias", qkv_bias, true);
    let defaults = match family {
        Family::Llama => 2048,
        Family::Mistral => 131_072,
        Family::Qwen2 | Family::Qwen3 => 32_768,
    };
    let quantization = match keys.take("quantization_config").filter(|q| *q != Value::Bool(false)) {
        Some(config) => {
            let (quantization, more) = Quantization::read(&config)?;
            notes.extend(more);
            Some(quantization)
        }
        None => None,
    };
    let vocab = keys.needed("vocab_size")?;
    for key in ["bos_token_id", "eos_token_id"] {
        tokens(key, &keys.take(key).unwrap_or_default(), vocab)?;
    }
    let model = Model {
        name: name.into(),
        family,
        hidden,
        intermediate: keys.needed("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rms_norm_eps,
        rope: rope(&mut keys)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: has_attention_bias || family == Family::Qwen2,
        o_bias: has_attention_bias,
        mlp_bias: has_mlp_bias,
        qk_norm: family == Family::Qwen3,
        sliding_window: sliding_window(&mut keys, family, layers)?,
        max_position_embeddings: keys.size("max_position_embeddings")?.unwrap_or(defaults),
        dtype: dtype(&mut keys)?,
        quantization,
    };
    let unknown = rest(keys)?;
    if !unknown.is_empty() {
        notes.push(format!("not known, and passed over: {}", unknown.join(", ")));
    }
    Ok((model, notes))
}

/// Who the configuration is: its one architecture decides, and where none is given, `model_type`.
fn family(keys: &mut Keys) -> Result<Family, String> {
    let list = |name: fn(Family) -> &'static str| Family::ALL.map(name).join(", ");
    let typed = match keys.word("model_type")? {
        None => None,
        Some(name) => match Family::ALL.into_iter().find(|f| f.name() == name) {
            Some(family) => Some(family),
            // The architecture says it better, where it is not supported either.
            None if keys.map.get("architectures").is_some_and(|v| !v.is_null()) => {
                architecture(keys)?;
                return Err(format!("model_type '{name}' is not supported; {} are", list(Family::name)));
            }
            None => return Err(format!("model_type '{name}' is not supported; {} are", list(Family::name))),
        },
    };
    match (architecture(keys)?, typed) {
        (Some(family), Some(other)) if family != other => Err(format!(
            "architectures says {}, but model_type says '{}'; one of them is wrong",
            family.architecture(),
            other.name()
        )),
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => Err(format!(
            "neither architectures nor model_type says which model this is; jitune plans {}",
            list(Family::architecture)
        )),
    }
}

fn architecture(keys: &mut Keys) -> Result<Option<Family>, String> {
    let given = match keys.take("architectures") {
        None => return Ok(None),
        Some(Value::Array(list)) if list.is_empty() => return Ok(None),
        Some(given) => given,
    };
    let known = Family::ALL.map(Family::architecture).join(", ");
    let name = match given.as_array().map(Vec::as_slice) {
        Some([Value::String(name)]) => name,
        Some([_, _, ..]) => return Err(format!("architectures = {given} names several; one of {known} is planned")),
        _ => return Err(format!("architectures = {given} is not a list of one name; {known} are planned")),
    };
    match Family::ALL.into_iter().find(|f| f.architecture() == name) {
        Some(family) => Ok(Some(family)),
        None => Err(format!("architectures: '{name}' is not supported; {known} are")),
    }
}

/// The shortest reach of a layer, if any layer sees less than everything.
fn sliding_window(keys: &mut Keys, family: Family, layers: i64) -> Result<Option<i64>, String> {
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    let missing = !keys.map.contains_key("sliding_window");
    let given = keys.size("sliding_window")?;
    let used = keys.flag("use_sliding_window")?.unwrap_or(false);
    let from = keys.integer("max_window_layers", 0)?.unwrap_or(28);
    let window = match family {
        Family::Qwen2 | Family::Qwen3 if !used => None,
        Family::Mistral | Family::Qwen2 | Family::Qwen3 if missing => Some(4096),
        _ => given,
    };
    // Without a list of types, the layers of Qwen slide from `max_window_layers` on, and those of the others all.
    let mut slides = !qwen || from < layers;
    if let Some(types) = keys.take("layer_types") {
        let list: Option<Vec<&str>> = types.as_array().and_then(|l| l.iter().map(Value::as_str).collect());
        let list = list.ok_or_else(|| format!("layer_types = {types} is not a list of names"))?;
        if list.len() as i64 != layers {
            return Err(format!("layer_types names {} layers, but num_hidden_layers = {layers}", list.len()));
        }
        if let Some(other) = list.iter().find(|t| !["full_attention", "sliding_attention"].contains(t)) {
            return Err(format!("layer_types: '{other}' is not supported; full_attention and sliding_attention are"));
        }
        let any = list.contains(&"sliding_attention");
        if any && window.is_none() {
            return Err("layer_types asks for sliding_attention, but no sliding_window is in use".into());
        }
        slides = any || !qwen;
    }
    Ok(window.filter(|_| slides))
}

/// The type of the weights, which says nothing about the types that kernels are tuned for.
fn dtype(keys: &mut Keys) -> Result<Option<Dtype>, String> {
    let mut found: Option<(&str, Dtype)> = None;
    for key in ["torch_dtype", "dtype"] {
        let Some(name) = keys.word(key)?.filter(|n| n != "auto") else { continue };
        let dtype = match name.strip_prefix("torch.").unwrap_or(&name) {
            "bfloat16" => Dtype::Bf16,
            "float16" => Dtype::F16,
            "float32" => Dtype::F32,
            _ => return Err(format!("{key} '{name}' is not supported; bfloat16, float16 and float32 are")),
        };
        if let Some((other, first)) = found.filter(|(_, first)| *first != dtype) {
            return Err(format!("{other} says {first}, but {key} says {dtype}; one of them is wrong"));
        }
        found = Some((key, dtype));
    }
    Ok(found.map(|(_, dtype)| dtype))
}

/// RoPE in the keys of transformers 4 (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`).
fn rope(keys: &mut Keys) -> Result<Rope, String> {
    let mut theta = keys.number("rope_theta")?;
    let mut scaling: Option<Scaling> = None;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.take(name) else { continue };
        let Value::Object(map) = value else { return Err(format!("{name} = {value} is not an object")) };
        let mut inner = Keys { within: format!("{name}."), map: map.into_iter().collect() };
        if let Some(base) = inner.number("rope_theta")? {
            if let Some(other) = theta.filter(|t| *t != base) {
                return Err(format!("rope_theta = {other}, but {name}.rope_theta = {base}; one of them is wrong"));
            }
            theta = Some(base);
        }
        let read = rope_scaling(&mut inner)?;
        if scaling.as_ref().is_some_and(|first| *first != read) {
            return Err("rope_scaling and rope_parameters say different things; one of them is wrong".into());
        }
        scaling = Some(read);
    }
    let theta = theta.unwrap_or(1e4);
    // NaN is no JSON, so this is all that cannot be.
    if theta <= 1.0 {
        return Err(format!("rope_theta = {theta} must be above 1"));
    }
    Ok(Rope { theta, scaling: scaling.unwrap_or(Scaling::Default) })
}

fn rope_scaling(keys: &mut Keys) -> Result<Scaling, String> {
    let within = keys.within.clone();
    let (new, old) = (keys.word("rope_type")?, keys.word("type")?);
    if let (Some(new), Some(old)) = (&new, &old)
        && new != old
    {
        return Err(format!("{within}rope_type says '{new}', but {within}type says '{old}'; one of them is wrong"));
    }
    let kind = new.or(old).unwrap_or_else(|| "default".into());
    if keys.number("partial_rotary_factor")?.is_some_and(|v| v != 1.0) {
        return Err(format!("{within}partial_rotary_factor is not supported; all of a head is rotated"));
    }
    let mut positive = |key: &str| match keys.number(key)? {
        Some(v) if v > 0.0 => Ok(v),
        Some(v) => Err(format!("{within}{key} = {v} must be above 0")),
        None => Err(format!("{within}{key} is missing; rope type '{kind}' needs it")),
    };
    let scaling = match kind.as_str() {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: positive("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: positive("factor")?,
            low_freq_factor: positive("low_freq_factor")?,
            high_freq_factor: positive("high_freq_factor")?,
            original_max_position_embeddings: positive("original_max_position_embeddings")?,
        },
        _ => return Err(format!("{within}rope_type '{kind}' is not supported; default, linear and llama3 are")),
    };
    if let Scaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = scaling
        && high <= low
    {
        return Err(format!("{within}high_freq_factor = {high} must be above low_freq_factor = {low}"));
    }
    match keys.map.iter().find(|(_, v)| !v.is_null()) {
        Some((key, _)) => Err(format!("{within}{key} is not a parameter of rope type '{kind}'")),
        None => Ok(scaling),
    }
}

/// What is left when the model is read: a key that changes the computation is refused unless its value is neutral, one
/// that is known to change nothing is passed over, and the others are returned.
fn rest(keys: Keys) -> Result<Vec<String>, String> {
    let (mut unknown, mut refused) = (Vec::new(), Vec::new());
    for (key, value) in keys.map {
        match neutral(&key, &value) {
            Some(true) => {}
            Some(false) => refused.push(match value.get("quant_method") {
                Some(method) => format!("{key} (quant_method {method})"),
                None => format!("{key} = {}", shortened(&value)),
            }),
            None if value.is_null() || HARMLESS.contains(&key.as_str()) => {}
            None => unknown.push(key),
        }
    }
    match refused.len() {
        0 => Ok(unknown),
        1 => Err(format!("{} is not supported", refused[0])),
        _ => Err(format!("{} are not supported", refused.join(", "))),
    }
}

pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain(['…']).collect() }
}

/// Whether a key that changes the computation holds the value that does not; `None` for other keys.
fn neutral(key: &str, value: &Value) -> Option<bool> {
    let is = |v: f64| value.is_null() || value.as_f64() == Some(v);
    let off = value.is_null() || *value == Value::Bool(false);
    if key == "pruned_heads" {
        return Some(value.is_null() || value.as_object().is_some_and(|heads| heads.is_empty()));
    }
    if key == "is_causal" {
        return Some(value.is_null() || *value == Value::Bool(true));
    }
    // Where 1 is no neutral value, since the factor stands in place of another one.
    if ["attention_multiplier", "query_pre_attn_scalar", "scale_depth", "dim_model_base"].contains(&key) {
        return Some(value.is_null());
    }
    if ["partial_rotary_factor", "rotary_pct", "logit_scale", "scale_emb"].contains(&key)
        || key.ends_with("_multiplier")
        || key.ends_with("_scaling")
    {
        return Some(is(1.0));
    }
    if key.contains("expert") || key.starts_with("moe_") {
        return Some(off || is(0.0));
    }
    if OFF.contains(&key) || key.contains("softcap") || key.starts_with("rope_") || key.starts_with("mup_") {
        return Some(off);
    }
    None
}

/// Keys that change the computation unless they are null or false.
const OFF: &[&str] = &[
    // Weights that are not stored as they are.
    "quantization",
    "compression_config",
    "weight_bits",
    "input_bits",
    // Drafts of speculative decoding.
    "draft_vocab_size",
    "target_hidden_size",
    "eagle_config",
    "eagle_aux_hidden_state_layer_ids",
    "norm_before_residual",
    // Models in a model.
    "text_config",
    "vision_config",
    "audio_config",
    "is_encoder_decoder",
    "tie_encoder_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    // Other attention.
    "use_bidirectional_attention",
    "attention_chunk_size",
    "sliding_window_pattern",
    "interleaved_sliding_window",
    "attention_sink_size",
    "clip_qkv",
    "alibi",
    "use_alibi",
    "use_qk_norm",
    "qk_norm",
    "qk_layernorm",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "num_kv_shared_layers",
    "cla_share_factor",
    "use_cla",
    // Other positions.
    "use_mrope",
    "rotary_dim",
    "no_rope_layers",
    "no_rope_layer_interval",
    "original_max_position_embeddings",
    // Other layers.
    "use_bias",
    "qkv_bias",
    "use_parallel_residual",
    "hidden_size_per_layer_input",
];

/// Keys of all models that change nothing about a forward pass: tokens, training, generation, bookkeeping.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "tokenizer_name",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
    "use_safetensors",
    "vocab_file",
];

/// The keys of a configuration that were not read yet.
struct Keys {
    /// What stands before a key's name in messages.
    within: String,
    map: BTreeMap<String, Value>,
}

impl Keys {
    fn parse(text: &str) -> Result<Keys, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Keys { within: String::new(), map: map.into_iter().collect() }),
            Ok(_) => Err("not a configuration: it is no JSON object".into()),
            Err(e) => Err(format!("not a configuration: {e}")),
        }
    }

    /// The value of a key that is set; null is as good as absent.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&mut self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        let within = &self.within;
        match self.map.remove(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(found) => Ok(Some(found)),
                None => Err(format!("{within}{key} = {} is not {kind}", shortened(&value))),
            },
        }
    }

    fn word(&mut self, key: &str) -> Result<Option<String>, String> {
        self.typed(key, "a text", |v| v.as_str().map(String::from))
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn integer(&mut self, key: &str, least: i64) -> Result<Option<i64>, String> {
        match self.typed(key, "a whole number", Value::as_i64)? {
            Some(v) if !(least..=MAX_SIZE).contains(&v) => Err(format!("{key} = {v} must lie in {least}..={MAX_SIZE}")),
            found => Ok(found),
        }
    }

    fn size(&mut self, key: &str) -> Result<Option<i64>, String> {
        self.integer(key, 1)
    }

    fn needed(&mut self, key: &str) -> Result<i64, String> {
        self.size(key)?.ok_or_else(|| format!("{key} is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base(family: Family) -> Value {
        json!({
            "architectures": [family.architecture()], "model_type": family.name(), "hidden_size": 256,
            "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
            "vocab_size": 1000, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 8192,
        })
    }

    /// The base of a family with some keys set, or left out where the value is the text "-".
    fn with(family: Family, changes: Value) -> Result<(Model, Vec<String>), String> {
        let mut config = base(family);
        for (key, value) in changes.as_object().unwrap() {
            match value.as_str() {
                Some("-") => config.as_object_mut().unwrap().shift_remove(key),
                _ => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        model("x", &config.to_string())
    }

    fn planned(family: Family, changes: Value) -> Model {
        let (model, notes) = with(family, changes.clone()).unwrap_or_else(|e| panic!("{changes}: {e}"));
        assert_eq!(notes, [""; 0], "{changes}");
        model
    }

    fn refused(family: Family, changes: Value, said: &str) {
        let e = with(family, changes.clone()).map(|(model, _)| model).expect_err(&changes.to_string());
        assert!(e.contains(said), "{changes}: '{said}' is not said: {e}");
    }

    #[test]
    fn tokens_are_those_of_the_vocabulary() {
        for key in ["bos_token_id", "eos_token_id"] {
            for (said, wrong) in [(json!(1000), 1000), (json!([1, -1]), -1), (json!(1_u64 << 40), 1_i64 << 40)] {
                refused(Family::Llama, json!({ key: said }), &format!("{key} = {wrong} is no token: those of"));
            }
            refused(Family::Qwen3, json!({ key: "</s>" }), &format!("{key} = \"</s>\" is no token"));
            for right in [json!(0), json!([1, 999]), json!(null)] {
                planned(Family::Llama, json!({ key: right }));
            }
        }
    }

    #[test]
    fn who_it_is_must_be_said_once_and_alike() {
        for family in Family::ALL {
            assert_eq!(planned(family, json!({"model_type": "-"})).family, family);
            assert_eq!(planned(family, json!({"architectures": "-"})).family, family);
            assert_eq!(planned(family, json!({"architectures": null})).family, family);
            assert_eq!(planned(family, json!({"architectures": []})).family, family);
        }
        for (changes, said) in [
            (json!({"architectures": "-", "model_type": "-"}), "neither architectures nor model_type"),
            (json!({"architectures": null, "model_type": null}), "neither architectures nor model_type"),
            (json!({"model_type": "qwen2"}), "architectures says LlamaForCausalLM, but model_type says 'qwen2'"),
            (json!({"model_type": "gemma2"}), "model_type 'gemma2' is not supported"),
            (json!({"model_type": "gemma2", "architectures": "-"}), "model_type 'gemma2' is not supported"),
            (json!({"model_type": "", "architectures": "-"}), "model_type '' is not supported"),
            (json!({"model_type": 7}), "model_type = 7 is not a text"),
            (json!({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}), "names several"),
            (json!({"architectures": "LlamaForCausalLM"}), "is not a list of one name"),
            (json!({"architectures": [1]}), "is not a list of one name"),
        ] {
            refused(Family::Llama, changes, said);
        }
    }

    #[test]
    fn a_missing_key_means_what_it_means_to_the_family() {
        let heads =
            |family, value: Value| planned(family, json!({"num_key_value_heads": value, "num_attention_heads": 32}));
        for family in Family::ALL {
            assert_eq!(heads(family, json!(null)).kv_heads, 32);
            assert_eq!(heads(family, json!("-")).kv_heads, if family == Family::Mistral { 8 } else { 32 });
        }
        assert_eq!(heads(Family::Mistral, json!("-")).kv_heads, 8);
        refused(Family::Qwen2, json!({"num_key_value_heads": "-"}), "not a multiple of num_key_value_heads = 32");
        for (family, d, window, positions) in [
            (Family::Llama, 32, None, 2048),
            (Family::Mistral, 32, Some(4096), 131_072),
            (Family::Qwen2, 32, None, 32_768),
            (Family::Qwen3, 128, None, 32_768),
        ] {
            let m = planned(family, json!({"rms_norm_eps": "-", "rope_theta": "-", "max_position_embeddings": "-"}));
            assert_eq!((m.head_dim, m.sliding_window, m.max_position_embeddings), (d, window, positions));
            assert_eq!((m.rms_norm_eps, m.tie_word_embeddings), (1e-6, false));
            assert_eq!(m.rope, Rope { theta: 1e4, scaling: Scaling::Default });
            assert_eq!(m.dtype, None);
        }
        for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
            refused(Family::Llama, json!({key: "-"}), &format!("{key} is missing"));
            refused(Family::Llama, json!({key: null}), &format!("{key} is missing"));
        }
        refused(
            Family::Llama,
            json!({"num_hidden_layers": 1025}),
            "num_hidden_layers = 1025: models go to 1024 layers",
        );
    }

    #[test]
    fn biases_are_those_of_the_family() {
        let biases = |m: Model| (m.qkv_bias, m.o_bias, m.mlp_bias, m.qk_norm);
        let both = json!({"attention_bias": true, "mlp_bias": true});
        assert_eq!(biases(planned(Family::Llama, both.clone())), (true, true, true, false));
        assert_eq!(biases(planned(Family::Llama, json!({}))), (false, false, false, false));
        assert_eq!(biases(planned(Family::Mistral, json!({}))), (false, false, false, false));
        assert_eq!(biases(planned(Family::Qwen2, json!({}))), (true, false, false, false));
        assert_eq!(biases(planned(Family::Qwen3, json!({"attention_bias": true}))), (true, true, false, true));
        // What the class passes over is said.
        let noted = |family, changes: Value| {
            let (model, notes) = with(family, changes).unwrap();
            (biases(model), notes.join("\n"))
        };
        let (mistral, notes) = noted(Family::Mistral, both.clone());
        assert_eq!(mistral, (false, false, false, false));
        assert!(notes.contains("attention_bias = true is passed over") && notes.contains("mlp_bias = true"), "{notes}");
        let (qwen2, notes) = noted(Family::Qwen2, json!({"attention_bias": false}));
        assert_eq!(qwen2, (true, false, false, false));
        assert!(notes.contains("attention_bias = false is passed over, as Qwen2ForCausalLM does"), "{notes}");
        assert_eq!(noted(Family::Qwen2, json!({"attention_bias": true, "qkv_bias": true})).1, "");
        let (qwen2, notes) = noted(Family::Qwen2, json!({"qkv_bias": false}));
        assert_eq!(qwen2, (true, false, false, false));
        assert!(notes.contains("qkv_bias = false is passed over, as Qwen2ForCausalLM does"), "{notes}");
        refused(Family::Llama, json!({"qkv_bias": true}), "qkv_bias = true is not supported");
        refused(Family::Llama, json!({"attention_bias": "yes"}), "attention_bias = \"yes\" is not true or false");
    }

    #[test]
    fn rope_is_read_in_both_generations() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192});
        let scaled = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let linear = Scaling::Linear { factor: 4.0 };
        for (changes, theta, scaling) in [
            (json!({}), 1e6, Scaling::Default),
            (json!({"rope_scaling": null, "rope_parameters": null}), 1e6, Scaling::Default),
            (json!({"rope_scaling": {"type": "linear", "factor": 4}}), 1e6, linear.clone()),
            (json!({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}}), 1e6, linear),
            (json!({"rope_scaling": llama3}), 1e6, scaled.clone()),
            (json!({"rope_theta": "-", "rope_parameters": {"rope_theta": 5e5}}), 5e5, Scaling::Default),
            (json!({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}}), 1e6, Scaling::Default),
            (json!({"rope_parameters": llama3}), 1e6, scaled.clone()),
            (json!({"rope_parameters": llama3, "rope_scaling": llama3}), 1e6, scaled),
            (json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}), 1e6, Scaling::Default),
        ] {
            assert_eq!(planned(Family::Llama, changes.clone()).rope, Rope { theta, scaling }, "{changes}");
        }
        for (changes, said) in [
            (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_scaling.rope_type 'dynamic'"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "'yarn' is not supported"),
            (json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_parameters.rope_type 'longrope'"),
            (json!({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}), "'mrope' is not supported"),
            (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling.factor is not a parameter of rope type 'default'"),
            (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor = 0 must be above 0"),
            (json!({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}), "rope_scaling.beta is not"),
            (json!({"rope_scaling": {"type": "linear", "rope_type": "llama3"}}), "one of them is wrong"),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8}}), "low_freq_factor is missing"),
            (json!({"rope_scaling": 2.0}), "rope_scaling = 2.0 is not an object"),
            (json!({"rope_parameters": {"rope_theta": 1e4}}), "rope_theta = 1000000, but rope_parameters.rope_theta"),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "rope_parameters.partial_rotary_factor"),
            (json!({"rope_parameters": llama3, "rope_scaling": {"type": "linear", "factor": 8}}), "different things"),
            (json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), "rope_parameters.full_attention"),
            (json!({"rope_theta": 0}), "rope_theta = 0 must be above 1"),
            (json!({"rope_theta": "big"}), "rope_theta = \"big\" is not a number"),
        ] {
            refused(Family::Llama, changes, said);
        }
        let mut flat = llama3.clone();
        flat["high_freq_factor"] = json!(1.0);
        refused(Family::Llama, json!({"rope_scaling": flat}), "must be above low_freq_factor");
    }

    #[test]
    fn windows_are_read_as_the_family_reads_them() {
        let window = |family, changes| planned(family, changes).sliding_window;
        let types = |list: [&str; 4]| json!(list.map(|t| format!("{t}_attention")));
        use Family::{Llama, Mistral, Qwen2, Qwen3};
        assert_eq!(window(Mistral, json!({"sliding_window": null})), None);
        assert_eq!(window(Mistral, json!({"sliding_window": 1024})), Some(1024));
        assert_eq!(window(Llama, json!({"sliding_window": 1024})), Some(1024));
        assert_eq!(window(Llama, json!({"use_sliding_window": false, "layer_types": types(["full"; 4])})), None);
        for family in [Qwen2, Qwen3] {
            let on = |more: Value| {
                let mut changes = json!({"use_sliding_window": true, "sliding_window": 1024, "max_window_layers": 2});
                changes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                window(family, changes)
            };
            assert_eq!(on(json!({})), Some(1024));
            assert_eq!(on(json!({"use_sliding_window": false})), None);
            assert_eq!(on(json!({"use_sliding_window": "-"})), None);
            assert_eq!(on(json!({"sliding_window": null})), None);
            assert_eq!(on(json!({"sliding_window": "-"})), Some(4096));
            assert_eq!(on(json!({"max_window_layers": 0})), Some(1024));
            assert_eq!(on(json!({"max_window_layers": 3})), Some(1024));
            assert_eq!(on(json!({"max_window_layers": 4})), None);
            assert_eq!(on(json!({"max_window_layers": "-"})), None);
            assert_eq!(on(json!({"layer_types": types(["full"; 4])})), None);
            assert_eq!(on(json!({"layer_types": types(["full", "full", "full", "sliding"])})), Some(1024));
        }
        for (family, changes, said) in [
            (Qwen2, json!({"layer_types": types(["full", "sliding", "full", "full"])}), "no sliding_window is in use"),
            (Qwen3, json!({"layer_types": types(["full", "linear", "full", "full"])}), "'linear_attention'"),
            (Llama, json!({"layer_types": types(["full", "chunked", "full", "full"])}), "'chunked_attention'"),
            (Qwen3, json!({"layer_types": ["full_attention"]}), "names 1 layers, but num_hidden_layers = 4"),
            (Qwen3, json!({"layer_types": "full_attention"}), "is not a list of names"),
            (Mistral, json!({"sliding_window": 0}), "sliding_window = 0 must lie in"),
        ] {
            refused(family, changes, said);
        }
    }

    #[test]
    fn keys_that_change_the_computation_are_refused_unless_neutral() {
        for (key, neutral, other) in [
            ("quantization_config", json!(null), json!({"quant_method": "fp8"})),
            ("num_experts", json!(0), json!(128)),
            ("num_local_experts", json!(null), json!(8)),
            ("n_routed_experts", json!(null), json!(64)),
            ("moe_intermediate_size", json!(null), json!(1408)),
            ("draft_vocab_size", json!(null), json!(32_000)),
            ("weight_bits", json!(null), json!(1)),
            ("partial_rotary_factor", json!(1.0), json!(0.5)),
            ("attn_logit_softcapping", json!(null), json!(50.0)),
            ("final_logit_softcapping", json!(null), json!(30.0)),
            ("embedding_multiplier", json!(1), json!(12.0)),
            ("residual_multiplier", json!(1.0), json!(0.22)),
            ("attention_multiplier", json!(null), json!(1.0)),
            ("logits_scaling", json!(1.0), json!(16.0)),
            ("scale_emb", json!(1), json!(12)),
            ("query_pre_attn_scalar", json!(null), json!(256)),
            ("is_causal", json!(true), json!(false)),
            ("pruned_heads", json!({}), json!({"0": [1]})),
            ("use_bidirectional_attention", json!(false), json!(true)),
            ("rope_interleaved", json!(false), json!(true)),
            ("rope_local_base_freq", json!(null), json!(10_000.0)),
            ("use_mrope", json!(false), json!(true)),
            ("kv_lora_rank", json!(null), json!(512)),
            ("text_config", json!(null), json!({})),
            ("use_qk_norm", json!(false), json!(true)),
            ("no_rope_layers", json!(null), json!([1, 0])),
        ] {
            let same = planned(Family::Llama, json!({key: neutral}));
            assert_eq!(same, planned(Family::Llama, json!({})), "{key}");
            refused(Family::Llama, json!({key: other}), key);
        }
        for act in ["silu", "swish"] {
            planned(Family::Qwen3, json!({"hidden_act": act}));
        }
        refused(Family::Qwen3, json!({"hidden_act": "gelu"}), "hidden_act 'gelu' is not supported");
        refused(Family::Llama, json!({"hidden_activation": "gelu"}), "hidden_activation 'gelu'");
    }

    #[test]
    fn unknown_keys_are_named_and_harmless_ones_are_not() {
        let harmless = json!({"bos_token_id": 1, "eos_token_id": [1, 2], "initializer_range": 0.02, "use_cache": true,
            "transformers_version": "4.51.0", "attention_dropout": 0.0, "pretraining_tp": 1, "new_key": null});
        planned(Family::Llama, harmless);
        let (model, notes) = with(Family::Llama, json!({"wheels": 4, "auto_map": {"AutoModel": "x.Y"}})).unwrap();
        assert_eq!(model, planned(Family::Llama, json!({})));
        assert_eq!(notes, ["not known, and passed over: auto_map, wheels"]);
        let text = base(Family::Llama).to_string().replacen('{', "{\"wheels\":4,", 1);
        let (_, notes) = read("x", Path::new("folder/config.json"), &text).unwrap();
        assert_eq!(notes, ["folder/config.json: not known, and passed over: wheels"]);
    }

    #[test]
    fn types_of_weights_are_read_under_both_names() {
        for (changes, dtype) in [
            (json!({"torch_dtype": "bfloat16"}), Some(Dtype::Bf16)),
            (json!({"dtype": "float16"}), Some(Dtype::F16)),
            (json!({"dtype": "torch.float32", "torch_dtype": "float32"}), Some(Dtype::F32)),
            (json!({"dtype": "auto"}), None),
        ] {
            assert_eq!(planned(Family::Llama, changes.clone()).dtype, dtype, "{changes}");
        }
        refused(Family::Llama, json!({"torch_dtype": "float8_e4m3fn"}), "torch_dtype 'float8_e4m3fn'");
        refused(Family::Llama, json!({"torch_dtype": "float16", "dtype": "bfloat16"}), "one of them is wrong");
    }

    #[test]
    fn the_epsilon_is_held_exactly_or_refused() {
        let eps = |value: f64| planned(Family::Llama, json!({"rms_norm_eps": value})).rms_norm_eps;
        for held in [1e-12, 1e-6, 1e-5, 1.234567e-6, 2.147483647e-3] {
            assert_eq!(eps(held), held);
        }
        assert_eq!((eps(f64::from(1e-5f32)), eps(f64::from(1e-6f32))), (1e-5, 1e-6));
        for lost in [1e-13, 4e-13, 6e-13, 1e-320, 1.23456789e-7, 2.147483648e-3, 1e-2, 1.0, -1e-6] {
            let said =
                format!("rms_norm_eps = {lost:?} must lie in 1e-12..=2.147483647e-3, and be a multiple of 1e-12");
            refused(Family::Llama, json!({"rms_norm_eps": lost}), &said);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (changes, said) in [
            (json!({"hidden_size": -1}), "hidden_size = -1 must lie in 1..="),
            (json!({"hidden_size": "wide"}), "hidden_size = \"wide\" is not a whole number"),
            (json!({"hidden_size": 256.5}), "hidden_size = 256.5 is not a whole number"),
            (json!({"num_attention_heads": 7}), "num_attention_heads = 7 is not a multiple"),
            (json!({"hidden_size": 257}), "hidden_size = 257 is not a multiple of num_attention_heads = 8"),
            (json!({"head_dim": 33}), "head_dim = 33 must be even"),
            (json!({"rms_norm_eps": 0}), "rms_norm_eps = 0.0 must lie"),
            (json!({"rms_norm_eps": "small"}), "rms_norm_eps = \"small\" is not a number"),
        ] {
            refused(Family::Llama, changes, said);
        }
        assert_eq!(planned(Family::Llama, json!({"hidden_size": 257, "head_dim": 64})).head_dim, 64);
        let text = base(Family::Llama).to_string();
        assert!(model("x", &format!("\u{feff}{text}")).is_ok());
        assert!(model("x", text.trim_end_matches('}')).unwrap_err().contains("not a configuration"));
        assert!(model("x", "[]").unwrap_err().contains("not a configuration"));
    }
}
