//! Weights of a scaled format: codes of few bits, with a scale for a tensor, a row, a group of a row or a block. What formats
//! there are, the tensors that belong to one, and what a code is worth. `docs/precision.md` lists where they come from.

use super::{Fill, Input, Inputs, Layout, Problem, Storage, Tensor};
use std::fmt;

/// Side of a block that has one scale.
pub const SCALE_BLOCK: i64 = 128;

/// What part of w[n, k] one scale is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granularity {
    /// All of it: the scales are \[1\].
    Tensor,
    /// A row: \[n\].
    Row,
    /// So many consecutive elements of a row, the last group of which may be shorter: [n, ⌈k/g⌉].
    Group(u16),
    /// [`SCALE_BLOCK`]² elements, fewer at the ends: [⌈n/128⌉, ⌈k/128⌉].
    Block,
}

/// What else a code needs to become a value, one for each scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Zero {
    /// Nothing: value = code·scale, of an unsigned code of 4 bits (code − 8)·scale.
    None,
    /// A whole number in 0..=15: value = (code − zero)·scale.
    Zero,
    /// A number of the scale's type: value = code·scale + min.
    Min,
}

/// In what order the codes of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CodeLayout {
    /// As they come.
    Rows,
    /// Within each 64 bytes so that a lane of four reads what it multiplies as one vector: the 16 bytes of lane t hold, for each
    /// chunk of 32 elements in turn, those from 8t to 8t + 7. Within a word of 32 bits the two codes of a pair of elements are half a word apart
    /// (`kernel-templates/cuda/include/codes.cuh`). Rows are whole 64 bytes.
    Quads,
    /// Of 16 rows at a time their words of 32 bits in turn: the first of each row, then the second of each, so that a lane of a vector
    /// has a row. Scales, zero points and minima of rows and groups stand in the same order: of those rows the first group of each, then
    /// the second. Rows are whole words, and there are whole sixteens of them.
    Lanes,
}

/// Rows whose words stand in turn in [`CodeLayout::Lanes`].
const LANES: u64 = 16;

impl CodeLayout {
    /// The word in text and in expressions: `w.layout`.
    pub fn name(self) -> &'static str {
        match self {
            CodeLayout::Rows => "rows",
            CodeLayout::Quads => "quads",
            CodeLayout::Lanes => "lanes",
        }
    }

    /// The layout of that name.
    pub fn parse(name: &str) -> Option<CodeLayout> {
        [CodeLayout::Rows, CodeLayout::Quads, CodeLayout::Lanes].into_iter().find(|l| l.name() == name)
    }

    /// Consecutive elements of a row of which rows have whole numbers: those whose codes are in an order of their own, or of a word.
    pub fn unit(self, codes: Storage) -> u64 {
        match self {
            CodeLayout::Rows => 1,
            CodeLayout::Quads => 512 / codes.bits(),
            CodeLayout::Lanes => 32 / codes.bits(),
        }
    }

    /// Rows that are stored together.
    pub fn rows(self) -> u64 {
        if self == CodeLayout::Lanes { LANES } else { 1 }
    }

    /// Whether w[n, k] can be stored so.
    pub fn holds(self, codes: Storage, [n, k]: [u64; 2]) -> bool {
        n.is_multiple_of(self.rows()) && k.is_multiple_of(self.unit(codes))
    }

    /// Where among the codes of `codes` that of element `i` is stored, of all rows of `k` one after the other.
    pub fn place(self, codes: Storage, k: u64, i: u64) -> u64 {
        let unit = self.unit(codes);
        match self {
            CodeLayout::Rows => return i,
            CodeLayout::Lanes => {
                let (row, col) = (i / k, i % k);
                return (row - row % LANES) * k + col / unit * (LANES * unit) + row % LANES * unit + col % unit;
            }
            CodeLayout::Quads => {}
        }
        let (first, at) = (i - i % unit, i % unit);
        let (chunk, lane, of_lane) = (at / 32, at % 32 / 8, at % 8);
        // Codes of a word, and its pairs.
        let word = 32 / codes.bits();
        let (in_word, pairs) = (of_lane % word, word / 2);
        first + lane * (unit / 4) + chunk * 8 + of_lane / word * word + in_word % 2 * pairs + in_word / 2
    }

    /// Where among the scales, or the zero points or minima, is that of run `run` of a row, of which a row has `runs`. Only those of rows and
    /// groups have an order.
    pub fn scale_place(self, row: u64, run: u64, runs: u64) -> u64 {
        match self {
            CodeLayout::Lanes => (row - row % LANES) * runs + run * LANES + row % LANES,
            CodeLayout::Rows | CodeLayout::Quads => row * runs + run,
        }
    }
}

/// How the codes of weights become values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scaling {
    /// What one scale is for.
    pub per: Granularity,
    /// The type of scales, and of minima: f32, f16 or bf16.
    pub storage: Storage,
    /// What else a code needs.
    pub zero: Zero,
    /// In what order codes are stored.
    pub layout: CodeLayout,
}

impl Granularity {
    /// The word in expressions: `w.scale`.
    pub fn name(self) -> &'static str {
        match self {
            Granularity::Tensor => "tensor",
            Granularity::Row => "row",
            Granularity::Group(_) => "group",
            Granularity::Block => "block",
        }
    }

    /// Consecutive elements of a row of `k` that share a scale.
    pub fn run(self, k: i64) -> i64 {
        match self {
            Granularity::Tensor | Granularity::Row => k,
            Granularity::Group(g) => g.into(),
            Granularity::Block => SCALE_BLOCK,
        }
    }

    /// The shape of the scales of w[n, k].
    pub fn scales(self, n: i64, k: i64) -> Vec<i64> {
        let up = |size: i64, each: i64| size / each + i64::from(size % each != 0);
        match self {
            Granularity::Tensor => vec![1],
            Granularity::Row => vec![n],
            Granularity::Group(g) => vec![n, up(k, g.into())],
            Granularity::Block => vec![up(n, SCALE_BLOCK), up(k, SCALE_BLOCK)],
        }
    }

    /// The type of scales that text need not say, for results of type `y`: f32, and for groups that of results, f16 where they are f32.
    pub fn usual_scale(self, y: Storage) -> Storage {
        match (self, y) {
            (Granularity::Group(_), Storage::F16 | Storage::Bf16) => y,
            (Granularity::Group(_), _) => Storage::F16,
            _ => Storage::F32,
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::Tensor | Granularity::Row => f.write_str(self.name()),
            Granularity::Group(g) => write!(f, "g{g}"),
            Granularity::Block => write!(f, "b{SCALE_BLOCK}"),
        }
    }
}

impl Zero {
    /// The word in expressions: `w.zero`.
    pub fn name(self) -> &'static str {
        match self {
            Zero::None => "none",
            Zero::Zero => "zero",
            Zero::Min => "min",
        }
    }
}

struct Family {
    name: &'static str,
    codes: Storage,
    zero: Zero,
    per: &'static [Granularity],
}

use Granularity::{Block, Group, Row, Tensor as Whole};

const OF_INT4: &[Granularity] = &[Group(32), Group(64), Group(128), Row];
const FAMILIES: [Family; 5] = [
    Family { name: "int4", codes: Storage::Int4, zero: Zero::None, per: OF_INT4 },
    Family { name: "int4z", codes: Storage::Int4, zero: Zero::Zero, per: OF_INT4 },
    Family { name: "int4m", codes: Storage::Int4, zero: Zero::Min, per: OF_INT4 },
    Family {
        name: "int8",
        codes: Storage::Int8,
        zero: Zero::None,
        per: &[Whole, Row, Group(16), Group(32), Group(128)],
    },
    Family { name: "e4m3", codes: Storage::E4m3, zero: Zero::None, per: &[Whole, Row, Block] },
];

/// A format of scaled weights without the type of its scales: `int4-g128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScaledFormat {
    /// What codes are stored as: Int4, Int8 or E4m3.
    pub codes: Storage,
    /// What one scale is for.
    pub per: Granularity,
    /// What else a code needs.
    pub zero: Zero,
}

impl ScaledFormat {
    /// Every format.
    pub fn all() -> impl Iterator<Item = ScaledFormat> {
        let of = |f: &'static Family| f.per.iter().map(|per| ScaledFormat { codes: f.codes, per: *per, zero: f.zero });
        FAMILIES.iter().flat_map(of)
    }

    /// The format of that name.
    pub fn parse(name: &str) -> Option<ScaledFormat> {
        ScaledFormat::all().find(|f| f.to_string() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        let one = |f: &Family| {
            let per: Vec<String> = f.per.iter().map(ToString::to_string).collect();
            format!("{}-{}", f.name, per.join("|"))
        };
        FAMILIES.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The zero point of codes that have none of their own: 8 of 4 bits, else 0.
    pub fn bias(self) -> u8 {
        if (self.codes, self.zero) == (Storage::Int4, Zero::None) { 8 } else { 0 }
    }
}

impl fmt::Display for ScaledFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = FAMILIES.iter().find(|family| (family.codes, family.zero) == (self.codes, self.zero));
        write!(f, "{}-{}", family.map_or(self.codes.name(), |family| family.name), self.per)
    }
}

impl Scaling {
    /// The format of codes that are stored so.
    pub fn format(self, codes: Storage) -> ScaledFormat {
        ScaledFormat { codes, per: self.per, zero: self.zero }
    }

    /// Says why weights of this storage cannot have it.
    pub(super) fn check(self, w: Storage) -> Result<(), String> {
        let format = self.format(w);
        if !ScaledFormat::all().any(|f| f == format) {
            return Err(format!("no format has weights in {w} with {self:?}; formats are {}", ScaledFormat::names()));
        }
        match self.storage {
            Storage::F32 | Storage::F16 | Storage::Bf16 => Ok(()),
            other => Err(format!("scales are f32, f16 or bf16, not {other}")),
        }
    }
}

/// What the weights of an op are called: w[n, k], or a table [vocab, hidden].
struct Names {
    n: &'static str,
    k: &'static str,
    w: &'static str,
    scales: &'static str,
    zeros: &'static str,
    mins: &'static str,
}

const PRODUCT: Names = Names { n: "n", k: "k", w: "w", scales: "w_scales", zeros: "w_zeros", mins: "w_mins" };
const TABLE: Names =
    Names { n: "vocab", k: "hidden", w: "table", scales: "table_scales", zeros: "table_zeros", mins: "table_mins" };

impl Names {
    fn of(p: &Problem) -> &'static Names {
        if p.has("vocab") { &TABLE } else { &PRODUCT }
    }
}

/// The elements of a row of the weights, 0 of an op that has none, and what they are called.
pub(crate) fn row(p: &Problem) -> (i64, &'static str) {
    let name = Names::of(p).k;
    (if p.has(name) { p.dim(name) } else { 0 }, name)
}

/// Says why the weights of a problem cannot be of their format in its shape.
pub(super) fn check(p: &Problem) -> Result<(), String> {
    let layout = p.types.scaling.map_or(CodeLayout::Rows, |s| s.layout);
    let (unit, rows) = (layout.unit(p.types.w), layout.rows());
    let (names, (k, name)) = (Names::of(p), row(p));
    if !layout.holds(p.types.w, [p.dim(names.n), k].map(|d| d as u64)) {
        return Err(match layout {
            CodeLayout::Lanes => {
                format!(
                    "lanes have whole words of {rows} rows, so {} is a multiple of {rows} and {name} of {unit}",
                    names.n
                )
            }
            _ => format!("rows in quads are whole 64 bytes of codes, so {name} is a multiple of {unit}"),
        });
    }
    match (p.types.w, k % 2) {
        (Storage::Int4, 1) => Err(format!("a byte holds two codes of a row, so {name} must be even")),
        _ => Ok(()),
    }
}

/// The weights of a problem, their rows laid so, with what scales them. Values have the variance of one in so many
/// terms.
pub(super) fn tensors(p: &Problem, rows: Layout, terms: i64) -> Vec<Tensor> {
    let names = Names::of(p);
    let ([n, k], w) = ([names.n, names.k].map(|name| p.dim(name)), p.types.w);
    let Some(scaling) = p.types.scaling else {
        let fill = Fill::Uniform { scale: (3.0 / terms as f32).sqrt() };
        return vec![Tensor::input(names.w, w, &[n, k], fill).laid(rows)];
    };
    // The mean square of a code less its zero point, and of one with its minimum, in units of the scale's mean. Scales are uniform in
    // [0.5, 1.5) of it and have a mean square of 13/12 units.
    const SPREAD: f64 = 13.0 / 12.0;
    let (codes, square) = match (w, scaling.zero) {
        (Storage::Int4, Zero::None) => (Fill::Codes { bits: 4 }, 21.5 * SPREAD),
        (Storage::Int4, Zero::Zero) => (Fill::Codes { bits: 4 }, 42.5 * SPREAD),
        (Storage::Int4, Zero::Min) => (Fill::Codes { bits: 4 }, (77.5 + 56.25) * SPREAD - 112.5),
        (Storage::Int8, _) => (Fill::Codes { bits: 8 }, 5461.5 * SPREAD),
        _ => (Fill::Uniform { scale: 448.0 }, 448.0 * 448.0 / 3.0 * SPREAD),
    };
    let unit = (terms as f64 * square).sqrt().recip() as f32;
    let between = |low: f32, high: f32| Fill::Between { low: low * unit, high: high * unit };
    let shape = scaling.per.scales(n, k);
    // What belongs to rows goes where they go.
    let laid = if matches!(scaling.per, Row | Group(_)) { rows } else { Layout::RowMajor };
    let mut list = vec![
        Tensor::input(names.w, w, &[n, k], codes).laid(rows),
        Tensor::input(names.scales, scaling.storage, &shape, between(0.5, 1.5)).laid(laid),
    ];
    match scaling.zero {
        Zero::None => {}
        Zero::Zero => {
            let zeros = [n, shape.get(1).copied().unwrap_or(1)];
            list.push(Tensor::input(names.zeros, Storage::U8, &zeros, Fill::Codes { bits: 4 }).laid(laid));
        }
        // As far below zero as the middle of the codes is above it.
        Zero::Min => {
            list.push(Tensor::input(names.mins, scaling.storage, &shape, between(-11.25, -3.75)).laid(laid));
        }
    }
    list
}

/// The weights of a product as values.
pub(super) struct Weights<'a> {
    k: u64,
    codes: Storage,
    w: &'a Input,
    scaled: Option<Scaled<'a>>,
}

struct Scaled<'a> {
    scaling: Scaling,
    scales: &'a Input,
    /// Zero points or minima.
    zeros: Option<&'a Input>,
    /// Elements that share a scale, and how many times a row has that many.
    run: u64,
    runs: u64,
    /// What a code is less by where there are no zero points.
    bias: f64,
}

impl<'a> Weights<'a> {
    pub(super) fn of(p: &Problem, inputs: &'a Inputs) -> Weights<'a> {
        let (names, k) = (Names::of(p), row(p).0);
        let scaled = p.types.scaling.map(|scaling| {
            let run = scaling.per.run(k) as u64;
            let zeros = match scaling.zero {
                Zero::None => None,
                Zero::Zero => Some(inputs.get(names.zeros)),
                Zero::Min => Some(inputs.get(names.mins)),
            };
            let bias = scaling.format(p.types.w).bias().into();
            Scaled { scaling, scales: inputs.get(names.scales), zeros, run, runs: (k as u64).div_ceil(run), bias }
        });
        Weights { k: k as u64, codes: p.types.w, w: inputs.get(names.w), scaled }
    }

    /// The dot product of x[k] and a row.
    pub(super) fn dot(&self, x: &[f64], row: u64) -> f64 {
        let at = row * self.k;
        let Some(s) = &self.scaled else {
            return x.iter().zip(at..).map(|(x, i)| x * self.w.at(i)).sum();
        };
        let mut sum = 0.0;
        for ((part, run), first) in x.chunks(s.run as usize).zip(0..).zip((at..).step_by(s.run as usize)) {
            let (scale, zero, min) = s.of(row, run);
            let code = |i| self.w.at(s.scaling.layout.place(self.codes, self.k, i));
            sum += part.iter().zip(first..).map(|(x, i)| x * ((code(i) - zero) * scale + min)).sum::<f64>();
        }
        sum
    }
}

impl Weights<'_> {
    /// The element of a row.
    pub(super) fn at(&self, row: u64, col: u64) -> f64 {
        let at = row * self.k + col;
        match &self.scaled {
            None => self.w.at(at),
            Some(s) => {
                let (scale, zero, min) = s.of(row, col / s.run);
                (self.w.at(s.scaling.layout.place(self.codes, self.k, at)) - zero) * scale + min
            }
        }
    }
}

impl Scaled<'_> {
    /// Scale, zero point and minimum of a run of a row.
    fn of(&self, row: u64, run: u64) -> (f64, f64, f64) {
        let at = match self.scaling.per {
            Whole => 0,
            Row | Group(_) => self.scaling.layout.scale_place(row, run, self.runs),
            Block => row / SCALE_BLOCK as u64 * self.runs + run,
        };
        let zero = self.zeros.map_or(self.bias, |zeros| zeros.at(at));
        let scale = self.scales.at(at);
        if self.scaling.zero == Zero::Min { (scale, 0.0, zero) } else { (scale, zero, 0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Role, Types, expected};

    fn problem(format: ScaledFormat, rest: &str) -> Problem {
        format!("matmul m=2 n=131 k=300 {rest} w={format}").parse().unwrap()
    }

    /// The value of an element of w by the definition, from what `write` stores.
    fn value(p: &Problem, inputs: &Inputs, row: i64, col: i64) -> f64 {
        let stored = |name: &str, index: i64| {
            let input = inputs.get(name);
            let mut bytes = vec![0; input.tensor.bytes() as usize];
            input.write(0, &mut bytes);
            input.tensor.storage.value(&bytes, index as u64)
        };
        let (k, scaling) = (p.dim("k"), p.types().scaling.unwrap());
        let at = match scaling.per {
            Granularity::Tensor => 0,
            Granularity::Row => row,
            Granularity::Group(g) => row * ((k + i64::from(g) - 1) / i64::from(g)) + col / i64::from(g),
            Granularity::Block => row / 128 * ((k + 127) / 128) + col / 128,
        };
        let (code, scale) = (stored("w", row * k + col), stored("w_scales", at));
        match (p.types().w, scaling.zero) {
            (Storage::Int4, Zero::None) => (code - 8.0) * scale,
            (_, Zero::None) => code * scale,
            (_, Zero::Zero) => (code - stored("w_zeros", at)) * scale,
            (_, Zero::Min) => code * scale + stored("w_mins", at),
        }
    }

    #[test]
    fn weights_are_what_packed_bytes_say() {
        for format in ScaledFormat::all() {
            for rest in ["dtype=bf16", "dtype=f32", "dtype=f16 scale=f32"] {
                let p = problem(format, rest);
                let inputs = Inputs::new(&p, 3);
                let weights = Weights::of(&p, &inputs);
                for (row, col) in [(0, 0), (0, 1), (1, 31), (5, 33), (127, 127), (128, 128), (130, 299), (77, 256)] {
                    let mut x = vec![0.0; 300];
                    x[col as usize] = 1.0;
                    let wanted = value(&p, &inputs, row, col);
                    assert_eq!(weights.dot(&x, row as u64), wanted, "{p} {row} {col}");
                }
            }
        }
    }

    /// Where a lane finds what: by the words of its vector and their shifts, as kernels take codes out.
    #[test]
    fn quads_are_vectors_of_lanes() {
        for codes in [Storage::Int4, Storage::Int8, Storage::E4m3] {
            let (layout, bits) = (CodeLayout::Quads, codes.bits());
            let unit = layout.unit(codes);
            let places: std::collections::BTreeSet<u64> = (0..2 * unit).map(|i| layout.place(codes, unit, i)).collect();
            assert_eq!(places, (0..2 * unit).collect(), "{codes}");
            for i in 0..unit {
                let bit = layout.place(codes, unit, i) * bits;
                let (lane, bit) = (bit / 128, bit % 128);
                let (word, shift) = (bit / 32, bit % 32);
                // Pairs lie in both halves of a word; a chunk of 32 elements is one word of 4 bits, or two of 8.
                let (half, pair, of_chunk) = (shift / 16, shift % 16 / bits, bits / 4);
                let first = word / of_chunk * 32 + word % of_chunk * (32 / bits);
                assert_eq!(i, first + lane * 8 + 2 * pair + half, "{codes}");
            }
        }
        for (text, why) in [
            ("matmul m=1 n=2 k=192 w=int4-g32 layout=quads", "multiple of 128"),
            ("matmul m=1 n=2 k=128 w=int4-g32 layout=rows layout=quads", "twice"),
            ("matmul m=1 n=2 k=128 layout=quads", "no codes"),
            ("matmul m=1 n=2 k=128 w=int8-row layout=tiles", "rows, quads, lanes"),
            ("matmul m=1 n=24 k=128 w=int8-row layout=lanes", "n is a multiple of 16"),
            ("matmul m=1 n=32 k=44 w=int4-g32 layout=lanes", "k of 8"),
        ] {
            let said = text.parse::<Problem>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
        let text = "matmul m=1 n=2 k=128 epilogue=none dtype=bf16 w=int4z-g32 scale=f16 layout=quads";
        let p: Problem = text.parse().unwrap();
        assert_eq!(p.to_string().parse::<Problem>().unwrap(), p);
        assert!(p.to_string().ends_with("w=int4z-g32 scale=f16 layout=quads"), "{p}");
    }

    /// A vector of 16 words has one of each row; so have vectors of scales.
    #[test]
    fn lanes_are_words_of_rows() {
        for (codes, word) in [(Storage::Int4, 8), (Storage::Int8, 4)] {
            let (k, n) = (5 * word, 48);
            for (row, col) in (0..n).flat_map(|row| (0..k).map(move |col| (row, col))) {
                let place = CodeLayout::Lanes.place(codes, k, row * k + col);
                let vector = place / (16 * word);
                assert_eq!(vector, row / 16 * 5 + col / word);
                assert_eq!((place / word % 16, place % word), (row % 16, col % word));
            }
        }
        assert_eq!(CodeLayout::Lanes.scale_place(17, 2, 3), 48 + 2 * 16 + 1);
        assert_eq!(CodeLayout::Lanes.scale_place(17, 0, 1), 17);
        for format in ScaledFormat::all() {
            let p: Problem = format!("matmul m=1 n=48 k=200 dtype=f32 w={format} layout=lanes").parse().unwrap();
            let rows: Problem = p.to_string().replace(" layout=lanes", "").parse().unwrap();
            assert_eq!(p.bytes(), rows.bytes());
            assert_eq!(p.to_string().parse::<Problem>().unwrap(), p);
            for op in ["matmul", "qkv", "embedding"] {
                let op = super::super::OPS.iter().find(|o| o.name == op).unwrap();
                let probe = op.probe(p.types()).unwrap();
                assert!(probe.is_probe() && op.probe(rows.types()).is_some(), "{probe}");
            }
        }
    }

    #[test]
    fn results_have_unit_variance_and_codes_their_whole_range() {
        for format in ScaledFormat::all() {
            let p: Problem = format!("matmul m=4 n=256 k=512 w={format}").parse().unwrap();
            let inputs = Inputs::new(&p, 3);
            let all = expected(&p, &inputs, 1, u64::MAX / 2);
            let variance = all.iter().map(|e| e.value * e.value).sum::<f64>() / all.len() as f64;
            assert!((0.75..1.3).contains(&variance), "{p}: {variance}");
            let range = |name: &str| {
                let w = inputs.get(name);
                let of = |f: fn(f64, f64) -> f64, from| (0..w.tensor.len()).map(|i| w.at(i)).fold(from, f);
                (of(f64::min, f64::INFINITY), of(f64::max, f64::NEG_INFINITY))
            };
            let most = match p.types().w {
                Storage::Int4 => (0.0, 15.0),
                Storage::Int8 => (-128.0, 127.0),
                _ => (-448.0, 448.0),
            };
            assert_eq!(range("w"), most, "{p}");
            if p.types().scaling.unwrap().zero == Zero::Zero {
                assert_eq!(range("w_zeros"), most, "{p}");
            }
        }
    }

    #[test]
    fn text_says_formats_and_scales() {
        for text in [
            "matmul m=1 n=8192 k=8192 dtype=bf16 w=int4-g128",
            "matmul m=1 n=8192 k=8192 dtype=bf16 w=int4z-g32 scale=f16",
            "matmul m=1 n=8192 k=8192 dtype=f32 w=int4m-row scale=bf16",
            "matmul m=1 n=8192 k=8192 epilogue=swiglu dtype=f16 w=int8-g16 scale=f32 y=f32",
            "matmul m=1 n=8192 k=8192 dtype=e4m3 w=e4m3-tensor",
            "matmul m=1 n=8192 k=8191 dtype=bf16 w=e4m3-b128",
            "qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=f16 w=int4-g64 | pages=16",
            "norm_matmul m=4 n=64 k=2048 dtype=bf16 w=int8-row",
            "norm_qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=f32 w=int4z-g128",
        ] {
            let p: Problem = text.parse().unwrap();
            assert_eq!(p.to_string(), text);
            assert_eq!(p.full_text().parse::<Problem>().unwrap(), p);
        }
        let p: Problem = "matmul m=1 n=6 k=8 dtype=f32 w=int4-g32 scale=f16".parse().unwrap();
        assert_eq!(p.to_string(), "matmul m=1 n=6 k=8 dtype=f32 w=int4-g32");
        assert_eq!(ScaledFormat::all().filter(|f| ScaledFormat::parse(&f.to_string()) == Some(*f)).count(), 20);
        for (text, part) in [
            ("matmul m=1 n=2 k=3 w=int4-g32", "even"),
            ("qkv m=1 k=3 heads=1 kv_heads=1 head_dim=2 w=int4-row", "even"),
            ("matmul m=1 n=2 k=4 w=int4-g16", "int4-g32|g64|g128|row"),
            ("matmul m=1 n=2 k=4 w=int4", "int4-g32|g64|g128|row"),
            ("matmul m=1 n=2 k=4 w=e4m3 scale=f32", "no scales"),
            ("matmul m=1 n=2 k=4 w=int8-row scale=e4m3", "one of f32, f16, bf16"),
            ("matmul m=1 n=2 k=4 w=int8-row scale=f32 scale=f32", "given twice"),
            ("matmul m=1 n=2 k=4 w=int8-row dtype=tf32", "f32 by f32"),
            ("qkv m=1 k=4 heads=1 kv_heads=1 head_dim=2 w=bf16", "one of int4-g32"),
            ("norm_matmul m=1 n=2 k=4 w=int8-row dtype=e4m3", "of one type"),
            ("rmsnorm rows=1 cols=4 w=int8-row", "not a dimension"),
        ] {
            let e = text.parse::<Problem>().unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn impossible_types_of_a_program_are_refused() {
        let p: Problem = "matmul m=1 n=2 k=4 w=int8-row".parse().unwrap();
        let (types, scaling) = (p.types(), p.types().scaling.unwrap());
        for (types, part) in [
            (Types { scaling: None, ..types }, "int8"),
            (Types { w: Storage::U8, ..types }, "u8"),
            (Types { w: Storage::Bf16, ..types }, "bf16"),
            (Types { scaling: Some(Scaling { per: Granularity::Group(7), ..scaling }), ..types }, "Group(7)"),
            (Types { scaling: Some(Scaling { zero: Zero::Min, ..scaling }), ..types }, "Min"),
            (Types { scaling: Some(Scaling { storage: Storage::E4m3, ..scaling }), ..types }, "scales are f32"),
            (Types { x: Storage::Int8, ..types }, "integers"),
        ] {
            let e = p.with_types(types).unwrap_err().to_string();
            assert!(e.contains(part), "{e}");
        }
    }

    #[test]
    fn bytes_count_codes_scales_and_zeros() {
        for (text, bytes) in [
            ("matmul m=1 n=256 k=512 w=int4-g128", 256 * 256 + 256 * 4 * 2),
            ("matmul m=1 n=256 k=520 w=int4z-g128", 256 * 260 + 256 * 5 * 3),
            ("matmul m=1 n=256 k=512 w=int4m-g32 scale=f32", 256 * 256 + 256 * 16 * 8),
            ("matmul m=1 n=256 k=512 w=int4z-row", 256 * 256 + 256 * 5),
            ("matmul m=1 n=256 k=512 w=int8-tensor", 256 * 512 + 4),
            ("matmul m=1 n=257 k=512 w=e4m3-b128", 257 * 512 + 3 * 4 * 4),
        ] {
            let p: Problem = text.parse().unwrap();
            let rest: u64 = p.tensors().iter().filter(|t| ["x", "y"].contains(&t.name)).map(Tensor::bytes).sum();
            assert_eq!(p.bytes() - rest, bytes, "{text}");
        }
    }

    #[test]
    fn tensors_stand_in_the_order_of_the_contract() {
        for (text, names) in [
            ("matmul m=1 n=2 k=4 epilogue=bias_residual w=int4-row", "x w w_scales bias residual y"),
            ("matmul m=1 n=2 k=4 epilogue=bias w=int4z-g32", "x w w_scales w_zeros bias y"),
            ("norm_matmul m=1 n=2 k=4 w=int4m-g32", "x norm w w_scales w_mins y"),
            (
                "qkv m=1 k=4 heads=1 kv_heads=1 head_dim=2 bias=1 w=int8-row",
                "x w w_scales bias positions slots cos_sin y k_cache v_cache",
            ),
        ] {
            let p: Problem = text.parse().unwrap();
            assert_eq!(p.tensors().iter().map(|t| t.name).collect::<Vec<_>>().join(" "), names);
            assert!(p.tensors().iter().filter(|t| t.role == Role::In).all(|t| t.fill != Fill::Output));
        }
    }

    #[test]
    fn portable_problems_have_several_groups() {
        for format in ScaledFormat::all() {
            for op in ["matmul m=1 n=4 k=8", "qkv m=1 k=8 heads=1 kv_heads=1 head_dim=2"] {
                let p: Problem = format!("{op} w={format}").parse().unwrap();
                let probe = p.op().probe(p.types()).unwrap();
                assert!(probe.is_probe() && probe.dim("k") > 2 * 128 && probe.dim("k") % 16 != 0, "{probe}");
            }
        }
    }
}
