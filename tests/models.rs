//! Configurations as repositories publish them (`tests/configs/`): each is planned as what it is, or refused by name.

#![cfg(feature = "tuner")]

use jitune::model::{Buckets, Family, Model, ModelError, Plan, QuantLayout, Quantization, Rope, Scaling};
use jitune::problem::Dtype;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "configs", &format!("{name}.json")].iter().collect()
}

fn load(name: &str) -> Result<(Model, Vec<String>), ModelError> {
    Model::load(path(name).to_str().unwrap())
}

fn preset(name: &str) -> Model {
    Model::preset(name).unwrap()
}

/// What a file says, as the preset that it is or differs from, under the file's own name.
#[test]
fn planned_as_what_they_are() {
    let awq = Quantization { layout: QuantLayout::Awq, format: "int4z-g128".into(), tokens: None, plain: Vec::new() };
    let (layout, of) = (QuantLayout::CompressedTensors, || Some("e4m3-row".to_string()));
    let fp8 = Quantization { layout, format: of().unwrap_or_default(), tokens: of(), plain: vec!["lm_head".into()] };
    let cases = [
        ("llama-3.1-8b", preset("llama-3.1-8b")),
        ("llama-3.1-8b-transformers5", preset("llama-3.1-8b")),
        ("llama-3.2-1b", preset("llama-3.2-1b")),
        ("llama-fp8", Model { quantization: Some(fp8), ..preset("llama-3.1-8b") }),
        ("llama-attention-bias", Model { qkv_bias: true, o_bias: true, ..preset("llama-3.1-8b") }),
        ("llama-mlp-bias", Model { mlp_bias: true, ..preset("llama-3.1-8b") }),
        ("smollm2-135m", preset("smollm2-135m")),
        ("mistral-7b-v0.1", preset("mistral-7b-v0.1")),
        ("mistral-7b-v0.3", preset("mistral-7b-v0.3")),
        ("mistral-no-kv-heads", preset("mistral-7b-v0.1")),
        ("qwen2.5-7b", preset("qwen2.5-7b")),
        ("qwen2.5-7b-awq", Model { dtype: Some(Dtype::F16), quantization: Some(awq), ..preset("qwen2.5-7b") }),
        ("qwen2-window", Model { sliding_window: Some(4096), ..preset("qwen2.5-7b") }),
        ("qwen2-window-never-used", preset("qwen2.5-7b")),
        ("qwen3-4b", preset("qwen3-4b")),
        ("qwen3-0.6b-transformers5", preset("qwen3-0.6b")),
    ];
    for (name, expected) in cases {
        let (model, notes) = load(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(Model { name: expected.name.clone(), ..model }, expected, "{name}");
        assert_eq!(notes, [""; 0], "{name}");
    }
}

#[test]
fn refused_by_name() {
    let cases: &[(&str, &[&str])] = &[
        ("llama-eagle3", &["architectures", "'LlamaForCausalLMEagle3'"]),
        ("llama-eagle3-no-architecture", &["draft_vocab_size = 32000"]),
        ("llama-reward", &["architectures", "'LlamaForSequenceClassification'"]),
        ("llama-embedding", &["architectures", "'LlamaModel'"]),
        ("e5-mistral-7b", &["architectures", "'MistralModel'"]),
        ("gte-qwen2", &["is_causal = false"]),
        ("llama-fp8-static", &["quantization_config", "input_activations.strategy = \"tensor\"", "compressed-tensors"]),
        ("bitnet-b1.58-large", &["architectures", "'BitnetForCausalLM'"]),
        ("bitnet-as-llama", &["input_bits = 8, weight_bits = 1 are not supported"]),
        ("gemma-2-2b", &["architectures", "'Gemma2ForCausalLM'"]),
        ("granite", &["architectures", "'GraniteForCausalLM'"]),
        ("minicpm-as-llama", &["dim_model_base = 256", "scale_depth = 1.4", "scale_emb = 12"]),
        ("mixtral-8x7b-no-model-type", &["architectures", "'MixtralForCausalLM'"]),
        ("deepseek-v2-lite-no-model-type", &["architectures", "'DeepseekV2ForCausalLM'"]),
    ];
    for (name, said) in cases {
        let e = load(name).map(|(model, _)| model).expect_err(name);
        assert!(matches!(e, ModelError::Config { .. }), "{name}: {e}");
        let e = e.to_string();
        assert!(e.contains(&format!("{name}.json")), "{name}: {e}");
        for part in *said {
            assert!(e.contains(part), "{name}: '{part}' is not said: {e}");
        }
    }
}

/// No file is left out of the two tables above.
#[test]
fn every_file_has_its_case() {
    let source = include_str!("models.rs");
    let mut files = 0;
    for entry in std::fs::read_dir(path("x").parent().unwrap()).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(source.contains(&format!("(\"{name}\",")), "{name} is in neither table");
        files += 1;
    }
    assert!(files >= 25);
}

#[test]
fn windows_are_never_exceeded() {
    for name in ["mistral-7b-v0.1", "qwen2-window"] {
        let (mut model, _) = load(name).unwrap();
        // The window alone is asked here, whatever else the model has.
        model.rms_norm_eps = 1e-5;
        let plan = |context| Plan::new(&model, &Buckets { context, ..Buckets::default() }, Dtype::Bf16);
        assert!(plan(4096).is_ok(), "{name}");
        let e = plan(8192).unwrap_err().to_string();
        assert!(e.contains("sliding_window") && e.contains("4096") && e.contains("8192"), "{name}: {e}");
    }
}

#[test]
fn both_generations_of_keys_rotate_alike() {
    let old = load("llama-3.1-8b").unwrap().0.rope;
    let new = load("llama-3.1-8b-transformers5").unwrap().0.rope;
    assert_eq!(old, new);
    let f = old.inverse_frequencies(128);
    assert_eq!(f.len(), 64);
    assert_eq!((f[0], f[63]), (1.0, 5e5f64.powf(-126.0 / 128.0) / 8.0));
    let plain = Rope { theta: 5e5, scaling: Scaling::Default }.inverse_frequencies(128);
    let stretched = f.iter().zip(&plain).filter(|(a, b)| a < b).count();
    assert!((20..44).contains(&stretched), "{stretched}");
}

#[test]
fn families_are_those_of_the_classes() {
    for (name, family) in [
        ("llama-3.1-8b", Family::Llama),
        ("mistral-7b-v0.3", Family::Mistral),
        ("qwen2.5-7b", Family::Qwen2),
        ("qwen3-4b", Family::Qwen3),
    ] {
        assert_eq!(load(name).unwrap().0.family, family);
    }
}
