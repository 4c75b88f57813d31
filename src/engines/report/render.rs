//! `report.md`, and what a terminal shows.

use super::advice::{loss_in_words, verdict};
use super::criteria::Verdict;
use super::document::document;
use super::summary::LibraryComparisonReport;
use super::view::Block;
use super::words::{self, maybe, number, ratio};
use crate::report::markdown::{code, escape, table};
use std::fmt::Write;

/// The whole report in Markdown.
pub fn markdown(report: &LibraryComparisonReport) -> String {
    let document = document(report);
    let mut out = format!("# {}\n\n", escape(&document.title));
    for notice in &document.notices {
        let _ = writeln!(out, "**{}**\n", escape(notice));
    }
    let score: Vec<String> = document.score.iter().map(|s| format!("{}: {}", s.of, s.figure)).collect();
    let _ = writeln!(out, "{}.\n", escape(&score.join(", ")));
    for section in &document.sections {
        let _ = writeln!(out, "## {}\n", section.title);
        section.blocks.iter().for_each(|b| block(&mut out, b));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// What a sentence is derived from, behind it.
fn behind(because: &str) -> String {
    if because.is_empty() { String::new() } else { format!(" <sub>{}</sub>", escape(because)) }
}

fn block(out: &mut String, block: &Block) {
    // Writing to a String cannot fail.
    let _ = match block {
        Block::Heading { text } => writeln!(out, "### {}\n", escape(text)),
        Block::Text { text, because } => writeln!(out, "{}{}\n", escape(text), behind(because)),
        Block::List { items } => {
            for (text, because) in items {
                let _ = writeln!(out, "- {}{}", escape(text), behind(because));
            }
            writeln!(out)
        }
        Block::Commands { lines } => {
            for line in lines {
                let _ = writeln!(out, "- {}", code(line));
            }
            writeln!(out)
        }
        Block::Table { header, rows, left } => {
            let header: Vec<String> = header.iter().map(|h| escape(h)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| escape(c)).collect()).collect();
            table(out, &header, &rows, |i| i >= *left);
            Ok(())
        }
    };
}

/// Losses, a line an engine and workload, the criteria, the recommendation.
pub fn terminal(report: &LibraryComparisonReport) -> String {
    let mut list: Vec<String> = Vec::new();
    for l in &report.lacking {
        list.push(format!("nothing of jitune's counts: {} {}: {}", l.workload, l.dtype, l.why));
    }
    list.extend(report.losses.iter().map(|l| format!("jitune loses: {}", loss_in_words(l))));
    let mut rows = vec![["workload", "dtype", "device", "first", "by", "its", "lead"].map(String::from)];
    for w in &report.workload_winners {
        let same = |r: &&super::rankings::Ranking| {
            (&r.workload, &r.dtype, &r.device, r.metric) == (&w.workload, &w.dtype, &w.device, w.by)
        };
        let value = report.rankings.iter().find(same).and_then(|r| r.places.first()).map(|p| p.value.median);
        rows.push([
            w.workload.clone(),
            w.dtype.clone(),
            w.device.clone(),
            w.winners.join(" = "),
            w.by.name().into(),
            maybe(value, number),
            if w.of == 1 { "alone".into() } else { maybe(w.lead, ratio) },
        ]);
    }
    if rows.len() > 1 {
        list.extend(aligned(&rows));
    }
    list.extend(apart(report));
    for s in report.starts.iter().filter(|s| s.why.is_some() && s.round == 0) {
        let or = |text: &Option<String>| text.clone().unwrap_or_default();
        list.push(format!("not here: {} {}: {}; {}", s.engine, s.dtype, or(&s.why), or(&s.fix)));
    }
    let (measured, not): (Vec<_>, Vec<_>) = report.criteria.iter().partition(|c| c.verdict != Verdict::NotMeasured);
    for c in &measured {
        let worst = c.cases.first().map(|k| format!(", the worst {} at {}", k.figure, k.of)).unwrap_or_default();
        list.push(format!("{}: {} ({}){worst}", c.name, verdict(c), c.target));
    }
    if !measured.is_empty() && !not.is_empty() {
        list.push(format!("not measured: {}", words::list(&not.iter().map(|c| c.name).collect::<Vec<_>>())));
    }
    list.extend(report.recommendation.primary.iter().map(|c| c.said.text.clone()));
    list.extend(report.recommendation.hybrid.iter().map(|c| c.said.text.clone()));
    if report.cut {
        list.push("the run was cut off before its end".into());
    }
    list.iter().map(|line| plain(line) + "\n").collect()
}

/// Engines that are in no ranking, a line for each reason.
fn apart(report: &LibraryComparisonReport) -> Vec<String> {
    let mut list: Vec<(String, &str, Vec<&str>)> = Vec::new();
    for (e, why) in report.entries.iter().filter_map(|e| Some((e, e.apart.as_ref()?))) {
        let who = format!("{} {}", e.engine, e.dtype);
        match list.iter_mut().find(|(known, reason, _)| *known == who && reason == why) {
            Some((_, _, workloads)) => workloads.push(&e.workload),
            None => list.push((who, why, vec![&e.workload])),
        }
    }
    list.iter().map(|(who, why, at)| format!("in no ranking: {who} at {}: {why}", words::list(at))).collect()
}

/// Columns that stand below each other.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

/// Text from rows without anything that a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
