//! A folder as Hugging Face has it, for engines of libraries that leave reading it to their callers.

use crate::Refusal;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A model's settings and the files of its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    /// The settings.
    pub config: Config,
    /// Files of safetensors.
    pub files: Vec<PathBuf>,
    /// Tokens that end answers.
    pub ends: Vec<u32>,
}

/// Whose formulas a model's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LlamaForCausalLM.
    Llama,
    /// MistralForCausalLM.
    Mistral,
    /// Qwen2ForCausalLM: biases of queries, keys and values.
    Qwen2,
    /// Qwen3ForCausalLM: a norm of each head's queries and keys.
    Qwen3,
}

/// The settings of `config.json`, in the keys of transformers 4 or 5.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whose formulas.
    pub family: Family,
    /// Width between layers.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// The most positions.
    pub positions: usize,
    /// ε of the norms.
    pub eps: f64,
    /// θ of RoPE.
    pub theta: f64,
    /// How RoPE's frequencies are stretched.
    pub scaling: Scaling,
    /// Whether the embedding is the head too.
    pub tied: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output product has one.
    pub o_bias: bool,
    /// Whether the products of the MLP have.
    pub mlp_bias: bool,
    /// How many tokens back a token sees, where that is not all.
    pub window: Option<usize>,
}

/// How RoPE's frequencies are stretched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// Divided by a factor.
    Linear(f64),
    /// Low ones divided by the factor, high ones kept.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `old` / `low` are divided.
        low: f64,
        /// Wavelengths below `old` / `high` are kept.
        high: f64,
        /// Positions that the model was first trained with.
        old: f64,
    },
}

impl Folder {
    /// Reads `config.json`, and `generation_config.json` where it is there, and finds the weights. Refuses as `unsupported`, by name,
    /// what would compute another model.
    pub fn open(folder: &Path) -> Result<Folder, Refusal> {
        if folder.is_file() {
            return Err(Refusal::unsupported(format!(
                "{}: a folder of safetensors is read, no file",
                folder.display()
            )));
        }
        let keys = object(&folder.join("config.json"))?;
        let config = Config::read(&keys)?;
        let own = folder.join("generation_config.json");
        let generation = if own.exists() { object(&own)? } else { Map::new() };
        let ends = [&generation, &keys].map(|keys| keys.get("eos_token_id").filter(|v| !v.is_null()));
        let ends = match ends.into_iter().flatten().next() {
            None => Vec::new(),
            Some(value) => {
                let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
                let ids: Option<Vec<u32>> =
                    value.as_array().map_or_else(|| one(value).map(|id| vec![id]), |l| l.iter().map(one).collect());
                ids.ok_or_else(|| {
                    Refusal::failed(format!("eos_token_id = {value} is neither an id nor a list of ids"))
                })?
            }
        };
        Ok(Folder { config, files: files(folder)?, ends })
    }
}

/// The files that the index names, or the one that there is.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let (one, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    let files = if index.exists() {
        let index = object(&index)?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| Refusal::failed("model.safetensors.index.json has no weight_map"))?;
        let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| folder.join(name)).collect()
    } else {
        vec![one]
    };
    match files.iter().find(|file| !file.is_file()) {
        Some(gone) => Err(Refusal::failed(format!("{} is not there", gone.display()))),
        None => Ok(files),
    }
}

fn object(path: &Path) -> Result<Map<String, Value>, Refusal> {
    let text = std::fs::read(path).map_err(|e| Refusal::failed(format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| Refusal::failed(format!("{}: {e}", path.display())))
}

impl Config {
    fn read(keys: &Map<String, Value>) -> Result<Config, Refusal> {
        let family = family(keys)?;
        if let Some(quantized) = keys.get("quantization_config").filter(|v| !v.is_null()) {
            return Err(Refusal::unsupported(format!("quantization_config = {quantized}")));
        }
        if let Some(act) = keys.get("hidden_act").and_then(Value::as_str).filter(|a| !["silu", "swish"].contains(a)) {
            return Err(Refusal::unsupported(format!("hidden_act '{act}': silu alone")));
        }
        let size = |key: &str, otherwise: Option<usize>| match keys.get(key).filter(|v| !v.is_null()) {
            Some(value) => value
                .as_u64()
                .filter(|v| (1..=1 << 24).contains(v))
                .map(|v| v as usize)
                .ok_or_else(|| Refusal::failed(format!("{key} = {value} is no size"))),
            None => otherwise.ok_or_else(|| Refusal::failed(format!("config.json has no {key}"))),
        };
        let flag = |key: &str| keys.get(key).and_then(Value::as_bool).unwrap_or(false);
        let (hidden, heads) = (size("hidden_size", None)?, size("num_attention_heads", None)?);
        let kv_heads = match family {
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        let kv_heads = size("num_key_value_heads", Some(kv_heads))?;
        let head_dim = size("head_dim", Some(if family == Family::Qwen3 { 128 } else { (hidden / heads).max(1) }))?;
        if heads % kv_heads != 0 || head_dim % 2 != 0 {
            let why = format!(
                "{heads} heads of queries, {kv_heads} of keys, {head_dim} wide: heads fit no groups or no pairs"
            );
            return Err(Refusal::failed(why));
        }
        let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
        let slides = keys.contains_key("sliding_window") && (!qwen || flag("use_sliding_window"));
        // Where the key is missing, this is what transformers takes.
        let missing = family == Family::Mistral && !keys.contains_key("sliding_window");
        let window = match keys.get("sliding_window").filter(|v| slides && !v.is_null()) {
            Some(_) => Some(size("sliding_window", None)?),
            None => missing.then_some(4096),
        };
        let bias = matches!(family, Family::Llama | Family::Qwen3) && flag("attention_bias");
        let (theta, scaling) = rope(keys)?;
        Ok(Config {
            family,
            hidden,
            intermediate: size("intermediate_size", None)?,
            layers: size("num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_dim,
            vocab: size("vocab_size", None)?,
            positions: size("max_position_embeddings", Some(if family == Family::Llama { 2048 } else { 32_768 }))?,
            eps: keys.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            theta,
            scaling,
            tied: flag("tie_word_embeddings"),
            qkv_bias: bias || family == Family::Qwen2,
            o_bias: bias,
            mlp_bias: family == Family::Llama && flag("mlp_bias"),
            window: window.filter(|_| family != Family::Llama),
        })
    }

    /// Frequencies of RoPE, of each pair of a head.
    pub fn frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| self.theta.powf(-(i as f64) / half as f64));
        let stretched = |f: f64| match self.scaling {
            Scaling::None => f,
            Scaling::Linear(factor) => f / factor,
            Scaling::Llama3 { factor, low, high, old } => {
                let wave = 2.0 * std::f64::consts::PI / f;
                let kept = ((old / wave - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * f / factor + kept * f
            }
        };
        plain.map(stretched).collect()
    }
}

/// The architecture decides; where none is given, the type.
fn family(keys: &Map<String, Value>) -> Result<Family, Refusal> {
    let architecture = keys.get("architectures").and_then(|v| v.as_array()?.first()?.as_str());
    let typed = keys.get("model_type").and_then(Value::as_str);
    match (architecture, typed) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Family::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Family::Mistral),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Family::Qwen2),
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(Family::Qwen3),
        (Some(name), _) | (None, Some(name)) => Err(Refusal::unsupported(format!("no {name} here"))),
        (None, None) => Err(Refusal::failed("config.json names neither architectures nor model_type")),
    }
}

/// θ and the scaling, of `rope_parameters` or of `rope_theta` and `rope_scaling`.
fn rope(keys: &Map<String, Value>) -> Result<(f64, Scaling), Refusal> {
    let inner = ["rope_parameters", "rope_scaling"].iter().find_map(|key| keys.get(*key)?.as_object());
    let number = |key: &str| inner.and_then(|inner| inner.get(key)).and_then(Value::as_f64);
    let needed = |key: &str| number(key).ok_or_else(|| Refusal::failed(format!("RoPE's scaling has no {key}")));
    let theta = number("rope_theta").or_else(|| keys.get("rope_theta")?.as_f64()).unwrap_or(10_000.0);
    let partial = number("partial_rotary_factor").or_else(|| keys.get("partial_rotary_factor")?.as_f64());
    if let Some(factor) = partial.filter(|f| *f != 1.0) {
        return Err(Refusal::unsupported(format!("partial_rotary_factor = {factor}")));
    }
    let kind = inner.and_then(|inner| inner.get("rope_type").or_else(|| inner.get("type"))?.as_str());
    let scaling = match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear(needed("factor")?),
        Some("llama3") => Scaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            old: needed("original_max_position_embeddings")?,
        },
        Some(other) => return Err(Refusal::unsupported(format!("RoPE of the type '{other}'"))),
    };
    Ok((theta, scaling))
}

/// Bytes of this process in memory now, and the most so far, where the system says so.
pub fn process_memory() -> (Option<u64>, Option<u64>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |key: &str| {
        let kib =
            status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10)
    };
    (of("VmRSS:"), of("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(changes: Value) -> Result<Config, Refusal> {
        let mut keys = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 97});
        for (key, value) in changes.as_object().into_iter().flatten() {
            keys[key] = value.clone();
        }
        Config::read(keys.as_object().unwrap())
    }

    #[test]
    fn both_generations_of_keys_say_the_same() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let old = read(json!({"rope_theta": 5e5, "rope_scaling": llama3})).unwrap();
        let mut parameters = llama3;
        parameters["rope_theta"] = json!(5e5);
        let new = read(json!({"rope_parameters": parameters})).unwrap();
        assert_eq!(old, new);
        assert_eq!((old.theta, old.kv_heads, old.head_dim, old.window), (5e5, 4, 16, None));
        // The shortest wave is kept, the longest divided by 8.
        let frequencies = old.frequencies();
        assert_eq!(frequencies[0], 1.0);
        assert!((frequencies[7] - 5e5f64.powf(-7.0 / 8.0) / 8.0).abs() < 1e-12);
        assert_eq!(read(json!({"rope_scaling": {"type": "linear", "factor": 4}})).unwrap().frequencies()[0], 0.25);
    }

    #[test]
    fn what_computes_another_model_is_refused_by_name() {
        for (changes, word) in [
            (json!({"architectures": ["GemmaForCausalLM"]}), "GemmaForCausalLM"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        ] {
            let refused = read(changes).unwrap_err();
            assert!(refused.kind == crate::RefusalKind::Unsupported && refused.why.contains(word), "{refused:?}");
        }
        assert!(read(json!({"vocab_size": -1})).unwrap_err().why.contains("vocab_size"));
        assert!(read(json!({"num_key_value_heads": 3})).unwrap_err().why.contains("no groups"));
    }

    #[test]
    fn windows_are_those_that_are_used() {
        let window = |changes: Value| read(changes).unwrap().window;
        assert_eq!(window(json!({"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2})), Some(4096));
        let mistral =
            json!({"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "sliding_window": null});
        assert_eq!(window(mistral), None);
        let qwen = |used: bool| json!({"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 7, "use_sliding_window": used});
        assert_eq!((window(qwen(false)), window(qwen(true))), (None, Some(7)));
    }

    #[test]
    fn a_folder_names_its_files_and_ends() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| std::fs::write(place.path().join(name), value.to_string()).unwrap();
        assert!(Folder::open(place.path()).unwrap_err().why.contains("config.json"));
        let config = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 97, "eos_token_id": 2});
        write("config.json", config);
        assert!(Folder::open(place.path()).unwrap_err().why.contains("model.safetensors is not there"));
        write("model.safetensors", json!(0));
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!((folder.ends, folder.files), (vec![2], vec![place.path().join("model.safetensors")]));
        write("generation_config.json", json!({"eos_token_id": [3, 4]}));
        write("model.safetensors.index.json", json!({"weight_map": {"a": "2", "b": "1", "c": "2"}}));
        write("1", json!(0));
        assert!(Folder::open(place.path()).unwrap_err().why.contains("2 is not there"));
        write("2", json!(0));
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!((folder.ends, folder.files), (vec![3, 4], ["1", "2"].map(|name| place.path().join(name)).to_vec()));
    }
}
