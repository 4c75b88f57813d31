//! What a device is to the pure part of the toolkit: a target, an architecture, a fingerprint and a few numbers.

use crate::problem::{Compute, Storage, Types};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The kind of machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// An NVIDIA GPU: CUDA C++ compiled by NVRTC to a cubin.
    Cuda,
    /// The host's processor: C compiled by its compiler to a shared object.
    Cpu,
}

impl Target {
    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Target::Cuda => "cuda",
            Target::Cpu => "cpu",
        }
    }
}

/// A device of this host, by where it stands: `cuda:0`, `cpu:4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// The GPU of that ordinal.
    Cuda(usize),
    /// The host's processor with so many threads; 0 for all.
    Cpu(usize),
}

impl DeviceId {
    /// GPU or CPU.
    pub fn target(self) -> Target {
        match self {
            DeviceId::Cuda(_) => Target::Cuda,
            DeviceId::Cpu(_) => Target::Cpu,
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceId::Cpu(threads) => write!(f, "cpu:{threads}"),
        }
    }
}

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceId, String> {
        let unknown = || format!("'{text}' is not a device; devices are cuda:ORDINAL and cpu:THREADS");
        let (target, number) = text.split_once(':').ok_or_else(unknown)?;
        let number = number.parse().map_err(|_| unknown())?;
        match target {
            "cuda" => Ok(DeviceId::Cuda(number)),
            "cpu" => Ok(DeviceId::Cpu(number)),
            _ => Err(unknown()),
        }
    }
}

/// A device as spaces, cost models and rooflines see it. Serialised whole into evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// GPU or CPU.
    pub target: Target,
    /// The product name: a label, never part of a key.
    pub name: String,
    /// Exact architecture: `sm_90a`; `x86_64-avx2`.
    pub arch: String,
    /// CUDA: compute capability times ten.
    #[serde(default)]
    pub cc: u32,
    /// Multiprocessors, or threads that the pool may use.
    pub units: u32,
    /// CUDA: largest dynamic shared memory of a block in bytes.
    #[serde(default)]
    pub smem: u64,
    /// CUDA: shared memory of a multiprocessor in bytes.
    #[serde(default)]
    pub smem_sm: u64,
    /// CUDA: 32-bit registers of a multiprocessor.
    #[serde(default)]
    pub regs_sm: u64,
    /// CPU: first-level data cache of a core in bytes.
    #[serde(default)]
    pub l1: u64,
    /// Second-level cache in bytes (of the GPU; of a core).
    pub l2: u64,
    /// CPU: last-level cache in bytes.
    #[serde(default)]
    pub l3: u64,
    /// CPU: instruction set by name.
    #[serde(default)]
    pub isa: String,
    /// CPU: the instruction extensions that the system shows, sorted, with spaces between; code that was compiled for this
    /// machine may use each of them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// CPU: bytes of a vector register.
    #[serde(default)]
    pub simd: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// What the hardware and driver are, by field: the timing half of a key.
    pub silicon: std::collections::BTreeMap<String, String>,
    /// Rates that rooflines and cost models use.
    pub ceilings: Ceilings,
}

/// The rates a kernel is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Memory read rate in bytes/s.
    pub read: f64,
    /// Memory copy rate in bytes/s, counting both directions.
    pub copy: f64,
    /// Matrix products of bf16 and f16 in FLOP/s.
    pub half: f64,
    /// Matrix products in TF32.
    pub tf32: f64,
    /// Matrix products in f32: with f32 factors, or on tensor cores of three in TF32 where that is more
    /// ([`Ceilings::single_by_tf32`]), or in tiles of a processor of six in bf16 ([`Ceilings::single_by_bf16`]).
    pub single: f64,
    /// CPU: multiply-adds of vectors of f32, two operations each; the rate by which cost models know the clock.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub fma: f64,
    /// Measured on this very device rather than taken from a table.
    pub measured: bool,
}

fn is_nothing(rate: &f64) -> bool {
    *rate == 0.0
}

impl Ceilings {
    /// Products in f32 that three in TF32 make: `tf32` / 3.
    pub fn single_by_tf32(tf32: f64) -> f64 {
        tf32 / 3.0
    }

    /// Products in f32 that six in bf16 make: each factor is three numbers of 8 bits, and of their nine products three are below
    /// what f32 holds.
    pub fn single_by_bf16(half: f64) -> f64 {
        half / 6.0
    }

    /// The better of both, one by one: what was reached once can be reached.
    pub fn or(self, other: Ceilings) -> Ceilings {
        Ceilings {
            read: self.read.max(other.read),
            copy: self.copy.max(other.copy),
            half: self.half.max(other.half),
            tf32: self.tf32.max(other.tf32),
            single: self.single.max(other.single),
            fma: self.fma.max(other.fma),
            measured: self.measured && other.measured,
        }
    }

    /// The matrix-product rate for operands of these types.
    pub fn flops(&self, types: Types) -> f64 {
        match (types.factors(), types.compute) {
            (Storage::Bf16 | Storage::F16, _) => self.half,
            // Tensor cores take twice as many operands of 8 bits, where they have the type.
            (Storage::E4m3 | Storage::Int8, _) => self.half * 2.0,
            (_, Compute::Tf32) => self.tf32,
            (_, Compute::F32) => self.single,
        }
    }
}

impl Device {
    /// A CUDA device of this architecture that need not be here, for compiling ahead. `None` for one we do not support.
    /// Numbers are those of the architecture's data-centre part (A100, A40, L40S, H100 SXM) by NVIDIA's datasheets.
    pub fn ahead_of_time(arch: &str) -> Option<Device> {
        let (name, cc, units, smem, smem_sm, l2, memory, read, half, tf32, single) = match arch {
            "sm_80" => ("A100 80GB (table)", 80, 108, 163, 164, 40, 80, 1.9e12, 2.8e14, 1.4e14, 1.8e13),
            "sm_86" => ("A40 (table)", 86, 84, 99, 100, 6, 48, 6.5e11, 1.4e14, 7.0e13, 3.3e13),
            "sm_89" => ("L40S (table)", 89, 142, 99, 100, 96, 48, 8.0e11, 3.4e14, 1.7e14, 8.0e13),
            "sm_90a" => ("H100 SXM (table)", 90, 132, 227, 228, 50, 80, 3.1e12, 7.5e14, 3.7e14, 5.5e13),
            _ => return None,
        };
        Some(Device {
            target: Target::Cuda,
            name: name.into(),
            arch: arch.into(),
            cc,
            units,
            smem: smem << 10,
            smem_sm: smem_sm << 10,
            regs_sm: 65536,
            l1: 0,
            l2: l2 << 20,
            l3: 0,
            isa: String::new(),
            flags: String::new(),
            simd: 0,
            memory: memory << 30,
            silicon: Default::default(),
            ceilings: Ceilings {
                read,
                copy: read * 0.9,
                half,
                tf32,
                single: Ceilings::single_by_tf32(tf32).max(single),
                fma: 0.0,
                measured: false,
            },
        })
    }

    /// The architectures that [`Device::ahead_of_time`] knows: every one that the CUDA templates are built for.
    pub const ARCHITECTURES: [&'static str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90a"];

    /// Whether a processor has the tiles of AMX, for bf16 and for integers of 8 bits (`dev.tiles` of templates).
    pub fn has_tiles(&self) -> bool {
        let has = |needed: &str| self.flags.split(' ').any(|flag| flag == needed);
        ["amx_bf16", "amx_int8", "amx_tile"].into_iter().all(has)
    }

    /// The least time of a problem on this device in seconds, and whether bytes rather than operations bound it.
    pub fn roofline(&self, problem: &crate::problem::Problem) -> (f64, bool) {
        let (flops, bytes) = (self.ceilings.flops(problem.types()), self.ceilings.read);
        let memory = problem.bytes() as f64 / bytes;
        let compute = problem.flops() / flops;
        (memory.max(compute), memory >= compute)
    }

    /// How many blocks of a kernel a multiprocessor holds at once, and the share of its warps that they are: from the
    /// registers a thread (given out in units of 8), the threads of a block and its shared memory in bytes (1 KiB more is
    /// the system's). CUDA only.
    pub fn occupancy(&self, registers: u32, block: u32, smem: u64) -> (u64, f64) {
        let block = u64::from(block.max(1)).next_multiple_of(32);
        let threads = if matches!(self.cc, 86 | 89) { 1536 } else { 2048 };
        let of_block = u64::from(registers.max(1)).next_multiple_of(8) * block;
        let blocks = (self.regs_sm / of_block).min(threads / block).min(self.smem_sm / (smem + 1024)).min(32);
        (blocks, (blocks * block) as f64 / threads as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_there_when_all_of_their_instructions_are() {
        let with = |flags: &str| {
            let device = Device::ahead_of_time("sm_90a").unwrap_or_else(|| unreachable!());
            Device { flags: flags.into(), ..device }.has_tiles()
        };
        assert!(with("adx amx_bf16 amx_int8 amx_tile avx"));
        assert!(!with("amx_bf16 amx_tile avx") && !with("amx_bf16x amx_int8 amx_tile") && !with(""));
    }

    #[test]
    fn what_runs_out_first_bounds_the_blocks() {
        let h100 = Device::ahead_of_time("sm_90a").unwrap_or_else(|| unreachable!());
        assert_eq!(h100.occupancy(32, 256, 0), (8, 1.0));
        assert_eq!(h100.occupancy(168, 384, 200 << 10), (1, 384.0 / 2048.0));
        assert_eq!(h100.occupancy(255, 128, 0).0, 2);
        assert_eq!(h100.occupancy(16, 32, 0).0, 32);
    }
}
