//! What the rows of `jitune compare` say of the kernels behind the engine.

use crate::report::passes::Opportunity;
use crate::report::standing::KindWinner;
use crate::report::summary::Loss;
use crate::report::{Rows, Summary, count, text};
use serde::Serialize;

/// Kernels: who wins each type, how far each of jitune's uses the device, and where time is lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KernelPerformanceReport {
    /// The device's name; empty where it is not known.
    pub device: String,
    /// The model whose plan was compared.
    pub model: Option<String>,
    /// The winner of each type of kernel.
    pub winners: Vec<KindWinner>,
    /// Where jitune's kernel is slower than another's, the worst first.
    pub losses: Vec<Loss>,
    /// jitune's kernels.
    pub kernels: Vec<Kernel>,
    /// Time lost against the roofline × calls of a pass, the most first.
    pub opportunities: Vec<Opportunity>,
}

/// One of jitune's kernels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kernel {
    /// The problem.
    pub problem: String,
    /// The op.
    pub op: String,
    /// The row's label.
    pub label: String,
    /// Microseconds.
    pub us: f64,
    /// Whether bytes rather than operations bound it.
    pub memory_bound: bool,
    /// The roofline's time over its time.
    pub roofline_share: Option<f64>,
    /// Warps resident of those that fit, as a share; by counters.
    pub occupancy: Option<f64>,
    /// Share of the time that the tensor cores were busy; by counters.
    pub tensor: Option<f64>,
    /// Share of the memory's rate; by counters.
    pub memory: Option<f64>,
    /// Where the counters come from.
    pub counters: Option<String>,
    /// Registers a thread.
    pub registers: Option<u32>,
    /// Shared memory of a block in bytes.
    pub shared_bytes: Option<u64>,
    /// Blocks that a multiprocessor holds at a time.
    pub blocks_per_sm: Option<u32>,
}

impl KernelPerformanceReport {
    /// From the rows of a comparison of kernels.
    pub fn of(rows: &Rows) -> KernelPerformanceReport {
        let summary = Summary::of(rows);
        let mut opportunities = summary.opportunities;
        opportunities.retain(|o| o.to_roofline_us > 0.0);
        opportunities.sort_by(|a, b| b.to_roofline_us.total_cmp(&a.to_roofline_us));
        KernelPerformanceReport {
            device: rows.run.device.as_ref().map(|d| d.name.clone()).unwrap_or_default(),
            model: rows.run.model.clone(),
            winners: summary.kinds,
            losses: summary.losses,
            kernels: rows.problems.iter().filter_map(|p| kernel(rows, p)).collect(),
            opportunities,
        }
    }
}

fn kernel(rows: &Rows, p: &crate::report::rows::ProblemLine) -> Option<Kernel> {
    let row = count::ours(rows, &p.problem)?;
    let (counters, winner) = (row.counters.as_ref(), p.winner.as_ref());
    let share = |pct: Option<f64>| pct.map(|v| v / 100.0);
    Some(Kernel {
        problem: p.problem.clone(),
        op: p.op.clone(),
        label: text::label_of(row),
        us: row.times()?.median_us,
        memory_bound: p.memory_bound,
        roofline_share: row.roofline_share,
        occupancy: share(counters.and_then(|c| c.occupancy_pct)),
        tensor: share(counters.and_then(|c| c.tensor_pct)),
        memory: share(counters.and_then(|c| c.dram_pct)),
        counters: counters.map(|c| c.source.clone()),
        registers: counters.and_then(|c| c.registers).or(winner.and_then(|w| w.registers)),
        shared_bytes: counters.and_then(|c| c.shared_bytes).or(winner.and_then(|w| w.shared_bytes)),
        blocks_per_sm: winner.and_then(|w| w.blocks_per_sm),
    })
}
