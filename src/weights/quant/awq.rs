//! AWQ's layout of 4-bit weights for its GEMM kernels (`version` gemm), as AutoAWQ writes it.
//!
//! `qweight` i32 [k, n/8]: a word has the codes of eight rows of w in one column; nibble i is of row [`ORDER`]\[i\]. `qzeros` i32
//! [k/g, n/8], in the same order, and `scales` f16 [k/g, n].

use super::{Packed, QuantError, bytes_of, four_bits, grouped, multiple, size, transposed, unheld, with_zeros, word};
use crate::problem::Storage;

/// Which of eight rows each nibble is of.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
const LAYOUT: &str = "AWQ";

/// The tensors of one weight in a file; `T` is their bytes, borrowed or owned.
#[derive(Clone, Debug, PartialEq)]
pub struct Awq<T> {
    /// Little-endian i32 [k, n/8].
    pub qweight: T,
    /// Little-endian i32 [k/g, n/8].
    pub qzeros: T,
    /// Little-endian f16 [k/g, n].
    pub scales: T,
}

/// The nibbles of words in their rows' order, a byte each.
fn spread(words: &[u8]) -> Vec<u8> {
    let mut list = Vec::with_capacity(words.len() * 2);
    for bytes in words.as_chunks::<4>().0 {
        let mut eight = [0; 8];
        for (i, row) in ORDER.into_iter().enumerate() {
            eight[row] = bytes[i / 2] >> (i % 2 * 4) & 15;
        }
        list.extend(eight);
    }
    list
}

fn gathered(codes: &[u8]) -> Vec<u8> {
    codes.as_chunks::<8>().0.iter().flat_map(|eight| word(ORDER.map(|row| eight[row]))).collect()
}

impl<T: AsRef<[u8]>> Awq<T> {
    /// The weight w[n, k] of that name with groups of `group` columns (k: one a row): `int4` where all zero points are 8, else
    /// `int4z`, with scales in f16.
    ///
    /// # Errors
    /// Sizes that are not those of the shape, scales that are not finite.
    pub fn unpack(&self, name: &str, [n, k]: [u64; 2], group: u64) -> Result<Packed, QuantError> {
        size(name, [n, k])?;
        multiple(name, "n", n, 8)?;
        multiple(name, "k", k, 2)?;
        let per = grouped(name, LAYOUT, group, k)?;
        let groups = k.div_ceil(group);
        let named = |tensor: &str| format!("{name}.{tensor}");
        let (qweight, qzeros, scales) = (self.qweight.as_ref(), self.qzeros.as_ref(), self.scales.as_ref());
        bytes_of(&named("qweight"), qweight, n * k / 2)?;
        bytes_of(&named("qzeros"), qzeros, groups * n / 2)?;
        bytes_of(&named("scales"), scales, groups * n * 2)?;
        let (format, zeros) = with_zeros(per, transposed(&spread(qzeros), groups, n, 1));
        let codes = transposed(&spread(qweight), k, n, 1);
        let codes = codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect();
        Packed::new(name, (format, Storage::F16), [n, k], codes, transposed(scales, groups, n, 2), zeros)
    }
}

impl Awq<Vec<u8>> {
    /// Of `int4` or `int4z` with scales in f16; n is a multiple of 8.
    ///
    /// # Errors
    /// Another format, or rows that words do not hold.
    pub fn pack(name: &str, packed: &Packed) -> Result<Awq<Vec<u8>>, QuantError> {
        let zeros = four_bits(name, LAYOUT, packed)?;
        if packed.scale != Storage::F16 {
            return Err(unheld(name, LAYOUT, packed, "its scales are f16"));
        }
        let (n, k) = (packed.n, packed.k);
        multiple(name, "n", n, 8)?;
        let groups = zeros.len() as u64 / n;
        let codes: Vec<u8> = packed.codes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        Ok(Awq {
            qweight: gathered(&transposed(&codes, n, k, 1)),
            qzeros: gathered(&transposed(&zeros, n, groups, 1)),
            scales: transposed(&packed.scales, n, groups, 2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Draw;
    use super::*;
    use crate::problem::ScaledFormat;

    #[test]
    fn any_tensor_comes_back_bit_by_bit() {
        let mut draw = Draw::new(4);
        for _ in 0..1000 {
            let (n, k) = (8 * (1 + draw.below(4)), 2 * (1 + draw.below(160)));
            let name = draw.pick(&["int4-g32", "int4z-g64", "int4z-g128", "int4-row", "int4z-row", "int4z-g32"]);
            let mut packed = draw.packed(ScaledFormat::parse(name).unwrap(), Storage::F16, n, k);
            packed.zeros.iter_mut().take(1).for_each(|z| *z = 3);
            let file = Awq::pack("q", &packed).unwrap();
            let group = packed.format.per.run(k as i64) as u64;
            let back = file.unpack("q", [n, k], group).unwrap();
            let back = Packed { format: packed.format, ..back };
            assert_eq!(back, packed, "{name} {n} {k}");
            assert_eq!(Awq::pack("q", &back).unwrap(), file);
            // By the definition: nibble i of a word is of row ORDER[i].
            let (row, col) = (draw.below(n), draw.below(k));
            let i = ORDER.iter().position(|r| *r as u64 == row % 8).unwrap();
            let int = |bytes: &[u8], at: u64| (Storage::I32.value(bytes, at) as i32) >> (4 * i) & 15;
            let (g, words) = (col / group, n / 8);
            let code = int(&file.qweight, col * words + row / 8) - int(&file.qzeros, g * words + row / 8);
            assert_eq!(back.value(row, col), code as f32 * Storage::F16.value(&file.scales, g * n + row) as f32);
        }
    }

    #[test]
    fn hostile_tensors_are_refused_by_name() {
        let packed = Draw::new(5).packed(ScaledFormat::parse("int4z-g32").unwrap(), Storage::F16, 16, 64);
        let good = Awq::pack("q", &packed).unwrap();
        let mut inf = good.scales.clone();
        inf[..2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
        for (part, wrong) in [
            ("q.qweight: it has", Awq { qweight: vec![], ..good.clone() }),
            ("q.qzeros: it has", Awq { qzeros: good.qzeros[1..].to_vec(), ..good.clone() }),
            ("q.scales: it has", Awq { scales: good.scales[2..].to_vec(), ..good.clone() }),
            ("q (scales): element 0 is -inf", Awq { scales: inf, ..good.clone() }),
        ] {
            let e = wrong.unpack("q", [16, 64], 32).unwrap_err().to_string();
            assert!(e.contains(part), "{part}: {e}");
        }
        assert!(good.unpack("q", [12, 64], 32).is_err() && good.unpack("q", [16, 64], 0).is_err());
        let f32s = Packed { scale: Storage::F32, scales: vec![0; packed.scales.len() * 2], ..packed };
        assert!(Awq::pack("q", &f32s).unwrap_err().to_string().contains("its scales are f16"));
    }
}
