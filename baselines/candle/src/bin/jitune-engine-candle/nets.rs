//! The models of candle-transformers that have one interface: tokens of a batch and their first position in, logits of the last out.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use jitune_peer::Refusal;
use jitune_peer::engine::{Config, Family, Scaling};

/// A model and its cache, which grows by concatenation.
pub enum Net {
    /// `empty` has the table of RoPE and nothing else.
    Llama {
        model: llama::Llama,
        empty: llama::Cache,
        cache: llama::Cache,
    },
    Mistral(mistral::Model),
    Qwen2(qwen2::ModelForCausalLM),
    Qwen3(qwen3::ModelForCausalLM),
}

/// Refuses by name what these models pass over in silence, for as many positions as are asked for.
pub fn fits(c: &Config, context: usize) -> std::result::Result<(), Refusal> {
    let square = matches!(c.family, Family::Llama | Family::Qwen2);
    let why = match c.scaling {
        _ if c.family == Family::Llama && (c.qkv_bias || c.o_bias) => "attention_bias".into(),
        _ if c.mlp_bias => "mlp_bias".into(),
        _ if square && c.head_dim * c.heads != c.hidden => {
            format!("head_dim = {}, where {} heads share {}", c.head_dim, c.heads, c.hidden)
        }
        _ if c.family == Family::Mistral && c.tied => "tie_word_embeddings".into(),
        _ if c.window.is_some_and(|window| context > window) => {
            format!("a context of {context} beyond the sliding window of {}", c.window.unwrap_or(0))
        }
        _ if context > c.positions => format!("a context of {context}, where the model has {}", c.positions),
        Scaling::Linear(_) => "rope_type 'linear'".into(),
        Scaling::Llama3 { .. } if c.family != Family::Llama => "rope_type 'llama3'".into(),
        _ => return Ok(()),
    };
    Err(Refusal::unsupported(format!("Candle's {:?} has no {why}", c.family)))
}

impl Net {
    pub fn load(c: &Config, weights: VarBuilder, place: &Device) -> Result<Net> {
        // Nothing that is asked for reaches beyond a window, which these models apply to prompts alone.
        let hidden_act = Activation::Silu;
        Ok(match c.family {
            Family::Llama => {
                let config = llama(c);
                let empty = llama::Cache::new(true, weights.dtype(), &config, place)?;
                Net::Llama { model: llama::Llama::load(weights, &config)?, cache: empty.clone(), empty }
            }
            Family::Mistral => {
                let config = mistral::Config {
                    vocab_size: c.vocab,
                    hidden_size: c.hidden,
                    intermediate_size: c.intermediate,
                    num_hidden_layers: c.layers,
                    num_attention_heads: c.heads,
                    head_dim: Some(c.head_dim),
                    num_key_value_heads: c.kv_heads,
                    hidden_act,
                    max_position_embeddings: c.positions,
                    rms_norm_eps: c.eps,
                    rope_theta: c.theta,
                    sliding_window: None,
                    use_flash_attn: false,
                };
                Net::Mistral(mistral::Model::new(&config, weights)?)
            }
            Family::Qwen2 => {
                let config = qwen2::Config {
                    vocab_size: c.vocab,
                    hidden_size: c.hidden,
                    intermediate_size: c.intermediate,
                    num_hidden_layers: c.layers,
                    num_attention_heads: c.heads,
                    num_key_value_heads: c.kv_heads,
                    max_position_embeddings: c.positions,
                    sliding_window: c.positions,
                    max_window_layers: c.layers,
                    tie_word_embeddings: c.tied,
                    rope_theta: c.theta,
                    rms_norm_eps: c.eps,
                    use_sliding_window: false,
                    hidden_act,
                };
                Net::Qwen2(qwen2::ModelForCausalLM::new(&config, weights)?)
            }
            Family::Qwen3 => {
                let config = qwen3::Config {
                    vocab_size: c.vocab,
                    hidden_size: c.hidden,
                    intermediate_size: c.intermediate,
                    num_hidden_layers: c.layers,
                    num_attention_heads: c.heads,
                    head_dim: c.head_dim,
                    attention_bias: c.qkv_bias,
                    num_key_value_heads: c.kv_heads,
                    max_position_embeddings: c.positions,
                    sliding_window: None,
                    max_window_layers: c.layers,
                    tie_word_embeddings: c.tied,
                    rope_theta: c.theta,
                    rms_norm_eps: c.eps,
                    use_sliding_window: false,
                    hidden_act,
                };
                Net::Qwen3(qwen3::ModelForCausalLM::new(&config, weights)?)
            }
        })
    }

    /// Lets the cache go.
    pub fn forget(&mut self) {
        match self {
            Net::Llama { empty, cache, .. } => *cache = empty.clone(),
            Net::Mistral(model) => model.clear_kv_cache(),
            Net::Qwen2(model) => model.clear_kv_cache(),
            Net::Qwen3(model) => model.clear_kv_cache(),
        }
    }

    /// Logits `[sequences, vocab]` in f32 of the last of `tokens`, `[sequences, tokens]`, which come after `at` others.
    pub fn forward(&mut self, tokens: &Tensor, at: usize) -> Result<Tensor> {
        let logits = match self {
            Net::Llama { model, cache, .. } => return model.forward(tokens, at, cache),
            Net::Mistral(model) => model.forward(tokens, at)?,
            Net::Qwen2(model) => model.forward(tokens, at)?,
            Net::Qwen3(model) => model.forward(tokens, at)?,
        };
        logits.squeeze(1)?.to_dtype(DType::F32)
    }
}

fn llama(c: &Config) -> llama::Config {
    let rope_scaling = match c.scaling {
        Scaling::Llama3 { factor, low, high, old } => Some(llama::Llama3RopeConfig {
            factor: factor as f32,
            low_freq_factor: low as f32,
            high_freq_factor: high as f32,
            original_max_position_embeddings: old as usize,
            rope_type: llama::Llama3RopeType::Llama3,
        }),
        _ => None,
    };
    llama::Config {
        hidden_size: c.hidden,
        intermediate_size: c.intermediate,
        vocab_size: c.vocab,
        num_hidden_layers: c.layers,
        num_attention_heads: c.heads,
        num_key_value_heads: c.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: c.eps,
        rope_theta: c.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: c.positions,
        tie_word_embeddings: c.tied,
    }
}

/// The most likely token of each row, found on the device.
pub fn best(logits: &Tensor) -> Result<Vec<u32>> {
    logits.argmax(D::Minus1)?.to_vec1()
}
