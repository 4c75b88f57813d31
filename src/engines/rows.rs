//! The lines of a run's `engines.jsonl`, as docs/engines.md has them: `jitune bench` writes these very types, a report is made of them
//! alone. Fields of a later version are passed over.

use super::measured::Measured;
use super::workload::Workload;
use crate::device::Device;
use crate::report::rows::Trace;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// What was run, and where: the first line.
    Run(Box<Run>),
    /// An engine that was started, or could not be.
    Start(Box<Start>),
    /// Whether an engine computes the model that it was given.
    Check(Check),
    /// One request, with every moment.
    Request(Box<Request>),
    /// What one engine did with one workload.
    Cell(Box<Cell>),
    /// What the hardware did at one moment.
    Trace(EngineTrace),
    /// How fast the model's tokenizer is.
    Tokenization(Tokenization),
    /// The run's end; missing where the run was killed.
    End(End),
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
    /// The model's folder or file, as it was given.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of its weights that a decode step reads, by precision.
    #[serde(default)]
    pub weight_bytes: BTreeMap<String, u64>,
    /// Bytes of keys and values of one token in bf16.
    #[serde(default)]
    pub token_bytes: u64,
    /// The device, with its ceilings.
    pub device: Option<Device>,
    /// What the host is, by name: its processor, kernel, driver.
    #[serde(default)]
    pub host: BTreeMap<String, String>,
    /// Threads that engines on a processor may use; 0 on a GPU.
    pub threads: usize,
    /// Rounds: each engine is started once a round.
    pub rounds: u32,
    /// Whether it was the short one.
    #[serde(default)]
    pub quick: bool,
    /// The engines that were asked for, by label.
    pub engines: Vec<String>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// The precisions.
    pub dtypes: Vec<String>,
    /// Dollars an hour, by `gpu` and `cpu`, as they were given.
    #[serde(default)]
    pub prices: BTreeMap<String, f64>,
}

/// An engine that was started, or could not be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Its label: its name, with `#2` where the same engine was entered a second time.
    pub engine: String,
    /// The round, from 0.
    pub round: u32,
    /// The precision.
    pub dtype: String,
    /// The workloads that it was started for: those that keep nothing of prompts, and those that may, have a start of their own each.
    #[serde(default)]
    pub workloads: Vec<String>,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// The device, by the name that the run has for it.
    #[serde(default)]
    pub device: String,
    /// cuda or cpu.
    #[serde(default)]
    pub target: String,
    /// Versions of the libraries behind it.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
    /// How it is reached: `process` or `http`.
    #[serde(default)]
    pub transport: String,
    /// `continuous` or `static`.
    #[serde(default)]
    pub batching: String,
    /// Requests that it computes at a time.
    #[serde(default)]
    pub sequences: usize,
    /// Seconds from the process's start to the model being loaded.
    pub start_s: Option<f64>,
    /// Bytes that it planned on the device.
    pub memory_bytes: Option<u64>,
    /// What it says a reader should know.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Why it is not here, or did not load.
    pub why: Option<String>,
    /// The one command that brings it.
    pub fix: Option<String>,
}

/// What became of something that was measured or checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    #[default]
    Ok,
    /// It computes another model than it was given.
    Wrong,
    /// It gave another number of tokens than it was asked for.
    Miscounted,
    /// It stopped saying anything.
    Stalled,
    /// Some requests had no answer.
    Dropped,
    /// It went wrong.
    Failed,
    /// It is not on this machine.
    Missing,
    /// It has no such thing.
    Unsupported,
    /// It cannot be compared with anything, such as logits that a server does not give.
    Unchecked,
    /// The run was interrupted.
    Cut,
}

/// Whether an engine computes the model that it was given: its logits beside the reference's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its label.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// What became of it.
    pub state: State,
    /// Why, if not ok.
    pub why: Option<String>,
    /// What its logits were compared with.
    #[serde(default)]
    pub reference: String,
    /// Mean divergence KL(reference ‖ engine) in nats.
    pub kl: Option<f64>,
    /// What the precision itself costs: the divergence of the yardstick in the same precision.
    pub own_kl: Option<f64>,
    /// The share of positions with the same most likely token.
    pub top1: Option<f64>,
    /// Positions that were compared.
    #[serde(default)]
    pub positions: u64,
}

/// One request, with every moment in seconds since the cell's begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The cell's engine, precision, workload and round.
    #[serde(flatten)]
    pub of: Of,
    /// Its number in the cell.
    pub id: u64,
    /// The chat that it is a turn of, and which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<(u64, u32)>,
    /// Whether it belongs to the warm-up, and to no figure.
    #[serde(default)]
    pub warm: bool,
    /// When it was due.
    pub due_s: f64,
    /// When it was sent.
    pub sent_s: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that were asked for.
    pub asked: usize,
    /// When each piece of the answer was received.
    pub at_s: Vec<f64>,
    /// Tokens of each piece, where one of them is not a single token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Vec<u32>>,
    /// When its end was received.
    pub end_s: Option<f64>,
    /// Why it has no whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a line belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Of {
    /// The engine's label.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// The workload's name.
    pub workload: String,
    /// The round, from 0.
    pub round: u32,
}

/// What one engine did with one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which.
    #[serde(flatten)]
    pub of: Of,
    /// What became of it.
    pub state: State,
    /// Why, if not ok.
    pub why: Option<String>,
    /// The figures; none where nothing was measured.
    pub measured: Option<Measured>,
}

/// What the hardware did at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineTrace {
    /// While which cell ran.
    #[serde(flatten)]
    pub of: Of,
    /// The readings; `t` is in seconds since the cell's begin.
    #[serde(flatten)]
    pub reading: Trace,
}

/// How fast text becomes tokens, and tokens text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokenization {
    /// Whose code it is.
    pub by: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Bytes of the text, in UTF-8.
    #[serde(default)]
    pub bytes: u64,
    /// Its tokens, with those that the tokenizer puts around it.
    #[serde(default)]
    pub tokens: u64,
    /// Whether its ids are jitune's; none of jitune itself.
    #[serde(default)]
    pub same: Option<bool>,
    /// Tokens a second, text to ids.
    pub encode: Option<f64>,
    /// Tokens a second, ids to text.
    pub decode: Option<f64>,
    /// Why it was not measured.
    pub why: Option<String>,
}

/// The run's end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Seconds since the begin.
    pub seconds: f64,
    /// Whether it was interrupted.
    #[serde(default)]
    pub cut: bool,
}
