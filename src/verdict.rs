//! What became of a candidate.

use crate::backend::session::{Check, Doubt, Series, Tried};
use crate::problem::Problem;
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
    /// It was right at first, and not any more in its timed rounds or after them.
    Unstable {
        /// How.
        why: String,
    },
    /// It did not end in time.
    Timeout {
        /// The deadline in seconds.
        seconds: f64,
    },
    /// It destroyed what it ran in: the device context, or the process by what it left behind there.
    Fault {
        /// How, or the driver's words.
        message: String,
    },
    /// The process that ran it died.
    WorkerLost {
        /// How.
        how: String,
    },
    /// The machine kept it from being tried. Never stored.
    NotJudged {
        /// How.
        why: String,
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

    /// How that was seen, in words.
    pub(crate) fn evidence(&self) -> String {
        match self {
            Verdict::Measured { .. } => "right".into(),
            Verdict::Timeout { seconds } => format!("no end within {seconds} s"),
            Verdict::CompileError { log: said }
            | Verdict::Rejected { why: said }
            | Verdict::Wrong { why: said }
            | Verdict::Unstable { why: said }
            | Verdict::Fault { message: said }
            | Verdict::WorkerLost { how: said }
            | Verdict::NotJudged { why: said } => said.clone(),
        }
    }

    /// One word for tables.
    pub fn reason(&self) -> &'static str {
        match self {
            Verdict::Measured { .. } => "measured",
            Verdict::CompileError { .. } => "compile error",
            Verdict::Rejected { .. } => "rejected",
            Verdict::Wrong { .. } => "wrong",
            Verdict::Unstable { .. } => "unstable",
            Verdict::Timeout { .. } => "timeout",
            Verdict::Fault { .. } => "fault",
            Verdict::WorkerLost { .. } => "worker lost",
            Verdict::NotJudged { .. } => "not judged",
        }
    }
}

/// A verdict, and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it is the candidate's.
    pub standing: Standing,
}

/// Whether a verdict is the candidate's own. Nothing else is remembered of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is: measured, wrong, a compiler's diagnosis, a rule of ours.
    Own,
    /// It came twice, in two workers; it is, if the machine turns out to work.
    Twice,
    /// It may be the machine's, or somebody else's.
    Open,
}

impl From<Doubt> for Judged {
    fn from(doubt: Doubt) -> Judged {
        match doubt {
            Doubt::Unstable(why) => Judged { verdict: Verdict::Unstable { why }, standing: Standing::Own },
            // Whoever measured it may be to blame.
            Doubt::Implausible(why) => Judged { verdict: Verdict::NotJudged { why }, standing: Standing::Open },
        }
    }
}

impl From<Tried> for Judged {
    fn from(tried: Tried) -> Judged {
        match (tried.check.wrong, tried.doubt) {
            (Some(why), _) => Judged { verdict: Verdict::Wrong { why }, standing: Standing::Own },
            (None, Some(doubt)) => doubt.into(),
            (None, None) => {
                let check = Check { wrong: None, ..tried.check };
                let verdict = Verdict::measured(&tried.series.unwrap_or_default(), &check);
                Judged { verdict, standing: Standing::Own }
            }
        }
    }
}

impl From<Failure> for Judged {
    fn from(f: Failure) -> Judged {
        let standing = match f.kind {
            FailureKind::Compile | FailureKind::Unfit => Standing::Own,
            FailureKind::Refused
            | FailureKind::Compiler
            | FailureKind::Fault
            | FailureKind::Measurement
            | FailureKind::Environment
            | FailureKind::Storage => Standing::Open,
        };
        Judged { verdict: Verdict::from(f), standing }
    }
}

impl Judged {
    /// What two tries in a row, each in a worker of its own, say together.
    pub fn again(self, second: Judged) -> Judged {
        let same = self.verdict.reason() == second.verdict.reason();
        let repeated = same && !matches!(second.verdict, Verdict::NotJudged { .. });
        match (self.standing, second.standing) {
            (Standing::Open, Standing::Open) if repeated => Judged { standing: Standing::Twice, ..second },
            _ => second,
        }
    }
}

impl Judged {
    /// The same, found on another workload than the problem's own.
    pub fn on(self, problem: &Problem) -> Judged {
        let said = |why: String| format!("{problem}: {why}");
        let verdict = match self.verdict {
            Verdict::Wrong { why } => Verdict::Wrong { why: said(why) },
            Verdict::Unstable { why } => Verdict::Unstable { why: said(why) },
            other => other,
        };
        Judged { verdict, ..self }
    }
}

impl From<Failure> for Verdict {
    fn from(f: Failure) -> Verdict {
        match f.kind {
            FailureKind::Compile => Verdict::CompileError { log: f.message },
            FailureKind::Fault => Verdict::Fault { message: f.message },
            FailureKind::Unfit | FailureKind::Refused => Verdict::Rejected { why: f.message },
            FailureKind::Compiler | FailureKind::Measurement | FailureKind::Environment | FailureKind::Storage => {
                Verdict::NotJudged { why: f.message }
            }
        }
    }
}

impl From<Lost> for Judged {
    fn from(lost: Lost) -> Judged {
        let verdict = match lost {
            Lost::Timeout { after } => Verdict::Timeout { seconds: after.as_secs_f64() },
            lost if lost.from_outside() => Verdict::NotJudged { why: lost.to_string() },
            lost => Verdict::WorkerLost { how: lost.to_string() },
        };
        Judged { verdict, standing: Standing::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_what_is_the_candidates_own_is_remembered() {
        let ended = |signal| Judged::from(Lost::Ended { how: String::new(), signal });
        let late = || Judged::from(Lost::Timeout { after: Duration::from_secs(5) });
        let failed = |kind| Judged::from(Failure { kind, message: String::new() });
        for own in [FailureKind::Compile, FailureKind::Unfit] {
            assert_eq!(failed(own).standing, Standing::Own);
        }
        for open in [FailureKind::Compiler, FailureKind::Measurement, FailureKind::Environment, FailureKind::Storage] {
            assert_eq!(failed(open).again(failed(open)).standing, Standing::Open, "{open:?}");
        }
        // A crash, a hang or a refusal once may be the machine's; one that comes again in another worker is not.
        assert_eq!(ended(Some(11)).standing, Standing::Open);
        assert_eq!(ended(Some(11)).again(ended(Some(11))).standing, Standing::Twice);
        assert_eq!(late().again(late()).standing, Standing::Twice);
        assert_eq!(failed(FailureKind::Refused).again(failed(FailureKind::Refused)).standing, Standing::Twice);
        assert_eq!(late().again(ended(Some(11))).standing, Standing::Open);
        // Killed by somebody else, however often.
        assert_eq!(ended(Some(9)).again(ended(Some(9))).standing, Standing::Open);
        assert_eq!(ended(Some(9)).verdict.reason(), "not judged");
    }
}
