//! Whole models in Candle, through its engine's program, on the processor.

use jitune_peer::Device;
use jitune_peer_check::engines::{Golden, Talk};

fn start() -> Talk {
    Talk::start(env!("CARGO_BIN_EXE_jitune-engine-candle"), Device::Cpu(2)).unwrap()
}

fn golden(name: &str) -> Golden {
    Golden::new(name).unwrap()
}

#[test]
fn models_compute_what_transformers_computes() {
    let mut talk = start();
    talk.check(&golden("llama-tied-llama3")).unwrap();
    for name in ["llama-untied-default", "llama-bf16", "mistral", "qwen2", "qwen3"] {
        talk.check(&golden(name).short()).unwrap();
    }
}

#[test]
fn half_precision_is_near() {
    let mut talk = start();
    let golden = golden("llama-untied-default").short();
    for (dtype, least, most) in [("bf16", 1e-3, 0.15), ("f16", 1e-4, 0.02)] {
        talk.loaded(&golden, dtype).unwrap();
        let worst = talk.distance(&golden).unwrap();
        assert!(least < worst && worst < most, "{dtype}: {worst:.1e} of the rms");
        println!("{dtype}: {worst:.1e}");
    }
}

#[test]
fn batches_are_their_rows() {
    start().check_batches(&golden("llama-untied-default")).unwrap();
}

#[test]
fn cancelled_ones_end_and_others_go_on() {
    start().check_cancel(&golden("llama-tied-llama3")).unwrap();
}

#[test]
fn what_is_not_here_is_refused() {
    let mut talk = start();
    talk.check_refusals(&golden("llama-untied-default")).unwrap();
    // What its models would pass over in silence.
    for (name, word) in [("llama-linear-biases", "attention_bias"), ("llama-wide-heads", "head_dim = 48")] {
        let why = talk.check(&golden(name)).unwrap_err();
        assert!(why.contains("Unsupported") && why.contains(word), "{why}");
    }
    // Without a driver, and in a build without CUDA.
    let why = Talk::start(env!("CARGO_BIN_EXE_jitune-engine-candle"), Device::Cuda(0)).err().unwrap();
    assert!(why.contains("Missing") && why.contains("fix: Some"), "{why}");
}
