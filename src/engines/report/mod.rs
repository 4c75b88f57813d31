//! Reports of engines: from the lines of a run to what people read. Pure: no device, no clock, no file.
//!
//! **`engines.jsonl` → [`Runs`] → [`make`] → [`LibraryComparisonReport`] → [`markdown`], [`html`], [`terminal`], [`files`],
//! [`readme`].** What the kernels behind jitune's engine do is a [`KernelPerformanceReport`], from the rows of `jitune compare`.
//! Nothing is said that no line says: each sentence of the recommendation and each case of a criterion carries its lines.

pub mod advice;
pub mod baseline;
pub mod costs;
pub mod criteria;
pub mod document;
pub mod entry;
pub mod environment;
mod facts;
pub mod html;
pub mod kernels;
pub mod migrate;
pub mod noise;
mod numbers;
pub mod plots;
pub mod proxy;
pub mod rankings;
pub mod read;
pub mod readme;
pub mod recommend;
pub mod render;
pub mod roadmap;
pub mod source;
pub mod summary;
pub mod tables;
pub mod tokenization;
pub mod view;
pub mod words;

pub use baseline::Baseline;
pub use html::html;
pub use kernels::KernelPerformanceReport;
pub use read::{Runs, RunsError};
pub use render::{markdown, terminal};
pub use summary::{LibraryComparisonReport, make};

/// The files that stand beside the report: the proxies' configurations, where there is a way from a CPU engine to a GPU.
pub fn files(report: &LibraryComparisonReport) -> Vec<(&'static str, String)> {
    if report.recommendation.migration.is_empty() {
        return Vec::new();
    }
    let places = proxy::Places::default();
    vec![("nginx.conf", proxy::nginx(&places)), ("envoy.yaml", proxy::envoy(&places))]
}

/// `report.json`: the report as it is, without its renderings.
pub fn json(report: &LibraryComparisonReport) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(report).map(|text| text + "\n")
}
