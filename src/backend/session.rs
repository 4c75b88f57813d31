//! What a measuring session offers, whatever the device: prepare a problem, try a candidate, run the finals.

use super::BackendError;
use crate::artifact::Artifact;
use crate::device::{Ceilings, Device};
use crate::problem::{Expected, Problem, Storage, Tolerance, error_of};
use crate::recipe::Launch;
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, RandomState};

/// Code on disk and how it is launched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Runnable {
    /// The code.
    pub artifact: Artifact,
    /// The launch.
    pub launch: Launch,
}

impl Runnable {
    /// Reads the code and checks its hash.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, BackendError> {
        code(&self.artifact)
    }
}

/// Reads an artifact and checks its hash.
pub(super) fn code(artifact: &Artifact) -> Result<Vec<u8>, BackendError> {
    artifact.bytes().map_err(|source| BackendError::Io { path: artifact.path.clone(), source })
}

/// What a session needs to check and time one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Setup {
    /// The problem.
    pub problem: Problem,
    /// Seed of its inputs.
    pub seed: u64,
    /// CUDA: the support code for the problem's dtype.
    #[serde(default)]
    pub support: Option<Artifact>,
    /// CUDA: the f64 reference.
    #[serde(default)]
    pub reference: Option<Runnable>,
    /// One set of tensors alone: enough to check, too little to time.
    #[serde(default)]
    pub single: bool,
}

/// How far a result was from the reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Check {
    /// Root mean square error over that of the reference, the worst output tensor.
    pub rms: f64,
    /// Largest |error| / (|reference| + rms), the worst output tensor.
    pub max: f64,
    /// How many output elements were compared.
    pub compared: u64,
    /// What is wrong, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong: Option<String>,
}

impl Check {
    /// Takes in what was found of one tensor.
    pub(crate) fn add(&mut self, tensor: &str, found: &TensorCheck, limit: Tolerance) {
        self.rms = self.rms.max(found.rms);
        self.max = self.max.max(found.max);
        self.compared += found.compared;
        let wrong = if found.unwritten > 0 {
            Some(format!("{tensor}: {} elements not written or not finite", found.unwritten))
        } else if found.touched > 0 {
            Some(format!("{tensor}: {} elements written that must stay as they were", found.touched))
        } else if found.mismatches > 0 {
            Some(format!("{tensor}: {} integers differ", found.mismatches))
        } else if found.guard > 0 {
            Some(format!("{tensor}: wrote outside its memory"))
        } else if !(found.rms <= limit.rms && found.max <= limit.max) {
            let (rms, max) = (found.rms, found.max);
            Some(format!(
                "{tensor}: error rms {rms:.2e} (limit {:.0e}), max {max:.2e} (limit {:.0e}), worst at {}",
                limit.rms, limit.max, found.worst
            ))
        } else {
            None
        };
        self.wrong = self.wrong.take().or(wrong);
    }
}

/// Findings for one output tensor.
#[derive(Clone, Debug, Default)]
pub(crate) struct TensorCheck {
    pub rms: f64,
    pub max: f64,
    pub worst: u64,
    pub compared: u64,
    pub unwritten: u64,
    pub touched: u64,
    pub mismatches: u64,
    pub guard: u64,
}

/// Compares expected elements of one output with what it holds.
pub(crate) fn distance<'e>(
    storage: Storage,
    expected: impl Iterator<Item = &'e Expected> + Clone,
    mut got: impl FnMut(&Expected) -> f64,
) -> TensorCheck {
    let squares: f64 = expected.clone().map(|e| e.value * e.value).sum();
    let mut found = TensorCheck { compared: expected.clone().count() as u64, ..TensorCheck::default() };
    let rms = (squares / found.compared.max(1) as f64).sqrt();
    let mut errors = 0.0;
    for e in expected {
        let got = got(e);
        if storage == Storage::I32 {
            found.mismatches += u64::from(got != e.value);
            continue;
        }
        if !got.is_finite() {
            found.unwritten += 1;
            continue;
        }
        let error = error_of(storage, got, e.value);
        errors += error * error;
        let scaled = error / (rms + e.value.abs()).max(f64::MIN_POSITIVE);
        if scaled > found.max {
            (found.max, found.worst) = (scaled, e.index);
        }
    }
    found.rms = (errors / squares.max(f64::MIN_POSITIVE)).sqrt();
    found
}

/// One element of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Element {
    /// The output's name.
    pub tensor: String,
    /// Its flat index.
    pub index: u64,
}

/// A number that code which is tried cannot know before.
pub(crate) fn unpredictable() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Times of one candidate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Series {
    /// Microseconds a launch, one a round.
    pub us: Vec<f64>,
    /// The SM or core clock in MHz of each round, where it can be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mhz: Vec<u32>,
    /// Rounds dropped because the clock had moved.
    #[serde(default)]
    pub dropped: u32,
}

impl Series {
    /// The median in microseconds; infinite when there is no sample.
    pub fn median(&self) -> f64 {
        crate::median::median(&self.us)
    }
}

/// Why the times of a candidate that was right before them mean nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// Its results were not right any more, in the timed rounds or after them; how.
    Unstable(String),
    /// No device is so fast; by how much.
    Implausible(String),
}

/// What came of timing one candidate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timed {
    /// Its times.
    pub series: Series,
    /// Why they mean nothing, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
}

/// What came of trying one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tried {
    /// Its correctness.
    pub check: Check,
    /// Why it is not to be believed, though it was right at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
    /// Its times; absent when it was wrong or timing was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    /// Blocks a multiprocessor holds (CUDA).
    #[serde(default)]
    pub blocks_per_sm: u32,
    /// Seconds spent on loading and checking.
    #[serde(default)]
    pub verifying_s: f64,
    /// Seconds spent on timing.
    #[serde(default)]
    pub measuring_s: f64,
}

/// A device that can check and time candidates of one problem at a time.
pub trait Session {
    /// The device.
    fn device(&self) -> &Device;

    /// Measures the ceilings that rooflines use with the support code, and keeps them in [`Session::device`].
    fn ceilings(&mut self, support: &Artifact) -> Result<Ceilings, BackendError>;

    /// Takes ceilings that another session measured on this device.
    fn assume(&mut self, ceilings: Ceilings);

    /// Makes inputs and reference of a problem, replacing those of the last one.
    fn prepare(&mut self, setup: &Setup) -> Result<(), BackendError>;

    /// Checks a candidate, and if it is right and `rounds` is not zero, times it; then looks again whether it is still right, on
    /// the code as it is loaded. What it did to anything but its outputs is its fault, and undone.
    fn attempt(&mut self, candidate: &Runnable, rounds: u32) -> Result<Tried, BackendError>;

    /// Times several candidates round by round in turn, drops rounds with a clock away from the usual one, and looks
    /// whether each is still right.
    fn finals(&mut self, candidates: &[Runnable], rounds: u32) -> Result<Vec<Timed>, BackendError>;

    /// Checks a candidate without timing it, and gives what these elements of its outputs hold at the end. Then other inputs come
    /// into the same memory, while its code stays loaded: one that keeps what it once made of them is not right any more.
    fn verify(&mut self, candidate: &Runnable, elements: &[Element]) -> Result<(Tried, Vec<f64>), BackendError>;
}

/// Whether a candidate that is not timed is launched once more before it is looked at again, after so many launches in so many seconds.
/// A hundred are behind a winner where that takes no time to speak of, however slow the machine was when it was timed.
pub(crate) fn goes_on(launches: usize, seconds: f64) -> bool {
    launches < 32 && seconds < 0.05 || launches < 100 && seconds < 0.03
}

/// The seed of the inputs that come into the memory of those of `seed`.
pub(crate) fn renewed(seed: u64) -> u64 {
    seed.wrapping_add(0x0dd5)
}

/// What is said of a candidate that is right on its first inputs alone.
pub(crate) fn stale(why: String) -> Doubt {
    Doubt::Unstable(format!("on other inputs in the same memory: {why}"))
}

/// Drops the rounds whose clock is over 3% away from the median clock; clocks that cannot be read (0) drop nothing.
pub(crate) fn gate_clocks(series: &mut [Series]) {
    let mut all: Vec<u32> = series.iter().flat_map(|s| s.mhz.iter().copied()).filter(|m| *m > 0).collect();
    all.sort_unstable();
    let Some(&usual) = all.get(all.len() / 2) else { return };
    let near = |mhz: u32| mhz == 0 || mhz.abs_diff(usual) * 100 <= usual * 3;
    for s in series {
        let kept: Vec<(f64, u32)> =
            s.us.iter().copied().zip(s.mhz.iter().copied()).filter(|(_, mhz)| near(*mhz)).collect();
        // Where the clock never settles, dropping would leave nothing to compare.
        if kept.len() * 2 >= s.us.len() {
            s.dropped = (s.us.len() - kept.len()) as u32;
            (s.us, s.mhz) = kept.into_iter().unzip();
        }
    }
}
