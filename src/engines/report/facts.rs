//! All that criteria and recommendations are made of.

use super::baseline::Found;
use super::costs::{Batch, Cost};
use super::entry::Entry;
use super::kernels::KernelPerformanceReport;
use super::noise::Noise;
use super::rankings::WorkloadWinner;
use super::read::Runs;

pub(super) struct Facts<'a> {
    pub runs: &'a Runs,
    pub entries: &'a [Entry],
    pub winners: &'a [WorkloadWinner],
    pub noise: &'a Noise,
    pub costs: &'a [Cost],
    pub batches: &'a [Batch],
    pub kernels: Option<&'a KernelPerformanceReport>,
    pub baseline: &'a Found<'a>,
}
