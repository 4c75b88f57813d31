//! Which lines a sentence is derived from.

use super::words;
use serde::Serialize;
use std::fmt;

/// Lines of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "line", rename_all = "lowercase")]
pub enum Source {
    /// The cells of an engine in a workload.
    Cells {
        /// Its label.
        engine: String,
        /// The precision.
        dtype: String,
        /// The workload.
        workload: String,
        /// The rounds.
        rounds: Vec<u32>,
        /// Whether they are those of the baseline's own file.
        baseline: bool,
    },
    /// An engine's check.
    Check {
        /// Its label.
        engine: String,
        /// The precision.
        dtype: String,
    },
    /// A field of the run's line.
    Run {
        /// Its name.
        field: String,
    },
    /// Rows of `jitune compare`.
    Kernel {
        /// The problem.
        problem: String,
        /// The row's label.
        label: String,
    },
}

impl Source {
    /// A field of the run's line.
    pub fn run(field: &str) -> Source {
        Source::Run { field: field.into() }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Cells { engine, dtype, workload, rounds, baseline } => {
                let file = if *baseline { "baseline's cell" } else { "cell" };
                write!(f, "{file} {engine} {dtype} {workload} {}", words::rounds(rounds))
            }
            Source::Check { engine, dtype } => write!(f, "check {engine} {dtype}"),
            Source::Run { field } => write!(f, "run {field}"),
            Source::Kernel { problem, label } => write!(f, "row {label} {problem}"),
        }
    }
}

/// A sentence, and what it is derived from.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Said {
    /// The sentence.
    pub text: String,
    /// The lines that say so.
    pub because: Vec<Source>,
}

impl Said {
    /// A sentence because of these lines.
    pub fn new(text: impl Into<String>, because: impl IntoIterator<Item = Source>) -> Said {
        Said { text: text.into(), because: because.into_iter().collect() }
    }
}

/// Sources on one line, each once, the cells of one engine together.
pub fn text(because: &[Source]) -> String {
    let mut list: Vec<(String, Vec<String>)> = Vec::new();
    for source in because {
        let (start, end) = match source {
            Source::Cells { workload, rounds, .. } => {
                let own = format!("{workload} {}", words::rounds(rounds));
                (source.to_string().trim_end_matches(&own).to_string(), own)
            }
            _ => (source.to_string(), String::new()),
        };
        match list.iter_mut().find(|(known, _)| *known == start) {
            Some((_, ends)) if ends.contains(&end) => {}
            Some((_, ends)) => ends.push(end),
            None => list.push((start, vec![end])),
        }
    }
    list.into_iter().map(|(start, ends)| start + &ends.join(", ")).collect::<Vec<_>>().join("; ")
}
