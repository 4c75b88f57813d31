//! The ways of one problem as bars, jitune's time being 1.

use super::palette::Palette;
use super::rows::{ProblemLine, Row, State};
use super::summary::{apart, is_ours, ours};
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
    let height = STEP * timed.len() as f64 + 20.0;
    let mut svg = Svg::new(WIDTH, height, &format!("Times of {} beside jitune's", p.problem));
    let ours_us = ours.times()?.median_us;
    svg.line((x.at(1.0), 4.0), (x.at(1.0), height - 16.0), "one");
    for (i, (row, ratio)) in timed.iter().enumerate() {
        bar(&mut svg, &x, i as f64 * STEP, row, *ratio, ours, palette.peer(&row.peer));
    }
    let floor = p.roofline_us / ours_us;
    let room = x.at(1.0) - x.at(floor) > 90.0;
    if p.roofline_us > 0.0 && floor.is_finite() && (0.0..longest).contains(&floor) {
        svg.line((x.at(floor), 4.0), (x.at(floor), height - 16.0), "floor");
        let (at, class) = if room && x.at(floor) < 60.0 { (0.0, "tick") } else { (x.at(floor) - 4.0, "tick end") };
        if room || x.at(floor) > 60.0 {
            svg.text((at, height - 3.0), class, "roofline");
        }
    }
    let (at, class) = if x.at(1.0) > WIDTH - 70.0 && room { (WIDTH, "tick end") } else { (x.at(1.0) + 3.0, "tick") };
    svg.text((at, height - 3.0), class, "jitune = 1");
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
    let ratio_text = if mine { String::new() } else { format!("  {}{note}", text::ratio(ratio)) };
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
