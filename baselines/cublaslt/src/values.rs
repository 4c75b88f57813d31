//! Input values: element i of a tensor is element i mod P of a pool of P random values. P is a prime, so no two rows
//! of any width below it are alike, and the host knows every element without keeping the tensor.

use half::{bf16, f16};

use crate::problem::Dtype;

pub const POOL: usize = 4_194_301;

/// Uniform values in ±`bound`, rounded to the dtype.
pub struct Pool {
    /// As the device stores them.
    pub bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Pool {
    pub fn new(dtype: Dtype, seed: u64, bound: f64) -> Pool {
        let mut random = Random(seed);
        let mut bytes = Vec::with_capacity(POOL * dtype.bytes());
        let mut values = Vec::with_capacity(POOL);
        for _ in 0..POOL {
            let value = ((random.unit() * 2.0 - 1.0) * bound) as f32;
            values.push(match dtype {
                Dtype::Bf16 => {
                    let v = bf16::from_f32(value);
                    bytes.extend(v.to_le_bytes());
                    v.to_f32()
                }
                Dtype::F16 => {
                    let v = f16::from_f32(value);
                    bytes.extend(v.to_le_bytes());
                    v.to_f32()
                }
                Dtype::F32 | Dtype::Tf32 => {
                    bytes.extend(value.to_le_bytes());
                    value
                }
            });
        }
        Pool { bytes, values }
    }

    /// Element `index` of a tensor that is filled from this pool.
    pub fn at(&self, index: usize) -> f64 {
        f64::from(self.values[index % POOL])
    }
}

/// One element as the device stores it.
pub fn decode(dtype: Dtype, bytes: [u8; 4]) -> f64 {
    let [a, b, ..] = bytes;
    match dtype {
        Dtype::Bf16 => f64::from(bf16::from_le_bytes([a, b])),
        Dtype::F16 => f64::from(f16::from_le_bytes([a, b])),
        Dtype::F32 | Dtype::Tf32 => f64::from(f32::from_le_bytes(bytes)),
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_what_the_device_reads() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let pool = Pool::new(dtype, 7, 1.5);
            let size = dtype.bytes();
            assert_eq!(pool.bytes.len(), POOL * size);
            for i in [0, 1, 12345, POOL - 1] {
                let mut raw = [0u8; 4];
                raw[..size].copy_from_slice(&pool.bytes[i * size..(i + 1) * size]);
                assert_eq!(pool.at(i + POOL), decode(dtype, raw));
                assert!(pool.at(i).abs() <= 1.51);
            }
        }
    }
}
