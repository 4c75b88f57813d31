//! What stands before the tensors' bytes of a new file, version 3.

use super::{ALIGNMENT, MAGIC};
use std::io::{Result, Write};

/// A file to be: its metadata, and its tensors with whatever their bytes are made of.
pub(crate) struct Writer<T = Vec<u8>> {
    values: Vec<u8>,
    keys: u64,
    tensors: Vec<Tensor<T>>,
}

struct Tensor<T> {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    bytes: u64,
    of: T,
}

impl<T> Default for Writer<T> {
    fn default() -> Writer<T> {
        Writer { values: Vec::new(), keys: 0, tensors: Vec::new() }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl<T> Writer<T> {
    pub(super) fn key(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Writer<T> {
        self.keys += 1;
        text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        self.values.extend(bytes);
        self
    }

    pub(crate) fn u32(&mut self, key: &str, v: u32) -> &mut Writer<T> {
        self.key(key, 4, &v.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, v: f32) -> &mut Writer<T> {
        self.key(key, 6, &v.to_le_bytes())
    }

    pub(crate) fn flag(&mut self, key: &str, v: bool) -> &mut Writer<T> {
        self.key(key, 7, &[v.into()])
    }

    pub(crate) fn text(&mut self, key: &str, v: &str) -> &mut Writer<T> {
        let mut bytes = Vec::new();
        text(&mut bytes, v);
        self.key(key, 8, &bytes)
    }

    pub(crate) fn texts(&mut self, key: &str, list: &[&str]) -> &mut Writer<T> {
        let mut bytes = [&8u32.to_le_bytes()[..], &(list.len() as u64).to_le_bytes()].concat();
        list.iter().for_each(|v| text(&mut bytes, v));
        self.key(key, 9, &bytes)
    }

    /// A list of 32-bit words: of integers, or of f32 by their bits.
    pub(crate) fn words(&mut self, key: &str, of: u32, list: &[u32]) -> &mut Writer<T> {
        let mut bytes = [&of.to_le_bytes()[..], &(list.len() as u64).to_le_bytes()].concat();
        list.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.key(key, 9, &bytes)
    }

    /// A tensor of so many bytes: its shape outermost first, its type by ggml's number.
    pub(crate) fn add(&mut self, name: &str, shape: &[u64], kind: u32, bytes: u64, of: T) -> &mut Writer<T> {
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), kind, bytes, of });
        self
    }

    /// Writes the file; `tensor` writes the bytes of each, as many as were said.
    pub(crate) fn write<W: Write, E: From<std::io::Error>>(
        &self,
        out: &mut W,
        mut tensor: impl FnMut(&T, &mut W) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let head = self.head();
        out.write_all(&head)?;
        pad(head.len() as u64, out)?;
        for t in &self.tensors {
            tensor(&t.of, out)?;
            pad(t.bytes, out)?;
        }
        Ok(())
    }

    fn head(&self) -> Vec<u8> {
        let mut out = [&MAGIC[..], &3u32.to_le_bytes(), &(self.tensors.len() as u64).to_le_bytes()].concat();
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.values);
        let mut at = 0;
        for t in &self.tensors {
            text(&mut out, &t.name);
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(u64::to_le_bytes(at));
            at += t.bytes.next_multiple_of(ALIGNMENT as u64);
        }
        out
    }
}

/// Zeros up to where the next tensor may begin, after so many bytes.
fn pad(bytes: u64, out: &mut impl Write) -> Result<()> {
    let over = bytes as usize % ALIGNMENT;
    if over == 0 { Ok(()) } else { out.write_all(&[0; ALIGNMENT][over..]) }
}

#[cfg(test)]
impl Writer {
    /// A tensor of these bytes.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Writer {
        self.add(name, shape, kind, bytes.len() as u64, bytes)
    }

    /// The whole file.
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        self.write(&mut file, |bytes, out| out.write_all(bytes)).unwrap();
        file
    }
}
