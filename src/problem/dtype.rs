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
    /// A product's operands in 8 bits with 4 of exponent and 3 of mantissa (E4M3 of Micikevicius et al. 2022, FP8 Formats
    /// for Deep Learning: no infinities, largest 448); all else, the result too, in bf16; f32 accumulation.
    E4m3,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 5] = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::Tf32, Dtype::E4m3];

    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
            Dtype::Tf32 => "tf32",
            Dtype::E4m3 => "e4m3",
        }
    }

    /// The dtype of that name.
    pub fn parse(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.name() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        Dtype::ALL.map(Dtype::name).join(", ")
    }

    /// What results are stored in.
    pub fn result(self) -> Dtype {
        if self == Dtype::E4m3 { Dtype::Bf16 } else { self }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 | Dtype::Tf32 => 4,
            Dtype::E4m3 => 1,
        }
    }

    /// The relative rounding step of one stored value (of one product operand for tf32).
    pub fn epsilon(self) -> f64 {
        match self {
            Dtype::Bf16 => 2f64.powi(-8),
            Dtype::F16 | Dtype::Tf32 => 2f64.powi(-11),
            Dtype::F32 => 2f64.powi(-24),
            Dtype::E4m3 => 2f64.powi(-4),
        }
    }

    /// `v` rounded to what storage holds.
    pub fn round(self, v: f32) -> f32 {
        match self {
            Dtype::Bf16 => half::bf16::from_f32(v).to_f32(),
            Dtype::F16 => half::f16::from_f32(v).to_f32(),
            Dtype::F32 | Dtype::Tf32 => v,
            Dtype::E4m3 => e4m3_to_f32(e4m3_from_f32(v)),
        }
    }
}

const E4M3_MAX: f32 = 448.0;
/// Below this, 2^-6, values are spaced evenly by 2^-9.
const E4M3_NORMAL: f32 = 1.0 / 64.0;

/// The nearest E4M3 value, ties to even; what is beyond the largest becomes the largest, NaN stays NaN.
pub fn e4m3_from_f32(v: f32) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    let a = v.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a < E4M3_NORMAL {
        return sign | (a * 512.0).round_ties_even() as u8;
    }
    // Adding half a step, and its least bit for ties, carries into the exponent where the mantissa is full.
    let bits = a.min(E4M3_MAX).to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

/// The value of an E4M3 byte.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    let a = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if byte & 0x80 == 0 { a } else { -a }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_rounds_to_the_nearest_of_its_values() {
        let values: Vec<(u8, f32)> = (0..0x7f).map(|b| (b, e4m3_to_f32(b))).collect();
        assert!(values.windows(2).all(|w| w[0].1 < w[1].1));
        for &(byte, v) in &values {
            assert_eq!((e4m3_from_f32(v), e4m3_from_f32(-v)), (byte, byte | 0x80), "{v}");
        }
        for pair in values.windows(2) {
            let ([(low, a), (high, b)], middle) = ([pair[0], pair[1]], (pair[0].1 + pair[1].1) / 2.0);
            let even = if low % 2 == 0 { low } else { high };
            assert_eq!(e4m3_from_f32(middle), even, "between {a} and {b}");
            assert_eq!(e4m3_from_f32(middle.next_down()), low);
            assert_eq!(e4m3_from_f32(middle.next_up()), high);
        }
        assert_eq!((e4m3_to_f32(0x38), e4m3_to_f32(0x7e), e4m3_to_f32(1)), (1.0, 448.0, 2f32.powi(-9)));
        assert_eq!((e4m3_from_f32(1e9), e4m3_from_f32(f32::NEG_INFINITY)), (0x7e, 0xfe));
        assert!(e4m3_to_f32(e4m3_from_f32(f32::NAN)).is_nan());
    }
}
