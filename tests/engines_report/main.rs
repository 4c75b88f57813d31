//! Reports of engines from a small made-up run: golden Markdown, and pages in which no text from the rows is taken for markup.
//!
//! `JITUNE_BLESS=1 cargo test --features engines --test engines_report` writes the golden files anew; look at the difference
//! before you commit it.

mod made;
mod proxies;
mod rules;

use jitune::engines::report::{self, Baseline, LibraryComparisonReport, Runs, readme};
use serde_json::Value;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/engines_report")
}

fn text() -> String {
    std::fs::read_to_string(folder().join("engines.jsonl")).unwrap()
}

fn runs() -> Runs {
    Runs::read(text().as_bytes()).unwrap()
}

/// The kernels of the report's device, from the fixture of reports of kernels.
fn kernels() -> jitune::report::Rows {
    jitune::report::Rows::read(&std::fs::read(folder().join("../report/rows.jsonl")).unwrap()).unwrap()
}

fn whole() -> LibraryComparisonReport {
    report::make(&runs(), Some(&kernels()), Baseline::default())
}

/// Compares with a golden file, or writes it.
fn golden(name: &str, text: &str) {
    let path = folder().join(name);
    if std::env::var_os("JITUNE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    let first = text.lines().zip(expect.lines()).find(|(a, b)| a != b);
    assert!(text == expect, "{name} differs, first here: {first:?}; JITUNE_BLESS=1 writes it anew");
}

#[test]
fn markdown_is_as_it_was() {
    golden("report.md", &report::markdown(&whole()));
    golden("readme.md", &readme::tables(&whole()));
}

#[test]
fn the_terminal_is_as_it_was() {
    golden("terminal.txt", &report::terminal(&whole()));
}

#[test]
fn the_proxies_are_as_they_were() {
    for (name, text) in report::files(&whole()) {
        golden(name, &text);
    }
}

#[test]
fn json_has_every_part() {
    let value: Value = serde_json::from_str(&report::json(&whole()).unwrap()).unwrap();
    for (pointer, expect) in [
        ("/criteria/0/name", "throughput over the CPU"),
        ("/workload_winners/0/by", "output_throughput"),
        ("/recommendation/primary/engine", "jitune"),
        ("/recommendation/primary/said/because/0/line", "cells"),
        ("/recommendation/roadmap/0/horizon", "short"),
        ("/kernels/winners/0/op", "matmul"),
    ] {
        assert_eq!(value.pointer(pointer).and_then(Value::as_str), Some(expect), "{pointer}");
    }
    assert!(value.pointer("/losses/0/because/1").is_some());
}

#[test]
fn the_page_needs_no_network_and_draws_everything() {
    let page = report::html(&whole(), &runs()).unwrap();
    for word in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    for label in [
        "TPOT, ms against output tokens/s",
        "Percentiles of TTFT, ms at chat",
        "Percentiles of ITL, ms at batch-8",
        "Requests of vllm at chat",
        "Output tokens/s over time at documents",
        "Dollars a million tokens at batch-1",
        "Clock, power, temperature",
    ] {
        assert!(page.contains(&format!("aria-label=\"{label}")), "no plot of {label}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn the_readme_holds_the_tables_of_the_rows_that_it_names() {
    let root = folder().join("../..");
    let text = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut found = 0;
    let places = text.lines().filter_map(|line| line.strip_prefix("<!-- jitune report: ")?.strip_suffix(" -->"));
    for path in places {
        let Ok(runs) = Runs::read(&std::fs::read(root.join(path)).unwrap()) else { continue };
        let tables = readme::tables(&report::make(&runs, None, Baseline::default()));
        assert_eq!(jitune::report::markers::placed(&text, path, &tables).unwrap(), text, "{path}");
        found += 1;
    }
    assert!(found >= 1);
}

/// What the lines hold beyond their numbers: replaced by what would be markup if it were let through, but for the words that
/// have a meaning.
fn hostile(value: &mut Value, key: &str) {
    match value {
        Value::String(text) => {
            let kept = match key {
                "kind" | "state" | "target" => true,
                "engine" => text.starts_with("jitune"),
                "workload" | "name" => text.starts_with("batch-"),
                "dtype" => true,
                _ => false,
            };
            if !kept {
                *text = format!("<u onclick=x>{text}</u>&\"'`|*\u{1b}\n");
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| hostile(v, key)),
        Value::Object(map) => map.iter_mut().for_each(|(name, v)| hostile(v, name)),
        _ => {}
    }
}

#[test]
fn no_text_of_the_lines_is_markup() {
    let mut out = String::new();
    for line in text().lines() {
        let mut value: Value = serde_json::from_str(line).unwrap();
        hostile(&mut value, "");
        out += &format!("{value}\n");
    }
    let runs = Runs::read(out.as_bytes()).unwrap();
    let report = report::make(&runs, None, Baseline::default());
    assert!(!report.rankings.is_empty() && !report.recommendation.migration.is_empty());
    let page = report::html(&report, &runs).unwrap();
    let (mut text, tables) = (report::markdown(&report), readme::tables(&report));
    assert!(page.contains("&lt;u onclick=x&gt;vllm&lt;") && text.contains("&lt;u onclick=x&gt;vllm&lt;"));
    // Commands are code, in which nothing is markup.
    let commands = report.recommendation.migration.iter().flat_map(|s| &s.commands).chain([&report.command]);
    for command in commands {
        text = text.replace(&jitune::report::markdown::code(command), "");
    }
    for raw in ["<u onclick", "</u>", "&\""] {
        for (what, text) in [("html", &page), ("markdown", &text), ("readme", &tables)] {
            assert!(!text.contains(raw), "{what} lets {raw} through");
        }
    }
    for line in text.lines().chain(tables.lines()).filter(|l| l.starts_with('|')) {
        assert!(line.ends_with(" |") && !line.contains("'`|*"), "{line}");
    }
    assert!(!report::terminal(&report).contains('\u{1b}'));
    // What a proxy obeys has no word of the lines in it.
    for (name, text) in report::files(&report) {
        assert!(!text.contains("onclick"), "{name}");
    }
}
