//! What can go wrong in production, with the candidates that were considered.

use crate::backend::BackendError;
use crate::bundle::{Bundle, Held};
use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::RecipeError;
use std::fmt;

/// A winner that was not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The problem it was tuned for.
    pub problem: Problem,
    /// Its template.
    pub template: String,
    /// Why it was not used.
    pub why: String,
}

impl Refusal {
    pub(super) fn of(held: &Held<'_>, why: String) -> Refusal {
        Refusal { problem: held.problem(), template: held.description().name.clone(), why }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of '{}': {}", self.template, self.problem, self.why)
    }
}

/// A bundle that does not load, a problem without a kernel, or a launch that fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Nothing in the bundle fits the device at hand.
    #[error(
        "the bundle has no kernel for this {target} ({arch}); it has {offered}{because}; tune and export on this machine",
        target = target.name(),
        because = refused.first().map(|r| format!(" (first refused: {r})")).unwrap_or_default()
    )]
    NoArch {
        /// The kind of device.
        target: Target,
        /// Its architecture.
        arch: String,
        /// What the bundle has, by target and architecture.
        offered: String,
        /// Every winner of the bundle and why it does not fit.
        refused: Vec<Refusal>,
    },
    /// No kernel was tuned for the problem, and none that was may run it.
    #[error("no kernel serves '{problem}'; {}; tune it and export again", nearest_text(nearest))]
    Untuned {
        /// The problem.
        problem: Problem,
        /// The nearest winners and why each was refused, nearest first.
        nearest: Vec<Refusal>,
    },
    /// A winner whose code does not load.
    #[error("the code of '{problem}' (template {template}) does not load: {source}")]
    Load {
        /// Its problem.
        problem: Problem,
        /// Its template.
        template: String,
        /// The device's error.
        source: Box<BackendError>,
    },
    /// A winner whose description does not evaluate.
    #[error("the description of '{problem}' is not usable: {source}")]
    Recipe {
        /// Its problem.
        problem: Problem,
        /// The description's error.
        source: Box<RecipeError>,
    },
    /// Addresses that do not fit the problem.
    #[error("'{problem}' cannot be bound: {why}")]
    Bind {
        /// The problem.
        problem: Problem,
        /// What is missing.
        why: String,
    },
    /// The device.
    #[error(transparent)]
    Target(#[from] BackendError),
}

fn nearest_text(nearest: &[Refusal]) -> String {
    if nearest.is_empty() {
        return "the bundle has no kernel of that op here".into();
    }
    let list: Vec<String> = nearest.iter().map(Refusal::to_string).collect();
    format!("nearest tuned: {}", list.join("; "))
}

impl RuntimeError {
    pub(super) fn no_fit(bundle: &Bundle<'_>, device: &Device, refused: Vec<Refusal>) -> RuntimeError {
        let offered: Vec<String> = bundle.arches().iter().map(|(t, arch)| format!("{} {arch}", t.name())).collect();
        let offered = if offered.is_empty() { "none at all".into() } else { offered.join(", ") };
        RuntimeError::NoArch { target: device.target, arch: device.arch.clone(), offered, refused }
    }

    pub(super) fn load(held: &Held<'_>, source: BackendError) -> RuntimeError {
        let source = Box::new(source);
        RuntimeError::Load { problem: held.problem(), template: held.description().name.clone(), source }
    }

    pub(super) fn recipe(held: &Held<'_>, source: RecipeError) -> RuntimeError {
        RuntimeError::Recipe { problem: held.problem(), source: Box::new(source) }
    }
}
