//! Problems: an op, its dimensions and its dtype, in one small copyable value with one textual form.
//!
//! Owns what a problem *is*: dimensions, tensors, floating-point operations, compulsory bytes, test inputs and the f64
//! reference. Knows no device, no kernel and no clock. An op is one file with one [`OpDef`]; [`OPS`] lists them.

mod attention;
mod decode;
mod dtype;
mod inputs;
mod matmul;
mod norm;
mod pointwise;
mod reference;
mod tensor;
mod text;

pub use dtype::Dtype;
pub use inputs::{Input, Inputs, hash_uniform};
pub use norm::EPS;
pub use reference::{Expected, Tolerance, expected};
pub use tensor::{Fill, IndexFill, Role, Scalar, Tensor};
pub use text::{ProblemError, Variable};

/// Most dimensions an op may have.
pub const MAX_DIMS: usize = 12;
/// Largest value of a dimension; products of two stay far inside `i64`.
pub const MAX_DIM: i64 = 1 << 30;
/// Most elements one tensor of a problem may have.
pub const MAX_TENSOR_ELEMENTS: u64 = 1 << 38;

/// Every op that a problem can name.
pub static OPS: &[&OpDef] = &[
    &matmul::OP,
    &attention::OP,
    &decode::OP,
    &norm::RMSNORM,
    &norm::LAYERNORM,
    &pointwise::SILU_MUL,
    &pointwise::GELU,
    &pointwise::ROPE,
    &pointwise::SOFTMAX,
    &pointwise::EMBEDDING,
    &pointwise::ARGMAX,
];

/// What an op is: its dimensions and the pure functions over them.
pub struct OpDef {
    /// The word that starts its text form.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
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
    /// Largest output error that rounding alone explains, relative to a plain op of that dtype.
    pub slack: f64,
}

/// One dimension of an op.
pub struct DimDef {
    /// Its name in text and in expressions.
    pub name: &'static str,
    /// What values it takes.
    pub kind: DimKind,
}

/// The values a dimension takes.
pub enum DimKind {
    /// An integer that must be given, at least 1.
    Size,
    /// An integer with a default, from 0.
    Optional(i64),
    /// One of these words; the first is the default.
    Word(&'static [&'static str]),
    /// Computed from the others; neither read nor printed.
    Derived(fn(&Problem) -> i64),
}

/// One problem. `Copy`, `Eq` and `Hash`: it is the typed key of the run-time table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    op: u8,
    /// The element type of its tensors and the kind of arithmetic.
    pub dtype: Dtype,
    dims: [i32; MAX_DIMS],
}

impl Problem {
    /// The op's definition.
    pub fn op(&self) -> &'static OpDef {
        OPS[self.op as usize]
    }

    /// The value of a dimension; 0 for a name the op does not have, and the index of the word for a word.
    pub fn dim(&self, name: &str) -> i64 {
        let position = self.op().dims.iter().position(|d| d.name == name);
        match position.map(|i| (i, &self.op().dims[i].kind)) {
            Some((_, DimKind::Derived(f))) => f(self),
            Some((i, _)) => i64::from(self.dims[i]),
            None => 0,
        }
    }

    /// The word that a [`DimKind::Word`] dimension holds.
    pub fn word(&self, name: &str) -> &'static str {
        for (i, d) in self.op().dims.iter().enumerate() {
            if let (true, DimKind::Word(words)) = (d.name == name, &d.kind) {
                return words.get(self.dims[i] as usize).copied().unwrap_or("");
            }
        }
        ""
    }

    /// The same problem with some integer dimensions changed, checked again.
    pub fn with(&self, changes: &[(&str, i64)]) -> Result<Problem, ProblemError> {
        let mut p = *self;
        for (name, value) in changes {
            p.set(name, *value)?;
        }
        p.validate()?;
        Ok(p)
    }

    /// Its tensors: inputs, then outputs, in the order of the table in `docs/templates.md`.
    pub fn tensors(&self) -> Vec<Tensor> {
        (self.op().tensors)(self)
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        (self.op().flops)(self)
    }

    /// Compulsory bytes: each touched input element read once, each output element written once.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.touched * t.scalar.bytes() as u64).sum()
    }

    /// The time below which no kernel can run: the larger of operations over `flops_per_s` and bytes over `bytes_per_s`,
    /// in seconds.
    pub fn roofline_s(&self, flops_per_s: f64, bytes_per_s: f64) -> f64 {
        (self.flops() / flops_per_s).max(self.bytes() as f64 / bytes_per_s)
    }
}
