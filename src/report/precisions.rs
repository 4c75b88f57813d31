//! Precisions of a model on one device: time, memory, and what each does to its answers. From rows to what people read.

use super::html::{HtmlError, STYLE};
use super::markdown;
use super::svg::{Scale, Svg, number};
use minijinja::{Environment, value::Serde};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One precision of one model on one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The last part of the model's name.
    pub model: String,
    /// The device's name.
    pub device: String,
    /// What was asked for: `bf16`, `int4-g128`.
    pub precision: String,
    /// What that is of the model's tensors.
    pub stored: String,
    /// Why it was not measured.
    pub failed: Option<String>,
    /// A token of an answer, one sequence, in milliseconds, the median of its rounds.
    pub token_ms: f64,
    /// The first token after the text, likewise.
    pub first_ms: f64,
    /// Bytes of weights on the device.
    pub weights_bytes: u64,
    /// Bytes of all that the engine's plan holds there.
    pub memory_bytes: u64,
    /// Of logits beside those of f32: the root mean square of the difference over that of f32's.
    pub error: f64,
    /// KL(f32 ‖ this) in nats, the mean over positions.
    pub kl: f64,
    /// Positions at which both find the same token the most likely, as a part of all.
    pub top1: f64,
    /// Positions of the text.
    pub positions: u64,
    /// exp of the mean of −log p of the text's own next token.
    pub perplexity: f64,
    /// Portable kernels, and all, of the steps that ran.
    pub kernels: [usize; 2],
}

impl Row {
    /// Whether somebody can have measured its numbers: none is NaN, infinite or below zero, shares are of all, and counts of parts are not
    /// above those of the whole. What is said is the first that is not so. A KL may be below zero by rounding.
    pub fn check(&self) -> Result<(), String> {
        if self.failed.is_some() {
            return Ok(());
        }
        let numbers = [
            ("token_ms", self.token_ms, f64::MIN_POSITIVE, MONTH_MS),
            ("first_ms", self.first_ms, f64::MIN_POSITIVE, MONTH_MS),
            ("error", self.error, 0.0, f64::MAX),
            ("kl", self.kl, -1e-6, f64::MAX),
            ("top1", self.top1, 0.0, 1.0),
            ("perplexity", self.perplexity, 0.0, f64::MAX),
        ];
        if let Some((name, value, ..)) = numbers.iter().find(|(_, value, from, to)| !(value >= from && value <= to)) {
            return Err(format!("{name} is {value}, which nobody can have measured"));
        }
        let [portable, all] = self.kernels;
        if portable > all {
            return Err(format!("{portable} of {all} kernels are portable"));
        }
        if self.weights_bytes > self.memory_bytes {
            return Err(format!(
                "weights of {} bytes are in {} bytes of memory",
                self.weights_bytes, self.memory_bytes
            ));
        }
        Ok(())
    }
}

/// No token takes longer, in milliseconds.
const MONTH_MS: f64 = 30.0 * 86_400_000.0;

/// What the columns of [`cells`] are; the first is text.
pub const HEADER: [&str; 11] = [
    "precision",
    "ms a token",
    "to f32",
    "first token ms",
    "weights",
    "memory",
    "error of logits",
    "KL",
    "top-1",
    "perplexity",
    "portable kernels",
];

/// A line of the table for each row.
pub fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let base = rows.iter().find(|r| r.precision == "f32" && r.failed.is_none());
    rows.iter().map(|row| line(row, base)).collect()
}

fn line(row: &Row, base: Option<&Row>) -> Vec<String> {
    let mut cells = vec![row.precision.clone()];
    if let Some(why) = &row.failed {
        cells.push(format!("not measured: {why}"));
        cells.resize(HEADER.len(), String::new());
        return cells;
    }
    let mib = |bytes: u64| format!("{:.1} MiB", mib(bytes));
    cells.extend([
        format!("{:.3}", row.token_ms),
        base.map_or_else(String::new, |base| format!("{:.2}", row.token_ms / base.token_ms)),
        format!("{:.2}", row.first_ms),
        mib(row.weights_bytes),
        mib(row.memory_bytes),
        format!("{:.2e}", row.error),
        format!("{:.2e}", row.kl.max(0.0)),
        format!("{:.1}%", row.top1 * 100.0),
        format!("{:.3}", row.perplexity),
        format!("{} of {}", row.kernels[0], row.kernels[1]),
    ]);
    cells
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The table as Markdown, under its title and what `said` says of how it was made.
pub fn markdown(rows: &[Row], said: &str) -> String {
    let mut text = String::new();
    if let Some(first) = rows.first() {
        let [model, device] = [&first.model, &first.device].map(|t| markdown::escape(t));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# Precisions of {model}, {device}\n\n{said}\n");
    }
    let lines: Vec<Vec<String>> = cells(rows).iter().map(|l| l.iter().map(|c| markdown::escape(c)).collect()).collect();
    markdown::table(&mut text, &HEADER.map(String::from), &lines, |i| i > 0);
    text
}

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    title: String,
    said: &'a str,
    header: [&'static str; 11],
    lines: Vec<Vec<String>>,
    plots: Vec<Plot>,
}

#[derive(Serialize)]
struct Plot {
    title: &'static str,
    svg: String,
}

/// The table and its plots as one page that needs no network.
pub fn html(rows: &[Row], said: &str) -> Result<String, HtmlError> {
    let mut env = Environment::new();
    env.add_template("precisions.html", include_str!("precisions.html.j2"))?;
    let title = rows.first().map_or_else(String::new, |r| format!("Precisions of {}, {}", r.model, r.device));
    let page = Page {
        style: STYLE,
        title,
        said,
        header: HEADER,
        lines: cells(rows),
        plots: [
            ("What a token takes", "ms a token", (|r| r.token_ms) as fn(&Row) -> f64),
            ("What the first token takes", "ms to the first token", |r| r.first_ms),
            ("What it needs", "MiB on the device", |r| mib(r.memory_bytes)),
        ]
        .into_iter()
        .filter_map(|(title, of, x)| Some(Plot { title, svg: plot(rows, of, x)? }))
        .collect(),
    };
    Ok(env.get_template("precisions.html")?.render(Serde(page))?)
}

/// The smallest KL that is told from none, in nats: f32 beside itself has rounding alone.
const LEAST_KL: f64 = 1e-8;

/// KL over what `x` says of a row, of those that were measured; none where that is less than two.
fn plot(rows: &[Row], of: &str, x: fn(&Row) -> f64) -> Option<String> {
    let shown: Vec<&Row> = rows.iter().filter(|r| r.failed.is_none() && x(r) > 0.0 && x(r).is_finite()).collect();
    if shown.len() < 2 {
        return None;
    }
    let kl = |r: &Row| if r.kl.is_finite() { r.kl.max(LEAST_KL) } else { LEAST_KL };
    let ends = |f: &dyn Fn(&Row) -> f64| {
        shown.iter().map(|r| f(r)).fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (ends(&x), ends(&kl));
    let (width, height, left, right, top, bottom) = (460.0, 300.0, 58.0, 70.0, 14.0, 40.0);
    let across = Scale::log(x0 / 1.15, x1 * 1.15, left, width - right);
    let up = Scale::log(y0 / 2.0, y1 * 3.0, height - bottom, top);
    let mut svg = Svg::new(width, height, &format!("KL beside f32 over {of}"));
    for v in across.ticks(5) {
        svg.line((across.at(v), top), (across.at(v), height - bottom), "grid");
        svg.text((across.at(v), height - bottom + 16.0), "tick mid", &number(v));
    }
    for v in up.ticks(6) {
        svg.line((left, up.at(v)), (width - right, up.at(v)), "grid");
        svg.text((left - 5.0, up.at(v) + 4.0), "tick end", &number(v));
    }
    svg.text(((left + width - right) / 2.0, height - 6.0), "tick mid", of);
    svg.turned((12.0, (top + height - bottom) / 2.0), -90.0, "tick mid", "KL, nats");
    for row in shown {
        let at = (across.at(x(row)), up.at(kl(row)));
        let title = format!("{}: {} {of}, KL {:.2e}", row.precision, number(x(row)), row.kl.max(0.0));
        svg.mark(0, at, 5.0, "mark c0", &title);
        svg.text((at.0 + 8.0, at.1 + 4.0), "label", &row.precision);
    }
    Some(svg.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(precision: &str, token_ms: f64, kl: f64) -> Row {
        let text = format!(
            "{{\"model\":\"<m>\",\"device\":\"d\",\"precision\":\"{precision}\",\"stored\":\"\",\"failed\":null,\"token_ms\":{token_ms},\
             \"first_ms\":2.0,\"weights_bytes\":1048576,\"memory_bytes\":2097152,\"error\":0.01,\"kl\":{kl},\"top1\":0.5,\"positions\":7,\
             \"perplexity\":3.0,\"kernels\":[0,9]}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn numbers_that_nobody_can_have_measured_are_named() {
        let good = row("f32", 4.0, 0.0);
        good.check().unwrap();
        type Spoil = (&'static str, fn(&mut Row));
        let bad: [Spoil; 8] = [
            ("token_ms is 0", |r| r.token_ms = 0.0),
            ("first_ms is inf", |r| r.first_ms = f64::INFINITY),
            ("kl is NaN", |r| r.kl = f64::NAN),
            ("error is -1", |r| r.error = -1.0),
            ("top1 is 1.5", |r| r.top1 = 1.5),
            ("perplexity is inf", |r| r.perplexity = f64::INFINITY),
            ("10 of 9 kernels", |r| r.kernels = [10, 9]),
            ("weights of", |r| r.weights_bytes = u64::MAX),
        ];
        for (said, spoil) in bad {
            let mut spoilt = good.clone();
            spoil(&mut spoilt);
            assert!(spoilt.check().unwrap_err().starts_with(said), "{said}");
            spoilt.failed = Some("not here".into());
            spoilt.check().unwrap();
        }
    }

    #[test]
    fn a_page_has_every_precision_and_why_one_is_missing() {
        let mut rows = vec![row("f32", 4.0, 0.0), row("int4-g128", 1.0, 0.02), row("bf16", 2.0, 1e-4)];
        rows[2].failed = Some("out of <memory>".into());
        assert_eq!(cells(&rows)[1][2], "0.25");
        let page = html(&rows, "how").unwrap();
        assert!(page.contains("&lt;m&gt;") && !page.contains("<m>") && !page.contains("<memory>"));
        assert_eq!(page.matches("<svg").count(), 3);
        // A mark and a label each of those that were measured, in each plot.
        assert_eq!((page.matches("class=\"mark").count(), page.matches("int4-g128</text>").count()), (6, 3));
        assert!(page.contains("not measured: out of &lt;memory&gt;"));
        let text = markdown(&rows, "how");
        assert!(
            text.contains("| int4-g128 | 1.000 | 0.25 |") && text.contains("not measured: out of &lt;memory&gt;"),
            "{text}"
        );
        // Nothing to plot of one alone.
        assert_eq!(html(&rows[..1], "how").unwrap().matches("<svg").count(), 0);
    }
}
