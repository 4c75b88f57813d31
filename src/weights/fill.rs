//! Tensors of programs made of a checkpoint's: rows in the order of a layout, in the type or the scaled format that a precision says.

use super::names::{Rows, Source, source};
use super::quant::{Method, Packed, QuantError, from_ggml, ggml_format, quantize};
use super::{Format, Stored, Unpacked, Weights, WeightsError, put};
use crate::device::Target;
use crate::model::{LINEAR, Precision, SCALES, WeightFormat, ZEROS};
use crate::problem::{CodeLayout, Dtype, Storage};
use crate::program::Named;
use rayon::prelude::*;
use std::collections::BTreeMap;

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
        let layout = self.precision.types(base, packed.k as i64).scaling.map_or(CodeLayout::Rows, |s| s.layout);
        match &name[base.len()..] {
            "" => packed.codes_to(layout, out),
            SCALES => out.copy_from_slice(&packed.scales),
            _ => out.copy_from_slice(&packed.zeros),
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
            let found: Vec<Option<WeightFormat>> = rows.of.iter().map(|n| self.format(&n.name)).collect();
            match found.first().copied().flatten() {
                Some(format) if found.iter().all(|f| *f == Some(format)) => drop(formats.insert(name, format)),
                _ if found.iter().any(Option::is_some) => mixed.push(name),
                _ => {}
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
        let (formats, notes) = self.formats();
        (Precision::named(dtype, formats, target), notes)
    }

    /// The format of a tensor of the checkpoint.
    fn format(&self, name: &str) -> Option<WeightFormat> {
        let (format, scale) = ggml_format(self.checkpoint.get(name).ok()?.format)?;
        Some(WeightFormat { format, scale })
    }

    /// A weight of the programs in a format: bit by bit where the checkpoint has it so, else quantised.
    fn packed(&self, name: &str, wanted: WeightFormat) -> Result<Packed, WeightsError> {
        let rows = self.rows(name)?;
        let shape = [rows.count(), rows.columns()];
        let bad = |e: QuantError| WeightsError::Quantised { why: e.to_string() };
        let formats = rows
            .of
            .iter()
            .map(|n| Ok(self.checkpoint.get(&n.name)?.format))
            .collect::<Result<Vec<_>, WeightsError>>()?;
        let format = formats[0];
        if formats.iter().all(|f| *f == format) && ggml_format(format) == Some((wanted.format, wanted.scale)) {
            let mut blocks = vec![0; (shape[0] * format.bytes(shape[1]).unwrap_or(0)) as usize];
            self.each_row(&rows, &mut blocks, |row, out| {
                out.copy_from_slice(row.bytes);
                Ok(())
            })?;
            return from_ggml(name, format, shape, &blocks).map_err(bad);
        }
        let mut bytes = vec![0; (shape[0] * shape[1] * 4) as usize];
        self.each_row(&rows, &mut bytes, |row, out| row.put(Storage::F32, out))?;
        let values: Vec<f32> =
            bytes.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        drop(bytes);
        quantize(name, &values, shape, (wanted.format, wanted.scale), METHOD).map_err(bad)
    }

    /// A tensor of a program in its type.
    fn plain(&self, tensor: &Named, out: &mut [u8]) -> Result<(), WeightsError> {
        if let Some(Source::Rope) = source(&self.model, &tensor.name) {
            self.rope(out);
            return Ok(());
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
        let stored = rows.of.iter().map(|n| self.checkpoint.get(&n.name)).collect::<Result<Vec<_>, _>>()?;
        let (paired, columns) = (self.checkpoint.is_paired(), rows.columns());
        let each = out.len() / rows.count().max(1) as usize;
        out.par_chunks_exact_mut(each.max(1)).enumerate().try_for_each(|(at, out)| {
            let (of, number) = rows.row(at as u64, paired);
            let Stored { format, bytes, .. } = stored[of];
            // Rows of one tensor and as long, since their shapes were held against the model's.
            let length = format.bytes(columns).unwrap_or(0) as usize;
            let bytes = &bytes[number as usize * length..][..length];
            make(Row { format, bytes, columns, number, name: &rows.of[of].name }, out)
        })
    }
}

/// A row of a tensor of the checkpoint.
struct Row<'a> {
    format: Format,
    bytes: &'a [u8],
    columns: u64,
    number: u64,
    name: &'a str,
}

impl Row<'_> {
    /// Its elements in another type.
    fn put(&self, to: Storage, out: &mut [u8]) -> Result<(), WeightsError> {
        let unpacked = Unpacked::of(self.format, self.bytes, self.columns);
        put(unpacked.bytes(self.bytes), unpacked.storage, out, to, self.number, self.name)
    }
}
