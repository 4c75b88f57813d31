//! The success criteria, each by name: its figure, its margin, and what it is held against.

use super::baseline::Found;
use super::costs::Batch;
use super::entry::Entry;
use super::facts::Facts;
use super::kernels::Kernel;
use super::noise::Metric;
use super::rankings::{closed, workload};
use super::read::Runs;
use super::source::Source;
use super::words::{dollars, number, percent, ratio};
use crate::engines::workload::Arrivals;
use serde::Serialize;

/// How many times faster than the CPU baseline at least.
const FASTER: f64 = 5.0;
/// Time to the first token at most, in ms.
const TTFT_MS: f64 = 100.0;
/// Share of the time in which the GPU works.
const BUSY: f64 = 0.7;
/// Dollars a token over those of the CPU baseline, at most.
const COST: f64 = 0.5;
/// Warps resident of those that fit.
const OCCUPANCY: f64 = 0.75;
/// Share of the memory's rate, where bytes bound a kernel.
const MEMORY: f64 = 0.8;
/// Share of the tensor cores' time, where operations bound a kernel.
const TENSOR: f64 = 0.6;
/// Batch efficiency over what the roofline allows: this much of it is called linear.
const LINEAR: f64 = 0.8;
/// A kernel whose bytes and operations need less is bound by neither but by its launch, in microseconds.
const LEAST_US: f64 = 1.0;
/// A kernel with this share of its roofline needs no more warps than it has.
const ENOUGH: f64 = 0.8;

/// Requests answered of those that come at their own times: with this share of them the engine kept up.
const ANSWERED: f64 = 0.95;

/// What became of a criterion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// In every case.
    Met,
    /// In some cases.
    Partly,
    /// In none.
    Missed,
    /// There is no case of it.
    NotMeasured,
}

/// One criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Criterion {
    /// Its name.
    pub name: &'static str,
    /// What is asked for.
    pub target: String,
    /// What the figures are held against.
    pub baseline: String,
    /// What became of it.
    pub verdict: Verdict,
    /// The figure of the worst case, in words.
    pub figure: Option<String>,
    /// How far the worst case is from the target, as a share of it: below zero it is missed.
    pub margin: Option<f64>,
    /// What could not be measured, and what is missing for it.
    pub missing: Vec<String>,
    /// Each case, the worst first.
    pub cases: Vec<Case>,
}

/// One case of a criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// The workload and precision, or the kernel.
    pub of: String,
    /// The figure.
    pub value: f64,
    /// In words.
    pub figure: String,
    /// How far it is from the target, as a share of it.
    pub margin: f64,
    /// Whether the target is reached.
    pub met: bool,
    /// What a reader must know beside it.
    pub note: String,
    /// The lines that say so.
    pub because: Vec<Source>,
}

/// A figure that must be above or below a target.
fn case(
    of: String,
    (value, target, more): (f64, f64, bool),
    figure: String,
    note: String,
    because: Vec<Source>,
) -> Case {
    let margin = if more { value / target - 1.0 } else { 1.0 - value / target };
    let met = if more { value >= target } else { value <= target };
    Case { of, value, figure, margin, met, note, because }
}

fn criterion(
    name: &'static str,
    target: String,
    baseline: impl Into<String>,
    found: Vec<Result<Case, String>>,
    none: &str,
) -> Criterion {
    let (mut cases, mut missing) = (Vec::new(), Vec::<String>::new());
    for result in found {
        match result {
            Ok(case) => cases.push(case),
            Err(why) if missing.contains(&why) => {}
            Err(why) => missing.push(why),
        }
    }
    if cases.is_empty() && missing.is_empty() {
        missing.push(none.into());
    }
    cases.sort_by(|a: &Case, b| (a.met, a.margin).partial_cmp(&(b.met, b.margin)).unwrap_or(std::cmp::Ordering::Equal));
    let met = cases.iter().filter(|c| c.met).count();
    let verdict = match met {
        _ if cases.is_empty() => Verdict::NotMeasured,
        n if n == cases.len() => Verdict::Met,
        0 => Verdict::Missed,
        _ => Verdict::Partly,
    };
    let worst = cases.first();
    Criterion {
        name,
        target,
        baseline: baseline.into(),
        verdict,
        figure: worst.map(|c| c.figure.clone()),
        margin: worst.map(|c| c.margin),
        missing,
        cases,
    }
}

/// Every criterion, measured or not.
pub(super) fn criteria(facts: &Facts<'_>) -> Vec<Criterion> {
    let ours: Vec<&Entry> =
        facts.entries.iter().filter(|e| e.ours() && e.target == "cuda" && e.counted().is_some()).collect();
    let none = match facts.entries.iter().find(|e| e.ours() && e.target == "cuda") {
        Some(e) => format!("no cell of jitune on a GPU counts: {}", e.apart.clone().unwrap_or_default()),
        None => "the run has no cell of jitune on a GPU".into(),
    };
    let each = |f: &dyn Fn(&Entry) -> Result<Case, String>| ours.iter().map(|e| f(e)).collect::<Vec<_>>();
    let stated = match facts.baseline.entries.is_empty() {
        true => "the CPU baseline".to_string(),
        false => stated(facts.baseline),
    };
    let at_least = |what: &str, share: f64| format!("{what} at least {}", percent(share));
    vec![
        criterion(
            "throughput over the CPU",
            "5 to 10 times the output tokens/s of the CPU baseline".into(),
            stated.clone(),
            each(&|e| faster(facts, e, Metric::OutputThroughput)),
            &none,
        ),
        criterion(
            "time a token over the CPU",
            "a fifth to a tenth of the TPOT of the CPU baseline".into(),
            stated.clone(),
            each(&|e| faster(facts, e, Metric::Tpot)),
            &none,
        ),
        criterion(
            "time to the first token",
            format!("below {TTFT_MS} ms at the 99th percentile"),
            "the limit itself",
            each(&ttft),
            &none,
        ),
        criterion(
            "GPU utilisation",
            at_least("a kernel runs (NVML)", BUSY) + " of the time, where clients ask again at once",
            "the time of the cell",
            ours.iter().filter(|e| closed(&facts.runs.run, &e.workload)).map(|e| busy(facts.runs, e)).collect(),
            &none,
        ),
        criterion(
            "cost",
            "half of the CPU baseline's dollars a token at most".into(),
            stated,
            each(&|e| cost(facts, e)),
            &none,
        ),
        of_kernels(
            facts,
            "occupancy",
            at_least("warps of those that fit,", OCCUPANCY) + ", or why fewer are enough",
            &|k| Some(occupancy(k)),
        ),
        of_kernels(
            facts,
            "memory",
            at_least("of the memory's rate,", MEMORY) + ", where bytes that take 1 µs or more bound a kernel",
            &|k| (k.memory_bound && bound(k)).then(|| share(k, k.memory, MEMORY, "DRAM by counters")),
        ),
        of_kernels(
            facts,
            "tensor cores",
            at_least("of their time,", TENSOR) + ", where operations that take 1 µs or more bound a kernel",
            &|k| (!k.memory_bound && bound(k)).then(|| share(k, k.tensor, TENSOR, "tensor cores by counters")),
        ),
        criterion(
            "scaling in the batch",
            at_least("of the roofline's own batch efficiency,", LINEAR) + ", up to its knee",
            "the step that the weights', cache's bytes and operations need at the device's ceilings",
            facts
                .batches
                .iter()
                .filter(|b| b.batch > 1 && ours.iter().any(|e| (&e.engine, &e.device) == (&b.engine, &b.device)))
                .filter_map(scaling)
                .collect(),
            "no workloads batch-1 and batch-N of jitune on a GPU count",
        ),
    ]
}

fn title(e: &Entry) -> String {
    format!("{} {}", e.workload, e.dtype)
}

/// The engines of the baseline, with where they ran.
fn stated(found: &Found<'_>) -> String {
    let mut names: Vec<String> = Vec::new();
    for e in &found.entries {
        let name = format!("{} {} on {}", e.engine, e.dtype, e.device);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let given = if found.entries.iter().any(|e| e.baseline) { ", of the baseline's own file" } else { "" };
    format!("at each workload the best of {}{given}", super::words::list(&names))
}

fn faster(facts: &Facts<'_>, e: &Entry, metric: Metric) -> Result<Case, String> {
    let own = e.counted().and_then(|f| metric.of(f)).map(|v| v.median).filter(|v| *v > 0.0);
    let own = own.ok_or_else(|| format!("{} of {} is not known", metric.name(), title(e)))?;
    if let (Metric::OutputThroughput, Some(Arrivals::Open { rate, .. })) =
        (metric, workload(&facts.runs.run, &e.workload).map(|w| &w.arrivals))
        && e.counted().and_then(|f| f.request_throughput).is_some_and(|v| v.median >= ANSWERED * rate)
    {
        return Err(format!("at {} all that was asked for was answered, so its tokens/s are the load's", title(e)));
    }
    let (base, its) = facts.baseline.best(e, metric)?;
    let gain = metric.gain(own, its).unwrap_or(0.0);
    let beyond = if gain >= 10.0 { ", beyond 10×" } else { "" };
    let note =
        format!("{} beside {} of {} {}, {}{beyond}", number(own), number(its), base.engine, base.dtype, metric.name());
    Ok(case(title(e), (gain, FASTER, true), ratio(gain), note, vec![e.source(), base.source()]))
}

fn ttft(e: &Entry) -> Result<Case, String> {
    let figures = e.counted().ok_or_else(String::new)?;
    let known = figures.ttft_p99_ms.zip(figures.ttft_ms);
    let (p99, median) = known.ok_or_else(|| format!("{} has no answer with a first token", title(e)))?;
    let note = format!("median {} ms", number(median.median));
    let figure = format!("{} ms", number(p99.median));
    Ok(case(title(e), (p99.median, TTFT_MS, false), figure, note, vec![e.source()]))
}

fn busy(runs: &Runs, e: &Entry) -> Result<Case, String> {
    let meanwhile = e.counted().map(|f| f.meanwhile).unwrap_or_default();
    let busy = meanwhile.busy.ok_or("NVML's busy time was not read in every cell")?;
    let readings = e.rounds.iter().flat_map(|round| {
        let of = |of: &&crate::engines::rows::Of| {
            (&of.engine, &of.dtype, &of.workload, of.round) == (&e.engine, &e.dtype, &e.workload, *round)
        };
        runs.trace.iter().filter(move |(k, _)| of(k)).flat_map(|(_, list)| list).filter_map(|t| t.gpu_pct)
    });
    let readings: Vec<f64> = readings.collect();
    let above = readings.iter().filter(|v| **v > BUSY * 100.0).count();
    let mut note = match meanwhile.roofline {
        Some(share) => format!("the work's bytes and operations need {} of the time", percent(share)),
        None => "its roofline share is not known".into(),
    };
    if !readings.is_empty() {
        note += &format!("; {above} of {} readings are above {}", readings.len(), percent(BUSY));
    }
    Ok(case(title(e), (busy, BUSY, true), percent(busy), note, vec![e.source()]))
}

fn cost(facts: &Facts<'_>, e: &Entry) -> Result<Case, String> {
    let own = facts.costs.iter().find(|c| c.because == e.source()).and_then(|c| c.dollars_a_million);
    let own = own.ok_or("no price of a GPU's hour was given (--price gpu=…/h)")?;
    let (base, its) = facts.baseline.cheapest(e)?;
    let note = format!("{} beside {} of {} {} a million tokens", dollars(own), dollars(its), base.engine, base.dtype);
    let share = own / its;
    let because = vec![e.source(), base.source(), Source::run("prices")];
    Ok(case(title(e), (share, COST, false), percent(share), note, because))
}

fn of_kernels(
    facts: &Facts<'_>,
    name: &'static str,
    target: String,
    case: &dyn Fn(&Kernel) -> Option<Result<Case, String>>,
) -> Criterion {
    let own = facts.runs.run.device.as_ref().map_or("", |d| &d.name);
    let (found, none) = match facts.kernels {
        None => (Vec::new(), "the rows.jsonl of `jitune compare` were not given".to_string()),
        // Kernels of another device say nothing of this one.
        Some(k) if !own.is_empty() && k.device != own => {
            (Vec::new(), format!("the kernels were measured on {}, the engines on {own}", k.device))
        }
        Some(k) => (k.kernels.iter().filter_map(case).collect(), "no kernel of jitune's is of that kind".to_string()),
    };
    criterion(name, target, "what the device can do", found, &none)
}

fn source(k: &Kernel) -> Vec<Source> {
    vec![Source::Kernel { problem: k.problem.clone(), label: k.label.clone() }]
}

/// Whether the device's ceilings bound a kernel at all.
fn bound(k: &Kernel) -> bool {
    k.roofline_share.is_none_or(|s| s * k.us >= LEAST_US)
}

fn roofline(k: &Kernel) -> String {
    k.roofline_share.map(|s| format!("{} of its roofline", percent(s))).unwrap_or_default()
}

fn share(k: &Kernel, counted: Option<f64>, target: f64, by: &str) -> Result<Case, String> {
    // Without counters the bytes or operations that the problem cannot do without, over the measured ceiling.
    let (value, note) = match (counted, k.roofline_share) {
        (Some(v), _) => (v, format!("{by}; {}", roofline(k))),
        (None, Some(v)) => (v, "share of the roofline; no counters".into()),
        (None, None) => return Err(format!("{} has neither counters nor a roofline share", k.problem)),
    };
    Ok(case(k.problem.clone(), (value, target, true), percent(value), note, source(k)))
}

fn occupancy(k: &Kernel) -> Result<Case, String> {
    let value =
        k.occupancy.ok_or("some kernels have no counters of occupancy (`jitune compare --counters` reads them)")?;
    let parts = [
        k.registers.map(|v| format!("{v} registers a thread")),
        k.shared_bytes.map(|v| format!("{v} bytes of shared memory a block")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let mut case = case(k.problem.clone(), (value, OCCUPANCY, true), percent(value), roofline(k), source(k));
    if !case.met {
        let holds = k.blocks_per_sm.map(|b| format!(" let a multiprocessor hold {b} blocks")).unwrap_or_default();
        let enough = k.roofline_share.is_some_and(|s| s >= ENOUGH);
        let verdict = if enough { "fewer are enough: it has" } else { "fewer are not enough: it has" };
        case.note = match roofline(k) {
            share if share.is_empty() => "its roofline share is not known".into(),
            share => format!("{verdict} {share}"),
        };
        if !parts.is_empty() {
            case.note += &format!("; {}{holds}", super::words::list(&parts));
        }
        case.met = enough;
    }
    Ok(case)
}

fn scaling(b: &Batch) -> Option<Result<Case, String>> {
    let of = format!("batch {} {}", b.batch, b.dtype);
    let Some((allowed, beyond)) = b.roofline.zip(b.beyond_knee) else {
        return Some(Err(format!("the bytes of {} weights or the device's ceilings are not known", b.dtype)));
    };
    let value = b.efficiency / allowed;
    let note = format!("{} efficient, where the roofline allows {}", percent(b.efficiency), percent(allowed));
    (!beyond).then(|| Ok(case(of, (value, LINEAR, true), percent(value), note, b.because.clone())))
}
