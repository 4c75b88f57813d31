//! Whole models in Burn, through its engine's program, on the processor.

use jitune_peer::Device;
use jitune_peer_check::engines::{Golden, Talk};

const PROGRAM: &str = env!("CARGO_BIN_EXE_jitune-engine-burn");

fn start() -> Talk {
    Talk::start(PROGRAM, Device::Cpu(1)).unwrap()
}

fn golden(name: &str) -> Golden {
    Golden::new(name).unwrap()
}

#[test]
fn models_compute_what_transformers_computes() {
    let mut talk = start();
    talk.check(&golden("llama-tied-llama3")).unwrap();
    for name in ["llama-linear-biases", "llama-wide-heads", "llama-bf16", "mistral", "qwen2", "qwen3"] {
        talk.check(&golden(name).short()).unwrap();
    }
}

#[test]
fn both_backends_do() {
    let golden = golden("llama-untied-default").short();
    for backend in ["ndarray", "flex"] {
        let mut talk = Talk::start_with(PROGRAM, Device::Cpu(2), &[("backend", backend)]).unwrap();
        talk.check(&golden).unwrap_or_else(|e| panic!("{backend}: {e}"));
    }
    let why = Talk::start_with(PROGRAM, Device::Cpu(2), &[("backend", "tch")]).err().unwrap();
    assert!(why.contains("Unsupported") && why.contains("tch"), "{why}");
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
    let golden = golden("llama-untied-default");
    talk.check_refusals(&golden).unwrap();
    let why = talk.loaded(&golden, "bf16").unwrap_err();
    assert!(why.contains("Unsupported") && why.contains("bf16"), "{why}");
    // Without a driver, and in a build without CUDA.
    let why = Talk::start(PROGRAM, Device::Cuda(0)).err().unwrap();
    assert!(why.contains("Missing") && why.contains("fix: Some"), "{why}");
}
