//! Every op of the Burn peer through its program, on the processor.

use jitune_peer::{Answer, Device, RefusalKind};
use jitune_peer_check::{Case, Program};

const CASES: &[&str] = &[
    "matmul m=3 n=10 k=7 epilogue=none",
    "matmul m=1 n=5 k=9 epilogue=bias",
    "matmul m=5 n=6 k=11 epilogue=residual",
    "matmul m=4 n=14 k=9 epilogue=swiglu",
    "matmul m=5 n=48 k=9 epilogue=rope_kv heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19",
    "matmul m=1 n=48 k=9 epilogue=bias_rope_kv heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19",
    "attention batch=2 q=5 kv=9 heads=4 kv_heads=2 head_dim=8 causal=1",
    "attention batch=1 q=7 kv=7 heads=6 kv_heads=2 head_dim=16 causal=1",
    "attention batch=2 q=3 kv=11 heads=4 kv_heads=4 head_dim=8 causal=0",
    "decode batch=2 context=13 heads=6 kv_heads=2 head_dim=8 page=4 lens=full",
    "decode batch=3 context=13 heads=4 kv_heads=2 head_dim=8 page=4 lens=mixed",
    "rmsnorm rows=5 cols=13 residual=0",
    "rmsnorm rows=5 cols=13 residual=1",
    "layernorm rows=3 cols=17 residual=0",
    "layernorm rows=3 cols=17 residual=1",
    "silu_mul rows=3 cols=7",
    "gelu rows=3 cols=7",
    "rope tokens=5 heads=3 head_dim=6 max_pos=11",
    "softmax rows=4 cols=13",
    "embedding tokens=5 vocab=17 hidden=6",
    "argmax rows=4 cols=37",
];

fn start() -> Program {
    Program::start(env!("CARGO_BIN_EXE_jitune-peer-burn")).unwrap()
}

fn on_cpu() -> Program {
    let mut program = start();
    assert!(matches!(program.hello(Device::Cpu(2)).unwrap(), Answer::Hello(about) if about.peer == "burn"));
    program
}

#[test]
fn every_op_gives_what_it_should() {
    let mut program = on_cpu();
    for text in CASES {
        let ways = program.check(&Case::new(text).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        let whole = !text.contains("rope_kv");
        assert!(ways.len() == 2 && ways.iter().all(|w| (w.covers == "all") == whole), "{text}: {ways:?}");
    }
}

#[test]
fn what_is_not_here_is_refused() {
    let mut program = on_cpu();
    let ask = |text: &str| jitune_peer::Ask::Prepare(Box::new(Case::new(text).unwrap().task.clone()));
    let answer = program.ask(&ask("matmul m=1 n=1 k=1 dtype=bf16")).unwrap();
    assert!(matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Unsupported));
    // Without a driver, and in a build without CUDA.
    let answer = start().hello(Device::Cuda(0)).unwrap();
    assert!(matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Missing && r.fix.is_some()));
}
