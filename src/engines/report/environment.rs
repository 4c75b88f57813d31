//! The section that says who was measured, on what, and how long each took to be ready.

use super::entry::Value;
use super::summary::LibraryComparisonReport;
use super::tables::{section, value};
use super::view::{Block, Section};
use super::words::{dollars, list, maybe, number};
use crate::engines::rows::Start;
use crate::engines::trtllm::Imported;
use crate::report::text;

/// Who was here, and on what.
pub fn environment(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    let mut rows: Vec<Vec<String>> = vec![
        vec!["date".into(), text::date(r.at) + &r.seconds.map(|s| format!(", {s:.0} s")).unwrap_or_default()],
        vec!["jitune".into(), r.jitune.clone()],
        vec!["rounds".into(), r.rounds.to_string()],
    ];
    if !r.device.is_empty() {
        rows.push(vec!["device".into(), r.device.clone()]);
    }
    rows.push(vec!["parameters".into(), r.parameters.to_string()]);
    rows.extend(r.host.iter().map(|(name, v)| vec![name.clone(), v.clone()]));
    rows.extend(r.prices.iter().map(|(name, v)| vec![format!("price of {name}"), format!("{}/h", dollars(*v))]));
    blocks.push(Block::table(&["", ""], 2, rows));
    blocks.push(Block::Commands { lines: vec![r.command.clone()] });
    // What other tools measured may be of several versions and devices.
    let key = |s: &Start| {
        let own = if s.transport == Imported::TRANSPORT { s.version.clone() + &s.device } else { String::new() };
        (s.engine.clone(), s.dtype.clone(), own)
    };
    let mut seen = Vec::new();
    let mut starts: Vec<Vec<String>> = Vec::new();
    for s in &r.starts {
        if seen.contains(&key(s)) {
            continue;
        }
        seen.push(key(s));
        let rounds: Vec<_> = r.starts.iter().filter(|o| key(o) == key(s)).collect();
        let libraries: Vec<String> = s.libraries.iter().map(|(name, v)| format!("{name} {v}")).collect();
        let why = rounds.iter().find_map(|o| o.why.clone()).map(|w| format!("not here: {w}"));
        let fix = rounds.iter().find_map(|o| o.fix.clone());
        let notes: Vec<String> = why.into_iter().chain(fix).chain(s.notes.iter().cloned()).collect();
        starts.push(vec![
            s.engine.clone(),
            s.dtype.clone(),
            s.version.clone(),
            s.device.clone(),
            libraries.join(", "),
            [&s.transport[..], &s.batching].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(", "),
            notes.join("; "),
        ]);
    }
    if !starts.is_empty() {
        blocks.push(Block::heading("Engines"));
        let header = ["engine", "dtype", "version", "device", "libraries", "how", "notes"];
        blocks.push(Block::table(&header, 7, starts));
    }
    let ups = start_ups(&r.starts);
    if !ups.is_empty() {
        blocks.push(Block::heading("Start-up"));
        blocks.push(Block::text(
            "From the process's begin to the model being loaded, and all compiled that is compiled then; an engine has a start for each \
             group of workloads that need the same of it.",
        ));
        let header = ["engine", "dtype", "for", "requests at a time", "start s", "planned GiB"];
        blocks.push(Block::table(&header, 3, ups));
    }
    section("environment", "Environment", blocks)
}

/// How long engines took to be ready, those for the same workloads together.
fn start_ups(starts: &[Start]) -> Vec<Vec<String>> {
    let key = |s: &Start| (s.engine.clone(), s.dtype.clone(), s.workloads.clone());
    let mut groups: Vec<Vec<&Start>> = Vec::new();
    for start in starts.iter().filter(|s| s.start_s.is_some()) {
        match groups.iter_mut().find(|group| key(group[0]) == key(start)) {
            Some(group) => group.push(start),
            None => groups.push(vec![start]),
        }
    }
    let row = |group: &Vec<&Start>| {
        let first = group[0];
        let seconds = Value::of(&group.iter().filter_map(|s| s.start_s).collect::<Vec<_>>());
        let names: Vec<&str> = first.workloads.iter().map(String::as_str).collect();
        vec![
            first.engine.clone(),
            first.dtype.clone(),
            if names.is_empty() { "—".into() } else { list(&names) },
            first.sequences.to_string(),
            value(seconds),
            maybe(first.memory_bytes.map(|b| b as f64 / f64::from(1 << 30)), number),
        ]
    };
    groups.iter().map(row).collect()
}
