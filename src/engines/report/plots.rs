//! Plots of a run of engines. A colour is an engine, the same in every plot.

use super::entry::{Entry, Value};
use super::read::Runs;
use super::summary::LibraryComparisonReport;
use super::words::{dollars, number};
use crate::engines::rows::{Of, Request};
use crate::engines::workload::{Arrivals, Length};
use crate::report::palette::Palette;
use crate::report::rows::Trace;
use crate::report::series;
use crate::report::svg::{Scale, Svg, number as tick};
use serde::Serialize;

/// Narrow enough that its text stays legible on a phone.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;
/// Requests of a timeline, and tokens of each that are drawn.
const SHOWN: usize = 6;
const DOTS: usize = 60;

/// A plot with its words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    /// What it shows.
    pub title: String,
    /// More words.
    pub lines: Vec<String>,
    /// The plot.
    pub svg: String,
}

/// The engines in the order of their colours: jitune first, then as they come.
pub fn palette(report: &LibraryComparisonReport) -> (Palette, bool) {
    let mut names = vec![super::entry::OURS.to_string()];
    for e in shown(report) {
        if !names.contains(&e.engine) {
            names.push(e.engine.clone());
        }
    }
    let any = shown(report).next().is_some();
    (Palette::named(names), any)
}

/// What is drawn: what counts, without those that were entered a second time.
fn shown(report: &LibraryComparisonReport) -> impl Iterator<Item = &Entry> {
    report.entries.iter().filter(|e| e.counted().is_some() && !e.twin())
}

/// The workloads, precisions and devices that are drawn.
fn groups(report: &LibraryComparisonReport) -> Vec<(String, Vec<&Entry>)> {
    let mut list: Vec<([&str; 3], Vec<&Entry>)> = Vec::new();
    for e in shown(report) {
        match list.iter_mut().find(|(group, _)| *group == e.group()) {
            Some((_, entries)) => entries.push(e),
            None => list.push((e.group(), vec![e])),
        }
    }
    list.into_iter().map(|(group, entries)| (group.join(", "), entries)).collect()
}

/// A curve: its colour, its name, its points.
struct Curve {
    class: String,
    name: String,
    points: Vec<(f64, f64)>,
}

/// Curves with their axes; none without a point.
fn chart(label: &str, names: (&str, &str), logs: (bool, bool), curves: &[Curve], marks: bool) -> Option<String> {
    let all: Vec<(f64, f64)> = curves.iter().flat_map(|c| c.points.iter().copied()).collect();
    let ends = |f: fn(&(f64, f64)) -> f64| {
        let values = all.iter().map(f);
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
    };
    if all.is_empty() {
        return None;
    }
    let scale = |(low, high): (f64, f64), log: bool, from: f64, to: f64| match log {
        true => Scale::log(low / 1.15, high * 1.15, from, to),
        false => Scale::linear(0.0, high * 1.05, from, to),
    };
    let x = scale(ends(|p| p.0), logs.0, LEFT, WIDTH - RIGHT);
    let y = scale(ends(|p| p.1), logs.1, HEIGHT - BOTTOM, TOP);
    let mut svg = Svg::new(WIDTH, HEIGHT, label);
    axes(&mut svg, &x, &y, names, HEIGHT);
    // The first, which is jitune's, above the others.
    for curve in curves.iter().rev() {
        let points: Vec<(f64, f64)> = curve.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        if points.len() > 1 {
            svg.path(&points, &format!("curve {}", curve.class));
        }
        for (at, p) in points.iter().zip(&curve.points).filter(|_| marks || points.len() == 1) {
            let title = format!("{}: {} {}, {} {}", curve.name, number(p.0), names.0, number(p.1), names.1);
            svg.mark(0, *at, 4.5, &format!("mark {}", curve.class), &title);
        }
    }
    Some(svg.finish())
}

fn axes(svg: &mut Svg, x: &Scale, y: &Scale, names: (&str, &str), height: f64) {
    for v in y.ticks(4) {
        svg.line((LEFT, y.at(v)), (WIDTH - RIGHT, y.at(v)), "grid");
        svg.text((LEFT - 5.0, y.at(v) + 4.0), "tick end", &tick(v));
    }
    for v in x.ticks(4) {
        svg.line((x.at(v), TOP), (x.at(v), height - BOTTOM), "grid");
        svg.text((x.at(v), height - BOTTOM + 15.0), "tick mid", &tick(v));
    }
    svg.text(((LEFT + WIDTH - RIGHT) / 2.0, height - 4.0), "tick mid", names.0);
    svg.turned((12.0, (TOP + height - BOTTOM) / 2.0), -90.0, "tick mid", names.1);
}

fn class(palette: &Palette, engine: &str) -> String {
    format!("c{}", palette.peer(engine))
}

fn length(l: &Length) -> String {
    match l {
        Length::Fixed(n) => n.to_string(),
        Length::Uniform(a, b) => format!("{a}–{b}"),
        Length::Geometric { mean, least, most } => format!("{} ({least}–{most})", number(*mean)),
    }
}

/// Latency against throughput, one curve an engine over the workloads that differ in their load alone.
pub fn latency(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette) -> Vec<Card> {
    let family = |e: &Entry| {
        let w = runs.run.workloads.iter().find(|w| w.name == e.workload)?;
        let kind = match w.arrivals {
            Arrivals::Closed { .. } => "clients that ask again at once",
            Arrivals::Open { .. } => "requests at random",
            Arrivals::Trace { .. } => "requests as a file says",
        };
        let turns = if w.turns > 1 { format!(", {} turns", w.turns) } else { String::new() };
        let lengths = format!("prompts of {}, answers of {}{turns}", length(&w.prompt), length(&w.answer));
        Some(format!("{lengths}, {kind}, {}, {}", e.dtype, e.device))
    };
    let mut families: Vec<(String, Vec<&Entry>)> = Vec::new();
    for e in shown(report) {
        let Some(name) = family(e) else { continue };
        match families.iter_mut().find(|(known, _)| *known == name) {
            Some((_, list)) => list.push(e),
            None => families.push((name, vec![e])),
        }
    }
    type Of = fn(&super::entry::Figures) -> Option<Value>;
    let metrics: [(&str, Of); 2] = [("TPOT, ms", |f| f.tpot_ms), ("TTFT, ms", |f| f.ttft_ms)];
    let mut cards = Vec::new();
    for (name, entries) in &families {
        for (metric, of) in metrics {
            let mut curves: Vec<Curve> = Vec::new();
            for e in entries {
                let point = e.counted().and_then(|f| Some((f.output_throughput?.median, of(f)?.median)));
                let Some(point) = point.filter(|(x, y)| *x > 0.0 && *y > 0.0) else { continue };
                match curves.iter_mut().find(|c| c.name == e.engine) {
                    Some(c) => c.points.push(point),
                    None => curves.push(Curve {
                        class: class(palette, &e.engine),
                        name: e.engine.clone(),
                        points: vec![point],
                    }),
                }
            }
            curves.iter_mut().for_each(|c| c.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
            let label = format!("{metric} against output tokens/s, {name}");
            let plot = chart(&label, ("output tokens/s", metric), (true, true), &curves, true);
            cards.extend(plot.map(|svg| Card { title: metric.into(), lines: vec![name.clone()], svg }));
        }
    }
    cards
}

/// The requests of an entry's rounds that count.
fn requests<'a>(runs: &'a Runs, e: &'a Entry) -> impl Iterator<Item = &'a Request> {
    let of = |round: &u32| Of {
        engine: e.engine.clone(),
        dtype: e.dtype.clone(),
        workload: e.workload.clone(),
        round: *round,
    };
    e.rounds.iter().filter_map(move |r| runs.requests.get(&of(r))).flatten().filter(|r| !r.warm)
}

/// What a request adds to a plot of percentiles.
type Values<'a> = &'a dyn Fn(&Request) -> Vec<f64>;

/// Percentiles of the time to the first token and of the gaps between pieces.
pub fn percentiles(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette) -> Vec<Card> {
    let first = |r: &Request| r.at_s.first().map(|at| vec![(at - r.sent_s) * 1e3]).unwrap_or_default();
    let gaps = |r: &Request| r.at_s.windows(2).map(|w| (w[1] - w[0]) * 1e3).collect::<Vec<_>>();
    let metrics = [("TTFT, ms", &first as Values<'_>), ("ITL, ms", &gaps)];
    let mut cards = Vec::new();
    for (name, entries) in groups(report) {
        for (metric, of) in metrics {
            let curve = |e: &&Entry| {
                let mut values: Vec<f64> = requests(runs, e).flat_map(of).filter(|v| *v > 0.0).collect();
                values.sort_by(f64::total_cmp);
                let at = |p: f64| values.get(((p / 100.0 * values.len() as f64).ceil() as usize).max(1) - 1);
                let shares = (1..=19).map(|i| f64::from(i) * 5.0).chain([97.0, 98.0, 99.0, 99.5, 100.0]);
                let points = shares.filter_map(|p| Some((p, *at(p)?))).collect();
                Curve { class: class(palette, &e.engine), name: e.engine.clone(), points }
            };
            let curves: Vec<Curve> = entries.iter().map(curve).collect();
            let label = format!("Percentiles of {metric} at {name}");
            let plot = chart(&label, ("percentile", metric), (false, true), &curves, false);
            cards.extend(plot.map(|svg| Card { title: metric.into(), lines: vec![name.clone()], svg }));
        }
    }
    cards
}

/// The first requests with an answer.
fn few<'a>(runs: &'a Runs, e: &'a Entry) -> Vec<&'a Request> {
    let mut list: Vec<&Request> = requests(runs, e).filter(|r| !r.at_s.is_empty()).collect();
    list.sort_by(|a, b| a.sent_s.total_cmp(&b.sent_s));
    list.truncate(SHOWN);
    list
}

/// The tokens of a few requests over time, of jitune and two others.
pub fn timelines(report: &LibraryComparisonReport, runs: &Runs, palette: &Palette) -> Vec<Card> {
    let mut cards = Vec::new();
    for (name, mut entries) in groups(report) {
        entries.sort_by_key(|e| !e.ours());
        let drawn: Vec<(&Entry, Vec<&Request>)> =
            entries.into_iter().map(|e| (e, few(runs, e))).filter(|(_, list)| !list.is_empty()).take(3).collect();
        let span = |list: &[&Request]| {
            let from = list.iter().map(|r| r.due_s.min(r.sent_s)).fold(f64::INFINITY, f64::min);
            let to = list.iter().filter_map(|r| r.at_s.last()).copied().fold(0.0, f64::max);
            (from, to - from)
        };
        // One scale for all of a workload, so that what is longer looks longer.
        let longest = drawn.iter().map(|(_, list)| span(list).1).fold(0.0, f64::max);
        for (e, list) in drawn {
            let (from, _) = span(&list);
            let x = Scale::linear(0.0, longest * 1e3, 4.0, WIDTH - RIGHT);
            let height = 22.0 * list.len() as f64 + BOTTOM + 4.0;
            let mut svg = Svg::new(WIDTH, height, &format!("Requests of {} at {name} over time", e.engine));
            let colour = class(palette, &e.engine);
            let at = |s: f64| x.at((s - from) * 1e3);
            for v in x.ticks(4) {
                svg.line((x.at(v), 0.0), (x.at(v), height - BOTTOM), "grid");
                svg.text((x.at(v).max(12.0), height - BOTTOM + 15.0), "tick mid", &tick(v));
            }
            svg.text((WIDTH / 2.0, height - 4.0), "tick mid", "ms since the first was due");
            for (i, r) in list.iter().enumerate() {
                let y = 22.0 * i as f64 + 4.0;
                let Some((first, last)) = r.at_s.first().zip(r.at_s.last()) else { continue };
                let title = format!(
                    "request {}: due {:.1} ms, first token {:.1} ms after it was sent, {} pieces, {:.1} ms in all",
                    r.id,
                    (r.due_s - from) * 1e3,
                    (first - r.sent_s) * 1e3,
                    r.at_s.len(),
                    (last - r.sent_s) * 1e3
                );
                let wait = (at(*first) - at(r.due_s)).max(1.0);
                svg.rect((at(r.due_s), y + 4.0), (wait, 6.0), &format!("bar aside {colour}"), &title);
                svg.line((at(*first), y + 7.0), (at(*last), y + 7.0), "grid");
                for s in r.at_s.iter().step_by(r.at_s.len().div_ceil(DOTS).max(1)) {
                    svg.dot((at(*s), y + 7.0), 2.0, &format!("bar {colour}"));
                }
            }
            cards.push(Card { title: e.engine.clone(), lines: vec![name.clone()], svg: svg.finish() });
        }
    }
    cards
}

/// Output tokens a second in each tenth of the time.
pub fn over_time(report: &LibraryComparisonReport, palette: &Palette) -> Vec<Card> {
    let card = |(name, entries): (String, Vec<&Entry>)| {
        let curve = |e: &&Entry| Curve {
            class: class(palette, &e.engine),
            name: e.engine.clone(),
            points: e.counted().map_or(&[][..], |f| &f.over_time).iter().enumerate().map(part).collect(),
        };
        let curves: Vec<Curve> = entries.iter().map(curve).collect();
        let label = format!("Output tokens/s over time at {name}");
        let svg = chart(&label, ("% of the time", "output tokens/s"), (false, false), &curves, false)?;
        Some(Card { title: "output tokens/s".into(), lines: vec![name], svg })
    };
    groups(report).into_iter().filter_map(card).collect()
}

/// A tenth's middle in percent.
fn part((i, v): (usize, &f64)) -> (f64, f64) {
    (i as f64 * 10.0 + 5.0, *v)
}

/// Dollars for a million tokens, a bar an engine.
pub fn costs(report: &LibraryComparisonReport, palette: &Palette) -> Vec<Card> {
    let mut workloads: Vec<(&str, &str)> = Vec::new();
    for c in &report.costs {
        if !workloads.contains(&(&c.workload, &c.dtype)) {
            workloads.push((&c.workload, &c.dtype));
        }
    }
    let card = |(workload, dtype): (&str, &str)| {
        let here = report.costs.iter().filter(|c| c.workload == workload && c.dtype == dtype);
        let mut list: Vec<_> = here.filter_map(|c| Some((c, c.dollars_a_million?))).collect();
        list.sort_by(|a, b| a.1.total_cmp(&b.1));
        let most = list.last()?.1;
        let x = Scale::linear(0.0, most, 0.0, WIDTH);
        let mut svg =
            Svg::new(WIDTH, 36.0 * list.len() as f64, &format!("Dollars a million tokens at {workload} {dtype}"));
        for (i, (c, v)) in list.iter().enumerate() {
            let y = 36.0 * i as f64;
            svg.text((0.0, y + 14.0), "name", &c.engine);
            svg.text((WIDTH, y + 14.0), "name end", &dollars(*v));
            let colour = class(palette, &c.engine);
            svg.rect(
                (0.0, y + 19.0),
                (x.at(*v), 11.0),
                &format!("bar {colour}"),
                &format!("{} on {}", c.engine, c.device),
            );
        }
        let title = format!("{workload}, {dtype}");
        Some(Card { title, lines: vec!["dollars for a million output tokens".into()], svg: svg.finish() })
    };
    workloads.into_iter().filter_map(card).collect()
}

/// What the hardware did while an engine's cells ran, one after another.
pub fn hardware(report: &LibraryComparisonReport, runs: &Runs) -> Vec<Card> {
    let mut engines: Vec<(&str, &str)> = Vec::new();
    for e in shown(report) {
        if !engines.contains(&(&e.engine, &e.dtype)) {
            engines.push((&e.engine, &e.dtype));
        }
    }
    let card = |(engine, dtype): (&str, &str)| {
        let own = |of: &&Of| of.engine == engine && of.dtype == dtype;
        let round = runs.trace.keys().filter(own).map(|of| of.round).min()?;
        // In the order in which the cells were measured.
        let cells = runs.cells.iter().map(|c| &c.of).filter(own).filter(|of| of.round == round);
        let (mut list, mut begins, mut begin) = (Vec::<Trace>::new(), Vec::new(), 0.0);
        for (of, trace) in cells.filter_map(|of| Some((of, runs.trace.get(of)?))) {
            begins.push(format!("{} from {begin:.0} s", of.workload));
            list.extend(trace.iter().map(|t| Trace { t: begin + t.t, ..t.clone() }));
            begin = list.last().map_or(begin, |t| t.t + 1.0);
        }
        let held = series::throttled(&list);
        let held =
            held.iter().map(|(from, to, why)| format!("clocks were held back from {from:.0} s to {to:.0} s: {why}"));
        let lines = [begins.join(", ")].into_iter().chain(held).collect();
        Some(Card { title: format!("{engine}, {dtype}, round {round}"), lines, svg: series::trace(&list, WIDTH)? })
    };
    engines.into_iter().filter_map(card).collect()
}
