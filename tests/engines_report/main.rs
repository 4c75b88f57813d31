//! Reports of engines from a small made-up run: golden Markdown, and pages in which no text from the rows is taken for markup.
//!
//! `JITUNE_BLESS=1 cargo test --features engines --test engines_report` writes the golden files anew; look at the difference
//! before you commit it.
#![cfg(feature = "engines")]

use jitune::engines::report::{self, Baseline, LibraryComparisonReport, Runs};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/engines_report")
}

fn runs() -> Runs {
    Runs::read(&std::fs::read(folder().join("engines.jsonl")).unwrap()).unwrap()
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
}

#[test]
fn the_terminal_is_as_it_was() {
    golden("terminal.txt", &report::terminal(&whole()));
}
