//! `jitune db`: the tuning database.

use super::select::Store;
use super::{CliError, files, table};
use crate::out::lossy;
use clap::Subcommand;
use jitune::journal;
use jitune::setting::Serving;
use jitune::winner::Winner;
use jitune_db::{GcOptions, GcReport, Kind, Record};
use std::fs::{File, Metadata};
use std::io::{BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune db list\n  jitune db export-journal --winners winners.jsonl\n  \
    jitune db merge their-journal.jsonl\n  jitune db verify")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    store: Store,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List the winners, and what serves models best.
    #[command(after_help = "Example:\n  jitune db list")]
    List,
    /// Print the whole records of the problems whose text holds this, and of the models that are served best by a setting.
    #[command(after_help = "Example:\n  jitune db show 'matmul m=1'")]
    Show {
        /// Part of a problem's text, or of a model's name.
        text: String,
    },
    /// Write the records as a journal that can be read, compared, committed and merged.
    #[command(after_help = "Example:\n  jitune db export-journal --winners winners.jsonl")]
    ExportJournal {
        /// The file; `-` is standard output.
        file: PathBuf,
        /// Winners alone, without the history of trials.
        #[arg(long)]
        winners: bool,
    },
    /// Take in journals of other machines or users.
    #[command(after_help = "Example:\n  jitune db merge their-journal.jsonl")]
    Merge {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Drop superseded records, and artifacts that no record names.
    #[command(after_help = "Example:\n  jitune db gc --dry-run --trials-older-than 30")]
    Gc {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        /// Drop trials older than this too.
        #[arg(long, value_name = "DAYS")]
        trials_older_than: Option<u64>,
        /// Keep artifacts without a record that are younger than this.
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        grace: u64,
    },
    /// Check every line, every artifact and the index.
    #[command(after_help = "Example:\n  jitune db verify --repair")]
    Verify {
        /// Move what is damaged to the folder `quarantine`, and rebuild the index.
        #[arg(long)]
        repair: bool,
    },
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    match &args.command {
        Command::List => list(args),
        Command::Show { text } => show(args, text),
        Command::ExportJournal { file, winners } => export_journal(args, file, *winners),
        Command::Merge { files } => {
            let db = args.store.open()?;
            let mut skipped = 0;
            for path in files {
                let file = File::open(path).map_err(|source| CliError::Io { path: path.clone(), source })?;
                let merged = db.merge(BufReader::new(file));
                let merged = merged.map_err(|source| CliError::Merge { path: path.clone(), source: source.into() })?;
                let kept = match merged.kept {
                    0 => String::new(),
                    n => format!("{n} kept whose code is here, "),
                };
                let text = format!(
                    "{}: {} added, {} there already, {} older, {}{} not taken",
                    path.display(),
                    merged.added,
                    merged.same,
                    merged.older,
                    kept,
                    merged.skipped
                );
                report(args, &serde_json::json!(merged), &text);
                for bad in merged.bad_lines.iter().take(3) {
                    err!("jitune: {}:{}: {}", path.display(), bad.line, bad.why);
                }
                skipped += merged.skipped;
            }
            db.close()?;
            match skipped {
                0 => Ok(()),
                n => {
                    Err(CliError::Partly(format!("{n} lines were not taken; --json names the first hundred of a file")))
                }
            }
        }
        Command::Gc { dry_run, trials_older_than, grace } => {
            let db = args.store.existing()?;
            let before = trials_older_than.map(|days| jitune_db::now().saturating_sub(days.saturating_mul(86400)));
            let options =
                GcOptions { trials_before: before, artifact_grace: Duration::from_secs(*grace), dry_run: *dry_run };
            let done = db.gc(options)?;
            report(args, &serde_json::json!(done), &collected(&done, *dry_run));
            Ok(db.close()?)
        }
        Command::Verify { repair } => verify(args, *repair),
    }
}

fn export_journal(args: &Args, file: &Path, winners: bool) -> Result<(), CliError> {
    let named = file.as_os_str() != "-";
    if named {
        args.store.keeps_out(file)?;
    }
    let mut bytes = Vec::new();
    let count = args.store.read()?.export_journal(&mut bytes, |r: &Record| !winners || r.kind != Kind::Trial)?;
    let (value, text) =
        (serde_json::json!({"records": count, "file": lossy(file)}), format!("{count} records written"));
    let there = std::fs::metadata(file).ok().filter(|_| named);
    let to_output = !named || there.as_ref().is_some_and(is_output);
    if !to_output && there.is_none_or(|there| there.is_file()) {
        files::write(file, &bytes)?;
        report(args, &value, &text);
        return Ok(());
    }
    match to_output {
        true => crate::out::bytes(&bytes),
        // A pipe or a device is nothing that a file could take the place of.
        false => {
            File::options().write(true).open(file).and_then(|mut to| to.write_all(&bytes)).map_err(files::io(file))?
        }
    }
    // Standard output may be where they went.
    if args.json {
        err!("{value}")
    } else {
        err!("{text}")
    }
    Ok(())
}

/// Whether standard output is this very file.
fn is_output(there: &Metadata) -> bool {
    let output = std::io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    output.is_ok_and(|output| (output.dev(), output.ino()) == (there.dev(), there.ino()))
}

/// What a collection dropped, in words.
fn collected(done: &GcReport, dry_run: bool) -> String {
    format!(
        "{}{} lines dropped and {} kept, the journal from {} bytes to {}; {} artifacts ({} bytes) dropped and {} kept, {} leftovers dropped",
        if dry_run { "it would be: " } else { "" },
        done.lines_dropped,
        done.lines_kept,
        done.journal_bytes_before,
        done.journal_bytes_after,
        done.artifacts_dropped,
        done.artifact_bytes_dropped,
        done.artifacts_kept,
        done.temp_files_dropped
    )
}

fn report(args: &Args, value: &serde_json::Value, text: &str) {
    if args.json {
        out!("{value}");
    } else {
        out!("{text}");
    }
}

fn winners(args: &Args) -> Result<Vec<(Record, Winner)>, CliError> {
    let db = args.store.read()?;
    let mut list = Vec::new();
    for record in db.winners()? {
        let record = record?;
        // Records of a newer version may not read as winners; they are kept, not shown.
        if let Some(w) = journal::winner(&record) {
            list.push((record, w));
        }
    }
    list.sort_by(|a, b| (&a.1.device.name, a.1.problem).cmp(&(&b.1.device.name, b.1.problem)));
    Ok(list)
}

/// What serves models best, by device and model.
fn settings(args: &Args) -> Result<Vec<(Record, Serving)>, CliError> {
    let db = args.store.read()?;
    let mut list = Vec::new();
    for record in db.winners()? {
        let record = record?;
        list.extend(journal::serving(&record).map(|serving| (record, serving)));
    }
    list.sort_by(|a, b| (&a.1.device, &a.1.model, &a.1.workload).cmp(&(&b.1.device, &b.1.model, &b.1.workload)));
    Ok(list)
}

fn list(args: &Args) -> Result<(), CliError> {
    let (list, settings) = (winners(args)?, settings(args)?);
    if args.json {
        for (record, w) in &list {
            let e = &w.evidence;
            let line = serde_json::json!({
                "key": record.key.id().to_string(), "device": w.device.name, "problem": w.problem,
                "template": w.template(), "config": w.config, "median_us": e.median_us,
                "roofline_share": e.roofline_share, "at": record.at, "artifact": w.artifact, "in_steps": e.step.is_some(),
                "merged": record.merged,
            });
            out!("{line}");
        }
        for (record, serving) in &settings {
            let line = serde_json::json!({ "key": record.key.id().to_string(), "at": record.at, "merged": record.merged, "serving": serving });
            out!("{line}");
        }
        return Ok(());
    }
    let row = |(record, w): &(Record, Winner)| {
        vec![
            record.key.id().short(),
            w.device.name.clone(),
            table::us(w.evidence.median_us),
            format!("{:.0}%", w.evidence.roofline_share * 100.0),
            format!(
                "{}{}{}",
                w.problem,
                if w.evidence.step.is_some() { ", in steps" } else { "" },
                if record.merged { ", merged: not judged here" } else { "" }
            ),
            format!("{} {}", w.template(), w.config),
        ]
    };
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    table::print(&["key", "device", "us", "of ceiling", "problem", "winner"], &rows, &[2, 3]);
    if settings.is_empty() {
        return Ok(());
    }
    let row = |(record, s): &(Record, Serving)| {
        vec![
            record.key.id().short(),
            s.device.clone(),
            format!("{:.3}", s.goodput()),
            format!("{:.3}", s.default.figures.goodput),
            format!("{} within TTFT {} ms, TPOT {} ms", s.workload, s.ttft_ms, s.tpot_ms),
            format!("{}{}", s.model, if record.merged { ", merged: not measured here" } else { "" }),
            s.setting.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = settings.iter().map(row).collect();
    out!("");
    table::print(&["key", "device", "goodput /s", "default", "workload", "model", "setting"], &rows, &[2, 3]);
    Ok(())
}

fn show(args: &Args, text: &str) -> Result<(), CliError> {
    let mut found = 0;
    let problems = winners(args)?.into_iter().map(|(record, w)| (record, w.problem.to_string()));
    let models = settings(args)?.into_iter().map(|(record, s)| (record, s.model));
    for (record, name) in problems.chain(models) {
        if name.contains(text) {
            found += 1;
            let value = serde_json::to_string_pretty(&record).map_err(|e| CliError::Usage(e.to_string()))?;
            out!("{value}");
        }
    }
    match found {
        0 => Err(CliError::Usage(format!(
            "no winner of a problem with '{text}' in its text; `jitune db list` shows all"
        ))),
        _ => Ok(()),
    }
}

fn verify(args: &Args, repair: bool) -> Result<(), CliError> {
    let db = if repair { args.store.existing()? } else { args.store.read()? };
    if repair {
        let done = db.repair()?;
        for line in &done.bad_lines {
            err!("jitune: note: {line}");
        }
        for path in &done.bad_artifacts {
            err!("jitune: note: a damaged artifact was moved to {}", path.display());
        }
    }
    let v = db.verify()?;
    let text = format!(
        "{} records, {} journal bytes, {} artifacts: {} damaged lines, {} index differences, {} damaged artifacts, {} missing",
        v.records,
        v.journal_bytes,
        v.artifacts,
        v.bad_lines.len(),
        v.index_differences,
        v.bad_artifacts.len(),
        v.missing_artifacts.len()
    );
    report(args, &serde_json::json!(v), &text);
    if !v.missing_artifacts.is_empty() {
        err!("jitune: note: `jitune tune` makes missing artifacts again, for the problems that it is given");
    }
    if v.is_clean() {
        return Ok(db.close()?);
    }
    let hint = match repair {
        true => "; what is left is in the way of its repair: look at the paths that --json names",
        false => "; `jitune db verify --repair` moves what is damaged out of the way",
    };
    Err(CliError::Partly(format!("the database is damaged{hint}")))
}
