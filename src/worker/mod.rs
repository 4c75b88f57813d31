//! Workers: child processes that compile or measure, so that a candidate that faults or hangs costs its worker and
//! never the run.
//!
//! A worker is the program that tunes, started once more (`PROGRAM jitune-worker DUTY`), in a process group of its own.
//! [`worker_main`], which that program calls first, then answers framed requests on its standard input and output one at a
//! time. A worker dies with its parent.

mod child;
mod frame;
mod process;
mod supervisor;

use child::serve;
pub use process::Lost;
pub(crate) use process::Process;
pub(crate) use supervisor::Worker;

use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::backend::session::{Runnable, Series, Setup, Tried};
use crate::device::{Ceilings, Device, DeviceId};
use crate::source::Source;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The first argument of a process that is a worker.
const WORD: &str = "jitune-worker";

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
        Ok(duty) => serve(duty).unwrap_or_else(|e| {
            say(format!("a worker cannot go on: {e}\n"));
            4
        }),
        Err(e) => {
            say(format!("{e}\n"));
            2
        }
    };
    std::process::exit(code.into())
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Times of the finals.
    Series(Vec<Series>),
    /// It failed.
    Failed(Failure),
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
    /// The device context is lost; the worker ends.
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
