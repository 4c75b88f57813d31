//! What a caller hears while tuning, and what it has at the end.

use super::Spent;
use crate::device::Device;
use crate::problem::Problem;
use crate::recipe::Config;
use crate::verdict::Verdict;
use crate::winner::Winner;

/// What happens while tuning, for progress displays.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The work is known.
    Plan {
        /// Problems in all, and those that are stored already.
        problems: usize,
        /// Stored already.
        stored: usize,
    },
    /// A device is ready.
    Device {
        /// The device.
        device: Box<Device>,
    },
    /// A problem is begun.
    Problem {
        /// Its place in the plan.
        index: usize,
        /// The problem.
        problem: Problem,
        /// Legal configs.
        space: u64,
        /// Its share of the time.
        budget_s: f64,
    },
    /// A candidate is judged.
    Trial {
        /// The problem.
        problem: Problem,
        /// The template.
        template: String,
        /// The config.
        config: Config,
        /// The verdict.
        verdict: Verdict,
        /// The best so far.
        best_us: f64,
        /// The roofline.
        roofline_us: f64,
        /// Candidates so far.
        trials: u32,
    },
    /// A candidate won the finals, and then was not right: the next finalist is looked at.
    Unstable {
        /// The problem.
        problem: Problem,
        /// Template and config.
        config: String,
        /// What it was then.
        verdict: Verdict,
    },
    /// A problem has its winner.
    Won {
        /// Its place in the plan.
        index: usize,
        /// The winner.
        winner: Box<Winner>,
        /// Whether it was stored before.
        stored: bool,
    },
    /// A problem failed.
    Failed {
        /// Its place in the plan.
        index: usize,
        /// The problem.
        problem: Problem,
        /// Why.
        error: String,
    },
}

/// Hears what happens.
pub trait Observer: Sync {
    /// Called from the threads that tune.
    fn event(&self, event: &Event);
}

/// A problem that has no winner.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Failed {
    /// The problem.
    pub problem: Problem,
    /// Why.
    pub error: String,
}

/// What the compilers of a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Compiling {
    /// Sources that they compiled.
    pub sources: u64,
    /// Seconds of it, summed over the workers.
    pub seconds: f64,
}

/// Hears nothing.
impl Observer for () {
    fn event(&self, _: &Event) {}
}

/// What a run gave on the devices of one kind, which share their winners.
#[derive(Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct OfKind {
    /// The devices, with measured ceilings.
    pub devices: Vec<Device>,
    /// The winner of each problem, where there is one, in the order of the plan.
    pub winners: Vec<Option<Winner>>,
    /// Winners that were stored before and whose search had ended.
    pub stored: usize,
    /// Problems that have no winner.
    pub failed: Vec<Failed>,
    /// Where the measuring workers' time went.
    pub spent: Spent,
}

/// What a run gave.
#[derive(Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What it gave on each kind of device, in the order in which the devices were named.
    pub kinds: Vec<OfKind>,
    /// What the compilers did.
    pub compiling: Compiling,
    /// Wall time.
    pub seconds: f64,
    /// Stopped before the end.
    pub interrupted: bool,
}

impl Report {
    /// The winners on all kinds of devices.
    pub fn winners(&self) -> impl Iterator<Item = &Winner> {
        self.kinds.iter().flat_map(|k| k.winners.iter().flatten())
    }

    /// How many of them were stored before.
    pub fn stored(&self) -> usize {
        self.kinds.iter().map(|k| k.stored).sum()
    }

    /// The problems that have no winner on a kind of device.
    pub fn failed(&self) -> impl Iterator<Item = &Failed> {
        self.kinds.iter().flat_map(|k| &k.failed)
    }
}
