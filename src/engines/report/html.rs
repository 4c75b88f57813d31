//! `report.html`: one file that needs no network, with plots of its own, in the style of the report of kernels.
//!
//! The template escapes every string; what it is told not to escape are its style and the plots, which escape theirs themselves.

use super::document::document;
use super::plots::{self, Card};
use super::read::Runs;
use super::summary::LibraryComparisonReport;
use super::view::{Block, Document, Section};
use crate::report::html::{HtmlError, STYLE};
use crate::report::palette::{Entry, Palette};
use minijinja::{Environment, value::Serde};
use serde::Serialize;

const TEMPLATE: &str = include_str!("page.html.j2");

/// All that the template names.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    date: String,
    notices: &'a [String],
    score: &'a [super::view::Score],
    legend: Vec<Entry>,
    sections: Vec<Shown<'a>>,
}

/// A section with its plots.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    title: &'a str,
    blocks: &'a [Block],
    plots: Vec<Plots>,
}

/// Plots of one kind.
#[derive(Serialize)]
struct Plots {
    title: &'static str,
    note: &'static str,
    cards: Vec<Card>,
}

/// The whole page. Requests and the hardware's readings are those of `runs`, of which the report was made.
pub fn html(report: &LibraryComparisonReport, runs: &Runs) -> Result<String, HtmlError> {
    let mut env = Environment::new();
    env.add_global("style", STYLE);
    env.add_template("page.html", TEMPLATE)?;
    let document: Document = document(report);
    let (palette, any) = plots::palette(report);
    let page = Page {
        title: &document.title,
        date: crate::report::text::date(report.at),
        notices: &document.notices,
        score: &document.score,
        legend: if any { palette.legend().0 } else { Vec::new() },
        sections: document.sections.iter().map(|s| shown(report, runs, &palette, s)).collect(),
    };
    Ok(env.get_template("page.html")?.render(Serde(page))?)
}

fn shown<'a>(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette, s: &'a Section) -> Shown<'a> {
    let plots = match s.id {
        "figures" => of_figures(report, runs, palette),
        "costs" => of_costs(report, runs, palette),
        _ => Vec::new(),
    };
    let plots = plots.into_iter().filter(|p| !p.cards.is_empty()).collect();
    Shown { id: s.id, title: s.title, blocks: &s.blocks, plots }
}

fn of_figures(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette) -> Vec<Plots> {
    vec![
        Plots {
            title: "Latency against throughput",
            note: "A mark is a workload; a curve joins those that differ in their load alone.",
            cards: plots::latency(report, runs, palette),
        },
        Plots {
            title: "Percentiles",
            note: "Of all requests of the rounds that count.",
            cards: plots::percentiles(report, runs, palette),
        },
        Plots {
            title: "Requests over time",
            note: "The first requests that are measured: pale from when each is due to its first token, then a dot a piece of its \
                   answer; every engine of a workload on the same scale.",
            cards: plots::timelines(report, runs, palette),
        },
        Plots {
            title: "Throughput over time",
            note: "Each tenth of the time, the median of the rounds: the first fills, the last drains.",
            cards: plots::over_time(report, palette),
        },
    ]
}

fn of_costs(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette) -> Vec<Plots> {
    vec![
        Plots { title: "Costs", note: "", cards: plots::costs(report, palette) },
        Plots {
            title: "The hardware over time",
            note: "The cells of one round, one after another.",
            cards: plots::hardware(report, runs),
        },
    ]
}
