//! Whether a candidate is right: on poison, on its own results, on other inputs, and by what nothing on the device exceeds.

use super::prepared::GUARD;
use super::{CudaSession, Loaded};
use crate::backend::BackendError;
use crate::backend::cuda::driver::{self, Graph};
use crate::backend::session::{Check, Doubt, renewed, stale, unpredictable};
use crate::problem::{Inputs, Role, Tolerance};

/// A time below this share of what the datasheet rates allow is a broken measurement.
const FLOOR_SHARE: f64 = 0.85;
/// Bytes that a multiprocessor takes from the L2 a cycle, at most.
const L2_BYTES: f64 = 64.0;

impl CudaSession {
    /// Runs the candidate twice on poisoned outputs and compares both results: the second run also shows a workspace
    /// that was not left as it was found.
    pub(super) fn check(&self, loaded: &Loaded) -> Result<Check, BackendError> {
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
                unsafe { driver::fill(*at, t.bytes(), 0xff, &self.stream) }?;
            }
        }
        Ok(())
    }

    pub(super) fn poison_all(&self) -> Result<(), BackendError> {
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
    pub(super) fn recheck(&self, loaded: &Loaded, ran: usize, graph: Option<&Graph>) -> Result<Check, BackendError> {
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

    /// Whether what is loaded, and was right, computes its results of what its inputs hold: others come into the memory of the first set,
    /// where the results of those before still are, and then such as random ones hardly are.
    pub(super) fn renew(&mut self, loaded: &Loaded) -> Result<Option<Doubt>, BackendError> {
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
            unsafe { driver::fill(*at, t.bytes(), 0xff, &self.stream) }?;
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

    /// Why a time cannot be: no memory, cache or multiprocessor is so fast.
    pub(super) fn doubt(&self, us: f64) -> Result<Option<Doubt>, BackendError> {
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
}

/// What a second check found, as a doubt of the first.
pub(super) fn unstable(wrong: Option<String>) -> Option<Doubt> {
    wrong.map(Doubt::Unstable)
}
