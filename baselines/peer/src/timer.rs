//! How calls are timed: rounds of calls that rotate through the sets, with a cold cache before each.

use crate::cuda::{Cuda, CudaError, Graph, Stream};
use crate::protocol::{Refusal, Round};
use crate::{Prepared, Task};
use std::collections::HashMap;
use std::time::Instant;

/// Most calls of one round.
const MAX_CALLS: usize = 256;
/// Bytes that the marker of a profiled call reads.
const MARKER_BYTES: u64 = 4096;
/// Warming up ends when a pass takes this share of the best one or less for the third time.
const SETTLED: f64 = 1.1;

/// Times the ways of one problem.
pub struct Timer {
    sets: usize,
    flush_bytes: u64,
    round_us: f64,
    warm_s: f64,
    cuda: Option<Cuda>,
    memory: Vec<u8>,
    ready: HashMap<usize, Ready>,
}

/// A way that is warm.
struct Ready {
    calls: usize,
    graph: Option<Graph>,
}

impl From<CudaError> for Refusal {
    fn from(e: CudaError) -> Refusal {
        Refusal::failed(e)
    }
}

impl Timer {
    /// For one task. `gpu`: its calls run on the GPU of the current context.
    pub fn new(task: &Task, gpu: bool) -> Result<Timer, Refusal> {
        Ok(Timer {
            sets: task.sets.max(1),
            flush_bytes: task.flush_bytes,
            round_us: task.round_us,
            warm_s: task.warm_s,
            cuda: if gpu { Some(Cuda::new()?) } else { None },
            memory: Vec::new(),
            ready: HashMap::new(),
        })
    }

    /// Warms a way up, and captures it where it can be. Says whether it was captured.
    pub fn warm(&mut self, work: &mut Prepared, way: usize) -> Result<bool, Refusal> {
        if let Some(ready) = self.ready.get(&way) {
            return Ok(ready.graph.is_some());
        }
        let begun = Instant::now();
        let (mut best, mut settled) = (f64::INFINITY, 0);
        loop {
            let us = self.called(work, way, self.sets)?;
            settled += usize::from(us <= best * SETTLED && best.is_finite());
            best = best.min(us);
            if settled >= 3 || begun.elapsed().as_secs_f64() > self.warm_s {
                break;
            }
        }
        let calls = self.calls_for(best);
        let mut ready = Ready { calls, graph: None };
        if let Some(graph) = self.capture(work, way, self.sets) {
            // The graph's calls may be much quicker than single ones, so how many fill a round is found from it.
            let us = self.replay(work, way, &graph).and_then(|_| self.replay(work, way, &graph));
            if let Ok(us) = us {
                ready.calls = self.calls_for(us / self.sets as f64);
                ready.graph = Some(graph);
                if ready.calls > self.sets
                    && let Some(longer) = self.capture(work, way, ready.calls)
                    && self.replay(work, way, &longer).is_ok()
                    && let (Some(short), Some(cuda)) = (ready.graph.replace(longer), &self.cuda)
                {
                    cuda.drop_graph(short);
                } else {
                    ready.calls = self.sets;
                }
            }
        }
        let captured = ready.graph.is_some();
        self.ready.insert(way, ready);
        Ok(captured)
    }

    /// A multiple of the sets that fills a round.
    fn calls_for(&self, us: f64) -> usize {
        let wanted = (self.round_us / us.max(0.1)).ceil() as usize;
        wanted.clamp(1, MAX_CALLS).next_multiple_of(self.sets)
    }

    /// None where the way has no stream, or its calls do something that cannot be captured.
    fn capture(&mut self, work: &mut Prepared, way: usize, calls: usize) -> Option<Graph> {
        let (cuda, stream) = (self.cuda.as_ref()?, work.work.stream(way)?);
        let sets = self.sets;
        let enqueue = || (0..calls).try_for_each(|i| work.work.call(way, i % sets));
        cuda.capture::<Refusal>(stream, enqueue).ok()
    }

    fn replay(&mut self, work: &Prepared, way: usize, graph: &Graph) -> Result<f64, Refusal> {
        let (Some(cuda), Some(stream)) = (&mut self.cuda, work.work.stream(way)) else {
            return Err(Refusal::failed("no stream"));
        };
        Ok(cuda.replay(graph, stream, self.flush_bytes)?)
    }

    /// Microseconds a call by the host's clock.
    fn called(&mut self, work: &mut Prepared, way: usize, calls: usize) -> Result<f64, Refusal> {
        self.flush(work, way)?;
        work.work.wait()?;
        let start = Instant::now();
        for i in 0..calls {
            work.work.call(way, i % self.sets)?;
        }
        work.work.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e6 / calls as f64)
    }

    fn flush(&mut self, work: &Prepared, way: usize) -> Result<(), Refusal> {
        if self.flush_bytes == 0 {
            return Ok(());
        }
        match &mut self.cuda {
            Some(cuda) => {
                // A peer that shows no stream has its work elsewhere, but waits for the device before a round.
                let stream = work.work.stream(way).unwrap_or(Stream::null());
                cuda.flush(stream, self.flush_bytes)?;
                Ok(cuda.wait(stream)?)
            }
            None => {
                self.memory.resize(self.flush_bytes as usize, 1);
                std::hint::black_box(self.memory.iter().step_by(64).map(|b| u64::from(*b)).sum::<u64>());
                Ok(())
            }
        }
    }

    /// One round of a way that is warm, or is warmed now.
    pub fn round(&mut self, work: &mut Prepared, way: usize) -> Result<Round, Refusal> {
        self.warm(work, way)?;
        let Some(mut ready) = self.ready.remove(&way) else { return Err(Refusal::failed("not warm")) };
        let kernel = ready.graph.take().map(|graph| {
            let us = self.replay(work, way, &graph);
            ready.graph = Some(graph);
            us
        });
        let calls = ready.calls;
        self.ready.insert(way, ready);
        let kernel_us = kernel.transpose()?.map(|us| us / calls as f64);
        let called_us = self.called(work, way, calls)?;
        let kernel_us = if self.cuda.is_none() { Some(called_us) } else { kernel_us };
        Ok(Round { kernel_us, called_us, calls: calls as u32 })
    }

    fn profile(&self, on: bool) -> Result<(), Refusal> {
        self.cuda.as_ref().map_or(Ok(()), |c| Ok(c.profile(on)?))
    }

    fn marker(&mut self, work: &Prepared, way: usize) -> Result<(), Refusal> {
        let Some(cuda) = &mut self.cuda else { return Ok(()) };
        let stream = work.work.stream(way).unwrap_or(Stream::null());
        cuda.flush(stream, MARKER_BYTES)?;
        Ok(cuda.wait(stream)?)
    }

    /// One call between a profiler's marks, behind a tiny `flush`.
    pub fn once(&mut self, work: &mut Prepared, way: usize) -> Result<(), Refusal> {
        work.work.call(way, 0)?;
        self.flush(work, way)?;
        work.work.wait()?;
        self.profile(true)?;
        // A kernel that a reader of the profile knows, so that calls are told apart.
        self.marker(work, way)?;
        let called = work.work.call(way, 0).and_then(|()| work.work.wait());
        self.profile(false)?;
        called
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(cuda) = &self.cuda {
            self.ready.drain().filter_map(|(_, r)| r.graph).for_each(|g| cuda.drop_graph(g));
        }
    }
}
