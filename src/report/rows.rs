//! The lines of `rows.jsonl`, as docs/peers.md ("What a run keeps") has them: `jitune compare` writes these very types, a
//! report is made of them alone. Fields of a later version are passed over.

use crate::device::Device;
use crate::model::Phase;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// What was run, and where: the first line.
    Run(Box<Run>),
    /// A problem, before its rows.
    Problem(Box<ProblemLine>),
    /// One way of one peer on one problem.
    Row(Box<Row>),
    /// How far the same program differs from itself.
    Noise(Noise),
    /// What the hardware did at one moment.
    Trace(Trace),
    /// The run's end; missing where the run was killed.
    End(End),
}

impl Line {
    /// The line as it stands in the file, without its end of line.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// What was run, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Seconds since 1970.
    pub at: u64,
    /// The version of jitune.
    pub jitune: String,
    /// The command line.
    pub command: String,
    /// The model whose plan was compared.
    pub model: Option<String>,
    /// The device, with its measured ceilings.
    pub device: Option<Device>,
    /// What the host is, by name: its processor, kernel, driver, compilers.
    #[serde(default)]
    pub host: BTreeMap<String, String>,
    /// Rounds of each row.
    pub rounds: u32,
    /// Whether it was the short comparison.
    #[serde(default)]
    pub quick: bool,
    /// The peers that were asked for, here or not.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A peer of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub peer: String,
    /// Its version.
    pub version: Option<String>,
    /// The device as the peer names it.
    pub device: Option<String>,
    /// The libraries under it, with their versions.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
    /// Whether it could be measured.
    pub here: bool,
    /// Why not.
    pub why: Option<String>,
    /// The one command that brings it.
    pub fix: Option<String>,
}

/// A problem of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProblemLine {
    /// Its textual form.
    pub problem: String,
    /// The op's name.
    pub op: String,
    /// Where the model calls it; empty outside of a model.
    #[serde(default)]
    pub calls: Vec<Calls>,
    /// Floating-point operations.
    pub flops: f64,
    /// Compulsory bytes.
    pub bytes: u64,
    /// The least time that the device's ceilings allow.
    pub roofline_us: f64,
    /// Whether bytes rather than operations set that time.
    pub memory_bound: bool,
    /// What tuning chose.
    pub winner: Option<WinnerLine>,
    /// Each trial of the tuning run in order: seconds since its start, and the trial's microseconds.
    #[serde(default)]
    pub history: Vec<(f64, f64)>,
}

/// How often one forward pass calls a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// What it is in the model.
    pub role: String,
    /// The phase.
    pub phase: Phase,
    /// Batch of a decode step, tokens of a prompt.
    pub bucket: i64,
    /// Calls in one forward pass.
    pub calls: i64,
}

/// What tuning chose for a problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WinnerLine {
    /// The template.
    pub template: String,
    /// The config, as text.
    pub config: String,
    /// Candidates that were tried.
    #[serde(default)]
    pub trials: u32,
    /// Candidates that were rejected, by reason.
    #[serde(default)]
    pub rejected: BTreeMap<String, u32>,
    /// Registers a thread.
    pub registers: Option<u32>,
    /// Shared memory of a block in bytes.
    pub shared_bytes: Option<u64>,
    /// Bytes of spills.
    pub spills: Option<u32>,
    /// Blocks that fit one multiprocessor at a time.
    pub blocks_per_sm: Option<u32>,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Right, and timed.
    Ok,
    /// Its values differ from the reference.
    Wrong,
    /// It did not work.
    #[default]
    Failed,
    /// The peer has no such thing.
    Unsupported,
    /// The run ended before it was done.
    Cut,
}

/// Which time a row's rates and ratio use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The kernels alone, replayed from a CUDA graph.
    #[default]
    Kernel,
    /// With the costs of calling.
    Called,
}

/// One way of one peer on one problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The problem's textual form.
    pub problem: String,
    /// The peer.
    pub peer: String,
    /// Its way.
    pub way: String,
    /// The peer's version.
    pub version: Option<String>,
    /// What is called, in a few words.
    #[serde(default)]
    pub how: String,
    /// `all`, or what is covered of the problem.
    pub covers: String,
    /// What became of it.
    pub state: State,
    /// Why it has no time, or what else there is to know.
    pub why: Option<String>,
    /// The time of the kernels alone.
    pub kernel: Option<Times>,
    /// The time with the costs of calling.
    pub called: Option<Times>,
    /// Which of the two the following use.
    #[serde(default)]
    pub basis: Basis,
    /// 10^12 floating-point operations a second.
    pub tflops: Option<f64>,
    /// 10^9 compulsory bytes a second.
    pub gbs: Option<f64>,
    /// The roofline's time over its time.
    pub roofline_share: Option<f64>,
    /// Its time over that of jitune's winner on the same basis; none for ours.
    pub ratio: Option<f64>,
    /// Whether its interval overlaps with that of jitune's winner.
    #[serde(default)]
    pub tie: bool,
    /// Root mean square error over that of the f64 reference.
    pub error_rms: Option<f64>,
    /// Largest scaled error.
    pub error_max: Option<f64>,
    /// Whether its error is beyond jitune's own limit, though not so far that it counts as wrong: it is in no mean.
    #[serde(default)]
    pub less_accurate: bool,
    /// Output elements compared.
    #[serde(default)]
    pub compared: u64,
    /// The usual clock while it was timed.
    pub clock_mhz: Option<f64>,
    /// Reasons for lower clocks that were seen while it was timed.
    #[serde(default)]
    pub throttled: Vec<String>,
    /// What hardware counters say.
    pub counters: Option<Counters>,
    /// Seconds that its peer took to set the problem up: copying, compiling, autotuning.
    #[serde(default)]
    pub setup_s: Option<f64>,
}

impl Row {
    /// The times that its rates and ratio use.
    pub fn times(&self) -> Option<&Times> {
        match self.basis {
            Basis::Kernel => self.kernel.as_ref(),
            Basis::Called => self.called.as_ref(),
        }
    }
}

/// The median of a row's rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Microseconds.
    pub median_us: f64,
    /// Lower end of the median's 95% interval.
    pub low_us: f64,
    /// Upper end.
    pub high_us: f64,
    /// Each round.
    #[serde(default)]
    pub samples_us: Vec<f64>,
}

/// Hardware counters of one call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// `ncu` or `driver`.
    pub source: String,
    /// Share of time that the tensor cores were busy.
    pub tensor_pct: Option<f64>,
    /// Warps resident, of those that fit.
    pub occupancy_pct: Option<f64>,
    /// Share of the memory's rate.
    pub dram_pct: Option<f64>,
    /// Share of the L2's rate.
    pub l2_pct: Option<f64>,
    /// Kernels of a call.
    pub kernels: Option<u32>,
    /// Registers a thread.
    pub registers: Option<u32>,
    /// Shared memory of a block in bytes.
    pub shared_bytes: Option<u64>,
}

/// How far the same program, entered twice, differs from itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Each problem's two times.
    #[serde(default)]
    pub pairs: Vec<Pair>,
    /// The largest |ratio − 1| of those above 5 µs.
    pub worst: Option<f64>,
}

/// Two times of the same program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The problem.
    pub problem: String,
    /// The second time over the first.
    pub ratio: f64,
    /// The first in microseconds.
    pub us: f64,
}

/// What the hardware did at one moment; what cannot be read is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Seconds since the run's start.
    pub t: f64,
    /// Clock of the multiprocessors (of the cores) in MHz.
    pub sm_mhz: Option<f64>,
    /// Clock of the memory in MHz.
    pub mem_mhz: Option<f64>,
    /// Power in watts.
    pub power_w: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temp_c: Option<f64>,
    /// Share of time in which a kernel ran.
    pub gpu_pct: Option<f64>,
    /// Share of time in which memory was read or written.
    pub mem_pct: Option<f64>,
    /// Bytes of memory in use.
    pub mem_bytes: Option<u64>,
    /// Reasons for lower clocks.
    #[serde(default)]
    pub throttle: Vec<String>,
}

/// The end of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// How long it took.
    pub seconds: f64,
    /// Whether it was stopped before its end.
    #[serde(default)]
    pub cut: bool,
}
