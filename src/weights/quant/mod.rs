//! Weights of scaled formats: from the layouts that files have to the one that kernels take, bit by bit, and back; and made of
//! weights that are not quantised.
//!
//! Bytes in, bytes out: knows no file, no model and no device. [`Packed`] is what a product's `w`, `w_scales` and `w_zeros` or `w_mins`
//! hold. What a format cannot hold is refused by the name of its tensor; nothing is rounded on the way but by [`quantize`].

mod awq;
mod compressed;
mod ggml;
mod gptq;
mod quantize;

pub use awq::Awq;
pub use compressed::{Compressed, CompressedTensors};
pub(super) use ggml::format_of as ggml_format;
pub use ggml::{from_ggml, to_ggml};
pub use gptq::{Gptq, GptqTensors, Zeros};
pub use quantize::{Method, quantize};

use crate::problem::{CodeLayout, Granularity, SCALE_BLOCK, ScaledFormat, Scaling, Storage, Zero};
use rayon::prelude::*;

/// Why the tensors of a weight are not what its format says.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{tensor}: {why}")]
pub struct QuantError {
    /// The weight, or the one of its tensors that is at fault.
    pub tensor: String,
    /// What is wrong.
    pub why: Fault,
}

/// What may be wrong with a quantised weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It has no rows or no columns, or so many that memory has none for them.
    #[error("{n} × {k} elements are none, or too many")]
    Size {
        /// Rows.
        n: u64,
        /// Columns.
        k: u64,
    },
    /// More or fewer bytes than its shape says.
    #[error("it has {found} bytes, and {wanted} are needed")]
    Bytes {
        /// As given.
        found: u64,
        /// As needed.
        wanted: u64,
    },
    /// Another number of values than its shape says.
    #[error("{found} values are given, and its shape has {wanted}")]
    Count {
        /// As given.
        found: u64,
        /// As needed.
        wanted: u64,
    },
    /// A number of rows or columns that the layout cannot pack.
    #[error("{what} is {found}, which is no multiple of {of}")]
    Multiple {
        /// Which number.
        what: &'static str,
        /// As given.
        found: u64,
        /// What it must be a multiple of.
        of: u64,
    },
    /// A scale or a minimum that is no number.
    #[error("element {index} is {value}; the file is damaged, or of another format")]
    NotFinite {
        /// Which of them.
        index: u64,
        /// NaN or an infinity.
        value: f64,
    },
    /// A scale or a minimum whose weights no f32 holds.
    #[error(
        "element {index} is {value:e}, which with codes of up to {code} is beyond f32; the file is damaged, or of another format"
    )]
    Overflow {
        /// Which of them.
        index: u64,
        /// Its value.
        value: f64,
        /// The largest magnitude of a code.
        code: f64,
    },
    /// A code that is no number.
    #[error("code {index} is NaN; the file is damaged, or of another format")]
    Code {
        /// Which of them, row by row.
        index: u64,
    },
    /// A number that no code, scale or zero point of the format is.
    #[error("element {index} is {value}, which {format} cannot hold; {instead}")]
    Range {
        /// Which of them.
        index: u64,
        /// Its value.
        value: f64,
        /// The format.
        format: String,
        /// What can be done.
        instead: &'static str,
    },
    /// Columns in an order of their own.
    #[error(
        "column {column} is of group {found}, and in their order it is of {wanted}: weights of act-order are not read; quantise without `desc_act`"
    )]
    Order {
        /// The first column that is out of order.
        column: u64,
        /// Its group.
        found: i64,
        /// The one it would be of.
        wanted: i64,
    },
    /// A layout that another has, or none.
    #[error("{layout} does not hold {format}; {instead}")]
    Format {
        /// The layout.
        layout: &'static str,
        /// The format.
        format: String,
        /// What it does hold.
        instead: String,
    },
}

impl QuantError {
    fn new(tensor: impl Into<String>, why: Fault) -> QuantError {
        QuantError { tensor: tensor.into(), why }
    }
}

/// The weights w[n, k] of a product in a scaled format, as its kernels take them.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// The format.
    pub format: ScaledFormat,
    /// The type of scales and minima: f32, f16 or bf16.
    pub scale: Storage,
    /// Rows.
    pub n: u64,
    /// Columns.
    pub k: u64,
    /// `w`: codes, row by row.
    pub codes: Vec<u8>,
    /// `w_scales`, little-endian.
    pub scales: Vec<u8>,
    /// `w_zeros`, a byte each, or `w_mins`, little-endian; empty where the format has neither.
    pub zeros: Vec<u8>,
}

impl Packed {
    /// Of these tensors, where their sizes are those of the format, k is even of codes of 4 bits, scales and minima are finite, zero
    /// points are in 0..=15 and no code is NaN.
    pub fn new(
        name: &str,
        (format, scale): (ScaledFormat, Storage),
        [n, k]: [u64; 2],
        codes: Vec<u8>,
        scales: Vec<u8>,
        zeros: Vec<u8>,
    ) -> Result<Packed, QuantError> {
        let packed = Packed { format, scale, n, k, codes, scales, zeros };
        packed.check(name)?;
        Ok(packed)
    }

    /// How the problem of its product says the scales.
    pub fn scaling(&self) -> Scaling {
        Scaling { per: self.format.per, storage: self.scale, zero: self.format.zero, layout: CodeLayout::Rows }
    }

    /// The codes in the order that a kernel wants; nothing where that order does not hold so many rows or columns.
    pub fn codes_in(&self, layout: CodeLayout) -> Option<Vec<u8>> {
        layout.holds(self.format.codes, [self.n, self.k]).then(|| {
            let mut out = vec![0; self.codes.len()];
            self.codes_to(layout, &mut out);
            out
        })
    }

    /// Writes the codes in the order of a kernel that holds them.
    pub(super) fn codes_to(&self, layout: CodeLayout, out: &mut [u8]) {
        match layout {
            CodeLayout::Rows => out.copy_from_slice(&self.codes),
            CodeLayout::Quads => {
                let to = places(layout, self.format.codes);
                let mut from = vec![0; to.len()];
                to.iter().zip(0..).for_each(|(to, natural)| from[usize::from(*to)] = natural);
                moved(&self.codes, out, self.bits(), &from);
            }
            CodeLayout::Lanes => words(&self.codes, out, self.row_words(), CodeLayout::Lanes.rows() as usize),
        }
    }

    /// Puts codes that are in the order of a kernel back into their own.
    pub fn codes_of(&self, layout: CodeLayout, codes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.codes.len()];
        match layout {
            CodeLayout::Rows => out.copy_from_slice(codes),
            CodeLayout::Quads => moved(codes, &mut out, self.bits(), &places(layout, self.format.codes)),
            // The words of a group of rows, turned over, are turned over again.
            CodeLayout::Lanes => {
                let (each, rows) = (self.row_words(), CodeLayout::Lanes.rows() as usize);
                let groups = out.par_chunks_exact_mut(each * rows * 4).zip(codes.par_chunks_exact(each * rows * 4));
                groups.for_each(|(out, codes)| words(codes, out, rows, each));
            }
        }
        out
    }

    /// Words of 32 bits of a row.
    fn row_words(&self) -> usize {
        (self.k * self.bits() / 32) as usize
    }

    /// The scales, and the zero points or minima, in the order that goes with those codes: what `w_scales` and `w_zeros` or `w_mins` hold.
    /// Nothing where [`codes_in`](Packed::codes_in) gives nothing.
    pub fn scales_in(&self, layout: CodeLayout) -> Option<[Vec<u8>; 2]> {
        let ordered = |from: &[u8]| {
            let runs = self.k.div_ceil(self.run());
            if from.is_empty() || !matches!(self.format.per, Granularity::Row | Granularity::Group(_)) {
                return from.to_vec();
            }
            let each = (from.len() as u64 / (self.n * runs)) as usize;
            let mut to = vec![0; from.len()];
            for (at, bytes) in (0..).zip(from.chunks_exact(each)) {
                let place = layout.scale_place(at / runs, at % runs, runs) as usize * each;
                to[place..place + each].copy_from_slice(bytes);
            }
            to
        };
        layout.holds(self.format.codes, [self.n, self.k]).then(|| [ordered(&self.scales), ordered(&self.zeros)])
    }

    /// The same with scales and minima in f32, which holds those of the other types as they are, where that is wanted.
    pub(crate) fn with_scales_in_f32(mut self, wanted: bool) -> Packed {
        if !wanted || self.scale == Storage::F32 {
            return self;
        }
        let widened = |scales: &[u8], storage: Storage| -> Vec<u8> {
            let count = scales.len() as u64 * 8 / storage.bits();
            (0..count).flat_map(|i| (storage.value(scales, i) as f32).to_le_bytes()).collect()
        };
        self.scales = widened(&self.scales, self.scale);
        if self.format.zero == Zero::Min {
            self.zeros = widened(&self.zeros, self.scale);
        }
        self.scale = Storage::F32;
        self
    }

    fn bits(&self) -> u64 {
        self.format.codes.bits()
    }

    fn check(&self, name: &str) -> Result<(), QuantError> {
        let Packed { format, scale, n, k, .. } = *self;
        let fault = |tensor: &str, why| Err(QuantError::new(format!("{name}{tensor}"), why));
        size(name, [n, k])?;
        if !ScaledFormat::all().any(|f| f == format) || !SCALES.contains(&scale) {
            let instead = format!("formats are {}, scales f32, f16 or bf16", ScaledFormat::names());
            let format = format!("{format} with scales in {scale}");
            return fault("", Fault::Format { layout: "a product", format, instead });
        }
        if format.codes == Storage::Int4 && k % 2 != 0 {
            return fault("", Fault::Multiple { what: "k", found: k, of: 2 });
        }
        let scales = count(format.per, n, k);
        bytes_of(name, &self.codes, format.codes.bytes(n * k))?;
        bytes_of(&format!("{name} (scales)"), &self.scales, scale.bytes(scales))?;
        let zeros = match format.zero {
            Zero::None => 0,
            Zero::Zero => scales,
            Zero::Min => scale.bytes(scales),
        };
        bytes_of(&format!("{name} (zeros)"), &self.zeros, zeros)?;
        // Codes of 4 bits are at most 8 away from nothing, and 15 from a zero point or a minimum.
        let code = match (format.codes, format.zero) {
            (Storage::Int4, Zero::None) => 8.0,
            (Storage::Int4, _) => 15.0,
            (Storage::E4m3, _) => 448.0,
            _ => 128.0,
        };
        finite(&format!("{name} (scales)"), &self.scales, scale, code)?;
        match format.zero {
            Zero::None => {}
            Zero::Min => finite(&format!("{name} (minima)"), &self.zeros, scale, 1.0)?,
            Zero::Zero => {
                if let Some(index) = self.zeros.iter().position(|z| *z > 15) {
                    let value = self.zeros[index].into();
                    return fault(" (zeros)", too_large(index as u64, value, format, "zero points are 0 to 15"));
                }
            }
        }
        if format.codes == Storage::E4m3
            && let Some(index) = self.codes.iter().position(|c| c & 0x7f == 0x7f)
        {
            return fault("", Fault::Code { index: index as u64 });
        }
        Ok(())
    }

    /// Which scale is that of an element.
    fn at(&self, row: u64, col: u64) -> u64 {
        let runs = self.k.div_ceil(self.run());
        match self.format.per {
            Granularity::Tensor => 0,
            Granularity::Row => row,
            Granularity::Group(_) => row * runs + col / self.run(),
            Granularity::Block => row / SCALE_BLOCK as u64 * runs + col / self.run(),
        }
    }

    fn run(&self) -> u64 {
        self.format.per.run(self.k as i64) as u64
    }

    /// The value of an element in f32, each operation rounded once.
    pub fn value(&self, row: u64, col: u64) -> f32 {
        let at = self.at(row, col);
        let code = self.format.codes.value(&self.codes, row * self.k + col) as f32;
        let scale = self.scale.value(&self.scales, at) as f32;
        match self.format.zero {
            Zero::None => (code - f32::from(self.format.bias())) * scale,
            Zero::Zero => (code - Storage::U8.value(&self.zeros, at) as f32) * scale,
            Zero::Min => code * scale + self.scale.value(&self.zeros, at) as f32,
        }
    }
}

/// Where among the codes of a unit each is stored, in their own order.
fn places(layout: CodeLayout, codes: Storage) -> Vec<u8> {
    (0..layout.unit(codes)).map(|i| layout.place(codes, layout.unit(codes), i) as u8).collect()
}

/// Of each `rows` rows of so many words of 32 bits the first word of each row, then the second.
fn words(codes: &[u8], out: &mut [u8], each: usize, rows: usize) {
    let groups = out.par_chunks_exact_mut(each * rows * 4).zip(codes.par_chunks_exact(each * rows * 4));
    groups.for_each(|(out, codes)| {
        let (from, to) = (codes.as_chunks::<4>().0, out.as_chunks_mut::<4>().0);
        for (at, to) in to.iter_mut().enumerate() {
            *to = from[at % rows * each + at / rows];
        }
    });
}

/// Codes of whole units, each as many as `from` says where one comes from within its unit.
fn moved(codes: &[u8], out: &mut [u8], bits: u64, from: &[u8]) {
    const AT_ONCE: usize = 1 << 16;
    let unit = from.len() * bits as usize / 8;
    let parts = out.par_chunks_mut(unit * AT_ONCE).zip(codes.par_chunks(unit * AT_ONCE));
    parts.for_each(|(out, codes)| {
        for (out, codes) in out.chunks_exact_mut(unit).zip(codes.chunks_exact(unit)) {
            match bits {
                8 => out.iter_mut().zip(from).for_each(|(out, from)| *out = codes[usize::from(*from)]),
                _ => {
                    let one = |from: u8| codes[usize::from(from / 2)] >> (from % 2 * 4) & 15;
                    let pairs = from.as_chunks::<2>().0;
                    out.iter_mut().zip(pairs).for_each(|(out, [low, high])| *out = one(*low) | one(*high) << 4);
                }
            }
        }
    });
}

const SCALES: [Storage; 3] = [Storage::F32, Storage::F16, Storage::Bf16];

/// How many scales w[n, k] has.
fn count(per: Granularity, n: u64, k: u64) -> u64 {
    per.scales(n as i64, k as i64).into_iter().map(|d| d as u64).product()
}

/// The most elements of a weight: far below what any sum of sizes here could overflow by.
const MAX_ELEMENTS: u64 = 1 << 38;

fn size(name: &str, [n, k]: [u64; 2]) -> Result<(), QuantError> {
    match n.checked_mul(k) {
        Some(1..=MAX_ELEMENTS) => Ok(()),
        _ => Err(QuantError::new(name, Fault::Size { n, k })),
    }
}

fn bytes_of(name: &str, bytes: &[u8], wanted: u64) -> Result<(), QuantError> {
    match bytes.len() as u64 {
        found if found == wanted => Ok(()),
        found => Err(QuantError::new(name, Fault::Bytes { found, wanted })),
    }
}

fn multiple(name: &str, what: &'static str, found: u64, of: u64) -> Result<(), QuantError> {
    if found.is_multiple_of(of) { Ok(()) } else { Err(QuantError::new(name, Fault::Multiple { what, found, of })) }
}

/// Scales that are numbers, and are numbers of f32 with a code of that magnitude too: what overflows would be NaN in a model's
/// answers, and a token of it.
fn finite(name: &str, bytes: &[u8], storage: Storage, code: f64) -> Result<(), QuantError> {
    let count = bytes.len() as u64 * 8 / storage.bits();
    for (index, value) in (0..count).map(|i| (i, storage.value(bytes, i))) {
        if !value.is_finite() {
            return Err(QuantError::new(name, Fault::NotFinite { index, value }));
        }
        if value.abs() * code > f64::from(f32::MAX) {
            return Err(QuantError::new(name, Fault::Overflow { index, value, code }));
        }
    }
    Ok(())
}

fn too_large(index: u64, value: f64, format: ScaledFormat, instead: &'static str) -> Fault {
    Fault::Range { index, value, format: format.to_string(), instead }
}

/// The granularity of groups of so many columns of k, as files of 4-bit weights say it: 32, 64, 128, or all of a row.
fn grouped(name: &str, layout: &'static str, group: u64, k: u64) -> Result<Granularity, QuantError> {
    match group {
        32 => Ok(Granularity::Group(32)),
        64 => Ok(Granularity::Group(64)),
        128 => Ok(Granularity::Group(128)),
        g if g == k => Ok(Granularity::Row),
        g => {
            let instead = "groups of 32, 64, 128 or all columns are read".into();
            Err(QuantError::new(name, Fault::Format { layout, format: format!("groups of {g} columns"), instead }))
        }
    }
}

/// Of unsigned codes and zero points in 0..=15 the symmetric format where each zero point is 8, with no zero points.
fn with_zeros(per: Granularity, zeros: Vec<u8>) -> (ScaledFormat, Vec<u8>) {
    let symmetric = zeros.iter().all(|z| *z == 8);
    let zero = if symmetric { Zero::None } else { Zero::Zero };
    (ScaledFormat { codes: Storage::Int4, per, zero }, if symmetric { Vec::new() } else { zeros })
}

/// The codes or zero points of a format of 4 bits that has no minima, for layouts that have such alone.
fn four_bits(name: &str, layout: &'static str, packed: &Packed) -> Result<Vec<u8>, QuantError> {
    packed.check(name)?;
    let scales = count(packed.format.per, packed.n, packed.k);
    match (packed.format.codes, packed.format.zero) {
        (Storage::Int4, Zero::None) => Ok(vec![8; scales as usize]),
        (Storage::Int4, Zero::Zero) => Ok(packed.zeros.clone()),
        _ => Err(unheld(name, layout, packed, "it holds int4 and int4z")),
    }
}

fn unheld(name: &str, layout: &'static str, packed: &Packed, instead: &str) -> QuantError {
    let format = format!("{} scale={}", packed.format, packed.scale);
    QuantError::new(name, Fault::Format { layout, format, instead: instead.into() })
}

/// Four bits of each of eight, the first lowest.
fn word(codes: [u8; 8]) -> [u8; 4] {
    std::array::from_fn(|i| codes[2 * i] & 15 | codes[2 * i + 1] << 4)
}

/// Elements of so many bytes, [rows, cols] to [cols, rows].
fn transposed(from: &[u8], rows: u64, cols: u64, each: usize) -> Vec<u8> {
    let (rows, cols) = (rows as usize, cols as usize);
    let mut to = Vec::with_capacity(from.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * each;
            to.extend_from_slice(&from[at..at + each]);
        }
    }
    to
}

#[cfg(test)]
pub(in crate::weights::quant) mod tests {
    use super::*;
    use crate::problem::hash_uniform;

    /// Numbers that differ from one test to the next.
    pub struct Draw(pub u64, u64);

    impl Draw {
        pub fn new(seed: u64) -> Draw {
            Draw(seed, 0)
        }

        pub fn below(&mut self, n: u64) -> u64 {
            self.1 += 1;
            ((f64::from(hash_uniform(self.0, self.1)) + 1.0) / 2.0 * n as f64) as u64
        }

        pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
            list[self.below(list.len() as u64) as usize]
        }

        pub fn bytes(&mut self, n: u64) -> Vec<u8> {
            (0..n).map(|_| self.below(256) as u8).collect()
        }

        /// Finite numbers of both signs.
        pub fn scales(&mut self, storage: Storage, n: u64) -> Vec<u8> {
            let mut list = Vec::new();
            for _ in 0..n {
                let v = (self.below(4001) as f32 - 2000.0) / 65536.0;
                match storage {
                    Storage::F16 => list.extend(half::f16::from_f32(v).to_le_bytes()),
                    Storage::Bf16 => list.extend(half::bf16::from_f32(v).to_le_bytes()),
                    _ => list.extend(v.to_le_bytes()),
                }
            }
            list
        }

        pub fn packed(&mut self, format: ScaledFormat, scale: Storage, n: u64, k: u64) -> Packed {
            let scales = count(format.per, n, k);
            let mut codes = self.bytes(format.codes.bytes(n * k));
            if format.codes == Storage::E4m3 {
                codes.iter_mut().filter(|c| **c & 0x7f == 0x7f).for_each(|c| *c = 0);
            }
            let zeros = match format.zero {
                Zero::None => Vec::new(),
                Zero::Zero => self.bytes(scales).into_iter().map(|z| z & 15).collect(),
                Zero::Min => self.scales(scale, scales),
            };
            let scales = self.scales(scale, scales);
            Packed::new("w", (format, scale), [n, k], codes, scales, zeros).unwrap()
        }
    }

    /// A value at a time, as the reference takes it out, and back to the bytes that it was made of.
    #[test]
    fn codes_in_quads_are_the_same_weights() {
        let mut draw = Draw::new(5);
        for format in ScaledFormat::all() {
            for turn in 0..60 {
                let unit = CodeLayout::Quads.unit(format.codes);
                let (n, k) = (1 + draw.below(9), unit * (1 + turn % 4));
                let packed = draw.packed(format, Storage::F32, n, k);
                let quads = packed.codes_in(CodeLayout::Quads).unwrap();
                for i in [0, 1, k - 1, draw.below(n * k), draw.below(n * k), n * k - 1] {
                    let place = CodeLayout::Quads.place(format.codes, k, i);
                    let value = |bytes: &[u8], i| format.codes.value(bytes, i).to_bits();
                    assert_eq!(value(&quads, place), value(&packed.codes, i), "{format} {i}");
                }
                assert_eq!(packed.codes_of(CodeLayout::Quads, &quads), packed.codes);
                assert_eq!(packed.codes_in(CodeLayout::Rows).as_ref(), Some(&packed.codes));
            }
            assert_eq!(draw.packed(format, Storage::F32, 2, 96).codes_in(CodeLayout::Quads), None, "{format}");
        }
    }

    /// Code number `i` of 4 or 8 bits, the first of two in the low half of a byte.
    fn code(codes: &[u8], i: u64, bits: u64) -> u8 {
        let byte = codes[(i * bits / 8) as usize];
        if bits == 8 { byte } else { byte >> (i % 2 * 4) & 15 }
    }

    /// By the reference of a product, which takes every element out by its own definition.
    #[test]
    fn codes_and_scales_in_lanes_are_the_same_weights() {
        let mut draw = Draw::new(6);
        let layout = CodeLayout::Lanes;
        for format in ScaledFormat::all() {
            let (n, k) = (16 * (1 + draw.below(3)), 8 * (5 + draw.below(40)));
            let scale = draw.pick(&SCALES);
            let packed = draw.packed(format, scale, n, k);
            let (lanes, [scales, zeros]) = (packed.codes_in(layout).unwrap(), packed.scales_in(layout).unwrap());
            assert_eq!(packed.codes_of(layout, &lanes), packed.codes, "{format}");
            let runs = k.div_ceil(packed.run());
            for _ in 0..200 {
                let (row, col) = (draw.below(n), draw.below(k));
                let (from, to) = (row * k + col, layout.place(format.codes, k, row * k + col));
                assert_eq!(code(&lanes, to, packed.bits()), code(&packed.codes, from, packed.bits()), "{format}");
                let (from, to) = match format.per {
                    Granularity::Tensor | Granularity::Block => (packed.at(row, col), packed.at(row, col)),
                    _ => (packed.at(row, col), layout.scale_place(row, col / packed.run(), runs)),
                };
                let value = |bytes: &[u8], i| packed.scale.value(bytes, i).to_bits();
                assert_eq!(value(&scales, to), value(&packed.scales, from), "{format}");
                match format.zero {
                    Zero::None => assert!(zeros.is_empty()),
                    Zero::Zero => assert_eq!(zeros[to as usize], packed.zeros[from as usize], "{format}"),
                    Zero::Min => assert_eq!(value(&zeros, to), value(&packed.zeros, from), "{format}"),
                }
            }
            assert_eq!(draw.packed(format, Storage::F32, 24, 96).scales_in(layout), None, "{format}");
            assert_eq!(packed.scales_in(CodeLayout::Rows), Some([packed.scales.clone(), packed.zeros.clone()]));
        }
    }

    #[test]
    fn what_is_not_as_the_format_says_is_refused_by_name() {
        let mut draw = Draw::new(3);
        let format = |name| ScaledFormat::parse(name).unwrap();
        for f in ScaledFormat::all() {
            for scale in SCALES {
                let good = draw.packed(f, scale, 130, 262);
                good.check("w").unwrap();
                let wrong: [(&str, Packed); 4] = [
                    ("bytes", Packed { codes: good.codes[1..].to_vec(), ..good.clone() }),
                    ("(scales): it has", Packed { scales: [&good.scales[..], &[0]].concat(), ..good.clone() }),
                    ("(zeros): it has", Packed { zeros: [&good.zeros[..], &[0]].concat(), ..good.clone() }),
                    ("too many", Packed { n: u64::MAX, ..good.clone() }),
                ];
                for (part, packed) in wrong {
                    let e = packed.check("layer.w").unwrap_err().to_string();
                    assert!(e.starts_with("layer.w") && e.contains(part), "{e}");
                }
                let mut nan = good.clone();
                nan.scales[..scale.bytes(1) as usize].fill(0xff);
                let e = nan.check("layer.w").unwrap_err().to_string();
                assert!(e.contains("layer.w (scales): element 0 is NaN"), "{e}");
                if scale != Storage::F16 {
                    let mut huge = good.clone();
                    huge.scales[..scale.bytes(1) as usize]
                        .copy_from_slice(&3e38f32.to_le_bytes()[4 - scale.bytes(1) as usize..]);
                    let e = huge.check("layer.w").unwrap_err().to_string();
                    assert!(
                        e.contains("layer.w (scales): element 0 is ")
                            && e.contains("e38, which")
                            && e.contains("is beyond f32"),
                        "{e}"
                    );
                }
            }
        }
        let mut zeros = draw.packed(format("int4z-g32"), Storage::F16, 4, 64);
        zeros.zeros[3] = 16;
        assert!(zeros.check("w").unwrap_err().to_string().contains("element 3 is 16"));
        let mut minima = draw.packed(format("int4m-g32"), Storage::F32, 4, 64);
        minima.zeros[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert!(minima.check("w").unwrap_err().to_string().contains("(minima): element 1 is inf"));
        let mut codes = draw.packed(format("e4m3-row"), Storage::F32, 4, 64);
        codes.codes[9] = 0xff;
        assert_eq!(codes.check("w").unwrap_err().why, Fault::Code { index: 9 });
        let odd = Packed { k: 3, ..draw.packed(format("int4-g32"), Storage::F16, 2, 4) };
        assert!(odd.check("w").unwrap_err().to_string().contains("no multiple of 2"));
        assert!(Packed { scale: Storage::E4m3, ..zeros.clone() }.check("w").is_err());
        assert!(Packed { n: 0, codes: vec![], scales: vec![], zeros: vec![], ..zeros }.check("w").is_err());
    }
}
