//! ggml's blocks as scaled formats, value by value as [`Format::unpack`] gives them.
//!
//! Q8_0 is `int8-g32 scale=f16`, Q4_0 `int4-g32 scale=f16`, Q4_1 `int4m-g32 scale=f16`. Q4_K and Q6_K have a scale of 6 or 8 bits for 32 or 16
//! elements times one of a block of 256; the product has at most 19 bits, so it is exact in f32: `int4m-g32 scale=f32` and
//! `int8-g16 scale=f32`. Back from these the two factors are looked for; the block may have others than it was made of, but the same values.

use super::super::Format;
use super::{Fault, Packed, QuantError, bytes_of, multiple, size, too_large, unheld};
use crate::problem::{ScaledFormat, Storage};
use half::f16;

/// Elements of a block of K.
const K_BLOCK: u64 = 256;

/// The scaled format of a block format, and the type of its scales; none of elements that are stored one by one.
pub(in crate::weights) fn format_of(format: Format) -> Option<(ScaledFormat, Storage)> {
    let (name, scale) = match format {
        Format::Plain(_) => return None,
        Format::Q8_0 => ("int8-g32", Storage::F16),
        Format::Q4_0 => ("int4-g32", Storage::F16),
        Format::Q4_1 => ("int4m-g32", Storage::F16),
        Format::Q4K => ("int4m-g32", Storage::F32),
        Format::Q6K => ("int8-g16", Storage::F32),
    };
    ScaledFormat::parse(name).map(|f| (f, scale))
}

fn unread(name: &str, format: Format) -> QuantError {
    let instead = "its elements are stored one by one".into();
    QuantError::new(name, Fault::Format { layout: "a scaled format", format: format!("{format:?}"), instead })
}

/// The weight w[n, k] of that name, of whole blocks.
///
/// # Errors
/// Rows that are no whole blocks, more or fewer bytes than they are, scales or minima that are not finite.
pub fn from_ggml(name: &str, format: Format, [n, k]: [u64; 2], blocks: &[u8]) -> Result<Packed, QuantError> {
    let (scaled, scale) = format_of(format).ok_or_else(|| unread(name, format))?;
    size(name, [n, k])?;
    let (each, bytes) = format.block();
    multiple(name, "k", k, each)?;
    bytes_of(name, blocks, n * k / each * bytes)?;
    let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for b in blocks.chunks_exact(bytes as usize) {
        match format {
            Format::Plain(_) => {}
            Format::Q8_0 => {
                scales.extend(&b[..2]);
                codes.extend(&b[2..]);
            }
            Format::Q4_0 => {
                scales.extend(&b[..2]);
                codes.extend(pairs(&b[2..]));
            }
            Format::Q4_1 => {
                scales.extend(&b[..2]);
                zeros.extend(&b[2..4]);
                codes.extend(pairs(&b[4..]));
            }
            Format::Q4K => {
                let (d, dmin) = (half_at(b, 0), half_at(b, 2));
                for (s, m) in sixes(&b[4..16]) {
                    scales.extend((d * f32::from(s)).to_le_bytes());
                    // Plus zero, so that a minimum of nothing has no sign.
                    zeros.extend((-(dmin * f32::from(m)) + 0.0).to_le_bytes());
                }
                for two in b[16..].chunks_exact(32) {
                    codes.extend(two.as_chunks::<2>().0.iter().map(|[a, b]| a & 15 | b << 4));
                    codes.extend(two.as_chunks::<2>().0.iter().map(|[a, b]| a >> 4 | b & 0xf0));
                }
            }
            Format::Q6K => {
                let d = half_at(b, 208);
                scales.extend(b[192..208].iter().flat_map(|s| (d * f32::from(*s as i8)).to_le_bytes()));
                codes.extend(six_bits(b).map(|c| (c as i8 - 32) as u8));
            }
        }
    }
    Packed::new(name, (scaled, scale), [n, k], codes, scales, zeros)
}

/// The blocks of a weight of the format that [`from_ggml`] makes of them.
///
/// # Errors
/// Another format, rows that are no whole blocks, codes of Q6_K beyond 6 bits, and scales that no two factors of a block of K give.
pub fn to_ggml(name: &str, packed: &Packed, format: Format) -> Result<Vec<u8>, QuantError> {
    let (scaled, scale) = format_of(format).ok_or_else(|| unread(name, format))?;
    packed.check(name)?;
    if (packed.format, packed.scale) != (scaled, scale) {
        return Err(unheld(name, "this block", packed, &format!("{format:?} holds {scaled} scale={scale}")));
    }
    let (each, bytes) = format.block();
    multiple(name, "k", packed.k, each)?;
    let blocks = packed.n * packed.k / each;
    let mut out = Vec::with_capacity((blocks * bytes) as usize);
    let of = |list: &[u8], block: usize| {
        let size = list.len() / blocks as usize;
        block * size..(block + 1) * size
    };
    for block in 0..blocks as usize {
        let codes = &packed.codes[of(&packed.codes, block)];
        let scales = &packed.scales[of(&packed.scales, block)];
        let zeros = &packed.zeros[of(&packed.zeros, block)];
        let factors = |list: &[u8], most: i32, sign: f32| {
            let values: Vec<f32> = list.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v) * sign).collect();
            two_factors(&values, most).ok_or_else(|| {
                let (index, value) =
                    (block as u64 * values.len() as u64, values.first().copied().unwrap_or(0.0).into());
                let fault =
                    too_large(index, value, packed.format, "keep the format, or quantise anew from plain weights");
                QuantError::new(format!("{name} (scales)"), fault)
            })
        };
        match format {
            Format::Plain(_) => {}
            Format::Q8_0 => {
                out.extend(scales);
                out.extend(codes);
            }
            Format::Q4_0 | Format::Q4_1 => {
                out.extend(scales);
                out.extend(zeros);
                out.extend(halves(codes));
            }
            Format::Q4K => {
                let (d, s) = factors(scales, 63, 1.0)?;
                let (dmin, m) = factors(zeros, 63, -1.0)?;
                out.extend(d.to_le_bytes());
                out.extend(dmin.to_le_bytes());
                out.extend(of_sixes(&s, &m));
                for two in codes.chunks_exact(32) {
                    let (low, high) = two.split_at(16);
                    for (low, high) in low.iter().zip(high) {
                        out.extend([low & 15 | high << 4, low >> 4 | high & 0xf0]);
                    }
                }
            }
            Format::Q6K => {
                let (d, s) = factors(scales, 128, 1.0)?;
                if let Some(at) = codes.iter().position(|c| !(-32..32).contains(&(*c as i8))) {
                    let (index, value) = ((block * 256 + at) as u64, f64::from(codes[at] as i8));
                    return Err(QuantError::new(
                        name,
                        too_large(index, value, packed.format, "Q6_K has codes of −32 to 31"),
                    ));
                }
                let code = |i: usize| (codes[i] as i8 + 32) as u8;
                out.extend(of_six_bits(code));
                out.extend(s.iter().map(|s| *s as i8 as u8));
                out.extend(d.to_le_bytes());
            }
        }
    }
    Ok(out)
}

/// A number d in f16 and whole numbers of at most `most` whose products with it are `values`, exactly. `most` is 63 where they
/// have no sign, or 128 for those of −128 to 127.
fn two_factors(values: &[f32], most: i32) -> Option<(f16, Vec<i32>)> {
    let largest = values.iter().copied().fold(0.0f32, |a, v| if v.abs() > a.abs() { v } else { a });
    if largest == 0.0 {
        return Some((f16::ZERO, vec![0; values.len()]));
    }
    let range = if most == 63 { 0..=63 } else { -128..=127 };
    for whole in (1..=most).rev().flat_map(|w| [w, -w]).filter(|w| range.contains(w)) {
        let d = f16::from_f32(largest / whole as f32);
        let wholes: Vec<i32> = values.iter().map(|v| (v / d.to_f32()).round() as i32).collect();
        let exact = |(w, v): (&i32, &f32)| range.contains(w) && d.to_f32() * *w as f32 == *v;
        if d.is_finite() && d != f16::ZERO && wholes.iter().zip(values).all(exact) {
            return Some((d, wholes));
        }
    }
    None
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 codes, of which the first half lies in the low halves of 16 bytes, two to a byte.
fn pairs(bytes: &[u8]) -> Vec<u8> {
    let pairs = bytes.as_chunks::<2>().0;
    let (low, high) = (pairs.iter().map(|[a, b]| a & 15 | b << 4), pairs.iter().map(|[a, b]| a >> 4 | b & 0xf0));
    low.chain(high).collect()
}

/// The inverse of [`pairs`].
fn halves(codes: &[u8]) -> Vec<u8> {
    let (low, high) = codes.split_at(codes.len() / 2);
    low.iter().zip(high).flat_map(|(l, h)| [l & 15 | h << 4, l >> 4 | h & 0xf0]).collect()
}

/// The eight scales and minima of a block of Q4_K.
fn sixes(b: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|i| match i {
        0..4 => (b[i] & 63, b[i + 4] & 63),
        _ => (b[i + 4] & 15 | b[i - 4] >> 6 << 4, b[i + 4] >> 4 | b[i] >> 6 << 4),
    })
}

fn of_sixes(s: &[i32], m: &[i32]) -> [u8; 12] {
    let (s, m) = (|i: usize| s[i] as u8, |i: usize| m[i] as u8);
    std::array::from_fn(|i| match i {
        0..4 => s(i) | s(i + 4) >> 4 << 6,
        4..8 => m(i - 4) | m(i) >> 4 << 6,
        _ => s(i - 4) & 15 | m(i - 4) << 4,
    })
}

/// Where element `i` of a block of Q6_K lies: its byte of low bits and their shift, its byte of high ones and theirs.
fn six_bit_place(i: usize) -> (usize, usize, usize, usize) {
    let (half, part, l) = (i / 128, i % 128 / 32, i % 32);
    (64 * half + l + part % 2 * 32, part / 2 * 4, 128 + 32 * half + l, 2 * part)
}

fn six_bits(b: &[u8]) -> impl Iterator<Item = u8> {
    (0..K_BLOCK as usize).map(|i| {
        let (low, shift, high, by) = six_bit_place(i);
        b[low] >> shift & 15 | (b[high] >> by & 3) << 4
    })
}

fn of_six_bits(code: impl Fn(usize) -> u8) -> [u8; 192] {
    let mut bytes = [0; 192];
    for i in 0..K_BLOCK as usize {
        let (low, shift, high, by) = six_bit_place(i);
        bytes[low] |= (code(i) & 15) << shift;
        bytes[high] |= code(i) >> 4 << by;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests::Draw;
    use super::*;

    const ALL: [Format; 5] = [Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q4K, Format::Q6K];

    /// Blocks of any bytes but for their scales in f16, which are finite; now and then 0.
    fn blocks(draw: &mut Draw, format: Format, blocks: u64) -> Vec<u8> {
        let scales: &[usize] = match format {
            Format::Q4_1 | Format::Q4K => &[0, 2],
            Format::Q6K => &[208],
            _ => &[0],
        };
        let size = format.block().1;
        let mut bytes = draw.bytes(blocks * size);
        for block in bytes.chunks_exact_mut(size as usize) {
            for at in scales {
                block[at + 1] = if draw.below(9) == 0 { 0 } else { block[at + 1] & 0xbf };
                block[*at] = if block[at + 1] == 0 { 0 } else { block[*at] };
            }
        }
        bytes
    }

    #[test]
    fn values_are_those_of_the_blocks_and_come_back() {
        let mut draw = Draw::new(8);
        for round in 0..1000 {
            let format = draw.pick(&ALL);
            let each = format.block().0;
            let (n, k) = (1 + draw.below(3), each * (1 + draw.below(3)));
            let bytes = blocks(&mut draw, format, n * k / each);
            let packed = from_ggml("q", format, [n, k], &bytes).unwrap();
            let mut wanted = vec![f32::NAN; (n * k) as usize];
            format.unpack(&bytes, &mut wanted);
            for (i, wanted) in (0..).zip(&wanted) {
                assert_eq!(packed.value(i / k, i % k), *wanted, "{format:?} {i}");
            }
            let back = to_ggml("q", &packed, format).unwrap();
            if matches!(format, Format::Q4K | Format::Q6K) {
                // Twice the one factor and half the other are the same scale; the values tell.
                let mut values = vec![f32::NAN; (n * k) as usize];
                format.unpack(&back, &mut values);
                assert_eq!(values, wanted, "{format:?} {round}");
            } else {
                assert_eq!(back, bytes, "{format:?}");
            }
            let again = from_ggml("q", format, [n, k], &back).unwrap();
            assert!(again.codes == packed.codes && again.zeros == packed.zeros, "{format:?}");
        }
    }

    /// Blocks as llama.cpp makes them have a scale of the most that six bits hold, and come back bit by bit.
    #[test]
    fn blocks_with_a_full_scale_come_back_bit_by_bit() {
        let mut draw = Draw::new(9);
        for _ in 0..1000 {
            let format = draw.pick(&[Format::Q4K, Format::Q6K]);
            let mut bytes = blocks(&mut draw, format, 1);
            if format == Format::Q4K {
                (bytes[1], bytes[3]) = (bytes[1] & 0x3f | 0x10, bytes[3] & 0x3f | 0x10);
                (bytes[4], bytes[8]) = (bytes[4] | 63, bytes[8] | 63);
            } else {
                (bytes[192], bytes[209]) = (0x80, bytes[209] & 0x3f | 0x10);
            }
            let packed = from_ggml("q", format, [1, 256], &bytes).unwrap();
            assert_eq!(to_ggml("q", &packed, format).unwrap(), bytes, "{format:?}");
        }
    }

    #[test]
    fn hostile_blocks_are_refused_by_name() {
        let mut draw = Draw::new(10);
        for format in ALL {
            let (each, size) = format.block();
            let bytes = blocks(&mut draw, format, 2);
            let e = from_ggml("q", format, [2, each], &bytes[1..]).unwrap_err().to_string();
            assert!(e.contains(&format!("q: it has {} bytes", 2 * size - 1)), "{e}");
            assert!(from_ggml("q", format, [2, each - 1], &bytes).unwrap_err().to_string().contains("multiple"));
            assert!(from_ggml("q", format, [u64::MAX, each], &bytes).unwrap_err().to_string().contains("too many"));
            let mut inf = bytes.clone();
            let at = if format == Format::Q6K { 208 } else { 0 };
            inf[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            let e = from_ggml("q", format, [2, each], &inf).unwrap_err().to_string();
            assert!(e.starts_with("q (scales): element"), "{e}");
        }
        assert!(from_ggml("q", Format::Plain(Storage::F32), [1, 1], &[0; 4]).is_err());
        let f = |name| ScaledFormat::parse(name).unwrap();
        let q8 = draw.packed(f("int8-g32"), Storage::F16, 1, 32);
        assert!(to_ggml("q", &q8, Format::Q4_0).unwrap_err().to_string().contains("int8-g32"));
        let mut q6 = draw.packed(f("int8-g16"), Storage::F32, 1, 256);
        q6.scales.fill(0);
        assert!(to_ggml("q", &q6, Format::Q6K).unwrap_err().to_string().contains("−32 to 31"));
        // One third of another scale of 64ths has no such factors.
        q6.codes.fill(0);
        q6.scales[..4].copy_from_slice(&1.0f32.to_le_bytes());
        q6.scales[4..8].copy_from_slice(&(1.0f32 / 3.0).to_le_bytes());
        assert!(to_ggml("q", &q6, Format::Q6K).unwrap_err().to_string().starts_with("q (scales)"));
    }
}
