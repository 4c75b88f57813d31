//! Checking and timing candidates on the host's processor.

use super::gauge::Gauge;
use super::launch::{Bound, Executable, Module};
use super::memory::Buffer;
use super::pool::Pool;
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{
    Check, Doubt, Element, Runnable, Series, Session, Setup, TensorCheck, Timed, Tried, code, distance, goes_on,
    renewed, stale, unpredictable,
};
use crate::device::{Ceilings, Device};
use crate::problem::{
    Expected, Input, Inputs, Layout, Problem, Role, Storage, Tensor, Tolerance, expected, hash_uniform,
};
use rayon::prelude::*;
use std::ops::Range;
use std::time::Instant;

/// Input reads that the host reference of one problem may cost: a tenth of a second on two cores.
const REFERENCE_BUDGET: u64 = 32 << 20;
/// Most input sets, and most bytes of all where there is more than one.
const MAX_SETS: u64 = 16;
const SETS_BYTES: u64 = 1 << 30;
/// Launches rotate through as many last-level caches: with two, a good part of the inputs was still found there.
const CACHES: u64 = 4;
/// A candidate's rounds end early after this long; large problems vary less.
const ROUNDS_S: f64 = 0.25;
/// A round lasts at least this long, in whole passes over the sets.
const ROUND_S: f64 = 1e-3;
/// Readings of each ceiling at first, and whenever they are asked for again.
const CEILING_ROUNDS: (usize, usize) = (20, 1);
/// A time below this share of what the rates allow is a broken measurement. The rates are measured beside whatever else
/// the machine does, so they may be well under what it can reach in a quiet moment; nominal ones are a guess.
const FLOOR_SHARE: (f64, f64) = (0.3, 0.1);
/// No core loads more from its caches: three vectors a cycle at 6 GHz.
const CACHE_LOADS: f64 = 3.0 * 6e9;
/// What takes longer than this in seconds is not launched more often than timing it needs.
const LONG_S: f64 = 0.1;
/// One of so many elements is spoiled before a launch that must write it again.
const SPOILED: usize = 16;

/// A session on the host's processor.
pub struct CpuSession {
    device: Device,
    pool: Pool,
    gauge: Option<Gauge>,
    flush: Option<Buffer>,
    state: Option<State>,
    /// Inputs of earlier problems, the latest last: the buckets of a model share its weights.
    kept: Vec<Held>,
    /// Whether code of a candidate was loaded: it reaches the whole process.
    touched: bool,
}

struct State {
    problem: Problem,
    /// Of the inputs.
    seed: u64,
    tensors: Vec<Tensor>,
    /// Inputs and outputs of each set; the key says what an input holds, so that a later problem may take it over.
    sets: Vec<Vec<Held>>,
    expected: Vec<Expected>,
    cold: bool,
    /// Whether the first set holds other inputs than the seed's.
    strange: bool,
}

struct Held {
    buffer: Buffer,
    key: Option<InputKey>,
    /// Of what an input holds.
    sum: u64,
}

/// Seed, scale, bytes and type: what a uniform input holds.
type InputKey = (u64, u32, u64, Storage);

struct Loaded {
    bound: Vec<Bound>,
    workspace: Option<Buffer>,
}

impl CpuSession {
    /// A session with `threads` threads, or as many as the process may use.
    pub fn open(threads: Option<usize>) -> Result<CpuSession, BackendError> {
        let device = super::describe(threads);
        let pool = Pool::new(device.units as usize)?;
        Ok(CpuSession { device, pool, gauge: None, flush: None, state: None, kept: Vec::new(), touched: false })
    }

    fn state(&self) -> Result<&State, BackendError> {
        self.state.as_ref().ok_or_else(|| BackendError::Measurement("no problem is prepared".into()))
    }

    /// Takes back the inputs of the problem at hand, and lets go of the oldest that `room` bytes do not hold.
    fn keep(&mut self, mut room: u64) {
        let sets = self.state.take().map(|s| s.sets).into_iter().flatten();
        self.kept.extend(sets.flatten().filter(|h| h.key.is_some()));
        let mut from = self.kept.len();
        while let Some(h) = from.checked_sub(1).and_then(|i| self.kept.get(i)) {
            let Some(left) = room.checked_sub(h.buffer.bytes().len() as u64) else { break };
            (room, from) = (left, from - 1);
        }
        self.kept.drain(..from);
    }

    fn load(&mut self, candidate: &Runnable) -> Result<Loaded, BackendError> {
        self.touched = true;
        let state = self.state()?;
        // SAFETY: a candidate may do anything; it is tried where it costs a process that can be spared.
        let module = unsafe { Module::load(&candidate.bytes()?) }?;
        let launch = &candidate.launch;
        let executable = Executable::new(&module, launch, state.tensors.len())?;
        let workspace = (launch.workspace > 0).then(|| {
            let bytes = launch.workspace as usize;
            if launch.zero { Buffer::zeroed(bytes) } else { Buffer::new(bytes) }
        });
        let workspace = workspace.transpose()?;
        let address = workspace.as_ref().map_or(0, Buffer::address);
        let bind = |set: &Vec<Held>| {
            let addresses: Vec<u64> = set.iter().map(|h| h.buffer.address()).collect();
            // SAFETY: buffers of the problem's sizes, with inputs of its range, that outlive what is loaded: a state is
            // replaced only between candidates.
            unsafe { executable.bind(&addresses, address) }
        };
        Ok(Loaded { bound: state.sets.iter().map(bind).collect::<Result<_, _>>()?, workspace })
    }

    /// Runs the candidate on poisoned outputs and compares. A second run shows a workspace that was not left as it was
    /// found; a long one is not worth it.
    fn check(&mut self, loaded: &Loaded) -> Check {
        let mut check = Check::default();
        for _ in 0..2 {
            self.poison(0);
            let start = Instant::now();
            loaded.bound[0].run(&self.pool);
            let long = start.elapsed().as_secs_f64() > LONG_S;
            self.compare(0, &mut check);
            self.look_beyond(loaded, &mut check);
            if check.wrong.is_some() || long {
                break;
            }
        }
        check
    }

    /// Poisons the outputs of a set, and their guards: one that a candidate broke must not speak against the next.
    fn poison(&mut self, set: usize) {
        let Some(state) = &mut self.state else { return };
        for (t, h) in state.tensors.iter().zip(&mut state.sets[set]) {
            if t.role == Role::Out {
                h.buffer.poison();
            }
        }
    }

    fn poison_all(&mut self) {
        (0..self.state.as_ref().map_or(0, |s| s.sets.len())).for_each(|set| self.poison(set));
    }

    fn compare(&self, set: usize, check: &mut Check) {
        let Some(state) = &self.state else { return };
        for (t, h) in state.tensors.iter().zip(&state.sets[set]) {
            if t.role == Role::Out {
                check.add(t.name, &compare(t, &h.buffer, &state.expected), Tolerance::of_tensor(&state.problem, t));
            }
        }
    }

    /// Compares what launches on the first `ran` sets left in outputs that were poisoned before: one set whole, and those
    /// that differ from it in a byte.
    fn compare_all(&self, ran: usize, check: &mut Check) {
        let Some(state) = &self.state else { return };
        let one = (unpredictable() % ran.max(1) as u64) as usize;
        self.compare(one, check);
        for (set, held) in state.sets.iter().enumerate().take(ran) {
            let differs = |((t, a), b): ((&Tensor, &Held), &Held)| {
                let same = || a.buffer.bytes().par_chunks(1 << 20).eq(b.buffer.bytes().par_chunks(1 << 20));
                t.role == Role::Out && !(a.buffer.guards_hold() && same())
            };
            if set != one && state.tensors.iter().zip(held).zip(&state.sets[one]).any(differs) {
                self.compare(set, check);
            }
        }
    }

    fn look_beyond(&self, loaded: &Loaded, check: &mut Check) {
        if loaded.workspace.as_ref().is_some_and(|w| !w.guards_hold()) {
            check.wrong = check.wrong.take().or_else(|| Some("wrote outside its workspace".into()));
        }
    }

    /// Whether a candidate that just ran on `ran` sets, whose outputs were poisoned before, is still right, and stays so.
    /// It is launched three times more where that takes no time: on the results of the launch before with some of them
    /// spoiled, which a candidate that takes what it finds for its own does not write again, and on poison.
    fn recheck(&mut self, loaded: &Loaded, ran: usize, launch_s: f64) -> Check {
        let mut check = Check::default();
        self.compare_all(ran, &mut check);
        let set = (unpredictable() % ran.max(1) as u64) as usize;
        if check.wrong.is_none() && launch_s <= LONG_S {
            loaded.bound[set].run(&self.pool);
            self.spoil(set);
            loaded.bound[set].run(&self.pool);
            self.compare(set, &mut check);
            self.poison(0);
            loaded.bound[0].run(&self.pool);
            self.compare(0, &mut check);
        }
        self.look_beyond(loaded, &mut check);
        check
    }

    /// Puts numbers in place of some results of a set, of those that are compared.
    fn spoil(&mut self, set: usize) {
        let Some(state) = &mut self.state else { return };
        let (seed, first) = (unpredictable(), unpredictable() as usize % SPOILED);
        for (t, h) in state.tensors.iter().zip(&mut state.sets[set]).filter(|(t, _)| t.role == Role::Out) {
            let size = t.storage.bytes(1) as usize;
            let mine: Vec<&Expected> = state.expected.iter().filter(|e| e.tensor == t.name).collect();
            for e in mine.iter().skip(first % mine.len().max(1)).step_by(SPOILED) {
                // Between 2 and 4 in every float type.
                let bits = (hash_uniform(seed, e.index).to_bits() & 0xff_ffff) | 0x4000_0000;
                let at = e.index as usize * size;
                h.buffer.bytes_mut()[at..at + size].copy_from_slice(&bits.to_le_bytes()[4 - size..]);
            }
        }
    }

    /// Microseconds a launch over whole passes of the sets, with cold memory before the first.
    fn round(&self, loaded: &Loaded, passes: usize) -> Result<f64, BackendError> {
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

    /// Passes of a round, and the samples so far: a first pass that makes a whole round is one.
    fn passes(&self, loaded: &Loaded) -> Result<(usize, Series), BackendError> {
        let us = self.round(loaded, 1)?;
        let each = us * 1e-6 * loaded.bound.len() as f64;
        // More than one pass would find the sets in the cache unless they exceed it together.
        let passes = if self.state()?.cold { ((ROUND_S / each).ceil() as usize).clamp(1, 64) } else { 1 };
        let us = if passes == 1 { vec![us] } else { Vec::new() };
        Ok((passes, Series { us, ..Series::default() }))
    }

    /// Why a time cannot be: no memory, cache or core is so fast.
    fn doubt(&self, us: f64) -> Result<Option<Doubt>, BackendError> {
        let state = self.state()?;
        let (c, d) = (&self.device.ceilings, &self.device);
        let share = if c.measured { FLOOR_SHARE.0 } else { FLOOR_SHARE.1 };
        let inputs: u64 = state.tensors.iter().filter(|t| t.role == Role::In).map(|t| t.storage.bytes(t.touched)).sum();
        let beyond = inputs.saturating_sub(d.l3);
        let rates = (beyond as f64 / c.read).max(state.problem.flops() / c.flops(state.problem.types())) * share;
        let cached = inputs as f64 / (f64::from(d.units) * d.simd.max(16) as f64 * CACHE_LOADS);
        let floor = rates.max(cached) * 1e6;
        Ok((us < floor).then(|| Doubt::Implausible(format!("{us:.2} µs is under the floor of {floor:.2} µs"))))
    }

    /// Checks what is loaded, and times it where `rounds` are asked for.
    fn tried(&mut self, loaded: &Loaded, begun: Instant, rounds: u32) -> Result<Tried, BackendError> {
        let check = self.check(loaded);
        let mut tried =
            Tried { check, doubt: None, series: None, blocks_per_sm: 0, verifying_s: 0.0, measuring_s: 0.0 };
        let checked = begun.elapsed();
        // What is launched again finds poison; what takes too long for that leaves what was checked.
        let again = rounds > 0 || checked.as_secs_f64() < LONG_S;
        if tried.check.wrong.is_none() && again {
            self.poison_all();
            let start = Instant::now();
            if rounds > 0 {
                let (passes, mut series) = self.passes(loaded)?;
                while series.us.is_empty()
                    || series.us.len() < rounds as usize && start.elapsed().as_secs_f64() <= ROUNDS_S
                {
                    series.us.push(self.round(loaded, passes)?);
                }
                tried.measuring_s = start.elapsed().as_secs_f64();
                let launch_s = series.median() * 1e-6;
                tried.doubt =
                    unstable(self.recheck(loaded, loaded.bound.len(), launch_s)).or(self.doubt(series.median())?);
                tried.series = Some(series);
            } else {
                let (all, mut launches) = (loaded.bound.len(), 0);
                while goes_on(launches, start.elapsed().as_secs_f64()) {
                    loaded.bound[launches % all].run(&self.pool);
                    launches += 1;
                }
                let launch_s = start.elapsed().as_secs_f64() / launches.max(1) as f64;
                tried.doubt = unstable(self.recheck(loaded, launches.min(all), launch_s));
            }
        }
        tried.verifying_s = begun.elapsed().as_secs_f64() - tried.measuring_s;
        Ok(tried)
    }

    /// Whether what is loaded, and was right, computes its results of what its inputs hold: others come into the memory of the first set,
    /// where the results of those before still are, and then such as random ones hardly are.
    fn renew(&mut self, loaded: &Loaded) -> Option<Doubt> {
        let state = self.state.as_ref()?;
        let (problem, seed) = (state.problem, renewed(state.seed));
        if let Some(why) = self.wrong_on(loaded, &Inputs::new(&problem, seed), seed) {
            return Some(stale(why));
        }
        let wrong = self.wrong_on(loaded, &Inputs::extreme(&problem, seed)?, seed);
        wrong.map(|why| Doubt::Unstable(format!("on extreme inputs: {why}")))
    }

    /// What is wrong with the results of the first set on these inputs.
    fn wrong_on(&mut self, loaded: &Loaded, inputs: &Inputs, seed: u64) -> Option<String> {
        let state = self.state.as_mut()?;
        state.put(inputs);
        state.strange = true;
        // Where it writes follows from the inputs too, and what it must leave is seen on poison.
        let sparse = state.tensors.iter().zip(&mut state.sets[0]).filter(|(t, _)| t.is_sparse());
        sparse.for_each(|(_, held)| held.buffer.poison());
        let others = expected(&state.problem, inputs, seed, REFERENCE_BUDGET);
        let own = std::mem::replace(&mut state.expected, others);
        loaded.bound[0].run(&self.pool);
        let mut check = Check::default();
        self.compare(0, &mut check);
        if let Some(state) = &mut self.state {
            state.expected = own;
        }
        check.wrong
    }

    /// The name of an input that holds something else than it should; it is sealed, and code that means harm can break that.
    fn disturbed(&self) -> Result<Option<&'static str>, BackendError> {
        let state = self.state()?;
        let all = state.sets.iter().flat_map(|set| state.tensors.iter().zip(set));
        let mut inputs = all.filter(|(t, _)| t.role == Role::In);
        Ok(inputs.find(|(_, held)| sum(&held.buffer) != held.sum).map(|(t, _)| t.name))
    }

    /// What speaks against a candidate, less what the inputs are to blame for: where one is not what it was, and `before` says that other
    /// candidates ran, nobody knows who did it.
    fn believed(&self, wrong: String, before: bool) -> Result<String, BackendError> {
        match self.disturbed()? {
            None => Ok(wrong),
            Some(name) if before => Err(BackendError::Measurement(format!(
                "{name}: an input was changed, by this candidate or one before it"
            ))),
            Some(name) => Ok(format!("{name}: an input was changed")),
        }
    }

    /// Puts back the inputs of the first set, where others came into their memory.
    fn restore(&mut self) {
        if let Some(state) = self.state.as_mut().filter(|state| state.strange) {
            state.put(&Inputs::new(&state.problem, state.seed));
            state.strange = false;
        }
    }
}

impl State {
    /// Writes inputs into the memory of the first set.
    fn put(&mut self, inputs: &Inputs) {
        let unused = inputs.unused();
        for (t, held) in self.tensors.iter().zip(&mut self.sets[0]) {
            if let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) {
                held.buffer.unseal();
                write_to(&mut held.buffer, input, &unused);
                held.buffer.seal();
                (held.key, held.sum) = (key_of(input, &unused), sum(&held.buffer));
            }
        }
    }
}

/// What a second check found, as a doubt of the first.
fn unstable(check: Check) -> Option<Doubt> {
    check.wrong.map(Doubt::Unstable)
}

impl Session for CpuSession {
    fn device(&self) -> &Device {
        &self.device
    }

    fn ceilings(&mut self, support: &Artifact) -> Result<Ceilings, BackendError> {
        let gauge = match self.gauge.take() {
            Some(gauge) => gauge,
            None => Gauge::new(&code(support)?, &self.device)?,
        };
        let known = self.device.ceilings;
        let rounds = if known.measured { CEILING_ROUNDS.1 } else { CEILING_ROUNDS.0 };
        let read = gauge.read(&self.pool, rounds);
        self.gauge = Some(gauge);
        self.device.ceilings = if known.measured { read.or(known) } else { read };
        Ok(self.device.ceilings)
    }

    fn assume(&mut self, ceilings: Ceilings) {
        self.device.ceilings = ceilings;
    }

    fn prepare(&mut self, setup: &Setup) -> Result<(), BackendError> {
        let problem = setup.problem;
        let tensors = problem.tensors();
        let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
        if bytes > self.device.memory / 2 {
            return Err(BackendError::OutOfMemory { needed: bytes, free: self.device.memory / 2 });
        }
        self.keep(self.device.memory / 2 - bytes);
        let rotated = CACHES * self.device.l3.max(self.device.l2);
        let sets = rotated.div_ceil(problem.bytes().max(1)).clamp(1, MAX_SETS);
        let sets = sets.min((SETS_BYTES.min(self.device.memory / 4) / bytes.max(1)).max(1));
        let sets = if setup.single { 1 } else { sets };
        let inputs = Inputs::new(&problem, setup.seed);
        let unused = inputs.unused();
        let kept = &mut self.kept;
        let mut hold = |t: &Tensor, like: Option<&Held>| -> Result<Held, BackendError> {
            let Some(input) = inputs.iter().find(|i| i.tensor.name == t.name) else {
                return Ok(Held { buffer: Buffer::new(t.bytes() as usize)?, key: None, sum: 0 });
            };
            let key = key_of(input, &unused);
            if let Some(at) = kept.iter().position(|h| key.is_some() && h.key == key) {
                return Ok(kept.remove(at));
            }
            let mut buffer = Buffer::zeroed(t.bytes() as usize)?;
            let sum = match like {
                Some(like) => {
                    copy_to(&mut buffer, &like.buffer);
                    like.sum
                }
                None => {
                    write_to(&mut buffer, input, &unused);
                    sum(&buffer)
                }
            };
            buffer.seal();
            Ok(Held { buffer, key, sum })
        };
        let first = tensors.iter().map(|t| hold(t, None)).collect::<Result<Vec<Held>, _>>()?;
        // All hold the same: copies cost a fraction of what values do.
        let copy = |_| tensors.iter().zip(&first).map(|(t, like)| hold(t, Some(like))).collect();
        let rest = (1..sets).map(copy).collect::<Result<Vec<Vec<Held>>, _>>()?;
        let sets: Vec<Vec<Held>> = std::iter::once(first).chain(rest).collect();
        let cold = problem.bytes() * sets.len() as u64 >= rotated;
        if !cold && !setup.single && self.flush.is_none() {
            self.flush = Some(Buffer::new(rotated as usize)?);
        }
        let expected = expected(&problem, &inputs, setup.seed, REFERENCE_BUDGET);
        self.state = Some(State { problem, seed: setup.seed, tensors, sets, expected, cold, strange: false });
        Ok(())
    }

    fn attempt(&mut self, candidate: &Runnable, rounds: u32) -> Result<Tried, BackendError> {
        let (begun, before) = (Instant::now(), self.touched);
        self.restore();
        let loaded = self.load(candidate)?;
        let mut tried = self.tried(&loaded, begun, rounds)?;
        if let Some(wrong) = tried.check.wrong.take() {
            tried.check.wrong = Some(self.believed(wrong, before)?);
        } else if let Some(Doubt::Unstable(wrong)) = &tried.doubt {
            tried.doubt = Some(Doubt::Unstable(self.believed(wrong.clone(), before)?));
        }
        Ok(tried)
    }

    fn finals(&mut self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Timed>, BackendError> {
        let before = self.touched || candidates.len() > 1;
        self.restore();
        let loaded: Vec<Loaded> = candidates.iter().map(|c| self.load(c)).collect::<Result<_, _>>()?;
        let start = Instant::now();
        let begun: Vec<(usize, Series)> = loaded.iter().map(|l| self.passes(l)).collect::<Result<_, _>>()?;
        let (passes, mut series): (Vec<usize>, Vec<Series>) = begun.into_iter().unzip();
        let mut doubts = Vec::new();
        for i in 0..rounds.max(1) {
            let last = i + 1 >= rounds || start.elapsed().as_secs_f64() > ROUNDS_S * candidates.len() as f64;
            for ((l, passes), s) in loaded.iter().zip(&passes).zip(&mut series) {
                if last {
                    self.poison_all();
                }
                s.us.push(self.round(l, *passes)?);
                if last {
                    doubts
                        .push(unstable(self.recheck(l, l.bound.len(), s.median() * 1e-6)).or(self.doubt(s.median())?));
                }
            }
            if last {
                break;
            }
        }
        for doubt in doubts.iter_mut().flatten() {
            if let Doubt::Unstable(wrong) = doubt {
                *wrong = self.believed(std::mem::take(wrong), before)?;
            }
        }
        Ok(series.into_iter().zip(doubts).map(|(series, doubt)| Timed { series, doubt }).collect())
    }

    fn verify(&mut self, candidate: &Runnable, elements: &[Element]) -> Result<(Tried, Vec<f64>), BackendError> {
        let begun = Instant::now();
        self.restore();
        let loaded = self.load(candidate)?;
        let mut tried = self.tried(&loaded, begun, 0)?;
        let state = self.state()?;
        let value = |e: &Element| {
            let at = state.tensors.iter().position(|t| t.name == e.tensor);
            at.map_or(f64::NAN, |i| state.tensors[i].storage.value(state.sets[0][i].buffer.bytes(), e.index))
        };
        let values = elements.iter().map(value).collect();
        if tried.check.wrong.is_none() && tried.doubt.is_none() {
            tried.doubt = self.renew(&loaded);
        }
        if let (None, None, Some(name)) = (&tried.check.wrong, &tried.doubt, self.disturbed()?) {
            tried.doubt = unstable(Check { wrong: Some(format!("{name}: an input was changed")), ..Check::default() });
        }
        tried.verifying_s = begun.elapsed().as_secs_f64();
        Ok((tried, values))
    }
}

/// What a uniform input holds, unless a part of it holds something else.
fn key_of(input: &Input, unused: &[Range<u64>]) -> Option<InputKey> {
    let t = &input.tensor;
    let whole = t.layout != Layout::Paged || unused.is_empty();
    input.uniform().filter(|_| whole).map(|(seed, scale)| (seed, scale.to_bits(), t.bytes(), t.storage))
}

/// Writes an input, with NaN where a page holds no token: a kernel that lets it into a sum is wrong.
fn write_to(buffer: &mut Buffer, input: &Input, unused: &[Range<u64>]) {
    const EACH: u64 = 1 << 18;
    let t = &input.tensor;
    let chunks = buffer.bytes_mut().par_chunks_mut(t.storage.bytes(EACH) as usize).enumerate();
    chunks.for_each(|(i, chunk)| input.write(i as u64 * EACH, chunk));
    for range in if t.layout == Layout::Paged { unused } else { &[] } {
        buffer.bytes_mut()[t.storage.bytes(range.start) as usize..t.storage.bytes(range.end) as usize].fill(0xff);
    }
}

/// A number that follows from every byte and its place.
fn sum(buffer: &Buffer) -> u64 {
    let of = |(at, chunk): (usize, &[u8])| {
        let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let (words, rest) = chunk.as_chunks::<8>();
        let rest = rest.iter().fold(at as u64, |sum, byte| mix(sum, u64::from(*byte)));
        words.iter().fold(rest, |sum, word| mix(sum, u64::from_le_bytes(*word)))
    };
    buffer.bytes().par_chunks(1 << 18).enumerate().map(of).reduce(|| 0, u64::wrapping_add)
}

fn copy_to(buffer: &mut Buffer, like: &Buffer) {
    let chunks = buffer.bytes_mut().par_chunks_mut(1 << 20).zip(like.bytes().par_chunks(1 << 20));
    chunks.for_each(|(to, from)| to.copy_from_slice(from));
}

/// Compares the computed elements of one output with what memory holds, and counts what was written.
fn compare(t: &Tensor, buffer: &Buffer, expected: &[Expected]) -> TensorCheck {
    let (bytes, size) = (buffer.bytes(), t.storage.bytes(1) as usize);
    let mine = expected.iter().filter(|e| e.tensor == t.name);
    let mut found = distance(t.storage, mine, |e| t.storage.value(bytes, e.index));
    // Every element is looked at, sampled or not: exactly the touched ones may hold something else than poison.
    let written: u64 = bytes
        .par_chunks(size << 16)
        .map(|c| c.chunks_exact(size).filter(|e| e.iter().any(|b| *b != 0xff)).count() as u64)
        .sum();
    // A code of 8 bits may be as poison is: what was not written is then wrong or right by chance.
    if t.storage != Storage::Int8 {
        // What was not written is not finite either: it counts once.
        found.unwritten = found.unwritten.max(t.touched.saturating_sub(written));
        found.touched = written.saturating_sub(t.touched);
    }
    found.guard = u64::from(!buffer.guards_hold());
    found
}
