//! GPTQ's layout of 4-bit weights, as GPTQ-for-LLaMa, AutoGPTQ and GPTQModel write it.
//!
//! `qweight` i32 [k/8, n]: eight codes of a column of it, which is a row of w, the first lowest. `scales` f16 [k/g, n]. `qzeros` i32
//! [k/g, n/8]: eight zero points, the first lowest, in version 1 each less one. `g_idx` i32 \[k\]: the group of each column.

use super::{
    Fault, Packed, QuantError, bytes_of, four_bits, grouped, multiple, size, too_large, transposed, unheld, with_zeros,
    word,
};
use crate::problem::Storage;

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Each less one (`checkpoint_format` gptq).
    LessOne,
    /// As they are (`checkpoint_format` gptq_v2).
    Plain,
}

/// The tensors of one weight in a file.
#[derive(Clone, Copy, Debug)]
pub struct Gptq<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Rows of w, which are `out_features`.
    pub n: u64,
    /// Columns, `in_features`.
    pub k: u64,
    /// Columns of a group; k where a row has one (`group_size` −1).
    pub group: u64,
    /// Little-endian i32 [k/8, n].
    pub qweight: &'a [u8],
    /// Little-endian i32 [k/g, n/8].
    pub qzeros: &'a [u8],
    /// Little-endian f16 [k/g, n].
    pub scales: &'a [u8],
    /// Little-endian i32 \[k\], where it is there.
    pub g_idx: Option<&'a [u8]>,
    /// How zero points are stored.
    pub zeros: Zeros,
}

/// The tensors of one weight for a file.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqTensors {
    /// Little-endian i32 [k/8, n].
    pub qweight: Vec<u8>,
    /// Little-endian i32 [k/g, n/8].
    pub qzeros: Vec<u8>,
    /// Little-endian f16 [k/g, n].
    pub scales: Vec<u8>,
}

const LAYOUT: &str = "GPTQ";

impl Gptq<'_> {
    /// As `int4` where all zero points are 8, else `int4z`, with scales in f16.
    ///
    /// # Errors
    /// Sizes that are not those of the shape, columns in an order of their own, scales that are not finite, zero points of 16.
    pub fn unpack(&self) -> Result<Packed, QuantError> {
        let Gptq { name, n, k, group, .. } = *self;
        size(name, [n, k])?;
        multiple(name, "k", k, 8)?;
        multiple(name, "n", n, 8)?;
        let per = grouped(name, LAYOUT, group, k)?;
        let groups = k.div_ceil(group);
        let named = |tensor: &str| format!("{name}.{tensor}");
        bytes_of(&named("qweight"), self.qweight, n * k / 2)?;
        bytes_of(&named("qzeros"), self.qzeros, groups * n / 2)?;
        bytes_of(&named("scales"), self.scales, groups * n * 2)?;
        if let Some(g_idx) = self.g_idx {
            bytes_of(&named("g_idx"), g_idx, k * 4)?;
            in_order(&named("g_idx"), g_idx, group)?;
        }
        let (mut zeros, nibble) = (Vec::new(), |i: u64| Storage::Int4.value(self.qzeros, i) as u8);
        let more = u8::from(self.zeros == Zeros::LessOne);
        for row in 0..n {
            zeros.extend((0..groups).map(|g| nibble(g * n + row) + more));
        }
        let (format, zeros) = with_zeros(per, zeros);
        if let Some(index) = zeros.iter().position(|z| *z > 15) {
            let fault = too_large(index as u64, 16.0, format, "quantise with zero points of 0 to 15");
            return Err(QuantError::new(named("qzeros"), fault));
        }
        // A word is eight codes of a row in their order, so words move as they are.
        let codes = transposed(self.qweight, k / 8, n, 4);
        let scales = transposed(self.scales, groups, n, 2);
        Packed::new(name, (format, Storage::F16), [n, k], codes, scales, zeros)
    }
}

/// Refuses columns in any but their own order.
fn in_order(name: &str, g_idx: &[u8], group: u64) -> Result<(), QuantError> {
    for (column, word) in (0..).zip(g_idx.as_chunks().0) {
        let (found, wanted) = (i64::from(i32::from_le_bytes(*word)), (column / group) as i64);
        if found != wanted {
            return Err(QuantError::new(name, Fault::Order { column, found, wanted }));
        }
    }
    Ok(())
}

impl GptqTensors {
    /// Of `int4` or `int4z` with scales in f16; n and k are multiples of 8.
    ///
    /// # Errors
    /// Another format, a shape that words do not hold, or a zero point of 0 where each is stored less one.
    pub fn pack(name: &str, packed: &Packed, stored: Zeros) -> Result<GptqTensors, QuantError> {
        let zeros = four_bits(name, LAYOUT, packed)?;
        if packed.scale != Storage::F16 {
            return Err(unheld(name, LAYOUT, packed, "its scales are f16"));
        }
        let (n, k) = (packed.n, packed.k);
        multiple(name, "k", k, 8)?;
        multiple(name, "n", n, 8)?;
        let groups = zeros.len() as u64 / n;
        let less = u8::from(stored == Zeros::LessOne);
        if let Some(index) = zeros.iter().position(|z| *z < less) {
            let instead = "store zero points as they are (gptq_v2)";
            let fault = Fault::Range { index: index as u64, value: 0.0, format: "GPTQ".into(), instead };
            return Err(QuantError::new(name, fault));
        }
        let by_group = transposed(&zeros, n, groups, 1);
        let of_word = |z: &[u8; 8]| word(z.map(|z| z - less));
        Ok(GptqTensors {
            qweight: transposed(&packed.codes, n, k / 8, 4),
            qzeros: by_group.as_chunks().0.iter().flat_map(of_word).collect(),
            scales: transposed(&packed.scales, n, groups, 2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Draw;
    use super::*;
    use crate::problem::ScaledFormat;

    fn of<'a>(t: &'a GptqTensors, [n, k, group]: [u64; 3], zeros: Zeros) -> Gptq<'a> {
        Gptq { name: "q", n, k, group, qweight: &t.qweight, qzeros: &t.qzeros, scales: &t.scales, g_idx: None, zeros }
    }

    /// A value by the definition of the layout: as the CUDA kernels of GPTQ-for-LLaMa read it.
    fn value(t: &Gptq, row: u64, col: u64) -> f32 {
        let int = |bytes: &[u8], i: u64| Storage::I32.value(bytes, i) as i32;
        let (g, n) = (col / t.group, t.n);
        let code = int(t.qweight, col / 8 * n + row) >> (col % 8 * 4) & 15;
        let zero = (int(t.qzeros, g * (n / 8) + row / 8) >> (row % 8 * 4) & 15) + i32::from(t.zeros == Zeros::LessOne);
        (code - zero) as f32 * Storage::F16.value(t.scales, g * n + row) as f32
    }

    #[test]
    fn any_tensor_comes_back_bit_by_bit() {
        let mut draw = Draw::new(1);
        for round in 0..1000 {
            let (n, k) = (8 * (1 + draw.below(4)), 8 * (1 + draw.below(40)));
            let name = draw.pick(&["int4-g32", "int4z-g64", "int4z-g128", "int4-row", "int4z-row", "int4z-g32"]);
            let mut packed = draw.packed(ScaledFormat::parse(name).unwrap(), Storage::F16, n, k);
            let zeros = draw.pick(&[Zeros::LessOne, Zeros::Plain]);
            if zeros == Zeros::LessOne {
                packed.zeros.iter_mut().for_each(|z| *z = (*z).max(1));
            }
            if packed.zeros.iter().all(|z| *z == 8) {
                packed.zeros.iter_mut().take(1).for_each(|z| *z = 9);
            }
            let file = GptqTensors::pack("q", &packed, zeros).unwrap();
            let group = packed.format.per.run(k as i64) as u64;
            let read = of(&file, [n, k, group], zeros);
            let back = read.unpack().unwrap();
            // A group that is as long as a row is one.
            let back = Packed { format: packed.format, ..back };
            assert_eq!(back, packed, "{round}");
            assert_eq!(GptqTensors::pack("q", &back, zeros).unwrap(), file);
            let (row, col) = (draw.below(n), draw.below(k));
            assert_eq!(back.value(row, col), value(&read, row, col), "{name} {row} {col}");
        }
    }

    #[test]
    fn hostile_tensors_are_refused_by_name() {
        let mut draw = Draw::new(2);
        let mut packed = draw.packed(ScaledFormat::parse("int4z-g32").unwrap(), Storage::F16, 16, 64);
        packed.zeros.iter_mut().for_each(|z| *z = (*z).clamp(1, 7));
        let file = GptqTensors::pack("q", &packed, Zeros::LessOne).unwrap();
        let good = of(&file, [16, 64, 32], Zeros::LessOne);
        let order = |change: &dyn Fn(usize) -> i32| (0..64).flat_map(|i| change(i).to_le_bytes()).collect::<Vec<u8>>();
        let (own, acted, far) = (
            order(&|i| i as i32 / 32),
            order(&|i| if i == 5 { 1 } else { i as i32 / 32 }),
            order(&|i| if i == 63 { 900 } else { i as i32 / 32 }),
        );
        assert_eq!(Gptq { g_idx: Some(&own), ..good }.unpack().unwrap(), packed);
        let (mut nan, mut sixteen) = (file.scales.clone(), file.qzeros.clone());
        nan[2..4].copy_from_slice(&half::f16::NAN.to_le_bytes());
        sixteen[0] = 0xff;
        for (part, wrong) in [
            ("q.g_idx: column 5 is of group 1", Gptq { g_idx: Some(&acted), ..good }),
            ("q.g_idx: column 63 is of group 900", Gptq { g_idx: Some(&far), ..good }),
            ("q.g_idx: it has 252 bytes", Gptq { g_idx: Some(&own[4..]), ..good }),
            ("q.qweight: it has", Gptq { qweight: &file.qweight[4..], ..good }),
            ("q.qzeros: it has", Gptq { qzeros: &[], ..good }),
            ("q.scales: it has", Gptq { scales: &file.scales[2..], ..good }),
            ("q (scales): element", Gptq { scales: &nan, ..good }),
            ("q.qzeros: element 0 is 16", Gptq { qzeros: &sixteen, ..good }),
            ("n is 15", Gptq { n: 15, ..good }),
            ("groups of 48", Gptq { group: 48, ..good }),
            ("groups of 0", Gptq { group: 0, ..good }),
            ("too many", Gptq { n: u64::MAX, ..good }),
        ] {
            let e = wrong.unpack().unwrap_err().to_string();
            assert!(e.contains(part), "{part}: {e}");
        }
        packed.zeros[0] = 0;
        assert!(GptqTensors::pack("q", &packed, Zeros::LessOne).unwrap_err().to_string().contains("gptq_v2"));
    }
}
