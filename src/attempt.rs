//! Attempts: candidates of one problem, compiled, checked and timed in this very process, so that a debugger, a profiler
//! or a memory checker sees them. Stores nothing.

use crate::artifact::ArtifactInfo;
use crate::backend::BackendError;
use crate::backend::session::{Session, Setup, Tried};
use crate::bench::{Bench, BenchError, Here};
use crate::problem::Problem;
use crate::recipe::Config;
use crate::space;
use crate::template::{Library, TemplateError};

/// Which candidates, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// This template alone.
    pub template: Option<String>,
    /// This config alone, in every template that is taken.
    pub config: Option<Config>,
    /// Configs of each template, the cheapest by prediction first.
    pub top: usize,
    /// Rounds of timing; 0 only checks.
    pub rounds: u32,
    /// Seed of the inputs.
    pub seed: u64,
}

impl Default for Options {
    /// The predicted best of each template, timed in five rounds.
    fn default() -> Options {
        Options { template: None, config: None, top: 1, rounds: 5, seed: 1 }
    }
}

/// A candidate, and what came of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The template's name.
    pub template: String,
    /// The config.
    pub config: Config,
    /// What the compiler said, and what came of running it.
    pub outcome: Result<(ArtifactInfo, Tried), BackendError>,
}

impl Attempt {
    /// Its median time in microseconds, when it is right: NaN where it was not timed.
    pub fn right_us(&self) -> Option<f64> {
        let (_, tried) = self.outcome.as_ref().ok()?;
        let right = tried.check.wrong.is_none() && tried.doubt.is_none();
        right.then(|| tried.series.as_ref().map_or(f64::NAN, |s| s.median()))
    }
}

/// Tries candidates of a problem on an open session. An error means that nothing more can be tried: a problem that cannot
/// be prepared, a config that is illegal, a candidate that destroyed the session.
pub fn attempts(
    session: &mut dyn Session,
    library: &Library,
    problem: &Problem,
    options: &Options,
) -> Result<Vec<Attempt>, BenchError> {
    let here = Here::new()?;
    let bench = Bench::new(library, &here);
    let device = session.device().clone();
    // One set is enough to check: several, and what else keeps caches cold, may be gigabytes.
    let setup = Setup { single: options.rounds == 0, ..bench.setup(problem, &device, options.seed)? };
    session.prepare(&setup)?;
    let mut list = Vec::new();
    let templates = match &options.template {
        Some(name) => library.taking(problem, &device)?.into_iter().filter(|t| t.name() == name).collect(),
        None => library.for_problem(problem, &device)?,
    };
    for template in templates {
        let recipe = &template.recipe;
        let configs: Vec<Config> = match &options.config {
            Some(config) => {
                let instance = recipe.instance(problem, &device, config).map_err(TemplateError::from)?;
                instance.legal().map_err(|why| TemplateError::from(instance.illegal(&why)))?;
                vec![config.clone()]
            }
            None => {
                let space = space::enumerate(recipe, problem, &device).map_err(TemplateError::from)?;
                space.candidates.into_iter().take(options.top).map(|c| c.config).collect()
            }
        };
        for config in configs {
            let outcome = match bench.runnable(&template, problem, &device, &config) {
                Ok(runnable) => session.attempt(&runnable, options.rounds).map(|tried| (runnable.artifact.info, tried)),
                Err(BenchError::Target(e)) => Err(e),
                Err(e) => return Err(e),
            };
            let outcome = match outcome {
                Err(e) if e.is_fault() => return Err(e.into()),
                other => other,
            };
            list.push(Attempt { template: template.name().into(), config, outcome });
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuSession;
    use crate::problem::{ScaledFormat, XFormat};

    const PORTABLE: &str = "cpu_matmul_portable_quant";
    const CODE: &str = include_str!("../kernel-templates/cpu/cpu_matmul_portable_quant.c");
    const RUN: &str = include_str!("../kernel-templates/cpu/include/portable_quant_run.h");
    const DESCRIPTION: &str = include_str!("../kernel-templates/cpu/cpu_matmul_portable_quant.toml");

    /// What is wrong with what a template makes of a problem.
    fn wrong(library: &Library, template: Option<&str>, problem: &str) -> Option<String> {
        wrong_in(&mut CpuSession::open(Some(2)).unwrap(), library, template, problem)
    }

    fn wrong_in(session: &mut CpuSession, library: &Library, template: Option<&str>, problem: &str) -> Option<String> {
        let options = Options { template: template.map(String::from), rounds: 0, ..Options::default() };
        let tried = attempts(session, library, &problem.parse().unwrap(), &options).unwrap();
        assert!(!tried.is_empty(), "{problem}");
        tried.into_iter().find_map(|a| a.outcome.unwrap().1.check.wrong.map(|why| format!("{}: {why}", a.template)))
    }

    #[test]
    fn the_first_template_of_the_document_is_right() {
        let document = include_str!("../docs/templates.md");
        let block = |kind: &str| {
            let (_, rest) = document.split_once(&format!("\n```{kind}\n")).unwrap();
            rest.split_once("```\n").unwrap().0
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("my_gelu.toml"), block("toml")).unwrap();
        std::fs::write(folder.path().join("my_gelu.c"), block("c")).unwrap();
        let mut library = Library::built_in().unwrap();
        library.add_folder(folder.path()).unwrap();
        assert_eq!(wrong(&library, Some("my_gelu"), "gelu rows=64 cols=4097 dtype=f32"), None);
    }

    #[test]
    fn products_of_every_scaled_format_are_right_by_portable_code() {
        let library = Library::built_in().unwrap();
        let products = [
            "matmul m=3 n=131 k=262 epilogue=bias_residual dtype=bf16",
            "matmul m=5 n=130 k=300 epilogue=bias_swiglu dtype=f32",
            "qkv m=9 k=262 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=9 k=34 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 dtype=f32 | padding=some",
        ];
        for (i, format) in ScaledFormat::all().enumerate() {
            let (head, rest) = products[i % 4].split_once('|').unwrap_or((products[i % 4], ""));
            let scale = ["", " scale=f32", " scale=f16", " scale=bf16"][i / 4 % 4];
            let problem = format!("{head} w={format}{scale} | {rest}");
            assert_eq!(wrong(&library, Some(PORTABLE), &problem), None, "{problem}");
        }
        for (i, format) in ScaledFormat::all().enumerate() {
            let problem = format!("matmul m=3 n=18 k={} dtype=f32 w={format} layout=quads", [256, 384][i % 2]);
            assert_eq!(wrong(&library, Some(PORTABLE), &problem), None, "{problem}");
        }
        for (i, format) in ScaledFormat::all().enumerate() {
            let problem = format!("matmul m=3 n=32 k={} dtype=f32 w={format} layout=lanes", [256, 200][i % 2]);
            assert_eq!(wrong(&library, Some(PORTABLE), &problem), None, "{problem}");
        }
        for types in ["e4m3 w=int4z-g32 y=f32", "f32 w=e4m3-b128 y=bf16", "e4m3 w=e4m3-tensor"] {
            let problem = format!("matmul m=3 n=131 k=262 dtype={types}");
            assert_eq!(wrong(&library, Some(PORTABLE), &problem), None, "{problem}");
        }
    }

    #[test]
    fn tables_of_every_scaled_format_are_read_right() {
        let library = Library::built_in().unwrap();
        for (i, format) in ScaledFormat::all().enumerate() {
            let dtype = ["bf16", "f32", "f16 scale=f32"][i % 3];
            for (hidden, layout) in [(262, "rows"), (384, "quads"), (264, "lanes")] {
                let problem =
                    format!("embedding tokens=9 vocab=144 hidden={hidden} dtype={dtype} w={format} layout={layout}");
                assert_eq!(wrong(&library, Some("cpu_embedding_quant"), &problem), None, "{problem}");
            }
        }
    }

    #[test]
    fn products_of_scaled_tokens_are_right_by_portable_code() {
        let library = Library::built_in().unwrap();
        let products = [
            "matmul m=3 n=131 k=262 epilogue=bias_residual dtype=bf16",
            "matmul m=5 n=130 k=300 epilogue=bias_swiglu dtype=f32",
            "qkv m=9 k=262 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=9 k=34 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 dtype=f32 | padding=some",
        ];
        let pairs =
            XFormat::all().flat_map(|x| ScaledFormat::all().filter(move |w| x.goes_with(w.codes)).map(move |w| (x, w)));
        for (i, (x, w)) in pairs.enumerate() {
            let (head, rest) = products[i % 4].split_once('|').unwrap_or((products[i % 4], ""));
            let problem = format!("{head} x={x} w={w} | {rest}");
            assert_eq!(wrong(&library, Some("cpu_matmul_portable_scaled"), &problem), None, "{problem}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn streams_of_every_scaled_format_are_right() {
        let library = Library::built_in().unwrap();
        let products = [
            "matmul m=1 n=131 k=1030 epilogue=bias_residual dtype=bf16",
            "matmul m=3 n=130 k=256 epilogue=bias_swiglu dtype=f32",
            "qkv m=8 k=262 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=5 k=640 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 dtype=f32 | padding=some",
            "matmul m=1 n=96 k=1024 dtype=f32",
            "matmul m=8 n=97 k=2048 dtype=f32 y=bf16",
            "matmul m=2 n=1 k=2 dtype=f32",
        ];
        for (i, format) in ScaledFormat::all().enumerate() {
            let (head, rest) = products[i % 7].split_once('|').unwrap_or((products[i % 7], ""));
            let scale = ["", " scale=f32", " scale=f16", " scale=bf16"][i / 3 % 4];
            let problem = format!("{head} w={format}{scale} | {rest}");
            assert_eq!(wrong(&library, Some("cpu_gemv_quant"), &problem), None, "{problem}");
        }
        // Rows that are no whole vectors, with one scale each.
        for format in ["int4-row", "int4z-row", "int8-row", "int8-tensor", "e4m3-row"] {
            let problem = format!("matmul m=2 n=3 k=100 dtype=f32 w={format}");
            assert_eq!(wrong(&library, Some("cpu_gemv_quant"), &problem), None, "{problem}");
        }
    }

    /// Attention over codes and what writes them, by every template that takes each, in every type of queries.
    #[test]
    fn caches_of_codes_are_read_and_written_right() {
        let library = Library::built_in().unwrap();
        let mut session = CpuSession::open(Some(2)).unwrap();
        let device = session.device().clone();
        let mut used = std::collections::BTreeSet::new();
        for problem in [
            "decode batch=3 context=700 heads=8 kv_heads=2 head_dim=64 page=64 | lens=mixed",
            "decode batch=2 context=900 heads=9 kv_heads=3 head_dim=40 page=16 | lens=mixed",
            "decode batch=2 context=99 heads=4 kv_heads=4 head_dim=20 page=5 | lens=mixed",
            "decode batch=1 context=1 heads=1 kv_heads=1 head_dim=128",
            "paged_attention tokens=70 batch=4 context=300 heads=8 kv_heads=2 head_dim=64 page=16 | lens=mixed",
            "paged_attention tokens=21 batch=5 context=130 heads=6 kv_heads=2 head_dim=36 page=7 | lens=chunk",
            "rope_kv m=9 heads=8 kv_heads=2 head_dim=64 page=16 | padding=some",
            "rope_kv m=9 heads=3 kv_heads=1 head_dim=22 page=5 qk_norm=1 | padding=some",
            "rope_kv m=1 heads=1 kv_heads=1 head_dim=2 page=1",
        ] {
            let (head, rest) = problem.split_once('|').unwrap_or((problem, ""));
            for dtype in ["f32", "bf16", "f16"] {
                let plain = head.starts_with("rope_kv").then_some("");
                let halves = if dtype == "f32" { &["kv=f16", "kv=bf16"][..] } else { &[] };
                for kv in plain.into_iter().chain(["kv=e4m3"]).chain(halves.iter().copied()) {
                    let text = format!("{head} dtype={dtype} {kv} | {rest}");
                    let taking = library.taking(&text.parse().unwrap(), &device).unwrap();
                    assert!(taking.iter().any(|t| t.recipe.description.portable), "{text}");
                    for name in taking.iter().map(|t| t.name()) {
                        used.insert(name.to_string());
                        assert_eq!(wrong_in(&mut session, &library, Some(name), &text), None, "{text}");
                    }
                }
            }
        }
        assert_eq!(used.len(), 5, "{used:?}");
    }

    /// The scale of another head, that of the keys for the values, a largest code that is read or written as another, a code beside the
    /// nearest.
    #[test]
    fn planted_faults_of_caches_of_codes_are_caught() {
        let header = include_str!("../kernel-templates/cpu/include/cache.h")
            .replace("#include \"e4m3_vectors.h\"\n", include_str!("../kernel-templates/cpu/include/e4m3_vectors.h"));
        let code = |file: &str| format!("{file}\n").replace("#include \"cache.h\"\n", &header);
        let reads = (
            "cpu_attention_portable",
            code(include_str!("../kernel-templates/cpu/cpu_attention_portable.c")),
            include_str!("../kernel-templates/cpu/cpu_attention_portable.toml"),
        );
        let writes = (
            "cpu_rope_kv",
            code(include_str!("../kernel-templates/cpu/cpu_rope_kv.c")),
            include_str!("../kernel-templates/cpu/cpu_rope_kv.toml"),
        );
        let decode = "decode batch=2 context=300 heads=4 kv_heads=2 head_dim=64 kv=e4m3";
        let paged = "paged_attention tokens=9 batch=2 context=300 heads=4 kv_heads=2 head_dim=64 kv=e4m3";
        let rope = "rope_kv m=33 heads=4 kv_heads=2 head_dim=64 kv=e4m3";
        // 448 as 416, the value below it.
        let (largest, below) = ("(vf)((magnitude << 20)", "(vf)(((magnitude + (vu)(magnitude == 126)) << 20)");
        for ((name, code, description), problem, right, fault) in [
            (&reads, decode, "scale *= scales[kv_head];", "scale *= scales[kv_head ^ 1];"),
            (&reads, decode, "scales[kv_heads + kv_head]", "scales[kv_heads + (kv_head ^ 1)]"),
            (&reads, paged, "scales[kv_heads + kv_head]", "scales[kv_head]"),
            (&reads, paged, "scale *= scales[kv_head];", ""),
            (&reads, decode, largest, below),
            (&reads, decode, "float s = 0;", "float s = 0; if (k[row] == 126) s = __builtin_nanf(\"\");"),
            (&writes, rope, "1.0f / scales[h]", "1.0f / scales[h ^ 1]"),
            (&writes, rope, "1.0f / scales[KV_HEADS + h]", "1.0f / scales[h]"),
            (&writes, rope, "splat(448.0f)", "splat(416.0f)"),
            (&writes, rope, "splat(448.0f)", "splat(1e9f)"),
            (&writes, rope, "+ 0x7ffff + ((vu)a >> 20 & 1)", ""),
            (&writes, rope, "+ 0x7ffff + ((vu)a >> 20 & 1)", "+ 0x87fff"),
        ] {
            for dtype in ["bf16", "f32"] {
                let problem = format!("{problem} dtype={dtype}");
                let found = wrongs(name, code, description, &problem, (right, fault));
                assert_eq!([found[0].is_some(), found[1].is_some()], [false, true], "{problem}, {fault}: {found:?}");
            }
        }
    }

    #[test]
    fn tokens_become_codes_right_and_planted_faults_are_caught() {
        let library = Library::built_in().unwrap();
        let header = include_str!("../kernel-templates/cpu/include/e4m3_vectors.h");
        let code = format!("{}\n", include_str!("../kernel-templates/cpu/cpu_quantize.c"));
        let (code, description) = (
            code.replace("#include \"e4m3_vectors.h\"\n", header),
            include_str!("../kernel-templates/cpu/cpu_quantize.toml"),
        );
        for to in ["int8-row", "e4m3-row", "e4m3-g128"] {
            for dtype in ["f32", "bf16", "f16"] {
                for (op, shape) in [
                    ("quantize", "rows=5 cols=300"),
                    ("norm_quantize", "rows=3 cols=131"),
                    ("quantize", "rows=1 cols=1"),
                ] {
                    let problem = format!("{op} {shape} to={to} dtype={dtype}");
                    assert_eq!(wrong(&library, Some("cpu_quantize"), &problem), None, "{problem}");
                }
            }
            for (right, fault) in [
                ("largest / top : 0;", "largest / (1.001f * top) : 0;"),
                ("scales[g] = top", "scales[g] = 1.0001f * top"),
                ("* per;", "* per * 0.99f;"),
                ("squares / cols +", "squares / (cols + 1) +"),
            ] {
                let problem = format!("norm_quantize rows=9 cols=300 to={to} dtype=bf16");
                let found = wrongs("cpu_quantize", &code, description, &problem, (right, fault));
                assert_eq!([found[0].is_some(), found[1].is_some()], [false, true], "{problem}, {fault}: {found:?}");
            }
        }
    }

    /// Whether what a template makes of a problem is right by each way it has to hold x or codes.
    fn assert_each_way(session: &mut CpuSession, library: &Library, template: &str, problem: &str, tunable: &str) {
        let (p, device) = (problem.parse().unwrap(), session.device().clone());
        let recipe = &library.get(device.target, template).unwrap().recipe;
        let mut seen = std::collections::BTreeSet::new();
        for c in space::enumerate(recipe, &p, &device).unwrap().candidates {
            if seen.insert(c.config.0[tunable]) {
                let options = Options {
                    template: Some(template.into()),
                    config: Some(c.config),
                    rounds: 0,
                    ..Options::default()
                };
                for a in attempts(session, library, &p, &options).unwrap() {
                    let wrong = a.outcome.unwrap().1.check.wrong;
                    assert_eq!(wrong, None, "{problem}: {template} {:?}", a.config);
                }
            }
        }
        assert!(!seen.is_empty(), "{problem}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn streams_over_lanes_of_every_format_are_right() {
        let library = Library::built_in().unwrap();
        let mut session = CpuSession::open(Some(2)).unwrap();
        let products = [
            "matmul m=1 n=144 k=1032 epilogue=bias_residual dtype=bf16",
            "matmul m=3 n=160 k=256 epilogue=bias_swiglu dtype=f32",
            "qkv m=8 k=264 heads=3 kv_heads=1 head_dim=16 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=5 k=640 heads=2 kv_heads=1 head_dim=12 page=3 qk_norm=1 dtype=f32 | padding=some",
            "matmul m=8 n=96 k=1024 dtype=f32",
            "matmul m=2 n=16 k=8 dtype=f32",
            "matmul m=7 n=272 k=2056 dtype=f32 y=bf16",
        ];
        for (i, format) in ScaledFormat::all().enumerate() {
            let (head, rest) = products[i % 7].split_once('|').unwrap_or((products[i % 7], ""));
            let scale = ["", " scale=f32", " scale=f16", " scale=bf16"][i / 3 % 4];
            let problem = format!("{head} w={format}{scale} layout=lanes | {rest}");
            assert_each_way(&mut session, &library, "cpu_gemv_lanes", &problem, "bytes");
        }
        // The blocked product reads the same codes.
        for (i, format) in ScaledFormat::all().enumerate() {
            let problem = format!("matmul m=18 n=144 k={} dtype=f32 w={format} layout=lanes", [1032, 304, 512][i % 3]);
            assert_eq!(wrong_in(&mut session, &library, Some("cpu_gemm_quant"), &problem), None, "{problem}");
        }
    }

    /// Largest codes by largest codes among them: sums that saturate at 16 bits, or a 128 that is not taken off, are far off.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn blocked_products_of_codes_by_codes_are_right() {
        let library = Library::built_in().unwrap();
        let mut session = CpuSession::open(Some(2)).unwrap();
        let products = [
            "matmul m=33 n=131 k=1030 epilogue=bias_residual dtype=bf16",
            "matmul m=9 n=130 k=303 epilogue=bias_swiglu dtype=f32",
            "qkv m=19 k=262 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=49 k=640 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 dtype=f32 | padding=some",
            "matmul m=128 n=96 k=4096 dtype=f32",
            "matmul m=1 n=1 k=1 dtype=f32",
        ];
        let formats = || ScaledFormat::all().filter(|f| f.codes == crate::problem::Storage::Int8);
        for (i, format) in formats().enumerate() {
            for product in [products[i % 6], products[(i + 2) % 6]] {
                let (head, rest) = product.split_once('|').unwrap_or((product, ""));
                let scale = ["", " scale=f32", " scale=f16", " scale=bf16"][i % 4];
                let problem = format!("{head} x=int8-row w={format}{scale} | {rest}");
                assert_eq!(wrong_in(&mut session, &library, Some("cpu_gemm_w8a8"), &problem), None, "{problem}");
            }
            let problem = format!("matmul m=30 n=144 k=2068 dtype=f32 x=int8-row w={format} layout=lanes");
            assert_each_way(&mut session, &library, "cpu_gemm_w8a8", &problem, "nv");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn blocked_products_of_every_scaled_format_are_right() {
        let library = Library::built_in().unwrap();
        let mut session = CpuSession::open(Some(2)).unwrap();
        let products = [
            "matmul m=33 n=131 k=1030 epilogue=bias_residual dtype=bf16",
            "matmul m=9 n=130 k=300 epilogue=bias_swiglu dtype=f32",
            "qkv m=19 k=262 heads=3 kv_heads=1 head_dim=10 page=3 bias=1 dtype=f16 | padding=some",
            "qkv m=49 k=640 heads=2 kv_heads=2 head_dim=10 page=3 qk_norm=1 dtype=f32 | padding=some",
            "matmul m=128 n=96 k=1024 dtype=f32",
            "matmul m=4 n=1 k=2 dtype=f32",
        ];
        for (i, format) in ScaledFormat::all().enumerate() {
            let (head, rest) = products[i % 6].split_once('|').unwrap_or((products[i % 6], ""));
            let scale = ["", " scale=f32", " scale=f16", " scale=bf16"][i / 3 % 4];
            let problem = format!("{head} w={format}{scale} | {rest}");
            assert_eq!(wrong_in(&mut session, &library, Some("cpu_gemm_quant"), &problem), None, "{problem}");
        }
        for format in ScaledFormat::all() {
            let problem = format!("matmul m=17 n=35 k=298 dtype=f32 w={format}");
            assert_eq!(wrong_in(&mut session, &library, Some("cpu_gemm_quant"), &problem), None, "{problem}");
        }
    }

    /// The code with the sum over a run in it, where faults are planted.
    fn with_run(code: &str) -> String {
        code.replace("#include \"portable_quant_run.h\"\n", RUN)
    }

    /// Whether what a template makes of a problem is wrong as it is, and once its code is changed so.
    fn with_fault(name: &str, code: &str, description: &str, problem: &str, fault: (&str, &str)) -> [bool; 2] {
        wrongs(name, code, description, problem, fault).map(|why| why.is_some_and(|why| why.contains("error")))
    }

    /// What is wrong with it as it is, and once its code is changed so.
    fn wrongs(
        name: &str,
        code: &str,
        description: &str,
        problem: &str,
        (right, fault): (&str, &str),
    ) -> [Option<String>; 2] {
        let folder = tempfile::tempdir().unwrap();
        let planted = code.replacen(right, fault, 1);
        assert_ne!(planted, code, "{right}");
        [code, &planted].map(|code| {
            std::fs::write(folder.path().join(format!("{name}.c")), code).unwrap();
            std::fs::write(folder.path().join(format!("{name}.toml")), description).unwrap();
            let mut library = Library::built_in().unwrap();
            library.add_folder(folder.path()).unwrap();
            wrong(&library, Some(name), problem)
        })
    }

    /// Of products of codes by codes: another token's scale, or another group's; sums of integers that end at 16 bits; a largest code
    /// of E4M3 that is read as the one below.
    #[test]
    fn planted_faults_of_scaled_tokens_are_caught() {
        let name = "cpu_matmul_portable_scaled";
        let code = with_run(include_str!("../kernel-templates/cpu/cpu_matmul_portable_scaled.c"));
        let description = include_str!("../kernel-templates/cpu/cpu_matmul_portable_scaled.toml");
        for (formats, right, fault) in [
            ("x=int8-row w=int8-row", "return x_scales + row;", "return x_scales + (row ^ 1);"),
            ("x=e4m3-row w=e4m3-row", "return x_scales + row;", "return x_scales + (row ^ 1);"),
            ("x=e4m3-g128 w=e4m3-b128", "x_scales[at / x_run]", "x_scales[at / x_run == 9 ? 10 : at / x_run]"),
            (
                "x=int8-row w=int8-row",
                "xs[l] += v;",
                "xs[l] += v, sum[l] = __builtin_fmaxf(-32768, __builtin_fminf(sum[l], 32767));",
            ),
            (
                "x=e4m3-tensor w=e4m3-tensor",
                "float v = get_x(x + i + l);",
                "float v = get_x(x + i + l); v = v == 448 ? 416 : v;",
            ),
        ] {
            let problem = format!("matmul m=2 n=64 k=8192 dtype=bf16 {formats}");
            let found = with_fault(name, &code, description, &problem, (right, fault));
            assert_eq!(found, [false, true], "{fault}");
        }
    }

    /// The smallest faults that code for such weights may have are no rounding, even in bf16: one group of 256 of a row, or one byte.
    #[test]
    fn planted_faults_of_scaled_weights_are_caught() {
        for (format, right, fault) in [
            (
                "int4-g32",
                "worth_of(scales, zeros, row, r, runs)",
                "worth_of(scales, zeros, row, r == 9 ? 10 : r, runs)",
            ),
            (
                "int8-g32",
                "worth_of(scales, zeros, row, r, runs)",
                "worth_of(scales, zeros, row, r == 9 ? 10 : r, runs)",
            ),
            ("int4m-g32", "sum_x * v.min", "sum_x * (r == 9 ? worth_of(scales, zeros, row, 10, runs).min : v.min)"),
            (
                "int4-g32",
                "int code = from[i / 2];",
                "int code = from[i / 2]; code = (at + i) % 8192 ? code : code >> 4 | code << 4 & 0xf0;",
            ),
            ("int4z-g32", "v.zero, &sum_x", "v.zero + (r == 9), &sum_x"),
        ] {
            for epilogue in ["none", "swiglu"] {
                let problem = format!("matmul m=2 n=64 k=8192 epilogue={epilogue} dtype=bf16 w={format}");
                let found = with_fault(PORTABLE, &with_run(CODE), DESCRIPTION, &problem, (right, fault));
                assert_eq!(found, [false, true], "{epilogue}: {fault}");
            }
        }
    }
}
