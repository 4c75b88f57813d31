//! Checking and timing candidates on a GPU.
//!
//! Inputs are filled on the device and the f64 reference is computed there too, then spot-checked against the host's.
//! Everything lies in one arena of several sets: timing rotates through the sets, and reads other memory between the
//! replays where the sets together are smaller than twice the L2, so that every launch finds cold data. What a candidate
//! must leave as it is (inputs, references, all bytes between tensors) is summed, and looked at again after it ran.

mod checks;
mod prepared;
mod timing;

use super::context::Context;
use super::driver::{Buffer, Event, Module, Stream};
use super::launch::{Bound, Executable};
use super::nvml::Sensors;
use super::support::Support;
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{Element, Runnable, Series, Session, Setup, Timed, Tried, code, goes_on};
use crate::device::{Ceilings, Device};
use crate::problem::{Problem, Storage, Tensor};
use checks::unstable;
use prepared::{GUARD, State};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use timing::BEHIND_ROUNDS;

/// Steps of the matrix products whose rate is measured: a millisecond or so.
const MATRIX_STEPS: u32 = 4096;
/// Workspaces of a candidate, each for some of the sets, and their bytes at most: how far a counter lies from who waits for it, which is its
/// address's to say, is 0.1 µs of a short kernel.
const WORKSPACES: usize = 8;
const WORKSPACE_BYTES: u64 = 256 << 10;
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
        *ceilings = Ceilings { read, copy, half, tf32, single, fma: 0.0, measured: true };
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
        self.timed(candidates, rounds)
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
