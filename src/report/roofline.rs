//! Every row under the device's ceilings.

use super::count::{OURS, is_ours};
use super::palette::Palette;
use super::rows::State;
use super::svg::{Scale, Svg, number};
use super::{Rows, text};
use crate::problem::{Compute, Problem, Storage};

/// What a mark shows.
struct Mark {
    op: usize,
    peer: usize,
    ours: bool,
    beside: bool,
    intensity: f64,
    tflops: f64,
    title: String,
}

fn marks(rows: &Rows, palette: &Palette) -> Vec<Mark> {
    let mark = |row: &super::rows::Row| {
        let p = rows.problems.iter().find(|p| p.problem == row.problem)?;
        let (intensity, tflops) = (p.flops / p.bytes as f64, row.tflops?);
        let shown = row.state == State::Ok && row.covers == "all" && tflops > 0.0 && intensity > 0.0;
        let us = row.times().map(|t| text::us(t.median_us)).unwrap_or_default();
        let share = row.roofline_share.map(|s| format!(", {} of the roofline", text::percent(s))).unwrap_or_default();
        let title = format!("{}: {us} µs, {} TFLOP/s{share}: {}", text::label_of(row), number(tflops), row.problem);
        let ours = is_ours(row);
        let beside = row.peer == OURS.0 && !ours;
        let (op, peer) = (palette.op(&p.op), palette.peer(&row.peer));
        (shown && intensity.is_finite()).then_some(Mark { op, peer, ours, beside, intensity, tflops, title })
    };
    let mut list: Vec<Mark> = rows.rows.iter().filter_map(mark).collect();
    // Ours are drawn last, on top.
    list.sort_by_key(|m| m.ours);
    list
}

/// Names and rates in TFLOP/s of the ceilings that the run's dtypes meet.
fn peaks(rows: &Rows) -> Vec<(String, f64)> {
    let Some(device) = &rows.run.device else { return Vec::new() };
    let mut list: Vec<(String, f64)> = Vec::new();
    for p in rows.problems.iter().filter_map(|p| p.problem.parse::<Problem>().ok()) {
        let name = match (p.types().factors(), p.types().compute) {
            (Storage::Bf16 | Storage::F16, _) => "bf16/f16",
            (Storage::E4m3, _) => "e4m3",
            (Storage::Int8, _) => "int8",
            (_, Compute::Tf32) => "TF32",
            (_, Compute::F32) => "f32",
        };
        let rate = device.ceilings.flops(p.types()) / 1e12;
        if rate > 0.0 && !list.iter().any(|(n, _)| n == name) {
            list.push((name.into(), rate));
        }
    }
    list
}

/// The plot at one width; none where there is nothing to show.
pub fn plot(rows: &Rows, palette: &Palette, width: f64) -> Option<String> {
    let marks = marks(rows, palette);
    let device = rows.run.device.as_ref()?;
    let read = device.ceilings.read / 1e12;
    let peaks = peaks(rows);
    let (left, right, top, bottom) = (46.0, 8.0, 14.0, 40.0);
    let height = (width * 0.62).clamp(340.0, 560.0);
    let ends = |f: fn(&Mark) -> f64| {
        marks.iter().map(f).fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (ends(|m| m.intensity), ends(|m| m.tflops));
    if marks.is_empty() || read <= 0.0 {
        return None;
    }
    let peak = peaks.iter().map(|p| p.1).fold(y1, f64::max);
    let ridge = peak / read;
    let x = Scale::log(x0 / 1.6, x1.max(ridge) * 2.0, left, width - right);
    let y = Scale::log(y0 / 1.6, peak * 1.6, height - bottom, top);
    let mut svg = Svg::new(width, height, "Roofline: operations a second over operations a byte");
    for v in x.ticks(8) {
        svg.line((x.at(v), top), (x.at(v), height - bottom), "grid");
        svg.text((x.at(v), height - bottom + 16.0), "tick mid", &number(v));
    }
    for v in y.ticks(8) {
        svg.line((left, y.at(v)), (width - right, y.at(v)), "grid");
        svg.text((left - 5.0, y.at(v) + 4.0), "tick end", &number(v));
    }
    svg.text(((left + width) / 2.0, height - 6.0), "tick mid", "operations a byte");
    svg.turned((12.0, (top + height - bottom) / 2.0), -90.0, "tick mid", "TFLOP/s");
    // The memory's ceiling starts where the plot does, at its left or at its lower edge.
    let start = (x0 / 1.6).max(y0 / 1.6 / read);
    let (from, to) = ((x.at(start), y.at(start * read)), (x.at(ridge), y.at(peak)));
    svg.line(from, to, "ceiling");
    let angle = (to.1 - from.1).atan2(to.0 - from.0).to_degrees();
    let at = (from.0 + (to.0 - from.0) * 0.42, from.1 + (to.1 - from.1) * 0.42);
    svg.turned((at.0 - 4.0, at.1 - 7.0), angle, "label mid", &format!("read {:.0} GB/s", read * 1e3));
    for (name, rate) in &peaks {
        svg.line((x.at(rate / read), y.at(*rate)), (width - right, y.at(*rate)), "ceiling");
        svg.text((width - right, y.at(*rate) - 6.0), "label end", &format!("{name} {} TFLOP/s", number(rate.round())));
    }
    let radius = if width < 500.0 { 4.0 } else { 5.5 };
    for m in &marks {
        let class = format!("mark {}c{}", if m.beside { "beside " } else { "" }, m.peer);
        svg.mark(m.op, (x.at(m.intensity), y.at(m.tflops)), radius, &class, &m.title);
    }
    Some(svg.finish())
}
