//! The tensors of a problem: name, element type, shape, and how test data is made.

use super::Storage;
use super::paged::Spread;
use super::sample::Turns;

/// How a natural tensor, such as a checkpoint has it, is arranged in memory. All are dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As it is, row by row.
    RowMajor,
    /// The rows of gate and up in turn: row 2j is gate's j, row 2j + 1 up's j.
    GateUp,
    /// Rows of the Q heads, the K heads, the V heads; within each head of Q and K row 2j is the natural j, row 2j + 1 the
    /// natural j + head_dim/2, since kernels rotate adjacent pairs where checkpoints rotate halves.
    RopePairs,
    /// The elements of one head in the order of [`Layout::RopePairs`].
    RopePairsOfHead,
    /// Pages of a cache: [pages, kv_heads, page, head_dim].
    Paged,
}

/// Whether a kernel reads or writes the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read only.
    In,
    /// Written only; holds poison before.
    Out,
}

/// How an input is filled for a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Uniform in [-scale, scale).
    Uniform {
        /// The largest magnitude.
        scale: f32,
    },
    /// Every whole number of so many low bits, as likely as another; of 8 bits in [`Storage::Int8`] with their sign.
    Codes {
        /// 4 or 8.
        bits: u32,
    },
    /// Uniform in [low, high).
    Between {
        /// The least.
        low: f32,
        /// What is above all.
        high: f32,
    },
    /// Integers, one by one: distinct slots, block tables, lengths, ids, positions (see `inputs.rs`).
    Index(IndexFill),
    /// cos and sin of position · 10000^(-2j/d), interleaved.
    CosSin,
    /// What rows of logits are sampled by (see `sample.rs`).
    Settings(Turns),
    /// An output: nothing to fill.
    Output,
}

/// The kinds of integer inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexFill {
    /// Any values in 0..below.
    Below(i64),
    /// Distinct values in 0..below (a permutation's beginning).
    Distinct(i64),
    /// The same, but -1 in the rows that pad a bucket.
    Padded(i64),
    /// All equal to this.
    Full(i64),
    /// Spread over 1..=this, the first one longest.
    Lengths(i64),
    /// The first query of every sequence and the number of all.
    QueryStarts(Spread),
    /// The KV tokens of every sequence.
    KvLengths(Spread),
    /// How many tokens a row of logits keeps.
    TopK(Turns),
    /// Flags, 32 a value: about a quarter is set.
    Bits,
    /// What a step is told: of the first `ids` about half ask for one of `rows` tokens.
    Told {
        /// Ids, which come first.
        ids: i64,
        /// Tokens of the step before.
        rows: i64,
    },
}

/// One tensor of a problem, dense.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in templates.
    pub name: &'static str,
    /// Its element type.
    pub storage: Storage,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
    /// Read or written.
    pub role: Role,
    /// Test data.
    pub fill: Fill,
    /// How the natural tensor is arranged in it.
    pub layout: Layout,
    /// Elements that must be read or written at least once; all of them unless the op gathers or scatters.
    pub touched: u64,
}

impl Tensor {
    pub(super) fn input(name: &'static str, storage: Storage, shape: &[i64], fill: Fill) -> Tensor {
        Tensor::new(name, storage, shape, Role::In, fill)
    }

    pub(super) fn output(name: &'static str, storage: Storage, shape: &[i64]) -> Tensor {
        Tensor::new(name, storage, shape, Role::Out, Fill::Output)
    }

    fn new(name: &'static str, storage: Storage, shape: &[i64], role: Role, fill: Fill) -> Tensor {
        let shape: Vec<u64> = shape.iter().map(|&d| d.max(0) as u64).collect();
        // An impossible shape saturates here and is refused by the problem's validation.
        let touched = shape.iter().fold(1, |all: u64, d| all.saturating_mul(*d));
        Tensor { name, storage, shape, role, fill, layout: Layout::RowMajor, touched }
    }

    pub(super) fn laid(mut self, layout: Layout) -> Tensor {
        self.layout = layout;
        self
    }

    pub(super) fn touching(mut self, elements: i64) -> Tensor {
        self.touched = elements.max(0) as u64;
        self
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().fold(1, |all: u64, d| all.saturating_mul(*d))
    }

    /// True for a tensor without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is an output of which some elements must stay as they were.
    #[cfg(feature = "tuner")]
    pub(crate) fn is_sparse(&self) -> bool {
        self.role == Role::Out && self.touched < self.len()
    }

    /// Of a tensor of indices the first that may stand in it, and the first after these that may not. A row of a bucket that is
    /// not in use has the slot -1. None of integers that are no indices: any value is good there.
    pub(crate) fn index_range(&self) -> Option<(i64, i64)> {
        let Fill::Index(fill) = self.fill else { return None };
        Some(match fill {
            IndexFill::Padded(below) => (-1, below),
            IndexFill::Distinct(below) if self.name == "slots" => (-1, below),
            IndexFill::Below(below) | IndexFill::Distinct(below) => (0, below),
            IndexFill::Full(most) | IndexFill::Lengths(most) => (1, most + 1),
            IndexFill::QueryStarts(spread) => (0, spread.tokens + 1),
            IndexFill::KvLengths(spread) => (1, spread.context + 1),
            IndexFill::TopK(_) | IndexFill::Bits | IndexFill::Told { .. } => return None,
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.storage.bytes(self.len())
    }
}
