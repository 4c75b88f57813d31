//! Errors of the program and the exit code of each: the one place where codes are decided.

use jitune::backend::BackendError;
use jitune::bench::BenchError;
use jitune::model::ModelError;
use jitune::problem::ProblemError;
use jitune::template::TemplateError;
use jitune::tune::TuneError;
use jitune::worker::FailureKind;
use std::path::PathBuf;

/// The exit codes, as `--help` prints them.
pub const EXIT_CODES: &str = "Exit codes:
  0    done
  1    done in part: a problem has no winner, a verification found a difference, or a server ended requests
  2    the command line, a model (one that is missing or damaged, too), a problem or a line of a plan is wrong
  3    something is missing on this machine (driver, GPU, NVRTC, C compiler): see `jitune doctor`
  4    the database or a file that is no model's cannot be used (missing, locked, full, read-only, damaged)
  5    the device failed and does not recover
  130  interrupted; what was finished is stored";

/// What ends the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// A model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// A line of a plan file.
    #[error("{path}:{line}: {source}")]
    PlanLine {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong.
        source: ProblemError,
    },
    /// Templates.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A target.
    #[error(transparent)]
    Target(#[from] BackendError),
    /// Tuning.
    #[error(transparent)]
    Tune(#[from] TuneError),
    /// Something is not made on the bench.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The database.
    #[error("{0}")]
    Db(#[from] jitune_db::Error),
    /// A file that was to be merged.
    #[error("{path}: {source}")]
    Merge {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<jitune_db::Error>,
    },
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An output that would be one of a database's files.
    #[error("{path}: it lies in the tuning database {database}, where nothing else is written; give another place")]
    InDatabase {
        /// The output.
        path: PathBuf,
        /// The database.
        database: PathBuf,
    },
    /// The rows of a comparison.
    #[error("{path}: {source}")]
    Rows {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: jitune::report::RowsError,
    },
    /// The rows of a run of engines.
    #[cfg(feature = "bench")]
    #[error("{path}: {source}")]
    Runs {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: jitune::engines::report::RunsError,
    },
    /// A report of another tool.
    #[cfg(feature = "bench")]
    #[error("{path}: {source}")]
    Imported {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: jitune::engines::trtllm::ReportError,
    },
    /// A README without a place for the tables.
    #[error("{path}: {source}")]
    Readme {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        source: jitune::report::markers::NoPlace,
    },
    /// A report.
    #[error(transparent)]
    Report(#[from] jitune::report::html::HtmlError),
    /// Part of the work failed; it was said already.
    #[error("{0}")]
    Partly(String),
    /// A process of the program's own ended with this code, after it said why.
    #[error("the process that did the work ended with code {0}")]
    Said(u8),
    /// The user stopped it.
    #[error("interrupted; what was finished is stored, and the same command goes on from there")]
    Interrupted,
    /// The user stopped a run that keeps rows.
    #[error(
        "interrupted; the rows that were measured are stored, and the same command with --resume goes on from there"
    )]
    Cut,
}

impl CliError {
    /// Whether everything was said already.
    pub fn is_quiet(&self) -> bool {
        matches!(self, CliError::Said(_)) || matches!(self, CliError::Partly(text) if text.is_empty())
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_)
            | CliError::Model(_)
            | CliError::Problem(_)
            | CliError::PlanLine { .. }
            | CliError::InDatabase { .. } => 2,
            CliError::Template(e) => template(e),
            CliError::Target(e) => target(e),
            CliError::Tune(e) => tune(e),
            CliError::Bench(BenchError::Template(e)) => template(e),
            CliError::Bench(BenchError::Target(e)) => target(e),
            CliError::Bench(_) => 5,
            CliError::Db(_)
            | CliError::Merge { .. }
            | CliError::Io { .. }
            | CliError::Rows { .. }
            | CliError::Readme { .. }
            | CliError::Report(_) => 4,
            #[cfg(feature = "bench")]
            CliError::Runs { .. } | CliError::Imported { .. } => 4,
            CliError::Partly(_) => 1,
            CliError::Said(code) => *code,
            CliError::Interrupted | CliError::Cut => 130,
        }
    }
}

fn template(e: &TemplateError) -> u8 {
    if matches!(e, TemplateError::Io { .. }) { 4 } else { 2 }
}

fn target(e: &BackendError) -> u8 {
    match e {
        BackendError::NoDriver
        | BackendError::OldDriver { .. }
        | BackendError::NoGpu { .. }
        | BackendError::NoNvrtc { .. }
        | BackendError::NoCompiler { .. }
        | BackendError::Threads { .. }
        | BackendError::OutOfMemory { .. } => 3,
        BackendError::Io { .. } => 4,
        BackendError::Compile { .. } | BackendError::Unfit { .. } | BackendError::Launch { .. } => 1,
        _ => 5,
    }
}

fn tune(e: &TuneError) -> u8 {
    match e {
        TuneError::Interrupted => 130,
        TuneError::Template(e) => template(e),
        TuneError::Target(e) => target(e),
        TuneError::Db(_) | TuneError::Io { .. } | TuneError::Record(_) => 4,
        TuneError::Device(f) | TuneError::Prepare(f) if f.kind == FailureKind::Environment => 3,
        TuneError::Device(f) | TuneError::Prepare(f) if f.kind == FailureKind::Storage => 4,
        TuneError::NoneRight { .. } | TuneError::EmptySpace { .. } => 1,
        TuneError::Recipe(_) => 2,
        _ => 5,
    }
}

/// Weights that cannot be read: the model is wrong, whatever is wrong with it.
#[cfg(feature = "engine")]
pub(super) fn not_usable(e: jitune::weights::WeightsError) -> CliError {
    CliError::Usage(e.to_string())
}

/// Weights that cannot be written.
#[cfg(feature = "engine")]
pub(super) fn not_written(e: jitune::weights::WeightsError) -> CliError {
    match e {
        jitune::weights::WeightsError::Io { path, source } => CliError::Io { path, source },
        other => not_usable(other),
    }
}
