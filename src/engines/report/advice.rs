//! The sections that say what follows from what was measured: criteria, recommendation, kernels.

use super::criteria::{Criterion, Verdict};
use super::kernels::KernelPerformanceReport;
use super::roadmap::Horizon;
use super::source::{self, Said};
use super::summary::LibraryComparisonReport;
use super::view::{Block, Section};
use super::words::{list, maybe, number, percent};
use crate::report::text;
use indexmap::IndexMap;

/// Cases of a criterion that are shown; `report.json` has all.
const CASES: usize = 12;

/// A verdict in words.
pub fn verdict(c: &Criterion) -> String {
    let met = c.cases.iter().filter(|c| c.met).count();
    match c.verdict {
        Verdict::Met => "met".into(),
        Verdict::Partly => format!("met in {met} of {}", c.cases.len()),
        Verdict::Missed => "missed".into(),
        Verdict::NotMeasured => "not measured".into(),
    }
}

/// A margin in words.
pub fn margin(v: f64) -> String {
    format!("{:+.1}%", v * 100.0)
}

/// The success criteria.
pub fn criteria(r: &LibraryComparisonReport) -> Section {
    let row = |c: &Criterion| {
        let figure = c.figure.clone().unwrap_or_else(|| "—".into());
        let start = [c.name.to_string(), verdict(c), c.target.clone(), c.baseline.clone()];
        start.into_iter().chain([figure, maybe(c.margin, margin)]).collect()
    };
    let mut blocks = vec![
        Block::text(
            "The figure and the margin are those of the worst case; a margin is the distance to the target as a share of it, below \
             zero where it is missed.",
        ),
        Block::table(
            &["criterion", "verdict", "target", "held against", "worst figure", "margin"],
            4,
            r.criteria.iter().map(row).collect(),
        ),
    ];
    let (with, without): (Vec<&Criterion>, Vec<&Criterion>) = r.criteria.iter().partition(|c| !c.cases.is_empty());
    for c in with {
        blocks.push(Block::heading(format!("{}: {}", c.name, verdict(c))));
        let case = |k: &super::criteria::Case| {
            let met = if k.met { "met" } else { "missed" };
            let start = [k.of.clone(), met.into(), k.note.clone(), source::text(&k.because)];
            start.into_iter().chain([k.figure.clone(), margin(k.margin)]).collect()
        };
        blocks.push(Block::table(
            &["case", "", "beside it", "lines", "figure", "margin"],
            4,
            c.cases.iter().take(CASES).map(case).collect(),
        ));
        if c.cases.len() > CASES {
            let rest = &c.cases[CASES..];
            let met = rest.iter().filter(|k| k.met).count();
            blocks.push(Block::text(format!("{} more cases, {met} of them met.", rest.len())));
        }
        if !c.missing.is_empty() {
            blocks.push(Block::text(format!("Missing: {}.", c.missing.join("; "))));
        }
    }
    // One line for all that lack the same.
    let mut lacking: IndexMap<String, Vec<&str>> = IndexMap::new();
    for c in without {
        lacking.entry(c.missing.join("; ")).or_default().push(c.name);
    }
    for (why, names) in lacking {
        let missing = if why.is_empty() { String::new() } else { format!(" Missing: {why}.") };
        blocks.push(Block::text(format!("Not measured: {}.{missing}", list(&names))));
    }
    Section { id: "criteria", title: "Success criteria", blocks }
}

/// What to run.
pub fn recommendation(r: &LibraryComparisonReport) -> Section {
    let advice = &r.recommendation;
    let mut blocks = Vec::new();
    match &advice.primary {
        Some(choice) => blocks.push(Block::said(&choice.said)),
        None => blocks.push(Block::text("No engine has a cell that counts, so none is recommended.")),
    }
    if !advice.hybrid.is_empty() {
        blocks.push(Block::heading("Where another engine is better"));
        blocks.push(Block::list(advice.hybrid.iter().map(|c| &c.said)));
    }
    if !advice.targets.is_empty() {
        blocks.push(Block::heading("Targets to hold in production"));
        let said: Vec<Said> = advice.targets.iter().map(super::recommend::Target::said).collect();
        blocks.push(Block::list(&said));
    }
    for (i, step) in advice.migration.iter().enumerate() {
        if i == 0 {
            blocks.push(Block::heading("From the CPU engine"));
        }
        blocks.push(Block::heading(format!("{}. {}", i + 1, step.title)));
        blocks.extend(step.said.iter().map(Block::said));
        if !step.commands.is_empty() {
            blocks.push(Block::Commands { lines: step.commands.clone() });
        }
    }
    for horizon in [Horizon::Short, Horizon::Medium, Horizon::Long] {
        let here: Vec<_> = advice.roadmap.iter().filter(|i| i.horizon == horizon).collect();
        if !here.is_empty() {
            blocks.push(Block::heading(format!("What would make jitune faster, {}", horizon.name())));
            blocks.push(Block::list(here.iter().map(|i| &i.said)));
        }
    }
    Section { id: "recommendation", title: "Recommendation", blocks }
}

/// What the rows of `jitune compare` say; none where they were not given.
pub fn kernels(k: &KernelPerformanceReport) -> Section {
    let mut blocks = vec![Block::text(format!(
        "Kernels of {} on {}, measured by `jitune compare`.",
        k.model.as_deref().unwrap_or("no model"),
        if k.device.is_empty() { "a device unknown" } else { &k.device }
    ))];
    if !k.losses.is_empty() {
        blocks.push(Block::heading("Kernels that are slower than another's"));
        let row = |l: &crate::report::summary::Loss| {
            vec![l.problem.clone(), l.label.clone(), text::us(l.ours_us), text::us(l.us), percent(1.0 / l.ratio - 1.0)]
        };
        let header = ["problem", "faster", "jitune µs", "its µs", "jitune takes longer by"];
        blocks.push(Block::table(&header, 2, k.losses.iter().map(row).collect()));
    }
    blocks.push(Block::heading("Winner of each type of kernel"));
    let winner = |w: &crate::report::standing::KindWinner| {
        let fastest: Vec<String> = w.fastest.iter().map(|(who, n)| format!("{who} on {n}")).collect();
        let first = if w.winners.is_empty() { "—".into() } else { w.winners.join(" = ") };
        let alone = if w.alone && !w.winners.is_empty() { ", no other has them all" } else { "" };
        vec![w.op.clone(), text::phase(w.phase).into(), first + alone, fastest.join(", ")]
    };
    let header = ["op", "phase", "winner by mean", "fastest by problem"];
    blocks.push(Block::table(&header, 4, k.winners.iter().map(winner).collect()));
    blocks.push(Block::heading("How far each uses the device"));
    let used = |u: &super::kernels::Kernel| {
        let bound = if u.memory_bound { "bytes" } else { "operations" };
        let start = [u.problem.clone(), bound.into(), text::us(u.us)];
        let shares = [u.roofline_share, u.occupancy, u.tensor, u.memory].map(|v| maybe(v, percent));
        start.into_iter().chain(shares).collect()
    };
    let header = ["problem", "bound by", "µs", "of the roofline", "occupancy", "tensor cores", "memory"];
    blocks.push(Block::table(&header, 2, k.kernels.iter().map(used).collect()));
    if !k.opportunities.is_empty() {
        blocks.push(Block::heading("Time lost against the roofline × calls"));
        let row = |o: &crate::report::passes::Opportunity| {
            let best = o.to_best.as_ref().map(|(label, us)| format!("{} ({label})", text::time(*us)));
            let start = [format!("{} {}", o.phase.name(), o.bucket), o.role.clone(), o.problem.clone()];
            let rest = [o.calls.to_string(), text::time(o.to_roofline_us), best.unwrap_or_else(|| "—".into())];
            start.into_iter().chain(rest).collect()
        };
        let header = ["pass", "role", "problem", "calls", "to the roofline", "to the fastest other"];
        let shown = k.opportunities.iter().take(CASES);
        blocks.push(Block::table(&header, 3, shown.map(row).collect()));
    }
    Section { id: "kernels", title: "Kernels", blocks }
}

/// A loss in one sentence.
pub fn loss_in_words(l: &super::rankings::Loss) -> String {
    let by = maybe(l.behind, super::words::ratio);
    format!(
        "{} {}: {} is better in {}, {} beside jitune's {} ({by})",
        l.workload,
        l.dtype,
        l.engine,
        l.metric.name(),
        number(l.its),
        number(l.ours)
    )
}
