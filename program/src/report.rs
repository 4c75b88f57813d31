//! `jitune report`: what a comparison found, written again from its raw rows.

#[cfg(feature = "bench")]
use super::engine_report;
use super::{CliError, files, table};
use crate::out::{escaped, lossy_all};
use jitune::report::{Rows, Summary, html, markdown, markers, readme, terminal};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune report --from compare/rows.jsonl\n  \
    jitune report --from compare/rows.jsonl -o elsewhere\n  \
    jitune report --from compare/rows.jsonl --readme README.md\n  \
    jitune report --from jitune-bench/engines.jsonl\n  \
    jitune report --from jitune-bench/engines.jsonl --export vllm -o results\n  \
    jitune report --from jitune-bench/engines.jsonl --import trtllm-bench sustained-128=report.json\n\n\
    Needs no device. A run that was cut off has a report too. Exit code 4 when the rows cannot be read.")]
pub struct Args {
    /// The raw rows of a comparison, or of a run of engines.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Where the reports go; beside the rows by default.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Print the tables of a README in Markdown; or write them into a file, between its lines `<!-- jitune report: ROWS -->` and
    /// `<!-- /jitune report -->`, where ROWS is what --from says.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "json"])]
    readme: Option<Option<PathBuf>>,
    /// Print the summary as JSON in place of the table.
    #[arg(long)]
    json: bool,
    #[cfg(feature = "bench")]
    #[command(flatten)]
    beside: engine_report::Beside,
    #[cfg(feature = "bench")]
    #[command(flatten)]
    others: engine_report::Others,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    // `--readme` replaces the file that it names.
    if let Some(file) = args.readme.iter().flatten().chain(&args.output).next() {
        files::outside(file, None)?;
    }
    let beside = args.from.parent().unwrap_or(Path::new(""));
    let folder = args.output.as_deref().unwrap_or(beside);
    #[cfg(feature = "bench")]
    {
        if args.others.import.is_some() {
            engine_report::import(&args.from, &args.others)?;
        }
        if engine_report::of_engines(&args.from)? {
            return match (&args.readme, args.others.export) {
                (Some(readme), _) => tables(readme.as_deref(), &args.from, &engine_report::tables(&args.from)?),
                (None, Some(format)) => engine_report::export(&args.from, format, folder),
                (None, None) => engine_report::write(&args.from, folder, &args.beside, args.json),
            };
        }
        if args.others.export.is_some() {
            let rows = args.from.display();
            return Err(CliError::Usage(format!("--export: {rows} is not the engines.jsonl of `jitune bench`")));
        }
    }
    #[cfg(feature = "engine")]
    if super::precisions::are(&args.from) {
        if args.readme.is_some() {
            let rows = args.from.display();
            return Err(CliError::Usage(format!("--readme: {rows} has precisions, of which no README has a table")));
        }
        return super::precisions::report(&args.from, folder, args.json);
    }
    let rows = crate::rows::read(&args.from)?;
    if let Some(file) = &args.readme {
        return tables(file.as_deref(), &args.from, &readme::tables(&rows));
    }
    let written = write(folder, &rows)?;
    if args.json {
        out!(
            "{}",
            serde_json::json!({ "summary": Summary::of(&rows), "cut": rows.cut(), "files": lossy_all(&written) })
        );
        return Ok(());
    }
    show(&rows);
    out!("written: {}", written.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
    Ok(())
}

/// Prints tables, or writes them to their place in a README.
fn tables(readme: Option<&Path>, rows: &Path, tables: &str) -> Result<(), CliError> {
    let Some(path) = readme else {
        crate::out::write(format_args!("{tables}"));
        return Ok(());
    };
    let before = files::text(path, files::MAX_TEXT_BYTES)?;
    let placed = markers::placed(&before, &rows.to_string_lossy(), &escaped(tables))
        .map_err(|source| CliError::Readme { path: path.into(), source })?;
    let same = placed == before;
    if !same {
        files::write(path, placed.as_bytes())?;
    }
    out!("{} {}", if same { "nothing new for" } else { "written:" }, path.display());
    Ok(())
}

/// Writes both reports to a folder, and says which files they are.
pub(super) fn write(folder: &Path, rows: &Rows) -> Result<Vec<PathBuf>, CliError> {
    files::put(folder, vec![("report.md", markdown::report(rows)), ("report.html", html::report(rows)?)])
}

/// Prints the short table and what follows it.
pub(super) fn show(rows: &Rows) {
    let summary = Summary::of(rows);
    table::print(&terminal::HEADER, &terminal::rows(rows, &summary), &terminal::RIGHT);
    out!("");
    terminal::closing(rows, &summary).iter().for_each(|line| out!("{line}"));
}
