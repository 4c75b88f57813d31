//! The plan: what one forward pass calls, how often, in which phase, for which bucket.

use super::{Model, ModelError, Pass, Precision};
use crate::device::Target;
use crate::problem::{
    CodeLayout, Granularity, MAX_DIM, Problem, ProblemError, Storage, Zero, norm_and_product, probes,
};
use serde::{Deserialize, Serialize};

/// Part of inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reading the prompt.
    Prefill,
    /// Reading a part of a prompt, over what the cache holds already: the next turn of a chat.
    Chunk,
    /// One token per sequence.
    Decode,
}

impl Phase {
    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Chunk => "chunk",
            Phase::Decode => "decode",
        }
    }
}

/// The batch sizes, prompt lengths and context that a plan covers. A size that is named twice is one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Sequences of a decode step.
    pub batch: Vec<i64>,
    /// Tokens of a prompt.
    pub prefill: Vec<i64>,
    /// Tokens of a part of a prompt that is read over a cache with `context` tokens.
    pub chunk: Vec<i64>,
    /// Tokens in the KV cache while decoding.
    pub context: i64,
    /// Tokens of a page of the KV cache.
    pub page: i64,
}

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets::of(Target::Cpu)
    }
}

impl Buckets {
    /// Those that a target serves well: a GPU's winners answer up to 256 sequences and 8192 tokens of prompts from kernels
    /// that were measured near there. A processor has few, since one call of a long prompt takes it seconds.
    pub fn of(target: Target) -> Buckets {
        let (batch, prefill, chunk) = match target {
            Target::Cuda => (vec![1, 4, 16, 32, 64, 128, 256], vec![512, 1024, 2048, 4096, 8192], vec![64]),
            Target::Cpu => (vec![1, 4, 16, 32], vec![512, 2048], vec![]),
        };
        Buckets { batch, prefill, chunk, context: 4096, page: 64 }
    }

    /// Tokens of the longest sequence in them.
    pub fn longest(&self) -> i64 {
        self.prefill.iter().chain(&self.chunk).copied().fold(self.context, i64::max)
    }

    pub(crate) fn check(&self, model: &Model) -> Result<(), ModelError> {
        let page = [self.page];
        let sizes: [(&str, &[i64]); 5] = [
            ("batch", &self.batch),
            ("prefill", &self.prefill),
            ("chunk", &self.chunk),
            ("context", &[self.context]),
            ("page", &page),
        ];
        for (name, list) in sizes {
            if let Some(v) = list.iter().find(|v| **v < 1) {
                return Err(ModelError::Bucket(format!("--{name} {v}: sizes start at 1")));
            }
            if let Some(v) = list.iter().find(|v| **v > MAX_DIM) {
                return Err(ModelError::Bucket(format!("--{name} {v}: sizes go to {MAX_DIM}")));
            }
        }
        match model.sliding_window {
            Some(window) if self.longest() > window => Err(ModelError::Bucket(format!(
                "{} sees only the last {window} tokens (sliding_window), and no kernel here has a window: a prompt or \
                 context of {} tokens would be computed as another model; --context, --prefill and --chunk up to {window} \
                 are exact",
                model.name,
                self.longest()
            ))),
            _ => Ok(()),
        }
    }
}

/// One problem that a pass calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// What it is in the model.
    pub role: String,
    /// The problem.
    pub problem: Problem,
    /// The phase.
    pub phase: Phase,
    /// The bucket: batch of a decode step, tokens of a prompt or of a part of one.
    pub bucket: i64,
    /// Calls in one forward pass.
    pub calls: i64,
}

/// All calls of all buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The calls, bucket by bucket.
    pub calls: Vec<Call>,
}

impl Plan {
    /// The plan of `model` for `buckets` in a precision: the problems of its passes, with caches of their default size, since the
    /// size of a cache changes nothing about the work.
    pub fn new(model: &Model, buckets: &Buckets, precision: impl Into<Precision>) -> Result<Plan, ModelError> {
        let mut plan = Plan::default();
        for pass in Pass::all(model, buckets, precision)? {
            let first = plan.calls.len();
            for step in &pass.program.steps {
                let problem = step.problem.at_default_capacity();
                let mine = plan.calls[first..].iter_mut().find(|c| c.problem == problem);
                match mine {
                    Some(call) => call.calls += 1,
                    None => {
                        let (role, phase, bucket) = (step.role.clone(), pass.shape.phase, pass.shape.tokens);
                        plan.calls.push(Call { role, problem, phase, bucket, calls: 1 });
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Each problem once, in the order of the plan.
    pub fn problems(&self) -> Vec<Problem> {
        let mut list: Vec<Problem> = Vec::new();
        for call in &self.calls {
            if !list.contains(&call.problem) {
                list.push(call.problem);
            }
        }
        list
    }

    /// Norms and the products behind them in one kernel, for the few tokens for which that may be faster: an engine takes whatever is.
    /// A decode step of more sequences stands for the most that are few, so that no number of them between two buckets is without.
    pub fn fusions(&self) -> Vec<Problem> {
        let mut list: Vec<Problem> = Vec::new();
        let normed = |c: &&Call| NORMED.contains(&c.role.as_str()) && norms_rows_of(&c.problem);
        for product in self.calls.iter().filter(normed) {
            let of_phase = self.calls.iter().filter(|c| (c.phase, c.bucket) == (product.phase, product.bucket));
            let norms = of_phase.filter(|c| c.role == "norm");
            for both in norms.filter_map(|norm| norm_and_product(&norm.problem, &product.problem)) {
                let most = if product.phase == Phase::Decode { FEW_ROWS } else { i64::MAX };
                let few = both.with(&[("m", both.dim("m").min(most))]).map(|p| p.at_default_capacity());
                list.extend(few.ok().filter(|p| fits_a_block(p) && !list.contains(p)));
            }
        }
        list
    }

    /// The draws of tokens that decode steps take in the place of an argmax, where requests ask for more than the most likely one: at
    /// numbers of rows [`DRAWS_APART`] apart, whose kernels answer those between.
    pub fn draws(&self) -> Vec<Problem> {
        let decodes = self.calls.iter().filter(|c| c.phase == Phase::Decode && c.problem.op().name == "argmax");
        let mut rows: Vec<(i64, &Problem)> = decodes.map(|c| (c.problem.dim("rows"), &c.problem)).collect();
        rows.sort_by_key(|(rows, _)| *rows);
        let mut list: Vec<Problem> = Vec::new();
        for (rows, p) in rows {
            if list.last().is_none_or(|last| rows >= DRAWS_APART * last.dim("rows")) {
                list.extend(Problem::sample(rows, p.dim("cols")).types(p.types()).build());
            }
        }
        list
    }

    /// The problems of the portable winners that answer what no bucket does, those of whatever else an engine's steps have too: a row
    /// whose token is sampled, and what a step is told.
    pub fn portable(&self) -> Vec<Problem> {
        let mut problems = self.problems();
        let types = problems.first().map(|p| p.types().unscaled());
        let beside = [Problem::sample(1, 1), Problem::advance(1, 1, 1)];
        problems.extend(types.into_iter().flat_map(|t| beside.clone().map(|p| p.types(t).build())).flatten());
        probes(&problems)
    }

    /// Problems beside those of the plan that fill its gaps, for a tuning that tries there what was compiled for their
    /// neighbours: `each` sizes between two neighbouring ones of a product, in equal ratios (one below 64, where a tile has
    /// all rows), and decode steps over the powers of two between those of [`Plan::contexts`].
    pub fn between(&self, each: u32) -> Vec<Problem> {
        let problems = self.problems();
        let mut list: Vec<Problem> = Vec::new();
        let mut add = |problem: Result<Problem, ProblemError>| {
            list.extend(problem.ok().filter(|p| !problems.contains(p)));
        };
        for p in problems.iter().filter(|_| each > 0) {
            if p.has("k") {
                let m = p.dim("m");
                let alike = problems.iter().filter(|q| q.has("k") && q.with(&[("m", m)]).as_ref() == Ok(p));
                if let Some(next) = alike.map(|q| q.dim("m")).filter(|next| *next > m).min() {
                    sizes_between(m, next, each).for_each(|size| add(p.with(&[("m", size)])));
                }
            } else {
                shorter(p, 2 * LEAST_CONTEXT).for_each(|p| add(Ok(p)));
            }
        }
        list
    }

    /// The decode steps of the plan over shorter contexts, each of four times the tokens of the one before: how a sequence is best split
    /// over a device follows from its length, so that what is best for the longest takes up to twice as long for a short one. An engine
    /// binds decodes for the powers of two from the first of them on.
    pub fn contexts(&self) -> Vec<Problem> {
        let problems = self.problems();
        problems.iter().flat_map(|p| shorter(p, LEAST_CONTEXT)).filter(|p| !problems.contains(p)).collect()
    }

    /// Reads a plan file: one problem a line; what follows `#` is a remark. A byte-order mark is passed over.
    pub fn problems_of_text(text: &str) -> Result<Vec<Problem>, (usize, crate::problem::ProblemError)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut list: Vec<Problem> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let problem: Problem = line.parse().map_err(|e| (number + 1, e))?;
            if !list.contains(&problem) {
                list.push(problem);
            }
        }
        Ok(list)
    }
}

/// How many times more rows the next draw that is tuned has. They cost more than most to verify, and the same kernel draws for many.
const DRAWS_APART: i64 = 8;

/// Most rows of a product whose blocks norm the rows themselves. Each block reads them all: on an H200 one kernel takes what two take at two
/// rows, and more from three on (docs/performance/engine.md).
const FEW_ROWS: i64 = 2;

/// Most bytes of such rows: what they leave of the 48 KiB that a block has on any GPU is for its sums.
const FEW_BYTES: u64 = 40 << 10;

/// Whether a block has room for the rows of a product that it norms itself.
fn fits_a_block(p: &Problem) -> bool {
    let (rows, cols) = (p.dim("m").unsigned_abs(), p.dim("k").unsigned_abs());
    rows <= FEW_ROWS.unsigned_abs() && p.types().x.bytes(rows * cols) <= FEW_BYTES
}

/// Whether there is a kernel that norms the rows of such a product. Of codes, it takes those in quads, where a chunk of 32 elements has
/// one scale (`matmul_codes_norm`).
fn norms_rows_of(p: &Problem) -> bool {
    let types = p.types();
    types.scaling.is_none_or(|s| {
        let minima_of_groups = s.zero != Zero::Min || matches!(s.per, Granularity::Group(_));
        s.layout == CodeLayout::Quads
            && s.per != Granularity::Group(16)
            && minima_of_groups
            && matches!(types.x, Storage::Bf16 | Storage::F16)
    })
}

/// Products of a model that a norm comes before.
const NORMED: [&str; 3] = ["qkv", "gate_up", "lm_head"];

/// The shortest context that decodes are tuned and bound for.
pub(crate) const LEAST_CONTEXT: i64 = 256;

/// A decode step over the contexts below its own of which each has four times the tokens of the one before.
fn shorter(p: &Problem, from: i64) -> impl Iterator<Item = Problem> {
    let most = if p.op().name == "decode" { p.dim("context") } else { 0 };
    let contexts = std::iter::successors(Some(from), |context| context.checked_mul(4)).take_while(move |c| *c < most);
    let p = *p;
    contexts.filter_map(move |context| p.with(&[("context", context)]).ok())
}

/// Rows from which products have more than one row of tiles.
const TILED_FROM: i64 = 64;

/// Sizes that part the way from one to a larger one in equal ratios. From 64 on, where products have several rows of tiles,
/// they are odd: a size that tiles divide is a case of its own, and what is asked for between two buckets seldom is one.
/// Below, they are rounded up to the multiple of a quarter of the power of two below them, which tiles fit.
fn sizes_between(from: i64, to: i64, each: u32) -> impl Iterator<Item = i64> {
    let tiled = from >= TILED_FROM;
    let each = if tiled { each } else { each.min(1) };
    let ratio = (to as f64 / from as f64).powf(1.0 / f64::from(each + 1));
    let size = move |i: u32| {
        let size = from as f64 * ratio.powi(i as i32);
        if tiled {
            return size as i64 | 1;
        }
        let step = 2f64.powf((size.log2() - 2.0).floor()).max(1.0);
        ((size / step).ceil() * step) as i64
    };
    (1..=each).map(size).filter(move |size| from < *size && *size < to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WeightFormat;
    use crate::problem::{Dtype, ScaledFormat, Storage};

    fn plan(name: &str) -> Plan {
        Plan::new(&Model::preset(name).unwrap(), &Buckets::default(), Dtype::Bf16).unwrap()
    }

    #[test]
    fn draws_are_tuned_at_some_numbers_of_rows() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        for (target, rows) in [(Target::Cuda, vec![1, 16, 128]), (Target::Cpu, vec![1, 16])] {
            let draws = Plan::new(&model, &Buckets::of(target), Dtype::Bf16).unwrap().draws();
            assert_eq!(draws.iter().map(|p| p.dim("rows")).collect::<Vec<_>>(), rows);
            assert!(draws.iter().all(|p| p.dim("cols") == 128_256 && p.types().x == Storage::Bf16));
        }
    }

    #[test]
    fn every_preset_has_a_plan() {
        for name in Model::presets() {
            assert!(plan(name).problems().len() > 40, "{name}");
        }
    }

    #[test]
    fn what_a_model_adds_to_a_step_is_in_its_problems() {
        let base = Model::preset("llama-3.2-1b").unwrap();
        for (model, role, said) in [
            (Model { qk_norm: true, ..base.clone() }, "qkv", "qk_norm=1"),
            (Model { qkv_bias: true, ..base.clone() }, "qkv", "bias=1"),
            (Model { o_bias: true, ..base.clone() }, "o", "epilogue=bias_residual"),
            (Model { mlp_bias: true, ..base.clone() }, "gate_up", "epilogue=bias_swiglu"),
            (Model { mlp_bias: true, ..base.clone() }, "down", "epilogue=bias_residual"),
            (Model { rms_norm_eps: 1e-6, ..base.clone() }, "norm", "eps=1e-6"),
            (Model { rms_norm_eps: 1e-5, ..base.clone() }, "qkv", "eps=1e-5"),
        ] {
            let plan = Plan::new(&model, &Buckets::default(), Dtype::Bf16).unwrap();
            let mut of_role = plan.calls.iter().filter(|c| c.role == role);
            assert!(of_role.all(|c| c.problem.to_string().contains(said)), "{role} {said}");
        }
    }

    #[test]
    fn a_plan_takes_time_linear_in_the_layers() {
        // Each name of a step was once looked for among all names of the program.
        let model = Model { layers: 1000, ..Model::preset("llama-3.2-1b").unwrap() };
        let begun = std::time::Instant::now();
        let buckets = Buckets { batch: vec![1], prefill: vec![512], chunk: vec![], ..Buckets::default() };
        let plan = Plan::new(&model, &buckets, Dtype::Bf16).unwrap();
        assert_eq!(plan.calls.iter().find(|c| c.role == "down").unwrap().calls, 1000);
        assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_window_is_never_exceeded() {
        let model = Model::preset("mistral-7b-v0.1").unwrap();
        let plan = |context, prefill| {
            let buckets = Buckets { context, prefill: vec![prefill], ..Buckets::default() };
            Plan::new(&model, &buckets, Dtype::Bf16)
        };
        assert!(plan(4096, 4096).is_ok());
        for (context, prefill) in [(4097, 512), (4096, 4097)] {
            let e = plan(context, prefill).unwrap_err().to_string();
            assert!(e.contains("sliding_window") && e.contains("4097"), "{e}");
        }
    }

    #[test]
    fn a_bucket_named_twice_is_one() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        let plan =
            |batch, prefill| Plan::new(&model, &Buckets { batch, prefill, ..Buckets::default() }, Dtype::Bf16).unwrap();
        assert_eq!(plan(vec![4, 1, 4], vec![512, 512]), plan(vec![4, 1], vec![512]));
    }

    #[test]
    fn the_page_is_that_of_the_buckets() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        let plan = Plan::new(&model, &Buckets { page: 16, ..Buckets::default() }, Dtype::Bf16).unwrap();
        let paged: Vec<&Call> =
            plan.calls.iter().filter(|c| c.problem.has("page") && c.problem.dim("pages") > 0).collect();
        assert_eq!(paged.len(), 2 * (4 + 2));
        assert!(paged.iter().all(|c| c.problem.dim("page") == 16));
        let none = Plan::new(&model, &Buckets { page: 0, ..Buckets::default() }, Dtype::Bf16);
        assert!(none.unwrap_err().to_string().contains("--page 0"));
    }

    #[test]
    fn one_decode_step_reads_the_weights_once() {
        // llama-3.2-1b has 1,235,814,400 parameters, the tied embedding counted once (its config and layer shapes).
        let calls = plan("llama-3.2-1b").calls;
        let product = |c: &&Call| matches!(c.problem.op().name, "matmul" | "qkv");
        let step = calls.iter().filter(|c| c.phase == Phase::Decode && c.bucket == 1).filter(product);
        let weights: i64 = step.map(|c| c.calls * c.problem.dim("n") * c.problem.dim("k")).sum();
        assert_eq!(weights, 1_235_746_816);
    }

    #[test]
    fn norms_in_products_are_listed_for_few_rows() {
        let model = Model { qkv_bias: true, ..Model::preset("llama-3.2-1b").unwrap() };
        let of = |batch: &[i64], prefill: &[i64]| -> Vec<String> {
            let (batch, prefill) = (batch.to_vec(), prefill.to_vec());
            let buckets = Buckets { batch, prefill, chunk: vec![], ..Buckets::default() };
            let fusions = Plan::new(&model, &buckets, Dtype::Bf16).unwrap().fusions();
            fusions.iter().map(Problem::to_string).collect()
        };
        let qkv = |m: i64| {
            let heads = "k=2048 heads=32 kv_heads=8 head_dim=64";
            format!("norm_qkv m={m} {heads} bias=1 dtype=bf16 | eps=1e-5")
        };
        let gate_up = |m: i64| format!("norm_matmul m={m} n=16384 k=2048 epilogue=swiglu dtype=bf16");
        let head = |m: i64| format!("norm_matmul m={m} n=128256 k=2048 dtype=bf16");
        assert_eq!(of(&[1], &[]), [qkv(1), gate_up(1), head(1)]);
        // A step of more sequences stands for the most that are few, since what is between two buckets asks for it.
        let few = [qkv(1), gate_up(1), head(1), qkv(2), gate_up(2), head(2)];
        assert_eq!(of(&[1, 4, 16, 32], &[]), few);
        // Of a prompt the last token alone gets logits.
        assert_eq!(of(&[], &[512]), [head(1)]);
        // Rows that no block has room for are none: two of 16384 elements.
        let wide = Model { hidden: 16384, ..model };
        let wide = Plan::new(&wide, &Buckets::of(Target::Cuda), Dtype::Bf16).unwrap();
        let rows: std::collections::BTreeSet<i64> = wide.fusions().iter().map(|p| p.dim("m")).collect();
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn norms_are_in_products_of_codes_too_where_a_kernel_takes_them() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        let buckets = Buckets { batch: vec![1], prefill: vec![], chunk: vec![], ..Buckets::default() };
        let of = |format: &str, dtype, target| -> Vec<String> {
            let format = WeightFormat::usual(ScaledFormat::parse(format).unwrap(), dtype);
            let fusions = Plan::new(&model, &buckets, Precision::linear(dtype, format, target)).unwrap().fusions();
            fusions.iter().map(Problem::to_string).collect()
        };
        let head = "norm_matmul m=1 n=128256 k=2048 dtype=bf16";
        assert_eq!(
            of("int4-g128", Dtype::Bf16, Target::Cuda),
            [
                "norm_qkv m=1 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 w=int4-g128 layout=quads | eps=1e-5",
                "norm_matmul m=1 n=16384 k=2048 epilogue=swiglu dtype=bf16 w=int4-g128 layout=quads",
                head,
            ]
        );
        // The head is no linear layer.
        for (format, fused) in [("int8-row", 3), ("e4m3-b128", 3), ("int4m-g32", 3), ("int8-g16", 1), ("int4m-row", 1)]
        {
            assert_eq!(of(format, Dtype::Bf16, Target::Cuda).len(), fused, "{format}");
        }
        assert_eq!(of("int4-g128", Dtype::F32, Target::Cuda).len(), 1);
        assert_eq!(of("int4-g128", Dtype::Bf16, Target::Cpu), [head]);
    }

    #[test]
    fn gaps_are_filled_half_way() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        let plan = Plan::new(&model, &Buckets::of(Target::Cuda), Dtype::Bf16).unwrap();
        assert_eq!(plan.between(0), []);
        let between = plan.between(2);
        let sizes = |op: &str, name: &str, dim: &str| -> Vec<i64> {
            between
                .iter()
                .filter(|p| p.to_string().contains(op))
                .filter(|p| p.to_string().contains(name))
                .map(|p| p.dim(dim))
                .collect()
        };
        let few = [2, 8, 24, 48, 81, 101, 161, 203];
        let many = [323, 407, 645, 813, 1291, 1625, 2581, 3251, 5161, 6501];
        assert_eq!(sizes("qkv", "", "m"), [&few[..], &many[..]].concat());
        assert_eq!(sizes("matmul", "n=128256", "m"), few);
        for context in ["context=512 ", "context=2048 "] {
            assert_eq!(sizes("decode", context, "batch"), [1, 4, 16, 32, 64, 128, 256]);
        }
        assert!(between.iter().all(|p| !plan.problems().contains(p)));
        assert_eq!(between.len(), 4 * 18 + 8 + 14);
        let contexts = plan.contexts();
        assert!(contexts.iter().all(|p| [256, 1024].contains(&p.dim("context")) && !between.contains(p)));
        assert_eq!(contexts.len(), 14);
        // Whatever the longest is, the powers of two below it are all there.
        let long =
            Plan::new(&model, &Buckets { batch: vec![1], context: 6000, ..Buckets::default() }, Dtype::Bf16).unwrap();
        let decodes = long.contexts().into_iter().chain(long.between(1)).filter(|p| p.op().name == "decode");
        let tokens: std::collections::BTreeSet<i64> = decodes.map(|p| p.dim("context")).collect();
        assert_eq!(tokens.into_iter().collect::<Vec<_>>(), [256, 512, 1024, 2048, 4096]);
        assert_eq!(sizes_between(1024, 2048, 3).collect::<Vec<_>>(), [1217, 1449, 1723]);
        assert_eq!(sizes_between(4, 5, 3).count(), 0);
    }

    #[test]
    fn plan_files_are_read_with_remarks() {
        let text = "# a plan\nmatmul m=1 n=2 k=3  # qkv\n\nmatmul m=1 n=2 k=3\nargmax rows=1 cols=9\n";
        assert_eq!(Plan::problems_of_text(text).unwrap().len(), 2);
        assert_eq!(Plan::problems_of_text("\u{feff}argmax rows=1 cols=9").unwrap().len(), 1);
        assert_eq!(Plan::problems_of_text("argmax rows=1 cols=9\nnope\n").unwrap_err().0, 2);
    }
}
