//! The tables of the README: each workload, each engine that counts beside jitune.

use super::entry::{Entry, OURS};
use super::noise::{Metric, tie};
use super::summary::LibraryComparisonReport;
use super::words::{number, ratio};
use crate::report::markdown::{escape, table};
use crate::report::text;
use std::fmt::Write;

/// Markdown for the README.
pub fn tables(report: &LibraryComparisonReport) -> String {
    let mut out = String::new();
    let counted: Vec<&Entry> = report.entries.iter().filter(|e| e.counted().is_some() && !e.twin()).collect();
    let mut places: Vec<[&str; 2]> = Vec::new();
    for e in &counted {
        if !places.contains(&[&e.device, &e.dtype]) {
            places.push([&e.device, &e.dtype]);
        }
    }
    for [device, dtype] in places {
        let here: Vec<&Entry> = counted.iter().copied().filter(|e| e.device == device && e.dtype == dtype).collect();
        let _ = writeln!(
            out,
            "{}, {}, {}, {}. Output tokens/s, and in brackets jitune's over the engine's: above 1 jitune is faster; = is a tie. \
             Below it the medians of TTFT and TPOT in ms.\n",
            escape(model(report)),
            escape(dtype),
            escape(device),
            text::date(report.at)
        );
        let (mut engines, mut workloads): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for e in &here {
            let (engine, workload) = (e.engine.as_str(), e.workload.as_str());
            if !engines.contains(&engine) {
                engines.push(engine);
            }
            if !workloads.contains(&workload) {
                workloads.push(workload);
            }
        }
        engines.sort_by_key(|name| *name != OURS);
        let row = |workload: &&str| {
            let of = |engine: &str| here.iter().find(|e| e.engine == engine && e.workload == *workload).copied();
            let cells = engines.iter().map(|engine| of(engine).map_or("—".into(), |e| cell(report, e, of(OURS))));
            [escape(workload)].into_iter().chain(cells).collect::<Vec<_>>()
        };
        let header: Vec<String> =
            ["workload".to_string()].into_iter().chain(engines.iter().map(|e| escape(e))).collect();
        table(&mut out, &header, &workloads.iter().map(row).collect::<Vec<_>>(), |i| i > 0);
    }
    out
}

/// The model's name: of a folder or a file its own, since where it lies is of no use to others.
fn model(report: &LibraryComparisonReport) -> &str {
    let path = std::path::Path::new(&report.model);
    let placed = path.is_absolute() || report.model.starts_with('.');
    path.file_name().and_then(|name| name.to_str()).filter(|_| placed).unwrap_or(&report.model)
}

fn cell(report: &LibraryComparisonReport, e: &Entry, ours: Option<&Entry>) -> String {
    let Some(figures) = e.counted() else { return "—".into() };
    let Some(rate) = figures.output_throughput else { return "—".into() };
    let metric = Metric::OutputThroughput;
    let own = ours.filter(|o| o.engine != e.engine).and_then(|o| o.counted()?.output_throughput);
    let beside = own.map(|own| match tie(own, rate, report.noise.within(metric, e.group())) {
        true => " (=)".to_string(),
        false => metric.gain(own.median, rate.median).map(|g| format!(" ({})", ratio(g))).unwrap_or_default(),
    });
    let times = figures.ttft_ms.zip(figures.tpot_ms);
    let below = times.map(|(t, p)| format!("<br>{} / {}", number(t.median), number(p.median))).unwrap_or_default();
    format!("{}{}{below}", number(rate.median), beside.unwrap_or_default())
}
