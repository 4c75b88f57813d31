//! Problems: an op, its dimensions and the types of its tensors, in one small copyable value with one textual form.
//!
//! Owns what a problem *is*: dimensions, tensors, floating-point operations, compulsory bytes, test inputs and the f64
//! reference. Knows no device, no kernel and no clock. An op is one file with one [`OpDef`]; [`OPS`] lists them.

mod advance;
mod attention;
mod build;
mod cache;
pub(crate) mod decode;
mod inputs;
mod matmul;
mod norm;
mod normed;
mod paged;
mod pointwise;
mod qkv;
mod quantize;
mod reference;
mod rope_kv;
mod sample;
mod scaled;
mod scaled_x;
mod tensor;
mod text;
mod types;

pub use build::{Builder, Heads};
#[cfg(feature = "engine")]
pub(crate) use inputs::hash;
pub use inputs::{Input, Inputs, hash_uniform};
pub use normed::norm_and_product;
#[cfg(feature = "tuner")]
pub(crate) use reference::expected_here;
pub use reference::{Expected, Tolerance, expected};
#[cfg(all(test, feature = "tuner"))]
pub(crate) use sample::weight as sampled_weight;
#[cfg(feature = "engine")]
pub(crate) use sample::{MOST_TOP, SETTINGS};
pub(crate) use scaled::row as row_of_weights;
pub use scaled::{CodeLayout, Granularity, SCALE_BLOCK, ScaledFormat, Scaling, Zero};
pub use scaled_x::XFormat;
pub use tensor::{Fill, IndexFill, Layout, Role, Tensor};
pub use text::{ProblemError, Variable};
#[cfg(feature = "engine")]
pub(crate) use types::e4m3_from_f32;
pub(crate) use types::error_of;
pub use types::{Compute, Dtype, Storage, Types};

/// Most dimensions an op may have.
pub const MAX_DIMS: usize = 16;
/// Largest value of a dimension; products of two stay far inside `i64`.
pub const MAX_DIM: i64 = 1 << 30;
/// Most elements one tensor of a problem may have.
pub const MAX_TENSOR_ELEMENTS: u64 = 1 << 38;

/// The width of rows in probes of scaled weights.
const SCALED_PROBE: i64 = 262;

/// Every op that a problem can name.
pub static OPS: &[&OpDef] = &[
    &matmul::OP,
    &qkv::OP,
    &attention::OP,
    &decode::OP,
    &paged::OP,
    &norm::RMSNORM,
    &norm::LAYERNORM,
    &pointwise::SILU_MUL,
    &pointwise::GELU,
    &pointwise::ROPE,
    &pointwise::SOFTMAX,
    &pointwise::EMBEDDING,
    &pointwise::ARGMAX,
    &sample::OP,
    &advance::OP,
    &normed::MATMUL,
    &normed::QKV,
    &rope_kv::OP,
    &quantize::PLAIN,
    &quantize::NORMED,
];

/// What an op is: its dimensions and the pure functions over them.
pub struct OpDef {
    /// The word that starts its text form.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// A small problem of odd sizes, without its types: the one that portable code is checked and timed on. Empty for what is several
    /// ops in one, which no portable code has.
    pub probe: &'static str,
    /// Its dimensions in the order of the text form.
    pub dims: &'static [DimDef],
    /// Refuses impossible combinations; the text says why.
    pub check: fn(&Problem) -> Result<(), String>,
    /// Its tensors in the order of `docs/templates.md`.
    pub tensors: fn(&Problem) -> Vec<Tensor>,
    /// Floating-point operations, a multiply-add as two. Causal attention counts the half that is computed.
    pub flops: fn(&Problem) -> f64,
    /// How many independent pieces the reference is computed in.
    pub units: fn(&Problem) -> u64,
    /// Input values that one unit reads, which is what its reference costs.
    pub unit_cost: fn(&Problem) -> u64,
    /// Computes one unit of the outputs in f64.
    pub unit: fn(&Problem, &Inputs, u64, &mut Vec<Expected>),
    /// Largest output error that rounding alone explains, relative to a plain op of its types.
    pub slack: f64,
    /// Whether x, w and y may each be stored in a type of its own; otherwise one dtype says them all.
    pub mixed: bool,
    /// Whether w may be of a scaled format.
    pub scaled: bool,
    /// Whether its caches may be of a type of their own: codes with a scale a head, or values.
    pub cached: bool,
}

impl OpDef {
    /// The problem of its portable winner for these types, where the op takes them.
    pub fn probe(&self, types: Types) -> Option<Problem> {
        let plain: Problem = format!("{} dtype={}", self.probe, types.unscaled()).parse().ok()?;
        match types.scaling {
            None if types.kv.is_some() => plain.with_types(types).ok(),
            None => Some(plain),
            // Rows of several groups, the last of them shorter.
            Some(scaling) if self.scaled => {
                let (unit, rows) = (scaling.layout.unit(types.w) as i64, scaling.layout.rows() as i64);
                let up = |size: i64, each: i64| (size + each - 1) / each * each;
                // Rows are columns of results, those of heads, or tokens of a table.
                let name = ["head_dim", "vocab", "n"].into_iter().find(|name| plain.has(name))?;
                let dims = [(scaled::row(&plain).1, up(SCALED_PROBE, unit)), (name, up(plain.dim(name), rows))];
                plain.with(&dims).and_then(|p| p.with_types(types)).ok()
            }
            Some(_) => None,
        }
    }
}

/// The problems of the portable winners that go with some problems: one for each op and types.
pub fn probes(problems: &[Problem]) -> Vec<Problem> {
    let mut list: Vec<Problem> = problems.iter().filter_map(|p| p.op().probe(p.types)).collect();
    list.sort();
    list.dedup();
    list
}

/// One dimension of an op.
pub struct DimDef {
    /// Its name in text and in expressions.
    pub name: &'static str,
    /// What it is to the code and to a look-up.
    pub part: Part,
    /// What values it takes.
    pub kind: DimKind,
}

/// What a dimension is to compiled code and to a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the code is compiled for. Code may have it as a constant.
    Contract,
    /// What a call passes and a bucket is named by. Code may have it as a constant, where it serves that one value alone.
    Size,
    /// What a call passes, but no bucket is named by, such as the pages of a cache. Never a constant of the code.
    Capacity,
    /// How a measurement filled the tensors. Evidence: neither a constant of the code nor part of a look-up.
    Workload,
}

/// The values a dimension takes.
pub enum DimKind {
    /// An integer that must be given, at least 1.
    Required,
    /// An integer with a default, from 0.
    Optional(i64),
    /// An integer whose default follows from the others, from 0.
    Computed(fn(&Problem) -> i64),
    /// One of these words; the first is the default.
    Word(&'static [&'static str]),
    /// A real number with a default, kept in units of [`REAL_UNIT`].
    Real(f64),
    /// Computed from the others; neither read nor printed.
    Derived(fn(&Problem) -> i64),
}

/// The workload of what adds ε to a variance: of one, beside which an ε of 1e-5 is less than bf16 rounds, or so small that it shows.
pub(crate) const LEVEL: &str = "level";
pub(crate) const LEVELS: &[&str] = &["unit", FAINT];
const FAINT: &str = "faint";
/// The variance is 1.5e-5 then.
const FAINTLY: f32 = 1.0 / 256.0;

/// The step between values of a [`DimKind::Real`].
pub const REAL_UNIT: f64 = 1e-12;

impl DimDef {
    const fn contract(name: &'static str) -> DimDef {
        DimDef { name, part: Part::Contract, kind: DimKind::Required }
    }

    const fn option(name: &'static str, default: i64) -> DimDef {
        DimDef { name, part: Part::Contract, kind: DimKind::Optional(default) }
    }

    const fn words(name: &'static str, words: &'static [&'static str]) -> DimDef {
        DimDef { name, part: Part::Contract, kind: DimKind::Word(words) }
    }

    const fn derived(name: &'static str, value: fn(&Problem) -> i64) -> DimDef {
        DimDef { name, part: Part::Contract, kind: DimKind::Derived(value) }
    }

    const fn size(name: &'static str) -> DimDef {
        DimDef { name, part: Part::Size, kind: DimKind::Required }
    }

    const fn capacity(name: &'static str, default: fn(&Problem) -> i64) -> DimDef {
        DimDef { name, part: Part::Capacity, kind: DimKind::Computed(default) }
    }

    const fn real(name: &'static str, default: f64) -> DimDef {
        DimDef { name, part: Part::Capacity, kind: DimKind::Real(default) }
    }

    const fn workload(name: &'static str, words: &'static [&'static str]) -> DimDef {
        DimDef { name, part: Part::Workload, kind: DimKind::Word(words) }
    }
}

/// One problem. `Copy`, `Eq` and `Hash`: it is the typed key of the run-time table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    op: u8,
    /// The types of its tensors and the arithmetic.
    types: Types,
    dims: [i32; MAX_DIMS],
}

impl Problem {
    /// The op's definition.
    pub fn op(&self) -> &'static OpDef {
        OPS[self.op as usize]
    }

    /// The types of its tensors.
    pub fn types(&self) -> Types {
        self.types
    }

    /// The same problem with other types, where the op takes them.
    pub fn with_types(&self, types: impl Into<Types>) -> Result<Problem, ProblemError> {
        let p = Problem { types: types.into(), ..*self };
        p.validate()?;
        Ok(p)
    }

    /// The value of a dimension: an integer, the index of a word, a real number in units of [`REAL_UNIT`].
    ///
    /// # Panics
    /// In debug builds, for a name that the op does not have; 0 otherwise.
    pub fn dim(&self, name: &str) -> i64 {
        let position = self.op().dims.iter().position(|d| d.name == name);
        debug_assert!(position.is_some(), "{} has no dimension '{name}'", self.op().name);
        position.map_or(0, |i| self.value(i))
    }

    /// The dimensions in the order of the op's, with their values.
    pub(crate) fn dims(&self) -> impl Iterator<Item = (&'static DimDef, i64)> + '_ {
        self.op().dims.iter().enumerate().map(|(i, d)| (d, self.value(i)))
    }

    /// Whether the op has a dimension of that name.
    pub fn has(&self, name: &str) -> bool {
        self.op().dims.iter().any(|d| d.name == name)
    }

    fn value(&self, i: usize) -> i64 {
        match self.op().dims[i].kind {
            DimKind::Derived(f) => f(self),
            _ => i64::from(self.dims[i]),
        }
    }

    /// The value of a [`DimKind::Real`] dimension; 0 for a name that is none.
    pub fn real(&self, name: &str) -> f64 {
        let at = self.op().dims.iter().position(|d| d.name == name && matches!(d.kind, DimKind::Real(_)));
        at.map_or(0.0, |i| text::real(self.dims[i]))
    }

    /// The word that a [`DimKind::Word`] dimension holds; empty for a name that is none.
    pub fn word(&self, name: &str) -> &'static str {
        for (i, d) in self.op().dims.iter().enumerate() {
            if let (true, DimKind::Word(words)) = (d.name == name, &d.kind) {
                return words.get(self.dims[i] as usize).copied().unwrap_or("");
            }
        }
        ""
    }

    /// The same problem with some integer dimensions changed, checked again. Capacities that had their default keep to it.
    pub fn with(&self, changes: &[(&str, i64)]) -> Result<Problem, ProblemError> {
        let mut p = *self;
        for (name, value) in changes {
            p.set(name, *value)?;
        }
        for (i, d) in self.op().dims.iter().enumerate() {
            if let DimKind::Computed(default) = d.kind
                && self.value(i) == default(self).min(MAX_DIM)
                && !changes.iter().any(|(name, _)| *name == d.name)
            {
                p.set(d.name, default(&p).min(MAX_DIM))?;
            }
        }
        p.validate()?;
        Ok(p)
    }

    /// The same problem with the capacities that have a default at it: what a measurement of it needs, where a call would
    /// pass a whole cache.
    pub fn at_default_capacity(&self) -> Problem {
        let mut p = *self;
        for (i, d) in self.op().dims.iter().enumerate() {
            if let DimKind::Computed(default) = d.kind {
                p.dims[i] = default(&p).clamp(0, MAX_DIM) as i32;
            }
        }
        p
    }

    /// Whether it is the problem of its op's portable winner.
    pub fn is_probe(&self) -> bool {
        self.op().probe(self.types).is_some_and(|p| p == *self)
    }

    /// What a look-up compares: the op, its types, its contract and its sizes.
    pub fn bucket(&self) -> Bucket {
        let mut p = *self;
        for (i, d) in self.op().dims.iter().enumerate() {
            if matches!(d.part, Part::Capacity | Part::Workload) {
                p.dims[i] = 0;
            }
        }
        Bucket(p)
    }

    /// Its tensors: inputs, then outputs, in the order of the table in `docs/templates.md`.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut list = (self.op().tensors)(self);
        if self.word(LEVEL) == FAINT {
            for t in list.iter_mut().filter(|t| ["x", "residual"].contains(&t.name)) {
                if let Fill::Uniform { scale } = &mut t.fill {
                    *scale *= FAINTLY;
                }
            }
        }
        list
    }

    /// The same problem with its tensors filled in every other way that a workload names: what its winner also meets in production,
    /// though no look-up asks for it. Not those that make no difference here.
    pub fn variants(&self) -> Vec<Problem> {
        let workloads = self.op().dims.iter().enumerate().filter(|(_, d)| d.part == Part::Workload);
        let normed = !self.has("qk_norm") || self.dim("qk_norm") == 1 || self.has_norm();
        let others = workloads.filter(|(_, d)| d.name != LEVEL || normed).flat_map(|(i, d)| {
            let words = if let DimKind::Word(words) = d.kind { words.len() } else { 0 };
            (0..words as i64).filter(move |w| *w != i64::from(self.dims[i])).map(move |w| self.with(&[(d.name, w)]))
        });
        // A workload may ask for sizes that these are not.
        others.flatten().collect()
    }

    /// Whether the tokens are normed before anything else.
    fn has_norm(&self) -> bool {
        self.op().name.starts_with("norm_")
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        (self.op().flops)(self)
    }

    /// Compulsory bytes: each touched input element read once, each output element written once.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.storage.bytes(t.touched)).sum()
    }
}

/// A problem without its capacities and its workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(Problem);

const _: () = {
    let mut i = 0;
    while i < OPS.len() {
        assert!(OPS[i].dims.len() <= MAX_DIMS);
        i += 1;
    }
};
