//! The layouts of compressed-tensors, which llm-compressor writes and vLLM reads.
//!
//! *pack-quantized* (4 bits): `weight_packed` i32 [n, ⌈k/8⌉], the first of eight columns lowest, signed codes plus 8; `weight_scale`
//! [n, k/g], of a channel [n, 1]; of asymmetric weights `weight_zero_point` i32 [⌈n/8⌉, k/g], the first of eight rows lowest, plus 8 too.
//! *int-quantized* and *float-quantized*: `weight` of 8 bits [n, k] and `weight_scale`: \[1\] of a tensor, [n, 1] of channels, [n, k/g] of groups,
//! [⌈n/128⌉, ⌈k/128⌉] of blocks. Scales are bf16, f16 or f32.

use super::{Fault, Packed, QuantError, SCALES, bytes_of, count, size, unheld, with_zeros, word};
use crate::problem::{Granularity, ScaledFormat, Storage, Zero};

/// The tensors of one weight in a file.
#[derive(Clone, Copy, Debug)]
pub struct Compressed<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Rows of w.
    pub n: u64,
    /// Columns (`weight_shape` of packed ones).
    pub k: u64,
    /// What codes are: Int4 of `weight_packed`, Int8 or E4m3 of `weight`.
    pub codes: Storage,
    /// What one scale is for (`strategy` and `group_size`).
    pub per: Granularity,
    /// `weight_packed` or `weight`.
    pub weight: &'a [u8],
    /// The type of `weight_scale`.
    pub scale: Storage,
    /// `weight_scale`.
    pub weight_scale: &'a [u8],
    /// `weight_zero_point`, of 4 bits alone.
    pub weight_zero_point: Option<&'a [u8]>,
}

/// The tensors of one weight for a file.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedTensors {
    /// `weight_packed` of 4 bits, else `weight`.
    pub weight: Vec<u8>,
    /// `weight_scale`, in the type of the packed one.
    pub weight_scale: Vec<u8>,
    /// `weight_zero_point`.
    pub weight_zero_point: Option<Vec<u8>>,
}

const LAYOUT: &str = "compressed-tensors";

/// Bytes of a row of codes in a file: of whole words where they are packed.
fn row_bytes(codes: Storage, k: u64) -> u64 {
    if codes == Storage::Int4 { k.div_ceil(8) * 4 } else { codes.bytes(k) }
}

impl Compressed<'_> {
    /// `int4`, `int4z` where zero points other than 8 are given, `int8` or `e4m3`, with scales as they are.
    ///
    /// # Errors
    /// Sizes that are not those of the shape, a granularity that no format of these codes has, scales or codes that are no numbers.
    pub fn unpack(&self) -> Result<Packed, QuantError> {
        let Compressed { name, n, k, codes, per, scale, .. } = *self;
        size(name, [n, k])?;
        let named = |tensor: &str| format!("{name}.{tensor}");
        let format = ScaledFormat { codes, per, zero: Zero::None };
        if !ScaledFormat::all().any(|f| f == format) || !SCALES.contains(&scale) {
            let instead = format!("read are {}", ScaledFormat::names());
            let format = format!("{format} scale={scale}");
            return Err(QuantError::new(name, Fault::Format { layout: LAYOUT, format, instead }));
        }
        let row = row_bytes(codes, k);
        let scales = count(per, n, k);
        let weight = if codes == Storage::Int4 { "weight_packed" } else { "weight" };
        bytes_of(&named(weight), self.weight, n * row)?;
        bytes_of(&named("weight_scale"), self.weight_scale, scale.bytes(scales))?;
        let (format, zeros) = match (self.weight_zero_point, codes) {
            (None, _) => (format, Vec::new()),
            (Some(words), Storage::Int4) => {
                let (groups, rows) = (scales / n, n.div_ceil(8) * 8);
                bytes_of(&named("weight_zero_point"), words, groups * rows / 2)?;
                // A word has eight rows of one group.
                let nibble = |row: u64, g: u64| Storage::Int4.value(words, (row / 8 * groups + g) * 8 + row % 8) as u8;
                with_zeros(per, (0..n).flat_map(|row| (0..groups).map(move |g| nibble(row, g))).collect())
            }
            (Some(zeros), _) if zeros.iter().all(|z| *z == 0) => (format, Vec::new()),
            (Some(_), _) => {
                let (format, instead) =
                    (format!("{format} with zero points"), "zero points are of 4 bits alone".into());
                let why = Fault::Format { layout: "a product", format, instead };
                return Err(QuantError::new(named("weight_zero_point"), why));
            }
        };
        // The bytes of words are those of pairs; what pads the last word of a row is left out.
        let kept = codes.bytes(k) as usize;
        let codes = self.weight.chunks(row as usize).flat_map(|row| &row[..kept]).copied().collect();
        Packed::new(name, (format, scale), [n, k], codes, self.weight_scale.to_vec(), zeros)
    }
}

impl CompressedTensors {
    /// Of any format but `int4m`. Columns and rows that pad a word are 0.
    ///
    /// # Errors
    /// A format with minima.
    pub fn pack(name: &str, packed: &Packed) -> Result<CompressedTensors, QuantError> {
        packed.check(name)?;
        let Packed { format, n, k, .. } = *packed;
        if format.zero == Zero::Min {
            return Err(unheld(name, LAYOUT, packed, "it holds int4, int4z, int8 and e4m3"));
        }
        let (kept, row) = (format.codes.bytes(k) as usize, row_bytes(format.codes, k) as usize);
        let padded = |codes: &[u8]| [codes, &[0; 4][..row - kept]].concat();
        let zeros = || {
            let groups = packed.zeros.len() as u64 / n;
            let zero = |row: u64, g: u64| packed.zeros.get((row * groups + g) as usize).copied().unwrap_or(0);
            let of_rows =
                |first: u64| (0..groups).flat_map(move |g| word(std::array::from_fn(|i| zero(first + i as u64, g))));
            (0..n).step_by(8).flat_map(of_rows).collect()
        };
        Ok(CompressedTensors {
            weight: packed.codes.chunks(kept).flat_map(padded).collect(),
            weight_scale: packed.scales.clone(),
            weight_zero_point: (format.zero == Zero::Zero).then(zeros),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Draw;
    use super::*;

    fn of<'a>(t: &'a CompressedTensors, p: &Packed) -> Compressed<'a> {
        Compressed {
            name: "q",
            n: p.n,
            k: p.k,
            codes: p.format.codes,
            per: p.format.per,
            weight: &t.weight,
            scale: p.scale,
            weight_scale: &t.weight_scale,
            weight_zero_point: t.weight_zero_point.as_deref(),
        }
    }

    #[test]
    fn any_tensor_comes_back_bit_by_bit() {
        let formats: Vec<ScaledFormat> = ScaledFormat::all().filter(|f| f.zero != Zero::Min).collect();
        let mut draw = Draw::new(6);
        for _ in 0..1000 {
            let (n, k) = (1 + draw.below(30), 2 * (1 + draw.below(150)));
            let (format, scale) = (draw.pick(&formats), draw.pick(&SCALES));
            let mut packed = draw.packed(format, scale, n, k);
            packed.zeros.iter_mut().take(1).for_each(|z| *z = 3);
            let file = CompressedTensors::pack("q", &packed).unwrap();
            let back = of(&file, &packed).unpack().unwrap();
            assert_eq!(back, packed);
            assert_eq!(CompressedTensors::pack("q", &back).unwrap(), file);
            if format.codes != Storage::Int4 {
                continue;
            }
            // As compressed-tensors unpacks: (word >> 4 (i % 8) & 15) − 8, columns of a row, and rows of a group for zero points.
            let int = |bytes: &[u8], at: u64, i: u64| ((Storage::I32.value(bytes, at) as i32) >> (i % 8 * 4) & 15) - 8;
            let (row, col) = (draw.below(n), draw.below(k));
            let code = int(&file.weight, row * k.div_ceil(8) + col / 8, col);
            let groups = count(format.per, n, k) / n;
            let g = col / (format.per.run(k as i64) as u64);
            let zero = file.weight_zero_point.as_ref().map_or(0, |z| int(z, row / 8 * groups + g, row));
            let scale = scale.value(&file.weight_scale, row * groups + g) as f32;
            assert_eq!(back.value(row, col), (code - zero) as f32 * scale, "{format} {row} {col}");
        }
    }

    #[test]
    fn hostile_tensors_are_refused_by_name() {
        let mut draw = Draw::new(7);
        let format = |name| ScaledFormat::parse(name).unwrap();
        let packed = draw.packed(format("int4z-g32"), Storage::Bf16, 16, 64);
        let file = CompressedTensors::pack("q", &packed).unwrap();
        let good = of(&file, &packed);
        let nan = [&[0xff; 2], &file.weight_scale[2..]].concat();
        for (part, wrong) in [
            ("q.weight_packed: it has", Compressed { weight: &file.weight[1..], ..good }),
            ("q.weight_scale: it has", Compressed { weight_scale: &[], ..good }),
            ("q.weight_zero_point: it has", Compressed { weight_zero_point: Some(&[0; 3]), ..good }),
            ("q (scales): element 0 is NaN", Compressed { weight_scale: &nan, ..good }),
            ("int4-g16", Compressed { per: Granularity::Group(16), ..good }),
            ("too many", Compressed { k: u64::MAX, ..good }),
            ("no multiple of 2", Compressed { k: 63, weight_zero_point: None, ..good }),
        ] {
            let e = wrong.unpack().unwrap_err().to_string();
            assert!(e.contains(part), "{part}: {e}");
        }
        let packed = draw.packed(format("int8-row"), Storage::F32, 4, 6);
        let file = CompressedTensors::pack("q", &packed).unwrap();
        let zeros = [0, 0, 1, 0];
        let e = Compressed { weight_zero_point: Some(&zeros), ..of(&file, &packed) }.unpack().unwrap_err().to_string();
        assert!(e.contains("q.weight_zero_point") && e.contains("4 bits alone"), "{e}");
        assert_eq!(Compressed { weight_zero_point: Some(&[0; 4]), ..of(&file, &packed) }.unpack().unwrap(), packed);
        let minima = draw.packed(format("int4m-g32"), Storage::F16, 4, 6);
        assert!(CompressedTensors::pack("q", &minima).unwrap_err().to_string().contains("it holds"));
    }
}
