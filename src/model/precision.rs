//! What the tensors of a model are stored as: one dtype, and scaled formats of weights that have one.

use crate::device::Target;
use crate::problem::{CodeLayout, Dtype, ScaledFormat, Scaling, Storage, Types, XFormat};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A scaled format of a weight, with the type of its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightFormat {
    /// The format.
    pub format: ScaledFormat,
    /// The type of scales and minima: f32, f16 or bf16.
    pub scale: Storage,
}

impl WeightFormat {
    /// The format with the scales that it usually has beside results of `dtype`.
    pub fn usual(format: ScaledFormat, dtype: Dtype) -> WeightFormat {
        WeightFormat { format, scale: format.per.usual_scale(Types::from(dtype).y) }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scale={}", self.format, self.scale)
    }
}

/// What the tensors of a model are stored as.
#[derive(Clone, Debug, PartialEq)]
pub struct Precision {
    /// The type of activations, of norms and biases, and of the cache and of weights without a format.
    pub dtype: Dtype,
    /// The format of all linear layers; the embedding and the head have none.
    linear: Option<WeightFormat>,
    /// Those of weights by their names in programs.
    named: Arc<BTreeMap<String, WeightFormat>>,
    /// What linear layers take their tokens as, where that is codes.
    tokens: Option<XFormat>,
    /// What the cache is stored as, where that is not the dtype.
    cache: Option<Storage>,
    target: Target,
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Precision {
        Precision { dtype, linear: None, named: Arc::default(), tokens: None, cache: None, target: Target::Cpu }
    }
}

impl From<&Precision> for Precision {
    fn from(precision: &Precision) -> Precision {
        precision.clone()
    }
}

/// The linear layers of a layer, as programs name their weights.
pub(crate) const LINEAR: [&str; 4] = ["qkv", "o", "gate_up", "down"];

/// How the scales of a program's weight are called, after its name, and its zero points or minima.
pub(crate) const SCALES: &str = ".scales";
pub(crate) const ZEROS: &str = ".zeros";

impl Precision {
    /// All linear layers in one format, with codes in the order that the kernels of `target` take; the embedding and the head in `dtype`.
    pub fn linear(dtype: Dtype, format: WeightFormat, target: Target) -> Precision {
        Precision { linear: Some(format), target, ..dtype.into() }
    }

    /// The weights of these names in programs (`layers.0.qkv`) in these formats, all else in `dtype`.
    pub fn named(dtype: Dtype, formats: BTreeMap<String, WeightFormat>, target: Target) -> Precision {
        Precision { named: Arc::new(formats), target, ..dtype.into() }
    }

    /// The same with the tokens of linear layers in codes of that format, quantised as they come; of those alone whose weights are codes of
    /// the same kind.
    pub fn with_tokens(self, tokens: Option<XFormat>) -> Precision {
        Precision { tokens, ..self }
    }

    /// The format that products over the weight of that name take their tokens in; none where they are in the dtype.
    pub fn tokens(&self, name: &str) -> Option<XFormat> {
        self.tokens.filter(|tokens| self.format(name).is_some_and(|f| tokens.goes_with(f.format.codes)))
    }

    /// The same with the cache in codes of that type, E4M3, in values of bf16 or f16 beside f32, or in the dtype.
    pub fn with_cache(self, cache: Option<Storage>) -> Precision {
        Precision { cache, ..self }
    }

    /// What the cache is stored as; none where it is in the dtype.
    pub fn cache(&self) -> Option<Storage> {
        self.cache
    }

    /// The types of a problem that reads or writes the cache.
    pub fn types_of_cache(&self) -> Types {
        Types { kv: self.cache, ..self.dtype.into() }
    }

    /// The format of the weight of that name in programs.
    pub fn format(&self, name: &str) -> Option<WeightFormat> {
        let of_layer = || name.strip_prefix("layers.")?.split_once('.').map(|(_, part)| part);
        let linear = || self.linear.filter(|_| of_layer().is_some_and(|part| LINEAR.contains(&part)));
        self.named.get(name).copied().or_else(linear)
    }

    /// The types of a problem over the weight w[n, k] of that name.
    pub fn types(&self, name: &str, [n, k]: [i64; 2]) -> Types {
        let plain = Types::from(self.dtype);
        let Some(WeightFormat { format, scale }) = self.format(name) else { return plain };
        let wanted = match (self.target, format.codes) {
            (Target::Cuda, _) => CodeLayout::Quads,
            // No stream over lanes takes e4m3.
            (Target::Cpu, Storage::E4m3) => CodeLayout::Rows,
            (Target::Cpu, _) => CodeLayout::Lanes,
        };
        let (tokens, holds) = (self.tokens(name), wanted.holds(format.codes, [n, k].map(i64::unsigned_abs)));
        let layout = match (tokens, self.target) {
            // Codes are multiplied by codes as they lie.
            (Some(_), Target::Cuda) => CodeLayout::Rows,
            _ if holds => wanted,
            _ => CodeLayout::Rows,
        };
        Types {
            x: tokens.map_or(plain.x, |t| t.codes),
            x_scales: tokens.map(|t| t.per),
            w: format.codes,
            scaling: Some(Scaling { per: format.per, storage: scale, zero: format.zero, layout }),
            ..plain
        }
    }
}

/// `bf16`; `bf16, linear layers in int4-g128 scale=bf16`; `bf16, the cache in e4m3`; or how many weights are in which format.
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if let Some(linear) = self.linear {
            write!(f, ", linear layers in {linear}")?;
        }
        if let Some(tokens) = self.tokens {
            write!(f, ", their tokens in {tokens}")?;
        }
        if let Some(cache) = self.cache {
            write!(f, ", the cache in {cache}")?;
        }
        let mut counts: BTreeMap<WeightFormat, usize> = BTreeMap::new();
        self.named.values().for_each(|format| *counts.entry(*format).or_default() += 1);
        counts.iter().try_for_each(|(format, count)| write!(f, ", {count} weights in {format}"))
    }
}
