//! `jitune report`: what a comparison found, written again from its raw rows.

use super::{CliError, table};
use jitune::report::{Rows, Summary, html, markdown, readme, terminal};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune report --from compare/rows.jsonl\n  \
    jitune report --from compare/rows.jsonl -o elsewhere\n  \
    jitune report --from compare/rows.jsonl --readme\n\n\
    Needs no device. A run that was cut off has a report too. Exit code 4 when the rows cannot be read.")]
pub struct Args {
    /// The raw rows of a comparison.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Where report.md and report.html go; beside the rows by default.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Print the tables of a README in Markdown, and write nothing.
    #[arg(long, conflicts_with_all = ["output", "json"])]
    readme: bool,
    /// Print the summary as JSON in place of the table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let rows = read(&args.from)?;
    if args.readme {
        crate::out::write(format_args!("{}", readme::tables(&rows)));
        return Ok(());
    }
    let beside = args.from.parent().unwrap_or(Path::new(""));
    let files = write(args.output.as_deref().unwrap_or(beside), &rows)?;
    if args.json {
        out!("{}", serde_json::json!({ "summary": Summary::of(&rows), "cut": rows.cut(), "files": files }));
        return Ok(());
    }
    show(&rows);
    out!("written: {}", files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
    Ok(())
}

/// Reads raw rows.
pub(super) fn read(path: &Path) -> Result<Rows, CliError> {
    let bytes = std::fs::read(path).map_err(|source| CliError::Io { path: path.to_path_buf(), source })?;
    Rows::read(&bytes).map_err(|source| CliError::Rows { path: path.to_path_buf(), source })
}

/// Writes both reports to a folder, and says which files they are.
pub(super) fn write(folder: &Path, rows: &Rows) -> Result<Vec<PathBuf>, CliError> {
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(|source| CliError::Io { path: folder.to_path_buf(), source })?;
    }
    let reports = [("report.md", markdown::report(rows)), ("report.html", html::report(rows)?)];
    let put = |(name, text): (&str, String)| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| CliError::Io { path: path.clone(), source })?;
        Ok(path)
    };
    reports.into_iter().map(put).collect()
}

/// Prints the short table and what follows it.
pub(super) fn show(rows: &Rows) {
    let summary = Summary::of(rows);
    table::print(&terminal::HEADER, &terminal::rows(rows, &summary), &terminal::RIGHT);
    out!("");
    terminal::closing(rows, &summary).iter().for_each(|line| out!("{line}"));
}

/// The lines of a run of engines.
#[cfg(feature = "bench")]
pub(super) fn engine_lines(path: &Path) -> Result<Vec<jitune::engines::rows::Line>, CliError> {
    let _ = path;
    todo!()
}

#[cfg(feature = "bench")]
pub(super) fn engines(rows: &Path, folder: &Path, kernels: Option<&Path>, json: bool) -> Result<(), CliError> {
    let _ = (rows, folder, kernels, json);
    todo!()
}
