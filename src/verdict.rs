//! What became of a candidate.

use crate::backend::session::{Check, Series};
use crate::worker::{Failure, FailureKind, Lost};
use serde::{Deserialize, Serialize};

/// The outcome of trying one candidate. Never a number that stands for a failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// It is right, and took so long.
    Measured {
        /// Microseconds of each round.
        samples_us: Vec<f64>,
        /// Root mean square error.
        error_rms: f64,
        /// Largest scaled error.
        error_max: f64,
        /// Output elements compared.
        #[serde(default)]
        compared: u64,
    },
    /// The compiler refused it.
    CompileError {
        /// Its messages.
        log: String,
    },
    /// It was not run: spills, resources, geometry.
    Rejected {
        /// Why.
        why: String,
    },
    /// Its results differ from the reference.
    Wrong {
        /// How.
        why: String,
    },
    /// It did not end in time.
    Timeout {
        /// The deadline in seconds.
        seconds: f64,
    },
    /// It destroyed the device context.
    Fault {
        /// The driver's words.
        message: String,
    },
    /// The process that ran it died.
    WorkerLost {
        /// How.
        how: String,
    },
}

impl Verdict {
    /// A right candidate's verdict.
    pub fn measured(series: &Series, check: &Check) -> Verdict {
        let (error_rms, error_max, compared) = (check.rms, check.max, check.compared);
        Verdict::Measured { samples_us: series.us.clone(), error_rms, error_max, compared }
    }

    /// The median time of a right candidate in microseconds.
    pub fn median_us(&self) -> Option<f64> {
        match self {
            Verdict::Measured { samples_us, .. } => {
                Some(Series { us: samples_us.clone(), ..Series::default() }.median())
            }
            _ => None,
        }
    }

    /// One word for tables.
    pub fn reason(&self) -> &'static str {
        match self {
            Verdict::Measured { .. } => "measured",
            Verdict::CompileError { .. } => "compile error",
            Verdict::Rejected { .. } => "rejected",
            Verdict::Wrong { .. } => "wrong",
            Verdict::Timeout { .. } => "timeout",
            Verdict::Fault { .. } => "fault",
            Verdict::WorkerLost { .. } => "worker lost",
        }
    }
}

impl From<Failure> for Verdict {
    fn from(f: Failure) -> Verdict {
        match f.kind {
            FailureKind::Compile => Verdict::CompileError { log: f.message },
            FailureKind::Fault => Verdict::Fault { message: f.message },
            _ => Verdict::Rejected { why: f.message },
        }
    }
}

impl From<Lost> for Verdict {
    fn from(lost: Lost) -> Verdict {
        match lost {
            Lost::Timeout { after } => Verdict::Timeout { seconds: after.as_secs_f64() },
            other => Verdict::WorkerLost { how: other.to_string() },
        }
    }
}
