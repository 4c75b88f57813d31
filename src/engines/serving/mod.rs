//! Adaptive batching: the limits of an engine's steps that serve a workload best on a machine.
//!
//! **Setting → load → Figures → the highest load that is kept.** The goodput of a setting is the highest load (requests a second that
//! arrive at random; of a workload of clients, their number) at which at least [`SHARE`] of the requests keep all limits, times that share. The
//! search ([`search`]) asks somebody who measures ([`Evaluate`]): it finds the load that the default just keeps, looks among its neighbours
//! for one that keeps more, goes on from there, and at last holds what it found against the default, in turn, at one load. [`measure`] makes
//! the load and judges the answers. Knows no engine: the program opens one for each setting.

mod finals;
pub mod measure;
mod search;
mod space;

pub use measure::{Client, Wanted};
pub use search::search;
pub use space::Space;

use crate::setting::{Asked, Best, Figures, Row, Setting};
use std::time::Duration;

/// The share of requests that must keep all limits.
pub const SHARE: f64 = 0.9;

/// Who measures settings.
pub trait Evaluate {
    /// What is seen of a setting under a load.
    fn evaluate(&mut self, asked: &Asked) -> Result<Figures, Unmeasured>;

    /// The time since some moment.
    fn now(&self) -> Duration;
}

/// Why a setting was not measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmeasured {
    /// Somebody interrupts.
    #[error("interrupted")]
    Stopped,
    /// The engine cannot run so; it goes on with other settings.
    #[error("{0}")]
    Unfit(String),
    /// Nothing can be measured any more: the device, the workload, the place where rows are kept.
    #[error("{0}")]
    Lost(String),
}

/// Who hears of a search.
pub trait Observer {
    /// A row that was measured now. What it returns ends the search.
    fn row(&mut self, row: &Row) -> Result<(), Unmeasured>;

    /// What is being done.
    fn doing(&mut self, doing: &Doing);
}

/// How far a search is.
#[derive(Clone, Debug, PartialEq)]
pub struct Doing {
    /// The part of the search.
    pub part: Part,
    /// What is measured next.
    pub asked: Asked,
    /// Rows so far.
    pub rows: usize,
    /// The setting that keeps the highest load so far, and that load.
    pub best: Option<(Setting, f64)>,
    /// Time that is left of the budget.
    pub left: Duration,
}

/// Parts of a search, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The load that the default keeps.
    Default,
    /// Its neighbours, and theirs.
    Search,
    /// The grid.
    Grid,
    /// What was found beside the default.
    Finals,
}

impl Part {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Part::Default => "the default",
            Part::Search => "search",
            Part::Grid => "grid",
            Part::Finals => "finals",
        }
    }
}

/// How to search.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What may be tried.
    pub space: Space,
    /// The load that is tried first.
    pub load: f64,
    /// Whether loads are whole numbers: clients.
    pub whole: bool,
    /// Seconds of a window; those of the finals are twice as long.
    pub seconds: f64,
    /// Requests that a window has at least, as long as it is no longer than a tenth of the budget.
    pub requests: f64,
    /// Rounds of the finals.
    pub rounds: u32,
    /// The time of all of it.
    pub budget: Duration,
    /// Whether a small grid is measured too.
    pub grid: bool,
}

impl Options {
    /// Windows of a sixtieth of the budget, between 1.5 and 10 seconds, with 30 requests, and three final rounds.
    pub fn new(space: Space, load: f64, budget: Duration) -> Options {
        let seconds = (budget.as_secs_f64() / 60.0).clamp(1.5, 10.0);
        Options { space, load, whole: false, seconds, requests: 30.0, rounds: 3, budget, grid: false }
    }

    /// Seconds of a window under a load.
    fn window(&self, load: f64) -> f64 {
        let enough = if self.whole { 0.0 } else { self.requests / load };
        let most = self.budget.as_secs_f64() / 10.0;
        // What is measured again after an interruption has the same window.
        (self.seconds.max(enough.min(most)) * 100.0).ceil() / 100.0
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The default.
    pub default: Best,
    /// The best of the search beside it; none where nothing else keeps any load.
    pub searched: Option<Best>,
    /// The best of the grid, where one was measured.
    pub grid: Option<Best>,
    /// What to serve with.
    pub chosen: Setting,
    /// Why.
    pub why: String,
    /// All rows, those of an earlier run that were needed among them.
    pub rows: Vec<Row>,
    /// Whether the choice is one: the search was done, or what it had found by then was held against the default.
    pub decided: bool,
    /// Whether time was over, or somebody interrupted, before all was done.
    pub cut_off: bool,
}
