//! Models: a preset or a Hugging Face `config.json`, and the plan of problems that one forward pass calls.
//!
//! Pure but for reading the file. Knows shapes only; weights never.

mod plan;

pub use plan::{Buckets, Call, Phase, Plan};

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A model that cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a preset nor a folder.
    #[error("unknown model '{name}': it is neither a preset ({presets}) nor a folder with a config.json")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        presets: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a configuration that jitune can plan.
    #[error("{path}: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The buckets and the model do not go together.
    #[error("{0}")]
    Bucket(String),
    /// A problem of the plan is impossible.
    #[error(transparent)]
    Problem(#[from] crate::problem::ProblemError),
}

/// The shapes of a decoder-only transformer with RMSNorm, RoPE and SwiGLU (Llama, Mistral, Qwen2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// A label.
    pub name: String,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Width of the feed-forward layer.
    pub intermediate: i64,
    /// Layers.
    pub layers: i64,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Tokens of the vocabulary.
    pub vocab: i64,
    /// Whether the QKV product has a bias (Qwen2).
    pub qkv_bias: bool,
}

const fn preset(shape: [i64; 7], qkv_bias: bool) -> Model {
    let [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab] = shape;
    Model { name: String::new(), hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, qkv_bias }
}

/// The built-in models, by the `config.json` of their repositories.
static PRESETS: [(&str, Model); 6] = [
    ("llama-3.2-1b", preset([2048, 8192, 16, 32, 8, 64, 128256], false)),
    ("llama-3.2-3b", preset([3072, 8192, 28, 24, 8, 128, 128256], false)),
    ("llama-3.1-8b", preset([4096, 14336, 32, 32, 8, 128, 128256], false)),
    ("qwen2.5-0.5b", preset([896, 4864, 24, 14, 2, 64, 151936], true)),
    ("qwen2.5-7b", preset([3584, 18944, 28, 28, 4, 128, 152064], true)),
    ("mistral-7b-v0.3", preset([4096, 14336, 32, 32, 8, 128, 32768], false)),
];

/// The fields of a Hugging Face configuration that shapes depend on.
#[derive(Deserialize)]
struct HfConfig {
    #[serde(default)]
    model_type: String,
    hidden_size: Option<i64>,
    intermediate_size: Option<i64>,
    num_hidden_layers: Option<i64>,
    num_attention_heads: Option<i64>,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: Option<i64>,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
}

/// Sizes above this are mistakes, and would overflow the products of a plan.
const MAX_SIZE: i64 = 1 << 24;

impl Model {
    /// The names of the presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A preset by name, or the configuration in a folder (or the file itself).
    pub fn load(name: &str) -> Result<Model, ModelError> {
        if let Some((found, model)) = PRESETS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            return Ok(Model { name: (*found).into(), ..model.clone() });
        }
        let path = Path::new(name);
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        let looks_like_path = path.is_dir() || name.ends_with(".json") || name.contains('/');
        if !looks_like_path {
            let presets = Model::presets().collect::<Vec<_>>().join(", ");
            return Err(ModelError::Unknown { name: name.into(), presets });
        }
        let text = std::fs::read_to_string(&file).map_err(|source| ModelError::Io { path: file.clone(), source })?;
        Model::from_config(name, &file, &text)
    }

    fn from_config(name: &str, file: &Path, text: &str) -> Result<Model, ModelError> {
        let wrong = |why: String| ModelError::Config { path: file.into(), why };
        let c: HfConfig = serde_json::from_str(text).map_err(|e| wrong(format!("not a configuration: {e}")))?;
        if !["llama", "mistral", "qwen2", ""].contains(&c.model_type.as_str()) {
            return Err(wrong(format!("model_type '{}' is not supported; llama, mistral and qwen2 are", c.model_type)));
        }
        if let Some(act) = c.hidden_act.as_deref().filter(|a| !["silu", "swish"].contains(a)) {
            return Err(wrong(format!("hidden_act '{act}' is not supported; silu is")));
        }
        let need = |field: &str, value: Option<i64>| match value {
            None => Err(wrong(format!("{field} is missing"))),
            Some(v) if !(1..=MAX_SIZE).contains(&v) => Err(wrong(format!("{field} = {v} must lie in 1..={MAX_SIZE}"))),
            Some(v) => Ok(v),
        };
        let hidden = need("hidden_size", c.hidden_size)?;
        let heads = need("num_attention_heads", c.num_attention_heads)?;
        let kv_heads = need("num_key_value_heads", c.num_key_value_heads.or(Some(heads)))?;
        if heads % kv_heads != 0 {
            return Err(wrong(format!("{heads} heads are not a multiple of {kv_heads} key-value heads")));
        }
        if c.head_dim.is_none() && hidden % heads != 0 {
            return Err(wrong(format!(
                "hidden_size {hidden} is not a multiple of {heads} heads, and head_dim is missing"
            )));
        }
        let head_dim = need("head_dim", c.head_dim.or(Some(hidden / heads)))?;
        if head_dim % 2 != 0 {
            return Err(wrong(format!("head_dim {head_dim} must be even for RoPE")));
        }
        Ok(Model {
            name: name.into(),
            hidden,
            intermediate: need("intermediate_size", c.intermediate_size)?,
            layers: need("num_hidden_layers", c.num_hidden_layers)?,
            heads,
            kv_heads,
            head_dim,
            vocab: need("vocab_size", c.vocab_size)?,
            qkv_bias: c.attention_bias.unwrap_or(c.model_type == "qwen2"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_are_read_and_mistakes_named() {
        let good = r#"{"model_type":"qwen2","hidden_size":896,"intermediate_size":4864,"num_hidden_layers":24,
            "num_attention_heads":14,"num_key_value_heads":2,"vocab_size":151936,"hidden_act":"silu"}"#;
        let m = Model::from_config("qwen2.5-0.5b", Path::new("config.json"), good).unwrap();
        assert_eq!(m, Model::load("qwen2.5-0.5b").unwrap());
        for (from, to, said) in [
            ("896", "-1", "hidden_size = -1"),
            ("\"hidden_size\":896,", "", "hidden_size is missing"),
            ("qwen2", "mamba", "'mamba' is not supported"),
            (":14", ":13", "not a multiple"),
            ("silu", "gelu", "'gelu' is not supported"),
            ("896", "\"wide\"", "not a configuration"),
            ("}", "", "not a configuration"),
        ] {
            let text = good.replacen(from, to, 1);
            let e = Model::from_config("x", Path::new("config.json"), &text).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn unknown_names_list_the_presets() {
        let e = Model::load("llama-9").unwrap_err().to_string();
        assert!(e.contains("llama-3.2-1b") && e.contains("llama-9"), "{e}");
        assert!(matches!(Model::load("/nowhere/at/all"), Err(ModelError::Io { .. })));
    }
}
