//! The file format GGUF, versions 2 and 3: metadata by key, and where each tensor lies.
//!
//! Pure: bytes in, positions out. Nothing is copied but names and what is short; every length is held against the file's own.
//! `write` makes what stands before the tensors of a new file.

mod write;

pub(crate) use write::Writer;

use std::collections::BTreeMap;
use std::ops::Range;

/// What the file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The longest name of a key or a tensor, and the longest word, in bytes.
const MAX_NAME: usize = 1 << 16;
/// The most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Where tensors begin, unless a file says otherwise.
const ALIGNMENT: usize = 32;

/// Why a file is not read: what, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {why}")]
pub struct GgufError {
    /// Where in the file.
    pub at: usize,
    /// What is wrong.
    pub why: String,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width.
    Int(i64),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list: of which type by its number in the format, how many, and where in the file.
    List {
        /// The number of the elements' type.
        of: u32,
        /// How many.
        count: u64,
        /// Their bytes.
        bytes: Range<usize>,
    },
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Int(v) => write!(f, "{v}"),
            Value::Float(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::Text(v) => write!(f, "{:?}", v.chars().take(60).collect::<String>()),
            Value::List { count, .. } => write!(f, "a list of {count}"),
        }
    }
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
    /// The number of its element type in ggml.
    pub kind: u32,
    /// Where its bytes begin in the file.
    pub at: usize,
}

/// What stands before the tensors' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The metadata.
    pub values: BTreeMap<String, Value>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<Tensor>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, why: impl Into<String>) -> Result<T, GgufError> {
        Err(GgufError { at: self.at, why: why.into() })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let there = self.bytes.len();
            return self.fail(format!(
                "{count} bytes are wanted, and the file ends: it is cut short at {there} bytes, or damaged"
            ));
        };
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut word = [0; N];
        word.copy_from_slice(self.take(N)?);
        Ok(word)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.number().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<u64, GgufError> {
        let count = self.u64()?;
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(least as u64) {
            Some(bytes) if bytes <= left => Ok(count),
            _ => {
                let there = self.bytes.len();
                self.fail(format!(
                    "{count} {what}, and {left} bytes are left: the file is cut short at {there} bytes, or damaged"
                ))
            }
        }
    }

    fn text(&mut self, most: usize) -> Result<&'a str, GgufError> {
        let length = self.count("bytes of a text", 1)? as usize;
        if length > most {
            return self.fail(format!("a text of {length} bytes, {most} are the most"));
        }
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).or_else(|_| self.fail("a text that is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Int(self.number().map(u8::from_le_bytes)?.into()),
            1 => Value::Int(self.number().map(i8::from_le_bytes)?.into()),
            2 => Value::Int(self.number().map(u16::from_le_bytes)?.into()),
            3 => Value::Int(self.number().map(i16::from_le_bytes)?.into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(self.number().map(i32::from_le_bytes)?.into()),
            // The shortest decimal that is this number: 1e-5 is meant where 9.99999974e-6 is stored.
            6 => {
                let value = self.number().map(f32::from_le_bytes)?;
                Value::Float(value.to_string().parse().unwrap_or(f64::from(value)))
            }
            7 => Value::Bool(self.number().map(u8::from_le_bytes)? != 0),
            8 => Value::Text(self.text(usize::MAX)?.into()),
            9 => self.list()?,
            10 => {
                let value = self.u64()?;
                Value::Int(i64::try_from(value).or_else(|_| self.fail(format!("{value} is too large")))?)
            }
            11 => Value::Int(self.number().map(i64::from_le_bytes)?),
            12 => Value::Float(self.number().map(f64::from_le_bytes)?),
            other => return self.fail(format!("a value of type {other}, which is not known")),
        })
    }

    fn list(&mut self) -> Result<Value, GgufError> {
        let of = self.u32()?;
        let each = match of {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            other => return self.fail(format!("a list of type {other}, which is not known")),
        };
        let count = self.count("elements of a list", each)?;
        let start = self.at;
        if of == 8 {
            for _ in 0..count {
                self.text(MAX_NAME)?;
            }
        } else {
            self.take(count as usize * each)?;
        }
        Ok(Value::List { of, count, bytes: start..self.at })
    }

    fn tensor(&mut self) -> Result<Tensor, GgufError> {
        let name = self.text(MAX_NAME)?.to_string();
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            return self.fail(format!("{name} has {dims} dimensions, {MAX_DIMS} are the most"));
        }
        // Innermost first in the file.
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = self.u32()?;
        let at = usize::try_from(self.u64()?).or_else(|_| self.fail(format!("{name} lies beyond memory")))?;
        Ok(Tensor { name, shape, kind, at })
    }
}

impl Header {
    /// Reads what stands before the tensors' bytes. Whether those are there is for who knows their types.
    pub fn read(bytes: &[u8]) -> Result<Header, GgufError> {
        let mut r = Reader { bytes, at: 0 };
        if r.number()? != MAGIC {
            return Err(GgufError { at: 0, why: "it does not begin with GGUF".into() });
        }
        let version = r.u32()?;
        if !(2..=3).contains(&version) {
            return r.fail(format!("version {version}; 2 and 3 are read"));
        }
        let tensors = r.count("tensors", 24)?;
        let keys = r.count("keys", 13)?;
        let mut values = BTreeMap::new();
        for _ in 0..keys {
            let key = r.text(MAX_NAME)?.to_string();
            let kind = r.u32()?;
            let value = r.value(kind)?;
            if values.insert(key.clone(), value).is_some() {
                return r.fail(format!("{key} is there twice"));
            }
        }
        let mut tensors = (0..tensors).map(|_| r.tensor()).collect::<Result<Vec<_>, _>>()?;
        let alignment = match values.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Int(v)) if *v > 0 && (*v as u64).is_power_of_two() => *v as usize,
            Some(other) => return r.fail(format!("general.alignment is {other:?}")),
        };
        let start = r.at.checked_next_multiple_of(alignment);
        for t in &mut tensors {
            let Some(at) = start.and_then(|start| start.checked_add(t.at)) else {
                return r.fail(format!("{} lies beyond memory", t.name));
            };
            t.at = at;
        }
        Ok(Header { values, tensors })
    }

    /// What a key says. One of another type is refused by its name: it is there, and somebody meant it.
    fn typed<'v, T>(
        &'v self,
        key: &str,
        kind: &str,
        read: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(found) => Ok(Some(found)),
                None => Err(format!("{key} = {value} is not {kind}")),
            },
        }
    }

    /// An integer of the metadata. None where there is no such key; an error where it is of another type.
    pub fn int(&self, key: &str) -> Result<Option<i64>, String> {
        self.typed(key, "a whole number", |v| match v {
            Value::Int(v) => Some(*v),
            _ => None,
        })
    }

    /// A number of the metadata, as [`Header::int`].
    pub fn float(&self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, "a number", |v| match v {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            _ => None,
        })
    }

    /// The texts of a list; `bytes` is the file. None where there is no such list.
    pub fn texts<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Vec<&'a str>> {
        let Value::List { of: 8, count, bytes: at } = self.values.get(key)? else { return None };
        let mut reader = Reader { bytes: bytes.get(..at.end)?, at: at.start };
        (0..*count).map(|_| reader.text(MAX_NAME).ok()).collect()
    }

    /// The integers of a list of 32-bit ones; `bytes` is the file. None where there is no such list.
    pub fn ints(&self, bytes: &[u8], key: &str) -> Option<Vec<i32>> {
        let Value::List { of: 4 | 5, bytes: at, .. } = self.values.get(key)? else { return None };
        Some(bytes.get(at.clone())?.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect())
    }

    /// The numbers of a list of f32; `bytes` is the file. None where there is no such list.
    pub fn floats(&self, bytes: &[u8], key: &str) -> Option<Vec<f32>> {
        let Value::List { of: 6, bytes: at, .. } = self.values.get(key)? else { return None };
        Some(bytes.get(at.clone())?.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// A truth value of the metadata, as [`Header::int`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A text of the metadata, as [`Header::int`].
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.typed(key, "a text", |v| match v {
            Value::Text(v) => Some(v.as_str()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<u8> {
        let mut w = Writer::default();
        w.text("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.eps", 1e-5);
        w.texts("tokens", &["a", "bc"]).tensor("one", &[3, 2], 0, vec![1; 24]).tensor("two", &[4], 1, vec![2; 8]);
        w.file()
    }

    #[test]
    fn values_and_tensors_are_found() {
        let bytes = some();
        let header = Header::read(&bytes).unwrap();
        let (blocks, who) = (header.int("llama.block_count"), header.text("general.architecture"));
        assert_eq!((blocks, who), (Ok(Some(2)), Ok(Some("llama"))));
        assert_eq!((header.float("llama.eps"), header.int("nothing")), (Ok(Some(1e-5)), Ok(None)));
        // What is there and of another type is no more absent than it is that type.
        assert_eq!(header.int("tokens").unwrap_err(), "tokens = a list of 2 is not a whole number");
        assert_eq!(
            header.float("general.architecture").unwrap_err(),
            "general.architecture = \"llama\" is not a number"
        );
        assert!(header.text("llama.block_count").is_err() && header.flag("llama.block_count").is_err());
        assert!(matches!(header.values["tokens"], Value::List { of: 8, count: 2, .. }));
        let [one, two] = &header.tensors[..] else { panic!("{header:?}") };
        assert_eq!((one.name.as_str(), &one.shape[..], one.kind), ("one", &[3, 2][..], 0));
        assert_eq!((&bytes[one.at..one.at + 24], &bytes[two.at..two.at + 8]), (&[1; 24][..], &[2; 8][..]));
        assert!(one.at % 32 == 0 && two.at % 32 == 0);
    }

    /// Whatever is cut off or flipped, it is read or refused, in no time and without memory.
    #[test]
    fn damaged_files_are_refused() {
        let bytes = some();
        let whole = Header::read(&bytes).unwrap().tensors[0].at - 31;
        for cut in 0..whole.min(bytes.len()) {
            let read = Header::read(&bytes[..cut]);
            assert!(read.is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let _ = Header::read(&damaged);
            }
        }
        let of = |change: fn(&mut Writer) -> &mut Writer| {
            let mut w = Writer::default();
            change(&mut w);
            Header::read(&w.file()).unwrap_err().why
        };
        assert!(of(|w| w.u32("a", 1).u32("a", 2)).contains("a is there twice"));
        assert!(of(|w| w.u32("general.alignment", 3)).contains("alignment"));
        assert!(of(|w| w.tensor("t", &[1; 5], 0, vec![])).contains("5 dimensions"));
        assert!(of(|w| w.key("k", 13, &[])).contains("type 13"));
        assert!(of(|w| w.key("k", 8, &u64::MAX.to_le_bytes())).contains("bytes are left"));
        assert!(Header::read(b"GGML").unwrap_err().why.contains("GGUF"));
        assert!(Header::read(b"GGUF\x01\0\0\0").unwrap_err().why.contains("version 1"));
    }
}
