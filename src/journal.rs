//! The forms of records in the tuning database: how a winner or a verdict becomes a record's body, and is read back.
//!
//! A record that does not read here is of another version, or nonsense: it is kept where it lies, is never the current
//! one, and is not used.

use crate::recipe::Config;
use crate::verdict::Verdict;
use crate::winner::Winner;
use jitune_db::{Key, Kind, OpenOptions, Reader, Record};

/// What the database of a tuner is opened with: records that do not read here hide none that do.
pub fn options() -> OpenOptions {
    let reader = Reader { version: concat!("jitune ", env!("CARGO_PKG_VERSION")), reads };
    OpenOptions { reader, ..OpenOptions::default() }
}

fn reads(record: &Record) -> bool {
    match record.kind {
        Kind::Winner => winner(record).is_some(),
        Kind::Trial => verdict(record).is_some() && record.sub.as_ref().is_some_and(|s| s.parse::<Config>().is_ok()),
        // What a withdrawal says beside its key is for people.
        _ => true,
    }
}

/// The record of a winner under its key.
pub fn of_winner(key: Key, winner: &Winner) -> Result<Record, serde_json::Error> {
    Ok(Record::winner(key, serde_json::to_value(winner)?))
}

/// The record of a verdict on a config under the key of its template's trials.
pub fn of_verdict(key: Key, config: &Config, verdict: &Verdict) -> Result<Record, serde_json::Error> {
    Ok(Record::trial(key, config.to_string(), serde_json::to_value(verdict)?))
}

/// The winner that a record holds, if it reads, is of the key's problem, and took a time.
pub fn winner(record: &Record) -> Option<Winner> {
    let winner: Winner = serde_json::from_value(record.body.clone()).ok()?;
    let e = &winner.evidence;
    let timed = is_time(e.median_us) && e.samples_us.iter().all(|us| is_time(*us));
    // The texts of older schemas are of other forms; no look-up finds those.
    let current = record.key.get("schema") == Some(crate::key::SCHEMA);
    let own = !current || record.key.get("problem") == Some(&winner.problem.bucket_text());
    (timed && own).then_some(winner)
}

/// The verdict that a record holds.
pub fn verdict(record: &Record) -> Option<Verdict> {
    let verdict: Verdict = serde_json::from_value(record.body.clone()).ok()?;
    let timed = match &verdict {
        Verdict::Measured { samples_us, .. } => !samples_us.is_empty() && samples_us.iter().all(|us| is_time(*us)),
        _ => true,
    };
    timed.then_some(verdict)
}

/// Whether a number is microseconds that a kernel can have taken: up to an hour.
fn is_time(us: f64) -> bool {
    us > 0.0 && us < 3.6e9
}
