//! The textual form of a problem, `matmul m=7 n=1000 k=1544 dtype=f32`, and its checks.

use super::{
    CodeLayout, DimDef, DimKind, Dtype, LEVEL, MAX_DIM, MAX_DIMS, MAX_TENSOR_ELEMENTS, OPS, Part, Problem, REAL_UNIT,
    ScaledFormat, Scaling, Storage, Types, XFormat,
};
use std::{borrow::Cow, fmt, str::FromStr};

/// A problem that cannot be: unknown words, missing or impossible dimensions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// The text is empty.
    #[error("a problem is written like 'matmul m=1 n=2048 k=2048 dtype=bf16'; this one is empty")]
    Empty,
    /// No op of that name.
    #[error("unknown op '{name}'; ops are: {list}", name = short(.0), list = OPS.iter().map(|o| o.name).collect::<Vec<_>>().join(", "))]
    UnknownOp(String),
    /// A field is not `name=value` of this op.
    #[error("'{field}' is not a dimension of {op}; it takes: {takes}", field = short(.field))]
    UnknownField {
        /// The op.
        op: &'static str,
        /// The offending text.
        field: String,
        /// What the op takes.
        takes: String,
    },
    /// A value is not allowed.
    #[error("{op}: {field}={value} is impossible: {why}", value = short(.value))]
    BadValue {
        /// The op.
        op: &'static str,
        /// The dimension.
        field: String,
        /// The given value.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// A dimension is given twice.
    #[error("{op}: {field}= is given twice")]
    Twice {
        /// The op.
        op: &'static str,
        /// The dimension.
        field: String,
    },
    /// A dimension without a default is not given.
    #[error("{op} needs {field}=…")]
    Missing {
        /// The op.
        op: &'static str,
        /// The dimension.
        field: &'static str,
    },
    /// The dimensions do not fit together.
    #[error("{problem}: {why}")]
    Impossible {
        /// The problem as read.
        problem: String,
        /// Why not.
        why: String,
    },
}

/// As much of a text as a message has room for.
fn short(text: &str) -> Cow<'_, str> {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
        None => text.into(),
    }
}

impl Problem {
    pub(super) fn set(&mut self, name: &str, value: i64) -> Result<(), ProblemError> {
        let op = self.op();
        let bad = |why: &str| ProblemError::BadValue {
            op: op.name,
            field: name.into(),
            value: value.to_string(),
            why: why.into(),
        };
        let Some(i) = op.dims.iter().position(|d| d.name == name) else {
            return Err(unknown_field(op, name));
        };
        let least = match op.dims[i].kind {
            DimKind::Required => 1,
            _ => 0,
        };
        if value < least || value > MAX_DIM {
            return Err(bad(&format!("it must lie in {least}..={MAX_DIM}")));
        }
        self.dims[i] = value as i32;
        Ok(())
    }

    pub(super) fn validate(&self) -> Result<(), ProblemError> {
        let impossible = |why: String| ProblemError::Impossible { problem: self.to_string(), why };
        self.types.check().map_err(impossible)?;
        if self.types.scaling.is_some() && !self.op().scaled {
            return Err(impossible(format!("{} has no scaled weights", self.op().name)));
        }
        if self.types.x_scales.is_some() && !self.has("k") {
            return Err(impossible(format!("{} has no tokens of a scaled format", self.op().name)));
        }
        if self.types.kv.is_some() && !self.op().cached {
            return Err(impossible(format!("{} has no caches", self.op().name)));
        }
        let said_by_one = self.types.unscaled().dtype().is_some_and(|d| d != Dtype::E4m3);
        if !self.op().mixed && !said_by_one {
            let why = format!("{} is for matmul alone; here all tensors are of one type", self.types);
            return Err(impossible(why));
        }
        (self.op().check)(self).map_err(impossible)?;
        for t in self.tensors() {
            let elements = t.shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d));
            if elements.is_none_or(|e| e > MAX_TENSOR_ELEMENTS) {
                return Err(impossible(format!("tensor {} would have over {MAX_TENSOR_ELEMENTS} elements", t.name)));
            }
        }
        Ok(())
    }

    /// The dimensions as names and values for expressions: integers as they are, words as text.
    pub fn variables(&self) -> Vec<(&'static str, Variable)> {
        let op = self.op();
        op.dims
            .iter()
            .map(|d| match d.kind {
                DimKind::Word(_) => (d.name, Variable::Word(self.word(d.name))),
                DimKind::Real(_) => (d.name, Variable::Real(self.real(d.name))),
                _ => (d.name, Variable::Int(self.dim(d.name))),
            })
            .collect()
    }
}

/// A dimension's value as expressions see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variable {
    /// An integer.
    Int(i64),
    /// A word.
    Word(&'static str),
    /// A real number.
    Real(f64),
}

/// The real number that is stored as `units`, the nearest to it in decimal.
pub(super) fn real(units: i32) -> f64 {
    // Division by the exact 10^12 is rounded once, so that 10_000_000 units are the very f64 that 1e-5 reads as.
    f64::from(units) / 1e12
}

/// A number in units, where it is a whole number of them, or was one before it was rounded to f32: 9.999999747378752e-6 is what is
/// left of 1e-5 there.
fn units(value: f64) -> Option<i32> {
    let exact = |value: f64| {
        let units = (value / REAL_UNIT).round();
        let within = units >= 0.0 && units <= f64::from(i32::MAX);
        (within && real(units as i32) == value).then_some(units as i32)
    };
    let narrow = value as f32;
    let decimal = || (f64::from(narrow) == value).then(|| narrow.to_string().parse().ok()).flatten();
    exact(value).or_else(|| exact(decimal()?))
}

fn unknown_field(op: &super::OpDef, field: &str) -> ProblemError {
    let takes = op
        .dims
        .iter()
        .filter_map(|d| match d.kind {
            DimKind::Required => Some(format!("{}=…", d.name)),
            DimKind::Computed(_) => Some(format!("[{}=…]", d.name)),
            DimKind::Optional(v) => Some(format!("[{}={v}]", d.name)),
            DimKind::Real(v) => Some(format!("[{}={v:e}]", d.name)),
            DimKind::Word(w) => Some(format!("[{}={}]", d.name, w.join("|"))),
            DimKind::Derived(_) => None,
        })
        .collect::<Vec<_>>()
        .join(" ");
    ProblemError::UnknownField {
        op: op.name,
        field: field.into(),
        takes: format!(
            "{takes} [dtype={}]{}{}{}",
            Dtype::names().replace(", ", "|"),
            if op.mixed { " [w=bf16|f16|f32|e4m3] [y=bf16|f16|f32]" } else { "" },
            if op.scaled {
                format!(
                    " [x={}] [w={}] [scale=f32|f16|bf16] [layout=rows|quads|lanes]",
                    XFormat::names(),
                    ScaledFormat::names()
                )
            } else {
                String::new()
            },
            if op.cached { " [kv=e4m3|f16|bf16]" } else { "" }
        ),
    }
}

/// The text of a QKV step as records and rows of 2026-11 have it, when it was an epilogue of `matmul`, in today's form.
fn of_old_records(text: &str) -> Option<String> {
    let fields = text.strip_prefix("matmul ")?.split_whitespace();
    let bias = fields.clone().find_map(|f| match f.strip_prefix("epilogue=")? {
        "rope_kv" => Some(0),
        "bias_rope_kv" => Some(1),
        _ => None,
    })?;
    let kept: Vec<&str> = fields.filter(|f| !f.starts_with("epilogue=") && !f.starts_with("n=")).collect();
    Some(format!("qkv bias={bias} {}", kept.join(" ")))
}

/// What a tensor of a product may be stored as, and what scales may be.
const PLAIN: [Storage; 4] = [Storage::Bf16, Storage::F16, Storage::F32, Storage::E4m3];
const SCALES: [Storage; 3] = [Storage::F32, Storage::F16, Storage::Bf16];
/// What caches may be stored as that are not what results are.
const CACHES: [Storage; 3] = [Storage::E4m3, Storage::F16, Storage::Bf16];

/// What `w=` says.
enum Weights {
    Plain(Storage),
    Scaled(ScaledFormat),
}

/// The one of `all` that a text names; an error lists them.
fn stored(text: &str, all: &[Storage]) -> Result<Storage, String> {
    let names = || all.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
    all.iter().find(|s| s.name() == text).copied().ok_or_else(|| format!("it is one of {}", names()))
}

fn weights(text: &str, mixed: bool) -> Result<Weights, String> {
    if let Some(format) = ScaledFormat::parse(text) {
        return Ok(Weights::Scaled(format));
    }
    let plain = if mixed { &PLAIN[..] } else { &[] };
    stored(text, plain).map(Weights::Plain).map_err(|why| {
        let between = if mixed { ", " } else { "" };
        format!("{why}{between}{}", ScaledFormat::names())
    })
}

impl FromStr for Problem {
    type Err = ProblemError;

    fn from_str(text: &str) -> Result<Problem, ProblemError> {
        let old = of_old_records(text.trim());
        let text = old.as_deref().unwrap_or(text);
        let mut words = text.split_whitespace();
        let name = words.next().ok_or(ProblemError::Empty)?;
        let op = OPS.iter().position(|o| o.name == name).ok_or_else(|| ProblemError::UnknownOp(name.into()))?;
        let mut p = Problem { op: op as u8, types: Dtype::Bf16.into(), dims: [0; MAX_DIMS] };
        let def = p.op();
        let (mut given, mut dtype) = ([false; MAX_DIMS], None);
        let (mut x, mut w, mut y, mut scale, mut layout, mut kv) = (None, None, None, None, None, None);
        for (i, d) in def.dims.iter().enumerate() {
            p.dims[i] = match d.kind {
                DimKind::Optional(v) => v as i32,
                DimKind::Real(v) => units(v).unwrap_or(0),
                _ => 0,
            };
        }
        // The bar only parts what a look-up compares from what it does not; where a field stands says nothing more.
        for word in words.filter(|w| *w != "|") {
            let (field, value) = word.split_once('=').ok_or_else(|| unknown_field(def, word))?;
            let bad =
                |why: String| ProblemError::BadValue { op: def.name, field: field.into(), value: value.into(), why };
            let twice = || ProblemError::Twice { op: def.name, field: field.into() };
            if field == "dtype" {
                let read = Dtype::parse(value).ok_or_else(|| bad(format!("it is one of {}", Dtype::names())))?;
                if dtype.replace(read).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if def.mixed && field == "y" {
                if y.replace(stored(value, &PLAIN).map_err(bad)?).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if def.scaled && def.name != "embedding" && field == "x" {
                let read = XFormat::parse(value).ok_or_else(|| bad(format!("it is one of {}", XFormat::names())))?;
                if x.replace(read).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if (def.mixed || def.scaled) && field == "w" {
                if w.replace(weights(value, def.mixed).map_err(bad)?).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if def.cached && field == "kv" {
                let read = stored(value, &CACHES).map_err(bad)?;
                if kv.replace(read).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if def.scaled && field == "scale" {
                if scale.replace(stored(value, &SCALES).map_err(bad)?).is_some() {
                    return Err(twice());
                }
                continue;
            }
            if def.scaled && field == "layout" {
                let read = CodeLayout::parse(value).ok_or_else(|| bad("it is one of rows, quads, lanes".into()))?;
                if layout.replace(read).is_some() {
                    return Err(twice());
                }
                continue;
            }
            let i = def.dims.iter().position(|d| d.name == field).ok_or_else(|| unknown_field(def, word))?;
            if std::mem::replace(&mut given[i], true) {
                return Err(twice());
            }
            match def.dims[i].kind {
                DimKind::Derived(_) => return Err(unknown_field(def, word)),
                DimKind::Word(list) => {
                    let at = list.iter().position(|w| *w == value);
                    p.dims[i] = at.ok_or_else(|| bad(format!("it is one of {}", list.join(", "))))? as i32;
                }
                DimKind::Real(_) => {
                    let read = value.parse().ok().and_then(units);
                    let (step, most) = (REAL_UNIT, real(i32::MAX));
                    let why = || format!("it is a number in 0..={most:e}, and a multiple of {step:e}");
                    p.dims[i] = read.ok_or_else(|| bad(why()))?;
                }
                _ => p.set(field, value.parse().map_err(|_| bad("it must be a whole number".into()))?)?,
            }
        }
        let base = Types::from(dtype.unwrap_or(Dtype::Bf16));
        p.types = Types { y: y.unwrap_or(base.y), kv, ..base };
        if let Some(format) = x {
            p.types = Types { x: format.codes, x_scales: Some(format.per), ..p.types };
        }
        match (w, scale) {
            (Some(Weights::Scaled(f)), scale) => {
                let storage = scale.unwrap_or_else(|| f.per.usual_scale(p.types.y));
                p.types.w = f.codes;
                let layout = layout.take().unwrap_or(CodeLayout::Rows);
                p.types.scaling = Some(Scaling { per: f.per, storage, zero: f.zero, layout });
            }
            (_, Some(scale)) => {
                let why = "weights that are no codes have no scales".into();
                return Err(ProblemError::BadValue {
                    op: def.name,
                    field: "scale".into(),
                    value: scale.name().into(),
                    why,
                });
            }
            (Some(Weights::Plain(storage)), None) => p.types.w = storage,
            (None, None) => {}
        }
        if let Some(layout) = layout {
            let (field, value) = ("layout".into(), layout.name().into());
            let why = "weights that are no codes have one layout".into();
            return Err(ProblemError::BadValue { op: def.name, field, value, why });
        }
        for (i, d) in def.dims.iter().enumerate() {
            if matches!(d.kind, DimKind::Required) && !given[i] {
                return Err(ProblemError::Missing { op: def.name, field: d.name });
            }
        }
        for (i, d) in def.dims.iter().enumerate() {
            if let (DimKind::Computed(default), false) = (&d.kind, given[i]) {
                p.set(d.name, default(&p).min(MAX_DIM))?;
            }
        }
        p.validate()?;
        Ok(p)
    }
}

impl Problem {
    /// The number above 0 that a problem has where this one is asked for: the same, or the decimal of which it is the nearest f32.
    /// `what` names it in the error, which says what numbers there are.
    #[cfg(any(feature = "tuner", feature = "engine"))]
    pub(crate) fn held(what: &str, value: f64) -> Result<f64, String> {
        let (step, most) = (REAL_UNIT, real(i32::MAX));
        let found = units(value).filter(|units| *units > 0).map(real);
        found
            .ok_or_else(|| format!("{what} = {value:?} must lie in {step:e}..={most:e}, and be a multiple of {step:e}"))
    }

    /// ` name=value` of each dimension before the bar, or after it; `all`: of those that have their default too.
    fn fields(&self, before: bool, all: bool) -> String {
        let field = |(i, d): (usize, &DimDef)| {
            let (name, value) = (d.name, self.dims[i]);
            match d.kind {
                DimKind::Optional(v) if !all && i64::from(value) == v => None,
                DimKind::Computed(v) if !all && i64::from(value) == v(self).min(MAX_DIM) => None,
                DimKind::Real(v) if !all && units(v) == Some(value) => None,
                // Keys of what was stored before there was a level have none.
                DimKind::Word(_) if value == 0 && (!all || d.name == LEVEL) => None,
                DimKind::Derived(_) => None,
                DimKind::Real(_) => Some(format!(" {name}={:e}", real(value))),
                DimKind::Word(_) => Some(format!(" {name}={}", self.word(name))),
                _ => Some(format!(" {name}={value}")),
            }
        };
        let looked_up = |d: &DimDef| matches!(d.part, Part::Contract | Part::Size);
        self.op().dims.iter().enumerate().filter(|(_, d)| looked_up(d) == before).filter_map(field).collect()
    }

    fn text(&self, all: bool) -> String {
        let rest = self.fields(false, all);
        let bar = if rest.is_empty() { "" } else { " |" };
        format!("{}{} dtype={}{bar}{rest}", self.op().name, self.fields(true, all), self.types)
    }

    /// What a look-up compares, with every dimension.
    pub fn bucket_text(&self) -> String {
        format!("{}{} dtype={}", self.op().name, self.fields(true, true), self.types)
    }

    /// What no look-up compares, with every dimension: capacities and workload.
    pub fn rest_text(&self) -> String {
        self.fields(false, true).trim_start().to_string()
    }

    /// The text with every dimension, so that it reads the same whatever the defaults become: what journals and bundles
    /// hold.
    pub fn full_text(&self) -> String {
        self.text(true)
    }
}

/// What is read by people: dimensions that have their default are left out.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(false))
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl serde::Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.full_text())
    }
}

impl<'de> serde::Deserialize<'de> for Problem {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Problem, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        for text in [
            "matmul m=7 n=1000 k=1544 dtype=f32",
            "matmul m=1 n=16384 k=2048 epilogue=swiglu dtype=bf16",
            "qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 bias=1 dtype=bf16 | pages=16",
            "attention batch=1 q=512 kv=512 heads=32 kv_heads=8 head_dim=64 dtype=bf16",
            "attention batch=1 q=5 kv=7 heads=2 kv_heads=1 head_dim=80 causal=0 dtype=f16",
            "decode batch=4 context=4096 heads=32 kv_heads=8 head_dim=64 dtype=bf16 | lens=mixed pages=4096",
            "rmsnorm rows=1 cols=2048 dtype=bf16 | eps=1e-6",
            "rmsnorm rows=1 cols=2048 residual=1 dtype=bf16",
            "argmax rows=1 cols=128256 dtype=bf16",
            "sample rows=1 cols=128256 top=5 dtype=bf16 | settings=greedy",
            "advance words=200 ids=9 rows=3 dtype=bf16",
            "matmul m=32 n=4096 k=4096 epilogue=residual dtype=e4m3",
            "matmul m=32 n=4096 k=4096 dtype=bf16 y=f32",
            "matmul m=32 n=4096 k=4096 epilogue=swiglu dtype=bf16 w=e4m3",
            "matmul m=32 n=4096 k=4096 dtype=e4m3 w=bf16 y=f16",
            "matmul m=32 n=4096 k=4096 dtype=tf32 y=bf16",
            "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 dtype=bf16 kv=e4m3",
            "paged_attention tokens=9 batch=3 context=99 heads=2 kv_heads=1 head_dim=4 dtype=f32 kv=e4m3 | lens=mixed",
            "rope_kv m=4 heads=32 kv_heads=8 head_dim=64 qk_norm=1 dtype=f16 kv=e4m3 | pages=16 eps=1e-5",
            "rope_kv m=4 heads=32 kv_heads=8 head_dim=64 dtype=f32 kv=f16 | pages=16",
            "decode batch=8 context=8192 heads=32 kv_heads=8 head_dim=64 dtype=f32 kv=bf16",
            "rope_kv m=4 heads=32 kv_heads=8 head_dim=64 dtype=bf16",
        ] {
            let p: Problem = text.parse().unwrap();
            assert_eq!(p.to_string(), text);
            assert_eq!(p, p.to_string().parse().unwrap());
        }
    }

    #[test]
    #[cfg(any(feature = "tuner", feature = "engine"))]
    fn reals_are_held_exactly_or_as_what_f32_made_of_them() {
        let eps = |text: &str| format!("rmsnorm rows=1 cols=2 eps={text}").parse::<Problem>().unwrap().real("eps");
        for (text, value) in [("0", 0.0), ("1e-12", 1e-12), ("1e-6", 1e-6), ("2.147483647e-3", 2.147483647e-3)] {
            assert_eq!(eps(text), value);
        }
        for decimal in [1e-5, 1e-6, 1e-12, 5e-7, 1.5e-3] {
            let narrow = f64::from(decimal as f32);
            assert_eq!((eps(&narrow.to_string()), Problem::held("ε", narrow)), (decimal, Ok(decimal)));
            // A neighbour of such a number is none.
            let beside = f64::from_bits(narrow.to_bits() + 1);
            assert!(Problem::held("ε", beside).is_err(), "{beside}");
        }
        assert!(Problem::held("ε", 0.0).is_err() && Problem::held("ε", f64::NAN).is_err());
    }

    #[test]
    fn records_of_an_older_form_are_read() {
        let old = "matmul m=4 n=3072 k=2048 epilogue=rope_kv heads=32 kv_heads=8 head_dim=64 pages=9 dtype=bf16";
        let p: Problem = old.parse().unwrap();
        assert_eq!(p.to_string(), "qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 dtype=bf16 | pages=9");
    }

    #[test]
    fn bad_text_says_what_is_wrong() {
        let cases = [
            ("", "is empty"),
            ("matmull m=1", "unknown op 'matmull'"),
            ("matmul m=1 n=2", "needs k="),
            ("matmul m=0 n=2 k=2", "must lie in 1..="),
            ("matmul m=-3 n=2 k=2", "must lie in 1..="),
            ("matmul m=x n=2 k=2", "whole number"),
            ("matmul m=1 n=2 k=2 z=3", "'z=3' is not a dimension"),
            ("matmul m=1 n=2 k=2 m=3", "given twice"),
            ("matmul m=1 n=2 k=2 dtype=f32 dtype=f32", "given twice"),
            ("rmsnorm rows=1 cols=2 | eps=-1", "number in 0..="),
            (
                "rmsnorm rows=1 cols=2 | eps=1e-13",
                "eps=1e-13 is impossible: it is a number in 0..=2.147483647e-3, and a multiple of 1e-12",
            ),
            ("rmsnorm rows=1 cols=2 | eps=1e-320", "eps=1e-320 is impossible"),
            ("rmsnorm rows=1 cols=2 | eps=6e-13", "eps=6e-13 is impossible"),
            ("layernorm rows=1 cols=2 | eps=1.23456789e-7", "eps=1.23456789e-7 is impossible"),
            ("qkv m=1 k=2 heads=1 kv_heads=1 head_dim=2 | eps=1e-2", "eps=1e-2 is impossible"),
            ("rmsnorm rows=1 cols=2 | eps=NaN", "eps=NaN is impossible"),
            ("matmul m=1 n=2 k=2 dtype=f64", "one of bf16"),
            ("rmsnorm rows=1 cols=16 dtype=e4m3", "for matmul alone"),
            ("rmsnorm rows=1 cols=16 y=f32", "not a dimension of rmsnorm"),
            ("matmul m=1 n=2 k=2 y=e4m3", "need a scale"),
            ("matmul m=1 n=2 k=2 y=i32", "one of bf16"),
            ("matmul m=1 n=2 k=2 w=f16 w=f16", "given twice"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 kv=int8", "it is one of e4m3"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 kv=e4m3 kv=e4m3", "given twice"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 dtype=e4m3 kv=e4m3", "one type"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 dtype=bf16 kv=f16", "results in f32 alone"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 dtype=f16 kv=f16", "results in f32 alone"),
            ("decode batch=1 context=1 heads=1 kv_heads=1 head_dim=2 dtype=tf32 kv=e4m3", "not for tf32"),
            ("qkv m=1 k=2 heads=1 kv_heads=1 head_dim=2 kv=e4m3", "not a dimension"),
            ("rope_kv m=9 heads=1 kv_heads=1 head_dim=2 page=4 pages=2", "8 slots"),
            ("rope_kv m=1 heads=1 kv_heads=1 head_dim=3 kv=e4m3", "even"),
            ("matmul m=1 n=2 k=2 dtype=tf32 w=bf16", "f32 by f32"),
            ("matmul m=1 n=3 k=2 epilogue=swiglu", "even"),
            ("matmul m=1 n=2 k=2 epilogue=nope", "bias_swiglu"),
            ("qkv m=1 k=2 heads=1 kv_heads=1 head_dim=3", "even"),
            ("qkv m=1 k=2 heads=1 kv_heads=1 head_dim=2 n=6", "not a dimension"),
            ("qkv m=9 k=2 heads=1 kv_heads=1 head_dim=2 page=4 pages=2", "8 slots"),
            ("qkv m=9 k=2 heads=1 kv_heads=1 head_dim=2 pages=1073741824", "31 bits"),
            ("sample rows=1 cols=30 top=21", "at most 20"),
            ("sample rows=1 cols=3 top=4", "at most cols"),
            ("advance words=3 ids=4 rows=1", "at most words"),
            ("attention batch=1 q=5 kv=7 heads=3 kv_heads=2 head_dim=64", "multiple of kv_heads"),
            ("matmul m=1073741824 n=1073741824 k=1073741824", "elements"),
            (
                "attention batch=1073741824 q=1073741824 kv=1073741824 heads=1073741824 kv_heads=1073741824 head_dim=1073741824",
                "elements",
            ),
            (
                "decode batch=65536 context=1073741824 heads=1073741824 kv_heads=1073741824 head_dim=1073741824 lens=mixed",
                "elements",
            ),
            ("decode batch=1073741824 context=1 heads=1 kv_heads=1 head_dim=8", "at most"),
            ("rope tokens=1073741824 heads=1073741824 head_dim=1073741824", "elements"),
            ("embedding tokens=1073741824 vocab=1073741824 hidden=1073741824", "elements"),
        ];
        for (text, part) in cases {
            let e = text.parse::<Problem>().unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
