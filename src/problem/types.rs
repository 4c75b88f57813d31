//! The types of a problem's tensors.

use super::scaled::{CodeLayout, Granularity, Scaling};
use super::scaled_x::{self, XFormat};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the elements of a tensor are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// 8 bits with 4 of exponent and 3 of mantissa (E4M3 of Micikevicius et al. 2022, FP8 Formats for Deep Learning: no
    /// infinities, largest 448).
    E4m3,
    /// 32-bit signed integers.
    I32,
    /// Codes 0..=15 of weights, two a byte, the first in the low half; no row begins in the middle of a byte.
    Int4,
    /// Codes of weights in 8 bits, signed.
    Int8,
    /// 8-bit unsigned integers.
    U8,
}

impl Storage {
    /// The name in text and in expressions.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Bf16 => "bf16",
            Storage::F16 => "f16",
            Storage::F32 => "f32",
            Storage::E4m3 => "e4m3",
            Storage::I32 => "i32",
            Storage::Int4 => "int4",
            Storage::Int8 => "int8",
            Storage::U8 => "u8",
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> u64 {
        match self {
            Storage::Int4 => 4,
            Storage::E4m3 | Storage::Int8 | Storage::U8 => 8,
            Storage::Bf16 | Storage::F16 => 16,
            Storage::F32 | Storage::I32 => 32,
        }
    }

    /// Bytes of so many elements, the last byte whole.
    pub fn bytes(self, elements: u64) -> u64 {
        elements.saturating_mul(self.bits()).div_ceil(8)
    }

    /// The value of the little-endian element `index` of `bytes`; NaN beyond their end.
    pub fn value(self, bytes: &[u8], index: u64) -> f64 {
        fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> f64 {
            bytes.first_chunk().map_or(f64::NAN, |b| value(*b))
        }
        // The byte that it begins in.
        let at = index.saturating_mul(self.bits()) / 8;
        let at = bytes.get(at as usize..).unwrap_or_default();
        match self {
            Storage::Bf16 => read(at, |b| half::bf16::from_le_bytes(b).to_f64()),
            Storage::F16 => read(at, |b| half::f16::from_le_bytes(b).to_f64()),
            Storage::F32 => read(at, |b| f64::from(f32::from_le_bytes(b))),
            Storage::E4m3 => read(at, |[b]| f64::from(e4m3_to_f32(b))),
            Storage::I32 => read(at, |b| f64::from(i32::from_le_bytes(b))),
            Storage::Int4 => read(at, |[b]| f64::from(if index.is_multiple_of(2) { b & 15 } else { b >> 4 })),
            Storage::Int8 => read(at, |[b]| f64::from(b as i8)),
            Storage::U8 => read(at, |[b]| f64::from(b)),
        }
    }

    /// `v` rounded to what an element holds.
    pub fn round(self, v: f32) -> f32 {
        match self {
            Storage::Bf16 => half::bf16::from_f32(v).to_f32(),
            Storage::F16 => half::f16::from_f32(v).to_f32(),
            Storage::F32 => v,
            Storage::E4m3 => e4m3_to_f32(e4m3_from_f32(v)),
            Storage::I32 => v.round(),
            Storage::Int4 => v.round().clamp(0.0, 15.0),
            Storage::Int8 => v.round().clamp(-128.0, 127.0),
            Storage::U8 => v.round().clamp(0.0, 255.0),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The arithmetic of products; sums are in f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compute {
    /// Factors as they are stored.
    F32,
    /// f32 factors rounded to TF32 (10 bits of mantissa), as tensor cores take them.
    Tf32,
}

impl Compute {
    /// The name in expressions.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Tf32 => "tf32",
        }
    }
}

/// The types of a problem, a tensor's each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Types {
    /// Of the first operand: x, or q with its keys and values.
    pub x: Storage,
    /// Of the weights: w.
    pub w: Storage,
    /// Of results, and of what is added to them: bias, residual, norms' weights, caches that are written.
    pub y: Storage,
    /// Of products.
    pub compute: Compute,
    /// Of a scaled format of the weights: how its codes become values.
    pub scaling: Option<Scaling>,
    /// Of codes of x: what one of their scales is for, which are f32. None where x is stored as values.
    pub x_scales: Option<Granularity>,
    /// Of the caches of keys and values where they are not stored as results are: codes of E4M3, each worth its head's f32 scale times
    /// what it is, or, beside results in f32, values in bf16 or f16.
    pub kv: Option<Storage>,
}

impl Types {
    /// The dtype that the text starts from: that of the first operand, and where that is of codes and scales that of results.
    pub fn base(self) -> Dtype {
        match (if self.x_scales.is_some() { self.y } else { self.x }, self.compute) {
            (Storage::Bf16, _) => Dtype::Bf16,
            (Storage::F16, _) => Dtype::F16,
            (Storage::E4m3, _) => Dtype::E4m3,
            (_, Compute::F32) => Dtype::F32,
            (_, Compute::Tf32) => Dtype::Tf32,
        }
    }

    /// The dtype that says them all, where one does.
    pub fn dtype(self) -> Option<Dtype> {
        Some(self.base()).filter(|d| Types::from(*d) == self)
    }

    /// The type that factors are multiplied in: the wider of the operands', and that of x where weights are scaled.
    pub fn factors(self) -> Storage {
        if self.x.bits() >= self.w.bits() || self.scaling.is_some() { self.x } else { self.w }
    }

    /// Whether the caches are codes, with a scale a head.
    pub fn has_codes_of_caches(self) -> bool {
        self.kv == Some(Storage::E4m3)
    }

    /// The same with operands and caches as the base dtype has them where they are of a scaled format.
    pub fn unscaled(self) -> Types {
        let base = Types::from(self.base());
        let x = if self.x_scales.is_some() { base.x } else { self.x };
        let w = if self.scaling.is_some() { base.w } else { self.w };
        Types { x, w, scaling: None, x_scales: None, kv: None, ..self }
    }

    /// Says why they cannot be.
    pub(super) fn check(self) -> Result<(), String> {
        let whole = |s| matches!(s, Storage::I32 | Storage::Int4 | Storage::Int8 | Storage::U8);
        if whole(self.x) && self.x_scales.is_none() || whole(self.w) && self.scaling.is_none() {
            return Err(format!("no op multiplies integers without scales, x in {} by w in {}", self.x, self.w));
        }
        if let Some(scaling) = self.scaling {
            scaling.check(self.w)?;
        }
        scaled_x::check(self)?;
        match self.kv {
            Some(_) if self.compute == Compute::Tf32 => {
                return Err("a cache with a type of its own is not for tf32".into());
            }
            None | Some(Storage::E4m3) => {}
            Some(Storage::Bf16 | Storage::F16) if self.y == Storage::F32 => {}
            Some(kv) => {
                return Err(format!("a cache in {kv} is for results in f32 alone, and these are in {}", self.y));
            }
        }
        if self.compute == Compute::Tf32 && (self.x, self.w) != (Storage::F32, Storage::F32) {
            return Err("tf32 is for products of f32 by f32".into());
        }
        match self.y {
            Storage::Bf16 | Storage::F16 | Storage::F32 => Ok(()),
            _ => Err(format!("results in {} need a scale, which no op has yet", self.y)),
        }
    }
}

impl From<Dtype> for Types {
    fn from(dtype: Dtype) -> Types {
        let all = |s| Types { x: s, w: s, y: s, compute: Compute::F32, scaling: None, x_scales: None, kv: None };
        match dtype {
            Dtype::Bf16 => all(Storage::Bf16),
            Dtype::F16 => all(Storage::F16),
            Dtype::F32 => all(Storage::F32),
            Dtype::Tf32 => Types { compute: Compute::Tf32, ..all(Storage::F32) },
            Dtype::E4m3 => Types { y: Storage::Bf16, ..all(Storage::E4m3) },
        }
    }
}

/// The base dtype, then what differs from it: `bf16`, `bf16 w=e4m3 y=f32`, `bf16 x=int8-row w=int4-g128 scale=f32`, `bf16 kv=e4m3`.
impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = Types::from(self.base());
        write!(f, "{}", self.base())?;
        if let Some(per) = self.x_scales {
            write!(f, " x={}", XFormat { codes: self.x, per })?;
        }
        match self.scaling {
            None if self.w != base.w => write!(f, " w={}", self.w)?,
            None => {}
            Some(scaling) => {
                write!(f, " w={}", scaling.format(self.w))?;
                if scaling.storage != scaling.per.usual_scale(self.y) {
                    write!(f, " scale={}", scaling.storage)?;
                }
                if scaling.layout != CodeLayout::Rows {
                    write!(f, " layout={}", scaling.layout.name())?;
                }
            }
        }
        if self.y != base.y {
            write!(f, " y={}", self.y)?;
        }
        if let Some(kv) = self.kv {
            write!(f, " kv={kv}")?;
        }
        Ok(())
    }
}

/// A word for the types of all tensors of a problem, which most problems need no more than.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// All in bfloat16.
    Bf16,
    /// All in IEEE half.
    F16,
    /// All in f32.
    F32,
    /// All in f32, products on the tensor cores in TF32.
    Tf32,
    /// A product's operands in E4M3; all else, the result too, in bf16.
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
}

pub(super) const E4M3_MAX: f32 = 448.0;
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

/// How far a result is from what it should be. A code is held to what was rounded to it: 0 where the value rounds to it, whatever becomes of
/// ties, and infinite where the two are more than a code apart.
pub(crate) fn error_of(storage: Storage, got: f64, value: f64) -> f64 {
    match storage {
        Storage::E4m3 => e4m3_error(got, value),
        Storage::Int8 => match (got - value).abs() {
            apart if apart <= 1.5 => (apart - 0.5).max(0.0),
            _ => f64::INFINITY,
        },
        _ => (got - value).abs(),
    }
}

/// How far a value was from what was rounded to the E4M3 value `got` at least: 0 where `got` is what it rounds to, whatever becomes of ties,
/// and infinite where the two are more than a code apart. What is beyond the largest rounds to it.
fn e4m3_error(got: f64, value: f64) -> f64 {
    // Codes without their sign number the values from 0 on, evenly in each power of two.
    let number = |v: f64| {
        let code = e4m3_from_f32(v as f32);
        let magnitude = i16::from(code & 0x7f);
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    };
    let worth = |number: i16| {
        let magnitude = f64::from(e4m3_to_f32(number.unsigned_abs() as u8));
        if number < 0 { -magnitude } else { magnitude }
    };
    let largest = number(f64::from(E4M3_MAX));
    let at = number(got);
    if got.is_nan() || value.is_nan() || at.abs_diff(number(value)) > 1 {
        return f64::INFINITY;
    }
    let middle = |to: i16| (worth(at) + worth(to)) / 2.0;
    let low = if at > -largest { middle(at - 1) } else { f64::NEG_INFINITY };
    let high = if at < largest { middle(at + 1) } else { f64::INFINITY };
    (low - value).max(value - high).max(0.0)
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

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    /// What is right is right by both codes at a tie, and nothing else is as good.
    #[test]
    #[cfg(feature = "tuner")]
    fn codes_are_held_to_what_was_rounded() {
        let values: Vec<f64> = (0..0x7f).map(|b| f64::from(e4m3_to_f32(b))).collect();
        for (at, pair) in values.windows(2).enumerate() {
            let (low, high) = (pair[0], pair[1]);
            let (middle, step) = ((low + high) / 2.0, high - low);
            for sign in [1.0, -1.0] {
                let error = |got: f64, value: f64| e4m3_error(sign * got, sign * value);
                assert_eq!((error(low, middle), error(high, middle), error(low, low)), (0.0, 0.0, 0.0));
                assert!((error(low, low + 0.51 * step) - 0.01 * step).abs() < 1e-9 * step);
                assert!(error(low, high) >= 0.49 * step);
                assert!(values.get(at + 2).is_none_or(|two| error(low, *two) == f64::INFINITY));
            }
        }
        assert_eq!((e4m3_error(448.0, 1e6), e4m3_error(-448.0, -449.0), e4m3_error(0.0, -0.0)), (0.0, 0.0, 0.0));
        assert!(e4m3_error(416.0, 1e6) > 1e5 && e4m3_error(448.0, -448.0) == f64::INFINITY);
        assert_eq!(
            (e4m3_error(f64::NAN, 1.0), e4m3_error(2f64.powi(-9), -2f64.powi(-9))),
            (f64::INFINITY, f64::INFINITY)
        );
    }
}
