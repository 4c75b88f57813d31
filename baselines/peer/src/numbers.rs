//! Lists of numbers between two processes: files of eight bytes a number, little-endian. An output may have hundreds of
//! millions of elements, and none travels as text.

use crate::protocol::Refusal;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Refusal + '_ {
    move |e| Refusal::failed(format!("{}: {e}", path.display()))
}

fn write(path: &Path, numbers: impl Iterator<Item = [u8; 8]>) -> Result<(), Refusal> {
    let mut file = BufWriter::new(File::create(path).map_err(failed(path))?);
    for bytes in numbers {
        file.write_all(&bytes).map_err(failed(path))?;
    }
    file.flush().map_err(failed(path))
}

/// Reads a file that must hold so many numbers; nothing is allocated before its length was looked at.
fn read(path: &Path, count: u64) -> Result<Vec<u8>, Refusal> {
    let file = File::open(path).map_err(failed(path))?;
    let (have, need) = (file.metadata().map_err(failed(path))?.len(), count.saturating_mul(8));
    if have != need {
        return Err(Refusal::failed(format!("{} has {have} bytes, not {need}", path.display())));
    }
    let mut bytes = Vec::with_capacity(need as usize);
    file.take(need).read_to_end(&mut bytes).map_err(failed(path))?;
    match bytes.len() as u64 == need {
        true => Ok(bytes),
        false => Err(Refusal::failed(format!("{} became shorter while it was read", path.display()))),
    }
}

/// Writes indices.
pub fn write_indices(path: &Path, indices: &[u64]) -> Result<(), Refusal> {
    write(path, indices.iter().map(|i| i.to_le_bytes()))
}

/// Reads so many indices.
pub fn read_indices(path: &Path, count: u64) -> Result<Vec<u64>, Refusal> {
    let bytes = read(path, count)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
}

/// Writes values.
pub fn write_values(path: &Path, values: &[f64]) -> Result<(), Refusal> {
    write(path, values.iter().map(|v| v.to_le_bytes()))
}

/// Reads so many values; `None` where one is not finite.
pub fn read_values(path: &Path, count: u64) -> Result<Vec<Option<f64>>, Refusal> {
    let bytes = read(path, count)?;
    let value = |b: &[u8; 8]| Some(f64::from_le_bytes(*b)).filter(|v| v.is_finite());
    Ok(bytes.as_chunks::<8>().0.iter().map(value).collect())
}
