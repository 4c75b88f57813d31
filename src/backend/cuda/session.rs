//! Checking and timing candidates on a GPU.
//!
//! Inputs are filled on the device and the f64 reference is computed there too, then spot-checked against the host's.
//! Everything lies in one arena of several sets: timing rotates through the sets, and reads other memory between the
//! replays where the sets together are smaller than twice the L2, so that every launch finds cold data.

use super::context::Context;
use super::driver::{Buffer, Event, Graph, Module, Stream};
use super::launch::{Bound, Executable};
use super::nvml::Sensors;
use super::support::Support;
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{Check, Runnable, Series, Session, Setup, Tried, code, gate_clocks};
use crate::device::{Ceilings, Device};
use crate::problem::{Inputs, Layout, Problem, Role, Storage, Tensor, Tolerance, expected};
use std::sync::Arc;
use std::time::Instant;

/// Poisoned bytes around every tensor: a read outside gives NaN, a write is seen.
const GUARD: u64 = 4096;
/// What unwritten memory holds, by 32-bit word; NaN in every float type.
const POISON: u32 = 0xffff_ffff;
/// Most input sets: more make graphs slow to build and gain nothing beside the flush.
const MAX_SETS: u64 = 32;
/// A replay should last at least this long, so that its own launch is small beside it.
const REPLAY_S: f64 = 300e-6;
/// Most launches in one graph.
const MAX_NODES: usize = 256;
/// Reference elements that are compared with the host's own reference when a problem is prepared.
const SPOT_CHECKS: usize = 64;
/// Host reads that these may cost.
const SPOT_BUDGET: u64 = 4 << 20;
/// Steps of the matrix products whose rate is measured: a millisecond or so.
const MATRIX_STEPS: u32 = 4096;
/// A time below this share of what the datasheet rates allow is a broken measurement.
const FLOOR_SHARE: f64 = 0.85;

/// A session on one GPU.
pub struct CudaSession {
    stream: Stream,
    start: Event,
    end: Event,
    sensors: Option<Sensors>,
    support: Option<(String, Support)>,
    flush: Option<Buffer>,
    state: Option<State>,
    exact: bool,
    context: Arc<Context>,
    device: Device,
    /// What the datasheet says that no kernel exceeds, where it is known.
    most: Option<Ceilings>,
}

/// One prepared problem.
struct State {
    problem: Problem,
    tensors: Vec<Tensor>,
    sets: Vec<Vec<u64>>,
    /// The memory behind the sets.
    _memory: Vec<Buffer>,
    references: Vec<Option<(Buffer, Buffer)>>,
    cold: bool,
}

struct Loaded {
    bound: Vec<Bound>,
    workspace: Option<Buffer>,
    executable: Arc<Executable>,
}

impl CudaSession {
    /// Opens the GPU of that ordinal.
    pub fn open(ordinal: usize) -> Result<CudaSession, BackendError> {
        let (context, device) = super::open(ordinal)?;
        let stream = Stream::new(&context)?;
        Ok(CudaSession {
            start: Event::new(&stream)?,
            end: Event::new(&stream)?,
            stream,
            sensors: Sensors::open(ordinal),
            support: None,
            flush: None,
            state: None,
            exact: false,
            context,
            most: super::device::is_known(device.cc).then_some(device.ceilings),
            device,
        })
    }

    /// Gives every tensor an allocation of its own, of its exact size, in one set: a memory checker then sees every
    /// access outside. The guard zones of the usual layout would hide them from it.
    pub fn with_exact_memory(mut self) -> CudaSession {
        self.exact = true;
        self
    }

    fn support(&mut self, artifact: &Artifact) -> Result<(), BackendError> {
        if self.support.as_ref().is_none_or(|(have, _)| *have != artifact.hash) {
            self.support = Some((artifact.hash.clone(), Support::load(&self.context, &code(artifact)?)?));
        }
        Ok(())
    }

    fn parts(&self) -> Result<(&State, &Support), BackendError> {
        match (&self.state, &self.support) {
            (Some(state), Some((_, support))) => Ok((state, support)),
            _ => Err(BackendError::Measurement("no problem is prepared".into())),
        }
    }

    /// Loads a candidate and binds it to every set.
    fn load(&self, candidate: &Runnable) -> Result<Loaded, BackendError> {
        let (state, _) = self.parts()?;
        let launch = &candidate.launch;
        let executable = self.executable(candidate, &state.tensors)?;
        let workspace = match launch.workspace {
            0 => None,
            bytes => {
                let b = Buffer::new(&self.context, bytes + if self.exact { 0 } else { GUARD })?;
                b.fill(0xff, &self.stream)?;
                if launch.zero {
                    // In the stream's order: a copy from the host would not wait for the fill before it.
                    b.fill_first(bytes, 0, &self.stream)?;
                }
                Some(b)
            }
        };
        let address = workspace.as_ref().map_or(0, Buffer::address);
        // SAFETY: memory of the problem's sizes, with inputs of its range, that outlives what is loaded: a state is replaced
        // only between candidates.
        let bind = |set: &Vec<u64>| unsafe { executable.bind(set, address) };
        let bound = state.sets.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Loaded { bound, workspace, executable })
    }

    fn executable(&self, candidate: &Runnable, tensors: &[Tensor]) -> Result<Arc<Executable>, BackendError> {
        let entries = candidate.launch.kernels.iter().map(|k| k.entry.as_str());
        // SAFETY: a candidate may do anything; it is tried where it costs a process that can be spared.
        let module = unsafe { Module::load(&self.context, &candidate.bytes()?, entries) }?;
        let storages: Vec<Storage> = tensors.iter().map(|t| t.storage).collect();
        Executable::new(&module, &candidate.launch, &storages)
    }

    /// Runs the candidate twice on poisoned outputs and compares both results: the second run also shows a workspace
    /// that was not left as it was found.
    fn check(&self, loaded: &Loaded, launch: &crate::recipe::Launch) -> Result<Check, BackendError> {
        let (state, support) = self.parts()?;
        let limit = Tolerance::of(&state.problem);
        let mut check = Check::default();
        for _ in 0..2 {
            self.poison_outputs(state, 0)?;
            loaded.bound[0].launch(&self.stream)?;
            self.stream.synchronize()?;
            for (i, t) in state.tensors.iter().enumerate() {
                let address = state.sets[0][i];
                if let Some((reference, stats)) = &state.references[i] {
                    let mut found = support.compare(t, address, reference.address(), stats, &self.stream)?;
                    let end = (address + t.bytes()).next_multiple_of(4);
                    found.guard = if self.exact {
                        0
                    } else {
                        support.guard(address - GUARD, GUARD / 4, POISON, &self.stream)?
                            + support.guard(end, GUARD / 4, POISON, &self.stream)?
                    };
                    check.add(t.name, &found, limit);
                }
            }
            if let (Some(w), false) = (&loaded.workspace, self.exact) {
                let beyond =
                    support.guard(w.address() + launch.workspace.next_multiple_of(4), 512, POISON, &self.stream)?;
                if beyond > 0 {
                    check.wrong = Some("wrote outside its workspace".into());
                }
            }
            if check.wrong.is_some() {
                break;
            }
        }
        Ok(check)
    }

    fn poison_outputs(&self, state: &State, set: usize) -> Result<(), BackendError> {
        for (t, at) in state.tensors.iter().zip(&state.sets[set]) {
            if t.role == Role::Out {
                // SAFETY: the tensor lies inside its set's memory.
                unsafe { super::driver::fill(*at, t.bytes(), 0xff, &self.stream) }?;
            }
        }
        Ok(())
    }

    /// Memory for the tensors and their addresses in each set: all sets in one arena, every tensor between guards and
    /// aligned to 1 KiB as bulk copies like it; or one set of exact allocations.
    fn layout(&self, problem: &Problem, tensors: &[Tensor]) -> Result<(Vec<Buffer>, Vec<Vec<u64>>), BackendError> {
        if self.exact {
            let memory: Vec<Buffer> =
                tensors.iter().map(|t| Buffer::new(&self.context, t.bytes())).collect::<Result<_, _>>()?;
            let set = memory.iter().map(Buffer::address).collect();
            return Ok((memory, vec![set]));
        }
        let mut offsets = Vec::new();
        let mut stride = GUARD;
        for t in tensors {
            offsets.push(stride);
            stride = (stride + t.bytes() + GUARD).next_multiple_of(1024);
        }
        let sets = (2 * self.device.l2).div_ceil(problem.bytes().max(1)).clamp(1, MAX_SETS);
        let sets = sets.min((self.device.memory / 3 / stride).max(1));
        let arena = Buffer::new(&self.context, stride * sets + GUARD)?;
        arena.fill(0xff, &self.stream)?;
        let set = |s| offsets.iter().map(|o| arena.address() + s * stride + o).collect();
        let sets = (0..sets).map(set).collect();
        Ok((vec![arena], sets))
    }

    /// Builds the graph that is replayed: launches over all sets in turn.
    fn graph(&self, loaded: &Loaded, nodes: usize) -> Result<Graph, BackendError> {
        Graph::capture(&self.stream, || -> Result<(), BackendError> {
            (0..nodes).try_for_each(|i| loaded.bound[i % loaded.bound.len()].launch(&self.stream))
        })
    }

    /// Seconds of one replay with cold memory.
    fn replay(&self, graph: &Graph) -> Result<f64, BackendError> {
        let (_, support) = self.parts()?;
        // Where the sets alone keep the cache cold this is a head start: the stream is busy while the replay is enqueued, so
        // no time of the host lies between the events.
        if let Some(flush) = &self.flush {
            support.read(flush.address(), flush.len(), &self.stream)?;
        }
        self.start.record(&self.stream)?;
        graph.launch(&self.stream)?;
        self.end.record(&self.stream)?;
        self.stream.synchronize()?;
        self.end.seconds_since(&self.start)
    }

    /// A graph of the right length for this candidate, and how many launches it holds.
    fn timed_graph(&self, loaded: &Loaded) -> Result<(Graph, usize), BackendError> {
        let sets = loaded.bound.len();
        let probe = self.graph(loaded, sets)?;
        self.replay(&probe)?;
        let each = self.replay(&probe)? / sets as f64;
        let wanted = ((REPLAY_S / each).ceil() as usize).clamp(1, MAX_NODES).next_multiple_of(sets);
        if wanted <= sets {
            return Ok((probe, sets));
        }
        let graph = self.graph(loaded, wanted)?;
        self.replay(&graph)?;
        Ok((graph, wanted))
    }

    /// Refuses a time that the hardware cannot reach.
    fn plausible(&self, us: f64) -> Result<(), BackendError> {
        let (state, _) = self.parts()?;
        let c = &self.device.ceilings;
        let inputs: u64 = state.tensors.iter().filter(|t| t.role == Role::In).map(|t| t.storage.bytes(t.touched)).sum();
        // Small inputs may be served from the L2 in part; only what exceeds it must come from memory.
        let beyond = inputs.saturating_sub(if state.cold { 0 } else { self.device.l2 });
        // A short kernel may run at a higher clock than the measured rate did; what a generation that is not known may
        // reach is not known either.
        let rate = self.most.map_or(f64::INFINITY, |most| most.or(*c).flops(state.problem.types()));
        let floor = (beyond as f64 / c.read).max(state.problem.flops() / rate) * 1e6;
        if us < floor * FLOOR_SHARE {
            return Err(BackendError::Measurement(format!("{us:.2} µs is under the floor of {floor:.2} µs")));
        }
        Ok(())
    }
}

impl Session for CudaSession {
    fn device(&self) -> &Device {
        &self.device
    }

    fn ceilings(&mut self, support: &Artifact) -> Result<Ceilings, BackendError> {
        self.support(support)?;
        self.state = None;
        let Some((_, support)) = &self.support else { return Ok(self.device.ceilings) };
        let bytes = (self.device.memory / 16).clamp(64 << 20, 2 << 30);
        let (a, b) = (Buffer::new(&self.context, bytes)?, Buffer::new(&self.context, bytes)?);
        a.fill(1, &self.stream)?;
        b.fill(1, &self.stream)?;
        let best = |work: &dyn Fn() -> Result<(), BackendError>| -> Result<f64, BackendError> {
            let mut least = f64::INFINITY;
            for _ in 0..8 {
                self.start.record(&self.stream)?;
                work()?;
                self.end.record(&self.stream)?;
                self.stream.synchronize()?;
                least = least.min(self.end.seconds_since(&self.start)?);
            }
            Ok(least)
        };
        let read = bytes as f64 / best(&|| support.read(a.address(), bytes, &self.stream))?;
        let copy = 2.0 * bytes as f64 / best(&|| support.copy(a.address(), b.address(), bytes, &self.stream))?;
        let done = Buffer::new(&self.context, 8)?;
        let seconds = best(&|| {
            done.fill(0, &self.stream)?;
            support.multiply(self.device.units, MATRIX_STEPS, &done, &self.stream)
        })?;
        let mut operations = [0; 8];
        done.read(0, &mut operations)?;
        let half = u64::from_le_bytes(operations) as f64 / seconds;
        let ceilings = &mut self.device.ceilings;
        // Tensor cores take half as many products of TF32, in every generation so far.
        *ceilings = Ceilings { read, copy, half, tf32: half / 2.0, measured: true, ..*ceilings };
        Ok(*ceilings)
    }

    fn assume(&mut self, ceilings: Ceilings) {
        self.device.ceilings = ceilings;
    }

    fn prepare(&mut self, setup: &Setup) -> Result<(), BackendError> {
        let Some(support) = &setup.support else {
            return Err(BackendError::Measurement("a CUDA session needs the support code".into()));
        };
        self.support(support)?;
        self.state = None;
        let problem = setup.problem;
        let tensors = problem.tensors();
        let inputs = Inputs::new(&problem, setup.seed);
        let unused = inputs.unused();
        let twice_l2 = 2 * self.device.l2;
        let (memory, sets) = self.layout(&problem, &tensors)?;
        let cold = problem.bytes() * sets.len() as u64 >= twice_l2;
        if self.flush.is_none() {
            let flush = Buffer::new(&self.context, twice_l2 + (32 << 20))?;
            flush.fill(1, &self.stream)?;
            self.flush = Some(flush);
        }
        let Some((_, support)) = &self.support else { return Ok(()) };
        for set in &sets {
            for input in inputs.iter() {
                let Some(i) = tensors.iter().position(|t| t.name == input.tensor.name) else { continue };
                // The support code knows f32 and what results are stored as.
                let known = [Storage::F32, problem.types().y].contains(&input.tensor.storage);
                match input.uniform().filter(|_| known) {
                    Some((seed, scale)) => support.fill(&input.tensor, set[i], seed, scale, &self.stream)?,
                    None => {
                        let mut bytes = vec![0u8; input.tensor.bytes() as usize];
                        input.write(0, &mut bytes);
                        // SAFETY: the tensor lies inside its set's memory.
                        unsafe { super::driver::copy_in(&self.context, set[i], &bytes) }?;
                    }
                }
                for range in if input.tensor.layout == Layout::Paged { &unused[..] } else { &[] } {
                    let bytes = |elements| input.tensor.storage.bytes(elements);
                    let (at, len) = (set[i] + bytes(range.start), bytes(range.end - range.start));
                    // NaN in any float: a kernel that lets them into a sum is wrong.
                    // SAFETY: the range lies inside the tensor, and the state keeps its memory.
                    unsafe { super::driver::fill(at, len, 0xff, &self.stream) }?;
                }
            }
        }
        let mut state = State { problem, tensors, sets, _memory: memory, references: Vec::new(), cold };
        let mut addresses = state.sets[0].clone();
        for (i, t) in state.tensors.iter().enumerate() {
            state.references.push(match t.role {
                Role::In => None,
                Role::Out => {
                    let reference = Buffer::new(&self.context, t.len() * 8)?;
                    reference.fill(0xff, &self.stream)?;
                    addresses[i] = reference.address();
                    Some((reference, Buffer::new(&self.context, 16)?))
                }
            });
        }
        let Some(runnable) = &setup.reference else {
            return Err(BackendError::Measurement("a CUDA session needs the reference's code".into()));
        };
        let executable = self.executable(runnable, &state.tensors)?;
        let workspace = Buffer::new(&self.context, runnable.launch.workspace)?;
        // SAFETY: inputs and references of the problem's sizes, which outlive the one launch: it is waited for.
        let bound = unsafe { executable.bind(&addresses, workspace.address()) }?;
        bound.launch(&self.stream)?;
        self.stream.synchronize()?;
        spot_check(&state, &inputs, setup.seed)?;
        for (t, r) in state.tensors.iter().zip(&state.references) {
            if let Some((reference, stats)) = r {
                support.reference_stats(reference.address(), t.len(), stats, &self.stream)?;
            }
        }
        self.stream.synchronize()?;
        self.state = Some(state);
        Ok(())
    }

    fn attempt(&mut self, candidate: &Runnable, rounds: u32) -> Result<Tried, BackendError> {
        let begun = Instant::now();
        let loaded = self.load(candidate)?;
        let check = self.check(&loaded, &candidate.launch)?;
        let blocks_per_sm = loaded.executable.blocks_per_sm()?;
        let checked = begun.elapsed().as_secs_f64();
        if check.wrong.is_some() || rounds == 0 {
            return Ok(Tried { check, series: None, blocks_per_sm, verifying_s: checked, measuring_s: 0.0 });
        }
        let (graph, nodes) = self.timed_graph(&loaded)?;
        let mut series = Series::default();
        for _ in 0..rounds {
            series.us.push(self.replay(&graph)? / nodes as f64 * 1e6);
        }
        self.plausible(series.median())?;
        Ok(Tried {
            check,
            series: Some(series),
            blocks_per_sm,
            verifying_s: checked,
            measuring_s: begun.elapsed().as_secs_f64() - checked,
        })
    }

    fn finals(&mut self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Series>, BackendError> {
        let loaded: Vec<Loaded> = candidates.iter().map(|c| self.load(c)).collect::<Result<_, _>>()?;
        let graphs: Vec<(Graph, usize)> = loaded.iter().map(|l| self.timed_graph(l)).collect::<Result<_, _>>()?;
        let mut series = vec![Series::default(); candidates.len()];
        for _ in 0..rounds {
            for ((graph, nodes), s) in graphs.iter().zip(&mut series) {
                s.us.push(self.replay(graph)? / *nodes as f64 * 1e6);
                s.mhz.push(self.sensors.as_ref().map_or(0, Sensors::mhz));
            }
        }
        gate_clocks(&mut series);
        for s in &series {
            self.plausible(s.median())?;
        }
        Ok(series)
    }
}

/// Compares a few elements of the device's reference with the host's: the two are written apart from each other.
fn spot_check(state: &State, inputs: &Inputs, seed: u64) -> Result<(), BackendError> {
    let mut host =
        expected(&state.problem, inputs, seed, SPOT_BUDGET.min((state.problem.op().unit_cost)(&state.problem) * 16));
    let step = (host.len() / SPOT_CHECKS).max(1);
    host = host.into_iter().step_by(step).collect();
    for e in host {
        let Some(i) = state.tensors.iter().position(|t| t.name == e.tensor) else { continue };
        let Some((reference, _)) = &state.references[i] else { continue };
        let mut raw = [0u8; 8];
        reference.read(e.index * 8, &mut raw)?;
        let device = f64::from_le_bytes(raw);
        // Both are f64; they differ only in the order of sums.
        let error = (device - e.value).abs();
        if error.is_nan() || error > 1e-6 * (1.0 + e.value.abs()) {
            return Err(BackendError::Measurement(format!(
                "{}: the reference on the device has {}[{}] = {device}, the host has {}",
                state.problem, e.tensor, e.index, e.value
            )));
        }
    }
    Ok(())
}
