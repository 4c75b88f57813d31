//! What happened over time: the trials of a problem's tuning, and the hardware during the run.

use super::rows::{ProblemLine, Trace};
use super::svg::{Scale, Svg, number};
use super::text;

/// A problem's trials and the best so far; none where they are not known.
pub fn history(p: &ProblemLine) -> Option<String> {
    let (width, height, left, bottom, top) = (340.0, 170.0, 46.0, 34.0, 8.0);
    let good = |v: &&(f64, f64)| v.0.is_finite() && v.1.is_finite() && v.1 > 0.0;
    let trials: Vec<(f64, f64)> = p.history.iter().filter(good).copied().collect();
    let last = trials.iter().map(|t| t.0).fold(0.0, f64::max);
    let least = trials.iter().map(|t| t.1).fold(f64::INFINITY, f64::min);
    let most = trials.iter().map(|t| t.1).fold(0.0, f64::max);
    if trials.is_empty() {
        return None;
    }
    let floor = Some(p.roofline_us).filter(|v| *v > 0.0 && *v > least / 3.0);
    let x = Scale::linear(0.0, last, left, width - 6.0);
    let y = Scale::log(floor.unwrap_or(least).min(least) / 1.08, most * 1.08, height - bottom, top);
    let mut svg = Svg::new(width, height, &format!("Trials of {}", p.problem));
    for v in y.ticks(4) {
        svg.line((left, y.at(v)), (width - 6.0, y.at(v)), "grid");
        svg.text((left - 5.0, y.at(v) + 4.0), "tick end", &number(v));
    }
    for v in x.ticks(5) {
        svg.text((x.at(v), height - bottom + 15.0), "tick mid", &number(v));
    }
    svg.text(((left + width) / 2.0, height - 4.0), "tick mid", "seconds of tuning");
    svg.turned((11.0, (top + height - bottom) / 2.0), -90.0, "tick mid", "µs");
    if let Some(floor) = floor {
        svg.line((left, y.at(floor)), (width - 6.0, y.at(floor)), "floor");
        svg.text((left + 4.0, y.at(floor) - 4.0), "tick", "roofline");
    }
    let mut best = f64::INFINITY;
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (seconds, us) in &trials {
        svg.dot((x.at(*seconds), y.at(*us)), 2.5, "trial");
        if *us < best {
            if let Some(before) = steps.last().map(|s| s.1) {
                steps.push((x.at(*seconds), before));
            }
            best = *us;
            steps.push((x.at(*seconds), y.at(best)));
        }
    }
    steps.push((x.at(last), y.at(best)));
    svg.path(&steps, "best c0");
    Some(svg.finish())
}

/// The first time, the best and when it was found, in words.
pub fn history_in_words(p: &ProblemLine) -> String {
    let Some(first) = p.history.first() else { return String::new() };
    let best = p.history.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
    format!(
        "{} trials: {} µs first, {} µs best after {:.1} s",
        p.history.len(),
        text::us(first.1),
        text::us(best.1),
        best.0
    )
}

/// One line of a panel: its name and class, and what it shows.
type Curve = (&'static str, &'static str, fn(&Trace) -> Option<f64>);

/// The panels: a title, and its curves.
const PANELS: [(&str, &[Curve]); 4] = [
    ("clock, MHz", &[("", "curve c1", |t| t.sm_mhz)]),
    ("power, W", &[("", "curve c0", |t| t.power_w)]),
    ("temperature, °C", &[("", "curve c3", |t| t.temp_c)]),
    ("in use, %", &[("kernels", "curve c2", |t| t.gpu_pct), ("memory", "curve dashed c5", |t| t.mem_pct)]),
];

/// The hardware over the run at one width; none where nothing was read.
pub fn trace(list: &[Trace], width: f64) -> Option<String> {
    let spans = throttled(list);
    // More points than pixels show nothing more.
    let thin: Vec<Trace> = list.iter().step_by(list.len().div_ceil(800).max(1)).cloned().collect();
    let list = thin.as_slice();
    let (left, right, each) = (46.0, 8.0, 108.0);
    let known = |curves: &[Curve]| list.iter().any(|t| curves.iter().any(|c| (c.2)(t).is_some()));
    let panels: Vec<_> = PANELS.iter().filter(|p| known(p.1)).collect();
    let (first, last) = (list.first()?.t, list.last()?.t);
    if panels.is_empty() {
        return None;
    }
    let height = each * panels.len() as f64 + 34.0;
    let x = Scale::linear(first, last, left, width - right);
    let mut svg = Svg::new(width, height, "Clock, power, temperature and use of the device over the run");
    for (from, to, why) in spans {
        let at = (x.at(from), 18.0);
        let size = ((x.at(to) - x.at(from)).max(3.0), height - 34.0 - 18.0);
        svg.rect(at, size, "throttle", &format!("{why}: {from:.0} s to {to:.0} s"));
    }
    for (i, (title, curves)) in panels.iter().enumerate() {
        panel(&mut svg, list, &x, i as f64 * each, (left, width - right, each), title, curves);
    }
    for v in x.ticks(if width < 500.0 { 5 } else { 10 }) {
        svg.text((x.at(v), height - 20.0), "tick mid", &number(v));
    }
    svg.text(((left + width) / 2.0, height - 4.0), "tick mid", "seconds of the run");
    Some(svg.finish())
}

fn panel(
    svg: &mut Svg,
    list: &[Trace],
    x: &Scale,
    top: f64,
    (left, right, each): (f64, f64, f64),
    title: &str,
    curves: &[Curve],
) {
    let values = list.iter().flat_map(|t| curves.iter().filter_map(|c| (c.2)(t))).filter(|v| v.is_finite());
    let most = values.fold(0.0, f64::max);
    let y = Scale::linear(0.0, most * 1.05, top + each - 8.0, top + 22.0);
    svg.text((left, top + 14.0), "name", title);
    for v in y.ticks(4) {
        svg.line((left, y.at(v)), (right, y.at(v)), "grid");
        svg.text((left - 5.0, y.at(v) + 4.0), "tick end", &number(v));
    }
    let mut end = right;
    for (name, class, value) in curves.iter().rev() {
        let mut run: Vec<(f64, f64)> = Vec::new();
        // A curve breaks where nothing could be read.
        for t in list {
            match value(t).filter(|v| v.is_finite()) {
                Some(v) => run.push((x.at(t.t), y.at(v))),
                None if run.is_empty() => {}
                None => svg.path(&std::mem::take(&mut run), class),
            }
        }
        if !run.is_empty() {
            svg.path(&run, class);
        }
        if !name.is_empty() {
            svg.text((end, top + 14.0), "name end", name);
            end -= name.len() as f64 * 8.0 + 12.0;
            svg.path(&[(end - 20.0, top + 10.0), (end, top + 10.0)], class);
            end -= 30.0;
        }
    }
}

/// From when to when clocks were held back, and why.
pub fn throttled(list: &[Trace]) -> Vec<(f64, f64, String)> {
    let mut spans: Vec<(f64, f64, String)> = Vec::new();
    let mut before: Option<&Trace> = None;
    for t in list {
        let why = t.throttle.join(", ");
        let same = before.is_some_and(|b| b.throttle == t.throttle);
        match spans.last_mut() {
            Some(span) if same && !why.is_empty() => span.1 = t.t,
            _ if !why.is_empty() => spans.push((t.t, t.t, why)),
            _ => {}
        }
        before = Some(t);
    }
    spans
}
