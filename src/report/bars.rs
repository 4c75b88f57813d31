//! The ways of one problem as bars, jitune's time being 1.

use super::count::{apart, is_ours, ours};
use super::palette::Palette;
use super::rows::{ProblemLine, Row, State};
use super::svg::{Scale, Svg};
use super::tables::cell;
use super::{Rows, text};

/// Narrow enough that its text stays legible on a phone.
const WIDTH: f64 = 340.0;
/// Height of a way: its words, and its bar below.
const STEP: f64 = 36.0;
/// Bars of those that take longer than this many times ours end here, with a break; their words say the number.
const LONGEST: f64 = 4.0;

/// The bars of a problem; none where jitune has no time that they could be held against.
pub fn plot(rows: &Rows, palette: &Palette, p: &ProblemLine) -> Option<String> {
    let ours = ours(rows, &p.problem)?;
    let mut timed: Vec<(&Row, f64)> = rows
        .rows
        .iter()
        .filter(|r| r.problem == p.problem && r.state == State::Ok && r.times().is_some())
        .filter_map(|r| if is_ours(r) { Some((r, 1.0)) } else { Some((r, r.ratio?)) })
        .filter(|(_, ratio)| ratio.is_finite() && *ratio > 0.0)
        .collect();
    timed.sort_by(|a, b| a.1.total_cmp(&b.1));
    let longest = timed.iter().map(|t| t.1).fold(1.0, f64::max).min(LONGEST) * 1.04;
    let x = Scale::linear(0.0, longest, 0.0, WIDTH);
    let height = STEP * timed.len() as f64 + 22.0;
    let mut svg = Svg::new(WIDTH, height, &format!("Times of {} beside jitune's", p.problem));
    let ours_us = ours.times()?.median_us;
    for (i, (row, ratio)) in timed.iter().enumerate() {
        bar(&mut svg, &x, i as f64 * STEP, row, *ratio, ours, palette.peer(&row.peer));
    }
    let floor = Some(p.roofline_us / ours_us).filter(|f| *f > 0.0 && *f < longest);
    for (i, y) in (0..timed.len()).map(|i| (i, i as f64 * STEP + 16.0)) {
        // Between the words of one way and the next, so that no line crosses them.
        let down = if i + 1 < timed.len() { 17.0 } else { 16.0 };
        svg.line((x.at(1.0), y), (x.at(1.0), y + down), "one");
        if let Some(floor) = floor {
            svg.line((x.at(floor), y), (x.at(floor), y + down), "floor");
        }
    }
    let y = height - 6.0;
    svg.line((0.0, y - 4.0), (22.0, y - 4.0), "one");
    svg.text((28.0, y), "tick", "jitune = 1");
    if floor.is_some() {
        svg.line((120.0, y - 4.0), (142.0, y - 4.0), "floor");
        svg.text((148.0, y), "tick", &format!("roofline {} µs", text::us(p.roofline_us)));
    }
    Some(svg.finish())
}

fn bar(svg: &mut Svg, x: &Scale, y: f64, row: &Row, ratio: f64, ours: &Row, peer: usize) {
    let Some(times) = row.times() else { return };
    let cell = cell(Some(row), Some(ours));
    let mine = is_ours(row);
    let label = text::label_of(row);
    let note = if cell.note.is_empty() { String::new() } else { format!(", {}", cell.note) };
    let counted = mine || apart(row, Some(ours)).is_none();
    let end = x.at(ratio.min(LONGEST));
    let class = if counted { "bar" } else { "bar aside" };
    let interval = format!("{} to {} µs", text::us(times.low_us), text::us(times.high_us));
    let title = format!("{label}: {} µs, 95% interval {interval}. {}", text::us(times.median_us), row.how);
    svg.text((0.0, y + 14.0), if mine { "name strong" } else { "name" }, &label);
    let ratio_text = if mine { String::new() } else { format!(", {}{note}", text::ratio(ratio)) };
    let value = format!("{} µs{ratio_text}", text::us(times.median_us));
    svg.text((WIDTH, y + 14.0), if cell.class == "loss" { "name end lost" } else { "name end" }, &value);
    svg.rect((0.0, y + 19.0), (end, 11.0), &format!("{class} c{peer}"), &title);
    if ratio > LONGEST {
        let at = WIDTH * 0.9;
        svg.path(&[(at, y + 32.0), (at + 6.0, y + 17.0)], "break");
        return;
    }
    // The interval on the scale of the bar: the ratio that is known, times how far its ends are from the median.
    let [low, high] = [times.low_us, times.high_us].map(|us| x.at(ratio * us / times.median_us));
    let middle = y + 24.5;
    svg.line((low, middle), (high, middle), "whisker");
    svg.line((low, middle - 4.0), (low, middle + 4.0), "whisker");
    svg.line((high, middle - 4.0), (high, middle + 4.0), "whisker");
}
