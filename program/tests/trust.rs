//! What comes from elsewhere, or from a machine in trouble, harms nothing: hostile journals, closed outputs, odd clocks.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use std::path::Path;

fn ours() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning-db/winners/amd-epyc/2026-11-25/journal.jsonl");
    std::fs::read_to_string(path).unwrap()
}

/// A journal line of this record.
fn sealed(rec: &serde_json::Value) -> String {
    let rec = rec.to_string();
    format!("{{\"crc\":\"{}\",\"rec\":{rec}}}\n", &blake3::hash(rec.as_bytes()).to_hex()[..16])
}

#[test]
fn merging_nonsense_takes_no_winner_away() {
    let place = Place::new();
    let run = |args: &[&str], code: i32| {
        let out = place.jitune(&[args, &["--db", "db"]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
        text(&out)
    };
    let journal = ours();
    place.file("ours.jsonl", &journal);
    run(&["db", "merge", "ours.jsonl"], 0);
    let before = run(&["db", "list"], 0);
    let mut hostile = String::new();
    let records = journal.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["rec"].take());
    for (i, mut rec) in records.enumerate() {
        let newer = rec["at"].as_u64().unwrap() + 1;
        rec["at"] = [newer, u64::MAX, newer + 3_000_000_000][i % 3].into();
        match i % 4 {
            0 => rec["body"] = "nonsense".into(),
            1 if rec["kind"] == "winner" => rec["body"]["evidence"]["median_us"] = (-5.0).into(),
            2 if rec["kind"] == "winner" => rec["body"]["evidence"]["median_us"] = 1e300.into(),
            _ => rec["body"] = serde_json::json!({"verdict": "measured", "samples_us": []}),
        }
        hostile += &sealed(&rec);
    }
    place.file("hostile.jsonl", &hostile);
    let said = run(&["db", "merge", "hostile.jsonl"], 4);
    assert!(said.contains("hostile.jsonl: no line is a record"), "{said}");
    place.file("both.jsonl", &(hostile + &journal));
    let said = run(&["db", "merge", "both.jsonl"], 1);
    assert!(said.contains(" 0 added") && said.contains("both.jsonl:1: "), "{said}");
    run(&["db", "gc", "--grace", "0"], 0);
    assert_eq!(run(&["db", "list"], 0), before);
    for no_journal in ["not json\n", "{}\n", "\u{0}\u{1}"] {
        place.file("no.jsonl", no_journal);
        run(&["db", "merge", "no.jsonl"], 4);
    }
}
