//! Every CUDA template compiles with the real NVRTC for every supported architecture, without spills, in the configs
//! that the analytic cost puts first. Fails, not skips, where NVRTC is missing, unless JITUNE_ALLOW_NO_NVRTC is set.

use jitune::backend::cuda::nvrtc;
use jitune::device::{Device, Target};
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::{Dtype, Problem, ScaledFormat, XFormat};
use jitune::recipe::{Arg, Config, Launch};
use jitune::source::Source;
use jitune::space;
use jitune::template::Library;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Problems that bring every template into play, beside llama-3.2-1b's plan.
const EXTRA: &[&str] = &[
    "matmul m=33 n=1000 k=1544 dtype=f32",
    "quantize rows=33 cols=2048 to=int8-row",
    "quantize rows=5 cols=1001 to=e4m3-g128 dtype=f32",
    "norm_quantize rows=1 cols=4096 to=int8-row",
    "norm_quantize rows=512 cols=2048 to=e4m3-g128 dtype=f16",
    "norm_quantize rows=3 cols=77 to=e4m3-row",
    "matmul m=7 n=1001 k=320 epilogue=bias_residual x=int8-row w=int8-row",
    "matmul m=17 n=1000 k=1088 epilogue=swiglu x=e4m3-g128 w=e4m3-b128",
    "matmul m=300 n=1000 k=1544 dtype=tf32 epilogue=bias",
    "matmul m=40 n=2000 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=300 n=2048 k=2048 dtype=bf16 epilogue=bias_swiglu",
    "matmul m=5 n=2000 k=2048 dtype=f16 epilogue=bias_residual",
    "matmul m=300 n=2048 k=2048 dtype=f16 epilogue=bias_residual",
    "qkv m=129 k=2048 heads=32 kv_heads=8 head_dim=64 bias=1 dtype=f16 | pages=8",
    "qkv m=4 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=300 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16",
    "qkv m=7 k=100 heads=3 kv_heads=1 head_dim=10 bias=1 qk_norm=1 dtype=f32",
    "matmul m=100 n=1001 k=77 dtype=bf16",
    "matmul m=4 n=64 k=64 dtype=e4m3",
    "matmul m=300 n=70 k=50 epilogue=bias_residual dtype=e4m3",
    "matmul m=300 n=70 k=50 epilogue=bias_swiglu dtype=bf16 w=e4m3",
    "matmul m=300 n=70 k=50 dtype=bf16 y=f32",
    "attention batch=1 q=2048 kv=2048 heads=32 kv_heads=8 head_dim=128 dtype=f16",
    "attention batch=1 q=77 kv=333 heads=6 kv_heads=2 head_dim=80 causal=0 dtype=bf16",
    "attention batch=1 q=512 kv=512 heads=8 kv_heads=8 head_dim=256 dtype=bf16",
    "attention batch=1 q=100 kv=100 heads=4 kv_heads=4 head_dim=96 dtype=f32",
    "decode batch=3 context=4097 heads=32 kv_heads=8 head_dim=128 page=16 lens=mixed dtype=f16",
    "decode batch=1 context=1000 heads=4 kv_heads=4 head_dim=80 dtype=f32",
    "paged_attention tokens=528 batch=17 context=5000 heads=32 kv_heads=8 head_dim=64 lens=chunk dtype=bf16",
    "paged_attention tokens=2048 batch=1 context=2048 heads=32 kv_heads=8 head_dim=128 page=16 dtype=f16",
    "paged_attention tokens=68 batch=4 context=5000 heads=8 kv_heads=1 head_dim=256 dtype=bf16",
    "paged_attention tokens=300 batch=40 context=700 heads=12 kv_heads=2 head_dim=80 page=32 lens=mixed dtype=bf16",
    "paged_attention tokens=40 batch=9 context=333 heads=4 kv_heads=1 head_dim=20 page=7 dtype=f32",
    "rmsnorm rows=33 cols=1003 residual=1 dtype=bf16",
    "layernorm rows=4096 cols=4096 residual=1 dtype=bf16",
    "silu_mul rows=512 cols=8192 dtype=bf16",
    "gelu rows=512 cols=8192 dtype=f16",
    "rope tokens=512 heads=32 head_dim=64 dtype=bf16",
    "softmax rows=32 cols=128256 dtype=f32",
    "sample rows=1 cols=128256 dtype=f32",
    "norm_matmul m=1 n=128256 k=2048 dtype=bf16",
    "norm_matmul m=8 n=1000 k=264 epilogue=bias_swiglu dtype=f16",
    "norm_matmul m=3 n=1000 k=264 epilogue=residual dtype=f32",
    "norm_qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16",
    "norm_qkv m=2 k=264 heads=3 kv_heads=1 head_dim=40 page=5 bias=1 qk_norm=1 dtype=bf16",
    "sample rows=33 cols=151936 top=5 dtype=bf16",
    "matmul m=1 n=8192 k=2048 dtype=bf16 w=int4-g128 layout=quads",
    "matmul m=16 n=1000 k=1024 epilogue=bias_swiglu dtype=f16 w=int4z-g64 layout=quads",
    "matmul m=64 n=8192 k=2048 epilogue=residual dtype=bf16 w=int4-g32 layout=quads",
    "matmul m=5 n=1000 k=896 dtype=bf16 w=int4m-g32 scale=f32 layout=quads",
    "matmul m=3 n=1000 k=896 dtype=bf16 w=int4z-row layout=quads",
    "matmul m=32 n=2048 k=4096 dtype=f16 w=int8-g128 layout=quads",
    "matmul m=1 n=2048 k=4096 dtype=bf16 w=e4m3-b128 layout=quads",
    "matmul m=48 n=2048 k=4096 epilogue=bias dtype=f16 w=e4m3-row layout=quads",
    "qkv m=1 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 w=int4-g128 layout=quads",
    "qkv m=20 k=1024 heads=16 kv_heads=8 head_dim=128 bias=1 qk_norm=1 dtype=bf16 w=int8-row layout=quads",
    "matmul m=4096 n=8192 k=8192 dtype=bf16 x=int8-row w=int8-row",
    "matmul m=512 n=2048 k=8192 epilogue=bias_residual dtype=bf16 x=e4m3-tensor w=e4m3-tensor",
    "matmul m=2048 n=16384 k=2048 epilogue=bias_swiglu dtype=f16 x=e4m3-row w=e4m3-row",
    "matmul m=4096 n=7168 k=16384 dtype=bf16 x=e4m3-g128 w=e4m3-b128",
    "matmul m=300 n=1008 k=1552 epilogue=bias_swiglu dtype=f16 x=e4m3-g128 w=e4m3-b128",
    "qkv m=2048 k=4096 heads=32 kv_heads=8 head_dim=128 bias=1 dtype=bf16 x=int8-row w=int8-row",
    "qkv m=300 k=1024 heads=16 kv_heads=8 head_dim=128 qk_norm=1 dtype=bf16 x=e4m3-row w=e4m3-row",
    "matmul m=512 n=8192 k=2048 epilogue=swiglu dtype=bf16 w=int4-g128 layout=quads",
    "matmul m=2048 n=2048 k=8192 epilogue=residual dtype=f16 w=int4z-g32 layout=quads",
    "matmul m=300 n=1000 k=896 epilogue=bias_swiglu dtype=bf16 w=int4m-g32 scale=f16 layout=quads",
    "matmul m=65 n=1000 k=576 dtype=bf16 w=int8-g16 scale=f32 layout=quads",
    "matmul m=4096 n=8192 k=2048 dtype=bf16 w=int8-row layout=quads",
    "qkv m=512 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 w=int4m-row layout=quads",
    "qkv m=300 k=1024 heads=16 kv_heads=8 head_dim=128 bias=1 qk_norm=1 dtype=f16 w=e4m3-b128 layout=quads",
    "sample rows=3 cols=1003 top=20 dtype=f16",
    "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 dtype=bf16 kv=e4m3",
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
    "matmul m=2048 n=28672 k=4096 epilogue=swiglu dtype=bf16 w=int8-g16 layout=quads",
    "matmul m=300 n=2000 k=576 epilogue=bias_swiglu dtype=f16 w=e4m3-b128 layout=quads",
    "matmul m=128 n=16384 k=2048 epilogue=swiglu dtype=bf16 w=int4m-row layout=quads",
    "norm_matmul m=1 n=16384 k=2048 epilogue=swiglu dtype=bf16 w=int4-g128 layout=quads",
    "norm_matmul m=8 n=1000 k=896 epilogue=bias_residual dtype=f16 w=int4m-g32 scale=f32 layout=quads",
    "norm_matmul m=4 n=28672 k=4096 epilogue=swiglu dtype=bf16 w=int8-row layout=quads",
    "norm_qkv m=2 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 w=int4z-row layout=quads",
    "norm_qkv m=5 k=320 heads=3 kv_heads=1 head_dim=40 page=5 bias=1 qk_norm=1 dtype=bf16 w=e4m3-b128 layout=quads",
];

/// Problems that nothing but the reference takes yet.
const REFERENCES: &[&str] = &[
    "norm_matmul m=8 n=1000 k=264 epilogue=bias_swiglu dtype=f16 w=int4z-g64",
    "norm_qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 w=int8-row",
    "norm_qkv m=2 k=264 heads=3 kv_heads=1 head_dim=40 page=5 bias=1 qk_norm=1 dtype=f32 w=int4m-g32",
];

/// Products of each format of weights, and of each of tokens with those that go with it, with each epilogue and type among them.
fn scaled() -> impl Iterator<Item = Problem> {
    let products = [
        "matmul m=300 n=70 k=50 dtype=bf16",
        "matmul m=300 n=70 k=50 epilogue=bias_residual dtype=f16 scale=f32",
        "matmul m=300 n=70 k=50 epilogue=bias_swiglu dtype=f32 scale=bf16",
        "qkv m=7 k=100 heads=3 kv_heads=1 head_dim=10 bias=1 dtype=bf16 scale=f16",
        "qkv m=7 k=100 heads=3 kv_heads=1 head_dim=10 qk_norm=1 dtype=f16",
    ];
    let pairs =
        XFormat::all().flat_map(|x| ScaledFormat::all().filter(move |w| x.goes_with(w.codes)).map(move |w| (x, w)));
    let of_tokens = pairs.zip(products.into_iter().cycle()).map(|((x, w), p)| format!("{p} x={x} w={w}"));
    let of_weights = ScaledFormat::all().zip(products.into_iter().cycle()).map(|(f, p)| format!("{p} w={f}"));
    of_weights.chain(of_tokens).map(|text| text.parse().unwrap())
}

fn problems() -> Vec<Problem> {
    let model = Model::preset("llama-3.2-1b").unwrap();
    let mut list = Plan::new(&model, &Buckets::of(Target::Cuda), Dtype::Bf16).unwrap().problems();
    list.extend(EXTRA.iter().map(|t| t.parse::<Problem>().unwrap()));
    list.extend(scaled());
    list
}

/// What is compiled, by the hash of its source: a name to say when it fails, and the launch that it is for.
type Sources = BTreeMap<String, (String, Source, Launch)>;

fn sources(arch: &str) -> Sources {
    let library = Library::built_in().unwrap();
    let device = Device::ahead_of_time(arch).unwrap();
    let mut list = BTreeMap::new();
    let mut add = |name: String, source: Source, launch| list.insert(source.hash(), (name, source, launch));
    for dtype in Dtype::ALL {
        let p = Problem::matmul(1, 1, 1).dtype(dtype).build().unwrap();
        add(format!("support {dtype}"), library.support(&p, &device).unwrap(), Launch::default());
    }
    for text in REFERENCES {
        let (p, none) = (text.parse().unwrap(), Config::default());
        let reference = library.reference(&p, &device).unwrap();
        let launch = reference.recipe.launch(&p, &device, &none).unwrap();
        add(format!("reference {p}"), library.render(&reference, &p, &device, &none).unwrap(), launch);
    }
    for p in problems() {
        let (reference, none) = (library.reference(&p, &device).unwrap(), Config::default());
        let launch = reference.recipe.launch(&p, &device, &none).unwrap();
        add(format!("reference {p}"), library.render(&reference, &p, &device, &none).unwrap(), launch);
        for t in library.for_steps(&p, &device).unwrap() {
            let space = space::enumerate(&t.recipe, &p, &device).unwrap();
            if let Some(c) = space.candidates.first() {
                let source = library.render(&t, &p, &device, &c.config).unwrap();
                let launch = t.recipe.launch(&p, &device, &c.config).unwrap();
                add(format!("{} {p} [{}]", t.name(), c.config), source, launch);
            }
        }
    }
    list
}

/// Whether the kernels of a launch take just the arguments that it gives: the driver reads as many as the code says.
fn arguments_agree(cubin: &[u8], launch: &Launch) -> Result<(), String> {
    for k in &launch.kernels {
        let taken = parameters(cubin, &k.entry).ok_or_else(|| format!("no kernel {}", k.entry))?;
        let bytes = |arg: &Arg| match arg {
            Arg::Map(_) => 128,
            Arg::I32(_) | Arg::F32(_) => 4,
            Arg::Tensor(_) | Arg::I64(_) | Arg::Workspace(_) => 8,
        };
        let given: Vec<usize> = k.args.iter().map(bytes).collect();
        if taken != given {
            return Err(format!("{} takes arguments of {taken:?} bytes, and is given {given:?}", k.entry));
        }
    }
    Ok(())
}

/// Bytes of each parameter of a kernel, from the cubin's section on it.
fn parameters(cubin: &[u8], kernel: &str) -> Option<Vec<usize>> {
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(cubin.get(at..at + bytes)?);
        Some(u64::from_le_bytes(word) as usize)
    };
    // An ELF file of 64 bits: section headers of 64 bytes, their names in one of the sections.
    let (table, count, names) = (number(40, 8)?, number(60, 2)?, number(62, 2)?);
    let section =
        |i: usize| Some((number(table + 64 * i, 4)?, number(table + 64 * i + 24, 8)?, number(table + 64 * i + 32, 8)?));
    let (_, names, _) = section(names)?;
    let wanted = format!(".nv.info.{kernel}\0");
    let mut all = (0..count).filter_map(section);
    let (_, mut at, size) = all.find(|(name, ..)| cubin[names + name..].starts_with(wanted.as_bytes()))?;
    let (end, mut sizes) = (at + size, Vec::new());
    while at < end {
        let (format, attribute, value) = (cubin[at], cubin[at + 1], number(at + 2, 2)?);
        // Only this format has bytes after the word, as many as it says.
        const WITH_BYTES: u8 = 4;
        const PARAMETER: u8 = 0x17;
        if (format, attribute) == (WITH_BYTES, PARAMETER) {
            sizes.push((number(at + 8, 2)?, number(at + 12, 4)? >> 18));
        }
        at += 4 + if format == WITH_BYTES { value } else { 0 };
    }
    sizes.sort_unstable();
    Some(sizes.into_iter().map(|(_, size)| size).collect())
}

/// Problems of every op, in shapes that only a portable template takes or that it takes too.
const PORTABLE: &[&str] = &[
    "matmul m=3 n=10 k=7",
    "matmul m=3 n=10 k=7 epilogue=bias_swiglu dtype=f32",
    "matmul m=3 n=10 k=7 dtype=e4m3",
    "matmul m=3 n=10 k=7 epilogue=bias_swiglu dtype=bf16 w=e4m3 y=f32",
    "matmul m=3 n=10 k=7 epilogue=bias_residual dtype=f16 w=f32 y=bf16",
    "matmul m=3 n=10 k=7 dtype=f32 w=bf16 y=f16",
    "matmul m=3 n=10 k=7 dtype=e4m3 w=f16",
    "qkv m=3 k=7 heads=3 kv_heads=1 head_dim=6 page=5 bias=1 qk_norm=1",
    "decode batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5",
    "paged_attention tokens=5 batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5",
    "attention batch=3 q=5 kv=7 heads=4 kv_heads=2 head_dim=36",
    "rmsnorm rows=3 cols=7",
    "layernorm rows=3 cols=20001 residual=1 dtype=f16",
    "softmax rows=3 cols=7",
    "argmax rows=3 cols=7",
    "sample rows=3 cols=7",
    "sample rows=3 cols=1003 top=20 dtype=f32",
    "advance words=13 ids=5 rows=3",
    "embedding tokens=3 vocab=5 hidden=7",
    "rope tokens=3 heads=2 head_dim=6",
    "silu_mul rows=3 cols=7",
    "gelu rows=3 cols=7 dtype=tf32",
    "decode batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5 kv=e4m3",
    "paged_attention tokens=5 batch=3 context=7 heads=4 kv_heads=2 head_dim=36 page=5 dtype=f32 kv=e4m3",
    "rope_kv m=3 heads=3 kv_heads=1 head_dim=6 page=5 qk_norm=1",
    "rope_kv m=3 heads=3 kv_heads=1 head_dim=6 page=5 dtype=f16 kv=e4m3",
];

/// Architectures beside those that a table describes; the portable tier keeps to instructions that they have too.
const LATER: [(&str, u32); 3] = [("sm_100", 100), ("sm_103", 103), ("sm_120", 120)];

#[test]
fn portable_templates_compile_for_every_architecture() {
    if nvrtc::open().is_err() && std::env::var_os("JITUNE_ALLOW_NO_NVRTC").is_some() {
        eprintln!("SKIPPED: NVRTC is not here and JITUNE_ALLOW_NO_NVRTC is set");
        return;
    }
    let library = Library::built_in().unwrap();
    let mut devices = Device::ARCHITECTURES.map(|arch| Device::ahead_of_time(arch).unwrap()).to_vec();
    for (arch, cc) in LATER {
        let device = devices[0].clone();
        devices.push(Device { arch: arch.into(), cc, ..device });
    }
    let pairs: Vec<(&Device, &str)> =
        devices.iter().flat_map(|d| PORTABLE.iter().map(move |text| (d, *text))).collect();
    let one = |(device, text): &(&Device, &str)| {
        let p: Problem = text.parse().unwrap();
        let list = library.taking(&p, device).unwrap();
        let t = list.iter().find(|t| t.recipe.description.portable).unwrap_or_else(|| panic!("{text} has none"));
        let fixed = p.variables().into_iter().filter(|(name, _)| t.recipe.fixes(&p, name)).count();
        assert_eq!(fixed, 0, "{text}: every dimension is an argument");
        let launch = t.recipe.launch(&p, device, &Config::default()).unwrap();
        let source = library.render(t, &p, device, &Config::default()).unwrap();
        match nvrtc::compile(&source) {
            Ok(_) if launch.kernels.is_empty() => Some(format!("{text}: launches nothing")),
            Ok(_) => None,
            Err(e) => Some(format!("{} {text}: {e}", device.arch)),
        }
    };
    let bad: Vec<String> = pairs.par_iter().filter_map(one).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// The candidates that the GPU check plants, which no machine without a GPU runs.
#[test]
fn cheats_for_the_gpu_check_compile() {
    if nvrtc::open().is_err() && std::env::var_os("JITUNE_ALLOW_NO_NVRTC").is_some() {
        eprintln!("SKIPPED: NVRTC is not here and JITUNE_ALLOW_NO_NVRTC is set");
        return;
    }
    let mut library = Library::built_in().unwrap();
    library.add_folder(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu/cheats")).unwrap();
    let p: Problem = "gelu rows=511 cols=4095".parse().unwrap();
    for arch in ["sm_80", "sm_90a"] {
        let device = Device::ahead_of_time(arch).unwrap();
        let t = library.get(Target::Cuda, "gelu").unwrap();
        let space = space::enumerate(&t.recipe, &p, &device).unwrap();
        let cheats = space.candidates.iter().filter(|c| c.config.get("which").is_some_and(|n| n >= 10)).count();
        assert!(cheats >= 20, "{cheats}");
        let one = |c: &space::Candidate| {
            let source = library.render(t, &p, &device, &c.config).unwrap();
            let launch = t.recipe.launch(&p, &device, &c.config).unwrap();
            match nvrtc::compile(&source) {
                Ok((cubin, _)) => arguments_agree(&cubin, &launch).err(),
                Err(e) => Some(format!("{}: {e}", c.config)),
            }
        };
        let bad: Vec<String> = space.candidates.par_iter().filter_map(one).collect();
        assert!(bad.is_empty(), "{arch}: {}", bad.join("\n"));
    }
}

fn check(arch: &str) {
    if let Err(e) = nvrtc::open() {
        assert!(std::env::var_os("JITUNE_ALLOW_NO_NVRTC").is_some(), "{e}");
        eprintln!("SKIPPED: NVRTC is not here and JITUNE_ALLOW_NO_NVRTC is set");
        return;
    }
    let sources = sources(arch);
    let one = |(name, source, launch): &(String, Source, Launch)| match nvrtc::compile(source) {
        Ok((_, info)) if info.spills > 0 => Some(format!("{name}: spills {} bytes", info.spills)),
        Ok((cubin, _)) => arguments_agree(&cubin, launch).err().map(|why| format!("{name}: {why}")),
        Err(e) => Some(format!("{name}: {e}")),
    };
    let bad: Vec<String> = sources.values().collect::<Vec<_>>().par_iter().filter_map(|s| one(s)).collect();
    assert!(bad.is_empty(), "{arch}: {} of {} failed:\n{}", bad.len(), sources.len(), bad.join("\n"));
    assert!(sources.len() > 60, "only {} sources", sources.len());
}

#[test]
fn sm_80() {
    check("sm_80");
}

#[test]
fn sm_86() {
    check("sm_86");
}

#[test]
fn sm_89() {
    check("sm_89");
}

#[test]
fn sm_90a() {
    check("sm_90a");
}
