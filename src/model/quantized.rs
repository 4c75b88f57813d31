//! `quantization_config`: in which scaled format a folder has its linear layers. Read exactly, or refused by the name of what stands in
//! the way.

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

    /// What a `quantization_config` says.
    pub(super) fn read(config: &Value) -> Result<Quantization, String> {
        let at = |key: &str, why: &str| format!("quantization_config: {key} = {} {why}", config[key]);
        match config["quant_method"].as_str() {
            Some("gptq") => gptq(config),
            Some("awq") => awq(config),
            Some("compressed-tensors") => compressed(config).map_err(|why| format!("{why} (compressed-tensors)")),
            _ => Err(at("quant_method", "is not supported; gptq, awq and compressed-tensors are")),
        }
    }
}

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

fn gptq(config: &Value) -> Result<Quantization, String> {
    only(config, "bits", &[4.into()])?;
    only(config, "desc_act", &[Value::Null, false.into()])?;
    only(config, "lm_head", &[Value::Null, false.into()])?;
    only(config, "dynamic", &[Value::Null, Value::Object(Default::default())])?;
    only(config, "checkpoint_format", &[Value::Null, "gptq".into(), "gptq_v2".into()])?;
    let zero = if config["sym"] == Value::Bool(true) { Zero::None } else { Zero::Zero };
    let layout = if config["checkpoint_format"] == "gptq_v2" { QuantLayout::GptqV2 } else { QuantLayout::Gptq };
    Ok(Quantization { layout, format: format(Storage::Int4, group(config)?, zero)?, tokens: None, plain: Vec::new() })
}

fn awq(config: &Value) -> Result<Quantization, String> {
    only(config, "bits", &[4.into()])?;
    only(config, "version", &[Value::Null, "gemm".into(), "GEMM".into()])?;
    let zero = if config["zero_point"] == Value::Bool(false) { Zero::None } else { Zero::Zero };
    let plain = names(config, "modules_to_not_convert")?;
    Ok(Quantization {
        layout: QuantLayout::Awq,
        format: format(Storage::Int4, group(config)?, zero)?,
        tokens: None,
        plain,
    })
}

/// Whether a cache can be stored as a folder says that it is to be: in E4M3, with scales that are known before.
fn cache_scheme(scheme: &Value) -> Result<(), String> {
    if scheme.is_null() {
        return Ok(());
    }
    for (key, supported) in [
        ("type", vec!["float".into()]),
        ("num_bits", vec![8.into()]),
        ("strategy", vec!["tensor".into(), "attn_head".into()]),
        ("dynamic", vec![false.into(), Value::Null]),
        ("symmetric", vec![true.into(), Value::Null]),
    ] {
        only(scheme, key, &supported).map_err(|e| e.replacen(key, &format!("kv_cache_scheme.{key}"), 1))?;
    }
    Ok(())
}

/// The format that tokens are rounded to: codes of the weights' kind, with a scale a token that follows from the token.
fn tokens(said: &Value, codes: Storage, per: Granularity) -> Result<Option<String>, String> {
    if said.is_null() {
        return Ok(None);
    }
    if !said.is_object() {
        return Err(format!(
            "quantization_config: input_activations = {said} is not supported; none or what llm-compressor writes is"
        ));
    }
    let kind = if codes == Storage::E4m3 { "float" } else { "int" };
    for (key, supported) in [
        ("num_bits", vec![8.into()]),
        ("type", vec![kind.into()]),
        ("strategy", vec!["token".into()]),
        ("dynamic", vec![true.into()]),
        ("symmetric", vec![true.into(), Value::Null]),
        ("actorder", vec![Value::Null, false.into()]),
        ("group_size", vec![Value::Null]),
        ("block_structure", vec![Value::Null]),
    ] {
        only(said, key, &supported).map_err(|e| e.replacen(key, &format!("input_activations.{key}"), 1))?;
    }
    if !matches!(per, Granularity::Row | Granularity::Tensor) || codes == Storage::Int4 {
        return Err(format!(
            "quantization_config: input_activations beside weights in {codes}-{per} are not supported"
        ));
    }
    Ok(Some(XFormat { codes, per: Granularity::Row }.to_string()))
}

fn compressed(config: &Value) -> Result<Quantization, String> {
    let groups = config["config_groups"].as_object().map(|g| g.values().collect::<Vec<_>>()).unwrap_or_default();
    let [one] = groups[..] else {
        return Err(format!("quantization_config: config_groups are {}, and one is read", groups.len()));
    };
    cache_scheme(&config["kv_cache_scheme"])?;
    only(config, "sparsity_config", &[Value::Null, Value::Object(Default::default())])?;
    only(one, "targets", &[serde_json::json!(["Linear"])])?;
    only(one, "output_activations", &[Value::Null])?;
    let weights = &one["weights"];
    only(weights, "actorder", &[Value::Null, false.into(), "weight".into(), "static".into()])?;
    only(weights, "dynamic", &[Value::Null, false.into()])?;
    let per = match weights["strategy"].as_str() {
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
    let zero = if symmetric { Zero::None } else { Zero::Zero };
    let tokens = tokens(&one["input_activations"], codes, per)?;
    let plain = names(config, "ignore")?;
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
        Quantization::read(&config).map(|q| format!("{:?} {} {}", q.layout, q.format, q.plain.join(",")))
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
        assert_eq!(Quantization::read(&rounded).unwrap().tokens.as_deref(), Some("e4m3-row"));
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
        assert_eq!(Quantization::read(&integers).unwrap().tokens.as_deref(), Some("int8-row"));
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
