//! The device-side help of a session: filling inputs, comparing outputs, looking whether memory is as it was, reading memory
//! to empty the L2.

use super::context::Context;
use super::driver::{Buffer, Module, Stream, check};
use crate::backend::BackendError;
use crate::backend::session::TensorCheck;
use crate::problem::{Input, Role, Storage, Tensor};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// Blocks of the grid-stride helpers: a few for every multiprocessor of any GPU.
const BLOCKS: u32 = 1024;
const THREADS: u32 = 256;

/// The layout of `check_stats` in `support.cu`.
const STATS_BYTES: u64 = 48;

/// The helpers.
const NAMES: [&str; 18] = [
    "fill_uniform",
    "fill_uniform_f32",
    "fill_uniform_e4m3",
    "fill_words",
    "sum_squares",
    "compare",
    "compare_f32",
    "compare_i32",
    "compare_e4m3",
    "compare_int8",
    "check_bytes",
    "sum_ranges",
    "spoil1",
    "spoil2",
    "spoil4",
    "read_sum",
    "copy16",
    "matrix_rate",
];

/// Ranges of memory whose bytes are summed.
pub(super) struct Ranges {
    table: Buffer,
    sums: Buffer,
    count: u64,
}

impl Ranges {
    /// Of these addresses and lengths in bytes.
    pub(super) fn new(context: &Arc<Context>, ranges: &[(u64, u64)]) -> Result<Ranges, BackendError> {
        let table: Vec<u8> =
            ranges.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()]).flatten().collect();
        let count = ranges.len() as u64;
        let ranges = Ranges { table: Buffer::new(context, count * 16)?, sums: Buffer::new(context, count * 8)?, count };
        ranges.table.write(0, &table)?;
        Ok(ranges)
    }
}

pub(super) struct Support {
    module: Arc<Module>,
    stats: Buffer,
    sink: Buffer,
}

impl Support {
    pub(super) fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Support, BackendError> {
        // SAFETY: the support code, compiled from the built-in source.
        let module = unsafe { Module::load(context, cubin, NAMES) }?;
        Ok(Support { module, stats: Buffer::new(context, STATS_BYTES)?, sink: Buffer::new(context, 64)? })
    }

    fn run(&self, name: &str, args: &[u64], stream: &Stream) -> Result<(), BackendError> {
        self.run_blocks(BLOCKS, name, args, stream)
    }

    fn run_blocks(&self, blocks: u32, name: &str, args: &[u64], stream: &Stream) -> Result<(), BackendError> {
        let f = self.module.function(name).map_err(|_| BackendError::Load {
            why: format!(
                "the support code is of an older jitune, without {name}: seal the bundle again by `jitune export`"
            ),
        })?;
        let _current = self.module.context.bind()?;
        let mut params: Vec<*mut c_void> = args.iter().map(|a| ptr::from_ref(a).cast_mut().cast()).collect();
        // SAFETY: every argument of the helpers is at most 8 bytes, and a smaller one reads the low bytes of its slot.
        let code = unsafe {
            let (p, s) = (params.as_mut_ptr(), stream.handle);
            sys::cuLaunchKernel(f.handle, blocks, 1, 1, THREADS, 1, 1, 0, s, p, ptr::null_mut())
        };
        check("cuLaunchKernel", code)
    }

    /// Makes an input where it lies, if it is one that this code can make; results are stored as `results`.
    pub(super) fn fill(&self, input: &Input, results: Storage, at: u64, stream: &Stream) -> Result<bool, BackendError> {
        let t = &input.tensor;
        let (name, args) = match (input.uniform(), input.words()) {
            (Some((seed, scale)), _) => {
                let name = match t.storage {
                    Storage::F32 => "fill_uniform_f32",
                    Storage::E4m3 => "fill_uniform_e4m3",
                    stored if stored == results => "fill_uniform",
                    _ => return Ok(false),
                };
                (name, vec![at, t.len(), seed, u64::from(scale.to_bits())])
            }
            (None, Some(seed)) => ("fill_words", vec![at, t.bytes(), seed]),
            (None, None) => return Ok(false),
        };
        // Bundles of an older jitune have other code.
        let known = self.module.function(name).is_ok();
        if known {
            self.run(name, &args, stream)?;
        }
        Ok(known)
    }

    /// Sum of squares and count of the reference's finite elements, written to 16 bytes at `out` (zeroed before).
    pub(super) fn reference_stats(
        &self,
        reference: u64,
        n: u64,
        out: &Buffer,
        stream: &Stream,
    ) -> Result<(), BackendError> {
        out.fill(0, stream)?;
        self.run("sum_squares", &[reference, n, out.address()], stream)
    }

    /// Compares an output with the reference, at each of these addresses; finds what all of them come to.
    pub(super) fn compare(
        &self,
        t: &Tensor,
        outs: &[u64],
        reference: u64,
        reference_stats: &Buffer,
        stream: &Stream,
    ) -> Result<TensorCheck, BackendError> {
        debug_assert_eq!(t.role, Role::Out);
        let name = match t.storage {
            Storage::Bf16 | Storage::F16 => "compare",
            Storage::E4m3 => "compare_e4m3",
            Storage::F32 => "compare_f32",
            Storage::Int8 => "compare_int8",
            // No op gives the others but whole numbers.
            Storage::I32 | Storage::Int4 | Storage::U8 => "compare_i32",
        };
        self.stats.fill(0, stream)?;
        for out in outs {
            self.run(name, &[*out, reference, t.len(), reference_stats.address(), self.stats.address()], stream)?;
        }
        stream.synchronize()?;
        let mut raw = [0u8; STATS_BYTES as usize];
        self.stats.read(0, &mut raw)?;
        let mut refs = [0u8; 16];
        reference_stats.read(0, &mut refs)?;
        let word = |b: &[u8], i: usize| {
            let mut w = [0u8; 8];
            w.copy_from_slice(&b[i * 8..i * 8 + 8]);
            u64::from_le_bytes(w)
        };
        let (sum, count) = (f64::from_bits(word(&refs, 0)), f64::from_bits(word(&refs, 1)));
        let (worst, times) = (word(&raw, 1), outs.len() as f64);
        Ok(TensorCheck {
            rms: (f64::from_bits(word(&raw, 0)) / (sum * times).max(f64::MIN_POSITIVE)).sqrt(),
            max: f64::from(f32::from_bits((worst >> 32) as u32)),
            worst: worst & 0xffff_ffff,
            compared: (count * times) as u64,
            unwritten: word(&raw, 2),
            touched: word(&raw, 3),
            mismatches: word(&raw, 4),
            guard: 0,
        })
    }

    /// Counts the bytes of guard zones, each of so many `bytes`, that are not poison any more.
    pub(super) fn guards(
        &self,
        mut zones: impl Iterator<Item = u64>,
        bytes: u64,
        stream: &Stream,
    ) -> Result<u64, BackendError> {
        self.sink.fill(0, stream)?;
        zones.try_for_each(|at| self.run("check_bytes", &[at, bytes, self.sink.address()], stream))?;
        stream.synchronize()?;
        let mut raw = [0u8; 4];
        self.sink.read(0, &mut raw)?;
        Ok(u64::from(u32::from_le_bytes(raw)))
    }

    /// A number for each range that is another when a byte in it is.
    pub(super) fn sums(&self, ranges: &Ranges, stream: &Stream) -> Result<Vec<u64>, BackendError> {
        ranges.sums.fill(0, stream)?;
        self.run("sum_ranges", &[ranges.table.address(), ranges.count, ranges.sums.address()], stream)?;
        stream.synchronize()?;
        let mut raw = vec![0u8; ranges.count as usize * 8];
        ranges.sums.read(0, &mut raw)?;
        Ok(raw.as_chunks().0.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }

    /// Puts other numbers in place of some results.
    pub(super) fn spoil(
        &self,
        t: &Tensor,
        out: u64,
        reference: u64,
        seed: u64,
        stream: &Stream,
    ) -> Result<(), BackendError> {
        let name = match t.storage.bytes(1) {
            1 => "spoil1",
            2 => "spoil2",
            _ => "spoil4",
        };
        self.run(name, &[out, reference, t.len(), seed], stream)
    }

    /// Reads `bytes` of memory.
    pub(super) fn read(&self, at: u64, bytes: u64, stream: &Stream) -> Result<(), BackendError> {
        self.run("read_sum", &[at, bytes / 16, self.sink.address()], stream)
    }

    /// Copies `bytes` of memory.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: u64, stream: &Stream) -> Result<(), BackendError> {
        self.run("copy16", &[from, to, bytes / 16], stream)
    }

    /// Multiplies matrices on so many multiprocessors, in steps of some tenths of a microsecond, and counts the operations at
    /// `done`.
    pub(super) fn multiply(&self, units: u32, steps: u32, done: &Buffer, stream: &Stream) -> Result<(), BackendError> {
        let args = [u64::from(steps), done.address(), self.sink.address()];
        self.run_blocks(units, "matrix_rate", &args, stream)
    }
}
