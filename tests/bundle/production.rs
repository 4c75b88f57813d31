//! Loading and launching: right results on every rung, from any thread, and one clear error otherwise.

use crate::make::{self, COMPILED, WINNERS, error, fake, fill, problem};
use jitune::backend::BackendError;
use jitune::backend::cuda::StreamRef;
use jitune::bundle::Bundle;
use jitune::device::{Device, Target};
use jitune::problem::{Inputs, Problem};
use jitune::recipe::{ArgSpec, ExprText};
use jitune::runtime::{Match, Memory, Queue, Runtime, RuntimeError, View};
use jitune::winner::Winner;
use std::ops::Range;
use std::sync::LazyLock;

pub static BUNDLE: LazyLock<Bundle<'static>> = LazyLock::new(|| Bundle::seal(WINNERS.clone()).unwrap());

pub fn runtime() -> Runtime {
    Runtime::cpu(&BUNDLE, Some(make::THREADS)).unwrap()
}

/// Runs a problem twice on one workspace and says how far the second result is off, in shares of the limit.
fn run(runtime: &Runtime, p: &Problem, seed: u64) -> f64 {
    let kernel = runtime.lookup(p).unwrap();
    let inputs = Inputs::new(p, seed);
    let memory = runtime.allocate_all(p).unwrap();
    // SAFETY: indices among the inputs are filled before each launch, within their range.
    let views = memory.iter().map(|m| unsafe { m.view().assume_in_range() });
    let bound = kernel.bind(views, runtime.workspace(&kernel).unwrap()).unwrap();
    for _ in 0..2 {
        fill(p, &inputs, &memory);
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
fn untuned_sizes_run_right_on_what_promises_most() {
    let runtime = runtime();
    for (asked, tuned, template) in [
        ("rmsnorm rows=7 cols=96 dtype=f32", "rmsnorm rows=4 cols=96 dtype=f32", "cpu_rmsnorm"),
        ("rmsnorm rows=1000 cols=96 dtype=f32", "rmsnorm rows=4 cols=96 dtype=f32", "cpu_rmsnorm"),
        // All took 12.5 µs there, so what did it for 64 rows promises most for 7.
        ("matmul m=7 n=48 k=64 dtype=f32", "matmul m=64 n=48 k=64 dtype=f32", "cpu_gemm"),
        ("matmul m=2 n=48 k=64 dtype=f32", "matmul m=4 n=48 k=64 dtype=f32", "cpu_gemv"),
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
fn a_portable_winner_answers_what_no_other_does_and_only_that() {
    let device = make::device();
    let portable = |op: &str, template: &str| {
        let op = jitune::problem::OPS.iter().find(|o| o.name == op).unwrap();
        make::compiled(template, &op.probe(jitune::problem::Dtype::F32.into()).unwrap(), &device)
    };
    let mut winners = WINNERS.clone();
    winners.extend([
        portable("matmul", "cpu_matmul_portable"),
        portable("qkv", "cpu_matmul_portable"),
        portable("decode", "cpu_attention_portable"),
        portable("paged_attention", "cpu_attention_portable"),
        portable("rmsnorm", "cpu_rows_portable"),
    ]);
    let runtime = Runtime::cpu(&Bundle::seal(winners).unwrap(), Some(2)).unwrap();
    for (asked, template) in [
        ("matmul m=5 n=48 k=64 dtype=f32", "cpu_gemm"),
        ("matmul m=5 n=50 k=63 epilogue=bias_swiglu dtype=f32", "cpu_matmul_portable"),
        ("matmul m=9 n=48 k=64 epilogue=bias_residual dtype=f32", "cpu_matmul_portable"),
        ("qkv m=9 k=33 heads=6 kv_heads=3 head_dim=10 page=16 bias=1 qk_norm=1 dtype=f32", "cpu_matmul_portable"),
        ("decode batch=3 context=70 heads=6 kv_heads=3 head_dim=10 page=16 dtype=f32", "cpu_attention_portable"),
        (
            "paged_attention tokens=9 batch=3 context=70 heads=6 kv_heads=3 head_dim=10 page=16 dtype=f32 | lens=mixed",
            "cpu_attention_portable",
        ),
        ("rmsnorm rows=70 cols=97 residual=1 dtype=f32 | eps=1e-3", "cpu_rows_portable"),
    ] {
        let p = problem(asked);
        let kernel = runtime.lookup(&p).unwrap();
        let fits = if template == "cpu_gemm" {
            !kernel.template().contains("portable")
        } else {
            kernel.template() == template
        };
        assert!(fits, "{asked}: {}", kernel.template());
        assert!(run(&runtime, &p, 3) <= 1.0, "{asked}");
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

/// One launch has the workspace from its first kernel to its last, whatever else is launched and copied.
#[test]
fn a_workspace_is_shared_between_threads() {
    let runtime = runtime();
    let p = problem("matmul m=64 n=48 k=64 dtype=f32");
    let kernel = runtime.lookup(&p).unwrap();
    let workspace = runtime.workspace(&kernel).unwrap();
    std::thread::scope(|s| {
        for thread in 0..3 {
            let (runtime, kernel, workspace, p) = (&runtime, &kernel, &workspace, &p);
            s.spawn(move || {
                let (memory, inputs) = (runtime.allocate_all(p).unwrap(), Inputs::new(p, thread));
                fill(p, &inputs, &memory);
                let bound = kernel.bind(&memory, workspace).unwrap();
                for _ in 0..300 {
                    bound.launch(Queue::Host).unwrap();
                    assert!(error(p, &inputs, &memory) <= 1.0);
                }
            });
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
fn memory_that_does_not_fit_is_refused() {
    let (runtime, other) = (runtime(), runtime());
    let p = problem("matmul m=64 n=48 k=64 dtype=f32");
    let kernel = runtime.lookup(&p).unwrap();
    assert!(kernel.workspace_bytes() > 0 && !kernel.needs_zeroed_workspace());
    let [x, w, y]: [Memory; 3] = runtime.allocate_all(&p).unwrap().try_into().ok().unwrap();
    let workspace = runtime.workspace(&kernel).unwrap();
    let whole = runtime.allocate(1 << 17).unwrap();
    let other_workspace = |zeroed| View::from(runtime.workspace_of(1 << 17, zeroed).unwrap());
    let part = |from: u64, bytes: u64| whole.view().slice(from..from + bytes).unwrap();
    // SAFETY: addresses that are refused, or that nothing is launched on.
    let raw = |address: u64, bytes: u64| unsafe { View::from_raw(address, bytes) };
    let (x_, w_, y_, ws) = (x.view(), w.view(), y.view(), View::from(&workspace));
    for (views, workspace, says) in [
        (vec![x_.clone(), w_.clone()], ws.clone(), "3 tensors"),
        (vec![x_.clone(), raw(0, 1 << 20), y_.clone()], ws.clone(), "w: its address is null"),
        (vec![x_.clone(), w_.clone(), y_.clone()], View::none(), "workspace: it needs"),
        (vec![x_.clone(), w_.slice(0..w.len() - 1).unwrap(), y_.clone()], ws.clone(), "w: it needs 12288 bytes"),
        (vec![x_.clone(), raw(w.address() + 4, w.len()), y_.clone()], ws.clone(), "no multiple of 16"),
        (
            vec![other.allocate(x.len()).unwrap().view(), w_.clone(), y_.clone()],
            ws.clone(),
            "x: it was allocated by another",
        ),
        (
            vec![x_.clone(), w_.clone(), other.allocate(y.len()).unwrap().view()],
            ws.clone(),
            "y: it was allocated by another",
        ),
        (vec![part(0, x.len()), w_.clone(), part(x.len() - 16, y.len())], ws.clone(), "share memory"),
        (
            vec![x_.clone(), w_.clone(), part(16, y.len())],
            raw(whole.address(), whole.len()),
            "y and the workspace share memory",
        ),
        (vec![x_.clone(), w_.clone(), y_.clone()], whole.view(), "workspace: what stands in it says where"),
        (vec![x_.clone(), w_.clone(), y_.clone()], other_workspace(true), "others want zeros there"),
        (vec![x_.clone(), w_.clone(), other_workspace(false)], ws.clone(), "y: a workspace stands for no tensor"),
    ] {
        let refused = match kernel.bind(&views, workspace) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("bound, but {says}"),
        };
        assert!(refused.contains(says) && refused.contains("cannot be bound"), "{says}: {refused}");
    }
    // Two inputs may be the same memory, and parts of one memory apart from each other may be anything.
    kernel.bind([raw(whole.address(), whole.len()), whole.view(), y_.clone()], &ws).unwrap();
    let parts = [part(0, x.len()), part(x.len(), w.len()), part(x.len() + w.len(), y.len())];
    let mut bound = kernel.bind(parts, &ws).unwrap();
    // The same holds when the memory is changed, and a refusal changes nothing.
    let refusals =
        [(0, part(x.len() + w.len(), x.len())), (1, x_.slice(0..16).unwrap()), (2, raw(8, 1 << 20)), (3, x_.clone())];
    for (tensor, view) in refusals {
        assert!(bound.set_tensor(tensor, view).is_err(), "{tensor}");
    }
    assert!(bound.set_workspace(View::none()).is_err() && bound.set_workspace(part(0, ws.len())).is_err());
    bound.launch(Queue::Host).unwrap();

    let small = runtime.allocate(4).unwrap();
    assert!(small.upload(&[0; 5]).is_err() && small.download(&mut [0; 5]).is_err());
    for range in [0..5, 5..5, Range { start: 3, end: 2 }] {
        assert!(small.view().slice(range).is_err());
    }
    let impossible = runtime.allocate(1 << 50).err().unwrap().to_string();
    assert!(impossible.contains("bytes are needed"), "{impossible}");
}

#[test]
fn indices_are_promised_or_refused() {
    let p = problem("embedding tokens=4 vocab=10 hidden=32 dtype=f32");
    let runtime = Runtime::cpu(&Bundle::seal([make::compiled("cpu_embedding", &p, &make::device())]).unwrap(), Some(2));
    let runtime = runtime.unwrap();
    let kernel = runtime.lookup(&p).unwrap();
    let memory = runtime.allocate_all(&p).unwrap();
    fill(&p, &Inputs::new(&p, 1), &memory);
    let refused = kernel.bind(&memory, View::none()).err().unwrap().to_string();
    assert!(refused.contains("assume_in_range"), "{refused}");
    // SAFETY: the ids were made below the vocabulary.
    let views = memory.iter().map(|m| unsafe { m.view().assume_in_range() });
    kernel.bind(views, View::none()).unwrap().launch(Queue::Host).unwrap();
    assert!(error(&p, &Inputs::new(&p, 1), &memory) <= 1.0);
}

#[test]
fn a_bound_kernel_is_bound_to_other_memory() {
    let runtime = runtime();
    let p = problem("matmul m=64 n=48 k=64 dtype=f32");
    let kernel = runtime.lookup(&p).unwrap();
    let sets: Vec<Vec<Memory>> = (0..3).map(|_| runtime.allocate_all(&p).unwrap()).collect();
    for (seed, memory) in sets.iter().enumerate() {
        fill(&p, &Inputs::new(&p, seed as u64), memory);
    }
    let mut bound = kernel.bind(&sets[0], runtime.workspace(&kernel).unwrap()).unwrap();
    for memory in &sets {
        for (i, m) in memory.iter().enumerate() {
            bound.set_tensor(i, m).unwrap();
        }
        bound.set_workspace(runtime.workspace(&kernel).unwrap()).unwrap();
        bound.launch(Queue::Host).unwrap();
    }
    for (seed, memory) in sets.iter().enumerate() {
        assert!(error(&p, &Inputs::new(&p, seed as u64), memory) <= 1.0, "set {seed}");
    }
}

#[test]
fn what_is_bound_lives_as_long_as_the_binding() {
    let p = problem(COMPILED[0].1);
    let (output, bound) = {
        let runtime = runtime();
        let memory = runtime.allocate_all(&p).unwrap();
        fill(&p, &Inputs::new(&p, 4), &memory);
        let bound = runtime.lookup(&p).unwrap().bind(&memory, View::none()).unwrap();
        // Kernel, runtime and inputs go here.
        (memory.last().unwrap().clone(), bound)
    };
    std::thread::spawn(move || bound.launch(Queue::Host).unwrap()).join().unwrap();
    let mut bytes = vec![0; output.len() as usize];
    output.download(&mut bytes).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    // The poison is no number.
    assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0));
}

#[test]
fn a_launch_goes_to_the_kind_of_queue_that_the_kernel_is_for() {
    let runtime = runtime();
    let p = problem(COMPILED[0].1);
    let kernel = runtime.lookup(&p).unwrap();
    let bound = kernel.bind(runtime.allocate_all(&p).unwrap(), View::none()).unwrap();
    // SAFETY: it is refused before it is looked at.
    let stream = unsafe { StreamRef::from_raw(std::ptr::null_mut()) };
    let refused = bound.launch(stream).unwrap_err();
    assert!(matches!(refused, BackendError::WrongQueue { kernel: Target::Cpu, queue: Target::Cuda }), "{refused}");
    assert!(runtime.stream().is_err());
}

#[test]
fn launches_that_the_processor_cannot_do_are_not_loaded() {
    for (change, part) in [
        (
            &(|w: &mut Winner| w.description.launches[0].grid[1] = ExprText("2".into())) as &dyn Fn(&mut Winner),
            "a grid of",
        ),
        (&|w| w.description.launches[0].entry = "another".into(), "entry another"),
        (
            &|w| {
                w.description.launches[0].args[0] =
                    ArgSpec { workspace: Some(ExprText("64".into())), ..ArgSpec::default() }
            },
            "byte 64",
        ),
    ] {
        let (mut w, code) = WINNERS[0].clone();
        change(&mut w);
        let e = Runtime::cpu(&Bundle::seal([(w, code)]).unwrap(), Some(2)).err().unwrap().to_string();
        assert!(e.contains(part), "{part}: {e}");
    }
}

#[test]
fn pools_that_cannot_be_had_are_errors() {
    for threads in [5_000, 100_000, usize::MAX] {
        let refused = Runtime::cpu(&BUNDLE, Some(threads)).err().unwrap().to_string();
        assert!(refused.contains("threads cannot be had"), "{refused}");
    }
}

#[test]
fn code_with_instructions_that_are_hidden_here_is_refused() {
    let (mut w, code) = WINNERS[0].clone();
    assert!(!w.device.flags.is_empty());
    w.device.flags.push_str(" amx_tomorrow avx2048");
    match Runtime::cpu(&Bundle::seal([(w.clone(), code.clone())]).unwrap(), Some(2)) {
        Err(e @ RuntimeError::NoArch { .. }) => assert!(e.to_string().contains("hides: amx_tomorrow avx2048"), "{e}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("loaded"),
    }
    // Those that this processor has beyond what was there are no matter, and neither are those that nobody wrote down.
    for flags in ["sse2", ""] {
        w.device.flags = flags.into();
        Runtime::cpu(&Bundle::seal([(w.clone(), code.clone())]).unwrap(), Some(2)).unwrap();
    }
}

#[test]
fn code_is_loaded_though_files_are_in_the_way_and_each_is_its_own() {
    // What an earlier process of this number may have left where code was once written.
    let left = |n| std::env::temp_dir().join(format!("jitune-{}-{n}.so", std::process::id()));
    (0..200).for_each(|n| std::fs::write(left(n), b"left").unwrap());
    let one = Runtime::cpu(&BUNDLE, Some(2));
    (0..200).for_each(|n| std::fs::remove_file(left(n)).unwrap());
    let one = one.unwrap();
    // Descriptors of files come again; what was loaded by one before must not be taken for what is loaded now.
    for (template, text) in COMPILED {
        let at = COMPILED.iter().position(|c| c.1 == text).unwrap();
        let alone = Runtime::cpu(&Bundle::seal([WINNERS[at].clone()]).unwrap(), Some(2)).unwrap();
        assert!(run(&alone, &problem(text), 9) <= 1.0 && run(&one, &problem(text), 9) <= 1.0, "{template}");
    }
}

#[test]
fn the_next_winner_is_taken_where_the_closest_does_not_fit() {
    // The same problem twice: of this very machine, with a launch that no processor does, and of one that has other caches.
    let (mut closest, code) = WINNERS[0].clone();
    closest.description.launches[0].grid[1] = jitune::recipe::ExprText("2".into());
    let (mut next, _) = WINNERS[0].clone();
    next.device.silicon.insert("l3_bytes".into(), "1".into());
    let bundle = Bundle::seal([(closest, code.clone()), (next, code)]).unwrap();
    let runtime = Runtime::cpu(&bundle, Some(2)).unwrap();
    assert_eq!((runtime.problems().len(), runtime.skipped().len()), (1, 1));
    assert!(run(&runtime, &problem(COMPILED[0].1), 6) <= 1.0);
}
