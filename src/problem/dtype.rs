//! The element types of problems.

use serde::{Deserialize, Serialize};

/// The element type of a problem's tensors, and with tf32 the arithmetic too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16 storage, f32 accumulation.
    Bf16,
    /// IEEE half storage, f32 accumulation.
    F16,
    /// f32 storage and arithmetic.
    F32,
    /// f32 storage, products on the tensor cores in TF32.
    Tf32,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 4] = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::Tf32];

    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
            Dtype::Tf32 => "tf32",
        }
    }

    /// The dtype of that name.
    pub fn parse(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 | Dtype::Tf32 => 4,
        }
    }

    /// The relative rounding step of one stored value (of one product operand for tf32).
    pub fn epsilon(self) -> f64 {
        match self {
            Dtype::Bf16 => 2f64.powi(-8),
            Dtype::F16 | Dtype::Tf32 => 2f64.powi(-11),
            Dtype::F32 => 2f64.powi(-24),
        }
    }

    /// `v` rounded to what storage holds.
    pub fn round(self, v: f32) -> f32 {
        match self {
            Dtype::Bf16 => half::bf16::from_f32(v).to_f32(),
            Dtype::F16 => half::f16::from_f32(v).to_f32(),
            Dtype::F32 | Dtype::Tf32 => v,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
