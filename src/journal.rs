//! The forms of records in the tuning database: how a winner, a verdict, or what serves a model best becomes a record's body, and is read
//! back. A version that knew nothing of the last keeps them where they lie.
//!
//! A record that does not read here is of another version, or nonsense: it is kept where it lies, is never the current
//! one, and is not used.

use crate::key;
use crate::recipe::{Config, Description, Role};
use crate::setting::{Asked, Row, Serving};
use crate::template::{Library, Template};
use crate::verdict::Verdict;
use crate::winner::{Winner, is_time};
use jitune_db::{ArtifactHash, Db, Key, Kind, MAX_DATE, OpenOptions, Reader, Record};
use std::sync::{Arc, LazyLock};

/// What the database of a tuner is opened with: records that do not read here hide none that do.
pub fn options() -> OpenOptions {
    let reader =
        Reader { version: concat!("jitune ", env!("CARGO_PKG_VERSION"), ", winners held against templates"), reads };
    OpenOptions { reader, ..OpenOptions::default() }
}

fn reads(record: &Record) -> bool {
    match record.kind {
        Kind::Winner => winner(record).is_some() || serving(record).is_some(),
        Kind::Trial => {
            let config = record.sub.as_ref().is_some_and(|s| s.parse::<Config>().is_ok());
            (verdict(record).is_some() && config) || row(record).is_some()
        }
        // It is for people, but nobody withdraws a winner without a word.
        Kind::Withdrawn => record.body.get("why").and_then(|why| why.as_str()).is_some_and(|why| !why.is_empty()),
        _ => false,
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

/// How far a winner may have been chosen after its record was dated, in seconds: the clock may have been set in between.
const CLOCK_SET: u64 = 86_400;

/// The winner that a record holds, if it reads, took a time, and what it says goes together: problem and device with the key, config
/// and launch with the description. Where the key is that of built-in templates, the description is one of theirs.
pub fn winner(record: &Record) -> Option<Winner> {
    let winner: Winner = serde_json::from_value(record.body.clone()).ok()?;
    let e = &winner.evidence;
    let sound = is_time(e.median_us)
        && e.samples_us.iter().all(|us| is_time(*us))
        && e.at <= record.at.saturating_add(CLOCK_SET).min(MAX_DATE)
        && winner.artifact.parse::<ArtifactHash>().is_ok()
        && key::is_in_steps(&record.key) == e.step.is_some()
        && (winner.description.role == Role::Kernel || e.step.is_some())
        && e.step.as_ref().is_none_or(|step| is_time(step.us) && is_time(step.before_us))
        && goes_together(&winner, &record.key)
        && !is_under_a_false_name(&winner, &record.key);
    sound.then_some(winner)
}

/// The same, where the key is that of these templates: the description has to be one of theirs. Otherwise why there is none.
pub fn winner_of(record: &Record, templates: &[Arc<Template>]) -> Result<Winner, &'static str> {
    let winner = winner(record).ok_or("its record is not one that this version reads")?;
    match templates.iter().any(|t| is_of(&winner, t)) {
        true => Ok(winner),
        false => Err("the description in its record is not that of its template"),
    }
}

/// The same, where it was seen here that its code is right and how long it takes. A journal from elsewhere says so of code that it
/// names by a hash: that this is here too, as some other kernel's may be, says nothing of the two.
pub fn own_winner(record: &Record, templates: &[Arc<Template>]) -> Result<Winner, &'static str> {
    let winner = winner_of(record, templates)?;
    if record.merged { Err(MERGED) } else { Ok(winner) }
}

/// Why what a merge brought is not run.
pub const MERGED: &str = "it came with a merged journal, and its code was not judged here yet";

/// The verdicts on a template's configs that were passed here, with their configs; what a merge brought is not believed.
pub fn verdicts(db: &Db, key: &Key) -> Result<Vec<(Config, Verdict)>, jitune_db::Error> {
    let own = |record: &Record| {
        let config = record.sub.as_deref().filter(|_| !record.merged)?.parse().ok()?;
        Some((config, verdict(record)?))
    };
    Ok(db.trials(key)?.iter().filter_map(own).collect())
}

/// Whether problem and device are those of a key, and it can be launched. The texts and descriptions of older schemas are of other
/// forms; no look-up finds those.
fn goes_together(winner: &Winner, key: &Key) -> bool {
    if key.get("schema") != Some(key::SCHEMA) {
        return winner.description.check().is_ok();
    }
    let device = &winner.device;
    let timing = key.timing.iter().filter(|(name, _)| *name != key::METHOD_FIELD);
    key.get("problem") == Some(&winner.problem.bucket_text())
        && key.get("target") == Some(device.target.name())
        && key.get("arch") == Some(&device.arch)
        && timing.eq(&device.silicon)
        && winner.launch().is_ok()
}

/// Whether a winner's description is that of a template, as far as code and launches depend on it, and its config one of the
/// template's.
fn is_of(winner: &Winner, template: &Template) -> bool {
    let own = &template.recipe.description;
    // As text, since the order of names counts; a winner's lists of values have the chosen ones alone.
    let text = |d: &Description| {
        let mut d = d.essence();
        d.tunables.values_mut().for_each(Vec::clear);
        serde_json::to_string(&d).ok()
    };
    let listed = |(name, list): (&String, &Vec<i64>)| winner.config.get(name).is_some_and(|v| list.contains(&v));
    winner.description.name == own.name && own.tunables.iter().all(listed) && text(&winner.description) == text(own)
}

/// Whether a key names built-in templates of this version, and the description is none of theirs.
fn is_under_a_false_name(winner: &Winner, key: &Key) -> bool {
    static BUILT_IN: LazyLock<Option<Library>> = LazyLock::new(|| Library::built_in().ok());
    let Some(library) = &*BUILT_IN else { return false };
    // Most are what they say, and the hashes of all templates of a problem take a while.
    if library.get(winner.device.target, winner.template()).is_some_and(|t| is_of(winner, t)) {
        return false;
    }
    let templates = library.for_steps(&winner.problem, &winner.device);
    templates.is_ok_and(|templates| key::is_among(key, library, &templates))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Best, Figures, Setting};

    /// Every winner of every journal that is kept in the repository is still taken.
    #[test]
    fn winners_of_old_journals_are_taken() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning-db/winners");
        // Beside the folders lies what is said of them.
        let below =
            |folder: &std::path::Path| std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path());
        let files = below(&root)
            .flat_map(|kind| below(&kind).collect::<Vec<_>>())
            .flat_map(|day| below(&day).collect::<Vec<_>>());
        let mut taken = 0;
        for file in files.filter(|f| f.extension().is_some_and(|e| e == "jsonl")) {
            for line in std::fs::read_to_string(&file).unwrap().lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let Ok(record) = serde_json::from_value::<Record>(line["rec"].clone()) else { continue };
                if serde_json::from_value::<Winner>(record.body.clone()).is_ok() {
                    assert!(winner(&record).is_some() && reads(&record), "{}: {:?}", file.display(), record.key);
                    taken += 1;
                }
            }
        }
        assert!(taken > 1000, "{taken}");
    }

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
