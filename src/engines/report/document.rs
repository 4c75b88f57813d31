//! The sections of a report in their order: what jitune loses first.

use super::criteria::Verdict;
use super::entry::OURS;
use super::summary::LibraryComparisonReport;
use super::view::{Document, Score};
use super::{advice, environment, tables, tokenization};

/// The whole report, before it is rendered.
pub fn document(r: &LibraryComparisonReport) -> Document {
    let mut sections = vec![
        tables::losses(r),
        advice::criteria(r),
        advice::recommendation(r),
        tables::rankings(r),
        tables::figures(r),
    ];
    sections.extend([tables::scaling(r), tables::costs(r)]);
    sections.extend(r.kernels.as_ref().map(advice::kernels));
    sections.extend(tokenization::tokenization(r));
    sections.extend([tables::apart(r), tables::noise(r), environment::environment(r)]);
    let model = if r.model.is_empty() { "a model" } else { &r.model };
    let device = if r.device.is_empty() { "a device unknown" } else { &r.device };
    Document { title: format!("Engines with {model} on {device}"), notices: notices(r), score: score(r), sections }
}

fn notices(r: &LibraryComparisonReport) -> Vec<String> {
    let mut list = Vec::new();
    if r.cut {
        list.push("This run was cut off before its end. What it had measured by then is here.".into());
    }
    if r.quick {
        list.push("This was the short run: few requests, so percentiles are of few values.".into());
    }
    list
}

fn score(r: &LibraryComparisonReport) -> Vec<Score> {
    let held = |w: &&super::rankings::WorkloadWinner| {
        let group = [&w.workload[..], &w.dtype, &w.device];
        w.of > 1 && r.entries.iter().any(|e| e.ours() && e.counted().is_some() && e.group() == group)
    };
    let all: Vec<_> = r.workload_winners.iter().filter(held).collect();
    let ours = |w: &&&super::rankings::WorkloadWinner| w.winners.iter().any(|e| e == OURS);
    let first = all.iter().filter(|w| ours(w) && w.winners.len() == 1).count();
    let tied = all.iter().filter(|w| ours(w) && w.winners.len() > 1).count();
    let lost = all.len() - first - tied + r.lacking.len();
    let met = r.criteria.iter().filter(|c| c.verdict == Verdict::Met).count();
    let measured = r.criteria.iter().filter(|c| c.verdict != Verdict::NotMeasured).count();
    let score = |n: usize, of: &str, bad| Score { figure: n.to_string(), of: of.into(), bad: bad && n > 0 };
    vec![
        score(lost, "workloads at which another engine is first", true),
        score(tied, "workloads at which jitune ties with the first", false),
        score(first, "workloads at which jitune is first", false),
        Score {
            figure: format!("{met}/{measured}"),
            of: format!("criteria met of those measured (there are {} in all)", r.criteria.len()),
            bad: met < measured,
        },
    ]
}
