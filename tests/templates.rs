//! Every built-in template, over the plans of real models and over ragged shapes: its description evaluates, its space is
//! not empty, its launches fit the device, its source renders.

use jitune::backend::cpu;
use jitune::device::{Device, Target};
use jitune::model::{Buckets, Model, Plan, Precision, WeightFormat};
use jitune::problem::{CodeLayout, Dtype, Granularity, Problem, ScaledFormat, Storage, XFormat, Zero};
use jitune::recipe::Role;
use jitune::space;
use jitune::template::Library;

/// Shapes beside those of models: every op, dtype and epilogue, odd sizes, the unfused pieces.
const EXTRA: &[&str] = &[
    "matmul m=7 n=1000 k=1544 dtype=f32",
    "matmul m=7 n=1000 k=1544 dtype=tf32",
    "matmul m=1 n=1001 k=77 dtype=bf16",
    "matmul m=300 n=1001 k=77 dtype=f16 epilogue=bias",
    "matmul m=33 n=2000 k=2048 dtype=bf16 epilogue=swiglu",
    "matmul m=40 n=2000 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=300 n=2048 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=5 n=2000 k=2048 dtype=f16 epilogue=bias_residual",
    "matmul m=5 n=2000 k=2048 dtype=f16 epilogue=bias_residual w=int4z-g64",
    "matmul m=1 n=8192 k=2048 dtype=f32 w=int4-g128",
    "matmul m=300 n=1001 k=77 dtype=bf16 epilogue=bias w=e4m3-b128",
    "matmul m=300 n=1000 k=576 dtype=f32 epilogue=bias_residual w=int4m-g32",
    "matmul m=3 n=1536 k=576 dtype=f32 epilogue=swiglu w=int4m-g32 layout=lanes",
    "matmul m=64 n=1536 k=576 dtype=f32 epilogue=swiglu w=int8-g32 layout=lanes",
    "matmul m=512 n=1536 k=576 dtype=f32 epilogue=swiglu x=int8-row w=int8-row layout=lanes",
    "matmul m=64 n=1001 k=577 dtype=f32 x=int8-row w=int8-g32",
    "qkv m=4 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16 w=int8-row",
    "matmul m=300 n=2048 k=2048 dtype=f16 epilogue=bias_residual",
    "qkv m=129 k=2048 heads=32 kv_heads=8 head_dim=64 bias=1 dtype=f16 | pages=8",
    "qkv m=4 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=300 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=7 k=100 heads=3 kv_heads=1 head_dim=10 bias=1 qk_norm=1 dtype=f32",
    "attention batch=3 q=77 kv=333 heads=6 kv_heads=2 head_dim=80 dtype=f16",
    "attention batch=1 q=1 kv=1 heads=1 kv_heads=1 head_dim=256 causal=0 dtype=bf16",
    "attention batch=1 q=100 kv=100 heads=4 kv_heads=4 head_dim=96 dtype=f32",
    "decode batch=3 context=4097 heads=32 kv_heads=8 head_dim=128 page=16 lens=mixed dtype=bf16",
    "decode batch=1 context=1 heads=4 kv_heads=4 head_dim=80 dtype=f32",
    "paged_attention tokens=300 batch=40 context=700 heads=12 kv_heads=2 head_dim=80 page=32 lens=mixed dtype=bf16",
    "paged_attention tokens=1 batch=1 context=1 heads=1 kv_heads=1 head_dim=256 dtype=f16",
    "paged_attention tokens=40 batch=9 context=333 heads=4 kv_heads=1 head_dim=20 page=7 lens=chunk dtype=f32",
    "decode batch=2 context=99 heads=4 kv_heads=4 head_dim=72 page=5 dtype=bf16",
    "decode batch=2 context=99 heads=4 kv_heads=4 head_dim=512 dtype=bf16",
    "layernorm rows=5 cols=20001 dtype=f32",
    "rmsnorm rows=33 cols=1003 residual=1 dtype=bf16",
    "layernorm rows=5 cols=77 dtype=f32",
    "layernorm rows=4096 cols=4096 residual=1 dtype=bf16",
    "silu_mul rows=3 cols=1001 dtype=bf16",
    "gelu rows=3 cols=8192 dtype=f16",
    "rope tokens=9 heads=32 head_dim=64 dtype=bf16",
    "softmax rows=2 cols=128256 dtype=f32",
    "embedding tokens=5 vocab=50 hidden=77 dtype=bf16",
    "argmax rows=3 cols=1003 dtype=f16",
    "sample rows=1 cols=128256 dtype=f32",
    "sample rows=3 cols=1003 top=5 dtype=f16",
    "advance words=1300 ids=256 rows=64 dtype=bf16",
    "norm_matmul m=1 n=16384 k=2048 epilogue=swiglu dtype=bf16",
    "norm_matmul m=3 n=1000 k=264 epilogue=bias_residual dtype=f16",
    "norm_qkv m=5 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16",
    "norm_qkv m=2 k=264 heads=3 kv_heads=1 head_dim=40 page=5 bias=1 qk_norm=1 dtype=f32",
    "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 dtype=bf16 kv=e4m3",
    "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 dtype=f32 kv=f16",
    "paged_attention tokens=528 batch=17 context=5000 heads=32 kv_heads=8 head_dim=64 dtype=f32 kv=bf16 | lens=chunk",
    "rope_kv m=7 heads=3 kv_heads=1 head_dim=96 qk_norm=1 dtype=f32 kv=f16",
    "decode batch=3 context=4097 heads=32 kv_heads=8 head_dim=128 page=16 dtype=f16 kv=e4m3 | lens=mixed",
    "decode batch=2 context=999 heads=12 kv_heads=4 head_dim=96 page=16 dtype=bf16 kv=e4m3",
    "decode batch=2 context=999 heads=16 kv_heads=1 head_dim=256 dtype=bf16 kv=e4m3",
    "decode batch=2 context=99 heads=4 kv_heads=4 head_dim=64 page=5 dtype=bf16 kv=e4m3",
    "decode batch=2 context=99 heads=4 kv_heads=4 head_dim=72 page=5 dtype=f32 kv=e4m3",
    "paged_attention tokens=528 batch=17 context=5000 heads=32 kv_heads=8 head_dim=64 dtype=bf16 kv=e4m3 | lens=chunk",
    "paged_attention tokens=2048 batch=1 context=2048 heads=32 kv_heads=8 head_dim=128 page=16 dtype=f16 kv=e4m3",
    "paged_attention tokens=68 batch=4 context=5000 heads=8 kv_heads=1 head_dim=256 dtype=bf16 kv=e4m3",
    "paged_attention tokens=300 batch=40 context=700 heads=12 kv_heads=2 head_dim=80 page=32 dtype=bf16 kv=e4m3 | lens=mixed",
    "paged_attention tokens=40 batch=9 context=333 heads=4 kv_heads=1 head_dim=20 page=7 dtype=f32 kv=e4m3",
    "rope_kv m=8 heads=32 kv_heads=8 head_dim=64 dtype=bf16 kv=e4m3",
    "rope_kv m=300 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16 kv=e4m3",
    "rope_kv m=300 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=f16",
    "rope_kv m=7 heads=3 kv_heads=1 head_dim=10 dtype=f32 kv=e4m3",
    "rope_kv m=7 heads=3 kv_heads=1 head_dim=96 qk_norm=1 dtype=f32 kv=e4m3",
    "rope_kv m=7 heads=3 kv_heads=1 head_dim=1000 qk_norm=1 dtype=bf16 kv=e4m3",
    "norm_matmul m=8 n=28672 k=4096 epilogue=swiglu dtype=bf16 w=int4-g128 layout=quads",
    "norm_matmul m=3 n=1000 k=896 epilogue=bias_residual dtype=f16 w=int4m-g32 scale=f32 layout=quads",
    "norm_qkv m=5 k=320 heads=3 kv_heads=1 head_dim=40 page=5 bias=1 qk_norm=1 dtype=bf16 w=e4m3-b128 layout=quads",
];

fn problems(dtype: Dtype) -> Vec<Problem> {
    let mut list: Vec<Problem> = Vec::new();
    for name in Model::presets() {
        // One model with all its buckets, the others at the ends of theirs.
        let buckets = match name {
            "llama-3.2-1b" => Buckets::default(),
            _ => Buckets { batch: vec![1, 32], prefill: vec![2048], ..Buckets::default() },
        };
        list.extend(Plan::new(&Model::preset(name).unwrap(), &buckets, dtype).unwrap().problems());
    }
    list.extend(EXTRA.iter().map(|t| t.parse::<Problem>().unwrap()));
    list.sort();
    list.dedup();
    list
}

fn check(device: &Device, problem: &Problem, library: &Library) -> Vec<String> {
    let mut bad = Vec::new();
    let templates = match library.for_steps(problem, device) {
        Ok(list) => list,
        Err(e) => return vec![format!("{}: {e}", device.arch)],
    };
    let mut configs = 0;
    for t in templates {
        let place = format!("{} {} {problem}", device.arch, t.name());
        let space = match space::enumerate(&t.recipe, problem, device) {
            Ok(space) => space,
            Err(e) => {
                bad.push(format!("{place}: {e}"));
                continue;
            }
        };
        configs += space.candidates.len();
        for c in space.candidates.iter().take(2) {
            if !c.cost_us.is_finite() || c.cost_us <= 0.0 {
                bad.push(format!("{place}: cost {}", c.cost_us));
            }
            match t.recipe.launch(problem, device, &c.config) {
                Ok(l) if l.kernels.is_empty() => bad.push(format!("{place}: launches nothing")),
                Ok(l) => {
                    let most = l.kernels.iter().map(|k| u64::from(k.smem)).max().unwrap_or(0);
                    if device.smem > 0 && most > device.smem {
                        bad.push(format!("{place}: {most} bytes of shared memory"));
                    }
                }
                Err(e) => bad.push(format!("{place}: {e}")),
            }
            if let Err(e) = library.render(&t, problem, device, &c.config) {
                bad.push(format!("{place}: {e}"));
            }
        }
    }
    if configs == 0 {
        bad.push(format!("{} {problem}: no legal config", device.arch));
    }
    bad
}

#[test]
fn cuda_templates_answer_every_problem_on_every_architecture() {
    let library = Library::built_in().unwrap();
    let mut bad = Vec::new();
    for arch in Device::ARCHITECTURES {
        let device = Device::ahead_of_time(arch).unwrap();
        // Codes of rows in turn are for lanes of a processor, and so are caches of half of f32's bits.
        let lanes = |p: &Problem| p.types().scaling.is_some_and(|s| s.layout == CodeLayout::Lanes);
        let halves = |p: &Problem| matches!(p.types().kv, Some(Storage::F16 | Storage::Bf16));
        for p in problems(Dtype::Bf16).into_iter().filter(|p| !lanes(p) && !halves(p)) {
            bad.extend(check(&device, &p, &library));
            if let Err(e) = library.reference(&p, &device) {
                bad.push(format!("reference: {e}"));
            }
        }
    }
    assert!(bad.is_empty(), "{} problems:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn cpu_templates_answer_every_problem() {
    let library = Library::built_in().unwrap();
    let device = cpu::describe(Some(2));
    let bad: Vec<String> = problems(Dtype::F32)
        .iter()
        // A norm takes nothing to speak of beside a product there, so no template does both.
        .filter(|p| p.types() != Dtype::Tf32.into() && !p.op().name.starts_with("norm_"))
        .flat_map(|p| check(&device, p, &library))
        .collect();
    assert!(bad.is_empty(), "{} problems:\n{}", bad.len(), bad.join("\n"));
}

/// What a norm and the product behind it take together is one template's alone: no other may take the problem and leave the norm
/// out, and where it does not take it the two run by themselves.
#[test]
fn a_norm_in_a_product_is_one_template_s_alone() {
    let library = Library::built_in().unwrap();
    let gpus = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap());
    let products =
        ["norm_matmul m=M n=1000 k=896 epilogue=swiglu", "norm_qkv m=M k=896 heads=3 kv_heads=1 head_dim=40"];
    let plain = products.map(|p| (format!("{p} dtype=bf16"), "matvec_norm"));
    let codes = products.map(|p| (format!("{p} dtype=bf16 w=int4z-g64 layout=quads"), "matmul_codes_norm"));
    for (product, template) in plain.into_iter().chain(codes) {
        for (m, taken) in [(1, true), (8, true), (9, false), (512, false)] {
            let p: Problem = product.replace('M', &m.to_string()).parse().unwrap();
            for device in &gpus {
                let names: Vec<String> = library
                    .taking(&p, device)
                    .map(|list| list.iter().map(|t| t.name().to_string()).collect())
                    .unwrap_or_default();
                assert_eq!(names, if taken { vec![template] } else { vec![] }, "{p} on {}", device.arch);
            }
            assert!(library.taking(&p, &cpu::describe(Some(2))).is_err(), "{p}");
        }
    }
}

/// A tuning of any model on any GPU finds a config for each norm in a product that its plan lists.
#[test]
fn every_norm_in_a_product_that_a_plan_lists_has_a_config() {
    let library = Library::built_in().unwrap();
    let gpus = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap());
    let mut precisions = vec![(Precision::from(Dtype::Bf16), 9), (Dtype::F32.into(), 9)];
    precisions.extend(ScaledFormat::all().enumerate().map(|(i, format)| {
        let dtype = [Dtype::Bf16, Dtype::F16, Dtype::F32][i % 3];
        (Precision::linear(dtype, WeightFormat::usual(format, dtype), Target::Cuda), 1)
    }));
    let mut bad = Vec::new();
    for (name, (precision, most)) in Model::presets().flat_map(|name| precisions.iter().map(move |p| (name, p))) {
        let batch = (1..=*most).chain([8]).collect();
        let buckets = Buckets { batch, prefill: vec![512], chunk: vec![], ..Buckets::default() };
        let fusions = Plan::new(&Model::preset(name).unwrap(), &buckets, precision).unwrap().fusions();
        assert!(!fusions.is_empty(), "{name}: {fusions:?}");
        for (p, device) in fusions.iter().flat_map(|p| gpus.iter().map(move |device| (p, device))) {
            let taking = library.taking(p, device).unwrap();
            let [template] = &taking[..] else { panic!("{p}: {} templates", taking.len()) };
            let space = space::enumerate(&template.recipe, p, device).unwrap();
            if space.candidates.is_empty() {
                bad.push(format!("{name}, {} {p}", device.arch));
            }
        }
    }
    assert!(bad.is_empty(), "{} of them have none:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn paged_attention_compiled_for_one_size_serves_every_other() {
    let library = Library::built_in().unwrap();
    let of = |sizes: &str, dtype: &str| -> Problem {
        format!("paged_attention {sizes} heads=32 kv_heads=8 head_dim=64 dtype={dtype}").parse().unwrap()
    };
    const SIZES: [&str; 4] = [
        "tokens=1 batch=1 context=1",
        "tokens=17 batch=1 context=5000",
        "tokens=16384 batch=16 context=1024",
        "tokens=528 batch=300 context=9000",
    ];
    for (device, dtype) in [(Device::ahead_of_time("sm_90a").unwrap(), "bf16"), (cpu::describe(Some(2)), "f32")] {
        for (tuned, asked) in SIZES.iter().flat_map(|a| SIZES.map(|b| (*a, b))) {
            let (tuned, asked) = (of(tuned, dtype), of(asked, dtype));
            for t in library.for_steps(&tuned, &device).unwrap() {
                for c in space::enumerate(&t.recipe, &tuned, &device).unwrap().candidates.iter().take(4) {
                    assert!(
                        t.recipe.serves(&tuned, &asked, &device, &c.config).is_ok(),
                        "{} [{}] {asked}",
                        t.name(),
                        c.config
                    );
                }
            }
        }
    }
}

#[test]
fn fingerprints_tell_templates_apart() {
    let library = Library::built_in().unwrap();
    let all: Vec<String> = library.all(Role::Kernel).map(|t| library.fingerprint(t)).collect();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), distinct.len());
}

#[test]
fn a_config_that_a_smaller_bucket_would_not_search_serves_it() {
    let library = Library::built_in().unwrap();
    // Which configs a search leaves out follows from the processor.
    let (l1, l2, l3) = (32 << 10, 2 << 20, 32 << 20);
    let device = Device { isa: "avx512".into(), simd: 64, l1, l2, l3, ..cpu::describe(Some(2)) };
    let of = |m: u32| -> Problem { format!("matmul m={m} n=2048 k=2048 dtype=f32").parse().unwrap() };
    let gemm = &library.get(Target::Cpu, "cpu_gemm").unwrap().recipe;
    let searched = |m: u32| space::enumerate(gemm, &of(m), &device).unwrap().candidates;
    let small = searched(33);
    let only_large: Vec<_> = searched(64).into_iter().filter(|c| small.iter().all(|s| s.config != c.config)).collect();
    assert!(!only_large.is_empty());
    for c in only_large {
        assert!(gemm.serves(&of(64), &of(33), &device, &c.config).is_ok(), "{}", c.config);
    }
}

#[test]
fn a_template_takes_only_the_element_types_that_it_names() {
    let library = Library::built_in().unwrap();
    let device = Device::ahead_of_time("sm_90a").unwrap();
    // Operands of one byte, which code for f32 would read four times past the end of.
    for epilogue in ["none", "bias", "residual", "bias_residual", "swiglu"] {
        let p: Problem = format!("matmul m=4 n=64 k=64 epilogue={epilogue} dtype=e4m3").parse().unwrap();
        let names: Vec<String> =
            library.for_problem(&p, &device).unwrap().iter().map(|t| t.name().to_string()).collect();
        assert_eq!(names, ["matmul_portable"]);
        let reference = library.reference(&p, &device).unwrap();
        let source = library.render(&reference, &p, &device, &Default::default()).unwrap();
        assert!(source.text.contains("#define DTYPE_E4M3 1") && source.text.contains("operand *x"));
    }
    // No code for one dtype takes tensors of several, whatever its `when` says, and the code that does is told each.
    let p: Problem = "matmul m=4 n=64 k=64 dtype=bf16 w=e4m3 y=f32".parse().unwrap();
    let names: Vec<String> = library.taking(&p, &device).unwrap().iter().map(|t| t.name().to_string()).collect();
    assert_eq!(names, ["matmul_portable"]);
    let portable = &library.taking(&p, &device).unwrap()[0];
    for text in [
        library.render(portable, &p, &device, &Default::default()).unwrap().text,
        library.render(&library.reference(&p, &device).unwrap(), &p, &device, &Default::default()).unwrap().text,
    ] {
        for said in ["#define DTYPE_F32 1", "#define DTYPE_X_BF16 1", "#define DTYPE_W_E4M3 1"] {
            assert!(text.contains(said), "{said}");
        }
    }
    let simt = library.get(Target::Cuda, "matmul_simt").unwrap();
    let mut description = simt.recipe.description.clone();
    description.when = jitune::recipe::ExprText("dtype != 'e4m3'".into());
    let loose = jitune::recipe::Recipe::new(description).unwrap();
    assert!(!loose.takes(&p, &device).unwrap());
    let t = library.get(Target::Cuda, "gelu").unwrap();
    let mut description = t.recipe.description.clone();
    description.when = jitune::recipe::ExprText("rows > 0".into());
    let e = jitune::recipe::Recipe::new(description).err().unwrap().to_string();
    assert!(e.contains("does not name dtype"), "{e}");
}

/// Of scaled weights each format has a portable template on every target, told what belongs to it, and a reference on a GPU; no code
/// that names no scales takes them.
#[test]
fn scaled_weights_are_for_code_that_names_their_scales() {
    let library = Library::built_in().unwrap();
    let cpu = cpu::describe(Some(2));
    let gpus = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap());
    for format in ScaledFormat::all() {
        for op in ["matmul m=4 n=64 k=262", "qkv m=4 k=262 heads=3 kv_heads=1 head_dim=10"] {
            let p: Problem = format!("{op} dtype=f16 w={format}").parse().unwrap();
            for device in gpus.iter().chain([&cpu]) {
                let taking = library.taking(&p, device).unwrap();
                let portable = taking.iter().find(|t| t.recipe.description.portable).unwrap();
                assert!(taking.iter().all(|t| t.recipe.description.when.0.contains("w.scale")), "{p}");
                let text = library.render(portable, &p, device, &Default::default()).unwrap().text;
                let upper = |word: &str| word.to_uppercase();
                for said in [
                    format!("#define DTYPE_W_{} 1", upper(format.codes.name())),
                    format!("#define W_SCALE_{} 1", upper(format.per.name())),
                    format!("#define W_ZERO_{} 1", upper(format.zero.name())),
                    format!("#define SCALE_{} 1", upper(format.per.usual_scale(Storage::F16).name())),
                ] {
                    assert!(text.contains(&said), "{p}: {said}");
                }
                let grouped = matches!(format.per, Granularity::Group(_) | Granularity::Block);
                assert_eq!(text.contains("#define W_GROUP "), grouped, "{p}");
            }
            for (p, gpu) in
                [p, format!("norm_{p}").parse().unwrap()].iter().flat_map(|p| gpus.iter().map(move |g| (p, g)))
            {
                assert_eq!(library.reference(p, gpu).unwrap().name(), "matmul_quant");
            }
        }
    }
}

/// SwiGLU multiplies two results, so a weight that is rounded with the scale of its group shows in the worst of millions: no config
/// for it does so, and for the other epilogues the clock decides.
#[test]
fn weights_of_groups_are_exact_where_swiglu_follows() {
    let library = Library::built_in().unwrap();
    let device = Device::ahead_of_time("sm_90a").unwrap();
    let wide = library.get(Target::Cuda, "matmul_codes_wide").unwrap();
    for format in ScaledFormat::all() {
        for (epilogue, dtype) in [("swiglu", "bf16"), ("bias_swiglu", "f16"), ("residual", "bf16")] {
            let text =
                format!("matmul m=2048 n=16384 k=2048 epilogue={epilogue} dtype={dtype} w={format} layout=quads");
            let p: Problem = text.parse().unwrap();
            let space = space::enumerate(&wide.recipe, &p, &device).unwrap();
            let with = |exact| space.candidates.iter().filter(|c| c.config.get("exact") == Some(exact)).count();
            let grouped = matches!(format.per, Granularity::Group(_) | Granularity::Block) || format.zero == Zero::Min;
            assert_eq!(with(1) > 0, grouped, "{p}");
            assert_eq!(with(0) > 0, !grouped || epilogue == "residual", "{p}");
        }
    }
}

/// The same of scaled tokens, which code for scaled weights alone does not take.
#[test]
fn scaled_tokens_are_for_code_that_names_their_scales() {
    let library = Library::built_in().unwrap();
    let cpu = cpu::describe(Some(2));
    let gpus = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap());
    for x in XFormat::all() {
        for w in ScaledFormat::all().filter(|w| x.goes_with(w.codes)) {
            for op in ["matmul m=4 n=64 k=262", "qkv m=4 k=262 heads=3 kv_heads=1 head_dim=10"] {
                let p: Problem = format!("{op} dtype=f16 x={x} w={w}").parse().unwrap();
                for device in gpus.iter().chain([&cpu]) {
                    let taking = library.taking(&p, device).unwrap();
                    let portable = taking.iter().find(|t| t.recipe.description.portable).unwrap();
                    assert!(taking.iter().all(|t| t.recipe.description.when.0.contains("x.scale")), "{p}");
                    let text = library.render(portable, &p, device, &Default::default()).unwrap().text;
                    let grouped = matches!(x.per, Granularity::Group(_));
                    assert_eq!(text.contains("#define X_GROUP "), grouped, "{p}");
                    for (of, word) in
                        [("DTYPE_X", x.codes.name()), ("X_SCALE", x.per.name()), ("W_SCALE", w.per.name())]
                    {
                        assert!(text.contains(&format!("#define {of}_{} 1", word.to_uppercase())), "{p}: {of}");
                    }
                }
                for gpu in &gpus {
                    assert_eq!(library.reference(&p, gpu).unwrap().name(), "matmul_scaled");
                }
            }
        }
    }
}

/// What nothing else takes is left to the portable templates, so no shape that an op allows is without a config.
#[test]
fn any_shape_has_a_config() {
    let library = Library::built_in().unwrap();
    let mut state = 7u64;
    let mut draw = |list: &[u32]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        list[(state >> 33) as usize % list.len()]
    };
    let mut bad = Vec::new();
    for round in 0..24 {
        let odd = [1, 2, 3, 7, 16, 33, 64, 77, 100, 129, 1000, 4099];
        let (m, n, k) = (draw(&odd), draw(&odd), draw(&odd));
        let (kv, group, d) =
            (draw(&[1, 2, 8]), draw(&[1, 3, 4, 17, 48]), 2 * draw(&[1, 3, 5, 12, 20, 36, 64, 100, 128, 160, 300]));
        let (page, heads) = (draw(&[1, 3, 4, 12, 16, 20, 48, 64, 96, 100, 256]), kv * group);
        let shapes = [
            format!("matmul m={m} n={n} k={k}"),
            format!("matmul m={m} n={} k={k} epilogue=bias_swiglu", 2 * n),
            format!("qkv m={m} k={k} heads={heads} kv_heads={kv} head_dim={d} page={page} qk_norm={}", round % 2),
            format!("decode batch={m} context={k} heads={heads} kv_heads={kv} head_dim={d} page={page}"),
            format!("rmsnorm rows={m} cols={}", n * draw(&[1, 8, 50])),
            format!("softmax rows={m} cols={}", n * draw(&[1, 8, 50])),
            format!("rope tokens={m} heads={heads} head_dim={d}"),
        ];
        let (dtype, narrow) = (["bf16", "f32", "f16", "tf32"][round % 4], ["bf16", "f32"][round % 2]);
        for (device, dtype) in [
            (Device::ahead_of_time("sm_90a").unwrap(), dtype),
            (Device::ahead_of_time("sm_86").unwrap(), dtype),
            (cpu::describe(Some(2)), narrow),
        ] {
            for text in &shapes {
                bad.extend(check(&device, &format!("{text} dtype={dtype}").parse().unwrap(), &library));
            }
        }
    }
    assert!(bad.is_empty(), "{} problems:\n{}", bad.len(), bad.join("\n"));
}
