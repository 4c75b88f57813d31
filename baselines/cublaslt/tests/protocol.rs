//! What the cuBLASLt peer answers where there is no GPU.

use jitune_peer::{Answer, Ask, Device, RefusalKind};
use jitune_peer_check::{Case, Program};

fn start() -> Program {
    Program::start(env!("CARGO_BIN_EXE_jitune-peer-cublaslt")).unwrap()
}

#[test]
fn a_processor_is_not_for_it() {
    let answer = start().hello(Device::Cpu(1)).unwrap();
    assert!(matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Unsupported));
}

#[test]
fn a_missing_gpu_is_said_and_survived() {
    let mut program = start();
    match program.hello(Device::Cuda(0)).unwrap() {
        Answer::Refused(refusal) => {
            assert!(refusal.kind != RefusalKind::Missing || refusal.fix.is_some());
            let case = Case::new("matmul m=1 n=1 k=1").unwrap();
            let answer = program.ask(&Ask::Prepare(Box::new(case.task.clone()))).unwrap();
            assert!(matches!(answer, Answer::Refused(_)));
        }
        // With a GPU and the library, it can be held to more.
        Answer::Hello(_) => {
            for text in ["matmul m=5 n=24 k=16 epilogue=none", "matmul m=8 n=32 k=64 dtype=bf16 epilogue=residual"] {
                let ways = program.check(&Case::new(text).unwrap()).unwrap_or_else(|e| panic!("{e}"));
                assert!(ways.iter().all(|w| w.captured), "{ways:?}");
            }
        }
        other => panic!("{other:?}"),
    }
}
