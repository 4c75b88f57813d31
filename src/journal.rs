//! The forms of records in the tuning database: how a winner, a verdict, or what serves a model best becomes a record's body, and is read
//! back. A version that knew nothing of the last keeps them where they lie.
//!
//! A record that does not read here is of another version, or nonsense: it is kept where it lies, is never the current
//! one, and is not used.

use crate::recipe::Config;
use crate::setting::{Asked, Row, Serving};
use crate::verdict::Verdict;
use crate::winner::Winner;
use jitune_db::{Key, Kind, OpenOptions, Reader, Record};

/// What the database of a tuner is opened with: records that do not read here hide none that do.
pub fn options() -> OpenOptions {
    let reader = Reader { version: concat!("jitune ", env!("CARGO_PKG_VERSION"), ", settings"), reads };
    OpenOptions { reader, ..OpenOptions::default() }
}

fn reads(record: &Record) -> bool {
    match record.kind {
        Kind::Winner => winner(record).is_some() || serving(record).is_some(),
        Kind::Trial => {
            let config = record.sub.as_ref().is_some_and(|s| s.parse::<Config>().is_ok());
            (verdict(record).is_some() && config) || row(record).is_some()
        }
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

/// The record of what serves a model best, under its key.
pub fn of_serving(key: Key, serving: &Serving) -> Result<Record, serde_json::Error> {
    Ok(Record::winner(key, serde_json::to_value(serving)?))
}

/// The record of a row of a search for it, under the key of the search's rows.
pub fn of_row(key: Key, row: &Row) -> Result<Record, serde_json::Error> {
    Ok(Record::trial(key, row.asked().to_string(), serde_json::to_value(row)?))
}

/// What serves a model best, if the record holds that.
pub fn serving(record: &Record) -> Option<Serving> {
    record.key.get(crate::key::SERVING)?;
    serde_json::from_value(record.body.clone()).ok().filter(Serving::is_sound)
}

/// The row of a search that a record holds.
pub fn row(record: &Record) -> Option<Row> {
    record.key.get(crate::key::SERVING)?;
    let row: Row = serde_json::from_value(record.body.clone()).ok().filter(Row::is_sound)?;
    let own = record.sub.as_ref().is_some_and(|sub| sub.parse::<Asked>() == Ok(row.asked()));
    own.then_some(row)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Best, Figures, Setting};

    /// What serves a model best is stored beside winners and is none; under a key of another kind it is nothing.
    #[test]
    fn settings_lie_beside_winners() {
        let of = |name: &str| Key::new([(name, "1"), ("asked", "chat")], []);
        let setting = Setting::usual(true);
        let best = Best { setting, load: 2.0, figures: Figures { share: 1.0, goodput: 2.0, ..Figures::default() } };
        let stored = Serving {
            model: "m".into(),
            device: "d".into(),
            workload: "chat".into(),
            ttft_ms: 100.0,
            tpot_ms: 20.0,
            context: 4096,
            setting,
            default: best,
            found: best,
            why: String::new(),
            rows: 9,
            seconds: 30.0,
            cut_off: false,
        };
        let record = of_serving(of(crate::key::SERVING), &stored).unwrap();
        assert!(reads(&record) && winner(&record).is_none());
        assert_eq!(serving(&record), Some(stored.clone()));
        assert!(!reads(&of_serving(of("schema"), &stored).unwrap()));
        let unsound = Serving { setting: Setting { chunk: 0, ..setting }, ..stored };
        assert!(!reads(&of_serving(of(crate::key::SERVING), &unsound).unwrap()));
        // A row is what its name says, and no verdict.
        let of_it = Row { setting, load: 2.5, seconds: 1.5, round: 1, figures: None, why: Some("no room".into()) };
        let record = of_row(of(crate::key::SERVING), &of_it).unwrap();
        assert!(reads(&record) && verdict(&record).is_none());
        assert_eq!(row(&record), Some(of_it));
        assert!(!reads(&Record { sub: Some("tile=64".into()), ..record }));
    }
}
