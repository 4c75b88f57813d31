//! `jitune report`: what a comparison found, written again from its raw rows.

use super::{CliError, table};
#[cfg(feature = "bench")]
use jitune::engines::report::{self as engine_report, Baseline, Runs};
use jitune::report::{Rows, Summary, html, markdown, markers, readme, terminal};
#[cfg(feature = "bench")]
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jitune report --from compare/rows.jsonl\n  \
    jitune report --from compare/rows.jsonl -o elsewhere\n  \
    jitune report --from compare/rows.jsonl --readme README.md\n  \
    jitune report --from jitune-bench/engines.jsonl\n\n\
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
    beside: Beside,
}

/// What a report of engines takes besides.
#[cfg(feature = "bench")]
#[derive(clap::Args, Clone, Default)]
pub struct Beside {
    /// Of engines: the rows.jsonl of `jitune compare` on the same device, for what its kernels do.
    #[arg(long, value_name = "FILE")]
    kernels: Option<PathBuf>,
    /// Of engines: the engines.jsonl of a run on a CPU, which a GPU is held against.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Of engines: the CPU engine that a GPU is held against; the best by default.
    #[arg(long, value_name = "NAME")]
    baseline_engine: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    #[cfg(feature = "bench")]
    if of_engines(&args.from)? {
        let beside = args.from.parent().unwrap_or(Path::new(""));
        if let Some(readme) = &args.readme {
            let report = engine_report::make(&read_runs(&args.from)?, None, Baseline::default());
            return tables(readme.as_deref(), &args.from, &engine_report::readme::tables(&report));
        }
        return engines(&args.from, args.output.as_deref().unwrap_or(beside), &args.beside, args.json);
    }
    let rows = read(&args.from)?;
    if let Some(file) = &args.readme {
        return tables(file.as_deref(), &args.from, &readme::tables(&rows));
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

/// Prints tables, or writes them to their place in a README.
fn tables(readme: Option<&Path>, rows: &Path, tables: &str) -> Result<(), CliError> {
    let Some(path) = readme else {
        crate::out::write(format_args!("{tables}"));
        return Ok(());
    };
    let io = |source| CliError::Io { path: path.into(), source };
    let before = std::fs::read_to_string(path).map_err(io)?;
    let placed = markers::placed(&before, &rows.to_string_lossy(), tables)
        .map_err(|source| CliError::Readme { path: path.into(), source })?;
    let same = placed == before;
    if !same {
        std::fs::write(path, placed).map_err(io)?;
    }
    out!("{} {}", if same { "nothing new for" } else { "written:" }, path.display());
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

/// Whether a file has the rows of engines: its first line says which workloads.
#[cfg(feature = "bench")]
fn of_engines(path: &Path) -> Result<bool, CliError> {
    let io = |source| CliError::Io { path: path.to_path_buf(), source };
    let mut line = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    // A first line that is no text is no line of either.
    let read = BufReader::new(file.take(1 << 20)).read_line(&mut line);
    let first = read.ok().and_then(|_| serde_json::from_str::<serde_json::Value>(&line).ok());
    Ok(first.is_some_and(|first| first.get("workloads").is_some()))
}

/// Reads the rows of a run of engines.
#[cfg(feature = "bench")]
pub(super) fn read_runs(path: &Path) -> Result<Runs, CliError> {
    let bytes = std::fs::read(path).map_err(|source| CliError::Io { path: path.to_path_buf(), source })?;
    Runs::read(&bytes).map_err(|source| CliError::Runs { path: path.to_path_buf(), source })
}

/// Writes all reports of a run of engines to a folder, and prints the short one.
#[cfg(feature = "bench")]
pub(super) fn engines(rows: &Path, folder: &Path, beside: &Beside, json: bool) -> Result<(), CliError> {
    let runs = read_runs(rows)?;
    let kernels = beside.kernels.as_deref().map(read).transpose()?;
    let baseline = beside.baseline.as_deref().map(read_runs).transpose()?;
    let baseline = Baseline { runs: baseline.as_ref(), engine: beside.baseline_engine.as_deref() };
    let report = engine_report::make(&runs, kernels.as_ref(), baseline);
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(|source| CliError::Io { path: folder.to_path_buf(), source })?;
    }
    let mut files = vec![
        ("report.md", engine_report::markdown(&report)),
        ("report.html", engine_report::html(&report, &runs).map_err(|e| CliError::Partly(e.to_string()))?),
        ("report.json", engine_report::json(&report).map_err(|e| CliError::Partly(e.to_string()))?),
    ];
    files.extend(engine_report::files(&report));
    let mut written = Vec::new();
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| CliError::Io { path: path.clone(), source })?;
        written.push(path);
    }
    if json {
        out!("{}", serde_json::json!({ "report": report, "files": written }));
        return Ok(());
    }
    crate::out::write(format_args!("{}", engine_report::terminal(&report)));
    out!("written: {}", written.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
    Ok(())
}
