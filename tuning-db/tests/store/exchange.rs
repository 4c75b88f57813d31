//! Merging and exporting: one result, whatever the order and however often.

use crate::{Rng, answers, filled, key, open, trial, winner};
use jitune_db::{Db, Error, Kind, MAX_DATE, MergeReport, OpenOptions, Reader, Record};
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
        // A flipped bit may have cost the only line, and some have none.
        assert!(matches!(db.merge(*journal), Ok(_) | Err(Error::NotAJournal { lines: 1, .. } | Error::NoRecord)));
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
    assert_eq!(db.winner(&key(3)).unwrap(), Some(Record { merged: true, ..winner(3, 103) }));
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
    assert!(matches!(db.merge(&noise[..]), Err(Error::NotAJournal { line: 1, .. })));
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

/// A journal line, sealed as the store does it.
fn sealed(rec: &str) -> String {
    format!("{{\"crc\":\"{}\",\"rec\":{rec}}}\n", &blake3::hash(rec.as_bytes()).to_hex()[..16])
}

#[test]
fn a_file_without_end_is_not_merged_for_ever() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    for byte in [b'\0', b'\n'] {
        let endless = sealed(&winner(1, 7).canonical()).into_bytes();
        let merged = db.merge(std::io::Read::chain(&endless[..], std::io::repeat(byte)));
        assert!(matches!(merged, Err(Error::Endless { .. })), "{merged:?}");
        // What came before is in it.
        assert!(db.winner(&key(1)).unwrap().is_some());
    }
}

#[test]
fn a_database_is_made_only_where_that_is_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let existing = || Db::open(&dir, OpenOptions { create: false, ..OpenOptions::default() });
    assert!(matches!(existing(), Err(Error::Missing { .. })) && !dir.exists() && !jitune_db::is_database(&dir));
    open(&dir).put_winner(&winner(1, 7)).unwrap();
    assert!(existing().unwrap().winner(&key(1)).unwrap().is_some() && jitune_db::is_database(&dir));
}

/// Opens as a caller whose bodies are objects with a `config`.
fn open_reading(dir: &Path) -> Db {
    let reader = Reader { version: "1", reads: |record| record.body.get("config").is_some() };
    Db::open(dir, OpenOptions { reader, ..OpenOptions::default() }).expect("opens")
}

#[test]
fn a_newer_record_of_nonsense_hides_no_winner_and_gc_deletes_none() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut good = winner(1, 100);
    let db = open_reading(dir);
    let artifact = db.put_artifact(b"code").unwrap();
    good.body["artifact"] = artifact.to_string().into();
    db.put_winner(&good).unwrap();
    let nonsense = Record { body: json!({"so": "it says"}), ..winner(1, 200) };
    let foreign = sealed(&nonsense.canonical());
    // By a merge, and by whoever wrote it into the journal before.
    let merged = db.merge(format!("{foreign}{}", sealed(&winner(2, 7).canonical())).as_bytes()).unwrap();
    assert_eq!((merged.added, merged.skipped), (1, 1), "{merged:?}");
    assert!(merged.bad_lines[0].why.contains("body"), "{merged:?}");
    assert_eq!(db.winner(&key(1)).unwrap().as_ref(), Some(&good));
    db.close().unwrap();
    let journal = dir.join("journal.jsonl");
    fs::write(&journal, fs::read_to_string(&journal).unwrap() + &foreign).unwrap();
    let db = open_reading(dir);
    assert_eq!(db.winner(&key(1)).unwrap().as_ref(), Some(&good));
    let grace = std::time::Duration::ZERO;
    db.gc(jitune_db::GcOptions { artifact_grace: grace, ..Default::default() }).unwrap();
    assert_eq!(db.winner(&key(1)).unwrap().as_ref(), Some(&good));
    assert_eq!(db.artifact(&artifact).unwrap().as_deref(), Some(&b"code"[..]));
    // Another version may make sense of it: it is still there for that one, whose index is its own.
    drop(db);
    assert_eq!(open(dir).winner(&key(1)).unwrap().unwrap().at, 200);
    let db = open_reading(dir);
    assert_eq!(db.winner(&key(1)).unwrap(), Some(good));
    assert!(db.verify().unwrap().is_clean());
    assert!(matches!(db.put_winner(&Record::winner(key(1), json!("nonsense"))), Err(Error::InvalidRecord { .. })));
}

/// A winner that can be used stays when a newer one comes without its code, or with the name of code that is here, or when it is
/// withdrawn elsewhere; without code the newer one counts.
#[test]
fn a_merge_takes_no_winner_away_whose_code_is_here() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let artifact = db.put_artifact(b"code").unwrap();
    let named = |n, at, hash: &str| Record { body: json!({"artifact": hash}), ..winner(n, at) };
    let (here, absent) = (artifact.to_string(), "0".repeat(64));
    db.put_winner(&named(1, 100, &here)).unwrap();
    db.put_winner(&named(2, 100, &absent)).unwrap();
    let withdrawn = |n| Record { kind: Kind::Withdrawn, ..winner(n, 300) };
    for newer in [named(1, 200, &absent), named(1, 200, &here), winner(1, 200), withdrawn(1)] {
        let merged = db.merge(sealed(&newer.canonical()).as_bytes()).unwrap();
        assert_eq!((merged.added, merged.kept, merged.skipped), (0, 1, 0), "{merged:?}");
        db.gc(jitune_db::GcOptions { artifact_grace: std::time::Duration::ZERO, ..Default::default() }).unwrap();
        assert_eq!(db.winner(&key(1)).unwrap(), Some(named(1, 100, &here)));
        assert_eq!(db.artifact(&artifact).unwrap().as_deref(), Some(&b"code"[..]));
    }
    assert_eq!(db.merge(sealed(&named(2, 200, &absent).canonical()).as_bytes()).unwrap().added, 1);
    // Another journal names code that is here: who knows whether it is the one it was seen with.
    assert_eq!(db.merge(sealed(&named(2, 250, &here).canonical()).as_bytes()).unwrap().added, 1);
    assert_eq!(db.winner(&key(2)).unwrap(), Some(Record { merged: true, ..named(2, 250, &here) }));
    assert_eq!(db.merge(sealed(&withdrawn(2).canonical()).as_bytes()).unwrap().added, 1);
    assert_eq!(db.winner(&key(2)).unwrap(), None);
}

/// What a merge brought says so until it was seen here, however it is passed on; the order of records is what it would be without.
#[test]
fn what_a_merge_brought_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, second) = (temp.path().join("a"), temp.path().join("b"));
    let db = open(&dir);
    let text = sealed(&winner(1, 100).canonical()) + &sealed(&trial(1, "a", 100).canonical());
    assert_eq!(db.merge(text.as_bytes()).unwrap().added, 2);
    let there = Record { merged: true, ..winner(1, 100) };
    assert_eq!(db.winner(&key(1)).unwrap().as_ref(), Some(&there));
    assert!(db.trials(&key(1)).unwrap()[0].merged);
    let merged = db.merge(text.as_bytes()).unwrap();
    assert_eq!((merged.added, merged.same), (0, 2), "{merged:?}");
    drop(db);
    // Its index and its journal say the same, and so does a journal that was compacted.
    fs::remove_file(dir.join("index.bin")).unwrap();
    let db = open(&dir);
    db.gc(Default::default()).unwrap();
    assert_eq!(db.winner(&key(1)).unwrap().as_ref(), Some(&there));
    assert!(db.verify().unwrap().is_clean());
    assert_eq!(answers(&db), text);
    // Nobody stores what was merged, and whoever sees the same stores it.
    assert!(matches!(db.put_winner(&there), Err(Error::InvalidRecord { .. })));
    assert_eq!(db.put_winner(&winner(1, 100)).unwrap(), 101);
    assert_eq!(db.winner(&key(1)).unwrap(), Some(Record { at: 101, ..winner(1, 100) }));
    // A whole journal with what was merged into it is merged elsewhere, and what says falsely that it was not is not taken.
    let whole = fs::read_to_string(dir.join("journal.jsonl")).unwrap();
    assert!(whole.contains("{\"merged\":true,"));
    let other = open(&second);
    assert_eq!(other.merge(whole.as_bytes()).unwrap().added, 3);
    assert!(other.winner(&key(1)).unwrap().unwrap().merged && other.trials(&key(1)).unwrap()[0].merged);
    let says = |says: &str| sealed(&winner(7, 100).canonical().replacen('{', &format!("{{{says},"), 1));
    let inner = sealed(&winner(7, 100).canonical());
    let holds = format!("\"x\":[{},{{\"crc\":\"z\"}}]", inner.trim());
    let longer = format!("\"x\":[{}0]", "1e15,".repeat(300_000));
    for text in [holds.as_str(), &longer] {
        let rec =
            Record { body: json!("BODY"), ..winner(7, 100) }.canonical().replace("\"BODY\"", &format!("{{{text}}}"));
        let merged = other.merge(sealed(&rec).as_bytes());
        assert!(matches!(&merged, Err(Error::NotAJournal { lines: 1, .. })), "{merged:?}");
    }
    // Trials that were seen here stay, too.
    other.put_trial(&trial(1, "a", 50)).unwrap();
    let own = other.trials(&key(1)).unwrap();
    assert!(!own[0].merged);
    assert_eq!(other.merge(sealed(&trial(1, "a", 900).canonical()).as_bytes()).unwrap().kept, 1);
    assert_eq!(other.trials(&key(1)).unwrap(), own);
    for text in ["\"merged\":false", "\"at\":7,\"merged\":true", "\"merged\": true", "\"merged\":true,\"merged\":true"]
    {
        let none = matches!(
            other.merge(says(text).as_bytes()),
            Ok(MergeReport { added: 0, .. }) | Err(Error::NotAJournal { .. })
        );
        assert!(none, "{text}");
        assert_eq!(other.winner(&key(7)).unwrap(), None, "{text}");
    }
}

#[test]
fn no_date_wins_for_ever() {
    for at in [u64::MAX, u64::MAX - 1, MAX_DATE + 1, MAX_DATE, jitune_db::now() + 10 * 86_400] {
        let temp = tempfile::tempdir().unwrap();
        let db = open(temp.path());
        db.put_winner(&winner(1, 100)).unwrap();
        let text = winner(1, 0).canonical().replace("\"at\":0,", &format!("\"at\":{at},"));
        let foreign = sealed(&text) + &sealed(&winner(2, 7).canonical());
        let merged = db.merge(foreign.as_bytes()).unwrap();
        assert_eq!((merged.added, merged.skipped), (1, 1), "{at}: {merged:?}");
        assert_eq!(db.winner(&key(1)).unwrap(), Some(winner(1, 100)), "{at}");
        assert!(at <= MAX_DATE || matches!(db.put_winner(&winner(3, at)), Err(Error::InvalidRecord { .. })));
        // In a journal put together by hand, what is measured next still wins.
        drop(db);
        let journal = temp.path().join("journal.jsonl");
        fs::write(&journal, fs::read_to_string(&journal).unwrap() + &sealed(&text)).unwrap();
        let db = open(temp.path());
        match db.put_winner(&winner(1, 300)) {
            Ok(stored) => {
                let want = Record { at: stored, ..winner(1, 300) };
                assert_eq!(db.winner(&key(1)).unwrap(), Some(want), "{at}");
            }
            Err(e) => assert!(at == MAX_DATE && e.to_string().contains("9999"), "{at}: {e}"),
        }
    }
}

#[test]
fn what_is_no_journal_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    for text in ["hello\n", "{}", "a\nb\nc\n", "{\"crc\":\"0\",\"rec\":{}}\n", &sealed("{\"kind\":\"other\"}")] {
        assert!(matches!(db.merge(text.as_bytes()), Err(Error::NotAJournal { .. })), "{text}");
    }
    for empty in ["", "\n", "\n\r\n\n"] {
        assert!(db.merge(empty.as_bytes()).is_err(), "{empty:?}");
    }
    assert!(matches!(db.merge(&b"\n\n"[..]), Err(Error::NoRecord)));
    let many = "x\n".repeat(100_000) + &sealed(&winner(1, 1).canonical());
    let merged = db.merge(many.as_bytes()).unwrap();
    assert_eq!((merged.added, merged.skipped, merged.bad_lines.len()), (1, 100_000, 100));
}

#[test]
fn a_journal_that_was_replaced_under_its_writer_takes_no_winner() {
    let (_temp, dir, _) = filled(2);
    let db = open(&dir);
    let journal = dir.join("journal.jsonl");
    fs::copy(&journal, dir.join("copy")).unwrap();
    fs::rename(dir.join("copy"), &journal).unwrap();
    // It would go to a file that no name leads to.
    assert!(matches!(db.put_winner(&winner(9, 1)), Err(Error::JournalReplaced { .. })));
    drop(db);
    let db = open(&dir);
    db.put_winner(&winner(9, 1)).unwrap();
    drop(db);
    assert!(open(&dir).winner(&key(9)).unwrap().is_some());
}
