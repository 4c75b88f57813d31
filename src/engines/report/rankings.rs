//! Who is first at each workload, and where jitune is not.

use super::entry::{Entry, Value};
use super::noise::{Metric, Noise, tie};
use super::source::Source;
use crate::engines::rows::Run;
use crate::engines::workload::{Arrivals, Workload};
use serde::Serialize;

/// Engines at one workload in one precision on one device, by one metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// What they are ranked by.
    pub metric: Metric,
    /// The engines, the best first.
    pub places: Vec<Place>,
}

/// An engine's place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// From 1; those that tie with the first of a rank share it.
    pub rank: usize,
    /// The engine.
    pub engine: String,
    /// Its value.
    pub value: Value,
    /// How many times better the first is; none where one of them is zero.
    pub behind: Option<f64>,
    /// Its cells.
    pub because: Source,
}

/// The best engines at a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadWinner {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// What decides: answers within the limits where there are limits that anyone keeps; otherwise output tokens/s of a fixed
    /// number of clients, and the time to the end where requests come at their own times.
    pub by: Metric,
    /// The first, and those that tie with it.
    pub winners: Vec<String>,
    /// How many times better the first is than the next that is no tie.
    pub lead: Option<f64>,
    /// How many engines were ranked.
    pub of: usize,
    /// The cells of all of them.
    pub because: Vec<Source>,
}

/// Where another engine is better than jitune.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// In what.
    pub metric: Metric,
    /// The engine.
    pub engine: String,
    /// jitune's value.
    pub ours: f64,
    /// The engine's.
    pub its: f64,
    /// How many times better the engine is; none where one of them is zero.
    pub behind: Option<f64>,
    /// The cells of both.
    pub because: Vec<Source>,
}

/// A workload at which jitune has nothing that counts, and another has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lacking {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// Who has something that counts.
    pub others: Vec<String>,
    /// Why jitune has not.
    pub why: String,
    /// The lines that say so.
    pub because: Vec<Source>,
}

/// The workloads, precisions and devices of entries that count, in their order.
fn groups(entries: &[Entry]) -> Vec<[&str; 3]> {
    let mut list: Vec<[&str; 3]> = Vec::new();
    for entry in entries.iter().filter(|e| e.counted().is_some() && !e.twin()) {
        if !list.contains(&entry.group()) {
            list.push(entry.group());
        }
    }
    list
}

/// All rankings; an engine that was entered a second time is in none of them.
pub fn rankings(entries: &[Entry], noise: &Noise) -> Vec<Ranking> {
    let mut list = Vec::new();
    for group in groups(entries) {
        for metric in Metric::ALL {
            let here = entries.iter().filter(|e| e.group() == group && !e.twin());
            let valued = here.filter_map(|e| Some((e, metric.of(e.counted()?)?))).collect::<Vec<_>>();
            if !valued.is_empty() {
                let [workload, dtype, device] = group.map(String::from);
                let places = places(valued, metric, noise.within(metric, group));
                list.push(Ranking { workload, dtype, device, metric, places });
            }
        }
    }
    list
}

fn places(mut list: Vec<(&Entry, Value)>, metric: Metric, noise: Option<f64>) -> Vec<Place> {
    list.sort_by(|(_, a), (_, b)| {
        let order = a.median.total_cmp(&b.median);
        if metric.more() { order.reverse() } else { order }
    });
    let mut places: Vec<Place> = Vec::new();
    let mut leader: Option<(usize, Value)> = None;
    for (i, (entry, value)) in list.iter().enumerate() {
        let (rank, first) = leader.filter(|(_, first)| tie(*first, *value, noise)).unwrap_or((i + 1, *value));
        leader = Some((rank, first));
        places.push(Place {
            rank,
            engine: entry.engine.clone(),
            value: *value,
            behind: metric.gain(list[0].1.median, value.median),
            because: entry.source(),
        });
    }
    places
}

/// The workload of a name.
pub fn workload<'a>(run: &'a Run, name: &str) -> Option<&'a Workload> {
    run.workloads.iter().find(|w| w.name == name)
}

/// Whether a fixed number of clients asks again at once: then an engine's own speed decides how much it answers. Otherwise
/// requests come at their own times, and more than is asked for cannot be answered.
pub fn closed(run: &Run, name: &str) -> bool {
    workload(run, name).is_none_or(|w| matches!(w.arrivals, Arrivals::Closed { .. }))
}

/// What decides at a workload without limits.
pub fn deciding(run: &Run, name: &str) -> Metric {
    if closed(run, name) { Metric::OutputThroughput } else { Metric::E2el }
}

/// The best of each workload.
pub fn winners(run: &Run, rankings: &[Ranking]) -> Vec<WorkloadWinner> {
    let mut list: Vec<WorkloadWinner> = Vec::new();
    for r in rankings {
        let same = |w: &WorkloadWinner| (&w.workload, &w.dtype, &w.device) == (&r.workload, &r.dtype, &r.device);
        if list.iter().any(same) {
            continue;
        }
        let last = deciding(run, &r.workload);
        let here = |metric| {
            rankings
                .iter()
                .find(|o| (&o.workload, &o.dtype, &o.device, o.metric) == (&r.workload, &r.dtype, &r.device, metric))
        };
        let kept = here(Metric::Goodput).filter(|o| o.places.first().is_some_and(|p| p.value.median > 0.0));
        let Some(by) = kept.or_else(|| here(last)) else { continue };
        let (first, rest): (Vec<&Place>, Vec<&Place>) = by.places.iter().partition(|p| p.rank == 1);
        list.push(WorkloadWinner {
            workload: r.workload.clone(),
            dtype: r.dtype.clone(),
            device: r.device.clone(),
            by: by.metric,
            winners: first.iter().map(|p| p.engine.clone()).collect(),
            lead: rest.first().and_then(|p| p.behind),
            of: by.places.len(),
            because: by.places.iter().map(|p| p.because.clone()).collect(),
        });
    }
    list
}

/// Where another is better than jitune beyond a tie, the worst first.
pub fn losses(rankings: &[Ranking], entries: &[Entry], noise: &Noise) -> Vec<Loss> {
    let mut list = Vec::new();
    for r in rankings {
        let group = [&r.workload[..], &r.dtype, &r.device];
        let Some(ours) = entries.iter().find(|e| e.ours() && e.group() == group).map(|e| &e.engine) else { continue };
        let Some(mine) = r.places.iter().position(|p| p.engine == *ours) else { continue };
        let ours = &r.places[mine];
        let better = r.places[..mine].iter().filter(|p| !tie(p.value, ours.value, noise.within(r.metric, group)));
        list.extend(better.map(|p| Loss {
            workload: r.workload.clone(),
            dtype: r.dtype.clone(),
            device: r.device.clone(),
            metric: r.metric,
            engine: p.engine.clone(),
            ours: ours.value.median,
            its: p.value.median,
            behind: r.metric.gain(p.value.median, ours.value.median),
            because: vec![ours.because.clone(), p.because.clone()],
        }));
    }
    let far = |l: &Loss| l.behind.unwrap_or(f64::INFINITY);
    list.sort_by(|a, b| far(b).total_cmp(&far(a)));
    list
}

/// Where others have something that counts and jitune has not.
pub fn lacking(entries: &[Entry]) -> Vec<Lacking> {
    let mut list = Vec::new();
    // A run without jitune is no loss of it.
    if !entries.iter().any(Entry::ours) {
        return list;
    }
    for group in groups(entries) {
        let here: Vec<&Entry> = entries.iter().filter(|e| e.group() == group && !e.twin()).collect();
        if here.iter().any(|e| e.ours() && e.counted().is_some()) {
            continue;
        }
        let ours = here.iter().find(|e| e.ours());
        // On this device it was not asked for at all.
        if ours.is_none() && !entries.iter().any(|e| e.ours() && e.device == group[2]) {
            continue;
        }
        let others: Vec<&&Entry> = here.iter().filter(|e| e.counted().is_some()).collect();
        let because = ours.into_iter().chain(others.iter().copied()).map(|e| e.source()).collect();
        let [workload, dtype, device] = group.map(String::from);
        let why = ours.and_then(|e| e.apart.clone()).unwrap_or_else(|| "it has no cell".into());
        let others = others.iter().map(|e| e.engine.clone()).collect();
        list.push(Lacking { workload, dtype, device, others, why, because });
    }
    list
}
