//! Everything that a report of engines says.

use super::baseline::{Baseline, Found};
use super::costs::{Batch, Cost, batches, costs};
use super::criteria::{Criterion, criteria};
use super::entry::{Entry, entries};
use super::facts::Facts;
use super::kernels::KernelPerformanceReport;
use super::noise::Noise;
use super::rankings::{Lacking, Loss, Ranking, WorkloadWinner, lacking, losses, rankings, winners};
use super::read::Runs;
use super::recommend::{Recommendation, recommend};
use crate::engines::rows::{Start, Tokenization};
use serde::Serialize;
use std::collections::BTreeMap;

/// Engines head to head.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LibraryComparisonReport {
    /// The model, as it was given.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// The device of the run; empty where it is not known.
    pub device: String,
    /// Seconds since 1970.
    pub at: u64,
    /// How long the run took in seconds; none where it did not come to its end.
    pub seconds: Option<f64>,
    /// The version of jitune.
    pub jitune: String,
    /// The command line.
    pub command: String,
    /// Rounds: each engine is started once a round.
    pub rounds: u32,
    /// Whether it was the short one.
    pub quick: bool,
    /// Whether it was cut off before its end.
    pub cut: bool,
    /// What the host is, by name.
    pub host: BTreeMap<String, String>,
    /// Dollars an hour by kind of device.
    pub prices: BTreeMap<String, f64>,
    /// Engines that were started, or could not be.
    pub starts: Vec<Start>,
    /// How fast the model's tokenizer is, jitune's code first.
    pub tokenization: Vec<Tokenization>,
    /// Where another engine is better than jitune, the worst first.
    pub losses: Vec<Loss>,
    /// Where jitune has nothing that counts.
    pub lacking: Vec<Lacking>,
    /// Who is first, by workload and metric.
    pub rankings: Vec<Ranking>,
    /// The best engine of each workload.
    pub workload_winners: Vec<WorkloadWinner>,
    /// The success criteria.
    pub criteria: Vec<Criterion>,
    /// What tokens cost.
    pub costs: Vec<Cost>,
    /// How batches scale.
    pub batches: Vec<Batch>,
    /// What to run.
    pub recommendation: Recommendation,
    /// The figures of every engine, workload and precision, in rankings or not.
    pub entries: Vec<Entry>,
    /// How far engines differ from themselves.
    pub noise: Noise,
    /// The kernels behind jitune's engine, where their rows were given.
    pub kernels: Option<KernelPerformanceReport>,
}

/// Sums up a run. `kernels` are the rows of `jitune compare` on the same device; `baseline` says where the CPU engine is that
/// the GPU is held against.
pub fn make(runs: &Runs, kernels: Option<&crate::report::Rows>, baseline: Baseline<'_>) -> LibraryComparisonReport {
    let run = &runs.run;
    let entries = entries(runs, false);
    let kernels = kernels.map(KernelPerformanceReport::of);
    let noise = Noise::of(&entries);
    let found = Found::of(runs, &entries, baseline);
    let rankings = rankings(&entries, &noise);
    let workload_winners = winners(run, &rankings);
    let (costs, batches) = (costs(run, &entries), batches(run, &entries));
    let facts = Facts {
        runs,
        entries: &entries,
        winners: &workload_winners,
        noise: &noise,
        costs: &costs,
        batches: &batches,
        kernels: kernels.as_ref(),
        baseline: &found,
    };
    let (criteria, recommendation) = (criteria(&facts), recommend(&facts));
    LibraryComparisonReport {
        model: run.model.clone(),
        parameters: run.parameters,
        device: run.device.as_ref().map(|d| d.name.clone()).unwrap_or_default(),
        at: run.at,
        seconds: runs.end.as_ref().map(|e| e.seconds),
        jitune: run.jitune.clone(),
        command: run.command.clone(),
        rounds: run.rounds,
        quick: run.quick,
        cut: runs.cut(),
        host: run.host.clone(),
        prices: run.prices.clone(),
        starts: runs.starts.clone(),
        tokenization: runs.tokenization.clone(),
        losses: losses(&rankings, &entries, &noise),
        lacking: lacking(&entries),
        rankings,
        workload_winners,
        criteria,
        costs,
        batches,
        recommendation,
        noise,
        kernels,
        entries,
    }
}
