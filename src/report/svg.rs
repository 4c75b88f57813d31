//! Plots by hand: shapes, scales and ticks. Colours are classes, so that the page's scheme decides them.

use std::fmt::{Display, Write};

/// Shapes of marks, one an op; beyond them they come again.
pub const SHAPES: usize = 8;
/// Colours of peers: the classes `c0` to `c7`, of which the first is jitune's.
pub const COLOURS: usize = 8;

/// Text within HTML, attributes included.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#x27;"),
            c => out.push(c),
        }
    }
    out
}

/// A plot that fills the width of its place.
pub struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

/// Coordinates with one digit are finer than any screen.
fn n(v: f64) -> impl Display {
    (v * 10.0).round() / 10.0
}

impl Svg {
    /// An empty plot; `label` says what it is to those who do not see it.
    pub fn new(width: f64, height: f64, label: &str) -> Svg {
        Svg { width, height, label: escape(label), body: String::new() }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let (x1, y1, x2, y2) = (n(from.0), n(from.1), n(to.0), n(to.1));
        self.put(format_args!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"));
    }

    /// A box, with a tooltip unless that is empty.
    pub fn rect(&mut self, at: (f64, f64), size: (f64, f64), class: &str, title: &str) {
        let (x, y, w, h) = (n(at.0), n(at.1), n(size.0.max(0.0)), n(size.1.max(0.0)));
        self.put(format_args!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\""));
        self.end("rect", title);
    }

    /// Text; `class` holds `mid` or `end` where it is not to start at the point.
    pub fn text(&mut self, at: (f64, f64), class: &str, text: &str) {
        self.put(format_args!("<text class=\"{class}\" x=\"{}\" y=\"{}\">{}</text>", n(at.0), n(at.1), escape(text)));
    }

    /// Text turned by degrees about its point.
    pub fn turned(&mut self, at: (f64, f64), degrees: f64, class: &str, text: &str) {
        let (x, y, text) = (n(at.0), n(at.1), escape(text));
        let turn = n(degrees);
        self.put(format_args!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" transform=\"rotate({turn} {x} {y})\">{text}</text>"
        ));
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if i == 0 { 'M' } else { 'L' }, n(*x), n(*y));
        }
        self.put(format_args!("<path class=\"{class}\" d=\"{d}\"/>"));
    }

    /// A mark of an op's shape, with a tooltip.
    pub fn mark(&mut self, op: usize, at: (f64, f64), radius: f64, class: &str, title: &str) {
        self.put(format_args!("<path class=\"{class}\" d=\"{}\"", shape(op, at, radius)));
        self.end("path", title);
    }

    /// A dot without a tooltip.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, class: &str) {
        self.put(format_args!("<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{radius}\"/>", n(at.0), n(at.1)));
    }

    fn end(&mut self, tag: &str, title: &str) {
        match title {
            "" => self.put(format_args!("/>")),
            title => self.put(format_args!("><title>{}</title></{tag}>", escape(title))),
        }
    }

    /// The element.
    pub fn finish(self) -> String {
        let Svg { width, height, label, body } = self;
        format!("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{label}\">{body}</svg>", n(width), n(height))
    }
}

/// The outline of a mark.
fn shape(op: usize, (x, y): (f64, f64), r: f64) -> String {
    let polygon = |corners: &[(f64, f64)]| {
        let mut d = String::new();
        for (i, (dx, dy)) in corners.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if i == 0 { 'M' } else { 'L' }, n(x + dx * r), n(y + dy * r));
        }
        d + "Z"
    };
    match op % SHAPES {
        0 => {
            let (left, d, r) = (n(x - r), n(2.0 * r), n(r));
            format!("M{left} {}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z", n(y))
        }
        1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        2 => polygon(&[(0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)]),
        3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        4 => polygon(&[(0.0, 1.15), (1.1, -0.85), (-1.1, -0.85)]),
        5 => polygon(&[(-1.3, -0.4), (1.3, -0.4), (1.3, 0.4), (-1.3, 0.4)]),
        6 => polygon(&[(-0.4, -1.3), (0.4, -1.3), (0.4, 1.3), (-0.4, 1.3)]),
        _ => polygon(&[(0.0, -1.2), (1.1, -0.3), (0.7, 1.0), (-0.7, 1.0), (-1.1, -0.3)]),
    }
}

/// From values to coordinates.
#[derive(Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// Even steps.
    pub fn linear(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale { low, high, from, to, log: false }
    }

    /// Even factors; values must be positive.
    pub fn log(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let low = low.max(f64::MIN_POSITIVE);
        let high = if high > low { high } else { low * 2.0 };
        Scale { low, high, from, to, log: true }
    }

    /// The coordinate of a value; those beyond the ends stay at the ends.
    pub fn at(&self, v: f64) -> f64 {
        let v = v.clamp(self.low, self.high);
        let part = match self.log {
            true => (v / self.low).ln() / (self.high / self.low).ln(),
            false => (v - self.low) / (self.high - self.low),
        };
        self.from + part * (self.to - self.from)
    }

    /// Round values within, about `count` of them.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if !self.log {
            return self.even(count);
        }
        let decades = (self.high / self.low).log10();
        if decades < 1.0 {
            return self.even(count);
        }
        let first = self.low.log10().ceil() as i32;
        let all: Vec<f64> = (first..=self.high.log10().floor() as i32).map(|e| 10f64.powi(e)).collect();
        let step = all.len().div_ceil(count.max(1)).max(1);
        all.into_iter().step_by(step).collect()
    }

    fn even(&self, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count.max(1) as f64;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * unit).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * unit);
        let first = (self.low / step).ceil() as i64;
        (0..=2 * count as i64).map(|i| (first + i) as f64 * step).take_while(|v| *v <= self.high).collect()
    }
}

/// A tick's number, without digits that say nothing.
pub fn number(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if !(0.001..10_000.0).contains(&a) => format!("{v:.0e}"),
        _ => format!("{}", (v * 1000.0).round() / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_ticks() {
        let s = Scale::linear(0.0, 10.0, 100.0, 200.0);
        assert_eq!((s.at(5.0), s.at(-1.0), s.at(11.0)), (150.0, 100.0, 200.0));
        assert_eq!(s.ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let s = Scale::log(0.5, 2000.0, 0.0, 1.0);
        assert_eq!(s.ticks(5), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(Scale::log(3.0, 3.0, 0.0, 1.0).at(3.0), 0.0);
        assert!(Scale::linear(1980.0, 1980.0, 0.0, 1.0).ticks(3).len() >= 2);
    }

    #[test]
    fn what_comes_from_rows_is_escaped() {
        let mut svg = Svg::new(10.0, 10.0, "a\"b");
        svg.text((0.0, 0.0), "t", "<script>");
        svg.rect((0.0, 0.0), (1.0, 1.0), "b", "x & 'y'");
        let text = svg.finish();
        assert!(text.contains("a&quot;b") && text.contains("&lt;script&gt;") && text.contains("x &amp; &#x27;y&#x27;"));
    }
}
