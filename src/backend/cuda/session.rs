//! Checking and timing candidates on a GPU.
//!
//! Inputs are filled on the device and the f64 reference is computed there too, then spot-checked against the host's.
//! Everything lies in one arena of several sets: timing rotates through the sets, and reads other memory between the
//! replays where the sets together are smaller than twice the L2, so that every launch finds cold data. What a candidate
//! must leave as it is (inputs, references, all bytes between tensors) is summed, and looked at again after it ran.

use super::context::Context;
use super::driver::{Buffer, Event, Graph, Module, Stream};
use super::launch::{Bound, Executable};
use super::nvml::Sensors;
use super::support::{Ranges, Support};
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{
    Check, Doubt, Element, Runnable, Series, Session, Setup, Timed, Tried, code, gate_clocks, goes_on, renewed, stale,
    unpredictable,
};
use crate::device::{Ceilings, Device};
use crate::problem::{Input, Inputs, Layout, Problem, Role, Storage, Tensor, Tolerance, expected};
use rayon::prelude::*;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Poisoned bytes around every tensor: a read outside gives NaN, a write is seen.
const GUARD: u64 = 4096;
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
/// Bytes that a multiprocessor takes from the L2 a cycle, at most.
const L2_BYTES: f64 = 64.0;
/// A candidate that takes so many times what the best so far does is timed by so few rounds of a short graph, of which the events
/// themselves take this long at most.
const BEHIND: f64 = 1.25;
const BEHIND_ROUNDS: u32 = 2;
const EVENTS_S: f64 = 4e-6;
/// How long the finalists of a problem that operations bound run before they are timed: a GPU at its power limit takes 40 ms to lower
/// its clock, by a sixth and more, and which of two tiles is faster hangs on it.
const SETTLING_S: f64 = 0.04;
/// Rounds that say what a candidate takes; fewer only say who is timed again.
const SETTLED_ROUNDS: u32 = 12;
/// Workspaces of a candidate, each for some of the sets, and their bytes at most: how far a counter lies from who waits for it, which is its
/// address's to say, is 0.1 µs of a short kernel.
const WORKSPACES: usize = 8;
const WORKSPACE_BYTES: u64 = 256 << 10;
/// The share of the memory that problems put by may take, and one of them alone.
const PUT_BY: f64 = 0.1;
const PUT_BY_EACH: f64 = 0.025;
/// How much larger than needed the arena of a problem before may be.
const SPARE: u64 = 2;
/// Outputs up to this size come back whole where elements of them are asked for.
const WHOLE_BYTES: u64 = 8 << 20;

/// A session on one GPU.
pub struct CudaSession {
    stream: Stream,
    start: Event,
    end: Event,
    sensors: Option<Sensors>,
    support: Option<(String, Support)>,
    flush: Option<Buffer>,
    state: Option<State>,
    /// Problems whose turn may come again, the latest last.
    put_by: Vec<State>,
    /// The largest arena of the problems before, for the next that needs about as much. After the driver got memory back, whatever reads
    /// memory takes 12% longer for 2.4 ms a gigabyte on an H200, as if it were wiped in the background: the sets of one embedding, 17 GB,
    /// spoil the times of seven candidates.
    spare: Option<Buffer>,
    /// Seconds a launch of the best candidate so far of each problem, which come back in turn.
    bests: HashMap<Problem, f64>,
    exact: bool,
    context: Arc<Context>,
    device: Device,
    /// What the datasheet says that no kernel exceeds, where it is known.
    most: Option<Ceilings>,
}

/// Allocations, and how many bytes of each are used.
type Memory = Vec<(Buffer, u64)>;

/// One prepared problem.
struct State {
    setup: Setup,
    tensors: Vec<Tensor>,
    sets: Vec<Vec<u64>>,
    /// The memory behind the sets.
    memory: Memory,
    references: Vec<Option<Reference>>,
    cold: bool,
    watched: Watched,
    /// Whether the sets hold other inputs than the seed's.
    strange: bool,
    /// Seconds a launch of the best candidate so far.
    best_s: Cell<f64>,
}

/// What an output should hold.
struct Reference {
    values: Buffer,
    stats: Buffer,
    /// The stats as they were first found: sums on the device need not come to the same bits again.
    known: Option<[u8; 16]>,
}

/// What no candidate may change.
struct Watched {
    ranges: Ranges,
    /// Of each range, what is said of a candidate that changed it.
    blame: Vec<String>,
    /// The sums of what they hold.
    sums: Vec<u64>,
}

impl State {
    /// The device memory that it holds.
    fn bytes(&self) -> u64 {
        let arenas = self.memory.iter().map(|(m, _)| m.len());
        arenas.chain(self.references.iter().flatten().map(|r| r.values.len())).sum()
    }
}

struct Loaded {
    bound: Vec<Bound>,
    workspaces: Option<Workspaces>,
    executable: Arc<Executable>,
}

/// A candidate's own memory: so many times `bytes`, each with a guard zone behind it.
struct Workspaces {
    bytes: u64,
    addresses: Vec<u64>,
    /// What they lie in.
    _memory: Buffer,
}

/// A finalist, as it is timed.
struct Finalist {
    loaded: Loaded,
    graph: Graph,
    nodes: usize,
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
            put_by: Vec::new(),
            spare: None,
            bests: HashMap::new(),
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
        let workspaces = match launch.workspace {
            0 => None,
            bytes => Some(self.workspaces(bytes, launch.zero, state.sets.len())?),
        };
        let address = |set: usize| workspaces.as_ref().map_or(0, |w| w.addresses[set % w.addresses.len()]);
        // SAFETY: memory of the problem's sizes, with inputs of its range, that outlives what is loaded: a state is replaced
        // only between candidates.
        let bind = |(i, set): (usize, &Vec<u64>)| unsafe { executable.bind(set, address(i)) };
        let bound = state.sets.iter().enumerate().map(bind).collect::<Result<_, _>>()?;
        Ok(Loaded { bound, workspaces, executable })
    }

    fn workspaces(&self, bytes: u64, zero: bool, sets: usize) -> Result<Workspaces, BackendError> {
        let (guard, count) = match (self.exact, bytes > WORKSPACE_BYTES) {
            (true, _) => (0, 1),
            (false, true) => (GUARD, 1),
            (false, false) => (GUARD, sets.min(WORKSPACES)),
        };
        let stride = if count > 1 { (bytes + guard).next_multiple_of(1024) } else { bytes + guard };
        let buffer = Buffer::new(&self.context, stride * count as u64)?;
        buffer.fill(0xff, &self.stream)?;
        let addresses: Vec<u64> = (0..count as u64).map(|i| buffer.address() + i * stride).collect();
        for at in addresses.iter().filter(|_| zero) {
            // In the stream's order: a copy from the host would not wait for the fill before it.
            // SAFETY: it lies inside the buffer.
            unsafe { super::driver::fill(*at, bytes, 0, &self.stream) }?;
        }
        Ok(Workspaces { bytes, addresses, _memory: buffer })
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
    fn check(&self, loaded: &Loaded) -> Result<Check, BackendError> {
        let mut check = Check::default();
        for _ in 0..2 {
            self.poison(0)?;
            loaded.bound[0].launch(&self.stream)?;
            self.stream.synchronize()?;
            self.compare(0..1, &mut check)?;
            if check.wrong.is_some() {
                break;
            }
        }
        self.look_beyond(loaded, &mut check)?;
        Ok(check)
    }

    /// Poisons the outputs of a set.
    fn poison(&self, set: usize) -> Result<(), BackendError> {
        let (state, _) = self.parts()?;
        for (t, at) in state.tensors.iter().zip(&state.sets[set]) {
            if t.role == Role::Out {
                // SAFETY: the tensor lies inside its set's memory.
                unsafe { super::driver::fill(*at, t.bytes(), 0xff, &self.stream) }?;
            }
        }
        Ok(())
    }

    fn poison_all(&self) -> Result<(), BackendError> {
        (0..self.parts()?.0.sets.len()).try_for_each(|set| self.poison(set))
    }

    /// Puts other numbers in place of some results of a set.
    fn spoil(&self, set: usize, seed: u64) -> Result<(), BackendError> {
        let (state, support) = self.parts()?;
        for ((t, at), r) in state.tensors.iter().zip(&state.sets[set]).zip(&state.references) {
            if let Some(r) = r {
                support.spoil(t, *at, r.values.address(), seed, &self.stream)?;
            }
        }
        Ok(())
    }

    /// Compares the outputs of some sets.
    fn compare(&self, sets: std::ops::Range<usize>, check: &mut Check) -> Result<(), BackendError> {
        let (state, support) = self.parts()?;
        for (i, t) in state.tensors.iter().enumerate() {
            if let Some(r) = &state.references[i] {
                let limit = Tolerance::of_tensor(&state.setup.problem, t);
                let outs: Vec<u64> = state.sets[sets.clone()].iter().map(|set| set[i]).collect();
                check.add(t.name, &support.compare(t, &outs, r.values.address(), &r.stats, &self.stream)?, limit);
            }
        }
        Ok(())
    }

    fn look_beyond(&self, loaded: &Loaded, check: &mut Check) -> Result<(), BackendError> {
        let (_, support) = self.parts()?;
        if let (Some(w), false) = (&loaded.workspaces, self.exact)
            && support.guards(w.addresses.iter().map(|at| at + w.bytes), GUARD, &self.stream)? > 0
        {
            check.wrong = Some("wrote outside its workspace".into());
        }
        Ok(())
    }

    /// Whether a candidate that just ran on `ran` sets, whose outputs were poisoned before, is still right, and stays so:
    /// in its graph, as it is timed, where there is one, and in launches one close behind the other. It runs on its own
    /// results with some of them spoiled, which one that takes what it finds for its own does not write again, and on
    /// poison.
    fn recheck(&self, loaded: &Loaded, ran: usize, graph: Option<&Graph>) -> Result<Check, BackendError> {
        let mut check = Check::default();
        self.compare(0..ran, &mut check)?;
        if let (Some(graph), None) = (graph, &check.wrong) {
            (0..ran).try_for_each(|set| self.spoil(set, unpredictable()))?;
            self.replay(graph)?;
            self.compare(0..ran, &mut check)?;
        }
        if check.wrong.is_none() {
            let set = (unpredictable() % ran.max(1) as u64) as usize;
            loaded.bound[set].launch(&self.stream)?;
            self.spoil(set, unpredictable())?;
            loaded.bound[set].launch(&self.stream)?;
            self.compare(set..set + 1, &mut check)?;
        }
        if check.wrong.is_none() {
            self.poison(0)?;
            loaded.bound[0].launch(&self.stream)?;
            self.compare(0..1, &mut check)?;
        }
        self.look_beyond(loaded, &mut check)?;
        Ok(check)
    }

    /// What is to be said of a candidate that changed what it must not; it is as it was afterwards.
    fn look_after(&self) -> Result<Option<String>, BackendError> {
        let (state, _) = self.parts()?;
        Ok(self.made_good(state)?.map(|at| state.watched.blame[at].clone()))
    }

    /// The first of what is looked after of a state that is not as it was; it is afterwards.
    fn made_good(&self, state: &State) -> Result<Option<usize>, BackendError> {
        let Some((_, support)) = &self.support else { return Ok(None) };
        let sums = || support.sums(&state.watched.ranges, &self.stream);
        let Some(at) = sums()?.iter().zip(&state.watched.sums).position(|(now, then)| now != then) else {
            return Ok(None);
        };
        self.fill(state)?;
        if sums()? != state.watched.sums {
            return Err(BackendError::Measurement("inputs that were changed cannot be made again".into()));
        }
        Ok(Some(at))
    }

    /// All that is looked after of a state: between tensors, the inputs, and the references.
    fn watch(&self, state: &State) -> (Vec<(u64, u64)>, Vec<String>) {
        let (mut ranges, mut blame) = (Vec::new(), Vec::new());
        let mut add = |at: u64, end: u64, what: String| {
            ranges.push((at, end - at));
            blame.push(what);
        };
        let outside = |t: &Tensor| format!("{}: wrote outside its memory", t.name);
        for set in &state.sets {
            for (i, (t, at)) in state.tensors.iter().zip(set).enumerate() {
                let end = at + t.bytes();
                if t.role == Role::In {
                    add(*at, end, format!("{}: an input was changed", t.name));
                }
                if self.exact {
                    continue;
                }
                if i == 0 {
                    add(at - GUARD, *at, outside(t));
                }
                // All bytes from the last of a tensor to the first of the next.
                add(end, set.get(i + 1).copied().unwrap_or(end + GUARD), outside(t));
            }
        }
        for (t, r) in state.tensors.iter().zip(&state.references) {
            for buffer in r.iter().flat_map(|r| [&r.values, &r.stats]) {
                add(buffer.address(), buffer.address() + buffer.len(), outside(t));
            }
        }
        (ranges, blame)
    }

    /// Memory for the tensors, how much of it is used, and their addresses in each set: all sets in one arena, every tensor between guards and
    /// aligned to 1 KiB as bulk copies like it; or one set of exact allocations.
    fn layout(
        &mut self,
        problem: &Problem,
        tensors: &[Tensor],
        single: bool,
    ) -> Result<(Memory, Vec<Vec<u64>>), BackendError> {
        if self.exact {
            let exact = |t: &Tensor| Ok((Buffer::new(&self.context, t.bytes())?, t.bytes()));
            let memory: Memory = tensors.iter().map(exact).collect::<Result<_, BackendError>>()?;
            let set = memory.iter().map(|(m, _)| m.address()).collect();
            return Ok((memory, vec![set]));
        }
        let mut offsets = Vec::new();
        let mut stride = GUARD;
        for t in tensors {
            offsets.push(stride);
            stride = (stride + t.bytes() + GUARD).next_multiple_of(1024);
        }
        let sets = (2 * self.device.l2).div_ceil(problem.bytes().max(1)).clamp(1, MAX_SETS);
        let sets = if single { 1 } else { sets.min((self.device.memory / 3 / stride).max(1)) };
        let used = stride * sets + GUARD;
        // What is put by must not hold much more than it needs; what is too large for that gives it back at its end.
        let each = self.share(PUT_BY_EACH);
        let fits = |spare: &mut Buffer| used <= spare.len() && (spare.len() <= SPARE * used || used > each);
        let arena = match self.spare.take_if(fits) {
            Some(spare) => spare,
            None => Buffer::new(&self.context, used)?,
        };
        let set = |s| offsets.iter().map(|o| arena.address() + s * stride + o).collect();
        let sets = (0..sets).map(set).collect();
        Ok((vec![(arena, used)], sets))
    }

    fn share(&self, of: f64) -> u64 {
        (self.device.memory as f64 * of) as u64
    }

    /// Puts the last problem by for when its turn comes again.
    fn put_by(&mut self) {
        let Some(state) = self.state.take() else { return };
        if self.exact || state.setup.single || state.bytes() > self.share(PUT_BY_EACH) {
            return self.let_go(state);
        }
        self.put_by.push(state);
    }

    /// Lets those go that have waited longest, as far as what is put by takes too much.
    fn let_oldest_go(&mut self) {
        let most = self.share(PUT_BY);
        while self.put_by.iter().map(State::bytes).sum::<u64>() > most {
            let oldest = self.put_by.remove(0);
            self.let_go(oldest);
        }
    }

    /// Lets a problem go; the largest arena stays.
    fn let_go(&mut self, state: State) {
        self.bests.insert(state.setup.problem, state.best_s.get());
        if !self.exact {
            self.spare = state.memory.into_iter().map(|(m, _)| m).chain(self.spare.take()).max_by_key(Buffer::len);
        }
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

    /// A graph of the right length for this candidate, how many launches it holds, and whether it takes much longer than the best so far:
    /// then it is as short as can be.
    fn timed_graph(&self, loaded: &Loaded, best_s: f64) -> Result<(Graph, usize, bool), BackendError> {
        let sets = loaded.bound.len();
        let probe = self.graph(loaded, sets)?;
        self.replay(&probe)?;
        let replay_s = self.replay(&probe)?;
        let each = replay_s / sets as f64;
        let behind = replay_s - EVENTS_S > BEHIND * best_s * sets as f64;
        let wanted = ((REPLAY_S / each).ceil() as usize).clamp(1, MAX_NODES).next_multiple_of(sets);
        if behind || wanted <= sets {
            return Ok((probe, sets, behind));
        }
        let graph = self.graph(loaded, wanted)?;
        self.replay(&graph)?;
        Ok((graph, wanted, false))
    }

    /// Why a time cannot be: no memory, cache or multiprocessor is so fast.
    fn doubt(&self, us: f64) -> Result<Option<Doubt>, BackendError> {
        let (state, _) = self.parts()?;
        let (c, d) = (&self.device.ceilings, &self.device);
        let inputs: u64 = state.tensors.iter().filter(|t| t.role == Role::In).map(|t| t.storage.bytes(t.touched)).sum();
        // Small inputs may be served from the L2 in part; only what exceeds it must come from memory.
        let beyond = inputs.saturating_sub(if state.cold { 0 } else { d.l2 });
        let problem = &state.setup.problem;
        // A short kernel may run at a higher clock than the measured rate did; what a generation that is not known may
        // reach is not known either.
        let rate = self.most.map_or(f64::INFINITY, |most| most.or(*c).flops(problem.types()));
        let rates = (beyond as f64 / c.read).max(problem.flops() / rate) * FLOOR_SHARE;
        let hz = d.silicon.get("clock_khz").and_then(|khz| khz.parse::<f64>().ok()).unwrap_or(0.0) * 1e3;
        let cached = if hz > 0.0 { inputs as f64 / (f64::from(d.units) * L2_BYTES * hz) } else { 0.0 } * FLOOR_SHARE;
        let floor = rates.max(cached) * 1e6;
        Ok((us < floor).then(|| Doubt::Implausible(format!("{us:.2} µs is under the floor of {floor:.2} µs"))))
    }

    /// Makes a problem's inputs and references.
    fn make(&mut self, setup: &Setup) -> Result<State, BackendError> {
        let problem = setup.problem;
        let tensors = problem.tensors();
        let twice_l2 = 2 * self.device.l2;
        let (memory, sets) = self.layout(&problem, &tensors, setup.single)?;
        let cold = problem.bytes() * sets.len() as u64 >= twice_l2;
        if self.flush.is_none() && !setup.single {
            let flush = Buffer::new(&self.context, twice_l2 + (32 << 20))?;
            flush.fill(1, &self.stream)?;
            self.flush = Some(flush);
        }
        let reference = |t: &Tensor| match t.role {
            Role::In => Ok(None),
            Role::Out => {
                let values = Buffer::new(&self.context, t.len() * 8)?;
                Ok(Some(Reference { values, stats: Buffer::new(&self.context, 16)?, known: None }))
            }
        };
        let references = tensors.iter().map(reference).collect::<Result<_, BackendError>>()?;
        let watched = Watched { ranges: Ranges::new(&self.context, &[])?, blame: Vec::new(), sums: Vec::new() };
        let strange = false;
        let best_s = Cell::new(self.bests.get(&problem).copied().unwrap_or(f64::INFINITY));
        let mut state =
            State { setup: setup.clone(), tensors, sets, memory, references, cold, watched, strange, best_s };
        self.fill(&state)?;
        for r in state.references.iter_mut().flatten() {
            let mut known = [0; 16];
            r.stats.read(0, &mut known)?;
            r.known = Some(known);
        }
        let (ranges, blame) = self.watch(&state);
        let ranges = Ranges::new(&self.context, &ranges)?;
        if let Some((_, support)) = &self.support {
            let sums = support.sums(&ranges, &self.stream)?;
            state.watched = Watched { ranges, blame, sums };
        }
        Ok(state)
    }

    /// Makes what a state holds: poison everywhere, then inputs and references.
    fn fill(&self, state: &State) -> Result<(), BackendError> {
        state.memory.iter().try_for_each(|(m, used)| m.fill_first(*used, 0xff, &self.stream))?;
        let Setup { problem, seed, .. } = state.setup;
        self.fill_inputs(state, &Inputs::new(&problem, seed), seed, &state.sets)
    }

    /// Puts inputs into these sets and makes their references, which are compared with the host's in part.
    fn fill_inputs(&self, state: &State, inputs: &Inputs, seed: u64, sets: &[Vec<u64>]) -> Result<(), BackendError> {
        let (State { setup, tensors, references, .. }, Some((_, support))) = (state, &self.support) else {
            return Err(BackendError::Measurement("no support code is loaded".into()));
        };
        let problem = setup.problem;
        let unused = inputs.unused();
        for input in inputs.iter() {
            let Some(i) = tensors.iter().position(|t| t.name == input.tensor.name) else { continue };
            let mut host = None;
            for set in sets {
                if !support.fill(input, problem.types().y, set[i], &self.stream)? {
                    let host = host.get_or_insert_with(|| written(input));
                    // SAFETY: the tensor lies inside its set's memory.
                    unsafe { super::driver::copy_in(&self.context, set[i], host) }?;
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
        let mut addresses = sets[0].clone();
        for (address, r) in addresses.iter_mut().zip(references) {
            if let Some(Reference { values, .. }) = r {
                values.fill(0xff, &self.stream)?;
                *address = values.address();
            }
        }
        let Some(runnable) = &setup.reference else {
            return Err(BackendError::Measurement("a CUDA session needs the reference's code".into()));
        };
        let executable = self.executable(runnable, tensors)?;
        let workspace = Buffer::new(&self.context, runnable.launch.workspace)?;
        // SAFETY: inputs and references of the problem's sizes, which outlive the one launch: it is waited for.
        let bound = unsafe { executable.bind(&addresses, workspace.address()) }?;
        bound.launch(&self.stream)?;
        self.stream.synchronize()?;
        spot_check(state, inputs, seed)?;
        for (t, r) in tensors.iter().zip(references) {
            match r {
                Some(Reference { stats, known: Some(known), .. }) => stats.write(0, known)?,
                Some(Reference { values, stats, known: None }) => {
                    support.reference_stats(values.address(), t.len(), stats, &self.stream)?;
                }
                None => {}
            }
        }
        self.stream.synchronize()
    }

    /// Checks what is loaded, and times it where `rounds` are asked for.
    fn tried(&self, loaded: &Loaded, begun: Instant, rounds: u32) -> Result<Tried, BackendError> {
        let mut check = self.check(loaded)?;
        // What it did to others says more than what came of it.
        check.wrong = self.look_after()?.or(check.wrong);
        let blocks_per_sm = loaded.executable.blocks_per_sm()?;
        let mut tried = Tried { check, doubt: None, series: None, blocks_per_sm, verifying_s: 0.0, measuring_s: 0.0 };
        // A memory checker makes each launch so slow that those which it is to see are enough.
        if tried.check.wrong.is_none() && !(self.exact && rounds == 0) {
            self.poison_all()?;
            let start = Instant::now();
            let (all, mut ran) = (loaded.bound.len(), 0);
            if rounds > 0 {
                ran = all;
                let best_s = &self.parts()?.0.best_s;
                let (graph, nodes, behind) = self.timed_graph(loaded, best_s.get())?;
                let mut series = Series::default();
                for _ in 0..if behind { rounds.min(BEHIND_ROUNDS) } else { rounds } {
                    series.us.push(self.replay(&graph)? / nodes as f64 * 1e6);
                }
                tried.series = Some(series);
            } else {
                while goes_on(ran, start.elapsed().as_secs_f64()) {
                    loaded.bound[ran % all].launch(&self.stream)?;
                    self.stream.synchronize()?;
                    ran += 1;
                }
            }
            let timed = start.elapsed().as_secs_f64();
            let later = self.recheck(loaded, ran.min(all), None)?;
            tried.doubt = unstable(self.look_after()?.or(later.wrong));
            if let (Some(series), None) = (&tried.series, &tried.doubt) {
                tried.doubt = self.doubt(series.median())?;
                tried.measuring_s = timed;
                if tried.doubt.is_none() {
                    let best_s = &self.parts()?.0.best_s;
                    best_s.set(best_s.get().min(series.median() * 1e-6));
                }
            }
        }
        tried.verifying_s = begun.elapsed().as_secs_f64() - tried.measuring_s;
        Ok(tried)
    }

    /// Whether what is loaded, and was right, computes its results of what its inputs hold: others come into the memory of the first set,
    /// where the results of those before still are, and then such as random ones hardly are.
    fn renew(&mut self, loaded: &Loaded) -> Result<Option<Doubt>, BackendError> {
        let Some(state) = &self.state else { return Ok(None) };
        let (problem, seed) = (state.setup.problem, renewed(state.setup.seed));
        if let Some(why) = self.wrong_on(loaded, &Inputs::new(&problem, seed), seed)? {
            return Ok(Some(stale(why)));
        }
        let Some(extreme) = Inputs::extreme(&problem, seed) else { return Ok(None) };
        let wrong = self.wrong_on(loaded, &extreme, seed)?;
        Ok(wrong.map(|why| Doubt::Unstable(format!("on extreme inputs: {why}"))))
    }

    /// What is wrong with the results of the first set on these inputs.
    fn wrong_on(&mut self, loaded: &Loaded, inputs: &Inputs, seed: u64) -> Result<Option<String>, BackendError> {
        let Some(mut state) = self.state.take() else { return Ok(None) };
        state.strange = true;
        let known: Vec<_> = state.references.iter_mut().map(|r| r.as_mut().and_then(|r| r.known.take())).collect();
        self.fill_inputs(&state, inputs, seed, &state.sets[..1])?;
        // Where it writes follows from the inputs too, and what it must leave is seen on poison.
        for (t, at) in state.tensors.iter().zip(&state.sets[0]).filter(|(t, _)| t.is_sparse()) {
            // SAFETY: the tensor lies inside its set's memory.
            unsafe { super::driver::fill(*at, t.bytes(), 0xff, &self.stream) }?;
        }
        for (r, known) in state.references.iter_mut().zip(known) {
            if let Some(r) = r {
                r.known = known;
            }
        }
        self.state = Some(state);
        loaded.bound[0].launch(&self.stream)?;
        self.stream.synchronize()?;
        let mut check = Check::default();
        self.compare(0..1, &mut check)?;
        Ok(check.wrong)
    }

    /// Makes inputs and references again, where others came into their memory.
    fn restore(&mut self) -> Result<(), BackendError> {
        if let Some(state) = self.state.as_ref().filter(|state| state.strange) {
            self.fill(state)?;
        }
        if let Some(state) = &mut self.state {
            state.strange = false;
        }
        Ok(())
    }

    /// Runs these in turn until the clock is what it stays at under them, where operations bound the problem.
    fn settle(&self, finalists: &[Finalist]) -> Result<(), BackendError> {
        let (state, _) = self.parts()?;
        let start = Instant::now();
        while !self.device.roofline(&state.setup.problem).1 && start.elapsed().as_secs_f64() < SETTLING_S {
            finalists.iter().try_for_each(|f| self.replay(&f.graph).map(drop))?;
        }
        Ok(())
    }

    fn finalist(&self, candidate: &Runnable) -> Result<Finalist, BackendError> {
        let loaded = self.load(candidate)?;
        let (graph, nodes, _) = self.timed_graph(&loaded, f64::INFINITY)?;
        Ok(Finalist { loaded, graph, nodes })
    }
}

/// What an input holds, made here: its size may be that of a large product's weights.
fn written(input: &Input) -> Vec<u8> {
    const EACH: u64 = 1 << 18;
    let mut bytes = vec![0; input.tensor.bytes() as usize];
    let chunks = bytes.par_chunks_mut(input.tensor.storage.bytes(EACH) as usize).enumerate();
    chunks.for_each(|(i, chunk)| input.write(i as u64 * EACH, chunk));
    bytes
}

/// What a second check found, as a doubt of the first.
fn unstable(wrong: Option<String>) -> Option<Doubt> {
    wrong.map(Doubt::Unstable)
}

impl Session for CudaSession {
    fn device(&self) -> &Device {
        &self.device
    }

    fn ceilings(&mut self, support: &Artifact) -> Result<Ceilings, BackendError> {
        self.support(support)?;
        self.put_by();
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
        let tf32 = half / 2.0;
        let single = Ceilings::single_by_tf32(tf32).max(ceilings.single);
        *ceilings = Ceilings { read, copy, half, tf32, single, measured: true };
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
        self.put_by();
        if let Some(at) = self.put_by.iter().position(|state| state.setup == *setup) {
            let state = self.put_by.remove(at);
            // Candidates of others ran since.
            match self.made_good(&state) {
                Ok(_) => {
                    self.state = Some(state);
                    return Ok(());
                }
                Err(e) if e.is_fault() => return Err(e),
                Err(_) => self.let_go(state),
            }
        }
        self.let_oldest_go();
        let state = match self.make(setup) {
            Err(e) if !e.is_fault() && (!self.put_by.is_empty() || self.spare.is_some()) => {
                // It may be the memory, of which all that is kept for later gives its own back.
                std::mem::take(&mut self.put_by).into_iter().for_each(|state| self.let_go(state));
                self.spare = None;
                self.make(setup)
            }
            made => made,
        };
        self.state = Some(state?);
        Ok(())
    }

    fn attempt(&mut self, candidate: &Runnable, rounds: u32) -> Result<Tried, BackendError> {
        let begun = Instant::now();
        self.restore()?;
        let loaded = self.load(candidate)?;
        self.tried(&loaded, begun, rounds)
    }

    fn finals(&mut self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Timed>, BackendError> {
        self.restore()?;
        let mut timed = Vec::new();
        // Where something was changed in the rounds they are held once more, and after each replay it is looked who did it.
        for looking in [false, true] {
            timed = vec![Timed::default(); candidates.len()];
            let mut finalists = Vec::new();
            for (candidate, t) in candidates.iter().zip(&mut timed) {
                finalists.push(self.finalist(candidate)?);
                if looking {
                    t.doubt = unstable(self.look_after()?);
                }
            }
            if rounds >= SETTLED_ROUNDS {
                self.settle(&finalists)?;
            }
            for _ in 0..rounds {
                for (f, t) in finalists.iter().zip(&mut timed).filter(|(_, t)| t.doubt.is_none()) {
                    t.series.us.push(self.replay(&f.graph)? / f.nodes as f64 * 1e6);
                    t.series.mhz.push(self.sensors.as_ref().map_or(0, Sensors::mhz));
                    if looking {
                        t.doubt = unstable(self.look_after()?);
                    }
                }
            }
            if !looking && self.look_after()?.is_some() {
                continue;
            }
            let mut series: Vec<Series> = timed.iter_mut().map(|t| std::mem::take(&mut t.series)).collect();
            gate_clocks(&mut series);
            for ((f, t), series) in finalists.iter().zip(&mut timed).zip(series) {
                t.series = series;
                if t.doubt.is_none() {
                    self.poison_all()?;
                    self.replay(&f.graph)?;
                    let later = self.recheck(&f.loaded, f.loaded.bound.len(), Some(&f.graph))?;
                    t.doubt = unstable(self.look_after()?.or(later.wrong)).or(self.doubt(t.series.median())?);
                }
            }
            break;
        }
        Ok(timed)
    }

    fn verify(&mut self, candidate: &Runnable, elements: &[Element]) -> Result<(Tried, Vec<f64>), BackendError> {
        let begun = Instant::now();
        self.restore()?;
        let loaded = self.load(candidate)?;
        let mut tried = self.tried(&loaded, begun, 0)?;
        let (state, _) = self.parts()?;
        let mut values = vec![f64::NAN; elements.len()];
        for (t, at) in state.tensors.iter().zip(&state.sets[0]) {
            let mine = elements.iter().zip(&mut values).filter(|(e, _)| e.tensor == t.name && e.index < t.len());
            if t.bytes() <= WHOLE_BYTES {
                let mut bytes = vec![0; t.bytes() as usize];
                // SAFETY: the tensor lies inside its set's memory.
                unsafe { super::driver::copy_out(&self.context, *at, &mut bytes) }?;
                mine.for_each(|(e, value)| *value = t.storage.value(&bytes, e.index));
                continue;
            }
            let size = t.storage.bytes(1);
            for (e, value) in mine {
                let mut bytes = vec![0; size as usize];
                // SAFETY: as above.
                unsafe { super::driver::copy_out(&self.context, at + e.index * size, &mut bytes) }?;
                *value = t.storage.value(&bytes, 0);
            }
        }
        if tried.check.wrong.is_none() && tried.doubt.is_none() {
            tried.doubt = self.renew(&loaded)?;
        }
        tried.verifying_s = begun.elapsed().as_secs_f64();
        Ok((tried, values))
    }
}

/// Compares a few elements of the device's reference with the host's: the two are written apart from each other.
fn spot_check(state: &State, inputs: &Inputs, seed: u64) -> Result<(), BackendError> {
    let mut host = expected(
        &state.setup.problem,
        inputs,
        seed,
        SPOT_BUDGET.min((state.setup.problem.op().unit_cost)(&state.setup.problem) * 16),
    );
    let step = (host.len() / SPOT_CHECKS).max(1);
    host = host.into_iter().step_by(step).collect();
    for e in host {
        let Some(i) = state.tensors.iter().position(|t| t.name == e.tensor) else { continue };
        let Some(r) = &state.references[i] else { continue };
        let mut raw = [0u8; 8];
        r.values.read(e.index * 8, &mut raw)?;
        let device = f64::from_le_bytes(raw);
        // Both are f64; they differ only in the order of sums.
        let error = (device - e.value).abs();
        if error.is_nan() || error > 1e-6 * (1.0 + e.value.abs()) {
            return Err(BackendError::Measurement(format!(
                "{}: the reference on the device has {}[{}] = {device}, the host has {}",
                state.setup.problem, e.tensor, e.index, e.value
            )));
        }
    }
    Ok(())
}
