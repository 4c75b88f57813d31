//! Timing candidates: replays of graphs on cold memory, one candidate alone or several in turn.

use super::checks::unstable;
use super::{CudaSession, Loaded};
use crate::backend::BackendError;
use crate::backend::cuda::driver::Graph;
use crate::backend::cuda::nvml::Sensors;
use crate::backend::session::{Runnable, Series, Timed, gate_clocks};
use std::time::Instant;

/// A replay should last at least this long, so that its own launch is small beside it.
const REPLAY_S: f64 = 300e-6;
/// Most launches in one graph.
const MAX_NODES: usize = 256;
/// A candidate that takes so many times what the best so far does is timed by so few rounds of a short graph, of which the events
/// themselves take this long at most.
const BEHIND: f64 = 1.25;
pub(super) const BEHIND_ROUNDS: u32 = 2;
const EVENTS_S: f64 = 4e-6;
/// How long the finalists of a problem that operations bound run before they are timed: a GPU at its power limit takes 40 ms to lower
/// its clock, by a sixth and more, and which of two tiles is faster hangs on it.
const SETTLING_S: f64 = 0.04;
/// Rounds that say what a candidate takes; fewer only say who is timed again.
const SETTLED_ROUNDS: u32 = 12;

/// A finalist, as it is timed.
struct Finalist {
    loaded: Loaded,
    graph: Graph,
    nodes: usize,
}

impl CudaSession {
    /// Builds the graph that is replayed: launches over all sets in turn.
    fn graph(&self, loaded: &Loaded, nodes: usize) -> Result<Graph, BackendError> {
        Graph::capture(&self.stream, || -> Result<(), BackendError> {
            (0..nodes).try_for_each(|i| loaded.bound[i % loaded.bound.len()].launch(&self.stream))
        })
    }

    /// Seconds of one replay with cold memory.
    pub(super) fn replay(&self, graph: &Graph) -> Result<f64, BackendError> {
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
    pub(super) fn timed_graph(&self, loaded: &Loaded, best_s: f64) -> Result<(Graph, usize, bool), BackendError> {
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

    /// Times these in turn, and checks each again afterwards.
    pub(super) fn timed(&self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Timed>, BackendError> {
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
}
