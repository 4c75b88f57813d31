//! Damaged files: the journal cut or flipped anywhere, the index likewise,
//! artifacts. One bad entry costs one entry, and never an answer elsewhere.

use crate::{Rng, answers, filled, key, open, open_read_only, winner};
use jitune_db::IndexState;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn journal(dir: &Path) -> PathBuf {
    dir.join("journal.jsonl")
}

#[test]
fn a_last_line_torn_at_any_byte_costs_that_line_alone() {
    let (_temp, dir, _) = filled(2);
    let whole = fs::read(journal(&dir)).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    let all = answers(&open_read_only(&dir));
    fs::write(journal(&dir), &whole[..last]).unwrap();
    let without = answers(&open_read_only(&dir));
    assert_ne!(all, without);
    for cut in last..=whole.len() {
        // In turn as after a clean close (the index covers more than there is, or
        // exactly what stands before the torn line) and as after a kill.
        fs::write(journal(&dir), &whole[..last]).unwrap();
        if cut % 2 == 0 {
            drop(open(&dir));
        } else {
            let _ = fs::remove_file(dir.join("index.bin"));
        }
        fs::write(journal(&dir), &whole[..cut]).unwrap();
        let db = open(&dir);
        // All but the newline is a whole record: it is kept and completed.
        let complete = cut + 1 >= whole.len();
        assert_eq!(answers(&db), if complete { all.clone() } else { without.clone() }, "cut at {cut}");
        let bad = db.report().bad_lines;
        if cut == last || complete {
            assert!(bad.is_empty(), "cut at {cut}: {bad:?}");
        } else {
            assert!(bad.len() == 1 && bad[0].torn && bad[0].offset == last as u64, "{bad:?}");
            let moved = bad[0].moved_to.clone().expect("was moved");
            assert_eq!(fs::read(moved).unwrap(), &whole[last..cut]);
        }
        // It goes on from there.
        db.put_winner(&winner(77, 1)).unwrap();
        drop(db);
        let db = open(&dir);
        assert_eq!(db.report().index, IndexState::Current);
        assert_eq!(db.winner(&key(77)).unwrap(), Some(winner(77, 1)));
        assert!(db.verify().unwrap().is_clean());
    }
}

#[test]
fn any_flipped_bit_of_the_journal_costs_at_most_one_line() {
    let (_temp, dir, want) = filled(3);
    let whole = fs::read(journal(&dir)).unwrap();
    let copy = dir.with_extension("copy");
    fs::create_dir(&copy).unwrap();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(journal(&copy), &bad).unwrap();
        let db = open_read_only(&copy);
        let got = answers(&db);
        let lost: Vec<_> = want.lines().filter(|line| !got.contains(line)).collect();
        assert!(lost.len() <= 1, "byte {at}: {lost:?}");
        assert!(got.lines().all(|line| want.contains(line)), "byte {at}: something new");
        // Only a flipped newline costs nothing; it is seen all the same.
        assert_eq!(lost.is_empty(), whole[at] == b'\n', "byte {at}");
        assert!(!db.report().bad_lines.is_empty(), "byte {at}");
    }
}

#[test]
fn a_flipped_bit_is_moved_to_quarantine_whether_the_index_covers_it_or_not() {
    let (_temp, dir, want) = filled(6);
    let whole = fs::read(journal(&dir)).unwrap();
    let mut rng = Rng(1);
    for round in 0..60 {
        let (_, dir, _) = (&_temp, dir.with_extension(round.to_string()), ());
        copy_tree(&_temp.path().join("db"), &dir);
        let at = rng.below(whole.len() as u64) as usize;
        let mut bad = whole.clone();
        bad[at] ^= 1 << rng.below(8);
        fs::write(journal(&dir), &bad).unwrap();
        if round % 2 == 0 {
            // No index: found at open.
            fs::remove_file(dir.join("index.bin")).unwrap();
        }
        let db = open(&dir);
        let before = answers(&db);
        let lost: Vec<_> = want.lines().filter(|line| !before.contains(line)).collect();
        assert!(lost.len() <= 1, "byte {at}: {lost:?}");
        if db.report().bad_lines.is_empty() {
            // A newline that the index steps over is found by verify and mended by repair.
            assert_eq!(whole[at], b'\n', "byte {at}");
            assert!(!db.verify().unwrap().is_clean());
            db.repair().unwrap();
        }
        let report = db.report();
        assert_eq!(report.bad_lines.len(), 1, "byte {at}: {report:?}");
        assert!(report.bad_lines[0].moved_to.as_ref().is_some_and(|p| p.exists()));
        assert!(db.verify().unwrap().is_clean());
        assert_eq!(answers(&db), before);
        drop(db);
        let db = open(&dir);
        assert!(db.report().bad_lines.is_empty());
        assert_eq!(answers(&db), before);
    }
}

#[test]
fn an_older_record_takes_the_place_of_a_damaged_newer_one() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    db.put_winner(&winner(1, 100)).unwrap();
    db.put_winner(&winner(1, 200)).unwrap();
    let mut bytes = fs::read(journal(temp.path())).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 1;
    // Under the feet of the open database.
    fs::write(journal(temp.path()), bytes).unwrap();
    assert_eq!(db.winner(&key(1)).unwrap(), Some(winner(1, 100)));
    assert_eq!(db.report().bad_lines.len(), 1);
    db.put_winner(&winner(1, 300)).unwrap();
    drop(db);
    assert_eq!(open(temp.path()).winner(&key(1)).unwrap(), Some(winner(1, 300)));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn whatever_happens_to_the_index_the_answers_stay() {
    let (temp, dir, want) = filled(40);
    assert!(dir.join("index.bin").exists());
    let mut rng = Rng(2);
    for round in 0..200u64 {
        let dir = temp.path().join(format!("round-{round}"));
        copy_tree(&temp.path().join("db"), &dir);
        let file = dir.join("index.bin");
        let mut bytes = fs::read(&file).unwrap();
        let any = rng.below(bytes.len() as u64) as usize;
        let what = match round % 4 {
            0 | 1 => {
                bytes[any] ^= 1 << rng.below(8);
                fs::write(&file, bytes).unwrap();
                "flipped"
            }
            2 => {
                fs::write(&file, &bytes[..any]).unwrap();
                "truncated"
            }
            _ => {
                fs::remove_file(&file).unwrap();
                if round % 8 == 3 {
                    fs::create_dir(&file).unwrap();
                }
                "gone"
            }
        };
        let db = open(&dir);
        let state = db.report().index;
        assert_eq!(answers(&db), want, "{what} {any}: {state}");
        assert!(matches!(state, IndexState::Rebuilt(_)), "{what} {any}: {state}");
        db.put_winner(&winner(1000, 5)).unwrap();
        drop(db);
        let db = open(&dir);
        let again = round % 8 == 3;
        assert!(again || db.report().index == IndexState::Current, "{what} {any}: {}", db.report().index);
        assert_eq!(db.winner(&key(1000)).unwrap(), Some(winner(1000, 5)));
        assert!(db.verify().unwrap().is_clean());
        drop(db);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn what_an_older_version_left_of_its_index_is_removed() {
    let (_temp, dir, want) = filled(3);
    fs::create_dir(dir.join("index")).unwrap();
    fs::write(dir.join("index/db"), "sled").unwrap();
    fs::write(dir.join("index.seal"), "{}").unwrap();
    assert_eq!(answers(&open(&dir)), want);
    assert!(!dir.join("index").exists() && !dir.join("index.seal").exists());
}

#[test]
fn a_killed_writer_costs_no_rebuild() {
    let (_temp, dir, _) = filled(3);
    let index = fs::read(dir.join("index.bin")).unwrap();
    open(&dir).put_winner(&winner(9, 1)).unwrap();
    // As it was before: what a kill leaves.
    fs::write(dir.join("index.bin"), index).unwrap();
    let db = open(&dir);
    assert_eq!(db.report().index, IndexState::CaughtUp(1));
    assert_eq!(db.winner(&key(9)).unwrap(), Some(winner(9, 1)));
}

#[test]
fn an_index_of_another_journal_is_not_believed() {
    let (temp, dir, _) = filled(10);
    let (_other_temp, other, want) = filled(11);
    fs::copy(journal(&other), journal(&dir)).unwrap();
    // Longer, and equal up to where the index reaches: caught up.
    let db = open(&dir);
    assert_eq!(db.report().index, IndexState::CaughtUp(3));
    assert_eq!(answers(&db), want);
    drop(db);
    // As long, and different.
    let text = fs::read_to_string(journal(&dir)).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.reverse();
    fs::write(journal(&dir), lines.join("\n") + "\n").unwrap();
    let db = open(&dir);
    assert!(matches!(db.report().index, IndexState::Rebuilt(_)), "{:?}", db.report());
    assert_eq!(answers(&db), want);
    drop(temp);
}

#[test]
fn a_corrupt_artifact_reads_as_missing_and_is_stored_again() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let bytes = b"the bytes of a cubin";
    let hash = db.put_artifact(bytes).unwrap();
    let other = db.put_artifact(b"another").unwrap();
    let path = db.artifact_path(&hash);
    for n in 0..=bytes.len() {
        let mut bad = bytes.to_vec();
        match n {
            n if n == bytes.len() => bad.push(0),
            n if n % 2 == 0 => bad[n] ^= 1,
            n => bad.truncate(n),
        }
        fs::write(&path, &bad).unwrap();
        assert_eq!(db.verify().unwrap().bad_artifacts, std::slice::from_ref(&path));
        // A reader sees it missing and leaves it.
        assert_eq!(open_read_only(temp.path()).artifact(&hash).unwrap(), None);
        assert!(path.exists());
        assert_eq!(db.artifact(&hash).unwrap(), None);
        assert!(!path.exists());
        let moved = db.report().bad_artifacts.pop().unwrap();
        assert_eq!(fs::read(moved).unwrap(), bad);
        assert_eq!(db.artifact(&hash).unwrap(), None);
        db.put_artifact(bytes).unwrap();
        assert_eq!(db.artifact(&hash).unwrap().as_deref(), Some(&bytes[..]));
    }
    assert_eq!(db.artifact(&other).unwrap().as_deref(), Some(&b"another"[..]));
    // A repair puts away what nobody asked for, and what is no artifact at all.
    fs::write(&path, "bad").unwrap();
    let stray = temp.path().join("artifacts/stray");
    fs::write(&stray, "stray").unwrap();
    assert_eq!(db.verify().unwrap().bad_artifacts.len(), 2);
    let before = db.report().bad_artifacts.len();
    assert_eq!(db.repair().unwrap().bad_artifacts.len(), before + 2);
    assert!(db.verify().unwrap().is_clean() && !path.exists() && !stray.exists());
    db.put_artifact(bytes).unwrap();
    // Storing over a corrupt file mends it.
    fs::write(&path, "bad").unwrap();
    db.put_artifact(bytes).unwrap();
    assert!(db.verify().unwrap().is_clean());
}

#[test]
fn lines_of_a_newer_version_are_kept_and_passed_over() {
    let (_temp, dir, want) = filled(2);
    let rec = r#"{"kind":"forecast","at":1,"key":{"compile":{},"timing":{}},"body":{}}"#;
    let crc = &blake3_hex(rec)[..16];
    let line = format!("{{\"crc\":\"{crc}\",\"rec\":{rec}}}\n");
    let mut text = fs::read_to_string(journal(&dir)).unwrap();
    text.insert_str(0, &line);
    fs::write(journal(&dir), text).unwrap();
    let db = open(&dir);
    assert!(db.report().bad_lines.is_empty());
    assert_eq!(answers(&db), want);
    db.put_winner(&winner(0, 9999)).unwrap();
    assert_eq!(db.gc(Default::default()).unwrap().lines_dropped, 1);
    assert!(fs::read_to_string(journal(&dir)).unwrap().starts_with(&line));
}

fn blake3_hex(text: &str) -> String {
    jitune_db::ArtifactHash::of(text.as_bytes()).to_string()
}
