//! Loading and launching: right results on every rung, from any thread, and one clear error otherwise.

use crate::make::{self, COMPILED, WINNERS, error, fake, fill, problem};
use jitune::bundle::Bundle;
use jitune::device::Device;
use jitune::problem::{Inputs, Problem};
use jitune::runtime::{Match, Queue, Runtime, RuntimeError};
use jitune::winner::Winner;
use std::sync::LazyLock;

pub static BUNDLE: LazyLock<Bundle<'static>> = LazyLock::new(|| Bundle::seal(WINNERS.clone()).unwrap());

pub fn runtime() -> Runtime {
    Runtime::cpu(&BUNDLE, Some(make::THREADS)).unwrap()
}

/// Runs a problem twice on one workspace and says how far the second result is off, in shares of the limit.
fn run(runtime: &Runtime, p: &Problem, seed: u64) -> f64 {
    let kernel = runtime.lookup(p).unwrap();
    let inputs = Inputs::new(p, seed);
    let mut memory = runtime.allocate_all(p).unwrap();
    let workspace = runtime.workspace(&kernel).unwrap();
    let addresses: Vec<u64> = memory.iter().map(|m| m.address()).collect();
    let bound = kernel.bind(&addresses, workspace.address()).unwrap();
    for _ in 0..2 {
        fill(p, &inputs, &mut memory);
        bound.launch(Queue::Host).unwrap();
    }
    error(p, &inputs, &memory)
}

#[test]
fn tuned_problems_run_right() {
    let runtime = runtime();
    assert_eq!(runtime.problems().len(), COMPILED.len());
    for (template, text) in COMPILED {
        let p = problem(text);
        let kernel = runtime.lookup(&p).unwrap();
        assert_eq!((kernel.rung(), kernel.template()), (Match::Exact, template));
        let off = run(&runtime, &p, 3);
        assert!(off <= 1.0, "{text}: {off}");
    }
}

#[test]
fn untuned_sizes_run_right_on_the_nearest_bucket_that_may() {
    let runtime = runtime();
    for (asked, tuned, template) in [
        ("rmsnorm rows=7 cols=96 dtype=f32", "rmsnorm rows=4 cols=96 dtype=f32", "cpu_rmsnorm"),
        ("rmsnorm rows=1000 cols=96 dtype=f32", "rmsnorm rows=4 cols=96 dtype=f32", "cpu_rmsnorm"),
        ("matmul m=7 n=48 k=64 dtype=f32", "matmul m=4 n=48 k=64 dtype=f32", "cpu_gemv"),
        // Past what the small template takes there is only the large one.
        ("matmul m=100 n=48 k=64 dtype=f32", "matmul m=64 n=48 k=64 dtype=f32", "cpu_gemm"),
        ("matmul m=333 n=48 k=64 dtype=f32", "matmul m=64 n=48 k=64 dtype=f32", "cpu_gemm"),
        (
            "matmul m=9 n=48 k=64 epilogue=swiglu dtype=f32",
            "matmul m=16 n=48 k=64 epilogue=swiglu dtype=f32",
            "cpu_gemm",
        ),
    ] {
        let p = problem(asked);
        for _ in 0..2 {
            let kernel = runtime.lookup(&p).unwrap();
            assert_eq!(kernel.rung(), Match::Bucket { tuned: problem(tuned) }, "{asked}");
            assert_eq!(kernel.template(), template);
        }
        let off = run(&runtime, &p, 4);
        assert!(off <= 1.0, "{asked}: {off}");
    }
}

#[test]
fn what_nothing_serves_says_what_was_near_and_why_not() {
    let runtime = runtime();
    for (asked, parts) in [
        ("matmul m=4 n=49 k=64 dtype=f32", vec!["n=48", "matmul m=4 n=48 k=64 dtype=f32"]),
        ("matmul m=4 n=48 k=64 dtype=bf16", vec!["it is for f32"]),
        ("matmul m=1 n=48 k=64 epilogue=swiglu dtype=f32", vec!["m >= 6"]),
        ("matmul m=4 n=48 k=64 epilogue=bias dtype=f32", vec!["epilogue=none"]),
        ("gelu rows=4 cols=96 dtype=f32", vec!["no kernel of that op"]),
    ] {
        let e = match runtime.lookup(&problem(asked)) {
            Err(e) => e,
            Ok(k) => panic!("{asked}: {:?}", k.rung()),
        };
        assert!(matches!(e, RuntimeError::Untuned { .. }), "{e}");
        for part in parts {
            assert!(e.to_string().contains(part), "{asked}: {e}");
        }
    }
}

#[test]
fn one_runtime_serves_many_threads() {
    let runtime = runtime();
    let p = problem("matmul m=5 n=48 k=64 dtype=f32");
    std::thread::scope(|s| {
        for seed in 0..4 {
            let (runtime, p) = (&runtime, &p);
            s.spawn(move || (0..20).for_each(|i| assert!(run(runtime, p, seed * 100 + i) <= 1.0)));
        }
    });
}

#[test]
fn other_numbers_of_threads_run_the_same_code() {
    for threads in [1, 3, 8] {
        let runtime = Runtime::cpu(&BUNDLE, Some(threads)).unwrap();
        assert!(runtime.skipped().is_empty(), "{:?}", runtime.skipped());
        for (_, text) in COMPILED {
            assert!(run(&runtime, &problem(text), 5) <= 1.0, "{text} on {threads} threads");
        }
    }
}

#[test]
fn a_device_that_nothing_fits_says_what_the_bundle_has() {
    let gpu = Device::ahead_of_time("sm_90a").unwrap();
    let other = |change: &dyn Fn(&mut Winner)| {
        let (mut w, code) = WINNERS[0].clone();
        change(&mut w);
        Bundle::seal([(w, code)]).unwrap()
    };
    let cases = [
        (Bundle::seal([fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"x")]).unwrap(), "cuda sm_90a"),
        (other(&|w| w.device.arch = "aarch64-neon".into()), "aarch64-neon"),
        (other(&|w| drop(w.device.silicon.insert("model".into(), "9999".into()))), "model 9999"),
        (Bundle::seal(Vec::<(Winner, Vec<u8>)>::new()).unwrap(), "none at all"),
    ];
    for (bundle, part) in cases {
        match Runtime::cpu(&bundle, Some(2)) {
            Err(e @ RuntimeError::NoArch { .. }) => assert!(e.to_string().contains(part), "{e}"),
            Err(e) => panic!("{part}: {e}"),
            Ok(_) => panic!("{part}: loaded"),
        }
    }
}

#[test]
fn several_architectures_in_one_file_do_not_disturb_each_other() {
    let gpu = Device::ahead_of_time("sm_90a").unwrap();
    let mut parts = WINNERS.clone();
    parts.push(fake("rmsnorm", "rmsnorm rows=4 cols=96 dtype=bf16", &gpu, b"a cubin"));
    // The same problem for another processor: the code for this one is taken.
    let (mut w, _) = fake("cpu_rmsnorm", COMPILED[0].1, &make::device(), b"other code");
    w.device.silicon.insert("model".into(), "9999".into());
    parts.push((w, b"other code".to_vec()));
    let runtime = Runtime::cpu(&Bundle::seal(parts).unwrap(), Some(2)).unwrap();
    assert_eq!((runtime.problems().len(), runtime.skipped().len()), (COMPILED.len(), 2));
    assert!(run(&runtime, &problem(COMPILED[0].1), 6) <= 1.0);
}

#[test]
fn code_that_does_not_load_is_found_at_the_start() {
    let bundle = Bundle::seal([fake("cpu_rmsnorm", COMPILED[0].1, &make::device(), b"not an ELF file")]).unwrap();
    assert!(matches!(Runtime::cpu(&bundle, Some(1)), Err(RuntimeError::Load { .. })));
}

#[test]
fn wrong_addresses_and_queues_are_refused() {
    let runtime = runtime();
    let p = problem("matmul m=64 n=48 k=64 dtype=f32");
    let kernel = runtime.lookup(&p).unwrap();
    assert!(kernel.workspace_bytes() > 0 && !kernel.needs_zeroed_workspace());
    for (addresses, workspace, part) in
        [(vec![64; 2], 64, "3 tensors"), (vec![64, 0, 64], 64, "address of w is null"), (vec![64; 3], 0, "workspace")]
    {
        let e = kernel.bind(&addresses, workspace).err().unwrap().to_string();
        assert!(e.contains(part), "{e}");
    }
    let mut small = runtime.allocate(4).unwrap();
    assert!(small.upload(&[0; 5]).is_err() && small.download(&mut [0; 5]).is_err());
}
