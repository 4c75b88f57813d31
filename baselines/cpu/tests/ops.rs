//! The products of the libraries for processors, through their program.

use jitune_peer::{Answer, Ask, Device, RefusalKind};
use jitune_peer_check::{Case, Program};

fn start() -> Program {
    Program::start(env!("CARGO_BIN_EXE_jitune-peer-cpu")).unwrap()
}

#[test]
fn products_are_what_they_should_be() {
    for threads in [1, 2] {
        let mut program = start();
        let has_openblas = match program.hello(Device::Cpu(threads)).unwrap() {
            Answer::Hello(about) => about.libraries.contains_key("openblas"),
            other => panic!("{other:?}"),
        };
        for epilogue in ["none", "bias", "residual", "swiglu", "bias_residual"] {
            for (m, n, k) in [(1, 10, 7), (5, 6, 33), (17, 34, 3)] {
                let case = Case::new(&format!("matmul m={m} n={n} k={k} epilogue={epilogue}")).unwrap();
                let ways = match program.check(&case) {
                    Ok(ways) => ways,
                    Err(why) if !has_openblas && why.contains("openblas") => continue,
                    Err(why) => panic!("{why}"),
                };
                let covers = if matches!(epilogue, "swiglu" | "bias_residual") { "product" } else { "all" };
                assert!(ways.iter().all(|w| w.covers == covers), "{ways:?}");
            }
        }
    }
}

#[test]
fn what_is_not_here_is_refused() {
    let mut program = start();
    let unsupported = |answer| matches!(answer, Answer::Refused(r) if r.kind == RefusalKind::Unsupported);
    assert!(unsupported(program.hello(Device::Cuda(0)).unwrap()));
    assert!(matches!(program.hello(Device::Cpu(1)).unwrap(), Answer::Hello(_)));
    for text in ["gelu rows=1 cols=1", "matmul m=1 n=1 k=1 dtype=bf16"] {
        let task = Case::new(text).unwrap().task.clone();
        assert!(unsupported(program.ask(&Ask::Prepare(Box::new(task))).unwrap()), "{text}");
    }
}
