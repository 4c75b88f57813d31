//! Why tuning fails.

use crate::problem::Problem;
use crate::recipe::RecipeError;
use crate::template::TemplateError;
use crate::worker::{Failure, Lost};
use std::path::PathBuf;

/// Why tuning stops, or a problem of it fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// A worker could not be started or was lost outside of a candidate's trial.
    #[error(transparent)]
    Lost(Lost),
    /// The device cannot be used.
    #[error("{0}")]
    Device(Failure),
    /// A problem's inputs or reference cannot be made.
    #[error("preparing the problem failed: {0}")]
    Prepare(Failure),
    /// The device does not recover.
    #[error("the device no longer works: {0}; a driver reset or reboot may be needed")]
    Sick(String),
    /// Candidate after candidate is neither right nor wrong.
    #[error("{0}; see what stands in the way, such as by `jitune doctor`, and run again: nothing of it is remembered")]
    Unjudged(String),
    /// No candidate was right.
    #[error(
        "no candidate of '{problem}' is right: {rejected}; `jitune try` shows why, and `jitune tune --again` tries them anew"
    )]
    NoneRight {
        /// The problem.
        problem: Problem,
        /// How many, by reason.
        rejected: String,
    },
    /// The time was up before a candidate was tried.
    #[error("'{problem}': the time was up before a candidate was tried; run again to go on, or give more --budget")]
    NoTime {
        /// The problem.
        problem: Problem,
    },
    /// Every config is illegal.
    #[error("no config of any template is legal for '{problem}' on this device")]
    EmptySpace {
        /// The problem.
        problem: Problem,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The templates.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A description.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The database.
    #[error(transparent)]
    Db(#[from] jitune_db::Error),
    /// The target.
    #[error(transparent)]
    Target(#[from] crate::backend::BackendError),
    /// A record that does not serialise.
    #[error("a record cannot be written: {0}")]
    Record(#[from] serde_json::Error),
    /// The support code or a reference does not compile.
    #[error("{what} does not compile: {why}")]
    Support {
        /// Which.
        what: String,
        /// The verdict.
        why: String,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}
