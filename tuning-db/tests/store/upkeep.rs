//! gc, verify, stats.

use crate::{answers, filled, key, open, trial, winner};
use jitune_db::{GcOptions, IndexState};
use serde_json::json;
use std::{fs, time::Duration};

fn now() -> GcOptions {
    GcOptions { artifact_grace: Duration::ZERO, ..GcOptions::default() }
}

#[test]
fn gc_drops_what_no_look_up_reaches_and_nothing_else() {
    let (_temp, dir, _) = filled(4);
    let db = open(&dir);
    let kept = db.put_artifact(b"of the current winner").unwrap();
    let nested = db.put_artifact(b"of a list in a trial").unwrap();
    let old = db.put_artifact(b"of a superseded winner").unwrap();
    let orphan = db.put_artifact(b"of nothing").unwrap();
    let elsewhere = db.put_artifact(b"named by another field").unwrap();
    let mut record = winner(0, 200);
    record.body = json!({"artifact": old});
    db.put_winner(&record).unwrap();
    record.at = 300;
    record.body = json!({"artifact": kept, "other": elsewhere});
    db.put_winner(&record).unwrap();
    let mut tried = trial(0, "a", 400);
    tried.body = json!({"steps": [{"artifact": ["x", {"cubin": nested}]}]});
    db.put_trial(&tried).unwrap();
    db.withdraw_winner(&key(1), json!(null)).unwrap();
    let want = answers(&db);

    let dry = db.gc(GcOptions { dry_run: true, ..now() }).unwrap();
    assert_eq!(db.artifact(&orphan).unwrap().as_deref(), Some(&b"of nothing"[..]));
    let before = fs::read(dir.join("journal.jsonl")).unwrap();
    let patient = db.gc(GcOptions { dry_run: true, ..GcOptions::default() }).unwrap();
    assert_eq!(patient.artifacts_dropped, 0, "an artifact may be stored before it is named");

    let done = db.gc(now()).unwrap();
    assert_eq!(done, dry);
    assert_eq!((done.lines_kept, done.lines_dropped), (12, 4));
    assert_eq!((done.artifacts_kept, done.artifacts_dropped), (2, 3));
    let after = fs::read(dir.join("journal.jsonl")).unwrap();
    assert_eq!(before.len() as u64, done.journal_bytes_before);
    assert_eq!(after.len() as u64, done.journal_bytes_after);
    assert_eq!(answers(&db), want);
    for (hash, there) in [(kept, true), (nested, true), (old, false), (orphan, false), (elsewhere, false)] {
        assert_eq!(db.artifact(&hash).unwrap().is_some(), there, "{hash}");
    }
    assert_eq!(db.winner(&key(1)).unwrap(), None, "still withdrawn");
    let again = db.gc(now()).unwrap();
    assert_eq!((again.lines_dropped, again.artifacts_dropped), (0, 0));
    db.put_winner(&winner(9, 9)).unwrap();
    drop(db);
    let db = open(&dir);
    assert_eq!(db.report().index, IndexState::Current);
    assert_eq!(db.winner(&key(9)).unwrap(), Some(winner(9, 9)));
    assert!(db.verify().unwrap().is_clean());
}

#[test]
fn gc_drops_old_trials_when_asked() {
    let (_temp, dir, _) = filled(4);
    let db = open(&dir);
    let report = db.gc(GcOptions { trials_before: Some(60), ..now() }).unwrap();
    assert_eq!(report.lines_dropped, 4);
    assert!(db.trial(&key(0), "a").unwrap().is_none());
    assert!(db.trial(&key(0), "b").unwrap().is_some());
    assert_eq!(db.winners().unwrap().count(), 4);
}

#[test]
fn gc_sweeps_what_a_killed_write_left() {
    let (_temp, dir, _) = filled(1);
    let db = open(&dir);
    let hash = db.put_artifact(b"x").unwrap();
    let left = db.artifact_path(&hash).with_file_name(".tmp-1-2");
    fs::write(&left, "half").unwrap();
    assert!(db.verify().unwrap().is_clean());
    assert_eq!(db.gc(now()).unwrap().temp_files_dropped, 1);
    assert!(!left.exists());
}

#[test]
fn verify_finds_missing_artifacts_and_strangers() {
    let (_temp, dir, _) = filled(1);
    let db = open(&dir);
    let hash = db.put_artifact(b"x").unwrap();
    let mut record = winner(0, 900);
    record.body = json!({"artifact": hash});
    db.put_winner(&record).unwrap();
    assert!(db.verify().unwrap().missing_artifacts.is_empty());
    fs::remove_file(db.artifact_path(&hash)).unwrap();
    let report = db.verify().unwrap();
    assert!(report.is_clean());
    assert_eq!(report.missing_artifacts.len(), 1);
    assert_eq!(report.missing_artifacts[0].artifact, hash);
    assert_eq!(report.missing_artifacts[0].key, key(0).id());
    fs::write(dir.join("artifacts/stranger"), "?").unwrap();
    assert!(!db.verify().unwrap().is_clean());
}

#[test]
fn stats_count() {
    let (_temp, dir, _) = filled(4);
    let db = open(&dir);
    db.put_artifact(b"12345").unwrap();
    let stats = db.stats().unwrap();
    assert_eq!((stats.winners, stats.withdrawn, stats.trials, stats.keys), (4, 0, 8, 4));
    assert_eq!((stats.artifacts, stats.artifact_bytes, stats.quarantined), (1, 5, 0));
    assert_eq!(stats.journal_bytes, fs::metadata(dir.join("journal.jsonl")).unwrap().len());
}
