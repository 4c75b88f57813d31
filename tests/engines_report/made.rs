//! Runs made by hand.

use jitune::engines::measured::{Measured, Spread};
use jitune::engines::report::Runs;
use jitune::engines::rows::{Cell, Check, Of, Start, State};
use jitune::engines::workload::{Arrivals, Limits, Workload};

/// A run on a GPU without engines.
pub fn empty() -> Runs {
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"jitune bench","model":"m","parameters":1000000000,"device":null,"threads":0,"rounds":1,"engines":[],"workloads":[],"dtypes":["bf16"]}"#;
    Runs::read(run.as_bytes()).unwrap()
}

fn spread(v: f64) -> Spread {
    Spread { count: 8, mean: v, median: v, p90: v, p99: v * 1.2, max: v * 1.2, ..Spread::default() }
}

/// What a client saw: output tokens/s; TTFT and TPOT follow from it, so that more is better in all.
pub fn measured(rate: f64) -> Measured {
    Measured {
        duration_s: 10.0,
        completed: 8,
        input_tokens: 800,
        output_tokens: 800,
        request_throughput: rate / 100.0,
        output_throughput: rate,
        total_throughput: rate * 2.0,
        ttft_ms: spread(1e4 / rate),
        tpot_ms: spread(1e3 / rate),
        e2el_ms: spread(1e5 / rate),
        ..Measured::default()
    }
}

/// Adds an engine that is right, with a cell of one round; `place` is `cuda:NAME` or `cpu:NAME`.
pub fn engine(runs: &mut Runs, label: &str, place: &str, workload: &str, rate: f64) {
    cell(runs, label, place, workload, 0, rate);
    let check = Check { engine: label.into(), dtype: "bf16".into(), ..Check::default() };
    if !runs.checks.contains(&check) {
        runs.checks.push(check);
    }
}

/// Adds a cell.
pub fn cell(runs: &mut Runs, label: &str, place: &str, workload: &str, round: u32, rate: f64) {
    let (target, device) = place.split_once(':').unwrap();
    let of = Of { engine: label.into(), dtype: "bf16".into(), workload: workload.into(), round };
    let start = Start {
        engine: label.into(),
        dtype: "bf16".into(),
        round,
        target: target.into(),
        device: device.into(),
        ..Start::default()
    };
    if !runs.starts.contains(&start) {
        runs.starts.push(start);
    }
    if !runs.run.workloads.iter().any(|w| w.name == workload) {
        runs.run.workloads.push(Workload { name: workload.into(), ..Workload::default() });
    }
    let measured = Some(measured(rate));
    runs.cells.push(Cell { of, state: State::Ok, why: None, measured });
}

/// Makes the last cell open with limits, of which so many answers a second were kept.
pub fn limited(runs: &mut Runs, goodput: f64) {
    let cell = runs.cells.last_mut().unwrap();
    cell.measured.as_mut().unwrap().goodput = Some(goodput);
    let w = runs.run.workloads.iter_mut().find(|w| w.name == cell.of.workload).unwrap();
    w.arrivals = Arrivals::Open { rate: 8.0, burstiness: 1.0, most: None };
    w.limits = Limits { ttft_ms: Some(100.0), ..Limits::default() };
}
