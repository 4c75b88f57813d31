//! The forms in which checkpoints store elements: as they are, or in ggml's blocks, unpacked here.
//!
//! A block is a run of elements of one row with a scale, as ggml's public headers lay them out (`ggml-common.h`): of 32
//! elements Q8_0 (f16 d; 32 × i8), Q4_0 (f16 d; 4 bits less 8) and Q4_1 (f16 d, m; 4 bits), of 256 Q4_K (f16 d and dmin; 8 × 6-bit
//! scales and minima; 4 bits) and Q6_K (6 bits less 32; 16 × i8 scales; f16 d).

use crate::problem::{Dtype, Storage, Types};
use half::f16;

/// How the elements of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One by one.
    Plain(Storage),
    /// 8 bits and a scale for 32.
    Q8_0,
    /// 4 bits and a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32.
    Q4_1,
    /// 4 bits; scales and minima of 6 bits for 32, and a scale of each for 256.
    Q4K,
    /// 6 bits; scales of 8 bits for 16, and one for 256.
    Q6K,
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Format {
        Format::Plain(Types::from(dtype).w)
    }
}

impl Format {
    /// The format that people call so: the names of types, `q8_0` and the like.
    pub fn parse(name: &str) -> Option<Format> {
        let blocks = [("q8_0", Format::Q8_0), ("q4_0", Format::Q4_0), ("q4_1", Format::Q4_1)];
        let named = blocks.into_iter().find(|(n, _)| *n == name).map(|(_, format)| format);
        named.or_else(|| Dtype::parse(name).map(Format::from))
    }

    /// The format of that number in ggml.
    pub fn of_ggml(kind: u32) -> Option<Format> {
        Some(match kind {
            0 => Format::Plain(Storage::F32),
            1 => Format::Plain(Storage::F16),
            2 => Format::Q4_0,
            3 => Format::Q4_1,
            8 => Format::Q8_0,
            12 => Format::Q4K,
            14 => Format::Q6K,
            30 => Format::Plain(Storage::Bf16),
            _ => return None,
        })
    }

    /// Elements of a block, and its bytes.
    pub(super) fn block(self) -> (u64, u64) {
        match self {
            Format::Plain(storage) => (1, storage.bits() / 8),
            Format::Q8_0 => (32, 34),
            Format::Q4_0 => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q4K => (256, 144),
            Format::Q6K => (256, 210),
        }
    }

    /// Bytes of so many elements of a row; `None` where they are no whole blocks.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (each, bytes) = self.block();
        elements.is_multiple_of(each).then(|| (elements / each).checked_mul(bytes)).flatten()
    }

    /// Unpacks blocks. Elements that are stored one by one are no blocks, and left alone.
    pub fn unpack(self, blocks: &[u8], out: &mut [f32]) {
        let (each, bytes) = self.block();
        let pairs = blocks.chunks_exact(bytes as usize).zip(out.chunks_exact_mut(each as usize));
        match self {
            Format::Plain(_) => {}
            Format::Q8_0 => pairs.for_each(|(b, y)| {
                let d = scale(b, 0);
                y.iter_mut().zip(&b[2..]).for_each(|(y, q)| *y = d * f32::from(*q as i8));
            }),
            Format::Q4_0 => pairs.for_each(|(b, y)| {
                let d = scale(b, 0);
                nibbles(&b[2..18], y, |q| d * (q - 8.0));
            }),
            Format::Q4_1 => pairs.for_each(|(b, y)| {
                let (d, m) = (scale(b, 0), scale(b, 2));
                nibbles(&b[4..20], y, |q| d * q + m);
            }),
            Format::Q4K => pairs.for_each(|(b, y)| q4_k(b, y)),
            Format::Q6K => pairs.for_each(|(b, y)| q6_k(b, y)),
        }
    }
}

/// The f16 at a byte.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of bytes, then the high ones.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (value(f32::from(byte & 15)), value(f32::from(byte >> 4)));
    }
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, codes) = (scale(b, 0), scale(b, 2), &b[4..16], &b[16..144]);
    // Six bits each: the lower four of the last four pairs stand apart from their upper two.
    let pair = |i: usize| match i {
        0..4 => (scales[i] & 63, scales[i + 4] & 63),
        _ => (scales[i + 4] & 15 | scales[i - 4] >> 6 << 4, scales[i + 4] >> 4 | scales[i] >> 6 << 4),
    };
    for (i, (codes, y)) in codes.chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let [low, high] = [2 * i, 2 * i + 1].map(|i| {
            let (s, m) = pair(i);
            (d * f32::from(s), dmin * f32::from(m))
        });
        let (first, second) = y.split_at_mut(32);
        for ((code, first), second) in codes.iter().zip(first).zip(second) {
            *first = low.0 * f32::from(code & 15) - low.1;
            *second = high.0 * f32::from(code >> 4) - high.1;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], scale(b, 208));
    for half in 0..2 {
        let (low, high, scales) = (&low[64 * half..], &high[32 * half..], &scales[8 * half..]);
        let y = &mut y[128 * half..128 * half + 128];
        for part in 0..4 {
            for l in 0..32 {
                let four = low[l + part % 2 * 32] >> (part / 2 * 4) & 15;
                let two = high[l] >> (2 * part) & 3;
                let code = f32::from(four | two << 4) - 32.0;
                y[32 * part + l] = d * f32::from(scales[2 * part + l / 16] as i8) * code;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of any bytes but for scales, whose exponents are small.
    fn blocks(format: Format) -> Vec<u8> {
        let (_, size) = format.block();
        let hash = |i: u64| {
            let mut z = 11u64.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        let mut bytes: Vec<u8> = (0..4 * size).map(|i| (hash(i) >> 56) as u8).collect();
        let scales: &[usize] = match format {
            Format::Q4_1 | Format::Q4K => &[0, 2],
            Format::Q6K => &[208],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(size as usize) {
            scales.iter().for_each(|at| block[at + 1] = block[at + 1] & 0x83 | 0x28);
        }
        bytes
    }

    /// Element and value, the sum of magnitudes, and of element × place, as `gguf.quants.dequantize` of the Python package
    /// gguf 0.19 gives them for the same bytes.
    type Golden = (Format, [(usize, f64); 4], f64, f64);
    const GOLDEN: [Golden; 5] = [
        (
            Format::Q8_0,
            [(0, -5.31298828125), (31, -5.484375), (81, -2.160186767578125), (127, 4.367950439453125)],
            342.5688781738281,
            779.4559631347656,
        ),
        (
            Format::Q4_0,
            [(0, -0.28564453125), (31, 0.3427734375), (81, -0.28411865234375), (127, -0.40289306640625)],
            27.118896484375,
            -137.447021484375,
        ),
        (
            Format::Q4_1,
            [(0, 0.527252197265625), (31, 0.641510009765625), (81, 0.212921142578125), (127, -0.34503173828125)],
            51.87786865234375,
            -873.0404052734375,
        ),
        (
            Format::Q4K,
            [(1, 22.607574462890625), (255, 18.546661376953125), (529, 1.7542724609375), (1023, 0.2608642578125)],
            10959.1904296875,
            4862955.705169678,
        ),
        (
            Format::Q6K,
            [(1, -66.1451416015625), (255, -29.77447509765625), (529, -7.3070068359375), (1023, -129.359619140625)],
            48634.99328613281,
            1357420.0577087402,
        ),
    ];

    #[test]
    fn blocks_are_unpacked_as_by_others() {
        for (format, elements, magnitudes, places) in GOLDEN {
            let bytes = blocks(format);
            let mut y = vec![f32::NAN; 4 * format.block().0 as usize];
            assert_eq!(format.bytes(y.len() as u64), Some(bytes.len() as u64));
            format.unpack(&bytes, &mut y);
            elements.iter().for_each(|(i, v)| assert_eq!(f64::from(y[*i]), *v, "{format:?} {i}"));
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * magnitudes * y.len() as f64;
            let sum: f64 = y.iter().map(|v| f64::from(v.abs())).sum();
            let by_place: f64 = y.iter().zip(1..).map(|(v, i)| f64::from(*v) * f64::from(i)).sum();
            assert!(near(sum, magnitudes) && near(by_place, places), "{format:?}: {sum} {by_place}");
        }
        assert_eq!((Format::Q4K.bytes(255), Format::of_ggml(7)), (None, None));
    }
}
