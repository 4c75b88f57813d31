//! Every op of the Candle peer through its program, on the processor.

use jitune_peer::{Answer, Device, RefusalKind};
use jitune_peer_check::{Case, EVERY_OP, Program};

fn start() -> Program {
    Program::start(env!("CARGO_BIN_EXE_jitune-peer-candle")).unwrap()
}

fn on_cpu() -> Program {
    let mut program = start();
    assert!(matches!(program.hello(Device::Cpu(2)).unwrap(), Answer::Hello(about) if about.peer == "candle"));
    program
}

#[test]
fn every_op_gives_what_it_should() {
    let mut program = on_cpu();
    // Of sequences with lengths of their own, which one of its ways refuses, below.
    for text in EVERY_OP.iter().filter(|t| !t.contains("lens=mixed")) {
        let ways = program.check(&Case::new(text).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        let attends = text.starts_with("attention") || text.starts_with("decode");
        assert_eq!(ways.len(), if attends { 2 } else { 1 }, "{text}");
    }
}

#[test]
fn half_precision_too() {
    let mut program = on_cpu();
    for text in [
        "matmul m=3 n=10 k=7 epilogue=bias dtype=bf16",
        "qkv m=5 k=9 heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19 bias=0 qk_norm=1 dtype=bf16",
        "qkv m=5 k=9 heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19 bias=1 qk_norm=0 dtype=bf16",
        "rmsnorm rows=3 cols=9 residual=1 dtype=f16",
    ] {
        program.check(&Case::new(text).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn sequences_of_their_own_lengths_go_without_flash() {
    let mut program = on_cpu();
    let case = Case::new("decode batch=3 context=13 heads=4 kv_heads=2 head_dim=8 page=4 lens=mixed").unwrap();
    let why = program.check(&case).unwrap_err();
    assert!(why.contains("one length for all sequences"), "{why}");
}

#[test]
fn what_is_not_here_is_refused() {
    let mut program = on_cpu();
    let ask = |text: &str| jitune_peer::Ask::Prepare(Box::new(Case::new(text).unwrap().task.clone()));
    let answer = program.ask(&ask("matmul m=1 n=1 k=1 dtype=tf32")).unwrap();
    assert!(matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Unsupported));
    // Without a driver, and in a build without CUDA.
    let answer = start().hello(Device::Cuda(0)).unwrap();
    assert!(matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Missing && r.fix.is_some()));
}
