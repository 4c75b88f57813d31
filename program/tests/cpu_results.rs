//! The processor's templates compute what their ops say, in shapes that no plan of a model has: odd sizes, every epilogue,
//! normed heads, rows that pad, another ε; and the portable templates wherever others take the problem too.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};

/// Whether `jitune try` finds what the templates write right; of one template where one is named.
fn right(problem: &str, dtype: &str, template: Option<&str>) -> Result<(), String> {
    right_in(problem, dtype, template, None)
}

/// The same of one config where one is given.
fn right_in(problem: &str, dtype: &str, template: Option<&str>, config: Option<&str>) -> Result<(), String> {
    let place = Place::new();
    let (head, rest) = problem.split_once('|').unwrap_or((problem, ""));
    let problem = format!("{head} dtype={dtype} | {rest}");
    let mut args = vec!["try", &problem, "--target", "cpu", "--threads", "2", "--rounds", "0"];
    args.extend(template.map_or(vec![], |name| vec!["--template", name]));
    args.extend(config.map_or(vec![], |config| vec!["--config", config]));
    let out = place.jitune(&args).output().unwrap();
    let said = text(&out);
    if out.status.success() && said.contains("right") { Ok(()) } else { Err(format!("{problem}: {said}")) }
}

#[test]
fn products_are_right_with_every_epilogue() {
    for (problem, dtype) in [
        ("matmul m=40 n=202 k=128 epilogue=bias_swiglu", "f32"),
        ("matmul m=3 n=202 k=77 epilogue=bias_swiglu", "bf16"),
        ("matmul m=7 n=201 k=77 epilogue=bias_residual", "f16"),
        ("qkv m=12 k=100 heads=4 kv_heads=2 head_dim=32 bias=1 | padding=some", "f32"),
        ("qkv m=12 k=100 heads=4 kv_heads=2 head_dim=20 qk_norm=1 | padding=some", "f32"),
        ("qkv m=40 k=128 heads=4 kv_heads=2 head_dim=64 bias=1 qk_norm=1 | padding=some eps=2e-3", "bf16"),
    ] {
        right(problem, dtype, None).unwrap();
    }
}

#[test]
fn norms_take_their_epsilon() {
    for problem in ["rmsnorm rows=3 cols=101 residual=1", "layernorm rows=3 cols=101"] {
        for eps in ["0e0", "1e-6", "1e-3"] {
            right(&format!("{problem} | eps={eps}"), "f32", None).unwrap();
        }
    }
}

#[test]
fn portable_templates_are_right() {
    for (problem, template) in [
        ("matmul m=5 n=70 k=37 epilogue=bias_swiglu", "cpu_matmul_portable"),
        ("matmul m=3 n=131 k=64 epilogue=bias_residual", "cpu_matmul_portable"),
        ("qkv m=9 k=33 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 | padding=some", "cpu_matmul_portable"),
        ("qkv m=9 k=33 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 | padding=some", "cpu_matmul_portable"),
        ("decode batch=3 context=77 heads=6 kv_heads=2 head_dim=36 page=5 | lens=mixed", "cpu_attention_portable"),
        // Fewer pages than the table has entries: sequences share them.
        (
            "decode batch=3 context=77 heads=6 kv_heads=2 head_dim=36 page=5 | lens=mixed pages=7",
            "cpu_attention_portable",
        ),
        (
            "paged_attention tokens=40 batch=3 context=77 heads=4 kv_heads=2 head_dim=20 page=7 | lens=mixed",
            "cpu_attention_portable",
        ),
        ("attention batch=2 q=17 kv=33 heads=4 kv_heads=2 head_dim=36", "cpu_attention_portable"),
        ("attention batch=1 q=9 kv=5 heads=2 kv_heads=1 head_dim=8", "cpu_attention_portable"),
        ("attention batch=1 q=5 kv=9 heads=2 kv_heads=1 head_dim=8 causal=0", "cpu_attention_portable"),
        ("rmsnorm rows=3 cols=20001 residual=1", "cpu_rows_portable"),
        ("layernorm rows=3 cols=77 residual=1 | eps=2e-3", "cpu_rows_portable"),
        ("softmax rows=3 cols=7", "cpu_rows_portable"),
        ("argmax rows=3 cols=70", "cpu_rows_portable"),
        ("sample rows=20 cols=70 top=3", "cpu_sample_portable"),
        ("advance words=300 ids=40 rows=7", "cpu_advance"),
        ("embedding tokens=3 vocab=5 hidden=7", "cpu_rows_portable"),
        ("rope tokens=3 heads=2 head_dim=6", "cpu_rows_portable"),
        ("silu_mul rows=3 cols=7", "cpu_rows_portable"),
        ("gelu rows=3 cols=77", "cpu_rows_portable"),
    ] {
        for dtype in ["f32", "bf16"] {
            right(problem, dtype, Some(template)).unwrap();
        }
    }
}

/// Short and long rows, one and many, of each type.
#[test]
fn tokens_are_right() {
    for (problem, dtype) in [
        ("sample rows=1 cols=7 top=5", "bf16"),
        ("sample rows=64 cols=97", "f16"),
        ("sample rows=64 cols=49152 top=5", "bf16"),
        ("sample rows=3 cols=128256 top=5", "f32"),
        ("sample rows=1 cols=128256 | settings=nucleus", "f16"),
    ] {
        right(problem, dtype, None).unwrap();
    }
}

#[test]
fn products_of_tensors_of_several_types_are_right() {
    for problem in ["matmul m=5 n=70 k=37 epilogue=bias_swiglu", "matmul m=3 n=131 k=64 epilogue=bias_residual"] {
        for types in ["e4m3", "bf16 y=f32", "bf16 w=e4m3", "f16 w=f32 y=bf16", "f32 w=f16", "e4m3 w=bf16 y=f16"] {
            right(problem, types, None).unwrap();
        }
    }
}

/// Both shapes of a block, blocks of K that end in the middle of a tile, rows and tokens that fill none, every number of parts.
#[test]
fn products_in_tiles_are_right() {
    if !jitune::backend::cpu::describe(None).has_tiles() {
        eprintln!("skipped: this processor has no tiles of AMX");
        return;
    }
    let blocks = ["xt=2 kc=128 panels=2 groups=2", "xt=1 kc=512 panels=1 groups=1"];
    for config in blocks {
        for dtype in ["f32", "f16", "bf16"] {
            let dense = |problem: &str| right_in(problem, dtype, Some("cpu_gemm_tiles"), Some(config)).unwrap();
            dense("matmul m=70 n=202 k=300 epilogue=bias_swiglu");
            dense("qkv m=12 k=100 heads=4 kv_heads=2 head_dim=20 bias=1 qk_norm=1 | padding=some");
        }
        for (types, problem) in [
            ("f32 w=int4-g32 layout=lanes", "matmul m=70 n=208 k=264 epilogue=bias_swiglu"),
            ("f32 w=int4m-g64 layout=lanes", "qkv m=12 k=264 heads=4 kv_heads=2 head_dim=32 bias=1 | padding=some"),
            ("bf16 w=int4z-g128 layout=lanes", "matmul m=7 n=80 k=1000 epilogue=bias_residual"),
            ("f16 w=int8-row layout=lanes", "matmul m=33 n=48 k=300"),
            ("f32 w=int8-g32 layout=lanes", "matmul m=70 n=208 k=1000 epilogue=residual"),
        ] {
            right_in(problem, types, Some("cpu_gemm_quant_tiles"), Some(config)).unwrap();
        }
        for (types, problem) in [
            ("f32 x=int8-row w=int8-row layout=lanes", "matmul m=70 n=208 k=300 epilogue=bias_swiglu"),
            ("bf16 x=int8-row w=int8-g128 layout=lanes", "matmul m=7 n=80 k=1000 epilogue=bias_residual"),
            (
                "f32 x=int8-row w=int8-tensor layout=lanes",
                "qkv m=12 k=100 heads=4 kv_heads=2 head_dim=32 | padding=some",
            ),
        ] {
            right_in(problem, types, Some("cpu_gemm_w8a8_tiles"), Some(config)).unwrap();
        }
    }
    for (types, tokens) in [
        ("f32 w=int4-g32", 8),
        ("f32 w=int4z-g128", 1),
        ("bf16 w=int4m-g64", 8),
        ("f16 w=int4-row", 4),
        ("f32 w=int8-g16", 2),
        ("bf16 w=int8-g32", 4),
    ] {
        for (m, k) in [(tokens, 1000), (tokens - tokens / 3, 264)] {
            let config = format!("t={} rows=32 prefetch=8192 bytes=1 tiles=1", if m == tokens { m } else { 1 });
            let problem = format!("matmul m={m} n=80 k={k} epilogue=bias_residual");
            right_in(&problem, &format!("{types} layout=lanes"), Some("cpu_gemv_lanes"), Some(&config)).unwrap();
        }
    }
}
