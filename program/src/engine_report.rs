//! `jitune report` of whole engines: their reports from a run's rows, its cells as other tools write theirs, and what other tools measured
//! among the rows.

use super::CliError;
use super::files;
use jitune::engines::report::{self as engine_report, Baseline, Runs};
use jitune::engines::rows::{Line, Run};
use jitune::engines::trtllm::Imported;
use jitune::engines::vllm;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// What a report of engines takes besides.
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

/// As which tool results are written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As `vllm bench serve --save-result --save-detailed`.
    Vllm,
}

/// Whose reports are read.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// What `trtllm-bench … --report_json FILE` wrote.
    TrtllmBench,
}

/// What `jitune report` has of engines alone.
#[derive(clap::Args)]
pub struct Others {
    /// Of engines: write each cell as another tool writes its results, into the folder of --output (or its file, where there is one
    /// cell), and no report.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["readme", "json"])]
    pub export: Option<Format>,
    /// Of engines: put what another tool measured among the rows, unchecked, and write the reports; its files follow.
    #[arg(long, value_name = "TOOL", requires = "files", conflicts_with_all = ["readme", "export"])]
    pub import: Option<Tool>,
    /// What --import calls the engine.
    #[arg(long = "as", value_name = "LABEL", default_value = "tensorrt-llm", requires = "import")]
    label: String,
    /// The files of --import, each with the name of its workload; by default the file's own.
    #[arg(value_name = "[WORKLOAD=]FILE", requires = "import")]
    files: Vec<String>,
}

/// Whether a file has the rows of engines: its first line says which workloads.
pub(super) fn of_engines(path: &Path) -> Result<bool, CliError> {
    let io = |source| CliError::Io { path: path.to_path_buf(), source };
    let mut line = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    // A first line that is no text is no line of either.
    let read = BufReader::new(file.take(1 << 20)).read_line(&mut line);
    let first = read.ok().and_then(|_| serde_json::from_str::<serde_json::Value>(&line).ok());
    Ok(first.is_some_and(|first| first.get("workloads").is_some()))
}

/// Reads the rows of a run of engines.
pub(super) fn read(path: &Path) -> Result<Runs, CliError> {
    Runs::read(&files::rows(path)?).map_err(|source| CliError::Runs { path: path.to_path_buf(), source })
}

/// The tables of a README.
pub(super) fn tables(rows: &Path) -> Result<String, CliError> {
    Ok(engine_report::readme::tables(&engine_report::make(&read(rows)?, None, Baseline::default())))
}

/// Writes all reports of a run of engines to a folder, and prints the short one.
pub(super) fn write(rows: &Path, folder: &Path, beside: &Beside, json: bool) -> Result<(), CliError> {
    let runs = read(rows)?;
    let kernels = beside.kernels.as_deref().map(super::rows::read).transpose()?;
    let baseline = beside.baseline.as_deref().map(read).transpose()?;
    let baseline = Baseline { runs: baseline.as_ref(), engine: beside.baseline_engine.as_deref() };
    let report = engine_report::make(&runs, kernels.as_ref(), baseline);
    let mut list = vec![
        ("report.md", engine_report::markdown(&report)),
        ("report.html", engine_report::html(&report, &runs).map_err(|e| CliError::Partly(e.to_string()))?),
        ("report.json", engine_report::json(&report).map_err(|e| CliError::Partly(e.to_string()))?),
    ];
    list.extend(engine_report::files(&report));
    let written = files::put(folder, list)?;
    if json {
        out!("{}", serde_json::json!({ "report": report, "files": crate::out::lossy_all(&written) }));
        return Ok(());
    }
    crate::out::write(format_args!("{}", engine_report::terminal(&report)));
    said(&written);
    Ok(())
}

/// Writes the cells of a run as another tool's results: to a folder, or the only one to a file that ends in `.json`.
pub(super) fn export(rows: &Path, Format::Vllm: Format, to: &Path) -> Result<(), CliError> {
    let results = vllm::results(&read(rows)?);
    let results = results.map_err(|e| CliError::Partly(format!("{}: {e}", rows.display())))?;
    let file = to.extension().is_some_and(|e| e == "json");
    let (folder, list) = match (&results[..], to.file_name()) {
        ([], _) => {
            return Err(CliError::Partly(format!(
                "{}: no cell of it has figures, so there is nothing to write",
                rows.display()
            )));
        }
        ([one], Some(name)) if file => {
            (to.parent().unwrap_or(Path::new("")), vec![(name.to_string_lossy().into_owned(), one.json.to_string())])
        }
        (list, _) if file => {
            let many = list.len();
            return Err(CliError::Usage(format!("--output {}: there are {many} results; give a folder", to.display())));
        }
        (list, _) => (to, list.iter().map(|r| (r.name.clone(), r.json.to_string())).collect()),
    };
    said(&files::put(folder, list)?);
    Ok(())
}

/// Puts what another tool measured among the rows of a run, which begins here where there are none.
pub(super) fn import(rows: &Path, others: &Others) -> Result<(), CliError> {
    let mut found = Vec::new();
    for given in &others.files {
        let stem =
            |path: &str| Path::new(path).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let (workload, path) = given.split_once('=').map_or_else(|| (stem(given), &given[..]), |(w, p)| (w.into(), p));
        let path = PathBuf::from(path);
        let text = files::text(&path, files::MAX_REPORT_BYTES)?;
        let read = Imported::read(&text, &others.label, &workload);
        found.push(read.map_err(|source| CliError::Imported { path, source })?);
    }
    let runs = if rows.exists() { read(rows)? } else { Runs { run: begun(&found), ..Runs::default() } };
    let measured = |s: &&jitune::engines::rows::Start| s.engine == others.label && s.transport != Imported::TRANSPORT;
    if runs.starts.iter().any(|s| measured(&s)) {
        let (label, rows) = (&others.label, rows.display());
        return Err(CliError::Usage(format!(
            "--as {label}: {rows} has an engine of that name that was measured there"
        )));
    }
    let new = found.into_iter().flat_map(Imported::lines);
    let io = |source| CliError::Io { path: rows.into(), source };
    let all = text_of(runs.lines().into_iter().chain(new)).map_err(io)?;
    // Read again, what was imported before is replaced.
    let all = Runs::read(all.as_bytes()).map_err(|source| CliError::Runs { path: rows.into(), source })?;
    files::write(rows, text_of(all.lines()).map_err(io)?.as_bytes())
}

/// Lines as they stand in a file.
fn text_of(lines: impl IntoIterator<Item = Line>) -> std::io::Result<String> {
    let one = |line: Line| Ok(serde_json::to_string(&line)? + "\n");
    lines.into_iter().map(one).collect()
}

/// The first line of rows of which nothing was measured here.
fn begun(found: &[Imported]) -> Run {
    Run {
        at: jitune_db::now(),
        jitune: env!("CARGO_PKG_VERSION").into(),
        command: super::command_line(),
        model: found.first().map(|f| f.model.clone()).unwrap_or_default(),
        rounds: 1,
        ..Run::default()
    }
}

fn said(written: &[PathBuf]) {
    out!("written: {}", written.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
}
