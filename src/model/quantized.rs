//! `quantization_config`: in which scaled format a folder has its linear layers. Read exactly, or refused by the name of what stands in
//! the way.

use super::config::shortened;
use crate::problem::{Granularity, SCALE_BLOCK, ScaledFormat, Storage, XFormat, Zero};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a folder stores the weights of its linear layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    /// Whose layout it is.
    pub layout: QuantLayout,
    /// The name of the scaled format, such as `int4-g128`; the files say of which type its scales are.
    pub format: String,
    /// The name of the format that tokens are rounded to before these layers, such as `int8-row`; none where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<String>,
    /// Modules that are plain, by their names or the last parts of these.
    pub plain: Vec<String>,
}

/// A layout of quantised tensors in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantLayout {
    /// GPTQ, zero points less one.
    Gptq,
    /// GPTQ, zero points as they are.
    GptqV2,
    /// AWQ, `gemm`.
    Awq,
    /// compressed-tensors.
    CompressedTensors,
}

impl Quantization {
    /// The format.
    pub fn scaled(&self) -> Option<ScaledFormat> {
        ScaledFormat::parse(&self.format)
    }

    /// The format of tokens.
    pub fn scaled_tokens(&self) -> Option<XFormat> {
        XFormat::parse(self.tokens.as_deref()?)
    }

    /// What a weight's name in files begins with where it is stored so: the module of `model.layers.0.mlp.up_proj.weight`.
    pub fn module<'n>(&self, name: &'n str) -> Option<&'n str> {
        let module = name.strip_suffix(".weight").filter(|m| m.ends_with("_proj"))?;
        let is = |plain: &String| module.strip_suffix(plain.as_str()).is_some_and(|m| m.is_empty() || m.ends_with('.'));
        (!self.plain.iter().any(is)).then_some(module)
    }

    /// What a `quantization_config` says, and what is to be said of it.
    pub(super) fn read(config: &Value) -> Result<(Quantization, Vec<String>), String> {
        let mut left = Left::default();
        let read = match config["quant_method"].as_str() {
            Some("gptq") => gptq(config, &mut left),
            Some("awq") => awq(config, &mut left),
            Some("compressed-tensors") => {
                compressed(config, &mut left).map_err(|why| format!("{why} (compressed-tensors)"))
            }
            _ => {
                let why = "is not supported; gptq, awq and compressed-tensors are";
                return Err(format!("quantization_config: quant_method = {} {why}", config["quant_method"]));
            }
        };
        Ok((read?, left.notes()))
    }
}

/// What was not read of a configuration.
#[derive(Default)]
struct Left {
    unknown: Vec<String>,
    notes: Vec<String>,
}

impl Left {
    /// Looks at the keys of a part that are not `read`: one that changes the computation is refused unless its value is neutral, one
    /// that is known to change nothing is passed over, and the others are to be said.
    fn look(&mut self, within: &str, part: &Value, read: &[&str]) -> Result<(), String> {
        for (key, value) in part.as_object().into_iter().flatten() {
            if read.contains(&key.as_str()) || value.is_null() || HARMLESS.contains(&key.as_str()) {
                continue;
            }
            if !OFF.contains(&key.as_str()) {
                self.unknown.push(format!("{within}{key}"));
            } else if !off(value) {
                return Err(format!("quantization_config: {within}{key} = {} is not supported", shortened(value)));
            }
        }
        Ok(())
    }

    fn notes(mut self) -> Vec<String> {
        if !self.unknown.is_empty() {
            let list = self.unknown.join(", ");
            self.notes.push(format!("quantization_config: not known, and passed over: {list}"));
        }
        self.notes
    }
}

/// Whether a value asks for nothing.
fn off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(off),
        Value::Object(map) => map.values().all(off),
    }
}

/// Keys that change the computation, or what stands in the files, unless they ask for nothing.
const OFF: &[&str] = &[
    "activation_scheme",
    "act_bits",
    "actorder",
    "adapter",
    "block_structure",
    "desc_act",
    "dynamic",
    "extra_config",
    "group_size",
    "hadamard",
    "is_marlin_format",
    "kv_cache_scheme",
    "lm_head",
    "modules_in_block_to_quantize",
    "modules_to_not_convert",
    "output_activations",
    "quant_lm_head",
    "rotate",
    "rotation",
    "sparsity_config",
    "transform_config",
    "weight_clip",
];

/// Keys that say how the codes were found, with which tools, or which kernels to take: the same tensors mean the same with any value.
const HARMLESS: &[&str] = &[
    "amp",
    "autoround_version",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "cache_examples_on_gpu",
    "calibration",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "do_fuse",
    "enable_minmax_tuning",
    "enable_quanted_input",
    "exllama_config",
    "fuse_max_seq_len",
    "global_compression_ratio",
    "gradient_accumulate_steps",
    "iters",
    "low_gpu_mem_usage",
    "lr",
    "max_input_length",
    "meta",
    "minmax_lr",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_to_fuse",
    "nsamples",
    "observer",
    "observer_kwargs",
    "pad_token_id",
    "quant_method",
    "quantization_status",
    "quantizer",
    "scale_dtype",
    "scale_method",
    "seqlen",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
    "version",
    "zp_dtype",
];

/// The linear layers of a layer, as files name them.
const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Refuses a key of a part of the configuration unless it is one of these values.
fn only(of: &Value, key: &str, values: &[Value]) -> Result<(), String> {
    if values.contains(&of[key]) {
        return Ok(());
    }
    let list: Vec<String> = values.iter().filter(|v| !v.is_null()).map(Value::to_string).collect();
    let list = if list.is_empty() { "none".into() } else { list.join(" or ") };
    Err(format!("quantization_config: {key} = {} is not supported; {list} is", of[key]))
}

/// The name of a format that there is.
fn format(codes: Storage, per: Granularity, zero: Zero) -> Result<String, String> {
    let format = ScaledFormat { codes, per, zero };
    match ScaledFormat::all().any(|f| f == format) {
        true => Ok(format.to_string()),
        false => Err(format!("quantization_config: no format here is {format}; there are {}", ScaledFormat::names())),
    }
}

/// Columns of a group: −1 is a row's.
fn group(of: &Value) -> Result<Granularity, String> {
    match of["group_size"].as_i64() {
        Some(-1) => Ok(Granularity::Row),
        Some(g @ 1..=0xffff) => Ok(Granularity::Group(g as u16)),
        _ => Err(format!("quantization_config: group_size = {} is no number of columns", of["group_size"])),
    }
}

/// A list of names; patterns are refused.
fn names(of: &Value, key: &str) -> Result<Vec<String>, String> {
    let bad = || format!("quantization_config: {key} = {} is no list of names of modules", of[key]);
    match &of[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => {
            let name = |v: &Value| v.as_str().filter(|s| !s.starts_with("re:")).map(String::from);
            list.iter().map(|v| name(v).ok_or_else(bad)).collect()
        }
        _ => Err(bad()),
    }
}

/// Nothing, or a truth value.
fn flags() -> [Value; 3] {
    [Value::Null, true.into(), false.into()]
}

/// The linear layers that a list of lists of `modules_in_block_to_quantize` leaves plain.
fn left_plain(config: &Value) -> Result<Vec<String>, String> {
    let key = "modules_in_block_to_quantize";
    let mut named = Vec::new();
    for part in config[key].as_array().into_iter().flatten() {
        let list = part.as_array().map_or(std::slice::from_ref(part), Vec::as_slice);
        for name in list {
            let last =
                name.as_str().and_then(|name| PROJECTIONS.into_iter().find(|p| name.rsplit('.').next() == Some(*p)));
            named.push(
                last.ok_or_else(|| format!("quantization_config: {key} names {name}, which is no linear layer"))?,
            );
        }
    }
    match (&config[key], named.is_empty()) {
        (value, true) if off(value) => Ok(Vec::new()),
        (value, true) => Err(format!("quantization_config: {key} = {value} is no list of names of modules")),
        _ => Ok(PROJECTIONS.into_iter().filter(|p| !named.contains(p)).map(String::from).collect()),
    }
}

fn gptq(config: &Value, left: &mut Left) -> Result<Quantization, String> {
    only(config, "bits", &[4.into()])?;
    only(config, "desc_act", &[Value::Null, false.into()])?;
    only(config, "lm_head", &[Value::Null, false.into()])?;
    only(config, "sym", &flags())?;
    only(config, "format", &[Value::Null, config["checkpoint_format"].clone(), "gptq".into()])?;
    only(config, "pack_dtype", &[Value::Null, "int32".into()])?;
    only(config, "dynamic", &[Value::Null, Value::Object(Default::default())])?;
    only(config, "checkpoint_format", &[Value::Null, "gptq".into(), "gptq_v2".into()])?;
    let zero = if config["sym"] == Value::Bool(true) { Zero::None } else { Zero::Zero };
    let layout = if config["checkpoint_format"] == "gptq_v2" { QuantLayout::GptqV2 } else { QuantLayout::Gptq };
    let plain = left_plain(config)?;
    let read =
        ["bits", "sym", "group_size", "checkpoint_format", "format", "pack_dtype", "modules_in_block_to_quantize"];
    left.look("", config, &read)?;
    Ok(Quantization { layout, format: format(Storage::Int4, group(config)?, zero)?, tokens: None, plain })
}

fn awq(config: &Value, left: &mut Left) -> Result<Quantization, String> {
    only(config, "bits", &[4.into()])?;
    only(config, "version", &[Value::Null, "gemm".into(), "GEMM".into()])?;
    only(config, "zero_point", &flags())?;
    let zero = if config["zero_point"] == Value::Bool(false) { Zero::None } else { Zero::Zero };
    let plain = names(config, "modules_to_not_convert")?;
    left.look("", config, &["bits", "group_size", "zero_point", "modules_to_not_convert"])?;
    Ok(Quantization {
        layout: QuantLayout::Awq,
        format: format(Storage::Int4, group(config)?, zero)?,
        tokens: None,
        plain,
    })
}

/// Whether a cache can be stored as a folder says that it is to be: in E4M3, with scales that are known before.
fn cache_scheme(scheme: &Value, left: &mut Left) -> Result<(), String> {
    if scheme.is_null() {
        return Ok(());
    }
    let read = [
        ("type", vec!["float".into()]),
        ("num_bits", vec![8.into()]),
        ("strategy", vec!["tensor".into(), "attn_head".into()]),
        ("dynamic", vec![false.into(), Value::Null]),
        ("symmetric", vec![true.into(), Value::Null]),
    ];
    for (key, supported) in &read {
        only(scheme, key, supported).map_err(|e| e.replacen(key, &format!("kv_cache_scheme.{key}"), 1))?;
    }
    left.look("kv_cache_scheme.", scheme, &read.map(|(key, _)| key))?;
    let text =
        "quantization_config: kv_cache_scheme is a request: the cache stays in --dtype unless --kv-dtype e4m3 says so";
    left.notes.push(text.into());
    Ok(())
}

/// The format that tokens are rounded to: codes of the weights' kind, with a scale a token that follows from the token.
fn tokens(said: &Value, codes: Storage, per: Granularity, left: &mut Left) -> Result<Option<String>, String> {
    if said.is_null() {
        return Ok(None);
    }
    if !said.is_object() {
        return Err(format!(
            "quantization_config: input_activations = {said} is not supported; none or what llm-compressor writes is"
        ));
    }
    let kind = if codes == Storage::E4m3 { "float" } else { "int" };
    let read = [
        ("num_bits", vec![8.into()]),
        ("type", vec![kind.into()]),
        ("strategy", vec!["token".into()]),
        ("dynamic", vec![true.into()]),
        ("symmetric", vec![true.into(), Value::Null]),
        ("actorder", vec![Value::Null, false.into()]),
        ("group_size", vec![Value::Null]),
        ("block_structure", vec![Value::Null]),
    ];
    for (key, supported) in &read {
        only(said, key, supported).map_err(|e| e.replacen(key, &format!("input_activations.{key}"), 1))?;
    }
    left.look("input_activations.", said, &read.map(|(key, _)| key))?;
    if !matches!(per, Granularity::Row | Granularity::Tensor) || codes == Storage::Int4 {
        return Err(format!(
            "quantization_config: input_activations beside weights in {codes}-{per} are not supported"
        ));
    }
    Ok(Some(XFormat { codes, per: Granularity::Row }.to_string()))
}

fn compressed(config: &Value, left: &mut Left) -> Result<Quantization, String> {
    let groups = config["config_groups"].as_object().map(|g| g.iter().collect::<Vec<_>>()).unwrap_or_default();
    let [(group_name, one)] = groups[..] else {
        return Err(format!("quantization_config: config_groups are {}, and one is read", groups.len()));
    };
    cache_scheme(&config["kv_cache_scheme"], left)?;
    only(config, "sparsity_config", &[Value::Null, Value::Object(Default::default())])?;
    only(one, "targets", &[serde_json::json!(["Linear"])])?;
    only(one, "output_activations", &[Value::Null])?;
    let weights = &one["weights"];
    only(weights, "actorder", &[Value::Null, false.into(), "weight".into(), "static".into()])?;
    only(weights, "dynamic", &[Value::Null, false.into()])?;
    only(weights, "symmetric", &flags())?;
    let strategy = weights["strategy"].as_str();
    if strategy != Some("group") {
        only(weights, "group_size", &[Value::Null, (-1).into()])?;
    }
    if strategy != Some("block") {
        only(weights, "block_structure", &[Value::Null])?;
    }
    let per = match strategy {
        Some("tensor") => Granularity::Tensor,
        Some("channel") => Granularity::Row,
        Some("group") => group(weights)?,
        Some("block") => {
            only(weights, "block_structure", &[serde_json::json!([SCALE_BLOCK, SCALE_BLOCK])])?;
            Granularity::Block
        }
        _ => return Err(format!("quantization_config: strategy = {} is not supported", weights["strategy"])),
    };
    let symmetric = weights["symmetric"] != Value::Bool(false);
    let (codes, wanted) = match (weights["type"].as_str(), weights["num_bits"].as_i64()) {
        (Some("int"), Some(4)) => (Storage::Int4, "pack-quantized"),
        (Some("int"), Some(8)) => (Storage::Int8, "int-quantized"),
        (Some("float"), Some(8)) => (Storage::E4m3, "float-quantized"),
        _ => {
            let said = format!("type = {}, num_bits = {}", weights["type"], weights["num_bits"]);
            return Err(format!("quantization_config: {said} is not supported; int of 4 or 8 and float of 8 are"));
        }
    };
    only(
        config,
        "format",
        &[wanted.into(), if codes == Storage::Int8 { "naive-quantized".into() } else { wanted.into() }],
    )?;
    only(one, "format", &[Value::Null, config["format"].clone()])
        .map_err(|e| e.replacen("format", &format!("config_groups.{group_name}.format"), 1))?;
    let zero = if symmetric { Zero::None } else { Zero::Zero };
    let tokens = tokens(&one["input_activations"], codes, per, left)?;
    let plain = names(config, "ignore")?;
    if plain.iter().any(|name| name == "Linear") {
        return Err(
            "quantization_config: ignore = Linear names all linear layers, and leaves none to be quantised".into()
        );
    }
    let read = ["format", "config_groups", "ignore", "kv_cache_scheme", "sparsity_config"];
    left.look("", config, &read)?;
    let within = format!("config_groups.{group_name}.");
    left.look(&within, one, &["targets", "weights", "input_activations", "output_activations", "format"])?;
    let read = ["num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic", "actorder"];
    left.look(&format!("{within}weights."), weights, &read)?;
    if !plain.iter().any(|name| name == "lm_head") {
        return Err("quantization_config: ignore is without lm_head, and a quantised head is not read".into());
    }
    Ok(Quantization { layout: QuantLayout::CompressedTensors, format: format(codes, per, zero)?, tokens, plain })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<String, String> {
        Quantization::read(&config).map(|(q, _)| format!("{:?} {} {}", q.layout, q.format, q.plain.join(",")))
    }

    fn tokens_of(config: &Value) -> Option<String> {
        Quantization::read(config).unwrap().0.tokens
    }

    fn notes(config: &Value) -> String {
        Quantization::read(config).unwrap_or_else(|e| panic!("{config}: {e}")).1.join("; ")
    }

    fn compressed(weights: Value, format: &str) -> Value {
        json!({
            "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights, "input_activations": null } },
        })
    }

    #[test]
    fn what_a_folder_says_of_its_weights_is_read() {
        let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true });
        assert_eq!(read(gptq).unwrap(), "Gptq int4-g128 ");
        let v2 = json!({ "quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2" });
        assert_eq!(read(v2).unwrap(), "GptqV2 int4z-row ");
        let awq = json!({
            "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm",
            "modules_to_not_convert": ["down_proj"],
        });
        assert_eq!(read(awq).unwrap(), "Awq int4z-g64 down_proj");
        let int = |bits: i64, rest: Value| {
            let mut weights = json!({ "num_bits": bits, "type": "int", "symmetric": true });
            weights.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            weights
        };
        let group = int(4, json!({ "strategy": "group", "group_size": 32, "symmetric": false }));
        assert_eq!(read(compressed(group, "pack-quantized")).unwrap(), "CompressedTensors int4z-g32 lm_head");
        let channel = int(8, json!({ "strategy": "channel" }));
        assert_eq!(read(compressed(channel, "int-quantized")).unwrap(), "CompressedTensors int8-row lm_head");
        let float = json!({
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128],
        });
        assert_eq!(read(compressed(float, "float-quantized")).unwrap(), "CompressedTensors e4m3-b128 lm_head");
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let gptq = |change: Value| {
            let mut config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            config
        };
        let channel = json!({ "num_bits": 8, "type": "float", "strategy": "channel" });
        let mut rounded = compressed(channel.clone(), "float-quantized");
        rounded["config_groups"]["group_0"]["input_activations"] =
            json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true, "symmetric": true });
        assert_eq!(tokens_of(&rounded).as_deref(), Some("e4m3-row"));
        let mut integers = compressed(json!({ "num_bits": 8, "type": "int", "strategy": "channel" }), "int-quantized");
        integers["config_groups"]["group_0"]["input_activations"] =
            rounded["config_groups"]["group_0"]["input_activations"].clone();
        let mut grouped = compressed(
            json!({ "num_bits": 8, "type": "int", "strategy": "group", "group_size": 128 }),
            "int-quantized",
        );
        integers["config_groups"]["group_0"]["input_activations"]["type"] = "int".into();
        grouped["config_groups"]["group_0"]["input_activations"] =
            integers["config_groups"]["group_0"]["input_activations"].clone();
        assert_eq!(tokens_of(&integers).as_deref(), Some("int8-row"));
        integers["config_groups"]["group_0"]["input_activations"]["type"] = "float".into();
        let mut fixed = rounded.clone();
        fixed["config_groups"]["group_0"]["input_activations"]["dynamic"] = false.into();
        rounded["config_groups"]["group_0"]["input_activations"]["strategy"] = "tensor".into();
        let mut cache = compressed(channel.clone(), "float-quantized");
        cache["kv_cache_scheme"] = json!({ "type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": false });
        assert!(read(cache.clone()).is_ok());
        cache["kv_cache_scheme"]["num_bits"] = 4.into();
        let mut head = compressed(channel.clone(), "float-quantized");
        head["ignore"] = json!(["re:.*head"]);
        let mut all = compressed(channel.clone(), "float-quantized");
        all["ignore"] = json!([]);
        for (config, said) in [
            (json!({ "quant_method": "fp8" }), "quant_method = \"fp8\""),
            (gptq(json!({ "bits": 3 })), "bits = 3 is not supported; 4 is"),
            (gptq(json!({ "desc_act": true })), "desc_act = true"),
            (gptq(json!({ "lm_head": true })), "lm_head = true"),
            (gptq(json!({ "dynamic": { "-:.*": {} } })), "dynamic = "),
            (gptq(json!({ "group_size": 0 })), "group_size = 0"),
            (gptq(json!({ "group_size": 256 })), "int4z-g256"),
            (gptq(json!({ "checkpoint_format": "marlin" })), "checkpoint_format = \"marlin\""),
            (json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv" }), "version = \"gemv\""),
            (compressed(channel.clone(), "pack-quantized"), "format = \"pack-quantized\""),
            (compressed(json!({ "num_bits": 4, "type": "float", "strategy": "channel" }), "x"), "num_bits = 4"),
            (compressed(json!({ "num_bits": 4, "type": "int", "strategy": "token" }), "x"), "strategy = \"token\""),
            (rounded, "input_activations.strategy = \"tensor\""),
            (integers, "input_activations.type = \"float\" is not supported; \"int\" is"),
            (fixed, "input_activations.dynamic = false"),
            (grouped, "input_activations beside weights in int8-g128"),
            (cache, "kv_cache_scheme.num_bits = 4 is not supported; 8 is"),
            (head, "ignore = "),
            (all, "without lm_head"),
        ] {
            let e = read(config.clone()).expect_err(&config.to_string());
            assert!(e.starts_with("quantization_config") && e.contains(said), "'{said}': {e}");
        }
    }

    /// What was never looked at is planned as something else without a word.
    #[test]
    fn what_is_left_is_refused_named_or_known_to_change_nothing() {
        let int8 = json!({ "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true });
        let set = |at: &str, value: Value| {
            let mut config = compressed(int8.clone(), "int-quantized");
            *config.pointer_mut(at.rsplit_once('/').unwrap().0).unwrap() = {
                let (parent, key) = at.rsplit_once('/').unwrap();
                let mut map = config.pointer(parent).unwrap().clone();
                map[key] = value;
                map
            };
            config
        };
        let group = "/config_groups/group_0";
        let hadamard =
            json!({ "config_groups": { "R1": { "type": "hadamard", "apply": [{ "targets": ["Linear"] }] } } });
        let other = |key: &str, value: Value| {
            let mut config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true });
            config[key] = value;
            config
        };
        let awq = |key: &str, value: Value| {
            let mut config = json!({ "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true });
            config[key] = value;
            config
        };
        for (config, said) in [
            (set("/transform_config", hadamard), "transform_config = {"),
            (set("/rotation", json!("hadamard")), "rotation = \"hadamard\" is not supported"),
            (set(&format!("{group}/rotate"), json!(true)), "config_groups.group_0.rotate = true"),
            (
                set(&format!("{group}/format"), json!("pack-quantized")),
                "config_groups.group_0.format = \"pack-quantized\"",
            ),
            (set(&format!("{group}/weights/symmetric"), json!("no")), "symmetric = \"no\" is not supported"),
            (set(&format!("{group}/weights/group_size"), json!(64)), "group_size = 64"),
            (set(&format!("{group}/weights/block_structure"), json!([64, 64])), "block_structure = [64,64]"),
            (set("/ignore", json!(["lm_head", "Linear"])), "names all linear layers"),
            (other("sym", json!("yes")), "sym = \"yes\""),
            (other("is_marlin_format", json!(true)), "is_marlin_format = true"),
            (other("rotation", json!("random")), "rotation = \"random\""),
            (other("adapter", json!({ "rank": 8 })), "adapter = "),
            (other("modules_in_block_to_quantize", json!([["mlp.fc1"]])), "names \"mlp.fc1\""),
            (other("modules_in_block_to_quantize", json!("all")), "modules_in_block_to_quantize = \"all\""),
            (other("format", json!("marlin")), "format = \"marlin\""),
            (awq("zero_point", json!(1)), "zero_point = 1"),
            (awq("is_marlin_format", json!(true)), "is_marlin_format = true"),
            (awq("lm_head", json!(true)), "lm_head = true"),
            (awq("desc_act", json!(true)), "desc_act = true"),
        ] {
            let e = read(config.clone()).expect_err(&config.to_string());
            assert!(e.starts_with("quantization_config") && e.contains(said), "'{said}': {e}");
        }
        let mut known = compressed(int8.clone(), "int-quantized");
        for (key, value) in [
            ("transform_config", json!({ "config_groups": {} })),
            ("quantization_status", json!("compressed")),
            ("global_compression_ratio", json!(1.5)),
            ("version", json!("0.12.2")),
            ("sparsity_config", json!({})),
        ] {
            known[key] = value;
        }
        known["config_groups"]["group_0"]["format"] = "int-quantized".into();
        known["config_groups"]["group_0"]["weights"]["observer"] = "minmax".into();
        known["config_groups"]["group_0"]["weights"]["zp_dtype"] = "torch.int8".into();
        assert_eq!(notes(&known), "");
        known["wheels"] = 4.into();
        known["config_groups"]["group_0"]["weights"]["colour"] = "red".into();
        let said = notes(&known);
        assert!(said.contains("passed over: wheels, config_groups.group_0.weights.colour"), "{said}");
        let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "damp_percent": 0.1,
            "true_sequential": true, "dataset": "c4", "model_seqlen": 2048, "static_groups": false, "meta": { "mse": 0.0 },
            "checkpoint_format": "gptq", "pack_dtype": "int32", "is_marlin_format": false, "rotation": null,
            "use_exllama": true, "modules_in_block_to_quantize": null });
        assert_eq!(notes(&gptq), "");
        assert_eq!(notes(&other("spin", json!(1))), "quantization_config: not known, and passed over: spin");
        assert_eq!(notes(&awq("spin", json!(1))), "quantization_config: not known, and passed over: spin");
        let some = json!([["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]);
        let plain = read(other("modules_in_block_to_quantize", some)).unwrap();
        assert_eq!(plain, "Gptq int4-g128 gate_proj,up_proj,down_proj");
        let mut cache = compressed(int8, "int-quantized");
        cache["kv_cache_scheme"] = json!({ "type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": false });
        assert!(notes(&cache).contains("the cache stays in --dtype unless --kv-dtype e4m3"));
    }

    #[test]
    fn modules_are_told_from_plain_ones() {
        let q = Quantization {
            layout: QuantLayout::Awq,
            format: "int4-g128".into(),
            tokens: None,
            plain: vec!["down_proj".into(), "model.layers.1.mlp.up_proj".into(), "proj".into()],
        };
        let of = |name: &str| q.module(name).is_some();
        assert!(of("model.layers.0.mlp.up_proj.weight") && of("model.layers.11.mlp.up_proj.weight"));
        assert!(!of("model.layers.1.mlp.up_proj.weight") && !of("model.layers.0.mlp.down_proj.weight"));
        assert!(!of("model.layers.0.self_attn.q_proj.bias") && !of("lm_head.weight"));
        assert!(!of("model.layers.0.input_layernorm.weight"));
    }
}
