//! What this processor's multiply-add units, its tiles and its memory do at best.

use super::launch::{Bound, Executable, Module};
use super::memory::Buffer;
use super::pool::Pool;
use super::tiles;
use crate::backend::BackendError;
use crate::device::{Ceilings, Device};
use crate::recipe::{Arg, KernelLaunch, Launch};
use std::time::Instant;

/// Rounds of `peak_fma` in one reading: some milliseconds.
const PEAK_ROUNDS: i64 = 100_000;
/// Rounds of `peak_tiles` in one reading: about as long.
const TILE_ROUNDS: i64 = 50_000;
/// Operations of one: four products of tiles of 16 x 32 and 32 x 16 elements.
const TILE_ROUND: f64 = 4.0 * 16.0 * 16.0 * 32.0 * 2.0;

/// The support code, bound to memory to read and to copy.
pub(super) struct Gauge {
    /// Multiply-adds, reading, copying.
    bound: [Bound; 3],
    /// Products of tiles, where there are any.
    tiles: Option<Bound>,
    bytes: usize,
    threads: u32,
    flops: f64,
    _memory: [Buffer; 3],
}

impl Gauge {
    pub fn new(support: &[u8], device: &Device) -> Result<Gauge, BackendError> {
        // SAFETY: the support code, compiled from the built-in source for this machine.
        let module = unsafe { Module::load(support) }?;
        let threads = device.units;
        let bytes = (8 * device.l3).clamp(256 << 20, 1 << 30) as usize;
        let memory = [Buffer::new(bytes)?, Buffer::new(bytes)?, Buffer::new(64 * threads as usize)?];
        let addresses = memory.each_ref().map(Buffer::address);
        let bind = |entry: &str, args: Vec<Arg>| {
            let (grid, entry) = ([threads, 1, 1], entry.into());
            let kernel = KernelLaunch { entry, grid, block: threads, cluster: 1, smem: 0, pdl: false, args };
            let launch = Launch { kernels: vec![kernel], workspace: 0, zero: false };
            // SAFETY: the three buffers are of the sizes that are passed, and live beside what is bound to them.
            unsafe { Executable::new(&module, &launch, addresses.len())?.bind(&addresses, 0) }
        };
        let bound = [
            bind("peak_fma", vec![Arg::I64(PEAK_ROUNDS), Arg::Tensor(2)])?,
            bind("read_sum", vec![Arg::Tensor(0), Arg::I64(bytes as i64), Arg::Tensor(2)])?,
            bind("copy", vec![Arg::Tensor(0), Arg::Tensor(1), Arg::I64(bytes as i64)])?,
        ];
        let tiles = match device.has_tiles() {
            true => Some(bind("peak_tiles", vec![Arg::I64(TILE_ROUNDS), Arg::Tensor(2)])?),
            false => None,
        };
        let lanes = (device.simd / 4) as f64;
        let flops = f64::from(threads) * PEAK_ROUNDS as f64 * 16.0 * 12.0 * 2.0 * lanes;
        Ok(Gauge { bound, tiles, bytes, threads, flops, _memory: memory })
    }

    /// The best of some readings, taken in turns: whatever else the machine does for a while spoils none of them.
    pub fn read(&self, pool: &Pool, rounds: usize) -> Ceilings {
        let mut least = [f64::INFINITY; 4];
        for _ in 0..rounds {
            for (bound, least) in self.bound.iter().chain(&self.tiles).zip(&mut least) {
                let start = Instant::now();
                bound.run(pool);
                *least = least.min(start.elapsed().as_secs_f64());
            }
        }
        let [peak, read, copy, tiled] = least;
        let (fma, bytes) = (self.flops / peak, self.bytes as f64);
        let by_tiles = f64::from(self.threads) * TILE_ROUNDS as f64 * TILE_ROUND / tiled;
        let (read, copy) = (bytes / read, 2.0 * bytes / copy);
        tiles::ceilings(read, copy, fma, by_tiles, true)
    }
}
