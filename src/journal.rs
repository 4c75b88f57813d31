//! The forms of records in the tuning database: how a winner or a verdict becomes a record's body, and is read back.
//!
//! A record that does not read here is of another version: it is kept where it lies, and not used.

use crate::recipe::Config;
use crate::verdict::Verdict;
use crate::winner::Winner;
use jitune_db::{Key, Record};

/// The record of a winner under its key.
pub fn of_winner(key: Key, winner: &Winner) -> Result<Record, serde_json::Error> {
    Ok(Record::winner(key, serde_json::to_value(winner)?))
}

/// The record of a verdict on a config under the key of its template's trials.
pub fn of_verdict(key: Key, config: &Config, verdict: &Verdict) -> Result<Record, serde_json::Error> {
    Ok(Record::trial(key, config.to_string(), serde_json::to_value(verdict)?))
}

/// The winner that a record holds.
pub fn winner(record: &Record) -> Option<Winner> {
    serde_json::from_value(record.body.clone()).ok()
}

/// The verdict that a record holds.
pub fn verdict(record: &Record) -> Option<Verdict> {
    serde_json::from_value(record.body.clone()).ok()
}
