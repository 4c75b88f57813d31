//! Files of other engines, written of a model's weights: the same weights, for whoever compares.
//!
//! Tensor by tensor; under another name beside the file until it is whole, so that one that is there is whole.

mod compressed;
mod gguf;
mod lmrs;

pub use compressed::{Quantization, compressed};
pub use gguf::{Texts, gguf};
pub use lmrs::{FIRST_CHARACTER, Kind, lmrs, tokenizer, tokenizer_of};

use super::names::{Natural, is_rotated, of_halves, of_pairs};
use super::{Weights, WeightsError};
use crate::file::place;
use crate::problem::Storage;
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Elements that are made at a time.
const PART: u64 = 1 << 22;

/// What goes wrong in the middle of a file.
enum Failed {
    Io(std::io::Error),
    Weights(WeightsError),
}

impl From<std::io::Error> for Failed {
    fn from(e: std::io::Error) -> Failed {
        Failed::Io(e)
    }
}

impl From<WeightsError> for Failed {
    fn from(e: WeightsError) -> Failed {
        Failed::Weights(e)
    }
}

/// Writes a file that takes the place of one of that name once it is whole.
fn whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failed>) -> Result<(), WeightsError> {
    let path = &place(path).map_err(|source| WeightsError::Io { path: path.into(), source })?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let made = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&part)?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        Ok(fs::rename(&part, path)?)
    };
    made().map_err(|e| {
        let _ = fs::remove_file(&part);
        match e {
            Failed::Io(source) => WeightsError::Io { path: path.into(), source },
            Failed::Weights(e) => e,
        }
    })
}

/// In which order the rows of a head are that RoPE rotates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Row j with row j + d/2.
    Halves,
    /// Row 2j with row 2j + 1.
    Pairs,
}

impl Weights {
    /// Writes a tensor's elements in this type, its rows in this order. Returns their bytes.
    fn write(&self, n: &Natural, to: Storage, order: Order, out: &mut impl Write) -> Result<u64, Failed> {
        let held = self.held(n)?;
        // A vector's elements are rows of one.
        let (count, columns) = (n.shape.first().copied().unwrap_or(1), n.shape.get(1).copied().unwrap_or(1));
        let head = self.model.head_dim.unsigned_abs();
        let from = |at: u64| match (self.checkpoint.is_paired(), order) {
            _ if !is_rotated(&n.name) => at,
            (false, Order::Pairs) => of_halves(at, head),
            (true, Order::Halves) => of_pairs(at, head),
            _ => at,
        };
        let row = to.bytes(columns) as usize;
        let mut part = Vec::new();
        let rows = (PART / columns.max(1)).max(1);
        for first in (0..count).step_by(rows as usize) {
            part.resize((count - first).min(rows) as usize * row, 0);
            part.par_chunks_exact_mut(row).enumerate().try_for_each(|(at, row)| {
                let from = from(first + at as u64);
                held.row(from).put(to, row)
            })?;
            out.write_all(&part)?;
        }
        Ok(count * row as u64)
    }
}
