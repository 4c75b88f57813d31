//! Merging and exporting: one result, whatever the order and however often.

use crate::{Rng, answers, filled, key, open, trial, winner};
use jitune_db::{Db, Kind, Record};
use serde_json::json;
use std::{fs, path::Path};

/// A random journal over few slots and few dates, so that records meet.
fn random_journal(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = whole_journal(rng);
    if rng.below(3) == 0 && !bytes.is_empty() {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 4;
    }
    bytes
}

fn whole_journal(rng: &mut Rng) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    for _ in 0..rng.below(12) {
        let (n, at) = (rng.below(3), rng.below(4));
        let mut record = match rng.below(4) {
            0 => trial(n, ["a", "b"][rng.below(2) as usize], at),
            _ => winner(n, at),
        };
        record.body = json!({"v": rng.below(5)});
        if record.kind == Kind::Trial {
            db.put_trial(&record).unwrap();
        } else {
            if rng.below(5) == 0 {
                record.kind = Kind::Withdrawn;
            }
            db.put_winner(&record).unwrap();
        }
    }
    drop(db);
    fs::read(temp.path().join("journal.jsonl")).unwrap()
}

fn merged(dir: &Path, journals: &[&[u8]]) -> String {
    let db = open(dir);
    for journal in journals {
        db.merge(*journal).unwrap();
    }
    let live = answers(&db);
    drop(db);
    assert_eq!(answers(&open(dir)), live, "the same after reopening");
    live
}

#[test]
fn merges_commute_associate_and_repeat() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let [a, b, c] = [(); 3].map(|()| random_journal(&mut rng));
        let temp = tempfile::tempdir().unwrap();
        let dir = |name: &str| temp.path().join(name);
        let want = merged(&dir("abc"), &[&a, &b, &c]);
        assert_eq!(merged(&dir("cba"), &[&c, &b, &a]), want, "seed {seed}");
        assert_eq!(merged(&dir("bac"), &[&b, &a, &c, &a, &b, &b]), want, "seed {seed}");
        // Through exports: (a + b) + c = a + (b + c).
        let ab = merged(&dir("ab"), &[&a, &b]);
        let bc = merged(&dir("bc"), &[&b, &c]);
        assert_eq!(merged(&dir("(ab)c"), &[ab.as_bytes(), &c]), want, "seed {seed}");
        assert_eq!(merged(&dir("a(bc)"), &[&a, bc.as_bytes()]), want, "seed {seed}");
    }
}

#[test]
fn a_merge_counts_what_it_did() {
    let (_temp, dir, _) = filled(3);
    let (_other_temp, other, _) = filled(4);
    let db = open(&dir);
    db.put_winner(&winner(1, 5000)).unwrap();
    let mut theirs = fs::read(other.join("journal.jsonl")).unwrap();
    theirs.extend_from_slice(b"<<<<<<< ours\n");
    let report = db.merge(&theirs[..]).unwrap();
    assert_eq!((report.added, report.same, report.older), (3, 8, 1));
    assert_eq!(report.bad_lines.len(), 1);
    assert_eq!(report.bad_lines[0].line, 13);
    assert_eq!(db.winner(&key(1)).unwrap().unwrap().at, 5000);
    assert_eq!(db.winner(&key(3)).unwrap(), Some(winner(3, 103)));
    let before = db.stats().unwrap();
    let again = db.merge(&theirs[..]).unwrap();
    assert_eq!((again.added, again.same, again.older), (0, 11, 1));
    assert_eq!(db.stats().unwrap(), before);
}

#[test]
fn a_file_that_went_through_windows_merges() {
    let (_temp, dir, want) = filled(2);
    let text = fs::read_to_string(dir.join("journal.jsonl")).unwrap().replace('\n', "\r\n");
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(merged(temp.path(), &[text.as_bytes()]), want);
}

#[test]
fn an_export_is_filtered_sorted_and_readable() {
    let (_temp, dir, want) = filled(5);
    let db = open(&dir);
    let export = |db: &Db, filter: &dyn Fn(&Record) -> bool| {
        let mut out = Vec::new();
        let n = db.export_journal(&mut out, filter).unwrap();
        (n, String::from_utf8(out).unwrap())
    };
    let (n, winners) = export(&db, &|r| r.kind == Kind::Winner);
    assert_eq!(n, 5);
    assert_eq!(winners, want.lines().take(5).map(|l| format!("{l}\n")).collect::<String>());
    let temp = tempfile::tempdir().unwrap();
    let other = open(temp.path());
    other.merge(winners.as_bytes()).unwrap();
    assert_eq!(answers(&other), winners);
    assert_eq!(export(&db, &|_| false), (0, String::new()));
}

#[test]
fn a_journal_full_of_nonsense_is_refused_line_by_line() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let mut rng = Rng(3);
    let noise: Vec<u8> = (0..100_000).map(|_| rng.below(256) as u8).collect();
    let report = db.merge(&noise[..]).unwrap();
    assert_eq!(report.added, 0);
    assert!(!report.bad_lines.is_empty());
    assert_eq!(db.stats().unwrap().journal_bytes, 0);
}

#[test]
fn journals_put_together_by_hand_answer_as_if_merged() {
    for seed in 100..130 {
        let mut rng = Rng(seed);
        let [a, b] = [(); 2].map(|()| whole_journal(&mut rng));
        let temp = tempfile::tempdir().unwrap();
        let want = merged(&temp.path().join("merged"), &[&a, &b]);
        for (name, parts) in [("ab", [&a, &b]), ("ba", [&b, &a])] {
            let dir = temp.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("journal.jsonl"), parts.map(|p| &p[..]).concat()).unwrap();
            assert_eq!(answers(&open(&dir)), want, "seed {seed} {name}");
        }
    }
}
