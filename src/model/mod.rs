//! Models: a preset or a Hugging Face `config.json`, and the plan of problems that one forward pass calls.
//!
//! Pure but for reading the file. Knows shapes and the numbers that change the computation; weights never.
//! `config` reads a `config.json` or refuses it by name, `presets` holds what is built in, `plan` derives the problems.

mod config;
#[cfg(feature = "engine")]
mod fusion;
#[cfg(feature = "engine")]
mod gguf;
mod hub;
mod pass;
mod plan;
mod precision;
mod presets;
mod quantized;
mod rope;

#[cfg(feature = "engine")]
pub(crate) use fusion::with_norms_in_products;
pub use pass::{Cache, Pass, Shape, Tail};
#[cfg(feature = "engine")]
pub(crate) use plan::LEAST_CONTEXT;
pub use plan::{Buckets, Call, Phase, Plan};
#[cfg(feature = "engine")]
pub(crate) use precision::{LINEAR, SCALES, ZEROS};
pub use precision::{Precision, WeightFormat};
pub use quantized::{QuantLayout, Quantization};
pub use rope::{Rope, Scaling};

use crate::file;
use crate::limits::MAX_MODEL_TEXT_BYTES;
use crate::problem::Dtype;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A model that cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a preset nor a folder.
    #[error(
        "unknown model '{name}': it is neither a preset ({presets}), nor a folder with a config.json, nor a repository in the local \
         Hugging Face cache, which `hf download ORG/NAME` fills"
    )]
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

/// Who a model is: decoder-only transformers with RMSNorm, RoPE, grouped KV heads and SwiGLU, which differ in what the
/// fields of [`Model`] say and in what a missing key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3, SmolLM2 and all that is saved as `LlamaForCausalLM`.
    Llama,
    /// Mistral 7B and its like.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The name, which is `model_type` in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The class in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// A decoder-only transformer: its shapes, and everything else that changes what it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// A label.
    pub name: String,
    /// Who it is.
    pub family: Family,
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
    /// Width of a head; its product with `heads` need not be `hidden`.
    pub head_dim: i64,
    /// Tokens of the vocabulary.
    pub vocab: i64,
    /// What RMSNorm adds to the mean of squares.
    pub rms_norm_eps: f64,
    /// The rotary embedding of q and k.
    pub rope: Rope,
    /// Whether the LM head is the embedding's own weights.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output product has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Whether each head of q and of k is normed (RMSNorm with its own weight of `head_dim`) before RoPE.
    pub qk_norm: bool,
    /// Tokens that the layers which see least can see, themselves included; all, where it is not set.
    pub sliding_window: Option<i64>,
    /// Tokens of the longest sequence that it was made for.
    pub max_position_embeddings: i64,
    /// The type in which its weights are stored, where the configuration says so.
    pub dtype: Option<Dtype>,
    /// How its linear layers are quantised, where the configuration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

impl Model {
    /// The names of the presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        presets::PRESETS.iter().map(|(name, _)| *name)
    }

    /// The preset of that name, in any case of letters.
    pub fn preset(name: &str) -> Option<Model> {
        let (found, model) = presets::PRESETS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        Some(Model { name: (*found).into(), ..model.clone() })
    }

    /// Where the files of a name are: there, or in the local cache of Hugging Face's tools, which know a repository by its name.
    pub fn place(name: &str) -> PathBuf {
        let path = PathBuf::from(name);
        if path.exists() { path } else { hub::find(name).unwrap_or(path) }
    }

    /// A preset by name, or the configuration in a folder (or the file itself), and beside the model what is to be said of
    /// how it was found and read.
    pub fn load(name: &str) -> Result<(Model, Vec<String>), ModelError> {
        let path = Path::new(name);
        if let Some(model) = Model::preset(name) {
            let shadowed = path.exists().then(|| {
                format!("{} is the preset of that name; ./{name} exists too: write ./{name} to mean it", model.name)
            });
            return Ok((model, shadowed.into_iter().collect()));
        }
        let path = &Model::place(name);
        #[cfg(feature = "engine")]
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Model::of_gguf(path);
        }
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        let repository = hub::is_name(name) && !path.exists();
        let looks_like_path = path.is_dir() || name.ends_with(".json") || name.contains('/') && !repository;
        if !looks_like_path {
            let presets = Model::presets().collect::<Vec<_>>().join(", ");
            return Err(ModelError::Unknown { name: name.into(), presets });
        }
        let text = file::text(&file, MAX_MODEL_TEXT_BYTES).map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => ModelError::Config {
                path: file.clone(),
                why: "it is no text; a model is a folder with a config.json, or a file whose name ends in .gguf".into(),
            },
            _ => ModelError::Io { path: file.clone(), source },
        })?;
        config::read(name, &file, &text)
    }

    /// The model of a GGUF file, and what is to be said of it.
    #[cfg(feature = "engine")]
    fn of_gguf(path: &Path) -> Result<(Model, Vec<String>), ModelError> {
        use crate::{backend::mapped::Mapped, gguf::Header, problem::Storage};
        let bytes = Mapped::open(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
        let bad = |why: String| ModelError::Config { path: path.into(), why };
        let header = Header::read(&bytes).map_err(|e| bad(e.to_string()))?;
        let factors = header.tensors.iter().find(|t| t.name == "rope_freqs.weight").map(|t| {
            // Of f32, one for each pair; what is not there is NaN, and refused.
            let count = t.shape.iter().product::<u64>().min(1 << 16);
            let bytes = bytes.get(t.at..).unwrap_or_default();
            (0..count).map(|i| if t.kind == 0 { Storage::F32.value(bytes, i) } else { f64::NAN }).collect()
        });
        let (model, notes) = gguf::read(&path.display().to_string(), &header, factors).map_err(bad)?;
        Ok((model, notes.into_iter().map(|note| format!("{}: {note}", path.display())).collect()))
    }

    /// The tokens after which an answer ends: of `generation_config.json`, else of `config.json`, or of a GGUF file's metadata.
    /// None where these say none.
    #[cfg(feature = "engine")]
    pub fn ends(path: &Path) -> Result<Vec<i32>, ModelError> {
        Model::tokens(path, "eos_token_id")
    }

    /// The token that begins a text, of the same files. None where these say none.
    #[cfg(feature = "engine")]
    pub fn begin(path: &Path) -> Result<Option<i32>, ModelError> {
        Ok(Model::tokens(path, "bos_token_id")?.first().copied())
    }

    #[cfg(feature = "engine")]
    fn tokens(path: &Path, key: &str) -> Result<Vec<i32>, ModelError> {
        use crate::{backend::mapped::Mapped, gguf::Header};
        let bad = |path: &Path, why: String| ModelError::Config { path: path.into(), why };
        if path.is_file() {
            let bytes = Mapped::open(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
            let header = Header::read(&bytes).map_err(|e| bad(path, e.to_string()))?;
            let vocab = gguf::vocab(&header).unwrap_or(i64::from(i32::MAX));
            let id = gguf::token(&header, key, vocab).map_err(|why| bad(path, why))?;
            return Ok(id.into_iter().collect());
        }
        let read = |name: &str| {
            let file = path.join(name);
            let Ok(text) = file::text(&file, MAX_MODEL_TEXT_BYTES) else { return Ok((file, serde_json::Value::Null)) };
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            let config = serde_json::from_str(text).map_err(|e| bad(&file, e.to_string()))?;
            Ok::<_, ModelError>((file, config))
        };
        let files = [read("generation_config.json")?, read("config.json")?];
        let vocab = files[1].1["vocab_size"].as_i64().unwrap_or(i64::from(i32::MAX));
        let said = files.iter().find(|(_, config)| !config[key].is_null());
        said.map_or(Ok(Vec::new()), |(file, config)| {
            config::tokens(key, &config[key], vocab).map_err(|why| bad(file, why))
        })
    }

    /// The `config.json` of a folder with its weights in this type, as transformers 4 and 5 read it.
    pub fn config(&self, dtype: Dtype) -> Result<serde_json::Value, ModelError> {
        config::write(self, dtype).map_err(|why| ModelError::Config { path: "config.json".into(), why })
    }

    /// Reads the text of a `config.json`, for fuzzing.
    #[cfg(fuzzing)]
    pub fn fuzz_config(text: &str) -> Result<(Model, Vec<String>), ModelError> {
        config::read("fuzzed", Path::new("config.json"), text)
    }

    /// How many weights it has; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        let of = |v: i64| v.max(0) as u128;
        let [hidden, inter, vocab, d] = [self.hidden, self.intermediate, self.vocab, self.head_dim].map(of);
        let (q, kv) = (of(self.heads) * d, of(self.kv_heads) * d);
        let when = |has: bool, count: u128| if has { count } else { 0 };
        let attention = 2 * hidden * (q + kv) + when(self.qkv_bias, q + 2 * kv) + when(self.o_bias, hidden);
        let mlp = 3 * hidden * inter + when(self.mlp_bias, 2 * inter + hidden);
        let norms = 2 * hidden + when(self.qk_norm, 2 * d);
        let embeddings = hidden * vocab * if self.tie_word_embeddings { 1 } else { 2 };
        let all = embeddings + hidden + of(self.layers) * (attention + mlp + norms);
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts that the models' repositories publish (the totals of their safetensors files).
    #[test]
    fn parameters_are_the_published_counts() {
        let published: &[(&str, u64)] = &[
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("smollm2-135m", 134_515_008),
            ("smollm2-360m", 361_821_120),
            ("smollm2-1.7b", 1_711_376_384),
            ("mistral-7b-v0.1", 7_241_732_096),
            ("mistral-7b-v0.3", 7_248_023_552),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen2.5-3b", 3_085_938_688),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen2.5-14b", 14_770_033_664),
            ("qwen2.5-32b", 32_763_876_352),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-1.7b", 1_720_574_976),
            ("qwen3-4b", 4_022_468_096),
            ("qwen3-8b", 8_190_735_360),
            ("qwen3-14b", 14_768_307_200),
            ("qwen3-32b", 32_762_123_264),
        ];
        for (name, count) in published {
            assert_eq!(Model::preset(name).unwrap().parameters(), *count, "{name}");
        }
        let named: Vec<&str> = published.iter().map(|(name, _)| *name).collect();
        assert!(Model::presets().all(|p| named.contains(&p)), "a preset without a published count");
    }

    #[test]
    fn every_bias_and_norm_counts() {
        let plain = Model::preset("llama-3.2-1b").unwrap();
        let more = |change: fn(&mut Model)| {
            let mut m = plain.clone();
            change(&mut m);
            m.parameters() - plain.parameters()
        };
        assert_eq!(more(|m| m.qkv_bias = true), 16 * (32 + 2 * 8) * 64);
        assert_eq!(more(|m| m.o_bias = true), 16 * 2048);
        assert_eq!(more(|m| m.mlp_bias = true), 16 * (2 * 8192 + 2048));
        assert_eq!(more(|m| m.qk_norm = true), 16 * 2 * 64);
        assert_eq!(more(|m| m.tie_word_embeddings = false), 2048 * 128_256);
    }

    #[test]
    fn impossible_sizes_do_not_overflow_the_count() {
        let mut m = Model::preset("qwen3-0.6b").unwrap();
        let most = 1 << 24;
        (m.hidden, m.intermediate, m.layers, m.heads, m.kv_heads, m.head_dim, m.vocab) =
            (most, most, most, most, most, most, most);
        assert_eq!(m.parameters(), u64::MAX);
    }

    #[test]
    fn unknown_names_list_the_presets() {
        let e = Model::load("llama-9").unwrap_err().to_string();
        assert!(e.contains("llama-3.2-1b") && e.contains("llama-9"), "{e}");
        assert!(matches!(Model::load("/nowhere/at/all"), Err(ModelError::Io { .. })));
        assert_eq!(Model::load("LLAMA-3.2-1B").unwrap().0.name, "llama-3.2-1b");
    }

    #[test]
    fn a_configuration_that_is_written_is_read_as_the_same_model() {
        let bias = Model { qkv_bias: true, o_bias: true, mlp_bias: true, ..Model::preset("llama-3.2-1b").unwrap() };
        let linear = Rope { theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } };
        let linear = Model { rope: linear, ..Model::preset("smollm2-135m").unwrap() };
        let window = Model { sliding_window: Some(4096), ..Model::preset("qwen2.5-7b").unwrap() };
        let models = Model::presets().map(|name| Model::preset(name).unwrap()).chain([bias, linear, window]);
        for model in models {
            for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
                let text = model.config(dtype).unwrap().to_string();
                let (read, notes) = config::read(&model.name, Path::new("config.json"), &text).unwrap();
                assert_eq!((&read, notes), (&Model { dtype: Some(dtype), ..model.clone() }, Vec::new()), "{text}");
            }
        }
    }

    #[test]
    fn models_survive_a_round_trip() {
        for name in Model::presets() {
            let model = Model::preset(name).unwrap();
            let text = serde_json::to_string(&model).unwrap();
            assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model, "{text}");
        }
    }
}
