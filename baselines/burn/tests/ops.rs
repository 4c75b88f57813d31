//! Every op of the Burn peer through its program, on the processor.

use jitune_peer::{Answer, Device, RefusalKind};
use jitune_peer_check::{Case, EVERY_OP, Program};

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
    for text in EVERY_OP {
        let ways = program.check(&Case::new(text).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        let whole = !text.starts_with("qkv");
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
