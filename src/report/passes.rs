//! What one forward pass takes, and where it could become faster.

use super::Rows;
use super::count::{Best, OURS, counts, is_ours, ours};
use super::rows::{Calls, ProblemLine};
use crate::model::Phase;
use serde::Serialize;

/// The kernels of one forward pass, one after another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pass {
    /// The phase.
    pub phase: Phase,
    /// Batch of a decode step, tokens of a prompt.
    pub bucket: i64,
    /// Problems of the pass.
    pub problems: usize,
    /// The least that the device's ceilings allow, in microseconds.
    pub roofline_us: f64,
    /// Microseconds of each peer that has all problems, at each its fastest way; the fastest first.
    pub sums: Vec<(String, f64)>,
    /// The peers that have only some of them.
    pub parts: Vec<Part>,
}

/// What a peer has of a pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The peer.
    pub peer: String,
    /// How many problems it has.
    pub problems: usize,
    /// Its sum over them, in microseconds.
    pub us: f64,
    /// jitune's over the same ones.
    pub ours_us: f64,
}

/// What one problem costs a forward pass above what is possible.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Opportunity {
    /// The phase.
    pub phase: Phase,
    /// Batch of a decode step, tokens of a prompt.
    pub bucket: i64,
    /// What it is in the model.
    pub role: String,
    /// The problem.
    pub problem: String,
    /// Calls in one pass.
    pub calls: i64,
    /// Our time of one call.
    pub ours_us: f64,
    /// Microseconds a pass would save at the roofline.
    pub to_roofline_us: f64,
    /// The fastest other, and the microseconds a pass would save at its speed, where it is faster and no tie.
    pub to_best: Option<(String, f64)>,
}

/// The (phase, bucket) pairs, decode first, the smallest first.
fn buckets(rows: &Rows) -> Vec<(Phase, i64)> {
    let mut list: Vec<_> = rows.problems.iter().flat_map(|p| &p.calls).map(|c| (c.phase, c.bucket)).collect();
    list.sort_by_key(|(phase, bucket)| (phase.name(), *bucket));
    list.dedup();
    list
}

fn calls_of(rows: &Rows, phase: Phase, bucket: i64) -> Vec<(&ProblemLine, &Calls)> {
    let all = rows.problems.iter().flat_map(|p| p.calls.iter().map(move |c| (p, c)));
    all.filter(|(_, c)| c.phase == phase && c.bucket == bucket).collect()
}

/// The sums of every phase and bucket.
pub fn passes(rows: &Rows) -> Vec<Pass> {
    let mut peers: Vec<&str> = vec![OURS.0];
    for row in &rows.rows {
        if !peers.contains(&row.peer.as_str()) {
            peers.push(&row.peer);
        }
    }
    let pass = |(phase, bucket)| {
        let calls = calls_of(rows, phase, bucket);
        let (mut sums, mut parts) = (Vec::new(), Vec::new());
        for peer in &peers {
            let pair = |(p, c): &(&ProblemLine, &Calls)| {
                let each = [*peer, OURS.0].map(|who| time(rows, &p.problem, who).map(|us| us * c.calls as f64));
                each[0].zip(each[1])
            };
            let here: Vec<(f64, f64)> = calls.iter().filter_map(pair).collect();
            let (us, ours_us) = here.iter().fold((0.0, 0.0), |sum, v| (sum.0 + v.0, sum.1 + v.1));
            match here.len() {
                n if n == calls.len() => sums.push((peer.to_string(), us)),
                0 => {}
                problems => parts.push(Part { peer: peer.to_string(), problems, us, ours_us }),
            }
        }
        sums.sort_by(|a: &(_, f64), b| a.1.total_cmp(&b.1));
        let roofline_us = calls.iter().map(|(p, c)| p.roofline_us * c.calls as f64).sum();
        Pass { phase, bucket, problems: calls.len(), roofline_us, sums, parts }
    };
    buckets(rows).into_iter().map(pass).collect()
}

/// A peer's time of a problem, by its fastest way; of jitune that is the winner, not what is measured beside it.
fn time(rows: &Rows, problem: &str, peer: &str) -> Option<f64> {
    let ours = ours(rows, problem);
    if peer == OURS.0 {
        return ours.and_then(|r| r.times()).map(|t| t.median_us);
    }
    let ways = rows.rows.iter().filter(|r| r.problem == problem && r.peer == peer && !is_ours(r));
    ways.filter_map(|r| counts(r, ours)).map(|(us, _)| us).min_by(f64::total_cmp)
}

/// What each call of each pass costs above the roofline and above the fastest other, the most of a pass first.
pub fn opportunities(rows: &Rows, best: &[Best]) -> Vec<Opportunity> {
    let mut list = Vec::new();
    for (phase, bucket) in buckets(rows) {
        let mut of_pass: Vec<Opportunity> = Vec::new();
        for (p, c) in calls_of(rows, phase, bucket) {
            let Some(times) = ours(rows, &p.problem).and_then(|r| r.times()) else { continue };
            let calls = c.calls as f64;
            let faster = best.iter().find(|b| b.problem == p.problem && !b.tie && b.ratio < 1.0);
            of_pass.push(Opportunity {
                phase,
                bucket,
                role: c.role.clone(),
                problem: p.problem.clone(),
                calls: c.calls,
                ours_us: times.median_us,
                to_roofline_us: (calls * (times.median_us - p.roofline_us)).max(0.0),
                to_best: faster.map(|b| (b.label.clone(), calls * (b.ours_us - b.us))),
            });
        }
        of_pass.sort_by(|a, b| b.to_roofline_us.total_cmp(&a.to_roofline_us));
        list.extend(of_pass);
    }
    list
}
