//! Checking and timing candidates on the host's processor.

use super::launch::{Bound, Module};
use super::memory::Buffer;
use super::pool::Pool;
use crate::device::{Ceilings, Device};
use crate::problem::{Dtype, Expected, Inputs, Problem, Role, Scalar, Tensor, Tolerance, expected};
use crate::recipe::{Arg, KernelLaunch, Launch};
use crate::target::TargetError;
use crate::target::session::{Check, Runnable, Series, Session, Setup, TensorCheck, Tried, gate_clocks};
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::Instant;

/// Input reads that the host reference of one problem may cost: under half a second on two cores.
const REFERENCE_BUDGET: u64 = 60 << 20;
/// Most input sets.
const MAX_SETS: u64 = 16;
/// A candidate's rounds end early after this long; large problems vary less.
const ROUNDS_S: f64 = 0.25;
/// A round lasts at least this long, in whole passes over the sets.
const ROUND_S: f64 = 1e-3;
/// A time below this share of what the rates allow is a broken measurement. The rates are measured beside whatever else
/// the machine does, so they may be well under what it can reach in a quiet moment.
const FLOOR_SHARE: f64 = 0.3;

/// A session on the host's processor.
pub struct CpuSession {
    device: Device,
    pool: Pool,
    flush: Option<Buffer>,
    state: Option<State>,
}

struct State {
    problem: Problem,
    tensors: Vec<Tensor>,
    /// Inputs and outputs of each set; the key says what an input holds, so that the next problem may take it over.
    sets: Vec<Vec<Held>>,
    expected: Vec<Expected>,
    cold: bool,
}

struct Held {
    buffer: Buffer,
    key: Option<(u64, u32, u64, Dtype)>,
}

struct Loaded {
    bound: Vec<Bound>,
    workspace: Option<Buffer>,
}

impl CpuSession {
    /// A session with `threads` threads, or as many as the process may use.
    pub fn open(threads: Option<usize>) -> CpuSession {
        let device = super::describe(threads);
        let pool = Pool::new(device.units as usize);
        CpuSession { device, pool, flush: None, state: None }
    }

    fn state(&self) -> Result<&State, TargetError> {
        self.state.as_ref().ok_or_else(|| TargetError::Measurement("no problem is prepared".into()))
    }

    fn load(&self, candidate: &Runnable) -> Result<Loaded, TargetError> {
        let state = self.state()?;
        let module = Module::load(&candidate.bytes()?)?;
        let launch = &candidate.launch;
        let workspace = (launch.workspace > 0).then(|| {
            let mut b = Buffer::new(launch.workspace as usize);
            if launch.zero {
                b.bytes_mut().fill(0);
            }
            b
        });
        let address = workspace.as_ref().map_or(0, Buffer::address);
        let bind = |set: &Vec<Held>| {
            let addresses: Vec<u64> = set.iter().map(|h| h.buffer.address()).collect();
            Bound::new(&module, launch, &addresses, address)
        };
        Ok(Loaded { bound: state.sets.iter().map(bind).collect::<Result<_, _>>()?, workspace })
    }

    fn check(&mut self, loaded: &Loaded) -> Result<Check, TargetError> {
        let mut check = Check::default();
        let Some(state) = &mut self.state else { return Ok(check) };
        let limit = Tolerance::of(&state.problem);
        // A second run shows a workspace that was not left as it was found; a long one is not worth it.
        for _ in 0..2 {
            for (t, h) in state.tensors.iter().zip(&mut state.sets[0]) {
                if t.role == Role::Out {
                    // The guards too: one that a candidate broke must not speak against the next.
                    h.buffer.poison();
                }
            }
            let start = Instant::now();
            loaded.bound[0].run(&self.pool);
            let long = start.elapsed().as_secs_f64() > 0.1;
            for (t, h) in state.tensors.iter().zip(&state.sets[0]) {
                if t.role == Role::Out {
                    check.add(t.name, &compare(t, &h.buffer, &state.expected), limit);
                }
            }
            if loaded.workspace.as_ref().is_some_and(|w| !w.guards_hold()) {
                check.wrong = Some("wrote outside its workspace".into());
            }
            if check.wrong.is_some() || long {
                break;
            }
        }
        Ok(check)
    }

    /// Microseconds a launch over whole passes of the sets, with cold memory before the first.
    fn round(&self, loaded: &Loaded, passes: usize) -> Result<f64, TargetError> {
        if let (false, Some(flush)) = (self.state()?.cold, &self.flush) {
            let sum: u64 = flush
                .bytes()
                .par_chunks(1 << 20)
                .map(|c| c.iter().step_by(64).map(|b| u64::from(*b)).sum::<u64>())
                .sum();
            std::hint::black_box(sum);
        }
        let start = Instant::now();
        for _ in 0..passes {
            loaded.bound.iter().for_each(|b| b.run(&self.pool));
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / (passes * loaded.bound.len()) as f64)
    }

    fn passes(&self, loaded: &Loaded) -> Result<usize, TargetError> {
        let each = self.round(loaded, 1)? * 1e-6 * loaded.bound.len() as f64;
        // More than one pass would find the sets in the cache unless they exceed it together.
        Ok(if self.state()?.cold { ((ROUND_S / each).ceil() as usize).clamp(1, 64) } else { 1 })
    }

    fn plausible(&self, us: f64) -> Result<(), TargetError> {
        let state = self.state()?;
        let c = &self.device.ceilings;
        if !c.measured {
            return Ok(());
        }
        let inputs: u64 =
            state.tensors.iter().filter(|t| t.role == Role::In).map(|t| t.touched * t.scalar.bytes() as u64).sum();
        let beyond = inputs.saturating_sub(self.device.l3);
        let floor = (beyond as f64 / c.read).max(state.problem.flops() / c.flops(state.problem.dtype)) * 1e6;
        if us < floor * FLOOR_SHARE {
            return Err(TargetError::Measurement(format!("{us:.2} µs is under the floor of {floor:.2} µs")));
        }
        Ok(())
    }
}

impl Session for CpuSession {
    fn device(&self) -> &Device {
        &self.device
    }

    fn ceilings(&mut self, support: Option<(PathBuf, String)>) -> Result<Ceilings, TargetError> {
        let Some((artifact, hash)) = support else {
            return Err(TargetError::Measurement("the ceilings need the support code".into()));
        };
        let threads = self.device.units;
        let kernel = |entry: &str, args: Vec<Arg>| Launch {
            kernels: vec![KernelLaunch {
                entry: entry.into(),
                grid: [threads, 1, 1],
                block: threads,
                cluster: 1,
                smem: 0,
                pdl: false,
                args,
            }],
            workspace: 0,
            zero: false,
        };
        let file = Runnable { artifact, hash, launch: kernel("", Vec::new()) };
        let module = Module::load(&file.bytes()?)?;
        let bytes = (8 * self.device.l3).clamp(256 << 20, 1 << 30) as i64;
        let (from, to) = (Buffer::new(bytes as usize), Buffer::new(bytes as usize));
        let sink = Buffer::new(64 * threads as usize);
        let tensors = [from.address(), to.address(), sink.address()];
        let best = |launch: Launch, times: u32| -> Result<f64, TargetError> {
            let bound = Bound::new(&module, &launch, &tensors, 0)?;
            let time = |_| {
                let start = Instant::now();
                bound.run(&self.pool);
                start.elapsed().as_secs_f64()
            };
            Ok((0..times).map(time).fold(f64::INFINITY, f64::min))
        };
        let rounds = 100_000i64;
        let peak = best(kernel("peak_fma", vec![Arg::I64(rounds), Arg::Tensor(2)]), 12)?;
        let lanes = (self.device.simd / 4) as f64;
        let single = f64::from(threads) * rounds as f64 * 16.0 * 12.0 * 2.0 * lanes / peak;
        let read = best(kernel("read_sum", vec![Arg::Tensor(0), Arg::I64(bytes), Arg::Tensor(2)]), 10)?;
        let copy = best(kernel("copy", vec![Arg::Tensor(0), Arg::Tensor(1), Arg::I64(bytes)]), 4)?;
        let (read, copy) = (bytes as f64 / read, 2.0 * bytes as f64 / copy);
        self.device.ceilings = Ceilings { read, copy, half: single, tf32: single, single, measured: true };
        Ok(self.device.ceilings)
    }

    fn assume(&mut self, ceilings: Ceilings) {
        self.device.ceilings = ceilings;
    }

    fn prepare(&mut self, setup: &Setup) -> Result<(), TargetError> {
        let problem = setup.problem;
        let tensors = problem.tensors();
        let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
        if bytes > self.device.memory / 2 {
            return Err(TargetError::OutOfMemory { needed: bytes, free: self.device.memory / 2 });
        }
        let mut before: Vec<Held> = self.state.take().map(|s| s.sets).into_iter().flatten().flatten().collect();
        let twice = 2 * self.device.l3.max(self.device.l2);
        let sets = twice.div_ceil(problem.bytes().max(1)).clamp(1, MAX_SETS);
        let sets = sets.min((self.device.memory / 4 / bytes.max(1)).max(1));
        let inputs = Inputs::new(&problem, setup.seed);
        let mut hold = |t: &Tensor| -> Held {
            let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) else {
                return Held { buffer: Buffer::new(t.bytes() as usize), key: None };
            };
            let key = match (input.uniform(), t.scalar) {
                (Some((seed, scale)), Scalar::Elem(d)) => Some((seed, scale.to_bits(), t.bytes(), d)),
                _ => None,
            };
            if let Some(at) = before.iter().position(|h| key.is_some() && h.key == key) {
                return before.swap_remove(at);
            }
            let mut buffer = Buffer::new(t.bytes() as usize);
            let each = 1 << 18;
            let size = t.scalar.bytes();
            let chunks = buffer.bytes_mut().par_chunks_mut(each * size).enumerate();
            chunks.for_each(|(i, chunk)| input.write((i * each) as u64, chunk));
            buffer.seal();
            Held { buffer, key }
        };
        let sets: Vec<Vec<Held>> = (0..sets).map(|_| tensors.iter().map(&mut hold).collect()).collect();
        let cold = problem.bytes() * sets.len() as u64 >= twice;
        if !cold && self.flush.is_none() {
            self.flush = Some(Buffer::new(twice as usize));
        }
        let expected = expected(&problem, &inputs, setup.seed, REFERENCE_BUDGET);
        self.state = Some(State { problem, tensors, sets, expected, cold });
        Ok(())
    }

    fn attempt(&mut self, candidate: &Runnable, rounds: u32) -> Result<Tried, TargetError> {
        let begun = Instant::now();
        let loaded = self.load(candidate)?;
        let check = self.check(&loaded)?;
        let checked = begun.elapsed().as_secs_f64();
        if check.wrong.is_some() || rounds == 0 {
            return Ok(Tried { check, series: None, blocks_per_sm: 0, seconds: (checked, 0.0) });
        }
        let passes = self.passes(&loaded)?;
        let start = Instant::now();
        let mut series = Series::default();
        for i in 0..rounds {
            if i > 0 && start.elapsed().as_secs_f64() > ROUNDS_S {
                break;
            }
            series.us.push(self.round(&loaded, passes)?);
        }
        self.plausible(series.median())?;
        Ok(Tried {
            check,
            series: Some(series),
            blocks_per_sm: 0,
            seconds: (checked, begun.elapsed().as_secs_f64() - checked),
        })
    }

    fn finals(&mut self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Series>, TargetError> {
        let loaded: Vec<Loaded> = candidates.iter().map(|c| self.load(c)).collect::<Result<_, _>>()?;
        let passes: Vec<usize> = loaded.iter().map(|l| self.passes(l)).collect::<Result<_, _>>()?;
        let mut series = vec![Series::default(); candidates.len()];
        let start = Instant::now();
        for i in 0..rounds {
            if i > 0 && start.elapsed().as_secs_f64() > ROUNDS_S * candidates.len() as f64 {
                break;
            }
            for ((l, passes), s) in loaded.iter().zip(&passes).zip(&mut series) {
                s.us.push(self.round(l, *passes)?);
                s.mhz.push(0);
            }
        }
        gate_clocks(&mut series);
        Ok(series)
    }
}

/// Compares the computed elements of one output with what memory holds, and counts what was written.
fn compare(t: &Tensor, buffer: &Buffer, expected: &[Expected]) -> TensorCheck {
    let bytes = buffer.bytes();
    let size = t.scalar.bytes();
    let value = |i: u64| -> f64 {
        let at = &bytes[i as usize * size..(i as usize + 1) * size];
        match t.scalar {
            Scalar::Elem(Dtype::Bf16) => half::bf16::from_le_bytes([at[0], at[1]]).to_f64(),
            Scalar::Elem(Dtype::F16) => half::f16::from_le_bytes([at[0], at[1]]).to_f64(),
            Scalar::I32 => f64::from(i32::from_le_bytes([at[0], at[1], at[2], at[3]])),
            _ => f64::from(f32::from_le_bytes([at[0], at[1], at[2], at[3]])),
        }
    };
    let mine: Vec<&Expected> = expected.iter().filter(|e| e.tensor == t.name).collect();
    let squares: f64 = mine.iter().map(|e| e.value * e.value).sum();
    let rms = (squares / mine.len().max(1) as f64).sqrt();
    let mut found = TensorCheck { compared: mine.len() as u64, ..TensorCheck::default() };
    let mut errors = 0.0;
    for e in mine {
        let got = value(e.index);
        if t.scalar == Scalar::I32 {
            found.mismatches += u64::from(got != e.value);
            continue;
        }
        if !got.is_finite() {
            found.unwritten += 1;
            continue;
        }
        let error = (got - e.value).abs();
        errors += error * error;
        let scaled = error / (rms + e.value.abs()).max(f64::MIN_POSITIVE);
        if scaled > found.max {
            (found.max, found.worst) = (scaled, e.index);
        }
    }
    found.rms = (errors / squares.max(f64::MIN_POSITIVE)).sqrt();
    // Every element is looked at, sampled or not: exactly the touched ones may hold something else than poison.
    let written: u64 = bytes
        .par_chunks(size << 16)
        .map(|c| c.chunks_exact(size).filter(|e| e.iter().any(|b| *b != 0xff)).count() as u64)
        .sum();
    // What was not written is not finite either: it counts once.
    found.unwritten = found.unwritten.max(t.touched.saturating_sub(written));
    found.touched = written.saturating_sub(t.touched);
    found.guard = u64::from(!buffer.guards_hold());
    found
}
