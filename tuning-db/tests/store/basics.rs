//! Storing, looking up, the order within a slot, artifacts, read-only mode.

use crate::{answers, filled, key, open, open_read_only, trial, winner};
use jitune_db::{ArtifactHash, Db, Error, IndexState, Key, Kind, OpenOptions, Record};
use serde_json::json;
use std::{fs, path::Path};

#[test]
fn a_reopened_database_answers_the_same_from_a_current_index() {
    let (_temp, dir, want) = filled(20);
    let db = open(&dir);
    assert_eq!(db.report().index, IndexState::Current);
    assert_eq!(answers(&db), want);
    assert_eq!(db.winner(&key(7)).unwrap(), Some(winner(7, 107)));
    assert_eq!(db.winner(&key(99)).unwrap(), None);
    assert_eq!(db.trial(&key(7), "b").unwrap(), Some(trial(7, "b", 67)));
    assert_eq!(db.trials(&key(7)).unwrap(), [trial(7, "a", 57), trial(7, "b", 67)]);
    let order: Vec<u64> = db.winners().unwrap().map(|r| r.unwrap().at).collect();
    assert_eq!(order, (100..120).collect::<Vec<_>>());
    assert_eq!(answers(&open_read_only(&dir)), want, "a reader beside the writer");
}

#[test]
fn lines_added_by_hand_are_caught_up() {
    let (_temp, dir, _) = filled(3);
    let (_other_temp, other, _) = filled(5);
    let theirs = fs::read_to_string(other.join("journal.jsonl")).unwrap();
    let mut ours = fs::read_to_string(dir.join("journal.jsonl")).unwrap();
    let extra: String = theirs.lines().skip(9).map(|line| format!("{line}\n")).collect();
    ours.push_str(&extra);
    fs::write(dir.join("journal.jsonl"), ours).unwrap();
    let db = open(&dir);
    assert_eq!(db.report().index, IndexState::CaughtUp(6));
    assert_eq!(db.winner(&key(4)).unwrap(), Some(winner(4, 104)));
    assert!(db.verify().unwrap().is_clean());
}

#[test]
fn what_was_put_last_wins_whatever_its_date_and_content() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    for i in 0..20u64 {
        // The same second, then one before it: the clock may stand or go back.
        let mut record = winner(1, 100 - i / 10);
        record.body = json!({"i": i});
        let at = db.put_winner(&record).unwrap();
        assert_eq!(at, 100 + i);
        assert_eq!(db.winner(&key(1)).unwrap().unwrap().body, record.body);
        record = trial(1, "x", 5);
        record.body = json!({"i": i});
        db.put_trial(&record).unwrap();
        assert_eq!(db.trial(&key(1), "x").unwrap().unwrap().body, record.body);
    }
    let want = answers(&db);
    assert_eq!(want.lines().count(), 2);
    drop(db);
    assert_eq!(answers(&open(temp.path())), want);
}

#[test]
fn putting_the_same_record_twice_writes_once() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    db.put_winner(&winner(1, 100)).unwrap();
    let before = db.stats().unwrap();
    db.put_winner(&winner(1, 100)).unwrap();
    assert_eq!(db.stats().unwrap(), before);
}

#[test]
fn a_withdrawn_winner_is_a_miss_until_a_newer_one_comes() {
    let (_temp, dir, _) = filled(2);
    let db = open(&dir);
    db.withdraw_winner(&key(0), json!({"why": "wrong at a later check"})).unwrap();
    assert_eq!(db.winner(&key(0)).unwrap(), None);
    assert_eq!(db.winners().unwrap().count(), 1);
    assert_eq!(db.stats().unwrap().withdrawn, 1);
    drop(db);
    let db = open(&dir);
    assert_eq!(db.winner(&key(0)).unwrap(), None);
    db.put_winner(&winner(0, 1)).unwrap();
    assert_eq!(db.winner(&key(0)).unwrap().unwrap().body, winner(0, 1).body);
}

#[test]
fn kinds_do_not_pass_for_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    assert!(matches!(db.put_winner(&trial(1, "a", 1)), Err(Error::InvalidRecord { .. })));
    assert!(matches!(db.put_trial(&winner(1, 1)), Err(Error::InvalidRecord { .. })));
    db.put_trial(&trial(1, "a", 1)).unwrap();
    assert_eq!(db.winner(&key(1)).unwrap(), None);
    let mut plain = trial(1, "", 2);
    db.put_trial(&plain).unwrap();
    plain.sub = None;
    db.put_trial(&plain).unwrap();
    assert_eq!(db.trials(&key(1)).unwrap().len(), 3, "no sub, an empty one and \"a\" are three");
}

#[test]
fn near_names_the_field_that_missed() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let make = |arch: &str, problem: &str, driver: &str| {
        Key::new([("arch", arch), ("problem", problem)], [("driver", driver)])
    };
    let put = |key: Key, at: u64| {
        let record = Record { kind: Kind::Winner, at, key, sub: None, merged: false, body: json!(null) };
        db.put_winner(&record).unwrap();
    };
    put(make("sm_90a", "p", "550"), 1);
    put(make("sm_90a", "p", "560"), 2);
    put(make("sm_80", "p", "560"), 3);
    put(make("sm_90a", "q", "580"), 4);
    let mut only_trials = trial(1, "a", 9);
    only_trials.key = make("sm_90a", "p", "540");
    db.put_trial(&only_trials).unwrap();
    let found = db.near(&make("sm_90a", "p", "580"), &["problem"], 10).unwrap();
    let text: Vec<(u64, String)> = found
        .iter()
        .map(|(r, diff)| (r.at, diff.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
        .collect();
    assert_eq!(text[0], (9, "timing.driver: asked \"580\", stored \"540\"".into()));
    assert_eq!(text[1], (2, "timing.driver: asked \"580\", stored \"560\"".into()));
    assert_eq!(text[2], (1, "timing.driver: asked \"580\", stored \"550\"".into()));
    assert_eq!(text[3].0, 3);
    assert_eq!(text.len(), 4);
    assert_eq!(db.near(&make("sm_90a", "p", "580"), &[], 10).unwrap().len(), 5);
    assert_eq!(db.near(&make("sm_90a", "p", "580"), &[], 2).unwrap().len(), 2);
    let hit = make("sm_80", "p", "560");
    assert!(db.near(&hit, &[], 10).unwrap().iter().all(|(r, _)| r.key != hit));
}

#[test]
fn artifacts_are_named_by_their_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let a = db.put_artifact(b"cubin a").unwrap();
    let b = db.put_artifact(b"").unwrap();
    assert_ne!(a, b);
    assert_eq!(db.put_artifact(b"cubin a").unwrap(), a);
    assert_eq!(db.artifact(&a).unwrap().as_deref(), Some(&b"cubin a"[..]));
    assert_eq!(db.artifact(&b).unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(db.artifact(&ArtifactHash::of(b"other")).unwrap(), None);
    assert_eq!(fs::read(db.artifact_path(&a)).unwrap(), b"cubin a");
    assert_eq!(a.to_string().parse::<ArtifactHash>().unwrap(), a);
    for bad in ["", "../../etc/passwd", &a.to_string().to_uppercase(), &a.to_string()[1..]] {
        assert!(matches!(bad.parse::<ArtifactHash>(), Err(Error::BadHash { .. })), "{bad}");
    }
}

#[test]
fn read_only_changes_nothing_and_refuses_to() {
    let (_temp, dir, want) = filled(3);
    // A torn tail and a bad line are passed over, not mended.
    let mut text = fs::read(dir.join("journal.jsonl")).unwrap();
    text.extend_from_slice(b"not a record\n{\"crc\":\"torn");
    fs::write(dir.join("journal.jsonl"), &text).unwrap();
    let before = tree(&dir);
    let db = open_read_only(&dir);
    assert!(db.is_read_only());
    assert_eq!(answers(&db), want);
    assert_eq!(db.report().bad_lines.len(), 2);
    assert!(!db.verify().unwrap().is_clean());
    let refused = [
        db.put_winner(&winner(9, 9)).map(|_| ()),
        db.put_trial(&trial(9, "a", 9)).map(|_| ()),
        db.put_artifact(b"x").map(|_| ()),
        db.merge(&b""[..]).map(|_| ()),
        db.gc(Default::default()).map(|_| ()),
        db.repair().map(|_| ()),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::ReadOnly { .. })), "{result:?}");
    }
    drop(db);
    assert_eq!(tree(&dir), before);
}

/// Every path below `dir` with its bytes.
fn tree(dir: &Path) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(tree(&path));
            out.push((path, None));
        } else {
            let bytes = fs::read(&path).unwrap();
            out.push((path, Some(bytes)));
        }
    }
    out.sort();
    out
}

#[test]
fn a_place_that_cannot_be_one_is_refused_with_its_path() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/jitune-db".into()] {
        match Db::open(&path, OpenOptions::default()) {
            Err(error @ Error::Io { .. }) => {
                assert!(error.to_string().contains(&path.display().to_string()), "{error}");
                assert!(error.to_string().contains("--db"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    let missing = Db::open(temp.path().join("none"), OpenOptions::read_only());
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    assert!(!temp.path().join("none").exists());
}
