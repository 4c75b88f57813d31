//! What would make jitune faster: time that is lost beside the roofline, by how far away its saving is.

use super::entry::Entry;
use super::kernels::KernelPerformanceReport;
use super::rankings::closed;
use super::source::{Said, Source};
use super::words::{number, percent};
use crate::engines::rows::Run;
use crate::report::text::time;
use serde::Serialize;

/// How far away an improvement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Horizon {
    /// Another library has it already, or the device waits for the host.
    Short,
    /// A kernel's own distance to its roofline.
    Medium,
    /// What no kernel by itself explains: the distance of a whole step to the roofline.
    Long,
}

impl Horizon {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Horizon::Short => "short term",
            Horizon::Medium => "medium term",
            Horizon::Long => "long term",
        }
    }
}

/// One improvement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Improvement {
    /// How far away it is.
    pub horizon: Horizon,
    /// Microseconds that a step of the engine, or a pass over the model, would save at most.
    pub saves_us: f64,
    /// What it is.
    pub said: Said,
}

/// What is listed of each horizon: beyond that the time is little.
const MOST: usize = 5;

/// By horizon, the most time first.
pub(super) fn roadmap(entries: &[Entry], kernels: Option<&KernelPerformanceReport>, run: &Run) -> Vec<Improvement> {
    let gpu = |e: &&Entry| e.ours() && e.target == "cuda" && e.counted().is_some();
    let steps: Vec<Improvement> = entries.iter().filter(gpu).flat_map(|e| of_steps(e, run)).collect();
    // One cause, seen at each workload: the one at which it costs the most.
    let most = |horizon| steps.iter().filter(|i| i.horizon == horizon).max_by(|a, b| a.saves_us.total_cmp(&b.saves_us));
    let mut list: Vec<Improvement> = [Horizon::Short, Horizon::Long].into_iter().filter_map(most).cloned().collect();
    let own = run.device.as_ref().map_or("", |d| &d.name);
    // Kernels of another device say nothing of this one.
    if let Some(k) = kernels.filter(|k| own.is_empty() || k.device == own) {
        list.extend(of_kernels(k));
    }
    list.retain(|i| i.saves_us > 0.0);
    list.sort_by(|a, b| a.horizon.cmp(&b.horizon).then(b.saves_us.total_cmp(&a.saves_us)));
    let mut seen: Vec<Horizon> = Vec::new();
    list.retain(|i| {
        seen.push(i.horizon);
        seen.iter().filter(|h| **h == i.horizon).count() <= MOST
    });
    list
}

/// Where the time of a step goes.
fn of_steps(e: &Entry, run: &Run) -> Vec<Improvement> {
    let Some(figures) = e.counted() else { return Vec::new() };
    let m = &figures.meanwhile;
    let Some((steps, busy)) = m.steps.filter(|s| *s > 0).zip(m.busy) else { return Vec::new() };
    let step_us = figures.duration_s * 1e6 / steps as f64;
    let mut list = Vec::new();
    // Between requests that come at their own times the device is idle by right.
    let idle = if closed(run, &e.workload) { (1.0 - busy) * step_us } else { 0.0 };
    let host = m.host_us_a_step.map(|us| format!("; the host computes for {} of a step", time(us))).unwrap_or_default();
    let launches = m.launches_a_step.map(|n| format!(", with {} launches", number(n))).unwrap_or_default();
    list.push(Improvement {
        horizon: Horizon::Short,
        saves_us: idle,
        said: Said::new(
            format!(
                "{} {}: the GPU is idle for {} of the {} of a step{host}{launches}.",
                e.workload,
                e.dtype,
                time(idle),
                time(step_us)
            ),
            [e.source()],
        ),
    });
    if let Some(roofline) = m.roofline.filter(|r| *r < busy) {
        let above = (busy - roofline) * step_us;
        let text = format!(
            "{} {}: kernels run for {} of a step, of which its bytes and operations need {}: {} above the roofline.",
            e.workload,
            e.dtype,
            percent(busy),
            percent(roofline),
            time(above)
        );
        list.push(Improvement { horizon: Horizon::Long, saves_us: above, said: Said::new(text, [e.source()]) });
    }
    list
}

fn of_kernels(k: &KernelPerformanceReport) -> Vec<Improvement> {
    let mut list = Vec::new();
    for o in &k.opportunities {
        let row = |label: &str| Source::Kernel { problem: o.problem.clone(), label: label.into() };
        let ours = k.kernels.iter().find(|kernel| kernel.problem == o.problem).map_or("jitune/tuned", |own| &own.label);
        let pass =
            format!("{} {} of {} {}", o.calls, if o.calls == 1 { "call" } else { "calls" }, o.phase.name(), o.bucket);
        let near = o.to_best.as_ref().map_or(0.0, |(_, us)| *us);
        if let Some((other, us)) = &o.to_best {
            let text = format!("{} ({pass}): {other} is faster by {} a pass: {}.", o.role, time(*us), o.problem);
            let said = Said::new(text, [row(ours), row(other)]);
            list.push(Improvement { horizon: Horizon::Short, saves_us: *us, said });
        }
        let left = o.to_roofline_us - near;
        let beyond = if near > 0.0 { " beyond that" } else { "" };
        let text = format!("{} ({pass}): the roofline is {} a pass away{beyond}: {}.", o.role, time(left), o.problem);
        list.push(Improvement { horizon: Horizon::Medium, saves_us: left, said: Said::new(text, [row(ours)]) });
    }
    list
}
