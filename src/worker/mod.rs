//! Workers: child processes that compile or measure, so that a candidate that faults or hangs costs its worker and
//! never the run.
//!
//! A worker is the program that tunes, started once more (`PROGRAM jitune-worker DUTY`), in a process group of its own.
//! [`worker_main`], which that program calls first, then answers framed requests one at a time, on what were its standard
//! input and output: it moves them to other descriptors, since code that it runs may write to those, and each answer has
//! to repeat a number that its request brought. A worker dies with its parent. It has a process above it that ends what
//! candidates and compilers leave behind.

mod child;
mod frame;
pub(crate) mod lines;
mod process;
mod reaper;
mod supervisor;
mod traces;

use child::serve;
pub use process::Lost;
pub(crate) use process::Process;
#[cfg(feature = "engines")]
pub(crate) use process::{below, family};
pub(crate) use supervisor::{MAIN, Worker};

use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{Element, Runnable, Setup, Timed, Tried};
use crate::device::{Ceilings, Device, DeviceId};
use crate::source::Source;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The first argument of a process that is a worker.
const WORD: &str = "jitune-worker";
/// The third argument of a worker that has somebody to end what it leaves.
const WATCHED: &str = "watched";

/// Makes a worker of this process if it was started as one; otherwise returns at once.
///
/// A program that tunes calls it at the very start of `main`: its workers are the program itself, started again.
/// Standard input and output of a worker belong to its parent, so nothing may have touched them.
pub fn worker_main() {
    let mut args = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    if args.next().as_deref() != Some(WORD) {
        return;
    }
    // Standard error may be full or closed.
    let say = |text: String| drop(std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()));
    let code = match args.next().unwrap_or_default().parse() {
        Ok(duty) => {
            let watched = args.next().as_deref() == Some(WATCHED);
            let ended = if watched { serve(duty) } else { reaper::watch_over(duty) };
            ended.unwrap_or_else(|e| {
                say(format!("a worker cannot go on: {e}\n"));
                4
            })
        }
        Err(e) => {
            say(format!("{e}\n"));
            2
        }
    };
    std::process::exit(code.into())
}

/// Reads frames of both directions, for fuzzing: as they are, and as one message.
#[cfg(fuzzing)]
pub fn fuzz_frames(bytes: &[u8]) {
    let whole = [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    for mut from in [bytes, &whole] {
        while let Ok(Some(_)) = frame::receive::<Answer>(&mut from) {}
    }
    for mut from in [bytes, &whole] {
        while let Ok(Some(_)) = frame::receive::<Request>(&mut from) {}
    }
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Compiles for either target; uses no GPU.
    Compile,
    /// Measures on a device.
    Measure(DeviceId),
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Duty::Compile => f.write_str("compile"),
            Duty::Measure(device) => device.fmt(f),
        }
    }
}

impl FromStr for Duty {
    type Err = String;

    fn from_str(text: &str) -> Result<Duty, String> {
        if text == "compile" { Ok(Duty::Compile) } else { text.parse().map(Duty::Measure) }
    }
}

/// What a parent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Compile and leave the artifact in this folder under its hash.
    Compile {
        /// The source.
        source: Box<Source>,
        /// The folder.
        #[serde(with = "crate::artifact::any_path")]
        folder: PathBuf,
    },
    /// Describe the device.
    Device,
    /// Measure the ceilings.
    Ceilings {
        /// The support code.
        support: Artifact,
    },
    /// Use these ceilings, measured by an earlier worker.
    Assume(Ceilings),
    /// Make a problem's inputs and reference.
    Prepare(Box<Setup>),
    /// Check and time a candidate.
    Attempt {
        /// The candidate.
        candidate: Box<Runnable>,
        /// Rounds of timing; 0 only checks.
        rounds: u32,
    },
    /// Time several in turn.
    Finals {
        /// The candidates.
        candidates: Vec<Runnable>,
        /// Rounds.
        rounds: u32,
    },
    /// Check a candidate, and give what these elements of its outputs hold.
    Verify {
        /// The candidate.
        candidate: Box<Runnable>,
        /// The elements.
        elements: Vec<Element>,
    },
}

impl Request {
    /// Whether an answer is one to it.
    fn fits(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (_, Answer::Failed(_))
            | (Request::Compile { .. }, Answer::Compiled(_))
            | (Request::Device, Answer::Device(_))
            | (Request::Ceilings { .. }, Answer::Ceilings(_))
            | (Request::Assume(_) | Request::Prepare(_), Answer::Done)
            | (Request::Attempt { .. }, Answer::Tried(_)) => true,
            (Request::Finals { candidates, .. }, Answer::Timed(list)) => list.len() == candidates.len(),
            (Request::Verify { elements, .. }, Answer::Verified { bits, .. }) => bits.len() == elements.len(),
            _ => false,
        }
    }
}

/// What a worker answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done, nothing to say.
    Done,
    /// The artifact.
    Compiled(Box<Artifact>),
    /// The device.
    Device(Box<Device>),
    /// The ceilings.
    Ceilings(Ceilings),
    /// What came of an attempt.
    Tried(Box<Tried>),
    /// What came of the finals.
    Timed(Vec<Timed>),
    /// What came of a check, and the bits of the elements that were asked for: a result may be no number.
    Verified {
        /// What came of it.
        tried: Box<Tried>,
        /// The bits.
        bits: Vec<u64>,
    },
    /// It failed.
    Failed(Failure),
}

/// A message with a number that only those who speak know: a request brings one, and its answer repeats it.
#[derive(Debug, Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    message: T,
}

/// An error of a target as it crosses the process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The error's text.
    pub message: String,
}

impl Failure {
    /// True when it says nothing about the candidate: anything else would fail here too.
    pub fn is_of_the_machine(&self) -> bool {
        matches!(self.kind, FailureKind::Environment | FailureKind::Storage)
    }
}

/// What a failure means for the candidate and the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The source does not compile.
    Compile,
    /// The candidate cannot run here, by a rule of our own: spills, geometry, arguments.
    Unfit,
    /// A loader or a driver refused the candidate, which may be the machine's doing.
    Refused,
    /// The compiler did not get to judge the source.
    Compiler,
    /// The device context is lost or the process is not as it was; the worker ends.
    Fault,
    /// The measurement is refused.
    Measurement,
    /// Something is missing on the machine: driver, compiler, memory.
    Environment,
    /// A file cannot be read or written: a full disk, a limit, permissions.
    Storage,
}

impl From<&BackendError> for Failure {
    fn from(e: &BackendError) -> Failure {
        let kind = match e {
            e if e.is_fault() => FailureKind::Fault,
            BackendError::Compile { .. } => FailureKind::Compile,
            BackendError::Compiler { .. } => FailureKind::Compiler,
            BackendError::Unfit { .. } | BackendError::Launch { .. } => FailureKind::Unfit,
            BackendError::Load { .. } => FailureKind::Refused,
            // What the driver says of a kernel: a bad value, image or PTX, no code for this GPU, a symbol that is not found,
            // more resources than there are. Its other errors say nothing of one.
            BackendError::Driver { code: 1 | 200 | 209 | 218 | 500 | 701 | 720, .. } => FailureKind::Refused,
            BackendError::Measurement(_) => FailureKind::Measurement,
            BackendError::Io { .. } => FailureKind::Storage,
            _ => FailureKind::Environment,
        };
        Failure { kind, message: e.to_string() }
    }
}
