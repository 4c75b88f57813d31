//! Tensors of programs made of a checkpoint's: rows in the order of a layout, in the type or the scaled format that a precision says.

use super::names::{Natural, Rows, Source, source};
use super::quant::{Method, Packed, QuantError, from_ggml, quantize};
use super::{Stored, Unpacked, Weights, WeightsError, finite, put};
use crate::device::Target;
use crate::model::{LINEAR, Precision, Quantization, SCALES, WeightFormat, ZEROS};
use crate::problem::{CodeLayout, Dtype, Granularity, SCALE_BLOCK, Storage};
use crate::program::Named;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Values that are quantised at a time: 32 MiB of them.
const VALUES: u64 = 8 << 20;
/// How weights that a checkpoint has not in a format are brought into it.
const METHOD: Method = Method::Search;

/// Fills the tensors of one precision's programs. Codes, scales and zero points of a weight are made together, so whoever asks for them
/// one after the other waits once.
#[derive(Debug)]
pub struct Filler<'w> {
    weights: &'w Weights,
    precision: &'w Precision,
    last: Option<(String, Packed)>,
}

impl Filler<'_> {
    /// Fills `out` with a tensor of one of the model's programs.
    ///
    /// # Errors
    /// A tensor that is no weight of the model, elements that are no numbers, or that its type or format cannot hold.
    ///
    /// # Panics
    /// When `out` has another length than the tensor.
    pub fn fill(&mut self, tensor: &Named, out: &mut [u8]) -> Result<(), WeightsError> {
        assert_eq!(out.len() as u64, tensor.bytes(), "{}", tensor.name);
        let name = &tensor.name[..];
        let base = [SCALES, ZEROS].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let Some(format) = self.precision.format(base) else { return self.weights.plain(tensor, out) };
        if self.last.as_ref().is_none_or(|(of, _)| of != base) {
            // The one before goes first, so that two are never there.
            self.last = None;
            self.last = Some((base.into(), self.weights.packed(base, format)?));
        }
        let Some((_, packed)) = &self.last else { return Ok(()) };
        let types = self.precision.types(base, [packed.n as i64, packed.k as i64]);
        let layout = types.scaling.map_or(CodeLayout::Rows, |s| s.layout);
        match &name[base.len()..] {
            "" => packed.codes_to(layout, out),
            end => {
                // The layout holds the weight, or it would not be the weight's.
                let [scales, zeros] = packed.scales_in(layout).unwrap_or_default();
                out.copy_from_slice(if end == SCALES { &scales } else { &zeros });
            }
        }
        Ok(())
    }
}

impl Weights {
    /// Fills tensors of programs in this precision.
    pub fn filler<'w>(&'w self, precision: &'w Precision) -> Filler<'w> {
        Filler { weights: self, precision, last: None }
    }

    /// The formats of the model's weights that the checkpoint has in one, by their names in programs; and what is to be said of those that
    /// are of several tensors in several formats, and become plain.
    pub fn formats(&self) -> (BTreeMap<String, WeightFormat>, Vec<String>) {
        let (mut formats, mut mixed) = (BTreeMap::new(), Vec::new());
        let of_layer = |layer| LINEAR.map(|part| format!("layers.{layer}.{part}"));
        let layers = (0..self.model.layers).flat_map(of_layer);
        for name in ["embed_tokens", "lm_head"].map(String::from).into_iter().chain(layers) {
            let Some(Source::Rows(rows)) = source(&self.model, &name) else { continue };
            match self.format_of(&rows) {
                Some(format) => drop(formats.insert(name, format)),
                None if rows.of.iter().any(|n| self.format(&n.name).is_some()) => mixed.push(name),
                None => {}
            }
        }
        let said = |first: &String| {
            let of = mixed.len();
            format!(
                "{of} weights ({first} the first) are of tensors in several formats, and are computed as values of these"
            )
        };
        (formats, mixed.first().map(said).into_iter().collect())
    }

    /// The precision in which the checkpoint has the model, all else in `dtype`, and what is to be said of it.
    pub fn precision(&self, dtype: Dtype, target: Target) -> (Precision, Vec<String>) {
        let (mut formats, notes) = self.formats();
        let tokens = self.model.quantization.as_ref().and_then(Quantization::scaled_tokens);
        if let Some(tokens) = tokens {
            // Products of codes by codes take scales in f32, which hold those of files as they are.
            formats.values_mut().filter(|f| tokens.goes_with(f.format.codes)).for_each(|f| f.scale = Storage::F32);
        }
        (Precision::named(dtype, formats, target).with_tokens(tokens), notes)
    }

    /// A weight of the programs in a format: bit by bit where the checkpoint has it so, else quantised.
    fn packed(&self, name: &str, wanted: WeightFormat) -> Result<Packed, WeightsError> {
        let rows = self.rows(name)?;
        let shape = [rows.count(), rows.columns()];
        let bad = |e: QuantError| WeightsError::Quantised { why: e.to_string() };
        if let Some(stored) = self.format_of(&rows)
            && (stored == wanted
                || stored == WeightFormat { scale: stored.scale, ..wanted } && wanted.scale == Storage::F32)
            && let Some(packed) = self.as_stored(name, &rows)?
        {
            return Ok(packed.with_scales_in_f32(wanted.scale == Storage::F32));
        }
        // Some rows at a time where they share no scale, so that few are there in f32.
        let some = match wanted.format.per {
            Granularity::Tensor => shape[0],
            _ => (VALUES / shape[1].max(1)).next_multiple_of(SCALE_BLOCK as u64).clamp(1, shape[0].max(1)),
        };
        let held = self.all_held(&rows)?;
        let mut whole: Option<Packed> = None;
        for first in (0..shape[0].max(1)).step_by(some as usize) {
            let range = first..shape[0].min(first + some);
            let part = [range.end - range.start, shape[1]];
            let mut bytes = vec![0; (part[0] * part[1] * 4) as usize];
            self.some_rows((&rows, &held), range, &mut bytes, |row, out| row.put(Storage::F32, out))?;
            let values: Vec<f32> =
                bytes.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            drop(bytes);
            let part = quantize(name, &values, part, (wanted.format, wanted.scale), METHOD).map_err(bad)?;
            match &mut whole {
                Some(whole) => whole.append(part),
                None => whole = Some(part),
            }
        }
        whole.ok_or_else(|| WeightsError::Unknown { model: self.model.name.clone(), name: name.into() })
    }

    /// A weight of the programs as the checkpoint has it, in the order of its rows.
    fn as_stored(&self, name: &str, rows: &Rows) -> Result<Option<Packed>, WeightsError> {
        let (shape, paired) = ([rows.count(), rows.columns()], self.checkpoint.is_paired());
        let mut parts = Vec::new();
        for n in &rows.of {
            parts.extend(self.quantised(n)?);
            self.checkpoint.let_go();
        }
        if parts.len() == rows.of.len() {
            let alone = parts.len() == 1 && rows.in_order();
            return Ok(if alone { parts.pop() } else { Packed::of_rows(&parts, shape[0], |at| rows.row(at, paired)) });
        }
        let format = self.checkpoint.get(&rows.of[0].name)?.format;
        let mut blocks = vec![0; (shape[0] * format.bytes(shape[1]).unwrap_or(0)) as usize];
        self.each_row(rows, &mut blocks, |row, out| {
            out.copy_from_slice(row.bytes);
            Ok(())
        })?;
        let bad = |e: QuantError| WeightsError::Quantised { why: e.to_string() };
        from_ggml(name, format, shape, &blocks).map(Some).map_err(bad)
    }

    /// A tensor of a program in its type.
    fn plain(&self, tensor: &Named, out: &mut [u8]) -> Result<(), WeightsError> {
        match source(&self.model, &tensor.name) {
            Some(Source::Rope) => {
                self.rope(out);
                return Ok(());
            }
            Some(Source::CacheScales(layer)) => return self.cache_scales(layer, out),
            Some(Source::Rows(_)) | None => {}
        }
        self.each_row(&self.rows(&tensor.name)?, out, |row, out| row.put(tensor.storage, out))
    }

    /// What the weight of that name is made of.
    fn rows(&self, name: &str) -> Result<Rows, WeightsError> {
        match source(&self.model, name) {
            Some(Source::Rows(rows)) => Ok(rows),
            _ => Err(WeightsError::Unknown { model: self.model.name.clone(), name: name.into() }),
        }
    }

    /// Makes the rows of a weight, each of as many bytes, of those of the checkpoint.
    fn each_row(
        &self,
        rows: &Rows,
        out: &mut [u8],
        make: impl Fn(Row<'_>, &mut [u8]) -> Result<(), WeightsError> + Sync,
    ) -> Result<(), WeightsError> {
        self.some_rows((rows, &self.all_held(rows)?), 0..rows.count(), out, make)
    }

    /// The tensors of the checkpoint that rows are of.
    fn all_held<'s>(&'s self, rows: &'s Rows) -> Result<Vec<Held<'s>>, WeightsError> {
        rows.of.iter().map(|n| self.held(n)).collect()
    }

    /// Makes some of the rows of a weight.
    fn some_rows(
        &self,
        (rows, held): (&Rows, &[Held<'_>]),
        range: Range<u64>,
        out: &mut [u8],
        make: impl Fn(Row<'_>, &mut [u8]) -> Result<(), WeightsError> + Sync,
    ) -> Result<(), WeightsError> {
        let paired = self.checkpoint.is_paired();
        let each = out.len() / (range.end - range.start).max(1) as usize;
        out.par_chunks_exact_mut(each.max(1)).enumerate().try_for_each(|(at, out)| {
            let (of, number) = rows.row(range.start + at as u64, paired);
            make(held[of].row(number), out)
        })?;
        // Each is read once, and what is made of it is in memory now.
        self.checkpoint.let_go();
        Ok(())
    }

    /// A tensor of the checkpoint; its rows are as long as the model says, since shapes were held against it.
    pub(super) fn held<'s>(&'s self, n: &'s Natural) -> Result<Held<'s>, WeightsError> {
        let (name, columns) = (&n.name[..], n.shape.get(1).copied().unwrap_or(1));
        Ok(match self.quantised(n)? {
            Some(packed) => Held { name, columns, of: Of::Codes(packed) },
            None => Held { name, columns, of: Of::Elements(self.checkpoint.get(name)?) },
        })
    }
}

/// A tensor of the checkpoint.
pub(super) struct Held<'s> {
    name: &'s str,
    columns: u64,
    of: Of<'s>,
}

enum Of<'s> {
    Elements(Stored<'s>),
    Codes(Packed),
}

/// A row of a tensor of the checkpoint.
pub(super) struct Row<'s> {
    held: &'s Held<'s>,
    /// Its elements as they are stored; nothing of codes.
    bytes: &'s [u8],
    number: u64,
}

impl Held<'_> {
    pub fn row(&self, number: u64) -> Row<'_> {
        let bytes = match &self.of {
            Of::Codes(_) => &[],
            Of::Elements(stored) => {
                let length = stored.format.bytes(self.columns).unwrap_or(0) as usize;
                &stored.bytes[number as usize * length..][..length]
            }
        };
        Row { held: self, bytes, number }
    }
}

impl Row<'_> {
    /// Its elements in another type.
    pub fn put(&self, to: Storage, out: &mut [u8]) -> Result<(), WeightsError> {
        let Held { name, columns, of } = self.held;
        match of {
            Of::Elements(stored) => {
                let unpacked = Unpacked::of(stored.format, self.bytes, *columns);
                put(unpacked.bytes(self.bytes), unpacked.storage, out, to, self.number, name)
            }
            Of::Codes(packed) => {
                let values: Vec<u8> = (0..*columns).flat_map(|c| packed.value(self.number, c).to_le_bytes()).collect();
                put(&values, Storage::F32, out, to, self.number, name)
            }
        }
    }

    /// Whether all its elements are numbers.
    pub fn check(&self) -> Result<(), WeightsError> {
        match &self.held.of {
            // Codes were looked at when they were unpacked.
            Of::Codes(_) => Ok(()),
            Of::Elements(stored) => {
                let unpacked = Unpacked::of(stored.format, self.bytes, self.held.columns);
                finite(unpacked.bytes(self.bytes), unpacked.storage, self.number, self.held.name)
            }
        }
    }
}
