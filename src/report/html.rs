//! `report.html`: one file that needs no network, with plots of its own.
//!
//! The template escapes every string; what it is told not to escape are its style and the plots, which escape theirs themselves.

use super::count::ours;
use super::palette::{Entry, Palette};
use super::passes::Pass;
use super::rows::{Pair, Peer, ProblemLine, Row, Run, State, Times};
use super::summary::Summary;
use super::tables::{Family, cell, families};
use super::{Rows, bars, markdown, roofline, series, text};
use minijinja::{Environment, value::Serde};
use serde::Serialize;

const TEMPLATE: &str = include_str!("report.html.j2");
/// The style of every page that is made here: colours of both schemes, tables, cards, plots.
pub const STYLE: &str = include_str!("style.css");

/// The page could not be made of the template.
#[derive(Debug, thiserror::Error)]
#[error("the report's page cannot be made: {0}")]
pub struct HtmlError(#[from] minijinja::Error);

/// All that the template names.
#[derive(Serialize)]
struct Page<'a> {
    device: &'a str,
    date: String,
    length: Option<String>,
    cut: bool,
    run: &'a Run,
    absent: Vec<&'a Peer>,
    parts: Vec<Vec<String>>,
    method: [&'static str; 3],
    score: [usize; 4],
    problems: usize,
    summary: &'a Summary,
    families: Vec<Family>,
    peers: Vec<Entry>,
    ops: Vec<Entry>,
    roofline: Vec<String>,
    bars: Vec<Cards>,
    histories: Vec<Cards>,
    trace: Vec<String>,
    throttled: Vec<String>,
    table: Vec<Full>,
    noise: String,
    pairs: &'a [Pair],
    environment: Vec<(String, String)>,
}

/// A plot with its words.
#[derive(Serialize)]
struct Card {
    problem: String,
    lines: Vec<String>,
    svg: String,
}

/// The cards of one op.
#[derive(Serialize)]
struct Cards {
    op: String,
    cards: Vec<Card>,
}

/// A row of the full table, in text.
#[derive(Serialize)]
struct Full {
    problem: String,
    way: String,
    version: String,
    class: &'static str,
    state: String,
    kernel: String,
    called: String,
    ratio: String,
    rate: String,
    share: String,
    error: String,
    clock: String,
    counters: String,
    how: String,
}

/// The whole page.
pub fn report(rows: &Rows) -> Result<String, HtmlError> {
    let mut env = Environment::new();
    env.add_filter("us", text::us);
    env.add_filter("time", text::time);
    env.add_filter("ratio", text::ratio);
    env.add_filter("slower", |ratio: f64| format!("{:.1}%", (1.0 / ratio - 1.0) * 100.0));
    env.add_global("style", STYLE);
    env.add_template("report.html", TEMPLATE)?;
    let (summary, palette, run) = (Summary::of(rows), Palette::of(rows), &rows.run);
    let (wins, ties, losses) = summary.score();
    let plots =
        |plot: &dyn Fn(f64) -> Option<String>| [360.0, 960.0].map(plot).into_iter().flatten().collect::<Vec<_>>();
    let (peers, ops): (Vec<Entry>, Vec<Entry>) = palette.legend();
    let spans = series::throttled(&rows.trace);
    let page = Page {
        device: run.device.as_ref().map_or("a device unknown", |d| d.name.as_str()),
        date: text::date(run.at),
        length: rows.end.as_ref().map(|e| format!("{:.0} s", e.seconds)),
        cut: rows.cut(),
        run,
        absent: run.peers.iter().filter(|p| !p.here).collect(),
        parts: summary.passes.iter().map(parts).collect(),
        method: markdown::METHOD,
        score: [wins, ties, losses, rows.problems.len() - summary.best.len()],
        problems: rows.problems.len(),
        summary: &summary,
        families: families(rows),
        peers,
        ops,
        roofline: plots(&|w| roofline::plot(rows, &palette, w)),
        bars: cards(rows, |p| Some(bar_card(rows, &palette, p))),
        histories: cards(rows, history_card),
        trace: plots(&|w| series::trace(&rows.trace, w)),
        throttled: spans.iter().map(|(from, to, why)| format!("from {from:.0} s to {to:.0} s: {why}")).collect(),
        table: rows.rows.iter().map(|r| full(rows, r)).collect(),
        noise: markdown::noise_in_words(rows),
        pairs: rows.noise.as_ref().map_or(&[], |n| n.pairs.as_slice()),
        environment: super::environment(run),
    };
    Ok(env.get_template("report.html")?.render(Serde(page))?)
}

fn parts(pass: &Pass) -> Vec<String> {
    pass.parts.iter().map(|part| markdown::part_in_words(pass, part)).collect()
}

fn cards(rows: &Rows, card: impl Fn(&ProblemLine) -> Option<Card>) -> Vec<Cards> {
    let mut list: Vec<Cards> = Vec::new();
    for p in &rows.problems {
        let Some(card) = card(p) else { continue };
        match list.iter_mut().find(|c| c.op == p.op) {
            Some(cards) => cards.cards.push(card),
            None => list.push(Cards { op: p.op.clone(), cards: vec![card] }),
        }
    }
    list
}

fn history_card(p: &ProblemLine) -> Option<Card> {
    let svg = series::history(p)?;
    let mut lines = vec![series::history_in_words(p)];
    if let Some(w) = &p.winner {
        lines.push(format!("{} {}", w.template, w.config));
        let rejected: Vec<String> = w.rejected.iter().map(|(why, n)| format!("{n} {why}")).collect();
        if !rejected.is_empty() {
            lines.push(format!("rejected: {}", rejected.join(", ")));
        }
    }
    Some(Card { problem: p.problem.clone(), lines, svg })
}

fn bar_card(rows: &Rows, palette: &Palette, p: &ProblemLine) -> Card {
    let svg = bars::plot(rows, palette, p).unwrap_or_default();
    let mut lines: Vec<String> = Vec::new();
    if let Some(w) = &p.winner {
        let sizes = [
            w.registers.map(|v| format!("{v} registers")),
            w.shared_bytes.map(|v| format!("{v} bytes of shared memory")),
            w.spills.filter(|v| *v > 0).map(|v| format!("{v} bytes of spills")),
            w.blocks_per_sm.map(|v| format!("{v} blocks a multiprocessor")),
        ];
        let sizes: Vec<String> = sizes.into_iter().flatten().collect();
        lines.push(format!("jitune: {} {} ({} trials)", w.template, w.config, w.trials));
        if !sizes.is_empty() {
            lines.push(sizes.join(", "));
        }
    }
    if svg.is_empty() {
        lines.push("jitune has no time here, so there is nothing to hold the others against.".into());
    }
    let odd = rows.rows.iter().filter(|r| r.problem == p.problem);
    for row in odd.filter(|r| !matches!(r.state, State::Ok | State::Unsupported)) {
        let why = row.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        lines.push(format!("{} {}{why}", text::label_of(row), cell(Some(row), None).time));
    }
    Card { problem: p.problem.clone(), lines, svg }
}

fn interval(times: Option<&Times>) -> String {
    let text = |t: &Times| format!("{} [{}, {}]", text::us(t.median_us), text::us(t.low_us), text::us(t.high_us));
    times.map(text).unwrap_or_default()
}

fn full(rows: &Rows, row: &Row) -> Full {
    let ours = ours(rows, &row.problem);
    let shown = cell(Some(row), ours);
    let joined = |parts: Vec<Option<String>>| parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let state = match row.state {
        State::Ok => super::count::apart(row, ours).unwrap_or_else(|| "ok".into()),
        State::Unsupported => "not supported".into(),
        _ => shown.time.clone(),
    };
    let counters = row.counters.as_ref().map(|c| {
        let pct = |name: &str, v: Option<f64>| v.map(|v| format!("{name} {v:.0}%"));
        joined(vec![
            pct("tensor", c.tensor_pct),
            pct("occupancy", c.occupancy_pct),
            pct("DRAM", c.dram_pct),
            pct("L2", c.l2_pct),
            c.kernels.map(|v| format!("{v} kernels")),
            c.registers.map(|v| format!("{v} registers")),
            c.shared_bytes.map(|v| format!("{v} B shared")),
            Some(format!("by {}", c.source)),
        ])
    });
    let throttled = Some(row.throttled.join(", ")).filter(|t| !t.is_empty());
    Full {
        problem: row.problem.clone(),
        way: text::label_of(row),
        version: row.version.clone().unwrap_or_default(),
        class: shown.class,
        state: joined(vec![Some(state), row.why.clone()]),
        kernel: interval(row.kernel.as_ref()),
        called: interval(row.called.as_ref()),
        ratio: joined(vec![row.ratio.map(text::ratio), row.tie.then(|| "tie".into())]),
        rate: joined(vec![row.tflops.map(|v| format!("{v:.2} TFLOP/s")), row.gbs.map(|v| format!("{v:.0} GB/s"))]),
        share: row.roofline_share.map(text::percent).unwrap_or_default(),
        error: joined(vec![
            row.error_rms.map(|v| format!("rms {v:.1e}")),
            row.error_max.map(|v| format!("max {v:.1e}")),
            (row.compared > 0).then(|| format!("of {}", row.compared)),
        ]),
        clock: joined(vec![row.clock_mhz.map(|v| format!("{v:.0} MHz")), throttled]),
        counters: counters.unwrap_or_default(),
        how: row.how.clone(),
    }
}
