//! The forward passes of a model: one program for each phase and bucket.

use super::precision::{Precision, SCALES, ZEROS};
use super::{Buckets, Model, ModelError, Phase};
use crate::problem::{Problem, ProblemError, Zero};
use crate::program::Life::{Activation, Metadata, State, Weight};
use crate::program::{Life, Program};
use std::collections::HashMap;

/// One forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// What it is over. Its bucket is named by the tokens: sequences of a decode step, tokens of a prompt or of a part of one.
    pub shape: Shape,
    /// What it runs.
    pub program: Program,
}

impl Pass {
    /// All passes of `model` for `buckets` in `precision`, over one cache that holds the largest of them. A size that is named
    /// twice is one bucket.
    ///
    /// The residual adds are fused into the products that produce the branch (o and down), so the norms stand alone.
    pub fn all(model: &Model, buckets: &Buckets, precision: impl Into<Precision>) -> Result<Vec<Pass>, ModelError> {
        buckets.check(model)?;
        let precision = precision.into();
        let pages = |tokens: i64| (tokens - 1) / buckets.page + 1;
        let decode = buckets.batch.iter().map(|b| b.saturating_mul(pages(buckets.context)));
        let most = decode.fold(pages(buckets.longest()), i64::max);
        let cache =
            Cache { page: buckets.page, pages: most, max_pages: pages(buckets.longest()), max_pos: buckets.longest() };
        let mut passes = Vec::new();
        let shapes = (buckets.batch.iter().map(|b| Shape::decode(*b, buckets.context)))
            .chain(buckets.prefill.iter().map(|t| Shape::prompt(*t)))
            .chain(buckets.chunk.iter().map(|t| Shape::chunk(*t, 1, buckets.context)));
        let mut known = Vec::new();
        for shape in shapes {
            if !known.contains(&shape) {
                known.push(shape);
                passes.push(Pass::of(model, shape, cache, &precision)?);
            }
        }
        Ok(passes)
    }

    /// The pass of a shape.
    pub fn of(model: &Model, shape: Shape, cache: Cache, precision: impl Into<Precision>) -> Result<Pass, ModelError> {
        Ok(Pass { shape, program: program(model, shape, cache, &precision.into())? })
    }
}

/// What a pass is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Part of inference. A decode step has one token of each sequence, the others any number.
    pub phase: Phase,
    /// Tokens of all sequences: rows of the activations.
    pub tokens: i64,
    /// Sequences that the tokens belong to.
    pub sequences: i64,
    /// The most tokens that a sequence sees, those of the pass included.
    pub context: i64,
    /// Tokens that get logits, `last_rows` of all. With none the pass ends as soon as the cache holds its tokens.
    pub logits: i64,
    /// What follows from logits.
    pub tail: Tail,
}

/// How a pass chooses tokens by their logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tail {
    /// The most likely one.
    Argmax,
    /// By settings of each row, with log-probabilities of the chosen and of so many of the most likely ones.
    Sample {
        /// How many.
        top: i64,
    },
}

impl Shape {
    /// A step of so many sequences.
    pub fn decode(batch: i64, context: i64) -> Shape {
        let (phase, tail) = (Phase::Decode, Tail::Argmax);
        Shape { phase, tokens: batch, sequences: batch, context, logits: batch, tail }
    }

    /// A whole prompt; its last token gets logits.
    pub fn prompt(tokens: i64) -> Shape {
        Shape { phase: Phase::Prefill, ..Shape::chunk(tokens, 1, tokens) }
    }

    /// Parts of the prompts of so many sequences, over what the cache holds of them; the last token of each gets logits.
    pub fn chunk(tokens: i64, sequences: i64, context: i64) -> Shape {
        let (phase, context, tail) = (Phase::Chunk, context.max(tokens), Tail::Argmax);
        Shape { phase, tokens, sequences, context, logits: sequences, tail }
    }
}

/// The cache that all passes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Tokens of a page.
    pub page: i64,
    /// Pages of all sequences together.
    pub pages: i64,
    /// Entries of a row of the block table: pages of the longest sequence.
    pub max_pages: i64,
    /// Positions in the table of RoPE's cosines and sines.
    pub max_pos: i64,
}

/// A weight as its products take it: its codes, then what makes values of them.
fn scaled(precision: &Precision, name: &str) -> Vec<(Life, String)> {
    let zero = precision.format(name).map(|f| f.format.zero);
    let scales = zero.map(|_| format!("{name}{SCALES}"));
    let zeros = zero.filter(|zero| *zero != Zero::None).map(|_| format!("{name}{ZEROS}"));
    [Some(name.to_string()), scales, zeros].into_iter().flatten().map(|name| (Weight, name)).collect()
}

fn program(m: &Model, shape: Shape, cache: Cache, precision: &Precision) -> Result<Program, ModelError> {
    let Shape { phase, tokens: rows, sequences, context, logits, tail } = shape;
    let mut program = Program::default();
    // Layers are alike: each text is read once.
    let mut read: HashMap<String, Problem> = HashMap::new();
    let mut step = |role: &str, text: String, names: Vec<(Life, String)>| -> Result<(), ProblemError> {
        let problem = match read.get(&text) {
            Some(known) => *known,
            None => {
                let problem = text.parse()?;
                read.insert(text, problem);
                problem
            }
        };
        program.step(role, problem, &names);
        Ok(())
    };
    let (h, hk, d, hidden, inter, vocab) = (m.heads, m.kv_heads, m.head_dim, m.hidden, m.intermediate, m.vocab);
    let (bias, qk_norm, eps) = (i64::from(m.qkv_bias), i64::from(m.qk_norm), m.rms_norm_eps);
    let Cache { page, pages, max_pages, max_pos } = cache;
    let dtype = precision.dtype;
    let of_heads = format!("heads={h} kv_heads={hk} head_dim={d} page={page}");
    let norm = |rows: i64| format!("rmsnorm rows={rows} cols={hidden} eps={eps:e} dtype={dtype}");
    // The norm before the product over a weight, which may take codes.
    let norm_for = |weight: &str| match precision.tokens(weight) {
        None => norm(rows),
        Some(to) => format!("norm_quantize rows={rows} cols={hidden} to={to} eps={eps:e} dtype={dtype}"),
    };
    // What it takes: an activation, and of codes their scales.
    let tokens = |name: &str, weight: &str| {
        let scales = precision.tokens(weight).map(|_| (Activation, format!("{name}{SCALES}")));
        std::iter::once((Activation, name.to_string())).chain(scales).collect::<Vec<_>>()
    };
    // Of a weight [n, k] and its biases, [biased, added to the residual stream].
    let product = |weight: &str, rows: i64, [n, k]: [i64; 2], [biased, added]: [bool; 2]| {
        let epilogue = match (biased, added) {
            (false, false) => "none",
            (true, false) => "bias",
            (false, true) => "residual",
            (true, true) => "bias_residual",
        };
        format!("matmul m={rows} n={n} k={k} epilogue={epilogue} dtype={}", precision.types(weight, [n, k]))
    };
    let one = |life: Life, name: &str| vec![(life, name.to_string())];
    // The step that makes an activation of that width codes, where the product over a weight takes some, and what it takes.
    let quantized = |name: &str, weight: &str, cols: i64| match precision.tokens(weight) {
        None => (None, one(Activation, name)),
        Some(to) => {
            let codes = tokens(&format!("{name}.codes"), weight);
            let text = format!("quantize rows={rows} cols={cols} to={to} dtype={dtype}");
            (Some((text, [one(Activation, name), codes.clone()].concat())), codes)
        }
    };
    let weight = |name: &str| scaled(precision, name);
    let when = |on: bool, name: &str| if on { one(Weight, name) } else { Vec::new() };
    let attention = match phase {
        // A prompt's keys are where its QKV step wrote them: in the pages of the cache.
        Phase::Prefill | Phase::Chunk => {
            format!("paged_attention tokens={rows} batch={sequences} context={context}")
        }
        Phase::Decode => format!("decode batch={rows} context={context}"),
    };
    // The residual stream has a name of its own after each step that adds to it.
    let mut stream = "embedded".to_string();
    let table = "embed_tokens";
    step(
        "embedding",
        format!(
            "embedding tokens={rows} vocab={vocab} hidden={hidden} dtype={}",
            precision.types(table, [vocab, hidden])
        ),
        [one(Metadata, "ids"), weight(table), one(Activation, &stream)].concat(),
    )?;
    for layer in 0..m.layers {
        let at = |name: &str| format!("layers.{layer}.{name}");
        let normed = at("attention_input");
        let of_norm = |from: &str, weight: &str, to: Vec<(Life, String)>| {
            [one(Activation, from), one(Weight, weight), to].concat()
        };
        let w = at("qkv");
        step("norm", norm_for(&w), of_norm(&stream, &at("input_norm"), tokens(&normed, &w)))?;
        let (q, k_cache, v_cache) = (at("q"), at("k_cache"), at("v_cache"));
        let of_cache = precision.types_of_cache();
        let scales = when(of_cache.has_codes_of_caches(), &at("kv_scales"));
        let caches = [one(State, &k_cache), one(State, &v_cache)].concat();
        let shape = [(h + 2 * hk) * d, hidden];
        let operands = [tokens(&normed, &w), weight(&w), when(m.qkv_bias, &at("qkv_bias"))].concat();
        let rest = [
            when(m.qk_norm, &at("q_norm")),
            when(m.qk_norm, &at("k_norm")),
            ["positions", "slots"].map(|name| (Metadata, name.to_string())).to_vec(),
            one(Weight, "rope"),
        ];
        let written = [one(Activation, &q), caches.clone()].concat();
        let of_rows = format!("qk_norm={qk_norm} pages={pages} max_pos={max_pos} eps={eps:e}");
        match of_cache.kv {
            None => {
                let types = precision.types(&w, shape);
                let text = format!("qkv m={rows} k={hidden} {of_heads} bias={bias} {of_rows} dtype={types}");
                step("qkv", text, [operands, rest.concat(), written].concat())?;
            }
            Some(_) => {
                let projected = one(Activation, &at("projected"));
                let text = product(&w, rows, shape, [m.qkv_bias, false]);
                step("qkv", text, [operands, projected.clone()].concat())?;
                let text = format!("rope_kv m={rows} {of_heads} {of_rows} dtype={of_cache}");
                step("rope_kv", text, [projected, rest.concat(), scales.clone(), written].concat())?;
            }
        }
        if logits == 0 && layer + 1 == m.layers {
            return Ok(program);
        }
        let attended = at("attended");
        let starts = if phase == Phase::Decode { Vec::new() } else { one(Metadata, "q_starts") };
        let names = [
            one(Activation, &q),
            caches,
            scales,
            one(Metadata, "block_table"),
            starts,
            one(Metadata, "kv_lens"),
            one(Activation, &attended),
        ];
        let types = precision.types_of_cache();
        let text = format!("{attention} {of_heads} pages={pages} max_pages={max_pages} dtype={types}");
        step("attention", text, names.concat())?;

        let (w, out) = (at("o"), at("after_attention"));
        let (before, operand) = quantized(&attended, &w, h * d);
        if let Some((text, names)) = before {
            step("quantize", text, names)?;
        }
        let names =
            [operand, weight(&w), when(m.o_bias, &at("o_bias")), one(Activation, &stream), one(Activation, &out)];
        step("o", product(&w, rows, [hidden, h * d], [m.o_bias, true]), names.concat())?;
        stream = out;
        let (normed, gated, w) = (at("mlp_input"), at("gated"), at("gate_up"));
        step("norm", norm_for(&w), of_norm(&stream, &at("post_attention_norm"), tokens(&normed, &w)))?;
        let names = [tokens(&normed, &w), weight(&w), when(m.mlp_bias, &at("gate_up_bias")), one(Activation, &gated)];
        let swiglu = if m.mlp_bias { "bias_swiglu" } else { "swiglu" };
        let text = format!(
            "matmul m={rows} n={} k={hidden} epilogue={swiglu} dtype={}",
            2 * inter,
            precision.types(&w, [2 * inter, hidden])
        );
        step("gate_up", text, names.concat())?;
        let (w, out) = (at("down"), at("after_mlp"));
        let (before, operand) = quantized(&gated, &w, inter);
        if let Some((text, names)) = before {
            step("quantize", text, names)?;
        }
        let names =
            [operand, weight(&w), when(m.mlp_bias, &at("down_bias")), one(Activation, &stream), one(Activation, &out)];
        step("down", product(&w, rows, [hidden, inter], [m.mlp_bias, true]), names.concat())?;
        stream = out;
    }
    let last = logits;
    if phase != Phase::Decode && last != rows {
        // A gather of rows, whatever they are rows of.
        let text = format!("embedding tokens={last} vocab={rows} hidden={hidden} dtype={dtype}");
        let names = [one(Metadata, "last_rows"), one(Activation, &stream), one(Activation, "last")];
        step("last_rows", text, names.concat())?;
        stream = "last".into();
    }
    let names = [one(Activation, &stream), one(Weight, "norm"), one(Activation, "head_input")];
    step("norm", norm(last), names.concat())?;
    let head = if m.tie_word_embeddings { table } else { "lm_head" };
    let names = [one(Activation, "head_input"), weight(head), one(Activation, "logits")];
    step("lm_head", product(head, last, [vocab, hidden], [false, false]), names.concat())?;
    let (metadata, activations) = match tail {
        Tail::Argmax => (vec![], vec!["tokens"]),
        Tail::Sample { top: 0 } => (vec!["settings", "top_k", "seen"], vec!["tokens", "logprobs"]),
        Tail::Sample { .. } => (vec!["settings", "top_k", "seen"], vec!["tokens", "logprobs", "likely"]),
    };
    let all = |life: Life, names: Vec<&str>| names.into_iter().map(|name| (life, name.to_string())).collect();
    let names = [one(Activation, "logits"), all(Metadata, metadata), all(Activation, activations)].concat();
    match tail {
        Tail::Argmax => step("argmax", format!("argmax rows={last} cols={vocab} dtype={dtype}"), names)?,
        Tail::Sample { top } => {
            step("sample", format!("sample rows={last} cols={vocab} top={top} dtype={dtype}"), names)?;
        }
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Dtype, Layout, Storage};
    use crate::program::ProgramError;

    fn passes(model: &Model) -> Vec<Pass> {
        let buckets = match model.sliding_window {
            Some(window) => Buckets { prefill: vec![1, window.min(512)], chunk: vec![64], ..Buckets::default() },
            None => Buckets { prefill: vec![1, 512, 8192], chunk: vec![64, 8192], ..Buckets::default() },
        };
        Pass::all(model, &buckets, Dtype::Bf16).unwrap()
    }

    fn tiny(name: &str) -> Model {
        Model { layers: 2, ..Model::preset(name).unwrap() }
    }

    #[test]
    fn every_program_of_every_preset_chains() {
        for name in Model::presets() {
            let model = Model::preset(name).unwrap();
            for pass in passes(&model) {
                let said = pass.program.check();
                assert_eq!(said, Ok(()), "{name}, {} {}", pass.shape.phase.name(), pass.shape.tokens);
            }
        }
        let all = Model { qkv_bias: true, o_bias: true, mlp_bias: true, qk_norm: true, ..tiny("llama-3.2-1b") };
        passes(&all).iter().for_each(|p| p.program.check().unwrap());
    }

    #[test]
    fn weights_are_the_parameters() {
        for name in Model::presets() {
            let model = Model::preset(name).unwrap();
            let program = &passes(&model)[0].program;
            let weights = program.tensors.iter().filter(|t| t.life == Weight && t.name != "rope");
            let elements: u64 = weights.map(|t| t.shape.iter().product::<u64>()).sum();
            assert_eq!(elements, model.parameters(), "{name}");
        }
    }

    /// With codes the cache is half of what it was, each layer has their scales, and norms still find their products.
    #[test]
    fn a_cache_of_codes_is_written_behind_a_product_of_its_own() {
        let all = Model { qkv_bias: true, qk_norm: true, ..tiny("llama-3.2-1b") };
        let buckets = Buckets { batch: vec![2], prefill: vec![8], chunk: vec![4], ..Buckets::default() };
        for model in [all, tiny("llama-3.2-1b"), tiny("qwen3-0.6b"), tiny("qwen2.5-0.5b")] {
            let codes = Precision::from(Dtype::Bf16).with_cache(Some(Storage::E4m3));
            let plain = Pass::all(&model, &buckets, Dtype::Bf16).unwrap();
            for (pass, plain) in Pass::all(&model, &buckets, codes).unwrap().iter().zip(&plain) {
                pass.program.check().unwrap();
                let bytes = |p: &Program| p.tensors.iter().filter(|t| t.life == State).map(|t| t.bytes()).sum::<u64>();
                assert_eq!(2 * bytes(&pass.program), bytes(&plain.program));
                assert_eq!(pass.program.steps.len(), plain.program.steps.len() + 2);
                let scales = pass.program.tensor("layers.1.kv_scales").map(|at| &pass.program.tensors[at]).unwrap();
                let wanted = (Weight, Storage::F32, vec![2, model.kv_heads.unsigned_abs()]);
                assert_eq!((scales.life, scales.storage, scales.shape.clone()), wanted);
            }
        }
    }

    /// What is said of the first pass of a kind after something was broken in it.
    fn broken(phase: Phase, change: impl Fn(&mut Program)) -> ProgramError {
        let pass = passes(&tiny("qwen3-0.6b")).into_iter().find(|p| p.shape.phase == phase && p.shape.tokens > 1);
        let mut program = pass.unwrap().program;
        program.check().unwrap();
        change(&mut program);
        program.check().unwrap_err()
    }

    #[test]
    fn what_does_not_chain_is_said() {
        let at = |p: &Program, role: &str| p.steps.iter().position(|s| s.role == role).unwrap();
        let named = |p: &Program, name: &str| p.tensor(name).unwrap();
        type Change<'a> = Box<dyn Fn(&mut Program) + 'a>;
        let cases: Vec<(&str, Change)> = vec![
            ("read before any step writes it", Box::new(|p| drop(p.steps.remove(at(p, "qkv"))))),
            (
                "spare is used by no step",
                Box::new(|p| {
                    let spare = p.tensors[named(p, "norm")].clone();
                    p.tensors.push(crate::program::Named { name: "spare".into(), ..spare });
                }),
            ),
            (
                "written a second time",
                Box::new(|p| {
                    let again = p.steps[at(p, "gate_up")].clone();
                    p.steps.insert(at(p, "down"), again);
                }),
            ),
            (
                "is given, and the step would write it",
                Box::new(|p| {
                    let i = named(p, "layers.0.q");
                    p.tensors[i].life = Weight;
                }),
            ),
            (
                "has the shape",
                Box::new(|p| {
                    let i = at(p, "attention");
                    p.steps[i].problem = p.steps[i].problem.with(&[("pages", 7)]).unwrap();
                }),
            ),
            (
                "is laid out as GateUp, and RowMajor",
                Box::new(|p| {
                    let (i, w) = (at(p, "down"), named(p, "layers.0.gate_up"));
                    p.steps[i].tensors[1] = w;
                }),
            ),
            (
                "is of I32",
                Box::new(|p| {
                    let i = named(p, "layers.0.attended");
                    p.tensors[i].storage = Storage::I32;
                }),
            ),
            (
                "is laid out as RowMajor, and RopePairs",
                Box::new(|p| {
                    let i = named(p, "layers.1.qkv");
                    p.tensors[i].layout = Layout::RowMajor;
                }),
            ),
            (
                "tensors, ",
                Box::new(|p| {
                    let i = at(p, "o");
                    p.steps[i].tensors.pop();
                }),
            ),
            (
                "has no tensor",
                Box::new(|p| {
                    let i = at(p, "o");
                    p.steps[i].tensors[0] = usize::MAX;
                }),
            ),
            // The contiguous attention, as prompts were planned once: its keys are nobody's.
            (
                "tensors, ",
                Box::new(|p| {
                    let i = at(p, "attention");
                    let text = "attention batch=1 q=512 kv=512 heads=16 kv_heads=8 head_dim=128";
                    p.steps[i].problem = text.parse().unwrap();
                }),
            ),
        ];
        for phase in [Phase::Decode, Phase::Prefill, Phase::Chunk] {
            for (said, change) in &cases {
                let e = broken(phase, change).to_string();
                assert!(e.contains(said), "{said}: {e}");
            }
        }
    }
}
