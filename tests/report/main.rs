//! Reports of small made-up runs: golden Markdown, and pages in which no text from the rows is taken for markup.
//!
//! `JITUNE_BLESS=1 cargo test --test report` writes the golden files anew; look at the difference before you commit it.

use jitune::report::{Rows, Summary, html, markdown, readme, terminal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/report")
}

fn rows(name: &str) -> Rows {
    Rows::read(&std::fs::read(folder().join(name)).unwrap()).unwrap()
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
    golden("report.md", &markdown::report(&rows("rows.jsonl")));
    golden("cut.md", &markdown::report(&rows("cut.jsonl")));
    golden("readme.md", &readme::tables(&rows("rows.jsonl")));
}

#[test]
fn the_readme_holds_the_tables_of_the_rows_that_it_names() {
    let root = folder().join("../..");
    let text = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut found = 0;
    let places = text.lines().filter_map(|line| line.strip_prefix("<!-- jitune report: ")?.strip_suffix(" -->"));
    for path in places {
        // Others are rows of engines.
        let Ok(rows) = Rows::read(&std::fs::read(root.join(path)).unwrap()) else { continue };
        assert_eq!(jitune::report::markers::placed(&text, path, &readme::tables(&rows)).unwrap(), text, "{path}");
        found += 1;
    }
    assert!(found >= 2);
}

#[test]
fn the_terminal_is_as_it_was() {
    let text = |rows: &Rows| {
        let summary = Summary::of(rows);
        let lines = terminal::rows(rows, &summary).into_iter().map(|r| r.join(" | "));
        lines.chain(terminal::closing(rows, &summary)).collect::<Vec<_>>().join("\n") + "\n"
    };
    golden("terminal.txt", &text(&rows("rows.jsonl")));
    golden("cut.txt", &text(&rows("cut.jsonl")));
}

#[test]
fn a_cut_off_run_says_so() {
    let rows = rows("cut.jsonl");
    assert!(rows.torn && rows.cut() && !rows.rows.is_empty());
    assert!(html::report(&rows).unwrap().contains("cut off before its end"));
}

/// What the rows of a run hold beyond their numbers: replaced by `swap`, but for the words that have a meaning.
fn each_string(value: &mut Value, key: &str, swap: &mut dyn FnMut(&str, &str) -> String) {
    match value {
        Value::String(text) => {
            let kept = match key {
                "kind" | "state" | "basis" | "phase" | "target" => true,
                "covers" => text == "all",
                "peer" => text == "jitune",
                "way" => text == "tuned",
                _ => false,
            };
            if !kept {
                *text = swap(key, text);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| each_string(v, key, swap)),
        Value::Object(map) => {
            // The names within these come from the rows as well.
            let named = matches!(key, "libraries" | "host" | "rejected" | "silicon");
            for (name, mut value) in std::mem::take(map) {
                each_string(&mut value, if named { key } else { &name }, swap);
                let name = if named { swap(key, &name) } else { name };
                map.insert(name, value);
            }
        }
        _ => {}
    }
}

/// The run of `rows.jsonl` with every string replaced by one that would be markup if it were let through.
fn hostile() -> (Rows, BTreeMap<String, String>) {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    let mut number = 0;
    let mut swap = |key: &str, text: &str| {
        given
            .entry(text.to_string())
            .or_insert_with(|| {
                number += 1;
                format!("<u onclick=x>{key}{number}x</u>&\"'`|*\n")
            })
            .clone()
    };
    let mut out = String::new();
    for line in std::fs::read_to_string(folder().join("rows.jsonl")).unwrap().lines() {
        let mut value: Value = serde_json::from_str(line).unwrap();
        each_string(&mut value, "", &mut swap);
        out += &format!("{value}\n");
    }
    (Rows::read(out.as_bytes()).unwrap(), given)
}

#[test]
fn every_string_of_the_rows_is_shown_and_escaped() {
    let (rows, given) = hostile();
    assert!(given.len() > 60, "{}", given.len());
    let page = html::report(&rows).unwrap();
    let (mut text, table) = (markdown::report(&rows), readme::tables(&rows));
    // Commands are code, in which nothing is markup.
    for command in given.values().filter(|t| t.contains(">command") || t.contains(">fix")) {
        let code = markdown::code(command);
        assert!(code.starts_with("``") && text.contains(&code), "{code}");
        text = text.replace(&code, "");
    }
    for raw in ["<u onclick", "</u>", "&\""] {
        for (what, text) in [("html", &page), ("markdown", &text), ("readme", &table)] {
            assert!(!text.contains(raw), "{what} lets {raw} through");
        }
    }
    for (original, token) in &given {
        let word = token.split('>').nth(1).unwrap().split('<').next().unwrap();
        let shown = page.contains(&format!("&lt;u onclick=x&gt;{word}&lt;"));
        assert!(shown || original.is_empty(), "the page does not show {original:?}");
    }
    // A bar or an end of line would end a table's cell.
    for line in text.lines().filter(|l| l.starts_with('|')) {
        assert!(line.ends_with(" |"), "{line}");
        assert!(!line.contains("'`|*"), "{line}");
    }
}

#[test]
fn the_page_needs_no_network() {
    for name in ["rows.jsonl", "cut.jsonl"] {
        let page = html::report(&rows(name)).unwrap();
        for word in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(word), "{name}: {word}");
        }
    }
}

#[test]
fn a_run_without_rows_has_sentences_and_no_plots() {
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    let rows = Rows::read(run.as_bytes()).unwrap();
    let page = html::report(&rows).unwrap();
    assert!(!page.contains("<svg viewBox"), "{page}");
    for sentence in ["there is no roofline to draw", "no history to draw", "Nothing was read", "No row was measured"] {
        assert!(page.contains(sentence), "{sentence}");
    }
    assert!(markdown::report(&rows).contains("The problems were not taken from a model"));
}
