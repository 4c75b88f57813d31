//! The store, tested from outside: what is acknowledged survives whatever happens
//! to the process, the disk and the files.

mod basics;
mod damage;
mod exchange;
mod processes;
mod upkeep;

use jitune_db::{Db, Key, OpenOptions, Record};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A key that differs from others in `n` and nothing else.
pub fn key(n: u64) -> Key {
    Key::new([("arch", "sm_90a".to_string()), ("problem", format!("matmul m={n}"))], [("driver", "580".to_string())])
}

/// A winner of `key(n)` dated `at`.
pub fn winner(n: u64, at: u64) -> Record {
    let mut record = Record::winner(key(n), json!({"config": {"tile": n}, "us": [at, 0.1]}));
    record.at = at;
    record
}

/// A trial of `key(n)` dated `at`.
pub fn trial(n: u64, sub: &str, at: u64) -> Record {
    let mut record = Record::trial(key(n), sub, json!({"verdict": "measured", "us": [0.25, 1e-7]}));
    record.at = at;
    record
}

/// Opens for writing, without waiting.
pub fn open(dir: &Path) -> Db {
    Db::open(dir, OpenOptions { wait: Duration::ZERO, read_only: false, ..OpenOptions::default() }).expect("opens")
}

/// Opens for reading.
pub fn open_read_only(dir: &Path) -> Db {
    Db::open(dir, OpenOptions::read_only()).expect("opens read-only")
}

/// Everything the database answers, as text.
pub fn answers(db: &Db) -> String {
    let mut out = Vec::new();
    db.export_journal(&mut out, |_| true).expect("exports");
    String::from_utf8(out).expect("is text")
}

/// A database of `n` winners with two trials each, closed; `(folder, answers)`.
pub fn filled(n: u64) -> (tempfile::TempDir, PathBuf, String) {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("db");
    let db = open(&dir);
    for i in 0..n {
        db.put_trial(&trial(i, "a", 50 + i)).expect("stores");
        db.put_trial(&trial(i, "b", 60 + i)).expect("stores");
        db.put_winner(&winner(i, 100 + i)).expect("stores");
    }
    let want = answers(&db);
    assert_eq!(want.lines().count() as u64, 3 * n);
    db.close().expect("closes");
    (temp, dir, want)
}

/// A small generator of pseudo-random numbers (splitmix64), seeded, so that a
/// failure can be repeated.
pub struct Rng(pub u64);

impl Rng {
    /// The next number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
